"""Resampling along affines, and the grids of the template."""

import numpy as np
import pytest

from scalebrain.atlas.space import Grid, resample, template_grid
from scalebrain.errors import GeometryError


@pytest.mark.parametrize("order", [0, 1])
def test_resample__faces_of_an_image_are_as_if_there_were_zeros_around(order):
    rng = np.random.default_rng(0)
    tight = rng.uniform(1, 2, (5, 4, 6)).astype(np.float32)
    matrix = np.diag([3.0, 3, 3, 1])
    around = matrix.copy()
    around[:3, 3] = -6
    padded = np.pad(tight, 2)
    target = np.diag([1.0, 1.1, 0.9, 1])
    target[:3, 3] = [-4.2, -4.1, -4.3]
    grid = Grid.from_matrix((24, 20, 28), target)
    found = resample(tight, Grid.from_matrix(tight.shape, matrix), grid, order=order)
    expected = resample(padded, Grid.from_matrix(padded.shape, around), grid, order=order)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("resolution", [0.5, 10.5, np.inf, np.nan])
def test_template_grid__refuses_what_is_no_resolution(resolution):
    with pytest.raises(GeometryError, match="Use 1 to 10 mm"):
        template_grid(resolution)
