"""Scores of pooled held-out predictions, for any weighting of the cohorts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "cohort_scores", "weighted_scores"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Regression (of the score), then classification (of being severe).
METRICS: tuple[str, ...] = ("r2", "mae", "r", "auc", "balanced_accuracy", "brier")


def weighted_scores(
    y: FloatArray,
    prediction: FloatArray,
    severe: BoolArray,
    probability: FloatArray,
    codes: IntArray,
    weights: FloatArray,
) -> FloatArray:
    """Score pooled predictions, each cohort counted `weights` times.

    Parameters
    ----------
    y
        Outcome (n).
    prediction
        Held-out prediction (n); rows with a missing one are left out.
    severe
        Class (n).
    probability
        Held-out probability of being severe (n); rows with a missing one are left out.
    codes
        Cohort of each row, from 0 (n).
    weights
        One row per weighting (n_weightings, n_cohorts).

    Returns
    -------
    ndarray
        (n_weightings, 6), in the order of :data:`METRICS`; missing where undefined, as the
        AUC of one class is.

    Notes
    -----
    R2 is ``1 - sum (y - prediction)^2 / sum (y - mean)^2`` with the mean of the weighted
    rows. Everything is a sum over cohorts (the AUC: over pairs of cohorts), so a bootstrap
    over cohorts costs one matrix product.
    """
    n_cohorts = weights.shape[1]
    out = np.full((len(weights), len(METRICS)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        fine = np.isfinite(y) & np.isfinite(prediction)
        if fine.any():
            a, b = y[fine], prediction[fine]
            columns = np.stack(
                [np.ones_like(a), a, b, a * a, b * b, a * b, np.abs(a - b), (a - b) ** 2], axis=1
            )
            n, sa, sb, saa, sbb, sab, off, squared = (
                weights @ _sums(columns, codes[fine], n_cohorts)
            ).T
            var_a, var_b = saa - sa * sa / n, sbb - sb * sb / n
            var_a[var_a <= 1e-12 * saa] = np.nan
            var_b[var_b <= 1e-12 * sbb] = np.nan
            out[:, 0] = 1.0 - squared / var_a
            out[:, 1] = off / n
            out[:, 2] = (sab - sa * sb / n) / np.sqrt(var_a * var_b)
        fine = np.isfinite(probability)
        if fine.any():
            p, s, c = probability[fine], severe[fine], codes[fine]
            called = p >= 0.5
            columns = np.stack(
                [np.ones_like(p), s, ~s, s & called, ~s & ~called, (p - s) ** 2], axis=1
            ).astype(np.float64)
            n, pos, neg, hit, pass_, squared = (weights @ _sums(columns, c, n_cohorts)).T
            order = np.sign(p[s][:, None] - p[~s][None, :]) / 2 + 0.5
            by_row = _sums(order, c[s], n_cohorts)
            pairs = _sums(by_row.T, c[~s], n_cohorts).T
            won = np.einsum("bi,ij,bj->b", weights, pairs, weights)
            out[:, 3] = won / (pos * neg)
            out[:, 4] = (hit / pos + pass_ / neg) / 2
            out[:, 5] = squared / n
    return out


def cohort_scores(
    y: FloatArray,
    prediction: FloatArray,
    severe: BoolArray,
    probability: FloatArray,
    codes: IntArray,
    n_cohorts: int,
) -> FloatArray:
    """Score each cohort by itself.

    Parameters
    ----------
    y, prediction, severe, probability, codes
        As in :func:`weighted_scores`.
    n_cohorts
        Number of cohorts.

    Returns
    -------
    ndarray
        (n_cohorts, 6), in the order of :data:`METRICS`.
    """
    return weighted_scores(y, prediction, severe, probability, codes, np.eye(n_cohorts))


def _sums(values: FloatArray, codes: IntArray, n_cohorts: int) -> FloatArray:
    out = np.zeros((n_cohorts, *values.shape[1:]))
    np.add.at(out, codes, values)
    return out
