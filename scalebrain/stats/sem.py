"""Structural equation models among damage, regional brain age and motor outcome."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import xarray as xr

from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import StatisticsError
from scalebrain.features.inclusion import ONE_SCAN, check_one_scan
from scalebrain.stats.counts import check_count
from scalebrain.stats.frame import ineligible_reasons
from scalebrain.stats.scales import scale_note, scales_of
from scalebrain.stats.sem_boot import Replicates, bootstrap
from scalebrain.stats.sem_compare import comparison, conclusions, rival_paths
from scalebrain.stats.sem_fit import SemFit, fit_sem
from scalebrain.stats.sem_model import Parameter, SemModel, parse_model
from scalebrain.stats.sem_variables import (
    DEFAULT_MODEL,
    RIVAL_MODELS,
    Selector,
    default_model,
    group_codes,
    observed_frame,
)

__all__ = ["DEFAULT_MODEL", "RIVAL_MODELS", "sem"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
_MISSING = ("listwise", "fiml")
_INDIRECT = "Indirect effect along the chain, in units of its first and last variable"
_INDIRECT_STD = "Standardized indirect effect along the chain"
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
    missing: Literal["listwise", "fiml"] = "listwise",
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
        Model in lavaan's syntax: regressions (``~``), latent variables (``=~``), residual
        covariances (``~~``), intercepts (``~ 1``), labels and fixed values (``a*x``,
        ``0.5*x``) and defined parameters (``indirect := a*b``). Default:
        ``motor ~ cst + ipsi``, ``contra ~ motor + cst + ipsi``, ``ipsi ~ cst``.
    variables
        What a name of the model stands for: a variable over ``subject``, a pair such as
        ``("tract_load_max", {"tract": "CST_ipsilesional"})`` or a DataArray over
        ``subject``, with a value or NaN of everyone who is used. A name that is not mapped is
        one of the four defaults of the Notes, or a variable of `ds`.
    rivals
        Further models of the same variables, by name, to compare. Default: for the default
        model, the arrow between motor and contra reversed, and removed.
    missing
        ``"listwise"`` leaves out everyone who lacks a variable. ``"fiml"`` uses what each
        person has (full-information maximum likelihood), which is unbiased where what is
        missing depends on nothing but what is observed.
    n_boot
        Replicates of the bootstrap, 0 for none. Default 2000, or 500 where each needs an
        iterative fit (latent variables, shared labels, free residual covariances, FIML).
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
        Over ``path`` (``"motor ~ cst"``; covariances that were added too): ``estimate``,
        ``se``, ``z``, ``p``, ``ci_low``, ``ci_high`` (normal theory, people independent),
        ``boot_se``, ``boot_ci_low``, ``boot_ci_high``, ``std_estimate``, ``std_se``,
        ``std_ci_low``, ``std_ci_high`` (bootstrap), ``n_pairs`` (people who have both ends).
        Over ``indirect`` (``"cst -> ipsi -> contra"``): ``indirect_estimate``
        and ``indirect_std_estimate``, each with ``..._ci_low`` and ``..._ci_high``
        (bootstrap). Over ``defined`` (the ``:=`` of the text): ``defined_estimate``,
        ``defined_se``, ``defined_p`` (delta method), ``defined_ci_low``,
        ``defined_ci_high``, ``defined_std_estimate``, ``defined_std_ci_low``,
        ``defined_std_ci_high`` (bootstrap). Over ``variable``: ``variance`` (residual, for
        an outcome), ``variance_se``, ``r_squared``. Scalars: ``chi2``, ``df``, ``p_chi2``,
        ``cfi``, ``tli``, ``rmsea``,
        ``rmsea_low``, ``rmsea_high``, ``srmr``, ``loglik``, ``aic``, ``bic``, ``n``,
        ``n_dropped``, ``n_boot_failed``. Over ``model`` (``"specified"`` first, then the
        rivals): ``model_chi2``, ``model_df``, ``model_p``, ``model_cfi``, ``model_rmsea``,
        ``model_srmr``, ``model_aic``, ``model_bic``, ``model_equivalent`` (it implies the
        same moments as the specified one). Over ``rival_path``
        (``"reversed: motor ~ contra"``): ``rival_estimate``, ``rival_se``, ``rival_p``,
        ``rival_std_estimate``. Over ``modification``, parameters that the model leaves out
        (not if it is saturated): ``modification_index``, ``modification_p``, ``expected_change``,
        ``expected_std_change``. Over ``subject``: ``dropped``, ``drop_reason`` (empty for those
        used). ``attrs["conclusions"]`` says in words what the comparison can and cannot tell;
        ``attrs["scale_note"]``, where ``motor_score`` is used, that scores of several scales
        are pooled.

    Raises
    ------
    MissingVariableError
        If a variable that the model needs is not in `ds`.
    StatisticsError
        If the model is malformed or not identified, a variable is constant, the fit does
        not converge, or the rows used hold a person twice (two scans of a person are no two
        people, to whom standard errors, p values and fit indices apply).

    Notes
    -----
    Default variables: ``motor`` is ``motor_score``; ``cst`` is ``tract_load`` of
    ``CST_ipsilesional``, the plain overlap; ``ipsi`` is the mean of
    ``brain_pad_corrected / calibration_slope`` over the ipsilesional regions that have a
    value; ``contra`` is the same of ``FPN_contralesional``. Named through `variables`,
    ``brain_pad_corrected`` is divided by ``calibration_slope`` as well, if its label is
    lesional.

    Ages of another tool (:func:`scalebrain.import_ages`) whose slope is not known are not
    divided. Where their age bias was not corrected, ``brain_pad`` is taken, and every
    equation of the default model gets ``+ age``. With one age of the whole brain the default
    model is ``motor ~ cst + brain``, ``brain ~ cst``, without rivals.

    The text is completed as lavaan's function ``sem`` completes it: outcomes that predict
    nothing have residual covariances, exogenous latent variables covary, and the first
    loading of a latent variable is 1.

    Subjects that are not used are counted in ``n_dropped`` and flagged in ``dropped``, with
    the reason in ``drop_reason``: those of another group, the excluded, the extrapolated, and
    rows that cannot be used (``attrs["rows_dropped"]``). With ``"listwise"`` that is every row
    with a missing value; estimates are of maximum likelihood with the exogenous variables as
    given, standard errors from the expected information, all with ``n`` as divisor, as
    lavaan's defaults. With ``"fiml"`` it is a row without any value; intercepts are
    estimated, standard errors are from the observed information, and exogenous variables
    are taken as given where nobody lacks one (lavaan's ``missing="fiml"``), else estimated
    (with ``fixed.x=FALSE``).

    Bootstrap intervals resample whole groups. They are percentile intervals, widened for
    few groups (:func:`scalebrain.stats.sem_boot.widened_tail`); the normal-theory standard
    errors take people as independent. A replicate that cannot be fitted is counted in
    ``n_boot_failed``.

    Modification indices are score tests of one parameter at a time. They are hints for a
    next study: a model that was changed by them has no valid p values in the same data.
    Where models differ in what is exogenous, AIC and BIC of the comparison are those of
    all variables together.

    The default model has as many paths as covariances: it is saturated, so its indices are
    perfect by construction (``attrs["saturated"]`` is 1), and the reversed arrow fits
    exactly as well. AIC and BIC cannot tell the two apart; only the restricted model, which
    has neither arrow, can be rejected.

    References
    ----------
    Meshcheryakov et al., semopy 2, DOI 10.48550/arXiv.2106.01140. Rosseel, lavaan,
    DOI 10.18637/jss.v048.i02. Enders and Bandalos, FIML,
    DOI 10.1207/S15328007SEM0803_5. Hesterberg, bootstrap,
    DOI 10.1080/00031305.2015.1089789.
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    if n_boot is not None:
        n_boot = check_count("n_boot", n_boot, zero=True)
    if missing not in _MISSING:
        raise StatisticsError(f"missing: expected one of {', '.join(_MISSING)}, got '{missing}'.")
    default, default_rivals = default_model(ds)
    parsed = parse_model(default if model is None else model)
    if rivals is None:
        rivals = default_rivals if model is None else {}
    others = {name: parse_model(text) for name, text in rivals.items()}
    for name, other in others.items():
        if set(other.observed) != set(parsed.observed):
            raise StatisticsError(
                f"SEM: rival '{name}' has the variables {sorted(other.observed)}, expected "
                f"{sorted(parsed.observed)}: AIC and BIC compare models of the same variables."
            )
    reason = ineligible_reasons(ds, group=group, included=included)
    keep = reason == ""
    clusters = group_codes(ds, groups)
    needed = keep & (clusters >= 0)
    frame, described = observed_frame(ds, parsed, variables or {}, needed=needed)
    frame = frame.where(np.isfinite(frame.to_numpy(dtype=np.float64)))
    there = frame.notna().to_numpy()
    used = keep & (there.all(axis=1) if missing == "listwise" else there.any(axis=1))
    used &= clusters >= 0
    told = _told(reason, frame, used, clusters)
    for k in np.flatnonzero(keep & ~used):
        gaps = [str(name) for name, known in zip(frame, there[k], strict=True) if not known]
        gaps = gaps if missing == "listwise" or not there[k].any() else []
        gaps += [str(groups)] if clusters[k] < 0 else []
        reason[k] = f"{', '.join(gaps)} missing"
    if not used.any():
        raise StatisticsError(f"SEM: no complete row. Not used: {told}. Check these variables.")
    check_one_scan(ds, used, where="SEM", ways=ONE_SCAN)
    data, codes = frame[used], np.unique(clusters[used], return_inverse=True)[1]
    with one_thread_each():  # sums in one order: the numbers do not depend on the machine
        fit = fit_sem(parsed, data, missing=missing, codes=codes)
        fits = {"specified": fit}
        fits |= {name: fit_sem(o, data, missing=missing, codes=codes) for name, o in others.items()}
        if n_boot is None:
            closed = parsed.is_recursive and len(fit.sums.where) == 1
            n_boot = 2000 if closed else 500
        replicates = bootstrap(fit, n_boot=n_boot, seed=seed)
        parts = [
            _paths(fit, replicates, data, confidence),
            _indirect(fit, replicates, confidence),
            _defined(fit, replicates, confidence),
            _variances(fit),
            _hints(fit),
            comparison(fits),
            rival_paths(fits),
        ]
    out = xr.merge(parts)
    for name, long_name in _INDICES.items():
        target = "p_chi2" if name == "p" else name
        out[target] = ((), fit.indices[name], {"long_name": long_name})
        if f"model_{name}" in out:
            out[f"model_{name}"].attrs["long_name"] = long_name
    out["n"] = ((), int(used.sum()), {"long_name": "Subjects used"})
    out["n_dropped"] = ((), int((~used).sum()), {"long_name": "Subjects not used"})
    out["n_boot_failed"] = (
        (),
        replicates.n_failed,
        {"long_name": "Replicates that could not be fitted"},
    )
    out["dropped"] = ("subject", ~used, {"long_name": "The subject was not used"})
    words = {"long_name": "Why the subject was not used, or empty"}
    out["drop_reason"] = ("subject", reason.astype(str), words)
    if "subject" in ds.coords:
        out = out.assign_coords(subject=ds["subject"].values)
    out.attrs = {
        "model": parsed.text,
        "variables": {name: described[name] for name in parsed.observed},
        "rows_dropped": told,
        "missing": missing,
        "saturated": int(fit.indices["df"] == 0),
        "estimator": _estimator(fit, missing),
        "bootstrap": f"{n_boot} replicates over {groups or 'subjects'} "
        f"({replicates.n_groups} of them), seed {seed}, percentile interval widened for few of "
        "them",
        "groups": str(groups or "subject"),
        "n_groups": replicates.n_groups,
        "confidence": confidence,
        "model_text": {"specified": parsed.text} | dict(rivals),
        "conclusions": conclusions(fits),
    }
    if fit.indices["df"] == 0:
        out.attrs["note"] = (
            "The model is saturated: it reproduces every covariance, so its fit indices are "
            "perfect by construction and say nothing about its direction."
        )
    if "motor_score" in described.values():
        out.attrs["scale_note"] = scale_note(scales_of(ds, used, "motor_score"))
        if out.attrs["scale_note"]:
            logger.warning("SEM: %s Way out: keep one scale.", out.attrs["scale_note"])
    if fit.improper:
        out.attrs["improper"] = list(fit.improper)
        logger.warning(
            "SEM: %s; no population has that, do not trust this fit", "; ".join(fit.improper)
        )
    if (keep & ~used).any():
        logger.info("SEM: not used: %s", told)
    return out


def _estimator(fit: SemFit, missing: str) -> str:
    told = "maximum likelihood, semopy polished to the optimum"
    if missing == "listwise":
        return f"{told}; complete rows"
    return (
        f"full-information {told}; {len(fit.sums.where)} patterns of missing values; exogenous "
        f"variables {'taken as given' if fit.model.exogenous else 'estimated'}"
    )


def _told(
    reason: npt.NDArray[np.object_],
    frame: pd.DataFrame,
    used: BoolArray,
    clusters: npt.NDArray[np.int64],
) -> str:
    """Count who is not used: the ineligible by reason, the others by what they lack."""
    lost = (reason == "") & ~used
    words, times = np.unique(reason[reason != ""].astype(str), return_counts=True)
    counts = dict(zip(words.tolist(), times.tolist(), strict=True))
    counts |= {f"{k} missing": int((lost & frame[k].isna().to_numpy()).sum()) for k in frame}
    counts["groups missing"] = int((lost & (clusters < 0)).sum())
    reasons = "; ".join(f"{word}: {count}" for word, count in counts.items() if count)
    told = f"{int((~used).sum())} of {len(used)} subjects"
    return f"{told} ({reasons})" if reasons else told


def _shown(model: SemModel) -> list[tuple[int, Parameter]]:
    """Parameters of the result's `path`, with their positions among all."""
    return [
        (k, p)
        for k, p in enumerate(model.parameters)
        if not p.is_variance
        and (p.op in ("~", "=~") or (p.op == "~~" and p.value is None) or p.user)
        and not (p.op == "~~" and p.value is not None)
        and not (p.op == "~~" and not p.user and {p.left, p.right} & _moved(model))
    ]


