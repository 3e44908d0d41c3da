"""Matched pairs: who is paired, what balances, and what a planted contrast gives."""

import itertools

import numpy as np
import pytest
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.predict import matching
from scalebrain.predict.matched import matched_pairs, nearest_matches
from scalebrain.predict.paired import adjusted_terms, paired_fit, sign_flip_p


def people(n=240, *, effect=-0.5, confounded=0.0, seed=0):
    """Strokes whose load grows with the volume, and whose outcome falls with both."""
    rng = np.random.default_rng(seed)
    log_volume = rng.normal(1, 0.5, n)
    cst = rng.normal(0, 1, n) + 0.8 * (log_volume - 1) / 0.5
    outcome = 0.6 + 0.1 * effect * cst - confounded * (log_volume - 1) + rng.normal(0, 0.08, n)
    return xr.Dataset(
        {
            "lesion_volume": ("subject", 10**log_volume),
            "lesion_hemisphere": ("subject", rng.choice(["L", "R"], n).astype(object)),
            "cst": ("subject", cst),
            "motor_score": ("subject", outcome),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "age": ("subject", rng.uniform(50, 75, n)),
            "cohort": ("subject", np.array([f"c{k % 12}" for k in range(n)], dtype=object)),
        },
    )


def test_matched_pairs__keep_to_the_calipers_and_use_everyone_once():
    ds = people()
    found = matched_pairs(ds, contrast="cst", caliper=0.2, age_caliper=5.0)
    pairs = found["pair_subject"].values
    assert len(np.unique(pairs)) == pairs.size >= 60
    high, low = (ds.sel(subject=list(pairs[:, k])) for k in (0, 1))
    volume = np.log10(ds["lesion_volume"])
    apart = np.log10(high["lesion_volume"].values / low["lesion_volume"].values)
    assert np.abs(apart).max() <= 0.2 * float(volume.std(ddof=1)) * 1.01
    assert np.abs(high["age"].values - low["age"].values).max() <= 5
    assert (high["lesion_hemisphere"].values == low["lesion_hemisphere"].values).all()
    contrast = high["cst"].values - low["cst"].values
    np.testing.assert_allclose(found["contrast"], contrast)
    assert (np.diff(contrast) <= 1e-12).all()
    outcome = high["motor_score"].values - low["motor_score"].values
    np.testing.assert_allclose(found["outcome_difference"], outcome)
    estimate = found["estimate"].sel(effect="difference")
    assert float(estimate) == pytest.approx(outcome.mean())


def test_matched_pairs__are_the_matching_of_largest_total_contrast():
    ds = people(14, seed=3)
    found = matched_pairs(
        ds, contrast="cst", caliper=1.0, age_caliper=20, min_contrast=0.1, min_pairs=1
    )
    volume, age = np.log10(ds["lesion_volume"].values), ds["age"].values
    side, cst = ds["lesion_hemisphere"].values, ds["cst"].values
    reach, least = volume.std(ddof=1), 0.1 * cst.std(ddof=1)
    allowed = {
        (a, b): abs(cst[a] - cst[b])
        for a, b in itertools.combinations(range(14), 2)
        if side[a] == side[b]
        and abs(volume[a] - volume[b]) <= reach
        and abs(age[a] - age[b]) <= 20
        and abs(cst[a] - cst[b]) >= least
    }

    def best(free):
        if not free:
            return 0.0
        first, rest = free[0], free[1:]
        sums = [best(rest)]
        for other in rest:
            if (first, other) in allowed:
                left = tuple(k for k in rest if k != other)
                sums.append(allowed[first, other] + best(left))
        return max(sums)

    assert float(found["contrast"].sum()) == pytest.approx(best(tuple(range(14))))


def test_matched_pairs__take_the_volume_out_of_the_effect():
    ds = people(600, effect=0.0, confounded=0.3, seed=1)
    cst, outcome = ds["cst"].values, ds["motor_score"].values
    assert np.corrcoef(cst, outcome)[0, 1] < -0.4  # larger lesions have larger loads
    found = matched_pairs(ds, contrast="cst")
    before, after = (
        abs(float(found["smd"].sel(stage=stage, covariate="log10_lesion_volume")))
        for stage in ("before", "after")
    )
    assert before > 0.8
    assert after < 0.15
    one = found.sel(effect="difference_adjusted")
    assert float(one["ci_low"]) < 0 < float(one["ci_high"])


def test_matched_pairs__find_a_planted_effect():
    found = matched_pairs(people(500, effect=-0.5, confounded=0.1), contrast="cst")
    slope = found.sel(effect="per_sd_adjusted")
    per_sd = -0.05 * float(people(500)["cst"].std(ddof=1))
    assert float(slope["ci_low"]) < per_sd < float(slope["ci_high"])
    assert float(found["p_permutation"]) < 0.01


def test_matched_pairs__p_is_uniform_without_an_effect():
    p = np.array(
        [
            float(
                matched_pairs(people(120, effect=0.0, seed=s), contrast="cst", n_draws=499)[
                    "p_permutation"
                ]
            )
            for s in range(60)
        ]
    )
    assert 0 <= (p < 0.1).mean() < 0.22
    assert 0.35 < p.mean() < 0.65


def test_sign_flip_p__is_exact_for_few_pairs():
    difference = np.array([0.3, -0.1, 0.4, 0.25, 0.2])
    p, n, exact = sign_flip_p(difference, draws=99, seed=0)
    signs = np.array(list(itertools.product([1, -1], repeat=5)))
    means = np.abs(signs @ difference)
    assert exact
    assert n == 32
    assert p == pytest.approx((means >= abs(difference.sum()) - 1e-12).mean())


