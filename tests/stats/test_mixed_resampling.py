"""Permutations and bootstrap of mixed models beside plain refits."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from scalebrain.errors import StatisticsError
from scalebrain.stats import mixed_jobs, mixed_resampling
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.mixed_basis import Basis
from scalebrain.stats.mixed_fit import fit_intercepts
from scalebrain.stats.mixed_resampling import Permutations

SIZES = (1, 2, 3, 5, 8, 13, 9)


def cohort(n_nodes=6, seed=0, sizes=SIZES, between=1.0):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    n = codes.size
    u = rng.normal(0, between, (len(sizes), n_nodes))[codes]
    age = rng.uniform(40, 80, n) + 3 * codes
    y = u + 0.02 * age[:, None] + rng.normal(0, 1, (n, n_nodes))
    return xr.Dataset(
        {"y": (("subject", "node"), y)},
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "age": ("subject", age),
            "load": ("subject", rng.exponential(1, n)),
            "sex": ("subject", rng.choice(["F", "M"], n)),
            "between": ("subject", rng.normal(size=len(sizes))[codes]),
            "cohort": ("subject", np.array([f"c{k}" for k in codes])),
        },
    )


def design(ds):
    return pd.DataFrame(
        {
            "Intercept": np.ones(ds.sizes["subject"]),
            "sex[T.M]": (ds["sex"].values == "M").astype(float),
            "age": ds["age"].values,
            "load": ds["load"].values,
        }
    )


def refits(ds, column, n_permutations, seed, reml):
    """|t| of every permutation, each fitted from its permuted outcome."""
    x = design(ds)
    codes = pd.factorize(ds["cohort"].values, sort=True)[0]
    y = ds["y"].values
    null, full = Basis.of(x.drop(columns=column), codes), Basis.of(x, codes)
    fitted = null.x @ fit_intercepts(null, y, reml=reml).estimate.T
    draws = Permutations(n_permutations, seed, np.arange(codes.size))
    out = []
    for batch in draws.batches(np.arange(codes.size), codes, 7):
        for moved in batch:
            assert sorted(moved) == list(range(codes.size))
            assert (codes[moved] == codes).all()
            fits = fit_intercepts(full, fitted + (y - fitted)[moved], reml=reml)
            k = full.names.index(column)
            out.append(np.abs(fits.estimate / fits.se)[:, k])
    return np.array(out)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("between", [0.0, 1.0, 30.0])
def test_mixed_model__permutations_equal_refits(reml, between):
    ds = cohort(between=between)
    result = mixed_model(
        ds, "y ~ sex + age + load", dim="node", n_permutations=50, seed=3, reml=reml
    )
    assert result["term"].values.tolist() == list(design(ds).columns)
    for term in ("age", "load", "sex[T.M]"):
        t = refits(ds, term, 50, 3, reml)
        np.testing.assert_allclose(result["max_t"].sel(term=term), t.max(axis=1), rtol=1e-7)
        found = np.abs(result["estimate"] / result["se"]).sel(term=term).values
        p = (1 + (t >= found * (1 - 1e-9)).sum(axis=0)) / 51
        np.testing.assert_allclose(result["p_permutation"].sel(term=term), p)
        p = (1 + (t.max(axis=1)[:, None] >= found * (1 - 1e-9)).sum(axis=0)) / 51
        np.testing.assert_allclose(result["p_fwe"].sel(term=term), p)
    assert result["p_permutation"].min() > 0
    assert result["p_fwe"].min() > 0
    assert result["p_fwe"].sel(term="Intercept").isnull().all()
    assert result.attrs["not_permuted"] == ["Intercept"]


def test_mixed_model__permutations_of_a_family_alone():
    ds = cohort().assign_coords(node=list("abcdef"))
    part = mixed_model(
        ds, "y ~ age", dim="node", n_permutations=30, permuted=["age"], family=["a", "c"]
    )
    alone = mixed_model(
        ds.sel(node=["a", "c"]), "y ~ age", dim="node", n_permutations=30, permuted=["age"]
    )
    for name in ("p_fwe", "q", "p_bonferroni", "p_permutation"):
        np.testing.assert_allclose(part[name].sel(node=["a", "c"]), alone[name])
    assert part["p_fwe"].sel(node="b").isnull().all()
    assert part["p_permutation"].sel(node="b", term="age").notnull()
    p = alone["p"].sel(term="age")
    np.testing.assert_allclose(alone["p_bonferroni"].sel(term="age"), np.minimum(2 * p, 1))


def test_mixed_model__order_of_subjects_does_not_change_permutations_or_bootstrap():
    ds = cohort()
    order = np.random.default_rng(1).permutation(ds.sizes["subject"])
    options = {"dim": "node", "n_permutations": 20, "n_bootstrap": 20, "seed": 5}
    a = mixed_model(ds, "y ~ age + load", **options)
    b = mixed_model(ds.isel(subject=order), "y ~ age + load", **options)
    xr.testing.assert_allclose(a.drop_dims("subject"), b.drop_dims("subject"), rtol=1e-7)


def test_mixed_model__blocks_tiles_and_batches_change_nothing(monkeypatch):
    ds = cohort(n_nodes=23)
    y = ds["y"].copy()
    y[5, 3:6] = np.nan
    y[:, 7] = 2.0
    ds = ds.assign(y=y)
    options = {"dim": "node", "n_permutations": 20, "n_bootstrap": 20, "errors": "record"}
    whole = mixed_model(ds, "y ~ age + load", **options)
    monkeypatch.setattr(mixed_jobs, "_BLOCK_BYTES", 8 * ds.sizes["subject"] * 7)
    monkeypatch.setattr(mixed_resampling, "_STACK_BYTES", 8 * ds.sizes["subject"] * 3 * 6)
    monkeypatch.setattr(mixed_resampling, "_TILE_BYTES", 8 * 6 * 3 * 2)
    monkeypatch.setattr(mixed_resampling, "_SAMPLE_BYTES", 8 * 20 * 3 * 2)
    lazy = mixed_model(ds.chunk(subject=9, node=5), "y ~ age + load", **options)
    xr.testing.assert_allclose(whole, lazy, rtol=1e-8)
    assert int(whole["n"][3]) == ds.sizes["subject"] - 1
    assert whole["estimate"][7].isnull().all()
    assert "node 7: outcome 'y' has no variation" in whole.attrs["failures"][0]
    assert whole["p_fwe"].sel(term="age")[[0, 3, 8]].notnull().all()


def test_mixed_model__lazy_outcome_is_read_block_by_block(monkeypatch):
    ds = cohort(n_nodes=40)
    held, widest = ds["y"].values, [0]

    def read(block_info=None):
        low, high = block_info[None]["array-location"][1]
        widest[0] = max(widest[0], high - low)
        return held[:, low:high]

    lazy = da.map_blocks(read, chunks=(held.shape[0], (5,) * 8), dtype=float)
    monkeypatch.setattr(mixed_jobs, "_BLOCK_BYTES", 8 * held.shape[0] * 12)
    blocks = []
    sizes = mixed_jobs._blocks

    def noted(outcome):
        for block in sizes(outcome):
            blocks.append(block.stop - block.start)
            yield block

    monkeypatch.setattr(mixed_jobs, "_blocks", noted)
    result = mixed_model(ds.assign(y=(("subject", "node"), lazy)), "y ~ age", dim="node")
    assert max(blocks) == 10  # whole chunks, at most 12 columns
    assert sum(blocks) == 40
    assert widest[0] == 5
    xr.testing.assert_allclose(result, mixed_model(ds, "y ~ age", dim="node"), rtol=1e-12)


@pytest.mark.parametrize("reml", [True, False])
def test_mixed_model__bootstrap_equals_refits(reml):
    ds = cohort(n_nodes=3, sizes=(4, 5, 6, 7, 8, 9))
    result = mixed_model(ds, "y ~ sex + age + load", dim="node", n_bootstrap=40, seed=2, reml=reml)
    x = design(ds).to_numpy()
    codes = pd.factorize(ds["cohort"].values, sort=True)[0]
    draws = np.random.default_rng(2).integers(0, 6, (40, 6))
    estimates = []
    for drawn in draws:
        rows = np.concatenate([np.flatnonzero(codes == g) for g in drawn])
        new = np.repeat(np.arange(6), [np.sum(codes == g) for g in drawn])
        basis = Basis.of(pd.DataFrame(x[rows], columns=design(ds).columns), new)
        estimates.append(fit_intercepts(basis, ds["y"].values[rows], reml=reml).estimate)
    estimates = np.array(estimates)
    np.testing.assert_allclose(result["se_bootstrap"], estimates.std(axis=0, ddof=1), rtol=1e-6)
    tail = scipy.stats.norm.cdf(-np.sqrt(6 / 5) * scipy.stats.t.ppf(0.975, 5))
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    np.testing.assert_allclose(result["ci_low_bootstrap"], low, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(result["ci_high_bootstrap"], high, rtol=1e-5, atol=1e-8)
    assert (result["n_bootstrap"] == 40).all()


def test_mixed_model__bootstrap_says_when_samples_cannot_be_fitted():
    ds = cohort(sizes=(6, 6, 6))
    ds = ds.assign_coords(one=("subject", (ds["cohort"] == "c0").values * ds["load"].values))
    result = mixed_model(ds, "y ~ one", dim="node", n_bootstrap=200)
    assert 100 < int(result["n_bootstrap"][0]) < 200  # c0 is drawn in 70% of the samples
    assert np.isfinite(result["se_bootstrap"]).all()
    ds = ds.assign_coords(two=("subject", (ds["cohort"] == "c1").values * ds["load"].values))
    with pytest.raises(StatisticsError, match="fewer than half of the 200 bootstrap samples"):
        mixed_model(ds, "y ~ one + two", dim="node", n_bootstrap=200)  # both drawn: 44 %


def test_mixed_model__permutations_over_regions_of_their_own_design():
    ds = cohort(n_nodes=4).rename(node="region")
    rng = np.random.default_rng(0)
    ds = ds.assign(local=(("subject", "region"), rng.normal(size=ds["y"].shape)))
    result = mixed_model(ds, "y ~ local + age", n_permutations=25, permuted=["local"], seed=1)
    alone = mixed_model(
        ds.isel(region=2), "y ~ local + age", n_permutations=25, permuted=["local"], seed=1
    )
    np.testing.assert_allclose(
        result["p_permutation"].isel(region=2).sel(term="local"),
        alone["p_permutation"].sel(term="local"),
    )
    assert (result["max_t"].sel(term="local") >= alone["max_t"].sel(term="local") - 1e-9).all()


def test_mixed_model__permutations_within_people():
    ds = cohort(sizes=(6, 6, 6))
    twice = ds.assign(person=("subject", [f"p{k // 2}" for k in range(18)]))
    with pytest.raises(StatisticsError, match="9 people are in the rows more than once"):
        mixed_model(twice, "y ~ age", dim="node", n_permutations=9)
    mixed_model(twice, "y ~ age", dim="node", n_permutations=9, groups="person")


def test_mixed_model__permutations_keep_their_level():
    """Type I error at 5% of 2,000 outcomes whose cohorts differ, one family-wise in 20."""
    ds = cohort(n_nodes=2000, seed=4, between=2.0)
    y = ds["y"] - 0.02 * ds["age"]
    result = mixed_model(
        ds.assign(y=y), "y ~ age + sex", dim="node", n_permutations=199, permuted=["age"]
    )
    rate = float((result["p_permutation"].sel(term="age") <= 0.05).mean())
    assert 0.035 < rate < 0.066


@pytest.mark.parametrize("errors", ["raise", "record"])
def test_mixed_model__bootstrap_of_two_groups_is_refused(errors):
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"y": ("subject", rng.normal(size=60)), "x": ("subject", rng.normal(size=60))},
        coords={"cohort": ("subject", ["a", "b"] * 30)},
    )
    if errors == "raise":
        with pytest.raises(StatisticsError, match=r"two groups.*one of them alone"):
            mixed_model(ds, "y ~ x", n_bootstrap=20, errors=errors)
        return
    found = mixed_model(ds, "y ~ x", n_bootstrap=20, n_permutations=20, errors=errors)
    assert "two groups" in found.attrs["failures"][0]
    assert np.isfinite(found["estimate"]).all()
    assert np.isnan(found["se_bootstrap"]).all()
    assert np.isfinite(found["p_permutation"].sel(term="x"))


@pytest.mark.parametrize("errors", ["raise", "record"])
def test_mixed_model__a_region_of_two_groups_has_no_bootstrap_and_others_do(errors, caplog):
    ds = cohort(n_nodes=3, sizes=(6, 6, 6, 6))
    y = ds["y"].values.copy()
    y[ds["cohort"].isin(["c2", "c3"]).values, 1] = np.nan
    ds = ds.assign(y=(("subject", "node"), y)).assign_coords(node=["N0", "N1", "N2"])
    found = mixed_model(ds, "y ~ age", dim="node", n_bootstrap=20, errors=errors)
    assert "node N1: no bootstrap, since 'cohort' has two groups" in caplog.text
    (told,) = found.attrs["failures"]
    assert "one of them alone" in told
    assert np.isfinite(found["estimate"]).all()
    assert found["n_bootstrap"].values.tolist() == [20, 0, 20]
    assert np.isnan(found["se_bootstrap"].sel(node="N1")).all()
    alone = mixed_model(ds[["y"]].isel(node=[0, 2]), "y ~ age", dim="node", n_bootstrap=20)
    xr.testing.assert_allclose(
        found["ci_low_bootstrap"].isel(node=[0, 2]), alone["ci_low_bootstrap"], rtol=1e-10
    )


def test_mixed_model__subjects_of_two_levels_are_permuted():
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"y": ("subject", rng.normal(size=40)), "x": ("subject", rng.normal(size=40))},
        coords={"cohort": ("subject", ["a", "b", "c", "d"] * 10)},
    )
    labels = pd.MultiIndex.from_product([range(20), ["1", "2"]], names=["person_number", "visit"])
    levels = xr.Coordinates.from_pandas_multiindex(labels, "subject")
    found = mixed_model(ds.assign_coords(levels), "y ~ x", n_permutations=19)
    flat = ds.assign_coords(subject=[str(label) for label in labels])
    expected = mixed_model(flat, "y ~ x", n_permutations=19)
    xr.testing.assert_equal(found["p_permutation"], expected["p_permutation"])