def _moved(model: SemModel) -> set[str]:
    """Variables that only predict, but are estimated for want of complete values."""
    regressed = model.regressions()
    inside = {*regressed, *model.latent}
    inside |= {p.right for p in model.parameters if p.op == "=~"}
    named = {v for p in model.parameters if p.op == "~~" and p.user for v in (p.left, p.right)}
    return {v for causes in regressed.values() for v in causes} - inside - named


def _limits(values: FloatArray, replicates: Replicates, confidence: float) -> FloatArray:
    """Lower and upper ends (name, 2) of values (replicate, name)."""
    limits = [replicates.interval(column, confidence) for column in values.T]
    return np.array(limits).reshape(-1, 2)


def _pairs(model: SemModel, data: pd.DataFrame, p: Parameter) -> int:
    """People who have both ends of a path; of a latent variable, any indicator."""

    def have(name: str, seen: frozenset[str] = frozenset()) -> BoolArray:
        if name in data:
            return data[name].notna().to_numpy()
        items = [q.right for q in model.parameters if q.op == "=~" and q.left == name]
        parts = [have(v, seen | {name}) for v in items if v not in seen]
        return np.asarray(np.any(parts, axis=0))

    both = have(p.left) if p.op == "~1" else have(p.left) & have(p.right)
    return int(both.sum())


