"""Find files that a table names: the manifest of a dataset of any layout."""

import csv
import io
import os
import re
from pathlib import Path

from scalebrain.errors import ImageError, Problem, TableError
from scalebrain.io.bids_tree import check_surfaces
from scalebrain.io.cells import is_missing, quote
from scalebrain.io.delimited import IDS, SESSIONS
from scalebrain.io.enigma import KNOWN
from scalebrain.io.files import SourceFile
from scalebrain.io.tree import (
    NATIVE,
    PERSON,
    SESSION,
    TEMPLATE,
    Findings,
    Tree,
    archive_members,
    shown,
)

__all__ = ["COLUMNS", "find_manifest"]

_FILES = ("t1w", "gm", "lesion", "surfaces")
_SPACE = "MNI152NLin2009aSym"
#: Another name of the column lesion.
_MASKS = "lesion_mask"
#: Columns of a manifest that are none of participants.tsv.
COLUMNS = (*_FILES, _MASKS, "space")
#: Names of columns that may be of lesion masks, and ends of files that are images.
_LIKE_MASKS = re.compile(
    r"(?!.*(brain|head|skull|scalp|tissue|ventric|(?<![a-z])(gm|wm|csf)(?![a-z])))"
    r".*(mask|lesion|stroke|infarct|(?<![a-z])rois?(?![a-z]))"
)
#: Of masks whose files are not there and have no such end: dates and categories are no files.
_NAMES_FILES = re.compile(r"(.*[\W_])?(path|file|filename|image|img|mask|roi)s?")
_IMAGES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr")
#: Paths of a column without such an end are looked for until so many are not there.
_TRIED = 8


def find_manifest(tree: Tree, path: Path) -> Findings:
    """Find the files that a manifest names.

    Parameters
    ----------
    tree
        Folder that its paths are relative to, and must not leave.
    path
        Table with the column subject (or participant_id), some of t1w, gm, lesion (or
        lesion_mask) and surfaces, and optionally session and space.

    Returns
    -------
    Findings
        Files by person and session, and a warning for each other column that names files. Rows
        without a usable id are left to the reader of participants, which rejects them.

    Raises
    ------
    TableError
        When it is no such table.
    """
    rows = _read_rows(path)
    header = [name.strip().lower() for name in rows[0]]
    if "lesion" not in header and _holds_files(rows, header, _MASKS):
        header = ["lesion" if name == _MASKS else name for name in header]
    ids = [name for name in IDS if name in header]
    if not ids or not set(_FILES) & set(header):
        raise TableError(
            f"{path}: no manifest: expected a column subject (or participant_id) and some of "
            f"{', '.join(_FILES)}; found {shown(', '.join(header))}. For a dataset in a folder "
            "give the folder."
        )
    twice = sorted(name for name in {*IDS, *SESSIONS, *_FILES, "space"} if header.count(name) > 1)
    if twice:
        raise TableError(f"{path}: several columns {', '.join(twice)}. Keep one of each.")
    found = Findings()
    taken: list[tuple[str, dict[str, str]]] = []
    for cells in rows[1:]:
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
        person = f"sub-{row.get(ids[0], '').removeprefix('sub-')}"
        if PERSON.fullmatch(person):
            _take_row(tree, found, person, row)
            taken.append((person, row))
    for name in dict.fromkeys(header):
        if name and name not in KNOWN.union(_FILES, ("space",)):
            _tell_unread(tree, found, path, name, [(who, row.get(name, "")) for who, row in taken])
    return found


