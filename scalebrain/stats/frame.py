"""The single crossing from a Dataset to a pandas DataFrame.

Everything that needs a table (formulas, semopy, scikit-learn) gets it here, so that text,
flags and missing values look the same to all of them: numbers are NumPy dtypes, text is
``str`` with the missing value of pandas where the Dataset has ``""``, flags are ``bool`` (pandas'
``boolean`` where one is missing), categories of pandas are those that are there, in their order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import flags
from scalebrain.stats.pads import find_pad
from scalebrain.variables import annotate

__all__ = [
    "calibrated_pad",
    "eligible_subjects",
    "ineligible_reasons",
    "lesional_measures",
    "subject_frame",
    "table",
    "tidy_tables",
    "ways_out",
]

_LESIONAL = ("_ipsilesional", "_contralesional")
_IMAGE_DIMS = ("voxel", "vertex")


def subject_frame(
    ds: xr.Dataset,
    names: Iterable[Hashable] | None = None,
    *,
    at: Hashable | None = None,
    dim: Hashable = "region",
) -> pd.DataFrame:
    """One row per subject: subject-level columns and region-wise variables at one region.

    Parameters
    ----------
    ds
        Dataset with a ``subject`` dimension. Only the named variables are loaded; dask
        arrays of `ds` stay lazy.
    names
        Variables or coordinates whose dimensions are a subset of ``(subject, dim)``.
        Default: every such variable (those over `dim` only if `at` is given), dates and
        durations as ISO text.
    at
        Label on `dim` (or position, where `dim` has no labels) at which variables over
        `dim` are taken. A variable over `dim` alone becomes a constant column.
    dim
        The dimension besides ``subject``.

    Returns
    -------
    DataFrame
        Indexed by subject, columns in the order of `names`.

    Raises
    ------
    MissingVariableError
        If a name, `dim` or `at` is not in `ds`.
    StatisticsError
        If a variable has other dimensions, one over `dim` is asked for without `at`, a label is
        on `dim` twice, or a named variable holds dates or durations.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"brain_pad": (("subject", "region"), [[1.0, 2.0], [3.0, 4.0]])},
    ...     coords={
    ...         "subject": ["a", "b"],
    ...         "region": ["SMN_L", "SMN_R"],
    ...         "age": ("subject", [50, 60]),
    ...     },
    ... )
    >>> subject_frame(ds, ["age", "brain_pad"], at="SMN_R")
             age  brain_pad
    subject
    a         50        2.0
    b         60        4.0
    """
    if "subject" not in ds.dims:
        raise MissingVariableError(
            "Dataset: dimension 'subject' is missing. Open a finished store with open_store."
        )
    allowed = {"subject", dim}
    chosen = names is not None
    if names is None:
        names = [
            name
            for name, variable in ds.variables.items()
            if name not in ("subject", dim)
            and variable.dims
            and set(variable.dims) <= allowed
            and (at is not None or dim not in variable.dims)
        ]
    else:
        names = list(names)
    absent = [str(name) for name in names if name not in ds.variables]
    if absent:
        near = sorted(str(n) for n, v in ds.variables.items() if set(v.dims) <= allowed)
        raise MissingVariableError(
            f"Dataset: no variable or coordinate {', '.join(map(repr, absent))}. "
            f"Available over {_show(allowed)}: {', '.join(near)}."
        )
    wrong = [f"'{n}' {ds[n].dims}" for n in names if not set(ds[n].dims) <= allowed]
    if wrong:
        raise StatisticsError(
            f"Variables over other dimensions than {_show(allowed)}: {', '.join(wrong)}. "
            "Select or reduce them first, e.g. ds['tract_load'].sel(tract='CST_L', drop=True)."
        )
    small = _loaded(ds, names)
    if any(dim in small[name].dims for name in names):
        if at is None:
            raise StatisticsError(
                f"Variables over '{dim}' need `at`, the {dim} to take them at: "
                f"{', '.join(repr(str(n)) for n in names if dim in small[n].dims)}."
            )
        small = _select(small, dim, at)
    subjects = _subject_index(ds)
    columns = {}
    for name in names:
        dtype: Any = small[name].dtype
        if isinstance(dtype, pd.CategoricalDtype):
            columns[str(name)] = _categories(small[name], dtype, subjects)
            continue
        values = np.broadcast_to(small[name].values, (len(subjects),))
        if chosen and values.dtype.kind in "mM":
            raise StatisticsError(_no_number(str(name), values.dtype))
        columns[str(name)] = _column(values, subjects)
    return pd.DataFrame(columns, index=subjects)


def eligible_subjects(
    ds: xr.Dataset, *, group: str | None = "stroke", included: Hashable | None = "included"
) -> npt.NDArray[np.bool_]:
    """Subjects of one group that passed the inclusion filter, of an age that models know.

    Parameters
    ----------
    ds
        Dataset with a ``subject`` dimension.
    group
        Value of the variable ``group`` to keep; None, or a Dataset without ``group``,
        keeps all.
    included
        Name of a bool variable over ``subject``; None, or a Dataset without it, leaves nobody
        out by it.

    Returns
    -------
    ndarray
        Bool, one per subject; False where ``extrapolated`` is set, whatever `included` is.
    """
    return np.asarray(ineligible_reasons(ds, group=group, included=included) == "")


def ineligible_reasons(
    ds: xr.Dataset, *, group: str | None = "stroke", included: Hashable | None = "included"
) -> npt.NDArray[np.object_]:
    """Why subjects are not eligible, in words; empty for those of `eligible_subjects`."""
    reason = np.full(ds.sizes["subject"], "", dtype=object)
    if "extrapolated" in ds.variables:
        reason[flags(ds, "extrapolated")] = "age extrapolated"
    if included is not None and included in ds.variables:
        reason[~flags(ds, included)] = f"not {included}"
    if group is not None and "group" in ds.variables:
        other = [str(value) != group for value in ds["group"].values]
        reason[np.array(other, dtype=np.bool_)] = f"not in group '{group}'"
    return reason


def calibrated_pad(ds: xr.Dataset) -> xr.DataArray:
    """``brain_pad_corrected / calibration_slope``: the deviation in true years.

    The age-bias correction shrinks a true deviation by ``calibration_slope``; dividing by
    it undoes that, so that regions of different slope can be averaged and compared. A
    slope that is missing or not positive gives missing values. Imported ages whose slope is
    not known are not divided, and where their age bias was not corrected, it is
    ``brain_pad``.

    Parameters
    ----------
    ds
        Dataset with ``brain_pad_corrected (subject, region)`` and ``calibration_slope``, or
        with the ages of another tool.

    Returns
    -------
    DataArray
        ``(subject, region)``, years.

    Raises
    ------
    MissingVariableError
        If one of the two is missing.
    """
    found = find_pad(ds)
    if found.is_global:  # no region has one of its own
        _require(ds, "brain_pad_corrected")
    _require(ds, found.name, *(["calibration_slope"] if found.has_slope else []))
    pad: xr.DataArray = ds[found.name]
    if found.has_slope:
        pad = pad / ds["calibration_slope"].where(ds["calibration_slope"] > 0)
    return pad.transpose("subject", "region").drop_vars(
        [name for name in pad.coords if name not in pad.dims]
    )


def lesional_measures(
    ds: xr.Dataset, names: Sequence[str], needed: npt.NDArray[np.bool_] | None = None
) -> xr.Dataset:
    """Small region- and tract-wise variables, in memory, on ipsi- and contralesional sides.

    Parameters
    ----------
    ds
        Dataset with native sides (relabeled here by
        :func:`scalebrain.features.laterality.to_lesional_sides`) or lesional ones.
    names
        Any of ``brain_pad_corrected`` (returned as :func:`calibrated_pad` gives it),
        ``lesion_load``, ``tract_load``, ``tract_load_weighted`` and ``tract_load_max``.
    needed
        (subject,) whose lesioned side has to be understood; everyone's when None.

    Returns
    -------
    Dataset
        The named variables; ``region`` and ``tract`` end in ``_ipsilesional`` or
        ``_contralesional``.

    Raises
    ------
    MissingVariableError
        If a variable is missing, with the stage that computes it.
    """
    _require(ds, *[name for name in names if name != "brain_pad_corrected"])
    small = xr.Dataset(coords={"subject": ds["subject"]} if "subject" in ds.coords else None)
    for name in names:
        if name == "brain_pad_corrected":
            small[name] = calibrated_pad(ds)
        else:
            source = ds[name]
            small[name] = source.drop_vars([c for c in source.coords if c not in source.dims])
    sided = [dim for dim in ("region", "tract") if dim in small.dims]
    native = [
        dim
        for dim in sided
        if not all(str(label).endswith(_LESIONAL) for label in small[dim].values)
    ]
    if native:
        _require(ds, "lesion_hemisphere")
        small["lesion_hemisphere"] = ds["lesion_hemisphere"].drop_vars(
            [c for c in ds["lesion_hemisphere"].coords if c != "subject"]
        )
    small = small.compute()
    if native:
        from scalebrain.features.laterality import lesioned_sides, to_lesional_sides

        small["lesion_hemisphere"] = ("subject", lesioned_sides(small, needed))
        part = small.drop_dims([dim for dim in sided if dim not in native])
        small = small.drop_dims(native).drop_vars("lesion_hemisphere")
        small = small.merge(to_lesional_sides(part)[[n for n in names if n in part]])
    return small[list(names)]


def table(
    ds: xr.Dataset, names: str | Iterable[Hashable] | None = None, *, wide: bool = False
) -> pd.DataFrame:
    """Tidy table: one row a subject, or a subject and region (tract, node, term, ...).

    Parameters
    ----------
    ds
        Dataset of a store or of a result. Only what is named is loaded.
    names
        Variables. One of them has all dimensions of the table; those of fewer dimensions are
        repeated, as the age of a subject in each of its regions. Default: everything over
        ``subject`` alone.
    wide
        One row a subject, and a column for each label of the other dimension,
        ``brain_pad_SMN_L``.

    Returns
    -------
    DataFrame
        One column a dimension, then one a name, in that order; rows in the order of `ds`. Dates
        and durations are text as ISO 8601 has it.
        ``attrs["units"]`` and ``attrs["long_name"]`` hold those of the columns that have one,
        ``attrs["simulated"]`` whether the people were simulated.

    Raises
    ------
    MissingVariableError
        If a name is not in `ds`.
    StatisticsError
        If no variable has all the dimensions (as a region's beside a tract's), for images, if
        a label of a dimension is there twice, or if `wide` has no other dimension.
    """
    if names is None:
        names = [n for n, v in ds.variables.items() if v.dims == ("subject",) and n != "subject"]
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    absent = [str(name) for name in names if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: no variable {', '.join(map(repr, absent))}. It has: "
            f"{', '.join(sorted(map(str, ds.variables)))}."
        )
    dims = max((ds[name].dims for name in names), key=len, default=())
    images = [dim for name in names for dim in ds[name].dims if dim in _IMAGE_DIMS]
    if images:
        raise StatisticsError(
            f"A table over '{images[0]}' has a row for each of {ds.sizes[images[0]]} points. "
            "Reduce images first, e.g. with parcellate, or see them with unpack."
        )
    other = [f"'{name}' {ds[name].dims}" for name in names if not set(ds[name].dims) <= set(dims)]
    if other or not dims:
        raise StatisticsError(
            f"A table over {_show(dims)} cannot hold {', '.join(other) or 'numbers alone'}. Make "
            "one table for each set of dimensions."
        )
    small = _loaded(ds, names)
    labels = {dim: _labels(small, dim) for dim in dims}
    for dim, index in labels.items():
        if not index.is_unique:
            raise StatisticsError(
                f"'{index[index.duplicated()][0]}' is on dimension '{dim}' twice, so that rows "
                "could not be told apart. Select one of them."
            )
    shape = tuple(len(index) for index in labels.values())
    rows = pd.MultiIndex.from_product(list(labels.values()), names=list(map(str, dims)))
    full = xr.Variable(dims, np.empty(shape, dtype=np.bool_))
    columns = {}
    for name in (n for n in names if n not in dims):
        values = small[name].variable.set_dims(dict(zip(full.dims, shape, strict=True)))
        flat = values.transpose(*dims).values.reshape(-1)
        columns[str(name)] = _column(flat, pd.RangeIndex(flat.size)).set_axis(rows)
    out = pd.DataFrame(columns, index=rows)
    if not wide:
        return _described(out.reset_index(), ds, {column: column for column in columns})
    rest = [dim for dim in dims if dim != "subject"]
    if "subject" not in dims or len(rest) != 1:
        raise StatisticsError(
            f"A wide table has a column for each label of one dimension, got {_show(dims)}. Name a "
            "variable over subject and one other dimension."
        )
    parts, origin = {}, {}
    for name in columns:
        if "subject" not in ds[name].dims or len(ds[name].dims) == 1:
            parts[name] = out[name].groupby(level="subject", sort=False).first()
            if "subject" not in ds[name].dims:
                raise StatisticsError(f"'{name}' is not of subjects. Leave it out of a wide table.")
            origin[name] = name
            continue
        spread = out[name].unstack(str(rest[0]))
        spread = spread.reindex(index=labels["subject"], columns=labels[rest[0]])
        for label in spread.columns:
            parts[f"{name}_{label}"] = spread[label]
            origin[f"{name}_{label}"] = name
    return _described(pd.DataFrame(parts).reset_index(names="subject"), ds, origin)


def tidy_tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """One long table for every combination of dimensions in a small Dataset.

    Parameters
    ----------
    ds
        Result of statistics, in memory.

    Returns
    -------
    dict of DataFrame
        By the names of the dimensions joined by ``_``; ``summary`` holds the numbers without
        one, as ``name`` and ``value``. Coordinates along a dimension that are not its labels
        are columns too. Rows of people of whom a model says nothing are left out.
    """
    groups: dict[tuple[Hashable, ...], list[Hashable]] = {}
    for name, variable in ds.data_vars.items():
        groups.setdefault(variable.dims, []).append(name)
    tables = {}
    for dims, names in sorted(groups.items(), key=lambda group: tuple(map(str, group[0]))):
        if not dims:
            row = {str(name): ds[name].item() for name in names}
            tables["summary"] = pd.DataFrame({"name": list(row), "value": list(row.values())})
            continue
        along = [c for c in ds.coords if c not in dims and set(ds[c].dims) <= set(dims)]
        chosen = ds[names].drop_vars([c for c in ds[names].coords if c not in dims])
        frame = chosen.to_dataframe(dim_order=list(dims))
        if "subject" in dims and len(dims) > 1:
            frame = frame.dropna(how="all")
        frame = frame.reset_index()
        for place, coordinate in enumerate(c for c in along if ds[c].ndim == 1):
            (dim,) = ds[coordinate].dims
            values = dict(zip(ds[dim].values.tolist(), ds[coordinate].values, strict=True))
            frame.insert(len(dims) + place, str(coordinate), frame[str(dim)].map(values))
        tables["_".join(map(str, dims))] = frame
    return tables


def _labels(small: xr.Dataset, dim: Hashable) -> pd.Index[Any]:
    """Labels of a dimension, or positions where it has none."""
    if dim not in small.coords:
        return pd.RangeIndex(small.sizes[dim], name=str(dim))
    values = small[dim].values
    labels = values.astype(str) if values.dtype.kind in "UOT" else values
    index: pd.Index[Any] = pd.Index(labels, name=str(dim))
    return index


def _described(frame: pd.DataFrame, ds: xr.Dataset, origin: Mapping[str, str]) -> pd.DataFrame:
    """Put units and long names of the columns into the attributes of a table."""
    known = annotate(ds[list(dict.fromkeys(origin.values()))]) if origin else ds
    for key in ("units", "long_name"):
        frame.attrs[key] = {
            column: str(known[name].attrs[key])
            for column, name in origin.items()
            if key in known[name].attrs
        }
    frame.attrs["simulated"] = str(ds.attrs.get("simulated", "false")).lower() == "true"
    return frame


_WAY_OUT: Mapping[str, str] = {
    "brain_pad_corrected": "run the predict stage: brain_age(ds, model), or import_ages",
    "calibration_slope": "run the predict stage: brain_age(ds, model)",
    "lesion_load": "run the features stage: lesion_load(ds)",
    "tract_load": "run the features stage: tract_load(ds)",
    "tract_load_weighted": "run the features stage: tract_load(ds)",
    "tract_load_max": "run the features stage: tract_load(ds)",
    "lesion_hemisphere": "ingest lesion masks, or give the side yourself",
    "lesion_volume": "run the features stage: lesion_volume(ds)",
    "motor_score": "add a motor score to participants.tsv and ingest again",
}
#: Variables that the ingest reads from participants.tsv, where it has their column.
_OF_TABLE = (
    "age",
    "sex",
    "cohort",
    "group",
    "days_post_stroke",
    "icv",
    "motor_score",
    "motor_scale",
)


def ways_out(names: Iterable[Hashable]) -> str:
    """How missing variables over ``subject`` come into a Dataset, in words."""
    named = list(dict.fromkeys(map(str, names)))
    table = [name for name in named if name in _OF_TABLE and name not in _WAY_OUT]
    own = [name for name in named if name not in _OF_TABLE and name not in _WAY_OUT]
    ways = [_WAY_OUT[name] for name in named if name in _WAY_OUT]
    if table:
        ways.append(f"add {', '.join(table)} to participants.tsv and ingest again")
    if own:
        ways.append(
            f"add {', '.join(map(repr, own))} with ds.assign, or save_store to keep it (of "
            "participants.tsv only the columns of docs/inputs.md are read)"
        )
    return "; ".join(dict.fromkeys(ways))


def _require(ds: xr.Dataset, *names: str) -> None:
    absent = [name for name in names if name not in ds.variables]
    if absent:
        ways = dict.fromkeys(_WAY_OUT.get(name, "compute it first") for name in absent)
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. "
            f"Way out: {'; '.join(ways)}, or name your own variables."
        )


def _show(dims: Iterable[Hashable]) -> str:
    return "(" + ", ".join(sorted(map(str, dims), reverse=True)) + ")"


def _loaded(ds: xr.Dataset, names: Iterable[Hashable]) -> xr.Dataset:
    """Only the named variables and the labels of their dimensions, in memory."""
    wanted = list(dict.fromkeys(names))
    dims = {dim for name in wanted for dim in ds[name].dims}
    keep = set(wanted) | dims
    for dim in dims & set(ds.indexes):
        keep |= set(ds.xindexes.get_all_coords(dim))  # of several levels, perhaps
    return ds.drop_vars([name for name in ds.variables if name not in keep]).compute()


def _select(small: xr.Dataset, dim: Hashable, at: Hashable) -> xr.Dataset:
    if dim not in small.indexes:
        return small.isel({dim: at})
    index = small.indexes[dim]
    if not index.is_unique:
        raise StatisticsError(
            f"'{index[index.duplicated()][0]}' is on dimension '{dim}' twice, so that it cannot be "
            "told which is meant. Select one of them, or give them labels of their own."
        )
    try:
        return small.sel({dim: at})
    except KeyError:
        labels = [str(label) for label in small[dim].values[:20]]
        raise MissingVariableError(
            f"'{at}' is not on dimension '{dim}'. It has: {', '.join(labels)}."
        ) from None


def _subject_index(ds: xr.Dataset) -> pd.Index[Any]:
    if "subject" in ds.coords:
        return pd.Index([str(label) for label in ds["subject"].values], name="subject")
    return pd.RangeIndex(ds.sizes["subject"], name="subject")


def _column(values: npt.NDArray[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """Make a column of numbers, flags or text; ``""`` and None are missing text."""
    if values.dtype.kind in "biufc":
        return pd.Series(values.copy(), index=index)
    if values.dtype.kind in "mM":
        return pd.Series(_iso(values), index=index, dtype=object)
    items = [_plain(value) for value in values.tolist()]
    present = [item for item in items if item is not None]
    if present and all(isinstance(item, bool) for item in present):
        kind = "bool" if len(present) == len(items) else "boolean"
        return pd.Series(items, index=index, dtype=kind)
    if present and all(isinstance(item, (int, float)) for item in present):
        return pd.Series(np.array(items, dtype=np.float64), index=index)
    text = [None if item is None else str(item) for item in items]
    return pd.Series(text, index=index, dtype=None if present else object)


def _categories(
    array: xr.DataArray, dtype: pd.CategoricalDtype, index: pd.Index[Any]
) -> pd.Series[Any]:
    """Make a column of the categories that are there, in their order, of text but for numbers."""
    values = np.broadcast_to(np.asarray(array.values, dtype=object), (len(index),))
    order = {_level(label): None for label in dtype.categories.tolist()}
    column = pd.Categorical(
        [_level(value) for value in values.tolist()],
        categories=[label for label in order if label is not None],
        ordered=dtype.ordered,
    )
    return pd.Series(column.remove_unused_categories(), index=index)


def _level(value: object) -> object:
    plain = _plain(value)
    return plain if plain is None or isinstance(plain, (str, int, float)) else str(plain)


def _no_number(name: str, dtype: np.dtype[Any]) -> str:
    """Say what to do about dates and durations."""
    if dtype.kind == "m":
        return (
            f"'{name}' holds durations ({dtype}), expected numbers, flags or text. Make days of "
            f"them: ds['{name}'] / np.timedelta64(1, 'D')."
        )
    return (
        f"'{name}' holds dates ({dtype}), expected numbers, flags or text. Make days of them, e.g. "
        f"(ds['{name}'] - ds['{name}'].min()) / np.timedelta64(1, 'D'), or text: "
        f"ds['{name}'].dt.strftime('%Y-%m')."
    )


def _iso(values: npt.NDArray[Any]) -> list[str | None]:
    """Dates and durations as ISO 8601 has them; None where missing."""
    there = ~np.isnat(values)
    out: list[str | None] = [None] * values.size
    if values.dtype.kind == "M":
        text = np.datetime_as_string(values[there], unit="auto").tolist()
    else:
        text = [pd.Timedelta(value).isoformat() for value in values[there]]
    for place, one in zip(np.flatnonzero(there).tolist(), text, strict=True):
        out[place] = one
    return out


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value else None
    return None if value is pd.NA else value
