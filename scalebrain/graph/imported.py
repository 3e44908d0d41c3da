"""Brain ages of another tool: read from a table, put in the place of our model's."""

import hashlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import default_regions
from scalebrain.errors import ConfigError, DataWarning, StoreError
from scalebrain.features.inclusion import flags, included_people, same_people
from scalebrain.graph.calibrate import fit_bias
from scalebrain.io.ages import AgeTable, Places, read_ages
from scalebrain.io.delimited import listed
from scalebrain.io.store import (
    hide_variables,
    open_store,
    rejected_subjects,
    remove_variables,
    save_store,
    show_variables,
)
from scalebrain.variables import annotate, validate

__all__ = [
    "MIN_REFERENCES",
    "TrainedOn",
    "import_ages",
    "imported_from",
    "own_ages",
    "save_ages",
    "tell_stale",
]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
TrainedOn = Literal["real", "simulated", "unknown"]

#: Healthy people with an age that the age bias is fitted on, at least.
MIN_REFERENCES = 30

_SIMULATED = {"real": "false", "simulated": "true", "unknown": "unknown"}
_NAME = re.compile(r"[^\s](?:.{0,98}[^\s])?")
_REGIONAL = (
    "brain_age",
    "brain_age_low",
    "brain_age_high",
    "brain_pad",
    "brain_pad_corrected",
    "calibration_slope",
    "imputed_fraction",
    "extrapolated",
    "out_of_fold",
    "region_excluded",
)
_GLOBAL = (
    "brain_age_global",
    "brain_age_global_low",
    "brain_age_global_high",
    "brain_pad_global",
    "brain_pad_global_corrected",
)
_UNCORRECTED = (
    "the age bias of these brain ages is not corrected, since that takes "
    f"{MIN_REFERENCES} healthy references with an age{{where}}, or a column "
    "brain_pad_corrected. {found}. Use {pad}, with age as a covariate in every model."
)


def import_ages(
    store: str | Path,
    table: str | Path,
    *,
    tool: str,
    tool_version: str = "",
    trained_on: TrainedOn = "unknown",
    replace: bool = False,
) -> xr.Dataset:
    """Take brain ages that another tool predicted into a store.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    table
        TSV or CSV in years, of one of three forms: a row a subject and region (``subject``,
        ``region``, ``brain_age``); a row a subject and a column a region, named as in the
        store; a row a subject (``subject``, ``brain_age``), the age of the whole brain.
        A column ``session`` where people have several. In the first and last form also
        ``brain_age_low`` and ``brain_age_high``, and ``brain_age_corrected`` or
        ``brain_pad_corrected``. A missing age is ``n/a``.
    tool
        Name of the tool.
    tool_version
        Its version.
    trained_on
        People that the tool's model learned from.
    replace
        Replace what ages the store holds, of another tool or of our model. Regional ages and
        those of the whole brain of one tool otherwise stand beside each other.

    Returns
    -------
    Dataset
        What was saved, in years. Regional: ``brain_age``, ``brain_pad``,
        ``brain_pad_corrected (subject, region)``, ``calibration_slope (region)``, and
        ``brain_age_low`` and ``brain_age_high`` where the table has them. Of the whole
        brain: ``brain_age_global``, ``brain_pad_global``, ``brain_pad_global_corrected
        (subject)`` and so on. A subject without a row is NaN.

    Raises
    ------
    TableError
        When the table is malformed; or with all that is wrong with its rows: subjects or
        regions that the store does not have, repeats, ages that are none or not of 0 to 120.
    StoreError
        When the store holds ages of another origin, and `replace` is False.
    ConfigError
        When `tool`, `tool_version` or `trained_on` will not do.

    Warns
    -----
    DataWarning
        When the age bias cannot be corrected: then there is no ``brain_pad_corrected``.

    Notes
    -----
    ``brain_pad = brain_age - age``. With at least 30 included references (people, not scans)
    that have an age in each region of the table, ``brain_pad_corrected = brain_pad - (a +
    b age)`` with the Huber fit of ``brain_pad`` on age in them, and ``calibration_slope = 1
    + b``. They are the same references that are then corrected, and the tool may have
    learned from them: both make them look better than new people. With fewer references in
    one region, the tool's own corrected column is taken for all; its slope is not known.
    """
    if not _NAME.fullmatch(tool) or not tool.isprintable():
        raise ConfigError(f"tool is {tool!r}, expected the name of a tool, as in brainageR.")
    if tool_version and not (_NAME.fullmatch(tool_version) and tool_version.isprintable()):
        raise ConfigError(f"tool_version is {tool_version!r}, expected a version, as in 2.1.")
    if trained_on not in get_args(TrainedOn):
        known = ", ".join(get_args(TrainedOn))
        raise ConfigError(f"trained_on is {trained_on!r}, expected one of {known}.")
    ds = open_store(store)
    validate(ds, "age", "group")
    ages = read_ages(Path(table), _places(ds, store))
    new = _variables(ds, ages)
    attrs = {
        "tool": tool,
        "tool_version": tool_version,
        "table_sha256": ages.sha256,
        "model_trained_on_simulated": _SIMULATED[trained_on],
    }
    for name in new.data_vars:
        new[name].attrs |= attrs
    save_ages(new, ds, store, replace=replace)
    _tell_missing(ds, ages, Path(table))
    pad = "brain_pad_global" if ages.is_global else "brain_pad"
    if new[pad].attrs["age_bias_correction"] == "none":
        warnings.warn(f"{table}: {_uncorrected(ds, new[pad])}", DataWarning, stacklevel=2)
    return new


