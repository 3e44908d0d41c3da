"""The design of a mixed model: orthonormal columns, sums by group, directions of the groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg

from scalebrain.errors import StatisticsError

__all__ = ["Basis", "Directions", "orthonormal", "sum_by"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_NULL = 1e-12  # a singular value below this, relative to the largest, is rounding


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns of a design, the way back to its coefficients, and its groups.

    Parameters
    ----------
    names
        Columns of the design.
    x
        The design (n, p).
    q
        Orthonormal columns of the design, rows multiplied by `root` (n, p).
    back
        Matrix from orthonormal to original coefficients (p, p).
    codes
        Group of every row (n).
    root
        Square roots of the weights (n).
    size
        Rows, or sum of the weights, of every group (n_groups).
    """

    names: tuple[str, ...]
    x: FloatArray
    q: FloatArray
    back: FloatArray
    codes: IntArray
    root: FloatArray
    size: FloatArray

    @classmethod
    def of(
        cls,
        design: pd.DataFrame,
        codes: IntArray,
        *,
        weights: FloatArray | None = None,
        where: str = "Mixed model",
        groups: str = "cohort",
    ) -> Basis:
        """Orthonormalize a design and check it and its groups.

        Parameters
        ----------
        design
            One column a coefficient.
        codes
            Group of every row, from zero on without gaps.
        weights
            Prior weight of every row; default one each.
        where
            What is fitted, for messages.
        groups
            Name of the groups, for messages.

        Returns
        -------
        Basis
            The design.

        Raises
        ------
        StatisticsError
            If the design is rank deficient (the columns are named), or has too few rows or
            groups.
        """
        names = tuple(map(str, design.columns))
        x = design.to_numpy(dtype=np.float64)
        root = np.ones(len(x)) if weights is None else np.sqrt(weights)
        q, back = orthonormal(names, x, root, where)
        size = np.bincount(codes, weights=root**2).astype(np.float64)
        if len(size) < 2:
            raise StatisticsError(
                f"{where}: all {len(codes)} usable rows belong to one '{groups}', so its variance "
                "cannot be estimated. Pass a `groups` with two or more values, or fit ordinary "
                "least squares."
            )
        if len(size) == len(codes):
            raise StatisticsError(
                f"{where}: each of the {len(codes)} usable rows is a '{groups}' of its own, so "
                "its variance cannot be told from the residual's. Pass a coarser `groups`."
            )
        return cls(names, x, q, back, codes, root, size)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return self.size.size

    @cached_property
    def qsum(self) -> FloatArray:
        """Weighted sums of the orthonormal columns in every group (n_groups, p)."""
        return sum_by(self.root[:, None] * self.q, self.codes, self.n_groups)

    @cached_property
    def spread(self) -> FloatArray:
        """Standard deviation of every original column over the rows; 0 for the intercept."""
        spread: FloatArray = self.x.std(axis=0, ddof=1)
        return np.where(spread > 1e-10 * np.abs(self.x).max(axis=0), spread, 0.0)

    def constant(self, *, reml: bool) -> float:
        """Part of -2 log-likelihood that neither variances nor outcome change."""
        n, p = self.shape
        dof = n - p if reml else n
        logs = -2.0 * float(np.log(self.root).sum())
        if reml:
            logs -= 2.0 * float(np.linalg.slogdet(self.back)[1])
        return logs + dof * (1.0 + float(np.log(2.0 * np.pi / dof)))

    def residuals(self, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Project outcomes (n, k) on the columns: coefficients, and `root` times residuals."""
        return _project(self.q, y if (self.root == 1).all() else self.root[:, None] * y)

    @cached_property
    def directions(self) -> Directions:
        """The directions that the groups span beside the design."""
        n, _ = self.shape
        indicator = np.zeros((n, self.n_groups))
        indicator[np.arange(n), self.codes] = self.root
        _, left = _project(self.q, indicator)
        y, values, u = np.linalg.svd(left, full_matrices=False)
        null = values <= _NULL * max(values[0], np.finfo(np.float64).tiny)
        y[:, null], values[null] = 0.0, 0.0
        turn = np.ascontiguousarray(u @ self.qsum @ self.back.T)
        return Directions(y, values, np.ascontiguousarray(u), turn)


@dataclass(frozen=True)
class Directions:
    """Singular vectors and values of the groups' columns without the design.

    Parameters
    ----------
    y
        Left vectors (n, n_groups), zero where the value is.
    values
        Singular values (n_groups).
    u
        Right vectors, one a row (n_groups, n_groups).
    turn
        Coefficients that a shift along each direction changes (n_groups, p).
    """

    y: FloatArray
    values: FloatArray
    u: FloatArray
    turn: FloatArray


def sum_by(values: FloatArray, codes: IntArray, n_groups: int) -> FloatArray:
    """Sum the rows of `values` (n, k) within every group (n_groups, k)."""
    out = np.zeros((n_groups, values.shape[1]))
    np.add.at(out, codes, values)
    return out


def _project(q: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients on orthonormal columns and residuals; twice, for precision."""
    first = q.T @ y
    left = y - q @ first
    again = q.T @ left
    return first + again, left - q @ again


def orthonormal(
    names: tuple[str, ...], x: FloatArray, root: FloatArray, where: str
) -> tuple[FloatArray, FloatArray]:
    """Orthonormal columns and the matrix back; centered and scaled first, for precision."""
    n, p = x.shape
    if n <= p:
        raise StatisticsError(
            f"{where}: {n} usable rows for {p} coefficients ({', '.join(names)}); more "
            "rows than coefficients are needed. Use fewer terms or check the missing values."
        )
    change = np.eye(p)
    weight = root**2 / (root**2).sum()
    if "Intercept" in names:
        k = names.index("Intercept")
        change[k] -= weight @ x
        change[k, k] = 1.0
    centered = x @ change
    if "Intercept" in names:  # once more: the mean of a large offset is itself rounded
        again = weight @ centered
        again[k] = 0.0
        centered = centered - again
        change[k] -= again
    scaled = root[:, None] * centered
    norm = np.sqrt((scaled**2).sum(axis=0))
    raw = np.sqrt(((root[:, None] * x) ** 2).sum(axis=0))
    flat = [name for name, a, b in zip(names, norm, raw, strict=True) if not a > 1e-10 * b]
    if flat:
        raise StatisticsError(
            f"{where}: the design is rank deficient: {', '.join(map(repr, flat))} has the "
            f"same value in all {n} rows used. Leave it out, or leave the region out."
        )
    scaled = scaled / norm
    _, r, pivot = scipy.linalg.qr(scaled, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(r)) > 1e-8 * abs(r[0, 0])).sum())
    if rank < p:
        parts = scipy.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:])
        told = []
        for column, weights in zip(pivot[rank:], parts.T, strict=True):
            others = sorted(pivot[:rank][np.abs(weights) > 1e-6])
            told.append(f"'{names[column]}' = combination of {[names[o] for o in others]}")
        raise StatisticsError(
            f"{where}: the design is rank deficient: {'; '.join(told)}. "
            "Leave one of these terms out."
        )
    q, upper = np.linalg.qr(scaled)
    back = scipy.linalg.solve_triangular(upper, (change / norm).T, trans="T").T
    return np.ascontiguousarray(q), np.ascontiguousarray(back)
