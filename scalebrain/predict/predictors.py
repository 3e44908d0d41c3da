"""Predictors of motor outcome, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.stats.frame import lesional_measures, subject_frame
from scalebrain.stats.pads import find_pad

__all__ = ["FEATURE_GROUPS", "build_predictors"]

#: Groups that can be named; ``combined`` holds the predictors of all other chosen groups.
FEATURE_GROUPS: tuple[str, ...] = ("clinical", "lesion", "brain_age", "combined")

_TRACT_LOADS = ("tract_load", "tract_load_weighted", "tract_load_max")


def build_predictors(
    ds: xr.Dataset, feature_groups: Sequence[str] | Mapping[str, Sequence[str]]
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Make one column per predictor and list the columns of each group.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    feature_groups
        Names out of :data:`FEATURE_GROUPS`, or a mapping from a name to variables over
        ``subject`` (numbers, flags, or text of two values).

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
        If a group is unknown or empty.

    Notes
    -----
    ``clinical``: age, sex_male, days_post_stroke. ``lesion``: log10 of the lesion volume,
    the lesion load of each ipsi- and contralesional region, and three loads of the
    ipsilesional corticospinal tract. ``brain_age``: brain_pad_corrected /
    calibration_slope of each ipsi- and contralesional region; of imported ages what
    :func:`scalebrain.stats.pads.find_pad` finds. A subject without a lesioned
    side is missing there, and imputed inside the folds.
    """
    if isinstance(feature_groups, str):
        feature_groups = [feature_groups]
    if isinstance(feature_groups, Mapping):
        parts = {name: _named(ds, columns) for name, columns in feature_groups.items()}
        combine = len(parts) > 1 and "combined" not in parts
    else:
        unknown = [name for name in feature_groups if name not in FEATURE_GROUPS]
        if unknown:
            raise ConfigError(
                f"Unknown feature groups {unknown}. Choose from {', '.join(FEATURE_GROUPS)}, or "
                "pass a mapping from a name to variables over subject."
            )
        combine = "combined" in feature_groups
        chosen = [name for name in feature_groups if name != "combined"] or list(FEATURE_GROUPS[:3])
        makers = {"clinical": _clinical, "lesion": _lesion, "brain_age": _brain_age}
        parts = {name: makers[name](ds) for name in chosen}
        if list(feature_groups) == ["combined"]:
            parts = {"combined": _joined(list(parts.values()))}
            combine = False
    empty = [name for name, part in parts.items() if part.shape[1] == 0]
    if empty or not parts:
        raise ConfigError(f"Feature groups without predictors: {empty or 'none was named'}.")
    table = _joined(list(parts.values()))
    groups = {name: list(part.columns) for name, part in parts.items()}
    if combine:
        groups["combined"] = list(table.columns)
    return table, groups


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def _clinical(ds: xr.Dataset) -> pd.DataFrame:
    frame = _subject_table(ds, ["age", "sex", "days_post_stroke"])
    sex = frame["sex"].map({"F": 0.0, "M": 1.0}).astype(np.float64)
    return pd.DataFrame(
        {"age": frame["age"], "sex_male": sex, "days_post_stroke": frame["days_post_stroke"]}
    ).astype(np.float64)


def _lesion(ds: xr.Dataset) -> pd.DataFrame:
    volume = _subject_table(ds, ["lesion_volume"])["lesion_volume"].astype(np.float64)
    columns = {"log10_lesion_volume": np.log10(volume.where(volume > 0))}
    measures = lesional_measures(ds, ["lesion_load", *_TRACT_LOADS])
    columns |= _by_label(measures["lesion_load"], "region")
    for name in _TRACT_LOADS:
        own = [t for t in measures["tract"].values if str(t).endswith("_ipsilesional")]
        columns |= _by_label(measures[name].sel(tract=own), "tract")
    return pd.DataFrame({k: np.asarray(v) for k, v in columns.items()}, index=volume.index)


def _brain_age(ds: xr.Dataset) -> pd.DataFrame:
    index = subject_frame(ds, []).index
    found = find_pad(ds)
    if found.is_global:
        return _subject_table(ds, [found.name]).astype(np.float64)
    pad = lesional_measures(ds, ["brain_pad_corrected"])["brain_pad_corrected"]
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
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: add it to "
            "participants.tsv and ingest again, or leave its group out of `feature_groups`."
        )
    return subject_frame(ds, names)


def _named(ds: xr.Dataset, names: Sequence[str]) -> pd.DataFrame:
    frame = subject_frame(ds, list(names))
    for name in frame.columns:
        column = frame[name]
        if column.dtype.kind in "biuf":
            continue
        levels = sorted(column.dropna().unique())
        if len(levels) > 2:
            raise StatisticsError(
                f"Predictor '{name}' is text of {len(levels)} values; make a number or a flag of "
                "it first."
            )
        frame[name] = column.map({level: float(k) for k, level in enumerate(levels)})
    return frame.astype(np.float64).replace([np.inf, -np.inf], np.nan)
