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
    level,
    number,
    part,
    percent,
    plural,
    text,
)
from scalebrain.report.lesionmap import cuts_through, mark_sides
from scalebrain.report.personfacts import (
    NO_REGION_LOADS,
    held_out_by_cohort,
    regions_measured,
)
from scalebrain.report.volume import background_vector, overlay_slice, scaled, to_volume
from scalebrain.stats.pads import GLOBAL_REGION

__all__ = ["header", "how_to_read", "person_sections"]

Facts = Mapping[str, Any]

_SIDES = {
    "L": "left hemisphere",
    "R": "right hemisphere",
    "bilateral": "both sides",
    "midline": "midline",
    "none": "empty mask",
    "unknown": "side not known",
    "": "side not known",
}
_WHERE = {
    "L": " in the left hemisphere",
    "R": " in the right hemisphere",
    "bilateral": " on both sides",
    "midline": " on the midline",
}


def header(facts: Facts) -> list[tuple[str, str, str]]:
    """Value, label and detail of what stands at the top of the page."""
    who = facts["person"]
    age = number(who["age"], 0) + (" or older" if who["age_censored"] else "")
    sex = {"F": "female", "M": "male"}.get(who["sex"], "sex not known")
    out = [(age, "years old", sex)]
    if who["cohort"]:
        out.append((who["cohort"], "cohort", who["group"] or "group not known"))
    if who["lesion_present"]:
        side = _SIDES.get(who["lesion_hemisphere"], who["lesion_hemisphere"])
        out.append((f"{_above_zero(who['lesion_volume'], 1)} mL", "lesion", side))
    if finite(who["days_post_stroke"]):
        out.append((count(who["days_post_stroke"]), "days", "from stroke to scan"))
    if finite(who["motor_score"]):
        scale = f"; {who['motor_scale']}" if who["motor_scale"] else ""
        out.append((number(who["motor_score"]), "motor score", f"1 is unimpaired{scale}"))
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


def how_to_read(facts: Facts) -> str:
    """Explain what stands on the page, and nothing that does not."""
    ages, motor = facts["brain_age"], facts["motor"]
    out = []
    if ages["rows"] and ages["tool"]:
        out.append(
            f"Brain ages are of one scan, by {ages['tool']}; whether its model has seen this "
            "person is not known."
        )
    elif ages["rows"]:
        out.append(
            "Brain ages are of one scan, from a model that has not seen this person where the "
            "person is one of its references."
        )
    if ages["rows"] and _has(ages, "centile"):
        out.append("Centiles of brain age are among healthy people of the same age and sex.")
    if facts["loads"]["rows"]:
        out.append("Centiles of loads are among the other people with a stroke.")
    if not motor["reason"]:
        out.append(
            f"The motor score was predicted by a model trained on {_trained_on(motor)} alone; its "
            "parts say what the model used, not what caused the score."
        )
    found = facts["matches"]
    if found["rows"] and found["n_within"]:
        out.append(
            "Matched patients within the calipers have a lesion on the same side, of nearly the "
            "same volume, at nearly the same age."
        )
    elif found["rows"]:
        out.append(
            "Nobody is matched within the calipers: the patients shown have a lesion on the same "
            "side, and another volume or age."
        )
    return " ".join(out) or "What could not be given is missing, with the reason."


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
    takeaway = _takeaway(who, has_mask, bool(mask.any()))
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


def _takeaway(who: Facts, has_mask: bool, has_voxels: bool) -> str:
    """Size and side of the lesion, or why there is nothing to see of it."""
    if not who["lesion_present"]:
        return "No lesion mask."
    if has_mask and not has_voxels:
        return "The lesion mask marks no voxel inside the brain."
    side = _WHERE.get(who["lesion_hemisphere"], ", its side not known")
    gone = "" if has_mask else "; its mask is not in the store, so it is not drawn"
    return f"A lesion of {_above_zero(who['lesion_volume'], 1)} mL{side}{gone}."


