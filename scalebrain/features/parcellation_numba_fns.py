"""Kernels of the parcellation: sums over contiguous segments of sorted rows."""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import kernel

__all__ = ["gather_means", "segment_counts", "segment_moments"]


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
    for i in range(values.shape[0]):
        for s in range(starts.size):
            count = 0
            total = 0.0
            for v in range(starts[s], stops[s]):
                value = values[i, v]
                if not left_out[i, v] and value == value:
                    count += 1
                    total += value
            mean = total / count if count > 0 else np.nan
            squares = 0.0
            for v in range(starts[s], stops[s]):
                value = values[i, v]
                if not left_out[i, v] and value == value:
                    deviation = value - mean
                    squares += deviation * deviation
            out[i, s, 0] = count
            out[i, s, 1] = mean
            out[i, s, 2] = squares


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
            count = 0
            for v in range(starts[s], stops[s]):
                count += mask[i, v]
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
