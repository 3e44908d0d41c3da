import functools
import gzip
import io
import itertools
import struct
import tracemalloc
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest

from scalebrain.errors import GeometryError, ImageError, ScalebrainError
from scalebrain.io.files import SourceFile
from scalebrain.io.guard import RULES
from scalebrain.io.nifti import read_header, read_image

SHAPE = (5, 7, 6)
AFFINE = np.array([[2.0, 0, 0, -5], [0, 3, 0, 8], [0, 0, 1.5, -20], [0, 0, 0, 1]])
DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
# Offsets of fields in a NIfTI-1 header.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT = 40, 70, 72, 76, 108, 112, 116
QCODE, SCODE, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344
SECRET = b"JANE DOE 1950"


def phantom(dtype="i2", shape=SHAPE):
    values = np.random.default_rng(1).integers(0, 100, shape)
    return values.astype(dtype)


def image_bytes(data=None, affine=AFFINE, *, kind=nib.Nifti1Image, order="<", codes=(2, 2)):
    data = phantom() if data is None else data
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype.newbyteorder(order))
    image = kind(data, affine, header)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    return image.to_bytes()


def write(path, content, *patches):
    """Content with (offset, format, values...) patched, compressed when the name says so."""
    content = bytearray(content)
    for at, form, *values in patches:
        struct.pack_into(form, content, at, *values)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def refused(path, code, error=ImageError, *, header=True, **options):
    """Check that both readers refuse the file with a message that names it; return that."""
    readers = (read_image, read_header) if header else (read_image,)
    for reader in readers:
        with pytest.raises(ScalebrainError) as caught:
            reader(path, **options)
        assert type(caught.value) is error, caught.value
        assert caught.value.code == code, caught.value
        assert code in RULES
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.endswith(".")
    return message


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
def test_read_image__every_type_and_byte_order_as_nibabel(tmp_path, dtype, order, kind, name):
    data = phantom(dtype)
    limit = np.iinfo(dtype) if data.dtype.kind in "iu" else np.finfo(dtype)
    data[0, 0, :3] = limit.min, limit.max, 1
    if dtype == "f8":
        data[0, 0, :2] = 1 / 3, -1e30
    path = write(tmp_path / name, image_bytes(data, kind=kind, order=order))
    expected = nib.load(path)
    assert expected.get_data_dtype() == np.dtype(dtype).newbyteorder(order)
    image = read_image(path)
    assert image.raw.dtype == np.dtype(dtype)
    assert image.raw.dtype.isnative
    assert image.raw.flags.aligned
    assert image.raw.flags.writeable
    assert image.shape == SHAPE
    assert (image.slope, image.intercept, image.notes) == (1.0, 0.0, ())
    np.testing.assert_array_equal(image.raw.reshape(SHAPE, order="F"), data)
    np.testing.assert_array_equal(image.affine, expected.affine)
    values, affine = image.ras()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected.get_fdata().astype(np.float32))
    np.testing.assert_array_equal(affine, expected.affine)
    shape, affine = read_header(path)
    assert shape == SHAPE
    np.testing.assert_array_equal(affine, expected.affine)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_image_ras__all_48_orientations_as_nibabel(tmp_path, order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * [2, 3, 1.5]
    affine[:3, 3] = 10, -20, 30
    path = write(tmp_path / "a.nii.gz", image_bytes(affine=affine))
    expected = nib.as_closest_canonical(nib.load(path))
    values, ras = read_image(path).ras()
    np.testing.assert_array_equal(values, expected.get_fdata().astype(np.float32))
    np.testing.assert_allclose(ras, expected.affine, atol=1e-12)
    assert nib.aff2axcodes(ras) == ("R", "A", "S")


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4)])
@pytest.mark.parametrize("angles", [(20, 0, 0), (10, -25, 160), (-90, 45.5, 12), (180, 3, 0)])
def test_read_image__oblique_affines_as_nibabel(tmp_path, angles, codes):
    x, y, z = np.radians(angles)
    turn = nib.eulerangles.euler2mat(z, y, x)
    affine = nib.affines.from_matvec(turn @ np.diag([-1.0, 2, 3.5]), [4, 5, -60])
    path = write(tmp_path / "a.nii.gz", image_bytes(affine=affine, codes=codes))
    expected = nib.load(path)
    image = read_image(path)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-3 if codes[1] == 0 else 0)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.notes == ()
    values, ras = image.ras()
    canonical = nib.as_closest_canonical(expected)
    np.testing.assert_array_equal(values, canonical.get_fdata().astype(np.float32))
    np.testing.assert_allclose(ras, canonical.affine, atol=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_image_ras__scales_as_nibabel(tmp_path, dtype):
    patches = (SLOPE, "<2f", 1 / 255, -0.7)
    path = write(tmp_path / "a.nii.gz", image_bytes(phantom(dtype)), patches)
    image = read_image(path)
    assert (image.slope, image.intercept) == tuple(np.array([1 / 255, -0.7], np.float32).tolist())
    expected = nib.load(path).get_fdata().astype(np.float32)
    np.testing.assert_array_equal(image.ras()[0], expected)


def test_image_ras__integers_that_overflow_when_scaled(tmp_path):
    data = np.full(SHAPE, 30000, np.int16)
    path = write(tmp_path / "a.nii", image_bytes(data), (SLOPE, "<2f", 1000.0, 5.0))
    np.testing.assert_array_equal(read_image(path).ras()[0], np.float32(30_000_005))
    write(path, image_bytes(data), (SLOPE, "<2f", 1e38, 0.0))
    assert np.isposinf(read_image(path).ras()[0]).all()


@pytest.mark.parametrize("intercept", [0.0, 7.0, np.nan])
def test_read_image__slope_0_is_no_scaling(tmp_path, intercept):
    path = write(tmp_path / "a.nii", image_bytes(), (SLOPE, "<2f", 0.0, intercept))
    image = read_image(path)
    assert (image.slope, image.intercept) == (1.0, 0.0)
    np.testing.assert_array_equal(image.ras()[0], nib.load(path).get_fdata())


@pytest.mark.parametrize("pair", [(np.nan, 0), (np.inf, 0), (1, np.nan), (1, -np.inf)])
def test_read_image__bad_scaling(tmp_path, pair):
    refused(write(tmp_path / "a.nii.gz", image_bytes(), (SLOPE, "<2f", *pair)), "bad-scaling")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1, 1, 1)])
