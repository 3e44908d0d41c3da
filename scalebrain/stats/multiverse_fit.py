"""Linear equations with a random intercept at a known ratio, for many cluster replicates.

With V = I + g Z Z' and one intercept a group, a group of n rows with column sums s gives
X'V^-1X = X'X - g / (1 + n g) s s'. These add over groups, so a replicate that draws groups
needs no rows: it weighs what each group gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Equation"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Equation:
    """One outcome on its predictors, summed by group.

    Parameters
    ----------
    left
        (group, column, column) X'V^-1X of each group; the last column is the intercept.
    right
        (group, column) X'V^-1y.
    first, second
        (group, column + 1) sums of the columns and the outcome, the last one, and of their
        squares.
    n
        Rows.
    """

    left: FloatArray
    right: FloatArray
    first: FloatArray
    second: FloatArray
    n: int

    @classmethod
    def of(cls, y: FloatArray, x: FloatArray, codes: IntArray, ratio: float) -> Equation:
        """Sum rows of standardized variables.

        Parameters
        ----------
        y, x
            (row,) outcome and (row, predictor) predictors, in units of the data.
        codes
            (row,) group of each row.
        ratio
            Variance between groups over the residual variance; 0 for least squares.

        Returns
        -------
        Equation
            Of variables at a mean of 0 and a variance of 1 over the rows.
        """
        n_groups = int(codes.max()) + 1
        both = np.column_stack([x, y])
        both = (both - both.mean(axis=0)) / both.std(axis=0)
        z = np.column_stack([both[:, :-1], np.ones(len(y)), both[:, -1]])
        sums = np.zeros((n_groups, z.shape[1]))
        np.add.at(sums, codes, z)
        cross = np.zeros((n_groups, z.shape[1], z.shape[1]))
        np.add.at(cross, codes, z[:, :, None] * z[:, None, :])
        squares = np.diagonal(cross, axis1=1, axis2=2).copy()
        size = np.bincount(codes, minlength=n_groups)
        shrink = ratio / (1 + size * ratio)
        cross -= shrink[:, None, None] * sums[:, :, None] * sums[:, None, :]
        return cls(cross[:, :-1, :-1], cross[:, :-1, -1], sums, squares, len(y))

    def slopes(self, weights: FloatArray) -> FloatArray:
        """Slopes (replicate, predictor) of groups drawn so many times.

        They are standardized by the standard deviations of the rows drawn, as
        :func:`scalebrain.sem` does. Per standard deviation of all rows they would be wild in
        replicates in which a predictor hardly varies.

        Parameters
        ----------
        weights
            (replicate, group).

        Returns
        -------
        ndarray
            NaN where a replicate cannot tell the predictors apart, or the outcome is constant.
        """
        left = np.tensordot(weights, self.left, axes=1)
        right = weights @ self.right
        size = np.sqrt(np.maximum(np.diagonal(left, axis1=1, axis2=2), 1e-300))
        scaled = left / (size[:, :, None] * size[:, None, :])
        roots = np.linalg.eigvalsh(scaled)
        fine = roots[:, 0] > 1e-10
        out = np.full(right.shape, np.nan)
        if fine.any():
            solved = np.linalg.solve(scaled[fine], (right[fine] / size[fine])[:, :, None])
            out[fine] = solved[:, :, 0] / size[fine]
        return out[:, :-1] * self._ratio(weights)

    def _ratio(self, weights: FloatArray) -> FloatArray:
        """Divide the standard deviations (replicate, predictor) by that of the outcome."""
        with np.errstate(divide="ignore", invalid="ignore"):
            n = (weights @ self.second[:, -2])[:, None]  # of the intercept: rows
            variance = weights @ self.second / n - (weights @ self.first / n) ** 2
            sd = np.sqrt(np.where(variance > 1e-12, variance, np.nan))
        return np.asarray(sd[:, :-2] / sd[:, -1:])
