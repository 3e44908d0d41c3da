"""Matched pairs: who is paired, what balances, and what a planted contrast gives."""

import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.predict import matching
from scalebrain.predict.matchable import couples
from scalebrain.predict.matched import matched_pairs, nearest_matches
from scalebrain.predict.paired import (
    adjusted_terms,
    balance,
    paired_fit,
    sign_flip_p,
    weighted_median,
)


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
    with pytest.raises(MissingVariableError, match=r"is missing.*add 'nihss' with ds\.assign, or"):
        matched_pairs(people(40), contrast="cst", outcome="nihss")
    with pytest.raises(ConfigError, match="caliper"):
        matched_pairs(people(40), contrast="cst", caliper=-1)


def test_matched_pairs__do_not_depend_on_the_order_of_subjects():
    ds = people(100)
    order = np.random.default_rng(5).permutation(100)
    first = matched_pairs(ds, contrast="cst")
    again = matched_pairs(ds.isel(subject=order), contrast="cst")
    np.testing.assert_array_equal(first["pair_subject"], again["pair_subject"])
    assert float(first["p_permutation"]) == float(again["p_permutation"])


def tied(n=100):
    """Loads of which half are zero, and whole years: many pairs are equally good."""
    ds = people(n)
    load = np.maximum(ds["cst"], 0).round(1)
    return ds.assign(cst=load).assign_coords(age=ds["age"].round())


@pytest.mark.parametrize("seed", range(3))
def test_matched_pairs__of_ties_do_not_depend_on_the_order_of_subjects(seed):
    ds = tied()
    order = np.random.default_rng(seed).permutation(100)
    first = matched_pairs(ds, contrast="cst")
    again = matched_pairs(ds.isel(subject=order), contrast="cst")
    xr.testing.assert_identical(first, again)


def test_matched_pairs__do_not_depend_on_names():
    ds = people(100)
    names = ds["subject"].values[np.random.default_rng(0).permutation(100)]
    before = dict(zip(names.tolist(), ds["subject"].values.tolist(), strict=True))
    first = matched_pairs(ds, contrast="cst")
    again = matched_pairs(ds.assign_coords(subject=names), contrast="cst")
    old = [[before[name] for name in pair] for pair in again["pair_subject"].values.tolist()]
    assert first["pair_subject"].values.tolist() == old


def test_matched_pairs__text_may_be_categories():
    ds = people(100)
    side = ds["lesion_hemisphere"].values.copy()
    side[4] = None
    texts = ds.assign(lesion_hemisphere=("subject", side))
    kinds = ds.assign(lesion_hemisphere=("subject", pd.Categorical(side, categories=["R", "L"])))
    first, again = (matched_pairs(one, contrast="cst") for one in (texts, kinds))
    assert again["pair_subject"].values.tolist() == first["pair_subject"].values.tolist()


def test_best_matching__takes_the_most_alike_of_equally_good_ones():
    rng = np.random.default_rng(2)
    n = 12
    one = matching.Candidates(
        np.zeros(n, dtype=np.int64),
        rng.normal(1, 0.3, n),
        rng.uniform(50, 60, n),
        rng.integers(0, 3, n).astype(np.float64),
        np.arange(n),
    )
    pairs = matching.admissible_pairs(one, caliper=0.5, age_caliper=6, min_contrast=0.5)
    allowed = {
        frozenset((a, b)): (c, -d)
        for a, b, c, d in zip(pairs.high, pairs.low, pairs.contrast, pairs.distance, strict=True)
    }
    for (a, b), (_, less) in ((tuple(key), value) for key, value in allowed.items()):
        apart = abs(one.log_volume[a] - one.log_volume[b]) / 0.5 + abs(one.age[a] - one.age[b]) / 6
        assert less == pytest.approx(-apart)

    def best(free):
        if not free:
            return (0.0, 0.0)
        first, rest = free[0], free[1:]
        sums = [best(rest)]
        for other in rest:
            if frozenset((first, other)) in allowed:
                own = allowed[frozenset((first, other))]
                left = best(tuple(k for k in rest if k != other))
                sums.append((own[0] + left[0], own[1] + left[1]))
        return max(sums)

    chosen, exact = matching.best_matching(one, pairs)
    assert exact
    contrast, less = best(tuple(range(n)))
    assert pairs.contrast[chosen].sum() == pytest.approx(contrast)
    assert pairs.distance[chosen].sum() == pytest.approx(-less)


