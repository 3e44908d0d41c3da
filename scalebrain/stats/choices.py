"""The ways to take a step of an analysis that a multiverse goes through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats
import xarray as xr

from scalebrain.harmonization.cohort import harmonize
from scalebrain.stats.pads import find_pad

__all__ = ["ICV_CHOICES", "SCALE_CHOICES", "Choice", "rank_normal", "site_choices"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """One of the ways to take a step of an analysis.

    Parameters
    ----------
    name
        What the step is called in results.
    prepare
        Function from the store's Dataset to the one that is analyzed, before sides are
        relabeled.
    outcome
        Function of an outcome (row,), of the rows that are used.
    covariates
        Variables that every equation gets.
    random_intercept
        Cohorts have intercepts of their own.
    """

    name: str
    prepare: Callable[[xr.Dataset], xr.Dataset] | None = None
    outcome: Callable[[FloatArray], FloatArray] | None = None
    covariates: tuple[str, ...] = ()
    random_intercept: bool = False


def rank_normal(values: FloatArray) -> FloatArray:
    """Replace values by the normal quantiles of their ranks.

    Parameters
    ----------
    values
        (row,) finite values.

    Returns
    -------
    ndarray
        ``Phi^-1((rank - 3/8) / (n + 1/4))``; equal values share their mean rank.

    References
    ----------
    Blom 1958; Beasley, Erickson and Allison 2009, DOI 10.1007/s10519-009-9281-0.
    """
    ranks = scipy.stats.rankdata(values)
    return np.asarray(scipy.stats.norm.ppf((ranks - 0.375) / (len(values) + 0.25)))


ICV_CHOICES = (Choice("without_icv"), Choice("with_icv", covariates=("icv",)))
#: Outcomes as they are, or by rank: without the pull of outliers and of a score's ceiling.
SCALE_CHOICES = (Choice("raw"), Choice("rank", outcome=rank_normal))


def site_choices(
    groups: Hashable = "cohort",
    *,
    group: str | None = "stroke",
    included: Hashable | None = "included",
) -> tuple[Choice, ...]:
    """Choose what is done about cohorts: intercepts, harmonization, both or neither.

    Parameters
    ----------
    groups
        Variable over ``subject`` that is harmonized over.
    group
        Value of the variable ``group`` whose people are harmonized; None, or a Dataset
        without it, harmonizes all.
    included
        Bool variable over ``subject``; others are not harmonized, nor is who is extrapolated.

    Returns
    -------
    tuple of Choice
        ``random_intercept``, ``harmonized``, ``harmonized_random_intercept``, ``pooled``.

    Notes
    -----
    Harmonization is ComBat (:func:`scalebrain.harmonize`) of the brain-PADs; the effects of
    age, sex, the log10 of the lesion volume and the lesioned side are kept. After it the
    variance between cohorts is close to zero, so a random intercept changes little. Replicates
    of a bootstrap do not fit it again.
    """
    treated = functools.partial(_harmonized, batch=str(groups), group=group, included=included)
    return (
        Choice("random_intercept", random_intercept=True),
        Choice("harmonized", prepare=treated),
        Choice("harmonized_random_intercept", prepare=treated, random_intercept=True),
        Choice("pooled"),
    )


def _harmonized(
    ds: xr.Dataset, *, batch: str, group: str | None, included: Hashable | None
) -> xr.Dataset:
    """Replace the brain-PADs by harmonized ones."""
    pad = find_pad(ds).name
    volume = ds["lesion_volume"].astype(np.float64)
    side = ds["lesion_hemisphere"].astype(str)
    own = ds.drop_vars(["harmonization", f"{pad}_harmonized"], errors="ignore")
    out = harmonize(
        own.assign(
            _log10_volume=np.log10(volume.where(volume > 0)),
            _left=(side == "L").astype(np.float64).where((side == "L") | (side == "R")),
        ),
        variables=pad,
        batch=batch,
        covariates=["age", "sex", "_log10_volume", "_left"],
        within=group if group is not None and "group" in ds.variables else None,
        included=included,
    )
    made = out[f"{pad}_harmonized"].assign_attrs(ds[pad].attrs)
    return ds.assign({pad: made})
