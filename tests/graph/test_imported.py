import hashlib
import logging

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain.errors import ConfigError, DataWarning, StoreError, TableError
from scalebrain.graph.calibrate import fit_bias
from scalebrain.graph.imported import MIN_REFERENCES, imported_from, save_ages, tell_stale
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.pads import find_pad
from tests.graph.test_surface_model import surface_cohort

REGIONS = ["SMN_L", "SMN_R", "FPN_L", "FPN_R"]
TOOL = {"tool": "brainageR", "tool_version": "2.1"}


@pytest.fixture
def make_store(tmp_path):
    """Store of references and strokes with loads, and the tool's ages of its regions."""

    def make(references, strokes=20):
        rng = np.random.default_rng(1)
        n = references + strokes
        stroke = np.arange(n) >= references
        age = rng.uniform(40, 80, n)
        years = age[:, None] * 0.7 + 18 + rng.normal(0, 3, (n, len(REGIONS)))
        ds = xr.Dataset(
            {
                "lesion_load": (("subject", "region"), rng.random((n, len(REGIONS)))),
                "lesion_volume": ("subject", np.where(stroke, rng.lognormal(2, 1, n), np.nan)),
                "included": ("subject", np.arange(n) != 0),
            },
            coords={
                "subject": [f"sub-{i:03d}" for i in range(n)],
                "region": REGIONS,
                "age": ("subject", age),
                "group": ("subject", np.where(stroke, "stroke", "reference")),
                "cohort": ("subject", np.array(["a", "b", "c"])[np.arange(n) % 3]),
            },
        )
        store = tmp_path / "c.zarr"
        scalebrain.save_store(ds, store)
        return store, pd.DataFrame(years.round(3), columns=REGIONS, index=ds["subject"].values)

    return make


def wide(ages, path):
    ages.rename_axis("subject").to_csv(path, sep="\t", na_rep="n/a")
    return path


def whole(ages, path, **columns):
    table = pd.DataFrame({"brain_age": ages.mean(axis=1).round(3), **columns})
    table.rename_axis("subject").to_csv(path, sep="\t", na_rep="n/a")
    return path


@pytest.mark.parametrize("form", [wide, whole])
def test_tell_stale__other_references_than_those_of_the_correction(
    make_store, tmp_path, caplog, form
):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    ages.iloc[3] = np.nan
    table = form(ages, tmp_path / "t.tsv")
    with pytest.warns(DataWarning, match="not corrected"):
        scalebrain.import_ages(store, table, **TOOL)
    ds = scalebrain.open_store(store)
    tell_stale(ds, ds.assign(included=~ds["included"]))
    assert "other references" not in caplog.text  # nothing was corrected
    scalebrain.import_ages(store, form(ages.fillna(60), table), **TOOL, replace=True)
    ds = scalebrain.open_store(store)
    chosen = ds[["included"]].copy(deep=True)
    caplog.clear()
    chosen["included"][-1] = False  # of someone with a stroke
    tell_stale(ds, chosen)
    assert not caplog.text
    chosen["included"][[1, 2]] = False
    tell_stale(ds, chosen)
    assert "brain ages of brainageR 2.1 was corrected by other references" in caplog.text
    assert "(2 differ). Import them again" in caplog.text
    scalebrain.save_store(chosen, store)
    caplog.clear()
    tell_stale(scalebrain.open_store(store), chosen)  # a later run
    assert "other references than are included now. Import them again" in caplog.text
    caplog.clear()
    tell_stale(scalebrain.open_store(store), ds[["included"]])  # they are included again
    assert not caplog.text
    chosen["included"][4] = False
    tell_stale(scalebrain.open_store(store), chosen)  # 3 since the import, 1 since a run
    assert "included now. Import them again" in caplog.text


