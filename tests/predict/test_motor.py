import dask
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.harmonization.transformer import ComBat
from scalebrain.predict.harmonized import FoldHarmonizer
from scalebrain.predict.learners import LEARNERS, Prepared, make_pipeline, tune_and_fit
from scalebrain.predict.metrics import METRICS, cohort_scores, weighted_scores
from scalebrain.predict.motor import predict_motor
from scalebrain.predict.predictors import build_predictors
from scalebrain.predict.splits import grouped_folds

LIGHT = {"n_inner": 2, "n_trees": 20, "n_boot": 100, "n_repeats": 2, "n_permutations": 0}
FAST = LIGHT | {"learners": ["elastic_net", "gradient_boosting"], "n_trees": 10}


def plain(n=60, n_cohorts=6, seed=0, **columns):
    rng = np.random.default_rng(seed)
    base = {
        "motor_score": rng.random(n),
        "noise": rng.normal(size=n),
        "cohort": np.array([f"c{k % n_cohorts}" for k in range(n)]),
    }
    return xr.Dataset({k: ("subject", v) for k, v in (base | columns).items()})


def test_predict_motor__defaults_on_a_store(cohort):
    result = predict_motor(cohort, n_trees=20, n_boot=200, n_permutations=9)
    assert result["score"].dims == ("learner", "feature_group", "metric")
    assert list(result["learner"].values) == list(LEARNERS)
    assert list(result["feature_group"].values) == ["clinical", "lesion", "brain_age", "combined"]
    assert list(result["metric"].values) == list(METRICS)
    # 72 strokes; one excluded, one without a score, one without a cohort.
    assert int(result["n"]) == 69
    assert result["training_distance_limit"].attrs["long_name"].endswith("anyone in training, SD")
    assert result["unlike_reason"].attrs["long_name"].startswith("Why the subject is unlike")
    n_dropped = cohort.sizes["subject"] - 69
    assert int(result["n_dropped"]) == n_dropped
    unused = result["dropped"].values.nonzero()[0]
    assert len(unused) == n_dropped
    assert {11, 19} <= set(unused)
    assert (cohort["group"].values[unused] != "stroke").sum() == n_dropped - 3
    assert int(result["cohort_n"].sum()) == 69
    r2 = result["score"].sel(metric="r2")
    assert (r2.sel(feature_group="lesion") > 0.5).all()
    assert (r2.sel(feature_group="combined") > 0.5).all()
    assert (r2.sel(feature_group="brain_age") < 0.2).all()
    assert float(result["baseline_score"].sel(metric="r2")) <= 0
    assert (result["score"].sel(metric="auc", feature_group="lesion") > 0.8).all()
    assert (result["ci_low"] <= result["score"]).sel(metric="mae").all()
    assert (result["ci_high"] >= result["score"]).sel(metric="mae").all()
    np.testing.assert_allclose(result["p_permutation"], 0.1)
    best = result["top3_fraction"].to_series().nlargest(1).index
    assert list(best) == ["tract_loads:CST_ipsilesional"]
    assert result.attrs["importance_groups"] == {
        "tract_loads:CST_ipsilesional": [
            f"{name}:CST_ipsilesional"
            for name in ("tract_load", "tract_load_weighted", "tract_load_max")
        ]
    }
    gain = result["gain"].sel(versus="brain_age", metric="r2")
    np.testing.assert_allclose(
        gain, r2.sel(feature_group="combined") - r2.sel(feature_group="brain_age")
    )
    assert (result["gain_low"].sel(versus="brain_age", metric="r2") > 0).all()
    mae = result["score"].sel(metric="mae")
    np.testing.assert_allclose(
        result["gain"].sel(versus="clinical", metric="mae"),
        mae.sel(feature_group="clinical") - mae.sel(feature_group="combined"),
    )
    assert result["unlike_training"].sum() < 7
    assert (result["unlike_reason"] != "").equals(result["unlike_training"])
    # 5 training cohorts are too few for a guarantee over cohorts at 90%.
    assert result.attrs["interval_over"] == ["people of all cohorts pooled"]
    assert (result["interval_covered"] > 0.75).all()
    whole = result["shap"].sum("predictor", skipna=False) + result["shap_base"]
    np.testing.assert_allclose(whole, result["prediction"].sel(feature_group="combined"), atol=1e-9)
    assert result["prediction"].notnull().sum() == 69 * 12
    assert result.sizes["subject"] == cohort.sizes["subject"]
    assert result["predictor_group"].sel(predictor="age") == "clinical"
    assert dask.is_dask_collection(cohort["t1w"].data)


