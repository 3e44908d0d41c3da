"""The benchmark of scale: its simulation on known cases, what it counts, and that it runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

benchmarks = pytest.importorskip("benchmarks")  # not in the source distribution

from benchmarks.scale_driver import driver_costs  # noqa: E402
from benchmarks.scale_prediction import (  # noqa: E402
    check_requests,
    fit_requests,
    partition_rows,
)
from benchmarks.scale_simulation import Cluster, Stage, Work, drawn, simulate  # noqa: E402


def stage(n: int = 100, seconds: float = 1.0, **more: float) -> Stage:
    return Stage("s", (Work(n, [seconds], bytes=more.pop("size", 0.0)),), **more)


@pytest.mark.parametrize(("workers", "expected"), [(1, 100), (2, 50), (3, 34), (200, 1)])
def test_simulate__workers_share_the_work(workers, expected):
    assert simulate(stage(), Cluster(workers, 0.0)).seconds == pytest.approx(expected)


def test_simulate__the_driver_and_the_first_tasks_come_on_top():
    found = simulate(stage(before=3.0, after=4.0, warm=5.0), Cluster(2, 0.0))
    assert found.seconds == pytest.approx(3 + 50 + 4 + 5)
    assert found.workers_busy == pytest.approx(1)


def test_simulate__a_slow_scheduler_bounds_all_workers():
    found = simulate(stage(1000, 0.01), Cluster(500, 0.1))
    assert found.seconds == pytest.approx(1000 * 0.1, rel=0.01)
    assert found.scheduler_busy == pytest.approx(1, abs=0.01)
    assert found.workers_busy < 0.01


def test_simulate__a_slow_storage_bounds_all_workers():
    found = simulate(stage(size=10.0), Cluster(50, 0.0, pipe=20.0))
    assert found.seconds == pytest.approx(100 * 10 / 20)
    assert found.pipe_busy == pytest.approx(1)


def test_simulate__workers_come_late_and_fetch_what_is_shared():
    found = simulate(stage(10, shared=100.0), Cluster(1, 0.0, link=10.0, first=7.0))
    assert found.seconds == pytest.approx(7 + 10 + 10)
    late = simulate(stage(100), Cluster(10, 0.0, every=10.0))
    assert late.seconds > simulate(stage(100), Cluster(10, 0.0)).seconds
    assert late.workers_busy == pytest.approx(1, abs=0.1)


def test_drawn__a_larger_task_is_the_sum_of_measured_ones():
    found = drawn(Work(2000, [1.0, 3.0], scale=4.0), np.random.default_rng(0))
    assert found.mean() == pytest.approx(8, rel=0.02)
    assert found.std() == pytest.approx(2, rel=0.1)
    assert set(found) <= {4.0, 6.0, 8.0, 10.0, 12.0}


def test_fit_requests__is_exact_where_requests_are_linear():
    def counts(partitions):
        return {"ingest": {"PUT t1w": 4 * partitions, "GET other": 9 + 3 * partitions}}

    fitted = fit_requests(counts(1), counts(2))
    assert fitted["ingest"] == {"GET other": (9, 3), "PUT t1w": (0, 4)}
    assert check_requests(fitted, counts(5), 5) == {"ingest": {}}
    assert check_requests(fitted, counts(6), 5) == {"ingest": {"GET other": 3, "PUT t1w": 4}}


def test_partition_rows__is_that_of_the_plan():
    from scalebrain.ingestion.plan import _SMALL_COHORT

    assert [partition_rows(n) for n in (1, _SMALL_COHORT - 1, _SMALL_COHORT)] == [16, 16, 64]


@pytest.mark.slow
def test_features__hardly_have_tasks_but_those_that_read(tmp_path, monkeypatch):
    monkeypatch.setattr("scalebrain.features.rows._TASK_BYTES", 2**21)  # as many rows as at 1 mm
    monkeypatch.setattr("scalebrain.features.rows._LEAST_TASKS", 1)  # as in a large cohort
    kinds = driver_costs(tmp_path / "made-up", 4000, 4.0, find=False)["by_kind"]
    images, masks = 4000 // 16, -(-4000 // 512)
    assert kinds["rows of images"] == images
    assert kinds["rows of masks"] == 4 * masks  # regions, tracts, measures, nodes
    assert kinds["getitem"] + kinds["where"] == (8 + 3) * masks  # none of images
    assert sum(kinds.values()) < images + 22 * masks + 200


@pytest.mark.slow
def test_scale__quick_counts_what_runs(tmp_path):
    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.scale", "--quick", "--out", str(out)]
    root = Path(benchmarks.__file__).parents[1]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=540)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    assert all(one["counted"] == one["ran"] > 0 for one in result["counts"])
    assert {one["workers"] for one in result["check"]["predictions"]} == {1, 2}
    assert all(one["predicted_s"] > 0 for one in result["check"]["predictions"])
    assert all(0 <= one["scheduler_busy"] <= 1 for one in result["evaluation"])
    assert "| stage | workers | s |" in ran.stdout
