"""Formulas: which variables they name, which rows they can use, which columns they make."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.stats.expressions import FUNCTIONS, added_truths, forbidden, operands, trees

__all__ = [
    "ParsedFormula",
    "basis_factors",
    "basis_states",
    "check_formula",
    "design_matrix",
    "factor_levels",
    "outcome_vector",
    "parse_formula",
    "seen_levels",
    "slope_vector",
    "usable_rows",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

_BASES = frozenset({"bs", "cc", "cr", "cs", "poly"})
# age**2 or scale(age)^2, which a formula reads as age
_POWER = re.compile(r"([\w.`]+(?:\(\.\.\.\))?)\s*(?:\*\*|\^)\s*\d")
# + (1 | cohort), + (1 + scale(age) | cohort), + (age | cohort)
_RANDOM = re.compile(r"\+\s*\(((?:[^()|]|\([^()|]*(?:\([^()|]*\)[^()|]*)*\))+)\|\s*([^()|]+?)\s*\)")


@dataclass(frozen=True)
class ParsedFormula:
    """A formula split in two, with the variables that each side names.

    Parameters
    ----------
    text
        As the user wrote it.
    outcome
        Expression on the left.
    predictors
        formulaic's form of the right side.
    outcome_names
        Variables of the left side.
    predictor_names
        Variables of the right side, and of the random slope.
    slope
        formulaic's form of the random slope; None where there is only an intercept.
    slope_text
        The random slope as the user wrote it.
    """

    text: str
    outcome: Any
    predictors: Any
    outcome_names: tuple[str, ...]
    predictor_names: tuple[str, ...]
    slope: Any = None
    slope_text: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Variables of both sides, each once."""
        return tuple(dict.fromkeys(self.outcome_names + self.predictor_names))

    @property
    def is_plain(self) -> bool:
        """True if the left side is one variable as it is, without a function."""
        return [str(term) for term in self.outcome] == list(self.outcome_names)


def parse_formula(
    formula: str, ds: xr.Dataset, *, groups: Hashable, dim: Hashable
) -> ParsedFormula:
    """Parse a Wilkinson formula and check the names in it against a Dataset.

    Parameters
    ----------
    formula
        E.g. ``"brain_pad_corrected ~ scale(log10(lesion_volume)) + age"``. A term
        ``(1 | cohort)`` is accepted where it repeats `groups`; ``(1 + age | cohort)``, or
        ``(age | cohort)`` for short, adds a random slope.
    ds
        Dataset whose variables and coordinates may be named.
    groups
        Grouping variable of the random intercept.
    dim
        Dimension besides ``subject``.

    Returns
    -------
    ParsedFormula
        The formula in parts.

    Raises
    ------
    StatisticsError
        If the formula is malformed, holds another random effect, or what could do more than
        compute.
    MissingVariableError
        If it names something that is neither in `ds` nor a function.
    """
    parts = _parts(formula, groups)
    sides = _named(formula, parts, ds, dim)
    power = _POWER.search(_outside_calls(parts.fixed.partition("~")[2]))
    if power:
        logger.warning(
            "Formula '%s': '%s' is %s alone, as a power of a term is a term. Write I(x**2) for a "
            "square.",
            formula,
            power[0].strip(),
            power[1],
        )
    right = tuple(dict.fromkeys(name for side in sides[1:] for name in side))
    return ParsedFormula(
        formula, parts.outcome, parts.predictors, sides[0], right, parts.slope, parts.slope_text
    )


def check_formula(
    formula: str, ds: xr.Dataset | None = None, *, groups: Hashable, dim: Hashable
) -> None:
    """Refuse what :func:`parse_formula` refuses.

    Parameters
    ----------
    formula
        As for :func:`parse_formula`.
    ds
        Dataset whose variables may be named; None to look at the form alone.
    groups, dim
        As for :func:`parse_formula`.

    Raises
    ------
    StatisticsError, MissingVariableError
        As :func:`parse_formula` does.
    """
    parts = _parts(formula, groups)
    if ds is not None:
        _named(formula, parts, ds, dim)


@dataclass(frozen=True)
class _Parts:
    """A formula taken apart, with names that were not looked up.

    `fixed` is its text without random effects; the others are as in :class:`ParsedFormula`.
    """

    fixed: str
    outcome: Any
    predictors: Any
    slope: Any
    slope_text: str


