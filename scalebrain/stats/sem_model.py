"""The text of a structural equation model, read as lavaan's function ``sem`` reads it."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError

__all__ = ["Defined", "Parameter", "SemModel", "parse_model"]

FloatArray = npt.NDArray[np.float64]
_OPERATOR = re.compile(r":=|=~|<~|~\*~|~~|==|~|\||<|>|%")
_REFUSED: Mapping[str, str] = {
    "<~": "formative variables are not fitted; write the sum into the data",
    "~*~": "scaling factors are not fitted",
    "|": "thresholds are not fitted: every variable is taken as continuous",
    "==": "write equality as one label for several paths, 'y1 ~ a*x' and 'y2 ~ a*x'",
    "<": "inequalities are not fitted",
    ">": "inequalities are not fitted",
    "%": "it is not part of a model here",
}
_NAME = re.compile(r"[^\W\d][\w.]*|\.[^\W\d][\w.]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_START = re.compile(r"start\(.*\)")
_FUNCTIONS: Mapping[str, np.ufunc] = {"abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt}
_OPERATIONS: Mapping[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_ONE = "1"


@dataclass(frozen=True)
class Parameter:
    """One coefficient, covariance, variance or intercept of a model.

    Parameters
    ----------
    left, op, right
        As written; `op` is ``~``, ``=~``, ``~~`` or ``~1``.
    label
        Parameters of one label are equal.
    value
        Value that it is fixed at; None if it is estimated.
    user
        The text names it; others were added by lavaan's rules.
    """

    left: str
    op: str
    right: str
    label: str = ""
    value: float | None = None
    user: bool = True

    @property
    def name(self) -> str:
        """Name in results, ``"motor ~ cst"``."""
        return f"{self.left} ~ 1" if self.op == "~1" else f"{self.left} {self.op} {self.right}"

    @property
    def is_variance(self) -> bool:
        """True for the variance of one variable."""
        return self.op == "~~" and self.left == self.right


@dataclass(frozen=True)
class Defined:
    """A function of labeled parameters, ``indirect := a*b``."""

    name: str
    expression: str

    def value(self, labeled: Mapping[str, FloatArray]) -> FloatArray:
        """Compute it from the values of labels; NaN where the arithmetic has no value."""
        with np.errstate(all="ignore"):
            return _evaluate(ast.parse(self.expression, mode="eval").body, labeled)

    @property
    def labels(self) -> set[str]:
        """Labels and earlier defined parameters that it uses."""
        tree = ast.parse(self.expression, mode="eval")
        called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n not in called}


@dataclass(frozen=True)
class SemModel:
    """A structural equation model.

    Parameters
    ----------
    text
        As the user wrote it.
    latent
        Variables measured by others (left of ``=~``).
    observed
        All other variables.
    exogenous
        Observed variables that only predict; their variances, covariances and means are
        taken as given.
    parameters
        Every parameter but the moments of the exogenous variables: those of the text, then
        those that were added.
    defined
        Functions of labeled parameters, in the order of the text.
    has_means
        True if the text names an intercept.
    moved
        Variables that only predict, but are estimated (:meth:`with_random`).
    """

    text: str
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    exogenous: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    defined: tuple[Defined, ...] = ()
    has_means: bool = False
    moved: tuple[str, ...] = ()

    @property
    def is_recursive(self) -> bool:
        """True if least squares, equation by equation, is maximum likelihood."""
        # regressions among observed variables alone: no shared label, no fixed value, no free
        # residual covariance, no intercept, no circle
        labels = [p.label for p in self.parameters if p.label]
        plain = all(
            (p.op == "~" and p.value is None)
            or (p.is_variance and p.value is None and not p.user)
            or (p.op == "~~" and not p.is_variance and p.value == 0.0)
            for p in self.parameters
        )
        shared = len(labels) > len(set(labels))
        return plain and not shared and not _has_circle(self.regressions())

    def regressions(self) -> dict[str, list[str]]:
        """Predictors of each outcome."""
        out: dict[str, list[str]] = {}
        for p in self.parameters:
            if p.op == "~":
                out.setdefault(p.left, []).append(p.right)
        return out

    def chains(self, limit: int = 60) -> list[tuple[str, ...]]:
        """Directed chains over at least one mediator, each from cause to outcome."""
        children: dict[str, list[str]] = {}
        for p in self.parameters:
            if p.op == "~":
                children.setdefault(p.right, []).append(p.left)
        found: list[tuple[str, ...]] = []

        def walk(chain: tuple[str, ...]) -> None:
            for child in children.get(chain[-1], ()):
                if child in chain:
                    continue
                longer = (*chain, child)
                if len(longer) > 2:
                    found.append(longer)
                walk(longer)

        for start in children:
            walk((start,))
        found.sort(key=len)
        return found[:limit]

    def with_means(self) -> SemModel:
        """Add an intercept of every observed variable that is not taken as given."""
        named = {p.left for p in self.parameters if p.op == "~1"}
        names = [v for v in self.observed if v not in named and v not in self.exogenous]
        added = tuple(Parameter(v, "~1", _ONE, user=False) for v in names)
        return replace(self, parameters=self.parameters + added, has_means=True)

    def with_random(self, names: tuple[str, ...]) -> SemModel:
        """Estimate the variances, covariances and means of exogenous variables."""
        kept = tuple(v for v in self.exogenous if v not in names)
        moved = [v for v in self.exogenous if v in names]
        pairs = [
            (a, b) for a, b in itertools.combinations(self.exogenous, 2) if a in moved or b in moved
        ]
        added = [Parameter(v, "~~", v, user=False) for v in moved]
        added += [Parameter(a, "~~", b, user=False) for a, b in pairs]
        if self.has_means:
            added += [Parameter(v, "~1", _ONE, user=False) for v in moved]
        return replace(
            self,
            exogenous=kept,
            parameters=self.parameters + tuple(added),
            moved=(*self.moved, *moved),
        )

    def candidates(self) -> list[Parameter]:
        """Parameters that the model leaves out: loadings, covariances and regressions."""
        have = {(p.left, p.op, p.right) for p in self.parameters}
        measured = {p.right for p in self.parameters if p.op == "=~"}
        inside = [v for v in (*self.observed, *self.latent) if v not in self.exogenous]
        out = [
            Parameter(f, "=~", v)
            for f in self.latent
            for v in self.observed
            if v in measured and (f, "=~", v) not in have
        ]
        out += [
            Parameter(a, "~~", b)
            for a, b in itertools.combinations(inside, 2)
            if not {(a, "~~", b), (b, "~~", a)} & have
        ]
        regressed = self.regressions()
        names = dict.fromkeys(itertools.chain(regressed, *regressed.values()))
        out += [
            Parameter(a, "~", b)
            for a in names
            for b in names
            if a != b and a not in self.exogenous and (a, "~", b) not in have
        ]
        fixed = [
            p for p in self.parameters if p.value == 0.0 and p.op != "~1" and not p.is_variance
        ]
        return fixed + out


def parse_model(text: str) -> SemModel:
    """Read a model in lavaan's syntax.

    Parameters
    ----------
    text
        Lines such as ``motor ~ a*cst + ipsi``, ``damage =~ x1 + x2 + x3``, ``x1 ~~ x2``,
        ``motor ~ 1`` and ``indirect := a*b``. A number before ``*`` fixes a parameter, a
        name labels it, ``NA`` frees the first loading of a latent variable; ``#`` begins a
        comment.

    Returns
    -------
    SemModel
        The parsed model.

    Raises
    ------
    StatisticsError
        If the text is not a model.

    Notes
    -----
    As lavaan's ``sem`` does, it adds a variance of every variable that is not exogenous,
    covariances among exogenous latent variables, and residual covariances among outcomes
    that predict nothing; the first loading of a latent variable is 1, unless it is written
    otherwise, and its only indicator has no residual variance.
    """
    parameters: dict[tuple[str, str, str], Parameter] = {}
    defined: list[Defined] = []
    for line in _statements(text):
        left, op, right = _split(line)
        if op == ":=":
            defined.append(_defined(left.strip(), right, line))
            continue
        for name in _terms(left, line):
            for p in _row(name.strip(), op, right, line):
                key = (p.left, p.op, p.right)
                if key in parameters or (p.op == "~~" and (p.right, p.op, p.left) in parameters):
                    raise StatisticsError(f"SEM: '{p.name}' stands in the model twice. Remove one.")
                parameters[key] = p
    if not parameters:
        raise StatisticsError(
            "SEM: the model has no path that can be fitted. Write lines such as "
            "'motor ~ cst + ipsi'."
        )
    return _completed(text, list(parameters.values()), defined)


def _completed(text: str, rows: list[Parameter], defined: list[Defined]) -> SemModel:
    """Add what lavaan's ``sem`` adds, in its order of variables."""
    latent = tuple(dict.fromkeys(p.left for p in rows if p.op == "=~"))
    measured = dict.fromkeys(p.right for p in rows if p.op == "=~")
    outcomes = dict.fromkeys(p.left for p in rows if p.op == "~")
    causes = dict.fromkeys(p.right for p in rows if p.op == "~")
    apart = {v for p in rows if p.op in ("~~", "~1") for v in (p.left, p.right)}
    names = [*(v for v in measured if v not in latent), *outcomes, *causes]
    names += [v for p in rows if p.op == "~~" for v in (p.left, p.right)]
    names += [p.left for p in rows if p.op == "~1"]
    observed = tuple(v for v in dict.fromkeys(names) if v not in latent)
    exogenous = tuple(
        v
        for v in causes
        if v not in latent and v not in measured and v not in outcomes and v not in apart
    )
    seen: set[str] = set()
    first = []
    for p in rows:
        is_first = p.op == "=~" and p.left not in seen
        seen.add(p.left if p.op == "=~" else "")
        if is_first and p.value is None:
            p = replace(p, value=1.0)
        elif p.value is not None and np.isnan(p.value):
            p = replace(p, value=None)
        first.append(p)
    have = {frozenset((p.left, p.right)) for p in rows if p.op == "~~"}
    wanted = [(v, v) for v in (*observed, *latent) if v not in exogenous]
    free_latent = [v for v in latent if v not in measured and v not in outcomes]
    ends = [v for v in outcomes if v not in measured and v not in causes]
    ends = [v for v in ends if v in latent] + [v for v in observed if v in ends]
    wanted += [*itertools.combinations(free_latent, 2), *itertools.combinations(ends, 2)]
    loads = [(p.left, p.right) for p in rows if p.op == "=~"]
    latents, items = [f for f, _ in loads], [v for _, v in loads]
    alone = {v for f, v in loads if latents.count(f) == 1 and items.count(v) == 1}
    added = [
        Parameter(a, "~~", b, value=0.0 if a == b and a in alone else None, user=False)
        for a, b in wanted
        if frozenset((a, b)) not in have
    ]
    model = SemModel(text, latent, observed, exogenous, tuple(first + added), tuple(defined))
    _check(model)
    return model.with_means() if any(p.op == "~1" for p in rows) else model