def _paths(
    fit: SemFit, replicates: Replicates, data: pd.DataFrame, confidence: float
) -> xr.Dataset:
    shown = _shown(fit.model)
    names, rows = [p.name for _, p in shown], [k for k, _ in shown]
    estimate = np.array([fit.estimate[name] for name in names])
    se = np.array([fit.se[name] for name in names])
    z = estimate / se
    half = scipy.stats.norm.ppf(0.5 + confidence / 2) * se
    raw, std = replicates.raw[:, rows], replicates.standardized[:, rows]
    raw_limits = _limits(raw, replicates, confidence)
    std_limits = _limits(std, replicates, confidence)
    spread = raw.std(axis=0, ddof=1) if len(raw) > 1 else np.full(len(names), np.nan)
    columns = {
        "estimate": (estimate, "Path coefficient, in units of its variables"),
        "se": (se, "Standard error of maximum likelihood, people independent"),
        "z": (z, "Wald statistic"),
        "p": (2 * scipy.stats.norm.sf(np.abs(z)), "Two-sided p value of the Wald test"),
        "ci_low": (estimate - half, "Lower end of the Wald interval"),
        "ci_high": (estimate + half, "Upper end of the Wald interval"),
        "boot_se": (spread, "Standard deviation over cluster-bootstrap replicates"),
        "boot_ci_low": (raw_limits[:, 0], "Lower end of the cluster-bootstrap interval"),
        "boot_ci_high": (raw_limits[:, 1], "Upper end of the cluster-bootstrap interval"),
        "std_estimate": (
            np.array([fit.standardized[name] for name in names]),
            "Standardized path coefficient",
        ),
        "std_se": (
            np.array([fit.std_se[name] for name in names]),
            "Standard error of the standardized coefficient, delta method",
        ),
        "std_ci_low": (
            std_limits[:, 0],
            "Lower end of the cluster-bootstrap interval of the standardized coefficient",
        ),
        "std_ci_high": (
            std_limits[:, 1],
            "Upper end of the cluster-bootstrap interval of the standardized coefficient",
        ),
        "n_pairs": (
            np.array([_pairs(fit.model, data, p) for _, p in shown], dtype=np.int64),
            "People who have both ends of the path",
        ),
    }
    return _over("path", names, columns)


