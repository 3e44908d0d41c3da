"""Leases. What takes only the fixture `location` also runs against S3 (tests/distributed)."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scalebrain.errors import ConfigError, StoreBusyError, StoreError
from scalebrain.io import lease as module
from scalebrain.io.lease import LEASE_KEY, check_token, hold_lease, hold_part_lease
from scalebrain.io.location import Location

HOLD = """if True:
    import sys, time
    from scalebrain.io.lease import hold_lease
    from scalebrain.io.location import Location
    with hold_lease(Location.of(sys.argv[1]), ttl=float(sys.argv[2])):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.of(tmp_path / "store")
    return Location.of(f"memory://{uuid.uuid4().hex}/store")


def read(location: Location, key: str = LEASE_KEY) -> dict[str, Any]:
    content = location.get(key)
    assert content is not None
    return json.loads(content)


def write(location: Location, **changes: object) -> bytes:
    """Lease of a holder on another machine, changed as asked."""
    now = time.time()
    holder = {
        "token": "theirs",
        "host": "another",
        "pid": 1,
        "process": "1",
        "since": now - 500,
        "renewed": now,
        "ttl": 2.0,
    }
    content = json.dumps(holder | changes).encode()
    location.put(LEASE_KEY, content)
    return content


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextmanager
def another_ingest(location: Location, ttl: float) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(location), str(ttl)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_hold_lease__is_there_while_held_and_gone_after(location: Location) -> None:
    with hold_lease(location) as lease:
        lease.check()
        assert read(location)["pid"] == os.getpid()
    assert location.list() == []
    with pytest.raises(StoreError, match="is lost"):
        lease.check()


def test_hold_lease__tells_nothing_about_the_machine(location: Location) -> None:
    with hold_lease(location):
        content = location.get(LEASE_KEY)
    assert content is not None
    assert os.uname().nodename.encode() not in content


def test_hold_lease__is_given_back_after_an_error(location: Location) -> None:
    with pytest.raises(KeyError), hold_lease(location):
        raise KeyError
    assert location.list() == []


def test_hold_lease__is_renewed(location: Location) -> None:
    with hold_lease(location, ttl=0.5) as lease:
        first = read(location)
        wait_until(lambda: read(location)["renewed"] > first["renewed"] + 0.6)
        lease.check()
        assert read(location) | {"renewed": 0} == first | {"renewed": 0}


def test_hold_lease__refuses_a_second_ingest_of_this_process(location: Location) -> None:
    expected = f"another ingest is writing this store since .*process {os.getpid()} of this machine"
    with hold_lease(location) as lease:
        for _ in range(2):
            with pytest.raises(StoreError, match=expected), hold_lease(location):
                pass
        lease.check()


def test_hold_lease__one_of_many_threads_holds_it(location: Location) -> None:
    barrier = threading.Barrier(8)
    inside: list[int] = []

    def ingest(number: int) -> bool:
        barrier.wait()
        try:
            with hold_lease(location):
                inside.append(number)
                assert inside == [number]
                barrier.wait(20)
        except StoreError:
            barrier.wait(20)
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(ingest, range(8)))
    assert done.count(True) == 1


def test_hold_lease__refuses_a_fresh_lease_of_another_machine(location: Location) -> None:
    content = write(location, renewed=time.time() - 12, ttl=60.0)
    started = time.monotonic()
    with pytest.raises(StoreError) as failure, hold_lease(location):
        pass
    assert time.monotonic() - started < 5
    assert re.search(r"last sign of life 1[2-6] s ago", str(failure.value))
    assert re.search(r"run the same command again in 4[4-8] s", str(failure.value))
    assert location.get(LEASE_KEY) == content


def test_hold_lease__takes_over_what_expired(location: Location) -> None:
    write(location, renewed=time.time() - 3)
    with hold_lease(location) as lease:
        assert read(location)["token"] != "theirs"
        lease.check()
    assert location.list() == []


def test_hold_lease__watches_a_holder_whose_clock_is_late(location: Location) -> None:
    stop = threading.Event()

    def renew() -> None:
        late = time.time() - 1000
        while not stop.wait(0.2):
            write(location, renewed=late + time.monotonic() % 100)

    write(location, renewed=time.time() - 1000)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(renew)
        try:
            with pytest.raises(StoreError, match="another machine"), hold_lease(location):
                pass
        finally:
            stop.set()
        holder.result()
    assert read(location)["token"] == "theirs"


