"""How well the motor score of a new cohort is predicted, and from what."""

import math

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    and_list,
    cell,
    count,
    finite,
    interval,
    long_region,
    number,
    p_value,
    percent,
    plural,
    text,
)

__all__ = ["motor_section", "predictor_label"]

FloatArray = npt.NDArray[np.float64]

_METRICS = {
    "r2": "R²",
    "mae": "mean absolute error",
    "r": "r",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
}
_PLOTTED = ("r2", "auc")
_REFERENCE_LINE = {"r2": 0.0, "auc": 0.5, "balanced_accuracy": 0.5}
_SMALL_IS_GOOD = ("mae", "brier")
_SHOWN_PREDICTORS = 15
_MEASURES = {
    "lesion_load": "lesion load",
    "brain_pad": "brain-PAD",
    "brain_pad_corrected": "brain-PAD",
    "tract_load": "lesion load (overlap)",
    "tract_load_weighted": "lesion load (weighted)",
    "tract_load_max": "lesion load (largest section)",
}
_PREDICTORS = {
    "age": "Age",
    "sex_male": "Male sex",
    "days_post_stroke": "Days since stroke",
    "log10_lesion_volume": "Lesion volume (log)",
    "lesion_volume": "Lesion volume",
    "icv": "Intracranial volume",
    "brain_pad_global": "Brain-PAD of the whole brain",
    "brain_pad_global_corrected": "Brain-PAD of the whole brain",
}


def predictor_label(name: str) -> str:
    """Write a predictor's name for people, ``ipsilesional salience lesion load``."""
    if name in _PREDICTORS:
        return _PREDICTORS[name]
    measure, _, place = name.partition(":")
    if place and measure in _MEASURES:
        return f"{long_region(place)} {_MEASURES[measure]}"
    return name.replace("_", " ")


def motor_section(results: StudyResults) -> Section:
    """Score every learner and feature group on cohorts it did not see; rank the predictors."""
    title = "Predicting the motor score"
    motor = results.motor
    if motor is None:
        note = Note(results.why_missing("motor"), "missing")
        return Section("motor", title, "The motor score was not predicted.", [note])
    absent = [name for name in ("score", "ci_low", "ci_high") if name not in motor.variables]
    if absent:
        note = Note(f"The prediction result lacks {and_list(absent)}.", "missing")
        return Section("motor", title, "The motor score was not predicted.", [note])
    blocks: list[Block] = [_score_figure(motor), *_null_note(motor), _score_table(motor)]
    blocks += _ranking(motor)
    blocks += _details(motor)
    return Section("motor", title, _takeaway(motor), blocks)


def _labels(motor: xr.Dataset, dim: str) -> list[str]:
    return [str(label) for label in np.atleast_1d(motor[dim].values)]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _takeaway(motor: xr.Dataset) -> str:
    metrics = _labels(motor, "metric")
    metric = "r2" if "r2" in metrics else metrics[0]
    part = motor.sel(metric=metric)
    score = np.asarray(part["score"].transpose("learner", "feature_group").values, dtype=float)
    if not np.isfinite(score).any():
        return "No score could be computed."
    sign = -1.0 if metric in _SMALL_IS_GOOD else 1.0
    i, j = np.unravel_index(np.nanargmax(sign * score), score.shape)
    at = {"learner": int(i), "feature_group": int(j)}
    low, high = (float(part[name].isel(at)) for name in ("ci_low", "ci_high"))
    learner, features = _labels(motor, "learner")[i], _labels(motor, "feature_group")[j]
    n_cohorts = motor.sizes.get("cohort", 0)
    where = f"In {plural(n_cohorts, 'cohort')} left out one at a time" if n_cohorts else "Held out"
    out = (
        f"{where}, the best of {score.size} models ({_words(learner)} on {_words(features)} "
        f"predictors) reaches {_METRICS.get(metric, metric)} {number(score[i, j])} "
        f"(95% interval {interval(low, high)})"
    )
    if "baseline_score" in part.variables:
        out += f", against {number(part['baseline_score'])} for always guessing the mean"
    out += "."
    if metric == "r2" and low <= 0:
        out += " The interval includes zero: no useful prediction was shown."
    return out


