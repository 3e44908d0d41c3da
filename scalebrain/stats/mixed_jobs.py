"""What a mixed model fits: outcomes that share rows and a design, read block by block."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import StatisticsError
from scalebrain.io.plain import without_pandas_text
from scalebrain.stats.design import (
    ParsedFormula,
    basis_factors,
    basis_states,
    design_matrix,
    factor_levels,
    outcome_vector,
    seen_levels,
    slope_vector,
    usable_rows,
)
from scalebrain.stats.frame import subject_frame
from scalebrain.stats.mixed_basis import Basis
from scalebrain.stats.mixed_table import Table, labels_shown

__all__ = ["Job", "Source", "counts", "jobs"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Bytes of the outcomes of a block, as float64.
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Source:
    """Where the rows of a mixed model come from.

    Parameters
    ----------
    ds
        The Dataset; its outcome may be lazy.
    parsed
        The formula.
    small
        Every other variable of the formula, in memory.
    groups
        Name of the groups.
    weights
        Name of the prior weights, or None.
    dim
        Dimension to fit over.
    labels
        Labels on `dim`; one None where nothing lies over it.
    keep
        Subjects that may be used (subject).
    """

    ds: xr.Dataset
    parsed: ParsedFormula
    small: xr.Dataset
    groups: str
    weights: str | None
    dim: Hashable
    labels: list[Hashable]
    keep: BoolArray

    @classmethod
    def of(
        cls,
        ds: xr.Dataset,
        parsed: ParsedFormula,
        groups: str,
        weights: str | None,
        dim: Hashable,
        keep: BoolArray,
    ) -> Source:
        """Check and load what is small."""
        ds = without_pandas_text(ds)
        extra = [groups, *([weights] if weights else [])]
        names = list(dict.fromkeys((*parsed.names, *extra)))
        subject_frame(ds.isel(subject=slice(0)) if "subject" in ds.dims else ds, [], dim=dim)
        probe = ds.isel({dim: 0}) if dim in ds.dims and ds.sizes[dim] else ds
        probe = probe.isel(subject=slice(0))
        lazy = [name for name in names if name in probe.variables and probe[name].chunks]
        probe = probe.assign({name: xr.zeros_like(probe[name]) for name in lazy})  # reads nothing
        subject_frame(probe, names, dim=dim)
        for name in extra:
            if dim in ds[name].dims:
                raise StatisticsError(
                    f"{'groups' if name == groups else 'weights'}='{name}' must lie over 'subject' "
                    f"alone, not '{dim}'."
                )
        shared = (
            parsed.is_plain
            and dim in ds[parsed.outcome_names[0]].dims
            and all(dim not in ds[name].dims for name in (*parsed.predictor_names, *extra))
        )
        wanted = {*names, "subject", dim} - ({parsed.outcome_names[0]} if shared else set())
        if "subject" in ds.indexes:
            wanted |= set(ds.xindexes.get_all_coords("subject"))  # of several levels, perhaps
        small = ds.drop_vars([name for name in ds.variables if name not in wanted]).compute()
        labels: list[Hashable] = [None]
        if any(dim in ds[name].dims for name in parsed.names):
            labels = list(ds[dim].values) if dim in ds.coords else list(range(ds.sizes[dim]))
        return cls(ds, parsed, small, groups, weights, dim, labels, keep)

    @property
    def extra(self) -> list[str]:
        """Groups and weights."""
        return [self.groups, *([self.weights] if self.weights else [])]

    @property
    def shared(self) -> bool:
        """Whether all outcomes share one design."""
        return self.parsed.outcome_names[0] not in self.small.variables

    def where(self, labels: list[Hashable]) -> str:
        """Say what is fitted."""
        return "Mixed model" if labels == [None] else f"{self.dim} {labels_shown(labels)}"


@dataclass
class _Meaning:
    """What columns mean where any of the fits uses a row, so that they mean it in all.

    Parameters
    ----------
    levels
        Levels of factors.
    states
        What polynomials and splines were made of.
    """

    levels: dict[str, list[Any]] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Outcomes that share a design and its rows.

    Parameters
    ----------
    positions
        Positions on the dimension (k).
    where
        What is fitted, in words.
    rows
        Subjects used (n).
    basis
        The design.
    slope
        Variable of the random slope (n), or None.
    outcomes
        Outcomes (n, k).
    """

    positions: IntArray
    where: str
    rows: IntArray
    basis: Basis
    slope: FloatArray | None
    outcomes: FloatArray


