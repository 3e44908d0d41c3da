"""The people of a cohort before anything is drawn: demographics and latent fields."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.simulate.factors import FieldModel, deviation_model, offset_model
from scalebrain.simulate.parameters import SimulationParameters

__all__ = ["CohortEffects", "Person", "cohort_effects", "draw_people", "generator"]

Array = npt.NDArray[np.float64]

# First key of each family of random streams: a stream depends on the seed and on whom it
# belongs to, never on who was drawn before.
_STREAMS = {"cohorts": 0, "person": 1, "lesion": 2, "anatomy": 3, "scan": 4, "oracle": 5}
_GROUPS = {"reference": 0, "stroke": 1}


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Make the random generator of one stream.

    Parameters
    ----------
    seed
        Seed of the simulation.
    stream
        One of ``cohorts person lesion anatomy scan oracle``.
    *key
        What the stream belongs to, e.g. group and number of a person.

    Returns
    -------
    numpy.random.Generator
        Always in the same state for the same arguments.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS[stream], *key)))


@dataclass(frozen=True)
class CohortEffects:
    """What differs between the scanners of the cohorts, one number a cohort.

    Parameters
    ----------
    name
        Names of the cohorts.
    intensity
        Factor on the intensity.
    noise
        Noise SD as a fraction of white-matter intensity.
    volume, contrast
        Offset on the log grey-matter volume and on the log grey/white contrast.
    """

    name: tuple[str, ...]
    intensity: Array
    noise: Array
    volume: Array
    contrast: Array


@dataclass(frozen=True)
class Person:
    """One simulated person.

    Parameters
    ----------
    subject
        BIDS label without ``sub-``.
    group
        ``reference`` or ``stroke``.
    key
        Position of the person's random streams.
    age
        Chronological age (years).
    sex
        ``F`` or ``M``.
    cohort
        Position of the cohort.
    icv
        Intracranial volume (mL).
    deviation
        True deviation (years) of each parcel, without effects of a lesion.
    volume, contrast
        Offsets of each parcel on the log volume and contrast that are not aging.
    hemisphere
        Side of the lesion, ``L`` or ``R``; empty for references.
    days_post_stroke
        Days from stroke to scan; NaN for references.
    lesion_volume
        Volume (mL) to which the lesion is grown; NaN for references.
    subcortical
        Whether the lesion starts in deep tissue.
    motor_noise
        Standard normal part of the motor outcome that nothing explains.
    motor_missing
        Whether the table lacks the motor score.
    """

    subject: str
    group: str
    key: tuple[int, int]
    age: float
    sex: str
    cohort: int
    icv: float
    deviation: Array
    volume: Array
    contrast: Array
    hemisphere: str = ""
    days_post_stroke: float = float("nan")
    lesion_volume: float = float("nan")
    subcortical: bool = False
    motor_noise: float = 0.0
    motor_missing: bool = False


def cohort_effects(n: int, seed: int, parameters: SimulationParameters) -> CohortEffects:
    """Draw the scanner effects of `n` cohorts."""
    rng = generator(seed, "cohorts", 0)
    normal = rng.standard_normal((3, n))
    return CohortEffects(
        name=tuple(f"site{i + 1:02d}" for i in range(n)),
        intensity=np.exp(parameters.cohort_intensity_sd * normal[0]),
        noise=rng.uniform(*parameters.cohort_noise, n),
        volume=parameters.cohort_volume_sd * normal[1],
        contrast=parameters.cohort_contrast_sd * normal[2],
    )


def draw_people(
    reference: int, stroke: int, cohorts: int, seed: int, parameters: SimulationParameters
) -> list[Person]:
    """Draw the people of a cohort study.

    Parameters
    ----------
    reference, stroke
        Number of people of each group.
    cohorts
        Number of cohorts.
    seed
        Seed of the simulation.
    parameters
        Parameters of the simulation.

    Returns
    -------
    list of Person
        References first. A person's own values depend on the seed, group and number
        only; the assignment to cohorts also depends on the size of the groups.
    """
    fields = _Fields.of(parameters)
    people = []
    for group, count in (("reference", reference), ("stroke", stroke)):
        members = _assign(group, count, cohorts, seed, parameters)
        prefix = {"reference": "ref", "stroke": "stroke"}[group]
        width = max(3, len(str(count)))
        for i in range(count):
            label = f"{prefix}{i + 1:0{width}d}"
            people.append(_draw(label, group, i, int(members[i]), seed, parameters, fields))
    return people


def _assign(
    group: str, count: int, cohorts: int, seed: int, parameters: SimulationParameters
) -> npt.NDArray[np.intp]:
    """Cohort of each person: cohorts are of unequal size and nobody's is empty."""
    eligible = np.arange(cohorts)
    if not parameters.controls_at_stroke_sites and cohorts > 1:
        first = max(1, cohorts // 3)
        eligible = eligible[:first] if group == "reference" else eligible[first:]
    weight = np.linspace(1.5, 0.5, eligible.size)
    quota = np.floor(np.cumsum(weight) / weight.sum() * count + 0.5).astype(int)
    members = eligible[np.searchsorted(quota, np.arange(count), side="right")]
    return np.asarray(generator(seed, "cohorts", 1, _GROUPS[group]).permutation(members))


@dataclass(frozen=True)
class _Fields:
    """The fields of which everyone has a draw."""

    deviation: FieldModel
    volume: FieldModel
    contrast: FieldModel

    @classmethod
    def of(cls, p: SimulationParameters) -> "_Fields":
        """Fields of some parameters."""
        return cls(
            deviation_model(p),
            offset_model(p.volume_person_sd, p.volume_region_sd, p.volume_parcel_sd),
            offset_model(p.contrast_person_sd, p.contrast_region_sd, p.contrast_parcel_sd),
        )


def _draw(
    subject: str,
    group: str,
    number: int,
    cohort: int,
    seed: int,
    parameters: SimulationParameters,
    fields: _Fields,
) -> Person:
    """Draw one person; the order of the draws is part of the format."""
    key = (_GROUPS[group], number)
    rng = generator(seed, "person", *key)
    young, old = parameters.reference_age if group == "reference" else parameters.stroke_age
    age = round(float(rng.uniform(young, old)), 1)
    sex = "F" if rng.random() < 0.5 else "M"
    icv_mean, icv_sd = parameters.icv_women if sex == "F" else parameters.icv_men
    icv = round(icv_mean + icv_sd * float(np.clip(rng.standard_normal(), -3, 3)), 1)
    deviation = fields.deviation.draw(rng)[0]
    volume = fields.volume.draw(rng)[0]
    contrast = fields.contrast.draw(rng)[0]
    base = Person(subject, group, key, age, sex, cohort, icv, deviation, volume, contrast)
    if group == "reference":
        return base
    hemisphere = "L" if rng.random() < 0.5 else "R"
    early = rng.random() < parameters.early_fraction
    days = rng.uniform(30, 180) if early else 180 + rng.lognormal(6.5, 0.9)
    low, high = parameters.lesion_range_ml
    draws = parameters.lesion_median_ml * np.exp(
        parameters.lesion_log_sd * rng.standard_normal(100)
    )
    inside = draws[(draws >= low) & (draws <= high)]
    return Person(
        subject,
        group,
        key,
        age,
        sex,
        cohort,
        icv,
        deviation,
        volume,
        contrast,
        hemisphere=hemisphere,
        days_post_stroke=float(np.floor(days)),
        lesion_volume=float(inside[0] if inside.size else np.clip(draws[0], low, high)),
        subcortical=bool(rng.random() < parameters.subcortical_fraction),
        motor_noise=float(rng.standard_normal()),
        motor_missing=bool(rng.random() < parameters.missing_motor_fraction),
    )
