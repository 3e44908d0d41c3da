"""Features of the nodes on the cortical surface."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.parcels import Nodes
from scalebrain.atlas.surface import (
    LEVELS,
    SurfaceNodes,
    cortex_points,
    is_cortex,
    surface_nodes,
)
from scalebrain.errors import ConfigError
from scalebrain.features.lesion import check_masks
from scalebrain.features.lesion_policy import LesionPolicy, check_policy
from scalebrain.features.nodes import MAX_LESIONED
from scalebrain.features.rows import over_rows
from scalebrain.features.segments import store_grid, voxel_index
from scalebrain.variables import SURFACE_FEATURES, annotate, validate

__all__ = ["NODES", "check_nodes", "graph_variables", "surface_features", "surface_level"]

Floats = npt.NDArray[np.float32]

#: Names of what can be the nodes of a graph; the first is the default.
NODES: tuple[str, ...] = ("volume", *(f"surface-{level}" for level in LEVELS))

#: Where between the white and the pial surface a lesion is looked for.
_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_SUBJECTS_A_BLOCK = 128


def check_nodes(nodes: str) -> None:
    """Refuse nodes that are not known."""
    if nodes not in NODES:
        raise ConfigError(f"Nodes '{nodes}': expected one of {', '.join(NODES)}.")


def surface_level(nodes: str) -> int | None:
    """Level of nodes on the surface; None of those of the volume."""
    found = re.fullmatch(r"surface-(\d)", nodes)
    return int(found.group(1)) if found else None


def surface_features(
    ds: xr.Dataset, *, level: int = 4, policy: LesionPolicy = "mask_nodes"
) -> xr.Dataset:
    """Features of every node on the surface.

    Parameters
    ----------
    ds
        Store with ``thickness`` and ``wg_contrast`` over ``(subject, vertex)`` (and
        ``lesion_mask`` over ``(subject, voxel)``).
    level
        5 for every vertex of fsaverage5, 4 or 3 for nodes of about 4 or 16 of them.
    policy
        As for :func:`~scalebrain.node_features`, for vertices in place of voxels: a vertex is
        lesioned when more than half of its points are. ``enantiomorphic`` takes its values from
        the vertex of the other hemisphere nearest to the mirrored place: fsaverage is not
        symmetric, so that is near, not the same, anatomy. Where that is the medial wall the
        vertex is left out.

    Returns
    -------
    Dataset
        ``node_features (subject, node, feature)``, NaN where missing, and
        ``node_lesioned_fraction (subject, node)``, lazy; and the graph: ``node_parcel``,
        ``node_x``, ``node_y``, ``node_z``, ``edge_source``, ``edge_target``.

    Raises
    ------
    MissingVariableError
        When `ds` has no surfaces, or lesion masks that are not bool.
    ConfigError
        When the level or the policy is not known.

    Notes
    -----
    A feature of a node is the weighted mean over its vertices that have a value and are not left
    out. Lesions are looked for at five points between the white and the pial surface of the
    template, in the nearest voxel: a mask in template space says nothing of the person's own
    folds.
    """
    validate(ds, "thickness", "wg_contrast", way_out="Ingest FreeSurfer results first.")
    check_policy(policy)
    parts = surface_nodes(level)
    images = [ds["thickness"], ds["wg_contrast"]]
    if "lesion_mask" in ds:
        check_masks(ds)
        images.append(_lesioned(ds))
    if any(image.chunks for image in images):
        images = [image.chunk(subject=_SUBJECTS_A_BLOCK, vertex=-1) for image in images]
    bare = [image.drop_vars([c for c in image.coords if c != "subject"]) for image in images]
    found = xr.apply_ufunc(
        _pooled,
        *bare,
        kwargs={"pool": _Pool(level, policy)},
        input_core_dims=[["vertex"]] * len(images),
        output_core_dims=[["node", "feature"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={
            "output_sizes": {"node": parts.parcel.size, "feature": len(SURFACE_FEATURES) + 1}
        },
    )
    out = xr.Dataset(
        {
            "node_features": found.isel(feature=slice(0, -1)),
            "node_lesioned_fraction": found.isel(feature=-1),
            **graph_variables(parts),
        },
        coords={"feature": list(SURFACE_FEATURES)},
    )
    out["node_features"].attrs |= {
        "lesion_policy": policy,
        "nodes": f"surface-{level}",
        "nodes_sha256": parts.fingerprint,
        "space": "fsaverage5",
    }
    return annotate(out)


def graph_variables(parts: Nodes | SurfaceNodes) -> dict[str, tuple[str, npt.NDArray[Any]]]:
    """Nodes and edges as variables of a store."""
    place = {f"node_{a}": ("node", parts.centroid[:, i].astype(np.float32)) for i, a in _AXES}
    return {
        "node_parcel": ("node", parts.parcel),
        **place,
        "edge_source": ("edge", parts.edges[:, 0]),
        "edge_target": ("edge", parts.edges[:, 1]),
    }


_AXES = tuple(enumerate("xyz"))


@dataclass(frozen=True)
class _Pool:
    """Which nodes, and what is done about lesions; workers make the rest from it."""

    level: int
    policy: LesionPolicy


def _pooled(
    thickness: Floats, contrast: Floats, lesioned: Floats | None = None, *, pool: _Pool
) -> Floats:
    """Features and, last, the lesioned fraction (subject, node, feature)."""
    parts = surface_nodes(pool.level)
    x = np.stack([thickness, contrast], axis=-1).astype(np.float32)
    some = np.zeros(x.shape[:2], dtype=np.float32) if lesioned is None else lesioned
    gone = (some > MAX_LESIONED) if pool.policy != "as_is" else np.zeros(some.shape, dtype=bool)
    if pool.policy == "enantiomorphic":
        # opposite the medial wall there is no cortex, and FreeSurfer's thickness is 0
        filled = gone & ~gone[:, parts.mirror] & _cortex()[parts.mirror]
        x = np.where(filled[..., None], x[:, parts.mirror], x)
        gone &= ~filled
    known = np.isfinite(x).all(axis=-1) & ~gone
    x[~known] = 0

    def over_nodes(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Weighted sums (subject, node) of values (subject, vertex)."""
        return np.asarray((parts.pooling @ values.T.astype(np.float64)).T)

    weight, lost = over_nodes(known), over_nodes(gone)
    out = np.empty((len(x), weight.shape[1], x.shape[-1] + 1), dtype=np.float32)
    missing = (lost > MAX_LESIONED) | (weight <= 0)
    for f in range(x.shape[-1]):
        with np.errstate(invalid="ignore", divide="ignore"):
            out[..., f] = np.where(missing, np.nan, over_nodes(x[..., f]) / weight)
    out[..., -1] = over_nodes(some)
    return out


