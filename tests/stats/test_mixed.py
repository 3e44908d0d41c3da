import json
import logging
import shutil
import subprocess
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.stats import mixed_fit
from scalebrain.stats.frame import subject_frame
from scalebrain.stats.mixed import mixed_model
from tests.conftest import missing

REFERENCE = Path(__file__).parent.parent / "reference" / "mixed_reference.json"
FORMULA = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"


CASES = {
    "balanced": "pad ~ scale(log10(volume)) + age + sex",
    "unequal": "pad ~ scale(log10(volume)) + age + sex",
    "boundary": "pad ~ scale(log10(volume)) + age + sex",
    "small_variance": "pad ~ scale(log10(volume)) + age + sex",
    "collinear": "pad ~ log10(volume) + log10(volume_mm3) + age + sex",
    "missing": "pad ~ scale(log10(volume)) + age + sex",
    "scales": "pad ~ volume + age + sex + icv",
    "weights": "pad ~ age + sex",
    "slope": "pad ~ scale(age) + sex + (1 + scale(age) | cohort)",
    "slope_singular": "pad ~ scale(age) + sex + (scale(age) | cohort)",
}


def values(column):
    if any(isinstance(value, str) for value in column):
        return np.array(["" if value is None else value for value in column], dtype=object)
    return np.array([np.nan if value is None else value for value in column], dtype=float)


def reference(name, file=REFERENCE):
    case = json.loads(file.read_text())[name]
    return case, xr.Dataset({k: ("subject", values(v)) for k, v in case["data"].items()})


def check_against_lme4(name, kind, file=REFERENCE):
    case, ds = reference(name, file)
    expected = case[kind]
    result = mixed_model(
        ds,
        CASES[name],
        reml=kind == "reml",
        weights="weight" if name == "weights" else None,
    )
    assert len(expected["term"]) == result.sizes["term"]
    assert int(result["n"]) == expected["n"]
    np.testing.assert_allclose(result["estimate"], expected["estimate"], rtol=1e-6)
    np.testing.assert_allclose(result["se"], expected["se"], rtol=1e-6)
    np.testing.assert_allclose(result["df"], expected["df"], rtol=1e-4)
    np.testing.assert_allclose(result["p"], expected["p"], rtol=1e-4)
    np.testing.assert_allclose(result["log_likelihood"], expected["log_likelihood"], rtol=1e-12)
    np.testing.assert_allclose(
        result["residual_variance"], expected["residual_variance"], rtol=1e-6
    )
    for part in ("group_variance", "slope_variance", "slope_covariance"):
        if part in expected:
            np.testing.assert_allclose(result[part], expected[part], rtol=1e-5)
    assert bool(result["boundary"]) == (name in ("boundary", "slope_singular"))


@pytest.mark.parametrize("kind", ["reml", "ml"])
@pytest.mark.parametrize("name", CASES)
def test_mixed_model__agrees_with_lme4_and_lmertest(name, kind):
    check_against_lme4(name, kind)


def test_mixed_model__agrees_with_the_lme4_installed_here(tmp_path):
    packages = (
        "for (p in c('lme4', 'lmerTest', 'jsonlite', 'numDeriv')) library(p, character.only=T)"
    )
    if (
        shutil.which("Rscript") is None
        or subprocess.run(["Rscript", "-e", packages], capture_output=True, check=False).returncode
    ):
        missing("R with lme4, lmerTest and jsonlite")
    out = tmp_path / "reference.json"
    subprocess.run(
        ["Rscript", str(REFERENCE.with_suffix(".R")), str(out)], check=True, capture_output=True
    )
    for name in CASES:
        for kind in ("reml", "ml"):
            check_against_lme4(name, kind, out)


def test_mixed_model__many_groups_equal_few(monkeypatch):
    for name in ("unequal", "boundary", "missing"):
        _, ds = reference(name)
        for reml in (True, False):
            few = mixed_model(ds, CASES[name], reml=reml)
            monkeypatch.setattr(mixed_fit, "_MANY_GROUPS", 0)
            many = mixed_model(ds, CASES[name], reml=reml)
            monkeypatch.undo()
            xr.testing.assert_allclose(few, many, rtol=1e-8)


