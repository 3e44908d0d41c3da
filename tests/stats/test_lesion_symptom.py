import itertools
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

import scalebrain
from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats import lesion_symptom_numba_fns as kernels
from scalebrain.stats.lesion_patterns import LesionPatterns, lesioned_voxels
from scalebrain.stats.lesion_symptom import (
    _Model,
    _permuted_residuals,
    _strongest,
    lesion_symptom_map,
)

SHAPE = (9, 8, 7)
FORMULA = "motor_score ~ age + sex + log10(lesion_volume)"
MAPS = ("t", "estimate", "se", "p", "q", "p_fwe")


def simulate(n=60, *, seed=0, effect=0.0, shape=SHAPE):
    """People with lesions that are balls: the middle voxel of the grid may lower the score."""
    rng = np.random.default_rng(seed)
    axes = [4.0 * np.arange(size) - 2.0 * size for size in shape]
    position = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    order = rng.permutation(len(position))
    order = np.concatenate([np.sort(order[:200]), np.sort(order[200:])])
    position = position[order]
    centers = rng.normal(0, 6, (n, 3))
    radius = rng.uniform(4, 11, n)
    mask = np.linalg.norm(position[None] - centers[:, None], axis=-1) < radius[:, None]
    mask[np.arange(n), rng.integers(len(position), size=n)] = True  # nobody's is empty
    target = int(np.abs(position).sum(axis=1).argmin())
    age = rng.uniform(40, 80, n)
    score = 0.9 - 0.004 * age + rng.normal(0, 0.1, n) - effect * mask[:, target]
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = [axis[0] for axis in axes]
    attrs = {"affine": affine.tolist(), "shape": list(shape)}
    ds = xr.Dataset(
        {
            "lesion_mask": (("subject", "voxel"), mask),
            "motor_score": ("subject", score),
            "lesion_volume": ("subject", mask.sum(axis=1) * 0.064),
            "lesion_present": ("subject", np.ones(n, dtype=bool)),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in rng.permutation(n)],
            "age": ("subject", age),
            "sex": ("subject", rng.choice(["F", "M"], n).astype(object)),
            "cohort": ("subject", rng.choice([f"site{k}" for k in range(4)], n).astype(object)),
            **{axis: ("voxel", position[:, i], attrs) for i, axis in enumerate("xyz")},
        },
    )
    ds.attrs["target"] = target
    return ds.chunk({"subject": 16, "voxel": -1})


def design(ds, *columns):
    """Covariates by hand: intercept, age, sex, volume."""
    made = {
        "age": ds["age"].values,
        "sex": (ds["sex"].values == "M").astype(float),
        "volume": np.log10(ds["lesion_volume"].values),
    }
    return np.column_stack([np.ones(ds.sizes["subject"]), *(made[name] for name in columns)])


def t_by_hand(y, z, m):
    """Plain least squares of y on z and m; t, coefficient and standard error of m."""
    x = np.column_stack([z, m])
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ y
    rest = y - x @ beta
    se = np.sqrt(rest @ rest / (len(y) - x.shape[1]) * inverse[-1, -1])
    return beta[-1] / se, beta[-1], se


def assert_same(one, other, rtol=1e-9):
    for name in (*MAPS, "n_lesioned", "max_t", "threshold", "n", "n_tested", "n_patterns", "df"):
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-12, err_msg=name)


def test_lesion_symptom_map__equals_statsmodels():
    import statsmodels.api as sm

    ds = simulate()
    result = lesion_symptom_map(ds, FORMULA, n_permutations=19)
    mask = ds["lesion_mask"].values
    count = mask.sum(axis=0)
    tested = np.flatnonzero((count >= 5) & (count <= 55))
    assert len(tested) > 100
    assert result.attrs["min_lesions"] == 5
    assert int(result["n_tested"]) == len(tested)
    assert int(result["df"]) == 60 - 4 - 1
    z = design(ds, "age", "sex", "volume")
    for voxel in tested:
        fit = sm.OLS(ds["motor_score"].values, np.column_stack([z, mask[:, voxel]])).fit()
        one = result.isel(voxel=voxel)
        np.testing.assert_allclose(one["t"], fit.tvalues[-1], rtol=1e-8)
        np.testing.assert_allclose(one["estimate"], fit.params[-1], rtol=1e-8)
        np.testing.assert_allclose(one["se"], fit.bse[-1], rtol=1e-8)
        np.testing.assert_allclose(one["p"], fit.pvalues[-1], rtol=1e-7)
        assert one["n_lesioned"] == count[voxel]


