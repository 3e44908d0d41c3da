"""Lesion policies: what becomes of images and features under each."""

import pickle

import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import template_grid
from scalebrain.errors import ConfigError, GeometryError
from scalebrain.features.lesion_policy import POLICIES, mirror_of
from scalebrain.graph.model import features_of
from tests.features.test_lesion import with_masks


def symmetric(ds: xr.Dataset) -> xr.Dataset:
    """Images that are the same left and right, on the store's voxels."""
    x, y, z = (ds[a].values.astype(float) for a in "xyz")
    rng = np.random.default_rng(0)
    scale = rng.uniform(800, 1200, ds.sizes["subject"])
    pattern = 1 + 0.2 * np.cos(np.abs(x) / 9) + 0.1 * np.sin(y / 7) + 0.1 * np.cos(z / 5)
    gm = 0.5 + 0.3 * np.sin(np.abs(x) / 11 + y / 13)
    return ds.assign(
        t1w=(("subject", "voxel"), (scale[:, None] * pattern).astype(np.float32)),
        gm=(("subject", "voxel"), np.tile(gm.astype(np.float32), (ds.sizes["subject"], 1))),
    )


def ball(ds: xr.Dataset, center: tuple[float, float, float], radius: float) -> np.ndarray:
    mm = np.stack([ds[a].values for a in "xyz"], axis=1)
    return np.linalg.norm(mm - center, axis=1) < radius


def masks_of(ds: xr.Dataset) -> np.ndarray:
    """One side, the other side, both sides with an overlap, everything, nothing."""
    masks = np.zeros((ds.sizes["subject"], ds.sizes["voxel"]), dtype=bool)
    masks[0] = ball(ds, (-40, -10, 20), 18)
    masks[1] = ball(ds, (36, 10, 10), 14)
    masks[2] = ball(ds, (-40, -10, 20), 18) | ball(ds, (40, -10, 20), 9)
    masks[3] = True
    return masks


def test_mirror_of__is_its_own_inverse_on_a_symmetric_grid(ds):
    mirror = mirror_of(ds)
    assert mirror.weight == 0
    there = np.flatnonzero(mirror.nearer >= 0)
    assert there.size > 0.98 * ds.sizes["voxel"]
    np.testing.assert_array_equal(mirror.nearer[mirror.nearer[there]], there)
    np.testing.assert_array_equal(ds["x"].values[mirror.nearer[there]], -ds["x"].values[there])
    for axis in "yz":
        values = ds[axis].values
        np.testing.assert_array_equal(values[mirror.nearer[there]], values[there])
    again = pickle.loads(pickle.dumps(mirror))
    np.testing.assert_array_equal(again.nearer, mirror.nearer)


def lattice(matrix: np.ndarray, shape: tuple[int, int, int]) -> xr.Dataset:
    """Every voxel of a grid, as a store would have them."""
    ijk = np.indices(shape).reshape(3, -1)
    mm = matrix[:3, :3] @ ijk + matrix[:3, 3:]
    attrs = {"affine": matrix.tolist(), "shape": list(shape)}
    coords = {a: ("voxel", mm[i].astype(np.float32), attrs) for i, a in enumerate("xyz")}
    return xr.Dataset(coords=coords)


@pytest.mark.parametrize(("step", "origin"), [(3.0, None), (2.0, -96.5), (2.0, -95.0)])
def test_mirror_of__between_two_voxels_is_linear(step: float, origin: float | None):
    grid = template_grid(step)
    matrix = grid.matrix.copy()
    if origin is not None:  # of MNI152NLin2009cAsym at 2 mm: a half of a voxel
        matrix[0, 3] = origin
    ds = lattice(matrix, grid.shape)
    x = ds["x"].values.astype(float)
    rng = np.random.default_rng(0)
    mask = rng.random((1, x.size)) < 0.01
    ds = ds.assign(
        t1w=(("subject", "voxel"), (500 + 2 * x)[None].astype(np.float32)),
        lesion_mask=(("subject", "voxel"), mask),
    )
    found = scalebrain.enantiomorphic(ds)["t1w"].values[0]
    filled = mask[0] & ~np.isnan(found)
    assert filled.sum() > 0.8 * mask.sum()
    # a linear image has at the mirrored place the value of -x, wherever that falls
    np.testing.assert_allclose(found[filled], (500 - 2 * x)[filled], rtol=1e-5)
    np.testing.assert_array_equal(found[~mask[0]], ds["t1w"].values[0, ~mask[0]])


def test_mirror_of__needs_axes_of_the_space():
    matrix = template_grid(4.0).matrix
    matrix[0, 1] = 0.5
    with pytest.raises(GeometryError, match="oblique"):
        mirror_of(lattice(matrix, (5, 6, 7)))


def test_enantiomorphic__takes_the_mirrored_voxel(ds):
    given = with_masks(ds, masks_of(ds))
    lazy = scalebrain.enantiomorphic(given)
    assert lazy["t1w"].chunks
    found = lazy.compute()
    nearer = mirror_of(ds).nearer
    for subject in range(5):
        mask = given["lesion_mask"].values[subject]
        for name in ("t1w", "gm"):
            row, new = given[name].values[subject], found[name].values[subject]
            np.testing.assert_array_equal(new[~mask], row[~mask])
            can = mask & (nearer >= 0) & ~mask[nearer]
            np.testing.assert_array_equal(new[can], row[nearer[can]])
            assert np.isnan(new[mask & ~can]).all()
        expected = can.sum() / mask.sum() if mask.any() else 1.0
        assert found["lesion_filled_fraction"][subject].item() == pytest.approx(expected)
    assert found["lesion_filled_fraction"][3] == 0
    xr.testing.assert_equal(found["lesion_mask"], given["lesion_mask"].compute())


