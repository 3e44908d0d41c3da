"""Configuration of a study: a YAML file, checked key by key against a JSON schema.

``config.schema.json`` says of every key its type, range, default and meaning; the default file
that `default_yaml` writes and the table in ``docs/configuration.md`` are made from it.
"""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from scalebrain.errors import ConfigError, StatisticsError, check_all
from scalebrain.io.checked import checked, expected
from scalebrain.io.marked_yaml import KeyPath, read_yaml

__all__ = ["StudyConfig", "config_schema", "default_yaml", "read_config"]

_FORMULA = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"
_LOAD_FORMULA = "brain_pad_corrected ~ scale(lesion_load) + age + sex + days_post_stroke + icv"


@dataclass(frozen=True)
class StudyConfig:
    """Settings of :func:`scalebrain.run_study`.

    Parameters
    ----------
    ingest
        Options of :func:`scalebrain.ingest`: session, prefix, root, withdrawn, resolution,
        whole_head, assume_space, volume, lesion_labels, min_lesion, strict.
    min_days_post_stroke
        A stroke is chronic beyond this many days.
    qc_decisions
        Table of the decisions of a quality control, as its pages export it; empty for none.
    nodes
        What is a node of the graph: ``volume``, pieces of grey matter of the T1w scan; or
        ``surface-3``, ``surface-4`` or ``surface-5``, vertices of the cortical surface.
    lesion_policy
        ``mask_nodes``, ``as_is``, ``enantiomorphic`` or ``exclude_region``.
    training
        Hyper-parameters of the network: layer, channels, folds, epochs, patience, batch,
        learning_rate, decay, validation, masked, seed, keep_cohorts, balance_ages.
    coverage
        Coverage of the conformal intervals.
    ages
        Brain ages of another tool, in place of those of a model trained here: the options of
        :func:`scalebrain.import_ages` table, tool, tool_version, trained_on.
    formula
        Mixed model on lesion volume, per region.
    load_formula
        Mixed model on the region's own lesion load.
    sem_model
        Path model in lavaan-like text; empty for the default.
    n_boot
        Bootstrap replicates of the path model.
    n_permutations
        Permutations of the motor prediction's null.
    seed
        Seed of bootstrap, permutations and learners.
    """

    ingest: Mapping[str, Any] = field(default_factory=dict)
    min_days_post_stroke: float = 180.0
    qc_decisions: str = ""
    nodes: str = "volume"
    lesion_policy: str = "mask_nodes"
    training: Mapping[str, Any] = field(default_factory=dict)
    coverage: float = 0.9
    ages: Mapping[str, Any] = field(default_factory=dict)
    formula: str = _FORMULA
    load_formula: str = _LOAD_FORMULA
    sem_model: str = ""
    n_boot: int = 500
    n_permutations: int = 20
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration (draft 2020-12)."""
    text = files("scalebrain").joinpath("config.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def default_yaml() -> str:
    """Return a configuration with every key, its default, and comments that say what it does."""
    lines = ["# Configuration of a scalebrain study. What is left out has the default shown here."]
    for name, key in config_schema()["properties"].items():
        lines += ["", *_comment(key["description"], "")]
        if key["type"] != "object":
            lines += [*_comment(f"Takes {expected(key)}.", ""), f"{name}: {_value(key)}"]
            continue
        needed = "then" in key  # a section that is there as a whole or not at all
        lines.append(f"{name}: {{}}" if needed else f"{name}:")
        for inner, sub in key["properties"].items():
            lines += _comment(f"{sub['description']} Takes {expected(sub)}.", "  ")
            lines.append(f"  {'# ' if needed else ''}{inner}: {_value(sub)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    """Lines of a comment."""
    return [f"{indent}# {line}" for line in textwrap.wrap(text, 96 - len(indent))]


def _value(key: Mapping[str, Any]) -> str:
    """Default of a key as YAML; of one that has none, an empty text."""
    return json.dumps(key.get("default", ""))


def read_config(source: str | Path | Mapping[str, Any] | StudyConfig | None) -> StudyConfig:
    """Read and check a configuration.

    Parameters
    ----------
    source
        YAML file, mapping, configuration, or None for the defaults.

    Returns
    -------
    StudyConfig
        Checked configuration.

    Raises
    ------
    ConfigError
        Naming every key that is unknown, repeated, of a wrong type or out of range, or whose
        formula or model cannot be parsed; of a file with line and column.
    """
    if source is None:
        return StudyConfig()
    if isinstance(source, StudyConfig):
        _check_models(source, "configuration")
        return source
    schema = config_schema()
    if isinstance(source, Mapping):
        config = StudyConfig(**checked(source, schema, "configuration"))
        _check_models(config, "configuration")
        return config
    read = read_yaml(source)
    config = StudyConfig(**checked(read, schema, str(source)))
    _check_models(config, str(source), read.places)
    return config


def _check_models(
    config: StudyConfig, where: str, places: Mapping[KeyPath, tuple[int, int]] | None = None
) -> None:
    """Refuse formulas and models that cannot be parsed; the defaults are not looked at."""
    plain, failures = StudyConfig(), []
    for key in ("formula", "load_formula", "sem_model"):
        text = getattr(config, key)
        if text == getattr(plain, key):
            continue
        from scalebrain.stats.design import check_formula  # only where it is needed: formulaic
        from scalebrain.stats.sem_model import parse_model

        try:
            if key == "sem_model":
                parse_model(text)
            else:
                check_formula(text, groups="cohort", dim="region")
        except StatisticsError as error:
            place = (places or {}).get((key,))
            at = f"{where}:{place[0]}:{place[1]}" if place else where
            failures.append(f"{at}: {key}: {error}")
    check_all(failures, ConfigError, f"{where}: not valid")
