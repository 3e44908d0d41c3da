"""Shifts of sites: beside statsmodels' mixed model, and on shifts that were planted."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import xarray as xr

import scalebrain
from scalebrain.errors import MissingVariableError, StatisticsError


def cohort(sites: dict[str, int], *, between: float = 2.0, seed: int = 0, regions: int = 3):
    """Healthy people of some sites, and the shifts that were planted."""
    rng = np.random.default_rng(seed)
    names = np.repeat(list(sites), list(sites.values()))
    planted = rng.normal(0, between, (len(sites), regions))
    own = np.repeat(np.arange(len(sites)), list(sites.values()))
    pad = planted[own] + rng.normal(0, 4, (names.size, regions))
    ds = xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), pad, {"units": "years"}),
            "included": ("subject", np.ones(names.size, dtype=bool)),
        },
        coords={
            "subject": [f"sub-{i}" for i in range(names.size)],
            "region": [f"r{i}" for i in range(regions)],
            "cohort": ("subject", names),
            "group": ("subject", np.full(names.size, "reference")),
        },
    )
    return ds, planted


def test_site_shift__equals_the_random_intercepts_of_a_mixed_model():
    ds, _ = cohort({f"site{i}": 30 for i in range(12)})
    found = scalebrain.site_shift(ds)
    for region in ds["region"].values:
        frame = pd.DataFrame(
            {"y": ds["brain_pad_corrected"].sel(region=region).values, "site": ds["cohort"].values}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = smf.mixedlm("y ~ 1", frame, groups="site").fit(reml=True)
        theirs = {k: fit.fe_params.iloc[0] + v.iloc[0] for k, v in fit.random_effects.items()}
        ours = found["site_shift"].sel(region=region)
        np.testing.assert_allclose(ours, [theirs[c] for c in ours["cohort"].values], atol=2e-4)
        one = found.sel(region=region)
        np.testing.assert_allclose(one["between_sites_sd"] ** 2, fit.cov_re.iloc[0, 0], rtol=1e-3)
        np.testing.assert_allclose(one["within_site_sd"] ** 2, fit.scale, rtol=1e-4)
    assert found["site_shift"].attrs["units"] == "years"


def test_site_shift__is_nearer_to_the_truth_than_means_and_its_interval_holds_it():
    squares, inside = [], []
    for seed in range(60):
        sites = {f"site{i:02}": n for i, n in enumerate([5, 8, 12, 20, 40, 80, 5, 8, 12, 20])}
        ds, planted = cohort(sites, seed=seed)
        found = scalebrain.site_shift(ds)
        squares.append(
            [((found[n].values - planted) ** 2).mean() for n in ("site_shift", "site_mean")]
        )
        low, high = found["site_shift_low"].values, found["site_shift_high"].values
        inside.append((low <= planted) & (planted <= high))
    shrunken, plain = np.mean(squares, axis=0)
    assert shrunken < 0.85 * plain
    assert 0.92 < np.mean(inside) < 0.97


def test_site_shift__takes_the_part_of_the_site_out():
    ds, planted = cohort({"a": 400, "b": 400, "c": 400}, between=5)
    shift = scalebrain.site_shift(ds)["site_shift"]
    left = ds["brain_pad_corrected"] - shift.sel(cohort=ds["cohort"])
    assert left.dims == ("subject", "region")
    assert np.abs(left.groupby("cohort").mean()).max() < 0.1
    assert np.abs(ds["brain_pad_corrected"].groupby("cohort").mean()).max() > 2
    np.testing.assert_allclose(shift, planted, atol=0.7)


def test_site_shift__a_site_without_healthy_people_is_not_known():
    ds, _ = cohort({"a": 10, "b": 10, "c": 10, "d": 10})
    group = ds["group"].values.astype(object)
    group[ds["cohort"].values == "b"] = "stroke"
    ds = ds.assign_coords(group=("subject", group.astype(str)))
    ds["included"] = ds["included"] & (ds["cohort"] != "c")
    found = scalebrain.site_shift(ds)
    assert found["cohort"].values.tolist() == ["a", "b", "c", "d"]
    assert found["n_healthy"].values[:, 0].tolist() == [10, 0, 0, 10]
    for name in ("site_shift", "site_shift_low", "site_shift_high", "site_mean"):
        assert np.isnan(found[name]).values[:, 0].tolist() == [False, True, True, False]
    alone = scalebrain.site_shift(ds.isel(subject=np.isin(ds["cohort"].values, ["a", "d"])))
    xr.testing.assert_allclose(found["site_shift"].sel(cohort=["a", "d"]), alone["site_shift"])


def test_site_shift__one_site_is_its_mean_and_people_without_a_value_do_not_count():
    ds, _ = cohort({"a": 20})
    ds["brain_pad_corrected"][:5, 0] = np.nan
    ds["extrapolated"] = ("subject", np.arange(20) == 19)
    found = scalebrain.site_shift(ds)
    kept = ds["brain_pad_corrected"][:19]
    np.testing.assert_allclose(found["site_shift"][0], kept.mean("subject"))
    assert found["n_healthy"].values.tolist() == [[14, 19, 19]]
    assert np.isnan(found["between_sites_sd"]).all()


def test_site_shift__sites_that_do_not_differ_are_all_at_the_mean():
    ds, _ = cohort({"a": 50, "b": 50})
    pad = ds["brain_pad_corrected"]
    ds["brain_pad_corrected"] = pad.groupby("cohort") - pad.groupby("cohort").mean() + 1.5
    found = scalebrain.site_shift(ds)
    np.testing.assert_allclose(found["site_shift"], 1.5)
    assert (found["between_sites_sd"] == 0).all()


def test_site_shift__of_the_whole_brain():
    ds, _ = cohort({"a": 20, "b": 30})
    whole = ds.isel(region=0, drop=True).rename(brain_pad_corrected="brain_pad_global_corrected")
    found = scalebrain.site_shift(whole)
    assert found["site_shift"].dims == ("cohort",)
    part = scalebrain.site_shift(ds)["site_shift"].isel(region=0)
    np.testing.assert_allclose(found["site_shift"], part)


def test_site_shift__order_of_people_does_not_matter():
    ds, _ = cohort({"a": 20, "b": 30, "c": 5})
    shuffled = ds.isel(subject=np.random.default_rng(0).permutation(55))
    xr.testing.assert_allclose(
        scalebrain.site_shift(ds), shuffled.scalebrain.site_shift(), rtol=1e-10
    )


def test_site_shift__what_is_wrong_is_one_clear_error():
    ds, _ = cohort({"a": 1, "b": 1})
    with pytest.raises(StatisticsError, match=r"2 healthy people of 2 sites.*no two of one site"):
        scalebrain.site_shift(ds)
    with pytest.raises(MissingVariableError, match="'scanner' is missing"):
        scalebrain.site_shift(ds, site="scanner")
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        scalebrain.site_shift(ds, confidence=95)
    named = ds.assign_coords(cohort=("subject", ["a", ""]))
    with pytest.raises(StatisticsError, match="'cohort' of 1 people is empty"):
        scalebrain.site_shift(named)
    with pytest.raises(StatisticsError, match="0 healthy people of 0 sites"):
        scalebrain.site_shift(ds, group="control")
