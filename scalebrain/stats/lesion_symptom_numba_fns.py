"""Kernels of the lesion-symptom map.

A column is the list of people lesioned in one voxel, in ascending order; columns lie one
behind the other in `person`, column c at ``start[c]`` to ``start[c + 1]``. A pattern is a
column that differs from all before it, given by the number of its first column.

Patterns are visited along a walk through the brain, and a pattern is stored as the steps
that make it from the one before: ``p`` for a person who joins, ``~p`` for one who leaves.
Neighbors share most of their people, so that steps are far fewer than people.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel, read_only

__all__ = [
    "count_steps",
    "count_voxels",
    "distinct_columns",
    "fill_columns",
    "fill_steps",
    "pattern_sums",
    "strongest_effects",
]

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@kernel(read_only("int32", "int32[::1]"))
def count_voxels(voxels: Int32, count: Int32) -> None:
    """Add one to the count of every voxel of a lesion."""
    for i in range(voxels.size):
        count[voxels[i]] += 1


@kernel(read_only("int32", "int32, int32[::1], int64[::1], int32[::1]"))
def fill_columns(voxels: Int32, who: int, column: Int32, end: Int64, person: Int32) -> None:
    """Append a person to the columns of the voxels of a lesion.

    `column` is the column of a voxel, -1 for none; `end` is where a column ends so far.
    """
    for i in range(voxels.size):
        c = column[voxels[i]]
        if c >= 0:
            person[end[c]] = who
            end[c] += 1


@inner_kernel
def _same(start: Int64, person: Int32, a: int, b: int) -> bool:
    """Whether two columns hold the same people."""
    n = start[a + 1] - start[a]
    if start[b + 1] - start[b] != n:
        return False
    for i in range(n):
        if person[start[a] + i] != person[start[b] + i]:
            return False
    return True


@kernel("int64(int64[::1], int32[::1], uint64[::1], int64[::1], int32[::1], int64[::1])")
def distinct_columns(
    start: Int64,
    person: Int32,
    key: npt.NDArray[np.uint64],
    table: Int64,
    pattern: Int32,
    first: Int64,
) -> int:
    """Give distinct columns numbers in order of appearance, and return how many there are.

    `key` is a random number a person; the exclusive or of a column's keys says where in
    `table` (a power of two, larger than the number of columns, filled with -1) to look, and
    people are compared one by one, so that columns are the same only when they are.
    `pattern` is the number of every column, `first` the first column of every pattern.
    """
    mask = np.uint64(table.size - 1)
    n = 0
    for c in range(start.size - 1):
        code = np.uint64(0)
        for i in range(start[c], start[c + 1]):
            code ^= key[person[i]]
        slot = int(np.int64(code & mask))
        while table[slot] >= 0 and not _same(start, person, first[table[slot]], c):
            slot += 1
            if slot == table.size:
                slot = 0
        if table[slot] < 0:
            table[slot] = n
            first[n] = c
            n += 1
        pattern[c] = table[slot]
    return n


@kernel("void(int64[::1], int32[::1], int64[::1], boolean, boolean[::1], int64[::1])")
def count_steps(
    start: Int64,
    person: Int32,
    first: Int64,
    chained: bool,
    anew: npt.NDArray[np.bool_],
    n_steps: Int64,
) -> None:
    """Count the steps to every pattern, and tell which start anew from nobody.

    Those are the first, those whose people are fewer than their steps, and all of them when
    they are not `chained`.
    """
    for k in range(first.size):
        a = start[first[k]]
        a_end = start[first[k] + 1]
        n = a_end - a
        fresh = k == 0 or not chained
        steps = 0
        if not fresh:
            b = start[first[k - 1]]
            b_end = start[first[k - 1] + 1]
            while a < a_end and b < b_end:
                if person[a] == person[b]:
                    a += 1
                    b += 1
                elif person[a] < person[b]:
                    a += 1
                    steps += 1
                else:
                    b += 1
                    steps += 1
            steps += (a_end - a) + (b_end - b)
            fresh = steps >= n
        anew[k] = fresh
        n_steps[k] = n if fresh else steps


@kernel("void(int64[::1], int32[::1], int64[::1], boolean[::1], int64[::1], int32[::1])")
def fill_steps(
    start: Int64,
    person: Int32,
    first: Int64,
    anew: npt.NDArray[np.bool_],
    step_start: Int64,
    step: Int32,
) -> None:
    """Write the steps to every pattern."""
    for k in range(first.size):
        at = step_start[k]
        a = start[first[k]]
        a_end = start[first[k] + 1]
        b = b_end = a_end
        if not anew[k]:
            b = start[first[k - 1]]
            b_end = start[first[k - 1] + 1]
        while a < a_end or b < b_end:
            if b >= b_end or (a < a_end and person[a] < person[b]):
                step[at] = person[a]
                a += 1
                at += 1
            elif a >= a_end or person[b] < person[a]:
                step[at] = ~person[b]
                b += 1
                at += 1
            else:
                a += 1
                b += 1


@kernel("void(int64[::1], int32[::1], int64[::1], float64[:, ::1], float64[:, ::1])")
def pattern_sums(start: Int64, person: Int32, first: Int64, value: Float64, out: Float64) -> None:
    """Sum the values (person, column) of the lesioned people of every pattern."""
    for k in range(first.size):
        for j in range(value.shape[1]):
            out[k, j] = 0.0
        for i in range(start[first[k]], start[first[k] + 1]):
            for j in range(value.shape[1]):
                out[k, j] += value[person[i], j]


@kernel(
    read_only(
        "float64",
        "int64, int64[::1], int32[::1], boolean[::1], float64[::1], float64[:, ::1]",
    )
)
def strongest_effects(
    residual: Float64,
    n_people: int,
    step_start: Int64,
    step: Int32,
    anew: npt.NDArray[np.bool_],
    scale: Float64,
    out: Float64,
) -> None:
    """Largest absolute scaled sum of residuals over the patterns, for every permutation.

    `residual` is (tile, person, permutation of the tile), flat: a tile stays in the cache
    while the walk runs over it. `out` (tile, permutation of the tile) is raised where needed.
    """
    n_tiles, width = out.shape
    tiles = residual.reshape(n_tiles, n_people, width)
    total = np.zeros(width)
    for t in range(n_tiles):
        tile = tiles[t]
        best = out[t]
        for k in range(scale.size):
            if anew[k]:
                for j in range(width):
                    total[j] = 0.0
            for i in range(step_start[k], step_start[k + 1]):
                who = step[i]
                if who >= 0:
                    for j in range(width):
                        total[j] += tile[who, j]
                else:
                    who = ~who
                    for j in range(width):
                        total[j] -= tile[who, j]
            c = scale[k]
            for j in range(width):
                value = abs(total[j]) * c
                best[j] = value if value > best[j] else best[j]