def _check(model: SemModel) -> None:
    for p in model.parameters:
        if p.left == p.right and p.op != "~~":
            raise StatisticsError(f"SEM: '{p.name}': a variable cannot explain itself.")
    known = {p.label for p in model.parameters if p.label}
    for one in model.defined:
        absent = sorted(one.labels - known)
        if absent:
            raise StatisticsError(
                f"SEM: '{one.name} := {one.expression}' uses {', '.join(map(repr, absent))}, which "
                f"labels no parameter. Labels: {', '.join(sorted(known)) or 'none'}. Write them "
                "before a variable, 'motor ~ a*cst'."
            )
        if one.name in known or one.name in (*model.observed, *model.latent):
            raise StatisticsError(f"SEM: '{one.name}' names two things. Rename the ':=' line.")
        known.add(one.name)


def _statements(text: str) -> list[str]:
    """Lines without comments; one that is not finished goes on in the next."""
    out: list[str] = []
    for line in re.split(r"[\n;]", text.replace("\u223c", "~")):
        line = re.split(r"[#!]", line, maxsplit=1)[0].strip()
        if not line:
            continue
        if out and (out[-1][-1] in "+*~=-/(," or line[0] in "+*/)"):
            out[-1] += f" {line}"
        else:
            out.append(line)
    return out


