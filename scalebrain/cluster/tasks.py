"""Many tasks on the workers of a cluster, and one cache a worker."""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

from scalebrain.cluster.waiting import first_worker, no_workers, no_workers_limit
from scalebrain.errors import ScalebrainError
from scalebrain.options import report_progress

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["active_client", "map_tasks", "on_gpu_workers", "once_per_worker"]

T = TypeVar("T")
R = TypeVar("R")

_ROUNDS = 3
_PAUSE = 2.0
_READ_EVERY = 0.02
_LOOK_EVERY = 5.0


def active_client() -> "Client | None":
    """Return the distributed client of this context, or None."""
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


class _LostError(Exception):
    """Workers died while they were sent what their tasks need."""


@contextlib.contextmanager
def on_gpu_workers() -> Iterator[None]:
    """Send what is computed in the block to the workers with the resource ``GPU``.

    Where no worker has it, or no client is active, the block changes nothing. It has to be
    around what computes: an annotation of lazy arrays is lost when Dask fuses them.
    """
    from dask.base import annotate

    client = active_client()
    workers = {} if client is None else client.scheduler_info(n_workers=-1)["workers"]
    if any(worker.get("resources", {}).get("GPU") for worker in workers.values()):
        with annotate(resources={"GPU": 1}):
            yield
    else:
        yield


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

    Raises
    ------
    ScalebrainError
        When workers went on dying, or none has come back for half an hour, or as long as Dask's
        setting ``distributed.scheduler.no-workers-timeout`` says.
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
        from distributed import CancelledError, KilledWorker
        from distributed.scheduler import NoValidWorkerError, NoWorkerError

        idle = 0  # rounds that brought nothing
        while len(results) < total and idle < _ROUNDS:
            if not client.nthreads():
                first_worker(client, lambda: label, no_workers_limit())
            left = [i for i in range(total) if i not in results]
            try:
                for i, result in _on_workers(client, function, items, left, more, label):
                    results[i] = result
                    report_progress(label, len(results), total)
            except KilledWorker as error:
                raise ScalebrainError(
                    f"{label}: a task died with every worker that took it, most often for want of "
                    "memory. Give workers more of it, and run the same command again: it goes on."
                ) from error
            except (NoWorkerError, NoValidWorkerError) as error:
                raise no_workers(label) from error
            except (CancelledError, _LostError) as error:
                if client.status != "running":  # it is the scheduler that is lost
                    raise (error.__cause__ or error) from None
                time.sleep(_PAUSE)
            idle = idle + 1 if len(left) == total - len(results) else 0
        if len(results) < total:
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
    label: str,
) -> Iterator[tuple[int, R]]:
    """Results by number as they come; those that died with all holders of `shared` are left out."""
    import distributed
    from distributed.comm.core import CommClosedError

    try:
        # to as many workers as can have a task of it; Dask takes their number for `broadcast`
        sent = [client.scatter(one, broadcast=len(numbers), hash=False) for one in shared]
    except (KeyError, TimeoutError, CommClosedError) as error:  # one of them died meanwhile
        raise _LostError(str(error)) from error
    futures = [client.submit(function, items[i], *sent, pure=False, retries=2) for i in numbers]
    number = {future.key: i for i, future in zip(numbers, futures, strict=True)}
    done = distributed.as_completed(futures, with_results=True)
    looked = time.monotonic()
    try:
        while not done.is_empty():
            if done.has_ready():
                future, result = next(done)
                if future.status == "finished":
                    yield number[future.key], result
            elif client.status == "running" and time.monotonic() - looked > _LOOK_EVERY:
                # a scheduler that is lost cancels the futures, which tells
                with contextlib.suppress(OSError):
                    if not client.nthreads():
                        first_worker(client, lambda: label, no_workers_limit())
                looked = time.monotonic()
            else:
                time.sleep(_READ_EVERY)
    finally:
        client.cancel(futures)  # those that an error or Ctrl-C left


def once_per_worker(function: Callable[..., R]) -> Callable[..., R]:
    """Keep the few latest results of a function in each worker process."""
    cached: Any = functools.lru_cache(maxsize=4)(function)
    return functools.wraps(function)(lambda *args: cached(*args))
