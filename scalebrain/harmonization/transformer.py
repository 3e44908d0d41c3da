"""ComBat as a transformer of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from scalebrain.errors import DataWarning, StatisticsError
from scalebrain.harmonization.combat import UNCHANGED, CombatSettings, fit_combat
from scalebrain.harmonization.design import covariate_values, missing_rows

__all__ = ["ComBat"]


class ComBat(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Take the effects of batches out of the columns of a DataFrame, inside the fold.

    ``X`` is a DataFrame that holds features and what is known about the people: the columns
    named by `batch`, `covariates`, `smooth` and `keep`. Every other column is a feature, and
    the features alone come out. Batch and covariates travel in ``X``, so that every splitter,
    ``Pipeline`` and search of scikit-learn cuts them as it cuts the features, and what is
    estimated comes from the training rows alone.

    Parameters
    ----------
    batch
        Column of the batch: cohort, site or scanner.
    covariates
        Columns whose effects are kept. Numbers are straight lines; text, flags and
        categoricals are levels.
        Never the outcome that is predicted: it would leak through the training rows.
    smooth
        Columns of numbers whose effects are kept as a smooth curve (ComBat-GAM).
    keep
        Columns of numbers that come out unchanged after the features, e.g. the age as a
        predictor.
    reference_batch
        Batch that the others are brought to and that stays as it is.
    unseen
        What to do with a batch that was not in the fit. ``"error"``: refuse. ``"adapt"``:
        estimate it from its own rows at the transform, so that the result depends on which
        rows come together. ``"unchanged"``: leave it as it is, with a DataWarning.
    min_adapt
        Fewest rows that an unseen batch is adapted from.
    empirical_bayes
        Shrink the estimates of a batch towards their mean over the features.
    penalty
        How the smoothness is chosen: ``"gcv"``, or ``"kfold"`` as neuroHarmonize does.
    tolerance
        Relative change at which the empirical Bayes iteration stops.
    seed
        Of the folds of ``penalty="kfold"``.

    Attributes
    ----------
    model_
        Fitted :class:`~scalebrain.harmonization.combat.Combat`.
    feature_names_in_
        Columns of the fit.
    n_features_in_
        Their number.

    Notes
    -----
    With leave-one-site-out folds every test batch is unseen: choose `unseen` on purpose.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame(rng.normal(size=(60, 3)), columns=["SMN_L", "SMN_R", "VIS_L"])
    >>> X["cohort"] = np.repeat(["a", "b", "c"], 20)
    >>> X["age"] = rng.uniform(45, 80, 60)
    >>> model = make_pipeline(ComBat(batch="cohort", covariates=["age"]), Ridge())
    >>> model.fit(X, rng.normal(size=60)).predict(X).shape
    (60,)
    """

    def __init__(
        self,
        *,
        batch: str = "cohort",
        covariates: Sequence[str] = (),
        smooth: Sequence[str] = (),
        keep: Sequence[str] = (),
        reference_batch: str | None = None,
        unseen: Literal["error", "adapt", "unchanged"] = "error",
        min_adapt: int = 10,
        empirical_bayes: bool = True,
        penalty: Literal["gcv", "kfold"] = "gcv",
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> None:
        self.batch = batch
        self.covariates = covariates
        self.smooth = smooth
        self.keep = keep
        self.reference_batch = reference_batch
        self.unseen = unseen
        self.min_adapt = min_adapt
        self.empirical_bayes = empirical_bayes
        self.penalty = penalty
        self.tolerance = tolerance
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:  # noqa: ARG002
        """Estimate the effects of the batches.

        Parameters
        ----------
        X
            (subject, column) features and metadata.
        y
            Not used.

        Returns
        -------
        ComBat
            This object.

        Raises
        ------
        StatisticsError
            If a column is absent, metadata are missing, features are no numbers, or the
            model cannot be fitted (see :func:`~scalebrain.harmonization.combat.fit_combat`).
        """
        settings = CombatSettings(
            self.batch,
            tuple(self.covariates),
            tuple(self.smooth),
            self.reference_batch,
            self.empirical_bayes,
            self.penalty,
            self.unseen,
            self.min_adapt,
            self.tolerance,
            self.seed,
        )
        self._check(X)
        features = [str(name) for name in X.columns if name not in self._metadata()]
        if not features:
            raise StatisticsError(
                f"X has no column besides the metadata {', '.join(self._metadata())}: there is "
                "nothing to harmonize."
            )
        self.model_ = fit_combat(
            _numbers(X[features]),
            X[self.batch].to_numpy(),
            self._columns(X),
            settings=settings,
            features=features,
        )
        self.feature_names_in_ = np.array([str(name) for name in X.columns], dtype=object)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Take the effects of the batches out.

        Parameters
        ----------
        X
            (subject, column) with the columns of the fit, in any order.

        Returns
        -------
        ndarray
            (subject, feature and kept column); missing values stay missing.

        Raises
        ------
        StatisticsError
            If columns are absent, metadata are missing, or a batch is unseen and
            ``unseen="error"``.

        Warns
        -----
        DataWarning
            If rows of an unseen batch stay as they are.
        """
        check_is_fitted(self)
        self._check(X, self.model_.features)
        values = _numbers(X[list(self.model_.features)])
        out, words = self.model_.apply(values, X[self.batch].to_numpy(), self._columns(X))
        left = words == UNCHANGED
        if left.any():
            labels = sorted(set(X[self.batch][left].astype(str)))
            warnings.warn(
                f"{int(left.sum())} rows of '{self.batch}' {', '.join(labels)} were not "
                "harmonized: their batch was not in the fit.",
                DataWarning,
                stacklevel=2,
            )
        return np.column_stack([out, _numbers(X[list(self.keep)])])

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:  # noqa: ARG002
        """Names of the columns that come out.

        Parameters
        ----------
        input_features
            Not used.

        Returns
        -------
        ndarray
            Features, then the columns of `keep`.
        """
        check_is_fitted(self)
        return np.array([*self.model_.features, *self.keep], dtype=object)

    def _metadata(self) -> list[str]:
        return list(dict.fromkeys((self.batch, *self.covariates, *self.smooth, *self.keep)))

    def _columns(self, X: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
        return {
            name: covariate_values(X[name].to_numpy(), X[name].dtype)
            for name in dict.fromkeys((*self.covariates, *self.smooth))
        }

    def _check(self, X: Any, features: Sequence[str] = ()) -> None:
        for name in ("covariates", "smooth", "keep"):
            if isinstance(getattr(self, name), str):
                raise StatisticsError(
                    f"{name}='{getattr(self, name)}' is text; pass a list of columns."
                )
        if not isinstance(X, pd.DataFrame):
            raise StatisticsError(
                f"X must be a DataFrame with features and the columns {', '.join(self._metadata())}"
                f", got {type(X).__name__}. Put ComBat first in the Pipeline, or set_output("
                "transform='pandas') on the step before it."
            )
        columns: list[Any] = X.columns.tolist()
        odd = [name for name in columns if not isinstance(name, str)]
        if odd:
            raise StatisticsError(
                f"X has columns that are named by no text, as {odd[0]!r}. Name them: "
                "X.columns = X.columns.astype(str)."
            )
        absent = [name for name in (*self._metadata(), *features) if name not in X.columns]
        if absent:
            shown = ", ".join(map(str, X.columns[:20]))
            raise StatisticsError(
                f"X lacks the columns {', '.join(map(repr, absent))}. It has {shown}."
            )
        if not X.columns.is_unique:
            twice = sorted(set(map(str, X.columns[X.columns.duplicated()])))
            raise StatisticsError(f"X has columns twice: {', '.join(twice)}. Rename them.")
        gaps = []
        for name in dict.fromkeys((self.batch, *self.covariates, *self.smooth)):
            rows = np.flatnonzero(missing_rows(X[name].to_numpy()))
            if len(rows):
                shown = ", ".join(map(str, X.index[rows[:5]]))
                gaps.append(f"'{name}' in {len(rows)} rows ({shown})")
        if gaps:
            raise StatisticsError(
                f"X: missing values of {'; '.join(gaps)}. Leave these rows out, or fill them in "
                "before."
            )


def _numbers(frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    bad = [str(name) for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    if bad:
        raise StatisticsError(
            f"X: {', '.join(map(repr, bad))} holds no numbers. Name metadata in `covariates` or "
            "`keep`, and leave other text out of X."
        )
    values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    infinite = [str(name) for name in frame.columns[np.isinf(values).any(axis=0)]]
    if infinite:
        raise StatisticsError(
            f"X: {', '.join(map(repr, infinite))} has infinite values. Set them missing (NaN)."
        )
    return values