def save_ages(new: xr.Dataset, ds: xr.Dataset, store: str | Path, *, replace: bool) -> None:
    """Save brain ages, ours or imported; a store holds those of one origin.

    Parameters
    ----------
    new
        Brain ages and what belongs to them.
    ds
        The store.
    store
        Its path or URL.
    replace
        Replace all ages that are there, of another origin too.

    Raises
    ------
    StoreError
        When the store holds ages of another origin, and `replace` is False.
    """
    held, origin = _origin(ds), _origin(new)
    if held not in (None, origin) and not replace:
        raise StoreError(
            f"{store}: holds the brain ages of {held}; those of {origin} would replace them. "
            "Say --replace (replace=True) if that is meant, or use another store."
        )
    own = _REGIONAL if "brain_age" in new.variables else _GLOBAL
    old = own if held == origin and not replace else (*_REGIONAL, *_GLOBAL)
    gone = [n for n in old if n in ds.variables and n not in new.variables]
    hide_variables(store, gone)
    try:
        save_store(new, store)
    except Exception:
        show_variables(store, gone)  # what could not be replaced stays
        raise
    remove_variables(store, gone)


def _origin(ds: xr.Dataset) -> str | None:
    """Who made the brain ages of a Dataset; None when it has none."""
    if not {"brain_age", "brain_age_global"} & set(ds.variables):
        return None
    return imported_from(ds) or "a model of scalebrain"


def imported_from(ds: xr.Dataset) -> str:
    """Tool and version that the brain ages of a store came from; empty for our own model."""
    for name in ("brain_age", "brain_age_global"):
        if name in ds.variables:
            attrs = ds[name].attrs
            return f"{attrs.get('tool', '')} {attrs.get('tool_version', '')}".strip()
    return ""


def own_ages(ds: xr.Dataset) -> list[str]:
    """Brain ages of our own model in a store, and what belongs to them; empty where imported."""
    if "brain_age" not in ds.variables or imported_from(ds):
        return []
    return [name for name in (*_REGIONAL, *_GLOBAL) if name in ds.variables]


def tell_stale(ds: xr.Dataset, chosen: xr.Dataset) -> None:
    """Warn of imported ages whose bias was corrected by other references than are included now.

    Parameters
    ----------
    ds
        Store as it was.
    chosen
        What :func:`~scalebrain.inclusion` says now.
    """
    now = ds.assign(included=("subject", flags(chosen, "included")))
    aged, as_then = np.zeros(ds.sizes["subject"], dtype=np.bool_), True
    for name in ("brain_pad", "brain_pad_global"):
        if name in ds.variables and ds[name].attrs.get("age_bias_correction") == "references":
            pad = ds[name].values.reshape(len(aged), -1)
            then = ds[name].attrs.get("references_sha256")
            if then != _sha256(ds, _references(now, pad)[0]):
                aged |= np.isfinite(pad).any(axis=1)
            as_then &= then == _sha256(ds, _references(ds, pad)[0])
    if not aged.any() or not imported_from(ds):
        return
    others = now["included"].values != included_people(ds)
    n = int((aged & others & (ds["group"].values.astype(str) == "reference")).sum())
    logger.warning(
        "the age bias of the brain ages of %s was corrected by other references than are "
        "included now%s. Import them again; a study that names them does so.",
        imported_from(ds),
        f" ({n} differ)" if n and as_then else "",
    )


def _places(ds: xr.Dataset, store: str | Path) -> Places:
    """Subjects and regions of a store."""

    def text(name: str, otherwise: list[str]) -> list[str]:
        return [str(v) for v in ds[name].values] if name in ds.variables else otherwise

    subjects = text("subject", [])
    return Places(
        subjects=subjects,
        people=text("person", subjects),
        sessions=text("session", [""] * len(subjects)),
        regions=text("region", list(default_regions().regions)),
        rejected=rejected_subjects(store),
    )


