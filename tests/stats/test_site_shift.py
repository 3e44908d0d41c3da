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
    sizes = [5, 8, 12, 20, 40, 80, 5, 8, 12, 20]
    squares, inside = simulated(sizes, between=2.0, n=150)
    assert squares[0] < 0.85 * squares[1]
    assert 0.93 < inside < 0.96
    for few in ([10] * 3, [20] * 5):  # what is unknown of the variance between sites counts
        assert 0.94 < simulated(few, between=1.0, n=150)[1] < 0.995


def simulated(sizes: list[int], *, between: float, n: int) -> tuple[np.ndarray, float]:
    """Mean squared errors of shifts and plain means, and how many intervals hold the shift."""
    squares, inside = [], []
    for seed in range(n):
        sites = {f"site{i:02}": size for i, size in enumerate(sizes)}
        ds, planted = cohort(sites, between=between, seed=seed)
        found = scalebrain.site_shift(ds)
        squares.append(
            [((found[name].values - planted) ** 2).mean() for name in ("site_shift", "site_mean")]
        )
        low, high = found["site_shift_low"].values, found["site_shift_high"].values
        inside.append((low <= planted) & (planted <= high))
    return np.mean(squares, axis=0), float(np.mean(inside))


def test_site_shift__takes_the_part_of_the_site_out():
    ds, planted = cohort({"a": 400, "b": 400, "c": 400}, between=5)
    shift = scalebrain.site_shift(ds)["site_shift"]
    left = ds["brain_pad_corrected"] - shift.sel(cohort=ds["cohort"])
    assert left.dims == ("subject", "region")
    assert np.abs(left.groupby("cohort").mean()).max() < 0.1
    assert np.abs(ds["brain_pad_corrected"].groupby("cohort").mean()).max() > 2
    np.testing.assert_allclose(shift, planted, atol=0.7)


def test_site_shift__its_example_runs_with_a_patient_of_no_cohort():
    ds, _ = cohort({"a": 10, "b": 10, "": 2})
    nowhere = ds["cohort"] == ""
    ds = ds.assign_coords(group=xr.where(nowhere, "stroke", ds["group"]))
    lines = (scalebrain.site_shift.__doc__ or "").partition("Examples")[2].splitlines()
    *first, last = [line.partition(">>> ")[2] for line in lines if ">>> " in line]
    names = {"sb": scalebrain, "ds": ds}
    exec("\n".join(first), names)
    left = eval(last.partition("  #")[0], names)
    np.testing.assert_array_equal(np.isnan(left).all("region"), nowhere)


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


def test_site_shift__scans_of_one_person_count_once():
    ds, _ = cohort({"a": 20, "b": 30})
    twice = xr.concat([ds, ds.isel(subject=slice(10, 30))], dim="subject")
    person = np.concatenate([np.arange(50), np.arange(10, 30)]).astype(str)
    twice = twice.assign_coords(
        subject=[f"scan-{i}" for i in range(70)], person=("subject", person)
    )
    xr.testing.assert_allclose(scalebrain.site_shift(twice), scalebrain.site_shift(ds))


def test_site_shift__a_region_without_values_leaves_the_others():
    ds, _ = cohort({"a": 20, "b": 30})
    part = ds.copy(deep=True)
    part["brain_pad_corrected"][:, 1] = np.nan
    found, whole = scalebrain.site_shift(part), scalebrain.site_shift(ds)
    assert np.isnan(found["site_shift"].sel(region="r1")).all()
    assert (found["n_healthy"].sel(region="r1") == 0).all()
    rest = {"region": ["r0", "r2"]}
    xr.testing.assert_allclose(found.sel(rest), whole.sel(rest))


def test_site_shift__a_single_person_beside_other_sites_and_lazy_values():
    ds, _ = cohort({"a": 20, "b": 30, "c": 1})
    found = scalebrain.site_shift(ds.chunk(subject=7))
    plain = ds["brain_pad_corrected"][-1]
    assert found["n_healthy"].dtype == np.int64
    assert (found["n_healthy"].sel(cohort="c") == 1).all()
    np.testing.assert_allclose(found["site_mean"].sel(cohort="c"), plain)
    assert (np.abs(found["site_shift"].sel(cohort="c")) < np.abs(plain)).all()


def test_site_shift__sites_may_be_numbers():
    ds, _ = cohort({"a": 20, "b": 30})
    number = ds.assign(scanner=("subject", np.where(ds["cohort"] == "a", 3, 1)))
    shift = scalebrain.site_shift(number, site="scanner")["site_shift"]
    assert shift["scanner"].values.tolist() == [1, 3]
    by_name = scalebrain.site_shift(ds)["site_shift"]
    np.testing.assert_allclose(shift.sel(scanner=number["scanner"])[0], by_name.sel(cohort="a"))


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
    with pytest.raises(StatisticsError, match="2 healthy people: no two of one site"):
        scalebrain.site_shift(ds)
    with pytest.raises(MissingVariableError, match="'scanner' is missing"):
        scalebrain.site_shift(ds, site="scanner")
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        scalebrain.site_shift(ds, confidence=95)
    for empty in ("", None):
        named = ds.assign_coords(cohort=("subject", np.array(["a", empty], dtype=object)))
        with pytest.raises(StatisticsError, match="'cohort' of 1 healthy people is empty"):
            scalebrain.site_shift(named)
    with pytest.raises(StatisticsError, match="0 healthy people"):
        scalebrain.site_shift(ds, group="control")
    other = ds.assign_coords(group=("subject", ["control", "stroke"]))
    words = "no subject is of the group 'reference'. The groups are: control, stroke."
    with pytest.raises(StatisticsError, match=words):
        scalebrain.site_shift(other)
    with pytest.raises(MissingVariableError, match="over 'subject'"):
        scalebrain.site_shift(ds.assign(cohort_of_all=1), site="cohort_of_all")
    biased = ds.rename(brain_pad_corrected="brain_pad")
    biased["brain_pad"].attrs["tool"] = "another"
    with pytest.raises(StatisticsError, match="age bias of brain_pad is not corrected"):
        scalebrain.site_shift(biased)
