"""Which scans of a raw BIDS dataset are preprocessed, and with which lesion mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scalebrain.errors import ConfigError, ImageError, Problem, TableError
from scalebrain.io.bids_tree import find_tree
from scalebrain.io.files import SourceFile
from scalebrain.io.participants import read_participants
from scalebrain.io.tables import read_description
from scalebrain.io.tree import NATIVE, Tree, Visit

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
        Paths of both, relative to the dataset, for sidecars.
    """

    name: str
    person: str
    session: str
    t1w: Path
    lesion: Path | None
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be done with a dataset.

    Parameters
    ----------
    root
        The dataset.
    scans
        Scans to preprocess, by person and session.
    rejected
        What keeps others out.
    table
        participants.tsv or .csv; None when there is none.
    description
        Content of dataset_description.json.
    """

    root: Path
    scans: tuple[Raw, ...]
    rejected: tuple[Problem, ...]
    table: Path | None
    description: Mapping[str, object]


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
        ``patient`` without a mask is left out; anybody else goes without one.

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
    try:
        found = find_tree(tree)
        description = read_description(tree)
    except ImageError as error:
        raise TableError(str(error), code=error.code) from error
    if not found:
        raise TableError(
            f"{root}: no sub-* folders. Give a raw BIDS dataset: sub-01/anat/sub-01_T1w.nii.gz. "
            "DICOM is converted with dcm2niix or BIDScoin first."
        )
    masks = _masks(lesions)
    rejected = list(found.rejected)
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in participants}
    if unknown := sorted(wanted - set(found.visits)):
        raise ConfigError(f"{root}: no folder of {', '.join(unknown)}. Correct the labels.")
    path = next(
        (p for p in (root / "participants.tsv", root / "participants.csv") if p.exists()), None
    )
    groups = _groups(path, root.name)
    scans: list[Raw] = []
    for person, visits in sorted(found.visits.items()):
        if (wanted and person not in wanted) or person in found.refused:
            continue
        if not visits:
            message = f"{person}: no T1w image: left out. Add anat/{person}_T1w.nii.gz."
            rejected.append(Problem(person, "no-image", message))
        for session, visit in sorted(visits.items()):
            name = f"{person}_{session}" if session else person
            here = [*visit.images.get(("lesion", NATIVE), []), *masks.get((person, session), [])]
            problems = _wrong(tree, name, visit, here, groups.get(person, ""))
            rejected += problems
            if not problems:
                t1w = visit.images["t1w", NATIVE][0].path
                lesion = here[0].path if here else None
                shown = tuple(tree.shown(file) for file in (t1w, lesion) if file)
                scans.append(Raw(name, person, session, t1w, lesion, shown))
    if wanted:
        rejected = [p for p in rejected if p.subject.split("_ses-")[0] in wanted]
    return Plan(tree.root, tuple(scans), tuple(rejected), path, description)


def _masks(lesions: str | Path | None) -> dict[tuple[str, str], list[SourceFile]]:
    """Masks of a folder of their own, by person and session."""
    if lesions is None:
        return {}
    tree = Tree(lesions)
    try:
        found = find_tree(tree)
    except ImageError as error:
        raise TableError(str(error), code=error.code) from error
    out = {
        (person, session): visit.images["lesion", NATIVE]
        for person, visits in found.visits.items()
        for session, visit in visits.items()
        if ("lesion", NATIVE) in visit.images
    }
    if not out:
        raise TableError(
            f"{lesions}: no lesion mask of native space. Expected sub-*/anat/sub-*_label-L_mask or "
            "_label-lesion_roi, without space-MNI."
        )
    return out


def _groups(path: Path | None, name: str) -> dict[str, str]:
    """Group of each person; nothing without a table."""
    if path is None:
        return {}
    table = read_participants(path, default_cohort=name).table
    return dict(zip(table["subject"].astype(str), table["group"].astype(str), strict=True))


def _wrong(
    tree: Tree, name: str, visit: Visit, masks: list[SourceFile], group: str
) -> list[Problem]:
    """Say what keeps a scan from being preprocessed."""
    if visit.problems:
        return [replace(problem, subject=name) for problem in visit.problems]
    t1w = visit.images.get(("t1w", NATIVE), [])
    if not t1w:
        message = f"{name}: no T1w image in native space: left out. Add anat/{name}_T1w.nii.gz."
        return [Problem(name, "no-image", message)]
    for what, files in (("T1w images", t1w), ("lesion masks", masks)):
        if len(files) > 1:
            listed = ", ".join(sorted(tree.shown(file.path) for file in files))
            message = f"{name}: {len(files)} {what} in native space: {listed}. Keep one of them."
            return [Problem(name, "several-images", message)]
    if not masks and group == "stroke":
        file = tree.shown(t1w[0].path)
        message = (
            f"{file}: the group is stroke, but there is no lesion mask, and one is needed: the "
            "lesion would pull the registration towards itself. Draw it on this T1w image "
            f"({name}_label-L_mask.nii.gz), or correct the group. Healthy references need none."
        )
        return [Problem(name, "mask-needed", message, file)]
    return []
