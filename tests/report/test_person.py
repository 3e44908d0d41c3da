"""The page of one person: true to the store, escaped, complete in itself."""

import json
import re

import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.cli import main
from scalebrain.errors import MissingVariableError
from scalebrain.io.results import read_results
from scalebrain.report.content import level, part
from scalebrain.report.lesionmap import cuts_through
from scalebrain.report.person import person_report, write_person
from scalebrain.report.personfacts import People, caveats, person_facts
from scalebrain.report.personpage import header, how_to_read, person_sections
from scalebrain.report.volume import to_volume
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
        assert row["brain_pad_true_years"] == pytest.approx(float(pad.sel(region=row["region"])))
        assert row["corrected_low"] < row["brain_pad_true_years"] < row["corrected_high"]
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


def test_caveats__of_imputed_nodes_name_regions_with_a_brain_age(patient):
    ds, subject = patient
    at = list(ds["subject"].values.astype(str)).index(subject)
    ds["imputed_fraction"] = xr.zeros_like(ds["brain_age"])
    ds["imputed_fraction"][at, :2] = [0.25, 1.0]
    ds["brain_age"][at, 1] = np.nan  # without any intact node
    people = People(ds.drop_dims("voxel"), None, no_centiles="none", no_motor="none")
    told = " ".join(person_facts(people, subject)["caveats"])
    assert "or whose white matter nearby is, were replaced by estimates" in told
    (words,) = re.findall(r"rest of the region in: ([^.]*)\.", told)
    assert words.endswith("(25%)")
    assert words.count("%") == 1


def test_person_sections__say_why_a_grid_cannot_be_drawn(patient):
    ds, subject = patient
    affine = np.array(ds.attrs["affine"], dtype=float).reshape(4, 4)
    affine[0, 1] = 0.1
    words = sections_of(ds.assign_attrs(affine=affine.ravel().tolist()), subject)["lesion"]
    assert "oblique affine" in words
    assert words.startswith("A lesion of")


def test_person_sections__an_empty_mask_is_not_a_missing_one(patient):
    ds, subject = patient
    without = sections_of(ds.drop_vars("lesion_mask"), subject)["lesion"]
    assert "its mask is not in the store" in without
    assert "inside the brain" not in without
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
    assert f"motor score 1 is unimpaired; {own}" in visible(report.html)
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


def test_person__a_page_of_something_else_is_found_before_anything_is_opened(tmp_path, capsys):
    (tmp_path / "sub-001.html").write_text("<html>")
    with pytest.raises(SystemExit):
        main(["person", str(tmp_path / "no.zarr"), "sub-001", str(tmp_path)])
    assert "sub-001.html was not made by 'scalebrain person'" in capsys.readouterr().err


# -- what the words on the page depend on: made-up people, without a study -----------------------


def facts_of(ds, subject, motor=None, **changes):
    """Facts and sections of one person, without centiles of brain age unless `ds` has them."""
    people = People(
        ds.drop_dims("voxel"), motor, **({"no_centiles": "none", "no_motor": "none"} | changes)
    )
    facts = person_facts(people, subject)
    sections = {
        one.key: f"{one.takeaway} {one.blocks}"
        for one in person_sections(facts, ds.sel(subject=subject))
    }
    return facts, sections


def with_loads(ds, load=0.0):
    regions = ds["region"].values.astype(str)
    values = np.zeros((ds.sizes["subject"], len(regions)))
    values[:, regions == "SMN_L"] = load
    return ds.assign(lesion_load=(("subject", "region"), values))


def put(ds, subject, **values):
    """Change values of one person."""
    for name, value in values.items():
        array = ds[name].copy()
        array[list(ds["subject"].values.astype(str)).index(subject)] = value
        ds = ds.assign({name: array})
    return ds


