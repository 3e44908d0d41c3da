"""The page of one person: sections and figures from plain facts."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Section,
    Table,
    cell,
    count,
    finite,
    interval,
    number,
    percent,
    plural,
    text,
)
from scalebrain.report.lesionmap import cuts_through, mark_sides
from scalebrain.report.volume import background_vector, overlay_slice, scaled, to_volume

__all__ = ["header", "person_sections"]

Facts = Mapping[str, Any]


def header(facts: Facts) -> list[tuple[str, str, str]]:
    """Value, label and detail of what stands at the top of the page."""
    who = facts["person"]
    out = [(number(who["age"], 0), "years old", who["sex"] or "sex not known")]
    if who["cohort"]:
        out.append((who["cohort"], "cohort", who["group"] or "group not known"))
    if who["lesion_present"]:
        side = {"L": "left", "R": "right"}.get(who["lesion_hemisphere"], who["lesion_hemisphere"])
        out.append(
            (f"{number(who['lesion_volume'], 1)} mL", "lesion", f"{side or 'no'} hemisphere")
        )
    if finite(who["days_post_stroke"]):
        out.append((count(who["days_post_stroke"]), "days", "from stroke to scan"))
    if finite(who["motor_score"]):
        scale = f"; {who['motor_scale']}" if who["motor_scale"] else ""
        out.append((number(who["motor_score"]), "motor score", f"of 1, unimpaired{scale}"))
    return out


def person_sections(facts: Facts, scan: xr.Dataset) -> list[Section]:
    """Sections of the page.

    Parameters
    ----------
    facts
        As :func:`scalebrain.report.personfacts.person_facts` collects them.
    scan
        The person's row of the store, with ``t1w`` and ``lesion_mask`` where there are any.

    Returns
    -------
    list of Section
        Lesion, loads, brain age, motor score, matched patients.
    """
    return [_lesion(facts, scan), _loads(facts), _ages(facts), _motor(facts), _matches(facts)]


# -- lesion -------------------------------------------------------------------------------


def _lesion(facts: Facts, scan: xr.Dataset) -> Section:
    who = facts["person"]
    title = "Where the lesion lies"
    has_scan = "t1w" in scan and bool(np.isfinite(scan["t1w"].values).any())
    has_mask = bool(who["lesion_present"]) and "lesion_mask" in scan
    if not has_scan and not has_mask:
        note = Note("There is no usable T1-weighted scan in the store.", "missing")
        return Section("lesion", title, "Nothing can be drawn.", [note])
    mask = np.zeros(scan.sizes["voxel"], dtype=bool)
    if has_mask:
        mask = np.asarray(scan["lesion_mask"].values).astype(bool)
    if has_scan:
        whose = "The person's own scan in template space"
        background = scaled(scan["t1w"].values)
    else:
        whose = "The template, for want of the person's own scan"
        background = background_vector(scan.drop_vars("t1w", errors="ignore"))
    takeaway = _takeaway(who, bool(mask.any()))
    try:
        gray = to_volume(scan, background)
        lesion = to_volume(scan, np.where(mask, 1.0, np.nan)) if mask.any() else None
    except (GeometryError, MissingVariableError) as error:
        return Section("lesion", title, takeaway, [Note(str(error), "missing")])
    shown = lesion if lesion is not None else gray
    cuts = [(axis, float(at)) for axis in (2, 1, 0) for at in cuts_through(shown, axis, 3)]
    enlarge = 2 if (gray.axes[0][1] - gray.axes[0][0]) > 1.5 else 1
    spans = [float(axis[-1] - axis[0]) for axis in gray.axes]
    width, gap = 2.6, 0.34
    heights = [
        width * spans[1] / spans[0],
        width * spans[2] / spans[0],
        width * spans[2] / spans[1],
    ]
    with drawing.drawing():
        figure = drawing.canvas(9.6, sum(heights) + 3 * gap + 0.1)
        for i, (axis, at) in enumerate(cuts):
            row, column = divmod(i, 3)
            axes = drawing.panel(
                figure,
                0.4 + column * (width + 0.4),
                sum(heights[:row]) + (row + 1) * gap - 0.06,
                width,
                heights[row],
            )
            base = gray.plane(axis, at)
            over = lesion.plane(axis, at) if lesion is not None else None
            picture = overlay_slice(
                base, over, colors=np.array([[0.84, 0.37, 0.0]]), enlarge=enlarge
            )
            axes.imshow(picture, extent=base.extent, origin="lower", interpolation="none")
            side = ""
            if axis == 0 and abs(base.at) > 1e-6:
                side = " (left)" if base.at < 0 else " (right)"
            axes.set_title(f"{'xyz'[axis]} = {number(base.at, 0)} mm{side}", fontsize=8.5, pad=3)
            if axis != 0:
                mark_sides(axes)
        what = "with the lesion in orange" if lesion is not None else "without a lesion"
        svg = drawing.render(
            figure,
            "scan",
            f"Slices of {'the T1-weighted scan' if has_scan else 'the template'} {what}: three "
            "axial and three coronal with the left side drawn on the left, and three sagittal.",
        )
    caption = (
        f"{whose}, {what}. Axial, coronal and sagittal slices "
        "through it; left is drawn on the left (L, R), sagittal slices face right."
        if lesion is not None
        else f"{whose}. Left is drawn on the left (L, R)."
    )
    return Section("lesion", title, takeaway, [Figure("scan", svg, caption)])


def _takeaway(who: Facts, has_voxels: bool) -> str:
    """Size and side of the lesion, or why there is nothing to see of it."""
    if not who["lesion_present"]:
        return "No lesion mask."
    if not has_voxels:
        return "The lesion mask marks no voxel inside the brain."
    side = {"L": "in the left hemisphere", "R": "in the right hemisphere"}.get(
        who["lesion_hemisphere"], "without a single side"
    )
    return f"A lesion of {number(who['lesion_volume'], 1)} mL {side}."


# -- loads --------------------------------------------------------------------------------


def _loads(facts: Facts) -> Section:
    title = "What the lesion covers"
    loads = facts["loads"]
    if not loads["rows"]:
        note = Note(loads["reason"] or "No load was computed.", "missing")
        return Section("loads", title, "No lesion load.", [note])
    rows: list[list[Cell]] = []
    for one in loads["rows"]:
        digits = 1 if one["unit"] == "mL" else 3
        unit = " mL" if one["unit"] == "mL" and finite(one["value"]) else ""
        rows.append(
            [
                text(one["label"]),
                cell(
                    number(one["value"], digits) + unit,
                    one["value"],
                ),
                *(cell(*_of_load(one, name)) for name in ("centile_cohort", "centile_all")),
            ]
        )
    first = loads["rows"][0]
    table = Table(
        "loads-table",
        f"Loads are the lesioned part of a region or tract (0 to 1), by {loads['sides']} side. "
        f"Centiles among {plural(first['n_cohort'], 'other', 'others')} of the same cohort and "
        f"{plural(first['n_all'], 'other', 'others')} of all cohorts, where there is a load.",
        [
            Column("Measure", numeric=False),
            Column("value"),
            Column("centile, own cohort"),
            Column("centile, all"),
        ],
        rows,
    )
    hit = [r for r in loads["rows"] if r["name"].startswith("lesion_load") and r["value"]]
    hit.sort(key=lambda r: -r["value"])
    takeaway = "No region of the set is touched."
    if hit:
        worst = hit[0]
        takeaway = (
            f"{plural(len(hit), 'region')} touched; the most: {worst['label']}, "
            f"{percent(worst['value'])} of it."
        )
    return Section("loads", title, takeaway, [table])


def _of_load(one: Facts, name: str) -> tuple[str, Any]:
    """Centile of a load; what is not touched has none."""
    return (count(one[name]), one[name]) if one["value"] else (count(None), None)


# -- brain age ----------------------------------------------------------------------------


def _ages(facts: Facts) -> Section:
    title = "Regional brain age"
    ages = facts["brain_age"]
    if not ages["rows"]:
        note = Note(ages["reason"], "missing")
        return Section("ages", title, "No brain age.", [note])
    rows = ages["rows"]
    blocks: list[Block] = [_age_figure(ages)]
    if ages["centile_reason"]:
        blocks.append(Note(f"No centiles: {ages['centile_reason']}.", "missing"))
    cells: list[list[Cell]] = [
        [
            text(one["label"] + (f" ({one['side']})" if one["side"] else "")),
            cell(number(one["brain_age"], 1), one["brain_age"]),
            cell(interval(one["low"], one["high"], 1), one["low"]),
            cell(number(one["brain_pad_corrected"], 1), one["brain_pad_corrected"]),
            cell(_centile(one), one["centile"]),
            cell(percent(one["imputed_fraction"]), one["imputed_fraction"]),
        ]
        for one in rows
    ]
    blocks.append(
        Table(
            "ages-table",
            f"Brain age in years with its {percent(ages['coverage'])} interval; brain-PAD "
            f"{_corrected_words(ages)}; centile among healthy people of the same age and sex, "
            "with its 95% interval; part of the nodes that were imputed.",
            [
                Column("Region", numeric=False),
                Column("brain age"),
                Column("interval"),
                Column("corrected brain-PAD"),
                Column("centile"),
                Column("imputed"),
            ],
            cells,
            folded=True,
        )
    )
    pads = {r["label"]: r["brain_pad_corrected"] for r in rows if finite(r["brain_pad_corrected"])}
    takeaway = f"{plural(len(rows), 'region')} with a brain age."
    if pads:
        high, low = max(pads, key=lambda k: pads[k]), min(pads, key=lambda k: pads[k])
        takeaway = (
            f"Corrected brain-PAD from {number(pads[low], 1)} y ({low}) to "
            f"{number(pads[high], 1)} y ({high})."
        )
    return Section("ages", title, takeaway, blocks)


def _corrected_words(ages: Facts) -> str:
    """Name what was corrected, and whether its slope is known and divided by."""
    years = "and in true years" if ages["in_true_years"] else "which may shrink a true deviation"
    return f"free of the age bias of healthy people, {years}"


def _centile(one: Facts) -> str:
    if not finite(one["centile_low"]):
        return count(one["centile"])
    limits = interval(one["centile_low"], one["centile_high"], 0)
    return f"{count(one['centile'])} ({limits})"


def _age_figure(ages: Facts) -> Figure:
    rows = ages["rows"]
    is_corrected = any(finite(one["brain_pad_corrected"]) for one in rows)
    low, shown, high = ("pad_low", "brain_pad", "pad_high")
    words = "Brain age less age of each region"
    if is_corrected:
        low, shown, high = ("corrected_low", "brain_pad_corrected", "corrected_high")
        words = f"Corrected brain-PAD of each region, {_corrected_words(ages)}"
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.1 + 0.27 * len(rows))
        axes = figure.subplots()
        for k, one in enumerate(rows):
            y = len(rows) - 1 - k
            color = {"ipsilesional": drawing.IPSI, "contralesional": drawing.CONTRA}.get(
                one["side"], drawing.ACCENT
            )
            if finite(one[low]) and finite(one[high]):
                axes.hlines(y, one[low], one[high], color=color, linewidth=1.6)
            if finite(one[shown]):
                axes.plot(one[shown], y, "o", color=color, markersize=6)
            if finite(one["centile"]):
                axes.text(
                    1.015,
                    y,
                    count(one["centile"]),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=8.5,
                    color=drawing.MUTED,
                )
        if any(finite(one["centile"]) for one in rows):
            axes.text(
                1.015,
                len(rows) - 0.3,
                "centile",
                transform=axes.get_yaxis_transform(),
                fontsize=8,
                color=drawing.MUTED,
            )
        for label, color in (("ipsilesional", drawing.IPSI), ("contralesional", drawing.CONTRA)):
            if any(one["side"] == label for one in rows):
                axes.plot([], [], "o-", color=color, label=label)
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [one["label"] for one in rows[::-1]])
        axes.set_ylim(-0.7, len(rows) - 0.2)
        axes.set_xlabel(
            "corrected brain-PAD, years" if is_corrected else "brain age less age, years"
        )
        axes.grid(axis="x")
        if any(one["side"] for one in rows):
            figure.legend(loc="outside upper left", ncols=2)
        told = "; ".join(f"{one['label']} {number(one[shown], 1)}" for one in rows)
        svg = drawing.render(figure, "ages", f"Brain-PAD of each region in years: {told}")
    return Figure(
        "ages",
        svg,
        f"{words}, with {percent(ages['coverage'])} intervals, which "
        "hold for one region at a time. Right: centile among healthy people of that age and sex.",
    )


# -- motor score --------------------------------------------------------------------------


def _motor(facts: Facts) -> Section:
    title = "Motor score"
    motor = facts["motor"]
    if motor["reason"]:
        blocks: list[Block] = [Note(motor["reason"], "missing")]
        return Section("motor", title, "The motor score was not predicted.", blocks)
    takeaway = (
        f"Predicted {number(motor['predicted'])} ({percent(motor['coverage'])} interval "
        f"{interval(motor['low'], motor['high'])}) from other cohorts; observed "
        f"{number(motor['observed'])}."
    )
    blocks = []
    if motor["drivers"]:
        blocks.append(_driver_figure(motor))
    r2 = motor["r2"] or {}
    words = (
        f"{motor['learner'].replace('_', ' ').capitalize()} on {motor['predictors']} predictors, "
        f"trained without {motor['held_out'] or 'the cohort'}. Over all held-out people it reaches "
        f"R² {number(r2.get('score'))} (95% interval "
        f"{interval(r2.get('ci_low'), r2.get('ci_high'))})."
    )
    if finite(motor["severe_probability"]):
        words += (
            f" Probability of a score below {number(motor['severe_below'], 3)}: "
            f"{percent(motor['severe_probability'])}."
        )
    blocks.append(Note(words))
    if motor["unlike_training"]:
        blocks.append(Note(f"Unlike those trained on: {motor['unlike_reason']}.", "caution"))
    return Section("motor", title, takeaway, blocks)


def _driver_figure(motor: Facts) -> Figure:
    drivers = [*motor["drivers"]]
    parts = [one["part"] for one in drivers]
    labels = [one["label"] for one in drivers]
    if abs(motor["others"]) > 0:
        parts.append(motor["others"])
        labels.append("all others")
    with drawing.drawing():
        figure = drawing.canvas(9.6, 0.95 + 0.28 * len(parts))
        axes = figure.subplots()
        y = np.arange(len(parts))[::-1]
        colors = [drawing.ACCENT if part >= 0 else drawing.IPSI for part in parts]
        axes.barh(y, parts, height=0.62, color=colors, alpha=0.75)
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        axes.set_yticks(y, labels)
        axes.set_xlabel("added to the predicted motor score")
        axes.grid(axis="x")
        told = "; ".join(f"{a} {number(b, 3)}" for a, b in zip(labels, parts, strict=True))
        svg = drawing.render(figure, "drivers", f"Parts of the prediction: {told}")
    base = motor["base"] if motor["base"] is not None else math.nan
    return Figure(
        "drivers",
        svg,
        f"What the prediction is made of: from {number(base)} for the mean person, each predictor "
        "adds or takes (SHAP). It describes the model, not the person's recovery.",
    )


# -- matched patients ---------------------------------------------------------------------


def _matches(facts: Facts) -> Section:
    title = "Patients with a lesion like this"
    found = facts["matches"]
    if not found["rows"]:
        return Section("matches", title, "Nobody is matched.", [Note(found["reason"], "missing")])
    rows: list[list[Cell]] = []
    for one in found["rows"]:
        rows.append(
            [
                text(one["subject_matched"]),
                text(one["cohort_matched"]),
                cell(number(one["lesion_volume"], 1), one["lesion_volume"]),
                cell(count(one["age"]), one["age"]),
                cell(number(one["value"], 2), one["value"]),
                cell(number(one["value_difference"], 2), one["value_difference"]),
                cell(number(one["outcome"]), one["outcome"]),
                cell(number(one["outcome_difference"]), one["outcome_difference"]),
                text("yes" if one["within_caliper"] else "no"),
            ]
        )
    label = found["contrast_label"]
    table = Table(
        "matches-table",
        f"The same side of the lesion; within the calipers: a volume within a factor of "
        f"{number(found['volume_ratio'])} and an age within {number(found['age_caliper'], 0)} "
        "years. "
        f"Differences: the other less this person ({label} {number(found['own_value'])} "
        f"{found['contrast_unit']}, motor score {number(found['own_outcome'])}).",
        [
            Column("Patient", numeric=False),
            Column("Cohort", numeric=False),
            Column("volume, mL"),
            Column("age"),
            Column(label),
            Column("load less own"),
            Column("motor score"),
            Column("score less own"),
            Column("within calipers", numeric=False),
        ],
        rows,
    )
    n = found["n_within"]
    takeaway = (
        f"{plural(n, 'patient')} within the calipers; those of most different {label} come first."
        if n
        else "Nobody lies within the calipers; these are the nearest."
    )
    notes = [Note(found["scale_note"], "caution")] if found["scale_note"] else []
    return Section("matches", title, takeaway, [table, *notes])
