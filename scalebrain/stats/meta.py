"""Summaries of sites, pooled: as if the people lay in one place, and as a random effect."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.optimize
import scipy.stats
import xarray as xr

from scalebrain.errors import StatisticsError, check_all

__all__ = ["between_variance", "meta", "meta_table"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

#: Ratio of eigenvalues below which terms cannot be told apart.
_RANK = 1e-12

_PER_MODEL = {
    "estimate": "Effect, in units of the outcome per unit of the term",
    "se": "Standard error of the estimate",
    "df": "Degrees of freedom",
    "ci_low": "Lower end of the confidence interval",
    "ci_high": "Upper end of the confidence interval",
    "p": "Two-sided p value of the t test, not corrected",
    "q": "Benjamini-Hochberg q value over the family, within term and model",
}
_PER_TERM = {
    "tau2": "Variance of the effect between cohorts, REML",
    "i2": "Share of the variation of the estimates that is not chance",
    "q_statistic": "Cochran's Q",
    "q_p": "p value of Q, that the effect is the same in all cohorts",
    "n_cohorts": "Cohorts that the random-effects estimate is made of",
}
#: Attributes in which all summaries have to agree, as the user knows them.
_AGREE = ("formula", "groups", "dim", "group", "levels", "scales")


def meta(
    summaries: Sequence[xr.Dataset],
    *,
    family: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    residual: Literal["pooled", "own"] = "pooled",
) -> xr.Dataset:
    """Pool the summaries of sites.

    Parameters
    ----------
    summaries
        Datasets of :func:`scalebrain.site_summary` or
        :func:`scalebrain.io.summaries.read_summary`.
    family
        Labels that make up the family of the Benjamini-Hochberg procedure; default all.
    confidence
        Level of the confidence intervals.
    residual
        Variance of the residuals behind the standard error of a cohort's estimate.
        ``"pooled"``: that within all cohorts together. ``"own"``: of each cohort by itself, which
        cohorts of few people know badly.

    Returns
    -------
    Dataset
        Over ``(dim, term, model)``, where ``model`` is ``fixed`` or ``random``: ``estimate``,
        ``se``, ``df``, ``ci_low``, ``ci_high``, ``p``, ``q``. Over ``(dim, term)``: ``tau2``,
        ``i2``, ``q_statistic``, ``q_p``, ``n_cohorts``. Over ``(dim, term, cohort)``:
        ``cohort_estimate`` and ``cohort_se``; NaN where a cohort cannot estimate the term
        alone, e.g. sex in a cohort of men. Over ``cohort``: ``n``.

    Raises
    ------
    StatisticsError
        If summaries disagree in formula, terms, regions, levels or scales, a cohort stands in
        two of them, or the pooled design is rank deficient. Every disagreement is named.

    Notes
    -----
    Fixed: ``b = (sum S_i)^-1 sum s_i`` with the sums of squares and products about the means of
    the cohorts. It is ordinary least squares on all people with an intercept of every cohort,
    and its standard errors are those of one common residual variance.

    Random: each cohort's least squares estimate, weighted by ``1 / (v_i + tau2)``; tau2 is the
    restricted maximum of its likelihood, found on a grid and then to machine precision, and
    the interval is that of Hartung and Knapp with the t distribution of cohorts - 1 degrees of
    freedom. It needs two cohorts; NaN otherwise, and ``n_cohorts`` says so. The v_i are taken
    for known, which makes the interval a little too narrow where cohorts are small, and more
    so with ``residual="own"``.

    References
    ----------
    Viechtbauer 2005, doi:10.3102/10769986030003261. Hartung and Knapp 2001,
    doi:10.1002/sim.1009. Higgins and Thompson 2002, doi:10.1002/sim.1186.
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    if residual not in ("pooled", "own"):
        raise StatisticsError(f"residual must be 'pooled' or 'own', got {residual!r}.")
    if not summaries:
        raise StatisticsError("No summary to pool. Give those of the sites.")
    _check_agreement(summaries)
    dim = summaries[0].attrs["dim"]
    labels, terms = list(summaries[0][dim].values), list(summaries[0]["term"].values)
    mask = _family_mask(labels, family)
    cohorts = [str(name) for one in summaries for name in one["cohort"].values]
    n = np.concatenate([one["n"].values for one in summaries]).astype(np.int64)
    xx, xy, yy = (
        np.concatenate([one[name].values for one in summaries]) for name in ("xx", "xy", "yy")
    )
    shape = (len(labels), len(terms), 2)
    arrays = {name: np.full(shape, np.nan) for name in _PER_MODEL}
    arrays["estimate"][..., 0], arrays["se"][..., 0], df = _fixed(
        n, xx.sum(axis=0), xy.sum(axis=0), yy.sum(axis=0), [str(name) for name in labels], terms
    )
    arrays["df"][..., 0] = df
    own, own_se = _alone(n, xx, xy, yy, residual)
    between = {name: np.full(shape[:2], np.nan) for name in _PER_TERM}
    for r, t in np.ndindex(shape[:2]):
        there = np.isfinite(own_se[r, t])
        between["n_cohorts"][r, t] = there.sum()
        if there.sum() < 2:
            continue
        b, v = own[r, t, there], own_se[r, t, there] ** 2
        tau2 = between_variance(b, v)
        arrays["estimate"][r, t, 1], arrays["se"][r, t, 1] = _hartung_knapp(b, v, tau2)
        arrays["df"][r, t, 1] = len(b) - 1
        q = _cochran(b, v)
        between["tau2"][r, t], between["q_statistic"][r, t] = tau2, q
        between["i2"][r, t] = max(0.0, 1 - (len(b) - 1) / q) if q > 0 else 0.0
        between["q_p"][r, t] = scipy.stats.chi2.sf(q, len(b) - 1)
    half = scipy.stats.t.ppf(0.5 + confidence / 2, arrays["df"]) * arrays["se"]
    arrays["ci_low"], arrays["ci_high"] = arrays["estimate"] - half, arrays["estimate"] + half
    t_value = np.abs(arrays["estimate"]) / arrays["se"]
    arrays["p"] = 2 * scipy.stats.t.sf(t_value, arrays["df"])
    for t, m in np.ndindex(shape[1:]):
        tested = mask & np.isfinite(arrays["p"][:, t, m])
        if tested.any():
            arrays["q"][tested, t, m] = scipy.stats.false_discovery_control(
                arrays["p"][tested, t, m]
            )
    return _assemble(
        summaries[0], arrays, between, own, own_se, cohorts, n, mask, confidence, residual
    )


