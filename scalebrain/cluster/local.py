"""Worker processes on this machine."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from scalebrain.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["local_client", "parsed_memory"]

logger = logging.getLogger(__name__)

_MEMORY_PER_WORKER = 1.5 * 2**30
_LEAST_MEMORY = 2**28


@contextlib.contextmanager
def local_client(n_workers: int | None, memory: int | None) -> Iterator["Client"]:
    """Start workers on this machine, and end them.

    Parameters
    ----------
    n_workers
        Their number; None for one a core as far as memory allows.
    memory
        Bytes that they may use together; None for all of the machine or container.

    Yields
    ------
    Client
        Client of a scheduler on the loopback interface.
    """
    import dask
    from distributed import Client, LocalCluster

    workers, each = _local_workers(n_workers, memory)
    settings = {
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.scheduler.worker-saturation": "inf",
        "distributed.worker.memory.pause": False,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=each,  # not "auto": a share of the cores, however many workers there are
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            # a worker that is told to stop complains of the connection that it loses
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local) as client,
    ):
        logger.info("%d workers; dashboard at %s", workers, client.dashboard_link)
        yield client


def parsed_memory(memory: str | int, where: str = "") -> int:
    """Bytes of an amount of memory, such as ``8GB``; `where` begins the message of an error."""
    from dask.utils import parse_bytes

    start = f"{where}: " if where else ""
    try:
        found = int(parse_bytes(memory))
    except ValueError as error:
        raise ConfigError(
            f"{start}Memory '{memory}': expected an amount such as 8GB or 500MiB."
        ) from error
    if found < _LEAST_MEMORY:
        raise ConfigError(
            f"{start}Memory '{memory}' is {found} bytes, too few for one worker. Expected an "
            "amount with its unit, such as 8GB."
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
