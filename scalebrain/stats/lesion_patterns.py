"""Who is lesioned where: lesion masks as the distinct patterns of lesioned people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import compute
from dask.delayed import delayed

from scalebrain.stats.lesion_symptom_numba_fns import (
    count_steps,
    count_voxels,
    distinct_columns,
    fill_columns,
    fill_steps,
    pattern_sums,
)

__all__ = ["Columns", "LesionPatterns", "Steps", "lesioned_voxels"]

FloatArray = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Position = npt.NDArray[np.floating[Any]]

# Patterns of one task, within which sums are chained: fixed, so that none depends on workers.
_PART = 4096


@dataclass(frozen=True)
class Steps:
    """Patterns along a walk, each by the people who join and leave the one before.

    Parameters
    ----------
    start
        (pattern + 1,) where the steps of a pattern begin in `step`.
    step
        ``p`` for a person who joins, ``~p`` for one who leaves.
    anew
        (pattern,) whether the pattern starts from nobody.
    """

    start: IntArray
    step: Int32Array
    anew: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Lesioned people by voxel, and which voxels stand for a pattern.

    Parameters
    ----------
    start
        (voxel + 1,) where the people of a voxel begin in `person`.
    person
        Lesioned people in ascending order, voxel by voxel.
    first
        (pattern,) first voxel of every pattern, ascending.
    """

    start: IntArray
    person: Int32Array
    first: IntArray

    def part(self, low: int, high: int) -> Columns:
        """Patterns from `low` to `high`, with their own arrays."""
        left, right = self.first[low], self.first[high - 1] + 1
        begin, end = self.start[left], self.start[right]
        return Columns(
            self.start[left : right + 1] - begin,
            self.person[begin:end],
            self.first[low:high] - left,
        )

    def steps(self, *, chained: bool = True) -> Steps:
        """Write the patterns as steps.

        Parameters
        ----------
        chained
            False to write every pattern as all of its people.

        Returns
        -------
        Steps
            The first pattern starts from nobody.
        """
        # what a worker received may be read-only
        person = self.person if self.person.flags.writeable else self.person.copy()
        start, first = self.start.copy(), self.first.copy()
        anew = np.empty(first.size, dtype=np.bool_)
        n_steps = np.empty(first.size, dtype=np.int64)
        count_steps(start, person, first, chained, anew, n_steps)
        step_start = np.concatenate([[0], np.cumsum(n_steps)])
        step = np.empty(step_start[-1], dtype=np.int32)
        fill_steps(start, person, first, anew, step_start, step)
        return Steps(step_start, step, anew)


