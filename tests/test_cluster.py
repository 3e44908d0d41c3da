"""Threads of libraries while Dask's own threads are at work."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

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