def _indirect(fit: SemFit, replicates: Replicates, confidence: float) -> xr.Dataset:
    """Products of coefficients along each chain, with bootstrap intervals."""
    chains = fit.model.chains()
    columns: dict[str, tuple[FloatArray, str]] = {}
    for prefix, told, point, values in (
        ("indirect", _INDIRECT, fit.estimate, replicates.raw),
        ("indirect_std", _INDIRECT_STD, fit.standardized, replicates.standardized),
    ):
        products, drawn = [], []
        for chain in chains:
            steps = [f"{child} ~ {parent}" for parent, child in itertools.pairwise(chain)]
            products.append(np.prod([point[step] for step in steps]))
            places = [replicates.names.index(step) for step in steps]
            drawn.append(values[:, places].prod(axis=1))
        stacked = np.array(drawn).reshape(len(chains), len(values)).T
        limits = _limits(stacked, replicates, confidence)
        columns[f"{prefix}_estimate"] = (np.array(products, dtype=np.float64), told)
        columns[f"{prefix}_ci_low"] = (limits[:, 0], f"{told}, lower end (cluster bootstrap)")
        columns[f"{prefix}_ci_high"] = (limits[:, 1], f"{told}, upper end (cluster bootstrap)")
    return _over("indirect", [" -> ".join(chain) for chain in chains], columns)


