"""Manifests: rendered by kustomize, valid without leniency, and as closed as they say."""

import importlib
import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from dask.utils import parse_bytes

from scalebrain.cli import cli
from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from tests.conftest import missing, need
from tests.deploy.conftest import documents, run, tool

RENDERED = ("base", "overlays/s3", "overlays/gcs")
CUSTOM = ("DaskCluster", "DaskWorkerGroup")
UID = 10001


@pytest.fixture(scope="module", params=RENDERED)
def manifests(request: pytest.FixtureRequest, deploy: Path) -> list[dict[str, Any]]:
    return render(deploy / "kubernetes" / request.param)


def render(folder: Path) -> list[dict[str, Any]]:
    done = run(tool("kubectl"), "kustomize", folder)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    assert len(found) == 1
    return found[0]


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Specification of every pod, whoever makes it."""
    cluster = one(manifests, "DaskCluster", "scalebrain")["spec"]
    return {
        "scheduler": cluster["scheduler"]["spec"],
        "worker": cluster["worker"]["spec"],
        "gpu": one(manifests, "DaskWorkerGroup", "scalebrain-gpu")["spec"]["worker"]["spec"],
        "study": one(manifests, "Job", "scalebrain-study")["spec"]["template"]["spec"],
    }


def test_manifests__core_resources_are_valid_strictly(manifests: list[dict[str, Any]]) -> None:
    need("kubernetes_validate")
    import kubernetes_validate

    core = [m for m in manifests if not m["apiVersion"].startswith("kubernetes.dask.org")]
    wrapped = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        for name, spec in pods(manifests).items()
    ]
    service = one(manifests, "DaskCluster", "scalebrain")["spec"]["scheduler"]["service"]
    wrapped.append(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": service}
    )
    assert len(core) > 10
    for manifest in core + wrapped:
        kubernetes_validate.validate(manifest, "1.30", strict=True)
    broken = {**wrapped[0], "spec": {**wrapped[0]["spec"], "runAsRoot": True}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.30", strict=True)


def test_manifests__custom_resources_are_valid_by_the_operators_definitions(
    manifests: list[dict[str, Any]],
) -> None:
    for kind in CUSTOM:
        check_custom(kind, [m for m in manifests if m["kind"] == kind])


def check_custom(kind: str, found: list[dict[str, Any]]) -> None:
    """Validate resources of a kind by the operator's definition of it."""
    need("dask_kubernetes")
    import dask_kubernetes

    chart = "operator/deployment/helm/dask-kubernetes-operator/crds"
    path = Path(dask_kubernetes.__file__).parent / chart / f"{kind.lower()}.yaml"
    if not path.exists():
        missing(f"the definition of {kind} in dask-kubernetes", "make setup-dev")
    (definition,) = documents(path)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    assert found
    for manifest in found:
        assert manifest["apiVersion"] == "kubernetes.dask.org/v1"
        jsonschema.validate(manifest, schema)
        assert not unknown(manifest["spec"], schema["properties"]["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found[0], "spec": {}}, schema)


def unknown(value: Any, schema: dict[str, Any], path: str = "spec") -> list[str]:
    """Keys that a structural schema does not have: the API server would drop them silently."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    if isinstance(value, dict):
        known = schema.get("properties")
        if known is None:
            return []
        out = [f"{path}.{key}" for key in value if key not in known]
        for key in value.keys() & known.keys():
            out += unknown(value[key], known[key], f"{path}.{key}")
        return out
    if isinstance(value, list):
        return [u for item in value for u in unknown(item, schema.get("items", {}), f"{path}[]")]
    return []


def test_pods__are_restricted(manifests: list[dict[str, Any]]) -> None:
    for name, pod in pods(manifests).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["serviceAccountName"] == "scalebrain"
        of_pod = pod["securityContext"]
        assert (of_pod["runAsNonRoot"], of_pod["runAsUser"]) == (True, UID)
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        assert "cpu" in resources["requests"]
        kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
        assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")


def test_pods__no_secret_stands_in_a_manifest(manifests: list[dict[str, Any]]) -> None:
    assert not [m for m in manifests if m["kind"] == "Secret"]
    for pod in pods(manifests).values():
        for variable in pod["containers"][0].get("env", []):
            assert not {"KEY", "SECRET", "TOKEN", "PASSWORD"} & set(variable["name"].split("_"))


def test_pods__talk_tls_alone(manifests: list[dict[str, Any]]) -> None:
    text = json.dumps([pods(manifests), one(manifests, "Job", "scalebrain-study")])
    assert "tcp://" not in text
    assert text.count("tls://scalebrain-scheduler:8786") >= 5
    settings = yaml.safe_load(one(manifests, "ConfigMap", "scalebrain-dask")["data"]["dask.yaml"])
    comm = settings["distributed"]["comm"]
    assert comm["require-encryption"] is True
    assert settings["distributed"]["scheduler"]["no-workers-timeout"] == "30 minutes"
    assert set(comm["tls"]) == {"ca-file", "scheduler", "worker", "client"}
    assert settings["distributed"]["nanny"]["pre-spawn-environ"] == WORKER_ENVIRONMENT
    for pod in pods(manifests).values():
        mounts = {m["name"]: m for m in pod["containers"][0]["volumeMounts"]}
        assert mounts["tls"]["readOnly"]
        assert Path(comm["tls"]["ca-file"]).parent == Path(mounts["tls"]["mountPath"])
        (tls,) = [v["secret"] for v in pod["volumes"] if v["name"] == "tls"]
        assert tls == {"secretName": "scalebrain-tls", "defaultMode": 0o440}


def test_dask_settings__name_what_dask_knows(deploy: Path) -> None:
    import distributed

    (settings,) = documents(deploy / "kubernetes" / "base" / "dask.yaml")
    (known,) = documents(Path(distributed.__file__).parent / "distributed.yaml")

    def check(given: dict[str, Any], default: dict[str, Any]) -> None:
        assert given.keys() <= default.keys()
        for key, value in given.items():
            if isinstance(value, dict) and key != "pre-spawn-environ":
                check(value, default[key])

    check(settings, known)
    for role in ("scheduler", "worker"):
        for route in settings["distributed"][role]["http"]["routes"]:
            assert importlib.import_module(route).routes


def test_commands__are_of_the_dask_that_is_pinned(manifests: list[dict[str, Any]]) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    commands = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}
    for name, pod in pods(manifests).items():
        container = pod["containers"][0]
        if name == "study":
            continue
        assert container["command"][:3] == ["dumb-init", "--", "dask"]
        command = commands[container["command"][3]]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        given = {a.partition("=")[0] for a in container["args"] if a.startswith("--")}
        assert given <= known


def test_network__only_what_is_named_is_open(manifests: list[dict[str, Any]]) -> None:
    closed = one(manifests, "NetworkPolicy", "deny-all")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    for policy in policies:
        for rule in policy.get("ingress", []) + policy.get("egress", []):
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")
    cluster = one(manifests, "DaskCluster", "scalebrain")["spec"]
    comm = one(manifests, "NetworkPolicy", "dask")["spec"]["ingress"][0]["ports"]
    opened = {p for c in comm for p in range(c["port"], c.get("endPort", c["port"]) + 1)}
    ports = {p["name"]: p["port"] for p in cluster["scheduler"]["service"]["ports"]}
    assert ports == {"tcp-comm": 8786, "http-dashboard": 8787}  # the operator asks by these names
    args = dict(
        a[2:].split("=", 1) for a in cluster["worker"]["spec"]["containers"][0]["args"] if "=" in a
    )
    assert opened == {8786, int(args["worker-port"]), int(args["nanny-port"])}


def test_labels__reach_the_pods_that_the_policies_select(manifests: list[dict[str, Any]]) -> None:
    label = {"app.kubernetes.io/part-of": "scalebrain"}
    # the operator copies the labels of a resource to its pods
    for kind, name in (("DaskCluster", "scalebrain"), ("DaskWorkerGroup", "scalebrain-gpu")):
        assert one(manifests, kind, name)["metadata"]["labels"].items() >= label.items()
    job = one(manifests, "Job", "scalebrain-study")["spec"]["template"]["metadata"]["labels"]
    assert job.items() >= label.items()
    assert all(
        m["metadata"]["namespace"] == "scalebrain" for m in manifests if m["kind"] != "Namespace"
    )


def test_worker_groups__have_all_the_memory_of_their_pods(
    manifests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import system, worker_memory

    groups = {name: pod for name, pod in pods(manifests).items() if name in ("worker", "gpu")}
    assert len(groups) == sum(m["kind"] in CUSTOM for m in manifests)
    for name, pod in groups.items():
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        args = dict(a[2:].split("=", 1) for a in container["args"] if "=" in a)
        of_pod = parse_bytes(f"{limits['memory']}B")
        monkeypatch.setattr(system, "MEMORY_LIMIT", of_pod)  # what it is within the pod's cgroup
        found = worker_memory.parse_memory_limit(
            args.get("memory-limit", "auto"),
            int(args["nthreads"]),
            int(limits["cpu"]),
            logger=logging.getLogger(__name__),
        )
        assert found == of_pod, name


def test_worker_groups__differ_in_the_gpu_alone(manifests: list[dict[str, Any]]) -> None:
    gpu, cpu = pods(manifests)["gpu"], pods(manifests)["worker"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert set(gpu["containers"][0]["args"]) - set(cpu["containers"][0]["args"]) == {
        "--resources=GPU=1"
    }
    for pod in (gpu, cpu):
        for key in ("image", "args", "resources"):
            del pod["containers"][0][key]
    del gpu["tolerations"]
    assert gpu == cpu


def test_overlays__say_where_the_store_is_and_whose_keys(deploy: Path) -> None:
    s3 = render(deploy / "kubernetes" / "overlays" / "s3")
    gcs = render(deploy / "kubernetes" / "overlays" / "gcs")
    for manifests, scheme in ((s3, "s3://"), (gcs, "gs://")):
        store = one(manifests, "ConfigMap", "scalebrain-store")["data"]["STORE_URL"]
        assert store.startswith(scheme)
        for name, pod in pods(manifests).items():
            sources = pod["containers"][0].get("envFrom", [])
            assert bool(sources) is (name != "scheduler")
            secrets = [s["secretRef"]["name"] for s in sources if "secretRef" in s]
            assert secrets == (["scalebrain-s3"] if scheme == "s3://" and sources else [])
        policy = one(manifests, "NetworkPolicy", "bucket")["spec"]["egress"][0]
        assert "169.254.0.0/16" in policy["to"][0]["ipBlock"]["except"]
    account = one(gcs, "ServiceAccount", "scalebrain")["metadata"]["annotations"]
    assert "iam.gke.io/gcp-service-account" in account


def test_components__render_with_the_base(deploy: Path, tmp_path: Path) -> None:
    need("kubernetes_validate")
    import kubernetes_validate

    folder = deploy / "kubernetes"
    parts = [folder / "components" / name for name in ("monitoring", "cert-manager", "autoscaler")]
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "scalebrain",
        "resources": [os.path.relpath(folder / "base", tmp_path.resolve())],
        "components": [os.path.relpath(part, tmp_path.resolve()) for part in parts],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    manifests = render(tmp_path)
    kubernetes_validate.validate(one(manifests, "NetworkPolicy", "monitoring"), "1.30", strict=True)
    issued = one(manifests, "Certificate", "scalebrain-tls")["spec"]
    assert issued["secretName"] == "scalebrain-tls"
    assert {"server auth", "client auth"} <= set(issued["usages"])
    issuer = one(manifests, "Issuer", issued["issuerRef"]["name"])["spec"]
    authority = one(manifests, "Certificate", issuer["ca"]["secretName"])["spec"]
    assert authority["isCA"]
    autoscaler = one(manifests, "DaskAutoscaler", "scalebrain")
    check_custom("DaskAutoscaler", [autoscaler])
    assert one(manifests, "DaskCluster", autoscaler["spec"]["cluster"])


def test_study__options_exist(deploy: Path) -> None:
    for overlay in RENDERED:
        (script,) = pods(render(deploy / "kubernetes" / overlay))["study"]["containers"][0]["args"]
        lines = [line for line in script.splitlines() if "scalebrain " in line]
        assert lines
        for line in lines:
            words = shlex.split(line[line.index("scalebrain ") :].partition("||")[0])
            command = cli.get_command(click.Context(cli), words[1])
            assert command is not None
            known = {o for p in command.params for o in p.opts}
            assert {w for w in words[2:] if w.startswith("--")} <= known
