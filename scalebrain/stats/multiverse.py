"""Every headline effect under every defensible way to analyze it: a specification curve."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import ONE_SCAN, check_one_scan
from scalebrain.options import report_progress
from scalebrain.stats.choices import ICV_CHOICES, SCALE_CHOICES, Choice, site_choices
from scalebrain.stats.counts import check_count
from scalebrain.stats.frame import eligible_subjects, lesional_measures, subject_frame
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.mixed_basis import orthonormal
from scalebrain.stats.multiverse_fit import Equation
from scalebrain.stats.pads import GLOBAL_REGION, find_pad
from scalebrain.stats.sem_boot import widened_tail
from scalebrain.stats.sem_model import SemModel, parse_model
from scalebrain.stats.sem_variables import default_model, group_codes, observed_frame

__all__ = ["multiverse"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


#: Verdicts on an effect, and when they are given.
VERDICTS = {
    "robust": "fitted in every specification, with the same sign and an interval without zero",
    "mostly": "same sign wherever it was fitted, an interval without zero in at least half of all "
    "specifications",
    "weak": "an interval without zero in fewer than half of all specifications",
    "contradictory": "intervals on both sides of zero, or signs that differ beside intervals "
    "without zero in at least half of those that were fitted",
}


def multiverse(
    ds: xr.Dataset,
    *,
    policies: Mapping[str, xr.Dataset] | None = None,
    axes: Mapping[str, Sequence[Choice]] | None = None,
    covariates: Sequence[str] = ("age", "sex", "days_post_stroke"),
    n_boot: int = 1000,
    seed: int = 0,
    groups: Hashable = "cohort",
    group: str | None = "stroke",
    included: Hashable | None = "included",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Fit every headline effect under every combination of choices.

    Parameters
    ----------
    ds
        Dataset of a finished store on native sides.
    policies
        Further Datasets of the same subjects by name, whose brain ages were made under
        another lesion policy. `ds` itself takes the name of its own policy; ages of another
        tool (:func:`scalebrain.import_ages`) are ``"imported"``, under what the tool does.
    axes
        Further or other axes of choices by name. Defaults: ``site`` (:func:`site_choices`),
        ``icv`` (`ICV_CHOICES`) and ``scale`` (`SCALE_CHOICES`). An axis of a default's
        name replaces it.
    covariates
        Variables over ``subject`` that the regional models hold besides lesion volume.
    n_boot
        Replicates of the bootstrap, which draws whole groups; the same draws in every
        specification.
    seed
        Seed of the draws.
    groups
        Variable over ``subject``: what is resampled, and has random intercepts.
    group
        Value of the variable ``group`` to use; None, or a Dataset without it, uses all.
    included
        Bool variable over ``subject``; rows where it is False are left out.
    confidence
        Level of the intervals.

    Returns
    -------
    Dataset
        Over ``(effect, specification)``: ``estimate`` (standard deviations of the outcome
        per standard deviation of the cause), ``se``, ``ci_low``, ``ci_high`` (cluster
        bootstrap), ``n``. Over ``specification``, one coordinate an axis, ``policy`` among
        them. Over ``effect``: ``median_estimate``, ``lowest_estimate``,
        ``highest_estimate``, ``same_sign`` and ``excludes_zero`` (shares of the
        specifications that were fitted: sign of the median; that sign and an interval
        without zero), ``n_fitted``, ``verdict``. ``attrs["failures"]`` lists what could
        not be fitted, with its reason.

    Raises
    ------
    MissingVariableError
        If a variable that a choice needs is not in `ds`.
    StatisticsError
        If a policy has other subjects, two choices of an axis are the same model, a person is
        in the eligible rows twice, or nothing can be fitted.

    Notes
    -----
    Effects: of ``log10(lesion_volume)`` on the brain-PAD of every region on lesional sides
    (with `covariates`), and every path and indirect effect of the default model of
    :func:`scalebrain.sem`, equation by equation, on the people whom all its equations can
    use.

    With a random intercept the ratio of the two variances is the REML estimate of
    :func:`scalebrain.mixed_model` and is held in the replicates; slopes are generalized
    least squares. Without, they are ordinary least squares. Each replicate is standardized by
    its own standard deviations, as in :func:`scalebrain.sem`. Percentile intervals are
    widened for few groups (:func:`scalebrain.stats.sem_boot.widened_tail`).

    Verdicts: ``robust`` fitted in every specification, with the same sign and an interval
    without zero; ``mostly`` same sign wherever it was fitted, an interval without zero in at
    least half of all specifications; ``contradictory`` intervals on both sides of zero, or
    signs that differ beside intervals without zero in at least half of those that were fitted;
    ``weak`` otherwise. A specification that could not be fitted speaks for no effect.
    Specifications are not independent samples, so the shares are no p values.

    References
    ----------
    Steegen et al. 2016, DOI 10.1177/1745691616658637. Simonsohn, Simmons and Nelson 2020,
    DOI 10.1038/s41562-020-0912-z.
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    n_boot = check_count("n_boot", n_boot)
    site = {"site": site_choices(groups, group=group, included=included)}
    chosen = _axes(ds, policies or {}, site | dict(axes or {}), covariates)
    keep = eligible_subjects(ds, group=group, included=included)
    codes = group_codes(ds, groups)
    keep &= codes >= 0
    check_one_scan(ds, keep, where="Multiverse", ways=ONE_SCAN, groups=codes[keep])
    n_groups = len(np.unique(codes[keep]))
    if n_groups < 2:
        raise StatisticsError(
            f"Multiverse: eligible subjects with '{groups}' are of {n_groups} group; two or more "
            "are needed. Pass other `groups`."
        )
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_boot)
    weights = np.concatenate([np.ones((1, n_groups)), drawn])
    added = dict.fromkeys(v for c in _all(chosen) for v in c.covariates)
    extra = _finite(_numbers(ds, added, keep))
    names = list(chosen)
    specifications = list(itertools.product(*chosen.values()))
    prepared: dict[tuple[Hashable, ...], _Tables | str] = {}
    cells: dict[str, dict[int, tuple[FloatArray, int]]] = {}
    failures: list[str] = []
    for number, choices in enumerate(specifications):
        report_progress("multiverse", number, len(specifications))
        steps = [choice for choice in choices if choice.prepare is not None]
        key = tuple(choice.prepare for choice in steps)
        if key not in prepared:
            with _quiet():
                prepared[key] = _prepared(ds, steps, covariates, keep, codes)
        where = ", ".join(choice.name for choice in choices)
        tables = prepared[key]
        if isinstance(tables, str):
            failures.append(f"every effect ({where}): {tables}")
            continue
        with _quiet():
            found = tables.fit(choices, extra, weights, where, failures)
        for effect, fitted in found:
            cells.setdefault(effect, {})[number] = fitted
    report_progress("multiverse", len(specifications), len(specifications))
    if not cells:
        raise StatisticsError(f"Multiverse: nothing could be fitted. {failures[0]}")
    if failures:
        logger.warning("Multiverse: %d fits failed: %s", len(failures), failures[0])
    out = _assembled(cells, len(specifications), n_groups, confidence)
    for k, name in enumerate(names):
        values = np.array([choices[k].name for choices in specifications], dtype=object)
        out = out.assign_coords({name: ("specification", values)})
    out.attrs = {
        "axes": {name: [choice.name for choice in chosen[name]] for name in names},
        "model": default_model(ds)[0],
        "covariates": list(covariates),
        "groups": str(groups),
        "n_groups": n_groups,
        "bootstrap": f"{n_boot} replicates over {groups} ({n_groups} of them), seed {seed}, "
        "percentile interval widened for few of them",
        "confidence": confidence,
        "verdicts": dict(VERDICTS),
        "failures": failures,
    }
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the models of single specifications from logging: the result tells what failed."""
    loggers = [logging.getLogger(f"scalebrain.{name}") for name in ("stats", "harmonization")]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def _axes(
    ds: xr.Dataset,
    policies: Mapping[str, xr.Dataset],
    axes: Mapping[str, Sequence[Choice]],
    covariates: Sequence[str],
) -> dict[str, Sequence[Choice]]:
    """Lesion policies first, then the other axes, checked."""
    own, pad = "as_stored", find_pad(ds).name
    if pad in ds.variables and "tool" in ds[pad].attrs:
        own = "imported"  # by no policy of ours, whatever that of our features is
    elif "node_features" in ds.variables:
        own = str(ds["node_features"].attrs.get("lesion_policy", own))
    if own in policies:
        raise StatisticsError(
            f"Multiverse: policy '{own}' is that of the Dataset itself. Leave it out of `policies`."
        )
    for name, other in policies.items():
        same = other.sizes.get("subject") == ds.sizes["subject"]
        if same and "subject" in ds.coords and "subject" in other.coords:
            same = bool((other["subject"].values == ds["subject"].values).all())
        if not same:
            raise StatisticsError(
                f"Multiverse: policy '{name}' has other subjects than the Dataset, or another "
                "order. Compute the features of the same store under another policy."
            )
    found: dict[str, Sequence[Choice]] = {
        "policy": [Choice(own), *(Choice(k, prepare=_swap(v)) for k, v in policies.items())],
        "site": axes["site"],
        "icv": ICV_CHOICES,
        "scale": SCALE_CHOICES,
        **axes,
    }
    for axis, choices in found.items():
        names = [choice.name for choice in choices]
        if not names or len(set(names)) < len(names):
            raise StatisticsError(
                f"Multiverse: axis '{axis}' needs choices of different names, got {names}."
            )
        absent = sorted({v for c in choices for v in c.covariates if v not in ds.variables})
        if absent:
            raise MissingVariableError(
                f"Multiverse: axis '{axis}' needs {', '.join(map(repr, absent))}, which the "
                f"Dataset lacks. Way out: axes={{'{axis}': [Choice('as_is')]}} leaves the axis out."
            )
        _check_different(axis, choices, covariates)
    return found


