"""Random-intercept fits of many outcomes on one design."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.stats.mixed_basis import Basis, sum_by
from scalebrain.stats.mixed_numba_fns import many_group_fits
from scalebrain.stats.mixed_spectral_numba_fns import intercept_fits

__all__ = ["Fits", "fit_intercepts", "ratio_grid"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

# With more groups than this their decomposition costs more than it saves.
_MANY_GROUPS = 256
# Outcomes at a time, so that they stay in the processor's cache.
_TILE_BYTES = 1 << 20
# Where less than this part of a square is left, it is summed instead of subtracted.
_LOST = 1e-3


@dataclass(frozen=True)
class Fits:
    """Estimates of every outcome; what could not be fitted is NaN and flagged.

    Parameters
    ----------
    estimate, se, df
        Per outcome and coefficient (k, p).
    spread
        Standard deviation of every outcome (k).
    group_variance, residual_variance, log_likelihood
        Per outcome (k).
    boundary
        The fit lies on the boundary of the variances (k).
    exact
        The predictors leave nothing of the outcome (k).
    flat
        The outcome does not vary within groups (k).
    slope_variance, slope_covariance
        Of the random slopes, and with the intercepts (k); None where there are none.
    """

    estimate: FloatArray
    se: FloatArray
    df: FloatArray
    spread: FloatArray
    group_variance: FloatArray
    residual_variance: FloatArray
    log_likelihood: FloatArray
    boundary: BoolArray
    exact: BoolArray
    flat: BoolArray
    slope_variance: FloatArray | None = None
    slope_covariance: FloatArray | None = None


def ratio_grid(basis_size: FloatArray) -> FloatArray:
    """Ratios of the variances to look at first: 0, and 1e-5 to 1e7 over the mean group."""
    positive = 10.0 ** (-5.0 + 12.0 * np.arange(40) / 39) / basis_size.mean()
    return np.concatenate([[0.0], positive])


def unit_residuals(basis: Basis, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Find coefficients of least squares, residuals of length one (n, k), and their lengths."""
    first, left = basis.residuals(y)
    norm = np.sqrt((left**2).sum(axis=0))
    size = np.sqrt(norm**2 + (first**2).sum(axis=0))
    # 0 where the predictors leave nothing over but rounding
    norm[norm <= 1e-10 * np.maximum(size, np.finfo(np.float64).tiny)] = 0.0
    left /= np.where(norm > 0, norm, 1.0)
    return first, left, norm