def test_mixed_model__standardized_equals_a_fit_of_standardized_columns():
    _, ds = reference("unequal")
    raw = mixed_model(ds, "pad ~ age + volume")
    z = ds.assign(
        {
            name: (ds[name] - ds[name].mean()) / ds[name].std(ddof=1)
            for name in ("pad", "age", "volume")
        }
    )
    scaled = mixed_model(z, "pad ~ age + volume")
    np.testing.assert_allclose(raw["estimate_standardized"][1:], scaled["estimate"][1:], rtol=1e-9)
    np.testing.assert_allclose(raw["se_standardized"][1:], scaled["se"][1:], rtol=1e-9)
    assert np.isnan(raw["estimate_standardized"][0])
    np.testing.assert_allclose(scaled["estimate_standardized"][1:], scaled["estimate"][1:])


def test_mixed_model__slope_does_not_depend_on_units():
    _, ds = reference("slope")
    plain = mixed_model(ds, "pad ~ age + (1 + age | cohort)")
    days = mixed_model(ds.assign(age=ds["age"] * 1e6 + 7), "pad ~ age + (1 + age | cohort)")
    np.testing.assert_allclose(days["estimate"][1] * 1e6, plain["estimate"][1], rtol=1e-6)
    np.testing.assert_allclose(days["slope_variance"] * 1e12, plain["slope_variance"], rtol=1e-5)
    np.testing.assert_allclose(
        plain["log_likelihood"] - days["log_likelihood"], np.log(1e6), rtol=1e-8
    )


@pytest.mark.parametrize(
    ("formula", "options", "match"),
    [
        ("y ~ age + (0 + age | cohort)", {}, "comes with a random intercept"),
        ("y ~ age + (age + w | cohort)", {}, "expected one random slope, got 2"),
        ("y ~ age + (cohort | cohort)", {}, "one column of numbers"),
        ("y ~ age + (1 + between | cohort)", {}, "'between' does not vary within any group"),
        ("y ~ age + (age | cohort)", {"n_permutations": 9}, "random intercept alone"),
        ("y ~ age", {"n_permutations": 1}, "whole number from 2"),
        ("y ~ age", {"permuted": ["age"]}, "without permutations"),
        ("y ~ age", {"n_permutations": 9, "permuted": ["sex"]}, "the terms are Intercept, age"),
        ("y ~ between", {"n_permutations": 9, "permuted": ["between"]}, "cannot test it"),
        ("y ~ 0 + age", {"n_permutations": 9}, "only column of the design"),
        ("y ~ age", {"n_permutations": 9, "weights": "w"}, "cannot be exchanged"),
        ("y ~ age", {"weights": "zero"}, "1 of 12 are zero or negative"),
        ("y ~ age", {"confidence": 1.0}, "between 0 and 1"),
    ],
)
def test_mixed_model__refuses_options_with_a_way_out(formula, options, match):
    ds = small(w=np.linspace(1, 2, 12), zero=np.arange(12.0), between=np.repeat([1.0, 2.0, 5.0], 4))
    with pytest.raises(StatisticsError, match=match):
        mixed_model(ds, formula, **options)


def test_mixed_model__agrees_with_statsmodels(cohort):
    import statsmodels.formula.api as smf

    ds = cohort.isel(region=slice(0, 3))
    result = mixed_model(ds, "brain_pad_corrected ~ age + sex", included=None)
    for region in ds["region"].values:
        frame = subject_frame(ds, ["brain_pad_corrected", "age", "sex", "cohort"], at=region)
        frame = frame.dropna()
        fit = smf.mixedlm("brain_pad_corrected ~ age + sex", frame, groups=frame["cohort"]).fit(
            method="powell", reml=True
        )
        # bse_fe inverts the joint Hessian with the variances; lme4 and we take the
        # generalized least squares covariance, made here from the fitted variances.
        codes = pd.factorize(frame["cohort"], sort=True)[0]
        z = np.eye(codes.max() + 1)[codes]
        v = fit.scale * np.eye(len(frame)) + float(fit.cov_re.iloc[0, 0]) * z @ z.T
        se = np.sqrt(np.diag(np.linalg.inv(fit.model.exog.T @ np.linalg.solve(v, fit.model.exog))))
        ours = result.sel(region=region, term=fit.model.exog_names)
        np.testing.assert_allclose(ours["estimate"], fit.fe_params, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours["se"], se, rtol=1e-3)
        np.testing.assert_allclose(ours["residual_variance"], fit.scale, rtol=1e-3)


