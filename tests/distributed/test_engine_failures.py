"""What engines refuse, and how a command ends: commands and servers that only look like theirs."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
import yaml

from scalebrain.cluster import kubernetes
from scalebrain.cluster.client import open_client
from scalebrain.cluster.kubernetes import _answer, _made, _of_operator, _removed, _until_running
from scalebrain.errors import ConfigError, ScalebrainError
from tests.conftest import need
from tests.phantom import write_tree

pytestmark = pytest.mark.timeout(120)

_SBATCH = """#!/bin/sh
case " $* " in *--test-only*) exit 0;; esac
if grep -q "{refuses}" "$1"; then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" >&2
    exit 1
fi
touch "{submitted}"
echo "Submitted batch job 7"
"""
_SQUEUE = "#!/bin/sh\necho 7\n"
_SCANCEL = '#!/bin/sh\necho "$*" >> "{cancelled}"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a SLURM whose jobs wait for ever."""
    need("dask_jobqueue")
    profile = {
        "cores": 1,
        "memory": "2GiB",
        "interface": "lo",
        "log_directory": str(tmp_path / "logs"),
        "shared_directory": str(tmp_path / "shared"),
    }
    gpu = {**profile, "gpu": {"jobs": 1}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"cpu": profile, "gpu": gpu}))
    (tmp_path / "bin").mkdir()
    write_commands(tmp_path, refuses="of nothing")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


def write_commands(slurm: Path, refuses: str) -> None:
    texts = {
        "sbatch": _SBATCH.format(refuses=refuses, submitted=slurm / "submitted"),
        "squeue": _SQUEUE,
        "scancel": _SCANCEL.format(cancelled=slurm / "cancelled"),
    }
    for name, text in texts.items():
        (slurm / "bin" / name).write_text(text)
        (slurm / "bin" / name).chmod(0o755)


@pytest.mark.parametrize(
    ("profile", "refuses", "told"), [("cpu", "dask", "'cpu'"), ("gpu", "gres", "'gpu: gpu'")]
)
def test_open_client__jobs_refused_when_they_are_submitted__are_one_clear_error(
    slurm: Path, profile: str, refuses: str, told: str
):
    write_commands(slurm, refuses)
    with (
        pytest.raises(ConfigError, match=f"Profile {told}: SLURM refuses.*QOSMax.*; .*violates"),
        open_client(f"slurm:{profile}", profiles=slurm / "profiles.yaml"),
    ):
        pass
    assert not list((slurm / "shared").iterdir())


_IMPORTED = """
import signal, threading
from scalebrain.cluster.slurm import _slurm_cluster
from scalebrain.errors import ConfigError

def fail():
    try:
        _slurm_cluster()
    except ConfigError as error:
        print(error)

thread = threading.Thread(target=fail, name="T")
thread.start()
thread.join()
_slurm_cluster()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
thread = threading.Thread(target=lambda: print(_slurm_cluster().__name__))
thread.start()
thread.join()
"""
#: As a shell starts a command, whatever the tests were started by.
_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for one in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(one, signal.SIG_DFL)
from scalebrain.cli import main
main(sys.argv[1:])
"""


def test_slurm_cluster__leaves_ctrl_c_as_it_was():
    need("dask_jobqueue")
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{_IMPORTED}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    refused, imported = told.stdout.splitlines()
    assert "cannot be imported in the thread 'T'" in refused
    assert "in the main thread" in refused
    assert imported == "SLURMCluster"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_main__ended_by_a_signal__leaves_no_jobs_and_no_keys(
    slurm: Path, number: signal.Signals, code: int
):
    source = write_tree(slurm / "bids", n=3)
    command = [sys.executable, "-c", _COMMAND, "ingest", source, slurm / "c.zarr"]
    command += ["--scheduler", "slurm:cpu", "--profiles", slurm / "profiles.yaml"]
    command += ["--log-file", slurm / "log.jsonl"]
    log = slurm / "stderr"
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 60
        while b"waiting for a worker" not in log.read_bytes():
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        while not (slurm / "submitted").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(1)  # its number is read meanwhile
        assert list((slurm / "shared").iterdir())
        running.send_signal(number)
        assert running.wait(60) == code, log.read_text()
    finally:
        running.kill()
        running.wait()
    assert log.read_text().rstrip().endswith("stopped; the same command goes on from here")
    assert not list((slurm / "shared").iterdir())
    assert (slurm / "cancelled").read_text().split() == ["7"]


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives every request the same answer."""

    code, body = 200, b""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answers() -> Iterator[type[Answers]]:
    """Handler of a server, whose address is its `url`."""

    class Own(Answers):
        url = ""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        Own.url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield Own
        server.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("code", "body", "auth", "kind", "told"),
    [
        (500, b'{"error": "broken"}', "basic", ScalebrainError, "started no cluster: broken"),
        (401, b"", "basic", ConfigError, "does not let you in .401.*gateway.auth.type"),
        (403, b"", "basic", ConfigError, "does not let you in .403.*gateway.auth.type"),
        (200, b'{"a": 1}', "basic", ConfigError, "No dask-gateway answers.*something else"),
        (200, b"<html>", "basic", ConfigError, "No dask-gateway answers"),
        (401, b"", "bsic", ConfigError, "no authentication: No module named 'bsic'.*gateway.auth"),
    ],
)
def test_open_client__what_a_gateway_answers__is_one_clear_error(
    answers: type[Answers], code: int, body: bytes, auth: str, kind: type[Exception], told: str
):
    need("dask_gateway")
    import dask_gateway  # noqa: F401  (its defaults before what is set: else they go with that)

    answers.code, answers.body = code, body
    with (
        dask.config.set({"gateway.auth.type": auth}),
        pytest.raises(kind, match=told),
        open_client(f"gateway:{answers.url}"),
    ):
        pass


