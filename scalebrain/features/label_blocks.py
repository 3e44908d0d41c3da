"""Voxels of labels by block of a row, so that the numbers of a block are added in the cache."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scalebrain.features.parcellation_numba_fns import N_GROUPS
from scalebrain.io.shards_numba_fns import COLUMN, NUMBERS

__all__ = ["Blocks", "blocks_of_labels", "first_of_runs", "groups_of_labels"]

Ints = npt.NDArray[np.int64]

# voxels of a group, with the first of the columns that hold the sums of such groups
_COLUMNS_OF = {8: 6, 4: 4, 2: 0}


class Blocks(NamedTuple):
    """Voxels of labels, sorted by label in each block of a row.

    Parameters
    ----------
    place
        (member voxel,) position in its block; of :func:`groups_of_labels`, (group and voxel,).
    label
        (run,) label of a run of voxels.
    bounds
        (run + 1,) where runs begin in `place`; of :func:`groups_of_labels`, (2 run + 1,): where
        the groups of a run begin, and then its single voxels.
    runs
        (block + 1,) where blocks begin among the runs.
    """

    place: npt.NDArray[np.uint16]
    label: Ints
    bounds: Ints
    runs: Ints


def first_of_runs(values: npt.NDArray[np.integer]) -> Ints:
    """Where each run of equal values begins.

    Parameters
    ----------
    values
        (value,).

    Returns
    -------
    ndarray
        (run,) position of its first value.
    """
    return np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)[: values.size]


def blocks_of_labels(label: npt.NDArray[np.uint16], n: int) -> Blocks:
    """Sort voxels by label in blocks of 16,384.

    Parameters
    ----------
    label
        (voxel,) label from 0 on, `n` where it has none.
    n
        Labels.

    Returns
    -------
    Blocks
        What kernels of files take.
    """
    key = np.arange(label.size) // NUMBERS * (n + 1) + label
    order = np.argsort(key, kind="stable")
    order = order[label[order] < n]
    key = key[order]
    bounds = np.append(first_of_runs(key), key.size)
    runs = key[bounds[:-1]]
    return Blocks(
        place=(order % NUMBERS).astype(np.uint16),
        label=runs % (n + 1),
        bounds=bounds,
        runs=_runs_of_blocks(runs // (n + 1), label.size),
    )


def groups_of_labels(label: npt.NDArray[np.uint16], n: int) -> Blocks:
    """Sort voxels by label in blocks of 16,384, and take neighbors of a label together.

    Parameters
    ----------
    label, n
        As for :func:`blocks_of_labels`.

    Returns
    -------
    Blocks
        What kernels of rows take: places of sums of eight, four and two neighbors, and places
        in columns of the voxels that are left over, each filled up to a multiple of four.
    """
    padded = np.full(-(-label.size // NUMBERS) * NUMBERS, n, dtype=np.int64)
    padded[: label.size] = label
    left = padded < n
    keys, places = [], []
    for size in (8, 4, 2, 1):
        own, free = padded.reshape(-1, size), left.reshape(-1, size)
        whole = np.flatnonzero(free.all(axis=1) & (own == own[:, :1]).all(axis=1))
        free[whole] = False  # a view
        first = whole * size
        place = first % NUMBERS // 8 + COLUMN * (first % 8 // size + _COLUMNS_OF.get(size, 0))
        keys.append(2 * (first // NUMBERS * n + padded[first]) + (size == 1))
        places.append(place)
    key, place = np.concatenate(keys), np.concatenate(places)
    order = np.lexsort((place, key))
    key, place = key[order], place[order]
    runs = key[first_of_runs(key // 2)] // 2
    lists = 2 * np.repeat(runs, 2) + np.tile([0, 1], runs.size)  # a run's groups, then voxels
    begin = np.append(np.searchsorted(key, lists), key.size)
    items = np.diff(begin)
    bounds = np.append(0, np.cumsum(-(-items // 4) * 4))
    filled = np.repeat(np.tile([N_GROUPS, NUMBERS], runs.size), np.diff(bounds))
    filled[np.arange(key.size) + np.repeat(bounds[:-1] - begin[:-1], items)] = place
    return Blocks(
        place=filled.astype(np.uint16),
        label=runs % n,
        bounds=bounds,
        runs=_runs_of_blocks(runs // n, label.size),
    )


def _runs_of_blocks(block: Ints, n_voxels: int) -> Ints:
    """Where the runs of each block begin, from the block of every run."""
    n_blocks = -(-n_voxels // NUMBERS)
    return np.searchsorted(block, np.arange(n_blocks + 1)).astype(np.int64)
