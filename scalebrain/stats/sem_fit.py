"""One structural equation model on one table: semopy, polished, with its fit indices.

semopy sets the model up and finds a first solution. Its solver stops early (5e-3 from
lavaan), so Fisher scoring carries the solution on to the optimum. Standard errors, indices
and standardized values are computed here: semopy prints a CFI above one, has neither SRMR,
nor the interval of the RMSEA, nor ``:=``, and its likelihood with missing values has no means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalebrain.errors import StatisticsError
from scalebrain.stats.sem_engine import Engine, Moments, Pattern, PatternSums
from scalebrain.stats.sem_indices import fit_indices, saturated_moments
from scalebrain.stats.sem_model import SemModel

__all__ = ["Hint", "SemFit", "all_names", "fit_sem", "semopy_text", "with_defined"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Missing = Literal["listwise", "fiml"]


@dataclass(frozen=True)
class Hint:
    """What freeing one parameter would do, by the score test."""

    name: str
    index: float
    change: float
    std_change: float


@dataclass(frozen=True, eq=False)
class SemFit:
    """Estimates and fit indices of one model.

    Parameters
    ----------
    engine
        The model on the scale of the fit, and its parameters.
    sums
        The data, by pattern of missing values and by group.
    theta
        (free,) estimates on that scale, to start another fit from.
    covariance
        (free, free) of their sampling errors.
    estimate, se, standardized, std_se
        By name of a parameter, variances and defined parameters among them; a standard
        error is missing where the parameter is fixed.
    r_squared
        By name of an outcome.
    indices
        As :func:`~scalebrain.stats.sem_indices.fit_indices` has them.
    improper
        Variances below zero and correlations beyond one, in words.
    """

    engine: Engine
    sums: PatternSums
    theta: FloatArray
    covariance: FloatArray
    estimate: Mapping[str, float]
    se: Mapping[str, float]
    standardized: Mapping[str, float]
    std_se: Mapping[str, float]
    r_squared: Mapping[str, float]
    indices: Mapping[str, float]
    improper: Sequence[str]

    @property
    def model(self) -> SemModel:
        """The model that was fitted."""
        return self.engine.model

    def hints(self) -> list[Hint]:
        """Modification indices of the parameters that the model leaves out, largest first."""
        if not self.indices["df"]:
            return []
        return _hints(self)


def fit_sem(
    model: SemModel,
    data: pd.DataFrame,
    *,
    missing: Missing = "listwise",
    codes: IntArray | None = None,
) -> SemFit:
    """Fit a model by maximum likelihood.

    Parameters
    ----------
    model
        The model.
    data
        One row a person, one column per observed variable.
    missing
        ``"listwise"`` asks for complete rows. ``"fiml"`` uses what each row has, with means.
    codes
        (person,) groups, by which a bootstrap resamples; each row its own if not given.

    Returns
    -------
    SemFit
        Estimates, standard errors and indices.

    Raises
    ------
    StatisticsError
        If rows are too few or not complete, a variable is constant or a combination of
        others, the model is not identified or the fit does not converge.

    Notes
    -----
    With ``"fiml"`` an exogenous variable that somebody lacks is not taken as given: its
    mean, variance and covariances are estimated (lavaan's ``fixed.x=FALSE``). Standard
    errors are of the expected information, with ``"fiml"`` of the observed one.
    """
    table = data[list(model.observed)].astype(np.float64)
    if missing == "fiml":
        gaps = tuple(v for v in model.exogenous if table[v].isna().any())
        model = model if model.has_means else model.with_means()
        model = model.with_random(model.exogenous if gaps else ())
        kept = table.notna().any(axis=1).to_numpy()
        table, codes = table[kept], None if codes is None else codes[kept]
    _check_table(table)
    unit = table.std(ddof=0)
    engine = Engine(model, {str(k): float(v) for k, v in unit.items()})
    groups = np.arange(len(table)) if codes is None else codes
    sums = PatternSums.of(table.to_numpy(), groups.astype(np.int64))
    patterns = engine.scaled(sums.patterns())
    moments = saturated_moments(patterns, engine.n_observed)
    given = engine.given(patterns)
    theta = _solution(engine, patterns, given, moments, len(table))
    indices = fit_indices(engine, theta, patterns, given, moments)
    if missing == "fiml":
        information = engine.observed_information(theta, patterns, given)
    else:
        _, information = engine.score(theta, patterns, given)
    engine.check_identified(information)
    return _result(engine, sums, theta, given, np.asarray(np.linalg.inv(information)), indices)


def _solution(
    engine: Engine,
    patterns: Sequence[Pattern],
    given: Moments,
    moments: Moments,
    n: int,
) -> FloatArray:
    """Start from semopy's solution, else from plain values, and go on to the optimum."""
    plain = _plain_start(engine, moments)
    first = _semopy_start(engine, moments, plain, n)
    for start in (first, plain):
        if start is None:
            continue
        theta = engine.solve(start, patterns, given)
        if theta is not None:
            return theta
    theta = engine.descend(plain, patterns, given)
    polished = engine.solve(theta, patterns, given)
    if polished is None:
        _refuse(engine, theta, patterns, given, n)
    return polished  # type: ignore[return-value]


def _refuse(
    engine: Engine,
    theta: FloatArray,
    patterns: Sequence[Pattern],
    given: Moments,
    n: int,
) -> None:
    """Say that there is no optimum, and why where it shows."""
    if np.isfinite(engine.deviance(theta, patterns, given)):
        engine.check_identified(engine.score(theta, patterns, given)[1])
    raise StatisticsError(
        f"SEM: the fit did not converge on {n} rows. Simplify the model, or check that each "
        "latent variable has three or more indicators that hang together."
    )


def _plain_start(engine: Engine, moments: Moments) -> FloatArray:
    """Start with loadings of 0.7, half of each variance, means as they are, no regressions."""
    mean, cov = moments
    theta = np.zeros(engine.n_free)
    for row, p in enumerate(engine.model.parameters):
        k = engine.index[row]
        if k < 0:
            continue
        i = engine.i[row]
        value = 0.0
        if p.op == "=~":
            value = 0.7
        elif p.op == "~1" and i < engine.n_observed:
            value = mean[i]
        elif p.is_variance:
            value = 0.5 * cov[i, i] if i < engine.n_observed else 0.4
        theta[k] = value / engine.ratio[row]
    return theta


def _semopy_start(engine: Engine, moments: Moments, plain: FloatArray, n: int) -> FloatArray | None:
    """First solution by semopy; None where it cannot set the model up or fails.

    semopy knows neither means beside a covariance matrix nor a latent variable without a
    marker, so intercepts keep their plain values and such a model starts from them all.
    """
    import semopy

    model = engine.model
    marked = {p.left for p in model.parameters if p.op == "=~" and p.value is not None}
    if set(model.latent) - marked:
        return None
    names = list(model.observed)
    cov = pd.DataFrame(moments[1], names, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = semopy.Model(semopy_text(engine))
            fitted.fit(cov=cov, n_samples=n, obj="MLW")
    except (KeyError, ValueError, TypeError, IndexError, ArithmeticError, np.linalg.LinAlgError):
        return None
    theta = plain.copy()
    for row, p in enumerate(model.parameters):
        k = engine.index[row]
        if k < 0 or p.op == "~1":
            continue
        left, right = (p.right, p.left) if p.op == "=~" else (p.left, p.right)
        value = _semopy_value(fitted, left, right, is_cov=p.op == "~~")
        if value is None or not np.isfinite(value):
            return None
        theta[k] = value / engine.ratio[row]
    return theta


def semopy_text(engine: Engine) -> str:
    """Write a model as semopy reads it, on the scale of the fit.

    Parameters
    ----------
    engine
        The model.

    Returns
    -------
    str
        Lines without intercepts and defined parameters; what is fixed has its value.
    """
    lines = []
    for row, p in enumerate(engine.model.parameters):
        if p.op == "~1":
            continue
        fixed = engine.index[row] < 0
        mark = f"{engine.fixed[row]:.12f}*" if fixed else f"{p.label}*" if p.label else ""
        lines.append(f"{p.left} {p.op} {mark}{p.right}")
    return "\n".join(lines)


def _semopy_value(fitted: object, row: str, column: str, *, is_cov: bool) -> float | None:
    kind = ("psi", "theta") if is_cov else ("beta", "lambda")
    for name in kind:
        rows, columns = getattr(fitted, f"names_{name}")
        if row in rows and column in columns:
            matrix = getattr(fitted, f"mx_{name}")
            return float(matrix[list(rows).index(row), list(columns).index(column)])
    return None


def _result(
    engine: Engine,
    sums: PatternSums,
    theta: FloatArray,
    given: Moments,
    covariance: FloatArray,
    indices: Mapping[str, float],
) -> SemFit:
    model = engine.model
    values = with_defined(model, engine.values(theta))
    standardized = with_defined(model, engine.standardized(theta, given))
    se = _delta(lambda x: with_defined(model, engine.values(x)), theta, covariance)
    std_se = _delta(lambda x: with_defined(model, engine.standardized(x, given)), theta, covariance)
    names = all_names(model)
    free = np.append(engine.index >= 0, np.ones(len(model.defined), dtype=bool))
    _, s, _ = engine.matrices(theta, given)
    implied = engine.implied(theta, given)[1]
    places = (*model.observed, *model.latent)
    outcomes = {p.left if p.op == "~" else p.right for p in model.parameters if p.op in ("~", "=~")}
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = 1 - np.diag(s) / np.diag(implied)
    return SemFit(
        engine,
        sums,
        theta,
        covariance,
        dict(zip(names, values.tolist(), strict=True)),
        dict(zip(names, np.where(free, se, np.nan).tolist(), strict=True)),
        dict(zip(names, standardized.tolist(), strict=True)),
        dict(zip(names, std_se.tolist(), strict=True)),
        {v: float(explained[k]) for k, v in enumerate(places) if v in outcomes},
        indices,
        _improper(model, s, implied),
    )


def all_names(model: SemModel) -> list[str]:
    """Names of every parameter, then of the defined ones."""
    return [p.name for p in model.parameters] + [d.name for d in model.defined]


def with_defined(model: SemModel, values: FloatArray) -> FloatArray:
    """Append the defined parameters to the values (..., parameter) that they are made of."""
    labeled: dict[str, FloatArray] = {}
    for k, p in enumerate(model.parameters):
        if p.label:
            labeled.setdefault(p.label, values[..., k])
    more = []
    for one in model.defined:
        labeled[one.name] = np.broadcast_to(one.value(labeled), values.shape[:-1])
        more.append(labeled[one.name][..., None])
    return np.concatenate([values, *more], axis=-1)


def _delta(
    function: Callable[[FloatArray], FloatArray], theta: FloatArray, covariance: FloatArray
) -> FloatArray:
    """Compute standard errors of functions of the estimates, to first order."""
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    slopes = []
    for k, h in enumerate(1e-4 * np.where(scale > 0, scale, 1.0)):
        move = np.zeros(len(theta))
        move[k] = h
        slopes.append((function(theta + move) - function(theta - move)) / (2 * h))
    j = np.array(slopes)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.einsum("ka,kl,la->a", j, covariance, j)))


