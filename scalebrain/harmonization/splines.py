"""Penalized B-splines: a smooth effect of age, fitted to many outcomes at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError

__all__ = ["SplineBasis", "gcv_weights", "kfold_weights", "penalized_fit", "weighted_penalty"]

FloatArray = npt.NDArray[np.float64]

_SIZE = 10
_DEGREE = 3
#: Weights that k-fold validation chooses from, those of statsmodels.
_KFOLD_GRID = np.logspace(0, 7, 11)


@dataclass(frozen=True)
class SplineBasis:
    """Cubic B-splines of one covariate, as statsmodels' ``BSplines(df=10)``.

    Parameters
    ----------
    knots
        All knots: the range four times on either side, quantiles within.
    """

    knots: FloatArray

    @classmethod
    def of(cls, values: FloatArray, name: str) -> SplineBasis:
        """Place the knots over the values of a covariate.

        Parameters
        ----------
        values
            (subject,) finite values.
        name
            Name of the covariate, for the message.

        Returns
        -------
        SplineBasis
            Basis with six knots at the quantiles of the values.

        Raises
        ------
        StatisticsError
            If knots coincide, because too few values are distinct.
        """
        inner = np.quantile(values, np.linspace(0, 1, _SIZE - _DEGREE + 1)[1:-1])
        ends = (values.min(), values.max())
        places = np.array([ends[0], *inner, ends[1]])
        if not (np.diff(places) > 1e-9 * max(np.ptp(values), np.finfo(np.float64).tiny)).all():
            raise StatisticsError(
                f"smooth '{name}': {len(np.unique(values))} distinct values among {len(values)} "
                f"subjects are too few or too unevenly spread for {len(inner)} knots. Name it "
                "in `covariates` alone, as a straight line."
            )
        return cls(np.concatenate([[ends[0]] * _DEGREE, places, [ends[1]] * _DEGREE]))

    @property
    def size(self) -> int:
        """Columns of the basis, the constant left out."""
        return _SIZE - 1

    def __call__(self, values: FloatArray) -> FloatArray:
        """Evaluate the basis; straight lines go on beyond its range.

        Parameters
        ----------
        values
            (subject,) finite values.

        Returns
        -------
        ndarray
            (subject, size).
        """
        low, high = self.knots[0], self.knots[-1]
        inside = np.clip(values, low, high)
        out = self._spline(0, inside)
        beyond = values - inside
        if beyond.any():
            out += beyond[:, None] * self._spline(1, inside)
        return out

    def penalty(self) -> FloatArray:
        """Integral of the products of second derivatives, (size, size)."""
        places = np.unique(self.knots)
        step = np.diff(places)
        left, right = self._spline(2, places[:-1]), self._spline(2, places[1:])
        middle = (left + right) / 2  # the second derivative of a cubic is a straight line
        out = np.zeros((self.size, self.size))
        for part, share in ((left, 1.0), (middle, 4.0), (right, 1.0)):
            out += (part * (share * step / 6)[:, None]).T @ part
        return out

    def _spline(self, derivative: int, values: FloatArray) -> FloatArray:
        from scipy.interpolate import BSpline

        spline = BSpline(self.knots, np.eye(_SIZE), _DEGREE)
        made: FloatArray = (spline.derivative(derivative) if derivative else spline)(values)
        return made[:, 1:]


def penalized_fit(design: FloatArray, outcomes: FloatArray, penalty: FloatArray) -> FloatArray:
    """Least squares with a quadratic penalty on the coefficients.

    Parameters
    ----------
    design
        (subject, column).
    outcomes
        (subject, feature).
    penalty
        (column, column), positive semidefinite.

    Returns
    -------
    ndarray
        (column, feature) coefficients.
    """
    values, vectors = np.linalg.eigh(penalty)
    keep = values > 1e-14 * max(float(values[-1]), float(np.finfo(np.float64).tiny))
    root = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
    made: FloatArray = np.linalg.lstsq(
        np.vstack([design, root]),
        np.vstack([outcomes, np.zeros((len(root), outcomes.shape[1]))]),
        rcond=None,
    )[0]
    return made


def gcv_weights(
    design: FloatArray, outcomes: FloatArray, penalties: Sequence[FloatArray]
) -> FloatArray:
    """Choose the weights of the penalties by generalized cross-validation.

    Parameters
    ----------
    design
        (subject, column).
    outcomes
        (subject, feature).
    penalties
        One (column, column) for each smooth term.

    Returns
    -------
    ndarray
        (feature, term) weights.

    Notes
    -----
    The smallest ``n RSS / (n - tr H)^2`` over 25 weights a term from 1e-6 to 1e6 of
    ``tr(X'X) / tr(S)`` of the term's columns, so that the unit of a covariate does not matter.

    References
    ----------
    Craven and Wahba 1978, doi:10.1007/BF01404567
    """
    from scipy.linalg import cho_factor, cho_solve

    n = len(design)
    gram, cross = design.T @ design, design.T @ outcomes
    grids = []
    for penalty in penalties:
        own = np.diag(penalty) > 0
        base = np.diag(gram)[own].sum() / (2 * np.diag(penalty).sum())
        grids.append(base * np.logspace(-6, 6, 25))
    best = np.full(outcomes.shape[1], np.inf)
    chosen = np.zeros((outcomes.shape[1], len(penalties)))
    for weights in itertools.product(*grids):
        factor = cho_factor(gram + weighted_penalty(penalties, weights))
        rss = ((outcomes - design @ cho_solve(factor, cross)) ** 2).sum(axis=0)
        score = n * rss / (n - np.trace(cho_solve(factor, gram))) ** 2
        better = score < best
        best[better] = score[better]
        chosen[better] = weights
    return chosen


def kfold_weights(
    design: FloatArray,
    outcome: FloatArray,
    penalties: Sequence[FloatArray],
    rng: np.random.Generator,
) -> FloatArray:
    """Choose the weights of the penalties by 5-fold validation, as neuroHarmonize does.

    Parameters
    ----------
    design
        (subject, column).
    outcome
        (subject,).
    penalties
        One (column, column) for each smooth term.
    rng
        Draws new folds for every weight, as statsmodels does.

    Returns
    -------
    ndarray
        (term,) weights.
    """
    n = len(design)
    best, chosen = np.inf, np.zeros(len(penalties))
    for weights in itertools.product(*[_KFOLD_GRID] * len(penalties)):
        order = np.arange(n)
        rng.shuffle(order)
        penalty = weighted_penalty(penalties, weights)
        errors = []
        for fold in np.array_split(order, 5):
            train = np.ones(n, dtype=np.bool_)
            train[fold] = False
            x, y = design[train], outcome[train]
            # a site that lies in this fold alone has no column left: pinv, not solve
            inverse = np.linalg.pinv(x.T @ x + penalty, rcond=1e-11, hermitian=True)
            test = ~train
            miss = outcome[test] - design[test] @ (inverse @ (x.T @ y))
            errors.append(np.linalg.norm(miss) / test.sum())
        if np.mean(errors) < best:
            best, chosen = float(np.mean(errors)), np.array(weights)
    return chosen


def weighted_penalty(penalties: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    """Sum of the penalties by their weights; twice, as statsmodels counts them.

    Parameters
    ----------
    penalties
        One (column, column) for each smooth term.
    weights
        One for each.

    Returns
    -------
    ndarray
        (column, column).
    """
    out = np.zeros_like(penalties[0])
    for penalty, weight in zip(penalties, weights, strict=True):
        out += 2 * weight * penalty
    return out
