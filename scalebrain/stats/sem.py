"""Structural equation models among damage, regional brain age and motor outcome."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.frame import eligible_subjects, lesional_measures, subject_frame
from scalebrain.stats.sem_fit import ModelText, SemFit, fit_sem, parse_model

__all__ = ["DEFAULT_MODEL", "RIVAL_MODELS", "sem"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Selector = Hashable | tuple[Hashable, Mapping[Hashable, Hashable]] | xr.DataArray

#: Damage and ipsilesional brain age act on motor outcome, which acts on the other side.
DEFAULT_MODEL = "motor ~ cst + ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ cst"

#: What the default model is compared with: the arrow between motor outcome and the
#: contralesional side reversed, and removed.
RIVAL_MODELS: Mapping[str, str] = {
    "reversed": "motor ~ contra + cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst",
    "restricted": "motor ~ cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst\nmotor ~~ 0*contra",
}

_DEFAULT_VARIABLES: Mapping[str, str] = {
    "motor": "motor_score",
    "cst": "tract_load of CST_ipsilesional (plain overlap)",
    "ipsi": "mean over ipsilesional regions of brain_pad_corrected / calibration_slope",
    "contra": "brain_pad_corrected / calibration_slope of FPN_contralesional",
}
_SIDED = (
    "brain_pad_corrected",
    "lesion_load",
    "tract_load",
    "tract_load_weighted",
    "tract_load_max",
)
_INDICES = {
    "chi2": "Chi-squared of the model",
    "df": "Degrees of freedom of the model",
    "p": "p value of the model's chi-squared; missing if saturated",
    "cfi": "Comparative fit index, at most 1",
    "tli": "Tucker-Lewis index",
    "rmsea": "Root mean square error of approximation",
    "rmsea_low": "Lower end of the 90% interval of the RMSEA",
    "rmsea_high": "Upper end of the 90% interval of the RMSEA",
    "srmr": "Standardized root mean square residual",
    "loglik": "Log-likelihood, given the exogenous variables",
    "aic": "Akaike information criterion",
    "bic": "Bayesian information criterion",
}


def sem(
    ds: xr.Dataset,
    model: str | None = None,
    *,
    variables: Mapping[str, Selector] | None = None,
    rivals: Mapping[str, str] | None = None,
    n_boot: int | None = None,
    seed: int = 0,
    groups: Hashable | None = "cohort",
    group: str | None = "stroke",
    included: Hashable | None = "included",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Fit a structural equation model among subject-level variables.

    Parameters
    ----------
    ds
        Dataset of a finished store, on native or on lesional sides.
    model
        Model in lavaan's syntax; latent variables (``=~``) are allowed. Default:
        ``motor ~ cst + ipsi``, ``contra ~ motor + cst + ipsi``, ``ipsi ~ cst``. Residual
        covariances are free only where the model says so (``~~``).
    variables
        What a name of the model stands for: a variable over ``subject``, a pair such as
        ``("tract_load_max", {"tract": "CST_ipsilesional"})`` or a DataArray over
        ``subject``. A name that is not mapped is one of the four defaults of the Notes, or
        a variable of `ds`.
    rivals
        Further models of the same variables, by name, to compare. Default: for the default
        model, the arrow between motor and contra reversed, and removed.
    n_boot
        Replicates of the bootstrap, 0 for none. Default 2000, or 200 where each needs an
        iterative fit (latent variables, labels, free residual covariances).
    seed
        Seed of the bootstrap.
    groups
        Variable over ``subject`` whose values are resampled as a whole; None resamples
        subjects.
    group
        Value of the variable ``group`` to use; None, or a Dataset without it, uses all.
    included
        Bool variable over ``subject``; rows where it is False are left out.
    confidence
        Level of the intervals (the RMSEA's is always 90%).

    Returns
    -------
    Dataset
        Over ``path`` (``"motor ~ cst"``): ``estimate``, ``se``, ``z``, ``p``, ``ci_low``,
        ``ci_high`` (normal theory), ``std_estimate``, ``std_ci_low``, ``std_ci_high``
        (bootstrap). Over ``indirect`` (``"cst -> ipsi -> contra"``): ``indirect_estimate``
        and ``indirect_std_estimate``, each with ``..._ci_low`` and ``..._ci_high``
        (bootstrap). Scalars: ``chi2``, ``df``, ``p_chi2``, ``cfi``, ``tli``, ``rmsea``,
        ``rmsea_low``, ``rmsea_high``, ``srmr``, ``loglik``, ``aic``, ``bic``, ``n``,
        ``n_dropped``, ``n_boot_failed``. Over ``model`` (``"specified"`` first, then the
        rivals): ``model_chi2``, ``model_df``, ``model_p``, ``model_cfi``, ``model_rmsea``,
        ``model_srmr``, ``model_aic``, ``model_bic``. Over ``rival_path``
        (``"reversed: motor ~ contra"``): ``rival_estimate``, ``rival_se``, ``rival_p``,
        ``rival_std_estimate``. Over ``subject``: ``dropped``.

    Raises
    ------
    MissingVariableError
        If a variable that the model needs is not in `ds`.
    StatisticsError
        If the model is malformed or not identified, a variable is constant, or the fit does
        not converge.

    Notes
    -----
    Default variables: ``motor`` is ``motor_score``; ``cst`` is ``tract_load`` of
    ``CST_ipsilesional``, the plain overlap; ``ipsi`` is the mean of
    ``brain_pad_corrected / calibration_slope`` over the ipsilesional regions that have a
    value; ``contra`` is the same of ``FPN_contralesional``. Named through `variables`,
    ``brain_pad_corrected`` is divided by ``calibration_slope`` as well, if its label is
    lesional.

    Rows with a missing value in any variable are left out (listwise), counted in
    ``n_dropped`` and flagged in ``dropped``; subjects of another group are neither.
    Estimates are of maximum likelihood with the exogenous variables as given, standard
    errors from the expected information, all with ``n`` as divisor, as lavaan's defaults.
    A bootstrap replicate that cannot be fitted is counted in ``n_boot_failed``.

    The default model has as many paths as covariances: it is saturated, so its indices are
    perfect by construction (``attrs["saturated"]`` is 1), and the reversed arrow fits
    exactly as well. AIC and BIC cannot tell the two apart; only the restricted model, which
    has neither arrow, can be rejected.

    References
    ----------
    Meshcheryakov et al., semopy 2, DOI 10.48550/arXiv.2106.01140. Rosseel, lavaan,
    DOI 10.18637/jss.v048.i02.
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    parsed = parse_model(DEFAULT_MODEL if model is None else model)
    if rivals is None:
        rivals = RIVAL_MODELS if model is None else {}
    others = {name: parse_model(text) for name, text in rivals.items()}
    for name, other in others.items():
        if set(other.observed) != set(parsed.observed):
            raise StatisticsError(
                f"SEM: rival '{name}' has the variables {sorted(other.observed)}, expected "
                f"{sorted(parsed.observed)}: AIC and BIC compare models of the same variables."
            )
    keep = eligible_subjects(ds, group=group, included=included)
    frame, described = _observed(ds, parsed, variables or {})
    complete = np.isfinite(frame.to_numpy(dtype=np.float64)).all(axis=1)
    clusters = _clusters(ds, groups)
    complete &= clusters >= 0
    used = keep & complete
    told = _told(frame, keep, used, clusters)
    if not used.any():
        raise StatisticsError(f"SEM: no complete row: {told}. Check these variables.")
    data = frame[used]
    fit = fit_sem(parsed, data)
    fits = {"specified": fit} | {name: fit_sem(other, data) for name, other in others.items()}
    chains = parsed.chains()
    if n_boot is None:
        n_boot = 2000 if parsed.is_recursive else 200
    raw, std, failed = _bootstrap(parsed, data, clusters[used], fit, n_boot, seed)
    tail = (1 - confidence) / 2
    out = _paths(fit, std, tail)
    out = out.merge(_indirect(chains, fit, raw, std, tail))
    for name, long_name in _INDICES.items():
        target = "p_chi2" if name == "p" else name
        out[target] = ((), fit.indices[name], {"long_name": long_name})
    out["n"] = ((), int(used.sum()), {"long_name": "Subjects used"})
    out["n_dropped"] = (
        (),
        int((keep & ~used).sum()),
        {"long_name": "Eligible subjects left out for a missing value"},
    )
    out["n_boot_failed"] = ((), failed, {"long_name": "Replicates that could not be fitted"})
    out = out.merge(_comparison(fits, others))
    out["dropped"] = (("subject",), keep & ~used, {"long_name": "Left out for a missing value"})
    if "subject" in ds.coords:
        out = out.assign_coords(subject=ds["subject"].values)
    saturated = int(fit.indices["df"] == 0)
    out.attrs = {
        "model": parsed.text,
        "variables": {name: described[name] for name in parsed.observed},
        "rows_dropped": told,
        "saturated": saturated,
        "estimator": "ML, semopy polished to the optimum",
        "bootstrap": f"{n_boot} replicates over {groups or 'subjects'}, seed {seed}",
        "confidence": confidence,
        "model_text": {"specified": parsed.text} | dict(rivals),
    }
    if saturated:
        out.attrs["note"] = (
            "The model is saturated: it reproduces every covariance, so its fit indices are "
            "perfect by construction and say nothing about its direction."
        )
    if fit.improper:
        out.attrs["improper"] = list(fit.improper)
        logger.warning("SEM: negative variance of %s; do not trust this fit", fit.improper)
    if (keep & ~used).any():
        logger.info("SEM: %s", told)
    return out


def _observed(
    ds: xr.Dataset, model: ModelText, variables: Mapping[str, Selector]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One column per observed variable of the model, and what it stands for."""
    unused = sorted(set(variables) - set(model.observed))
    if unused:
        raise StatisticsError(
            f"SEM: variables {unused} are not in the model, whose observed variables are "
            f"{sorted(model.observed)}."
        )
    index = subject_frame(ds, []).index
    columns: dict[str, FloatArray] = {}
    described: dict[str, str] = {}
    for name in model.observed:
        if name in variables:
            values, told = _mapped(ds, name, variables[name])
        elif name in _DEFAULT_VARIABLES and name not in ds.variables:
            values, told = _default(ds, name), _DEFAULT_VARIABLES[name]
        elif name in ds.variables:
            values, told = _numbers(ds, name), name
        else:
            raise MissingVariableError(
                f"SEM: '{name}' is not a variable of the Dataset. Way out: "
                f"variables={{'{name}': 'some_variable'}}."
            )
        if values.shape != (len(index),):
            raise StatisticsError(
                f"SEM: '{name}' must have one value per subject ({len(index)}), "
                f"got shape {values.shape}."
            )
        columns[name], described[name] = values, told
    return pd.DataFrame(columns, index=index), described