def jobs(source: Source, table: Table, failures: list[str]) -> Iterator[Job]:
    """Yield what there is to fit, with the rows that it can use.

    Parameters
    ----------
    source
        Where rows come from.
    table
        Takes the counts of rows.
    failures
        Takes the reasons why something cannot be fitted.

    Yields
    ------
    Job
        Outcomes of one design; of a lazy outcome one block at a time is in memory.
    """
    if source.shared:
        yield from _shared(source, table, failures)
        return
    parsed = source.parsed
    names = list(dict.fromkeys((*parsed.names, *source.extra)))
    meaning = _meaning(source, names)
    for position, label in enumerate(source.labels):
        where = source.where([label])
        frame = subject_frame(source.small, names, at=label, dim=source.dim)
        try:
            used = _usable(source, frame, table)
            table.dropped[position] = ~used
            table.per_label["n"][position] = used.sum()
            part = frame[used]
            outcome = outcome_vector(parsed, part)[:, None] if used.any() else np.empty((0, 1))
            yield _job(source, table, np.array([position]), used, part, outcome, meaning)
        except StatisticsError as error:
            failures.append(_located(error, where))


def _shared(source: Source, table: Table, failures: list[str]) -> Iterator[Job]:
    parsed, dim = source.parsed, source.dim
    name = parsed.outcome_names[0]
    outcome = source.ds[name].transpose("subject", dim)
    if outcome.dtype.kind not in "biuf":
        raise StatisticsError(
            f"Formula '{parsed.text}': the outcome must be numbers, got {outcome.dtype}."
        )
    names = dict.fromkeys((*parsed.predictor_names, *source.extra))
    frame = subject_frame(source.small, names, dim=dim)
    common = _usable(source, frame, table)
    if 8 * outcome.size <= _BLOCK_BYTES:
        outcome = outcome.compute()  # once, although the meaning of columns may need it too
    meaning = _shared_meaning(source, frame, outcome, common)
    for block in _blocks(outcome):
        y = np.asarray(outcome[:, block].values, dtype=np.float64)
        table.dropped[block] = ~common
        bad = ~np.isfinite(y)
        bad &= source.keep[:, None]
        same = {b"": list(range(y.shape[1]))}
        if bad.any():
            table.note({f"{name} missing or infinite": np.asarray(bad.any(axis=1))})
            table.dropped[block] |= bad.T
            same = {}
            for column, one in enumerate(np.packbits(bad, axis=0).T):
                same.setdefault(one.tobytes(), []).append(column)
        for columns in same.values():
            used = common & ~bad[:, columns[0]]
            positions = np.array(columns) + block.start
            table.per_label["n"][positions] = used.sum()
            values = y if used.all() else y[used]
            values = values if len(columns) == y.shape[1] else values[:, columns]
            try:
                yield _job(source, table, positions, used, frame[used], values, meaning)
            except StatisticsError as error:
                where = source.where([source.labels[k] for k in positions])
                failures.append(_located(error, where))


def _meaning(source: Source, names: list[str]) -> _Meaning:
    """Levels and bases of the rows that any of the fits uses, so that columns mean the same."""
    out = _Meaning()
    parsed, small = source.parsed, source.small
    has_factors, bases = _has_factors(parsed, small), basis_factors(parsed)
    if len(source.labels) < 2 or not (has_factors or bases):
        return out
    parts: dict[str, list[pd.DataFrame]] = {factor: [] for factor in bases}
    seen = np.zeros_like(source.keep)
    frame = pd.DataFrame()
    for label in source.labels:
        frame = subject_frame(small, names, at=label, dim=source.dim)
        kept = frame[source.keep]
        try:
            rows, _ = usable_rows(parsed, kept, extra=source.extra)
            here = factor_levels(parsed, seen_levels(kept[rows])) if rows.any() else {}
        except StatisticsError:
            continue  # the fit will say why
        for name, own in here.items():
            out.levels[name] = _ordered(name, {*out.levels.get(name, []), *own}, frame)
        seen |= _expand(rows, source.keep)
        for factor, own_names in bases.items():
            if any(source.dim in small[name].dims for name in own_names):
                parts[factor].append(kept.loc[rows, list(own_names)])
    for factor, more in parts.items():
        pool = pd.concat(more, ignore_index=True) if more else frame[seen]
        out.states |= _states(parsed, factor, pool)
    return out


def _ordered(name: str, levels: set[Any], frame: pd.DataFrame) -> list[Any]:
    """Levels in the order of their categories, or sorted where they have none."""
    for column, values in frame.items():
        if isinstance(values.dtype, pd.CategoricalDtype) and str(column) in name:
            known = [level for level in values.cat.categories if level in levels]
            if len(known) == len(levels):
                return known
    return sorted(levels)


def _states(parsed: ParsedFormula, factor: str, frame: pd.DataFrame) -> dict[str, Any]:
    if not len(frame):
        return {}
    try:
        return basis_states(parsed, factor, frame)
    except StatisticsError:
        return {}  # the fit will say why


