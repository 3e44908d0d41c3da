"""What may stand in a term of a formula: arithmetic and known functions of variables.

The terms of a formula are evaluated as Python. A study's configuration may come from somebody else,
so what could do more than compute is refused before anything is evaluated.
"""

import ast

import numpy as np

__all__ = ["FUNCTIONS", "forbidden"]

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