_MANIFEST = "{kind: DaskCluster, apiVersion: kubernetes.dask.org/v1, metadata: {name: sb}}"
_PLUGIN = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:9"}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
users:
- name: u
  user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, exit 3]}}
"""
_EMPTY = (
    "{apiVersion: v1, kind: Config, clusters: [], users: [], contexts: [], current-context: ''}"
)


@pytest.mark.parametrize(
    ("text", "told"), [(_PLUGIN, "non-zero code 3"), (_EMPTY, "list index out of range")]
)
def test_open_client__credentials_of_kubernetes_that_fail__are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
):
    need("kr8s", "dask_kubernetes")
    from kr8s._api import Api

    monkeypatch.setattr(Api, "_instances", {})  # it keeps clients, whatever KUBECONFIG is
    (tmp_path / "kubeconfig").write_text(text)
    (tmp_path / "m.yaml").write_text(_MANIFEST)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with (
        pytest.raises(ConfigError, match=f"credentials of Kubernetes.*{told}.*KUBECONFIG"),
        open_client(f"kubernetes:{tmp_path / 'm.yaml'}"),
    ):
        pass


def unwell(code: int) -> Exception:
    """Error of kr8s."""
    import httpx
    import kr8s

    return kr8s.ServerError(f"code {code}", response=httpx.Response(code))


class Resource:
    """A DaskCluster of an API that fails each kind of request once before it answers."""

    kind, name = "DaskCluster", "sb"

    def __init__(self) -> None:
        self.raw: dict = {}
        self.there = False
        self.failed: set[str] = set()

    def _ask(self, what: str, failure: Exception) -> None:
        if what not in self.failed:
            self.failed.add(what)
            raise failure

    def exists(self) -> bool:
        return self.there

    def create(self) -> None:
        import kr8s

        self.there = True  # and the answer is lost
        self._ask("create", kr8s.APITimeoutError("timeout"))
        raise AssertionError("made twice")

    def refresh(self) -> None:
        import kr8s

        self._ask("refresh", unwell(503))
        if not self.there:
            raise kr8s.NotFoundError
        self.raw = {"status": {"phase": "Running"}}

    def delete(self) -> None:
        import httpx

        self._ask("delete", httpx.ConnectError("refused"))
        self.there = False


def test_kubernetes__an_api_that_fails_now_and_then__is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
):
    from contextlib import ExitStack

    need("kr8s")
    monkeypatch.setattr(kubernetes, "_POLL", 0.01)
    one = Resource()
    with ExitStack() as stack:
        _made(one, stack)
        one.failed.remove("refresh")
        _until_running(one)
        assert one.there
    assert one.failed == {"create", "refresh", "delete"}
    assert not one.there


def test_kubernetes__what_the_api_refuses_or_never_answers__is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    need("kr8s")
    monkeypatch.setattr(kubernetes, "_POLL", 0.01)

    def fail(code: int) -> None:
        raise unwell(code)

    with pytest.raises(ConfigError, match="Pods: the cluster refuses it: code 403"):
        _answer(lambda: fail(403), "Pods")

    def absent() -> None:
        import kr8s

        raise kr8s.NotFoundError("default")

    with pytest.raises(ScalebrainError, match="Service sb: the operator has not made it"):
        _of_operator(absent, "Service sb")
    monkeypatch.setattr(kubernetes, "_API_SECONDS", 0.1)
    with pytest.raises(ScalebrainError, match=r"Pods: the API.*not answered for 0.1 s: code 503"):
        _answer(lambda: fail(503), "Pods")
    gone = Resource()
    gone.delete = lambda: fail(500)
    _removed(gone)
    assert "DaskCluster sb stays: remove it with kubectl delete" in caplog.text
