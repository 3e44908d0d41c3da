"""How well the motor score of a new cohort is predicted, and from what."""

import math

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Note,
    Section,
    StudyResults,
    Table,
    and_list,
    cell,
    confidence,
    count,
    finite,
    group_words,
    interval,
    level,
    number,
    p_value,
    p_words,
    percent,
    plural,
    text,
)
from scalebrain.report.motorfigures import (
    METRICS,
    as_words,
    calibration_figure,
    labels,
    predictor_label,
    ranking_figure,
    score_figure,
    target_words,
)

__all__ = ["motor_section", "motor_summary"]

FloatArray = npt.NDArray[np.float64]

_SMALL_IS_GOOD = ("mae", "brier")


def motor_section(results: StudyResults) -> Section:
    """Score every learner and feature group on cohorts it did not see; rank the predictors."""
    motor = results.motor
    target = "motor score" if motor is None else target_words(motor)
    title = f"Predicting the {target}"
    if motor is None:
        note = Note(results.why_missing("motor"), "missing")
        return Section("motor", title, f"The {target} was not predicted.", [note])
    absent = [name for name in ("score", "ci_low", "ci_high") if name not in motor.variables]
    if absent:
        note = Note(f"The prediction result lacks {and_list(absent)}.", "missing")
        return Section("motor", title, f"The {target} was not predicted.", [note])
    told = [Note(pooled, "caution")] if (pooled := _scales(motor)) else []
    told += [Note(sentence) for sentence in (_gain(motor), _null(motor)) if sentence]
    blocks: list[Block] = [score_figure(motor), *told, _score_table(motor), *_gain_table(motor)]
    if "calibration_n" in motor.variables and (motor["calibration_n"] > 0).any():
        blocks.append(calibration_figure(motor))
    blocks += [Note(sentence) for sentence in (_covered(motor), _unlike(motor)) if sentence]
    blocks += _ranking(motor)
    blocks += _details(motor)
    return Section("motor", title, _takeaway(motor), blocks)


def motor_summary(motor: xr.Dataset) -> list[str]:
    """Say in a few sentences what a motor prediction found."""
    told = [
        _takeaway(motor),
        _scales(motor),
        _gain(motor),
        _null(motor),
        _covered(motor),
        _unlike(motor),
    ]
    first = _ranking(motor)[0]
    return [sentence for sentence in told if sentence] + (
        [first.text] if isinstance(first, Note) else []
    )


def _takeaway(motor: xr.Dataset) -> str:
    metrics = labels(motor, "metric")
    metric = "r2" if "r2" in metrics else metrics[0]
    part = motor.sel(metric=metric)
    score = np.asarray(part["score"].transpose("learner", "feature_group").values, dtype=float)
    if not np.isfinite(score).any():
        return "No score could be computed."
    sign = -1.0 if metric in _SMALL_IS_GOOD else 1.0
    i, j = np.unravel_index(np.nanargmax(sign * score), score.shape)
    at = {"learner": int(i), "feature_group": int(j)}
    low, high = (float(part[name].isel(at)) for name in ("ci_low", "ci_high"))
    learner, features = labels(motor, "learner")[i], labels(motor, "feature_group")[j]
    n_cohorts = motor.sizes.get("cohort", 0)
    where = (
        f"In {plural(n_cohorts, *group_words(motor))} left out one at a time"
        if n_cohorts
        else "Held out"
    )
    out = (
        f"{where}, the best of {score.size} models ({as_words(learner)} on {as_words(features)} "
        f"predictors) reaches {METRICS.get(metric, metric)} {number(score[i, j])} "
        f"({confidence(motor)} interval {interval(low, high)})"
    )
    if "baseline_score" in part.variables:
        out += f", against {number(part['baseline_score'])} for always guessing the mean"
    out += "."
    if metric == "r2" and high < 0:
        out += " The interval lies below zero: worse than guessing the mean of these people."
    elif metric == "r2" and low <= 0:
        out += " The interval includes zero: no useful prediction was shown."
    return out


def _scales(motor: xr.Dataset) -> str:
    """Say that scores of several scales are pooled."""
    return str(motor.attrs.get("scale_note", ""))


def _gain(motor: xr.Dataset) -> str:
    """Say what all predictors add to lesion alone, or else to the first other group."""
    if "gain" not in motor.variables or "r2" not in labels(motor, "metric"):
        return ""
    others = labels(motor, "versus")
    other = "lesion" if "lesion" in others else others[0]
    part = motor.isel(versus=others.index(other)).sel(metric="r2")
    gained = []
    for i, learner in enumerate(labels(motor, "learner")):
        value, low, high = (float(part[name][i]) for name in ("gain", "gain_low", "gain_high"))
        gained.append(f"{number(value)} ({interval(low, high)}) with {as_words(learner)}")
    last = labels(motor, "feature_group")[-1]
    return (
        f"{as_words(last).capitalize()} predictors against {as_words(other)} ones alone, in R² "
        f"on the same people, with {confidence(motor)} intervals that resample "
        f"{group_words(motor)[1]}: {and_list(gained)}."
    )


