"""The scripts of SLURM, on a real one where they submit jobs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import scalebrain
from scalebrain.cluster.profiles import read_profile
from tests.conftest import missing
from tests.deploy.conftest import run
from tests.distributed.slurm import jobs, running_slurm, why_not
from tests.phantom import tree_bytes, write_tree


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that is first in PATH, with the scalebrain of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "scalebrain"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m scalebrain.cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    root = Path(scalebrain.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_", "SCALEBRAIN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def slurm(environment: Path, tmp_path: Path) -> Iterator[None]:
    """Two nodes of one core each."""
    reason = why_not()
    if reason:
        missing(reason)
    with running_slurm(tmp_path / "daemons"):
        yield


def end_of_jobs(seconds: float) -> None:
    end = time.monotonic() + seconds
    while jobs():
        assert time.monotonic() < end, "jobs go on"
        time.sleep(0.2)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_ingest_array__makes_the_store_of_a_plain_ingest(deploy: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "bids of mine", n=34)
    store = tmp_path / "in parts.zarr"
    done = run(deploy / "slurm" / "ingest_array.sh", "2", tree, store, "--min-lesion", "0.01")
    assert done.returncode == 0, done.stderr
    assert " finishes the store" in done.stdout
    end_of_jobs(180)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("scalebrain-ingest-*.log"))
    plain = scalebrain.ingest(tree, tmp_path / "plain.zarr", min_lesion=0.01)
    assert tree_bytes(store) == tree_bytes(plain), logs


@pytest.mark.parametrize("arguments", [(), ("2", "source"), ("x", "a", "b"), ("0", "a", "b")])
@pytest.mark.usefixtures("environment")
def test_ingest_array__says_how_it_is_used(deploy: Path, arguments: tuple[str, ...]) -> None:
    done = run(deploy / "slurm" / "ingest_array.sh", *arguments)
    assert done.returncode != 0
    assert "usage: ingest_array.sh N SOURCE STORE" in done.stderr


@pytest.mark.engine
@pytest.mark.usefixtures("slurm")
def test_job__goes_through_the_queue(deploy: Path, environment: Path, tmp_path: Path) -> None:
    (environment / "scalebrain").write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    script = deploy / "slurm" / "job.sh"
    told = run("sbatch", "--cpus-per-task=1", "--mem=1G", script, "in", "out", "cpu")
    assert told.returncode == 0, told.stderr
    end_of_jobs(30)
    (log,) = tmp_path.glob("scalebrain-*.log")
    assert log.read_text().splitlines()[0] == "run in out --scheduler slurm:cpu"
    assert "rejected.tsv" in log.read_text()


def test_job__chooses_workers_and_takes_a_partial_success(
    deploy: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, expected in ((0, 0), (3, 0), (1, 1)):
        (environment / "scalebrain").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
        alone = run(deploy / "slurm" / "job.sh", "in", "out")
        assert alone.returncode == expected
        assert alone.stdout.splitlines()[0] == "run in out --n-workers 6"


def test_job__keeps_its_own_queue_from_the_jobs_of_the_workers(
    deploy: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (environment / "scalebrain").write_text("#!/bin/sh\nenv\n")
    for name in ("SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "1")
    done = run(deploy / "slurm" / "job.sh", "in", "out", "cpu")
    assert done.returncode == 0, done.stderr
    seen = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "SLURM_JOB_ID" in seen
    assert not [name for name in seen if name.startswith("SBATCH_")]


def test_profiles__are_valid_and_encrypted(deploy: Path) -> None:
    for name in ("cpu", "gpu"):
        profile = read_profile(name, deploy / "slurm" / "profiles.yaml")
        assert profile.tls
        assert bool(profile.gpu) == (name == "gpu")


@pytest.mark.parametrize(
    "name", ["slurm/job.sh", "slurm/ingest_array.sh", "tls/make_certificates.sh"]
)
def test_scripts__parse(deploy: Path, name: str) -> None:
    assert subprocess.run(["bash", "-n", deploy / name], check=False).returncode == 0
    assert os.access(deploy / name, os.X_OK)
