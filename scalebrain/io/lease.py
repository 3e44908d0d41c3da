"""One ingest at a time: a lease on a store, taken over when its holder died.

The lease is an object of the store, changed by compare and swap alone. Its holder renews
it; who wants it from another machine watches whether it is renewed and compares no clocks.
The parts of an ingest hold leases of their own beside each other, and never beside the lease
of the store: each side writes its own before it looks for the other's, so that one at least
gives way.
"""

import hashlib
import json
import logging
import math
import os
import platform
import secrets
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from scalebrain.errors import ConfigError, StoreBusyError, StoreError
from scalebrain.io.location import Location

__all__ = ["LEASE_KEY", "Lease", "check_token", "hold_lease", "hold_part_lease"]

logger = logging.getLogger(__name__)

#: Key of the lease in the store.
LEASE_KEY = "ingest/lease.json"

_PARTS = "ingest/parts"

_ATTEMPTS = 5
_LONGEST_TTL = 3600.0
_END_OF_TIME = 1e11  # seconds that a date can still show


@dataclass(frozen=True)
class _Holder:
    """Content of the lease: who writes, and its last sign of life (seconds of its clock)."""

    token: str
    host: str
    pid: int
    process: str
    since: float
    renewed: float
    ttl: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes) -> "_Holder | None":
        """Read a lease; None when it is damaged."""
        try:
            found = json.loads(content)
            holder = cls(
                token=str(found["token"]),
                host=str(found["host"]),
                pid=int(found["pid"]),
                process=str(found["process"]),
                since=float(found["since"]),
                renewed=float(found["renewed"]),
                ttl=float(found["ttl"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        times_fit = math.isfinite(holder.renewed) and 0 <= holder.since < _END_OF_TIME
        return holder if times_fit and 0 < holder.ttl <= _LONGEST_TTL else None


class Lease:
    """The right to write a store, while it is held (:func:`hold_lease`)."""

    def __init__(self, location: Location, key: str, holder: _Holder, started: float) -> None:
        self._location = location
        self._key = key
        self._holder = holder
        self._confirmed = started
        self._lost = False
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        """Key of the lease in the store."""
        return self._key

    @property
    def token(self) -> str:
        """What tells this holder from every other, for :func:`check_token`."""
        return self._holder.token

    def check(self) -> None:
        """Make sure that the store is still ours to write.

        Raises
        ------
        StoreError
            When another ingest took over, or could have by now.
        """
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self._location}: the lease belongs to the process that took it, not to one "
                "that was forked from it. Write from there."
            )
        if self._lost or _now() - self._confirmed > self._holder.ttl:
            raise StoreError(
                f"{self._location}: the lease of this ingest is lost: it could not be renewed "
                f"for {self._holder.ttl:.0f} s, or another ingest took over. Nothing more is "
                "written. See that no other ingest runs, then run the same command again: it "
                "goes on.",
                code="interrupted",
            )

    def release(self) -> None:
        """Give the store back. The lease of another holder is left alone."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        self._thread.join(self._holder.ttl / 4)
        if self._thread.is_alive() or self._lost:
            return
        self._lost = True
        try:
            # Just confirmed: nobody can take it over before it is deleted.
            is_fresh = _now() - self._confirmed < self._holder.ttl / 2
            if (is_fresh or self._renew()) and self._is_ours():
                self._location.delete(self._key)
        except StoreError as error:
            logger.warning(
                "%s: the lease could not be given back; other machines wait %.0f s. %s",
                self._location,
                self._holder.ttl,
                error,
            )

    def _is_ours(self) -> bool:
        return _is_ours(self._location, self._key, self._holder.token)

    def _keep(self) -> None:
        """Renew until told to stop, or until it is too late."""
        pause = self._holder.ttl / 4
        while not self._stop.wait(pause) and not self._lost:
            try:
                self._renew()
                pause = self._holder.ttl / 4
            except StoreError as error:
                logger.warning(
                    "%s: the lease was not renewed, trying again. %s", self._location, error
                )
                pause = self._holder.ttl / 20
                self._lost = _now() - self._confirmed > self._holder.ttl

    def _renew(self) -> bool:
        """Write a new sign of life; False when the lease is another's."""
        with self._changing:
            started = _now()
            renewed = replace(self._holder, renewed=time.time())
            done = self._location.replace_if(self._key, renewed.encode(), self._holder.encode())
            if not done:
                # Refused, or done and the answer lost.
                content = self._location.get(self._key)
                found = _Holder.decode(content) if content is not None else None
                if found is None or found.token != self._holder.token:
                    self._lost = True
                    return False
                if found != renewed:
                    self._holder = found
                    raise StoreError(f"{self._location}: {self._key} could not be replaced.")
            self._holder = renewed
            self._confirmed = started
            return True


@contextmanager
def hold_lease(location: Location, *, ttl: float = 60.0) -> Iterator[Lease]:
    """Hold the lease of a store until the end of the block.

    Parameters
    ----------
    location
        Store to write.
    ttl
        Seconds without a sign of life after which another machine may take over, at most an
        hour. On the same machine the lease of a dead process is taken over at once.

    Yields
    ------
    Lease
        To be checked before each write.

    Raises
    ------
    StoreBusyError
        When another ingest writes the store, or parts of one do.
    ConfigError
        When `ttl` is out of range.
    """
    with _hold(location, LEASE_KEY, ttl) as lease:
        parts = location.list(_PARTS)
        if parts:
            with ThreadPoolExecutor(min(len(parts), 64)) as pool:
                list(pool.map(lambda key: _remove_abandoned(location, key, ttl), parts))
        yield lease


@contextmanager
def hold_part_lease(
    location: Location, part: int, n_parts: int, *, ttl: float = 60.0
) -> Iterator[Lease]:
    """Hold the lease of one part of an ingest until the end of the block.

    Parameters
    ----------
    location
        Store to write.
    part
        Number of the part, from 1.
    n_parts
        Number of parts; others of the same ingest may be held at the same time.
    ttl
        As for :func:`hold_lease`.

    Yields
    ------
    Lease
        To be checked before each write.

    Raises
    ------
    StoreBusyError
        When this part is held already, or an ingest that is no part, or one in another number of
        parts. Also once where an ingest that is no part was killed: its lease is gone by then,
        and what the caller read before may have changed.
    ConfigError
        When `ttl` is out of range.
    """
    with _hold(location, f"{_PARTS}/{part}-of-{n_parts}.json", ttl) as lease:
        others = [key for key in location.list(_PARTS) if not key.endswith(f"-of-{n_parts}.json")]
        for key in others:
            content = location.get(key)
            if content is not None:
                _check_abandoned(location, key, content, ttl)
        if location.get(LEASE_KEY) is not None:
            with _hold(location, LEASE_KEY, ttl):  # of a dead ingest: taken over and given back
                pass
            raise StoreBusyError(
                f"{location}: an ingest was killed here, and may have changed the plan. Run the "
                "same command again: it goes on."
            )
        yield lease


@contextmanager
def _hold(location: Location, key: str, ttl: float) -> Iterator[Lease]:
    """Hold one lease, whatever others there are."""
    if not 0 < ttl <= _LONGEST_TTL:
        raise ConfigError(f"The ttl of a lease is 0 to {_LONGEST_TTL:.0f} s, got {ttl}.")
    lease = _acquire(location, key, ttl)
    try:
        yield lease
    finally:
        lease.release()


def check_token(location: Location, token: str, key: str = LEASE_KEY) -> None:
    """Make sure that a lease is still held, from a process that works for its holder.

    Parameters
    ----------
    location
        Store that is written.
    token
        Token of the lease.
    key
        Key of the lease.

    Raises
    ------
    StoreError
        When another ingest has it by now, or nobody.
    """
    if not _is_ours(location, key, token):
        raise StoreError(
            f"{location}: the lease of this ingest is lost: another one took over, while this one "
            "stood still. Nothing more is written. See that no other ingest runs, then run the "
            "same command again: it goes on.",
            code="interrupted",
        )


def _acquire(location: Location, key: str, ttl: float) -> Lease:
    token = secrets.token_hex(16)
    for _ in range(_ATTEMPTS):
        started = _now()
        mine = _new_holder(token, ttl)
        if location.put_new(key, mine.encode()) or _is_ours(location, key, token):
            return Lease(location, key, mine, started)
        content = location.get(key)
        if content is None:  # given back meanwhile
            continue
        _check_abandoned(location, key, content, ttl)
        started = _now()
        mine = _new_holder(token, ttl)
        if location.replace_if(key, mine.encode(), content) or _is_ours(location, key, token):
            logger.info("%s: goes on where an ingest stopped that left its lease", location)
            return Lease(location, key, mine, started)
    raise StoreBusyError(
        f"{location}: several ingests start at once and others are faster. Wait for them to end."
    )


def _remove_abandoned(location: Location, key: str, ttl: float) -> None:
    """Remove the lease of a part whose holder is dead."""
    content = location.get(key)
    if content is not None:
        _check_abandoned(location, key, content, ttl)
        location.delete(key)


def _new_holder(token: str, ttl: float) -> _Holder:
    now = time.time()
    pid = os.getpid()
    return _Holder(token, _host(), pid, _process(pid) or "", since=now, renewed=now, ttl=ttl)


def _is_ours(location: Location, key: str, token: str) -> bool:
    """Whether the lease has our token: a write that seemed to fail may have been done."""
    content = location.get(key)
    holder = _Holder.decode(content) if content is not None else None
    return holder is not None and holder.token == token


def _check_abandoned(location: Location, key: str, content: bytes, ttl: float) -> None:
    """Raise unless the holder of a lease is dead, or gave no sign of life for long enough.

    Its clock only spares us to watch a lease that is fresh. What looks old is watched for
    twice the time in which a live holder renews it.
    """
    holder = _Holder.decode(content)
    if holder is not None:
        ttl = holder.ttl
        if holder.host == _host() and not _is_alive(holder):
            return
        if abs(time.time() - holder.renewed) <= ttl:
            raise _refusal(location, holder)
    pause = max(1.0, ttl / 2)
    logger.info("%s: watching for %.0f s whether another ingest still writes", location, pause)
    time.sleep(pause)
    found = location.get(key)
    if found is None or found == content:
        return
    holder = _Holder.decode(found)
    if holder is None:
        raise StoreBusyError(
            f"{location}: another ingest is writing this store. Wait for it to end."
        )
    raise _refusal(location, holder)


def _refusal(location: Location, holder: _Holder) -> StoreBusyError:
    since = datetime.fromtimestamp(holder.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    age = max(0.0, time.time() - holder.renewed)
    here = holder.host == _host()
    who = f"process {holder.pid} of this machine" if here else "a process of another machine"
    way_out = (
        "Wait for it to end, or end it and run the same command again: it goes on."
        if here
        else "Wait for it to end. If it was killed, run the same command again in "
        f"{math.ceil(max(1.0, holder.ttl - age))} s: it goes on."
    )
    return StoreBusyError(
        f"{location}: another ingest is writing this store since {since} ({who}), last sign of "
        f"life {age:.0f} s ago. {way_out}"
    )


def _is_alive(holder: _Holder) -> bool:
    """Whether the process that holds a lease of this machine still runs."""
    process = _process(holder.pid)
    return process is not None and (not process or not holder.process or process == holder.process)


def _process(pid: int) -> str | None:
    """Start of a process in clock ticks since boot; empty when unknown, None when it is dead."""
    if pid <= 0:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        state, *numbers = fields.rsplit(")", 1)[1].split()
    except (OSError, IndexError, ValueError):
        return _answers(pid)
    return None if state in "ZX" else numbers[18]


def _answers(pid: int) -> str | None:
    """For a process that /proc does not show: empty when it takes signals, None when it is dead."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return ""


def _host() -> str:
    """Name of this boot of this machine, and of its process numbers, that tells nothing else."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = str(uuid.getnode())
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()}|{boot}|{processes}".encode()).hexdigest()[:32]


def _now() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
