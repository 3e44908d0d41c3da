import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import scalebrain
from scalebrain import pipeline
from scalebrain.config import StudyConfig, read_config
from scalebrain.errors import ConfigError
from tests.phantom import tree_bytes

CONFIG = {"training": {"epochs": 4, "folds": 3}, "n_boot": 20, "n_permutations": 2}
SECTIONS = (
    "Who was studied",
    "Where the lesions lie",
    "How well age is read",
    "Effects on the brain",
    "Regional effects",
    "Recovered versus planted",
)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return scalebrain.simulate_cohort(
        folder / "bids", reference=45, stroke=36, cohorts=4, resolution=3.0
    )


@pytest.fixture(scope="session")
def study(tree):
    out = tree.parent / "out"
    scalebrain.run_study(tree, out, CONFIG, truth=tree.parent / "truth.json")
    return out


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


@pytest.mark.parametrize("stage", ["features", "train", "predict", "statistics"])
def test_run_study__killed_in_a_stage_ends_with_the_same_store(study, tree, monkeypatch, stage):
    out = tree.parent / f"killed-{stage}"
    shutil.copytree(study, out)
    names = ["features", "train", "predict", "statistics", "report"]
    for name in names[names.index(stage) :]:
        (out / "stages" / f"{name}.json").unlink()
    step = {"train": "train_model", "statistics": "write_results"}.get(stage, "save_store")
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
    for seconds in (3.0, 5.0, 8.0):
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
    with pytest.raises(ConfigError, match="unknown foo"):
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
