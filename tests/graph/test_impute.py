import numpy as np
import pytest
import xarray as xr
from sklearn.covariance import ledoit_wolf

from scalebrain.graph.build import build_graph
from scalebrain.graph.impute import impute
from scalebrain.graph.linear import Scales, fit_linear
from scalebrain.graph.references import References


def fit_imputer(x, graph):
    """Imputers of features that are in units of the network already."""
    data = xr.DataArray(x, dims=("subject", "node", "feature"))
    n = len(x)
    references = References.of(data, np.arange(x.shape[1]), np.linspace(-1, 1, n))
    scales = Scales(np.zeros(4), np.ones(4), 0.0, 1.0)
    return fit_linear(references, np.arange(n), graph, scales).imputer


@pytest.fixture
def case(references):
    graph = build_graph(references)
    x = references["node_features"].values[:, graph.rows].astype(np.float64)
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    return graph, x


def test_impute__complete_features_stay_as_they_are(case):
    graph, x = case
    filled, fraction = impute(x, graph, fit_imputer(x, graph))
    np.testing.assert_array_equal(filled, x)
    assert (fraction == 0).all()


def test_impute__equals_the_gaussian_conditional_mean(case):
    graph, x = case
    imputer = fit_imputer(x, graph)
    holes = x.copy()
    holes[3, :4] = np.nan
    filled, fraction = impute(holes, graph, imputer)
    n = len(graph.members[0])
    flat = x[:, :n].reshape(len(x), -1)
    mean = flat.mean(axis=0)
    covariance, _ = ledoit_wolf(flat - mean, assume_centered=True)
    precision = np.linalg.inv(covariance)
    lost = np.arange(16)
    known = np.arange(16, 4 * n)
    centered = x[3, :n].ravel()[known] - mean[known]
    shift = np.linalg.solve(precision[np.ix_(lost, lost)], precision[np.ix_(lost, known)])
    expected = mean[lost] - shift @ centered
    np.testing.assert_allclose(filled[3, :4].ravel(), expected, rtol=1e-5, atol=1e-5)
    assert fraction[3, 0] == pytest.approx(4 / n)
    assert fraction[:3].sum() == 0


def test_impute__is_nearer_the_truth_than_the_mean(case):
    graph, x = case
    imputer = fit_imputer(x[:40], graph)
    holes = x[40:].copy()
    gone = np.concatenate([np.flatnonzero(graph.region_of_row == r)[:4] for r in range(18)])
    holes[:, gone] = np.nan
    filled, _ = impute(holes, graph, imputer)
    truth = x[40:][:, gone]
    plain = x[:40].mean(axis=0)[gone]
    assert ((filled[:, gone] - truth) ** 2).mean() < 0.95 * ((plain - truth) ** 2).mean()


def test_impute__region_without_an_intact_node_stays_missing(case):
    graph, x = case
    holes = x.copy()
    first = graph.region_of_row == 0
    holes[0, first] = np.nan
    filled, fraction = impute(holes, graph, fit_imputer(x, graph))
    assert np.isnan(filled[0, first]).all()
    assert np.isfinite(filled[0, ~first]).all()
    assert fraction[0, 0] == 1
