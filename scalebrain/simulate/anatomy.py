"""The template brain on a grid, prepared once a process for drawing people."""

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.space import Grid, brain_mask, template, template_grid
from scalebrain.atlas.tracts import cst_probability
from scalebrain.errors import ConfigError
from scalebrain.simulate.factors import PARCELS, parcel_factors
from scalebrain.simulate.images_numba_fns import render, spline_field
from scalebrain.simulate.parameters import SimulationParameters

__all__ = ["Anatomy", "Territory", "anatomy", "smooth_field", "territory", "tissue_constants"]

_SHIFTS = np.linspace(-6, 6, 17)
_CURVE_VOXELS = 250_000
_CURVE_BRAINS = 2
_CURVE_SEED = 20260

# Nearest parcels of the middle cerebral artery's territory, both hemispheres: frontal
# convexity, insula, central, parietal convexity, basal ganglia, temporal convexity.
_MIDDLE_CEREBRAL = (
    *(1, 2, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18, 29, 30, 57, 58),
    *(61, 62, 63, 64, 65, 66, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86),
)
_CEREBELLUM = 91
_FORBIDDEN = np.float32(np.inf)
_OUTSIDE_TERRITORY = 1.2
_MEDIAL, _MEDIAL_MM = 1.0, 15.0
_MIDLINE_MM = 5.0
_VENTRICLE = 0.7

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
T = TypeVar("T", bound=np.generic)
_lock = threading.RLock()


@dataclass(frozen=True)
class Anatomy:
    """Template brain on a grid, in the voxel order of a NIfTI file.

    Parameters
    ----------
    grid
        The grid.
    inside
        Flat positions of the brain's voxels in a file (voxel,), sorted.
    origin
        First voxel (k, j, i) of the box around the brain, to which all else is cropped.
    kji
        Indices in the box along the third, second and first axis (voxel, 3).
    boxed
        Flat positions in the box (voxel,), sorted.
    grey, white
        Tissue probabilities, indexed (k, j, i).
    detail
        Intensity of the template that its tissues do not explain, (k, j, i).
    blend, weight
        The four parcels that matter most to a voxel, as positions in `PARCELS`, and
        their weights (voxel, 4).
    label
        Parcel code of the voxel, 0 for none (voxel,).
    volume_curve
        Log grey-matter volume of a parcel against shift, relative to shift 0
        (parcel, shift); increasing along shift.
    """

    grid: Grid
    inside: npt.NDArray[np.intp]
    origin: tuple[int, int, int]
    kji: npt.NDArray[np.int16]
    boxed: npt.NDArray[np.intp]
    grey: Float32
    white: Float32
    detail: Float32
    blend: npt.NDArray[np.int16]
    weight: Float32
    label: npt.NDArray[np.int32]
    volume_curve: Array

    @property
    def voxel_mm(self) -> float:
        """Edge of a voxel in mm."""
        return abs(self.grid.affine[0])

    def shift(self, log_volume: Array) -> Array:
        """Shift of the tissue border that gives each parcel a log volume (parcel,)."""
        # The curves end at the largest shifts: a parcel that should be larger or smaller than
        # there, as some of the youngest people's, is drawn as there. Surfaces and the oracle
        # have no such end.
        return np.array(
            [
                np.interp(value, curve, _SHIFTS)
                for value, curve in zip(log_volume, self.volume_curve, strict=True)
            ]
        )


@dataclass(frozen=True)
class Territory:
    """Where lesions grow and what they damage, per brain voxel of an `Anatomy`.

    Parameters
    ----------
    side
        -1 left, 1 right, 0 where no lesion may grow (voxel,).
    penalty
        Cost of leaving the territory of the middle cerebral artery (voxel,).
    position
        Millimeter coordinates (voxel, 3).
    tract
        Probability of the corticospinal tract by side, ``{"L": (voxel,), "R": ...}``.
    salience
        Voxels of the salience network by side.
    """

    side: npt.NDArray[np.int8]
    penalty: Float32
    position: Float32
    tract: Mapping[str, Float32]
    salience: Mapping[str, npt.NDArray[np.bool_]]


def tissue_constants(parameters: SimulationParameters, *, texture: float) -> Array:
    """Pack the constants of the `render` kernel."""
    return np.array(
        [
            parameters.sharpness,
            parameters.thinning_to_white,
            parameters.grey_white_contrast,
            parameters.csf_intensity,
            texture,
        ]
    )


def anatomy(resolution: float, parameters: SimulationParameters) -> Anatomy:
    """Template brain at a resolution, prepared once a process.

    Parameters
    ----------
    resolution
        Edge of a voxel in mm.
    parameters
        Parameters of the simulation; those of tissue and blending matter.

    Returns
    -------
    Anatomy
        Shared and read-only.

    Raises
    ------
    ConfigError
        When voxels are so large that a parcel has none.
    """
    with _lock:  # several threads of a worker ask at once; one prepares
        return _anatomy(
            float(resolution),
            parameters.parcel_blend_mm,
            parameters.deformation_mm,
            parameters.deformation_knots_mm,
            tuple(tissue_constants(parameters, texture=0.0).tolist()),
        )


