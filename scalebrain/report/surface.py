"""Values of parcels on the cortex: four views drawn from the fsaverage5 meshes of nilearn."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from scalebrain.errors import GeometryError, ImageError, MissingVariableError
from scalebrain.report import drawing

__all__ = ["Hemisphere", "surface_figure", "vertex_parcels"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Hemisphere = Literal["left", "right"]

_REACH_MM = 4.0
_GRAY = 0.80
_LIGHT = np.array([0.15, 0.35, 0.92])


@functools.cache
def _mesh(hemisphere: Hemisphere) -> tuple[FloatArray, FloatArray, IntArray]:
    """Pial vertices, vertices halfway to the white surface, and triangles."""
    pial, faces = _read_mesh(f"pial_{hemisphere}.gii.gz")
    white, _ = _read_mesh(f"white_{hemisphere}.gii.gz")
    if pial.shape != white.shape or (pial[:, 0].mean() < 0) != (hemisphere == "left"):
        raise GeometryError(
            f"The fsaverage5 mesh of the {hemisphere} hemisphere is not where it has to be. "
            "Install the version of nilearn that constraints.txt names."
        )
    return pial, (pial + white) / 2, faces


def _read_mesh(name: str) -> tuple[FloatArray, IntArray]:
    """Vertices and triangles of a mesh that lies inside nilearn; nilearn is not imported."""
    import nibabel as nib

    spec = importlib.util.find_spec("nilearn")
    folder = spec.submodule_search_locations if spec else None
    path = Path(folder[0]) / "datasets" / "data" / "fsaverage5" / name if folder else None
    if path is None or not path.is_file():
        raise ImageError(f"nilearn has no surface {name}. Run: pip install nilearn")
    image = nib.load(path)
    if not isinstance(image, nib.GiftiImage):
        raise ImageError(f"{path} is not a surface. Reinstall nilearn.")
    vertices, faces = image.agg_data(("pointset", "triangle"))
    return np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)


def vertex_parcels(ds: xr.Dataset, hemisphere: Hemisphere) -> IntArray:
    """Parcel of each fsaverage5 vertex: the nearest one on its own side.

    Parameters
    ----------
    ds
        Dataset with ``x``, ``y``, ``z`` and ``parcel`` on ``voxel``.
    hemisphere
        Side of the mesh.

    Returns
    -------
    ndarray of int
        Shape (vertex,); 0 where no parcel lies within 4 mm of mid-thickness, or within
        the length of a voxel where voxels are larger than that.

    Raises
    ------
    MissingVariableError
        When a coordinate is missing.
    """
    from scipy.spatial import cKDTree

    absent = [name for name in ("x", "y", "z", "parcel") if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: {', '.join(absent)} missing. Open a finished store with open_store."
        )
    mm = np.stack([np.asarray(ds[a].values, dtype=np.float64) for a in "xyz"], axis=1)
    parcel = np.asarray(ds["parcel"].values).astype(np.int64)
    # The atlas crosses the midline here and there: a parcel's side is that of most of it.
    codes, position = np.unique(parcel, return_inverse=True)
    center = np.bincount(position, weights=mm[:, 0]) / np.bincount(position)
    on_side = (center < 0) if hemisphere == "left" else (center > 0)
    own = (on_side & (codes > 0))[position]
    _, middle, _ = _mesh(hemisphere)
    out = np.zeros(len(middle), dtype=np.int64)
    if not own.any():
        return out
    affine = np.asarray(ds.attrs.get("affine", np.eye(4).ravel()), dtype=np.float64)
    voxel = float(np.abs(np.diag(affine.reshape(4, 4))[:3]).max())
    distance, nearest = cKDTree(mm[own]).query(middle, distance_upper_bound=max(_REACH_MM, voxel))
    found = np.isfinite(distance)
    out[found] = parcel[own][nearest[found]]
    return out


def surface_figure(
    parcels: Mapping[Hemisphere, IntArray],
    values: Mapping[int, float],
    *,
    key: str,
    limit: float,
    colors: FloatArray,
    label: str,
    alt: str,
) -> Markup:
    """Draw the cortex in four views, the left hemisphere as the lesioned one.

    Parameters
    ----------
    parcels
        Parcel of each vertex of both hemispheres, from :func:`vertex_parcels`.
    values
        Value of each parcel code.
    key
        Prefix of ids.
    limit
        Value of the last color; the first one is its negative.
    colors
        Lookup table (n, 3).
    label
        Label of the color bar.
    alt
        Alternative text.

    Returns
    -------
    Markup
        An ``<svg>`` element.
    """
    views: tuple[tuple[Hemisphere, bool, str], ...] = (
        ("left", True, "ipsilesional, lateral"),
        ("left", False, "ipsilesional, medial"),
        ("right", False, "contralesional, medial"),
        ("right", True, "contralesional, lateral"),
    )
    width = 2.3
    with drawing.drawing():
        figure = drawing.canvas(9.6, 2.72)
        for i, (side, lateral, title) in enumerate(views):
            axes = drawing.panel(figure, 0.05 + i * (width + 0.1), 0.25, width, 1.72)
            at_vertex = np.array([values.get(int(code), np.nan) for code in parcels[side]])
            picture, extent = _picture(side, lateral, at_vertex, limit, colors)
            axes.imshow(picture, extent=extent, origin="lower", interpolation="none")
            axes.set_title(title, fontsize=9.5, pad=3)
        bar_axes = drawing.panel(figure, 2.8, 2.16, 4.0, 0.11)
        drawing.color_bar(bar_axes, colors, (-limit, limit), label)
        return drawing.render(figure, key, alt)


def _picture(
    hemisphere: Hemisphere, lateral: bool, values: FloatArray, limit: float, colors: FloatArray
) -> tuple[FloatArray, tuple[float, float, float, float]]:
    """Rasterize one view: parallel projection along x, nearest triangle in front."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    vertices, _, faces = _mesh(hemisphere)
    outward = 1.0 if hemisphere == "right" else -1.0
    toward = outward if lateral else -outward  # the eye is on this side of x
    depth = toward * vertices[:, 0]
    across = toward * vertices[:, 1]  # seen from the right (+x), front (+y) is on the right
    up = vertices[:, 2]
    corners = np.stack([across, up], axis=1)[faces]
    normals = np.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    facing = toward * normals[:, 0]
    light = _LIGHT[[2, 1, 0]] * np.array([toward, 1.0, 1.0])
    shade = np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
    face_values = _face_values(values[faces])
    rgb = np.full((len(faces), 3), _GRAY)
    known = np.isfinite(face_values)
    index = np.rint((face_values[known] / limit + 1) / 2 * (len(colors) - 1))
    rgb[known] = colors[np.clip(index, 0, len(colors) - 1).astype(np.intp)]
    rgb = np.clip(rgb * (0.58 + 0.46 * shade[:, None]), 0, 1)
    order = np.argsort(depth[faces].mean(axis=1), kind="stable")
    order = order[facing[order] > 0]
    low, high = corners.reshape(-1, 2).min(axis=0) - 2, corners.reshape(-1, 2).max(axis=0) + 2
    width, height = high - low
    figure = Figure(figsize=(width / 40, height / 40), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.add_collection(
        PolyCollection(list(corners[order]), facecolors=rgb[order], edgecolors=rgb[order], lw=0.3)
    )
    figure.patch.set_alpha(0.0)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba(), dtype=np.float64)[::-1] / 255
    return picture, (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def _face_values(corners: FloatArray) -> FloatArray:
    """Value of the majority of a triangle's corners, so that borders stay sharp."""
    a, b, c = corners.T
    with np.errstate(invalid="ignore"):
        same_bc = (b == c) | (np.isnan(b) & np.isnan(c))
    return np.asarray(np.where(same_bc, b, a))