def test_read_image__one_frame_is_squeezed(tmp_path, shape, kind):
    path = write(tmp_path / "a.nii.gz", image_bytes(phantom(shape=shape), kind=kind))
    for volume in (None, 0, 1):  # which of several to take says nothing of an only one
        image = read_image(path, volume=volume)
        assert image.shape == SHAPE
        np.testing.assert_array_equal(image.ras()[0], nib.load(path).get_fdata().reshape(SHAPE))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_read_image__many_frames(tmp_path, name):
    data = phantom(shape=(*SHAPE, 4))
    path = write(tmp_path / name, image_bytes(data))
    assert "4 frames" in refused(path, "many-frames")
    for volume in range(4):
        image = read_image(path, volume=volume)
        assert image.raw.size == np.prod(SHAPE)
        np.testing.assert_array_equal(image.ras()[0], data[..., volume])
        assert read_header(path, volume=volume)[0] == SHAPE
    refused(path, "many-frames", volume=4)
    refused(path, "many-frames", volume=-1)
    path.write_bytes(path.read_bytes()[:-9])
    refused(path, "truncated", volume=0, header=name == "a.nii")


def test_read_image__one_of_many_frames_in_the_memory_of_one(tmp_path):
    frame = (40, 50, 60)
    path = write(tmp_path / "a.nii.gz", image_bytes(np.zeros((*frame, 100), np.int16)))
    assert peak(lambda: read_image(path, volume=50)) < 2 * np.prod(frame) + 4 * 2**20


def test_read_image__extension_and_odd_offset(tmp_path):
    data = phantom("f4")
    content = image_bytes(data)
    extended = content[:348] + b"\1\0\0\0" + struct.pack("<2i", 32, 6) + SECRET.ljust(24)
    for gap in (b"", b"\0\0\0"):
        shifted = extended + gap
        path = tmp_path / "a.nii.gz"
        write(path, shifted + content[352:], (VOX_OFFSET, "<f", len(shifted)))
        image = read_image(path)
        assert image.raw.flags.aligned
        np.testing.assert_array_equal(image.ras()[0], data)


