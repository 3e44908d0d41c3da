"""Harmonization of a Dataset: who takes part, groups, gaps, words."""

import json
import logging

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain.errors import DataWarning, MissingVariableError, StatisticsError
from scalebrain.harmonization.cohort import Harmonizer, harmonize
from scalebrain.harmonization.combat import LOCATION_SCALE, MEAN_ONLY, UNCHANGED


@pytest.fixture
def study():
    """References of two sites, strokes of four of which two scanned controls; lazy."""
    rng = np.random.default_rng(0)
    sites = {
        "bank1": (40, 0),
        "bank2": (40, 0),
        "clinic1": (15, 30),
        "clinic2": (15, 30),
        "clinic3": (0, 30),
        "clinic4": (0, 30),
    }
    cohort = np.concatenate([[name] * sum(n) for name, n in sites.items()]).astype(object)
    stroke = np.concatenate([[False] * a + [True] * b for a, b in sites.values()])
    code = np.unique(cohort, return_inverse=True)[1]
    n = len(cohort)
    pad = rng.normal(0, 3, (n, 4)) + rng.normal(0, 3, (6, 4))[code] + 5.0 * stroke[:, None]
    return xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), pad, {"units": "years"}),
            "included": ("subject", np.arange(n) != 3),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "region": ["SMN_L", "SMN_R", "VIS_L", "VIS_R"],
            "age": ("subject", rng.uniform(40, 80, n)),
            "sex": ("subject", rng.choice(["F", "M"], n).astype(np.dtypes.StringDType())),
            "cohort": ("subject", cohort),
            "group": ("subject", np.where(stroke, "stroke", "reference").astype(object)),
        },
    ).chunk({"subject": 50})


def apart(ds, name, where):
    """Largest difference between the means of cohorts, in the region where it is largest."""
    values = ds[name].values[where]
    cohorts = ds["cohort"].values[where]
    means = np.array([np.nanmean(values[cohorts == c], axis=0) for c in np.unique(cohorts)])
    return float(np.ptp(means, axis=0).max())


def test_harmonize__within_a_group(study):
    before = study.copy(deep=True)
    out = study.scalebrain.harmonize(within="stroke", smooth=["age"])
    stroke = (study["group"] == "stroke").values
    name = "brain_pad_corrected_harmonized"
    assert out[name].dims == ("subject", "region")
    assert out[name].attrs["units"] == "years"
    assert "cohort" in out[name].attrs["harmonized_over"]
    assert np.isnan(out[name].values[~stroke]).all()
    assert np.isfinite(out[name].values[stroke]).all()
    assert set(out["harmonization"].values[stroke]) == {LOCATION_SCALE}
    assert out["harmonization"].values[3] == "not used: not included"
    assert out["harmonization"].values[0] == "not used: not of group stroke"
    assert apart(out, name, stroke) < 0.3 * apart(study, "brain_pad_corrected", stroke)
    assert dask.is_dask_collection(out["brain_pad_corrected"].data)
    xr.testing.assert_identical(study.compute(), before.compute())


def test_harmonize__through_controls_keeps_what_the_stroke_did(study):
    some = study.isel(subject=~study["cohort"].isin(["clinic3", "clinic4"]).values)
    out = harmonize(some, through="reference")
    stroke = (some["group"] == "stroke").values
    made = out["brain_pad_corrected_harmonized"].values
    used = np.isfinite(made).all(axis=1)
    assert used.sum() == some.sizes["subject"] - 1
    effect = made[stroke].mean(axis=0) - made[~stroke & used].mean(axis=0)
    np.testing.assert_allclose(effect.mean(), 5, atol=1)  # its standard error is about 0.4
    fitted = Harmonizer.fit(some, through="reference")
    controls = some.isel(subject=~stroke)
    alone = Harmonizer.fit(controls).transform(controls)
    part = fitted.transform(some)["brain_pad_corrected_harmonized"].values[~stroke]
    np.testing.assert_allclose(part, alone["brain_pad_corrected_harmonized"].values, rtol=1e-12)
    with pytest.raises(StatisticsError, match="clinic3, clinic4 has nobody of group 'reference'"):
        harmonize(study, through="reference")


