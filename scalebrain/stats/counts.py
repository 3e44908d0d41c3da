"""How many replicates or draws are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from scalebrain.errors import ScalebrainError, StatisticsError

__all__ = ["check_count"]


def check_count(
    name: str,
    value: Any,
    *,
    least: int = 2,
    zero: bool = False,
    error: type[ScalebrainError] = StatisticsError,
) -> int:
    """Refuse a number of repetitions that is none.

    Parameters
    ----------
    name
        Name of the parameter.
    value
        What was passed.
    least
        Smallest number allowed.
    zero
        Whether 0 is allowed too.
    error
        Class of the error.

    Returns
    -------
    int
        The number.

    Raises
    ------
    ScalebrainError
        If it is no whole number, or too small.
    """
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if is_number and not isinstance(value, bool) and float(value).is_integer():
        number = int(value)
        if number >= least or (zero and number == 0):
            return number
    wanted = f"{least} or more, a whole number"
    if zero:
        wanted = f"0 or a whole number from {least} on"
    raise error(f"{name} must be {wanted}, got {value!r}.")
