"""Scores of the held-out predictions, what one group adds to another, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special
import scipy.stats
import xarray as xr

from scalebrain.predict.metrics import METRICS, cohort_scores, weighted_scores
from scalebrain.predict.task import MotorTask
from scalebrain.stats.sem_boot import widened_tail

__all__ = ["N_BINS", "Draws", "calibration", "coverage_table", "gain_table", "score_table"]

FloatArray = npt.NDArray[np.float64]

#: Bins of the calibration curve, of equal width.
N_BINS = 10
#: Probabilities are kept this far from 0 and 1 where their logit is taken.
_EDGE = 0.01
#: Metrics that are better when small.
_SMALL_IS_GOOD = np.array([name in ("mae", "brier") for name in METRICS])


@dataclass(frozen=True)
class Draws:
    """Cohorts drawn with replacement, the same for every score.

    Parameters
    ----------
    weights
        (1 + replicate, cohort) how often each was drawn; the first row is each once.
    confidence
        Level of the intervals.
    """

    weights: FloatArray
    confidence: float

    @classmethod
    def of(cls, n_cohorts: int, n_boot: int, seed: int, confidence: float) -> Draws:
        """Draw as many cohorts as there are."""
        rng = np.random.default_rng([seed, 1])
        drawn = rng.multinomial(n_cohorts, np.full(n_cohorts, 1 / n_cohorts), size=n_boot)
        return cls(np.concatenate([np.ones((1, n_cohorts)), drawn]), confidence)

    def interval(self, values: FloatArray) -> tuple[float, float]:
        """Percentile interval of values (1 + replicate), widened for few cohorts."""
        replicates = values[1:][np.isfinite(values[1:])]
        if len(replicates) < 2 or not np.isfinite(values[0]):
            return np.nan, np.nan
        tail = widened_tail(self.weights.shape[1], self.confidence)
        low, high = np.quantile(replicates, [tail, 1 - tail])
        return float(low), float(high)


def score_table(
    task: MotorTask, prediction: FloatArray, probability: FloatArray, draws: Draws
) -> tuple[xr.Dataset, FloatArray]:
    """Score every learner and group, pooled and by cohort.

    Parameters
    ----------
    task
        Outcome and folds.
    prediction, probability
        Held out (learner, feature_group, n).
    draws
        Cohorts drawn.

    Returns
    -------
    table
        Scores with intervals, and those of predicting the training cohorts' mean.
    replicates
        (learner, feature_group, 1 + replicate, metric).
    """
    n_cohorts = len(task.cohorts)
    shape = (*prediction.shape[:2], len(METRICS))
    values = np.full((*shape[:2], *draws.weights.shape[:1], shape[2]), np.nan)
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    by_cohort = np.full((*shape, n_cohorts), np.nan)
    for i, j in np.ndindex(shape[:2]):
        given = (task.y, prediction[i, j], task.severe, probability[i, j], task.codes)
        values[i, j] = weighted_scores(*given, draws.weights)
        for m in range(shape[2]):
            low[i, j, m], high[i, j, m] = draws.interval(values[i, j, :, m])
        by_cohort[i, j] = cohort_scores(*given, n_cohorts).T
    baseline, rate = np.full(len(task.y), np.nan), np.full(len(task.y), np.nan)
    for train, test in task.folds:
        baseline[test] = task.y[train].mean()
        if np.isfinite(task.severe_below) and not task.one_class(train):  # as the models have it
            rate[test] = task.severe[train].mean()
    flat = weighted_scores(task.y, baseline, task.severe, rate, task.codes, draws.weights[:1])[0]
    dims = ("learner", "feature_group", "metric")
    table = xr.Dataset(
        {
            "score": (dims, values[:, :, 0], {"long_name": "Score on cohorts not trained on"}),
            "ci_low": (dims, low, {"long_name": "Lower end of the cluster-bootstrap interval"}),
            "ci_high": (dims, high, {"long_name": "Upper end of the cluster-bootstrap interval"}),
            "cohort_score": (
                (*dims, "cohort"),
                by_cohort,
                {"long_name": "Score within the held-out cohort"},
            ),
            "baseline_score": (
                "metric",
                flat,
                {"long_name": "Score of predicting the mean of the training cohorts"},
            ),
            "baseline_prediction": (
                "subject",
                task.spread(baseline),
                {"long_name": "Mean of the training cohorts"},
            ),
        }
    )
    return table, values


def gain_table(replicates: FloatArray, groups: Sequence[str], draws: Draws) -> xr.Dataset:
    """Compare the last group of predictors with each other one.

    Parameters
    ----------
    replicates
        (learner, feature_group, 1 + replicate, metric) scores on the same drawn cohorts.
    groups
        Names of the groups.
    draws
        Cohorts drawn.

    Returns
    -------
    Dataset
        ``gain``, ``gain_low``, ``gain_high (learner, versus, metric)``; positive where the
        last group is better. Empty for a single group.
    """
    sign = np.where(_SMALL_IS_GOOD, -1.0, 1.0)
    difference = (replicates[:, -1:] - replicates[:, :-1]) * sign
    shape = (*difference.shape[:2], len(METRICS))
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, j, m in np.ndindex(shape):
        low[i, j, m], high[i, j, m] = draws.interval(difference[i, j, :, m])
    dims = ("learner", "versus", "metric")
    words = f"of {groups[-1]} over the other group, positive where better"
    return xr.Dataset(
        {
            "gain": (dims, difference[:, :, 0], {"long_name": f"Gain {words}"}),
            "gain_low": (dims, low, {"long_name": "Lower end of the paired interval"}),
            "gain_high": (dims, high, {"long_name": "Upper end of the paired interval"}),
        },
        coords={"versus": np.array(groups[:-1], dtype=object)},
    )


def calibration(task: MotorTask, probability: FloatArray) -> xr.Dataset:
    """How often those of a given probability are severe.

    Parameters
    ----------
    task
        Outcome.
    probability
        Held out (learner, feature_group, n).

    Returns
    -------
    Dataset
        Over ``(learner, feature_group, bin)``: ``calibration_n``,
        ``calibration_predicted`` (mean probability), ``calibration_observed`` (fraction
        severe) with ``calibration_low`` and ``calibration_high`` (95% Wilson intervals);
        over ``(learner, feature_group)``: ``calibration_slope`` and
        ``calibration_intercept``.

    Notes
    -----
    Slope: of ``logit P(severe) = a + slope logit(p)``, 1 when calibrated, below 1 when
    probabilities are too extreme. Intercept: of the same with slope 1, 0 when calibrated,
    above 0 when probabilities are too low. p is kept within 0.01 and 0.99.
    """
    shape = probability.shape[:2]
    columns = {
        name: np.full((*shape, N_BINS), np.nan) for name in ("predicted", "observed", "low", "high")
    }
    count = np.zeros((*shape, N_BINS), dtype=np.int64)
    slope, intercept = np.full(shape, np.nan), np.full(shape, np.nan)
    for i, j in np.ndindex(shape):
        known = np.isfinite(probability[i, j])
        p, severe = probability[i, j][known], task.severe[known]
        place = np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)
        for k in np.unique(place):
            own = place == k
            limits = scipy.stats.binomtest(int(severe[own].sum()), int(own.sum()))
            between = limits.proportion_ci(method="wilson")
            count[i, j, k] = own.sum()
            columns["predicted"][i, j, k] = p[own].mean()
            columns["observed"][i, j, k] = severe[own].mean()
            columns["low"][i, j, k], columns["high"][i, j, k] = between.low, between.high
        slope[i, j], intercept[i, j] = _recalibrated(p, severe.astype(np.float64))
    dims = ("learner", "feature_group", "bin")
    told = {
        "predicted": "Mean predicted probability",
        "observed": "Fraction severe",
        "low": "Lower end of the 95% Wilson interval of the fraction severe",
        "high": "Upper end of the 95% Wilson interval of the fraction severe",
    }
    return xr.Dataset(
        {
            f"calibration_{name}": (dims, values, {"long_name": told[name]})
            for name, values in columns.items()
        }
        | {
            "calibration_n": (dims, count, {"long_name": "People of the bin"}),
            "calibration_slope": (dims[:2], slope, {"long_name": "Calibration slope, 1 is right"}),
            "calibration_intercept": (
                dims[:2],
                intercept,
                {"long_name": "Calibration in the large, 0 is right"},
            ),
        },
        coords={"bin": (np.arange(N_BINS) + 0.5) / N_BINS},
    )


def coverage_table(task: MotorTask, inside: FloatArray, draws: Draws) -> xr.Dataset:
    """How often intervals held the outcome.

    Parameters
    ----------
    task
        Cohorts.
    inside
        (learner, feature_group, n) 1 where the interval holds the outcome, missing where
        there is none.
    draws
        Cohorts drawn.

    Returns
    -------
    Dataset
        ``interval_covered``, ``interval_covered_low``, ``interval_covered_high (learner,
        feature_group)``.
    """
    shape = inside.shape[:2]
    covered, low, high = (np.full(shape, np.nan) for _ in range(3))
    for i, j in np.ndindex(shape):
        known = np.isfinite(inside[i, j])
        if not known.any():
            continue
        sums = np.zeros((2, len(task.cohorts)))
        np.add.at(sums[0], task.codes[known], inside[i, j][known])
        np.add.at(sums[1], task.codes[known], 1)
        hits, people = draws.weights @ sums[0], draws.weights @ sums[1]
        share = np.divide(hits, people, out=np.full(len(hits), np.nan), where=people > 0)
        covered[i, j] = share[0]
        low[i, j], high[i, j] = draws.interval(share)
    dims = ("learner", "feature_group")
    return xr.Dataset(
        {
            "interval_covered": (dims, covered, {"long_name": "Part of outcomes in the interval"}),
            "interval_covered_low": (
                dims,
                low,
                {"long_name": "Lower end of the interval of interval_covered"},
            ),
            "interval_covered_high": (
                dims,
                high,
                {"long_name": "Upper end of the interval of interval_covered"},
            ),
        }
    )


def _recalibrated(p: FloatArray, severe: FloatArray) -> tuple[float, float]:
    """Slope, and intercept at slope 1, of a logistic regression on the logit."""
    if len(p) < 2 or severe.min() == severe.max():
        return np.nan, np.nan
    logit = scipy.special.logit(np.clip(p, _EDGE, 1 - _EDGE))
    slope = np.nan
    if np.ptp(logit) > 1e-9 and not _separated(logit, severe):
        design = np.stack([np.ones_like(logit), logit], axis=1)
        slope = float(_newton(design, severe, np.zeros_like(logit))[1])
    return slope, float(_newton(np.ones((len(p), 1)), severe, logit)[0])


def _separated(logit: FloatArray, severe: FloatArray) -> bool:
    """Tell whether a threshold splits the classes: then the slope has no finite value."""
    yes, no = logit[severe > 0], logit[severe == 0]
    return bool(yes.min() >= no.max() or no.min() >= yes.max())


def _newton(x: FloatArray, severe: FloatArray, offset: FloatArray) -> FloatArray:
    """Maximum likelihood of a logistic regression, by Newton's method with halved steps."""

    def loss(b: FloatArray) -> float:
        eta = x @ b + offset
        return float(np.sum(np.logaddexp(0, eta) - severe * eta))

    b = np.zeros(x.shape[1])
    for _ in range(100):
        mean = scipy.special.expit(x @ b + offset)
        gradient = x.T @ (mean - severe)
        hessian = (x * (mean * (1 - mean))[:, None]).T @ x
        step = np.linalg.solve(hessian, gradient)
        while loss(b - step) > loss(b) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        b = b - step
        if np.abs(step).max() < 1e-10:
            break
    return b
