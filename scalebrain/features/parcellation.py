"""Statistics of images over regions: parcels, unions of them, and any other atlas."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import ConfigError, MissingVariableError
from scalebrain.features.lesion import known_masks
from scalebrain.features.parcellation_numba_fns import (
    COUNT,
    MAXIMUM,
    MEAN,
    MINIMUM,
    N_MOMENTS,
    SQUARES,
    add_encoded_moments,
    add_encoded_sums,
    add_moments,
    add_sums,
    gathered_moments,
    weighted_moments,
)
from scalebrain.features.quantiles_numba_fns import region_quantiles
from scalebrain.features.rows import over_encoded, over_rows
from scalebrain.features.segments import Segments, locate
from scalebrain.io.shards import EncodedRow
from scalebrain.variables import REGISTRY, annotate, validate

__all__ = [
    "STATISTICS",
    "Statistic",
    "check_nan",
    "checked_statistics",
    "joined_moments",
    "parcellate",
    "quantiles_of",
    "statistic_of",
    "statistics_dataset",
]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Statistic = Literal["count", "mean", "variance", "sd", "minimum", "maximum", "median"]

#: What :func:`parcellate` computes, with the level of the kernels that it needs.
STATISTICS: dict[str, int] = {
    "count": 1,
    "mean": 1,
    "variance": 2,
    "sd": 2,
    "minimum": 3,
    "maximum": 3,
    "median": 0,
}


def parcellate(
    ds: xr.Dataset,
    *,
    variable: str = "t1w",
    regions: RegionSet | Atlas | None = None,
    statistics: Sequence[Statistic] = ("mean",),
    quantiles: Sequence[float] | float = (),
    nan: Literal["omit", "propagate"] = "omit",
) -> xr.Dataset:
    """Statistics of an image over every region.

    Parameters
    ----------
    ds
        Store; :func:`~scalebrain.mask_lesions` takes lesioned voxels out of it first, if wanted.
    variable
        Image over ``(subject, voxel)``.
    regions
        Unions of the store's parcels, an atlas of labels or of probability maps on any grid,
        or None for the store's own parcels. All are of one cost but an atlas, whose voxels
        are gathered.
    statistics
        Any of ``count``, ``mean``, ``variance``, ``sd``, ``minimum``, ``maximum``, ``median``.
    quantiles
        Probabilities in [0, 1].
    nan
        ``omit``: a voxel without a value does not count, and a region without any is NaN;
        ``propagate``: one such voxel makes the region NaN.

    Returns
    -------
    Dataset
        ``{variable}_{statistic} (subject, region)``, or ``(subject, parcel)`` for parcels, in
        units of the image, and ``{variable}_quantile (subject, region, quantile)``; a subject
        without the image, or without a mask where that is the image, is NaN, and its count 0;
        lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no such image.
    ConfigError
        When a statistic, quantile or `nan` is unknown, or not defined for probability maps.
    GeometryError
        When a region has no voxel on the grid of the store.

    Notes
    -----
    Over the n voxels x of a region, summed in float64: ``mean = sum(x) / n``, ``variance =
    sum((x - mean)^2) / n``, ``sd`` its root (denominator n, as SciPy and nilearn have it);
    quantiles by linear interpolation between order statistics, the median being that of 0.5.
    With probabilities p, ``mean = sum(p x) / sum(p)`` and ``variance = sum(p (x - mean)^2) /
    sum(p)``, and ``count`` is ``sum(p)``. A union of parcels is put together from their moments
    (Chan et al. 1983, doi:10.1080/00031305.1983.10483115), without reading anything again.

    Examples
    --------
    >>> sb.parcellate(ds, regions=sb.load_atlas("yeo-7"), statistics=("mean", "sd"))
    ... # doctest: +SKIP
    """
    validate(ds, variable, "parcel")
    if ds[variable].dims != ("subject", "voxel"):
        raise MissingVariableError(
            f"'{variable}' has dims {ds[variable].dims}, expected (subject, voxel). Name an image."
        )
    check_nan(nan)
    names, q = checked_statistics(statistics, quantiles)
    segments = locate(ds, regions)
    if segments.weights is not None and (q.size or "median" in names):
        raise ConfigError(
            f"Atlas '{segments.atlas}' has probability maps: quantiles are not defined for them. "
            "Leave them out."
        )
    reduction = _Reduction(names, tuple(q.tolist()), nan == "propagate")
    dims = {segments.dim: len(segments.names), "statistic": len(names) + q.size}
    if reduction.is_one:  # to take it apart afterwards would be a task more for each
        del dims["statistic"]
    common: dict[str, Any] = {
        "shared": segments.within_span(),
        "span": segments.span,
        "dims": dims,
    }
    if reduction.at_once(segments):
        found = over_encoded(reduction.of_encoded, ds[variable], **common)
    else:
        found = over_rows(reduction.of_rows, ds[variable], **common)
    if variable == "lesion_mask":  # stored without a mask as no lesion
        without = _without_image(names, q)
        found = known_masks(ds, found, without[0] if reduction.is_one else without)
    return statistics_dataset(
        found, variable, ds[variable].attrs, segments.dim, segments.names, names, q,
        segments.atlas, segments.sha256,
    )  # fmt: skip


def _without_image(names: tuple[str, ...], q: Floats) -> xr.DataArray:
    """Statistics of a subject without the image: it has 0 voxels, and nothing else is known."""
    values = [0.0 if name == "count" else np.nan for name in names]
    return xr.DataArray([*values, *np.full(q.size, np.nan)], dims="statistic")


def check_nan(nan: str) -> None:
    """Refuse what is not known to be done about voxels without a value."""
    if nan not in ("omit", "propagate"):
        raise ConfigError(f"nan is '{nan}': expected omit or propagate.")


def checked_statistics(
    statistics: Sequence[str], quantiles: Sequence[float] | float
) -> tuple[tuple[str, ...], Floats]:
    """Names and probabilities that are known."""
    names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    unknown = [name for name in names if name not in STATISTICS]
    if unknown or len(set(names)) != len(names):
        raise ConfigError(
            f"Statistics {', '.join(names)}: expected some of {', '.join(STATISTICS)}, each once."
        )
    wanted = [quantiles] if isinstance(quantiles, Real) else list(quantiles)  # type: ignore[arg-type]
    q = np.asarray(wanted, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise ConfigError(f"Quantiles {wanted}: expected probabilities from 0 to 1.")
    if not names and not q.size:
        raise ConfigError("Nothing to compute. Name a statistic or a quantile.")
    return names, q


def statistics_dataset(
    found: xr.DataArray,
    variable: str,
    attrs: dict[str, Any],
    dim: str,
    labels: Sequence[Any] | npt.NDArray[Any],
    names: tuple[str, ...],
    q: Floats,
    atlas: str,
    sha256: str,
) -> xr.Dataset:
    """Take what was computed apart: (subject, region, statistic), or (subject, region) of one."""
    known = REGISTRY.get(variable)
    source = attrs.get("long_name", known.long_name if known else variable)
    units = attrs.get("units", known.units if known else "")
    out = xr.Dataset(coords={dim: list(labels)})
    of = {"variance": f"{units}^2" if units not in ("", "1") else units, "count": "1"}
    for i, name in enumerate(names):
        array = found.isel(statistic=i) if "statistic" in found.dims else found
        array.attrs = {"long_name": f"{source}: {name} of the {dim}"}
        if units:
            array.attrs["units"] = of.get(name, units)
        out[f"{variable}_{name}"] = array
    if q.size:
        array = found.isel(statistic=slice(len(names), None)).rename(statistic="quantile")
        array.attrs = {"long_name": f"{source}: quantiles of the {dim}"}
        if units:
            array.attrs["units"] = units
        out[f"{variable}_quantile"] = array.assign_coords(quantile=q)
    for array in out.data_vars.values():
        array.attrs["atlas"] = atlas
        if sha256:
            array.attrs["atlas_sha256"] = sha256
    return annotate(out)


@dataclass(frozen=True)
class _Reduction:
    """What is computed: statistics by name, quantiles, and whether NaN propagate."""

    names: tuple[str, ...]
    q: tuple[float, ...]
    propagate: bool

    @property
    def level(self) -> int:
        """Level of the kernels; 0 where no moment is wanted."""
        return max((STATISTICS[name] for name in self.names), default=0)

    @property
    def is_one(self) -> bool:
        """Whether it is one statistic, and no quantile."""
        return len(self.names) == 1 and not self.q

    @property
    def probabilities(self) -> Floats:
        """Quantiles that are needed, the median first."""
        return np.array([*([0.5] if "median" in self.names else []), *self.q])

    def at_once(self, segments: Segments) -> bool:
        """Whether a row is gone over once, from front to back."""
        runs = segments.order is None
        return not self.probabilities.size and (
            runs or (segments.label is not None and self.level == 1)
        )

    def of_encoded(self, segments: Segments, rows: Iterable[Rows | EncodedRow]) -> Floats:
        """Statistics of rows that may be encoded."""
        return self._columns(segments, _moments_at_once(rows, segments, self.level))

    def of_rows(self, segments: Segments, rows: Rows) -> Floats:
        """Statistics of rows."""
        rows = np.asarray(rows, dtype=np.float32)
        parts = _moments(rows, segments, self.level) if self.level else None
        found = quantiles_of(rows, segments, self.probabilities, propagate=self.propagate)
        return self._columns(segments, parts, found)

    def _columns(
        self, segments: Segments, parts: Floats | None, found: Floats | None = None
    ) -> Floats:
        """Statistics from moments of segments, and from quantiles: (row, region, statistic).

        One statistic alone is (row, region).
        """
        if parts is not None:
            joined = joined_moments(parts, segments.member, self.level)
            if self.propagate:
                short = joined[..., COUNT] < segments.size
                joined[short, MEAN:] = np.nan
        columns = []
        for name in self.names:
            if name == "median" and found is not None:
                columns.append(found[..., :1])
            else:
                columns.append(statistic_of(joined, name)[..., None])
        if found is not None:
            columns.append(found[..., found.shape[-1] - len(self.q) :])
        return columns[0][..., 0] if self.is_one else np.concatenate(columns, axis=-1)


def _moments(rows: Rows, segments: Segments, level: int) -> Floats:
    """Moments (row, segment, moment) of every segment."""
    starts, stops = segments.starts, segments.stops
    if segments.order is None:
        return _moments_at_once(rows, segments, level)
    out = np.empty((len(rows), starts.size, N_MOMENTS))
    if segments.weights is not None:
        weighted_moments(rows, segments.order, segments.weights, starts, stops, out)
    else:
        gathered_moments(rows, segments.order, starts, stops, 1.0, 0.0, level, out)
    return out


def _moments_at_once(rows: Iterable[Rows | EncodedRow], segments: Segments, level: int) -> Floats:
    """Moments (row, segment, moment) of segments that are contiguous, or of labels: means then."""
    if segments.order is None:
        out = np.stack([_moments_of_runs(row, segments, level) for row in rows])
    else:
        sums, missing = map(np.stack, zip(*(_sums(row, segments) for row in rows), strict=True))
        out = np.zeros((*sums.shape, N_MOMENTS))
        out[..., COUNT] = segments.stops - segments.starts - missing
        with np.errstate(invalid="ignore"):
            out[..., MEAN] = sums / out[..., COUNT]
    out[out[..., COUNT] == 0, MEAN:] = np.nan
    return out


def _moments_of_runs(row: Rows | EncodedRow, segments: Segments, level: int) -> Floats:
    """Moments (segment, moment) of a row whose segments are contiguous; zero where is no value."""
    out = np.zeros((segments.starts.size, N_MOMENTS))
    runs = segments.starts, segments.stops
    if not isinstance(row, EncodedRow):
        add_moments(np.asarray(row, dtype=np.float32), *runs, level, out)
    elif not add_encoded_moments(row.content, row.bounds, row.first, row.n, *runs, level, out):
        raise row.damaged()
    return out


def _sums(row: Rows | EncodedRow, segments: Segments) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Sum of every label of a row, and how many of its voxels have no value."""
    n = segments.starts.size
    sums, missing = np.zeros(n), np.zeros(n, dtype=np.int64)
    labels = segments.groups
    if not isinstance(row, EncodedRow):
        add_sums(np.asarray(row, dtype=np.float32), *labels, sums, missing)
    elif not add_encoded_sums(row.content, row.bounds, row.first, row.n, *labels, sums, missing):
        raise row.damaged()
    return sums, missing


