"""The structural model: the one place that says what a lesion does.

Written out, over the n people with a stroke, z() being (value - mean) / SD over them::

    size       = z(log10(lesion volume))
    deviation  = own deviation
                 + beta(network) * size          ipsilesional parcels
                 + contralesional_effect * size  contralesional parcels of one network
    fpn        = contralesional frontoparietal deviation, mean over its parcels
    motor      = cst_on_motor       * z(CST load, ipsilesional)
               + salience_on_motor  * z(salience load, ipsilesional)
               + frontoparietal_on_motor * z(fpn)
               + noise, such that motor has unit variance

In the rival direction the third term is absent, and motor outcome acts on the deviation::

    fpn        = fpn + shift * z(motor),  shift = b * SD / sqrt(1 - b**2)

so that the standardized effect of motor on fpn is ``b = frontoparietal_on_motor``.
The motor score of the table is ``center + scale * motor``, clipped to [0, 1].
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.regions import NETWORKS
from scalebrain.errors import ConfigError
from scalebrain.simulate.factors import parcel_factors
from scalebrain.simulate.parameters import SimulationParameters

__all__ = ["Outcome", "implied_region_effects", "planted_effects", "structural_model", "z_score"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What the structural model makes of the strokes.

    Parameters
    ----------
    deviation
        True deviation with the effects of the lesion, years (subject, parcel).
    size
        Standardized log10 lesion volume (subject,).
    motor
        Standardized motor outcome (subject,).
    motor_score
        Motor score in [0, 1] (subject,).
    explained_variance
        Part of the variance of motor outcome that its causes explain.
    """

    deviation: Array
    size: Array
    motor: Array
    motor_score: Array
    explained_variance: float


def z_score(values: Array) -> Array:
    """Standardize to mean 0 and SD 1 (population SD); zero where all values are equal."""
    spread = values.std() if values.size else 0.0
    centered = values - values.mean() if values.size else values
    return np.asarray(centered / spread if spread > 1e-12 else np.zeros_like(values))


def structural_model(
    deviation: Array,
    *,
    hemisphere: npt.NDArray[np.str_],
    lesion_volume: Array,
    cst_load: Array,
    salience_load: Array,
    motor_noise: Array,
    parameters: SimulationParameters,
    rival_direction: bool = False,
) -> Outcome:
    """Apply the structural model to the strokes.

    Parameters
    ----------
    deviation
        Deviation of each parcel before the lesion, years (subject, parcel).
    hemisphere
        Lesioned side, "L" or "R" (subject,).
    lesion_volume
        Lesion volume, mL (subject,).
    cst_load, salience_load
        Ipsilesional loads, fractions (subject,).
    motor_noise
        Standard normal draws (subject,).
    parameters
        Parameters of the simulation.
    rival_direction
        Let motor outcome act on the contralesional frontoparietal deviation.

    Returns
    -------
    Outcome
        Deviations and motor outcome.

    Raises
    ------
    ConfigError
        When the causes would explain all variance of motor outcome.
    """
    p = parameters
    factors = parcel_factors()
    effects = {**p.ipsilesional_effects}
    only = {network: float(network == p.contralesional_network) for network in NETWORKS}
    beta = factors.of_networks(effects, other=0.0)
    contralesional = factors.of_networks(only, other=0.0) * p.contralesional_effect
    left = (hemisphere == "L")[:, np.newaxis]
    on_left, on_right = factors.side("L"), factors.side("R")
    ipsi = np.where(left, on_left, on_right)
    contra = np.where(left, on_right, on_left)

    size = z_score(np.log10(lesion_volume))
    slope = np.where(ipsi, beta, 0.0) + np.where(contra, contralesional, 0.0)
    deviation = deviation + slope * size[:, np.newaxis]

    # contralesional frontoparietal parcels and their mean
    names = factors.regions.regions
    rows = np.array([names.index("FPN_R" if side == "L" else "FPN_L") for side in hemisphere], int)
    fpn_parcels = factors.average[rows]
    fpn = (deviation * fpn_parcels).sum(axis=1)

    causes = [(p.cst_on_motor, z_score(cst_load)), (p.salience_on_motor, z_score(salience_load))]
    if not rival_direction:
        causes.append((p.frontoparietal_on_motor, z_score(fpn)))
    predictor = np.sum([b * cause for b, cause in causes], axis=0)
    explained = float(predictor.var()) if predictor.size else 0.0
    if explained >= 1:
        raise ConfigError(
            f"The causes of motor outcome explain {explained:.2f} of its variance, which must "
            "stay below 1. Lower the *_on_motor parameters."
        )
    motor = predictor + np.sqrt(1 - explained) * motor_noise

    if rival_direction:
        b = p.frontoparietal_on_motor
        shift = b * p.deviation_sd / np.sqrt(1 - b**2)
        deviation = deviation + (fpn_parcels > 0) * shift * z_score(motor)[:, np.newaxis]

    score = np.clip(p.motor_center + p.motor_scale * motor, 0, 1)
    return Outcome(deviation, size, motor, score, explained)


