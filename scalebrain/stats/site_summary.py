"""What a site may send instead of people: sums of squares and products of a model."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import StatisticsError, check_all
from scalebrain.features.inclusion import ONE_SCAN, check_one_scan
from scalebrain.harmonization.design import as_labels
from scalebrain.stats.design import (
    ParsedFormula,
    design_matrix,
    outcome_vector,
    parse_formula,
    usable_rows,
)
from scalebrain.stats.disclosure import (
    MINIMUM_CELL,
    cell_variables,
    design_risks,
    outcome_risks,
)
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.variables import REGISTRY

__all__ = ["site_summary"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

#: Functions that do the same at every site; scale() and its like take the mean of the site.
_FUNCTIONS = frozenset({"log", "log10", "log2", "exp", "exp2", "exp10", "abs", "I", "C"})
_LEVELS: Mapping[str, tuple[str, ...]] = {"sex": ("F", "M")}
#: Attributes of a variable that say whether two sites measured the same.
_SCALES = (
    "units",
    "model_fingerprint",
    "tool",
    "tool_version",
    "age_bias_correction",
    "lesion_policy",
    "harmonized_over",
)


def site_summary(
    ds: xr.Dataset,
    formula: str,
    *,
    groups: Hashable = "cohort",
    cohorts: Sequence[str] | None = None,
    levels: Mapping[str, Sequence[str]] | None = None,
    group: str | None = None,
    included: Hashable | None = "included",
    dim: Hashable = "region",
) -> xr.Dataset:
    """Sum up what a model needs of every cohort, and nothing of a person.

    Parameters
    ----------
    ds
        Dataset with ``subject`` and, for region-wise variables, `dim`.
    formula
        Wilkinson formula with an intercept, e.g.
        ``"brain_pad_corrected ~ log10(lesion_volume) + age + sex"``. Functions that depend on
        the people of a site, such as ``scale``, are refused: each site would make another
        variable of it. So is a random slope; ``(1 | cohort)`` may stay.
    groups
        Variable over ``subject``: each value is a cohort with an intercept of its own.
    cohorts
        Cohorts to summarize; default all.
    levels
        Levels of text, flags and numbers in ``C()``, the first is the reference: all sites have
        to name the same, of numbers as text (``"1"``).
        ``sex`` is known (F, M).
    group
        Value of ``group`` to keep; None keeps all.
    included
        Bool variable over ``subject``; rows where it is False are left out. None leaves nobody
        out by it. Rows where ``extrapolated`` is True are left out in any case:
        ``ds.drop_vars("extrapolated")`` takes them in.
    dim
        Dimension of the outcomes.

    Returns
    -------
    Dataset
        ``n (cohort)``; ``xx (cohort, dim, term, other_term)``, ``xy (cohort, dim, term)`` and
        ``yy (cohort, dim)``: sums of squares and products about the means of the cohort. The
        means themselves are not in it.

    Raises
    ------
    StatisticsError
        If a cohort has fewer than 10 people or than three for each column of the design, a
        cell of one or two variables that are text or of two values (the outcome and what the
        formula makes, as ``I(age > 80)``, too) holds 1 to 4 people, one person makes up nine
        tenths or more of a sum, or the formula depends on the site. Every failure is
        named. Before that, if a person is in the rows twice: what hides a person in a sum is
        the number of people, not that of their scans.
    MissingVariableError
        If the formula names an unknown variable.

    Notes
    -----
    ``xx`` is X'X - n m m' with the means m. Together with n these are sufficient for the
    linear model with an intercept of every cohort. A person who lacks one region is left out
    of all: sums over nearly the same people would give the difference, which is a person.

    References
    ----------
    Willer et al. 2010, doi:10.1093/bioinformatics/btq340; Thompson et al. 2014, ENIGMA,
    doi:10.1007/s11682-013-9269-5.
    """
    parsed = parse_formula(formula, ds, groups=groups, dim=dim)
    _check_functions(parsed)
    known = {**_LEVELS, **{str(name): tuple(own) for name, own in (levels or {}).items()}}
    labels = _labels(ds, parsed, dim)
    names = list(dict.fromkeys((*parsed.names, str(groups))))
    keep = eligible_subjects(ds, group=group, included=included)
    if group is not None and "group" in ds.variables:
        there = sorted(set(ds["group"].values.astype(str).tolist()))
        if group not in there:
            raise StatisticsError(f"group='{group}' is not among the groups {', '.join(there)}.")
    frames, used = [], keep.copy()
    small = ds[names].compute()
    for label in labels:
        frame = subject_frame(small, names, at=label, dim=dim)
        frame = _leveled(frame, parsed, known)
        rows, _ = usable_rows(parsed, frame[keep], extra=[str(groups)])
        used[np.flatnonzero(keep)[~rows]] = False
        frames.append(frame)
    if not used.any():
        raise StatisticsError(f"Site summary '{formula}': no subject has every value.")
    # a number is the same cohort in a release where another subject lacks it, and it is a float
    ids = as_labels(frames[0][str(groups)].to_numpy())
    of = np.array([name or "" for name in ids], dtype=object)
    wanted = _wanted(of[used], cohorts, groups)
    check_one_scan(ds, used & np.isin(of, wanted), where=f"Site summary '{formula}'", ways=ONE_SCAN)
    failures: list[str] = []
    made = []
    for cohort in wanted:
        rows = used & (of == cohort)
        made.append(_cohort_sums(parsed, frames, labels, rows, f"{groups} '{cohort}'", failures))
    check_all(failures, StatisticsError, "These cohorts cannot be summarized")
    terms = made[0][0]
    told = (
        f"{int((keep & ~used).sum())} of {int(keep.sum())} subjects lack a value and are left out"
    )
    logger.info("Site summary '%s': %s", formula, told)
    named = {name: known[name] for name in _categorical(frames[0], parsed)}
    return xr.Dataset(
        {
            "n": ("cohort", np.array([int((used & (of == c)).sum()) for c in wanted])),
            "xx": (("cohort", dim, "term", "other_term"), np.array([m[1] for m in made])),
            "xy": (("cohort", dim, "term"), np.array([m[2] for m in made])),
            "yy": (("cohort", dim), np.array([m[3] for m in made])),
        },
        coords={
            "cohort": np.array(wanted, dtype=object),
            dim: np.array(
                [str(parsed.outcome_names[0] if k is None else k) for k in labels], object
            ),
            "term": np.array(terms, dtype=object),
            "other_term": np.array(terms, dtype=object),
        },
        attrs={
            "scalebrain": version("scalebrain"),
            "formula": " ".join(formula.split()),
            "groups": str(groups),
            "dim": str(dim),
            "group": group or "",
            "minimum_cell": MINIMUM_CELL,
            "scales": {name: _scale(ds, name) for name in parsed.names},
            "levels": {name: list(own) for name, own in named.items()},
        },
    )


def _check_functions(parsed: ParsedFormula) -> None:
    bad: dict[str, None] = {}
    terms = [*parsed.outcome, *parsed.predictors]
    if not any(str(term) == "1" for term in parsed.predictors):
        raise StatisticsError(
            f"Formula '{parsed.text}' has no intercept, but every cohort has one of its own. "
            "Leave '- 1' or '0 +' out."
        )
    if parsed.slope_text:
        raise StatisticsError(
            f"Formula '{parsed.text}' has a random slope of {parsed.slope_text}, but the sums of a "
            "site hold fixed terms. Leave the slope out and give the term: the random effects of "
            "meta let it differ between cohorts."
        )
    for factor in (factor for term in terms for factor in term.factors):
        try:
            tree = ast.parse(str(factor.expr).replace("`", ""), mode="eval")
        except SyntaxError:  # a name in backquotes
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                bad[ast.unparse(node)] = None
            if isinstance(node, ast.Call) and (
                not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS
            ):
                bad[ast.unparse(node.func)] = None
    both = [name for name in parsed.outcome_names if name in parsed.predictor_names]
    if both:
        raise StatisticsError(
            f"Formula '{parsed.text}': {', '.join(both)} stands on both sides. Leave it out of one."
        )
    if bad:
        raise StatisticsError(
            f"Formula '{parsed.text}': {', '.join(bad)} may do something else at every site. "
            f"Use the variables as they are, or {', '.join(sorted(_FUNCTIONS))}."
        )


def _labels(ds: xr.Dataset, parsed: ParsedFormula, dim: Hashable) -> list[Hashable | None]:
    if not any(dim in ds[name].dims for name in parsed.names):
        return [None]
    if dim not in ds.coords:
        raise StatisticsError(
            f"Dimension '{dim}' has no labels, so sites cannot be matched. Give it labels."
        )
    return list(ds[dim].values)


def _categorical(frame: pd.DataFrame, parsed: ParsedFormula) -> list[str]:
    """Predictors that are text or flags, or numbers that stand in C()."""
    marked = _in_c(parsed)
    return [
        name
        for name in parsed.predictor_names
        if name in marked
        or pd.api.types.is_bool_dtype(frame[name])
        or not pd.api.types.is_numeric_dtype(frame[name])
    ]


def _in_c(parsed: ParsedFormula) -> set[str]:
    """Variables within C(): each site would make its own levels of numbers."""
    found = set()
    for factor in (factor for term in parsed.predictors for factor in term.factors):
        text = str(factor.expr)
        inside = re.match(r"\s*C\s*\((.*)\)\s*\Z", text, re.DOTALL)
        if not inside:
            continue
        if re.search(r"\blevels\s*=", inside[1]):
            raise StatisticsError(
                f"Formula '{parsed.text}': name levels with levels= (--levels), which the summary "
                f"keeps for the other sites, not in {text}."
            )
        found |= {name for name in parsed.predictor_names if _names(name, inside[1])}
    return found


def _names(name: str, text: str) -> bool:
    """Whether a text of a formula names a variable."""
    return f"`{name}`" in text or bool(re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.(])", text))


def _leveled(
    frame: pd.DataFrame, parsed: ParsedFormula, levels: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Text and flags with the levels that all sites share."""
    frame = frame.copy()
    for name in _categorical(frame, parsed):
        text = pd.Series(as_labels(frame[name].to_numpy()), index=frame.index, dtype=object)
        there = set(text.dropna())
        if name not in levels:
            raise StatisticsError(
                f"'{name}' is text, a flag or in C() ({', '.join(sorted(there)[:8])}): name its "
                f"levels in the order that all sites use, levels={{'{name}': [...]}} or --levels "
                f"{name}=first,second."
            )
        other = sorted(there - set(levels[name]))
        if other:
            raise StatisticsError(
                f"'{name}' has the value {', '.join(map(repr, other[:8]))}, which is not among its "
                f"levels {', '.join(levels[name])}. Correct it, or name it as a level at all sites."
            )
        frame[name] = pd.Categorical(text, categories=list(levels[name]))
    return frame


