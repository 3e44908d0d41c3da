"""Find the scans of a dataset, whatever its layout, and join them with their table."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from scalebrain.errors import ConfigError, ImageError, Problem, TableError
from scalebrain.io.bids_tree import find_tree
from scalebrain.io.biobank import find_biobank, read_withdrawn
from scalebrain.io.cells import AGE_MISSING
from scalebrain.io.enigma import NORMED
from scalebrain.io.files import SourceFile
from scalebrain.io.manifest import COLUMNS, find_manifest
from scalebrain.io.mask_names import ACCEPTED
from scalebrain.io.participants import Participants, read_participants
from scalebrain.io.preprocessed import check_records
from scalebrain.io.session_tables import SessionValues, read_session_values
from scalebrain.io.sessions import ALL_SESSIONS, Selected, select_sessions
from scalebrain.io.spaces import Images, choose_images
from scalebrain.io.tables import find_people, read_description
from scalebrain.io.tree import NATIVE, SESSION, Findings, Tree

__all__ = ["Cohort", "Scan", "dataset_name", "find_cohort", "read_withdrawn"]

_MODULATED = "mwp1"
#: Columns that only someone with a stroke has a value in; a motor score healthy people have, too.
_STROKE_COLUMNS = ("days_post_stroke", "lesion_side", "paresis_side")
_SUBJECT = re.compile(r"^sub-(?=[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?\Z)")
_LAYOUTS = """Looked for
  - sub-* folders with images of a space-MNI..., or of CAT12 (mwp1*.nii in mri folders), or of
    FreeSurfer (surf/lh.thickness), beside participants.tsv,
  - <eid>_20252_<instance>_<array>.zip or <eid>_20263_... of UK Biobank, beside a table with a
    column eid,
  - a table that names the files: give the .tsv or .csv itself."""


@dataclass(frozen=True)
class Scan:
    """Files of one row of a cohort.

    Parameters
    ----------
    subject
        Unique name: ``sub-<label>``, with ``_ses-<label>`` behind it where one person has
        several sessions in the cohort.
    person
        ``sub-<label>``.
    session
        ``ses-<label>``; empty without sessions.
    t1w, gm, lesion
        Images, all in `space`; None when there is no such file.
    surfaces
        FreeSurfer's folder, or the archive that holds it.
    space
        Template space of the images; empty without images.
    """

    subject: str
    person: str
    session: str
    t1w: SourceFile | None = None
    gm: SourceFile | None = None
    lesion: SourceFile | None = None
    surfaces: SourceFile | None = None
    space: str = ""


@dataclass(frozen=True)
class Cohort:
    """Scans of a dataset, with the rows of its table.

    Parameters
    ----------
    name
        Name of the folder, or of the manifest without its ending.
    root
        Folder that no file lies outside of.
    scans
        Sorted by person and session.
    table
        One row a scan, in the same order, indexed by subject: the columns of
        :class:`~scalebrain.io.participants.Participants`, and person.
    description
        Content of dataset_description.json.
    rejected
        Everyone who was seen and is not in `scans`, with the reason.
    warnings
        What deserves a look.
    modulated
        Whether the grey-matter images are modulated volumes (CAT12), not probabilities.
    """

    name: str
    root: Path
    scans: tuple[Scan, ...]
    table: pd.DataFrame
    description: Mapping[str, object]
    rejected: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    modulated: bool


def find_cohort(
    source: str | Path,
    *,
    session: str | None = None,
    prefix: str = "",
    root: Path | None = None,
) -> Cohort:
    """Find every scan of a dataset, and join it with its row of the participants table.

    Parameters
    ----------
    source
        Folder of a dataset (BIDS derivatives, ATLAS R2.0, CAT12, FreeSurfer, bulk files of UK
        Biobank; recognized by what lies in it), or a manifest: a table that names the files.
    session
        Session to take of everybody (``ses-1`` or ``1``), or ``all``; by default each person
        has to have only one.
    prefix
        Letters and digits put in front of every label, to keep the people of several datasets
        apart.
    root
        Folder that the paths of a manifest are relative to and must not leave; by default the
        manifest's own.

    Returns
    -------
    Cohort
        Scans and their rows, and everyone who is not among them, with the reason.

    Raises
    ------
    TableError
        When nothing is recognized, or a table is missing or not usable as a whole.
    ConfigError
        When `session`, `prefix` or `root` is not valid.

    Notes
    -----
    With `session`, a person without that session is kept as missing; the values are then those
    of the session that the column session of the table names.
    """
    chosen = _check_session(session)
    if not re.fullmatch(r"[A-Za-z0-9]{0,32}", prefix):
        raise ConfigError(f"prefix {prefix!r}: expected up to 32 letters and digits.")
    path = Path(os.path.abspath(source)) if "\0" not in str(source) else Path(os.devnull)
    manifest = path.is_file() and path.suffix.lower() in (".tsv", ".csv")
    if not manifest and not path.is_dir():
        raise TableError(f"{source}: no such folder, and no manifest (.tsv, .csv). {_LAYOUTS}")
    if root is not None and not manifest:
        raise ConfigError(f"root {root}: only a manifest takes it, and {source} is a folder.")
    name = dataset_name(path)
    tree = Tree(path.parent if manifest and root is None else root or path)
    try:
        if manifest:
            found = find_manifest(tree, path)
            people = read_participants(path, default_cohort=name, of_files=COLUMNS)
            unlesioned = "reference"
        else:
            found, id_column = _find_folder(tree)
            people, unlesioned = find_people(tree, found, id_column=id_column, name=name)
        description = read_description(tree)
    except ImageError as error:
        raise TableError(str(error), code=error.code) from error
    selection = select_sessions(found, people, chosen)
    told = SessionValues()
    if not manifest:
        told = read_session_values(tree, found, people, selection.scans)
    out = {problem.subject for problem in told.rejected}
    images, unusable = choose_images(
        tree, {s.subject: s.visit for s in selection.scans if s.subject not in out}
    )
    kept = [selected for selected in selection.scans if selected.subject in images]
    table = _join_table(people, kept, told)
    by_signs, doubts = _fill_groups(table, people, found, images, unlesioned, told)
    rejected = [*found.rejected, *people.rejected, *selection.rejected, *told.rejected, *unusable]
    warnings = [*found.warnings, *_of_people(people, kept, told), *selection.warnings]
    warnings += [problem for problem in told.warnings if problem.subject in images]
    warnings += [problem for s in kept for problem in _odd_images(tree, s, images[s.subject])]
    warnings += _odd_groups(tree, table, images, by_signs)
    warnings += _unused_masks(found, kept)
    warnings += [_taken_as_reference(subject, reasons) for subject, reasons in doubts.items()]
    modulated = _is_modulated(tree, images)
    table.index = table.index.map(lambda subject: _put_in_front(prefix, subject))
    table["person"] = [_put_in_front(prefix, person) for person in table["person"]]
    scans = tuple(
        Scan(subject, person, selected.session, **vars(images[selected.subject]))
        for subject, person, selected in zip(table.index, table["person"], kept, strict=True)
    )
    return Cohort(
        name,
        tree.root,
        scans,
        table,
        description,
        _in_order(rejected, prefix),
        _in_order(warnings, prefix),
        modulated,
    )


def dataset_name(source: str | Path) -> str:
    """Name that a dataset has in a store: of its folder or manifest as it is given, link or not.

    Parameters
    ----------
    source
        Dataset, as :func:`find_cohort` takes it.

    Returns
    -------
    str
        Name.
    """
    path = Path(os.path.abspath(source))
    manifest = path.is_file() and path.suffix.lower() in (".tsv", ".csv")
    return _printable(path.stem if manifest else path.name) or "cohort"


def _printable(name: str) -> str:
    """Name of a folder as text that can be stored: of its other bytes each is shown as one."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _check_session(session: str | None) -> str | None:
    """Session with its ``ses-``."""
    if session is None or session == ALL_SESSIONS:
        return session
    name = f"ses-{session.removeprefix('ses-')}"
    if not SESSION.fullmatch(name):
        raise ConfigError(
            f"session {session[:80]!r}: expected ses-<label> of letters and digits, or all."
        )
    return name