@pytest.mark.parametrize(
    "changes",
    [{"ttl": -1}, {"renewed": "now"}, {"pid": None}, {"since": 1e300}, {"renewed": float("nan")}],
)
def test_hold_lease__takes_over_a_damaged_lease(
    location: Location, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(module.time, "sleep", paused.append)
    write(location, **changes)
    with hold_lease(location, ttl=4):
        assert read(location)["pid"] == os.getpid()
    assert paused == [2.0]


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 10_000, b"null"])
def test_hold_lease__takes_over_what_is_no_lease(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    location = Location.of(tmp_path)
    location.put(LEASE_KEY, content)
    with hold_lease(location, ttl=4) as lease:
        lease.check()


def test_check__finds_that_another_took_over(location: Location) -> None:
    with hold_lease(location, ttl=0.8) as lease:
        content = write(location)
        wait_until(lambda: lease._lost)
        with pytest.raises(StoreError, match="is lost") as failure:
            lease.check()
        assert failure.value.code == "interrupted"
        time.sleep(0.3)
        assert location.get(LEASE_KEY) == content
    assert location.get(LEASE_KEY) == content


def test_check__finds_that_the_lease_was_deleted(location: Location) -> None:
    with hold_lease(location, ttl=0.4) as lease:
        location.delete(LEASE_KEY)
        time.sleep(0.4)
        with pytest.raises(StoreError, match="is lost"):
            lease.check()
    assert location.list() == []


def test_release__leaves_the_lease_of_another(location: Location) -> None:
    with hold_lease(location):
        content = write(location)
    assert location.get(LEASE_KEY) == content


def test_hold_lease__survives_a_storage_that_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = Location.of(tmp_path)
    with hold_lease(location, ttl=2) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_disk)
            wait_until(lambda: "was not renewed" in caplog.text)
            lease.check()
        first = read(location)["renewed"]
        wait_until(lambda: read(location)["renewed"] > first)
        lease.check()


def test_check__finds_that_the_lease_was_not_renewed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location = Location.of(tmp_path)
    with hold_lease(location, ttl=0.4) as lease:
        monkeypatch.setattr(os, "replace", full_disk)
        time.sleep(0.6)
        with pytest.raises(StoreError, match="could not be renewed for"):
            lease.check()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_hold_lease__knows_its_own_write_whose_answer_got_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location.of(tmp_path)
    put_new, replace_if = Location.put_new, Location.replace_if

    def lose_new(self: Location, key: str, content: bytes) -> bool:
        put_new(self, key, content)
        return False

    def lose_replaced(self: Location, key: str, content: bytes, expected: bytes) -> bool:
        replace_if(self, key, content, expected)
        return False

    monkeypatch.setattr(Location, "put_new", lose_new)
    monkeypatch.setattr(Location, "replace_if", lose_replaced)
    with hold_lease(location, ttl=0.4) as lease:
        first = read(location)
        time.sleep(0.6)
        lease.check()
        assert read(location)["renewed"] > first["renewed"]
    assert not location.exists()
    write(location, renewed=0)
    with hold_lease(location, ttl=0.4) as lease:
        lease.check()
    assert not location.exists()


def test_hold_lease__refuses_a_live_process_then_takes_over_when_it_is_killed(
    tmp_path: Path,
) -> None:
    location = Location.of(tmp_path)
    with another_ingest(location, 60) as process:
        expected = rf"process {process.pid} of this machine.*Wait for it to end"
        with pytest.raises(StoreError, match=expected), hold_lease(location):
            pass
        process.send_signal(signal.SIGKILL)
        # Not waited for yet: it is a zombie, which is dead too.
        wait_until(lambda: module._process(process.pid) is None)
        started = time.monotonic()
        with hold_lease(location) as lease:
            lease.check()
        assert time.monotonic() - started < 1
        process.wait()
    assert not location.exists()


def test_hold_lease__takes_over_from_a_process_that_stands_still(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    with another_ingest(location, 1) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.1)
        with hold_lease(location, ttl=1) as lease:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()
            lease.check()


def test_hold_lease__takes_over_from_a_number_that_is_another_process_now(
    tmp_path: Path,
) -> None:
    location = Location.of(tmp_path)
    with hold_lease(location):
        content = read(location)
    write(location, **content | {"process": "1", "token": "theirs", "renewed": time.time()})
    with hold_lease(location) as lease:
        lease.check()


