import functools

import numpy as np
import pytest
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import ANOTHER_SCAN, inclusion
from scalebrain.stats.choices import Choice, rank_normal, site_choices
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.multiverse import _stability, multiverse
from scalebrain.stats.multiverse_fit import Equation
from scalebrain.stats.sem import DEFAULT_MODEL, sem

PLAIN = {"site": [Choice("pooled")], "icv": [Choice("without_icv")], "scale": [Choice("raw")]}


@pytest.fixture
def cohort(cohort):
    """The same with an effect of lesion volume on one region that no choice can hide."""
    own = xr.zeros_like(cohort["brain_pad_corrected"])
    own[:, :2] = 8 * np.log10(cohort["lesion_volume"].where(cohort["lesion_volume"] > 0, 1))
    return cohort.assign(brain_pad_corrected=cohort["brain_pad_corrected"] + own.fillna(0))


def other_policy(cohort, seed=9):
    noise = np.random.default_rng(seed).normal(0, 1, cohort["brain_pad_corrected"].shape)
    pad = cohort["brain_pad_corrected"]
    return cohort.assign(brain_pad_corrected=pad + xr.DataArray(noise, dims=pad.dims))


def test_multiverse__every_combination_and_what_becomes_of_effects(cohort):
    policies = {"as_is": other_policy(cohort)}
    axes = {"icv": [Choice("with_icv", covariates=("icv",))]}
    result = multiverse(cohort, policies=policies, axes=axes, n_boot=200)
    assert dict(result.sizes) == {"effect": 29, "specification": 16}
    assert set(result["policy"].values) == {"as_stored", "as_is"}
    assert set(result["site"].values) == {c.name for c in site_choices()}
    assert result.attrs["failures"] == []
    planted = result.sel(effect="lesion_volume -> SMN_ipsilesional")
    assert planted["verdict"] in ("robust", "mostly")
    assert planted["same_sign"] == 1
    assert planted["lowest_estimate"] <= planted["median_estimate"] <= planted["highest_estimate"]
    assert result["verdict"].sel(effect="cst -> motor") == "robust"
    assert result["verdict"].sel(effect="cst -> ipsi -> motor -> contra") == "weak"
    clear = result["excludes_zero"].sel(effect="cst -> motor")
    assert clear == 1
    assert (result["ci_low"] < result["estimate"]).all()
    assert (result["estimate"] < result["ci_high"]).all()


def test_multiverse__pooled_paths_are_those_of_the_path_model(cohort):
    result = multiverse(cohort, axes=PLAIN, n_boot=50, seed=4)
    paths = sem(cohort, n_boot=50, seed=4)
    one = result.isel(specification=0)
    for path in paths["path"].values:
        outcome, cause = path.split(" ~ ")
        expected = float(paths["std_estimate"].sel(path=path))
        assert one["estimate"].sel(effect=f"{cause} -> {outcome}") == pytest.approx(expected)
        assert one["n"].sel(effect=f"{cause} -> {outcome}") == int(paths["n"])
    for chain in paths["indirect"].values:
        expected = float(paths["indirect_std_estimate"].sel(indirect=chain))
        assert one["estimate"].sel(effect=chain) == pytest.approx(expected)
    assert result.attrs["model"] == DEFAULT_MODEL


def test_multiverse__random_intercept_is_that_of_the_mixed_model(cohort):
    from scalebrain.features.laterality import to_lesional_sides

    axes = PLAIN | {"site": [site_choices()[0]]}
    result = multiverse(cohort, axes=axes, n_boot=2).isel(specification=0)
    sided = to_lesional_sides(cohort)
    sided = sided.isel(subject=(sided["group"] == "stroke").values & sided["included"].values)
    sided["pad"] = sided["brain_pad_corrected"] / sided["calibration_slope"]
    formula = "pad ~ log10(lesion_volume) + age + sex + days_post_stroke"
    fitted = mixed_model(sided, formula).sel(term="log10(lesion_volume)")
    for region in fitted["region"].values:
        dropped = fitted["dropped"].sel(region=region).values
        part = sided.isel(subject=~dropped).sel(region=region)
        volume = np.log10(part["lesion_volume"].values)
        scale = volume.std() / part["pad"].values.std()
        effect = result.sel(effect=f"lesion_volume -> {region}")
        assert effect["n"] == fitted["n"].sel(region=region)
        expected = float(fitted["estimate"].sel(region=region)) * scale
        assert effect["estimate"] == pytest.approx(expected, rel=1e-6)


