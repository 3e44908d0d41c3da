"""Configuration of a study: a YAML file, checked key by key."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from scalebrain.errors import ConfigError
from scalebrain.features.lesion_policy import POLICIES
from scalebrain.features.surface_nodes import check_nodes

__all__ = ["StudyConfig", "read_config"]

_FORMULA = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"
_AGES = ("table", "tool", "tool_version", "trained_on")
_INGEST = (
    "session",
    "prefix",
    "root",
    "withdrawn",
    "resolution",
    "whole_head",
    "assume_space",
    "volume",
    "lesion_labels",
    "min_lesion",
    "strict",
)
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
        Naming the key that is unknown or of a wrong type.
    """
    if source is None:
        return StudyConfig()
    if isinstance(source, StudyConfig):
        return source
    where = "configuration"
    if not isinstance(source, Mapping):
        import yaml

        where = str(source)
        try:
            content = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not valid YAML: {error}") from error
        source = {} if content is None else content
        if not isinstance(source, Mapping):
            raise ConfigError(f"{where}: expected 'key: value' lines.")
    defaults = {f.name: f for f in fields(StudyConfig)}
    unknown = sorted(set(map(str, source)) - set(defaults))
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}. Known: {', '.join(defaults)}.")
    plain = StudyConfig()
    values: dict[str, Any] = {}
    for key, value in source.items():
        default = getattr(plain, str(key))
        wanted = Mapping if isinstance(default, Mapping) else type(default)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(
                f"{where}: {key} is {value!r}, expected {getattr(wanted, '__name__', wanted)}."
            )
        values[str(key)] = value
    config = StudyConfig(**values)
    if config.lesion_policy not in POLICIES:
        raise ConfigError(
            f"{where}: lesion_policy is {config.lesion_policy!r}, expected one of "
            f"{', '.join(POLICIES)}."
        )
    check_nodes(config.nodes)
    odd = sorted(set(map(str, config.ingest)) - set(_INGEST))
    if odd:
        raise ConfigError(
            f"{where}: ingest: unknown {', '.join(odd)}. Known: {', '.join(_INGEST)}."
        )
    odd = sorted(set(map(str, config.ages)) - set(_AGES))
    if odd:
        raise ConfigError(f"{where}: ages: unknown {', '.join(odd)}. Known: {', '.join(_AGES)}.")
    if config.ages and not {"table", "tool"} <= set(config.ages):
        raise ConfigError(f"{where}: ages: expected at least table (a file) and tool (its name).")
    bad = sorted(key for key, value in config.ages.items() if not isinstance(value, str))
    if bad:
        raise ConfigError(f"{where}: ages: {', '.join(bad)}: expected text. Put it in quotes.")
    if not 0 < config.coverage < 1:
        raise ConfigError(f"{where}: coverage is {config.coverage}, expected between 0 and 1.")
    return config
