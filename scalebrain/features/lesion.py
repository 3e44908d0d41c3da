"""Lesion loads of regions and tracts, lesion volume, and the map of the cohort."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.errors import GeometryError
from scalebrain.features.lesion_numba_fns import lesioned_slices
from scalebrain.features.parcellation import segments
from scalebrain.features.parcellation_numba_fns import segment_counts
from scalebrain.variables import annotate, validate

__all__ = ["lesion_frequency", "lesion_load", "lesion_volume", "tract_load"]

_NO_LESIONS = "Give every stroke subject a lesion mask (label-L_mask) and ingest again."
_SMALLEST_SECTION = 0.05


def _masks(ds: xr.Dataset) -> xr.DataArray:
    """Lesion masks without coordinates on voxel."""
    mask = ds["lesion_mask"]
    return mask.drop_vars([name for name in mask.coords if "voxel" in mask[name].dims])


def _known(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Values of the subjects that have a mask; missing, not zero, for the others."""
    return (
        values.where(ds["lesion_present"].drop_vars("subject"))
        if "lesion_present" in ds
        else (values)
    )


def lesion_volume(ds: xr.Dataset) -> xr.Dataset:
    """Volume of every lesion.

    Parameters
    ----------
    ds
        Store.

    Returns
    -------
    Dataset
        ``lesion_volume (subject)`` in mL: the number of voxels of the whole mask, inside
        the brain mask or not, times the determinant of the affine, as counted at ingest;
        NaN for a subject without a mask.

    Raises
    ------
    MissingVariableError
        When `ds` is not a store.
    """
    validate(ds, "lesion_volume")
    return annotate(ds[["lesion_volume"]])


def lesion_load(ds: xr.Dataset, *, regions: RegionSet | None = None) -> xr.Dataset:
    """Fraction of every region that is lesioned.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.
    regions
        Regions as sets of parcels; the default 18 subregions when None.

    Returns
    -------
    Dataset
        ``lesion_load (subject, region)`` in [0, 1]; NaN for a subject without a mask; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks.
    GeometryError
        When a region has no voxel on the grid of the store.

    Notes
    -----
    Number of lesioned voxels of the region's parcels over the number of voxels of its
    parcels.
    """
    validate(ds, "lesion_mask", "parcel", way_out=_NO_LESIONS)
    regions = regions if regions is not None else default_regions()
    codes = np.unique(ds["parcel"].values)
    codes = codes[codes > 0]
    starts, stops = segments(ds["parcel"], codes)
    member = regions.membership(codes.tolist()).astype(np.int64)
    size = (stops - starts) @ member
    if not size.all():
        empty = [r for r, n in zip(regions.regions, size, strict=True) if not n]
        raise GeometryError(
            f"Region set '{regions.name}': no voxel of {', '.join(empty)} on the grid of the store."
        )

    def block(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        rows = np.ascontiguousarray(mask.reshape(-1, mask.shape[-1]))
        counts = np.empty((len(rows), codes.size), dtype=np.int64)
        segment_counts(rows, starts, stops, counts)
        return ((counts @ member) / size).reshape(*mask.shape[:-1], size.size)

    load = xr.apply_ufunc(
        block,
        _masks(ds),
        input_core_dims=[["voxel"]],
        output_core_dims=[["region"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"region": size.size}},
    )
    out = xr.Dataset({"lesion_load": _known(ds, load)}, coords={"region": list(regions.regions)})
    return annotate(out)


def tract_load(ds: xr.Dataset) -> xr.Dataset:
    """Load of the lesion on every tract, by three definitions.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)`` and ``tract_probability (tract, voxel)``.

    Returns
    -------
    Dataset
        Over ``(subject, tract)``: ``tract_load``, ``tract_load_weighted`` (mL) and
        ``tract_load_max``; NaN for a subject without a mask; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks or tracts.

    Notes
    -----
    With p the probability of the tract, l the mask, A_z the sum of p over axial slice z
    and a_z the sum of l p: ``tract_load = sum(l p) / sum(p)``; ``tract_load_weighted =
    sum_z a_z max(A) / A_z`` times the voxel volume, which gives a lesion more weight where
    the tract is narrow; ``tract_load_max = max_z a_z / A_z`` over slices of at least 5% of
    the largest section.

    References
    ----------
    Feng et al. 2015, doi:10.1002/ana.24510
    """
    validate(ds, "lesion_mask", "tract_probability", "z", way_out=_NO_LESIONS)
    z = ds["z"].values
    heights, label = np.unique(np.round(z, 3), return_inverse=True)
    slice_label = label.astype(np.int32)
    probability = np.ascontiguousarray(ds["tract_probability"].values, dtype=np.float32)
    affine = np.asarray(ds["z"].attrs["affine"], dtype=np.float64).reshape(4, 4)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    area = np.stack(
        [np.bincount(slice_label, p.astype(np.float64), heights.size) for p in probability]
    )

    def block(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        rows = np.ascontiguousarray(mask.reshape(-1, mask.shape[-1]))
        out = np.empty((len(rows), len(probability), 3))
        lesioned = np.empty((len(rows), heights.size))
        for t, p in enumerate(probability):
            lesioned_slices(rows, p, slice_label, lesioned)
            there = area[t] > 0
            share = lesioned[:, there] / area[t, there]
            wide = area[t, there] >= _SMALLEST_SECTION * area[t].max()
            out[:, t, 0] = lesioned.sum(axis=1) / area[t].sum()
            out[:, t, 1] = share.sum(axis=1) * area[t].max() * voxel_ml
            out[:, t, 2] = share[:, wide].max(axis=1)
        return out.reshape(*mask.shape[:-1], len(probability), 3)

    loads = xr.apply_ufunc(
        block,
        _masks(ds),
        input_core_dims=[["voxel"]],
        output_core_dims=[["tract", "definition"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"tract": len(probability), "definition": 3}},
    )
    names = ("tract_load", "tract_load_weighted", "tract_load_max")
    out = xr.Dataset(
        {name: _known(ds, loads.isel(definition=i)) for i, name in enumerate(names)},
        coords={"tract": ds["tract"]},
    )
    return annotate(out)


def lesion_frequency(ds: xr.Dataset) -> xr.Dataset:
    """How often every voxel is lesioned.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.

    Returns
    -------
    Dataset
        ``lesion_frequency (voxel)``: lesioned subjects over subjects with a mask, only
        those included where ``included`` is there; lazy. The number of subjects is in
        ``attrs["n"]``.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks.
    """
    validate(ds, "lesion_mask", way_out=_NO_LESIONS)
    counted = np.ones(ds.sizes["subject"], dtype=bool)
    for name in ("lesion_present", "included"):
        if name in ds:
            counted &= ds[name].values.astype(bool)
    chosen = ds["lesion_mask"].isel(subject=np.flatnonzero(counted))
    n = int(counted.sum())
    frequency = chosen.sum("subject") / n if n else chosen.sum("subject") * np.nan
    frequency.attrs["n"] = n
    return annotate(xr.Dataset({"lesion_frequency": frequency}))
