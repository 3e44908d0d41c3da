"""Intervals of a person's prediction, and people who are unlike those trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["COHORTS", "NO_INTERVAL", "PEOPLE", "Likeness", "half_width", "likeness"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: What the quantile of an interval is taken over.
COHORTS = "cohorts, each of equal weight"
PEOPLE = "people of all cohorts pooled"
NO_INTERVAL = "no interval"

_NEIGHBORS = 5
_QUANTILE = 0.99
_ROWS = 1024


def half_width(residual: FloatArray, codes: IntArray, coverage: float) -> tuple[float, str]:
    """Half the width of an interval for a person of a cohort that was not trained on.

    Parameters
    ----------
    residual
        Absolute errors (n) of the training rows, each predicted without its own cohort; rows
        without one are left out.
    codes
        Cohort of each row (n).
    coverage
        Wanted coverage.

    Returns
    -------
    width
        Half width, in units of the outcome; missing when there are too few errors.
    kind
        :data:`COHORTS`, :data:`PEOPLE` or :data:`NO_INTERVAL`.

    Notes
    -----
    With K cohorts, each row of a cohort of n_k people weighs ``1 / (n_k (K + 1))`` and the
    unseen cohort ``1 / (K + 1)`` at infinity; the half width is the quantile of `coverage`
    of this distribution. It covers a new person of a new cohort at least so often if
    cohorts are exchangeable. With fewer cohorts than ``coverage / (1 - coverage)`` that
    quantile is infinite, and the one of all n people is taken, ``ceil((n + 1) coverage)``
    of the sorted errors: that takes people of different cohorts for exchangeable.

    References
    ----------
    Lee, Barber and Willett 2023, arXiv:2306.06342. Dunn, Wasserman and Ramdas 2023, DOI
    10.1080/01621459.2022.2060112.
    """
    known = np.isfinite(residual)
    residual, codes = residual[known], codes[known]
    n = len(residual)
    _, own, size = np.unique(codes, return_inverse=True, return_counts=True)
    n_cohorts = len(size)
    order = np.argsort(residual, kind="stable")
    if n_cohorts / (n_cohorts + 1) >= coverage - 1e-12 and n_cohorts:
        reached = np.cumsum((1 / (size[own] * (n_cohorts + 1)))[order])
        at = min(int(np.searchsorted(reached, coverage - 1e-12)), n - 1)
        return float(residual[order][at]), COHORTS
    at = int(np.ceil((n + 1) * coverage - 1e-12)) - 1
    if n_cohorts < 2 or at >= n:
        return np.nan, NO_INTERVAL
    return float(residual[order][at]), PEOPLE


class Likeness:
    """How far held-out people lie from those trained on.

    Parameters
    ----------
    distance
        (n,) to the nearest training rows.
    limit
        What few of the training rows exceed.
    reason
        (n,) why someone is unlike them; empty for the others.
    """

    def __init__(self, distance: FloatArray, limit: float, reason: list[str]) -> None:
        self.distance = distance
        self.limit = limit
        self.reason = reason


def likeness(x_train: FloatArray, codes: IntArray, x: FloatArray, names: Sequence[str]) -> Likeness:
    """Measure how unlike the training rows held-out rows are.

    Parameters
    ----------
    x_train
        Predictors trained on (m, p), with missing values.
    codes
        Cohort of each of them (m).
    x
        Predictors of the held-out rows (n, p).
    names
        Of the predictors (p).

    Returns
    -------
    Likeness
        The distance of a row is the mean of those to its 5 nearest training rows: Euclidean,
        over the predictors that the row has and someone in training has, times ``sqrt(p / their
        number)``, each predictor divided by its SD in training; what a training row lacks is
        taken as the mean, since skipping it would bring every outlier near those who lack what it
        is outlying in. The limit is the 99th percentile of the same distance of the training
        rows, each to those of *other* cohorts, since a held-out person meets other cohorts only.
    """
    known = np.isfinite(x_train).any(axis=0)
    mean, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    mean[known] = np.nanmean(x_train[:, known], axis=0)
    spread[known] = np.nanstd(x_train[:, known], axis=0)
    spread[spread <= 1e-12 * np.maximum(np.abs(mean), 1)] = np.inf  # constant: no direction
    z_train, z = (x_train - mean) / spread, (x - mean) / spread
    z[:, ~known] = np.nan  # what nobody in training has says nothing of how unlike someone is
    alone = len(np.unique(codes)) < 2
    own = np.full(len(codes), -1) if alone else codes
    filled = np.nan_to_num(z_train)
    near = _nearest(z_train, own, filled, own, skip_self=alone)
    limit = float(np.nanquantile(near, _QUANTILE)) if np.isfinite(near).any() else np.nan
    distance = _nearest(z, np.full(len(z), -1), filled, own, skip_self=False)
    reasons = []
    for k, row in enumerate(z):
        if not np.isfinite(distance[k]):
            reasons.append("no predictor is known")
        elif distance[k] > limit:
            reasons.append(_reason(row, distance[k], limit, names))
        else:
            reasons.append("")
    return Likeness(distance, limit, reasons)


def _reason(row: FloatArray, distance: float, limit: float, names: Sequence[str]) -> str:
    """Say in what someone is unlike the others."""
    size = np.nan_to_num(np.abs(row))
    far = [k for k in np.argsort(-size, kind="stable")[:3] if size[k] > 3]
    told = f"distance {distance:.1f} to the nearest people trained on, limit {limit:.1f}"
    if not far:
        return f"unusual combination of predictors: {told}"
    parts = [
        f"{names[k]} {size[k]:.1f} SD {'above' if row[k] > 0 else 'below'} their mean" for k in far
    ]
    return f"{', '.join(parts)}: {told}"


def _nearest(
    z: FloatArray, codes: IntArray, others: FloatArray, other_codes: IntArray, *, skip_self: bool
) -> FloatArray:
    """Mean distance (n,) to the nearest rows of other cohorts; -1 is a cohort of its own."""
    from sklearn.metrics.pairwise import nan_euclidean_distances

    out = np.full(len(z), np.nan)
    for low in range(0, len(z), _ROWS):
        block = slice(low, low + _ROWS)
        distance = nan_euclidean_distances(z[block], others)
        same = (codes[block, None] == other_codes[None]) & (codes[block, None] >= 0)
        distance[same] = np.nan
        if skip_self:
            rows = np.arange(distance.shape[0])
            distance[rows, low + rows] = np.nan
        nearest = np.sort(distance, axis=1)[:, :_NEIGHBORS]  # missing ones come last
        known = np.isfinite(nearest)
        count = known.sum(axis=1)
        total = np.where(known, nearest, 0).sum(axis=1)
        np.divide(total, count, out=out[block], where=count > 0)
    return out
