"""Locations. What takes only the fixture `location` also runs against S3 (tests/distributed)."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

from scalebrain.errors import ConfigError, StoreError
from scalebrain.io import backends as module
from scalebrain.io.location import Location

T = TypeVar("T")

N_THREADS = 32


@pytest.fixture(params=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.of(tmp_path / "a b%20c" / "store")
    return Location.of(f"memory://{uuid.uuid4().hex}/store")


def at_once(work: Callable[[int], T]) -> list[T]:
    """Results of many threads that start in the same instant."""
    barrier = threading.Barrier(N_THREADS)

    def run(number: int) -> T:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(run, range(N_THREADS)))


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_get__gives_what_was_put(location: Location) -> None:
    contents = {"a.json": b"{}", "empty": b"", "deep/er/x y%20é": bytes(range(256)) * 40_000}
    for key, content in contents.items():
        location.put(key, content)
    assert {key: location.get(key) for key in contents} == contents
    location.put("a.json", b"again")
    assert location.get("a.json") == b"again"


def test_get__gives_none_for_what_is_absent(location: Location) -> None:
    assert location.get("a") is None
    location.put("folder/a", b"1")
    assert [location.get(key) for key in ("b", "folder", "folder/a/b")] == [None] * 3


def test_list__takes_whole_parts_and_sorts(location: Location) -> None:
    assert location.list() == []
    for key in ("r/b", "r/a/c", "ra", "r.json", "r/a.b"):
        location.put(key, b"1")
    assert location.list() == ["r.json", "r/a.b", "r/a/c", "r/b", "ra"]
    assert location.list("r") == location.list("r/") == ["r/a.b", "r/a/c", "r/b"]
    assert location.list("r/a") == ["r/a/c"]
    assert location.list("ra") == location.list("none") == []


def test_list__hides_temporary_files_of_zarr(location: Location) -> None:
    location.put(f"c/0.{uuid.uuid4().hex}.partial", b"half")
    assert location.list() == []
    assert not location.exists()


def test_delete__removes_one_key(location: Location) -> None:
    location.put("a/b", b"1")
    location.put("a/c", b"1")
    for key in ("a/b", "a/b", "a", "none/x"):
        location.delete(key)
    assert location.list() == ["a/c"]


def test_delete_prefix__removes_whole_parts(location: Location) -> None:
    for key in ("r/a", "r/b/c", "ra", "r.json"):
        location.put(key, b"1")
    location.delete_prefix("none")
    location.delete_prefix("r")
    assert location.list() == ["r.json", "ra"]
    location.delete_prefix("")
    assert location.list() == []


def test_exists__looks_for_any_key(location: Location) -> None:
    assert not location.exists()
    location.put("deep/er/a", b"")
    assert location.exists()
    assert not location.child("other").exists()
    location.delete("deep/er/a")
    assert not location.exists()


def test_child__sees_the_same_keys(location: Location) -> None:
    location.child("results/demo").put("a", b"1")
    assert location.get("results/demo/a") == b"1"
    assert location.child("results/demo").name == "demo"
    assert location.child("results/demo").list() == ["a"]


def test_put_new__leaves_what_exists(location: Location) -> None:
    assert location.put_new("deep/a", b"1")
    assert not location.put_new("deep/a", b"2")
    assert location.get("deep/a") == b"1"


def test_put_new__one_of_many_threads_succeeds(location: Location) -> None:
    done = at_once(lambda number: location.put_new("a", str(number).encode()))
    assert done.count(True) == 1
    assert location.get("a") == str(done.index(True)).encode()
    assert location.list() == ["a"]


def test_replace_if__compares_content(location: Location) -> None:
    assert not location.replace_if("a", b"2", b"1")
    assert location.get("a") is None
    location.put("a", b"1")
    assert not location.replace_if("a", b"2", b"")
    assert location.replace_if("a", b"2", b"1")
    assert not location.replace_if("a", b"3", b"1")
    assert location.get("a") == b"2"


def test_replace_if__one_of_many_threads_succeeds(location: Location) -> None:
    location.put("a", b"old")
    done = at_once(lambda number: location.replace_if("a", str(number).encode(), b"old"))
    assert done.count(True) == 1
    assert location.get("a") == str(done.index(True)).encode()
    assert location.list() == ["a"]


def test_replace_if__loses_no_increment(location: Location) -> None:
    location.put("n", b"0")

    def increment(_: int) -> None:
        while True:
            found = location.get("n")
            assert found is not None
            if location.replace_if("n", str(int(found) + 1).encode(), found):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(12)))
    assert location.get("n") == b"12"


def test_zarr_store__round_trip_with_zarr_and_xarray(location: Location) -> None:
    values = np.random.default_rng(0).normal(size=(6, 50)).astype("f4")
    group = zarr.open_group(location.zarr_store(), mode="w", zarr_format=3)
    array = group.create_array(
        "image",
        shape=values.shape,
        dtype="f4",
        chunks=(1, 50),
        shards=(2, 50),
        dimension_names=("subject", "voxel"),
    )
    array[:] = values
    reopened = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    np.testing.assert_array_equal(reopened["image"][:], values)
    with xr.open_zarr(location.zarr_store(read_only=True), consolidated=False) as ds:
        np.testing.assert_array_equal(ds["image"].values, values)
    assert location.list("image/c") == [f"image/c/{row}/0" for row in range(3)]


def test_zarr_store__takes_what_xarray_writes(location: Location) -> None:
    ds = xr.Dataset({"age": ("subject", [61.5, 70.0])}, {"subject": [0, 1]})
    ds.to_zarr(location.zarr_store(), mode="w", consolidated=False, zarr_format=3)
    with xr.open_zarr(location.zarr_store(read_only=True), consolidated=False) as found:
        xr.testing.assert_identical(found.load(), ds)


def test_zarr_store__read_only_refuses_writes(location: Location) -> None:
    zarr.open_group(location.zarr_store(), mode="w", zarr_format=3)
    before = location.list()
    with pytest.raises(ValueError, match="read-only"):
        zarr.create_array(location.zarr_store(read_only=True), name="a", shape=1, dtype="f4")
    assert location.list() == before


def test_location__pickles_as_its_url(location: Location) -> None:
    location.put("a", b"1")
    content = pickle.dumps(location)
    assert len(content) < 250
    assert pickle.loads(content) == location
    assert pickle.loads(content).get("a") == b"1"
    assert len({location, pickle.loads(content)}) == 1


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".", "./a", ".hidden", "a/.b"),
        *("a\0b", "a\nb", "a\\b"),
    ],
)
def test_put__refuses_unsafe_keys(tmp_path: Path, key: str) -> None:
    location = Location.of(tmp_path / "store")
    for work in (location.get, location.delete, location.child):
        with pytest.raises(StoreError, match="no key of a store") as failure:
            work(key)
        assert failure.value.code == "leaves-tree"
    with pytest.raises(StoreError, match="no key of a store"):
        location.put(key, b"")
    with pytest.raises(StoreError, match="no key of a store"):
        location.list(f"../{key}")
    assert os.listdir(tmp_path) == []


def test_put__refuses_links_out_of_the_store(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"kept")
    location = Location.of(tmp_path / "store")
    location.put("b", b"1")
    (tmp_path / "store" / "link").symlink_to(outside)
    for work in (
        lambda: location.get("link/a"),
        lambda: location.put("link/a", b""),
        lambda: location.delete("link/a"),
        lambda: location.delete_prefix("link"),
    ):
        with pytest.raises(StoreError, match="symbolic link"):
            work()
    assert location.list() == ["b"]
    location.delete_prefix("")
    assert (outside / "a").read_bytes() == b"kept"


def test_location__whose_root_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    location = Location.of(tmp_path / "store")
    location.put("a/b", b"1")
    assert (tmp_path / "disk/a/b").read_bytes() == b"1"
    location.delete_prefix("")
    assert not location.exists()
    location.put("c", b"1")
    assert location.list() == ["c"]


def test_of__makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = Location(str(tmp_path / "store"))
    for url in ("store", "./store/", "x/../store", Path("store"), f"file://{tmp_path}/store"):
        assert Location.of(url) == expected
    assert expected.is_local
    assert (str(expected), expected.name) == (str(tmp_path / "store"), "store")
    assert Location.of(Path("http:/odd")).is_local


def test_of__keeps_urls() -> None:
    location = Location.of("S3://bucket/some/prefix/")
    assert location == Location("s3://bucket/some/prefix")
    assert not location.is_local
    assert location.name == "prefix"
    assert Location.of("s3://bucket").name == "bucket"
    for url in ("abfss://container@account.dfs.core.windows.net/p", "sftp://me@host:22/p"):
        assert Location.of(url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SECRET@bucket/prefix",
        "s3://KEY:SEC/RET@bucket/prefix",
        "s3://SECRET@bucket",
        "gs://KEY:SECRET@bucket",
        "az://container/p?sig=SECRET",
        "https://host/p?X-Amz-Signature=SECRET",
        "https://host/p#SECRET",
        "ftp://user:SECRET@host/p",
        "ftp://user:SEC/RET@host/p",
        "simplecache::s3://KEY:SECRET@bucket",
        "s3:/KEY:SECRET@bucket",
        "s3:KEY:SECRET@bucket",
        "s3:///SECRET",
        "",
    ],
)
def test_of__refuses_credentials_and_does_not_show_them(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError) as failure:
        Location.of(url)
    shown = f"{failure.value!r} {failure.value.__context__!r} {caplog.text}"
    assert not any(part in shown for part in ("KEY", "SEC/RET", "SECRET@", "=SECRET", "#SECRET"))


@pytest.mark.parametrize("url", ["s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/./b"])
def test_of__refuses_parts_that_lead_elsewhere(url: str) -> None:
    with pytest.raises(ConfigError, match="empty part"):
        Location.of(url)


def test_location__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "fsspec.core"):
        monkeypatch.setitem(sys.modules, name, None)
    module.backend.cache_clear()
    for url in (f"s3://bucket/{uuid.uuid4().hex}", f"memory://{uuid.uuid4().hex}"):
        with pytest.raises(ConfigError, match=r"pip install 'scalebrain\[cloud\]'"):
            Location.of(url).get("a")


def test_location__refuses_unknown_protocols() -> None:
    with pytest.raises(ConfigError, match="nothing installed opens foo://"):
        Location.of("foo://bucket/prefix").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_put__disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    location = Location.of(tmp_path)
    location.put("a", b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        for write in (
            lambda: location.put("a", b"new"),
            lambda: location.replace_if("a", b"new", b"old"),
        ):
            with pytest.raises(StoreError, match=r"no space left.*it goes on") as failure:
                write()
            assert failure.value.code == "interrupted"
    assert os.listdir(tmp_path) == ["a"]
    assert location.get("a") == b"old"


def test_put__permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match="permission denied") as failure:
        Location.of(tmp_path).put("a", b"new")
    assert failure.value.code == "unreadable"
    assert os.listdir(tmp_path) == []


def test_put__below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    location = Location.of(tmp_path / "file")
    assert not location.exists()
    with pytest.raises(StoreError, match="cannot be read or written"):
        location.put("a", b"1")
    assert (tmp_path / "file").read_bytes() == b"1"


def test_put__killed_leaves_nothing_that_is_seen(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from scalebrain.io.location import Location
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Location.of(sys.argv[1]).put("a", b"1")
    """
    with run_python(code, tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    location = Location.of(tmp_path)
    assert location.list() == []
    assert not location.exists()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".")
    location.delete_prefix("")
    assert not tmp_path.exists()