def test_mixed_model__boundary_equals_least_squares(caplog):
    _, ds = reference("boundary")
    with caplog.at_level(logging.INFO):
        result = mixed_model(ds, "pad ~ age")
    line = scipy.stats.linregress(ds["age"], ds["pad"])
    assert bool(result["boundary"])
    assert float(result["group_variance"]) == 0
    np.testing.assert_allclose(result["estimate"], [line.intercept, line.slope], rtol=1e-9)
    np.testing.assert_allclose(result["se"], [line.intercept_stderr, line.stderr], rtol=1e-9)
    np.testing.assert_allclose(result["p"][1], line.pvalue, rtol=1e-9)
    assert "no variance between 'cohort', which equals least squares" in caplog.text
    assert "None" not in caplog.text
    with caplog.at_level(logging.INFO):
        gap = ds.assign(
            age=("subject", np.where(np.arange(len(ds["age"])) == 1, np.nan, ds["age"]))
        )
        told = mixed_model(gap, "pad ~ age").attrs["rows_dropped"]
    assert "subjects (age missing" in told  # there are no regions to speak of


def deviance(y, x, codes, ratio):
    """REML deviance from the full covariance matrix."""
    z = np.eye(codes.max() + 1)[codes]
    v = np.eye(len(y)) + ratio * z @ z.T
    inverse = np.linalg.inv(v)
    a = x.T @ inverse @ x
    residual = y - x @ np.linalg.solve(a, x.T @ inverse @ y)
    dof = len(y) - x.shape[1]
    logs = np.linalg.slogdet(v)[1] + np.linalg.slogdet(a)[1]
    return logs + dof * np.log(residual @ inverse @ residual)


@pytest.mark.parametrize("seed", range(8))
def test_mixed_model__finds_the_lowest_deviance(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 7, 60)
    codes[:7] = np.arange(7)
    age = rng.uniform(40, 80, 60)
    y = 0.1 * age + rng.normal(0, 3, 7)[codes] * rng.choice([0, 0.3, 3]) + rng.normal(0, 2, 60)
    ds = xr.Dataset(
        {"y": ("subject", y), "age": ("subject", age), "cohort": ("subject", codes.astype(str))}
    )
    result = mixed_model(ds, "y ~ age")
    x = np.column_stack([np.ones(60), age])
    best = float(result["group_variance"] / result["residual_variance"])
    lowest = deviance(y, x, codes, best)
    for ratio in (0, best / 2, best * 0.99, best * 1.01, best * 2, *np.logspace(-5, 4, 40)):
        assert lowest <= deviance(y, x, codes, ratio) + 1e-8


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_mixed_model__scales_with_outcome_and_predictor(factor):
    _, ds = reference("unequal")
    plain = mixed_model(ds, "pad ~ age + volume")
    scaled = mixed_model(
        ds.assign(pad=ds["pad"] * factor, age=ds["age"] / factor), "pad ~ age + volume"
    )
    unit = xr.DataArray([factor, factor**2, factor], dims="term")
    np.testing.assert_allclose(scaled["estimate"], plain["estimate"] * unit, rtol=1e-7)
    np.testing.assert_allclose(scaled["se"], plain["se"] * unit, rtol=1e-7)
    np.testing.assert_allclose(scaled["df"], plain["df"], rtol=1e-6)


