"""Wait until a cluster has a worker, and how long it may be without one."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from scalebrain.errors import ScalebrainError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["NO_WORKERS", "first_worker", "no_workers", "no_workers_limit"]

logger = logging.getLogger(__name__)

#: Dask's setting: how long tasks wait while there is no worker before they fail.
NO_WORKERS = "distributed.scheduler.no-workers-timeout"

_TOLD_EVERY = 60.0
_POLL = 1.0


def no_workers_limit(default: str = "30 minutes") -> float:
    """Seconds that a study waits while it has no worker; Dask's configuration may say them."""
    import dask
    from dask.utils import parse_timedelta

    return float(parse_timedelta(dask.config.get(NO_WORKERS, None) or default))


def no_workers(what: str) -> ScalebrainError:
    """Error of what has waited too long; `what` begins its message."""
    from dask.utils import format_time

    return ScalebrainError(
        f"{what}: no worker for {format_time(no_workers_limit()).strip()} that could take its "
        "tasks. What is done is kept: see the workers' logs and the queue, start workers, and run "
        f"the same command again, which goes on. To wait longer, set {NO_WORKERS} in Dask's "
        "configuration."
    )


def first_worker(client: "Client", check: Callable[[], str], limit: float | None = None) -> None:
    """Wait until a worker has come, however long a queue takes.

    Parameters
    ----------
    client
        Client of the scheduler.
    check
        Raises when no worker can come any more; else says what is waited for.
    limit
        Seconds after which no worker is an error; None for none.

    Raises
    ------
    ScalebrainError
        When no worker has come within `limit`.
    """
    logger.info("waiting for a worker")
    begin = told = time.monotonic()
    while not client.nthreads():
        time.sleep(_POLL)
        state = check()
        if limit is not None and time.monotonic() - begin > limit:
            raise no_workers(state)
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            logger.info("still waiting for a worker: %s", state)
