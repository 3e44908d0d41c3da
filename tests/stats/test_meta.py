"""Summaries of sites: they hold nobody, and pool to what all people together give."""

import copy
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.formula.api as smf
import xarray as xr
from statsmodels.stats.meta_analysis import combine_effects

import scalebrain
from scalebrain.errors import StatisticsError, TableError
from scalebrain.io.summaries import read_summary, write_summary
from scalebrain.stats.meta import _cochran, _hartung_knapp, between_variance, meta, meta_table
from scalebrain.stats.site_summary import site_summary
from tests.test_cli import run

FORMULA = "brain_pad_corrected ~ log10(lesion_volume) + age + sex"
# Trials of the BCG vaccine (Colditz 1994): ill and well, vaccinated and not.
BCG = np.array(
    [
        *([4, 119, 11, 128], [6, 300, 29, 274], [3, 228, 11, 209], [62, 13536, 248, 12619]),
        *([33, 5036, 47, 5761], [180, 1361, 372, 1079], [8, 2537, 10, 619]),
        *([505, 87886, 499, 87892], [29, 7470, 45, 7232], [17, 1699, 65, 1600]),
        *([186, 50448, 141, 27197], [5, 2493, 3, 2338], [27, 16886, 29, 17825]),
    ],
    dtype=float,
)


@pytest.fixture(autouse=True)
def _logging():
    yield
    logging.getLogger("scalebrain").propagate = True


def sites(sizes=(30, 24, 41, 52), seed=0, regions=("SMN_L", "SMN_R", "VIS_L")):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    code = np.repeat(np.arange(len(sizes)), sizes)
    age, volume = rng.uniform(40, 85, n) + 2 * code, np.exp(rng.normal(2, 1, n))
    sex = np.array(["F", "M"])[np.arange(n) % 2]
    slope = rng.normal(1, 0.6, len(sizes))[code]
    pad = (
        rng.normal(0, 3, (n, len(regions)))
        + (slope * np.log10(volume))[:, None]
        + rng.normal(0, 2, (len(sizes), len(regions)))[code]
        - 0.04 * age[:, None]
    )
    return xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), pad, {"model_fingerprint": "a1"}),
            "lesion_volume": ("subject", volume),
        },
        coords={
            "region": list(regions),
            "age": ("subject", age),
            "sex": ("subject", sex.astype(object)),
            "cohort": ("subject", np.array([f"c{k}" for k in code], dtype=object)),
        },
    )


def apart(ds):
    """One Dataset for each site, as they lie in different places."""
    return [ds.isel(subject=(ds["cohort"] == c).values) for c in np.unique(ds["cohort"])]


def through_files(parts, tmp_path, formula=FORMULA):
    made = []
    for k, part in enumerate(parts):
        write_summary(site_summary(part, formula), tmp_path / f"{k}.json")
        made.append(read_summary(tmp_path / f"{k}.json"))
    return made


def test_meta__fixed_effects_equal_the_people_pooled(tmp_path):
    ds = sites()
    result = meta(through_files(apart(ds), tmp_path))
    frame = ds[["lesion_volume"]].to_dataframe()
    frame["volume"] = np.log10(frame["lesion_volume"])
    for region in ds["region"].values:
        frame["y"] = ds["brain_pad_corrected"].sel(region=region).values
        fit = smf.ols("y ~ volume + age + sex + C(cohort)", frame).fit()
        ours = result.sel(region=region, model="fixed")
        names = ["volume", "age", "sex[T.M]"]
        np.testing.assert_allclose(ours["estimate"], fit.params[names], rtol=1e-10)
        np.testing.assert_allclose(ours["se"], fit.bse[names], rtol=1e-10)
        np.testing.assert_allclose(ours["p"], fit.pvalues[names], rtol=1e-9)
        np.testing.assert_allclose(ours["ci_low"], fit.conf_int().loc[names, 0], rtol=1e-9)
        assert (ours["df"] == fit.df_resid).all()
    order = list(ours["term"].values)
    assert order == ["log10(lesion_volume)", "age", "sex[T.M]"]


