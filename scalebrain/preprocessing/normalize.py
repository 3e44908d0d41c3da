"""From the scan to the template: affine and SyN, the lesion left out of the cost."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid, template_grid
from scalebrain.errors import GeometryError
from scalebrain.preprocessing.images import (
    affine_matrix,
    ants_affine,
    box_around,
    from_ants,
    template_image,
    to_ants,
    widened,
)
from scalebrain.preprocessing.native import Head
from scalebrain.preprocessing.registration import register
from scalebrain.preprocessing.settings import Settings

__all__ = ["Warp", "field_of_view", "jacobian", "normalize", "to_template"]

_RIM = 8.0  # mm around the template's brain that count

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Warp:
    """Transforms of one scan.

    Parameters
    ----------
    affine
        4 x 4 from points of the template to points of the scan, in mm.
    affine_file
        The same for ANTs.
    warp_file
        Displacements on the template's grid, applied before the affine; empty without SyN.
    inverse_file
        Displacements back; empty without SyN.
    work
        Voxel size in mm of their grid.
    """

    affine: npt.NDArray[np.float64]
    affine_file: str
    warp_file: str = ""
    inverse_file: str = ""
    work: float = 2.0

    @property
    def forward(self) -> list[str]:
        """Transforms that bring an image of the scan to the template, as ANTs takes them."""
        return [file for file in (self.warp_file, self.affine_file) if file]


def normalize(head: Head, settings: Settings, folder: str) -> Warp:
    """Register the brain of a scan to the template.

    Parameters
    ----------
    head
        Scan with its brain and affine; where its lesion was filled, `lesion` is what was not.
    settings
        Settings.
    folder
        For temporary files.

    Returns
    -------
    Warp
        Transforms.

    Raises
    ------
    GeometryError
        When the brain is not known yet.

    Notes
    -----
    Voxels of the lesion, and of a rim of `dilation` around it, are no part of the cost, of the
    affine or of SyN: the deformation there follows from what is around it.

    SyN has the levels of antsRegistrationSyNQuick at 1 mm: at most 100 x 70 x 50 iterations on
    voxels of 8, 4 and 2 mm; its last level, which makes none, is left out. Mutual information
    with 32 bins and the smoothing of the field (3 voxels of the update, 0 of the whole) are the
    same too. What differs from ``antsRegistrationSyNQuick[s]`` of antspyx 0.6.3: a gradient step
    of 0.1 instead of 0.2; images smoothed by 4, 2 and 0 mm instead of 3, 2 and 1 mm; convergence
    at a slope of 1e-7 over 8 iterations instead of 1e-6 over 10; the affine, which begins where
    the head's ended, with steps of 0.25 instead of 0.1, at two levels, and without a rigid stage.

    References
    ----------
    Avants et al. 2008, doi:10.1016/j.media.2007.06.004
    Brett et al. 2001, doi:10.1006/nimg.2001.0845
    """
    if head.brain is None or head.affine is None:
        raise GeometryError("A brain is normalized when it is known where it is. Find it first.")
    brain = replace(head, data=np.where(head.brain, head.data, np.float32(0)))
    work = settings.work
    moving = brain.at(work)
    usable = brain.usable(moving, settings)
    target = template_image("t1", work)
    mask = template_image("mask", work)
    grid = template_grid(work)
    rim = to_ants(widened(from_ants(mask) > 0, grid, _RIM), grid)
    start = ants_affine(head.affine, f"{folder}/normalize-start.mat")
    affine = register(
        target,
        moving,
        "Affine",
        [start],
        f"{folder}/normalize-affine-",
        mask=rim,
        moving_mask=usable,
        aff_iterations=(300, 150),
        aff_shrink_factors=(4, 2) if work < 4 else (2, 1),
        aff_smoothing_sigmas=(2, 1) if work < 4 else (1, 0),
    ).affine
    if settings.quick:
        return Warp(affine_matrix(affine), affine, work=work)
    found = register(
        target,
        moving,
        "SyNOnly",
        [affine],
        f"{folder}/normalize-syn-",
        mask=rim,
        moving_mask=usable,
        reg_iterations=(100, 70, 50),
        grad_step=0.1,
    )
    return Warp(affine_matrix(found.affine), found.affine, found.warp, found.inverse, work)


def to_template(
    data: npt.NDArray[Any],
    grid: Grid,
    warp: Warp,
    resolution: float,
    *,
    how: Literal["linear", "genericLabel", "nearestNeighbor"] = "linear",
    affine_only: bool = False,
) -> Volume:
    """Bring values of a scan to the template's grid.

    Parameters
    ----------
    data
        (x, y, z) values.
    grid
        Their grid.
    warp
        Transforms.
    resolution
        Voxel size in mm of the result.
    how
        Interpolation.
    affine_only
        Leave the displacements out.

    Returns
    -------
    ndarray
        (x, y, z) values on ``template_grid(resolution)``.
    """
    import ants

    moved = ants.apply_transforms(
        template_image("t1", resolution),
        to_ants(data, grid),
        [warp.affine_file] if affine_only else warp.forward,
        interpolator=how,
    )
    return from_ants(moved)


def field_of_view(head: Head, warp: Warp, resolution: float) -> Mask:
    """Find what of the template's grid was scanned.

    Parameters
    ----------
    head
        Scan, not constant.
    warp
        Transforms.
    resolution
        Voxel size in mm of the result.

    Returns
    -------
    ndarray of bool
        (x, y, z) in the field of view or not, on ``template_grid(resolution)``.

    Notes
    -----
    Slices of 0 at the sides of a scan were not scanned: it was padded. Air within is.
    """
    there = np.zeros(head.grid.shape, dtype=bool)
    there[box_around(head.data > 0, 0)] = True
    return to_template(there, head.grid, warp, resolution, how="nearestNeighbor") > 0.5


def jacobian(warp: Warp, resolution: float) -> Volume:
    """Volume of the scan for a unit of volume of the template, affine included.

    Parameters
    ----------
    warp
        Transforms.
    resolution
        Voxel size in mm of the result.

    Returns
    -------
    ndarray
        (x, y, z) on ``template_grid(resolution)``.
    """
    import ants

    scale = abs(float(np.linalg.det(warp.affine[:3, :3])))
    target = template_image("t1", resolution)
    if not warp.warp_file:
        return np.full(target.shape, scale, dtype=np.float32)
    domain = template_image("t1", warp.work)
    local = ants.create_jacobian_determinant_image(domain, warp.warp_file)
    if resolution != warp.work:
        local = ants.resample_image_to_target(local, target, interp_type="linear")
    values = from_ants(local) * np.float32(scale)
    return np.where(values == 0, np.float32(scale), values)  # the rim outside the field
