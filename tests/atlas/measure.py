"""The figures of docs/atlases.md. Print them with ``python -m tests.atlas.measure``."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.parcels import _AAL_ORIGIN_MM
from scalebrain.atlas.providers import aal, aal3
from scalebrain.atlas.registry import load_atlas
from scalebrain.atlas.space import Grid, resample, template, template_grid

#: What the header of the AAL file says (mm); scalebrain puts it elsewhere.
HEADER = (-90, -125, -71)
CHOSEN = tuple(int(a - b) for a, b in zip(_AAL_ORIGIN_MM, HEADER, strict=True))
SHIFTS = range(-3, 4)
# Nuclei, hippocampus and amygdala of AAL-90.
_DEEP = {37, 38, 41, 42, *range(71, 79)}
PACKAGED = ("aal", "aal3", "desikan-killiany", "harvard-oxford", "juelich-cst")

Shift = tuple[int, int, int]


def shared_cortex() -> dict[int, int]:
    """Codes of AAL and of AAL3 for the cortical parcels that have the same name in both."""
    one, other = aal(), aal3()
    codes = dict(zip(other.regions, other.codes, strict=True))
    return {
        code: codes[name]
        for name, code in zip(one.regions, one.codes, strict=True)
        if name in codes and code <= 90 and code not in _DEEP
    }


@functools.cache
def dice() -> dict[Shift, tuple[float, float]]:
    """Dice with AAL3 of the precentral gyri, and of all shared cortex, for AAL moved about.

    A shift is in mm from the header of AAL; AAL3 stays where its header says.
    """
    one, other = aal(), aal3()
    shared = shared_cortex()
    of_one, of_other = np.zeros(256, np.intp), np.zeros(256, np.intp)
    for position, (a, b) in enumerate(shared.items(), start=1):
        of_one[a], of_other[b] = position, position
    mine = of_one[one.labels]
    margin = 8
    theirs = np.pad(of_other[other.labels], margin)
    value = mine[mine > 0]
    start = np.ravel_multi_index(tuple(np.argwhere(mine).T + margin), theirs.shape)
    size = [np.bincount(v.ravel(), minlength=len(shared) + 1) for v in (mine, theirs)]
    base = np.array(HEADER) - np.rint(other.grid.matrix[:3, 3]).astype(int)
    step = np.array([theirs.shape[1] * theirs.shape[2], theirs.shape[2], 1])
    found = {}
    for shift in itertools.product(SHIFTS, repeat=3):
        there = theirs.ravel()[start + (base + shift) @ step]
        same = np.bincount(value[there == value], minlength=len(shared) + 1)
        parts = [[list(shared).index(c) + 1 for c in (1, 2)], list(range(1, len(shared) + 1))]
        found[shift] = tuple(
            float(2 * same[p].sum() / (size[0][p].sum() + size[1][p].sum())) for p in parts
        )
    return found


def midline(atlas: Atlas, x: float = 0) -> float:
    """Median x (mm) of the plane between left and right labels that nearly touch."""
    side = dict(zip(atlas.codes, (region[-2:] for region in atlas.regions), strict=True))
    sides = [
        np.isin(atlas.labels, [code for code in atlas.codes if side[code] == ending])
        for ending in ("_L", "_R")
    ]
    index = np.arange(atlas.grid.shape[0])[:, None, None]
    last = np.where(sides[0], index, -1).max(axis=0)
    first = np.where(sides[1], index, 999).min(axis=0)
    close = (last >= 0) & (first < 999) & (first - last <= 8)
    return float(np.median((first + last)[close]) / 2 + atlas.grid.matrix[0, 3] + x)


def grey_matter(shifts: list[Shift]) -> dict[Shift, float]:
    """Mean grey-matter probability of the template in the cortex of AAL, moved about."""
    one = aal()
    cortex = np.isin(one.labels, [c for c in range(1, 91) if c not in _DEEP])
    grid = template_grid(1.0)
    grey = template("gm", grid)
    found = {}
    for shift in shifts:
        matrix = np.eye(4)
        matrix[:3, 3] = np.add(HEADER, shift)
        moved = resample(cortex, Grid.from_matrix(cortex.shape, matrix), grid, order=0)
        found[shift] = float(grey[moved].mean())
    return found


def offset_table() -> Iterator[str]:
    """Where AAL may lie, as lines of Markdown."""
    overlap = dice()
    rows = [(0, 0, 0), *((x, *CHOSEN[1:]) for x in SHIFTS)]
    grey = grey_matter(rows)
    header = midline(aal()) - CHOSEN[0]
    yield "| shift x, y, z (mm) | Dice, precentral | Dice, cortex | midline (mm) | grey matter |"
    yield "|---|---|---|---|---|"
    for shift in rows:
        mark = " (used)" if shift == CHOSEN else " (header)" if shift == (0, 0, 0) else ""
        one, both = overlap[shift]
        yield (
            f"| {', '.join(map(str, shift))}{mark} | {one:.3f} | {both:.3f} "
            f"| {header + shift[0]:+.1f} | {grey[shift]:.3f} |"
        )


def side_table() -> Iterator[str]:
    """How far the regions of real atlases keep to their side, as lines of Markdown."""
    yield "| atlas | regions | least on its own side | most beyond 5 mm across | centers |"
    yield "|---|---|---|---|---|"
    for name in PACKAGED:
        atlas = load_atlas(name)
        own, far, center = keeps_to_side(atlas)
        yield f"| `{name}` | {len(atlas.regions)} | {own:.0%} | {far:.1%} | {center:.1f} mm |"


def keeps_to_side(atlas: Atlas) -> tuple[float, float, float]:
    """Smallest share on the own side, largest far across, smallest distance of a center."""
    sided = [(i, "LR".index(r[-1])) for i, r in enumerate(atlas.regions) if r[-2:] in ("_L", "_R")]
    mass, centers = atlas._mass_by_side(), atlas.centroids()[:, 0]
    shares = [(mass[i, s], mass[i, 3 - s], mass[i, 0] + mass[i, 1]) for i, s in sided]
    return (
        min(own / all_ for own, _, all_ in shares),
        max(far / all_ for _, far, all_ in shares),
        min(abs(centers[i]) for i, _ in sided),
    )


def main() -> None:
    print("\n".join(offset_table()), end="\n\n")
    print("\n".join(side_table()))


if __name__ == "__main__":
    main()
