import json
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.stats.frame import calibrated_pad
from scalebrain.stats.sem import DEFAULT_MODEL, sem

REFERENCE = Path(__file__).parent.parent / "reference" / "sem_reference.json"


def reference_table(name="simulated"):
    data = json.loads(REFERENCE.read_text())["data"][name]
    return pd.DataFrame({k: np.array(v, dtype=np.float64) for k, v in data.items()})


def reference_cohort(name="simulated", n_groups=9):
    table = reference_table(name)
    ds = xr.Dataset({name: ("subject", table[name].to_numpy()) for name in table})
    return ds.assign_coords(cohort=("subject", np.arange(len(table)) % n_groups))


def test_sem__defaults_on_a_store(cohort):
    result = sem(cohort, n_boot=300)
    assert list(result["path"].values) == [
        "motor ~ cst",
        "motor ~ ipsi",
        "contra ~ motor",
        "contra ~ cst",
        "contra ~ ipsi",
        "ipsi ~ cst",
    ]
    # 60 strokes, one excluded, one without a score, one bilateral.
    assert int(result["n"]) == 57
    assert int(result["n_dropped"]) == 33
    assert result["dropped"].values.nonzero()[0].tolist() == [*range(30), 33, 88, 89]
    why = result["drop_reason"].values
    assert set(why[:30]) == {"not in group 'stroke'"}
    assert why[[33, 88]].tolist() == ["motor missing", "not included"]
    assert set(why[89].removesuffix(" missing").split(", ")) == {"cst", "ipsi", "contra"}
    assert (why[~result["dropped"].values] == "").all()
    told = result.attrs["rows_dropped"]
    assert told.startswith("33 of 90 subjects (not in group 'stroke': 30; not included: 1; ")
    assert result.attrs["saturated"] == 1
    assert result["df"] == 0
    assert result["cfi"] == 1
    assert result["rmsea"] == 0
    assert result["chi2"] == 0
    effect = result.sel(path="motor ~ cst")
    assert effect["ci_high"] < 0
    assert effect["std_ci_low"] < effect["std_estimate"] < effect["std_ci_high"] < 0
    assert {"cst -> ipsi -> contra", "cst -> motor -> contra"} <= set(result["indirect"].values)
    assert dask.is_dask_collection(cohort["t1w"].data)


def test_sem__default_variables_are_what_the_notes_say(cohort):
    sides = to_lesional_sides(cohort)
    ratio = calibrated_pad(sides)
    own = [region for region in ratio["region"].values if region.endswith("_ipsilesional")]
    named = sem(
        cohort,
        DEFAULT_MODEL,
        variables={
            "motor": "motor_score",
            "cst": sides["tract_load"].sel(tract="CST_ipsilesional", drop=True),
            "ipsi": ratio.sel(region=own).mean("region"),
            "contra": ("brain_pad_corrected", {"region": "FPN_contralesional"}),
        },
        n_boot=0,
    )
    default = sem(cohort, n_boot=0)
    np.testing.assert_allclose(named["estimate"], default["estimate"])
    np.testing.assert_allclose(sem(sides, n_boot=0)["estimate"], default["estimate"])
    assert default["std_ci_low"].isnull().all()


def test_sem__rivals_show_that_the_direction_cannot_be_told(cohort):
    result = sem(cohort, n_boot=0)
    assert list(result["model"].values) == ["specified", "reversed", "restricted"]
    assert result["model_aic"][0] == pytest.approx(float(result["model_aic"][1]))
    assert result["model_df"].values.tolist() == [0, 0, 1]
    link = result.sel(path="contra ~ motor")
    back = result.sel(rival_path="reversed: motor ~ contra")
    # One likelihood-ratio test of the link, whichever way the arrow points.
    assert float(result["model_chi2"][2]) == pytest.approx(float(link["z"]) ** 2, rel=0.1)
    assert np.sign(link["estimate"]) == np.sign(back["rival_estimate"])
    assert "saturated" in result.attrs["note"]


def test_sem__indirect_effects_are_products():
    result = sem(reference_cohort(), DEFAULT_MODEL, n_boot=200)
    estimate = dict(zip(result["path"].values, result["estimate"].values, strict=True))
    chain = result.sel(indirect="cst -> motor -> contra")
    product = estimate["motor ~ cst"] * estimate["contra ~ motor"]
    assert chain["indirect_estimate"] == pytest.approx(product)
    assert chain["indirect_ci_low"] < product < chain["indirect_ci_high"]
    longest = result.sel(indirect="cst -> ipsi -> motor -> contra")
    assert longest["indirect_estimate"] == pytest.approx(
        estimate["ipsi ~ cst"] * estimate["motor ~ ipsi"] * estimate["contra ~ motor"]
    )


