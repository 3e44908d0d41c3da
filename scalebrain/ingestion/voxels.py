"""The fixed part of a store: which voxels, in which order, and what lies where."""

import hashlib

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from scalebrain.atlas.parcels import node_image, nodes, parcel_image
from scalebrain.atlas.space import Grid, brain_mask, template
from scalebrain.atlas.tracts import TRACTS, cst_probability
from scalebrain.errors import GeometryError

__all__ = ["flat_indices", "static_variables"]

_WHITE_PROBABILITY = 0.9


def static_variables(grid: Grid) -> xr.Dataset:
    """Voxels, nodes and tracts of a grid.

    Parameters
    ----------
    grid
        Grid of the scans, in template space.

    Returns
    -------
    Dataset
        Coordinates ``x y z parcel node_label white_reference`` on ``voxel``, sorted by
        parcel, node and position; ``node_parcel node_x node_y node_z`` on ``node``;
        ``edge_source edge_target`` on ``edge``; ``tract_probability (tract, voxel)``.

    Raises
    ------
    GeometryError
        When the grid does not cover the template's brain.
    """
    inside = brain_mask(grid)
    parcels = parcel_image(grid)
    keep = np.flatnonzero(inside | (parcels > 0))
    volume = keep.size * grid.voxel_volume / 1e6
    if not 1.6 < volume < 2.4:
        raise GeometryError(
            f"The grid (shape {grid.shape}) holds {volume:.2f} L of the template's brain, expected "
            "about 1.9 L. The scans are cropped, or not in template space."
        )
    label = node_image(grid)
    order = np.lexsort((keep, label.ravel()[keep], parcels.ravel()[keep]))
    keep = keep[order]
    mm = grid.coordinates(keep).astype(np.float32)
    white = template("wm", grid) >= _WHITE_PROBABILITY
    # one voxel, or 1 mm where voxels are smaller, away from any other tissue
    white = ndimage.binary_erosion(white) & (label < 0)
    tracts = cst_probability(grid)
    all_nodes = nodes()
    attrs = {"affine": grid.matrix.tolist(), "shape": list(grid.shape)}
    return xr.Dataset(
        {
            "node_parcel": ("node", all_nodes.parcel),
            **{
                f"node_{axis}": ("node", all_nodes.centroid[:, i].astype(np.float32))
                for i, axis in enumerate("xyz")
            },
            "edge_source": ("edge", all_nodes.edges[:, 0]),
            "edge_target": ("edge", all_nodes.edges[:, 1]),
            "tract_probability": (
                ("tract", "voxel"),
                np.stack([tracts[tract].ravel()[keep] for tract in TRACTS]),
            ),
        },
        coords={
            **{
                axis: ("voxel", np.ascontiguousarray(mm[:, i]), attrs)
                for i, axis in enumerate("xyz")
            },
            "parcel": ("voxel", parcels.ravel()[keep].astype(np.int32)),
            "node_label": ("voxel", label.ravel()[keep].astype(np.int32)),
            "white_reference": ("voxel", white.ravel()[keep]),
            "tract": ("tract", list(TRACTS)),
        },
        attrs={
            "nodes_sha256": all_nodes.fingerprint,
            "mask_sha256": hashlib.sha256(np.sort(keep).astype(np.int64).tobytes()).hexdigest(),
        },
    )


def flat_indices(static: xr.Dataset, grid: Grid) -> npt.NDArray[np.intp]:
    """C-order flat index in the grid of every stored voxel."""
    mm = np.stack([static[axis].values for axis in "xyz"], axis=1).astype(np.float64)
    inverse = np.linalg.inv(grid.matrix)
    ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
    return np.asarray(np.ravel_multi_index((ijk[:, 0], ijk[:, 1], ijk[:, 2]), grid.shape))
