"""One NIfTI file in: its numbers as stored, its grid and its scaling, read in full and checked."""

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import deflate
import nibabel as nib
import numpy as np
import numpy.typing as npt

from scalebrain.errors import GeometryError, ImageError
from scalebrain.io.files import SourceFile

__all__ = ["Image", "read_header", "read_image"]

_MAX_VOXELS = 2_000_000_000
_MAX_FRAME = 2**30  # bytes: a brain at 0.5 mm has half of that as float64
_MAX_OFFSET = 2**30
_MAX_RATIO = 1100  # deflate cannot compress beyond about 1032:1
_SLACK = 2**20  # bytes behind the voxels that may be decoded at once
_EXCESS = 2**24  # bytes behind the voxels that a stream may go on for
_BLOCK = 2**14  # bytes read at once
_PIECE = 2**20  # bytes decoded at once
_HEAD = 540  # bytes of the longest header

# Where the fields of a NIfTI-1 and of a NIfTI-2 header lie, by the size of the header.
# fmt: off
_FIELDS = {
    348: {
        "magic": ("4s", 344), "dim": ("8h", 40), "datatype": ("h", 70), "bitpix": ("h", 72),
        "pixdim": ("8f", 76), "vox_offset": ("f", 108), "scaling": ("2f", 112),
        "codes": ("2h", 252), "quatern": ("6f", 256), "srow": ("12f", 280),
    },
    540: {
        "magic": ("4s", 4), "dim": ("8q", 16), "datatype": ("h", 12), "bitpix": ("h", 14),
        "pixdim": ("8d", 104), "vox_offset": ("q", 168), "scaling": ("2d", 176),
        "codes": ("2i", 344), "quatern": ("6d", 352), "srow": ("12d", 400),
    },
}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}
_OTHER_DTYPES = {
    1: "single bits", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA",
}
# fmt: on
_MAGIC = {348: b"n+1", 540: b"n+2"}
_FIRST_VOXEL = {348: 352, 540: 544}
_AGAIN = "Write it again with the tool that made it."

_Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Image:
    """An image as its file has it: nothing is scaled, nothing reoriented.

    Parameters
    ----------
    raw
        (x * y * z,) numbers as stored, x fastest, in native byte order.
    shape
        Voxels along x, y and z of the file.
    affine
        4 x 4 matrix from voxel indices to mm.
    slope
        Factor of the stored numbers; 1 when the header has none.
    intercept
        Added after that; 0 when the header has none.
    notes
        (code, message) of what is odd, but no reason to refuse the file.
    """

    raw: npt.NDArray[Any]
    shape: tuple[int, int, int]
    affine: _Affine
    slope: float
    intercept: float
    notes: tuple[tuple[str, str], ...]

    def ras(self) -> tuple[npt.NDArray[np.float32], _Affine]:
        """Scaled image with its axes in RAS order.

        Returns
        -------
        ndarray
            (x, y, z) values, scaled in float64.
        ndarray
            4 x 4 matrix from its voxel indices to mm.
        """
        orientation = nib.io_orientation(self.affine)
        stored = self.raw.reshape(self.shape, order="F")
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = stored * np.float64(self.slope) + np.float64(self.intercept)
            values = nib.apply_orientation(scaled.astype(np.float32), orientation)
        affine = self.affine @ nib.orientations.inv_ornt_aff(orientation, self.shape)
        return np.ascontiguousarray(values), np.asarray(affine, dtype=np.float64)


