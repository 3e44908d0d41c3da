"""Read YAML files that people write, with the line and column of every key."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scalebrain.errors import ConfigError

__all__ = ["MarkedYaml", "read_documents", "read_yaml"]

#: Keys and positions that lead to a value.
KeyPath = tuple[str | int, ...]

_LARGEST = 2**20


@dataclass(frozen=True)
class MarkedYaml:
    """Content of a file.

    Parameters
    ----------
    content
        Plain values; None of an empty file.
    places
        Line and column, from 1, of every key (and item of a list) by its path.
    repeated
        Paths of the keys that stand more than once in a mapping, with the places of the later
        ones.
    """

    content: Any
    places: dict[KeyPath, tuple[int, int]]
    repeated: tuple[tuple[KeyPath, tuple[int, int]], ...]


class _Loader(yaml.SafeLoader):
    """Plain values alone; ``1e-3`` is a number, as YAML 1.2 has it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"),
    list("-+0123456789"),
)


def read_yaml(path: str | Path) -> MarkedYaml:
    """Read a YAML file.

    Parameters
    ----------
    path
        File in UTF-8.

    Returns
    -------
    MarkedYaml
        Values and where they stand.

    Raises
    ------
    ConfigError
        When it cannot be read, is not YAML, or holds anything but plain values; with line and
        column.
    """
    text = _text(path)
    with _explained(path):
        loader = _Loader(text)
        _refuse_aliases(path, text)
        node = loader.get_single_node()
        places: dict[KeyPath, tuple[int, int]] = {}
        repeated: list[tuple[KeyPath, tuple[int, int]]] = []
        if node is not None:
            _mark(node, (), places, repeated)
        content = None if node is None else loader.construct_document(node)
    return MarkedYaml(content, places, tuple(repeated))


def read_documents(path: str | Path) -> list[Any]:
    """Read a YAML file of one or more documents, such as manifests of Kubernetes.

    Parameters
    ----------
    path
        File in UTF-8.

    Returns
    -------
    list
        Plain values of every document that is not empty.

    Raises
    ------
    ConfigError
        As for :func:`read_yaml`.
    """
    text = _text(path)
    with _explained(path):
        _refuse_aliases(path, text)
        found = list(yaml.load_all(text, Loader=_Loader))
    return [one for one in found if one is not None]


def _text(path: str | Path) -> str:
    """Read a file of a size that people write."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: expected text in UTF-8. Save it as that."
        ) from error
    if len(raw) > _LARGEST:
        raise ConfigError(f"{path}: larger than 1 MiB: this is no configuration.")
    return text


@contextlib.contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Say where in a file YAML is not valid."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not valid YAML: {reason}.") from error


def _refuse_aliases(path: str | Path, text: str) -> None:
    """Refuse references: a few of them can stand for any amount of content, or for themselves."""
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            mark = event.start_mark
            where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
            raise ConfigError(
                f"{where}: '*{event.anchor}' refers to another place of the file. Write the value "
                "itself."
            )


def _mark(
    node: yaml.Node,
    path: KeyPath,
    places: dict[KeyPath, tuple[int, int]],
    repeated: list[tuple[KeyPath, tuple[int, int]]],
) -> None:
    """Note where everything below a node stands."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            below = (*path, str(key.value) if isinstance(key, yaml.ScalarNode) else "?")
            place = (key.start_mark.line + 1, key.start_mark.column + 1)
            if below in seen:
                repeated.append((below, place))
            seen.add(below)
            places.setdefault(below, place)
            _mark(value, below, places, repeated)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            below = (*path, number)
            places[below] = (value.start_mark.line + 1, value.start_mark.column + 1)
            _mark(value, below, places, repeated)
