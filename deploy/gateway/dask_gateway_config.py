"""Configuration of dask-gateway: clusters for several people, within limits, over TLS.

On one machine: ``dask-gateway-server --config dask_gateway_config.py``. In Kubernetes Dask's own
chart runs the gateway, and takes this file as ``gateway.extraConfig``: SCALEBRAIN_GATEWAY is then
``kubernetes``. The gateway makes a certificate for every cluster; scheduler, workers and clients
talk over TLS, whatever is set here.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821 - dask-gateway-server runs this file

on_kubernetes = os.environ.get("SCALEBRAIN_GATEWAY") == "kubernetes"

# What the gateway starts when nobody says otherwise are dask-scheduler and dask-worker, which Dask
# no longer has.
dask = ["dask"] if on_kubernetes else [str(Path(sys.executable).with_name("dask"))]
c.ClusterConfig.scheduler_cmd = [*dask, "scheduler"]
c.ClusterConfig.worker_cmd = [*dask, "worker"]

# One worker a core, as scalebrain's own.
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.worker_threads = 1
c.ClusterConfig.worker_memory = "4 G"
c.ClusterConfig.scheduler_cores = 1
c.ClusterConfig.scheduler_memory = "4 G"

# The largest cluster that one person gets, and how long it may stand idle (s).
c.ClusterConfig.cluster_max_workers = 64
c.ClusterConfig.cluster_max_cores = 65
c.ClusterConfig.cluster_max_memory = "300 G"
c.ClusterConfig.idle_timeout = 3600.0

# glibc returns large blocks to the system at once, and each scan would pay for them anew. A worker
# with too little memory is to die, which is told, and not to pause for ever.
c.ClusterConfig.environment = {
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

if on_kubernetes:
    restricted = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    closed = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    in_pod = "/tmp"  # noqa: S108  # nosec B108
    for role in ("worker", "scheduler"):
        pod = {
            "automountServiceAccountToken": False,
            "securityContext": restricted,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        container = {
            "command": ["dumb-init", "--"],  # not the image's own: the gateway gives arguments
            "securityContext": closed,
            "volumeMounts": [{"name": "tmp", "mountPath": in_pod}],
            "workingDir": in_pod,
        }
        setattr(c.KubeClusterConfig, f"{role}_extra_pod_config", pod)
        setattr(c.KubeClusterConfig, f"{role}_extra_container_config", container)
else:
    # All clusters run as the account that runs the gateway: for one person, or people who trust
    # each other. LocalBackend gives each their own account, and has to run as root.
    c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
    c.LocalBackend.inherited_environment = ["PATH", "VIRTUAL_ENV"]
    # Only this machine reaches it. Elsewhere use ssh -L, or give an address with a certificate.
    c.Proxy.address = os.environ.get("SCALEBRAIN_GATEWAY_ADDRESS", "127.0.0.1:8000")
    c.Proxy.tls_cert = os.environ.get("SCALEBRAIN_GATEWAY_CERT", "")
    c.Proxy.tls_key = os.environ.get("SCALEBRAIN_GATEWAY_KEY", "")
    c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
    password = Path(os.environ["SCALEBRAIN_GATEWAY_PASSWORD_FILE"]).read_text(encoding="utf-8")
    c.SimpleAuthenticator.password = password.strip()
