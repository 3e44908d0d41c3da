"""The main job: scans to report, stage by stage, resumable."""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.parcels import nodes as volume_nodes
from scalebrain.atlas.surface import surface_nodes
from scalebrain.cluster.tasks import on_gpu_workers
from scalebrain.config import StudyConfig, read_config
from scalebrain.errors import (
    ConfigError,
    MissingVariableError,
    StatisticsError,
    StoreError,
)
from scalebrain.features.inclusion import inclusion
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.features.lesion import lesion_frequency, lesion_load, tract_load
from scalebrain.features.lesion_measures import lesion_measures
from scalebrain.features.lesion_policy import LesionPolicy
from scalebrain.features.nodes import node_features
from scalebrain.features.quality import quality_decisions
from scalebrain.features.surface_nodes import (
    check_nodes,
    graph_variables,
    surface_features,
    surface_level,
)
from scalebrain.graph.imported import import_ages, imported_from, own_ages, save_ages, tell_stale
from scalebrain.ingestion.cohort import ingest, problems
from scalebrain.ingestion.preview import IngestPreview, preview_ingest
from scalebrain.io.measures import read_measures
from scalebrain.io.results import read_results, write_results
from scalebrain.io.store import (
    hide_variables,
    nodes_of,
    open_store,
    rejected_subjects,
    remove_variables,
    replace_nodes,
    save_store,
    show_variables,
    variables_hash,
)
from scalebrain.outputs.study import write_subject_tables, write_table
from scalebrain.stats.frame import tidy_tables
from scalebrain.stats.pads import GLOBAL_REGION, Pad, find_pad
from scalebrain.study import (
    Level,
    Stage,
    Study,
    begin_record,
    check_export,
    check_files,
    check_imported,
    check_names,
    check_settings,
    check_source,
    chosen_settings,
    fingerprint_of,
    has_export,
    has_features,
    has_imported,
    has_model,
    has_predicted,
    has_report,
    has_statistics,
    imported_ages,
    imported_itself,
    ingest_settings,
    ingested_from,
    model_fingerprint,
    outcome_of,
    problem_tables,
    record_of,
    seconds_of,
    told_settings,
    write_record,
)
from scalebrain.variables import SURFACE_FEATURES, validate

__all__ = [
    "StudyPreview",
    "compute_features",
    "predict_ages",
    "predict_outcome",
    "preview_study",
    "run_study",
    "train_model",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyPreview:
    """What a study would do.

    Parameters
    ----------
    store
        Cohort store.
    ingest
        What its ingest would do; None of the level ``group``.
    stages
        Name of every stage in order, and whether it is finished.
    """

    store: Path
    ingest: IngestPreview | None
    stages: tuple[tuple[str, bool], ...]


def run_study(
    bids_dir: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | StudyConfig | None = None,
    *,
    truth: str | Path | None = None,
    level: Level = "all",
    participants: Sequence[str] = (),
) -> Path:
    """Run the whole study: ingest, features, train, predict, statistics, report, export.

    With ``ages`` in the configuration, the brain ages of another tool take the place of
    training and prediction.

    Parameters
    ----------
    bids_dir
        A dataset, as :func:`scalebrain.ingest` takes it.
    out
        Folder of the results: ``cohort.zarr``, ``model/``, ``tables/*.tsv``,
        ``report.html``, and ``derivatives/``, which :func:`scalebrain.export_bids` writes. A
        stage whose inputs and settings have not changed, and which left what it has to leave, is
        not run again.
    config
        Configuration, as a YAML file or mapping; the defaults when None.
    truth
        ``truth.json`` of a simulated cohort: only the report reads it, to put planted
        effects beside the estimates.
    level
        ``participant`` for ingest and features alone; ``group`` for all the others, on the
        store that is there.
    participants
        Labels of the people to ingest, beside those whom the store holds; everyone when empty.

    Returns
    -------
    Path
        The report; of the level ``participant`` the store.

    Raises
    ------
    ScalebrainError
        When an input is unusable; what is done stays, and the next run goes on from it.
    """
    study = _open_study(bids_dir, out, config, truth, level, participants)
    try:
        study.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be made: {error.strerror}. Give another folder."
        ) from error
    stages = _stages(study)
    before, ran = _before(study), 0
    for number, stage in enumerate(stages, start=1):
        name, told = stage.name, {"stage": stage.name}
        wanted = _fingerprint(study, stage, before)
        record = record_of(study, name)
        always = name == "ingest"  # cheap when complete, and the one that sees changed inputs
        if not always and stage.is_done(study, wanted.hexdigest()):
            logger.info("%d/%d %s: done before", number, len(stages), name, extra=told)
        else:
            spent, start = seconds_of(record), time.perf_counter()
            held = (ingested_from(study), problem_tables(study))
            kept = begin_record(study, name)
            logger.info("%d/%d %s", number, len(stages), name, extra=told)
            try:
                stage.work(study)
            except BaseException:  # what is refused or stopped may leave a store as it is
                now = (ingested_from(study), problem_tables(study))
                strict = study.config.ingest.get("strict", False)
                if always and kept and held[0] and held == now and not strict:
                    write_record(record, kept)
                raise
            if always and held[0] and held == (ingested_from(study), problem_tables(study)):
                logger.info("%d/%d %s: done before", number, len(stages), name, extra=told)
            else:
                ran += 1
                spent = {"seconds": round(time.perf_counter() - start, 3)}
            if name == "ingest":
                wanted.update(ingested_from(study).encode())
            left = {"fingerprint": wanted.hexdigest()} | stage.left(study)
            if name == "ingest":  # the level group tells them, and who resumes is held to them
                left["settings"] = ingest_settings(study)
            write_record(record, left | spent)
        before = outcome_of(record)
    if not ran:
        logger.info("nothing to do: every stage is done and nothing changed", extra={"stage": ""})
    return study.store if level == "participant" else study.out / "report.html"