def meta_table(result: xr.Dataset) -> pd.DataFrame:
    """Lay the pooled effects out, one row for each outcome, term and model.

    Parameters
    ----------
    result
        Of :func:`meta`.

    Returns
    -------
    DataFrame
        Numbers of the model, then those of the differences between cohorts.
    """
    dim = result.attrs["dim"]
    frame = result[list(_PER_MODEL)].to_dataframe().join(result[list(_PER_TERM)].to_dataframe())
    order = [[str(k) for k in result[name].values] for name in (dim, "term", "model")]
    return frame.reindex(pd.MultiIndex.from_product(order, names=[dim, "term", "model"]))


def _assemble(
    first: xr.Dataset,
    arrays: dict[str, FloatArray],
    between: dict[str, FloatArray],
    own: FloatArray,
    own_se: FloatArray,
    cohorts: list[str],
    n: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    confidence: float,
    residual: str,
) -> xr.Dataset:
    dim = first.attrs["dim"]
    out = xr.Dataset(
        coords={
            dim: first[dim].values,
            "term": first["term"].values,
            "model": np.array(["fixed", "random"], dtype=object),
            "cohort": np.array(cohorts, dtype=object),
        }
    )
    for name, long_name in _PER_MODEL.items():
        out[name] = ((dim, "term", "model"), arrays[name], {"long_name": long_name})
    for name, long_name in _PER_TERM.items():
        values: Any = between[name].astype(np.int64) if name == "n_cohorts" else between[name]
        out[name] = ((dim, "term"), values, {"long_name": long_name})
    told = "of the cohort alone; missing where it cannot be estimated"
    for name, values in (("estimate", own), ("se", own_se)):
        long_name = f"{_PER_MODEL[name].split(',')[0]} {told}"
        out[f"cohort_{name}"] = ((dim, "term", "cohort"), values, {"long_name": long_name})
    out["n"] = ("cohort", n, {"long_name": "People of the cohort"})
    out.attrs = {
        **{name: first.attrs[name] for name in _AGREE},
        "method": "fixed: least squares with an intercept of every cohort; random: REML, "
        "Hartung-Knapp",
        "residual": residual,
        "confidence": confidence,
        "family_size": int(mask.sum()),
    }
    few = int((between["n_cohorts"] < len(cohorts)).any(axis=0).sum())
    logger.info(
        "Meta-analysis of %d people in %d cohorts%s",
        n.sum(),
        len(cohorts),
        f"; {few} terms cannot be estimated in each of them alone" if few else "",
    )
    return out


