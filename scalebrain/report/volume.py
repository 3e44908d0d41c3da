"""Voxel vectors back as volumes, and slices of them as pictures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.space import SPACE, Grid, template
from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.features.segments import voxel_index

__all__ = ["Plane", "Volume", "background_vector", "overlay_slice", "to_volume"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """A volume whose axes run from left to right, back to front and bottom to top."""

    data: FloatArray
    axes: tuple[FloatArray, FloatArray, FloatArray]

    def plane(self, axis: int, at: float) -> "Plane":
        """Cut a plane at a coordinate in mm: axis 0 sagittal, 1 coronal, 2 axial."""
        index = int(np.argmin(np.abs(self.axes[axis] - at)))
        across, up = (i for i in range(3) if i != axis)
        x, y = self.axes[across], self.axes[up]
        half_x, half_y = _half_step(x), _half_step(y)
        return Plane(
            np.take(self.data, index, axis=axis).T,
            (x[0] - half_x, x[-1] + half_x, y[0] - half_y, y[-1] + half_y),
            float(self.axes[axis][index]),
        )

    def crop(self, keep: npt.NDArray[np.bool_]) -> "Volume":
        """Cut away the margins in which nothing is kept."""
        windows = []
        for axis in range(3):
            others = tuple(i for i in range(3) if i != axis)
            hits = np.flatnonzero(keep.any(axis=others))
            windows.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(None))
        return Volume(
            self.data[tuple(windows)],
            (self.axes[0][windows[0]], self.axes[1][windows[1]], self.axes[2][windows[2]]),
        )


@dataclass(frozen=True)
class Plane:
    """A slice with rows from bottom to top, its extent in mm and where it was cut."""

    values: FloatArray
    extent: tuple[float, float, float, float]
    at: float


def _half_step(axis: FloatArray) -> float:
    return float(axis[1] - axis[0]) / 2 if axis.size > 1 else 0.5


def to_volume(ds: xr.Dataset, values: npt.ArrayLike) -> Volume:
    """Put a vector over ``voxel`` back on its grid; voxels that are not stored are NaN.

    Parameters
    ----------
    ds
        Dataset with ``x``, ``y``, ``z`` on ``voxel`` and the attributes ``affine`` and
        ``shape``.
    values
        One value a voxel.

    Returns
    -------
    Volume
        Cropped to the stored voxels.

    Raises
    ------
    MissingVariableError
        When coordinates or attributes are missing.
    GeometryError
        When the affine is oblique, or coordinates are not on the grid.
    """
    absent = [name for name in ("x", "y", "z") if name not in ds.variables]
    absent += [name for name in ("affine", "shape") if name not in ds.attrs]
    if absent:
        raise MissingVariableError(
            f"Dataset: {', '.join(absent)} missing, so that nothing can be drawn on the brain. "
            "Open a finished store with open_store."
        )
    affine = np.asarray(ds.attrs["affine"], dtype=np.float64).reshape(4, 4)
    shape = tuple(int(n) for n in ds.attrs["shape"])
    scale = np.diag(affine)[:3]
    if len(shape) != 3 or np.abs(affine[:3, :3] - np.diag(scale)).max() > 1e-4:
        raise GeometryError(
            "The grid of the store is not aligned with the axes of the space (oblique affine "
            f"{affine[:3, :3].tolist()}). Resample the scans to an axis-aligned grid."
        )
    mm = np.stack([np.asarray(ds[name].values, dtype=np.float64) for name in ("x", "y", "z")])
    index = np.rint((mm - affine[:3, 3:]) / scale[:, None]).astype(np.intp)
    if index.size and (index.min() < 0 or (index >= np.array(shape)[:, None]).any()):
        raise GeometryError(
            f"Voxel coordinates lie outside the grid of shape {shape}: attributes and "
            "coordinates of the store disagree. Ingest again."
        )
    full = np.full(shape, np.nan)
    full[tuple(index)] = np.asarray(values, dtype=np.float64)
    stored = np.zeros(shape, dtype=np.bool_)
    stored[tuple(index)] = True
    lines: list[FloatArray] = []
    for axis, (n, step) in enumerate(zip(shape, scale, strict=True)):
        line = affine[axis, 3] + step * np.arange(n)
        if step < 0:
            line, full, stored = line[::-1], np.flip(full, axis), np.flip(stored, axis)
        lines.append(line)
    return Volume(full, (lines[0], lines[1], lines[2])).crop(stored)


def background_vector(ds: xr.Dataset, n_subjects: int = 6) -> FloatArray:
    """Mean T1w image of some reference people, or the template, to draw maps on.

    Parameters
    ----------
    ds
        Dataset with ``t1w``; one row is loaded at a time.
    n_subjects
        How many of the first included reference subjects are averaged.

    Returns
    -------
    ndarray
        Shape (voxel,), scaled to 0..1 between the 2nd and 99.5th percentile. Without any
        T1w that of the template, if the images are in its space, else a half everywhere.
    """
    n_voxels = ds.sizes.get("voxel", 0)
    if "t1w" not in ds.variables or not n_voxels:
        return _template_vector(ds)
    usable = np.ones(ds.sizes["subject"], dtype=np.bool_)
    for name in ("scan_present", "included"):
        if name in ds.variables:
            usable &= np.asarray(ds[name].values, dtype=np.bool_)
    if "group" in ds.variables:
        reference = np.array([str(v) == "reference" for v in ds["group"].values.tolist()])
        usable = usable & reference if (usable & reference).any() else usable
    total = np.zeros(n_voxels)
    n = 0
    for position in np.flatnonzero(usable)[:n_subjects]:
        row = np.asarray(ds["t1w"].isel(subject=int(position)).values, dtype=np.float64)
        scale = float(np.nanpercentile(row, 98)) if np.isfinite(row).any() else 0.0
        if scale > 0:
            total += np.nan_to_num(row / scale)
            n += 1
    return scaled(total) if n else _template_vector(ds)


def _template_vector(ds: xr.Dataset) -> FloatArray:
    """T1w image of the template (voxel,), a half everywhere in another space."""
    n_voxels = ds.sizes.get("voxel", 0)
    if not n_voxels or ds.attrs.get("space") != SPACE or "affine" not in ds.attrs:
        return np.full(n_voxels, 0.5)
    matrix = np.asarray(ds.attrs["affine"], dtype=np.float64).reshape(4, 4)
    i, j, k = (int(size) for size in ds.attrs["shape"])
    grid = Grid.from_matrix((i, j, k), matrix)
    return scaled(template("t1", grid).ravel()[voxel_index(ds, grid)])


def scaled(values: npt.ArrayLike) -> FloatArray:
    """Stretch intensities to 0..1 between their 2nd and 99.5th percentile."""
    array = np.asarray(values, dtype=np.float64)
    known = array[np.isfinite(array)]
    if not known.size:
        return np.full(array.shape, 0.5)
    low, high = np.percentile(known, [2, 99.5])
    if high <= low:
        return np.full(array.shape, 0.5)
    stretched: FloatArray = np.clip((array - low) / (high - low), 0, 1)
    return stretched


def _smooth_background(values: FloatArray, factor: int) -> tuple[FloatArray, FloatArray]:
    """Enlarge gray values and the outline of what is known, without steps at voxel borders."""
    from scipy import ndimage

    known = np.isfinite(values)
    if factor == 1 or not known.any():
        return np.where(known, values, 0.0), known.astype(np.float64)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    gray = ndimage.zoom(values[tuple(nearest)], factor, order=3, grid_mode=True, mode="nearest")
    solid = ndimage.zoom(
        known.astype(np.float64), factor, order=1, grid_mode=True, mode="grid-constant"
    )
    alpha = np.clip(3 * ndimage.gaussian_filter(solid, 0.6 * factor) - 1, 0, 1)
    return np.clip(gray, 0, 1), alpha


def overlay_slice(
    background: Plane,
    overlay: Plane | None = None,
    *,
    colors: npt.NDArray[np.float64] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    enlarge: int = 1,
) -> FloatArray:
    """Compose an RGBA picture: gray brain, colored where the overlay has a value.

    Parameters
    ----------
    background
        Gray values in 0..1; NaN is transparent.
    overlay
        Values of the same plane; NaN shows the background.
    colors
        Lookup table of the overlay, rows of red, green and blue in 0..1.
    limits
        Overlay values of the first and last color.
    enlarge
        Factor by which the picture is enlarged, smoothly for the background.

    Returns
    -------
    ndarray
        Shape (rows, columns, 4), values 0..1, rows from bottom to top.
    """
    gray, alpha = _smooth_background(background.values, enlarge)
    picture = np.empty((*gray.shape, 4))
    picture[..., :3] = (0.12 + 0.83 * gray)[..., None]
    picture[..., 3] = alpha
    if overlay is not None and colors is not None:
        values = np.kron(overlay.values, np.ones((enlarge, enlarge)))
        shown = np.isfinite(values)
        table = np.asarray(colors, dtype=np.float64)
        low, high = limits
        position = (values[shown] - low) / (high - low if high > low else 1.0)
        index = np.clip(np.rint(position * (len(table) - 1)), 0, len(table) - 1).astype(np.intp)
        picture[shown, :3] = 0.85 * table[index] + 0.15 * picture[shown, :3]
    return np.clip(picture, 0.0, 1.0)
