"""Cluster bootstrap of a structural model: whole groups drawn with replacement.

A replicate needs no rows: counts, sums and cross products of each group, by pattern of
missing values, are weighted by how often the group was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import StatisticsError
from scalebrain.stats.sem_engine import Engine, PatternSums
from scalebrain.stats.sem_fit import SemFit, all_names, with_defined

__all__ = ["Replicates", "bootstrap", "refit", "widened_tail"]

FloatArray = npt.NDArray[np.float64]
_BLOCK = 50


@dataclass(frozen=True)
class Replicates:
    """Estimates of the replicates that could be fitted.

    Parameters
    ----------
    names
        Of the parameters, then of the defined ones.
    raw, standardized
        (replicate, name); NaN for what a replicate does not estimate.
    n_groups
        Groups that were resampled.
    n_failed
        Replicates that could not be fitted.
    """

    names: list[str]
    raw: FloatArray
    standardized: FloatArray
    n_groups: int
    n_failed: int

    def interval(self, values: FloatArray, confidence: float) -> tuple[float, float]:
        """Percentile interval of values (replicate,), widened for few groups."""
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return np.nan, np.nan
        tail = widened_tail(self.n_groups, confidence)
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)


def widened_tail(n_groups: int, confidence: float) -> float:
    """Tail probability of a percentile interval, widened for few groups.

    Parameters
    ----------
    n_groups
        Groups that are resampled, G.
    confidence
        Level of the interval, 1 - alpha.

    Returns
    -------
    float
        ``Phi(-sqrt(G / (G - 1)) * t(1 - alpha / 2; G - 1))``, less than alpha / 2.

    Notes
    -----
    The bootstrap draws from groups whose variance has G instead of G - 1 as divisor, and
    the percentile interval uses no t distribution; both make it too narrow.

    References
    ----------
    Hesterberg 2015, section 5.3, DOI 10.1080/00031305.2015.1089789.
    """
    t = scipy.stats.t.ppf(0.5 + confidence / 2, n_groups - 1)
    return float(scipy.stats.norm.cdf(-np.sqrt(n_groups / (n_groups - 1)) * t))


def bootstrap(fit: SemFit, *, n_boot: int, seed: int) -> Replicates:
    """Fit a model to groups drawn with replacement.

    Parameters
    ----------
    fit
        The fit of all people.
    n_boot
        Replicates.
    seed
        Seed of the draws.

    Returns
    -------
    Replicates
        Of regressions among observed variables alone, by least squares equation by
        equation, which is the same; otherwise by the full fit, on Dask workers when a
        client is active.

    Raises
    ------
    StatisticsError
        If there is one group only.
    """
    names = all_names(fit.model)
    n_groups = len(fit.sums.n[0])
    if n_boot == 0:
        nothing = np.empty((0, len(names)))
        return Replicates(names, nothing, nothing, n_groups, 0)
    if n_groups < 2:
        raise StatisticsError(
            "SEM: all rows belong to one group, which cannot be resampled. Pass groups=None to "
            "resample subjects, or n_boot=0."
        )
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_boot)
    weights: FloatArray = drawn.astype(np.float64)
    if fit.model.is_recursive and len(fit.sums.where) == 1:
        raw, standardized = _least_squares(fit.engine, fit.sums, weights)
    else:
        blocks = [weights[k : k + _BLOCK] for k in range(0, n_boot, _BLOCK)]
        shared = (fit.engine, fit.sums, fit.theta)
        # small matrices hold the interpreter: more threads would only wait for each other
        parts = map_tasks(refit, blocks, label="bootstrap", shared=shared, threads=1)
        raw = np.concatenate([part[0] for part in parts])
        standardized = np.concatenate([part[1] for part in parts])
    raw = with_defined(fit.model, raw)
    standardized = with_defined(fit.model, standardized)
    return Replicates(names, raw, standardized, n_groups, n_boot - len(raw))


def refit(
    weights: FloatArray, shared: tuple[Engine, PatternSums, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Fit replicates, each from the estimates of all people.

    Parameters
    ----------
    weights
        (replicate, group) how often each group was drawn.
    shared
        The model, the sums of the groups, and where to start.

    Returns
    -------
    raw, standardized
        (fitted replicate, parameter).
    """
    engine, sums, start = shared
    patterns = engine.scaled(sums.patterns(weights))
    given = engine.given(patterns)
    theta, reached = engine.solve_all(np.tile(start, (len(weights), 1)), patterns, given)
    theta = theta[reached]
    if len(engine.exogenous):
        given = given[0][reached], given[1][reached]
    return engine.values(theta), engine.standardized(theta, given)


def _least_squares(
    engine: Engine, sums: PatternSums, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Regressions of every replicate at once, from the moments of each group."""
    n = weights @ sums.n[0]
    u = engine.unit
    mean = weights @ (sums.first[0] / u) / n[:, None]
    cov = np.tensordot(weights, sums.second[0] / np.outer(u, u), axes=1) / n[:, None, None]
    cov -= mean[:, :, None] * mean[:, None, :]
    sd = np.sqrt(np.maximum(np.einsum("bii->bi", cov), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = cov / (sd[:, :, None] * sd[:, None, :])
    fine = np.isfinite(correlation).all(axis=(1, 2))
    fine[fine] = np.linalg.eigvalsh(correlation[fine])[:, 0] > 1e-10
    cov, sd = cov[fine], sd[fine]
    raw = np.full((len(cov), len(engine.index)), np.nan)
    raw[:, engine.index < 0] = engine.fixed[engine.index < 0]
    standardized = raw.copy()
    for outcome in np.unique(engine.i[engine.is_arrow]):
        rows = np.flatnonzero(engine.is_arrow & (engine.i == outcome))
        causes = engine.j[rows]
        right = cov[:, causes, outcome][:, :, None]
        slopes = np.linalg.solve(cov[:, causes][:, :, causes], right)[:, :, 0]
        raw[:, rows] = slopes / engine.factor[rows]
        standardized[:, rows] = slopes * sd[:, causes] / sd[:, [outcome]]
    return raw, standardized
