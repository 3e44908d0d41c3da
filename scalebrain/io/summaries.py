"""Summaries of a site: JSON with aggregates alone, checked in full when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import TableError

__all__ = ["read_summary", "write_summary"]

#: Version of the format. A file of another version is refused.
VERSION = 1
_FORMAT = "scalebrain-site-summary"
_MAX_BYTES = 64 * 2**20
_NAME = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00-\x1f\x7f]+$"}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "format",
        "version",
        "scalebrain",
        "formula",
        "groups",
        "dim",
        "minimum_cell",
        "scales",
        "levels",
        "terms",
        "labels",
        "cohorts",
    ],
    "properties": {
        "format": {"const": _FORMAT},
        "version": {"const": VERSION},
        "scalebrain": _NAME,
        "formula": {**_NAME, "maxLength": 2000},
        "groups": _NAME,
        "dim": _NAME,
        "group": {"type": "string", "maxLength": 200},
        "minimum_cell": {"type": "integer", "minimum": 1},
        "scales": {
            "type": "object",
            "propertyNames": _NAME,
            "additionalProperties": {
                "type": "object",
                "propertyNames": _NAME,
                "additionalProperties": {"type": "string", "maxLength": 500},
            },
        },
        "levels": {
            "type": "object",
            "propertyNames": _NAME,
            "additionalProperties": {"type": "array", "items": _NAME, "uniqueItems": True},
        },
        "terms": {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True},
        "labels": {"type": "array", "items": _NAME, "minItems": 1, "uniqueItems": True},
        "cohorts": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "n", "xx", "xy", "yy"],
                "properties": {
                    "name": _NAME,
                    "n": {"type": "integer", "minimum": 2, "maximum": 10**9},
                    "xx": {"type": "array", "items": {"type": "array", "items": _NUMBERS}},
                    "xy": {"type": "array", "items": _NUMBERS},
                    "yy": _NUMBERS,
                },
            },
        },
    },
}


def write_summary(summary: xr.Dataset, path: str | Path) -> None:
    """Write what :func:`scalebrain.site_summary` made, as JSON.

    Parameters
    ----------
    summary
        Dataset with ``n (cohort)``, ``xx (cohort, dim, term, other_term)``,
        ``xy (cohort, dim, term)`` and ``yy (cohort, dim)``.
    path
        New file.

    Raises
    ------
    TableError
        If the file exists, or cannot be written.
    """
    dim = summary.attrs["dim"]
    content = {
        "format": _FORMAT,
        "version": VERSION,
        **{name: summary.attrs[name] for name in _ATTRS},
        "terms": [str(name) for name in summary["term"].values],
        "labels": [str(name) for name in summary[dim].values],
        "cohorts": [
            {
                "name": str(name),
                "n": int(summary["n"].values[k]),
                "xx": summary["xx"].values[k].tolist(),
                "xy": summary["xy"].values[k].tolist(),
                "yy": summary["yy"].values[k].tolist(),
            }
            for k, name in enumerate(summary["cohort"].values)
        ],
    }
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError as error:
        raise TableError(
            f"{path}: exists. Two summaries of nearly the same people can be subtracted from each "
            "other: send one alone. Remove the old one if it was never sent, or give a new path."
        ) from error
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be written: {error}. Give another path.") from error


_ATTRS = (
    "scalebrain",
    "formula",
    "groups",
    "dim",
    "group",
    "minimum_cell",
    "scales",
    "levels",
)


def read_summary(path: str | Path) -> xr.Dataset:
    """Read a summary and check every number in it.

    Parameters
    ----------
    path
        File of :func:`write_summary`.

    Returns
    -------
    Dataset
        As :func:`scalebrain.site_summary` returns it.

    Raises
    ------
    TableError
        If the file is absent, too large, no JSON, of another format or version, or holds
        numbers that no people can have.
    """
    content = _load(path)
    for key, wanted in (("format", _FORMAT), ("version", VERSION)):
        if content.get(key) != wanted:
            raise TableError(
                f"{path}: {key} is {_short(content.get(key))}, expected {wanted!r}. Make it with "
                "`scalebrain site-summary` of this version of scalebrain."
            )
    _check_schema(path, content)
    dim, terms, labels = content["dim"], content["terms"], content["labels"]
    if dim in ("cohort", "term", "other_term"):
        raise TableError(f"{path}: dim is '{dim}', which is a dimension of the summary itself.")
    p, r = len(terms), len(labels)
    cohorts = content["cohorts"]
    names = [cohort["name"] for cohort in cohorts]
    if len(set(names)) < len(names):
        raise TableError(f"{path}: a cohort stands in it twice. Ask the site for another file.")
    xx = np.empty((len(cohorts), r, p, p))
    xy, yy = np.empty((len(cohorts), r, p)), np.empty((len(cohorts), r))
    for k, cohort in enumerate(cohorts):
        where = f"{path}: cohort {_short(cohort['name'])}"
        xx[k] = _shaped(where, "xx", cohort["xx"], (r, p, p))
        xy[k] = _shaped(where, "xy", cohort["xy"], (r, p))
        yy[k] = _shaped(where, "yy", cohort["yy"], (r,))
        _check_moments(where, xx[k], xy[k], yy[k])
    return xr.Dataset(
        {
            "n": ("cohort", np.array([cohort["n"] for cohort in cohorts], dtype=np.int64)),
            "xx": (("cohort", dim, "term", "other_term"), xx),
            "xy": (("cohort", dim, "term"), xy),
            "yy": (("cohort", dim), yy),
        },
        coords={
            "cohort": np.array(names, dtype=object),
            dim: np.array(labels, dtype=object),
            "term": np.array(terms, dtype=object),
            "other_term": np.array(terms, dtype=object),
        },
        attrs={name: content.get(name, "") for name in _ATTRS},
    )


def _load(path: str | Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return made

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        place = Path(path)
        if not place.is_file():
            raise TableError(f"{path}: no such file. Give a summary of `scalebrain site-summary`.")
        if place.stat().st_size > _MAX_BYTES:
            raise TableError(
                f"{path}: {place.stat().st_size} bytes, at most {_MAX_BYTES} are read. This is no "
                "summary, or of too many regions."
            )
        content = json.loads(
            place.read_text(encoding="utf-8"), object_pairs_hook=unique, parse_constant=refuse
        )
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(
            f"{path}: cannot be read as JSON: {_short(str(error))}. Ask the site for another file."
        ) from error
    if not isinstance(content, Mapping):
        raise TableError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return dict(content)


def _check_schema(path: str | Path, content: dict[str, Any]) -> None:
    import jsonschema

    try:
        error = next(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(content), None)
    except (RecursionError, OverflowError) as problem:
        raise TableError(f"{path}: cannot be checked: {_short(str(problem))}.") from problem
    if error is not None:
        at = "/".join(map(str, list(error.absolute_path)[:4])) or "the top"
        raise TableError(
            f"{path}: not a summary, at {_short(at)}: {_short(error.message)}. Ask the site for "
            "another file."
        )


def _shaped(where: str, name: str, values: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    try:
        made = np.array(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise TableError(
            f"{where}: {name} is not rectangular or holds no numbers. Ask the site for another "
            "file."
        ) from error
    if made.shape != shape or not np.isfinite(made).all() or np.abs(made).max() > 1e150:
        raise TableError(
            f"{where}: {name} has shape {made.shape}, expected {shape} of finite numbers. Ask the "
            "site for another file."
        )
    return made


def _check_moments(
    where: str,
    xx: npt.NDArray[np.float64],
    xy: npt.NDArray[np.float64],
    yy: npt.NDArray[np.float64],
) -> None:
    """Refuse sums that no people can have: not symmetric, or a negative one."""
    whole = np.concatenate(
        [
            np.concatenate([xx, xy[:, :, None]], axis=2),
            np.concatenate([xy, yy[:, None]], axis=1)[:, None, :],
        ],
        axis=1,
    )
    size = np.sqrt(np.abs(np.diagonal(whole, axis1=1, axis2=2)))
    size[size == 0] = 1.0
    scaled = whole / (size[:, :, None] * size[:, None, :])
    fine = np.allclose(scaled, scaled.transpose(0, 2, 1), atol=1e-9)
    if fine:
        fine = bool((np.linalg.eigvalsh(scaled) > -1e-7).all())
    if not fine or (yy <= 0).any():
        raise TableError(
            f"{where}: its sums of squares and products are those of no people (not symmetric, "
            "or negative). Ask the site for another file."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
