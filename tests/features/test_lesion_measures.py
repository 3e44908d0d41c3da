"""Pieces, center and distances of lesions, against SciPy on volumes."""

import numpy as np
import pytest
from scipy import ndimage

import scalebrain
from scalebrain.features.lesion_measures import TRACT_CORE
from tests.features.test_lesion import some_masks, with_masks


def test_lesion_measures__equal_scipy_on_volumes(ds):
    masks = some_masks(ds)
    masks[4] = np.linalg.norm(np.stack([ds.x + 40, ds.y + 10, ds.z - 60]), axis=0) < 9
    masks[5] = masks[4] | (np.linalg.norm(np.stack([ds.x - 30, ds.y, ds.z]), axis=0) < 7)
    given = with_masks(ds, masks)
    lazy = scalebrain.lesion_measures(given)
    assert lazy["lesion_components"].chunks
    found = lazy.compute()
    cores = scalebrain.unpack(
        ds["tract_probability"].assign_coords({a: ds[a] for a in "xyz"})
    ).values
    for subject in (0, 2, 3, 4, 5, 12):
        volume = scalebrain.unpack(given["lesion_mask"][subject])
        one = found.isel(subject=subject)
        n = ndimage.label(volume.values, structure=np.ones((3, 3, 3)))[1]
        assert one["lesion_components"] == n
        center = ndimage.center_of_mass(volume.values)
        mm = volume.attrs["affine"] @ [*center, 1]
        for axis, expected in zip("xyz", mm, strict=False):
            assert one[f"lesion_center_{axis}"].item() == pytest.approx(expected, abs=1e-6)
        points = np.argwhere(volume.values)
        for tract in range(2):
            core = np.argwhere(np.nan_to_num(cores[tract]) >= TRACT_CORE)
            far = np.linalg.norm((points[:, None] - core[None]) * 4.0, axis=-1).min()
            assert one["tract_distance"][tract].item() == pytest.approx(far, rel=1e-6)
    assert found["lesion_components"][4] == 1
    assert found["lesion_components"][5] == 2
    left, right = found["tract_distance"][4].values
    assert left < right


def test_lesion_measures__missing_and_empty_masks(ds):
    masks = some_masks(ds)
    given = with_masks(ds, masks)
    given["lesion_present"] = ("subject", np.arange(20) != 3)
    found = scalebrain.lesion_measures(given).compute()
    assert np.isnan(found["lesion_components"][3])
    assert np.isnan(found["tract_distance"][3]).all()
    assert found["lesion_components"][1] == 0
    assert np.isnan(found["lesion_center_x"][1])
    assert np.isnan(found["tract_distance"][1]).all()
    assert (found["tract_distance"][0] == 0).all()


def test_lesion_measures__of_the_phantom_lie_where_they_were_drawn(ds):
    found = scalebrain.lesion_measures(ds).compute()
    one = found.sel(subject="sub-016")
    assert one["lesion_components"] == 1
    for axis, expected in (("x", -35), ("y", -15), ("z", 30)):
        assert abs(one[f"lesion_center_{axis}"] - expected) < 2
    side = found["tract_distance"].sel(subject=["sub-016", "sub-017"]).values
    assert side[0, 0] < side[0, 1]
    assert side[1, 1] < side[1, 0]
