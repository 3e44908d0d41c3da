"""Raw heads whose truth is known, through the whole way to a store."""

import json
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import scalebrain
from scalebrain import cli
from scalebrain.atlas.space import SPACE, brain_mask, template_grid
from scalebrain.errors import ConfigError
from tests.conftest import need
from tests.outputs.test_bids import validated
from tests.phantom import tree_bytes
from tests.preprocessing.conftest import write_table
from tests.preprocessing.heads import CENTER, RADIUS, known_affine, make_head, save_turned


def anat(out, who):
    return out / who / "anat"


def image(out, who, ending):
    return nib.load(anat(out, who) / f"{who}_space-{SPACE}_res-2_{ending}.nii.gz")


def record(out, who):
    return json.loads((anat(out, who) / f"{who}_desc-qc_quality.json").read_text())


@pytest.mark.slow
def test_preprocess__leaves_out_whom_it_must_and_goes_on(done):
    out, table = done
    left_out = table[table["action"] == "E"].set_index("subject")
    assert left_out["code"].to_dict() == {"sub-03": "mask-needed", "sub-04": "truncated"}
    assert "Healthy references need none" in left_out.loc["sub-03", "message"]
    assert table.attrs == {"n_done": 2, "n_resumed": 0, "n_failed": 2}
    told = pd.read_csv(out / "problems.tsv", sep="\t", keep_default_na=False)
    assert told["code"].tolist() == table["code"].tolist()
    assert not (out / "sub-03").exists()
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_preprocess__recovers_the_known_affine(done):
    out, _ = done
    grid = template_grid(4.0)
    points = grid.coordinates(np.flatnonzero(brain_mask(grid)))
    truth = known_affine()
    found = np.array(record(out, "sub-02")["affine"])
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    assert np.linalg.norm(apart, axis=1).mean() < 2.5  # mm; a voxel is 2 mm


@pytest.mark.slow
def test_preprocess__keeps_the_lesion_in_its_place(done):
    out, _ = done
    mask = image(out, "sub-02", "label-L_mask")
    assert np.array_equal(mask.affine, template_grid(2.0).matrix)
    mm = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj)))
    assert np.linalg.norm(mm.mean(axis=0) - CENTER) < 3
    volume = 4 / 3 * np.pi * RADIUS**3 / 1000
    assert len(mm) * 0.008 == pytest.approx(volume, rel=0.1)
    quality = record(out, "sub-02")["quality"]
    native = volume * abs(np.linalg.det(known_affine()[:3, :3]))
    assert quality["lesion_volume_native"] == pytest.approx(native, rel=0.03)
    assert quality["lesion_volume_warped"] == pytest.approx(len(mm) * 0.008)


@pytest.mark.slow
def test_preprocess__finds_the_brain_and_its_grey_matter(done):
    out, _ = done
    grid = template_grid(2.0)
    inside = brain_mask(grid)
    for who in ("sub-01", "sub-02"):
        quality = record(out, who)["quality"]
        scale = abs(np.linalg.det(known_affine()[:3, :3]))
        template = brain_mask(template_grid(1.0)).sum() / 1000
        assert quality["brain_volume_native"] == pytest.approx(template * scale, rel=0.1)
        assert quality["template_to_native_volume"] == pytest.approx(scale, rel=0.05)
        assert quality["template_overlap"] > 0.7
        assert quality["template_overlap_grey"] > 0.6
        brain = np.asarray(image(out, who, "desc-preproc_T1w").dataobj) > 0
        assert 2 * (brain & inside).sum() / (brain.sum() + inside.sum()) > 0.93
        grey = image(out, who, "label-GM_probseg").get_fdata()
        modulated = image(out, who, "label-GM_desc-modulated_probseg").get_fdata()
        assert grey.max() <= 1
        assert modulated.sum() == pytest.approx(grey.sum() * scale, rel=0.05)


@pytest.mark.slow
def test_preprocess__a_cavity_is_liquid_not_grey_matter(done):
    out, _ = done
    lesion = np.asarray(image(out, "sub-02", "label-L_mask").dataobj) > 0
    assert image(out, "sub-02", "label-CSF_probseg").get_fdata()[lesion].mean() > 0.6
    assert image(out, "sub-02", "label-GM_probseg").get_fdata()[lesion].mean() < 0.3


@pytest.mark.slow
def test_preprocess__catches_a_mirrored_scan(done):
    out, table = done
    warned = table[table["code"] == "mirrored"]
    assert warned["subject"].tolist() == ["sub-01"]
    assert "Check left and right" in warned["message"].item()
    right = record(out, "sub-02")["quality"]
    assert right["asymmetric_overlap"] > right["asymmetric_overlap_mirrored"] + 0.02


