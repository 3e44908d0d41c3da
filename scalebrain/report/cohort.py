"""Who took part: the numbers at the head of the page, cohort flow and sites."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.features.inclusion import same_people
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
    and_list,
    cell,
    count,
    number,
    p_words,
    percent,
    plural,
    random_effects,
    shorten,
    span,
    text,
    text_values,
)
from scalebrain.report.recovery import detected

__all__ = ["Headline", "cohort_section", "facts", "people"]

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
        One row a subject; equal numbers in ``person`` are scans of one person.
    """
    n = ds.sizes["subject"]
    columns: dict[str, npt.NDArray[Any]] = {"person": same_people(ds)}
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
    if "extrapolated" in ds.variables:  # as the statistics leave them out
        beyond = columns["included"] & np.asarray(ds["extrapolated"].values, dtype=np.bool_)
        columns["included"] = columns["included"] & ~beyond
        columns["exclusion_reason"] = np.where(
            beyond, "age outside the ages of training", columns["exclusion_reason"]
        ).astype(object)
    return pd.DataFrame(columns)


def facts(table: pd.DataFrame, results: StudyResults) -> list[Headline]:
    """Collect the few numbers at the top of the page: value, label, detail."""
    included = table[table["included"]]
    n_people, n_cohorts = included["person"].nunique(), table["cohort"].nunique()
    origin = f"of {count(table['person'].nunique())} in {plural(n_cohorts, 'cohort')}"
    if n_people < len(included):
        origin += f", {count(len(included))} scans"
    out: list[Headline] = [(count(n_people), "people analyzed", origin)]
    for group in sorted(table["group"].unique()):
        rows = included[included["group"] == group]
        ages = span(rows["age"], 0)
        n = rows["person"].nunique()
        out.append((count(n), f"{group or 'no group'}", f"aged {ages} years"))
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
        from scalebrain.report.effects import read_effects

        effects = read_effects("mixed", mixed)
        q = effects.q
        headline = (
            f"{int((q < 0.05).sum())} of {int(np.isfinite(q).sum())}",
            f"regions linked to {effects.cause}",
            ", ".join(part for part in ("false discovery rate 5%", effects.where) if part),
        )
        if effects.is_global:
            headline = (
                f"{number(effects.estimate[0])} {effects.years}",
                f"effect of {effects.told} on the whole brain",
                f"{effects.unit}, {p_words(effects.p[0])}",
            )
        out.append(headline)
    recovery = results.recovery
    if recovery is not None and len(recovery) and "inside" in recovery:
        inside = recovery["inside"].dropna().astype(bool)
        seen, real = detected(recovery)
        out.append(
            (
                f"{int(inside.sum())} of {len(inside)}",
                "planted effects inside the 95% interval",
                f"{seen} of {real} nonzero ones told from zero",
            )
        )
    return out


def cohort_section(
    table: pd.DataFrame, results: StudyResults, *, imported: str = "", own_ages: bool = False
) -> Section:
    """Show who came in, who was excluded and why, and what each cohort contributes.

    Parameters
    ----------
    table
        From :func:`people`.
    results
        With what the ingest left out.
    imported
        Tool that the brain ages were imported from; empty for our own model.
    own_ages
        Whether there are brain ages of our own model; so it is where their accuracy is known.

    Returns
    -------
    Section
        Flow chart, ages and sites.
    """
    uses = _uses(results, imported=imported, own_ages=own_ages)
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
                uses.get(group, "are kept"),
            )
        )
    n_out = int((~table["included"]).sum())
    n_cohorts = int(table["cohort"].nunique())
    n_people = table["person"].nunique()
    one, many = ("person", "people") if n_people == len(table) else ("scan", "scans")
    takeaway = (
        f"{count(len(table) - n_out)} of {count(len(table))} {many} from "
        f"{plural(n_cohorts, 'cohort')} were analyzed; "
    )
    if n_out:
        out = table[~table["included"]]
        top = out["exclusion_reason"].replace("", "no reason recorded").value_counts()
        first = sorted(top.items(), key=lambda item: (-item[1], str(item[0])))[0]
        takeaway += (
            f"{plural(n_out, f'{one} was', f'{many} were')} excluded, most often for: "
            f"{first[0]} ({first[1]})."
        )
    else:
        takeaway += "nobody was excluded." if one == "person" else "no scan was excluded."
    blocks: list[Block] = [Flows(len(table), n_cohorts, lanes, many)]
    if table["included"].any() and np.isfinite(table["age"]).any():
        blocks.append(_age_figure(table))
    blocks.append(_site_table(table))
    blocks.append(_group_note(table, results.mixed))
    if n_people < len(table):
        blocks.append(
            Note(
                f"The numbers of this section count scans: {count(len(table))} of "
                f"{plural(n_people, 'person', 'people')}."
            )
        )
    if results.rejected is not None and len(results.rejected):
        n = results.rejected["subject"].nunique()
        takeaway += f" {plural(n, one, many)} did not pass the checks of the ingest."
        caption = "Left out by the checks of the ingest."
        blocks.append(_guard_table("rejected", caption, results.rejected, many))
    if results.warnings is not None and len(results.warnings):
        caption = "Kept by the ingest, but worth a look."
        blocks.append(_guard_table("warnings", caption, results.warnings, many))
    return Section("cohort", "Who was studied", takeaway, blocks)


