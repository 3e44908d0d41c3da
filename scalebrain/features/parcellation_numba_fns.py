"""Kernels of the parcellation: moments of segments of rows, gathered or as they lie.

A segment is read from memory once, summed, and then, while it lies in the cache, gone over
again for what needs its mean. The sum is NaN where a value is: only such segments, and
those with voxels left out, are gone through value by value.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, inner_reduction, kernel, read_only
from scalebrain.io.shards_numba_fns import (
    COLUMN,
    NUMBERS,
    column_place,
    decode_block,
    decode_columns,
    room_for_block,
    to_columns,
)

__all__ = [
    "COUNT",
    "MAXIMUM",
    "MEAN",
    "MINIMUM",
    "N_GROUPS",
    "N_MOMENTS",
    "SQUARES",
    "add_encoded_moments",
    "add_encoded_sums",
    "add_file_sums",
    "add_moments",
    "add_sums",
    "gather_means",
    "gathered_moments",
    "segment_counts",
    "segment_moments",
    "tissue_means",
    "weighted_moments",
]

# positions along the last axis of what the kernels fill
COUNT, MEAN, SQUARES, MINIMUM, MAXIMUM = range(5)
N_MOMENTS = 5
#: Sums of neighbors in a block: four columns of pairs, two of fours, one of eights.
N_GROUPS = 7 * COLUMN

_NUMBERS = ("uint8", "int16", "int32", "float32", "float64")
_BELOW_SIGN = np.int32(0x7FFFFFFF)


@inner_reduction
def _total(values):  # type: ignore[no-untyped-def]
    """Sum in float64."""
    total = 0.0
    for v in range(values.size):
        total += values[v]
    return total


@inner_reduction
def _squares(values, mean):  # type: ignore[no-untyped-def]
    """Sum of squared deviations in float64."""
    total = 0.0
    for v in range(values.size):
        deviation = np.float64(values[v]) - mean
        total += deviation * deviation
    return total


@inner_kernel
def _ordered(bits):  # type: ignore[no-untyped-def]
    """Integer that is ordered as the float of these bits; its own inverse."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & _BELOW_SIGN))


@inner_kernel
def _range(bits):  # type: ignore[no-untyped-def]
    """Smallest and largest float32, given and returned as their bits; integers vectorize."""
    low, high = _BELOW_SIGN, np.int32(~_BELOW_SIGN)
    for v in range(bits.size):
        key = _ordered(np.int32(bits[v]))
        if key < low:
            low = key
        if key > high:
            high = key
    return _ordered(low), _ordered(high)


@inner_kernel
def _gathered_total(raw, where):  # type: ignore[no-untyped-def]
    """Sum of ``raw[where]``; four sums at a time, so that loads do not wait for additions."""
    a = b = c = d = 0.0
    whole = where.size // 4
    for k in range(whole):
        a += raw[where[4 * k]]
        b += raw[where[4 * k + 1]]
        c += raw[where[4 * k + 2]]
        d += raw[where[4 * k + 3]]
    for v in range(4 * whole, where.size):
        a += raw[where[v]]
    return (a + b) + (c + d)


@inner_kernel
def _missing(out):  # type: ignore[no-untyped-def]
    """No value."""
    out[0] = 0.0
    out[1:] = np.nan


@inner_kernel
def _value_by_value(values, out):  # type: ignore[no-untyped-def]
    """Moments of the values that are not NaN."""
    count = 0
    total = 0.0
    low, high = np.inf, -np.inf
    for v in range(values.size):
        value = np.float64(values[v])
        if value == value:
            count += 1
            total += value
            low = value if value < low else low
            high = value if value > high else high
    if count == 0:
        _missing(out)
        return
    mean = total / count
    squares = 0.0
    for v in range(values.size):
        value = np.float64(values[v])
        if value == value:
            squares += (value - mean) * (value - mean)
    out[0], out[1], out[2], out[3], out[4] = count, mean, squares, low, high


@inner_kernel
def _of_segment(values, level, ends, out):  # type: ignore[no-untyped-def]
    """Moments of float32 values; `ends` is room for two of them."""
    if values.size == 0:
        _missing(out)
        return
    total = _total(values)
    if total != total:
        _value_by_value(values, out)
        return
    mean = total / values.size
    out[0], out[1] = values.size, mean
    if level > 1:
        out[2] = _squares(values, mean)
    if level > 2:
        bits = ends.view(np.int32)
        bits[0], bits[1] = _range(values.view(np.int32))
        out[3], out[4] = ends[0], ends[1]


