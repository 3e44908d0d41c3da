"""The specification curve: every effect under every defensible analysis."""

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
    few_groups,
    interval,
    long_region,
    number,
    percent,
    plural,
    text,
)

__all__ = ["multiverse_sections"]

FloatArray = npt.NDArray[np.float64]

_WORDS = {
    "lesion_volume": "lesion volume",
    "cst": "corticospinal lesion load",
    "ipsi": "ipsilesional brain-PAD",
    "contra": "contralesional brain-PAD",
    "brain": "brain-PAD of the whole brain",
    "motor": "motor score",
}
_ORDER = ("robust", "mostly", "weak", "contradictory")


def multiverse_sections(results: StudyResults) -> list[Section]:
    """Draw how far each effect depends on choices of the analysis; nothing if not asked for."""
    data = results.multiverse
    title = "Does it depend on the analysis?"
    if data is None and "multiverse" not in results.missing:
        return []
    if data is None:
        note = Note(results.why_missing("multiverse"), "missing")
        return [Section("multiverse", title, "Other ways to analyze were not tried.", [note])]
    verdicts = [str(value) for value in data["verdict"].values]
    counts = [f"{verdicts.count(word)} {word}" for word in _ORDER if word in verdicts]
    n = data.sizes["specification"]
    most = "" if np.isfinite(data["estimate"].values).all() else "at most "
    takeaway = (
        f"Of {plural(len(verdicts), 'effect')}, each under {most}{plural(n, 'specification')}, "
        f"{and_list(counts)}."
    )
    focus = _focus(data)
    axes = dict(data.attrs.get("axes", {}))
    blocks: list[Block] = [_strips(data), _curve(data, focus, list(axes)), *few_groups(data)]
    told = dict(data.attrs.get("verdicts", {}))
    if told:
        blocks.append(Note("; ".join(f"{k}: {v}" for k, v in told.items()) + ".", "small"))
    blocks.append(
        Note(
            "Specifications share their people, so these shares are no p values. What is missing "
            "from the axes, such as another atlas, was not varied.",
            "caution",
        )
    )
    failures = [str(one) for one in data.attrs.get("failures", [])]
    if failures:
        blocks.append(Note(f"Not fitted: {and_list(failures, 3)}.", "missing"))
    blocks.append(_table(data))
    chosen = "; ".join(f"{axis}: {', '.join(map(str, names))}" for axis, names in axes.items())
    blocks.append(Note(f"Axes: {chosen}. {data.attrs.get('bootstrap', '')}.", "small"))
    return [Section("multiverse", title, takeaway, blocks)]


def _label(effect: str) -> str:
    return " → ".join(_WORDS.get(part, long_region(part)) for part in effect.split(" -> "))


def _focus(data: xr.Dataset) -> int:
    """Find the effect whose curve is drawn: damage on movement, else the largest one."""
    effects = [str(value) for value in data["effect"].values]
    if "cst -> motor" in effects:
        return effects.index("cst -> motor")
    return int(np.argmax(np.abs(data["median_estimate"].values)))


def _strips(data: xr.Dataset) -> Figure:
    estimate = np.asarray(data["estimate"].values, dtype=np.float64)
    low, high = np.asarray(data["ci_low"].values), np.asarray(data["ci_high"].values)
    effects = [str(value) for value in data["effect"].values]
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.2 + 0.27 * len(effects))
        axes = figure.subplots()
        for row in range(len(effects)):
            y = len(effects) - 1 - row
            if y % 2 == 0:
                axes.axhspan(y - 0.5, y + 0.5, color=drawing.SOFT, linewidth=0, zorder=0)
            clear = (low[row] > 0) | (high[row] < 0)
            axes.hlines(y, np.nanmin(estimate[row]), np.nanmax(estimate[row]), color=drawing.LINE)
            for mask, face in ((clear, drawing.ACCENT), (~clear, drawing.PAPER)):
                axes.plot(
                    estimate[row][mask],
                    np.full(int(mask.sum()), y),
                    linestyle="none",
                    marker="o",
                    markersize=4.5,
                    markerfacecolor=face,
                    markeredgecolor=drawing.ACCENT,
                )
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        axes.set_yticks(range(len(effects)), [_label(effect) for effect in effects[::-1]])
        axes.set_ylim(-0.5, len(effects) - 0.5)
        axes.set_xlabel("standardized effect")
        axes.grid(axis="x")
        alt = "; ".join(
            f"{_label(effect)} {interval(np.nanmin(estimate[k]), np.nanmax(estimate[k]))}"
            for k, effect in enumerate(effects)
        )
        svg = drawing.render(figure, "multiverse-strips", f"Range of each effect. {alt}.")
    return Figure(
        "multiverse-strips",
        svg,
        "Standard deviations of the last variable per standard deviation of the first, one dot a "
        "specification. Filled: its interval excludes zero; open: it does not.",
    )


