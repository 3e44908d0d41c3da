"""Kernels of the lesion loads."""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import kernel

__all__ = ["lesioned_slices"]


@kernel("void(boolean[:, ::1], float32[::1], int32[::1], float64[:, ::1])")
def lesioned_slices(
    mask: npt.NDArray[np.bool_],
    probability: npt.NDArray[np.float32],
    slice_label: npt.NDArray[np.int32],
    out: npt.NDArray[np.float64],
) -> None:
    """Add up the probability of the lesioned voxels slice by slice; `out` is (row, slice)."""
    out[:] = 0
    for i in range(mask.shape[0]):
        for v in range(mask.shape[1]):
            if mask[i, v]:
                out[i, slice_label[v]] += probability[v]
