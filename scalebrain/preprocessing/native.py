"""One scan in native space: read, bias taken out, placed roughly, brain found."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid, resample
from scalebrain.errors import GeometryError, ImageError
from scalebrain.ingestion.lattice import corner_distance
from scalebrain.ingestion.lesion import inverted_mask, lesioned_voxels
from scalebrain.ingestion.options import ReadOptions
from scalebrain.io.files import SourceFile
from scalebrain.io.nifti import Image, read_image
from scalebrain.preprocessing.images import (
    affine_matrix,
    ants_affine,
    from_ants,
    grid_of,
    template_image,
    to_ants,
    widened,
)
from scalebrain.preprocessing.registration import register
from scalebrain.preprocessing.settings import Settings

__all__ = ["Head", "correct_bias", "find_brain", "read_head"]

_PITCHES = (-20.0, 0.0, 20.0)  # degrees; heads lie tilted by that much
_BELOW_TOP = 78.0  # mm from the top of the scalp to the middle of a brain
_HEIGHT = 160.0  # mm below the top that are head, not neck
_SMALLER = 0.95  # heads are smaller than the template
_LEAST_SIDE = 60.0  # mm of a scan that holds a brain
_VOLUME = (700.0, 2300.0)  # mL of a brain with its liquid, in the template's sense
_MIN_START = 0.25  # correlation with the template
_MAX_OUTSIDE = 0.5  # of a lesion
_MAX_COVERED = 0.5  # of a head, by a lesion
_MAX_VOLUME_CHANGE = 0.05  # of a mask that is resampled
_MAX_SHIFT = 0.1  # of a voxel, between a mask and a scan of one shape
_SHIFTED, _DARKER, _MAX_DARKER = 0.01, 0.05, 0.01  # of the head's intensity, twice; of the voxels

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Head:
    """A scan in native space, its axes in RAS order.

    Parameters
    ----------
    data
        (x, y, z) intensities.
    grid
        Where they lie.
    lesion
        (x, y, z) lesioned or not, on the same grid; None without a mask.
    lesion_volume
        Volume in mL of the mask as it is in its file; NaN without one.
    brain
        (x, y, z) brain or not; None until it is found.
    affine
        4 x 4 from points of the template to points of the scan, in mm; None until it is found.
    warnings
        Code and message of whatever is odd.
    """

    data: Volume
    grid: Grid
    lesion: Mask | None = None
    lesion_volume: float = float("nan")
    brain: Mask | None = None
    affine: npt.NDArray[np.float64] | None = None
    warnings: tuple[tuple[str, str], ...] = ()
    _wide: dict[float, Mask] = field(default_factory=dict, init=False, repr=False)

    def at(self, resolution: float, data: npt.NDArray[Any] | None = None) -> Any:
        """Image of ANTs of the scan (or of `data` on its grid), in voxels of a size in mm."""
        import ants

        image = to_ants(self.data if data is None else data, self.grid)
        steps = np.array(image.spacing)
        if (np.abs(steps - resolution) < 1e-3).all():
            return image
        sigma = tuple(float(s) for s in 0.42 * np.maximum(resolution - steps, 0))
        if max(sigma) > 0:
            image = ants.smooth_image(image, sigma, sigma_in_physical_coordinates=True)
        return ants.resample_image(image, (resolution,) * 3, use_voxels=False, interp_type=0)

    def usable(self, image: Any, settings: Settings) -> Any:
        """Mask of ANTs, on the grid of `image`, of what may guide a registration; None for all."""
        if self.lesion is None or not self.lesion.any() or not settings.cost_mask:
            return None
        left_out = self._wide.get(settings.dilation)
        if left_out is None:  # several registrations ask for it
            left_out = widened(self.lesion, self.grid, settings.dilation)
            self._wide[settings.dilation] = left_out
        grid = grid_of(image)
        there = np.asarray(resample(left_out.astype(np.float32), self.grid, grid)) > 0.25
        return to_ants(~there, grid)


def read_head(t1w: SourceFile | Path, lesion: SourceFile | Path | None, settings: Settings) -> Head:
    """Read a scan and its lesion mask.

    Parameters
    ----------
    t1w
        T1w image in native space.
    lesion
        Lesion mask drawn on it, on any grid of the same space; None without one.
    settings
        Settings.

    Returns
    -------
    Head
        Both, in RAS order; each is placed by its own affine.

    Raises
    ------
    ImageError, GeometryError
        With the code of the rule that was broken.

    Notes
    -----
    A bias field is a factor, and N4 takes logarithms: 0 has to be where there is no signal.
    Where air (the median of the faces of the image) is below 0, as after a z-transform, the scan
    is shifted until air is 0, with a warning. Then what is still below 0 is cut: the ringing of
    an interpolation is nothing to speak of, but a head that is darker than the air around it, as
    after a z-transform within a mask, gets a warning.
    """
    image = read_image(t1w, hint=False)
    data, affine = image.ras()
    grid = Grid.from_matrix(data.shape, affine)
    warnings = list(image.notes)
    sides = np.linalg.norm(affine[:3, :3], axis=0) * data.shape
    if sides.min() < _LEAST_SIDE:
        shown = " x ".join(f"{side:.0f}" for side in sides)
        raise GeometryError(
            f"{t1w}: {shown} mm, expected a whole head, {_LEAST_SIDE:.0f} mm or more each way. "
            "Give the scan of the whole head.",
            code="brain-not-found",
        )
    finite = np.isfinite(data)
    if not finite.all():
        warnings.append(("nonfinite", f"{t1w}: {(~finite).sum()} NaN or infinite voxels, taken 0"))
    data = _above_air(t1w, data, finite, warnings)
    if data.max() <= data.min():
        raise ImageError(
            f"{t1w}: {data.min():.3g} everywhere. Write it again.", code="constant-image"
        )
    head = Head(np.maximum(data, 0), grid, warnings=tuple(warnings))
    return head if lesion is None else _with_lesion(head, lesion, settings)


def _above_air(
    file: SourceFile | Path, data: Volume, finite: Mask, warnings: list[tuple[str, str]]
) -> Volume:
    """Scan whose air is 0 and not below, and 0 where it is not finite."""
    low = float(data.min(initial=0, where=finite))
    faces = np.concatenate([data[side].ravel() for side in _faces()])
    faces = faces[np.isfinite(faces)]
    air = min(float(np.median(faces)), 0.0) if low < 0 and faces.size else 0.0
    shifted = np.where(finite, data - np.float32(air), np.float32(0))
    if low >= 0:
        return shifted
    top = float(np.percentile(shifted, 99.5))
    darker = float(np.mean(shifted < -_DARKER * top))
    if darker > _MAX_DARKER:
        message = (
            f"{file}: {darker:.0%} of the voxels are darker than the air (values down to "
            f"{low:.3g}), cut to 0. Give the scan as it was reconstructed, not z-transformed."
        )
        warnings.append(("negative-intensities", message))
    elif air < -_SHIFTED * top:
        message = (
            f"{file}: air is at {air:.3g}, shifted to 0 with everything else. Give the scan as it "
            "was reconstructed where you have it."
        )
        warnings.append(("negative-intensities", message))
    return shifted


def _faces() -> list[tuple[Any, ...]]:
    """Index of each of the six faces of an image."""
    every = slice(None)
    return [
        tuple(end if a == axis else every for a in range(3)) for axis in range(3) for end in (0, -1)
    ]


def _with_lesion(head: Head, file: SourceFile | Path, settings: Settings) -> Head:
    """Head with its lesion."""
    image = read_image(file, hint=False)
    warnings = [*head.warnings, *image.notes]
    source = SourceFile(file) if isinstance(file, Path) else file
    options = ReadOptions(lesion_labels=settings.lesion_labels)
    index = lesioned_voxels(source, image, options, warnings)
    voxel = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000
    flat = np.zeros(image.raw.size, dtype=np.uint8)
    flat[index] = 1
    data, affine = Image(flat, image.shape, image.affine, 1.0, 0.0, ()).ras()
    own = Grid.from_matrix(data.shape, affine)
    placed = np.asarray(resample(data, own, head.grid)) >= 0.5
    if index.size and not placed.any() and not _anywhere_on(data, own, head.grid):
        raise GeometryError(
            f"{file}: the lesion lies outside the T1w image. Give the mask that was drawn on it.",
            code="lesion-outside-brain",
        )
    volume, after = index.size * voxel, float(placed.sum()) * head.grid.voxel_volume / 1000
    covered = float(placed[_foreground(head.data)].mean()) if after > _VOLUME[0] / 2 else 0.0
    if covered > _MAX_COVERED:
        raise inverted_mask(source, f"{covered:.0%} of the head")
    if index.size and abs(after / volume - 1) > _MAX_VOLUME_CHANGE:
        message = (
            f"{file}: {volume:.3g} mL became {after:.3g} mL on the grid of the T1w image"
            + (". " if after else ", so there is no lesion. ")
            + "Give the mask on the grid of the T1w image."
        )
        warnings.append(("mask-volume-changed", message))
    shift = corner_distance(own, head.grid)
    if shift > _MAX_SHIFT * np.linalg.norm(head.grid.matrix[:3, :3], axis=0).min():
        message = (
            f"{file}: has as many voxels as the T1w image, but its affine puts them up to "
            f"{shift:.3g} mm away from that one's. It is placed by its own; where it was drawn on "
            "this image, write it with the affine of the image."
        )
        warnings.append(("mask-affine", message))
    return replace(head, lesion=placed, lesion_volume=volume, warnings=tuple(warnings))


def _anywhere_on(data: npt.NDArray[Any], own: Grid, grid: Grid) -> bool:
    """Whether the center of any voxel of a mask lies on a grid."""
    mm = own.coordinates(np.flatnonzero(data))
    back = np.linalg.inv(grid.matrix)
    ijk = np.rint(mm @ back[:3, :3].T + back[:3, 3])
    return bool(((ijk >= 0) & (ijk < np.array(grid.shape))).all(axis=1).any())


def correct_bias(head: Head) -> Head:
    """Divide a scan by its bias field.

    Parameters
    ----------
    head
        Scan.

    Returns
    -------
    Head
        Scan without the slow changes of intensity.

    Raises
    ------
    ImageError
        When N4 finds no field.

    Notes
    -----
    N4 on voxels of 4 mm, the lesion left out: the field is smooth, and is evaluated on the
    scan's own grid.

    References
    ----------
    Tustison et al. 2010, doi:10.1109/TMI.2010.2046908
    """
    import ants

    small = head.at(4.0)
    inside = _foreground(from_ants(small))
    if head.lesion is not None:
        lesion = np.asarray(resample(head.lesion.astype(np.float32), head.grid, grid_of(small)))
        inside &= lesion < 0.25
    try:
        found = ants.n4_bias_field_correction(
            small,
            mask=to_ants(inside, grid_of(small)),
            shrink_factor=2,
            convergence={"iters": [30, 30, 20], "tol": 1e-5},
            return_bias_field=True,
        )
    except RuntimeError as error:
        raise _no_field(str(error)) from error
    values = from_ants(found)
    # antspyx does not look at what N4 returns, and its field is the image until there is one
    if np.array_equal(values, from_ants(small)):
        raise _no_field("N4 failed")
    if not (np.isfinite(values) & (values > 0)).all():
        raise _no_field("not finite, or not above 0")
    fine = np.asarray(
        resample(values - 1, grid_of(small), head.grid), dtype=np.float32
    )  # 1 outside of it
    return replace(head, data=(head.data / np.clip(1 + fine, 0.05, 20)).astype(np.float32))


def _no_field(reason: str) -> ImageError:
    """Error for a scan whose bias field is not found."""
    return ImageError(
        f"no bias field found: {reason}. Look at the scan: whether there is a head in it, and "
        "most of it outside the lesion mask.",
        code="preprocessing-failed",
    )


def _foreground(data: Volume) -> Mask:
    """Head or air, by Otsu's threshold; an error where there is nothing but air."""
    top = float(np.percentile(data, 99.5))
    counts, edges = np.histogram(np.clip(data, 0, top), bins=128)
    centers = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        below, above = total / weight, (total[-1] - total) / (weight[-1] - weight)
        between = weight * (weight[-1] - weight) * (below - above) ** 2
    if not np.isfinite(between).any():  # one value everywhere, but for a few voxels
        raise ImageError(
            "no head found: the scan has one value nearly everywhere, expected a head in it. Give "
            "the T1w image; is this a mask?",
            code="brain-not-found",
        )
    # half of it: the brain's liquid is darker than what is between air and tissue
    return np.asarray(data > 0.5 * centers[int(np.nanargmax(between))])


