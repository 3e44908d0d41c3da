"""Kernels of the lesion policies."""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import kernel

__all__ = ["fill_from_mirror"]


@kernel("void(float32[:, ::1], boolean[:, ::1], int32[::1], int32[::1], float64, boolean[:, ::1])")
def fill_from_mirror(
    values: npt.NDArray[np.float32],
    lesion: npt.NDArray[np.bool_],
    nearer: npt.NDArray[np.int32],
    farther: npt.NDArray[np.int32],
    weight: float,
    left_out: npt.NDArray[np.bool_],
) -> None:
    """Replace lesioned voxels by their mirrored ones, in place.

    The value is that at `nearer`, and with `weight` that at `farther`; -1 where the store has
    no such voxel. Where one of them is lesioned too, or without a value, `left_out` is set.
    """
    for i in range(values.shape[0]):
        for v in range(values.shape[1]):
            left_out[i, v] = False
            if not lesion[i, v]:
                continue
            a, b = nearer[v], farther[v]
            if a < 0 or lesion[i, a] or (weight > 0 and (b < 0 or lesion[i, b])):
                left_out[i, v] = True
                continue
            value = np.float64(values[i, a])
            if weight > 0:
                value = (1 - weight) * value + weight * np.float64(values[i, b])
            values[i, v] = value
            left_out[i, v] = value != value
