"""Stores that are updated, interrupted and withdrawn from, in every order."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import Grid, template_grid
from scalebrain.errors import StoreError, TableError
from scalebrain.features.quality import quality_decisions
from scalebrain.ingestion import cohort, decisions, plan, upkeep
from scalebrain.io import store as store_module
from scalebrain.io.location import Location
from scalebrain.report.content import StudyResults
from scalebrain.report.page import write_report
from tests.ingestion.test_ingest import LESION, T1W, add_noise, codes, everything
from tests.phantom import image_path, save, tree_bytes, write_tree


def dies(*args, **kwargs):
    raise KeyboardInterrupt


def kill(monkeypatch, module, name, work):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, dies)
        with pytest.raises(KeyboardInterrupt):
            work()


def save_loads(store):
    scalebrain.save_store(scalebrain.lesion_load(scalebrain.open_store(store)), store)


def edit(tree, subject, old, new):
    table = tree / "participants.tsv"
    lines = [
        line.replace(old, new) if line.startswith(f"{subject}\t") else line
        for line in table.read_text().splitlines()
    ]
    table.write_text("\n".join(lines) + "\n")


def drop(tree, subject):
    shutil.rmtree(tree / subject)
    table = tree / "participants.tsv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith(subject)]
    table.write_text("\n".join(lines) + "\n")


@pytest.fixture
def other(tmp_path):
    root = write_tree(tmp_path / "other", n=18)
    for path in root.rglob("*T1w.nii.gz"):  # other scans than those of the first tree
        image = nib.load(path)
        save(path, np.asarray(image.dataobj) * np.int16(2), image.affine)
    return root


@pytest.fixture
def store(tree, tmp_path):
    return scalebrain.ingest(tree, tmp_path / "c.zarr")


def test_verify__an_intact_store_keeps_what_was_computed(tree, store):
    save_loads(store)
    before = tree_bytes(store)
    scalebrain.ingest(tree, store, verify=True)
    assert "lesion_load" in scalebrain.open_store(store)
    assert tree_bytes(store).keys() == before.keys()


def test_update__killed_at_once_serves_nothing_stale(tree, store, monkeypatch):
    save_loads(store)
    add_noise(tree, "sub-017")
    kill(monkeypatch, cohort, "write_arrays", lambda: scalebrain.ingest(tree, store, update=True))
    scalebrain.ingest(tree, store)
    assert "lesion_load" not in scalebrain.open_store(store)


def fingerprint(store):
    return scalebrain.open_store(store).attrs["source_sha256"]


def test_update__who_is_left_out_leaves_what_was_computed(tree, store, tmp_path):
    decide(store, tmp_path, DECISIONS)
    save_loads(store)
    before, rows = fingerprint(store), len((tree / "participants.tsv").read_text().splitlines())
    add_subject(tree, "sub-x01")
    table = (tree / "participants.tsv").read_text()
    (tree / "participants.tsv").write_text("".join(table.splitlines(keepends=True)[:rows]))
    scalebrain.ingest(tree, store, update=True)  # a folder without a row of the table
    assert list(codes(store)) == ["sub-x01"]
    assert "lesion_load" in scalebrain.open_store(store)
    assert len(decided(store)) == len(DECISIONS)
    assert fingerprint(store) == before
    listed = tmp_path / "w.csv"
    listed.write_text("y01\n")  # nobody of the store
    scalebrain.ingest(tree, store, update=True, withdrawn=listed)
    assert "lesion_load" in scalebrain.open_store(store)
    assert fingerprint(store) == before
    (tree / "participants.tsv").write_text(table)
    add_subject(tree, "sub-y01")
    scalebrain.ingest(tree, store, update=True)
    ds = scalebrain.open_store(store)
    assert "lesion_load" not in ds  # it has another row by now
    assert ds.sizes["subject"] == 21
    assert "sub-y01" not in ds["subject"].values
    assert fingerprint(store) != before


def test_update__killed_over_who_is_left_out_serves_nothing_stale(tree, store, monkeypatch):
    save_loads(store)
    before = tree_bytes(tree)
    shutil.copytree(tree / "sub-001", tree / "sub-x01")
    update = {"update": True}
    kill(monkeypatch, cohort, "_finalize", lambda: scalebrain.ingest(tree, store, **update))
    with pytest.raises(StoreError, match="interrupted"):
        scalebrain.open_store(store)
    add_noise(tree, "sub-017")
    scalebrain.ingest(tree, store)
    assert "lesion_load" not in scalebrain.open_store(store)
    assert tree_bytes(tree).keys() > before.keys()


def test_update__simulated_people_mark_a_real_store(tree, store, other, tmp_path):
    assert scalebrain.open_store(store).attrs["simulated"] == "false"
    about = json.loads((other / "dataset_description.json").read_text())
    (other / "dataset_description.json").write_text(json.dumps(about | {"Simulated": True}))
    scalebrain.ingest(other, store, prefix="b", update=True)
    ds = scalebrain.open_store(store)
    assert ds.attrs["simulated"] == "true"
    assert "Simulated data" in str(scalebrain.summary(ds))
    page = write_report(ds, tmp_path / "r.html", results=StudyResults()).read_text()
    assert "Simulated data" in page
    scalebrain.ingest(tree, store, update=True)  # what is real among them does not take it off
    add_noise(tree, "sub-003")
    scalebrain.ingest(tree, store, update=True)
    assert scalebrain.open_store(store).attrs["simulated"] == "true"


def test_update__a_dataset_that_now_says_it_is_simulated_marks_its_store(tree, store):
    save_loads(store)
    about = json.loads((tree / "dataset_description.json").read_text())
    (tree / "dataset_description.json").write_text(json.dumps(about | {"Simulated": True}))
    scalebrain.ingest(tree, store, update=True)
    assert scalebrain.open_store(store).attrs["simulated"] == "true"


def test_verify__damage_takes_what_was_computed_from_it(tree, store, tmp_path):
    expected = tree_bytes(store)
    save_loads(store)
    harm = store / "lesion_mask" / "c" / "1" / "0"
    harm.unlink()
    save_loads(store)  # nobody there has a lesion now, it seems
    decide(store, tmp_path, DECISIONS)
    scalebrain.ingest(tree, store, verify=True)
    assert "lesion_load" not in scalebrain.open_store(store)
    assert len(decided(store)) == len(DECISIONS)
    store_module.remove_variables(store, ["qc_decision", "qc_note"])
    assert tree_bytes(store) == expected


def decide(store, folder, rows):
    table = folder / "decisions.tsv"
    lines = "".join(f"{subject}\t{word}\t{note}\n" for subject, word, note in rows)
    table.write_text(f"participant_id\tdecision\tnote\n{lines}")
    scalebrain.save_store(quality_decisions(scalebrain.open_store(store), table), store)


def decided(store):
    ds = scalebrain.open_store(store)
    columns = (ds[name].values.astype(str).tolist() for name in ("qc_decision", "qc_note"))
    found = zip(ds["subject"].values.tolist(), *columns, strict=True)
    return {subject: (word, note) for subject, word, note in found if word or note}


def add_subject(tree, subject):
    shutil.copytree(tree / "sub-001", tree / subject)
    for path in (tree / subject).rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace("sub-001", subject)))
    table = tree / "participants.tsv"
    table.write_text(table.read_text() + f"{subject}\t60\tF\tsite1\treference\tn/a\t1500\tn/a\n")


DECISIONS = [
    ("sub-003", "exclude", "motion"),
    ("sub-017", "accept", "n/a"),
    ("sub-018", "n/a", "x"),
]
LEFT = {"sub-003": ("exclude", "motion"), "sub-018": ("", "x")}


def test_update__keeps_decisions_but_those_about_changed_scans(tree, store, tmp_path, caplog):
    decide(store, tmp_path, DECISIONS)
    save_loads(store)
    add_noise(tree, "sub-017")
    add_subject(tree, "sub-x01")
    caplog.clear()
    scalebrain.ingest(tree, store, update=True)
    (told,) = [line for line in caplog.messages if "quality control" in line]
    assert "1 subjects whose files changed are dropped: sub-017." in told
    assert decided(store) == LEFT
    assert "lesion_load" not in scalebrain.open_store(store)
    assert not (store / "ingest" / "decisions.json").exists()
    caplog.clear()
    add_noise(tree, "sub-004")
    scalebrain.ingest(tree, store, update=True)  # nothing was decided about it
    assert not [line for line in caplog.messages if "quality control" in line]
    assert decided(store) == LEFT
    # masks that are read in another way were not looked at
    scalebrain.ingest(tree, store, update=True, min_lesion=0.1)
    assert [line for line in caplog.messages if "dropped: sub-003, sub-018." in line]
    assert "qc_decision" not in scalebrain.open_store(store)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (cohort, "drop_saved"),
        (cohort, "write_arrays"),
        (decisions, "replace_variables"),
        (cohort, "subject_variables"),
        (cohort, "finalize_store"),
    ],
)
def test_update__killed_anywhere_keeps_decisions(
    tree, store, tmp_path, monkeypatch, caplog, module, name
):
    decide(store, tmp_path, DECISIONS)
    add_noise(tree, "sub-017")
    kill(monkeypatch, module, name, lambda: scalebrain.ingest(tree, store, update=True))
    scalebrain.ingest(tree, store)
    assert decided(store) == LEFT
    assert [line for line in caplog.messages if "dropped: sub-017." in line]
    assert not (store / "ingest" / "decisions.json").exists()


def test_update__goes_on_after_a_killed_save(tree, store, monkeypatch):
    kill(monkeypatch, store_module, "update_root", lambda: save_loads(store))
    assert "lesion_load" not in scalebrain.open_store(store)
    add_subject(tree, "sub-x01")
    scalebrain.ingest(tree, store, update=True)
    assert scalebrain.open_store(store).sizes["subject"] == 21
    save_loads(store)


def test_update__one_that_is_refused_leaves_the_store_open(tmp_path):
    tree = write_tree(tmp_path / "bids")
    masks = {path: path.read_bytes() for path in tree.rglob(f"*{LESION}.nii.gz")}
    for path in masks:
        path.unlink()
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    for path, content in masks.items():
        path.write_bytes(content)
    drop(tree, "sub-004")
    with pytest.raises(TableError, match="store withdraw"):
        scalebrain.ingest(tree, store, update=True)
    assert scalebrain.open_store(store).sizes["subject"] == 20


def test_update__killed_keeps_knowing_who_was_there(tree, store, monkeypatch):
    from scalebrain.ingestion import partition

    add_noise(tree, "sub-001")
    kill(monkeypatch, partition, "join_shard", lambda: scalebrain.ingest(tree, store, update=True))
    drop(tree, "sub-004")
    with pytest.raises(TableError, match="sub-004"):
        scalebrain.ingest(tree, store, update=True)


def test_update__a_dataset_of_the_same_name_is_refused(tree, store, other, tmp_path):
    moved = other.rename(tmp_path / "elsewhere") / "bids"
    moved.parent.rename(tmp_path / "x")
    (tmp_path / "y").mkdir()
    same_name = (tmp_path / "x").rename(tmp_path / "y" / "bids")
    with pytest.raises(StoreError, match="another dataset"):
        scalebrain.ingest(same_name, store, update=True)


def test_update__options_count_as_a_change(tree, store):
    before = scalebrain.open_store(store).attrs["source_sha256"]
    scalebrain.ingest(tree, store, update=True, min_lesion=4.0)
    ds = scalebrain.open_store(store)
    assert ds.attrs["source_sha256"] != before
    assert ds["lesion_volume"].sel(subject="sub-016").item() == 0
    assert ds["lesion_volume_removed"].sel(subject="sub-016").item() > 0


def test_update__a_rejected_subject_may_leave(tree, tmp_path):
    image_path(tree, "sub-003", T1W).write_bytes(b"")
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    drop(tree, "sub-003")
    scalebrain.ingest(tree, store, update=True)
    assert codes(store) == {}


def test_update__another_resolution_is_refused(tree, store):
    add_noise(tree, "sub-001")
    with pytest.raises(StoreError, match="another grid"):
        scalebrain.ingest(tree, store, update=True, resolution=5.0)


@pytest.mark.parametrize("step", ["_empty_rows", "_forget", "write_problems", "write_plan"])
def test_withdraw__interrupted_it_goes_first_and_goes_on(
    tree, store, other, tmp_path, monkeypatch, step
):
    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    scalebrain.withdraw(whole, ["sub-003", "sub-017"])
    kill(monkeypatch, upkeep, step, lambda: scalebrain.withdraw(store, ["sub-017"]))
    with pytest.raises(StoreError, match="withdrawal was interrupted"):
        scalebrain.open_store(store)
    with pytest.raises(StoreError, match="withdrawal was interrupted"):
        scalebrain.ingest(other, store, prefix="b", update=True)
    scalebrain.withdraw(store, ["sub-003"])  # someone else: the first is finished too
    assert tree_bytes(store) == tree_bytes(whole)
    assert "sub-017" not in everything(store)


def test_withdraw__means_one_person_not_a_label(tree, store, other, tmp_path):
    scalebrain.withdraw(store, ["sub-003"])
    scalebrain.ingest(other, store, prefix="b", update=True)
    assert "sub-b003" in scalebrain.open_store(store)["subject"].values
    listed = tmp_path / "w.csv"
    listed.write_text("004\n")
    fresh = scalebrain.ingest(other, tmp_path / "d.zarr", prefix="b", withdrawn=listed)
    assert "sub-b004" not in scalebrain.open_store(fresh)["subject"].values


def test_withdraw__leaves_no_trace_in_the_tables(tree, tmp_path):
    edit(tree, "sub-003", "\t53\t", "\tn/a\t")  # a warning of its own
    shutil.copy(image_path(tree, "sub-003", T1W), image_path(tree, "sub-005", T1W))
    edit(tree, "sub-007", "\tM\t", "\t1\t")  # rejected by the table
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "sub-003" in everything(store)
    scalebrain.withdraw(store, ["sub-003", "sub-007"])
    assert "sub-003" not in everything(store)
    assert "sub-007" not in everything(store)
    scalebrain.ingest(tree, store)  # nothing differs, and nobody is back
    assert "sub-003" not in everything(store)


def test_withdraw__leaves_the_labels_of_what_stays(tree, store):
    loads = scalebrain.lesion_load(scalebrain.open_store(store)).sortby("region")
    mean = xr.Dataset({"mean_load": loads["lesion_load"].mean("subject")})
    mean["fold_load"] = mean["mean_load"].expand_dims(fold=["a", "b"])
    scalebrain.save_store(loads.merge(mean), store)
    before = scalebrain.open_store(store)["lesion_load"].load()
    scalebrain.withdraw(store, ["sub-003"])
    left = scalebrain.open_store(store)
    xr.testing.assert_identical(left["lesion_load"].load(), before.drop_sel(subject="sub-003"))
    assert not {"mean_load", "fold_load", "fold"} & set(left.variables)


def test_withdraw__takes_one_id_and_numbers(tmp_path):
    tree = write_tree(tmp_path / "bids", n=4)
    for label in ("1000123", "c7", "c", "7", "d8"):
        add_subject(tree, f"sub-{label}")
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    before = scalebrain.open_store(store)["subject"].values.tolist()
    gone = []
    for ids, also, subject in [
        ("sub-c7", (), "sub-c7"),
        (np.array([1000123]), (), "sub-1000123"),
        ([], "d8", "sub-d8"),
    ]:
        assert scalebrain.withdraw(store, ids, also=also) == 1
        gone.append(subject)
        left = scalebrain.open_store(store)["subject"].values.tolist()
        assert left == [s for s in before if s not in gone]


def test_withdraw__takes_ids_out_of_what_is_said_of_others(tmp_path):
    tree = write_tree(tmp_path / "bids", n=4)
    add_subject(tree, "sub-A9")
    table = tree / "participants.tsv"
    table.write_text(table.read_text() + "sub-a9\t55\tF\tsite0\treference\tn/a\t1500\tn/a\n")
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "sub-A9" in everything(store)
    scalebrain.withdraw(store, ["A9"])
    assert "sub-A9" not in everything(store)
    assert "sub-a9" in everything(store)
    add_noise(tree, "sub-001")
    scalebrain.ingest(tree, store, update=True)
    assert "sub-A9" not in everything(store)
    assert "sub-a9" in everything(store)


def test_withdraw__leaves_values_in_what_is_said_of_others(tmp_path):
    tree = write_tree(tmp_path / "bids", n=4)
    for label in ("2", "a3"):
        add_subject(tree, f"sub-{label}")
    table = tree / "participants.tsv"
    rows = re.sub(r"(?m)^(sub-001\t\w+\t)[FM]", r"\g<1>2", table.read_text())
    rows = rows.replace("sub-a3\t", "a3\t") + "A3\t55\tF\tsite0\treference\tn/a\t1500\tn/a\n"
    table.write_text(rows)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert "sex '2' is neither" in everything(store)
    assert "'a3' in line" in everything(store)
    scalebrain.withdraw(store, ["2", "a3"])
    assert "sex '2' is neither" in everything(store)
    assert "'a3' in line" not in everything(store)
    assert "'A3' in line" in everything(store)


def test_withdraw__names_who_has_the_same_scan(tmp_path, caplog):
    tree = write_tree(tmp_path / "bids", n=4)
    for kind in (T1W, "label-GM_probseg"):
        shutil.copy(image_path(tree, "sub-001", kind), image_path(tree, "sub-002", kind))
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    scalebrain.withdraw(store, ["sub-000"])
    assert "same scan" not in caplog.text
    scalebrain.withdraw(store, ["sub-001"])
    assert "which stay (1): sub-002. Where" in caplog.text
    assert "sub-002" in scalebrain.open_store(store)["subject"].values
    assert "sub-001" not in everything(store)


def test_withdraw__takes_every_session_of_a_person(tmp_path):
    tree = write_tree(tmp_path / "bids", n=4)
    for path in sorted(tree.rglob("*.nii.gz")):
        subject = path.parent.parent.name
        for session in ("1", "2"):
            name = path.name.replace(f"{subject}_", f"{subject}_ses-{session}_")
            target = tree / subject / f"ses-{session}" / "anat" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for path in tree.glob("sub-*/anat"):
        shutil.rmtree(path)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr", session="all")
    assert scalebrain.open_store(store).sizes["subject"] == 8
    scalebrain.withdraw(store, ["sub-001_ses-1"])
    left = scalebrain.open_store(store)
    assert left.sizes["subject"] == 6
    assert "sub-001" not in left["person"].values


def test_save_store__refuses_a_folder_of_something_else(store, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    loads = scalebrain.lesion_load(scalebrain.open_store(store))
    with pytest.raises(StoreError, match="not a store"):
        scalebrain.save_store(loads, folder)
    assert (folder / "thesis.txt").read_text() == "x"


def test_ingest__grids_that_differ_by_rounding_are_one(tmp_path):
    tree = write_tree(tmp_path / "bids", n=6)
    rng = np.random.default_rng(0)
    for path in sorted(tree.rglob("*.nii.gz")):
        image = nib.load(path)
        affine = image.affine.copy()
        affine[:3, 3] += rng.uniform(-1e-5, 1e-5, 3)
        if path.name.startswith("sub-000"):
            affine[:3, 3] += 2.0
        save(path, np.asarray(image.dataobj), affine)
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    grid = Grid.from_matrix(tuple(ds.attrs["shape"]), ds.attrs["affine"])
    assert not grid.difference(template_grid(4.0))
    assert (ds["warnings"].values != "").tolist() == [True, *[False] * 5]


def test_ingest__a_probabilistic_mask_in_scaled_integers(tree, tmp_path):
    path = image_path(tree, "sub-018", LESION)
    mask = nib.load(path)
    blurred = np.asarray(mask.dataobj) * 1.0
    blurred[blurred > 0] = 0.9
    blurred[tuple(np.argwhere(blurred > 0)[0])] = 1.0
    image = nib.Nifti1Image(blurred, mask.affine)
    image.header.set_data_dtype(np.uint8)
    image.to_filename(path)
    ds = scalebrain.open_store(scalebrain.ingest(tree, tmp_path / "c.zarr"))
    expected = np.count_nonzero(mask.get_fdata()) * 4**3 / 1000
    assert ds["lesion_volume"].sel(subject="sub-018").item() == pytest.approx(expected)


def test_partitions__of_64_rows_append_withdraw_and_mend(tree, other, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_SMALL_COHORT", 1)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    scalebrain.ingest(other, store, prefix="b", update=True)
    ds = scalebrain.open_store(store)
    assert store_module.store_attributes(store)["partition_rows"] == 64
    assert ds.sizes["subject"] == 38
    for subject, root in (("sub-018", tree), ("sub-b017", other)):
        volume = scalebrain.unpack(ds["t1w"].sel(subject=subject)).values
        image = nib.load(image_path(root, subject.replace("-b", "-"), T1W)).get_fdata()
        np.testing.assert_array_equal(volume[np.isfinite(volume)], image[np.isfinite(volume)])
    scalebrain.withdraw(store, ["sub-018"])
    (store / "t1w" / "c" / "4" / "0").write_bytes(b"")
    assert len(scalebrain.verify_store(store)) == 1
    scalebrain.ingest([tree], store, verify=True)
    assert len(scalebrain.verify_store(store)) == 1  # it is of the other dataset
    xr.testing.assert_equal(scalebrain.open_store(store)["t1w"][:18].load(), ds["t1w"][:18].load())


def test_update__a_file_that_was_damaged_inside_is_read_again_when_mended(tree, tmp_path):
    expected = tree_bytes(scalebrain.ingest(tree, tmp_path / "good.zarr"))
    path = image_path(tree, "sub-003", T1W)
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 8  # size and checksum at its end are those of the good one
    path.write_bytes(damaged)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert codes(store) == {"sub-003": "truncated"}
    scalebrain.ingest(tree, store)  # still damaged: nothing to do
    path.write_bytes(good)
    with pytest.raises(StoreError, match="1 changed subjects"):
        scalebrain.ingest(tree, store)
    before = fingerprint(store)
    scalebrain.ingest(tree, store, update=True)
    assert codes(store) == {}
    assert fingerprint(store) != before  # though names, sizes and checksums are the same
    assert tree_bytes(store) == expected


def test_update__a_row_that_became_unusable_rejects_that_subject_alone(tree, store):
    before = scalebrain.open_store(store).load()
    edit(tree, "sub-004", "\t54\t", "\t648\t")
    scalebrain.ingest(tree, store, update=True)
    assert codes(store) == {"sub-004": "age-unit"}
    after = scalebrain.open_store(store).load()
    others = [s for s in before["subject"].values if s != "sub-004"]
    assert after["subject"].values.tolist() == others
    xr.testing.assert_identical(after["t1w"], before["t1w"].sel(subject=others))
    plain = xr.open_zarr(store, consolidated=False)
    assert np.isnan(plain["t1w"].values[4]).all()
    edit(tree, "sub-004", "\t648\t", "\t54\t")
    scalebrain.ingest(tree, store, update=True)
    again = scalebrain.open_store(store).load()
    xr.testing.assert_identical(again["t1w"], before["t1w"])  # in its own row


def test_ingest__a_list_with_people_of_the_store_says_to_withdraw_them(tree, store, tmp_path):
    listed = tmp_path / "w.csv"
    listed.write_text("004\n")
    for update in (False, True):
        with pytest.raises(StoreError, match=r"sub-004 withdrew.*store withdraw .* --list"):
            scalebrain.ingest(tree, store, withdrawn=listed, update=update)
    assert scalebrain.open_store(store).sizes["subject"] == 20


def flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, lambda path: path.unlink(), lambda p: p.write_bytes(b"")])
def test_withdraw__damage_is_neither_hidden_nor_a_trap(tree, store, tmp_path, harm):
    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    scalebrain.withdraw(whole, ["sub-003"])
    harm(store / "t1w" / "c" / "0" / "0")
    damaged = scalebrain.verify_store(store)
    assert len(damaged) == 1
    with pytest.raises(StoreError, match=r"t1w/c/0/0 is missing or damaged.*--verify"):
        scalebrain.withdraw(store, ["sub-003"])
    assert scalebrain.verify_store(store) == damaged
    assert "sub-003" in scalebrain.open_store(store)["subject"].values
    scalebrain.ingest(tree, store, verify=True)
    scalebrain.withdraw(store, ["sub-003"])
    assert tree_bytes(store) == tree_bytes(whole)


@pytest.mark.parametrize("content", [None, b"", b"null", b"[]", b'{"shards": {}}'])
def test_withdraw__without_a_record_changes_nothing(tree, store, content):
    record = store / "ingest" / "000001.json"
    record.unlink() if content is None else record.write_bytes(content)
    with pytest.raises(StoreError, match=r"record 1 is missing or damaged.*--verify --update"):
        scalebrain.withdraw(store, ["sub-003"])
    assert len(scalebrain.verify_store(store)) == 1
    scalebrain.ingest(tree, store, verify=True, update=True)
    scalebrain.withdraw(store, ["sub-003"])


@pytest.mark.parametrize("at", range(1, 8))
def test_withdraw__killed_at_any_write_goes_on(tree, store, tmp_path, monkeypatch, at):
    whole = scalebrain.ingest(tree, tmp_path / "whole.zarr")
    scalebrain.withdraw(whole, ["sub-017", "sub-018"])
    calls = 0

    def kills(name):
        original = getattr(Location, name)

        def method(self, *args):
            nonlocal calls
            if calls == at:
                raise KeyboardInterrupt
            calls += "lease" not in args[0]
            original(self, *args)

        return method

    with monkeypatch.context() as patch:
        for name in ("put", "delete"):
            patch.setattr(Location, name, kills(name))
        with pytest.raises(KeyboardInterrupt):
            scalebrain.withdraw(store, ["sub-017", "sub-018"])
    (store / "ingest" / "lease.json").unlink(missing_ok=True)
    scalebrain.withdraw(store, ["sub-017", "sub-018"])
    assert tree_bytes(store) == tree_bytes(whole)


def test_store__metadata_that_is_no_object_is_told(store):
    (store / "ingest" / "plan.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"plan\.json is damaged"):
        scalebrain.store_info(store)
    (store / "zarr.json").write_bytes(b"[]")
    with pytest.raises(StoreError, match=r"zarr\.json is damaged"):
        scalebrain.open_store(store)
