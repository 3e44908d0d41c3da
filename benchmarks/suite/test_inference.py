"""The network on one core, beside its formula in NumPy on dense matrices."""

import numpy as np
import pytest
import torch

from benchmarks.inference import icosphere
from scalebrain.graph.layers import RegionalNetwork
from scalebrain.graph.train import apply_network

N_SUBJECTS, N_FEATURES = 16, 3


@pytest.fixture(scope="module")
def graph():
    """Sphere of 162 vertices, one region."""
    return icosphere(2)


@pytest.fixture
def network(graph):
    """A network whose readout is not zero, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out = RegionalNetwork(graph, N_FEATURES, layer="cheb").eval()
    with torch.no_grad():
        for weight in (out.mean_weight, out.node_weight, out.skip_weight, out.bias):
            weight.normal_(0, 0.1)
    yield out
    torch.set_num_threads(before)


def twin(network, graph, x):
    """Ages (subject,) by Chebyshev polynomials of the dense Laplacian."""
    adjacency = np.zeros((graph.n_nodes, graph.n_nodes))
    adjacency[tuple(graph.row_edges)] = 1
    root = np.sqrt(adjacency.sum(axis=1))
    operator = -adjacency / np.outer(root, root)  # L - I
    weights = {k: v.detach().numpy().astype(np.float64) for k, v in network.state_dict().items()}
    h = x.astype(np.float64)
    for layer in range(2):
        before, now = h, operator @ h
        terms = [before, now, 2 * operator @ now - before]
        names = [f"convolutions.{layer}.lins.{k}.weight" for k in range(3)]
        h = sum(t @ weights[name].T for t, name in zip(terms, names, strict=True))
        h = h + weights[f"convolutions.{layer}.bias"]
        h = np.where(h > 0, h, 0.2 * h)
    both = np.concatenate([h.mean(axis=1), x.mean(axis=1)], axis=1)
    readout = (h * weights["node_weight"]).sum(axis=(1, 2))
    readout += (x * weights["skip_weight"]).sum(axis=(1, 2))
    return both @ weights["mean_weight"][0] + readout + weights["bias"][0]


def test_apply_network__ages_of_a_graph(benchmark, graph, network):
    x = np.random.default_rng(0).normal(size=(N_SUBJECTS, graph.n_nodes, N_FEATURES))
    found = benchmark(apply_network, network, x.astype(np.float32))
    np.testing.assert_allclose(found[:, 0], twin(network, graph, x), rtol=1e-4, atol=1e-4)


def test_step__gradient_of_the_squared_error(benchmark, graph, network):
    x = torch.randn(N_SUBJECTS, graph.n_nodes, N_FEATURES)
    age = torch.randn(N_SUBJECTS)

    def step():
        network.zero_grad()
        loss = (network(x)[:, 0] - age).square().mean()
        loss.backward()
        return network.bias.grad.item()

    found = benchmark(step)
    ages = twin(network, graph, x.numpy())
    np.testing.assert_allclose(found, 2 * (ages - age.numpy()).mean(), rtol=1e-3, atol=1e-4)
