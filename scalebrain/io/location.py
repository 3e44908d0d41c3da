"""Where a store lies: a local folder, a bucket, or anything else that fsspec opens.

The only module that knows the difference. Credentials come from the environment or the
provider's own chain; they are never part of a url, a pickle, a message or a log.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from scalebrain.errors import ConfigError, ScalebrainError, StoreError
from scalebrain.io.backends import GOOGLE, S3, Backend, backend, endpoint_of_environment
from scalebrain.io.failures import REMOTE, explain

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["Location", "Parts"]

T = TypeVar("T")

_LIKE_A_URL = re.compile(r"[\w+.-]{2,}:")
_ZARR_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.partial$")
_TEMPORARY = re.compile(rf"^\.[0-9a-f]{{32}}\.tmp$|{_ZARR_TEMPORARY.pattern}")


@dataclass(frozen=True)
class Parts:
    """Content that is read in parts.

    Parameters
    ----------
    size
        Bytes of it.
    source
        A file descriptor, or all of the content.
    """

    size: int
    source: int | memoryview

    def read(self, offset: int, size: int, room: memoryview) -> memoryview:
        """Read a part.

        Parameters
        ----------
        offset, size
            Which bytes.
        room
            Writable, `size` bytes; used for files alone.

        Returns
        -------
        memoryview
            The part, shorter where the content ends before.
        """
        if isinstance(self.source, memoryview):
            return self.source[offset : offset + size]
        return room[: self.read_into(offset, room)]

    def read_into(self, offset: int, room: memoryview) -> int:
        """Fill a buffer with what begins at `offset`; how many bytes there were."""
        if isinstance(self.source, memoryview):
            some = self.source[offset : offset + len(room)]
            room[: len(some)] = some
            return len(some)
        done = 0
        while done < len(room):
            got = os.preadv(self.source, [room[done:]], offset + done)
            if not got:
                break
            done += got
        return done


@dataclass(frozen=True)
class Location:
    """A folder of objects (keys with content), wherever it lies.

    It pickles as its url alone and opens again where it is used.

    Parameters
    ----------
    url
        Absolute local path, or ``s3://bucket/prefix``, ``gs://bucket/prefix`` and so on.
        :meth:`of` makes one from what a user gives.
    """

    url: str

    def __post_init__(self) -> None:
        """Refuse a url that cannot be used, without showing what may be a secret."""
        _check_url(self.url)

    @classmethod
    def of(cls, url: str | Path) -> "Location":
        """Location that a user names.

        Parameters
        ----------
        url
            Path, absolute or not, or a url.

        Returns
        -------
        Location
            The same place, with an absolute path.

        Raises
        ------
        ConfigError
            When it is malformed, or holds credentials.
        """
        text = str(url)
        if isinstance(url, str) and _LIKE_A_URL.match(text):
            scheme, _, rest = text.partition("://")
            if scheme.lower() not in ("file", "local"):
                return cls(f"{scheme.lower()}://{rest.rstrip('/')}")
            text = rest
        if not text:
            raise ConfigError("A store needs a path or a url, got an empty text.")
        return cls(os.path.abspath(text))

    def __str__(self) -> str:
        """Show the url."""
        return self.url

    @property
    def name(self) -> str:
        """Last part of the url."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        return REMOTE.match(self.url) is None

    def child(self, key: str) -> "Location":
        """Location of what lies below.

        Parameters
        ----------
        key
            Path below this location, with ``/``.

        Returns
        -------
        Location
            The place of `key`.
        """
        return Location(f"{self.url.rstrip('/')}/{_checked(key)}")

    def zarr_store(self, *, read_only: bool = False) -> "Store":
        """Store that ``zarr.open_group`` and ``xarray.open_zarr`` take.

        Parameters
        ----------
        read_only
            Refuse every write.

        Returns
        -------
        zarr.abc.store.Store
            Store of the keys below this location. It pickles without credentials.
        """
        return self._run(lambda backend: backend.zarr_store(read_only))

    def get(self, key: str) -> bytes | None:
        """Content of a key.

        Parameters
        ----------
        key
            Path below this location.

        Returns
        -------
        bytes or None
            All of it; None when there is no such key.
        """
        _checked(key)
        return self._run(lambda backend: backend.get(key))

    @contextmanager
    def parts(self, key: str) -> Iterator["Parts | None"]:
        """Open a key to read parts of it.

        Parameters
        ----------
        key
            Path below this location.

        Yields
        ------
        Parts or None
            Its content, of a bucket read as a whole; None when there is no such key.
        """
        if not self.is_local:
            content = self.get(key)
            yield None if content is None else Parts(len(content), memoryview(content))
            return
        try:
            file = open(Path(self.url) / _checked(key), "rb", buffering=0)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            yield None
            return
        except OSError as error:
            raise self.explain(error) from error
        with file:
            yield Parts(os.fstat(file.fileno()).st_size, file.fileno())

    def put(self, key: str, content: bytes) -> None:
        """Write a key, whether it exists or not. A reader sees the old or the new content.

        Parameters
        ----------
        key
            Path below this location.
        content
            All of it.

        Raises
        ------
        StoreError
            When it cannot be written; what was there before is still there.
        """
        _checked(key)
        self._run(lambda backend: backend.put(key, content))

    def delete(self, key: str) -> None:
        """Remove a key; one that is absent is fine.

        Parameters
        ----------
        key
            Path below this location.
        """
        _checked(key)
        self._run(lambda backend: backend.delete(key))

    def delete_prefix(self, prefix: str) -> None:
        """Remove every key below a prefix, temporary files too.

        Parameters
        ----------
        prefix
            Path below this location; empty for all that lies here.
        """
        folder = _checked_prefix(prefix)
        self._run(lambda backend: backend.delete_prefix(folder))

    def sweep(self) -> None:
        """Remove temporary files that killed writers left; under a lease, when nobody writes."""
        if not self.is_local:
            return  # an object appears whole, or not at all
        for folder, _, files in os.walk(self.url):
            for name in files:
                if _TEMPORARY.search(name):
                    Path(folder, name).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[str]:
        """Keys below a prefix, at every depth.

        Parameters
        ----------
        prefix
            Path below this location, of whole parts: ``a`` holds ``a/b``, not ``ab``.

        Returns
        -------
        list of str
            Keys relative to this location, sorted, without temporary and hidden files.
        """
        folder = _checked_prefix(prefix)
        return self._run(lambda backend: sorted(filter(_is_shown, backend.keys(folder))))

    def exists(self) -> bool:
        """Whether anything lies here, temporary and hidden files aside.

        Returns
        -------
        bool
            True when there is at least one key.
        """
        return self._run(lambda backend: any(map(_is_shown, backend.keys(""))))

    def put_new(self, key: str, content: bytes) -> bool:
        """Write a key that must not exist yet; of several writers one succeeds.

        Parameters
        ----------
        key
            Path below this location.
        content
            All of it.

        Returns
        -------
        bool
            False when the key exists.

        Notes
        -----
        When an object store's answer got lost, the client asks again and finds the key: False,
        though we wrote it. Content that no other writer has, read back, tells.

        Through fsspec it depends on the file system: exclusive where that knows how, else a
        look before the write, which two machines can do at once (logged).
        """
        _checked(key)
        return self._run(lambda backend: backend.put_new(key, content))

    def replace_if(self, key: str, content: bytes, expected: bytes) -> bool:
        """Replace a key if its content is still the expected one: compare and swap.

        Parameters
        ----------
        key
            Path below this location.
        content
            New content.
        expected
            Content that it must have.

        Returns
        -------
        bool
            False when it has another content or does not exist. What the notes of
            :meth:`put_new` say of lost answers holds here too.

        Notes
        -----
        Exact against other ``replace_if`` and ``put_new``; ``put`` and ``delete`` ask nobody.
        Through fsspec it is exact within this process only (logged).
        """
        _checked(key)
        return self._run(lambda backend: backend.replace_if(key, content, expected))

    def explain(self, error: BaseException) -> StoreError:
        """Say what an exception of the libraries below means here, without their text.

        Parameters
        ----------
        error
            Exception of the operating system, obstore, fsspec or botocore.

        Returns
        -------
        StoreError
            To be raised in its place, outside of the ``except`` block: their messages can
            hold requests, and requests hold credentials.
        """
        return explain(self.url, error)

    def _run(self, work: "Callable[[Backend], T]") -> T:
        try:
            return work(backend(self.url, endpoint_of_environment()))
        except ScalebrainError:
            raise
        except Exception as error:  # noqa: BLE001 - every file system has its own exceptions
            failure = self.explain(error)
        # Not inside the except block: the original would hang on it, request and all.
        raise failure


