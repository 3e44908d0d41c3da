"""Rows of a store as Dask blocks: the values that Zarr reads, and clear errors."""

import contextlib
import shutil
import sys
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
from scalebrain.io import shards, shards_numba_fns
from scalebrain.io.location import Location, Parts
from scalebrain.io.rows import row_blocks, row_source
from scalebrain.io.shards import (
    EncodedRow,
    array_codecs,
    decode_row,
    encode_row,
    encoded_row,
    part_of_row,
)
from scalebrain.io.shards_numba_fns import HAS_DECODER, decode_blocks


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
        for row, found in zip(rows, source.encoded(0, 3, span=span), strict=True):
            assert isinstance(found, EncodedRow) is (dtype == "float32" and HAS_DECODER)
            np.testing.assert_array_equal(span_of(found, span), row)
    assert [row.copy() for row in source.read(1, 1)] == []
    assert list(source.encoded(1, 1)) == []


def span_of(row, span: tuple[int, int]) -> np.ndarray:
    """Values of a row that may be encoded, with more than its span."""
    if not isinstance(row, EncodedRow):
        return row
    bits = np.empty(row.n, dtype=np.uint32)
    assert decode_blocks(row.content, row.bounds, bits)
    assert row.first <= 0
    return bits.view(np.float32)[-row.first : span[1] - span[0] - row.first]


needs_decoder = pytest.mark.skipif(not HAS_DECODER, reason="numcodecs does not show its LZ4")


@pytest.mark.parametrize("n", [3, 16_384, 49_151, 49_152, 49_153, 16_384 * 40, 16_384 * 35 + 16])
@pytest.mark.parametrize("values", ["whole", "noise", "bits", "zero"])
def test_decode_row__is_that_of_blosc(monkeypatch, n, values):
    rng = np.random.default_rng(0)
    row = {
        "whole": rng.integers(0, 1800, n),
        "noise": rng.normal(900, 90, n),
        "bits": rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32),
        "zero": np.zeros(n),
    }[values].astype(np.float32)
    encoded = memoryview(encode_row(row))
    for own in (True, False):
        monkeypatch.setattr(shards, "HAS_DECODER", own and HAS_DECODER)
        out = np.full(n, np.nan, dtype=np.float32)
        decode_row(encoded, out, "x")
        assert out.tobytes() == row.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may hide it")
def test_has_decoder__on_linux():
    assert HAS_DECODER  # a numcodecs that hides it would slow all rows down without a word


@needs_decoder
def test_encoded_row__takes_what_the_ingest_writes():
    rng = np.random.default_rng(0)
    for n in (16_384, 49_153, 16_384 * 5 + 16):  # a row of one block is as long as it
        row = rng.integers(0, 1800, n).astype(np.float32)
        assert encoded_row(memoryview(encode_row(row)), n, 0, "x") is not None
        assert encoded_row(memoryview(encode_row(row)), n + 1, 0, "x") is None
    row = np.zeros(50_000, dtype=np.float32)
    for other in (
        blosc.compress(row, b"zstd", 1, blosc.BITSHUFFLE, 0, 4),
        blosc.compress(row, b"lz4", 1, blosc.SHUFFLE, 0, 4),
        blosc.compress(row, b"lz4", 0, blosc.BITSHUFFLE, 0, 4),
        blosc.compress(row.astype(np.float64), b"lz4", 1, blosc.BITSHUFFLE, 0, 8),
    ):
        assert encoded_row(memoryview(other), row.size, 0, "x") is None


@needs_decoder
@pytest.mark.parametrize("n", [16_384 * 7, 16_384 * 7 + 24, 16_384 * 7 + 3])
def test_encode_row__copies_streams_that_hardly_shrink(n):
    rng = np.random.default_rng(0)
    row = rng.uniform(512, 1023, n).astype(np.int16).astype(np.float32)
    plain = blosc.compress(row, b"lz4", 1, blosc.BITSHUFFLE, 0, 4)
    encoded = encode_row(row)
    assert len(plain) < len(encoded) < 1.15 * len(plain)
    assert blosc.decompress(encoded) == row.tobytes()
    known = encoded_row(memoryview(encoded), n, 0, "x")
    assert known is not None
    copied = 0
    for start in known.bounds[:7]:
        at = int(start)
        for _ in range(4):
            size = int.from_bytes(encoded[at : at + 4], "little")
            assert size == 16_384 or size <= 14_336
            copied += size == 16_384
            at += 4 + size
    assert copied == 7  # the upper bits of the mantissa


@needs_decoder
def test_decode_row__knows_a_stream_of_zeros_as_lz4_writes_it():
    row = np.zeros(16_384 * 3, dtype=np.float32)
    row[:: 16_384 // 8] = 512.0  # the lowest bits of every block are zero, the others are not
    encoded = encode_row(row)
    known = encoded_row(memoryview(encoded), row.size, 0, "x")
    assert known is not None
    at = int(known.bounds[0])
    size = int.from_bytes(encoded[at : at + 4], "little")
    assert encoded[at + 4 : at + 4 + size] == shards_numba_fns._OF_ZEROS.tobytes()
    out = np.full(row.size, np.nan, dtype=np.float32)
    decode_row(memoryview(encoded), out, "x")
    np.testing.assert_array_equal(out, row)


def test_encode_row__of_noise_is_not_longer_than_its_numbers():
    row = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    assert len(encode_row(row)) <= row.nbytes + 16
    row[:100_000] = 0
    assert blosc.decompress(encode_row(row)) == row.tobytes()


@given(st.data())
def test_decode_row__of_damaged_bytes_is_one_error_or_bytes(data):
    row = np.arange(60_000, dtype=np.float32)
    frame = bytearray(encode_row(row))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(StoreError):
        decode_row(memoryview(frame), np.empty_like(row), "shard")


@needs_decoder
@given(st.data())
def test_decode_blocks__never_writes_beyond_its_room(data):
    """Sizes of streams and LZ4's lengths are what a hostile store would change."""
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    n = data.draw(st.sampled_from([40_000, 49_152]))
    row = rng.integers(0, 1800, n).astype(np.float32)
    frame = bytearray(encode_row(row))
    known = encoded_row(memoryview(frame), n, 0, "x")
    assert known is not None
    at = data.draw(st.integers(int(known.bounds[0]), len(frame) - 8))
    frame[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    guarded = np.full(n + 64, 0xABABABAB, dtype=np.uint32)
    content = np.frombuffer(frame, dtype=np.uint8)
    decode_blocks(content, known.bounds, guarded[32:-32])
    assert (guarded[:32] == 0xABABABAB).all()
    assert (guarded[-32:] == 0xABABABAB).all()


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