def _curve(data: xr.Dataset, focus: int, axes_names: list[str]) -> Figure:
    one = data.isel(effect=focus)
    estimate = np.asarray(one["estimate"].values, dtype=np.float64)
    order = np.argsort(estimate, kind="stable")
    order = order[np.isfinite(estimate[order])]
    low, high = np.asarray(one["ci_low"].values)[order], np.asarray(one["ci_high"].values)[order]
    clear = (low > 0) | (high < 0)
    marks = [
        (axis, choice)
        for axis in axes_names
        for choice in dict.fromkeys(str(v) for v in data[axis].values)
    ]
    name = _label(str(one["effect"].values))
    x = np.arange(len(order))
    bottom_end, top_end = _window(estimate[order], low, high)
    beyond = (low < bottom_end) | (high > top_end)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 3.0 + 0.24 * len(marks))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 0.24 * len(marks)])
        for mask, face in ((clear, drawing.ACCENT), (~clear, drawing.PAPER)):
            ends = np.maximum(low[mask], bottom_end), np.minimum(high[mask], top_end)
            top.vlines(x[mask], *ends, color=drawing.LINE, linewidth=1.6)
            top.plot(
                x[mask],
                estimate[order][mask],
                linestyle="none",
                marker="o",
                markersize=5,
                markerfacecolor=face,
                markeredgecolor=drawing.ACCENT,
            )
        for out, end, marker in (
            (low < bottom_end, bottom_end, "v"),
            (high > top_end, top_end, "^"),
        ):
            y = np.full(int(out.sum()), end)
            top.plot(x[out], y, linestyle="none", marker=marker, markersize=5, color=drawing.MUTED)
        top.axhline(0, color=drawing.INK, linewidth=0.9)
        top.set_ylabel("estimate")
        top.grid(axis="y")
        for row, (axis, choice) in enumerate(marks[::-1]):
            here = np.array([str(v) == choice for v in data[axis].values])[order]
            bottom.plot(
                x[here],
                np.full(int(here.sum()), row),
                linestyle="none",
                marker="s",
                markersize=4,
                color=drawing.INK,
            )
        labels = [f"{axis}: {choice}".replace("_", " ") for axis, choice in marks[::-1]]
        bottom.set_yticks(range(len(marks)), labels)
        bottom.set_ylim(-0.6, len(marks) - 0.4)
        bottom.set_xticks([])
        bottom.set_xlabel("specifications, sorted by their estimate")
        svg = drawing.render(
            figure,
            "multiverse-curve",
            f"Specification curve of {name}: {plural(len(order), 'estimate')} from "
            f"{number(np.nanmin(estimate))} to {number(np.nanmax(estimate))}.",
        )
    caption = (
        f"Specification curve of {name}: estimates with bootstrap intervals, and below each the "
        "choices that were made."
    )
    if beyond.any():
        what = plural(int(beyond.sum()), "interval goes", "intervals go")
        widest = interval(np.nanmin(low), np.nanmax(high))
        caption += f" Triangles: {what} beyond the axis; together they span {widest}."
    return Figure("multiverse-curve", svg, caption)


def _window(estimate: FloatArray, low: FloatArray, high: FloatArray) -> tuple[float, float]:
    """Find the ends of an axis that shows every estimate, and all intervals that are not wild.

    Wild is an end that lies farther from the median one than twice the span of both medians.
    """
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return -np.inf, np.inf
    low, high = low[known], high[known]
    reach = 2 * (np.median(high) - np.median(low))
    bottom = min(estimate.min(), low[low >= np.median(low) - reach].min())
    top = max(estimate.max(), high[high <= np.median(high) + reach].max())
    return float(bottom), float(top)


def _table(data: xr.Dataset) -> Table:
    rows: list[list[Cell]] = []
    n = data.sizes["specification"]
    for k, effect in enumerate(str(value) for value in data["effect"].values):
        one = data.isel(effect=k)
        get = {
            name: float(one[name])
            for name in (
                "median_estimate",
                "lowest_estimate",
                "highest_estimate",
                "same_sign",
                "excludes_zero",
            )
        }
        verdict = str(one["verdict"].values)
        fitted = int(np.isfinite(np.asarray(one["estimate"].values, dtype=np.float64)).sum())
        rows.append(
            [
                text(_label(effect)),
                cell(number(get["median_estimate"]), get["median_estimate"]),
                cell(
                    interval(get["lowest_estimate"], get["highest_estimate"]),
                    get["lowest_estimate"],
                ),
                cell(f"{count(fitted)} of {count(n)}", fitted),
                cell(percent(get["same_sign"]), get["same_sign"]),
                cell(percent(get["excludes_zero"]), get["excludes_zero"]),
                text(verdict, "strong" if verdict == "robust" else ""),
            ]
        )
    return Table(
        "multiverse-table",
        "Each effect over all specifications, in standard deviations. Shares are of those fitted.",
        [
            Column("Effect", numeric=False),
            Column("median"),
            Column("range"),
            Column(f"fitted, n of {count(n)}"),
            Column("same sign"),
            Column("excludes zero", hint="Same sign, and an interval that excludes zero"),
            Column("verdict", numeric=False),
        ],
        rows,
        folded=True,
    )