@dataclass(frozen=True)
class _Header:
    """What a header says about numbers and grid, checked on its own."""

    shape: tuple[int, int, int]
    frames: int
    dtype: np.dtype[Any]
    first: int
    slope: float
    intercept: float
    pixdim: tuple[float, ...]
    qcode: int
    scode: int
    quatern: tuple[float, ...]
    srow: tuple[float, ...]

    @property
    def frame_bytes(self) -> int:
        """Size of one frame."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """First byte behind the voxels."""
        return self.first + self.frames * self.frame_bytes


def read_image(
    file: SourceFile | Path,
    *,
    volume: int | None = None,
    assume_space: bool = False,
    hint: bool = True,
) -> Image:
    """Read a NIfTI-1 or NIfTI-2 file in full.

    Parameters
    ----------
    file
        A .nii or .nii.gz file.
    volume
        Frame of an image that has several, from 0; one that has a single frame ignores it.
    assume_space
        Take the affine as it stands when the header does not say what it stands for.
    hint
        Name these options of the ingest in messages; False where there is no such option.

    Returns
    -------
    Image
        Numbers as stored, with what is needed to place and scale them.

    Raises
    ------
    ImageError
        When the file is truncated, not an image, or has several frames and none is chosen.
    GeometryError
        When the header has no usable or a contradictory orientation.

    Notes
    -----
    No claim of a file is trusted with memory: what is allocated is bounded by the image that
    the header describes, and that by what the compressed bytes can hold.
    """
    with _opened(file) as (source, stream, size):
        header, zipped = _read_header(source, stream, size)
        affine, notes = _orientation(source, header, assume_space=assume_space, hint=hint)
        frame = _chosen_frame(source, header, volume, hint=hint)
        stream.seek(0)
        if zipped:
            content, at = _decompressed(source, stream, size, header, frame)
        else:
            content, at = _plain(source, stream, header, frame), 0
        raw = np.frombuffer(content, header.dtype, math.prod(header.shape), at)
        if not raw.dtype.isnative:
            raw = raw.astype(raw.dtype.newbyteorder("="))
        if not raw.flags.aligned:
            raw = raw.copy()
    return Image(raw, header.shape, affine, header.slope, header.intercept, notes)


def read_header(
    file: SourceFile | Path, *, volume: int | None = None, assume_space: bool = False
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Read the grid of a NIfTI file, from its first bytes alone.

    Parameters
    ----------
    file
        A .nii or .nii.gz file.
    volume
        Frame of an image that has several, from 0; one that has a single frame ignores it.
    assume_space
        Take the affine as it stands when the header does not say what it stands for.

    Returns
    -------
    tuple
        Voxels along x, y and z of the file.
    ndarray
        4 x 4 matrix from voxel indices to mm.

    Raises
    ------
    ImageError
        When the header is not that of a usable image.
    GeometryError
        When it has no usable or a contradictory orientation.
    """
    with _opened(file) as (source, stream, size):
        header, _ = _read_header(source, stream, size)
    affine, _ = _orientation(source, header, assume_space=assume_space)
    _chosen_frame(source, header, volume)
    return header.shape, affine


@contextmanager
def _opened(file: SourceFile | Path) -> Iterator[tuple[SourceFile, IO[bytes], int]]:
    """Open a file whose gzip stream may be damaged."""
    source = SourceFile(file) if isinstance(file, Path) else file
    with source.open() as (stream, size):
        try:
            yield source, stream, size
        except (EOFError, zlib.error) as error:
            raise _truncated(
                source, f"the gzip stream is truncated or damaged ({error})"
            ) from error
        except MemoryError as error:
            raise ImageError(
                f"{source}: the image does not fit into memory. Use a machine with more of it, or "
                "a smaller image.",
                code="header-claims",
            ) from error


def _truncated(source: SourceFile, what: str) -> ImageError:
    return ImageError(f"{source}: {what}. Copy it again.", code="truncated")


def _not_nifti(source: SourceFile, what: str, way_out: str) -> ImageError:
    return ImageError(f"{source}: {what}. {way_out}", code="not-nifti")


def _inflated(stream: IO[bytes], piece: int) -> Iterator[bytes]:
    """Content of every gzip member of a stream, in pieces of at most that size."""
    block = stream.read(_BLOCK)
    while block:
        member = zlib.decompressobj(wbits=31)
        while True:
            yield member.decompress(block, piece)
            if member.eof:
                break
            block = member.unconsumed_tail or stream.read(_BLOCK)
            if not block:
                raise EOFError("it stops before its end mark")
        block = member.unused_data.lstrip(b"\0")
        while not block:  # zeros behind a member are padding
            following = stream.read(_BLOCK)
            if not following:
                return
            block = following.lstrip(b"\0")


