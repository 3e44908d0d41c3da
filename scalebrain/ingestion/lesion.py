"""A lesion mask: which voxels are lesioned, on which side, and how much lies outside."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid
from scalebrain.errors import GeometryError, ImageError, LateralityError
from scalebrain.ingestion.geometry import Geometry
from scalebrain.ingestion.lattice import corner_distance, lattice
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.rows_numba_fns import compiled_type, value_range
from scalebrain.io.files import SourceFile
from scalebrain.io.nifti import Image, read_image

__all__ = [
    "LATERALITY_THRESHOLD",
    "LESION_THRESHOLD",
    "Lesion",
    "Sides",
    "inverted_mask",
    "lesion_side",
    "lesioned_voxels",
    "read_lesion",
]

#: A lesion is unilateral when its laterality index is at least this far from zero.
LATERALITY_THRESHOLD = 0.8
#: A voxel of a probabilistic mask is lesioned from this value.
LESION_THRESHOLD = 0.5
_MIDLINE_MM = 6.0
_CEREBELLUM = 91  # first AAL code of the cerebellum
# Boxes (mm: left and right of the midline, from and to in y, up to z) of what AAL leaves
# without a label in brainstem and cerebellum; no white matter of the hemispheres is in them.
_BRAINSTEM = (18.0, -48.0, -12.0, -6.0)
_CEREBELLAR_WHITE = (32.0, -75.0, -40.0, -20.0)
_MAX_VOLUME_CHANGE = 0.05
_MAX_OUTSIDE = 0.5
_ODD_OUTSIDE = 0.01
_MAX_SHIFT = 0.1  # of a voxel, between a mask and a scan of one shape
_MAX_LABEL_ERROR = 0.25  # by which scaled integers may miss a label
_ROUNDING = 1e-3  # of masks that are stored as scaled integers

Indices = npt.NDArray[np.int64]


class Sides(NamedTuple):
    """What a cohort's table says of sides; empty where it says nothing.

    Parameters
    ----------
    lesion
        Side of the lesion: L, R, bilateral or midline.
    paresis
        Side of the paresis: L or R.
    """

    lesion: str = ""
    paresis: str = ""


_NO_SIDES = Sides()


@dataclass
class Lesion:
    """A lesion on the store's voxels.

    Parameters
    ----------
    row
        (voxel,) lesioned or not.
    values
        Per-subject variables.
    warnings
        Code and message of whatever is odd.
    """

    row: npt.NDArray[np.bool_]
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)


def lesion_side(mm: npt.NDArray[np.floating], parcel: npt.NDArray[np.integer]) -> tuple[str, float]:
    """Side of a lesion.

    Parameters
    ----------
    mm
        (lesion voxel, 3) mm: right, anterior, superior.
    parcel
        (lesion voxel,) parcel codes; 0 without one.

    Returns
    -------
    str
        ``L``, ``R``, ``bilateral``, ``midline`` (most of it within 6 mm of the midline, or
        in brainstem and cerebellum) or ``none``.
    float
        Laterality index, (left - right) / (left + right); NaN without a lesion.
    """
    x = mm[:, 0]
    left, right = int(np.count_nonzero(x < 0)), int(np.count_nonzero(x > 0))
    if x.size == 0:
        return "none", float("nan")
    index = (left - right) / (left + right) if left + right else 0.0
    unlabeled = _in_box(mm, _BRAINSTEM) | _in_box(mm, _CEREBELLAR_WHITE)
    below = (parcel >= _CEREBELLUM) | ((parcel == 0) & unlabeled)
    if np.mean(np.abs(x) <= _MIDLINE_MM) > 0.5 or np.mean(below) > 0.5:
        return "midline", index
    if abs(index) < LATERALITY_THRESHOLD:
        return "bilateral", index
    return ("L" if index > 0 else "R"), index


def _in_box(
    mm: npt.NDArray[np.floating], box: tuple[float, float, float, float]
) -> npt.NDArray[np.bool_]:
    """Whether points lie in a box that is symmetric about the midline and open below."""
    width, back, front, top = box
    x, y, z = mm.T
    return np.asarray((np.abs(x) <= width) & (y >= back) & (y <= front) & (z <= top))


def read_lesion(
    file: SourceFile,
    geometry: Geometry,
    options: ReadOptions,
    *,
    sides: Sides = _NO_SIDES,
    beside: Grid | None = None,
) -> Lesion:
    """Read a lesion mask.

    Parameters
    ----------
    file
        Mask, on any grid of the template's space.
    geometry
        Voxels of the store.
    options
        How it is read.
    sides
        Sides by the cohort's table.
    beside
        Grid of the person's T1w image (or grey matter) in RAS order, on which the mask may have
        been drawn; None without one.

    Returns
    -------
    Lesion
        Row, values and warnings.

    Raises
    ------
    ImageError, GeometryError, LateralityError
        With the code of the rule that was broken.
    """
    image = read_image(file, volume=options.volume, assume_space=options.assume_space)
    lesion = Lesion(np.zeros(len(geometry.ijk), dtype=bool), warnings=list(image.notes))
    lesioned = lesioned_voxels(file, image, options, lesion.warnings)
    if beside is not None and lesioned.size:
        lesion.warnings += _shifted(file, image, beside)
    voxel = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000
    removed = 0.0
    if options.min_lesion > 0 and lesioned.size:
        kept = _large_components(lesioned, image.shape, options.min_lesion / voxel)
        removed = (lesioned.size - kept.size) * voxel
        lesioned = kept
    volume = lesioned.size * voxel
    brain = np.count_nonzero(geometry.inside) * geometry.grid.voxel_volume / 1000
    if volume > 0.5 * image.raw.size * voxel and volume > 0.5 * brain:
        raise inverted_mask(file, f"{lesioned.size / image.raw.size:.0%} of the image")
    ijk = _file_indices(lesioned, image.shape)
    mm = ijk @ image.affine[:3, :3].T + image.affine[:3, 3]
    at = _grid_indices(mm, geometry.grid)
    position = geometry.position()
    own = np.where(at >= 0, position[np.maximum(at, 0)], -1)
    in_brain = (own >= 0) & geometry.inside[np.maximum(own, 0)]
    to_file, residual = lattice(image.shape, image.affine, geometry.grid)
    change = 0.0
    if residual is None and lesioned.size:
        at = _resampled(lesioned, image.shape, to_file, geometry.grid, mm)
        after = at.size * geometry.grid.voxel_volume / 1000
        change = after / volume - 1
        if abs(change) > _MAX_VOLUME_CHANGE:
            message = (
                f"{file}: {volume:.2f} mL became {after:.2f} mL on the store's grid. Give a finer "
                "--resolution where that matters."
            )
            lesion.warnings.append(("mask-volume-changed", message))
    stored = position[at[at >= 0]]
    lesion.row[stored[stored >= 0]] = True
    covered = float(lesion.row[geometry.inside].mean())
    if covered > 0.5:
        raise inverted_mask(file, f"{covered:.0%} of the brain")
    outside = float(1 - in_brain.mean()) if lesioned.size else 0.0
    if outside > _MAX_OUTSIDE:
        raise GeometryError(
            f"{file}: {outside:.0%} of the lesion is outside the template's brain, at most "
            f"{_MAX_OUTSIDE:.0%}: is it in native space? Warp it with the T1w's transform.",
            code="lesion-outside-brain",
        )
    if outside > _ODD_OUTSIDE:
        lesion.warnings.append(
            ("lesion-outside", f"{file}: {outside:.1%} outside the brain. Check the mask.")
        )
    found, index = lesion_side(mm, np.where(own >= 0, geometry.parcel[np.maximum(own, 0)], 0))
    _check_sides(file, found, index, sides, lesion)
    lesion.values = {
        "lesion_volume": volume,
        "lesion_hemisphere": found,
        "laterality_index": None if np.isnan(index) else index,
        "lesion_outside_fraction": outside,
        "lesion_volume_change": change,
        "lesion_volume_removed": removed,
        "affine_residual": residual or 0.0,
    }
    return lesion


def _shifted(file: SourceFile, image: Image, beside: Grid) -> list[tuple[str, str]]:
    """Warn of a mask with the voxels of a scan in another place; refuse one with no place."""
    shift = corner_distance(Grid.canonical(image.shape, image.affine), beside)
    if shift <= _MAX_SHIFT * np.linalg.norm(beside.matrix[:3, :3], axis=0).min():
        return []
    unit = [np.array_equal(affine[:3, :3], np.eye(3)) for affine in (image.affine, beside.matrix)]
    zero = [not affine[:3, 3].any() for affine in (image.affine, beside.matrix)]
    if unit == [True, False] or zero == [True, False]:
        lost = "voxels of 1 mm along the axes" if unit == [True, False] else "the origin 0, 0, 0"
        raise GeometryError(
            f"{file}: has as many voxels as the scan beside it, but an affine with {lost}, which "
            f"puts them up to {shift:.3g} mm away from that one's: its affine was lost. Write it "
            "with the affine of the image that it was drawn on.",
            code="mask-unplaced",
        )
    message = (
        f"{file}: has as many voxels as the scan beside it, but its affine puts them up to "
        f"{shift:.3g} mm away from that one's. It is placed by its own; where it was drawn on "
        "this image, write it with the affine of the image."
    )
    return [("mask-affine", message)]


def inverted_mask(file: SourceFile, covered: str) -> ImageError:
    """Make the error of a mask that covers most of the brain.

    Parameters
    ----------
    file
        The mask's file.
    covered
        What it covers, in words.

    Returns
    -------
    ImageError
        To raise.
    """
    return ImageError(
        f"{file}: covers {covered}: inverted? The lesion has to be 1, the rest 0.",
        code="mask-inverted",
    )


def lesioned_voxels(
    file: SourceFile, image: Image, options: ReadOptions, warnings: list[tuple[str, str]]
) -> Indices:
    """Find the lesioned voxels of a mask.

    Parameters
    ----------
    file
        The mask's file, for messages.
    image
        What was read of it.
    options
        How it is read.
    warnings
        Code and message of whatever is odd are added to it.

    Returns
    -------
    ndarray
        Index in the file of every lesioned voxel.

    Raises
    ------
    ImageError
        When it is no mask.
    """
    found = np.zeros(3)
    value_range(compiled_type(image.raw), found)
    if found[2]:
        raise ImageError(
            f"{file}: {int(found[2])} NaN or infinite voxels in a mask. Write 0 there, or 1.",
            code="nonfinite-many",
        )
    with np.errstate(over="ignore"):
        low, high = sorted(image.slope * found[:2] + image.intercept)
    if not np.isfinite([low, high]).all():
        raise ImageError(
            f"{file}: values of a mask are infinite when the header scales them by "
            f"{image.slope:g}. Write it again, as 0 and 1.",
            code="nonfinite-many",
        )
    if low < -_ROUNDING:
        raise ImageError(
            f"{file}: values down to {low:g}, expected a mask of 0 and 1. Write it again.",
            code="mask-negative",
        )
    plain = image.slope == 1 and image.intercept == 0
    values = image.raw if plain else image.raw * image.slope + image.intercept
    if high <= 1 + _ROUNDING:
        lesioned = np.asarray(np.flatnonzero(values >= LESION_THRESHOLD), dtype=np.int64)
        _note_fractions(file, high, bool(lesioned.size), options, warnings)
        return lesioned
    stored = np.append(0, np.unique(values[values > 0]))
    whole = _whole_labels(image, stored)
    labels = np.unique(whole[whole > 0])
    shown = _listed(labels)
    if options.lesion_labels:
        _check_whole(file, image, stored, whole)
        if not np.isin(labels, options.lesion_labels).any():
            wanted = ", ".join(map(str, options.lesion_labels))
            raise ImageError(
                f"{file}: labels {shown}, expected one of --lesion-labels ({wanted}). Correct the "
                "option, or write an empty mask if there is no lesion.",
                code="mask-labels",
            )
        lesion = stored[np.isin(whole, options.lesion_labels)]
        return np.asarray(np.flatnonzero(np.isin(values, lesion)), dtype=np.int64)
    if labels.size > 1:
        raise ImageError(
            f"{file}: {labels.size} labels ({shown}), expected one lesion. Say which are lesion "
            "with --lesion-labels, or write the lesion alone.",
            code="mask-labels",
        )
    warnings.append(("mask-scaled", f"{file}: lesion is {high:g}, expected 1; taken as 1"))
    return np.asarray(np.flatnonzero(values >= stored[whole > 0].min()), dtype=np.int64)


def _listed(labels: npt.NDArray[np.floating]) -> str:
    """Labels in words, the first eight."""
    return ", ".join(f"{label:g}" for label in labels[:8]) + (", ..." if labels.size > 8 else "")


def _whole_labels(image: Image, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Labels that were meant: whole numbers that scaled integers miss by a step of the scaling."""
    step = abs(image.slope) if image.raw.dtype.kind in "iu" and image.slope != 1 else 0.0
    allowed = min(max(_ROUNDING, 1.001 * step), _MAX_LABEL_ERROR) + 1e-6 * np.abs(values)
    nearest = np.rint(values)
    return np.where(np.abs(values - nearest) <= allowed, nearest, values).astype(np.float64)


