"""Kernel that puts the bits of Blosc's bit shuffle back in place.

A block of float32 numbers lies in 32 planes, one for each bit: byte m of plane b holds bit b
of numbers 8 m to 8 m + 7. Words of 64 bits are transposed by exchanging ever larger parts of
them, which the compiler does for four words at a time.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.accelerate import inner_kernel, kernel

__all__ = ["BLOCK", "unshuffle_bits"]

#: Bytes of a block that the kernel takes: the one that Blosc chooses for rows of float32.
BLOCK = 65536

_NUMBERS = BLOCK // 4
_WORDS = BLOCK // 32 // 8  # words of 64 bits in a plane
_U = np.uint64

# which parts of a word are exchanged: every second bit, pair and half byte; byte, pair and half
_BITS = (_U(0x5555555555555555), _U(0x3333333333333333), _U(0x0F0F0F0F0F0F0F0F))
_BYTES = (_U(0x00FF00FF00FF00FF), _U(0x0000FFFF0000FFFF), _U(0x00000000FFFFFFFF))


@inner_kernel
def _swap(a, b, shift, mask):  # type: ignore[no-untyped-def]
    """Exchange the upper parts of `a` with the lower parts of `b`."""
    t = ((a >> shift) ^ b) & mask
    return a ^ (t << shift), b ^ t


@inner_kernel
def _transposed(a, b, c, d, e, f, g, h, one, masks):  # type: ignore[no-untyped-def]
    """Eight words as an 8 x 8 matrix, transposed; its cells have `one` bits."""
    two, four = one + one, one + one + one + one
    a, b = _swap(a, b, one, masks[0])
    c, d = _swap(c, d, one, masks[0])
    e, f = _swap(e, f, one, masks[0])
    g, h = _swap(g, h, one, masks[0])
    a, c = _swap(a, c, two, masks[1])
    b, d = _swap(b, d, two, masks[1])
    e, g = _swap(e, g, two, masks[1])
    f, h = _swap(f, h, two, masks[1])
    a, e = _swap(a, e, four, masks[2])
    b, f = _swap(b, f, four, masks[2])
    c, g = _swap(c, g, four, masks[2])
    d, h = _swap(d, h, four, masks[2])
    return a, b, c, d, e, f, g, h


@inner_kernel
def _bits(planes, out):  # type: ignore[no-untyped-def]
    """Eight planes of bits to eight rows of bytes: byte m of row k is that of number 8 m + k."""
    for w in range(_WORDS):
        a, b, c, d, e, f, g, h = _transposed(
            planes[w], planes[_WORDS + w], planes[2 * _WORDS + w], planes[3 * _WORDS + w],
            planes[4 * _WORDS + w], planes[5 * _WORDS + w], planes[6 * _WORDS + w],
            planes[7 * _WORDS + w], _U(1), _BITS,
        )  # fmt: skip
        out[w], out[_WORDS + w], out[2 * _WORDS + w], out[3 * _WORDS + w] = a, b, c, d
        out[4 * _WORDS + w], out[5 * _WORDS + w] = e, f
        out[6 * _WORDS + w], out[7 * _WORDS + w] = g, h


@inner_kernel
def _bytes(rows, out):  # type: ignore[no-untyped-def]
    """Eight rows of bytes to one, in the order of the numbers."""
    for w in range(_WORDS):
        a, b, c, d, e, f, g, h = _transposed(
            rows[w], rows[_WORDS + w], rows[2 * _WORDS + w], rows[3 * _WORDS + w],
            rows[4 * _WORDS + w], rows[5 * _WORDS + w], rows[6 * _WORDS + w],
            rows[7 * _WORDS + w], _U(8), _BYTES,
        )  # fmt: skip
        v = 8 * w
        out[v], out[v + 1], out[v + 2], out[v + 3] = a, b, c, d
        out[v + 4], out[v + 5], out[v + 6], out[v + 7] = e, f, g, h


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


@kernel("void(uint64[::1], uint32[::1])")
def unshuffle_bits(shuffled: npt.NDArray[np.uint64], out: npt.NDArray[np.uint32]) -> None:
    """Put the bits of whole blocks back in place.

    Parameters
    ----------
    shuffled
        (8192 n,) words of n blocks.
    out
        (16384 n,) bits of the numbers.
    """
    rows = np.empty(8 * _WORDS, dtype=np.uint64)
    ordered = np.zeros((4, 8 * _WORDS), dtype=np.uint64)
    parts = ordered.view(np.uint8)
    for block in range(out.size // _NUMBERS):
        for j in range(4):
            start = (4 * block + j) * 8 * _WORDS
            planes = shuffled[start : start + 8 * _WORDS]
            if j == 0 and not planes.any():  # whole numbers have no bits there
                ordered[0] = 0
                continue
            _bits(planes, rows)
            _bytes(rows, ordered[j])
        _joined(parts[0], parts[1], parts[2], parts[3], out[block * _NUMBERS :][:_NUMBERS])