@inner_kernel
def _add(some, level, out):  # type: ignore[no-untyped-def]
    """Add moments to others, `out` (Chan et al. 1983)."""
    if out[0] == 0 or some[0] == 0:
        if some[0] > 0:
            out[:] = some
        return
    count = out[0] + some[0]
    step = some[1] - out[1]
    if level > 1:
        out[2] += some[2] + step * step * out[0] * some[0] / count
    if level > 2:
        out[3], out[4] = min(out[3], some[3]), max(out[4], some[4])
    out[1] = out[1] * (out[0] / count) + some[1] * (some[0] / count)
    out[0] = count


@inner_kernel
def _add_block(values, first, starts, stops, level, room, out):  # type: ignore[no-untyped-def]
    """Add voxels `first` and after to the moments of segments."""
    ends, some = room
    for s in range(starts.size):
        start, stop = max(starts[s] - first, 0), min(stops[s] - first, values.size)
        if start < stop:
            _of_segment(values[start:stop], level, ends, some)
            _add(some, level, out[s])


@inner_kernel
def _column_total(columns, start, stop):  # type: ignore[no-untyped-def]
    """Sum of numbers `start` to `stop` of a block in columns."""
    total = 0.0
    first, last = -(-start // 8), stop // 8
    if first >= last:
        for v in range(start, stop):
            total += columns[column_place(v)]
        return total
    for v in range(start, 8 * first):
        total += columns[column_place(v)]
    for v in range(8 * last, stop):
        total += columns[column_place(v)]
    for k in range(8):
        total += _total(columns[COLUMN * k + first : COLUMN * k + last])
    return total


@inner_kernel
def _add_columns(columns, n, first, starts, stops, some, out):  # type: ignore[no-untyped-def]
    """Add voxels `first` and after, `n` in columns, to counts and means of segments."""
    for s in range(starts.size):
        start, stop = max(starts[s] - first, 0), min(stops[s] - first, n)
        if start >= stop:
            continue
        count = stop - start
        total = _column_total(columns, start, stop)
        if total != total:
            count, total = 0, 0.0
            for v in range(start, stop):
                value = np.float64(columns[column_place(v)])
                if value == value:
                    count += 1
                    total += value
        if count:
            some[0], some[1] = count, total / count
            _add(some, 1, out[s])


@inner_kernel
def _any_voxel(first, last, starts, stops):  # type: ignore[no-untyped-def]
    """Whether a segment has one of voxels `first` to `last`."""
    for s in range(starts.size):
        if max(starts[s], first) < min(stops[s], last):
            return True
    return False


@kernel(read_only("float32", "int64[::1], int64[::1], int64, float64[:, ::1]"))
def add_moments(
    values: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    level: int,
    out: npt.NDArray[np.float64],
) -> None:
    """Add a row to the moments of segments; NaN do not count.

    `out` is (segment, 5), zero before: count, mean; from level 2 the sum of squared deviations;
    at level 3 minimum and maximum. The rest of it means nothing.
    """
    room = np.empty(2, dtype=np.float32), np.zeros(5)
    _add_block(values, 0, starts, stops, level, room, out)


@kernel(
    read_only("uint8", "int64[::1], int64, int64, int64[::1], int64[::1], int64, float64[:, ::1]")
)
def add_encoded_moments(
    encoded: npt.NDArray[np.uint8],
    blocks: npt.NDArray[np.int64],
    first: int,
    n: int,
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    level: int,
    out: npt.NDArray[np.float64],
) -> bool:
    """Add an encoded row as :func:`add_moments` does a decoded one; say whether it is sound.

    Blocks lie in ``encoded[blocks[b]:blocks[b + 1]]``. They hold `n` voxels, from `first` on.
    """
    room = np.empty(2, dtype=np.float32), np.zeros(5)
    decoder = room_for_block()
    columns = np.empty(NUMBERS, dtype=np.uint32)
    values = np.empty(NUMBERS, dtype=np.float32)
    for b in range(blocks.size - 1):
        begin = first + b * NUMBERS
        own = values[: min(NUMBERS, n - b * NUMBERS)]
        if not _any_voxel(begin, begin + own.size, starts, stops):
            continue
        low, high = blocks[b], blocks[b + 1]
        if level == 1:
            if not decode_columns(encoded, low, high, own.size, decoder, columns):
                return False
            numbers = columns.view(np.float32)
            _add_columns(numbers, own.size, begin, starts, stops, room[1], out)
            continue
        if not decode_block(encoded, low, high, decoder, columns, own.view(np.uint32)):
            return False
        _add_block(own, begin, starts, stops, level, room, out)
    return True


@kernel(
    *(
        read_only(
            t,
            "uint32[::1], int64[::1], int64[::1], float64, float64, int64, float64[:, :, ::1]",
            ndim=2,
        )
        for t in _NUMBERS
    )
)
def gathered_moments(
    raw: npt.NDArray[np.generic],
    order: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    slope: float,
    intercept: float,
    level: int,
    out: npt.NDArray[np.float64],
) -> None:
    """Moments of ``raw[:, order[start:stop]] * slope + intercept``, as :func:`add_moments`.

    `raw` is (row, voxel), `out` (row, segment, 5). The positions of a segment stay in the cache
    for all rows, and what is gathered for what comes after its sum.
    """
    longest = 0
    for s in range(starts.size):
        longest = max(longest, stops[s] - starts[s])
    room = np.empty(longest, dtype=np.float32)
    ends = np.empty(2, dtype=np.float32)
    plain = slope == 1.0 and intercept == 0.0
    for s in range(starts.size):
        where = order[starts[s] : stops[s]]
        for i in range(raw.shape[0]):
            row = raw[i]
            if level == 1 and where.size > 0:
                total = _gathered_total(row, where)
                if total == total:
                    out[i, s, 0] = where.size
                    out[i, s, 1] = total / where.size * slope + intercept
                    continue
            values = room[: where.size]
            if plain:
                for v in range(where.size):
                    values[v] = row[where[v]]
            else:
                for v in range(where.size):
                    values[v] = row[where[v]] * slope + intercept
            _of_segment(values, level, ends, out[i, s])


@inner_kernel
def _group_sums(columns, groups):  # type: ignore[no-untyped-def]
    """Add pairs, fours and eights of neighbors, which lie at one place of columns."""
    for m in range(COLUMN):
        a = np.float64(columns[m]) + np.float64(columns[COLUMN + m])
        b = np.float64(columns[2 * COLUMN + m]) + np.float64(columns[3 * COLUMN + m])
        c = np.float64(columns[4 * COLUMN + m]) + np.float64(columns[5 * COLUMN + m])
        d = np.float64(columns[6 * COLUMN + m]) + np.float64(columns[7 * COLUMN + m])
        groups[m], groups[COLUMN + m] = a, b
        groups[2 * COLUMN + m], groups[3 * COLUMN + m] = c, d
        groups[4 * COLUMN + m], groups[5 * COLUMN + m] = a + b, c + d
        groups[6 * COLUMN + m] = (a + b) + (c + d)


@inner_kernel
def _total_of_fours(raw, where):  # type: ignore[no-untyped-def]
    """Sum of ``raw[where]``, of which there is a multiple of four."""
    a = b = c = d = 0.0
    for k in range(where.size // 4):
        a += raw[where[4 * k]]
        b += raw[where[4 * k + 1]]
        c += raw[where[4 * k + 2]]
        d += raw[where[4 * k + 3]]
    return (a + b) + (c + d)


@inner_kernel
def _add_value(value, sums, missing):  # type: ignore[no-untyped-def]
    """Add a value, or count that there is none."""
    if value == value:
        sums[0] += value
    else:
        missing[0] += 1


@inner_kernel
def _add_value_by_value(columns, groups, alone, sums, missing):  # type: ignore[no-untyped-def]
    """Add the values of groups and of single voxels that are not NaN, and count the others."""
    for k in range(groups.size):
        column, m = groups[k] // COLUMN, groups[k] % COLUMN
        if column < 4:  # of pairs
            first, size = 2 * column, 2
        elif column < 6:
            first, size = 4 * (column - 4), 4
        else:
            first, size = 0, 8 if column == 6 else 0
        for j in range(first, first + size):
            _add_value(columns[COLUMN * j + m], sums, missing)
    for k in range(alone.size):
        if alone[k] < NUMBERS:
            _add_value(columns[alone[k]], sums, missing)


@inner_kernel
def _add_labels(  # type: ignore[no-untyped-def]
    columns, groups, runs, place, label, bounds, sums, missing
):
    """Add the runs of a block to the sums of labels; count its NaN apart."""
    _group_sums(columns, groups)
    for r in range(runs[0], runs[1]):
        some = place[bounds[2 * r] : bounds[2 * r + 1]]
        alone = place[bounds[2 * r + 1] : bounds[2 * r + 2]]
        total = _total_of_fours(groups, some) + _total_of_fours(columns, alone)
        own = label[r]
        if total == total:
            sums[own] += total
        else:
            _add_value_by_value(columns, some, alone, sums[own : own + 1], missing[own : own + 1])


@inner_kernel
def _room_for_sums():  # type: ignore[no-untyped-def]
    """Columns of a block and sums of groups, each with a zero after the last."""
    return np.zeros(NUMBERS + 1, dtype=np.float32), np.zeros(N_GROUPS + 1)


_LABELS = "uint16[::1], int64[::1], int64[::1], int64[::1], float64[::1], int64[::1]"


@kernel(read_only("float32", _LABELS))
def add_sums(
    values: npt.NDArray[np.float32],
    place: npt.NDArray[np.uint16],
    label: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    runs: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    missing: npt.NDArray[np.int64],
) -> None:
    """Add a row to the sums of labels; count its NaN apart.

    Blocks of 16,384 voxels have the runs ``runs[b]`` to ``runs[b + 1]``. A run has a label, the
    groups ``place[bounds[2 r]:bounds[2 r + 1]]`` of its block, and the voxels
    ``place[bounds[2 r + 1]:bounds[2 r + 2]]`` of its columns; what lies after the last group and
    voxel is zero, and fills both up to a multiple of four.
    """
    columns, groups = _room_for_sums()
    for b in range(runs.size - 1):
        if runs[b] < runs[b + 1]:
            to_columns(values[b * NUMBERS : (b + 1) * NUMBERS], columns)
            _add_labels(columns, groups, runs[b : b + 2], place, label, bounds, sums, missing)


@kernel(read_only("uint8", f"int64[::1], int64, int64, {_LABELS}"))
def add_encoded_sums(
    encoded: npt.NDArray[np.uint8],
    blocks: npt.NDArray[np.int64],
    first: int,
    n: int,
    place: npt.NDArray[np.uint16],
    label: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    runs: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    missing: npt.NDArray[np.int64],
) -> bool:
    """Add an encoded row as :func:`add_sums` does a decoded one; say whether it is sound.

    Its blocks are as for :func:`add_encoded_moments`, `first` is a multiple of 16,384.
    """
    decoder = room_for_block()
    columns, groups = _room_for_sums()
    bits = columns[:NUMBERS].view(np.uint32)
    for b in range(blocks.size - 1):
        at = first // NUMBERS + b
        if at < 0 or at >= runs.size - 1 or runs[at] == runs[at + 1]:
            continue
        n_own = min(NUMBERS, n - b * NUMBERS)
        if not decode_columns(encoded, blocks[b], blocks[b + 1], n_own, decoder, bits):
            return False
        _add_labels(columns, groups, runs[at : at + 2], place, label, bounds, sums, missing)
    return True


@kernel(
    *(
        read_only(t, "uint16[::1], int64[::1], int64[::1], int64[::1], float64[::1]")
        for t in _NUMBERS
    )
)
def add_file_sums(
    raw: npt.NDArray[np.generic],
    place: npt.NDArray[np.uint16],
    label: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    runs: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
) -> None:
    """Add the numbers of a file, as it has them, to the sums of labels; NaN stay.

    Blocks are as for :func:`add_sums`, a run has the voxels ``place[bounds[r]:bounds[r + 1]]``.
    """
    room = np.empty(NUMBERS, dtype=raw.dtype)
    for b in range(runs.size - 1):
        if runs[b] == runs[b + 1]:
            continue
        own = raw[b * NUMBERS : (b + 1) * NUMBERS]
        for v in range(own.size):  # memory is read fastest from front to back
            room[v] = own[v]
        for r in range(runs[b], runs[b + 1]):
            sums[label[r]] += _gathered_total(room, place[bounds[r] : bounds[r + 1]])


@kernel(
    "void(float32[:, ::1], uint32[::1], float32[::1], int64[::1], int64[::1], float64[:, :, ::1])"
)
def weighted_moments(
    values: npt.NDArray[np.float32],
    order: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Weighted moments of ``values[:, order[start:stop]]``; `out` is (row, segment, 5).

    The first of them is the sum of the weights of the values that are not NaN.
    """
    for i in range(values.shape[0]):
        for s in range(starts.size):
            total = weight = 0.0
            low, high = np.inf, -np.inf
            for k in range(starts[s], stops[s]):
                value = np.float64(values[i, order[k]])
                if value == value:
                    weight += weights[k]
                    total += weights[k] * value
                    low = value if value < low else low
                    high = value if value > high else high
            if weight == 0:
                _missing(out[i, s])
                continue
            mean = total / weight
            squares = 0.0
            for k in range(starts[s], stops[s]):
                value = np.float64(values[i, order[k]])
                if value == value:
                    squares += weights[k] * (value - mean) * (value - mean)
            out[i, s, 0], out[i, s, 1], out[i, s, 2] = weight, mean, squares
            out[i, s, 3], out[i, s, 4] = low, high


@kernel("void(float32[:, ::1], boolean[:, ::1], int64[::1], int64[::1], float64[:, :, ::1])")
def segment_moments(
    values: npt.NDArray[np.float32],
    left_out: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Count, mean and sum of squared deviations of every segment of every row.

    `left_out` marks voxels that do not count, as NaN ones do not; `out` is (row, segment, 3).
    """
    ends = np.empty(2, dtype=np.float32)
    found = np.empty(5)
    longest = 0
    for s in range(starts.size):
        longest = max(longest, stops[s] - starts[s])
    room = np.empty(longest, dtype=np.float32)
    for i in range(values.shape[0]):
        for s in range(starts.size):
            some = values[i, starts[s] : stops[s]]
            gone = left_out[i, starts[s] : stops[s]]
            if _any(gone):
                kept = 0
                for v in range(some.size):
                    if not gone[v]:
                        room[kept] = some[v]
                        kept += 1
                some = room[:kept]
            _of_segment(some, 2, ends, found)
            out[i, s, 0], out[i, s, 1], out[i, s, 2] = found[0], found[1], found[2]
            if found[0] == 0:
                out[i, s, 2] = 0.0


@kernel(
    "void(float32[:, ::1], float32[:, ::1], boolean[:, ::1], int64[::1], int64[::1],"
    "float64[:, ::1])"
)
def tissue_means(
    values: npt.NDArray[np.float32],
    probability: npt.NDArray[np.float32],
    left_out: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Mean of every segment of every row, weighted by ``(probability + 0.01)^4``.

    `out` is (row, segment), NaN where a segment has no value.
    `left_out` marks voxels that do not count, as those without a value or a probability do not.
    """
    for i in range(values.shape[0]):
        for s in range(starts.size):
            total = weight = 0.0
            for v in range(starts[s], stops[s]):
                own = np.float64(probability[i, v]) + 0.01
                own *= own
                own *= own
                share = own * values[i, v]
                if not left_out[i, v] and share == share:
                    weight += own
                    total += share
            out[i, s] = total / weight if weight > 0 else np.nan


@inner_kernel
def _any(flags):  # type: ignore[no-untyped-def]
    """Whether any is set; counting them all vectorizes."""
    count = 0
    for v in range(flags.size):
        count += flags[v]
    return count > 0


@kernel("void(boolean[:, ::1], int64[::1], int64[::1], int64[:, ::1])")
def segment_counts(
    mask: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    out: npt.NDArray[np.int64],
) -> None:
    """Count the True voxels of every segment of every row; `out` is (row, segment)."""
    for i in range(mask.shape[0]):
        for s in range(starts.size):
            some = mask[i, starts[s] : stops[s]]
            count = 0
            for v in range(some.size):
                count += some[v]
            out[i, s] = count


@kernel("void(float32[:, ::1], boolean[:, ::1], int64[::1], int64[::1], float64[:, ::1])")
def gather_means(
    values: npt.NDArray[np.float32],
    left_out: npt.NDArray[np.bool_],
    voxels: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Mean over lists of voxels, ``voxels[offsets[s]:offsets[s + 1]]``; NaN when empty."""
    for i in range(values.shape[0]):
        for s in range(offsets.size - 1):
            count = 0
            total = 0.0
            for k in range(offsets[s], offsets[s + 1]):
                v = voxels[k]
                if not left_out[i, v] and values[i, v] == values[i, v]:
                    count += 1
                    total += values[i, v]
            out[i, s] = total / count if count > 0 else np.nan
