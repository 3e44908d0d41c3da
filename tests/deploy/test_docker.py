"""The image: what hadolint says, what it is built from, and its health check."""

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from tests.deploy.conftest import run, tool


def test_dockerfile__hadolint_finds_nothing(deploy: Path) -> None:
    done = run(tool("hadolint"), deploy / "docker" / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout


def test_dockerfile__has_two_stages_no_root_and_the_settings_of_workers(deploy: Path) -> None:
    text = (deploy / "docker" / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM \$\{BASE\} AS ", text, flags=re.M)) == 2
    assert re.search(r"^ARG BASE=python:\d+\.\d+\.\d+-slim-\w+$", text, flags=re.M)
    assert re.findall(r"^USER (.*)$", text, flags=re.M) == ["10001:10001"]
    settings = dict(re.findall(r"^ {4}(\w+)=(\S+)", text, flags=re.M))
    assert settings.items() >= WORKER_ENVIRONMENT.items()


def test_dockerignore__lets_in_what_the_dockerfile_copies(deploy: Path, repository: Path) -> None:
    ignore = (repository / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    text = (deploy / "docker" / "Dockerfile").read_text()
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, flags=re.M)
        for word in line.split()[:-1]
    }
    assert copied == allowed
    assert all((repository / one).exists() for one in copied)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path != "/missing" else 404)
        self.end_headers()
        self.wfile.write(b"ok" if self.path == "/health" else b"<html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answer) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def health(deploy: Path, url: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, deploy / "docker" / "health.py"],
        env={**os.environ, "SCALEBRAIN_HEALTH_URL": url, **more},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_health__is_what_the_http_port_says(deploy: Path, server: str) -> None:
    assert health(deploy, "").returncode == 0
    assert health(deploy, f"{server}/health").returncode == 0
    assert health(deploy, f"{server}/other").returncode == 1
    assert "404" in health(deploy, f"{server}/missing").stderr
    assert health(deploy, "http://127.0.0.1:1/health").returncode == 1
    assert "expected http" in health(deploy, "file:///etc/passwd").stderr


def test_health__asks_no_proxy(deploy: Path, server: str) -> None:
    done = health(deploy, f"{server}/health", http_proxy="http://127.0.0.1:1", no_proxy="")
    assert done.returncode == 0, done.stderr


def test_check_variant__refuses_the_other_build_of_torch(deploy: Path) -> None:
    import torch

    found, other = ("cuda", "cpu") if torch.version.cuda else ("cpu", "cuda")
    script = deploy / "docker" / "check_variant.py"
    assert run(sys.executable, script, found).returncode == 0
    refused = run(sys.executable, script, other)
    assert refused.returncode == 1
    assert "TORCH_INDEX" in refused.stderr
