"""Linear mixed models with a random intercept, one per region."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
import scipy.stats
import xarray as xr

from scalebrain.errors import StatisticsError, check_all
from scalebrain.stats.design import (
    ParsedFormula,
    design_matrix,
    outcome_vector,
    parse_formula,
    usable_rows,
)
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.mixed_numba_fns import random_intercept_reml

__all__ = ["mixed_model"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_PER_TERM = {
    "estimate": "Fixed effect, in units of the outcome per unit of the term",
    "se": "Standard error of the estimate",
    "df": "Satterthwaite degrees of freedom",
    "ci_low": "Lower end of the confidence interval",
    "ci_high": "Upper end of the confidence interval",
    "p": "Two-sided p value of the t test, not corrected",
    "q": "Benjamini-Hochberg q value over the family, within the term",
}
_PER_REGION = {
    "n": "Subjects used",
    "n_dropped": "Subjects not used",
    "n_groups": "Groups among the subjects used",
    "group_variance": "Variance of the random intercepts",
    "residual_variance": "Residual variance",
    "boundary": "The variance of the random intercepts is estimated as zero",
}


def mixed_model(
    ds: xr.Dataset,
    formula: str,
    *,
    groups: Hashable = "cohort",
    family: Sequence[Hashable] | None = None,
    dim: Hashable = "region",
    included: Hashable | None = "included",
    confidence: float = 0.95,
    errors: Literal["raise", "record"] = "raise",
) -> xr.Dataset:
    """Fit one linear mixed model per region, with a random intercept by group.

    Parameters
    ----------
    ds
        Dataset with ``subject`` and, for region-wise variables, `dim`. Only the variables
        that the formula names are loaded.
    formula
        Wilkinson formula, e.g.
        ``"brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex"``. It may name any
        variable or coordinate whose dimensions are among ``subject`` and `dim`. A predictor
        over `dim` gives each region its own design.
    groups
        Variable over ``subject`` whose values share an intercept.
    family
        Labels on `dim` that make up the family of the Benjamini-Hochberg procedure;
        default all of them. ``q`` is missing outside it. Every term, the intercept too, is
        a family of its own.
    dim
        Dimension to fit over: ``region``, or ``node`` for a mass-univariate map.
    included
        Bool variable over ``subject``; rows where it is False are dropped like rows with
        missing values. None uses every row; ignored where `ds` has no such variable.
    confidence
        Level of the confidence interval.
    errors
        What to do if a region cannot be fitted. ``"raise"``: gather all failures in one
        error. ``"record"``: missing values, and the reasons in ``attrs["failures"]``.

    Returns
    -------
    Dataset
        Over ``(dim, term)``: ``estimate``, ``se``, ``df``, ``ci_low``, ``ci_high``, ``p``,
        ``q``. Over ``dim``: ``n``, ``n_dropped``, ``n_groups``, ``group_variance``,
        ``residual_variance``, ``boundary``. Over ``(dim, subject)``: ``dropped``. If no
        variable of the formula lies over `dim`, one model is fitted and the results have
        no dimension `dim` (then ``q`` equals ``p``). ``attrs["rows_dropped"]`` counts the
        dropped rows by reason.

    Raises
    ------
    MissingVariableError
        If the formula names an unknown variable.
    StatisticsError
        If the formula is malformed, or a region has a rank-deficient design (the columns
        are named), too few rows, fewer than two groups, or an outcome without residual
        variation.

    Notes
    -----
    Rows with a missing or infinite value in any variable, or in any function of one (such
    as ``log10`` of zero), are dropped, counted and flagged in ``dropped``; ``scale``
    standardizes on the rows that remain.

    Restricted maximum likelihood is profiled to one parameter, the ratio of the two
    variances, and searched over a grid and then to machine precision, on orthonormalized
    columns. Where the ratio is zero the fit equals ordinary least squares and
    ``boundary`` is True; this is recorded and logged, not warned about. Degrees of freedom
    are Satterthwaite's, from the gradient of each coefficient's variance and the inverse of
    the observed information of the two variances, as in lmerTest.

    References
    ----------
    Bates et al., lme4, DOI 10.18637/jss.v067.i01. Kuznetsova et al., lmerTest,
    DOI 10.18637/jss.v082.i13. Benjamini and Hochberg, DOI 10.1111/j.2517-6161.1995.tb02031.x.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ds = xr.Dataset(
    ...     {"brain_pad": (("subject", "region"), rng.normal(size=(40, 2)))},
    ...     coords={
    ...         "region": ["SMN_L", "SMN_R"],
    ...         "age": ("subject", rng.uniform(45, 80, 40)),
    ...         "cohort": ("subject", np.repeat(["a", "b", "c", "d"], 10)),
    ...     },
    ... )
    >>> result = mixed_model(ds, "brain_pad ~ age")
    >>> dict(result["estimate"].sizes)
    {'region': 2, 'term': 2}
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    parsed = parse_formula(formula, ds, groups=groups, dim=dim)
    wanted = list(dict.fromkeys((*parsed.names, str(groups))))
    small = _small(ds, wanted, dim)
    keep = eligible_subjects(ds, group=None, included=included)
    by_region = any(dim in small[name].dims for name in parsed.names)
    if dim in small[str(groups)].dims:
        raise StatisticsError(f"groups='{groups}' must lie over 'subject' alone, not '{dim}'.")
    labels: list[Hashable] = [None]
    if by_region:
        labels = list(small[dim].values) if dim in small.coords else list(range(small.sizes[dim]))
    family_mask = _family_mask(labels, family)
    failures: list[str] = []
    table = _Table(len(labels), ds.sizes["subject"])
    if not keep.all():
        table.reasons[f"{included} is False, or the age is extrapolated"] = ~keep
    for job in _jobs(parsed, small, str(groups), keep, labels, dim, table, failures):
        job.fit(table, failures, confidence)
    if errors == "raise":
        check_all(failures, StatisticsError, f"Mixed model '{formula}' cannot be fitted")
    return _assemble(table, small, parsed, labels, family_mask, failures, dim, groups, confidence)


