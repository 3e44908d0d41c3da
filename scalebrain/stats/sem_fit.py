"""One structural equation model on one table: semopy, polished, with its fit indices.

semopy parses the model and finds a first solution. Its solver stops early (5e-3 from
lavaan), so the solution is carried on by BFGS and Fisher scoring. Standard errors and
indices are computed here: semopy prints a CFI above one and has neither SRMR nor the
interval of the RMSEA.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
import scipy.optimize
import scipy.stats

from scalebrain.errors import StatisticsError

__all__ = ["ModelText", "SemFit", "fit_sem", "parse_model"]

FloatArray = npt.NDArray[np.float64]
_OPS = ("~", "=~", "~~")


@dataclass(frozen=True)
class ModelText:
    """A model in lavaan's syntax, parsed.

    Parameters
    ----------
    text
        As the user wrote it.
    latent
        Variables measured by others (left of ``=~``).
    observed
        All other variables.
    paths
        ``(left, operator, right)`` in the order of the text; ``~~`` only between two
        variables and not fixed.
    is_recursive
        True for regressions among observed variables without labels, fixed values, free
        residual covariances or circles: then maximum likelihood equals least squares
        equation by equation.
    is_scalable
        True if variables may be rescaled before the fit: no labels, commands or fixed
        values but zeros.
    """

    text: str
    latent: tuple[str, ...]
    observed: tuple[str, ...]
    paths: tuple[tuple[str, str, str], ...]
    is_recursive: bool
    is_scalable: bool

    def regressions(self) -> dict[str, list[str]]:
        """Predictors of each outcome."""
        out: dict[str, list[str]] = {}
        for left, op, right in self.paths:
            if op == "~":
                out.setdefault(left, []).append(right)
        return out

    def chains(self, limit: int = 60) -> list[tuple[str, ...]]:
        """Directed chains over at least one mediator, each from cause to outcome."""
        children: dict[str, list[str]] = {}
        for left, right in ((left, right) for left, op, right in self.paths if op == "~"):
            children.setdefault(right, []).append(left)
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


@dataclass
class SemFit:
    """Estimates and fit indices of one model.

    Parameters
    ----------
    estimate
        By path name, e.g. ``"motor ~ cst"``.
    se
        Standard errors from the expected information; missing where fixed.
    standardized
        Fully standardized estimates.
    indices
        ``chi2 df p cfi tli rmsea rmsea_low rmsea_high srmr loglik aic bic n``.
    start
        Free parameters on the scale of the fit, to start another fit from.
    improper
        Variances estimated below zero.
    """

    estimate: dict[str, float]
    se: dict[str, float]
    standardized: dict[str, float]
    indices: dict[str, float]
    start: FloatArray
    improper: list[str] = field(default_factory=list)


def parse_model(text: str) -> ModelText:
    """Read a model in lavaan's syntax.

    Parameters
    ----------
    text
        Lines such as ``motor ~ cst + ipsi`` and ``damage =~ a + b + c``.

    Returns
    -------
    ModelText
        The parsed model.

    Raises
    ------
    StatisticsError
        If the text is not a model.
    """
    from semopy.parser import parse_desc

    if ":=" in text:
        raise StatisticsError(
            "SEM: ':=' is not supported. Indirect effects of every chain are reported anyway; "
            "leave the line out."
        )
    try:
        effects, operations = parse_desc(text)
    except Exception as error:  # semopy raises bare Exception here
        raise StatisticsError(
            f"SEM: the model cannot be read: {' '.join(str(error).split())}. "
            "Write lines such as 'motor ~ cst + ipsi'."
        ) from error
    unknown = [op for op in effects if op not in _OPS]
    paths: list[tuple[str, str, str]] = []
    latent = list(effects["=~"]) if "=~" in effects else []
    names: dict[str, None] = {}
    labels: list[str] = []
    plain = not operations and not latent
    scalable = not operations
    for op in ("~", "=~", "~~"):
        for left, rights in effects.get(op, {}).items():
            for right, factor in rights.items():
                names[left] = names[right] = None
                fixed = _number(factor)
                if factor is not None:
                    plain &= op == "~~" and fixed == 0.0 and left != right
                    marker = op == "=~" and fixed == 1.0 and right == next(iter(rights))
                    scalable &= fixed == 0.0 or marker
                    if fixed is None:
                        labels.append(str(factor))
                elif op == "~~":
                    plain &= left == right
                if op == "~~" and (left == right or fixed is not None):
                    continue
                paths.append((left, op, right))
    if unknown or not paths:
        raise StatisticsError(
            f"SEM: the model has no path that can be fitted{': ' + str(unknown) if unknown else ''}"
            ". Write lines such as 'motor ~ cst + ipsi'."
        )
    observed = tuple(name for name in names if name not in latent)
    model = ModelText(text, tuple(latent), observed, tuple(paths), False, scalable)
    recursive = plain and not _has_circle(model.regressions())
    return ModelText(text, tuple(latent), observed, tuple(paths), recursive, scalable)


def fit_sem(model: ModelText, data: pd.DataFrame, *, start: FloatArray | None = None) -> SemFit:
    """Fit a model by maximum likelihood.

    Parameters
    ----------
    model
        The model.
    data
        Complete rows, one column per observed variable.
    start
        Free parameters of an earlier fit; then semopy's own solver is skipped.

    Returns
    -------
    SemFit
        Estimates, standard errors and indices.

    Raises
    ------
    StatisticsError
        If a variable is constant or a combination of others, if the model is not
        identified or the fit does not converge.
    """
    table = data[list(model.observed)]
    _check_table(table)
    centered = table - table.mean()
    scale = np.sqrt((centered**2).mean()) if model.is_scalable else pd.Series(1.0, table.columns)
    engine = _Engine(model, centered / scale)
    engine.solve(start)
    return engine.result(scale)


class _Engine:
    """A semopy model with data loaded, and what semopy does not do right."""

    def __init__(self, model: ModelText, table: pd.DataFrame) -> None:
        import semopy

        self.model = model
        self.table = table
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.semopy: Any = semopy.Model(model.text)
                self.semopy.load(table)
        except (KeyError, ValueError, TypeError, IndexError, np.linalg.LinAlgError) as error:
            raise StatisticsError(f"SEM: semopy cannot set the model up: {error}.") from error
        self.names = list(self.semopy.vars["observed"])
        self.n = len(table)
        self.cov = np.cov(table[self.names].to_numpy(), rowvar=False, bias=True).reshape(
            len(self.names), len(self.names)
        )
        self.cov_logdet = float(np.linalg.slogdet(self.cov)[1])
        exogenous = self.semopy.vars["exogenous"]
        self.exogenous = [i for i, name in enumerate(self.names) if name in exogenous]

    @property
    def x(self) -> FloatArray:
        """Free parameters."""
        return np.asarray(self.semopy.param_vals, dtype=np.float64)

    def solve(self, start: FloatArray | None) -> None:
        """Fit, and carry on to the optimum."""
        if start is None or self.semopy.constraints:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self.semopy.fit(obj="MLW")
            except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
                raise StatisticsError(f"SEM: semopy cannot fit the model: {error}.") from error
            first = self.x
        else:
            first = start
        if self.semopy.constraints or not len(first):
            self._move(first)
            return
        with np.errstate(all="ignore"):
            found = scipy.optimize.minimize(
                self._objective, first, jac=True, method="BFGS", options={"gtol": 1e-8}
            )
            x = found.x if np.isfinite(found.fun) else first
            for _ in range(30):
                value, gradient = self._objective(x)
                if np.abs(gradient).max() < 1e-11:
                    break
                step = _solve(self._information(x) * (2.0 / self.n), gradient)
                if step is None:
                    break
                further, _ = self._objective(x - step)
                if not further <= value + 1e-12:
                    break
                x = x - step
            _, gradient = self._objective(x)
        if not np.abs(gradient).max() < 1e-5:
            raise StatisticsError(
                f"SEM: the fit did not converge (gradient {np.abs(gradient).max():.1e} on {self.n} "
                "rows). Simplify the model, or check that each latent variable has three or "
                "more indicators."
            )
        self._move(x)

    def _move(self, x: FloatArray) -> None:
        self.semopy.param_vals = np.asarray(x, dtype=np.float64)
        self.semopy.update_matrices(self.semopy.param_vals)

    def _objective(self, x: FloatArray) -> tuple[float, FloatArray]:
        """Discrepancy of maximum likelihood and its gradient."""
        self.semopy.update_matrices(x)
        bad = (np.inf, np.zeros(len(x)))
        try:
            sigma, (m, c) = self.semopy.calc_sigma()
            factor = scipy.linalg.cho_factor(sigma, lower=True)
        except (np.linalg.LinAlgError, ValueError):
            return bad
        inverse = scipy.linalg.cho_solve(factor, np.eye(len(sigma)))
        logdet = 2.0 * np.log(np.diag(factor[0])).sum()
        value = logdet - self.cov_logdet + np.sum(inverse * self.cov) - len(sigma)
        middle = inverse - inverse @ self.cov @ inverse
        grads = self.semopy.calc_sigma_grad(m, c)
        return float(value), np.array([np.sum(middle * grad) for grad in grads])

    def _information(self, x: FloatArray) -> FloatArray:
        """Compute the expected information of the free parameters."""
        self.semopy.update_matrices(x)
        sigma, (m, c) = self.semopy.calc_sigma()
        inverse = np.linalg.inv(sigma)
        parts = [inverse @ grad for grad in self.semopy.calc_sigma_grad(m, c)]
        flat = np.array([part.ravel() for part in parts])
        turned = np.array([part.T.ravel() for part in parts])
        return np.asarray(0.5 * self.n * flat @ turned.T)

    def result(self, scale: pd.Series[float]) -> SemFit:
        """Read estimates back on the scale of the data."""
        x = self.x
        sigma, (_, c) = self.semopy.calc_sigma()
        errors = self._standard_errors(x)
        variance = dict(
            zip(self.semopy.vars["inner"], np.diag(c @ self.semopy.mx_psi @ c.T), strict=True)
        )
        variance.update(zip(self.names, np.diag(sigma), strict=True))
        unit = {name: float(scale[name]) for name in self.model.observed}
        for name in self.model.latent:
            marker = getattr(self.semopy, "first_manifs", {}).get(name)
            unit[name] = unit.get(str(marker), 1.0)
        free = self._free_positions()
        out = SemFit({}, {}, {}, self._indices(sigma, scale), x)
        for left, op, right in self.model.paths:
            row, column = (right, left) if op == "=~" else (left, right)
            matrix, i, j = self._cell(row, column, op)
            value = float(matrix[i, j])
            index = free.get((id(matrix), i, j))
            name = f"{left} {op} {right}"
            factor = unit[row] * unit[column] if op == "~~" else unit[row] / unit[column]
            out.estimate[name] = value * factor
            out.se[name] = np.nan if index is None else float(errors[index] * factor)
            if op == "~~":
                spread = np.sqrt(self._residual(row) * self._residual(column))
                out.standardized[name] = value / spread
            else:
                out.standardized[name] = value * float(np.sqrt(variance[column] / variance[row]))
        out.improper = [
            name for name in (*self.model.observed, *self.model.latent) if self._residual(name) < 0
        ]
        return out

    def _cell(self, row: str, column: str, op: str) -> tuple[FloatArray, int, int]:
        outputs = self.semopy.vars["_output"]
        if op == "~~":
            inside = row not in outputs and column not in outputs
            matrix, names = (
                (self.semopy.mx_psi, self.semopy.names_psi)
                if inside
                else (self.semopy.mx_theta, self.semopy.names_theta)
            )
        else:
            matrix, names = (
                (self.semopy.mx_lambda, self.semopy.names_lambda)
                if row in outputs
                else (self.semopy.mx_beta, self.semopy.names_beta)
            )
        return matrix, list(names[0]).index(row), list(names[1]).index(column)

    def _residual(self, name: str) -> float:
        matrix, i, j = self._cell(name, name, "~~")
        return float(matrix[i, j])

    def _free_positions(self) -> dict[tuple[int, int, int], int]:
        out: dict[tuple[int, int, int], int] = {}
        free = [parameter for parameter in self.semopy.parameters.values() if parameter.active]
        for index, parameter in enumerate(free):
            for place in parameter.locations:
                i, j = place.indices
                out[id(place.matrix), i, j] = index
                if place.symmetric:
                    out[id(place.matrix), j, i] = index
        return out

    def _standard_errors(self, x: FloatArray) -> FloatArray:
        information = self._information(x)
        self.semopy.update_matrices(x)
        root = np.sqrt(np.diag(information))
        if len(x) and (
            not (root > 0).all()
            or np.linalg.eigvalsh(information / np.outer(root, root)).min() < 1e-10
        ):
            raise StatisticsError(
                "SEM: the model is not identified: its information matrix is singular. "
                "Remove paths, or fix a parameter."
            )
        return np.sqrt(np.diag(np.linalg.inv(information)))

    def _indices(self, sigma: FloatArray, scale: pd.Series[float]) -> dict[str, float]:
        p, q, n = len(self.names), len(self.exogenous), self.n
        free = len(self.x)
        df = p * (p + 1) // 2 - q * (q + 1) // 2 - free
        if df < 0:
            raise StatisticsError(
                f"SEM: the model is not identified: {free} free parameters for "
                f"{df + free} covariances. Remove paths."
            )
        solved = np.linalg.solve(sigma, self.cov)
        logdet = float(np.linalg.slogdet(sigma)[1])
        chi2 = max(n * (logdet + np.trace(solved) - self.cov_logdet - p), 0.0)
        if df == 0:
            chi2 = 0.0 if chi2 < 1e-6 else chi2
        endogenous = [i for i in range(p) if i not in self.exogenous]
        cov_x = self.cov[np.ix_(self.exogenous, self.exogenous)]
        logdet_x = float(np.linalg.slogdet(cov_x)[1]) if q else 0.0
        loose = np.log(np.diag(self.cov))[endogenous].sum() + logdet_x
        chi2_base = max(n * (loose - self.cov_logdet), 0.0)
        df_base = p * (p + 1) // 2 - q * (q + 1) // 2 - len(endogenous)
        residual = (self.cov - sigma) / np.sqrt(np.outer(np.diag(self.cov), np.diag(self.cov)))
        loglik = -0.5 * n * ((p - q) * np.log(2 * np.pi) + logdet + np.trace(solved) - logdet_x - q)
        loglik -= n * np.log(scale[[self.names[i] for i in endogenous]]).sum()
        low, high = _rmsea_interval(chi2, df, n)
        return {
            "chi2": chi2,
            "df": df,
            "p": float(scipy.stats.chi2.sf(chi2, df)) if df else np.nan,
            "cfi": _cfi(chi2, df, chi2_base, df_base),
            "tli": _tli(chi2, df, chi2_base, df_base),
            "rmsea": float(np.sqrt(max(chi2 - df, 0.0) / (df * n))) if df else 0.0,
            "rmsea_low": low,
            "rmsea_high": high,
            "srmr": float(np.sqrt((residual[np.tril_indices(p)] ** 2).mean())),
            "loglik": float(loglik),
            "aic": float(2 * free - 2 * loglik),
            "bic": float(np.log(n) * free - 2 * loglik),
            "n": n,
        }


def _cfi(chi2: float, df: float, chi2_base: float, df_base: float) -> float:
    excess = max(chi2 - df, 0.0)
    most = max(chi2_base - df_base, excess, 0.0)
    return 1.0 if most == 0 else float(1.0 - excess / most)


def _tli(chi2: float, df: float, chi2_base: float, df_base: float) -> float:
    if df == 0 or df_base == 0:
        return 1.0
    base = chi2_base / df_base
    return np.nan if base == 1 else float((base - chi2 / df) / (base - 1.0))


def _rmsea_interval(chi2: float, df: float, n: int) -> tuple[float, float]:
    """Find the 90% interval from the noncentral chi-squared distribution."""
    if df == 0:
        return 0.0, 0.0

    def bound(level: float) -> float:
        if scipy.stats.chi2.cdf(chi2, df) < level:
            return 0.0
        top = max(chi2, df) * 2.0 + 50.0
        while scipy.stats.ncx2.cdf(chi2, df, top) > level:
            top *= 2.0
        root = scipy.optimize.brentq(
            lambda nc: scipy.stats.ncx2.cdf(chi2, df, nc) - level, 1e-12, top
        )
        return float(np.sqrt(root / (n * df)))

    return bound(0.95), bound(0.05)


def _check_table(table: pd.DataFrame) -> None:
    n, p = table.shape
    if n <= p + 1:
        raise StatisticsError(
            f"SEM: {n} complete rows for {p} variables; more are needed. Check the missing values."
        )
    values = table.to_numpy(dtype=np.float64)
    spread = values.std(axis=0)
    flat = [
        str(name)
        for name, sd, top in zip(table.columns, spread, np.abs(values).max(axis=0), strict=True)
        if not sd > 1e-10 * top
    ]
    if flat:
        raise StatisticsError(
            f"SEM: {', '.join(map(repr, flat))} has the same value in all {n} rows used. "
            "Leave it out of the model, or map the name to another variable."
        )
    correlation = np.corrcoef(values, rowvar=False).reshape(p, p)
    roots, vectors = np.linalg.eigh(correlation)
    if roots[0] < 1e-10:
        tied = [
            str(name)
            for name, weight in zip(table.columns, vectors[:, 0], strict=True)
            if abs(weight) > 1e-3
        ]
        raise StatisticsError(
            f"SEM: {', '.join(map(repr, tied))} are exact combinations of each other. "
            "Leave one out."
        )


def _solve(matrix: FloatArray, right: FloatArray) -> FloatArray | None:
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None


def _number(factor: object) -> float | None:
    try:
        return float(str(factor))
    except ValueError:
        return None


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
