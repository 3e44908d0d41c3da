from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch_geometric.nn import ChebConv, GCNConv

from scalebrain.graph.build import build_graph
from scalebrain.graph.layers import (
    RegionalNetwork,
    SharedChebConv,
    SharedGCNConv,
    seeded_network,
)


@pytest.mark.parametrize(
    ("shared", "plain"),
    [
        (lambda: SharedChebConv(4, 6, K=4), lambda: ChebConv(4, 6, K=4)),
        (lambda: SharedGCNConv(4, 6), lambda: GCNConv(4, 6)),
    ],
    ids=["cheb", "gcn"],
)
def test_shared_convolution__equals_torch_geometric(references, shared, plain):
    graph = build_graph(references)
    edges = torch.from_numpy(graph.row_edges)
    n = len(graph.rows)
    ours, theirs = shared(), plain()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, n, 4)
    with torch.no_grad():
        mine = ours(x.transpose(0, 1), ours.operator(edges, n)).transpose(0, 1)
        static = theirs(x, edges)
        one_by_one = torch.stack([theirs(subject, edges) for subject in x])
    torch.testing.assert_close(mine, static, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["cheb", "gcn", "spectral"])
def test_regional_network__gradient_stays_in_its_region(references, layer):
    graph = build_graph(references)
    network = RegionalNetwork(graph, 4, layer=layer)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    x = torch.randn(2, len(graph.rows), 4, requires_grad=True)
    ages = network(x)
    assert ages.shape == (2, 18)
    for r in range(18):
        (gradient,) = torch.autograd.grad(ages[:, r].sum(), x, retain_graph=True)
        moved = (gradient != 0).any(dim=-1).any(dim=0).numpy()
        assert moved.any()
        np.testing.assert_array_equal(graph.region_of_row[moved], r)


def test_pairs__pooling_joins_neighbors_two_by_two(references):
    graph = build_graph(references)
    pooled = graph.pairs
    assert np.bincount(pooled).max() == 2
    region = np.array([graph.region_of_row[pooled == p] for p in range(pooled.max() + 1)], object)
    assert all(len(set(r)) == 1 for r in region)


def test_pairs__pooled_nodes_share_an_edge(references):
    graph = build_graph(references)
    edges = {tuple(edge) for edge in graph.row_edges.T.tolist()}
    clusters = [np.flatnonzero(graph.pairs == p) for p in range(graph.pairs.max() + 1)]
    assert all(tuple(c.tolist()) in edges for c in clusters if len(c) == 2)


def test_seeded_network__first_weights_do_not_depend_on_other_threads(references):
    graph = build_graph(references)

    def weights(seed):
        network = seeded_network(graph, 4, layer="gcn", channels=16, seed=seed)
        return torch.cat([values.ravel() for values in network.state_dict().values()])

    seeds = list(range(8)) * 3
    before = torch.get_rng_state()
    alone = [weights(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(weights, seeds))
    assert torch.equal(before, torch.get_rng_state())
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(alone[0], alone[1])