def test_mixed_model__store_with_references_and_gaps(cohort, caplog):
    with caplog.at_level(logging.WARNING):
        result = mixed_model(cohort, FORMULA)
    assert result["estimate"].dims == ("region", "term")
    assert result.sizes["region"] == 18
    # 30 references, one excluded, one volume of zero; one PAD is missing in DAN_L.
    assert result["n"].sel(region="SMN_L") == 58
    assert result["n"].sel(region="DAN_L") == 57
    assert (result["n"] + result["n_dropped"] == 90).all()
    assert result["dropped"].sel(region="DAN_L", subject="sub-032")
    assert not result["dropped"].sel(region="SMN_L", subject="sub-032")
    assert result["dropped"].sel(subject="sub-037").all()
    told = result.attrs["rows_dropped"]
    assert "log10(lesion_volume) not finite: 1" in told
    beyond = cohort.assign(extrapolated=("subject", np.arange(90) < 4))
    for included, why in (
        ("included", "included is False, or the age is extrapolated: 5"),
        (None, "the age is extrapolated: 4"),
    ):
        some = mixed_model(beyond, "icv ~ age", included=included)
        assert f"({why})" in some.attrs["rows_dropped"]
    assert "lesion_volume missing or infinite: 30" in told
    assert "log10(lesion_volume) not finite: 1" in caplog.text
    assert np.isfinite(result["estimate"]).all()
    assert dask.is_dask_collection(cohort["t1w"].data)


def test_mixed_model__recovers_the_effect_on_lesional_sides(cohort):
    sides = to_lesional_sides(cohort)
    result = mixed_model(sides, "brain_pad_corrected ~ scale(log(lesion_volume)) + age")
    effect = result["estimate"].sel(term="scale(log(lesion_volume))")
    own = [str(region).endswith("_ipsilesional") for region in result["region"].values]
    assert float(effect[own].mean()) > 0.5 > abs(float(effect[~np.array(own)].mean()))


def test_mixed_model__scale_uses_the_rows_used(cohort):
    frame = subject_frame(cohort, ["lesion_volume"])
    result = mixed_model(cohort, "brain_pad_corrected ~ scale(log10(lesion_volume))")
    log_volume = np.log10(frame["lesion_volume"].where(frame["lesion_volume"] > 0))
    used = ~result["dropped"].sel(region="SMN_L").values
    z = (log_volume - log_volume[used].mean()) / log_volume[used].std()
    same = mixed_model(cohort.assign(z=("subject", z.to_numpy())), "brain_pad_corrected ~ z")
    np.testing.assert_allclose(
        result["estimate"].sel(region="SMN_L"), same["estimate"].sel(region="SMN_L"), rtol=1e-9
    )


def test_mixed_model__shared_design_equals_region_by_region(cohort):
    together = mixed_model(cohort, FORMULA)
    for region in ("SMN_L", "DAN_L"):
        alone = mixed_model(
            cohort.assign(one=cohort["brain_pad_corrected"].sel(region=region, drop=True)),
            FORMULA.replace("brain_pad_corrected", "one"),
        )
        assert "region" not in alone.dims
        np.testing.assert_allclose(alone["estimate"], together["estimate"].sel(region=region))
        np.testing.assert_allclose(alone["df"], together["df"].sel(region=region))
        np.testing.assert_allclose(alone["q"], alone["p"])


def test_mixed_model__predictor_over_regions(cohort):
    result = mixed_model(
        cohort, "I(brain_pad_corrected / calibration_slope) ~ lesion_load + age + (1 | cohort)"
    )
    assert result["estimate"].shape == (18, 3)
    region = "VIS_R"
    one = cohort.sel(region=region, drop=True)
    alone = mixed_model(
        one.assign(y=one["brain_pad_corrected"] / one["calibration_slope"]), "y ~ lesion_load + age"
    )
    np.testing.assert_allclose(alone["estimate"], result["estimate"].sel(region=region), rtol=1e-9)


def test_mixed_model__q_is_benjamini_hochberg_within_term_and_family(cohort):
    result = mixed_model(cohort, "brain_pad_corrected ~ age + sex")
    for term in result["term"].values:
        p = result["p"].sel(term=term)
        np.testing.assert_allclose(
            result["q"].sel(term=term), scipy.stats.false_discovery_control(p)
        )
    family = ["SMN_L", "SMN_R", "FPN_L"]
    part = mixed_model(cohort, "brain_pad_corrected ~ age", family=family)
    assert part["q"].notnull().all("term").sum() == 3
    assert part.attrs["family_size"] == 3
    with pytest.raises(StatisticsError, match="SMN_X"):
        mixed_model(cohort, "brain_pad_corrected ~ age", family=["SMN_X"])


