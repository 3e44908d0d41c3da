"""ComBat on arrays: recorded numbers of the peers, and what has to hold on simulated sites."""

import json
from pathlib import Path

import numpy as np
import pytest

from scalebrain.errors import StatisticsError
from scalebrain.harmonization.combat import (
    ADAPTED,
    MEAN_ONLY,
    REFERENCE,
    UNCHANGED,
    CombatSettings,
    fit_combat,
)
from scalebrain.harmonization.splines import (
    SplineBasis,
    gcv_weights,
    penalized_fit,
    weighted_penalty,
)

RECORD = json.loads(
    (Path(__file__).parent.parent / "reference" / "combat_reference.json").read_text()
)
FEATURES = [f"f{k}" for k in range(6)]
GAM = {"covariates": ("sex",), "smooth": ("age",), "penalty": "kfold"}
OPTIONS = {
    "combat": {},
    "combat_no_covariates": {"covariates": ()},
    "combat_no_eb": {"empirical_bayes": False},
    "combat_reference": {"reference_batch": "site1"},
    "combat_reference_no_eb": {"reference_batch": "site2", "empirical_bayes": False},
    "harmonize": {},
    "harmonize_no_eb": {"empirical_bayes": False},
    "harmonize_reference": {"reference_batch": "site3"},
    "gam": GAM,
    "gam_no_eb": {**GAM, "empirical_bayes": False},
    "gam_reference": {**GAM, "reference_batch": "site1"},
}


def people(name):
    part = RECORD[name]
    columns = {"age": np.array(part["age"]), "sex": np.where(part["sex"], "M", "F")}
    return np.array(part["data"]), np.array(part["SITE"]), columns


def fit(values, labels, columns, **options):
    return fit_combat(
        values,
        labels,
        columns,
        settings=CombatSettings("site", **options),
        features=[f"f{k}" for k in range(values.shape[1])],
    )