def test_matched_pairs__take_scans_for_parts_of_people():
    ds = people(120)
    ds = ds.assign(person=("subject", [f"p{k}" for k in range(120)]))
    again = ds.isel(subject=slice(0, 50)).assign_coords(subject=[f"z-{k}" for k in range(50)])
    alone = matched_pairs(ds, contrast="cst")
    both = matched_pairs(xr.concat([ds, again], "subject"), contrast="cst")
    for name in ("n_people", "n_admissible", "n_pairs", "pairs_left"):
        np.testing.assert_array_equal(alone[name], both[name])
    assert alone.attrs["rows_used"] == both.attrs["rows_used"]
    for name in ("contrast_sd", "volume_ratio"):
        assert alone.attrs[name] == pytest.approx(both.attrs[name])
    for name in ("smd", "variance_ratio", "estimate"):
        np.testing.assert_allclose(alone[name], both[name])


def test_couples__count_two_people_once():
    person, stratum = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 0, 0, 1])
    assert couples(person, stratum) == len({(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)})
    assert couples(person, np.zeros(7, dtype=np.int64)) == 6


def test_weighted_median_and_balance__of_equal_weights_are_the_ordinary_ones():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 8):
        values = rng.normal(size=n)
        assert weighted_median(values, np.ones(n)) == pytest.approx(np.median(values))
        twice = np.concatenate([values, values])
        assert weighted_median(twice, np.full(2 * n, 0.5)) == pytest.approx(np.median(values))
    high, low = rng.normal(0.5, 1, (9, 1)), rng.normal(0, 2, (11, 1))
    smd, ratio = balance((high, low), (high, low))[0, :, 0]
    spread = np.sqrt((high.var(ddof=1) + low.var(ddof=1)) / 2)
    assert smd == pytest.approx((high.mean() - low.mean()) / spread)
    assert ratio == pytest.approx(high.var(ddof=1) / low.var(ddof=1))


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


@pytest.mark.parametrize("n", [5, 8])
def test_sign_flip_p__of_few_adjusted_pairs_is_not_too_small(n):
    rng = np.random.default_rng(1)
    p = []
    for _ in range(600):
        others = rng.normal([0.3, 0.0], 1, (n, 2))
        y = others @ [1.0, 0.5] + rng.normal(size=n)
        p.append(sign_flip_p(adjusted_terms(y, others), others, draws=99, seed=0)[0])
    for level in (0.1, 0.2):
        assert (np.array(p) <= level).mean() < level + 0.02


def test_sign_flip_p__adjusted_is_that_of_every_flip_over_its_standard_error():
    rng = np.random.default_rng(4)
    others, y = rng.normal(0.4, 1, (9, 2)), rng.normal(0.5, 1, 9)
    p, n, exact = sign_flip_p(adjusted_terms(y, others), others, draws=99, seed=0)
    left = np.eye(9) - others @ np.linalg.inv(others.T @ others) @ others.T
    weight = np.linalg.pinv(np.hstack([np.ones((9, 1)), others]))[0]
    ratio = []
    for signs in itertools.product([1, -1], repeat=9):
        flipped = left @ (np.array(signs) * (left @ weight))
        ratio.append(abs(flipped @ y) / np.linalg.norm(flipped))
    assert exact
    assert n == 512
    assert p == pytest.approx(np.mean(np.array(ratio) >= ratio[0] - 1e-9))
    # a multiple of pairs alone is left as it is
    assert sign_flip_p(y, np.zeros((9, 0)), draws=9, seed=0) == sign_flip_p(y, draws=9, seed=0)


