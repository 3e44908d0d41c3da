import logging

import numpy as np
import pandas as pd
import pytest

from scalebrain import cli
from scalebrain.io.results import read_results
from scalebrain.predict.importance import importance_units
from scalebrain.predict.predictors import build_predictors

benchmark = pytest.importorskip("benchmarks.motor")  # not in the source distribution


@pytest.fixture
def command(cohort, monkeypatch, capsys):
    """Run ``scalebrain motor`` on the cohort; exit code, output, errors."""
    monkeypatch.setattr("scalebrain.pipeline.open_store", lambda _: cohort)

    def run(*arguments):
        code = 0
        try:
            cli.main(["motor", *map(str, arguments), "--scheduler", "threads"])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    yield run
    logging.getLogger("scalebrain").propagate = True


def test_motor__writes_tables_and_says_what_was_found(command, cohort, tmp_path):
    table = tmp_path / "extra.tsv"
    dose = np.arange(cohort.sizes["subject"]) % 7
    pd.DataFrame({"subject": cohort["subject"].values, "dose": dose}).to_csv(
        table, sep="\t", index=False
    )
    out = tmp_path / "out"
    options = ("--learner", "elastic_net", "--extra", table, "--permutations", 4, "--seed", 3)
    options += ("--severe-below", 0.5)
    code, told, _ = command("store", out, *options)
    assert code == 0
    assert "In 6 cohorts left out one at a time, the best of 5 models (elastic net" in told
    assert "p = 0.200 for elastic net from 4 permutations" in told
    assert told.strip().endswith(str(out))
    results, _ = read_results(out / "motor.zarr")
    assert results["motor"].attrs["seed"] == 3
    assert results["motor"].attrs["severe_below"] == 0.5
    assert list(results["motor"]["feature_group"].values)[-2:] == ["extra", "combined"]
    gain = pd.read_csv(out / "motor_learner_versus_metric.tsv", sep="\t")
    assert set(gain["versus"]) == {"clinical", "lesion", "brain_age", "extra"}
    people = pd.read_csv(out / "motor_subject.tsv", sep="\t")
    assert people["observed"].notna().sum() == 69
    parts = pd.read_csv(out / "motor_learner_subject_predictor.tsv", sep="\t")
    assert len(parts) == 69 * results["motor"].sizes["predictor"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--target", "grip"), 1, "'grip' is missing"),
        (("--groups", "site"), 1, "'site' is missing"),
        (("--learner", "svm"), 2, "svm"),
        (("--permutations", "-1"), 2, "-1"),
        (("--extra", "none.tsv"), 1, "none.tsv: missing"),
    ],
)
def test_motor__bad_input_is_one_message(command, tmp_path, options, code, words):
    got, _, err = command("store", tmp_path / "out", *options)
    assert got == code
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(benchmark.EFFECTS))
def test_benchmark__plants_what_it_says(name):
    effects = np.array(benchmark.EFFECTS[name])
    found = []
    for seed in range(6):
        ds = benchmark.simulate(np.random.default_rng(seed), effects)
        table, groups = build_predictors(ds, ["clinical", "lesion", "brain_age", "combined"])
        units = importance_units(groups["combined"])
        assert set(benchmark.CAUSES) <= set(units)
        x = np.stack(
            [
                benchmark.z(table[units[cause]].to_numpy()).mean(axis=1)
                for cause in benchmark.CAUSES
            ],
            axis=1,
        )
        x, y = benchmark.z(x), benchmark.z(ds["motor_score"].values)
        found.append(np.linalg.lstsq(x, y, rcond=None)[0])
    np.testing.assert_allclose(np.mean(found, axis=0), effects, atol=0.05)
    loads = table[units[benchmark.CAUSES[0]]].corr().to_numpy()
    assert 0.8 < loads[np.triu_indices(3, 1)].mean() < 0.97
    assert ds.sizes["subject"] == 501
    assert len(np.unique(ds["cohort"])) == 34
