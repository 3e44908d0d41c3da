"""What the names of a structural model stand for in a Dataset."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.frame import lesional_measures, subject_frame
from scalebrain.stats.pads import find_pad
from scalebrain.stats.sem_model import SemModel

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_VARIABLES",
    "GLOBAL_MODEL",
    "RIVAL_MODELS",
    "Selector",
    "default_model",
    "group_codes",
    "observed_frame",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Selector = Hashable | tuple[Hashable, Mapping[Hashable, Hashable]] | xr.DataArray

#: Damage and ipsilesional brain age act on motor outcome, which acts on the other side.
DEFAULT_MODEL = "motor ~ cst + ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ cst"

#: What the default model is compared with: the arrow between motor outcome and the
#: contralesional side reversed, and removed.
RIVAL_MODELS: Mapping[str, str] = {
    "reversed": "motor ~ contra + cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst",
    "restricted": "motor ~ cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst\nmotor ~~ 0*contra",
}

#: The same with one brain age, of the whole brain.
GLOBAL_MODEL = "motor ~ cst + brain\nbrain ~ cst"

#: What a name stands for; ``{pad}`` is the brain-PAD of the store.
DEFAULT_VARIABLES: Mapping[str, str] = {
    "motor": "motor_score",
    "cst": "tract_load of CST_ipsilesional (plain overlap)",
    "ipsi": "mean over ipsilesional regions of {pad}",
    "contra": "{pad} of FPN_contralesional",
    "brain": "{pad}",
}
_SIDED = (
    "brain_pad_corrected",
    "lesion_load",
    "tract_load",
    "tract_load_weighted",
    "tract_load_max",
)


def observed_frame(
    ds: xr.Dataset,
    model: SemModel,
    variables: Mapping[str, Selector],
    *,
    needed: BoolArray | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Make one column per observed variable of a model, and say what it stands for.

    Parameters
    ----------
    ds
        Dataset of a finished store, on native or on lesional sides.
    model
        The model.
    variables
        What a name of the model stands for, where it is not a default or a variable.
    needed
        (subject,) who must be in a DataArray of `variables`; everyone when None.

    Returns
    -------
    frame
        One row a subject.
    described
        For each name, what it stands for.

    Raises
    ------
    MissingVariableError
        If a variable is not in `ds`.
    StatisticsError
        If a variable is text, or has another shape than one value a subject, or subjects of a
        DataArray are unknown, repeated or absent.
    """
    unused = sorted(set(variables) - set(model.observed))
    if unused:
        raise StatisticsError(
            f"SEM: variables {unused} are not in the model, whose observed variables are "
            f"{sorted(model.observed)}."
        )
    index = subject_frame(ds, []).index
    columns: dict[str, FloatArray] = {}
    described: dict[str, str] = {}
    for name in model.observed:
        if name in variables:
            values, told = _mapped(ds, name, variables[name], needed)
        elif name in DEFAULT_VARIABLES and name not in ds.variables:
            values = _default(ds, name)
            told = DEFAULT_VARIABLES[name].format(pad=find_pad(ds).told)
        elif name in ds.variables:
            values, told = _numbers(ds, name), name
        else:
            raise MissingVariableError(
                f"SEM: '{name}' is not a variable of the Dataset. Way out: "
                f"variables={{'{name}': 'some_variable'}}."
            )
        if values.shape != (len(index),):
            raise StatisticsError(
                f"SEM: '{name}' must have one value per subject ({len(index)}), "
                f"got shape {values.shape}."
            )
        columns[name], described[name] = values, told
    return pd.DataFrame(columns, index=index), described


def default_model(ds: xr.Dataset) -> tuple[str, Mapping[str, str]]:
    """Model of the brain ages that the store has, and its rivals."""
    pad = find_pad(ds)
    model, rivals = (GLOBAL_MODEL, {}) if pad.is_global else (DEFAULT_MODEL, RIVAL_MODELS)
    if pad.is_corrected:
        return model, rivals
    return _with_age(model), {name: _with_age(text) for name, text in rivals.items()}


def _with_age(model: str) -> str:
    """Age as a cause of every outcome, for brain ages whose age bias is not corrected."""
    lines = model.split("\n")
    return "\n".join(line if "~~" in line else f"{line} + age" for line in lines)


def _default(ds: xr.Dataset, name: str) -> FloatArray:
    if name == "motor":
        if "motor_score" not in ds.variables:
            raise MissingVariableError(
                "SEM: variable 'motor_score' is missing. Way out: add a motor score to "
                "participants.tsv and ingest again, or variables={'motor': 'your_variable'}."
            )
        return _numbers(ds, "motor_score")
    if name == "cst":
        load = lesional_measures(ds, ["tract_load"])["tract_load"]
        return _values(_at(load, {"tract": "CST_ipsilesional"}), name)
    if name == "brain":
        found = find_pad(ds)
        if not found.is_global:
            raise MissingVariableError(
                "SEM: 'brain' is the brain-PAD of the whole brain; the store has none. Way out: "
                "import_ages of the whole brain, or variables={'brain': 'your_variable'}."
            )
        return _numbers(ds, found.name)
    pad = lesional_measures(ds, ["brain_pad_corrected"])["brain_pad_corrected"]
    if name == "contra":
        return _values(_at(pad, {"region": "FPN_contralesional"}), name)
    own = [label for label in pad["region"].values if str(label).endswith("_ipsilesional")]
    return _values(pad.sel(region=own).mean("region", skipna=True), name)


