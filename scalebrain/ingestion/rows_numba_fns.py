"""Kernels of the ingest: from the numbers of a file to the row of a store, in one pass."""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import kernel, read_only

__all__ = ["compiled_type", "gather", "gather_linear", "overlap_sums", "row_range", "value_range"]

# Types that the kernels are compiled for; an image of another type is converted to one.
_NUMBERS = ("uint8", "int16", "int32", "float32", "float64")


def compiled_type(raw: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return numbers as the smallest type that holds them and that the kernels take."""
    if raw.dtype.name in _NUMBERS:
        return raw
    for name in _NUMBERS:
        if np.can_cast(raw.dtype, name):
            return raw.astype(name)
    return raw.astype(np.float64)


@kernel(*(read_only(t, "uint32[::1], float64, float64, float32[::1]") for t in _NUMBERS))
def gather(
    raw: npt.NDArray[np.generic],
    index: npt.NDArray[np.uint32],
    slope: float,
    intercept: float,
    out: npt.NDArray[np.float32],
) -> None:
    """Scaled value of the file at every voxel of the store.

    The index is unsigned: a signed one is checked for counting from the end, at half the speed.
    """
    if slope == 1.0 and intercept == 0.0:
        for v in range(index.size):
            out[v] = raw[index[v]]
    else:
        for v in range(index.size):
            out[v] = raw[index[v]] * slope + intercept


_LINEAR = "int64[::1], int16[:, ::1], float64[:, ::1], float64, float64, float32[::1]"


@kernel(*(read_only(t, _LINEAR) for t in _NUMBERS))
def gather_linear(
    raw: npt.NDArray[np.generic],
    shape: npt.NDArray[np.int64],
    ijk: npt.NDArray[np.int16],
    to_file: npt.NDArray[np.float64],
    slope: float,
    intercept: float,
    out: npt.NDArray[np.float32],
) -> None:
    """Trilinear value of the file at every voxel of the store; NaN beyond its edge.

    `to_file` is the 3 x 4 matrix from indices of the store's grid to those of the file,
    whose first axis runs fastest. Within half a voxel of the edge the edge counts.
    """
    nx, ny, nz = shape[0], shape[1], shape[2]
    for v in range(ijk.shape[0]):
        i, j, k = ijk[v, 0], ijk[v, 1], ijk[v, 2]
        x = to_file[0, 0] * i + to_file[0, 1] * j + to_file[0, 2] * k + to_file[0, 3]
        y = to_file[1, 0] * i + to_file[1, 1] * j + to_file[1, 2] * k + to_file[1, 3]
        z = to_file[2, 0] * i + to_file[2, 1] * j + to_file[2, 2] * k + to_file[2, 3]
        if not (-0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5 and -0.5 <= z <= nz - 0.5):
            out[v] = np.nan
            continue
        x, y, z = (
            min(max(x, 0.0), nx - 1.0),
            min(max(y, 0.0), ny - 1.0),
            min(max(z, 0.0), nz - 1.0),
        )
        x0, y0, z0 = int(x), int(y), int(z)
        total = 0.0
        for c in range(8):
            dx, dy, dz = c & 1, (c >> 1) & 1, (c >> 2) & 1
            weight = (
                (x - x0 if dx else 1 - (x - x0))
                * (y - y0 if dy else 1 - (y - y0))
                * (z - z0 if dz else 1 - (z - z0))
            )
            if weight > 0:
                total += weight * raw[x0 + dx + nx * (y0 + dy + ny * (z0 + dz))]
        out[v] = total * slope + intercept


@kernel("void(float32[::1], float32[::1], float32[::1], int64, float64[::1])")
def overlap_sums(
    row: npt.NDArray[np.float32],
    template: npt.NDArray[np.float32],
    mirrored: npt.NDArray[np.float32],
    step: int,
    out: npt.NDArray[np.float64],
) -> None:
    """Sum what the correlation of a row with a template needs, as it is and mirrored.

    Of every `step`-th voxel. `out`: n finite, then sums of x, xx, t, tt, xt, m, mm, xm.
    """
    n = 0
    sx = sxx = st = stt = sxt = sm = smm = sxm = 0.0
    for v in range(0, row.size, step):
        x = float(row[v])
        if not np.isfinite(x):
            continue
        t, m = float(template[v]), float(mirrored[v])
        n += 1
        sx += x
        sxx += x * x
        st += t
        stt += t * t
        sxt += x * t
        sm += m
        smm += m * m
        sxm += x * m
    out[0] = n
    out[1], out[2], out[3], out[4], out[5] = sx, sxx, st, stt, sxt
    out[6], out[7], out[8] = sm, smm, sxm


@kernel("void(float32[::1], float64[::1])")
def row_range(row: npt.NDArray[np.float32], out: npt.NDArray[np.float64]) -> None:
    """Smallest and largest finite value of a row, and how many are finite."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    n = 0
    for v in range(row.size):
        x = row[v]
        finite = abs(x) < np.float32(np.inf)
        n += finite
        if finite and x < low:
            low = x
        if finite and x > high:
            high = x
    out[0], out[1], out[2] = low, high, n


@kernel(*(read_only(t, "float64[::1]") for t in _NUMBERS))
def value_range(raw: npt.NDArray[np.generic], out: npt.NDArray[np.float64]) -> None:
    """Smallest and largest finite number of a file, and how many are not finite."""
    low, high = np.inf, -np.inf
    bad = 0
    for v in range(raw.size):
        x = float(raw[v])
        if np.isfinite(x):
            low, high = min(low, x), max(high, x)
        else:
            bad += 1
    out[0], out[1], out[2] = low, high, bad