def _default(ds: xr.Dataset, name: str) -> FloatArray:
    if name == "motor":
        if "motor_score" not in ds.variables:
            raise MissingVariableError(
                "SEM: variable 'motor_score' is missing. Way out: add a motor score to "
                "participants.tsv and ingest again, or variables={'motor': 'your_variable'}."
            )
        return _numbers(ds, "motor_score")
    if name == "cst":
        load = lesional_measures(ds, ["tract_load"])["tract_load"]
        return _values(_at(load, {"tract": "CST_ipsilesional"}))
    pad = lesional_measures(ds, ["brain_pad_corrected"])["brain_pad_corrected"]
    if name == "contra":
        return _values(_at(pad, {"region": "FPN_contralesional"}))
    own = [label for label in pad["region"].values if str(label).endswith("_ipsilesional")]
    return _values(pad.sel(region=own).mean("region", skipna=True))


def _mapped(ds: xr.Dataset, name: str, selector: Selector) -> tuple[FloatArray, str]:
    if isinstance(selector, xr.DataArray):
        array = selector
        if "subject" not in array.dims:
            raise StatisticsError(f"SEM: '{name}' has dims {array.dims}, expected ('subject',).")
        if "subject" in ds.coords and "subject" in array.coords:
            array = array.reindex(subject=ds["subject"].values)
        return _values(array), "DataArray" if selector.name is None else str(selector.name)
    if not isinstance(selector, tuple):
        if selector not in ds.variables:
            raise MissingVariableError(f"SEM: variable '{selector}' for '{name}' is not in ds.")
        return _numbers(ds, selector), str(selector)
    source, labels = selector
    told = f"{source} at {', '.join(f'{dim}={label}' for dim, label in labels.items())}"
    lesional = any(
        str(label).endswith(("ipsilesional", "contralesional")) for label in labels.values()
    )
    if lesional and source in _SIDED:
        array = lesional_measures(ds, [str(source)])[source]
        told += " / calibration_slope" if source == "brain_pad_corrected" else ""
    elif source in ds.variables:
        array = ds[source]
    else:
        raise MissingVariableError(f"SEM: variable '{source}' for '{name}' is not in ds.")
    return _values(_at(array, labels)), told


