"""The generative model at the level of numbers, without images."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from scalebrain.atlas.regions import NETWORKS
from scalebrain.errors import ConfigError
from scalebrain.simulate.factors import (
    PARCELS,
    FieldModel,
    deviation_model,
    offset_model,
    parcel_factors,
)
from scalebrain.simulate.oracle import oracle
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import cohort_effects, draw_people
from scalebrain.simulate.structural import (
    implied_region_effects,
    planted_effects,
    structural_model,
    z_score,
)

PARAMETERS = SimulationParameters()


def strokes(n, seed=3):
    """Inputs of the structural model for n people, loads correlated with volume."""
    rng = np.random.default_rng(seed)
    size = rng.standard_normal(n)
    return {
        "deviation": deviation_model(PARAMETERS).draw(rng, n),
        "hemisphere": np.where(rng.random(n) < 0.5, "L", "R"),
        "lesion_volume": 10 ** (1 + 0.5 * size),
        "cst_load": np.exp(0.6 * size + rng.standard_normal(n)),
        "salience_load": np.exp(0.5 * size + rng.standard_normal(n)),
        "motor_noise": rng.standard_normal(n),
    }


def apply(inputs, **options):
    arguments = {key: value for key, value in inputs.items() if key != "deviation"}
    return structural_model(
        inputs["deviation"], **arguments, **{"parameters": PARAMETERS, **options}
    )


def by_side(deviation, hemisphere, network):
    """Regional deviation on the ipsilesional and contralesional side."""
    factors = parcel_factors()
    names = factors.regions.regions
    left, right = (deviation @ factors.average[names.index(f"{network}_{s}")] for s in "LR")
    on_left = hemisphere == "L"
    return np.where(on_left, left, right), np.where(on_left, right, left)


def slopes(target, *causes):
    design = np.column_stack([np.ones(len(target)), *causes])
    return np.linalg.lstsq(design, target, rcond=None)[0][1:]


def test_deviation_model__gives_every_region_the_sd_and_correlations_of_the_contract():
    covariance = deviation_model(PARAMETERS).region_covariance()
    correlation = covariance / PARAMETERS.deviation_sd**2
    np.testing.assert_allclose(np.diag(covariance), 16, rtol=1e-12)
    between = correlation[np.triu_indices(len(correlation), 1)]
    assert between.min() >= 0.4
    assert between.max() <= 0.6


def test_field_model_draw__has_the_implied_covariance():
    model = deviation_model(PARAMETERS)
    drawn = model.draw(np.random.default_rng(1), 40_000)
    regional = drawn @ parcel_factors().average.T
    np.testing.assert_allclose(np.cov(regional.T), model.region_covariance(), atol=0.6)
    # parcels outside every region vary as much as a region does
    assert drawn[:, parcel_factors().outside].std() == pytest.approx(4, rel=0.03)


def test_field_model_draw__sums_as_a_matrix_product():
    factors = parcel_factors()
    model = FieldModel(0.0, 1.0, np.ones(18), 0.0, 0.0)
    drawn = model.draw(np.random.default_rng(5), 3)
    rng = np.random.default_rng(5)
    rng.standard_normal((3, 1))
    network = rng.standard_normal((3, len(NETWORKS)))
    region = rng.standard_normal((3, 18))
    expected = network @ factors.network_weight.T + region @ factors.region_weight.T
    np.testing.assert_allclose(drawn, expected, atol=1e-12)


def test_deviation_model__impossible_variances_raise():
    parameters = dataclasses.replace(PARAMETERS, deviation_parcel_sd=5.0)
    with pytest.raises(ConfigError, match="deviation_parcel_sd"):
        deviation_model(parameters)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_structural_model__lesion_volume_ages_ipsilesional_regions_as_implied(network):
    inputs = strokes(4000)
    outcome = apply(inputs)
    implied = implied_region_effects(PARAMETERS)
    size = z_score(np.log10(inputs["lesion_volume"]))
    change = outcome.deviation - inputs["deviation"]
    ipsi, contra = by_side(change, inputs["hemisphere"], network)
    assert slopes(ipsi, size)[0] == pytest.approx(implied["ipsilesional"][network], abs=1e-6)
    assert slopes(contra, size)[0] == pytest.approx(implied["contralesional"][network], abs=1e-6)
    # and within sampling error in what a study would see
    ipsi, _ = by_side(outcome.deviation, inputs["hemisphere"], network)
    tolerance = 3.5 * 4 / np.sqrt(len(size))
    assert slopes(ipsi, size)[0] == pytest.approx(implied["ipsilesional"][network], abs=tolerance)


def test_implied_region_effects__stay_in_the_published_range():
    implied = implied_region_effects(PARAMETERS)
    values = np.array(list(implied["ipsilesional"].values()))
    assert values.min() >= 0.54
    assert values.max() <= 0.95
    assert implied["contralesional"]["VLN"] == pytest.approx(-0.37)
    assert sum(value != 0 for value in implied["contralesional"].values()) == 1


def test_structural_model__motor_outcome_has_the_planted_standardized_effects():
    inputs = strokes(20_000)
    outcome = apply(inputs)
    _, contra = by_side(outcome.deviation, inputs["hemisphere"], "FPN")
    causes = [z_score(x) for x in (inputs["cst_load"], inputs["salience_load"], contra)]
    np.testing.assert_allclose(slopes(outcome.motor, *causes), [-0.355, -0.20, 0.20], atol=0.025)
    assert outcome.motor.std() == pytest.approx(1, abs=0.02)
    assert 0 < outcome.explained_variance < 0.5


def test_structural_model__rival_direction_turns_the_arrow():
    inputs = strokes(20_000)
    outcome = apply(inputs, rival_direction=True)
    _, contra = by_side(outcome.deviation, inputs["hemisphere"], "FPN")
    _, before = by_side(inputs["deviation"], inputs["hemisphere"], "FPN")
    loads = [z_score(inputs["cst_load"]), z_score(inputs["salience_load"])]
    assert slopes(z_score(contra), z_score(outcome.motor))[0] == pytest.approx(0.20, abs=0.025)
    # the deviation that was there before the motor outcome has no effect on it
    assert slopes(outcome.motor, *loads, z_score(before))[2] == pytest.approx(0, abs=0.025)


def test_structural_model__motor_score_is_monotone_and_rarely_clipped():
    outcome = apply(strokes(5000))
    inner = (outcome.motor_score > 0) & (outcome.motor_score < 1)
    assert inner.mean() > 0.99
    order = np.argsort(outcome.motor)
    assert (np.diff(outcome.motor_score[order]) >= 0).all()
    assert ((outcome.motor_score >= 0) & (outcome.motor_score <= 1)).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_structural_model__few_strokes_stay_finite(n):
    outcome = apply(strokes(n))
    assert outcome.deviation.shape == (n, len(PARCELS))
    assert np.isfinite(outcome.deviation).all()
    assert np.isfinite(outcome.motor).all()


def test_structural_model__too_much_explained_variance_raises():
    with pytest.raises(ConfigError, match="on_motor"):
        apply(strokes(50), parameters=dataclasses.replace(PARAMETERS, cst_on_motor=-1.5))


def test_planted_effects__name_value_unit_and_source():
    effects = planted_effects(PARAMETERS)
    assert all(set(e) == {"name", "value", "implied", "unit", "source"} for e in effects)
    names = [e["name"] for e in effects]
    assert len(set(names)) == len(names) == 21
    assert "motor:contralesional_deviation:FPN" in names
    rival = [e["name"] for e in planted_effects(PARAMETERS, rival_direction=True)]
    assert "contralesional_deviation:FPN:motor" in rival
    assert "motor:contralesional_deviation:FPN" not in rival


def test_draw_people__ages_cohorts_and_sexes_are_those_of_the_design():
    people = draw_people(300, 200, 6, 0, PARAMETERS)
    references = [p for p in people if p.group == "reference"]
    patients = [p for p in people if p.group == "stroke"]
    assert (len(references), len(patients)) == (300, 200)
    for group, (low, high) in ((references, (45, 82)), (patients, (30, 85))):
        age = np.array([p.age for p in group])
        assert scipy.stats.kstest((age - low) / (high - low), "uniform").pvalue > 0.001
        assert {p.cohort for p in group} == set(range(6))
    icv = {s: np.mean([p.icv for p in people if p.sex == s]) for s in "FM"}
    assert icv["M"] - icv["F"] > 100
    volume = np.array([p.lesion_volume for p in patients])
    assert np.median(volume) == pytest.approx(10, rel=0.35)
    assert np.mean([p.days_post_stroke > 180 for p in patients]) > 0.9
    assert {p.hemisphere for p in patients} == {"L", "R"}


def test_draw_people__a_person_does_not_depend_on_how_many_there_are():
    few = draw_people(3, 2, 2, 7, PARAMETERS)
    many = draw_people(9, 5, 2, 7, PARAMETERS)
    for one, other in ((few[1], many[1]), (few[4], many[10])):
        assert (one.subject, one.age, one.icv) == (other.subject, other.age, other.icv)
        np.testing.assert_array_equal(one.deviation, other.deviation)
    different = draw_people(3, 2, 2, 8, PARAMETERS)
    assert different[1].age != few[1].age


def test_draw_people__reference_and_stroke_sites_can_be_apart():
    parameters = dataclasses.replace(PARAMETERS, controls_at_stroke_sites=False)
    people = draw_people(60, 60, 6, 0, parameters)
    sites = {g: {p.cohort for p in people if p.group == g} for g in ("reference", "stroke")}
    assert sites == {"reference": {0, 1}, "stroke": {2, 3, 4, 5}}


def test_oracle__bounds_what_a_region_can_say():
    found = oracle(PARAMETERS, cohorts=cohort_effects(6, 0, PARAMETERS), seed=0)
    assert list(found["regions"]) == list(parcel_factors().regions.regions)
    for row in found["regions"].values():
        # the deviation alone leaves an error: 0.8 x 4 years, less what shrinking gains
        assert 2.9 < row["mae"] < 3.8
        assert row["mae"] < 0.5 * row["mae_of_mean"]
        assert 0.75 < row["r_pad"] <= row["r_deviation"] + 0.01
        assert row["r_deviation"] < 0.95
    assert found["people"] >= 20_000


def test_oracle__more_noise_is_worse():
    cohorts = cohort_effects(6, 0, PARAMETERS)
    noisy = dataclasses.replace(PARAMETERS, contrast_person_sd=0.05)
    better, worse = (oracle(p, cohorts=cohorts, seed=0)["mean"] for p in (PARAMETERS, noisy))
    assert worse["mae"] > better["mae"] + 0.3
    assert worse["r_deviation"] < better["r_deviation"] - 0.05


def test_offset_model__has_no_network_factor():
    model = offset_model(1.0, 2.0, 0.5)
    drawn = model.draw(np.random.default_rng(0), 20_000)
    left, right = (drawn[:, PARCELS.index(code)] for code in (1, 2))
    assert np.cov(left, right)[0, 1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast_loss": float("nan")}, "finite"),
        ({"bias_sd": -0.1}, "below zero"),
        ({"reference_age": (80.0, 45.0)}, "lowest"),
        ({"volume_loss": {"SMN": 0.1}}, "Give every network"),
        ({"contralesional_network": "XYZ"}, "expected one of"),
        ({"deviation_person_share": 0.95}, "below 1"),
    ],
)
def test_simulation_parameters__bad_values_raise(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PARAMETERS, **change)
