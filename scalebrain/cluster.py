"""Dask: opening a client, running many tasks, and one cache a worker."""

import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

from scalebrain.errors import ConfigError, ScalebrainError
from scalebrain.options import report_progress

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "WORKER_ENVIRONMENT",
    "active_client",
    "map_tasks",
    "once_per_worker",
    "one_thread_each",
    "open_client",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_ROUNDS = 3
_MEMORY_PER_WORKER = 1.5 * 2**30
_LEAST_MEMORY = 2**28
#: glibc returns large blocks to the system at once, and each scan pays for them anew;
#: workers keep them instead.
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@contextlib.contextmanager
def open_client(
    spec: str | None = None, *, n_workers: int | None = None, memory: str | int | None = None
) -> Iterator["Client | None"]:
    """Open the Dask client that a study runs on, and close what was opened.

    Parameters
    ----------
    spec
        None for worker processes on this machine, one a core as far as memory allows
        (container limits respected); ``"threads"`` for no cluster at all; or the address
        of a running scheduler, e.g. ``"tcp://10.0.0.1:8786"``.
    n_workers
        Worker processes on this machine, or threads; None for one a core.
    memory
        Memory of this machine that its workers may use together, in bytes or as ``"8GB"``; None
        for all of it. It also bounds how many workers there are when `n_workers` is None.

    Yields
    ------
    Client or None
        None for ``"threads"``.

    Raises
    ------
    ConfigError
        When `spec` is none of these, no scheduler answers at the address, or `n_workers` or
        `memory` is given where it means nothing.
    """
    import dask

    if n_workers is not None and n_workers < 1:
        raise ConfigError(f"{n_workers} workers: expected 1 or more.")
    limit = None if memory is None else _bytes(memory)
    if spec == "threads":
        if limit is not None:
            raise ConfigError(
                "Nothing bounds the memory of threads. Leave the memory out, or the scheduler: "
                "then workers of this machine keep within it."
            )
        with dask.config.set({} if n_workers is None else {"num_workers": n_workers}):
            yield None
        return
    if spec is not None and "://" not in spec:
        raise ConfigError(
            f"Scheduler '{spec}' is not known. Give nothing for this machine, 'threads', or the "
            "address of a scheduler such as tcp://10.0.0.1:8786."
        )
    if spec is not None and (n_workers is not None or limit is not None):
        raise ConfigError(
            "The workers of a running scheduler have their number and memory already. Leave both "
            "out, or the scheduler."
        )
    from distributed import Client, LocalCluster

    if spec is None:
        workers, each = _local_workers(n_workers, limit)
        settings = {
            "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
            "distributed.scheduler.worker-saturation": "inf",
        }
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit="auto" if limit is None else each,
                dashboard_address="127.0.0.1:0",
                host="127.0.0.1",
                # a worker that is told to stop complains of the connection that it loses
                silence_logs=logging.CRITICAL,
            ) as local,
            Client(local) as client,
        ):
            logger.info("%d workers; dashboard at %s", workers, client.dashboard_link)
            yield client
        return
    try:
        client = Client(spec, timeout="20s")
    except (OSError, ValueError) as error:  # a protocol that Dask does not know is a ValueError
        reason = str(error).splitlines()[0]
        raise ConfigError(f"No Dask scheduler answers at {spec}: {reason}") from error
    with client:
        logger.info("scheduler %s; dashboard at %s", spec, client.dashboard_link)
        yield client


def _bytes(memory: str | int) -> int:
    """Bytes of an amount of memory."""
    from dask.utils import parse_bytes

    try:
        found = int(parse_bytes(memory))
    except ValueError as error:
        raise ConfigError(
            f"Memory '{memory}': expected an amount such as 8GB or 500MiB."
        ) from error
    if found < _LEAST_MEMORY:
        raise ConfigError(
            f"Memory '{memory}' is {found} bytes, too few for one worker. Expected an amount with "
            "its unit, such as 8GB."
        )
    return found


def _local_workers(n_workers: int | None, memory: int | None) -> tuple[int, int]:
    """Choose how many workers this machine has, and the bytes of each."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    room = int(MEMORY_LIMIT)
    if memory is not None and memory > room:
        logger.warning("this machine has %.1f GB of memory: no more is used", room / 1e9)
    room = room if memory is None else min(memory, room)
    number = n_workers or max(1, min(CPU_COUNT, int(room // _MEMORY_PER_WORKER)))
    if number * _MEMORY_PER_WORKER > room:
        wanted = number * _MEMORY_PER_WORKER / 1e9
        logger.warning(
            "%d workers have %.1f GB together; %.1f would be safe", number, room / 1e9, wanted
        )
    return number, room // number


_entering = threading.Lock()
#: One entry for each thread inside `one_thread_each`; the first holds what to restore.
_inside: list[Any] = []


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS and torch from threads of their own while a block is computed.

    Dask runs one block a core. What starts threads within a block waits for cores that the other
    blocks have: many times slower than one thread, and sums in an order that depends on the
    machine. Several threads may be inside at once: the last one out restores the limit of BLAS,
    that of torch is each thread's own.
    """
    from threadpoolctl import OpenBLASController, threadpool_limits

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    # Only the thread that limits OpenBLAS may restore it, unless it is said to be done.
    with _entering:
        if not _inside:
            OpenBLASController.clear_controlling_thread(force=True)
        _inside.append(None if _inside else threadpool_limits(1, "blas"))
    if torch is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        with _entering:
            limit = _inside.pop()  # the first entry is the last to go
            if limit is not None:
                OpenBLASController.clear_controlling_thread(force=True)
                limit.restore_original_limits()
                OpenBLASController.clear_controlling_thread(force=True)


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
        Data that every task needs, sent to each worker once.
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

    sent = [client.scatter(one, broadcast=True, hash=False) for one in shared]
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