def test_person_sections__no_region_is_touched_only_where_loads_are_known(patient):
    ds, subject = patient
    facts, sections = facts_of(ds, subject)
    told = "No load of regions was computed: run the features stage."
    assert sections["loads"].startswith(told)
    assert told in facts["caveats"]
    assert "Loads are the lesioned part" not in sections["loads"]
    missing = with_loads(ds, np.nan)
    missing["lesion_load"][:] = np.nan
    assert facts_of(missing, subject)[1]["loads"].startswith(told)
    facts, sections = facts_of(with_loads(ds), subject)
    assert sections["loads"].startswith("No region of the set is touched.")
    assert told not in facts["caveats"]
    facts, sections = facts_of(with_loads(ds, np.nan), subject)
    assert sections["loads"].startswith("No region is touched of the 17 whose load is known.")
    assert facts_of(with_loads(ds, 0.5), subject)[1]["loads"].startswith("1 region touched")


@pytest.mark.parametrize(
    ("side", "detail", "where", "caveat"),
    [
        ("L", "left hemisphere", "in the left hemisphere", ""),
        ("bilateral", "both sides", "on both sides", "no single side (both sides)"),
        ("midline", "midline", "on the midline", "no single side (midline)"),
        ("none", "empty mask", ", its side not known", "The lesion mask is empty"),
        ("unknown", "side not known", ", its side not known", "side of the lesion is not known"),
        ("", "side not known", ", its side not known", "side of the lesion is not known"),
    ],
)
def test_header__names_the_side_of_every_lesion(patient, side, detail, where, caveat):
    ds, subject = patient
    ds = put(ds, subject, lesion_hemisphere=side)
    facts, sections = facts_of(ds, subject)
    assert [d for _, label, d in header(facts) if label == "lesion"] == [detail]
    assert where in sections["lesion"]
    assert caveat in " ".join(facts["caveats"])


def test_header__an_age_that_is_a_lower_bound_is_one(patient):
    ds, subject = patient
    ds = put(ds, subject, age=89.0)
    assert header(facts_of(ds, subject)[0])[0] in (
        ("89", "years old", "female"),
        ("89", "years old", "male"),
    )
    ds["age_censored"] = ds["subject"] == subject
    facts, _ = facts_of(ds, subject)
    assert header(facts)[0][:2] == ("89 or older", "years old")
    assert any("lower bound only: brain-PAD is at most" in one for one in facts["caveats"])


@pytest.mark.parametrize("side", ["bilateral", "midline", "unknown"])
def test_person_facts__loads_by_side_of_a_lesion_of_no_side_have_no_centile(patient, side):
    ds, subject = patient
    one_sided, _ = facts_of(with_loads(ds, 0.2), subject)
    assert all(row["centile_reason"] == "" for row in one_sided["loads"]["rows"])
    assert all(row["n_all"] > 5 for row in one_sided["loads"]["rows"])
    ds = put(with_loads(ds, 0.2), subject, lesion_hemisphere=side)
    facts, sections = facts_of(ds, subject)
    volume, *loads = facts["loads"]["rows"]
    assert volume["name"] == "lesion_volume"
    assert volume["centile_all"] is not None
    assert len(loads) == 18
    assert all(row["centile_all"] is None is row["centile_cohort"] for row in loads)
    assert [row["value"] for row in loads if row["name"] == "lesion_load:SMN_L"] == [0.2]
    assert "No centile of loads by side" in sections["loads"]


@pytest.mark.parametrize(
    ("near", "far", "told"),
    [
        (0, 0, "There is nobody to compare loads with: they have no centile."),
        (0, 1, "their centiles are among 1 person of other cohorts."),
        (1, 0, "Centiles among 1 other of the same cohort are coarse."),
        (
            2,
            3,
            "Centiles among 2 others of the same cohort are coarse; those among all cohorts are",
        ),
        (12, 3, ""),
    ],
)
def test_caveats__of_few_others_count_them(patient, near, far, told):
    ds, subject = patient
    ds = ds.drop_vars("cohort").assign_coords(cohort=("subject", ["a"] * ds.sizes["subject"]))
    used = ds["included"].values & (ds["group"].values.astype(str) == "stroke")
    others = np.flatnonzero(used & (ds["subject"].values != subject))
    ds["cohort"][others[near : near + far]] = "b"
    own = np.flatnonzero(ds["subject"].values == subject)
    ds = ds.isel(subject=[*own, *others[: near + far]])
    facts, sections = facts_of(ds, subject)
    found = [c for c in facts["caveats"] if "coarse" in c or "to compare loads with" in c]
    assert len(found) == bool(told)
    assert told in "".join(found)
    assert ("Nobody is there to compare with." in sections["loads"]) == (near + far == 0)


