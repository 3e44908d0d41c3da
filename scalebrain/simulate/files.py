"""The simulator's files: the same content gives the same bytes, and no file is half."""

from collections.abc import Sequence
from pathlib import Path

import deflate
import nibabel as nib
import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import SPACE
from scalebrain.io.atomic import PART
from scalebrain.simulate.anatomy import Anatomy

__all__ = ["image_path", "nifti_bytes", "remove_parts", "table_bytes"]

_LEVEL = 1
_MNI152 = 4


def image_path(tree: Path, subject: str, suffix: str) -> Path:
    """Path of an image, e.g. for the suffix ``label-GM_probseg``."""
    folder = tree / f"sub-{subject}" / "anat"
    return folder / f"sub-{subject}_space-{SPACE}_{suffix}.nii.gz"


def nifti_bytes(brain: Anatomy, values: npt.NDArray[np.generic], *, slope: float = 1.0) -> bytes:
    """Make a .nii.gz file of values on the brain's voxels, zero elsewhere.

    Parameters
    ----------
    brain
        Template brain with its grid.
    values
        One value a brain voxel, int16 or uint8.
    slope
        Factor that readers apply.

    Returns
    -------
    bytes
        The file; gzip carries no time and no name.
    """
    grid = brain.grid
    header = nib.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(grid.shape)
    header.set_qform(grid.matrix, code=_MNI152)
    header.set_sform(grid.matrix, code=_MNI152)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(slope, 0)
    header["descrip"] = b"simulated by scalebrain"
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    volume = np.zeros(grid.size, values.dtype.newbyteorder("<"))
    volume[brain.inside] = values
    content = header.as_byteswapped("<").binaryblock + bytes(4) + volume.tobytes()
    return bytes(deflate.gzip_compress(content, _LEVEL))


def table_bytes(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """Make a tab-separated file with a header line."""
    return "".join("\t".join(row) + "\n" for row in (columns, *rows)).encode()


def remove_parts(tree: Path) -> None:
    """Remove what a killed run has left under a temporary name."""
    for pattern in (
        f".*{PART}",
        f"sub-*/anat/.*{PART}",
        f"freesurfer/sub-*/scripts/.*{PART}",
    ):
        for part in tree.glob(pattern):
            part.unlink(missing_ok=True)