def test_mixed_model__order_of_subjects_does_not_matter(cohort):
    order = np.random.default_rng(1).permutation(cohort.sizes["subject"])
    a = mixed_model(cohort, FORMULA)
    b = mixed_model(cohort.isel(subject=order), FORMULA)
    xr.testing.assert_allclose(a.drop_dims("subject"), b.drop_dims("subject"), rtol=1e-8)


def small(**columns):
    rng = np.random.default_rng(3)
    base = {
        "y": rng.normal(size=12),
        "age": rng.uniform(40, 80, 12),
        "cohort": np.repeat(["a", "b", "c"], 4),
    }
    return xr.Dataset({k: ("subject", v) for k, v in (base | columns).items()})


@pytest.mark.parametrize(
    ("ds", "formula", "match"),
    [
        (small(), "y ~ age + I(2 * age + 1)", r"rank deficient: '.*age.*' = combination of .*age"),
        (small(flat=np.ones(12)), "y ~ age + flat", "'flat' has the same value in all 12 rows"),
        (small(sex=np.repeat("F", 12)), "y ~ age + sex", "'sex' has the same value"),
        (small(cohort=np.repeat("a", 12)), "y ~ age", "one 'cohort'.*Pass a `groups`"),
        (small(cohort=np.arange(12).astype(str)), "y ~ age", "a 'cohort' of its own"),
        (small(y=np.ones(12)), "y ~ age", "no variation"),
        (small(y=np.arange(12.0), age=2 * np.arange(12.0)), "y ~ age", "no variation"),
        (small(y=np.repeat([1.0, 3.0, 4.0], 4)), "y ~ 1", "does not vary within"),
        (small(age=np.full(12, np.nan)), "y ~ age", "leaves none of 12 rows.*age missing.*: 12"),
        (small(age=np.zeros(12)), "y ~ log10(age)", r"leaves none.*log10\(age\) not finite: 12"),
        (small(), "y ~ bs(age, df=11)", "usable rows for"),
        (small(), "age", "no outcome"),
        (small(), "y ~ age +", "cannot be parsed"),
        (small(), "cohort ~ age", "one column of numbers"),
        (small(), "y ~ age + (1 | age)", "random effects by .age."),
        (small(), "y ~ age + (1 | cohort) + (age | cohort)", "one random intercept is fitted"),
    ],
)
def test_mixed_model__refuses_with_a_way_out(ds, formula, match):
    with pytest.raises(StatisticsError, match=match):
        mixed_model(ds, formula)


def test_mixed_model__unknown_name_lists_what_there_is():
    with pytest.raises(MissingVariableError, match=r"'agee'.*age, cohort, y"):
        mixed_model(small(), "y ~ scale(log10(agee))")
    with pytest.raises(MissingVariableError, match="'site'"):
        mixed_model(small(), "y ~ age", groups="site")


def test_mixed_model__failures_are_gathered_or_recorded(cohort):
    load = cohort["lesion_load"].compute().copy()
    load.loc[{"region": ["VIS_L", "VIS_R"]}] = 0.0
    ds = cohort.assign(lesion_load=load)
    with pytest.raises(StatisticsError, match=r"2 problems(?s:.)*VIS_L(?s:.)*VIS_R"):
        mixed_model(ds, "brain_pad_corrected ~ lesion_load + age")
    result = mixed_model(ds, "brain_pad_corrected ~ lesion_load + age", errors="record")
    bad = result["estimate"].isnull().all("term")
    assert sorted(result["region"].values[bad]) == ["VIS_L", "VIS_R"]
    unfitted = result.isel(region=bad.values)
    assert (unfitted["n"] == 0).all()
    assert (unfitted["n_groups"] == 0).all()
    assert unfitted["dropped"].all()
    assert (result["n"] + result["n_dropped"] == ds.sizes["subject"]).all()
    assert "31 of 90 subjects in every region, 1 more in some" in result.attrs["rows_dropped"]
    assert len(result.attrs["failures"]) == 2
    assert result["q"].sel(region="SMN_L").notnull().all()
    alone = ds.assign_coords(cohort=("subject", ds["subject"].values))
    with pytest.raises(StatisticsError, match="a 'cohort' of its own"):
        mixed_model(alone, "brain_pad_corrected ~ age", errors="record")