def _null(motor: xr.Dataset) -> str:
    if "p_permutation" not in motor.variables:
        return ""
    values = np.atleast_1d(np.asarray(motor["p_permutation"].values, dtype=np.float64))
    if not np.isfinite(values).any():
        return ""
    n = motor.sizes.get("permutation", 0)
    of = motor.attrs.get("permutation_of", "")
    if "learner" in motor["p_permutation"].dims:
        named = zip(labels(motor, "learner"), values, strict=True)
        shown = and_list([f"{p_words(p)} for {as_words(learner)}" for learner, p in named])
    else:
        shown = p_words(values[0])
    out = f"Permutation test{f' ({of})' if of else ''}: {shown}"
    if n:
        out += (
            f" from {plural(n, 'permutation')}; the smallest p possible is {p_value(1 / (n + 1))}"
        )
    return out + "."


def _covered(motor: xr.Dataset) -> str:
    """How often the intervals of the last group held the outcome."""
    if "interval_covered" not in motor.variables:
        return ""
    part = motor.isel(feature_group=-1)
    found = []
    for i, learner in enumerate(labels(motor, "learner")):
        value, low, high = (
            float(part[name][i])
            for name in ("interval_covered", "interval_covered_low", "interval_covered_high")
        )
        if math.isfinite(value):
            found.append(
                f"{percent(value)} ({percent(low)} to {percent(high)}) with {as_words(learner)}"
            )
    if not found:
        return f"Too few people or {group_words(motor)[1]} for an interval of each prediction."
    out = (
        f"The {level(motor.attrs.get('coverage', math.nan))} interval of each person's "
        f"prediction held the outcome in {and_list(found)}."
    )
    many = group_words(motor)[1]
    if not motor.attrs.get("interval_guaranteed"):
        out += (
            f" With so few {many} it takes people of different {many} for exchangeable, which is "
            "not guaranteed."
        )
    return out


def _unlike(motor: xr.Dataset) -> str:
    if "unlike_training" not in motor.variables:
        return ""
    n = int(motor["unlike_training"].sum())
    used = int(motor["n"]) if "n" in motor.variables else motor.sizes["subject"]
    return (
        f"{n} of {plural(used, 'person', 'people')} {'is' if n == 1 else 'are'} unlike anyone in "
        f"the {group_words(motor)[1]} trained on; trust such predictions least."
    )


def _gain_table(motor: xr.Dataset) -> list[Block]:
    if "gain" not in motor.variables:
        return []
    metrics = labels(motor, "metric")
    ordered = motor.transpose("learner", "versus", "metric", ...)
    value, low, high = (
        np.asarray(ordered[name].values, dtype=np.float64)
        for name in ("gain", "gain_low", "gain_high")
    )
    rows: list[list[Cell]] = []
    for i, learner in enumerate(labels(motor, "learner")):
        for j, other in enumerate(labels(motor, "versus")):
            row = [text(as_words(learner)), text(as_words(other))]
            for k in range(len(metrics)):
                limits = interval(low[i, j, k], high[i, j, k])
                shown = number(value[i, j, k]) + (f" ({limits})" if limits != "–" else "")
                row.append(cell(shown, value[i, j, k]))
            rows.append(row)
    last = as_words(labels(motor, "feature_group")[-1])
    return [
        Table(
            "motor-gain",
            f"Gain of {last} predictors over each other group, with {confidence(motor)} intervals: "
            "positive is better, of every score.",
            [
                Column("Learner", numeric=False),
                Column("Compared with", numeric=False),
                *(Column(METRICS.get(metric, metric)) for metric in metrics),
            ],
            rows,
            folded=True,
        )
    ]


