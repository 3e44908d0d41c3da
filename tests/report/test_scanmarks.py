"""Marks of scans: the same for the same scan and mask, and other ones for others."""

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.io.store import save_store
from scalebrain.report.scanmarks import scan_marks
from tests.ingestion.test_ingest import LESION
from tests.phantom import image_path, save, write_tree


@pytest.fixture
def small() -> xr.Dataset:
    """Three people with scans, two of them with masks."""
    rng = np.random.default_rng(0)
    mask = rng.random((3, 40)) < 0.2
    mask[2] = False
    return xr.Dataset(
        {
            "t1w": (("subject", "voxel"), rng.random((3, 40)).astype("f4")),
            "lesion_mask": (("subject", "voxel"), mask),
            "lesion_present": ("subject", np.array([True, True, False])),
        },
        coords={"subject": np.array(["sub-1", "sub-2", "sub-3"], dtype=object)},
    )


def marks(ds, folder):
    save_store(ds, folder)
    return scan_marks(scalebrain.open_store(folder), folder)


def test_scan_marks__of_rows_differ_with_scan_and_mask_alone(small, tmp_path):
    first = marks(small, tmp_path / "a.zarr")
    assert len(set(first)) == 3
    assert marks(small.assign(age=("subject", [60.0, 61.0, 62.0])), tmp_path / "b.zarr") == first
    for name, at in (("lesion_mask", 0), ("t1w", 1)):
        changed = small.copy(deep=True)
        changed[name][at, 3] = 1 - changed[name].values[at, 3]
        found = marks(changed, tmp_path / f"{name}.zarr")
        assert [a == b for a, b in zip(found, first, strict=True)] == [k != at for k in range(3)]


def test_scan_marks__where_nothing_is_known_differ_by_store(small, tmp_path):
    bare = small.drop_dims("voxel")
    a, b = (marks(bare, tmp_path / f"{name}.zarr") for name in "ab")
    assert not set(a) & set(b)


def test_scan_marks__of_an_ingest_follow_the_files(tmp_path):
    tree = write_tree(tmp_path / "tree", n=17)
    store = scalebrain.ingest(tree, tmp_path / "a.zarr")
    ds = scalebrain.open_store(store)
    first = scan_marks(ds, store)
    assert len(set(first)) == ds.sizes["subject"]
    who = str(ds["subject"].values[np.flatnonzero(ds["lesion_present"].values)[0]])
    path = image_path(tree, who, LESION)
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[tuple(np.argwhere(mask)[0])] = 0
    save(path, mask, image.affine)
    scalebrain.ingest(tree, store, update=True)
    ds = scalebrain.open_store(store)
    labels = ds["subject"].values.astype(str)
    differs = np.array(scan_marks(ds, store)) != np.array(first)
    assert labels[differs].tolist() == [who]