def _split(line: str) -> tuple[str, str, str]:
    found = _OPERATOR.search(line)
    if found is None or not line[: found.start()].strip() or not line[found.end() :].strip():
        raise StatisticsError(
            f"SEM: the model cannot be read: '{line}'. Write lines such as 'motor ~ cst + ipsi'."
        )
    op = found.group()
    if op in _REFUSED:
        raise StatisticsError(f"SEM: '{line}': '{op}' cannot be used; {_REFUSED[op]}.")
    return line[: found.start()], op, line[found.end() :]


def _row(left: str, op: str, right: str, line: str) -> list[Parameter]:
    """Parameters of one side: ``a*x + 0.5*z``."""
    _check_name(left, line)
    out = []
    for term in _terms(right, line):
        *modifiers, name = (part.strip() for part in _unnested(term, "*"))
        label, value = "", None
        for modifier in modifiers:
            if modifier == "NA":
                value = np.nan
            elif _NUMBER.fullmatch(modifier):
                value = float(modifier)
            elif _NAME.fullmatch(modifier):
                label = modifier
            elif not _START.fullmatch(modifier):
                raise StatisticsError(
                    f"SEM: '{line}': '{modifier}*' is not a number, NA or a label."
                )
        if name == "1" or name == "0":
            if op != "~":
                raise StatisticsError(f"SEM: '{line}': an intercept is written 'variable ~ 1'.")
            fixed = 0.0 if name == "0" else value
            out.append(Parameter(left, "~1", _ONE, label, fixed))
            continue
        _check_name(name, line)
        out.append(Parameter(left, op, name, label, value))
    return out