def test_equation__replicates_equal_refits_of_repeated_groups():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 8, 60)
    x = rng.normal(size=(60, 2))
    y = x @ [0.4, -0.2] + rng.normal(size=8)[codes] + rng.normal(size=60)
    ratio = 0.7
    weights = rng.multinomial(8, np.full(8, 1 / 8), size=4).astype(float)
    found = Equation.of(y, x, codes, ratio).slopes(weights)
    z = (np.column_stack([x, y]) - np.column_stack([x, y]).mean(axis=0)) / np.column_stack(
        [x, y]
    ).std(axis=0)
    for k, weight in enumerate(weights):
        rows, group = [], []
        for g, times in enumerate(weight.astype(int)):
            for copy in range(times):
                rows += np.flatnonzero(codes == g).tolist()
                group += [g * 100 + copy] * int((codes == g).sum())
        groups = np.array(group)
        v = np.eye(len(rows)) + ratio * (groups[:, None] == groups[None])
        design = np.column_stack([z[rows, :2], np.ones(len(rows))])
        inverse = np.linalg.inv(v)
        beta = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ z[rows, 2])
        sd = z[rows].std(axis=0)  # of the rows drawn
        np.testing.assert_allclose(found[k], beta[:2] * sd[:2] / sd[2], rtol=1e-9)


def test_multiverse__intervals_of_few_cohorts_are_those_of_the_path_model(cohort):
    """The load varies in one of four cohorts; replicates without it are no wilder for that."""
    four = cohort.isel(subject=np.isin(cohort["cohort"].values, [f"site{k}" for k in range(4)]))
    load = four["tract_load"].compute()
    flat = load.where(four["cohort"] == "site0", 0.05 + load / 1000)
    four = four.assign(tract_load=flat.where(load > 0, load))
    result = multiverse(four, axes=PLAIN, n_boot=200, seed=1).isel(specification=0)
    paths = sem(four, n_boot=200, seed=1)
    for path in paths["path"].values:
        outcome, cause = path.split(" ~ ")
        one, two = result.sel(effect=f"{cause} -> {outcome}"), paths.sel(path=path)
        for end in ("ci_low", "ci_high"):
            assert one[end] == pytest.approx(float(two[f"std_{end}"]), rel=1e-6)
    wide = result["ci_high"] - result["ci_low"]
    assert wide.sel(effect="cst -> motor") < 3
    assert result.attrs["n_groups"] == paths.attrs["n_groups"] == 4


def test_multiverse__a_step_is_a_named_function(cohort):
    def turned(ds, *, by):
        return ds.assign(brain_pad_corrected=by * ds["brain_pad_corrected"])

    plain = [choice for choice in site_choices() if choice.prepare is None]
    site = [*plain, Choice("turned", prepare=functools.partial(turned, by=-1.0))]
    axes = {"site": site, "icv": [Choice("none")], "scale": [Choice("raw")]}
    result = multiverse(cohort, axes=axes, n_boot=100)
    assert list(result["site"].values) == ["random_intercept", "pooled", "turned"]
    effect = result.sel(effect="lesion_volume -> SMN_ipsilesional")
    assert effect["estimate"][2] == pytest.approx(-float(effect["estimate"][1]))
    assert effect["verdict"] == "contradictory"


