"""Whether the effects that a simulation planted came back."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
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
    number,
    plural,
    shorten,
    text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

__all__ = ["detected", "recovery_section"]

_NEEDED = ("effect", "planted", "estimate", "ci_low", "ci_high")


def recovery_section(results: StudyResults, *, simulated: bool) -> Section:
    """Put every planted effect beside its estimate.

    Parameters
    ----------
    results
        Results with ``recovery``.
    simulated
        Whether the data are simulated, which decides what a missing table means.

    Returns
    -------
    Section
        With the reason where nothing can be compared.
    """
    title = "Recovered versus planted"
    table = results.recovery
    if table is None or not len(table):
        reason = results.missing.get("recovery", "")
        if not reason:
            reason = (
                "The data are simulated, but this run was given no truth to compare with."
                if simulated
                else "These are not simulated data: nobody knows the true effects, so nothing "
                "can be compared."
            )
        return Section(
            "recovery", title, "No planted effect to compare with.", [Note(reason, "missing")]
        )
    absent = [name for name in _NEEDED if name not in table.columns]
    if absent:
        note = Note(f"The recovery table lacks {and_list(absent)}.", "missing")
        return Section("recovery", title, "The comparison is incomplete.", [note])
    inside = _inside(table)
    known = [flag for flag in inside if flag is not None]
    hits = sum(known)
    takeaway = (
        f"{hits} of {plural(len(known), 'planted effect')} "
        f"{'lies' if hits == 1 else 'lie'} inside the 95% interval of "
        f"{'its' if hits == 1 else 'their'} estimate"
    )
    missed = [
        str(name) for name, flag in zip(table["effect"], inside, strict=True) if flag is False
    ]
    takeaway += f"; outside: {and_list(missed, 4)}." if missed else "."
    seen, real = detected(table)
    takeaway += (
        f" Of {plural(real, 'planted effect')} that {'is' if real == 1 else 'are'} not zero, "
        f"{seen} {'is' if seen == 1 else 'are'} told from zero with the right sign."
    )
    caption = (
        "These effects were planted by the simulation, so a value inside its interval shows "
        "that the pipeline can find an effect of this kind and size. It says nothing about "
        "people. Of correct 95% intervals, 1 in 20 misses its planted value by chance; a wide "
        "interval holds much, and proves little where it also holds zero."
    )
    if table.attrs.get("note"):
        caption += f" {table.attrs['note']}"
    blocks: list[Block] = [_figure(table, inside, caption), _table(table, inside)]
    return Section("recovery", title, takeaway, blocks)


def _inside(table: pd.DataFrame) -> list[bool | None]:
    """Inside the interval or not; None where it cannot be said."""
    out: list[bool | None] = []
    for row in table.to_dict("records"):
        if finite(row["planted"]) and finite(row["ci_low"]) and finite(row["ci_high"]):
            out.append(bool(row["ci_low"] <= row["planted"] <= row["ci_high"]))
        else:
            out.append(None)
    return out


def detected(table: pd.DataFrame) -> tuple[int, int]:
    """Count planted effects whose interval excludes zero on the planted side, and nonzero ones."""
    planted, low, high = (
        table[name].to_numpy(dtype=np.float64) for name in ("planted", "ci_low", "ci_high")
    )
    real = np.isfinite(planted) & (planted != 0)
    seen = real & np.where(planted > 0, low > 0, high < 0)
    return int(seen.sum()), int(real.sum())


def _figure(table: pd.DataFrame, inside: list[bool | None], caption: str) -> Figure:
    rows = table.to_dict("records")
    n = len(rows)
    longest = max(len(str(row["effect"])) for row in rows)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.15 + 0.31 * n)
        axes = figure.subplots()
        for y, (row, flag) in enumerate(zip(rows[::-1], inside[::-1], strict=True)):
            color = drawing.ACCENT if flag is not False else drawing.IPSI
            if finite(row["ci_low"]) and finite(row["ci_high"]):
                axes.hlines(y, row["ci_low"], row["ci_high"], color=color, linewidth=2)
            axes.plot(row["estimate"], y, "o", color=color, markersize=6)
            axes.plot(
                row["planted"],
                y,
                "D",
                markersize=6.5,
                markerfacecolor=drawing.PAPER,
                markeredgecolor=drawing.TRUTH,
                markeredgewidth=1.7,
                zorder=4,
            )
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        names = [str(row["effect"]) for row in rows[::-1]]
        size = 9.5 if longest < 46 else 8.0
        axes.set_yticks(range(n), [shorten(name, 64) for name in names], fontsize=size)
        axes.set_ylim(-0.6, n - 0.4)
        axes.set_xlabel("effect, in the unit of its row")
        axes.grid(axis="x")
        _legend(figure)
        svg = drawing.render(
            figure,
            "recovery",
            "Planted and estimated effects. "
            + "; ".join(
                f"{row['effect']}: planted {number(row['planted'])}, estimated "
                f"{number(row['estimate'])} ({interval(row['ci_low'], row['ci_high'])})"
                for row in rows
            ),
        )
    return Figure("recovery", svg, caption)


def _legend(figure: "Drawn") -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], marker="o", color=drawing.ACCENT, linewidth=2, markersize=6),
        Line2D([], [], marker="o", color=drawing.IPSI, linewidth=2, markersize=6),
        Line2D(
            [],
            [],
            marker="D",
            linewidth=0,
            markersize=6.5,
            markerfacecolor=drawing.PAPER,
            markeredgecolor=drawing.TRUTH,
            markeredgewidth=1.7,
        ),
    ]
    words = ["estimate, planted value inside", "estimate, planted value outside", "planted"]
    figure.legend(marks, words, loc="outside upper left", ncols=3)


def _table(table: pd.DataFrame, inside: list[bool | None]) -> Table:
    rows = []
    extra = [name for name in ("unit", "n") if name in table.columns]
    planted = np.abs(table["planted"].to_numpy(dtype=np.float64))
    digits = 3 if np.nanmax(planted, initial=0.0) < 1 else 2
    for row, flag in zip(table.to_dict("records"), inside, strict=True):
        verdict = {True: "yes", False: "no", None: "–"}[flag]
        difference = (
            float(row["estimate"]) - float(row["planted"])
            if finite(row["estimate"]) and finite(row["planted"])
            else math.nan
        )
        rows.append(
            [
                text(row["effect"]),
                cell(number(row["planted"], digits), row["planted"]),
                cell(number(row["estimate"], digits), row["estimate"]),
                cell(interval(row["ci_low"], row["ci_high"], digits), row["ci_low"]),
                cell(number(difference, digits), np.abs(difference)),
                text(verdict, {True: "good", False: "caution", None: ""}[flag]),
                *(
                    cell(count(row[name]), row[name]) if name == "n" else text(row[name])
                    for name in extra
                ),
            ]
        )
    return Table(
        "recovery-table",
        "Planted effects and what the pipeline estimated.",
        [
            Column("Effect", numeric=False),
            Column("planted"),
            Column("estimate"),
            Column("95% CI"),
            Column("difference"),
            Column("inside the CI", numeric=False),
            *(Column(name, numeric=name == "n") for name in extra),
        ],
        rows,
    )
