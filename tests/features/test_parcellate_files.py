"""Parcellation straight from files, against that of a store and nilearn."""

import logging

import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker

import scalebrain
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.space import template_grid
from scalebrain.errors import ConfigError, GeometryError, ImageError, TableError
from tests.features.test_parcellation import EVERY, Q, blocks_atlas
from tests.phantom import image_path


def paths(bids_tree, n=4):
    return [image_path(bids_tree, f"sub-{i:03d}", "desc-preproc_T1w") for i in range(n)]


def test_parcellate_files__equals_the_store(ds, bids_tree):
    atlas = blocks_atlas(ds)
    inside = scalebrain.unpack(ds["parcel"] * 0 + 1).values
    atlas = Atlas("inside", atlas.grid, atlas.regions, atlas.codes, labels=atlas.labels * inside)
    names = [f"sub-{i:03d}" for i in range(11)]
    found = scalebrain.parcellate_files(
        paths(bids_tree, 11), regions=atlas, subjects=names, statistics=EVERY, quantiles=Q
    )
    assert found["image_mean"].chunks
    found = found.compute()
    stored = scalebrain.parcellate(ds, regions=atlas, statistics=EVERY, quantiles=Q)
    stored = stored.sel(subject=names).compute()
    for name in stored.data_vars:
        ours = found[str(name).replace("t1w", "image")]
        np.testing.assert_allclose(ours, stored[name], rtol=1e-6)
    assert found["image_read"].all()


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
@pytest.mark.parametrize("flipped", [False, True])
def test_parcellate_files__equals_nilearn(tmp_path, dtype, flipped):
    grid = template_grid(4.0)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 250, grid.shape).astype(dtype)
    matrix = grid.matrix
    if flipped:
        matrix = matrix @ np.array([[-1, 0, 0, grid.shape[0] - 1], *np.eye(4)[1:].tolist()])
    image = nib.Nifti1Image(data, matrix)
    if dtype == "int16":
        image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "image.nii.gz")
    labels = (np.arange(grid.size).reshape(grid.shape) // 1501 % 40).astype(np.int32)
    codes = tuple(range(1, 40))
    atlas = Atlas("a", grid, tuple(map(str, codes)), codes, labels=labels)
    found = scalebrain.parcellate_files(
        [tmp_path / "image.nii.gz"], regions=atlas, statistics=("mean", "median", "maximum")
    ).compute()
    for statistic in ("mean", "median", "maximum"):
        masker = NiftiLabelsMasker(
            nib.Nifti1Image(labels, grid.matrix),
            strategy=statistic,
            standardize=None,
            resampling_target=None if not flipped else "data",
        )
        theirs = masker.fit_transform(str(tmp_path / "image.nii.gz")).ravel()
        np.testing.assert_allclose(found[f"image_{statistic}"][0], theirs, rtol=1e-6)


def test_parcellate_files__one_bad_file_is_recorded_or_raised(tmp_path, ds, bids_tree, caplog):
    atlas = blocks_atlas(ds)
    good = paths(bids_tree, 3)
    bad = tmp_path / "truncated.nii.gz"
    bad.write_bytes(good[0].read_bytes()[:-50])
    files = [good[0], bad, good[2]]
    with pytest.raises(ImageError, match="truncated"):
        scalebrain.parcellate_files(files, regions=atlas).compute()
    with caplog.at_level(logging.WARNING):
        found = scalebrain.parcellate_files(files, regions=atlas, errors="record").compute()
    assert "truncated" in caplog.text
    assert found["image_read"].values.tolist() == [True, False, True]
    assert np.isnan(found["image_mean"][1]).all()
    assert not np.isnan(found["image_mean"][[0, 2]]).any()


def test_parcellate_files__an_image_without_a_usable_number_was_read_all_the_same(tmp_path):
    grid = template_grid(4.0)
    data = np.full(grid.shape, np.nan, dtype="f4")
    nib.save(nib.Nifti1Image(data, grid.matrix), tmp_path / "image.nii.gz")
    labels = np.ones(grid.shape, dtype=np.int32)
    atlas = Atlas("a", grid, ("all",), (1,), labels=labels)
    found = scalebrain.parcellate_files(
        [tmp_path / "image.nii.gz"], regions=atlas, errors="record", nan="propagate"
    ).compute()
    assert np.isnan(found["image_mean"]).all()
    assert found["image_read"].values.tolist() == [True]


def test_parcellate_files__says_what_it_cannot_do(tmp_path, ds, bids_tree):
    atlas = blocks_atlas(ds)
    some = paths(bids_tree, 2)
    with pytest.raises(TableError, match="names 2 files"):
        scalebrain.parcellate_files([some[0], some[0]], regions=atlas)
    with pytest.raises(TableError, match="2 files, but 1 subjects"):
        scalebrain.parcellate_files(some, regions=atlas, subjects=["a"])
    with pytest.raises(TableError, match="No file"):
        scalebrain.parcellate_files([], regions=atlas)
    with pytest.raises(ConfigError, match="expected some of"):
        scalebrain.parcellate_files(some, regions=atlas, statistics=("mode",))
    image = nib.load(some[0])
    nib.save(image.slicer[:10], tmp_path / "cropped.nii.gz")
    with pytest.raises(GeometryError, match="no voxel on its grid"):
        scalebrain.parcellate_files([tmp_path / "cropped.nii.gz"], regions=atlas).compute()


def test_parcellate_files__one_path_is_one_file_and_words_are_checked(ds, bids_tree):
    atlas = blocks_atlas(ds)
    one = paths(bids_tree, 1)[0]
    for given in (one, str(one)):
        assert scalebrain.parcellate_files(given, regions=atlas).sizes["subject"] == 1
    with pytest.raises(ConfigError, match="omit or propagate"):
        scalebrain.parcellate_files(one, regions=atlas, nan="omitted")
    with pytest.raises(ConfigError, match="raise or record"):
        scalebrain.parcellate_files(one, regions=atlas, errors="ignore")
