"""Whatever lies where an image should be: a usable image or a clear error, in bounded memory.

SCALEBRAIN_FUZZ_EXAMPLES sets the number of examples of each test.
"""

import gzip
import os
import random
import struct
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalebrain.errors import ScalebrainError
from scalebrain.io.files import SourceFile
from scalebrain.io.guard import RULES
from scalebrain.io.nifti import read_header, read_image

EXAMPLES = int(os.environ.get("SCALEBRAIN_FUZZ_EXAMPLES", "100"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SCALEBRAIN_FUZZ_EXAMPLES" not in os.environ,
    database=None,
)
MAX_PEAK = 24 * 2**20
ZEROS = gzip.compress(bytes(2**23), 1)
AFFINE = np.array([[2.0, 0.1, 0, -5], [-0.1, 2, 0, 8], [0, 0, -1.5, -20], [0, 0, 0, 1]])


def image_bytes(kind, order, dtype, shape):
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = kind(values, AFFINE, header)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 2)
    return image.to_bytes()


CONTENTS = [
    (image_bytes(kind, order, dtype, shape), order, kind.header_class.sizeof_hdr)
    for kind in (nib.Nifti1Image, nib.Nifti2Image)
    for order in "<>"
    for dtype, shape in (("i2", (5, 4, 6)), ("f4", (3, 4, 5, 2)), ("u1", (20, 30, 25)))
]
# Where the numbers of a header lie, by format: more likely to be hit than by chance.
FIELDS = {
    348: [
        *[(at, "h") for at in (*range(40, 56, 2), 70, 72, 252, 254)],
        *[(at, "f") for at in (*range(76, 92, 4), 108, 112, 116, *range(256, 328, 4))],
    ],
    540: [
        *[(at, "h") for at in (12, 14)],
        *[(at, "i") for at in (344, 348)],
        *[(at, "q") for at in (*range(16, 80, 8), 168)],
        *[(at, "d") for at in (*range(104, 136, 8), 176, 184, *range(352, 496, 8))],
    ],
}
NUMBERS = {
    **{
        form: st.integers(-3, 40)
        | st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        | st.sampled_from([2 ** (bits - 1) - 1, -(2 ** (bits - 1))])
        for form, bits in (("h", 16), ("i", 32), ("q", 64))
    },
    "f": st.integers(-3, 400) | st.floats(width=32),
    "d": st.integers(-3, 400) | st.floats() | st.sampled_from([1e308, 5e-324]),
}


@st.composite
def headers(draw):
    """An image with some of its header changed."""
    whole, order, size = draw(st.sampled_from(CONTENTS))
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 3)):
            at, form = draw(st.sampled_from(FIELDS[size]))
            struct.pack_into(order + form, content, at, draw(NUMBERS[form]))
        else:
            at = draw(st.integers(0, size - 8))
            changed = draw(st.binary(min_size=1, max_size=8))
            content[at : at + len(changed)] = changed
    return bytes(content)


@st.composite
def streams(draw):
    """A file of such an image: compressed in one or more members, cut, flipped, extended."""
    content = draw(headers())
    how = draw(st.sampled_from(["plain", "gzip", "members", "padded", "lying", "bomb"]))
    if how == "members":
        cut = draw(st.integers(0, len(content)))
        packed = gzip.compress(content[:cut], 1) + gzip.compress(content[cut:], 1)
    elif how == "bomb":
        packed = gzip.compress(content, 1) + 4 * ZEROS
    else:
        packed = content if how == "plain" else gzip.compress(content, 1)
    if how == "padded":
        packed += bytes(draw(st.integers(1, 40)))
    if how == "lying":
        packed = packed[:-4] + struct.pack("<I", draw(st.integers(0, 2**32 - 1)))
    packed = bytearray(packed)
    for _ in range(draw(st.integers(0, 2))):
        packed[draw(st.integers(0, len(packed) - 1))] ^= draw(st.integers(1, 255))
    if draw(st.booleans()):
        del packed[draw(st.integers(0, len(packed))) :]
    return bytes(packed)


def check(file, **options):
    """Read a file by both readers; whatever is in it, one of two outcomes."""
    codes = []
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for reader in (read_image, read_header):
        try:
            result = reader(file, **options)
        except ScalebrainError as error:
            assert error.code in RULES, error  # noqa: PT017
            assert str(error).startswith(f"{file}: ")  # noqa: PT017
            codes.append(error.code)
        else:
            codes.append("")
            if reader is read_image:
                assert result.raw.size == np.prod(result.shape)
                assert result.raw.dtype.isnative
                assert np.isfinite([result.slope, result.intercept]).all()
                assert all(code in RULES and message for code, message in result.notes)
                values, affine = result.ras()
                assert values.size == result.raw.size
                assert np.isfinite(affine).all()
                shape, affine = result.shape, result.affine
            else:
                shape, affine = result
            assert len(shape) == 3
            assert affine.shape == (4, 4)
            assert np.isfinite(affine).all()
    assert tracemalloc.get_traced_memory()[1] - before < MAX_PEAK
    if not codes[0]:
        assert not codes[1]  # what can be read in full has a header that can be read
    return codes[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Where every example lies in turn."""
    tracemalloc.start(1)
    yield tmp_path_factory.mktemp("fuzz") / "a.nii.gz"
    tracemalloc.stop()


@SETTINGS
@given(content=headers(), volume=st.sampled_from([None, 0, 1]), assume=st.booleans())
def test_fuzz__header(path, content, volume, assume):
    plain = path.with_suffix("")
    plain.write_bytes(content)
    code = check(plain, volume=volume, assume_space=assume)
    path.write_bytes(gzip.compress(content, 1))
    packed = check(path, volume=volume, assume_space=assume)
    assert bool(code) == bool(packed)


@SETTINGS
@given(content=streams(), volume=st.sampled_from([None, 0, 1]))
def test_fuzz__stream(path, content, volume):
    path.write_bytes(content)
    check(path, volume=volume)
    plain = path.with_suffix("")
    plain.write_bytes(content)
    check(plain, volume=volume)


@SETTINGS
@given(
    start=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\x5c\1\0\0", b"\0\0\2\x1c"]),
    content=st.binary(max_size=600),
)
def test_fuzz__garbage(path, start, content):
    path.write_bytes(start + content)
    check(path)


@SETTINGS
@given(content=headers(), packed=st.booleans(), seed=st.integers(0, 2**32), n=st.integers(0, 3))
def test_fuzz__archive(path, content, packed, seed, n):
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.nii", gzip.compress(content, 1) if packed else content)
    damaged = bytearray(archive.read_bytes())
    chance = random.Random(seed)
    for _ in range(n):
        span = chance.choice([len(damaged), 120])  # anywhere, or in the directory at the end
        damaged[-chance.randrange(1, span + 1)] = chance.randrange(256)
    archive.write_bytes(damaged)
    check(SourceFile(archive, "a.nii"))
    try:
        assert ":" in SourceFile(archive, "a.nii").content_key()
    except ScalebrainError as error:
        assert error.code in RULES  # noqa: PT017


def test_fuzz__unchanged_images_are_read(path):
    for content, _, _ in CONTENTS:
        path.write_bytes(gzip.compress(content))
        assert check(path, volume=0) == ""
