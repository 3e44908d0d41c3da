"""Kernels of the simulator: smooth fields, warped tissue, growth of lesions.

Volumes are indexed (k, j, i): the first voxel axis is contiguous, as in a NIfTI file.
"""

import heapq
import math

import numpy as np

from scalebrain.accelerate import inner_kernel, kernel

__all__ = ["grow", "render", "spline_field"]


@inner_kernel
def _basis(position, weight):  # type: ignore[no-untyped-def]
    """Fill the four cubic B-spline weights and return the first knot."""
    first = int(math.floor(position))
    t = position - first
    u = 1.0 - t
    weight[0] = u * u * u / 6.0
    weight[1] = (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0
    weight[2] = (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0
    weight[3] = t * t * t / 6.0
    return first


@inner_kernel
def _line(knots, field, wk, k0, wj, j0, line):  # type: ignore[no-untyped-def]
    """Contract the knots of one field over the two slow axes."""
    for c in range(knots.shape[3]):
        total = 0.0
        for a in range(4):
            for b in range(4):
                total += wk[a] * wj[b] * knots[field, k0 + a, j0 + b, c]
        line[c] = total


@kernel("void(int16[:,::1], float64[:,:,:,::1], float64, float32[:,::1])")
def spline_field(kji, knots, spacing, out):  # type: ignore[no-untyped-def]
    """Cubic B-spline fields at voxels; `out` is (field, voxel), `spacing` in voxels."""
    n_fields = knots.shape[0]
    line = np.empty((n_fields, knots.shape[3]))
    wk = np.empty(4)
    wj = np.empty(4)
    wi = np.empty(4)
    last_k = -1
    last_j = -1
    for v in range(kji.shape[0]):
        if kji[v, 0] != last_k or kji[v, 1] != last_j:
            last_k = kji[v, 0]
            last_j = kji[v, 1]
            k0 = _basis(last_k / spacing, wk)
            j0 = _basis(last_j / spacing, wj)
            for f in range(n_fields):
                _line(knots, f, wk, k0, wj, j0, line[f])
        i0 = _basis(kji[v, 2] / spacing, wi)
        for f in range(n_fields):
            total = 0.0
            for a in range(4):
                total += wi[a] * line[f, i0 + a]
            out[f, v] = total


@kernel(
    "void(int16[:,::1], float32[:,:,::1], float32[:,:,::1], float32[:,:,::1], float32[:,::1],"
    "int16[:,::1], float32[:,::1], float64[::1], float64[::1], float64[::1],"
    "float32[::1], float32[::1])"
)
def render(  # type: ignore[no-untyped-def]
    kji, grey, white, detail, displacement, blend, weight, shift, log_contrast, tissue, t1w, gm
):
    """Warp the template, thin its grey matter and mix the intensities.

    `displacement` is (axis, voxel) in voxels, axes k, j, i; `blend` and `weight` are the
    parcels of a voxel and their weights (voxel, 4); `shift` and `log_contrast` hold one
    number a parcel; `tissue` is (sharpness, thinning to white, contrast, CSF intensity,
    texture).
    """
    nk, nj, ni = grey.shape
    sharpness = tissue[0]
    to_white = tissue[1]
    floor = 0.01
    for v in range(kji.shape[0]):
        pk = min(max(kji[v, 0] + displacement[0, v], 0.0), nk - 1.001)
        pj = min(max(kji[v, 1] + displacement[1, v], 0.0), nj - 1.001)
        pi = min(max(kji[v, 2] + displacement[2, v], 0.0), ni - 1.001)
        k = int(pk)
        j = int(pj)
        i = int(pi)
        fk = pk - k
        fj = pj - j
        fi = pi - i
        g = 0.0
        w = 0.0
        extra = 0.0
        for a in range(2):
            wa = fk if a else 1.0 - fk
            for b in range(2):
                wb = wa * (fj if b else 1.0 - fj)
                w0 = wb * (1.0 - fi)
                w1 = wb * fi
                g += w0 * grey[k + a, j + b, i] + w1 * grey[k + a, j + b, i + 1]
                w += w0 * white[k + a, j + b, i] + w1 * white[k + a, j + b, i + 1]
                extra += w0 * detail[k + a, j + b, i] + w1 * detail[k + a, j + b, i + 1]
        s = 0.0
        contrast = 0.0
        for q in range(4):
            s += weight[v, q] * shift[blend[v, q]]
            contrast += weight[v, q] * log_contrast[blend[v, q]]
        c = max(1.0 - g - w, 0.0)
        eg = math.exp(sharpness * math.log(g + floor) + to_white * s)
        ew = math.exp(sharpness * math.log(w + floor))
        ec = math.exp(sharpness * math.log(c + floor) - (1.0 - to_white) * s)
        total = eg + ew + ec
        g = eg / total
        gm[v] = g
        t1w[v] = (
            g * (1.0 - tissue[2] * math.exp(contrast))
            + ew / total
            + ec / total * tissue[3]
            + tissue[4] * extra
        )


@kernel("int64(float32[:,:,::1], int64, int64[::1])")
def grow(cost, seed, out):  # type: ignore[no-untyped-def]
    """Grow a connected set from `seed`, cheapest neighbor first, until `out` is full.

    `cost` is infinite where nothing may grow. Returns the number of voxels in `out`, flat
    and in the order of growth.
    """
    nk, nj, ni = cost.shape
    seen = np.zeros(nk * nj * ni, dtype=np.bool_)
    k = seed // (nj * ni)
    j = seed // ni % nj
    i = seed % ni
    heap = [(cost[k, j, i], seed)]
    seen[seed] = True
    count = 0
    while len(heap) > 0 and count < out.shape[0]:
        _, voxel = heapq.heappop(heap)
        out[count] = voxel
        count += 1
        k = voxel // (nj * ni)
        j = voxel // ni % nj
        i = voxel % ni
        for axis in range(3):
            for step in (-1, 1):
                a = k + (step if axis == 0 else 0)
                b = j + (step if axis == 1 else 0)
                c = i + (step if axis == 2 else 0)
                if a < 0 or b < 0 or c < 0 or a >= nk or b >= nj or c >= ni:
                    continue
                flat = (a * nj + b) * ni + c
                if not seen[flat] and cost[a, b, c] < np.inf:
                    seen[flat] = True
                    heapq.heappush(heap, (cost[a, b, c], flat))
    return count