def _read_header(source: SourceFile, stream: IO[bytes], size: int) -> tuple[_Header, bool]:
    """Header of a file, and whether the file is compressed."""
    head = stream.read(_BLOCK)
    if not head:
        raise ImageError(f"{source}: the file is empty. Copy it again.", code="empty-file")
    zipped = b"\x1f\x8b".startswith(head[:2])
    if zipped:
        stream.seek(0)
        head = b""
        for piece in _inflated(stream, _HEAD):
            head += piece
            if len(head) >= _HEAD:
                break
        if not head:
            raise ImageError(
                f"{source}: the gzip stream holds nothing. Write it again.", code="empty-file"
            )
    else:
        _check_text(source, head[:512].lstrip().lower())
    header = _parsed(source, head)
    _check_size(source, header)
    if zipped:
        _check_held(source, stream, size, header)
    else:
        if source.name.lower().endswith(".gz"):
            raise _not_nifti(
                source,
                "an uncompressed NIfTI file in spite of its name",
                "Rename it to .nii or compress it.",
            )
        if size < header.end:
            raise _truncated(source, f"truncated: {size} bytes, the header needs {header.end}")
    return header, zipped


def _check_held(source: SourceFile, stream: IO[bytes], size: int, header: _Header) -> None:
    """Refuse a gzip stream that cannot hold what the header describes, before it is decoded."""
    if header.end <= _MAX_RATIO * size:
        return
    stream.seek(max(size - 4, 0))
    claimed = int.from_bytes(stream.read(4), "little")  # gzip ends with the size of its content
    if claimed == header.end % 2**32:
        raise ImageError(
            f"{source}: {size} bytes claim to hold {header.end}, more than gzip can compress. Copy "
            "it again.",
            code="gzip-bomb",
        )
    raise _truncated(source, f"truncated: {size} bytes cannot hold the {header.end} of its header")


def _check_text(source: SourceFile, start: bytes) -> None:
    """Refuse what often lies in place of an image."""
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"version https://git-lfs", b"/annex/", b".git/annex", b"../")):
        raise ImageError(
            f"{source}: a pointer, not an image. Fetch its content (datalad get, git lfs pull).",
            code="pointer",
        )
    if start.startswith((b"<!", b"<html", b"<head", b"<?xml", b"<script")):
        raise ImageError(f"{source}: a web page, not an image. Download it again.", code="web-page")
    if start and all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start):
        raise _not_nifti(source, "a text file, not an image", "Copy or download it again.")


def _parsed(source: SourceFile, head: bytes) -> _Header:
    """Header with every field checked that can be checked on its own."""
    order, size = _layout(source, head)
    field = {
        name: struct.unpack_from(order + form, head, at)
        for name, (form, at) in _FIELDS[size].items()
    }
    _check_magic(source, size, field["magic"][0].rstrip(b"\0"))
    shape, frames = _dimensions(source, field["dim"])
    dtype = _dtype(source, field["datatype"][0], field["bitpix"][0]).newbyteorder(order)
    first = _first_voxel(source, field["vox_offset"][0], _FIRST_VOXEL[size])
    if not all(math.isfinite(step) and step for step in field["pixdim"][1:4]):
        raise GeometryError(
            f"{source}: the header has voxels of {field['pixdim'][1:4]}, expected sizes in mm. "
            "Write it again with the tool that made it.",
            code="no-orientation",
        )
    slope, intercept = _scaling(source, *field["scaling"])
    qcode, scode = field["codes"]
    return _Header(
        shape=shape,
        frames=frames,
        dtype=dtype,
        first=first,
        slope=slope,
        intercept=intercept,
        pixdim=field["pixdim"],
        qcode=qcode,
        scode=scode,
        quatern=field["quatern"],
        srow=field["srow"],
    )


