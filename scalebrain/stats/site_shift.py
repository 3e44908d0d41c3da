"""How far the brain ages of a site are off, as its healthy people tell."""

from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people
from scalebrain.stats.frame import eligible_subjects
from scalebrain.stats.meta import between_variance
from scalebrain.stats.pads import find_pad

__all__ = ["site_shift"]

FloatArray = npt.NDArray[np.float64]

_ABOUT = {
    "site_mean": "Mean of the healthy people of the site",
    "site_shift": "Shift of the site: that mean, drawn towards the mean of all sites",
    "site_shift_se": "Standard error of the shift",
    "site_shift_low": "Lower end of the confidence interval of the shift",
    "site_shift_high": "Upper end of the confidence interval of the shift",
    "n_healthy": "Healthy people of the site with a value",
    "between_sites_sd": "Standard deviation between sites, of their means in healthy people",
    "within_site_sd": "Standard deviation of healthy people within a site",
}
_OF_ALL = ("between_sites_sd", "within_site_sd")


def site_shift(
    ds: xr.Dataset,
    *,
    variable: Hashable | None = None,
    site: Hashable = "cohort",
    group: str = "reference",
    included: Hashable | None = "included",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Estimate by how many years the brain ages of each site are off, from its healthy people.

    Parameters
    ----------
    ds
        Dataset with `variable`, `site` and ``group`` over ``subject``.
    variable
        Brain-PAD over ``subject`` and any dimensions, in memory as a whole; default the
        corrected one of the store (:func:`scalebrain.stats.pads.find_pad`).
    site
        Variable over ``subject`` that says where people were scanned.
    group
        Value of ``group`` of the healthy people. Models must not have seen those whose ages
        they predict: people of the training are ``out_of_fold``, others new.
    included
        Bool variable over ``subject``: healthy people who count. None leaves nobody out by it.
        Who is ``extrapolated`` does not count in any case: ``ds.drop_vars("extrapolated")``
        takes them in.
    confidence
        Level of the intervals.

    Returns
    -------
    Dataset
        Over `site` and the dimensions of `variable`, in its units: ``site_shift``, its standard
        error ``site_shift_se``, ``site_shift_low``, ``site_shift_high``, ``site_mean`` and
        ``n_healthy``; every site of `ds` is there, NaN where nobody healthy has a value. Over the
        dimensions of `variable`: ``between_sites_sd`` and ``within_site_sd``. To take it out, see
        the example.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If no two healthy people of a site have a value, if a healthy person has no site, or if
        the age bias of the brain-PAD of the store is not corrected: the mean of a site would be
        that of the ages of its people.

    Notes
    -----
    Healthy person i of site s has the brain-PAD ``y_si = m + b_s + e_si`` (several scans there are
    averaged). With the variance ``w`` within sites pooled, ``v_s = w / n_s``, the variance ``t``
    between sites by restricted maximum likelihood of the means, and ``l_s = t / (t + v_s)``, the
    shift is ``m + l_s (mean_s - m)``: that of a site with few healthy people is drawn towards the
    mean ``m`` of all. A single site is not drawn anywhere. The standard error is that of Prasad and
    Rao: the root of ``t (1 - l_s) + (1 - l_s)^2 var(m) + 2 v_s^2 (t + v_s)^-3 var(t)``, with
    ``var(t) = 2 / sum_s (t + v_s)^-2``; the interval is that of t with the degrees of freedom
    within sites. With two or three sites of very unequal size, ``t`` is hardly known and the
    interval of a small site is too short.

    The shift holds all in which the healthy people of a site differ from those of the training:
    the scanner, and who was recruited there. People of a site on whom a model was trained taught
    it how their site looks: what is left is less than at a site that the model has never seen. The
    age bias of a fold is corrected by its held-out people; where these are one whole
    cohort (``keep_cohorts``), their brain-PAD is zero on average by construction, and so is the
    shift.

    References
    ----------
    Laird and Ware 1982, doi:10.2307/2529876 (empirical Bayes estimates);
    Viechtbauer 2005, doi:10.3102/10769986030003261;
    Prasad and Rao 1990, doi:10.1080/01621459.1990.10475320

    Examples
    --------
    >>> shift = sb.site_shift(ds)["site_shift"]  # doctest: +SKIP
    >>> cohorts = ds["cohort"].to_series().unique()  # doctest: +SKIP
    >>> shift = shift.reindex(cohort=cohorts)  # NaN: no cohort  # doctest: +SKIP
    >>> ds["brain_pad_corrected"] - shift.sel(cohort=ds["cohort"])  # doctest: +SKIP
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    name = _named(ds) if variable is None else variable
    absent = [str(n) for n in (name, site, "group") if n not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Run the predict stage, "
            "or name your own variable."
        )
    source = ds[name]
    if "subject" not in source.dims or ds[site].dims != ("subject",):
        raise MissingVariableError(
            f"'{name}' has dims {source.dims} and '{site}' {ds[site].dims}; expected both over "
            "'subject'. Name variables of people."
        )
    dims = tuple(dim for dim in source.dims if dim != "subject")
    sizes = {dim: source.sizes[dim] for dim in dims}
    values = source.transpose("subject", *dims).values.astype(np.float64)
    values = values.reshape(len(values), math.prod(sizes.values()))
    healthy = eligible_subjects(ds, group=group, included=included)
    there = sorted({str(value) for value in ds["group"].values})
    if group not in there:
        raise StatisticsError(
            f"0 healthy people: no subject is of the group '{group}'. The groups are: "
            f"{', '.join(there)}. Name that of the healthy people, group='...'."
        )
    own, sites = pd.factorize(ds[site].to_series().replace("", None), sort=True)
    if (nowhere := int((healthy & (own < 0)).sum())) > 0:
        raise StatisticsError(
            f"'{site}' of {nowhere} healthy people is empty. Say where they were scanned."
        )
    arrays = _shifts(values, own, same_people(ds), healthy, len(sites), confidence)
    out = xr.Dataset(coords={dim: source[dim] for dim in dims if dim in source.coords})
    out = out.assign_coords({site: np.asarray(sites)})
    units = {"units": source.attrs["units"]} if "units" in source.attrs else {}
    for key, array in arrays.items():
        over = dims if key in _OF_ALL else (site, *dims)
        shape = [len(sites) if dim == site else sizes[dim] for dim in over]
        about = {"long_name": _ABOUT[key]} | ({} if key == "n_healthy" else units)
        out[key] = (over, array.reshape(shape), about)
    out["n_healthy"] = out["n_healthy"].astype(np.int64)
    out.attrs = {"variable": str(name), "confidence": confidence, "group": group}
    return out


def _named(ds: xr.Dataset) -> str:
    """Name of the store's brain-PAD, whose age bias has to be corrected."""
    pad = find_pad(ds)
    if not pad.is_corrected:
        raise StatisticsError(
            f"The age bias of {pad.name} is not corrected: the mean of a site would be that of the "
            "ages of its people. Import ages of a tool that corrects it, or bring more references."
        )
    return pad.name


def _shifts(
    y: FloatArray,
    own: npt.NDArray[np.intp],
    people: npt.NDArray[np.integer],
    healthy: npt.NDArray[np.bool_],
    n_sites: int,
    confidence: float,
) -> dict[str, FloatArray]:
    """Estimates of every column of values (subject, column)."""
    shape = (n_sites, y.shape[1])
    out: dict[str, FloatArray] = {
        key: np.full(shape[1:] if key in _OF_ALL else shape, np.nan) for key in _ABOUT
    }
    out["n_healthy"][:] = 0
    # a person with several scans at a site counts once there
    pairs, pair = np.unique(np.stack([own, people]), axis=1, return_inverse=True)
    pair = pair.ravel()
    for j in range(shape[1]):
        known = healthy & np.isfinite(y[:, j])
        scans = np.bincount(pair[known], minlength=pairs.shape[1])
        sums = np.bincount(pair[known], y[known, j], pairs.shape[1])
        seen = scans > 0
        value, at = sums[seen] / scans[seen], pairs[0, seen]
        size = np.bincount(at, minlength=n_sites).astype(np.float64)
        there = size > 0
        out["n_healthy"][:, j] = size
        df = int(size.sum() - there.sum())
        if df < 1:  # the shift of a site cannot be told from that of a person
            continue
        mean = np.bincount(at, value, n_sites)[there] / size[there]
        within = float(((value - mean[np.cumsum(there)[at] - 1]) ** 2).sum()) / df
        between, shift, se = _drawn(mean, within / size[there])
        half = scipy.stats.t.ppf(0.5 + confidence / 2, df) * se
        found = {
            "site_mean": mean,
            "site_shift": shift,
            "site_shift_se": se,
            "site_shift_low": shift - half,
            "site_shift_high": shift + half,
        }
        for key, column in found.items():
            out[key][there, j] = column
        out["between_sites_sd"][j], out["within_site_sd"][j] = np.sqrt(between), np.sqrt(within)
    if np.isnan(out["site_shift"]).all():
        raise StatisticsError(
            f"{healthy.sum()} healthy people: no two of one site have a brain-PAD, so that the "
            "shift of a site cannot be told from that of a person."
        )
    return out


def _drawn(b: FloatArray, v: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Variance between sites, their means drawn towards that of all, and the errors of these."""
    if len(b) == 1:
        return np.nan, b, np.sqrt(v)
    if not v.any():  # means that are known without error
        return float(b.var(ddof=1)), b, np.sqrt(v)
    between = between_variance(b, v)
    weight = 1 / (between + v)
    middle, kept = float((weight * b).sum() / weight.sum()), between * weight
    unknown = 2 * v**2 * weight**3 * 2 / (weight**2).sum()
    variance = between * (1 - kept) + (1 - kept) ** 2 / weight.sum() + unknown
    return between, middle + kept * (b - middle), np.sqrt(variance)
