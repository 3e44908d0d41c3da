"""The graph as data: nodes, edges and the regions that they belong to."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.errors import GeometryError
from scalebrain.variables import validate

__all__ = ["Graph", "build_graph"]

Ints = npt.NDArray[np.int64]


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
        When a region has no node.
    """
    validate(ds, "node_parcel", "edge_source", "edge_target")
    regions = regions if regions is not None else default_regions()
    member = regions.membership(ds["node_parcel"].values.tolist())
    empty = [r for r, n in zip(regions.regions, member.sum(axis=0), strict=True) if n == 0]
    if empty:
        raise GeometryError(f"Region set '{regions.name}': no node in {', '.join(empty)}.")
    edges = np.stack([ds["edge_source"].values, ds["edge_target"].values], axis=1)
    return Graph(
        ds.sizes["node"],
        edges.astype(np.int64),
        ds["node_parcel"].values.astype(np.int64),
        regions.regions,
        tuple(np.flatnonzero(column).astype(np.int64) for column in member.T),
    )
