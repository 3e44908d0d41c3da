import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain import pipeline
from scalebrain.config import StudyConfig, config_schema, read_config
from scalebrain.errors import (
    ConfigError,
    DataWarning,
    MissingVariableError,
    StoreError,
    TableError,
)
from scalebrain.graph.artifact import artifact_summary, lesion_artifact
from scalebrain.graph.policies import ages_by_policy
from scalebrain.ingestion import cohort
from scalebrain.io.results import read_results
from scalebrain.report.versions import versions
from scalebrain.study import Study, told_settings
from tests.conftest import CONFIG
from tests.phantom import image_path, save, tree_bytes, write_tree

SECTIONS = (
    "Who was studied",
    "How good the scans are",
    "Where the lesions lie",
    "How well age is read",
    "What brain age is read from",
    "Effects on the brain",
    "Regional effects",
    "Does it depend on the analysis?",
    "Recovered versus planted",
)


def test_run_study__leaves_everything(study):
    report = (study / "report.html").read_text(encoding="utf-8")
    for section in SECTIONS:
        assert section in report
    assert "Simulated data" in report
    names = {path.name for path in (study / "tables").glob("*.tsv")}
    assert {"subjects.tsv", "subjects_region.tsv", "accuracy.tsv", "recovery.tsv"} <= names
    assert (study / "model" / "model.json").is_file()


def test_run_study__public_functions_work_with_defaults_on_the_store(study):
    ds = scalebrain.open_store(study / "cohort.zarr")
    assert ds["brain_pad_corrected"].dims == ("subject", "region")
    model = scalebrain.BrainAgeModel.load(study / "model")
    again = scalebrain.brain_age(ds, model)
    np.testing.assert_allclose(
        again["brain_age"].values, ds["brain_age"].values, rtol=1e-6, atol=1e-6
    )
    strokes = ds["group"].values == "stroke"
    assert not again["out_of_fold"].values[strokes].any()
    fit = scalebrain.mixed_model(
        scalebrain.to_lesional_sides(ds),
        "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex",
    )
    for name in ("estimate", "se", "df", "ci_low", "ci_high", "p", "q"):
        assert set(fit[name].dims) == {"region", "term"}
    assert fit["n"].dims == ("region",)
    assert scalebrain.tract_load(ds)["tract_load"].dims == ("subject", "tract")
    assert ds.scalebrain.lesion_load()["lesion_load"].dims == ("subject", "region")


def test_run_study__says_what_a_lesion_alone_does(study):
    ds = scalebrain.open_store(study / "cohort.zarr")
    found = lesion_artifact(ds, study / "model", n_pairs=12)
    shift, touched = found["pad_shift"], found["region_touched"]
    assert found.sizes["pair"] == 12
    assert 0.1 < float(touched.mean()) < 0.95
    for policy in found["policy"].values:  # to the bit
        assert (shift.sel(policy=policy).values[~touched.values] == 0).all()
    table = artifact_summary(found)
    size = table["shift_size"].sel(reach="lesioned")
    assert size.sel(policy="mask_nodes") < 0.5 * size.sel(policy="as_is")
    assert (table["shift_largest"].sel(reach="untouched") == 0).all()
    again = lesion_artifact(ds, study / "model", n_pairs=12)
    np.testing.assert_array_equal(again["pad_shift"], shift)
    results, _ = read_results(study / "results.zarr")
    assert (results["site_shift"]["n_healthy"].sum("cohort") > 0).all()
    assert results["artifact"]["n"].sel(reach="lesioned").min() > 5
    size = results["attribution"]["node_importance"].values
    assert np.isfinite(size).all()
    assert size.min() >= 0


