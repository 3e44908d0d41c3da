"""The ingest with real processes that are killed, and onto an S3 server that fails."""

import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import distributed
import pytest

import scalebrain
from scalebrain import cli
from scalebrain.errors import StoreError
from scalebrain.ingestion import partition
from scalebrain.io.lease import LEASE_KEY
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
from tests.phantom import image_path, write_tree

BUCKET = "ingest-bucket"
THREADS = ("--scheduler", "threads")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 people in 3 partitions; one of them cannot be used."""
    root = write_tree(tmp_path_factory.mktemp("source") / "bids", n=34)
    path = image_path(root, "sub-030", "desc-preproc_T1w")
    path.write_bytes(path.read_bytes()[:-4000])
    return root


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of an unbroken ingest."""
    store = tmp_path_factory.mktemp("whole") / "c.zarr"
    scalebrain.ingest(tree, store)
    return store


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    require("moto", "obstore")
    with moto_server() as endpoint:
        create_bucket(endpoint, BUCKET)
        yield endpoint


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Url of the bucket, for which the environment has endpoint and credentials."""
    use(server, monkeypatch)
    return f"s3://{BUCKET}"


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)


def set_environment(variables: Mapping[str, str]) -> None:
    """Set variables where this runs: on a worker."""
    os.environ.update(variables)


@contextmanager
def failing(
    server: str, monkeypatch: pytest.MonkeyPatch, rate: float = 0.1, *faults: Fault
) -> Iterator[None]:
    """A share of the requests of the block fails: answered 503 or dropped, or as `faults` say."""
    port = int(server.rsplit(":", 1)[1])
    with faulty_proxy(port, rate, seed=3, faults=faults or ("busy", "drop")) as proxy:
        use(f"http://127.0.0.1:{proxy}", monkeypatch)
        yield
        use(server, monkeypatch)


@pytest.fixture(scope="module")
def workers() -> Iterator[distributed.Client]:
    """Two worker processes; ``as_current()`` makes an ingest use them."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def objects(store: str | Path) -> dict[str, bytes | None]:
    location = Location.of(store)
    return {key: location.get(key) for key in location.list()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process: exit code, output and log."""
    capsys.readouterr()
    code = 0
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        logging.getLogger("scalebrain").propagate = True
    return code, *capsys.readouterr()


@contextmanager
def ingesting(
    tree: Path, store: str | Path, log: Path, *options: str, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Ingest in a process group of its own, which does not outlive the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalebrain.cli", "ingest", str(tree), str(store), *options],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait until a condition holds, or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.005)


def die_at(function: str, call: int, dead: Path | None = None) -> None:
    """Make a call of a function of the partition's the end of its process: run on a worker.

    With a file `dead`, which it makes, it is the end of the first worker that comes to it alone.
    """
    original = getattr(partition, function)
    calls = itertools.count(1)

    def dies(*args: object) -> object:
        if next(calls) == call:
            with suppress(FileExistsError):
                if dead is not None:
                    dead.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(partition, function, dies)


@pytest.mark.parametrize(
    ("function", "call"), [("join_shard", 2), ("write_record", 1)], ids=["in a shard", "after all"]
)
def test_ingest__a_killed_worker_costs_nothing(
    tree: Path,
    whole: Path,
    workers: distributed.Client,
    tmp_path: Path,
    function: str,
    call: int,
) -> None:
    before = set(workers.run(os.getpid).values())
    workers.run(die_at, function, call, tmp_path / "dead")  # which of them has two shards is chance
    with workers.as_current():
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    workers.wait_for_workers(2)
    assert len(before - set(workers.run(os.getpid).values())) == 1
    assert objects(tmp_path / "c.zarr") == objects(whole)


def test_ingest__survives_the_death_of_all_workers_at_once(
    tree: Path, whole: Path, workers: distributed.Client, tmp_path: Path
) -> None:
    workers.wait_for_workers(2)
    workers.run(die_at, "write_record", 1)
    with workers.as_current():
        scalebrain.ingest(tree, tmp_path / "c.zarr")
    assert objects(tmp_path / "c.zarr") == objects(whole)


def test_ingest__goes_on_after_its_driver_is_killed(
    tree: Path, whole: Path, workers: distributed.Client, tmp_path: Path
) -> None:
    store = tmp_path / "c.zarr"
    address = workers.cluster.scheduler_address
    draw = random.Random(0)
    for number in range(3):
        log = tmp_path / f"log{number}"
        with ingesting(tree, store, log, "--scheduler", address) as process:
            wait_for(lambda log=log: b"ingest: 0/" in log.read_bytes(), process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 0.4))
    with workers.as_current():  # which may still be at what the dead drivers gave them
        scalebrain.ingest(tree, store)
    assert objects(store) == objects(whole)


def test_ingest__one_of_two_at_once_is_refused_and_the_other_ends(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    store, log = tmp_path / "c.zarr", tmp_path / "log"
    with ingesting(tree, store, log, *THREADS) as process:
        wait_for((store / LEASE_KEY).exists, process)
        os.killpg(process.pid, signal.SIGSTOP)
        with pytest.raises(StoreError, match=rf"another ingest is .* \(process {process.pid} "):
            scalebrain.ingest(tree, store)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(timeout=60) == 3  # one is rejected
    assert objects(store) == objects(whole)


def test_store_verify__names_damage_and_ingest_mends_it(
    tree: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "c.zarr"
    shutil.copytree(whole, store)
    assert run(capsys, "store", "verify", store, *THREADS)[0] == 0
    shard = store / "t1w" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (store / "gm" / "c" / "2" / "0").unlink()
    code, out, _ = run(capsys, "store", "verify", store, *THREADS)
    assert code == 1
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["t1w/c/1/0", "gm/c/2/0"]
    assert "sub-016" in lines[0]
    assert "sub-033" in lines[1]
    run(capsys, "ingest", tree, store, "--verify", *THREADS)
    assert objects(store) == objects(whole)


def test_ingest__a_lost_record_takes_no_subject_with_it(
    tree: Path, whole: Path, tmp_path: Path
) -> None:
    store = tmp_path / "c.zarr"
    shutil.copytree(whole, store)
    other = write_tree(tmp_path / "other", n=2)
    (store / "ingest" / "000001.json").unlink()
    with pytest.raises(StoreError, match="records of bids are missing"):
        scalebrain.ingest(other, store, prefix="b", update=True)
    with pytest.raises(StoreError, match="interrupted"):
        scalebrain.open_store(store)


def test_ingest__on_s3_that_fails_equals_the_local_store(
    tree: Path,
    whole: Path,
    workers: distributed.Client,
    server: str,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = f"{bucket}/workers.zarr"
    with failing(server, monkeypatch), workers.as_current():
        workers.run(set_environment, s3_environment(os.environ["AWS_ENDPOINT_URL"]))
        scalebrain.ingest(tree, store)
        assert scalebrain.verify_store(store) == []
    assert objects(store) == objects(whole)


def test_ingest__on_s3_goes_on_after_a_kill(
    tree: Path,
    whole: Path,
    server: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, log = f"{bucket}/killed.zarr", tmp_path / "log"
    with failing(server, monkeypatch):
        with ingesting(tree, store, log, *THREADS) as process:
            wait_for(lambda: b"ingest: 1/" in log.read_bytes(), process)
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(StoreError, match="interrupted"):
            scalebrain.open_store(store)
        scalebrain.ingest(tree, store)
    assert objects(store) == objects(whole)


def test_commands__on_s3_do_what_they_do_locally(
    tree: Path,
    whole: Path,
    server: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stores = (str(tmp_path / "c.zarr"), f"{bucket}/commands.zarr")
    told = []
    for store in stores:
        with failing(server, monkeypatch):
            assert run(capsys, "ingest", tree, store, *THREADS)[0] == 3
            assert run(capsys, "features", store, *THREADS)[0] == 0
            assert run(capsys, "store", "withdraw", store, "sub-017")[1].startswith(
                "1 rows emptied"
            )
            assert run(capsys, "store", "verify", store, *THREADS)[0] == 0
            told.append(run(capsys, "store", "info", store)[1].replace(store, ""))
            assert run(capsys, "ingest", tree, store, *THREADS)[0] == 3
    local, remote = map(objects, stores)
    assert remote == local
    assert told[0] == told[1]
    assert "lesion_load" in told[0]
    ds = scalebrain.open_store(stores[1])
    assert ds.sizes["subject"] == 32
    assert "sub-017" not in ds["subject"].values


def test_ingest__shows_and_stores_no_credentials(
    tree: Path,
    server: str,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = f"{bucket}/secret.zarr"
    with failing(server, monkeypatch):
        code, *told = run(capfd, "ingest", tree, store, *THREADS)
    assert code == 3
    assert "rejected [truncated]" in told[1]
    with failing(server, monkeypatch, 1.0, "deny"):
        code, *refused = run(capfd, "ingest", tree, f"{bucket}/denied.zarr", *THREADS)
    assert code == 1
    assert "access denied" in refused[1]
    found = objects(store)
    assert b"sub-030" in (found["ingest/rejected.tsv"] or b"")
    everything = "".join([*told, *refused, *found]).encode() + b"".join(
        filter(None, found.values())
    )
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret.encode() not in everything
