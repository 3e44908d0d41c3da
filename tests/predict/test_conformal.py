import numpy as np
import pytest

from scalebrain.predict.conformal import COHORTS, NO_INTERVAL, PEOPLE, half_width, likeness


def test_half_width__is_the_quantile_over_cohorts_of_equal_weight():
    rng = np.random.default_rng(0)
    sizes = [50, 3, 1, *[4] * 12]
    codes = np.repeat(np.arange(15), sizes)
    residual = rng.random(len(codes))
    width, kind = half_width(residual, codes, 0.9)
    assert kind == COHORTS
    weight = 1 / np.array(sizes)[codes] / 16

    def below(limit):
        return weight[residual <= limit].sum()

    assert below(width) >= 0.9 > below(width - 1e-9)


def test_half_width__of_few_cohorts_pools_people():
    residual, codes = np.arange(1.0, 20.0), np.arange(19) % 4
    assert half_width(residual, codes, 0.9) == (18.0, PEOPLE)
    assert half_width(residual, codes, 0.8)[1] == COHORTS  # 4 / (4 + 1)


@pytest.mark.parametrize(
    ("residual", "codes"),
    [(np.arange(8.0), np.arange(8) % 4), (np.full(30, np.nan), np.arange(30) % 4), ([1.0], [0])],
)
def test_half_width__says_when_there_is_none(residual, codes):
    width, kind = half_width(np.asarray(residual), np.asarray(codes), 0.9)
    assert np.isnan(width)
    assert kind == NO_INTERVAL


@pytest.mark.parametrize(("n_cohorts", "wanted"), [(30, 0.9), (6, 0.9)])
def test_half_width__covers_people_of_new_cohorts(n_cohorts, wanted):
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(1500):
        sizes = rng.integers(2, 20, n_cohorts + 1)
        codes = np.repeat(np.arange(n_cohorts + 1), sizes)
        scale = rng.uniform(0.7, 1.3, n_cohorts + 1)[codes]
        residual = np.abs(scale * rng.normal(size=len(codes)))
        new = codes == n_cohorts
        width, _ = half_width(residual[~new], codes[~new], wanted)
        hits.append((residual[new] <= width).mean())
    error = np.std(hits) / np.sqrt(len(hits))
    assert np.mean(hits) > wanted - 3 * error
    assert np.mean(hits) < wanted + 0.05


def test_likeness__marks_the_few_that_are_unlike():
    rng = np.random.default_rng(0)
    codes = np.arange(400) % 10
    x_train, x = rng.normal(size=(400, 6)), rng.normal(size=(400, 6))
    for values in (x_train, x):
        values[rng.random(values.shape) < 0.1] = np.nan
    names = list("abcdef")
    found = likeness(x_train, codes, x, names)
    flagged = np.array([bool(one) for one in found.reason])
    assert 0 < flagged.mean() < 0.04
    np.testing.assert_array_equal(flagged, found.distance > found.limit)
    x[0], x[1], x[2] = 0, np.nan, 0
    x[0, 2] = -9
    again = likeness(x_train, codes, x, names)
    assert again.reason[0].startswith("c 8.6 SD below their mean: distance")
    assert "no predictor is known" in again.reason[1]
    assert again.reason[2] == ""
    assert again.limit == found.limit


def test_likeness__compares_with_other_cohorts_and_units_do_not_matter():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(12), 20)
    level = rng.normal(size=(13, 5))
    x_train = 2 * level[codes] + rng.normal(size=(240, 5))
    x = 2 * level[12] + rng.normal(size=(50, 5))
    found = likeness(x_train, codes, x, list("abcde"))
    ignoring = likeness(x_train, np.arange(240), x, list("abcde"))
    assert ignoring.limit < found.limit  # cohort mates are near
    scaled = likeness(x_train * 1e6, codes, x * 1e6, list("abcde"))
    np.testing.assert_allclose(scaled.distance, found.distance)
    one = likeness(x_train, np.zeros(240), x, list("abcde"))
    assert np.isfinite(one.limit)
    constant = likeness(np.ones((9, 2)), np.arange(9) % 3, np.ones((2, 2)), ["a", "b"])
    assert constant.reason == ["", ""]


def test_likeness__what_nobody_in_training_has_does_not_count():
    rng = np.random.default_rng(0)
    codes = np.arange(200) % 10
    x_train, x = rng.normal(size=(200, 4)), rng.normal(size=(50, 4))
    x_train[:, 3] = np.nan
    without = likeness(x_train, codes, np.where(np.arange(4) == 3, np.nan, x), list("abcd"))
    x[:, 3] = rng.normal(120, 20, 50)
    found = likeness(x_train, codes, x, list("abcd"))
    np.testing.assert_array_equal(found.distance, without.distance)
    assert found.reason == without.reason
    assert sum(map(bool, found.reason)) < 5