def simulate(n_site=6, size=40, n_feature=12, seed=0):
    """Sites that differ in age, shift and scale; truth is what no site has touched."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([f"s{k}" for k in range(n_site)], size)
    code = np.repeat(np.arange(n_site), size)
    age = rng.uniform(45, 75, len(labels)) + 2 * code
    slope = rng.normal(-0.1, 0.02, n_feature)
    kept = age[:, None] * slope
    noise = rng.normal(0, 1, (len(labels), n_feature))
    shift = rng.normal(0, 2, (n_site, n_feature))
    scale = rng.uniform(0.5, 2, (n_site, n_feature))
    return kept + shift[code] + scale[code] * noise, labels, {"age": age}, code, slope


@pytest.mark.parametrize("name", OPTIONS)
def test_fit_combat__equals_the_recorded_numbers_of_the_peers(name):
    values, labels, columns = people("train")
    model = fit(values, labels, columns, **{"covariates": ("age", "sex"), **OPTIONS[name]})
    expected = RECORD["cases"][name]
    made, _ = model.apply(values, labels, columns)
    if isinstance(expected, dict):
        more, _ = model.apply(*people("more"))
        np.testing.assert_allclose(more, expected["apply"], rtol=0, atol=1e-9)
        expected = expected["fit"]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-9)


def test_fit_combat__leaves_no_effect_of_the_batch_and_keeps_that_of_age():
    values, labels, columns, code, slope = simulate(size=150)
    made, _ = fit(values, labels, columns, covariates=("age",)).apply(values, labels, columns)

    def between(data):
        x = np.column_stack([np.ones(len(code)), columns["age"]])
        residual = data - x @ np.linalg.lstsq(x, data, rcond=None)[0]
        means = np.array([residual[code == k].mean(axis=0) for k in range(6)])
        spread = np.array([residual[code == k].std(axis=0) for k in range(6)])
        return np.abs(means).max(), (spread.max(axis=0) / spread.min(axis=0)).max(), x

    shift, ratio, x = between(made)
    before, ratio_before, _ = between(values)
    assert before > 2
    assert ratio_before > 2
    assert shift < 0.1
    assert ratio < 1.25
    kept = np.linalg.lstsq(x, made, rcond=None)[0][1]
    np.testing.assert_allclose(kept, slope, atol=0.03)  # the standard error is about 0.007
    without, _ = fit(values, labels, {}).apply(values, labels, {})
    lost = np.linalg.lstsq(x, without, rcond=None)[0][1]
    assert np.abs(lost - slope).mean() > 2 * np.abs(kept - slope).mean()


def test_fit_combat__smooth_keeps_a_bent_effect():
    values, labels, columns, _, _ = simulate(n_feature=4, seed=2)
    bent = 0.004 * (columns["age"] - 60) ** 2
    made, _ = fit(values + bent[:, None], labels, columns, smooth=("age",)).apply(
        values + bent[:, None], labels, columns
    )
    x = np.column_stack([np.ones(len(bent)), columns["age"], columns["age"] ** 2])
    curve = np.linalg.lstsq(x, made, rcond=None)[0][2]
    np.testing.assert_allclose(curve, 0.004, atol=0.002)


def test_fit_combat__gcv_does_not_depend_on_the_unit_or_the_order():
    values, labels, columns, _, _ = simulate(n_site=3, n_feature=3)
    first, _ = fit(values, labels, columns, smooth=("age",)).apply(values, labels, columns)
    days = {"age": columns["age"] * 365.25}
    again, _ = fit(values, labels, days, smooth=("age",)).apply(values, labels, days)
    np.testing.assert_allclose(again, first, atol=1e-7)
    order = np.random.default_rng(1).permutation(len(labels))
    turned = {"age": columns["age"][order]}
    model = fit(values[order], labels[order], turned, smooth=("age",))
    mixed, _ = model.apply(values[order], labels[order], turned)
    np.testing.assert_allclose(mixed, first[order], atol=1e-8)


def test_penalized_fit__equals_statsmodels_gam():
    from statsmodels.gam.api import BSplines, GLMGam

    rng = np.random.default_rng(3)
    age = rng.uniform(40, 80, 90)
    y = np.sin(age / 8) + rng.normal(0, 0.3, 90)
    smoother = BSplines(age[:, None], df=[10], degree=[3])
    basis = SplineBasis.of(age, "age")
    np.testing.assert_allclose(basis(age), smoother.basis, atol=1e-12)
    np.testing.assert_allclose(basis.penalty(), smoother.penalty_matrices[0], atol=1e-12)
    design = np.column_stack([np.ones(90), basis(age)])
    penalty = np.zeros((10, 10))
    penalty[1:, 1:] = basis.penalty()
    for weight in (1.0, 300.0):
        gam = GLMGam(y, exog=np.ones((90, 1)), smoother=smoother, alpha=[weight]).fit()
        ours = penalized_fit(design, y[:, None], weighted_penalty([penalty], [weight]))
        np.testing.assert_allclose(ours[:, 0], gam.params, atol=1e-8)
    chosen = gcv_weights(design, y[:, None], [penalty])[0, 0]

    def score(weight):
        made = GLMGam(y, exog=np.ones((90, 1)), smoother=smoother, alpha=[weight]).fit()
        return ((y - made.fittedvalues) ** 2).sum() / (90 - made.edf.sum()) ** 2

    assert score(chosen) <= 1.02 * min(score(chosen * 3), score(chosen / 3))


def test_spline_basis__goes_on_as_a_straight_line():
    basis = SplineBasis.of(np.linspace(40, 80, 50), "age")
    low = basis(np.array([20.0, 30.0, 40.0]))
    np.testing.assert_allclose(low[0] - low[1], low[1] - low[2], atol=1e-12)
    near = (basis(np.array([40 + 1e-6])) - basis(np.array([40.0]))) / 1e-6
    np.testing.assert_allclose((low[2] - low[1]) / 10, near[0], atol=1e-5)


def test_spline_basis__refuses_few_distinct_values():
    with pytest.raises(StatisticsError, match=r"smooth 'age'.*distinct values"):
        SplineBasis.of(np.repeat([50.0, 60.0, 70.0], 20), "age")


def test_fit_combat__no_shrinkage_equals_mean_and_variance():
    values, labels, _, code, _ = simulate(n_site=3)
    made, _ = fit(values, labels, {}, empirical_bayes=False).apply(values, labels, {})
    for k in range(3):
        np.testing.assert_allclose(made[code == k].mean(axis=0), values.mean(axis=0), atol=1e-9)
    spread = np.array([made[code == k].std(axis=0, ddof=1) for k in range(3)])
    np.testing.assert_allclose(spread, spread[[0, 0, 0]], rtol=1e-9)


def test_fit_combat__one_subject_gets_a_mean_only():
    values, labels, columns, _, _ = simulate(n_site=3)
    labels[-1] = "x"
    model = fit(values, labels, columns, covariates=("age",))
    made, words = model.apply(values, labels, columns)
    assert words[-1] == MEAN_ONLY
    assert (words[:-1] != MEAN_ONLY).all()
    k = model.batches.index("x")
    assert (model.scale[k] == 1).all()
    fitted = model.mean + columns["age"][-1:, None] @ model.coefficients
    raw = (values[-1] - fitted[0]) / np.sqrt(model.variance)
    center, between = raw.mean(), raw.var(ddof=1)
    shift = (between * raw + center) / (between + 1)
    np.testing.assert_allclose(model.shift[k], shift, rtol=1e-9)
    np.testing.assert_allclose(made[-1], values[-1] - shift * np.sqrt(model.variance), rtol=1e-9)
    with pytest.raises(StatisticsError, match="x has one subject: without empirical Bayes"):
        fit(values, labels, columns, empirical_bayes=False)
    with pytest.raises(StatisticsError, match="reference_batch 'x' has one subject"):
        fit(values, labels, columns, reference_batch="x")


def test_apply__reference_batch_stays_to_the_bit():
    values, labels, columns, code, _ = simulate()
    model = fit(values, labels, columns, covariates=("age",), reference_batch="s2")
    made, words = model.apply(values, labels, columns)
    assert np.array_equal(made[code == 2], values[code == 2])
    assert (words[code == 2] == REFERENCE).all()
    assert not np.array_equal(made[code == 1], values[code == 1])


def test_apply__unseen_batch():
    values, labels, columns, code, _ = simulate()
    old = code < 5
    part = {"age": columns["age"][old]}
    rest = (values[~old], labels[~old], {"age": columns["age"][~old]})
    with pytest.raises(StatisticsError, match=r"s5 \(40\) was not in the fit.*unseen='adapt'"):
        fit(values[old], labels[old], part, covariates=("age",)).apply(*rest)
    model = fit(values[old], labels[old], part, covariates=("age",), unseen="unchanged")
    made, words = model.apply(*rest)
    assert np.array_equal(made, rest[0])
    assert set(words) == {UNCHANGED}
    model = fit(values[old], labels[old], part, covariates=("age",), unseen="adapt")
    made, words = model.apply(*rest)
    assert set(words) == {ADAPTED}
    fitted = model.mean + rest[2]["age"][:, None] * model.coefficients[0]
    np.testing.assert_allclose(made.mean(axis=0), fitted.mean(axis=0), atol=0.15)
    few = tuple(
        part[:6] if isinstance(part, np.ndarray) else {"age": part["age"][:6]} for part in rest
    )
    with pytest.raises(StatisticsError, match=r"s5 \(6\).*min_adapt=10"):
        model.apply(*few)


def test_apply__adapting_a_batch_of_the_fit_anew_gives_its_own_numbers():
    values, labels, columns, _, _ = simulate()
    model = fit(values, labels, columns, covariates=("age",), unseen="adapt")
    renamed = np.where(labels == "s3", "new", labels)
    made, _ = model.apply(values, renamed, columns)
    expected, _ = model.apply(values, labels, columns)
    np.testing.assert_allclose(made, expected, atol=1e-10)


def test_fit_combat__missing_values_stay_and_touch_no_other_feature():
    values, labels, columns, code, _ = simulate(n_feature=5)
    gaps = values.copy()
    gaps[::7, 1] = np.nan
    gaps[code == 4, 3] = np.nan
    options = {"covariates": ("age",), "empirical_bayes": False}
    model = fit(gaps, labels, columns, **options)
    made, _ = model.apply(gaps, labels, columns)
    assert np.array_equal(np.isnan(made), np.isnan(gaps))
    whole, _ = fit(values, labels, columns, **options).apply(values, labels, columns)
    np.testing.assert_allclose(made[:, [0, 2, 4]], whole[:, [0, 2, 4]], atol=1e-9)
    some = code != 4
    alone, _ = fit(
        values[some][:, 3:4], labels[some], {"age": columns["age"][some]}, **options
    ).apply(values[some][:, 3:4], labels[some], {"age": columns["age"][some]})
    np.testing.assert_allclose(made[some, 3], alone[:, 0], atol=1e-9)
    with pytest.raises(StatisticsError, match="s4 had no value of 'f3' in the fit"):
        model.apply(values, labels, columns)
    assert np.isfinite(
        fit(gaps, labels, columns, covariates=("age",)).apply(gaps, labels, columns)[0][
            np.isfinite(gaps)
        ]
    ).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, code: {"age": code * 1.0}, r"rank 6, not 7: 'age' is the same within every"),
        (
            lambda c, code: {"age": c["age"], "years": 2 * c["age"] + 3 * code},
            r"rank 7, not 8: '(age|years)' is a combination of 'site' \+ '(age|years)'",
        ),
        (lambda c, code: {"age": np.full(len(code), 5.0)}, "'age' has the same value in all"),
    ],
)
def test_fit_combat__refuses_confounded_covariates(change, message):
    values, labels, columns, code, _ = simulate()
    made = change(columns, code)
    with pytest.raises(StatisticsError, match=message):
        fit(values, labels, made, covariates=tuple(made))


def test_fit_combat__refuses_what_cannot_be_fitted():
    values, labels, columns, code, _ = simulate(n_site=3)
    flat = values.copy()
    flat[:, 2] = 7.0
    with pytest.raises(StatisticsError, match="'f2' does not vary beyond 'site'"):
        fit(flat, labels, {})
    flat = values.copy()
    flat[code == 1, 4] = 3.0
    with pytest.raises(StatisticsError, match="'f4' does not vary among the people of 'site' s1"):
        fit(flat, labels, {})
    with pytest.raises(StatisticsError, match="infinite"):
        fit(np.where(values > 0, np.inf, values), labels, {})
    with pytest.raises(StatisticsError, match="'f0' is missing in everyone"):
        fit(np.where(np.arange(12) == 0, np.nan, values), labels, {})
    with pytest.raises(StatisticsError, match="one 'site'"):
        fit(values[code == 0], labels[code == 0], {})
    with pytest.raises(StatisticsError, match="reference_batch 'x' is not among"):
        fit(values, labels, {}, reference_batch="x")
    with pytest.raises(StatisticsError, match="more subjects than columns"):
        fit(values[::30], labels[::30], {"age": columns["age"][::30]}, covariates=("age",))
    with pytest.raises(StatisticsError, match="batch and a covariate"):
        CombatSettings("site", covariates=("site",))
    with pytest.raises(StatisticsError, match="unseen must be one of"):
        CombatSettings("site", unseen="drop")


def test_fit_combat__scales_and_shifts_with_the_unit():
    values, labels, columns, _, _ = simulate(n_site=4)
    first, _ = fit(values, labels, columns, covariates=("age",)).apply(values, labels, columns)
    other = 1e6 * values + 1e9
    made, _ = fit(other, labels, columns, covariates=("age",)).apply(other, labels, columns)
    np.testing.assert_allclose((made - 1e9) / 1e6, first, atol=1e-6)


def test_fit_combat__one_feature_has_nothing_to_shrink_to():
    values, labels, columns, _, _ = simulate(n_feature=1)
    first, _ = fit(values, labels, columns).apply(values, labels, columns)
    second, _ = fit(values, labels, columns, empirical_bayes=False).apply(values, labels, columns)
    assert np.array_equal(first, second)
    twice, _ = fit(np.hstack([values, values]), labels, columns).apply(
        np.hstack([values, values]), labels, columns
    )
    np.testing.assert_allclose(twice[:, :1], first, rtol=1e-9)  # no spread to shrink over
    labels[-1] = "x"
    with pytest.raises(StatisticsError, match="'f0': 'site' x has one value, of which nothing"):
        fit(values, labels, columns)


def test_fit_combat__one_value_of_a_feature_is_never_all_of_its_shift():
    values, labels, columns, code, _ = simulate(n_site=3)
    values[np.flatnonzero(code == 1)[1:], 2] = np.nan
    assert np.isfinite(fit(values, labels, columns).shift).all()  # shrunk to the other features
    with pytest.raises(StatisticsError, match="'f2': 'site' s1 has one value"):
        fit(values, labels, columns, empirical_bayes=False)


@pytest.mark.parametrize("kind", [np.int64, np.float32, int])
def test_fit_combat__a_number_is_a_number_in_any_box(kind):
    values, labels, columns, _, _ = simulate(n_site=3)
    age = np.round(columns["age"])
    boxed = np.array([kind(one) for one in age] + [None], dtype=object)[:-1]
    expected = fit(values, labels, {"age": age}, covariates=("age",))
    found = fit(values, labels, {"age": boxed}, covariates=("age",))
    np.testing.assert_allclose(found.shift, expected.shift, rtol=1e-6)
    with pytest.raises(StatisticsError, match="'age' was a number in the fit and is text"):
        found.apply(values, labels, {"age": np.where(age > 60, "old", "young")})