def test_predict_motor__native_and_lesional_sides_agree(cohort):
    options = LIGHT | {"learners": ["elastic_net"], "feature_groups": ["lesion", "brain_age"]}
    native = predict_motor(cohort, **options)
    lesional = predict_motor(to_lesional_sides(cohort), **options)
    np.testing.assert_allclose(native["score"], lesional["score"], rtol=1e-9)


def test_predict_motor__is_deterministic(cohort):
    options = FAST | {"feature_groups": ["clinical"], "n_permutations": 2}
    first = predict_motor(cohort, **options, seed=5)
    xr.testing.assert_identical(first, predict_motor(cohort, **options, seed=5))
    assert not first["prediction"].equals(predict_motor(cohort, **options, seed=6)["prediction"])


@pytest.mark.parametrize("learner", LEARNERS)
def test_predict_motor__does_not_depend_on_the_order_of_subjects(learner):
    rng = np.random.default_rng(3)
    x = rng.normal(size=60)
    ds = plain(x=x, motor_score=0.5 + 0.1 * x + rng.normal(0, 0.1, 60))
    ds["noise"][7], ds["motor_score"][11] = np.nan, np.nan
    ds = ds.assign_coords(subject=[f"sub-{k:03d}" for k in range(60)])
    options = LIGHT | {"learners": [learner], "n_permutations": 4, "harmonize": ["x"]}
    options |= {"feature_groups": {"x": ["x", "noise"]}, "search_anew": [learner]}
    first = predict_motor(ds, **options)
    again = predict_motor(ds.isel(subject=rng.permutation(60)), **options)
    assert not again["subject"].equals(first["subject"])
    xr.testing.assert_identical(again.sel(subject=first["subject"]), first)
    observed = ds["motor_score"].sel(subject=again["subject"])
    np.testing.assert_array_equal(again["observed"], observed)


def test_predict_motor__held_out_target_cannot_reach_its_own_prediction():
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    ds = plain(x=x, motor_score=0.5 + 0.1 * x + rng.normal(0, 0.05, 60))
    options = FAST | {"feature_groups": {"x": ["x", "noise"]}}
    first = predict_motor(ds, **options)
    rows = (ds["cohort"] == "c2").values
    changed = ds["motor_score"].values.copy()
    changed[rows] = rng.permutation(1 - changed[rows])
    x_changed = x.copy()
    x_changed[rows] *= 3
    second = predict_motor(ds.assign(motor_score=("subject", changed)), **options)
    for name in ("prediction", "severe_probability"):
        np.testing.assert_array_equal(first[name][..., rows], second[name][..., rows])
    third = predict_motor(ds.assign(x=("subject", x_changed)), **options)
    own = {"subject": np.flatnonzero(rows)[:1]}
    assert not np.allclose(first["prediction"].isel(own), third["prediction"].isel(own))


def test_predict_motor__cohort_identity_alone_scores_chance():
    rng = np.random.default_rng(2)
    codes = np.arange(90) % 6
    level = np.array([0.1, 0.3, 0.5, 0.6, 0.8, 0.9])
    identity = rng.normal(size=(6, 3))[codes]
    ds = plain(
        90,
        motor_score=np.clip(level[codes] + rng.normal(0, 0.05, 90), 0, 1),
        **{f"id{k}": identity[:, k] for k in range(3)},
    )
    result = predict_motor(ds, feature_groups={"identity": ["id0", "id1", "id2"]}, **LIGHT)
    # Random folds would learn each cohort's level; whole cohorts held out cannot.
    assert (result["score"].sel(metric="r2") < 0.1).all()
    assert (result["score"].sel(metric="auc") < 0.65).all()
    within = result["cohort_score"].sel(metric="auc")
    np.testing.assert_allclose(within.where(within.notnull(), 0.5), 0.5)
    # A cohort's rows look alike, so nothing is predicted within one either.
    assert (np.abs(result["importance"]) < 1e-12).all()
    assert (result["top3_fraction"] == 0).all()


