"""The gateway's configuration: every setting exists, and it starts the dask that is pinned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from tests.conftest import need


class _Section(SimpleNamespace):
    """Settings of one class."""


class _Config:
    def __getattr__(self, name: str) -> _Section:
        section = _Section()
        setattr(self, name, section)
        return section


def load(path: Path) -> dict[str, dict[str, Any]]:
    config = _Config()
    exec(compile(path.read_text(), str(path), "exec"), {"get_config": lambda: config})
    return {name: vars(section) for name, section in vars(config).items()}


@pytest.fixture(params=["local", "kubernetes"])
def settings(
    request: pytest.FixtureRequest, deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    (tmp_path / "password").write_text("not a secret\n")
    monkeypatch.setenv("SCALEBRAIN_GATEWAY_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("SCALEBRAIN_GATEWAY", request.param)
    for name in ("ADDRESS", "CERT", "KEY"):
        monkeypatch.delenv(f"SCALEBRAIN_GATEWAY_{name}", raising=False)
    return load(deploy / "gateway" / "dask_gateway_config.py")


def test_config__starts_the_commands_that_dask_has(settings: dict[str, dict[str, Any]]) -> None:
    common = settings["ClusterConfig"]
    assert common["scheduler_cmd"][-1] == "scheduler"
    assert common["worker_cmd"][-1] == "worker"
    assert Path(common["worker_cmd"][0]).name == "dask"
    assert common["environment"] == WORKER_ENVIRONMENT
    assert common["idle_timeout"] > 0


def test_config__local_is_of_this_machine_alone(
    deploy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("not a secret\n")
    monkeypatch.setenv("SCALEBRAIN_GATEWAY_PASSWORD_FILE", str(tmp_path / "password"))
    path = deploy / "gateway" / "dask_gateway_config.py"
    settings = load(path)
    assert settings["Proxy"]["address"].startswith("127.0.0.1:")
    assert settings["SimpleAuthenticator"]["password"] == "not a secret"
    monkeypatch.delenv("SCALEBRAIN_GATEWAY_PASSWORD_FILE")
    with pytest.raises(KeyError):  # no password, no gateway
        load(path)


def test_config__pods_are_restricted(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEBRAIN_GATEWAY", "kubernetes")
    pods = load(deploy / "gateway" / "dask_gateway_config.py")["KubeClusterConfig"]
    for role in ("worker", "scheduler"):
        assert pods[f"{role}_extra_pod_config"]["securityContext"]["runAsNonRoot"] is True
        container = pods[f"{role}_extra_container_config"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["command"] == ["dumb-init", "--"]  # the image's own would be scalebrain


def test_config__every_setting_exists(settings: dict[str, dict[str, Any]]) -> None:
    need("dask_gateway_server")
    from dask_gateway_server import app, auth
    from dask_gateway_server.backends import base, local
    from dask_gateway_server.proxy import core

    classes = {
        "ClusterConfig": base.ClusterConfig,
        "DaskGateway": app.DaskGateway,
        "LocalBackend": local.LocalBackend,
        "Proxy": core.Proxy,
        "SimpleAuthenticator": auth.SimpleAuthenticator,
    }
    if "KubeClusterConfig" in settings:
        need("kubernetes_asyncio")
        from dask_gateway_server.backends.kubernetes import backend

        classes["KubeClusterConfig"] = backend.KubeClusterConfig
    for name, values in settings.items():
        assert values.keys() <= set(classes[name].class_trait_names(config=True)), name
        for key, value in values.items():
            classes[name].class_traits()[key]._validate(classes[name](), value)
