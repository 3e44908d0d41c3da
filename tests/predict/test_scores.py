import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from scalebrain.predict.importance import importance_units
from scalebrain.predict.scores import Draws, calibration, coverage_table, gain_table
from scalebrain.predict.task import MotorTask


def task_of(severe, codes):
    n = len(severe)
    every = np.ones(n, dtype=bool)
    cohorts = [f"c{k}" for k in range(codes.max() + 1)]
    y = np.where(severe, 0.2, 0.8)
    return MotorTask(None, every, np.arange(n), ~every, y, severe, cohorts, codes, [], [], "")


def test_calibration__finds_the_planted_slope_and_intercept():
    rng = np.random.default_rng(0)
    n = 20_000
    truth = rng.normal(0, 1.2, n)
    severe = rng.random(n) < 1 / (1 + np.exp(-truth))
    told = {"right": truth, "too extreme": 2 * truth, "too low": truth - 0.7}
    probability = 1 / (1 + np.exp(-np.stack(list(told.values()))))[:, None]
    out = calibration(task_of(severe, np.arange(n) % 5), probability)
    slope, intercept = out["calibration_slope"][:, 0], out["calibration_intercept"][:, 0]
    assert slope[0] == pytest.approx(1, abs=0.05)
    assert slope[1] == pytest.approx(0.5, abs=0.1)
    assert intercept[0] == pytest.approx(0, abs=0.05)
    assert intercept[2] == pytest.approx(0.7, abs=0.06)
    assert (out["calibration_n"].sum("bin") == n).all()
    right = out.isel(learner=0, feature_group=0)
    inside = (right["calibration_low"] < right["calibration_predicted"]) & (
        right["calibration_predicted"] < right["calibration_high"]
    )
    assert inside.sum() >= 8
    logit = np.clip(told["too low"], np.log(1 / 99), np.log(99))[:, None]
    peer = LogisticRegression(C=np.inf, tol=1e-8).fit(logit, severe)
    assert slope[2] == pytest.approx(peer.coef_[0, 0], rel=1e-4)


def test_calibration__without_two_classes_or_with_separated_ones():
    codes = np.arange(20) % 2
    p = np.linspace(0.05, 0.95, 20)[None, None]
    none = calibration(task_of(np.zeros(20, dtype=bool), codes), p)
    assert none["calibration_slope"].isnull().all()
    assert (none["calibration_n"] == 2).all()
    apart = calibration(task_of(np.arange(20) >= 10, codes), p)
    assert apart["calibration_slope"].isnull().all()
    assert apart["calibration_intercept"].notnull().all()
    missing = calibration(task_of(np.arange(20) >= 10, codes), np.full((1, 1, 20), np.nan))
    assert missing["calibration_observed"].isnull().all()


def test_gain_table__is_paired():
    rng = np.random.default_rng(0)
    draws = Draws.of(12, 400, 0, 0.95)
    shared = rng.normal(size=(1, 1, 401, 1)) * 5
    replicates = shared + np.zeros((1, 2, 401, 6))
    replicates[:, 1] += 1 + 0.01 * rng.normal(size=(1, 401, 6))
    out = gain_table(replicates, ["lesion", "combined"], draws).sel(versus="lesion")
    assert (abs(out["gain"][0, [0, 2, 3, 4]] - 1) < 0.05).all()
    assert (abs(out["gain"][0, [1, 5]] + 1) < 0.05).all()  # errors are better when small
    assert (out["gain_high"] - out["gain_low"] < 0.1).all()


def test_coverage_table__counts_people():
    codes = np.repeat([0, 1, 2], [10, 5, 5])
    inside = np.ones((1, 1, 20))
    inside[..., :4], inside[..., -5:] = 0, np.nan
    out = coverage_table(task_of(np.arange(20) > 9, codes), inside, Draws.of(3, 200, 0, 0.95))
    assert float(out["interval_covered"].item()) == pytest.approx(11 / 15)
    assert out["interval_covered_low"] < 0.7 < out["interval_covered_high"]


def test_importance_units__hold_the_loads_of_a_tract_together():
    names = ["age", "tract_load:CST", "lesion_load:SAL", "tract_load_max:CST", "tract_load:OR"]
    assert importance_units(names) == {
        "age": ["age"],
        "tract_loads:CST": ["tract_load:CST", "tract_load_max:CST"],
        "lesion_load:SAL": ["lesion_load:SAL"],
        "tract_load:OR": ["tract_load:OR"],
    }
