"""The graph as data: nodes, edges and the regions that they belong to."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import RegionSet, check_regions, default_regions
from scalebrain.variables import validate

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Graph", "build_graph"]

Ints = npt.NDArray[np.int64]

_NO_NODES = (
    "Only parcels of the set networks-9x2 have nodes, and so brain ages: not the nuclei, parcels "
    "61 and 62, and the cerebellum. Leave them out here; lesion_load and parcellate take them."
)


@dataclass(frozen=True)
class Graph:
    """Nodes, edges and regions; a node may belong to several regions.

    Parameters
    ----------
    n_nodes
        Number of nodes.
    edges
        (edge, 2) node positions of undirected edges, each once.
    parcels
        (node,) parcel code of every node.
    regions
        Names of the regions.
    members
        Node positions of every region, ascending.
    """

    n_nodes: int
    edges: Ints
    parcels: Ints
    regions: tuple[str, ...]
    members: tuple[Ints, ...]

    @cached_property
    def rows(self) -> Ints:
        """Node of every row of the disjoint union of the regions' induced subgraphs."""
        return np.concatenate(self.members)

    @cached_property
    def region_of_row(self) -> Ints:
        """Region of every row of the disjoint union."""
        return np.repeat(np.arange(len(self.regions)), [len(m) for m in self.members])

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First and last-plus-one row of every region."""
        ends = np.cumsum([len(m) for m in self.members]).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def row_edges(self) -> Ints:
        """Edges of the disjoint union, (2, edge), both directions; none leaves its region."""
        start, parts = 0, []
        for members in self.members:
            position = np.full(self.n_nodes, -1, dtype=np.int64)
            position[members] = np.arange(start, start + len(members))
            inside = position[self.edges]
            parts.append(inside[(inside >= 0).all(axis=1)])
            start += len(members)
        one_way = np.concatenate(parts)
        both = np.concatenate([one_way, one_way[:, ::-1]])
        return np.ascontiguousarray(both[np.lexsort((both[:, 1], both[:, 0]))].T)

    @cached_property
    def pairs(self) -> Ints:
        """Pooled row of every row: neighbors two by two, a row without a free one alone."""
        neighbors: dict[int, list[int]] = {}
        for a, b in self.row_edges.T.tolist():
            neighbors.setdefault(a, []).append(b)
        pooled = np.full(len(self.rows), -1, dtype=np.int64)
        n = 0
        for row in range(len(self.rows)):
            if pooled[row] < 0:
                free = [other for other in neighbors.get(row, []) if pooled[other] < 0]
                pooled[[row, *free[:1]]] = n
                n += 1
        return pooled

    def patch(self, region: int, seed: int, n_nodes: int) -> Ints:
        """Find connected nodes of a region.

        Parameters
        ----------
        region
            Position of the region.
        seed
            Node to begin with, by its position in the region.
        n_nodes
            How many nodes.

        Returns
        -------
        ndarray
            Positions in the region of the nearest nodes in steps along edges; where no more
            are connected, of the first others.
        """
        from scipy.sparse.csgraph import breadth_first_order

        matrix = self._subgraphs[region]
        near = breadth_first_order(matrix, seed, directed=False, return_predecessors=False)
        if near.size < n_nodes:
            near = np.append(near, np.setdiff1d(np.arange(matrix.shape[0]), near))
        return np.asarray(near[:n_nodes], dtype=np.int64)

    @cached_property
    def _subgraphs(self) -> "list[csr_array]":
        """Adjacency of every region."""
        from scipy.sparse import csr_array

        n = len(self.rows)
        ones = np.ones(self.row_edges.shape[1], dtype=np.int8)
        whole = csr_array((ones, (self.row_edges[0], self.row_edges[1])), shape=(n, n))
        return [whole[a:b, a:b] for a, b in self.bounds]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the network's weights refer to."""
        digest = hashlib.sha256(json.dumps([self.n_nodes, list(self.regions)]).encode())
        for array in (self.edges, self.parcels):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        for members in self.members:
            digest.update(np.ascontiguousarray(members, dtype=np.int64).tobytes())
        return digest.hexdigest()


def build_graph(ds: xr.Dataset, *, regions: RegionSet | None = None) -> Graph:
    """Build the graph of a store.

    Parameters
    ----------
    ds
        Store with ``node_parcel (node)``, ``edge_source (edge)`` and ``edge_target (edge)``.
    regions
        Regions; the default 18 subregions when None.

    Returns
    -------
    Graph
        Graph with the nodes of each region.

    Raises
    ------
    GeometryError
        When a region has a parcel without nodes.
    LateralityError
        When a parcel lies in the other hemisphere than its region.
    ConfigError
        When `regions` is no region set.
    """
    regions = regions if regions is not None else default_regions()
    check_regions(regions, RegionSet)
    validate(ds, "node_parcel", "edge_source", "edge_target")
    parcels = ds["node_parcel"].values
    member = regions.membership(parcels.tolist(), way_out=_NO_NODES)
    if "node_x" in ds:
        x = ds["node_x"].values
        regions.check_sides({int(c): float(x[parcels == c].mean()) for c in np.unique(parcels)})
    edges = np.stack([ds["edge_source"].values, ds["edge_target"].values], axis=1)
    return Graph(
        ds.sizes["node"],
        edges.astype(np.int64),
        ds["node_parcel"].values.astype(np.int64),
        regions.regions,
        tuple(np.flatnonzero(column).astype(np.int64) for column in member.T),
    )
