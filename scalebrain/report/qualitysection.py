"""The quality of the scans and masks in the group report: outliers, warnings, decisions."""

import numpy as np
import pandas as pd
import xarray as xr

from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.features.quality import count_decisions
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Column,
    Figure,
    Note,
    Section,
    Table,
    and_list,
    cell,
    count,
    number,
    plural,
    shorten,
    text,
    text_values,
)
from scalebrain.report.quality import LIMIT, Quality, quality
from scalebrain.report.scanpictures import Rows, frame_of, thumbnail

__all__ = ["quality_section"]

_MOST_PICTURES = 12
_MOST_ROWS = 200
_COLUMNS = 3


def quality_section(ds: xr.Dataset, table: pd.DataFrame) -> Section:
    """Show who lies far from the others or has a warning, and what was decided.

    Parameters
    ----------
    ds
        Store; of the images a dozen rows are read.
    table
        From :func:`scalebrain.report.cohort.people`.

    Returns
    -------
    Section
        Mosaic and table of outliers.
    """
    title = "How good the scans are"
    found = quality(ds)
    if not found.measures and not found.is_flagged.any():
        note = Note("The store has no measure of quality.", "missing")
        return Section("quality", title, "The quality was not measured.", [note])
    flagged = [int(at) for at in found.order() if found.is_flagged[at]]
    n_far = sum(bool(out) for out in found.outliers)
    n_odd = sum(bool(codes) for codes in found.codes)
    one, many = ("person", "people")
    if table["person"].nunique() < len(table):  # rows are scans
        one, many = ("scan", "scans")
    takeaway = (
        f"{plural(n_far, f'{one} lies', f'{many} lie')} far from the others in a measure of "
        f"quality, and {plural(n_odd, f'{one} has', f'{many} have')} a warning of the ingest."
    )
    blocks: list[Block] = []
    if flagged:
        picture = _mosaic(ds, table, found, flagged[:_MOST_PICTURES])
        blocks += [picture] if picture is not None else []
        blocks.append(_outlier_table(ds, table, found, flagged))
    blocks.append(Note(_decided(ds)))
    return Section("quality", title, takeaway, blocks)


def _decided(ds: xr.Dataset) -> str:
    """Sentences on the decisions of the quality control."""
    if "qc_decision" not in ds.variables:
        return (
            "No decisions of a quality control were given. The command scalebrain qc writes a "
            "page of each subject to look at."
        )
    n = count_decisions(ds)
    return (
        f"Quality control by eye: {count(n['accept'])} accepted, {count(n['exclude'])} excluded, "
        f"{count(n['unsure'])} unsure, who are kept, and {count(n[''])} without a decision, who "
        "are kept too."
    )


def _mosaic(ds: xr.Dataset, table: pd.DataFrame, found: Quality, shown: list[int]) -> Figure | None:
    """Pictures of the first outliers; None where there is no scan to draw."""
    if not {"t1w", "x"} <= set(ds.variables):
        return None
    try:
        frame = frame_of(ds)
    except (GeometryError, MissingVariableError):
        return None
    rows = Rows.of(ds)
    lesion_present = table["lesion_present"].to_numpy(dtype=bool)
    pictures = []
    for at in shown:
        scan = rows.scan(at, has_lesion=bool(lesion_present[at]))
        if scan.gray is not None:
            pictures.append((at, np.asarray(thumbnail(frame, scan))))
    if not pictures:
        return None
    width, gap = 3.1, 0.12
    tall = width * max(picture.shape[0] / picture.shape[1] for _, picture in pictures)
    n_rows = -(-len(pictures) // _COLUMNS)
    with drawing.drawing():
        figure = drawing.canvas(9.6, n_rows * (tall + 0.5))
        for i, (at, picture) in enumerate(pictures):
            row, column = divmod(i, _COLUMNS)
            axes = drawing.panel(
                figure, column * (width + gap), row * (tall + 0.5) + 0.4, width, tall
            )
            axes.imshow(picture, interpolation="none")
            axes.set_title(shorten(str(table["subject"].iloc[at]), 36), fontsize=9, pad=14)
            axes.text(
                0.5,
                1.02,
                shorten(_flags(found, at)[0], 44),
                transform=axes.transAxes,
                ha="center",
                va="bottom",
                fontsize=8,
                color=drawing.MUTED,
            )
        told = and_list([str(table["subject"].iloc[at]) for at, _ in pictures], 12)
        svg = drawing.render(
            figure,
            "quality",
            f"Three planes of the scans of {told}, the farthest from the others first; left is "
            "drawn on the left, lesions are outlined in orange.",
        )
    return Figure(
        "quality",
        svg,
        f"The first {len(pictures)} of those flagged: axial, coronal and sagittal through the "
        "lesion (outlined) or the brain, with the first reason. Left is drawn on the left (L, R).",
    )


def _flags(found: Quality, at: int) -> list[str]:
    """Why someone is flagged."""
    far = [f"{m.label} z {number(found.z[m.name].iloc[at], 1)}" for m in found.outliers[at]]
    return [*far, *found.codes[at]]


def _outlier_table(
    ds: xr.Dataset, table: pd.DataFrame, found: Quality, flagged: list[int]
) -> Table:
    """One row for each person who is flagged."""
    decided = np.full(len(table), "")
    if "qc_decision" in ds.variables:
        decided = text_values(ds["qc_decision"])
    rows = []
    for at in flagged[:_MOST_ROWS]:
        who = table.iloc[at]
        rows.append(
            [
                text(who["subject"]),
                text(who["cohort"]),
                text(who["group"]),
                cell(number(found.worst[at], 1), found.worst[at]),
                text(", ".join(_flags(found, at))),
                text("yes" if who["included"] else "no"),
                text(decided[at] or "–"),
            ]
        )
    more = f" The first {_MOST_ROWS} of {len(flagged)}." if len(flagged) > _MOST_ROWS else ""
    return Table(
        "outliers",
        f"Outliers and warnings, the farthest first. z = 0.6745 (x − median) / MAD over everyone "
        f"in the store; an outlier lies more than {number(LIMIT, 1)} on the bad side of one of: "
        f"{and_list([m.label for m in found.measures if m.bad != 'none'], 12)}. An outlier is "
        f"worth a look, and is not excluded for that.{more}",
        [
            Column("Subject", numeric=False),
            Column("cohort", numeric=False),
            Column("group", numeric=False),
            Column("outlier z", hint="The largest distance on the bad side"),
            Column("why", numeric=False),
            Column("analyzed", numeric=False),
            Column("decision", numeric=False),
        ],
        rows,
        folded=len(rows) > 12,
    )
