"""Whether a file lies on another grid, in whatever orientation."""

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid

__all__ = ["corner_distance", "lattice"]

_SAME_MM = 1e-3


def lattice(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64], grid: Grid
) -> tuple[npt.NDArray[np.float64], float | None]:
    """Matrix from indices of a grid to those of a file, and how far the two lie apart.

    Parameters
    ----------
    shape, affine
        Of the file, in any orientation.
    grid
        Grid of the store.

    Returns
    -------
    to_file
        4 x 4 matrix; axes and offsets are whole numbers when both are the same grid.
    residual
        Largest distance between their voxels in mm; None when it is another grid.
    """
    to_file = np.linalg.inv(affine) @ grid.matrix
    whole = np.rint(to_file)
    axes = np.abs(whole[:3, :3])
    if (axes.sum(axis=0) == 1).all() and (axes.sum(axis=1) == 1).all():
        last = np.array(grid.shape) - 1
        ends = whole[:3, :3] @ np.stack([np.zeros(3), last], axis=1) + whole[:3, 3:]
        if (ends.min(axis=1) == 0).all() and (ends.max(axis=1) == np.array(shape) - 1).all():
            corners = np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1)
            corners = np.vstack([corners, np.ones(corners.shape[1])])
            residual = float(np.abs((affine @ whole - grid.matrix) @ corners)[:3].max())
            if residual <= _SAME_MM:
                return whole, residual
    # round off the noise of the inverse, so that whole offsets hit voxels exactly
    return np.round(to_file, 9), None


def corner_distance(own: Grid, other: Grid) -> float:
    """How far in mm a grid puts its corners from those of another of the same shape.

    Parameters
    ----------
    own, other
        Grids, both in RAS order.

    Returns
    -------
    float
        The largest distance of two corners; 0 where the shapes differ, and nothing can be
        compared.
    """
    if own.shape != other.shape:
        return 0.0
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in own.shape])).reshape(3, -1)
    apart = (own.matrix - other.matrix) @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(apart[:3], axis=0).max())
