"""Effects in matched pairs: balance, mean difference, permutation by flipped signs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

__all__ = [
    "PairedFit",
    "adjusted_terms",
    "balance",
    "paired_fit",
    "sign_flip_p",
    "weighted_median",
    "weighted_moments",
]

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
    ``(G - 1) / G`` with G cohorts, and t has ``min(G - 1, n - k)`` degrees of freedom. The
    residuals e of the pairs of one cohort are those of a fit without that cohort (the
    jackknife over cohorts), since a fit follows a cohort, the more so the fewer there are.
    The larger of that and the ordinary standard error is taken, since the
    robust one is too small by chance when cohorts are few.

    References
    ----------
    Aronow, Samii and Assenova 2015, doi:10.1093/pan/mpv018. MacKinnon, Nielsen and Webb
    2023, doi:10.1002/jae.2969.
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
        robust = _dyadic(x, residual, cohorts)
        scale = (n_cohorts - 1) / n_cohorts
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


def _dyadic(x: FloatArray, residual: FloatArray, cohorts: IntArray) -> FloatArray:
    """Sum of products of scores over all pairs that share a cohort."""
    n = int(cohorts.max()) + 1
    k = x.shape[1]
    first, second = cohorts.min(axis=1), cohorts.max(axis=1)
    across = first != second
    half = np.linalg.cholesky(np.linalg.inv(x.T @ x))
    by_cohort = np.zeros((n, k))
    for code in np.unique(cohorts):
        own = (first == code) | (second == code)
        basis, size, _ = np.linalg.svd(x[own] @ half, full_matrices=False)
        left = 1 - size**2
        # a direction that no other cohort tells of has no residual either
        grown = np.where(left > 1e-9, size**2 / np.maximum(left, 1e-9), 0.0)
        away = residual[own] + basis @ (grown * (basis.T @ residual[own]))
        by_cohort[code] = x[own].T @ away
    # pairs between the same two cohorts were counted once for each of them
    score = x * residual[:, None]
    _, dyad = np.unique(first[across] * n + second[across], return_inverse=True)
    by_dyad = np.zeros((dyad.max(initial=-1) + 1, k))
    np.add.at(by_dyad, dyad, score[across])
    return np.asarray(by_cohort.T @ by_cohort - by_dyad.T @ by_dyad)


def sign_flip_p(
    difference: FloatArray, others: FloatArray | None = None, *, draws: int, seed: int
) -> tuple[float, int, bool]:
    """P value of a mean difference against exchanging the two people of each pair.

    Parameters
    ----------
    difference
        Of each pair (n); or its part in the adjusted one (:func:`adjusted_terms`).
    others
        Differences of what was adjusted for (n, k), where anything was.
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

    Notes
    -----
    With `others`, every flipped sum is divided by its standard error, of variance
    ``|w|^2 - |Q' S w|^2``, with w the weights of the pairs, S the signs, and Q an orthonormal
    basis of `others`. Residuals are smaller than errors, and those of few pairs the more so:
    sums that are not divided are too small beside the one that is observed, and so is p.

    References
    ----------
    Hemerik, Goeman and Finos 2020, doi:10.1111/rssb.12369. De Santis et al. 2022,
    doi:10.48550/arXiv.2209.13918.
    """
    n = len(difference)
    observed = abs(difference.sum())
    least = observed - 1e-9 * max(np.abs(difference).sum(), 1e-300)
    terms = difference[:, None]
    if others is not None and others.shape[1]:
        weight = _intercept_weights(others)
        basis = np.linalg.qr(others)[0]
        terms = np.hstack([terms, basis * (weight / np.linalg.norm(weight))[:, None]])

    def as_large(sums: FloatArray) -> IntArray:
        spread = np.sqrt(np.maximum(1 - (sums[:, 1:] ** 2).sum(axis=1), 0))
        return np.asarray(np.abs(sums[:, 0]) >= least * spread).astype(np.int64)

    if n <= MOST_ENUMERATED:
        sums = np.zeros((1, terms.shape[1]))
        for term in terms:
            sums = np.concatenate([sums - term, sums + term])
        return float(as_large(sums).mean()), len(sums), True
    rng = np.random.default_rng(seed)
    reached, done = 0, 0
    block = max(1, _BLOCK // n)
    while done < draws:
        size = min(block, draws - done)
        signs = rng.integers(0, 2, size=(size, n), dtype=np.int8) * 2 - 1
        reached += int(as_large(signs @ terms).sum())
        done += size
    return (1 + reached) / (1 + draws), draws, False


def _intercept_weights(others: FloatArray) -> FloatArray:
    """Weights of the pairs in the intercept beside `others`."""
    return np.asarray(np.linalg.pinv(np.hstack([np.ones((len(others), 1)), others]))[0])


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
    arbitrary, and what `others` explain in y is kept (Freedman and Lane);
    :func:`sign_flip_p` allows for the estimated slopes. Flipping y itself would take what the
    pairs differ in besides, such as the slightly larger lesion of the member of larger load,
    for an effect.

    References
    ----------
    Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060.
    """
    x = np.hstack([np.ones((len(y), 1)), others])
    if len(y) <= x.shape[1] or np.linalg.matrix_rank(x) < x.shape[1]:
        return np.full(len(y), np.nan)
    left = y - others @ np.linalg.lstsq(others, y, rcond=None)[0] if others.shape[1] else y
    return np.asarray(_intercept_weights(others) * left)


