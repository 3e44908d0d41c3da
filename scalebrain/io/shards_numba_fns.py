"""Kernels that decode rows of float32 block by block, as Blosc encodes them, without the GIL.

A block is 64 KiB in four streams, the last block of a row is one: each is encoded by LZ4, or
copied where that saves nothing. Decoded, its numbers lie in 32 planes, one for each bit: byte m
of plane b holds bit b of numbers 8 m to 8 m + 7. Words of 64 bits are transposed by exchanging
ever larger parts of them, which the compiler does for four words at a time.

Joined from their bytes, numbers come in eight columns: number 8 m + k of a block is at m of column
k. Kernels that only add take them so, and save the time of putting them in order.

What LZ4 makes hardly shorter, as bits that are noise, takes it longest to decode: rows are
written with such streams copied.

The decoder of LZ4 is that of numcodecs, which looks at all bounds. Blosc's own function wants
the GIL for each piece of a row: two threads that decode get in each other's way.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel, lz4_decoder, read_only

__all__ = [
    "BLOCK",
    "COLUMN",
    "HAS_DECODER",
    "NUMBERS",
    "column_place",
    "copy_streams",
    "decode_block",
    "decode_blocks",
    "decode_columns",
    "room_for_block",
    "to_columns",
]

#: Bytes of a block that the kernels take: the one that Blosc chooses for rows of float32.
BLOCK = 65536
#: Numbers of such a block.
NUMBERS = BLOCK // 4
#: Numbers of each of its eight columns.
COLUMN = NUMBERS // 8

_STREAM = BLOCK // 4
_PLANE = BLOCK // 32
_WORDS = _PLANE // 8  # words of 64 bits in a plane
_WORTH = _STREAM // 8 * 7  # bytes of a stream that is worth its decoding
_U = np.uint64


_lz4 = lz4_decoder()
#: Whether the kernels of this module can be used here.
HAS_DECODER = _lz4 is not None

# LZ4 of a stream of zeros: one literal, a match of all but it and the last five bytes, and these
_MORE = _STREAM - 6 - 4 - 15  # of the match's length, what the first byte does not hold
_OF_ZEROS = np.array(
    [0x1F, 0, 1, 0, *(_MORE // 255 * [255]), _MORE % 255, 0x50, 0, 0, 0, 0, 0], dtype=np.uint8
)

# which parts of a word are exchanged: every second bit, pair and half byte
_MASKS = (_U(0x5555555555555555), _U(0x3333333333333333), _U(0x0F0F0F0F0F0F0F0F))


@inner_kernel
def _swap(a, b, shift, mask):  # type: ignore[no-untyped-def]
    """Exchange the upper parts of `a` with the lower parts of `b`."""
    t = ((a >> shift) ^ b) & mask
    return a ^ (t << shift), b ^ t


@inner_kernel
def _transposed(a, b, c, d, e, f, g, h):  # type: ignore[no-untyped-def]
    """Eight words as eight matrices of 8 x 8 bits, one a byte, transposed."""
    a, b = _swap(a, b, _U(1), _MASKS[0])
    c, d = _swap(c, d, _U(1), _MASKS[0])
    e, f = _swap(e, f, _U(1), _MASKS[0])
    g, h = _swap(g, h, _U(1), _MASKS[0])
    a, c = _swap(a, c, _U(2), _MASKS[1])
    b, d = _swap(b, d, _U(2), _MASKS[1])
    e, g = _swap(e, g, _U(2), _MASKS[1])
    f, h = _swap(f, h, _U(2), _MASKS[1])
    a, e = _swap(a, e, _U(4), _MASKS[2])
    b, f = _swap(b, f, _U(4), _MASKS[2])
    c, g = _swap(c, g, _U(4), _MASKS[2])
    d, h = _swap(d, h, _U(4), _MASKS[2])
    return a, b, c, d, e, f, g, h


@inner_kernel
def _bytes(planes, out):  # type: ignore[no-untyped-def]
    """Eight planes of bits to eight rows of bytes: byte m of row k is that of number 8 m + k."""
    some = _U(0)
    for w in range(planes.size):
        some |= planes[w]
    if some == _U(0):  # as of the last bits of whole numbers
        out[:] = _U(0)
        return
    for w in range(_WORDS):
        a, b, c, d, e, f, g, h = _transposed(
            planes[w], planes[_WORDS + w], planes[2 * _WORDS + w], planes[3 * _WORDS + w],
            planes[4 * _WORDS + w], planes[5 * _WORDS + w], planes[6 * _WORDS + w],
            planes[7 * _WORDS + w],
        )  # fmt: skip
        out[w], out[_WORDS + w], out[2 * _WORDS + w], out[3 * _WORDS + w] = a, b, c, d
        out[4 * _WORDS + w], out[5 * _WORDS + w] = e, f
        out[6 * _WORDS + w], out[7 * _WORDS + w] = g, h


@inner_kernel
def _joined(low, second, third, high, out):  # type: ignore[no-untyped-def]
    """Numbers from their four bytes."""
    for v in range(out.size):
        out[v] = (
            np.uint32(low[v])
            | (np.uint32(second[v]) << np.uint32(8))
            | (np.uint32(third[v]) << np.uint32(16))
            | (np.uint32(high[v]) << np.uint32(24))
        )


@inner_kernel
def column_place(v):  # type: ignore[no-untyped-def]
    """Where number `v` of a block lies in its columns."""
    return COLUMN * (v % 8) + v // 8


@inner_kernel
def to_columns(values, columns):  # type: ignore[no-untyped-def]
    """Numbers in their order to columns; there may be fewer of them than a block has."""
    for m in range(values.size // 8):
        for k in range(8):
            columns[COLUMN * k + m] = values[8 * m + k]
    for v in range(values.size // 8 * 8, values.size):
        columns[column_place(v)] = values[v]


@inner_kernel
def _in_order(columns, out):  # type: ignore[no-untyped-def]
    """Numbers in their order from columns; `out` may be shorter than the block."""
    for m in range(out.size // 8):
        for k in range(8):
            out[8 * m + k] = columns[COLUMN * k + m]
    for v in range(out.size // 8 * 8, out.size):
        out[v] = columns[column_place(v)]


@inner_kernel
def _is_of_zeros(encoded):  # type: ignore[no-untyped-def]
    """Whether it is a whole stream of zeros, as of the last bits of whole numbers."""
    if encoded.size != _OF_ZEROS.size:
        return False
    differs = np.uint8(0)
    for k in range(_OF_ZEROS.size):
        differs |= encoded[k] ^ _OF_ZEROS[k]
    return differs == 0


@inner_kernel
def _size_of_stream(encoded, start, stop):  # type: ignore[no-untyped-def]
    """Read how many bytes follow the size of a stream at `start`; -1 where they do not."""
    begin = start + 4
    if begin > stop:
        return -1
    size = np.int64(0)
    for k in range(4):
        size |= np.int64(encoded[start + k]) << (8 * k)
    return -1 if size < 1 or size > stop - begin else size  # a negative size is a large one here


@inner_kernel
def _stream(encoded, start, stop, out):  # type: ignore[no-untyped-def]
    """Decode a stream that begins with its size into all of `out`; say where it ends, or -1."""
    begin = start + 4
    size = _size_of_stream(encoded, start, stop)
    if size < 0:
        return -1
    own = encoded[begin : begin + size]
    if size == out.size:
        for k in range(out.size):
            out[k] = own[k]
    elif out.size == _STREAM and _is_of_zeros(own):
        out[:] = 0
    elif _lz4(own.ctypes, out.ctypes, size, out.size) != out.size:
        return -1
    return begin + size


@inner_kernel
def room_for_block():  # type: ignore[no-untyped-def]
    """Room that :func:`decode_columns` needs: what LZ4 gives, planes, and rows of bytes."""
    return (
        np.empty(BLOCK, dtype=np.uint8),
        np.zeros(BLOCK, dtype=np.uint8),
        np.empty((4, 8 * _WORDS), dtype=np.uint64),
    )


@inner_kernel
def decode_columns(encoded, start, stop, n, room, columns):  # type: ignore[no-untyped-def]
    """Decode the block of `n` numbers in ``encoded[start:stop]``; say whether it is sound.

    `columns` are the bits of its numbers, (16384,) whatever `n` is.
    """
    raw, planes, rows = room
    parts = rows.view(np.uint8)
    if n == NUMBERS:
        at = start
        stream = raw[:_STREAM]  # each in the same place, where it lies in the nearest cache
        for j in range(4):
            at = _stream(encoded, at, stop, stream)
            if at < 0:
                return False
            _bytes(stream.view(np.uint64), rows[j])
        _joined(parts[0], parts[1], parts[2], parts[3], columns)
        return True
    if _stream(encoded, start, stop, raw[: 4 * n]) < 0:
        return False
    if n % 8:  # Blosc leaves these as they are
        to_columns(raw[: 4 * n].view(np.uint32), columns)
        return True
    short = n // 8
    for plane in range(32):
        for k in range(short):
            planes[plane * _PLANE + k] = raw[plane * short + k]
    words = planes.view(np.uint64)
    for j in range(4):
        _bytes(words[8 * _WORDS * j : 8 * _WORDS * (j + 1)], rows[j])
    _joined(parts[0], parts[1], parts[2], parts[3], columns)
    return True


@inner_kernel
def decode_block(encoded, start, stop, room, columns, out):  # type: ignore[no-untyped-def]
    """Decode a block as :func:`decode_columns` does, its numbers in their order.

    `out`, the bits of its numbers, is (16384,), or shorter for the last block of a row.
    """
    if not decode_columns(encoded, start, stop, out.size, room, columns):
        return False
    _in_order(columns, out)
    return True


@kernel(read_only("uint8", "int64[::1], uint32[::1]"))
def decode_blocks(
    encoded: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], out: npt.NDArray[np.uint32]
) -> bool:
    """Decode the blocks of a row.

    Parameters
    ----------
    encoded
        Row.
    bounds
        (block + 1,) where blocks begin in it, within its size.
    out
        (number,) bits of the numbers; all blocks but the last are whole.

    Returns
    -------
    bool
        Whether all blocks are sound.
    """
    room = room_for_block()
    columns = np.empty(NUMBERS, dtype=np.uint32)
    for b in range(bounds.size - 1):
        own = out[b * NUMBERS : min((b + 1) * NUMBERS, out.size)]
        if not decode_block(encoded, bounds[b], bounds[b + 1], room, columns, own):
            return False
    return True


@kernel(read_only("uint8", "int64[::1], int64, uint8[::1], int64[::1]"))
def copy_streams(
    encoded: npt.NDArray[np.uint8],
    bounds: npt.NDArray[np.int64],
    n: int,
    out: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
) -> int:
    """Copy the streams of a row of which LZ4 took less than an eighth off, and all else as it is.

    Parameters
    ----------
    encoded, bounds
        As for :func:`decode_blocks`.
    n
        Numbers in the row.
    out
        Room for the blocks, 4 bytes a stream more than the numbers take.
    starts
        (block,) where each begins in `out`.

    Returns
    -------
    int
        Bytes of `out`, -1 when a block is not sound.
    """
    to = 0
    for b in range(bounds.size - 1):
        starts[b] = to
        at, stop = bounds[b], bounds[b + 1]
        if n - b * NUMBERS < NUMBERS:  # one stream
            for k in range(stop - at):
                out[to + k] = encoded[at + k]
            return int(to + stop - at)
        for _ in range(4):
            size = _size_of_stream(encoded, at, stop)
            if size < 0:
                return -1
            is_copied = _WORTH < size < _STREAM
            own = out[to : to + 4 + (_STREAM if is_copied else size)]
            if is_copied:
                for k in range(4):
                    own[k] = _STREAM >> (8 * k) & 255
                at = _stream(encoded, at, stop, own[4:])
                if at < 0:
                    return -1
            else:
                own[:] = encoded[at : at + own.size]
                at += own.size
            to += own.size
    return to
