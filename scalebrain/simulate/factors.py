"""Correlated fields over parcels: person, network, region and parcel factors."""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.regions import NETWORKS, RegionSet, default_regions
from scalebrain.errors import ConfigError
from scalebrain.simulate.parameters import SimulationParameters

__all__ = [
    "PARCELS",
    "FieldModel",
    "ParcelFactors",
    "deviation_model",
    "offset_model",
    "parcel_factors",
]

#: Codes of the AAL parcels that carry a biological age.
PARCELS: tuple[int, ...] = tuple(range(1, 117))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ParcelFactors:
    """How parcels belong to networks and regions.

    Parameters
    ----------
    regions
        The region set.
    network_weight
        Weight of each network's factor on each parcel (parcel, network); rows sum to 1, or
        to 0 for a parcel of no network.
    region_weight
        The same for regions (parcel, region).
    average
        Mean over the parcels of each region (region, parcel).
    """

    regions: RegionSet
    network_weight: Array
    region_weight: Array
    average: Array

    @property
    def outside(self) -> npt.NDArray[np.bool_]:
        """Parcels of no region (parcel,)."""
        return np.asarray(self.region_weight.sum(axis=1) == 0)

    def of_networks(self, values: dict[str, float], *, other: float) -> Array:
        """Spread one value a network over the parcels; two networks give their mean."""
        spread = self.network_weight @ np.array([values[network] for network in NETWORKS])
        return np.where(self.outside, other, spread)

    def side(self, hemisphere: str) -> npt.NDArray[np.bool_]:
        """Parcels of regions of one hemisphere, "L" or "R" (parcel,)."""
        names = self.regions.regions
        columns = [i for i, name in enumerate(names) if name.endswith(f"_{hemisphere}")]
        return np.asarray(self.region_weight[:, columns].sum(axis=1) > 0)


@functools.cache
def parcel_factors() -> ParcelFactors:
    """Parcel factors of the default region set."""
    regions = default_regions()
    members = regions.membership(PARCELS).astype(np.float64)
    names = regions.regions
    network_of = np.array(
        [[name.rsplit("_", 1)[0] == network for network in NETWORKS] for name in names], dtype=float
    )
    rows = np.maximum(members.sum(axis=1, keepdims=True), 1)
    region_weight = members / rows
    return ParcelFactors(
        regions=regions,
        network_weight=region_weight @ network_of,
        region_weight=region_weight,
        average=(members / members.sum(axis=0)).T,
    )


@dataclass(frozen=True)
class FieldModel:
    """A zero-mean Gaussian field over parcels.

    Parameters
    ----------
    person_sd
        SD in common to all parcels of a person.
    network_sd
        SD in common to the two homologues of a network.
    region_sd
        SD in common to the parcels of a region (region,).
    parcel_sd
        SD of a parcel alone.
    outside_sd
        SD of a parcel of no region, beyond `person_sd` and `parcel_sd`.
    """

    person_sd: float
    network_sd: float
    region_sd: Array
    parcel_sd: float
    outside_sd: float

    def draw(self, rng: np.random.Generator, n: int = 1) -> Array:
        """Draw `n` fields (n, parcel)."""
        factors = parcel_factors()
        n_parcels, n_regions = factors.region_weight.shape
        person = rng.standard_normal((n, 1)) * self.person_sd
        network = rng.standard_normal((n, len(NETWORKS))) * self.network_sd
        region = rng.standard_normal((n, n_regions)) * self.region_sd
        outside = rng.standard_normal((n, n_parcels)) * self.outside_sd * factors.outside
        parcel = rng.standard_normal((n, n_parcels)) * self.parcel_sd
        spread = _product(network, factors.network_weight) + _product(region, factors.region_weight)
        return np.asarray(person + spread + outside + parcel)

    def region_covariance(self) -> Array:
        """Implied covariance of the region means (region, region)."""
        factors = parcel_factors()
        network = factors.average @ factors.network_weight
        region = factors.average @ factors.region_weight
        return np.asarray(
            self.person_sd**2
            + network @ network.T * self.network_sd**2
            + region @ np.diag(self.region_sd**2) @ region.T
            + factors.average @ factors.average.T * self.parcel_sd**2
        )


def _product(left: Array, right: Array) -> Array:
    """Product ``left @ right.T`` for few nonzeros, summed in one order on any machine."""
    out = np.zeros((len(left), len(right)))
    for k, weight in enumerate(right.T):
        members = np.flatnonzero(weight)
        out[:, members] += left[:, k, np.newaxis] * weight[members]
    return out


def deviation_model(parameters: SimulationParameters) -> FieldModel:
    """Field of the true deviation, in years.

    Parameters
    ----------
    parameters
        Parameters of the simulation.

    Returns
    -------
    FieldModel
        Field whose region means all have the SD `deviation_sd`.

    Raises
    ------
    ConfigError
        When person, network and parcels alone exceed that SD.

    Notes
    -----
    The variance of a region's mean is linear in the variances of the region factors, so
    these are the solution of an 18 x 18 linear system.
    """
    factors = parcel_factors()
    total = parameters.deviation_sd**2
    person_sd = float(np.sqrt(parameters.deviation_person_share * total))
    network_sd = float(np.sqrt(parameters.deviation_network_share * total))
    none = np.zeros(len(factors.regions.regions))
    fixed = FieldModel(person_sd, network_sd, none, parameters.deviation_parcel_sd, 0.0)
    left = total - np.diag(fixed.region_covariance())
    variance = np.linalg.solve((factors.average @ factors.region_weight) ** 2, left)
    outside = total - person_sd**2 - parameters.deviation_parcel_sd**2
    if variance.min() < 0 or outside < 0:
        raise ConfigError(
            f"Regions cannot have a deviation SD of {parameters.deviation_sd} years: the shares "
            "of person and network and deviation_parcel_sd "
            f"({parameters.deviation_parcel_sd} years) already exceed it. Lower one of them."
        )
    return FieldModel(
        person_sd,
        network_sd,
        np.sqrt(variance),
        parameters.deviation_parcel_sd,
        float(np.sqrt(outside)),
    )


def offset_model(person_sd: float, region_sd: float, parcel_sd: float) -> FieldModel:
    """Field of what differs between people, or scans, without being age.

    Parameters
    ----------
    person_sd, region_sd, parcel_sd
        SD of the three levels.

    Returns
    -------
    FieldModel
        Field with the same SDs everywhere.
    """
    n_regions = len(parcel_factors().regions.regions)
    return FieldModel(person_sd, 0.0, np.full(n_regions, region_sd), parcel_sd, region_sd)
