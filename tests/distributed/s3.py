"""A real S3 server (moto, a process of its own) and a proxy in front of it that fails at random."""

import http.client
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.conftest import need

Fault = Literal["busy", "drop", "lose", "cut", "deny"]

# Thrown away with the process: moto accepts any.
ACCESS_KEY = f"THROWAWAY{secrets.token_hex(6).upper()}"
SECRET_KEY = secrets.token_hex(20)

_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)
_HOP_BY_HOP = ("connection", "expect", "keep-alive", "transfer-encoding")


def require(*modules: str) -> None:
    """Skip a test whose Python package is missing; in CI, where it must be there, fail."""
    need(*modules, remedy="pip install -e '.[cloud,test]'")


def s3_environment(endpoint: str) -> dict[str, str]:
    """Variables that make every S3 client talk to `endpoint`, and to nothing else."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def create_bucket(endpoint: str, name: str) -> None:
    """Make a bucket; names have at least three letters."""
    credential = f"Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    request.add_header("Authorization", f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's S3 until the end of the block; gives its endpoint."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        env=clean | s3_environment("http://127.0.0.1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{_port_of(process)}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()  # type: ignore[union-attr]


def _port_of(process: subprocess.Popen[str]) -> int:
    """Port that the system chose for the server, from its log; the rest of the log is dropped."""
    lines: list[str] = []
    for line in process.stderr or ():
        lines.append(line)
        if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            return int(found[1])
    raise RuntimeError("moto_server did not start:\n" + "".join(lines))


def _drain(stream: Iterator[str]) -> None:
    """Keep the pipe of a server empty, or it would block."""
    with suppress(ValueError):  # closed while we read
        for _ in stream:
            pass


@contextmanager
def faulty_proxy(
    target_port: int,
    rate: float,
    seed: int,
    *,
    faults: Sequence[Fault] = ("busy", "drop"),
    seen: list[tuple[str, str]] | None = None,
) -> Iterator[int]:
    """Forward HTTP to 127.0.0.1:`target_port`, but fail a share `rate` of the requests.

    ``busy`` answers 503 SlowDown, ``drop`` closes the connection without forwarding, ``lose``
    forwards and closes before the answer, ``cut`` sends half of the answer's body, ``deny``
    answers 403. Method and path of every request go to `seen`. Gives the port to connect to.
    """
    server = _Proxy(target_port, rate, seed, faults, seen)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        target: int,
        rate: float,
        seed: int,
        faults: Sequence[Fault],
        seen: list[tuple[str, str]] | None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target = target
        self.seen = [] if seen is None else seen
        self._rate = rate
        self._faults = list(faults)
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""

    def fault(self) -> Fault | None:
        """What happens to the next request."""
        with self._lock:
            if self._random.random() >= self._rate:
                return None
            return self._random.choice(self._faults)


class _Forward(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        fault = self.server.fault()
        if fault == "busy":
            self._answer(503, [("Content-Type", "application/xml")], _BUSY)
        elif fault == "deny":
            self._answer(403, [("Content-Type", "application/xml")], _DENIED)
        elif fault == "drop":
            self._close()
        else:
            self._relay(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def _relay(self, body: bytes, fault: Fault | None) -> None:
        target = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        try:
            target.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    target.putheader(name, value)
            target.endheaders(body)
            answer = target.getresponse()
            content = answer.read()
        finally:
            target.close()
        if fault == "lose":
            self._close()
            return
        cut = len(content) // 2 if fault == "cut" and content else None
        self._answer(answer.status, answer.getheaders(), content, cut=cut)

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        cut: int | None = None,
    ) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
