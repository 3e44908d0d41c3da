"""Kernel of the permutations of the random-intercept model: every one is a full fit.

In the directions that the groups span beside all columns but the tested one (see
mixed_spectral_numba_fns), with x the tested column and y the permuted residuals along them, the
residual sum is ``a - b^2 / c`` with ``a = y'V^-1 y``, ``b = x'V^-1 y`` and ``c = x'V^-1 x``, and
REML adds ``log c`` to the deviance.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_reduction, kernel
from scalebrain.stats.mixed_spectral_numba_fns import grid_tables

__all__ = ["permuted_statistics"]

FloatArray = npt.NDArray[np.float64]


@inner_reduction
def _tested_slopes(
    g: float,
    eigen: FloatArray,
    det: FloatArray,
    x: FloatArray,
    w: FloatArray,
    x_rest: float,
    xw_rest: float,
    w_rest: float,
    dof: float,
    reml: float,
) -> tuple[float, float, float, float, float]:
    """Differentiate the deviance in `g`; residual sum, x'V^-1 y and x'V^-1 x beside."""
    a = w_rest
    b = xw_rest
    c = x_rest
    a1 = 0.0
    b1 = 0.0
    c1 = 0.0
    a2 = 0.0
    b2 = 0.0
    c2 = 0.0
    log_first = 0.0
    log_second = 0.0
    for j in range(eigen.size):
        d = 1.0 / (1.0 + g * eigen[j])
        fall = eigen[j] * d
        wd = w[j] * d
        xd = x[j] * d
        aj = w[j] * wd
        bj = x[j] * wd
        cj = x[j] * xd
        a += aj
        b += bj
        c += cj
        aj *= fall
        bj *= fall
        cj *= fall
        a1 += aj
        b1 += bj
        c1 += cj
        a2 += aj * fall
        b2 += bj * fall
        c2 += cj * fall
        u = det[j] / (1.0 + g * det[j])
        log_first += u
        log_second += u * u
    beta = b / c
    rss = a - b * beta
    # first and second derivatives of a, b and c are -a1, 2 a2 and so on
    rss_first = -a1 + 2.0 * beta * b1 - beta * beta * c1
    move = (-b1 + beta * c1) / c  # derivative of beta
    rss_second = 2.0 * a2 - 4.0 * beta * b2 + 2.0 * beta * beta * c2 - 2.0 * c * move * move
    part = rss_first / rss
    first = log_first + dof * part
    second = -log_second + dof * (rss_second / rss - part * part)
    if reml > 0.0:
        inner = -c1 / c
        first += inner
        second += 2.0 * c2 / c - inner * inner
    return first, second, rss, b, c


@inner_reduction
def _tested_lowest(
    x: FloatArray,
    w: FloatArray,
    xw_rest: float,
    w_rest: float,
    power: FloatArray,
    c: FloatArray,
    damp: FloatArray,
    a: FloatArray,
    b: FloatArray,
) -> int:
    """Grid point of the lowest deviance; `power` is exp(log-determinant / dof)."""
    for k in range(a.size):
        a[k] = w_rest
        b[k] = xw_rest
    for j in range(w.size):
        square = w[j] * w[j]
        product = w[j] * x[j]
        for k in range(a.size):
            a[k] += square * damp[j, k]
            b[k] += product * damp[j, k]
    best = 0
    lowest = np.inf
    for k in range(a.size):
        value = power[k] * (a[k] - b[k] * b[k] / c[k])
        if value < lowest:
            lowest = value
            best = k
    return best


@kernel(
    "void(float64[::1], float64[::1], float64[::1], float64, float64[:,::1], float64[:,::1], "
    "float64[::1], float64[:,::1], float64, float64, float64, float64[::1], float64[:,::1])"
)
def permuted_statistics(
    eigen: FloatArray,
    det: FloatArray,
    x: FloatArray,
    x_rest: float,
    lean: FloatArray,
    base: FloatArray,
    square: FloatArray,
    moved: FloatArray,
    n_columns: float,
    dof: float,
    reml: float,
    grid: FloatArray,
    out: FloatArray,
) -> None:
    """|t| of the tested column in every permutation, each a full fit; fill `out`.

    All is in the directions of the groups without the tested column: `eigen` and `det` as in
    ``intercept_fits``.

    Parameters
    ----------
    eigen
        ``l`` of the design without the tested column (n_groups).
    det
        What stands in log|V| (n_groups).
    x
        Tested column, without the others, along the directions (n_groups).
    x_rest
        What is left of its square.
    lean
        ``diag(1 / sqrt(l)) U'Z'Q`` (n_groups, columns - 1): what a projection on the other
        columns takes off. Zero where l is.
    base
        ``diag(1 / sqrt(l)) U'Z'e`` of the residuals (n_outcomes, n_groups). A permutation
        within groups leaves ``Z'e`` as it is.
    square
        ``|e|^2`` (n_outcomes).
    moved
        Permuted residuals on the other columns, then on the tested one, permutation after
        permutation (n_outcomes, n_permutations * columns).
    n_columns
        Columns of the design.
    dof
        Rows less columns for REML, rows for ML.
    reml
        1 for REML, 0 for ML.
    grid
        Ratios to look at first, from zero on.
    out
        Out: |t| (n_outcomes, n_permutations).
    """
    n_outcomes, n_groups = base.shape
    n_permutations = out.shape[1]
    p = int(n_columns)
    n_grid = grid.size
    damp = np.empty((n_groups, n_grid))
    logs = np.empty(n_grid)
    power = np.empty(n_grid)
    c = np.empty(n_grid)
    a_grid = np.empty(n_grid)
    b_grid = np.empty(n_grid)
    w = np.empty(n_groups)
    grid_tables(eigen, det, grid, damp, logs)
    for k in range(n_grid):
        c[k] = x_rest
        for j in range(n_groups):
            c[k] += x[j] * x[j] * damp[j, k]
        if reml > 0.0:
            logs[k] += np.log(c[k])
    middle = logs.mean()
    for k in range(n_grid):
        power[k] = np.exp((logs[k] - middle) / dof)
    for r in range(n_outcomes):
        for m in range(n_permutations):
            at = m * p
            total = square[r]
            for k in range(p - 1):
                total -= moved[r, at + k] * moved[r, at + k]
            xw_rest = moved[r, at + p - 1]
            for j in range(n_groups):
                value = base[r, j]
                for k in range(p - 1):
                    value -= lean[j, k] * moved[r, at + k]
                w[j] = value
                total -= value * value
                xw_rest -= x[j] * value
            best = _tested_lowest(x, w, xw_rest, total, power, c, damp, a_grid, b_grid)
            g = grid[best]
            low = grid[best - 1] if best > 0 else 0.0
            high = grid[best + 1] if best < n_grid - 1 else grid[best]
            inside = True
            if best == 0:
                slope, _, _, _, _ = _tested_slopes(
                    0.0, eigen, det, x, w, x_rest, xw_rest, total, dof, reml
                )
                inside = slope < 0.0
                g = 0.5 * high if inside else 0.0
            rss = 0.0
            b = 0.0
            cc = 1.0
            for _ in range(60):
                slope, curve, rss, b, cc = _tested_slopes(
                    g, eigen, det, x, w, x_rest, xw_rest, total, dof, reml
                )
                if not inside or slope == 0.0:
                    break
                if slope < 0.0:
                    low = g
                else:
                    high = g
                step = slope / curve if curve > 0.0 else np.inf
                if abs(step) <= 1e-10 * g or high - low <= 1e-14 * high:
                    break
                moved_to = g - step
                g = moved_to if low < moved_to < high else 0.5 * (low + high)
            # nothing but rounding is left over: on the safe side
            out[r, m] = abs(b) / np.sqrt(cc * rss / dof) if rss > 0.0 and cc > 0.0 else np.inf