def test_multiverse__harmonized_is_combat_among_the_strokes(cohort):
    from scalebrain.harmonization.cohort import harmonize

    axes = {"icv": [Choice("none")], "scale": [Choice("raw")]}
    result = multiverse(cohort, axes=axes, n_boot=20)
    volume = cohort["lesion_volume"]
    left = (cohort["lesion_hemisphere"] == "L").astype(float)
    treated = harmonize(
        cohort.assign(
            log_volume=np.log10(volume.where(volume > 0)),
            left=left.where(cohort["lesion_hemisphere"].isin(["L", "R"])),
        ),
        covariates=["age", "sex", "log_volume", "left"],
        within="stroke",
    )
    by_hand = cohort.assign(brain_pad_corrected=treated["brain_pad_corrected_harmonized"])
    again = multiverse(
        by_hand, axes=axes | {"site": [site_choices()[0], site_choices()[-1]]}, n_boot=20
    )
    for ours, plain in (
        ("harmonized", "pooled"),
        ("harmonized_random_intercept", "random_intercept"),
    ):
        one = result.isel(specification=list(result["site"].values).index(ours))
        two = again.isel(specification=list(again["site"].values).index(plain))
        np.testing.assert_allclose(one["estimate"], two["estimate"], rtol=1e-9)
        np.testing.assert_allclose(one["ci_high"], two["ci_high"], rtol=1e-9)


def test_site_choices__extrapolated_people_move_no_estimate(cohort):
    beyond = (cohort["age"] > 70).values
    ds = cohort.assign(extrapolated=("subject", beyond))
    prepare = site_choices()[1].prepare
    found = prepare(ds)["brain_pad_corrected"].values[~beyond]
    alone = prepare(ds.isel(subject=~beyond))["brain_pad_corrected"].values
    np.testing.assert_array_equal(found, alone)
    assert np.isfinite(found).any()


def test_multiverse__a_step_that_cannot_be_taken_is_told(cohort):
    one = cohort.assign_coords(
        sex=("subject", np.where(cohort["cohort"] == cohort["cohort"][-1], "M", "F"))
    )
    result = multiverse(one, axes={"icv": [Choice("none")], "scale": [Choice("raw")]}, n_boot=20)
    assert any("harmonized" in why for why in result.attrs["failures"])
    assert (result["n_fitted"] == 2).all()
    clear = result.sel(effect="cst -> motor")  # wherever it was fitted, which is half
    assert clear["excludes_zero"] == 1
    assert clear["verdict"] == "mostly"
    assert "robust" not in result["verdict"].values


def test_multiverse__a_region_of_one_lesioned_side_is_told(cohort):
    left = (cohort["lesion_hemisphere"] == "L") | (cohort["region"] != "SMN_L")
    one = cohort.assign(brain_pad_corrected=cohort["brain_pad_corrected"].where(left))
    result = multiverse(one, axes={"icv": [Choice("none")], "scale": [Choice("raw")]}, n_boot=10)
    why = [told for told in result.attrs["failures"] if "harmonized: " in told]
    assert len(why) == 2
    assert "'SMN_L', where it is not missing: covariate '_left' is 1 in all" in why[0]


def test_multiverse__does_not_depend_on_the_order_of_subjects(cohort):
    order = np.random.default_rng(1).permutation(cohort.sizes["subject"])
    first = multiverse(cohort, axes=PLAIN, n_boot=20)
    again = multiverse(cohort.isel(subject=order), axes=PLAIN, n_boot=20)
    xr.testing.assert_allclose(first, again)


def test_rank_normal__keeps_order_and_shares_ties():
    values = rank_normal(np.array([3.0, 1.0, 3.0, 900.0]))
    assert values[0] == values[2]
    assert values[1] < values[0] < values[3]
    assert values.sum() == pytest.approx(0, abs=0.2)


