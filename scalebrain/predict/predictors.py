"""Predictors of motor outcome, by group."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.features.inclusion import texts
from scalebrain.stats.frame import lesional_measures, subject_frame, ways_out
from scalebrain.stats.pads import find_pad

__all__ = ["FEATURE_GROUPS", "build_predictors", "check_not_the_outcome", "sex_male"]

#: Groups that can be named; ``combined`` holds the predictors of all other chosen groups, and
#: ``extra`` those that the user adds.
FEATURE_GROUPS: tuple[str, ...] = ("clinical", "lesion", "brain_age", "extra", "combined")

_TRACT_LOADS = ("tract_load", "tract_load_weighted", "tract_load_max")


def build_predictors(
    ds: xr.Dataset,
    feature_groups: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    extra: pd.DataFrame | pd.Series[Any] | xr.Dataset | None = None,
    needed: npt.NDArray[np.bool_] | None = None,
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Make one column per predictor and list the columns of each group.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    feature_groups
        Names out of :data:`FEATURE_GROUPS`, or a mapping from a name to variables over
        ``subject`` (numbers, flags, or text of two values). Default: every name; ``extra``
        where it is given.
    extra
        Predictors of the user: a table (or a Series that has a name) indexed by subject, or a
        Dataset over ``subject``, or over ``subject`` and one further dimension.
    needed
        (subject,) who is used; everyone when None. They must have a row of `extra`, and a sex and
        a lesioned side that are understood, or missing.

    Returns
    -------
    predictors
        float64, indexed by subject.
    groups
        Columns of each group; ``combined`` comes last. A mapping of two or more groups gets
        one as well.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    ConfigError
        If a group is unknown or empty, or ``extra`` is named and not given, or no table.
    StatisticsError
        If subjects of `extra` are unknown, repeated or absent, or its columns are no numbers
        or have the name of another predictor; if a predictor is infinite, or a sex is neither F
        nor M.

    Notes
    -----
    ``clinical``: age, sex_male, days_post_stroke. ``lesion``: log10 of the lesion volume,
    the lesion load of each ipsi- and contralesional region, and three loads of the
    ipsilesional corticospinal tract. ``brain_age``: brain_pad_corrected /
    calibration_slope of each ipsi- and contralesional region; of imported ages what
    :func:`scalebrain.stats.pads.find_pad` finds. A subject without a lesioned
    side is missing there, and imputed inside the folds.

    `extra` is joined exactly: what is not known of someone has to stand there as missing
    (NaN, n/a), and is then imputed inside the folds.
    """
    if isinstance(extra, pd.Series) and extra.name is not None:
        extra = extra.to_frame()
    if extra is not None and not isinstance(extra, pd.DataFrame | xr.Dataset):
        raise ConfigError(
            "extra must be a table indexed by subject, a Series that has a name, or a Dataset over "
            f"subject, got {type(extra).__name__}. Read a file with pandas.read_csv(path, "
            "sep='\\t', index_col='subject', dtype={'subject': str})."
        )
    if isinstance(feature_groups, str):
        feature_groups = [feature_groups]
    if feature_groups is None:
        feature_groups = [name for name in FEATURE_GROUPS if name != "extra" or extra is not None]
    if isinstance(feature_groups, Mapping):
        parts = {
            name: _named(ds, [columns] if isinstance(columns, str) else columns)
            for name, columns in feature_groups.items()
        }
        if extra is not None:
            if "extra" in parts:
                raise ConfigError("A group of the mapping is named 'extra', beside `extra`.")
            parts["extra"] = _extra(ds, extra, needed)
        combine = len(parts) > 1 and "combined" not in parts
    else:
        parts, combine = _chosen(ds, feature_groups, extra, needed)
    empty = [name for name, part in parts.items() if part.shape[1] == 0]
    if empty or not parts:
        raise ConfigError(f"Feature groups without predictors: {empty or 'none was named'}.")
    if "extra" in parts:
        others = {name for group, part in parts.items() if group != "extra" for name in part}
        twice = [str(name) for name in parts["extra"] if name in others]
        if twice:
            raise StatisticsError(
                f"extra: {_listed(twice)} is a predictor of another group. Rename the columns."
            )
    table = _joined(list(parts.values()))
    _check_finite(table if needed is None else table[needed])
    groups = {name: list(part.columns) for name, part in parts.items()}
    if combine:
        groups["combined"] = list(table.columns)
    return table, groups


