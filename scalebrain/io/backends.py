"""The places that a store can lie in: a folder, object storage, what fsspec opens."""

import errno
import fcntl
import functools
import importlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scalebrain.errors import ConfigError, StoreError
from scalebrain.io.failures import NO_BUCKET, REMOTE, without_paths

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = ["GOOGLE", "S3", "Backend", "backend", "endpoint_of_environment"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Schemes of Amazon S3 and of Google Cloud Storage.
S3 = ("s3", "s3a")
GOOGLE = ("gs", "gcs")
_AZURE = ("az", "azure", "abfs", "abfss", "adl")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_INSTALL = "Install it with `pip install 'scalebrain[cloud]'`."

# How long a failing request is tried again, and how often an answer that breaks off.
_PATIENCE = 60.0
_TRIES = 8

_NO_SUPPORT = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Backend(Protocol):
    """What each kind of place can do. Exceptions are those of its library."""

    def zarr_store(self, read_only: bool) -> "Store":
        """Store for zarr and xarray."""
        ...

    def get(self, key: str) -> bytes | None:
        """Content; None when there is none."""
        ...

    def put(self, key: str, content: bytes) -> None:
        """Write, all or nothing."""
        ...

    def delete(self, key: str) -> None:
        """Remove; what is absent stays so."""
        ...

    def delete_prefix(self, prefix: str) -> None:
        """Remove all keys below."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys below, hidden ones too."""
        ...

    def put_new(self, key: str, content: bytes) -> bool:
        """Write what is not there yet; whether it was not."""
        ...

    def replace_if(self, key: str, content: bytes, expected: bytes) -> bool:
        """Replace what is as expected; whether it was."""
        ...


@functools.lru_cache(maxsize=64)
def backend(url: str, endpoint: str) -> Backend:
    """Backend of a url; `endpoint` makes another server another key."""
    if not REMOTE.match(url):
        return _LocalFolder(Path(url))
    scheme = url.split("://", 1)[0]
    if scheme not in (*S3, *GOOGLE, *_AZURE):
        return _Files(url, {})
    if _module("obstore") is not None:
        return _Objects(url, endpoint)
    logger.debug("obstore is not installed: %s is opened through fsspec", url)
    return _Files(url, {"use_listings_cache": False})


def endpoint_of_environment() -> str:
    """Endpoint that the environment names; empty for the provider's own."""
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")


def _module(name: str) -> Any:
    """Import an optional module, or give None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class _LocalFolder:
    """A folder. Temporary files have names that start with a dot."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def zarr_store(self, read_only: bool) -> "Store":
        from zarr.storage import LocalStore

        return LocalStore(self._root, read_only=read_only)

    def get(self, key: str) -> bytes | None:
        try:
            return self._path(key).read_bytes()
        except _ABSENT:
            return None

    def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        with _temporary(path.parent, content) as written:
            os.replace(written, path)

    def delete(self, key: str) -> None:
        path = self._path(key)
        if not path.is_dir():
            with suppress(*_ABSENT):
                path.unlink()

    def delete_prefix(self, prefix: str) -> None:
        folder = self._path(prefix)
        with suppress(*_ABSENT):  # also when someone else deletes too
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            folder.rmdir()

    def keys(self, prefix: str) -> Iterator[str]:
        for folder, folders, files in os.walk(self._path(prefix), onerror=_raise_unless_absent):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                yield Path(folder, name).relative_to(self._root).as_posix()

    def put_new(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        with _temporary(path.parent, content) as written:
            try:
                os.link(written, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_SUPPORT:
                    raise
                logger.info("No hard links in %s: a new file may be seen half written", path.parent)
                return _create(path, content)
        return True

    def replace_if(self, key: str, content: bytes, expected: bytes) -> bool:
        """Compare and replace under a lock of the file itself, so no lock file lies about.

        Who waited for the lock of a file that was replaced holds that of a file without a
        name, and starts again.
        """
        path = self._path(key)
        while True:
            try:
                file = path.open("r+b")
            except _ABSENT:
                return False
            with file:
                _lock(file.fileno(), path)
                if not _is_same(file.fileno(), path):
                    continue
                if file.read() != expected:
                    return False
                with _temporary(path.parent, content) as written:
                    os.replace(written, path)
                return True

    def _path(self, key: str) -> Path:
        """Path of a key, unless a link leads out of the folder."""
        root = os.path.realpath(self._root)
        path = os.path.realpath(self._root / key)
        if path != root and not path.startswith(root.rstrip("/") + "/"):
            raise StoreError(
                f"{self._root}: {key} leads out of the store by a symbolic link. Replace the link "
                "by what it leads to.",
                code="leaves-tree",
            )
        return self._root / key


@contextmanager
def _temporary(folder: Path, content: bytes) -> Iterator[Path]:
    """File with the content on the disk; removed at the end unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        _create(path, content)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    """Write a file that must not exist, down to the disk: only that tells that it has room."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    with file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return True


def _lock(descriptor: int, path: Path) -> None:
    """Exclusive lock until the file is closed, where the file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_SUPPORT:
            raise
        logger.warning(
            "%s: the file system has no locks; two ingests that start in the same instant may "
            "both go on",
            path.parent,
        )


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise error


class _Objects:
    """A prefix in a bucket, through obstore."""

    def __init__(self, url: str, endpoint: str) -> None:
        self._errors = importlib.import_module("obstore.exceptions")
        self._store = _object_store(url, endpoint)

    def zarr_store(self, read_only: bool) -> "Store":
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=read_only)

    def get(self, key: str) -> bytes | None:
        try:
            return self._steady(lambda: bytes(self._store.get(key).bytes()))
        except FileNotFoundError as error:
            _raise_without_bucket(error)
            return None

    def put(self, key: str, content: bytes) -> None:
        self._steady(lambda: self._store.put(key, content, use_multipart=False))

    def delete(self, key: str) -> None:
        try:
            self._steady(lambda: self._store.delete(key))
        except FileNotFoundError as error:
            _raise_without_bucket(error)

    def delete_prefix(self, prefix: str) -> None:
        # A provider may stop at a key that is gone, also when its first answer got lost.
        for _ in range(_TRIES):
            keys = list(self.keys(prefix))
            try:
                self._steady(functools.partial(self._store.delete, keys))
            except FileNotFoundError:
                continue
            return

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys as they come; a listing that breaks off goes on behind the last one."""
        last: str | None = None
        for attempt in range(_TRIES):
            try:
                for batch in self._store.list(prefix, offset=last):
                    for meta in batch:
                        last = meta["path"]
                        yield last
            except self._errors.GenericError as error:
                self._pause(error, attempt)
            else:
                return

    def put_new(self, key: str, content: bytes) -> bool:
        try:
            self._store.put(key, content, mode="create")
        except self._errors.AlreadyExistsError:
            return False
        return True

    def replace_if(self, key: str, content: bytes, expected: bytes) -> bool:
        try:
            answer = self._steady(lambda: _content_and_meta(self._store.get(key)))
        except FileNotFoundError as error:
            _raise_without_bucket(error)
            return False
        found, meta = answer
        if found != expected:
            return False
        version = {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
        try:
            self._store.put(key, content, mode=version)
        except (self._errors.PreconditionError, FileNotFoundError):
            return False
        return True

    def _steady(self, work: Callable[[], T]) -> T:
        """Ask again when the answer broke off; obstore does so only for what comes before it."""
        attempt = 0
        while True:
            try:
                return work()
            except self._errors.GenericError as error:
                self._pause(error, attempt)
            attempt += 1

    def _pause(self, error: Exception, attempt: int) -> None:
        """Wait before the next attempt, or raise the error when there is none."""
        if "body error" not in str(error) or attempt >= _TRIES - 1:
            raise error
        time.sleep(0.05 * 2**attempt)


def _content_and_meta(result: Any) -> tuple[bytes, dict[str, Any]]:
    return bytes(result.bytes()), result.meta


def _raise_without_bucket(error: Exception) -> None:
    """Raise `error` again when it is the bucket that is missing, not an object in it."""
    if NO_BUCKET.search(without_paths(error)):
        raise error


def _object_store(url: str, endpoint: str) -> Any:
    """Store of obstore. It reads endpoint, region and keys from the environment by itself."""
    store = importlib.import_module("obstore.store")
    scheme, rest = url.split("://", 1)
    bucket, _, prefix = rest.partition("/")
    options: dict[str, Any] = {
        "retry_config": {
            "backoff": {
                "init_backoff": timedelta(seconds=0.05),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
            "max_retries": 100,
            "retry_timeout": timedelta(seconds=_PATIENCE),
        },
        # A large object over a slow line takes its time; a server that says nothing does not.
        "client_options": {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "600s"},
    }
    if scheme in GOOGLE:
        return store.GCSStore(bucket, prefix=prefix or None, **options)
    if scheme in _AZURE:
        return store.from_url(url, **options)
    if endpoint.startswith("http://"):
        options["client_options"]["allow_http"] = True
    if _wants_chain() and _module("obstore.auth.boto3") is not None:
        options["credential_provider"] = _AmazonChain()
    return store.S3Store(bucket, prefix=prefix or None, **options)


def _wants_chain() -> bool:
    """Whether keys are needed that are not in the environment."""
    anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
    return not anonymous and "AWS_ACCESS_KEY_ID" not in os.environ


class _AmazonChain:
    """Credentials of boto3's chain (shared config, SSO, role), found anew after unpickling."""

    def __init__(self) -> None:
        # Asked again every five minutes, so that temporary keys do not run out in between.
        provider = importlib.import_module("obstore.auth.boto3").Boto3CredentialProvider
        self._provider = provider(ttl=timedelta(minutes=5))
        self.config = self._provider.config

    def __call__(self) -> Any:
        """Credentials of now."""
        return self._provider()

    def __reduce__(self) -> "tuple[type[_AmazonChain], tuple[()]]":
        """Pickle nothing."""
        return _AmazonChain, ()

    def __repr__(self) -> str:
        """Show nothing."""
        return "_AmazonChain()"


_one_at_a_time = threading.Lock()


class _Files:
    """Anything that fsspec opens."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        scheme = url.split("://", 1)[0]
        fsspec = _module("fsspec.core")
        if fsspec is None:
            raise ConfigError(f"{url}: neither obstore nor fsspec is installed. {_INSTALL}")
        try:
            self._system, root = fsspec.url_to_fs(url, **options)
        except (ImportError, ValueError):
            raise ConfigError(f"{url}: nothing installed opens {scheme}://. {_INSTALL}") from None
        self._root = root.rstrip("/")
        self._url = url
        self._options = options
        self._exact = scheme == "memory"

    def zarr_store(self, read_only: bool) -> "Store":
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(
            self._url, storage_options=dict(self._options), read_only=read_only
        )

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self._system.cat_file(self._path(key)))
        except _ABSENT as error:
            _raise_without_bucket(error)
            return None

    def put(self, key: str, content: bytes) -> None:
        try:
            self._system.pipe_file(self._path(key), content)
        except FileNotFoundError as error:
            _raise_without_bucket(error)
            self._system.makedirs(self._path(key).rsplit("/", 1)[0], exist_ok=True)
            self._system.pipe_file(self._path(key), content)

    def delete(self, key: str) -> None:
        try:
            self._system.rm_file(self._path(key))
        except _ABSENT as error:
            _raise_without_bucket(error)

    def delete_prefix(self, prefix: str) -> None:
        paths = [self._path(key) for key in self.keys(prefix)]
        if paths:
            self._system.rm(paths)

    def keys(self, prefix: str) -> Iterator[str]:
        self._system.invalidate_cache()
        folder = f"{self._path(prefix)}/" if prefix else f"{self._root}/"
        try:
            found = self._system.find(folder.rstrip("/"))
        except _ABSENT as error:
            _raise_without_bucket(error)
            return iter(())
        return (path[len(self._root) + 1 :] for path in found if path.startswith(folder))

    def put_new(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        with _one_at_a_time:
            try:
                self._system.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):
                self._say_weaker()
                if self.get(key) is not None:
                    return False
                self.put(key, content)
        return True

    def replace_if(self, key: str, content: bytes, expected: bytes) -> bool:
        self._say_weaker()
        with _one_at_a_time:
            if self.get(key) != expected:
                return False
            self.put(key, content)
        return True

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _say_weaker(self) -> None:
        if not self._exact:
            logger.info(
                "%s: compare and swap holds within this process only; two ingests that start in "
                "the same instant may both go on",
                self._url,
            )