def _find_folder(tree: Tree) -> tuple[Findings, str]:
    """Find the files of a folder, and the column of ids in a table that is named otherwise."""
    archives, found = find_biobank(tree), find_tree(tree)
    if archives and found:
        raise TableError(
            f"{tree.root}: archives of UK Biobank beside sub-* folders. Put each dataset into a "
            "folder of its own."
        )
    check_records(tree, found)
    if not archives and not found:
        raise TableError(f"{tree.root}: no dataset that is known. {_LAYOUTS}")
    return (archives, "eid") if archives else (found, "bids_id")


def _is_modulated(tree: Tree, images: Mapping[str, Images]) -> bool:
    """Tell modulated grey matter by the names of CAT12."""
    kinds = {i.gm.name.startswith(_MODULATED) for i in images.values() if i.gm is not None}
    if len(kinds) > 1:
        raise TableError(
            f"{tree.root}: both modulated grey matter of CAT12 ({_MODULATED}*) and probabilities "
            "(label-GM_probseg). Put each into a dataset of its own."
        )
    return kinds == {True}


def _join_table(people: Participants, kept: list[Selected], told: SessionValues) -> pd.DataFrame:
    """Row of each scan, with the values of its session in the place of its person's."""
    rows = [selected.row for selected in kept]
    table: pd.DataFrame = people.table.iloc[rows].drop(columns="subject")
    table.index = pd.Index([selected.subject for selected in kept], name="subject", dtype=object)
    table["session"] = [
        row or selected.session for row, selected in zip(table["session"], kept, strict=True)
    ]
    table["person"] = [selected.person for selected in kept]
    replaced = {name for values in told.values.values() for name in values}
    for name in sorted(replaced & set(table.columns)):
        table[name] = [
            told.values.get(subject, {}).get(name, value)
            for subject, value in zip(table.index, table[name], strict=True)
        ]
    return table