def _check_whole(
    file: SourceFile,
    image: Image,
    stored: npt.NDArray[np.floating],
    whole: npt.NDArray[np.float64],
) -> None:
    """Refuse values of which nobody can tell which label they are."""
    odd = stored[whole != np.rint(whole)]
    if not odd.size:
        return
    plain = image.slope == 1 and image.intercept == 0
    scaled = "without a scaling" if plain else f"scaled by {image.slope:g} and {image.intercept:g}"
    raise ImageError(
        f"{file}: values that are no labels ({_listed(odd)}), expected whole numbers; "
        f"voxels of {image.raw.dtype.name}, {scaled}. Write the labels again as integers, with "
        "scl_slope 1 and without interpolation.",
        code="mask-labels",
    )


def _note_fractions(
    file: SourceFile,
    high: float,
    any_lesion: bool,
    options: ReadOptions,
    warnings: list[tuple[str, str]],
) -> None:
    """Say what is odd about a mask of 0 to 1."""
    if high > _ROUNDING and not any_lesion:
        message = (
            f"{file}: values up to {high:g}, all below {LESION_THRESHOLD}: taken as no lesion. "
            "Write the lesion as 1."
        )
        warnings.append(("mask-below-threshold", message))
    if any_lesion and options.lesion_labels and 1 not in options.lesion_labels:
        wanted = ", ".join(map(str, options.lesion_labels))
        message = (
            f"{file}: a mask of 0 and 1, none of --lesion-labels ({wanted}): its 1 is taken as "
            "lesion. Check that it is one."
        )
        warnings.append(("mask-unlabeled", message))