def joined_moments(parts: Floats, member: npt.NDArray[np.bool_], level: int) -> Floats:
    """Moments of unions of segments from those of the segments.

    Parameters
    ----------
    parts
        (row, segment, moment) as the kernels fill it.
    member
        (segment, region).
    level
        Level of the kernel that filled it: what lies beyond is not looked at.

    Returns
    -------
    ndarray
        (row, region, moment).
    """
    if member.shape[0] == member.shape[1] and (member == np.eye(len(member), dtype=bool)).all():
        return parts
    weight = member.astype(np.float64)
    count = parts[..., COUNT]
    mean = np.where(count > 0, parts[..., MEAN], 0.0)
    out = np.full((len(parts), member.shape[1], N_MOMENTS), np.nan)
    total = count @ weight
    with np.errstate(invalid="ignore", divide="ignore"):
        joint = (count * mean) @ weight / total
        out[..., COUNT], out[..., MEAN] = total, joint
        if level > 1:
            squares = np.where(count > 0, parts[..., SQUARES], 0.0)
            for region in range(member.shape[1]):
                own = member[:, region]
                shift = mean[:, own] - joint[:, region, None]
                out[:, region, SQUARES] = (squares[:, own] + count[:, own] * shift**2).sum(axis=1)
    if level > 2:
        for region in range(member.shape[1]):
            own = member[:, region]
            low, high = parts[:, own, MINIMUM], parts[:, own, MAXIMUM]
            out[:, region, MINIMUM] = np.fmin.reduce(low, axis=1)
            out[:, region, MAXIMUM] = np.fmax.reduce(high, axis=1)
    out[total == 0, MEAN:] = np.nan
    return out


