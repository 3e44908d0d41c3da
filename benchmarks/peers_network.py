"""The regional network as torch-geometric is used: a Batch of graphs, and a training loop.

The weights are those of a scalebrain model: everything else (graphs, imputation of missing nodes,
standardization, readout, loss) is written with torch-geometric, torch and NumPy.
"""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.filterwarnings("ignore")
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import ChebConv, global_add_pool, global_mean_pool

_BATCH = 8  # larger ones are slower: what they hold does not fit the cache


@dataclass
class PeerModel:
    """A model as its files describe it."""

    arrays: dict[str, np.ndarray]
    regions: list[str]
    features: list[str]
    training: dict[str, Any]
    edges: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "PeerModel":
        """Read weights and description."""
        told = json.loads((folder / "model.json").read_text())
        arrays = load_file(folder / "weights.safetensors")
        edges = edges_of(arrays["edges"], arrays["rows"], arrays["region_of_row"])
        return cls(arrays, told["regions"], told["features"], told["training"], edges)

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.training["folds"])

    def network(self, fold: int) -> "PeerNetwork":
        """Network of a fold with its weights."""
        prefix = f"fold{fold}.weights."
        weights = {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}
        return PeerNetwork.of(weights, self.arrays["region_of_row"])


def edges_of(edges: np.ndarray, rows: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Edges (2, edge) within every region, both directions, on the rows of all regions."""
    parts = []
    for r in np.unique(region):
        own = np.flatnonzero(region == r)
        position = np.full(edges.max() + 1, -1)
        position[rows[own]] = own
        inside = position[edges]
        parts.append(inside[(inside >= 0).all(axis=1)])
    one_way = np.concatenate(parts)
    return np.concatenate([one_way, one_way[:, ::-1]]).T.copy()


class PeerNetwork(nn.Module):
    """Two Chebyshev convolutions and the readout of every region."""

    def __init__(self, n_features: int, channels: int, region: np.ndarray) -> None:
        super().__init__()
        n = int(region.max()) + 1
        self.convolutions = nn.ModuleList(
            [ChebConv(n_features, channels, K=3), ChebConv(channels, channels, K=3)]
        )
        self.mean_weight = nn.Parameter(torch.zeros(n, channels + n_features))
        self.node_weight = nn.Parameter(torch.zeros(len(region), channels))
        self.skip_weight = nn.Parameter(torch.zeros(len(region), n_features))
        self.bias = nn.Parameter(torch.zeros(n))
        self.register_buffer("region", torch.from_numpy(region.astype(np.int64)), persistent=False)

    @classmethod
    def of(cls, weights: dict[str, Any], region: np.ndarray) -> "PeerNetwork":
        """Network with weights."""
        n_features = weights["skip_weight"].shape[1]
        out = cls(n_features, weights["node_weight"].shape[1], region)
        out.load_state_dict({k: torch.as_tensor(np.array(v)) for k, v in weights.items()})
        return out

    def forward(self, batch: Any) -> Tensor:
        """Standardized ages (subject, region) of a Batch."""
        h = batch.x
        for convolution in self.convolutions:
            h = nn.functional.leaky_relu(convolution(h, batch.edge_index), 0.2)
        n_regions, n = len(self.bias), batch.num_graphs
        own = self.region.repeat(n) + n_regions * batch.batch
        mean = global_mean_pool(torch.cat([h, batch.x], dim=1), own, size=n * n_regions)
        out = (mean.view(n, n_regions, -1) * self.mean_weight).sum(-1)
        each = (h.view(n, -1, h.shape[1]) * self.node_weight).sum(-1)
        each = each + (batch.x.view(n, -1, batch.x.shape[1]) * self.skip_weight).sum(-1)
        return out + global_add_pool(each.view(-1), own, size=n * n_regions).view(n, -1) + self.bias


def batches(x: Tensor, edges: Tensor, size: int = _BATCH) -> list[Any]:
    """Block-diagonal batches of features (subject, row, feature)."""
    return [
        Batch.from_data_list([Data(x=one, edge_index=edges) for one in x[start : start + size]])
        for start in range(0, len(x), size)
    ]


def impute(z: np.ndarray, model: PeerModel, fold: int) -> np.ndarray:
    """Fill missing nodes by the conditional mean given the intact ones of their region."""
    out, region = z.copy(), model.arrays["region_of_row"]
    for r in range(len(model.regions)):
        rows = np.flatnonzero(region == r)
        mean = model.arrays[f"fold{fold}.impute_mean.{r}"]
        factors = model.arrays[f"fold{fold}.impute_factors.{r}"]
        noise = float(model.arrays[f"fold{fold}.impute_noise.{r}"][0])
        covariance = None
        for i in range(len(z)):
            values = z[i, rows].ravel()
            lost = np.isnan(values)
            if not lost.any():
                continue
            if covariance is None:
                covariance = factors @ factors.T + noise * np.eye(len(mean))
            if not lost.all():
                between = covariance[np.ix_(lost, ~lost)]
                within = covariance[np.ix_(~lost, ~lost)]
                part = np.linalg.solve(within, values[~lost] - mean[~lost])
                values[lost] = mean[lost] + between @ part
            out[i, rows] = values.reshape(len(rows), -1)
    return out


def brain_ages(features: np.ndarray, fold_of: np.ndarray, folder: Path) -> np.ndarray:
    """Brain age (subject, region) in years.

    `features` is (subject, node, feature); `fold_of` the fold of those in training, -1 for others,
    whose age is the mean of all networks.
    """
    model = PeerModel.read(folder)
    x = features[:, model.arrays["rows"]].astype(np.float32)
    edges = torch.from_numpy(model.edges)
    years = np.full((model.n_folds, len(x), len(model.regions)), np.nan)
    with torch.inference_mode():
        for fold in range(model.n_folds):
            center, spread = (model.arrays[f"fold{fold}.{n}"] for n in ("center", "spread"))
            mean, sd = model.arrays[f"fold{fold}.age"]
            network = model.network(fold).eval()
            who = np.flatnonzero((fold_of < 0) | (fold_of == fold))
            z = impute((x[who] - center) / spread, model, fold)
            gone = np.isnan(z).any(axis=-1)
            tensor = torch.from_numpy(np.nan_to_num(z).astype(np.float32))
            found = torch.cat([network(batch) for batch in batches(tensor, edges)])
            years[fold, who] = mean + sd * found.double().numpy()
            for r in range(len(model.regions)):
                lost = gone[:, model.arrays["region_of_row"] == r].all(axis=1)
                years[fold, who[lost], r] = np.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.nanmean(years, axis=0)


@dataclass
class Epoch:
    """What an epoch was given, and what it found."""

    inputs: np.ndarray  # (subject, row, feature) standardized, some nodes masked and imputed
    age: np.ndarray  # (subject,) standardized
    check: np.ndarray
    check_age: np.ndarray
    weights: dict[str, Any]
    start: np.ndarray  # weights of the linear path, to which the penalty pulls
    trained: float = 0.0
    error: float = 0.0
    seconds: float = 0.0


def our_epoch(ds: Any, training: Any, fold: int = 0) -> tuple[Epoch, Any]:
    """Prepare a fold as scalebrain does, run an epoch, and keep what it was given."""
    from scalebrain.graph import train as ours
    from scalebrain.graph.build import build_graph
    from scalebrain.graph.folds import assign_folds
    from scalebrain.graph.linear import fit_linear, fit_scales
    from scalebrain.graph.references import References

    graph = build_graph(ds)
    who = np.flatnonzero((ds["group"].values.astype(str) == "reference") & ds["included"].values)
    age = ds["age"].values[who].astype(np.float64)
    data = References.of(ds["node_features"].isel(subject=who), graph.rows, age)
    fold_of = assign_folds(age, training.folds, seed=training.seed)
    train = np.flatnonzero(fold_of != fold)
    with ours.one_thread_each():
        rng = np.random.default_rng([training.seed, 2, fold])
        scales = fit_scales(data, train)
        order = rng.permutation(len(train))
        n_held = max(2, round(training.validation * len(train)))
        held, used = np.sort(train[order[:n_held]]), np.sort(train[order[n_held:]])
        linear = fit_linear(data, used, graph, scales)
        patches = ours._Patches(graph, linear.imputer, training.masked, rng)
        run = ours._Run(data, graph, training, scales, linear, held, patches, fold)
        run.one_epoch(used, rng)  # of the linear path alone
        before = rng.bit_generator.state
        some, x = next(iter(data.blocks(used, rng)))
        inputs = patches.impose(scales.features(x), rng)
        rng.bit_generator.state = before
        weights = {k: v.detach().clone().numpy() for k, v in run.network.state_dict().items()}
        out = Epoch(
            inputs,
            scales.age(data.age[some]),
            run.check,
            run.check_age,
            weights,
            run.start.numpy(),
        )
        start = time.perf_counter()
        run.one_epoch(used, rng)
        out.seconds = time.perf_counter() - start
        out.trained, out.error = run.curve[-1]
    return out, (graph, scales, training)


def peer_epoch(given: Epoch, graph: Any, scales: Any, training: Any) -> tuple[float, float, float]:
    """Run the same epoch on torch-geometric: seconds, and errors of training and validation.

    The masked inputs are given: the peer does not pay for masking and imputing them.
    """
    edges = torch.from_numpy(edges_of(graph.edges, graph.rows, graph.region_of_row))
    network = PeerNetwork.of(given.weights, graph.region_of_row)
    start_weight = torch.from_numpy(given.start)
    single = [network.node_weight, network.skip_weight]
    others = [network.mean_weight, network.bias, *network.convolutions.parameters()]
    rate = training.learning_rate
    per_node = rate * min(1.0, 50 * len(graph.regions) / len(graph.rows))
    optimizer = torch.optim.Adam([{"params": others, "lr": rate}, {"params": single}], lr=per_node)
    inputs = torch.from_numpy(given.inputs)
    age = torch.as_tensor(given.age, dtype=torch.float32)
    errors = []
    start = time.perf_counter()
    network.train()
    for first in range(0, len(inputs), training.batch):
        part = slice(first, first + training.batch)
        (batch,) = batches(inputs[part], edges, training.batch)
        optimizer.zero_grad()
        difference = network(batch) - age[part][:, None]
        penalty = (
            network.node_weight.square().sum()
            + (network.skip_weight - start_weight).square().sum()
            + 0.1 * network.mean_weight.square().sum()
        )
        loss = difference.square().sum() / batch.num_graphs + 10 * training.decay * penalty
        loss.backward()
        optimizer.step()
        errors.append(float(difference.detach().abs().mean()))
    network.eval()
    with torch.inference_mode():
        check = torch.from_numpy(given.check)
        found = torch.cat([network(batch) for batch in batches(check, edges)]).double().numpy()
    error = float(np.abs(found - given.check_age[:, None]).mean())
    seconds = time.perf_counter() - start
    return seconds, float(np.mean(errors)) * scales.age_spread, error * scales.age_spread
