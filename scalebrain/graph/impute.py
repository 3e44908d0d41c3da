"""Missing nodes: the conditional mean given the intact nodes of the same region."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.graph.build import Graph

__all__ = ["Imputer", "fit_imputer", "impute"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Imputer:
    """Gaussian model of the features of every region.

    Parameters
    ----------
    means
        For every region, mean of its flattened (node, feature) values.
    covariances
        For every region, their Ledoit-Wolf covariance.
    """

    means: tuple[Array, ...]
    covariances: tuple[Array, ...]


def fit_imputer(x: Array, graph: Graph) -> Imputer:
    """Fit the imputer on complete training subjects.

    Parameters
    ----------
    x
        (subject, row, feature) standardized features on the rows of the disjoint union.
    graph
        Graph.

    Returns
    -------
    Imputer
        Mean and shrunken covariance a region.

    References
    ----------
    Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4
    """
    from sklearn.covariance import ledoit_wolf

    means, covariances = [], []
    for r in range(len(graph.regions)):
        flat = x[:, graph.region_of_row == r].reshape(len(x), -1)
        mean = flat.mean(axis=0)
        covariance, _ = ledoit_wolf(flat - mean, assume_centered=True)
        means.append(mean)
        covariances.append(covariance)
    return Imputer(tuple(means), tuple(covariances))


def impute(x: Array, graph: Graph, imputer: Imputer) -> tuple[Array, Array]:
    """Fill missing nodes.

    Parameters
    ----------
    x
        (subject, row, feature); NaN where a node is missing.
    graph
        Graph.
    imputer
        Fitted imputer.

    Returns
    -------
    filled
        (subject, row, feature). A region without any intact node stays NaN.
    fraction
        (subject, region) imputed fraction of the region's nodes.
    """
    missing = np.asarray(np.isnan(x).any(axis=-1))
    filled = x.copy()
    n_features = x.shape[-1]
    fraction = np.empty((len(x), len(graph.regions)))
    for r in range(len(graph.regions)):
        rows = np.flatnonzero(graph.region_of_row == r)
        gone = missing[:, rows]
        fraction[:, r] = gone.mean(axis=1)
        mean, covariance = imputer.means[r], imputer.covariances[r]
        patterns, which = np.unique(gone, axis=0, return_inverse=True)
        for p, pattern in enumerate(patterns):
            if not pattern.any():
                continue
            subjects = np.flatnonzero(which.ravel() == p)
            lost = np.repeat(pattern, n_features)
            if lost.all():
                filled[np.ix_(subjects, rows)] = np.nan
                continue
            known = filled[np.ix_(subjects, rows)].reshape(len(subjects), -1)[:, ~lost]
            weights = np.linalg.solve(
                covariance[np.ix_(~lost, ~lost)], covariance[np.ix_(~lost, lost)]
            )
            guess = mean[lost] + (known - mean[~lost]) @ weights
            filled[np.ix_(subjects, rows[pattern])] = guess.reshape(len(subjects), -1, n_features)
    return filled, fraction
