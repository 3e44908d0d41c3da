"""What sums may not be sent, because a person could be read from them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalebrain.stats.design import ParsedFormula

__all__ = ["MINIMUM_CELL", "MINIMUM_PEOPLE", "cell_variables", "design_risks", "outcome_risks"]

FloatArray = npt.NDArray[np.float64]

#: Fewest people of a cohort, and of every cell of it that is not empty.
MINIMUM_PEOPLE = 10
MINIMUM_CELL = 5
#: Fewest people for each column of the design, the intercept too.
_PER_COLUMN = 3
#: Share of one person in a sum that gives the person away; rounding does not hide it.
_MAX_SHARE = 0.9 * (1 - 1e-9)


def cell_variables(
    parsed: ParsedFormula, part: pd.DataFrame, design: pd.DataFrame
) -> dict[str, pd.Series]:
    """Find the variables whose values are groups of people that sums could count.

    Parameters
    ----------
    parsed
        Formula of the sums.
    part
        (subject,) variables of the people used, each of them once; text is categorical.
    design
        (subject, term) columns that the formula makes of them.

    Returns
    -------
    dict of Series
        By name, what stands for a group: predictors that are text, flags or of two values, and
        columns of two values that the formula makes of others.
    """
    found = {
        name: part[name]
        for name in parsed.predictor_names
        if isinstance(part[name].dtype, pd.CategoricalDtype) or part[name].nunique() == 2
    }
    for term in design:
        two = _two_valued(design[term])
        # cells of a level are cells of its variable joined
        known = (two.groupby(one, observed=True).nunique().max() == 1 for one in found.values())
        if len(two) and not any(known):
            found[str(term)] = two
    return found


def design_risks(
    parsed: ParsedFormula,
    part: pd.DataFrame,
    x: FloatArray,
    terms: Sequence[str],
    groups: Mapping[str, pd.Series],
) -> list[str]:
    """Find out why the sums of the predictors of a cohort would give people away.

    Parameters
    ----------
    parsed
        Formula of the sums.
    part
        (subject,) variables of the people used, each of them once; text is categorical.
    x
        (subject, term) columns of the design, less their means.
    terms
        Names of the columns of `x`.
    groups
        What :func:`cell_variables` found.

    Returns
    -------
    list of str
        One sentence for each reason, without the period; empty if the sums may be sent.

    Notes
    -----
    Sums of squares and products about the means stay the same when all people are turned into
    each other by any orthogonal matrix that keeps the means, so that real values cannot be
    solved for. What remains are cells of few people (counts are in the sums), a person who
    makes up a sum alone, few people for the columns, and many functions of one variable, whose
    sums of products are as many equations as it has values.
    """
    n = len(part)
    return [
        *_few(n, x.shape[1]),
        *_cells(groups),
        *_rich(n, part, parsed),
        *_shares(x, terms),
    ]


def outcome_risks(
    y: FloatArray, name: str, outcome: FloatArray, groups: Mapping[str, pd.Series]
) -> list[str]:
    """Find out why the sums of an outcome may not be sent.

    Parameters
    ----------
    y
        (subject,) values less their mean.
    name
        What it is called in the message.
    outcome
        (subject,) the values.
    groups
        What :func:`cell_variables` found; an outcome of two values has cells with each of them.

    Returns
    -------
    list of str
        One sentence for each reason, without the period.
    """
    if not y.any():
        return [f"{name} does not vary. Leave it out"]
    if (y**2).max() >= _MAX_SHARE * (y**2).sum():
        return [f"one person makes up nearly all of the variance of {name}. Leave the person out"]
    two = _two_valued(pd.Series(outcome))
    if not len(two):
        return []
    return _cells({name: two, **groups}, only=name)


def _few(n: int, p: int) -> list[str]:
    needed = max(MINIMUM_PEOPLE, _PER_COLUMN * (p + 1))
    if n >= needed:
        return []
    told = f"{n} people with all values, at least {needed} are needed for {p + 1} columns"
    return [f"{told}, so that nobody can be solved for. Use fewer terms, or join it to another"]


def _rich(n: int, frame: pd.DataFrame, parsed: ParsedFormula) -> list[str]:
    """Refuse more functions of a few variables than their people can hide."""
    terms: list[tuple[frozenset[str], int]] = []  # numeric variables, columns
    for term in parsed.predictors:
        words = {*re.findall(r"[^\W\d]\w*", str(term)), *re.findall(r"`([^`]+)`", str(term))}
        named = words & set(parsed.predictor_names)
        levels = [
            len(frame[name].cat.categories) - 1
            for name in named
            if isinstance(frame[name].dtype, pd.CategoricalDtype)
        ]
        numeric = frozenset(
            name for name in named if not isinstance(frame[name].dtype, pd.CategoricalDtype)
        )
        if numeric:
            terms.append((numeric, math.prod(levels)))
    names = sorted({name for numeric, _ in terms for name in numeric})
    sets = [*((name,) for name in names), *itertools.combinations(names, 2), tuple(names)]
    for own in sets:
        columns = sum(size for numeric, size in terms if numeric <= set(own))
        if 3 * columns * (columns + 1) // 2 > n * len(own):
            told = f"{columns} columns are made of {', '.join(own)}: their sums of products could"
            return [f"{told} be solved for the values of {n} people. Use fewer functions of it"]
    return []


def _two_valued(column: pd.Series) -> pd.Series:
    """Give a column of two values, as far as they can be told apart; of others, nothing."""
    values = column.to_numpy(dtype=np.float64)
    size = np.ptp(values) if len(values) else 0.0
    if not size > 0:
        return column.iloc[:0]
    of, code = np.unique(np.round((values - values.min()) / size, 9), return_inverse=True)
    if len(of) != 2:
        return column.iloc[:0]
    ends = np.array([values.min(), values.max()])
    return pd.Series(ends[code.ravel()], index=column.index)


def _cells(groups: Mapping[str, pd.Series], *, only: str | None = None) -> list[str]:
    """Cells of one or two variables with 1 to 4 people."""
    out = []
    for own in (*((name,) for name in groups), *itertools.combinations(groups, 2)):
        if only is not None and only not in own:
            continue
        frame = pd.DataFrame({k: groups[name].array for k, name in enumerate(own)})
        counts = frame.groupby(list(frame), observed=True).size()
        for cell, count in counts[counts < MINIMUM_CELL].items():
            values = cell if isinstance(cell, tuple) else (cell,)
            shown = ", ".join(f"{name}={value}" for name, value in zip(own, values, strict=True))
            out.append(
                f"{count} people with {shown}, fewer than {MINIMUM_CELL}. Leave the term or these "
                "people out, or join the cohort to another"
            )
    return out


def _shares(x: FloatArray, terms: Sequence[str]) -> list[str]:
    out = []
    total = (x**2).sum(axis=0)
    for k in map(int, np.flatnonzero(total > 0)):
        if (x[:, k] ** 2).max() >= _MAX_SHARE * total[k]:
            out.append(
                f"one person makes up nearly all of the variance of '{terms[k]}'. "
                "Transform it (log10), or leave the person out"
            )
    if not out and total.any():
        some = x[:, total > 0] / np.sqrt(total[total > 0])
        u, s, _ = np.linalg.svd(some, full_matrices=False)
        leverage = (u[:, s > 1e-8 * s[0]] ** 2).sum(axis=1)
        if leverage.max() >= _MAX_SHARE:
            out.append(
                "one person alone decides a combination of the terms. Use fewer terms, "
                "or leave the person out"
            )
    return out
