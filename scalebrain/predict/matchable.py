"""Who can be matched: what pairs are made of, one row a person."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people, texts
from scalebrain.features.laterality import lesioned_sides, to_lesional_sides
from scalebrain.predict.matching import Candidates
from scalebrain.predict.paired import weighted_moments
from scalebrain.predict.predictors import sex_male
from scalebrain.stats.frame import lesional_measures, subject_frame, ways_out

__all__ = [
    "candidates_of",
    "couples",
    "in_order",
    "matchable_people",
    "scan_weights",
    "spread_of_people",
    "usable_people",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LESIONAL = re.compile(r"_[LR]$")
_ENDS = {"_L": "_ipsilesional", "_R": "_contralesional"}
_SIDED = (
    "lesion_load",
    "tract_load",
    "tract_load_weighted",
    "tract_load_max",
    "brain_pad_corrected",
)


def matchable_people(
    ds: xr.Dataset,
    contrast: str,
    outcome: Hashable,
    cohort: Hashable,
    *,
    eligible: BoolArray,
    asked: BoolArray | None = None,
    same_side: bool = True,
) -> pd.DataFrame:
    """Gather what is matched, contrasted and compared, one row a subject.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    contrast
        Variable over ``subject``, or ``variable:label``.
    outcome, cohort
        Variables over ``subject``.
    eligible
        (subject,) who may be paired at all.
    asked
        (subject,) who is asked about besides, whatever they lack.
    same_side
        Whether the lesioned side has to be known.

    Returns
    -------
    DataFrame
        ``log10_lesion_volume``, ``age``, ``sex_male``, ``log10_days_post_stroke``, ``side``,
        ``cohort``, ``outcome``, ``value`` (of the contrast) and ``person``, by subject.

    Raises
    ------
    MissingVariableError
        If a variable or a label is missing; of cohorts, one that is not the default.
    ConfigError
        If the contrast is a volume, has other dimensions, or is of a native side.
    StatisticsError
        If the outcome or the contrast is text, or a sex or a side of someone who may be paired,
        or is asked about, is written otherwise.
    """
    sides = ["lesion_hemisphere"] if same_side else []
    needed = ["lesion_volume", "age", *sides, outcome]
    absent = [str(name) for name in needed if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: "
            f"{ways_out(absent)}; or name another `outcome`."
        )
    if cohort != "cohort" and cohort not in ds.variables:
        raise MissingVariableError(
            f"Dataset: variable '{cohort}' is missing. Way out: {ways_out([cohort])}; or name "
            "another `cohort`."
        )
    names = [*needed, *(["days_post_stroke"] if "days_post_stroke" in ds.variables else [])]
    frame = subject_frame(ds, list(dict.fromkeys(names)))
    if frame[str(outcome)].dtype.kind not in "biuf":
        raise StatisticsError(f"Outcome '{outcome}' is text; numbers are needed.")

    def numbers(name: str, positive: bool = False) -> pd.Series[float]:
        if name not in frame:
            return pd.Series(np.nan, index=frame.index)
        column = frame[name].astype(np.float64)
        if not positive:
            return column
        return pd.Series(np.log10(column.where(column > 0).to_numpy()), index=frame.index)

    volume, age = numbers("lesion_volume", positive=True), numbers("age")
    outcomes = numbers(str(outcome))
    used = eligible & np.isfinite((volume + age + outcomes).to_numpy())
    used = used if asked is None else used | asked
    return pd.DataFrame(
        {
            "log10_lesion_volume": volume,
            "age": age,
            "sex_male": sex_male(ds, used),
            "log10_days_post_stroke": numbers("days_post_stroke", positive=True),
            "side": lesioned_sides(ds, used),
            "cohort": texts(ds, str(cohort)),
            "outcome": outcomes,
            "value": _contrast_values(ds, contrast, used),
            "person": same_people(ds),
        },
        index=frame.index,
    )


def _contrast_values(ds: xr.Dataset, contrast: str, used: BoolArray) -> FloatArray:
    name, colon, label = contrast.partition(":")
    if name == "log10_lesion_volume" or name == "lesion_volume":
        raise ConfigError("Volumes are matched, so they cannot be the contrast.")
    if not colon:
        if name in ds.variables and ds[name].dims != ("subject",):
            raise ConfigError(
                f"contrast '{name}' lies over {ds[name].dims}: write '{name}:label' for one label."
            )
        return _numeric(subject_frame(ds, [name])[name], contrast)
    if name in _SIDED:
        array = lesional_measures(ds, [name], used)[name]
        dim = next(str(d) for d in array.dims if d != "subject")
    else:
        if name not in ds.variables:
            raise MissingVariableError(f"Dataset: variable '{name}' is missing.")
        array = _on_lesional_sides(ds, contrast, used)
        others = [str(d) for d in array.dims if d != "subject"]
        if "subject" not in array.dims or len(others) != 1:
            raise ConfigError(
                f"contrast '{contrast}': '{name}' has dims {array.dims}, expected subject and one "
                "more."
            )
        dim = others[0]
    labels = [str(v) for v in array[dim].values] if dim in array.coords else []
    if label not in labels:
        if dim in ("region", "tract"):
            labels = [_LESIONAL.sub(lambda end: _ENDS[end[0]], one) for one in labels]
        shown = ", ".join(labels[:20]) or "none"
        raise MissingVariableError(f"'{label}' is not on dimension '{dim}'. It has: {shown}.")
    values = array.isel({dim: labels.index(label)}).values
    if values.dtype.kind not in "biuf":
        raise StatisticsError(f"contrast '{contrast}' is text; numbers are needed.")
    return np.asarray(values, dtype=np.float64)


def _on_lesional_sides(ds: xr.Dataset, contrast: str, used: BoolArray) -> xr.DataArray:
    """Take a variable whose label, where it has a side, is of the side of the lesion."""
    name, _, label = contrast.partition(":")
    array = ds[name]
    dim = next((d for d in ("region", "tract") if d in array.dims and d in array.coords), None)
    stem, _, side = label.rpartition("_")
    if dim is None or not stem or "subject" not in array.dims:
        return array
    labels = [str(v) for v in array[dim].values]
    if side in ("L", "R") and label in labels:
        raise ConfigError(
            f"contrast '{contrast}': '{label}' is the side of the lesion in some people and the "
            f"other one in others. Name {stem}_ipsilesional or {stem}_contralesional, as "
            "to_lesional_sides(ds) has them."
        )
    native = [k for k, one in enumerate(labels) if one in (f"{stem}_L", f"{stem}_R")]
    if side not in ("ipsilesional", "contralesional") or label in labels or not native:
        return array
    both = array.isel({dim: native}).drop_vars([c for c in array.coords if c not in array.dims])
    pair = xr.Dataset({name: both})
    if "lesion_hemisphere" in ds.variables:
        pair["lesion_hemisphere"] = ("subject", lesioned_sides(ds, used))
    return to_lesional_sides(pair).get(name, array)


def _numeric(column: pd.Series[Any], name: str) -> FloatArray:
    if column.dtype.kind not in "biuf":
        raise StatisticsError(f"contrast '{name}' is text; numbers are needed.")
    return column.to_numpy(dtype=np.float64)


def usable_people(
    table: pd.DataFrame, eligible: BoolArray, same_side: bool, same_cohort: bool
) -> tuple[str, BoolArray]:
    """Tell who can be paired, and how many lack what.

    Parameters
    ----------
    table
        From :func:`matchable_people`.
    eligible
        (subject,) who may be paired at all.
    same_side, same_cohort
        Whether the side or the cohort has to be known.

    Returns
    -------
    words
        How many people are eligible, and how many of them lack what in every scan.
    used
        (subject,) who lacks nothing.
    """
    needs: dict[str, BoolArray] = {
        words: np.isfinite(table[name].to_numpy(dtype=np.float64))
        for name, words in (
            ("log10_lesion_volume", "lesion volume"),
            ("age", "age"),
            ("value", "contrast"),
            ("outcome", "outcome"),
        )
    }
    if same_side:
        needs["side"] = table["side"].isin(["L", "R"]).to_numpy()
    if same_cohort:
        needs["cohort"] = (table["cohort"] != "").to_numpy()
    person = table["person"].to_numpy()
    n = len(np.unique(person[eligible]))
    missing = [
        f"{words} missing: {n - len(np.unique(person[eligible & known]))}"
        for words, known in needs.items()
    ]
    used = eligible.copy()
    for known in needs.values():
        used &= known
    return f"{n} eligible people ({'; '.join(missing)})", used


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort scans by id and number their people anew, whatever the order of the Dataset.

    Parameters
    ----------
    frame
        Rows of :func:`matchable_people`; without ids their order stays.

    Returns
    -------
    DataFrame
        The same rows; ``person`` counts from zero.
    """
    if frame.index.dtype.kind not in "iu":
        frame = frame.iloc[np.argsort(frame.index.to_numpy().astype(str), kind="stable")]
    return frame.assign(person=pd.factorize(frame["person"])[0])


