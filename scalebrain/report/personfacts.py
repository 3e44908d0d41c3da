"""What is known of one person, as plain data with units."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import flags, same_people
from scalebrain.predict.matched import CST_LOAD, nearest_matches
from scalebrain.report.content import (
    finite,
    long_region,
    number,
    part,
    plural,
    split_region,
    text_values,
)
from scalebrain.report.motorfigures import predictor_label
from scalebrain.report.page import trained_on_simulated
from scalebrain.stats.frame import eligible_subjects, lesional_measures
from scalebrain.stats.pads import GLOBAL_REGION, find_pad

__all__ = [
    "NO_REGION_LOADS",
    "People",
    "caveats",
    "held_out_by_cohort",
    "kind_held_out",
    "person_facts",
    "regions_measured",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Facts = dict[str, Any]

FORMAT = "scalebrain person 1"
RESEARCH_ONLY = (
    "Research use only: associations in groups of people, not a diagnosis, a prognosis or advice "
    "about therapy."
)
NO_REGION_LOADS = "No load of regions was computed: run the features stage"
_NO_SIDED_CENTILE = (
    "No centile of loads by side: the lesion is not known to be of one side, and people lesioned "
    "on the other side have no load there because of that alone"
)
_NO_COHORT = "No centile among people of the same cohort: the cohort is not known"
_NO_SIDE = {"bilateral": "both sides", "midline": "midline"}
_MOTOR_SCORE = "motor_score"
_COHORT = "cohort"
_FEW = 10
_N_DRIVERS = 8
_N_MATCHES = 6
_TRACT_LOADS = ("tract_load", "tract_load_weighted", "tract_load_max")
_TEXT = (
    "sex",
    "cohort",
    "group",
    "motor_scale",
    "lesion_hemisphere",
    "exclusion_reason",
    "warnings",
)
_NUMBERS: Mapping[str, str] = {
    "age": "years",
    "days_post_stroke": "days",
    "icv": "mL",
    "motor_score": "1",
    "lesion_volume": "mL",
    "laterality_index": "1",
    "lesion_outside_fraction": "1",
}
_FLAGS = ("included", "lesion_present", "scan_present", "extrapolated", "age_censored")
_AGES: Mapping[str, str] = {
    "brain_age": "brain_age",
    "low": "brain_age_low",
    "high": "brain_age_high",
    "brain_pad": "brain_pad",
    "imputed_fraction": "imputed_fraction",
    "centile": "brain_age_centile",
    "centile_low": "brain_age_centile_low",
    "centile_high": "brain_age_centile_high",
}


@dataclass(frozen=True)
class People:
    """What pages of all people share: small tables in memory, computed once.

    Parameters
    ----------
    ds
        Store without its images, in memory, with centiles where they could be made.
    motor
        Held-out prediction of everyone, or None.
    no_centiles, no_motor
        Why these are not there; empty when they are.
    """

    ds: xr.Dataset
    motor: xr.Dataset | None
    no_centiles: str = ""
    no_motor: str = ""

    def text(self, name: str, at: int) -> str:
        """Return a text of one person; empty when there is none."""
        if name not in self.ds.variables:
            return ""
        return str(text_values(self.ds[name].isel(subject=[at]))[0])

    def number(self, name: str, at: int) -> float | None:
        """Return a number of one person."""
        if name not in self.ds.variables:
            return None
        return _plain(self.ds[name].values[at])

    def flag(self, name: str, at: int, default: bool = False) -> bool:
        """Return a flag of one person; a missing one is False."""
        return bool(flags(self.ds, name)[at]) if name in self.ds.variables else default


def person_facts(people: People, subject: str) -> Facts:
    """Collect what is known of one person.

    Parameters
    ----------
    people
        Everyone.
    subject
        Label on ``subject``.

    Returns
    -------
    dict
        Ready for JSON: numbers are plain or None, units stand beside them.
    """
    at = [str(s) for s in people.ds["subject"].values].index(subject)
    who: Facts = {name: people.text(name, at) for name in _TEXT}
    who |= {name: people.number(name, at) for name in _NUMBERS}
    who |= {name: people.flag(name, at, name in ("included",)) for name in _FLAGS}
    facts: Facts = {
        "format": FORMAT,
        "subject": subject,
        "use": RESEARCH_ONLY,
        "simulated": str(people.ds.attrs.get("simulated", "false")).lower() == "true",
        "model_trained_on_simulated": trained_on_simulated(people.ds),
        "units": dict(_NUMBERS),
        "person": who,
    }
    facts["loads"] = _loads(people, at)
    facts["brain_age"] = _brain_age(people, at)
    facts["motor"] = _motor(people, at)
    facts["matches"] = _matches(people, subject, at)
    facts["caveats"] = caveats(facts)
    return facts


def _plain(value: Any) -> float | None:
    """Finite number, or None: JSON has no NaN."""
    made = float(value)
    return made if math.isfinite(made) else None


def _centile(value: float | None, others: FloatArray) -> float | None:
    """Place among others, 0 to 100: those below and half of the ties."""
    known = others[np.isfinite(others)]
    if value is None or not len(known):
        return None
    below = np.count_nonzero(known < value) + 0.5 * np.count_nonzero(known == value)
    return float(100 * below / len(known))


def has_one_side(facts_or_side: str) -> bool:
    """Tell whether a lesion has an ipsilesional side."""
    return facts_or_side in ("L", "R")


def side_words(region: str, lesion_side: str) -> str:
    """Say on which side of the lesion a native region lies."""
    side = split_region(region)[1]
    if side not in ("L", "R") or not has_one_side(lesion_side):
        return ""
    return "ipsilesional" if side == lesion_side else "contralesional"


def regions_measured(loads: Mapping[str, Any]) -> list[Facts]:
    """Rows of the regions whose load is known."""
    rows = [r for r in loads["rows"] if r["name"].startswith("lesion_load:")]
    return [r for r in rows if finite(r["value"])]


def held_out_by_cohort(motor: Mapping[str, Any]) -> bool:
    """Tell whether each cohort was held out once, as it is unless someone says otherwise."""
    return str(motor["held_out_by"]) == _COHORT


def kind_held_out(motor: Mapping[str, Any]) -> str:
    """Name what was held out, in the singular: a cohort, or people of one value."""
    if held_out_by_cohort(motor):
        return "cohort"
    return f"group by {str(motor['held_out_by']).replace('_', ' ')}"


# -- loads --------------------------------------------------------------------------------


def _loads(people: People, at: int) -> Facts:
    ds = people.ds
    if not people.flag("lesion_present", at):
        return {"reason": "There is no lesion mask.", "rows": []}
    side = people.text("lesion_hemisphere", at)
    one_side = has_one_side(side)
    others = _other_people(ds, at)
    cohort = text_values(ds["cohort"]) if "cohort" in ds.variables else np.full(len(others), "")
    known = bool(cohort[at])
    near = others & known & (cohort == cohort[at])
    rows: list[Facts] = []

    def add(name: str, label: str, unit: str, values: FloatArray, why: str = "") -> None:
        value = _plain(values[at])
        among = {"cohort": values[near], "all": values[others]}
        if why:  # nobody to compare with
            among = dict.fromkeys(among, np.empty(0))
        rows.append(
            {
                "name": name,
                "label": label,
                "value": value,
                "unit": unit,
                "centile_cohort": _centile(value, among["cohort"]),
                "n_cohort": int(np.isfinite(among["cohort"]).sum()),
                "centile_all": _centile(value, among["all"]),
                "n_all": int(np.isfinite(among["all"]).sum()),
                "centile_reason": why,
            }
        )

    if "lesion_volume" in ds.variables:
        volume = np.asarray(ds["lesion_volume"].values, dtype=np.float64)
        add("lesion_volume", "Lesion volume", "mL", volume)
    names = [n for n in (*_TRACT_LOADS, "lesion_load") if n in ds.variables]
    sided = lesional_measures(ds, names) if one_side and names else ds
    for name in names:
        dim = "region" if name == "lesion_load" else "tract"
        array = sided[name].transpose("subject", dim)
        unit = "mL" if name == "tract_load_weighted" else "1"
        for k, label in enumerate(str(v) for v in array[dim].values):
            values = np.asarray(array.values[:, k], dtype=np.float64)
            # those lesioned on the other side have a load of zero here because of that alone
            why = "" if one_side or not split_region(label)[1] else _NO_SIDED_CENTILE
            add(f"{name}:{label}", predictor_label(f"{name}:{label}"), unit, values, why)
    return {
        "reason": "",
        "cohort_reason": "" if known else _NO_COHORT,
        "sides": "ipsilesional and contralesional" if one_side else "left and right",
        "rows": rows,
    }


def _other_people(ds: xr.Dataset, at: int) -> BoolArray:
    """One scan, the first by its id, of each other person in the statistics."""
    people = same_people(ds)
    rows = np.flatnonzero(eligible_subjects(ds) & (people != people[at]))
    rows = rows[np.argsort(ds["subject"].values[rows].astype(str), kind="stable")]
    out = np.zeros(len(people), dtype=np.bool_)
    out[rows[np.unique(people[rows], return_index=True)[1]]] = True
    return out


# -- brain age ----------------------------------------------------------------------------


def _brain_age(people: People, at: int) -> Facts:
    ds = people.ds
    found = find_pad(ds)
    is_corrected = found.is_corrected and found.name in ds.variables
    about = ds[found.name].attrs if found.name in ds.variables else {}
    tool = f"{about.get('tool', '')} {about.get('tool_version', '')}".strip()
    suffix = "_global" if found.is_global else ""
    if f"brain_age{suffix}" not in ds.variables:
        return {"reason": "No brain age was predicted: the predict stage has not run.", "rows": []}
    side = people.text("lesion_hemisphere", at)
    regions = [GLOBAL_REGION] if found.is_global else [str(v) for v in ds["region"].values]

    def values(name: str) -> FloatArray:
        if name not in ds.variables:
            return np.full(len(regions), np.nan)
        array = ds[name].values[at] if "subject" in ds[name].dims else ds[name].values
        return np.atleast_1d(np.asarray(array, dtype=np.float64))

    columns = {
        key: values(name.replace("brain_age", f"brain_age{suffix}", 1))
        if key in ("brain_age", "low", "high")
        else values(name if key != "brain_pad" else f"brain_pad{suffix}")
        for key, name in _AGES.items()
    }
    slope = np.ones(len(regions))
    if found.has_slope:
        slope = values("calibration_slope")
        slope = np.where(slope > 0, slope, np.nan)
    corrected = values(found.name) / slope
    if not found.is_corrected:
        corrected = np.full(len(regions), np.nan)
    columns["brain_pad_true_years"] = corrected
    columns["corrected_low"] = corrected - (columns["brain_age"] - columns["low"]) / slope
    columns["corrected_high"] = corrected + (columns["high"] - columns["brain_age"]) / slope
    age = people.number("age", at)
    age = math.nan if age is None else age
    columns["brain_pad"] = columns["brain_age"] - age
    columns["pad_low"], columns["pad_high"] = columns["low"] - age, columns["high"] - age
    columns["lesion_load"] = values("lesion_load") if not found.is_global else np.full(1, np.nan)
    rows = [
        {
            "region": region,
            "label": "whole brain" if region == GLOBAL_REGION else long_region(region),
            "side": side_words(region, side),
            **{key: _plain(column[k]) for key, column in columns.items()},
        }
        for k, region in enumerate(regions)
    ]
    known = any(row["brain_age"] is not None for row in rows)
    why = people.no_centiles or people.text("centile_reason", at)
    low = f"brain_age{suffix}_low"
    coverage = ds[low].attrs.get("coverage") if low in ds.variables else None
    healthy = ds["brain_age_centile"].attrs.get("healthy", "") if "brain_age_centile" in ds else ""
    return {
        "reason": "" if known else "No brain age: there is no usable T1-weighted scan.",
        "unit": "years",
        "coverage": _plain(coverage) if coverage is not None else None,
        "tool": tool,
        "is_corrected": is_corrected,
        "age_bias_correction": str(about.get("age_bias_correction", "")),
        "lesion_policy": str(ds[f"brain_age{suffix}"].attrs.get("lesion_policy", "")),
        "out_of_fold": None if tool else people.flag("out_of_fold", at),
        "in_true_years": is_corrected and found.has_slope,
        "centile_reason": why,
        "centile_of": str(healthy),
        "rows": rows if known else [],
    }


# -- motor outcome ------------------------------------------------------------------------


def _motor(people: People, at: int) -> Facts:
    observed = people.number(_MOTOR_SCORE, at)
    out: Facts = {"observed": observed, "unit": "fraction of the maximum; 1 is unimpaired"}
    motor = people.motor
    if motor is None:
        return out | {"reason": people.no_motor}
    target = str(motor.attrs.get("target", _MOTOR_SCORE))
    if target != _MOTOR_SCORE:
        return out | {"reason": f"The results given predict '{target}', not the motor score."}
    learners = [str(v) for v in motor["learner"].values]
    groups = [str(v) for v in motor["feature_group"].values]
    learner = "elastic_net" if "elastic_net" in learners else learners[0]
    group = str(motor.attrs.get("importance_of", groups[-1]))
    labels = [str(s) for s in motor["subject"].values]
    subject = str(people.ds["subject"].values[at])
    if subject not in labels:
        return out | {"reason": "The results given are of other people."}
    place = labels.index(subject)
    own = motor.isel(subject=place).sel(learner=learner)
    theirs = _plain(own["observed"]) if "observed" in own.variables else None
    if theirs is not None and (observed is None or not np.isclose(theirs, observed)):
        return out | {
            "reason": "The results given are of another store, or of an older one: the motor "
            f"score is {number(theirs, 3)} there, and "
            f"{'missing' if observed is None else number(observed, 3)} here. Make them again."
        }
    value = _plain(own["prediction"].sel(feature_group=group))
    if value is None:
        return out | {"reason": _no_prediction(people, at)}
    by = str(motor.attrs.get("groups", _COHORT))

    def of(name: str) -> float | None:
        return _plain(own[name].sel(feature_group=group)) if name in own.variables else None

    out |= {
        "reason": "",
        "predicted": value,
        "low": of("interval_low"),
        "high": of("interval_high"),
        "coverage": motor.attrs.get("coverage"),
        "confidence": motor.attrs.get("confidence", 0.95),
        "interval_over": [str(v) for v in motor.attrs.get("interval_over", [])],
        "interval_guaranteed": bool(motor.attrs.get("interval_guaranteed", 0)),
        "severe_probability": of("severe_probability"),
        "severe_below": _plain(motor.attrs.get("severe_below") or math.nan),
        "scale_note": str(motor.attrs.get("scale_note", "")),
        "mean_of_training": _plain(own["baseline_prediction"])
        if "baseline_prediction" in own.variables
        else None,
        "learner": learner,
        "predictors": group,
        "held_out_by": by,
        "held_out": people.text(by, at),
        "unlike_training": bool(own["unlike_training"]) if "unlike_training" in own else None,
        "unlike_reason": str(own["unlike_reason"].values) if "unlike_reason" in own else "",
        "r2": _score(motor, learner, group),
    }
    return out | _drivers(own)


def _score(motor: xr.Dataset, learner: str, group: str) -> Facts | None:
    if "score" not in motor.variables:
        return None
    at = {"learner": learner, "feature_group": group, "metric": "r2"}
    return {name: _plain(motor[name].sel(at)) for name in ("score", "ci_low", "ci_high")}


def _drivers(own: xr.Dataset) -> Facts:
    """Parts of the prediction, the largest first; the others together."""
    if "shap" not in own.variables:
        return {"drivers": [], "base": None}
    values = np.asarray(own["shap"].values, dtype=np.float64)
    names = [str(v) for v in own["predictor"].values]
    order = np.argsort(-np.nan_to_num(np.abs(values)), kind="stable")
    drivers = [
        {"name": names[k], "label": predictor_label(names[k]), "part": _plain(values[k])}
        for k in order[:_N_DRIVERS]
        if values[k] != 0 and math.isfinite(values[k])
    ]
    base = _plain(own["shap_base"]) if "shap_base" in own.variables else None
    return {
        "drivers": drivers,
        "base": base,
        "others": float(np.nansum(values[order[len(drivers) :]])),
    }


def _no_prediction(people: People, at: int) -> str:
    if people.text("group", at) != "stroke":
        return "Only people with a stroke are predicted."
    reason = _out_of_statistics(people, at)
    if reason:
        return f"Not predicted, since left out of the statistics: {reason}."
    if people.number("motor_score", at) is None:
        return "Not predicted, since the motor score is missing; predictions are checked by it."
    return "Not predicted by this run of the motor prediction."


def _out_of_statistics(people: People, at: int) -> str:
    if not people.flag("included", at, True):
        return people.text("exclusion_reason", at) or "excluded"
    return "age outside the ages of training" if people.flag("extrapolated", at) else ""


# -- matched patients ---------------------------------------------------------------------


def _matches(people: People, subject: str, at: int) -> Facts:
    if people.text("group", at) != "stroke":
        return {"reason": "Patients are matched with patients only.", "rows": []}
    contrast: Hashable = CST_LOAD
    try:
        found = nearest_matches(people.ds, subject, n=_N_MATCHES)
    except (StatisticsError, MissingVariableError) as error:
        return {"reason": str(error), "rows": []}
    names = [str(n) for n in found.data_vars if found[n].dims == ("match",)]
    rows = []
    for k in range(found.sizes["match"]):
        row: Facts = {}
        for name in names:
            value = found[name].values[k]
            if isinstance(value, str):
                row[name] = value
            elif name == "within_caliper":
                row[name] = bool(value)
            else:
                row[name] = _plain(value)
        rows.append(row)
    return {
        "reason": "",
        "contrast": str(contrast),
        "contrast_label": predictor_label(str(contrast)),
        "contrast_unit": "mL",
        "volume_ratio": float(found.attrs["volume_ratio"]),
        "age_caliper": float(found.attrs["age_caliper"]),
        "own_value": _plain(found["own_value"]),
        "own_outcome": _plain(found["own_outcome"]),
        "n_within": int(found["n_within"]),
        "scale_note": str(found.attrs["scale_note"]),
        "rows": rows,
    }


# -- caveats ------------------------------------------------------------------------------


def caveats(facts: Facts) -> list[str]:
    """Say what has to be known before anything on the page is believed.

    Parameters
    ----------
    facts
        As :func:`person_facts` collects them.

    Returns
    -------
    list of str
        Sentences, of this person first.
    """
    who, ages, motor = facts["person"], facts["brain_age"], facts["motor"]
    out = [facts["use"]]
    if facts["simulated"]:
        out.append("Simulated data: this person was generated by a computer and does not exist.")
    if facts["model_trained_on_simulated"] and not facts["simulated"]:
        out.append("The brain-age model learned from simulated people: its ages mean nothing here.")
    if not who["included"]:
        reason = who["exclusion_reason"] or "no reason recorded"
        out.append(f"Left out of every statistic of the study: {reason}.")
    if who["extrapolated"]:
        out.append(
            "The age is outside the ages that the brain-age model was trained on: its ages are "
            "extrapolated, and this person is left out of the statistics."
        )
    if who["age_censored"]:
        less = ": brain-PAD is at most what is given" if ages["rows"] else ""
        out.append(f"The age was given as a lower bound only{less}.")
    out += _caveats_of_lesion(facts) + _caveats_of_tool(ages)
    known = [r for r in ages["rows"] if r["brain_age"] is not None]
    imputed = [r for r in known if (r["imputed_fraction"] or 0) > 0]
    if imputed:
        words = ", ".join(f"{r['label']} ({part(r['imputed_fraction'])})" for r in imputed)
        out.append(
            "Nodes that are mostly lesioned, or whose white matter nearby is, were replaced by "
            f"estimates from the rest of the region in: {words}. What is imputed tells nothing of "
            "this person."
        )
    gaps = [r["label"] for r in ages["rows"] if r["brain_age"] is None]
    if gaps:
        out.append(f"No brain age in: {', '.join(gaps)}.")
    if ages["rows"] and ages["centile_reason"]:
        out.append(f"No centile of brain age: {ages['centile_reason']}.")
    if motor.get("unlike_training"):
        out.append(
            "Unlike anyone that the motor model was trained on, so trust its prediction least: "
            f"{motor['unlike_reason']}."
        )
    if motor.get("predicted") is not None and not motor["interval_guaranteed"]:
        kind = kind_held_out(motor)
        many = kind.replace("cohort", "cohorts").replace("group by", "groups by", 1)
        out.append(
            f"There are too few {many} for an interval of the motor score that is guaranteed to "
            f"cover a new {kind}: it takes people of different {many} for exchangeable."
        )
    if motor.get("scale_note"):
        out.append(motor["scale_note"])
    r2 = (motor.get("r2") or {}).get("score")
    if r2 is not None and r2 < 0.1:
        whom = "cohorts" if held_out_by_cohort(motor) else f"any {kind_held_out(motor)}"
        out.append(
            f"The motor model predicts {whom} that it has not seen poorly (R² {number(r2)}): read "
            "its prediction as a check of the method, not as a forecast."
        )
    out += _caveats_of_centiles(facts["loads"])
    if who["warnings"]:
        out.append(f"The ingest found this scan odd: {who['warnings']}.")
    if facts["matches"]["rows"]:
        alike = "Matched patients within the calipers are alike in lesion volume, side and age only"
        if not facts["matches"]["n_within"]:
            alike = (
                "Nobody is matched within the calipers: the patients shown have a lesion on the "
                "same side, and another volume or age"
            )
        out.append(
            f"{alike}. They differ in other ways, and their outcome is not what this person's "
            "would have been."
        )
    return out


def _caveats_of_lesion(facts: Facts) -> list[str]:
    who = facts["person"]
    out = []
    if who["group"] == "stroke":
        side = who["lesion_hemisphere"]
        nothing = (
            "nothing here can be called ipsilesional or contralesional, and nobody is matched."
        )
        if not who["lesion_present"]:
            out.append("There is no lesion mask: nothing is known of where the lesion lies.")
        elif side in _NO_SIDE:
            out.append(f"The lesion has no single side ({_NO_SIDE[side]}): {nothing}")
        elif side == "none":
            out.append(f"The lesion mask is empty: {nothing}")
        elif not has_one_side(side):
            out.append(f"The side of the lesion is not known: {nothing}")
    if who["lesion_present"] and not regions_measured(facts["loads"]):
        out.append(f"{NO_REGION_LOADS}.")
    return out


def _caveats_of_tool(ages: Facts) -> list[str]:
    out = []
    if ages["rows"] and ages["tool"]:
        out.append(
            f"The brain ages are those of {ages['tool']}: whether its model has seen this person "
            "is not known."
        )
    if ages["rows"] and not ages["is_corrected"]:
        out.append(
            "The age bias of the brain ages is not corrected: brain age less age tends to fall "
            "with age for that reason alone, and says little of a person by itself."
        )
    return out


def _caveats_of_centiles(loads: Facts) -> list[str]:
    compared = [r for r in loads["rows"] if not r["centile_reason"]][:1]
    if not compared or compared[0]["n_cohort"] >= _FEW:
        return []
    near, everyone = compared[0]["n_cohort"], compared[0]["n_all"]
    if not everyone:
        return ["There is nobody to compare loads with: they have no centile."]
    if not near:
        others = plural(everyone, "person", "people")
        if loads["cohort_reason"]:
            return [
                f"{loads['cohort_reason']}. Centiles of loads are among {others} of any cohort."
            ]
        alone = "There is nobody else of the same cohort to compare loads with: "
        return [f"{alone}their centiles are among {others} of other cohorts."]
    firmer = "; those among all cohorts are firmer" if everyone > near else ""
    return [f"Centiles among {plural(near, 'other')} of the same cohort are coarse{firmer}."]
