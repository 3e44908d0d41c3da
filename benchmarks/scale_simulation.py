"""A stage on a cluster, as a small discrete-event simulation.

One scheduler takes a fixed processor time for every task, half of it before the task can begin
and half when it is done. Workers come one after the other, fetch what all tasks share, and each
takes the next task when it is free. What tasks read and write goes through one pipe, first come,
first served, as fast as the storage gives it to all of them together. Before and after, the driver
works alone.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Cluster", "Outcome", "Stage", "Work", "drawn", "simulate"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Tasks of one kind.

    Parameters
    ----------
    n
        How many.
    seconds
        Measured seconds of such tasks, from which each is drawn.
    scale
        Factor on what is drawn, such as the number of scans of a task over that of a measured
        one: a task is the sum of so many draws.
    bytes
        Bytes that a task reads and writes.
    """

    n: int
    seconds: Sequence[float]
    scale: float = 1.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What a stage does.

    Parameters
    ----------
    name
        Name.
    works
        Its tasks, in the order in which they are given to workers.
    before, after
        Seconds of the driver alone.
    shared
        Bytes that every worker fetches before its first task.
    warm
        Seconds more that the first task of a worker takes.
    """

    name: str
    works: tuple[Work, ...]
    before: float = 0.0
    after: float = 0.0
    shared: float = 0.0
    warm: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Where it runs.

    Parameters
    ----------
    workers
        Workers of one thread.
    per_task
        Processor seconds of the scheduler for a task.
    link
        Bytes a second between two machines.
    pipe
        Bytes a second that the storage gives to all workers together.
    first, every
        Seconds until the first worker comes, and from each to the next.
    """

    workers: int
    per_task: float
    link: float = 1.25e9
    pipe: float = math.inf
    first: float = 0.0
    every: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Parameters
    ----------
    seconds
        From the start of the stage to its end.
    tasks
        Tasks.
    scheduler_busy, pipe_busy, workers_busy
        Share of the time between the driver's parts in which the scheduler, the storage, and the
        workers that had come were at work.
    """

    seconds: float
    tasks: int
    scheduler_busy: float
    pipe_busy: float
    workers_busy: float


@dataclass
class _Server:
    """Serves one after the other."""

    free: float = 0.0
    busy: float = 0.0

    def serve(self, ready: float, seconds: float) -> float:
        self.free = max(self.free, ready) + seconds
        self.busy += seconds
        return self.free


@dataclass
class _Room:
    """State of a running stage."""

    scheduler: _Server = field(default_factory=_Server)
    pipe: _Server = field(default_factory=_Server)
    worked: float = 0.0
    end: float = 0.0


def drawn(work: Work, rng: np.random.Generator) -> Floats:
    """Seconds of every task of a kind.

    Parameters
    ----------
    work
        Tasks.
    rng
        Generator.

    Returns
    -------
    ndarray
        (task,) seconds.
    """
    if not work.n:
        return np.zeros(0)
    measured = np.asarray(work.seconds, dtype=np.float64)
    whole = max(1, int(work.scale))
    picked = measured[rng.integers(0, measured.size, (work.n, whole))].sum(axis=1)
    return np.asarray(picked * (work.scale / whole))


def simulate(stage: Stage, cluster: Cluster, *, seed: int = 0) -> Outcome:
    """Run a stage on a cluster.

    Parameters
    ----------
    stage
        Stage.
    cluster
        Cluster.
    seed
        Seed of the draws.

    Returns
    -------
    Outcome
        Time and load.
    """
    rng = np.random.default_rng(seed)
    seconds = np.concatenate([drawn(work, rng) for work in stage.works] or [np.zeros(0)])
    size = np.concatenate([np.full(work.n, work.bytes) for work in stage.works] or [np.zeros(0)])
    half = cluster.per_task / 2
    room = _Room()
    n = len(seconds)
    ready = (np.arange(n) + 1) * half  # the driver gives all of them at once
    room.scheduler.busy = n * half
    # copied on from worker to worker: of those that are there it takes the logarithm
    fetch = math.ceil(math.log2(cluster.workers + 1)) * stage.shared / cluster.link
    arrived = [cluster.first + i * cluster.every for i in range(cluster.workers)]
    free = [(at + fetch, i) for i, at in enumerate(arrived)]
    heapq.heapify(free)
    fresh = set(range(cluster.workers))
    done: list[tuple[float, int]] = []
    for task in range(n):
        at, worker = heapq.heappop(free)
        begin = max(at, float(ready[task]))
        took = float(seconds[task])
        if worker in fresh:
            fresh.discard(worker)
            took += stage.warm
        end = max(begin + took, room.pipe.serve(begin, float(size[task]) / cluster.pipe))
        room.worked += end - begin
        heapq.heappush(free, (end, worker))
        heapq.heappush(done, (end, task))
    room.scheduler.free = n * half
    while done:
        room.end = room.scheduler.serve(heapq.heappop(done)[0], half)
    there = sum(max(0.0, room.end - at) for at in arrived)
    span = max(room.end, 1e-9)
    return Outcome(
        stage.before + room.end + stage.after,
        n,
        min(1.0, room.scheduler.busy / span),
        min(1.0, room.pipe.busy / span),
        room.worked / max(there, 1e-9),
    )
