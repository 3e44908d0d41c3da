"""How well a learner would predict if the predictors told nothing within a cohort."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.cluster.tasks import map_tasks
from scalebrain.predict.fold import FoldJob, FoldResult, FoldWork, NullJob, refit_permuted
from scalebrain.predict.task import MotorTask

__all__ = ["permutation_null"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

#: R2 that differ by less are ties: a model that predicts the mean does so to rounding alone.
_TIE = 1e-10


def permutation_null(
    task: MotorTask,
    work: FoldWork,
    done: Mapping[FoldJob, FoldResult],
    real: FloatArray,
    n_permutations: int,
    search_anew: Sequence[str],
) -> xr.Dataset:
    """Refit the last group of predictors with the target permuted within cohorts.

    Parameters
    ----------
    task
        Outcome and folds.
    work
        Data of all tasks.
    done
        The real run, for its settings.
    real
        (learner,) R2 of the last group.
    n_permutations
        Permutations, the same for every learner.
    search_anew
        Learners whose settings are searched anew in every permutation.

    Returns
    -------
    Dataset
        ``null_r2 (learner, permutation)`` and ``p_permutation (learner)``, which is ``(1 +
        permutations of an R2 as large) / (1 + permutations)``. Both are missing where nobody of
        a cohort has another target than the others.

    Notes
    -----
    Searched anew, the real run is one of equally likely ones and p is exact: of people who are
    there once each, as :class:`scalebrain.predict.task.MotorTask` sees to, those of a cohort are
    exchangeable if the predictors tell nothing. At the settings that the real outcome has chosen
    it is not: what chance has put into the real training rows also went into their settings.
    """
    alike = [np.ptp(task.y[task.codes == code]) == 0 for code in range(len(task.cohorts))]
    if n_permutations and all(alike):
        logger.warning(
            "Motor prediction: the target does not vary within any of %d cohorts, so that nothing "
            "can be permuted and the p values are missing. Way out: name larger `groups`.",
            len(task.cohorts),
        )
    rng = np.random.default_rng([work.seed, 2])
    permuted = np.tile(task.y, (n_permutations, 1))
    for one in permuted:
        for code in range(len(task.cohorts)):
            rows = np.flatnonzero(task.codes == code)
            one[rows] = rng.permutation(one[rows])
    last = len(work.positions) - 1
    jobs = [
        NullJob(k, i, None if name in search_anew else done[FoldJob(k, i, last)].settings["score"])
        for i, name in enumerate(work.learners)
        for k in range(len(task.folds))
    ]
    null = np.full((len(work.learners), n_permutations), np.nan)
    p = np.full(len(work.learners), np.nan)
    if n_permutations and not all(alike):
        found = map_tasks(
            refit_permuted, jobs, label="motor permutations", shared=(work, permuted), threads=1
        )
        total = np.sum((task.y - task.y.mean()) ** 2)
        predicted = np.full((len(work.learners), *permuted.shape), np.nan)
        for job, values in zip(jobs, found, strict=True):
            predicted[job.learner][:, task.folds[job.fold][1]] = values
        null = 1 - np.sum((permuted - predicted) ** 2, axis=2) / total
        p = (1 + np.sum(null >= real[:, None] - _TIE, axis=1)) / (1 + n_permutations)
    return xr.Dataset(
        {
            "null_r2": (
                ("learner", "permutation"),
                null,
                {"long_name": "R2 with the target permuted within cohorts"},
            ),
            "p_permutation": (
                "learner",
                p,
                {"long_name": "p value of the R2 against the permutations"},
            ),
        }
    )
