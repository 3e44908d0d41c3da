"""The page of one person: true to the store, escaped, complete in itself."""

import json
import re

import numpy as np
import pytest

import scalebrain
from scalebrain.cli import main
from scalebrain.errors import MissingVariableError
from scalebrain.io.results import read_results
from scalebrain.report.person import person_report, write_person
from scalebrain.report.personfacts import People, person_facts
from scalebrain.report.personpage import person_sections
from tests.report.conftest import make_study
from tests.report.test_page import EVIL, Outline, visible


@pytest.fixture(scope="module")
def case(whole_study):
    ds = scalebrain.open_store(whole_study / "cohort.zarr")
    results, _ = read_results(whole_study / "results.zarr")
    included = ds["included"].values & (ds["group"].values.astype(str) == "stroke")
    side = np.isin(ds["lesion_hemisphere"].values.astype(str), ["L", "R"])
    seen = np.isfinite(results["motor"]["prediction"].values).any(axis=(0, 1))
    subject = str(ds["subject"].values[np.flatnonzero(included & side & seen)[0]])
    return ds, results["motor"], subject


def test_person_report__holds_what_the_store_holds(case):
    ds, motor, subject = case
    report = person_report(ds, subject, motor=motor)
    own = ds.sel(subject=subject)
    facts = report.facts
    assert facts["person"]["lesion_volume"] == pytest.approx(float(own["lesion_volume"]))
    for row in facts["brain_age"]["rows"]:
        assert row["brain_age"] == pytest.approx(float(own["brain_age"].sel(region=row["region"])))
        assert row["pad_low"] < row["brain_pad"] < row["pad_high"]
        pad = own["brain_pad_corrected"] / own["calibration_slope"]
        assert row["brain_pad_corrected"] == pytest.approx(float(pad.sel(region=row["region"])))
        assert row["corrected_low"] < row["brain_pad_corrected"] < row["corrected_high"]
    side = str(own["lesion_hemisphere"].values)
    loads = {row["name"]: row["value"] for row in facts["loads"]["rows"]}
    expected = float(own["lesion_load"].sel(region=f"SMN_{side}"))
    assert loads["lesion_load:SMN_ipsilesional"] == pytest.approx(expected)
    one = motor.sel(subject=subject, learner="elastic_net", feature_group="combined")
    assert facts["motor"]["predicted"] == pytest.approx(float(one["prediction"]))
    parts = [driver["part"] for driver in facts["motor"]["drivers"]]
    whole = facts["motor"]["base"] + sum(parts) + facts["motor"]["others"]
    assert whole == pytest.approx(facts["motor"]["predicted"])
    assert facts["simulated"]
    assert "Research use only" in facts["caveats"][0]
    assert json.loads(report.json) == facts


def test_person_report__is_complete_in_itself_and_labels_sides(case):
    ds, motor, subject = case
    page = person_report(ds, subject, motor=motor).html
    outline = Outline(page)
    assert [a["id"] for a in outline.of("section")][:5] == [
        "lesion",
        "loads",
        "ages",
        "motor",
        "matches",
    ]
    assert not outline.of("link")
    assert all("src" not in attrs for _, attrs in outline.tags)
    words = visible(page)
    assert "Simulated data" in words
    assert "Research use only" in words
    assert re.search(r"left is drawn on the left \(L, R\)", words)
    for attrs in outline.of("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-labelledby") or attrs.get("role")


def test_person_report__of_a_healthy_person_says_what_is_missing(case):
    ds, motor, _ = case
    subject = str(ds["subject"].values[ds["group"].values.astype(str) == "reference"][0])
    facts = person_report(ds, subject, motor=motor).facts
    assert facts["loads"]["rows"] == []
    assert "stroke" in facts["motor"]["reason"]
    assert facts["matches"]["rows"] == []
    assert len(facts["brain_age"]["rows"]) == 18


def test_person_report__of_a_lesion_of_both_sides_names_no_side(case):
    ds, motor, subject = case
    at = list(ds["subject"].values.astype(str)).index(subject)
    sides = ds["lesion_hemisphere"].values.astype(object)
    sides[at] = "bilateral"
    both = ds.assign(lesion_hemisphere=("subject", sides, ds["lesion_hemisphere"].attrs))
    facts = person_report(both, subject, motor=motor).facts
    assert any("no single side" in sentence for sentence in facts["caveats"])
    assert facts["loads"]["sides"] == "left and right"
    assert all(row["side"] == "" for row in facts["brain_age"]["rows"])
    assert facts["matches"]["rows"] == []


def sections_of(ds, subject):
    """Takeaway and words of each section, without centiles and motor score."""
    people = People(ds.drop_dims("voxel"), None, no_centiles="none", no_motor="none")
    found = person_sections(person_facts(people, subject), ds.sel(subject=subject))
    return {one.key: f"{one.takeaway} {one.blocks}" for one in found}