def find_brain(head: Head, settings: Settings, folder: str) -> Head:
    """Find where the brain is, without weights and without a template that has a skull.

    Parameters
    ----------
    head
        Scan whose bias was taken out.
    settings
        Settings.
    folder
        For temporary files.

    Returns
    -------
    Head
        With `brain`, lesion included, and `affine`.

    Raises
    ------
    GeometryError
        When nothing in the scan looks like a brain, or the lesion lies outside it.

    Notes
    -----
    Three tilted starts of an affine registration at 4 mm, the best one refined at 2 mm, then a
    coarse SyN; only the template's brain and a rim of 8 mm around it count, so that skull and
    neck do not. The template's mask is brought back through both.
    """
    import ants

    affine = _placed(head, settings, folder)
    size = 4.0 if settings.quick else 3.0
    middle = head.at(size)
    bent = register(
        template_image("t1", size),
        middle,
        "SyNOnly",
        [affine],
        f"{folder}/head-syn-",
        mask=_rim(size),
        moving_mask=head.usable(middle, settings),
        reg_iterations=(60, 40, 15) if size < 4 else (60, 30),
        grad_step=0.1,
    )
    back = ants.apply_transforms(
        to_ants(head.data, head.grid),
        template_image("mask", 1.0),
        [bent.affine, bent.inverse],
        whichtoinvert=[True, False],
        interpolator="linear",
    )
    brain = from_ants(back) >= 0.5
    volume = float(brain.sum()) * head.grid.voxel_volume / 1000
    if not _VOLUME[0] <= volume <= _VOLUME[1]:
        raise GeometryError(
            f"no brain found: what fits the template has {volume:.0f} mL, expected "
            f"{_VOLUME[0]:.0f} to {_VOLUME[1]:.0f}. Give a T1w image of the whole head.",
            code="brain-not-found",
        )
    if head.lesion is not None and head.lesion.any():
        outside = float(1 - brain[head.lesion].mean())
        if outside > _MAX_OUTSIDE:
            raise GeometryError(
                f"{outside:.0%} of the lesion is outside the brain of the scan, at most "
                f"{_MAX_OUTSIDE:.0%}. Give the mask that was drawn on this T1w image.",
                code="lesion-outside-brain",
            )
        brain |= head.lesion & widened(brain, head.grid, 5.0)
    return replace(head, brain=brain, affine=affine_matrix(affine))


