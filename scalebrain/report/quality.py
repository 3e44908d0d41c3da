"""Measures of quality of every subject, and who lies far from the others."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.io.guard import RULES
from scalebrain.report.content import text_values

__all__ = ["LIMIT", "MEASURES", "Measure", "Quality", "quality", "robust_z", "warning_words"]

FloatArray = npt.NDArray[np.float64]

#: A robust z beyond this is an outlier (Iglewicz and Hoaglin 1993).
LIMIT = 3.5
_FEWEST = 10
_TO_SD = 0.6745


@dataclass(frozen=True)
class Measure:
    """A number of each subject that says something about its scan or mask.

    Parameters
    ----------
    name
        Variable of the store.
    label
        Name on the page.
    unit
        Unit, empty for a pure number.
    digits
        Decimals that are shown.
    bad
        The side on which a value is an outlier; ``none`` when it is shown only.
    of_lesion
        Whether only people with a lesion mask have it.
    is_log
        Whether distances are those of the logarithm.
    words
        What it says.
    """

    name: str
    label: str
    unit: str
    digits: int
    bad: Literal["low", "high", "both", "none"]
    words: str
    of_lesion: bool = False
    is_log: bool = False


MEASURES = (
    Measure(
        "template_overlap",
        "template correlation",
        "",
        3,
        "low",
        "Correlation of the scan with the template. Low: not registered, or another contrast.",
    ),
    Measure(
        "template_overlap_mirrored",
        "mirrored correlation",
        "",
        3,
        "none",
        "The same with the template mirrored, left for right.",
    ),
    Measure(
        "mirror_margin",
        "mirror margin",
        "",
        3,
        "low",
        "Correlation with the template less that with the template mirrored. Below zero: left "
        "and right may be exchanged.",
    ),
    Measure(
        "nonfinite_fraction",
        "not finite",
        "",
        4,
        "high",
        "Fraction of the brain without a finite value.",
    ),
    Measure(
        "affine_residual",
        "grid distance",
        "mm",
        4,
        "high",
        "Distance of the scan's grid to that of the store.",
    ),
    Measure("icv", "intracranial volume", "mL", 0, "both", "As the table of participants has it."),
    Measure(
        "lesion_volume",
        "lesion volume",
        "mL",
        1,
        "both",
        "Volume of the whole mask; compared as logarithms.",
        of_lesion=True,
        is_log=True,
    ),
    Measure(
        "lesion_outside_fraction",
        "lesion outside",
        "",
        3,
        "high",
        "Fraction of the mask outside the brain of the template.",
        of_lesion=True,
    ),
    Measure(
        "lesion_volume_change",
        "volume change",
        "",
        3,
        "both",
        "Relative change of the mask's volume by resampling.",
        of_lesion=True,
    ),
    Measure(
        "lesion_components",
        "lesion pieces",
        "",
        0,
        "high",
        "Pieces of the mask. Many: noise, or an automatic mask that nobody looked at.",
        of_lesion=True,
    ),
)


@dataclass(frozen=True)
class Quality:
    """Measures of everyone.

    Parameters
    ----------
    measures
        Those that the store has.
    values, z
        By subject and name of the measure: the value, and its robust z, NaN where there is none.
    worst
        By subject: the largest distance on the bad side; NaN without any.
    outliers
        By subject: the measures beyond the limit, the farthest first.
    codes
        By subject: codes of the warnings of the ingest.
    """

    measures: tuple[Measure, ...]
    values: pd.DataFrame
    z: pd.DataFrame
    worst: FloatArray
    outliers: tuple[tuple[Measure, ...], ...]
    codes: tuple[tuple[str, ...], ...]

    @property
    def is_flagged(self) -> npt.NDArray[np.bool_]:
        """Who is an outlier, or has a warning."""
        pairs = zip(self.outliers, self.codes, strict=True)
        return np.array([bool(out or codes) for out, codes in pairs], dtype=np.bool_)

    def order(self) -> npt.NDArray[np.intp]:
        """Positions of the subjects, the farthest first; then those with a warning."""
        far = np.nan_to_num(self.worst, nan=0.0)
        n_codes = np.array([len(codes) for codes in self.codes], dtype=np.intp)
        return np.asarray(np.lexsort((-n_codes, -far)))


def robust_z(values: npt.ArrayLike) -> FloatArray:
    """Distance to the median in robust standard deviations.

    Parameters
    ----------
    values
        Values; NaN where missing.

    Returns
    -------
    ndarray
        NaN for missing values, and for all when fewer than ten are known or when half of them
        or more are the same.

    Notes
    -----
    ``0.6745 (x - median) / MAD``, MAD the median absolute distance to the median; 0.6745 makes
    it a standard deviation where values are normally distributed.

    References
    ----------
    Iglewicz B, Hoaglin DC (1993). How to Detect and Handle Outliers. ASQC Quality Press.
    """
    array = np.asarray(values, dtype=np.float64)
    known = np.isfinite(array)
    out = np.full(array.shape, np.nan)
    if known.sum() < _FEWEST:
        return out
    distance = array - np.median(array[known])
    mad = float(np.median(np.abs(distance[known])))
    if mad > 1e-9 * max(1.0, float(np.abs(array[known]).max())):
        out[known] = _TO_SD * distance[known] / mad
    return out


def quality(ds: xr.Dataset) -> Quality:
    """Collect the measures of quality that a store has, and find outliers.

    Parameters
    ----------
    ds
        Store; no image is read.

    Returns
    -------
    Quality
        Everyone is compared with everyone of the store; measures of the lesion among those
        with a lesion mask.
    """
    n = ds.sizes["subject"]
    labels = [str(label) for label in ds["subject"].values]
    held = {name: _numbers(ds, name) for name in ds.variables if ds[name].dims == ("subject",)}
    if {"template_overlap", "template_overlap_mirrored"} <= set(held):
        held["mirror_margin"] = held["template_overlap"] - held["template_overlap_mirrored"]
    has_lesion = np.ones(n, dtype=np.bool_)
    if "lesion_present" in ds.variables:
        has_lesion = np.asarray(ds["lesion_present"].values, dtype=np.bool_)
    values, z = {}, {}
    for measure in MEASURES:
        column = held.get(measure.name)
        if column is None or not np.isfinite(column).any():
            continue
        if measure.of_lesion:
            column = np.where(has_lesion, column, np.nan)
        values[measure.name] = column
        compared = column
        if measure.is_log:
            compared = np.full(n, np.nan)
            np.log(column, out=compared, where=column > 0)
        z[measure.name] = robust_z(compared)
    measures = tuple(measure for measure in MEASURES if measure.name in values)
    bad = np.full((n, len(measures)), np.nan)
    for k, measure in enumerate(measures):
        own = z[measure.name]
        sides = {"low": -own, "high": own, "both": np.abs(own), "none": np.full(n, np.nan)}
        bad[:, k] = sides[measure.bad]
    far = np.nan_to_num(bad, nan=-np.inf)
    worst = far.max(axis=1, initial=-np.inf)
    outliers = tuple(
        tuple(measures[k] for k in np.argsort(-row, kind="stable") if row[k] > LIMIT) for row in far
    )
    codes: list[tuple[str, ...]] = [()] * n
    if "warnings" in ds.variables:
        texts = text_values(ds["warnings"])
        codes = [tuple(code for code in str(text).split(";") if code) for text in texts]
    return Quality(
        measures,
        pd.DataFrame(values, index=labels),
        pd.DataFrame(z, index=labels),
        np.where(np.isfinite(worst), worst, np.nan),
        outliers,
        tuple(codes),
    )


def _numbers(ds: xr.Dataset, name: object) -> FloatArray:
    """Read a per-subject variable as numbers; text has none."""
    variable = ds[name]
    if variable.dtype.kind not in "fiu":
        return np.full(variable.shape, np.nan)
    return np.asarray(variable.values, dtype=np.float64)


def warning_words(code: str) -> str:
    """Say what a code of the ingest means."""
    rule = RULES.get(code)
    return f"{rule.input}: {rule.behavior}" if rule is not None else code
