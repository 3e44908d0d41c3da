"""Sentences and drawings of the sections follow their numbers."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from statsmodels.stats.proportion import proportion_confint

from scalebrain.atlas.regions import default_regions
from scalebrain.errors import StatisticsError
from scalebrain.predict.motor import predict_motor
from scalebrain.report.brainage import accuracy_section
from scalebrain.report.cohort import cohort_section, facts, people
from scalebrain.report.content import (
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    and_list,
    interval,
    number,
    p_value,
    p_words,
    span,
)
from scalebrain.report.effectmap import _parcel_values, effect_map_section, effect_overlays
from scalebrain.report.effects import _finding, focal_term, forest_section, read_effects
from scalebrain.report.lesionmap import lesion_section
from scalebrain.report.motor import motor_section, motor_summary
from scalebrain.report.motorfigures import predictor_label
from scalebrain.report.multiverse import multiverse_sections
from scalebrain.report.network import network_section
from scalebrain.report.page import render_report
from scalebrain.report.pathdiagram import Path, causal_order, path_diagram
from scalebrain.report.pathmodel import read_paths, sem_section
from scalebrain.report.recovery import recovery_section
from tests.report.conftest import SIDED, Study, make_mixed


def notes(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Note))


def table(section: Section, key: str) -> list[list[str]]:
    found = next(b for b in section.blocks if isinstance(b, Table) and b.key == key)
    return [[cell.text for cell in row] for row in found.rows]


def test_number__has_a_true_minus_and_no_negative_zero():
    assert number(-1.234) == "−1.23"
    assert number(-0.001) == "0.00"
    assert number(12345.6, 0) == "12,346"
    assert number(np.nan) == number(None) == "–"


def test_p_value__is_never_zero():
    assert (p_value(0.0), p_value(0.0004), p_value(0.05), p_value(np.nan)) == (
        "<0.001",
        "<0.001",
        "0.050",
        "–",
    )


def test_p_value__below_five_percent_is_told_from_it():
    assert (p_value(0.0496), p_value(0.0494), p_value(0.0504)) == ("<0.05", "0.049", "0.050")
    assert [p_words(p) for p in (0.0, 0.03, np.nan)] == ["p < 0.001", "p = 0.030", "p = –"]


def test_texts__join_ranges_and_lists():
    assert interval(-1, 2) == "−1.00 to 2.00"
    assert span([np.nan, 3.04, 3.01]) == "3.0"
    assert span([]) == "–"
    assert and_list(["a"]) == "a"
    assert and_list(["a", "b", "c"]) == "a, b and c"
    assert and_list(list("abcdefgh"), 3) == "a, b, c and 5 more"


def test_accuracy_section__counts_the_regions_that_beat_the_mean(study: Study):
    assert "in 18 of 18 regions" in accuracy_section(study.ds, study.results).takeaway
    worse = study.parts["accuracy"].copy(deep=True)
    worse["mae"][:5] = 20.0
    section = accuracy_section(study.ds, StudyResults(accuracy=worse))
    assert "in 13 of 18 regions" in section.takeaway
    assert f"{float(worse['mae'].min()):.1f} to 20.0 years" in section.takeaway


def test_accuracy_section__shows_oracle_and_deviation_only_with_a_truth(study: Study):
    with_truth = accuracy_section(study.ds, study.results)
    assert "the best possible correlation is 0.70" in notes(with_truth)
    blind = study.parts["accuracy"].drop_vars(["deviation_r", "oracle_mae", "oracle_r"])
    section = accuracy_section(study.ds, StudyResults(accuracy=blind))
    assert "no true regional age is known" in notes(section)
    assert not any("best possible" in b.svg for b in section.blocks if isinstance(b, Figure))


def test_accuracy_section__measures_coverage_in_included_reference_people(study: Study):
    ds = study.ds.copy(deep=True)
    width = xr.where(ds["region"] == "SMN_L", 0.0, 100.0)
    ds["brain_age_low"] = (ds["age"] - width - 1e-9).transpose("subject", "region")
    ds["brain_age_high"] = (ds["age"] + width - 1e-9).transpose("subject", "region")
    ds["brain_age_low"].attrs["coverage"] = 0.8
    said = notes(accuracy_section(ds, study.results))
    assert "the 80% conformal interval" in said
    assert "(0% to 100% by region)" in said
    assert "by construction" not in said
    own = ds.assign(out_of_fold=("subject", np.ones(ds.sizes["subject"], dtype=bool)))
    assert "met by construction" in notes(accuracy_section(own, study.results))


def test_accuracy_section__says_by_how_much_each_site_is_off(study: Study):
    section = accuracy_section(study.ds, study.results)
    said = notes(section)
    assert "2 sites of 3 have healthy people" in said
    assert "of site B, is −1.50 years" in said
    assert "At 1 site with strokes (site C) it is not known" in said
    assert "taught it their site" not in said
    own = study.ds.assign(out_of_fold=("subject", np.ones(study.ds.sizes["subject"], dtype=bool)))
    assert "taught it their site" in notes(accuracy_section(own, study.results))
    (table,) = (b for b in section.blocks if getattr(b, "key", "") == "site-shift-table")
    rows = [[one.text for one in row] for row in table.rows]
    assert [row[0] for row in rows] == ["site A", "site B", "site C"]
    assert [row[4] for row in rows] == ["0", "18", "–"]
    assert rows[1][5] == "left sensorimotor, −1.50 (−2.50 to −0.50)"
    assert rows[2][5] == "not known"
    beyond = (study.ds["group"] == "stroke") & (study.ds["cohort"] == "site A")
    section = accuracy_section(study.ds.assign(extrapolated=beyond), study.results)
    (table,) = (b for b in section.blocks if getattr(b, "key", "") == "site-shift-table")
    assert [row[2].text for row in table.rows] == ["0", *(row[2] for row in rows[1:])]
    assert rows[0][2] != "0"


def test_accuracy_section__a_single_site_and_the_whole_brain(study: Study):
    shifts = study.parts["site_shift"].isel(cohort=[0])
    section = accuracy_section(study.ds, StudyResults(site_shift=shifts))
    assert "1 site of 1 has healthy people" in notes(section)
    assert "It is 0.40 years on average" in notes(section)
    assert "drawn towards" not in notes(section)
    assert not any(getattr(b, "key", "") == "site-shift" for b in section.blocks)
    whole = study.parts["site_shift"].isel(region=0, drop=True)
    section = accuracy_section(study.ds, StudyResults(site_shift=whole))
    assert "whole brain, −1.50" in str([b for b in section.blocks if isinstance(b, Table)])
    assert "'site_shift'" in notes(accuracy_section(study.ds, StudyResults()))


def test_accuracy_section__shows_coverage_by_age_with_people_not_regions_as_n(study: Study):
    ds = study.ds.copy(deep=True)
    old = ds["age"] > 70
    inside = xr.where(old, 0.0, 100.0)  # nobody above 70 is covered
    ds["brain_age_low"] = (ds["age"] - inside + 1e-9 - 2e-9 * ~old).expand_dims(region=ds["region"])
    ds["brain_age_high"] = (ds["age"] + inside + 1e-9).expand_dims(region=ds["region"])
    unsaid = accuracy_section(ds, study.results)  # of another tool: it may promise anything
    assert not any(getattr(block, "key", "") == "coverage-table" for block in unsaid.blocks)
    ds["brain_age_low"].attrs["coverage"] = 0.9
    section = accuracy_section(ds, study.results)
    rows = {row[0]: row[1:] for row in table(section, "coverage-table")}
    who = ds["included"].values & (ds["group"].values.astype(str) == "reference")
    n = {"50 to 59": (ds["age"] >= 50) & (ds["age"] < 60), "all ages": ds["age"] > 0}
    for name, band in n.items():
        assert rows[name][0] == str(int((band.values & who).sum()))
    assert rows["50 to 59"][1:3] == ["90%", "100%"]
    assert rows["70 to 79"][2] == "0%"
    some = int((who & old.values & (ds["age"].values < 80)).sum())
    low, high = proportion_confint(0, some, method="wilson")
    assert rows["70 to 79"][3] == f"{100 * low:.0f} to {100 * high:.0f}%"
    assert list(rows)[-1] == "all ages"
    assert "leaves 90% out at ages" in notes(section)
    drawn = next(b.svg for b in section.blocks if isinstance(b, Figure) and b.key == "coverage")
    assert "70 to 79, 0% of" in drawn
    ds["brain_age_low"].attrs["coverage"] = 0.975
    rows = table(accuracy_section(ds, study.results), "coverage-table")
    assert {row[2] for row in rows} == {"97.5%"}


def test_cohort_section__warns_when_no_cohort_holds_both_groups(study: Study):
    assert "3 cohorts hold people of more than one group" in notes(
        cohort_section(people(study.ds), study.results)
    )
    apart = study.ds.assign_coords(cohort=study.ds["group"])
    told = "between scanners and differences between groups cannot be told apart"
    assert told in notes(cohort_section(people(apart), study.results))


def test_lesion_section__names_the_side_and_count_of_the_peak(study: Study):
    background = np.full(study.ds.sizes["voxel"], 0.5)
    section = lesion_section(study.ds, people(study.ds), background)
    top = int(np.rint(study.ds["lesion_frequency"].max() * 16))
    assert f"in the left hemisphere, where {top} of 16 people" in section.takeaway
    figure = next(b for b in section.blocks if isinstance(b, Figure))
    assert figure.svg.count(">L</text>") == figure.svg.count(">R</text>") == 12


def test_lesion_section__counts_people_with_a_lesion_alone(study: Study):
    ds = study.ds
    healthy = (ds["group"].values == "reference") & ds["included"].values
    ds = ds.assign(
        lesion_present=ds["lesion_present"] | healthy,
        lesion_hemisphere=ds["lesion_hemisphere"].where(~healthy, "none"),
        lesion_frequency=ds["lesion_frequency"] * 16 / (16 + healthy.sum()),
    )
    ds["lesion_frequency"].attrs["n"] = int(16 + healthy.sum())
    section = lesion_section(ds, people(ds), np.full(ds.sizes["voxel"], 0.5))
    assert " of 16 people" in section.takeaway


def test_lesion_section__map_of_more_people_than_are_here(study: Study):
    one = study.ds.isel(subject=np.flatnonzero(study.ds["lesion_present"].values)[:1])
    section = lesion_section(one, people(one), np.full(one.sizes["voxel"], 0.5))
    assert section.takeaway == "There is no lesion map."
    assert "of 16 lesion masks, of which 1 is of people here" in notes(section)


def test_facts__count_people_not_scans(study: Study):
    rows = people(study.ds)
    twice = pd.concat([rows, rows[rows["group"] == "reference"]], ignore_index=True)
    words = f"The numbers of this section count scans: {len(twice)} of {len(rows)} people."
    assert words in notes(cohort_section(twice, study.results))
    value, label, origin = facts(twice, study.results)[0]
    assert (value, label) == (str(int(rows["included"].sum())), "people analyzed")
    assert origin.endswith("scans")
    assert not facts(rows, study.results)[0][2].endswith("scans")


def test_effect_overlays__of_an_oblique_grid_are_none(study: Study):
    assert effect_overlays(study.ds, study.results)
    oblique = study.ds.assign_attrs(affine=(np.eye(4) + 0.2).ravel().tolist())
    assert effect_overlays(oblique, study.results) == []


def test_lesion_section__mirrored_lesions_change_the_side(study: Study):
    mirrored = study.ds.assign_coords(x=-study.ds["x"])
    section = lesion_section(mirrored, people(mirrored), np.full(mirrored.sizes["voxel"], 0.5))
    assert "in the right hemisphere" in section.takeaway


def test_lesion_section__says_when_there_is_nothing_to_draw(study: Study):
    empty = study.ds.assign(lesion_frequency=study.ds["lesion_frequency"] * 0)
    empty["lesion_frequency"].attrs["n"] = 16
    section = lesion_section(empty, people(empty), np.zeros(empty.sizes["voxel"]))
    assert "None of the 16 lesion masks" in notes(section)
    oblique = study.ds.assign_attrs(affine=(np.eye(4) + 0.2).ravel().tolist())
    section = lesion_section(oblique, people(oblique), np.zeros(oblique.sizes["voxel"]))
    assert "oblique" in notes(section)


_VOLUME = "scale(log10(lesion_volume))"


@pytest.mark.parametrize(
    ("key", "terms", "term", "subject"),
    [
        ("mixed", ["Intercept", "lesion_hemisphere[T.R]", _VOLUME, "age"], _VOLUME, "Larger"),
        ("mixed", ["Intercept", f"{_VOLUME}:age", _VOLUME], _VOLUME, f"{_VOLUME} goes"),
        ("mixed", ["Intercept", "motor_score", "age"], "motor_score", "motor_score goes"),
        ("mixed", ["Intercept", "sex[T.male]"], "sex[T.male]", "sex[T.male] goes"),
        ("mixed_load", ["Intercept", _VOLUME, "scale(lesion_load)"], "scale(lesion_load)", "More"),
        ("mixed_load", ["Intercept", _VOLUME], _VOLUME, f"{_VOLUME} goes"),
    ],
)
def test_read_effects__a_term_has_its_own_name(key: str, terms: list[str], term: str, subject: str):
    regions = ["SMN_ipsilesional", "SMN_contralesional"]
    shape = (("term", "region"), np.ones((len(terms), 2)))
    mixed = xr.Dataset(
        dict.fromkeys(("estimate", "ci_low", "ci_high", "n"), shape)
        | {"p": (shape[0], shape[1] * 0.001), "q": (shape[0], shape[1] * 0.01)},
        coords={"term": terms, "region": regions},
        attrs={"formula": "brain_pad_corrected ~ whatever"},
    )
    effects = read_effects(key, mixed)
    assert effects.term == term
    assert effects.subject.startswith(subject)
    results = StudyResults(mixed=mixed) if key == "mixed" else StudyResults(mixed_load=mixed)
    assert forest_section(results).takeaway.startswith(subject)
    motor = mixed.assign_attrs(formula="motor_score ~ brain_pad_corrected")
    other = forest_section(StudyResults(mixed=motor)).takeaway
    assert "higher ipsilesional regions" in other
    assert "units" in other
    assert "older" not in other


@pytest.mark.parametrize(
    ("terms", "attrs", "expected"),
    [
        (["Intercept", "age", "scale(log10(lesion_volume))"], {}, "scale(log10(lesion_volume))"),
        (["Intercept", "age", "lesion_volume"], {"focal_term": "age"}, "age"),
        (["Intercept", "age"], {}, "age"),
        (["Intercept"], {}, "Intercept"),
    ],
)
def test_focal_term__prefers_the_lesion(terms: list[str], attrs: dict[str, str], expected: str):
    assert focal_term(xr.Dataset(coords={"term": terms}, attrs=attrs)) == expected


@pytest.mark.parametrize(
    ("term", "unit"),
    [
        ("scale(log10(lesion_volume))", "per standard deviation of log lesion volume"),
        ("lesion_load", "per unit of lesion load"),
        ("center(age)", "per unit of age"),
    ],
)
def test_read_effects__says_what_an_estimate_is_per(term: str, unit: str):
    assert read_effects("mixed", make_mixed(term)).unit == unit


def test_read_effects__refuses_native_sides():
    native = make_mixed("scale(lesion_volume)").isel(region=[0, 1])
    native = native.assign_coords(region=["SMN_L", "SMN_R"])
    with pytest.raises(StatisticsError, match=r"SMN_L and SMN_R are left or right.*to_lesional"):
        read_effects("mixed", native)


def test_forest_section__names_a_random_slope():
    mixed = make_mixed("age")
    mixed["boundary"] = ("region", np.arange(len(SIDED)) < 2)
    said = notes(forest_section(StudyResults(mixed=mixed)))
    assert "Random intercept by cohort. The variance between groups was estimated as zero" in said
    mixed.attrs["method"] = (
        "random intercept and slope of np.clip(age, 40, 80), REML, Satterthwaite"
    )
    mixed["slope_variance"] = ("region", np.zeros(len(SIDED)))
    said = notes(forest_section(StudyResults(mixed=mixed)))
    assert "Random intercept and slope of np.clip(age, 40, 80) by cohort. The random" in said
    assert "The variance between groups" not in said


def test_forest_section__tells_older_from_younger():
    mixed = make_mixed("scale(log10(lesion_volume))")
    takeaway = forest_section(StudyResults(mixed=mixed)).takeaway
    assert takeaway.startswith("Larger lesions go with older ipsilesional regions (SMN, FPN")
    assert "contralesional" not in takeaway
    flipped = forest_section(StudyResults(mixed=mixed.assign(estimate=-mixed["estimate"])))
    assert "younger ipsilesional regions" in flipped.takeaway
    none = forest_section(StudyResults(mixed=mixed.assign(q=mixed["q"] * 0 + 0.5)))
    assert none.takeaway.startswith("No association of lesion volume")
    assert "9 have a raw p below 0.05" in none.takeaway


@pytest.mark.parametrize(
    ("key", "others", "term", "starts"),
    [
        ("mixed", [], "motor_score", "motor_score goes with older"),
        ("mixed", ["lesion_hemisphere[T.R]"], "scale(log10(lesion_volume))", "Larger lesions go"),
        ("mixed", [], "lesion_hemisphere[T.R]", "lesion_hemisphere[T.R] goes with"),
        ("mixed", [], "I(1 / lesion_volume)", "I(1 / lesion_volume) goes with"),
        ("mixed", ["age:lesion_volume"], "lesion_volume", "lesion_volume goes with"),
        ("mixed_load", ["log10(lesion_volume)"], "scale(lesion_load)", "More damage in a region"),
    ],
)
def test_forest_section__names_the_cause_after_the_formula(
    study: Study, key: str, others: list[str], term: str, starts: str
):
    mixed = make_mixed(term)
    mixed = mixed.isel(term=[0, *[0] * len(others), 1])
    mixed = mixed.assign_coords(term=["Intercept", *others, term])
    effects = read_effects(key, mixed)
    assert effects.term == term
    assert _finding(effects).startswith(starts)
    if key == "mixed":
        told = [words for _, words, _ in facts(people(study.ds), StudyResults(mixed=mixed))]
        assert f"regions linked to {effects.cause}" in told
        assert ("regions linked to lesion volume" in told) == starts.startswith("Larger")


def test_forest_section__shows_raw_p_beside_q():
    section = forest_section(StudyResults(mixed=make_mixed("scale(lesion_volume)")))
    rows = table(section, "table-mixed")
    assert len(rows) == 18
    assert rows[0] == [
        "ipsilesional sensorimotor",
        "0.80",
        "0.40 to 1.20",
        "0.001",
        "0.002",
        "16",
    ]


def test_forest_section__says_what_could_not_be_fitted():
    mixed = make_mixed("scale(lesion_load)")
    side = np.array([r.endswith("_contralesional") for r in SIDED])
    holes = mixed[["estimate", "ci_low", "ci_high", "p", "q"]].where(
        ~xr.DataArray(side, dims="region")
    )
    left_out = ("SMN_contralesional", "FPN_contralesional")
    mixed = mixed.assign(holes)
    mixed.attrs["failures"] = [f"region {region}: constant." for region in left_out]
    section = forest_section(StudyResults(mixed=mixed))
    assert "Not fitted: SMN_contralesional and FPN_contralesional: constant." in notes(section)
    bound = forest_section(StudyResults(mixed=mixed.assign(boundary=("region", ~side | side))))
    assert "zero in 9 of 9 regions that could be fitted." in notes(bound)
    assert ">contralesional<" not in next(b.svg for b in section.blocks if isinstance(b, Figure))
    nothing = mixed.assign(estimate=mixed["estimate"] * np.nan)
    assert "No region has an estimate" in notes(forest_section(StudyResults(mixed=nothing)))


def test_effect_map__averages_shared_parcels_and_says_so(study: Study):
    mixed = make_mixed("scale(log10(lesion_volume))")
    mixed["estimate"].loc[{"region": "FPN_ipsilesional"}] = 1.0
    mixed["estimate"].loc[{"region": "DMN_ipsilesional"}] = 3.0
    effects = read_effects("mixed", mixed)
    values, shared = _parcel_values(effects, default_regions())
    assert values[65] == 2.0
    assert set(shared) == {65, 66}
    assert values[1] == pytest.approx(0.8)
    assert values[2] == pytest.approx(-0.2)
    background = np.full(study.ds.sizes["voxel"], 0.5)
    section = effect_map_section(study.ds, StudyResults(mixed=mixed), background)
    captions = [b.caption for b in section.blocks if isinstance(b, Figure)]
    assert "2 parcels belong to more than one region and show their mean" in captions[0]
    assert "Gray cortex belongs to no region. " in captions[0]
    assert len(captions) == 2


def test_effect_map__tells_regions_that_were_not_fitted_from_none(study: Study):
    own = [region for region in SIDED if region.endswith("_ipsilesional")]
    mixed = make_mixed("scale(lesion_load)").sel(region=own)
    mixed["estimate"].loc[{"region": "VIS_ipsilesional"}] = np.nan
    background = np.full(study.ds.sizes["voxel"], 0.5)
    section = effect_map_section(study.ds, StudyResults(mixed=mixed), background)
    surface, slices = (b for b in section.blocks if isinstance(b, Figure))
    told = "belongs to no region, or to one that was not tested or could not be fitted."
    assert told in surface.caption
    assert slices.svg.count("not fitted") == 1
    assert slices.svg.count("not tested") == 9


def test_effect_map__explains_what_it_cannot_draw(study: Study):
    bare = study.ds.drop_vars("parcel")
    section = effect_map_section(bare, study.results, np.full(bare.sizes["voxel"], 0.5))
    assert not [b for b in section.blocks if isinstance(b, Figure)]
    assert "parcel" in notes(section)


def test_sem_section__names_the_strongest_path_and_the_limits_of_its_fit(study: Study):
    sem = study.parts["sem"]
    section = sem_section(StudyResults(sem=sem))
    assert "from ipsilesional brain-PAD to contralesional frontoparietal" in section.takeaway
    assert "4 of 6 paths have an interval that excludes zero" in section.takeaway
    assert "cannot tell which of the two comes first" in notes(section)
    free = sem.assign(df=((), 2)).assign_attrs(saturated=0)
    assert "saturated" not in notes(sem_section(StudyResults(sem=free)))
    assert [row[0] for row in table(section, "rivals")] == ["specified", "reversed", "restricted"]


def test_sem_section__says_what_a_variable_is_and_what_is_clear(study: Study):
    sem = study.parts["sem"].copy()
    told = {"cst": "lesion_volume", "contra": "lesion_load at region=FPN_contralesional"}
    sem.attrs["variables"] = told | {"ipsi": "mean over ipsilesional regions of brain_pad"}
    section = sem_section(StudyResults(sem=sem.drop_vars(["std_ci_low", "std_ci_high"])))
    paths = [row[0] for row in table(section, "sem-table")]
    assert "cst (lesion_volume) → Motor score" in paths
    assert "Ipsilesional brain-PAD → contra (lesion_load at region=FPN_contralesional)" in paths
    assert section.takeaway.endswith("6 of 6 paths have p below 0.05.")
    drawn = next(b for b in section.blocks if isinstance(b, Figure))
    assert "interval" not in drawn.caption
    told = next(b for b in section.blocks if isinstance(b, Table) and b.key == "sem-table")
    assert "interval" not in told.caption


def test_read_paths__leaves_out_covariances_and_loadings():
    sem = xr.Dataset(
        {"std_estimate": ("path", [0.1, 0.2, 0.3])},
        coords={"path": ["a ~ b", "a ~~ c", "f =~ a"]},
    )
    assert [(p.outcome, p.cause) for p in read_paths(sem)] == [("a", "b")]


def test_path__is_clear_by_its_interval_else_by_p():
    assert Path("a", "b", 0.3, 0.1, 0.5, 0.9).clear
    assert not Path("a", "b", 0.3, -0.1, 0.5, 0.01).clear
    assert Path("a", "b", 0.3, np.nan, np.nan, 0.01).clear


def test_path_diagram__keeps_arrows_out_of_boxes():
    nan = np.nan
    paths = [Path(f"v{j}", f"v{i}", 0.2, nan, nan, 0.5) for i in range(5) for j in range(i + 1, 5)]
    svg = path_diagram(paths, "alt", {})
    boxes = [
        (float(x), float(y))
        for x, y in re.findall(r'<g transform="translate\(([\d.]+) ([\d.]+)', svg)
    ][:5]
    lines = [
        tuple(map(float, found))
        for found in re.findall(r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', svg)
    ]
    assert len(lines) == 10
    for x1, y1, x2, y2 in lines:
        for x, y in ((x1, y1), (x2, y2)):
            assert all(abs(x - bx) > 104 or abs(y - by) > 32 for bx, by in boxes)


def test_causal_order__survives_a_circle():
    def path(outcome: str, cause: str) -> Path:
        return Path(outcome, cause, 0.1, 0, 0, 1)

    assert causal_order([path("c", "b"), path("b", "a")]) == ["a", "b", "c"]
    assert sorted(causal_order([path("a", "b"), path("b", "a")])) == ["a", "b"]


def test_motor_section__names_the_best_model_and_when_it_is_of_no_use(study: Study):
    motor = study.parts["motor"]
    takeaway = motor_section(StudyResults(motor=motor)).takeaway
    assert "the best of 4 models (random forest on combined predictors) reaches R² 0.40" in takeaway
    assert "no useful prediction" not in takeaway
    assert "against −0.05 for always guessing the mean" in takeaway
    weak = motor.assign(ci_low=motor["ci_low"] - 1)
    assert "no useful prediction" in motor_section(StudyResults(motor=weak)).takeaway
    worse = motor.assign(ci_low=motor["ci_low"] - 9, ci_high=motor["ci_high"] - 8)
    assert "lies below zero: worse than" in motor_section(StudyResults(motor=worse)).takeaway


def test_motor_section__ranks_predictors_by_mean_importance(study: Study):
    section = motor_section(study.results)
    rows = table(section, "predictors")
    assert [row[1] for row in rows] == ["ipsilesional CST lesion load (overlap)", "Age", "x"]
    assert rows[0][3:] == ["0.1500", "1.2", "90%", "0.1500"]
    told = "p = 0.048 for elastic net and p = 0.300 for random forest from 20 permutations"
    assert told in notes(section)


def test_motor_section__tells_gain_calibration_and_coverage(study: Study):
    section = motor_section(study.results)
    assert "Combined predictors against clinical ones alone, in R²" in notes(section)
    assert table(section, "motor-gain")[0][1] == "clinical"
    assert "held the outcome in 90% (80% to 95%) with elastic net" in notes(section)
    assert "not guaranteed" in notes(section)
    assert "1 of 16 people is unlike anyone" in notes(section)
    drawn = next(b for b in section.blocks if isinstance(b, Figure) and b.key == "calibration")
    assert "elastic net predicted and observed 20%: 30%, 70%: 80%" in drawn.svg
    summary = motor_summary(study.parts["motor"])
    assert len(summary) == 6
    assert summary[0] == section.takeaway
    bare = study.parts["motor"].drop_vars(["gain", "interval_covered", "unlike_training"])
    assert len(motor_summary(bare)) == 3


def test_motor_section__tells_of_several_scales_and_calls_nobody_severe():
    rng = np.random.default_rng(0)
    names = np.array([f"{name}<b>" for name in ("FMA-UE", "NIHSS")], dtype=object)
    ds = xr.Dataset(
        {
            "motor_score": ("subject", rng.random(24)),
            "motor_scale": ("subject", names[np.arange(24) % 2]),
            "x": ("subject", rng.random(24)),
            "cohort": ("subject", [f"c{k % 4}" for k in range(24)]),
        }
    )
    motor = predict_motor(
        ds, feature_groups={"x": ["x"]}, learners=["elastic_net"], n_permutations=0, n_boot=20
    )
    section = motor_section(StudyResults(motor=motor))
    pooled = next(b for b in section.blocks if isinstance(b, Note) and b.tone == "caution")
    assert "several scales" in pooled.text
    assert "NIHSS<b> (12)" in pooled.text
    assert "Without severity scores: every cohort: the cut-off 0.424 is" in notes(section)
    assert "Severe: motor score below" not in notes(section)
    assert pooled.text in motor_summary(motor)


def test_predictor_label__reads_the_names_of_the_predictors():
    assert predictor_label("lesion_load:SAL_ipsilesional") == "ipsilesional salience lesion load"
    assert (
        predictor_label("brain_pad_corrected:FPN_contralesional")
        == "contralesional frontoparietal brain-PAD"
    )
    assert predictor_label("my_own") == "my own"


@pytest.mark.parametrize(("undone", "words"), [(np.nan, ""), (4.0, "by 4.0 years if nothing")])
def test_network_section__says_what_was_not_measured(study: Study, undone: float, words: str):
    policies, reaches = ["as_is", "exclude_region"], ["lesioned", "touched", "untouched"]
    dims = ("policy", "reach")
    sizes = np.array([[undone] * 3, [np.nan] * 3])
    names = ("mean", "sd", "size", "largest", "slope")
    found = xr.Dataset(
        {f"shift_{name}": (dims, sizes) for name in names} | {"n": (dims, np.zeros((2, 3)))},
        coords={"policy": policies, "reach": reaches},
    )
    nodes = ("subject", np.zeros(study.ds.sizes["subject"]), {"lesion_policy": "exclude_region"})
    ds = study.ds.assign(node_features=nodes)
    takeaway = network_section(ds, StudyResults(artifact=found)).takeaway
    assert "was not measured" in takeaway
    assert "–" not in takeaway
    assert words in takeaway


def test_recovery_section__judges_by_the_interval_alone(study: Study):
    section = recovery_section(study.results, simulated=True)
    assert "1 of 2 planted effects lies inside" in section.takeaway
    assert "outside: CST load on motor score" in section.takeaway
    assert "Of 2 planted effects that are not zero, 1 is told from zero" in section.takeaway
    assert [row[5] for row in table(section, "recovery-table")] == ["yes", "no"]
    counted = StudyResults(recovery=study.parts["recovery"].assign(n=[1043, 41]))
    section_of = recovery_section(counted, simulated=True)
    assert [row[-1] for row in table(section_of, "recovery-table")] == ["1,043", "41"]
    lied = study.parts["recovery"].assign(inside=[False, True])
    again = recovery_section(StudyResults(recovery=lied), simulated=True)
    assert again.takeaway == section.takeaway


def test_recovery_section__says_which_column_is_missing(study: Study):
    less = study.parts["recovery"].drop(columns=["ci_low"])
    section = recovery_section(StudyResults(recovery=less), simulated=True)
    assert "lacks ci_low" in notes(section)


def test_cohort_section__shows_who_the_ingest_left_out(study: Study):
    found = pd.DataFrame(
        {
            "subject": ["sub-01", "<script>"],
            "code": ["truncated", "bad-id"],
            "rule": ["A truncated file", "An id with markup"],
        }
    )
    results = dataclasses.replace(study.results, rejected=found, warnings=found[:0])
    section = cohort_section(people(study.ds), results)
    assert "2 people did not pass the checks" in section.takeaway
    assert table(section, "rejected") == [
        ["bad-id", "An id with markup", "1", "<script>"],
        ["truncated", "A truncated file", "1", "sub-01"],
    ]
    page = render_report(study.ds, results=results)
    assert "&lt;script&gt;" in page
    assert not any(isinstance(b, Table) and b.key == "warnings" for b in section.blocks)


def imported(study: Study, how: str) -> xr.Dataset:
    """The study with ages of another tool."""
    tool = {"tool": "brainageR", "tool_version": "2.1", "age_bias_correction": how}
    tool |= {"n_references": 31, "model_trained_on_simulated": "unknown"}
    pad = (study.ds["brain_age"] - study.ds["age"]).assign_attrs(tool)
    age = study.ds["brain_age"].assign_attrs(tool)
    return study.ds.drop_vars("calibration_slope").assign(brain_age=age, brain_pad=pad)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("references", "31 or more reference people"),
        ("tool", "corrected by the tool"),
        ("none", "not corrected"),
    ],
)
def test_accuracy_section__says_whose_ages_they_are(study: Study, how: str, words: str):
    ds = imported(study, how)
    section = accuracy_section(ds, StudyResults(missing={"accuracy": "Not known."}))
    assert "imported from brainageR 2.1" in section.takeaway
    assert words in notes(section)
    assert ("deviate by about zero on average" in notes(section)) == (how == "references")
    assert "conformal" not in notes(section)
    assert [b.key for b in section.blocks if isinstance(b, Figure)] == ["scatter"]
    page = render_report(ds, results=StudyResults())
    assert "predicted outside this study with brainageR 2.1" in page
    assert "For every region a graph network" not in page
    assert "teach and test the brain-age model" not in page


def test_sections__one_age_of_the_whole_brain(study: Study):
    ds = imported(study, "none")
    ages = {
        "brain_age_global": ds["brain_age"].mean("region", keep_attrs=True),
        "brain_pad_global": ds["brain_pad"].mean("region", keep_attrs=True),
    }
    ds = ds.drop_vars(["brain_age", "brain_pad", "brain_age_low", "brain_age_high"]).assign(ages)
    mixed = study.parts["mixed"].isel(region=[0]).assign_coords(region=["whole_brain"])
    mixed = mixed.assign(q=mixed["q"] * 0 + 0.01, estimate=mixed["estimate"] * 0 + 1.5)
    mixed.attrs["formula"] = "brain_pad_global ~ scale(log10(lesion_volume)) + age"
    results = StudyResults(mixed=mixed, missing={"mixed_load": "Whole brain."})
    forest = forest_section(results)
    assert forest.takeaway == (
        f"Larger lesions go with an older whole brain (1.50 years, {p_words(mixed['p'][0, 1])})."
    )
    assert "on the whole brain" in forest.title
    drawn = next(block for block in forest.blocks if isinstance(block, Figure))
    assert "region" not in drawn.caption
    flat = mixed.assign(boundary=("region", [True]), q=mixed["q"] * 0 + 0.5, p=mixed["p"] * 0 + 0.5)
    none = forest_section(StudyResults(mixed=flat))
    assert none.takeaway == (
        "No association of lesion volume with the brain-PAD of the whole brain was found "
        "(p = 0.500)."
    )
    assert "The variance between groups was estimated as zero. " in notes(none)
    headline = facts(people(ds), results)[-1]
    assert headline[:2] == ("1.50 years", "effect of lesion volume on the whole brain")
    page = render_report(ds, results=results)
    assert "<h1>Brain age after stroke</h1>" in page
    assert "reads from the scan of the brain." in page
    for words in ("one region", "of 1 region", "regions linked", "for every region", "each region"):
        assert words not in page
    table = next(block for block in forest.blocks if isinstance(block, Table))
    assert table.rows[0][0].text == "whole brain"
    assert "on brain-PAD" in table.caption
    painted = effect_map_section(ds, results, np.zeros(ds.sizes["voxel"]))
    assert "no region to paint" in painted.takeaway
    figure = next(b for b in accuracy_section(ds, results).blocks if isinstance(b, Figure))
    assert "whole brain" in figure.caption


def test_sem_section__defined_parameters_hints_and_conclusions(study: Study):
    sem = study.parts["sem"].assign(
        n_pairs=("path", np.array([16, 15, 14, 16, 16, 16])),
        defined_estimate=("defined", [0.2]),
        defined_p=("defined", [0.01]),
        defined_ci_low=("defined", [0.1]),
        defined_ci_high=("defined", [0.3]),
        defined_std_estimate=("defined", [0.12]),
        modification_index=("modification", [1.0, 9.0]),
        modification_p=("modification", [0.3, 0.003]),
        expected_std_change=("modification", [0.1, 0.4]),
    )
    sem = sem.assign_coords(defined=["total"], modification=["a ~ b", "c ~~ d"])
    sem.attrs |= {"conclusions": ["'x' and 'y' are equivalent."], "improper": ["variance of f"]}
    section = sem_section(StudyResults(sem=sem))
    tables = {block.key: block for block in section.blocks if isinstance(block, Table)}
    assert tables["sem-table"].rows[2][-1].text == "14"
    assert tables["sem-defined"].rows[0][0].text == "total"
    assert [row[0].text for row in tables["sem-hints"].rows] == ["c ~~ d", "a ~ b"]
    assert "Exploratory" in tables["sem-hints"].caption
    assert "equivalent" in notes(section)
    assert "do not trust this fit: variance of f" in notes(section)


def test_multiverse_sections__draw_every_specification():
    rng = np.random.default_rng(0)
    estimate = rng.normal(0.3, 0.05, (2, 4))
    dims = ("effect", "specification")
    data = xr.Dataset(
        {
            "estimate": (dims, estimate),
            "ci_low": (dims, estimate - np.array([[0.1], [0.5]])),
            "ci_high": (dims, estimate + np.array([[0.1], [0.5]])),
            "median_estimate": ("effect", np.median(estimate, axis=1)),
            "lowest_estimate": ("effect", estimate.min(axis=1)),
            "highest_estimate": ("effect", estimate.max(axis=1)),
            "same_sign": ("effect", [1.0, 1.0]),
            "excludes_zero": ("effect", [1.0, 0.0]),
            "verdict": ("effect", ["robust", "weak"]),
        },
        coords={
            "effect": ["cst -> motor", "lesion_volume -> SMN_ipsilesional"],
            "policy": ("specification", ["mask_nodes", "mask_nodes", "as_is", "as_is"]),
            "icv": ("specification", ["with_icv", "without_icv"] * 2),
        },
        attrs={
            "axes": {"policy": ["mask_nodes", "as_is"], "icv": ["with_icv", "without_icv"]},
            "verdicts": {"robust": "always"},
            "failures": ["x: <b>"],
        },
    )
    assert multiverse_sections(StudyResults()) == []
    (section,) = multiverse_sections(StudyResults(multiverse=data))
    assert "2 effects, each under 4 specifications, 1 robust and 1 weak" in section.takeaway
    strips, curve = (block for block in section.blocks if isinstance(block, Figure))
    assert "corticospinal lesion load → motor score" in strips.svg
    assert "ipsilesional sensorimotor" in strips.svg
    assert "policy: as is" in curve.svg
    assert "no p values" in notes(section)
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[-1].text for row in table.rows] == ["robust", "weak"]
    assert "coarse" not in notes(section)
    assert "beyond the axis" not in curve.caption
    data["ci_high"][0, 2] = 14.5
    data.attrs |= {"groups": "cohort", "n_groups": 5}
    (section,) = multiverse_sections(StudyResults(multiverse=data))
    curve = [block for block in section.blocks if isinstance(block, Figure)][1]
    assert "Triangles: 1 interval goes beyond the axis; together they span 0." in curve.caption
    assert "to 14.50." in curve.caption
    assert "whole groups (cohort), of which there are 5. With fewer than 10" in notes(section)


def test_figures__do_not_grow_with_the_cohort(study: Study):
    ds = study.ds
    keep = np.flatnonzero(ds["group"].values == "reference")
    many = ds.isel(subject=np.resize(keep, 5000))
    many = many.assign_coords(subject=[f"sub-{i:04d}" for i in range(5000)])
    figures = {
        block.key: block
        for section in (
            accuracy_section(many, StudyResults()),
            cohort_section(people(many), StudyResults()),
        )
        for block in section.blocks
        if isinstance(block, Figure)
    }
    for key, words in (("scatter", "2,000 drawn as dots"), ("ages", "2,000 of them are drawn")):
        assert len(figures[key].svg) < 1_200_000
        assert words in figures[key].caption
