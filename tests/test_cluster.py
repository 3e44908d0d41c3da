"""Clients, where tasks run, and threads of libraries while Dask's own threads are at work."""

import dataclasses
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from distributed.diagnostics.plugin import SchedulerPlugin
from threadpoolctl import threadpool_info, threadpool_limits

from scalebrain.cluster import tasks
from scalebrain.cluster.client import _losses_told, open_client
from scalebrain.cluster.local import _local_workers
from scalebrain.cluster.profiles import Profile, profiles_schema, read_profile
from scalebrain.cluster.tasks import map_tasks, on_gpu_workers
from scalebrain.cluster.threads import one_thread_each
from scalebrain.cluster.waiting import NO_WORKERS
from scalebrain.errors import ConfigError, ScalebrainError
from scalebrain.io.checked import expected


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))  # so that a library is loaded
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def fail_inside():
    with one_thread_each():
        assert blas_threads() == {1}
        assert torch.get_num_threads() == 1
        raise LookupError


def test_one_thread_each__restores_what_was_set():
    with threadpool_limits(2):
        before, of_torch = blas_threads(), torch.get_num_threads()
        with pytest.raises(LookupError):
            fail_inside()
        assert blas_threads() == before
        assert torch.get_num_threads() == of_torch


def test_one_thread_each__restores_when_several_threads_are_inside():
    def work(k):
        with one_thread_each():
            time.sleep(0.002 * (k % 5))
            return torch.get_num_threads()

    before = blas_threads()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(40))) == {1}
    assert blas_threads() == before


def is_on_gpu(number):
    return bool(name_of_worker([number]).all())


def name_of_worker(block):
    from distributed import get_worker

    return np.full(len(block), get_worker().name == "gpu")


@pytest.fixture
def mixed_cluster():
    """One worker without and one with the resource GPU."""
    from distributed import Client, Scheduler, SpecCluster, Worker

    common = {"nthreads": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers = {
        "cpu": {"cls": Worker, "options": common},
        "gpu": {"cls": Worker, "options": {**common, "resources": {"GPU": 1}}},
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }
    with (
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        yield client


def test_on_gpu_workers__sends_blocks_to_them(mixed_cluster):
    rows = xr.DataArray(np.ones((64, 3)), dims=("subject", "voxel")).chunk(subject=2) * 2
    on_gpu = xr.apply_ufunc(
        name_of_worker,
        rows,
        input_core_dims=[["voxel"]],
        dask="parallelized",
        output_dtypes=[bool],
    )
    with on_gpu_workers():
        assert on_gpu.compute().all()
        assert all(map_tasks(is_on_gpu, range(6), label="train"))
    client = mixed_cluster
    client.retire_workers(names=["gpu"], close_workers=False)
    assert not on_gpu.compute().any()  # without the block any worker does


def test_open_client__leaves_the_defaults_of_dask_in_a_new_process():
    code = (
        "import scalebrain, dask\n"
        "if __name__ == '__main__':\n"
        "    with scalebrain.open_client(n_workers=1): pass\n"
        "    print(dask.config.get('distributed.comm.timeouts.connect'))\n"
        "    print(dask.config.get('distributed.scheduler.no-workers-timeout'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert told.stdout.split() == ["30s", "None"], told.stderr


def test_on_gpu_workers__changes_nothing_without_a_client():
    with on_gpu_workers():
        assert xr.DataArray(np.ones(4), dims="x").chunk(x=2).sum().compute() == 4


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("slurm", "Scheduler 'slurm' is not known"),
        ("pbs:cpu", "slurm:... [(]a profile[)]"),
        ("slurm:", "is not known"),
        ("tcp://127.0.0.1:9", "No Dask scheduler answers at tcp://127.0.0.1:9"),
        ("tcp://[::1", r"No Dask scheduler answers at tcp://\[::1: Invalid IPv6 URL"),
        ("tcp://127.0.0.1:99999", "No Dask scheduler answers at tcp://127.0.0.1:99999"),
        ("bad://127.0.0.1:9", "Scheduler 'bad://127.0.0.1:9' is not known"),
    ],
)
def test_open_client__unknown_scheduler__is_one_clear_error(spec, told):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ConfigError, match=told),
        open_client(spec),
    ):
        pass