def _layout(source: SourceFile, head: bytes) -> tuple[Literal["<", ">"], int]:
    """Byte order and size of a header; the size also tells NIfTI-1 from NIfTI-2."""
    little, big = struct.unpack("<i", head[:4].ljust(4)), struct.unpack(">i", head[:4].ljust(4))
    size = little[0] if little[0] in _FIELDS else big[0]
    if size not in _FIELDS:
        raise _not_nifti(
            source,
            "not a NIfTI file: it does not begin with the size of a header",
            "Convert it to .nii.gz (dcm2niix for DICOM, mri_convert for .mgz).",
        )
    if len(head) < size:
        raise _truncated(source, f"truncated: {len(head)} bytes, the header alone has {size}")
    return "<" if little[0] in _FIELDS else ">", size


def _check_magic(source: SourceFile, size: int, magic: bytes) -> None:
    """Refuse a header of an older format, or one without its voxels behind it."""
    if magic in (b"ni1", b"ni2"):
        raise _not_nifti(
            source,
            "one half of a pair (.hdr and .img), expected a single file",
            "Convert the pair: nibabel.save(nibabel.load('x.hdr'), 'x.nii.gz').",
        )
    if magic != _MAGIC[size]:
        raise _not_nifti(
            source,
            "not a NIfTI file, perhaps an Analyze file, which cannot say left from right",
            "Convert the source images again, to .nii.gz.",
        )


