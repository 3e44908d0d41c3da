"""An ingest in parts: processes that know nothing of each other, as the tasks of an array job.

Whichever comes first plans, alone, and all write the partitions that are theirs by number. What
finishes the store is the same ingest without a part.
"""

import logging
import random
import time
from collections.abc import Callable

from scalebrain.errors import ConfigError, StoreBusyError, StoreError
from scalebrain.io.lease import LEASE_KEY
from scalebrain.io.location import Location

__all__ = ["check_part", "is_of_part", "until_written"]

logger = logging.getLogger(__name__)

_PATIENCE = 900.0
_LOOK_AGAIN = 60.0  # after the ttl of a lease a dead holder can be told from a live one
_ROUNDS = 5


def check_part(part: tuple[int, int], *, verify: bool) -> None:
    """Refuse a part that there is not.

    Parameters
    ----------
    part
        Number from 1, and how many there are.
    verify
        As for the ingest, which only without a part can do it.

    Raises
    ------
    ConfigError
        When the number is not within the count, or `verify` is set.
    """
    number, count = part
    if not 1 <= number <= count:
        raise ConfigError(f"Part {number} of {count}: expected a number from 1 to the count.")
    if verify:
        raise ConfigError("A part does not verify. Verify with the ingest that finishes the store.")


def is_of_part(partition: int, part: tuple[int, int] | None) -> bool:
    """Whether a partition, by its number from 0, belongs to a part; to no part they all do."""
    return part is None or partition % part[1] == part[0] - 1


def until_written(location: Location, attempt: Callable[[], bool]) -> None:
    """Try until a part is written, while others plan or the part's last process dies.

    Parameters
    ----------
    location
        Store.
    attempt
        True when the part is written, False when it was planned alone.

    Raises
    ------
    StoreBusyError
        When another process holds the store, or this part, for a quarter of an hour.
    StoreError
        When no plan holds.
    """
    end = time.monotonic() + _PATIENCE
    planned = 0
    while planned < _ROUNDS:
        try:
            if attempt():
                return
            planned += 1
        except StoreBusyError as error:
            if time.monotonic() > end:
                raise
            logger.info("waiting: %s", error)
            _wait_for_lease(location)
    raise StoreError(
        f"{location}: the sources change while they are read, planned {planned} times. Ingest when "
        "nobody writes them."
    )


def _wait_for_lease(location: Location) -> None:
    """Wait until nobody holds the store, not all parts at the same moment."""
    end = time.monotonic() + _LOOK_AGAIN
    time.sleep(0.5 + random.random())
    while location.get(LEASE_KEY) is not None and time.monotonic() < end:
        time.sleep(0.5 + random.random())
