"""Prediction of motor outcome, leaving one cohort out."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people
from scalebrain.predict.learners import LEARNERS, Folds, TunedModel, tune_and_fit
from scalebrain.predict.metrics import METRICS, cohort_scores, weighted_scores
from scalebrain.predict.predictors import FEATURE_GROUPS, build_predictors
from scalebrain.predict.splits import grouped_folds, leave_one_group_out
from scalebrain.stats.frame import eligible_subjects, subject_frame

__all__ = ["SEVERE_BELOW", "predict_motor"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: A motor score below this is severe: 28 of the 66 points of Fugl-Meyer.
SEVERE_BELOW = 0.424


def predict_motor(
    ds: xr.Dataset,
    *,
    target: Hashable = "motor_score",
    groups: Hashable = "cohort",
    feature_groups: Sequence[str] | Mapping[str, Sequence[str]] = FEATURE_GROUPS,
    learners: Sequence[str] = LEARNERS,
    severe_below: float = SEVERE_BELOW,
    n_inner: int = 3,
    n_trees: int = 50,
    n_boot: int = 1000,
    n_repeats: int = 5,
    n_permutations: int = 20,
    seed: int = 0,
    group: str | None = "stroke",
    included: Hashable | None = "included",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Predict a motor score and its severity in cohorts that were not trained on.

    Parameters
    ----------
    ds
        Dataset of a finished store, on native or on lesional sides.
    target
        Variable over ``subject`` to predict.
    groups
        Variable over ``subject``; each of its values is held out once.
    feature_groups
        Names out of ``clinical``, ``lesion``, ``brain_age`` and ``combined``, or a mapping
        from a name to variables over ``subject``.
    learners
        Names out of ``elastic_net``, ``random_forest``, ``gradient_boosting``.
    severe_below
        A target below this is severe.
    n_inner
        Folds of whole cohorts that choose the settings, inside each training set.
    n_trees
        Trees of the forests and of boosting.
    n_boot
        Replicates of the bootstrap over cohorts.
    n_repeats
        Permutations of each predictor in a held-out cohort.
    n_permutations
        Repetitions of the whole procedure with the target permuted within cohorts, for the
        first learner and the last feature group; 0 for none. The smallest p value is
        ``1 / (n_permutations + 1)``.
    seed
        Seed of everything random.
    group
        Value of the variable ``group`` to use; None, or a Dataset without it, uses all.
    included
        Bool variable over ``subject``; rows where it is False are left out.
    confidence
        Level of the bootstrap intervals.

    Returns
    -------
    Dataset
        Over ``(learner, feature_group, metric)``: ``score``, ``ci_low``, ``ci_high``, and
        with ``cohort`` ``cohort_score``. ``metric`` holds ``r2``, ``mae``, ``r`` (of the
        score) and ``auc``, ``balanced_accuracy``, ``brier`` (of being severe). Over
        ``metric``: ``baseline_score``, predicting the mean (and the rate) of the training
        cohorts. Over ``(learner, feature_group, subject)``: ``prediction``,
        ``severe_probability``. Over ``subject``: ``observed``, ``severe``,
        ``baseline_prediction``, ``dropped``. Over ``(learner, cohort, predictor)``:
        ``importance_by_cohort``; over ``(learner, predictor)``: ``importance``; over
        ``predictor``: ``top3_fraction``, ``mean_rank``, ``predictor_group``. Over
        ``(learner, feature_group, cohort)``: ``settings`` (JSON). Over ``permutation``:
        ``null_r2``; scalars ``p_permutation``, ``n``, ``n_dropped``; over ``cohort``:
        ``cohort_n``. ``attrs["skipped"]`` lists every fold that could not be classified.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If there are fewer than two cohorts with usable rows, or the target is constant.
    ConfigError
        If a learner or a feature group is unknown.

    Notes
    -----
    Imputer, scaler and estimator form one pipeline, fitted on training cohorts only;
    settings are chosen by inner folds of whole cohorts (with one training cohort, the middle
    setting is taken). ``dropped`` marks eligible subjects without a target or a cohort;
    missing predictors are imputed.

    ``importance`` is the loss in R2 when a predictor is permuted within the held-out
    cohort, in the last feature group, averaged over cohorts; predictors that correlate
    share it. ``top3_fraction`` is the fraction of (learner, held-out cohort) pairs in which
    the predictor is among the three of largest, positive importance.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cst = rng.random(40)
    >>> ds = xr.Dataset(
    ...     {
    ...         "motor_score": ("subject", 0.9 - 0.8 * cst + rng.normal(0, 0.05, 40)),
    ...         "cst": ("subject", cst),
    ...         "cohort": ("subject", np.repeat(["a", "b", "c", "d"], 10)),
    ...     }
    ... )
    >>> result = predict_motor(
    ...     ds, feature_groups={"cst": ["cst"]}, learners=["elastic_net"], n_permutations=0
    ... )
    >>> bool(result["score"].sel(metric="r2").item() > 0.8)
    True
    """
    unknown = [name for name in learners if name not in LEARNERS]
    if unknown or not learners:
        raise ConfigError(f"Unknown learners {unknown}. Choose from {', '.join(LEARNERS)}.")
    task = _Task.of(ds, target, groups, group, included, severe_below, n_inner, seed)
    table, columns = build_predictors(ds, feature_groups)
    x = table.to_numpy(dtype=np.float64)[task.used]
    run = _Run.over(task, x, table, columns, tuple(learners), n_trees, n_repeats, seed)
    out = _scores(task, run, n_boot, seed, confidence)
    out = out.merge(_importances(task, run, columns))
    last = run.feature_groups[-1]
    null = _permutation_null(
        task, x[:, run.positions[last]], learners[0], n_trees, n_permutations, seed
    )
    out["null_r2"] = (("permutation",), null, {"long_name": "R2 with the target permuted"})
    real = float(out["score"].sel(learner=learners[0], feature_group=last, metric="r2"))
    p = (1 + int((null >= real).sum())) / (1 + len(null)) if len(null) else np.nan
    out["p_permutation"] = ((), p, {"long_name": "p value of the R2 against the permutations"})
    out.attrs = {
        "target": str(target),
        "groups": str(groups),
        "severe_below": severe_below,
        "seed": seed,
        "confidence": confidence,
        "skipped": run.skipped,
        "rows_dropped": task.told,
        "permutation_of": f"{learners[0]}, {last}, target permuted within {groups}",
        "importance_of": last,
    }
    return out