def _defined(fit: SemFit, replicates: Replicates, confidence: float) -> xr.Dataset:
    """List the defined parameters of the text; without any, there is no dimension."""
    names = [one.name for one in fit.model.defined]
    if not names:
        return xr.Dataset()
    first = len(fit.model.parameters)
    estimate = np.array([fit.estimate[name] for name in names])
    se = np.array([fit.se[name] for name in names])
    raw = _limits(replicates.raw[:, first:], replicates, confidence)
    std = _limits(replicates.standardized[:, first:], replicates, confidence)
    columns = {
        "defined_estimate": (estimate, "Defined parameter"),
        "defined_se": (se, "Standard error of the defined parameter, delta method"),
        "defined_p": (
            2 * scipy.stats.norm.sf(np.abs(estimate / se)),
            "Two-sided p value of the defined parameter (Wald)",
        ),
        "defined_ci_low": (raw[:, 0], "Lower end of the cluster-bootstrap interval"),
        "defined_ci_high": (raw[:, 1], "Upper end of the cluster-bootstrap interval"),
        "defined_std_estimate": (
            np.array([fit.standardized[name] for name in names]),
            "Defined parameter of standardized coefficients",
        ),
        "defined_std_ci_low": (
            std[:, 0],
            "Lower end of the cluster-bootstrap interval of the standardized parameter",
        ),
        "defined_std_ci_high": (
            std[:, 1],
            "Upper end of the cluster-bootstrap interval of the standardized parameter",
        ),
    }
    return _over("defined", names, columns)


def _variances(fit: SemFit) -> xr.Dataset:
    own = [p for p in fit.model.parameters if p.is_variance]
    columns = {
        "variance": (
            np.array([fit.estimate[p.name] for p in own]),
            "Variance; of an outcome, what its causes leave over",
        ),
        "variance_se": (np.array([fit.se[p.name] for p in own]), "Standard error of the variance"),
        "r_squared": (
            np.array([fit.r_squared.get(p.left, np.nan) for p in own]),
            "Part of an outcome's variance that its causes explain",
        ),
    }
    return _over("variable", [p.left for p in own], columns)


def _hints(fit: SemFit) -> xr.Dataset:
    hints = fit.hints()
    if not hints:
        return xr.Dataset()
    index = np.array([hint.index for hint in hints])
    columns = {
        "modification_index": (
            index,
            "Score test (1 degree of freedom) of freeing the parameter; exploratory",
        ),
        "modification_p": (
            scipy.stats.chi2.sf(index, 1),
            "p value of the modification index, not corrected",
        ),
        "expected_change": (np.array([h.change for h in hints]), "Expected estimate if freed"),
        "expected_std_change": (
            np.array([h.std_change for h in hints]),
            "Expected standardized estimate if freed",
        ),
    }
    return _over("modification", [hint.name for hint in hints], columns)


def _over(
    dim: str, names: list[str], columns: Mapping[str, tuple[npt.NDArray[np.generic], str]]
) -> xr.Dataset:
    return xr.Dataset(
        {k: (dim, values, {"long_name": told}) for k, (values, told) in columns.items()},
        coords={dim: np.array(names, dtype=object)},
    )
