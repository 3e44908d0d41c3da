"""The commands of the pods, as processes of this machine, with the settings that they mount."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from distributed.security import Security

from tests.conftest import need
from tests.deploy.conftest import documents, run, tool


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


@pytest.fixture(scope="module")
def pods(
    deploy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Scheduler and worker: only addresses, ports and the folder of the certificates are others."""
    need("prometheus_client")
    tool("openssl")
    folder = tmp_path_factory.mktemp("pods")
    made = run("bash", deploy / "tls" / "make_certificates.sh", folder / "made")
    assert made.returncode == 0, made.stderr
    tls = folder / "tls"  # the names of a Secret
    tls.mkdir()
    for name, source in (
        ("ca.crt", "ca.crt"),
        ("tls.crt", "worker.crt"),
        ("tls.key", "worker.key"),
    ):
        (tls / name).write_bytes((folder / "made" / source).read_bytes())
    base = deploy / "kubernetes" / "base"
    settings = (base / "dask.yaml").read_text().replace("/etc/scalebrain/tls", str(tls))
    (folder / "dask.yaml").write_text(settings)
    (cluster,) = documents(base / "cluster.yaml")
    ports = {name: free_port() for name in ("8786", "8787", "8788", "40000", "40001")}
    running = []
    try:
        for role in ("scheduler", "worker"):
            (container,) = cluster["spec"][role]["spec"]["containers"]
            words = [*container["command"], *container["args"]]
            assert words[:3] == ["dumb-init", "--", "dask"]
            text = "\n".join(words[3:]).replace("scalebrain-scheduler", "127.0.0.1")
            text = text.replace("$(DASK_WORKER_NAME)", "one").replace("/tmp/dask", str(folder))
            for port, other in ports.items():
                text = text.replace(port, str(other))
            with (folder / f"{role}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "dask", *text.splitlines(), "--host", "127.0.0.1"],
                        env={**os.environ, "DASK_CONFIG": str(folder / "dask.yaml")},
                        cwd=folder,
                        stdout=log,
                        stderr=log,
                    )
                )
        end = time.monotonic() + 120
        while {get(f"http://127.0.0.1:{ports[p]}/health") for p in ("8787", "8788")} != {200}:
            assert time.monotonic() < end, (folder / "worker.log").read_text()
            time.sleep(0.2)
        yield folder, ports
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def test_pods__compute_over_tls(pods: tuple[Path, dict[str, int]]) -> None:
    folder, ports = pods
    security = Security(
        tls_ca_file=str(folder / "tls" / "ca.crt"),
        tls_client_cert=str(folder / "tls" / "tls.crt"),
        tls_client_key=str(folder / "tls" / "tls.key"),
        require_encryption=True,
    )
    address = f"tls://127.0.0.1:{ports['8786']}"
    with Client(address, security=security, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(os.getenv, "MALLOC_TOP_PAD_").result(timeout=60) == "268435456"
        (worker,) = client.scheduler_info()["workers"]
        assert worker == f"tls://127.0.0.1:{ports['40000']}"


@pytest.mark.parametrize(
    ("path", "scheduler", "worker"),
    [
        ("/health", 200, 200),
        ("/metrics", 200, 200),
        ("/api/v1", 200, 404),
        ("/status", 404, 404),
        ("/info/main/workers.html", 404, 404),
        ("/json/identity.json", 404, 404),
        ("/proxy/80/127.0.0.1/", 404, 404),
    ],
)
def test_pods__tell_health_and_numbers_and_show_no_pages(
    pods: tuple[Path, dict[str, int]], path: str, scheduler: int, worker: int
) -> None:
    ports = pods[1]
    assert get(f"http://127.0.0.1:{ports['8787']}{path}") == scheduler
    assert get(f"http://127.0.0.1:{ports['8788']}{path}") == worker
