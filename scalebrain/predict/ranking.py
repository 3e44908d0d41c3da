"""Ranks of the predictors over learners and held-out cohorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats
import xarray as xr

from scalebrain.predict.fold import FoldJob, FoldResult, FoldWork
from scalebrain.predict.task import MotorTask

__all__ = ["importance_table"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_TOP = 3


def importance_table(
    task: MotorTask,
    work: FoldWork,
    columns: Mapping[str, Sequence[str]],
    units: Mapping[str, Sequence[str]],
    done: Mapping[FoldJob, FoldResult],
) -> xr.Dataset:
    """Gather permutation importance and SHAP of the last group.

    Parameters
    ----------
    task
        Outcome and folds.
    work
        Data of all tasks.
    columns
        Predictors of each group.
    units
        Predictors that were permuted together; these are the labels of ``predictor``.
    done
        Results of all tasks.

    Returns
    -------
    Dataset
        As :func:`scalebrain.predict_motor` describes it. Importances are divided by the
        variance of the outcome; ``shap`` is in its units.
    """
    names, n_learners = list(units), len(work.learners)
    n_cohorts = len(task.cohorts)
    permuted = np.full((n_learners, n_cohorts, len(names)), np.nan)
    shap = np.full((n_learners, len(task.y), len(names)), np.nan)
    base = np.full((n_learners, len(task.y)), np.nan)
    for (k, i, _), found in done.items():
        if found.importance is not None:
            permuted[i, k] = found.importance / task.y.var()
        if found.shap is not None:
            test = task.folds[k][1]
            shap[i, test], base[i, test] = found.shap, found.shap_base
    by_cohort = np.stack([np.abs(shap[:, test]).mean(axis=1) for _, test in task.folds], axis=1)
    measured: BoolArray = np.asarray(np.isfinite(permuted).all(axis=2))
    pairs = permuted[measured]
    rank = np.full(len(names), np.nan)
    if len(pairs):
        rank = scipy.stats.rankdata(-pairs, axis=1).mean(axis=0)
    sizes = np.bincount(task.codes, minlength=n_cohorts).astype(np.float64)
    mean = np.full((n_learners, len(names)), np.nan)
    top, shap_top = np.full(mean.shape, np.nan), np.zeros(mean.shape)
    for i in range(n_learners):
        chosen = measured[i]
        if chosen.any():
            mean[i] = np.average(permuted[i, chosen], axis=0, weights=sizes[chosen])
            top[i] = _in_top(permuted[i, chosen]).mean(axis=0)
        shap_top[i] = _in_top(by_cohort[i]).mean(axis=0)
    by_learner = ("learner", "predictor")
    owner = {name: group for group in reversed(list(columns)) for name in columns[group]}
    return xr.Dataset(
        {
            "importance": (by_learner, mean, {"long_name": "Loss of R2 when permuted"}),
            "importance_by_cohort": (
                ("learner", "cohort", "predictor"),
                permuted,
                {"long_name": "Loss of R2 when permuted in the held-out cohort"},
            ),
            "top3_fraction": (
                "predictor",
                _in_top(pairs).mean(axis=0) if len(pairs) else rank,
                {"long_name": "Fraction of learners and held-out cohorts with it in the top 3"},
            ),
            "top3_by_learner": (
                by_learner,
                top,
                {"long_name": "Fraction of held-out cohorts with it in the top 3"},
            ),
            "mean_rank": ("predictor", rank, {"long_name": "Mean rank, 1 is most important"}),
            "shap_importance": (
                by_learner,
                np.abs(shap).mean(axis=1),
                {"long_name": "Mean absolute SHAP value of held-out people"},
            ),
            "shap_top3": (
                by_learner,
                shap_top,
                {"long_name": "Fraction of held-out cohorts with its SHAP in the top 3"},
            ),
            "shap": (
                ("learner", "subject", "predictor"),
                np.moveaxis(task.spread(np.moveaxis(shap, 1, -1)), -1, 1),
                {"long_name": "Part of the prediction that the predictor is given"},
            ),
            "shap_base": (
                ("learner", "subject"),
                task.spread(base),
                {"long_name": "Prediction before any predictor is known"},
            ),
            "predictor_group": (
                "predictor",
                np.array([owner[part[0]] for part in units.values()], dtype=object),
                {"long_name": "Feature group of the predictor"},
            ),
        },
        coords={"predictor": np.array(names, dtype=object)},
    )


def _in_top(values: FloatArray) -> BoolArray:
    """Tell in each row (row, predictor) which are among the three largest, and positive."""
    third = np.sort(values, axis=1)[:, -min(_TOP, values.shape[1])][:, None]
    return np.asarray((values >= third) & (values > 0))
