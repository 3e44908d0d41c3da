"""Certificates of the script, and Dask processes that talk with them and with nobody else."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
import yaml
from distributed import Client
from distributed.security import Security

from tests.deploy.conftest import run, tool

ROLES = ("scheduler", "worker", "client")


def make(deploy: Path, folder: Path) -> Path:
    tool("openssl")
    done = run("bash", deploy / "tls" / "make_certificates.sh", folder, "2")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def certificates(deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(deploy, tmp_path_factory.mktemp("tls") / "ours")


def security(folder: Path) -> Security:
    return Security(
        tls_ca_file=str(folder / "ca.crt"),
        tls_client_cert=str(folder / "client.crt"),
        tls_client_key=str(folder / "client.key"),
        require_encryption=True,
    )


def test_certificates__are_of_the_authority_and_for_nobody_else(
    deploy: Path, certificates: Path
) -> None:
    for role in ROLES:
        file = certificates / f"{role}.crt"
        checked = run("openssl", "verify", "-CAfile", certificates / "ca.crt", file)
        assert checked.returncode == 0, checked.stderr
        text = run("openssl", "x509", "-noout", "-text", "-in", file).stdout
        assert "CA:FALSE" in text
        assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
        ssl.create_default_context().load_cert_chain(
            certificates / f"{role}.crt", certificates / f"{role}.key"
        )
    assert {path.stat().st_mode & 0o077 for path in certificates.iterdir()} == {0}
    again = run("bash", deploy / "tls" / "make_certificates.sh", certificates)
    assert again.returncode == 1
    assert "has an authority already" in again.stderr


@pytest.mark.parametrize("more", [("abc",), ("0",), ("-1",), ("2.5",), ("100000",), ("2", "3")])
def test_certificates__of_no_number_of_days_are_not_begun(
    deploy: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = run("bash", deploy / "tls" / "make_certificates.sh", tmp_path / "tls", *more)
    assert done.returncode == 2
    assert "usage: make_certificates.sh FOLDER [DAYS]" in done.stderr
    assert not (tmp_path / "tls").exists()


def test_certificates__that_fail_leave_nothing_in_the_way(
    deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tool("openssl")
    path = os.environ["PATH"]
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "openssl"
    broken.write_text(f'#!/bin/sh\n[ "$1" = genpkey ] && exec {real} "$@"\nexit 1\n')
    broken.chmod(0o755)
    folder = tmp_path / "tls"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{path}")
    failed = run("bash", deploy / "tls" / "make_certificates.sh", folder)
    assert failed.returncode == 1
    assert [one.name for one in folder.iterdir()] == ["notes"]
    monkeypatch.setenv("PATH", path)
    make(deploy, folder)
    assert len(list(folder.iterdir())) == 1 + 2 + 2 * len(ROLES) + 1


def test_certificates__are_found_in_a_folder_of_any_name(deploy: Path, tmp_path: Path) -> None:
    folder = make(deploy, tmp_path / "ours, of lab's {A}: #1 ")
    tls = yaml.safe_load((folder / "tls.yaml").read_text())["distributed"]["comm"]["tls"]
    files = [tls["ca-file"], *(tls[role][kind] for role in ROLES for kind in ("cert", "key"))]
    assert len(set(files)) == 7
    assert all(Path(file).parent == folder and Path(file).is_file() for file in files)


@pytest.fixture(scope="module")
def scheduler(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler with a worker, each a process that knows DASK_CONFIG alone."""
    folder = tmp_path_factory.mktemp("dask")
    listed = folder / "scheduler.json"
    environment = {**os.environ, "DASK_CONFIG": str(certificates / "tls.yaml")}
    dask_ = [sys.executable, "-m", "dask"]
    quiet = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    quiet += ["--host", "127.0.0.1", "--scheduler-file", str(listed)]
    commands = [
        [*dask_, "scheduler", "--protocol", "tls", "--port", "0", *quiet],
        [*dask_, "worker", "--nthreads", "1", "--no-nanny", *quiet],
    ]
    running = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
                )
            end = time.monotonic() + 60
            while not listed.exists():
                assert time.monotonic() < end, (folder / f"{number}.log").read_text()
                time.sleep(0.1)
        yield yaml.safe_load(listed.read_text())["address"]
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


def test_dask__processes_with_certificates_compute_over_tls(
    certificates: Path, scheduler: str
) -> None:
    assert scheduler.startswith("tls://")
    with Client(scheduler, security=security(certificates), set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        assert all(w.startswith("tls://") for w in client.scheduler_info()["workers"])


def test_dask__who_has_no_certificate_of_the_authority_is_refused(
    deploy: Path, tmp_path: Path, certificates: Path, scheduler: str
) -> None:
    other = make(deploy, tmp_path / "theirs")
    trusting = Security(  # believes the scheduler, and has a certificate of its own authority
        tls_ca_file=str(certificates / "ca.crt"),
        tls_client_cert=str(other / "client.crt"),
        tls_client_key=str(other / "client.key"),
        require_encryption=True,
    )
    plain = scheduler.replace("tls://", "tcp://")
    tries = [(scheduler, security(other)), (scheduler, trusting), (plain, None)]
    for address, credentials in tries:
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
            pytest.raises(OSError, match=r"(?i)timed out|connect|ssl|certificate"),
        ):
            Client(address, security=credentials, timeout="3s", set_as_default=False)
