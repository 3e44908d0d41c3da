"""Prediction of motor outcome, leaving one cohort out."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import ConfigError
from scalebrain.predict.conformal import COHORTS, NO_INTERVAL
from scalebrain.predict.fold import FoldJob, FoldResult, FoldWork, fit_fold
from scalebrain.predict.harmonized import FoldHarmonizer
from scalebrain.predict.importance import importance_units, unit_positions
from scalebrain.predict.learners import LEARNERS
from scalebrain.predict.metrics import METRICS
from scalebrain.predict.null import permutation_null
from scalebrain.predict.predictors import build_predictors, check_not_the_outcome
from scalebrain.predict.ranking import importance_table
from scalebrain.predict.scores import Draws, calibration, coverage_table, gain_table, score_table
from scalebrain.predict.task import MotorTask
from scalebrain.stats.counts import check_count
from scalebrain.stats.scales import SEVERE_BELOW, scale_note

__all__ = ["SEVERE_BELOW", "predict_motor"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]


def predict_motor(
    ds: xr.Dataset,
    *,
    target: Hashable = "motor_score",
    groups: Hashable = "cohort",
    feature_groups: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    extra: pd.DataFrame | pd.Series[Any] | xr.Dataset | None = None,
    learners: Sequence[str] = LEARNERS,
    severe_below: float | None = None,
    n_inner: int = 3,
    n_trees: int = 50,
    n_boot: int = 1000,
    n_repeats: int = 5,
    n_permutations: int = 100,
    search_anew: Sequence[str] = ("elastic_net",),
    coverage: float = 0.9,
    harmonize: Sequence[str] = (),
    unseen: Literal["adapt", "unchanged"] = "adapt",
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
        Names out of ``clinical``, ``lesion``, ``brain_age``, ``extra`` and ``combined``, or a
        mapping from a name to variables over ``subject``. Default: all that there are. The
        last group is explained, tested by permutations, and compared with each other one.
    extra
        Further predictors: a table, or a Series that has a name, indexed by subject, or a
        Dataset over ``subject`` and at most one more dimension (region, edge). Everyone used
        needs a row; unknown subjects are an error.
    learners
        Names out of ``elastic_net``, ``random_forest``, ``gradient_boosting``.
    severe_below
        A target below this is severe. Default: 0.424, 28 of the 66 points of Fugl-Meyer. Of
        another `target`, of points instead of fractions, and where ``motor_scale`` names
        another scale, there is no default: nobody is called severe.
    n_inner
        Folds of whole cohorts that choose the settings, inside each training set.
    n_trees
        Trees of the forests and of boosting.
    n_boot
        Replicates of the bootstrap over cohorts; 0 for none: intervals are missing.
    n_repeats
        Permutations of each predictor in a held-out cohort; 0 for none: importance is missing.
    n_permutations
        Refits of the last feature group with the target permuted within cohorts; 0 for none.
        The smallest p value is ``1 / (n_permutations + 1)``.
    search_anew
        Learners whose settings are searched anew in every permutation; those of the others
        are held at what the real run chose in the fold.
    coverage
        Wanted coverage of the interval of each prediction.
    harmonize
        Feature groups that ComBat harmonizes over cohorts, fitted on the training rows of
        each fold.
    unseen
        With `harmonize`, what becomes of a held-out cohort: ``"adapt"`` estimates its shift
        and scale from its own predictors (10 people or more), never from its outcome, so that
        a prediction depends on who is tested together; ``"unchanged"`` leaves it as it is.
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
        ``(learner, versus, metric)``: ``gain``, ``gain_low``, ``gain_high`` of the last group
        over each other one. Over ``metric``: ``baseline_score``. Over
        ``(learner, feature_group, subject)``: ``prediction``, ``interval_low``,
        ``interval_high``, ``severe_probability``; over ``(learner, feature_group)``:
        ``interval_covered`` with ``interval_covered_low`` and ``interval_covered_high``, and
        ``calibration_slope`` and ``calibration_intercept`` of being severe; with ``bin`` their
        curve, ``calibration_n``, ``calibration_predicted``, ``calibration_observed``,
        ``calibration_low`` and ``calibration_high``. Over ``subject``: ``observed``,
        ``severe``, ``baseline_prediction``, ``unlike_training``, ``unlike_reason``,
        ``training_distance``, ``training_distance_limit``, ``dropped``. Over
        ``(learner, predictor)``: ``importance``, ``shap_importance``, ``top3_by_learner``,
        ``shap_top3``; with ``cohort``: ``importance_by_cohort``; with ``subject``: ``shap``,
        which sums to the prediction with ``shap_base``; over ``predictor``:
        ``top3_fraction``, ``mean_rank``, ``predictor_group``. Over
        ``(learner, feature_group, cohort)``: ``settings`` (JSON). Over
        ``(learner, permutation)``: ``null_r2``; over ``learner``: ``p_permutation``; scalars
        ``n``, ``n_dropped``; over ``cohort``: ``cohort_n``. ``attrs["skipped"]`` lists every
        fold that could not be classified, ``attrs["importance_groups"]`` the predictors that
        were permuted together, ``attrs["scales"]`` the people of each scale that is named, and
        ``attrs["scale_note"]`` says so if several are pooled.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If there are fewer than two cohorts with usable rows, a person or a scan is used twice, the
        target is constant or among the predictors, or `extra` does not fit.
    ConfigError
        If a learner or a feature group is unknown, or a number is out of range.

    Notes
    -----
    Imputer, limits, scaler and estimator (and harmonization) are fitted on training cohorts
    only, and a held-out predictor is cut to the range of the training rows; settings are
    chosen by inner folds of whole cohorts (with one training cohort, the middle setting is
    taken). ``dropped`` marks everyone who is not used: those of another group, excluded or
    extrapolated, or without a target or a cohort; missing predictors are imputed.

    ``importance`` is the loss in R2 when a predictor is permuted within the held-out
    cohort, in the last feature group, averaged over cohorts by size; predictors that
    correlate share it, so the loads of one tract are permuted together, as the predictor
    ``tract_loads:<tract>``. ``top3_fraction`` is the fraction of (learner, held-out cohort)
    pairs in which the predictor is among the three of largest, positive importance.

    Intervals are conformal (:func:`scalebrain.predict.conformal.half_width`) and
    ``unlike_training`` marks people far from those trained on
    (:func:`scalebrain.predict.conformal.likeness`).

    Tasks run on the workers of an active Dask client (:func:`scalebrain.open_client`), else
    one after another, with the same result. Rows are taken in the order of their ids, so that
    the order of the Dataset changes nothing.

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
    learners = [learners] if isinstance(learners, str) else learners
    search_anew = [search_anew] if isinstance(search_anew, str) else search_anew
    _check(learners, search_anew, coverage, confidence)
    for name, count, least in (
        ("n_inner", n_inner, 2),
        ("n_trees", n_trees, 1),
        ("n_boot", n_boot, 0),
        ("n_repeats", n_repeats, 0),
        ("n_permutations", n_permutations, 0),
        ("seed", seed, 0),
    ):
        check_count(name, count, least=least, error=ConfigError)
    if seed >= 2**32:
        raise ConfigError(f"seed must be below 2**32, as scikit-learn takes it, got {seed}.")
    if severe_below is not None and not np.isfinite(severe_below):
        raise ConfigError(f"severe_below must be a number, or None, got {severe_below}.")
    task = MotorTask.of(
        ds,
        target=target,
        groups=groups,
        group=group,
        included=included,
        severe_below=severe_below,
        n_inner=n_inner,
        seed=seed,
    )
    table, columns = build_predictors(ds, feature_groups, extra=extra, needed=task.used)
    table = table.iloc[task.rows]
    check_not_the_outcome(table, task.y, str(target))
    names = list(columns)
    units = importance_units(columns[names[-1]])
    positions = [table.columns.get_indexer(pd.Index(columns[name])) for name in names]
    work = FoldWork(
        x=table.to_numpy(dtype=np.float64),
        y=task.y,
        severe=task.severe.astype(np.float64),
        codes=task.codes,
        cohorts=task.cohorts,
        folds=task.folds,
        inner=task.inner,
        learners=tuple(learners),
        columns=[columns[name] for name in names],
        positions=positions,
        units=unit_positions(columns[names[-1]], units),
        n_trees=n_trees,
        n_repeats=n_repeats,
        seed=seed,
        coverage=coverage,
        harmonizer=_harmonizers(columns, harmonize, unseen, task, str(groups)),
    )
    jobs = [
        FoldJob(k, i, j)
        for i in sorted(range(len(learners)), key=lambda i: learners[i] != "random_forest")
        for j in reversed(range(len(names)))
        for k in range(len(task.folds))
    ]
    done = dict(
        zip(
            jobs,
            map_tasks(fit_fold, jobs, label="motor prediction", shared=work, threads=1),
            strict=True,
        )
    )
    draws = Draws.of(len(task.cohorts), n_boot, seed, confidence)
    out = _held_out(task, work, names, done, draws)
    out = out.merge(importance_table(task, work, columns, units, done))
    real = out["score"].sel(metric="r2").values[:, -1]
    null = permutation_null(task, work, done, real, n_permutations, search_anew)
    out = out.merge(null.assign_coords(learner=out["learner"]))
    kinds = sorted({one.width_kind for one in done.values()})
    out.attrs = {
        "target": str(target),
        "groups": str(groups),
        "severe_below": task.severe_below if np.isfinite(task.severe_below) else "",
        "scales": dict(task.scales),
        "scale_note": scale_note(task.scales),
        "seed": seed,
        "confidence": confidence,
        "coverage": coverage,
        "interval_over": kinds,
        "interval_guaranteed": int(kinds == [COHORTS]),
        "skipped": task.skipped,
        "rows_dropped": task.told,
        "permutation_of": f"{names[-1]}, target permuted within {groups}",
        "search_anew": [name for name in learners if name in search_anew],
        "importance_of": names[-1],
        "importance_groups": {name: part for name, part in units.items() if len(part) > 1},
        "harmonized": list(harmonize),
        "harmonize_unseen": unseen if harmonize else "",
    }
    if NO_INTERVAL in kinds:
        logger.info("Motor prediction: too few people or cohorts for an interval of %g", coverage)
    return out


def _check(
    learners: Sequence[str], search_anew: Sequence[str], coverage: float, confidence: float
) -> None:
    unknown = [name for name in (*learners, *search_anew) if name not in LEARNERS]
    if unknown or not learners:
        raise ConfigError(f"Unknown learners {unknown}. Choose from {', '.join(LEARNERS)}.")
    if len(set(learners)) < len(learners):
        raise ConfigError(f"Learners {list(learners)} are named twice. Name each once.")
    for name, value in (("coverage", coverage), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {value}.")


def _harmonizers(
    columns: Mapping[str, list[str]],
    harmonize: Sequence[str],
    unseen: Literal["adapt", "unchanged"],
    task: MotorTask,
    groups: str,
) -> dict[int, FoldHarmonizer]:
    """Find the columns of each group that are harmonized."""
    if unseen not in ("adapt", "unchanged"):
        raise ConfigError(f"unseen must be 'adapt' or 'unchanged', got {unseen!r}.")
    if isinstance(harmonize, str):
        harmonize = [harmonize]
    absent = [name for name in harmonize if name not in columns]
    if absent:
        raise ConfigError(f"harmonize: no feature group {absent}. There are {list(columns)}.")
    wanted = {name for group in harmonize for name in columns[group]}
    out = {}
    for j, names in enumerate(columns.values()):
        own = [k for k, name in enumerate(names) if name in wanted]
        if own:
            out[j] = FoldHarmonizer(
                np.array(own),
                tuple(names[k] for k in own),
                task.codes,
                tuple(task.cohorts),
                groups,
                unseen,
            )
    return out


def _held_out(
    task: MotorTask,
    work: FoldWork,
    names: list[str],
    done: Mapping[FoldJob, FoldResult],
    draws: Draws,
) -> xr.Dataset:
    """Predictions of everyone, their intervals and scores."""
    shape = (len(work.learners), len(names))
    severe = np.where(np.isfinite(task.severe_below), task.severe, np.nan)
    prediction, probability, width = (np.full((*shape, len(task.y)), np.nan) for _ in range(3))
    settings = np.full((*shape, len(task.cohorts)), "", dtype=object)
    distance, limit = np.full(len(task.y), np.nan), np.full(len(task.y), np.nan)
    reason = np.full(len(task.y), "", dtype=object)
    for (k, i, j), found in done.items():
        test = task.folds[k][1]
        prediction[i, j, test], width[i, j, test] = found.prediction, found.width
        if found.probability is not None:
            probability[i, j, test] = found.probability
        settings[i, j, k] = found.settings_text
        if found.likeness is not None:
            distance[test], limit[test] = found.likeness.distance, found.likeness.limit
            reason[test] = found.likeness.reason
    scores, replicates = score_table(task, prediction, probability, draws)
    inside = np.where(np.isfinite(width), np.abs(task.y - prediction) <= width, np.nan)
    every = ("learner", "feature_group", "subject")
    told: dict[str, tuple[str, FloatArray]] = {
        "prediction": ("Held-out prediction of the target", prediction),
        "interval_low": ("Lower end of the interval of the target", prediction - width),
        "interval_high": ("Upper end of the interval of the target", prediction + width),
        "severe_probability": ("Held-out probability of being severe", probability),
    }
    alone: dict[str, tuple[str, npt.NDArray[np.generic]]] = {
        "observed": ("Target of the subjects used", task.spread(task.y)),
        "severe": ("1 if the target is severe, 0 if not", task.spread(severe)),
        "unlike_training": (
            "The subject is unlike anyone in training",
            task.spread(reason != "", False),
        ),
        "unlike_reason": (
            "Why the subject is unlike anyone in training, or empty",
            task.spread(reason, ""),
        ),
        "training_distance": (
            "Distance to the nearest training rows, SD",
            task.spread(distance),
        ),
        "training_distance_limit": (
            "Distance beyond which a subject is unlike anyone in training, SD",
            task.spread(limit),
        ),
        "dropped": ("The subject was not used", ~task.used),
    }
    out = xr.Dataset(
        {k: (every, task.spread(v), {"long_name": words}) for k, (words, v) in told.items()}
        | {k: ("subject", v, {"long_name": words}) for k, (words, v) in alone.items()}
        | {
            "settings": (
                ("learner", "feature_group", "cohort"),
                settings,
                {"long_name": "Settings chosen by the inner folds, JSON"},
            ),
            "cohort_n": ("cohort", np.bincount(task.codes), {"long_name": "Subjects used"}),
            "n": ((), int(task.used.sum()), {"long_name": "Subjects used"}),
            "n_dropped": (
                (),
                int((~task.used).sum()),
                {"long_name": "Subjects not used"},
            ),
        },
        coords={
            "learner": np.array(work.learners, dtype=object),
            "feature_group": np.array(names, dtype=object),
            "metric": np.array(METRICS, dtype=object),
            "cohort": np.array(task.cohorts, dtype=object),
        },
    )
    if task.subjects is not None:
        out = out.assign_coords(subject=task.subjects)
    parts = [scores, calibration(task, probability), coverage_table(task, inside, draws)]
    if len(names) > 1:
        parts.append(gain_table(replicates, names, draws))
    return out.merge(xr.merge(parts, join="exact", compat="equals"), join="exact", compat="equals")
