"""Rows of the big arrays, read without a detour: as Dask blocks, or one by one.

A row is read into a small buffer and decoded where it has to be: no copy of its shard, no
copy of itself. The values are those that Zarr reads. What only looks at rows one after the
other (:func:`row_source`) never holds more than one, which stays in the processor's cache.
"""

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scalebrain.io.location import Location, Parts
from scalebrain.io.shards import (
    EncodedRow,
    array_codecs,
    decode_row,
    encoded_row,
    part_of_row,
    row_places,
    shard_index_size,
)

if TYPE_CHECKING:
    import dask.array as da
    import zarr

__all__ = ["RowSource", "row_blocks", "row_source"]

_BLOCK_BYTES = 32 * 2**20

_buffers = threading.local()
_sources: "weakref.WeakValueDictionary[str, RowSource]" = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class RowSource:
    """Some rows of an array of a store.

    Parameters
    ----------
    location
        Store.
    name
        Name of the array.
    dtype
        Type of its values.
    fill
        Value of what is not written.
    per_shard
        Rows of a shard.
    n
        Values of a row.
    slots
        (row,) which rows of the array, ascending.
    """

    location: Location
    name: str
    dtype: np.dtype[Any]
    fill: Any
    per_shard: int
    n: int
    slots: npt.NDArray[np.int64]

    def read(
        self, start: int, stop: int, *, span: tuple[int, int] | None = None
    ) -> Iterator[npt.NDArray[Any]]:
        """Decode rows one after the other.

        Parameters
        ----------
        start, stop
            Rows of this source.
        span
            First and last-plus-one voxel that are wanted; all when None. What lies outside is
            neither read nor decoded, but for the ends of blocks of 64 kB.

        Yields
        ------
        ndarray
            (voxel,) the span of the next row; it is overwritten by the one after it.

        Raises
        ------
        StoreError
            When a shard is damaged.
        """
        first, last = (0, self.n) if span is None else span
        room = np.empty(self.n, dtype=self.dtype)
        for content, place, shard in self._places(start, stop):
            if content is None or place is None:
                room[first:last] = self.fill
            else:
                part, low, high = self._part(content, place, (first, last), shard)
                decode_row(part, room[low:high], shard)
            yield room[first:last]

    def encoded(
        self, start: int, stop: int, *, span: tuple[int, int] | None = None
    ) -> Iterator[npt.NDArray[Any] | EncodedRow]:
        """Read rows one after the other, and leave their decoding to a kernel.

        Parameters
        ----------
        start, stop, span
            As for :meth:`read`.

        Yields
        ------
        EncodedRow
            The next row, its positions counted from the first voxel of the span, or the
            decoded span (voxel,) where no kernel can decode it. It is overwritten by the one
            after it.

        Raises
        ------
        StoreError
            When a shard is damaged.
        """
        first, last = (0, self.n) if span is None else span
        room = np.empty(self.n, dtype=self.dtype)
        for content, place, shard in self._places(start, stop):
            if content is None or place is None:
                room[first:last] = self.fill
                yield room[first:last]
                continue
            part, low, high = self._part(content, place, (first, last), shard)
            row = None
            if self.dtype == np.dtype("<f4"):
                row = encoded_row(part, high - low, low - first, shard)
            if row is None:
                decode_row(part, room[low:high], shard)
            yield room[first:last] if row is None else row

    def _part(
        self, content: Parts, place: tuple[int, int], span: tuple[int, int], shard: str
    ) -> tuple[memoryview, int, int]:
        """Read the encoded part of a row that holds a span; say which voxels it holds."""
        if span == (0, self.n):
            return content.read(*place, _buffer(place[1])), 0, self.n
        item = self.dtype.itemsize
        first, last = item * span[0], item * span[1]
        part, low, high = part_of_row(content, place, first, last, _buffer, shard)
        return part, low // item, high // item

    def fill_block(self, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        """Decode rows into the rows of `out`."""
        for row, (content, place, shard) in zip(out, self._places(start, stop), strict=True):
            if content is None or place is None:
                row[...] = self.fill
            else:
                decode_row(content.read(*place, _buffer(place[1])), row, shard)

    def _places(
        self, start: int, stop: int
    ) -> Iterator[tuple[Parts | None, tuple[int, int] | None, str]]:
        """Open the shard of every row; say where the row lies in it, and name it."""
        at = start
        while at < stop:
            number = int(self.slots[at]) // self.per_shard
            end = at
            while end < stop and int(self.slots[end]) // self.per_shard == number:
                end += 1
            key = f"{self.name}/c/{number}/0"
            shard = f"{self.location}/{key}"
            with self.location.parts(key) as content:
                places: list[tuple[int, int] | None] = [None] * self.per_shard
                if content is not None:
                    size = shard_index_size(self.per_shard)
                    index = content.read(max(content.size - size, 0), size, _buffer(size))
                    places = row_places(bytes(index), self.per_shard, shard)
                for slot in self.slots[at:end]:
                    yield content, places[int(slot) % self.per_shard], shard
            at = end


def row_blocks(
    location: Location,
    array: "zarr.Array[Any]",
    *,
    slots: npt.NDArray[np.int64],
    token: str,
) -> "da.Array | None":
    """Rows of an array of a store as a lazy Dask array.

    Parameters
    ----------
    location
        Store.
    array
        Array (subject, voxel) or (subject, vertex) of it.
    slots
        Which of its rows, ascending.
    token
        Fingerprint of the store's content.

    Returns
    -------
    dask.array.Array
        Blocks of whole rows of one shard: all that it has in a bucket, where a shard is read as
        a whole, and at most 32 MiB on a disk. None when the array is not encoded as this module
        reads it.
    """
    import dask.array as da

    per_shard = _rows_per_shard(array)
    if per_shard is None or not slots.size:
        return None
    n = int(array.shape[1])
    most = per_shard
    while location.is_local and most % 2 == 0 and most * n * array.dtype.itemsize > _BLOCK_BYTES:
        most //= 2
    # rows of a block lie in one part of a shard
    bounds = np.append(np.flatnonzero(np.diff(slots // most, prepend=-1)), slots.size)
    source = RowSource(
        location, array.path, array.dtype, array.fill_value, per_shard, n, np.asarray(slots)
    )
    blocks: da.Array = da.map_blocks(
        _read_block,
        source,
        bounds=tuple(bounds.tolist()),
        chunks=(tuple(np.diff(bounds).tolist()), (n,)),
        dtype=array.dtype,
        meta=np.empty((0, 0), dtype=array.dtype),
        name=f"{array.path}-{token}",
    )
    _sources[blocks.name] = source  # as long as the array's graph holds it
    return blocks


def row_source(blocks: Any) -> RowSource | None:
    """Tell where the rows of a Dask array come from.

    Parameters
    ----------
    blocks
        Array.

    Returns
    -------
    RowSource
        Its source, None when it is not one that :func:`row_blocks` gave, as it gave it: what
        was selected or computed from one has another name.
    """
    return _sources.get(getattr(blocks, "name", ""))


def _rows_per_shard(array: "zarr.Array[Any]") -> int | None:
    """Rows of a shard; None when rows are encoded in another way than the ingest does."""
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation

    codecs: Any = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return None
    sharding = codecs[0]
    inner = [codec.to_dict() for codec in sharding.codecs]
    if (
        sharding.index_location is not ShardingCodecIndexLocation.end
        or [type(codec) for codec in sharding.index_codecs] != [BytesCodec, Crc32cCodec]
        or tuple(sharding.chunk_shape) != (1, *array.shape[1:])
        or len(inner) != 2
        or inner[1] != array_codecs(array.dtype).to_dict()
    ):
        return None
    shards: Any = array.shards
    return int(shards[0])


def _read_block(
    source: RowSource, *, bounds: tuple[int, ...], block_id: tuple[int, int]
) -> npt.NDArray[Any]:
    """Decode the rows of one block."""
    start, stop = bounds[block_id[0]], bounds[block_id[0] + 1]
    out = np.empty((stop - start, source.n), dtype=source.dtype)
    source.fill_block(start, stop, out)
    return out


def _buffer(size: int) -> memoryview:
    """Room for an encoded row, the same in each call of a thread."""
    held: bytearray = getattr(_buffers, "held", bytearray())
    if len(held) < size:
        held = _buffers.held = bytearray(size)
    return memoryview(held)[:size]
