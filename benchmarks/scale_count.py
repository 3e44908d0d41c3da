"""Counting: tasks of a graph, tasks that ran and what they took, requests to an object store."""

import time
from collections import Counter
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


def count_only(graph: Any, *_: Any, **__: Any) -> Any:
    """Count the tasks of a graph as a Dask scheduler would get it, and compute nothing."""
    from dask._task_spec import DataNode, convert_legacy_graph

    start = time.perf_counter()
    sent = len(cloudpickle.dumps(graph))
    tasks = convert_legacy_graph(dict(graph.__dask_graph__()))
    kinds = Counter(kind_of(k) for k, task in tasks.items() if not isinstance(task, DataNode))
    raise Counted(kinds, sent, time.perf_counter() - start)


class Ran(SchedulerPlugin):
    """Tasks that ran: kind, seconds of work and of transfer, bytes of the result."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float, float, int]] = []

    def transition(self, key: Any, start: str, finish: str, *_: Any, **about: Any) -> None:
        if start != "processing" or finish != "memory":
            return
        took = Counter[str]()
        for part in about.get("startstops") or ():
            took[part["action"]] += part["stop"] - part["start"]
        self.tasks.append((kind_of(key), took["compute"], took["transfer"], about.get("nbytes") or 0))
