"""Threads of libraries while Dask's own threads are at work."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from distributed.diagnostics.plugin import SchedulerPlugin
from threadpoolctl import threadpool_info, threadpool_limits

from scalebrain.cluster.tasks import map_tasks
from scalebrain.cluster.threads import one_thread_each


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
