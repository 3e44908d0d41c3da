import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import semopy

from scalebrain.errors import StatisticsError
from scalebrain.stats.sem_boot import bootstrap, refit, widened_tail
from scalebrain.stats.sem_fit import fit_sem, semopy_text
from scalebrain.stats.sem_indices import saturated_moments
from scalebrain.stats.sem_model import parse_model
from scalebrain.stats.sem_variables import DEFAULT_MODEL
from tests.conftest import missing

SCRIPT = Path(__file__).parent.parent / "reference" / "sem_reference.R"
RECORDED = json.loads(SCRIPT.with_suffix(".json").read_text())
CASES = [name for name, case in RECORDED.items() if "fit" in case]
LIVE = ("mediation", "democracy", "factors", "fiml_factors", "fiml_latent_x", "fiml_many_x")
INDICES = {
    "chisq": "chi2",
    "df": "df",
    "pvalue": "p",
    "cfi": "cfi",
    "tli": "tli",
    "rmsea": "rmsea",
    "rmsea.ci.lower": "rmsea_low",
    "rmsea.ci.upper": "rmsea_high",
    "srmr": "srmr",
    "aic": "aic",
    "bic": "bic",
    "logl": "loglik",
    "npar": "n_free",
}


def table_of(name, recorded=RECORDED):
    data = recorded["data"][name]
    return pd.DataFrame({k: np.array(v, dtype=np.float64) for k, v in data.items()})


def fit_case(name, recorded=RECORDED):
    case = recorded[name]
    return fit_sem(
        parse_model(case["model"]), table_of(case["data"], recorded), missing=case["missing"]
    )


def in_our_words(path, known):
    """Name of a parameter of lavaan's: covariances in either order, := without its formula."""
    path = path.split(" := ")[0]
    if path not in known and " ~~ " in path:
        left, right = path.split(" ~~ ")
        return f"{right} ~~ {left}"
    return path


def check_against_lavaan(name, recorded, tolerance=1e-4):
    case, fit = recorded[name], fit_case(name, recorded)
    close = {"rel": tolerance, "abs": tolerance}
    compared = 0
    for k, theirs in enumerate(case["path"]):
        path = in_our_words(theirs, fit.estimate)
        if path.removesuffix(" ~ 1") in fit.model.latent:
            assert case["estimate"][k] == 0  # lavaan lists means of latent variables
            continue
        compared += 1
        assert fit.estimate[path] == pytest.approx(case["estimate"][k], **close), path
        assert fit.standardized[path] == pytest.approx(case["std"][k], **close), path
        if case["se"][k]:
            assert fit.se[path] == pytest.approx(case["se"][k], **close), path
            assert fit.std_se[path] == pytest.approx(case["std_se"][k], **close), path
        else:
            assert np.isnan(fit.se[path])
    assert compared == len(fit.estimate)
    for theirs, ours in INDICES.items():
        expected = case["fit"][theirs]
        if expected is None:
            assert np.isnan(fit.indices[ours])
        else:
            assert fit.indices[ours] == pytest.approx(expected, **close), ours
    assert fit.indices["n"] == case["n"]
    return fit


@pytest.mark.parametrize("name", CASES)
def test_fit_sem__agrees_with_recorded_lavaan(name):
    fit = check_against_lavaan(name, RECORDED)
    if not fit.indices["df"]:
        assert fit.hints() == []
        return
    theirs = RECORDED[name]["modification"]
    ours = {hint.name: hint for hint in fit.hints()}
    compared = 0
    for k, path in enumerate(theirs["path"]):
        hint = ours.get(in_our_words(path, ours))
        if hint is None or theirs["mi"][k] is None:
            continue
        compared += 1
        # lavaan's are rounded by its refit: its own two optimizers differ by as much
        assert hint.index == pytest.approx(theirs["mi"][k], rel=1e-3, abs=1e-3)
        assert hint.change == pytest.approx(theirs["epc"][k], rel=1e-3, abs=1e-3)
        assert hint.std_change == pytest.approx(theirs["std_epc"][k], rel=1e-3, abs=1e-3)
    assert compared >= 3


