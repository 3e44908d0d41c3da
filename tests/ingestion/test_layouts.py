"""Every layout of a dataset, from real files to the store."""

import zipfile

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import SPACE, template, template_grid
from scalebrain.errors import ImageError
from scalebrain.pipeline import compute_features
from tests.io.freesurfer_phantom import fsaverage5, truth, write_subject, zip_subject
from tests.phantom import image_path, save, tree_bytes, write_tree

GRID = template_grid(4.0)


def head(scale):
    return (template("t1", GRID) * scale).astype(np.int16)


def lesion(x=-35):
    mm = GRID.coordinates(np.arange(GRID.size)).reshape(*GRID.shape, 3)
    return (np.linalg.norm(mm - np.array([x, -15, 30]), axis=-1) < 10).astype(np.uint8)


def write_table(path, rows, header="participant_id\tage\tsex\tcohort"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def test_atlas__needs_no_table(tmp_path):
    root = tmp_path / "ATLAS" / "Training" / "R001"
    for i, x in ((1, -35), (2, 35)):
        subject = f"sub-r001s00{i}"
        stem = root / subject / "ses-1" / "anat" / f"{subject}_ses-1_space-{SPACE}"
        save(stem.with_name(f"{stem.name}_T1w.nii.gz"), head(900 + i), GRID.matrix)
        name = f"{stem.name}_label-L_desc-T1lesion_mask.nii.gz"
        save(stem.with_name(name), lesion(x), GRID.matrix)
    ds = scalebrain.open_store(scalebrain.ingest(tmp_path / "ATLAS", tmp_path / "c.zarr"))
    assert ds["lesion_hemisphere"].values.tolist() == ["L", "R"]
    assert ds["cohort"].values.tolist() == ["R001", "R001"]
    assert ds["group"].values.tolist() == ["stroke", "stroke"]
    assert np.isnan(ds["age"].values).all()
    assert "gm" not in ds
    assert scalebrain.node_features(ds)["node_features"].sizes["feature"] == 3


def test_cat12__grey_matter_is_modulated(tmp_path, tree):
    root = tmp_path / "cat"
    for i in (1, 2):
        mri = root / "mri"
        save(mri / f"wmsub-0{i}_T1w.nii", head(900 + i).astype(np.float32), GRID.matrix)
        save(mri / f"mwp1sub-0{i}_T1w.nii", 1.4 * template("gm", GRID), GRID.matrix)
    rows, header = ["sub-01\t60\tF\t1500", "sub-02\t61\tM\tn/a"], "participant_id\tage\tsex\ticv"
    write_table(root / "participants.tsv", rows, header)
    store = scalebrain.ingest(root, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    assert ds.attrs["gm_modulated"] is True
    assert float(ds["gm"].max()) > 1
    assert set(scalebrain.problems(store, "warnings")["code"]) == {"other-template"}
    with pytest.raises(ImageError, match="cannot share a store"):
        scalebrain.ingest(tree, store, update=True)


def test_manifest__names_files_anywhere_below_its_root(tmp_path):
    root = tmp_path / "study"
    for i in (1, 2):
        save(root / "scans" / f"t1_{i}.nii", head(900 + i), GRID.matrix)
    save(root / "masks" / "one.nii.gz", lesion(), GRID.matrix)
    write_table(
        root / "files.tsv",
        [
            "01\tscans/t1_1.nii\tmasks/one.nii.gz\t61\tF\tOslo",
            "02\tscans/t1_2.nii\tn/a\t62\tM\tOslo",
            "03\t../outside.nii\tn/a\t63\tM\tOslo",
        ],
        header="subject\tt1w\tlesion\tage\tsex\tcohort",
    )
    store = scalebrain.ingest(root / "files.tsv", tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    assert ds["subject"].values.tolist() == ["sub-01", "sub-02"]
    assert ds["lesion_hemisphere"].values.tolist() == ["L", "unknown"]
    assert scalebrain.problems(store)["code"].tolist() == ["leaves-tree"]


def test_biobank__archives_are_read_in_place(tmp_path):
    root = tmp_path / "bulk"
    root.mkdir()
    eids = ("1000015", "1000027")
    for i, eid in enumerate(eids):
        image = tmp_path / "T1_brain_to_MNI.nii.gz"
        save(image, head(900 + i), GRID.matrix)
        with zipfile.ZipFile(root / f"{eid}_20252_2_0.zip", "w") as archive:
            archive.write(image, "T1/T1_brain_to_MNI.nii.gz")
        folder = tmp_path / eid
        write_subject(folder, offset=float(i))
        zip_subject(folder, root / f"{eid}_20263_2_0.zip", "FreeSurfer")
    write_table(
        root / "participants.csv",
        [f"{eid},{60 + i},{i},11025,1500000" for i, eid in enumerate(eids)],
        header="eid,21003-2.0,31-0.0,54-2.0,26521-2.0",
    )
    before = tree_bytes(root)
    (tmp_path / "w1_2026.csv").write_text(eids[1] + "\n")
    store = scalebrain.ingest(root, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    assert tree_bytes(root) == before
    assert ds["subject"].values.tolist() == [f"sub-{eid}" for eid in eids]
    assert ds["sex"].values.tolist() == ["F", "M"]
    assert ds["icv"].values.tolist() == [1500.0, 1500.0]
    expected = np.concatenate(
        [truth(fsaverage5(side)[0], side, offset=1.0)["thickness"] for side in ("lh", "rh")]
    )
    np.testing.assert_allclose(ds["thickness"].values[1], expected, rtol=1e-5)
    assert np.isfinite(ds["t1w"].values).mean() > 0.99
    assert ds["source_space"].values.tolist() == ["MNI152NLin6Asym"] * 2
    kept = scalebrain.ingest(root, tmp_path / "d.zarr", withdrawn=tmp_path / "w1_2026.csv")
    assert scalebrain.open_store(kept).sizes["subject"] == 1


def test_freesurfer__surfaces_alone_make_a_store(tmp_path):
    root = tmp_path / "subjects"
    for i in (1, 2):
        write_subject(root / f"sub-0{i}", native=(900, 800), offset=float(i))
    write_subject(root / "sub-03", version="6.0.0")
    rows = [f"sub-0{i}\t6{i}\tF\tx" for i in (1, 2, 3)]
    write_table(root / "participants.tsv", rows)
    store = scalebrain.ingest(root, tmp_path / "c.zarr")
    ds = scalebrain.open_store(store)
    assert ds["subject"].values.tolist() == ["sub-01", "sub-02"]
    assert scalebrain.problems(store)["code"].tolist() == ["freesurfer-mixed"]
    assert ds["hemisphere"].values.tolist() == ["L"] * 10242 + ["R"] * 10242
    assert "t1w" not in ds
    assert ds["structure_volume"].dims == ("subject", "structure")
    assert np.isfinite(ds["icv"].values).all()
    assert scalebrain.verify_store(store) == []
    assert scalebrain.validate(root)["code"].tolist() == ["freesurfer-mixed"]


def test_bids__several_spaces_and_sessions(tmp_path):
    tree = write_tree(tmp_path / "bids", n=6)
    path = image_path(tree, "sub-003", "desc-preproc_T1w")
    other = path.with_name(path.name.replace(SPACE, "MNI152NLin6Asym"))
    path.rename(other)
    image_path(tree, "sub-003", "label-GM_probseg").unlink()
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert scalebrain.problems(store)["code"].tolist() == ["mixed-templates"]
    assert scalebrain.open_store(store).sizes["subject"] == 5
    assert nib.load(other).shape == GRID.shape


def test_freesurfer__values_that_no_brain_has(tmp_path):
    root = tmp_path / "subjects"
    for i in (1, 2, 3):
        write_subject(root / f"sub-0{i}", offset=float(i), icv_mm3=120_000 if i == 3 else 1.5e6)
    nib.freesurfer.write_morph_data(root / "sub-02" / "surf" / "rh.sulc", np.zeros(10242, "f4"))
    write_table(root / "participants.tsv", [f"sub-0{i}\t6{i}\tF\tx" for i in (1, 2, 3)])
    store = scalebrain.ingest(root, tmp_path / "c.zarr")
    rejected, warnings = scalebrain.problems(store), scalebrain.problems(store, "warnings")
    assert rejected[["subject", "code"]].values.tolist() == [["sub-02", "constant-image"]]
    assert "sulcal_depth is 0 at every vertex of the right side" in rejected["message"].item()
    assert warnings[["subject", "code"]].values.tolist() == [["sub-03", "missing-covariate"]]
    assert "120 mL in aseg.stats, expected 500 to 3000" in warnings["message"].item()
    ds = scalebrain.open_store(store)
    np.testing.assert_array_equal(ds["icv"].values, [1500, np.nan])


def test_cat12__grey_matter_alone_says_what_is_missing(tmp_path):
    root = tmp_path / "cat"
    save(root / "mri" / "mwp1sub-01_T1w.nii", 1.4 * template("gm", GRID), GRID.matrix)
    write_table(root / "participants.tsv", ["sub-01\t60\tF\tx"])
    with pytest.raises(ImageError, match=r"no T1w image.*wm\*\.nii"):
        scalebrain.ingest(root, tmp_path / "c.zarr")


def write_surfaces(tree, subjects):
    for i, subject in enumerate(subjects):
        write_subject(tree / "freesurfer" / subject, native=(900, 800), offset=0.1 * i)


def graph_of(store):
    ds = scalebrain.open_store(store)
    names = [name for name, v in ds.variables.items() if {"node", "edge"} & set(v.dims)]
    return ds[names].load()


def test_verify__leaves_the_graph_of_a_surface_alone(tmp_path):
    tree = write_tree(tmp_path / "bids", n=2)
    write_surfaces(tree, ("sub-000", "sub-001"))
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    compute_features(store, nodes="surface-3")
    before = graph_of(store)
    scalebrain.ingest(tree, store, verify=True)
    xr.testing.assert_equal(graph_of(store), before)
    (store / "t1w" / "c" / "0" / "0").unlink()
    scalebrain.ingest(tree, store, verify=True)
    after = graph_of(store)
    assert "node_features" not in after
    xr.testing.assert_equal(after, before[list(after.data_vars)])


def test_update__scans_beside_surfaces_leave_their_graph_alone(tmp_path):
    tree = write_tree(tmp_path / "bids", n=2)
    write_surfaces(tree, ("sub-000", "sub-001"))
    scans = {path: path.read_bytes() for path in tree.rglob("sub-*/anat/*.nii.gz")}
    for path in scans:
        path.unlink()
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    compute_features(store, nodes="surface-3")
    before = graph_of(store)
    for path, content in scans.items():
        path.write_bytes(content)
    scalebrain.ingest(tree, store, update=True)
    assert "t1w" in scalebrain.open_store(store)
    after = graph_of(store)
    xr.testing.assert_equal(after, before[list(after.data_vars)])
    compute_features(store, nodes="surface-3")
    xr.testing.assert_equal(graph_of(store), before)
    compute_features(store)
    assert graph_of(store).sizes["node"] != before.sizes["node"]
