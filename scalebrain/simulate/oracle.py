"""How well any method can do on simulated people, given the simulator's own noise."""

from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.simulate.draw import parcel_latents, rescan_model
from scalebrain.simulate.factors import deviation_model, offset_model, parcel_factors
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import CohortEffects, generator

__all__ = ["drawn_latents", "oracle"]

Array = npt.NDArray[np.float64]

_PEOPLE = 24_000


def oracle(
    parameters: SimulationParameters,
    *,
    cohorts: CohortEffects,
    seed: int,
    n: int = _PEOPLE,
) -> dict[str, Any]:
    """State the best possible accuracy by region.

    Parameters
    ----------
    parameters
        Parameters of the simulation.
    cohorts
        Scanner effects of the simulated cohorts; people are spread evenly over them.
    seed
        Seed of the simulation.
    n
        Number of latent people: half to fit, half to score.

    Returns
    -------
    dict
        ``regions`` holds for each region, and ``mean`` for their mean: ``mae`` (years) of
        chronological age, ``mae_of_mean`` of predicting the mean age, ``r_age`` between
        predicted and true age, ``r_deviation`` between the best prediction of the true
        deviation, age being known, and the truth, and ``r_pad`` between the deviation of
        the predicted age, corrected for age, and the truth. ``method`` says how.

    Notes
    -----
    Latent people are drawn from the generative model of the references: biological age of
    each parcel, what differs between people, scanners and scans in log volume and log
    contrast. The oracle sees these two numbers of every parcel of the region without
    error and predicts linearly, with coefficients fitted on half of the people. An
    extraction from images can only lose against it, by the deformation, blending at
    parcel borders, bias field and noise. It can get below it by what other regions say: the voxels
    at a region's border, or the vertices there, carry some of the neighbors' aging, which the
    oracle does not see.
    """
    p = parameters
    factors = parcel_factors()
    rng = generator(seed, "oracle")
    age = rng.uniform(*p.reference_age, (n, 1))
    deviation = deviation_model(p).draw(rng, n)
    site = rng.integers(len(cohorts.name), size=n)
    volume, contrast = drawn_latents(age, deviation, site, cohorts=cohorts, parameters=p, rng=rng)
    regional = deviation @ factors.average.T
    half = n // 2
    chronological = age[:, 0]
    guess = np.abs(chronological[half:] - chronological[:half].mean()).mean()
    regions: dict[str, dict[str, float]] = {}
    for row, name in enumerate(factors.regions.regions):
        parcels = np.flatnonzero(factors.average[row])
        latents = np.column_stack([np.ones(n), volume[:, parcels], contrast[:, parcels]])
        predicted = _predict(latents, chronological, half)
        pad = predicted - chronological[half:]
        pad = pad - _predict(np.column_stack([np.ones(n - half), chronological[half:]]), pad, 0)
        known = np.column_stack([latents, chronological])
        best = _predict(known, regional[:, row], half)
        truth = regional[half:, row]
        # the deviation's own part: age explains none of the truth
        regions[name] = {
            "mae": float(np.abs(predicted - chronological[half:]).mean()),
            "mae_of_mean": float(guess),
            "r_age": float(np.corrcoef(predicted, chronological[half:])[0, 1]),
            "r_deviation": float(np.corrcoef(best, truth)[0, 1]),
            "r_pad": float(np.corrcoef(pad, truth)[0, 1]),
        }
    regions = {
        name: {key: round(value, 4) for key, value in row.items()} for name, row in regions.items()
    }
    mean = {
        key: round(float(np.mean([row[key] for row in regions.values()])), 4)
        for key in next(iter(regions.values()))
    }
    return {
        "regions": regions,
        "mean": mean,
        "people": n,
        "method": "best linear predictor from the region's own latents (log grey-matter volume and "
        "log grey/white contrast of each parcel, with the variation between people, cohorts and "
        "scans), fitted on one half of the latent people and scored on the other; references only, "
        "without image noise; voxels at the border of a region also carry its neighbors' aging, so "
        "that an error measured on images can lie below this one",
    }


def drawn_latents(
    age: Array,
    deviation: Array,
    site: npt.NDArray[np.intp],
    *,
    cohorts: CohortEffects,
    parameters: SimulationParameters,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Draw log volume and log contrast of the parcels of many people in one scan each.

    Parameters
    ----------
    age
        Years (subject, 1).
    deviation
        True deviation, years (subject, parcel).
    site
        Position of each person's cohort (subject,).
    cohorts, parameters
        As for :func:`oracle`.
    rng
        Where what is not aging is drawn from.

    Returns
    -------
    log_volume, log_contrast : ndarray
        (subject, parcel), relative to the template.
    """
    p, n = parameters, len(age)
    volume, contrast = parcel_latents(age, deviation, p)
    for field, sds, rescan, offsets in (
        (
            volume,
            (p.volume_person_sd, p.volume_region_sd, p.volume_parcel_sd),
            p.volume_rescan_sd,
            cohorts.volume,
        ),
        (
            contrast,
            (p.contrast_person_sd, p.contrast_region_sd, p.contrast_parcel_sd),
            p.contrast_rescan_sd,
            cohorts.contrast,
        ),
    ):
        field += offset_model(*sds).draw(rng, n) + rescan_model(rescan).draw(rng, n)
        field += offsets[site, np.newaxis]
    return volume, contrast


def _predict(design: Array, target: Array, half: int) -> Array:
    """Least squares on the first half (on all when 0), prediction of the rest."""
    rows = slice(None, half) if half else slice(None)
    coefficients = np.linalg.lstsq(design[rows], target[rows], rcond=None)[0]
    return np.asarray(design[half:] @ coefficients)
