"""Training: one network a fold, early stopping on subjects that are not held out."""

import logging
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import ConfigError
from scalebrain.graph.build import Graph
from scalebrain.graph.checkpoint import Checkpoint
from scalebrain.graph.folds import stopping_split
from scalebrain.graph.impute import Imputer, Mask, RegionImputer, impute
from scalebrain.graph.linear import Linear, Scales, fit_linear, fit_scales, standardize
from scalebrain.graph.moments import standard_error
from scalebrain.graph.references import References

if TYPE_CHECKING:
    import torch

__all__ = [
    "Fold",
    "Training",
    "apply_network",
    "balanced_weights",
    "batch_size",
    "forward",
    "train_fold",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Largest weight of an age, and smallest, beside the median.
_MOST_WEIGHT = 5.0
#: Patches of a region that are drawn, and groups of subjects that share one at a time.
_PATCHES, _GROUPS = 16, 8
#: Nodes of a region for which the learning rate is meant.
_NODES_OF_RATE = 50
#: Rows of the graph, of all subjects of a batch, whose filters lie in the cache of a core.
_ROWS_IN_CACHE = 2**15


#: Least and largest values of what is counted, and of fractions and rates.
_LEAST = {"channels": 1, "folds": 2, "epochs": 0, "patience": 1, "batch": 1, "seed": 0}
_MOST = 10**9
_BETWEEN = {
    "learning_rate": (1e-12, 1e3),
    "decay": (0.0, 1e6),
    "validation": (0.0, 0.9),
    "masked": (0.0, 1.0),
}


def _plain(value: object) -> object:
    """Whole number of any type as an int, so that it can be written; all else as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _is_number(value: object) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        Fraction of the people in training that decides when to stop.
    masked
        Largest fraction of a region that is masked and imputed in half of the subjects.
    seed
        Seed of folds, weights, batches and masks.
    keep_cohorts
        Whether a cohort lies in one fold as a whole, so that out-of-fold ages are those of people
        of new cohorts.
    balance_ages
        Whether rare ages count more: a subject by the inverse of the density of the ages, within
        a factor of 5 of the median.
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
    keep_cohorts: bool = False
    balance_ages: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        wrong = []
        if self.layer not in ("cheb", "gcn", "spectral"):
            wrong.append(f"layer {self.layer!r}: expected cheb, gcn or spectral")
        for name, least in _LEAST.items():
            value = _plain(getattr(self, name))
            object.__setattr__(self, name, value)
            if type(value) is not int or not least <= value <= _MOST:
                wrong.append(f"{name} {value!r}: expected a whole number from {least} to {_MOST}")
        for name, (low, high) in _BETWEEN.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                wrong.append(f"{name} {value!r}: expected a number from {low:g} to {high:g}")
        for name in ("keep_cohorts", "balance_ages"):
            if not isinstance(getattr(self, name), bool):
                wrong.append(f"{name} {getattr(self, name)!r}: expected true or false")
        if wrong:
            raise ConfigError(f"Training: {'; '.join(wrong)}.")


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

    @property
    def is_convolved(self) -> bool:
        """Whether the readout takes anything from the convolutions: epoch 0 is ridge regression."""
        return any(bool(self.weights[name].any()) for name in ("node_weight", "mean_weight"))


def balanced_weights(age: Array) -> Array:
    """Weights (subject,) that make up for uneven ages.

    Parameters
    ----------
    age
        (subject,) years.

    Returns
    -------
    ndarray
        Inverse of the density of the ages (Gaussian kernels, Scott's rule), within a factor of 5
        of its median; mean 1.
    """
    from scipy.stats import gaussian_kde

    if np.ptp(age) == 0:
        return np.ones(len(age))
    grid = np.linspace(age.min(), age.max(), 256)
    weight = 1 / np.interp(age, grid, gaussian_kde(age)(grid))
    median = float(np.median(weight))
    weight = np.clip(weight, median / _MOST_WEIGHT, median * _MOST_WEIGHT)
    return np.asarray(weight / weight.mean())


class _Patches:
    """Patches of every region that are masked and imputed while a network learns.

    They are drawn once: to impute one takes a factorization. Learning needs single precision.
    """

    def __init__(
        self, graph: Graph, imputer: Imputer, fraction: float, rng: np.random.Generator
    ) -> None:
        self.graph = graph
        self.imputer = tuple(
            RegionImputer(one.mean.astype(np.float32), one.factors.astype(np.float32), one.noise)
            for one in imputer
        )
        self.masks: list[list[Mask]] = []
        for r, nodes in enumerate(graph.members):
            own = []
            for _ in range(_PATCHES):
                lost = np.zeros(len(nodes), dtype=bool)
                n_masked = int(rng.uniform(0, fraction) * len(nodes))
                lost[graph.patch(r, int(rng.integers(len(nodes))), n_masked)] = True
                n_features = imputer[r].mean.size // len(nodes)
                mask = Mask.of(imputer[r], np.repeat(lost, n_features))
                own.append(Mask(mask.lost, mask.weights.astype(np.float32)))
            self.masks.append(own)

    def impose(
        self, z: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        """Mask a patch of every region of half of the subjects, in some groups, and impute it."""
        out = z.copy()
        chosen = rng.permutation(len(z))[: len(z) // 2]
        groups = np.array_split(chosen, min(_GROUPS, chosen.size)) if chosen.size else ()
        for r, one in enumerate(self.imputer):
            rows = slice(*self.graph.bounds[r])
            for members in groups:
                mask = self.masks[r][int(rng.integers(_PATCHES))]
                values = z[members, rows].reshape(len(members), -1)
                values[:, mask.lost] = mask.conditional_mean(one, values)
                out[members, rows] = values.reshape(len(members), -1, z.shape[-1])
        return out


class _Run:
    """Training of the network of one fold: epoch by epoch, from a checkpoint if there is one."""

    def __init__(
        self,
        data: References,
        graph: Graph,
        training: Training,
        scales: Scales,
        linear: Linear,
        held: Ints,
        patches: _Patches,
        number: int,
    ) -> None:
        import torch

        from scalebrain.graph.layers import seeded_network

        self.data, self.training = data, training
        self.scales, self.patches = scales, patches
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = seeded_network(
            graph,
            data.shape[1],
            layer=training.layer,
            channels=training.channels,
            seed=training.seed * 1000 + number,
        ).to(self.device)
        self.start = self.tensor(linear.weights)
        with torch.no_grad():
            self.network.skip_weight.copy_(self.start)
            self.network.bias.copy_(self.tensor(linear.intercepts))
        # a step on the weights of single nodes is summed over all nodes of a region
        names = ("node_weight", "skip_weight")
        single = [p for name, p in self.network.named_parameters() if name in names]
        others = [p for name, p in self.network.named_parameters() if name not in names]
        nodes = data.shape[0] / len(graph.regions)
        rate = training.learning_rate
        groups = [
            {"params": others, "lr": rate},
            {"params": single, "lr": rate * min(1.0, _NODES_OF_RATE / nodes)},
        ]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.check = scales.features(data.read(held))
        self.check_age = scales.age(data.age[held])
        self.check_weight = data.weight[held] / data.weight[held].mean()
        self.best, self.stale, self.epoch = np.inf, 0, 0
        self.records: list[tuple[float, dict[str, torch.Tensor]]] = []
        self.curve: list[tuple[float, float]] = []

    def tensor(self, values: npt.NDArray[np.generic]) -> "torch.Tensor":
        """Tensor of the network's type and device."""
        import torch

        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _weights(self) -> "dict[str, torch.Tensor]":
        """Copy of the weights."""
        return {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def one_epoch(self, used: Ints, rng: np.random.Generator) -> None:
        """Go over everyone once, but for epoch 0, which scores the linear path alone."""
        self.network.train()
        errors: list[float] = []
        for some, x in self.data.blocks(used, rng) if self.epoch else ():
            z = self.patches.impose(self.scales.features(x), rng)
            age = self.tensor(self.scales.age(self.data.age[some]))
            weight = self.tensor(self.data.weight[some] / self.data.weight[used].mean())
            inputs = self.tensor(z)
            for first in range(0, len(z), self.training.batch):
                part = slice(first, first + self.training.batch)
                errors.append(self._step(inputs[part], age[part], weight[part]))
        score, error = self._validate()
        trained = float(np.mean(errors)) if errors else np.nan
        self.curve.append((trained * self.scales.age_spread, error * self.scales.age_spread))
        if score < self.best * (1 - 1e-4):
            self.best, self.stale = score, 0
            self.records.append((score, self._weights()))
            allowed = score * (1 + standard_error(len(self.check)))
            while self.records[0][0] > allowed:
                del self.records[0]
        else:
            self.stale += 1
        self.epoch += 1

    def chosen_weights(self) -> "dict[str, torch.Tensor]":
        """Weights of the first epoch within one standard error of the best one."""
        return dict(self.records[0][1])

    def _step(self, x: "torch.Tensor", age: "torch.Tensor", weight: "torch.Tensor") -> float:
        """One step of Adam on a batch, whose gradients come from parts that fit the cache."""
        import torch

        self.optimizer.zero_grad()
        network, total = self.network, 0.0
        with torch.no_grad():  # of the penalty: ten squares of single weights, one of the mean's
            penalty = 2 * self.training.decay
            network.node_weight.grad = 10 * penalty * network.node_weight
            network.skip_weight.grad = 10 * penalty * (network.skip_weight - self.start)
            network.mean_weight.grad = penalty * network.mean_weight
        size = batch_size(x.shape[1], self.device)
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
                predicted = network(x[part])
            difference = predicted.float() - age[part][:, None]
            # each region is its own regression: the sum over regions, not their mean
            loss = (weight[part][:, None] * difference.square()).sum() / len(x)
            loss.backward()
            total += float(difference.detach().abs().mean(dim=1).sum())
        self.optimizer.step()
        return total / len(x)

    def _validate(self) -> tuple[float, float]:
        """Mean squared and mean absolute error of those who say when to stop."""
        self.network.eval()
        found = apply_network(self.network, self.check)
        residual = np.abs(found - self.check_age[:, None])
        weight = self.check_weight[:, None]
        return float((weight * residual**2).mean()), float((weight * residual).mean())

    def state(self, rng: np.random.Generator) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Everything that the next epoch depends on."""
        arrays = {f"now.{k}": v.cpu().numpy() for k, v in self.network.state_dict().items()}
        for i, (_, weights) in enumerate(self.records):
            arrays |= {f"record.{i}.{k}": v.cpu().numpy() for k, v in weights.items()}
        for i, one in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{i}.{k}": v.cpu().numpy() for k, v in one.items()}
        arrays["curve"] = np.array(self.curve)
        scores = [score for score, _ in self.records]
        plain = {"epoch": self.epoch, "stale": self.stale, "best": self.best}
        return arrays, {**plain, "scores": scores, "rng": rng.bit_generator.state}

    def resume(
        self, rng: np.random.Generator, arrays: dict[str, npt.NDArray[Any]], state: dict[str, Any]
    ) -> None:
        """Take up what :meth:`state` gave; an error where it is of another network."""
        import torch

        def named(prefix: str) -> "dict[str, torch.Tensor]":
            n = len(prefix)
            found = {k[n:]: v for k, v in arrays.items() if k.startswith(prefix)}
            return {k: torch.from_numpy(v.copy()).to(self.device) for k, v in found.items()}

        self.network.load_state_dict(named("now."))
        self.records = [(score, named(f"record.{i}.")) for i, score in enumerate(state["scores"])]
        expected = {k: v.shape for k, v in self.network.state_dict().items()}
        whole = len(arrays["curve"]) == state["epoch"] and bool(self.records)
        if not whole or any(_shapes(one) != expected for _, one in self.records):
            raise ValueError("weights of another network")
        adam = self.optimizer.state_dict()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {i: named(f"adam.{i}.") for i in range(len(parameters))}
        if state["epoch"] > 1:  # epoch 0 makes no step
            for i, parameter in enumerate(parameters):
                if any(moments[i][k].shape != parameter.shape for k in ("exp_avg", "exp_avg_sq")):
                    raise ValueError("steps of another network")
                moments[i]["step"] = moments[i]["step"].cpu()
            adam["state"] = moments
        self.optimizer.load_state_dict(adam)
        self.curve = [(float(a), float(b)) for a, b in arrays["curve"]]
        self.epoch, self.stale, self.best = state["epoch"], state["stale"], state["best"]
        rng.bit_generator.state = state["rng"]


def _shapes(weights: "dict[str, torch.Tensor]") -> "dict[str, torch.Size]":
    """Shapes of weights by name."""
    return {name: values.shape for name, values in weights.items()}


def train_fold(
    data: References,
    who: Ints,
    graph: Graph,
    training: Training,
    *,
    number: int,
    person: Ints | None = None,
    cohort: Ints | None = None,
    checkpoint: Checkpoint | None = None,
) -> Fold:
    """Train the network of one fold.

    Parameters
    ----------
    data
        References.
    who
        Positions of those that the fold is trained on, ascending.
    graph
        Graph.
    training
        Hyper-parameters.
    number
        Number of the fold, for seeds and progress.
    person
        (subject,) number of the person of each reference; None when all differ.
    cohort
        (subject,) number of the cohort of each, when cohorts are kept whole.
    checkpoint
        Where every epoch is saved, and gone on from; one that does not fit the network is not.
        None to save none.

    Returns
    -------
    Fold
        Weights of the first epoch whose validation error is within one standard error of the
        lowest.

    Notes
    -----
    The linear path starts at the ridge regression of each region, so the convolutions
    learn what it leaves; what does not help the validation subjects by more than one standard
    error is not kept: who predicts ages ever better does so by averaging a person's deviations
    out, and what is left of them says less (Bashyam et al. 2020). The validation subjects are whole
    people, and whole cohorts where these are kept whole and come to about as many. At the
    end the linear path is fitted again on everyone. In every epoch half of the subjects, drawn
    anew, have a patch of every region masked and imputed. Features are read block by block.

    References
    ----------
    Bashyam et al. 2020, doi:10.1093/brain/awaa160 (moderately fitted brain age says more);
    Hastie, Tibshirani and Friedman 2009, doi:10.1007/978-0-387-84858-7 (section 7.10)
    """
    import torch  # noqa: F401  (before its threads are limited)

    with one_thread_each():  # sums in one order: the weights do not depend on the machine
        rng = np.random.default_rng([training.seed, 2, number])
        scales = fit_scales(data, who)
        people = who if person is None else person[who]
        cohorts = None if cohort is None else cohort[who]
        stops = stopping_split(people, training.validation, rng, cohort=cohorts)
        held, used = who[stops], who[~stops]
        linear = fit_linear(data, used, graph, scales)
        patches = _Patches(graph, linear.imputer, training.masked, rng)
        parts = (data, graph, training, scales, linear, held, patches, number)
        run, drawn = _Run(*parts), rng.bit_generator.state
        saved = checkpoint.load() if checkpoint is not None else None
        if saved is not None:
            try:
                run.resume(rng, *saved)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                message = "fold %d: its checkpoint does not fit (%r), training starts anew"
                logger.warning(message, number + 1, error)
                run, rng.bit_generator.state = _Run(*parts), drawn
        while run.epoch <= training.epochs and run.stale < training.patience:
            run.one_epoch(used, rng)
            if checkpoint is not None:
                checkpoint.save(*run.state(rng))
            logger.info("fold %d, epoch %d: %.2f y", number + 1, run.epoch - 1, run.curve[-1][1])
        # what stopped the training can still teach the linear path
        everyone = fit_linear(data, who, graph, scales)
        best = run.chosen_weights()
        best["skip_weight"] = best["skip_weight"] + run.tensor(everyone.weights - linear.weights)
        best["bias"] = best["bias"] + run.tensor(everyone.intercepts - linear.intercepts)
    weights = {k: v.cpu().numpy().astype(np.float32) for k, v in best.items()}
    return Fold(
        weights,
        scales.center,
        scales.spread,
        scales.age_center,
        scales.age_spread,
        linear.imputer,
        np.array(run.curve),
    )


def batch_size(n_rows: int, device: str) -> int:
    """Choose how many subjects go through the network at a time.

    Parameters
    ----------
    n_rows
        Rows of the graph.
    device
        ``cpu`` or ``cuda``.

    Returns
    -------
    int
        On a processor what its cache holds, on a GPU what keeps it busy.
    """
    return 256 if device == "cuda" else max(1, _ROWS_IN_CACHE // n_rows)


def forward(
    fold: Fold, network: object, x: npt.NDArray[np.floating], graph: Graph
) -> tuple[Array, Array]:
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
    z, fraction = impute(standardize(x, fold.center, fold.spread), graph, fold.imputer)
    age = fold.age_center + fold.age_spread * apply_network(network, np.nan_to_num(z))
    age[fraction >= 1] = np.nan
    return age, fraction


def apply_network(network: object, z: npt.NDArray[np.floating]) -> Array:
    """Run a network on as many subjects at a time as the device takes well.

    Parameters
    ----------
    network
        Network in evaluation mode.
    z
        (subject, row, feature) standardized features.

    Returns
    -------
    ndarray
        (subject, region) standardized ages.
    """
    import torch

    if not isinstance(network, torch.nn.Module):
        raise TypeError(f"expected a torch module, got {type(network).__name__}")
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        size = batch_size(z.shape[1], device.type)
        for start in range(0, len(z), size):
            part = torch.as_tensor(z[start : start + size], dtype=torch.float32)
            parts.append(network(part.to(device)).float().cpu().numpy())
    return np.asarray(np.concatenate(parts).astype(np.float64))
