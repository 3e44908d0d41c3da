"""Workers on Kubernetes, by the Dask operator."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scalebrain.cluster.waiting import first_worker
from scalebrain.errors import ConfigError, ScalebrainError
from scalebrain.io.marked_yaml import read_documents

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["kubernetes_client", "read_manifest"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLL = 0.5
#: For so long the API may be unwell, as it is while it is upgraded.
_API_SECONDS = 60.0
_OPERATOR_SECONDS = 60.0
_SCHEDULER_SECONDS = 600.0
_PORT = "tcp-comm"
#: Kinds that hold what cannot be made again.
_HOLDING = ("Namespace", "PersistentVolumeClaim", "Secret")
#: Reasons for which a container waits, and goes on waiting.
_HOPELESS = (
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
)


@contextlib.contextmanager
def kubernetes_client(manifest: Path, n_workers: int | None) -> Iterator["Client"]:
    """Make the resources of a manifest, and remove those that were made.

    Parameters
    ----------
    manifest
        YAML with one ``DaskCluster``, and whatever else it needs, such as ``DaskWorkerGroup`` of
        workers with a GPU. What is in the cluster already is used as it is, and stays.
    n_workers
        Workers of the default group; None for as many as the manifest says. Those of a
        ``DaskCluster`` that is there already are as many as they are.

    Yields
    ------
    Client
        Client with at least one worker, encrypted where Dask's configuration here names
        certificates (``distributed.comm.tls``).

    Raises
    ------
    ConfigError
        When dask-kubernetes is not installed, no cluster answers, the manifest is not valid, or
        `n_workers` is given for a ``DaskCluster`` that is there already.
    ScalebrainError
        When no operator takes up the ``DaskCluster``, its scheduler does not start, or the API
        refuses something or does not answer for a minute.
    """
    try:
        import httpx
        import kr8s
        from kr8s.objects import new_class, object_from_spec
    except ImportError as error:
        raise ConfigError(
            "Kubernetes needs dask-kubernetes: pip install 'scalebrain[cluster]'."
        ) from error
    from distributed import Client
    from distributed.security import Security

    resources = read_manifest(manifest)
    try:
        api = kr8s.api()
        version = api.version()
    except (httpx.HTTPError, OSError, ValueError, kr8s.APITimeoutError, kr8s.ServerError) as error:
        raise ConfigError(f"No Kubernetes cluster answers: {error}") from error
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        # a file without contexts is an IndexError, a plugin that fails a RuntimeError
        reason = " ".join(str(error).split()).rstrip(":.")
        raise ConfigError(
            f"The credentials of Kubernetes cannot be used: {reason}. See "
            "the file of KUBECONFIG, else ~/.kube/config, and whether 'kubectl version' works."
        ) from error
    objects = [object_from_spec(one, api, allow_unknown_type=True) for one in resources]
    logger.info("Kubernetes %s", version.get("gitVersion", ""))
    cluster = next(one for one in objects if one.kind == "DaskCluster")
    security = Security()
    if n_workers is not None and _there(cluster):
        raise ConfigError(
            f"DaskCluster {cluster.name} is there already: its workers are as many as they are. "
            "Leave their number out, or scale it with kubectl."
        )
    with contextlib.ExitStack() as stack:
        for one in objects:
            _made(one, stack)
        _until_running(cluster)
        if n_workers is not None:
            group = new_class("DaskWorkerGroup", "kubernetes.dask.org/v1")
            default = f"{cluster.name}-default"
            wanted = {"spec": {"worker": {"replicas": n_workers}}}
            _of_operator(
                lambda: group.get(default, namespace=cluster.namespace, api=api).patch(wanted),
                f"DaskWorkerGroup {default}",
            )
        host, port = stack.enter_context(_scheduler(cluster, api))
        protocol = "tls" if security.get_tls_config_for_role("client")["ca_file"] else "tcp"
        try:
            client = Client(f"{protocol}://{host}:{port}", timeout=_OPERATOR_SECONDS)
        except (OSError, TypeError) as error:
            raise ConfigError(
                f"DaskCluster {cluster.name}: its scheduler does not answer over {protocol}. Where "
                "it wants certificates, name them in Dask's configuration here: "
                "distributed.comm.tls.ca-file, distributed.comm.tls.client."
            ) from error
        stack.enter_context(client)
        first_worker(client, lambda: _waiting(cluster, api))
        logger.info("workers by Kubernetes, namespace %s", cluster.namespace)
        yield client


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Read the resources of a manifest.

    Parameters
    ----------
    path
        YAML of one or more documents.

    Returns
    -------
    list of dict
        Resources in their order.

    Raises
    ------
    ConfigError
        When it cannot be read, has no or several ``DaskCluster``, or a ``Job``.
    """
    found = read_documents(path)
    for one in found:
        if not isinstance(one, dict) or not (
            {"apiVersion", "kind", "metadata"} <= set(one)
            and isinstance(one["apiVersion"], str)
            and isinstance(one["kind"], str)
        ):
            raise ConfigError(f"{path}: expected resources with apiVersion, kind and metadata.")
        if not isinstance(one["metadata"], dict) or not one["metadata"].get("name"):
            raise ConfigError(f"{path}: the metadata of a {one['kind']} has no name. Give it one.")
    clusters = [one["metadata"].get("name") for one in found if one["kind"] == "DaskCluster"]
    if len(clusters) != 1:
        raise ConfigError(f"{path}: expected one DaskCluster, found {len(clusters)}.")
    jobs = [one["metadata"].get("name") for one in found if one["kind"] == "Job"]
    if jobs:
        raise ConfigError(
            f"{path}: holds the Job {jobs[0]}, which would run beside this command. Take it out."
        )
    return found


