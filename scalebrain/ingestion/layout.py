"""Which arrays a store has, and on which grid."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from scalebrain.atlas.space import SPACE, Grid, template_grid, template_hash
from scalebrain.errors import GeometryError, ImageError, ScalebrainError, StoreError, check_all
from scalebrain.ingestion.geometry import (
    Geometry,
    covered_liters,
    static_variables,
    vertex_variables,
)
from scalebrain.ingestion.partition import array_rows
from scalebrain.ingestion.plan import Dataset
from scalebrain.io.location import Location
from scalebrain.io.nifti import read_header
from scalebrain.io.store import add_images, replace_variables, store_attributes, update_root

__all__ = [
    "ARRAYS",
    "check_grid",
    "check_modulated",
    "choose_grid",
    "static_of",
    "stored_arrays",
    "write_arrays",
    "write_static",
]

#: dtype and second dim of every big array.
ARRAYS: dict[str, tuple[type, str]] = {
    "t1w": (np.float32, "voxel"),
    "gm": (np.float32, "voxel"),
    "lesion_mask": (np.bool_, "voxel"),
    "thickness": (np.float32, "vertex"),
    "wg_contrast": (np.float32, "vertex"),
    "curvature": (np.float32, "vertex"),
    "sulcal_depth": (np.float32, "vertex"),
}
_GRID_SAMPLE = 101
_MAX_GRID = 2**27  # voxels of a store's grid: a head at 0.4 mm
_WHOLE_BRAIN = (1.6, 2.4)


def choose_grid(datasets: Sequence[Dataset], resolution: float | None) -> Grid | None:
    """Choose the grid of a new store.

    Parameters
    ----------
    datasets
        Datasets.
    resolution
        Voxel size in mm on the template's grid; None for the grid that most of the first
        hundred images have, if it covers the brain.

    Returns
    -------
    Grid or None
        None when no dataset has images of voxels.

    Raises
    ------
    ImageError
        When none of them can be read.
    GeometryError
        When none of them covers the template's brain.
    """
    if not _has_voxels(datasets):
        return None
    if resolution is not None:
        return template_grid(resolution)
    counts: Counter[Grid] = Counter()
    failures = []
    for dataset, scan in ((d, scan) for d in datasets for scan in d.scans.values()):
        file = scan.t1w or scan.gm or scan.lesion
        if file is None:
            continue
        try:
            shape, affine = read_header(
                file, volume=dataset.options.volume, assume_space=dataset.options.assume_space
            )
        except ScalebrainError as error:
            failures.append(str(error))
            continue
        if int(np.prod(shape)) > _MAX_GRID:
            failures.append(
                f"{file}: {' x '.join(map(str, shape))} voxels are too many for the grid of a "
                "store. Give a resolution to resample to."
            )
            continue
        grid = Grid.canonical(shape, affine)
        same = next((known for known in counts if not known.difference(grid)), grid)
        counts[same] += 1
        if counts.total() >= _GRID_SAMPLE:
            break
    for grid, _ in counts.most_common():
        if _WHOLE_BRAIN[0] < covered_liters(grid) < _WHOLE_BRAIN[1]:
            return grid
    if counts:
        shapes = ", ".join(str(grid.shape) for grid, _ in counts.most_common(3))
        raise GeometryError(
            f"No image covers the template's brain (shapes {shapes}). Normalize them to {SPACE}, "
            "or give a resolution to resample to.",
            code="not-in-template-space",
        )
    check_all(failures, ImageError, "No image can be read")
    return None


def _has_voxels(datasets: Sequence[Dataset]) -> bool:
    """Whether any dataset has images."""
    return any(s.t1w or s.gm or s.lesion for d in datasets for s in d.scans.values())


def static_of(
    attrs: Mapping[str, Any],
    datasets: Sequence[Dataset],
    *,
    resolution: float | None,
    whole_head: bool,
) -> tuple[xr.Dataset | None, Geometry | None]:
    """Voxels of a store: those that it has, else those that its datasets call for.

    Parameters
    ----------
    attrs
        Root attributes of the store; empty for a new one.
    datasets
        Datasets.
    resolution, whole_head
        As for the ingest.

    Returns
    -------
    static
        Static variables; None when the store is one of surfaces alone.
    geometry
        What workers need of them.

    Raises
    ------
    StoreError
        When the store was made with other templates or atlases.
    """
    if "shape" not in attrs:
        grid = choose_grid(datasets, resolution)
        if grid is None:
            return None, None
        static = static_variables(grid, whole_head=whole_head)
        static.attrs |= {"whole_head": whole_head, "template_sha256": template_hash()}
        return static, Geometry.of(static, grid)
    check_grid(attrs, resolution=resolution, whole_head=whole_head)
    grid = Grid.from_matrix(tuple(attrs["shape"]), attrs["affine"])
    static = static_variables(grid, whole_head=bool(attrs["whole_head"]))
    if (attrs["template_sha256"], attrs["mask_sha256"]) != (
        template_hash(),
        static.attrs["mask_sha256"],
    ):
        raise StoreError(
            "The store was made with another version of the template or the atlases. Install the "
            "versions of constraints.txt, or ingest into a new store."
        )
    return static, Geometry.of(static, grid)


def check_grid(attrs: Mapping[str, Any], *, resolution: float | None, whole_head: bool) -> None:
    """Refuse to ask for another grid than a store has."""
    if "shape" not in attrs:
        return
    grid = Grid.from_matrix(tuple(attrs["shape"]), attrs["affine"])
    other = resolution is not None and bool(grid.difference(template_grid(resolution)))
    if other or (whole_head and not attrs["whole_head"]):
        raise StoreError(
            f"The store has another grid (shape {grid.shape}), or keeps the brain alone. Leave out "
            "the resolution and --whole-head, or ingest into a new store."
        )


def check_modulated(location: Location, datasets: Sequence[Dataset]) -> None:
    """Refuse modulated and unmodulated grey matter in one store."""
    attrs = store_attributes(location)
    kinds = {d.cohort.modulated for d in datasets if any(s.gm for s in d.scans.values())}
    kinds |= {attrs["gm_modulated"]} if "gm_modulated" in attrs else set()
    if len(kinds) > 1:
        raise ImageError(
            "Modulated and unmodulated grey matter cannot share a store. Ingest them into stores "
            "of their own."
        )


def write_arrays(
    location: Location, datasets: Sequence[Dataset], static: xr.Dataset | None
) -> tuple[str, ...]:
    """Write static variables and empty arrays that the store has not yet.

    Parameters
    ----------
    location
        Store.
    datasets
        Datasets.
    static
        Static variables.

    Returns
    -------
    tuple of str
        Every big array of the store.
    """
    attrs = store_attributes(location)
    kinds = {d.cohort.modulated for d in datasets if any(s.gm for s in d.scans.values())}
    scans = [scan for dataset in datasets for scan in dataset.scans.values()]
    names = {
        array
        for array, kind in (("t1w", "t1w"), ("gm", "gm"), ("lesion_mask", "lesion"))
        if any(getattr(scan, kind) is not None for scan in scans)
    }
    if any(scan.surfaces is not None for scan in scans):
        names |= {name for name, (_, dim) in ARRAYS.items() if dim == "vertex"}
        if not attrs.get("vertices"):
            replace_variables(location, vertex_variables())
            update_root(location, {"vertices": True})
    if static is not None and "shape" not in attrs:
        write_static(location, static)
        plain = {name: static[axis].attrs[name] for name, axis in (("affine", "x"), ("shape", "x"))}
        update_root(location, {**static.attrs, **plain})
    if kinds:
        update_root(location, {"gm_modulated": kinds.pop()})
    rows = int(attrs["partition_rows"])
    add_images(location, {n: (*ARRAYS[n], array_rows(n, rows)) for n in sorted(names)})
    return stored_arrays(location)


def write_static(location: Location, static: xr.Dataset) -> None:
    """Write static variables, but no graph of voxels where the store has nodes of a surface.

    Parameters
    ----------
    location
        Store.
    static
        Static variables.
    """
    if store_attributes(location).get("nodes", "volume") != "volume":
        static = static.drop_dims([dim for dim in ("node", "edge") if dim in static.dims])
    replace_variables(location, static)


def stored_arrays(location: Location) -> tuple[str, ...]:
    """Every big array that a store has."""
    return tuple(name for name in ARRAYS if location.get(f"{name}/zarr.json") is not None)