def has_lavaan():
    if shutil.which("Rscript") is None:
        return False
    asked = ["Rscript", "-e", "library(lavaan); library(jsonlite)"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def test_fit_sem__agrees_with_lavaan_itself(tmp_path):
    if not has_lavaan():
        missing("R with lavaan and jsonlite")
    output = tmp_path / "live.json"
    command = ["Rscript", str(SCRIPT), str(output), *LIVE]
    subprocess.run(command, check=True, capture_output=True)
    live = json.loads(output.read_text())
    for name in LIVE:
        check_against_lavaan(name, live)


@pytest.mark.parametrize("name", ["restricted", "democracy", "equal", "unit_variance", "factors"])
def test_fit_sem__implies_what_semopy_implies(name):
    fit = fit_case(name)
    engine = fit.engine
    patterns = engine.scaled(fit.sums.patterns())
    implied = engine.implied(fit.theta, engine.given(patterns))[1]
    names = list(fit.model.observed)
    cov = pd.DataFrame(patterns[0].cov, names, names)
    theirs = semopy.Model(semopy_text(engine))
    theirs.load(cov=cov, n_samples=int(patterns[0].n))
    # our estimates in semopy's own matrices
    names_ = [p.name for p in fit.model.parameters]
    values = dict(zip(names_, engine.internal(fit.theta).tolist(), strict=True))
    for parameter in theirs.parameters.values():
        for place in parameter.locations:
            i, j = place.indices
            rows, columns = next(
                getattr(theirs, f"names_{kind}")
                for kind in ("beta", "lambda", "psi", "theta")
                if getattr(theirs, f"mx_{kind}") is place.matrix
            )
            a, b = rows[i], columns[j]
            tried = (f"{a} ~ {b}", f"{b} =~ {a}", f"{a} ~~ {b}", f"{b} ~~ {a}")
            symmetric = place.matrix is theirs.mx_psi or place.matrix is theirs.mx_theta
            for word in tried[2:] if symmetric else tried[:2]:
                if word in values:
                    place.matrix[i, j] = values[word]
                    if symmetric:
                        place.matrix[j, i] = values[word]
    sigma = theirs.calc_sigma()[0]
    order = [names.index(str(v)) for v in theirs.vars["observed"]]
    np.testing.assert_allclose(sigma, implied[np.ix_(order, order)], atol=1e-8)


def test_fit_sem__is_closer_to_the_optimum_than_semopy_alone():
    fit = fit_case("democracy")
    engine = fit.engine
    patterns = engine.scaled(fit.sums.patterns())
    given = engine.given(patterns)
    gradient, information = engine.score(fit.theta, patterns, given)
    assert gradient @ np.linalg.solve(information, gradient) < 1e-12
    names = list(fit.model.observed)
    theirs = semopy.Model(semopy_text(engine))
    result = theirs.fit(cov=pd.DataFrame(patterns[0].cov, names, names), n_samples=75)
    best = result.fun * patterns[0].n
    assert fit.indices["chi2"] < best < fit.indices["chi2"] + 0.5


def test_fit_sem__recursive_paths_equal_least_squares_by_equation():
    table = table_of("simulated")
    model = parse_model(DEFAULT_MODEL)
    fit = fit_sem(model, table)
    for left, rights in model.regressions().items():
        x = np.column_stack([np.ones(len(table)), table[rights]])
        beta, rss = np.linalg.lstsq(x, table[left], rcond=None)[:2]
        se = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * rss / len(table))
        for k, right in enumerate(rights, start=1):
            assert fit.estimate[f"{left} ~ {right}"] == pytest.approx(beta[k], rel=1e-8)
            assert fit.se[f"{left} ~ {right}"] == pytest.approx(se[k], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["default", "latent", "fiml_restricted"])
def test_fit_sem__standardized_estimates_do_not_depend_on_units(factor, name):
    case = RECORDED[name]
    model, table = parse_model(case["model"]), table_of(case["data"])
    plain = fit_case(name)
    changed = model.observed[1]
    other = fit_sem(
        model, table.assign(**{changed: table[changed] * factor}), missing=case["missing"]
    )
    assert other.standardized == pytest.approx(plain.standardized, rel=1e-5)
    assert other.indices["chi2"] == pytest.approx(plain.indices["chi2"], rel=1e-5, abs=1e-6)


def test_fit_sem__fiml_without_gaps_is_listwise():
    table = table_of("simulated")
    for name in ("restricted", "latent"):
        model = parse_model(RECORDED[name]["model"])
        plain, full = fit_sem(model, table), fit_sem(model, table, missing="fiml")
        for path, value in plain.estimate.items():
            assert full.estimate[path] == pytest.approx(value, rel=1e-6, abs=1e-8)
        for index in ("chi2", "df", "cfi", "tli", "rmsea", "loglik"):
            assert full.indices[index] == pytest.approx(plain.indices[index], rel=1e-6, abs=1e-8)


