"""Parcel and node features: segmented sums over the sorted voxels of a store."""

import logging
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import GeometryError
from scalebrain.features.parcellation_numba_fns import (
    gather_means,
    segment_counts,
    segment_moments,
)
from scalebrain.variables import FEATURES, annotate, validate

__all__ = ["node_features", "parcel_features", "segments"]

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

_CONTRAST_MM = 10.0
_MAX_LESIONED = 0.5


def segments(labels: xr.DataArray, codes: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """First and last-plus-one voxel of every label in sorted voxels.

    Parameters
    ----------
    labels
        (voxel,) labels, every one of `codes` in one run.
    codes
        (segment,) labels to look up; one that is absent gives an empty segment.

    Returns
    -------
    starts, stops
        (segment,) int64.

    Raises
    ------
    GeometryError
        When the voxels of a label are not contiguous.
    """
    values = np.asarray(labels.values)
    change = np.flatnonzero(np.diff(values)) + 1
    first = np.concatenate([[0], change]).astype(np.int64)
    last = np.concatenate([change, [values.size]]).astype(np.int64)
    runs = values[first]
    wanted = np.isin(runs, codes)
    if np.unique(runs[wanted]).size != np.count_nonzero(wanted):
        raise GeometryError(
            "Voxels are not sorted by parcel and node. Take the Dataset from open_store, and do "
            "not reorder its voxels."
        )
    starts = np.zeros(codes.size, dtype=np.int64)
    stops = np.zeros(codes.size, dtype=np.int64)
    position = {int(code): i for i, code in enumerate(codes)}
    for a, b, code in zip(first[wanted], last[wanted], runs[wanted], strict=True):
        starts[position[int(code)]], stops[position[int(code)]] = a, b
    return starts, stops


def _lesions(ds: xr.Dataset) -> xr.DataArray:
    """Lesion mask, all False when the store has none."""
    if "lesion_mask" in ds:
        return ds["lesion_mask"]
    return xr.zeros_like(ds["t1w"], dtype=bool)


def _has_gm(ds: xr.Dataset) -> bool:
    """Whether everyone with a scan has grey-matter probabilities."""
    if "gm" not in ds or "gm_present" not in ds:
        return "gm" in ds
    without = int((ds["scan_present"] & ~ds["gm_present"]).sum())
    if without:
        logger.warning("%d scans have no grey-matter probabilities: T1w features alone", without)
    return not without


def parcel_features(ds: xr.Dataset) -> xr.Dataset:
    """Mean and SD of the images over every parcel.

    Parameters
    ----------
    ds
        Store with ``t1w`` (and ``gm``) over ``(subject, voxel)``.

    Returns
    -------
    Dataset
        ``parcel_features (subject, parcel, feature)``: ``gm_mean``, ``t1w_mean`` and
        ``t1w_sd`` in the units of the files, whole parcels, lesioned or not; lazy.
        ``parcel_voxels (parcel)`` counts voxels.

    Raises
    ------
    MissingVariableError
        When `ds` has no images.
    """
    validate(ds, "t1w", "parcel")
    codes = np.unique(ds["parcel"].values)
    codes = codes[codes > 0].astype(np.int32)
    starts, stops = segments(ds["parcel"], codes)
    grey = [_bare(ds["gm"])] if _has_gm(ds) else []
    names = [n for n in ("gm_mean", "t1w_mean", "t1w_sd") if n != "gm_mean" or grey]

    def block(*rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        out = np.empty((*rows[0].shape[:-1], codes.size, len(names)))
        for name, values in zip(("t1w", "gm"), rows, strict=False):
            flat = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), dtype=np.float32)
            moments = np.empty((len(flat), codes.size, 3))
            segment_moments(flat, np.zeros(flat.shape, dtype=bool), starts, stops, moments)
            shaped = moments.reshape(*rows[0].shape[:-1], codes.size, 3)
            out[..., names.index(f"{name}_mean")] = shaped[..., 1]
            if name == "t1w":
                out[..., names.index("t1w_sd")] = np.sqrt(shaped[..., 2] / shaped[..., 0])
        return out

    rows = [_bare(ds["t1w"]), *grey]
    features = xr.apply_ufunc(
        block,
        *rows,
        input_core_dims=[["voxel"]] * len(rows),
        output_core_dims=[["parcel", "feature"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"parcel": codes.size, "feature": len(names)}},
    )
    out = xr.Dataset(
        {"parcel_features": features, "parcel_voxels": ("parcel", stops - starts)},
        coords={"parcel": codes, "feature": names},
    )
    return annotate(out)


def _bare(array: xr.DataArray) -> xr.DataArray:
    """Array without its voxel coordinates, which would clash with dims of the result."""
    return array.drop_vars([name for name in array.coords if "voxel" in array[name].dims])


