"""Simulate a cohort study as a BIDS tree of real images, its truth beside it."""

import functools
import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import SPACE
from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import ConfigError
from scalebrain.io.atomic import json_bytes, write_atomic
from scalebrain.simulate.anatomy import anatomy, territory
from scalebrain.simulate.cortex import (
    draw_cortex,
    is_written,
    lesioned_vertices,
    write_cortex,
)
from scalebrain.simulate.draw import draw_scan
from scalebrain.simulate.factors import PARCELS
from scalebrain.simulate.files import image_bytes, image_path, remove_parts, table_bytes
from scalebrain.simulate.lesions import grow_lesion
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import CohortEffects, Person, cohort_effects, draw_people
from scalebrain.simulate.structural import Outcome, structural_model
from scalebrain.simulate.truth import (
    Design,
    LesionTruth,
    check_truth_path,
    simulation_id,
    truth_dataset,
    write_truth,
)

__all__ = ["simulate_cohort", "simulate_subject"]

logger = logging.getLogger(__name__)

_BATCH = 8
_T1W, _GM, _LESION = "desc-preproc_T1w", "label-GM_probseg", "label-L_mask"

Array = npt.NDArray[np.float64]

_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Unique label of the participant"},
    "age": {"Description": "Age at the scan", "Units": "years"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "cohort": {"Description": "Cohort (site) of the participant"},
    "group": {
        "Description": "Group",
        "Levels": {"reference": "no stroke", "stroke": "one unilateral stroke"},
    },
    "days_post_stroke": {"Description": "Days from stroke to scan", "Units": "days"},
    "icv": {"Description": "Intracranial volume", "Units": "mL"},
    "motor_score": {"Description": "Motor score over its maximum; 1 is unimpaired"},
}


