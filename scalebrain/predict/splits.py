"""Folds that never put one cohort on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError

__all__ = ["grouped_folds", "leave_one_group_out"]

IntArray = npt.NDArray[np.int64]


def leave_one_group_out(groups: npt.NDArray[Any]) -> Iterator[tuple[Any, IntArray, IntArray]]:
    """Hold out each group once.

    Parameters
    ----------
    groups
        Group of each row (n).

    Yields
    ------
    group
        The group that is held out, in sorted order.
    train
        Positions of the other rows.
    test
        Positions of its rows.

    Raises
    ------
    StatisticsError
        If there are fewer than two groups.

    Examples
    --------
    >>> for group, train, test in leave_one_group_out(np.array(["b", "a", "b"])):
    ...     print(group, train, test)
    a [0 2] [1]
    b [1] [0 2]
    """
    labels = np.unique(groups)
    if len(labels) < 2:
        raise StatisticsError(
            f"Leaving one group out needs two or more groups, got {len(labels)}: "
            f"{', '.join(map(str, labels)) or 'no rows'}. Pass a `groups` with more values."
        )
    for label in labels:
        held_out = groups == label
        yield label, np.flatnonzero(~held_out), np.flatnonzero(held_out)


def grouped_folds(
    groups: npt.NDArray[Any], n_folds: int, *, seed: int = 0
) -> list[tuple[IntArray, IntArray]]:
    """Split whole groups into folds of about equal size.

    Groups are dealt from the largest to the smallest, each to the fold that holds the
    fewest rows; `seed` orders groups of equal size.

    Parameters
    ----------
    groups
        Group of each row (n).
    n_folds
        Number of folds; not more than there are groups.
    seed
        Seed of the order.

    Returns
    -------
    list of tuple
        Positions to train on and to test on, per fold; empty if there is one group only.

    Raises
    ------
    StatisticsError
        If `n_folds` is less than two.

    Examples
    --------
    >>> [test.tolist() for _, test in grouped_folds(np.array([1, 1, 2, 3]), 2)]
    [[0, 1], [2, 3]]
    """
    if n_folds < 2:
        raise StatisticsError(f"Expected two or more folds, got {n_folds}.")
    labels, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n_folds = min(n_folds, len(labels))
    if n_folds < 2:
        return []
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    load = np.zeros(n_folds, dtype=np.int64)
    fold_of = np.zeros(len(labels), dtype=np.int64)
    for group in order:
        fold_of[group] = np.argmin(load)
        load[fold_of[group]] += sizes[group]
    row_fold = fold_of[codes]
    return [
        (np.flatnonzero(row_fold != fold), np.flatnonzero(row_fold == fold))
        for fold in range(n_folds)
    ]