def preview_study(
    bids_dir: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | StudyConfig | None = None,
    *,
    truth: str | Path | None = None,
    level: Level = "all",
    participants: Sequence[str] = (),
) -> StudyPreview:
    """Say what :func:`run_study` would do, and write nothing.

    Parameters
    ----------
    bids_dir, out, config, truth, level, participants
        As for :func:`run_study`.

    Returns
    -------
    StudyPreview
        What the ingest would do, and which stages are finished.

    Raises
    ------
    ScalebrainError
        When the study could not begin.
    """
    study = _open_study(bids_dir, out, config, truth, level, participants)
    if study.out.exists() and not study.out.is_dir():
        raise ConfigError(f"{out}: is a file. Give another folder.")
    before, stages, scans, stale = _before(study), [], None, False
    for stage in _stages(study):
        wanted = _fingerprint(study, stage, before)
        if stage.name == "ingest":
            scans = preview_ingest(
                study.bids_dir, study.store, participants=participants, **study.config.ingest
            )
            wanted.update(ingested_from(study).encode())
            stale = not scans.keeps_results
        elif stage.name == "report":  # it shows who was left out, and what is odd
            stale = stale or (scans is not None and not scans.is_current)
        stale = stale or not stage.is_done(study, wanted.hexdigest())
        told = not stale and (stage.name != "ingest" or (scans is not None and scans.is_current))
        stages.append((stage.name, told))
        before = outcome_of(record_of(study, stage.name))
    return StudyPreview(study.store, scans, tuple(stages))


def _open_study(
    bids_dir: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | StudyConfig | None,
    truth: str | Path | None,
    level: Level,
    participants: Sequence[str],
) -> Study:
    """Study with settings that were checked."""
    if level not in get_args(Level):
        raise ConfigError(f"Level '{level}': expected one of {', '.join(get_args(Level))}.")
    study = Study(
        Path(bids_dir),
        Path(out),
        read_config(config),
        Path(truth) if truth is not None else None,
        level,
        tuple(participants),
    )
    check_files(study)
    check_export(study)
    if level == "group" and not (
        ingested_from(study) and fingerprint_of(record_of(study, "ingest"))
    ):
        raise StoreError(
            f"{study.store}: no finished store of the level participant. Run that level first."
        )
    if level != "group":
        check_source(study)
        check_settings(study)
    if level != "participant" and not study.config.ages:
        check_imported(study)
    return study


def _stages(study: Study) -> list[Stage]:
    """Stages of a level, in order."""
    ages = [
        Stage("train", _train, ("training", "coverage"), has_model, model_fingerprint),
        Stage("predict", _predict, (), has_predicted),
    ]
    if study.config.ages:
        ages = [Stage("ages", _ages, ("ages",), has_imported, imported_ages)]
    settings = ("formula", "load_formula", "sem_model", "n_boot", "n_permutations", "seed")
    stages = [
        Stage("ingest", _ingest, ("ingest",), lambda study: bool(ingested_from(study))),
        Stage(
            "features",
            _features,
            ("min_days_post_stroke", "qc_decisions", "nodes", "lesion_policy"),
            has_features,
            lambda study: _features_hash(study.store),
        ),
        *ages,
        Stage("statistics", _statistics, settings, has_statistics, has_tables=True),
        Stage("report", _report, (), has_report, has_tables=True),
        Stage("export", _export, (), has_export),
    ]
    return {"all": stages, "participant": stages[:2], "group": stages[1:]}[study.level]


