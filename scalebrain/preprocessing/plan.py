"""Which scans of a raw BIDS dataset are preprocessed, and with which lesion mask."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scalebrain.errors import ConfigError, ImageError, Problem, TableError
from scalebrain.io.bids_tree import find_tree
from scalebrain.io.participants import read_groups
from scalebrain.io.preprocessed import scan_name
from scalebrain.io.tables import find_table, read_description
from scalebrain.io.tree import NATIVE, Findings, Tree, Visit
from scalebrain.preprocessing.masks import Mask, find_masks, is_native, match_masks

__all__ = ["Plan", "Raw", "make_plan"]


@dataclass(frozen=True)
class Raw:
    """One scan to preprocess.

    Parameters
    ----------
    name
        ``sub-<label>``, with ``_ses-<label>`` behind it where there are sessions.
    person, session
        Its two parts; the session is empty without sessions.
    t1w
        T1w image in native space.
    lesion
        Lesion mask drawn on it; None without one.
    shown
        Paths of both, relative to their datasets, for messages.
    sources
        BIDS URIs of both, for sidecars.
    """

    name: str
    person: str
    session: str
    t1w: Path
    lesion: Path | None
    shown: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be done with a dataset.

    Parameters
    ----------
    root
        The dataset.
    lesions
        Folder of the masks; None when they are in the dataset.
    people
        Everyone who was asked for and has a folder, also those who are left out.
    scans
        Scans to preprocess, by person and session.
    rejected
        What keeps others out.
    warnings
        What deserves a look.
    table
        participants.tsv or what stands for it; None when there is none.
    description
        Content of dataset_description.json.
    """

    root: Path
    lesions: Path | None
    people: frozenset[str]
    scans: tuple[Raw, ...]
    rejected: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    table: Path | None
    description: Mapping[str, object]


@dataclass
class _Draft:
    """A plan that is being made."""

    scans: list[Raw] = field(default_factory=list)
    rejected: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def make_plan(
    bids_dir: str | Path,
    *,
    lesions: str | Path | None = None,
    participants: Sequence[str] = (),
) -> Plan:
    """Find the raw scans of a dataset and the lesion masks in native space.

    Parameters
    ----------
    bids_dir
        Folder of a raw BIDS dataset.
    lesions
        Folder with the same ``sub-*`` folders that holds the masks, where they are not beside the
        scans.
    participants
        Labels to take, with or without ``sub-``; everybody when empty.

    Returns
    -------
    Plan
        Scans, and who is left out with the reason. A person of the group ``stroke`` or
        ``patient`` without a mask is left out, and so is a scan that a mask may be meant for
        which cannot be used, or whose table of sessions cannot be; anybody else goes without one.

    Raises
    ------
    TableError
        When the folder holds no ``sub-*`` folders.
    ConfigError
        When a participant is not there.
    """
    root = Path(bids_dir)
    if not root.is_dir():
        raise TableError(f"{root}: no such folder. Give the folder of a BIDS dataset.")
    tree = Tree(root)
    apart = None if lesions is None else Tree(lesions)
    try:
        found = find_tree(tree)
        description = read_description(tree)
        found_apart = Findings() if apart is None else find_tree(apart)
    except ImageError as error:
        raise TableError(str(error), code=error.code) from error
    if not found:
        raise TableError(
            f"{root}: no sub-* folders. Give a raw BIDS dataset: sub-01/anat/sub-01_T1w.nii.gz. "
            "DICOM is converted with dcm2niix or BIDScoin first."
        )
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in participants}
    if unknown := sorted(wanted - set(found.visits)):
        raise ConfigError(f"{root}: no folder of {', '.join(unknown)}. Correct the labels.")
    masks = find_masks(tree, found, "raw")
    if apart is not None:
        masks += _masks_apart(apart, found_apart)
    draft = _Draft(rejected=list(found.rejected))
    table, groups = _groups(tree, draft)
    scans = {person: _sessions(visits) for person, visits in found.visits.items()}
    used, unused = match_masks(masks, scans)
    hindered = _hindered(found, found_apart, scans, draft)
    _check_session_tables(tree, scans, hindered)
    _tell_unused(unused, used, scans, hindered, draft)
    for person, visits in sorted(found.visits.items()):
        if (wanted and person not in wanted) or person in found.refused:
            continue
        sessions = {s: v for s, v in visits.items() if s in scans[person] or _is_told(v, visits)}
        if not sessions:
            message = f"{person}: no T1w image: left out. Add anat/{person}_T1w.nii.gz."
            draft.rejected.append(Problem(person, "no-image", message))
        for session, visit in sorted(sessions.items()):
            name = scan_name(person, session)
            here = used.get((person, session), [])
            problems = hindered.get((person, session)) or _wrong(
                tree, name, visit, here, groups.get(person, "")
            )
            draft.rejected += problems
            if not problems:
                raw = _raw(tree, person, session, visit, here)
                draft.scans.append(raw)
                if raw.lesion is None and not groups.get(person):
                    draft.warnings.append(_no_group(raw, table))
    rejected, warnings = draft.rejected, draft.warnings
    if wanted:
        rejected = [p for p in rejected if p.subject.split("_ses-")[0] in wanted]
        warnings = [p for p in warnings if p.subject.split("_ses-")[0] in {*wanted, ""}]
    return Plan(
        tree.root,
        None if apart is None else apart.root,
        frozenset(wanted or found.visits.keys() | found.refused),
        tuple(draft.scans),
        tuple(rejected),
        tuple(warnings),
        table,
        description,
    )


