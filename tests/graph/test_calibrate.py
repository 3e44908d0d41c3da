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


def test_conformal_radius__is_the_finite_sample_quantile():
    residuals = np.arange(1.0, 20.0)[::-1, None]  # 19 residuals: the 18th smallest at 90%
    assert conformal_radius(residuals, 0.9)[0] == 18
    assert np.isinf(conformal_radius(residuals[:5], 0.9)).all()


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
    assert metrics["n"] == 4
