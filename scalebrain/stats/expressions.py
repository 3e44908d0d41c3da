"""What may stand in a term of a formula: arithmetic and known functions of variables.

The terms of a formula are evaluated as Python. A study's configuration may come from somebody else,
so what could do more than compute is refused before anything is evaluated.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FUNCTIONS", "Operands", "added_truths", "forbidden", "operands", "trees"]

#: Functions of Python itself that a formula may call.
FUNCTIONS = frozenset({"abs", "bool", "float", "int", "round"})

_NODES = (
    ast.Expression,
    ast.Name,
    ast.Attribute,
    ast.Load,
    ast.Constant,
    ast.Call,
    ast.keyword,
    ast.List,
    ast.Tuple,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_OF_BITS = frozenset(
    {
        *("np.bitwise_and", "np.bitwise_or", "np.bitwise_xor", "np.bitwise_not", "np.invert"),
        *("np.bitwise_count", "np.left_shift", "np.right_shift", "np.gcd", "np.lcm"),
    }
)
_QUOTED = re.compile(
    r"(?P<mark>`|\bQ\(\s*(?P<quote>['\"]))(?P<name>[^`'\"]+)(?(quote)(?P=quote)\s*\)|`)"
)
_METHODS = frozenset({"max", "mean", "median", "min", "std"})
_CODINGS = frozenset({"SAS", "custom", "diff", "helmert", "poly", "sum", "treatment"})


def forbidden(tree: ast.Expression) -> list[str]:
    """Find what may not stand in a term.

    Parameters
    ----------
    tree
        The term, parsed.

    Returns
    -------
    list of str
        Its parts that are no arithmetic, comparison or call of a function by its name; of
        ``np`` the functions that work number by number may be called, of ``contr`` the codings, of
        a variable its mean and the like.
    """
    out = []
    for node in ast.walk(tree):
        fine = isinstance(node, _NODES)
        if isinstance(node, ast.Attribute):
            fine = _is_known(node)
        elif isinstance(node, ast.Call):
            fine = isinstance(node.func, ast.Name | ast.Attribute)
            fine &= getattr(node.func, "id", "") != "Q"  # a name that is quoted stands for itself
        if not fine:
            out.append(ast.unparse(node))
    return out


def _is_known(node: ast.Attribute) -> bool:
    """Whether an attribute is a function of numbers or a coding of categories."""
    if not isinstance(node.value, ast.Name):
        return False
    if node.value.id == "np":
        return isinstance(getattr(np, node.attr, None), np.ufunc)
    return node.attr in (_CODINGS if node.value.id == "contr" else _METHODS)


def added_truths(tree: ast.Expression) -> list[str]:
    """Find sums of comparisons, which are true or false and no counts.

    Parameters
    ----------
    tree
        The term, parsed.

    Returns
    -------
    list of str
        The sums, but for those that are compared with zero, where a count says the same.
    """
    fine: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = (node.left, node.comparators[0])
            if any(isinstance(side, ast.Constant) and side.value == 0 for side in sides):
                fine |= {side for side in sides if _is_sum_of_truths(side)}
        elif isinstance(node, ast.BinOp) and node in fine:  # parents are walked first
            fine |= {node.left, node.right}
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.left, ast.Compare)
        and isinstance(node.right, ast.Compare)
        and node not in fine
    ]


def _is_sum_of_truths(node: ast.AST) -> bool:
    """Whether comparisons alone are added, however many; one by itself is so, too."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_sum_of_truths(node.left) and _is_sum_of_truths(node.right)
    return isinstance(node, ast.Compare)


@dataclass(frozen=True)
class Operands:
    """How the terms of one side use its variables.

    Parameters
    ----------
    levels
        Variables whose values are levels or bits: within ``C()`` or beside ``&``.
    numbers
        Variables that are added, multiplied and the like.
    calls
        What each function is called with, as it is written.
    """

    levels: frozenset[str]
    numbers: frozenset[str]
    calls: dict[str, frozenset[str]]


def trees(side: Any) -> Iterator[tuple[str, ast.Expression | None, dict[str, str]]]:
    """Parse the factors of one side.

    Parameters
    ----------
    side
        formulaic's form of it.

    Yields
    ------
    text
        The factor as it is written.
    tree
        Its parse, in which a stand-in stands for a name in backticks or ``Q()``; None where it is
        no Python.
    quoted
        The names by their stand-ins.
    """
    for factor in (factor for term in side for factor in term.factors):
        text = bare = str(factor.expr)
        quoted: dict[str, str] = {}
        while found := _QUOTED.search(bare):
            place = f"_quoted_{len(quoted)}"
            quoted[place] = found["name"]
            bare = bare[: found.start()] + place + bare[found.end() :]
        try:
            tree = ast.parse(bare, mode="eval")
        except SyntaxError:
            tree = None
        yield text, tree, quoted


def operands(*sides: Any) -> Operands:
    """Find how the terms of sides use variables.

    Parameters
    ----------
    *sides
        formulaic's form of them.

    Returns
    -------
    Operands
        Names of variables, and calls.
    """
    levels: set[str] = set()
    numbers: set[str] = set()
    calls: dict[str, set[str]] = {}
    for _, tree, quoted in (one for side in sides for one in trees(side)):
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                calls.setdefault(name, set()).update(_written(arg, quoted) for arg in node.args[:1])
                if name in ("C", "hashed") or name in _OF_BITS:
                    levels |= _names(ast.walk(node), quoted)
            elif isinstance(node, ast.BinOp):
                if isinstance(node.op, _ARITHMETIC):
                    numbers |= _names((node.left, node.right), quoted)
                else:
                    levels |= _names(ast.walk(node), quoted)
            elif isinstance(node, ast.UnaryOp):
                if isinstance(node.op, ast.Invert):
                    levels |= _names(ast.walk(node), quoted)
                else:
                    numbers |= _names((node.operand,), quoted)
    shown = {name: frozenset(texts) for name, texts in calls.items()}
    return Operands(frozenset(levels), frozenset(numbers), shown)


def _names(nodes: Iterable[ast.AST], quoted: dict[str, str]) -> set[str]:
    return {quoted.get(node.id, node.id) for node in nodes if isinstance(node, ast.Name)}


def _written(node: ast.AST, quoted: dict[str, str]) -> str:
    """Text of a part, with the quoted names back."""
    if isinstance(node, ast.Name):
        return quoted.get(node.id, node.id)
    text = ast.unparse(node)
    for place, name in quoted.items():
        text = re.sub(rf"\b{place}\b", f"`{name}`".replace("\\", r"\\"), text)
    return text