def _check_agreement(summaries: Sequence[xr.Dataset]) -> None:
    first = summaries[0]
    other = [
        k
        for k, one in enumerate(summaries, start=1)
        if not {"n", "xx", "xy", "yy"} <= set(one.data_vars) or not set(_AGREE) <= set(one.attrs)
    ]
    if other:
        raise StatisticsError(
            f"Number {other[0]} of {len(summaries)} is no summary. Make it with site_summary, or "
            "read its file with scalebrain.io.summaries.read_summary."
        )
    failures: list[str] = []
    seen: dict[str, int] = {}
    for k, one in enumerate(summaries, start=1):
        where = f"Summary {k} ({', '.join(map(str, one['cohort'].values[:3]))})"
        for name in _AGREE:
            if one.attrs[name] != first.attrs[name]:
                failures.append(
                    f"{where} has another {name} than summary 1: {one.attrs[name]!r}, expected "
                    f"{first.attrs[name]!r}. Make it again with the same."
                )
        dim = first.attrs["dim"]
        for name in (dim, "term"):
            mine = list(one[name].values) if name in one.coords else []
            wanted = list(first[name].values)
            if mine != wanted:
                differ = [str(v) for v in [*mine, *wanted] if (v in mine) != (v in wanted)]
                failures.append(
                    f"{where} has other values of '{name}' than summary 1: "
                    f"{', '.join(differ[:8]) or 'in another order'}. Make it again with the same."
                )
        for cohort in map(str, one["cohort"].values):
            if cohort in seen:
                failures.append(
                    f"{where}: cohort '{cohort}' is in summary {seen[cohort]} already, and its "
                    "people would count twice. Give each once."
                )
            seen.setdefault(cohort, k)
    check_all(failures, StatisticsError, "Summaries cannot be pooled")


def _family_mask(
    labels: Sequence[Hashable], family: Sequence[Hashable] | None
) -> npt.NDArray[np.bool_]:
    absent = [str(label) for label in family or () if label not in labels]
    if absent:
        raise StatisticsError(
            f"family: {', '.join(absent)} is not among {', '.join(map(str, labels[:20]))}."
        )
    return np.array([family is None or label in family for label in labels], dtype=np.bool_)


def _fixed(
    n: npt.NDArray[np.int64],
    xx: FloatArray,
    xy: FloatArray,
    yy: FloatArray,
    labels: Sequence[str],
    terms: Sequence[str],
) -> tuple[FloatArray, FloatArray, int]:
    """Estimates and standard errors (label, term), and degrees of freedom."""
    df = int(n.sum()) - len(n) - len(terms)
    if df < 1:
        raise StatisticsError(
            f"{n.sum()} people are too few for {len(n)} cohorts and {len(terms)} terms."
        )
    estimate, inverse = _solve(xx, xy)
    rss = yy - (xy * estimate).sum(axis=1)
    failures = []
    for r, label in enumerate(labels):
        if np.isnan(estimate[r]).any():
            failures.append(f"{label}: {_deficiency(xx[r], terms)}. Leave a term out at all sites.")
        elif not rss[r] > 1e-12 * yy[r]:
            failures.append(
                f"{label}: the terms explain the outcome in full, so there is no error to "
                "estimate. Leave it out."
            )
    check_all(failures, StatisticsError, "Summaries cannot be pooled")
    return estimate, np.sqrt(rss[:, None] / df * inverse), df


