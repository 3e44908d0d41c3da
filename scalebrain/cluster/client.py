"""The Dask client that a study runs on: this machine, a scheduler, or a cluster's engine."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scalebrain.cluster.kubernetes import kubernetes_client, read_manifest
from scalebrain.cluster.local import local_client, parsed_memory
from scalebrain.cluster.profiles import read_profile
from scalebrain.cluster.waiting import NO_WORKERS, first_worker, no_workers, no_workers_limit
from scalebrain.errors import ConfigError, ScalebrainError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ENGINES", "check_client", "open_client"]

logger = logging.getLogger(__name__)

#: Beginnings of a scheduler's specification, and what follows.
ENGINES = {
    "slurm:": "a profile",
    "gateway:": "the URL of a dask-gateway",
    "kubernetes:": "a file with a DaskCluster",
    "tcp://": "a running scheduler",
    "tls://": "a running scheduler, encrypted",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_client(
    spec: str | None = None,
    *,
    n_workers: int | None = None,
    memory: str | int | None = None,
    profiles: str | Path | None = None,
) -> None:
    """Refuse what :func:`open_client` would refuse before it asks a scheduler or an engine.

    Parameters
    ----------
    spec, n_workers, memory, profiles
        As for :func:`open_client`.

    Raises
    ------
    ConfigError
        When `spec` is not known, its profile or file is not valid, or another argument is given
        where it means nothing.
    """
    if n_workers is not None and n_workers < 1:
        raise ConfigError(f"{n_workers} workers: expected 1 or more.")
    if profiles is not None and not (spec or "").startswith("slurm:"):
        raise ConfigError(
            f"{profiles}: profiles are those of slurm:PROFILE. Give it as the scheduler, or leave "
            "the profiles out."
        )
    if memory is not None:
        parsed_memory(memory)
        if spec is not None:
            _refuse_memory(spec)
    if spec is None or spec == "threads":
        return
    engine, _, rest = spec.partition(":")
    if _is_address(spec):
        if n_workers is not None:
            raise ConfigError(
                "The workers of a running scheduler are as many as they are. Leave their number "
                "out, or the scheduler."
            )
    elif engine == "slurm" and rest:
        read_profile(rest, profiles)
    elif engine == "kubernetes" and rest:
        read_manifest(Path(rest))
    elif engine != "gateway" or not rest:
        known = "".join(f"; {start}... ({what})" for start, what in ENGINES.items())
        raise ConfigError(
            f"Scheduler '{spec}' is not known. Give nothing for this machine, 'threads'{known}."
        )


def _is_address(spec: str) -> bool:
    """Whether it names a running scheduler."""
    return "://" in spec and spec.partition(":")[0] in ("tcp", "tls", "ws", "wss", "ucx", "ucxx")


@contextlib.contextmanager
def open_client(
    spec: str | None = None,
    *,
    n_workers: int | None = None,
    memory: str | int | None = None,
    profiles: str | Path | None = None,
) -> Iterator["Client | None"]:
    """Open the Dask client that a study runs on, and close what was opened.

    Parameters
    ----------
    spec
        None for worker processes on this machine, one a core as far as memory allows
        (container limits respected); ``"threads"`` for no cluster at all; the address of a
        running scheduler, e.g. ``"tls://10.0.0.1:8786"``, which is left running;
        ``"slurm:NAME"`` for jobs of SLURM as a profile describes them; ``"gateway:URL"`` for a
        new cluster of a dask-gateway; or ``"kubernetes:FILE"`` for the ``DaskCluster`` of a
        manifest, made by the Dask operator.
    n_workers
        How many workers; None for one a core of this machine, for as many as the work needs
        within the limits of a profile or gateway, and for the replicas of a manifest. Those of
        a scheduler or ``DaskCluster`` that is there already are as many as they are.
    memory
        Memory of this machine that its workers may use together, in bytes or as ``"8GB"``; None
        for all of it. It also bounds how many workers there are when `n_workers` is None.
    profiles
        YAML file of the profiles; None for that of ``SCALEBRAIN_PROFILES``, else
        ``~/.config/scalebrain/profiles.yaml``.

    Yields
    ------
    Client or None
        None for ``"threads"``. On a cluster at least one worker has come.

    Raises
    ------
    ConfigError
        When `spec` is none of these, its profile or file is not valid, no scheduler answers, the
        engine refuses the jobs, or `n_workers`, `memory` or `profiles` is given where it means
        nothing.
    ScalebrainError
        When all jobs ended before a worker came, and in the block when workers or their scheduler
        are lost for good.
    """
    check_client(spec, n_workers=n_workers, memory=memory, profiles=profiles)
    limit = None if memory is None else parsed_memory(memory)
    if spec is None:
        with _settings_kept(), local_client(n_workers, limit) as client, _losses_told(client):
            yield client
        return
    if spec == "threads":
        import dask

        with dask.config.set({} if n_workers is None else {"num_workers": n_workers}):
            yield None
        return
    from distributed.utils import silence_logging_cmgr

    with (
        _settings_kept(spec),
        silence_logging_cmgr(logging.CRITICAL),  # what it says of a lost worker is said here
        _cluster_client(spec, n_workers, profiles) as client,
        _losses_told(client),
    ):
        yield client


@contextlib.contextmanager
def _settings_kept(spec: str = "") -> Iterator[None]:
    """Say how long tasks wait without workers; leave Dask's settings as they were.

    The default scheduler too: a client that lost its own does not. SLURM replaces jobs that
    end, and the new ones may be in its queue for long.
    """
    import dask
    import distributed  # noqa: F401  (its defaults before what is set: else they go with that)

    limit = no_workers_limit("24 hours" if spec.startswith("slurm:") else "30 minutes")
    with dask.config.set({"scheduler": dask.config.get("scheduler", None), NO_WORKERS: limit}):
        yield


@contextlib.contextmanager
def _losses_told(client: "Client") -> Iterator[None]:
    """Say what to do when workers or their scheduler are lost for good."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import NoValidWorkerError, NoWorkerError

    try:
        yield
    except (NoWorkerError, NoValidWorkerError) as error:
        raise no_workers(f"Task {error.args[0]}") from error
    except KilledWorker as error:
        raise ScalebrainError(
            f"Task {error.args[0]} died with every worker that took it, most often for want of "
            "memory. Give workers more of it, and run the same command again: it goes on."
        ) from error
    except (CancelledError, CommClosedError) as error:
        if client.status == "running":
            raise ScalebrainError(
                "Workers went on dying with what they were given. What is done is kept: see their "
                "logs, and run the same command again, which goes on."
            ) from error
        raise ScalebrainError(
            "The scheduler is gone, or the connection to it. What is done is kept: run the same "
            "command again on one that runs, and it goes on."
        ) from error