def test_multiverse__what_cannot_be_fitted_is_listed(cohort):
    pad = cohort["brain_pad_corrected"].values.copy()
    pad[:, 4:6] = 1.5  # the same in both hemispheres
    slope = cohort["calibration_slope"].values.copy()
    slope[4:6] = 1.0
    ds = cohort.assign(
        brain_pad_corrected=(("subject", "region"), pad), calibration_slope=("region", slope)
    )
    result = multiverse(ds, axes=PLAIN, n_boot=10)
    assert "lesion_volume -> DAN_ipsilesional" not in result["effect"].values
    assert len(result.attrs["failures"]) == 2
    assert "has no variation" in result.attrs["failures"][0]


def test_multiverse__refuses_with_a_way_out(cohort):
    with pytest.raises(MissingVariableError, match=r"axis 'icv' needs 'icv'.*leaves the axis out"):
        multiverse(cohort.drop_vars("icv"))
    with pytest.raises(StatisticsError, match="has other subjects"):
        multiverse(cohort, policies={"as_is": cohort.isel(subject=slice(1, None))})
    with pytest.raises(StatisticsError, match="is that of the Dataset itself"):
        multiverse(cohort, policies={"as_stored": cohort})
    with pytest.raises(StatisticsError, match="choices of different names"):
        multiverse(cohort, axes={"site": [Choice("a"), Choice("a")]})
    with pytest.raises(StatisticsError, match="n_boot must be 2 or more"):
        multiverse(cohort, n_boot=0)
    with pytest.raises(MissingVariableError, match="days_post_stroke"):
        multiverse(cohort.drop_vars("days_post_stroke"))
    one = cohort.assign_coords(cohort=("subject", ["a"] * cohort.sizes["subject"]))
    with pytest.raises(StatisticsError, match="of 1 group"):
        multiverse(one)


def test_multiverse__levels_are_those_of_the_people_analyzed(cohort):
    sex = cohort["sex"].values.astype(object)
    sex[0] = "A"  # of a reference
    other = cohort.assign_coords(sex=("subject", sex))
    xr.testing.assert_equal(
        multiverse(other, axes=PLAIN, n_boot=2), multiverse(cohort, axes=PLAIN, n_boot=2)
    )
    sex[40] = "A"
    with pytest.raises(StatisticsError, match="'sex' is text of 3 values"):
        multiverse(cohort.assign_coords(sex=("subject", sex)), axes=PLAIN, n_boot=2)


def test_multiverse__pooled_needs_no_variance_between_groups(cohort):
    """Every person a group: no random intercept, but least squares and its bootstrap."""
    ds = cohort.assign_coords(cohort=("subject", cohort["subject"].values))
    axes = PLAIN | {"site": [one for one in site_choices() if one.prepare is None]}
    result = multiverse(ds, axes=axes, n_boot=20)
    assert list(result["site"].values) == ["random_intercept", "pooled"]
    assert (result["n_fitted"] == 1).all()
    assert np.isfinite(result["ci_low"].sel(specification=1)).all()
    assert all("(as_stored, random_intercept" in why for why in result.attrs["failures"])
    plain = multiverse(cohort, axes=PLAIN, n_boot=2)
    xr.testing.assert_allclose(result["estimate"][:, 1], plain["estimate"][:, 0])


def test_multiverse__pooled_says_why_it_cannot_be_fitted(cohort):
    own = (cohort["cohort"] == "site0") | ~cohort["region"].str.startswith("DAN")
    one = cohort.assign(brain_pad_corrected=cohort["brain_pad_corrected"].where(own))
    why = multiverse(one, axes=PLAIN, n_boot=2).attrs["failures"]
    assert len(why) == 2
    assert "lesion_volume -> DAN_" in why[0]
    assert "usable rows belong to one group, which cannot be resampled" in why[0]
    tied = cohort.assign(years=("subject", 2 * cohort["age"].values))
    covariates = ["age", "sex", "years"]
    why = multiverse(tied, covariates=covariates, axes=PLAIN, n_boot=2).attrs["failures"]
    assert "Pooled: the design is rank deficient" in why[0]
    assert "'years'" in why[0]


