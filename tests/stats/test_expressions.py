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
