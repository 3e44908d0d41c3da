"""Wait until a cluster has a worker."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["first_worker"]

logger = logging.getLogger(__name__)

_TOLD_EVERY = 60.0
_POLL = 1.0


def first_worker(client: "Client", check: Callable[[], str]) -> None:
    """Wait until a worker has come, however long a queue takes.

    Parameters
    ----------
    client
        Client of the scheduler.
    check
        Raises when no worker can come any more; else says what is waited for.
    """
    logger.info("waiting for a worker")
    told = time.monotonic()
    while not client.nthreads():
        time.sleep(_POLL)
        state = check()
        if time.monotonic() - told > _TOLD_EVERY:
            told = time.monotonic()
            logger.info("still waiting for a worker: %s", state)