def _score_figure(motor: xr.Dataset) -> Figure:
    metrics = [m for m in _PLOTTED if m in _labels(motor, "metric")]
    metrics = metrics or _labels(motor, "metric")[:2]
    learners, groups = _labels(motor, "learner"), _labels(motor, "feature_group")
    marks = "osD^v"
    colors = [drawing.CONTRA, drawing.IPSI, drawing.TRUTH, drawing.ACCENT, drawing.MUTED]
    alts = []
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.2 + 0.24 * len(groups) * max(2, len(learners)))
        panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
        for axes, metric in zip(panels, metrics, strict=True):
            part = motor.sel(metric=metric)
            for i, learner in enumerate(learners):
                offset = ((len(learners) - 1) / 2 - i) * 0.24
                for j, group in enumerate(groups):
                    at = {"learner": i, "feature_group": j}
                    value, low, high = (
                        float(part[name].isel(at)) for name in ("score", "ci_low", "ci_high")
                    )
                    y = len(groups) - 1 - j + offset
                    if math.isfinite(low) and math.isfinite(high):
                        axes.hlines(y, low, high, color=colors[i % 5], linewidth=1.8)
                    axes.plot(
                        value,
                        y,
                        marks[i % 5],
                        color=colors[i % 5],
                        markersize=6,
                        label=_words(learner) if j == 0 else None,
                    )
                    alts.append(f"{_words(group)}, {_words(learner)}: {metric} {number(value)}")
            baseline = _REFERENCE_LINE.get(metric)
            if metric == "r2" and "baseline_score" in part.variables:
                baseline = float(part["baseline_score"])
            if baseline is not None and math.isfinite(baseline):
                axes.axvline(baseline, color=drawing.INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xlabel(_METRICS.get(metric, metric))
            axes.grid(axis="x")
        panels[0].set_yticks(range(len(groups)), [_words(g) for g in groups[::-1]])
        panels[0].set_ylim(-0.6, len(groups) - 0.4)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handletextpad=0.2)
        svg = drawing.render(figure, "motor", "Held-out scores. " + "; ".join(alts))
    return Figure(
        "motor",
        svg,
        "Scores in cohorts that were not trained on, with 95% intervals that resample whole "
        "cohorts. R²: part of the variance of the motor score that is predicted, below zero "
        "where guessing the mean is better. AUC: severe against not severe, 0.5 is chance. "
        "Dashed: guessing the mean of the training cohorts, and chance. Naming the best of many "
        "models flatters it.",
    )


def _null_note(motor: xr.Dataset) -> list[Block]:
    if "p_permutation" not in motor.variables or not finite(motor["p_permutation"]):
        return []
    n = motor.sizes.get("permutation", 0)
    of = motor.attrs.get("permutation_of", "")
    words = f"Permutation test{f' ({of})' if of else ''}: p = {p_value(motor['p_permutation'])}"
    if n:
        words += (
            f" from {plural(n, 'permutation')}; the smallest p possible is {p_value(1 / (n + 1))}"
        )
    return [Note(words + ".")]


def _score_table(motor: xr.Dataset) -> Table:
    metrics = _labels(motor, "metric")
    ordered = motor.transpose("learner", "feature_group", "metric", ...)
    score, low, high = (
        np.asarray(ordered[name].values, dtype=np.float64)
        for name in ("score", "ci_low", "ci_high")
    )
    rows: list[list[Cell]] = []
    for i, learner in enumerate(_labels(motor, "learner")):
        for j, group in enumerate(_labels(motor, "feature_group")):
            row = [text(_words(learner)), text(_words(group))]
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
        "Held-out scores with 95% intervals, and the score of guessing the mean of the training "
        "cohorts.",
        [
            Column("Learner", numeric=False),
            Column("Predictors", numeric=False),
            *(Column(_METRICS.get(metric, metric)) for metric in metrics),
        ],
        rows,
        folded=True,
    )