def _at(array: xr.DataArray, labels: Mapping[Any, Hashable]) -> xr.DataArray:
    try:
        return array.sel(dict(labels), drop=True)
    except KeyError:
        raise MissingVariableError(
            f"SEM: '{array.name}' has no {dict(labels)}. It has: "
            + "; ".join(f"{dim}: {', '.join(map(str, array[dim].values))}" for dim in labels)
            + ". Way out: map the name to another variable with `variables`."
        ) from None


def _numbers(ds: xr.Dataset, name: Hashable) -> FloatArray:
    column = subject_frame(ds, [name])[str(name)]
    if column.dtype.kind not in "biuf":
        raise StatisticsError(
            f"SEM: '{name}' is text; map the name to a variable of numbers, e.g. "
            f"variables={{'{name}': (ds['{name}'] == 'M').astype(float)}}."
        )
    return column.to_numpy(dtype=np.float64)


def _values(array: xr.DataArray) -> FloatArray:
    return np.asarray(array.values, dtype=np.float64)


def _clusters(ds: xr.Dataset, groups: Hashable | None) -> npt.NDArray[np.int64]:
    if groups is None:
        return np.arange(ds.sizes["subject"], dtype=np.int64)
    codes, _ = pd.factorize(subject_frame(ds, [groups])[str(groups)], sort=True)
    return codes.astype(np.int64)