@pytest.fixture
def patient():
    ds = make_study().ds.load()
    lesion = np.zeros(ds["t1w"].shape, dtype=bool)
    lesion[:, ds["x"].values < -20] = True
    ds["lesion_mask"] = (("subject", "voxel"), lesion)
    used = ds["lesion_present"].values & ds["included"].values
    return ds, str(ds["subject"].values[np.flatnonzero(used)[5]])


def test_person_sections__speak_of_true_years_where_the_slope_is_known(patient):
    ds, subject = patient
    ds["brain_pad_corrected"] = ds["brain_age"] - ds["age"]
    assert "in true years" in sections_of(ds, subject)["ages"]
    other = ds.drop_vars("calibration_slope")  # of another tool, which tells none
    other["brain_pad_corrected"] = other["brain_pad_corrected"].assign_attrs(tool="Other 1")
    words = sections_of(other, subject)["ages"]
    assert "true years" not in words
    assert "may shrink a true deviation" in words


def test_person_sections__say_why_a_grid_cannot_be_drawn(patient):
    ds, subject = patient
    affine = np.array(ds.attrs["affine"], dtype=float).reshape(4, 4)
    affine[0, 1] = 0.1
    words = sections_of(ds.assign_attrs(affine=affine.ravel().tolist()), subject)["lesion"]
    assert "oblique affine" in words
    assert words.startswith("A lesion of")


def test_person_sections__an_empty_mask_is_not_a_missing_one(patient):
    ds, subject = patient
    ds["lesion_mask"] = ds["lesion_mask"] & (ds["subject"] != subject)
    assert "marks no voxel inside the brain" in sections_of(ds, subject)["lesion"]
    ds["lesion_present"] = ds["lesion_present"] & (ds["subject"] != subject)
    assert sections_of(ds, subject)["lesion"].startswith("No lesion mask.")


def test_person_report__names_subjects_like_one_that_is_not_there(case):
    ds, motor, subject = case
    with pytest.raises(MissingVariableError, match="Similar: sub-stroke"):
        person_report(ds, subject[:-1], motor=motor)


def test_person_report__names_the_scale_of_the_motor_score(case):
    ds, motor, subject = case
    assert person_report(ds, subject, motor=motor).facts["person"]["motor_scale"] == ""
    scales = np.where(np.arange(ds.sizes["subject"]) % 2, "NIHSS", "FMA-UE").astype(object)
    named = ds.assign(motor_scale=("subject", scales))
    report = person_report(named, subject)
    own = report.facts["person"]["motor_scale"]
    assert own in ("NIHSS", "FMA-UE")
    assert f"of 1, unimpaired; {own}" in visible(report.html)
    assert any("several scales" in sentence for sentence in report.facts["caveats"])
    assert report.facts["motor"]["severe_below"] is None
    assert report.facts["motor"]["severe_probability"] is None
    assert json.loads(report.json) == report.facts


def test_person_facts__other_scans_of_someone_are_no_other_people():
    ds = make_study().ds.drop_dims("voxel").load()
    ds["person"] = ("subject", np.array([f"p{k // 3}" for k in range(ds.sizes["subject"])]))
    used = ds["included"].values & (ds["group"].values.astype(str) == "stroke")
    at = int(np.flatnonzero(used)[5])
    facts = person_facts(People(ds, None, no_motor="none"), str(ds["subject"].values[at]))
    people = ds["person"].values
    first = [
        int(np.flatnonzero(used & (people == one))[0])
        for one in dict.fromkeys(people[used])
        if one != people[at]
    ]
    others = ds["lesion_volume"].values[first]
    row = facts["loads"]["rows"][0]
    assert row["n_all"] == len(first) < used.sum() / 2
    assert row["centile_all"] == pytest.approx(100 * (others < row["value"]).mean())
    near = ds["cohort"].values[first] == ds["cohort"].values[at]
    assert row["n_cohort"] == near.sum()


def test_person_report__escapes_every_text_and_writes_in_its_folder(tmp_path):
    study = make_study(EVIL)
    ds = study.ds.load()
    subject = str(ds["subject"].values[30])
    assert "<script>" in subject
    report = person_report(ds, subject)
    assert "<script>alert" not in report.html
    assert "<img" not in report.html
    path = write_person(report, tmp_path / "out")
    assert path.parent == tmp_path / "out"
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".html", ".json"]
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.html", path.name)


def test_person__command_writes_the_page_where_it_says(case, whole_study, tmp_path, capsys):
    _, _, subject = case
    store, results = str(whole_study / "cohort.zarr"), str(whole_study / "results.zarr")
    out = tmp_path / "people"
    main(["person", store, subject, str(out), "--results", results, "--scheduler", "threads"])
    assert capsys.readouterr().out.strip() == str(out / f"{subject}.html")
    assert sorted(p.name for p in out.iterdir()) == [f"{subject}.html", f"{subject}.json"]