def _sessions(visits: Mapping[str, Visit]) -> list[str]:
    """Sessions with a T1w image in native space, or of which something cannot be read."""
    return [s for s, v in visits.items() if _t1w(v) or (v.problems and (s or len(visits) == 1))]


def _is_told(visit: Visit, visits: Mapping[str, Visit]) -> bool:
    """Whether a visit without a T1w image is said to have none: it holds more than a mask."""
    return any(kind != "lesion" for kind, _ in visit.images) or not any(map(_t1w, visits.values()))


def _t1w(visit: Visit) -> list[Path]:
    """T1w images in native space."""
    files = visit.images.get(("t1w", NATIVE), [])
    return [file.path for file in files if is_native(file.name)]


def _raw(tree: Tree, person: str, session: str, visit: Visit, masks: Sequence[Mask]) -> Raw:
    """Scan with its mask."""
    (t1w,) = _t1w(visit)
    shown, sources = [tree.shown(t1w)], [f"bids:raw:{tree.shown(t1w)}"]
    for mask in masks:
        shown.append(mask.shown)
        sources.append(mask.uri)
    lesion = masks[0].path if masks else None
    name = scan_name(person, session)
    return Raw(name, person, session, t1w, lesion, tuple(shown), tuple(sources))


def _no_group(raw: Raw, table: Path | None) -> Problem:
    """Say that somebody is taken as a healthy reference for want of anything else."""
    where = "there is no participants.tsv" if table is None else f"no group in {table.name}"
    message = (
        f"{raw.name}: no lesion mask, and {where}: taken as a healthy reference. Where there is a "
        f"lesion, add {raw.name}_label-L_mask.nii.gz; else write the group (reference, stroke)."
    )
    return Problem(raw.name, "taken-as-reference", message, raw.shown[0])


def _masks_apart(tree: Tree, found: Findings) -> list[Mask]:
    """Masks of a folder of their own."""
    masks = find_masks(tree, found, "lesions")
    refused = found.rejected or any(v.problems for vs in found.visits.values() for v in vs.values())
    if not refused and not any(mask.known and is_native(mask.path.name) for mask in masks):
        named = f" Found {masks[0].shown}." if masks else ""
        raise TableError(
            f"{tree.root}: no lesion mask of native space. Expected sub-*/anat/sub-*_label-L_mask "
            f"or _label-lesion_roi, without space-MNI.{named}"
        )
    return masks


def _hindered(
    found: Findings, apart: Findings, scans: Mapping[str, Sequence[str]], draft: _Draft
) -> dict[tuple[str, str], list[Problem]]:
    """Find scans whose mask may be one that cannot be read, or lies where nothing can be."""
    hindered: dict[tuple[str, str], list[Problem]] = {}

    def hinder(person: str, session: str, problem: Problem) -> None:
        for one in [session] if session in scans[person] else scans[person]:
            named = replace(problem, subject=scan_name(person, one))
            hindered.setdefault((person, one), []).append(named)

    for findings in (found, apart):
        for person, session, problem in _troubles(findings):
            if scans.get(person):
                hinder(person, session, problem)
            elif findings is apart:
                draft.rejected.append(replace(problem, subject=scan_name(person, session)))
    for problem in apart.rejected:
        if scans.get(problem.subject):
            hinder(problem.subject, "", problem)
        else:
            draft.rejected.append(problem)
    return hindered


