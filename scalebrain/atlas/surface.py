"""Nodes on the cortical surface: vertices of fsaverage5, all of them or a coarser icosphere.

fsaverage5 is an icosahedron that was divided five times. Its first 2,562 vertices a hemisphere
are those of level 4, its first 642 those of level 3; a vertex that a division added lies between
two older ones.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.regions import default_regions
from scalebrain.atlas.space import template_grid
from scalebrain.errors import ConfigError
from scalebrain.io.fsaverage import N_SIDE, Hemisphere, read_map, read_mesh

__all__ = [
    "LEVELS",
    "REACH_MM",
    "SurfaceNodes",
    "cortex_points",
    "finest_edges",
    "interpolation",
    "is_cortex",
    "nearest_labels",
    "surface_nodes",
    "vertex_parcels",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Vertices of a hemisphere at every level.
LEVELS: dict[int, int] = {3: 642, 4: 2562, 5: 10242}

_SIDES: tuple[Hemisphere, ...] = ("left", "right")
#: A vertex has the label that lies within this distance.
REACH_MM = 4.0
#: The template is thinner than this on its medial wall alone.
_LEAST_THICKNESS_MM = 1.0
# fsaverage lies in MNI305. FreeSurfer's transform from there to MNI152, as its wiki
# (CoordinateSystems) gives it.
_MNI305_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
    ]
)


@dataclass(frozen=True, eq=False)
class SurfaceNodes:
    """Nodes on the surface.

    Parameters
    ----------
    parcel
        (node,) int32 parcel code.
    centroid
        (node, 3) mm in MNI152, at mid-thickness.
    edges
        (edge, 2) int32 positions of adjacent nodes, each pair once.
    pooling
        (node, vertex) sparse weights of the vertices of fsaverage5, left then right; they sum
        to 1. At level 5 a node is a vertex.
    mirror
        (vertex,) the vertex of the other hemisphere nearest to the mirrored place.
    fingerprint
        SHA-256 over level, parcels, edges and pooling.
    """

    parcel: npt.NDArray[np.int32]
    centroid: Floats
    edges: npt.NDArray[np.int32]
    pooling: sparse.csr_array
    mirror: Ints
    fingerprint: str


def cortex_points(hemisphere: Hemisphere, depth: float = 0.5) -> Floats:
    """Points of the cortex of the template.

    Parameters
    ----------
    hemisphere
        Side.
    depth
        0 on the white surface, 1 on the pial one.

    Returns
    -------
    ndarray
        (vertex, 3) mm in MNI152.
    """
    white, _ = read_mesh("white", hemisphere)
    pial, _ = read_mesh("pial", hemisphere)
    mm = (1 - depth) * white + depth * pial
    return np.asarray(mm @ _MNI305_TO_MNI152[:, :3].T + _MNI305_TO_MNI152[:, 3])


def nearest_labels(
    mm: Floats, labels: Ints, hemisphere: Hemisphere, *, reach: float = REACH_MM
) -> Ints:
    """Label of every vertex: the nearest one of the same side.

    Parameters
    ----------
    mm
        (voxel, 3) where the labels lie.
    labels
        (voxel,) labels; 0 is none.
    hemisphere
        Side of the mesh.
    reach
        Farthest distance from mid-thickness, mm.

    Returns
    -------
    ndarray of int
        (vertex,); 0 where there is none in reach.
    """
    from scipy.spatial import cKDTree

    # The atlas crosses the midline here and there: a parcel's side is that of most of it.
    codes, position = np.unique(labels, return_inverse=True)
    center = np.bincount(position, weights=mm[:, 0]) / np.bincount(position)
    on_side = (center < 0) if hemisphere == "left" else (center > 0)
    own = (on_side & (codes > 0))[position]
    out = np.zeros(N_SIDE, dtype=np.int64)
    if own.any():
        points = cortex_points(hemisphere)
        distance, nearest = cKDTree(mm[own]).query(points, distance_upper_bound=reach)
        found = np.isfinite(distance)
        out[found] = labels[own][nearest[found]]
    return out


@functools.lru_cache(maxsize=3)
def surface_nodes(level: int) -> SurfaceNodes:
    """Nodes of the surface path for the default regions.

    Parameters
    ----------
    level
        3, 4 or 5.

    Returns
    -------
    SurfaceNodes
        Vertices of the level whose parcel belongs to a region, left then right.

    Raises
    ------
    ConfigError
        When there is no such level.

    Notes
    -----
    The parcel of a vertex is the nearest one of its side within 4 mm of mid-thickness; vertices
    of the medial wall, where the template's cortex is thinner than 1 mm, are left out. A node of
    level 4 or 3 is the mean over its vertex and those of the same parcel that later divisions put
    between it and its neighbors, which count half for each of the two at every division: vertices
    of another parcel would let a region read the aging of its neighbors.
    """
    if level not in LEVELS:
        raise ConfigError(f"Surface level {level}: expected 3, 4 or 5.")
    parcel, cortex = vertex_parcels(), is_cortex()
    used = {code for codes in default_regions().parcels.values() for code in codes}
    n = LEVELS[level]
    own = np.concatenate([np.arange(n), N_SIDE + np.arange(n)])
    kept = own[cortex[own] & np.isin(parcel[own], sorted(used))]
    position = np.full(2 * N_SIDE, -1)
    position[kept] = np.arange(kept.size)
    one_side = _edges(level)
    edges = position[np.concatenate([one_side, one_side + N_SIDE])]
    edges = np.sort(edges[(edges >= 0).all(axis=1)], axis=1)
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))].astype(np.int32)
    weights = sparse.block_diag([_pooling(level)] * 2, format="csr")[_rows_of(kept, n)]
    weights.sort_indices()
    of = np.repeat(parcel[kept], np.diff(weights.indptr))
    weights.data *= cortex[weights.indices] & (parcel[weights.indices] == of)
    weights.eliminate_zeros()
    weights = sparse.csr_array(sparse.diags_array(1 / weights.sum(axis=1)) @ weights)
    points = [cortex_points(side) for side in _SIDES]
    digest = hashlib.sha256(f"fsaverage5 level {level}".encode())
    codes = parcel[kept].astype(np.int32)
    for array in (codes, edges, weights.indptr, weights.indices, weights.data.round(6)):
        digest.update(np.ascontiguousarray(array).tobytes())
    centroid = np.concatenate(points)[kept]
    return SurfaceNodes(codes, centroid, edges, weights, _mirror(points), digest.hexdigest())


def _rows_of(kept: Ints, n: int) -> Ints:
    """Positions, among the vertices of a level on both sides, of vertices of fsaverage5."""
    return np.where(kept < N_SIDE, kept, kept - N_SIDE + n)


def is_cortex() -> npt.NDArray[np.bool_]:
    """Which vertices (vertex,), left then right, lie outside the medial wall."""
    thickness = np.concatenate([read_map("thickness", side) for side in _SIDES])
    return np.asarray(thickness >= _LEAST_THICKNESS_MM)


def vertex_parcels(reach: float = REACH_MM) -> Ints:
    """Parcel of every vertex (vertex,), left then right; 0 where none lies within `reach` mm."""
    grid = template_grid()
    image = parcel_image(grid)
    index = np.flatnonzero(image)
    mm, labels = grid.coordinates(index), image.ravel()[index].astype(np.int64)
    return np.concatenate([nearest_labels(mm, labels, side, reach=reach) for side in _SIDES])


def interpolation(level: int) -> sparse.csr_array:
    """Weights (vertex of fsaverage5, vertex of the level) on one side; they sum to 1.

    Parameters
    ----------
    level
        3, 4 or 5.

    Returns
    -------
    csr_array
        A vertex of fsaverage5 lies halfway between the two that its division lay between.
    """
    return sparse.csr_array(_pooling(level).T)


def finest_edges() -> Ints:
    """Edges of fsaverage5, each once; its meshes have the same triangles on both sides."""
    _, triangles = read_mesh("white", "left")
    pairs = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _edges(level: int) -> Ints:
    """Edges of a level on one side: between two vertices that a newer one lies between."""
    edges = finest_edges()
    for finer in range(5, level, -1):
        edges = np.unique(np.sort(_parents(edges, LEVELS[finer - 1]), axis=1), axis=0)
    return edges


def _parents(edges: Ints, n: int) -> Ints:
    """Find the two of the first `n` vertices next to every later one."""
    one = edges[(edges[:, 0] < n) & (edges[:, 1] >= n)]
    return np.reshape(one[np.argsort(one[:, 1], kind="stable"), 0], (-1, 2))


def _pooling(level: int) -> sparse.csr_array:
    """Weights (vertex of the level, vertex of fsaverage5) on one side."""
    edges, total = finest_edges(), sparse.csr_array(sparse.eye_array(N_SIDE))
    for finer in range(5, level, -1):
        n, n_finer = LEVELS[finer - 1], LEVELS[finer]
        parents = _parents(edges, n)
        rows = np.concatenate([np.arange(n), parents[:, 0], parents[:, 1]])
        added = np.arange(n, n_finer)
        columns = np.concatenate([np.arange(n), added, added])
        weights = np.repeat([1.0, 0.5], [n, 2 * added.size])
        step = sparse.csr_array((weights, (rows, columns)), shape=(n, n_finer))
        total = step @ total
        edges = np.unique(np.sort(parents, axis=1), axis=0)
    return sparse.csr_array(total)


def _mirror(points: Sequence[Floats]) -> Ints:
    """Vertex of the other side nearest to the mirrored place of every vertex, at mid-thickness."""
    from scipy.spatial import cKDTree

    flip = np.array([-1.0, 1.0, 1.0])
    left, right = points
    to_right = cKDTree(right).query(left * flip)[1] + N_SIDE
    to_left = cKDTree(left).query(right * flip)[1]
    return np.asarray(np.concatenate([to_right, to_left]), dtype=np.int64)
