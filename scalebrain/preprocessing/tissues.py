"""Tissue probabilities in template space: Atropos with the template's priors."""

import tempfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid, brain_mask, template, template_grid
from scalebrain.errors import ImageError
from scalebrain.preprocessing.images import box_around, from_ants, to_ants

__all__ = ["Tissues", "segment"]

_PRIOR_WEIGHT = 0.25
_LEAST = 1e-3  # of a prior, and of a variance
_BRIGHT = 100.0  # what is bright in a scan is brought to this, whatever its unit

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tissues:
    """Tissue probabilities on the template's grid.

    Parameters
    ----------
    liquid, grey, white
        (x, y, z) probabilities; 0 outside the brain.
    mean
        Intensity of each of the three.
    """

    liquid: Volume
    grey: Volume
    white: Volume
    mean: tuple[float, float, float]


def segment(t1w: Volume, lesion: Mask | None, resolution: float) -> Tissues:
    """Find the tissues of a normalized scan.

    Parameters
    ----------
    t1w
        (x, y, z) on ``template_grid(resolution)``.
    lesion
        (x, y, z) lesioned or not; None without a mask.
    resolution
        Voxel size in mm.

    Returns
    -------
    Tissues
        Probabilities.

    Raises
    ------
    ImageError
        When the three tissues cannot be told apart.

    Notes
    -----
    The lesion is no part of what the intensities of the tissues are estimated from. A lesioned
    voxel then gets the probabilities that its intensity and the priors give: a cavity is liquid.
    The unit of the scan is of no matter.

    References
    ----------
    Avants et al. 2011, doi:10.1007/s12021-011-9109-y
    """
    grid = template_grid(resolution)
    brain = brain_mask(grid)
    lesioned = np.zeros(grid.shape, dtype=bool) if lesion is None else lesion & brain
    grey, white = template("gm", grid), template("wm", grid)
    priors = np.stack([np.clip(1 - grey - white, 0, 1), grey, white]).clip(_LEAST)
    priors = np.where(brain, priors / priors.sum(axis=0), 0).astype(np.float32)
    used = brain & ~lesioned & (t1w > 0)
    if not used.any():
        raise _no_tissues("nothing in the brain")
    unit = float(np.percentile(t1w[used], 99)) / _BRIGHT
    t1w = (t1w / unit).astype(np.float32)
    classes = _atropos(t1w, used, priors, grid)
    weights = [np.asarray(c[used], dtype=np.float64) for c in classes]
    values = np.asarray(t1w[used], dtype=np.float64)
    if min(w.sum() for w in weights) < 1:
        raise _no_tissues("one of liquid, grey and white matter is empty")
    means = [float((w * values).sum() / w.sum()) for w in weights]
    if lesioned.any():
        rest = np.asarray(t1w[lesioned], dtype=np.float64)
        scores = []
        for w, mean, prior in zip(weights, means, priors, strict=True):
            variance = max(float((w * (values - mean) ** 2).sum() / w.sum()), _LEAST)
            near = -0.5 * (rest - mean) ** 2 / variance - 0.5 * np.log(variance)
            scores.append(near + _PRIOR_WEIGHT * np.log(prior[lesioned]))
        total = np.exp(np.array(scores) - np.max(scores, axis=0))
        for c, share in zip(classes, total / total.sum(axis=0), strict=True):
            c[lesioned] = share
    liquid, grey_found, white_found = (np.clip(c, 0, 1) for c in classes)
    first, second, third = (mean * unit for mean in means)
    return Tissues(liquid, grey_found, white_found, (first, second, third))


def _no_tissues(reason: str) -> ImageError:
    """Error for a scan in which the tissues cannot be told apart."""
    return ImageError(
        f"no tissues found: {reason}. Look at the scan: its contrast is not that of a T1w image.",
        code="preprocessing-failed",
    )


def _atropos(t1w: Volume, used: Mask, priors: Volume, grid: Grid) -> list[Volume]:
    """Probabilities of three tissues, by Atropos on the box that holds the brain.

    ``ants.atropos`` compresses priors that are given as images, which takes half of the time.
    """
    import ants

    box = box_around(used, 2)
    matrix = grid.matrix.copy()
    matrix[:3, 3] += matrix[:3, :3] @ [part.start for part in box]
    cut = Grid.from_matrix(t1w[box].shape, matrix)
    with tempfile.TemporaryDirectory(prefix="scalebrain-") as folder:
        for number, prior in enumerate(priors, 1):
            ants.image_write(to_ants(prior[box], cut), f"{folder}/prior{number:02d}.nii")
        try:
            found = ants.atropos(
                a=to_ants(t1w[box], cut),
                x=to_ants(used[box], cut),
                i=f"PriorProbabilityImages[{len(priors)},{folder}/prior%02d.nii,{_PRIOR_WEIGHT}]",
                m="[0.1,1x1x1]",
                c="[3,0]",
                r=0,  # a fixed seed: voxels are visited in the same order in every run
            )
        except Exception as error:  # antspyx raises no narrower class when Atropos fails
            raise _no_tissues(f"Atropos failed ({error})") from error
    classes = np.zeros(priors.shape, dtype=np.float32)
    for whole, image in zip(classes, found["probabilityimages"], strict=True):
        whole[box] = from_ants(image)
    return list(classes)
