"""One NIfTI file in, one RAS array out, read in full and checked."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from scalebrain.errors import GeometryError, ImageError

__all__ = ["Image", "content_key", "read_image"]

_MAX_VOXELS = 2_000_000_000
_MAX_RATIO = 1100  # deflate cannot compress beyond about 1032:1


@dataclass(frozen=True)
class Image:
    """An image in RAS orientation.

    Parameters
    ----------
    data
        (x, y, z) array, scaled by the header's slope and intercept.
    affine
        4 x 4 matrix from voxel indices to mm.
    """

    data: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]


def content_key(path: Path) -> str:
    """Size and checksum of a file, cheap for .gz: the CRC-32 that gzip itself stores."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix == ".gz" and size >= 18:
            file.seek(-8, 2)
            return f"{size}:{file.read(8).hex()}"
        crc = 0
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return f"{size}:{crc:08x}"


def _bytes(path: Path) -> bytes:
    """Uncompressed content of a file that has to be an image."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}.") from error
    start = raw[:512].lstrip().lower()
    if not raw:
        raise ImageError(f"{path}: the file is empty. Copy it again.")
    if start.startswith((b"version https://git-lfs", b"/annex/", b".git/annex", b"../")):
        raise ImageError(
            f"{path}: a pointer, not an image. Fetch its content (datalad get, git lfs pull)."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ImageError(f"{path}: a web page, not an image. Download it again.")
    if raw[:2] != b"\x1f\x8b":
        if path.suffix == ".gz":
            raise ImageError(f"{path}: not a gzip file in spite of its name. Copy it again.")
        return raw
    (claimed,) = struct.unpack("<I", raw[-4:])
    if claimed > _MAX_RATIO * len(raw):
        raise ImageError(
            f"{path}: the gzip stream is truncated or damaged (its end claims {claimed} bytes from "
            f"{len(raw)}). Copy it again."
        )
    import deflate

    try:
        return bytes(deflate.gzip_decompress(raw, claimed))
    except deflate.DeflateError:
        pass
    # several gzip members in one file are valid, and libdeflate reads only the first
    try:
        content = gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ImageError(
            f"{path}: the gzip stream is truncated or damaged ({error}). Copy it again."
        ) from error
    return content


def read_image(path: Path) -> Image:
    """Read a NIfTI file in full.

    Parameters
    ----------
    path
        A .nii or .nii.gz file of three dimensions (or four with one frame).

    Returns
    -------
    Image
        float32, axes reordered to RAS.

    Raises
    ------
    ImageError
        When the file is truncated, not an image, or has several frames.
    GeometryError
        When the header has no usable or a contradictory orientation.
    """
    content = _bytes(path)
    try:
        header = nib.Nifti1Header(content[:348], check=False)
        header.check_fix(error_level=40)
    except (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError) as error:
        raise ImageError(f"{path}: not a NIfTI-1 file ({error}).") from error
    shape = tuple(int(n) for n in header.get_data_shape())
    if header["magic"].item() not in (b"n+1", b"ni1") or len(shape) < 3 or min(shape) < 1:
        raise ImageError(f"{path}: not a NIfTI-1 volume (shape {shape}).")
    if any(n != 1 for n in shape[3:]):
        raise ImageError(f"{path}: {shape[3:]} frames, expected one volume. Keep one frame.")
    voxels = int(np.prod(shape, dtype=np.float64))
    need = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    if voxels > _MAX_VOXELS:
        raise ImageError(f"{path}: the header claims {voxels} voxels, at most {_MAX_VOXELS}.")
    if len(content) < need:
        raise ImageError(
            f"{path}: truncated: {len(content)} bytes, the header needs {need}. Copy it again."
        )
    slope, intercept = header.get_slope_inter()
    affine = _affine(path, header)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError(f"{path}: voxels of type {dtype}, expected real numbers.")
    stored = np.frombuffer(content, dtype, voxels, int(header["vox_offset"]))
    data = stored.reshape(shape[:3], order="F")
    values = data.astype(np.float32) if slope in (None, 1.0) and not intercept else None
    if values is None:
        scaled = data * np.float64(1.0 if slope is None else slope)
        values = (scaled + np.float64(intercept or 0.0)).astype(np.float32)
    orientation = nib.io_orientation(affine)
    values = nib.apply_orientation(values, orientation)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape[:3])
    return Image(np.asarray(values, dtype=np.float32), np.asarray(affine, dtype=np.float64))


def _affine(path: Path, header: nib.Nifti1Header) -> npt.NDArray[np.float64]:
    """Affine of a header whose sform and qform do not contradict each other."""
    qform, qcode = header.get_qform(coded=True)
    sform, scode = header.get_sform(coded=True)
    if not qcode and not scode:
        raise GeometryError(
            f"{path}: neither sform nor qform is set, so left and right are unknown. "
            "Set the orientation from the source image."
        )
    affine = sform if scode else qform
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError(f"{path}: the affine is not invertible.")
    if qcode and scode:
        axes = nib.aff2axcodes(sform), nib.aff2axcodes(qform)
        if axes[0] != axes[1]:
            raise GeometryError(
                f"{path}: sform says {''.join(axes[0])}, qform {''.join(axes[1])}: left and right "
                "are ambiguous. Keep the one that is right."
            )
    return np.asarray(affine, dtype=np.float64)