def test_meta__units_of_any_size(tmp_path):
    ds = sites()
    first = meta([site_summary(part, FORMULA) for part in apart(ds)])
    ds["age"] = ds["age"] * 1e6 + 1e9
    ds["brain_pad_corrected"] = ds["brain_pad_corrected"] * 1e-6
    again = meta([site_summary(part, FORMULA) for part in apart(ds)])
    factor = xr.DataArray([1e-6, 1e-12, 1e-6], dims="term")
    for name in ("estimate", "se"):
        np.testing.assert_allclose(again[name], first[name] * factor, rtol=1e-7)


def test_meta__random_effects_are_those_of_the_cohorts_alone():
    ds = sites()
    made = [site_summary(part, FORMULA) for part in apart(ds)]
    result = meta(made, residual="own")
    b, v, rss = [], [], []
    for part in apart(ds):
        frame = part[["lesion_volume"]].to_dataframe()
        frame["y"] = part["brain_pad_corrected"].sel(region="VIS_L").values
        fit = smf.ols("y ~ np.log10(lesion_volume) + age + sex", frame).fit()
        b.append(fit.params["np.log10(lesion_volume)"])
        v.append(fit.bse["np.log10(lesion_volume)"] ** 2)
        rss.append((fit.ssr, fit.df_resid))
    cell = result.sel(region="VIS_L", term="log10(lesion_volume)")
    common = meta(made).sel(region="VIS_L", term="log10(lesion_volume)")
    own, total = np.array([s / n for s, n in rss]), np.sum(rss, axis=0)
    np.testing.assert_allclose(common["cohort_se"] ** 2, v / own * total[0] / total[1], rtol=1e-9)
    np.testing.assert_allclose(cell["cohort_estimate"], b, rtol=1e-9)
    np.testing.assert_allclose(cell["cohort_se"] ** 2, v, rtol=1e-9)
    b, v = np.array(b), np.array(v)
    peer = combine_effects(b, v, method_re="iterated")
    np.testing.assert_allclose(cell["q_statistic"], peer.q, rtol=1e-9)
    np.testing.assert_allclose(cell["i2"], max(peer.i2, 0), rtol=1e-9, atol=1e-12)
    tau2 = float(cell["tau2"])
    mean, se = _hartung_knapp(b, v, tau2)
    random = cell.sel(model="random")
    half = scipy.stats.t.ppf(0.975, 3) * se
    np.testing.assert_allclose(
        [random["estimate"], random["se"], random["ci_high"]], [mean, se, mean + half], rtol=1e-12
    )


def test_hartung_knapp__equals_statsmodels_at_its_tau2():
    rng = np.random.default_rng(1)
    for _ in range(5):
        b, v = rng.normal(0, 1, 9), rng.uniform(0.05, 0.6, 9)
        peer = combine_effects(b, v, method_re="iterated", use_t=True)
        mean, se = _hartung_knapp(b, v, peer.tau2)
        np.testing.assert_allclose(mean, peer.mean_effect_re, rtol=1e-9)
        np.testing.assert_allclose(se, peer.sd_eff_w_re_hksj, rtol=1e-9)