def _solve(xx: FloatArray, xy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients and diagonals of the inverse, (label, term); NaN where the rank is not full."""
    scale = np.sqrt(np.diagonal(xx, axis1=1, axis2=2))
    size = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(xx / (size[:, :, None] * size[:, None, :]))
    full = (scale > 0).all(axis=1) & (values[:, 0] > _RANK * values[:, -1])
    values = np.where(full[:, None], values, np.nan)
    turned = np.einsum("rtk,rt->rk", vectors, xy / size) / values
    estimate = np.einsum("rtk,rk->rt", vectors, turned) / size
    return estimate, (vectors**2 / values[:, None, :]).sum(axis=2) / size**2


def _deficiency(xx: FloatArray, terms: Sequence[str]) -> str:
    """Say which terms the pooled design cannot tell apart."""
    scale = np.sqrt(np.diag(xx))
    flat = [repr(str(name)) for name, s in zip(terms, scale, strict=True) if not s > 0]
    if flat:
        why = f"{', '.join(flat)} is the same within every cohort"
    else:
        weights = np.abs(np.linalg.eigh(xx / np.outer(scale, scale))[1][:, 0])
        tied = [repr(str(name)) for name, w in zip(terms, weights, strict=True) if w > 1e-3]
        why = f"{', '.join(tied)} are combinations of each other"
    return f"the pooled design is rank deficient: {why}"


def _alone(
    n: npt.NDArray[np.int64], xx: FloatArray, xy: FloatArray, yy: FloatArray, residual: str
) -> tuple[FloatArray, FloatArray]:
    """Estimates and standard errors of every cohort by itself, (label, term, cohort)."""
    k, labels, p = xy.shape
    own, inverse = np.full((labels, p, k), np.nan), np.full((labels, p, k), np.nan)
    squares, freedom = np.zeros((labels, k)), np.zeros((labels, k))
    for i in range(k):
        varies = np.diagonal(xx[i], axis1=1, axis2=2) > 0
        for mask in np.unique(varies, axis=0):
            df = int(n[i]) - 1 - int(mask.sum())
            if not mask.any() or df < 1:
                continue
            rows = np.flatnonzero((varies == mask).all(axis=1))
            some = xy[i][rows][:, mask]
            b, v = _solve(xx[i][rows][:, mask][:, :, mask], some)
            rss = yy[i][rows] - (some * b).sum(axis=1)
            fine = rss > 1e-12 * yy[i][rows]  # False for NaN
            cells = np.ix_(rows[fine], np.flatnonzero(mask))
            own[:, :, i][cells], inverse[:, :, i][cells] = b[fine], v[fine]
            squares[rows[fine], i], freedom[rows[fine], i] = rss[fine], df
    if residual == "pooled":
        squares[:], freedom[:] = squares.sum(axis=1)[:, None], freedom.sum(axis=1)[:, None]
    variance = squares / np.where(freedom > 0, freedom, 1)
    return own, np.sqrt(variance[:, None, :] * inverse)


def _cochran(b: FloatArray, v: FloatArray) -> float:
    w = 1 / v
    return float((w * (b - (w * b).sum() / w.sum()) ** 2).sum())


def _hartung_knapp(b: FloatArray, v: FloatArray, tau2: float) -> tuple[float, float]:
    w = 1 / (v + tau2)
    mean = (w * b).sum() / w.sum()
    return float(mean), float(np.sqrt((w * (b - mean) ** 2).sum() / ((len(b) - 1) * w.sum())))


def between_variance(b: FloatArray, v: FloatArray) -> float:
    """Variance between cohorts that maximizes the restricted likelihood.

    Parameters
    ----------
    b
        (cohort,) estimates, of two cohorts or more.
    v
        (cohort,) their squared standard errors, taken for known.

    Returns
    -------
    float
        0 where the estimates differ no more than chance makes them.

    References
    ----------
    Viechtbauer 2005, doi:10.3102/10769986030003261
    """
    size = max(float(b.var(ddof=1)), float(v.min()))

    def slope(tau2: float) -> float:  # twice the derivative of the log-likelihood
        w = 1 / (v + tau2)
        mean = (w * b).sum() / w.sum()
        return float((w**2 * (b - mean) ** 2).sum() - w.sum() + (w**2).sum() / w.sum())

    grid = np.concatenate([[0.0], size * np.geomspace(1e-6, 1e3, 60)])
    w = 1 / (v + grid[:, None])
    total = w.sum(axis=1)
    away = (b - ((w * b).sum(axis=1) / total)[:, None]) ** 2
    values = np.log(w).sum(axis=1) - np.log(total) - (w * away).sum(axis=1)
    best = int(np.argmax(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    if slope(low) <= 0:
        return 0.0
    if slope(high) >= 0:
        return float(high)
    return float(scipy.optimize.brentq(slope, low, high, xtol=1e-14 * size, rtol=1e-13))