def _large_components(lesioned: Indices, shape: tuple[int, int, int], n_voxels: float) -> Indices:
    """Lesioned voxels of connected components (26 neighbors) of at least `n_voxels`."""
    from scipy import ndimage

    ijk = _file_indices(lesioned, shape)
    low = ijk.min(axis=0)
    box = np.zeros(tuple(ijk.max(axis=0) - low + 1), dtype=bool)
    inner = tuple((ijk - low).T)
    box[inner] = True
    label, _ = ndimage.label(box, structure=np.ones((3, 3, 3)))
    own = label[inner]
    return np.asarray(lesioned[np.bincount(own)[own] >= n_voxels], dtype=np.int64)


def _file_indices(flat: Indices, shape: tuple[int, int, int]) -> Indices:
    """Turn flat indices, first axis fastest, into (n, 3)."""
    return np.stack(np.unravel_index(flat, shape, order="F"), axis=1).astype(np.int64)


def _grid_indices(mm: npt.NDArray[np.float64], grid: Grid) -> Indices:
    """C-order flat index of the voxel that a point lies in; -1 outside the grid."""
    inverse = np.linalg.inv(grid.matrix)
    ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64)
    valid = ((ijk >= 0) & (ijk < np.array(grid.shape))).all(axis=1)
    flat = np.full(len(mm), -1, dtype=np.int64)
    flat[valid] = np.ravel_multi_index(tuple(ijk[valid].T), grid.shape)
    return flat


