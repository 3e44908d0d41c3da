"""A file of a dataset: on its own, or a member of a zip archive that is never unpacked."""

import functools
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scalebrain.errors import ImageError, ScalebrainError

__all__ = ["SourceFile"]

_MAX_MEMBER = 4 * 2**30
_MAX_RATIO = 1100  # deflate cannot compress beyond about 1032:1
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OverflowError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class SourceFile:
    """One file that is read, wherever it lies.

    Parameters
    ----------
    path
        The file, or the zip archive that holds it.
    member
        Name inside the archive; empty for a file of its own.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        """Path, with the member behind it as in ``1234567_20252_2_0.zip!T1/T1.nii.gz``."""
        return f"{self.path}!{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """Last part of the name."""
        return (self.member or self.path.name).rsplit("/", 1)[-1]

    @contextmanager
    def open(self) -> Iterator[tuple[IO[bytes], int]]:
        """Open it; every failure to read it inside the block names it.

        Yields
        ------
        IO[bytes]
            Seekable and unbuffered.
        int
            Its size in bytes; what the archive claims, for a member.

        Raises
        ------
        ImageError
            When it cannot be read, or its archive is damaged.
        """
        with self._named_errors():
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{self}: not a file. Give the file itself.", code="unreadable")
            if not self.member:
                with self.path.open("rb", buffering=0) as file:
                    before = os.fstat(file.fileno())
                    yield file, before.st_size
                    after = os.fstat(file.fileno())
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise ImageError(
                        f"{self}: changed while it was read. Wait until it is copied, then read it "
                        "again.",
                        code="truncated",
                    )
                return
            with zipfile.ZipFile(self.path) as archive:
                info = self._info(archive.NameToInfo)
                self._check_claim(info, status.st_size)
                with archive.open(info) as member:
                    yield member, info.file_size

    def read_bytes(self) -> bytes:
        """Content of the file.

        Returns
        -------
        bytes
            All of it.

        Raises
        ------
        ImageError
            When it cannot be read, or its archive is damaged.
        """
        with self.open() as (stream, _):
            return stream.read()

    def content_key(self) -> str:
        """Size and checksum: read from where gzip and zip store them, else computed.

        Returns
        -------
        str
            ``size:crc32``.

        Raises
        ------
        ImageError
            When the file cannot be read.
        """
        if self.member:
            with self._named_errors():
                info = self._info(_members(self.path, self.path.stat().st_mtime_ns))
                return f"{info.file_size}:{info.CRC:08x}"
        with self.open() as (stream, size):
            if self.path.suffix == ".gz" and size >= 18:
                stream.seek(-8, os.SEEK_END)
                stored = stream.read(8)
                if any(stored[4:]):  # else padding behind the stream
                    return f"{size}:{stored.hex()}"
                stream.seek(0)
            return _checksum(stream)

    def full_key(self) -> str:
        """Size and checksum of all bytes as they lie on the disk, of an archive as a whole.

        :meth:`content_key` trusts what gzip and zip say of their content, so that a damaged
        file and its good copy can have the same one. This tells them apart.

        Returns
        -------
        str
            ``size:crc32``; what is wrong, when it cannot be read.
        """
        try:
            with SourceFile(self.path).open() as (stream, _):
                return _checksum(stream)
        except ImageError as error:
            return f"error {error.code}"

    def _info(self, members: dict[str, zipfile.ZipInfo]) -> zipfile.ZipInfo:
        """Entry of the archive's directory."""
        if self.member not in members:
            raise ImageError(
                f"{self}: the archive has no such member. Download it again.", code="unreadable"
            )
        return members[self.member]

    def _check_claim(self, info: zipfile.ZipInfo, available: int) -> None:
        """Refuse a member that claims to be larger than it can be in an archive of that size."""
        if info.compress_size > available:
            raise ImageError(
                f"{self}: the zip archive is truncated or damaged: {info.compress_size} bytes in "
                f"{available}. Copy it again.",
                code="truncated",
            )
        possible = _MAX_MEMBER
        if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            possible = min(possible, _MAX_RATIO * (info.compress_size + 1))
        if info.file_size > possible:
            raise ImageError(
                f"{self}: the archive claims {info.file_size} bytes from {info.compress_size}, at "
                f"most {possible}. Copy it again.",
                code="gzip-bomb",
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn what the system and zipfile raise into an error that names the file."""
        try:
            yield
        except ScalebrainError:
            raise
        except _DAMAGE as error:
            raise ImageError(
                f"{self}: the zip archive is truncated or damaged ({error}). Copy it again.",
                code="truncated",
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, FileNotFoundError) and _is_annexed(self.path):
                raise ImageError(
                    f"{self}: a pointer, not an image. Fetch its content (datalad get).",
                    code="pointer",
                ) from error
            why = (isinstance(error, OSError) and error.strerror) or error
            raise ImageError(
                f"{self}: cannot be read: {why}. Check the path and its permissions.",
                code="unreadable",
            ) from error
        except (NotImplementedError, RuntimeError) as error:  # encrypted, or an unknown method
            raise ImageError(
                f"{self}: cannot be read: {error}. Write the archive again without encryption.",
                code="unreadable",
            ) from error


def _checksum(stream: IO[bytes]) -> str:
    """Size and CRC-32 of what is left of a stream."""
    crc = size = 0
    while block := stream.read(1 << 20):
        crc = zlib.crc32(block, crc)
        size += len(block)
    return f"{size}:{crc:08x}"


def _is_annexed(path: Path) -> bool:
    """Whether it is a link into the store of git-annex."""
    return path.is_symlink() and ".git/annex/" in os.readlink(path).replace("\\", "/")


@functools.lru_cache(maxsize=8)
def _members(path: Path, changed: int) -> dict[str, zipfile.ZipInfo]:  # noqa: ARG001
    """Members of an archive, by name; `changed` makes a changed archive another key."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info for info in archive.infolist()}