def test_read_image__free_text_is_not_carried_on(tmp_path):
    text = [(at, f"{len(SECRET)}s", SECRET) for at in (4, 148, 228, 328)]
    path = write(tmp_path / "a.nii.gz", image_bytes(), *text, (SCODE, "<h", 0), (QCODE, "<h", 0))
    assert SECRET.decode() not in str(read_image(path, assume_space=True))
    assert SECRET.decode() not in refused(path, "no-orientation", GeometryError)


# --- compression -----------------------------------------------------------------------------


def test_read_image__the_magic_decides_not_the_name(tmp_path):
    content = image_bytes()
    (tmp_path / "a.nii").write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").ras()[0], phantom())
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert "Rename it to .nii" in refused(tmp_path / "a.nii.gz", "not-nifti")


@pytest.mark.parametrize("cuts", [[100], [348], [352], [353, 400], [1, 2, 3], [352 + 420]])
def test_read_image__several_gzip_members(tmp_path, cuts):
    content = image_bytes()
    edges = [0, *cuts, len(content)]
    parts = [content[a:b] for a, b in itertools.pairwise(edges)]
    path = tmp_path / "a.nii.gz"
    for padding in (b"", b"\0" * 100):
        path.write_bytes(padding.join(gzip.compress(part) for part in [*parts, b""]) + padding)
        assert gzip.decompress(path.read_bytes()) == content
        np.testing.assert_array_equal(read_image(path).ras()[0], phantom())
        assert read_header(path)[0] == SHAPE


@pytest.mark.parametrize("padding", [1, 4, 8, 512, 100_000])
def test_read_image__zeros_behind_the_stream(tmp_path, padding):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(image_bytes()) + b"\0" * padding)
    np.testing.assert_array_equal(read_image(path).ras()[0], phantom())
    path.write_bytes(path.read_bytes() + b"rubbish")
    refused(path, "truncated", header=False)


def test_read_image__bytes_behind_the_voxels(tmp_path):
    path = write(tmp_path / "a.nii.gz", image_bytes() + b"\1" * 1000)
    np.testing.assert_array_equal(read_image(path).ras()[0], phantom())
    path = write(tmp_path / "b.nii.gz", image_bytes() + b"\1" * 2**21)
    np.testing.assert_array_equal(read_image(path).ras()[0], phantom())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_read_image__truncated_anywhere(tmp_path, name):
    whole = write(tmp_path / name, image_bytes()).read_bytes()
    path = tmp_path / f"cut.{name}"
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "truncated", header=name == "a.nii")
    path.write_bytes(whole)
    assert read_image(path).shape == SHAPE


def test_read_image__damaged_stream(tmp_path):
    whole = gzip.compress(image_bytes())
    path = tmp_path / "a.nii.gz"
    for at in range(len(whole) - 8, len(whole)):  # checksum and size
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(path, "truncated", header=False)


def gzip_of(*parts, size, crc=0):
    """One gzip member; a part (bytes, n) is compressed once and repeated n times."""
    packed = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    for part, n in parts:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed += (squeeze.compress(part) + squeeze.flush(zlib.Z_FULL_FLUSH)) * n
    return bytes(packed + b"\x03\0" + struct.pack("<2I", crc, size % 2**32))


@pytest.mark.parametrize("claim", [0, len(image_bytes()), len(image_bytes()) + 5000, 2**30])
def test_read_image__gzip_bomb_in_little_memory(tmp_path, claim):
    gib = (bytes(2**24), 64)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip_of((image_bytes(), 1), gib, size=claim))
    assert path.stat().st_size < 2**21
    assert peak(lambda: refused(path, "gzip-bomb", header=False)) < 8 * 2**20


def test_read_image__gzip_bomb_of_many_members(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(image_bytes()) + 64 * gzip.compress(bytes(2**24)))
    assert peak(lambda: refused(path, "gzip-bomb", header=False)) < 8 * 2**20