@pytest.mark.parametrize("n_cohorts", [5, 8])
def test_paired_fit__covers_with_few_cohorts(n_cohorts):
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(400):
        level, load = rng.normal(0, 0.5, n_cohorts), rng.normal(0, 1, n_cohorts)
        of = rng.integers(0, n_cohorts, (60, 2))
        value = load[of] + rng.normal(0, 0.5, (60, 2))
        of = np.take_along_axis(of, np.argsort(-value, axis=1), axis=1)
        y = level[of[:, 0]] - level[of[:, 1]] + rng.normal(0, 0.3, 60)
        fit = paired_fit(y, np.ones((60, 1)), of)
        inside.append(fit.ci_low <= 0 <= fit.ci_high)
    assert np.mean(inside) >= 0.92


def test_paired_fit__leaves_each_cohort_out():
    rng = np.random.default_rng(5)
    own = np.repeat(np.arange(6), 7)
    x = np.stack([np.ones(42), rng.normal(size=42)], axis=1)
    y = rng.normal(size=6)[own] + rng.normal(0, 0.1, 42)
    fit = paired_fit(y, x, np.stack([own, own], axis=1))
    without = [np.linalg.lstsq(x[own != k], y[own != k])[0][0] for k in range(6)]
    assert fit.kind == "cluster-robust over cohorts"
    assert fit.se**2 == pytest.approx(5 / 6 * ((np.array(without) - fit.estimate) ** 2).sum())


@pytest.mark.parametrize(
    "options",
    [{"n_listed": -1}, {"n_draws": 0}, {"min_pairs": 0}, {"seed": -1}, {"min_pairs": 2.5}],
)
def test_matched_pairs__refuse_counts_that_are_none(options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} must be . or more, .*got {value}"):
        matched_pairs(people(40), contrast="cst", **options)


def test_nearest_matches__refuse_a_count_below_one():
    with pytest.raises(ConfigError, match=r"n must be 1 or more, .*got -1"):
        nearest_matches(people(40), "sub-007", n=-1, contrast="cst")


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


def test_matched_pairs__a_cohort_that_is_named_has_to_be_there():
    with pytest.raises(MissingVariableError, match=r"'site' is missing.*'site' with ds\.assign"):
        matched_pairs(people(60), contrast="cst", cohort="site")
    with pytest.raises(MissingVariableError, match="'site' is missing"):
        nearest_matches(people(60), "sub-007", contrast="cst", cohort="site")
    found = matched_pairs(people(120).drop_vars("cohort"), contrast="cst")
    assert "without a cohort" not in found.attrs["rows_used"]


def test_matched_pairs__tell_of_people_without_a_cohort(caplog):
    ds = people(120)
    ds["cohort"].values[::4] = ""
    found = matched_pairs(ds, contrast="cst")
    assert "30 without a cohort, who are taken for one" in found.attrs["rows_used"]
    assert "name their cohorts" in caplog.text


@pytest.mark.parametrize(
    ("name", "codes", "match"),
    [
        ("sex", ("female", "male"), "sex: expected F, M or missing, got 'female', 'male' in 60"),
        ("sex", (0.0, 1.0), "got '0.0', '1.0' in 60 subjects, as sub-000. Write F or M"),
        ("lesion_hemisphere", ("left", "right"), "got 'left', 'right' in 60.*Write L or R"),
        ("lesion_hemisphere", (1, 2), "unknown or missing, got '1', '2' in 60 subjects"),
    ],
)
def test_matched_pairs__refuse_codes_that_are_not_of_the_store(name, codes, match):
    ds = people(60).assign({name: ("subject", np.array(codes)[np.arange(60) % 2])})
    with pytest.raises(StatisticsError, match=match):
        matched_pairs(ds, contrast="cst")


