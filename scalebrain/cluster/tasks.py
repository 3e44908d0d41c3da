"""Many tasks on the workers of a cluster, and one cache a worker."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

from scalebrain.errors import ScalebrainError
from scalebrain.options import report_progress

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["active_client", "map_tasks", "once_per_worker"]

T = TypeVar("T")
R = TypeVar("R")

_ROUNDS = 3


def active_client() -> "Client | None":
    """Return the distributed client of this context, or None."""
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def map_tasks(
    function: Callable[..., R],
    items: Sequence[T],
    *,
    label: str,
    shared: Any = None,
    threads: int | None = None,
) -> list[R]:
    """Run a function on every item, on Dask workers when a client is active, else on threads.

    Parameters
    ----------
    function
        Picklable function of one item, and of `shared` when it is given.
    items
        Items, one task each.
    label
        Name for progress.
    shared
        Data that every task needs, sent once to each worker, or to one a task if those are fewer.
    threads
        Threads where no client is active; one a core when None.

    Returns
    -------
    list
        Results in the order of `items`.
    """
    total = len(items)
    results: dict[int, R] = {}
    report_progress(label, 0, total)
    client = active_client()
    more = () if shared is None else (shared,)
    if client is None:
        import dask

        n_threads = threads or dask.config.get("num_workers", None) or os.cpu_count() or 1
        with ThreadPoolExecutor(max_workers=n_threads) as pool:
            running = {pool.submit(function, item, *more): i for i, item in enumerate(items)}
            try:
                for task in as_completed(running):
                    results[running[task]] = task.result()
                    report_progress(label, len(results), total)
            except BaseException:  # also Ctrl-C: what has not begun does not begin
                pool.shutdown(cancel_futures=True)
                raise
    else:
        from distributed import KilledWorker

        for _ in range(_ROUNDS):
            left = [i for i in range(total) if i not in results]
            try:
                for i, result in _on_workers(client, function, items, left, more):
                    results[i] = result
                    report_progress(label, len(results), total)
            except KilledWorker as error:
                raise ScalebrainError(
                    f"{label}: a task died with every worker that took it, most often for want of "
                    "memory. Give workers more of it, and run the same command again: it goes on."
                ) from error
            if len(results) == total:
                break
        else:
            raise ScalebrainError(
                f"{label}: workers went on dying with what they were given, "
                f"{total - len(results)} of {total} tasks are left. See their logs, give them more "
                "memory, and run the same command again."
            )
    return [results[i] for i in range(total)]


def _on_workers(
    client: "Client",
    function: Callable[..., R],
    items: Sequence[T],
    numbers: Sequence[int],
    shared: Sequence[Any],
) -> Iterator[tuple[int, R]]:
    """Results by number as they come; those that died with all holders of `shared` are left out."""
    import distributed

    # to as many workers as can have a task of it; Dask takes their number for `broadcast`
    sent = [client.scatter(one, broadcast=len(numbers), hash=False) for one in shared]
    futures = [client.submit(function, items[i], *sent, pure=False, retries=2) for i in numbers]
    number = {future.key: i for i, future in zip(numbers, futures, strict=True)}
    try:
        for future, result in distributed.as_completed(futures, with_results=True):
            if future.status == "finished":
                yield number[future.key], result
    finally:
        client.cancel(futures)  # those that an error or Ctrl-C left


def once_per_worker(function: Callable[..., R]) -> Callable[..., R]:
    """Keep the few latest results of a function in each worker process."""
    cached: Any = functools.lru_cache(maxsize=4)(function)
    return functools.wraps(function)(lambda *args: cached(*args))
