"""Locations and leases on a real S3 server, sound and failing."""

import inspect
import os
import pickle
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from scalebrain.errors import StoreError
from scalebrain.io import backends as module
from scalebrain.io.lease import LEASE_KEY, hold_lease
from scalebrain.io.location import Location
from tests.distributed.s3 import (
    ACCESS_KEY,
    SECRET_KEY,
    Fault,
    create_bucket,
    faulty_proxy,
    moto_server,
    require,
    s3_environment,
)
from tests.io import test_lease, test_location

BUCKET = "cohort-bucket"


def checks_of(tests: object) -> list[Callable[[Location], None]]:
    """Tests that take a location and nothing else."""
    found = vars(tests).values()
    return [
        test
        for test in found
        if getattr(test, "__name__", "").startswith("test_")
        and inspect.isfunction(test)
        and list(inspect.signature(test).parameters) == ["location"]
    ]


CHECKS = checks_of(test_location) + checks_of(test_lease)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    require("moto", "obstore")
    with moto_server() as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture(autouse=True)
def _environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use(endpoint, monkeypatch)
    module.backend.cache_clear()
    yield
    module.backend.cache_clear()


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def location() -> Location:
    return Location.of(f"s3://{BUCKET}/a b%20c/{uuid.uuid4().hex}")


@contextmanager
def failing(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, rate: float, faults: tuple[Fault, ...]
) -> Iterator[None]:
    """Every request of the block goes through a proxy that fails at that rate."""
    port = int(endpoint.rsplit(":", 1)[1])
    with faulty_proxy(port, rate, seed=7, faults=faults) as proxy:
        use(f"http://127.0.0.1:{proxy}", monkeypatch)
        yield
        use(endpoint, monkeypatch)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_location__on_s3(check: Callable[[Location], None], location: Location) -> None:
    check(location)


