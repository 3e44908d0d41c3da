"""Scrape settings, alerts and the dashboard name what Dask really tells."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from tests.conftest import need
from tests.deploy.conftest import documents

_NAME = re.compile(r"\b(?:dask|process|python)_[a-z_]+\b")


@pytest.fixture(scope="module")
def told() -> set[str]:
    """Names of the numbers that a scheduler and a worker expose."""
    need("prometheus_client")
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert client.gather(client.map(abs, range(5), pure=False)) == list(range(5))
        (worker,) = client.scheduler_info()["workers"].values()
        ports = (cluster.scheduler.http_server.port, worker["services"]["dashboard"])
        names: set[str] = set()
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                names |= set(re.findall(r"^# TYPE (\S+) ", answer.read().decode(), flags=re.M))
    return names


def test_alerts__name_what_dask_tells(deploy: Path, told: set[str]) -> None:
    (alerts,) = documents(deploy / "observability" / "alerts.yml")
    (group,) = alerts["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    used = {name for rule in group["rules"] for name in _NAME.findall(rule["expr"])}
    assert len(used) > 4
    assert used <= told
    assert all(rule["annotations"]["summary"] for rule in group["rules"])


def test_dashboard__names_what_dask_tells(deploy: Path, told: set[str]) -> None:
    dashboard = json.loads((deploy / "observability" / "grafana_dashboard.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    used = {name for expression in expressions for name in _NAME.findall(expression)}
    assert len(used) > 8
    assert used <= told
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_scrape__of_kubernetes_keeps_the_ports_of_the_manifests(deploy: Path) -> None:
    (settings,) = documents(deploy / "observability" / "prometheus.yml")
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
    (keep,) = [r for r in jobs["dask-kubernetes"]["relabel_configs"] if r.get("action") == "keep"]
    (cluster,) = documents(deploy / "kubernetes" / "base" / "cluster.yaml")
    ports = {
        role: {p["name"] for p in cluster["spec"][role]["spec"]["containers"][0]["ports"]}
        for role in ("scheduler", "worker")
    }
    kept = set(keep["regex"].split("|"))
    assert kept & ports["scheduler"] == {"http-dashboard"}
    assert kept & ports["worker"] == {"http"}
    assert jobs["dask-kubernetes"]["kubernetes_sd_configs"][0]["namespaces"]["names"] == [
        "scalebrain"
    ]
    assert settings["rule_files"] == ["alerts.yml"]