def _terms(side: str, line: str) -> list[str]:
    terms = [term.strip() for term in _unnested(side, "+")]
    if not all(terms):
        raise StatisticsError(
            f"SEM: the model cannot be read: '{line}'. Write lines such as 'motor ~ cst + ipsi'."
        )
    return terms


def _unnested(text: str, mark: str) -> list[str]:
    """Split at a mark outside of parentheses and of numbers such as 1e+3."""
    parts, depth, last = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        exponent = mark == "+" and re.search(r"(?<![\w.])[\d.]+[eE]$", text[:i])
        if letter == mark and depth == 0 and not exponent:
            parts.append(text[last:i])
            last = i + 1
    return [*parts, text[last:]]


def _check_name(name: str, line: str) -> None:
    if not _NAME.fullmatch(name):
        raise StatisticsError(
            f"SEM: '{line}': '{name}' is not the name of a variable. An interaction or a function "
            "goes into the Dataset first, e.g. ds.assign(product=ds['a'] * ds['b'])."
        )


def _defined(name: str, expression: str, line: str) -> Defined:
    _check_name(name, line)
    expression = expression.strip().replace("^", "**")
    try:
        with np.errstate(all="ignore"):
            _evaluate(ast.parse(expression, mode="eval").body, None)
    except (SyntaxError, StatisticsError):
        raise StatisticsError(
            f"SEM: '{line}': a defined parameter is arithmetic of labels (+ - * / ^, "
            f"{', '.join(_FUNCTIONS)})."
        ) from None
    return Defined(name, re.sub(r"\s+", "", expression))


def _evaluate(node: ast.expr, labeled: Mapping[str, FloatArray] | None) -> FloatArray:
    """Arithmetic of numbers and labels; without values, only whether it is that."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return np.asarray(node.value, dtype=np.float64)
    if isinstance(node, ast.Name):
        return np.asarray(1.0 if labeled is None else labeled[node.id], dtype=np.float64)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate(node.operand, labeled)
        return -value if isinstance(node.op, ast.USub) else value
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and len(node.args) == 1
        and not node.keywords
    ):
        return np.asarray(_FUNCTIONS[node.func.id](_evaluate(node.args[0], labeled)))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        a, b = _evaluate(node.left, labeled), _evaluate(node.right, labeled)
        return np.asarray(_OPERATIONS[type(node.op)](a, b))
    raise StatisticsError("not arithmetic")


def _has_circle(regressions: Mapping[str, list[str]]) -> bool:
    state: dict[str, int] = {}

    def visit(name: str) -> bool:
        if state.get(name) == 1:
            return True
        if state.get(name) == 2:
            return False
        state[name] = 1
        circle = any(visit(parent) for parent in regressions.get(name, ()))
        state[name] = 2
        return circle

    return any(visit(name) for name in regressions)
