"""Admissible pairs of people, found in bounded memory, and the best matching among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
#: Most branches in which the most alike of equally good matchings are looked for.
MOST_NODES = 1_000
#: What the largest contrast counts in the solver.
_SHARP = 1_000.0


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
    """Pairs within the calipers, of largest contrast first, of equal ones the most alike.

    Parameters
    ----------
    high, low
        Positions of the one with the larger and the smaller value.
    contrast
        Difference of the values.
    distance
        Difference of the log10 volume plus that of the age, each in its caliper.
    n_volume, n_age, n_contrast
        Pairs of people left after each criterion, counted over all of them, also those not
        held. Scans of the same two people are one pair.
    """

    high: IntArray
    low: IntArray
    contrast: FloatArray
    distance: FloatArray
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
    counts = _Counts(people.person)
    floor = min_contrast
    for a, b in _windows(people, caliper):
        near = people.person[a] != people.person[b]
        a, b = a[near], b[near]
        # equal up to rounding counts as equal
        near = np.abs(people.age[a] - people.age[b]) <= age_caliper + 1e-12
        size = people.value[a] - people.value[b]
        enough = near & (np.abs(size) >= min_contrast) & (size != 0)
        counts.add(a, b, np.add(near, enough, dtype=np.int8))
        enough &= np.abs(size) >= floor
        a, b, size = a[enough], b[enough], size[enough]
        high = np.concatenate([high, np.where(size > 0, a, b)])
        low = np.concatenate([low, np.where(size > 0, b, a)])
        contrast = np.concatenate([contrast, np.abs(size)])
        if len(contrast) > MOST_HELD + BLOCK:
            kept = np.argpartition(-contrast, MOST_HELD)[:MOST_HELD]
            high, low, contrast = high[kept], low[kept], contrast[kept]
            floor = float(contrast.min())
    distance = _in_calipers(people.log_volume[high] - people.log_volume[low], caliper)
    distance += _in_calipers(people.age[high] - people.age[low], age_caliper)
    order = np.lexsort((low, high, distance, -contrast))[:MOST_HELD]
    return Admissible(high[order], low[order], contrast[order], distance[order], *counts.at_least())


def _in_calipers(difference: FloatArray, caliper: float) -> FloatArray:
    return np.asarray(np.abs(difference) / caliper if caliper > 0 else np.zeros(len(difference)))


class _Counts:
    """How many pairs of people meet 0, 1 or 2 further criteria, scans of the same two once."""

    def __init__(self, person: IntArray) -> None:
        self.person = person
        self.several = np.bincount(person)[person] > 1
        self.alone = np.zeros(3, dtype=np.int64)
        # of people of several scans, who may come up again: each pair, and what it met
        self.pair, self.met = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int8)

    def add(self, a: IntArray, b: IntArray, met: npt.NDArray[np.int8]) -> None:
        again = self.several[a] | self.several[b]
        self.alone += np.bincount(met[~again], minlength=3)
        if again.any():
            both = np.sort(np.stack([self.person[a[again]], self.person[b[again]]]), axis=0)
            pair = np.concatenate([self.pair, both[0] * (self.person.max() + 1) + both[1]])
            met = np.concatenate([self.met, met[again]])
            order = np.lexsort((-met, pair))
            self.pair, first = np.unique(pair[order], return_index=True)
            self.met = met[order][first]

    def at_least(self) -> tuple[int, int, int]:
        """Pairs that meet at least 0, 1 and 2 criteria."""
        exactly = self.alone + np.bincount(self.met, minlength=3)
        first, second, third = (int(n) for n in np.cumsum(exactly[::-1])[::-1])
        return first, second, third


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
    ``sum x <= 1`` over the pairs of a person, by branch and bound (HiGHS). Many matchings
    have that total: those who are high and low may be paired with each other in any way. Among
    them the one of smallest total :attr:`Admissible.distance` is taken. What is still equal is
    decided by the order of `people`, so give them in an order of their own.
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
            chosen.append(own[_largest(high, low, pairs.contrast[own], pairs.distance[own])])
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


def _largest(
    high: IntArray, low: IntArray, contrast: FloatArray, distance: FloatArray
) -> BoolArray:
    """Largest total contrast, and of that the smallest total distance."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_array

    names, code = np.unique(np.concatenate([high, low]), return_inverse=True)
    n, m = len(names), len(contrast)
    ones, columns = np.ones(2 * m), np.tile(np.arange(m), 2)
    once = LinearConstraint(csr_array((ones, (code, columns)), shape=(n, m)), ub=np.ones(n))
    # scaled, since the solver takes 1e-6 for nothing
    weight = contrast * (_SHARP / contrast.max())
    first, message = _solved(-weight, [once])
    if first is None:
        raise StatisticsError(
            f"The matching of {m} pairs of {n} people was not found ({message}). Give "
            "narrower calipers."
        )
    total = float(weight[first].sum())
    least = total * (1 - 1e-12)
    kept = LinearConstraint(csr_array(weight[None, :]), lb=least)
    second, _ = _solved(distance, [once, kept], node_limit=MOST_NODES)
    if second is None or weight[second].sum() < least - 1e-3:
        return first
    return second


def _solved(
    cost: FloatArray, constraints: list[Any], **options: int
) -> tuple[BoolArray | None, str]:
    """Pairs of smallest total cost; None, and why, where there are none."""
    from scipy.optimize import Bounds, milp

    found = milp(
        cost,
        constraints=constraints,
        bounds=Bounds(0, 1),
        integrality=np.ones(len(cost)),
        options={"mip_rel_gap": 0.0, **options},
    )
    return (None if found.x is None else np.asarray(found.x > 0.5)), str(found.message)