def _check_session_tables(
    tree: Tree,
    scans: Mapping[str, Sequence[str]],
    hindered: dict[tuple[str, str], list[Problem]],
) -> None:
    """Leave out whose values of single visits lead out of the dataset or to nothing."""
    for person, sessions in scans.items():
        table = tree.root / person / f"{person}_sessions.tsv"
        if not os.path.lexists(table):
            continue
        for path in (table, table.with_suffix(".json"), tree.root / "sessions.json"):
            try:
                if os.path.lexists(path):
                    tree.check_file(path)
            except ImageError as error:
                for one in sessions:
                    problem = Problem(
                        scan_name(person, one), error.code, str(error), tree.shown(path)
                    )
                    hindered.setdefault((person, one), []).append(problem)


def _troubles(found: Findings) -> Iterator[tuple[str, str, Problem]]:
    """Everything that is wrong with the visits."""
    for person, visits in found.visits.items():
        for session, visit in visits.items():
            for problem in visit.problems:
                yield person, session, problem


def _tell_unused(
    unused: Sequence[tuple[Mask, str]],
    used: Mapping[tuple[str, str], Sequence[Mask]],
    scans: Mapping[str, Sequence[str]],
    hindered: dict[tuple[str, str], list[Problem]],
    draft: _Draft,
) -> None:
    """Leave out the scans that masks may be meant for which cannot be used."""
    for mask, reason in unused:
        sessions = scans.get(mask.person, ())
        meant = [mask.session] if mask.session in sessions else sessions
        bare = [s for s in meant if not used.get((mask.person, s))]
        message = f"{mask.shown}: {reason}; or take it out."
        for session in bare:
            problem = Problem(scan_name(mask.person, session), "mask-unused", message, mask.shown)
            hindered.setdefault((mask.person, session), []).append(problem)
        if bare or mask.is_template:
            continue
        whose = mask.person or mask.shown
        problem = Problem(whose, "mask-unused", message, mask.shown)
        (draft.warnings if sessions else draft.rejected).append(problem)


def _groups(tree: Tree, draft: _Draft) -> tuple[Path | None, dict[str, str]]:
    """Find the table, and the group of each person; nothing where it cannot be read."""
    table = None
    try:
        table = find_table(tree, id_column="bids_id")
        return table, {} if table is None else read_groups(table)
    except (TableError, ImageError) as error:
        message = f"{_relative(tree, error)} Until then nobody's group is known."
        file = "" if table is None else table.name
        draft.warnings.append(Problem("", "taken-as-reference", message, file))
        return table, {}


def _relative(tree: Tree, error: Exception) -> str:
    """Message with paths as the dataset has them."""
    return str(error).replace(f"{tree.root}/", "")


def _wrong(tree: Tree, name: str, visit: Visit, masks: Sequence[Mask], group: str) -> list[Problem]:
    """Say what keeps a scan from being preprocessed."""
    if visit.problems:
        return [replace(problem, subject=name) for problem in visit.problems]
    t1w = _t1w(visit)
    if not t1w:
        message = f"{name}: no T1w image in native space: left out. Add anat/{name}_T1w.nii.gz."
        return [Problem(name, "no-image", message)]
    for what, files in (
        ("T1w images", [tree.shown(path) for path in t1w]),
        ("lesion masks", [mask.shown for mask in masks]),
    ):
        if len(files) > 1:
            listed = ", ".join(sorted(files))
            message = f"{name}: {len(files)} {what} in native space: {listed}. Keep one of them."
            return [Problem(name, "several-images", message)]
    if not masks and group == "stroke":
        file = tree.shown(t1w[0])
        message = (
            f"{file}: the group is stroke, but there is no lesion mask, and one is needed: the "
            "lesion would pull the registration towards itself. Draw it on this T1w image "
            f"({name}_label-L_mask.nii.gz), or correct the group. Healthy references need none."
        )
        return [Problem(name, "mask-needed", message, file)]
    return []