def test_between_variance__equals_the_full_likelihood_and_published_values():
    risk = np.log(BCG[:, 0] / BCG[:, :2].sum(axis=1)) - np.log(BCG[:, 2] / BCG[:, 2:].sum(axis=1))
    v = 1 / BCG[:, 0] - 1 / BCG[:, :2].sum(axis=1) + 1 / BCG[:, 2] - 1 / BCG[:, 2:].sum(axis=1)
    tau2 = between_variance(risk, v)
    # Viechtbauer 2010, doi:10.18637/jss.v036.i03, by metafor
    assert round(tau2, 4) == 0.3132
    assert round(_hartung_knapp(risk, v, tau2)[0], 4) == -0.7145
    assert round(1 / np.sqrt((1 / (v + tau2)).sum()), 4) == 0.1798
    assert round(_cochran(risk, v), 4) == 152.2330
    rng = np.random.default_rng(2)
    for k in range(2, 12):
        b, v = rng.normal(0, 0.8, k), rng.uniform(0.05, 0.6, k)
        one = np.ones((k, 1))

        def deviance(tau2, b=b, v=v, one=one):
            cov = np.diag(v + tau2)
            inverse = np.linalg.inv(cov)
            inner = one.T @ inverse @ one
            p = inverse - inverse @ one @ np.linalg.inv(inner) @ one.T @ inverse
            return np.linalg.slogdet(cov)[1] + np.linalg.slogdet(inner)[1] + b @ p @ b

        grid = np.concatenate([[0], np.geomspace(1e-6, 50, 400)])
        start = grid[np.argmin([deviance(t) for t in grid])]
        if start == 0:
            assert between_variance(b, v) < 1e-6
            continue
        best = scipy.optimize.minimize_scalar(
            deviance, bounds=(start / 1.1, start * 1.1), method="bounded", options={"xatol": 1e-12}
        )
        np.testing.assert_allclose(between_variance(b, v), best.x, rtol=1e-5)
    assert between_variance(np.array([1.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.3])) == 0


def test_meta__random_interval_covers_the_mean():
    rng = np.random.default_rng(3)
    hit = 0
    for _ in range(500):
        v = rng.uniform(0.05, 0.5, 10)
        b = 0.4 + rng.normal(0, 0.5, 10) + rng.normal(0, np.sqrt(v))
        mean, se = _hartung_knapp(b, v, between_variance(b, v))
        hit += abs(mean - 0.4) < scipy.stats.t.ppf(0.975, 9) * se
    assert 0.92 < hit / 500 < 0.98


def test_meta__a_cohort_of_one_sex_counts_where_it_can():
    ds = sites()
    men = (ds["cohort"] == "c1").values
    ds["sex"] = ("subject", np.where(men, "M", ds["sex"]).astype(object))
    result = meta([site_summary(part, FORMULA) for part in apart(ds)])
    assert list(result["n_cohorts"].sel(region="SMN_L")) == [4, 4, 3]
    own = result["cohort_estimate"].sel(cohort="c1", region="SMN_L")
    assert list(np.isnan(own)) == [False, False, True]
    frame = ds[["lesion_volume"]].to_dataframe()
    frame["y"] = ds["brain_pad_corrected"].sel(region="SMN_L").values
    fit = smf.ols("y ~ np.log10(lesion_volume) + age + sex + C(cohort)", frame).fit()
    np.testing.assert_allclose(
        result["estimate"].sel(region="SMN_L", model="fixed", term="sex[T.M]"),
        fit.params["sex[T.M]"],
        rtol=1e-10,
    )


def test_site_summary__is_the_same_for_other_people(tmp_path):
    """People turned into each other, with other values in every row, give the same file."""
    formula = "brain_pad_corrected ~ lesion_volume + age"
    ds = sites(sizes=(25,))
    n = ds.sizes["subject"]
    rng = np.random.default_rng(4)
    frame = np.linalg.qr(np.column_stack([np.ones(n), rng.normal(size=(n, n - 1))]))[0]
    inner = np.linalg.qr(rng.normal(size=(n - 1, n - 1)))[0]
    turn = np.outer(frame[:, 0], frame[:, 0]) + frame[:, 1:] @ inner @ frame[:, 1:].T
    other = ds.copy()
    for name in ("age", "lesion_volume", "brain_pad_corrected"):
        other[name] = (ds[name].dims, turn @ ds[name].values, ds[name].attrs)
        assert np.abs(other[name].values - ds[name].values).min() > 1e-4
    one, two = site_summary(ds, formula), site_summary(other, formula)
    for name in ("xx", "xy", "yy"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-9)
    assert one.attrs == two.attrs


