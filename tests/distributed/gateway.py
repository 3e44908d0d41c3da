"""A real dask-gateway on the loopback interface, whose workers are processes of this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CONFIGURATION = """
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.DaskGateway.address = "127.0.0.1:{private}"
c.Proxy.address = "127.0.0.1:{port}"
c.UnsafeLocalBackend.clusters_directory = "{work}"
c.ClusterConfig.scheduler_cmd = [{dask!r}, "scheduler"]
c.ClusterConfig.worker_cmd = [{dask!r}, "worker"]
c.ClusterConfig.cluster_max_workers = 2
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.worker_memory = "2 G"
c.ClusterConfig.environment = {environment!r}
c.Backend.cluster_heartbeat_period = 1
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running_gateway(work: Path) -> Iterator[str]:
    """Gateway of two workers at most; its address."""
    private, port = free_ports(2)
    work.mkdir(parents=True, exist_ok=True)
    configuration = work / "dask_gateway_config.py"
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    configuration.write_text(
        _CONFIGURATION.format(
            private=private,
            port=port,
            work=str(work),
            dask=str(Path(sys.executable).parent / "dask"),
            environment={"PYTHONPATH": paths, "PATH": os.environ["PATH"]},
        )
    )
    command = [str(Path(sys.executable).parent / "dask-gateway-server"), "-f", str(configuration)]
    url = f"http://127.0.0.1:{port}"
    with (work / "gateway.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until_healthy(url, server, work / "gateway.log")
        yield url
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()
        server.wait()


def _until_healthy(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and server.poll() is None:
        with (
            suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"{url}/api/health", timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"dask-gateway did not come up: {log.read_text()[-2000:]}")