@pytest.mark.parametrize("spec", [None, "threads", "tcp://127.0.0.1:1"])
def test_open_client__profiles_without_slurm__are_refused(spec):
    with (
        pytest.raises(ConfigError, match=r"slurm:PROFILE"),
        open_client(spec, profiles="profiles.yaml"),
    ):
        pass


@pytest.mark.parametrize("spec", ["tcp://127.0.0.1:9", "slurm:cpu", "threads"])
def test_open_client__memory_of_workers_elsewhere__is_refused(spec):
    with pytest.raises(ConfigError, match=r"[Mm]emory"), open_client(spec, memory="8GB"):
        pass


@pytest.mark.timeout(120)
def test_open_client__what_is_lost__is_told_with_the_way_out():
    from distributed import CancelledError, KilledWorker
    from distributed.scheduler import NoWorkerError

    with open_client(n_workers=1) as client:
        for lost, told in (
            (KilledWorker("task-1", None, 4), "Task task-1 died with every worker.*memory"),
            (NoWorkerError("task-1", 1800.0), "Task task-1: no worker for 30m.*same command again"),
            (CancelledError("shared"), "Workers went on dying.*same command again"),
        ):
            with pytest.raises(ScalebrainError, match=told), _losses_told(client):
                raise lost
        client.close()
        with pytest.raises(ScalebrainError, match=r"scheduler is gone"), _losses_told(client):
            raise CancelledError("all")
    assert dask.config.get("scheduler", None) is None


