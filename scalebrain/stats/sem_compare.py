"""Rival structural models of the same variables, and what their comparison can tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.stats
import xarray as xr

from scalebrain.stats.sem_fit import SemFit

__all__ = ["comparison", "conclusions", "rival_paths"]

_SHOWN = ("chi2", "df", "p", "cfi", "rmsea", "srmr")


def comparison(fits: Mapping[str, SemFit]) -> xr.Dataset:
    """Put the fit indices of several models side by side.

    Parameters
    ----------
    fits
        By name; the first is the one that the others are compared with.

    Returns
    -------
    Dataset
        Over ``model``: ``model_chi2``, ``model_df``, ``model_p``, ``model_cfi``,
        ``model_rmsea``, ``model_srmr``, ``model_aic``, ``model_bic``, ``model_equivalent``.

    Notes
    -----
    A log-likelihood is given the exogenous variables. Where models differ in these, AIC and
    BIC are of all variables but those that are exogenous in every model: the exogenous
    others count with their own means, variances and covariances.
    """
    out = xr.Dataset(coords={"model": np.array(list(fits), dtype=object)})
    for name in _SHOWN:
        values = np.array([fit.indices[name] for fit in fits.values()], dtype=np.float64)
        out[f"model_{name}"] = ("model", values)
    criteria = _criteria(fits)
    for k, name in enumerate(("aic", "bic")):
        out[f"model_{name}"] = ("model", np.array([pair[k] for pair in criteria.values()]))
    first = next(iter(fits.values()))
    out["model_equivalent"] = (
        "model",
        np.array([_is_equivalent(first, fit) for fit in fits.values()]),
        {"long_name": "Implies the same moments of the data as the specified model"},
    )
    return out


def rival_paths(fits: Mapping[str, SemFit]) -> xr.Dataset:
    """List the paths of every model but the first, over ``rival_path``."""
    rows = [
        (f"{name}: {p.name}", fit, p.name)
        for name, fit in list(fits.items())[1:]
        for p in fit.model.parameters
        if p.op in ("~", "=~") or (p.op == "~~" and not p.is_variance and p.value is None)
    ]
    estimate = np.array([fit.estimate[path] for _, fit, path in rows])
    se = np.array([fit.se[path] for _, fit, path in rows])
    std = np.array([fit.standardized[path] for _, fit, path in rows])
    out = xr.Dataset(coords={"rival_path": np.array([row[0] for row in rows], dtype=object)})
    out["rival_estimate"] = ("rival_path", estimate)
    out["rival_se"] = ("rival_path", se)
    out["rival_p"] = ("rival_path", 2 * scipy.stats.norm.sf(np.abs(estimate / se)))
    out["rival_std_estimate"] = ("rival_path", std)
    return out


def conclusions(fits: Mapping[str, SemFit]) -> list[str]:
    """Say in words what each rival tells about the first model.

    Parameters
    ----------
    fits
        By name; the first is the one that the others are compared with.

    Returns
    -------
    list
        One or two sentences a rival.
    """
    (name, first), *others = fits.items()
    criteria = _criteria(fits)
    out = []
    for other, fit in others:
        if _is_equivalent(first, fit):
            out.append(
                f"'{other}' and '{name}' are equivalent: they imply the same means and "
                "covariances with as many parameters, so no fit index, AIC or BIC of these "
                "variables can tell them apart. Which arrow is right is not a question that these "
                "data answer."
            )
            continue
        parts = []
        for k, label in enumerate(("AIC", "BIC")):
            gap = criteria[other][k] - criteria[name][k]
            if abs(gap) < 2:
                parts.append(f"{label} differs by {abs(gap):.1f}, which favors neither")
            else:
                better = name if gap > 0 else other
                parts.append(f"{label} is lower by {abs(gap):.1f} for '{better}'")
        out.append(
            f"'{other}' beside '{name}': {'; '.join(parts)}. A lower value means a better trade of "
            "fit for parameters among these models. It does not show that an arrow is causal: both "
            "may be wrong, and a common cause that was not measured would favor either."
        )
    return out


def _is_equivalent(one: SemFit, other: SemFit) -> bool:
    """Tell whether two fits imply the same moments with as many parameters."""
    if one.indices["df"] != other.indices["df"]:
        return False
    order = [other.model.observed.index(name) for name in one.model.observed]
    p = len(order)
    implied = []
    for fit in (one, other):
        patterns = fit.engine.scaled(fit.sums.patterns())
        implied.append(fit.engine.implied(fit.theta, fit.engine.given(patterns)))
    mean, cov = implied[0][0][:p], implied[0][1][:p, :p]
    mean_2, cov_2 = implied[1][0][order], implied[1][1][np.ix_(order, order)]
    same = np.allclose(cov, cov_2, atol=1e-5)
    if one.model.has_means and other.model.has_means:
        same &= np.allclose(mean, mean_2, atol=1e-5)
    return bool(same)


def _criteria(fits: Mapping[str, SemFit]) -> dict[str, tuple[float, float]]:
    """AIC and BIC, of the same variables for every model."""
    common = set.intersection(*(set(fit.model.exogenous) for fit in fits.values()))
    out = {}
    for name, fit in fits.items():
        if set(fit.model.exogenous) == common:
            out[name] = (fit.indices["aic"], fit.indices["bic"])
            continue
        n, engine = fit.indices["n"], fit.engine
        patterns = engine.scaled(fit.sums.patterns())
        cov = engine.given(patterns)[1]
        shared = [k for k, v in enumerate(fit.model.exogenous) if v in common]
        q, r = len(cov), len(shared)
        units = engine.unit[engine.exogenous]
        apart = np.setdiff1d(np.arange(q), shared)
        loglik = fit.indices["loglik"] - 0.5 * n * (
            (q - r) * (np.log(2 * np.pi) + 1)
            + np.linalg.slogdet(cov)[1]
            - np.linalg.slogdet(cov[np.ix_(shared, shared)])[1]
            + 2 * np.log(units[apart]).sum()
        )
        extra = q * (q + 1) // 2 - r * (r + 1) // 2 + (q - r if fit.model.has_means else 0)
        free = fit.indices["n_free"] + extra
        out[name] = (float(2 * free - 2 * loglik), float(np.log(n) * free - 2 * loglik))
    return out