def test_predict_motor__harmonizing_in_the_fold_does_not_leak():
    rng = np.random.default_rng(3)
    n, p = 120, 20
    codes = np.arange(n) % 12
    level = rng.permutation(np.linspace(0.2, 0.8, 12))[codes]
    x = rng.normal(size=(n, p)) + 0.5 * rng.normal(size=(12, p))[codes]
    names = [f"x{k}" for k in range(p)]
    columns = {name: x[:, k] for k, name in enumerate(names)}
    ds = plain(n, 12, motor_score=level + rng.normal(0, 0.1, n), **columns)
    options = LIGHT | {"learners": ["elastic_net"], "feature_groups": {"x": names}}
    # Harmonized before the split, with the outcome kept as covariates are: noise predicts.
    frame = pd.DataFrame(x, columns=names).assign(cohort=ds["cohort"], motor=ds["motor_score"])
    before = ComBat(batch="cohort", covariates=["motor"]).fit_transform(frame)
    leaking = ds.assign({name: ("subject", before[:, k]) for k, name in enumerate(names)})
    assert float(predict_motor(leaking, **options)["score"].sel(metric="r2").max()) > 0.2
    for unseen in ("adapt", "unchanged"):
        ours = predict_motor(ds, **options, harmonize=["x"], unseen=unseen)
        assert float(ours["score"].sel(metric="r2").max()) < 0.05
        assert float(ours["score"].sel(metric="auc").max()) < 0.65
    assert ours.attrs["harmonized"] == ["x"]


def test_fold_harmonizer__learns_from_training_rows_alone():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(5), [12, 12, 12, 12, 4])
    x = rng.normal(size=(52, 6)) + 3 * rng.normal(size=(5, 6))[codes]
    train, test = np.flatnonzero(codes < 3), np.flatnonzero(codes >= 3)
    columns = np.array([0, 2, 3])
    made = {}
    for unseen in ("adapt", "unchanged"):
        one = FoldHarmonizer(columns, ("a", "b", "c"), codes, tuple("vwxyz"), "site", unseen)
        made[unseen] = one.rows(x, train, test)
        changed = x.copy()
        changed[test] += 5
        np.testing.assert_array_equal(one.rows(changed, train, test)[0], made[unseen][0])
    a, b = made["adapt"], made["unchanged"]
    np.testing.assert_array_equal(a[0], b[0])
    level = [a[0][codes[train] == k][:, columns].mean(axis=0) for k in range(3)]
    assert np.ptp(level, axis=0).max() < 0.3
    np.testing.assert_array_equal(b[1], x[test])
    np.testing.assert_array_equal(a[1][12:], x[test][12:])  # 4 people are too few to adapt to
    assert np.abs(a[1][:12, columns].mean(axis=0) - level[0]).max() < 0.6
    np.testing.assert_array_equal(np.delete(a[1], columns, axis=1), np.delete(x[test], columns, 1))


def test_predict_motor__names_the_cohort_that_cannot_be_harmonized():
    site = np.array([f"site {'ABCDEF'[k % 6]}" for k in range(60)])
    flat = np.random.default_rng(3).normal(size=(2, 60))
    flat[0, site == "site B"] = 1.0
    ds = plain(site=site, flat=flat[0], other=flat[1])
    groups = {"x": ["flat", "other"]}
    match = r"elastic_net, cohort 'site [AC-F]' held out: 'flat' .* of 'site' site B"
    with pytest.raises(StatisticsError, match=match):
        predict_motor(ds, groups="site", feature_groups=groups, harmonize=["x"], **FAST)


def test_predict_motor__without_repeats_importance_is_missing():
    options = FAST | {"n_repeats": 0, "n_boot": 0, "learners": ["elastic_net"]}
    result = predict_motor(plain(), feature_groups={"noise": ["noise"]}, **options)
    for name in ("importance", "importance_by_cohort", "top3_fraction", "top3_by_learner"):
        assert result[name].isnull().all()
    assert result["ci_low"].isnull().all()
    assert result["shap"].notnull().all()


def test_predict_motor__importance_does_not_depend_on_other_learners():
    ds = plain(x=np.random.default_rng(2).normal(size=60))
    options = LIGHT | {"feature_groups": {"a": ["noise", "x"]}, "n_trees": 5}
    both = predict_motor(ds, learners=["gradient_boosting", "elastic_net"], **options)
    alone = predict_motor(ds, learners=["gradient_boosting"], **options)
    other = predict_motor(ds, learners=["elastic_net", "gradient_boosting"], **options)
    for result in (alone, other):
        np.testing.assert_array_equal(
            result["importance"].sel(learner="gradient_boosting"),
            both["importance"].sel(learner="gradient_boosting"),
        )
    assert (alone["importance"] != 0).any()