def _parts(formula: str, groups: Hashable) -> _Parts:
    """Take a formula apart by its form."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    found = _RANDOM.findall(formula)
    for effects, name in found:
        if name != str(groups):
            raise StatisticsError(
                f"Formula '{formula}': random effects by '{name}', but groups='{groups}'. "
                f"Pass groups='{name}'; '({effects.strip()} | {name})' may stay."
            )
    fixed = _RANDOM.sub("", formula)
    if "|" in fixed or len(found) > 1:
        raise StatisticsError(
            f"Formula '{formula}': one random intercept is fitted, and at most one slope with it. "
            f"Write '+ (1 | {groups})' or '+ (1 + age | {groups})' once, at the end."
        )
    slope_text = _slope_text(formula, found[0][0]) if found else ""
    try:
        parsed = Formula(fixed)
    except (FormulaicError, SyntaxError) as error:
        first = str(error).splitlines()[0]
        raise StatisticsError(f"Formula '{formula}' cannot be parsed: {first}") from error
    if not hasattr(parsed, "lhs") or not hasattr(parsed, "rhs"):
        raise StatisticsError(
            f"Formula '{formula}' has no outcome. Write 'outcome ~ predictor + predictor'."
        )
    if len(list(parsed.lhs)) != 1:
        raise StatisticsError(
            f"Formula '{formula}': expected one outcome, got {len(list(parsed.lhs))}."
        )
    slope = None
    if slope_text:
        try:
            slope = Formula(f"0 + {slope_text}")
        except (FormulaicError, SyntaxError) as error:
            first = str(error).splitlines()[0]
            raise StatisticsError(f"Formula '{formula}' cannot be parsed: {first}") from error
        if len(list(slope)) != 1:
            raise StatisticsError(
                f"Formula '{formula}': expected one random slope, got {len(list(slope))}. "
                f"Write e.g. '(1 + age | {groups})'."
            )
    return _Parts(fixed, parsed.lhs, parsed.rhs, slope, slope_text)


def _named(formula: str, parts: _Parts, ds: xr.Dataset, dim: Hashable) -> list[tuple[str, ...]]:
    """Variables of `ds` that each part names; whatever is no variable is refused."""
    sides = []
    unknown: list[str] = []
    for side in (parts.outcome, parts.predictors, *([parts.slope] if parts.slope_text else [])):
        names, bad = _variables(side, ds)
        sides.append(names)
        unknown += [name for name in bad if name not in unknown]
    if unknown:
        near = sorted(
            str(n) for n, v in ds.variables.items() if v.dims and set(v.dims) <= {"subject", dim}
        )
        raise MissingVariableError(
            f"Formula '{formula}': {', '.join(map(repr, unknown))} is neither a variable of the "
            f"Dataset nor a function. Variables over (subject, {dim}): {', '.join(near)}."
        )
    return sides


def usable_rows(
    parsed: ParsedFormula, frame: pd.DataFrame, *, extra: Sequence[str] = ()
) -> tuple[BoolArray, dict[str, BoolArray]]:
    """Find the rows that every variable and every transformation of the formula can use.

    Parameters
    ----------
    parsed
        The formula. Its outcome counts only if `frame` has the columns of it.
    frame
        One row per subject.
    extra
        Further columns that must not be missing.

    Returns
    -------
    rows
        Bool, True where the row is used.
    reasons
        For each reason, the rows that it excludes.
    """
    reasons: dict[str, BoolArray] = {}
    with_outcome = all(name in frame for name in parsed.outcome_names)
    wanted = (parsed.outcome_names if with_outcome else ()) + parsed.predictor_names
    for name in dict.fromkeys((*wanted, *extra)):
        column = frame[name]
        if column.dtype.kind in "fc":
            bad = ~np.isfinite(column.to_numpy())
        else:
            bad = column.isna().to_numpy(dtype=np.bool_)
        if bad.any():
            reasons[f"{name} missing or infinite"] = bad
    rows = np.ones(len(frame), dtype=np.bool_)
    for bad in reasons.values():
        rows &= ~bad
    if not rows.any():
        return rows, reasons
    part = frame[rows]
    seen: dict[str, BoolArray] = {}
    sides = [parsed.predictors, *([parsed.outcome] if with_outcome else [])]
    sides += [parsed.slope] if parsed.slope_text else []
    context = _tolerant(seen, part, operands(*sides).calls)
    for side in sides:
        matrix = _evaluate(parsed, side, part, context)
        for name in matrix.columns:
            bad = ~np.isfinite(matrix[name].to_numpy(dtype=np.float64))
            if bad.any():
                seen.setdefault(f"{name} not finite", bad)
    used = rows.copy()
    inside = np.flatnonzero(rows)
    found: list[BoolArray] = []
    for reason, bad in seen.items():
        if any(np.array_equal(bad, other) for other in found):
            continue  # the same rows again, seen from an outer function
        found.append(bad)
        full = np.zeros(len(frame), dtype=np.bool_)
        full[inside[bad]] = True
        reasons[reason] = full
        used &= ~full
    return used, reasons


def design_matrix(
    parsed: ParsedFormula,
    frame: pd.DataFrame,
    *,
    levels: Mapping[str, Sequence[Any]] | None = None,
    states: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Evaluate the right side on the rows of `frame`, all of which are used.

    Parameters
    ----------
    parsed
        The formula.
    frame
        The rows used; ``scale`` takes mean and standard deviation from them.
    levels
        What :func:`factor_levels` found in all rows that any of several fits uses: the columns
        have to mean here what they mean there.
    states
        What :func:`basis_states` found there, for the same reason.

    Returns
    -------
    DataFrame
        float64, one column per term of the design.

    Raises
    ------
    StatisticsError
        If a term makes no column (one level only), a value is not finite, or nobody has a level
        that others are compared with.
    """
    matrix = _evaluate(parsed, parsed.predictors, frame, {}, states)
    made = matrix.model_spec.term_slices
    empty = [str(term) for term, columns in made.items() if columns.start == columns.stop]
    if empty:
        raise StatisticsError(
            f"Formula '{parsed.text}': {', '.join(map(repr, empty))} has the same value in all "
            f"{len(frame)} rows used, so it has no effect to estimate. Leave it out."
        )
    _check_levels(parsed, matrix, levels or {})
    table = pd.DataFrame(
        {str(name): matrix[name].to_numpy(dtype=np.float64) for name in matrix.columns},
        index=frame.index,
    )
    _check_finite(parsed, table)
    return table


