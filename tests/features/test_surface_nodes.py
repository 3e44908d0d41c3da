"""Features of surface nodes: weighted means, lesions projected to the cortex, policies."""

import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import template_grid
from scalebrain.atlas.surface import cortex_points, is_cortex, surface_nodes
from scalebrain.errors import ConfigError, MissingVariableError
from scalebrain.features.surface_nodes import NODES, _Pool, _pooled, check_nodes, surface_level
from scalebrain.ingestion.geometry import static_variables, vertex_variables

N = 20484


@pytest.fixture(scope="module")
def cohort() -> xr.Dataset:
    """Three people: healthy, with a lesion of the left hand knob, with a missing vertex."""
    rng = np.random.default_rng(0)
    static = static_variables(template_grid(4.0)).drop_dims(["node", "edge"])
    mm = np.stack([static[a].values for a in "xyz"], axis=1)
    lesion = np.zeros((3, len(mm)), dtype=bool)
    lesion[1] = np.linalg.norm(mm - [-40, -20, 52], axis=1) < 18
    thickness = rng.normal(2.5, 0.3, (3, N)).astype(np.float32)
    thickness[2, 100] = np.nan
    ds = static.assign(
        thickness=(("subject", "vertex"), thickness),
        wg_contrast=(("subject", "vertex"), rng.normal(20, 3, (3, N)).astype(np.float32)),
        lesion_mask=(("subject", "voxel"), lesion),
    )
    return ds.assign_coords(subject=list("abc")).merge(vertex_variables())


def side_of(ds: xr.Dataset) -> np.ndarray:
    return np.where(ds["node_parcel"].values % 2 == 1, "L", "R")


@pytest.mark.parametrize("level", [3, 4, 5])
def test_surface_features__are_weighted_means(cohort, level):
    out = scalebrain.surface_features(cohort, level=level, policy="as_is")
    weights = surface_nodes(level).pooling.toarray() if level == 3 else surface_nodes(level).pooling
    x = np.stack([cohort["thickness"].values, cohort["wg_contrast"].values], axis=-1)
    for s in (0, 1):
        expected = weights @ x[s]
        np.testing.assert_allclose(out["node_features"][s], expected, rtol=2e-6)
    assert out["node_features"].dims == ("subject", "node", "feature")
    assert list(out["feature"].values) == ["thickness", "wg_contrast"]
    assert out["node_features"].attrs["nodes"] == f"surface-{level}"


def test_surface_features__a_missing_vertex_leaves_the_others_of_its_node(cohort):
    nodes = surface_nodes(3)
    weights = nodes.pooling.toarray()
    hit = np.flatnonzero(weights[:, 100] > 0)
    assert hit.size
    out = scalebrain.surface_features(cohort, level=3)["node_features"][2, hit, 0]
    own = weights[hit].copy()
    own[:, 100] = 0
    own /= own.sum(axis=1, keepdims=True)
    expected = own @ np.nan_to_num(cohort["thickness"].values[2])
    np.testing.assert_allclose(out, expected, rtol=2e-6)
    fine = scalebrain.surface_features(cohort, level=5)
    at = np.flatnonzero(surface_nodes(5).pooling.indices == 100)
    assert np.isnan(fine["node_features"][2, at]).all()


def test_surface_features__a_lesion_lies_on_its_side_and_hides_its_nodes(cohort):
    out = scalebrain.surface_features(cohort, level=4)
    hit = out["node_lesioned_fraction"].values
    assert hit[[0, 2]].max() == 0
    near = np.linalg.norm(surface_nodes(4).centroid - [-40, -20, 52], axis=1)
    assert hit[1, near < 8].min() > 0.9
    assert hit[1, near > 30].max() == 0
    assert hit[1, side_of(out) == "R"].max() == 0
    missing = np.isnan(out["node_features"].values).all(axis=-1)
    assert missing[1, near < 8].all()
    np.testing.assert_array_equal(missing[1], hit_vertices(cohort, 4) > 0.5)
    healthy = scalebrain.surface_features(cohort, level=4, policy="as_is")["node_features"]
    far = near > 30
    np.testing.assert_array_equal(out["node_features"][:, far], healthy[:, far])
    assert np.isfinite(healthy[1]).all()


