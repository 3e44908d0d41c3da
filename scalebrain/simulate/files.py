"""The simulator's files: the same content gives the same bytes, and no file is half."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import SPACE
from scalebrain.io.atomic import PART
from scalebrain.io.nifti_bytes import nifti_bytes
from scalebrain.simulate.anatomy import Anatomy

__all__ = ["image_bytes", "image_path", "remove_parts", "table_bytes"]

_LEVEL = 1


def image_path(tree: Path, subject: str, suffix: str) -> Path:
    """Path of an image, e.g. for the suffix ``label-GM_probseg``."""
    folder = tree / f"sub-{subject}" / "anat"
    return folder / f"sub-{subject}_space-{SPACE}_{suffix}.nii.gz"


def image_bytes(brain: Anatomy, values: npt.NDArray[np.generic], *, slope: float = 1.0) -> bytes:
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
        The file.
    """
    grid = brain.grid
    volume = np.zeros(grid.size, values.dtype)
    volume[brain.inside] = values
    return nifti_bytes(
        volume,
        grid.shape,
        grid.matrix,
        slope=slope,
        description="simulated by scalebrain",
        level=_LEVEL,
    )


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