def test_harmonize__refuses_to_go_across_groups(study):
    pure = study.isel(subject=~study["cohort"].isin(["clinic1", "clinic2"]).values)
    with pytest.raises(StatisticsError, match=r"group confounded with 'cohort'.*rank 4, not 5"):
        harmonize(pure)
    with pytest.raises(StatisticsError, match=r"bank1 \(reference\).*clinic4 \(stroke\)"):
        harmonize(pure, covariates=["age", "group"])
    with pytest.raises(StatisticsError, match="harmonized as one, and their difference with"):
        harmonize(study)
    out = harmonize(study, covariates=["age", "sex", "group"])
    stroke = (study["group"] == "stroke").values
    made = out["brain_pad_corrected_harmonized"].values
    effect = np.nanmean(made[stroke], axis=0) - np.nanmean(made[~stroke], axis=0)
    np.testing.assert_allclose(effect.mean(), 5, atol=1)
    with pytest.raises(StatisticsError, match="exclude each other"):
        harmonize(study, within="stroke", through="reference")
    with pytest.raises(StatisticsError, match="within='strokes' is not among"):
        harmonize(study, within="strokes")


def test_harmonizer__transforms_another_dataset(study, caplog):
    stroke = study.isel(subject=(study["group"] == "stroke").values)
    train, test = stroke.isel(subject=slice(0, None, 2)), stroke.isel(subject=slice(1, None, 2))
    fitted = Harmonizer.fit(train)
    out = fitted.transform(test)
    moved = test.copy(deep=True)
    moved["brain_pad_corrected"] = moved["brain_pad_corrected"] + 1.0
    again = fitted.transform(moved)["brain_pad_corrected_harmonized"]
    assert np.isfinite((again - out["brain_pad_corrected_harmonized"]).values).all()
    xr.testing.assert_identical(
        fitted.transform(train)["brain_pad_corrected_harmonized"],
        harmonize(train)["brain_pad_corrected_harmonized"],
    )
    other = test.assign_coords(region=["a", "b", "c", "d"])
    with pytest.raises(StatisticsError, match="other labels than at the fit"):
        fitted.transform(other)
    renamed = test.copy()
    renamed["cohort"] = ("subject", np.where(test["cohort"] == "clinic4", "new", test["cohort"]))
    with pytest.raises(StatisticsError, match=r"new \(15\) was not in the fit"):
        fitted.transform(renamed)
    left = Harmonizer.fit(train, unseen="unchanged")
    with pytest.warns(DataWarning, match="15 subjects of 'cohort' new were not harmonized"):
        out = left.transform(renamed)
    where = (renamed["cohort"] == "new").values
    assert set(out["harmonization"].values[where]) == {UNCHANGED}
    assert np.array_equal(
        out["brain_pad_corrected_harmonized"].values[where], test["brain_pad_corrected"][where]
    )


def test_harmonize__says_what_is_missing(study, caplog):
    stroke = study.isel(subject=(study["group"] == "stroke").values).compute()
    stroke["age"][2] = np.nan
    stroke["cohort"][5] = ""
    stroke["brain_pad_corrected"][7, 1] = np.nan
    with caplog.at_level(logging.WARNING):
        out = harmonize(stroke)
    assert out["harmonization"].values[2] == "not used: age is missing"
    assert out["harmonization"].values[5] == "not used: cohort is missing"
    assert out["harmonization"].attrs["missing_values"] == "brain_pad_corrected: 1 of 472"
    made = out["brain_pad_corrected_harmonized"].values
    assert np.isnan(made[7, 1])
    assert np.isnan(made).sum() == 9
    assert "age is missing: 1" in caplog.text


def test_harmonize__one_subject_of_a_cohort_and_several_variables(study, caplog):
    stroke = study.isel(subject=(study["group"] == "stroke").values).compute()
    stroke["cohort"][-1] = "alone"
    stroke["thickness_mean"] = ("subject", np.random.default_rng(1).normal(2.5, 0.2, 120))
    with caplog.at_level(logging.WARNING):
        with pytest.raises(StatisticsError, match="alone has one subject"):
            harmonize(stroke, empirical_bayes=False)
        out = harmonize(stroke.transpose("region", "subject"))
    assert out["brain_pad_corrected_harmonized"].dims == ("region", "subject")
    assert out["harmonization"].values[-1] == MEAN_ONLY
    assert "mean only" in caplog.text
    assert out["brain_pad_corrected_harmonized"].attrs["mean_only"] == "alone: 4"
    both = harmonize(
        stroke.isel(subject=slice(0, -1)), variables=["brain_pad_corrected", "thickness_mean"]
    )
    assert both["thickness_mean_harmonized"].dims == ("subject",)
    assert both["thickness_mean_harmonized"].attrs["empirical_bayes"] == 0