def test_sem__latent_variables_and_seed():
    model = "dam =~ a1 + a2 + a3\nout1 ~ dam + cst\ndam ~ cst"
    first = sem(reference_cohort(), model, n_boot=12, seed=1)
    again = sem(reference_cohort(), model, n_boot=12, seed=1)
    other = sem(reference_cohort(), model, n_boot=12, seed=2)
    xr.testing.assert_identical(first, again)
    assert not np.allclose(first["std_ci_low"], other["std_ci_low"])
    assert first["cfi"] <= 1
    assert int(first["n_boot_failed"]) == 0
    assert first.sel(indirect="cst -> dam -> out1")["indirect_std_ci_low"].notnull()


def test_sem__replicates_that_cannot_be_fitted_are_counted():
    ds = reference_cohort()
    flat = np.where(ds["cohort"] == 0, ds["cst"], 0.2)
    result = sem(ds.assign(cst=("subject", flat)), DEFAULT_MODEL, n_boot=400)
    assert 80 < int(result["n_boot_failed"]) < 200  # (8/9)^9 = 35% miss the one cohort
    assert result["std_ci_low"].notnull().all()


@pytest.mark.parametrize(
    ("change", "model", "match"),
    [
        ({"cst": 0.3}, DEFAULT_MODEL, "'cst' has the same value in all 180 rows"),
        ({"ipsi": "double"}, DEFAULT_MODEL, "combinations of each other"),
        ({}, "motor ~ cst\ncst ~ motor", "not identified"),
        ({}, "motor cst", "lines such as"),
        ({}, "ind := a*b", "no path"),
        ({}, "motor ~ a*cst\nind := a*b", "'b', which labels no parameter"),
        ({}, "motor ~ a*cst\nind := a.real", "arithmetic of labels"),
        ({}, "motor ~ cst\nmotor ~ cst", "stands in the model twice"),
        ({}, "motor ~ cst:ipsi", "'cst:ipsi' is not the name of a variable"),
        ({}, "motor <~ cst", "'<~' cannot be used"),
        ({}, "motor ~ a*cst\ncontra ~ b*cst\na == b", "one label for several paths"),
        ({}, "motor ~ c(1,2)*cst", "not a number, NA or a label"),
        ({}, "motor ~ motor", "cannot explain itself"),
        ({}, "f =~ a1 + a2\nf ~~ f", "not identified"),
        ({}, "", "no path"),
    ],
)
def test_sem__refuses_with_a_way_out(change, model, match):
    ds = reference_cohort()
    for name, value in change.items():
        ds[name] = ds["cst"] * 2 + 1 if value == "double" else xr.full_like(ds[name], value)
    with pytest.raises(StatisticsError, match=match):
        sem(ds, model)


def test_sem__too_few_rows_and_groups():
    ds = reference_cohort()
    with pytest.raises(StatisticsError, match="5 usable rows for 4 variables"):
        sem(ds.isel(subject=slice(5)), DEFAULT_MODEL)
    one = ds.assign_coords(cohort=("subject", np.zeros(180)))
    with pytest.raises(StatisticsError, match="groups=None"):
        sem(one, DEFAULT_MODEL)
    assert sem(one, DEFAULT_MODEL, groups=None, n_boot=50)["std_ci_low"].notnull().all()
    with pytest.raises(StatisticsError, match=r"no complete row.*motor missing: 180"):
        sem(ds.assign(motor=ds["motor"] * np.nan), DEFAULT_MODEL)


