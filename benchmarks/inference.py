"""The network on one processor core beside torch-geometric with the same weights.

The graph is an icosphere, 10,242 vertices at level 5, as one hemisphere of fsaverage5 has.
torch-geometric gets a block-diagonal Batch of eight subjects and runs the convolutions alone;
ours runs the whole network, readout of the ages included.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.nn import ChebConv, GCNConv

from scalebrain.graph.build import Graph
from scalebrain.graph.layers import Layer, RegionalNetwork
from scalebrain.graph.train import batch_size

GOALS: dict[Layer, float] = {"gcn": 10.0, "cheb": 8.0}


def icosphere(level: int) -> Graph:
    """Graph of a sphere whose triangles were divided by four `level` times; one region."""
    # the icosahedron: a pole, two rings of five, a pole
    up = [(0, 1 + k, 1 + (k + 1) % 5) for k in range(5)]
    down = [(11, 6 + k, 6 + (k + 1) % 5) for k in range(5)]
    belt = [(1 + k, 1 + (k + 1) % 5, 6 + k) for k in range(5)]
    belt += [(6 + k, 6 + (k + 1) % 5, 1 + (k + 1) % 5) for k in range(5)]
    faces, n = np.array(up + down + belt), 12
    for _ in range(level):
        sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2), axis=2)
        _, middle = np.unique(sides.reshape(-1, 2), axis=0, return_inverse=True)
        ab, bc, ca = (n + middle.reshape(-1, 3)).T
        a, b, c = faces.T
        corners = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        n += int(middle.max()) + 1
        faces = np.concatenate([np.stack(f, axis=1) for f in corners])
    sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges: npt.NDArray[np.int64] = np.unique(sides, axis=0).astype(np.int64)
    return Graph(n, edges, np.ones(n, dtype=np.int64), ("all",), (np.arange(n),))


def peer_of(network: RegionalNetwork, layer: Layer) -> list[torch.nn.Module]:
    """torch-geometric's own convolutions, with the weights of a network."""
    out = []
    for ours in network.convolutions:
        a, b = ours.in_channels, ours.out_channels
        theirs = GCNConv(a, b) if layer == "gcn" else ChebConv(a, b, K=len(ours.lins))
        theirs.load_state_dict(ours.state_dict())
        out.append(theirs.eval())
    return out


def activated(convolutions: Any, x: Tensor, edges: Tensor) -> Tensor:
    """Convolutions one after the other."""
    for convolution in convolutions:
        x = torch.nn.functional.leaky_relu(convolution(x, edges), 0.2)
    return x


def seconds(work: Callable[[], object]) -> float:
    """Time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(layer: Layer, graph: Graph, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one kind of layer beside torch-geometric, in turn."""
    torch.manual_seed(0)
    network = RegionalNetwork(graph, 2, layer=layer).eval()
    theirs = peer_of(network, layer)
    edges = torch.from_numpy(graph.row_edges)
    x = torch.randn(options.subjects, graph.n_nodes, 2)
    few = x[:8]
    size = batch_size(graph.n_nodes, "cpu")

    def ours() -> None:
        for start in range(0, len(x), size):
            network(x[start : start + size])

    def peer() -> Tensor:
        batch = Batch.from_data_list([Data(x=one, edge_index=edges) for one in few])
        return activated(theirs, batch.x, batch.edge_index)

    with torch.inference_mode():
        expected = peer().reshape(len(few), graph.n_nodes, -1)
        found = activated(
            network.convolutions, few.transpose(0, 1).contiguous(), network.operator
        ).transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        ours()
        pairs = [(seconds(ours) / len(x), seconds(peer) / len(few)) for _ in range(options.rounds)]
    one, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{layer:5s} {1e3 * one:7.3f} ms a subject  torch-geometric: {1e3 * other:7.2f} ms  "
        f"{ratio:5.1f}x, at least {GOALS[layer]:g}x",
        flush=True,
    )
    return {
        "layer": layer,
        "ours_ms": 1e3 * one,
        "peer_ms": 1e3 * other,
        "ratio": ratio,
        "goal": GOALS[layer],
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="Small: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.level, options.subjects, options.rounds = 2, 8, 1
    torch.set_num_threads(1)
    graph = icosphere(options.level)
    print(f"{graph.n_nodes} vertices, {len(graph.edges)} edges, one thread")
    lines = [measure(layer, graph, options) for layer in GOALS]
    if options.out:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        content = {"machine": machine, "vertices": graph.n_nodes, "table": lines}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
