import dataclasses

import numpy as np
import pytest

from scalebrain.atlas.parcels import nodes
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.atlas.registry import load_atlas
from scalebrain.errors import ConfigError, GeometryError, LateralityError
from scalebrain.graph.build import build_graph


def test_build_graph__members_are_the_nodes_of_the_parcels(references):
    graph = build_graph(references)
    parcels = default_regions().parcels
    assert graph.regions == tuple(parcels)
    for region, members in zip(graph.regions, graph.members, strict=True):
        assert set(references["node_parcel"].values[members]) == set(parcels[region])


def test_build_graph__node_of_two_regions_appears_twice(references):
    graph = build_graph(references)
    angular = np.isin(references["node_parcel"].values[graph.rows], (65, 66))
    assert angular.any()
    _, counts = np.unique(graph.rows[angular], return_counts=True)
    assert (counts == 2).all()


def test_build_graph__edges_are_the_induced_ones_and_never_join_regions(references):
    graph = build_graph(references)
    a, b = graph.row_edges
    assert (graph.region_of_row[a] == graph.region_of_row[b]).all()
    pairs = [set(m.tolist()) for m in graph.members]
    expected = sum(2 * (int(s) in m and int(t) in m) for s, t in graph.edges for m in pairs)
    assert len(a) == expected
    known = {frozenset(e) for e in graph.edges.tolist()}
    assert {frozenset(e) for e in graph.rows[graph.row_edges].T.tolist()} <= known


def test_build_graph__region_without_nodes_is_named(references):
    regions = RegionSet("mine", {"A_L": (1,), "A_R": (2,), "B_L": (77,), "B_R": (78,)})
    with pytest.raises(GeometryError, match=r"not there: B_L: 77; B_R: 78\. .* lesion_load"):
        build_graph(references, regions=regions)


def test_build_graph__region_loses_no_parcel_without_a_word(references):
    regions = RegionSet("mine", {"A_L": (1, 73, 61), "A_R": (2,)})
    with pytest.raises(GeometryError, match=r"not there: A_L: 73, 61\. "):
        build_graph(references, regions=regions)


def test_build_graph__exchanged_sides_are_refused(references):
    placed = references.assign(node_x=("node", nodes().centroid[:, 0]))
    with pytest.raises(LateralityError, match=r"parcel 2 at x = .* in A_L"):
        build_graph(placed, regions=RegionSet("mine", {"A_L": (2,), "A_R": (1,)}))


def test_build_graph__needs_a_region_set(references):
    for regions, says in ((load_atlas("aal"), r"a Atlas.*RegionSet"), ("aal", "'aal'.*load_atlas")):
        with pytest.raises(ConfigError, match=says):
            build_graph(references, regions=regions)


def test_fingerprint__follows_edges_and_regions(references):
    graph = build_graph(references)
    assert build_graph(references).fingerprint == graph.fingerprint
    fewer = dataclasses.replace(graph, edges=graph.edges[1:])
    renamed = dataclasses.replace(graph, regions=(*graph.regions[:-1], "ZZZ_R"))
    assert len({graph.fingerprint, fewer.fingerprint, renamed.fingerprint}) == 3
