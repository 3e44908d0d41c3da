"""A study on disk: where its parts lie, and the records of its stages."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scalebrain.config import StudyConfig, config_schema
from scalebrain.errors import (
    ConfigError,
    MissingVariableError,
    StatisticsError,
    StoreError,
    check_all,
)
from scalebrain.ingestion.layout import stored_arrays
from scalebrain.io.atomic import write_atomic
from scalebrain.io.location import Location
from scalebrain.io.sources import dataset_name
from scalebrain.io.store import INGEST, open_store, store_attributes
from scalebrain.variables import REGISTRY

__all__ = [
    "Level",
    "Stage",
    "Study",
    "begin_record",
    "check_export",
    "check_files",
    "check_imported",
    "check_names",
    "check_settings",
    "check_source",
    "chosen_settings",
    "fingerprint_of",
    "has_ages",
    "has_export",
    "has_features",
    "has_imported",
    "has_model",
    "has_predicted",
    "has_report",
    "has_statistics",
    "imported_ages",
    "imported_itself",
    "ingest_settings",
    "ingested_from",
    "model_fingerprint",
    "outcome_of",
    "problem_tables",
    "read_record",
    "record_of",
    "seconds_of",
    "told_settings",
    "write_record",
]

Level = Literal["all", "participant", "group"]


@dataclass
class Study:
    """Where a study lies, and which of its stages are done."""

    bids_dir: Path
    out: Path
    config: StudyConfig
    truth: Path | None
    level: Level = "all"
    participants: tuple[str, ...] = ()

    @property
    def store(self) -> Path:
        """Cohort store."""
        return self.out / "cohort.zarr"

    @property
    def model(self) -> Path:
        """Model directory."""
        return self.out / "model"

    @property
    def tables(self) -> Path:
        """Folder of the tables."""
        return self.out / "tables"

    @property
    def results(self) -> Path:
        """Store of the statistics."""
        return self.out / "results.zarr"

    @property
    def derivatives(self) -> Path:
        """BIDS derivatives."""
        return self.out / "derivatives"


@dataclass(frozen=True)
class Stage:
    """One stage, the settings that it depends on, and whether what it leaves is there.

    `outcome` is a hash of what it left, where the same inputs need not give the same, or someone
    else may put another thing in its place; `has_tables` says that tables are part of it, whose
    names its record keeps.
    """

    name: str
    work: Callable[[Study], None]
    keys: tuple[str, ...]
    is_there: Callable[[Study], bool]
    outcome: Callable[[Study], str] | None = None
    has_tables: bool = False

    def is_done(self, study: Study, fingerprint: str) -> bool:
        """Tell whether it was finished with this fingerprint, and what it left is there."""
        record = read_record(record_of(study, self.name))
        names = record.get("tables", ())
        return (
            record.get("fingerprint") == fingerprint
            and self.is_there(study)
            and all((study.tables / Path(str(name)).name).is_file() for name in names)
            and (
                self.outcome is None
                or "outcome" not in record  # of an earlier version
                or record["outcome"] == self.outcome(study)
            )
        )

    def left(self, study: Study) -> dict[str, Any]:
        """Tell what its record keeps of what it left."""
        left: dict[str, Any] = {} if self.outcome is None else {"outcome": self.outcome(study)}
        if self.has_tables:
            left["tables"] = sorted(path.name for path in study.tables.glob("*.tsv"))
        return left


def _saved(study: Study) -> set[str]:
    """Variables that were computed and saved in the store."""
    return set(store_attributes(study.store).get("saved_variables", ()))


def has_features(study: Study) -> bool:
    """Whether the store has what the stage of features saves."""
    wanted = {"included", "node_features", "node_lesioned_fraction"}
    if "lesion_mask" in stored_arrays(Location.of(study.store)):
        wanted |= {"lesion_load", "tract_load", "lesion_frequency"}
    if study.config.qc_decisions:
        wanted.add("qc_decision")
    return wanted <= _saved(study)


def has_model(study: Study) -> bool:
    """Whether the model is there; its card is for people."""
    return all((study.model / name).is_file() for name in ("model.json", "weights.safetensors"))


def model_fingerprint(study: Study) -> str:
    """Fingerprint of the model; trained again on other hardware, it is another one."""
    return str(read_record(study.model / "model.json").get("fingerprint", ""))


def has_ages(study: Study) -> bool:
    """Whether the store has brain ages."""
    return bool({"brain_age", "brain_age_global"} & _saved(study))


def _about_ages(study: Study) -> list[dict[str, Any]]:
    """Attributes of the brain ages that a finished store has."""
    if not (ingested_from(study) and has_ages(study)):
        return []
    ds = open_store(study.store)
    names = ("brain_age", "brain_age_global")
    return [dict(ds[name].attrs) for name in names if name in ds.variables]


def has_predicted(study: Study) -> bool:
    """Whether the store has the brain ages of the model that is there."""
    model = model_fingerprint(study)
    return bool(model) and any(
        about.get("model_fingerprint") == model for about in _about_ages(study)
    )


def has_imported(study: Study) -> bool:
    """Whether the store has the brain ages of the tool and table in the configuration."""
    ages = study.config.ages
    wanted = {
        "tool": ages["tool"],
        "tool_version": ages.get("tool_version", ""),
        "table_sha256": hashlib.sha256(Path(ages["table"]).read_bytes()).hexdigest(),
    }
    return any(wanted.items() <= about.items() for about in _about_ages(study))


def imported_ages(study: Study) -> str:
    """Tools and hashes of the tables whose brain ages the store has; empty where there are none."""
    told = [
        f"{about['tool']} {about.get('tool_version', '')} {about.get('table_sha256', '')}"
        for about in _about_ages(study)
        if about.get("tool")
    ]
    return "; ".join(told)


def has_statistics(study: Study) -> bool:
    """Whether the results are there."""
    return (study.results / "zarr.json").is_file()


def has_report(study: Study) -> bool:
    """Whether the page is there."""
    return (study.out / "report.html").is_file()


def has_export(study: Study) -> bool:
    """Whether the derivatives are there: their description is written last."""
    return (study.derivatives / "dataset_description.json").is_file()


def problem_tables(study: Study) -> bytes:
    """Tables of who was left out, and of what is odd; empty when they are not there."""
    location = Location.of(study.store)
    found = (location.get(f"{INGEST}/{kind}.tsv") for kind in ("rejected", "warnings"))
    return b"\n".join(content or b"" for content in found)


def record_of(study: Study, name: str) -> Path:
    """File that says that a stage is finished."""
    return study.out / "stages" / f"{name}.json"


def ingested_from(study: Study) -> str:
    """Fingerprint of what a finished store was made from; empty when it is not finished."""
    attrs = store_attributes(study.store)
    if not attrs.get("complete"):
        return ""
    simulated = " simulated" if attrs.get("simulated") == "true" else ""
    return f"{attrs['source_sha256']}{simulated}"


def fingerprint_of(record: Path) -> str:
    """Fingerprint of a finished stage; empty when it is not finished."""
    return str(read_record(record).get("fingerprint", ""))


def outcome_of(record: Path) -> str:
    """Fingerprint of a finished stage and of what it left: what the next one depends on."""
    return f"{fingerprint_of(record)}{read_record(record).get('outcome', '')}"


def seconds_of(record: Path) -> dict[str, float]:
    """Wall time of a finished stage, when it was last run; empty where its record tells none."""
    seconds = read_record(record).get("seconds")
    return {"seconds": float(seconds)} if isinstance(seconds, int | float) else {}


def read_record(record: Path) -> dict[str, Any]:
    """Record of a stage; empty when it is not finished."""
    try:
        read = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that appears complete or not at all."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomic(path, text.encode("utf-8"))


def begin_record(study: Study, name: str) -> dict[str, Any]:
    """Take back that a stage is finished, and return what its record told."""
    record = record_of(study, name)
    kept = read_record(record)
    made = kept.get("settings") if _has_grid(study) else ingest_settings(study)
    if name == "ingest" and made is not None:  # of the grid of the store, whatever comes now
        write_record(record, {"settings": made})
    else:
        record.unlink(missing_ok=True)
    return kept


def _has_grid(study: Study) -> bool:
    """Whether the voxels of the store are given, be it finished or not."""
    return "shape" in store_attributes(study.store)


def check_files(study: Study) -> None:
    """Refuse a study of which a file that its configuration names is not there."""
    ages, decisions = study.config.ages, study.config.qc_decisions
    wanted = [(study.truth, "truth.json of the simulation")] if study.truth is not None else []
    wanted += [(Path(ages["table"]), "table of ages")] if ages else []
    wanted += [(Path(decisions), "table of decisions")] if decisions else []
    for path, what in wanted:
        if not path.is_file():
            place = "" if path.is_absolute() else f" in {Path.cwd()}, where relative paths start"
            raise ConfigError(f"{path}: no such file{place}. Give the {what}.")


def check_export(study: Study) -> None:
    """Refuse a folder of results whose place of the export is taken by something else."""
    from scalebrain.outputs.bids import check_export_folder

    if study.level != "participant":
        check_export_folder(study.derivatives, study=study.out)


def check_names(study: Study) -> None:
    """Refuse formulas and models that name what neither the store has nor scalebrain makes."""
    from scalebrain.stats.design import check_formula
    from scalebrain.stats.sem_model import parse_model
    from scalebrain.stats.sem_variables import DEFAULT_VARIABLES

    ds = open_store(study.store)
    later = [name for name in REGISTRY if name not in ds.variables and name not in ds.dims]
    ds = ds.assign(dict.fromkeys(later, 0.0))  # ages are predicted later; a cohort may lack others
    failures = []
    for key in ("formula", "load_formula"):
        try:
            check_formula(getattr(study.config, key), ds, groups="cohort", dim="region")
        except (MissingVariableError, StatisticsError) as error:
            failures.append(f"{key}: {error.args[0]}")
    if study.config.sem_model:
        named = parse_model(study.config.sem_model).observed
        unknown = [n for n in named if n not in DEFAULT_VARIABLES and n not in ds.variables]
        failures += [
            f"sem_model: '{name}' is not a variable of the store, nor one of "
            f"{', '.join(DEFAULT_VARIABLES)}. Correct the name."
            for name in unknown
        ]
    check_all(failures, ConfigError, f"{study.store}: lacks what the models name")


def check_source(study: Study) -> None:
    """Refuse a store of another dataset."""
    held = store_attributes(study.store).get("sources", {})
    name = dataset_name(study.bids_dir)
    if held and name not in held:
        raise StoreError(
            f"{study.store}: holds {', '.join(held)}, not '{name}'. Give a new folder for results."
        )


def check_settings(study: Study) -> None:
    """Refuse settings that leave out what the grid of the store was made with."""
    asked = study.config.ingest
    made = read_record(record_of(study, "ingest")).get("settings", {})
    whole = bool(store_attributes(study.store).get("whole_head"))
    failures = []
    if whole and not asked.get("whole_head"):
        failures.append("keeps the whole head, and ingest.whole_head is false")
    if made.get("resolution") is not None and asked.get("resolution") is None:
        failures.append(f"was made at {made['resolution']:g} mm, and ingest.resolution is null")
    if failures and _has_grid(study):
        raise StoreError(
            f"{study.store}: {'; it '.join(failures)}. Give the settings that it was made with, or "
            "a new folder for results."
        )


def check_imported(study: Study) -> None:
    """Refuse to replace ages that were imported by hand, before anything is trained."""
    if imported_ages(study) and not imported_itself(study):
        tool = next(about["tool"] for about in _about_ages(study) if about.get("tool"))
        raise StoreError(
            f"{study.store}: holds the brain ages of {tool}, which this study did not import, and "
            "the configuration names none: those of a model trained here would replace them. Name "
            "them under 'ages', or give a new folder for results."
        )


def imported_itself(study: Study) -> bool:
    """Whether the imported ages that the store has are those of the study's own stage."""
    record, held = read_record(record_of(study, "ages")), imported_ages(study)
    return bool(record and held) and record.get("outcome", held) == held


def chosen_settings(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take the settings of a section of the configuration that are not the defaults."""
    keys = config_schema()["properties"][name]["properties"]
    return {k: v for k, v in section.items() if k not in keys or v != keys[k]["default"]}


def ingest_settings(study: Study) -> dict[str, Any]:
    """Take the settings of the ingest that are not the defaults, of files the names."""
    chosen = chosen_settings(study.config.ingest, "ingest")
    names = {k: Path(chosen[k]).name for k in ("root", "withdrawn") if k in chosen}
    return chosen | names


def told_settings(study: Study) -> dict[str, Any]:
    """Tell the settings of the results: the level group takes a store as it is."""
    settings = study.config.as_dict()
    made = read_record(record_of(study, "ingest")).get("settings")
    if study.level == "group" and made is not None:
        settings["ingest"] = made
    return settings