def _check_different(axis: str, choices: Sequence[Choice], covariates: Sequence[str]) -> None:
    """Refuse two names for one model, which would count twice in the shares."""
    held = {"lesion_volume", *covariates}
    names: dict[tuple[object, ...], str] = {}
    for one in choices:
        key = (one.prepare, one.outcome, one.random_intercept, frozenset({*one.covariates} - held))
        other = names.setdefault(key, one.name)
        if other != one.name:
            there = [name for name in one.covariates if name in held]
            why = f", since {', '.join(there)} is in every model" if there else ""
            raise StatisticsError(
                f"Multiverse: choices '{other}' and '{one.name}' of axis '{axis}' are the same "
                f"regional models under two names{why}. Take it out of `covariates`, or leave one "
                f"choice: axes={{'{axis}': [Choice('{other}')]}}."
            )


def _all(axes: Mapping[str, Sequence[Choice]]) -> list[Choice]:
    return [choice for choices in axes.values() for choice in choices]


def _prepared(
    ds: xr.Dataset,
    steps: Sequence[Choice],
    covariates: Sequence[str],
    keep: BoolArray,
    codes: IntArray,
) -> _Tables | str:
    """Tables after steps that change the Dataset, or why one of them cannot be taken."""
    treated = ds
    for step in steps:
        if step.prepare is not None:
            try:
                treated = step.prepare(treated)
            except StatisticsError as error:
                return f"{step.name}: {error}"
    return _Tables.of(treated, covariates, keep, codes)


