"""What a path model's text defines, and what it leaves out: two tables."""

import numpy as np
import xarray as xr

from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Table,
    cell,
    confidence,
    group_words,
    interval,
    number,
    p_value,
    text,
)

__all__ = ["defined_table", "hint_table"]

_MOST_HINTS = 10


def defined_table(sem: xr.Dataset) -> list[Block]:
    """Tabulate the parameters that the model's text defines; none, no table."""
    if not sem.sizes.get("defined", 0):
        return []
    rows: list[list[Cell]] = []
    for i, name in enumerate(str(value) for value in sem["defined"].values):
        get = {key: float(sem[f"defined_{key}"].values[i]) for key in ("estimate", "p")}
        low, high = (float(sem[f"defined_ci_{end}"].values[i]) for end in ("low", "high"))
        std = float(sem["defined_std_estimate"].values[i])
        rows.append(
            [
                text(name),
                cell(number(std, 3), std),
                cell(number(get["estimate"], 3), get["estimate"]),
                cell(interval(low, high, 3), low),
                cell(p_value(get["p"]), get["p"]),
            ]
        )
    return [
        Table(
            "sem-defined",
            f"Parameters that the model's text defines. Intervals resample {group_words(sem)[1]}, "
            "each as a whole; p is of the delta method.",
            [
                Column("Name", numeric=False),
                Column("standardized"),
                Column("raw estimate"),
                Column(f"{confidence(sem)} CI"),
                Column("raw p"),
            ],
            rows,
        )
    ]


def hint_table(sem: xr.Dataset) -> list[Block]:
    """Tabulate the parameters that the model leaves out and the data ask for."""
    if not sem.sizes.get("modification", 0):
        return []
    index = np.asarray(sem["modification_index"].values, dtype=np.float64)
    order = np.argsort(-index, kind="stable")[:_MOST_HINTS]
    rows: list[list[Cell]] = []
    for i in order:
        p = float(sem["modification_p"].values[i])
        change = float(sem["expected_std_change"].values[i])
        rows.append(
            [
                text(str(sem["modification"].values[i])),
                cell(number(index[i]), index[i]),
                cell(p_value(p), p),
                cell(number(change), change),
            ]
        )
    return [
        Table(
            "sem-hints",
            f"Exploratory: the {len(rows)} paths and covariances that the model leaves out and "
            "whose addition would improve its fit the most (score tests, not corrected). A model "
            "that was changed by this table has no valid p values in the same data; it is for a "
            "next study.",
            [
                Column("Left out", numeric=False),
                Column("modification index"),
                Column("p"),
                Column("expected, standardized"),
            ],
            rows,
            folded=True,
        )
    ]
