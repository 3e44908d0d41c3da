"""The work of one fold: fit one learner on one group of predictors, and apply it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import StatisticsError
from scalebrain.predict.conformal import Likeness, half_width, likeness
from scalebrain.predict.harmonized import FoldHarmonizer
from scalebrain.predict.importance import permutation_importance, shap_values
from scalebrain.predict.learners import LEARNERS, Folds, Prepared, tune_and_fit

__all__ = ["FoldJob", "FoldResult", "FoldWork", "NullJob", "fit_fold", "refit_permuted"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ALONE = threading.Lock()


@dataclass(frozen=True)
class FoldWork:
    """What every task needs; sent to each worker once.

    Parameters
    ----------
    x
        Predictors (n, p) of all groups.
    y, severe
        Outcome (n), and 1 where it is severe.
    codes
        Cohort of each row (n).
    cohorts
        Names of the cohorts, which are held out in this order.
    folds, inner
        Rows to train and test on, and the folds of the training rows.
    learners
        Names.
    columns, positions
        Names and positions of the predictors of each group; the last group is explained.
    units
        Columns, within the last group, of what is permuted together.
    n_trees, n_repeats, seed, coverage
        As :func:`scalebrain.predict_motor` takes them.
    harmonizer
        What is harmonized in the folds, by group; empty for nothing.
    """

    x: FloatArray
    y: FloatArray
    severe: FloatArray
    codes: IntArray
    cohorts: list[str]
    folds: list[tuple[IntArray, IntArray]]
    inner: list[Folds]
    learners: tuple[str, ...]
    columns: list[list[str]]
    positions: list[IntArray]
    units: tuple[IntArray, ...]
    n_trees: int
    n_repeats: int
    seed: int
    coverage: float
    harmonizer: Mapping[int, FoldHarmonizer] = field(default_factory=dict)

    def rows(self, part: int, train: IntArray, test: IntArray) -> tuple[FloatArray, FloatArray]:
        """Predictors of one group, harmonized by what the training rows tell."""
        x = self.x[:, self.positions[part]]
        if part in self.harmonizer:
            return self.harmonizer[part].rows(x, train, test)
        return x[train], x[test]

    def prepared(self, part: int, fold: int, x_train: FloatArray) -> Prepared:
        """Predictors of one group for every fit in a fold."""
        train = self.folds[fold][0]
        return Prepared.of(
            x_train, self.inner[fold], lambda a, b: self.rows(part, train[a], train[b])
        )


class FoldJob(NamedTuple):
    """One task: positions of the cohort that is held out, the learner and the group."""

    fold: int
    learner: int
    part: int


@dataclass
class FoldResult:
    """What one task found; arrays are over the held-out rows.

    Parameters
    ----------
    prediction, probability
        Of the outcome and of being severe; the latter None where training has one class.
    settings
        Chosen settings, by what they predict.
    width, width_kind
        Half width of the interval, and what its quantile is taken over.
    importance
        Of each unit, in the last group; None elsewhere, without repeats, and where a single row
        is held out.
    shap, shap_base
        Parts of each prediction (row, unit) in the last group, and what they add to.
    likeness
        How unlike the training rows they are; in the last group of the first learner.
    """

    prediction: FloatArray
    probability: FloatArray | None
    settings: dict[str, dict[str, Any]]
    width: float
    width_kind: str
    importance: FloatArray | None = None
    shap: FloatArray | None = None
    shap_base: float = np.nan
    likeness: Likeness | None = None

    @property
    def settings_text(self) -> str:
        """Settings as JSON."""
        return json.dumps(self.settings, sort_keys=True)


def fit_fold(job: FoldJob, work: FoldWork) -> FoldResult:
    """Tune, fit and apply one learner.

    Parameters
    ----------
    job
        What to fit.
    work
        Data of all tasks.

    Returns
    -------
    FoldResult
        Found on one core: the threads of BLAS are limited to one, so that results do not
        depend on the machine.

    Raises
    ------
    StatisticsError
        If the learner cannot be trained on these rows.
    """
    learner = work.learners[job.learner]
    train, test = work.folds[job.fold]
    is_last = job.part == len(work.positions) - 1
    with _one_core():
        options: dict[str, Any] = {"n_trees": work.n_trees, "seed": work.seed}
        y = work.y[train]
        try:
            x_train, x_test = work.rows(job.part, train, test)
            prepared = work.prepared(job.part, job.fold, x_train)
            model = tune_and_fit(learner, prepared, y, **options)
            chosen = {"score": model.settings}
            probability = None
            severe = work.severe[train]
            if len(np.unique(severe)) > 1:
                classifier = tune_and_fit(learner, prepared, severe, classify=True, **options)
                probability = classifier.predict(x_test)
                chosen["severe"] = classifier.settings
        except StatisticsError as error:  # of a harmonization, which says what is wrong
            raise StatisticsError(
                f"{learner}, cohort '{work.cohorts[job.fold]}' held out: {error}"
            ) from error
        except (ValueError, ZeroDivisionError) as error:
            raise StatisticsError(
                f"{learner} cannot be trained on the {len(train)} rows without cohort "
                f"'{work.cohorts[job.fold]}' ({error}). Bring more people, or leave it out."
            ) from error
        width, kind = half_width(
            np.abs(y - model.inner_prediction), work.codes[train], work.coverage
        )
        out = FoldResult(model.predict(x_test), probability, chosen, width, kind)
        if is_last:
            if len(test) > 1 and work.n_repeats:
                rng = np.random.default_rng([work.seed, job.fold, LEARNERS.index(learner)])
                out.importance = permutation_importance(
                    model, x_test, work.y[test], work.units, n_repeats=work.n_repeats, rng=rng
                )
            out.shap, out.shap_base = shap_values(model, x_train, x_test, work.units)
            if job.learner == 0:
                out.likeness = likeness(x_train, work.codes[train], x_test, work.columns[job.part])
    return out


class NullJob(NamedTuple):
    """One task of the null: positions of the fold and the learner, and the settings or None."""

    fold: int
    learner: int
    settings: Mapping[str, Any] | None


def refit_permuted(job: NullJob, shared: tuple[FoldWork, FloatArray]) -> FloatArray:
    """Predict one fold's held-out rows from permuted outcomes, in the last group.

    Parameters
    ----------
    job
        What to fit; without settings they are searched anew for every permutation.
    shared
        Data of all tasks, and the permuted outcomes (permutation, n).

    Returns
    -------
    ndarray
        (permutation, held-out row).
    """
    work, permuted = shared
    train, test = work.folds[job.fold]
    learner, part = work.learners[job.learner], len(work.positions) - 1
    out = np.full((len(permuted), len(test)), np.nan)
    with _one_core():
        x_train, x_test = work.rows(part, train, test)
        prepared = work.prepared(part, job.fold, x_train)
        for k, y in enumerate(permuted):
            model = tune_and_fit(
                learner,
                prepared,
                y[train],
                settings=job.settings,
                n_trees=work.n_trees,
                seed=work.seed,
            )
            out[k] = model.predict(x_test)
    return out


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """One task a process, one thread of BLAS, and no checks of what has been checked.

    Forests of scikit-learn change the warning filters of the process for every tree, which
    two threads must not do at once; and trees of few people hold the GIL anyway.
    """
    from sklearn import config_context

    settings = {"assume_finite": True, "skip_parameter_validation": True}
    with _ALONE, one_thread_each(), config_context(**settings):
        yield
