"""The benchmarks of the whole study: their arithmetic, and that they run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.study import exponents, line
from benchmarks.watched import Sample, Watched, by_stage, watch

ROOT = Path(__file__).parents[2]


def run_of(reference, *, seconds, train=10.0, epochs=5):
    stages = {s: {"seconds": 2 + 0.01 * reference} for s in ("ingest", "features", "predict")}
    stages |= {"train": {"seconds": train}, "export": {"seconds": 1.0}}
    return {
        "reference": reference,
        "stroke": 0,
        "seconds": seconds,
        "stages": stages,
        "epochs": [epochs] * 5,
    }


def test_line__extrapolates_stages_and_epochs_apart():
    runs = [run_of(n, seconds=1, train=n * e / 10, epochs=e) for n, e in ((100, 4), (200, 9))]
    found = line(runs, 1000)
    assert found["ingest"]["seconds"] == pytest.approx(12)
    assert found["ingest"]["person_s"] == pytest.approx(0.01)
    assert found["train"]["seconds"] == pytest.approx(100)  # of an epoch
    assert found["export"]["person_s"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("power", "start"), [(1.0, 0.0), (1.0, 50.0), (1.3, 0.0)])
def test_exponents__tell_the_start_from_growth(power, start):
    runs = [run_of(n, seconds=start + 0.1 * n**power) for n in (1000, 4000, 16000)]
    found = exponents(runs)
    if power == 1:
        assert found["beyond_start"] == pytest.approx(1, abs=1e-6)
        assert found["start_s"] == pytest.approx(start, abs=1e-6)
    if not start:
        assert found["whole"] == pytest.approx(power, abs=1e-6)
    else:
        assert found["whole"] < 0.95
        assert found["last_two"] > found["whole"]


def test_by_stage__divides_samples_by_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    rows = [
        ("2026-01-01T00:00:02+00:00", "", "began"),
        ("2026-01-01T00:00:10+00:00", "ingest", "1/7 ingest"),
        ("2026-01-01T00:00:20+00:00", "statistics", "5/7 statistics"),
        ("2026-01-01T00:00:21+00:00", "statistics", "statistics: mixed"),
        ("2026-01-01T00:00:23+00:00", "statistics", "a warning"),
        ("2026-01-01T00:00:25+00:00", "report", "6/7 report"),
    ]
    entries = [dict(zip(("time", "stage", "message"), row, strict=True)) for row in rows]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    zero = 1767225600.0
    samples = [Sample(zero + s, 100 * s, 10 * s, s, 0.5 * s) for s in range(31)]
    found = by_stage(Watched(30, samples, 0.0), log)
    assert list(found) == ["start", "ingest", "statistics", "statistics: mixed", "report"]
    assert [found[s]["seconds"] for s in found] == pytest.approx([10, 10, 1, 4, 5])
    assert found["ingest"]["read_bytes"] == pytest.approx(120, abs=20)
    assert found["report"]["peak_bytes"] == 3000


def test_watch__counts_children_that_ended_and_says_what_failed(tmp_path):
    child = (
        f"open({str(tmp_path / 'x')!r}, 'wb').write(bytes(5_000_000)); import time; time.sleep(2.5)"
    )
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}])"
    code += "; time.sleep(2.5)"
    found = watch([sys.executable, "-c", code], tmp_path / "log.txt")
    assert found.seconds > 2.5
    assert 5_000_000 <= found.samples[-1].written < 8_000_000  # once
    assert max(s.memory for s in found.samples) > 2e6
    with pytest.raises(RuntimeError, match=r"exit code 3\nout of luck"):
        watch([sys.executable, "-c", "print('out of luck'); exit(3)"], tmp_path / "log.txt")


def quick(module, *more):
    command = [sys.executable, "-m", module, "--quick", *more]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_study__quick_runs_by_the_commands(tmp_path):
    out = tmp_path / "found.json"
    text = quick("benchmarks.study", "--parts", "surface", "--out", str(out))
    assert "| train |" in text
    run = json.loads(out.read_text())["surface"]
    assert run["epochs"] == [2, 2]
    assert run["stages"]["ingest"]["read_bytes"] > 0.5 * run["source_bytes"]
    assert run["peak_bytes"] > 3e8
    assert len(run["effects"]) == 18
    assert all(abs(row["of_true_deviations"]) < 20 for row in run["effects"])
    assert run["seconds"] >= sum(s["seconds"] for s in run["stages"].values()) - 2


@pytest.mark.slow
def test_recovery__quick_compares_every_effect(tmp_path):
    out = tmp_path / "found.json"
    quick("benchmarks.recovery", "--out", str(out))
    found = json.loads(out.read_text())
    assert len(found["effects"]) == 21
    assert {row["effect"] for row in found["paths"]} >= {"motor ~ cst", "contra ~ ipsi"}
    assert all(len(seed["elastic_net"]["order"]) == 6 for seed in found["tops"])