@dataclass(frozen=True)
class _Task:
    """Outcome and folds, on the rows used."""

    subjects: npt.NDArray[Any] | None
    used: BoolArray
    dropped: BoolArray
    y: FloatArray
    severe: BoolArray
    cohorts: list[str]
    codes: IntArray
    folds: list[tuple[IntArray, IntArray]]
    inner: list[Folds]
    told: str

    @classmethod
    def of(
        cls,
        ds: xr.Dataset,
        target: Hashable,
        groups: Hashable,
        group: str | None,
        included: Hashable | None,
        severe_below: float,
        n_inner: int,
        seed: int,
    ) -> _Task:
        absent = [str(name) for name in (target, groups) if name not in ds.variables]
        if absent:
            raise MissingVariableError(
                f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: add it "
                "to participants.tsv and ingest again, or name another with `target`, `groups`."
            )
        frame = subject_frame(ds, [target, groups])
        column = frame[str(target)]
        if column.dtype.kind not in "biuf":
            raise StatisticsError(f"Target '{target}' is text; numbers are needed.")
        score = column.to_numpy(dtype=np.float64)
        keep = eligible_subjects(ds, group=group, included=included)
        no_score = keep & ~np.isfinite(score)
        no_cohort = keep & frame[str(groups)].isna().to_numpy()
        used = keep & ~no_score & ~no_cohort
        told = (
            f"{int((keep & ~used).sum())} of {int(keep.sum())} eligible subjects left out "
            f"({target} missing: {int(no_score.sum())}; {groups} missing: {int(no_cohort.sum())})"
        )
        if not used.any():
            raise StatisticsError(f"No subject with a value of '{target}': {told}.")
        if (keep & ~used).any():
            logger.info("Motor prediction: %s", told)
        y = score[used]
        if not y.std() > 1e-12 * np.abs(y).max():
            raise StatisticsError(
                f"Target '{target}' has the same value in all {len(y)} rows used, so there is "
                "nothing to predict."
            )
        names = frame[str(groups)][used].astype(str).to_numpy(dtype=object)
        cohorts, codes = np.unique(names.astype(str), return_inverse=True)
        _check_people(ds, used, names)
        folds = [(train, test) for _, train, test in leave_one_group_out(codes)]
        inner: list[Folds] = [
            grouped_folds(codes[train], n_inner, seed=seed + k)
            for k, (train, _) in enumerate(folds)
        ]
        return cls(
            ds["subject"].values if "subject" in ds.coords else None,
            used,
            keep & ~used,
            y,
            y < severe_below,
            [str(name) for name in cohorts],
            codes.astype(np.int64),
            folds,
            inner,
            told,
        )


