"""One scan of one person: latent biology in, images out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.simulate.anatomy import Anatomy, smooth_field, tissue_constants
from scalebrain.simulate.factors import FieldModel, offset_model, parcel_factors
from scalebrain.simulate.images_numba_fns import render
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import CohortEffects, Person, generator

__all__ = ["Scan", "draw_scan", "parcel_latents", "rescan_model", "scan_latents"]

_GREY_IN_LESION = 0.02

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scan:
    """Images of one scan on the brain's voxels.

    Parameters
    ----------
    t1w
        T1-weighted intensity in file units, int16 (voxel,).
    gm
        Grey-matter probability times 255, uint8 (voxel,).
    """

    t1w: npt.NDArray[np.int16]
    gm: npt.NDArray[np.uint8]


def rescan_model(sd: float) -> FieldModel:
    """Field of what differs between two scans: a third in common to the scan."""
    return offset_model(sd * (1 / 3) ** 0.5, 0.0, sd * (2 / 3) ** 0.5)


def parcel_latents(
    age: Array | float, deviation: Array, parameters: SimulationParameters
) -> tuple[Array, Array]:
    """Log volume and log contrast that biological age gives to each parcel.

    Parameters
    ----------
    age
        Chronological age, years; a number or (n, 1).
    deviation
        True deviation, years (parcel,) or (n, parcel).
    parameters
        Parameters of the simulation.

    Returns
    -------
    log_volume, log_contrast : ndarray
        Relative to the template, of the shape of `deviation`.

    Notes
    -----
    ``log volume = -loss(network) * (age + deviation - pivot)``, and log contrast alike:
    the losses are fractions a year.
    """
    loss = parcel_factors().of_networks(
        {**parameters.volume_loss}, other=parameters.volume_loss["other"]
    )
    years = age + deviation - parameters.pivot_age
    return -loss * years, -parameters.contrast_loss * years


def scan_latents(
    person: Person,
    *,
    deviation: Array,
    cohorts: CohortEffects,
    seed: int,
    parameters: SimulationParameters,
    scan: int,
) -> tuple[Array, Array, np.random.Generator]:
    """Log volume and log contrast of every parcel in one scan, with all that is not aging.

    Parameters
    ----------
    person, deviation, cohorts, seed, parameters, scan
        As for :func:`draw_scan`.

    Returns
    -------
    log_volume, log_contrast : ndarray
        (parcel,), relative to the template.
    rng : numpy.random.Generator
        Stream of the scan, for what else differs between scans.
    """
    rng = generator(seed, "scan", *person.key, scan)
    log_volume, log_contrast = parcel_latents(person.age, deviation, parameters)
    log_volume = log_volume + person.volume + cohorts.volume[person.cohort]
    log_contrast = log_contrast + person.contrast + cohorts.contrast[person.cohort]
    log_volume = log_volume + rescan_model(parameters.volume_rescan_sd).draw(rng)[0]
    log_contrast = log_contrast + rescan_model(parameters.contrast_rescan_sd).draw(rng)[0]
    return log_volume, log_contrast, rng


def draw_scan(
    person: Person,
    brain: Anatomy,
    *,
    deviation: Array,
    cohorts: CohortEffects,
    seed: int,
    parameters: SimulationParameters,
    scan: int = 0,
    lesion: npt.NDArray[np.intp] | None = None,
) -> Scan:
    """Draw one scan of a person.

    Parameters
    ----------
    person
        The person.
    brain
        Template brain.
    deviation
        True deviation of each parcel with the effects of a lesion, years (parcel,).
    cohorts
        Scanner effects.
    seed
        Seed of the simulation.
    parameters
        Parameters of the simulation.
    scan
        Number of the scan: another number is the same person in the scanner again, with
        new noise, bias field and rescan variation.
    lesion
        Lesioned voxels, as positions among the brain's voxels.

    Returns
    -------
    Scan
        T1w and grey matter on the brain's voxels.
    """
    p = parameters
    own = generator(seed, "anatomy", *person.key)
    log_volume, log_contrast, rng = scan_latents(
        person, deviation=deviation, cohorts=cohorts, seed=seed, parameters=p, scan=scan
    )

    mm = brain.voxel_mm
    box, knots = brain.grey.shape, p.deformation_knots_mm / mm
    warp = smooth_field(brain.kji, box, own, spacing=knots, n_fields=3)
    warp *= np.float32(p.deformation_mm / mm)
    jitter = smooth_field(brain.kji, box, rng, spacing=knots, n_fields=3)
    warp += jitter * np.float32(p.registration_jitter_mm / mm)
    n = len(brain.inside)
    t1w, gm = np.empty(n, np.float32), np.empty(n, np.float32)
    render(
        brain.kji,
        brain.grey,
        brain.white,
        brain.detail,
        warp,
        brain.blend,
        brain.weight,
        brain.shift(log_volume),
        log_contrast,
        tissue_constants(p, texture=p.texture),
        t1w,
        gm,
    )
    del warp, jitter

    if lesion is not None:
        depth = np.float32(rng.uniform(*p.lesion_csf_fraction))
        t1w[lesion] += depth * (np.float32(p.csf_intensity) - t1w[lesion])
        gm[lesion] *= np.float32(_GREY_IN_LESION)

    bias = smooth_field(brain.kji, box, rng, spacing=p.bias_knots_mm / mm)[0]
    t1w *= np.exp(np.float32(p.bias_sd) * bias)
    noise = np.float32(cohorts.noise[person.cohort])
    # Rician: magnitude of a complex signal with noise in both channels
    t1w += noise * rng.standard_normal(n, dtype=np.float32)
    quadrature = noise * rng.standard_normal(n, dtype=np.float32)
    t1w = np.sqrt(t1w * t1w + quadrature * quadrature)
    t1w *= np.float32(p.white_intensity * cohorts.intensity[person.cohort])

    uncertain = 4 * gm * (1 - gm)
    gm += np.float32(p.segmentation_noise) * uncertain * rng.standard_normal(n, dtype=np.float32)
    return Scan(
        t1w=np.clip(np.rint(t1w), 1, 32767).astype(np.int16),
        gm=np.rint(np.clip(gm, 0, 1) * 255).astype(np.uint8),
    )
