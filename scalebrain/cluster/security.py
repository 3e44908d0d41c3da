"""TLS between scheduler and workers."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebrain.errors import ConfigError

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = ["transport"]


@contextlib.contextmanager
def transport(tls: bool, shared_directory: str) -> Iterator[dict[str, Any]]:
    """Arguments of a dask-jobqueue cluster that say how its processes talk.

    Parameters
    ----------
    tls
        Whether they talk over TLS.
    shared_directory
        Folder that all nodes see; empty for ``~/.scalebrain``. The certificates of this run lie
        in a folder of their own inside, which nobody else may read, and are gone at the end.

    Yields
    ------
    dict
        ``security`` and ``protocol``; empty without TLS.

    Raises
    ------
    ConfigError
        When the folder cannot be made, or there is nothing to make certificates with.
    """
    if not tls:
        yield {}
        return
    from distributed.security import Security

    configured = Security()
    if configured.get_tls_config_for_role("scheduler")["ca_file"]:  # of Dask's own configuration
        yield {"security": configured, "protocol": "tls://"}
        return
    place = Path(shared_directory or "~/.scalebrain").expanduser()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="tls-", dir=place)
    except OSError as error:
        raise ConfigError(
            f"{place}: cannot be written: {error.strerror}. Give a shared_directory that all nodes "
            "see, for the certificates."
        ) from error
    with folder as private:
        yield {"security": _certificates(Path(private)), "protocol": "tls://"}


def _certificates(folder: Path) -> "Security":
    """One authority and one certificate for all processes of a run, in files of their own."""
    from distributed.security import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        raise ConfigError(
            "Certificates are made with the package cryptography: pip install cryptography."
        ) from error
    place = {}
    for role in ("ca_file", "worker_cert", "worker_key"):
        path = folder / f"{role}.pem"
        path.touch(mode=0o600)
        path.write_text(getattr(made, f"tls_{role}"), encoding="ascii")
        place[role] = str(path)
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=place["ca_file"],
        **{f"tls_{role}_cert": place["worker_cert"] for role in roles},
        **{f"tls_{role}_key": place["worker_key"] for role in roles},
    )
