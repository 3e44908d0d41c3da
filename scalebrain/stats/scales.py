"""Scales of motor scores: which are pooled, and whether the cut-off of severe is theirs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.stats.frame import subject_frame

__all__ = ["SEVERE_BELOW", "has_fugl_meyer_only", "scale_note", "scales_of"]

#: A motor score below this is severe: 28 of the 66 points of Fugl-Meyer, upper extremity.
SEVERE_BELOW = 0.424

#: Names of that scale, by their letters in lower case.
_FUGL_MEYER = frozenset(
    (
        *("fm", "fma", "fmue", "fmaue", "uefm", "uefma", "fuglmeyer", "fuglmeyerue"),
        *("fuglmeyerassessment", "fuglmeyerupperextremity", "fuglmeyerassessmentupperextremity"),
    )
)


def scales_of(ds: xr.Dataset, rows: npt.NDArray[Any], outcome: Hashable) -> dict[str, int]:
    """Count the people of each scale.

    Parameters
    ----------
    ds
        Store; ``motor_scale`` is used where it has it.
    rows
        Positions, or a mask, of the rows used.
    outcome
        Name of the outcome; only ``motor_score`` has a scale.

    Returns
    -------
    dict
        People by scale, sorted by name; "" counts those whose scale is not named. Spellings that
        differ in case, spaces or marks alone are one scale, as are those of Fugl-Meyer. Empty
        when no scale is named.
    """
    if outcome != "motor_score" or "motor_scale" not in ds.variables:
        return {}
    column = subject_frame(ds, ["motor_scale"])["motor_scale"].astype(object).fillna("").astype(str)
    names, counts = np.unique(column.to_numpy(dtype=str)[rows], return_counts=True)
    spelled: dict[str, str] = {}
    out: dict[str, int] = {}
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        bare = _bare(name)
        shown = spelled.setdefault("fma" if bare in _FUGL_MEYER else bare, name)
        out[shown] = out.get(shown, 0) + count
    return out if any(out) else {}


def has_fugl_meyer_only(scales: Mapping[str, int]) -> bool:
    """Tell whether every scale that is named is Fugl-Meyer of the upper extremity."""
    return all(not name or _bare(name) in _FUGL_MEYER for name in scales)


def scale_note(scales: Mapping[str, int]) -> str:
    """Say that scores of several scales are taken as one; empty when they are not.

    Parameters
    ----------
    scales
        From :func:`scales_of`.

    Returns
    -------
    str
        One sentence. People without a named scale are taken for Fugl-Meyer.
    """
    if len(scales) < 2 or has_fugl_meyer_only(scales):
        return ""
    told = [f"{name or 'no scale named'} ({count})" for name, count in scales.items()]
    return (
        "Motor scores of several scales are taken as fractions of their maxima, which need not "
        f"mean the same impairment (people of each: {', '.join(told)})."
    )


def _bare(name: str) -> str:
    """Letters and digits alone, in lower case, without the maximum of Fugl-Meyer."""
    bare = "".join(letter for letter in name.lower() if letter.isalnum())
    return bare.removesuffix("66")
