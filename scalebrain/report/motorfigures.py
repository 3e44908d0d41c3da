"""Drawings of the motor prediction: scores, calibration, and the order of the predictors."""

import math

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.report import drawing
from scalebrain.report.content import (
    Figure,
    confidence,
    group_words,
    long_region,
    number,
    percent,
    plural,
)

__all__ = [
    "METRICS",
    "as_words",
    "calibration_figure",
    "labels",
    "predictor_label",
    "ranking_figure",
    "score_figure",
    "target_words",
]

FloatArray = npt.NDArray[np.float64]

#: Metrics as a page writes them.
METRICS = {
    "r2": "R²",
    "mae": "mean absolute error",
    "r": "r",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
}
_PLOTTED = ("r2", "auc")
_REFERENCE_LINE = {"r2": 0.0, "auc": 0.5, "balanced_accuracy": 0.5}
_SHOWN_PREDICTORS = 15
_MEASURES = {
    "lesion_load": "lesion load",
    "brain_pad": "brain-PAD",
    "brain_pad_corrected": "brain-PAD",
    "tract_load": "lesion load (overlap)",
    "tract_load_weighted": "lesion load (weighted)",
    "tract_load_max": "lesion load (largest section)",
    "tract_loads": "lesion load (three measures)",
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


def labels(motor: xr.Dataset, dim: str) -> list[str]:
    """Labels of a dimension as text."""
    return [str(label) for label in np.atleast_1d(motor[dim].values)]


def target_words(motor: xr.Dataset) -> str:
    """Name what is predicted."""
    return as_words(str(motor.attrs.get("target", "motor_score")))


def as_words(name: str) -> str:
    """Write a name as words."""
    return name.replace("_", " ")


def score_figure(motor: xr.Dataset) -> Figure:
    """Draw the scores of every learner and group."""
    metrics = [m for m in _PLOTTED if m in labels(motor, "metric")]
    metrics = metrics or labels(motor, "metric")[:2]
    learners, groups = labels(motor, "learner"), labels(motor, "feature_group")
    many = group_words(motor)[1]
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
                        label=as_words(learner) if j == 0 else None,
                    )
                    alts.append(f"{as_words(group)}, {as_words(learner)}: {metric} {number(value)}")
            baseline = _REFERENCE_LINE.get(metric)
            if metric == "r2" and "baseline_score" in part.variables:
                baseline = float(part["baseline_score"])
            if baseline is not None and math.isfinite(baseline):
                axes.axvline(baseline, color=drawing.INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xlabel(METRICS.get(metric, metric))
            axes.grid(axis="x")
        panels[0].set_yticks(range(len(groups)), [as_words(g) for g in groups[::-1]])
        panels[0].set_ylim(-0.6, len(groups) - 0.4)
        handles, named = panels[0].get_legend_handles_labels()
        figure.legend(handles, named, loc="outside upper left", ncols=5, handletextpad=0.2)
        svg = drawing.render(figure, "motor", "Held-out scores. " + "; ".join(alts))
    return Figure(
        "motor",
        svg,
        f"Scores in {many} that were not trained on, with {confidence(motor)} intervals that "
        f"resample whole {many}. R²: part of the variance of the {target_words(motor)} that is "
        "predicted, below zero where guessing the mean is better. AUC: severe against not severe, "
        f"0.5 is chance. Dashed: guessing the mean of the training {many}, and chance. Naming the "
        "best of many models flatters it.",
    )


def calibration_figure(motor: xr.Dataset) -> Figure:
    """Draw how often those of a given probability were severe, in the last group."""
    part = motor.isel(feature_group=-1)
    learners = labels(motor, "learner")
    colors = [drawing.CONTRA, drawing.IPSI, drawing.TRUTH, drawing.ACCENT, drawing.MUTED]
    alts = []
    with drawing.drawing():
        figure = drawing.canvas(9.6, 3.6)
        panels = np.atleast_1d(figure.subplots(1, len(learners), sharex=True, sharey=True))
        for i, (axes, learner) in enumerate(zip(panels, learners, strict=True)):
            one = part.isel(learner=i)
            n = one["calibration_n"].values
            drawn = n > 0
            x, y, low, high = (
                one[f"calibration_{name}"].values[drawn]
                for name in ("predicted", "observed", "low", "high")
            )
            color = colors[i % 5]
            axes.plot([0, 1], [0, 1], color=drawing.INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.vlines(x, low, high, color=color, linewidth=1.2)
            axes.plot(x, y, color=color, linewidth=1.2)
            axes.scatter(x, y, s=12 + 120 * n[drawn] / max(n.sum(), 1), color=color, zorder=3)
            slope, shift = (float(one[f"calibration_{name}"]) for name in ("slope", "intercept"))
            axes.set_title(
                f"{as_words(learner)}\nslope {number(slope)}, intercept {number(shift)}", fontsize=9
            )
            axes.set_xlabel("predicted probability")
            axes.set_xticks([0.2, 0.4, 0.6, 0.8])  # the ends would meet those of the next panel
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="both")
            pairs = ", ".join(f"{percent(a)}: {percent(b)}" for a, b in zip(x, y, strict=True))
            alts.append(f"{as_words(learner)} predicted and observed {pairs or 'nothing'}")
        panels[0].set_ylabel("observed fraction severe")
        svg = drawing.render(figure, "calibration", "Calibration. " + "; ".join(alts))
    return Figure(
        "calibration",
        svg,
        f"Calibration of the probability of being severe, from "
        f"{as_words(labels(motor, 'feature_group')[-1])} predictors: fraction that was severe "
        "among held-out people of about that probability, with 95% Wilson intervals (larger "
        "points: more people). Dashed: right on average. A slope below 1: probabilities too "
        "extreme; an intercept above 0: too low.",
    )


def ranking_figure(
    motor: xr.Dataset,
    names: list[str],
    mean: FloatArray,
    by_learner: FloatArray,
    order: npt.NDArray[np.intp],
    top: FloatArray,
) -> Figure:
    """Draw the first predictors by importance."""
    shown = order[:_SHOWN_PREDICTORS]
    learners = labels(motor, "learner") if len(by_learner) > 1 else []
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
                label=as_words(learner),
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