def test_lesion_symptom_map__without_covariates_is_the_two_sample_t_test():
    ds = simulate(effect=0.3)
    result = lesion_symptom_map(ds, "motor_score ~ 1", n_permutations=19)
    mask, score = ds["lesion_mask"].values, ds["motor_score"].values
    for voxel in np.flatnonzero(np.isfinite(result["t"])):
        test = scipy.stats.ttest_ind(score[mask[:, voxel]], score[~mask[:, voxel]])
        np.testing.assert_allclose(result["t"][voxel], test.statistic, rtol=1e-9)
        np.testing.assert_allclose(result["p"][voxel], test.pvalue, rtol=1e-9)
    assert result["t"][ds.attrs["target"]] < -3  # the lesion lowers the score
    assert result["estimate"][ds.attrs["target"]] < 0


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_lesion_symptom_map__scales_with_the_outcome(factor, offset):
    ds = simulate(effect=0.1)
    plain = lesion_symptom_map(ds, FORMULA, n_permutations=19)
    scaled = lesion_symptom_map(
        ds.assign(motor_score=(ds["motor_score"] * factor)).assign_coords(age=ds["age"] + offset),
        FORMULA,
        n_permutations=19,
    )
    np.testing.assert_allclose(scaled["t"], plain["t"], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(scaled["max_t"], plain["max_t"], rtol=1e-6)
    np.testing.assert_allclose(scaled["estimate"], plain["estimate"] * factor, rtol=1e-6)


@pytest.mark.parametrize("groups", [None, "cohort"])
def test_lesion_symptom_map__permutations_equal_freedman_and_lane_by_hand(groups):
    ds = simulate(24, seed=3, effect=0.15)
    n_permutations = 60
    result = lesion_symptom_map(
        ds, "motor_score ~ age", groups=groups, n_permutations=n_permutations, seed=5, min_lesions=3
    )
    ordered = ds.sortby("subject").compute()
    mask, y = ordered["lesion_mask"].values, ordered["motor_score"].values
    z = design(ordered, "age")
    codes = np.zeros(24)
    if groups:
        codes = np.unique(ordered["cohort"].values.astype(str), return_inverse=True)[1]
    tested = np.flatnonzero((mask.sum(axis=0) >= 3) & (mask.sum(axis=0) <= 21))
    fitted = z @ np.linalg.lstsq(z, y, rcond=None)[0]
    rng = np.random.default_rng(5)
    largest = np.empty(n_permutations)
    for i in range(n_permutations):
        drawn = rng.random(24)
        permuted = np.empty(24)
        for code in np.unique(codes):
            inside = np.flatnonzero(codes == code)
            permuted[inside] = (y - fitted)[inside[np.argsort(drawn[inside])]]
        largest[i] = max(
            abs(t_by_hand(fitted + permuted, z, mask[:, voxel])[0]) for voxel in tested
        )
    np.testing.assert_allclose(result["max_t"], largest, rtol=1e-8)
    for voxel in tested:
        t = t_by_hand(y, z, mask[:, voxel])[0]
        p = (1 + (largest >= abs(t) * (1 - 1e-9)).sum()) / (1 + n_permutations)
        np.testing.assert_allclose(result["p_fwe"][voxel], p, rtol=1e-12)
    assert 1 / 61 <= float(result["p_fwe"].min()) < 0.1


def test_lesion_symptom_map__permutations_approach_all_arrangements():
    rng = np.random.default_rng(0)
    mask = np.zeros((10, 2), dtype=bool)
    mask[[0, 1, 2, 5], 0] = mask[[1, 4, 6, 8, 9], 1] = True
    y = rng.normal(size=10) - 1.5 * mask[:, 0]
    ds = xr.Dataset({"lesion_mask": (("subject", "voxel"), mask), "y": ("subject", y)})
    result = lesion_symptom_map(ds, "y ~ 1", groups=None, min_lesions=4, n_permutations=20000)
    # where no covariate is there, all arrangements are those of both voxels' four classes
    classes = 2 * mask[:, 0] + mask[:, 1]
    largest, sizes = [], [(classes == k).sum() for k in range(4)]
    first, second, third = sizes[0], sizes[1], sizes[2]
    everyone = set(range(10))
    for a in itertools.combinations(everyone, first):
        left = everyone - set(a)
        for b in itertools.combinations(left, second):
            for c in itertools.combinations(left - set(b), third):
                d = left - set(b) - set(c)
                one = np.zeros((10, 2))
                one[list(c) + list(d), 0] = one[list(b) + list(d), 1] = 1
                e = y - y.mean()
                size = one.sum(axis=0)
                r = np.abs(e @ one) / np.sqrt(size * (10 - size) / 10 * (e @ e))
                largest.append(r.max())
    r = float(np.abs(result["t"]).max())
    r = r / np.sqrt(r**2 + 8)
    exact = (np.array(largest) >= r * (1 - 1e-9)).mean()
    assert float(result["p_fwe"].min()) == pytest.approx(exact, abs=4 * np.sqrt(exact / 20000))


def test_lesion_symptom_map__p_fwe_counts_equal_permutations_in_spite_of_rounding():
    # outcomes are equal within groups: every permutation is the identity
    ds = simulate(40, seed=1)
    code = np.unique(ds["cohort"].values.astype(str), return_inverse=True)[1]
    ds["motor_score"] = ("subject", np.array([0.1, 0.7, 0.3, 1 / 3])[code])
    result = lesion_symptom_map(ds, "motor_score ~ 1", n_permutations=200)
    np.testing.assert_allclose(result["max_t"], np.abs(result["t"]).max(), rtol=1e-9)
    assert float(result["p_fwe"].min()) == 1


def test_lesion_symptom_map__q_is_benjamini_hochberg_over_tested_voxels():
    result = lesion_symptom_map(simulate(effect=0.2), FORMULA, n_permutations=19)
    p = result["p"].values
    tested = np.isfinite(p)
    np.testing.assert_allclose(
        result["q"].values[tested], scipy.stats.false_discovery_control(p[tested]), rtol=1e-12
    )
    ranked = np.sort(p[tested])
    by_hand = (ranked * len(ranked) / np.arange(1, len(ranked) + 1)).min()
    assert float(result["q"].min()) == pytest.approx(by_hand)
    assert np.isnan(result["q"].values[~tested]).all()


@pytest.mark.parametrize(("alpha", "n_permutations"), [(0.05, 199), (0.05, 130), (0.2, 77)])
def test_lesion_symptom_map__threshold_divides_as_p_fwe_does(alpha, n_permutations):
    ds = simulate(80, effect=0.08)
    result = lesion_symptom_map(ds, FORMULA, n_permutations=n_permutations, alpha=alpha)
    significant = result["p_fwe"].values <= alpha
    assert 0 < significant.sum() < int(result["n_tested"])
    beyond = np.abs(result["t"].values) > float(result["threshold"]) * (1 + 1e-9)
    np.testing.assert_array_equal(significant, beyond)


def test_lesion_symptom_map__does_not_depend_on_chunks():
    ds = simulate()
    whole = lesion_symptom_map(ds.compute(), FORMULA, n_permutations=50)
    for chunks in ({"subject": 1}, {"subject": 64}, {"subject": 7, "voxel": 100}):
        chunked = ds.chunk(chunks)
        assert_same(lesion_symptom_map(chunked, FORMULA, n_permutations=50), whole, rtol=0)
    turned = ds.transpose("voxel", "subject")
    assert_same(lesion_symptom_map(turned, FORMULA, n_permutations=50), whole, rtol=0)


def test_lesion_symptom_map__does_not_depend_on_the_order_of_subjects():
    ds = simulate()
    order = np.random.default_rng(1).permutation(ds.sizes["subject"])
    one = lesion_symptom_map(ds, FORMULA, n_permutations=50)
    other = lesion_symptom_map(ds.isel(subject=order), FORMULA, n_permutations=50)
    assert_same(other, one, rtol=0)
    assert list(other["subject"].values) == list(ds["subject"].values[order])


def test_lesion_symptom_map__does_not_depend_on_the_order_of_voxels():
    ds = simulate()
    order = np.random.default_rng(1).permutation(ds.sizes["voxel"])
    one = lesion_symptom_map(ds, FORMULA, n_permutations=50)
    moved = lesion_symptom_map(ds.isel(voxel=order), FORMULA, n_permutations=50)
    assert_same(moved, one.isel(voxel=order), rtol=1e-9)
    bare = lesion_symptom_map(ds.drop_vars(["x", "y", "z"]), FORMULA, n_permutations=50)
    assert_same(bare, one, rtol=1e-9)


def test_lesion_symptom_map__does_not_depend_on_workers(monkeypatch):
    import distributed

    monkeypatch.setattr("scalebrain.stats.lesion_patterns._PART", 50)
    ds = simulate()
    here = lesion_symptom_map(ds, FORMULA, n_permutations=50)
    assert int(here["n_patterns"]) > 100
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        distributed.Client(cluster),
    ):
        there = lesion_symptom_map(ds, FORMULA, n_permutations=50)
    assert_same(there, here, rtol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_strongest__equals_a_dense_product(threads, monkeypatch):
    monkeypatch.setattr("scalebrain.stats.lesion_patterns._PART", 50)
    rng = np.random.default_rng(0)
    ds = simulate(70)
    mask = ds["lesion_mask"].values
    position = [ds[axis].values for axis in "xyz"]
    residual = rng.normal(size=(3, 70, 32))
    residual[2, :, 20:] = 0
    lesions = [np.flatnonzero(row).astype(np.int32) for row in mask]
    found = {}
    for merge, chained, walk in itertools.product([True, False], [True, False], [position, None]):
        patterns = LesionPatterns.of(
            lesions, mask.shape[1], min_lesions=4, merge=merge, position=walk
        )
        dense = mask[:, patterns.voxels[patterns.columns.first]].T.astype(float)
        scale = 1 / np.sqrt(1 + 2 * dense.sum(axis=1)) / 20
        expected = [np.abs(scale[:, None] * (dense @ tile)).max(axis=0) for tile in residual]
        one = _strongest(patterns, scale, residual, 84, chained=chained, threads=threads)
        np.testing.assert_allclose(one, np.concatenate(expected)[:84], rtol=1e-12)
        steps = [columns.steps(chained=chained) for _, columns in patterns.parts()]
        found[merge, chained, walk is None] = sum(part.step.size for part in steps)
        assert sum(part.anew.size for part in steps) == patterns.n_patterns
    # steps are fewer than people, and fewest along the walk
    assert found[True, True, False] < found[True, True, True] < found[True, False, False]


def test_permuted_residuals__that_the_covariates_determine_count_as_largest():
    ones, pair = np.full(10, 10**-0.5), np.zeros(10)
    pair[[2, 3]] = 0.5**0.5, -(0.5**0.5)
    residual = np.zeros(10)
    residual[[0, 1]] = 1.0, -1.0
    model = _Model(np.column_stack([ones, pair]), residual, 2.0, 7)
    made = _permuted_residuals(model, np.zeros(10, dtype=np.int64), 700, 0)
    flat = made.transpose(0, 2, 1).reshape(-1, 10)[:700]
    lost = np.isnan(flat).any(axis=1)
    assert 2 < lost.sum() < 40  # that the pair falls on the pair: 1 in 45
    np.testing.assert_allclose((flat[~lost] ** 2).sum(axis=1), 1)
    np.testing.assert_allclose(flat[~lost] @ model.q, 0, atol=1e-12)
    lesions = [np.arange(1 + i % 3, dtype=np.int32) for i in range(10)]
    patterns = LesionPatterns.of(lesions, 3, min_lesions=1)
    largest = _strongest(patterns, np.full(patterns.n_patterns, 0.1), made, 700)
    np.testing.assert_array_equal(largest == 1, lost)
    assert np.isfinite(largest).all()


@pytest.mark.parametrize("colliding", [False, True])
def test_distinct_columns__equals_numpy_even_where_keys_collide(colliding):
    rng = np.random.default_rng(0)
    mask = (rng.random((12, 300)) < 0.2) & (np.arange(300) % 3 < 2)
    start = np.concatenate([[0], np.cumsum(mask.sum(axis=0))]).astype(np.int64)
    person = np.nonzero(mask.T)[1].astype(np.int32)
    key = rng.integers(1 << 63, size=12, dtype=np.uint64)
    if colliding:
        key[:] = 0
    pattern, first = np.empty(300, np.int32), np.empty(300, np.int64)
    table = np.full(1024, -1, np.int64)
    n = kernels.distinct_columns(start, person, key, table, pattern, first)
    unique, index = np.unique(mask, axis=1, return_index=True)
    assert n == unique.shape[1]
    np.testing.assert_array_equal(np.sort(index), first[:n])
    np.testing.assert_array_equal(mask[:, first[pattern]], mask)


def test_lesion_patterns__hold_the_masks(monkeypatch):
    ds = simulate(50)
    mask = ds["lesion_mask"].values
    lesions = [np.flatnonzero(row).astype(np.int32) for row in mask]
    position = [ds[axis].values for axis in "xyz"]
    patterns = LesionPatterns.of(lesions, mask.shape[1], min_lesions=3, position=position)
    np.testing.assert_array_equal(patterns.count, mask.sum(axis=0))
    tested = (mask.sum(axis=0) >= 3) & (mask.sum(axis=0) <= 47)
    np.testing.assert_array_equal(np.sort(patterns.voxels), np.flatnonzero(tested))
    values = np.random.default_rng(0).normal(size=(50, 2))
    sums = patterns.sums(values)
    np.testing.assert_allclose(sums[patterns.pattern], mask[:, patterns.voxels].T @ values)
    np.testing.assert_array_equal(
        patterns.size[patterns.pattern], mask.sum(axis=0)[patterns.voxels]
    )
    monkeypatch.setattr("scalebrain.stats.lesion_patterns._PART", 50)
    assert len(patterns.parts()) > 2
    for part, columns in patterns.parts():
        steps = columns.steps()
        now = np.zeros(50, dtype=int)
        for k, column in enumerate(range(part.start, part.stop)):
            if steps.anew[k]:
                now[:] = 0
            for step in steps.step[steps.start[k] : steps.start[k + 1]]:
                now[step if step >= 0 else ~step] += 1 if step >= 0 else -1
            np.testing.assert_array_equal(
                now.astype(bool), mask[:, patterns.voxels[patterns.columns.first[column]]]
            )


def test_lesioned_voxels__reads_block_by_block():
    rows, voxels, block = 64, 400_000, 4

    def make(block_info=None):
        first = block_info[None]["array-location"][0][0]
        out = np.zeros((block, voxels), dtype=bool)
        out[:, first * 1000 : first * 1000 + 500] = True
        return out

    chunks = ((block,) * (rows // block), (voxels,))
    mask = xr.DataArray(da.map_blocks(make, chunks=chunks, dtype=bool), dims=("subject", "voxel"))
    used = np.array([0, 5, 6, 63])
    lesioned_voxels(mask, used)
    tracemalloc.start()
    with dask.config.set(scheduler="synchronous"):
        found = lesioned_voxels(mask, np.arange(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * block * voxels < rows * voxels / 3
    assert [len(one) for one in found] == [500] * rows
    np.testing.assert_array_equal(found[63], np.arange(60_000, 60_500))
    np.testing.assert_array_equal(lesioned_voxels(mask, used)[1], np.arange(4000, 4500))
    held = lesioned_voxels(mask.compute(), used)
    assert all(map(np.array_equal, held, lesioned_voxels(mask, used)))


def test_lesion_symptom_map__finds_the_planted_voxel():
    ds = simulate(120, seed=2, effect=0.15)
    result = lesion_symptom_map(ds, FORMULA, n_permutations=199)
    target = ds.attrs["target"]
    assert float(result["p_fwe"][target]) == 1 / 200
    assert float(result["t"][target]) == pytest.approx(float(result["t"].min()), rel=0.15)
    assert float(result["estimate"][target]) == pytest.approx(-0.15, abs=0.06)
    peak = int(np.nanargmin(result["t"]))
    place = np.stack([ds[axis].values for axis in "xyz"], axis=1)
    assert np.linalg.norm(place[peak] - place[target]) <= 6


@pytest.mark.parametrize("grouped", [False, True])
def test_lesion_symptom_map__keeps_the_family_wise_error(grouped):
    """200 cohorts without an effect, of skewed scores that go with age and lesion volume."""
    rng = np.random.default_rng(7)
    base = simulate(40, seed=11, shape=(6, 5, 5)).compute()
    volume, site = base["lesion_volume"].values, pd.factorize(base["cohort"].values)[0]
    found, smallest = 0, []
    for k in range(200):
        noise = rng.exponential(1, 40) * (1 + 2 * (site == 0) if grouped else 1)
        score = 0.1 * base["age"].values - np.log10(volume) + noise
        ds = base.assign(motor_score=("subject", score))
        result = lesion_symptom_map(
            ds,
            "motor_score ~ age + log10(lesion_volume)",
            groups="cohort" if grouped else None,
            n_permutations=99,
            seed=k,
        )
        smallest.append(float(result["p_fwe"].min()))
    found = np.mean(np.array(smallest) <= 0.1)
    assert 0.05 <= found <= 0.155  # 0.1, plus and minus 2.5 standard errors
    assert 0.38 <= np.mean(np.array(smallest) <= 0.5) <= 0.62


def test_lesion_symptom_map__seed():
    ds = simulate()
    one = lesion_symptom_map(ds, FORMULA, n_permutations=40, seed=1)
    longer = lesion_symptom_map(ds, FORMULA, n_permutations=90, seed=1)
    other = lesion_symptom_map(ds, FORMULA, n_permutations=40, seed=2)
    np.testing.assert_array_equal(longer["max_t"][:40], one["max_t"])
    assert not np.isclose(other["max_t"], one["max_t"]).any()


def test_lesion_symptom_map__what_is_not_tested_is_missing():
    ds = simulate()
    before = ds.copy(deep=True)
    result = lesion_symptom_map(ds, FORMULA, n_permutations=19, min_lesions=9)
    xr.testing.assert_identical(ds, before)
    count = ds["lesion_mask"].values.sum(axis=0)
    tested = (count >= 9) & (count <= 51)
    assert 0 < tested.sum() < len(tested)
    for name in MAPS:
        np.testing.assert_array_equal(np.isfinite(result[name]), tested)
        assert result[name].attrs["long_name"]
    np.testing.assert_array_equal(result["n_lesioned"], count)
    assert result["n_lesioned"].dtype == np.int32
    for name in result.data_vars:
        assert result[name].attrs["long_name"], name
    assert result["estimate"].attrs["units"] == result["se"].attrs["units"] == "1"
    assert (
        int(result["n_patterns"]) == np.unique(ds["lesion_mask"].values[:, tested], axis=1).shape[1]
    )


def test_lesion_symptom_map__voxel_that_the_covariates_determine_is_missing():
    ds = simulate()
    voxel = int(ds["lesion_mask"].values.sum(axis=0).argmax())
    struck = ds["lesion_mask"].values[:, voxel]
    equal = (ds["lesion_mask"].values == struck[:, None]).sum(axis=0)
    same = int(np.isin(equal, [0, ds.sizes["subject"]]).sum())
    ds = ds.assign(struck=("subject", np.where(struck, "yes", "no").astype(object)))
    result = lesion_symptom_map(ds, "motor_score ~ age + struck", n_permutations=19)
    plain = lesion_symptom_map(ds, "motor_score ~ age", n_permutations=19)
    assert int(result["n_collinear"]) == same >= 1
    assert int(result["n_tested"]) == int(plain["n_tested"]) - same
    assert all(np.isnan(result[name][voxel]) for name in MAPS)
    assert int(result["n_lesioned"][voxel]) == struck.sum()
    assert np.isfinite(result["max_t"]).all()
    other = int(np.nanargmax(np.abs(result["t"])))
    z = np.column_stack([design(ds, "age"), struck])
    t = t_by_hand(ds["motor_score"].values, z, ds["lesion_mask"].values[:, other])[0]
    assert float(result["t"][other]) == pytest.approx(t, rel=1e-8)


def test_lesion_symptom_map__drops_who_cannot_be_used_and_says_why(caplog):
    ds = simulate(70).compute()
    ds["lesion_present"][3] = False
    ds["lesion_mask"][3] = True  # whatever an empty row holds
    ds["motor_score"][5] = np.nan
    ds["lesion_volume"][6] = 0.0
    ds["cohort"][7] = ""
    ds["included"] = ("subject", np.arange(70) != 8)
    ds["group"] = ("subject", np.where(np.arange(70) == 9, "reference", "stroke"))
    with caplog.at_level("INFO"):
        result = lesion_symptom_map(ds, FORMULA, n_permutations=19)
    expected = {
        3: "no lesion mask",
        5: "motor_score missing or infinite",
        6: "log10(lesion_volume) not finite",
        7: "cohort missing or infinite",
        8: "not included",
        9: "not in group 'stroke'",
    }
    assert {
        int(k): str(result["drop_reason"][k].values) for k in np.flatnonzero(result["dropped"])
    } == expected
    assert int(result["n"]) == 64
    assert int(result["n_dropped"]) == 6
    assert "no lesion mask: 1" in result.attrs["rows_dropped"]
    assert "no lesion mask: 1" in caplog.text
    left = ds.isel(subject=np.setdiff1d(np.arange(70), list(expected))).drop_vars("included")
    assert_same(lesion_symptom_map(left, FORMULA, n_permutations=19), result, rtol=0)
    assert int(lesion_symptom_map(ds, FORMULA, n_permutations=19, group=None)["n"]) == 65
    assert int(lesion_symptom_map(ds, FORMULA, n_permutations=19, included=None)["n"]) == 65


def test_lesion_symptom_map__people_alone_in_a_group_are_counted():
    ds = simulate().compute()
    ds["cohort"][4] = "lonely"
    assert int(lesion_symptom_map(ds, FORMULA, n_permutations=19)["n_fixed"]) == 1


def test_lesion_symptom_map__default_of_min_lesions():
    assert lesion_symptom_map(simulate(60), FORMULA).attrs["min_lesions"] == 5
    assert lesion_symptom_map(simulate(120), FORMULA).attrs["min_lesions"] == 6
    assert lesion_symptom_map(simulate(121), FORMULA).attrs["min_lesions"] == 7


def test_lesion_symptom_map__from_a_store(tmp_path):
    ds = simulate(40, effect=0.2)
    held = lesion_symptom_map(ds, FORMULA, n_permutations=39)
    scalebrain.save_store(ds, tmp_path / "cohort.zarr")
    result = scalebrain.open_store(tmp_path / "cohort.zarr").scalebrain.lesion_symptom_map(
        FORMULA, n_permutations=39
    )
    assert_same(result, held, rtol=0)
    volume = scalebrain.unpack(result["t"])
    assert volume.shape == SHAPE
    assert np.isfinite(volume).sum() == int(held["n_tested"])


def changed(ds, **values):
    ds = ds.compute()
    for name, value in values.items():
        ds[name] = ("subject", np.broadcast_to(value, ds.sizes["subject"]).copy())
    return ds


@pytest.mark.parametrize(
    ("change", "formula", "options", "error", "words"),
    [
        ({}, "motor_score ~ nonsense", {}, MissingVariableError, "'nonsense' is neither"),
        ({}, "motor_score", {}, StatisticsError, "has no outcome"),
        ({}, "motor_score ~ (1 | cohort)", {}, StatisticsError, "random effects"),
        ({}, "motor_score ~ 0 + age", {}, StatisticsError, "the intercept is taken out"),
        ({}, "motor_score ~ x", {}, StatisticsError, "'x' .'voxel',.*Select first"),
        ({}, "sex ~ age", {}, StatisticsError, "one column of numbers"),
        ({}, "motor_score ~ age", {"groups": "ward"}, MissingVariableError, "groups=None"),
        ({}, "motor_score ~ age", {"groups": "x"}, StatisticsError, "over 'subject' alone"),
        ({}, "motor_score ~ age", {"groups": "age"}, StatisticsError, "alone in a group"),
        ({}, "motor_score ~ age", {"alpha": 1.0}, StatisticsError, "alpha must lie"),
        ({}, "motor_score ~ age", {"n_permutations": 18}, StatisticsError, "from 19 on"),
        ({}, "motor_score ~ age", {"min_lesions": 31}, StatisticsError, "1 to half of the 60"),
        ({}, "motor_score ~ age", {"min_lesions": np.nan}, StatisticsError, "is nan; give a whole"),
        ({}, "motor_score ~ age", {"seed": -1}, StatisticsError, "seed must be 0 or more"),
        ({}, "motor_score ~ age", {"seed": 1.5}, StatisticsError, "seed must be 0 or more"),
        ({}, "motor_score ~ age", {"min_lesions": 30}, StatisticsError, "the largest number is"),
        ({"motor_score": 0.5}, "motor_score ~ age", {}, StatisticsError, "outcome is 0.5 in all"),
        ({"age": 50.0}, "motor_score ~ age", {}, StatisticsError, "'age' has the same value"),
        ({"sex": "F"}, "motor_score ~ sex", {}, StatisticsError, "same value in all"),
        (
            {},
            "motor_score ~ age + I(2 * age + 1)",
            {},
            StatisticsError,
            r"rank deficient: '.*' = combination of \['.*age.*'\]",
        ),
        ({}, "age ~ age", {}, StatisticsError, "determine the outcome"),
        (
            {"included": np.arange(60) < 9},
            "motor_score ~ age",
            {},
            StatisticsError,
            "leaves 9 of 60 people; at least 10.*not included: 51",
        ),
        ({"lesion_present": False}, "motor_score ~ 1", {}, StatisticsError, "leaves 0 of 60"),
        (
            {"person": np.array([f"p{k // 2}" for k in range(60)])},
            "motor_score ~ age",
            {},
            StatisticsError,
            "30 people are in the rows more than once, as sub-",
        ),
    ],
)
def test_lesion_symptom_map__says_what_is_wrong(change, formula, options, error, words):
    with pytest.raises(error, match=words):
        lesion_symptom_map(changed(simulate(), **change), formula, **options)


def test_lesion_symptom_map__needs_masks_and_voxels_that_covariates_leave():
    with pytest.raises(MissingVariableError, match="lesion_mask"):
        lesion_symptom_map(simulate().drop_vars("lesion_mask"), FORMULA)
    ds = simulate().compute()
    struck = ds["lesion_mask"].values[:, ds.attrs["target"]]
    ds["lesion_mask"][:] = struck[:, None]
    ds["struck"] = ("subject", struck.astype(float))
    with pytest.raises(StatisticsError, match="determine the lesion status of all 504 voxels"):
        lesion_symptom_map(ds, "motor_score ~ struck")