def _chosen(
    ds: xr.Dataset,
    names: Sequence[str],
    extra: pd.DataFrame | xr.Dataset | None,
    needed: npt.NDArray[np.bool_] | None,
) -> tuple[dict[str, pd.DataFrame], bool]:
    """Tables of the named groups, and whether they are combined as well."""
    unknown = [name for name in names if name not in FEATURE_GROUPS]
    if unknown:
        raise ConfigError(
            f"Unknown feature groups {unknown}. Choose from {', '.join(FEATURE_GROUPS)}, or "
            "pass a mapping from a name to variables over subject."
        )
    if "extra" in names and extra is None:
        raise ConfigError("Feature group 'extra' was named, but no `extra` predictors were given.")
    makers = {"clinical": _clinical, "lesion": _lesion, "brain_age": _brain_age}
    chosen = [name for name in names if name != "combined"] or [
        *makers,
        *(["extra"] if extra is not None else []),
    ]
    if extra is not None and "extra" not in chosen:
        raise ConfigError("`extra` predictors were given, but 'extra' is not in `feature_groups`.")
    parts = {
        name: _extra(ds, extra, needed)
        if name == "extra" and extra is not None
        else makers[name](ds, needed)
        for name in chosen
    }
    if list(names) == ["combined"]:
        return {"combined": _joined(list(parts.values()))}, False
    return parts, "combined" in names and len(parts) > 1


def check_not_the_outcome(table: pd.DataFrame, y: npt.NDArray[np.float64], target: str) -> None:
    """Refuse predictors that are the outcome itself.

    Parameters
    ----------
    table
        Predictors of the rows used.
    y
        Outcome of the same rows.
    target
        Its name.

    Raises
    ------
    StatisticsError
        If a predictor has the name of the outcome, or is an exact line of it.
    """
    bad = []
    for name in table:
        x = table[name].to_numpy(dtype=np.float64)
        known = np.isfinite(x)
        varies = known.sum() > 3 and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0
        if name == target or (varies and abs(np.corrcoef(x[known], y[known])[0, 1]) > 1 - 1e-9):
            bad.append(str(name))
    if bad:
        raise StatisticsError(
            f"Predictors {_listed(bad)} are the target '{target}' itself, up to scale. Leave them "
            "out."
        )