@pytest.mark.slow
def test_preprocess__then_ingest(done, tmp_path):
    out, _ = done
    store = scalebrain.ingest(out, tmp_path / "cohort.zarr")
    ds = scalebrain.open_store(store)
    present = ds.sel(subject=["sub-01", "sub-02"])
    assert present["gm_present"].values.all()
    assert present["lesion_hemisphere"].values.tolist() == ["none", "R"] or (
        present["lesion_hemisphere"].values[1] == "R"
    )
    assert ds.attrs["simulated"] == "true"
    # the probabilities, not the modulated grey matter that lies beside them
    expected = np.asarray(image(out, "sub-02", "label-GM_probseg").get_fdata(), np.float32)
    got = scalebrain.unpack(ds["gm"].sel(subject="sub-02"))
    got = np.asarray(getattr(got, "dataobj", got))
    inside = brain_mask(template_grid(2.0))
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-3)


@pytest.mark.slow
def test_preprocess__passes_the_official_validator(done):
    errors = [i for i in validated(done[0]) if i["severity"] == "error"]
    assert errors == []


@pytest.mark.slow
def test_preprocess__goes_on_where_it_stopped(raw, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    for who in ("sub-01", "sub-02"):  # the copy is elsewhere: its records are as good
        assert record(out, who)["fingerprint"] == record(done[0], who)["fingerprint"]
    before = {k: v for k, v in tree_bytes(out).items() if k.startswith("sub-")}
    table = scalebrain.preprocess(raw, out, quick=True, participants=["01", "sub-02"], threads=2)
    assert table.attrs == {"n_done": 0, "n_resumed": 2, "n_failed": 0}
    assert {k: v for k, v in tree_bytes(out).items() if k.startswith("sub-")} == before


@pytest.mark.slow
def test_preprocess__an_empty_mask_and_one_of_labels(tmp_path):
    need("ants")
    root, out = tmp_path / "raw", tmp_path / "out"
    write_table(root, ("sub-01", "sub-02"))
    scan, mask, grid, _ = make_head(lesion=True, seed=1)
    for who, labels in (("sub-01", 0 * mask), ("sub-02", 2 * mask + 5 * ~mask)):
        labels = labels.astype(np.uint8)
        save_turned(root / who / "anat" / f"{who}_T1w.nii.gz", scan.astype(np.int16), grid)
        save_turned(root / who / "anat" / f"{who}_label-L_mask.nii.gz", labels, grid)
    table = scalebrain.preprocess(root, out, quick=True, lesion_labels=[2])
    assert table.attrs["n_done"] == 2
    empty = table[table["code"] == "lesion-empty"]
    assert empty["subject"].tolist() == ["sub-01"]
    assert empty["file"].item() == "sub-01/anat/sub-01_label-L_mask.nii.gz"
    assert str(tmp_path) not in "".join(table["message"])
    assert not np.asarray(image(out, "sub-01", "label-L_mask").dataobj).any()
    volume = 4 / 3 * np.pi * RADIUS**3 / 1000
    found = np.asarray(image(out, "sub-02", "label-L_mask").dataobj).sum() * 0.008
    assert found == pytest.approx(volume, rel=0.1)
    told = record(out, "sub-02")
    # a process that is killed meanwhile never leaves a stroke without its mask
    assert next(iter(told["files"])).endswith("label-L_mask.nii.gz")
    assert told["versions"].keys() >= {"scipy", "numpy", "antspyx", "template_sha256"}


def test_preprocess__without_ants_names_the_extra(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ConfigError, match=r"pip install 'scalebrain\[preprocess\]'"):
        scalebrain.preprocess(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_preprocess__refuses_a_folder_of_something_else(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("scalebrain.preprocessing.cohort.check_ants", lambda: None)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="Give a new folder"):
        scalebrain.preprocess(raw, tmp_path)
    with pytest.raises(ConfigError, match="Give a folder of its own"):
        scalebrain.preprocess(raw, raw)
    with pytest.raises(ConfigError, match="expected enantiomorphic"):
        scalebrain.preprocess(raw, tmp_path / "out", fill="guess")


def test_cli__dry_run_says_what_would_be_done(raw, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        cli.main(["preprocess", str(raw), str(out), "--dry-run", "--scheduler", "threads"])
    assert left.value.code == 3  # sub-03 would be left out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sub-01: sub-01/anat/sub-01_T1w.nii.gz, no lesion mask")
    assert "lesion sub-02/anat/sub-02_label-lesion_roi.nii.gz" in lines[1]
    assert lines[-1].startswith("E [mask-needed] sub-03: ")
    assert not out.exists()