def test_read_image__gzip_bomb_that_is_no_image(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip_of((bytes(2**24), 64), size=2**30))
    assert peak(lambda: refused(path, "not-nifti")) < 2**20
    path.write_bytes(gzip.compress(gzip.compress(image_bytes())))
    refused(path, "not-nifti")


@pytest.mark.parametrize("claim", [0, 352 + 1000**3, 2**32 - 1])
def test_read_image__claims_that_nothing_backs(tmp_path, claim):
    head = bytearray(image_bytes(phantom("u1")))
    struct.pack_into("<4h", head, DIM, 3, 1000, 1000, 1000)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip_of((bytes(head), 1), size=claim, crc=zlib.crc32(head)))
    code = "gzip-bomb" if claim == 352 + 1000**3 else "truncated"
    assert peak(lambda: refused(path, code, header=False)) < 4 * 2**20


# --- not an image ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty-file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer"),
        (b"/annex/objects/MD5E-s100--0.nii.gz\n", "pointer"),
        (b"../../.git/annex/objects/x/y/MD5E-s1", "pointer"),
        (b"\n <!DOCTYPE html><html>", "web-page"),
        (b"<html>404</html>", "web-page"),
        (b"<?xml version='1.0'?>", "web-page"),
        (b"\xef\xbb\xbf<html>404</html>", "web-page"),
        (b"<!-- saved -->\n<html>", "web-page"),
        (b'{"message": "Not authenticated"}', "not-nifti"),
        (b"PK\3\4 something else that is not an image", "not-nifti"),
        (bytes(1000), "not-nifti"),
        (b"\x5c", "not-nifti"),
    ],
)
def test_read_image__something_else(tmp_path, name, content, code):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, code)


def test_read_image__says_that_it_is_a_text(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b'{"message": "Not authenticated"}')
    assert "a text file, not an image" in refused(path, "not-nifti")


def test_read_image__empty_stream(tmp_path):
    refused(write(tmp_path / "a.nii.gz", b""), "empty-file")


def test_read_image__unreadable(tmp_path):
    refused(tmp_path / "missing.nii.gz", "unreadable")
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "folder.nii", "unreadable")
    (tmp_path / "file").write_bytes(b"")
    refused(tmp_path / "file" / "a.nii", "unreadable")
    refused(tmp_path / "a\0.nii", "unreadable")
    (tmp_path / "annexed.nii.gz").symlink_to(".git/annex/objects/x/MD5E-s1--0")
    assert "datalad get" in refused(tmp_path / "annexed.nii.gz", "pointer")


def test_read_image__analyze_and_pairs(tmp_path):
    nib.AnalyzeImage(phantom(), AFFINE).to_filename(tmp_path / "analyze.img")
    assert "Analyze" in refused(tmp_path / "analyze.hdr", "not-nifti")
    nib.Nifti1Pair(phantom(), AFFINE).to_filename(tmp_path / "pair.img")
    assert "pair" in refused(tmp_path / "pair.hdr", "not-nifti")
    nib.Nifti2Pair(phantom(), AFFINE).to_filename(tmp_path / "pair2.img")
    assert "pair" in refused(tmp_path / "pair2.hdr", "not-nifti")
    nib.MGHImage(phantom("f4"), AFFINE).to_filename(tmp_path / "a.mgz")
    assert "mri_convert" in refused(tmp_path / "a.mgz", "not-nifti")