@cache
def _cortex() -> npt.NDArray[np.bool_]:
    """Which vertices (vertex,) lie outside the medial wall."""
    return is_cortex()


def _lesioned(ds: xr.Dataset) -> xr.DataArray:
    """Lesioned fraction (subject, vertex) of the points of every vertex."""
    grid = store_grid(ds)
    position = np.full(grid.size + 1, -1, dtype=np.int32)
    position[voxel_index(ds, grid)] = np.arange(ds.sizes["voxel"], dtype=np.int32)
    inverse = np.linalg.inv(grid.matrix)
    columns = []
    for depth in _DEPTHS:
        mm = np.concatenate([cortex_points("left", depth), cortex_points("right", depth)])
        ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
        inside = ((ijk >= 0) & (ijk < grid.shape)).all(axis=1)
        flat = np.ravel_multi_index(
            tuple(np.clip(ijk.T, 0, np.array([grid.shape]).T - 1)), grid.shape
        )
        columns.append(position[np.where(inside, flat, grid.size)])
    voxels = np.stack(columns, axis=1)
    return over_rows(
        _fraction_of_points,
        ds["lesion_mask"],
        shared=voxels,
        dims={"vertex": len(voxels)},
        dtype=np.float32,
    )


def _fraction_of_points(voxels: npt.NDArray[np.int32], lesion: npt.NDArray[np.bool_]) -> Floats:
    """Fraction (row, vertex) of the points in stored voxels that are lesioned."""
    stored = voxels >= 0
    hit = (lesion[:, np.maximum(voxels, 0)] & stored).sum(axis=-1)
    return np.asarray(hit / np.maximum(stored.sum(axis=-1), 1), dtype=np.float32)