def _told(
    frame: pd.DataFrame, keep: BoolArray, used: BoolArray, clusters: npt.NDArray[np.int64]
) -> str:
    counts = {name: int((keep & ~np.isfinite(frame[name].to_numpy())).sum()) for name in frame}
    counts["groups"] = int((keep & (clusters < 0)).sum())
    reasons = "; ".join(f"{name} missing: {count}" for name, count in counts.items() if count)
    told = f"{int((keep & ~used).sum())} of {int(keep.sum())} eligible subjects left out"
    return f"{told} ({reasons})" if reasons else told


def _bootstrap(
    model: ModelText,
    data: pd.DataFrame,
    clusters: npt.NDArray[np.int64],
    fit: SemFit,
    n_boot: int,
    seed: int,
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], int]:
    """Raw and standardized estimates of every path in each replicate that could be fitted."""
    names = list(fit.estimate)
    empty = {name: np.empty(0) for name in names}
    if n_boot == 0:
        return empty, dict(empty), 0
    _, codes = np.unique(clusters, return_inverse=True)
    n_groups = int(codes.max()) + 1
    if n_groups < 2:
        raise StatisticsError(
            "SEM: all rows belong to one group, which cannot be resampled. Pass groups=None to "
            "resample subjects, or n_boot=0."
        )
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_boot)
    if model.is_recursive:
        return _bootstrap_paths(model, data, codes, weights, names)
    raw: dict[str, list[float]] = {name: [] for name in names}
    std: dict[str, list[float]] = {name: [] for name in names}
    failed = 0
    for weight in weights:
        rows = np.repeat(np.arange(len(data)), weight[codes])
        try:
            replicate = fit_sem(model, data.iloc[rows], start=fit.start)
        except StatisticsError:
            failed += 1
            continue
        for name in names:
            raw[name].append(replicate.estimate[name])
            std[name].append(replicate.standardized[name])
    return (
        {name: np.array(values) for name, values in raw.items()},
        {name: np.array(values) for name, values in std.items()},
        failed,
    )


