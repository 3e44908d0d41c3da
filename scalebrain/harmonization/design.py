"""What is kept: covariates as columns, and whether they can be told from the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalebrain.errors import StatisticsError
from scalebrain.harmonization.splines import SplineBasis

__all__ = [
    "Covariates",
    "as_labels",
    "batch_share",
    "check_confounding",
    "covariate_values",
    "missing_rows",
]

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def as_labels(values: AnyArray) -> npt.NDArray[np.object_]:
    """Values as text; None where they are missing.

    Parameters
    ----------
    values
        (subject,) text, numbers or flags. ``1`` and ``1.0`` are the same label.

    Returns
    -------
    ndarray
        (subject,) ``str`` or None.
    """
    out = np.empty(len(values), dtype=object)
    for row, value in enumerate(np.asarray(values).tolist()):
        out[row] = _label(value)
    return out


def covariate_values(values: AnyArray, dtype: Any) -> AnyArray:
    """Values of a covariate, of which those of a categorical are text.

    Parameters
    ----------
    values
        (subject,) text, numbers or flags.
    dtype
        What they were before they were a NumPy array.

    Returns
    -------
    ndarray
        (subject,) the same, or labels where `dtype` is that of a pandas categorical: integers
        there are codes of levels, not a straight line.
    """
    return as_labels(values) if isinstance(dtype, pd.CategoricalDtype) else np.asarray(values)


def missing_rows(values: AnyArray) -> BoolArray:
    """Rows without a usable value.

    Parameters
    ----------
    values
        (subject,) text, numbers or flags.

    Returns
    -------
    ndarray
        (subject,) True where the value is NaN, infinite, None or empty text.
    """
    if _is_number(values):
        return ~np.isfinite(_numbers(values))
    return np.array([label is None for label in as_labels(values)], dtype=np.bool_)


@dataclass(frozen=True)
class _Term:
    name: str
    levels: tuple[str, ...] = ()
    basis: SplineBasis | None = None

    @property
    def columns(self) -> list[str]:
        if self.basis is not None:
            return [f"{self.name} (spline {k + 1})" for k in range(self.basis.size)]
        return [f"{self.name}[{level}]" for level in self.levels[1:]] or [self.name]

    def encode(self, values: AnyArray) -> FloatArray:
        if self.basis is not None or not self.levels:
            if not _is_number(values):
                raise StatisticsError(
                    f"Covariate '{self.name}' was a number in the fit and is text or a flag now. "
                    "Code it alike."
                )
            numbers = _numbers(values)
            return numbers[:, None] if self.basis is None else self.basis(numbers)
        labels = as_labels(values)
        unknown = sorted({str(label) for label in labels} - set(self.levels))
        if unknown:
            raise StatisticsError(
                f"Covariate '{self.name}': {', '.join(map(repr, unknown))} was not among the "
                f"levels of the fit ({', '.join(self.levels)}). Fit with people of every level."
            )
        return np.array([[label == k for k in self.levels[1:]] for label in labels], dtype=float)


@dataclass(frozen=True)
class Covariates:
    """Covariates whose effects are kept, as they were encoded at the fit.

    Parameters
    ----------
    terms
        One for each covariate, in order.
    """

    terms: tuple[_Term, ...]

    @classmethod
    def learn(
        cls, columns: Mapping[str, AnyArray], names: Sequence[str], smooth: Sequence[str]
    ) -> Covariates:
        """Learn levels and knots.

        Parameters
        ----------
        columns
            For every name (subject,) values without missing ones.
        names
            Covariates. Numbers are straight lines; text and flags are levels.
        smooth
            Covariates that are smooth; they may stand in `names` too.

        Returns
        -------
        Covariates
            The encoding.

        Raises
        ------
        StatisticsError
            If a covariate has one value only, or a smooth one is text or has too few values.
        """
        terms = []
        for name in dict.fromkeys((*names, *smooth)):
            values = np.asarray(columns[name])
            number = _is_number(values)
            distinct = {None} | set(_numbers(values) if number else as_labels(values))
            if len(distinct) <= 2:
                raise StatisticsError(
                    f"Covariate '{name}' has the same value in all {len(values)} subjects of the "
                    "fit, so there is no effect to keep. Leave it out."
                )
            if name in smooth:
                if not number:
                    raise StatisticsError(f"smooth '{name}' must be numbers, got text or flags.")
                terms.append(_Term(name, basis=SplineBasis.of(_numbers(values), name)))
            elif number:
                terms.append(_Term(name))
            else:
                terms.append(_Term(name, levels=tuple(sorted(map(str, set(as_labels(values)))))))
        return cls(tuple(terms))

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column for term in self.terms for column in term.columns]

    def encode(self, columns: Mapping[str, AnyArray], n: int) -> FloatArray:
        """Make the columns.

        Parameters
        ----------
        columns
            For every covariate (subject,) values without missing ones.
        n
            Subjects.

        Returns
        -------
        ndarray
            (subject, column).
        """
        parts = [term.encode(np.asarray(columns[term.name])) for term in self.terms]
        return np.column_stack([np.empty((n, 0)), *parts])

    def penalties(self, before: int) -> list[FloatArray]:
        """Penalties of the smooth terms.

        Parameters
        ----------
        before
            Columns that stand before those of the covariates.

        Returns
        -------
        list of ndarray
            One (column, column) for each smooth term.
        """
        size = before + len(self.names)
        made = []
        start = before
        for term in self.terms:
            stop = start + len(term.columns)
            if term.basis is not None:
                penalty = np.zeros((size, size))
                penalty[start:stop, start:stop] = term.basis.penalty()
                made.append(penalty)
            start = stop
        return made

    def straight(self, columns: Mapping[str, AnyArray], n: int) -> tuple[list[str], FloatArray]:
        """Names and columns with smooth terms as straight lines, which no penalty holds."""
        lines = Covariates(
            tuple(_Term(term.name) if term.basis is not None else term for term in self.terms)
        )
        return lines.names, lines.encode(columns, n)

    def check_varies(self, lines: FloatArray, *, where: str) -> None:
        """Refuse a covariate that does not vary, or lacks a level, among some of the subjects.

        Parameters
        ----------
        lines
            (subject, column) what :meth:`straight` made of them.
        where
            Start of the message.

        Raises
        ------
        StatisticsError
            If a covariate has one value there, or nobody has one of its levels.
        """
        n, stop = len(lines), 0
        for term in self.terms:
            start, stop = stop, stop + max(1, len(term.levels) - 1)
            part = lines[:, start:stop]
            if not term.levels:
                if np.ptp(part) == 0:
                    raise StatisticsError(_flat(where, term.name, f"{part[0, 0]:g}", n))
                continue
            counts = [n - int(part.sum()), *part.sum(axis=0).astype(int).tolist()]
            there = [level for level, count in zip(term.levels, counts, strict=True) if count]
            if len(there) == 1:
                raise StatisticsError(_flat(where, term.name, there[0], n))
            absent = [level for level in term.levels if level not in there]
            if absent:
                raise StatisticsError(
                    f"{where}: nobody of {n} subjects has {', '.join(map(repr, absent))} of "
                    f"covariate '{term.name}', so its effect cannot be kept. Leave the covariate "
                    "or these people out, or join the level to another."
                )


def _flat(where: str, name: str, value: str, n: int) -> str:
    return (
        f"{where}: covariate '{name}' is {value} in all {n} subjects, so its effect cannot be "
        "kept. Leave the covariate or the feature out."
    )


def check_confounding(
    codes: IntArray,
    batches: Sequence[str],
    names: Sequence[str],
    columns: FloatArray,
    *,
    batch: str,
    where: str = "",
) -> None:
    """Refuse covariates whose effects cannot be told from those of the batches.

    Parameters
    ----------
    codes
        (subject,) position in `batches`.
    batches
        Labels of the batches; each has a subject.
    names
        Names of the columns.
    columns
        (subject, column) of the covariates.
    batch
        Name of the batch variable.
    where
        Start of the message.

    Raises
    ------
    StatisticsError
        If the design of batches and covariates has not full rank. The message names rank,
        columns and what each is a combination of.
    """
    import scipy.linalg

    n, n_batch, p = len(codes), len(batches), len(names)
    start = f"{where}: " if where else ""
    if n <= n_batch + p:
        raise StatisticsError(
            f"{start}{n} subjects for {n_batch} values of '{batch}' and {p} columns of "
            f"covariates ({', '.join(names) or 'none'}); more subjects than columns are needed. "
            "Use fewer covariates, or leave small batches out."
        )
    if not p:
        return
    within, total = _within(codes, n_batch, columns)
    scaled = within / total
    _, r, pivot = scipy.linalg.qr(scaled, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(r)) > 1e-8).sum())
    if rank == p:
        return
    parts = scipy.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:])
    told = []
    for column, weights in zip(pivot[rank:], parts.T, strict=True):
        others = [names[k] for k in sorted(pivot[:rank][np.abs(weights) > 1e-6])]
        told.append(
            f"'{names[column]}' is a combination of '{batch}'"
            + "".join(f" + '{o}'" for o in others)
            if others
            else f"'{names[column]}' is the same within every '{batch}'"
        )
    shown = ", ".join(batches[:6]) + (", ..." if n_batch > 6 else "")
    raise StatisticsError(
        f"{start}covariates are confounded with '{batch}': the design of {n_batch} batches "
        f"({shown}) and {p} columns ({', '.join(names)}) has rank {n_batch + rank}, not "
        f"{n_batch + p}: {'; '.join(told)}. No harmonization can tell these effects from those "
        "of the batches. Leave the covariate out, or bring in batches where it varies."
    )


def batch_share(codes: IntArray, n_batch: int, columns: FloatArray) -> FloatArray:
    """Share of the variance of every covariate that lies between batches.

    Parameters
    ----------
    codes
        (subject,) codes of the batches.
    n_batch
        Batches.
    columns
        (subject, column).

    Returns
    -------
    ndarray
        (column,) between 0 and 1.
    """
    within, total = _within(codes, n_batch, columns)
    return np.asarray(1 - (within**2).sum(axis=0) / total**2)


def _within(codes: IntArray, n_batch: int, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Columns less the means of their batches, and norms of the columns less their mean."""
    centered = columns - columns.mean(axis=0)
    sums = np.zeros((n_batch, columns.shape[1]))
    np.add.at(sums, codes, centered)
    means = sums / np.bincount(codes, minlength=n_batch)[:, None]
    return centered - means[codes], np.sqrt((centered**2).sum(axis=0))


def _is_number(values: AnyArray) -> bool:
    kind = np.asarray(values).dtype.kind
    if kind != "O":
        return kind in "iuf"
    present = [value for value in np.asarray(values).tolist() if _label(value) is not None]
    return bool(present) and all(
        isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) for value in present
    )


def _numbers(values: AnyArray) -> FloatArray:
    if np.asarray(values).dtype.kind in "iuf":
        return np.asarray(values, dtype=np.float64)
    return np.array(
        [np.nan if _label(value) is None else value for value in np.asarray(values).tolist()],
        dtype=np.float64,
    )


def _label(value: Any) -> str | None:
    if pd.isna(value) or value == "":
        return None
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, (float, np.floating)) and value.is_integer():
        value = int(value)
    return str(value)
