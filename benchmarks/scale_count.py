"""Counting: tasks of a graph, tasks that ran and what they took, requests to an object store."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import cloudpickle
from distributed.diagnostics.plugin import SchedulerPlugin

__all__ = ["Counted", "Ran", "count_only", "kind_of"]


class Counted(Exception):  # noqa: N818 - it ends a computation on purpose
    """Size of a graph that was not computed."""

    def __init__(self, kinds: Mapping[str, int], sent: int, seconds: float) -> None:
        super().__init__(f"{sum(kinds.values())} tasks")
        self.sent, self.seconds = sent, seconds
        self.kinds = dict(kinds)
        self.tasks = sum(kinds.values())


def kind_of(key: Any) -> str:
    """Name of a task without what tells it from its siblings."""
    name = key[0] if isinstance(key, tuple) else str(key)
    return name.rsplit("-", 1)[0]


def _kind_of_task(key: Any, task: Any) -> str:
    """Kind of a task of a graph; rows of images apart from rows of masks."""
    kind = kind_of(key)
    if kind == "rows":
        images = any("features" in getattr(one, "__name__", "") for one in task.args)
        return "rows of images" if images else "rows of masks"
    return kind


def count_only(graph: Any, *_: Any, **__: Any) -> Any:
    """Count the tasks of a graph as a Dask scheduler would get it, and compute nothing."""
    from dask._task_spec import convert_legacy_graph

    start = time.perf_counter()
    sent = len(cloudpickle.dumps(graph))
    tasks = convert_legacy_graph(dict(graph.__dask_graph__()))
    kinds = Counter(_kind_of_task(key, task) for key, task in tasks.items())
    raise Counted(kinds, sent, time.perf_counter() - start)


class Ran(SchedulerPlugin):
    """Tasks that a scheduler ran: kind, seconds of work and of transfer, bytes of the result."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.tasks: list[tuple[str, float, float, int]] = []
        self._first, self._last = float("inf"), 0.0

    @property
    def span(self) -> float:
        """Seconds from the first task's begin to the last one's end."""
        return max(0.0, self._last - self._first)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **about: Any) -> None:
        """Note a task that was computed."""
        if start != "processing" or finish != "memory":
            return
        took: dict[str, float] = defaultdict(float)
        for part in about.get("startstops") or ():
            took[part["action"]] += part["stop"] - part["start"]
            self._first = min(self._first, part["start"])
            self._last = max(self._last, part["stop"])
        kind = _kind_of_task(key, self._scheduler.tasks[key].run_spec)
        size = int(about.get("nbytes") or 0)
        self.tasks.append((kind, took["compute"], took["transfer"], size))
