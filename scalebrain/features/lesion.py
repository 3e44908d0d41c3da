"""Lesion loads of regions, networks and tracts, lesion volume, and the map of the cohort."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.atlas.atlas import Atlas, check_probabilities
from scalebrain.atlas.regions import RegionSet, check_regions, default_regions
from scalebrain.errors import MissingVariableError, StatisticsError, TableError
from scalebrain.features.inclusion import flags
from scalebrain.features.lesion_numba_fns import (
    column_counts,
    label_counts,
    lesioned_slices,
    weighted_sums,
)
from scalebrain.features.parcellation_numba_fns import segment_counts
from scalebrain.features.rows import bare, over_rows, task_bounds
from scalebrain.features.segments import Segments, locate, store_grid, voxel_index
from scalebrain.io.rows import RowSource, row_source
from scalebrain.variables import annotate, validate

__all__ = [
    "check_masks",
    "known_masks",
    "lesion_frequency",
    "lesion_load",
    "lesion_volume",
    "network_load",
    "tract_load",
    "tract_maps",
]

logger = logging.getLogger(__name__)

_NO_LESIONS = "Give every stroke subject a lesion mask (label-L_mask) and ingest again."
_SMALLEST_SECTION = 0.05

Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]


def check_masks(ds: xr.Dataset) -> None:
    """Refuse a Dataset without lesion masks, or with masks that are not bool."""
    way_out = _NO_LESIONS
    if "lesion_mask" in ds:
        kind = ds["lesion_mask"].dtype.kind
        made = "lesion_mask=ds['lesion_mask'] > 0"
        if kind in "fO":  # as after ds.reindex, which fills with NaN
            names = [n for n in ("lesion_mask", "lesion_present") if n in ds]
            made = ", ".join(f"{n}=ds['{n}'].fillna(False).astype(bool)" for n in names)
        way_out = "" if kind == "b" else f"Make it bool: ds.assign({made})."
    validate(ds, "lesion_mask", way_out=way_out)


def known_masks(
    ds: xr.Dataset, values: xr.DataArray, missing: float | xr.DataArray = np.nan
) -> xr.DataArray:
    """Values of the subjects that have a mask; `missing`, not zero, for the others; as lazy."""
    if "lesion_present" not in ds:
        return values
    present: Any = ds["lesion_present"].variable.data
    if values.chunks is None or present.dtype != np.bool_:
        present = flags(ds, "lesion_present")
    return values.where(xr.DataArray(present, dims="subject"), missing)


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


def lesion_load(ds: xr.Dataset, *, regions: RegionSet | Atlas | None = None) -> xr.Dataset:
    """Fraction of every region that is lesioned.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.
    regions
        Regions as sets of parcels, or an atlas of labels or of probability maps on any grid
        (``load_atlas("aal")`` for the parcels themselves); the default 18 subregions when None.

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
    With l the mask and p the region, 1 or 0 or a probability: ``sum(l p) / sum(p)`` over the
    voxels of the store.
    """
    check_masks(ds)
    segments = locate(ds, regions if regions is not None else default_regions())
    out = xr.Dataset({"lesion_load": _loads(ds, segments)}, coords={"region": list(segments.names)})
    out["lesion_load"].attrs |= _about(segments)
    return annotate(out)


def _about(segments: Segments) -> dict[str, str]:
    """Atlas of regions, as attributes."""
    about = {"atlas": segments.atlas}
    return about | ({"atlas_sha256": segments.sha256} if segments.sha256 else {})


def network_load(ds: xr.Dataset, *, regions: RegionSet | Atlas | None = None) -> xr.Dataset:
    """Fraction of every network that is lesioned, both hemispheres together.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.
    regions
        Region set or atlas whose names end in ``_L`` and ``_R``; the default set when None.

    Returns
    -------
    Dataset
        ``network_load (subject, network)`` in [0, 1]; NaN for a subject without a mask; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks.
    TableError
        When a region of the atlas has no side in its name, or no homologue.
    GeometryError
        When a region has no voxel on the grid of the store.

    Notes
    -----
    Lesioned voxels of a region and its homologue over the voxels of both; of an atlas of
    probability maps, sums of probabilities.
    """
    chosen = regions if regions is not None else default_regions()
    check_regions(chosen, RegionSet, Atlas)
    check_masks(ds)
    names, columns = _networks(chosen.name, chosen.regions)
    sided = locate(ds, chosen)
    if isinstance(chosen, Atlas):
        part = sided.size[np.array(columns)]
        part = part / part.sum(axis=1, keepdims=True)
        loads = _loads(ds, sided)
        left, right = (loads.isel(region=[both[side] for both in columns]) for side in (0, 1))
        load = (
            left.rename(region="network") * xr.DataArray(part[:, 0], dims="network")
            + right.rename(region="network") * xr.DataArray(part[:, 1], dims="network")
        ).clip(max=1.0)
    else:
        member = np.stack([sided.member[:, both].any(axis=1) for both in columns], axis=1)
        both = Segments("network", names, sided.starts, sided.stops, member, atlas=chosen.name)
        load = _loads(ds, both)
    load.attrs |= _about(sided)
    return annotate(xr.Dataset({"network_load": load}, coords={"network": list(names)}))


def _networks(name: str, regions: Sequence[str]) -> tuple[tuple[str, ...], list[list[int]]]:
    """Names of the networks of sided regions, and the positions of the two of each."""
    networks = tuple(dict.fromkeys(region[:-2] for region in regions))
    pairs = [[f"{network}_{side}" for side in "LR"] for network in networks]
    absent = sorted({region for pair in pairs for region in pair} - set(regions))
    odd = [region for region in regions if region[-2:] not in ("_L", "_R")]
    if odd or absent:
        raise TableError(
            f"'{name}': a network is two regions, NAME_L and NAME_R; "
            + (f"'{odd[0]}' has no side" if odd else f"'{absent[0]}' is not there")
            + ". Take lesion_load, or give the atlas such names."
        )
    position = {region: i for i, region in enumerate(regions)}
    return networks, [[position[region] for region in pair] for pair in pairs]


def _loads(ds: xr.Dataset, segments: Segments) -> xr.DataArray:
    """Lesioned fraction of every region."""
    load = over_rows(
        _load_of_rows,
        ds["lesion_mask"],
        shared=segments.within_span(),
        span=segments.span,
        dims={segments.dim: len(segments.names)},
    )
    return known_masks(ds, load)


def _load_of_rows(segments: Segments, mask: Masks) -> Floats:
    """Lesioned fraction (row, region)."""
    if segments.weights is not None and segments.order is not None:
        total = np.empty((len(mask), segments.starts.size))
        weighted_sums(
            mask, segments.order, segments.weights, segments.starts, segments.stops, total
        )
        # the sums run in one order: a lesion of all of a region gives exactly 1
        return np.asarray(np.minimum(total / segments.size, 1.0))
    if segments.label is not None:
        counts = np.empty((len(mask), segments.starts.size + 1), dtype=np.int64)
        label_counts(mask, segments.label, counts)
        return np.asarray(counts[:, :-1] / segments.size)
    counts = np.empty((len(mask), segments.starts.size), dtype=np.int64)
    segment_counts(mask, segments.starts, segments.stops, counts)
    return np.asarray((counts @ segments.member.astype(np.int64)) / segments.size)


@dataclass(frozen=True)
class _Tracts:
    """What the loads of tracts need.

    Parameters
    ----------
    probability
        (tract, voxel).
    slice_label
        (voxel,) position of the axial slice.
    area
        (tract, slice) sum of the probabilities.
    voxel_ml
        Volume of a voxel in mL.
    """

    probability: npt.NDArray[np.float32]
    slice_label: npt.NDArray[np.int32]
    area: Floats
    voxel_ml: float


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
        ``tract_load_max``; NaN for a subject without a mask, and for a tract without a voxel in
        the store; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks or tracts.
    ImageError
        When the maps of the tracts are no probabilities.

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
    check_masks(ds)
    validate(ds, "x")
    probability = tract_maps(ds)
    inside = np.flatnonzero(probability.any(axis=0))
    span = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 1)
    grid = store_grid(ds)  # in RAS order, so that slices of the third axis are the axial ones
    label = np.unravel_index(voxel_index(ds, grid), grid.shape)[2]
    n_slices = grid.shape[2]
    tracts = _Tracts(
        np.ascontiguousarray(probability[:, slice(*span)]),
        label.astype(np.int32)[slice(*span)],
        np.stack([np.bincount(label, p.astype(np.float64), n_slices) for p in probability]),
        grid.voxel_volume / 1000,
    )
    loads = over_rows(
        _tract_loads_of_rows,
        ds["lesion_mask"],
        shared=tracts,
        span=span,
        dims={"tract": len(probability), "definition": 3},
    )
    loads = known_masks(ds, loads)
    names = ("tract_load", "tract_load_weighted", "tract_load_max")
    out = xr.Dataset(
        {name: loads.isel(definition=i) for i, name in enumerate(names)},
        coords={"tract": ds["tract"]},
    )
    return annotate(out)


def tract_maps(ds: xr.Dataset) -> npt.NDArray[np.float32]:
    """Read the probability maps (tract, voxel) of the tracts, and refuse what are none."""
    as_float = "ds['tract_probability'].astype(float)"
    whole = "tract_probability" in ds and ds["tract_probability"].dtype.kind in "biu"
    way_out = f"Make it fractions: ds.assign(tract_probability={as_float})." if whole else ""
    validate(ds, "tract_probability", way_out=way_out)
    maps = ds["tract_probability"].transpose("tract", "voxel").values
    if maps.size:
        low, high = float(maps.min()), float(maps.max())
        divide = "ds.assign(tract_probability=ds['tract_probability'] / 100)"
        check_probabilities("tract_probability", low, high, divide)
    return np.ascontiguousarray(maps.clip(0, 1), dtype=np.float32)


def _tract_loads_of_rows(tracts: _Tracts, mask: Masks) -> Floats:
    """Three loads (row, tract, definition)."""
    area = tracts.area
    out = np.empty((len(mask), len(area), 3))
    lesioned = np.empty((len(mask), *area.shape))
    lesioned_slices(mask, tracts.probability, tracts.slice_label, lesioned)
    for t in range(len(area)):
        there = area[t] > 0
        if not there.any():
            out[:, t] = np.nan
            continue
        share = lesioned[:, t, there] / area[t, there]
        wide = area[t, there] >= _SMALLEST_SECTION * area[t].max()
        out[:, t, 0] = np.minimum(lesioned[:, t].sum(axis=1) / area[t].sum(), 1.0)
        out[:, t, 1] = share.sum(axis=1) * area[t].max() * tracts.voxel_ml
        out[:, t, 2] = np.minimum(share[:, wide].max(axis=1), 1.0)
    return out


def lesion_frequency(ds: xr.Dataset, *, by: str | None = None) -> xr.Dataset:
    """How often every voxel is lesioned.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.
    by
        Variable over ``subject`` of few values, such as ``"lesion_hemisphere"`` or
        ``"cohort"``: a map for each of them. People without a value are in none.

    Returns
    -------
    Dataset
        ``lesion_frequency (voxel)``, or ``(by, voxel)``: lesioned subjects over subjects with a
        mask, only those included where ``included`` is there; NaN where there is none; lazy. The
        number of subjects is ``n_masks``, over `by` if that is given, and in
        ``lesion_frequency.attrs["n"]`` for one map.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks, or no such variable.
    StatisticsError
        When `by` has values of several kinds, or none of anyone counted, or a flag is neither
        True, False nor missing.
    """
    check_masks(ds)
    counted = np.ones(ds.sizes["subject"], dtype=bool)
    for name in ("lesion_present", "included"):
        if name in ds.variables:
            counted &= flags(ds, name)
    values = np.zeros(ds.sizes["subject"], dtype=np.int64)
    groups: Any = [0]
    if by is not None:
        if by not in ds.variables or ds[by].dims != ("subject",):
            raise MissingVariableError(
                f"'{by}' is no variable over subject. Group by cohort or lesion_hemisphere, say."
            )
        column = pd.Series(ds[by].values)
        known = (column.notna() & (column != "")).to_numpy(dtype=bool)
        if (unknown := int((counted & ~known).sum())) > 0:
            logger.info("Lesion map by %s: %d people without a value left out", by, unknown)
        counted &= known
        found = _groups(by, column[counted])
        groups = found.tolist() if column.dtype.kind not in "mM" else found.to_numpy()
        values = found.get_indexer(pd.Index(column))
    group = np.where(counted, values, -1).astype(np.int64)
    n = np.bincount(group[group >= 0], minlength=len(groups))
    counts = _column_sums(ds["lesion_mask"], group, len(groups))
    people = xr.DataArray(np.where(n > 0, n, np.nan), dims="group")
    frequency = counts / people
    coords = {c: v for c, v in ds["lesion_mask"].coords.items() if v.dims == ("voxel",)}
    frequency = frequency.assign_coords(coords)
    if by is None:
        frequency = frequency.isel(group=0)
        frequency.attrs["n"] = int(n[0])
        return annotate(xr.Dataset({"lesion_frequency": frequency, "n_masks": int(n[0])}))
    out = xr.Dataset({"lesion_frequency": frequency, "n_masks": ("group", n)})
    return annotate(out.rename(group=by).assign_coords({by: groups}))


def _groups(by: str, values: pd.Series[Any]) -> pd.Index[Any]:
    """Take the values that people are grouped by, in order."""
    if values.empty:
        raise StatisticsError(
            f"Nobody counted has a value of '{by}', so there is no group to map. Give people "
            "values of it, or group by another variable."
        )
    try:
        found: pd.Index[Any] = pd.Index(values).unique().sort_values()
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise StatisticsError(
            f"'{by}' has values of several kinds ({', '.join(kinds)}), expected one. Write "
            "all of them as numbers, or all as text."
        ) from error
    return found


def _column_sums(masks: xr.DataArray, group: npt.NDArray[np.int64], n_groups: int) -> xr.DataArray:
    """Lesioned subjects (group, voxel) of every voxel."""
    rows: Any = bare(masks).transpose("subject", "voxel").variable.data
    source = row_source(rows)
    if not masks.chunks:
        counts: Any = _count_block(np.asarray(rows), group, n_groups)[0]
    elif source is not None:
        counts = _sums_of_source(source, group, n_groups)
    else:
        import dask.array as da

        whole = rows if rows.numblocks[1] == 1 else rows.rechunk({1: -1})
        blocks = da.blockwise(
            _count_block,
            "bgv",
            whole,
            "bv",
            da.from_array(group, chunks=(whole.chunks[0],)),
            "b",
            n_groups,
            None,
            new_axes={"g": n_groups},
            adjust_chunks={"b": 1},
            dtype=np.uint32,
            meta=np.empty((0, 0, 0), dtype=np.uint32),
        )
        counts = blocks.sum(axis=0, dtype=np.uint32, split_every=8)
    return xr.DataArray(counts, dims=("group", "voxel"))


def _sums_of_source(source: RowSource, group: npt.NDArray[np.int64], n_groups: int) -> Any:
    """Lesioned subjects (group, voxel) of rows that are read one by one."""
    import dask.array as da
    from dask.delayed import delayed

    bounds = task_bounds([source], least=32)
    count = delayed(_count_rows, pure=True)
    origin = delayed(source, pure=True, traverse=False)
    shape = (1, n_groups, source.n)
    blocks = [
        da.from_delayed(count(origin, start, group[start:stop], n_groups), shape, dtype=np.uint32)
        for start, stop in pairwise(bounds)
    ]
    return da.concatenate(blocks).sum(axis=0, dtype=np.uint32, split_every=8)


def _count_rows(
    source: RowSource, start: int, group: npt.NDArray[np.int64], n_groups: int
) -> npt.NDArray[np.uint32]:
    """Count (1, group, voxel) in rows that are read one by one."""
    out = np.zeros((1, n_groups, source.n), dtype=np.uint32)
    for i, row in enumerate(source.read(start, start + len(group))):
        column_counts(row[None], group[i : i + 1], out[0])
    return out


def _count_block(
    mask: Masks, group: npt.NDArray[np.int64], n_groups: int
) -> npt.NDArray[np.uint32]:
    """Count (1, group, voxel) in a block of rows."""
    out = np.zeros((1, n_groups, mask.shape[1]), dtype=np.uint32)
    rows = np.require(mask, requirements=["C", "W"])
    column_counts(rows, np.require(group, requirements=["C", "W"]), out[0])
    return out
