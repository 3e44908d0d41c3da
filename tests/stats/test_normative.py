"""Centiles among healthy people: uniform where they have to be, and honest about themselves."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.normative import _fit, normative


def people(n_healthy, n_other, seed=0, shift=0.0, regions=3):
    """Skewed, wider with age, other in women; `truth` is the centile in the population."""
    rng = np.random.default_rng(seed)
    n = n_healthy + n_other
    age = rng.uniform(45, 80, n)
    sex = rng.choice(["F", "M"], n)
    u = rng.uniform(size=(n, regions))
    u[n_healthy:] = scipy.stats.norm.cdf(scipy.stats.norm.ppf(u[n_healthy:]) + shift)
    noise = scipy.stats.gamma(4).ppf(u) - 4
    spread = np.exp(0.5 + 0.02 * (age - 60)) * np.where(sex == "M", 1.3, 1.0)
    pad = (1 + 0.05 * (age - 60) + 0.003 * (age - 60) ** 2 + (sex == "M"))[:, None]
    ds = xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), pad + spread[:, None] * noise),
            "calibration_slope": ("region", np.full(regions, 0.7)),
        },
        coords={
            "subject": [f"s{k:05d}" for k in range(n)],
            "region": [f"r{k}" for k in range(regions)],
            "age": ("subject", age),
            "sex": ("subject", sex.astype(object)),
            "group": (
                "subject",
                np.where(np.arange(n) < n_healthy, "reference", "stroke").astype(object),
            ),
        },
    )
    return ds, 100 * u


def test_normative__centiles_of_healthy_people_are_uniform():
    ds, truth = people(1500, 1500)
    out = normative(ds, n_bootstrap=20)
    centile = out["brain_age_centile"].values
    inside = (out["age"] > 46).values & (out["age"] < 79).values
    for k in range(3):
        own, other = (c[np.isfinite(c)] for c in (centile[:1500, k], centile[1500:, k]))
        assert scipy.stats.kstest(own / 100, "uniform").pvalue > 1e-3
        assert scipy.stats.ks_2samp(other, own).pvalue > 1e-3  # both samples vary
    old, men = (out["age"] > 68).values, (out["sex"] == "M").values
    for part in (old & men, old & ~men, ~old & men, ~old & ~men):
        some = centile[part & inside]
        assert abs(np.mean(some) - 50) < 3
        assert abs(np.mean(some > 90) - 0.1) < 0.03
    error = np.abs(centile - truth)[np.isfinite(centile)]
    assert np.quantile(error, 0.95) < 8


def test_normative__the_interval_covers_the_true_centile():
    hit, wide = [], []
    for seed in range(5):
        ds, truth = people(150, 60, seed=seed)
        out = normative(ds, n_bootstrap=40)
        low, high = out["brain_age_centile_low"].values, out["brain_age_centile_high"].values
        some = np.isfinite(low)
        hit.append(((low <= truth) & (truth <= high))[some])
        wide.append((high - low)[some])
        centile = out["brain_age_centile"].values[some]
        assert ((low[some] <= centile) & (centile <= high[some])).all()
    assert 0.9 < np.concatenate(hit).mean() <= 1
    assert np.concatenate(wide).mean() < 25


def test_normative__sex_may_be_categories():
    ds, _ = people(60, 20)
    sex = ds["sex"].values.copy()
    sex[-1] = None
    kinds = (sex, pd.Categorical(sex, categories=["M", "F"]))
    first, again = (normative(ds.assign_coords(sex=("subject", s)), n_bootstrap=20) for s in kinds)
    np.testing.assert_array_equal(again["brain_age_centile"], first["brain_age_centile"])


def test_normative__older_brains_lie_higher():
    ds, _ = people(300, 100, shift=1.0)
    out = normative(ds, n_bootstrap=20)
    sick = out["brain_age_centile"].where(out["group"] == "stroke").mean()
    assert 68 < float(sick) < 84  # one SD up is the centile 76 on average
    scaled = normative(
        ds.assign(brain_pad_corrected=ds["brain_pad_corrected"] * 50), n_bootstrap=20
    )
    np.testing.assert_allclose(scaled["brain_age_centile"], out["brain_age_centile"], atol=1e-9)
    order = np.random.default_rng(1).permutation(400)
    turned = normative(ds.isel(subject=order), n_bootstrap=20)
    np.testing.assert_allclose(
        turned["brain_age_centile"], out["brain_age_centile"].isel(subject=order), atol=1e-9
    )
    assert out["brain_age_centile"].attrs["units"] == "%"


def test_normative__says_who_has_none():
    ds, _ = people(200, 20)
    ds["age"][200], ds["age"][201] = 95.0, np.nan
    ds["sex"][202], ds["sex"][203] = "", "X"
    ds["brain_pad_corrected"][204] = np.nan
    ds["brain_pad_corrected"][205, 1] = np.nan
    ds["brain_pad_corrected"][3, 1] = np.nan
    out = normative(ds, n_bootstrap=20)
    reason = out["centile_reason"].values
    assert "age outside that of the healthy people" in reason[200]
    assert reason[201] == "age is missing"
    assert reason[202] == "sex is missing"
    assert "no healthy people of sex" in reason[203]
    assert reason[204] == "brain_pad_corrected is missing"
    assert np.isnan(out["brain_age_centile"].values[200:205]).all()
    assert list(np.isnan(out["brain_age_centile"].values[205])) == [False, True, False]
    assert (reason[205:] != "").sum() == (
        np.isnan(out["brain_age_centile"].values[206:]).any(axis=1).sum()
    )


def test_normative__nobody_is_placed_where_the_healthy_people_of_a_region_are_others():
    """A region that only men or only younger people have says nothing of the others."""
    ds, _ = people(300, 60)
    healthy, women = (ds["group"] == "reference").values, (ds["sex"] == "F").values
    old = ds["age"].values > 62
    few = np.flatnonzero(healthy & women)[:4]
    pad = ds["brain_pad_corrected"].values
    pad[healthy & women & ~np.isin(np.arange(360), few), 1] = np.nan
    pad[healthy & old, 2] = np.nan
    only = np.flatnonzero(~healthy & women & ~old)[0]
    pad[only, [0, 2]] = np.nan
    late = np.flatnonzero(~healthy & old)[0]
    pad[late, :2] = np.nan
    out = normative(ds, n_bootstrap=20)
    for name in ("brain_age_centile", "brain_age_centile_low", "brain_pad_z"):
        placed = np.isfinite(out[name].values)
        assert not placed[women, 1].any()
        assert not placed[old, 2].any()
        assert (placed[:, 0] == np.isfinite(pad[:, 0])).mean() > 0.97  # but ages at the ends
        assert placed[~healthy & ~women & ~old, 1].mean() > 0.9
    reason = out["centile_reason"].values
    assert reason[only] == "no healthy people of sex 'M' match"
    top = ds["age"].values[healthy & ~old].max()
    assert reason[late].endswith(f"-{top:g})")
    # nor is a man placed among the four women
    pad[few, 1] = np.nan
    again = normative(ds, n_bootstrap=20)["brain_age_centile"]
    np.testing.assert_allclose(again, out["brain_age_centile"], rtol=1e-12)


def test_normative__refuses():
    ds, _ = people(40, 20)
    with pytest.raises(StatisticsError, match=r"40 healthy people.*r0, r1, r2, at least 50"):
        normative(ds)
    with pytest.raises(StatisticsError, match="no five people of one sex"):
        normative(ds, group="none")
    with pytest.raises(MissingVariableError, match="'age' is missing"):
        normative(ds.drop_vars("age"))
    with pytest.raises(MissingVariableError, match="'brain_pad_corrected' is missing"):
        normative(ds.drop_vars("brain_pad_corrected"))
    with pytest.raises(StatisticsError, match=r"'slope' lies over \('region',\)"):
        normative(people(60, 20)[0].assign(slope=("region", np.ones(3))), variable="slope")
    level = people(60, 20)[0]
    level["brain_pad_corrected"][:, 1] = 0.0
    with pytest.raises(StatisticsError, match="the same value in all healthy people, in 1 of 3"):
        normative(level)
    with pytest.raises(StatisticsError, match="n_bootstrap"):
        normative(ds, n_bootstrap=1)


def test_normative__says_which_value_too_few_have():
    ds, _ = people(40, 5)
    one = ds["brain_pad_corrected"].isel(region=0, drop=True)
    whole = ds.drop_dims("region").assign(brain_pad_global=one)
    with pytest.raises(StatisticsError, match="have a value of the whole brain, at least 50") as no:
        normative(whole)
    assert str(no.value).endswith("Bring in more references.")
    with pytest.raises(StatisticsError, match="have a value of 'thickness', at least 50"):
        normative(whole.assign(thickness=one), variable="thickness")


def again(ds, rows, name, **changes):
    """The Dataset with further scans of some people, under other ids."""
    more = ds.isel(subject=rows)
    more = more.assign_coords(subject=[f"{s}_{name}" for s in more["subject"].values])
    return xr.concat([ds, more.assign_coords(**changes)], "subject", data_vars="minimal")


def test_normative__counts_people_and_not_scans():
    """Copies of the scans of healthy people change nothing, and are no people."""
    ds, _ = people(60, 40)
    ds = ds.assign_coords(person=("subject", ds["subject"].values))
    before = normative(ds, n_bootstrap=20)
    twice = again(again(ds, np.arange(60), "b"), np.arange(20), "c")
    after = normative(twice, n_bootstrap=20)
    names = ("brain_age_centile", "brain_age_centile_low", "brain_age_centile_high", "brain_pad_z")
    for name in names:
        np.testing.assert_allclose(after[name][:100], before[name], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(after[name][100:160], before[name][:60], rtol=1e-6, atol=1e-6)
    assert after["brain_age_centile"].attrs["healthy"].startswith("60 of group")
    few, _ = people(30, 20)
    few = few.assign_coords(person=("subject", few["subject"].values))
    with pytest.raises(StatisticsError, match="30 healthy people"):
        normative(again(few, np.arange(30), "b"))


def test_normative__nobody_is_placed_by_her_own_scan_under_another_id():
    ds, _ = people(120, 20)
    marks = np.array([f"scan {k}" for k in range(140)])
    ds = ds.assign_coords(scan_hash=("subject", marks))
    before = normative(ds, n_bootstrap=20)
    group = ("subject", np.full(10, "stroke", dtype=object))
    after = normative(again(ds, np.arange(10), "b", group=group), n_bootstrap=20)
    for name in ("brain_age_centile", "brain_pad_z"):
        np.testing.assert_array_equal(after[name][:140], before[name])
        np.testing.assert_array_equal(after[name][140:], before[name][:10])


def test_fit__maximizes_the_likelihood():
    import scipy.optimize

    rng = np.random.default_rng(0)
    a = rng.normal(size=120)
    x, s = np.column_stack([np.ones(120), a, a**2]), np.column_stack([np.ones(120), a])
    y = x @ [1.0, 0.5, -0.2] + np.exp(s @ [0.3, 0.4]) * rng.normal(size=120)
    mean, scale = _fit(y[:, None], x, s, np.ones((120, 1)))

    def deviance(v):
        log_sd = s @ v[3:]
        return (log_sd + 0.5 * ((y - x @ v[:3]) / np.exp(log_sd)) ** 2).sum()

    best = scipy.optimize.minimize(deviance, np.r_[mean[:, 0], scale[:, 0]] + 0.05, tol=1e-12)
    np.testing.assert_allclose(np.r_[mean[:, 0], scale[:, 0]], best.x, atol=1e-5)