@pytest.mark.parametrize(
    "check",
    [check for check in checks_of(test_location) if "loses_no_increment" not in check.__name__],
    ids=lambda check: check.__name__,
)
def test_location__on_s3_through_fsspec(
    check: Callable[[Location], None], location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", exc_type=ImportError)
    original = module._module
    monkeypatch.setattr(module, "_module", lambda n: None if n == "obstore" else original(n))
    assert type(module.backend(location.url, "")).__name__ == "_Files"
    check(location)


def test_faulty_proxy__fails_at_its_rate(endpoint: str) -> None:
    port = int(endpoint.rsplit(":", 1)[1])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def outcomes(proxy: int) -> list[str]:
        return [outcome(proxy) for _ in range(100)]

    def outcome(proxy: int) -> str:
        try:
            opener.open(f"http://127.0.0.1:{proxy}/moto-api/", timeout=5).close()
        except urllib.error.HTTPError as error:
            with error:
                return f"{error.code} {b'SlowDown' in error.read()}"
        except (ConnectionError, urllib.error.URLError):
            return "dropped"
        return "ok"

    with faulty_proxy(port, 0.3, seed=1) as proxy:
        first = outcomes(proxy)
    with faulty_proxy(port, 0.3, seed=1) as proxy:
        assert outcomes(proxy) == first
    assert set(first) == {"ok", "dropped", "503 True"}
    assert 15 < 100 - first.count("ok") < 45


@pytest.mark.parametrize(
    ("rate", "faults", "n_keys"),
    [(0.1, ("busy", "drop"), 200), (0.3, ("busy", "drop"), 200), (0.2, ("lose", "cut"), 50)],
    ids=["10%", "30%", "20% lost or cut answers"],
)
def test_location__absorbs_faults(
    endpoint: str,
    location: Location,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    faults: tuple[Fault, ...],
    n_keys: int,
) -> None:
    contents = {f"r/{n:03}": bytes([n]) * (n + 1) for n in range(n_keys)}
    with failing(endpoint, monkeypatch, rate, faults), ThreadPoolExecutor(16) as pool:
        list(pool.map(location.put, contents, contents.values()))
        assert list(pool.map(location.get, contents)) == list(contents.values())
        assert location.list() == list(contents)
        assert location.exists()
        list(pool.map(location.delete, list(contents)[:20]))
        location.delete_prefix("r")
        assert location.list() == []


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_zarr_store__absorbs_faults(
    endpoint: str, location: Location, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    # Rows of more than 5 MB go up in several parts.
    values = np.random.default_rng(0).normal(size=(4, 1_500_000)).astype("f4")
    with failing(endpoint, monkeypatch, rate, ("busy", "drop", "lose")):
        group = zarr.open_group(location.zarr_store(), mode="w", zarr_format=3)
        group.create_array(
            "image",
            shape=values.shape,
            dtype="f4",
            chunks=(1, values.shape[1]),
            shards=(2, values.shape[1]),
            compressors=None,
            dimension_names=("subject", "voxel"),
        )[:] = values
        with xr.open_zarr(location.zarr_store(read_only=True), consolidated=False) as ds:
            np.testing.assert_array_equal(ds["image"].values, values)
    np.testing.assert_array_equal(zarr.open_group(location.zarr_store())["image"][:], values)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_hold_lease__absorbs_faults(
    endpoint: str, location: Location, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    with failing(endpoint, monkeypatch, rate, ("busy", "drop", "lose")):
        for _ in range(3):
            with hold_lease(location, ttl=3.0) as lease:
                for _ in range(4):
                    assert lease._renew()
                    lease.check()
                with pytest.raises(StoreError, match="another ingest"), hold_lease(location):
                    pass
            assert location.get(LEASE_KEY) is None


def test_put_new__one_of_many_holds_it_under_faults(
    endpoint: str, location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(number: int) -> bool:
        mine = str(number).encode()
        return location.put_new("a", mine) or location.get("a") == mine

    with (
        failing(endpoint, monkeypatch, 0.3, ("busy", "drop", "lose")),
        ThreadPoolExecutor(16) as pool,
    ):
        done = list(pool.map(take, range(16)))
    assert done.count(True) == 1


def test_location__explains_a_missing_bucket() -> None:
    nowhere = Location.of("s3://no-such-bucket/prefix")
    for work in (
        nowhere.list,
        nowhere.exists,
        lambda: nowhere.get("a"),
        lambda: nowhere.put("a", b""),
        lambda: nowhere.delete("a"),
        lambda: nowhere.delete_prefix(""),
        lambda: nowhere.put_new("a", b""),
        lambda: nowhere.replace_if("a", b"", b""),
    ):
        with pytest.raises(StoreError, match="no such bucket"):
            work()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("deny", "access denied"),
        ("busy", "went on failing"),
        ("drop", "cannot be reached"),
        ("cut", "cannot be reached"),
    ],
)
def test_location__explains_what_does_not_go_away(
    endpoint: str,
    location: Location,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    expected: str,
) -> None:
    location.put("a", b"1" * 100)
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    monkeypatch.setattr(module, "_TRIES", 2)
    with failing(endpoint, monkeypatch, 1.0, (fault,)):
        for work in (lambda: location.get("a"), location.list):
            with pytest.raises(StoreError, match=expected) as failure:
                work()
            text = f"{failure.value} {failure.value.__context__}"
            assert ACCESS_KEY not in text
            assert SECRET_KEY not in text


def test_location__pickles_no_credentials(location: Location) -> None:
    location.put("a", b"1")
    for thing in (location, location.zarr_store(), location.zarr_store(read_only=True)):
        content = pickle.dumps(thing)
        assert len(content) < 1000
        assert ACCESS_KEY.encode() not in content
        assert SECRET_KEY.encode() not in content
        assert ACCESS_KEY not in f"{thing} {thing!r}"


def test_location__takes_credentials_of_the_shared_configuration(
    location: Location, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require("boto3")
    shared = tmp_path / "credentials"
    shared.write_text(
        f"[study]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no credentials were found"):
        location.get("a")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_PROFILE", "study")
    location.put("a", b"1")
    assert location.get("a") == b"1"
    content = pickle.dumps(location.zarr_store())
    assert ACCESS_KEY.encode() not in content
    assert SECRET_KEY.encode() not in content
    zarr.open_group(pickle.loads(content), mode="a", zarr_format=3)
    assert location.list() == ["a", "zarr.json"]
    assert ACCESS_KEY not in repr(pickle.loads(content))
