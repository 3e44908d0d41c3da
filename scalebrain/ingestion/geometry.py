"""The fixed part of a store: which voxels, in which order, and what lies where."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy import ndimage

from scalebrain.atlas.parcels import node_image, nodes, parcel_image
from scalebrain.atlas.space import (
    Grid,
    asymmetric_template,
    brain_mask,
    template,
    template_grid,
)
from scalebrain.atlas.tracts import TRACTS, cst_probability
from scalebrain.errors import GeometryError

__all__ = ["Geometry", "covered_liters", "static_variables", "vertex_variables"]

_WHITE_PROBABILITY = 0.9
_EVERY = 7  # of the brain's voxels one tells how much a grid covers


def covered_liters(grid: Grid) -> float:
    """Volume of the template's brain that a grid covers, in liters; the whole is 1.9."""
    # nothing is allocated for the grid: a header can claim any
    own = template_grid()
    mm = own.coordinates(np.flatnonzero(brain_mask(own))[::_EVERY])
    inverse = np.linalg.inv(grid.matrix)
    at = mm @ inverse[:3, :3].T + inverse[:3, 3]
    inside = ((at >= -0.5) & (at <= np.array(grid.shape) - 0.5)).all(axis=1)
    return float(np.count_nonzero(inside) * _EVERY * own.voxel_volume / 1e6)


def static_variables(grid: Grid, *, whole_head: bool = False) -> xr.Dataset:
    """Voxels, nodes and tracts of a grid.

    Parameters
    ----------
    grid
        Grid of the scans, in template space.
    whole_head
        Keep every voxel of the grid: skull, face and air too.

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
    pool = ThreadPoolExecutor(1)
    tracts_read = pool.submit(cst_probability, grid)  # most of it inflates a file
    pool.shutdown(wait=False)
    inside = brain_mask(grid)
    parcels = parcel_image(grid)
    keep = np.flatnonzero(inside | (parcels > 0))
    volume = keep.size * grid.voxel_volume / 1e6
    if not 1.6 < volume < 2.4:
        raise GeometryError(
            f"The grid (shape {grid.shape}) holds {volume:.2f} L of the template's brain, expected "
            "about 1.9 L. The scans are cropped, or not in template space.",
            code="not-in-template-space",
        )
    if whole_head:
        keep = np.arange(grid.size)
    label = node_image(grid)
    # within a node as a file has them, the first axis fastest: a scan is read in long runs
    i, j, k = np.unravel_index(keep, grid.shape)
    order = np.lexsort((i, j, k, label.ravel()[keep], parcels.ravel()[keep]))
    keep = keep[order]
    mm = grid.coordinates(keep).astype(np.float32)
    white = template("wm", grid) >= _WHITE_PROBABILITY
    # one voxel, or 1 mm where voxels are smaller, away from any other tissue
    white = ndimage.binary_erosion(white) & (label < 0)
    tracts = tracts_read.result()
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
            "mask_sha256": hashlib.sha256(keep.astype(np.int64).tobytes()).hexdigest(),
        },
    )


def vertex_variables() -> xr.Dataset:
    """Hemisphere of every vertex of fsaverage5, left then right."""
    from scalebrain.io.freesurfer import N_VERTICES

    half = N_VERTICES // 2
    hemisphere = np.repeat(["L", "R"], half)
    return xr.Dataset(coords={"hemisphere": ("vertex", hemisphere)})


@dataclass(frozen=True)
class Geometry:
    """What a worker has to know of the store's voxels.

    Parameters
    ----------
    grid
        Grid of the store.
    ijk
        (voxel, 3) index of every stored voxel.
    parcel
        (voxel,) parcel codes.
    inside
        (voxel,) whether the voxel is of the template's brain or a parcel.
    template, mirrored
        (voxel,) the asymmetric template, as it is and with left and right exchanged.
    grey
        (voxel,) grey-matter probability of the template.
    """

    grid: Grid
    ijk: npt.NDArray[np.int16]
    parcel: npt.NDArray[np.int32]
    inside: npt.NDArray[np.bool_]
    template: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.float32]
    grey: npt.NDArray[np.float32]
    _cache: dict[object, npt.NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, static: xr.Dataset, grid: Grid) -> "Geometry":
        """Take it from the static variables of a store."""
        mm = np.stack([static[axis].values for axis in "xyz"], axis=1).astype(np.float64)
        inverse = np.linalg.inv(grid.matrix)
        ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int16)
        at = tuple(ijk.T.astype(np.intp))
        parcel = np.asarray(static["parcel"].values, dtype=np.int32)
        return cls(
            grid,
            np.ascontiguousarray(ijk),
            parcel,
            brain_mask(grid)[at] | (parcel > 0),
            np.ascontiguousarray(asymmetric_template(grid)[at]),
            np.ascontiguousarray(asymmetric_template(grid, mirrored=True)[at]),
            np.ascontiguousarray(template("gm", grid)[at]),
        )

    def __getstate__(self) -> dict[str, object]:
        """Leave out what every worker makes for itself."""
        return {**self.__dict__, "_cache": {}}

    def position(self) -> npt.NDArray[np.int32]:
        """Position on `voxel` of every voxel of the grid, C order; -1 where none is stored."""
        if "position" not in self._cache:
            out = np.full(self.grid.size, -1, dtype=np.int32)
            flat = np.ravel_multi_index(tuple(self.ijk.T.astype(np.intp)), self.grid.shape)
            out[flat] = np.arange(flat.size, dtype=np.int32)
            self._cache["position"] = out
        found: npt.NDArray[np.int32] = self._cache["position"]
        return found

    def file_index(
        self, shape: tuple[int, int, int], to_file: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.uint32]:
        """Index in a file, first axis fastest, of every stored voxel.

        Parameters
        ----------
        shape
            Shape of the file.
        to_file
            4 x 4 matrix from indices of the grid to those of a file on the same lattice.

        Returns
        -------
        ndarray
            (voxel,) indices.
        """
        key = (shape, to_file.tobytes())
        if key not in self._cache:
            n = [self._along(axis, to_file) for axis in range(3)]
            index = n[0] + shape[0] * (n[1] + shape[1] * n[2])
            self._cache[key] = index.astype(np.uint32)
        found: npt.NDArray[np.uint32] = self._cache[key]
        return found

    def _along(self, axis: int, to_file: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Index along one axis of a file of every stored voxel."""
        source = int(np.argmax(np.abs(to_file[axis, :3])))
        step = int(np.rint(to_file[axis, source]))
        offset = int(np.rint(to_file[axis, 3]))
        return self.ijk[:, source].astype(np.int64) * step + offset