def _improper(model: SemModel, s: FloatArray, implied: FloatArray) -> list[str]:
    """List what no population can have."""
    names = (*model.observed, *model.latent)
    out = [
        f"variance of {name} below zero"
        for k, name in enumerate(names)
        if s[k, k] < 0 or implied[k, k] < 0
    ]
    if out:
        return out
    for p in model.parameters:
        if p.op == "~~" and not p.is_variance:
            i, j = names.index(p.left), names.index(p.right)
            if abs(s[i, j]) > np.sqrt(s[i, i] * s[j, j]) * (1 + 1e-9):
                out.append(f"correlation of {p.left} and {p.right} beyond 1")
    return out


def _hints(fit: SemFit) -> list[Hint]:
    """Score tests, one parameter at a time, by the expected information as lavaan's."""
    model = fit.model
    candidates = [replace(p, value=None, label="") for p in model.candidates()]
    if not candidates:
        return []
    tried = {p.name for p in candidates}
    kept = tuple(p for p in model.parameters if p.name not in tried)
    unit = dict(zip(model.observed, fit.engine.unit.tolist(), strict=True))
    wide = Engine(replace(model, parameters=(*kept, *candidates)), unit)
    patterns = wide.scaled(fit.sums.patterns())
    given = wide.given(patterns)
    n = fit.engine.n_free
    theta = np.append(fit.theta, np.zeros(len(candidates)))
    score, information = wide.score(theta, patterns, given)
    slope = np.linalg.solve(information[:n, :n], information[:n, n:])
    left = np.diag(information)[n:] - (information[n:, :n] * slope.T).sum(axis=1)
    sd = np.sqrt(np.diag(wide.implied(theta, given)[1]))
    residual = np.sqrt(np.maximum(np.diag(wide.matrices(theta, given)[1]), 0.0))
    out = []
    for k, p in enumerate(candidates):
        row = len(kept) + k
        if not left[k] > 1e-9 * information[n + k, n + k]:
            continue  # the same as what is free already
        change = score[n + k] / left[k]
        i, j = wide.i[row], wide.j[row]
        with np.errstate(divide="ignore", invalid="ignore"):
            by_residual = change / (residual[i] * residual[j])
        std = by_residual if p.op == "~~" else change * sd[j] / sd[i]
        index = score[n + k] ** 2 / left[k]
        out.append(Hint(p.name, float(index), float(change / wide.factor[row]), float(std)))
    return sorted(out, key=lambda hint: -hint.index)


