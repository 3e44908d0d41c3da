"""Mixed models of many outcomes, beside the closed form at the same variances."""

import numpy as np
import pytest
import xarray as xr

from benchmarks.mixed import FIXED, TESTED, make_cohort
from scalebrain.stats.mixed import mixed_model

N_PEOPLE, N_COHORTS, N_OUTCOMES = 120, 8, 500


@pytest.fixture(scope="module")
def cohort():
    """Thickness of people in cohorts."""
    return make_cohort(N_PEOPLE, N_COHORTS, N_OUTCOMES)


def by_least_squares(ds: xr.Dataset, result: xr.Dataset, outcome: int) -> np.ndarray:
    """Generalized least squares at the variances that were found."""
    size = np.log10(ds["lesion_volume"].values)
    columns = {
        "Intercept": np.ones(N_PEOPLE),
        TESTED: (size - size.mean()) / size.std(ddof=1),
        "age": ds["age"].values,
        "sex[T.M]": (ds["sex"].values == "M").astype(float),
        "icv": ds["icv"].values,
    }
    x = np.stack([columns[str(term)] for term in result["term"].values], axis=1)
    same = ds["cohort"].values[:, None] == ds["cohort"].values
    one = result.isel(vertex=outcome)
    v = float(one["residual_variance"]) * np.eye(N_PEOPLE) + float(one["group_variance"]) * same
    y = ds["thickness"].values[:, outcome]
    return np.linalg.solve(x.T @ np.linalg.solve(v, x), x.T @ np.linalg.solve(v, y))


def test_mixed_model__is_least_squares_at_its_variances(benchmark, cohort):
    formula = f"thickness ~ {FIXED}"
    found = benchmark(mixed_model, cohort, formula, dim="vertex")
    for outcome in (0, 1, N_OUTCOMES - 1):
        expected = by_least_squares(cohort, found, outcome)
        own = found["estimate"].isel(vertex=outcome).values
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-9)
    assert (found["group_variance"] > 0).any()


def test_mixed_model__permutations(benchmark, cohort):
    few = cohort.isel(vertex=slice(50))
    found = benchmark.pedantic(
        mixed_model,
        (few, f"thickness ~ {FIXED}"),
        {"dim": "vertex", "n_permutations": 99, "permuted": [TESTED]},
        rounds=3,
        warmup_rounds=1,
    )
    p = found["p_permutation"].sel(term=TESTED).values
    again = np.rint(p * 100)
    np.testing.assert_allclose(p * 100, again, atol=1e-9)  # one of 100 equally likely ones
    assert ((again >= 1) & (again <= 100)).all()
