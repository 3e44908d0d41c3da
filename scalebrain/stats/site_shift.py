"""How far the brain ages of a site are off, as its healthy people tell."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.frame import eligible_subjects
from scalebrain.stats.meta import between_variance
from scalebrain.stats.pads import find_pad

__all__ = ["site_shift"]

FloatArray = npt.NDArray[np.float64]

_ABOUT = {
    "site_mean": "Mean of the healthy people of the site",
    "site_shift": "Shift of the site: that mean, drawn towards the mean of all sites",
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
        Brain-PAD over ``subject`` and any dimensions; default the one that the models take
        (:func:`scalebrain.stats.pads.find_pad`).
    site
        Variable over ``subject`` that says where people were scanned.
    group
        Value of ``group`` of the healthy people. Their ages have to be predicted by models that
        did not train on them, as ``out_of_fold`` ones are.
    included
        Bool variable over ``subject``: healthy people who count. None counts all.
    confidence
        Level of the intervals.

    Returns
    -------
    Dataset
        Over `site` and the dimensions of `variable`, in its units: ``site_shift``,
        ``site_shift_low``, ``site_shift_high``, ``site_mean`` and ``n_healthy``; every site of
        `ds` is there, NaN where nobody healthy has a value. Over the dimensions of `variable`:
        ``between_sites_sd`` and ``within_site_sd``. To take it out, see the example.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If no two healthy people of a site have a value of a region.

    Notes
    -----
    Healthy person i of site s has the brain-PAD ``y_si = m + b_s + e_si``. With the variance
    ``w`` within sites pooled, ``v_s = w / n_s``, the variance ``t`` between sites by restricted
    maximum likelihood of the means, and ``l_s = t / (t + v_s)``, the shift is ``m + l_s (mean_s
    - m)``: that of a site with few healthy people is drawn towards the mean ``m`` of all. Its
    variance is ``t (1 - l_s) + (1 - l_s)^2 var(m)``. The variances are taken for known; the
    interval is that of t with the degrees of freedom within sites. A single site is not drawn
    anywhere.

    People of a site on whom a model was trained taught it how their site looks: what is left is
    less than a site would shift that the model has never seen.

    References
    ----------
    Laird and Ware 1982, doi:10.2307/2529876 (empirical Bayes estimates);
    Viechtbauer 2005, doi:10.3102/10769986030003261

    Examples
    --------
    >>> shift = sb.site_shift(ds)["site_shift"]  # doctest: +SKIP
    >>> ds["brain_pad_corrected"] - shift.sel(cohort=ds["cohort"])  # doctest: +SKIP
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    name = find_pad(ds).name if variable is None else variable
    absent = [str(n) for n in (name, site, "group") if n not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Run the predict stage, "
            "or name your own variable."
        )
    source = ds[name]
    dims = tuple(dim for dim in source.dims if dim != "subject")
    values = source.transpose("subject", *dims).values.astype(np.float64)
    flat = values.reshape(len(values), -1)
    healthy = eligible_subjects(ds, group=group, included=included)
    labels = ds[site].values.astype(str)
    sites, own = np.unique(labels, return_inverse=True)
    if "" in sites:
        raise StatisticsError(
            f"'{site}' of {(labels == '').sum()} people is empty. Say where they were scanned."
        )
    arrays = _shifts(flat, own, healthy, len(sites), confidence)
    sizes = {site: len(sites)} | {dim: source.sizes[dim] for dim in dims}
    out = xr.Dataset(coords={dim: source[dim] for dim in dims if dim in source.coords})
    out = out.assign_coords({site: sites})
    units = {"units": source.attrs["units"]} if "units" in source.attrs else {}
    for key, array in arrays.items():
        over = (site, *dims) if array.ndim == 2 else dims
        about = {"long_name": _ABOUT[key]} | ({} if key == "n_healthy" else units)
        out[key] = (over, array.reshape([sizes[dim] for dim in over]), about)
    out.attrs = {"variable": str(name), "confidence": confidence, "group": group}
    return out


def _shifts(
    y: FloatArray,
    own: npt.NDArray[np.intp],
    healthy: npt.NDArray[np.bool_],
    n_sites: int,
    confidence: float,
) -> dict[str, FloatArray]:
    """Estimates of every column of values (subject, column)."""
    shape = (n_sites, y.shape[1])
    out: dict[str, FloatArray] = {
        key: np.full(shape[1:] if key in _OF_ALL else shape, np.nan) for key in _ABOUT
    }
    for j in range(shape[1]):
        known = healthy & np.isfinite(y[:, j])
        size = np.bincount(own[known], minlength=n_sites).astype(np.float64)
        there = size > 0
        df = int(size.sum() - there.sum())
        if df < 1:
            raise StatisticsError(
                f"{known.sum()} healthy people of {there.sum()} sites have a brain-PAD: no two of "
                "one site, so that the shift of a site cannot be told from that of a person."
            )
        with np.errstate(invalid="ignore"):
            mean = np.bincount(own[known], y[known, j], n_sites) / size
        within = float(((y[known, j] - mean[own[known]]) ** 2).sum()) / df
        between, shift, variance = _drawn(mean[there], within / size[there])
        half = scipy.stats.t.ppf(0.5 + confidence / 2, df) * np.sqrt(variance)
        found = {
            "site_mean": mean[there],
            "site_shift": shift,
            "site_shift_low": shift - half,
            "site_shift_high": shift + half,
        }
        for key, column in found.items():
            out[key][there, j] = column
        out["n_healthy"][:, j] = size
        out["between_sites_sd"][j], out["within_site_sd"][j] = np.sqrt(between), np.sqrt(within)
    return out


def _drawn(b: FloatArray, v: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Variance between sites, their means drawn towards that of all, and the variance of these."""
    if len(b) == 1:
        return np.nan, b, v
    if not v.any():  # means that are known without error
        return float(b.var(ddof=1)), b, v
    between = between_variance(b, v)
    weight = 1 / (between + v)
    middle, kept = float((weight * b).sum() / weight.sum()), between / (between + v)
    variance = between * (1 - kept) + (1 - kept) ** 2 / weight.sum()
    return between, middle + kept * (b - middle), variance
