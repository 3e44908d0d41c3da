"""The results of mixed models, filled fit by fit, and the Dataset that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
import xarray as xr

from scalebrain.stats.mixed_basis import Basis
from scalebrain.stats.mixed_fit import Fits

__all__ = ["Table"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_PER_TERM = {
    "estimate": "Fixed effect, in units of the outcome per unit of the term",
    "se": "Standard error of the estimate",
    "df": "Satterthwaite degrees of freedom",
    "ci_low": "Lower end of the confidence interval",
    "ci_high": "Upper end of the confidence interval",
    "estimate_standardized": "Fixed effect in SD of the outcome per SD of the term",
    "se_standardized": "Standard error of the standardized estimate",
    "p": "Two-sided p value of the t test, not corrected",
    "q": "Benjamini-Hochberg q value over the family, within the term",
    "p_bonferroni": "p value times the tests of the family, within the term",
}
_PERMUTED = {
    "p_permutation": "p value of the permutations within groups, not corrected",
    "p_fwe": "p value against the largest |t| of the family (family-wise)",
}
_BOOTSTRAP = {
    "se_bootstrap": "Standard deviation of the estimate over bootstrap samples of groups",
    "ci_low_bootstrap": "Lower end of the bootstrap interval",
    "ci_high_bootstrap": "Upper end of the bootstrap interval",
}
_PER_REGION = {
    "n": "Subjects used, 0 where nothing could be fitted",
    "n_dropped": "Subjects not used",
    "n_groups": "Groups among the subjects used",
    "group_variance": "Variance of the random intercepts",
    "residual_variance": "Residual variance",
    "log_likelihood": "Logarithm of the (restricted) likelihood",
    "boundary": "The variance of the random effects is estimated on its boundary; false too where "
    "nothing could be fitted (n is 0)",
}
_SLOPE = {
    "slope_variance": "Variance of the random slopes",
    "slope_covariance": "Covariance of random slopes and intercepts",
}
# |t| that differ by rounding alone are equal (relative)
_ROUNDING = 1e-9


class Table:
    """Results over labels and terms.

    Parameters
    ----------
    n_labels
        Number of labels (regions, nodes, vertices).
    n_subjects
        Number of subjects of the Dataset.
    family
        Labels that are corrected together (n_labels).
    n_permutations
        Number of permutations.
    n_bootstrap
        Number of bootstrap samples.
    slope
        Whether a random slope is fitted.
    """

    def __init__(
        self,
        n_labels: int,
        n_subjects: int,
        family: BoolArray,
        *,
        n_permutations: int = 0,
        n_bootstrap: int = 0,
        slope: bool = False,
    ) -> None:
        self.n_labels, self.n_subjects, self.family = n_labels, n_subjects, family
        self.n_permutations = n_permutations
        self.long_names = _PER_TERM | (_PERMUTED if n_permutations else {})
        self.long_names |= _BOOTSTRAP if n_bootstrap else {}
        self.cells: dict[tuple[str, str], FloatArray] = {}
        self.terms: list[str] = []
        self.reasons: dict[str, BoolArray] = {}
        self.largest: dict[str, FloatArray] = {}
        self.fixed_terms: dict[str, None] = {}
        self.per_label: dict[str, npt.NDArray[Any]] = {
            name: np.full(n_labels, np.nan)
            for name in ("group_variance", "residual_variance", "log_likelihood")
        }
        if slope:
            self.per_label |= {name: np.full(n_labels, np.nan) for name in _SLOPE}
        self.per_label["boundary"] = np.zeros(n_labels, dtype=np.bool_)
        for name in ("n", "n_groups", *(["n_bootstrap"] if n_bootstrap else [])):
            self.per_label[name] = np.zeros(n_labels, dtype=np.int64)
        self.dropped = np.ones((n_labels, n_subjects), dtype=np.bool_)

    def note(self, reasons: dict[str, BoolArray]) -> None:
        """Add reasons for dropping rows, over all labels."""
        for reason, rows in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, np.zeros_like(rows)) | rows

    def put(self, name: str, term: str, positions: Any, values: FloatArray) -> None:
        """Write values of a term at positions."""
        if term not in self.terms:
            self.terms.append(term)
        cell = self.cells.setdefault((name, term), np.full(self.n_labels, np.nan))
        cell[positions] = values

    def write(self, positions: Any, basis: Basis, fits: Fits, confidence: float) -> None:
        """Write fits at positions (k)."""
        t = fits.estimate / fits.se
        half = scipy.stats.t.ppf(0.5 + confidence / 2, fits.df) * fits.se
        with np.errstate(invalid="ignore", divide="ignore"):  # constant outcomes are not fitted
            unit = np.where(basis.spread > 0, basis.spread, np.nan) / fits.spread[:, None]
        columns = {
            "estimate": fits.estimate,
            "se": fits.se,
            "df": fits.df,
            "ci_low": fits.estimate - half,
            "ci_high": fits.estimate + half,
            "estimate_standardized": fits.estimate * unit,
            "se_standardized": fits.se * unit,
            "p": 2 * scipy.stats.t.sf(np.abs(t), fits.df),
        }
        for name, values in columns.items():
            for column, term in enumerate(basis.names):
                self.put(name, term, positions, values[:, column])
        for name in self.per_label:
            if name not in ("n", "n_groups", "n_bootstrap"):
                self.per_label[name][positions] = getattr(fits, name)
        self.per_label["n_groups"][positions] = np.where(
            np.isfinite(fits.residual_variance), basis.n_groups, 0
        )

    @property
    def fitted(self) -> BoolArray:
        """Whether a label could be fitted (n_labels)."""
        return np.asarray(np.isfinite(self.per_label["residual_variance"]))

    def array(self, name: str) -> FloatArray:
        """Values over (label, term)."""
        missing = np.full(self.n_labels, np.nan)
        columns = [self.cells.get((name, term), missing) for term in self.terms]
        return np.stack(columns, axis=1) if columns else np.empty((self.n_labels, 0))

    def dataset(self, dim: Any) -> xr.Dataset:
        """Everything over `dim`, ``term``, ``subject`` and ``permutation``."""
        self._correct()
        self.per_label["n"][~self.fitted] = 0
        self.dropped[~self.fitted] = True
        out = xr.Dataset(coords={"term": ("term", np.array(self.terms, dtype=object))})
        for name, long_name in self.long_names.items():
            out[name] = ((dim, "term"), self.array(name), {"long_name": long_name})
        per_label = self.per_label | {"n_dropped": self.dropped.sum(axis=1)}
        names = _PER_REGION | (_SLOPE if "slope_variance" in per_label else {})
        if "n_bootstrap" in per_label:
            names = names | {"n_bootstrap": "Bootstrap samples that could be fitted"}
        for name, long_name in names.items():
            out[name] = ((dim,), per_label[name], {"long_name": long_name})
        out["dropped"] = (
            (dim, "subject"),
            self.dropped,
            {"long_name": "The subject was not used"},
        )
        if self.n_permutations:
            missing = np.full(self.n_permutations, np.nan)
            largest = [self.largest.get(term, missing) for term in self.terms]
            out["max_t"] = (
                ("permutation", "term"),
                np.stack(largest, axis=1),
                {"long_name": "Largest |t| over the family in a permutation"},
            )
        return out

    def _correct(self) -> None:
        """Corrections over the family, within each term."""
        for term in self.terms:
            p = self.cells["p", term]
            tested = np.flatnonzero(self.family & np.isfinite(p))
            if not tested.size:
                continue
            self.put("q", term, tested, scipy.stats.false_discovery_control(p[tested]))
            self.put("p_bonferroni", term, tested, np.minimum(p[tested] * tested.size, 1.0))
            if term in self.largest:
                t = np.abs(self.cells["estimate", term] / self.cells["se", term])[tested]
                ranked = np.sort(self.largest[term])
                beaten = ranked.size - np.searchsorted(ranked, t * (1 - _ROUNDING))
                self.put("p_fwe", term, tested, (1 + beaten) / (1 + ranked.size))

    def permuted(
        self, term: str, positions: Any, reached: npt.NDArray[np.int64], largest: FloatArray
    ) -> None:
        """Write how many permutations reached each |t|, and keep the largest of all blocks."""
        self.put("p_permutation", term, positions, (1 + reached) / (1 + self.n_permutations))
        self.largest[term] = np.maximum(self.largest.get(term, largest), largest)


def labels_shown(labels: Sequence[Any]) -> str:
    """Put the first labels in words."""
    shown = ", ".join(map(str, labels[:4]))
    return shown + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