def hit_vertices(ds: xr.Dataset, level: int) -> np.ndarray:
    """Weighted fraction of lesioned vertices of every node of the second person, by a tree."""
    from scipy.spatial import cKDTree

    mm = np.stack([ds[a].values for a in "xyz"], axis=1)
    tree, lesion = cKDTree(mm), ds["lesion_mask"].values[1]
    hits = []
    for depth in (0.1, 0.3, 0.5, 0.7, 0.9):
        points = np.concatenate([cortex_points("left", depth), cortex_points("right", depth)])
        distance, nearest = tree.query(points)
        stored = distance < 4.0 * np.sqrt(3) / 2 + 1e-3
        hits.append(np.where(stored, lesion[nearest], np.nan))
    with np.errstate(invalid="ignore"):
        fraction = np.nanmean(np.stack(hits), axis=0)
    return surface_nodes(level).pooling @ (np.nan_to_num(fraction) > 0.5)


def test_surface_features__enantiomorphic_takes_the_other_side(cohort):
    ds = cohort.copy(deep=True)
    ds["thickness"].values[1] = np.where(np.arange(N) < N // 2, 1.0, 4.0)
    out = scalebrain.surface_features(ds, level=5, policy="enantiomorphic")
    hit = out["node_lesioned_fraction"].values[1] > 0.5
    assert hit.any()
    np.testing.assert_array_equal(out["node_features"].values[1, hit, 0], 4.0)
    left = side_of(out) == "L"
    np.testing.assert_array_equal(out["node_features"].values[1, left & ~hit, 0], 1.0)


def test_surface_features__lazy_blocks_give_the_same(cohort):
    chunked = cohort.chunk(subject=1)
    lazy = scalebrain.surface_features(chunked, level=3)
    assert lazy["node_features"].chunks
    xr.testing.assert_identical(lazy.compute(), scalebrain.surface_features(cohort, level=3))


def test_surface_features__without_lesion_masks_or_voxels(cohort):
    alone = cohort[["thickness", "wg_contrast"]]
    out = scalebrain.surface_features(alone, level=3)
    assert (out["node_lesioned_fraction"] == 0).all()
    with pytest.raises(MissingVariableError, match="Ingest FreeSurfer results"):
        scalebrain.surface_features(cohort.drop_vars("wg_contrast"), level=3)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_surface_features__a_mask_that_is_not_bool_is_one_error(cohort, dtype):
    given = cohort.assign(lesion_mask=cohort["lesion_mask"].astype(dtype))
    with pytest.raises(MissingVariableError, match="Make it bool"):
        scalebrain.surface_features(given, level=3)


def test_check_nodes__names_the_known_ones():
    assert [surface_level(name) for name in NODES] == [None, 3, 4, 5]
    with pytest.raises(ConfigError, match="'surface-7': expected one of volume, surface-3"):
        check_nodes("surface-7")


def test_surface_features__enantiomorphic_takes_nothing_from_the_medial_wall():
    parts, cortex = surface_nodes(5), is_cortex()
    own = parts.pooling.indices
    opposite = ~cortex[parts.mirror[own]]
    assert opposite.any()
    x = np.where(cortex, 2.5, 0).astype(np.float32)[None]
    lesioned = np.zeros_like(x)
    lesioned[0, own[opposite]] = 1
    found = _pooled(x, 8 * x, lesioned, pool=_Pool(5, "enantiomorphic"))
    at = np.flatnonzero(opposite)
    assert np.isnan(found[0, at, :2]).all()
    assert np.nanmin(found[0, :, 0]) == 2.5
    assert (found[0, at, 2] == 1).all()
