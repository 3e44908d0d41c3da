"""NIfTI files as bytes: the same content gives the same bytes."""

import deflate
import nibabel as nib
import numpy as np
import numpy.typing as npt

__all__ = ["nifti_bytes"]

_MNI152 = 4


def nifti_bytes(
    values: npt.NDArray[np.generic],
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    *,
    slope: float = 1.0,
    description: str = "",
    level: int = 6,
) -> bytes:
    """Make a .nii.gz file in MNI space.

    Parameters
    ----------
    values
        (voxel,) numbers as they are stored, in the order of a file: the first axis fastest.
    shape
        Voxels along each axis.
    affine
        4 x 4, from voxels to mm; goes into both orientations of the header.
    slope
        Factor that readers apply.
    description
        Of the header.
    level
        Of the compression, 1 to 12.

    Returns
    -------
    bytes
        The file; gzip carries no time and no name.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(shape)
    header.set_qform(affine, code=_MNI152)
    header.set_sform(affine, code=_MNI152)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(slope, 0)
    header["descrip"] = description.encode()
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    content = header.as_byteswapped("<").binaryblock + bytes(4) + little.tobytes()
    return bytes(deflate.gzip_compress(content, level))