def test_site_summary__holds_no_value_of_a_person(tmp_path):
    ds = sites()
    write_summary(site_summary(ds, FORMULA), tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    assert set(content) == {
        *("format", "version", "scalebrain", "formula", "groups", "dim", "group", "minimum_cell"),
        *("scales", "levels", "terms", "labels", "cohorts"),
    }
    assert set(content["cohorts"][0]) == {"name", "n", "xx", "xy", "yy"}
    numbers = []

    def collect(value):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, (dict, list)):
                collect(item)
            elif isinstance(item, float):
                numbers.append(item)

    collect(content["cohorts"])
    p, r, k = 3, 3, 4
    assert len(numbers) == k * r * (p * p + p + 1)  # far fewer than people times variables
    for name in ("age", "lesion_volume", "brain_pad_corrected"):
        values = ds[name].values.ravel()
        for form in (values, values**2, np.log10(np.abs(values)), values - values.mean()):
            assert not np.isclose(np.array(numbers)[:, None], form[None], rtol=1e-7).any()


def test_site_summary__regions_share_their_people():
    """Sums over nearly the same people would give the difference, which is a person."""
    ds = sites()
    ds["brain_pad_corrected"][5, 1] = np.nan
    made = site_summary(ds, FORMULA)
    assert made["n"].values[0] == 29
    np.testing.assert_array_equal(made["xx"].sel(region="SMN_L"), made["xx"].sel(region="SMN_R"))
    without = ds.isel(subject=np.arange(ds.sizes["subject"]) != 5)
    np.testing.assert_allclose(made["xx"], site_summary(without, FORMULA)["xx"], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "formula", "message"),
    [
        (lambda d: d.isel(subject=slice(0, 9)), FORMULA, "9 people.*at least 12 are needed for 4"),
        (
            lambda d: d.isel(subject=slice(0, 20)),
            FORMULA + " + " + " + ".join(f"v{k}" for k in range(6)),
            "20 people.*at least 30 are needed for 10 columns",
        ),
        (
            lambda d: d.assign(sex=xr.where(d["subject"] == 3, "F", "M").astype(object)),
            FORMULA,
            "1 people with sex=F, fewer than 5",
        ),
        (
            lambda d: d.assign(flag=("subject", (np.arange(147) % 30 == 4) * 1.0)),
            "brain_pad_corrected ~ age + flag",
            "1 people with flag=1.0, fewer than 5",
        ),
        (
            lambda d: d.assign(lesion_volume=d["lesion_volume"].where(d["subject"] != 2, 1e6)),
            "brain_pad_corrected ~ lesion_volume",
            "one person makes up nearly all of the variance of 'lesion_volume'",
        ),
        (
            lambda d: d,
            "brain_pad_corrected ~ age + I(age**2) + I(age**3) + log(age) + exp(age / 50)",
            "5 columns are made of age: their sums of products could be solved",
        ),
        (lambda d: d, "brain_pad_corrected ~ scale(age)", "scale may do something else"),
        (lambda d: d, "brain_pad_corrected ~ I(age - age.mean())", "age.mean may do something"),
        (lambda d: d, "brain_pad_corrected ~ 0 + age", "has no intercept"),
        (lambda d: d, "log10(age) ~ I(age ** 2)", "age stands on both sides"),
        (
            lambda d: d.assign(hand=("subject", np.array(["l", "r"], object)[np.arange(147) % 2])),
            "brain_pad_corrected ~ hand",
            "name its levels",
        ),
        (
            lambda d: d.assign(grade=("subject", np.arange(147) % 3 + 1.0)),
            "brain_pad_corrected ~ C(grade)",
            r"'grade' is text, a flag or in C\(\) \(1, 2, 3\): name its levels",
        ),
        (lambda d: d, "brain_pad_corrected ~ C(age, levels=[1, 2])", "levels with levels="),
        (lambda d: d.assign(sex=d["sex"] + "x"), FORMULA, "'Fx', 'Mx', which is not among"),
    ],
)
def test_site_summary__refuses(change, formula, message):
    ds = sites().assign_coords(subject=np.arange(147))
    rng = np.random.default_rng(0)
    for k in range(6):
        ds[f"v{k}"] = ("subject", rng.normal(size=147))
    with pytest.raises(StatisticsError, match=message):
        site_summary(change(ds), formula, cohorts=["c0"])