def factor_levels(parsed: ParsedFormula, frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Find the levels of text, flags and what stands in ``C()`` on the right side.

    Parameters
    ----------
    parsed
        The formula.
    frame
        The rows used.

    Returns
    -------
    dict of list
        By factor as it is written, in the order of its columns.

    Raises
    ------
    StatisticsError
        If the formula cannot be evaluated on these rows.
    """
    matrix = _evaluate(parsed, parsed.predictors, frame, {})
    coded = matrix.model_spec.factor_contrasts.items()
    return {str(factor): list(state.levels) for factor, state in coded}


def basis_factors(parsed: ParsedFormula) -> dict[str, tuple[str, ...]]:
    """Find the polynomials and splines of the right side, whose columns depend on the rows.

    Parameters
    ----------
    parsed
        The formula.

    Returns
    -------
    dict of tuple
        Variables by factor as it is written.
    """
    found = {}
    for text, tree, quoted in trees(parsed.predictors):
        nodes = list(ast.walk(tree)) if tree else []
        called = {node.func.id for node in nodes if _is_call(node)}
        if called & _BASES:
            names = [quoted.get(one.id, one.id) for one in nodes if isinstance(one, ast.Name)]
            found[text] = tuple(n for n in dict.fromkeys(names) if n in parsed.predictor_names)
    return found


def basis_states(parsed: ParsedFormula, factor: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Fit a polynomial or spline: what :func:`design_matrix` needs to make its columns elsewhere.

    Parameters
    ----------
    parsed
        The formula.
    factor
        One of :func:`basis_factors`.
    frame
        The rows that any of several fits uses.

    Returns
    -------
    dict
        State by function as it is written.

    Raises
    ------
    StatisticsError
        If the factor cannot be evaluated on these rows.
    """
    from formulaic import Formula
    from formulaic.parser.types import Term

    factors = (one for term in parsed.predictors for one in term.factors)
    side = Formula([Term([next(one for one in factors if one.expr == factor)])])
    return dict(_evaluate(parsed, side, frame, {}).model_spec.transform_state)


def _is_call(node: ast.AST) -> TypeGuard[Any]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def seen_levels(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the categories that nobody in a table has.

    Parameters
    ----------
    frame
        The rows used.

    Returns
    -------
    DataFrame
        The same rows.
    """
    kinds = {name: column.dtype for name, column in frame.items()}
    some = [name for name, dtype in kinds.items() if isinstance(dtype, pd.CategoricalDtype)]
    fewer = {str(name): frame[name].cat.remove_unused_categories() for name in some}
    return frame.assign(**fewer) if fewer else frame


def _check_levels(parsed: ParsedFormula, matrix: Any, levels: Mapping[str, Sequence[Any]]) -> None:
    """Refuse columns that mean something else than where every level is there."""
    for factor, state in matrix.model_spec.factor_contrasts.items():
        name, here = str(factor), list(state.levels)
        everywhere = list(levels.get(name, here))
        if everywhere == here or not _is_reduced(name, here, matrix.columns):
            continue
        whole = state.contrasts.get_coding_matrix(everywhere, reduced_rank=True, sparse=False)
        own = state.contrasts.get_coding_matrix(here, reduced_rank=True, sparse=False)
        own = own.reindex(columns=whole.columns, fill_value=0.0)
        if not np.allclose(own.to_numpy(float), whole.loc[here].to_numpy(float)):
            absent = ", ".join(repr(str(level)) for level in everywhere if level not in here)
            raise StatisticsError(
                f"Formula '{parsed.text}': nobody of {len(matrix)} rows has {absent} of '{name}', "
                "with which its other levels are compared, so that their coefficients would mean "
                "something else here than elsewhere. Compare with a level that is there "
                f"everywhere, e.g. C(x, contr.treatment({str(here[0])!r})), or leave these people "
                "out."
            )


def _is_reduced(name: str, levels: Sequence[Any], columns: Sequence[Any]) -> bool:
    """Whether a factor has a column less than levels, so that one is compared with the others."""
    for column in map(str, columns):
        for level in levels:
            column = column.replace(f"{name}[{level}]", "")
        if f"{name}[" in column:
            return True
    return False


def outcome_vector(parsed: ParsedFormula, frame: pd.DataFrame) -> FloatArray:
    """Evaluate the left side on the rows of `frame`.

    Parameters
    ----------
    parsed
        The formula.
    frame
        The rows used.

    Returns
    -------
    ndarray
        float64, one value per row.

    Raises
    ------
    StatisticsError
        If the outcome is text or makes more than one column.
    """
    matrix = _evaluate(parsed, parsed.outcome, frame, {})
    if matrix.shape[1] != 1 or any(
        frame[name].dtype.kind not in "biuf" for name in parsed.outcome_names
    ):
        raise StatisticsError(
            f"Formula '{parsed.text}': the outcome must be one column of numbers, got "
            f"{', '.join(map(repr, matrix.columns))}."
        )
    _check_finite(parsed, matrix)
    values: FloatArray = matrix.iloc[:, 0].to_numpy(dtype=np.float64)
    return values


def slope_vector(parsed: ParsedFormula, frame: pd.DataFrame) -> FloatArray:
    """Evaluate the random slope on the rows of `frame`.

    Parameters
    ----------
    parsed
        The formula, which has a random slope.
    frame
        The rows used.

    Returns
    -------
    ndarray
        float64, one value per row.

    Raises
    ------
    StatisticsError
        If the slope is text or makes more than one column.
    """
    matrix = _evaluate(parsed, parsed.slope, frame, {})
    if matrix.shape[1] != 1 or matrix.iloc[:, 0].dtype.kind not in "biuf":
        raise StatisticsError(
            f"Formula '{parsed.text}': the random slope must be one column of numbers, got "
            f"{', '.join(map(repr, map(str, matrix.columns)))}."
        )
    _check_finite(parsed, matrix)
    values: FloatArray = matrix.iloc[:, 0].to_numpy(dtype=np.float64)
    return values


def _slope_text(formula: str, effects: str) -> str:
    """Slope of ``1``, ``1 + slope`` or ``slope``."""
    text = effects.strip()
    if re.match(r"(0|-\s*1)\s*(\+|$)", text):
        raise StatisticsError(
            f"Formula '{formula}': a random slope comes with a random intercept. Write "
            "'(1 + age | cohort)' or '(age | cohort)'."
        )
    return re.sub(r"^1\s*(\+\s*|$)", "", text)


def _check_finite(parsed: ParsedFormula, table: pd.DataFrame) -> None:
    bad = [
        str(name)
        for name in table.columns
        if not np.isfinite(table[name].to_numpy(dtype=np.float64)).all()
    ]
    if bad:
        raise StatisticsError(
            f"Formula '{parsed.text}': {', '.join(map(repr, bad))} is not finite on rows whose "
            "variables are. Check for a constant under scale(), a logarithm of a negative "
            "number or a division by zero."
        )


def _evaluate(
    parsed: ParsedFormula,
    side: Any,
    frame: pd.DataFrame,
    context: dict[str, Any],
    states: Mapping[str, Any] | None = None,
) -> Any:
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError

    try:
        with np.errstate(all="ignore"):
            return model_matrix(
                side,
                _as_numbers(side, frame),
                context=context,
                na_action="ignore",
                transform_state=deepcopy(dict(states or {})),
            )
    except (FormulaicError, TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StatisticsError(
            f"Formula '{parsed.text}' cannot be evaluated on {len(frame)} rows: {first}"
        ) from error


def _as_numbers(side: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """Give numbers as float64, so that no sum or product leaves the range of a small dtype.

    Whole numbers that are levels or bits stay whole; flags are numbers where they are added.
    """
    used = operands(side)
    changed: dict[str, pd.Series[Any]] = {}
    for name, column in frame.items():
        kind = column.dtype.kind
        dtype: Any = np.dtype(np.float64)
        if kind in "iu" and name in used.levels:
            fits = column.empty or int(column.max()) <= np.iinfo(np.int64).max
            dtype = np.dtype(np.int64) if fits else column.dtype
        elif kind == "b" and name not in used.numbers:
            dtype = np.dtype(np.bool_)
        elif kind == "b" and name in used.levels:
            dtype = np.dtype(np.int64)
        elif kind not in "biuf":
            continue
        if column.dtype != dtype and (kind == "f" or not column.isna().any()):
            changed[str(name)] = column.astype(dtype)
    return frame.assign(**changed) if changed else frame


def _tolerant(
    seen: dict[str, BoolArray], frame: pd.DataFrame, calls: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    """Functions that note the rows they cannot use instead of spoiling the others."""

    def written(name: str, values: Any) -> str:
        texts, column = calls.get(name, frozenset()), getattr(values, "name", None)
        if column in texts and np.array_equal(values, frame[column].astype(np.float64)):
            return str(column)
        texts -= {column} if len(texts) > 1 else set()
        return next(iter(texts)) if len(texts) == 1 else "..."

    def noting(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(values: Any) -> Any:
            result = np.asarray(function(np.asarray(values, dtype=np.float64)))
            bad = ~np.isfinite(result)
            if bad.any():
                label = f"{name}({written(name, values)}) not finite"
                seen[label] = seen.get(label, False) | bad
                result = np.where(bad, np.median(result[~bad]) if not bad.all() else 0.0, result)
            return result

        return call

    def scale(values: Any, center: Any = True, scale: Any = True, ddof: float = 1) -> Any:
        numbers = np.array(values, dtype=np.float64)
        fine = np.isfinite(numbers)
        if center is True:
            numbers = numbers - (numbers[fine].mean() if fine.any() else 0.0)
        if scale is True:
            spread = np.sqrt((numbers[fine] ** 2).sum() / max(int(fine.sum()) - ddof, 1))
            numbers = numbers / (spread if spread > 0 else 1.0)
        return numbers

    class Tolerant:
        """The functions of NumPy of one variable, tolerant too."""

        def __getattr__(self, name: str) -> Any:
            function = getattr(np, name)
            known = isinstance(function, np.ufunc) and "d->d" in function.types
            return noting(f"np.{name}", function) if known else function

    return {
        "np": Tolerant(),
        "log": noting("log", np.log),
        "log10": noting("log10", np.log10),
        "log2": noting("log2", np.log2),
        "exp": noting("exp", np.exp),
        "scale": scale,
        "center": lambda values: scale(values, scale=False),
    }


def _outside_calls(text: str) -> str:
    """Leave out what stands in the parentheses of functions, or is Python in braces."""
    out = ""
    inside: list[bool] = []
    for one in re.sub(r"{[^{}]*}", "{}", text):
        if one == "(":
            inside.append(any(inside) or re.search(r"[\w.]\s*\Z", out) is not None)
        if not any(inside):
            out += one
        if one == ")" and inside and inside.pop() and not any(inside):
            out += "(...)"
    return out


def _variables(side: Any, ds: xr.Dataset) -> tuple[tuple[str, ...], list[str]]:
    """Variables of `ds` that a side names, and names that are nothing known."""
    from formulaic.transforms import TRANSFORMS

    names: dict[str, None] = {}
    unknown: list[str] = []
    for expression, tree, quoted in trees(side):
        if expression in ds.variables:
            names[expression] = None
            continue
        if tree is None:
            unknown.append(expression)
            continue
        bad = forbidden(tree)
        if bad:
            raise StatisticsError(
                f"Formula term '{expression}': {', '.join(map(repr, bad))} may not stand in a "
                "formula. Write arithmetic and functions such as log10(x), scale(x), C(x) or "
                "np.sqrt(x), or compute a variable first."
            )
        sums = added_truths(tree)
        if sums:
            raise StatisticsError(
                f"Formula term '{expression}': in '{sums[0]}' True + True is True. Count with "
                f"'1 * {sums[0].replace(' + ', ' + 1 * ')}'."
            )
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name):
                continue
            name = quoted.get(node.id, node.id)
            if name in ds.variables:
                names[name] = None
            elif node.id in quoted or (name not in TRANSFORMS and name not in FUNCTIONS):
                unknown.append(name)
    return tuple(names), unknown
