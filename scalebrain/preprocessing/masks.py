"""Which lesion mask belongs to which scan: every mask that was given is used, or told of."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scalebrain.errors import ImageError
from scalebrain.io.tree import PERSON, SESSION, TEMPLATE, Findings, Tree

__all__ = ["Mask", "find_masks", "is_native", "match_masks"]

#: Spaces of the scan itself, as names of files have them.
_OWN = frozenset({"", "t1w", "orig", "individual", "scanner"})
_IMAGE = (".nii", ".nii.gz")
_LESION = re.compile(r"lesion|stroke|infarct|_label-L_", re.IGNORECASE)
_OTHER = re.compile(
    r"_(T1w|T2w|T2starw?|FLAIR|PDw|PDT2|UNIT1|MP2RAGE|MEGRE|MESE|VFA|[TR][12](star)?map|M0map|PDmap"
    r"|inplaneT[12]|angio|swi|dwi|dwiref|adc|FA|trace|sbref|bold|boldref|epi|phasediff|phase[12]?"
    r"|magnitude[12]?|fieldmap|asl|m0scan|cbf|pet|ct|defacemask|xfm|warp)\.nii",
    re.IGNORECASE,
)
_WHOSE = re.compile(r"(?<![^_])(sub|ses)-[^_.]*")
_SPACE = re.compile(r"_space-([A-Za-z0-9]+)")


@dataclass(frozen=True)
class Mask:
    """A file that is meant as a lesion mask.

    Parameters
    ----------
    person, session
        Whose it is, by its name and folder; empty where they say nothing.
    path
        The file.
    shown
        Its path in its dataset.
    dataset
        Name of the dataset in BIDS URIs: ``raw`` or ``lesions``.
    known
        Whether its name is one that is read.
    """

    person: str
    session: str
    path: Path
    shown: str
    dataset: str
    known: bool = True

    @property
    def uri(self) -> str:
        """BIDS URI."""
        return f"bids:{self.dataset}:{self.shown}"

    @property
    def is_template(self) -> bool:
        """Whether it is in a template space: made of one in native space, as a rule."""
        return TEMPLATE.fullmatch(_space(self.path.name)) is not None


def _space(name: str) -> str:
    """Space that the name of a file tells; empty when it tells none."""
    match = _SPACE.search(name)
    return match[1] if match else ""


def is_native(name: str) -> bool:
    """Whether an image is in the space of the scan, by the name of its file."""
    return _space(name).lower() in _OWN


def find_masks(tree: Tree, found: Findings, dataset: str) -> list[Mask]:
    """Find every file that is meant as a lesion mask.

    Parameters
    ----------
    tree
        Root of a dataset, or of a folder of masks.
    found
        What lies in it by the rules of BIDS.
    dataset
        Its name in BIDS URIs: of ``lesions``, all folders are looked into for names that are not
        those of masks; of ``raw``, those of people and sessions, and ``anat``, ``dwi`` and others
        in them.

    Returns
    -------
    list of Mask
        Masks of every space, and files that are named otherwise.
    """
    masks = [
        Mask(person, session, file.path, tree.shown(file.path), dataset)
        for person, visits in found.visits.items()
        for session, visit in visits.items()
        for (kind, _), files in visit.images.items()
        if kind == "lesion"
        for file in files
    ]
    every = [visit for visits in found.visits.values() for visit in visits.values()]
    seen = {tree.shown(file.path) for v in every for files in v.images.values() for file in files}
    seen |= {problem.file for visit in every for problem in visit.problems}
    seen |= {problem.file for problem in found.rejected}
    for path in _images(tree, dataset):
        shown = tree.shown(path)
        at_root = dataset == "lesions" and path.parent == tree.root
        if (at_root or _is_meant(path.name)) and shown not in seen:
            person, session = PERSON.search(shown), SESSION.search(shown)
            whose = (person[0] if person else "", session[0] if session else "")
            masks.append(Mask(*whose, path, shown, dataset, known=False))
    return masks


def _is_meant(name: str) -> bool:
    """Whether a file is meant as a lesion mask, by its name without that of the person."""
    return bool(_LESION.search(_WHOSE.sub("", name))) and not _OTHER.search(name)


def _images(tree: Tree, dataset: str) -> Iterator[Path]:
    """Images of a dataset that may be masks, whatever they are called."""
    if dataset == "lesions":
        for folder, inner, names in os.walk(tree.root):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            yield from _named(Path(folder), names)
        return
    for pattern in ("sub-*", "sub-*/*", "sub-*/ses-*/*"):
        for place in sorted(tree.root.glob(pattern)):
            with contextlib.suppress(ImageError):  # one that matters is refused elsewhere
                if place.is_dir():
                    tree.check(place)
                    yield from _named(place, [entry.name for entry in tree.entries(place)])


def _named(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Images among names."""
    for name in sorted(names):
        if name.endswith(_IMAGE) and not name.startswith("."):
            yield folder / name


def match_masks(
    masks: Iterable[Mask], scans: Mapping[str, Iterable[str]]
) -> tuple[dict[tuple[str, str], list[Mask]], list[tuple[Mask, str]]]:
    """Give each mask to its scan.

    Parameters
    ----------
    masks
        Masks.
    scans
        Sessions with a T1w image, by person; an empty one where there are no sessions.

    Returns
    -------
    used : dict
        Masks by person and session. One that names no session is that of the person's only one.
    unused : list of tuple
        Every other mask, and what is wrong with it.
    """
    used: dict[tuple[str, str], list[Mask]] = {}
    unused: list[tuple[Mask, str]] = []
    real: set[str] = set()
    for mask in masks:
        if (where := os.path.realpath(mask.path)) in real:  # --lesions that lead to BIDS_DIR
            continue
        real.add(where)
        sessions = sorted(scans.get(mask.person, ()))
        if not mask.known:
            parts = [part for part in (mask.person or "sub-01", mask.session) if part]
            reason = (
                "not the name or folder of a lesion mask. Where it is one, of the T1w, call it "
                f"{'/'.join(parts)}/anat/{'_'.join(parts)}_label-L_mask.nii.gz"
            )
        elif not is_native(mask.path.name):
            reason = (
                f"in the space {_space(mask.path.name)}, not drawn on the T1w image. Warp it to "
                "the T1w image, and give that without a space in its name"
            )
        elif mask.session in sessions:
            used.setdefault((mask.person, mask.session), []).append(mask)
            continue
        elif not mask.session and len(sessions) == 1:
            used.setdefault((mask.person, sessions[0]), []).append(mask)
            continue
        elif not mask.session and sessions:
            reason = (
                f"names no session, and there are T1w images of {', '.join(sessions)}. Write the "
                f"session into its name: {mask.person}_{sessions[0]}_label-L_mask.nii.gz"
            )
        elif sessions:
            there = ", ".join(sessions) if any(sessions) else "no session"
            reason = (
                f"of {mask.session}, but the T1w image is of {there}. Rename the one that is "
                "called wrongly"
            )
        else:
            reason = f"there is no T1w image of {mask.person}. Add it, or correct the label"
        unused.append((mask, reason))
    return used, unused
