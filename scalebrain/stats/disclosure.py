"""What sums may not be sent, because a person could be read from them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalebrain.stats.design import ParsedFormula

__all__ = ["MINIMUM_CELL", "MINIMUM_PEOPLE", "design_risks", "outcome_risks"]

FloatArray = npt.NDArray[np.float64]

#: Fewest people of a cohort, and of every cell of it that is not empty.
MINIMUM_PEOPLE = 10
MINIMUM_CELL = 5
#: Fewest people for each column of the design, the intercept too.
_PER_COLUMN = 3
#: Largest share of one person in a sum.
_MAX_SHARE = 0.9


def design_risks(
    parsed: ParsedFormula, part: pd.DataFrame, x: FloatArray, terms: Sequence[str]
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
        *_cells(part, parsed),
        *_rich(n, part, parsed),
        *_shares(x, terms),
    ]


def outcome_risks(y: FloatArray, name: str) -> list[str]:
    """Find out why the sums of an outcome may not be sent.

    Parameters
    ----------
    y
        (subject,) values less their mean.
    name
        What it is called in the message.

    Returns
    -------
    list of str
        One sentence for each reason, without the period.
    """
    if not y.any():
        return [f"{name} does not vary. Leave it out"]
    if (y**2).max() > _MAX_SHARE * (y**2).sum():
        return [f"one person makes up nearly all of the variance of {name}. Leave the person out"]
    return []


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


def _cells(part: pd.DataFrame, parsed: ParsedFormula) -> list[str]:
    """Cells of one or two categorical variables with 1 to 4 people."""
    names = [
        name
        for name in parsed.predictor_names
        if isinstance(part[name].dtype, pd.CategoricalDtype) or part[name].nunique() == 2
    ]
    out = []
    for own in (*((name,) for name in names), *itertools.combinations(names, 2)):
        counts = part.groupby(list(own), observed=True).size()
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
        if (x[:, k] ** 2).max() > _MAX_SHARE * total[k]:
            out.append(
                f"one person makes up nearly all of the variance of '{terms[k]}'. "
                "Transform it (log10), or leave the person out"
            )
    if not out and total.any():
        some = x[:, total > 0] / np.sqrt(total[total > 0])
        u, s, _ = np.linalg.svd(some, full_matrices=False)
        leverage = (u[:, s > 1e-8 * s[0]] ** 2).sum(axis=1)
        if leverage.max() > _MAX_SHARE:
            out.append(
                "one person alone decides a combination of the terms. Use fewer terms, "
                "or leave the person out"
            )
    return out
