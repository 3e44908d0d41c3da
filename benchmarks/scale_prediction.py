"""From measured runs to stages of another size, and from counted requests to all of them."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scale_simulation import Stage, Work

__all__ = [
    "check_requests",
    "features_stage",
    "fit_requests",
    "ingest_stage",
    "partition_rows",
    "requests_at",
]

_SHARD = 16
_SMALL_COHORT = 2048
#: Rows of a task of images and of masks at 1 mm, and fewest tasks: as the features choose them.
_ROWS = {"rows of images": 16, "rows of masks": 512}
_LEAST_TASKS = 16

Runs = Sequence[Mapping[str, Any]]


def partition_rows(people: int) -> int:
    """Scans of a task of the ingest."""
    return 16 if people < _SMALL_COHORT else 64


def ingest_stage(
    learned: Runs,
    people: int,
    sizes: Mapping[str, float],
    *,
    before: float = 0.0,
    after: float = 0.0,
    shared: float = 0.0,
) -> Stage:
    """Ingest of another number of people than was measured.

    Parameters
    ----------
    learned
        Runs on one worker, with tasks of 16 scans.
    people
        People.
    sizes
        Bytes a scan of the sources and of every array.
    before, after
        Seconds of the driver beyond those of the measured runs.
    shared
        Bytes that every worker gets.

    Returns
    -------
    Stage
        Stage.
    """
    tasks = [[task[1] for task in run["ingest"]["tasks"]] for run in learned]
    later = [seconds for run in tasks for seconds in run[1:]]
    rows = partition_rows(people)
    size = rows * sum(sizes.values())
    full, rest = divmod(people, rows)
    works = [Work(full, later, rows / _SHARD, size)]
    if rest:
        works.append(Work(1, later, rest / _SHARD, size * rest / rows))
    return Stage(
        "ingest",
        tuple(works),
        _alone(learned, "ingest") + before,
        after,
        shared,
        _warm(tasks, later),
    )


def features_stage(
    learned: Runs,
    kinds: Mapping[str, int],
    calibrated: int,
    people: int,
    sizes: Mapping[str, float],
    *,
    before: float = 0.0,
    shared: float = 0.0,
) -> Stage:
    """Features of another number of people than was measured.

    Parameters
    ----------
    learned
        Runs on one worker.
    kinds
        Tasks by kind, counted in the graph of all people.
    calibrated
        People of the measured runs.
    people
        People.
    sizes
        Bytes a scan of every array; nothing when they are not asked for.
    before
        Seconds of the driver beyond those of the measured runs.
    shared
        Bytes that every worker gets.

    Returns
    -------
    Stage
        Stage.
    """
    found: dict[str, list[float]] = defaultdict(list)
    warm = 0.0
    for run in learned:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for kind, seconds, *_ in run["features"]["tasks"]:
            by_kind[kind].append(seconds)
        for kind, seconds in by_kind.items():
            usual = statistics.median(seconds)
            # what loads and compiles on its first call; kinds of masks are three functions
            slow = [s for s in seconds if len(seconds) > 3 and s > 10 * usual and s > 0.1]
            warm += sum(s - usual for s in slow) / len(learned)
            found[kind] += [s for s in seconds if s not in slow]
    other = [statistics.median(s for seconds in found.values() for s in seconds)]
    works = []
    for kind, n in kinds.items():
        scale, size = 1.0, 0.0
        if kind in _ROWS:
            rows = _rows_of_task(kind, people)
            scale = rows / _rows_of_task(kind, calibrated)
            arrays = ("t1w", "gm", "lesion_mask") if kind == "rows of images" else ("lesion_mask",)
            size = rows * sum(sizes.get(name, 0.0) for name in arrays)
        works.append(Work(n, found.get(kind) or other, scale, size))
    return Stage("features", tuple(works), _alone(learned, "features") + before, 0.0, shared, warm)


def _rows_of_task(kind: str, people: int) -> float:
    """Rows that a task reads, on average."""
    most = min(_ROWS[kind], math.ceil(people / _LEAST_TASKS))
    return people / math.ceil(people / most)


def _alone(learned: Runs, stage: str) -> float:
    """Seconds in which no task ran."""
    return statistics.median(run[stage]["wall"] - run[stage]["span"] for run in learned)


def _warm(tasks: Sequence[Sequence[float]], later: Sequence[float]) -> float:
    """Seconds more that a worker's first task takes."""
    usual = statistics.median(later)
    return max(0.0, statistics.median(run[0] for run in tasks) - usual)


Counts = Mapping[str, Mapping[str, int]]


def fit_requests(one: Counts, two: Counts) -> dict[str, dict[str, tuple[int, int]]]:
    """Requests without partitions, and a partition of 64 scans, from cohorts of one and two."""
    out: dict[str, dict[str, tuple[int, int]]] = {}
    for stage in one:
        out[stage] = {}
        for kind in sorted({*one[stage], *two[stage]}):
            first, second = one[stage].get(kind, 0), two[stage].get(kind, 0)
            out[stage][kind] = (2 * first - second, second - first)
    return out


def check_requests(
    fitted: Mapping[str, Mapping[str, tuple[int, int]]], found: Counts, partitions: int
) -> dict[str, dict[str, int]]:
    """Requests found beyond those predicted, by stage and kind; only where they differ."""
    out: dict[str, dict[str, int]] = {}
    for stage, kinds in fitted.items():
        off = {
            kind: found[stage].get(kind, 0) - (fixed + each * partitions)
            for kind, (fixed, each) in kinds.items()
        }
        out[stage] = {kind: n for kind, n in off.items() if n}
    return out


def requests_at(
    fitted: Mapping[str, Mapping[str, tuple[int, int]]],
    driver: Sequence[Mapping[str, Any]],
    people: int,
) -> dict[str, dict[str, int]]:
    """Requests of all people by stage and method, small tables in their number of objects."""
    partitions = math.ceil(people / partition_rows(people))
    more = driver[-1]["small_objects"] - driver[0]["small_objects"]
    chunks = driver[-1]["by_kind"]
    out = {}
    for stage, kinds in fitted.items():
        total: Counter[str] = Counter()
        for kind, (fixed, each) in kinds.items():
            method, _, about = kind.partition(" ")
            if stage == "features" and about == "other":
                # small variables: an empty one is not written, no more are read in a large cohort
                total[method] += fixed + each * (1 if each < 0 else 2)
            else:
                total[method] += fixed + each * partitions
        if stage == "ingest":
            total["PUT"] += more
        else:
            total["PUT"] += _written(chunks)
        out[stage] = dict(sorted(total.items()))
    return out


def _written(kinds: Mapping[str, int]) -> int:
    """Chunks that the features write."""
    return sum(n for kind, n in kinds.items() if "store-map" in kind)