def _score_table(motor: xr.Dataset) -> Table:
    metrics = labels(motor, "metric")
    ordered = motor.transpose("learner", "feature_group", "metric", ...)
    score, low, high = (
        np.asarray(ordered[name].values, dtype=np.float64)
        for name in ("score", "ci_low", "ci_high")
    )
    rows: list[list[Cell]] = []
    for i, learner in enumerate(labels(motor, "learner")):
        for j, group in enumerate(labels(motor, "feature_group")):
            row = [text(as_words(learner)), text(as_words(group))]
            for k in range(len(metrics)):
                limits = interval(low[i, j, k], high[i, j, k])
                shown = number(score[i, j, k]) + (f" ({limits})" if limits != "–" else "")
                row.append(cell(shown, score[i, j, k]))
            rows.append(row)
    if "baseline_score" in motor.variables:
        base = np.asarray(motor["baseline_score"].values, dtype=np.float64)
        rows.append(
            [text("guess the mean"), text("none"), *(cell(number(value), value) for value in base)]
        )
    return Table(
        "motor-table",
        f"Held-out scores with {confidence(motor)} intervals, and the score of guessing the mean "
        f"of the training {group_words(motor)[1]}.",
        [
            Column("Learner", numeric=False),
            Column("Predictors", numeric=False),
            *(Column(METRICS.get(metric, metric)) for metric in metrics),
        ],
        rows,
        folded=True,
    )


def _ranking(motor: xr.Dataset) -> list[Block]:
    if not {"importance", "predictor"} <= set(motor.variables):
        return [Note("No predictor importance was computed.", "missing")]
    names = labels(motor, "predictor")
    importance = motor["importance"]
    by_learner = (
        importance.transpose("learner", "predictor").values
        if "learner" in importance.dims
        else importance.values[None]
    )
    values: FloatArray = np.asarray(by_learner, dtype=np.float64)
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).any(axis=0))
    if not known.any():
        return [Note("No predictor importance was computed.", "missing")]
    mean = np.full(len(names), math.nan)
    mean[known] = np.nanmean(values[:, known], axis=0)

    def column(name: str) -> FloatArray:
        if name not in motor.variables:
            return np.full(len(names), math.nan)
        return np.asarray(motor[name].values, dtype=np.float64)

    rank, top = column("mean_rank"), column("top3_fraction")
    shap = np.full(len(names), math.nan)
    if "shap_importance" in motor.variables:
        shap = np.asarray(motor["shap_importance"].mean("learner").values, dtype=np.float64)
    has_shap = bool(np.isfinite(shap).any())
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(mean, nan=-np.inf)))
    order = order[known[order]]
    one, many = group_words(motor)
    first = [i for i in order[:3] if mean[i] > 0]
    named = and_list([predictor_label(names[i]) for i in first])
    note = f"No R² was lost when any predictor was shuffled in held-out {many}."
    if first:
        note = (
            f"Ranked by how much R² is lost when a predictor is shuffled in held-out {many}, the "
            f"first {'is' if len(first) == 1 else 'are'} {named}."
        )
    if first and np.isfinite(top[first]).all():
        stable = and_list([percent(top[i]) for i in first])
        note += f" {'It is' if len(first) == 1 else 'They are'} among the top three in {stable} of "
        note += f"learner and {one} pairs."
    figure = ranking_figure(motor, names, mean, values, order, top)
    owners = labels(motor, "predictor_group") if "predictor_group" in motor.variables else []
    rows = []
    for place, i in enumerate(order, start=1):
        rows.append(
            [
                cell(count(place), place),
                text(predictor_label(names[i])),
                *([text(as_words(owners[i]))] if owners else []),
                cell(number(mean[i], 4), mean[i]),
                cell(number(rank[i], 1), rank[i]),
                cell(percent(top[i]), top[i]),
                *([cell(number(shap[i], 4), shap[i])] if has_shap else []),
            ]
        )
    table = Table(
        "predictors",
        "Predictors by permutation importance; mean rank and the share of top-three places over "
        f"learners and held-out {many} say how stable the order is.",
        [
            Column("rank"),
            Column("Predictor", numeric=False),
            *([Column("Group", numeric=False)] if owners else []),
            Column("loss of R²"),
            Column("mean rank"),
            Column("in the top three"),
            *([Column("mean |SHAP|", hint="of the prediction, in its units")] if has_shap else []),
        ],
        rows,
        folded=True,
    )
    return [Note(note), figure, table]


def _details(motor: xr.Dataset) -> list[Block]:
    parts = []
    if "n" in motor.variables:
        parts.append(f"People: {count(motor['n'])}.")
    if motor.attrs.get("rows_dropped"):
        parts.append(f"Rows not used: {motor.attrs['rows_dropped']}.")
    if finite(motor.attrs.get("severe_below")):
        parts.append(
            f"Severe: {target_words(motor)} below {number(motor.attrs['severe_below'], 3)}."
        )
    skipped = motor.attrs.get("skipped")
    if isinstance(skipped, list | tuple) and skipped:
        parts.append("Without severity scores: " + "; ".join(str(s) for s in skipped) + ".")
    return [Note(" ".join(parts), "small")] if parts else []