def statistic_of(joined: Floats, name: str) -> Floats:
    """Statistic (row, region) from moments (row, region, moment)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "count":
            return joined[..., COUNT]
        if name == "mean":
            return joined[..., MEAN]
        if name == "minimum":
            return joined[..., MINIMUM]
        if name == "maximum":
            return joined[..., MAXIMUM]
        variance = joined[..., SQUARES] / joined[..., COUNT]
        return np.asarray(np.sqrt(variance) if name == "sd" else variance)


def quantiles_of(rows: Rows, segments: Segments, q: Floats, *, propagate: bool) -> Floats:
    """Quantiles of the values of regions.

    Parameters
    ----------
    rows
        (row, voxel).
    segments
        Voxels of the regions.
    q
        (quantile,) probabilities.
    propagate
        Whether one voxel without a value makes the region NaN.

    Returns
    -------
    ndarray
        (row, region, quantile).
    """
    out = np.empty((len(rows), len(segments.names), q.size))
    if q.size:
        region, piece = map(np.ascontiguousarray, np.nonzero(segments.member.T))
        offsets = np.searchsorted(region, np.arange(len(segments.names) + 1))
        order = np.empty(0, dtype=np.uint32) if segments.order is None else segments.order
        region_quantiles(
            rows, order, segments.starts, segments.stops, piece, offsets, q, propagate, out
        )
    return out