def test_predict_motor__same_with_and_without_a_client():
    from distributed import Client, LocalCluster

    ds = plain(40, 4)
    options = FAST | {"feature_groups": {"noise": ["noise"]}, "n_permutations": 3, "n_boot": 5}
    local = predict_motor(ds, **options)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        xr.testing.assert_identical(predict_motor(ds, **options), local)


@pytest.mark.parametrize("name", ["scan_hash", "person"])
def test_predict_motor__refuses_a_scan_or_person_in_two_cohorts(name):
    ids = np.array([f"h{k}" for k in range(60)], dtype=object)
    ids[7] = ids[20]
    with pytest.raises(StatisticsError, match=r"7 \(c1\), 20 \(c2\): one person or one scan"):
        predict_motor(plain(**{name: ids}))


@pytest.mark.parametrize("name", ["scan_hash", "person"])
def test_predict_motor__refuses_a_scan_or_person_twice_in_a_cohort(name):
    ids = np.array([f"h{k}" for k in range(60)], dtype=object)
    ids[26] = ids[20]
    ds = plain(**{name: ids})
    way = r"20 \(c2\), 26 \(c2\): one person or one scan[\s\S]*leave `included` on"
    with pytest.raises(StatisticsError, match=way) as caught:
        predict_motor(ds)
    assert caught.value.code == "scan-in-training"
    one_scan = ds.assign(included=("subject", np.arange(60) != 26))
    result = predict_motor(one_scan, feature_groups={"noise": ["noise"]}, **FAST)
    assert int(result["n"]) == 59


def scaled(*names):
    """60 people whose scores are of these scales, one cohort after the other."""
    return plain(motor_scale=np.array([names[k % 6 % len(names)] for k in range(60)], dtype=object))


@pytest.mark.parametrize(
    "names", [("",), ("FMA-UE",), ("FMA-UE", "fma_ue/66", "Fugl-Meyer", ""), ("FM-UE", "UEFM")]
)
def test_predict_motor__fugl_meyer_and_scores_of_no_named_scale_are_silent(names, caplog):
    options = FAST | {"feature_groups": {"noise": ["noise"]}, "learners": ["elastic_net"]}
    result = predict_motor(scaled(*names), **options)
    assert caplog.text == ""
    assert result.attrs["scale_note"] == ""
    assert result.attrs["severe_below"] == 0.424
    before = predict_motor(plain(), **options)
    xr.testing.assert_equal(result, before)


@pytest.mark.parametrize("names", [("NIHSS",), ("FMA-LE", "fma le"), ("FMA-UE", "NIHSS", "")])
def test_predict_motor__calls_nobody_severe_by_the_cut_off_of_another_scale(names, caplog):
    ds = scaled(*names)
    options = FAST | {"feature_groups": {"noise": ["noise"]}}
    result = predict_motor(ds, **options)
    assert len(caplog.messages) == 1
    assert "Nobody is called severe" in caplog.text
    assert "`severe_below`" in caplog.text
    assert result["severe"].isnull().all()
    assert result["severe_probability"].isnull().all()
    of_severe = ["auc", "balanced_accuracy", "brier"]
    assert result["score"].sel(metric=of_severe).isnull().all()
    assert result["baseline_score"].sel(metric=of_severe).isnull().all()
    assert result.attrs["severe_below"] == ""
    assert "is of Fugl-Meyer" in result.attrs["skipped"][0]
    np.testing.assert_array_equal(
        result["prediction"], predict_motor(plain(), **options)["prediction"]
    )
    told = result.attrs["scale_note"]
    assert told.endswith("FMA-UE (20), NIHSS (20)).") if "FMA-UE" in names else told == ""
    caplog.clear()
    own = predict_motor(ds, severe_below=0.5, **options)
    assert caplog.text == ""
    assert own["severe"].notnull().all()
    assert own.attrs["scale_note"] == told


