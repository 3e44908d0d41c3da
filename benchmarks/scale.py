"""A hundred thousand scans on 64 to 512 workers: counted, measured and simulated.

    python -m benchmarks.scale [--people 100000] [--workers 64,128,256,512] [--rounds 3] [--quick]
                               [--work FOLDER] [--out FILE]

1. Tasks: those of the features are counted on stores of 10, 50 and 200 people and compared with
   what a scheduler ran; then the graph of the full number of people is made, and not computed.
2. Measured: what a task costs a scheduler and a client that do nothing else; the driver's steps
   for a thousand, ten thousand and all people; an ingest and its features of scans at 1 mm;
   requests to an S3 server, fitted on two cohorts and checked on a third.
3. Simulated: what a run on one worker teaches predicts another cohort on one and two workers.
4. The full number of people, on the given numbers of workers.

Prices, bandwidths and the pace at which a queue gives workers are assumptions and options.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.ingest import foreign_cpu
from benchmarks.scale_driver import driver_costs, in_own_process
from benchmarks.scale_measure import (
    bytes_of,
    counted_tasks,
    graph_overhead,
    held_bytes,
    real_run,
    requests,
    start_seconds,
    task_overhead,
    tasks_that_ran,
)
from benchmarks.scale_prediction import (
    check_requests,
    features_stage,
    fit_requests,
    ingest_stage,
    requests_at,
)
from benchmarks.scale_simulation import Cluster, Stage, simulate
from benchmarks.scale_tables import tables
from scalebrain.atlas.space import brain_mask, template_grid
from scalebrain.simulate.cohort import simulate_cohort

_SEEDS = 20


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--workers", default="64,128,256,512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resolution", type=float, default=1.0, help="Of the scans, mm.")
    parser.add_argument("--calibration", type=int, default=64, help="Scans to learn from.")
    parser.add_argument("--checked", type=int, default=128, help="Scans to predict.")
    parser.add_argument("--overhead", type=int, default=10_000, help="Tasks that do nothing.")
    parser.add_argument("--link", type=float, default=10, help="Gbit/s between two machines.")
    parser.add_argument("--storage", type=float, default=40, help="Gbit/s of the storage.")
    parser.add_argument("--first", type=float, default=60, help="Seconds to the first worker.")
    parser.add_argument("--every", type=float, default=0.25, help="Seconds between workers.")
    parser.add_argument("--price-put", type=float, default=0.005, help="USD, 1,000 PUT, LIST.")
    parser.add_argument("--price-get", type=float, default=0.0004, help="USD, 1,000 GET, HEAD.")
    parser.add_argument("--price-month", type=float, default=0.023, help="USD, a GB and month.")
    parser.add_argument("--no-s3", action="store_true", help="Count no requests.")
    parser.add_argument("--quick", action="store_true", help="Small and coarse: does it run?")
    parser.add_argument("--work", type=Path, help="Folder of the scans; they are used again.")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.people, options.workers, options.rounds = 1000, "4,8", 1
        options.resolution, options.calibration, options.checked = 4.0, 24, 32
        options.overhead, options.no_s3 = 300, True
    return options


def scans(folder: Path, n: int, resolution: float, seed: int) -> Path:
    """Simulated people, a quarter of them with a stroke; those that are there stay."""
    tree = folder / f"scans-{n}-{resolution:g}-{seed}" / "tree"
    tree.parent.mkdir(parents=True, exist_ok=True)
    return simulate_cohort(
        tree,
        reference=n - n // 4,
        stroke=n // 4,
        cohorts=4,
        resolution=resolution,
        seed=seed,
    )


def count(folder: Path, sizes: Sequence[int]) -> list[dict[str, int]]:
    """Tasks of the features of small stores: of the graph, and those that ran."""
    out = []
    for n in sizes:
        found = driver_costs(folder / f"count-{n}", n, 4.0, find=False, keep=True)
        ran = tasks_that_ran(folder / f"count-{n}" / "store.zarr")
        out.append({"people": n, "counted": found["feature_tasks"], "ran": ran})
    return out


def drive(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of the driver for cohorts of growing size, each in a process of its own."""
    sizes = sorted({min(n, options.people) for n in (1000, 10_000, options.people)})
    return [
        in_own_process(
            driver_costs, folder / f"driver-{n}", n, options.resolution, find=n <= 10_000
        )
        for n in sizes
    ]