def _ranking(motor: xr.Dataset) -> list[Block]:
    if not {"importance", "predictor"} <= set(motor.variables):
        return [Note("No predictor importance was computed.", "missing")]
    names = _labels(motor, "predictor")
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
    order = np.lexsort((np.arange(len(names)), -np.nan_to_num(mean, nan=-np.inf)))
    order = order[known[order]]
    words = and_list([predictor_label(names[i]) for i in order[:3]])
    note = (
        f"Ranked by how much R² is lost when a predictor is shuffled in held-out cohorts, the "
        f"first are {words}."
    )
    if np.isfinite(top[order[:3]]).all():
        stable = and_list([percent(top[i]) for i in order[:3]])
        note += f" They are among the top three in {stable} of learner and cohort pairs."
    figure = _ranking_figure(motor, names, mean, values, order, top)
    owners = _labels(motor, "predictor_group") if "predictor_group" in motor.variables else []
    rows = []
    for place, i in enumerate(order, start=1):
        rows.append(
            [
                cell(count(place), place),
                text(predictor_label(names[i])),
                *([text(_words(owners[i]))] if owners else []),
                cell(number(mean[i], 4), mean[i]),
                cell(number(rank[i], 1), rank[i]),
                cell(percent(top[i]), top[i]),
            ]
        )
    table = Table(
        "predictors",
        "Predictors by permutation importance; mean rank and the share of top-three places over "
        "learners and held-out cohorts say how stable the order is.",
        [
            Column("rank"),
            Column("Predictor", numeric=False),
            *([Column("Group", numeric=False)] if owners else []),
            Column("loss of R²"),
            Column("mean rank"),
            Column("in the top three"),
        ],
        rows,
        folded=True,
    )
    return [Note(note), figure, table]


def _ranking_figure(
    motor: xr.Dataset,
    names: list[str],
    mean: FloatArray,
    by_learner: FloatArray,
    order: npt.NDArray[np.intp],
    top: FloatArray,
) -> Figure:
    shown = order[:_SHOWN_PREDICTORS]
    learners = _labels(motor, "learner") if len(by_learner) > 1 else []
    rows = np.arange(len(shown))[::-1].astype(np.float64)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 0.95 + 0.27 * len(shown))
        axes = figure.subplots()
        axes.barh(rows, mean[shown], height=0.62, color=drawing.ACCENT, alpha=0.55)
        for k, learner in enumerate(learners):
            axes.plot(
                by_learner[k, shown],
                rows,
                "osD^v"[k % 5],
                linestyle="none",
                markersize=4.5,
                markerfacecolor=drawing.PAPER,
                markeredgecolor=drawing.INK,
                label=_words(learner),
            )
        for y, i in zip(rows, shown, strict=True):
            if math.isfinite(top[i]):
                axes.text(
                    1.015,
                    y,
                    percent(top[i]),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=8.5,
                    color=drawing.MUTED,
                )
        if np.isfinite(top[shown]).any():
            axes.text(
                1.015,
                len(shown) - 0.35,
                "in top 3",
                transform=axes.get_yaxis_transform(),
                fontsize=8,
                color=drawing.MUTED,
            )
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        axes.set_yticks(rows, [predictor_label(names[i]) for i in shown])
        axes.set_ylim(-0.7, len(shown) - 0.2)
        axes.set_xlabel("loss of R² when the predictor is shuffled")
        axes.grid(axis="x")
        if learners:
            figure.legend(loc="outside upper left", ncols=5, handletextpad=0.2)
        svg = drawing.render(
            figure,
            "importance",
            "Predictors by importance: "
            + "; ".join(f"{predictor_label(names[i])} {number(mean[i], 3)}" for i in shown),
        )
    return Figure(
        "importance",
        svg,
        f"The first {len(shown)} of {plural(len(order), 'predictor')}: mean over learners (bars), "
        "each learner (symbols). Predictors that correlate share their importance. Right: how "
        "often a predictor is among the top three.",
    )


def _details(motor: xr.Dataset) -> list[Block]:
    parts = []
    if "n" in motor.variables:
        parts.append(f"People: {count(motor['n'])}.")
    if motor.attrs.get("rows_dropped"):
        parts.append(f"Rows not used: {motor.attrs['rows_dropped']}.")
    if finite(motor.attrs.get("severe_below")):
        parts.append(f"Severe: motor score below {number(motor.attrs['severe_below'], 3)}.")
    skipped = motor.attrs.get("skipped")
    if isinstance(skipped, list | tuple) and skipped:
        parts.append("Without severity scores: " + "; ".join(str(s) for s in skipped) + ".")
    return [Note(" ".join(parts), "small")] if parts else []