@pytest.mark.parametrize(
    "patch",
    [
        *[(DIM, "<h", n) for n in (0, 8, -1, 2, 1, 2**15 - 1)],
        *[(DIM + 2 * i, "<h", n) for i in (1, 2, 3) for n in (0, -5)],
        *[(VOX_OFFSET, "<f", x) for x in (0, 348, 351, -352, 352.5, np.nan, np.inf)],
        *[(DATATYPE, "<h", n) for n in (0, 1, 3, 32, 128, 1536, 1792, 2048, 2304, 4096, -4)],
        *[(BITPIX, "<h", n) for n in (0, 8, 32, -16)],
        (MAGIC, "4s", b"n+2\0"),
        (MAGIC, "4s", b"\0\0\0\0"),
        (0, "<i", 349),
    ],
)
def test_read_image__impossible_header(tmp_path, patch):
    refused(write(tmp_path / "a.nii", image_bytes(), patch), "not-nifti")
    refused(write(tmp_path / "a.nii.gz", image_bytes(), patch), "not-nifti")


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ((DIM, "<4h", 3, 2000, 2000, 501), "header-claims"),
        ((DIM, "<8h", 7, *[2**15 - 1] * 7), "header-claims"),
        ((VOX_OFFSET, "<f", 1e30), "header-claims"),
        ((VOX_OFFSET, "<f", 1e6), "truncated"),
        ((DIM, "<4h", 3, 1000, 1000, 1000), "header-claims"),  # 2 GB a frame
        ((DIM, "<4h", 3, 1000, 1000, 500), "truncated"),
    ],
)
def test_read_image__header_claims(tmp_path, patch, code):
    path = write(tmp_path / "a.nii", image_bytes(), patch)
    assert peak(lambda: refused(path, code)) < 2**20
    path = write(tmp_path / "a.nii.gz", image_bytes(), patch)
    assert peak(lambda: refused(path, code, header=code == "header-claims")) < 4 * 2**20


def test_read_image__header_claims_of_nifti_2(tmp_path):
    content = image_bytes(kind=nib.Nifti2Image)
    for patch, code in [
        ((16, "<4q", 3, 2**62, 2**62, 2**62), "header-claims"),
        ((16, "<4q", 3, 2**40, 1, 1), "header-claims"),
        ((168, "<q", 2**62), "header-claims"),
        ((168, "<q", 352), "not-nifti"),
        ((168, "<q", -1), "not-nifti"),
        ((16, "<4q", 3, -(2**63), 1, 1), "not-nifti"),
    ]:
        refused(write(tmp_path / "a.nii", content, patch), code)
    for at in (176, 352, 376, 400, 104):  # scaling, qform, sform, pixdim
        for value in (np.nan, np.inf, -np.inf, 1e308, 1e-308):
            path = write(tmp_path / "a.nii", content, (at, "<3d", value, value, value))
            found = [""]
            try:
                assert np.isfinite(read_image(path).affine).all()
            except ScalebrainError as error:
                found = [error.code]
            assert found[0] in ("", "bad-scaling", "no-orientation")


# --- orientation -----------------------------------------------------------------------------


def with_forms(path, qform, sform, codes=(1, 2)):
    image = nib.Nifti1Image(phantom(), None)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    image.to_filename(path)
    return path


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_read_image__no_voxel_size(tmp_path, axis, value):
    path = write(tmp_path / "a.nii.gz", image_bytes(), (PIXDIM + 4 * axis, "<f", value))
    refused(path, "no-orientation", GeometryError)


