"""Images between NumPy, NIfTI and ANTs: one place that knows that ANTs turns x and y around."""

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid, brain_mask, template, template_grid
from scalebrain.io.atomic import write_atomic
from scalebrain.io.nifti_bytes import nifti_bytes

__all__ = [
    "affine_matrix",
    "ants_affine",
    "box_around",
    "from_ants",
    "grid_of",
    "template_image",
    "to_ants",
    "widened",
    "write_image",
]

Volume = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

# NIfTI: x to the right, y to the front. ANTs (ITK, as DICOM): x to the left, y to the back.
_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_ants(data: npt.NDArray[Any], grid: Grid) -> Any:
    """Make an image of ANTs, of single precision.

    Parameters
    ----------
    data
        (x, y, z) values.
    grid
        Its grid, as NIfTI has it.

    Returns
    -------
    ANTsImage
        The same image at the same place.
    """
    import ants

    matrix = _TURN @ grid.matrix
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32),
        origin=tuple(float(v) for v in matrix[:3, 3]),
        spacing=tuple(float(v) for v in steps),
        direction=matrix[:3, :3] / steps,
    )


def grid_of(image: Any) -> Grid:
    """Grid of an image of ANTs, as NIfTI has it."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(image.direction) * np.asarray(image.spacing)
    matrix[:3, 3] = image.origin
    return Grid.from_matrix(image.shape, _TURN @ matrix)


def from_ants(image: Any) -> Volume:
    """Values (x, y, z) of an image of ANTs."""
    return np.asarray(image.numpy(), dtype=np.float32)


def affine_matrix(path: str) -> Matrix:
    """Read a linear transform of ANTs, as a matrix of NIfTI's mm.

    Parameters
    ----------
    path
        ``.mat`` file.

    Returns
    -------
    ndarray
        4 x 4: from points of the fixed image to points of the moving one.
    """
    import ants

    transform = ants.read_transform(path)
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    center = np.asarray(transform.fixed_parameters, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + center - matrix[:3, :3] @ center
    return np.asarray(_TURN @ matrix @ _TURN, dtype=np.float64)


def ants_affine(matrix: Matrix, path: str) -> str:
    """Write a matrix as a linear transform of ANTs.

    Parameters
    ----------
    matrix
        4 x 4: from points of the fixed image to points of the moving one, in NIfTI's mm.
    path
        ``.mat`` file.

    Returns
    -------
    str
        `path`.
    """
    import ants

    turned = _TURN @ matrix @ _TURN
    transform = ants.new_ants_transform(
        precision="float", dimension=3, transform_type="AffineTransform"
    )
    transform.set_fixed_parameters([0.0, 0.0, 0.0])
    transform.set_parameters([float(v) for v in (*turned[:3, :3].ravel(), *turned[:3, 3])])
    ants.write_transform(transform, path)
    return path


@functools.lru_cache(maxsize=12)
def template_image(name: Literal["t1", "gm", "wm", "mask"], resolution: float) -> Any:
    """Template map at a resolution, as an image of ANTs."""
    grid = template_grid(resolution)
    data = brain_mask(grid) if name == "mask" else template(name, grid)
    return to_ants(data, grid)


def box_around(mask: npt.NDArray[np.bool_], margin: npt.ArrayLike) -> tuple[slice, ...]:
    """Box around a mask.

    Parameters
    ----------
    mask
        (x, y, z), not empty.
    margin
        Voxels by which the box is wider on each side where there is room; one number, or one an
        axis.

    Returns
    -------
    tuple of slice
        What to index an array of the mask's shape with.
    """
    sides = []
    for axis, more in enumerate(np.broadcast_to(np.asarray(margin, dtype=int), (mask.ndim,))):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        there = np.flatnonzero(mask.any(axis=others))
        sides.append(slice(max(int(there[0] - more), 0), int(there[-1] + more) + 1))
    return tuple(sides)


def widened(mask: npt.NDArray[np.bool_], grid: Grid, distance: float) -> npt.NDArray[np.bool_]:
    """Widen a mask.

    Parameters
    ----------
    mask
        (x, y, z).
    grid
        Its grid; voxels may have unequal sides.
    distance
        In mm; 0 gives the mask itself.

    Returns
    -------
    ndarray of bool
        Every voxel whose center lies within `distance` of one of the mask.

    Notes
    -----
    The distances are those of the box around the mask, not of the whole grid: an image of a head
    has 200 times the voxels of most lesions.
    """
    from scipy import ndimage

    if not mask.any() or distance <= 0:
        return mask.copy()
    steps = np.linalg.norm(grid.matrix[:3, :3], axis=0)
    box = box_around(mask, np.floor(distance / steps) + 1)
    wide = np.zeros(mask.shape, dtype=bool)
    wide[box] = ndimage.distance_transform_edt(~mask[box], sampling=steps) <= distance
    return wide


def write_image(
    path: Path, data: npt.NDArray[Any], grid: Grid, *, dtype: str, slope: float = 1.0
) -> None:
    """Write a .nii.gz file in template space, whole or not at all.

    Parameters
    ----------
    path
        File.
    data
        (x, y, z) values.
    grid
        Grid, which goes into both orientations of the header as it is.
    dtype
        Type of the stored numbers, ``u1`` or ``i2``.
    slope
        Factor that readers apply.
    """
    kind = np.dtype(dtype)
    limits = np.iinfo(kind)
    stored = np.clip(np.rint(np.nan_to_num(data) / slope), limits.min, limits.max).astype(kind)
    content = nifti_bytes(stored.ravel(order="F"), grid.shape, grid.matrix, slope=slope)
    write_atomic(path, content)
