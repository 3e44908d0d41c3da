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
from scalebrain.stats.sem_fit import fit_sem, parse_model

REFERENCE = Path(__file__).parent.parent / "reference" / "sem_reference.json"
INDICES = {
    "chisq": "chi2",
    "df": "df",
    "pvalue": "p",
    "cfi": "cfi",
    "tli": "tli",
    "rmsea": "rmsea",
    "rmsea.ci.lower": "rmsea_low",
    "rmsea.ci.upper": "rmsea_high",
    "srmr": "srmr",
    "aic": "aic",
    "bic": "bic",
    "logl": "loglik",
}


def reference():
    return json.loads(REFERENCE.read_text())


def reference_table():
    return pd.DataFrame(reference()["data"])


def reference_cohort():
    table = reference_table()
    ds = xr.Dataset({name: ("subject", table[name].to_numpy()) for name in table})
    return ds.assign_coords(cohort=("subject", np.arange(len(table)) % 9))


@pytest.mark.parametrize("name", ["default", "restricted", "no_link", "latent"])
def test_fit_sem__agrees_with_lavaan(name):
    case = reference()[name]
    fit = fit_sem(parse_model(case["model"]), reference_table())
    for k, path in enumerate(case["path"]):
        assert fit.estimate[path] == pytest.approx(case["estimate"][k], rel=1e-5, abs=1e-6)
        assert fit.standardized[path] == pytest.approx(case["std"][k], rel=1e-5, abs=1e-6)
        if case["se"][k]:
            assert fit.se[path] == pytest.approx(case["se"][k], rel=1e-5)
    for theirs, ours in INDICES.items():
        expected = case["fit"][theirs]
        if expected is None:
            assert np.isnan(fit.indices[ours])
        else:
            assert fit.indices[ours] == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_fit_sem__recursive_paths_equal_least_squares_by_equation():
    table = reference_table()
    model = parse_model(DEFAULT_MODEL)
    fit = fit_sem(model, table)
    for left, rights in model.regressions().items():
        x = np.column_stack([np.ones(len(table)), table[rights]])
        beta, rss = np.linalg.lstsq(x, table[left], rcond=None)[:2]
        se = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * rss / len(table))
        for k, right in enumerate(rights, start=1):
            assert fit.estimate[f"{left} ~ {right}"] == pytest.approx(beta[k], rel=1e-5)
            assert fit.se[f"{left} ~ {right}"] == pytest.approx(se[k], rel=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_fit_sem__standardized_estimates_do_not_depend_on_units(factor):
    for name in ("default", "latent"):
        model = parse_model(reference()[name]["model"])
        table = reference_table()
        plain = fit_sem(model, table)
        changed = model.observed[1]
        other = fit_sem(model, table.assign(**{changed: table[changed] * factor}))
        assert other.standardized == pytest.approx(plain.standardized, rel=1e-5)
        assert other.indices["chi2"] == pytest.approx(plain.indices["chi2"], rel=1e-5, abs=1e-6)


def test_fit_sem__labels_and_fixed_values():
    table = reference_table()
    equal = fit_sem(parse_model("a1 ~ k*cst\na2 ~ k*cst"), table)
    assert equal.estimate["a1 ~ cst"] == pytest.approx(equal.estimate["a2 ~ cst"])
    fixed = fit_sem(parse_model("contra ~ 2*motor + cst"), table)
    assert fixed.estimate["contra ~ motor"] == 2
    assert np.isnan(fixed.se["contra ~ motor"])
    assert fixed.indices["df"] == 1


def test_parse_model__knows_when_least_squares_is_exact():
    assert parse_model(DEFAULT_MODEL).is_recursive
    assert parse_model("a ~ b\nc ~ a\na ~~ 0*c").is_recursive
    assert not parse_model("a ~ b\nc ~ b\na ~~ c").is_recursive
    assert not parse_model("f =~ a + b + c\nd ~ f").is_recursive
    assert not parse_model("a ~ b\nb ~ a + c").is_recursive
    assert not parse_model("a ~ k*b").is_recursive


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
    assert int(result["n_dropped"]) == 2
    assert result["dropped"].values.nonzero()[0].tolist() == [33, 89]
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


def test_sem__bootstrap_shortcut_equals_refitting():
    ds = reference_cohort()
    model = parse_model(DEFAULT_MODEL)
    fast = sem(ds, DEFAULT_MODEL, n_boot=25, seed=3)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(9, np.full(9, 1 / 9), size=25)
    table = reference_table()
    codes = np.arange(len(table)) % 9
    slow = []
    for weight in weights:
        rows = np.repeat(np.arange(len(table)), weight[codes])
        slow.append(fit_sem(model, table.iloc[rows]).standardized["motor ~ cst"])
    low, high = np.quantile(slow, [0.025, 0.975])
    assert fast["std_ci_low"].sel(path="motor ~ cst") == pytest.approx(low, rel=1e-5)
    assert fast["std_ci_high"].sel(path="motor ~ cst") == pytest.approx(high, rel=1e-5)


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
        ({}, "ind := a*b", "':='"),
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
    with pytest.raises(StatisticsError, match="5 complete rows for 4 variables"):
        sem(ds.isel(subject=slice(5)), DEFAULT_MODEL)
    one = ds.assign_coords(cohort=("subject", np.zeros(180)))
    with pytest.raises(StatisticsError, match="groups=None"):
        sem(one, DEFAULT_MODEL)
    assert sem(one, DEFAULT_MODEL, groups=None, n_boot=50)["std_ci_low"].notnull().all()
    with pytest.raises(StatisticsError, match=r"no complete row.*motor missing: 180"):
        sem(ds.assign(motor=ds["motor"] * np.nan), DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        ("brain_pad_corrected", "predict stage"),
        ("calibration_slope", "predict stage"),
        ("tract_load", "features stage"),
        ("motor_score", "participants.tsv"),
        ("lesion_hemisphere", "features stage"),
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