def simulate_cohort(
    path: str | Path,
    *,
    reference: int = 120,
    stroke: int = 60,
    cohorts: int = 6,
    resolution: float = 2.0,
    seed: int = 0,
    truth: str | Path | None = None,
    scan: int = 0,
    rival_direction: bool = False,
    surfaces: bool = False,
    parameters: SimulationParameters | None = None,
) -> Path:
    """Simulate references and strokes whose regional brain ages are known.

    Parameters
    ----------
    path
        Folder of the BIDS derivatives tree; made, or continued when it holds an unfinished
        run of the same simulation.
    reference, stroke
        Number of people without and with a stroke.
    cohorts
        Number of cohorts (sites).
    resolution
        Edge of a voxel in mm, from 1 to 6.
    seed
        Seed: the same arguments give the same bytes, on any number of workers.
    truth
        Where the truth goes, a .json file; a Zarr group of the same name lies beside it.
        ``truth.json`` next to the tree by default.
    scan
        0 for a person's first scan. Any other number puts the same people into the scanner
        again: the same truth, with new noise, bias field and rescan variation. Give it a
        `path` and `truth` of its own.
    rival_direction
        Plant motor outcome -> contralesional frontoparietal deviation instead of the
        reverse.
    surfaces
        Write a FreeSurfer folder for everyone in place of T1w and grey matter: thickness,
        grey/white contrast, curvature and sulcal depth on fsaverage5. Lesion masks stay images.
    parameters
        Every number of the generative model.

    Returns
    -------
    Path
        The tree: dataset_description.json, participants.tsv, and for each person
        T1w and grey matter (or ``freesurfer/sub-*``), for strokes also the lesion mask.

    Raises
    ------
    ConfigError
        When an argument is not usable, the folder holds something else, or the truth of
        another tree is where this one's goes.

    Notes
    -----
    The people are drawn first; their lesions are grown on the workers; the structural model
    (`scalebrain.simulate.structural`), which standardizes over all strokes, is applied to
    what they damage; then the workers draw and write the images. Every file is renamed into
    place when it is whole, and participants.tsv comes last: a killed run leaves a tree that
    is refused by readers and completed by the same call.
    """
    tree = Path(path)
    parameters = parameters or SimulationParameters()
    for name, value, least in (
        ("reference", reference, 0),
        ("stroke", stroke, 0),
        ("cohorts", cohorts, 1),
        ("seed", seed, 0),
        ("scan", scan, 0),
    ):
        whole = isinstance(value, Real) and float(value).is_integer()
        if not whole or value < least:
            raise ConfigError(f"{name} is {value}; give a whole number from {least} on.")
    if reference + stroke == 0:
        raise ConfigError("reference and stroke are both 0; simulate at least one person.")
    if not isinstance(resolution, Real) or not 1 <= resolution <= 6:
        raise ConfigError(f"resolution is {resolution} mm; give 1 to 6 mm.")
    design = Design(
        int(reference),
        int(stroke),
        int(cohorts),
        float(resolution),
        int(seed),
        int(scan),
        bool(rival_direction),
        bool(surfaces),
    )
    truth_path = tree.parent / "truth.json" if truth is None else Path(truth)
    check_truth_path(truth_path, tree, simulation_id(design, parameters))
    _open_tree(tree, design, parameters)

    effects = cohort_effects(cohorts, seed, parameters)
    people = draw_people(reference, stroke, cohorts, seed, parameters)
    patients = [person for person in people if person.group == "stroke"]
    grow = functools.partial(_grow, design=design, parameters=parameters)
    grown = map_tasks(grow, _batches(patients), label="growing lesions")
    lesions = [lesion for batch in grown for lesion in batch]
    outcome = structural_model(
        np.array([person.deviation for person in patients]).reshape(-1, len(PARCELS)),
        hemisphere=np.array([person.hemisphere for person in patients], dtype=str),
        lesion_volume=np.array([lesion.volume for lesion in lesions]),
        cst_load=np.array([lesion.cst_load for lesion in lesions]),
        salience_load=np.array([lesion.salience_load for lesion in lesions]),
        motor_noise=np.array([person.motor_noise for person in patients]),
        parameters=parameters,
        rival_direction=rival_direction,
    )
    references = [person.deviation for person in people if person.group == "reference"]
    deviation = np.concatenate([np.array(references).reshape(-1, len(PARCELS)), outcome.deviation])

    write = functools.partial(
        _write, tree=tree, cohorts=effects, design=design, parameters=parameters
    )
    work = _batches(list(zip(people, deviation, strict=True)))
    written = sum(map_tasks(write, work, label="drawing scans"))
    logger.info("%d scans drawn, %d were there", written, len(people) - written)

    by_label = {person.subject: x for person, x in zip(patients, lesions, strict=True)}
    write_truth(
        truth_dataset(people, effects, deviation, by_label, outcome),
        truth_path,
        tree=tree,
        design=design,
        parameters=parameters,
        cohorts=effects,
        outcome=outcome,
    )
    remove_parts(tree)
    write_atomic(tree / "participants.json", json_bytes(_COLUMNS))
    write_atomic(tree / "participants.tsv", _participants(people, effects, outcome))
    return tree


def simulate_subject(
    person: Person,
    *,
    tree: Path,
    deviation: Array,
    cohorts: CohortEffects,
    design: Design,
    parameters: SimulationParameters,
) -> bool:
    """Draw and write one scan of a person.

    Parameters
    ----------
    person
        The person.
    tree
        Folder of the BIDS tree.
    deviation
        True deviation of each parcel with the effects of a lesion, years.
    cohorts
        Scanner effects.
    design, parameters
        What determines the cohort; ``design.scan`` numbers the scan.

    Returns
    -------
    bool
        False when the files were there already.
    """
    stroke = person.group == "stroke"
    scans = () if design.surfaces else (_T1W, _GM)
    images = (*scans, _LESION) if stroke else scans
    paths = {suffix: image_path(tree, person.subject, suffix) for suffix in images}
    sidecars = {suffix: _sidecar(paths[suffix]) for suffix in images if suffix != _GM}
    there = not design.surfaces or is_written(tree, person.subject)
    if there and all(file.exists() for file in (*paths.values(), *sidecars.values())):
        return False
    brain = anatomy(design.resolution, parameters) if images else None
    lesion = None
    if stroke and brain is not None:
        where = territory(design.resolution, parameters)
        lesion = grow_lesion(person, brain, where, seed=design.seed, parameters=parameters).voxels
        mask = np.zeros(len(brain.inside), np.uint8)
        mask[lesion] = 1
        write_atomic(paths[_LESION], image_bytes(brain, mask))
        write_atomic(sidecars[_LESION], json_bytes({"Type": "Lesion", "Manual": False}))
    if design.surfaces:
        cortex = draw_cortex(
            person,
            deviation=deviation,
            cohorts=cohorts,
            seed=design.seed,
            parameters=parameters,
            scan=design.scan,
            lesion=None if lesion is None or brain is None else lesioned_vertices(brain, lesion),
        )
        write_cortex(tree, person.subject, cortex)
    elif brain is not None:
        drawn = draw_scan(
            person,
            brain,
            deviation=deviation,
            cohorts=cohorts,
            seed=design.seed,
            parameters=parameters,
            scan=design.scan,
            lesion=lesion,
        )
        write_atomic(paths[_T1W], image_bytes(brain, drawn.t1w))
        write_atomic(paths[_GM], image_bytes(brain, drawn.gm, slope=1 / 255))
        resolution = f"{design.resolution:g} mm isotropic"
        content = {"SkullStripped": True, "SpatialReference": SPACE, "Resolution": resolution}
        write_atomic(sidecars[_T1W], json_bytes(content))
    return True


