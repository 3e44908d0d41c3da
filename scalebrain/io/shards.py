"""Shards of the big arrays: rows encoded one by one, whole shards in one write.

A shard holds the rows of many subjects and is one object. Rows are encoded as soon as they
are read, so that what waits for its shard is small, and a row can be taken out of a shard
without touching the others. The layout is that of Zarr v3's sharding codec with the index
at the end (numbers little-endian, blosc, crc32c), which any Zarr library reads.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StoreError
from scalebrain.io.location import Parts
from scalebrain.io.shards_numba_fns import BLOCK, HAS_DECODER, copy_streams, decode_blocks

__all__ = [
    "EncodedRow",
    "array_codecs",
    "content_hash",
    "decode_row",
    "encode_row",
    "encoded_row",
    "join_shard",
    "part_of_row",
    "row_places",
    "shard_index_size",
    "split_shard",
]

_ABSENT = np.uint64(2**64 - 1)
# Blosc: bytes of the header; flags of a row that was only copied, of shuffled bits and of LZ4
_HEADER = 16
_COPIED, _BITS_SHUFFLED, _IS_LZ4 = 0x2, 0x4, 0x20
# what the header of a row that kernels decode begins with: format 2, LZ4 1, flags, float32
_KNOWN = (2, 1, _BITS_SHUFFLED | _IS_LZ4, 4)
_CNAME, _LEVEL = "lz4", 1


def array_codecs(dtype: npt.DTypeLike) -> Any:
    """Compressor of an array's rows, for Zarr's metadata."""
    from zarr.codecs import BloscCodec

    return BloscCodec(
        typesize=np.dtype(dtype).itemsize,
        cname=_CNAME,  # type: ignore[arg-type]
        clevel=_LEVEL,
        shuffle="bitshuffle" if _bits_shuffled(dtype) else "noshuffle",
    )


def _bits_shuffled(dtype: npt.DTypeLike) -> bool:
    """Whether bits are put in order of their weight first: of masks it costs more than it saves."""
    return np.dtype(dtype).kind != "b"


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

    Notes
    -----
    Blosc keeps what LZ4 made of a stream however little shorter it is. Of float32 a stream that
    lost less than an eighth is copied instead: a row is a little longer, and faster to decode.
    """
    from numcodecs import blosc

    row = np.ascontiguousarray(row, dtype=row.dtype.newbyteorder("<"))
    encoded: bytes = blosc.compress(
        row,
        _CNAME.encode(),
        _LEVEL,
        blosc.BITSHUFFLE if _bits_shuffled(row.dtype) else blosc.NOSHUFFLE,
        0,
        row.dtype.itemsize,
    )
    known = None
    if row.dtype == np.dtype("<f4"):
        known = encoded_row(memoryview(encoded), row.size, 0, "")
    return encoded if known is None else _with_copies(encoded, known)


class EncodedRow(NamedTuple):
    """A row of float32 as its shard has it, for kernels that decode and use it block by block.

    Parameters
    ----------
    content
        Encoded row, or some of its blocks.
    bounds
        (block + 1,) where blocks of 16,384 numbers begin in it, the last may be shorter.
    first
        Position of its first number; negative when it begins before what is wanted.
    n
        Numbers in it.
    shard
        Name of the shard, for messages.
    """

    content: npt.NDArray[np.uint8]
    bounds: npt.NDArray[np.int64]
    first: int
    n: int
    shard: str

    def damaged(self) -> StoreError:
        """Error to raise where a kernel says that a block is not sound."""
        return _damaged(self.shard)


