"""Moments that a structural model implies, and their likelihood, pattern by pattern.

All variables, observed and latent, stand in one vector v = A v + m + e with cov(e) = S, so
that with E = (I - A)^-1 the observed ones have mean E m and covariance E S E'. People with
the same variables missing share a pattern, and each pattern enters by its count, mean and
covariance alone: the cost does not grow with people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize

from scalebrain.errors import StatisticsError
from scalebrain.stats.sem_model import SemModel

__all__ = ["Engine", "Moments", "Pattern", "PatternSums", "pooled"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Moments = tuple[FloatArray, FloatArray]
_MOST_STEPS = 80
#: Gains of log-likelihood by the next step: enough to end, and close enough if no step helps.
_ENOUGH, _CLOSE = 1e-13, 1e-8


@dataclass(frozen=True)
class Pattern:
    """People who have the same variables, of one data set or of many.

    Parameters
    ----------
    where
        (k,) positions of their variables.
    n
        (...) people.
    mean, cov
        (..., k) and (..., k, k), with `n` as divisor.
    """

    where: IntArray
    n: FloatArray
    mean: FloatArray
    cov: FloatArray


@dataclass(frozen=True)
class PatternSums:
    """Counts, sums and cross products by pattern and group, from which replicates are made.

    Parameters
    ----------
    where
        Positions of the variables of each pattern.
    center
        (variable,) what was subtracted first.
    n, first, second
        For each pattern (group,), (group, k) and (group, k, k).
    """

    where: list[IntArray]
    center: FloatArray
    n: list[FloatArray]
    first: list[FloatArray]
    second: list[FloatArray]

    @classmethod
    def of(cls, values: FloatArray, codes: IntArray) -> PatternSums:
        """Sum rows (person, variable), NaN where missing, by group of people."""
        n_groups = int(codes.max()) + 1
        center = np.nanmean(values, axis=0)
        seen = np.isfinite(values)
        kinds, of_row = np.unique(seen, axis=0, return_inverse=True)
        of_row = np.ravel(of_row)
        out = cls([], center, [], [], [])
        for k, kind in enumerate(kinds):
            if not kind.any():
                continue
            rows = of_row == k
            where = np.flatnonzero(kind)
            x = values[rows][:, where] - center[where]
            group = codes[rows]
            first = np.zeros((n_groups, len(where)))
            np.add.at(first, group, x)
            second = np.zeros((n_groups, len(where), len(where)))
            np.add.at(second, group, x[:, :, None] * x[:, None, :])
            out.where.append(where)
            out.n.append(np.bincount(group, minlength=n_groups).astype(np.float64))
            out.first.append(first)
            out.second.append(second)
        return out

    def patterns(self, weights: FloatArray | None = None) -> list[Pattern]:
        """Make patterns of groups that count (..., group) times each, once if not given."""
        out = []
        for where, n, first, second in zip(
            self.where, self.n, self.first, self.second, strict=True
        ):
            w = np.ones(len(n)) if weights is None else weights
            total = np.asarray(w @ n)
            divisor = np.where(total > 0, total, 1.0)
            mean = w @ first / divisor[..., None]
            cov = np.tensordot(w, second, axes=1) / divisor[..., None, None]
            cov -= mean[..., :, None] * mean[..., None, :]
            out.append(Pattern(where, total, mean + self.center[where], cov))
        return out


def pooled(patterns: Sequence[Pattern], where: Sequence[int]) -> Moments:
    """Mean and covariance of variables that nobody lacks, over all patterns."""
    total = np.sum([p.n for p in patterns], axis=0)
    parts = []
    for p in patterns:
        i = np.array([int(np.flatnonzero(p.where == k)[0]) for k in where])
        parts.append((p.n / total, p.mean[..., i], p.cov[..., i[:, None], i]))
    mean = np.sum([w[..., None] * m for w, m, _ in parts], axis=0)
    cov = np.zeros((*mean.shape, len(where)))
    for w, m, c in parts:
        d = m - mean
        cov += w[..., None, None] * (c + d[..., :, None] * d[..., None, :])
    return mean, cov


class Engine:
    """A model with the scale that it is fitted on.

    Parameters
    ----------
    model
        The model.
    unit
        Standard deviation of each observed variable. Fits run on variables divided by
        them; a latent variable has the unit of its marker.
    """

    def __init__(self, model: SemModel, unit: Mapping[str, float]) -> None:
        self.model = model
        names = (*model.observed, *model.latent)
        place = {name: k for k, name in enumerate(names)}
        units = dict(unit)
        for p in model.parameters:
            if p.op == "=~" and p.value is not None and p.left not in units:
                units[p.left] = units.get(p.right, 1.0)
        u = np.array([units.get(name, 1.0) for name in names])
        self.unit = u[: len(model.observed)]
        self.n_observed, self.n_all = len(model.observed), len(names)
        self.exogenous = np.array([place[name] for name in model.exogenous], dtype=np.int64)
        rows, columns, factors = [], [], []
        for p in model.parameters:
            i = place[p.right] if p.op == "=~" else place[p.left]
            j = i if p.op == "~1" else place[p.left] if p.op == "=~" else place[p.right]
            rows.append(i)
            columns.append(j)
            factors.append({"~~": 1 / (u[i] * u[j]), "~1": 1 / u[i]}.get(p.op, u[j] / u[i]))
        self.i, self.j = np.array(rows), np.array(columns)
        self.factor = np.array(factors)
        ops = np.array([p.op for p in model.parameters])
        self.is_arrow = np.isin(ops, ["~", "=~"])
        self.is_cov, self.is_mean = ops == "~~", ops == "~1"
        self.index, self.ratio, self.fixed = self._free()
        self.n_free = int(self.index.max()) + 1
        self.spread = np.zeros((self.n_free, len(self.index)))
        free = np.flatnonzero(self.index >= 0)
        self.spread[self.index[free], free] = self.ratio[free]

    def _free(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Position of each row among the free parameters, its scale, or its value."""
        parameters = self.model.parameters
        held = {p.label: p.value for p in parameters if p.label and p.value is not None}
        index = np.full(len(parameters), -1)
        ratio = np.ones(len(parameters))
        fixed = np.zeros(len(parameters))
        first: dict[str, int] = {}
        n = 0
        for r, p in enumerate(parameters):
            value = p.value if p.value is not None else held.get(p.label)
            if value is not None:
                fixed[r] = value * self.factor[r]
            elif p.label and p.label in first:
                other = first[p.label]
                index[r] = index[other]
                ratio[r] = self.factor[r] / self.factor[other]
            else:
                if p.label:
                    first[p.label] = r
                index[r] = n
                n += 1
        return index, ratio, fixed

    # -- values: theta is (..., free), of one fit or of many ---------------------------------

    def internal(self, theta: FloatArray) -> FloatArray:
        """Every parameter (..., parameter), on the scale of the fit."""
        padded = np.concatenate([theta, np.zeros((*theta.shape[:-1], 1))], axis=-1)
        return np.where(self.index >= 0, self.ratio * padded[..., self.index], self.fixed)

    def values(self, theta: FloatArray) -> FloatArray:
        """Every parameter, in units of the data."""
        return np.asarray(self.internal(theta) / self.factor)

    def matrices(
        self, theta: FloatArray, given: Moments
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Arrows A, residual covariances S and intercepts m."""
        x = self.internal(theta)
        a = np.zeros((*x.shape[:-1], self.n_all, self.n_all))
        s, m = np.zeros_like(a), np.zeros(a.shape[:-1])
        a[..., self.i[self.is_arrow], self.j[self.is_arrow]] = x[..., self.is_arrow]
        s[..., self.i[self.is_cov], self.j[self.is_cov]] = x[..., self.is_cov]
        s[..., self.j[self.is_cov], self.i[self.is_cov]] = x[..., self.is_cov]
        m[..., self.i[self.is_mean]] = x[..., self.is_mean]
        if len(self.exogenous):
            m[..., self.exogenous] = given[0]
            s[..., self.exogenous[:, None], self.exogenous] = given[1]
        return a, s, m

    def implied(self, theta: FloatArray, given: Moments) -> Moments:
        """Mean and covariance of all variables, observed ones first."""
        a, s, m = self.matrices(theta, given)
        e = np.linalg.inv(np.eye(self.n_all) - a)
        return (e @ m[..., None])[..., 0], e @ s @ np.swapaxes(e, -1, -2)

    def standardized(self, theta: FloatArray, given: Moments) -> FloatArray:
        """Every parameter, with all variables at a variance of 1."""
        x = self.internal(theta)
        _, s, _ = self.matrices(theta, given)
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(np.diagonal(self.implied(theta, given)[1], axis1=-2, axis2=-1))
            residual = np.sqrt(np.diagonal(s, axis1=-2, axis2=-1))
            i, j = self.i, self.j
            cov = np.where(i == j, x / sd[..., i] ** 2, x / (residual[..., i] * residual[..., j]))
            own = np.where(self.is_cov, cov, x / sd[..., i])
            return np.asarray(np.where(self.is_arrow, x * sd[..., j] / sd[..., i], own))

    def scaled(self, patterns: Sequence[Pattern]) -> list[Pattern]:
        """Patterns on the scale of the fit."""
        out = []
        for p in patterns:
            u = self.unit[p.where]
            out.append(Pattern(p.where, p.n, p.mean / u, p.cov / np.outer(u, u)))
        return out

    def given(self, patterns: Sequence[Pattern]) -> Moments:
        """Moments of the exogenous variables, on the scale of the fit."""
        if not len(self.exogenous):
            return np.zeros(0), np.zeros((0, 0))
        return pooled(patterns, self.exogenous.tolist())

    # -- likelihood ------------------------------------------------------------------------

    def jacobian(self, theta: FloatArray, given: Moments) -> Moments:
        """Differentiate mean (..., free, k) and covariance (..., free, k, k) of the observed."""
        a, s, m = self.matrices(theta, given)
        e = np.linalg.inv(np.eye(self.n_all) - a)
        mean, cov = (e @ m[..., None])[..., 0], e @ s @ np.swapaxes(e, -1, -2)
        p, n_rows = self.n_observed, len(self.index)
        seen = np.swapaxes(e[..., :p, :], -1, -2)
        left = seen[..., self.i, :]
        right = np.where(self.is_arrow[:, None], cov[..., self.j, :p], seen[..., self.j, :])
        right = np.where(self.is_mean[:, None], 0.0, right)
        half = left[..., :, :, None] * right[..., :, None, :]
        single = (self.is_cov & (self.i == self.j))[:, None, None]
        d_cov = np.where(single, half, half + np.swapaxes(half, -1, -2))
        d_mean = left * np.where(self.is_arrow, mean[..., self.j], self.is_mean)[..., None]
        flat = self.spread @ d_cov.reshape(*d_cov.shape[:-3], n_rows, p * p)
        return self.spread @ d_mean, flat.reshape(*flat.shape[:-1], p, p)

    def deviance(
        self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments
    ) -> FloatArray:
        """-2 log-likelihood (...) without its constant; infinite where it does not exist."""
        with np.errstate(all="ignore"):
            try:
                mean, cov = self.implied(theta, given)
            except np.linalg.LinAlgError:
                return np.full(theta.shape[:-1], np.inf)
            total = np.zeros(theta.shape[:-1])
            for p in patterns:
                logdet, inverse = _inverted(cov[..., p.where[:, None], p.where])
                fit = logdet + (inverse * p.cov).sum(axis=(-2, -1))
                if self.model.has_means:
                    d = p.mean - mean[..., p.where]
                    fit += (d * (inverse @ d[..., None])[..., 0]).sum(axis=-1)
                total = total + np.where(p.n > 0, p.n * fit, 0.0)
            return np.where(np.isfinite(total), total, np.inf)

    def score(self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments) -> Moments:
        """Gradient (..., free) of the log-likelihood, and the expected information."""
        d_mean, d_cov = self.jacobian(theta, given)
        mean, cov = self.implied(theta, given)
        gradient = np.zeros(theta.shape)
        information = np.zeros((*theta.shape, self.n_free))
        for p in patterns:
            n = np.asarray(p.n)[..., None]
            _, inverse = _inverted(cov[..., p.where[:, None], p.where])
            dc = d_cov[..., p.where[:, None], p.where]
            spread = p.cov
            if self.model.has_means:
                d = p.mean - mean[..., p.where]
                spread = spread + d[..., :, None] * d[..., None, :]
                dm = d_mean[..., p.where]
                weighted = dm @ inverse
                gradient += n * (weighted @ d[..., None])[..., 0]
                information += n[..., None] * (weighted @ np.swapaxes(dm, -1, -2))
            flat_shape = (*dc.shape[:-2], len(p.where) ** 2)
            middle = inverse @ spread @ inverse - inverse
            flat = middle.reshape(*middle.shape[:-2], -1, 1)
            gradient += 0.5 * n * (dc.reshape(flat_shape) @ flat)[..., 0]
            part = inverse[..., None, :, :] @ dc
            turned = np.swapaxes(part, -1, -2).reshape(flat_shape)
            both = part.reshape(flat_shape) @ np.swapaxes(turned, -1, -2)
            information += 0.5 * n[..., None] * both
        return gradient, information

    def solve(
        self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments
    ) -> FloatArray | None:
        """Climb to the optimum by Fisher scoring; None where it is not reached."""
        one = [Pattern(p.where, np.reshape(p.n, 1), p.mean[None], p.cov[None]) for p in patterns]
        found, reached = self.solve_all(theta[None], one, (given[0][None], given[1][None]))
        return found[0] if reached[0] else None

    def solve_all(
        self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Climb to the optimum of many data sets at once.

        Parameters
        ----------
        theta
            (fit, free) where to start.
        patterns
            The data of every fit.
        given
            Mean and covariance of the exogenous variables of every fit.

        Returns
        -------
        theta
            (fit, free).
        reached
            (fit,) False where the optimum was not reached.
        """
        theta = theta.copy()
        value = self.deviance(theta, patterns, given)
        reached = np.zeros(len(theta), dtype=np.bool_)
        active = np.flatnonzero(np.isfinite(value))
        for _ in range(_MOST_STEPS):
            if not active.size:
                break
            here, held = _picked(patterns, active), _picked_moments(given, active)
            try:
                gradient, information = self.score(theta[active], here, held)
            except np.linalg.LinAlgError:
                break
            step = _direction(information, gradient)
            gain = (gradient * step).sum(axis=1)
            reached[active[gain < _ENOUGH]] = True
            going = (gain >= _ENOUGH) & np.isfinite(gain)
            active, step, gain = active[going], step[going], gain[going]
            left, size = np.arange(len(active)), 1.0
            while left.size and size > 1e-6:
                at = active[left]
                tried = theta[at] + size * step[left]
                further = self.deviance(tried, _picked(patterns, at), _picked_moments(given, at))
                better = further < value[at]
                theta[at[better]], value[at[better]] = tried[better], further[better]
                # no better point that numbers can tell apart
                ended = ~better & (gain[left] < _CLOSE)
                reached[at[ended]] = True
                left = left[~better & ~ended]
                size /= 2
            active = np.setdiff1d(active, active[left])
            active = active[~reached[active]]
        return theta, reached

    def descend(self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments) -> FloatArray:
        """Go downhill by BFGS, for starts that scoring cannot use."""
        n = float(np.sum([p.n for p in patterns]))

        def objective(x: FloatArray) -> tuple[float, FloatArray]:
            value = float(self.deviance(x, patterns, given))
            if not np.isfinite(value):
                return 1e10, np.zeros(len(x))
            gradient, _ = self.score(x, patterns, given)
            return value / n, -2.0 * gradient / n

        with np.errstate(all="ignore"):
            found = scipy.optimize.minimize(
                objective, theta, jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 300}
            )
        return np.asarray(found.x, dtype=np.float64)

    def observed_information(
        self, theta: FloatArray, patterns: Sequence[Pattern], given: Moments
    ) -> FloatArray:
        """Second derivatives of the log-likelihood, less, by differences of the gradient."""
        _, expected = self.score(theta, patterns, given)
        steps = 1e-3 / np.sqrt(np.maximum(np.diag(expected), 1e-12))
        up, _ = self.score(theta + np.diag(steps), patterns, given)
        down, _ = self.score(theta - np.diag(steps), patterns, given)
        out = (down - up) / (2 * steps[:, None])
        return np.asarray((out + out.T) / 2)

    def check_identified(self, information: FloatArray) -> None:
        """Refuse parameters that the data say nothing about."""
        size = np.sqrt(np.abs(np.diag(information)))
        blank = size <= 0
        root = np.where(blank, 1.0, size)
        roots, vectors = np.linalg.eigh(information / np.outer(root, root))
        if not blank.any() and roots[0] > 1e-10:
            return
        loose = np.abs(vectors[:, 0]) > 0.1
        names = [
            p.name
            for p, k in zip(self.model.parameters, self.index, strict=True)
            if k >= 0 and loose[k]
        ]
        raise StatisticsError(
            "SEM: the model is not identified: its information matrix is singular, other values of "
            f"{', '.join(map(repr, names[:6]))} fit as well. Remove paths, or fix a parameter."
        )