def _dimensions(source: SourceFile, dim: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Shape of a frame, and how many there are."""
    if not 1 <= dim[0] <= 7:
        raise _not_nifti(source, f"the header claims {dim[0]} dimensions, expected 3", _AGAIN)
    sides = dim[1 : dim[0] + 1]
    if min(sides) < 1:
        raise _not_nifti(source, f"the header claims a shape of {sides}", _AGAIN)
    if len(sides) < 3:
        raise _not_nifti(source, f"a shape of {sides}, expected 3 dimensions", "Keep all slices.")
    voxels = math.prod(sides)
    if voxels > _MAX_VOXELS:
        raise ImageError(
            f"{source}: the header claims {voxels} voxels, at most {_MAX_VOXELS}. {_AGAIN}",
            code="header-claims",
        )
    return (sides[0], sides[1], sides[2]), math.prod(sides[3:])


def _check_size(source: SourceFile, header: _Header) -> None:
    """Refuse a frame that no worker has room for."""
    if header.frame_bytes > _MAX_FRAME:
        shape = " x ".join(map(str, header.shape))
        raise ImageError(
            f"{source}: the header claims {header.frame_bytes} bytes a frame ({shape} voxels of "
            f"{header.dtype.name}), at most {_MAX_FRAME}. Resample it to 0.5 mm or more, or write "
            "it again with the tool that made it.",
            code="header-claims",
        )


def _dtype(source: SourceFile, code: int, bits: int) -> np.dtype[Any]:
    """Type of the stored numbers."""
    if code not in _DTYPES:
        what = _OTHER_DTYPES.get(code, f"unknown type {code}")
        raise _not_nifti(
            source, f"voxels of {what}, expected real numbers", "Save one real value per voxel."
        )
    dtype = np.dtype(_DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise _not_nifti(
            source,
            f"the header claims {bits} bits per voxel, expected {8 * dtype.itemsize} for {dtype}",
            _AGAIN,
        )
    return dtype


def _first_voxel(source: SourceFile, offset: float, lowest: int) -> int:
    """Where the voxels begin."""
    if not math.isfinite(offset) or offset != int(offset) or offset < lowest:
        raise _not_nifti(
            source,
            f"the header has its voxels begin at byte {offset}, expected {lowest} or later",
            _AGAIN,
        )
    if offset > _MAX_OFFSET:
        raise ImageError(
            f"{source}: the header has its voxels begin at byte {int(offset)}, at most "
            f"{_MAX_OFFSET}. Write it again with the tool that made it.",
            code="header-claims",
        )
    return int(offset)


def _scaling(source: SourceFile, slope: float, intercept: float) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 means that there are none."""
    if slope == 0:
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise ImageError(
            f"{source}: the header scales by {slope} and adds {intercept}, expected finite "
            "numbers. Set both (1 and 0 for none), or write it again.",
            code="bad-scaling",
        )
    return slope, intercept


def _chosen_frame(
    source: SourceFile, header: _Header, volume: int | None, *, hint: bool = True
) -> int:
    """Frame to read."""
    if header.frames == 1:
        return 0
    if volume is None:
        other = ", or choose it by --volume of ingest, from 0" if hint else ""
        raise ImageError(
            f"{source}: {header.frames} frames, expected one. Save one of them as a 3-D image"
            f"{other}.",
            code="many-frames",
        )
    if not 0 <= volume < header.frames:
        raise ImageError(
            f"{source}: {header.frames} frames, so volume {volume} is none of them. Choose one "
            f"from 0 to {header.frames - 1}.",
            code="many-frames",
        )
    return volume


def _plain(source: SourceFile, stream: IO[bytes], header: _Header, frame: int) -> bytearray:
    """One frame of an uncompressed file."""
    stream.seek(header.first + frame * header.frame_bytes)
    content = bytearray(header.frame_bytes)
    view = memoryview(content)
    while view:
        block = stream.read(min(len(view), _PIECE))
        if not block:
            raise _truncated(source, f"truncated: it stops {len(view)} bytes too early")
        view[: len(block)] = block
        view = view[len(block) :]
    if source.member:
        while stream.read(_PIECE):  # the archive's checksum is compared at the end
            pass
    return content


def _decompressed(
    source: SourceFile, stream: IO[bytes], size: int, header: _Header, frame: int
) -> tuple[bytearray | bytes, int]:
    """Content of a .nii.gz with the frame in it, and where the frame begins."""
    if header.frames == 1 and size <= header.end + _SLACK:
        packed = stream.read()
        claimed = int.from_bytes(packed[-4:], "little")  # gzip ends with the size of its content
        # Only when header and gzip agree is there one member to decode in one go.
        if header.end <= claimed <= header.end + _SLACK:
            if claimed > _MAX_RATIO * len(packed):
                raise ImageError(
                    f"{source}: {len(packed)} bytes claim to hold {claimed}, more than gzip can "
                    "compress. Copy it again.",
                    code="gzip-bomb",
                )
            try:
                content = deflate.gzip_decompress(packed, claimed)
            except deflate.DeflateError:
                pass
            else:
                if len(content) == claimed:
                    return content, header.first
        del packed
        stream.seek(0)
    return _streamed(source, stream, header, frame), 0


def _streamed(source: SourceFile, stream: IO[bytes], header: _Header, frame: int) -> bytearray:
    """One frame of a .nii.gz of any number of gzip members, decoded to its end."""
    start = header.first + frame * header.frame_bytes
    stop = start + header.frame_bytes
    content = bytearray()
    at = 0
    for piece in _inflated(stream, _PIECE):
        if at < stop:
            content += piece[max(start - at, 0) : stop - at]
        at += len(piece)
        if at > header.end + _EXCESS:
            raise ImageError(
                f"{source}: the gzip stream goes on far behind the {header.end} bytes that the "
                "header describes. Write it again with the tool that made it.",
                code="gzip-bomb",
            )
    if at < header.end:
        raise _truncated(source, f"truncated: {at} bytes, the header needs {header.end}")
    return content


def _orientation(
    source: SourceFile, header: _Header, *, assume_space: bool, hint: bool = True
) -> tuple[_Affine, tuple[tuple[str, str], ...]]:
    """Affine of a header whose sform and qform do not contradict each other, and notes."""
    if header.scode <= 0 and header.qcode <= 0:
        return _assumed(source, header, assume_space=assume_space, hint=hint)
    qform, qfault = _checked(_qform(header))
    if header.scode <= 0:
        if qfault:
            raise _no_orientation(source, f"the qform {qfault}", hint=hint)
        return qform, ()
    sform, sfault = _checked(_sform(header))
    if sfault:
        raise _no_orientation(source, f"the sform {sfault}", hint=hint)
    if header.qcode <= 0:
        return sform, ()
    if qfault:
        note = f"{source}: the qform {qfault}; the sform is used. Set both alike."
        return sform, (("forms-differ", note),)
    # The direction of left and right: within 45 degrees it is the same one.
    along = [form[0, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform)]
    lengths = np.linalg.norm(along, axis=1)
    if along[0] @ along[1] < math.sqrt(0.5) * lengths[0] * lengths[1]:
        axes = ["".join(nib.aff2axcodes(form)) for form in (sform, qform)]
        raise GeometryError(
            f"{source}: the axes of the sform are {axes[0]} {_rounded(sform)}, those of the qform "
            f"{axes[1]} {_rounded(qform)}: left and right are ambiguous. Find out which is right "
            "and set the other one to it.",
            code="forms-left-right",
        )
    distance = _distance(sform, qform, header.shape)
    if distance > 1e-3:
        note = (
            f"{source}: sform and qform put a corner of the image {distance:.3f} mm apart; the "
            "sform is used. Set both alike."
        )
        return sform, (("forms-differ", note),)
    return sform, ()


def _assumed(
    source: SourceFile, header: _Header, *, assume_space: bool, hint: bool
) -> tuple[_Affine, tuple[tuple[str, str], ...]]:
    """Affine of a header that has both codes 0."""
    if not assume_space:
        raise _no_orientation(source, "neither sform nor qform is set", hint=hint)
    affine, fault = _checked(_sform(header))
    if fault or np.array_equal(affine, np.eye(4)):
        affine, fault = _checked(_centered(header))
        if fault:
            raise _no_orientation(
                source, f"the affine made from the voxel sizes {fault}", hint=hint
            )
    note = (
        f"{source}: neither sform nor qform is set; the affine is taken as it stands, axes "
        f"{''.join(nib.aff2axcodes(affine))}, as asked for."
    )
    return affine, (("assumed-orientation", note),)


def _no_orientation(source: SourceFile, what: str, *, hint: bool) -> GeometryError:
    other = ", or, where both codes are 0, trust the affine by --assume-space of ingest"
    return GeometryError(
        f"{source}: {what}, so left and right are unknown. Set the orientation from the source "
        f"image{other if hint else ''}.",
        code="no-orientation",
    )


def _centered(header: _Header) -> _Affine:
    """Affine that nibabel assumes: x to the left, the origin in the center."""
    x, y, z = (abs(step) for step in header.pixdim[1:4])
    affine = np.diag([-x, y, z, 1.0])
    steps = zip((-x, y, z), header.shape, strict=True)
    affine[:3, 3] = [-step * (n - 1) / 2 for step, n in steps]
    return affine


def _sform(header: _Header) -> _Affine:
    """Affine by the rows of the sform."""
    return np.vstack([np.reshape(header.srow, (3, 4)), [0.0, 0.0, 0.0, 1.0]])


def _qform(header: _Header) -> _Affine | None:
    """Affine by the quaternion; None when it is no rotation or has impossible voxel sizes."""
    b, c, d, *origin = header.quatern
    flip, *steps = header.pixdim[:4]
    norm = b * b + c * c + d * d
    rounding = 3 * float(np.finfo(np.float32).eps)
    # A flip other than -1 and 1 leaves left and right open; 0 stands for 1 in old files.
    if not norm <= 1 + rounding or min(steps) < 0 or flip not in (-1, 0, 1):
        return None
    a = 0.0 if norm >= 1 - rounding else math.sqrt(1 - norm)
    a, b, c, d = np.array([a, b, c, d]) / math.sqrt(a * a + norm)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * [steps[0], steps[1], steps[2] * (flip or 1)]
    affine[:3, 3] = origin
    return affine


def _checked(affine: _Affine | None) -> tuple[_Affine, str]:
    """Affine, and what is wrong with it; empty when it can be used."""
    if affine is None:
        return np.eye(4), "is not a rotation with voxel sizes"
    if not np.isfinite(affine).all():
        return affine, "is not finite"
    if np.abs(affine).max() > 1e6:
        return affine, "has lengths of more than a kilometer"
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if steps.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-6:
        return affine, "is not invertible"
    return affine, ""


def _distance(one: _Affine, other: _Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the corners of a grid under two affines."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij"), axis=-1)
    moved = corners.reshape(-1, 4) @ (one - other)[:3].T
    return float(np.linalg.norm(moved, axis=1).max())


def _rounded(affine: _Affine) -> str:
    """Affine in one line."""
    return str([[round(float(value), 3) for value in row] for row in affine[:3]])
