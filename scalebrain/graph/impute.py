"""Missing nodes: the conditional mean given the intact nodes of the same region."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.graph.build import Graph
from scalebrain.graph.moments import Spectrum

__all__ = ["Imputer", "Mask", "RegionImputer", "impute", "region_imputer"]

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

#: Up to this many values of a region its covariance is kept whole, beyond its leading part.
_WHOLE = 320
_LEADING = 128


@dataclass(frozen=True, eq=False)
class RegionImputer:
    """Gaussian model of the (node, feature) values of a region, flattened.

    Parameters
    ----------
    mean
        (value,) mean.
    factors
        (value, factor) such that the covariance is ``factors factors' + noise I``.
    noise
        Variance that the factors do not hold.
    """

    mean: Floats
    factors: Floats
    noise: float


#: One a region.
Imputer = tuple[RegionImputer, ...]


def region_imputer(mean: Array, one: Spectrum) -> RegionImputer:
    """Make the imputer of a region from its moments.

    Parameters
    ----------
    mean
        (value,) mean.
    one
        Spectrum of the centered values.

    Returns
    -------
    RegionImputer
        The covariance as Ledoit and Wolf shrink it: exact for up to 320 values, for more its
        128 leading eigenvectors and the mean of the other eigenvalues.

    Notes
    -----
    With S the covariance of n subjects and p values, and mu the mean of its eigenvalues:
    ``(1 - r) S + r mu I``, where ``r = min(b, d) / d``, ``d = |S|^2 / p - mu^2`` and
    ``b = (sum(|x|^4) / n - |S|^2) / (p n)``.

    References
    ----------
    Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4
    """
    values = one.values / one.n
    p, mu, square = values.size, values.mean(), (values**2).sum()
    distance = square / p - mu**2
    spread = (one.fourth / one.n - square) / (p * one.n)
    share = min(spread, distance) / distance if distance > 0 else 1.0
    shrunk = (1 - share) * values + share * mu
    k = p if p <= _WHOLE else _LEADING
    noise = float(shrunk[0] if k == p else shrunk[: p - k].mean())
    noise = max(noise, 1e-9)
    scale = np.sqrt(np.maximum(shrunk[p - k :] - noise, 0.0))
    return RegionImputer(mean, one.vectors[:, p - k :] * scale, noise)


@dataclass(frozen=True, eq=False)
class Mask:
    """Values of a region that many lack together, and what imputing them needs.

    Parameters
    ----------
    lost
        (value,) which are missing, of the flattened (node, feature) values.
    weights
        (lost, factor) ``F_m (F_o' F_o + v I)^-1``.
    """

    lost: npt.NDArray[np.bool_]
    weights: Floats

    @classmethod
    def of(cls, one: RegionImputer, lost: npt.NDArray[np.bool_]) -> "Mask":
        """Prepare a mask of some of the values of a region."""
        return cls(lost, _solve(one, lost, one.factors[lost].T).T)

    def conditional_mean(self, one: RegionImputer, values: Floats) -> Floats:
        """Lost values (subject, lost) from values (subject, value), whose lost ones are ignored."""
        kept = np.where(self.lost, 0, values - one.mean)
        return one.mean[self.lost] + (kept @ one.factors) @ self.weights.T


def _solve(one: RegionImputer, lost: npt.NDArray[np.bool_], right: Floats) -> Floats:
    """Solve ``(F_o' F_o + v I) s = right`` for (factor, column)."""
    from scipy.linalg import cho_factor, cho_solve

    seen = one.factors[~lost]
    inner = seen.T @ seen
    inner[np.diag_indices(len(inner))] += one.noise
    factor = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, right, check_finite=False))


def impute(x: Floats, graph: Graph, imputer: Imputer) -> tuple[Floats, Array]:
    """Fill missing nodes.

    Parameters
    ----------
    x
        (subject, row, feature); NaN where a node is missing.
    graph
        Graph.
    imputer
        Fitted imputers of the regions.

    Returns
    -------
    filled
        (subject, row, feature). A region without any intact node stays NaN.
    fraction
        (subject, region) imputed fraction of the region's nodes.

    Notes
    -----
    With F the factors and v the noise, of intact values o and missing ones m:
    ``mean_m + F_m (F_o' F_o + v I)^-1 F_o' (x_o - mean_o)``.
    """
    missing = np.asarray(np.isnan(x).any(axis=-1))
    filled = x.copy()
    n_features = x.shape[-1]
    fraction = np.zeros((len(x), len(graph.regions)))
    touched = np.flatnonzero(missing.any(axis=1))
    for r in range(len(graph.regions)) if touched.size else ():
        rows = np.flatnonzero(graph.region_of_row == r)
        gone = missing[np.ix_(touched, rows)]
        fraction[touched, r] = gone.mean(axis=1)
        patterns, which = np.unique(gone, axis=0, return_inverse=True)
        for p, pattern in enumerate(patterns):
            if not pattern.any():
                continue
            subjects = touched[np.flatnonzero(which.ravel() == p)]
            lost = np.repeat(pattern, n_features)
            if lost.all():
                filled[np.ix_(subjects, rows)] = np.nan
                continue
            values = filled[np.ix_(subjects, rows)].reshape(len(subjects), -1)
            one = imputer[r]  # few have one pattern, so their scores are solved for alone
            kept = np.where(lost, 0, values - one.mean)
            scores = _solve(one, lost, one.factors.T @ kept.T)
            guess = one.mean[lost] + (one.factors[lost] @ scores).T
            filled[np.ix_(subjects, rows[pattern])] = guess.reshape(len(subjects), -1, n_features)
    return filled, fraction
