"""Atlases by name: functions that any installed package registers by entry point."""

import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import ConfigError, ScalebrainError

__all__ = ["available_atlases", "load_atlas"]

_GROUP = "scalebrain.atlases"


def available_atlases() -> dict[str, str]:
    """List the atlases of every installed package.

    Returns
    -------
    dict
        One sentence for each name that :func:`load_atlas` takes, sorted by name. Where a
        package cannot be used it says so.

    Raises
    ------
    ConfigError
        When two packages register the same name.
    """
    return {name: _sentence(_only(name, found)) for name, found in sorted(_registered().items())}


def load_atlas(name: str) -> Atlas | RegionSet:
    """Load an atlas by name.

    Parameters
    ----------
    name
        A name of :func:`available_atlases`.

    Returns
    -------
    Atlas or RegionSet
        Regions with an image of their own, or unions of the store's parcels.

    Raises
    ------
    ConfigError
        When no package registers the name, or two do; when its package cannot be imported,
        or returns something else.
    ScalebrainError
        Whatever the atlas itself is refused for, or why its files are not there.

    Notes
    -----
    A package registers a function without arguments in the entry-point group
    ``scalebrain.atlases``; its module is imported when the atlas is asked for.
    """
    registered = _registered()
    if name not in registered:
        raise ConfigError(
            f"No atlas '{name}'. Available: {', '.join(sorted(registered)) or 'none'}. Take one of "
            "these, install the package that registers it, or read_atlas for files of your own."
        )
    entry = _only(name, registered[name])
    provider = _imported(entry)
    try:
        atlas = provider()
    except ScalebrainError:
        raise
    except Exception as error:
        raise ConfigError(
            f"Atlas '{name}' of package '{_package(entry)}' failed: {type(error).__name__}: "
            f"{error}. Update or repair that package."
        ) from error
    if not isinstance(atlas, Atlas | RegionSet):
        raise ConfigError(
            f"Atlas '{name}' of package '{_package(entry)}': {entry.value} returned a "
            f"{type(atlas).__name__}, expected an Atlas or a RegionSet. Update or repair that "
            "package."
        )
    return atlas


def _registered() -> dict[str, list[EntryPoint]]:
    """Find the entry points by name; what one package registers twice is one."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=_GROUP):
        found.setdefault(entry.name, {})[_package(entry), entry.value] = entry
    return {name: list(entries.values()) for name, entries in found.items()}


def _only(name: str, found: list[EntryPoint]) -> EntryPoint:
    """Refuse a name that is ambiguous."""
    if len(found) > 1:
        where = ", ".join(sorted(f"{_package(entry)} ({entry.value})" for entry in found))
        raise ConfigError(
            f"Atlas '{name}' is registered {len(found)} times: by {where}. Uninstall all but one."
        )
    return found[0]


def _package(entry: EntryPoint) -> str:
    """Name of the package that registers an entry point."""
    return entry.dist.name if entry.dist is not None else entry.module.partition(".")[0]


def _imported(entry: EntryPoint) -> Callable[[], object]:
    """Import the function behind an entry point."""
    provider: Any
    try:
        provider = entry.load()
    except Exception as error:
        raise ConfigError(
            f"Atlas '{entry.name}' of package '{_package(entry)}': {entry.value} cannot be "
            f"imported: {type(error).__name__}: {error}. Update or repair that package."
        ) from error
    if not callable(provider):
        raise ConfigError(
            f"Atlas '{entry.name}' of package '{_package(entry)}': {entry.value} is a "
            f"{type(provider).__name__}, expected a function. Update or repair that package."
        )
    return provider  # type: ignore[no-any-return]  # callable, as was checked


def _sentence(entry: EntryPoint) -> str:
    """First line of the documentation of an atlas, or why there is none."""
    try:
        provider = _imported(entry)
    except ConfigError as error:
        return f"Not usable. {error}"
    lines = (inspect.getdoc(provider) or "").strip().splitlines()
    return lines[0] if lines else f"Of package {_package(entry)}."
