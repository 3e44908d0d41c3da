"""Find the bulk files of UK Biobank, and read its lists of people who withdrew."""

import os
import re
from pathlib import Path

from scalebrain.errors import ImageError, TableError, check_all
from scalebrain.io.cells import is_missing
from scalebrain.io.delimited import IDS
from scalebrain.io.files import SourceFile
from scalebrain.io.tree import Findings, Tree, archive_members, bad_id, is_folder

__all__ = ["find_biobank", "is_withdrawal_list", "read_withdrawn"]

_T1, _FREESURFER = "20252", "20263"
_ARCHIVE = re.compile(rf"([0-9]{{1,64}})_({_T1}|{_FREESURFER})_([0-9]{{1,4}})_([0-9]{{1,4}})\.zip")
_MEMBER = "T1/T1_brain_to_MNI.nii.gz"
#: UK Biobank registers with FSL, whose template this is.
_SPACE = "MNI152NLin6Asym"
_ID = re.compile(r"(?:sub-)?([A-Za-z0-9]{1,64})")
_HEADERS = (*IDS, "id", "x")  # of a list of ids; R calls a column without a name x


def find_biobank(tree: Tree) -> Findings:
    """Find archives of T1 images (field 20252) and of FreeSurfer (field 20263).

    Parameters
    ----------
    tree
        Root of the dataset.

    Returns
    -------
    Findings
        Files by person and session, ``ses-2`` for instance 2; nothing when the layout is
        another one.

    Raises
    ------
    ImageError
        When the root cannot be listed.
    """
    found = Findings()
    for entry in tree.entries(tree.root):
        match = _ARCHIVE.fullmatch(entry.name)
        if match is None:
            if re.search(rf"_({_T1}|{_FREESURFER})_.*\.zip$", entry.name):
                found.rejected.append(
                    bad_id(entry.name, "no <eid>_<field>_<instance>_<array>.zip of UK Biobank")
                )
            continue
        if is_folder(entry):
            continue
        visit = found.visit(f"sub-{match[1]}", f"ses-{match[3]}")
        try:
            tree.check_file(entry.path)
            members = archive_members(tree, Path(entry.path))
            if match[2] == _T1:
                _check_image(tree, entry, members)
                visit.add("t1w", _SPACE, SourceFile(Path(entry.path), _MEMBER))
            else:
                _check_surfaces(tree, entry, members)
                visit.surfaces.append(SourceFile(Path(entry.path), "FreeSurfer"))
        except ImageError as error:
            visit.refuse(error, tree.shown(entry.path))
    return found


def _check_image(tree: Tree, entry: os.DirEntry[str], members: frozenset[str]) -> None:
    """Check that an archive of field 20252 holds a usable T1 image."""
    if any(name.startswith("T1/unusable/") for name in members):
        raise ImageError(
            f"{tree.shown(entry.path)}: UK Biobank marks this scan as unusable (T1/unusable/). "
            "Take the archive out.",
            code="no-image",
        )
    if _MEMBER not in members:
        raise ImageError(
            f"{tree.shown(entry.path)}: no {_MEMBER} inside. Expected a bulk file of field "
            f"{_T1}; download it again.",
            code="unreadable",
        )


def _check_surfaces(tree: Tree, entry: os.DirEntry[str], members: frozenset[str]) -> None:
    """Check that an archive of field 20263 holds a FreeSurfer folder."""
    if not any(name.startswith("FreeSurfer/") for name in members):
        raise ImageError(
            f"{tree.shown(entry.path)}: no folder FreeSurfer inside. Expected a bulk file of "
            f"field {_FREESURFER}; download it again.",
            code="freesurfer-unfinished",
        )


def is_withdrawal_list(name: str, header: list[str]) -> bool:
    """Tell UK Biobank's list of withdrawals from a table: its name, and one column."""
    return re.fullmatch(r"w.*\.(csv|txt)", name) is not None and len(header) == 1


def read_withdrawn(path: str | Path) -> frozenset[str]:
    """Read a list of people who withdrew their consent.

    Parameters
    ----------
    path
        Text with one id a line, on its own or below the header ``eid``, ``participant_id``,
        ``bids_id``, ``subject``, ``id`` or ``x``.

    Returns
    -------
    frozenset of str
        ``sub-<id>`` of each.

    Raises
    ------
    TableError
        When it cannot be read, a line is no id or a missing one, or there is no id at all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error
    except ValueError as error:
        raise TableError(f"{path}: not UTF-8 text. Save it as plain text.") from error
    lines = [line.strip().strip("\"'").strip() for line in text.split("\n")]
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if filled and filled[0][1].lower() in _HEADERS:
        del filled[0]
    if not filled:
        raise TableError(f"{path}: no id in it. Expected one participant id a line.")
    failures = [
        f"{path}: line {number}: {line[:80]!r} is no participant id. Write one id a line."
        for number, line in filled
        if is_missing(line) or not _ID.fullmatch(line)
    ]
    check_all(failures, TableError, f"{path}: the list of withdrawals is not usable")
    return frozenset(f"sub-{line.removeprefix('sub-')}" for _, line in filled)