def test_import_ages__corrects_on_included_references(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    table = wide(ages[REGIONS[::-1]].sample(frac=1, random_state=0), tmp_path / "t.tsv")
    made = scalebrain.import_ages(store, table, **TOOL)
    ds = scalebrain.open_store(store)
    np.testing.assert_array_equal(ds["brain_age"].values, ages.values)
    age = ds["age"].values
    np.testing.assert_allclose(ds["brain_pad"].values, ages.values - age[:, None])
    used = (ds["group"].values == "reference") & ds["included"].values
    a, b = fit_bias(age[used], ages.values[used])
    expected = ages.values - age[:, None] - (a + b * age[:, None])
    np.testing.assert_allclose(ds["brain_pad_corrected"].values, expected, atol=1e-6)
    np.testing.assert_allclose(ds["calibration_slope"].values, 1 + b, atol=1e-6)
    assert abs(np.corrcoef(ds["brain_pad_corrected"].values[used, 0], age[used])[0, 1]) < 0.1
    attrs = ds["brain_age"].attrs
    assert attrs["tool"] == "brainageR"
    assert attrs["tool_version"] == "2.1"
    assert attrs["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert attrs["model_trained_on_simulated"] == "unknown"
    assert ds["brain_pad_corrected"].attrs["age_bias_correction"] == "references"
    assert ds["brain_pad_corrected"].attrs["n_references"] == MIN_REFERENCES
    assert imported_from(ds) == "brainageR 2.1"
    assert find_pad(ds).has_slope
    xr.testing.assert_allclose(made["brain_pad"], ds["brain_pad"].reset_coords(drop=True))


def test_import_ages__too_few_references_leave_the_bias_and_say_so(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES)  # one of them is excluded
    with pytest.warns(DataWarning, match="age as a covariate"):
        scalebrain.import_ages(store, wide(ages, tmp_path / "t.tsv"), trained_on="real", **TOOL)
    ds = scalebrain.open_store(store)
    assert "brain_pad_corrected" not in ds
    assert "calibration_slope" not in ds
    assert ds["brain_pad"].attrs["age_bias_correction"] == "none"
    assert ds["brain_age"].attrs["model_trained_on_simulated"] == "false"
    pad = find_pad(ds)
    assert (pad.name, pad.is_corrected, pad.told) == ("brain_pad", False, "brain_pad")


def test_import_ages__the_bias_does_not_matter_where_age_is_a_covariate(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    scalebrain.import_ages(store, wide(ages, tmp_path / "t.tsv"), **TOOL)
    ds = scalebrain.open_store(store)
    one, other = (
        mixed_model(ds, f"{pad} ~ scale(log10(lesion_volume)) + age")
        for pad in ("brain_pad", "brain_pad_corrected")
    )
    term = "scale(log10(lesion_volume))"
    for name in ("estimate", "se", "p"):
        np.testing.assert_allclose(one[name].sel(term=term), other[name].sel(term=term), rtol=1e-6)
    assert not np.allclose(one["estimate"].sel(term="age"), other["estimate"].sel(term="age"))


@pytest.mark.parametrize("column", ["brain_pad_corrected", "brain_age_corrected"])
def test_import_ages__takes_the_correction_of_the_tool(make_store, tmp_path, column):
    store, ages = make_store(references=0)
    age = scalebrain.open_store(store)["age"].to_series()
    own = pd.Series(np.linspace(-3, 3, len(age)), index=ages.index)
    given = own if column == "brain_pad_corrected" else own + age
    table = whole(ages, tmp_path / "t.tsv", **{column: given})
    scalebrain.import_ages(store, table, **TOOL)
    ds = scalebrain.open_store(store)
    np.testing.assert_allclose(ds["brain_pad_global_corrected"].values, own, atol=1e-9)
    assert ds["brain_pad_global_corrected"].attrs["age_bias_correction"] == "tool"
    assert find_pad(ds).name == "brain_pad_global_corrected"
    assert "brain_age" not in ds


def test_import_ages__one_age_is_never_spread_over_regions(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    low = ages.mean(axis=1) - 5
    table = whole(ages, tmp_path / "t.tsv", brain_age_low=low)
    scalebrain.import_ages(store, table, **TOOL)
    ds = scalebrain.open_store(store)
    assert ds["brain_age_global"].dims == ("subject",)
    np.testing.assert_allclose(ds["brain_age_global_low"].values, low)
    assert 0.4 < ds["brain_pad_global_corrected"].attrs["calibration_slope"] < 1
    pad = find_pad(ds)
    assert pad.is_global
    fit = mixed_model(ds, f"{pad.name} ~ scale(log10(lesion_volume)) + age")
    assert fit["estimate"].dims == ("term",)
    assert int(fit["n"]) == 20


def test_import_ages__people_without_a_row_are_missing_and_named(make_store, tmp_path, caplog):
    store, ages = make_store(references=MIN_REFERENCES + 5)
    ages = ages.drop(["sub-001", "sub-040"])
    ages.loc["sub-002"] = np.nan
    ages.loc["sub-003", "FPN_L"] = np.nan
    with caplog.at_level(logging.WARNING, logger="scalebrain"):
        scalebrain.import_ages(store, wide(ages, tmp_path / "t.tsv"), **TOOL)
    ds = scalebrain.open_store(store)
    assert np.isnan(ds["brain_age"].sel(subject=["sub-001", "sub-040", "sub-002"])).all()
    assert int(np.isnan(ds["brain_age"].sel(subject="sub-003")).sum()) == 1
    assert "2 of 55 subjects are not in" in caplog.text
    assert "sub-001, sub-040" in caplog.text
    assert "1 of 55 subjects have no brain age there: sub-002" in caplog.text
    assert "1 of 55 subjects have no brain age of some regions: sub-003" in caplog.text


def test_import_ages__unknown_people_change_nothing(make_store, tmp_path):
    store, ages = make_store(references=2)
    ages.loc["sub-999"] = 60.0
    with pytest.raises(TableError, match="not in the store \\(1\\): sub-999"):
        scalebrain.import_ages(store, wide(ages, tmp_path / "t.tsv"), **TOOL)
    assert "brain_age" not in scalebrain.open_store(store)


def test_import_ages__says_which_regions_lack_references(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 3)
    ages.loc[ages.index[1:4], "FPN_L"] = np.nan  # 29 are left there, 32 in the other regions
    table = wide(ages, tmp_path / "t.tsv")
    with pytest.warns(DataWarning, match=r"30 .* in every region.*in 1 of 4 regions: FPN_L 29\. U"):
        scalebrain.import_ages(store, table, **TOOL)
    ages.loc[ages.index[1:22]] = np.nan
    with pytest.warns(DataWarning, match=r"30 .* with an age, or .* has 11\. Use brain_pad_global"):
        scalebrain.import_ages(store, whole(ages, tmp_path / "w.tsv"), **TOOL)


def test_import_ages__sessions_count_as_one_reference(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    ds = scalebrain.open_store(store)
    people = [f"p{i // 2}" for i in range(ds.sizes["subject"])]
    other = tmp_path / "sessions.zarr"
    scalebrain.save_store(ds.assign_coords(person=("subject", people)), other)
    with pytest.warns(DataWarning):
        scalebrain.import_ages(other, wide(ages, tmp_path / "t.tsv"), **TOOL)


def test_import_ages__a_store_holds_the_ages_of_one_origin(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    regional, whole_brain = wide(ages, tmp_path / "r.tsv"), whole(ages, tmp_path / "g.tsv")
    scalebrain.import_ages(store, regional, **TOOL)
    scalebrain.import_ages(store, whole_brain, **TOOL)  # the same tool: both stay
    assert {"brain_age", "brain_age_global"} <= set(scalebrain.open_store(store))
    with pytest.raises(StoreError, match=r"brain ages of brainageR 2\.1; those of pyment"):
        scalebrain.import_ages(store, whole_brain, tool="pyment")
    scalebrain.import_ages(store, whole_brain, tool="pyment", replace=True)
    ds = scalebrain.open_store(store)
    assert imported_from(ds) == "pyment"
    left = {"brain_age", "brain_pad", "brain_pad_corrected", "calibration_slope"} & set(ds)
    assert not left
    assert list(ds["region"].values) == REGIONS


def test_save_ages__our_model_does_not_replace_a_tool_silently(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    scalebrain.import_ages(store, whole(ages, tmp_path / "t.tsv"), **TOOL)
    ds = scalebrain.open_store(store)
    ours = xr.Dataset(
        {"brain_age": (("subject", "region"), ages.values)}, coords=ds[["region"]].coords
    )
    with pytest.raises(StoreError, match="--replace"):
        save_ages(ours, ds, store, replace=False)
    save_ages(ours, ds, store, replace=True)
    ds = scalebrain.open_store(store)
    assert imported_from(ds) == ""
    assert "brain_age_global" not in ds
    with pytest.raises(StoreError, match="a model of scalebrain"):
        scalebrain.import_ages(store, tmp_path / "t.tsv", **TOOL)


@pytest.mark.parametrize(
    "options",
    [{"tool": ""}, {"tool": "a\tb"}, {"tool": "x", "trained_on": "mice"}, {"tool": "x" * 101}],
)
def test_import_ages__refuses_options(make_store, tmp_path, options):
    store, ages = make_store(references=1)
    with pytest.raises(ConfigError):
        scalebrain.import_ages(store, wide(ages, tmp_path / "t.tsv"), **options)


def test_import_ages__surfaces_are_the_scans_of_a_store_without_others(tmp_path):
    ds = surface_cohort(MIN_REFERENCES + 2, 2)
    scalebrain.save_store(ds, tmp_path / "s.zarr")
    age = ds["age"].to_series()
    table = pd.DataFrame({"brain_age": 60 + 0.6 * (age - 60)}).rename_axis("subject")
    table.to_csv(tmp_path / "t.tsv", sep="\t")
    found = scalebrain.import_ages(tmp_path / "s.zarr", tmp_path / "t.tsv", **TOOL)
    assert found["brain_pad_global_corrected"].attrs["n_references"] == MIN_REFERENCES + 2


def test_import_ages__a_missing_flag_is_no_yes(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 3)
    ds = scalebrain.open_store(store).load()
    flag = np.where(np.arange(ds.sizes["subject"]) < 2, np.nan, 1.0)
    other = tmp_path / "flags.zarr"
    scalebrain.save_store(ds.assign(included=("subject", flag)), other)
    found = scalebrain.import_ages(other, whole(ages, tmp_path / "t.tsv"), **TOOL)
    assert found["brain_pad_global_corrected"].attrs["n_references"] == MIN_REFERENCES + 1


def test_save_ages__ages_that_cannot_be_saved_take_none_away(make_store, tmp_path):
    store, ages = make_store(references=MIN_REFERENCES + 1)
    scalebrain.import_ages(store, whole(ages, tmp_path / "t.tsv"), **TOOL)
    before = scalebrain.open_store(store).load()
    few = xr.Dataset(
        {"brain_age": (("subject", "region"), ages.values[:, :2])}, coords={"region": REGIONS[:2]}
    )
    with pytest.raises(StoreError, match="'region' has 2 entries"):
        save_ages(few, before, store, replace=True)
    xr.testing.assert_identical(scalebrain.open_store(store).load(), before)