def test_put__reader_never_sees_half(tmp_path: Path) -> None:
    location = Location.of(tmp_path)
    contents = [bytes([number]) * 300_000 for number in range(2)]
    location.put("a", contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                location.put("a", content)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        seen = [location.get("a") for _ in range(200)]
        stop.set()
        writer.result()
    assert set(seen) <= set(contents)


def test_put_new__one_of_several_processes_succeeds(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from scalebrain.io.location import Location
        location = Location.of(sys.argv[1])
        location.put(f"ready/{sys.argv[2]}", b"")
        while len(location.list("ready")) < 3:
            time.sleep(0.001)
        won = sum(location.put_new(f"keys/{n}", sys.argv[2].encode()) for n in range(50))
        for _ in range(50):
            while True:
                found = location.get("n")
                if location.replace_if("n", str(int(found) + 1).encode(), found):
                    break
        print(won)
    """
    location = Location.of(tmp_path)
    location.put("n", b"0")
    processes = [run_python(code, tmp_path, number) for number in range(3)]
    won = [int(process.communicate()[0]) for process in processes]
    owners = [location.get(key) for key in location.list("keys")]
    assert sum(won) == len(owners) == 50
    assert won == [owners.count(str(number).encode()) for number in range(3)]
    assert location.get("n") == b"150"


def test_put_new__without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    location = Location.of(tmp_path)
    done = at_once(lambda number: location.put_new("a", str(number).encode()))
    assert done.count(True) == 1
    assert location.get("a") == str(done.index(True)).encode()
    assert os.listdir(tmp_path) == ["a"]


def test_replace_if__without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module.fcntl, "flock", fail)
    location = Location.of(tmp_path)
    location.put("a", b"1")
    assert location.replace_if("a", b"2", b"1")
    assert "no locks" in caplog.text


def test_put_new__without_exclusive_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    location = Location.of(f"memory://{uuid.uuid4().hex}")
    memory = fsspec.filesystem("memory")
    original = type(memory).pipe_file

    def pipe_file(self: object, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode != "overwrite":
            raise NotImplementedError
        original(self, path, value)

    monkeypatch.setattr(type(memory), "pipe_file", pipe_file)
    done = at_once(lambda number: location.put_new("a", str(number).encode()))
    assert done.count(True) == 1
    assert not location.put_new("a", b"")


class FailingError(Exception):
    """An exception whose text holds what nobody may see."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: AWS4-HMAC-SHA256 HUSH", "the storage failed"),
        ("<Code>NoSuchBucket</Code> HUSH", "no such bucket"),
        ("status code: 403 Forbidden HUSH", "access denied"),
        ("status code: 301 Moved HUSH", "another region"),
        ("status code: 503 HUSH", "went on failing"),
        ("GET http://169.254.169.254/latest HUSH", "no credentials"),
        ("GET https://h/SlowDown?HUSH HTTP error: error sending request", "be reached"),
        ("GET https://h/connectome/Forbidden in 1s - what HUSH", "the storage failed"),
    ],
)
def test_get__never_shows_the_text_of_a_library(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    def fail(*_: object) -> None:
        raise FailingError(text)

    location = Location.of(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(StoreError, match=expected) as failure:
        location.get("a")
    assert "HUSH" not in str(failure.value)
    assert failure.value.__context__ is failure.value.__cause__ is None
