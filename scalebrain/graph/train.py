"""Training: one network a fold, early stopping on subjects that are not held out."""

import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from scalebrain.errors import ConfigError, StatisticsError
from scalebrain.graph.build import Graph
from scalebrain.graph.impute import Imputer, fit_imputer, impute

__all__ = ["Fold", "Training", "assign_folds", "forward", "standardize", "train_fold"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """Hyper-parameters.

    Parameters
    ----------
    layer
        ``cheb``, ``gcn`` or ``spectral``.
    channels
        Filters a convolution.
    folds
        Number of folds.
    epochs
        At most this many epochs.
    patience
        Stop after this many epochs without a better validation error.
    batch
        Subjects a batch.
    learning_rate
        Step of Adam.
    decay
        L2 on the weights of single nodes and on the readout.
    validation
        Fraction of the training subjects that decides when to stop.
    masked
        Largest fraction of a region that is masked and imputed in augmented copies.
    seed
        Seed of folds, weights, batches and masks.
    """

    layer: Literal["cheb", "gcn", "spectral"] = "cheb"
    channels: int = 16
    folds: int = 5
    epochs: int = 200
    patience: int = 15
    batch: int = 32
    learning_rate: float = 1e-3
    decay: float = 3e-3
    validation: float = 0.15
    masked: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the layer."""
        if self.layer not in ("cheb", "gcn", "spectral"):
            raise ConfigError(f"layer {self.layer!r}: expected cheb, gcn or spectral.")


@dataclass(frozen=True)
class Fold:
    """What one fold learned.

    Parameters
    ----------
    weights
        Parameters of the network by name.
    center, spread
        (feature,) mean and SD of the training subjects.
    age_center, age_spread
        Mean and SD of the training ages, years.
    imputer
        Imputer of missing nodes.
    curve
        (epoch, 2) training and validation mean absolute error, years.
    intercept, slope
        (region,) age bias on the held-out subjects, years and years a year.
    """

    weights: dict[str, npt.NDArray[np.float32]]
    center: Array
    spread: Array
    age_center: float
    age_spread: float
    imputer: Imputer
    curve: Array
    intercept: Array = field(default_factory=lambda: np.zeros(0))
    slope: Array = field(default_factory=lambda: np.zeros(0))


def assign_folds(
    age: Array, n_folds: int, *, seed: int, person: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Assign every subject to a fold, stratified by age, each person whole.

    Parameters
    ----------
    age
        (subject,) years.
    n_folds
        Number of folds.
    seed
        Seed.
    person
        (subject,) number of the person; None when all differ.

    Returns
    -------
    ndarray
        (subject,) fold.

    Raises
    ------
    StatisticsError
        With fewer than four subjects a fold.
    """
    if person is not None:
        people, own = np.unique(person, return_inverse=True)
        if len(people) < len(age):
            mean_age = np.bincount(own, weights=age) / np.bincount(own)
            return assign_folds(mean_age, n_folds, seed=seed)[own]
    if len(age) < 4 * n_folds:
        raise StatisticsError(
            f"{len(age)} reference subjects are too few for {n_folds} folds. "
            "Bring more, or ask for fewer folds."
        )
    rng = np.random.default_rng([seed, 1])
    order = np.argsort(age, kind="stable")
    fold = np.empty(len(age), dtype=np.int64)
    for start in range(0, len(age), n_folds):
        chunk = order[start : start + n_folds]
        fold[chunk] = rng.permutation(n_folds)[: len(chunk)]
    return fold


def standardize(x: Array, center: Array, spread: Array) -> Array:
    """Standardize features by training means and SDs."""
    return np.asarray((x - center) / spread)


def _masked_copies(
    z: Array, graph: Graph, imputer: Imputer, fraction: float, rng: np.random.Generator
) -> Array:
    """Copy subjects with part of every region masked and imputed."""
    copies = z.copy()
    for members in np.array_split(rng.permutation(len(z)), min(8, len(z))):
        for r in range(len(graph.regions)):
            rows = np.flatnonzero(graph.region_of_row == r)
            n_masked = int(rng.uniform(0, fraction) * len(rows))
            first = int(rng.integers(len(rows)))
            # nodes are numbered piece by piece, so a run of them is a patch of cortex
            copies[np.ix_(members, rows[(first + np.arange(n_masked)) % len(rows)])] = np.nan
    return impute(copies, graph, imputer)[0]


def _ridge(z: Array, target: Array, graph: Graph) -> tuple[Array, Array]:
    """Ridge regression of every region on its own rows: weights (row, feature), intercepts."""
    from sklearn.linear_model import RidgeCV

    weights, intercepts = np.zeros(z.shape[1:]), np.zeros(len(graph.regions))
    for r in range(len(graph.regions)):
        rows = graph.region_of_row == r
        flat = z[:, rows].reshape(len(z), -1)
        fit = RidgeCV(np.logspace(0, 6, 13)).fit(flat, target)
        weights[rows] = fit.coef_.reshape(-1, z.shape[-1])
        intercepts[r] = fit.intercept_
    return weights, intercepts


def train_fold(x: Array, age: Array, graph: Graph, training: Training, *, number: int) -> Fold:
    """Train the network of one fold.

    Parameters
    ----------
    x
        (subject, row, feature) features of the training subjects, complete.
    age
        (subject,) years.
    graph
        Graph.
    training
        Hyper-parameters.
    number
        Number of the fold, for seeds and progress.

    Returns
    -------
    Fold
        Weights at the best validation error.

    Notes
    -----
    The linear path starts at the ridge regression of each region, so the convolutions
    learn what it leaves; what does not help the validation subjects is not kept. At the
    end the linear path is fitted again on everyone.
    """
    import torch

    from scalebrain.graph.layers import RegionalNetwork

    rng = np.random.default_rng([training.seed, 2, number])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so the weights do not depend on the machine
    state = torch.get_rng_state()
    torch.manual_seed(training.seed * 1000 + number)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    center = x.mean(axis=(0, 1))
    spread = np.maximum(x.std(axis=(0, 1)), 1e-8)
    age_center, age_spread = float(age.mean()), float(max(age.std(), 1e-3))
    z = standardize(x, center, spread)
    order = rng.permutation(len(z))
    n_validation = max(2, round(training.validation * len(z)))
    held, used = order[:n_validation], order[n_validation:]
    imputer = fit_imputer(z[used], graph)
    copies = _masked_copies(z[used], graph, imputer, training.masked, rng)

    def tensor(values: Array) -> "torch.Tensor":
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    inputs = tensor(np.concatenate([z[used], copies]))
    target = tensor((np.tile(age[used], 2) - age_center) / age_spread)
    check, check_age = tensor(z[held]), tensor((age[held] - age_center) / age_spread)
    network = RegionalNetwork(
        graph,
        x.shape[-1],
        layer=training.layer,
        channels=training.channels,
    ).to(device)
    linear, intercepts = _ridge(z[used], (age[used] - age_center) / age_spread, graph)
    start = tensor(linear)
    with torch.no_grad():
        network.skip_weight.copy_(start)
        network.bias.copy_(tensor(intercepts))
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    bf16 = device.type == "cuda"
    best, best_weights, stale, curve = np.inf, network.state_dict(), 0, []
    for epoch in range(training.epochs + 1):  # the first one scores the linear path alone
        network.train()
        shuffled = torch.as_tensor(rng.permutation(len(inputs)), device=device)
        errors = []
        for index in shuffled.split(training.batch) if epoch else ():
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                predicted = network(inputs[index])
            difference = predicted.float() - target[index][:, None]
            # each region is its own regression: the sum over regions, not their mean
            loss = difference.square().mean(dim=0).sum()
            penalty = (
                network.node_weight.square().sum()
                + (network.skip_weight - start).square().sum()
                + 0.1 * network.mean_weight.square().sum()
            )
            (loss + training.decay * penalty * 10).backward()
            optimizer.step()
            errors.append(float(difference.detach().abs().mean()))
        network.eval()
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            residual = network(check).float() - check_age[:, None]
        score = float(residual.square().mean())
        trained = float(np.mean(errors)) * age_spread if errors else np.nan
        curve.append((trained, float(residual.abs().mean()) * age_spread))
        if score < best * (1 - 1e-4):
            best, stale = score, 0
            best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}
        else:
            stale += 1
            if stale >= training.patience:
                break
    logger.info("fold %d: %d epochs, validation MAE %.2f y", number + 1, len(curve), curve[-1][1])
    # what stopped the training can still teach the linear path
    everyone, all_intercepts = _ridge(z, (age - age_center) / age_spread, graph)
    best_weights["skip_weight"] += tensor(everyone - linear)
    best_weights["bias"] += tensor(all_intercepts - intercepts)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    weights = {k: v.cpu().numpy().astype(np.float32) for k, v in best_weights.items()}
    return Fold(weights, center, spread, age_center, age_spread, imputer, np.array(curve))


def forward(fold: Fold, network: object, x: Array, graph: Graph) -> tuple[Array, Array]:
    """Predict ages with the network of one fold.

    Parameters
    ----------
    fold
        Fold.
    network
        Its network, with the fold's weights, in evaluation mode.
    x
        (subject, row, feature); NaN where a node is missing.
    graph
        Graph.

    Returns
    -------
    age
        (subject, region) years; NaN for a region without an intact node.
    imputed
        (subject, region) imputed fraction.
    """
    import torch

    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"expected a torch module, got {type(network).__name__}")
    z, fraction = impute(standardize(x, fold.center, fold.spread), graph, fold.imputer)
    device = next(network.parameters()).device
    out = np.empty((len(z), len(graph.regions)))
    with torch.inference_mode():
        for start in range(0, len(z), 256):
            part = torch.as_tensor(np.nan_to_num(z[start : start + 256]), dtype=torch.float32)
            out[start : start + 256] = network(part.to(device)).float().cpu().numpy()
    age = fold.age_center + fold.age_spread * out
    age[fraction >= 1] = np.nan
    return age, fraction