def test_harmonize__one_scan_a_person(study):
    stroke = study.isel(subject=(study["group"] == "stroke").values)
    persons = [f"p{k // 2}" for k in range(stroke.sizes["subject"])]
    stroke = stroke.assign_coords(person=("subject", persons))
    with pytest.raises(StatisticsError, match=r"60 people are in the rows more than.*Harmonizer"):
        harmonize(stroke)
    fitted = Harmonizer.fit(stroke.isel(subject=slice(0, None, 2)))
    assert np.isfinite(fitted.transform(stroke)["brain_pad_corrected_harmonized"]).all()
    alike = stroke.drop_vars("person").assign_coords(
        scan_hash=("subject", ["same", "same", *(f"scan {k}" for k in range(118))])
    )
    with pytest.raises(StatisticsError, match=r"1 person is in the rows.* sub-095, sub-096"):
        harmonize(alike)
    named = stroke.assign_coords(  # one name in two datasets is two people
        dataset=("subject", np.arange(120) % 2)
    )
    assert np.isfinite(harmonize(named)["brain_pad_corrected_harmonized"]).all()


def test_harmonizer__adapts_to_a_new_batch_from_one_scan_of_each_person(study):
    stroke = study.isel(subject=(study["group"] == "stroke").values)
    new = (stroke["cohort"] == "clinic4").values
    fitted = Harmonizer.fit(stroke.isel(subject=~new), unseen="adapt", min_adapt=20)
    alone = stroke.isel(subject=new)
    alone = alone.assign_coords(person=("subject", alone["subject"].values))
    expected = fitted.transform(alone)["brain_pad_corrected_harmonized"]
    names = [f"{name}_ses-2" for name in alone["subject"].values]
    later = alone.isel(subject=slice(0, 10)).assign_coords(subject=names[:10])
    later["brain_pad_corrected"] = later["brain_pad_corrected"] + 50.0
    both = xr.concat([later, alone], dim="subject")
    found = fitted.transform(both)["brain_pad_corrected_harmonized"]
    np.testing.assert_allclose(found.sel(subject=alone["subject"]), expected, rtol=1e-12)
    people = alone.isel(subject=slice(0, 15))
    twice = xr.concat([people, people.assign_coords(subject=names[:15])], dim="subject")
    with pytest.raises(StatisticsError, match=r"clinic4 \(15\).*min_adapt=20"):
        fitted.transform(twice)


def test_harmonize__a_missing_flag_is_no_yes(study):
    kept = study["included"].values.astype(object)
    kept[10] = None
    stroke = (study["group"] == "stroke").values
    kept[np.flatnonzero(stroke)[:3]] = np.nan
    ds = study.assign(included=("subject", kept)).isel(subject=stroke)
    words = harmonize(ds)["harmonization"].values
    assert set(words[:3]) == {"not used: not included"}
    with pytest.raises(StatisticsError, match=r"'included' has to be True or False.*'yes'"):
        harmonize(ds.assign(included=("subject", np.where(kept[stroke], "yes", "no"))))


def test_harmonize__brain_ages_of_extrapolated_people_stay_out_of_the_fit(study):
    stroke = np.flatnonzero((study["group"] == "stroke").values)
    beyond = np.zeros(study.sizes["subject"], dtype=bool)
    beyond[stroke[::6]] = True
    ds = study.assign(extrapolated=("subject", beyond), gray=study["brain_pad_corrected"])
    out = harmonize(ds, within="stroke")
    alone = harmonize(ds.isel(subject=~beyond), within="stroke")
    name = "brain_pad_corrected_harmonized"
    np.testing.assert_array_equal(out[name].values[~beyond], alone[name].values)
    assert np.isnan(out[name].values[beyond]).all()
    assert set(out["harmonization"].values[beyond]) == {"not used: age extrapolated"}
    everyone = harmonize(study, within="stroke")[name]
    assert np.nanmax(np.abs(everyone.values[~beyond] - alone[name].values)) > 0.1
    # of what is no brain age, an age beyond those of the training says nothing
    other = harmonize(ds, variables="gray", within="stroke")["gray_harmonized"]
    np.testing.assert_allclose(other.values, everyone.values)
    again = harmonize(ds.drop_vars("extrapolated"), within="stroke")[name]
    np.testing.assert_allclose(again.values, everyone.values)