def test_sem__bootstrap_of_people_does_not_depend_on_their_order(cohort):
    order = np.random.default_rng(1).permutation(90)
    first = sem(cohort, n_boot=20, groups=None)
    again = sem(cohort.isel(subject=order), n_boot=20, groups=None)
    for name in ("estimate", "boot_se", "std_ci_low"):
        np.testing.assert_allclose(again[name], first[name], rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("unit", ["ns", "us", "s"])
def test_sem__durations_and_dates_are_no_numbers(cohort, unit):
    """As numbers they would hang on their unit, and a missing one would be a value."""
    days = cohort["days_post_stroke"].fillna(0).round().astype(np.int64)
    gap = days.astype("timedelta64[D]").astype(f"timedelta64[{unit}]")
    gap = gap.where(np.arange(90) != 40)
    ds = cohort.assign(gap=gap, onset=gap + np.datetime64("2020-01-01", unit))
    options = {"model": "motor ~ x + cst", "n_boot": 0}
    for given in ("gap", gap):
        with pytest.raises(StatisticsError, match=r"holds durations.*durations / np.time"):
            sem(ds, variables={"x": given}, **options)
    for given in ("onset", ds["onset"]):
        with pytest.raises(StatisticsError, match=r"holds dates.*\(dates - first\) / np.time"):
            sem(ds, variables={"x": given}, **options)
    days = gap / np.timedelta64(1, "D")
    assert sem(ds, variables={"x": days}, **options)["n"] == 56  # 57 without the gap


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("brain_pad_corrected", "predict stage"),
        ("calibration_slope", "predict stage"),
        ("tract_load", "features stage"),
        ("motor_score", "participants.tsv"),
        ("lesion_hemisphere", "ingest lesion masks, or give the side yourself"),
    ],
)
def test_sem__missing_variable_names_the_way_out(cohort, missing, match):
    with pytest.raises(MissingVariableError, match=match):
        sem(cohort.drop_vars(missing))


def test_sem__unknown_names(cohort):
    with pytest.raises(MissingVariableError, match="'strength'"):
        sem(cohort, "strength ~ age")
    with pytest.raises(StatisticsError, match="'sex' is text"):
        sem(cohort, "motor ~ sex")
    with pytest.raises(StatisticsError, match="not in the model"):
        sem(cohort, "motor ~ age", variables={"cst": "age"})
    with pytest.raises(MissingVariableError, match="FPN_contralesional"):
        sem(cohort, "motor ~ a", variables={"a": ("lesion_load", {"region": "X_ipsilesional"})})
    with pytest.raises(StatisticsError, match="rival 'other'"):
        sem(cohort, "motor ~ age", rivals={"other": "motor ~ icv"})


def test_sem__a_data_array_is_joined_exactly(cohort):
    names, options = {"cst": cohort["lesion_volume"]}, {"model": "motor ~ cst", "n_boot": 0}
    plain = sem(cohort, variables=names, **options)
    order = np.random.default_rng(0).permutation(90)
    mixed = cohort["lesion_volume"].isel(subject=order)
    strokes = mixed.isel(subject=(order >= 30) & (order != 88))  # 88 is not included
    for values in (mixed, strokes):
        again = sem(cohort, variables={"cst": values}, **options)
        np.testing.assert_allclose(again["estimate"], plain["estimate"])
    labels = strokes["subject"].values.astype(object)
    labels[1] = "sub-0077"
    for values, match in (
        (xr.concat([strokes, strokes[:1]], "subject"), f"several values of '{labels[0]}'"),
        (strokes.assign_coords(subject=labels), "no subject 'sub-0077'. Did you mean 'sub-0"),
        (strokes[3:], "'cst': no value of 3 subjects that are used: "),
        (xr.full_like(strokes, "x", dtype=object), "'cst' must be numbers, got object"),
    ):
        with pytest.raises(StatisticsError, match=match):
            sem(cohort, variables={"cst": values}, **options)


def imported(cohort, **variables):
    """The cohort with the ages of another tool in place of our model's."""
    bare = cohort.drop_vars(["brain_pad_corrected", "calibration_slope"])
    tool = {"tool": "brainageR"}
    return bare.assign({name: (dims, values, tool) for name, (dims, values) in variables.items()})


def test_sem__imported_ages_without_a_slope_are_not_divided(cohort):
    pad = cohort["brain_pad_corrected"].values
    ds = imported(cohort, brain_pad_corrected=(("subject", "region"), pad))
    result = sem(ds, n_boot=0)
    assert result.attrs["variables"]["contra"] == "brain_pad_corrected of FPN_contralesional"
    ones = cohort.assign(calibration_slope=xr.ones_like(cohort["calibration_slope"]))
    expected = sem(ones, n_boot=0)
    np.testing.assert_allclose(result["estimate"], expected["estimate"])