def test_matched_pairs__say_which_criterion_leaves_too_few():
    with pytest.raises(StatisticsError, match=r"matched pairs, at least 5.*Way out"):
        matched_pairs(people(20), contrast="cst", caliper=0.01)
    with pytest.raises(MissingVariableError, match="nothing_like_it"):
        matched_pairs(people(40), contrast="nothing_like_it")
    with pytest.raises(ConfigError, match="caliper"):
        matched_pairs(people(40), contrast="cst", caliper=-1)


def test_matched_pairs__do_not_depend_on_the_order_of_subjects():
    ds = people(100)
    order = np.random.default_rng(5).permutation(100)
    first = matched_pairs(ds, contrast="cst")
    again = matched_pairs(ds.isel(subject=order), contrast="cst")
    np.testing.assert_array_equal(first["pair_subject"], again["pair_subject"])
    assert float(first["p_permutation"]) == float(again["p_permutation"])


def test_nearest_matches__are_alike_first_and_say_how_they_differ():
    ds = people(200)
    found = nearest_matches(ds, "sub-007", n=6, contrast="cst")
    own = ds.sel(subject="sub-007")
    other = ds.sel(subject=list(found["subject_matched"].values))
    assert "sub-007" not in other["subject"].values
    np.testing.assert_allclose(found["age_difference"], other["age"].values - float(own["age"]))
    np.testing.assert_allclose(
        found["volume_ratio"], other["lesion_volume"].values / float(own["lesion_volume"])
    )
    np.testing.assert_allclose(found["value_difference"], other["cst"].values - float(own["cst"]))
    inside = found["within_caliper"].values
    assert (np.diff(inside.astype(int)) <= 0).all()
    with pytest.raises(MissingVariableError, match="sub-999"):
        nearest_matches(ds, "sub-999", contrast="cst")


def test_nearest_matches__take_one_scan_of_each_person():
    ds = people(200)
    person = np.array([f"p{k % 100}" for k in range(200)], dtype=object)
    alone = nearest_matches(ds, "sub-007", n=200, contrast="cst")
    own = ds.assign(person=("subject", person))
    found = nearest_matches(own, "sub-007", n=200, contrast="cst")
    picked = [str(s) for s in found["subject_matched"].values]
    of = dict(zip(ds["subject"].values.tolist(), person.tolist(), strict=True))
    named = [of[s] for s in picked]
    assert len(set(named)) == len(named)
    assert "p7" not in named
    # The row of each person that would have come first, in the same order.
    before = [s for s in alone["subject_matched"].values if of[s] != "p7"]
    first = {of[s]: s for s in reversed(before)}
    assert picked == [s for s in before if first[of[s]] == s]
    inside = {of[s] for s in alone["subject_matched"].values[alone["within_caliper"].values]}
    assert int(found["n_within"]) == len(inside - {"p7"}) == int(found["within_caliper"].sum())
    few = nearest_matches(own, "sub-007", n=4, contrast="cst")
    assert list(few["subject_matched"].values) == picked[:4]
    assert int(few["n_within"]) == int(found["n_within"])


def test_matched_pairs__tell_of_several_scales(caplog):
    ds = people(120)
    for names, told in ((["FMA-UE"], False), (["FMA-UE", "NIHSS"], True)):
        scale = np.array([names[k % len(names)] for k in range(120)], dtype=object)
        found = matched_pairs(ds.assign(motor_scale=("subject", scale)), contrast="cst")
        assert bool(found.attrs["scale_note"]) == bool(caplog.messages) == told
    near = nearest_matches(ds.assign(motor_scale=("subject", scale)), "sub-007", contrast="cst")
    assert "NIHSS" in near.attrs["scale_note"]
    assert matched_pairs(ds, contrast="cst").attrs["scale_note"] == ""


def test_matched_pairs__adjusted_flips_do_not_take_volume_for_an_effect():
    plain, adjusted = [], []
    for seed in range(30):
        ds = people(200, effect=0.0, confounded=0.4, seed=seed)
        found = matched_pairs(ds, contrast="cst", caliper=0.5, age_caliper=15, n_draws=199)
        plain.append(float(found["p_permutation"]) < 0.05)
        adjusted.append(float(found["p_permutation_adjusted"]) < 0.05)
    assert np.mean(plain) > 0.25  # the caliper leaves a larger lesion to the larger load
    assert np.mean(adjusted) < 0.17


def test_adjusted_terms__sum_to_the_intercept():
    rng = np.random.default_rng(0)
    others, y = rng.normal(0.5, 1, (30, 2)), rng.normal(1, 1, 30)
    terms = adjusted_terms(y, others)
    fit = paired_fit(y, np.hstack([np.ones((30, 1)), others]))
    assert terms.sum() == pytest.approx(fit.estimate)
    np.testing.assert_allclose(adjusted_terms(y, np.zeros((30, 0))), y / 30)
    assert np.isnan(adjusted_terms(y[:3], others[:3])).all()


def test_matched_pairs__of_too_many_are_greedy_and_say_so(monkeypatch):
    ds = people(150)
    exact = matched_pairs(ds, contrast="cst", caliper=0.5)
    monkeypatch.setattr(matching, "MOST_EXACT", 10)
    greedy = matched_pairs(ds, contrast="cst", caliper=0.5)
    assert exact.attrs["matching"] != greedy.attrs["matching"]
    assert "greed" in greedy.attrs["matching"]
    pairs = greedy["pair_subject"].values
    assert len(np.unique(pairs)) == pairs.size
    total, best = float(greedy["contrast"].sum()), float(exact["contrast"].sum())
    assert best / 2 <= total <= best + 1e-9
