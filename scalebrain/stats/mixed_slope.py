"""Fits with a random intercept and a random slope by group, one outcome after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize

from scalebrain.errors import StatisticsError
from scalebrain.stats.mixed_basis import Basis
from scalebrain.stats.mixed_fit import Fits, unit_residuals

__all__ = ["fit_slopes"]

FloatArray = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]

_STARTS = ((1.0, 0.0, 1.0), (0.3, 0.0, 0.1), (0.1, 0.1, 0.3))
_TINY = 1e-30  # step of the complex derivative, which has no rounding
_STEP = 1e-5  # step between two gradients


@dataclass(frozen=True)
class _Sums:
    """Cross products in every group: random with random, fixed and outcome."""

    zz: FloatArray
    zx: FloatArray
    zy: FloatArray
    dof: float
    reml: bool
    back: FloatArray

    def parts(self, theta: AnyArray) -> tuple[Any, Any, AnyArray, AnyArray]:
        """Log-determinants, residual sum, coefficients and their variances over `e`."""
        zero = theta[0] * 0
        low = np.array([[theta[0], zero], [theta[1], theta[2]]])
        m = low.T @ self.zz @ low
        m[:, 0, 0] += 1.0
        m[:, 1, 1] += 1.0
        det = m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
        inverse = np.empty_like(m)
        inverse[:, 0, 0], inverse[:, 1, 1] = m[:, 1, 1] / det, m[:, 0, 0] / det
        inverse[:, 0, 1], inverse[:, 1, 0] = -m[:, 0, 1] / det, -m[:, 1, 0] / det
        bx = low.T @ self.zx
        by = (low.T @ self.zy[:, :, None])[:, :, 0]
        solved = inverse @ bx
        p = self.zx.shape[2]
        a = np.eye(p) - np.einsum("gip,giq->pq", bx, solved)
        right = -np.einsum("gip,gi->p", solved, by)
        beta = np.linalg.solve(a, right)
        rss = 1.0 - np.einsum("gi,gij,gj->", by, inverse, by) - right @ beta
        logs = np.log(det).sum()
        if self.reml:
            logs = logs + np.log(np.linalg.det(a))
        variance = (self.back * np.linalg.solve(a, self.back.T).T).sum(axis=1)
        return logs, rss, beta, variance

    def deviance(self, theta: AnyArray) -> Any:
        """Deviance less its constant."""
        logs, rss, _, _ = self.parts(theta)
        return logs + self.dof * np.log(rss)

    def gradient(self, theta: FloatArray) -> FloatArray:
        """Gradient of the deviance."""
        return np.array([self.deviance(one).imag for one in _stepped(theta)]) / _TINY

    def value(self, theta: FloatArray) -> float:
        """Deviance as a number; infinite where it is none."""
        value = float(self.deviance(theta))
        return value if np.isfinite(value) else np.inf


def fit_slopes(
    basis: Basis,
    z: FloatArray,
    y: FloatArray,
    *,
    reml: bool = True,
    where: str = "Mixed model",
    slope: str = "slope",
) -> Fits:
    """Fit a random intercept and a correlated random slope to every outcome.

    Parameters
    ----------
    basis
        The design and its groups.
    z
        Variable whose slope varies by group (n).
    y
        Outcomes (n, k).
    reml
        Restricted maximum likelihood, else maximum likelihood.
    where
        What is fitted, for messages.
    slope
        Name of `z`, for messages.

    Returns
    -------
    Fits
        One row an outcome.

    Raises
    ------
    StatisticsError
        If `z` does not vary within groups, or rows are not more than random effects.

    Notes
    -----
    The profiled deviance is minimized over the three elements of the relative Cholesky factor
    with exact (complex-step) gradients, from several starts, and polished by Newton steps.
    """
    n, p = basis.shape
    if n <= 2 * basis.n_groups:
        raise StatisticsError(
            f"{where}: {n} rows for {2 * basis.n_groups} random effects ({basis.n_groups} groups "
            "with an intercept and a slope each); more rows are needed. Leave the slope out."
        )
    means = np.bincount(basis.codes, z) / np.bincount(basis.codes)
    if np.abs(z - means[basis.codes]).max() <= 1e-10 * np.abs(z).max():
        raise StatisticsError(
            f"{where}: '{slope}' does not vary within any group, so its slope cannot vary by "
            "group. Leave the slope out."
        )
    center, spread = float(z.mean()), float(z.std())
    columns = np.stack([basis.root, basis.root * (z - center) / spread], axis=1)
    zz, zx = _by_group(columns, columns, basis), _by_group(columns, basis.q, basis)
    first, unit, norm = unit_residuals(basis, y)
    zy = _by_group(columns, unit, basis)
    dof = float(n - p if reml else n)
    k = y.shape[1]
    estimate, se, df = (np.full((k, p), np.nan) for _ in range(3))
    variances = np.full((5, k), np.nan)  # intercept, slope, covariance, residual, likelihood
    boundary, exact = np.zeros(k, dtype=np.bool_), norm == 0
    to_user = np.array([[1.0, -center / spread], [0.0, 1.0 / spread]])
    for r in np.flatnonzero(~exact):
        sums = _Sums(zz, zx, np.ascontiguousarray(zy[:, :, r]), dof, reml, basis.back)
        theta, singular = _minimum(sums)
        logs, rss, beta, variance = sums.parts(theta)
        if not rss > 1e-12:
            continue
        e = rss / dof
        scale = e * norm[r] ** 2
        estimate[r] = basis.back @ (first[:, r] + norm[r] * beta)
        se[r] = np.sqrt(variance * scale)
        df[r] = _degrees_of_freedom(sums, theta, e)
        low = to_user @ np.array([[theta[0], 0.0], [theta[1], theta[2]]])
        spread_of = scale * low @ low.T
        criterion = logs + dof * np.log(rss) + 2 * dof * np.log(norm[r])
        criterion += basis.constant(reml=reml)
        variances[:, r] = (
            spread_of[0, 0],
            spread_of[1, 1],
            spread_of[0, 1],
            scale,
            -criterion / 2,
        )
        boundary[r] = singular
    intercept, of_slope, covariance, residual, likelihood = variances
    flat = np.isnan(residual) & ~exact
    return Fits(
        estimate,
        se,
        df,
        y.std(axis=0, ddof=1),
        intercept,
        residual,
        likelihood,
        boundary,
        exact,
        flat,
        of_slope,
        covariance,
    )


def _by_group(left: FloatArray, right: FloatArray, basis: Basis) -> FloatArray:
    """Cross products of columns in every group (n_groups, left, right)."""
    out = np.zeros((basis.n_groups, left.shape[1], right.shape[1]))
    np.add.at(out, basis.codes, left[:, :, None] * right[:, None, :])
    return out


def _stepped(theta: FloatArray) -> list[AnyArray]:
    return [theta + 1j * _TINY * unit for unit in np.eye(theta.size)]


def _hessian(gradient: Callable[[FloatArray], FloatArray], theta: FloatArray) -> FloatArray:
    """Differentiate a gradient by central differences."""
    rows = []
    for unit in np.eye(theta.size):
        rows.append((gradient(theta + _STEP * unit) - gradient(theta - _STEP * unit)) / (2 * _STEP))
    h: FloatArray = np.array(rows)
    return (h + h.T) / 2


def _minimum(sums: _Sums) -> tuple[FloatArray, bool]:
    """Factor of lowest deviance, and whether it lies on the boundary.

    The deviance is even in both diagonal elements, so that no bound is needed: on the
    boundary it is stationary.
    """
    best, lowest = np.zeros(3), sums.value(np.zeros(3))
    for start in _STARTS:
        found = scipy.optimize.minimize(
            sums.value, start, jac=sums.gradient, method="BFGS", options={"gtol": 1e-7}
        )
        if found.fun < lowest - 1e-10:
            best, lowest = found.x, float(found.fun)
    best = _polished(sums, best, [0, 1, 2])
    lowest = sums.value(best)
    for zero in ([2], [0, 1, 2]):
        trial = best.copy()
        trial[zero] = 0.0
        if np.abs(best[zero]).max() > 0.05:
            continue
        free = [i for i in range(3) if i not in zero]
        trial = _polished(sums, trial, free) if free else trial
        if sums.value(trial) <= lowest + 1e-9:
            best, lowest = trial, sums.value(trial)
    return best, bool(best[2] == 0.0 or best[0] == 0.0)


def _polished(sums: _Sums, theta: FloatArray, free: list[int]) -> FloatArray:
    """Newton steps in the free elements, as long as they lower the gradient."""
    slope = sums.gradient(theta)[free]
    for _ in range(8):
        h = _hessian(sums.gradient, theta)[np.ix_(free, free)]
        trial = theta.copy()
        trial[free] -= np.linalg.pinv(h, rcond=1e-12) @ slope
        moved = sums.gradient(trial)[free]
        if not np.abs(moved).max() < np.abs(slope).max():
            break
        if not sums.value(trial) <= sums.value(theta) + 1e-8:
            break
        theta, slope = trial, moved
    return theta


def _degrees_of_freedom(sums: _Sums, theta: FloatArray, e: float) -> FloatArray:
    """Satterthwaite: 2 v^2 over the variance of v, by the observed information."""

    def slopes(at: FloatArray) -> FloatArray:  # of log-determinants and residual sum (3, 2)
        found = [sums.parts(one) for one in _stepped(at)]
        return np.array([[logs.imag, rss.imag] for logs, rss, _, _ in found]) / _TINY

    second = np.array(
        [
            (slopes(theta + _STEP * unit) - slopes(theta - _STEP * unit)) / (2 * _STEP)
            for unit in np.eye(3)
        ]
    )
    h = np.zeros((4, 4))
    h[:3, :3] = second[:, :, 0] + second[:, :, 1] / e
    h[:3, 3] = h[3, :3] = -slopes(theta)[:, 1] / e**2
    h[3, 3] = sums.dof / e**2
    # the residual variance of a unit outcome may be far from one: scale before the inverse
    unit = np.array([1.0, 1.0, 1.0, e])
    values, vectors = np.linalg.eigh((h + h.T) / 2 * np.outer(unit, unit))
    kept = values > 1e-8 * values.max()
    spread = (vectors[:, kept] * (2.0 / values[kept])) @ vectors[:, kept].T
    variance = sums.parts(theta)[3]
    by_theta = e * np.array([sums.parts(one)[3].imag for one in _stepped(theta)]) / _TINY
    by = np.vstack([by_theta, variance[None]]) * unit[:, None]
    out: FloatArray = 2.0 * (e * variance) ** 2 / np.einsum("ik,ij,jk->k", by, spread, by)
    return out