def implied_region_effects(parameters: SimulationParameters) -> dict[str, dict[str, float]]:
    """Years per SD of log10 lesion volume of each region's mean over its parcels.

    Parameters
    ----------
    parameters
        Parameters of the simulation.

    Returns
    -------
    dict
        ``{"ipsilesional": {network: years}, "contralesional": {network: years}}``. They
        differ from the planted values where a parcel belongs to two networks.
    """
    factors = parcel_factors()
    only = {
        network: parameters.contralesional_effect * (network == parameters.contralesional_network)
        for network in NETWORKS
    }
    out = {}
    for side, values in (
        ("ipsilesional", {**parameters.ipsilesional_effects}),
        ("contralesional", only),
    ):
        region = factors.average @ factors.of_networks(values, other=0.0)
        by_name = dict(zip(factors.regions.regions, region.tolist(), strict=True))
        out[side] = {network: round(by_name[f"{network}_L"], 6) for network in NETWORKS}
    return out


def _through_motor(parameters: SimulationParameters, outcome: Outcome) -> dict[str, float]:
    """Years per SD of log10 lesion volume that contralesional regions have by motor outcome."""
    factors = parcel_factors()
    names = factors.regions.regions
    b = parameters.frontoparietal_on_motor
    shift = b * parameters.deviation_sd / np.sqrt(1 - b**2)
    together = float(np.mean(z_score(outcome.motor) * outcome.size)) if outcome.size.size else 0.0
    shifted = factors.average[names.index("FPN_L")] > 0
    return {
        network: float(factors.average[names.index(f"{network}_L")][shifted].sum())
        * float(shift)
        * together
        for network in NETWORKS
    }


def planted_effects(
    parameters: SimulationParameters,
    *,
    rival_direction: bool = False,
    outcome: Outcome | None = None,
) -> list[dict[str, object]]:
    """List every planted effect with its value, unit and source.

    Parameters
    ----------
    parameters
        Parameters of the simulation.
    rival_direction
        Which direction was planted.
    outcome
        What the model made of the strokes: in the rival direction, lesion volume also acts
        through motor outcome, by as much as the two go together in them.

    Returns
    -------
    list of dict
        Keys ``name``, ``value``, ``implied`` (the value at the level of regions), ``unit``
        and ``source``.
    """
    implied = implied_region_effects(parameters)
    through_motor = dict.fromkeys(NETWORKS, 0.0)
    if rival_direction and outcome is not None:
        through_motor = _through_motor(parameters, outcome)
    years = "years per SD of log10 lesion volume"
    effects: list[dict[str, object]] = [
        {
            "name": f"ipsilesional_lesion_volume:{network}",
            "value": parameters.ipsilesional_effects[network],
            "implied": implied["ipsilesional"][network],
            "unit": years,
            "source": "range 0.54-0.95 published (doi:10.1016/j.landig.2025.100942); "
            "its allocation to networks is a choice",
        }
        for network in NETWORKS
    ]
    effects += [
        {
            "name": f"contralesional_lesion_volume:{network}",
            "value": parameters.contralesional_effect
            if network == parameters.contralesional_network
            else 0.0,
            "implied": round(implied["contralesional"][network] + through_motor[network], 6),
            "unit": years,
            "source": "published, -0.3747 (doi:10.1016/j.landig.2025.100942)"
            if network == parameters.contralesional_network
            else "through motor outcome"
            if through_motor[network]
            else "no effect planted",
        }
        for network in NETWORKS
    ]
    standardized = "SD per SD"
    chosen = "a choice; the study ranks it among the predictors without a size"
    motor_causes = [
        (
            "motor:cst_load_ipsilesional",
            parameters.cst_on_motor,
            "published, -0.355 (doi:10.1016/j.landig.2025.100942)",
        ),
        ("motor:salience_load_ipsilesional", parameters.salience_on_motor, chosen),
        (
            "contralesional_deviation:FPN:motor"
            if rival_direction
            else "motor:contralesional_deviation:FPN",
            parameters.frontoparietal_on_motor,
            chosen,
        ),
    ]
    effects += [
        {"name": name, "value": value, "implied": value, "unit": standardized, "source": source}
        for name, value, source in motor_causes
    ]
    return effects
