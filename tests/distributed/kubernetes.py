"""An API of Kubernetes in memory, and a kubelet that runs the containers as processes.

No Kubernetes runs on a test machine: the API is kmock's emulator, what it lacks for the Dask
operator (selectors by label, uids) is added here. The operator, scheduler, workers and clients
are the real ones. ``python -m tests.distributed.kubernetes PORT LOGS`` serves until it is ended.
"""

import asyncio
import contextlib
import math
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import attrs
import kmock

_GROUP = "kubernetes.dask.org/v1"
_KINDS = {
    f"{_GROUP}/daskclusters": ("DaskCluster", "daskcluster"),
    f"{_GROUP}/daskworkergroups": ("DaskWorkerGroup", "daskworkergroup"),
    f"{_GROUP}/daskjobs": ("DaskJob", "daskjob"),
    f"{_GROUP}/daskautoscalers": ("DaskAutoscaler", "daskautoscaler"),
    "apps/v1/deployments": ("Deployment", "deployment"),
    "v1/services": ("Service", "service"),
    "v1/pods": ("Pod", "pod"),
    "v1/events": ("Event", "event"),
    "v1/configmaps": ("ConfigMap", "configmap"),
    "v1/namespaces": ("Namespace", "namespace"),
    "apiextensions.k8s.io/v1/customresourcedefinitions": (
        "CustomResourceDefinition",
        "customresourcedefinition",
    ),
}
_START = 1.0
_VERSION = {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
_VERBS = {"list", "watch", "get", "create", "patch", "update", "delete"}
_VARIABLE = re.compile(r"\$\((\w+)\)")
_SERVICE = re.compile(r"[\w-]+-scheduler(\.[\w-]+)*")


@attrs.define(kw_only=True)
class Api(kmock.KubernetesEmulator):
    """The emulator, with selectors by label and uids."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.fallback["get /version/"] << self._serve_server_version

    async def _handle(self, request):
        if request.resource is not None and request.action == kmock.action.CREATE:
            meta = request.data.setdefault("metadata", {})
            if "name" not in meta:
                meta["name"] = meta.get("generateName", "") + uuid.uuid4().hex[:8]
            meta.setdefault("uid", str(uuid.uuid4()))
            meta.setdefault("resourceVersion", "1")
            meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            kind = _KINDS.get(_path(request.resource))
            if kind is not None:
                request.data.setdefault("kind", kind[0])
                request.data.setdefault("apiVersion", _path(request.resource).rpartition("/")[0])
        return await super()._handle(request)

    async def _serve_server_version(self, request):
        return {**await super()._serve_server_version(request), **_VERSION}

    async def _serve_list(self, request):
        answer = dict(await super()._serve_list(request))
        selector = request.params.get("labelSelector", "")
        wanted = [part.split("=", 1) for part in selector.split(",") if "=" in part]
        answer["items"] = [
            item
            for item in answer["items"]
            if all(
                item.get("metadata", {}).get("labels", {}).get(key.strip()) == value.strip("= ")
                for key, value in wanted
            )
        ]
        return answer


def _path(resource: Any) -> str:
    return "/".join(part for part in (resource.group, resource.version, resource.plural) if part)


class Kubelet:
    """Run the container of every Deployment, and end it when the Deployment goes."""

    def __init__(self, api: Api, server: kmock.Server, logs: Path) -> None:
        self.api, self.server, self.logs = api, server, logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.since: dict[str, float] = {}

    async def run(self) -> None:
        try:
            while True:
                await self.collect_garbage()
                self.once()
                await self.tell_services()
                await asyncio.sleep(0.2)
        finally:
            for process in self.running.values():
                process.terminate()
            for process in self.running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()

    async def tell_services(self) -> None:
        """Give every Service the status that it has once its pod runs."""
        for name, raw in self._live("services"):
            if "status" in raw:
                continue
            namespace = raw["metadata"]["namespace"]
            if time.monotonic() < self.since.get(name, math.inf) + _START:
                continue
            url = f"/api/v1/namespaces/{namespace}/services/{name}"
            await self.server.client.patch(url, json={"status": {"loadBalancer": {}}})

    async def collect_garbage(self) -> None:
        """Delete what belonged to a cluster that is gone."""
        clusters = {name for name, _ in self._live("daskclusters")}
        for plural in ("deployments", "services", "daskworkergroups"):
            for name, raw in self._live(plural):
                meta = raw["metadata"]
                if meta["labels"]["dask.org/cluster-name"] not in clusters:
                    api = next(path for path in _KINDS if path.endswith(plural))
                    group, _, _ = api.rpartition("/")
                    root = f"/apis/{group}" if "/" in group else f"/api/{group}"
                    url = f"{root}/namespaces/{meta['namespace']}/{plural}/{name}"
                    await self.server.client.delete(url)

    def _live(self, plural: str) -> list[tuple[str, dict[str, Any]]]:
        """Name and content of all objects of a kind."""
        return [
            (name, history.last.raw)
            for (resource, _, name), history in list(self.api.objects.items())
            if resource.plural == plural and not history.deleted
        ]

    def once(self) -> None:
        """Start and end processes."""
        wanted = dict(self._live("deployments"))
        for name, deployment in wanted.items():
            if name not in self.running:
                self.running[name] = self._start(name, deployment)
                self.since[name] = time.monotonic()
        for name in [name for name in self.running if name not in wanted]:
            self.running.pop(name).terminate()

    def _start(self, name: str, deployment: dict[str, Any]) -> "subprocess.Popen[bytes]":
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        given = {item["name"]: item["value"] for item in container.get("env", ())}
        given = {key: _SERVICE.sub("127.0.0.1", value) for key, value in given.items()}
        arguments = [
            _VARIABLE.sub(lambda found: given[found[1]], part) for part in container["args"]
        ]
        dask, *rest = arguments
        assert dask == "dask"
        with (self.logs / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *rest],
                env=os.environ | given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


async def serve(port: int, logs: Path) -> None:
    async with Api() as api, kmock.Server(api, port=port) as server:
        for path, (kind, singular) in _KINDS.items():
            api.resources[path] = kmock.ResourceInfo(
                kind=kind,
                singular=singular,
                namespaced=kind not in ("Namespace", "CustomResourceDefinition"),
                shortnames=set(),
                categories=set(),
                subresources={"status"},
                verbs=_VERBS,
            )
        await Kubelet(api, server, logs).run()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
