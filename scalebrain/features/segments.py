"""Where the voxels of regions lie in the rows of a store."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.atlas import Atlas, packed, unpacked
from scalebrain.atlas.regions import RegionSet, check_regions
from scalebrain.atlas.space import Grid
from scalebrain.errors import GeometryError, TableError
from scalebrain.features.label_blocks import (
    Blocks,
    blocks_of_labels,
    first_of_runs,
    groups_of_labels,
)
from scalebrain.io.shards_numba_fns import NUMBERS
from scalebrain.variables import validate

__all__ = [
    "Segments",
    "contiguous_runs",
    "locate",
    "segments_of_labels",
    "segments_of_maps",
    "store_grid",
    "voxel_index",
]

Ints = npt.NDArray[np.int64]

#: Voxels of a block in which labels are sorted: those that are decoded at a time.
BLOCK = NUMBERS


@dataclass(frozen=True, eq=False)
class Segments:
    """Voxels of regions, as segments of a row or of a list of its voxels.

    Parameters
    ----------
    dim
        Dimension of the regions: ``parcel`` for the store's own parcels, else ``region``.
    names
        Labels along `dim`.
    starts, stops
        (segment,) first and last-plus-one voxel of every segment, in the row where `order`
        is None, else in `order`.
    member
        (segment, region) which segments make up a region; each is its own where regions do
        not share voxels.
    order
        (member voxel,) positions in the row, segment by segment; None where the segments
        are contiguous in the row itself.
    weights
        (member voxel,) float32 probability, beside `order`; None for plain labels.
    label
        (voxel,) segment of every voxel of a row, as many as there are segments outside of
        all; None where the segments are contiguous, or share voxels.
    atlas
        Name of the region set or atlas, for attributes.
    sha256
        Its hash; empty for the store's own parcels.
    """

    dim: str
    names: tuple[str, ...] | npt.NDArray[np.int32]
    starts: Ints
    stops: Ints
    member: npt.NDArray[np.bool_]
    order: npt.NDArray[np.uint32] | None = None
    weights: npt.NDArray[np.float32] | None = None
    label: npt.NDArray[np.uint16] | None = None
    atlas: str = ""
    sha256: str = ""

    def __getstate__(self) -> dict[str, Any]:
        """Pack the long arrays: they go to every worker."""
        state = dict(self.__dict__)
        if self.label is not None:
            del state["order"]  # follows from the labels
        for found in ("blocks", "groups"):
            state.pop(found, None)
        long = {k: state.pop(k) for k in ("order", "weights", "label") if k in state}
        return {**state, "packed": {k: packed(v) for k, v in long.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpack them."""
        long = state.pop("packed")
        self.__dict__.update(state, **{k: unpacked(v) for k, v in long.items()})
        if self.label is not None:
            self.__dict__["order"] = _members(self.label, self.starts.size)

    @property
    def span(self) -> tuple[int, int]:
        """First and last-plus-one voxel of the row that any segment has."""
        if self.order is not None:  # with labels it begins where one of `blocks` does
            first, last = int(self.order.min()), int(self.order.max()) + 1
            return (first if self.label is None else first // BLOCK * BLOCK), last
        used = (self.stops > self.starts) & self.member.any(axis=1)
        return int(self.starts[used].min()), int(self.stops[used].max())

    def within_span(self) -> "Segments":
        """Segments of rows that are cut to :attr:`span`."""
        first, last = self.span
        if self.order is not None:
            label = None if self.label is None else self.label[first:last].copy()
            return replace(self, order=self.order - np.uint32(first), label=label)
        used = self.member.any(axis=1)
        return replace(
            self,
            starts=self.starts[used] - first,
            stops=self.stops[used] - first,
            member=self.member[used],
        )

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Labelled voxels by block of a file."""
        return blocks_of_labels(cast("npt.NDArray[np.uint16]", self.label), self.starts.size)

    @functools.cached_property
    def groups(self) -> Blocks:
        """Labelled voxels by block of the row, neighbors of a label as groups."""
        return groups_of_labels(cast("npt.NDArray[np.uint16]", self.label), self.starts.size)

    @functools.cached_property
    def size(self) -> npt.NDArray[np.float64]:
        """(region,) voxels of every region, or the sum of their probabilities."""
        if self.weights is not None:
            # each alone and in the order of the kernels, so that a whole region has exactly this
            out = np.zeros(self.starts.size)
            for s, (a, b) in enumerate(zip(self.starts, self.stops, strict=True)):
                if a < b:
                    out[s] = np.cumsum(self.weights[a:b], dtype=np.float64)[-1]
            return out
        return np.asarray((self.stops - self.starts) @ self.member.astype(np.float64))


def _members(label: npt.NDArray[np.uint16], n_segments: int) -> npt.NDArray[np.uint32]:
    """Positions of the voxels of every segment, segment by segment."""
    order = np.argsort(label, kind="stable")  # a radix sort
    return order[: np.count_nonzero(label < n_segments)].astype(np.uint32)


def store_grid(ds: xr.Dataset) -> Grid:
    """Grid of the images that a store was made from.

    Parameters
    ----------
    ds
        Store with coordinates ``x y z``.

    Returns
    -------
    Grid
        Shape and affine.

    Raises
    ------
    GeometryError
        When the Dataset does not carry its grid.
    """
    validate(ds, "x", "y", "z")
    attrs = ds["x"].attrs
    if "affine" not in attrs or "shape" not in attrs:
        raise GeometryError(
            "The Dataset does not carry the grid of its images. Take it from open_store."
        )
    return Grid.from_matrix(tuple(attrs["shape"]), np.reshape(attrs["affine"], (4, 4)))


def voxel_index(ds: xr.Dataset, grid: Grid) -> npt.NDArray[np.intp]:
    """C-order flat index in a store's grid of every stored voxel."""
    mm = np.stack([ds[axis].values for axis in "xyz"], axis=1).astype(np.float64)
    inverse = np.linalg.inv(grid.matrix)
    ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
    return np.asarray(np.ravel_multi_index(tuple(ijk.T), grid.shape), dtype=np.intp)


def contiguous_runs(labels: xr.DataArray, codes: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """First and last-plus-one voxel of every label in sorted voxels.

    Parameters
    ----------
    labels
        (voxel,) labels, every one of `codes` in one run.
    codes
        (segment,) labels to look up; one that is absent gives an empty segment.

    Returns
    -------
    starts, stops
        (segment,) int64.

    Raises
    ------
    GeometryError
        When the voxels of a label are not contiguous.
    """
    return _chosen_runs(*_runs(labels), codes)


def _runs(labels: xr.DataArray) -> tuple[npt.NDArray[np.integer], Ints, Ints]:
    """Label, first and last-plus-one voxel of every run of equal labels."""
    values = np.asarray(labels.values)
    bounds = np.append(first_of_runs(values), values.size)
    return values[bounds[:-1]], bounds[:-1], bounds[1:]


def _chosen_runs(
    runs: npt.NDArray[np.integer], first: Ints, last: Ints, codes: npt.NDArray[np.integer]
) -> tuple[Ints, Ints]:
    """First and last-plus-one voxel of some labels, each of which has one run at most."""
    wanted = np.isin(runs, codes)
    if np.unique(runs[wanted]).size != np.count_nonzero(wanted):
        raise GeometryError(
            "Voxels are not sorted by parcel and node. Take the Dataset from open_store, and do "
            "not reorder its voxels."
        )
    starts = np.zeros(codes.size, dtype=np.int64)
    stops = np.zeros(codes.size, dtype=np.int64)
    position = {int(code): i for i, code in enumerate(codes)}
    for a, b, code in zip(first[wanted], last[wanted], runs[wanted], strict=True):
        starts[position[int(code)]], stops[position[int(code)]] = a, b
    return starts, stops


_NO_VOXELS = "Give a store of a finer grid, or correct the codes: AAL's are 1 to 116."


def locate(ds: xr.Dataset, regions: RegionSet | Atlas | None) -> Segments:
    """Find the voxels of regions in a store.

    Parameters
    ----------
    ds
        Store.
    regions
        A region set (unions of the store's parcels), an atlas of labels or of probability
        maps on any grid, or None for the store's parcels themselves.

    Returns
    -------
    Segments
        Every region has a voxel.

    Raises
    ------
    MissingVariableError
        When `ds` is not a store.
    GeometryError
        When a region has no voxel in the store, or its voxels are not sorted; when the atlas is
        in the space of one person's scan.
    LateralityError
        When a parcel lies in the other hemisphere than its region.
    ConfigError
        When `regions` is something else.

    Warns
    -----
    DataWarning
        When the store holds less than 40 % of the volume of a region of an atlas.
    """
    if regions is not None:
        check_regions(regions, RegionSet, Atlas)
    validate(ds, "parcel")
    if isinstance(regions, Atlas):
        grid = store_grid(ds)
        index = voxel_index(ds, grid)
        if regions.labels is not None:
            found = segments_of_labels(regions, regions.labels_on(grid).ravel()[index])
        else:
            maps = (regions.map_on(i, grid).ravel()[index] for i in range(len(regions.regions)))
            found = segments_of_maps(regions, maps)
        regions.check_in_template(found.size, grid)
    else:
        runs, first, last = _runs(ds["parcel"])
        codes = np.unique(runs[runs > 0]).astype(np.int32)
        starts, stops = _chosen_runs(runs, first, last, codes)
        if regions is None:
            member = np.eye(codes.size, dtype=bool)
            return Segments("parcel", codes, starts, stops, member, atlas="AAL")
        member = regions.membership(codes.tolist(), way_out=_NO_VOXELS)
        if "x" in ds:
            x = ds["x"].values
            centers = [float(x[a:b].mean()) for a, b in zip(starts, stops, strict=True)]
            regions.check_sides(dict(zip(codes.tolist(), centers, strict=True)))
        found = Segments(
            "region",
            regions.regions,
            starts,
            stops,
            member,
            atlas=regions.name,
            sha256=regions.sha256,
        )
    return found


def segments_of_labels(atlas: Atlas, labels: npt.NDArray[np.int32]) -> Segments:
    """Where the regions of an atlas lie in a row of its labels.

    Parameters
    ----------
    atlas
        Atlas of labels.
    labels
        (voxel,) labels.

    Returns
    -------
    Segments
        A segment a region, gathered.

    Raises
    ------
    TableError
        When there are too many regions.
    """
    n = len(atlas.regions)
    if n >= np.iinfo(np.uint16).max:
        raise TableError(f"Atlas '{atlas.name}': {n} regions, at most 65,534. Split it.")
    rank = np.argsort(atlas.codes)
    ascending = np.asarray(atlas.codes, dtype=np.int32)[rank]
    at = np.minimum(np.searchsorted(ascending, labels), n - 1)
    label = np.where(ascending[at] == labels, rank[at], n).astype(np.uint16)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(label, minlength=n + 1)[:n])])
    return Segments(
        "region",
        atlas.regions,
        bounds[:-1].astype(np.int64),
        bounds[1:].astype(np.int64),
        np.eye(n, dtype=bool),
        order=_members(label, n),
        label=label,
        atlas=atlas.name,
        sha256=atlas.sha256,
    )


def segments_of_maps(atlas: Atlas, maps: Iterable[npt.NDArray[np.float32]]) -> Segments:
    """Where the regions of an atlas lie in rows of their probabilities.

    Parameters
    ----------
    atlas
        Atlas of probability maps.
    maps
        (voxel,) probabilities of every region, in order.

    Returns
    -------
    Segments
        A segment a region with weights; segments may share voxels.
    """
    orders = []
    weights = []
    for row in maps:
        orders.append(np.flatnonzero(row).astype(np.uint32))
        weights.append(row[orders[-1]])
    bounds = np.concatenate([[0], np.cumsum([one.size for one in orders])]).astype(np.int64)
    return Segments(
        "region",
        atlas.regions,
        bounds[:-1],
        bounds[1:],
        np.eye(len(atlas.regions), dtype=bool),
        order=np.concatenate(orders),
        weights=np.concatenate(weights),
        atlas=atlas.name,
        sha256=atlas.sha256,
    )