def _before(study: Study) -> str:
    """Fingerprint of what comes before the first stage of a level."""
    return fingerprint_of(record_of(study, "ingest")) if study.level == "group" else ""


def _fingerprint(study: Study, stage: Stage, before: str) -> Any:
    """Hash over everything that a stage depends on."""
    settings = study.config.as_dict()
    settings |= {name: chosen_settings(settings[name], name) for name in ("ingest", "training")}
    chosen = json.dumps({key: settings[key] for key in stage.keys}, sort_keys=True, default=str)
    wanted = hashlib.sha256(f"{before}{stage.name}{chosen}{version('scalebrain')}".encode())
    if stage.name == "report":
        wanted.update(problem_tables(study))
        if study.truth is not None:
            wanted.update(study.truth.read_bytes())
    if stage.name == "ages":
        wanted.update(_table_of_ages(study).read_bytes())
    if stage.name == "features":
        wanted.update(
            ingested_from(study).encode()
        )  # others may have updated it, or withdrawn people
        if study.config.qc_decisions:
            wanted.update(Path(study.config.qc_decisions).read_bytes())
    return wanted


def _wall_times(study: Study) -> dict[str, float]:
    """Seconds of every stage before the report, of this run or of an earlier one."""
    names = [stage.name for stage in _stages(replace(study, level="all"))]
    before = names[: names.index("report")]
    found = {name: seconds_of(record_of(study, name)) for name in before}
    return {name: told["seconds"] for name, told in found.items() if told}


def _ingest(study: Study) -> None:
    """Read the scans into the store, and those that changed since."""
    people = study.participants
    ingest(study.bids_dir, study.store, update=True, participants=people, **study.config.ingest)


def compute_features(
    store: str | Path,
    *,
    min_days_post_stroke: float = 180.0,
    nodes: str = "volume",
    lesion_policy: LesionPolicy = "mask_nodes",
    decisions: str | Path | None = None,
    more_to_come: bool = False,
) -> None:
    """Compute inclusion, node features and lesion loads, and save them in the store.

    Brain ages of our own model that the store has are removed when the features or the people
    who are included are others than before; imported ones stay, with a warning where they were
    corrected by other references.

    Parameters
    ----------
    store
        Finished store.
    min_days_post_stroke
        A stroke is chronic beyond this many days.
    nodes
        ``volume``, ``surface-3``, ``surface-4`` or ``surface-5``. What the store has of other
        nodes is removed.
    lesion_policy
        As for :func:`~scalebrain.node_features`.
    decisions
        Table of the decisions of a quality control; when None, what the store has of an
        earlier one is removed.
    more_to_come
        Whether people are still to be ingested: decisions about them are left aside.
    """
    check_nodes(nodes)
    level = surface_level(nodes)
    ds = open_store(store)
    validate(ds, *(("t1w", "node_label") if level is None else SURFACE_FEATURES))
    held = [name for name in ("qc_decision", "qc_note") if name in ds]
    ds = ds.drop_vars(held)
    decided = xr.Dataset()
    if decisions is not None:
        absent = None if more_to_come else rejected_subjects(store)
        decided = quality_decisions(ds, decisions, absent=absent)
        ds = ds.assign(decided.data_vars)
    elif held:
        logger.warning("decisions of an earlier quality control are removed: no table was given")
        remove_variables(store, held)
    chosen = inclusion(ds, min_days_post_stroke=min_days_post_stroke, on_surface=level is not None)
    tell_stale(ds, chosen)
    ages = own_ages(ds)
    before = _features_hash(store) if ages else ""
    hide_variables(store, ages)  # until it is known whether they are of these features
    save_store(chosen.assign(decided.data_vars), store)
    if nodes != nodes_of(store):
        parts = volume_nodes() if level is None else surface_nodes(level)
        replace_nodes(store, xr.Dataset(graph_variables(parts)), nodes)
    ds = open_store(store)
    if level is None:
        features = node_features(ds, policy=lesion_policy)
    else:
        features = surface_features(ds, level=level, policy=lesion_policy)
    computed = [features[["node_features", "node_lesioned_fraction"]]]
    if "lesion_mask" in ds:
        frequency = lesion_frequency(ds)[["lesion_frequency"]]
        computed += [lesion_load(ds), tract_load(ds), lesion_measures(ds), frequency]
    save_store(
        xr.merge(computed, combine_attrs="drop_conflicts", join="exact", compat="equals"), store
    )
    if not ages or _features_hash(store) == before:
        show_variables(store, ages)
    else:
        logger.warning(
            "brain ages of our model are removed: they were of other features or people. Predict "
            "again, after training where the references changed."
        )
        remove_variables(store, ages)