@pytest.mark.parametrize(
    ("formula", "messages"),
    [
        ("fallen ~ age + sex", ["2 people with the outcome=1.0, f", "=1.0, sex=F", "=1.0, sex=M"]),
        ("I(fallen * 3) ~ age", ["2 people with the outcome=3.0, fewer"]),
        ("half ~ age + flag", ["3 people with the outcome=0.0, flag=0, few", "=1.0, flag=1, few"]),
        ("weak ~ I(age > 80) + sex", [r"3 people with I\(age > 80\).*=1.0, fewer"]),
        ("weak ~ I((age > 80) * 2.5)", [r"3 people with I\(\(age > 80\) \* 2.5\)=2.5, fewer"]),
        ("weak ~ I(row % 8 == 0) + rare", [r"1 people with rare=1, I\(row % 8 == 0\).*=1.0, few"]),
    ],
)
def test_site_summary__few_people_of_an_outcome_or_of_a_column_of_two_values(formula, messages):
    rng, row = np.random.default_rng(6), np.arange(40)
    ds = xr.Dataset(
        {
            "fallen": ("subject", (row < 2) * 1.0),
            "half": ("subject", (row % 2) * 1.0),
            "flag": ("subject", np.where(row < 6, row % 2, 1 - row % 2)),
            "weak": ("subject", rng.normal(size=40)),
            "age": ("subject", np.where(row < 3, 85.0, np.where(row % 3 < 1, 70, 50)) - row / 99),
            "rare": ("subject", (row < 6) * 1),
            "row": ("subject", row),
            "sex": ("subject", np.array(["F", "M"], object)[row % 2]),
            "cohort": ("subject", np.full(40, "c", object)),
        }
    )
    with pytest.raises(StatisticsError) as caught:
        site_summary(ds, formula)
    for message in messages:
        assert re.search(message, str(caught.value)), str(caught.value)
    assert site_summary(ds, "half ~ age")["n"].item() == 40
    assert site_summary(ds, "weak ~ I(age > 60) + sex")["n"].item() == 40


def test_site_summary__one_person_of_nine_tenths_of_a_sum():
    """One case among ten people is nine tenths of the variance, to the last bit or nearly."""
    ds = sites(sizes=(10,))
    ds["fallen"] = ("subject", (np.arange(10) == 3) * 1.0)
    with pytest.raises(StatisticsError, match="one person makes up nearly all of the variance"):
        site_summary(ds, "fallen ~ age")


def test_site_summary__counts_people_and_not_scans():
    """Four people of six sessions each are not 24 people."""
    ds = sites(sizes=(24, 30)).assign_coords(subject=np.arange(54))
    number = np.where(np.arange(54) < 24, np.arange(54) % 4, np.arange(54))
    ds = ds.assign(person=("subject", number.astype(str)))
    words = r"4 people are in the rows more than once, as 0, 4, 8, 12.*included='included'"
    with pytest.raises(StatisticsError, match=words):
        site_summary(ds, "brain_pad_corrected ~ age")
    assert site_summary(ds, "brain_pad_corrected ~ age", cohorts=["c1"])["n"].item() == 30
    kept = ds.assign(included=("subject", np.arange(54) >= 20))
    with pytest.raises(StatisticsError, match="4 people with all values, at least 10"):
        site_summary(kept, "brain_pad_corrected ~ age")


def test_site_summary__names_every_cohort_that_is_too_small():
    ds = sites(sizes=(30, 6, 40, 4))
    grouped = ds.assign(group=("subject", np.full(80, "stroke", dtype=object)))
    with pytest.raises(StatisticsError, match="group='nope' is not among the groups stroke"):
        site_summary(grouped, "brain_pad_corrected ~ age", group="nope")
    with pytest.raises(StatisticsError, match=r"(?s)2 problems.*'c1': 6 people.*'c3': 4 people"):
        site_summary(ds, "brain_pad_corrected ~ age")
    made = site_summary(ds, "brain_pad_corrected ~ age", cohorts=["c2", "c0"])
    array = site_summary(ds, "brain_pad_corrected ~ age", cohorts=np.array(["c2", "c0"]))
    xr.testing.assert_identical(array, made)
    assert list(made["cohort"].values) == ["c2", "c0"]
    with pytest.raises(StatisticsError, match="'c9' has no usable subject"):
        site_summary(ds, FORMULA, cohorts=["c9"])