@pytest.mark.parametrize("predictor", ["age", "load"])  # over people, and over regions
def test_mixed_model__levels_are_compared_with_the_same_one_in_every_region(predictor):
    rng = np.random.default_rng(1)
    scanner = np.repeat(["a", "b", "c", "none"], [30, 30, 30, 3]).astype(object)
    y = np.repeat([0.0, 5.0, 6.0, 9.0], [30, 30, 30, 3])[:, None] + rng.normal(size=(93, 4))
    y[:30, 1], y[60:90, 2], y[90:] = np.nan, np.nan, np.nan
    ds = xr.Dataset(
        {
            "y": (("subject", "region"), y),
            "scanner": ("subject", scanner),
            "load": (("subject", "region"), rng.normal(size=(93, 4))),
            "age": ("subject", rng.uniform(40, 80, 93)),
            "cohort": ("subject", np.arange(93) % 6),
        },
        coords={"region": ["R1", "R2", "R3", "R4"]},
    )
    formula = f"y ~ scanner + {predictor}"
    with pytest.raises(StatisticsError, match=r"R2: .*nobody of 60 rows has .a. of .scanner"):
        mixed_model(ds, formula)
    for one in (ds, ds.chunk({"region": 1})):
        result = mixed_model(one, formula, errors="record")
        assert len(result.attrs["failures"]) == 1
        b, c = (result["estimate"].sel(term=f"scanner[T.{x}]").values for x in "bc")
        np.testing.assert_allclose(b, [5, np.nan, 5, 5], atol=1)
        np.testing.assert_allclose(c, [6, np.nan, np.nan, 6], atol=1)
    # a level that no outcome has is nobody's reference; another one may be named
    again = ds.assign(scanner=("subject", np.where(scanner == "none", "0", scanner)))
    assert len(mixed_model(again, formula, errors="record").attrs["failures"]) == 1
    named = mixed_model(ds, f"y ~ C(scanner, contr.treatment('b')) + {predictor}")
    own = named["estimate"].sel(term="C(scanner, contr.treatment('b'))[T.c]")
    np.testing.assert_allclose(own, [1, 1, np.nan, 1], atol=1)
    coded = mixed_model(ds, f"y ~ C(scanner, contr.sum) + {predictor}", errors="record")
    assert len(coded.attrs["failures"]) == 2  # the mean of all is another one in either
    whole = mixed_model(ds, f"y ~ 0 + scanner + {predictor}", errors="record")
    assert "failures" not in whole.attrs


def test_mixed_model__other_dimension_than_region():
    rng = np.random.default_rng(0)
    ds = small().assign(thickness=(("subject", "node"), rng.normal(size=(12, 300))))
    result = mixed_model(ds, "thickness ~ age", dim="node")
    assert result["estimate"].shape == (300, 2)
    assert result["dropped"].shape == (300, 12)


def test_mixed_model__intervals_cover_at_their_level():
    rng = np.random.default_rng(5)
    n_regions, codes = 2000, np.repeat(np.arange(8), 6)
    y = rng.normal(0, 1, (8, n_regions))[codes] + rng.normal(0, 1, (48, n_regions))
    between = rng.normal(size=8)[codes]  # varies between cohorts only: 6 degrees of freedom
    ds = xr.Dataset(
        {
            "y": (("subject", "region"), y),
            "between": ("subject", between),
            "cohort": ("subject", codes.astype(str)),
        }
    )
    result = mixed_model(ds, "y ~ between")
    inside = (result["ci_low"] < 0) & (result["ci_high"] > 0)
    assert 0.93 < float(inside.sel(term="between").mean()) < 0.97
    regular = ~result["boundary"]
    assert 5.9 < float(result["df"].sel(term="between")[regular].median()) < 6.1


def test_mixed_model__missing_text_and_object_columns_are_dropped():
    sex = np.array(["F", "M", "", "F", "M", "F", "M", "F", "M", "F", "F", "M"], dtype=object)
    result = mixed_model(small(sex=sex), "y ~ age + sex")
    assert int(result["n"]) == 11
    assert "sex missing or infinite: 1" in result.attrs["rows_dropped"]
    assert pd.Index(result["term"].values).tolist() == ["Intercept", "age", "sex[T.M]"]


