"""How good the regional brain ages are in people without a stroke."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.features.inclusion import same_people
from scalebrain.graph.imported import imported_from
from scalebrain.report import drawing
from scalebrain.report.calibration import Coverage, coverage_blocks, read_coverage
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    cell,
    count,
    finite,
    included_references,
    level,
    long_region,
    number,
    percent,
    plural,
    span,
    split_region,
    text,
)
from scalebrain.report.siteshift import site_blocks
from scalebrain.stats.pads import GLOBAL_REGION, find_pad

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_section"]

FloatArray = npt.NDArray[np.float64]

_TITLE = "How well age is read from each region"


def accuracy_section(ds: xr.Dataset, results: StudyResults) -> Section:
    """Put the error of each region beside guessing the mean, and beside the best possible.

    Parameters
    ----------
    ds
        Store with ``brain_age``; intervals and calibration are shown where it has them.
    results
        Results with ``accuracy`` and ``site_shift``.

    Returns
    -------
    Section
        With the reason in place of what is missing.
    """
    accuracy = results.accuracy
    blocks: list[Block] = []
    title = "How well age is read from the scan" if find_pad(ds).is_global else _TITLE
    takeaway = "The accuracy of the brain ages was not measured."
    imported = imported_from(ds)
    if imported:
        takeaway = f"The brain ages were imported from {imported}; their accuracy was not measured."
        blocks.append(_correction_note(ds))
        ds = _of_regions(ds)
    coverage = None if imported else read_coverage(ds)
    if accuracy is None:
        blocks.append(Note(results.why_missing("accuracy"), "missing"))
    else:
        accuracy = accuracy.reset_coords(drop=True)
        mae, mean = _column(accuracy, "mae"), _column(accuracy, "mae_mean")
        known = np.isfinite(mae) & np.isfinite(mean)
        better = int((mae < mean)[known].sum())
        takeaway = (
            f"In people without a stroke, reading age from the scan beats guessing the mean age in "
            f"{better} of {plural(int(known.sum()), 'region')}: the mean absolute error is "
            f"{span(mae)} years, against {span(mean)} years for the guess."
        )
        blocks.append(_error_figure(accuracy))
        blocks += _deviation_blocks(accuracy, results)
        blocks.append(_table(accuracy, ds, coverage))
    scatter = _scatter_figure(ds, is_imported=bool(imported))
    if scatter is None:
        reason = "No age plot: the data set has no brain_age for included reference people."
        blocks.append(Note(reason, "missing"))
    else:
        blocks.insert(1 if accuracy is not None else len(blocks), scatter)
    if coverage is not None:
        blocks += coverage_blocks(coverage)
    if results.site_shift is None:
        blocks.append(Note(results.why_missing("site_shift"), "missing"))
    else:
        blocks += site_blocks(ds, results.site_shift)
    return Section("accuracy", title, takeaway, blocks)


def _correction_note(ds: xr.Dataset) -> Note:
    """Say whether the age bias of imported ages is corrected, and by what."""
    pad = ds["brain_pad" if "brain_pad" in ds.variables else "brain_pad_global"]
    how = str(pad.attrs.get("age_bias_correction", ""))
    if how == "references":
        return Note(
            f"The age bias was corrected by the {count(pad.attrs['n_references'])} or more "
            "reference people of this study, themselves among them: they deviate by about zero "
            "on average, and less than new people would."
        )
    if how == "tool":
        return Note(
            "The age bias was corrected by the tool. Which part of a true deviation is left is "
            "not known, so years cannot be compared with those of another tool or region.",
            "caution",
        )
    return Note(
        "The age bias is not corrected: there are too few reference people, and the table brought "
        "no corrected ages. Brain-PAD tends to fall with age for that reason alone; age is a "
        "covariate of the models, and brain-PADs of people of unlike age cannot be compared.",
        "caution",
    )


def _of_regions(ds: xr.Dataset) -> xr.Dataset:
    """Ages of the whole brain as those of one region."""
    if "brain_age" in ds.variables:
        return ds
    whole = ds["brain_age_global"].expand_dims(region=[GLOBAL_REGION])
    names = ["age", "group", "included", "person", "dataset", "scan_hash"]
    names = [name for name in names if name in ds.variables]
    bare = ds[names].drop_dims("region", errors="ignore")
    return bare.assign(brain_age=whole)


def _column(table: xr.Dataset, name: str) -> FloatArray:
    if name not in table.variables:
        return np.full(table.sizes["region"], np.nan)
    values: FloatArray = np.asarray(table[name].values, dtype=np.float64)
    return values


def _error_figure(accuracy: xr.Dataset) -> Figure:
    regions = [str(r) for r in accuracy["region"].values]
    mae, mean = _column(accuracy, "mae"), _column(accuracy, "mae_mean")
    oracle = _column(accuracy, "oracle_mae")
    rows = np.arange(len(regions))[::-1].astype(np.float64)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.0 + 0.24 * len(regions))
        axes = figure.subplots()
        axes.hlines(rows, mae, mean, color=drawing.LINE, linewidth=2.5, zorder=1)
        axes.scatter(
            mean,
            rows,
            marker="|",
            s=90,
            linewidths=2,
            color=drawing.MUTED,
            label="guess the mean age",
        )
        axes.scatter(mae, rows, s=46, color=drawing.ACCENT, label="brain age", zorder=3)
        if np.isfinite(oracle).any():
            axes.scatter(
                oracle,
                rows,
                marker="D",
                s=26,
                facecolors=drawing.PAPER,
                edgecolors=drawing.TRUTH,
                linewidths=1.5,
                label="best possible (simulation)",
                zorder=2,
            )
        axes.set_yticks(rows, [_short(r) for r in regions])
        axes.set_ylim(-0.7, len(regions) - 0.3)
        axes.set_xlim(left=0)
        axes.set_xlabel("Mean absolute error, years (smaller is better)")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
        alt = (
            f"Mean absolute error in years of {len(regions)} regions: brain age {span(mae)}, "
            f"guessing the mean age {span(mean)}"
        )
        if np.isfinite(oracle).any():
            alt += f", best possible {span(oracle)}"
        svg = drawing.render(figure, "mae", alt + ".")
    caption = (
        "Mean absolute error of the predicted age in reference people, each predicted by a model "
        "that did not see them, beside the error of guessing the mean age of the others."
    )
    if np.isfinite(oracle).any():
        caption += (
            " Diamonds: the smallest error possible given the noise that the simulation put in."
        )
    return Figure("mae", svg, caption)


def _short(region: str) -> str:
    network, side = split_region(region)
    return f"{long_region(region)} ({network})" if side else region


def _deviation_blocks(accuracy: xr.Dataset, results: StudyResults) -> list[Block]:
    """Whether people whose region truly is older are predicted older; needs a truth."""
    r = _column(accuracy, "deviation_r")
    if not np.isfinite(r).any():
        reason = results.missing.get(
            "deviation",
            "Whether a region predicted older truly is older cannot be tested: no true regional "
            "age is known for these people.",
        )
        return [Note(reason, "missing")]
    oracle = _column(accuracy, "oracle_r")
    regions = [str(region) for region in accuracy["region"].values]
    order = np.arange(len(regions))
    note = Note(
        f"Beyond age: the predicted deviation of a region from the person's age correlates with "
        f"the true deviation at r = {span(r, 2)} (median {number(np.nanmedian(r))}; above zero in "
        f"{int((r > 0).sum())} of {plural(int(np.isfinite(r).sum()), 'region')})"
        + (
            f"; the best possible correlation is {span(oracle, 2)}."
            if np.isfinite(oracle).any()
            else "."
        )
    )
    with drawing.drawing():
        figure = drawing.canvas(9.6, 2.7)
        axes = figure.subplots()
        colors = [drawing.side_color(split_region(region)[1]) for region in regions]
        axes.bar(order, r, width=0.62, color=colors, alpha=0.85)
        if np.isfinite(oracle).any():
            axes.scatter(
                order,
                oracle,
                marker="D",
                s=26,
                facecolors=drawing.PAPER,
                edgecolors=drawing.TRUTH,
                linewidths=1.5,
                zorder=3,
                label="best possible",
            )
            figure.legend(loc="outside upper left")
        axes.axhline(0, color=drawing.MUTED, linewidth=0.8)
        axes.set_xticks(order, regions, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_ylim(min(0.0, float(np.nanmin(r))) * 1.1, 1)
        axes.set_ylabel("correlation with the truth")
        axes.grid(axis="y")
        svg = drawing.render(
            figure,
            "deviation",
            f"Correlation of predicted and true deviation from age in {len(regions)} regions, "
            f"{span(r, 2)}.",
        )
    caption = (
        "Correlation between predicted and true regional deviation from chronological age, "
        "over reference people. Left regions (L) and right regions (R) in two colors."
    )
    return [note, Figure("deviation", svg, caption)]


def _scatter_figure(ds: xr.Dataset, *, is_imported: bool = False) -> Figure | None:
    if not {"brain_age", "age", "region"} <= set(ds.variables):
        return None
    rows = np.flatnonzero(included_references(ds))
    age = np.asarray(ds["age"].values, dtype=np.float64)[rows]
    small = ds["brain_age"].transpose("subject", "region").isel(subject=rows)
    predicted = np.asarray(small.values, dtype=np.float64)
    known = np.isfinite(predicted) & np.isfinite(age)[:, None]
    if not known.any():
        return None
    read = known.any(axis=1)
    rows, age, predicted, known = rows[read], age[read], predicted[read], known[read]
    n_people = len(np.unique(same_people(ds)[rows]))
    who = f"{count(n_people)} reference people"
    if n_people < len(rows):
        who = f"{count(len(rows))} scans of {who}"
    error = np.array(
        [
            np.abs(predicted[k, i] - age[k]).mean() if k.any() else np.nan
            for i, k in enumerate(known.T)
        ]
    )
    order = [int(i) for i in np.argsort(error, kind="stable") if np.isfinite(error[i])]
    picks = list(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))
    names = ["smallest error", "typical", "largest error"]
    regions = [str(region) for region in ds["region"].values]
    low = float(min(np.nanmin(predicted[:, picks]), np.nanmin(age))) - 2
    high = float(max(np.nanmax(predicted[:, picks]), np.nanmax(age))) + 2
    with drawing.drawing():
        figure = drawing.canvas(9.6, 3.75)
        panels: list[Axes] = np.atleast_1d(
            figure.subplots(1, len(picks), sharex=True, sharey=True)
        ).tolist()
        for i, axes in zip(picks, panels, strict=True):
            _scatter_panel(axes, age, predicted[:, i], low, high)
            label = names[picks.index(i)] if len(picks) == 3 else ""
            fitted = known[:, i]
            r = _correlation(age[fitted], predicted[fitted, i])
            axes.set_title(f"{long_region(regions[i])}", loc="left")
            axes.text(
                0.03,
                0.97,
                f"{label}\nMAE {number(error[i], 1)} y, r {number(r)}",
                transform=axes.transAxes,
                va="top",
                fontsize=8.5,
                color=drawing.MUTED,
            )
        figure.supxlabel("age, years", fontsize=9.5, color=drawing.MUTED)
        figure.supylabel("brain age, years", fontsize=9.5, color=drawing.MUTED)
        svg = drawing.render(
            figure,
            "scatter",
            f"Brain age against age of {who} in {plural(len(picks), 'region')}: "
            + "; ".join(f"{long_region(regions[i])}, error {number(error[i], 1)}" for i in picks),
        )
    where = "in the regions with the smallest, a middle and the largest error"
    where = where if len(regions) > 1 else "whole brain"
    n_dots = len(drawing.dots(len(rows)))
    if n_dots < len(rows):
        where += f" ({count(n_dots)} drawn as dots, all in the numbers)"
    return Figure(
        "scatter",
        svg,
        f"Brain age against age of {who}, uncorrected, {where}. "
        "Dashed: perfect agreement. A slope below the dashed line is regression to the mean"
        + ("." if is_imported else ", which the corrected brain-PAD removes."),
    )


def _correlation(a: FloatArray, b: FloatArray) -> float:
    if a.size < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _scatter_panel(axes: "Axes", x: FloatArray, y: FloatArray, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    some = drawing.dots(len(x))
    axes.scatter(x[some], y[some], s=14, color=drawing.ACCENT, alpha=0.6, linewidths=0)
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() > 2 and x[known].std() > 0:
        slope, start = np.polyfit(x[known], y[known], 1)
        ends = np.array([x[known].min(), x[known].max()])
        axes.plot(ends, start + slope * ends, color=drawing.ACCENT, linewidth=1.8)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.grid()


def _table(accuracy: xr.Dataset, ds: xr.Dataset, coverage: Coverage | None) -> Table:
    holds = coverage.by_region() if coverage is not None else {}
    slopes: dict[str, float] = {}
    if "calibration_slope" in ds.variables and "region" in ds.variables:
        slopes = dict(
            zip(
                map(str, ds["region"].values),
                map(float, np.asarray(ds["calibration_slope"].values, dtype=np.float64)),
                strict=True,
            )
        )
    optional = [
        ("oracle_mae", "best possible MAE", 2, "Smallest error possible given the noise"),
        ("deviation_r", "deviation r", 2, "Predicted against true regional deviation"),
        ("oracle_r", "best possible r", 2, "Largest correlation possible given the noise"),
    ]
    shown = [o for o in optional if np.isfinite(_column(accuracy, o[0])).any()]
    columns = [
        Column("Region", numeric=False),
        Column("MAE, years"),
        Column("guess-the-mean MAE"),
        Column("gain"),
        Column("r with age"),
        *(Column(label, hint=hint) for _, label, _, hint in shown),
        *([Column("calibration slope")] if slopes else []),
        *([Column(f"{level(coverage.level)} interval holds")] if coverage is not None else []),
        Column("n"),
    ]
    columns_of = {name: _column(accuracy, name) for name in ("mae", "mae_mean", "r", "n")}
    columns_of |= {name: _column(accuracy, name) for name, *_ in shown}
    rows: list[list[Cell]] = []
    for i, region in enumerate(str(r) for r in accuracy["region"].values):
        mae, mean = columns_of["mae"][i], columns_of["mae_mean"][i]
        gain = 1 - mae / mean if finite(mean) and mean > 0 else math.nan
        row = [
            text(_short(region)),
            cell(number(mae), mae, "" if mae < mean else "caution"),
            cell(number(mean), mean),
            cell(percent(gain), gain),
            cell(number(columns_of["r"][i]), columns_of["r"][i]),
        ]
        row += [cell(number(columns_of[k][i], d), columns_of[k][i]) for k, _, d, _ in shown]
        if slopes:
            slope = slopes.get(region, math.nan)
            row.append(cell(number(slope), slope))
        if coverage is not None:
            held = holds.get(region, math.nan)
            row.append(cell(percent(held), held))
        row.append(cell(count(columns_of["n"][i]), columns_of["n"][i]))
        rows.append(row)
    return Table("accuracy-table", "Accuracy by region.", columns, rows, folded=True)