def test_sem__age_is_a_cause_where_its_bias_is_not_corrected(cohort):
    pad = cohort["brain_pad_corrected"].values
    biased = pad - 0.4 * cohort["age"].values[:, None]
    result = sem(imported(cohort, brain_pad=(("subject", "region"), biased)), n_boot=0)
    assert result.attrs["model"].count("+ age") == 3
    assert {text.count("+ age") for text in result.attrs["model_text"].values()} == {3}
    # a bias that is linear in age moves the paths of age alone
    other = sem(imported(cohort, brain_pad=(("subject", "region"), pad)), n_boot=0)
    paths = [p for p in result["path"].values if "~~" not in p and not p.endswith("age")]
    assert len(paths) == 6
    np.testing.assert_allclose(
        result["estimate"].sel(path=paths), other["estimate"].sel(path=paths), atol=1e-4
    )
    assert not np.isclose(*(float(r["estimate"].sel(path="ipsi ~ age")) for r in (result, other)))


def test_sem__one_age_of_the_whole_brain(cohort):
    pad = cohort["brain_pad_corrected"].values.mean(axis=1)
    ds = imported(cohort, brain_pad_global_corrected=("subject", pad))
    result = sem(ds, n_boot=5)
    assert result.attrs["model"] == "motor ~ cst + brain\nbrain ~ cst"
    assert result.attrs["variables"]["brain"] == "brain_pad_global_corrected"
    with pytest.raises(MissingVariableError, match="'brain' is the brain-PAD of the whole brain"):
        sem(cohort, "motor ~ brain")
    with pytest.raises(MissingVariableError, match="brain_pad_corrected"):
        sem(ds, "motor ~ ipsi")


def test_sem__defined_parameters_have_bootstrap_intervals():
    model = "motor ~ c*cst + b*ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ a*cst\nind := a*b"
    result = sem(reference_cohort(), model + "\ntotal := c + ind", n_boot=300)
    assert list(result["defined"].values) == ["ind", "total"]
    chain = result.sel(indirect="cst -> ipsi -> motor")
    for kind in ("", "std_"):
        for part in ("estimate", "ci_low", "ci_high"):
            expected = float(chain[f"indirect_{kind}{part}"])
            assert result[f"defined_{kind}{part}"][0] == pytest.approx(expected)
    told: dict[tuple, list[str]] = {}  # columns of one table are told apart
    for column in result.data_vars.values():
        told.setdefault(column.dims, []).append(column.attrs.get("long_name", column.name))
    assert all(len(set(words)) == len(words) for words in told.values())
    assert result["defined_ci_low"][0] < result["defined_estimate"][0]
    assert (result["defined_p"] < 0.05).all()
    plain = sem(reference_cohort(), DEFAULT_MODEL, n_boot=300)
    assert "defined" not in plain.dims
    np.testing.assert_allclose(result["boot_ci_low"], plain["boot_ci_low"])


def test_sem__fiml_uses_everyone_and_counts_pairs():
    ds = reference_cohort("gaps_x")
    model = "motor ~ cst + ipsi\ncontra ~ motor\nipsi ~ cst"
    plain = sem(ds, model, n_boot=0)
    full = sem(ds, model, n_boot=20, missing="fiml")
    assert int(full["n"]) == 179  # one has nothing
    assert int(full["n_dropped"]) == 1
    assert full["dropped"].values.nonzero()[0].tolist() == [6]
    assert set(full["drop_reason"].values[6].removesuffix(" missing").split(", ")) == {
        *("motor", "cst", "ipsi", "contra")
    }
    assert "motor missing: 1;" in full.attrs["rows_dropped"] + ";"
    assert int(plain["n"]) == int(180 - plain["n_dropped"]) < 140
    assert "motor missing" in plain.attrs["rows_dropped"]
    table = reference_table("gaps_x")
    both = (table["contra"].notna() & table["motor"].notna()).sum()
    assert int(full["n_pairs"].sel(path="contra ~ motor")) == both
    assert (plain["n_pairs"] == plain["n"]).all()
    assert "exogenous variables estimated" in full.attrs["estimator"]
    assert (full["se"] < plain["se"]).all()
    assert not any("cst ~~" in path for path in full["path"].values)
    assert full["boot_ci_low"].notnull().all()
    latent = sem(ds, "dam =~ a1 + a2 + a3\nmotor ~ dam", n_boot=0, missing="fiml")
    assert int(latent["n_pairs"].sel(path="motor ~ dam")) == table["motor"].notna().sum()
    with pytest.raises(StatisticsError, match="missing: expected one of listwise, fiml"):
        sem(ds, model, missing="pairwise")