def _made(resource: Any, stack: contextlib.ExitStack) -> None:
    """Create a resource unless it is there, and remove it at the end if it was created."""
    if _there(resource):
        logger.info("%s %s is there already", resource.kind, resource.name)
        return

    def made() -> None:
        if not _there(resource):
            resource.create()

    if resource.kind not in _HOLDING:  # before: what did not answer may have made it
        stack.callback(_removed, resource)
    _answer(made, f"{resource.kind} {resource.name}")
    logger.info("%s %s made", resource.kind, resource.name)
    if resource.kind in _HOLDING:
        logger.info("%s %s stays when this ends", resource.kind, resource.name)


def _removed(resource: Any) -> None:
    """Remove a resource; that somebody else has done so is no error."""
    import kr8s

    what = f"{resource.kind} {resource.name}"
    try:
        with contextlib.suppress(kr8s.NotFoundError):
            _answer(resource.delete, what)
    except ScalebrainError as error:  # the work is done, or something else has ended it
        logger.warning("%s. %s stays: remove it with kubectl delete", error, what)


def _there(resource: Any) -> bool:
    """Whether a resource is in the cluster; to `exists` of kr8s every failure means that not."""
    import kr8s

    try:
        _answer(resource.refresh, f"{resource.kind} {resource.name}")
    except kr8s.NotFoundError:
        return False
    return True


def _answer(ask: Callable[[], T], what: str) -> T:
    """Ask the API, and again while it is unwell; what it refuses is an error."""
    import httpx
    import kr8s

    end = time.monotonic() + _API_SECONDS
    while True:
        try:
            return ask()
        except kr8s.ServerError as error:
            code = 0 if error.response is None else error.response.status_code
            if code < 500 and code != httpx.codes.TOO_MANY_REQUESTS:
                raise ConfigError(f"{what}: the cluster refuses it: {error}") from error
            failed: Exception = error
        except (httpx.HTTPError, kr8s.APITimeoutError) as error:
            failed = error
        if time.monotonic() > end:
            raise ScalebrainError(
                f"{what}: the API of Kubernetes has not answered for {_API_SECONDS:g} s: {failed}"
            ) from failed
        time.sleep(_POLL)


def _of_operator(ask: Callable[[], T], what: str) -> T:
    """Ask for what the operator makes of a cluster."""
    import kr8s

    try:
        return _answer(ask, what)
    except kr8s.NotFoundError as error:
        raise ScalebrainError(
            f"{what}: the operator has not made it, or it was removed. See the operator's logs."
        ) from error


def _until_running(cluster: Any) -> None:
    """Wait for the operator, then for the scheduler."""
    begin = time.monotonic()
    while True:
        if not _there(cluster):
            raise ScalebrainError(f"DaskCluster {cluster.name} was removed while it started.")
        phase = cluster.raw.get("status", {}).get("phase", "")
        if phase == "Running":
            return
        waited = time.monotonic() - begin
        if not phase and waited > _OPERATOR_SECONDS:
            raise ScalebrainError(
                f"DaskCluster {cluster.name}: no operator has taken it up in "
                f"{_OPERATOR_SECONDS:g} s. Install the Dask operator, or see its logs."
            )
        if waited > _SCHEDULER_SECONDS:
            raise ScalebrainError(
                f"DaskCluster {cluster.name}: its scheduler is not running after "
                f"{_SCHEDULER_SECONDS:g} s (phase {phase}). See the pods' events."
            )
        time.sleep(_POLL)


def _waiting(cluster: Any, api: Any) -> str:
    """Say what is waited for; a worker that cannot start is an error."""
    labels = {"dask.org/cluster-name": cluster.name, "dask.org/component": "worker"}
    pods = _answer(
        lambda: list(api.get("pods", namespace=cluster.namespace, label_selector=labels)),
        f"Pods of DaskCluster {cluster.name}",
    )
    for pod in pods:
        for status in pod.raw.get("status", {}).get("containerStatuses", ()):
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _HOPELESS:
                raise ScalebrainError(
                    f"Pod {pod.name} cannot start: {waiting['reason']}. "
                    f"{waiting.get('message', '')}".strip()
                )
    return f"DaskCluster {cluster.name} has {len(pods)} pods of workers"


@contextlib.contextmanager
def _scheduler(cluster: Any, api: Any) -> Iterator[tuple[str, int]]:
    """Host and port of the scheduler: the service's inside the cluster, else forwarded."""
    from kr8s.objects import Service

    name = f"{cluster.name}-scheduler"
    service = _of_operator(
        lambda: Service.get(name, namespace=cluster.namespace, api=api), f"Service {name}"
    )
    ports = {one.get("name"): int(one["port"]) for one in service.raw["spec"]["ports"]}
    if _PORT not in ports:
        raise ConfigError(
            f"Service {name} has no port named {_PORT}, the scheduler's. Give it one in the "
            "manifest."
        )
    port = ports[_PORT]
    host = f"{service.name}.{service.namespace}"
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror:
        forward = service.portforward(port, local_port="auto")
        forward.start()
        try:
            yield "127.0.0.1", int(forward.local_port)
        finally:
            forward.stop()
    else:
        yield host, port