def test_harmonize__refuses_what_is_not_there(study):
    with pytest.raises(MissingVariableError, match="'lesion_volume' is missing"):
        harmonize(study, covariates=["lesion_volume"], within="stroke")
    with pytest.raises(MissingVariableError, match="dimension 'subject' is missing"):
        harmonize(xr.Dataset({"brain_pad_corrected": ("region", [1.0])}))
    with pytest.raises(StatisticsError, match="cannot be harmonized: expected numbers"):
        harmonize(study, variables="sex", covariates=["age"], within="stroke")
    with pytest.raises(StatisticsError, match="must lie over 'subject' alone"):
        harmonize(study, covariates=["brain_pad_corrected"], within="stroke")
    with pytest.raises(StatisticsError, match="is text; pass a list"):
        harmonize(study, covariates="age", within="stroke")
    assert scalebrain.harmonize is harmonize


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("left", "right", "both"), "nobody of 118 subjects has 'both' of covariate 'hand'"),
        (("left", "right", "ahead"), "nobody of 118 subjects has 'ahead' of covariate 'hand'"),
        (("left", "left", "right"), "covariate 'hand' is left in all 118 subjects"),
        ((0.1, 0.1, 0.3), "covariate 'hand' is 0.1 in all 118 subjects"),
    ],
)
def test_harmonize__a_covariate_that_does_not_vary_where_a_region_is_known(study, values, told):
    ds = study.compute()
    stroke = np.flatnonzero((ds["group"] == "stroke").values)
    hand = np.array([values[k % 2] for k in range(230)], dtype=np.array(values).dtype)
    hand[stroke[[0, 70]]] = values[2]
    ds["hand"] = ("subject", hand.astype(object) if hand.dtype.kind == "U" else hand)
    ds["brain_pad_corrected"][stroke[[0, 70]], 2] = np.nan
    message = f"'VIS_L', where it is not missing: {told}, so its effect cannot be kept"
    with pytest.raises(StatisticsError, match=message):
        harmonize(ds, within="stroke", covariates=["hand"])


def test_harmonize__never_loses_an_earlier_one(study):
    out = harmonize(study, within="stroke")
    with pytest.raises(StatisticsError, match="'brain_pad_corrected_harmonized' is there already"):
        harmonize(out, within="reference")


@pytest.mark.parametrize("variables", ["brain_pad_corrected", ["age"]])
def test_harmonize__refuses_to_lose_an_earlier_one_before_it_fits(study, variables, monkeypatch):
    out = harmonize(study, within="stroke")
    monkeypatch.setattr("scalebrain.harmonization.cohort.fit_combat", None)
    with pytest.raises(StatisticsError, match="is there already"):
        harmonize(out, variables=variables, within="stroke")


def test_harmonize__never_loses_the_words_of_an_earlier_one(study):
    out = harmonize(study.assign(other=study["brain_pad_corrected"] + 1), within="stroke")
    with pytest.raises(StatisticsError, match=r"'harmonization' is there already .* in one call"):
        harmonize(out, variables="other", within="reference")
    again = harmonize(out.drop_vars("harmonization"), variables="other", within="reference")
    assert {"brain_pad_corrected_harmonized", "other_harmonized"} <= set(again)


def test_harmonize__categoricals_of_integers_are_levels(study):
    hand = np.random.default_rng(1).integers(1, 4, study.sizes["subject"])
    levels, line = (
        harmonize(study.assign(hand=("subject", own)), within="stroke", covariates=["hand"])
        for own in (hand.astype(str), hand)
    )
    found = harmonize(
        study.assign(hand=("subject", pd.Categorical(hand))), within="stroke", covariates=["hand"]
    )["brain_pad_corrected_harmonized"]
    xr.testing.assert_equal(found, levels["brain_pad_corrected_harmonized"])
    assert not found.equals(line["brain_pad_corrected_harmonized"])


def test_harmonize__labels_may_be_text_of_any_length(study):
    labels = study["subject"].values.astype(np.dtypes.StringDType())
    found = harmonize(study.assign_coords(subject=labels), within="stroke")
    np.testing.assert_array_equal(
        found["brain_pad_corrected_harmonized"],
        harmonize(study, within="stroke")["brain_pad_corrected_harmonized"],
    )


def test_harmonize__reference_batch_may_be_a_number(study):
    code = np.unique(study["cohort"].values, return_inverse=True)[1].astype(float)
    ds = study.assign(site=("subject", code))
    out = harmonize(ds, batch="site", within="stroke", reference_batch=3.0)
    own = (code == 3) & (study["group"].values == "stroke")
    made = out["brain_pad_corrected_harmonized"].values
    np.testing.assert_array_equal(made[own], study["brain_pad_corrected"].values[own])


def test_harmonize__people_without_a_group(study):
    ds = study.compute()
    ds["group"][60] = ""
    for options in ({"within": "stroke"}, {"covariates": ["age", "group"]}):
        out = harmonize(ds, **options)
        assert out["harmonization"].values[60] == "not used: group is missing"
    none = ds.assign(group=("subject", np.full(230, "", dtype=object)))
    assert np.isfinite(harmonize(none)["brain_pad_corrected_harmonized"]).sum() == 229 * 4


def test_harmonize__attributes_are_plain(study):
    out = harmonize(study, within="stroke", smooth=["age"])
    for name in ("brain_pad_corrected_harmonized", "harmonization"):
        attrs = out[name].attrs
        assert json.loads(json.dumps(attrs)) == attrs