def test_predict_motor__scales_are_of_the_rows_used_and_of_the_motor_score(caplog):
    ds = scaled("FMA-UE", "NIHSS").rename(motor_score="other")
    ds["motor_score"] = ds["other"].where(ds["motor_scale"] == "FMA-UE")
    ds["cohort"] = ("subject", [f"c{k % 5}" for k in range(60)])
    options = FAST | {"feature_groups": {"noise": ["noise"]}, "learners": ["elastic_net"]}
    assert predict_motor(ds, **options).attrs["scales"] == {"FMA-UE": 30}
    assert "Nobody" not in caplog.text
    assert predict_motor(ds, target="other", **options).attrs["scales"] == {}
    assert "the scores are of" not in caplog.text


@pytest.mark.parametrize(
    ("name", "factor", "why"),
    [
        ("nihss", 42, "is of Fugl-Meyer, the target is 'nihss'"),
        ("motor_score", 66, "as a fraction of its points, the scores go up to 6"),
    ],
)
def test_predict_motor__cut_off_is_of_motor_scores_that_are_fractions(name, factor, why, caplog):
    ds = plain()
    ds[name] = ds["motor_score"] * factor
    options = FAST | {"feature_groups": {"noise": ["noise"]}, "learners": ["elastic_net"]}
    result = predict_motor(ds, target=name, **options)
    assert why in caplog.text
    assert "`severe_below`" in caplog.text
    assert result["severe"].isnull().all()
    assert result.attrs["severe_below"] == ""
    assert why in result.attrs["skipped"][0]
    caplog.clear()
    own = predict_motor(ds, target=name, severe_below=0.424 * factor, **options)
    assert caplog.text == ""
    assert own["severe"].sum() == (plain()["motor_score"] < 0.424).sum()


@pytest.mark.parametrize("factor", [0.01, 66.0])
def test_predict_motor__elastic_net_does_not_depend_on_the_unit_of_the_target(factor):
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    ds = plain(x=x, motor_score=0.5 + 0.1 * x + rng.normal(0, 0.1, 60))
    options = LIGHT | {"feature_groups": {"x": ["x", "noise"]}, "learners": ["elastic_net"]}
    first = predict_motor(ds, severe_below=0.424, **options)
    ds["motor_score"] = ds["motor_score"] * factor
    other = predict_motor(ds, severe_below=0.424 * factor, **options)
    assert other["settings"].equals(first["settings"])
    for scaled_with in ("prediction", "interval_low", "shap", "shap_base"):
        np.testing.assert_allclose(other[scaled_with] / factor, first[scaled_with], rtol=1e-6)
    np.testing.assert_allclose(other["importance"], first["importance"], rtol=1e-6)
    whole = other["shap"].sum("predictor") + other["shap_base"]
    np.testing.assert_allclose(whole, other["prediction"].isel(feature_group=-1), rtol=1e-9)


def test_predict_motor__baseline_is_of_the_people_that_the_models_predict():
    ds = plain()
    ds["motor_score"] = 0.5 + ds["motor_score"] / 2
    ds["motor_score"][{"subject": [0, 6, 12]}] = 0.1  # severe in cohort c0 alone
    result = predict_motor(
        ds, feature_groups={"noise": ["noise"]}, **FAST | {"learners": ["elastic_net"]}
    )
    assert ["cohort c0 held out" in one for one in result.attrs["skipped"]] == [True]
    severe, cohort = ds["motor_score"].values < 0.424, ds["cohort"].values
    others = [c for c in np.unique(cohort) if c != "c0"]
    errors = [(severe[cohort == c] - severe[cohort != c].mean()) ** 2 for c in others]
    wanted = np.concatenate(errors).mean()
    assert float(result["baseline_score"].sel(metric="brier")) == pytest.approx(wanted)


def test_predict_motor__without_anything_to_permute_p_is_missing(caplog):
    ds = plain(12, person=np.arange(12))
    options = FAST | {"learners": ["elastic_net"], "n_permutations": 3}
    result = predict_motor(ds, groups="person", feature_groups={"noise": ["noise"]}, **options)
    assert result["p_permutation"].isnull().all()
    assert result["null_r2"].isnull().all()
    assert "nothing can be permuted" in caplog.text


def test_predict_motor__one_name_is_a_list_of_one():
    options = LIGHT | {"learners": "elastic_net", "search_anew": "elastic_net"}
    result = predict_motor(plain(), feature_groups={"a": "noise"}, **options)
    assert result["learner"].values.tolist() == ["elastic_net"]
    assert result["predictor"].values.tolist() == ["noise"]