def _check_people(ds: xr.Dataset, used: BoolArray, cohort: npt.NDArray[np.object_]) -> None:
    """Refuse a person, or a scan, that is in several cohorts."""
    people = same_people(ds)[used]
    subjects = ds["subject"].values[used] if "subject" in ds.coords else np.flatnonzero(used)
    failures = []
    for person in np.flatnonzero(np.bincount(people) > 1):
        own = people == person
        if len(set(cohort[own])) > 1:
            where = ", ".join(f"{s} ({c})" for s, c in zip(subjects[own], cohort[own], strict=True))
            failures.append(f"{where}: one person or one scan in several cohorts. Keep one.")
    if failures:
        shown = "\n".join(failures[:20])
        raise StatisticsError(
            f"Cohorts that are trained on and tested share people:\n{shown}",
            code="scan-in-training",
        )


@dataclass
class _Run:
    """Held-out predictions and importances of every learner and feature group."""

    learners: tuple[str, ...]
    feature_groups: list[str]
    positions: dict[str, IntArray]
    prediction: FloatArray
    probability: FloatArray
    importance: FloatArray
    settings: npt.NDArray[Any]
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def over(
        cls,
        task: _Task,
        x: FloatArray,
        table: pd.DataFrame,
        columns: dict[str, list[str]],
        learners: tuple[str, ...],
        n_trees: int,
        n_repeats: int,
        seed: int,
    ) -> _Run:
        names = list(columns)
        shape = (len(learners), len(names))
        n_cohorts = len(task.cohorts)
        run = cls(
            learners,
            names,
            {name: table.columns.get_indexer(pd.Index(part)) for name, part in columns.items()},
            np.full((*shape, len(task.y)), np.nan),
            np.full((*shape, len(task.y)), np.nan),
            np.full((len(learners), n_cohorts, len(columns[names[-1]])), np.nan),
            np.full((*shape, n_cohorts), "", dtype=object),
        )
        spread = float(task.y.var())
        for k, (train, test) in enumerate(task.folds):
            rare = len(np.unique(task.severe[train])) < 2
            if rare:
                kind = "severe" if task.severe[train][0] else "not severe"
                run.skipped.append(
                    f"cohort {task.cohorts[k]} held out: all {len(train)} training rows are {kind}"
                )
            for i, learner in enumerate(learners):
                for j, name in enumerate(names):
                    part = x[:, run.positions[name]]
                    try:
                        fitted = tune_and_fit(
                            learner,
                            part[train],
                            task.y[train],
                            task.inner[k],
                            n_trees=n_trees,
                            seed=seed,
                        )
                    except (ValueError, ZeroDivisionError) as error:
                        raise StatisticsError(
                            f"{learner} cannot be trained on the {len(train)} rows without cohort "
                            f"'{task.cohorts[k]}' ({error}). Bring more people, or leave it out."
                        ) from error
                    run.prediction[i, j, test] = fitted.predict(part[test])
                    chosen = {"score": fitted.settings}
                    if j == len(names) - 1 and len(test) > 1:
                        rng = np.random.default_rng([seed, k, i])
                        run.importance[i, k] = _importance(
                            fitted, part[test], task.y[test], n_repeats, rng
                        )
                    if not rare:
                        classifier = tune_and_fit(
                            learner,
                            part[train],
                            task.severe[train].astype(np.float64),
                            task.inner[k],
                            classify=True,
                            n_trees=n_trees,
                            seed=seed,
                        )
                        run.probability[i, j, test] = classifier.predict(part[test])
                        chosen["severe"] = classifier.settings
                    run.settings[i, j, k] = json.dumps(chosen, sort_keys=True)
        run.importance /= spread
        return run


