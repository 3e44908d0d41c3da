"""Kernels of quantiles: order statistics of the values of regions, without sorting them.

A histogram between the smallest and the largest value says in which bin the wanted one lies;
the values of that bin are looked at again. Its limits are values, so that no bin is empty of
meaning when one voxel is far off: then a few rounds narrow it, and what does not narrow is
sorted.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel

__all__ = ["region_quantiles"]

_BINS = 512
_FEW = 48  # values that are sorted as fast as counted
_ROUNDS = 4
_LARGEST = 1e38  # differences beyond it are not held by float32


@inner_kernel
def _known(row, order, starts, stops, pieces, room):  # type: ignore[no-untyped-def]
    """Gather the values of pieces of a row that are not NaN; how many, and of how many."""
    kept = size = 0
    for s in pieces:
        size += stops[s] - starts[s]
        if order.size:
            for v in range(starts[s], stops[s]):
                value = row[order[v]]
                room[kept] = value
                kept += value == value
        else:
            for v in range(starts[s], stops[s]):
                value = row[v]
                room[kept] = value
                kept += value == value
    return kept, size


@inner_kernel
def _order_statistic(values, k, room, counts):  # type: ignore[no-untyped-def]
    """Value number `k` of values without NaN; `room` is as long, and is overwritten."""
    some = values
    for _ in range(_ROUNDS):
        if some.size <= _FEW:
            break
        low = high = some[0]
        for v in range(some.size):
            value = some[v]
            low = value if value < low else low
            high = value if value > high else high
        if low == high:
            return low
        width = np.float64(high) - np.float64(low)
        scale = np.float32((_BINS - 1) / width)
        if not (width < _LARGEST and scale < _LARGEST):
            break
        counts[:] = 0
        for v in range(some.size):
            counts[np.int32((some[v] - low) * scale)] += 1
        wanted = 0
        while counts[wanted] <= k:
            k -= counts[wanted]
            wanted += 1
        kept = 0
        for v in range(some.size):  # forwards, so a value is read before it is overwritten
            value = some[v]
            room[kept] = value
            kept += np.int32((value - low) * scale) == wanted
        some = room[:kept]
    return np.sort(some)[k]


@kernel(
    "void(float32[:, ::1], uint32[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "float64[::1], boolean, float64[:, :, ::1])"
)
def region_quantiles(
    values: npt.NDArray[np.float32],
    order: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    pieces: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    q: npt.NDArray[np.float64],
    propagate: bool,
    out: npt.NDArray[np.float64],
) -> None:
    """Quantiles of every region of every row, interpolated between order statistics.

    Region r has the segments ``pieces[offsets[r]:offsets[r + 1]]``, the voxels of a segment are
    ``order[start:stop]``, or lie so in the row where `order` is empty. `out` is
    (row, region, quantile). NaN values do not count, or, with `propagate`, make it NaN.
    """
    longest = 0
    for r in range(offsets.size - 1):
        size = 0
        for s in pieces[offsets[r] : offsets[r + 1]]:
            size += stops[s] - starts[s]
        longest = max(longest, size)
    known = np.empty(longest + 1, dtype=np.float32)
    room = np.empty(longest + 1, dtype=np.float32)
    counts = np.empty(_BINS, dtype=np.int32)
    for i in range(values.shape[0]):
        for r in range(offsets.size - 1):
            own = pieces[offsets[r] : offsets[r + 1]]
            n, size = _known(values[i], order, starts, stops, own, known)
            if n == 0 or (propagate and n < size):
                out[i, r, :] = np.nan
                continue
            some = known[:n]
            for j in range(q.size):
                position = (n - 1) * q[j]
                k = np.int64(position)
                below = _order_statistic(some, k, room[:n], counts)
                within = position - k
                above = below
                if within > 0:
                    upto = 0
                    above = np.float32(np.inf)
                    for v in range(n):
                        value = some[v]
                        upto += value <= below
                        if value > below and value < above:
                            above = value
                    if upto > k + 1:
                        above = below
                out[i, r, j] = below
                if above != below:
                    out[i, r, j] += within * (np.float64(above) - np.float64(below))
