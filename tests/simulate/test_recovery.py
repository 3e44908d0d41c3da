"""What is compared with the truth of a simulated cohort."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import ConfigError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.io.store import open_store
from scalebrain.simulate.cohort import simulate_cohort
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.recovery import _motor_rows, add_truth, compare_effects
from scalebrain.simulate.structural import Outcome, planted_effects, z_score

FEW = {"reference": 12, "stroke": 0, "cohorts": 2, "resolution": 6.0}


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truths")
    for seed in (1, 2):
        simulate_cohort(folder / str(seed) / "bids", seed=seed, **FEW)
    return folder


@pytest.fixture
def study(truths):
    people = open_store(truths / "1" / "truth.zarr").load()
    n = people.sizes["subject"]
    return xr.Dataset(
        {
            "brain_pad_corrected": people["true_deviation"],
            "included": ("subject", np.ones(n, dtype=bool)),
        },
        coords={name: people[name] for name in ("subject", "group", "region")}
        | {"age": ("subject", people["age"].values.round(1).astype(np.float32))},
    )


def accuracy(ds):
    return xr.Dataset(coords={"region": ds["region"]})


def test_add_truth__is_of_the_people_who_have_an_age(study, truths):
    study["brain_pad_corrected"][0, 0] = np.nan
    found = add_truth(accuracy(study), study, truths / "1" / "truth.json")
    np.testing.assert_allclose(found["deviation_r"], 1)


def test_add_truth__of_another_simulation_raises(study, truths):
    with pytest.raises(ConfigError, match="another simulation"):
        add_truth(accuracy(study), study, truths / "2" / "truth.json")


def test_add_truth__of_other_regions_raises(study, truths):
    other = study.assign_coords(region=[f"N{i}_L" for i in range(study.sizes["region"])])
    with pytest.raises(ConfigError, match="regions N0_L"):
        add_truth(accuracy(other), other, truths / "1" / "truth.json")


def test_simulate_cohort__the_truth_of_another_simulation_is_not_overwritten(truths, tmp_path):
    shutil.copytree(truths / "1", tmp_path / "a")
    before = (tmp_path / "a" / "truth.json").read_bytes()
    with pytest.raises(ConfigError, match="truth of another simulation"):
        simulate_cohort(tmp_path / "b" / "bids", truth=tmp_path / "a" / "truth.json", seed=2, **FEW)
    assert (tmp_path / "a" / "truth.json").read_bytes() == before
    assert not (tmp_path / "b").exists()
    simulate_cohort(tmp_path / "a" / "bids", seed=1, **FEW)
    assert json.loads(before)["design"]["seed"] == 1


@pytest.mark.parametrize("term", ["lesion_volume", "log10(lesion_volume)"])
def test_compare_effects__of_another_scale_raises(study, term):
    mixed = xr.Dataset(coords={"term": ["Intercept", term]})
    with pytest.raises(StatisticsError, match="per SD of log10"):
        compare_effects(study, mixed, planted_effects(SimulationParameters()))


def strokes(n=200):
    rng = np.random.default_rng(0)
    side = rng.choice(["L", "R"], n)
    shape = ("subject", "region")
    names = ["SAL_L", "SAL_R", "FPN_L", "FPN_R"]
    return xr.Dataset(
        {
            "lesion_load": (shape, rng.random((n, 4))),
            "brain_pad_corrected": (shape, rng.normal(size=(n, 4))),
            "calibration_slope": (shape, np.ones((n, 4))),
            "tract_load": (("subject", "tract"), rng.random((n, 2))),
            "tract_count": (("subject", "tract"), rng.integers(0, 9, (n, 2)).astype(np.uint16)),
            "motor_score": ("subject", rng.random(n)),
            "lesion_hemisphere": ("subject", side),
            "included": ("subject", np.ones(n, dtype=bool)),
        },
        coords={
            "region": names,
            "tract": ["CST_L", "CST_R"],
            "age": ("subject", rng.uniform(40, 80, n)),
            "group": ("subject", ["stroke"] * n),
        },
    )


def test_motor_rows__in_the_rival_direction_are_the_two_loads():
    for rival, n in ((False, 3), (True, 2)):
        effects = planted_effects(SimulationParameters(), rival_direction=rival)
        rows = _motor_rows(strokes(), {str(e["name"]): e for e in effects})
        assert len(rows) == n


def rows_of(ds):
    effects = {str(e["name"]): e for e in planted_effects(SimulationParameters())}
    return pd.DataFrame(_motor_rows(ds, effects))


def test_motor_rows__are_of_the_people_that_the_models_use():
    ds = strokes()
    beyond = np.arange(200) < 60
    few = rows_of(ds.isel(subject=np.flatnonzero(~beyond)))
    assert few["n"].tolist() == [140] * 3
    pd.testing.assert_frame_equal(rows_of(ds.assign(extrapolated=("subject", beyond))), few)


def test_motor_rows__divide_each_side_by_its_slope():
    ds = strokes()
    slope = ds["calibration_slope"] * np.array([1, 1, 0.4, 1.6])
    shrunk = ds.assign(
        brain_pad_corrected=ds["brain_pad_corrected"] * slope, calibration_slope=slope
    )
    pd.testing.assert_frame_equal(rows_of(shrunk), rows_of(ds))


def test_compare_effects__divides_by_the_slope_of_the_people_used():
    ds = strokes(60)
    region = ds["lesion_hemisphere"].values == "L"
    beyond = region & (np.arange(60) < 50)
    slope = xr.where(ds["region"].str.endswith("_L"), 0.5, 0.8) * ds["calibration_slope"]
    ds = ds.assign(calibration_slope=slope.transpose("subject", "region"))
    ds = ds.assign(extrapolated=("subject", beyond))
    n_left, n = int((region & ~beyond).sum()), int((~beyond).sum())
    names = ["SAL_ipsilesional", "SAL_contralesional", "FPN_ipsilesional", "FPN_contralesional"]
    shape = ("region", "term")
    fits = {k: (shape, np.ones((4, 1))) for k in ("estimate", "ci_low", "ci_high")}
    mixed = xr.Dataset(
        {**fits, "n": ("region", [n] * 4)},
        coords={"region": names, "term": ["scale(log10(lesion_volume))"]},
    )
    effects = planted_effects(SimulationParameters())
    effects = [e for e in effects if str(e["name"]) == "ipsilesional_lesion_volume:SAL"]
    (row,) = compare_effects(ds, mixed, effects).to_dict("records")
    assert row["estimate"] == pytest.approx(n / (0.5 * n_left + 0.8 * (n - n_left)))
    assert row["n"] == n


def test_planted_effects__lesion_volume_acts_through_motor_outcome():
    rng = np.random.default_rng(0)
    size = z_score(rng.normal(size=500))
    motor = -0.6 * size + 0.8 * rng.normal(size=500)
    outcome = Outcome(np.empty((500, 0)), size, motor, motor, 0.0)
    p = dataclasses.replace(SimulationParameters())
    found = {e["name"]: e for e in planted_effects(p, rival_direction=True, outcome=outcome)}
    one = found["contralesional_lesion_volume:FPN"]
    b = p.frontoparietal_on_motor
    shift = b * p.deviation_sd / np.sqrt(1 - b**2)
    plain = {e["name"]: e for e in planted_effects(p, rival_direction=True)}
    expected = shift * np.corrcoef(motor, size)[0, 1] + plain[one["name"]]["implied"]
    assert one["implied"] == pytest.approx(expected, abs=1e-4)
    assert one["source"] == "through motor outcome"


def test_to_lesional_sides__keeps_counts():
    assert "tract_count" in to_lesional_sides(strokes())
