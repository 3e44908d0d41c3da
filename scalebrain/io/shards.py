"""Shards of the big arrays: rows encoded one by one, whole shards in one write.

A shard holds the rows of many subjects and is one object. Rows are encoded as soon as they
are read, so that what waits for its shard is small, and a row can be taken out of a shard
without touching the others. The bytes are those of Zarr v3's sharding codec with the index
at the end (numbers little-endian, blosc, crc32c), which any Zarr library reads.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StoreError

__all__ = ["array_codecs", "content_hash", "encode_row", "join_shard", "split_shard"]

_ABSENT = np.uint64(2**64 - 1)
_CODEC = {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}


def array_codecs(dtype: npt.DTypeLike) -> Any:
    """Compressor of an array's rows, for Zarr's metadata."""
    from zarr.codecs import BloscCodec

    return BloscCodec(typesize=np.dtype(dtype).itemsize, **_CODEC)  # type: ignore[arg-type]


def content_hash(parts: Iterable[bytes | npt.NDArray[np.generic]]) -> str:
    """Hash of shards or rows: tells damage, and two scans that are one.

    Parameters
    ----------
    parts
        Bytes or contiguous arrays.

    Returns
    -------
    str
        XXH3, 128 bits, in hexadecimal. It is as fast as memory; it does not resist someone
        who wants two contents to have one hash.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.data)
    return digest.hexdigest()


def encode_row(row: npt.NDArray[np.generic]) -> bytes:
    """Encode one row.

    Parameters
    ----------
    row
        Values (voxel) or (vertex), contiguous.

    Returns
    -------
    bytes
        What a chunk of the array holds.
    """
    from numcodecs import blosc

    row = np.ascontiguousarray(row, dtype=row.dtype.newbyteorder("<"))
    encoded: bytes = blosc.compress(
        row,
        str(_CODEC["cname"]).encode(),
        _CODEC["clevel"],
        blosc.BITSHUFFLE,
        0,
        row.dtype.itemsize,
    )
    return encoded


def join_shard(rows: Sequence[bytes | None]) -> bytes:
    """Make the shard of encoded rows.

    Parameters
    ----------
    rows
        One entry a slot of the shard; None where there is no row.

    Returns
    -------
    bytes
        Shard; empty when it has no row, and then is not written.
    """
    import google_crc32c

    index = np.full((len(rows), 2), _ABSENT, dtype="<u8")
    offset = 0
    for slot, row in enumerate(rows):
        if row is not None:
            index[slot] = offset, len(row)
            offset += len(row)
    if not offset:
        return b""
    table = index.tobytes()
    checksum = int(google_crc32c.value(table)).to_bytes(4, "little")
    return b"".join([*(row for row in rows if row is not None), table, checksum])


def split_shard(shard: bytes, n_rows: int) -> list[bytes | None]:
    """Take a shard apart.

    Parameters
    ----------
    shard
        Content of the shard.
    n_rows
        Slots of a shard of this array.

    Returns
    -------
    list
        Encoded rows, None for a slot without one.

    Raises
    ------
    StoreError
        When the shard is damaged.
    """
    import google_crc32c

    table, checksum = shard[-16 * n_rows - 4 : -4], shard[-4:]
    if len(table) != 16 * n_rows or int(google_crc32c.value(table)) != int.from_bytes(
        checksum, "little"
    ):
        raise StoreError("a shard is damaged. Run: scalebrain store verify STORE")
    index = np.frombuffer(table, dtype="<u8").reshape(n_rows, 2)
    return [
        None if start == _ABSENT else shard[int(start) : int(start + size)] for start, size in index
    ]