# -- brain ages of another tool ------------------------------------------------------------------


def imported(ds, how, *, corrected):
    """Ages of another tool in place of ours."""
    told = {"tool": "brainageR", "tool_version": "2.1", "age_bias_correction": how}
    pad = ds["brain_age"] - ds["age"]
    ds = ds.drop_vars(["brain_age_low", "brain_age_high", "calibration_slope"])
    ds["brain_age"] = ds["brain_age"].assign_attrs(told)
    ds["brain_pad"] = pad.assign_attrs(told)
    return ds.assign(brain_pad_corrected=(pad - 1).assign_attrs(told)) if corrected else ds


def test_person_sections__ages_of_another_tool_are_not_called_corrected(patient):
    ds, subject = patient
    ds = imported(ds, "none", corrected=False)
    facts, sections = facts_of(ds, subject)
    words = sections["ages"]
    assert facts["brain_age"]["is_corrected"] is False
    assert facts["brain_age"]["in_true_years"] is False
    assert words.startswith("18 regions with a brain age.")
    assert "Brain ages of brainageR 2.1" in words
    assert words.count("brain age less age, age bias not corrected") == 2  # drawing and table
    assert "Brain age less age of each region, age bias not corrected.'" in words
    for wrong in ("free of", "Corrected", "interval", "entile of", "Right:", "imputed", "–%"):
        assert wrong not in words
    own = ds.sel(subject=subject)
    assert f"text='{float(own['brain_pad'][0]):.1f}'".replace("-", "−") in words
    reading = how_to_read(facts)
    assert "by brainageR 2.1; whether its model has seen this person is not known" in reading
    assert "has not seen this person" not in reading
    assert "Centiles of brain age" not in reading
    told = " ".join(facts["caveats"])
    assert "age bias of the brain ages is not corrected" in told
    assert "those of brainageR 2.1" in told


def test_person_report__names_the_tool_of_its_ages_and_escapes_it(patient):
    ds, subject = patient
    ds = imported(ds, "none", corrected=False)
    ds["brain_pad"].attrs["tool"] = f"T{EVIL}"
    page = person_report(ds, subject, motor=made_motor(ds)).html
    assert "<script>alert" not in page
    words = visible(page)
    assert "whether its model has seen this person is not known" in words
    assert "from a model that has not seen" not in words
    assert "age bias not corrected" in words


def test_person_sections__say_who_corrected_the_ages_of_another_tool(patient):
    ds, subject = patient
    facts, sections = facts_of(imported(ds, "tool", corrected=True), subject)
    assert facts["brain_age"]["is_corrected"] is True
    assert "corrected for age bias by the tool, which may shrink" in sections["ages"]
    assert "free of the age bias" not in sections["ages"]
    assert not any("not corrected" in caveat for caveat in facts["caveats"])
    _, sections = facts_of(imported(ds, "references", corrected=True), subject)
    assert "free of the age bias of healthy people" in sections["ages"]


