"""Kernel of the random-intercept model for many groups: a one-dimensional search, directly.

Its work grows with groups times columns squared, where that of mixed_spectral_numba_fns needs
a decomposition over the groups first.

With ``V = e (I + g Z Z')`` and one intercept a group, everything depends on the data only
through within-group cross products and group sums. For a group of ``n`` rows with column
sums ``q`` and outcome sum ``t``::

    X' V^-1 X e = W  + sum q q' / (n (1 + n g))          W  within-group cross products
    X' V^-1 y e = wy + sum q t  / (n (1 + n g))
    y' V^-1 y e = yy + sum t t  / (n (1 + n g))

which subtracts nothing and so stays exact for any ``g``. The columns of X come in
orthonormal, and the outcome as residuals of ordinary least squares of length one.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel

__all__ = ["many_group_fits"]

FloatArray = npt.NDArray[np.float64]


@inner_kernel
def _inverse(a: FloatArray, out: FloatArray) -> float:
    """Inverse of a symmetric positive definite matrix; returns log|a|, NaN if it is not."""
    p = a.shape[0]
    low = np.zeros((p, p))
    logdet = 0.0
    for i in range(p):
        for j in range(i + 1):
            total = a[i, j]
            for k in range(j):
                total -= low[i, k] * low[j, k]
            if i == j:
                if not total > 0.0:
                    return np.nan
                low[i, i] = np.sqrt(total)
                logdet += np.log(total)
            else:
                low[i, j] = total / low[j, j]
    for i in range(p):  # low becomes its own inverse
        low[i, i] = 1.0 / low[i, i]
        for j in range(i):
            total = 0.0
            for k in range(j, i):
                total -= low[i, k] * low[k, j]
            low[i, j] = total * low[i, i]
    for i in range(p):
        for j in range(i + 1):
            total = 0.0
            for k in range(i, p):
                total += low[k, i] * low[k, j]
            out[i, j] = total
            out[j, i] = total
    return logdet


@inner_kernel
def _profile(
    g: float,
    size: FloatArray,
    qsum: FloatArray,
    within: FloatArray,
    tsum: FloatArray,
    wy: FloatArray,
    yy: float,
    dof: float,
    reml: float,
    a: FloatArray,
    ainv: FloatArray,
    beta: FloatArray,
) -> tuple[float, float, float]:
    """Deviance less its constant, its derivative in `g` and the residual sum."""
    n_groups, p = qsum.shape
    logdet_v = 0.0
    slope = 0.0
    rss = yy
    for i in range(p):
        beta[i] = wy[i]
        for j in range(p):
            a[i, j] = within[i, j]
    for m in range(n_groups):
        n = size[m]
        grown = 1.0 + n * g
        weight = 1.0 / (n * grown)
        logdet_v += np.log(grown)
        slope += n / grown
        rss += weight * tsum[m] * tsum[m]
        for i in range(p):
            beta[i] += weight * qsum[m, i] * tsum[m]
            for j in range(i + 1):
                a[i, j] += weight * qsum[m, i] * qsum[m, j]
    for i in range(p):
        for j in range(i):
            a[j, i] = a[i, j]
    logdet_a = _inverse(a, ainv)
    right = beta.copy()
    for i in range(p):
        total = 0.0
        for j in range(p):
            total += ainv[i, j] * right[j]
        beta[i] = total
    for i in range(p):
        rss -= beta[i] * right[i]
    change = 0.0
    for m in range(n_groups):
        grown = 1.0 + size[m] * g
        square = 0.0
        residual = tsum[m]
        for i in range(p):
            residual -= qsum[m, i] * beta[i]
            row = 0.0
            for j in range(p):
                row += ainv[i, j] * qsum[m, j]
            square += qsum[m, i] * row
        slope -= reml * square / (grown * grown)
        change -= (residual / grown) ** 2
    slope += dof * change / rss
    return logdet_v + reml * logdet_a + dof * np.log(rss), slope, rss


@inner_kernel
def _multiply(a: FloatArray, b: FloatArray, out: FloatArray) -> None:
    """Add the product of two small matrices."""
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(b.shape[0]):
                out[i, j] += a[i, k] * b[k, j]


@inner_kernel
def _degrees_of_freedom(
    g: float,
    rss: float,
    dof: float,
    reml: float,
    size: FloatArray,
    qsum: FloatArray,
    tsum: FloatArray,
    ainv: FloatArray,
    beta: FloatArray,
    back: FloatArray,
    df: FloatArray,
) -> None:
    """Satterthwaite: 2 v^2 over the variance of v, by the observed information."""
    n_groups, p = qsum.shape
    e = rss / dof
    spread = np.zeros((p, p))  # B'B with B the group sums over 1 + n g
    curved = np.zeros((p, p))
    pull = np.zeros(p)
    d_rss = 0.0
    dd_rss = 0.0
    dd_logdet = 0.0
    for m in range(n_groups):
        n = size[m]
        grown = 1.0 + n * g
        u = tsum[m]
        for i in range(p):
            u -= qsum[m, i] * beta[i]
        u /= grown
        d_rss -= u * u
        dd_rss += 2.0 * u * u * n / grown
        dd_logdet -= (n / grown) ** 2
        for i in range(p):
            pull[i] += qsum[m, i] / grown * u
            for j in range(p):
                product = qsum[m, i] * qsum[m, j] / (grown * grown)
                spread[i, j] += product
                curved[i, j] += 2.0 * product * n / grown
    step = np.zeros((p, p))
    moved = np.zeros((p, p))  # minus the derivative of X' V^-1 X, between two inverses
    _multiply(ainv, spread, step)
    _multiply(step, ainv, moved)
    for i in range(p):
        for j in range(p):
            dd_rss -= 2.0 * pull[i] * ainv[i, j] * pull[j]
            dd_logdet += reml * (ainv[i, j] * curved[j, i] - step[i, j] * step[j, i])
    h_gg = dd_logdet + dd_rss / e
    h_ge = -d_rss / (e * e)
    h_ee = dof / (e * e)
    determinant = h_gg * h_ee - h_ge * h_ge
    for k in range(p):
        variance = 0.0
        by_g = 0.0
        for i in range(p):
            for j in range(p):
                variance += back[k, i] * ainv[i, j] * back[k, j]
                by_g += e * back[k, i] * moved[i, j] * back[k, j]
        by_e = variance
        if h_gg > 0.0 and determinant > 0.0:
            spread_of = (
                2.0 * (by_g * by_g * h_ee - 2.0 * by_g * by_e * h_ge + by_e * by_e * h_gg)
            ) / determinant
            df[k] = 2.0 * (e * variance) ** 2 / spread_of
        else:
            df[k] = np.nan


@kernel(
    "void(float64[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], "
    "float64[::1], float64, float64, float64[:,::1], float64[:,::1], float64[:,::1], "
    "float64[:,::1], float64[::1], float64[::1], float64[::1])"
)
def many_group_fits(
    size: FloatArray,
    qsum: FloatArray,
    within: FloatArray,
    tsum: FloatArray,
    wy: FloatArray,
    yy: FloatArray,
    dof: float,
    reml: float,
    back: FloatArray,
    shift: FloatArray,
    variance: FloatArray,
    df: FloatArray,
    ratio: FloatArray,
    rss_out: FloatArray,
    deviance: FloatArray,
) -> None:
    """Fit one outcome per row of `tsum` on a shared design; fill the last six arguments.

    Parameters
    ----------
    size
        Rows of each group, or the sum of their weights (n_groups).
    qsum
        Sums of the orthonormal design in each group (n_groups, p).
    within
        Cross products of the design about the group means (p, p).
    tsum
        Sums of each outcome in each group (n_outcomes, n_groups).
    wy
        Cross products of design and outcome about the group means (n_outcomes, p).
    yy
        Sums of squares of the outcomes about the group means (n_outcomes).
    dof
        Rows less columns for REML, rows for ML.
    reml
        1 for REML, 0 for ML.
    back
        Matrix from orthonormal to original coefficients (p, p).
    shift
        Out: coefficients less those of ordinary least squares, original columns.
    variance
        Out: variances of the coefficients over the residual variance.
    df
        Out: Satterthwaite degrees of freedom.
    ratio
        Out: variance of the intercepts over the residual variance; 0 on the boundary,
        infinite where the residual variance tends to zero, NaN where no search succeeded.
    rss_out
        Out: generalized residual sum of squares.
    deviance
        Out: log-determinants and ``dof log(rss)``.
    """
    n_outcomes, n_groups = tsum.shape
    p = qsum.shape[1]
    a = np.empty((p, p))
    ainv = np.empty((p, p))
    beta = np.empty(p)
    mean_size = 0.0
    for m in range(n_groups):
        mean_size += size[m] / n_groups
    n_grid = 41
    grid = np.empty(n_grid)
    slopes = np.empty(n_grid)
    grid[0] = 0.0
    for k in range(1, n_grid):  # 1e-5 to 1e7 times one over the mean size of a group
        grid[k] = 10.0 ** (-5.0 + 12.0 * (k - 1) / (n_grid - 2)) / mean_size
    for r in range(n_outcomes):
        best = 0
        lowest = np.inf
        for k in range(n_grid):
            dev, slopes[k], _ = _profile(
                grid[k], size, qsum, within, tsum[r], wy[r], yy[r], dof, reml, a, ainv, beta
            )
            if dev < lowest:
                lowest = dev
                best = k
        g = 0.0
        if lowest == np.inf:
            g = np.nan
        elif best == n_grid - 1:
            g = np.inf
        elif best > 0 or slopes[0] < 0.0:
            first = best if slopes[best] < 0.0 else best - 1
            low, s_low = grid[first], slopes[first]
            high, s_high = grid[first + 1], slopes[first + 1]
            side = 0
            for _ in range(200):  # Illinois: regula falsi that cannot stall, on the slope
                if s_high - s_low != 0.0:
                    g = high - s_high * (high - low) / (s_high - s_low)
                if not (low < g < high):
                    g = 0.5 * (low + high)
                if high - low <= 1e-13 * high:
                    break
                _, slope, _ = _profile(
                    g, size, qsum, within, tsum[r], wy[r], yy[r], dof, reml, a, ainv, beta
                )
                if slope == 0.0:
                    break
                step = 0.0
                if slope < 0.0:
                    step = g - low
                    low = g
                    s_low = slope
                    if side == -1:
                        s_high *= 0.5
                    side = -1
                else:
                    step = high - g
                    high = g
                    s_high = slope
                    if side == 1:
                        s_low *= 0.5
                    side = 1
                if step <= 1e-14 * g:
                    break
        ratio[r] = g
        if not np.isfinite(g):
            rss_out[r] = np.nan
            deviance[r] = np.nan
            for k in range(p):
                shift[r, k] = np.nan
                variance[r, k] = np.nan
                df[r, k] = np.nan
            continue
        deviance[r], slope, rss = _profile(
            g, size, qsum, within, tsum[r], wy[r], yy[r], dof, reml, a, ainv, beta
        )
        rss_out[r] = rss
        for k in range(p):
            total = 0.0
            quad = 0.0
            for i in range(p):
                total += back[k, i] * beta[i]
                for j in range(p):
                    quad += back[k, i] * ainv[i, j] * back[k, j]
            shift[r, k] = total
            variance[r, k] = quad
            df[r, k] = dof
        if g > 0.0:
            _degrees_of_freedom(g, rss, dof, reml, size, qsum, tsum[r], ainv, beta, back, df[r])