def fit_intercepts(basis: Basis, y: FloatArray, *, reml: bool = True) -> Fits:
    """Fit a random intercept to every outcome.

    Parameters
    ----------
    basis
        The design and its groups.
    y
        Outcomes (n, k).
    reml
        Restricted maximum likelihood, else maximum likelihood.

    Returns
    -------
    Fits
        One row an outcome.
    """
    n, p = basis.shape
    dof = float(n - p if reml else n)
    k = y.shape[1]
    first, norm, spread = np.empty((p, k)), np.empty(k), np.empty(k)
    shift, variance, df = np.empty((k, p)), np.empty((k, p)), np.empty((k, p))
    ratio, rss, deviance = np.empty(k), np.empty(k), np.empty(k)
    width = max(1, _TILE_BYTES // (8 * n))
    for low in range(0, k, width):
        some = slice(low, low + width)
        part = np.ascontiguousarray(y[:, some])
        out = (shift[some], variance[some], df[some], ratio[some], rss[some], deviance[some])
        if basis.n_groups > _MANY_GROUPS:
            spread[some] = part.std(axis=0, ddof=1)
            first[:, some], unit, norm[some] = unit_residuals(basis, part)
            _many_groups(basis, unit, dof, reml, out)
        else:
            products = _products(basis, part)
            first[:, some], norm[some], spread[some] = products[:3]
            _few_groups(basis, *products[3:], dof, reml, out)
    exact = norm == 0
    residual_variance = rss / dof * norm**2
    unfit = exact | ~np.isfinite(ratio)
    with np.errstate(invalid="ignore", divide="ignore"):  # what is unfit is said by the caller
        criterion = deviance + 2 * dof * np.log(norm) + basis.constant(reml=reml)
        se = np.sqrt(variance * residual_variance[:, None])
        group_variance = ratio * residual_variance
    return Fits(
        np.where(unfit[:, None], np.nan, (basis.back @ first).T + norm[:, None] * shift),
        np.where(unfit[:, None], np.nan, se),
        np.where(unfit[:, None], np.nan, df),
        spread,
        np.where(unfit, np.nan, group_variance),
        np.where(unfit, np.nan, residual_variance),
        np.where(unfit, np.nan, -criterion / 2),
        (ratio == 0) & ~unfit,
        exact,
        unfit & ~exact,
    )


def _products(
    basis: Basis, y: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Find what a fit needs of outcomes (n, k) in one pass.

    These are least-squares coefficients, lengths and standard deviations, then the unit
    residuals along the directions of the groups and what is left of their square. Squares are
    subtracted where that loses nothing; elsewhere residuals are made.
    """
    p, way = basis.shape[1], basis.directions
    mean = y.mean(axis=0)
    centered = y - mean
    total = np.einsum("ij,ij->j", centered, centered)
    spread = np.sqrt(total / (len(y) - 1))
    shifted = "Intercept" in basis.names  # a constant has no part along the directions then
    scaled = centered if shifted else y
    if not (basis.root == 1).all():
        scaled = basis.root[:, None] * scaled
    if scaled is not centered:
        total = np.einsum("ij,ij->j", scaled, scaled)
    found = np.hstack([basis.q, way.y]).T @ scaled
    first, w = found[:p], found[p:]
    square = total - (first**2).sum(axis=0)
    norm = np.sqrt(np.maximum(square, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):  # lengths of 0 are found again below
        w = w / norm
    rest = 1.0 - (w**2).sum(axis=0)
    if shifted:
        first = first + (basis.q.T @ basis.root)[:, None] * mean
    lost = np.flatnonzero(~((square > _LOST * total) & (rest > _LOST)))
    if lost.size:
        first[:, lost], unit, norm[lost] = unit_residuals(basis, y[:, lost])
        w[:, lost] = way.y.T @ unit
        rest[lost] = ((unit - way.y @ w[:, lost]) ** 2).sum(axis=0)
    return first, norm, spread, w, rest


def _few_groups(
    basis: Basis,
    w: FloatArray,
    rest: FloatArray,
    dof: float,
    reml: bool,
    out: tuple[FloatArray, ...],
) -> None:
    """Fit in the directions of the groups."""
    way = basis.directions
    eigen = way.values**2
    intercept_fits(
        eigen,
        eigen if reml else basis.size,
        way.turn,
        (basis.back**2).sum(axis=1),
        np.ascontiguousarray(w.T),
        rest,
        dof,
        ratio_grid(basis.size),
        *out,
    )


def _many_groups(
    basis: Basis, unit: FloatArray, dof: float, reml: bool, out: tuple[FloatArray, ...]
) -> None:
    """Fit from sums by group."""
    by_group = sum_by(basis.root[:, None] * unit, basis.codes, basis.n_groups)
    inner_y = unit - basis.root[:, None] * (by_group / basis.size[:, None])[basis.codes]
    inner_x = basis.q - basis.root[:, None] * (basis.qsum / basis.size[:, None])[basis.codes]
    many_group_fits(
        basis.size,
        basis.qsum,
        np.ascontiguousarray(inner_x.T @ inner_x),
        np.ascontiguousarray(by_group.T),
        np.ascontiguousarray(inner_y.T @ inner_x),
        np.ascontiguousarray((inner_y**2).sum(axis=0)),
        dof,
        float(reml),
        basis.back,
        *out,
    )