def scan_weights(frame: pd.DataFrame) -> FloatArray:
    """Weight of each scan: one divided by the scans of its person."""
    scans = frame.groupby("person")["person"].transform("size")
    return np.asarray(1 / scans.to_numpy(dtype=np.float64))


def spread_of_people(frame: pd.DataFrame, name: str) -> float:
    """Take the standard deviation of a column over people, whose scans share one weight."""
    values = frame[name].to_numpy(dtype=np.float64)
    return float(np.sqrt(weighted_moments(values, scan_weights(frame))[1]))


def couples(person: IntArray, stratum: IntArray) -> int:
    """Count the pairs of people who have scans in one stratum.

    Parameters
    ----------
    person
        Number of the person of each scan, from zero (n).
    stratum
        Of each scan (n).

    Returns
    -------
    int
        Two people who share several strata are one pair.
    """
    lies = np.unique(np.stack([stratum, person], axis=1), axis=0)
    strata = np.bincount(lies[:, 1])
    size = np.unique(lies[:, 0], return_counts=True)[1].astype(np.int64)
    total = int((size * (size - 1) // 2).sum())
    several = np.flatnonzero(strata > 1)  # few: people with scans of both sides
    own: dict[int, set[int]] = {}
    for code, one in lies[np.isin(lies[:, 1], several)].tolist():
        own.setdefault(one, set()).add(code)
    listed = list(own.values())
    for k, first in enumerate(listed):
        total -= sum(max(0, len(first & other) - 1) for other in listed[:k])
    return total


def candidates_of(frame: pd.DataFrame, same_side: bool, same_cohort: bool) -> Candidates:
    """Make candidates of people, in strata of those who may be paired with each other.

    Parameters
    ----------
    frame
        People who can be paired, from :func:`matchable_people`.
    same_side, same_cohort
        Pair within a lesioned side, or within a cohort, alone.

    Returns
    -------
    Candidates
        In the order of `frame`.
    """
    keys = [frame[n] for n, asked in (("side", same_side), ("cohort", same_cohort)) if asked]
    stratum = np.zeros(len(frame), dtype=np.int64)
    if keys:
        stratum = np.asarray(frame.groupby(keys, sort=True).ngroup(), dtype=np.int64)
    columns = {n: frame[n].to_numpy(dtype=np.float64) for n in ("log10_lesion_volume", "age")}
    return Candidates(
        stratum,
        columns["log10_lesion_volume"],
        columns["age"],
        frame["value"].to_numpy(dtype=np.float64),
        frame["person"].to_numpy(dtype=np.int64),
    )