def _shared_meaning(
    source: Source, frame: pd.DataFrame, outcome: xr.DataArray, common: BoolArray
) -> _Meaning:
    """Do the same for outcomes that share predictors; reads no more blocks than it has to."""
    out = _Meaning()
    parsed = source.parsed
    if len(source.labels) < 2 or not common.any():
        return out
    bases = basis_factors(parsed)
    whole: dict[str, list[Any]] = {}
    try:
        if _has_factors(parsed, source.small):
            whole = factor_levels(parsed, seen_levels(frame[common]))
        if all(len(own) <= 2 for own in whole.values()):
            whole = {}  # a level less leaves no effect, which the fit says
        if not whole and not bases:
            return out
        seen = np.zeros_like(common)
        for block in _blocks(outcome):
            y = np.asarray(outcome[:, block].values, dtype=np.float64)
            more = common & ~seen & np.isfinite(y).any(axis=1)
            if more.any():
                seen |= more
                out.levels = factor_levels(parsed, seen_levels(frame[seen])) if whole else {}
            if out.levels == whole and (not bases or seen.sum() == common.sum()):
                break
    except StatisticsError:
        return _Meaning()  # the fit will say why
    for factor in bases:
        out.states |= _states(parsed, factor, frame[seen])
    return out


def _has_factors(parsed: ParsedFormula, small: xr.Dataset) -> bool:
    """Whether a predictor may have levels."""
    text = any(small[name].dtype.kind not in "iuf" for name in parsed.predictor_names)
    return text or "C(" in parsed.text


def _blocks(outcome: xr.DataArray) -> Iterator[slice]:
    """Blocks of columns of bounded size, of whole chunks where they are small enough."""
    n, k = outcome.shape
    width = max(1, _BLOCK_BYTES // (8 * max(n, 1)))
    chunk = max(outcome.chunks[1]) if outcome.chunks is not None else 1
    if chunk < width:
        width = width // chunk * chunk
    for low in range(0, k, width):
        yield slice(low, min(low + width, k))


def _usable(source: Source, frame: pd.DataFrame, table: Table) -> BoolArray:
    """Rows that can be used; the reasons against the others are noted."""
    keep = source.keep
    rows, reasons = usable_rows(source.parsed, frame[keep], extra=source.extra)
    if source.weights:
        if frame[source.weights].dtype.kind not in "biuf":
            present = frame[source.weights].dropna()
            example = repr(present.iloc[0]) if len(present) else "nothing"
            raise StatisticsError(
                f"weights='{source.weights}' must be numbers, got {example} "
                f"({frame[source.weights].dtype}). Make numbers of it, or leave weights out."
            )
        bad = ~(frame[source.weights][keep].to_numpy(dtype=np.float64) > 0)
        bad &= ~reasons.get(f"{source.weights} missing or infinite", np.zeros_like(bad))
        if bad.any():
            raise StatisticsError(
                f"weights='{source.weights}': {int(bad.sum())} of {bad.size} are zero or "
                "negative. Give positive weights, or exclude these subjects."
            )
    table.note({name: _expand(bad, keep) for name, bad in reasons.items()})
    return _expand(rows, keep)


def _job(
    source: Source,
    table: Table,
    positions: IntArray,
    used: BoolArray,
    part: pd.DataFrame,
    outcomes: FloatArray,
    meaning: _Meaning,
) -> Job:
    parsed = source.parsed
    where = source.where([source.labels[k] for k in positions])
    if not used.any():
        raise StatisticsError(
            f"{where}: formula '{parsed.text}' leaves none of {len(used)} rows. "
            f"Dropped: {counts(table.reasons)}. Check these variables, or leave them out."
        )
    part = seen_levels(part)
    codes, _ = pd.factorize(part[source.groups], sort=True)
    weights = part[source.weights].to_numpy(dtype=np.float64) if source.weights else None
    basis = Basis.of(
        design_matrix(parsed, part, levels=meaning.levels, states=meaning.states),
        codes.astype(np.int64),
        weights=weights,
        where=where,
        groups=source.groups,
    )
    slope = slope_vector(parsed, part) if parsed.slope_text else None
    return Job(positions, where, np.flatnonzero(used), basis, slope, outcomes)


def _located(error: StatisticsError, where: str) -> str:
    text = str(error)
    return text if text.startswith(where) else f"{where}: {text}"


def _expand(rows: BoolArray, keep: BoolArray) -> BoolArray:
    out = np.zeros(len(keep), dtype=np.bool_)
    out[keep] = rows
    return out


def counts(reasons: dict[str, BoolArray]) -> str:
    """Rows dropped, by reason."""
    return "; ".join(f"{reason}: {int(rows.sum())}" for reason, rows in reasons.items()) or "none"