def encoded_row(encoded: memoryview, n: int, first: int, shard: str) -> EncodedRow | None:
    """Look whether kernels can decode a row.

    Parameters
    ----------
    encoded
        What :func:`encode_row` or :func:`part_of_row` gave, of float32.
    n
        Numbers in it.
    first
        Position of its first number.
    shard
        Name of the shard, for messages.

    Returns
    -------
    EncodedRow
        None when it was encoded in another way than they know, or can not be decoded at all:
        :func:`decode_row` tells.

    Notes
    -----
    Blosc's format: a header of 16 bytes (versions of the format and of LZ4's, flags, size of a
    number; sizes of the row, of a block and of all of it), the offset of every block, and the
    blocks.
    """
    if not HAS_DECODER or len(encoded) < _HEADER or tuple(encoded[:4]) != _KNOWN:
        return None
    n_bytes, block, size = np.frombuffer(encoded, dtype="<u4", count=3, offset=4).tolist()
    n_blocks = -(-n_bytes // BLOCK)
    first_block = _HEADER + 4 * n_blocks
    if block != BLOCK or n_bytes != 4 * n or size != len(encoded) or size <= first_block:
        return None
    starts = np.frombuffer(encoded, dtype="<u4", count=n_blocks, offset=_HEADER)
    bounds = np.append(starts.astype(np.int64), size)
    if bounds[0] != first_block or (np.diff(bounds) <= 0).any():
        return None
    return EncodedRow(np.frombuffer(encoded, dtype=np.uint8), bounds, first, n, shard)


def _with_copies(encoded: bytes, row: EncodedRow) -> bytes:
    """Copy the streams that hardly shrank; Blosc takes them so as it takes its own."""
    n_blocks = row.bounds.size - 1
    starts = np.empty(n_blocks, dtype=np.int64)
    out = np.empty(4 * row.n + 16 * n_blocks, dtype=np.uint8)
    size = copy_streams(row.content, row.bounds, row.n, out, starts)
    table = _HEADER + 4 * n_blocks
    if table + size > 4 * row.n:  # all but as long as the numbers
        return encoded
    total = (table + size).to_bytes(4, "little")
    where = (starts + table).astype("<u4").tobytes()
    return encoded[: _HEADER - 4] + total + where + out[:size].tobytes()


def decode_row(encoded: memoryview, out: npt.NDArray[Any], shard: str) -> None:
    """Decode a row into its place.

    Parameters
    ----------
    encoded
        What :func:`encode_row` or :func:`part_of_row` gave.
    out
        Place, contiguous and of the very size.
    shard
        Name of the shard, for messages.

    Raises
    ------
    StoreError
        When the row is damaged.
    """
    from numcodecs import blosc

    if out.dtype == np.dtype("<f4"):
        known = encoded_row(encoded, out.size, 0, shard)
        if known is not None:
            if not decode_blocks(known.content, known.bounds, out.view("<u4")):
                raise known.damaged()
            return
    little = out.dtype.newbyteorder("<")
    row = out if little == out.dtype else np.empty(out.shape, dtype=little)
    if len(encoded) < _HEADER or int.from_bytes(encoded[4:8], "little") != row.nbytes:
        raise _damaged(shard)
    try:
        blosc.decompress(encoded, row)
    except (RuntimeError, ValueError) as error:
        raise _damaged(shard) from error
    if row is not out:
        out[...] = row


def part_of_row(
    content: Parts,
    place: tuple[int, int],
    first: int,
    last: int,
    room: Callable[[int], memoryview],
    shard: str,
) -> tuple[memoryview, int, int]:
    """Read the blocks of a row that hold some of its bytes, as a row of its own.

    Parameters
    ----------
    content
        Shard.
    place
        Offset and size of the encoded row in it.
    first, last
        First and last-plus-one byte wanted of the decoded row.
    room
        Gives a buffer of a size; the same one each time.
    shard
        Name of the shard, for messages.

    Returns
    -------
    encoded
        What :func:`decode_row` takes.
    low, high
        Which bytes of the row it holds.

    Raises
    ------
    StoreError
        When the row is damaged.

    Notes
    -----
    Blosc's format: a header of 16 bytes (flags in the third; sizes of the row, of a block and of
    all of it), the offset of every block, and the blocks. Each is encoded on its own.
    """
    offset, size = place
    head = bytes(content.read(offset, _HEADER, room(_HEADER)))
    if len(head) == _HEADER:
        n_bytes, block, encoded = np.frombuffer(head, dtype="<u4", offset=4).tolist()
        n_blocks = -(-n_bytes // block) if block else 0
        table = _HEADER + 4 * n_blocks
        if encoded == size and 0 <= first < last <= n_bytes and table <= size:
            low, high = first // block, -(-last // block)
            low = max(0, min(low, n_blocks - 2))  # the last block may be short: not alone
            if head[2] & _COPIED or (low, high) == (0, n_blocks):
                return content.read(offset, size, room(size)), 0, n_bytes
            starts = np.frombuffer(
                bytes(content.read(offset + _HEADER, 4 * n_blocks, room(4 * n_blocks))), dtype="<u4"
            ).astype(np.int64)
            bounds = np.append(starts, size)
            if (np.diff(bounds) <= 0).any() or bounds[0] != table:
                # written by several threads, in the order in which they were done
                return content.read(offset, size, room(size)), 0, n_bytes
            begin, end = int(bounds[low]), int(bounds[high])
            top = min(high * block, n_bytes)
            shift = _HEADER + 4 * (high - low)
            out = room(shift + end - begin)
            content.read_into(offset + begin, out[shift:])
            sizes = np.array([top - low * block, block, len(out)], dtype="<u4")
            out[:_HEADER] = head[:4] + sizes.tobytes()
            out[_HEADER:shift] = (starts[low:high] - begin + shift).astype("<u4").tobytes()
            return out, low * block, top
    raise _damaged(shard)


def _damaged(shard: str) -> StoreError:
    return StoreError(f"{shard}: a row is damaged. Run: scalebrain store verify STORE")


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
    places = row_places(shard[-shard_index_size(n_rows) :], n_rows, "a shard")
    return [None if place is None else shard[place[0] : sum(place)] for place in places]


def shard_index_size(n_rows: int) -> int:
    """Bytes at the end of a shard that say where its rows lie."""
    return 16 * n_rows + 4


def row_places(index: bytes, n_rows: int, shard: str) -> list[tuple[int, int] | None]:
    """Read where the rows of a shard lie.

    Parameters
    ----------
    index
        Last bytes of the shard, as many as :func:`shard_index_size` says.
    n_rows
        Slots of a shard of this array.
    shard
        Name of the shard, for messages.

    Returns
    -------
    list
        Offset and size of every encoded row, None for a slot without one.

    Raises
    ------
    StoreError
        When the shard is damaged.
    """
    import google_crc32c

    table, checksum = index[:-4], index[-4:]
    if len(table) != 16 * n_rows or int(google_crc32c.value(table)) != int.from_bytes(
        checksum, "little"
    ):
        raise StoreError(f"{shard}: damaged. Run: scalebrain store verify STORE")
    return [
        None if start == _ABSENT else (int(start), int(size))
        for start, size in np.frombuffer(table, dtype="<u8").reshape(n_rows, 2)
    ]
