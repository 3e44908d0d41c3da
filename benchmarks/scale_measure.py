"""Measurements behind the table of scale: overhead of a task, real runs, requests to a bucket."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import psutil
from distributed import Client, LocalCluster

import scalebrain
from benchmarks.ingest import peak_memory
from benchmarks.scale_count import Counted, Ran, count_only
from scalebrain.cluster.tasks import map_tasks
from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from scalebrain.pipeline import compute_features
from tests.distributed.s3 import create_bucket, faulty_proxy, moto_server, s3_environment

_BUCKET = "scale"
_SATURATION = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf"}


@contextmanager
def separate_cluster(workers: int, folder: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """Scheduler and workers in processes of their own; gives the client and the scheduler."""
    file = folder / f"scheduler-{workers}-{time.monotonic_ns()}.json"
    environment = os.environ | _SATURATION | WORKER_ENVIRONMENT
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    name = [sys.executable, "-m", "distributed.cli"]

    def start(part: str, *more: str) -> subprocess.Popen[bytes]:
        command = [*name[:2], f"{name[2]}.dask_{part}", *common, *more]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    with ExitStack() as stack:
        processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0")]
        stack.callback(_stop, processes)
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(workers):
            local = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
            processes.append(start("worker", *local))
        client = stack.enter_context(Client(scheduler_file=str(file)))
        client.wait_for_workers(workers, timeout=60)
        yield client, psutil.Process(processes[0].pid)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the workers, then the scheduler; workers whose scheduler is gone wait for it."""
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle(number: int, shared: bytes) -> int:
    """Do nothing."""
    return number + len(shared) * 0


def cpu(process: psutil.Process) -> float:
    """Processor seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def task_overhead(workers: int, counts: list[int], folder: Path) -> list[dict[str, float]]:
    """What tasks that do nothing cost, by their number."""
    out = []
    with separate_cluster(workers, folder) as (_, scheduler):
        map_tasks(_idle, range(50), label="warm", shared=b"x")
        for n in counts:
            own = psutil.Process()
            before = cpu(scheduler), cpu(own), scheduler.memory_info().rss
            start = time.perf_counter()
            map_tasks(_idle, range(n), label="idle", shared=b"x")
            wall = time.perf_counter() - start
            out.append(
                {
                    "workers": workers,
                    "tasks": n,
                    "wall_ms": 1e3 * wall / n,
                    "scheduler_ms": 1e3 * (cpu(scheduler) - before[0]) / n,
                    "client_ms": 1e3 * (cpu(own) - before[1]) / n,
                }
            )
    return out


def held_bytes(n: int, folder: Path) -> dict[str, float]:
    """Memory of the scheduler and of the client for a task that waits."""
    with separate_cluster(1, folder) as (client, scheduler):
        map_tasks(_idle, range(50), label="warm", shared=b"x")
        own = psutil.Process()
        before = scheduler.memory_info().rss, own.memory_info().rss
        blocker = client.submit(time.sleep, 3600, pure=False)
        futures = [client.submit(_idle, i, blocker, pure=False) for i in range(n)]
        client.run_on_scheduler(int)  # behind all of them
        after = scheduler.memory_info().rss, own.memory_info().rss
        del futures
    return {"scheduler": (after[0] - before[0]) / n, "client": (after[1] - before[1]) / n}


def graph_overhead(
    store: Path, workers: int, folder: Path, tasks: int, least: int
) -> dict[str, float]:
    """What the tasks of the features cost where no scan was ever written."""
    with separate_cluster(workers, folder) as (_, scheduler), least_tasks(least):
        before, memory = cpu(scheduler), scheduler.memory_info().rss
        start = time.perf_counter()
        compute_features(store)
        wall = time.perf_counter() - start
        return {
            "workers": workers,
            "tasks": tasks,
            "wall_s": wall,
            "scheduler_s": cpu(scheduler) - before,
            "scheduler_bytes": scheduler.memory_info().rss - memory,
        }


def start_seconds(folder: Path) -> float:
    """Seconds until a worker process has started and joined."""
    start = time.perf_counter()
    with separate_cluster(1, folder):
        return time.perf_counter() - start


def cpu_seconds() -> float:
    """Processor seconds of this process, all its threads."""
    return time.process_time()


def real_run(tree: Path, workers: int, folder: Path) -> dict[str, Any]:
    """Ingest and features of a tree of scans on new workers: times, tasks, bytes.

    Parameters
    ----------
    tree
        Scans.
    workers
        Worker processes.
    folder
        Where the store goes; it stays as ``folder/run.zarr`` until the next run.

    Returns
    -------
    dict
        By stage: ``wall``, ``tasks`` (kind, compute, transfer, bytes), ``cpu`` of the workers,
        and ``span``, the seconds from the first task's begin to the last one's end.
    """
    store = folder / "run.zarr"
    shutil.rmtree(store, ignore_errors=True)
    settings = {
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.scheduler.worker-saturation": "inf",
    }
    out: dict[str, Any] = {"workers": workers}
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        jobs = {
            "ingest": lambda: scalebrain.ingest(tree, store),
            "features": lambda: compute_features(store),
        }
        for name, job in jobs.items():
            ran = Ran(cluster.scheduler)
            cluster.scheduler.add_plugin(ran, name="ran")
            used = sum(client.run(cpu_seconds).values())
            start = time.perf_counter()
            job()
            wall = time.perf_counter() - start
            cluster.scheduler.remove_plugin("ran")
            out[name] = {
                "wall": wall,
                "tasks": ran.tasks,
                "span": ran.span,
                "cpu": sum(client.run(cpu_seconds).values()) - used,
                "peak": max(client.run(peak_memory).values()),
            }
    return out


def least_tasks(n: int) -> Any:
    """Split even small cohorts into so many tasks."""
    return mock.patch("scalebrain.features.rows._LEAST_TASKS", n)


def counted_tasks(store: Path, least: int = 16) -> Counted:
    """Tasks of the features of a store, of which none is computed; it is good for nothing more."""
    try:
        with dask.config.set(scheduler=count_only), least_tasks(least):
            compute_features(store)
    except Counted as counted:
        return counted
    raise RuntimeError(f"{store}: the features have no graph")


def tasks_that_ran(store: Path) -> int:
    """Tasks of the features of a store that a scheduler really ran."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        ran = Ran(cluster.scheduler)
        cluster.scheduler.add_plugin(ran, name="ran")
        compute_features(store)
    return len(ran.tasks)