def test_site_summary__predictors_over_regions_and_levels():
    ds = sites()
    rng = np.random.default_rng(5)
    ds["lesion_load"] = (("subject", "region"), rng.uniform(0, 1, (147, 3)))
    ds["hand"] = ("subject", np.array(["l", "r"], object)[np.arange(147) // 2 % 2])
    formula = "brain_pad_corrected ~ lesion_load + hand"
    levels = {"hand": ["r", "l"]}
    made = [site_summary(part, formula, levels=levels) for part in apart(ds)]
    result = meta(made)
    frame = ds[["hand"]].to_dataframe()
    frame["y"] = ds["brain_pad_corrected"].sel(region="SMN_R").values
    frame["x"] = ds["lesion_load"].sel(region="SMN_R").values
    fit = smf.ols("y ~ x + C(hand, Treatment('r')) + C(cohort)", frame).fit()
    np.testing.assert_allclose(
        result["estimate"].sel(region="SMN_R", model="fixed"),
        fit.params[["x", "C(hand, Treatment('r'))[T.l]"]],
        rtol=1e-9,
    )


def test_site_summary__numbers_in_c_have_the_levels_of_all_sites():
    """Also where a site has nobody of the first level; few people of a level are refused."""
    ds = sites()
    grade = np.random.default_rng(3).choice([1.0, 2.0, 3.0], 147)
    grade[(ds["cohort"] == "c1").values & (grade == 1)] = 2.0
    ds["grade"] = ("subject", grade)
    formula, levels = "brain_pad_corrected ~ C(grade) + age", {"grade": ["1", "2", "3"]}
    result = meta([site_summary(part, formula, levels=levels) for part in apart(ds)])
    frame = ds[["grade"]].to_dataframe()
    frame["y"] = ds["brain_pad_corrected"].sel(region="SMN_R").values
    fit = smf.ols("y ~ C(grade) + age + C(cohort)", frame).fit()
    np.testing.assert_allclose(
        result["estimate"].sel(region="SMN_R", model="fixed"),
        fit.params[["C(grade)[T.2.0]", "C(grade)[T.3.0]", "age"]],
        rtol=1e-9,
    )
    first = np.flatnonzero((ds["cohort"] == "c0").values)
    ds["grade"][first] = np.where(np.arange(first.size) < 2, 3.0, 1.0)
    with pytest.raises(StatisticsError, match="2 people with grade=3, fewer than 5"):
        site_summary(ds, formula, levels=levels, cohorts=["c0"])


def test_site_summary__a_number_is_one_cohort_in_every_release():
    """Where somebody lacks it, a number is a float; the same cohort must not count twice."""
    ds = sites(sizes=(30, 40))
    numbers = np.repeat([1, 2], [30, 40])
    whole = ds.assign_coords(cohort=("subject", numbers))
    gap = np.where(np.arange(70) == 69, np.nan, numbers)
    later = ds.assign_coords(cohort=("subject", gap))
    first, second = site_summary(whole, FORMULA), site_summary(later, FORMULA)
    assert list(first["cohort"].values) == list(second["cohort"].values) == ["1", "2"]
    assert list(second["n"].values) == [30, 39]
    with pytest.raises(StatisticsError, match="cohort '1' is in summary 1 already"):
        meta([first, second])
    for cohorts in ([2], [2.0], ["2"], np.array([2]), np.array(["2"])):
        assert list(site_summary(later, FORMULA, cohorts=cohorts)["cohort"].values) == ["2"]
    with pytest.raises(StatisticsError, match=r"has no usable subject\. There are: 1, 2"):
        site_summary(later, FORMULA, cohorts=np.array([]))


def test_site_summary__refuses_a_random_slope():
    formula = "brain_pad_corrected ~ sex + ({} | cohort)"
    for slope in ("age", "1 + age"):
        with pytest.raises(StatisticsError, match="has a random slope of age, but the sums"):
            site_summary(sites(), formula.format(slope))
    made = site_summary(sites(), formula.format("1"))
    assert list(made["term"].values) == ["sex[T.M]"]


def test_site_summary__names_only_functions_that_formulas_have():
    ds = sites(sizes=(30,)).assign_coords(subject=np.arange(30))
    with pytest.raises(StatisticsError, match="scale may do something else") as caught:
        site_summary(ds, "brain_pad_corrected ~ scale(age)")
    words = str(caught.value).partition("as they are, or ")[2].rstrip(".").split(", ")
    for name in words:
        call = f"{name}({'sex' if name == 'C' else 'age / 100'})"
        assert site_summary(ds, f"brain_pad_corrected ~ {call}")["n"].item() == 30


def test_meta__refuses_summaries_that_disagree():
    first, second, third, _ = apart(sites())
    one = site_summary(first, FORMULA)
    other = second.copy()
    other["brain_pad_corrected"].attrs["model_fingerprint"] = "b2"
    with pytest.raises(StatisticsError, match=r"another scales.*'b2'"):
        meta([one, site_summary(other, FORMULA)])
    with pytest.raises(StatisticsError, match="another formula"):
        meta([one, site_summary(second, "brain_pad_corrected ~ age")])
    less = site_summary(second.isel(region=slice(0, 2)), FORMULA)
    with pytest.raises(StatisticsError, match=r"other values of 'region'.*VIS_L"):
        meta([one, less])
    with pytest.raises(StatisticsError, match="cohort 'c0' is in summary 1 already"):
        meta([one, one])
    same = site_summary(third.assign(lesion_volume=third["lesion_volume"] * 0 + 3), FORMULA)
    with pytest.raises(StatisticsError, match=r"'log10\(lesion_volume\)' is the same within"):
        meta([same])
    third["years"] = third["age"] * 2
    tied = "brain_pad_corrected ~ age + years + lesion_volume"
    with pytest.raises(StatisticsError, match="'age', 'years' are combinations of each other"):
        meta([site_summary(third, tied)])
    with pytest.raises(StatisticsError, match="No summary"):
        meta([])
    with pytest.raises(StatisticsError, match="Number 2 of 2 is no summary"):
        meta([one, xr.Dataset()])
    with pytest.raises(StatisticsError, match="residual must be"):
        meta([one], residual="both")
    with pytest.raises(StatisticsError, match="family: X is not among"):
        meta([one], family=["X"])
    alone = meta([one])
    assert np.isnan(alone["estimate"].sel(model="random")).all()
    assert (alone["n_cohorts"] == 1).all()


def _spoil(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_read_summary__one_clear_error_for_hostile_content(tmp_path):
    write_summary(site_summary(sites(), FORMULA), tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())

    def changed(**values):
        content = copy.deepcopy(good)
        content["cohorts"][0].update(values)
        return content

    xx = good["cohorts"][0]["xx"]
    negative = [[[-v for v in row] for row in one] for one in xx]
    uneven = [[[v * (1 + i) for v in row] for i, row in enumerate(one)] for one in xx]
    cases = {
        "no JSON": "{",
        "not UTF": '"\ud83d"'.encode("utf-16", "surrogatepass").decode("latin-1"),
        "deep": "[" * 100_000,
        "a list": "[]",
        "NaN": json.dumps(changed(yy=[float("nan")] * 3)),
        "infinite": json.dumps(good).replace('"n": 30', '"n": 1e999'),
        "twice": '{"format": 1, "format": 2}',
        "version": {**good, "version": 2},
        "format": {**good, "format": "x"},
        "more keys": {**good, "__class__": "x"},
        "people": changed(people=[1, 2]),
        "n": changed(n=3.5),
        "n too large": changed(n=10**30),
        "huge": changed(yy=[1e308] * 3),
        "not symmetric": changed(xx=uneven),
        "negative": changed(xx=negative),
        "no variance": changed(yy=[0.0] * 3),
        "shape": changed(xy=[[1.0]]),
        "ragged": changed(xy=[[1.0], [1.0, 2.0], []]),
        "text": changed(yy=["1", "2", "3"]),
        "control characters": {**good, "terms": ["\x1b[2J", "age", "sex[T.M]"]},
        "dimension": {**good, "dim": "cohort"},
        "no cohorts": {**good, "cohorts": []},
        "cohort twice": {**good, "cohorts": [good["cohorts"][0]] * 2},
    }
    for name, content in cases.items():
        path = _spoil(tmp_path / "bad.json", content)
        with pytest.raises(TableError) as caught:
            read_summary(path)
        text = str(caught.value)
        assert str(path) in text, name
        assert len(text) < 600, name
        assert "\x1b" not in text, name
    with pytest.raises(TableError, match="no such file"):
        read_summary(tmp_path / "none.json")


def test_write_summary__never_replaces_one_that_may_have_been_sent(tmp_path):
    made = site_summary(sites(), FORMULA)
    write_summary(made, tmp_path / "s.json")
    with pytest.raises(TableError, match="can be subtracted"):
        write_summary(made, tmp_path / "s.json")
    with pytest.raises(TableError, match="cannot be written"):
        write_summary(made, tmp_path / "none" / "s.json")


def test_main__site_summary_and_meta(capsys, tmp_path, monkeypatch):
    ds = sites()
    ds = ds.assign_coords(subject=[f"s{k}" for k in range(147)])
    with monkeypatch.context() as patched:
        patched.setattr(scalebrain, "open_store", lambda url: ds)
        options = ("--cohort", "c0", "--cohort", "c2", "--levels", "sex=M,F")
        code, out, _ = run(capsys, "site-summary", "store", tmp_path / "cli.json", *options)
        assert code == 0
        assert out.strip() == str(tmp_path / "cli.json")
        code, _, err = run(capsys, "site-summary", "store", tmp_path / "cli.json")
        assert code == 1
        assert "can be subtracted" in err
    made = read_summary(tmp_path / "cli.json")
    assert list(made["cohort"].values) == ["c0", "c2"]
    assert list(made["term"].values)[2] == "sex[T.F]"
    result = meta([site_summary(part, FORMULA) for part in apart(ds)])
    paths = []
    for k, part in enumerate(apart(ds)):
        write_summary(site_summary(part, FORMULA), tmp_path / f"{k}.json")
        paths.append(tmp_path / f"{k}.json")
    code, out, _ = run(capsys, "meta", *paths)
    assert code == 0
    (tmp_path / "out.tsv").write_text(out)
    table = pd.read_csv(tmp_path / "out.tsv", sep="\t", index_col=[0, 1, 2])
    np.testing.assert_allclose(table["estimate"], meta_table(result)["estimate"], rtol=1e-8)
    assert run(capsys, "meta", *paths, paths[0])[0] == 1
    assert run(capsys, "meta")[0] == 2
    code, _, err = run(capsys, "site-summary", tmp_path / "no.zarr", tmp_path / "x.json")
    assert code == 1
    assert "Traceback" not in err
    code, _, _ = run(capsys, "site-summary", "a", "b", "--levels", "sex")
    assert code == 2


def test_site_summary__flag_with_a_missing_value_makes_the_same_term():
    ds = sites()
    flag = np.random.default_rng(1).random(ds.sizes["subject"]) > 0.5
    gap = flag.astype(object)
    gap[3] = None
    formula, levels = "brain_pad_corrected ~ age + diabetes", {"diabetes": ["False", "True"]}
    made = site_summary(ds.assign(diabetes=("subject", gap)), formula, levels=levels)
    whole = ds.assign(diabetes=("subject", flag)).isel(subject=np.arange(flag.size) != 3)
    xr.testing.assert_allclose(made, site_summary(whole, formula, levels=levels))
    assert made["term"].values.tolist() == ["age", "diabetes[T.True]"]