def _check_table(table: pd.DataFrame) -> None:
    n, p = table.shape
    values = table.to_numpy()
    if n <= p + 1:
        raise StatisticsError(
            f"SEM: {n} usable rows for {p} variables; more are needed. Check the missing values."
        )
    seen = np.isfinite(values)
    both = seen.T.astype(np.int64) @ seen
    if both.min() < 3:
        i, j = divmod(int(both.argmin()), p)
        raise StatisticsError(
            f"SEM: only {both.min()} rows have both '{table.columns[i]}' and '{table.columns[j]}'; "
            "more are needed. Leave one of them out."
        )
    with np.errstate(invalid="ignore"):
        spread, top = np.nanstd(values, axis=0), np.nanmax(np.abs(values), axis=0)
    flat = [
        str(name)
        for name, sd, most in zip(table.columns, spread, top, strict=True)
        if not sd > 1e-10 * most
    ]
    if flat:
        raise StatisticsError(
            f"SEM: {', '.join(map(repr, flat))} has the same value in all {n} rows used. "
            "Leave it out of the model, or map the name to another variable."
        )
    complete = values[seen.all(axis=1)]
    if len(complete) <= p + 1 or (complete.std(axis=0) == 0).any():
        return  # too few to tell
    correlation = np.corrcoef(complete, rowvar=False).reshape(p, p)
    roots, vectors = np.linalg.eigh(correlation)
    if roots[0] < 1e-10:
        tied = [
            str(name)
            for name, weight in zip(table.columns, vectors[:, 0], strict=True)
            if abs(weight) > 1e-3
        ]
        raise StatisticsError(
            f"SEM: {', '.join(map(repr, tied))} are exact combinations of each other. "
            "Leave one out."
        )