def stable(low, high):
    """A result of one effect; missing where it was not fitted."""
    low, high = np.array([low], dtype=float), np.array([high], dtype=float)
    dims = ("effect", "specification")
    intervals = {"estimate": (low + high) / 2, "ci_low": low, "ci_high": high}
    return _stability(xr.Dataset({k: (dims, v) for k, v in intervals.items()}))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ([1, 1, 1, 1], [2, 2, 2, 2], "robust"),
        ([1, 1, 1, np.nan], [2, 2, 2, np.nan], "mostly"),
        ([1, 1, np.nan, np.nan], [2, 2, np.nan, np.nan], "mostly"),
        ([1, np.nan, np.nan, np.nan], [2, np.nan, np.nan, np.nan], "weak"),
        ([1, 1, -1, np.nan], [2, 2, 2, np.nan], "mostly"),
        ([1, -1, -1, np.nan], [2, 2, 2, np.nan], "weak"),
        ([1, 1, -2, np.nan], [2, 2, 1, np.nan], "contradictory"),
        ([1, 1, -2, np.nan], [2, 2, -1, np.nan], "contradictory"),
    ],
)
def test_stability__counts_what_could_not_be_fitted(low, high, verdict):
    assert stable(low, high)["verdict"].item() == verdict


def test_multiverse__imported_ages_are_under_no_policy_of_ours(cohort):
    features = xr.DataArray(np.zeros(cohort.sizes["subject"]), dims="subject")
    ds = cohort.assign(node_features=features.assign_attrs(lesion_policy="mask_nodes"))
    assert list(multiverse(ds, axes=PLAIN, n_boot=2)["policy"].values) == ["mask_nodes"]
    ds["brain_pad_corrected"].attrs["tool"] = "other"
    assert list(multiverse(ds, axes=PLAIN, n_boot=2)["policy"].values) == ["imported"]


def test_multiverse__two_names_for_one_model_are_refused(cohort):
    words = r"'without_icv' and 'with_icv' of axis 'icv' are the same.*since icv is in every model"
    with pytest.raises(StatisticsError, match=words):
        multiverse(cohort, covariates=["age", "icv"])
    with pytest.raises(StatisticsError, match="'a' and 'b' of axis 'site' are the same"):
        multiverse(cohort, axes={"site": [Choice("a"), Choice("b")]})
    axes = PLAIN | {"icv": [Choice("with_icv", covariates=("icv",))]}
    assert multiverse(cohort, covariates=["age", "icv"], axes=axes, n_boot=2).sizes["effect"] == 29


def test_multiverse__harmonizes_where_a_person_has_two_sessions(cohort):
    """Inclusion leaves one of them, so that ComBat takes nobody twice."""
    n = cohort.sizes["subject"]
    person = np.array([f"p{k}" for k in range(n)])
    person[70] = person[64]
    ds = cohort.assign(person=("subject", person), lesion_present=cohort["group"] == "stroke")
    ds = ds.assign(scan_present=("subject", np.ones(n, dtype=bool)))
    ds = ds.assign(inclusion(ds).data_vars)
    assert (ds["exclusion_reason"] == ANOTHER_SCAN).sum() == 1
    with pytest.raises(StatisticsError, match="Multiverse: 1 person is in the rows more than once"):
        multiverse(ds, included=None)
    axes = {"icv": [Choice("none")], "scale": [Choice("raw")]}
    result = multiverse(ds, axes=axes, n_boot=2)
    assert result.attrs["failures"] == []
    assert (result["n_fitted"] == 4).all()


def test_multiverse__and_path_model_survive_a_file(cohort, tmp_path):
    from scalebrain.io.results import read_results, write_results

    made = {
        "sem": sem(cohort, n_boot=10),
        "multiverse": multiverse(cohort, axes=PLAIN, n_boot=10),
    }
    write_results(made, tmp_path / "results.zarr", attrs={})
    read, _ = read_results(tmp_path / "results.zarr")
    for name, result in made.items():
        assert read[name].attrs == result.attrs
        xr.testing.assert_equal(read[name], result)