def _mapped(
    ds: xr.Dataset, name: str, selector: Selector, needed: BoolArray | None
) -> tuple[FloatArray, str]:
    if isinstance(selector, xr.DataArray):
        array = selector
        if "subject" not in array.dims:
            raise StatisticsError(f"SEM: '{name}' has dims {array.dims}, expected ('subject',).")
        told = "DataArray" if selector.name is None else str(selector.name)
        values = _values(array, name)
        if "subject" in ds.coords and "subject" in array.coords:
            alone = xr.DataArray(values, {"subject": array["subject"].values}, array.dims)
            values = _joined(ds, name, alone, needed).values
        return values, told
    if not isinstance(selector, tuple):
        if selector not in ds.variables:
            raise MissingVariableError(f"SEM: variable '{selector}' for '{name}' is not in ds.")
        return _numbers(ds, selector), str(selector)
    source, labels = selector
    told = f"{source} at {', '.join(f'{dim}={label}' for dim, label in labels.items())}"
    lesional = any(
        str(label).endswith(("ipsilesional", "contralesional")) for label in labels.values()
    )
    if lesional and source in _SIDED and source in ds.variables:
        array = lesional_measures(ds, [str(source)])[source]
        is_divided = source == "brain_pad_corrected" and find_pad(ds).has_slope
        told += " / calibration_slope" if is_divided else ""
    elif source in ds.variables:
        array = ds[source]
    else:
        raise MissingVariableError(f"SEM: variable '{source}' for '{name}' is not in ds.")
    return _values(_at(array, labels), name), told


def _joined(
    ds: xr.Dataset, name: str, array: xr.DataArray, needed: BoolArray | None
) -> xr.DataArray:
    """Values in the order of the store, every one of them found."""
    start = f"SEM: DataArray for '{name}'"
    given = pd.Index(array["subject"].values).map(str)
    subjects = subject_frame(ds, []).index.map(str)
    twice = sorted(set(given[given.duplicated()]))
    if twice:
        raise StatisticsError(f"{start}: several values of {_listed(twice)}. Keep one a subject.")
    unknown = given[~given.isin(subjects)]
    if len(unknown):
        near = difflib.get_close_matches(str(unknown[0]), list(subjects), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" It has ids such as '{subjects[0]}'."
        raise StatisticsError(
            f"{start}: the Dataset has no subject {_listed(list(unknown))}.{hint} Use its ids, "
            "and leave out the values of others."
        )
    wanted = subjects if needed is None else subjects[needed]
    absent = wanted[~wanted.isin(given)]
    if len(absent):
        raise StatisticsError(
            f"{start}: no value of {len(absent)} subjects that are used: {_listed(list(absent))}. "
            "Give one of each, missing (NaN) where nothing is known, as reindex(subject=...) does."
        )
    return array.assign_coords(subject=given).reindex(subject=subjects)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _at(array: xr.DataArray, labels: Mapping[Any, Hashable]) -> xr.DataArray:
    try:
        return array.sel(dict(labels), drop=True)
    except KeyError:
        raise MissingVariableError(
            f"SEM: '{array.name}' has no {dict(labels)}. It has: "
            + "; ".join(f"{dim}: {', '.join(map(str, array[dim].values))}" for dim in labels)
            + ". Way out: map the name to another variable with `variables`."
        ) from None


def _numbers(ds: xr.Dataset, name: Hashable) -> FloatArray:
    _check_no_time(ds[name], str(name))
    column = subject_frame(ds, [name])[str(name)]
    if column.dtype.kind not in "biuf":
        raise StatisticsError(
            f"SEM: '{name}' is text; map the name to a variable of numbers, e.g. "
            f"variables={{'{name}': (ds['{name}'] == 'M').astype(float)}}."
        )
    return column.to_numpy(dtype=np.float64)


def _values(array: xr.DataArray, name: str) -> FloatArray:
    _check_no_time(array, name)
    try:
        return np.asarray(array.values, dtype=np.float64)
    except (ValueError, TypeError):
        raise StatisticsError(
            f"SEM: '{name}' must be numbers, got {array.dtype}. Map the name to numbers, e.g. "
            "(ds['sex'] == 'M').astype(float)."
        ) from None


def _check_no_time(array: xr.DataArray, name: str) -> None:
    """Refuse durations and dates: as numbers they hang on their unit, and a gap is a value."""
    # not .dt.days, which makes a number of a gap in lazy values of several chunks
    days = "/ np.timedelta64(1, 'D')"
    ways = {
        "m": f"durations, expected numbers. Give their days: durations {days}",
        "M": f"dates, expected numbers. Give the days since a date: (dates - first) {days}",
    }
    if array.dtype.kind in ways:
        raise StatisticsError(f"SEM: '{name}' holds {ways[array.dtype.kind]}.")


def group_codes(ds: xr.Dataset, groups: Hashable | None) -> npt.NDArray[np.int64]:
    """Give each subject the number of its group, or of its label; -1 where it has no group."""
    if groups is None:
        labels = subject_frame(ds, []).index.to_numpy()
        return np.argsort(np.argsort(labels, kind="stable")).astype(np.int64)
    codes, _ = pd.factorize(subject_frame(ds, [groups])[str(groups)], sort=True)
    return codes.astype(np.int64)