@pytest.mark.parametrize("flips", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_read_image__forms_that_disagree_about_left_and_right(tmp_path, flips):
    other = AFFINE.copy()
    other[:, list(flips)] *= -1
    path = with_forms(tmp_path / "a.nii.gz", other, AFFINE)
    message = refused(path, "forms-left-right", GeometryError)
    assert "RAS" in message
    assert "".join("LPI"[i] if i in flips else "RAS"[i] for i in range(3)) in message
    refused(with_forms(tmp_path / "b.nii", AFFINE, other), "forms-left-right", GeometryError)


def test_read_image__forms_with_other_axes(tmp_path):
    swapped = AFFINE[:, [1, 0, 2, 3]]
    path = with_forms(tmp_path / "a.nii", swapped, AFFINE)
    assert "ARS" in refused(path, "forms-left-right", GeometryError)
    swapped = AFFINE[:, [0, 2, 1, 3]] * [1, 1, -1, 1]
    image = read_image(with_forms(tmp_path / "b.nii", swapped, AFFINE))
    assert [code for code, _ in image.notes] == ["forms-differ"]


@pytest.mark.parametrize(("shift", "noted"), [(0.0005, False), (0.002, True), (25.0, True)])
def test_read_image__forms_that_differ_otherwise(tmp_path, shift, noted):
    other = AFFINE.copy()
    other[1, 3] += shift
    path = with_forms(tmp_path / "a.nii.gz", other, AFFINE)
    image = read_image(path)
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert [code for code, _ in image.notes] == ["forms-differ"] * noted
    if noted:
        assert f"{shift:.3f} mm" in image.notes[0][1]
        assert str(path) in image.notes[0][1]


def test_read_image__forms_that_differ_at_the_far_corner(tmp_path):
    other = AFFINE * [1.01, 1, 1, 1]
    image = read_image(with_forms(tmp_path / "a.nii.gz", other, AFFINE))
    assert f"{0.02 * (SHAPE[0] - 1):.3f} mm" in image.notes[0][1]


@pytest.mark.parametrize("degrees", [1, 30, 44])
def test_read_image__rotated_forms_agree_about_left_and_right(tmp_path, degrees):
    for base in (0, 45, 90):  # also where the nearest axis is a matter of rounding
        one, other = (
            nib.affines.from_matvec(nib.eulerangles.euler2mat(np.radians(angle)))
            for angle in (base, base + degrees)
        )
        image = read_image(with_forms(tmp_path / "a.nii", other, one))
        assert [code for code, _ in image.notes] == ["forms-differ"]


@pytest.mark.parametrize(
    "patch",
    [
        (QUATERN, "<3f", 0.9, 0.9, 0.0),
        (QUATERN, "<3f", np.nan, 0, 0),
        (QUATERN, "<3f", np.inf, 0, 0),
        (QUATERN, "<3f", 1e30, 1e30, 0),
        (QUATERN + 12, "<f", np.nan),
        (PIXDIM, "<f", np.nan),
        (PIXDIM, "<f", -0.5),
        (PIXDIM + 4, "<f", -2.0),
        (PIXDIM + 4, "<f", 1e20),
        (PIXDIM + 4, "<f", 1e-20),
    ],
)
def test_read_image__unusable_qform(tmp_path, patch):
    path = write(tmp_path / "a.nii.gz", image_bytes(codes=(1, 0)), patch)
    refused(path, "no-orientation", GeometryError)
    refused(path, "no-orientation", GeometryError, assume_space=True)
    image = read_image(write(path, image_bytes(codes=(1, 2)), patch))
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert [code for code, _ in image.notes] == ["forms-differ"]
    image = read_image(write(path, image_bytes(codes=(0, 2)), patch))
    assert image.notes == ()


@pytest.mark.parametrize("flip", [0, 1, -1])
def test_read_image__qform_flip_as_nibabel(tmp_path, flip):
    path = write(tmp_path / "a.nii", image_bytes(codes=(1, 0)), (PIXDIM, "<f", flip))
    np.testing.assert_allclose(read_image(path).affine, nib.load(path).affine, atol=1e-5)


@pytest.mark.parametrize(
    "row",
    [(0, 0, 0, 0), (0, 3, 0, 1), (np.nan, 0, 0, 0), (2, 0, 0, np.inf), (1e20, 0, 0, 0)],
)
def test_read_image__unusable_sform(tmp_path, row):
    for codes in [(0, 2), (1, 2)]:
        path = write(tmp_path / "a.nii.gz", image_bytes(codes=codes), (SROW, "<4f", *row))
        refused(path, "no-orientation", GeometryError)


def test_read_image__no_orientation(tmp_path):
    path = write(tmp_path / "a.nii.gz", image_bytes(codes=(0, 0)))
    assert "--assume-space" in refused(path, "no-orientation", GeometryError)
    image = read_image(path, assume_space=True)
    assert [code for code, _ in image.notes] == ["assumed-orientation"]
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(read_header(path, assume_space=True)[1], AFFINE)


@pytest.mark.parametrize("row", [(0,) * 12, (1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0), (np.nan,) * 12])
def test_read_image__assumed_orientation_without_sform_as_nibabel(tmp_path, row):
    content = image_bytes(codes=(0, 0))
    path = write(tmp_path / "a.nii.gz", content, (SROW, "<12f", *row))
    image = read_image(path, assume_space=True)
    np.testing.assert_array_equal(image.affine, nib.load(path).affine)
    np.testing.assert_array_equal(image.affine, nib.load(path).header.get_base_affine())
    assert [code for code, _ in image.notes] == ["assumed-orientation"]


def test_read_image__assume_space_changes_nothing_else(tmp_path):
    image = read_image(write(tmp_path / "a.nii.gz", image_bytes()), assume_space=True)
    assert image.notes == ()


# --- members of an archive -------------------------------------------------------------------


def archived(path, content, method=zipfile.ZIP_DEFLATED, member="T1/T1.nii.gz"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("other.txt", "x" * 1000)
        archive.writestr(member, content)
    return SourceFile(path, member)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@pytest.mark.parametrize("packed", [True, False])
def test_read_image__member_of_an_archive(tmp_path, method, packed):
    content = gzip.compress(image_bytes()) if packed else image_bytes()
    member = "T1/T1.nii.gz" if packed else "T1/T1.nii"
    file = archived(tmp_path / "a.zip", content, method, member)
    np.testing.assert_array_equal(read_image(file).ras()[0], phantom())
    shape, affine = read_header(file)
    assert shape == SHAPE
    np.testing.assert_array_equal(affine, AFFINE)


def test_read_image__unusable_archive(tmp_path):
    file = archived(tmp_path / "a.zip", gzip.compress(image_bytes()))
    refused(SourceFile(file.path, "T1/missing.nii.gz"), "unreadable")
    refused(SourceFile(tmp_path / "missing.zip", "T1/T1.nii.gz"), "unreadable")
    whole = file.path.read_bytes()
    for length in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        file.path.write_bytes(whole[:length])
        refused(file, "truncated")
    at = whole.index(b"T1.nii.gz") + len(b"T1.nii.gz") + 100
    file.path.write_bytes(whole[:at] + bytes(8) + whole[at + 8 :])
    refused(file, "truncated", header=False)


def test_read_image__archive_that_lies_about_a_size(tmp_path):
    for content in (image_bytes(), gzip.compress(image_bytes())):
        file = archived(tmp_path / "a.zip", content, member="T1.nii")
        whole = file.path.read_bytes()
        for at, code in ((24, "gzip-bomb"), (20, "truncated")):  # size of the member, packed
            lying = bytearray(whole)
            struct.pack_into("<I", lying, lying.rindex(b"PK\1\2") + at, 2**30)
            file.path.write_bytes(lying)
            assert peak(functools.partial(refused, file, code)) < 2**20


def test_read_image__encrypted_archive(tmp_path):
    file = archived(tmp_path / "a.zip", image_bytes(), member="T1.nii")
    whole = bytearray(file.path.read_bytes())
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        whole[whole.rindex(mark) + at] |= 1
    file.path.write_bytes(whole)
    assert "encrypt" in refused(file, "unreadable")


def test_read_header__reads_the_first_bytes_only(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 2**15, (60, 70, 80), np.int16)
    content = gzip.compress(image_bytes(noise), 1)
    path.write_bytes(content[:-1000])  # a damaged end is not seen
    taken = []

    def counting(self, *args):
        block = io.FileIO.read(self, *args)
        taken.append(len(block))
        return block

    counted = type("Counted", (io.FileIO,), {"read": counting})
    monkeypatch.setattr("pathlib.Path.open", lambda self, *_, **__: counted(str(self)))
    assert read_header(path)[0] == noise.shape
    assert sum(taken) < 2**16 < len(content)


# --- SourceFile ------------------------------------------------------------------------------


def test_source_file_content_key__is_the_stored_checksum(tmp_path):
    content = gzip.compress(image_bytes())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert SourceFile(path).content_key() == f"{len(content)}:{content[-8:].hex()}"
    (tmp_path / "b.nii").write_bytes(content)
    plain = f"{len(content)}:{zlib.crc32(content):08x}"
    assert SourceFile(tmp_path / "b.nii").content_key() == plain
    file = archived(tmp_path / "a.zip", content)
    assert file.content_key() == plain
    padded = [content + bytes(20), gzip.compress(image_bytes(phantom() + 1)) + bytes(20)]
    keys = set()
    for one in padded:
        path.write_bytes(one)
        keys.add(SourceFile(path).content_key())
    assert len(keys) == 2
    with pytest.raises(ImageError, match="cannot be read"):
        SourceFile(tmp_path / "missing").content_key()
    with pytest.raises(ImageError, match="no such member"):
        SourceFile(file.path, "missing").content_key()