def _importance(
    model: TunedModel, x: FloatArray, y: FloatArray, n_repeats: int, rng: np.random.Generator
) -> FloatArray:
    """Rise of the mean squared error when one predictor is permuted, per predictor."""
    n, p = x.shape
    base = np.mean((y - model.predict(x)) ** 2)
    rise = np.zeros(p)
    for _ in range(n_repeats):
        order = rng.permuted(np.tile(np.arange(n), (p, 1)), axis=1)
        copies = np.broadcast_to(x, (p, n, p)).copy()
        for column in range(p):
            copies[column, :, column] = x[order[column], column]
        predicted = model.predict(copies.reshape(p * n, p)).reshape(p, n)
        rise += np.mean((y - predicted) ** 2, axis=1) - base
    return rise / max(n_repeats, 1)


def _scores(task: _Task, run: _Run, n_boot: int, seed: int, confidence: float) -> xr.Dataset:
    n_cohorts = len(task.cohorts)
    rng = np.random.default_rng([seed, 1])
    drawn = rng.multinomial(n_cohorts, np.full(n_cohorts, 1 / n_cohorts), size=n_boot)
    weights = np.concatenate([np.ones((1, n_cohorts)), drawn])
    shape = (len(run.learners), len(run.feature_groups), len(METRICS))
    score, low, high = (np.full(shape, np.nan) for _ in range(3))
    by_cohort = np.full((*shape, n_cohorts), np.nan)
    tail = (1 - confidence) / 2
    for i in range(shape[0]):
        for j in range(shape[1]):
            given = (task.y, run.prediction[i, j], task.severe, run.probability[i, j], task.codes)
            values = weighted_scores(*given, weights)
            score[i, j] = values[0]
            for m in range(shape[2]):
                replicates = values[1:, m][np.isfinite(values[1:, m])]
                if len(replicates) > 1 and np.isfinite(values[0, m]):
                    low[i, j, m], high[i, j, m] = np.quantile(replicates, [tail, 1 - tail])
            by_cohort[i, j] = cohort_scores(*given, n_cohorts).T
    baseline, rate = np.full(len(task.y), np.nan), np.full(len(task.y), np.nan)
    for train, test in task.folds:
        baseline[test] = task.y[train].mean()
        rate[test] = task.severe[train].mean()
    flat = weighted_scores(task.y, baseline, task.severe, rate, task.codes, weights[:1])[0]
    dims = ("learner", "feature_group", "metric")
    every = (*dims[:2], "subject")
    out = xr.Dataset(
        {
            "score": (dims, score, {"long_name": "Score of pooled held-out predictions"}),
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
            "prediction": (
                every,
                _spread(run.prediction, task.used),
                {"long_name": "Held-out prediction of the target"},
            ),
            "severe_probability": (
                every,
                _spread(run.probability, task.used),
                {"long_name": "Held-out probability of being severe"},
            ),
            "settings": (
                (*dims[:2], "cohort"),
                run.settings,
                {"long_name": "Settings chosen by the inner folds, JSON"},
            ),
            "observed": (
                "subject",
                _spread(task.y, task.used),
                {"long_name": "Target of the subjects used"},
            ),
            "severe": (
                "subject",
                _spread(task.severe.astype(np.float64), task.used),
                {"long_name": "1 if the target is severe, 0 if not"},
            ),
            "baseline_prediction": (
                "subject",
                _spread(baseline, task.used),
                {"long_name": "Mean of the training cohorts"},
            ),
            "dropped": ("subject", task.dropped, {"long_name": "Eligible, but not usable"}),
            "cohort_n": ("cohort", np.bincount(task.codes), {"long_name": "Subjects used"}),
            "n": ((), int(task.used.sum()), {"long_name": "Subjects used"}),
            "n_dropped": (
                (),
                int(task.dropped.sum()),
                {"long_name": "Eligible subjects without target or cohort"},
            ),
        },
        coords={
            "learner": np.array(run.learners, dtype=object),
            "feature_group": np.array(run.feature_groups, dtype=object),
            "metric": np.array(METRICS, dtype=object),
            "cohort": np.array(task.cohorts, dtype=object),
        },
    )
    return out if task.subjects is None else out.assign_coords(subject=task.subjects)