def balance(
    before: tuple[FloatArray, FloatArray],
    after: tuple[FloatArray, FloatArray],
    weights: tuple[FloatArray, FloatArray] | None = None,
) -> FloatArray:
    """Compare two groups of people before and after matching.

    Parameters
    ----------
    before
        Covariates (people, covariate) of those above and below the median of the contrast,
        among everyone usable.
    after
        The same of the high and the low people of the pairs.
    weights
        Of the rows of `before`: less than 1 for each of several scans of someone. Default 1.

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
    for stage, groups in enumerate((before, after)):
        given = weights if stage == 0 else None
        given = given or (np.ones(len(groups[0])), np.ones(len(groups[1])))
        for column in range(n_columns):
            means, variances = np.zeros(2), np.zeros(2)
            for k, (rows, weight) in enumerate(zip(groups, given, strict=True)):
                known = np.isfinite(rows[:, column])
                means[k], variances[k] = weighted_moments(rows[known, column], weight[known])
            if not np.isfinite(variances).all():
                continue
            if stage == 0 and variances.sum() > 0:
                spread[column] = np.sqrt(variances.mean())
            out[stage, 0, column] = (means[0] - means[1]) / spread[column]
            if variances[1] > 0:
                out[stage, 1, column] = variances[0] / variances[1]
    return out


def weighted_moments(values: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Mean and variance, in which weights count people.

    Parameters
    ----------
    values
        Without missing ones (n).
    weights
        Of each; they sum to the number of people.

    Returns
    -------
    mean, variance
        The variance divides by the number of people less 1; both missing below two people.
    """
    total = weights.sum()
    if total < 2 - 1e-9:
        return np.nan, np.nan
    mean = float(weights @ values / total)
    return mean, float(weights @ (values - mean) ** 2 / (total - 1))


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """Value that half of the weight lies below, halfway between two where they share it.

    Parameters
    ----------
    values
        Without missing ones (n).
    weights
        Of each; positive.

    Returns
    -------
    float
        With equal weights the ordinary median.
    """
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    half = below[-1] / 2
    slack = 1e-9 * below[-1]
    first = int(np.searchsorted(below, half - slack))
    last = int(np.searchsorted(below, half + slack, side="right"))
    return float(values[order[[first, min(last, len(order) - 1)]]].mean())
