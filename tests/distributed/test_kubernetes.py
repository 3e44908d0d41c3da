"""Ingest and features by the real Dask operator, on an emulated API (see kubernetes.py)."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from scalebrain.cluster.kubernetes import read_manifest
from scalebrain.errors import ConfigError
from tests.conftest import CONFIG, need
from tests.distributed.gateway import free_ports
from tests.distributed.outputs import differing

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

_NAMESPACE, _NAME = "study", "sb"


def manifest(port: int, pages: int) -> dict:
    """One scheduler and one worker, as pods would run them."""

    def container(name: str, *args: str) -> dict:
        address = {"name": "DASK_SCHEDULER_ADDRESS", "value": f"tcp://{_NAME}-scheduler:{port}"}
        return {"name": name, "image": "scalebrain", "args": list(args), "env": [address]}

    worker = container(
        "worker", "dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1",
        "--memory-limit", "3GB", "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0",
    )  # fmt: skip
    scheduler = container(
        "scheduler", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port),
        "--dashboard-address", f"127.0.0.1:{pages}",
    )  # fmt: skip
    ports = [
        {"name": "tcp-comm", "port": port, "protocol": "TCP"},
        {"name": "http-dashboard", "port": pages, "protocol": "TCP"},
    ]
    service = {"type": "ClusterIP", "selector": {"dask.org/component": "scheduler"}, "ports": ports}
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE},
        "spec": {
            "worker": {"replicas": 1, "spec": {"containers": [worker]}},
            "scheduler": {"spec": {"containers": [scheduler]}, "service": service},
        },
    }


def kubeconfig(api: int) -> dict:
    cluster = {"name": "test", "cluster": {"server": f"http://127.0.0.1:{api}"}}
    context = {"cluster": "test", "user": "test", "namespace": _NAMESPACE}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [cluster],
        "users": [{"name": "test", "user": {"token": "none"}}],
        "contexts": [{"name": "test", "context": context}],
    }


#: The command, in a process where the services of the cluster have a name, as inside one.
_COMMAND = """
import socket, sys
from scalebrain.cli import main
resolve = socket.getaddrinfo
def with_services(host, *args, **kwargs):
    return resolve("127.0.0.1" if "-scheduler" in str(host) else host, *args, **kwargs)
socket.getaddrinfo = with_services
main(sys.argv[1:])
"""


@dataclass
class Cluster:
    """A cluster whose API, operator and kubelet run."""

    api: str
    manifest: Path
    kubeconfig: Path

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run a command of scalebrain on it."""
        return subprocess.run(
            [sys.executable, "-c", _COMMAND, *map(str, arguments)],
            env=_environment() | {"KUBECONFIG": str(self.kubeconfig)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )

    def ask(
        self, method: str, name: str = "", body: dict | None = None, plural: str = "daskclusters"
    ) -> dict:
        """Ask the API about clusters of Dask."""
        path = f"/apis/kubernetes.dask.org/v1/namespaces/{_NAMESPACE}/{plural}/{name}"
        request = urllib.request.Request(
            f"{self.api}{path.rstrip('/')}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need("kmock", "kr8s", "kopf", "dask_kubernetes")
    work = tmp_path_factory.mktemp("kubernetes")
    api, scheduler, pages = free_ports(3)
    found = Cluster(f"http://127.0.0.1:{api}", work / "cluster.yaml", work / "kubeconfig")
    found.kubeconfig.write_text(yaml.safe_dump(kubeconfig(api)))
    found.manifest.write_text(yaml.safe_dump(manifest(scheduler, pages)))
    operator = ["kopf", "run", "--all-namespaces", "-m", "dask_kubernetes.operator.controller"]
    with ExitStack() as stack:
        for name, command in (
            ("api", ["tests.distributed.kubernetes", str(api), str(work)]),
            ("operator", operator),
        ):
            log = stack.enter_context((work / f"{name}.out").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=_environment() | {"KUBECONFIG": str(found.kubeconfig)},
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(_ended, process)
            if name == "api":
                _answers(api)
        yield found


def _answers(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError("the API did not come up")


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_run_study__on_kubernetes__equals_the_local_one(
    cluster: Cluster, tree: Path, whole_study: Path, tmp_path: Path
):
    out, config = tmp_path / "out", tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    scheduler = ("--scheduler", f"kubernetes:{cluster.manifest}", "--n-workers", "2")
    told = cluster.run("ingest", tree, out / "cohort.zarr", *scheduler)
    assert told.returncode == 0, told.stderr[-3000:]
    assert "DaskCluster sb made" in told.stderr
    told = cluster.run("features", out / "cohort.zarr", *scheduler)
    assert told.returncode == 0, told.stderr[-3000:]
    assert differing(out, whole_study, only_ours=True) == []
    assert cluster.ask("GET")["items"] == []


def test_open_client__on_kubernetes__leaves_what_was_there(cluster: Cluster, tree: Path):
    cluster.ask("POST", body=read_manifest(cluster.manifest)[0])
    store = cluster.manifest.with_name("there.zarr")
    told = cluster.run("ingest", tree, store, "--scheduler", f"kubernetes:{cluster.manifest}")
    assert told.returncode == 0, told.stderr[-3000:]
    assert "DaskCluster sb is there already" in told.stderr
    scheduler = ("--scheduler", f"kubernetes:{cluster.manifest}", "--n-workers", "2")
    told = cluster.run("ingest", tree, store, *scheduler)
    assert told.returncode == 1
    assert "error: DaskCluster sb is there already: its workers are as many" in told.stderr
    groups = cluster.ask("GET", plural="daskworkergroups")["items"]
    assert [one["spec"]["worker"]["replicas"] for one in groups] == [1]
    assert [one["metadata"]["name"] for one in cluster.ask("GET")["items"]] == [_NAME]
    cluster.ask("DELETE", _NAME)


def test_open_client__no_cluster_answers__is_one_clear_error(
    cluster: Cluster, tmp_path: Path, tree: Path
):
    nowhere = replace(cluster, kubeconfig=tmp_path / "kubeconfig")
    nowhere.kubeconfig.write_text(yaml.safe_dump(kubeconfig(9)))
    told = nowhere.run(
        "ingest", tree, tmp_path / "c.zarr", "--scheduler", f"kubernetes:{cluster.manifest}"
    )
    assert told.returncode == 1
    assert "No Kubernetes cluster answers" in told.stderr
    assert "Traceback" not in told.stderr


_WITH_JOB = """
{kind: DaskCluster, apiVersion: kubernetes.dask.org/v1, metadata: {name: sb}}
---
{kind: Job, apiVersion: batch/v1, metadata: {name: study}}
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: [", "not valid YAML"),
        ("- 1", "expected resources"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "one DaskCluster, found 0"),
        ("apiVersion: a/v1\nkind: DaskCluster\nmetadata:", "of a DaskCluster has no name"),
        ("apiVersion: 1\nkind: DaskCluster\nmetadata: {name: a}", "expected resources"),
        (_WITH_JOB, "holds the Job study"),
        ("a: &a [1]\nb: *a", "refers to another place"),
    ],
)
def test_read_manifest__what_is_wrong__is_one_clear_error(tmp_path: Path, text: str, told: str):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_manifest(path)


def test_read_manifest__no_such_file__is_one_clear_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_manifest(tmp_path / "none.yaml")
