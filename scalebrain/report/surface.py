"""Values of parcels on the cortex: four views drawn from the fsaverage5 meshes of nilearn."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from scalebrain.atlas.surface import REACH_MM, SurfaceNodes, nearest_labels, surface_nodes
from scalebrain.errors import MissingVariableError
from scalebrain.features.surface_nodes import surface_level
from scalebrain.io.fsaverage import N_SIDE, Hemisphere, read_mesh
from scalebrain.report import drawing
from scalebrain.variables import validate

__all__ = [
    "nodes_on_surface",
    "surface_figure",
    "surface_picture",
    "vertex_nodes",
    "vertex_parcels",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_GRAY = 0.80
_NODE_REACH_MM = 12.0
_LIGHT = np.array([0.15, 0.35, 0.92])


def nodes_on_surface(ds: xr.Dataset) -> SurfaceNodes | None:
    """Nodes of a Dataset whose features are of the cortical surface; None of any other."""
    if "node_features" not in ds.variables:
        return None
    level = surface_level(str(ds["node_features"].attrs.get("nodes", "")))
    return None if level is None else surface_nodes(level)


def vertex_parcels(ds: xr.Dataset, hemisphere: Hemisphere) -> IntArray:
    """Parcel of each fsaverage5 vertex: the nearest one on its own side.

    Parameters
    ----------
    ds
        Dataset with ``x``, ``y``, ``z`` and ``parcel`` on ``voxel``, or with nodes on the
        surface, whose own vertices are then taken.
    hemisphere
        Side of the mesh.

    Returns
    -------
    ndarray of int
        Shape (vertex,); 0 where no parcel lies within 4 mm of mid-thickness, or within
        the length of a voxel where voxels are larger than that. Of nodes on the surface,
        0 where the vertex is in no region.

    Raises
    ------
    MissingVariableError
        When a coordinate is missing.
    """
    if nodes_on_surface(ds) is not None:
        finest = surface_nodes(5)  # a node is a vertex
        codes = np.zeros(2 * N_SIDE, dtype=np.int64)
        codes[finest.pooling.indices] = finest.parcel
        return _of_side(codes, hemisphere)
    absent = [name for name in ("x", "y", "z", "parcel") if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: {', '.join(absent)} missing. Open a finished store with open_store."
        )
    mm = np.stack([np.asarray(ds[a].values, dtype=np.float64) for a in "xyz"], axis=1)
    parcel = np.asarray(ds["parcel"].values).astype(np.int64)
    affine = np.asarray(ds.attrs.get("affine", np.eye(4).ravel()), dtype=np.float64)
    voxel = float(np.abs(np.diag(affine.reshape(4, 4))[:3]).max())
    return nearest_labels(mm, parcel, hemisphere, reach=max(REACH_MM, voxel))


def vertex_nodes(ds: xr.Dataset, hemisphere: Hemisphere) -> IntArray:
    """Node of each fsaverage5 vertex: the one it counts most for, or the nearest one.

    Parameters
    ----------
    ds
        Dataset with ``node_x``, ``node_y``, ``node_z`` on ``node``.
    hemisphere
        Side of the mesh.

    Returns
    -------
    ndarray of int
        Shape (vertex,); position of the node plus 1. A vertex that counts for none has the
        nearest of its parcel; of the volume, the nearest on its side within 12 mm. 0 elsewhere.
    """
    on_surface = nodes_on_surface(ds)
    if on_surface is not None:
        from scipy.spatial import cKDTree

        weight = on_surface.pooling.tocoo()
        order = np.argsort(weight.data, kind="stable")  # the largest is written last
        node = np.zeros(2 * N_SIDE, dtype=np.int64)
        node[weight.col[order]] = weight.row[order] + 1
        finest = surface_nodes(5)
        left = np.flatnonzero(node[finest.pooling.indices] == 0)
        for code in np.unique(finest.parcel[left]):
            own, near = left[finest.parcel[left] == code], on_surface.parcel == code
            nearest = cKDTree(on_surface.centroid[near]).query(finest.centroid[own])[1]
            node[finest.pooling.indices[own]] = np.flatnonzero(near)[nearest] + 1
        return _of_side(node, hemisphere)
    validate(ds, "node_x", "node_y", "node_z", "node_parcel")
    mm = np.stack([ds[f"node_{a}"].values for a in "xyz"], axis=1).astype(np.float64)
    side = ds["node_parcel"].values % 2 == (hemisphere == "left")
    labels = np.where(side, np.arange(len(mm)) + 1, 0)
    return nearest_labels(mm, labels, hemisphere, reach=_NODE_REACH_MM)


def _of_side(values: IntArray, hemisphere: Hemisphere) -> IntArray:
    """Vertices of one side, of those of both."""
    return values[:N_SIDE] if hemisphere == "left" else values[N_SIDE:]


def surface_figure(
    parcels: Mapping[Hemisphere, IntArray],
    values: Mapping[int, float],
    *,
    key: str,
    limits: tuple[float, float],
    colors: FloatArray,
    label: str,
    alt: str,
    sides: tuple[str, str] = ("ipsilesional", "contralesional"),
) -> Markup:
    """Draw the cortex in four views.

    Parameters
    ----------
    parcels
        Parcel (or node) of each vertex of both hemispheres, as from :func:`vertex_parcels`.
    values
        Value of each parcel code.
    key
        Prefix of ids.
    limits
        Values of the first and the last color.
    colors
        Lookup table (n, 3).
    label
        Label of the color bar.
    alt
        Alternative text.
    sides
        What the left and the right hemisphere stand for.

    Returns
    -------
    Markup
        An ``<svg>`` element.
    """
    views: tuple[tuple[Hemisphere, bool, str], ...] = (
        ("left", True, f"{sides[0]}, lateral"),
        ("left", False, f"{sides[0]}, medial"),
        ("right", False, f"{sides[1]}, medial"),
        ("right", True, f"{sides[1]}, lateral"),
    )
    width = 2.3
    with drawing.drawing():
        figure = drawing.canvas(9.6, 2.72)
        for i, (side, lateral, title) in enumerate(views):
            axes = drawing.panel(figure, 0.05 + i * (width + 0.1), 0.25, width, 1.72)
            at_vertex = np.array([values.get(int(code), np.nan) for code in parcels[side]])
            picture, extent = surface_picture(side, lateral, at_vertex, limits, colors)
            axes.imshow(picture, extent=extent, origin="lower", interpolation="none")
            axes.set_title(title, fontsize=9.5, pad=3)
        bar_axes = drawing.panel(figure, 2.8, 2.16, 4.0, 0.11)
        drawing.color_bar(bar_axes, colors, limits, label)
        return drawing.render(figure, key, alt)


def surface_picture(
    hemisphere: Hemisphere,
    lateral: bool,
    values: FloatArray,
    limits: tuple[float, float],
    colors: FloatArray,
) -> tuple[FloatArray, tuple[float, float, float, float]]:
    """Rasterize one view: parallel projection along x, nearest triangle in front.

    Parameters
    ----------
    hemisphere
        Side of the mesh.
    lateral
        Seen from outside, else from the midline.
    values
        Value of every vertex, NaN is gray.
    limits
        Values of the first and the last color.
    colors
        Lookup table (n, 3).

    Returns
    -------
    picture
        RGBA in [0, 1], first row at the bottom.
    extent
        Its edges in mm.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    vertices, faces = read_mesh("pial", hemisphere)
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
    low, high = limits
    index = np.rint((face_values[known] - low) / (high - low) * (len(colors) - 1))
    rgb[known] = colors[np.clip(index, 0, len(colors) - 1).astype(np.intp)]
    rgb = np.clip(rgb * (0.58 + 0.46 * shade[:, None]), 0, 1)
    order = np.argsort(depth[faces].mean(axis=1), kind="stable")
    order = order[facing[order] > 0]
    start, end = corners.reshape(-1, 2).min(axis=0) - 2, corners.reshape(-1, 2).max(axis=0) + 2
    width, height = end - start
    figure = Figure(figsize=(width / 40, height / 40), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(start[0], end[0])
    axes.set_ylim(start[1], end[1])
    axes.add_collection(
        PolyCollection(list(corners[order]), facecolors=rgb[order], edgecolors=rgb[order], lw=0.3)
    )
    figure.patch.set_alpha(0.0)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba(), dtype=np.float64)[::-1] / 255
    return picture, (float(start[0]), float(end[0]), float(start[1]), float(end[1]))


def _face_values(corners: FloatArray) -> FloatArray:
    """Value of the majority of a triangle's corners, so that borders stay sharp."""
    a, b, c = corners.T
    with np.errstate(invalid="ignore"):
        same_bc = (b == c) | (np.isnan(b) & np.isnan(c))
    return np.asarray(np.where(same_bc, b, a))
