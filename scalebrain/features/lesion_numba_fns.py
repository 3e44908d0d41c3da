"""Kernels of lesion loads and maps. Lesions are small: what has none is skipped in long runs."""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel

__all__ = ["column_counts", "label_counts", "lesioned_slices", "lowest_values", "weighted_sums"]

_RUN = 256


@inner_kernel
def _none(flags):  # type: ignore[no-untyped-def]
    """Whether none is set; counting them all vectorizes."""
    count = 0
    for v in range(flags.size):
        count += flags[v]
    return count == 0


@kernel("void(boolean[:, ::1], uint16[::1], int64[:, ::1])")
def label_counts(
    mask: npt.NDArray[np.bool_], label: npt.NDArray[np.uint16], out: npt.NDArray[np.int64]
) -> None:
    """Count the True voxels of every label of every row; `out` is (row, label)."""
    out[:] = 0
    for i in range(mask.shape[0]):
        for start in range(0, mask.shape[1], _RUN):
            some = mask[i, start : start + _RUN]
            if _none(some):
                continue
            for v in range(some.size):
                if some[v]:
                    out[i, label[start + v]] += 1


@kernel("void(boolean[:, ::1], uint32[::1], float32[::1], int64[::1], int64[::1], float64[:, ::1])")
def weighted_sums(
    mask: npt.NDArray[np.bool_],
    order: npt.NDArray[np.uint32],
    weights: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    out: npt.NDArray[np.float64],
) -> None:
    """Add up the weights of the True voxels of lists; `out` is (row, list)."""
    for i in range(mask.shape[0]):
        for s in range(starts.size):
            total = 0.0
            for k in range(starts[s], stops[s]):
                if mask[i, order[k]]:
                    total += weights[k]
            out[i, s] = total


@kernel("void(boolean[:, ::1], float32[:, ::1], int32[::1], float64[:, :, ::1])")
def lesioned_slices(
    mask: npt.NDArray[np.bool_],
    probability: npt.NDArray[np.float32],
    slice_label: npt.NDArray[np.int32],
    out: npt.NDArray[np.float64],
) -> None:
    """Add up each probability of the True voxels, slice by slice; `out` is (row, map, slice)."""
    out[:] = 0
    for i in range(mask.shape[0]):
        for start in range(0, mask.shape[1], _RUN):
            some = mask[i, start : start + _RUN]
            if _none(some):
                continue
            for v in range(some.size):
                if some[v]:
                    for t in range(probability.shape[0]):
                        out[i, t, slice_label[start + v]] += probability[t, start + v]


@kernel("void(boolean[:, ::1], int64[::1], uint32[:, ::1])")
def column_counts(
    mask: npt.NDArray[np.bool_], group: npt.NDArray[np.int64], out: npt.NDArray[np.uint32]
) -> None:
    """Add to the counts of True rows of every voxel and group; a negative group does not count.

    `out` is (group, voxel).
    """
    for i in range(mask.shape[0]):
        if group[i] < 0:
            continue
        counts = out[group[i]]
        for start in range(0, mask.shape[1], _RUN):
            some = mask[i, start : start + _RUN]
            if _none(some):
                continue
            into = counts[start : start + some.size]
            for v in range(some.size):
                into[v] += some[v]


@kernel("void(boolean[:, ::1], float32[:, ::1], float64[:, ::1])")
def lowest_values(
    mask: npt.NDArray[np.bool_], values: npt.NDArray[np.float32], out: npt.NDArray[np.float64]
) -> None:
    """Find the lowest of each map's values in the True voxels; NaN without any.

    `values` is (map, voxel), `out` (row, map).
    """
    for i in range(mask.shape[0]):
        out[i] = np.inf
        for start in range(0, mask.shape[1], _RUN):
            some = mask[i, start : start + _RUN]
            if _none(some):
                continue
            for v in range(some.size):
                if some[v]:
                    for t in range(values.shape[0]):
                        out[i, t] = min(out[i, t], np.float64(values[t, start + v]))
        for t in range(values.shape[0]):
            if out[i, t] == np.inf:
                out[i, t] = np.nan
