import numpy as np
import pytest

from scalebrain.atlas.parcels import check_laterality, nodes, parcel_image
from scalebrain.atlas.regions import default_regions
from scalebrain.atlas.space import Grid, brain_mask, template_grid
from scalebrain.atlas.tracts import cst_probability
from scalebrain.errors import LateralityError


def test_template_grid__at_1_mm_is_the_template():
    grid = template_grid(1.0)
    assert grid.shape == (197, 233, 189)
    mask = brain_mask(grid)
    np.testing.assert_array_equal(mask, mask[::-1])


def test_parcel_image__left_is_left_and_offset_fits():
    grid = template_grid(1.0)
    parcels = parcel_image(grid)
    inside = np.flatnonzero((parcels > 0) & (parcels <= 90))
    x = grid.coordinates(inside)[:, 0]
    odd = parcels.ravel()[inside] % 2 == 1
    assert x[odd].mean() < -25 < 25 < x[~odd].mean()
    # the labels lie in the brain, and the plane between the hemispheres is the midline
    assert brain_mask(grid).ravel()[inside].mean() > 0.97
    left = np.where((parcels % 2 == 1) & (parcels > 0) & (parcels <= 90), 1, 0)
    right = np.where((parcels % 2 == 0) & (parcels > 0) & (parcels <= 90), 1, 0)
    index = np.arange(grid.shape[0])[:, None, None]
    last = np.where(left, index, -1).max(axis=0)
    first = np.where(right, index, 999).min(axis=0)
    close = (last > 0) & (first < 999) & (first - last <= 8)
    assert abs(np.median((first + last)[close] / 2) + grid.matrix[0, 3]) <= 0.5


def test_check_laterality__refuses_a_flipped_atlas():
    grid = template_grid(2.0)
    with pytest.raises(LateralityError, match="flipped"):
        check_laterality(np.ascontiguousarray(parcel_image(grid)[::-1]), grid)


def test_parcel_image__follows_the_affine_of_a_flipped_grid():
    grid = template_grid(3.0)
    matrix = grid.matrix
    matrix[0] = [-3, 0, 0, matrix[0, 3] + 3 * (grid.shape[0] - 1)]
    flipped = Grid.from_matrix(grid.shape, matrix)
    np.testing.assert_array_equal(parcel_image(flipped), parcel_image(grid)[::-1])


def test_nodes__every_region_has_30_to_80_of_similar_size():
    found = nodes()
    member = default_regions().membership(found.parcel.tolist())
    assert member.sum(axis=0).min() >= 30
    assert member.sum(axis=0).max() <= 80
    size = np.bincount(found.label[found.label >= 0], minlength=len(found.parcel))
    for region in member.T:
        assert size[region].max() < 4 * np.median(size[region])
        assert size[region].min() > np.median(size[region]) / 4
    assert (np.diff(found.parcel) >= 0).all()
    assert (found.edges[:, 0] < found.edges[:, 1]).all()


def test_cst_probability__sides_and_range():
    grid = template_grid(2.0)
    tracts = cst_probability(grid)
    for tract, sign in (("CST_L", -1), ("CST_R", 1)):
        x = grid.coordinates(np.flatnonzero(tracts[tract] > 0.3))[:, 0]
        assert (np.sign(x) == sign).mean() > 0.95
        assert tracts[tract].min() >= 0
        assert 0.9 < tracts[tract].max() <= 1
