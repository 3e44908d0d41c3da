"""What a fold knows before its network learns: scales, ridge regressions, imputers."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scalebrain.graph.build import Graph
from scalebrain.graph.impute import Imputer, region_imputer
from scalebrain.graph.moments import fit_ridge, region_moments, spectrum
from scalebrain.graph.references import References

__all__ = ["Linear", "Scales", "fit_linear", "fit_scales", "standardize"]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def standardize(x: npt.NDArray[np.floating], center: Array, spread: Array) -> Array:
    """Standardize features by training means and SDs."""
    return np.asarray((x - center) / spread)


@dataclass(frozen=True, eq=False)
class Scales:
    """Units of a network.

    Parameters
    ----------
    center, spread
        (feature,) mean and SD of the features.
    age_center, age_spread
        Mean and SD of the ages, years.
    """

    center: Array
    spread: Array
    age_center: float
    age_spread: float

    def features(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Features in units of the network."""
        return standardize(x, self.center, self.spread).astype(np.float32)

    def age(self, years: Array) -> Array:
        """Ages in units of the network."""
        return np.asarray((years - self.age_center) / self.age_spread)


def fit_scales(data: References, who: Ints) -> Scales:
    """Find the means and SDs of features and ages.

    Parameters
    ----------
    data
        References.
    who
        Positions of some of them, ascending.

    Returns
    -------
    Scales
        Of the features over all nodes and subjects, and of the ages.
    """
    total, square = np.zeros(data.shape[1]), np.zeros(data.shape[1])
    for some, x in data.blocks(who):
        weight = data.weight[some]
        for f in range(data.shape[1]):
            values = x[..., f].astype(np.float64)
            total[f] += weight @ values.sum(axis=1)
            square[f] += weight @ np.square(values).sum(axis=1)
    weight, age = data.weight[who], data.age[who]
    n = weight.sum() * data.shape[0]
    center = total / n
    spread = np.maximum(np.sqrt(np.maximum(square / n - center**2, 0.0)), 1e-8)
    mean = float(np.average(age, weights=weight))
    sd = float(np.sqrt(np.average((age - mean) ** 2, weights=weight)))
    return Scales(center, spread, mean, max(sd, 1e-3))


@dataclass(frozen=True, eq=False)
class Linear:
    """Ridge regression of every region on its own rows, and the imputers of its nodes.

    Parameters
    ----------
    weights
        (row, feature).
    intercepts
        (region,).
    imputer
        One a region.
    """

    weights: Array
    intercepts: Array
    imputer: Imputer


def fit_linear(data: References, who: Ints, graph: Graph, scales: Scales) -> Linear:
    """Fit everything linear, going over the features twice.

    Parameters
    ----------
    data
        References.
    who
        Positions of those to fit on, ascending.
    graph
        Graph.
    scales
        Units.

    Returns
    -------
    Linear
        In those units.
    """
    whole = data.weight[who].sum()
    mean = np.zeros(data.shape)
    for some, x in data.blocks(who):
        mean += np.tensordot(data.weight[some] / whole, scales.features(x), 1)
    age = scales.age(data.age)
    mean_age = float(np.average(age[who], weights=data.weight[who]))
    share = data.weight * (len(who) / whole)
    blocks = ((scales.features(x), age[some], share[some]) for some, x in data.blocks(who))
    moments = region_moments(blocks, mean, mean_age, graph.bounds)
    out = Linear(np.zeros(data.shape), np.zeros(len(graph.regions)), ())
    imputers = []
    for r, bounds in enumerate(graph.bounds):
        own = slice(*bounds)
        one = spectrum(moments[r])
        weights = fit_ridge(one).weights
        out.weights[own] = weights.reshape(-1, data.shape[1])
        out.intercepts[r] = mean_age - weights @ mean[own].ravel()
        imputers.append(region_imputer(mean[own].ravel(), one))
        moments[r].cross = np.zeros((0, 0))  # the largest of it all: one region at a time
    return replace(out, imputer=tuple(imputers))