def _check_url(url: str) -> None:
    """Refuse what is no path or url, and any url with credentials, which is not shown."""
    if os.path.isabs(url) and "\0" not in url:
        return
    if not REMOTE.match(url):
        raise ConfigError(
            "A store's place is an absolute path or a url of the form protocol://place/path; "
            "this one is neither. It is not shown here, as it may hold a secret."
        )
    scheme = url.split("://", 1)[0]
    if _may_hold_secret(url):
        raise ConfigError(
            f"The {scheme}:// url of a store holds credentials, or what looks like them (a user, "
            "a password, a port that is no number, '?' or '#'); it is not shown here. Put "
            "credentials into the environment or the provider's own configuration, and only "
            "the place into the url."
        )
    place, _, prefix = url.split("://", 1)[1].partition("/")
    if not place and scheme != "memory":
        raise ConfigError(f"{url}: has no bucket or server. Expected {scheme}://bucket/prefix.")
    if prefix and {"", ".", ".."} & set(prefix.split("/")):
        raise ConfigError(f"{url}: has an empty part, '.' or '..'. Write the path without.")


def _may_hold_secret(url: str) -> bool:
    """Whether a url has a user, a password or a query; a secret with ``/`` included."""
    scheme, rest = url.split("://", 1)
    place = rest.partition("/")[0]
    user, _, server = place.rpartition("@")
    if "?" in rest or "#" in rest or ":" in user:
        return True
    if scheme in (*S3, *GOOGLE):
        return "@" in place or ":" in place
    try:
        return urlsplit(f"//{server}").port is None and ":" in server
    except ValueError:
        return True


def _checked(key: str) -> str:
    """Key that stays below its location and is not hidden."""
    parts = key.split("/")
    unsafe = any(not part or part.startswith(".") for part in parts)
    if unsafe or "\\" in key or not key.isprintable():
        raise StoreError(
            f"{key!r} is no key of a store: expected a relative path with '/', without '..' and "
            "without names that start with '.'. Rename what it was made from.",
            code="leaves-tree",
        )
    return key


def _checked_prefix(prefix: str) -> str:
    return _checked(prefix.removesuffix("/")) if prefix else ""


def _is_shown(key: str) -> bool:
    """Whether a key is neither hidden nor a temporary file, ours or zarr's."""
    hidden = any(part.startswith(".") for part in key.split("/"))
    return not hidden and not _ZARR_TEMPORARY.search(key)