def _wanted(of: npt.NDArray[Any], cohorts: Sequence[str] | None, groups: Hashable) -> list[str]:
    there = sorted(set(of.tolist()))
    if cohorts is None:
        return there
    named = [str(name) for name in as_labels(np.atleast_1d(np.asarray(cohorts)))]
    absent = [name for name in named if name not in there]
    if absent or not named:
        raise StatisticsError(
            f"'{groups}' {', '.join(map(repr, absent))} has no usable subject. There are: "
            f"{', '.join(there)}."
        )
    return list(dict.fromkeys(named))


def _cohort_sums(
    parsed: ParsedFormula,
    frames: list[pd.DataFrame],
    labels: list[Hashable | None],
    rows: BoolArray,
    where: str,
    failures: list[str],
) -> tuple[list[str], FloatArray, FloatArray, FloatArray]:
    terms: list[str] = []
    xx, xy, yy = [], [], []
    found: dict[str, None] = {}
    before: pd.DataFrame | None = None
    groups: dict[str, pd.Series] = {}
    x = np.empty((0, 0))
    for label, frame in zip(labels, frames, strict=True):
        part = frame[rows]
        predictors = part[list(parsed.predictor_names)]
        if before is None or not predictors.equals(before):
            design = design_matrix(parsed, part).drop(columns="Intercept")
            terms = list(design.columns)
            x = _centered(design.to_numpy(dtype=np.float64))
            groups = cell_variables(parsed, part, design)
            found |= dict.fromkeys(design_risks(parsed, part, x, terms, groups))
            before = predictors
        outcome = outcome_vector(parsed, part)
        y = _centered(outcome[:, None])[:, 0]
        where_in = "the outcome" if label is None else f"the outcome in {label}"
        found |= dict.fromkeys(outcome_risks(y, where_in, outcome, groups))
        xx.append(x.T @ x)
        xy.append(x.T @ y)
        yy.append(float(y @ y))
    failures += [f"{where}: {problem}." for problem in found]
    return terms, np.array(xx), np.array(xy), np.array(yy)


def _centered(values: FloatArray) -> FloatArray:
    """Less the mean; exactly zero where it is the same in everyone."""
    out = values - values.mean(axis=0)
    out -= out.mean(axis=0)
    out[:, np.ptp(values, axis=0) == 0] = 0.0
    return np.asarray(out)


def _scale(ds: xr.Dataset, name: str) -> dict[str, str]:
    attrs = dict(ds[name].attrs)
    spec = REGISTRY.get(name)
    if spec is not None and spec.units:
        attrs.setdefault("units", spec.units)
    return {key: str(attrs[key]) for key in _SCALES if str(attrs.get(key, ""))}