def _sidecar(image: Path) -> Path:
    """Path of the JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def _batches(items: list[Any]) -> list[list[Any]]:
    """Split work into tasks large enough to be worth one."""
    return [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]


def _grow(
    people: Sequence[Person], *, design: Design, parameters: SimulationParameters
) -> list[LesionTruth]:
    """Grow the lesions of some people and keep their numbers."""
    brain = anatomy(design.resolution, parameters)
    where = territory(design.resolution, parameters)
    out = []
    for person in people:
        lesion = grow_lesion(person, brain, where, seed=design.seed, parameters=parameters)
        out.append(LesionTruth(lesion.volume, lesion.cst_load, lesion.salience_load))
    return out


def _write(
    work: Sequence[tuple[Person, Array]],
    *,
    tree: Path,
    cohorts: CohortEffects,
    design: Design,
    parameters: SimulationParameters,
) -> int:
    """Draw and write some people; returns how many were not there."""
    return sum(
        simulate_subject(
            person,
            tree=tree,
            deviation=deviation,
            cohorts=cohorts,
            design=design,
            parameters=parameters,
        )
        for person, deviation in work
    )


def _open_tree(tree: Path, design: Design, parameters: SimulationParameters) -> None:
    """Make the tree, or check that it is this simulation's."""
    identity = simulation_id(design, parameters)
    description = tree / "dataset_description.json"
    if tree.exists() and (not tree.is_dir() or any(tree.iterdir())):
        try:
            found = json.loads(description.read_text(encoding="utf-8")).get("SimulationId")
        except (OSError, ValueError, AttributeError):
            found = None
        if found != identity:
            what = "another simulation" if found else "something that is not a simulation"
            raise ConfigError(
                f"{tree} holds {what}. Simulate into a new folder, or delete this one first."
            )
    write_atomic(
        description,
        json_bytes(
            {
                "Name": "Simulated stroke cohort",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [
                    {
                        "Name": "scalebrain simulate",
                        "Version": version("scalebrain"),
                        "Description": f"Simulated from the {SPACE} template"
                        f"{' and fsaverage5' if design.surfaces else ''}; no person was scanned",
                    }
                ],
                "Simulated": True,
                "SimulationId": identity,
            }
        ),
    )


def _participants(people: Sequence[Person], cohorts: CohortEffects, outcome: Outcome) -> bytes:
    """Make participants.tsv."""
    scores = iter(outcome.motor_score)
    rows = []
    for person in people:
        days = score = "n/a"
        if person.group == "stroke":
            days, value = f"{person.days_post_stroke:.0f}", next(scores)
            score = "n/a" if person.motor_missing else f"{value:.4f}"
        rows.append(
            (
                f"sub-{person.subject}",
                f"{person.age:.1f}",
                person.sex,
                cohorts.name[person.cohort],
                person.group,
                days,
                f"{person.icv:.1f}",
                score,
            )
        )
    return table_bytes(list(_COLUMNS), rows)
