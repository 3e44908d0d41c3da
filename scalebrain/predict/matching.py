"""Admissible pairs of people, found in bounded memory, and the best matching among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError

__all__ = ["Admissible", "Candidates", "admissible_pairs", "best_matching"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Pairs that are looked at, and held, at a time.
BLOCK = 1_000_000
#: Most admissible pairs that are held; of more, those of largest contrast.
MOST_HELD = 4_000_000
#: Most admissible pairs of a stratum that are matched exactly.
MOST_EXACT = 30_000


@dataclass(frozen=True)
class Candidates:
    """People who may be paired; everything over the n people.

    Parameters
    ----------
    stratum
        Both people of a pair are of one stratum.
    log_volume
        log10 of the lesion volume.
    age
        Years.
    value
        What they shall differ in.
    person
        Number of the person: equal for scans of one person.
    """

    stratum: IntArray
    log_volume: FloatArray
    age: FloatArray
    value: FloatArray
    person: IntArray


@dataclass(frozen=True)
class Admissible:
    """Pairs within the calipers, of largest contrast first.

    Parameters
    ----------
    high, low
        Positions of the one with the larger and the smaller value.
    contrast
        Difference of the values.
    n_volume, n_age, n_contrast
        Pairs left after each criterion, counted over all of them, also those not held.
    """

    high: IntArray
    low: IntArray
    contrast: FloatArray
    n_volume: int
    n_age: int
    n_contrast: int


def admissible_pairs(
    people: Candidates, *, caliper: float, age_caliper: float, min_contrast: float
) -> Admissible:
    """Find every pair of one stratum within the calipers that differs enough.

    Parameters
    ----------
    people
        Who may be paired (n).
    caliper
        Largest difference of the log10 volume.
    age_caliper
        Largest difference of the age, years.
    min_contrast
        Smallest difference of the value; equal values are never a pair.

    Returns
    -------
    Admissible
        At most :data:`MOST_HELD` pairs.

    Notes
    -----
    People are sorted by volume within their stratum and compared with those that follow
    within the caliper, in blocks of about :data:`BLOCK` pairs: no n x n array is made.
    """
    high, low = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    contrast = np.zeros(0, dtype=np.float64)
    counts = np.zeros(3, dtype=np.int64)
    floor = min_contrast
    for a, b in _windows(people, caliper):
        counts[0] += np.count_nonzero(people.person[a] != people.person[b])
        near = np.abs(people.age[a] - people.age[b]) <= age_caliper
        near &= people.person[a] != people.person[b]
        a, b = a[near], b[near]
        counts[1] += len(a)
        size = people.value[a] - people.value[b]
        enough = (np.abs(size) >= min_contrast) & (size != 0)
        counts[2] += np.count_nonzero(enough)
        enough &= np.abs(size) >= floor
        a, b, size = a[enough], b[enough], size[enough]
        high = np.concatenate([high, np.where(size > 0, a, b)])
        low = np.concatenate([low, np.where(size > 0, b, a)])
        contrast = np.concatenate([contrast, np.abs(size)])
        if len(contrast) > MOST_HELD + BLOCK:
            kept = np.argpartition(-contrast, MOST_HELD)[:MOST_HELD]
            high, low, contrast = high[kept], low[kept], contrast[kept]
            floor = float(contrast.min())
    order = np.lexsort((low, high, -contrast))[:MOST_HELD]
    return Admissible(high[order], low[order], contrast[order], *(int(c) for c in counts))


def _windows(people: Candidates, caliper: float) -> Iterator[tuple[IntArray, IntArray]]:
    """Positions of pairs of one stratum within the volume caliper, block by block."""
    order = np.lexsort((people.log_volume, people.stratum))
    starts = np.flatnonzero(np.diff(people.stratum[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        own = order[start:stop]
        volume = people.log_volume[own]
        # equal up to rounding counts as equal
        last = np.searchsorted(volume, volume + caliper + 1e-12, side="right")
        following = last - np.arange(len(own)) - 1
        total = np.concatenate([[0], np.cumsum(following)])
        first = 0
        while first < len(own):
            end = int(np.searchsorted(total, total[first] + BLOCK, side="right")) - 1
            end = min(max(end, first + 1), len(own))
            n = following[first:end]
            i = np.repeat(np.arange(first, end), n)
            j = i + 1 + np.arange(len(i)) - np.repeat(total[first:end] - total[first], n)
            yield own[i], own[j]
            first = end


def best_matching(people: Candidates, pairs: Admissible) -> tuple[IntArray, bool]:
    """Choose pairs of largest total contrast in which every person is once at most.

    Parameters
    ----------
    people
        Who may be paired.
    pairs
        Admissible pairs.

    Returns
    -------
    chosen
        Positions in `pairs`, ascending, so that the largest contrast comes first.
    exact
        False if a stratum had more than :data:`MOST_EXACT` admissible pairs and was matched
        greedily, by descending contrast; that reaches half of the largest total or more.

    Notes
    -----
    A maximum-weight matching: binary x of each pair, ``max sum contrast x`` with
    ``sum x <= 1`` over the pairs of a person, by branch and bound (HiGHS).
    """
    chosen, exact = [], True
    stratum = people.stratum[pairs.high]
    for code in np.unique(stratum):
        own = np.flatnonzero(stratum == code)
        high, low = people.person[pairs.high[own]], people.person[pairs.low[own]]
        if len(own) > MOST_EXACT:
            exact = False
            chosen.append(own[_greedy(high, low)])
        else:
            chosen.append(own[_largest(high, low, pairs.contrast[own])])
    picked = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
    # one person's scans may lie in several strata
    return picked[_greedy(people.person[pairs.high[picked]], people.person[pairs.low[picked]])], (
        exact
    )


def _greedy(high: IntArray, low: IntArray) -> BoolArray:
    """Take each pair in turn whose people are both free."""
    taken: set[int] = set()
    chosen = np.zeros(len(high), dtype=np.bool_)
    for k, (a, b) in enumerate(zip(high.tolist(), low.tolist(), strict=True)):
        if a not in taken and b not in taken:
            taken |= {a, b}
            chosen[k] = True
    return chosen


def _largest(high: IntArray, low: IntArray, weight: FloatArray) -> BoolArray:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    names, code = np.unique(np.concatenate([high, low]), return_inverse=True)
    n, m = len(names), len(weight)
    ones, columns = np.ones(2 * m), np.tile(np.arange(m), 2)
    incidence = csr_array((ones, (code, columns)), shape=(n, m))
    found = milp(
        -weight / weight.max(),
        constraints=LinearConstraint(incidence, ub=np.ones(n)),
        bounds=Bounds(0, 1),
        integrality=np.ones(m),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise StatisticsError(
            f"The matching of {m} pairs of {n} people was not found ({found.message}). Give "
            "narrower calipers."
        )
    return np.asarray(found.x > 0.5)
