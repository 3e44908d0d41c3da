"""The study on a real SLURM: two nodes, jobs that are cancelled, refused or fail."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scalebrain.cluster.client import open_client
from scalebrain.cluster.profiles import Profile
from scalebrain.cluster.slurm import _seconds
from scalebrain.errors import ConfigError, ScalebrainError
from tests.conftest import CONFIG, missing, need
from tests.distributed.outputs import differing
from tests.distributed.slurm import jobs, running_slurm, why_not

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a SLURM that runs: its profiles, certificates and logs."""
    reason = why_not()
    if reason:
        missing(reason)
    need("dask_jobqueue")
    work = tmp_path_factory.mktemp("slurm")
    common = {
        "cores": 1,
        "memory": "3GiB",
        "queue": "ci",
        "interface": "lo",
        "log_directory": str(work / "logs"),
        "shared_directory": str(work / "shared"),
    }
    profiles = {
        "two": {**common, "jobs": {"minimum": 2, "maximum": 2}},
        "plain": {**common, "tls": False},
        "refused": {**common, "queue": "nowhere"},
        "elsewhere": {**common, "interface": "ib77"},
        "failing": {**common, "prologue": ["echo no such module >&2", "exit 3"]},
        "gpu": {**common, "jobs": {"maximum": 1}, "gpu": {"jobs": 1, "job_extra": []}},
    }
    (work / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    with running_slurm(work / "daemons"):
        yield work


def opened(slurm: Path, name: str, **options):
    return open_client(f"slurm:{name}", profiles=slurm / "profiles.yaml", **options)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_study__on_slurm_with_a_cancelled_job__equals_the_local_one(
    slurm: Path, tree: Path, whole_study: Path, tmp_path: Path
):
    out, config = tmp_path / "out", tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "scalebrain.cli", "run", str(tree), str(out)]
    command += ["--config", str(config), "--truth", str(tree.parent / "truth.json")]
    command += ["--scheduler", "slurm:two", "--profiles", str(slurm / "profiles.yaml")]
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        study = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        cancelled = False
        while study.poll() is None:
            if not cancelled and b"2/7 features" in log.read_bytes():
                time.sleep(1)
                subprocess.run(["scancel", jobs("RUNNING")[0]], check=True)
                cancelled = True
            time.sleep(0.1)
    finally:
        study.kill()
        study.wait()
    assert study.returncode == 0, log.read_text()[-3000:]
    assert cancelled
    assert differing(whole_study, out) == []
    assert not list((slurm / "shared").iterdir())  # the certificates are gone


def test_open_client__on_slurm__is_encrypted_and_shows_pages_to_this_machine_alone(slurm: Path):
    with opened(slurm, "two", n_workers=1) as client:
        assert client.scheduler.address.startswith("tls://")
        (folder,) = (slurm / "shared").iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        info = client.scheduler_info()
        pages = [worker["services"]["dashboard"] for worker in info["workers"].values()]
        told = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True).stdout
        for port in (*pages, info["services"]["dashboard"]):
            assert f"127.0.0.1:{port}" in told
            assert f"0.0.0.0:{port}" not in told
    assert not list((slurm / "shared").iterdir())


def test_open_client__on_slurm__routes_to_the_jobs_with_a_gpu(slurm: Path):
    with opened(slurm, "gpu") as client:
        client.wait_for_workers(2, timeout=60)
        resources = {w["name"]: w["resources"] for w in client.scheduler_info()["workers"].values()}
        assert sorted(map(bool, resources.values())) == [False, True]
        assert resources["gpu-0"] == {"GPU": 1}


def test_open_client__on_slurm_without_tls__when_the_profile_says_so(slurm: Path):
    with opened(slurm, "plain") as client:
        assert client.scheduler.address.startswith("tcp://127.0.0.1")
    deadline = time.monotonic() + 30
    while jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not jobs()


def test_open_client__jobs_that_slurm_refuses__are_one_clear_error(slurm: Path):
    told = r"Profile 'refused': SLURM refuses.*partition"
    with pytest.raises(ConfigError, match=told), opened(slurm, "refused"):
        pass
    assert not jobs()


def test_open_client__an_interface_that_is_not_there__is_one_clear_error(slurm: Path):
    told = r"Profile 'elsewhere': no scheduler can start here.*ib77"
    with pytest.raises(ConfigError, match=told), opened(slurm, "elsewhere"):
        pass


def test_open_client__a_job_with_a_gpu_that_ends__is_replaced(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scalebrain.cluster.slurm._LOOK_EVERY", 0.5)

    def on_gpu() -> list[str]:
        workers = client.scheduler_info()["workers"].items()
        return [address for address, worker in workers if worker["resources"]]

    with opened(slurm, "gpu") as client:
        client.wait_for_workers(2, timeout=60)
        (before,) = on_gpu()
        job = client.run(os.getenv, "SLURM_JOB_ID", workers=[before])[before]
        subprocess.run(["scancel", job], check=True)
        end = time.monotonic() + 60
        while on_gpu() in ([], [before]):
            assert time.monotonic() < end
            time.sleep(0.2)


def test_open_client__jobs_that_end_at_once__show_their_log(slurm: Path):
    told = r"ended before a worker came(?s:.*)no such module"
    with pytest.raises(ScalebrainError, match=told), opened(slurm, "failing"):
        pass


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("90", 5400), ("10:30", 630), ("04:00:00", 14400), ("1-12", 129600), ("2-00:30:00", 174600)],
)
def test_seconds__reads_the_notations_of_slurm(walltime: str, seconds: int):
    assert _seconds(walltime) == seconds


def test_seconds__refuses_what_is_no_time():
    with pytest.raises(ConfigError, match="Walltime 'a day'"):
        _seconds("a day")


def test_profile__one_worker_a_core():
    assert Profile(cores=4, memory="8GB").workers_of_job == 4
    assert Profile(cores=4, memory="8GB", jobs={"minimum": 9}).n_jobs == (9, 9)