def test_predict_motor__text_may_be_of_any_length():
    ds = plain().assign_coords(subject=[f"sub-{k:03d}" for k in range(60)])
    options = FAST | {"learners": ["elastic_net"], "feature_groups": {"noise": ["noise"]}}
    text = {
        name: ("subject", ds[name].values.astype(np.dtypes.StringDType()))
        for name in ("subject", "cohort")
    }
    found = predict_motor(ds.assign(text), **options)
    np.testing.assert_array_equal(found["prediction"], predict_motor(ds, **options)["prediction"])


@pytest.mark.parametrize("codes", [("female", "male"), ("f", "m"), (0, 1)])
def test_predict_motor__refuses_a_sex_that_is_written_otherwise(cohort, codes):
    sex = np.array(codes)[(cohort["sex"].values == "M").astype(int)]
    match = f"sex: expected F, M or missing, got '{codes[0]}', '{codes[1]}'.*Write F or M"
    with pytest.raises(StatisticsError, match=match):
        predict_motor(cohort.assign_coords(sex=("subject", sex)), feature_groups=["clinical"])


def test_predict_motor__codes_of_people_who_are_not_used_stop_nothing(cohort):
    score = cohort["motor_score"].values.copy()
    score[:2] = np.nan
    ds = cohort.assign(motor_score=("subject", score))
    odd = {name: ds[name].values.astype(object) for name in ("sex", "lesion_hemisphere")}
    for name, code in (("sex", "O"), ("lesion_hemisphere", "left")):
        odd[name][:2] = code
    changed = ds.assign({name: ("subject", values) for name, values in odd.items()})
    options = FAST | {"learners": ["elastic_net"]}
    found = predict_motor(changed, **options)
    np.testing.assert_array_equal(found["prediction"], predict_motor(ds, **options)["prediction"])


def test_predict_motor__noise_scores_chance():
    result = predict_motor(plain(), feature_groups={"noise": ["noise"]}, **LIGHT)
    assert (result["score"].sel(metric="r2") < 0.15).all()
    assert (np.abs(result["score"].sel(metric="auc") - 0.5) < 0.3).all()


def test_predict_motor__one_class_is_skipped_with_the_reason():
    rng = np.random.default_rng(0)
    motor = rng.uniform(0.5, 1, 60)
    motor[np.arange(60) % 6 == 3] = 0.2  # all severe subjects in one cohort
    ds = plain(motor_score=motor)
    result = predict_motor(ds, feature_groups={"noise": ["noise"]}, **FAST)
    assert result.attrs["skipped"] == [
        "cohort c3 held out: all 50 training rows are not severe",
    ]
    assert result["severe_probability"].isnull().sum() == 2 * 10
    assert result["score"].sel(metric="auc").isnull().all()
    assert result["score"].sel(metric="brier").notnull().all()
    none = predict_motor(
        ds.assign(motor_score=ds["motor_score"] + 1), feature_groups={"noise": ["noise"]}, **FAST
    )
    assert len(none.attrs["skipped"]) == 6
    assert none["score"].sel(metric=["auc", "balanced_accuracy", "brier"]).isnull().all()
    assert none["score"].sel(metric="r2").notnull().all()


@pytest.mark.parametrize("n_cohorts", [2, 3])
def test_predict_motor__few_cohorts(n_cohorts):
    ds = plain(n_cohorts=n_cohorts)
    result = predict_motor(ds, feature_groups={"noise": ["noise"]}, **LIGHT)
    assert result["score"].sel(metric="mae").notnull().all()