def test_fit_sem__fiml_corrects_what_listwise_deletion_biases():
    rng = np.random.default_rng(5)
    cst = rng.normal(size=4000)
    motor = -0.5 * cst + rng.normal(size=4000)
    contra = 0.7 * motor + rng.normal(size=4000)
    motor[(contra > 0.3) & (rng.random(4000) < 0.9)] = np.nan  # seen from contra, which all have
    table = pd.DataFrame({"cst": cst, "motor": motor, "contra": contra})
    model = parse_model("motor ~ cst\ncontra ~ motor")
    full = fit_sem(model, table, missing="fiml")
    assert full.estimate["motor ~ cst"] == pytest.approx(-0.5, abs=3 * full.se["motor ~ cst"])
    dropped = fit_sem(model, table.dropna())
    assert abs(dropped.estimate["motor ~ cst"] + 0.5) > 4 * dropped.se["motor ~ cst"]


def test_saturated_moments__are_those_of_em_to_the_end():
    fit = fit_case("fiml_latent_x")
    patterns = fit.engine.scaled(fit.sums.patterns())
    mean, cov = saturated_moments(patterns, fit.engine.n_observed)
    # a step of EM from there stays there
    first, second = np.zeros_like(mean), np.zeros_like(cov)
    for p in patterns:
        gone = np.setdiff1d(np.arange(len(mean)), p.where)
        slope = np.zeros((len(mean), len(p.where)))
        slope[p.where] = np.eye(len(p.where))
        slope[gone] = cov[np.ix_(gone, p.where)] @ np.linalg.inv(cov[np.ix_(p.where, p.where)])
        expected = mean + slope @ (p.mean - mean[p.where])
        left = cov - slope @ cov[p.where]
        first += p.n * expected
        second += p.n * (slope @ p.cov @ slope.T + left + np.outer(expected, expected))
    n = sum(p.n for p in patterns)
    np.testing.assert_allclose(first / n, mean, atol=1e-7)
    np.testing.assert_allclose(second / n - np.outer(mean, mean), cov, atol=1e-6)


def test_fit_sem__labels_and_fixed_values():
    table = table_of("simulated")
    equal = fit_sem(parse_model("a1 ~ k*cst\na2 ~ k*cst"), table)
    assert equal.estimate["a1 ~ cst"] == pytest.approx(equal.estimate["a2 ~ cst"])
    fixed = fit_sem(parse_model("contra ~ 2*motor + cst"), table)
    assert fixed.estimate["contra ~ motor"] == 2
    assert np.isnan(fixed.se["contra ~ motor"])
    assert fixed.indices["df"] == 1


def test_fit_sem__defined_parameters_by_the_delta_method():
    fit = fit_case("mediation")
    names = [p.name for p in fit.model.parameters]
    i, j = names.index("ipsi ~ cst"), names.index("motor ~ ipsi")
    a, b = fit.estimate["ipsi ~ cst"], fit.estimate["motor ~ ipsi"]
    assert fit.estimate["indirect"] == pytest.approx(a * b)
    assert fit.estimate["total"] == pytest.approx(a * b + fit.estimate["motor ~ cst"])
    sobel = np.hypot(b * fit.se[names[i]], a * fit.se[names[j]])
    assert fit.se["indirect"] == pytest.approx(sobel, rel=1e-6)


def test_fit_sem__says_what_no_population_can_have():
    correlation = np.array([[1, 0.3, 0.6], [0.3, 1, 0.7], [0.6, 0.7, 1]])
    z = np.random.default_rng(4).normal(size=(60, 3))
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), (z - z.mean(axis=0)).T).T
    table = pd.DataFrame(z @ np.linalg.cholesky(correlation).T, columns=["x1", "x2", "y"])
    fit = fit_sem(parse_model("f =~ x1 + x2 + y"), table)
    assert fit.improper == ["variance of y below zero"]
    assert fit.standardized["y ~~ y"] == pytest.approx(1 - 0.6 * 0.7 / 0.3, abs=1e-4)
    assert np.isfinite(fit.se["y ~~ y"])


def test_fit_sem__refuses_what_has_no_optimum():
    noise = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 4)), columns=list("abcd"))
    with pytest.raises(StatisticsError, match=r"did not converge|not identified"):
        fit_sem(parse_model("f =~ a + b\ng =~ c + d"), noise)
    # the product of correlations is negative: no loadings give it
    table = pd.DataFrame(
        np.linalg.cholesky([[1, -0.1, 0.6], [-0.1, 1, 0.7], [0.6, 0.7, 1]]) @ noise.T[:3].to_numpy()
    ).T
    table.columns = ["a", "b", "c"]
    with pytest.raises(StatisticsError, match=r"did not converge on 30 rows.*three or more"):
        fit_sem(parse_model("f =~ a + b + c"), table)