@pytest.mark.parametrize(("name", "code"), [("sex", "O"), ("lesion_hemisphere", "left")])
def test_matched_pairs__codes_of_people_who_are_not_used_stop_nothing(name, code):
    ds = people(60)
    sex = np.array(["F", "M"])[np.arange(60) % 2]
    ds = ds.assign(included=("subject", np.arange(60) != 1), sex=("subject", sex))
    ds["motor_score"].values[0] = np.nan
    ds["age"].values[2] = np.nan
    odd = ds[name].values.astype(object)
    odd[:3] = code
    changed = ds.assign({name: ("subject", odd)})
    xr.testing.assert_equal(
        matched_pairs(changed, contrast="cst"), matched_pairs(ds, contrast="cst")
    )
    with pytest.raises(StatisticsError, match=f"{name}: expected .*'{code}' in 1 subj.*sub-000"):
        nearest_matches(changed, "sub-000", contrast="cst")
    odd[3] = code
    with pytest.raises(StatisticsError, match=f"'{code}' in 1 subjects, as sub-003"):
        matched_pairs(ds.assign({name: ("subject", odd)}), contrast="cst")


def test_matched_pairs__rows_of_one_label_are_one_person():
    ds = people(120)
    again = ds.assign_coords(age=ds["age"] + 1)
    both = xr.concat([ds, again], "subject")
    found = matched_pairs(both, contrast="cst")
    pairs = found["pair_subject"].values
    assert int(found["n_people"]) == 120
    assert len(np.unique(pairs)) == pairs.size
    with pytest.raises(StatisticsError, match="'sub-007' is on dimension 'subject' 2 times"):
        nearest_matches(both, "sub-007", contrast="cst")


def test_matched_pairs__ages_a_caliper_apart_are_within_it():
    ds = people(40)
    ds["age"].values[:] = 90.0
    ds["age"].values[[0, 1]] = 59.4, 64.4
    assert ds["age"].values[1] - ds["age"].values[0] > 5
    ds["lesion_volume"].values[[0, 1]] = 10.0
    ds["lesion_hemisphere"].values[[0, 1]] = "L"
    ds["cst"].values[[0, 1]] = -9.0, 9.0
    pairs = matched_pairs(ds, contrast="cst", min_pairs=1)["pair_subject"].values
    assert ["sub-001", "sub-000"] in pairs.tolist()
    near = nearest_matches(ds, "sub-000", contrast="cst")
    assert near["subject_matched"].values[near["within_caliper"].values].tolist() == ["sub-001"]


def test_nearest_matches__takes_a_label_that_is_a_number():
    ds = people(40).assign_coords(subject=np.arange(1000, 1040))
    found = nearest_matches(ds, 1007, contrast="cst")
    xr.testing.assert_identical(found, nearest_matches(ds, "1007", contrast="cst"))
    assert "1007" not in found["subject_matched"].values


@pytest.mark.parametrize("group", ["Stroke", "control"])
def test_matched_pairs__nobody_of_the_group_is_told(group):
    ds = people(40).assign(group=("subject", np.full(40, "stroke")))
    with pytest.raises(StatisticsError, match=f"not in group '{group}': 40.*groups are 'stroke'"):
        matched_pairs(ds, contrast="cst", group=group)


def test_matched_pairs__text_may_be_of_any_length():
    ds = people(120)
    loads = ds["cst"].values[:, None] * [1, 2]
    ds = ds.assign(lesion_load=(("subject", "region"), loads))
    ds = ds.assign_coords(region=["SMN_L", "SMN_R"])
    text = {
        name: ("subject", ds[name].values.astype(np.dtypes.StringDType()))
        for name in ("subject", "cohort", "lesion_hemisphere")
    }
    other = ds.assign(text).set_coords("cohort")
    found = matched_pairs(other, contrast="lesion_load:SMN_ipsilesional")
    xr.testing.assert_equal(found, matched_pairs(ds, contrast="lesion_load:SMN_ipsilesional"))


