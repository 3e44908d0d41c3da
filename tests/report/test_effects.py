"""Effects are told at what they hold for, and in the unit of their outcome."""

import numpy as np
import pytest
import xarray as xr

from scalebrain.report.cohort import facts, people
from scalebrain.report.content import Figure, Section, StudyResults, Table
from scalebrain.report.effectmap import effect_map_section
from scalebrain.report.effects import forest_section, read_effects
from tests.report.conftest import Study, make_mixed

VOLUME = "scale(log10(lesion_volume))"


def tables(section: Section) -> dict[str, Table]:
    return {block.key: block for block in section.blocks if isinstance(block, Table)}


def with_interactions(*others: str) -> xr.Dataset:
    """A mixed model of which every interaction has twice the effect of the main term."""
    mixed = make_mixed(VOLUME)
    mixed = mixed.isel(term=[0, 1, *[1] * len(others)])
    mixed["estimate"] = mixed["estimate"] * xr.DataArray([1, 1, *[-2] * len(others)], dims="term")
    terms = ["Intercept", VOLUME, *(f"{VOLUME}:{other}" for other in others)]
    return mixed.assign_coords(term=terms)


@pytest.mark.parametrize(
    ("others", "where"),
    [
        (["sex[T.M]"], "at the reference level of sex"),
        (["age"], "where age is 0"),
        (["scale(age)"], "at the mean of age"),
        (["group[T.b]", "group[T.c]"], "at the reference level of group"),
        (["sex[T.M]", "age", "sex[T.M]:age"], "at the reference level of sex and where age is 0"),
    ],
)
def test_read_effects__says_where_a_term_of_interactions_holds(others: list[str], where: str):
    effects = read_effects("mixed", with_interactions(*others))
    assert (effects.term, effects.where) == (VOLUME, where)
    assert [one.term for one in effects.interactions] == [f"{VOLUME}:{other}" for other in others]
    assert read_effects("mixed", make_mixed(VOLUME)).where == ""


def test_forest_section__does_not_tell_the_effect_at_a_reference_level_as_that_of_all(study: Study):
    mixed = with_interactions("sex[T.M]")
    results = StudyResults(mixed=mixed)
    section = forest_section(results)
    at, term = "at the reference level of sex", f"{VOLUME}:sex[T.M]"
    assert f"5% false discovery rate, {at}. " in section.takeaway
    assert section.takeaway.endswith(
        f"by the interaction {term} in 9 of 18 regions (q below 0.05)."
    )
    drawn = next(block for block in section.blocks if isinstance(block, Figure))
    assert f"The effect is that {at}" in drawn.caption
    found = tables(section)
    assert f"Effect of {VOLUME} {at} on corrected brain-PAD" in found["table-mixed"].caption
    by = found["table-mixed-interaction-1"]
    assert f"Interaction {term}, by which the effect of {VOLUME} on" in by.caption
    assert by.caption.endswith(f"differs, years per unit of {VOLUME} × sex[T.M].")
    assert by.rows[0][1].text == "−1.60"
    assert at in facts(people(study.ds), results)[-1][2]
    painted = effect_map_section(study.ds, results, np.full(study.ds.sizes["voxel"], 0.5))
    assert f", {at}, brain-PAD differs by" in painted.takeaway
    none = forest_section(StudyResults(mixed=mixed.assign(q=mixed["q"] * 0 + 0.5)))
    assert none.takeaway.startswith(f"No association of {VOLUME} {at} with")
    assert "in 0 of 18 regions" in none.takeaway
    whole = mixed.isel(region=[0]).assign_coords(region=["whole_brain"])
    said = forest_section(StudyResults(mixed=whole)).takeaway
    assert f", {at}. Elsewhere it differs by the interaction {term} (p = 0.001)." in said


@pytest.mark.parametrize(
    ("outcome", "axis", "is_age"),
    [
        ("brain_pad_corrected", "years of brain-PAD", True),
        ("brain_pad_global_corrected_harmonized", "years of brain-PAD", True),
        ("I(brain_pad_corrected / calibration_slope)", "years of brain-PAD", True),
        ("brain_age", "years of brain age", True),
        ("scale(brain_pad_corrected)", "standard deviations of brain-PAD", True),
        ("scale(lesion_load)", "standard deviations of lesion_load", False),
        ("brain_age_centile", "units of brain_age_centile", False),
        ("abs(brain_pad_corrected)", "units of abs(brain_pad_corrected)", False),
        ("log(brain_age)", "units of log(brain_age)", False),
    ],
)
def test_effects__only_ages_are_in_years(outcome: str, axis: str, is_age: bool):
    mixed = make_mixed(VOLUME).assign_attrs(formula=f"{outcome} ~ {VOLUME} + age")
    effects = read_effects("mixed", mixed)
    assert (effects.axis, effects.is_age) == (axis, is_age)
    section = forest_section(StudyResults(mixed=mixed))
    unit = axis.partition(" of ")[0]
    assert f"; 0.80 {unit})" in section.takeaway
    assert ("older" in section.takeaway) is is_age
    assert f", {unit} per standard deviation" in tables(section)["table-mixed"].caption


def test_forest_section__names_the_level_of_its_intervals():
    section = forest_section(StudyResults(mixed=make_mixed(VOLUME).assign_attrs(confidence=0.975)))
    drawn = next(block for block in section.blocks if isinstance(block, Figure))
    assert "with 97.5% confidence intervals" in drawn.caption
    assert "years (97.5% CI)" in drawn.svg
    assert tables(section)["table-mixed"].columns[2].label == "97.5% CI"