def _placed(head: Head, settings: Settings, folder: str) -> str:
    """File of the affine from the template to a head: the best of three starts, refined."""
    import ants

    coarse = head.at(4.0)
    usable = head.usable(coarse, settings)
    target = template_image("t1", 4.0)
    rim = _rim(4.0)
    counted = from_ants(rim) > 0
    reached: list[tuple[float, str]] = []
    for number, pitch in enumerate(_PITCHES):
        start = ants_affine(_first_guess(coarse, pitch), f"{folder}/head-start{number}.mat")
        found = register(
            target,
            coarse,
            "Affine",
            [start],
            f"{folder}/head-affine{number}-",
            mask=rim,
            moving_mask=usable,
            aff_iterations=(200, 100),
            aff_shrink_factors=(2, 1),
            aff_smoothing_sigmas=(1, 0),
            aff_random_sampling_rate=0.5,
        ).affine
        moved = from_ants(ants.apply_transforms(target, coarse, [found]))[counted]
        fit = float(np.corrcoef(moved, from_ants(target)[counted])[0, 1])
        reached.append((fit if np.isfinite(fit) else -1.0, found))
    fit, best = max(reached)
    if fit < _MIN_START:
        raise GeometryError(
            f"no brain found: at best a correlation of {fit:.2f} with the template, expected "
            f"{_MIN_START} or more. Give a T1w image of the whole head with a right orientation.",
            code="brain-not-found",
        )
    fine = head.at(2.0)
    return register(
        template_image("t1", 2.0),
        fine,
        "Affine",
        [best],
        f"{folder}/head-refined-",
        mask=_rim(2.0),
        moving_mask=head.usable(fine, settings),
        aff_iterations=(300, 150),
        aff_shrink_factors=(4, 2),
        aff_smoothing_sigmas=(2, 1),
    ).affine


def _rim(resolution: float) -> Any:
    """Template's brain with 8 mm around it, as an image of ANTs."""
    image = template_image("mask", resolution)
    grid = grid_of(image)
    return to_ants(widened(from_ants(image) > 0, grid, 8.0), grid)


def _first_guess(image: Any, pitch: float) -> npt.NDArray[np.float64]:
    """Affine from the template to a scan: its size, a tilt, and the top of the head."""
    grid = grid_of(image)
    mm = grid.coordinates(np.flatnonzero(_foreground(from_ants(image))))
    top = float(np.percentile(mm[:, 2], 99.9))
    center = mm[mm[:, 2] > top - _HEIGHT].mean(axis=0)
    center[2] = top - _BELOW_TOP
    mask = template_image("mask", 4.0)
    target = grid_of(mask).coordinates(np.flatnonzero(from_ants(mask))).mean(axis=0)
    cosine, sine = np.cos(np.deg2rad(pitch)), np.sin(np.deg2rad(pitch))
    matrix = np.eye(4)
    matrix[:3, :3] = _SMALLER * np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix[:3, 3] = center - matrix[:3, :3] @ target
    return matrix
