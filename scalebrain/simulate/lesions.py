"""Lesions: grown from seeds in the territory of the middle cerebral artery."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.simulate.anatomy import Anatomy, Territory, smooth_field
from scalebrain.simulate.images_numba_fns import grow
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import Person, generator

__all__ = ["Lesion", "grow_lesion"]

# Centers (|x|, y, z in mm) around which lesions start, and the jitter (mm) around them.
_CORTICAL = (
    (38.0, 12.0, 0.0),  # anterior insula
    (42.0, -4.0, 8.0),  # posterior insula, operculum
    (50.0, 12.0, 16.0),  # inferior frontal
    (40.0, 28.0, 26.0),  # middle frontal
    (48.0, -6.0, 36.0),  # precentral
    (46.0, -28.0, 44.0),  # postcentral
    (54.0, -40.0, 28.0),  # supramarginal
    (46.0, -58.0, 28.0),  # angular
    (56.0, -26.0, 6.0),  # superior temporal
)
_DEEP = (
    (24.0, -14.0, 26.0),  # corona radiata
    (24.0, -16.0, 12.0),  # posterior limb of the internal capsule
    (26.0, 2.0, 4.0),  # putamen
    (22.0, -2.0, 20.0),  # anterior corona radiata
    (28.0, -22.0, 20.0),  # posterior corona radiata
)
_JITTER_MM = 5.0
_NOISE_KNOTS_MM = (8.0, 20.0)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lesion:
    """A grown lesion and what it damages.

    Parameters
    ----------
    voxels
        Positions among the brain's voxels, sorted.
    volume
        Volume in mL.
    cst_load, salience_load
        Damaged fraction of the ipsilesional corticospinal tract and salience network.
    """

    voxels: npt.NDArray[np.intp]
    volume: float
    cst_load: float
    salience_load: float


def grow_lesion(
    person: Person,
    brain: Anatomy,
    where: Territory,
    *,
    seed: int,
    parameters: SimulationParameters,
) -> Lesion:
    """Grow the lesion of a person.

    Parameters
    ----------
    person
        A person with a stroke.
    brain, where
        Template brain and territory on the same grid.
    seed
        Seed of the simulation.
    parameters
        Parameters of the simulation.

    Returns
    -------
    Lesion
        One connected piece in one hemisphere; its volume is the person's to a voxel,
        unless the hemisphere has less room.

    Notes
    -----
    The cost of a voxel is its distance from the seed in radii of a ball of the lesion's
    volume, plus smooth noise, plus a penalty outside the territory; growth always takes the
    cheapest voxel that touches the lesion.
    """
    rng = generator(seed, "lesion", *person.key)
    sign = -1 if person.hemisphere == "L" else 1
    centers = np.array(_DEEP if person.subcortical else _CORTICAL)
    center = centers[rng.integers(len(centers))] * (sign, 1, 1)
    center = center + _JITTER_MM * rng.standard_normal(3)

    allowed = np.flatnonzero(where.side == sign)
    kji = np.ascontiguousarray(brain.kji[allowed])
    distance = np.sqrt(((where.position[allowed] - center.astype(np.float32)) ** 2).sum(axis=1))
    start = allowed[distance.argmin()]
    radius = (person.lesion_volume * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    noise = np.zeros(len(allowed), np.float32)
    for knots_mm in _NOISE_KNOTS_MM:
        noise += smooth_field(kji, brain.grey.shape, rng, spacing=knots_mm / brain.voxel_mm)[
            0
        ] / np.float32(2**0.5)
    cost = np.full(brain.grey.shape, np.inf, np.float32)
    cost.ravel()[brain.boxed[allowed]] = (
        distance / np.float32(radius)
        + np.float32(parameters.lesion_irregularity / 2) * noise
        + where.penalty[allowed]
    )
    voxel_ml = brain.grid.voxel_volume / 1000
    grown = np.empty(max(1, round(person.lesion_volume / voxel_ml)), np.int64)
    count = grow(cost, int(brain.boxed[start]), grown)
    voxels = np.searchsorted(brain.boxed, np.sort(grown[:count]))
    tract = where.tract[person.hemisphere]
    salience = where.salience[person.hemisphere]
    return Lesion(
        voxels=voxels,
        volume=count * voxel_ml,
        cst_load=float(tract[voxels].sum(dtype=np.float64) / tract.sum(dtype=np.float64)),
        salience_load=float(salience[voxels].sum() / salience.sum()),
    )