def sessions(n_people=40, n_nodes=400, seed=0):
    """Three scans of each person, a third of whose variance is within people."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_people), 3)
    own = rng.normal(0, 1.4, (n_people, n_nodes))[who]
    return xr.Dataset(
        {"y": (("subject", "node"), own + rng.normal(size=own.shape))},
        coords={
            "subject": [f"sub-{k}_ses-{s}" for k in range(n_people) for s in (1, 2, 3)],
            "person": ("subject", np.array([f"sub-{k}" for k in who])),
            "session": ("subject", np.tile(["ses-1", "ses-2", "ses-3"], n_people)),
            "cohort": ("subject", np.array([f"site{k % 5}" for k in who])),
            "age": ("subject", rng.uniform(40, 80, n_people)[who]),
            "included": ("subject", np.arange(who.size) % 3 == 1),
        },
    )


@pytest.mark.parametrize("errors", ["raise", "record"])
def test_mixed_model__refuses_scans_of_one_person_as_people(errors):
    ds = sessions(n_nodes=3)
    model = {"dim": "node", "errors": errors}
    words = (
        r"groups='cohort': 40 people are in the rows more than once, as sub-0_ses-1, sub-0_ses-2, "
        r"sub-0_ses-3.*included='included'.*groups='person'"
    )
    with pytest.raises(StatisticsError, match=words):
        mixed_model(ds, "y ~ age", included=None, **model)
    assert (mixed_model(ds, "y ~ age", **model)["n"] == 40).all()
    first = ds.isel(subject=ds["session"].values == "ses-1")
    assert (mixed_model(first, "y ~ age", included=None, **model)["n"] == 40).all()
    gaps = ds.assign(y=ds["y"].where(ds["session"] == "ses-2"))  # only rows that are used count
    assert (mixed_model(gaps, "y ~ age", included=None, **model)["n"] == 40).all()
    datasets = ds.assign(
        person=("subject", np.tile(np.arange(20), 6).astype(str)),
        dataset=("subject", np.repeat(["a", "b"], 60)),
    )
    with pytest.raises(StatisticsError, match="Or join 'dataset' and 'person'"):
        mixed_model(datasets, "y ~ age", groups="person", included=None, **model)


def test_mixed_model__intercepts_of_people_keep_the_level():
    """Type I error at 5% of a predictor between people, beside the 5% of one scan each."""
    ds = sessions()
    rate = {}
    for name, options in {"all": {"groups": "person", "included": None}, "one": {}}.items():
        p = mixed_model(ds, "y ~ age", dim="node", **options)["p"].sel(term="age")
        rate[name] = float((p < 0.05).mean())
    assert 0.025 < rate["all"] < 0.08, rate
    hidden = ds.drop_vars(["person", "included"])  # nothing says whose scans these are
    naive = mixed_model(hidden, "y ~ age", dim="node")["p"].sel(term="age")
    assert (naive < 0.05).mean() > 0.15


def by_region(n_regions=3, n=150, seed=3):
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {"pad": (("subject", "region"), rng.normal(size=(n, n_regions)))},
        coords={
            "subject": [f"s{k:03d}" for k in range(n)],
            "region": [f"R{k}" for k in range(n_regions)],
            "age": ("subject", rng.uniform(45, 90, n)),
            "cohort": ("subject", rng.choice(list("abcdef"), n)),
        },
    )


@pytest.mark.parametrize("basis", ["poly({}, 2)", "bs({}, df=4)", "cr({}, df=4) - 1"])
@pytest.mark.parametrize("outcome", ["pad", "I(1 * pad)"])  # which share a design, or do not
def test_mixed_model__bases_mean_the_same_in_every_region(basis, outcome):
    ds = by_region()
    pad = ds["pad"].values.copy()
    pad[ds["age"].values > 70, 1] = np.nan
    pad[ds["age"].values < 50] = np.nan  # used nowhere
    found = mixed_model(
        ds.assign(pad=(("subject", "region"), pad)), f"{outcome} ~ {basis.format('age')}"
    )
    used = ds["age"].values >= 50
    from formulaic import model_matrix

    table = pd.DataFrame({"age": ds["age"].values[used]})
    columns = model_matrix(basis.format("age"), table).to_numpy()[table["age"] <= 70]
    young = used & (ds["age"].values <= 70)
    alone = ds.isel(subject=young, region=1)
    made = {f"x{k}": ("subject", column) for k, column in enumerate(columns.T)}
    expected = mixed_model(alone.assign(made), f"pad ~ 0 + {' + '.join(made)}", errors="record")
    np.testing.assert_allclose(found["estimate"].sel(region="R1"), expected["estimate"], rtol=1e-5)


def test_mixed_model__a_small_lazy_outcome_is_read_once():
    ds = by_region()
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = ds["pad"].chunk().data.map_blocks(read, dtype=float, meta=np.empty((0, 0)))
    found = mixed_model(ds.assign(pad=(ds["pad"].dims, lazy)), "pad ~ poly(age, 2)")
    assert reads == [ds["pad"].shape]
    xr.testing.assert_identical(found, mixed_model(ds, "pad ~ poly(age, 2)"))


def test_mixed_model__bases_of_a_predictor_over_regions_mean_the_same():
    ds = by_region(2)
    load = np.random.default_rng(4).uniform(0, 1, ds["pad"].shape) * [1, 3]
    ds = ds.assign(load=(("subject", "region"), load))
    found = mixed_model(ds, "pad ~ poly(load, 2)")
    by_hand = mixed_model(ds, "pad ~ load + I(load**2)")
    curve = by_hand["estimate"].sel(term="I(load ** 2)")
    ratio = found["estimate"].sel(term="poly(load, 2)[2]") / curve
    np.testing.assert_allclose(ratio[0], ratio[1], rtol=1e-8)


@pytest.mark.parametrize("predictor", ["scanner", "C(scanner)"])
@pytest.mark.parametrize("outcome", ["pad", "I(1 * pad)"])
def test_mixed_model__categories_are_compared_with_the_first_one_there(predictor, outcome):
    ds = by_region()
    code = np.random.default_rng(5).choice([3, 1, 2], 150)
    kinds = pd.Categorical(code, categories=[9, 3, 1, 2])
    pad = ds["pad"].values.copy()
    pad[code == 2, 1] = np.nan  # nobody of this category in one region
    ds = ds.assign(pad=(("subject", "region"), pad)).assign_coords(scanner=("subject", kinds))
    text = ds.assign_coords(scanner=("subject", np.array(["", "b", "c", "a"])[code]))
    found = mixed_model(ds, f"{outcome} ~ {predictor} + age")
    assert found["term"].values.tolist()[1:3] == [f"{predictor}[T.1]", f"{predictor}[T.2]"]
    expected = mixed_model(text, f"{outcome} ~ {predictor} + age")
    np.testing.assert_allclose(found["estimate"], expected["estimate"], rtol=1e-8)


def test_mixed_model__weights_of_text_are_refused():
    ds = by_region().assign_coords(w=("subject", ["1.0"] * 150))
    with pytest.raises(StatisticsError, match=r"weights='w' must be numbers, got '1\.0'"):
        mixed_model(ds, "pad ~ age", weights="w")


def test_mixed_model__takes_columns_of_pandas_and_of_objects():
    rng = np.random.default_rng(0)
    cohort = np.repeat(list("abcd"), 15)
    ds = xr.Dataset({"pad": ("subject", rng.normal(size=60)), "cohort": ("subject", cohort)})
    hand = np.where(rng.random(60) < 0.5, "left", "right").astype(object)
    hand[3], bmi = "", rng.normal(25, 3, 60)
    bmi[4] = np.nan
    plain = ds.assign(hand=("subject", hand.astype(str)), bmi=("subject", bmi))
    hand[3] = None
    ds["hand"] = ("subject", pd.Series(hand, dtype="string").values)
    ds["bmi"] = ("subject", bmi.astype(object))
    formula = "pad ~ hand + bmi"
    xr.testing.assert_identical(mixed_model(ds, formula), mixed_model(plain, formula))
