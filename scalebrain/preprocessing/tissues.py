"""Tissue probabilities in template space: Atropos with the template's priors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import brain_mask, template, template_grid
from scalebrain.errors import ImageError
from scalebrain.preprocessing.images import from_ants, to_ants

__all__ = ["Tissues", "segment"]

_PRIOR_WEIGHT = 0.25
_LEAST = 1e-3  # of a prior and of a variance

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

    References
    ----------
    Avants et al. 2011, doi:10.1007/s12021-011-9109-y
    """
    import ants

    grid = template_grid(resolution)
    brain = brain_mask(grid)
    lesioned = np.zeros(grid.shape, dtype=bool) if lesion is None else lesion & brain
    grey, white = template("gm", grid), template("wm", grid)
    priors = np.stack([np.clip(1 - grey - white, 0, 1), grey, white]).clip(_LEAST)
    priors = np.where(brain, priors / priors.sum(axis=0), 0).astype(np.float32)
    used = brain & ~lesioned & (t1w > 0)
    try:
        found = ants.atropos(
            a=to_ants(t1w, grid),
            x=to_ants(used, grid),
            i=[to_ants(prior, grid) for prior in priors],
            m="[0.1,1x1x1]",
            c="[3,0]",
            priorweight=_PRIOR_WEIGHT,
        )
    except RuntimeError as error:
        raise ImageError(
            f"no tissues found ({error}). Look at the scan: its contrast is not that of a T1w "
            "image.",
            code="preprocessing-failed",
        ) from error
    classes = [from_ants(image) for image in found["probabilityimages"]]
    weights = [np.asarray(c[used], dtype=np.float64) for c in classes]
    values = np.asarray(t1w[used], dtype=np.float64)
    if min(w.sum() for w in weights) < 1:
        raise ImageError(
            "no tissues found: one of liquid, grey and white matter is empty. Look at the scan: "
            "its contrast is not that of a T1w image.",
            code="preprocessing-failed",
        )
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
    return Tissues(liquid, grey_found, white_found, (means[0], means[1], means[2]))
