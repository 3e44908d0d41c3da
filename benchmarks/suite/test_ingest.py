"""The ingest of a few scans, and what is read back, beside nibabel."""

import shutil

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from benchmarks.ingest import write_tree

N_SCANS = 8


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folder of scans as they come from a scanner, and their paths."""
    tree = tmp_path_factory.mktemp("suite") / "tree"
    return tree, write_tree(tree, N_SCANS, 3.0)


@pytest.fixture(scope="module")
def store(scans, tmp_path_factory):
    """Their store."""
    path = tmp_path_factory.mktemp("stores") / "cohort.zarr"
    scalebrain.ingest(scans[0], path)
    return path


def canonical(path):
    """Voxels of a file, its axes to the right, front and top."""
    return nib.as_closest_canonical(nib.load(path)).get_fdata()


def test_ingest__stores_the_voxels_of_the_files(benchmark, scans, tmp_path):
    tree, paths = scans
    path = tmp_path / "cohort.zarr"

    def clean():
        shutil.rmtree(path, ignore_errors=True)
        return (tree, path), {}

    benchmark.pedantic(scalebrain.ingest, setup=clean, rounds=3, warmup_rounds=1)
    ds = scalebrain.open_store(path)
    assert ds.sizes["subject"] == N_SCANS
    found = scalebrain.unpack(ds["t1w"][3]).values
    known = np.isfinite(found)
    np.testing.assert_array_equal(found[known], canonical(paths[3])[known])


def test_parcellate__means_of_regions_from_the_store(benchmark, scans, store):
    ds = scalebrain.open_store(store)
    found = benchmark(lambda: scalebrain.parcellate(ds)["t1w_mean"].compute())
    parcels, values = scalebrain.unpack(ds["parcel"]).values, canonical(scans[1][0])
    expected = [values[parcels == code].mean() for code in found["parcel"].values]
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-6)
