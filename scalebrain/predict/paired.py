"""Effects in matched pairs: balance, mean difference, permutation by flipped signs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

__all__ = ["PairedFit", "adjusted_terms", "balance", "paired_fit", "sign_flip_p"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Most pairs whose sign flips are all enumerated.
MOST_ENUMERATED = 20
_BLOCK = 4_000_000


class PairedFit(NamedTuple):
    """A coefficient with its interval; ``kind`` says what its standard error allows for."""

    estimate: float
    se: float
    df: int
    ci_low: float
    ci_high: float
    p: float
    kind: str


def paired_fit(
    y: FloatArray,
    x: FloatArray,
    cohorts: IntArray | None = None,
    *,
    confidence: float = 0.95,
) -> PairedFit:
    """Least squares over pairs, for the first coefficient.

    Parameters
    ----------
    y
        Difference of the outcome of each pair (n), high less low.
    x
        Columns (n, k), the first one of interest; ones for the mean difference.
    cohorts
        Cohorts of the two people of each pair (n, 2); None when there is one or none.
    confidence
        Level of the interval.

    Returns
    -------
    PairedFit
        Missing where there are no more pairs than columns.

    Notes
    -----
    Two pairs that share a cohort share its effect, so the variance sums
    ``x_p e_p e_q x_q'`` over all pairs p, q that share one (dyadic cluster-robust), times
    ``n / (n - k) G / (G - 1)`` with G cohorts, and t has ``min(G - 1, n - k)`` degrees of
    freedom. The larger of that and the ordinary standard error is taken, since the
    robust one is too small by chance when cohorts are few.

    References
    ----------
    Aronow, Samii and Assenova 2015, doi:10.1093/pan/mpv018.
    """
    n, k = x.shape
    df = n - k
    if df < 1 or np.linalg.matrix_rank(x) < k:
        nothing = np.nan
        return PairedFit(nothing, nothing, 0, nothing, nothing, nothing, "too few pairs")
    bread = np.linalg.inv(x.T @ x)
    coefficient = bread @ x.T @ y
    residual = y - x @ coefficient
    variance = float(residual @ residual / df * bread[0, 0])
    kind = "paired t"
    if cohorts is not None and (n_cohorts := len(np.unique(cohorts))) > 1:
        robust = _dyadic(x * residual[:, None], cohorts)
        scale = n / df * n_cohorts / (n_cohorts - 1)
        robust_variance = scale * float((bread @ robust @ bread)[0, 0])
        df = min(n_cohorts - 1, df)
        kind = "paired t, degrees of freedom of the cohorts"
        if robust_variance > variance:
            variance, kind = robust_variance, "cluster-robust over cohorts"
    se = float(np.sqrt(variance))
    estimate = float(coefficient[0])
    half = float(scipy.stats.t.ppf(0.5 + confidence / 2, df)) * se
    p = 2 * float(scipy.stats.t.sf(abs(estimate) / se, df)) if se > 0 else np.nan
    return PairedFit(estimate, se, df, estimate - half, estimate + half, p, kind)


def _dyadic(score: FloatArray, cohorts: IntArray) -> FloatArray:
    """Sum of products of scores over all pairs that share a cohort."""
    n = int(cohorts.max()) + 1
    k = score.shape[1]
    first, second = cohorts.min(axis=1), cohorts.max(axis=1)
    across = first != second
    by_cohort = np.zeros((n, k))
    np.add.at(by_cohort, first, score)
    np.add.at(by_cohort, second[across], score[across])
    # pairs between the same two cohorts were counted once for each of them
    _, dyad = np.unique(first[across] * n + second[across], return_inverse=True)
    by_dyad = np.zeros((dyad.max(initial=-1) + 1, k))
    np.add.at(by_dyad, dyad, score[across])
    return np.asarray(by_cohort.T @ by_cohort - by_dyad.T @ by_dyad)


def sign_flip_p(difference: FloatArray, *, draws: int, seed: int) -> tuple[float, int, bool]:
    """P value of a mean difference against exchanging the two people of each pair.

    Parameters
    ----------
    difference
        Of each pair (n).
    draws
        Flips that are drawn when there are more than :data:`MOST_ENUMERATED` pairs.
    seed
        Of the draws.

    Returns
    -------
    p
        Two-sided. Over all 2^n flips, or ``(1 + as large) / (1 + draws)``: never zero.
    n
        Flips looked at.
    exact
        Whether these are all.
    """
    n = len(difference)
    observed = abs(difference.sum())
    least = observed - 1e-9 * max(np.abs(difference).sum(), 1e-300)
    if n <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for value in difference:
            sums = np.concatenate([sums - value, sums + value])
        return float((np.abs(sums) >= least).mean()), len(sums), True
    rng = np.random.default_rng(seed)
    reached, done = 0, 0
    block = max(1, _BLOCK // n)
    while done < draws:
        size = min(block, draws - done)
        signs = rng.integers(0, 2, size=(size, n), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ difference) >= least).sum())
        done += size
    return (1 + reached) / (1 + draws), draws, False


def adjusted_terms(y: FloatArray, others: FloatArray) -> FloatArray:
    """Part of each pair in the adjusted mean difference, for :func:`sign_flip_p`.

    Parameters
    ----------
    y
        Difference of the outcome of each pair (n).
    others
        Differences of what is adjusted for (n, k).

    Returns
    -------
    ndarray
        (n,) terms that sum to the intercept; missing where there are no more pairs than columns.

    Notes
    -----
    The intercept is ``w y`` with w orthogonal to `others`, so also ``w e`` with e what a
    regression of y on `others` alone leaves. Under no effect the signs of e are
    arbitrary, and what `others` explain in y is kept (Freedman and Lane); exact up to the
    estimated slopes. Flipping y itself would take what the pairs differ in besides, such as
    the slightly larger lesion of the member of larger load, for an effect.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
    """
    x = np.hstack([np.ones((len(y), 1)), others])
    if len(y) <= x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return np.full(len(y), np.nan)
    left = y - others @ np.linalg.lstsq(others, y, rcond=None)[0] if others.shape[1] else y
    return np.asarray(np.linalg.pinv(x)[0] * left)


def balance(
    before: tuple[FloatArray, FloatArray], after: tuple[FloatArray, FloatArray]
) -> FloatArray:
    """Compare two groups of people before and after matching.

    Parameters
    ----------
    before
        Covariates (people, covariate) of those above and below the median of the contrast,
        among everyone usable.
    after
        The same of the high and the low people of the pairs.

    Returns
    -------
    ndarray
        (2, 2, covariate): before and after; standardized mean difference, variance ratio.

    Notes
    -----
    Both differences are divided by the SD before matching, the root of the mean of the two
    variances, so that a smaller one is not an effect of smaller groups. Missing values
    are left out.

    References
    ----------
    Stuart 2010, doi:10.1214/09-STS313.
    """
    n_columns = before[0].shape[1]
    out = np.full((2, 2, n_columns), np.nan)
    spread = np.full(n_columns, np.nan)
    for stage, (high, low) in enumerate((before, after)):
        for column in range(n_columns):
            a, b = (part[:, column][np.isfinite(part[:, column])] for part in (high, low))
            if min(len(a), len(b)) < 2:
                continue
            variances = a.var(ddof=1), b.var(ddof=1)
            if stage == 0 and sum(variances) > 0:
                spread[column] = np.sqrt(sum(variances) / 2)
            out[stage, 0, column] = (a.mean() - b.mean()) / spread[column]
            if variances[1] > 0:
                out[stage, 1, column] = variances[0] / variances[1]
    return out
