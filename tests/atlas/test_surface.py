"""Nodes on fsaverage5: nested levels, sides, parcels and weights."""

import numpy as np
import pytest

from scalebrain.atlas.regions import default_regions
from scalebrain.atlas.surface import LEVELS, cortex_points, nearest_labels, surface_nodes
from scalebrain.errors import ConfigError, ImageError
from scalebrain.io import fsaverage


@pytest.mark.parametrize("level", LEVELS)
def test_surface_nodes__are_a_part_of_an_icosphere(level):
    nodes = surface_nodes(level)
    n = nodes.parcel.size
    assert nodes.edges.min() >= 0
    assert nodes.edges.max() < n
    assert (nodes.edges[:, 0] < nodes.edges[:, 1]).all()
    assert len(np.unique(nodes.edges, axis=0)) == len(nodes.edges)
    assert np.bincount(nodes.edges.ravel(), minlength=n).max() == 6
    # an edge is about as long everywhere, and never leaves its side
    ends = nodes.centroid[nodes.edges]
    length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    assert length.max() < 5 * np.median(length)
    left = nodes.parcel % 2 == 1
    assert (left[nodes.edges[:, 0]] == left[nodes.edges[:, 1]]).all()
    assert nodes.centroid[left, 0].mean() < -25
    assert nodes.centroid[~left, 0].mean() > 25


@pytest.mark.parametrize("level", LEVELS)
def test_surface_nodes__weights_are_means_of_the_own_side(level):
    nodes = surface_nodes(level)
    np.testing.assert_allclose(nodes.pooling.sum(axis=1), 1)
    assert nodes.pooling.data.min() > 0
    left = np.asarray(nodes.pooling[:, : fsaverage.N_SIDE].sum(axis=1)).ravel()
    np.testing.assert_allclose(left, nodes.parcel % 2 == 1)
    # the mean of coordinates is near the node: 4 or 16 vertices around it
    points = np.concatenate([cortex_points("left"), cortex_points("right")])
    away = np.linalg.norm(nodes.pooling @ points - nodes.centroid, axis=1)
    assert np.median(away) < {3: 4, 4: 2, 5: 1e-9}[level]


def test_surface_nodes__level_4_weighs_a_vertex_and_half_of_each_neighbor():
    weights = surface_nodes(4).pooling
    counts = np.diff(weights.indptr)
    inner = np.flatnonzero(counts == 7)
    assert inner.size > 0.6 * counts.size  # the others lie at the border of their parcel
    first = np.sort(weights[[inner[0]]].data)
    np.testing.assert_allclose(first, [0.125] * 6 + [0.25])


@pytest.mark.parametrize("level", LEVELS)
def test_surface_nodes__are_of_their_own_parcel_alone(level):
    nodes, finest = surface_nodes(level), surface_nodes(5)
    parcel = np.zeros(2 * fsaverage.N_SIDE, dtype=np.int64)
    parcel[finest.pooling.indices] = finest.parcel
    of = np.repeat(nodes.parcel, np.diff(nodes.pooling.indptr))
    np.testing.assert_array_equal(parcel[nodes.pooling.indices], of)


def test_surface_nodes__every_region_has_nodes_in_its_parcels():
    parcel = surface_nodes(5).parcel
    members = {r: int(np.isin(parcel, c).sum()) for r, c in default_regions().parcels.items()}
    assert min(members.values()) > 300
    assert 18_000 < sum(members.values()) < 20_000


def test_surface_nodes__unknown_level():
    with pytest.raises(ConfigError, match="level 6: expected 3, 4 or 5"):
        surface_nodes(6)


def test_surface_nodes__mirror_is_the_other_side():
    mirror = surface_nodes(3).mirror
    points = np.concatenate([cortex_points("left"), cortex_points("right")])
    assert (mirror[: fsaverage.N_SIDE] >= fsaverage.N_SIDE).all()
    assert (mirror[fsaverage.N_SIDE :] < fsaverage.N_SIDE).all()
    away = np.linalg.norm(points[mirror] * [-1, 1, 1] - points, axis=1)
    assert np.median(away) < 2.5


def test_nearest_labels__stays_on_its_side_and_in_reach():
    left, right = cortex_points("left"), cortex_points("right")
    mm = np.concatenate([left[:5], right[:5] + np.array([0, 0, 3.0])])
    labels = np.repeat([7, 8], 5)
    found = nearest_labels(mm, labels, "left")
    assert (found[:5] == 7).all()
    assert set(np.unique(found)) == {0, 7}
    assert (nearest_labels(mm, labels, "right", reach=2.0)[:5] != 7).all()


def test_cortex_points__lie_between_the_surfaces_in_mni152():
    white, pial = (cortex_points("left", depth) for depth in (0.0, 1.0))
    np.testing.assert_allclose(cortex_points("left"), (white + pial) / 2)
    raw, _ = fsaverage.read_mesh("white", "left")
    shift = np.linalg.norm(white - raw, axis=1)
    assert 0.5 < shift.mean() < 4  # MNI305 is near MNI152, and is not the same


def test_read_mesh__on_the_wrong_side(monkeypatch):
    read = fsaverage._read
    monkeypatch.setattr(fsaverage, "_read", lambda name: read(name.replace("left", "right")))
    with pytest.raises(ImageError, match="lies on the other side"):
        fsaverage.read_mesh("pial", "left")