def _refuse_memory(spec: str) -> None:
    """Say where the memory of workers that are not on this machine is said."""
    if spec == "threads":
        raise ConfigError(
            "Nothing bounds the memory of threads. Leave the memory out, or the scheduler: "
            "then workers of this machine keep within it."
        )
    raise ConfigError(
        "The memory of a cluster's workers stands in its profile or manifest, and those of a "
        "running scheduler have theirs already. Leave the memory out, or the scheduler."
    )


@contextlib.contextmanager
def _cluster_client(
    spec: str, n_workers: int | None, profiles: str | Path | None
) -> Iterator["Client"]:
    """Client of a scheduler that is not one of this machine."""
    if _is_address(spec):
        with _running_scheduler(spec) as client:
            yield client
        return
    engine, _, rest = spec.partition(":")
    if engine == "slurm":
        from scalebrain.cluster.slurm import slurm_client

        opened = slurm_client(read_profile(rest, profiles), rest, n_workers)
    elif engine == "gateway":
        from scalebrain.cluster.gateway import gateway_client

        opened = gateway_client(rest, n_workers)
    else:
        opened = kubernetes_client(Path(rest), n_workers)
    with opened as client:
        yield client


@contextlib.contextmanager
def _running_scheduler(address: str) -> Iterator["Client"]:
    """Client of a scheduler that somebody else has started, and that goes on."""
    from distributed import Client

    try:
        host = urlsplit(address).hostname
        if not address.startswith(("tls://", "wss://")) and host not in _LOOPBACK:
            logger.warning("%s is not encrypted: whoever is on that network can run code", address)
        client = Client(address)  # waits as long as distributed.comm.timeouts.connect says
    except (OSError, OverflowError, ValueError, TypeError) as error:
        # a malformed address and a protocol that Dask does not know are a ValueError, a port that
        # is too large an OverflowError, TLS without certificates a TypeError
        reason = str(error).splitlines()[0]
        raise ConfigError(f"No Dask scheduler answers at {address}: {reason}") from error
    with client:
        logger.info("scheduler %s; dashboard at %s", address, client.dashboard_link)
        first_worker(client, lambda: address)
        yield client
