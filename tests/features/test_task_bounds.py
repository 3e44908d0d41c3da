"""Which rows a task reads."""

from itertools import pairwise

import numpy as np
import pytest

from scalebrain.features import rows as features_rows
from scalebrain.features.rows import task_bounds
from scalebrain.io.location import Location
from scalebrain.io.rows import RowSource


def source(slots: np.ndarray, *, per_shard: int, n: int = 2_000_000, dtype: str = "float32"):
    return RowSource(Location("/s"), "t1w", np.dtype(dtype), np.nan, per_shard, n, slots)


def test_task_bounds__a_task_of_a_shards_worth_has_whole_shards():
    slots = np.delete(np.arange(1000), [3, 17, 500, 501])
    bounds = task_bounds([source(slots, per_shard=16)])
    assert bounds[0] == 0
    assert bounds[-1] == len(slots)
    shards = [set((slots[a:b] // 16).tolist()) for a, b in pairwise(bounds)]
    assert all(shards)
    assert not any(one & other for one, other in pairwise(shards))
    assert len(bounds) - 1 == 63  # 16 rows of 8 MB each


@pytest.mark.parametrize(("n", "tasks"), [(1, 1), (10, 10), (100, 15), (256, 16), (272, 17)])
def test_task_bounds__a_small_cohort_has_about_sixteen_tasks(n, tasks):
    bounds = task_bounds([source(np.arange(n), per_shard=16)])
    assert len(bounds) - 1 == tasks
    assert np.diff(bounds).sum() == n


def test_task_bounds__larger_shards_of_another_image_are_shared(monkeypatch):
    images = [
        source(np.arange(640), per_shard=16),
        source(np.arange(640), per_shard=64, dtype="bool"),
    ]
    assert np.diff(task_bounds(images)).tolist() == [16] * 40
    monkeypatch.setattr(features_rows, "_TASK_BYTES", 2**30)  # 134 rows, 40 of them a share
    assert np.diff(task_bounds(images)).tolist() == [32] * 20
    assert np.diff(task_bounds(images[1:], least=100)).tolist() == [64] * 10


def test_task_bounds__masks_are_counted_by_bits():
    masks = source(np.arange(20_000), per_shard=64, dtype="bool")
    assert set(np.diff(task_bounds([masks])).tolist()) == {512, 20_000 % 512}
    images = source(np.arange(20_000), per_shard=16)
    assert set(np.diff(task_bounds([images, masks])).tolist()) == {16}


def test_task_bounds__quick_work_has_twice_as_many_rows_a_task():
    images = [source(np.arange(1000), per_shard=16)]
    assert np.diff(task_bounds(images, is_quick=True)).max() == 32
    assert np.diff(task_bounds(images)).max() == 16


def test_task_bounds__no_rows():
    assert task_bounds([source(np.arange(0), per_shard=16)]) == [0]