def _variables(ds: xr.Dataset, ages: AgeTable) -> xr.Dataset:
    """Variables of a table: ages, and their difference from age, corrected where it can be."""
    age = np.asarray(ds["age"].values, dtype=np.float64)[:, None]
    years = ages.values["brain_age"]
    pad = years - age
    corrected, slope, about = _corrected(ds, age, pad, ages)
    values = {
        n: ages.values[n]
        for n in ("brain_age", "brain_age_low", "brain_age_high")
        if n in ages.values
    } | {"brain_pad": pad}
    if corrected is not None:
        values["brain_pad_corrected"] = corrected
    out: dict[str, Any] = {}
    for name, array in values.items():
        told = dict(about) if name.startswith("brain_pad") else {}
        if ages.is_global:
            out[_global(name)] = ("subject", array[:, 0], told)
        else:
            out[name] = (("subject", "region"), array, told)
    coords: dict[str, Any] = {"subject": ds["subject"].values}
    if not ages.is_global:
        regions = ds["region"].values if "region" in ds.variables else default_regions().regions
        coords["region"] = [str(region) for region in regions]
        if slope is not None:
            out["calibration_slope"] = ("region", slope, {})
    elif slope is not None:
        out["brain_pad_global_corrected"][2]["calibration_slope"] = float(slope[0])
    return annotate(xr.Dataset(out, coords=coords))


def _global(name: str) -> str:
    """Name of a variable of the whole brain: brain_age_low is brain_age_global_low."""
    return re.sub(r"^(brain_age|brain_pad)", r"\1_global", name)


def _references(ds: xr.Dataset, pad: Array) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
    """Healthy references with a value (subject, region), and their number by region of some age."""
    healthy = (ds["group"].values.astype(str) == "reference") & included_people(ds)
    used = healthy[:, None] & np.isfinite(pad)
    people = same_people(ds)
    tested = np.flatnonzero(np.isfinite(pad).any(axis=0)).tolist()
    return used, {r: len(np.unique(people[used[:, r]])) for r in tested}


def _sha256(ds: xr.Dataset, used: npt.NDArray[np.bool_]) -> str:
    """Mark of the labels of references (subject, region), in whatever order a store has them."""
    labels = sorted(ds["subject"].values[used.any(axis=1)].astype(str).tolist())
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()


def _uncorrected(ds: xr.Dataset, pad: xr.DataArray) -> str:
    """Say that the age bias is not corrected, and where references lack."""
    _, counts = _references(ds, pad.values.reshape(pad.shape[0], -1))
    if pad.dims == ("subject",):
        where, found = "", f"The store has {counts.get(0, 0)}"
    else:
        labels = pad["region"].values
        few = [f"{labels[r]} {n}" for r, n in counts.items() if n < MIN_REFERENCES]
        where = " in every region of the table"
        found = f"Fewer have one in {len(few)} of {len(counts)} regions: {listed(few) or 'none'}"
    return _UNCORRECTED.format(where=where, found=found, pad=pad.name)


def _corrected(
    ds: xr.Dataset, age: Array, pad: Array, ages: AgeTable
) -> tuple[Array | None, Array | None, dict[str, Any]]:
    """Corrected differences, calibration slopes, and how they were corrected."""
    used, counts = _references(ds, pad)
    n = min(counts.values(), default=0)
    if n >= MIN_REFERENCES:
        corrected, slope = np.full_like(pad, np.nan), np.full(pad.shape[1], np.nan)
        for r in counts:
            at = used[:, r]
            a, b = fit_bias(age[at, 0], (pad + age)[at][:, [r]])
            corrected[:, r] = pad[:, r] - (a[0] + b[0] * age[:, 0])
            slope[r] = 1 + b[0]
        return (
            corrected,
            slope,
            {
                "age_bias_correction": "references",
                "n_references": int(n),
                "references_sha256": _sha256(ds, used),
            },
        )
    for name, shift in (("brain_pad_corrected", 0.0), ("brain_age_corrected", age)):
        if name in ages.values:
            return ages.values[name] - shift, None, {"age_bias_correction": "tool"}
    return None, None, {"age_bias_correction": "none"}


def _tell_missing(ds: xr.Dataset, ages: AgeTable, table: Path) -> None:
    """Say who of the store has no age, or not of every region."""
    known = np.isfinite(ages.values["brain_age"])
    subjects = ds["subject"].values.astype(str)
    for chosen, what in (
        (~ages.listed, f"are not in {table}"),
        (ages.listed & ~known.any(axis=1), "have no brain age there"),
        (known.any(axis=1) & ~known.all(axis=1), "have no brain age of some regions"),
    ):
        if chosen.any():
            who = listed([str(one) for one in subjects[chosen]])
            logger.warning("%d of %d subjects %s: %s", chosen.sum(), len(subjects), what, who)
