"""Choose, for every scan of a cohort, the images of one template space."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scalebrain.errors import Problem
from scalebrain.io.files import SourceFile
from scalebrain.io.tree import NATIVE, Tree, Visit

__all__ = ["Images", "choose_images"]

_PREFERRED = "MNI152NLin2009aSym"
_KINDS = {"t1w": "T1w", "gm": "grey-matter", "lesion": "lesion"}


@dataclass(frozen=True)
class Images:
    """Images of one scan, all of one space.

    Parameters
    ----------
    t1w, gm, lesion
        The files; None where there is none.
    surfaces
        FreeSurfer folder or archive.
    space
        Template space; empty without images.
    """

    t1w: SourceFile | None = None
    gm: SourceFile | None = None
    lesion: SourceFile | None = None
    surfaces: SourceFile | None = None
    space: str = ""


def choose_images(
    tree: Tree, visits: Mapping[str, Visit]
) -> tuple[dict[str, Images], list[Problem]]:
    """Choose one file of a kind for every scan, of the space that the dataset shares.

    Parameters
    ----------
    tree
        The dataset.
    visits
        What was found, by subject.

    Returns
    -------
    images : dict
        Images by subject, without those that are rejected.
    rejected : list of Problem
        Subjects whose images are ambiguous, not in a template space, or in another one than
        most of the dataset.
    """
    rejected: list[Problem] = []
    spaces: dict[str, list[str]] = {}
    for subject, visit in visits.items():
        problems = [replace(problem, subject=subject) for problem in visit.problems]
        problems = problems or _outside_templates(tree, subject, visit)
        if problems:
            rejected += problems
        else:
            spaces[subject] = _complete_spaces(visit)
    chosen, most = _choose_spaces(spaces)
    images: dict[str, Images] = {}
    for subject, space in chosen.items():
        visit = visits[subject]
        problems = _mixed(tree, subject, visit, space, most) if space != most and space else []
        problems = problems or _several(tree, subject, visit, space)
        if problems:
            rejected += problems
        else:
            files = {kind: _files(visit, kind, space) for kind in _KINDS}
            one = {kind: found[0] if found else None for kind, found in files.items()}
            surfaces = visit.surfaces[0] if visit.surfaces else None
            images[subject] = Images(one["t1w"], one["gm"], one["lesion"], surfaces, space)
    return images, rejected


def _template_kinds(visit: Visit) -> dict[str, set[str]]:
    """Kinds of images in each template space."""
    kinds: dict[str, set[str]] = {}
    for kind, space in visit.images:
        if space != NATIVE:
            kinds.setdefault(space, set()).add(kind)
    return kinds


def _complete_spaces(visit: Visit) -> list[str]:
    """Template spaces with every kind of image that the visit has in any of them."""
    kinds = _template_kinds(visit)
    every = set().union(*kinds.values())
    return sorted(space for space, here in kinds.items() if here == every)


def _outside_templates(tree: Tree, subject: str, visit: Visit) -> list[Problem]:
    """Say that an image has no counterpart in a template space, or in none with the others."""
    kinds = _template_kinds(visit)
    every = set().union(*kinds.values())
    native = {kind for kind, space in visit.images if space == NATIVE} - every
    without = not visit.surfaces and ("gm" not in every if "t1w" in native else not every)
    if "lesion" in native or (native and without):
        kind = next(kind for kind in ("lesion", "t1w", "gm") if kind in native)
        file = tree.shown(visit.images[kind, NATIVE][0].path)
        message = (
            f"{file}: not in a template space: no space MNI... is named for it. Normalize it to "
            f"{_PREFERRED}, or give the folder of the normalized images (fMRIPrep: its output, "
            "made with --output-spaces MNI152NLin2009cAsym)."
        )
        return [Problem(subject, "not-in-template-space", message, file)]
    if kinds and not _complete_spaces(visit):
        listed = "; ".join(
            f"{_KINDS[kind]} in {space}" for space in sorted(kinds) for kind in sorted(kinds[space])
        )
        message = f"{subject}: its images share no template space: {listed}. Normalize all to one."
        return [Problem(subject, "mixed-templates", message)]
    return []


def _choose_spaces(spaces: Mapping[str, list[str]]) -> tuple[dict[str, str], str]:
    """Space of each subject, empty without one; and the space that most of them are in."""
    counts = Counter(space for available in spaces.values() for space in available)

    def rank(space: str) -> tuple[bool, int, str]:
        return space != _PREFERRED, -counts[space], space

    chosen = {subject: min(found, key=rank, default="") for subject, found in spaces.items()}
    votes = Counter(space for space in chosen.values() if space)
    most = min(votes, key=lambda space: (-votes[space], space), default="")
    return {s: most if most in spaces[s] else space for s, space in chosen.items()}, most


def _mixed(tree: Tree, subject: str, visit: Visit, space: str, most: str) -> list[Problem]:
    """Say that a subject is in another template space than most of the dataset."""
    files = [
        tree.shown(f.path) for (_, here), fs in visit.images.items() if here == space for f in fs
    ]
    file = min(files)
    message = (
        f"{file}: in {space}, but most of the dataset is in {most}. Normalize it to {most}, or "
        "ingest the two as datasets of their own."
    )
    return [Problem(subject, "mixed-templates", message, file)]


def _several(tree: Tree, subject: str, visit: Visit, space: str) -> list[Problem]:
    """List what is there more than once."""
    kinds = [(f"{_KINDS[kind]} images in {space}", _files(visit, kind, space)) for kind in _KINDS]
    problems = []
    for what, files in [*kinds, ("FreeSurfer results", visit.surfaces)]:
        if len(files) > 1:
            names = ", ".join(sorted(tree.shown(file.path) for file in files))
            message = f"{subject}: {len(files)} {what}: {names}. Keep one of them."
            problems.append(Problem(subject, "several-images", message))
    return problems


def _files(visit: Visit, kind: str, space: str) -> list[SourceFile]:
    """Files of a kind; of two T1w images of fMRIPrep the one with the skull still on."""
    files = visit.images.get((kind, space), [])
    if kind == "t1w" and any("_desc-preproc_" in file.name for file in files):
        return [file for file in files if "_desc-brain_" not in file.name]
    return files