def test_predict_motor__cohorts_of_one_and_empty_predictors():
    site = np.array([f"c{k % 4}" for k in range(40)])
    site[0] = "x0"
    ds = plain(
        40, cohort=site, empty=np.full(40, np.nan), text=np.where(np.arange(40) % 3, "a", "b")
    )
    groups = {"one": ["noise", "empty"], "two": ["text"]}
    result = predict_motor(ds, feature_groups=groups, **FAST)
    assert list(result["feature_group"].values) == ["one", "two", "combined"]
    assert result["prediction"].notnull().all()
    assert result["importance_by_cohort"].sel(cohort="x0").isnull().all()
    assert result["importance"].notnull().all()


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({}, {"learners": ["svm"]}, ConfigError, "svm"),
        ({}, {"learners": ["elastic_net"] * 2}, ConfigError, "twice"),
        ({}, {"search_anew": ["svm"]}, ConfigError, "svm"),
        ({}, {"coverage": 1.0}, ConfigError, "coverage must lie"),
        ({}, {"n_permutations": -1}, ConfigError, "n_permutations must be 0 or more, .*got -1"),
        ({}, {"n_boot": -5}, ConfigError, "n_boot must be 0 or more, .*got -5"),
        ({}, {"n_trees": 0}, ConfigError, "n_trees must be 1 or more, .*got 0"),
        ({}, {"n_repeats": -1}, ConfigError, "n_repeats must be 0 or more, .*got -1"),
        ({}, {"n_repeats": 1.5}, ConfigError, "n_repeats must be .* a whole number"),
        ({}, {"n_inner": 1}, ConfigError, "n_inner must be 2 or more, .*got 1"),
        ({}, {"seed": -1}, ConfigError, "seed must be 0 or more, .*got -1"),
        ({}, {"seed": 2**32}, ConfigError, r"seed must be below 2\*\*32, .*got 4294967296"),
        ({}, {"severe_below": np.nan}, ConfigError, "severe_below must be a number"),
        ({}, {"feature_groups": {"a": ["noise"]}, "harmonize": ["b"]}, ConfigError, "no feature"),
        ({}, {"feature_groups": {"a": ["noise"]}, "unseen": "drop"}, ConfigError, "unseen"),
        ({}, {"feature_groups": ["extra"]}, ConfigError, "no `extra`"),
        ({}, {"feature_groups": {"a": ["motor_score"]}}, StatisticsError, "target 'motor_score'"),
        ({}, {"feature_groups": ["brain"]}, ConfigError, "brain"),
        ({}, {"feature_groups": {}}, ConfigError, "none was named"),
        ({}, {"feature_groups": {"a": ["absent"]}}, MissingVariableError, "'absent'"),
        ({}, {}, MissingVariableError, "'age'.*add age, .* to participants.tsv and ingest again"),
        ({}, {"target": "grip"}, MissingVariableError, "add 'grip' with ds.assign, or save_store"),
        ({}, {"target": "cohort"}, StatisticsError, "text"),
        ({"cohort": np.repeat("a", 60)}, {}, StatisticsError, "two or more groups, got 1: a"),
        ({"motor_score": np.ones(60)}, {}, StatisticsError, "same value"),
        ({"motor_score": np.full(60, np.nan)}, {}, StatisticsError, "motor_score missing: 60"),
        ({"motor_score": np.full(60, np.nan)}, {}, StatisticsError, "scale that .*json declares"),
        (
            {"group": np.repeat(["stroke", "control"], 30)},
            {"group": "Stroke"},
            StatisticsError,
            "not in group 'Stroke': 60.*groups are 'control', 'stroke'",
        ),
        ({"included": np.zeros(60, bool)}, {}, StatisticsError, "not included: 60.*exclusion_"),
    ],
)
def test_predict_motor__refuses_with_a_way_out(change, options, error, match):
    with pytest.raises(error, match=match):
        predict_motor(plain(**change), **options)


def test_predict_motor__store_without_brain_age_names_the_stage(cohort):
    ds = cohort.drop_vars(["brain_pad_corrected", "calibration_slope"])
    with pytest.raises(MissingVariableError, match="predict stage"):
        predict_motor(ds)
    result = predict_motor(
        ds, feature_groups=["clinical", "lesion"], learners=["elastic_net"], **LIGHT
    )
    assert list(result["feature_group"].values) == ["clinical", "lesion"]


def test_build_predictors__columns_of_each_group(cohort):
    table, groups = build_predictors(cohort, ["clinical", "lesion", "brain_age", "combined"])
    assert groups["clinical"] == ["age", "sex_male", "days_post_stroke"]
    assert len(groups["lesion"]) == 1 + 18 + 3
    assert len(groups["brain_age"]) == 18
    assert groups["combined"] == list(table.columns)
    assert "tract_load_max:CST_ipsilesional" in groups["lesion"]
    assert "tract_load_max:CST_contralesional" not in table
    assert (table.dtypes == np.float64).all()
    ratio = cohort["brain_pad_corrected"] / cohort["calibration_slope"]
    left = np.flatnonzero(cohort["lesion_hemisphere"].values == "L")[0]
    assert table["brain_pad_corrected:FPN_contralesional"].iloc[left] == pytest.approx(
        float(ratio.sel(region="FPN_R")[left])
    )
    _, alone = build_predictors(cohort, ["combined"])
    assert alone == {"combined": groups["combined"]}