def bytes_of(tree: Path, store: Path) -> dict[str, float]:
    """Bytes of the sources, and of every big array, a scan."""
    n = sum(1 for _ in tree.glob("sub-*"))
    sources = sum(f.stat().st_size for f in tree.rglob("*.nii.gz"))
    big = {
        name: sum(f.stat().st_size for f in (store / name).rglob("*") if f.is_file()) / n
        for name in ("t1w", "gm", "lesion_mask")
        if (store / name).exists()
    }
    return {"source": sources / n, **big}


def _kind(command: str, path: str) -> str:
    """Kind of a request, and of what it is about."""
    key = path.split("?", 1)[0].split("/cohort.zarr/", 1)[-1]
    if "list-type" in path:
        return "LIST"
    parts = key.split("/")
    about = parts[0] if len(parts) > 1 and parts[1] == "c" and parts[0] in _BIG else "other"
    if parts[0] == "ingest":
        about = "lease" if "lease" in key else "record" if parts[1][:6].isdigit() else "other"
    return f"{command} {about}"


_BIG = ("t1w", "gm", "lesion_mask")


def requests(tree: Path, share: float) -> dict[str, dict[str, int]]:
    """Requests to an S3 server of an ingest and of its features, by kind, on threads.

    Partitions have 64 rows, and tasks as many rows as in a large cohort of small voxels.

    Parameters
    ----------
    tree
        Scans.
    share
        Voxels of their grid over voxels of the grid that is asked about.

    Returns
    -------
    dict
        Number by stage and kind.
    """
    seen: list[tuple[str, str]] = []
    out = {}
    with ExitStack() as stack:
        server = stack.enter_context(moto_server())
        create_bucket(server, _BUCKET)
        port = int(server.rsplit(":", 1)[1])
        proxy = stack.enter_context(faulty_proxy(port, 0.0, 0, seen=seen))
        environment = s3_environment(f"http://127.0.0.1:{proxy}")
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch("scalebrain.ingestion.plan._SMALL_COHORT", 0))
        stack.enter_context(mock.patch("scalebrain.features.rows._LEAST_TASKS", 1))
        task = int(2**27 * share)
        stack.enter_context(mock.patch("scalebrain.features.rows._TASK_BYTES", task))
        stack.enter_context(dask.config.set(scheduler="threads", num_workers=2))
        store = f"s3://{_BUCKET}/cohort.zarr"
        jobs: Mapping[str, Any] = {
            "ingest": lambda: scalebrain.ingest(tree, store),
            "features": lambda: compute_features(store),  # type: ignore[arg-type]
        }
        for name, job in jobs.items():
            seen.clear()
            job()
            out[name] = dict(sorted(Counter(_kind(*one) for one in seen).items()))
    return out
