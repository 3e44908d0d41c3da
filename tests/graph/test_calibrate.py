import numpy as np

from scalebrain.graph.calibrate import conformal_radius, fit_bias, region_metrics


def test_fit_bias__finds_the_line_despite_outliers():
    rng = np.random.default_rng(0)
    age = rng.uniform(45, 80, 200)
    predicted = (age + 20 - 0.3 * age + rng.normal(0, 1, 200))[:, None]
    predicted[:10] += 60
    intercept, slope = fit_bias(age, predicted)
    np.testing.assert_allclose(slope, -0.3, atol=0.03)
    np.testing.assert_allclose(intercept, 20, atol=2)


def test_fit_bias__of_errors_that_lie_on_a_line_is_that_line():
    age = np.random.default_rng(0).uniform(45, 80, 200)
    intercept, slope = fit_bias(age, np.stack([age + 3, 1.2 * age - 3], axis=1))
    np.testing.assert_allclose(slope, [0, 0.2], atol=1e-9)
    np.testing.assert_allclose(intercept, [3, -3], atol=1e-7)


def test_conformal_radius__is_the_finite_sample_quantile():
    residuals = np.arange(1.0, 20.0)[::-1, None]  # 19 residuals: the 18th smallest at 90%
    assert conformal_radius(residuals, 0.9)[0] == 18
    assert np.isinf(conformal_radius(residuals[:5], 0.9)).all()


def test_conformal_radius__a_rank_that_is_whole_is_not_rounded_up():
    residuals = np.arange(1.0, 100.0)[:, None]  # 100 * 0.55 is 55.00000000000001 in floats
    assert conformal_radius(residuals, 0.55)[0] == 55


def test_conformal_radius__counts_people_not_scans():
    rng = np.random.default_rng(0)
    errors = rng.uniform(0, 10, (39, 3))
    once = conformal_radius(errors, 0.9)
    np.testing.assert_array_equal(once, np.sort(errors, axis=0)[35])
    person = np.arange(39)
    np.testing.assert_array_equal(conformal_radius(errors, 0.9, person=person), once)
    thrice = conformal_radius(np.repeat(errors, 3, axis=0), 0.9, person=np.repeat(person, 3))
    np.testing.assert_array_equal(thrice, once)
    # someone with many scans of large errors is one person
    many = np.concatenate([errors, np.full((400, 3), 99.0)])
    one_more = conformal_radius(many, 0.9, person=np.append(person, np.full(400, 39)))
    assert (one_more < 99).all()
    assert np.isinf(conformal_radius(np.ones((90, 1)), 0.9, person=np.arange(90) % 5)).all()


def test_conformal_radius__covers_new_subjects():
    rng = np.random.default_rng(1)
    covered = [
        (
            np.abs(rng.normal(size=200)) <= conformal_radius(np.abs(rng.normal(size=(60, 1))), 0.9)
        ).mean()
        for _ in range(200)
    ]
    assert 0.89 < np.mean(covered) < 0.92


def test_region_metrics__baseline_is_the_mean_age_of_the_other_folds():
    age = np.array([50.0, 60.0, 70.0, 80.0])
    fold = np.array([0, 0, 1, 1])
    metrics = region_metrics(age, age[:, None] + np.array([1.0]), fold, ("A_L",))["A_L"]
    assert metrics["mae"] == 1
    assert metrics["mae_mean"] == 20
    assert metrics["n"] == metrics["n_people"] == 4
    pairs = region_metrics(age, age[:, None], fold, ("A_L",), person=np.array([3, 3, 5, 5]))
    assert (pairs["A_L"]["n"], pairs["A_L"]["n_people"]) == (4, 2)
