"""The scripts of SLURM, run by a stand-in of sbatch that starts every task as a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import scalebrain
from tests.deploy.conftest import run
from tests.phantom import tree_bytes, write_tree

#: What a profile may say.
KEYS = {
    *("engine", "queue", "account", "cores", "processes", "memory", "walltime", "workers"),
    *("interface", "job_extra", "prologue", "gpus", "tls"),
}

SBATCH = """\
#!/usr/bin/env bash
# Runs what it is given at once: the tasks of an array together, a job with a dependency after them.
set -euo pipefail
echo "$*" >>"$STAND_IN/calls"
tasks=1
while [[ $1 == --* ]]; do
  case $1 in
    --array=1-*) tasks=${1#--array=1-} ;;
    --export=ALL,*) export "${1#--export=ALL,}" ;;
  esac
  shift
done
pids=()
for i in $(seq "$tasks"); do
  SLURM_ARRAY_TASK_ID=$i bash "$@" >>"$STAND_IN/log.$i" 2>&1 &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
echo "$((100 + $(wc -l <"$STAND_IN/calls")));cluster"
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the stand-in: first in PATH are sbatch and the scalebrain of this checkout."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "scalebrain").write_text(f'#!/bin/sh\nexec {sys.executable} -m scalebrain.cli "$@"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    root = Path(scalebrain.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_", "SCALEBRAIN_"))]:
        monkeypatch.delenv(name)
    return folder


@pytest.mark.slow
def test_ingest_array__makes_the_store_of_a_plain_ingest(
    deploy: Path, environment: Path, tmp_path: Path
) -> None:
    tree = write_tree(tmp_path / "bids of mine", n=34)
    store = tmp_path / "in parts.zarr"
    done = run(deploy / "slurm" / "ingest_array.sh", "2", tree, store, "--min-lesion", "0.01")
    logs = "\n".join(path.read_text() for path in environment.glob("log.*"))
    assert done.returncode == 0, done.stderr + logs
    array, finish = (environment / "calls").read_text().splitlines()
    assert "--array=1-2" in array
    assert "--dependency=afterok:101 " in finish
    assert done.stdout.startswith("tasks 101, then 102 finishes")
    plain = scalebrain.ingest(tree, tmp_path / "plain.zarr", min_lesion=0.01)
    assert tree_bytes(store) == tree_bytes(plain)


@pytest.mark.parametrize("arguments", [(), ("2", "source"), ("x", "a", "b"), ("0", "a", "b")])
def test_ingest_array__says_how_it_is_used(
    deploy: Path, environment: Path, arguments: tuple[str, ...]
) -> None:
    done = run(deploy / "slurm" / "ingest_array.sh", *arguments)
    assert done.returncode != 0
    assert "usage: ingest_array.sh N SOURCE STORE" in done.stderr
    assert not (environment / "calls").exists()


def test_job__chooses_workers_and_takes_a_partial_success(
    deploy: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, expected in ((0, 0), (3, 0), (1, 1)):
        (environment / "scalebrain").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
        alone = run(deploy / "slurm" / "job.sh", "in", "out")
        assert alone.returncode == expected
        assert alone.stdout.splitlines()[0] == "run in out --n-workers 6"
        with_profile = run(deploy / "slurm" / "job.sh", "in", "out", "cpu")
        assert with_profile.stdout.splitlines()[0] == "run in out --scheduler slurm:cpu"


def test_profiles__have_known_keys_and_encryption(deploy: Path) -> None:
    profiles = yaml.safe_load((deploy / "slurm" / "profiles.yaml").read_text())
    assert set(profiles) == {"cpu", "gpu"}
    for profile in profiles.values():
        assert profile["engine"] == "slurm"
        assert profile.keys() <= KEYS
        assert profile["tls"] is True
        assert profile["workers"]["minimum"] <= profile["workers"]["maximum"]
        assert profile["cores"] % profile["processes"] == 0


@pytest.mark.parametrize(
    "name", ["slurm/job.sh", "slurm/ingest_array.sh", "tls/make_certificates.sh"]
)
def test_scripts__parse(deploy: Path, name: str) -> None:
    assert subprocess.run(["bash", "-n", deploy / name], check=False).returncode == 0
    assert os.access(deploy / name, os.X_OK)