def test_hold_lease__fork_neither_writes_nor_gives_back(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from scalebrain.errors import StoreError
        from scalebrain.io.lease import hold_lease
        from scalebrain.io.location import Location
        location = Location.of(sys.argv[1])
        child = 0
        with hold_lease(location) as lease:
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                lease.check()
                assert location.exists()
            else:
                try:
                    lease.check()
                except StoreError as error:
                    assert "forked" in str(error)
                else:
                    os._exit(1)
        if not child:
            os._exit(0 if location.exists() else 2)
        assert not location.exists()
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize("ttl", [0, -1, 3601, float("nan")])
def test_hold_lease__refuses_an_impossible_ttl(tmp_path: Path, ttl: float) -> None:
    with pytest.raises(ConfigError, match="ttl"), hold_lease(Location.of(tmp_path), ttl=ttl):
        pass


def test_check_token__tells_whose_the_lease_is(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "store")
    with hold_lease(location) as lease:
        check_token(location, lease.token)
        with pytest.raises(StoreError, match="another one took over"):
            check_token(location, "another")
    with pytest.raises(StoreError, match="Nothing more is written"):
        check_token(location, lease.token)


def test_hold_part_lease__parts_are_held_beside_each_other(location: Location) -> None:
    with hold_part_lease(location, 1, 3) as first, hold_part_lease(location, 3, 3) as third:
        check_token(location, first.token, first.key)
        check_token(location, third.token, third.key)
        for lease in (first, third):
            lease.check()
        with pytest.raises(StoreError, match="Nothing more is written"):
            check_token(location, first.token, third.key)
    assert location.list() == []


def test_hold_part_lease__same_part_and_other_counts_are_refused(location: Location) -> None:
    with hold_part_lease(location, 1, 3):
        for part in ((1, 3), (1, 4)):
            with pytest.raises(StoreBusyError), hold_part_lease(location, *part):
                pass
        assert location.list() == ["ingest/parts/1-of-3.json"]


def test_hold_part_lease__excludes_the_lease_of_the_store_both_ways(location: Location) -> None:
    with hold_part_lease(location, 1, 2) as lease:
        with pytest.raises(StoreBusyError, match="another ingest"), hold_lease(location):
            pass
        lease.check()
        assert location.list() == [lease.key]
    with hold_lease(location):
        busy = pytest.raises(StoreBusyError, match="another ingest")
        with busy, hold_part_lease(location, 1, 2):
            pass
        assert location.list() == [LEASE_KEY]


def test_hold_lease__many_start_at_once_and_no_part_beside_the_store(location: Location) -> None:
    barrier = threading.Barrier(8)
    inside: set[int] = set()
    seen: list[set[int]] = []

    def ingest(number: int) -> None:
        held = hold_lease(location) if number < 2 else hold_part_lease(location, number, 8)
        barrier.wait()
        with contextlib.suppress(StoreBusyError), held:
            inside.add(number)
            seen.append(set(inside))
            time.sleep(0.2)
            inside.discard(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ingest, range(8)))
    assert all(len(one) == 1 or not one & {0, 1} for one in seen)
    assert location.list() == []


def test_hold_lease__removes_what_dead_parts_left(location: Location) -> None:
    with hold_part_lease(location, 1, 2) as lease:
        content = read(location, lease.key)
    for part in (1, 2):
        dead = {"token": "theirs", "process": "1"}
        location.put(f"ingest/parts/{part}-of-2.json", json.dumps(content | dead).encode())
    with hold_lease(location):
        assert location.list() == [LEASE_KEY]


def test_hold_part_lease__removes_once_what_a_dead_ingest_left(location: Location) -> None:
    with hold_lease(location):
        content = read(location)
    write(location, **content | {"process": "1", "token": "theirs", "renewed": time.time()})
    with pytest.raises(StoreBusyError, match="was killed here"), hold_part_lease(location, 1, 2):
        pass
    assert location.list() == []
    with hold_part_lease(location, 1, 2) as lease:
        lease.check()
        with pytest.raises(StoreBusyError, match="another ingest"), hold_lease(location):
            pass


def test_hold_part_lease__where_many_find_a_dead_ingest_none_is_beside_the_store(
    location: Location,
) -> None:
    with hold_lease(location):
        content = read(location)
    write(location, **content | {"process": "1", "token": "theirs", "renewed": time.time()})
    barrier = threading.Barrier(8)
    inside: set[int] = set()
    seen: list[set[int]] = []

    def ingest(number: int) -> None:
        barrier.wait()
        for _ in range(50):
            held = hold_lease(location) if number < 2 else hold_part_lease(location, number, 8)
            with contextlib.suppress(StoreBusyError), held:
                inside.add(number)
                seen.append(set(inside))
                time.sleep(0.05)
                inside.discard(number)
                return
            time.sleep(0.02 * number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ingest, range(8)))
    assert any(one & set(range(2, 8)) for one in seen)
    assert all(len(one) == 1 or not one & {0, 1} for one in seen)
    assert location.list() == []
