"""Configuration of a study: a YAML file, checked key by key against a JSON schema.

``config.schema.json`` says of every key its type, range, default and meaning; the default file
that `default_yaml` writes and the table in ``docs/configuration.md`` are made from it.
"""

import difflib
import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from scalebrain.errors import ConfigError, check_all
from scalebrain.io.marked_yaml import KeyPath, MarkedYaml, read_yaml

__all__ = ["StudyConfig", "config_schema", "default_yaml", "read_config"]

_FORMULA = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"
_LOAD_FORMULA = "brain_pad_corrected ~ scale(lesion_load) + age + sex + days_post_stroke + icv"
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "'key: value' lines",
    "null": "null",
}


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
        Naming every key that is unknown, repeated, of a wrong type or out of range; of a file
        with line and column.
    """
    if source is None:
        return StudyConfig()
    if isinstance(source, StudyConfig):
        return source
    where, read = "configuration", None
    if isinstance(source, Mapping):
        content: Any = source
    else:
        where, read = str(source), read_yaml(source)
        content = {} if read.content is None else read.content
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected 'key: value' lines, found {_shown(content)}.")
    schema = config_schema()
    content = _plain(content, schema)
    failures = sorted(_failures(content, schema, where, read))
    check_all([message for *_, message in failures], ConfigError, f"{where}: not valid")
    return StudyConfig(**content)


def _plain(value: Any, schema: Mapping[str, Any]) -> Any:
    """Values with lists for tuples, floats where a number is wanted, and empty sections as such."""
    wanted = schema.get("type", ())
    if isinstance(value, Mapping):
        known = schema.get("properties", {})
        return {str(k): _plain(v, known.get(str(k), {})) for k, v in value.items()}
    if value is None and wanted == "object":
        return {}
    if isinstance(value, list | tuple):
        return [_plain(item, schema.get("items", {})) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and "number" in wanted:
        return float(value)
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return int(value)
    return value


def _failures(
    content: Mapping[str, Any], schema: Mapping[str, Any], where: str, read: MarkedYaml | None
) -> Iterator[tuple[tuple[int, int], str]]:
    """Place and message of everything that is wrong."""
    import jsonschema

    places = {} if read is None else read.places

    def told(path: KeyPath, words: str, place: tuple[int, int] | None = None) -> Any:
        place = place or next(
            (places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places), (0, 0)
        )
        at = f"{where}:{place[0]}:{place[1]}" if read is not None and place[0] else where
        return place, f"{at}: {'.'.join(map(str, path))}: {words}"

    for path, place in () if read is None else read.repeated:
        first = places[path][0]
        yield told(path, f"stands here and in line {first}. Take one of them out.", place)
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        path = tuple(error.absolute_path)
        inside: Mapping[str, Any] = error.schema
        if error.validator == "additionalProperties":
            known = list(inside["properties"])
            for key in error.instance:
                if key not in known:
                    yield told((*path, key), f"unknown key. {_meant(key, known)}")
        elif error.validator == "required":
            for key in error.validator_value:
                if key not in error.instance:
                    takes = expected(schema["properties"][path[0]]["properties"][key])
                    yield told(path, f"lacks {key}: expected {takes}.")
        else:
            yield told(path, f"expected {expected(inside)}, found {_shown(error.instance)}.")
    for path, number in _numbers(content):
        if not math.isfinite(number):
            yield told(path, f"expected a finite number, found {number}.")


def _numbers(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    """Every float and where it stands."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _numbers(below, (*path, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _numbers(below, (*path, number))
    elif isinstance(value, float):
        yield path, value


def _meant(key: str, known: list[str]) -> str:
    """Say which key was meant, else which there are."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(known)}."


def _shown(value: Any) -> str:
    """Value as a message shows it, with the type where that is what is wrong."""
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "'key: value' lines"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else str(value)


def expected(schema: Mapping[str, Any]) -> str:
    """Say in words what a key takes.

    Parameters
    ----------
    schema
        Part of the schema that is about the key.

    Returns
    -------
    str
        Such as ``a whole number of at least 1``.
    """
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = _WORDS[types[0]]
    if schema.get("pattern") == "^[A-Za-z0-9]{0,32}$":
        words = "up to 32 letters and digits"
    if types[0] == "array":
        words = f"a list of {_WORDS[schema['items']['type']].removeprefix('a ')}s"
    if "minLength" in schema:
        words += " that is not empty"
    limits = [
        f"{word} {schema[name]}"
        for name, word in (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in schema
    ]
    words = f"{words} {' and '.join(limits)}" if limits else words
    return f"{words}, or null" if "null" in types else words