def _of_people(people: Participants, kept: list[Selected], told: SessionValues) -> list[Problem]:
    """Warnings of the table, but of ages that are missing there and told of every scan."""
    aged = {selected.person for selected in kept}
    aged -= {s.person for s in kept if "age" not in told.values.get(s.subject, {})}
    return [p for p in people.warnings if p.subject not in aged or AGE_MISSING not in p.message]


def _signs_of_stroke(people: Participants, found: Findings, told: SessionValues) -> dict[str, str]:
    """Say in words what tells of a person, in any session, that there was a stroke."""
    signs: dict[str, set[str]] = {}
    for person, visits in found.visits.items():
        for session, visit in visits.items():
            if any(kind == "lesion" for kind, _ in visit.images):
                of = "of another session" if session else "without a session"
                signs.setdefault(person, set()).add(f"a lesion mask {of}")
    for name in _STROKE_COLUMNS:
        column = people.table[name]
        for person in people.table["subject"][column.notna() & (column != "")]:
            signs.setdefault(person, set()).add(name)
    for person, names in told.signs.items():
        own = names.intersection((*_STROKE_COLUMNS, NORMED))
        own |= {"the group of another session"} if "group" in names else set()
        if own:
            signs.setdefault(person, set()).update(own)
    return {person: ", ".join(sorted(names)) for person, names in signs.items()}


def _fill_groups(
    table: pd.DataFrame,
    people: Participants,
    found: Findings,
    images: Mapping[str, Images],
    unlesioned: str,
    told: SessionValues,
) -> tuple[dict[str, str], dict[str, str]]:
    """Give a group to those without one: why it is stroke without a mask, or may be no reference.

    Parameters
    ----------
    table
        Rows of the scans, whose groups are filled.
    people, found, images
        Table, files, and the files that are read.
    unlesioned
        Group without a lesion mask.
    told
        Values of single sessions.

    Returns
    -------
    by_signs, doubts : dict
        Reasons by subject, in words.
    """
    signs = _signs_of_stroke(people, found, told)
    odd = _signs_of_patients(people, found, told)
    groups: list[str] = []
    reasons: dict[str, str] = {}
    doubts: dict[str, str] = {}
    columns = (table.index, table["person"], table["group"])
    for subject, person, group in zip(*columns, strict=True):
        masked = images[subject].lesion is not None
        if not group and not masked and person in signs:
            reasons[subject] = signs[person]
        elif not (group or masked) and unlesioned == "reference" and images[subject] != Images():
            doubts |= {subject: odd[person]} if person in odd else {}
        derived = "stroke" if masked or person in signs else unlesioned
        groups.append(group or derived)
    table["group"] = groups
    return reasons, doubts