def _spread(values: FloatArray, used: BoolArray) -> FloatArray:
    """Put values of the rows used back among all subjects."""
    out = np.full((*values.shape[:-1], len(used)), np.nan)
    out[..., used] = values
    return out


def _importances(task: _Task, run: _Run, columns: dict[str, list[str]]) -> xr.Dataset:
    names = columns[run.feature_groups[-1]]
    importance = run.importance
    measured: BoolArray = np.asarray(np.isfinite(importance).all(axis=2))
    pairs = importance[measured]
    top = np.zeros(len(names))
    rank = np.full(len(names), np.nan)
    mean = np.full((len(run.learners), len(names)), np.nan)
    if len(pairs):
        third = np.sort(pairs, axis=1)[:, -min(3, len(names))][:, None]
        top = ((pairs >= third) & (pairs > 0)).mean(axis=0)
        rank = scipy.stats.rankdata(-pairs, axis=1).mean(axis=0)
        sizes = np.bincount(task.codes, minlength=len(task.cohorts)).astype(np.float64)
        for i in range(len(run.learners)):
            chosen = measured[i]
            mean[i] = np.average(importance[i, chosen], axis=0, weights=sizes[chosen])
    owner = [
        next((group for group, part in columns.items() if name in part), run.feature_groups[-1])
        for name in names
    ]
    by_learner = ("learner", "predictor")
    return xr.Dataset(
        {
            "importance": (by_learner, mean, {"long_name": "Loss of R2 when permuted"}),
            "importance_by_cohort": (
                ("learner", "cohort", "predictor"),
                importance,
                {"long_name": "Loss of R2 when permuted in the held-out cohort"},
            ),
            "top3_fraction": (
                "predictor",
                top,
                {"long_name": "Fraction of learners and held-out cohorts with it in the top 3"},
            ),
            "mean_rank": ("predictor", rank, {"long_name": "Mean rank, 1 is most important"}),
            "predictor_group": (
                "predictor",
                np.array(owner, dtype=object),
                {"long_name": "Feature group of the predictor"},
            ),
        },
        coords={
            "learner": np.array(run.learners, dtype=object),
            "cohort": np.array(task.cohorts, dtype=object),
            "predictor": np.array(names, dtype=object),
        },
    )


def _permutation_null(
    task: _Task, x: FloatArray, learner: str, n_trees: int, n_permutations: int, seed: int
) -> FloatArray:
    """R2 of the whole procedure with the target permuted within cohorts."""
    rng = np.random.default_rng([seed, 2])
    out = np.full(n_permutations, np.nan)
    missing = np.full(len(task.y), np.nan)
    ones = np.ones((1, len(task.cohorts)))
    for k in range(n_permutations):
        y = task.y.copy()
        for code in range(len(task.cohorts)):
            rows = np.flatnonzero(task.codes == code)
            y[rows] = rng.permutation(y[rows])
        predicted = np.full(len(y), np.nan)
        for (train, test), inner in zip(task.folds, task.inner, strict=True):
            fitted = tune_and_fit(learner, x[train], y[train], inner, n_trees=n_trees, seed=seed)
            predicted[test] = fitted.predict(x[test])
        out[k] = weighted_scores(y, predicted, task.severe, missing, task.codes, ones)[0, 0]
    return out