@functools.lru_cache(maxsize=2)
def _anatomy(
    resolution: float,
    blend_mm: float,
    deformation_mm: float,
    knots_mm: float,
    constants: tuple[float, ...],
) -> Anatomy:
    grid = template_grid(resolution)
    # the voxels that an ingest keeps: the brain mask and what parcels stick out of it
    kept = _file_order(brain_mask(grid)) | (_file_order(parcel_image(grid)) > 0)
    inside = np.flatnonzero(kept)
    sides = [np.flatnonzero(kept.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)
    boxed = np.flatnonzero(kept[box])
    kji = np.stack(np.nonzero(kept[box]), axis=1).astype(np.int16)
    del kept
    t1, grey, white = (_file_order(template(name, grid), box) for name in ("t1", "gm", "wm"))
    labels = _file_order(parcel_image(grid), box)
    label = labels.ravel()[boxed]
    missing = sorted(set(PARCELS) - set(np.unique(label).tolist()))
    used = set(np.flatnonzero(~parcel_factors().outside) + 1)
    if used & set(missing):
        raise ConfigError(
            f"At {resolution} mm the parcels {sorted(used & set(missing))} have no voxel. "
            "Simulate at 6 mm or finer."
        )
    blend, weight = _blend(labels, boxed, blend_mm / resolution)

    tissue = np.array(constants)
    shape = (grey, white, np.zeros_like(grey), blend, weight)
    # intensity of the template relative to white matter, less what its tissues explain
    still = np.zeros((3, len(kji)), np.float32)
    explained = _draw(kji, still, *shape, np.zeros(len(PARCELS)), tissue)[0]
    reference = float(np.median(t1.ravel()[boxed[white.ravel()[boxed] > 0.95]]))
    detail = np.zeros_like(grey)
    detail.ravel()[boxed] = np.clip(t1.ravel()[boxed] / reference - explained, -0.35, 0.35)

    # Volume against shift is measured on deformed brains, which respond more than the
    # template itself; on a fine grid a sample of the voxels is enough.
    step = max(1, len(kji) // _CURVE_VOXELS)
    sample = (kji[::step].copy(), label[::step])
    sampled = (grey, white, shape[2], blend[::step].copy(), weight[::step].copy())
    rng = np.random.default_rng(_CURVE_SEED)
    volume = np.zeros((len(PARCELS), _SHIFTS.size))
    for _ in range(_CURVE_BRAINS):
        warp = smooth_field(sample[0], grey.shape, rng, spacing=knots_mm / resolution, n_fields=3)
        warp *= np.float32(deformation_mm / resolution)
        for column, shift in enumerate(_SHIFTS):
            gm = _draw(sample[0], warp, *sampled, np.full(len(PARCELS), shift), tissue)[1]
            volume[:, column] += np.bincount(sample[1], gm, PARCELS[-1] + 1)[1:]
    volume[volume[:, _SHIFTS.size // 2] <= 0] = np.exp(_SHIFTS)  # no voxel on a coarse grid
    curve = np.log(volume / volume[:, _SHIFTS.size // 2, np.newaxis])
    origin = (box[0].start, box[1].start, box[2].start)
    return Anatomy(
        grid, inside, origin, kji, boxed, grey, white, detail, blend, weight, label, curve
    )


def _draw(
    kji: npt.NDArray[np.int16],
    warp: Float32,
    grey: Float32,
    white: Float32,
    detail: Float32,
    blend: npt.NDArray[np.int16],
    weight: Float32,
    shift: Array,
    tissue: Array,
) -> tuple[Float32, Float32]:
    """T1w intensity and grey matter with template contrast."""
    t1w, gm = np.empty(len(kji), np.float32), np.empty(len(kji), np.float32)
    contrast = np.zeros(len(PARCELS))
    render(kji, grey, white, detail, warp, blend, weight, shift, contrast, tissue, t1w, gm)
    return t1w, gm


def smooth_field(
    kji: npt.NDArray[np.int16],
    shape: tuple[int, ...],
    rng: np.random.Generator,
    *,
    spacing: float,
    n_fields: int = 1,
) -> Float32:
    """Draw smooth random fields of unit SD.

    Parameters
    ----------
    kji
        Voxel indices along the third, second and first axis (voxel, 3).
    shape
        Shape of the box that holds them.
    rng
        Random generator.
    spacing
        Distance of the knots of the cubic B-splines, in voxels.
    n_fields
        Number of fields.

    Returns
    -------
    ndarray
        float32 (field, voxel).
    """
    spacing = max(spacing, 1.0)
    n_knots = [int((size - 1) / spacing) + 4 for size in shape]
    knots = rng.standard_normal((n_fields, *n_knots))
    # mean of the squared weights of a cubic B-spline over a cell is 151/315 an axis
    knots /= (151 / 315) ** 1.5
    out = np.empty((n_fields, len(kji)), np.float32)
    spline_field(kji, knots, spacing, out)
    return out


def _file_order(
    image: npt.NDArray[T], box: tuple[slice, ...] = (slice(None),) * 3
) -> npt.NDArray[T]:
    """Reorder (i, j, k) to contiguous (k, j, i), the order of a NIfTI file, and crop."""
    return np.ascontiguousarray(image.transpose(2, 1, 0)[box])


def _blend(
    labels: npt.NDArray[np.int32], boxed: npt.NDArray[np.intp], sigma: float
) -> tuple[npt.NDArray[np.int16], Float32]:
    """Four heaviest parcels of each brain voxel, after smoothing the filled parcels."""
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    filled = labels[tuple(nearest)].astype(np.uint8)
    del nearest
    slot_of = np.full(labels.shape, -1, np.int32)
    slot_of.ravel()[boxed] = np.arange(boxed.size, dtype=np.int32)
    best = np.zeros((boxed.size, 4), np.float32)
    which = np.zeros((boxed.size, 4), np.int16)
    margin = int(np.ceil(3 * sigma)) + 1
    for code, found in enumerate(ndimage.find_objects(filled, max_label=PARCELS[-1]), start=1):
        if found is None:
            continue
        part = tuple(
            slice(max(0, s.start - margin), min(size, s.stop + margin))
            for s, size in zip(found, labels.shape, strict=True)
        )
        share = (filled[part] == code).astype(np.float32)
        if sigma > 0:
            share = ndimage.gaussian_filter(share, sigma, truncate=3.0, mode="nearest")
        keep = (share > 0.01) & (slot_of[part] >= 0)
        values, slots = share[keep], slot_of[part][keep]
        # the new parcel replaces the lightest of the four where it is heavier
        lightest = best[slots].argmin(axis=1)
        heavier = values > best[slots, lightest]
        best[slots[heavier], lightest[heavier]] = values[heavier]
        which[slots[heavier], lightest[heavier]] = code - 1
    best /= best.sum(axis=1, keepdims=True)
    return which, best


def territory(resolution: float, parameters: SimulationParameters) -> Territory:
    """Where lesions may grow at a resolution, prepared once a process.

    Parameters
    ----------
    resolution
        Edge of a voxel in mm.
    parameters
        Parameters of the simulation.

    Returns
    -------
    Territory
        Shared and read-only.
    """
    brain = anatomy(resolution, parameters)
    with _lock:
        return _territory(brain.grid.affine, _Keyed(brain))


class _Keyed:
    """Hands an `Anatomy` to a cache without hashing its arrays."""

    def __init__(self, brain: Anatomy) -> None:
        self.brain = brain

    def __hash__(self) -> int:
        return hash(self.brain.grid)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and other.brain.grid == self.brain.grid


@functools.lru_cache(maxsize=2)
def _territory(_affine: tuple[float, ...], keyed: _Keyed) -> Territory:
    brain = keyed.brain
    grid = brain.grid
    position = np.empty(brain.kji.shape, np.float32)
    for axis, column in enumerate(reversed(range(3))):
        first = grid.matrix[axis, 3] + brain.origin[column] * brain.voxel_mm
        position[:, axis] = first + brain.kji[:, column] * np.float32(brain.voxel_mm)
    x, y, z = position.T
    heaviest = brain.weight.argmax(axis=1)[:, np.newaxis]
    nearest = np.take_along_axis(brain.blend, heaviest, axis=1)[:, 0] + 1
    csf = 1 - (brain.grey + brain.white).ravel()[brain.boxed]
    brainstem = (z < -8) & (np.abs(x) < 20) & (y > -45) & (y < -8)
    forbidden = (
        (np.abs(x) < _MIDLINE_MM)
        | (nearest >= _CEREBELLUM)
        | brainstem
        | (csf > _VENTRICLE)
        # on the other side of the midline than its nearest parcel
        | ((nearest % 2 == 1) != (x < 0))
    )
    side = np.where(forbidden, 0, np.sign(x)).astype(np.int8)
    within = np.isin(np.array(PARCELS), _MIDDLE_CEREBRAL).astype(np.float32)
    penalty = _OUTSIDE_TERRITORY * (1 - (brain.weight * within[brain.blend]).sum(axis=1))
    penalty += _MEDIAL * np.clip(1 - (np.abs(x) - _MIDLINE_MM) / _MEDIAL_MM, 0, 1)
    tract = {
        name[-1]: _file_order(image).ravel()[brain.inside]
        for name, image in cst_probability(grid).items()
    }
    parcels = parcel_factors().regions.parcels
    salience = {s: np.isin(brain.label, parcels[f"SAL_{s}"]) for s in ("L", "R")}
    return Territory(side, penalty.astype(np.float32), position.astype(np.float32), tract, salience)
