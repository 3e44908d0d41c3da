"""Measures of one lesion: pieces, center, distance to the corticospinal tract."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from scalebrain.atlas.space import Grid
from scalebrain.features.lesion import check_masks, known_masks, tract_maps
from scalebrain.features.lesion_numba_fns import lowest_values
from scalebrain.features.rows import over_rows
from scalebrain.features.segments import store_grid, voxel_index
from scalebrain.variables import annotate, validate

__all__ = ["TRACT_CORE", "lesion_measures"]

#: The core of a tract: voxels that belong to it in at least half of the people of its atlas.
TRACT_CORE = 0.5

_NEIGHBORS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class _Place:
    """What the measures need to know of the voxels.

    Parameters
    ----------
    ijk
        (voxel, 3) index in the grid.
    affine
        (4, 4) from indices to mm.
    distance
        (tract, voxel) mm to the core of each tract.
    """

    ijk: npt.NDArray[np.int16]
    affine: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float32]


def lesion_measures(ds: xr.Dataset) -> xr.Dataset:
    """Pieces and center of every lesion, and how far it is from the tracts.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)`` and ``tract_probability (tract, voxel)``.

    Returns
    -------
    Dataset
        ``lesion_components (subject)``, the number of pieces of voxels that touch, corners
        included; ``lesion_center_x``, ``_y``, ``_z (subject)`` in mm, right, anterior and
        superior positive; ``tract_distance (subject, tract)`` in mm from the nearest lesioned
        voxel to the core of the tract, 0 when it is lesioned. NaN for a subject without a mask;
        an empty mask has 0 pieces, no center and no distance. Lazy but for the distances of
        the voxels. Volume, side and laterality index are in the store since the ingest.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks or tracts.
    ImageError
        When the maps of the tracts are no probabilities.

    Notes
    -----
    Of the voxels that the store has: what lies outside of it (``lesion_outside_fraction``) does
    not count. The center is the mean of the voxels' coordinates, which need not lie in the
    lesion. The core of a tract is where its probability is at least 0.5. Distances are Euclidean
    ones between centers of voxels.
    """
    check_masks(ds)
    validate(ds, "x", "y", "z")
    maps = tract_maps(ds)
    grid = store_grid(ds)
    index = voxel_index(ds, grid)
    place = _Place(
        np.stack(np.unravel_index(index, grid.shape), axis=1).astype(np.int16),
        grid.matrix,
        _distances(maps, index, grid),
    )
    n_tracts = ds.sizes["tract"]
    found = over_rows(
        _measures_of_rows, ds["lesion_mask"], shared=place, dims={"measure": 4 + n_tracts}
    )
    found = known_masks(ds, found)
    names = ("lesion_components", "lesion_center_x", "lesion_center_y", "lesion_center_z")
    alone: dict[str, Any] = {name: found.isel(measure=i) for i, name in enumerate(names)}
    distance = found.isel(measure=slice(4, None)).rename(measure="tract")
    out = xr.Dataset({**alone, "tract_distance": distance}, coords={"tract": ds["tract"]})
    out["tract_distance"].attrs["core_probability"] = TRACT_CORE
    return annotate(out)


def _distances(
    probability: npt.NDArray[np.floating], index: npt.NDArray[np.intp], grid: Grid
) -> npt.NDArray[np.float32]:
    """Distance (tract, voxel) in mm of every stored voxel to the core of each tract."""
    size = np.linalg.norm(grid.matrix[:3, :3], axis=0)
    out = np.full(probability.shape, np.nan, dtype=np.float32)
    for row, p in zip(out, probability, strict=True):
        outside = np.ones(grid.size, dtype=bool)
        outside[index[p >= TRACT_CORE]] = False
        if not outside.all():
            far = ndimage.distance_transform_edt(outside.reshape(grid.shape), sampling=size)
            row[:] = far.ravel()[index]
    return out


def _measures_of_rows(place: _Place, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Components, center and distances (row, measure)."""
    out = np.full((len(mask), 4 + len(place.distance)), np.nan)
    nearest = np.empty((len(mask), len(place.distance)))
    lowest_values(mask, place.distance, nearest)
    out[:, 4:] = nearest
    for one, row in zip(out, mask, strict=True):
        ijk = place.ijk[np.flatnonzero(row)].astype(np.int64)
        if not len(ijk):
            one[0] = 0
            continue
        low = ijk.min(axis=0)
        box = np.zeros(tuple(ijk.max(axis=0) - low + 1), dtype=bool)
        box[tuple((ijk - low).T)] = True
        one[0] = ndimage.label(box, structure=_NEIGHBORS)[1]
        one[1:4] = place.affine[:3, :3] @ ijk.mean(axis=0) + place.affine[:3, 3]
    return out