@dataclass(frozen=True)
class LesionPatterns:
    """Distinct patterns of lesioned people, and the voxels that have them.

    Parameters
    ----------
    n_people
        Number of people.
    count
        (voxel,) number of lesioned people.
    voxels
        (tested voxel,) positions of the voxels that enough people have lesioned and spared,
        in the order of the walk.
    pattern
        (tested voxel,) number of the voxel's pattern.
    columns
        Lesioned people of the tested voxels.
    """

    n_people: int
    count: Int32Array
    voxels: IntArray
    pattern: Int32Array
    columns: Columns

    @classmethod
    def of(
        cls,
        lesions: Sequence[Int32Array],
        n_voxels: int,
        *,
        min_lesions: int,
        position: Sequence[Position] | None = None,
        merge: bool = True,
    ) -> LesionPatterns:
        """Collect the lesions of people by voxel.

        Parameters
        ----------
        lesions
            Positions of the lesioned voxels of every person.
        n_voxels
            Number of voxels.
        min_lesions
            Least number of people who have a tested voxel lesioned, and who have it spared.
        position
            x, y and z (voxel,) of the voxels in mm: neighbors then follow each other, which
            changes the speed and no result.
        merge
            Whether voxels of the same people share a pattern.

        Returns
        -------
        LesionPatterns
            Its arrays are linear in the number of lesioned voxels over all people.
        """
        n = len(lesions)
        count = np.zeros(n_voxels, dtype=np.int32)
        for voxels in lesions:
            count_voxels(voxels, count)
        tested = np.flatnonzero((count >= min_lesions) & (count <= n - min_lesions))
        if position is not None:
            x, y, z = (axis[tested] for axis in position)
            tested = tested[_walk(x, y, z)]
        column = np.full(n_voxels, -1, dtype=np.int32)
        column[tested] = np.arange(tested.size, dtype=np.int32)
        start = np.zeros(tested.size + 1, dtype=np.int64)
        np.cumsum(count[tested], out=start[1:])
        person = np.empty(start[-1], dtype=np.int32)
        end = start[:-1].copy()
        for who, voxels in enumerate(lesions):
            fill_columns(voxels, who, column, end, person)
        if not merge:
            pattern = np.arange(tested.size, dtype=np.int32)
            first = np.arange(tested.size, dtype=np.int64)
            return cls(n, count, tested, pattern, Columns(start, person, first))
        key = np.random.default_rng(0).integers(1 << 63, size=n, dtype=np.uint64)
        table = np.full(1 << (2 * tested.size + 1).bit_length(), -1, dtype=np.int64)
        pattern = np.empty(tested.size, dtype=np.int32)
        first = np.empty(tested.size, dtype=np.int64)
        n_patterns = distinct_columns(start, person, key, table, pattern, first)
        first = first[:n_patterns].copy()
        return cls(n, count, tested, pattern, Columns(start, person, first))

    @property
    def n_patterns(self) -> int:
        """Number of distinct patterns."""
        return self.columns.first.size

    @property
    def size(self) -> Int32Array:
        """(pattern,) number of lesioned people."""
        return self.count[self.voxels[self.columns.first]]

    def sums(self, values: FloatArray) -> FloatArray:
        """Sum values over the lesioned people of every pattern.

        Parameters
        ----------
        values
            (person, column).

        Returns
        -------
        ndarray
            (pattern, column).
        """
        out = np.empty((self.n_patterns, values.shape[1]))
        columns = self.columns
        pattern_sums(
            columns.start, columns.person, columns.first, np.ascontiguousarray(values), out
        )
        return out

    def parts(self) -> list[tuple[slice, Columns]]:
        """Divide the patterns into parts of a fixed size, whatever will work on them."""
        bounds = range(0, self.n_patterns, _PART)
        parts = [slice(low, min(low + _PART, self.n_patterns)) for low in bounds]
        return [(part, self.columns.part(part.start, part.stop)) for part in parts]


def lesioned_voxels(mask: xr.DataArray, rows: IntArray) -> list[Int32Array]:
    """Read lesion masks in one pass over their blocks.

    Parameters
    ----------
    mask
        (subject, voxel) bool, lazy or not.
    rows
        Positions of the subjects to read, ascending.

    Returns
    -------
    list of ndarray
        Positions of the lesioned voxels of each of these subjects. No more than the blocks
        that are being read is in memory beside them.
    """
    variable = mask.variable.transpose("subject", "voxel")
    if variable.chunks is None:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda row: _positions(variable[row].values), rows.tolist()))
    array = variable.data[rows]
    columns = np.concatenate([[0], np.cumsum(array.chunks[1])])
    read = delayed(_positions_of_rows)
    found = compute(*[[read(block) for block in row] for row in array.to_delayed()])
    out: list[Int32Array] = []
    for row in found:
        if len(row) == 1:
            out += row[0]
            continue
        for parts in zip(*row, strict=True):
            moved = [part + np.int32(low) for part, low in zip(parts, columns, strict=False)]
            out.append(np.concatenate(moved))
    return out


def _positions(row: npt.NDArray[np.bool_]) -> Int32Array:
    """Positions of True."""
    return np.flatnonzero(row).astype(np.int32)


def _positions_of_rows(block: npt.NDArray[np.bool_]) -> list[Int32Array]:
    """Positions of True in every row."""
    return [_positions(row) for row in block]


def _walk(x: Position, y: Position, z: Position) -> IntArray:
    """Order of voxels along z, then y, then x, each back and forth, so that neighbors follow."""
    rounded = (np.round(mm, 2) for mm in (x, y, z))
    i, j, k = (np.searchsorted(np.unique(mm), mm) for mm in rounded)
    n_j, n_k = (int(plane.max(initial=0)) + 1 for plane in (j, k))
    k = np.where((i + j) % 2 == 1, n_k - 1 - k, k)
    j = np.where(i % 2 == 1, n_j - 1 - j, j)
    return np.argsort((i * n_j + j) * n_k + k, kind="stable")
