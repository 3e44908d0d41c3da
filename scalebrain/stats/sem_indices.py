"""Fit indices of a structural model: how far its moments are from those of the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.stats

from scalebrain.errors import StatisticsError
from scalebrain.stats.sem_engine import Engine, Moments, Pattern, pooled
from scalebrain.stats.sem_model import Parameter, SemModel

__all__ = ["fit_indices", "saturated_moments"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_LOG_2PI = float(np.log(2 * np.pi))


def fit_indices(
    engine: Engine,
    theta: FloatArray,
    patterns: Sequence[Pattern],
    given: Moments,
    moments: Moments,
) -> dict[str, float]:
    """Compare a fit with the saturated model and with the one of independent variables.

    Parameters
    ----------
    engine
        The model.
    theta
        (free,) its optimum.
    patterns
        The data, on the scale of the fit.
    given
        Mean and covariance of the exogenous variables.
    moments
        Mean and covariance of the saturated model.

    Returns
    -------
    dict
        ``chi2 df p cfi tli rmsea rmsea_low rmsea_high srmr loglik aic bic n n_free``.

    Raises
    ------
    StatisticsError
        If the model has more free parameters than the data have moments.

    Notes
    -----
    The baseline model leaves the exogenous variables correlated, also where they are not taken
    as given but estimated for want of complete values, as lavaan's does. CFI is at most 1; the
    interval of the RMSEA is that of Browne and Cudeck (1992), DOI
    10.1177/0049124192021002005; the SRMR that of Bentler.
    """
    model = engine.model
    p, q, free = engine.n_observed, len(engine.exogenous), engine.n_free
    n = float(sum(one.n for one in patterns))
    count = p * (p + 1) // 2 - q * (q + 1) // 2 + (p - q if model.has_means else 0)
    df = count - free
    if df < 0:
        raise StatisticsError(
            f"SEM: the model is not identified: {free} free parameters for {count} means, "
            "variances and covariances. Remove paths."
        )
    own = float(engine.deviance(theta, patterns, given))
    mean, cov = moments
    if not model.has_means:
        mean = pooled(patterns, range(p))[0]
    best = _deviance(patterns, mean, cov)
    chi2 = max(own - best, 0.0)
    if df == 0:
        chi2 = 0.0 if chi2 < 1e-5 else chi2
    chi2_base = max(_baseline(engine, patterns, given) - best, 0.0)
    block = q + len(model.moved)
    df_base = p * (p - 1) // 2 - block * (block - 1) // 2
    loglik = -0.5 * own - sum(
        one.n * (0.5 * len(one.where) * _LOG_2PI + np.log(engine.unit[one.where]).sum())
        for one in patterns
    )
    if q:  # given the exogenous variables, which nobody lacks
        logdet = float(np.linalg.slogdet(given[1])[1])
        loglik += 0.5 * n * (logdet + q + q * _LOG_2PI)
        loglik += n * np.log(engine.unit[engine.exogenous]).sum()
    low, high = _rmsea_interval(chi2, df, n)
    return {
        "chi2": chi2,
        "df": df,
        "p": float(scipy.stats.chi2.sf(chi2, df)) if df else np.nan,
        "cfi": _cfi(chi2, df, chi2_base, df_base),
        "tli": _tli(chi2, df, chi2_base, df_base),
        "rmsea": float(np.sqrt(max(chi2 - df, 0.0) / (df * n))) if df else 0.0,
        "rmsea_low": low,
        "rmsea_high": high,
        "srmr": _srmr(engine, theta, given, (mean, cov)),
        "loglik": float(loglik),
        "aic": float(2 * free - 2 * loglik),
        "bic": float(np.log(n) * free - 2 * loglik),
        "n": n,
        "n_free": free,
    }


def saturated_moments(patterns: Sequence[Pattern], size: int) -> Moments:
    """Mean and covariance of maximum likelihood without a model, by EM and then scoring.

    Parameters
    ----------
    patterns
        The data.
    size
        Number of variables.

    Returns
    -------
    mean, cov
        (variable,) and (variable, variable).

    Raises
    ------
    StatisticsError
        If the likelihood has no maximum that can be found.
    """
    if len(patterns) == 1 and len(patterns[0].where) == size:
        return patterns[0].mean, patterns[0].cov
    mean, cov = _em(patterns, size)
    names = tuple(f"v{k}" for k in range(size))
    rows = [(a, b) for k, a in enumerate(names) for b in names[: k + 1]]
    free = SemModel("", (), names, (), tuple(Parameter(a, "~~", b) for a, b in rows)).with_means()
    engine = Engine(free, dict.fromkeys(names, 1.0))
    lower = np.tril_indices(size)
    nothing = (np.zeros(0), np.zeros((0, 0)))
    theta = engine.solve(np.append(cov[lower], mean), patterns, nothing)
    if theta is None:
        raise StatisticsError(
            "SEM: means and covariances of the variables cannot be estimated from rows with so "
            "many gaps. Leave out the variable that is missing most, or use missing='listwise'."
        )
    return engine.implied(theta, nothing)


def _em(patterns: Sequence[Pattern], size: int) -> Moments:
    """Fit a normal distribution by expectation maximization, over patterns."""
    total = sum(p.n for p in patterns)
    mean, cov = _apart(patterns, size)
    cov = np.diag(cov)
    for _ in range(200):
        first = np.zeros(size)
        second = np.zeros((size, size))
        for p in patterns:
            there = p.where
            gone = np.setdiff1d(np.arange(size), there)
            full_mean = np.zeros(size)
            full_cov = np.zeros((size, size))
            full_mean[there] = p.mean
            full_cov[np.ix_(there, there)] = p.cov
            if len(gone):
                slope = np.linalg.solve(cov[np.ix_(there, there)], cov[np.ix_(there, gone)]).T
                full_mean[gone] = mean[gone] + slope @ (p.mean - mean[there])
                full_cov[np.ix_(gone, there)] = slope @ p.cov
                full_cov[np.ix_(there, gone)] = full_cov[np.ix_(gone, there)].T
                full_cov[np.ix_(gone, gone)] = (
                    cov[np.ix_(gone, gone)]
                    - slope @ cov[np.ix_(there, gone)]
                    + slope @ p.cov @ slope.T
                )
            first += p.n * full_mean
            second += p.n * (full_cov + np.outer(full_mean, full_mean))
        before = np.append(mean, cov.ravel())
        mean = first / total
        cov = second / total - np.outer(mean, mean)
        change = np.abs(np.append(mean, cov.ravel()) - before).max()
        if change < 1e-6 * max(1.0, np.abs(cov).max()):
            break
    return mean, cov


def _apart(patterns: Sequence[Pattern], size: int) -> Moments:
    """Mean and variance of each variable, over those who have it."""
    mean, variance = np.zeros(size), np.zeros(size)
    for k in range(size):
        have = [p for p in patterns if k in p.where]
        mean_k, cov_k = pooled(have, [k])
        mean[k], variance[k] = mean_k[0], cov_k[0, 0]
    return mean, variance


def _deviance(patterns: Sequence[Pattern], mean: FloatArray, cov: FloatArray) -> float:
    total = 0.0
    for p in patterns:
        part = cov[np.ix_(p.where, p.where)]
        d = p.mean - mean[p.where]
        spread = p.cov + np.outer(d, d)
        total += p.n * (np.linalg.slogdet(part)[1] + np.trace(np.linalg.solve(part, spread)))
    return float(total)


def _baseline(engine: Engine, patterns: Sequence[Pattern], given: Moments) -> float:
    """Deviance of the model in which only exogenous variables hang together."""
    mean, variance = _apart(patterns, engine.n_observed)
    cov = np.diag(variance)
    cov[np.ix_(engine.exogenous, engine.exogenous)] = given[1]
    if engine.model.moved:
        named = {*engine.model.exogenous, *engine.model.moved}
        block = np.array([k for k, v in enumerate(engine.model.observed) if v in named])
        mean[block], own = saturated_moments(_among(patterns, block), len(block))
        cov[np.ix_(block, block)] = own
    return _deviance(patterns, mean, cov)


def _among(patterns: Sequence[Pattern], block: IntArray) -> list[Pattern]:
    """Patterns of some of the variables, renumbered; without people who have none of them."""
    out: list[Pattern] = []
    for p in patterns:
        inside = np.flatnonzero(np.isin(p.where, block))
        if len(inside):
            where = np.searchsorted(block, p.where[inside])
            out.append(Pattern(where, p.n, p.mean[inside], p.cov[np.ix_(inside, inside)]))
    return out


def _srmr(
    engine: Engine,
    theta: FloatArray,
    given: Moments,
    moments: Moments,
) -> float:
    p = engine.n_observed
    mean, cov = (part[:p] for part in engine.implied(theta, given))
    sd = np.sqrt(np.diag(moments[1]))
    residual = ((moments[1] - cov[:, :p]) / np.outer(sd, sd))[np.tril_indices(p)]
    if engine.model.has_means:
        residual = np.append(residual, (moments[0] - mean) / sd)
    return float(np.sqrt((residual**2).mean()))


def _cfi(chi2: float, df: float, chi2_base: float, df_base: float) -> float:
    excess = max(chi2 - df, 0.0)
    most = max(chi2_base - df_base, excess, 0.0)
    return 1.0 if most == 0 else float(1.0 - excess / most)


def _tli(chi2: float, df: float, chi2_base: float, df_base: float) -> float:
    if df == 0 or df_base == 0:
        return 1.0
    base = chi2_base / df_base
    return np.nan if base == 1 else float((base - chi2 / df) / (base - 1.0))


def _rmsea_interval(chi2: float, df: float, n: float) -> tuple[float, float]:
    """Find the 90% interval from the noncentral chi-squared distribution."""
    if df == 0:
        return 0.0, 0.0

    def bound(level: float) -> float:
        if scipy.stats.chi2.cdf(chi2, df) < level:
            return 0.0
        top = max(chi2, df) * 2.0 + 50.0
        while scipy.stats.ncx2.cdf(chi2, df, top) > level:
            top *= 2.0
        root = scipy.optimize.brentq(
            lambda nc: scipy.stats.ncx2.cdf(chi2, df, nc) - level, 1e-12, top
        )
        return float(np.sqrt(root / (n * df)))

    return bound(0.95), bound(0.05)