def with_regions(n=120):
    """People with a measure of two regions and one of the midline."""
    ds = people(n)
    values = ds["cst"].values[:, None] * [1, -2, 1]
    ds = ds.assign(own=(("subject", "region"), values, {"units": "mm"}))
    return ds.assign_coords(region=["SMN_L", "SMN_R", "Vermis"])


def test_matched_pairs__a_measure_of_any_name_is_of_the_side_of_the_lesion():
    ds = with_regions()
    found = matched_pairs(ds, contrast="own:SMN_ipsilesional")
    left = ds["lesion_hemisphere"].values == "L"
    value = ds["cst"].values * np.where(left, 1, -2)
    same = matched_pairs(ds.assign(value=("subject", value)), contrast="value")
    xr.testing.assert_equal(found, same)
    assert found.attrs["contrast_units"] == "mm"
    sided = to_lesional_sides(ds.drop_sel(region="Vermis"))
    xr.testing.assert_equal(found, matched_pairs(sided, contrast="own:SMN_ipsilesional"))
    matches = nearest_matches(ds, "sub-003", contrast="own:SMN_contralesional")
    assert matches["own_value"] == ds["cst"].values[3] * (-2 if left[3] else 1)
    midline = matched_pairs(ds, contrast="own:Vermis")
    xr.testing.assert_equal(midline, matched_pairs(ds, contrast="cst"))


def test_matched_pairs__refuse_a_native_side():
    ds = with_regions(40)
    for function in (matched_pairs, lambda ds, **k: nearest_matches(ds, "sub-003", **k)):
        with pytest.raises(ConfigError, match=r"SMN_L.*SMN_ipsilesional.*to_lesional_sides\(ds\)"):
            function(ds, contrast="own:SMN_L")
    with pytest.raises(MissingVariableError, match="has: SMN_ipsilesional, SMN_contralesional, V"):
        matched_pairs(ds, contrast="own:SMN")
    text = ds.assign(own=(("subject", "region"), np.full((40, 3), "a")))
    with pytest.raises(StatisticsError, match="'own:Vermis' is text"):
        matched_pairs(text, contrast="own:Vermis")


def test_matched_pairs__units_are_those_of_the_contrast():
    ds = people(60)
    for name, own, units in (
        ("brain_pad_z", {}, "1"),
        ("brain_pad_z", {"units": "1"}, "1"),
        ("brain_pad", {}, "years"),
        ("brain_pad", {"units": "months"}, "months"),
        ("cst", {}, ""),
    ):
        given = ds.assign({name: ("subject", ds["cst"].values, own)})
        assert matched_pairs(given, contrast=name).attrs["contrast_units"] == units


def test_matched_pairs__a_caliper_may_be_beyond_every_volume():
    ds = people(60)
    wide = matched_pairs(ds, contrast="cst", caliper=1e9)
    same = matched_pairs(ds, contrast="cst", caliper=100)
    assert wide["n_admissible"] == same["n_admissible"]
    assert float(wide["contrast"].sum()) == pytest.approx(float(same["contrast"].sum()))
    assert wide.attrs["volume_ratio"] == np.inf
    assert nearest_matches(ds, "sub-003", contrast="cst", caliper=1e9)["n_within"] > 0


def test_matched_pairs__of_any_side_need_no_side():
    ds = people(60)
    bare = ds.drop_vars("lesion_hemisphere")
    found = matched_pairs(bare, contrast="cst", same_side=False)
    same = matched_pairs(ds, contrast="cst", same_side=False)
    xr.testing.assert_equal(found.drop_vars("pair_side"), same.drop_vars("pair_side"))
    matches = nearest_matches(bare, "sub-003", contrast="cst", same_side=False)
    xr.testing.assert_equal(
        matches, nearest_matches(ds, "sub-003", contrast="cst", same_side=False)
    )
    with pytest.raises(MissingVariableError, match="'lesion_hemisphere' is missing"):
        matched_pairs(bare, contrast="cst")