def _uses(results: StudyResults, *, imported: str, own_ages: bool) -> dict[str, str]:
    """Say what the people of each group were used for, of what there is."""
    uses = {}
    if imported:
        uses["reference"] = "are compared with the imported brain ages"
    elif own_ages or results.accuracy is not None:
        uses["reference"] = "teach and test the brain-age model"
    fitted = {
        "lesion": results.mixed is not None or results.mixed_load is not None,
        "path": results.sem is not None,
        "motor": results.motor is not None,
    }
    models = [name for name, is_there in fitted.items() if is_there]
    if models:
        uses["stroke"] = f"enter the {and_list(models)} model{'' if len(models) == 1 else 's'}"
    return uses


def _guard_table(name: str, caption: str, problems: pd.DataFrame, counted: str) -> Table:
    """Count what the checks of the ingest found, by rule."""
    rows = []
    for (code, rule), part in sorted(problems.groupby(["code", "rule"])):
        ids = sorted({str(subject) for subject in part["subject"] if subject})
        shown = ", ".join(shorten(one, 40) for one in ids[:8]) + (", ..." if len(ids) > 8 else "")
        n = max(len(ids), 1)
        rows.append([text(code), text(rule), cell(count(n), n), text(shown)])
    return Table(
        name,
        caption,
        [
            Column("code", numeric=False),
            Column("what", numeric=False),
            Column(f"{counted}, n"),
            Column("who", numeric=False),
        ],
        rows,
    )


def _group_note(table: pd.DataFrame, model: xr.Dataset | None) -> Note:
    groups = table[table["included"]].groupby("cohort")["group"].nunique()
    mixed = int((groups > 1).sum())
    if len(groups) and mixed == 0 and table["group"].nunique() > 1:
        tone = "caution"
        words = (
            "No cohort holds people of more than one group, so differences between scanners and "
            "differences between groups cannot be told apart. "
        )
    else:
        tone = "plain"
        words = f"{plural(mixed, 'cohort holds', 'cohorts hold')} people of more than one group. "
    if model is not None:
        words += (
            "Associations with lesions are estimated within the stroke group, with an "
            f"{random_effects(model).removeprefix('random ')}."
        )
    return Note(words.strip(), tone)


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
    dot = ("person", "people") if kept["person"].nunique() == len(kept) else ("scan", "scans")
    with drawing.drawing():
        figure = drawing.canvas(9.6, 0.9 + 0.27 * len(shown))
        axes = figure.subplots()
        colors = [drawing.CONTRA, drawing.IPSI, drawing.TRUTH, drawing.MUTED]
        n_dots = 0
        for g, group in enumerate(groups):
            part = kept[(kept["group"] == group) & kept["cohort"].isin(shown)]
            rows = np.array([shown.index(c) for c in part["cohort"]], dtype=np.float64)
            # A fixed scatter: the position in the table decides, not a random number.
            jitter = ((np.arange(len(part)) * 0.618034) % 1 - 0.5) * 0.5
            some = drawing.dots(len(part))
            n_dots += len(some)
            axes.scatter(
                part["age"].to_numpy()[some],
                (rows + jitter)[some],
                s=16,
                marker="os^D"[g % 4],
                color=colors[g % 4],
                alpha=0.65,
                linewidths=0,
                label=f"{group or 'no group'} ({count(len(part))})",
            )
        axes.set_yticks(range(len(shown)), [shorten(c or "no cohort", 32) for c in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("Age at the scan, years")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.2)
        alt = (
            f"Ages of {plural(len(kept), *dot)} analyzed, one row for each of "
            f"{plural(len(shown), 'cohort')}: "
            + "; ".join(
                f"{g or 'no group'} {span(kept.loc[kept['group'] == g, 'age'], 0)} years"
                for g in groups
            )
        )
        svg = drawing.render(figure, "ages", alt)
    more = f" The first {len(shown)} of {len(cohorts)} cohorts." if len(cohorts) > 40 else ""
    if n_dots < kept["cohort"].isin(shown).sum():
        more += f" {count(n_dots)} of them are drawn."
    return Figure("ages", svg, f"Ages of the people analyzed; a dot is a {dot[0]}.{more}")