def _bootstrap_paths(
    model: ModelText,
    data: pd.DataFrame,
    codes: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int64],
    names: list[str],
) -> tuple[dict[str, FloatArray], dict[str, FloatArray], int]:
    """Least squares equation by equation, from the moments of each group."""
    columns = list(model.observed)
    x = data[columns].to_numpy(dtype=np.float64)
    unit = x.std(axis=0)
    x = (x - x.mean(axis=0)) / unit
    n_groups, p = weights.shape[1], len(columns)
    first = np.zeros((n_groups, p))
    np.add.at(first, codes, x)
    second = np.zeros((n_groups, p, p))
    np.add.at(second, codes, x[:, :, None] * x[:, None, :])
    n = weights @ np.bincount(codes, minlength=n_groups)
    mean = (weights @ first) / n[:, None]
    cov = np.tensordot(weights, second, axes=1) / n[:, None, None]
    cov -= mean[:, :, None] * mean[:, None, :]
    sd = np.sqrt(np.maximum(np.einsum("bii->bi", cov), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = cov / (sd[:, :, None] * sd[:, None, :])
    fine = np.isfinite(correlation).all(axis=(1, 2))
    fine[fine] = np.linalg.eigvalsh(correlation[fine])[:, 0] > 1e-10
    cov, sd = cov[fine], sd[fine]
    raw: dict[str, FloatArray] = {}
    std: dict[str, FloatArray] = {}
    for left, rights in model.regressions().items():
        i = columns.index(left)
        js = [columns.index(right) for right in rights]
        slopes = np.linalg.solve(cov[:, js][:, :, js], cov[:, js, i][:, :, None])[:, :, 0]
        for j, right, slope in zip(js, rights, slopes.T, strict=True):
            raw[f"{left} ~ {right}"] = slope * unit[i] / unit[j]
            std[f"{left} ~ {right}"] = slope * sd[:, j] / sd[:, i]
    return {k: raw[k] for k in names}, {k: std[k] for k in names}, int((~fine).sum())


def _interval(values: FloatArray, tail: float) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return np.nan, np.nan
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _paths(fit: SemFit, std: dict[str, FloatArray], tail: float) -> xr.Dataset:
    names = list(fit.estimate)
    estimate = np.array([fit.estimate[name] for name in names])
    se = np.array([fit.se[name] for name in names])
    z = estimate / se
    half = scipy.stats.norm.ppf(1 - tail) * se
    limits = np.array([_interval(std[name], tail) for name in names]).reshape(-1, 2)
    columns = {
        "estimate": (estimate, "Path coefficient, in units of its variables"),
        "se": (se, "Standard error, expected information"),
        "z": (z, "Wald statistic"),
        "p": (2 * scipy.stats.norm.sf(np.abs(z)), "Two-sided p value of the Wald test"),
        "ci_low": (estimate - half, "Lower end of the Wald interval"),
        "ci_high": (estimate + half, "Upper end of the Wald interval"),
        "std_estimate": (
            np.array([fit.standardized[name] for name in names]),
            "Standardized path coefficient",
        ),
        "std_ci_low": (limits[:, 0], "Lower end of the cluster-bootstrap interval"),
        "std_ci_high": (limits[:, 1], "Upper end of the cluster-bootstrap interval"),
    }
    return xr.Dataset(
        {k: ("path", values, {"long_name": told}) for k, (values, told) in columns.items()},
        coords={"path": np.array(names, dtype=object)},
    )


def _indirect(
    chains: list[tuple[str, ...]],
    fit: SemFit,
    raw: dict[str, FloatArray],
    std: dict[str, FloatArray],
    tail: float,
) -> xr.Dataset:
    """Products of coefficients along each chain, with bootstrap intervals."""
    out: dict[str, list[float]] = {
        f"{prefix}_{part}": []
        for prefix in ("indirect", "indirect_std")
        for part in ("estimate", "ci_low", "ci_high")
    }
    for chain in chains:
        steps = [f"{child} ~ {parent}" for parent, child in itertools.pairwise(chain)]
        for prefix, point, replicates in (
            ("indirect", fit.estimate, raw),
            ("indirect_std", fit.standardized, std),
        ):
            low, high = _interval(np.prod([replicates[step] for step in steps], axis=0), tail)
            out[f"{prefix}_estimate"].append(float(np.prod([point[step] for step in steps])))
            out[f"{prefix}_ci_low"].append(low)
            out[f"{prefix}_ci_high"].append(high)
    return xr.Dataset(
        {
            name: ("indirect", np.array(values), {"long_name": "Indirect effect along the chain"})
            for name, values in out.items()
        },
        coords={"indirect": np.array([" -> ".join(chain) for chain in chains], dtype=object)},
    )


def _comparison(fits: dict[str, SemFit], others: dict[str, ModelText]) -> xr.Dataset:
    out = xr.Dataset(coords={"model": np.array(list(fits), dtype=object)})
    for name in ("chi2", "df", "p", "cfi", "rmsea", "srmr", "aic", "bic"):
        values = np.array([fit.indices[name] for fit in fits.values()], dtype=np.float64)
        out[f"model_{name}"] = ("model", values, {"long_name": _INDICES[name]})
    rows = [
        (f"{name}: {path}", fits[name].estimate[path], fits[name].se[path], fits[name], path)
        for name in others
        for path in fits[name].estimate
    ]
    estimate = np.array([row[1] for row in rows])
    se = np.array([row[2] for row in rows])
    out = out.assign_coords(rival_path=np.array([row[0] for row in rows], dtype=object))
    out["rival_estimate"] = ("rival_path", estimate)
    out["rival_se"] = ("rival_path", se)
    out["rival_p"] = ("rival_path", 2 * scipy.stats.norm.sf(np.abs(estimate / se)))
    out["rival_std_estimate"] = (
        "rival_path",
        np.array([row[3].standardized[row[4]] for row in rows]),
    )
    return out