def _resampled(
    lesioned: Indices,
    shape: tuple[int, int, int],
    to_file: npt.NDArray[np.float64],
    grid: Grid,
    mm: npt.NDArray[np.float64],
) -> Indices:
    """C-order flat index in the grid of every voxel whose nearest voxel of the file is lesioned."""
    from scipy import ndimage

    mask = np.zeros(int(np.prod(shape)), dtype=np.uint8)
    mask[lesioned] = 1
    inverse = np.linalg.inv(grid.matrix)
    around = mm @ inverse[:3, :3].T + inverse[:3, 3]
    margin = np.ceil(np.abs(np.linalg.inv(to_file[:3, :3])).sum(axis=1)) + 1
    low = np.clip(np.floor(around.min(axis=0) - margin), 0, np.array(grid.shape)).astype(int)
    high = np.clip(np.ceil(around.max(axis=0) + margin) + 1, 0, np.array(grid.shape)).astype(int)
    if (high <= low).any():
        return np.empty(0, dtype=np.int64)
    box = ndimage.affine_transform(
        mask.reshape(shape, order="F"),
        to_file[:3, :3],
        to_file[:3, :3] @ low + to_file[:3, 3],
        output_shape=tuple(high - low),
        order=0,
        mode="grid-constant",  # with the outer half of the voxels at the faces of the file
        cval=0,
    )
    ijk = np.argwhere(box) + low
    return np.asarray(np.ravel_multi_index(tuple(ijk.T), grid.shape), dtype=np.int64)


def _check_sides(file: SourceFile, found: str, index: float, sides: Sides, lesion: Lesion) -> None:
    """Compare the mask's side with the table's."""
    side, paresis = sides
    if paresis == found and side != found:  # else the table says it of itself
        message = (
            f"{file}: the lesion is on the {found} side by the mask and so is the paresis by the "
            "table, expected opposite sides. Check whether left and right are swapped in the table "
            "or in the image."
        )
        lesion.warnings.append(("paresis-side", message))
    if side in ("", found):
        return
    if {side, found} == {"L", "R"}:
        raise LateralityError(
            f"{file}: the mask is on the {found} side (laterality index {index:+.2f}), the table "
            f"says {side}. One of the two is wrong, or the image is flipped: correct it.",
            code="lesion-side",
        )
    shown = "" if np.isnan(index) else f" ({index:+.2f})"
    lesion.warnings.append(
        (
            "lesion-side-differs",
            f"{file}: {found} by the mask{shown}, {side} by the table. Check both.",
        )
    )
