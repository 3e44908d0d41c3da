"""Who took part: head of the page, cohort flow, sites, and where the lesions lie."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Column,
    Figure,
    Flow,
    Flows,
    Note,
    Section,
    StudyResults,
    Table,
    cell,
    count,
    finite,
    number,
    percent,
    plural,
    span,
    text,
    text_values,
)
from scalebrain.report.volume import Volume, overlay_slice, scaled, to_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Headline", "cohort_section", "facts", "lesion_section", "people"]

_USES = {
    "reference": "teach and test the brain-age model",
    "stroke": "enter the lesion and motor models",
}
_TEXT = ("sex", "cohort", "group", "exclusion_reason", "lesion_hemisphere")
_NUMBERS = ("age", "days_post_stroke", "lesion_volume", "motor_score")

Headline = tuple[str, str, str]


def people(ds: xr.Dataset) -> pd.DataFrame:
    """Read the per-subject columns that the report needs; absent ones are empty or NaN.

    Parameters
    ----------
    ds
        Store with dimension ``subject``.

    Returns
    -------
    DataFrame
        One row a subject.
    """
    n = ds.sizes["subject"]
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in ("subject", *_TEXT):
        columns[name] = (
            text_values(ds[name]) if name in ds.variables else np.full(n, "", dtype=object)
        )
    for name in _NUMBERS:
        columns[name] = (
            np.asarray(ds[name].values, dtype=np.float64)
            if name in ds.variables
            else np.full(n, np.nan)
        )
    for name in ("included", "lesion_present"):
        columns[name] = (
            np.asarray(ds[name].values, dtype=np.bool_)
            if name in ds.variables
            else np.full(n, name == "included")
        )
    return pd.DataFrame(columns)


def facts(table: pd.DataFrame, results: StudyResults) -> list[Headline]:
    """Collect the few numbers at the top of the page: value, label, detail."""
    included = table[table["included"]]
    out: list[Headline] = [
        (
            count(len(included)),
            "people analyzed",
            f"of {count(len(table))} in {plural(table['cohort'].nunique(), 'cohort')}",
        )
    ]
    for group in sorted(table["group"].unique()):
        rows = included[included["group"] == group]
        ages = span(rows["age"], 0)
        out.append((count(len(rows)), f"{group or 'no group'}", f"aged {ages} years"))
    accuracy = results.accuracy
    if accuracy is not None and {"mae", "mae_mean"} <= set(accuracy.variables):
        mae = np.asarray(accuracy["mae"].values, dtype=np.float64)
        mean = np.asarray(accuracy["mae_mean"].values, dtype=np.float64)
        if np.isfinite(mae).any():
            out.append(
                (
                    f"{number(np.nanmedian(mae), 1)} years",
                    "typical brain-age error",
                    f"guessing the mean age: {number(np.nanmedian(mean), 1)} years",
                )
            )
    mixed = results.mixed
    if mixed is not None and "q" in mixed.variables:
        from scalebrain.report.effects import focal_term

        q = np.asarray(mixed["q"].sel(term=focal_term(mixed)).values, dtype=np.float64)
        out.append(
            (
                f"{int((q < 0.05).sum())} of {int(np.isfinite(q).sum())}",
                "regions linked to lesion volume",
                "false discovery rate 5%",
            )
        )
    recovery = results.recovery
    if recovery is not None and len(recovery) and "inside" in recovery:
        inside = recovery["inside"].dropna().astype(bool)
        out.append(
            (
                f"{int(inside.sum())} of {len(inside)}",
                "planted effects recovered",
                "planted value inside the 95% interval",
            )
        )
    return out


def cohort_section(table: pd.DataFrame) -> Section:
    """Show who came in, who was excluded and why, and what each cohort contributes."""
    lanes = []
    for group in sorted(table["group"].unique()):
        rows = table[table["group"] == group]
        out = rows[~rows["included"]]
        reasons = out["exclusion_reason"].replace("", "no reason recorded").value_counts()
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], str(item[0])))
        lanes.append(
            Flow(
                group or "no group",
                len(rows),
                [(str(reason), int(n)) for reason, n in ordered],
                int(rows["included"].sum()),
                _USES.get(group, "are kept"),
            )
        )
    n_out = int((~table["included"]).sum())
    n_cohorts = int(table["cohort"].nunique())
    takeaway = (
        f"{count(len(table) - n_out)} of {count(len(table))} people from "
        f"{plural(n_cohorts, 'cohort')} were analyzed; "
    )
    if n_out:
        out = table[~table["included"]]
        top = out["exclusion_reason"].replace("", "no reason recorded").value_counts()
        first = sorted(top.items(), key=lambda item: (-item[1], str(item[0])))[0]
        takeaway += (
            f"{plural(n_out, 'person was', 'people were')} excluded, most often for: "
            f"{first[0]} ({first[1]})."
        )
    else:
        takeaway += "nobody was excluded."
    blocks: list[Block] = [Flows(len(table), n_cohorts, lanes)]
    if table["included"].any() and np.isfinite(table["age"]).any():
        blocks.append(_age_figure(table))
    blocks.append(_site_table(table))
    blocks.append(_group_note(table))
    return Section("cohort", "Who was studied", takeaway, blocks)


def _group_note(table: pd.DataFrame) -> Note:
    groups = table[table["included"]].groupby("cohort")["group"].nunique()
    mixed = int((groups > 1).sum())
    if len(groups) and mixed == 0 and table["group"].nunique() > 1:
        return Note(
            "No cohort holds both groups, so differences between scanners and differences "
            "between reference and stroke people cannot be told apart. Associations are "
            "estimated within the stroke group.",
            "caution",
        )
    return Note(
        f"{plural(mixed, 'cohort holds', 'cohorts hold')} people of more than one group. "
        "Associations with lesions are estimated within the stroke group, with an intercept "
        "for each cohort."
    )


def _site_table(table: pd.DataFrame) -> Table:
    groups = sorted(table["group"].unique())
    rows = []
    for cohort, part in sorted(table.groupby("cohort"), key=lambda item: str(item[0])):
        kept = part[part["included"]]
        sex = kept["sex"].value_counts()
        female = int(sex.get("F", 0))
        known = int(sex.sum() - sex.get("", 0))
        ages = kept["age"].to_numpy()
        rows.append(
            [
                text(cohort or "no cohort"),
                *(
                    cell(count(int((kept["group"] == g).sum())), int((kept["group"] == g).sum()))
                    for g in groups
                ),
                cell(count(len(part) - len(kept)), len(part) - len(kept)),
                cell(span(ages, 0), np.nanmin(ages) if np.isfinite(ages).any() else np.nan),
                cell(
                    number(np.nanmedian(ages), 0) if np.isfinite(ages).any() else "–",
                    np.nanmedian(ages) if np.isfinite(ages).any() else np.nan,
                ),
                cell(
                    f"{female} ({percent(female / known)})" if known else "–",
                    female / known if known else np.nan,
                ),
            ]
        )
    return Table(
        "sites",
        "Cohorts. Ages and sex are those of the people analyzed.",
        [
            Column("Cohort", numeric=False),
            *(Column(f"{g or 'no group'}, n") for g in groups),
            Column("excluded, n"),
            Column("age range, years"),
            Column("median age"),
            Column("female, n"),
        ],
        rows,
    )


def _age_figure(table: pd.DataFrame) -> Figure:
    """Ages of the people analyzed, one row a cohort."""
    kept = table[table["included"] & np.isfinite(table["age"])]
    cohorts = sorted(kept["cohort"].unique())[::-1]
    groups = sorted(kept["group"].unique())
    shown = cohorts[-40:]
    with drawing.drawing():
        figure = drawing.canvas(9.6, 0.9 + 0.27 * len(shown))
        axes = figure.subplots()
        colors = [drawing.CONTRA, drawing.IPSI, drawing.TRUTH, drawing.MUTED]
        for g, group in enumerate(groups):
            part = kept[(kept["group"] == group) & kept["cohort"].isin(shown)]
            rows = np.array([shown.index(c) for c in part["cohort"]], dtype=np.float64)
            # A fixed scatter: the position in the table decides, not a random number.
            jitter = ((np.arange(len(part)) * 0.618034) % 1 - 0.5) * 0.5
            axes.scatter(
                part["age"],
                rows + jitter,
                s=16,
                marker="os^D"[g % 4],
                color=colors[g % 4],
                alpha=0.65,
                linewidths=0,
                label=f"{group or 'no group'} ({len(part)})",
            )
        axes.set_yticks(range(len(shown)), [c or "no cohort" for c in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("Age at the scan, years")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2)
        alt = (
            f"Ages of {len(kept)} people analyzed, one row for each of {len(shown)} cohorts: "
            + "; ".join(
                f"{g or 'no group'} {span(kept.loc[kept['group'] == g, 'age'], 0)} years"
                for g in groups
            )
        )
        svg = drawing.render(figure, "ages", alt)
    more = f" The first {len(shown)} of {len(cohorts)} cohorts." if len(cohorts) > 40 else ""
    return Figure("ages", svg, f"Ages of the people analyzed; a dot is a person.{more}")


def lesion_section(
    ds: xr.Dataset, table: pd.DataFrame, background: npt.NDArray[np.float64]
) -> Section:
    """Map how many people have a lesion at each place."""
    title = "Where the lesions lie"
    if "lesion_frequency" not in ds.variables:
        reason = "The data set has no lesion_frequency: no subject has a lesion mask, or the "
        reason += "features stage has not run."
        return Section("lesions", title, "There is no lesion map.", [Note(reason, "missing")])
    frequency = np.asarray(ds["lesion_frequency"].values, dtype=np.float64)
    n = _n_masks(ds["lesion_frequency"].attrs, table)
    if not np.isfinite(frequency).any() or np.nanmax(frequency) <= 0:
        reason = f"None of the {n} lesion masks marks a voxel inside the brain mask."
        return Section("lesions", title, "There is no lesion map.", [Note(reason, "missing")])
    counts = np.rint(np.nan_to_num(frequency) * n)
    try:
        volume = to_volume(ds, np.where(counts > 0, counts, np.nan))
        gray = to_volume(ds, scaled(background))
    except (GeometryError, MissingVariableError) as error:
        return Section(
            "lesions", title, "The lesion map cannot be drawn.", [Note(str(error), "missing")]
        )
    lesioned = table[(table["group"] == "stroke") & table["included"]]
    sides = lesioned["lesion_hemisphere"].value_counts()
    left, right = int(sides.get("L", 0)), int(sides.get("R", 0))
    top = int(counts.max())
    peak = int(np.argmax(counts))
    mm = [float(ds[a].values[peak]) for a in "xyz"]
    hemisphere = "left" if mm[0] < 0 else "right" if mm[0] > 0 else "midline"
    takeaway = (
        f"Lesions overlap most in the {hemisphere} hemisphere, where {top} of "
        f"{plural(n, 'person', 'people')} ({percent(top / n)}) share a lesioned "
        f"place; {percent((counts > 0).mean())} of the brain is lesioned in at least one person."
    )
    volumes = lesioned["lesion_volume"].to_numpy()
    volumes = volumes[np.isfinite(volumes)]
    details = [f"Lesion side: {left} left, {right} right."]
    if volumes.size:
        low, middle, high = np.percentile(volumes, [25, 50, 75])
        details.append(
            f"Median lesion volume {number(middle, 1)} mL (middle half of the people: "
            f"{number(low, 1)} to {number(high, 1)} mL)."
        )
    details.append(
        f"Most frequent place at x {number(mm[0], 0)}, y {number(mm[1], 0)}, "
        f"z {number(mm[2], 0)} mm."
    )
    days = lesioned["days_post_stroke"].to_numpy()
    if np.isfinite(days).any():
        details.append(f"Median time since stroke {number(np.nanmedian(days) / 365.25, 1)} years.")
    figure = _lesion_figure(volume, gray, n, takeaway)
    return Section("lesions", title, takeaway, [figure, Note(" ".join(details))])


def _n_masks(attrs: Mapping[Any, Any], table: pd.DataFrame) -> int:
    if finite(attrs.get("n")) and int(attrs["n"]) > 0:
        return int(attrs["n"])
    return max(1, int((table["lesion_present"] & table["included"]).sum()))


def _cuts(volume: Volume, axis: int, n: int) -> npt.NDArray[np.float64]:
    """Coordinates that spread over the middle 94% of the values along an axis."""
    others = tuple(i for i in range(3) if i != axis)
    mass = np.nansum(volume.data, axis=others)
    share = np.cumsum(mass) / mass.sum()
    low = volume.axes[axis][int(np.searchsorted(share, 0.03))]
    high = volume.axes[axis][min(int(np.searchsorted(share, 0.97)), len(share) - 1)]
    return np.linspace(low, high, n)


def _lesion_figure(volume: Volume, gray: Volume, n: int, takeaway: str) -> Figure:
    import matplotlib

    top = max(1, int(np.nanmax(volume.data)))
    colormap = matplotlib.colormaps["inferno"]
    # One color for each count: no color stands for a number of people that cannot be.
    colors = np.asarray(colormap(np.linspace(0.25, 0.97, top) if top > 1 else [0.7]))[:, :3]
    cuts = [(2, at) for at in _cuts(volume, 2, 8)] + [(1, at) for at in _cuts(volume, 1, 4)]
    enlarge = 2 if (gray.axes[0][1] - gray.axes[0][0]) > 1.5 else 1
    x, y, z = (float(axis[-1] - axis[0]) for axis in gray.axes)
    width = 2.02
    heights = (width * y / x, width * y / x, width * z / x)
    gap = 0.34
    with drawing.drawing():
        figure = drawing.canvas(9.6, sum(heights) + 3 * gap + 0.1)
        for i, (axis, at) in enumerate(cuts):
            row, column = divmod(i, 4)
            axes = drawing.panel(
                figure,
                0.05 + column * (width + 0.1),
                sum(heights[:row]) + (row + 1) * gap - 0.06,
                width,
                heights[row],
            )
            base = gray.plane(axis, at)
            picture = overlay_slice(
                base, volume.plane(axis, at), colors=colors, limits=(1, top), enlarge=enlarge
            )
            axes.imshow(picture, extent=base.extent, origin="lower", interpolation="none")
            axes.set_title(
                f"{'z' if axis == 2 else 'y'} = {number(base.at, 0)} mm", fontsize=8.5, pad=3
            )
            mark_sides(axes)
        bar = drawing.color_bar(
            drawing.panel(figure, 8.75, 1.2, 0.17, sum(heights) - 1.3),
            colors,
            (0.5, top + 0.5),
            f"people with a lesion here (of {n})",
        )
        step = max(1, int(np.ceil(top / 8)))
        ticks = sorted({1, *range(step, top + 1, step), top})
        if len(ticks) > 2 and ticks[-1] - ticks[-2] < step / 2:
            ticks.pop(-2)
        bar.set_ticks(ticks, labels=[str(t) for t in ticks])
        bar.minorticks_off()
        svg = drawing.render(
            figure,
            "lesionmap",
            "Brain slices, eight axial and four coronal, left side drawn on the left, colored "
            f"by the number of people with a lesion, up to {top} of {n}. {takeaway}",
        )
    return Figure(
        "lesionmap",
        svg,
        "Number of people with a lesion at each place, on the mean T1-weighted image of "
        "reference people. Axial slices from bottom to top, then coronal slices from back to "
        "front. Left is drawn on the left (L, R).",
    )


def mark_sides(axes: "Axes", left: str = "L", right: str = "R") -> None:
    """Write which side is which into the lower corners of a slice."""
    for where, words in ((0.02, left), (0.98, right)):
        axes.text(
            where,
            0.02,
            words,
            transform=axes.transAxes,
            ha="left" if where < 0.5 else "right",
            fontsize=9,
            fontweight="bold",
        )
