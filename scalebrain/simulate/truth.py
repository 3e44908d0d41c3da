"""The truth of a simulated cohort: beside the tree, never in what a pipeline reads."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import ConfigError
from scalebrain.io.atomic import json_bytes, write_atomic
from scalebrain.io.store import save_store
from scalebrain.simulate import structural
from scalebrain.simulate.factors import PARCELS, deviation_model, parcel_factors
from scalebrain.simulate.oracle import oracle
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import CohortEffects, Person

__all__ = [
    "Design",
    "LesionTruth",
    "check_truth_path",
    "simulation_id",
    "truth_dataset",
    "write_truth",
]

_FORMAT = 1

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """The arguments that make a simulated cohort what it is.

    Parameters
    ----------
    reference, stroke, cohorts
        Number of references, strokes and cohorts.
    resolution
        Edge of a voxel in mm.
    seed
        Seed.
    scan
        Number of the scan of each person.
    rival_direction
        Whether motor outcome acts on the contralesional deviation.
    surfaces
        Whether people have a FreeSurfer folder in place of scans.
    """

    reference: int
    stroke: int
    cohorts: int
    resolution: float
    seed: int
    scan: int
    rival_direction: bool
    surfaces: bool = False


@dataclass(frozen=True)
class LesionTruth:
    """What a lesion is in numbers.

    Parameters
    ----------
    volume
        Volume, mL.
    cst_load, salience_load
        Ipsilesional loads, fractions.
    """

    volume: float
    cst_load: float
    salience_load: float


def simulation_id(design: Design, parameters: SimulationParameters) -> str:
    """Identify a simulated cohort: a hash of everything that determines its files."""
    content = {"format": _FORMAT, **asdict(design), "parameters": parameters.to_dict()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_truth_path(truth: Path, tree: Path, identity: str) -> None:
    """Check that a truth can be written without touching a tree or another truth.

    Parameters
    ----------
    truth
        Where truth.json is to be.
    tree
        The simulated BIDS tree.
    identity
        Its :func:`simulation_id`.

    Raises
    ------
    ConfigError
        When `truth` lies in the tree, or is the truth of another tree or simulation.
    """
    if truth.suffix != ".json":
        raise ConfigError(f"truth is {truth}; give a file name that ends in .json.")
    if truth.resolve().is_relative_to(tree.resolve()):
        raise ConfigError(
            f"truth is {truth}, inside the tree {tree} that a pipeline reads. Put it beside the "
            "tree."
        )
    if not truth.exists():
        if truth.with_suffix(".zarr").exists() and not _is_ours(truth.with_suffix(".zarr")):
            raise ConfigError(
                f"{truth.with_suffix('.zarr')} is there and is no truth of a simulation. Give "
                "another path as truth."
            )
        return
    try:
        content = json.loads(truth.read_text(encoding="utf-8"))
        name, found = content["tree"], content["simulation_id"]
    except (ValueError, KeyError, TypeError):
        name = found = None
    if name != tree.name:
        what = f"the truth of the tree '{name}'" if name else "no truth of a simulation"
        raise ConfigError(
            f"{truth} is {what}, expected '{tree.name}' or no file. Give another path as truth, "
            "or simulate into another folder."
        )
    if found != identity:
        raise ConfigError(
            f"{truth} is the truth of another simulation, {found}; this one is {identity}. Give "
            "another path as truth, or delete that one first."
        )


def _is_ours(store: Path) -> bool:
    """Whether a folder is what a run killed while writing a truth has left."""
    try:
        attributes = json.loads((store / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return "simulation_id" in attributes


def truth_dataset(
    people: Sequence[Person],
    cohorts: CohortEffects,
    deviation: Array,
    lesions: Mapping[str, LesionTruth],
    outcome: structural.Outcome,
) -> xr.Dataset:
    """Gather the truth of every person.

    Parameters
    ----------
    people
        Everybody, references first.
    cohorts
        Scanner effects, for the names.
    deviation
        True deviation with the effects of lesions, years (subject, parcel).
    lesions
        By label of the subject.
    outcome
        What the structural model made of the strokes, in their order.

    Returns
    -------
    Dataset
        Dims subject, parcel, region; NaN or empty text for references where only strokes
        have a value.
    """
    factors = parcel_factors()
    average = factors.average
    age = np.array([person.age for person in people])
    own = np.array([person.deviation for person in people]).reshape(len(people), len(PARCELS))
    stroke = np.array([person.group == "stroke" for person in people], dtype=bool)

    def of_strokes(values: Sequence[float] | Array) -> tuple[str, Array]:
        out = np.full(len(people), np.nan)
        out[stroke] = values
        return "subject", out

    found = [lesions[person.subject] for person in people if person.group == "stroke"]
    regional = deviation @ average.T
    years, fraction = {"units": "years"}, {"units": "1"}
    parcels, regions = ("subject", "parcel"), ("subject", "region")
    return xr.Dataset(
        {
            "true_deviation": (regions, regional, years),
            "true_biological_age": (regions, age[:, np.newaxis] + regional, years),
            "true_deviation_before_lesion": (regions, own @ average.T, years),
            "true_deviation_parcel": (parcels, deviation, years),
            "true_biological_age_parcel": (parcels, age[:, np.newaxis] + deviation, years),
            "true_lesion_volume": (*of_strokes([x.volume for x in found]), {"units": "mL"}),
            "true_cst_load": (*of_strokes([x.cst_load for x in found]), fraction),
            "true_salience_load": (*of_strokes([x.salience_load for x in found]), fraction),
            "true_lesion_size": (*of_strokes(outcome.size), {"units": "SD"}),
            "true_motor": (*of_strokes(outcome.motor), {"units": "SD"}),
            "true_motor_score": (*of_strokes(outcome.motor_score), fraction),
            "true_hemisphere": ("subject", [person.hemisphere for person in people]),
        },
        coords={
            "subject": [f"sub-{person.subject}" for person in people],
            "age": ("subject", age),
            "sex": ("subject", [person.sex for person in people]),
            "group": ("subject", [person.group for person in people]),
            "cohort": ("subject", [cohorts.name[person.cohort] for person in people]),
            "parcel": list(PARCELS),
            "region": list(factors.regions.regions),
        },
    )


def write_truth(
    ds: xr.Dataset,
    path: Path,
    *,
    tree: Path,
    design: Design,
    parameters: SimulationParameters,
    cohorts: CohortEffects,
    outcome: structural.Outcome,
) -> None:
    """Write truth.zarr, then truth.json.

    Parameters
    ----------
    ds
        What `truth_dataset` returns.
    path
        Where truth.json is to be; the Zarr group lies beside it.
    tree
        The simulated BIDS tree.
    design, parameters
        What determines the cohort.
    cohorts
        Scanner effects.
    outcome
        What the structural model made of the strokes.
    """
    identity = simulation_id(design, parameters)
    store = path.with_suffix(".zarr")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a truth.json promises a whole truth.zarr
    if store.exists():
        shutil.rmtree(store)
    save_store(ds.assign_attrs(simulation_id=identity, simulated="true"), store)
    volume = ds["true_lesion_volume"].values
    log_volume = np.log10(volume[np.isfinite(volume)])
    factors = parcel_factors()
    covariance = deviation_model(parameters).region_covariance()
    correlation = covariance / parameters.deviation_sd**2
    between = correlation[np.triu_indices(len(correlation), 1)]
    content: dict[str, Any] = {
        "format": _FORMAT,
        "package_version": version("scalebrain"),
        "simulation_id": identity,
        "tree": tree.name,
        "data": store.name,
        "design": asdict(design),
        "parameters": parameters.to_dict(),
        "structural_model": (structural.__doc__ or "").strip().splitlines(),
        "effects": structural.planted_effects(
            parameters, rival_direction=design.rival_direction, outcome=outcome
        ),
        "lesion_size": {
            "definition": "z(log10 mL) over all simulated strokes, population SD",
            "mean_log10": float(log_volume.mean()) if log_volume.size else None,
            "sd_log10": float(log_volume.std()) if log_volume.size else None,
        },
        "motor": {
            "mapping": "score = center + scale * motor, clipped to [0, 1]",
            "center": parameters.motor_center,
            "scale": parameters.motor_scale,
            "explained_variance": outcome.explained_variance,
            "clipped": int(np.isin(outcome.motor_score, (0.0, 1.0)).sum()),
        },
        "regions": {name: list(codes) for name, codes in factors.regions.parcels.items()},
        "region_deviation": {
            "sd_years": parameters.deviation_sd,
            "correlation_min": round(float(between.min()), 4),
            "correlation_median": round(float(np.median(between)), 4),
            "correlation_max": round(float(between.max()), 4),
        },
        "cohorts": {
            name: {
                "intensity": float(cohorts.intensity[i]),
                "noise": float(cohorts.noise[i]),
                "log_volume_offset": float(cohorts.volume[i]),
                "log_contrast_offset": float(cohorts.contrast[i]),
            }
            for i, name in enumerate(cohorts.name)
        },
        "oracle": oracle(parameters, cohorts=cohorts, seed=design.seed),
    }
    write_atomic(path, json_bytes(content))