def test_mask_lesions__are_missing_and_nothing_else(ds):
    given = with_masks(ds, masks_of(ds))
    found = scalebrain.mask_lesions(given)["t1w"].values
    mask = given["lesion_mask"].values
    assert np.isnan(found[mask]).all()
    np.testing.assert_array_equal(found[~mask], ds["t1w"].values[~mask])
    whole = scalebrain.parcellate(scalebrain.mask_lesions(given), statistics=("count",)).compute()
    parcel = ds["parcel"].values
    assert whole["t1w_count"].sel(parcel=1)[0].item() == (~mask[0] & (parcel == 1)).sum()


def test_node_features__enantiomorphic_restores_a_symmetric_brain(ds):
    intact = symmetric(ds)
    given = with_masks(intact, masks_of(ds))
    whole = scalebrain.node_features(intact, policy="as_is")["node_features"].values
    found = scalebrain.node_features(given, policy="enantiomorphic").compute()
    lesioned = found["node_lesioned_fraction"].values
    for subject in (0, 1):
        assert (lesioned[subject] > 0.9).any()
        np.testing.assert_allclose(
            found["node_features"].values[subject], whole[subject], rtol=2e-5, atol=1e-7
        )
    assert np.isnan(found["node_features"].values[3]).all()
    masked = scalebrain.node_features(given)["node_features"].values
    assert np.isnan(masked[0]).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_node_features__without_a_lesion_all_policies_are_one(ds, policy):
    plain = scalebrain.node_features(ds.drop_vars("lesion_mask"), policy=policy)
    found = scalebrain.node_features(ds, policy=policy).compute()
    np.testing.assert_array_equal(found["node_features"][:16], plain["node_features"][:16])
    assert found["node_features"].attrs["lesion_policy"] == policy
    assert (found["node_lesioned_fraction"][:16] == 0).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_node_features__policies_do_not_depend_on_chunks(ds, policy):
    given = with_masks(ds, masks_of(ds))
    one = scalebrain.node_features(given.chunk(subject=1), policy=policy).compute()
    all_at_once = scalebrain.node_features(given.compute(), policy=policy)
    xr.testing.assert_identical(one, all_at_once)


def test_node_features__policies_compose_from_functions(ds):
    given = with_masks(ds, masks_of(ds))
    for policy, treated in (
        ("mask_nodes", scalebrain.mask_lesions(given)),
        ("enantiomorphic", scalebrain.enantiomorphic(given)),
    ):
        named = scalebrain.node_features(given, policy=policy)["node_features"].compute()
        if policy == "mask_nodes":
            with pytest.raises(ConfigError, match=r"taken out already .* policy='mask_nodes'"):
                scalebrain.node_features(treated, policy="as_is")
            treated = treated.assign(t1w=treated["t1w"].drop_attrs())  # of any origin
        composed = scalebrain.node_features(treated, policy="as_is")["node_features"].compute()
        both = ~np.isnan(named) & ~np.isnan(composed)
        assert both.mean() > 0.7
        np.testing.assert_allclose(
            named.values[both.values], composed.values[both.values], rtol=1e-6
        )
        # as_is has no limit of how much of a node may be gone
        assert not (np.isnan(composed) & ~np.isnan(named)).any()


def test_node_features__of_treated_images_are_those_of_the_policy(ds):
    given = with_masks(ds, masks_of(ds))
    known = given.assign(scalebrain.node_features(given).data_vars)
    for policy, treated in (
        ("mask_nodes", scalebrain.mask_lesions(known)),
        ("enantiomorphic", scalebrain.enantiomorphic(known)),
    ):
        assert "node_features" not in treated  # of the images before
        named = scalebrain.node_features(given, policy=policy).compute()
        xr.testing.assert_identical(
            scalebrain.node_features(treated, policy=policy).compute(), named
        )
        again = features_of(treated)["node_features"]  # as for brain_age
        np.testing.assert_array_equal(again, named["node_features"])
        assert again.attrs["lesion_policy"] == policy
    for other in ("mask_nodes", "exclude_region"):
        with pytest.raises(ConfigError, match=f"'{other}' .* Give policy='enantiomorphic'"):
            scalebrain.node_features(treated, policy=other)


def test_mask_lesions__leaves_features_of_a_surface(ds):
    attrs = {"nodes": "surface-4"}
    features = xr.DataArray(np.zeros((ds.sizes["subject"], 2)), dims=("subject", "n"), attrs=attrs)
    assert "node_features" in scalebrain.mask_lesions(ds.assign(node_features=features))


def test_node_features__exclude_region_has_the_features_of_mask_nodes(ds):
    given = with_masks(ds, masks_of(ds))
    one = scalebrain.node_features(given, policy="exclude_region").compute()
    other = scalebrain.node_features(given).compute()
    xr.testing.assert_equal(one, other)


def test_node_features__an_unknown_policy_is_refused(ds):
    with pytest.raises(ConfigError, match="'heal': expected one of mask_nodes"):
        scalebrain.node_features(ds, policy="heal")


def test_enantiomorphic__nothing_was_filled_without_a_mask(ds):
    present = np.arange(ds.sizes["subject"]) != 4
    given = with_masks(ds, masks_of(ds)).assign(lesion_present=("subject", present))
    found = scalebrain.enantiomorphic(given)["lesion_filled_fraction"].values
    assert np.isnan(found[4])
    assert np.isfinite(found[present]).all()
