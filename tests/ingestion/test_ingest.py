import gzip
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain.atlas.space import template_grid
from scalebrain.errors import GeometryError, ImageError, StoreError, TableError
from scalebrain.ingestion import cohort
from tests.phantom import image_path, save, tree_bytes

INTACT = "desc-preproc_T1w"


def test_ingest__rows_equal_the_files(tree, tmp_path):
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    for subject in ("sub-000", "sub-017"):
        volume = scalebrain.unpack(ds["t1w"].sel(subject=subject))
        image = nib.load(image_path(tree, subject, INTACT))
        np.testing.assert_array_equal(volume.attrs["affine"], image.affine)
        stored = np.isfinite(volume.values)
        np.testing.assert_array_equal(volume.values[stored], image.get_fdata()[stored])
    assert ds["lesion_mask"].dtype == bool
    assert dict(zip(ds.subject.values[-4:], ds.lesion_hemisphere.values[-4:], strict=True)) == {
        "sub-016": "L",
        "sub-017": "R",
        "sub-018": "L",
        "sub-019": "midline",
    }
    mask = nib.load(image_path(tree, "sub-018", "label-L_mask"))
    expected = np.count_nonzero(mask.get_fdata()) * 4**3 / 1000
    assert ds["lesion_volume"].sel(subject="sub-018").item() == pytest.approx(expected)
    assert np.isnan(ds["lesion_volume"].sel(subject="sub-000").item())


def test_ingest__resumes_bit_identical_after_a_kill(tree, tmp_path, monkeypatch):
    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    expected = tree_bytes(whole)
    broken = tmp_path / "broken.zarr"
    for step in ("write_rows", "write_record", "finalize_store"):
        shutil.rmtree(broken, ignore_errors=True)
        real, calls = getattr(cohort, step), []

        def dies(*args, real=real, calls=calls, step=step, **kwargs):
            calls.append(1)
            if len(calls) == (1 if step == "finalize_store" else 2):
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(cohort, step, dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.ingest(tree, broken)
        monkeypatch.setattr(cohort, step, real)
        with pytest.raises(StoreError, match="interrupted"):
            scalebrain.open_store(broken)
        scalebrain.ingest(tree, broken)
        assert tree_bytes(broken) == expected


def test_ingest__a_second_run_changes_nothing_and_another_cohort_is_refused(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    before = tree_bytes(store)
    scalebrain.ingest(tree, store)
    assert tree_bytes(store) == before
    table = tree / "participants.tsv"
    table.write_text(table.read_text().replace("\t50\t", "\t51\t"))
    with pytest.raises(StoreError, match="another cohort"):
        scalebrain.ingest(tree, store)


def test_ingest__several_rows_a_shard_and_workers_give_the_same_store(tree, tmp_path):
    import distributed

    alone = tree_bytes(scalebrain.ingest(tree, tmp_path / "a.zarr"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=False
        ) as cluster,
        distributed.Client(cluster),
    ):
        spread = tree_bytes(scalebrain.ingest(tree, tmp_path / "b.zarr"))
    assert spread == alone


def _truncate(tree):
    path = image_path(tree, "sub-003", INTACT)
    path.write_bytes(path.read_bytes()[:-4000])
    return path


def _truncate_inside(tree):
    path = image_path(tree, "sub-003", INTACT)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-1000]))
    return path


def _empty(tree):
    path = image_path(tree, "sub-003", INTACT)
    path.write_bytes(b"")
    return path


def _web_page(tree):
    path = image_path(tree, "sub-003", INTACT)
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    return path


def _huge_claim(tree):
    path = image_path(tree, "sub-003", INTACT)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def _not_a_number(tree):
    path = image_path(tree, "sub-003", "label-GM_probseg")
    image = nib.load(path)
    save(path, np.full(image.shape, np.nan, np.float32), image.affine)
    return path


def _inverted_mask(tree):
    path = image_path(tree, "sub-017", "label-L_mask")
    image = nib.load(path)
    save(path, (1 - image.get_fdata()).astype(np.uint8), image.affine)
    return path


def _labels(tree):
    path = image_path(tree, "sub-017", "label-L_mask")
    image = nib.load(path)
    data = image.get_fdata()
    data[10:12, 10, 10] = 2
    save(path, data.astype(np.uint8), image.affine)
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "truncated"),
        (_truncate_inside, "truncated"),
        (_empty, "empty"),
        (_web_page, "web page"),
        (_huge_claim, "voxels"),
        (_not_a_number, "NaN"),
        (_inverted_mask, "inverted"),
        (_labels, "labels"),
    ],
)
def test_ingest__bad_image_is_one_error_that_names_the_file(tree, tmp_path, damage, words):
    path = damage(tree)
    with pytest.raises(ImageError, match=words) as caught:
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert str(path) in str(caught.value)
    with pytest.raises(StoreError):
        scalebrain.open_store(tmp_path / "c.zarr")


