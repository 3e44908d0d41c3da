"""Workers by a dask-gateway."""

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scalebrain.cluster.waiting import first_worker
from scalebrain.errors import ConfigError, ScalebrainError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["gateway_client"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def gateway_client(url: str, n_workers: int | None) -> Iterator["Client"]:
    """Start a cluster of a dask-gateway, and end it.

    Parameters
    ----------
    url
        Address of the gateway, such as ``https://gateway.example.org``. Who one is, the
        configuration of dask-gateway says (``gateway.auth``), never the address.
    n_workers
        Workers; None for as many as the work needs, within the limits of the gateway.

    Yields
    ------
    Client
        Client with at least one worker; its connection is encrypted.

    Raises
    ------
    ConfigError
        When dask-gateway is not installed, no gateway answers, or it does not know who one is.
    ScalebrainError
        When the gateway does not start the cluster.
    """
    try:
        from dask_gateway import Gateway
    except ImportError as error:
        raise ConfigError(
            "A gateway needs dask-gateway: pip install 'scalebrain[cluster]'."
        ) from error
    with contextlib.ExitStack() as stack:
        with _failures_told(url):
            gateway = stack.enter_context(_once(Gateway(url)))
            # not new_cluster: one that fails leaves a gateway behind, see _once
            cluster = gateway.connect(gateway.submit(), shutdown_on_close=True)
            stack.enter_context(_once(cluster.gateway))
            stack.enter_context(cluster)
            if n_workers is None:
                cluster.adapt(minimum=1)
            else:
                cluster.scale(n_workers)
        client = stack.enter_context(cluster.get_client())

        def check() -> str:
            if client.status in ("closed", "closing"):
                raise ScalebrainError(f"{url}: the gateway ended cluster {cluster.name}.")
            return f"cluster {cluster.name}"

        first_worker(client, check)
        logger.info("workers by the gateway; dashboard at %s", cluster.dashboard_link)
        yield client


@contextlib.contextmanager
def _failures_told(url: str) -> Iterator[None]:
    """Say in one error why the gateway gives no cluster."""
    from aiohttp import ClientError, ClientResponseError
    from dask_gateway import GatewayClusterError, GatewayServerError

    who = "Who one is, Dask's configuration says: gateway.auth.type, gateway.auth.kwargs"
    try:
        yield
    except (GatewayClusterError, GatewayServerError) as error:
        raise ScalebrainError(f"{url}: the gateway started no cluster: {error}") from error
    except ClientResponseError as error:
        if error.status in (401, 403):
            raise ConfigError(
                f"{url}: the gateway does not let you in ({error.status} {error.message}). {who}."
            ) from error
        raise ConfigError(f"No dask-gateway answers at {url}: {error}") from error
    except (ClientError, OSError, ValueError) as error:
        raise ConfigError(f"No dask-gateway answers at {url}: {error}") from error
    except (AttributeError, LookupError) as error:  # of JSON without what a gateway says
        raise ConfigError(
            f"No dask-gateway answers at {url}: what does is something else ({error!r})."
        ) from error
    except (ImportError, TypeError) as error:  # of a kind of authentication
        raise ConfigError(f"{url}: no authentication: {error}. {who}.") from error


@contextlib.contextmanager
def _once(gateway: Any) -> Iterator[Any]:
    """Close a gateway, and keep it from closing itself again when it is collected.

    The second time it asks for a loop that no longer runs, which current versions of distributed
    answer with an error on the terminal.
    """
    try:
        yield gateway
    finally:
        with contextlib.suppress(RuntimeError):  # its cluster may have closed it
            gateway.close()
        gateway._asynchronous = True  # what its finalizer looks at
