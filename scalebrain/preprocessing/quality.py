"""What a normalization is worth, in numbers, and what of it deserves a word."""

from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import asymmetric_template, brain_mask, template, template_grid
from scalebrain.preprocessing.settings import Settings

__all__ = ["judge", "measure"]

#: Least correlation with the template in the brain outside the lesion, after an affine and SyN.
_LEAST_AFFINE, _LEAST_SYN = 0.45, 0.65
_USELESS = 0.3  # what the ingest refuses
_JACOBIAN = (0.1, 10.0)  # of the deformation, head size taken out
_MAX_EXTREME = 0.005
_MIRROR_MARGIN = 0.005
_VOLUME_CHANGE = 0.20
#: Least share of the brain in the field of view: below it a word, and no use.
_LEAST_SCANNED, _TOO_LITTLE_SCANNED = 0.995, 0.9

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def measure(
    t1w: Volume,
    affine_t1w: Volume,
    grey: Volume,
    volumes: Volume,
    scale: float,
    lesion: Mask | None,
    scanned: Mask,
    resolution: float,
) -> dict[str, Any]:
    """Measure a normalization.

    Parameters
    ----------
    t1w
        (x, y, z) normalized scan.
    affine_t1w
        (x, y, z) the same with the affine alone: what still has its own asymmetry.
    grey
        (x, y, z) probability of grey matter.
    volumes
        (x, y, z) volume of the scan for a unit of volume of the template.
    scale
        The affine's part in it.
    lesion
        (x, y, z) lesioned or not; None without a mask.
    scanned
        (x, y, z) in the scan's field of view or not.
    resolution
        Voxel size in mm.

    Returns
    -------
    dict
        Numbers, JSON-able. Lesioned voxels are in none of them.
    """
    grid = template_grid(resolution)
    inside = brain_mask(grid)
    if lesion is not None:
        inside = inside & ~lesion
    local = volumes[inside] / scale
    return {
        "template_overlap": _correlation(t1w, template("t1", grid), inside),
        "template_overlap_grey": _correlation(grey, template("gm", grid), inside),
        "asymmetric_overlap": _correlation(affine_t1w, asymmetric_template(grid), inside),
        "asymmetric_overlap_mirrored": _correlation(
            affine_t1w, asymmetric_template(grid, mirrored=True), inside
        ),
        "brain_covered": float(np.mean(t1w[inside] > 0)),
        "brain_scanned": float(np.mean(scanned[inside])),
        "jacobian_min": float(local.min()),
        "jacobian_max": float(local.max()),
        "jacobian_p01": float(np.percentile(local, 1)),
        "jacobian_p99": float(np.percentile(local, 99)),
        "jacobian_extreme": float(np.mean((local < _JACOBIAN[0]) | (local > _JACOBIAN[1]))),
        "template_to_native_volume": float(scale),
    }


def _correlation(one: Volume, other: Volume, inside: Mask) -> float:
    """Pearson's r of two images in a mask; 0 when one of them is constant."""
    x, y = one[inside].astype(np.float64), other[inside].astype(np.float64)
    spread = x.std() * y.std()
    return float(np.mean((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else 0.0


def judge(quality: dict[str, Any], name: str, settings: Settings) -> list[tuple[str, str, str]]:
    """Say what is wrong or odd with a normalization.

    Parameters
    ----------
    quality
        Numbers of :func:`measure`, and ``lesion_volume_native`` and ``lesion_volume_warped`` in
        mL where there is a lesion.
    name
        Subject, for messages.
    settings
        Settings.

    Returns
    -------
    list of tuple
        Action (``E``, ``W``), code and message.
    """
    found = []
    fit = quality["template_overlap"]
    least = _LEAST_AFFINE if settings.quick else _LEAST_SYN
    if fit < _USELESS:
        message = (
            f"{name}: correlates {fit:.2f} with the template after normalization, expected "
            f"{_USELESS} or more. Look at the scan and its lesion mask."
        )
        found.append(("E", "brain-not-found", message))
    elif fit < least:
        message = (
            f"{name}: correlates {fit:.2f} with the template after normalization, expected "
            f"{least} or more. Look at it (scalebrain qc)."
        )
        found.append(("W", "poorly-normalized", message))
    scanned = quality["brain_scanned"]
    if scanned < _LEAST_SCANNED:
        message = (
            f"{name}: {1 - scanned:.1%} of the brain lies outside the field of view of the scan, "
            f"at most {1 - _LEAST_SCANNED:.1%}"
        )
        if scanned < _TOO_LITTLE_SCANNED:
            found.append(("E", "brain-not-found", f"{message}. Give the scan of the whole head."))
        else:
            message += (
                ": its T1w and tissues are 0 there, which is no measurement. Look at it "
                "(scalebrain qc), or take the scan out."
            )
            found.append(("W", "poorly-normalized", message))
    extreme = quality["jacobian_extreme"]
    if extreme > _MAX_EXTREME:
        message = (
            f"{name}: {extreme:.1%} of the brain is shrunk or stretched by more than "
            f"{_JACOBIAN[1]:.0f} times, at most {_MAX_EXTREME:.1%}. Look at it (scalebrain qc)."
        )
        found.append(("W", "poorly-normalized", message))
    given, mirrored = quality["asymmetric_overlap"], quality["asymmetric_overlap_mirrored"]
    if mirrored > given + _MIRROR_MARGIN:
        message = (
            f"{name}: fits the asymmetric template better mirrored ({mirrored:.3f}, {given:.3f} "
            "as it is). Check left and right of the scan."
        )
        found.append(("W", "mirrored", message))
    native, warped = (quality.get(f"lesion_volume_{which}") for which in ("native", "warped"))
    if native and warped is not None:
        change = warped / native - 1
        if abs(change) > _VOLUME_CHANGE:
            size = 1 / quality["template_to_native_volume"]
            message = (
                f"{name}: a lesion of {native:.2f} mL has {warped:.2f} mL in template space "
                f"({change:+.0%}); size of the head alone: {size - 1:+.0%}. Where the two differ "
                "much, look at the mask. lesion_volume of the store is that in template space."
            )
            found.append(("W", "lesion-volume-changed", message))
    return found