def _signs_of_patients(
    people: Participants, found: Findings, told: SessionValues
) -> dict[str, str]:
    """Say in words what healthy people seldom have: a motor score, a file like a lesion mask."""
    signs = {person: file for person, _, file in found.unused} | found.unread
    scored = {*people.table["subject"][people.table["motor_score"].notna()]}
    scored |= {person for person, names in told.signs.items() if "motor_score" in names}
    for person in sorted(scored):
        signs.setdefault(person, "a motor score")
    return signs


def _taken_as_reference(subject: str, reason: str) -> Problem:
    """Say that somebody is taken as a healthy reference who may be none."""
    message = (
        f"{subject}: no lesion mask, and no group in the table: taken as a healthy reference, in "
        f"spite of {reason}. Where there is a lesion, add its mask; else write the group "
        "(reference, stroke)."
    )
    return Problem(subject, "taken-as-reference", message)


def _unused_masks(found: Findings, kept: list[Selected]) -> list[Problem]:
    """Say of files that look like lesion masks that they are not read."""
    problems = []
    for person, session, file in found.unused:
        message = (
            f"{file}: looks like a lesion mask by its name, and is not read: the name of one ends "
            f"in {ACCEPTED}. Rename it if it is one in template space, as "
            f"{person}_space-MNI..._label-L_mask.nii.gz."
        )
        problems += [
            Problem(selected.subject, "mask-ignored", message, file)
            for selected in kept
            if selected.person == person and session in ("", selected.session or session)
        ]
    return problems


def _odd_images(tree: Tree, selected: Selected, images: Images) -> list[Problem]:
    """Say why a scan with other files has no T1w image."""
    others = [file for file in (images.gm, images.lesion, images.surfaces) if file is not None]
    native = ("t1w", NATIVE) in selected.visit.images
    if images.t1w is not None or not others or (images.surfaces is not None and not native):
        return []
    file = tree.shown(others[0].path)
    message = f"{file}: no T1w image beside it: kept without. Add one in the same space."
    if images.gm is not None and images.gm.name.startswith(_MODULATED):
        message = (
            f"{file}: no {images.gm.name.replace(_MODULATED, 'wm', 1)} beside it: kept without a "
            "T1w image. Switch on CAT12's output of the bias-corrected, normalized T1 image."
        )
    elif native:
        message = (
            f"{file}: the T1w image of this scan is in no template space: kept without it. "
            "Normalize it to use it, too."
        )
    return [Problem(selected.subject, "no-image", message, file)]


def _odd_groups(
    tree: Tree, table: pd.DataFrame, images: Mapping[str, Images], by_signs: Mapping[str, str]
) -> list[Problem]:
    """Say where the group contradicts the lesion masks, or signs alone say that it is stroke."""
    problems = []
    for subject, group in zip(table.index, table["group"], strict=True):
        found = images[subject]
        if group == "reference" and found.lesion is not None:
            file = tree.shown(found.lesion.path)
            message = (
                f"{file}: a lesion mask of {subject}, whose group is reference. Correct the group, "
                "or take the mask out."
            )
            problems.append(Problem(subject, "group-mismatch", message, file))
        elif group == "stroke" and found.lesion is None and found != Images():
            message = (
                f"{subject}: the group is stroke, but there is no lesion mask. Add the mask, or "
                "correct the group."
            )
            if subject in by_signs:
                message = (
                    f"{subject}: no lesion mask, and no group in the table; taken as stroke by "
                    f"{by_signs[subject]}. Add the mask, or a column group that says reference."
                )
            problems.append(Problem(subject, "group-mismatch", message))
    return problems


def _put_in_front(prefix: str, subject: str) -> str:
    """Subject with the prefix before its label; text that is no subject stays."""
    return _SUBJECT.sub(f"sub-{prefix}", subject) if prefix else subject


def _in_order(problems: list[Problem], prefix: str) -> tuple[Problem, ...]:
    """Problems by subject, code and message."""
    named = {replace(p, subject=_put_in_front(prefix, p.subject)) for p in problems}
    return tuple(sorted(named, key=lambda p: (p.subject, p.code, p.message, p.file)))