def test_person_sections__one_age_of_the_whole_brain(patient):
    ds, subject = patient
    told = {"tool": "brainageR", "age_bias_correction": "none"}
    age = ds["brain_age"].mean("region")
    ds = ds.drop_dims("region").assign(
        brain_age_global=age.assign_attrs(told),
        brain_age_global_low=(age - 5).assign_attrs(told),
        brain_age_global_high=(age + 9).assign_attrs(told),
        brain_pad_global=(age - ds["age"]).assign_attrs(told),
    )
    own = float(age.sel(subject=subject))
    facts, sections = facts_of(ds, subject)
    assert sections["ages"].startswith(f"A brain age of {own:.1f} y (whole brain).")
    assert "with the intervals of the tool." in sections["ages"]
    assert "one region at a time" not in sections["ages"]
    assert f"{own - 5:.1f} to {own + 9:.1f}" in sections["ages"]
    ds["brain_pad_global_corrected"] = ds["brain_pad_global"].assign_attrs(
        told | {"age_bias_correction": "references"}
    )
    facts, sections = facts_of(ds, subject)
    pad = facts["brain_age"]["rows"][0]["brain_pad_true_years"]
    shown = f"{pad:.1f}".replace("-", "−")
    assert sections["ages"].startswith(f"Corrected brain-PAD of {shown} y (whole brain).")


def test_person_facts__asymmetric_intervals_stay_asymmetric(patient):
    ds, subject = patient
    ds["brain_pad_corrected"] = ds["brain_age"] - ds["age"] - 2
    ds["brain_age_low"], ds["brain_age_high"] = ds["brain_age"] - 3, ds["brain_age"] + 12
    facts, _ = facts_of(ds, subject)
    for row, slope in zip(facts["brain_age"]["rows"], ds["calibration_slope"].values, strict=True):
        value = row["brain_pad_true_years"]
        assert row["corrected_low"] == pytest.approx(value - 3 / slope)
        assert row["corrected_high"] == pytest.approx(value + 12 / slope)


def test_person_sections__count_regions_that_have_an_age(patient):
    ds, subject = patient
    at = {"subject": list(ds["subject"].values).index(subject)}
    gone = ds["brain_age"].copy()
    gone[at | {"region": [0, 3]}] = np.nan
    facts, sections = facts_of(ds.assign(brain_age=gone), subject)
    assert len(facts["brain_age"]["rows"]) == 18
    assert sections["ages"].startswith("16 regions with a brain age.")


# -- results of the motor prediction -------------------------------------------------------------


def made_motor(ds, **attrs):
    """The least that a motor prediction holds."""
    n = ds.sizes["subject"]
    each = (("learner", "feature_group", "subject"), np.full((1, 1, n), 0.5))
    return xr.Dataset(
        {
            "prediction": each,
            "interval_low": (each[0], each[1] - 0.2),
            "interval_high": (each[0], each[1] + 0.2),
            "observed": ("subject", ds["motor_score"].values.astype(float)),
            "score": (("learner", "feature_group", "metric"), np.full((1, 1, 1), 0.05)),
            "ci_low": (("learner", "feature_group", "metric"), np.full((1, 1, 1), 0.01)),
            "ci_high": (("learner", "feature_group", "metric"), np.full((1, 1, 1), 0.1)),
        },
        coords={
            "subject": ds["subject"].values.astype(str),
            "learner": ["elastic_net"],
            "feature_group": ["combined"],
            "metric": ["r2"],
        },
        attrs={"target": "motor_score", "groups": "cohort", "coverage": 0.9} | attrs,
    )


def test_person_sections__name_what_the_motor_prediction_held_out(patient):
    ds, subject = patient
    cohort, sex = (str(ds[name].sel(subject=subject).values) for name in ("cohort", "sex"))
    facts, sections = facts_of(ds, subject, made_motor(ds))
    assert "from other cohorts; observed 0.60." in sections["motor"]
    assert f"trained without {cohort}. Over" in sections["motor"]
    assert "trained on other cohorts alone" in how_to_read(facts)
    assert any("too few cohorts" in caveat for caveat in facts["caveats"])
    facts, sections = facts_of(ds, subject, made_motor(ds, groups="sex"))
    assert f"trained without people of sex {sex}. Over" in sections["motor"]
    assert "from people of another sex; observed 0.60." in sections["motor"]
    assert "trained on people of another sex alone" in how_to_read(facts)
    told = " ".join(facts["caveats"])
    assert "too few groups by sex" in told
    assert "a new group by sex" in told
    assert "cohorts that it has not seen" not in told