def _above_zero(value: Any, digits: int) -> str:
    """Write a size; one above zero is never written as zero."""
    least = 10.0**-digits
    if finite(value) and 0 < float(value) < least / 2:
        return f"<{number(least, digits)}"
    return number(value, digits)


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
                    _above_zero(one["value"], digits) + unit,
                    one["value"],
                ),
                *(cell(*_of_load(one, name)) for name in ("centile_cohort", "centile_all")),
            ]
        )
    table = Table(
        "loads-table",
        _caption_of_loads(loads),
        [
            Column("Measure", numeric=False),
            Column("value"),
            Column("centile, own cohort"),
            Column("centile, all"),
        ],
        rows,
    )
    regions = regions_measured(loads)
    unknown = sum(r["name"].startswith("lesion_load:") for r in loads["rows"]) - len(regions)
    hit = sorted((r for r in regions if r["value"]), key=lambda r: -r["value"])
    takeaway = "No region of the set is touched."
    if not regions:
        takeaway = f"{NO_REGION_LOADS}."
    elif unknown:
        takeaway = f"No region is touched of the {len(regions)} whose load is known."
    if hit:
        worst = hit[0]
        takeaway = (
            f"{plural(len(hit), 'region')} touched; the most: {worst['label']}, "
            f"{part(worst['value'])} of it."
        )
    why = dict.fromkeys(r["centile_reason"] for r in loads["rows"] if r["centile_reason"])
    if loads["cohort_reason"]:
        why[loads["cohort_reason"]] = None
    notes = [Note(f"{words}.", "missing") for words in why]
    return Section("loads", title, takeaway, [*notes, table])


def _caption_of_loads(loads: Facts) -> str:
    """Say what loads are, and among whom they are placed."""
    out = ""
    if any(r["name"] != "lesion_volume" for r in loads["rows"]):
        out = f"Loads are the lesioned part of a region or tract (0 to 1), by {loads['sides']} side"
        weighted = any(r["unit"] == "mL" and r["name"] != "lesion_volume" for r in loads["rows"])
        out += "; weighted loads are in mL. " if weighted else ". "
    compared = [r for r in loads["rows"] if not r["centile_reason"]][:1]
    if not compared or not compared[0]["n_all"]:
        return out + "Nobody is there to compare with."
    near, everyone = compared[0]["n_cohort"], compared[0]["n_all"]
    if loads["cohort_reason"]:
        others = plural(everyone, "other")
        return f"{out}Centiles among {others} of all cohorts, where there is a load."
    return (
        f"{out}Centiles among {plural(near, 'other')} of the same cohort and "
        f"{plural(everyone, 'other')} of all cohorts, where there is a load."
    )


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
    if ages["tool"]:
        blocks.insert(0, Note(f"Brain ages of {ages['tool']}, not of a model of this study."))
    if ages["centile_reason"]:
        blocks.append(Note(f"No centiles: {ages['centile_reason']}.", "missing"))
    blocks.append(_age_table(ages))
    shown = "brain_pad_true_years"
    pads = {r["label"]: r[shown] for r in rows if ages["is_corrected"] and finite(r[shown])}
    takeaway = f"{plural(sum(finite(r['brain_age']) for r in rows), 'region')} with a brain age."
    if len(pads) > 1:
        high, low = max(pads, key=lambda k: pads[k]), min(pads, key=lambda k: pads[k])
        takeaway = (
            f"Corrected brain-PAD from {number(pads[low], 1)} y ({low}) to "
            f"{number(pads[high], 1)} y ({high})."
        )
    elif pads:
        [(label, pad)] = pads.items()
        takeaway = f"Corrected brain-PAD of {number(pad, 1)} y ({label})."
    elif [one["region"] for one in rows] == [GLOBAL_REGION]:
        takeaway = f"A brain age of {number(rows[0]['brain_age'], 1)} y (whole brain)."
    return Section("ages", title, takeaway, blocks)


def _age_table(ages: Facts) -> Table:
    """Brain age of each region, with what there is beside it."""
    rows = ages["rows"]
    columns = [Column("Region", numeric=False), Column("brain age")]
    cells: list[list[Cell]] = [
        [
            text(one["label"] + (f" ({one['side']})" if one["side"] else "")),
            cell(number(one["brain_age"], 1), one["brain_age"]),
        ]
        for one in rows
    ]
    caption = ["Brain age in years"]

    def add(head: str, words: str, new: list[Cell]) -> None:
        columns.append(Column(head))
        caption.append(words)
        for row, one in zip(cells, new, strict=True):
            row.append(one)

    if _has_intervals(ages):
        made = [cell(interval(one["low"], one["high"], 1), one["low"]) for one in rows]
        add("interval", _interval_words(ages), made)
    name, head, words = (
        "brain_pad",
        "brain age less age",
        "brain age less age, age bias not corrected",
    )
    if ages["is_corrected"]:
        name, head = "brain_pad_true_years", "corrected brain-PAD"
        words = f"brain-PAD {_corrected_words(ages)}"
    add(head, words, [cell(number(one[name], 1), one[name]) for one in rows])
    if _has(ages, "centile"):
        add(
            "centile",
            "centile among healthy people of the same age and sex, with its 95% interval",
            [cell(_centile(one), one["centile"]) for one in rows],
        )
    if _has(ages, "imputed_fraction"):
        name = "imputed_fraction"
        add(
            "imputed",
            "part of the nodes that were imputed",
            [cell(part(one[name]), one[name]) for one in rows],
        )
    return Table("ages-table", "; ".join(caption) + ".", columns, cells, folded=True)