def _features_hash(store: str | Path) -> str:
    """Hash of what the brain ages of a model depend on."""
    names = ("included", "node_features", "node_lesioned_fraction")
    ds = open_store(store)
    policy = ds["node_features"].attrs.get("lesion_policy", "") if "node_features" in ds else ""
    return f"{nodes_of(store)} {policy} {variables_hash(store, names)}"


def _features(study: Study) -> None:
    """Compute features and loads."""
    compute_features(
        study.store,
        min_days_post_stroke=study.config.min_days_post_stroke,
        nodes=study.config.nodes,
        lesion_policy=cast(LesionPolicy, study.config.lesion_policy),
        decisions=study.config.qc_decisions or None,
        more_to_come=bool(study.participants),
    )


def train_model(
    store: str | Path,
    model_dir: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    coverage: float = 0.9,
) -> None:
    """Train the brain-age model on the references of a store and save it.

    Parameters
    ----------
    store
        Finished store; features are computed first when they are not there.
    model_dir
        Directory of the model.
    training
        Hyper-parameters that differ from the defaults.
    coverage
        Coverage of the conformal interval.
    """
    from scalebrain.graph.model import BrainAgeModel
    from scalebrain.graph.train import Training

    try:
        chosen = Training(**(training or {}))
    except TypeError as error:
        raise ConfigError(
            f"training: {error}. Known: {', '.join(Training.__annotations__)}."
        ) from (error)
    if "node_features" not in open_store(store):
        compute_features(store)
    checkpoints = Path(model_dir) / "checkpoints"
    model = BrainAgeModel.fit(
        open_store(store), training=chosen, coverage=coverage, checkpoints=checkpoints
    )
    model.save(model_dir)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _train(study: Study) -> None:
    """Train the model."""
    check_names(study)  # of what the training is for
    train_model(
        study.store, study.model, training=study.config.training, coverage=study.config.coverage
    )


def _predict(study: Study) -> None:
    """Predict regional ages and save them."""
    predict_ages(study.store, study.model, replace=imported_itself(study))
    record_of(study, "ages").unlink(missing_ok=True)


def _table_of_ages(study: Study) -> Path:
    """Table of the ages that are imported."""
    return Path(study.config.ages["table"])


def _ages(study: Study) -> None:
    """Take the ages of another tool; who names them in the configuration means them."""
    (study.out / "stages" / "predict.json").unlink(missing_ok=True)  # no longer in the store
    import_ages(study.store, **study.config.ages, replace=True)


def predict_ages(store: str | Path, model_dir: str | Path, *, replace: bool = False) -> None:
    """Predict the regional ages of everyone in a store and save them there.

    Parameters
    ----------
    store
        Finished store; features of the model's nodes are computed first when there are none.
    model_dir
        Directory of the model.
    replace
        Replace ages that were imported from another tool.

    Raises
    ------
    StoreError
        When the store holds ages of another tool, and `replace` is False.
    """
    from scalebrain.graph.model import BrainAgeModel, brain_age

    model = BrainAgeModel.load(model_dir)
    if "node_features" not in open_store(store):
        compute_features(store, nodes=str(model.about["nodes"]))
    ds = open_store(store)
    with on_gpu_workers():
        save_ages(brain_age(ds, model), ds, store, replace=replace)