def test_person_facts__a_motor_prediction_of_something_else_is_refused(patient):
    ds, subject = patient
    motor = made_motor(ds, target="grip_strength")
    facts, sections = facts_of(ds, subject, motor)
    assert facts["motor"]["reason"].startswith("The results given predict 'grip_strength'")
    assert facts["motor"].get("predicted") is None
    assert "0.50" not in sections["motor"]
    assert "motor model" not in " ".join(facts["caveats"])
    assert "trained on" not in how_to_read(facts)


def test_person_facts__a_motor_prediction_of_another_store_is_refused(patient):
    ds, subject = patient
    motor = made_motor(ds)
    other = put(ds, subject, motor_score=0.8)
    facts, _ = facts_of(other, subject, motor)
    assert facts["motor"]["reason"].startswith("The results given are of another store, or of an o")
    assert "0.600 there, and 0.800 here" in facts["motor"]["reason"]
    assert facts["motor"].get("predicted") is None
    gone = put(ds, subject, motor_score=np.nan)
    assert "0.600 there, and missing here" in facts_of(gone, subject, motor)[0]["motor"]["reason"]
    someone = str(ds["subject"].values[-1])  # whose score is the same in both
    assert facts_of(other, someone, motor)[0]["motor"]["reason"] == ""
    assert facts_of(gone, subject, made_motor(gone))[0]["motor"]["reason"] == ""
    close = put(ds, subject, motor_score=np.float64(np.float32(0.6)))
    assert facts_of(close, subject, motor)[0]["motor"]["reason"] == ""


# -- slices --------------------------------------------------------------------------------------


def test_cuts_through__every_cut_holds_some_of_the_lesion(patient):
    ds, _ = patient
    x, y, z = (ds[axis].values for axis in "xyz")
    near = (np.abs(y + 20) < 20) & (np.abs(z) < 20)
    both = near & (np.abs(np.abs(x) - 35) < 12)  # mirrored, nothing in the middle
    volume = to_volume(ds, np.where(both, 1.0, np.nan))
    for axis in range(3):
        cuts = cuts_through(volume, axis, 3)
        assert len(set(cuts)) == 3
        assert list(cuts) == sorted(cuts)
        assert all(np.nansum(volume.plane(axis, at).values) > 0 for at in cuts)
    one = np.zeros(len(x), dtype=bool)
    one[np.flatnonzero(near)[0]] = True
    cuts = cuts_through(to_volume(ds, np.where(one, 1.0, np.nan)), 0, 3)
    assert list(cuts) == pytest.approx([x[one].item()] * 3)


# -- sizes and matches ---------------------------------------------------------------------------


def test_person_sections__write_nothing_that_is_touched_as_zero(patient):
    ds, subject = patient
    ds = put(with_loads(ds, 0.0004), subject, lesion_volume=0.03)
    for name, load in (("tract_load", 0.0003), ("tract_load_weighted", 0.003)):
        ds[name] = (("subject", "tract"), np.full((ds.sizes["subject"], 2), load))
    ds = ds.assign_coords(tract=["CST_L", "CST_R"])
    facts, sections = facts_of(ds, subject)
    assert ("<0.1 mL", "lesion") in [one[:2] for one in header(facts)]
    assert sections["lesion"].startswith("A lesion of <0.1 mL")
    assert "sensorimotor lesion load, <1% of it." in sections["loads"]
    assert sections["loads"].count("text='<0.001'") == 3
    assert sections["loads"].count("text='<0.1 mL'") == 3
    assert "side; weighted loads are in mL. Centiles" in sections["loads"]
    assert "weighted" not in facts_of(with_loads(ds.drop_dims("tract")), subject)[1]["loads"]
    assert "text='0.000'" in sections["loads"]  # of the regions that are not touched