def test_run_study__tries_every_lesion_policy(study):
    ds = scalebrain.open_store(study / "cohort.zarr")
    people = ds.isel(subject=np.flatnonzero(ds["lesion_present"].values))
    model = study / "model"
    found = ages_by_policy(people, model)
    assert list(found) == ["as_is", "enantiomorphic", "exclude_region"]
    (again,) = ages_by_policy(people, model, policies=["mask_nodes"]).values()
    own = again["brain_pad_corrected"].values
    np.testing.assert_allclose(own, people["brain_pad_corrected"].values, atol=1e-4)
    for policy, other in found.items():
        moved = other["brain_pad_corrected"].values != own
        assert 0 < moved.mean() < 0.9 or policy == "exclude_region", policy
    excluded = found["exclude_region"]
    gone = np.isnan(excluded["brain_pad_corrected"].values)
    np.testing.assert_array_equal(gone, excluded["region_excluded"].values)
    np.testing.assert_array_equal(excluded["brain_pad_corrected"].values[~gone], own[~gone])
    result, _ = read_results(study / "results.zarr")
    assert set(result["multiverse"]["policy"].values) == {"mask_nodes", *found}
    assert result["multiverse"].sizes["specification"] == 64


def test_run_study__beats_the_mean_and_finds_the_true_deviation(study):
    table = pd.read_csv(study / "tables" / "accuracy.tsv", sep="\t")
    assert (table["mae"] < table["mae_mean"]).all()
    assert table["deviation_r"].mean() > 0.15
    assert (table["oracle_mae"] < table["mae"]).all()


def test_run_study__second_run_does_nothing_and_says_so(study, tree, caplog):
    before = tree_bytes(study)
    with caplog.at_level("INFO", logger="scalebrain"):
        scalebrain.run_study(tree, study, CONFIG, truth=tree.parent / "truth.json")
    assert "nothing to do" in caplog.text
    assert tree_bytes(study) == before


def wall_times(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    block = page[page.index("<summary>Wall time, s</summary>") :]
    block = block[: block.index("</dl>")]
    return dict(re.findall(r"<dt>(\w+)</dt><dd>([\d.]+)</dd>", block))


def test_run_study__keeps_the_wall_times_of_what_was_done_before(study, tree, tmp_path):
    first = wall_times(study)
    assert list(first) == ["ingest", "features", "train", "predict", "statistics"]
    out, stages = tmp_path / "out", tmp_path / "out" / "stages"
    shutil.copytree(study, out)

    def rewrite(name, **other):
        record = json.loads((stages / f"{name}.json").read_text())
        assert record.pop("seconds") > 0
        (stages / f"{name}.json").write_text(json.dumps(record | other))

    rewrite("ingest", seconds=987.64)  # that of an ingest that read something
    rewrite("train", seconds=1234.56)
    rewrite("features")  # a record of an earlier version is done all the same
    (stages / "report.json").unlink()
    scalebrain.run_study(tree, out, CONFIG, truth=tree.parent / "truth.json")
    expected = {**first, "ingest": "987.6", "train": "1234.6"}
    del expected["features"]
    assert wall_times(out) == expected
    assert json.loads((stages / "ingest.json").read_text())["seconds"] == 987.64
    assert json.loads((stages / "report.json").read_text())["seconds"] > 0


def test_read_results__of_a_cohort_store_says_what_to_give(study):
    with pytest.raises(StoreError, match=r"cohort\.zarr: is no store of results"):
        read_results(study / "cohort.zarr")
    with pytest.raises(StoreError, match=r"holds no results\. Give the results\.zarr"):
        read_results(study)


def test_run_study__report_tells_where_its_numbers_come_from(study, tree):
    page = (study / "report.html").read_text(encoding="utf-8")
    model = scalebrain.BrainAgeModel.load(study / "model")
    assert f"<dt>Model, SHA-256</dt><dd>{model.fingerprint}</dd>" in page
    assert "<dt>scheduler</dt><dd>threads</dd>" in page
    for name in versions():
        assert f"<dt>{name}</dt>" in page
    assert str(tree.parent) not in page  # no path of the machine


@pytest.mark.parametrize("stage", ["features", "train", "predict", "statistics"])
def test_run_study__killed_in_a_stage_ends_with_the_same_store(study, tree, monkeypatch, stage):
    out = tree.parent / f"killed-{stage}"
    shutil.copytree(study, out)
    (out / "stages" / f"{stage}.json").unlink()  # what comes after depends on its files alone
    steps = {"train": "train_model", "predict": "save_ages", "statistics": "write_results"}
    step = steps.get(stage, "save_store")
    real = getattr(pipeline, step)

    def dies(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, step, dies)
    with pytest.raises(KeyboardInterrupt):
        scalebrain.run_study(tree, out, CONFIG)
    monkeypatch.setattr(pipeline, step, real)
    scalebrain.run_study(tree, out, CONFIG, truth=tree.parent / "truth.json")
    assert tree_bytes(out / "cohort.zarr") == tree_bytes(study / "cohort.zarr")
    assert tree_bytes(out / "tables") == tree_bytes(study / "tables")


def test_run__sigkill_at_any_moment_then_the_same_command_ends_with_the_same_store(study, tree):
    out = tree.parent / "sigkill"
    config = tree.parent / "study.yaml"
    config.write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "scalebrain.cli", "run", str(tree), str(out)]
    command += ["--config", str(config), "--scheduler", "threads"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    for seconds in (4.0, 8.0):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        ) as running:
            time.sleep(seconds)
            running.send_signal(signal.SIGKILL)
            running.communicate()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(out / "report.html")
    assert tree_bytes(out / "cohort.zarr") == tree_bytes(study / "cohort.zarr")