@pytest.mark.parametrize("kind", ["shape", "shift", "oblique"])
def test_ingest__mask_on_another_grid_is_refused(tree, tmp_path, kind):
    path = image_path(tree, "sub-017", "label-L_mask")
    image = nib.load(path)
    data, affine = image.get_fdata().astype(np.uint8), image.affine.copy()
    if kind == "shape":
        data = data[:, :-1]
    elif kind == "shift":
        affine[0, 3] += 4
    else:
        affine[0, 1] += 0.1
    save(path, data, affine)
    with pytest.raises((GeometryError, ImageError), match="another grid") as caught:
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert str(path) in str(caught.value)
    assert "resample" in str(caught.value).lower()


def test_ingest__image_stored_in_another_orientation_is_the_same_image(tree, tmp_path):
    expected = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "a.zarr"))
    for ending in (INTACT, "label-GM_probseg", "label-L_mask"):
        path = image_path(tree, "sub-017", ending)
        image = nib.load(path)
        flipped = image.as_reoriented([[2, 1], [0, -1], [1, -1]])
        save(path, np.asarray(flipped.dataobj), flipped.affine)
    found = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "b.zarr"))
    for name in ("t1w", "gm", "lesion_mask"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert found["lesion_hemisphere"].sel(subject="sub-017").item() == "R"


def test_ingest__contradicting_forms_are_refused(tree, tmp_path):
    path = image_path(tree, "sub-003", INTACT)
    image = nib.load(path)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ image.affine, code=1)
    image.set_sform(image.affine, code=1)
    nib.Nifti1Image(np.asarray(image.dataobj), None, image.header).to_filename(path)
    with pytest.raises(ImageError, match="left and right are ambiguous"):
        scalebrain.ingest(tree, tmp_path / "c.zarr")


def _edit(tree, old, new):
    table = tree / "participants.tsv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sub-004\t54", "sub-003\t54", "several rows"),
        ("sub-004\t54", "SUB-003\t54", "not a BIDS label"),
        ("sub-004\t54", "004\t54\tF\tx\treference\tn/a\t1\tn/a\nsub-004\t54", "several rows"),
        ("\t54\t", "\tn/a\t", "age is missing"),
        ("\t54\t", "\t54,5\t", "decimal"),
        ("\t54\t", "\t648\t", "months"),
        ("\t54\tF", "\t54\t1", "F or M"),
        ("sub-004\t54", "<script>\t54", "not a BIDS label"),
        ("\tage\t", "\tyears\t", "column age missing"),
    ],
)
def test_ingest__bad_table_is_one_error_with_the_way_out(tree, tmp_path, old, new, words):
    _edit(tree, old, new)
    with pytest.raises(TableError, match=words) as caught:
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "participants.tsv" in str(caught.value)
    assert not (tmp_path / "c.zarr").exists()


def test_ingest__missing_table_folder_without_row_and_leaving_link(tree, tmp_path):
    outside = tmp_path / "outside.nii.gz"
    inside = image_path(tree, "sub-002", INTACT)
    inside.rename(outside)
    inside.symlink_to(outside)
    (tree / "sub-999").mkdir()
    with pytest.raises(TableError) as caught:
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "leaves the tree" in str(caught.value)
    assert "sub-999" in str(caught.value)
    os.remove(tree / "participants.tsv")
    with pytest.raises(TableError, match=r"participants\.tsv: missing"):
        scalebrain.ingest(tree, tmp_path / "c.zarr")


def test_ingest__person_without_a_scan_is_kept_as_missing(tree, tmp_path):
    shutil.rmtree(tree / "sub-005")
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    one = ds.sel(subject="sub-005")
    assert not one.scan_present.item()
    assert np.isnan(one.t1w.values).all()
    reasons = scalebrain.inclusion(ds)
    assert reasons.exclusion_reason.sel(subject="sub-005").item() == "no T1w scan"
    assert reasons.exclusion_reason.sel(subject="sub-019").item().startswith("midline")
    assert int(reasons.included.sum()) == 18


def test_ingest__cropped_scans_are_not_template_space(tree, tmp_path):
    grid = template_grid(4.0)
    for path in tree.rglob("*.nii.gz"):
        image = nib.load(path)
        save(path, np.asarray(image.dataobj)[:, :, :20], grid.matrix)
    with pytest.raises(GeometryError, match="cropped"):
        scalebrain.ingest(tree, tmp_path / "c.zarr")