def predict_outcome(
    store: str | Path, out: str | Path, *, extra: str | Path | None = None, **options: Any
) -> xr.Dataset:
    """Predict motor outcome, and write the result as ``motor.zarr`` and tables.

    Parameters
    ----------
    store
        Finished store.
    out
        Folder: ``motor.zarr``, and one ``motor_*.tsv`` for every set of dimensions.
    extra
        Table of further predictors, as :func:`scalebrain.io.measures.read_measures` reads it.
    **options
        Of :func:`scalebrain.predict_motor`.

    Returns
    -------
    Dataset
        The result.
    """
    from scalebrain.predict.motor import predict_motor

    folder = Path(out)
    table = None if extra is None else read_measures(extra)
    ds = open_store(store)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{out}: cannot be made in {there}. Give another folder.")
    result = predict_motor(ds, extra=table, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_results({"motor": result}, folder / "motor.zarr", attrs={})
    for dims, tidy in tidy_tables(result).items():
        write_table(tidy, folder / f"motor_{dims}.tsv")
    return result


def _accuracy(ds: xr.Dataset, model_dir: Path) -> xr.Dataset:
    """Out-of-fold accuracy of the model on its references, by region."""
    metrics = json.loads((model_dir / "model.json").read_text(encoding="utf-8"))["metrics"]
    regions = [str(r) for r in ds["region"].values]
    return xr.Dataset(
        {
            name: ("region", [float(metrics[region][name]) for region in regions])
            for name in ("mae", "mae_mean", "r", "n")
        },
        coords={"region": regions},
    )


def _statistics(study: Study) -> None:
    """Fit every model; one that cannot be fitted leaves its reason to the report."""
    from scalebrain.graph.artifact import artifact_summary, lesion_artifact
    from scalebrain.graph.explain import node_importance
    from scalebrain.predict.motor import predict_motor
    from scalebrain.stats.mixed import mixed_model
    from scalebrain.stats.sem import sem
    from scalebrain.stats.site_shift import site_shift

    check_names(study)
    config = study.config
    ds = open_store(study.store)
    results: dict[str, xr.Dataset] = {}
    missing: dict[str, str] = {}
    if tool := imported_from(ds):
        missing["accuracy"] = (
            f"The brain ages were imported from {tool}. Whether it learned from the people here "
            "is not known, so its error was not measured."
        )
        missing |= dict.fromkeys(
            ("attribution", "artifact"), f"The brain ages were imported from {tool}."
        )
    else:
        results["accuracy"] = _accuracy(ds, study.model)
        about_model: dict[str, Callable[[], xr.Dataset]] = {
            "attribution": lambda: node_importance(ds, study.model, seed=config.seed),
            "artifact": lambda: artifact_summary(
                lesion_artifact(ds, study.model, seed=config.seed)
            ),
        }
        _fit(about_model, results, missing)
    _fit({"site_shift": lambda: site_shift(ds)}, results, missing)
    if "lesion_load" not in ds:
        missing |= dict.fromkeys(
            ("mixed", "mixed_load", "sem", "motor", "multiverse"), "The cohort has no lesion masks."
        )
    else:
        pad = find_pad(ds)
        sided = to_lesional_sides(ds.isel(subject=np.flatnonzero(_strokes(ds))))
        # the other hemisphere has no lesion of its own
        names = [str(r) for r in sided["region"].values if str(r).endswith("_ipsilesional")]
        lesioned = sided.sel(region=names)
        model = config.sem_model or None
        steps: dict[str, Callable[[], xr.Dataset]] = {
            "mixed": lambda: _of_regions(
                mixed_model(sided, _on_pad(config.formula, pad), errors="record")
            ),
            "mixed_load": lambda: mixed_model(
                lesioned, _on_pad(config.load_formula, pad), errors="record"
            ),
            "sem": lambda: sem(ds, model, n_boot=config.n_boot, seed=config.seed),
            "motor": lambda: predict_motor(
                ds, seed=config.seed, n_permutations=config.n_permutations
            ),
            "multiverse": lambda: _multiverse(study, ds),
        }
        if pad.is_global:
            del steps["mixed_load"]
            missing["mixed_load"] = "The brain ages are of the whole brain: no region has its own."
        _fit(steps, results, missing)
    (study.out / "stages" / "report.json").unlink(missing_ok=True)  # it adds to the tables
    write_results(results, study.results, attrs={"missing": missing})
    study.tables.mkdir(exist_ok=True)
    for path in study.tables.glob("*.tsv"):
        path.unlink()
    for name, result in results.items():
        tables = tidy_tables(result)
        for dims, table in tables.items():
            suffix = "" if name == "accuracy" or len(tables) == 1 else f"_{dims}"
            write_table(table, study.tables / f"{name}{suffix}.tsv")


def _strokes(ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Tell who is of the stroke group; of a store without groups everyone."""
    if "group" not in ds:
        return np.ones(ds.sizes["subject"], dtype=np.bool_)
    return np.asarray(ds["group"].values.astype(str) == "stroke")


def _multiverse(study: Study, ds: xr.Dataset) -> xr.Dataset:
    """Every headline effect under every lesion policy and other choices."""
    from scalebrain.graph.policies import ages_by_policy
    from scalebrain.stats.choices import Choice
    from scalebrain.stats.multiverse import multiverse

    lesioned = np.asarray(ds["lesion_present"].values).astype(bool) & _strokes(ds)
    if "included" in ds:
        lesioned &= np.asarray(ds["included"].values).astype(bool)
    people = ds.isel(subject=np.flatnonzero(lesioned))
    policies = {} if imported_from(ds) else ages_by_policy(people, study.model)
    axes = {} if "icv" in ds and ds["icv"].notnull().any() else {"icv": [Choice("without_icv")]}
    return multiverse(
        people, policies=policies, axes=axes, n_boot=study.config.n_boot, seed=study.config.seed
    )


def _fit(
    steps: Mapping[str, Callable[[], xr.Dataset]],
    results: dict[str, xr.Dataset],
    missing: dict[str, str],
) -> None:
    """Run steps; of one that cannot be done the reason is kept."""
    for name, step in steps.items():
        logger.info("statistics: %s", name)
        try:
            results[name] = step()
        except (MissingVariableError, StatisticsError) as error:
            missing[name] = str(error.args[0])
            logger.warning("%s: %s", name, missing[name])


def _on_pad(formula: str, pad: Pad) -> str:
    """Put the brain-PAD that the store has in a formula."""
    if not pad.is_corrected and not re.search(r"\bage\b", formula):
        logger.warning("%s: the age bias is not corrected and age is no covariate", formula)
    return re.sub(r"\bbrain_pad_corrected\b", pad.name, formula)


def _of_regions(result: xr.Dataset) -> xr.Dataset:
    """Give a result of the whole brain a region of that name."""
    return result if "region" in result.dims else result.expand_dims(region=[GLOBAL_REGION])


def _report(study: Study) -> None:
    """Write the report, and the tables of people."""
    from scalebrain.report.content import StudyResults
    from scalebrain.report.page import write_report
    from scalebrain.report.provenance import study_provenance

    ds = open_store(study.store)
    write_subject_tables(ds, study.tables)
    for kind in ("rejected", "warnings"):
        write_table(problems(study.store, kind), study.tables / f"{kind}.tsv")
    results, attrs = read_results(study.results)
    missing = dict(attrs.get("missing", {}))
    accuracy = results.get("accuracy")
    recovery = None
    if study.truth is None and accuracy is not None:  # without columns of an earlier truth
        for table in tidy_tables(accuracy).values():
            write_table(table, study.tables / "accuracy.tsv")
    if study.truth is not None and accuracy is None:
        missing["recovery"] = "The planted effects are those of the ages of a model trained here."
    elif study.truth is not None and accuracy is not None:
        from scalebrain.simulate.recovery import add_truth, recovery_table

        accuracy = add_truth(accuracy, ds, study.truth)
        write_table(accuracy.to_dataframe().reset_index(), study.tables / "accuracy.tsv")
        try:
            recovery = recovery_table(ds, results.get("mixed"), study.truth)
            write_table(recovery, study.tables / "recovery.tsv")
        except StatisticsError as error:
            missing["recovery"] = str(error)
    if recovery is None:  # that of an earlier run with a truth
        (study.tables / "recovery.tsv").unlink(missing_ok=True)
    write_report(
        ds,
        study.out / "report.html",
        results=StudyResults(
            accuracy=accuracy,
            attribution=results.get("attribution"),
            artifact=results.get("artifact"),
            site_shift=results.get("site_shift"),
            mixed=results.get("mixed"),
            mixed_load=results.get("mixed_load"),
            sem=results.get("sem"),
            motor=results.get("motor"),
            multiverse=results.get("multiverse"),
            recovery=recovery,
            rejected=problems(study.store),
            warnings=problems(study.store, "warnings"),
            provenance=study_provenance(ds, told_settings(study), _wall_times(study)),
            missing=missing,
        ),
    )


def _export(study: Study) -> None:
    """Write the BIDS derivatives."""
    from scalebrain.outputs.bids import export_bids

    export_bids(open_store(study.store), study.derivatives, results=study.results)