def test_report__opens_in_a_browser_without_the_network(study, chromium, tmp_path):
    shot = tmp_path / "report.png"
    flags = (
        "--headless=new --no-sandbox --disable-quic --no-first-run --disable-component-update "
        "--disable-background-networking --disable-sync --disable-gpu --virtual-time-budget=4000 "
        f"--window-size=1200,2000 --user-data-dir={tmp_path / 'profile'}"
    ).split()
    page = (study / "report.html").resolve().as_uri()
    subprocess.run(
        [chromium, *flags, f"--screenshot={shot}", page],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert shot.stat().st_size > 50_000
    dom = subprocess.run(
        [chromium, *flags, "--dump-dom", page],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    for section in SECTIONS:
        assert section in dom


def test_read_config__names_the_key(tmp_path):
    assert read_config(None) == StudyConfig()
    with pytest.raises(ConfigError, match="foo: unknown key"):
        read_config({"foo": 1})
    with pytest.raises(ConfigError, match="n_boot"):
        read_config({"n_boot": "many"})
    path = tmp_path / "study.yaml"
    path.write_text("seed: 3\nmin_days_post_stroke: 90\n")
    assert read_config(path) == StudyConfig(seed=3, min_days_post_stroke=90.0)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(path)


@pytest.fixture(scope="session")
def strokes(tmp_path_factory):
    """A tree of people with a stroke alone, with a table of ages of each kind."""
    folder = tmp_path_factory.mktemp("strokes")
    tree = scalebrain.simulate_cohort(
        folder / "bids", reference=1, stroke=24, cohorts=3, resolution=4.0
    )
    people = pd.read_csv(tree / "participants.tsv", sep="\t")
    for subject in people.loc[people["group"] == "reference", "participant_id"]:
        shutil.rmtree(tree / subject)
    people = people[people["group"] == "stroke"]
    people.to_csv(tree / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    rng = np.random.default_rng(0)
    regions = scalebrain.load_atlas("networks-9x2").regions
    ages = pd.DataFrame(
        people["age"].to_numpy()[:, None] * 0.8 + rng.normal(12, 4, (len(people), len(regions))),
        columns=list(regions),
        index=people["participant_id"],
    ).clip(1, 119)
    ages.to_csv(folder / "regional.tsv", sep="\t")
    pd.DataFrame({"brain_age": ages.mean(axis=1)}).to_csv(folder / "global.csv")
    return tree


def ages_config(tree, name):
    ages = {"table": str(tree.parent / name), "tool": "brainageR", "tool_version": "2.1"}
    return {"n_boot": 10, "n_permutations": 1, "ages": ages}


def test_run_study__strokes_alone_with_ages_of_another_tool(strokes, caplog):
    out = strokes.parent / "out"
    with pytest.warns(DataWarning, match="not corrected"):
        scalebrain.run_study(strokes, out, ages_config(strokes, "regional.tsv"))
    results, attrs = read_results(out / "results.zarr")
    assert {"mixed", "mixed_load", "sem", "motor"} <= set(results)
    assert "brainageR 2.1" in attrs["missing"]["accuracy"]
    assert results["mixed"].attrs["formula"].startswith("brain_pad ~")
    assert results["mixed"]["estimate"].notnull().all()
    assert results["sem"].attrs["model"].count("+ age") == 2 + 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "were imported from brainageR 2.1" in page
    assert "predicted outside this study" in page
    assert "graph network with" not in page
    assert "age bias is not corrected" in page
    assert not (out / "model").exists()
    with caplog.at_level("INFO", logger="scalebrain"):
        scalebrain.run_study(strokes, out, ages_config(strokes, "regional.tsv"))
    assert "nothing to do" in caplog.text
    # one age of the whole brain instead: only the stages that depend on it run again
    caplog.clear()
    caplog.set_level("INFO", logger="scalebrain")
    with pytest.warns(DataWarning, match="brain_pad_global"):
        scalebrain.run_study(strokes, out, ages_config(strokes, "global.csv"))
    assert "2/6 features: done before" in caplog.text
    results, attrs = read_results(out / "results.zarr")
    assert {"mixed", "sem", "motor"} <= set(results)
    assert "whole brain" in attrs["missing"]["mixed_load"]
    assert results["mixed"]["region"].values.tolist() == ["whole_brain"]
    assert "brain ~ cst" in results["sem"].attrs["model"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "there is no region to paint" in page
    # and a table that changed is read again
    with (strokes.parent / "global.csv").open("a") as file:
        file.write("\n")
    caplog.clear()
    with pytest.warns(DataWarning, match="brain_pad_global"):
        scalebrain.run_study(strokes, out, ages_config(strokes, "global.csv"))
    assert "3/6 ages: done before" not in caplog.text


def write_decisions(path, **words):
    rows = [f"sub-{who}\t{word}\tmotion\n" for who, word in words.items()]
    path.write_text("participant_id\tdecision\tnote\n" + "".join(rows))


def test_run_study__decisions_of_a_quality_control_exclude_and_are_read_again(
    study, tree, tmp_path, caplog, monkeypatch
):
    out, table = tmp_path / "out", tmp_path / "decisions.tsv"
    shutil.copytree(study, out)
    config = {**CONFIG, "qc_decisions": str(table)}
    with pytest.raises(ConfigError, match=r"decisions\.tsv: no such file"):
        scalebrain.run_study(tree, out, config, level="group")
    run = {"level": "group"}
    slow = ("_train", "_statistics", "_report", "_export")
    for name in slow:  # whether they run is what is asked
        monkeypatch.setattr(pipeline, name, lambda _: None)
    write_decisions(table, nobody="accept", ref001="good")
    with pytest.raises(TableError, match=r"2 problems[\s\S]*sub-nobody"):
        scalebrain.run_study(tree, out, config, **run)
    write_decisions(table, ref001="exclude", stroke001="unsure", stroke002="accept")
    caplog.set_level("INFO", logger="scalebrain")
    caplog.clear()
    scalebrain.run_study(tree, out, config, **run)
    assert "done before" not in caplog.text
    assert "1 unsure are kept" in caplog.text
    ds = scalebrain.open_store(out / "cohort.zarr")
    before = scalebrain.open_store(study / "cohort.zarr")
    other = ds["included"].values != before["included"].values
    assert ds["subject"].values[other].tolist() == ["sub-ref001"]
    one = ds.sel(subject="sub-ref001")
    assert str(one["exclusion_reason"].values) == "excluded at quality control"
    assert str(one["qc_note"].values) == "motion"
    caplog.clear()
    scalebrain.run_study(tree, out, config, **run)
    assert "nothing to do" in caplog.text
    preview = pipeline.preview_study(tree, out, config, **run)
    assert all(is_done for _, is_done in preview.stages)
    # a changed decision is read again, and everything after it is done again
    write_decisions(table, ref001="accept")
    preview = pipeline.preview_study(tree, out, config, **run)
    assert not any(is_done for _, is_done in preview.stages)
    caplog.clear()
    scalebrain.run_study(tree, out, config, **run)
    assert "done before" not in caplog.text
    ds = scalebrain.open_store(out / "cohort.zarr")
    np.testing.assert_array_equal(ds["included"].values, before["included"].values)
    # and without a table nothing of it stays
    scalebrain.run_study(tree, out, CONFIG, **run)
    assert "are removed" in caplog.text
    assert "qc_decision" not in scalebrain.open_store(out / "cohort.zarr")
    assert tree_bytes(out / "cohort.zarr") == tree_bytes(study / "cohort.zarr")


def test_run_study__decisions_about_people_to_come_are_left_aside(tree, tmp_path):
    table, out = tmp_path / "decisions.tsv", tmp_path / "out"
    write_decisions(table, ref001="exclude", ref002="accept", ref003="exclude")
    options = {"level": "participant", "participants": ["ref001", "ref002"]}
    scalebrain.run_study(tree, out, {"qc_decisions": str(table)}, **options)
    ds = scalebrain.open_store(out / "cohort.zarr")
    assert ds["qc_decision"].values.astype(str).tolist() == ["exclude", "accept"]
    options["participants"] = ["ref003"]
    scalebrain.run_study(tree, out, {"qc_decisions": str(table)}, **options)
    ds = scalebrain.open_store(out / "cohort.zarr")
    assert ds["qc_decision"].values.astype(str).tolist() == ["exclude", "accept", "exclude"]
    assert ds["included"].values.tolist() == [False, True, False]


STAGES = ("features", "train", "predict", "statistics", "report", "export")


def only_tell(monkeypatch, *names):
    """List of the stages that ran, of those that do nothing but this."""
    ran = []
    for name in names:
        monkeypatch.setattr(pipeline, f"_{name}", lambda _, name=name: ran.append(name))
    return ran


def previewed(tree, out, **options):
    preview = pipeline.preview_study(tree, out, CONFIG, **options)
    return [name for name, is_done in preview.stages if not is_done]


def test_run_study__who_is_left_out_is_told_and_nothing_is_computed_again(
    study, tree, tmp_path, monkeypatch
):
    out, bids = tmp_path / "out", tmp_path / "bids"
    shutil.copytree(study, out)
    shutil.copytree(tree, bids)
    told = {"truth": tree.parent / "truth.json"}
    shutil.copytree(bids / "sub-ref001", bids / "sub-new01")
    for path in (bids / "sub-new01").rglob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace("sub-ref001", "sub-new01")))
    ran = only_tell(monkeypatch, "features", "train", "predict", "statistics", "export")
    assert previewed(bids, out, **told) == ["ingest", "report", "export"]
    scalebrain.run_study(bids, out, CONFIG, **told)
    assert ran == ["export"]
    assert "sub-new01" in (out / "tables" / "rejected.tsv").read_text()
    assert "sub-new01" in (out / "report.html").read_text(encoding="utf-8")
    assert {"node_features", "brain_age"} <= set(scalebrain.open_store(out / "cohort.zarr"))
    assert previewed(bids, out, **told) == []


def test_run_study__an_update_killed_and_taken_back_computes_features_again(tmp_path, monkeypatch):
    bids, out = write_tree(tmp_path / "bids", n=4), tmp_path / "out"
    scalebrain.run_study(bids, out, level="participant")
    expected = tree_bytes(out / "cohort.zarr")
    path = image_path(bids, "sub-001", "desc-preproc_T1w")
    before, image = path.read_bytes(), nib.load(path)
    save(path, np.asarray(image.dataobj) + np.int16(3), image.affine)

    def dies(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "write_arrays", dies)
        with pytest.raises(KeyboardInterrupt):
            scalebrain.run_study(bids, out, level="participant")
    path.write_bytes(before)
    scalebrain.run_study(bids, out, level="participant")
    assert tree_bytes(out / "cohort.zarr") == expected


def test_run_study__a_mended_file_computes_features_again(tmp_path):
    bids, out = write_tree(tmp_path / "bids", n=4), tmp_path / "out"
    path = image_path(bids, "sub-003", "desc-preproc_T1w")
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 8  # size and checksum at its end are those of the good one
    path.write_bytes(damaged)
    scalebrain.run_study(bids, out, level="participant")
    assert scalebrain.open_store(out / "cohort.zarr").sizes["subject"] == 3
    path.write_bytes(good)
    scalebrain.run_study(bids, out, level="participant")
    ds = scalebrain.open_store(out / "cohort.zarr")
    assert ds["node_features"].sizes["subject"] == 4
    assert np.isfinite(ds["node_features"].sel(subject="sub-003")).any()


def test_run_study__features_that_changed_train_again(study, tree, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    ran = only_tell(monkeypatch, *STAGES[1:])
    store = out / "cohort.zarr"
    told = {"truth": tree.parent / "truth.json"}
    (store / "t1w" / "c" / "0" / "0").unlink()
    scalebrain.ingest(tree, store, verify=True)
    scalebrain.run_study(tree, out, CONFIG, **told)
    assert ran == ["predict"]  # the features had been of undamaged scans: the model stays
    ran.clear()
    monkeypatch.setattr(pipeline, "_features_hash", lambda _: "other")
    scalebrain.run_study(tree, out, CONFIG, **told)
    assert ran == list(STAGES[1:])


def test_run_study__what_the_commands_of_stages_changed_is_done_again(
    study, tree, tmp_path, monkeypatch
):
    out, decisions = tmp_path / "out", tmp_path / "decisions.tsv"
    shutil.copytree(study, out)
    told = {"truth": tree.parent / "truth.json"}
    assert previewed(tree, out, **told) == []
    write_decisions(decisions, stroke001="exclude")
    pipeline.compute_features(out / "cohort.zarr", decisions=decisions)
    assert previewed(tree, out, **told) == list(STAGES)
    ran = only_tell(monkeypatch, *STAGES[1:])
    scalebrain.run_study(tree, out, CONFIG, **told)
    assert "qc_decision" not in scalebrain.open_store(out / "cohort.zarr")
    assert "predict" in ran  # decisions were taken back: the model is of the same people


def test_run_study__another_model_is_trained_and_its_ages_predicted_again(study, tree, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    told = {"truth": tree.parent / "truth.json"}
    about = out / "model" / "model.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"fingerprint": "other"}))
    assert previewed(tree, out, **told) == list(STAGES[1:])


def test_run_study__explicit_defaults_change_nothing(study, tree):
    keys = config_schema()["properties"]
    config = {
        **CONFIG,
        "ingest": {k: v["default"] for k, v in keys["ingest"]["properties"].items()},
    }
    defaults = {k: v["default"] for k, v in keys["training"]["properties"].items()}
    config["training"] = defaults | CONFIG["training"]
    preview = pipeline.preview_study(tree, study, config, truth=tree.parent / "truth.json")
    assert all(is_done for _, is_done in preview.stages)


def test_run_study__imported_ages_are_replaced_only_where_the_study_imported_them(
    study, tree, tmp_path, monkeypatch
):
    out, table = tmp_path / "out", tmp_path / "ages.tsv"
    shutil.copytree(study, out)
    ds = scalebrain.open_store(out / "cohort.zarr")
    ages = {"subject": ds["subject"].values, "brain_age": ds["brain_age"].mean("region").values}
    pd.DataFrame(ages).to_csv(table, sep="\t", index=False)
    told = {"truth": tree.parent / "truth.json"}
    named = CONFIG | {"ages": {"table": str(table), "tool": "brainageR"}}
    with monkeypatch.context() as patched:
        only_tell(patched, "statistics", "report", "export")
        scalebrain.run_study(tree, out, named, **told)
        ran = only_tell(patched, "train", "statistics", "report", "export")
        scalebrain.run_study(tree, out, CONFIG, **told)  # predicts with the model that is there
    assert "train" not in ran
    store = out / "cohort.zarr"
    assert not scalebrain.open_store(store)["brain_age"].attrs.get("tool")
    scalebrain.import_ages(store, table, tool="other", replace=True)
    for call in (scalebrain.run_study, pipeline.preview_study):
        with pytest.raises(StoreError, match="brain ages of other, which this study did not"):
            call(tree, out, CONFIG, **told)
    assert "brain_age_global" in scalebrain.open_store(store)
    only_tell(monkeypatch, "statistics", "report", "export")
    scalebrain.run_study(tree, out, named, **told)
    assert scalebrain.open_store(store)["brain_age_global"].attrs["tool"] == "brainageR"
    scalebrain.import_ages(store, table, tool="other", replace=True)
    preview = pipeline.preview_study(tree, out, named, **told)
    assert not dict(preview.stages)["ages"]


def test_run_study__settings_of_the_ingest_are_held_to_and_told(tmp_path, monkeypatch):
    tree, out = write_tree(tmp_path / "bids", n=4), tmp_path / "out"
    made = {"ingest": {"whole_head": True, "resolution": 5, "withdrawn": str(tmp_path / "gone")}}
    (tmp_path / "gone").write_text("sub-999\n")
    monkeypatch.setattr(pipeline, "_features", lambda _: None)
    scalebrain.run_study(tree, out, made, level="participant")
    for left_out in ({"whole_head": True}, {"resolution": 5}):
        for call in (scalebrain.run_study, pipeline.preview_study):
            with pytest.raises(
                StoreError, match=r"(whole_head is false|resolution is null)\. Give"
            ):
                call(tree, out, {"ingest": left_out}, level="participant")
    scalebrain.run_study(tree, out, made, level="participant")
    group = pipeline._open_study(tree, out, {}, None, "group", ())
    assert told_settings(group)["ingest"] == {
        "whole_head": True,
        "resolution": 5.0,
        "withdrawn": "gone",
    }


def test_predict_outcome__a_folder_that_cannot_be_made_is_told_first(study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(
        "scalebrain.predict.motor.predict_motor", lambda *_, **__: pytest.fail("ran")
    )
    with pytest.raises(ConfigError, match="cannot be made"):
        pipeline.predict_outcome(study / "cohort.zarr", tmp_path / "file" / "out")


def test_run_study__group_sees_that_the_store_changed(study, tree, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    ran = only_tell(monkeypatch, *STAGES[1:])
    group = {"level": "group", "truth": tree.parent / "truth.json"}
    assert previewed(tree, out, **group) == []
    scalebrain.withdraw(out / "cohort.zarr", ["sub-ref002"])
    assert previewed(tree, out, **group) == list(STAGES)
    scalebrain.run_study(tree, out, CONFIG, **group)
    assert ran == list(STAGES[1:])


def test_run_study__a_dataset_behind_a_link_goes_on(tmp_path, caplog):
    (tmp_path / "bids").symlink_to(write_tree(tmp_path / "fmriprep-23.2", n=4))
    for _ in range(2):
        with caplog.at_level("INFO", logger="scalebrain"):
            scalebrain.run_study(tmp_path / "bids", tmp_path / "out", level="participant")
    assert "nothing to do" in caplog.text
    assert "ingest" not in previewed(tmp_path / "bids", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("model", "train"),
        ("results.zarr", "statistics"),
        ("tables", "statistics"),
        ("tables/accuracy.tsv", "statistics"),
        ("tables/subjects.tsv", "report"),
        ("tables/recovery.tsv", "report"),
        ("report.html", "report"),
        ("derivatives", "export"),
    ],
)
def test_run_study__what_is_gone_is_made_again(study, tree, tmp_path, monkeypatch, name, stage):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    path = out / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ran = only_tell(monkeypatch, *STAGES)
    told = {"truth": tree.parent / "truth.json"}
    assert previewed(tree, out, **told)[0] == stage
    scalebrain.run_study(tree, out, CONFIG, **told)
    assert ran[0] == stage


def test_run_study__without_the_truth_its_table_goes(study, tree, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    told = (out / "tables" / "accuracy.tsv").read_text().splitlines()[0]
    scalebrain.run_study(tree, out, CONFIG)
    assert not (out / "tables" / "recovery.tsv").exists()
    plain = (out / "tables" / "accuracy.tsv").read_text().splitlines()[0]
    assert set(plain.split("\t")) < set(told.split("\t"))


def test_compute_features__other_ones_take_our_own_ages_away(study, tmp_path, caplog):
    store = tmp_path / "c.zarr"
    shutil.copytree(study / "cohort.zarr", store)
    ds = scalebrain.open_store(store)
    table = tmp_path / "ages.tsv"
    ages = {"subject": ds["subject"].values, "brain_age": ds["brain_age"].mean("region").values}
    pd.DataFrame(ages).to_csv(table, sep="\t", index=False)
    pipeline.compute_features(store)
    assert "are removed" not in caplog.text
    assert tree_bytes(store) == tree_bytes(study / "cohort.zarr")
    pipeline.compute_features(store, lesion_policy="as_is")
    assert "brain ages of our model are removed" in caplog.text
    left = set(ds) - set(scalebrain.open_store(store))
    assert {"brain_age", "brain_pad_corrected", "imputed_fraction", "out_of_fold"} <= left
    assert not {"lesion_load", "included"} & left
    scalebrain.import_ages(store, table, tool="other")
    pipeline.compute_features(store)
    assert "brain_age_global" in scalebrain.open_store(store)
    assert "other references" not in caplog.text
    who = ds["subject"].values[ds["included"].values & (ds["group"].values == "reference")][0]
    decisions = tmp_path / "decisions.tsv"
    decisions.write_text(f"participant_id\tdecision\n{who}\texclude\n")
    pipeline.compute_features(store, decisions=decisions)
    assert "brain ages of other was corrected by other references" in caplog.text


def test_compute_features__killed_serves_no_ages_of_other_features(study, tmp_path, monkeypatch):
    store = tmp_path / "c.zarr"
    shutil.copytree(study / "cohort.zarr", store)

    def dies(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "remove_variables", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.compute_features(store, lesion_policy="as_is")
    ds = scalebrain.open_store(store)
    assert "node_features" in ds
    assert not {"brain_age", "brain_pad_corrected"} & set(ds)


def test_read_config__ages_need_a_table_and_a_tool(tmp_path):
    with pytest.raises(ConfigError, match="ages: lacks table"):
        read_config({"ages": {"tool": "brainageR"}})
    with pytest.raises(ConfigError, match=r"ages\.file: unknown key"):
        read_config({"ages": {"file": "x", "tool": "y"}})
    with pytest.raises(ConfigError, match="tool_version: expected text"):
        read_config({"ages": {"table": "x.tsv", "tool": "y", "tool_version": 2.1}})
    with pytest.raises(ConfigError, match="no such file"):
        scalebrain.run_study(
            tmp_path, tmp_path / "out", {"ages": {"table": str(tmp_path / "x.tsv"), "tool": "y"}}
        )


def test_fit__a_variable_that_is_missing_leaves_its_reason():
    from scalebrain.pipeline import _fit

    def step():
        raise MissingVariableError("no variable 'ag'")

    missing = {}
    _fit({"mixed": step}, {}, missing)
    assert missing == {"mixed": "no variable 'ag'"}


def test_statistics__the_lesion_model_of_whole_brain_ages_is_of_strokes_alone(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    n, group = 90, np.repeat(["reference", "stroke"], 45)
    volume = np.where(group == "stroke", 10 ** rng.uniform(0, 2, n), 0.0)
    pad = 3 * (group == "stroke") + np.log10(volume + 1) + rng.normal(0, 1, n)
    people = xr.Dataset(
        {
            "brain_age_global": ("subject", pad + 60, {"tool": "brainageR"}),
            "brain_pad_global_corrected": ("subject", pad),
            "lesion_load": (("subject", "region"), np.zeros((n, 2))),
            "lesion_volume": ("subject", volume),
            "lesion_hemisphere": ("subject", np.where(group == "stroke", "L", "none")),
            "lesion_present": ("subject", np.ones(n, dtype=bool)),
            "included": ("subject", np.ones(n, dtype=bool)),
            "age": ("subject", rng.uniform(40, 80, n)),
            "group": ("subject", group),
            "cohort": ("subject", rng.choice(["a", "b", "c"], n)),
        },
        coords={"subject": [f"s{i}" for i in range(n)], "region": ["SMN_L", "SMN_R"]},
    )
    for module in ("pipeline", "study"):
        monkeypatch.setattr(f"scalebrain.{module}.open_store", lambda _: people)
    formula = "brain_pad_corrected ~ scale(log10(lesion_volume + 1)) + age"
    config = read_config({"formula": formula, "n_boot": 2, "n_permutations": 0})
    study = Study(tmp_path / "bids", tmp_path, config, None, "all", ())
    pipeline._statistics(study)
    results, _ = read_results(study.results)
    assert results["mixed"]["n"].values.tolist() == [45]
    assert "lesion_volume" in results["mixed"].attrs["formula"]