def test_weighted_scores__equal_scikit_learn():
    rng = np.random.default_rng(0)
    n = 80
    codes = rng.integers(0, 5, n)
    y, prediction, probability = rng.random(n), rng.random(n), rng.random(n).round(1)
    severe = y < 0.4
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 2]], dtype=float)
    got = weighted_scores(y, prediction, severe, probability, codes, weights)
    for row, weight in zip(got, weights, strict=True):
        k = np.repeat(np.arange(n), weight[codes].astype(int))
        expected = [
            sklearn.metrics.r2_score(y[k], prediction[k]),
            sklearn.metrics.mean_absolute_error(y[k], prediction[k]),
            np.corrcoef(y[k], prediction[k])[0, 1],
            sklearn.metrics.roc_auc_score(severe[k], probability[k]),
            sklearn.metrics.balanced_accuracy_score(severe[k], probability[k] >= 0.5),
            sklearn.metrics.brier_score_loss(severe[k], probability[k]),
        ]
        np.testing.assert_allclose(row, expected)
    each = cohort_scores(y, prediction, severe, probability, codes, 5)
    k = codes == 3
    assert each[3, 0] == pytest.approx(sklearn.metrics.r2_score(y[k], prediction[k]))


@pytest.mark.parametrize("classify", [False, True])
@pytest.mark.parametrize("learner", LEARNERS)
def test_tune_and_fit__learns_only_from_its_rows(learner, classify):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    x[rng.random((60, 4)) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + rng.normal(0, 0.3, 60) > 0).astype(float)
    folds = grouped_folds(np.arange(60) % 5, 3)
    prepared = Prepared.of(x, folds)
    model = tune_and_fit(learner, prepared, y, classify=classify, n_trees=20)
    for train, test in folds:  # nothing of the rows left out is in what they are predicted by
        alone = Prepared.of(x[train], [])
        _, _, x_train, x_test = prepared.inner[[id(t) for _, t in folds].index(id(test))]
        np.testing.assert_array_equal(x_train, alone.x)
        np.testing.assert_array_equal(x_test, alone.before.transform(x[test]))
    assert np.isfinite(model.inner_prediction).all()
    again = tune_and_fit(
        learner, prepared, y, classify=classify, n_trees=20, settings=model.settings
    )
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert [name for name, _ in model.pipeline.steps] == ["impute", "limit", "scale", "estimate"]
    imputer = model.pipeline.named_steps["impute"]
    np.testing.assert_allclose(imputer.statistics_, np.nanmedian(x, axis=0))
    assert np.corrcoef(model.predict(x), y)[0, 1] > 0.5


@pytest.mark.parametrize("learner", LEARNERS)
def test_tune_and_fit__does_not_extrapolate(learner):
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=60), np.zeros(60)], axis=1)
    x[:3, 1] = 0.001  # a load that is almost nowhere above zero
    y = x[:, 0] + 300 * x[:, 1] + rng.normal(0, 0.1, 60)
    model = tune_and_fit(learner, Prepared.of(x, grouped_folds(np.arange(60) % 5, 3)), y)
    edge = model.predict(np.array([[0.0, 0.001], [0.0, 0.5]]))
    assert edge[0] == edge[1]


def test_make_pipeline__unknown_learner():
    with pytest.raises(ConfigError, match="elastic_net"):
        make_pipeline("svm")
    with pytest.raises(ConfigError, match="elastic_net"):
        tune_and_fit("svm", Prepared.of(np.ones((4, 1)), []), np.arange(4.0))


def test_build_predictors__imported_ages(cohort):
    bare = cohort.drop_vars(["brain_pad_corrected", "calibration_slope"])
    pad = cohort["brain_pad_corrected"].values.copy()
    pad[:, :2] = np.nan  # the tool has no SMN
    regional = bare.assign(brain_pad=(("subject", "region"), pad, {"tool": "pyment"}))
    table, _ = build_predictors(regional, ["brain_age"])
    assert len(table.columns) == 16
    left = np.flatnonzero(cohort["lesion_hemisphere"].values == "L")[0]
    assert table["brain_pad:FPN_contralesional"].iloc[left] == pad[left, 3]
    whole = bare.assign(brain_pad_global=("subject", pad[:, 4], {"tool": "pyment"}))
    table, _ = build_predictors(whole, ["brain_age"])
    assert list(table.columns) == ["brain_pad_global"]
