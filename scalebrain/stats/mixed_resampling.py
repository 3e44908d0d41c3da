"""Permutations within groups and bootstrap samples of groups, of many outcomes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import StatisticsError
from scalebrain.stats.mixed_basis import Basis, sum_by
from scalebrain.stats.mixed_fit import fit_intercepts, ratio_grid, unit_residuals
from scalebrain.stats.mixed_permutation_numba_fns import permuted_statistics
from scalebrain.stats.mixed_spectral_numba_fns import replicate_fits

__all__ = ["Bootstrap", "Permutations", "bootstrap", "permute", "varies_within"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TILE_BYTES = 1 << 24  # of what one task holds
_STACK_BYTES = 1 << 25  # of the permuted columns of a batch
_SAMPLE_BYTES = 1 << 26  # of the estimates of one task over all bootstrap samples
_ROUNDING = 1e-9  # |t| that differ by rounding alone are equal (relative)


@dataclass(frozen=True)
class Permutations:
    """Permutations within groups, the same for a person whatever others are used.

    Parameters
    ----------
    n
        Number of permutations.
    seed
        Seed.
    place
        Rank of every subject by label (n_subjects), so that their order does not matter.
    """

    n: int
    seed: int
    place: IntArray

    def batches(self, rows: IntArray, codes: IntArray, size: int) -> Iterator[IntArray]:
        """Draw which row comes to each row, within its group.

        Parameters
        ----------
        rows
            Subjects used (n).
        codes
            Their groups (n).
        size
            Permutations of a batch.

        Yields
        ------
        ndarray
            (permutation of the batch, n).
        """
        rng = np.random.default_rng(self.seed)
        order = np.lexsort((self.place[rows], codes))
        for low in range(0, self.n, size):
            k = min(size, self.n - low)
            keys = rng.random((k, self.place.size))[:, self.place[rows]]
            drawn = np.argsort(codes + keys, axis=1)
            moved = np.empty_like(drawn)
            moved[:, order] = drawn
            yield moved


def varies_within(basis: Basis, column: int) -> bool:
    """Whether a column of the design varies within any group."""
    x = basis.x[:, column]
    means = np.bincount(basis.codes, x) / np.bincount(basis.codes)
    return bool(np.abs(x - means[basis.codes]).max() > 1e-10 * np.abs(x).max())


def permute(
    basis: Basis,
    column: int,
    y: FloatArray,
    t: FloatArray,
    rows: IntArray,
    permutations: Permutations,
    *,
    counted: BoolArray,
    reml: bool,
) -> tuple[IntArray, FloatArray]:
    """Freedman-Lane permutations of outcomes within groups, each a full fit.

    Parameters
    ----------
    basis
        The design, without weights.
    column
        Column that is tested.
    y
        Outcomes (n, k), all of which could be fitted.
    t
        Their |t| (k).
    rows
        Subjects used (n).
    permutations
        The permutations.
    counted
        Outcomes of the family (k).
    reml
        Restricted maximum likelihood, else maximum likelihood.

    Returns
    -------
    reached
        Permutations whose |t| is at least that of the outcome (k).
    largest
        Largest |t| over the outcomes counted, for every permutation; -inf for none.

    Raises
    ------
    StatisticsError
        If the tested column is the only one.

    Notes
    -----
    The null model (all other columns, random intercept) is fitted, its residuals
    ``e = y - X0 b0``, which hold the random intercept still, are permuted within groups, and
    the full model is fitted to ``X0 b0 + P e``: its ratio of variances is searched anew. As P
    leaves the sums of groups alone, ``P e`` enters that fit through its products with the
    columns of the design only.
    """
    n, p = basis.shape
    if p < 2:
        raise StatisticsError(
            f"Permutation of '{basis.names[column]}': it is the only column of the design. Add an "
            "intercept."
        )
    others = np.delete(np.arange(p), column)
    design = pd.DataFrame(basis.x[:, others], columns=[basis.names[k] for k in others])
    null = Basis.of(design, basis.codes)
    e = y - null.x @ fit_intercepts(null, y, reml=reml).estimate.T
    e /= np.sqrt((e**2).sum(axis=0))
    way = null.directions
    _, tested, _ = unit_residuals(null, basis.x[:, [column]])
    x = way.y.T @ tested[:, 0]
    safe = np.where(way.values > 0, way.values, np.inf)[:, None]
    constants = {
        "eigen": way.values**2,
        "det": way.values**2 if reml else null.size,
        "x": x,
        "x_rest": float(((tested[:, 0] - way.y @ x) ** 2).sum()),
        "lean": np.ascontiguousarray((way.u @ null.qsum) / safe),
        "p": float(p),
        "dof": float(n - p if reml else n),
        "reml": float(reml),
        "grid": ratio_grid(null.size),
    }
    base = np.ascontiguousarray(((way.u @ sum_by(e, null.codes, null.n_groups)) / safe).T)
    columns = np.hstack([null.q, tested])
    size = max(1, min(permutations.n, _STACK_BYTES // (8 * n * p)))
    width = max(1, min(_TILE_BYTES // (8 * size * p), -(-y.shape[1] // 8)))
    outcomes = np.ascontiguousarray(e.T)
    tiles = [slice(low, low + width) for low in range(0, y.shape[1], width)]
    tasks = [(outcomes[s], base[s], t[s], counted[s]) for s in tiles]
    reached, largest = np.zeros(y.shape[1], dtype=np.int64), []
    for batch in permutations.batches(rows, basis.codes, size):
        stack = np.empty((n, len(batch), p))
        for m, moved in enumerate(batch):
            stack[moved, m] = columns
        shared = (stack.reshape(n, -1), constants)
        found = map_tasks(_permuted_tile, tasks, label="permutations", shared=shared)
        reached += np.concatenate([count for count, _ in found])
        largest.append(np.maximum.reduce([top for _, top in found]))
    return reached, np.concatenate(largest)


def _permuted_tile(
    task: tuple[FloatArray, FloatArray, FloatArray, BoolArray],
    shared: tuple[FloatArray, dict[str, Any]],
) -> tuple[IntArray, FloatArray]:
    """Count and largest |t| of some outcomes in a batch of permutations."""
    outcomes, base, t, counted = task
    stack, c = shared
    n_permutations = stack.shape[1] // int(c["p"])
    out = np.empty((len(outcomes), n_permutations))
    permuted_statistics(
        c["eigen"],
        c["det"],
        c["x"],
        c["x_rest"],
        c["lean"],
        np.ascontiguousarray(base),
        np.ones(len(outcomes)),
        np.ascontiguousarray(outcomes @ stack),
        c["p"],
        c["dof"],
        c["reml"],
        c["grid"],
        out,
    )
    reached = (out >= t[:, None] * (1 - _ROUNDING)).sum(axis=1)
    top = out[counted].max(axis=0) if counted.any() else np.full(n_permutations, -np.inf)
    return reached, top


@dataclass(frozen=True)
class Bootstrap:
    """Spread of the estimates over samples of groups.

    Parameters
    ----------
    se, low, high
        Standard deviation and interval of every coefficient (k, p); NaN where fewer than half
        of the samples could be fitted.
    n
        Samples that could be fitted (k).
    """

    se: FloatArray
    low: FloatArray
    high: FloatArray
    n: IntArray


def bootstrap(
    basis: Basis,
    y: FloatArray,
    *,
    n_samples: int,
    seed: int,
    confidence: float,
    reml: bool,
) -> Bootstrap:
    """Fit samples of whole groups, drawn with replacement; a group drawn twice counts as two.

    Parameters
    ----------
    basis
        The design.
    y
        Outcomes (n, k).
    n_samples
        Number of samples.
    seed
        Seed.
    confidence
        Level of the intervals.
    reml
        Restricted maximum likelihood, else maximum likelihood.

    Returns
    -------
    Bootstrap
        One row an outcome.

    Notes
    -----
    Every sample is a full fit from sums by group. The interval is the expanded percentile
    interval (Hesterberg 2015, DOI 10.1080/00031305.2015.1089789): the percentiles are those
    of ``Phi(-sqrt(G / (G - 1)) t)``, with t the quantile of Student's t with G - 1 degrees of
    freedom, because the plain one is too narrow for few groups.
    """
    groups = basis.n_groups
    first, unit, norm = unit_residuals(basis, y)
    draws = np.random.default_rng(seed).integers(0, groups, (n_samples, groups))
    samples = [_sample(basis, drawn, reml) for drawn in draws]
    fine = [s for s in samples if s is not None]
    alpha = scipy.stats.norm.cdf(
        -np.sqrt(groups / (groups - 1)) * scipy.stats.t.ppf(0.5 + confidence / 2, groups - 1)
    )
    p = basis.shape[1]
    k = y.shape[1]
    width = max(1, min(_SAMPLE_BYTES // (8 * n_samples * p), -(-k // 4)))
    tasks = [
        (unit[:, low : low + width], norm[low : low + width], first[:, low : low + width])
        for low in range(0, k, width)
    ]
    shared = (basis, fine, n_samples, float(alpha), reml)
    found = map_tasks(_bootstrap_tile, tasks, label="bootstrap", shared=shared)
    return Bootstrap(*(np.concatenate(part) for part in zip(*found, strict=True)))


@dataclass(frozen=True)
class _Sample:
    """What all outcomes share in one sample of groups."""

    drawn: IntArray
    count: FloatArray
    inverse: FloatArray
    eigen: FloatArray
    det: FloatArray
    u: FloatArray
    turn: FloatArray
    rows: float


def _sample(basis: Basis, drawn: IntArray, reml: bool) -> _Sample | None:
    """Decompose a sample; None where its design is rank deficient."""
    count = np.bincount(drawn, minlength=basis.n_groups).astype(np.float64)
    q = basis.q
    inner = (q * count[basis.codes, None]).T @ q
    values, vectors = np.linalg.eigh(inner)
    n = float(count @ np.bincount(basis.codes))
    if values[0] <= 1e-8 * values[-1] or n <= len(inner) or (drawn == drawn[0]).all():
        return None
    inverse = (vectors / values) @ vectors.T
    qsum, size = basis.qsum[drawn], basis.size[drawn]
    eigen, u = np.linalg.eigh(np.diag(size) - qsum @ inverse @ qsum.T)
    eigen[eigen < 1e-10 * eigen[-1]] = 0.0
    turn = np.ascontiguousarray(u.T @ qsum @ inverse @ basis.back.T)
    det = eigen if reml else size
    return _Sample(drawn, count, inverse, eigen, det, u, turn, n)


def _bootstrap_tile(
    task: tuple[FloatArray, FloatArray, FloatArray],
    shared: tuple[Basis, list[_Sample], int, float, bool],
) -> tuple[FloatArray, FloatArray, FloatArray, IntArray]:
    """Find standard deviation, interval and number of samples of some outcomes."""
    unit, norm, first = task
    basis, samples, n_samples, alpha, reml = shared
    (_, p), k = basis.shape, unit.shape[1]
    by_group = np.stack(
        [sum_by(column[:, None] * unit, basis.codes, basis.n_groups) for column in basis.q.T],
        axis=1,
    )  # (group, p, k)
    sums = sum_by(basis.root[:, None] * unit, basis.codes, basis.n_groups)
    squares = sum_by(unit**2, basis.codes, basis.n_groups)
    out = np.empty((len(samples), k, p))
    grid = ratio_grid(basis.size)
    shift, ratio = np.empty((k, p)), np.empty(k)
    for row, sample in enumerate(samples):
        right = np.tensordot(sample.count, by_group, axes=1)
        beta = sample.inverse @ right
        square = sample.count @ squares - (beta * right).sum(axis=0)
        s = sample.u.T @ (sums[sample.drawn] - basis.qsum[sample.drawn] @ beta)
        dof = sample.rows - p if reml else sample.rows
        replicate_fits(
            sample.eigen,
            sample.det,
            sample.turn,
            np.ascontiguousarray(s.T),
            np.ascontiguousarray(square),
            float(dof),
            grid,
            shift,
            ratio,
        )
        out[row] = (basis.back @ (first + norm * beta)).T + norm[:, None] * shift
    fitted = np.isfinite(out).all(axis=2).sum(axis=0) if len(samples) else np.zeros(k, np.int64)
    enough = (2 * fitted >= n_samples) & (fitted > 1)
    se, low, high = (np.full((k, p), np.nan) for _ in range(3))
    for some, functions in (
        (enough & (fitted == len(samples)), (np.std, np.quantile)),
        (enough & (fitted < len(samples)), (np.nanstd, np.nanquantile)),
    ):
        if some.any():
            spread, quantile = functions
            part = out[:, some]
            se[some] = spread(part, axis=0, ddof=1)
            low[some], high[some] = quantile(part, [alpha, 1 - alpha], axis=0)
    return se, low, high, fitted.astype(np.int64)
