import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import ConfigError, StatisticsError
from scalebrain.predict.motor import predict_motor
from scalebrain.predict.predictors import build_predictors

IDS = [f"sub-{k:02d}" for k in range(40)]


@pytest.fixture
def store() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "motor_score": ("subject", rng.random(40)),
            "noise": ("subject", rng.normal(size=40)),
        },
        coords={
            "subject": IDS,
            "cohort": ("subject", np.array([f"c{k % 4}" for k in range(40)])),
            "group": ("subject", np.array(["reference"] * 4 + ["stroke"] * 36)),
        },
    )


def rows(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=IDS)


def test_build_predictors__extra_is_joined_by_subject(store):
    rng = np.random.default_rng(1)
    table = rows(
        dose=rng.normal(size=40), arm=np.where(np.arange(40) % 2, "a", "b"), flag=[True] * 40
    )
    table.loc["sub-05", "dose"] = np.nan
    got, groups = build_predictors(
        store, {"own": ["noise"]}, extra=table.sample(frac=1, random_state=0)
    )
    assert groups["extra"] == ["dose", "arm", "flag"]
    assert groups["combined"] == ["noise", "dose", "arm", "flag"]
    pd.testing.assert_series_equal(got["dose"], table["dose"], check_names=False)
    assert np.isnan(got.loc["sub-05", "dose"])
    np.testing.assert_array_equal(got["arm"], 1.0 - np.arange(40) % 2)


@pytest.mark.parametrize("missing", [pd.NA, pd.NaT, None, np.nan, ""])
def test_build_predictors__missing_text_is_missing(store, missing):
    arm = np.array(["a", "b"] * 20, dtype=object)
    arm[3] = missing
    wanted = np.where(np.arange(40) == 3, np.nan, np.arange(40) % 2)
    for kind in ("object", "string"):
        table = rows(arm=pd.Series(arm, index=IDS, dtype=kind))
        got, _ = build_predictors(store, {"own": ["noise"]}, extra=table)
        np.testing.assert_array_equal(got["arm"], wanted)


def test_build_predictors__extra_dataset_of_edges(store):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 40))
    extra = xr.Dataset(
        {
            "connectivity": (("edge", "subject"), values),
            "score": ("subject", np.arange(40)),
        },
        coords={"subject": IDS[::-1], "edge": ["a-b", "a-c", "b-c"]},
    )
    got, groups = build_predictors(store, ["extra"], extra=extra)
    assert groups == {"extra": [f"connectivity:{e}" for e in ("a-b", "a-c", "b-c")] + ["score"]}
    np.testing.assert_array_equal(got["connectivity:a-c"], values[1][::-1])
    np.testing.assert_array_equal(got["score"], np.arange(40)[::-1])


def test_predict_motor__extra_carries_the_outcome(store):
    rng = np.random.default_rng(2)
    extra = rows(good=store["motor_score"].values + rng.normal(0, 0.05, 40))
    options = {"learners": ["elastic_net"], "n_boot": 50, "n_permutations": 0, "n_repeats": 2}
    # references need no row
    out = predict_motor(store, feature_groups={"own": ["noise"]}, extra=extra[4:], **options)
    assert list(out["feature_group"].values) == ["own", "extra", "combined"]
    assert list(out["versus"].values) == ["own", "extra"]
    assert float(out["gain"].sel(versus="own", metric="r2")[0]) > 0.5
    assert out["predictor_group"].sel(predictor="good") == "extra"


def _edges(**changes) -> xr.Dataset:
    made = xr.Dataset({"x": (("subject", "a", "b"), np.zeros((40, 2, 2)))}, coords={"subject": IDS})
    return made.assign(changes)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (rows(x=0).rename({"sub-07": "sub_07"}), "no subject 'sub_07'. Did you mean 'sub-07'"),
        (rows(x=0).rename({"sub-07": "QQ"}), "ids such as 'sub-00'"),
        (rows(x=0).drop(["sub-07", "sub-09"]), "no row of 2 subjects .* 'sub-07', 'sub-09'"),
        (rows(x=0).rename({"sub-07": "sub-08"}), "several rows of 'sub-08'"),
        (rows(x=IDS), "'x' is text of 40 values"),
        (rows(noise=np.arange(40.0)), "'noise' is a predictor of another group"),
        (pd.DataFrame([[0, 1]] * 40, index=IDS, columns=["x", "x"]), "several columns 'x'"),
        (_edges(), "'x' has the dimensions"),
        (_edges().drop_vars("subject"), "no coordinate 'subject'"),
    ],
)
def test_build_predictors__refuses_extra_with_a_way_out(store, extra, match):
    with pytest.raises(StatisticsError, match=match):
        build_predictors(store, {"own": ["noise"]}, extra=extra)


def test_build_predictors__extra_may_be_a_series_that_has_a_name(store):
    dose = pd.Series(np.arange(40.0), index=IDS, name="dose")
    got, groups = build_predictors(store, ["extra"], extra=dose)
    assert groups == {"extra": ["dose"]}
    np.testing.assert_array_equal(got["dose"], dose)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ("therapy.tsv", "extra must be a table .* got str. Read a file with pandas.read_csv"),
        (pd.Series(np.arange(40.0), index=IDS), "a Series that has a name, .* got Series"),
        (xr.DataArray(np.arange(40.0), dims="subject", coords={"subject": IDS}), "got DataArray"),
    ],
)
def test_build_predictors__refuses_extra_of_another_type(store, extra, match):
    with pytest.raises(ConfigError, match=match):
        build_predictors(store, ["extra"], extra=extra)


def test_build_predictors__refuses_infinite_values_of_those_used(store):
    table = rows(log_dose=np.log10(np.maximum(np.arange(40.0) - 5, 1e-3)), flag=1.0)
    table.iloc[:6, 0] = -np.inf
    stroke = store["group"].values == "stroke"
    with pytest.raises(StatisticsError, match=r"infinite values \('log_dose': 6\).*choose"):
        build_predictors(store, ["extra"], extra=table)
    with pytest.raises(StatisticsError, match=r"'log_dose': 2\)"):
        build_predictors(store, ["extra"], extra=table, needed=stroke)
    store["dose"] = ("subject", table["log_dose"].to_numpy())
    with pytest.raises(StatisticsError, match=r"'dose': 6\)"):
        build_predictors(store, {"own": ["dose"]})
    table.iloc[4:6, 0] = np.nan
    got, _ = build_predictors(store, ["extra"], extra=table, needed=stroke)
    assert got["log_dose"][stroke].isna().sum() == 2


def test_predict_motor__refuses_the_outcome_as_a_predictor(store):
    extra = rows(percent=100 * store["motor_score"].values)
    with pytest.raises(StatisticsError, match="'percent' are the target 'motor_score' itself"):
        predict_motor(store, feature_groups={"own": ["noise"]}, extra=extra)
    with pytest.raises(ConfigError, match="not in `feature_groups`"):
        predict_motor(store, feature_groups=["clinical"], extra=extra)