def test_fit_sem__refuses_pairs_that_nobody_has():
    table = table_of("simulated")
    table.loc[:90, "motor"] = np.nan
    table.loc[91:, "contra"] = np.nan
    with pytest.raises(StatisticsError, match="only 0 rows have both 'motor' and 'contra'"):
        fit_sem(parse_model("motor ~ cst\ncontra ~ motor"), table, missing="fiml")


def test_parse_model__knows_when_least_squares_is_exact():
    assert parse_model(DEFAULT_MODEL).is_recursive
    assert parse_model("a ~ b\nc ~ a\na ~~ 0*c").is_recursive
    assert parse_model("a ~ k*b\nc ~ m*a\ni := k*m").is_recursive
    assert not parse_model("a ~ b\nc ~ b").is_recursive  # a ~~ c is added
    assert not parse_model("a ~ b\nc ~ b\na ~~ c").is_recursive
    assert not parse_model("f =~ a + b + c\nd ~ f").is_recursive
    assert not parse_model("a ~ b\nb ~ a + c").is_recursive
    assert not parse_model("a ~ k*b\nc ~ a + k*b").is_recursive
    assert not parse_model("a ~ 2*b").is_recursive
    assert not parse_model("a ~ 1 + b").is_recursive


def test_parse_model__reads_lavaans_ways_of_writing():
    one = parse_model("# a comment\ny ~ a*x1 +\n  x2 ! another\nz ~ 1e-1*y; t := a^2/(1 - a)")
    assert [p.name for p in one.parameters if p.user] == ["y ~ x1", "y ~ x2", "z ~ y"]
    assert one.parameters[2].value == 0.1
    assert one.defined[0].value({"a": np.array(0.5)}) == 0.5
    assert one.exogenous == ("x1", "x2")
    marker = parse_model("f =~ NA*x + start(0.8)*y + z\nf ~~ 1*f")
    assert [p.value for p in marker.parameters if p.op == "=~"] == [None, None, None]
    single = parse_model("f =~ x\ny ~ f + 0")
    assert {p.name: p.value for p in single.parameters}["x ~~ x"] == 0
    assert {p.name: p.value for p in single.parameters}["y ~ 1"] == 0


@pytest.mark.parametrize("model", [DEFAULT_MODEL, "motor ~ a*cst + b*ipsi\nipsi ~ c*cst\ni := b*c"])
def test_bootstrap__shortcut_equals_the_full_fit(model):
    table = table_of("simulated")
    codes = np.arange(len(table)) % 9
    fit = fit_sem(parse_model(model), table, codes=codes)
    fast = bootstrap(fit, n_boot=30, seed=3)
    weights = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=30).astype(float)
    raw, standardized = refit(weights, (fit.engine, fit.sums, fit.theta))
    arrows = np.flatnonzero(fit.engine.is_arrow)
    np.testing.assert_allclose(fast.raw[:, arrows], raw[:, arrows], rtol=1e-6)
    np.testing.assert_allclose(fast.standardized[:, arrows], standardized[:, arrows], rtol=1e-6)


@pytest.mark.parametrize("name", ["latent", "fiml_restricted", "fiml_latent_x", "means"])
def test_bootstrap__equals_fits_of_repeated_rows(name):
    case = RECORDED[name]
    table = table_of(case["data"])
    table = table[table[list(parse_model(case["model"]).observed)].notna().any(axis=1)]
    codes = np.arange(len(table)) % 9
    model = parse_model(case["model"])
    fit = fit_sem(model, table, missing=case["missing"], codes=codes)
    weights = np.random.default_rng(1).multinomial(9, np.full(9, 1 / 9), size=3).astype(float)
    raw, standardized = refit(weights, (fit.engine, fit.sums, fit.theta))
    for k, weight in enumerate(weights):
        rows = np.repeat(np.arange(len(table)), weight[codes].astype(int))
        again = fit_sem(model, table.iloc[rows], missing=case["missing"])
        for j, p in enumerate(fit.model.parameters):
            close = {"rel": 1e-5, "abs": 1e-6}
            assert raw[k, j] == pytest.approx(again.estimate[p.name], **close)
            assert standardized[k, j] == pytest.approx(again.standardized[p.name], **close)


def test_widened_tail__is_that_of_hesterberg():
    # table of section 5.3: nominal 0.025 becomes 0.0010 at n = 5, 0.0082 at n = 10,
    # 0.0159 at n = 20
    for n, tail in ((5, 0.0010), (10, 0.0086), (20, 0.0159)):
        assert widened_tail(n, 0.95) == pytest.approx(tail, abs=6e-4)
    assert widened_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-5)