def _inverted(cov: FloatArray) -> Moments:
    """Log-determinant and inverse of covariances; NaN where one is not positive definite."""
    fine = np.asarray(np.isfinite(cov).all(axis=(-2, -1)))
    safe = np.where(fine[..., None, None], cov, np.eye(cov.shape[-1]))
    roots, vectors = np.linalg.eigh(safe)
    fine = fine & (roots[..., 0] > 0)
    roots = np.where(fine[..., None], roots, np.nan)
    inverse = (vectors / roots[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return np.log(roots).sum(axis=-1), inverse


def _direction(information: FloatArray, gradient: FloatArray) -> FloatArray:
    """Step (..., free) of Fisher scoring; along what the data say nothing about, a short one."""
    size = np.sqrt(np.maximum(np.diagonal(information, axis1=-2, axis2=-1), 1e-300))
    with np.errstate(all="ignore"):
        scaled = information / (size[..., :, None] * size[..., None, :])
    fine = np.isfinite(scaled).all(axis=(-2, -1))
    roots, vectors = np.linalg.eigh(np.where(fine[..., None, None], scaled, np.eye(size.shape[-1])))
    along = np.swapaxes(vectors, -1, -2) @ (gradient / size)[..., None]
    step = (vectors @ (along / np.maximum(roots, 1e-10)[..., None]))[..., 0] / size
    return np.where(fine[..., None], step, np.nan)


def _picked(patterns: Sequence[Pattern], k: IntArray) -> list[Pattern]:
    return [Pattern(p.where, p.n[k], p.mean[k], p.cov[k]) for p in patterns]


def _picked_moments(given: Moments, k: IntArray) -> Moments:
    return given if given[0].ndim < 2 else (given[0][k], given[1][k])