@pytest.mark.parametrize(
    ("cores", "gibibytes", "workers"), [(3, 64, 3), (8, 6, 4), (2, 1, 1), (1, 64, 1)]
)
def test_local_workers__keep_within_a_containers_limits(monkeypatch, cores, gibibytes, workers):
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", gibibytes * 2**30)
    assert _local_workers(None, None) == (workers, gibibytes * 2**30 // workers)


def test_open_client__workers_share_the_memory_however_many_they_are(monkeypatch):
    memory = 4 * 2**30
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
    monkeypatch.setattr("distributed.worker_memory.system.MEMORY_LIMIT", memory)
    for n_workers in (1, 2):
        with open_client(n_workers=n_workers) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            assert {w["memory_limit"] for w in workers} == {memory // n_workers}


def slowly(item):
    time.sleep(0.2)
    return item


@pytest.mark.timeout(60)
@pytest.mark.parametrize("by_scheduler", [True, False])
def test_map_tasks__no_worker_comes_back__ends_and_says_so(monkeypatch, by_scheduler):
    from distributed import Client, LocalCluster

    monkeypatch.setattr(tasks, "_LOOK_EVERY", 60.0 if by_scheduler else 0.1)
    with (
        dask.config.set({NO_WORKERS: "1s" if by_scheduler else None}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster),
        dask.config.set({NO_WORKERS: "1s"}),
    ):
        gone = threading.Timer(0.5, cluster.scale, (0,))
        gone.start()
        with pytest.raises(ScalebrainError, match=r"wait: no worker for 1.00 s.*command again"):
            map_tasks(slowly, range(100), label="wait")
        gone.join()
        with pytest.raises(ScalebrainError, match=r"wait: no worker for 1.00 s.*command again"):
            map_tasks(slowly, range(2), label="wait")


def compute_without_workers():
    with open_client(n_workers=1) as client:
        client.cluster.scale(0)
        while client.nthreads():
            time.sleep(0.1)
        dask.delayed(slowly)(1).compute()


@pytest.mark.timeout(60)
def test_open_client__no_worker_comes_back__ends_what_is_computed():
    with (
        dask.config.set({NO_WORKERS: "1s"}),
        pytest.raises(ScalebrainError, match=r"no worker for 1.00 s.*same command again"),
    ):
        compute_without_workers()
    assert dask.config.get(NO_WORKERS) is None


def take_memory(item):
    block = np.ones(2**26)  # 512 MB
    time.sleep(2)
    return block[item]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_map_tasks__more_memory_than_there_is__ends_and_says_so():
    with (
        pytest.raises(ScalebrainError, match=r"memory"),
        open_client(n_workers=1, memory="400MB"),
    ):
        map_tasks(take_memory, range(2), label="take")


def write(tmp_path, text):
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    return path


def test_read_profile__reads_one_of_several(tmp_path, monkeypatch):
    path = write(
        tmp_path, "a: {cores: 4.0, memory: 8GB}\nb: {cores: 8, memory: 16GB, processes: 2}\n"
    )
    monkeypatch.setenv("SCALEBRAIN_PROFILES", str(path))
    assert read_profile("a").workers_of_job == 4
    assert isinstance(read_profile("a").cores, int)
    assert read_profile("b").workers_of_job == 2
    assert read_profile("a").tls
    assert read_profile("a").dashboard.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: {cores: 4}", r"profiles.yaml:1:1: a: lacks memory: expected text that is not empty"),
        ("a: {cores: 0, memory: 8GB}", r"1:5: a.cores: expected a whole number of at least 1"),
        (
            "a:\n  cores: 1\n  memory: 8GB\n  que: x",
            r"4:3: a.que: unknown key. Did you mean 'queue'",
        ),
        ("a: {cores: 4, memory: 8GB, processes: 3}", "cannot be shared evenly by 3 processes"),
        ("a: {cores: 1, memory: 8GB, jobs: {minimum: 3, maximum: 2}}", "maximum 2 is below"),
        ("a: {cores: 1, memory: 8GB, gpu: {}}", r"a.gpu: lacks jobs"),
        ("a: {cores: 1, memory: lots}", "a: Memory 'lots': expected an amount such as 8GB"),
        ("a: {cores: 1.5, memory: 8GB}", r"a.cores: expected a whole number"),
        ("b: {cores: 1, memory: 8GB}", "no profile 'a'. It has: b"),
        ("", "no profile 'a'. It has: none"),
    ],
)
def test_read_profile__what_is_wrong__is_one_clear_error(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        read_profile("a", write(tmp_path, text))


def test_read_profile__no_file__says_where_it_belongs(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file.*--profiles"):
        read_profile("a", tmp_path / "none.yaml")


def test_clusters_page__has_every_key_of_a_profile(repository):
    page = (repository / "docs" / "clusters.md").read_text()
    keys = profiles_schema()["additionalProperties"]["properties"]
    assert set(keys) == {field.name for field in dataclasses.fields(Profile)}
    for name, key in keys.items():
        for inner, sub in key.get("properties", {"": key}).items():
            row = f"| `{name}.{inner}` |" if inner else f"| `{name}` |"
            assert f"{row} {expected(sub)} |" in page
            assert sub["description"] in page


def test_map_tasks__sends_what_is_shared_to_no_more_workers_than_tasks():
    from distributed import Client, LocalCluster

    class Holders(SchedulerPlugin):
        most = 0

        def transition(self, key, start, finish, *args, **kwargs):
            found = [len(one.who_has or ()) for one in cluster.scheduler.tasks.values()]
            self.most = max(self.most, *found)

    with (
        LocalCluster(
            n_workers=4, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        for items, most in (([], 0), ([1, 2], 2), (range(9), 4)):
            seen = Holders()
            cluster.scheduler.add_plugin(seen, name="holders")
            found = map_tasks(lambda i, by: i * by[0], items, label="t", shared=np.full(9, 3))
            assert found == [3 * i for i in items]
            assert seen.most == most
            cluster.scheduler.remove_plugin("holders")