@dataclass
class _Table:
    """Results, filled fit by fit."""

    n_labels: int
    n_subjects: int
    terms: list[str] = field(default_factory=list)
    cells: dict[str, dict[tuple[int, str], float]] = field(
        default_factory=lambda: {name: {} for name in _PER_TERM}
    )
    reasons: dict[str, BoolArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Allocate the arrays over regions."""
        size = self.n_labels
        self.n = np.zeros(size, dtype=np.int64)
        self.n_groups = np.zeros(size, dtype=np.int64)
        self.group_variance = np.full(size, np.nan)
        self.residual_variance = np.full(size, np.nan)
        self.boundary = np.zeros(size, dtype=np.bool_)
        self.dropped = np.ones((size, self.n_subjects), dtype=np.bool_)

    def note(self, reasons: dict[str, BoolArray]) -> None:
        """Add reasons for dropping rows, over all regions."""
        for reason, rows in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, np.zeros_like(rows)) | rows


@dataclass
class _Job:
    """Outcomes that share a design and its rows."""

    positions: list[int]
    where: str
    design: pd.DataFrame
    outcomes: FloatArray
    codes: npt.NDArray[np.int64]
    outcome_name: str
    groups: str

    def fit(self, table: _Table, failures: list[str], confidence: float) -> None:
        """Fit every outcome and write the results, or say why not."""
        try:
            basis = _Basis.of(self.design, self.where)
            sums = _group_sums(basis, self.codes, self.groups, self.where)
        except StatisticsError as error:
            failures.append(str(error))
            return
        n, p = basis.q.shape
        dof = n - p
        y = self.outcomes
        first = basis.q.T @ y
        residual = y - basis.q @ first
        again = basis.q.T @ residual
        first += again
        residual -= basis.q @ again
        norm = np.sqrt((residual**2).sum(axis=0))
        size = np.sqrt((y**2).sum(axis=0))
        exact = norm <= 1e-10 * np.maximum(size, np.finfo(np.float64).tiny)
        unit = np.ascontiguousarray((residual / np.where(exact, 1.0, norm)).T)
        tsum = np.ascontiguousarray(_sum_by(unit.T, self.codes).T)
        inner = unit - (tsum / sums.size)[:, self.codes]
        k = len(self.positions)
        shift, variance, df = np.empty((k, p)), np.empty((k, p)), np.empty((k, p))
        ratio, rss = np.empty(k), np.empty(k)
        random_intercept_reml(
            sums.size,
            sums.qsum,
            sums.within,
            tsum,
            np.ascontiguousarray(inner @ sums.inner),
            np.ascontiguousarray((inner**2).sum(axis=1)),
            float(dof),
            basis.back,
            shift,
            variance,
            df,
            ratio,
            rss,
        )
        estimate = (basis.back @ first).T + norm[:, None] * shift
        residual_variance = rss / dof * norm**2
        with np.errstate(invalid="ignore"):  # no variance, no standard error: said below
            se = np.sqrt(variance * residual_variance[:, None])
        t = estimate / se
        half = scipy.stats.t.ppf(0.5 + confidence / 2, df) * se
        columns = {
            "estimate": estimate,
            "se": se,
            "df": df,
            "ci_low": estimate - half,
            "ci_high": estimate + half,
            "p": 2 * scipy.stats.t.sf(np.abs(t), df),
        }
        for name in self.design.columns:
            if name not in table.terms:
                table.terms.append(name)
        for row, position in enumerate(self.positions):
            where = self.where.split(",")[0] if k == 1 else self.where
            if exact[row]:
                failures.append(
                    f"{where}: outcome '{self.outcome_name}' has no variation that the "
                    "predictors leave over (it is constant or an exact combination of them). "
                    "Leave the region or a predictor out."
                )
                continue
            if not np.isfinite(ratio[row]):
                failures.append(
                    f"{where}: outcome '{self.outcome_name}' does not vary within "
                    f"'{self.groups}', so a random intercept explains it in full. "
                    "Choose other groups."
                )
                continue
            table.group_variance[position] = ratio[row] * residual_variance[row]
            table.residual_variance[position] = residual_variance[row]
            table.boundary[position] = ratio[row] == 0
            table.n_groups[position] = len(sums.size)
            for variable, values in columns.items():
                for column, term in enumerate(self.design.columns):
                    table.cells[variable][position, term] = float(values[row, column])


@dataclass(frozen=True)
class _Basis:
    """Orthonormal columns and the way back to the original coefficients."""

    q: FloatArray
    back: FloatArray

    @classmethod
    def of(cls, design: pd.DataFrame, where: str) -> _Basis:
        names = list(design.columns)
        x = design.to_numpy(dtype=np.float64)
        n, p = x.shape
        if n <= p:
            raise StatisticsError(
                f"{where}: {n} usable rows for {p} coefficients ({', '.join(names)}); more "
                "rows than coefficients are needed. Use fewer terms or check the missing values."
            )
        change = np.eye(p)
        if "Intercept" in names:
            k = names.index("Intercept")
            change[k] -= x.mean(axis=0)
            change[k, k] = 1.0
        centered = x @ change
        if "Intercept" in names:  # once more: the mean of a large offset is itself rounded
            again = centered.mean(axis=0)
            again[k] = 0.0
            centered = centered - again
            change[k] -= again
        norm = np.sqrt((centered**2).sum(axis=0))
        raw = np.sqrt((x**2).sum(axis=0))
        flat = [name for name, a, b in zip(names, norm, raw, strict=True) if not a > 1e-10 * b]
        if flat:
            raise StatisticsError(
                f"{where}: the design is rank deficient: {', '.join(map(repr, flat))} has the "
                f"same value in all {n} rows used. Leave it out, or leave the region out."
            )
        scaled = centered / norm
        _, r, pivot = scipy.linalg.qr(scaled, mode="economic", pivoting=True)
        rank = int((np.abs(np.diag(r)) > 1e-8 * abs(r[0, 0])).sum())
        if rank < p:
            parts = scipy.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:])
            told = []
            for column, weights in zip(pivot[rank:], parts.T, strict=True):
                others = sorted(pivot[:rank][np.abs(weights) > 1e-6])
                told.append(f"'{names[column]}' = combination of {[names[o] for o in others]}")
            raise StatisticsError(
                f"{where}: the design is rank deficient: {'; '.join(told)}. "
                "Leave one of these terms out."
            )
        q, upper = np.linalg.qr(scaled)
        back = scipy.linalg.solve_triangular(upper, (change / norm).T, trans="T").T
        return cls(np.ascontiguousarray(q), np.ascontiguousarray(back))


@dataclass(frozen=True)
class _Sums:
    size: FloatArray
    qsum: FloatArray
    inner: FloatArray
    within: FloatArray


def _group_sums(basis: _Basis, codes: npt.NDArray[np.int64], groups: str, where: str) -> _Sums:
    size = np.bincount(codes).astype(np.float64)
    if len(size) < 2:
        raise StatisticsError(
            f"{where}: all {len(codes)} usable rows belong to one '{groups}', so its variance "
            "cannot be estimated. Pass a `groups` with two or more values, or fit ordinary "
            "least squares."
        )
    if len(size) == len(codes):
        raise StatisticsError(
            f"{where}: each of the {len(codes)} usable rows is a '{groups}' of its own, so its "
            "variance cannot be told from the residual's. Pass a coarser `groups`."
        )
    qsum = _sum_by(basis.q, codes)
    inner = basis.q - (qsum / size[:, None])[codes]
    return _Sums(size, np.ascontiguousarray(qsum), inner, np.ascontiguousarray(inner.T @ inner))


def _sum_by(values: FloatArray, codes: npt.NDArray[np.int64]) -> FloatArray:
    out = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(out, codes, values)
    return out


def _small(ds: xr.Dataset, names: Iterable[str], dim: Hashable) -> xr.Dataset:
    """Variables of the formula, in memory; the checks are those of subject_frame."""
    subject_frame(ds.isel({d: slice(0) for d in ("subject",) if d in ds.dims}), [], dim=dim)
    wanted = list(names)
    probe = ds.isel({dim: 0}) if dim in ds.dims and ds.sizes[dim] else ds
    subject_frame(probe.isel(subject=slice(0)), wanted, dim=dim)
    keep = {*wanted, "subject", dim}
    return ds.drop_vars([name for name in ds.variables if name not in keep]).compute()


def _family_mask(labels: list[Hashable], family: Sequence[Hashable] | None) -> BoolArray:
    if family is None:
        return np.ones(len(labels), dtype=np.bool_)
    absent = [str(label) for label in family if label not in labels]
    if absent:
        raise StatisticsError(
            f"family: {', '.join(absent)} is not among {', '.join(map(str, labels[:20]))}."
        )
    return np.array([label in family for label in labels], dtype=np.bool_)


def _jobs(
    parsed: ParsedFormula,
    small: xr.Dataset,
    groups: str,
    keep: BoolArray,
    labels: list[Hashable],
    dim: Hashable,
    table: _Table,
    failures: list[str],
) -> Iterator[_Job]:
    shared = (
        labels != [None]
        and parsed.is_plain
        and all(dim not in small[name].dims for name in (*parsed.predictor_names, groups))
    )
    if shared:
        yield from _shared_jobs(parsed, small, groups, keep, labels, dim, table, failures)
        return
    names = list(dict.fromkeys((*parsed.names, groups)))
    for position, label in enumerate(labels):
        where = _where(dim, [label])
        frame = subject_frame(small, names, at=label, dim=dim)
        try:
            rows, reasons = usable_rows(parsed, frame[keep], extra=[groups])
            used = _expand(rows, keep)
            table.note({name: _expand(bad, keep) for name, bad in reasons.items()})
            table.dropped[position] = ~used
            table.n[position] = used.sum()
            _check_any(used, table, parsed, where)
            part = frame[used]
            yield _Job(
                [position],
                where,
                design_matrix(parsed, part),
                outcome_vector(parsed, part)[:, None],
                _codes(part[groups]),
                str(next(iter(parsed.outcome))),
                groups,
            )
        except StatisticsError as error:
            failures.append(_located(error, where))


def _shared_jobs(
    parsed: ParsedFormula,
    small: xr.Dataset,
    groups: str,
    keep: BoolArray,
    labels: list[Hashable],
    dim: Hashable,
    table: _Table,
    failures: list[str],
) -> Iterator[_Job]:
    outcome = parsed.outcome_names[0]
    if small[outcome].dtype.kind not in "biuf":
        raise StatisticsError(
            f"Formula '{parsed.text}': the outcome must be numbers, got {small[outcome].dtype}."
        )
    frame = subject_frame(small, dict.fromkeys((*parsed.predictor_names, groups)), dim=dim)
    rows, reasons = usable_rows(parsed, frame[keep], extra=[groups])
    table.note({name: _expand(bad, keep) for name, bad in reasons.items()})
    y = small[outcome].transpose("subject", dim).values.astype(np.float64)
    bad = ~np.isfinite(y) & keep[:, None]
    if bad.any():
        table.note({f"{outcome} missing or infinite": np.asarray(bad.any(axis=1))})
    usable = _expand(rows, keep)[:, None] & ~bad
    table.dropped[:] = ~usable.T
    table.n[:] = usable.sum(axis=0)
    same: dict[bytes, list[int]] = {}
    for position in range(len(labels)):
        same.setdefault(usable[:, position].tobytes(), []).append(position)
    for positions in same.values():
        used = usable[:, positions[0]]
        where = _where(dim, [labels[position] for position in positions])
        part = frame[used]
        try:
            _check_any(used, table, parsed, where)
            design = design_matrix(parsed, part)
        except StatisticsError as error:
            failures.append(_located(error, where))
            continue
        values = np.ascontiguousarray(y[used][:, positions])
        yield _Job(positions, where, design, values, _codes(part[groups]), outcome, groups)


def _check_any(used: BoolArray, table: _Table, parsed: ParsedFormula, where: str) -> None:
    if not used.any():
        raise StatisticsError(
            f"{where}: formula '{parsed.text}' leaves none of {len(used)} rows. "
            f"Dropped: {_counts(table.reasons)}. Check these variables, or leave them out."
        )


def _located(error: StatisticsError, where: str) -> str:
    text = str(error)
    return text if text.startswith(where) else f"{where}: {text}"


def _where(dim: Hashable, labels: Sequence[Hashable]) -> str:
    if labels == [None]:
        return "Mixed model"
    shown = ", ".join(map(str, labels[:4]))
    return f"{dim} {shown}" + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _expand(rows: BoolArray, keep: BoolArray) -> BoolArray:
    out = np.zeros(len(keep), dtype=np.bool_)
    out[keep] = rows
    return out


def _codes(column: pd.Series[Any]) -> npt.NDArray[np.int64]:
    codes, _ = pd.factorize(column, sort=True)
    return codes.astype(np.int64)


def _counts(reasons: dict[str, BoolArray]) -> str:
    return "; ".join(f"{reason}: {int(rows.sum())}" for reason, rows in reasons.items()) or "none"


def _assemble(
    table: _Table,
    small: xr.Dataset,
    parsed: ParsedFormula,
    labels: list[Hashable],
    family: BoolArray,
    failures: list[str],
    dim: Hashable,
    groups: Hashable,
    confidence: float,
) -> xr.Dataset:
    terms = table.terms
    arrays = {name: np.full((len(labels), len(terms)), np.nan) for name in _PER_TERM}
    for name, cells in table.cells.items():
        for (position, term), value in cells.items():
            arrays[name][position, terms.index(term)] = value
    for column in range(len(terms)):
        p = arrays["p"][:, column]
        tested = family & np.isfinite(p)
        if tested.any():
            arrays["q"][tested, column] = scipy.stats.false_discovery_control(p[tested])
    out = xr.Dataset(coords={"term": ("term", np.array(terms, dtype=object))})
    for name, long_name in _PER_TERM.items():
        out[name] = ((dim, "term"), arrays[name], {"long_name": long_name})
    per_region = {
        "n": table.n,
        "n_dropped": table.dropped.sum(axis=1),
        "n_groups": table.n_groups,
        "group_variance": table.group_variance,
        "residual_variance": table.residual_variance,
        "boundary": table.boundary,
    }
    for name, values in per_region.items():
        out[name] = ((dim,), values, {"long_name": _PER_REGION[name]})
    out["dropped"] = ((dim, "subject"), table.dropped, {"long_name": "The subject was not used"})
    if "subject" in small.coords:
        out = out.assign_coords(subject=small["subject"].values)
    if labels == [None]:
        out = out.isel({dim: 0})
    elif dim in small.coords:
        out = out.assign_coords({dim: small[dim].values})
    all_dropped = int(table.dropped.all(axis=0).sum())
    some = int(table.dropped.any(axis=0).sum()) - all_dropped
    told = f"{all_dropped} of {table.n_subjects} subjects in every {dim}"
    told += f", {some} more in some" if some else ""
    told += f" ({_counts(table.reasons)})" if table.reasons else ""
    out.attrs = {
        "formula": parsed.text,
        "groups": str(groups),
        "method": "random intercept, REML, Satterthwaite degrees of freedom",
        "reml": 1,
        "confidence": confidence,
        "family_size": int(family.sum()),
        "rows_dropped": told,
    }
    if failures:
        out.attrs["failures"] = list(failures)
    if all_dropped or some:
        unusable = any(reason.endswith("not finite") for reason in table.reasons)
        logger.log(
            logging.WARNING if unusable else logging.INFO,
            "Mixed model '%s' dropped %s",
            parsed.text,
            told,
        )
    if table.boundary.any():
        at = [str(label) for label, flag in zip(labels, table.boundary, strict=True) if flag]
        logger.info(
            "Mixed model '%s': no variance between '%s' in %d fits (%s); they equal ordinary "
            "least squares",
            parsed.text,
            groups,
            len(at),
            ", ".join(at),
        )
    return out
