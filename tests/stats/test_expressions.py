"""Formulas compute and do nothing else."""

import ast
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.design import parse_formula
from scalebrain.stats.expressions import forbidden
from scalebrain.stats.mixed import mixed_model


@pytest.fixture
def ds() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "y": ("subject", rng.normal(size=40)),
            "x": ("subject", rng.uniform(1, 2, 40)),
            "g": ("subject", np.array(list("abcd") * 10, dtype=object)),
            "cohort": ("subject", np.repeat(np.array(["p", "q", "r", "s"], dtype=object), 10)),
        },
        coords={"subject": [f"sub-{i:02d}" for i in range(40)]},
    )


@pytest.mark.parametrize(
    "term",
    [
        "__import__('pathlib').Path('MARK').touch()",
        "open('MARK', 'w')",
        "getattr(np, 'lo' + 'ad')('MARK')",
        "eval('1')",
        "np.load('MARK')",
        "np.savetxt('MARK', x)",
        "np.lib.npyio.save('MARK', x)",
        "x.tofile('MARK')",
        "x.__class__.__base__.__subclasses__()",
        "(lambda: open('MARK', 'w'))()",
        "[z for z in x][0]",
        "f'{x}'",
        "(np.log)(x)[0]",
        "contr.__subclasses__()",
        "(z := x)",
        "C(g, levels=open('MARK', 'w'))",
    ],
)
def test_parse_formula__refuses_what_could_do_more_than_compute(
    ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for formula in (f"y ~ x + {{{term}}}", f"{{{term}}} ~ x", f"y ~ x + (1 + {{{term}}} | cohort)"):
        with pytest.raises((StatisticsError, MissingVariableError)):
            mixed_model(ds, formula, groups="cohort", included=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "right",
    [
        "scale(log10(x)) + C(g)",
        "np.sqrt(x) + abs(x - 1.5)",
        "C(g, contr.treatment('b')) * x",
        "C(g, contr.sum)",
        "bs(x, df=4, degree=3)",
        "poly(x, 2) + I(x**2)",
        "{x > 1.5} + round(x)",
        "`x` + center(`x`)",
        "I(x - x.mean())",
    ],
)
def test_parse_formula__takes_arithmetic_and_known_functions(ds: xr.Dataset, right: str) -> None:
    parsed = parse_formula(f"y ~ {right}", ds, groups="cohort", dim="region")
    assert {"x", "g"} & set(parsed.predictor_names)


def test_forbidden__names_the_part() -> None:
    tree = ast.parse("log(x) + x.real", mode="eval")
    assert forbidden(tree) == ["x.real"]


def study(**columns: np.ndarray) -> xr.Dataset:
    n = 120
    rng = np.random.default_rng(1)
    given = {name: ("subject", np.resize(values, n)) for name, values in columns.items()}
    return xr.Dataset(
        {"y": ("subject", rng.normal(size=n)), **given},
        coords={"cohort": ("subject", rng.choice(list("abcd"), n))},
    )


def slopes(ds: xr.Dataset, right: str) -> np.ndarray:
    return mixed_model(ds, f"y ~ {right}")["estimate"].values


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float32"])
@pytest.mark.parametrize("right", ["age * score", "I(age**2)", "I(age - 65)", "I(3 * age)"])
def test_formula__numbers_do_not_overflow(dtype: str, right: str) -> None:
    rng = np.random.default_rng(2)
    whole = study(age=rng.integers(45, 90, 120), score=rng.integers(0, 40, 120))
    small = whole.assign(age=whole["age"].astype(dtype), score=whole["score"].astype(dtype))
    wide = whole.assign(age=whole["age"].astype(float), score=whole["score"].astype(float))
    np.testing.assert_allclose(slopes(small, right), slopes(wide, right), rtol=1e-12)


@pytest.mark.parametrize("side", ["I(icv**3)", "I(icv**2) * icv"])
def test_formula__cubes_of_large_whole_numbers(side: str) -> None:
    icv = np.random.default_rng(3).integers(2_100_000, 4_000_000, 120)
    got, expected = slopes(study(icv=icv), side), slopes(study(icv=icv.astype(float)), side)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_formula__outcome_of_small_numbers() -> None:
    ds = study(a=np.arange(20, dtype=np.uint8), b=np.arange(20, 0, -1, dtype=np.uint8))
    wide = ds.assign(a=ds["a"].astype(float), b=ds["b"].astype(float))
    got, expected = (mixed_model(one, "I(a - b) ~ y")["estimate"] for one in (ds, wide))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_formula__labels_and_bits_of_whole_numbers_stay() -> None:
    ds = study(code=np.array([1, 2, 3], dtype=np.int8), flag=np.array([True, False]))
    assert mixed_model(ds, "y ~ C(code)")["term"].values.tolist() == [
        "Intercept",
        "C(code)[T.2]",
        "C(code)[T.3]",
    ]
    assert mixed_model(ds, "y ~ C(flag)")["term"].values.tolist()[1] == "C(flag)[T.True]"
    bits = study(bit=(np.resize([1, 2, 3], 120) & 1))
    np.testing.assert_allclose(slopes(ds, "I(code & 1)"), slopes(bits, "bit"))
    flags = study(bit=((np.resize([1, 2, 3], 120) // 2) & 1))
    for right in ("I((code // 2) & 1)", "I(np.bitwise_and(code // 2, 1))"):
        np.testing.assert_allclose(slopes(ds, right), slopes(flags, "bit"))


def test_formula__flags_are_counted() -> None:
    rng = np.random.default_rng(4)
    flags = study(htn=rng.random(120) > 0.5, dm=rng.random(120) > 0.5)
    numbers = flags.assign(htn=flags["htn"].astype(int), dm=flags["dm"].astype(int))
    np.testing.assert_allclose(slopes(flags, "I(htn + dm)"), slopes(numbers, "I(htn + dm)"))
    np.testing.assert_allclose(slopes(flags, "I(htn - dm)"), slopes(numbers, "I(htn - dm)"))
    np.testing.assert_allclose(slopes(flags, "htn * dm"), slopes(numbers, "htn * dm"))
    both = slopes(flags, "I(htn & dm)")
    np.testing.assert_allclose(both, slopes(numbers, "I(htn * dm)"))


def test_formula__sums_of_comparisons_are_refused(ds: xr.Dataset) -> None:
    with pytest.raises(StatisticsError, match=r"Count with '1 \* \(x > 1\) \+ 1 \* \(x > 2\)'"):
        mixed_model(ds, "y ~ I((x > 1) + (x > 2))")
    for right in (
        "(x > 1) + (x > 2) + (x > 3) > 1",
        "(x > 1) + (x > 2) + x > 0",
        "((x > 1) + (x > 2) > 1) + (x > 3) > 0",
    ):
        with pytest.raises(StatisticsError, match="True \\+ True is True"):
            mixed_model(ds, f"y ~ I({right})")


@pytest.mark.parametrize(
    "right",
    [
        "I(((a > 1) + (b > 1)) > 0)",
        "I(0 < (a > 1) + (b > 1))",
        "I((a > 1) + (b > 1) + (a > 2) > 0)",
        "I(0 < (a > 1) + ((b > 2) + (b > 1) + (a > 2)))",
    ],
)
def test_formula__a_sum_of_comparisons_beside_zero_is_any_of_them(right: str) -> None:
    rng = np.random.default_rng(7)
    ds = study(a=rng.integers(0, 3, 120), b=rng.integers(0, 3, 120))
    ds = ds.assign(either=(ds["a"] > 1) | (ds["b"] > 1))
    np.testing.assert_allclose(slopes(ds, right), slopes(ds, "either"))
    with pytest.raises(StatisticsError, match="True \\+ True is True"):
        slopes(ds, right.replace("0", "1"))


def test_formula__flag_with_a_missing_value_makes_the_same_term() -> None:
    whole = study(flag=np.random.default_rng(5).random(120) > 0.5)
    gap = whole["flag"].values.astype(object)
    gap[7] = None
    for right in ("flag", "C(flag)", "I(flag + 1)"):
        expected = mixed_model(whole.isel(subject=np.arange(120) != 7), f"y ~ {right}")
        found = mixed_model(whole.assign(flag=("subject", gap)), f"y ~ {right}")
        assert found["term"].values.tolist() == expected["term"].values.tolist()
        np.testing.assert_allclose(found["estimate"], expected["estimate"])
        assert int(found["n"]) == 119


def test_formula__names_may_be_quoted() -> None:
    ds = study(vol=np.random.default_rng(6).uniform(1, 9, 120)).rename(vol="lesion vol")
    ds = ds.assign(vol=ds["lesion vol"])
    expected = slopes(ds, "log10(vol)")
    for right in ("log10(`lesion vol`)", "log10(Q('vol'))", 'log10(Q("lesion vol"))'):
        np.testing.assert_allclose(slopes(ds, right), expected)
    with pytest.raises(MissingVariableError, match="'volume'"):
        mixed_model(ds, "y ~ Q('volume')")
    with pytest.raises(StatisticsError, match=r"'Q\(vol\)' may not stand"):
        mixed_model(ds, "y ~ Q(vol)")


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        ("poly(np.log10(vol), 2)", "np.log10(vol) not finite"),
        ("bs(np.log10(vol), df=4)", "np.log10(vol) not finite"),
        ("log10(vol - 150)", "log10(vol - 150) not finite"),
        ("log10(`vol`)", "log10(vol) not finite"),
    ],
)
def test_formula__rows_that_a_function_cannot_use_are_named(right: str, reason: str) -> None:
    vol = np.random.default_rng(7).uniform(200, 900, 120)
    vol[:3] = 0
    found = mixed_model(study(vol=vol), f"y ~ {right}")
    assert int(found["n"]) == 117
    assert f"({reason}: 3" in found.attrs["rows_dropped"]


def test_formula__rows_of_several_calls_are_told_apart() -> None:
    vol = np.random.default_rng(7).uniform(200, 900, 120)
    vol[:3], vol[3:5] = 0, 100
    found = mixed_model(study(vol=vol), "y ~ log10(vol) + log10(vol - 150)")
    told = found.attrs["rows_dropped"]
    assert "log10(vol) not finite: 3" in told
    assert "log10(vol - 150) not finite: 5" in told


@pytest.mark.parametrize(
    ("right", "warned"),
    [
        ("x**2", "'x**2' is x alone"),
        ("g + scale(x)^2", "'scale(...)^2' is scale(...) alone"),
        ("I((x - 1)**2)", ""),
        ("{x**2}", ""),
        ("(x + g)**2", ""),
    ],
)
def test_parse_formula__says_that_a_power_of_a_term_is_the_term(
    ds: xr.Dataset, caplog: pytest.LogCaptureFixture, right: str, warned: str
) -> None:
    parse_formula(f"y ~ {right}", ds, groups="cohort", dim="region")
    assert warned in caplog.text
    assert bool(caplog.records) == bool(warned)