def overheads(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Cost of a task for the scheduler and the client."""
    counts = [options.overhead // 10, options.overhead]
    several = (1,) if options.quick else (1, 2)
    idle = [one for w in several for one in in_own_process(task_overhead, w, counts, folder)]
    graph = []
    for workers, n in (
        (1, options.overhead // 10),
        (1, options.overhead // 2),
        (2, options.overhead // 2),
    )[: 2 if options.quick else 3]:
        place = folder / f"graph-{workers}-{n}"
        driver_costs(place, n, 4.0, find=False, keep=True)
        total = counted_tasks(place / "store.zarr", n // 16).tasks
        graph.append(graph_overhead(place / "store.zarr", workers, folder, total, n // 16))
    few, many = graph[:2]
    more = many["tasks"] - few["tasks"]
    each = (many["scheduler_s"] - few["scheduler_s"]) / more
    if each <= 0:  # lost in the noise of a busy machine: all of it by all tasks is a bound
        each = many["scheduler_s"] / many["tasks"]
    return {
        "idle": idle,
        "graph": graph,
        "graph_ms": 1e3 * each,
        "graph_bytes": (many["scheduler_bytes"] - few["scheduler_bytes"]) / more,
        "held": in_own_process(held_bytes, options.overhead, folder),
        "start_s": start_seconds(folder),
    }


def predicted(stage: Stage, cluster: Cluster) -> float:
    """Seconds of a stage, the median over seeds."""
    return statistics.median(simulate(stage, cluster, seed=s).seconds for s in range(_SEEDS))


def check(folder: Path, options: argparse.Namespace, per_task: dict[str, float]) -> dict[str, Any]:
    """Learn from one cohort on one worker, and predict another on one and two."""
    work = options.work or folder
    calibration = scans(work, options.calibration, options.resolution, 1)
    checked = scans(work, options.checked, options.resolution, 2)
    rounds: list[dict[str, Any]] = []
    real_run(calibration, 1, folder)  # compiles, and fills the page cache
    for _ in range(options.rounds):
        one: dict[str, Any] = {}

        def measure(one: dict[str, Any] = one) -> None:
            one["calibration"] = real_run(calibration, 1, folder)
            one["single"] = real_run(checked, 1, folder)
            one["double"] = real_run(checked, 2, folder)

        one["foreign_cpu"] = foreign_cpu(measure)
        rounds.append(one)
    sizes = bytes_of(checked, folder / "run.zarr")
    kinds = counted_tasks(folder / "run.zarr").kinds
    learned = [one["calibration"] for one in rounds]
    out: list[dict[str, Any]] = []

    def by_round(stage: str, name: str, workers: int) -> list[float]:
        """Errors where each round is predicted from what was learned in it."""
        plans = [stages_of([one["calibration"]])[stage] for one in rounds]
        cluster = Cluster(workers, per_task[stage])
        pairs = zip(plans, rounds, strict=True)
        return [predicted(plan, cluster) / one[name][stage]["wall"] - 1 for plan, one in pairs]

    def stages_of(learned: list[dict[str, Any]]) -> dict[str, Stage]:
        """Stages of the checked cohort."""
        few, many = options.calibration, options.checked
        return {
            "ingest": ingest_stage(learned, many, sizes),
            "features": features_stage(learned, kinds, few, many, {}),
        }

    for workers, name in ((1, "single"), (2, "double")):
        cluster = {s: Cluster(workers, per_task[s]) for s in per_task}
        stages = stages_of(learned)
        for stage, plan in stages.items():
            found = statistics.median(one[name][stage]["wall"] for one in rounds)
            guess = predicted(plan, cluster[stage])
            # how much of a core tasks got in these runs, beside those that were learned from
            got = statistics.median(_core_share(one[name][stage]) for one in rounds)
            had = statistics.median(_core_share(one[stage]) for one in learned)
            same = predicted(_slower(plan, had / got), cluster[stage])
            out.append(
                {
                    "stage": stage,
                    "workers": workers,
                    "measured_s": found,
                    "predicted_s": guess,
                    "error": guess / found - 1,
                    "error_by_round": by_round(stage, name, workers),
                    "core_share": got,
                    "core_share_learned": had,
                    "predicted_same_share_s": same,
                    "error_same_share": same / found - 1,
                }
            )
    return {
        "scans": {"calibration": options.calibration, "checked": options.checked},
        "bytes_per_scan": sizes,
        "foreign_cpu": [one["foreign_cpu"] for one in rounds],
        "peak_worker_bytes": max(
            one[name][stage]["peak"]
            for one in rounds
            for name in ("calibration", "single", "double")
            for stage in ("ingest", "features")
        ),
        "predictions": out,
        "learned": learned,
        "walls": {
            f"{name} {stage}": [one[name][stage]["wall"] for one in rounds]
            for name in ("calibration", "single", "double")
            for stage in ("ingest", "features")
        },
    }


def _core_share(run: dict[str, Any]) -> float:
    """Processor seconds of the workers for a second that their tasks took."""
    return float(run["cpu"] / max(sum(task[1] for task in run["tasks"]), 1e-9))


def _slower(stage: Stage, factor: float) -> Stage:
    """Stage whose tasks take longer."""
    works = tuple(replace(work, scale=work.scale * factor) for work in stage.works)
    return replace(stage, works=works, warm=stage.warm * factor)


def count_requests(folder: Path) -> dict[str, Any]:
    """Requests to a bucket: what they depend on, checked on a third cohort."""
    share = brain_mask(template_grid(4.0)).sum() / brain_mask(template_grid(1.0)).sum()
    found = {n: requests(scans(folder, n, 4.0, n), float(share)) for n in (64, 128, 192)}
    fitted = fit_requests(found[64], found[128])
    return {"measured": found, "fitted": fitted, "off": check_requests(fitted, found[192], 3)}


def evaluate(
    options: argparse.Namespace, result: dict[str, Any], per_task: dict[str, float]
) -> list[dict[str, Any]]:
    """All people on every number of workers."""
    driver, checked = result["driver"], result["check"]
    biggest, sizes = driver[-1], checked["bytes_per_scan"]
    small = next(one for one in driver if "find" in one["seconds"])
    widest = [one for one in driver if "find" in one["seconds"]][-1]
    find = {
        name: widest["seconds"][name] * options.people / widest["people"]
        for name in ("find", "fingerprint")
    }
    learned = checked["learned"]
    more = {n: s - small["seconds"].get(n, 0.0) for n, s in biggest["seconds"].items()}
    ingest = ingest_stage(
        learned,
        options.people,
        sizes,
        before=sum(find.values()) + more["plan"] + more["empty store"] + more["partitions"],
        after=more["finalize"],
        shared=biggest["geometry_bytes"],
    )
    features = features_stage(
        learned,
        biggest["by_kind"],
        options.calibration,
        options.people,
        sizes,
        # what the scheduler does of it is in the time that it takes for every task
        before=more["open"] + more["graph"] - (biggest["materialize_s"] - small["materialize_s"]),
        shared=biggest["graph_bytes"],
    )
    out = []
    for workers in map(int, options.workers.split(",")):
        for stage in (ingest, features):
            for limited in (True, False):
                cluster = Cluster(
                    workers,
                    per_task[stage.name],
                    link=options.link * 1.25e8,
                    pipe=options.storage * 1.25e8 if limited else float("inf"),
                    first=options.first if stage is ingest else 0.0,
                    every=options.every if stage is ingest else 0.0,
                )
                ran = simulate(stage, cluster)
                total = sum(work.n * work.bytes for work in stage.works)
                span = ran.seconds - stage.before - stage.after
                out.append(
                    {
                        "workers": workers,
                        "stage": stage.name,
                        "limited": limited,
                        "tasks": ran.tasks,
                        "seconds": ran.seconds,
                        "driver_s": stage.before + stage.after,
                        "scheduler_busy": ran.scheduler_busy,
                        "storage_busy": ran.pipe_busy,
                        "workers_busy": ran.workers_busy,
                        "gbit_s": 8e-9 * total / max(span, 1e-9),
                        "broadcast_gb": 1e-9 * workers * stage.shared,
                    }
                )
    return out


class _Progress:
    """Say what is done, and how long it has taken so far."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, what: str) -> None:
        print(f"{time.perf_counter() - self._start:.0f} s: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark and print its tables."""
    options = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "assumptions": {
                name: getattr(options, name)
                for name in (
                    *("people", "resolution", "link", "storage", "first", "every"),
                    *("price_put", "price_get", "price_month"),
                )
            },
        }
        say = _Progress()
        say("counting")
        result["counts"] = count(folder, (10, 50) if options.quick else (10, 50, 200))
        say("overhead of tasks")
        result["overhead"] = overheads(folder, options)
        say("the driver")
        result["driver"] = drive(folder, options)
        per_task = {
            "ingest": 1e-3
            * statistics.median(
                one["scheduler_ms"]
                for one in result["overhead"]["idle"]
                if one["tasks"] == options.overhead
            ),
            "features": 1e-3 * result["overhead"]["graph_ms"],
        }
        result["per_task"] = per_task
        say("runs")
        result["check"] = check(folder, options, per_task)
        if not options.no_s3:
            say("requests")
            result["requests"] = count_requests(options.work or folder)
            result["requests"]["at"] = requests_at(
                result["requests"]["fitted"], result["driver"], options.people
            )
        result["evaluation"] = evaluate(options, result, per_task)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
