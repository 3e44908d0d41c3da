"""Ingests in parts: processes of their own, in any order, killed, and the store that they make."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain.errors import ConfigError, StoreBusyError, StoreError
from scalebrain.ingestion import parts as module
from scalebrain.io.lease import LEASE_KEY, hold_lease, hold_part_lease
from scalebrain.io.location import Location
from tests.distributed.s3 import create_bucket, moto_server, require, s3_environment
from tests.phantom import image_path, save, tree_bytes, write_tree


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 people in 3 partitions; one of them cannot be used."""
    root = write_tree(tmp_path_factory.mktemp("source") / "bids", n=34)
    path = image_path(root, "sub-030", "desc-preproc_T1w")
    path.write_bytes(path.read_bytes()[:-4000])
    return root


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of the store of a plain ingest."""
    return tree_bytes(scalebrain.ingest(source, tmp_path_factory.mktemp("whole") / "c.zarr"))


def start(source: Path, store: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "scalebrain.cli", "ingest", str(source), str(store)]
    return subprocess.Popen(
        [*command, "--scheduler", "threads", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_part__processes_that_start_at_once_make_the_store_of_a_plain_ingest(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "c.zarr"
    running = [start(source, store, "--part", f"{i}/3") for i in (1, 2, 3)]
    for process in running:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    with pytest.raises(StoreError, match="interrupted"):
        scalebrain.open_store(store)
    records = [store / "ingest" / f"00000{i}.json" for i in range(3)]
    written = [record.stat().st_mtime_ns for record in records]
    assert not Location.of(store).list("ingest/parts")
    last = start(source, store)
    last.communicate(timeout=300)
    assert last.returncode == 3  # one is rejected
    assert [record.stat().st_mtime_ns for record in records] == written
    assert tree_bytes(store) == whole


def test_part__killed_another_process_does_its_share(
    source: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "c.zarr"
    scalebrain.ingest(source, store, part=(2, 2))
    process = start(source, store, "--part", "1/2")
    try:
        wait_until((store / "ingest" / "parts" / "1-of-2.json").exists)
        with pytest.raises(StoreBusyError, match=f"process {process.pid} of this machine"):
            scalebrain.ingest(source, store)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    scalebrain.ingest(source, store)
    assert tree_bytes(store) == whole


@pytest.mark.parametrize(
    "order", [((1, 1),), ((2, 2),), ((5, 5), (1, 5), (1, 5)), ((1, 2), (3, 3))]
)
def test_part__any_of_them_in_any_order(
    source: Path, whole: dict[str, bytes], tmp_path: Path, order: tuple[tuple[int, int], ...]
) -> None:
    store = tmp_path / "c.zarr"
    for part in order:
        scalebrain.ingest(source, store, part=part)
    scalebrain.ingest(source, store)
    assert tree_bytes(store) == whole
    scalebrain.ingest(source, store, part=(1, 2))  # of a finished store: nothing is left
    assert tree_bytes(store) == whole


def test_part__brings_a_store_up_to_date(source: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "bids", n=34)
    store = scalebrain.ingest(tree, tmp_path / "c.zarr")
    path = image_path(tree, "sub-020", "desc-preproc_T1w")
    image = nib.load(path)
    save(path, np.asarray(image.dataobj) + np.int16(3), image.affine)
    with pytest.raises(StoreError, match="1 changed"):
        scalebrain.ingest(tree, store, part=(1, 2))
    before = tree_bytes(store)
    for part in ((1, 2), (2, 2)):
        scalebrain.ingest(tree, store, part=part, update=True)
    scalebrain.ingest(tree, store, update=True)
    changed = {key for key, content in tree_bytes(store).items() if before.get(key) != content}
    assert {"t1w/c/1/0", "ingest/000001.json"} <= changed
    assert not {"t1w/c/0/0", "t1w/c/2/0", "ingest/000000.json"} & changed
    assert tree_bytes(store) == tree_bytes(scalebrain.ingest(tree, tmp_path / "new.zarr"))


@pytest.mark.parametrize("seen", [LEASE_KEY, "ingest/plan.json", "t1w/c"])
@pytest.mark.parametrize("options", [(), ("--part", "2/2")])
def test_part__goes_on_where_a_dead_ingest_left_its_lease(
    source: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: str,
    options: tuple[str, ...],
) -> None:
    store = tmp_path / "c.zarr"
    process = start(source, store, *options)
    wait_until((store / seen).exists)
    process.kill()
    process.communicate()
    if not options:
        assert (store / LEASE_KEY).exists()
    monkeypatch.setattr(module, "_PATIENCE", 60)
    for part in ((1, 2), (2, 2)):
        scalebrain.ingest(source, store, part=part)
    scalebrain.ingest(source, store)
    assert tree_bytes(store) == whole


def test_part__waits_while_another_plans_but_not_forever(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location.of(tmp_path / "c.zarr")
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.5)
    with hold_lease(location), pytest.raises(StoreBusyError, match="another ingest"):
        scalebrain.ingest(source, location.url, part=(1, 2))
    with hold_part_lease(location, 1, 2), pytest.raises(StoreBusyError, match="another ingest"):
        scalebrain.ingest(source, location.url)
    assert location.list() == []


def test_part__gives_up_when_the_sources_never_stay(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="change while they are read"):
        module.until_written(Location.of(tmp_path), lambda: False)


def test_part__withdrawal_waits_for_it(source: Path, tmp_path: Path) -> None:
    store = scalebrain.ingest(source, tmp_path / "c.zarr")
    with hold_part_lease(Location.of(store), 1, 2), pytest.raises(StoreBusyError):
        scalebrain.withdraw(store, ["sub-001"])


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_part__refuses_a_part_that_there_is_not(
    source: Path, tmp_path: Path, part: tuple[int, int]
) -> None:
    with pytest.raises(ConfigError, match="from 1 to the count"):
        scalebrain.ingest(source, tmp_path / "c.zarr", part=part)
    with pytest.raises(ConfigError, match="does not verify"):
        scalebrain.ingest(source, tmp_path / "c.zarr", part=(1, 2), verify=True)
    assert not (tmp_path / "c.zarr").exists()


def test_part__in_a_bucket_two_at_a_time_make_the_same_store(
    source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("moto", "obstore")
    with moto_server() as endpoint:
        create_bucket(endpoint, "parts")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        url = "s3://parts/c.zarr"
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: scalebrain.ingest(source, url, part=(i, 2)), (1, 2)))
        scalebrain.ingest(source, url)
        location = Location.of(url)
        assert {key: location.get(key) for key in location.list()} == whole
