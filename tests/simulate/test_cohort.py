"""Simulated trees on disk: their files, their truth, their determinism."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import scalebrain.simulate.cohort as module
from scalebrain.atlas.space import SPACE, template_grid
from scalebrain.errors import ConfigError
from scalebrain.io.sources import find_cohort
from scalebrain.io.store import open_store
from scalebrain.simulate.cohort import simulate_cohort

SMALL = {"reference": 9, "stroke": 9, "cohorts": 2, "resolution": 6.0, "seed": 4}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return simulate_cohort(tmp_path_factory.mktemp("first") / "bids", **SMALL)


@pytest.fixture(scope="module")
def truth(tree):
    return open_store(tree.parent / "truth.zarr").load()


def load(tree, subject, suffix):
    return nib.load(tree / subject / "anat" / f"{subject}_space-{SPACE}_{suffix}.nii.gz")


def test_simulate_cohort__writes_a_bids_tree_that_is_found(tree):
    cohort = find_cohort(tree)
    assert len(cohort.scans) == 18
    assert all(scan.t1w and scan.gm for scan in cohort.scans)
    assert sum(scan.lesion is not None for scan in cohort.scans) == 9
    assert cohort.description["Simulated"] is True
    assert cohort.description["DatasetType"] == "derivative"
    table = pd.read_csv(tree / "participants.tsv", sep="\t", na_values="n/a")
    assert list(table) == [
        *("participant_id", "age", "sex", "cohort", "group"),
        *("days_post_stroke", "icv", "motor_score"),
    ]
    assert table["motor_score"].dropna().between(0, 1).all()
    assert set(json.loads((tree / "participants.json").read_text())) == set(table)
    references = table[table["group"] == "reference"]
    assert references[["days_post_stroke", "motor_score"]].isna().all(axis=None)


def test_simulate_cohort__images_have_the_grid_of_the_template(tree):
    grid = template_grid(6.0)
    for suffix, dtype in (
        ("desc-preproc_T1w", np.int16),
        ("label-GM_probseg", np.uint8),
        ("label-L_mask", np.uint8),
    ):
        image = load(tree, "sub-stroke001", suffix)
        assert image.shape == grid.shape
        np.testing.assert_allclose(image.affine, grid.matrix)
        np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-4)
        assert image.get_data_dtype() == dtype
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    grey = load(tree, "sub-stroke001", "label-GM_probseg").get_fdata()
    assert grey.min() == 0
    assert 0.9 < grey.max() <= 1
    sidecar = tree / f"sub-stroke001/anat/sub-stroke001_space-{SPACE}_label-L_mask.json"
    assert json.loads(sidecar.read_text())["Type"] == "Lesion"


def test_simulate_cohort__lesions_are_on_the_side_and_of_the_volume_of_the_truth(tree, truth):
    for subject in truth["subject"].values[9:]:
        image = load(tree, subject, "label-L_mask")
        mask = np.asarray(image.dataobj) > 0
        x = nib.affines.apply_affine(image.affine, np.argwhere(mask))[:, 0]
        person = truth.sel(subject=subject)
        assert set(np.sign(x)) == {-1.0 if person["true_hemisphere"].item() == "L" else 1.0}
        volume = mask.sum() * 6.0**3 / 1000
        assert volume == pytest.approx(person["true_lesion_volume"].item())


def test_simulate_cohort__truth_says_everything(tree, truth):
    content = json.loads((tree.parent / "truth.json").read_text())
    assert content["tree"] == "bids"
    assert content["design"]["seed"] == 4
    assert set(content["oracle"]["regions"]) == set(truth["region"].values)
    assert content["parameters"]["deviation_sd"] == 4.0
    assert any("cst_on_motor" in line for line in content["structural_model"])
    assert {e["name"] for e in content["effects"]} >= {
        "ipsilesional_lesion_volume:SMN",
        "contralesional_lesion_volume:VLN",
        "motor:cst_load_ipsilesional",
    }
    age = truth["true_biological_age"] - truth["true_deviation"]
    np.testing.assert_allclose(age, np.broadcast_to(truth["age"], age.T.shape).T)
    codes = content["regions"]["FPN_L"]
    mean = truth["true_biological_age_parcel"].sel(parcel=codes).mean("parcel")
    np.testing.assert_allclose(mean, truth["true_biological_age"].sel(region="FPN_L"))
    references = truth["group"].values == "reference"
    assert np.isnan(truth["true_lesion_volume"].values[references]).all()
    assert np.isfinite(truth["true_motor"].values[~references]).all()


def test_simulate_cohort__no_truth_in_the_tree(tree):
    for path in tree.rglob("*"):
        assert "truth" not in path.name
        if path.suffix in (".json", ".tsv"):
            text = path.read_text().lower()
            assert "deviation" not in text
            assert "biological" not in text
            assert "seed" not in text


def test_simulate_cohort__same_seed_same_bytes(tree, tmp_path):
    again = simulate_cohort(tmp_path / "bids", **SMALL)
    assert digests(again.parent) == digests(tree.parent)


def test_simulate_cohort__another_seed_other_images(tree, tmp_path):
    other = simulate_cohort(tmp_path / "bids", **{**SMALL, "seed": 5, "reference": 2, "stroke": 2})
    ours, theirs = (load(t, "sub-ref001", "desc-preproc_T1w").get_fdata() for t in (tree, other))
    assert not np.array_equal(ours, theirs)


def test_simulate_cohort__dask_workers_write_the_same_bytes(tree, tmp_path):
    from distributed import Client

    with Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ):
        again = simulate_cohort(tmp_path / "bids", **SMALL)
    assert digests(again.parent) == digests(tree.parent)


def test_simulate_cohort__a_killed_run_is_refused_by_readers_and_completed(
    tree, tmp_path, monkeypatch
):
    calls = []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return draw(*args, **options)

    draw = module.draw_scan
    monkeypatch.setattr(module, "draw_scan", dies)
    with pytest.raises(KeyboardInterrupt):
        simulate_cohort(tmp_path / "bids", **SMALL)
    monkeypatch.undo()
    assert not (tmp_path / "bids" / "participants.tsv").exists()
    half = tmp_path / "bids" / "sub-ref001" / "anat"
    half.mkdir(parents=True, exist_ok=True)
    (half / ".sub-ref001_T1w.nii.gz.0000.part").write_bytes(b"half")
    again = simulate_cohort(tmp_path / "bids", **SMALL)
    assert digests(again.parent) == digests(tree.parent)


def test_simulate_cohort__a_finished_tree_is_left_as_it_is(tree):
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*.nii.gz")}
    simulate_cohort(tree, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*.nii.gz")} == before


def test_simulate_cohort__a_rescan_is_the_same_people(tree, truth, tmp_path):
    again = simulate_cohort(tmp_path / "rescan", scan=1, **SMALL)
    for name in ("participants.tsv", "participants.json"):
        assert (again / name).read_bytes() == (tree / name).read_bytes()
    rescan = open_store(tmp_path / "truth.zarr").load()
    np.testing.assert_array_equal(rescan["true_deviation"], truth["true_deviation"])
    first, second = (load(t, "sub-ref001", "label-GM_probseg").get_fdata() for t in (tree, again))
    assert not np.array_equal(first, second)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.98


def test_simulate_cohort__the_truth_of_another_tree_is_not_overwritten(tree):
    before = digests(tree.parent)
    with pytest.raises(ConfigError, match=r"truth of the tree 'bids'.*another path"):
        simulate_cohort(tree.parent / "second", **SMALL)
    with pytest.raises(ConfigError, match="inside the tree"):
        simulate_cohort(tree, truth=tree / "truth.json", **SMALL)
    with pytest.raises(ConfigError, match="another simulation"):
        simulate_cohort(tree, **{**SMALL, "seed": 9})
    assert digests(tree.parent) == before


def test_simulate_cohort__other_files_are_not_touched(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a simulation"):
        simulate_cohort(tmp_path / "data", **SMALL)
    (tmp_path / "truth.json").write_text("{}")
    with pytest.raises(ConfigError, match="no truth of a simulation"):
        simulate_cohort(tmp_path / "bids", **SMALL)
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": -1}, "reference is -1"),
        ({"reference": 0, "stroke": 0}, "at least one"),
        ({"cohorts": 0}, "cohorts is 0"),
        ({"resolution": 0.5}, "resolution is 0.5"),
        ({"resolution": 9}, "resolution is 9"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": None}, "seed is None"),
        ({"reference": "many"}, "reference is many"),
        ({"resolution": "2"}, "resolution is 2"),
        ({"truth": "truth.txt"}, "ends in .json"),
    ],
)
def test_simulate_cohort__bad_arguments_raise(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        simulate_cohort(tmp_path / "bids", **{**SMALL, **change})
    assert not (tmp_path / "bids").exists()


@pytest.mark.parametrize("group", ["reference", "stroke"])
def test_simulate_cohort__one_group_alone(tmp_path, group):
    counts = {"reference": 0, "stroke": 0, group: 2}
    tree = simulate_cohort(tmp_path / "bids", **{**SMALL, **counts})
    assert len(find_cohort(tree).scans) == 2


def test_simulate_cohort__rival_direction_is_another_simulation(tmp_path):
    few = {**SMALL, "reference": 0, "stroke": 4}
    simulate_cohort(tmp_path / "a" / "bids", **few)
    simulate_cohort(tmp_path / "b" / "bids", rival_direction=True, **few)
    a, b = (open_store(tmp_path / x / "truth.zarr").load() for x in "ab")
    assert not np.allclose(a["true_deviation"], b["true_deviation"])
    np.testing.assert_array_equal(a["true_cst_load"], b["true_cst_load"])