def _read_rows(path: Path) -> list[list[str]]:
    """Cells of a table, the header first."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except (ValueError, csv.Error) as error:
        raise TableError(f"{path}: not a UTF-8 table: {shown(str(error))}.") from error
    if len(rows) < 2:
        raise TableError(f"{path}: no row. Expected a header and one row a scan.")
    return rows


def _take_row(tree: Tree, found: Findings, person: str, row: dict[str, str]) -> None:
    """Take the files of one row."""
    session = next((row[name] for name in SESSIONS if name in row), "")
    session = "" if is_missing(session) else f"ses-{session.removeprefix('ses-')}"
    found.visits.setdefault(person, {})
    if session and not SESSION.fullmatch(session):
        return
    space = row.get("space", "")
    space = _SPACE if is_missing(space) else space
    space = space if TEMPLATE.fullmatch(space) else NATIVE
    for kind in _FILES:
        cell = row.get(kind, "")
        if is_missing(cell):
            continue
        visit = found.visit(person, session)
        try:
            if "\0" in cell:
                raise ImageError(f"{shown(cell)}: no path. Correct the cell.", code="unreadable")
            path = os.path.join(tree.root, cell)
            if kind == "surfaces":
                visit.surfaces.append(_surfaces(tree, path))
            else:
                tree.check_file(path)
                visit.add(kind, space, SourceFile(Path(path)))
        except ImageError as error:
            visit.refuse(error, tree.shown(os.path.join(tree.root, cell)))


def _tell_unread(
    tree: Tree, found: Findings, path: Path, name: str, cells: list[tuple[str, str]]
) -> None:
    """Warn of a column that is not read and names files, and note whose masks they may be."""
    files = {who: cell for who, cell in cells if _may_be_file(cell)}
    images = [cell for cell in files.values() if cell.lower().endswith(_IMAGES)]
    like_masks = any(_LIKE_MASKS.match(text) for text in (name, *map(_own_name, images)))
    tried = list(files.values())[:_TRIED]
    named = like_masks and _NAMES_FILES.fullmatch(name)
    if not files or not (images or named or any(_is_there(tree, cell) for cell in tried)):
        return
    known = f"The columns of files that are read are {', '.join(_FILES)}: rename it"
    many = "one file" if len(files) == 1 else f"{len(files)} files"
    message = f"{path.name}: the column {quote(name)} names {many} and is not read."
    if like_masks:
        found.unread |= {who: tree.shown(cell) for who, cell in files.items()}
        message = f"{message} {known} to lesion if these are lesion masks."
        found.warnings.append(Problem("", "mask-ignored", message, str(path)))
    else:
        message = f"{message} {known} if it is one of them."
        found.warnings.append(Problem("", "column-ignored", message, str(path)))


def _holds_files(rows: list[list[str]], header: list[str], name: str) -> bool:
    """Whether a column may name files: one of flags does not."""
    if name not in header:
        return False
    at = header.index(name)
    return any(_may_be_file(cells[at].strip()) for cells in rows[1:] if at < len(cells))


def _may_be_file(cell: str) -> bool:
    """Tell a cell that may be the path of a file."""
    return not is_missing(cell) and ("/" in cell or cell.lower().endswith(_IMAGES))


def _own_name(cell: str) -> str:
    """Name of a file in lower case, without its folders and whose it is."""
    return re.sub(r"sub-[^_]*", "", cell.lower().rpartition("/")[2])


def _is_there(tree: Tree, cell: str) -> bool:
    """Tell whether a path is inside the dataset."""
    try:
        tree.check(os.path.join(tree.root, cell))
    except (ImageError, ValueError):  # no path at all
        return False
    return True


def _surfaces(tree: Tree, path: str) -> SourceFile:
    """FreeSurfer results in a folder, or in a folder inside an archive."""
    tree.check(path)
    if os.path.isdir(path):
        check_surfaces(tree, path)
        return SourceFile(Path(path))
    tree.check_file(path)
    ending = "/surf/lh.thickness"
    members = archive_members(tree, Path(path))
    folders = sorted(m.removesuffix(ending) for m in members if m.endswith(ending))
    if len(folders) != 1:
        listed = shown(", ".join(folders)) or "none"
        raise ImageError(
            f"{tree.shown(path)}: expected one FreeSurfer folder in the archive, found "
            f"{len(folders)} ({listed}). Zip one subject's folder.",
            code="freesurfer-unfinished",
        )
    return SourceFile(Path(path), folders[0])