def _white_neighbors(ds: xr.Dataset) -> tuple[Ints, Ints]:
    """White voxels near every node, as one list with offsets.

    White matter within 10 mm of the node's centroid; where there is none, within 4 mm
    beyond the nearest.
    """
    from scipy.spatial import cKDTree

    white = np.flatnonzero(ds["white_reference"].values)
    tree = cKDTree(np.stack([ds[a].values[white] for a in "xyz"], axis=1).astype(np.float64))
    centers = np.stack([ds[f"node_{a}"].values for a in "xyz"], axis=1).astype(np.float64)
    nearest = tree.query(centers)[0]
    lists = tree.query_ball_point(centers, np.maximum(_CONTRAST_MM, nearest + 4.0))
    voxels = np.concatenate([white[np.sort(np.asarray(one, dtype=np.intp))] for one in lists])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
    return voxels.astype(np.int64), offsets.astype(np.int64)


def node_features(
    ds: xr.Dataset, *, policy: Literal["mask_nodes", "as_is"] = "mask_nodes"
) -> xr.Dataset:
    """Features of every node.

    Parameters
    ----------
    ds
        Store with ``t1w`` (and ``gm``, ``lesion_mask``) over ``(subject, voxel)``.
    policy
        ``mask_nodes`` leaves lesioned voxels out of every mean, and a node of which more
        than half is lesioned is missing; ``as_is`` ignores the lesion mask.

    Returns
    -------
    Dataset
        ``node_features (subject, node, feature)``, NaN where missing, and
        ``node_lesioned_fraction (subject, node)``; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no images.

    Notes
    -----
    With W the mean of T1w over the eroded white matter of the template, G a node's mean
    and w the mean of white matter within 10 mm of its centroid:
    ``gm_mean`` is the mean grey-matter probability (only when the store has it),
    ``t1w_mean = G / W``, ``t1w_sd`` the SD over the node divided by W, and
    ``contrast = (w - G) / ((w + G) / 2)``.
    """
    validate(ds, "t1w", "node_label", "white_reference", "node_x", "node_y", "node_z")
    n_nodes = ds.sizes["node"]
    starts, stops = segments(ds["node_label"], np.arange(n_nodes))
    voxels, offsets = _white_neighbors(ds)
    white = np.flatnonzero(ds["white_reference"].values).astype(np.int64)
    whole = np.array([0, white.size], dtype=np.int64)
    grey = [_bare(ds["gm"])] if _has_gm(ds) else []
    names = [name for name in FEATURES if name != "gm_mean" or grey]
    size = np.maximum(stops - starts, 1)

    def block(
        t1w: npt.NDArray[np.float32],
        lesion: npt.NDArray[np.bool_],
        *gm: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float64]:
        lead = t1w.shape[:-1]
        rows = np.ascontiguousarray(t1w.reshape(-1, t1w.shape[-1]), dtype=np.float32)
        lesioned = np.ascontiguousarray(lesion.reshape(rows.shape))
        left_out = lesioned if policy == "mask_nodes" else np.zeros_like(lesioned)
        out = np.full((len(rows), n_nodes, len(names) + 1), np.nan)
        moments = np.empty((len(rows), n_nodes, 3))
        reference = np.empty((len(rows), 1))
        local = np.empty((len(rows), n_nodes))
        gather_means(rows, left_out, white, whole, reference)
        gather_means(rows, left_out, voxels, offsets, local)
        segment_moments(rows, left_out, starts, stops, moments)
        count, mean, squares = moments[..., 0], moments[..., 1], moments[..., 2]
        with np.errstate(invalid="ignore", divide="ignore"):
            out[..., names.index("t1w_mean")] = mean / reference
            out[..., names.index("t1w_sd")] = np.sqrt(squares / count) / reference
            out[..., names.index("contrast")] = (local - mean) / (0.5 * (local + mean))
        for grey in gm:
            flat = np.ascontiguousarray(grey.reshape(rows.shape), dtype=np.float32)
            segment_moments(flat, left_out, starts, stops, moments)
            out[..., names.index("gm_mean")] = moments[..., 1]
        hit = np.zeros((len(rows), n_nodes), dtype=np.int64)
        segment_counts(lesioned, starts, stops, hit)
        fraction = hit / size
        missing = ~np.isfinite(out[..., :-1]).all(axis=-1)
        if policy == "mask_nodes":
            missing |= fraction > _MAX_LESIONED
        out[missing, :-1] = np.nan
        out[..., -1] = fraction
        return out.reshape(*lead, n_nodes, len(names) + 1)

    inputs = [_bare(ds["t1w"]), _bare(_lesions(ds)), *grey]
    result = xr.apply_ufunc(
        block,
        *inputs,
        input_core_dims=[["voxel"]] * len(inputs),
        output_core_dims=[["node", "feature"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"node": n_nodes, "feature": len(names) + 1}},
    )
    out = xr.Dataset(
        {
            "node_features": result.isel(feature=slice(0, -1)),
            "node_lesioned_fraction": result.isel(feature=-1),
        },
        coords={"feature": names},
    )
    out["node_features"].attrs["lesion_policy"] = policy
    return annotate(out)