def sex_male(
    ds: xr.Dataset, needed: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Read the sex of everyone as a number.

    Parameters
    ----------
    ds
        Dataset; `sex` is used where it has it.
    needed
        (subject,) whose sex is used; everyone's when None.

    Returns
    -------
    ndarray
        (subject,) 1 for M, 0 for F, missing where it is not known.

    Raises
    ------
    StatisticsError
        If a sex that is used is neither F nor M nor missing.
    """
    sex = texts(ds, "sex")
    other = ~np.isin(sex, ("F", "M", ""))
    if needed is not None:
        other &= needed
    if other.any():
        labels = ds["subject"].values[other] if "subject" in ds.coords else np.flatnonzero(other)
        raise StatisticsError(
            f"sex: expected F, M or missing, got {_listed(np.unique(sex[other]).tolist())} in "
            f"{int(other.sum())} subjects, as {labels[0]}. Write F or M."
        )
    return np.select([sex == "M", sex == "F"], [1.0, 0.0], np.nan)


def _check_finite(table: pd.DataFrame) -> None:
    """Refuse infinite values, which no median stands for."""
    counts = np.isinf(table.to_numpy(dtype=np.float64)).sum(axis=0)
    if counts.any():
        told = [f"'{n}': {count}" for n, count in zip(table, counts, strict=True) if count]
        more = f" and {len(told) - 10} more" if len(told) > 10 else ""
        raise StatisticsError(
            f"Predictors with infinite values ({', '.join(told[:10])}{more}). Set them missing "
            "(NaN) where nothing is known, or, as the logarithm of zero, to a number that you "
            "choose."
        )


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def _clinical(ds: xr.Dataset, needed: npt.NDArray[np.bool_] | None) -> pd.DataFrame:
    frame = _subject_table(ds, ["age", "sex", "days_post_stroke"])
    days = frame["days_post_stroke"]
    male = sex_male(ds, needed)
    table = pd.DataFrame({"age": frame["age"], "sex_male": male, "days_post_stroke": days})
    return table.astype(np.float64)


def _lesion(ds: xr.Dataset, needed: npt.NDArray[np.bool_] | None) -> pd.DataFrame:
    volume = _subject_table(ds, ["lesion_volume"])["lesion_volume"].astype(np.float64)
    columns = {"log10_lesion_volume": np.log10(volume.where(volume > 0))}
    measures = lesional_measures(ds, ["lesion_load", *_TRACT_LOADS], needed)
    columns |= _by_label(measures["lesion_load"], "region")
    for name in _TRACT_LOADS:
        own = [t for t in measures["tract"].values if str(t).endswith("_ipsilesional")]
        columns |= _by_label(measures[name].sel(tract=own), "tract")
    return pd.DataFrame({k: np.asarray(v) for k, v in columns.items()}, index=volume.index)


def _brain_age(ds: xr.Dataset, needed: npt.NDArray[np.bool_] | None) -> pd.DataFrame:
    index = subject_frame(ds, []).index
    found = find_pad(ds)
    if found.is_global:
        return _subject_table(ds, [found.name]).astype(np.float64)
    pad = lesional_measures(ds, ["brain_pad_corrected"], needed)["brain_pad_corrected"]
    # an imported table need not have every region
    pad = pad.isel(region=np.flatnonzero(np.isfinite(pad.values).any(axis=0)))
    return pd.DataFrame(_by_label(pad.rename(found.name), "region"), index=index)


def _by_label(array: xr.DataArray, dim: str) -> dict[str, npt.NDArray[np.float64]]:
    values = array.transpose("subject", dim).values.astype(np.float64)
    return {f"{array.name}:{label}": values[:, k] for k, label in enumerate(array[dim].values)}


def _subject_table(ds: xr.Dataset, names: list[str]) -> pd.DataFrame:
    absent = [name for name in names if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: "
            f"{ways_out(absent)}; or leave its group out of `feature_groups`."
        )
    return subject_frame(ds, names)


def _named(ds: xr.Dataset, names: Sequence[str]) -> pd.DataFrame:
    return _numeric(subject_frame(ds, list(names)), "Predictor")


def _extra(
    ds: xr.Dataset,
    extra: pd.DataFrame | xr.Dataset,
    needed: npt.NDArray[np.bool_] | None,
) -> pd.DataFrame:
    """Rows of the user's predictors in the order of the store, every one of them found."""
    table = _flat(extra) if isinstance(extra, xr.Dataset) else extra.copy()
    table.index = table.index.map(str)
    table.columns = [str(name) for name in table.columns]
    subjects = subject_frame(ds, []).index.map(str)
    twice = sorted(set(table.index[table.index.duplicated()]))
    if twice:
        raise StatisticsError(f"extra: several rows of {_listed(twice)}. Keep one row a subject.")
    if not table.columns.is_unique:
        again = sorted(set(table.columns[table.columns.duplicated()]))
        raise StatisticsError(f"extra: several columns {_listed(again)}. Rename them.")
    known, given = set(subjects), set(table.index)
    unknown = [name for name in table.index if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(subjects), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" It has ids such as '{subjects[0]}'."
        raise StatisticsError(
            f"extra: the store has no subject {_listed(unknown)}.{hint} Use its ids, and leave "
            "the rows of others out."
        )
    wanted = subjects if needed is None else subjects[needed]
    absent = [name for name in wanted if name not in given]
    if absent:
        raise StatisticsError(
            f"extra: no row of {len(absent)} subjects that are used: {_listed(absent)}. Add a row "
            "each, with missing values (NaN, in a file n/a) where nothing is known."
        )
    return _numeric(table.reindex(subjects), "extra: column")


def _flat(extra: xr.Dataset) -> pd.DataFrame:
    """One column a variable, or a variable and label of its second dimension."""
    if "subject" not in extra.coords:
        raise StatisticsError("extra: the Dataset has no coordinate 'subject' with ids.")
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, array in extra.data_vars.items():
        if "subject" not in array.dims or array.ndim > 2:
            raise StatisticsError(
                f"extra: '{name}' has the dimensions {array.dims}, expected subject, or subject "
                "and one more. Stack or drop the others."
            )
        other = [dim for dim in array.dims if dim != "subject"]
        values = array.transpose("subject", *other).values
        if not other:
            columns[str(name)] = values
            continue
        labels = (
            array[other[0]].values if other[0] in array.coords else range(array.sizes[other[0]])
        )
        columns |= {f"{name}:{label}": values[:, k] for k, label in enumerate(labels)}
    return pd.DataFrame(columns, index=pd.Index(extra["subject"].values.astype(str)))


def _numeric(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """Numbers as they are; flags and text of two values as 0 and 1."""
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind not in "biuf":
            column = column.map(_known)
            levels = sorted(column.dropna().unique(), key=str)
            if all(
                isinstance(level, bool | np.bool_ | int | float | np.number) for level in levels
            ):
                pass
            elif len(levels) > 2:
                raise StatisticsError(
                    f"{what} '{name}' is text of {len(levels)} values; make a number or a flag of "
                    "it first."
                )
            else:
                column = column.map({level: float(k) for k, level in enumerate(levels)})
        columns[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return pd.DataFrame(columns, index=frame.index)


def _known(value: Any) -> Any:
    """Make None of what is missing, whatever it is missing as."""
    return None if pd.isna(value) or value == "" else value


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
