"""Check what people configure against a JSON schema, key by key."""

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scalebrain.errors import ConfigError, check_all
from scalebrain.io.marked_yaml import KeyPath, MarkedYaml

__all__ = ["checked", "expected"]

_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "'key: value' lines",
    "null": "null",
}


def checked(
    source: Mapping[str, Any] | MarkedYaml, schema: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Check values against a schema.

    Parameters
    ----------
    source
        Values, or a file that was read.
    schema
        JSON schema, draft 2020-12, of an object that takes no other keys.
    where
        Name of the file, or of what is checked.

    Returns
    -------
    dict
        Plain values: lists for tuples, floats where a number is wanted.

    Raises
    ------
    ConfigError
        Naming every key that is unknown, repeated, of a wrong type or out of range; of a file
        with line and column.
    """
    read = source if isinstance(source, MarkedYaml) else None
    content: Any = source if read is None else read.content
    if not isinstance(content, Mapping | None):
        raise ConfigError(f"{where}: expected 'key: value' lines, found {_shown(content)}.")
    values: dict[str, Any] = _plain(content or {}, schema)
    failures = sorted(_failures(values, schema, where, read))
    check_all([message for *_, message in failures], ConfigError, f"{where}: not valid")
    return values


def _plain(value: Any, schema: Mapping[str, Any]) -> Any:
    """Values with lists for tuples, floats where a number is wanted, and empty sections as such."""
    wanted = schema.get("type", ())
    if isinstance(value, Mapping):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        other = other if isinstance(other, Mapping) else {}
        return {str(k): _plain(v, known.get(str(k), other)) for k, v in value.items()}
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
                    known = inside.get("properties") or schema["properties"][path[0]]["properties"]
                    takes = expected(known[key])
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


#: Patterns of text in words.
_PATTERNS = {
    "^[A-Za-z0-9]{0,32}$": "up to 32 letters and digits",
    r"^\S(.{0,98}\S)?$": "text of 1 to 100 characters without a space at either end",
    r"^(\S(.{0,98}\S)?)?$": "text of up to 100 characters without a space at either end",
}


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
    words = _PATTERNS.get(schema.get("pattern", ""), words)
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