def test_part__of_something_is_not_nothing_or_all():
    assert [part(value) for value in (0, 0.004, 0.5, 0.996, 1)] == [
        "0%",
        "<1%",
        "50%",
        ">99%",
        "100%",
    ]
    assert [level(value) for value in (0.9, 0.975, 0.995, None)] == ["90%", "97.5%", "99.5%", "–"]


def test_person_sections__write_levels_as_they_are(patient):
    ds, subject = patient
    ds["brain_age_low"].attrs["coverage"] = 0.975
    motor = made_motor(ds, coverage=0.995, confidence=0.8)
    _, sections = facts_of(ds, subject, motor)
    assert "97.5% intervals" in sections["ages"]
    assert "(99.5% interval 0.30 to 0.70)" in sections["motor"]
    assert "R² 0.05 (80% interval " in sections["motor"]


@pytest.mark.parametrize(("n_within", "is_close"), [(0, False), (3, True)])
def test_how_to_read__claims_no_close_match_where_there_is_none(patient, n_within, is_close):
    ds, subject = patient
    facts, _ = facts_of(ds, subject)
    row = {"subject_matched": "a"}
    facts["matches"] = {"reason": "", "rows": [row], "n_within": n_within}
    for said in (how_to_read(facts), " ".join(caveats(facts))):
        assert ("Matched patients within the calipers" in said) is is_close
        assert ("Nobody is matched within the calipers" in said) is not is_close


@pytest.mark.parametrize("missing", ["", np.nan])
def test_person_facts__people_without_a_cohort_share_none(patient, missing):
    ds, subject = patient
    ds = with_loads(ds, 0.2)
    cohort = ds["cohort"].values.copy()
    cohort[list(ds["subject"].values).index(subject) :] = missing
    ds = ds.assign_coords(cohort=("subject", cohort))
    facts, sections = facts_of(ds, subject)
    row = facts["loads"]["rows"][0]
    assert (row["centile_cohort"], row["n_cohort"]) == (None, 0)
    assert row["n_all"] > 0
    told = "No centile among people of the same cohort: the cohort is not known."
    assert told in sections["loads"]
    assert "of the same cohort and" not in sections["loads"]
    assert any(one.startswith(told) for one in facts["caveats"])
    known = str(ds["subject"].values[ds["group"].values == "stroke"][0])
    assert facts_of(ds, known)[0]["loads"]["cohort_reason"] == ""


def test_person_facts__a_missing_flag_is_false(patient):
    ds, subject = patient
    included = ds["included"].values.astype(object)
    included[list(ds["subject"].values).index(subject)] = np.nan
    facts, _ = facts_of(ds.assign(included=("subject", included)), subject)
    assert facts["person"]["included"] is False
    assert any(one.startswith("Left out of every statistic") for one in facts["caveats"])


def test_person_report__before_the_features_knows_who_is_left_out(patient):
    ds, subject = patient
    ds = with_loads(ds).drop_vars(["included", "exclusion_reason"])
    ds["icv"] = ("subject", np.full(ds.sizes["subject"], 1500.0))
    ds = put(ds, subject, lesion_hemisphere="midline")
    facts = person_report(ds, subject).facts
    assert facts["person"]["included"] is False
    assert any("the features stage, which says why, has not run" in c for c in facts["caveats"])
    stroke = ds["subject"].values[ds["group"].values == "stroke"]
    other = str(stroke[stroke != subject][0])
    told = person_report(ds, other).facts
    assert told["person"]["included"] is True
    assert told["loads"]["rows"][0]["n_all"] == len(stroke) - 2  # neither of them


def test_person_report__takes_a_label_that_is_a_number(patient):
    ds, subject = patient
    at = list(ds["subject"].values).index(subject)
    ds = ds.assign_coords(subject=np.arange(ds.sizes["subject"]))
    report = person_report(ds, at)
    assert report.subject == str(at)
    assert report.facts == person_report(ds, str(at)).facts
