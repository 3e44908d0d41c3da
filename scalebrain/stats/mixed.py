"""Linear mixed models with a random intercept, one per region."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
import scipy.stats
import xarray as xr

from scalebrain.errors import StatisticsError, check_all
from scalebrain.stats import formulas
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.mixed_numba_fns import random_intercept_reml

__all__ = ["mixed_model"]

logger = logging.getLogger(__name__)

_RANDOM = re.compile(r"\+\s*\(\s*1\s*\|\s*([A-Za-z_]\w*)\s*\)")
_PER_TERM = ("estimate", "se", "df", "ci_low", "ci_high", "p", "q")
_UNITS = {"p": "1", "q": "1", "df": "1", "n": "1", "n_dropped": "1", "n_groups": "1"}
_LONG = {
    "estimate": "Fixed effect, in units of the outcome per unit of the term",
    "se": "Standard error of the estimate",
    "df": "Satterthwaite degrees of freedom",
    "ci_low": "Lower end of the confidence interval",
    "ci_high": "Upper end of the confidence interval",
    "p": "Two-sided p value of the t test, uncorrected",
    "q": "Benjamini-Hochberg q value within the term, over the family of regions",
    "n": "Subjects used",
    "n_dropped": "Subjects dropped",
    "n_groups": "Groups among the subjects used",
    "group_variance": "Variance of the random intercepts",
    "residual_variance": "Residual variance",
    "boundary": "The variance of the random intercepts is estimated as zero",
    "dropped": "The subject was not used",
}
"#: what a fit needs of one region or subject-level model"


@dataclass
class _Fits:
    """Arrays over regions, filled fit by fit."""

    terms: list[str]
    per_term: dict[str, npt.NDArray[np.float64]]
    per_region: dict[str, npt.NDArray[Any]]