def _swap(other: xr.Dataset) -> Callable[[xr.Dataset], xr.Dataset]:
    return lambda _: other


@dataclass(frozen=True)
class _Tables:
    """What the equations of one prepared Dataset need, on all subjects."""

    pads: pd.DataFrame
    causes: pd.DataFrame
    paths: pd.DataFrame
    model: SemModel
    keep: BoolArray
    codes: IntArray
    ratios: dict[Hashable, dict[str, float | str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, ds: xr.Dataset, covariates: Sequence[str], keep: BoolArray, codes: IntArray
    ) -> _Tables:
        pad = find_pad(ds)
        if pad.is_global:
            pads = subject_frame(ds, [pad.name]).rename(columns={pad.name: GLOBAL_REGION})
        else:
            array = lesional_measures(ds, ["brain_pad_corrected"])["brain_pad_corrected"]
            regions = [str(region) for region in array["region"].values]
            pads = pd.DataFrame(array.values, columns=regions)
        causes = _numbers(ds, ["lesion_volume", *covariates], keep)
        with np.errstate(divide="ignore", invalid="ignore"):
            causes["lesion_volume"] = np.log10(causes["lesion_volume"])
        model = parse_model(default_model(ds)[0])
        paths, _ = observed_frame(ds, model, {})
        tables = [_finite(one) for one in (pads, causes, paths)]
        return cls(tables[0], tables[1], tables[2], model, keep, codes)

    def fit(
        self,
        choices: Sequence[Choice],
        extra: pd.DataFrame,
        weights: FloatArray,
        where: str,
        failures: list[str],
    ) -> list[tuple[str, tuple[FloatArray, int]]]:
        """Slopes (1 + replicate,) and rows of every effect under one specification."""
        added = extra[list(dict.fromkeys(v for c in choices for v in c.covariates))]
        out: list[tuple[str, tuple[FloatArray, int]]] = []
        x = pd.concat([self.causes, added[[v for v in added if v not in self.causes]]], axis=1)
        for region, found in self._solved(self.pads, x, choices, weights).items():
            effect = f"lesion_volume -> {region}"
            if isinstance(found, str):
                failures.append(f"{effect} ({where}): {found}")
            else:
                out.append((effect, (found[0][:, 0], found[1])))
        more = added[[v for v in added if v not in self.paths]]
        table = pd.concat([self.paths, more], axis=1)
        table.loc[table.isna().any(axis=1)] = np.nan
        slopes: dict[tuple[str, str], FloatArray] = {}
        n = 0
        for outcome, causes in self.model.regressions().items():
            x = table[[*causes, *more]]
            found = self._solved(table[[outcome]], x, choices, weights)[outcome]
            if isinstance(found, str):
                failures.append(f"equation of {outcome} ({where}): {found}")
                return out
            n = found[1]
            slopes |= {(cause, outcome): found[0][:, k] for k, cause in enumerate(causes)}
        arrows = [pair for pair in slopes if "age" not in pair]
        out += [(f"{a} -> {b}", (slopes[a, b], n)) for a, b in arrows]
        for chain in self.model.chains():
            steps = list(itertools.pairwise(chain))
            if all(step in arrows for step in steps):
                product = np.prod([slopes[step] for step in steps], axis=0)
                out.append((" -> ".join(chain), (product, n)))
        return out

    def _solved(
        self,
        outcomes: pd.DataFrame,
        x: pd.DataFrame,
        choices: Sequence[Choice],
        weights: FloatArray,
    ) -> dict[str, tuple[FloatArray, int] | str]:
        """Slopes and rows of every outcome on the same predictors, or why there are none."""
        usable = self.keep & x.notna().all(axis=1).to_numpy()
        scaled = outcomes.copy()
        scaled.loc[~usable] = np.nan
        for choice in choices:
            if choice.outcome is not None:
                for name in scaled:
                    values = scaled[name].to_numpy(copy=True)
                    rows = np.isfinite(values)
                    if rows.any():
                        values[rows] = choice.outcome(values[rows])
                        scaled[name] = values
        changed = tuple(c.name for c in choices if c.outcome is not None)
        is_random = any(choice.random_intercept for choice in choices)
        key = (*outcomes, *x, *changed, is_random)
        if key not in self.ratios:
            made = _ratios if is_random else _pooled
            self.ratios[key] = made(scaled, x, self.codes)
        _, numbered = np.unique(self.codes[self.keep], return_inverse=True)
        groups = np.full(len(self.keep), -1, dtype=np.int64)
        groups[self.keep] = numbered
        out: dict[str, tuple[FloatArray, int] | str] = {}
        for name in scaled:
            ratio = self.ratios[key][str(name)]
            if isinstance(ratio, str):
                out[str(name)] = ratio
                continue
            values = scaled[name].to_numpy()
            rows = np.isfinite(values)
            equation = Equation.of(
                values[rows],
                x[rows].to_numpy(),
                groups[rows],
                ratio,
            )
            held = weights[:, : equation.left.shape[0]]
            out[str(name)] = equation.slopes(held), equation.n
        return out


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    numbers = table.to_numpy(dtype=np.float64)
    return pd.DataFrame(np.where(np.isfinite(numbers), numbers, np.nan), columns=table.columns)


def _numbers(
    ds: xr.Dataset, names: Sequence[str] | Mapping[str, None], keep: BoolArray
) -> pd.DataFrame:
    """Columns of numbers; a text of two values in those kept becomes 0 and 1."""
    table = subject_frame(ds, list(names)).reset_index(drop=True)
    for name in table:
        if table[name].dtype.kind in "biuf":
            table[name] = table[name].astype(np.float64)
            continue
        levels = sorted(table[name][keep].dropna().unique())
        if len(levels) > 2:
            raise StatisticsError(
                f"Multiverse: '{name}' is text of {len(levels)} values, expected numbers or two "
                "values. Make a variable of numbers of it."
            )
        table[name] = table[name].map({level: float(k) for k, level in enumerate(levels)})
    return table


def _ratios(outcomes: pd.DataFrame, x: pd.DataFrame, codes: IntArray) -> dict[str, float | str]:
    """Variance between groups over residual variance by outcome, or why it cannot be fitted."""
    names = {f"x{k}": str(name) for k, name in enumerate(x)}
    predictors = {k: ("subject", x[name].to_numpy()) for k, name in names.items()}
    usable = outcomes.notna().any(axis=1).to_numpy()
    ds = xr.Dataset(
        {"outcome": (("subject", "region"), outcomes.to_numpy()), **predictors},
        coords={"region": [str(name) for name in outcomes], "cohort": ("subject", codes)},
    ).isel(subject=usable)
    try:
        fitted = mixed_model(ds, f"outcome ~ {' + '.join(names)}", errors="record")
    except StatisticsError as error:
        return dict.fromkeys(map(str, outcomes), _renamed(str(error), names))
    told = [_renamed(str(text), names) for text in fitted.attrs.get("failures", [])]
    out: dict[str, float | str] = {}
    for name in map(str, outcomes):
        one = fitted.sel(region=name)
        ratio = float(one["group_variance"] / one["residual_variance"])
        own = [text for text in told if name in text] or told
        out[name] = ratio if np.isfinite(ratio) else "; ".join(own)
    return out


def _pooled(outcomes: pd.DataFrame, x: pd.DataFrame, codes: IntArray) -> dict[str, float | str]:
    """No variance between groups by outcome, or why least squares cannot be fitted."""
    out: dict[str, float | str] = {}
    for name in outcomes:
        rows = outcomes[name].notna().to_numpy()
        design = np.column_stack([np.ones(rows.sum()), x[rows].to_numpy()])
        y = outcomes[name][rows].to_numpy()
        out[str(name)] = 0.0
        try:
            q, _ = orthonormal(("Intercept", *map(str, x)), design, np.ones(len(y)), "Pooled")
        except StatisticsError as error:
            out[str(name)] = str(error)
            continue
        if len(np.unique(codes[rows])) < 2:
            out[str(name)] = (
                f"Pooled: all {len(y)} usable rows belong to one group, which cannot be resampled."
            )
        elif not np.linalg.norm(y - q @ (q.T @ y)) > 1e-10 * np.linalg.norm(y):
            out[str(name)] = (
                f"Pooled: '{name}' has no variation that the predictors leave over (it is constant "
                "or an exact combination of them)."
            )
    return out


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Put the names of variables back."""
    return re.sub(r"'(x\d+)'", lambda found: f"'{names.get(found[1], found[1])}'", text)


def _assembled(
    cells: Mapping[str, Mapping[int, tuple[FloatArray, int]]],
    n_specifications: int,
    n_groups: int,
    confidence: float,
) -> xr.Dataset:
    shape = (len(cells), n_specifications)
    columns = {k: np.full(shape, np.nan) for k in ("estimate", "se", "ci_low", "ci_high")}
    n = np.zeros(shape, dtype=np.int64)
    tail = widened_tail(n_groups, confidence)
    for row, by_number in enumerate(cells.values()):
        for number, (values, rows) in by_number.items():
            drawn = values[1:][np.isfinite(values[1:])]
            columns["estimate"][row, number] = values[0]
            n[row, number] = rows
            if len(drawn) > 1:
                columns["se"][row, number] = drawn.std(ddof=1)
                low, high = np.quantile(drawn, [tail, 1 - tail])
                columns["ci_low"][row, number], columns["ci_high"][row, number] = low, high
    told = {
        "estimate": "Standard deviations of the outcome per standard deviation of the cause",
        "se": "Standard deviation over cluster-bootstrap replicates",
        "ci_low": "Lower end of the cluster-bootstrap interval",
        "ci_high": "Upper end of the cluster-bootstrap interval",
    }
    dims = ("effect", "specification")
    out = xr.Dataset(
        {k: (dims, columns[k], {"long_name": told[k]}) for k in told}
        | {"n": (dims, n, {"long_name": "Subjects used"})},
        coords={"effect": np.array(list(cells), dtype=object)},
    )
    return out.merge(_stability(out))


def _stability(out: xr.Dataset) -> xr.Dataset:
    """Shares, range and verdict of each effect."""
    estimate = out["estimate"].values
    fitted = np.isfinite(estimate)
    median = np.nanmedian(estimate, axis=1)
    sign = np.sign(median)[:, None]
    count = fitted.sum(axis=1)
    above, below = out["ci_low"].values > 0, out["ci_high"].values < 0
    clear = np.where(sign > 0, above, below) & fitted
    same = ((np.sign(estimate) == sign) & fitted).sum(axis=1) / count
    share = clear.sum(axis=1) / count
    of_all = clear.mean(axis=1)
    contradictory = (above.any(axis=1) & below.any(axis=1)) | ((same < 1) & (share >= 0.5))
    verdict = np.select(
        [contradictory, of_all == 1, (same == 1) & (of_all >= 0.5)],
        ["contradictory", "robust", "mostly"],
        "weak",
    ).astype(object)
    columns = {
        "median_estimate": (median, "Median over the specifications"),
        "lowest_estimate": (np.nanmin(estimate, axis=1), "Lowest of the specifications"),
        "highest_estimate": (np.nanmax(estimate, axis=1), "Highest of the specifications"),
        "same_sign": (same, "Share of those that were fitted with the sign of the median"),
        "excludes_zero": (
            share,
            "Share of those that were fitted with that sign and an interval that excludes zero",
        ),
        "n_fitted": (count, "Specifications that were fitted"),
        "verdict": (verdict, "What becomes of the effect: robust, mostly, weak, contradictory"),
    }
    return xr.Dataset({k: ("effect", v, {"long_name": t}) for k, (v, t) in columns.items()})
