"""Vectors become volumes and surfaces with left on the left."""

import numpy as np
import pytest
import xarray as xr

from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.report.surface import vertex_parcels
from scalebrain.report.volume import background_vector, overlay_slice, to_volume
from tests.report.conftest import Study


def cube(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[xr.Dataset, np.ndarray]:
    """Every second voxel of a grid, in a scrambled order, and the whole array of values."""
    full = np.arange(np.prod(shape), dtype=float).reshape(shape)
    ijk = np.argwhere(full % 2 == 0)[np.random.default_rng(0).permutation(int(full.size / 2))]
    mm = ijk @ affine[:3, :3].T + affine[:3, 3]
    ds = xr.Dataset(
        coords={axis: ("voxel", mm[:, i].astype("f4")) for i, axis in enumerate("xyz")},
        attrs={"affine": affine.ravel().tolist(), "shape": list(shape)},
    )
    return ds.assign_coords(value=("voxel", full[tuple(ijk.T)])), full


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_to_volume__puts_every_value_at_its_coordinate(signs: tuple[int, int, int]):
    affine = np.diag([2.0 * signs[0], 2.0 * signs[1], 3.0 * signs[2], 1.0])
    affine[:3, 3] = (-7, 4, 11)
    ds, full = cube(affine, (4, 6, 5))
    volume = to_volume(ds, ds["value"].values)
    assert all((np.diff(axis) > 0).all() for axis in volume.axes)
    assert np.isfinite(volume.data).sum() == full.size / 2
    for x, y, z, value in zip(*(ds[n].values for n in ("x", "y", "z", "value")), strict=True):
        at = tuple(
            int(np.argmin(abs(axis - v))) for axis, v in zip(volume.axes, (x, y, z), strict=True)
        )
        assert volume.data[at] == value


def test_to_volume__refuses_what_it_cannot_place():
    ds, _ = cube(np.diag([2.0, 2.0, 2.0, 1.0]), (4, 6, 5))
    tilted = np.diag([2.0, 2.0, 2.0, 1.0])
    tilted[0, 1] = 0.3
    with pytest.raises(GeometryError, match="oblique"):
        to_volume(ds.assign_attrs(affine=tilted.ravel().tolist()), ds["value"].values)
    with pytest.raises(GeometryError, match="outside the grid"):
        to_volume(ds.assign_attrs(shape=[4, 6, 4]), ds["value"].values)
    bare = ds.drop_vars("z")
    del bare.attrs["shape"]
    with pytest.raises(MissingVariableError, match="z, shape missing"):
        to_volume(bare, ds["value"].values)


def test_plane__keeps_left_on_the_left_and_front_up(study: Study):
    left = np.where(study.ds["x"].values < 0, 1.0, 0.0)
    plane = to_volume(study.ds, left).plane(2, 9.0)
    middle = plane.values.shape[1] // 2
    assert np.nanmin(plane.values[:, :middle]) == 1
    assert np.nanmax(plane.values[:, middle:]) == 0
    front = to_volume(study.ds, study.ds["y"].values).plane(2, 9.0)
    rows = np.nanmean(front.values[1:-1], axis=1)
    assert (np.diff(rows) > 0).all()
    assert plane.at == pytest.approx(12.0)
    assert plane.extent[0] == -plane.extent[1]


def test_overlay_slice__colors_only_where_there_is_a_value(study: Study):
    gray = to_volume(study.ds, np.full(study.ds.sizes["voxel"], 0.5)).plane(2, 10.0)
    values = np.where(study.ds["x"].values < 0, 3.0, np.nan)
    red = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for enlarge in (1, 2):
        picture = overlay_slice(
            gray,
            to_volume(study.ds, values).plane(2, 10.0),
            colors=red,
            limits=(1, 3),
            enlarge=enlarge,
        )
        half = picture.shape[1] // 2
        row = picture[picture.shape[0] // 2]
        assert (row[2 * enlarge : half, 0] > 0.9).all()
        assert np.ptp(row[half : -2 * enlarge, :3], axis=1).max() == 0
        assert picture[0, 0, 3] == 0
        assert picture.min() >= 0
        assert picture.max() <= 1


def test_background_vector__averages_included_reference_people_only(study: Study):
    ds = study.ds.copy(deep=True)
    ds["t1w"][24:] = np.nan  # strokes
    ds["t1w"][0] = np.nan  # excluded
    vector = background_vector(ds)
    assert vector.shape == (ds.sizes["voxel"],)
    assert np.isfinite(vector).all()
    assert (vector.min(), vector.max()) == (0, 1)


def test_background_vector__without_scans_is_the_template_if_it_fits(study: Study):
    ds = study.ds.drop_vars("t1w")
    vector = background_vector(ds)
    assert (vector.min(), vector.max()) == (0, 1)
    ventricle = np.argmin(
        np.linalg.norm([ds[a] - v for a, v in zip("xyz", (4, -6, 20), strict=True)], axis=0)
    )
    assert vector[ventricle] < np.median(vector)
    assert (background_vector(ds.assign_attrs(space="another")) == 0.5).all()


def test_vertex_parcels__stays_on_its_side_and_mirrors(study: Study):
    left, right = (vertex_parcels(study.ds, side) for side in ("left", "right"))
    assert left.shape == right.shape == (10242,)
    assert (left[left > 0] % 2 == 1).all()
    assert (right[right > 0] % 2 == 0).all()
    assert (left > 0).mean() > 0.8
    flipped = study.ds.assign_coords(x=-study.ds["x"])
    assert set(np.unique(vertex_parcels(flipped, "left"))) <= {0, *range(2, 91, 2)}


def test_vertex_parcels__needs_coordinates(study: Study):
    with pytest.raises(MissingVariableError, match="parcel missing"):
        vertex_parcels(study.ds.drop_vars("parcel"), "left")