def test_sem__equivalent_models_are_said_to_be_so(cohort):
    result = sem(cohort, n_boot=0)
    assert result["model_equivalent"].values.tolist() == [True, True, False]
    reversed_, restricted = result.attrs["conclusions"]
    assert "equivalent" in reversed_
    assert "not a question that these data answer" in reversed_
    assert "does not show that an arrow is causal" in restricted
    chain = "motor ~ cst\nipsi ~ motor"
    other = sem(reference_cohort(), chain, rivals={"fork": "cst ~ motor\nipsi ~ motor"}, n_boot=0)
    # residuals of cst and ipsi covary in lavaan's reading of the fork: one parameter more
    assert other["model_equivalent"].values.tolist() == [True, False]
    same = {"turned": "motor ~ ipsi\ncst ~ motor"}
    other = sem(reference_cohort(), chain, rivals=same, n_boot=0)
    assert other["model_equivalent"].values.tolist() == [True, True]
    # what is exogenous differs, and the criteria are of all three variables
    np.testing.assert_allclose(other["model_aic"][0], other["model_aic"][1], rtol=1e-9)
    np.testing.assert_allclose(other["model_bic"][0], other["model_bic"][1], rtol=1e-9)
    assert other["model_aic"][0] != other["aic"]


def test_sem__modification_indices_find_what_was_left_out():
    table = reference_table()
    ds = reference_cohort()
    result = sem(ds, "motor ~ cst\ncontra ~ motor\nipsi ~ cst\nmotor ~~ 0*ipsi", n_boot=0)
    first = str(result["modification"].values[0])
    assert set(first.replace("~~", "~").split(" ~ ")) == {"motor", "ipsi"}
    freed = sem(ds, "motor ~ cst + ipsi\ncontra ~ motor\nipsi ~ cst", n_boot=0)
    drop = float(result["chi2"] - freed["chi2"])
    hint = result.sel(modification="motor ~ ipsi")
    assert hint["modification_index"] == pytest.approx(drop, rel=0.25)
    assert hint["expected_change"] == pytest.approx(
        float(freed["estimate"].sel(path="motor ~ ipsi")), rel=0.25
    )
    assert "exploratory" in result["modification_index"].attrs["long_name"]
    assert "modification" not in sem(ds, DEFAULT_MODEL, n_boot=0).dims
    assert table.notna().all().all()


def test_sem__covariances_that_were_added_are_shown():
    result = sem(reference_cohort(), "motor ~ cst\ncontra ~ cst", n_boot=0)
    assert list(result["path"].values) == ["motor ~ cst", "contra ~ cst", "motor ~~ contra"]
    assert list(result["variable"].values) == ["motor", "contra"]
    table = reference_table()
    r2 = np.corrcoef(table["motor"], table["cst"])[0, 1] ** 2
    assert result["r_squared"][0] == pytest.approx(r2)


def test_sem__negative_variance_is_a_warning_in_words(caplog):
    correlation = np.array([[1, 0.3, 0.6], [0.3, 1, 0.7], [0.6, 0.7, 1]])
    z = np.random.default_rng(4).normal(size=(60, 3))
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), (z - z.mean(axis=0)).T).T
    values = z @ np.linalg.cholesky(correlation).T
    ds = xr.Dataset({name: ("subject", values[:, k]) for k, name in enumerate("abc")})
    result = sem(ds, "f =~ a + b + c", groups=None, n_boot=0)
    assert result.attrs["improper"] == ["variance of c below zero"]
    assert "do not trust this fit" in caplog.text


def test_sem__bootstrap_on_workers_equals_the_one_here():
    from distributed import Client, LocalCluster

    model = "motor ~ cst + ipsi\nipsi ~ cst\ncontra ~ motor"
    ds = reference_cohort("gaps")
    here = sem(ds, model, missing="fiml", n_boot=60)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as local,
        Client(local),
    ):
        there = sem(ds, model, missing="fiml", n_boot=60)
    xr.testing.assert_identical(here, there)


def test_sem__refuses_scans_of_one_person_as_people(cohort):
    n = cohort.sizes["subject"]
    twice = cohort.assign(person=("subject", [f"p{k // 2}" for k in range(n)]))
    with pytest.raises(StatisticsError, match=r"SEM: 28 people are in the rows more than once"):
        sem(twice, n_boot=0)
    one = twice.assign(included=("subject", np.arange(n) % 2 == 0))
    assert int(sem(one, n_boot=0)["n"]) == 30