def _has(ages: Facts, name: str) -> bool:
    return any(finite(one[name]) for one in ages["rows"])


def _has_intervals(ages: Facts) -> bool:
    return any(finite(one["low"]) and finite(one["high"]) for one in ages["rows"])


def _interval_words(ages: Facts) -> str:
    """Name the intervals by their coverage, or by the tool that told none."""
    if finite(ages["coverage"]):
        return f"{level(ages['coverage'])} intervals"
    return "the intervals of the tool" if ages["tool"] else "intervals"


def _corrected_words(ages: Facts) -> str:
    """Name what was corrected, and whether its slope is known and divided by."""
    years = "and in true years" if ages["in_true_years"] else "which may shrink a true deviation"
    if ages["age_bias_correction"] == "tool":
        return f"corrected for age bias by the tool, {years}"
    return f"free of the age bias of healthy people, {years}"


def _centile(one: Facts) -> str:
    if not finite(one["centile_low"]):
        return count(one["centile"])
    limits = interval(one["centile_low"], one["centile_high"], 0)
    return f"{count(one['centile'])} ({limits})"


def _age_figure(ages: Facts) -> Figure:
    rows = ages["rows"]
    is_global = [one["region"] for one in rows] == [GLOBAL_REGION]
    whose = "of the whole brain" if is_global else "of each region"
    low, shown, high = ("pad_low", "brain_pad", "pad_high")
    axis = "brain age less age, age bias not corrected, years"
    words = f"Brain age less age {whose}, age bias not corrected"
    if ages["is_corrected"]:
        low, shown, high = ("corrected_low", "brain_pad_true_years", "corrected_high")
        axis = "corrected brain-PAD, years"
        words = f"Corrected brain-PAD {whose}, {_corrected_words(ages)}"
    if _has_intervals(ages):
        words += f", with {_interval_words(ages)}"
        words += "" if is_global else ", which hold for one region at a time"
    words += "."
    if _has(ages, "centile"):
        words += " Right: centile among healthy people of that age and sex."
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
        if _has(ages, "centile"):
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
        axes.set_xlabel(axis)
        axes.grid(axis="x")
        if any(one["side"] for one in rows):
            figure.legend(loc="outside upper left", ncols=2)
        told = "; ".join(f"{one['label']} {number(one[shown], 1)}" for one in rows)
        svg = drawing.render(figure, "ages", f"{axis[0].upper()}{axis[1:]}, {whose}: {told}")
    return Figure("ages", svg, words)


# -- motor score --------------------------------------------------------------------------


def _motor(facts: Facts) -> Section:
    title = "Motor score"
    motor = facts["motor"]
    if motor["reason"]:
        blocks: list[Block] = [Note(motor["reason"], "missing")]
        return Section("motor", title, "The motor score was not predicted.", blocks)
    around = ""
    if finite(motor["low"]) and finite(motor["high"]):
        limits = interval(motor["low"], motor["high"])
        around = f" ({level(motor['coverage'])} interval {limits})"
    takeaway = (
        f"Predicted {number(motor['predicted'])}{around} from {_trained_on(motor)}; observed "
        f"{number(motor['observed'])}."
    )
    blocks = []
    if motor["drivers"]:
        blocks.append(_driver_figure(motor))
    r2 = motor["r2"] or {}
    words = (
        f"{motor['learner'].replace('_', ' ').capitalize()} on {motor['predictors']} predictors, "
        f"trained without {_held_out(motor)}. Over all held-out people it reaches "
        f"R² {number(r2.get('score'))} ({level(motor.get('confidence', 0.95))} interval "
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


def _held_out(motor: Facts) -> str:
    """Name whom the model has not seen."""
    if held_out_by_cohort(motor):
        return str(motor["held_out"] or "the cohort")
    by = str(motor["held_out_by"]).replace("_", " ")
    value = motor["held_out"]
    return f"people of {by} {value}" if value else f"people of the same {by}"


def _trained_on(motor: Facts) -> str:
    if held_out_by_cohort(motor):
        return "other cohorts"
    return f"people of another {str(motor['held_out_by']).replace('_', ' ')}"


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
                cell(_above_zero(one["lesion_volume"], 1), one["lesion_volume"]),
                cell(count(one["age"]), one["age"]),
                cell(_above_zero(one["value"], 2), one["value"]),
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
        f"Differences: the other less this person ({label} {_above_zero(found['own_value'], 2)} "
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
