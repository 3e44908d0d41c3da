"""Kernels of the random-intercept model in the directions that the groups span.

With ``V = e (I + g Z Z')``, Q orthonormal columns of the design, ``M = I - Q Q'`` and the
singular values and vectors ``M Z = Y diag(sqrt(l)) U'``, a fit depends on g through sums over
the groups alone. With ``w = Y'y``, ``r = |M y|^2 - |w|^2`` and ``b = U'Z'Q back'``::

    y' V^-1 (..) y e   = r + sum w^2 / (1 + g l)                   residual sum of squares
    log|V| + log|X'V^-1 X| = sum log(1 + g l) + constant           (less a constant in e)
    coefficient        = least squares - sum w sqrt(l) g / (1 + g l) b
    its variance / e   = |back|^2 + sum g / (1 + g l) b^2

so that the number of columns does not matter in the search for g.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, inner_reduction, kernel

__all__ = ["grid_tables", "intercept_fits", "replicate_fits"]

FloatArray = npt.NDArray[np.float64]


@inner_reduction
def _slopes(
    g: float, eigen: FloatArray, det: FloatArray, w2: FloatArray, rest: float, dof: float
) -> tuple[float, float, float]:
    """First and second derivative of the deviance in `g`, and the residual sum of squares."""
    rss = rest
    first = 0.0
    second = 0.0
    log_first = 0.0
    log_second = 0.0
    for j in range(eigen.size):
        d = 1.0 / (1.0 + g * eigen[j])
        part = w2[j] * d
        rss += part
        part *= eigen[j] * d
        first += part
        second += part * eigen[j] * d
        u = det[j] / (1.0 + g * det[j])
        log_first += u
        log_second += u * u
    ratio = first / rss
    return (
        log_first - dof * ratio,
        -log_second + dof * (2.0 * second / rss - ratio * ratio),
        rss,
    )


@inner_reduction
def _lowest(
    w2: FloatArray,
    rest: float,
    dof: float,
    damp: FloatArray,
    logs: FloatArray,
    sums: FloatArray,
) -> int:
    """Grid point of the lowest deviance."""
    for k in range(sums.size):
        sums[k] = rest
    for j in range(w2.size):
        for k in range(sums.size):
            sums[k] += w2[j] * damp[j, k]
    best = 0
    lowest = np.inf
    for k in range(sums.size):
        value = logs[k] + dof * np.log(sums[k])
        if value < lowest:
            lowest = value
            best = k
    return best


@inner_kernel
def _ratio(
    eigen: FloatArray,
    det: FloatArray,
    w2: FloatArray,
    rest: float,
    dof: float,
    grid: FloatArray,
    damp: FloatArray,
    logs: FloatArray,
    sums: FloatArray,
) -> float:
    """Ratio of the variances where the deviance is lowest: a grid, then Newton in a bracket."""
    n_grid = grid.size
    best = _lowest(w2, rest, dof, damp, logs, sums)
    if best == n_grid - 1:
        return np.inf
    if best == 0:
        slope, _, _ = _slopes(0.0, eigen, det, w2, rest, dof)
        if not slope < 0.0:
            return 0.0 if slope >= 0.0 else np.nan
    low = grid[best - 1] if best > 0 else 0.0
    high = grid[best + 1]
    g: float = grid[best] if best > 0 else 0.5 * high
    for _ in range(100):
        slope, curve, _ = _slopes(g, eigen, det, w2, rest, dof)
        if slope < 0.0:
            low = g
        elif slope > 0.0:
            high = g
        else:
            break
        step = slope / curve if curve > 0.0 else np.inf
        if abs(step) <= 1e-8 * g:  # the next error is of the square of this
            g -= step
            break
        moved = g - step
        g = moved if low < moved < high else 0.5 * (low + high)
        if high - low <= 1e-15 * high:
            break
    return g


@inner_kernel
def grid_tables(
    eigen: FloatArray, det: FloatArray, grid: FloatArray, damp: FloatArray, logs: FloatArray
) -> None:
    """Fill what all outcomes of a design share on the grid."""
    for k in range(grid.size):
        logs[k] = 0.0
        for j in range(eigen.size):
            damp[j, k] = 1.0 / (1.0 + grid[k] * eigen[j])
            logs[k] += np.log(1.0 + grid[k] * det[j])


@kernel(
    "void(float64[::1], float64[::1], float64[:,::1], float64[::1], float64[:,::1], float64[::1], "
    "float64, float64[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[::1], "
    "float64[::1], float64[::1])"
)
def intercept_fits(
    eigen: FloatArray,
    det: FloatArray,
    turn: FloatArray,
    plain: FloatArray,
    w: FloatArray,
    rest: FloatArray,
    dof: float,
    grid: FloatArray,
    shift: FloatArray,
    variance: FloatArray,
    df: FloatArray,
    ratio: FloatArray,
    rss_out: FloatArray,
    deviance: FloatArray,
) -> None:
    """Fit one outcome per row of `w` on a shared design; fill the last six arguments.

    Parameters
    ----------
    eigen
        ``l`` (n_groups), zeros included.
    det
        What stands in log|V|: `eigen` for REML, the sizes of the groups for ML (n_groups).
    turn
        ``b`` (n_groups, p).
    plain
        ``|back|^2`` of every coefficient (p).
    w
        Outcomes, of length one, along the directions of the groups (n_outcomes, n_groups).
    rest
        What is left of the square of each outcome (n_outcomes).
    dof
        Rows less columns for REML, rows for ML.
    grid
        Ratios to look at first, from zero on.
    shift
        Out: coefficients less those of ordinary least squares.
    variance
        Out: variances of the coefficients over the residual variance.
    df
        Out: Satterthwaite degrees of freedom.
    ratio
        Out: variance of the intercepts over the residual variance; 0 on the boundary,
        infinite where the residual variance tends to zero, NaN where no search succeeded.
    rss_out
        Out: residual sum of squares.
    deviance
        Out: log-determinant and ``dof log(rss)``.
    """
    n_outcomes, n_groups = w.shape
    p = plain.size
    damp = np.empty((n_groups, grid.size))
    logs = np.empty(grid.size)
    sums = np.empty(grid.size)
    w2 = np.empty(n_groups)
    grid_tables(eigen, det, grid, damp, logs)
    for r in range(n_outcomes):
        for j in range(n_groups):
            w2[j] = w[r, j] * w[r, j]
        g = _ratio(eigen, det, w2, rest[r], dof, grid, damp, logs, sums)
        ratio[r] = g
        if not np.isfinite(g):
            rss_out[r] = np.nan
            deviance[r] = np.nan
            for k in range(p):
                shift[r, k] = np.nan
                variance[r, k] = np.nan
                df[r, k] = np.nan
            continue
        rss = rest[r]
        d_rss = 0.0
        dd_rss = 0.0
        h_gg = 0.0
        log_det = 0.0
        for k in range(p):
            shift[r, k] = 0.0
            variance[r, k] = plain[k]
            df[r, k] = 0.0
        for j in range(n_groups):
            d = 1.0 / (1.0 + g * eigen[j])
            rss += w2[j] * d
            d_rss -= w2[j] * eigen[j] * d * d
            dd_rss += 2.0 * w2[j] * eigen[j] * eigen[j] * d * d * d
            u = det[j] / (1.0 + g * det[j])
            h_gg -= u * u
            log_det += np.log(1.0 + g * det[j])
            pull = w[r, j] * np.sqrt(eigen[j]) * g * d
            for k in range(p):
                shift[r, k] -= pull * turn[j, k]
                square = turn[j, k] * turn[j, k]
                variance[r, k] += g * d * square
                df[r, k] += d * d * square  # derivative of the variance
        rss_out[r] = rss
        deviance[r] = log_det + dof * np.log(rss)
        e = rss / dof
        h_gg += dd_rss / e
        h_ge = -d_rss / (e * e)
        h_ee = dof / (e * e)
        determinant = h_gg * h_ee - h_ge * h_ge
        for k in range(p):
            if g == 0.0:
                df[r, k] = dof
            elif h_gg > 0.0 and determinant > 0.0:
                by_g = e * df[r, k]
                by_e = variance[r, k]
                spread = (
                    2.0 * (by_g * by_g * h_ee - 2.0 * by_g * by_e * h_ge + by_e * by_e * h_gg)
                ) / determinant
                df[r, k] = 2.0 * (e * by_e) ** 2 / spread
            else:
                df[r, k] = np.nan


@kernel(
    "void(float64[::1], float64[::1], float64[:,::1], float64[:,::1], float64[::1], float64, "
    "float64[::1], float64[:,::1], float64[::1])"
)
def replicate_fits(
    eigen: FloatArray,
    det: FloatArray,
    turn: FloatArray,
    s: FloatArray,
    square: FloatArray,
    dof: float,
    grid: FloatArray,
    shift: FloatArray,
    ratio: FloatArray,
) -> None:
    """Coefficients of a bootstrap replicate; fill the last two arguments.

    `s` is ``U'Z'M y`` (n_outcomes, n_groups) and `square` ``|M y|^2``; the rest is as in
    :func:`intercept_fits`. A replicate without variation within groups has no coefficients.
    """
    n_outcomes, n_groups = s.shape
    p = turn.shape[1]
    damp = np.empty((n_groups, grid.size))
    logs = np.empty(grid.size)
    sums = np.empty(grid.size)
    w2 = np.empty(n_groups)
    grid_tables(eigen, det, grid, damp, logs)
    for r in range(n_outcomes):
        rest = square[r]
        for j in range(n_groups):
            w2[j] = s[r, j] * s[r, j] / eigen[j] if eigen[j] > 0.0 else 0.0
            rest -= w2[j]
        if not rest > 1e-12 * square[r]:
            ratio[r] = np.nan
            for k in range(p):
                shift[r, k] = np.nan
            continue
        g = _ratio(eigen, det, w2, rest, dof, grid, damp, logs, sums)
        ratio[r] = g
        for k in range(p):
            shift[r, k] = 0.0
        for j in range(n_groups):
            pull = s[r, j] * g / (1.0 + g * eigen[j])
            for k in range(p):
                shift[r, k] -= pull * turn[j, k]
