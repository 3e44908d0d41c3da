"""Rows of a store as Dask blocks: the values that Zarr reads, and clear errors."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc

import scalebrain
from scalebrain.errors import StoreError
from scalebrain.io.location import Location, Parts
from scalebrain.io.rows import row_blocks, row_source
from scalebrain.io.shards import (
    array_codecs,
    decode_pieces,
    decode_row,
    encode_row,
    part_of_row,
)


def write(url: str, *, shape=(37, 1000), shard=8, dtype="float32", codecs=None) -> zarr.Array:
    rng = np.random.default_rng(0)
    group = zarr.open_group(Location.of(url).zarr_store(), mode="a")
    kind = np.dtype(dtype)
    array = group.create_array(
        "t1w",
        shape=shape,
        dtype=kind,
        chunks=(1, shape[1]),
        shards=(shard, shape[1]),
        compressors=codecs or array_codecs(kind),
        fill_value=np.nan if kind.kind == "f" else 0,
    )
    values = rng.integers(0, 2 if kind.kind == "b" else 900, shape).astype(kind)
    for start in range(0, shape[0], shard):
        array[start : start + shard] = values[start : start + shard]
    return array


@pytest.mark.parametrize("dtype", ["float32", "bool", "float64"])
def test_row_blocks__are_what_zarr_reads(tmp_path, dtype):
    array = write(str(tmp_path / "s.zarr"), dtype=dtype)
    blocks = row_blocks(Location.of(tmp_path / "s.zarr"), array, slots=np.arange(37), token="x")
    assert blocks.chunks == ((8, 8, 8, 8, 5), (1000,))
    assert blocks.dtype == array.dtype
    np.testing.assert_array_equal(blocks.compute(), array[...])
    np.testing.assert_array_equal(blocks[[30, 2, 9]].compute(), array[...][[30, 2, 9]])


def test_row_blocks__split_a_shard_of_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("scalebrain.io.rows._BLOCK_BYTES", 2 * 4 * 1000)
    array = write(str(tmp_path / "s.zarr"))
    blocks = row_blocks(Location.of(tmp_path / "s.zarr"), array, slots=np.arange(37), token="x")
    assert blocks.chunks[0] == (2,) * 18 + (1,)
    np.testing.assert_array_equal(blocks.compute(), array[...])


def test_row_blocks__of_a_bucket_are_whole_shards(monkeypatch):
    monkeypatch.setattr("scalebrain.io.rows._BLOCK_BYTES", 1)
    array = write("memory://rows/s.zarr")
    blocks = row_blocks(Location.of("memory://rows/s.zarr"), array, slots=np.arange(37), token="x")
    assert blocks.chunks[0] == (8, 8, 8, 8, 5)
    np.testing.assert_array_equal(blocks.compute(), array[...])


def test_row_blocks__absent_rows_and_shards_are_missing(tmp_path):
    array = write(str(tmp_path / "s.zarr"))
    array[9] = np.nan  # Zarr leaves a row out that holds the fill value alone
    shutil.rmtree(tmp_path / "s.zarr" / "t1w" / "c" / "0")
    found = row_blocks(
        Location.of(tmp_path / "s.zarr"), array, slots=np.arange(37), token="x"
    ).compute()
    assert np.isnan(found[[0, 7, 9]]).all()
    assert not np.isnan(found[[8, 10]]).any()
    np.testing.assert_array_equal(found, array[...])


@pytest.mark.parametrize("dtype", ["float32", "bool", "float64"])
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_row_source__reads_a_span_of_every_row(tmp_path, dtype, where):
    url = str(tmp_path / "s.zarr") if where == "disk" else f"memory://span-{dtype}/s.zarr"
    n = 200_003  # several blocks of Blosc, the last of them odd
    array = write(url, shape=(5, n), shard=4, dtype=dtype)
    slots = np.array([0, 1, 4])
    blocks = row_blocks(Location.of(url), array, slots=slots, token="x")
    assert row_source(blocks[:2]) is None
    source = row_source(blocks)
    for span in ((0, n), (0, 1), (n - 1, n), (65_535, 65_537), (16_384, 131_072), (7, 150_001)):
        rows = [row.copy() for row in source.read(0, 3, span=span)]
        np.testing.assert_array_equal(rows, array[...][slots, span[0] : span[1]])
        for row, pieces in zip(rows, source.pieces(0, 3, span=span), strict=True):
            np.testing.assert_array_equal(whole_of(pieces, row), row)
    assert [row.copy() for row in source.read(1, 1)] == []
    assert list(source.pieces(1, 1)) == []


def whole_of(pieces, like: np.ndarray) -> np.ndarray:
    """Row of its pieces, which come one after the other."""
    out, at = np.zeros_like(like), 0
    for first, values in pieces:
        assert first == at
        out[first : first + values.size] = values
        at += values.size
    assert at == out.size
    return out


@pytest.mark.parametrize("n", [3, 16_384, 49_151, 49_152, 49_153, 16_384 * 40, 16_384 * 35 + 17])
@pytest.mark.parametrize("values", ["whole", "noise", "bits", "zero"])
def test_decode_pieces__is_the_row(n, values):
    rng = np.random.default_rng(0)
    row = {
        "whole": rng.integers(0, 1800, n),
        "noise": rng.normal(900, 90, n),
        "bits": rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32),
        "zero": np.zeros(n),
    }[values].astype(np.float32)
    out = np.empty(n, dtype=np.float32)
    pieces = list(map(bytes, (v for _, v in decode_pieces(room_of(encode_row(row)), out, "x"))))
    assert b"".join(pieces) == row.tobytes()
    if values == "whole" and n > 49_152:  # cut where blocks end
        assert len(pieces) > 1
    again = [v.tobytes() for _, v in decode_pieces(memoryview(encode_row(row)), out, "x")]
    assert again == [row.tobytes()]  # what cannot be overwritten is decoded as a whole


def room_of(encoded: bytes) -> memoryview:
    """Encoded row where it can be written."""
    return memoryview(bytearray(encoded))


@given(st.data())
def test_decode_pieces__of_damaged_bytes_is_one_error_or_bytes(data):
    row = np.arange(60_000, dtype=np.float32)
    frame = bytearray(encode_row(row))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    out = np.empty_like(row)
    with contextlib.suppress(StoreError):
        assert sum(v.size for _, v in decode_pieces(memoryview(frame), out, "shard")) == row.size


def test_row_source__reads_rows_that_did_not_shrink_or_come_out_of_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(1, 100_000)).astype(np.float32)
    blosc.set_nthreads(4)
    frames = [
        blosc.compress(values, b"lz4", 0, blosc.NOSHUFFLE),
        blosc.compress(values, b"lz4", 1, blosc.BITSHUFFLE, 8192, 4),
    ]
    for frame in frames:
        content = Parts(len(frame), memoryview(frame))
        buffer = bytearray(len(frame) + 100)
        part, low, high = part_of_row(
            content, (0, len(frame)), 40_000, 80_004, lambda n, b=buffer: memoryview(b)[:n], "x"
        )
        out = np.empty((high - low) // 4, dtype=np.float32)
        decode_row(part, out, "x")
        np.testing.assert_array_equal(out, values[0, low // 4 : high // 4])
        assert low <= 40_000 < 80_004 <= high


@given(st.data())
def test_part_of_row__of_damaged_bytes_is_one_error_or_bytes(data):
    values = np.arange(50_000, dtype=np.float32)
    frame = bytearray(blosc.compress(values, b"lz4", 1, blosc.BITSHUFFLE, 8192, 4))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
    content = Parts(len(frame), memoryview(bytes(frame)))
    out = np.empty(50_000, dtype=np.float32)
    with contextlib.suppress(StoreError):
        part, low, high = part_of_row(
            content, (0, len(frame)), 40_000, 80_004, lambda n: memoryview(bytearray(n)), "shard"
        )
        decode_row(part, out[low // 4 : high // 4], "shard")


def test_row_blocks__other_codecs_are_left_to_zarr(tmp_path):
    array = write(str(tmp_path / "s.zarr"), codecs=zarr.codecs.ZstdCodec())
    assert (
        row_blocks(Location.of(tmp_path / "s.zarr"), array, slots=np.arange(37), token="x") is None
    )


@pytest.mark.parametrize("damage", ["truncated", "empty", "index", "row"])
def test_row_blocks__a_damaged_shard_is_named(tmp_path, damage):
    array = write(str(tmp_path / "s.zarr"))
    shard = tmp_path / "s.zarr" / "t1w" / "c" / "1" / "0"
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        content = content[:-20]
    elif damage == "empty":
        content = bytearray()
    elif damage == "index":
        content[-30] ^= 1
    else:
        content[4:12] = b"\xff" * 8  # sizes in the header of the first row
    shard.write_bytes(content)
    blocks = row_blocks(Location.of(tmp_path / "s.zarr"), array, slots=np.arange(37), token="x")
    np.testing.assert_array_equal(blocks[:8].compute(), array[:8])
    with pytest.raises(StoreError, match=r"t1w/c/1/0.*damaged.*store verify"):
        blocks[8].compute()


def test_save_store__a_new_store_opens_in_rows(tmp_path):
    ds = xr.Dataset(
        {"t1w": (("subject", "voxel"), np.arange(60, dtype=np.float32).reshape(20, 3))},
        coords={"subject": [f"sub-{i:02d}" for i in range(20)]},
    )
    scalebrain.save_store(ds.chunk(subject=16), tmp_path / "new.zarr")
    again = scalebrain.open_store(tmp_path / "new.zarr")
    assert [name for name in again["t1w"].data.dask.layers if name.startswith("t1w-")]
    np.testing.assert_array_equal(again["t1w"], ds["t1w"])
    assert Path(tmp_path / "new.zarr").is_dir()
