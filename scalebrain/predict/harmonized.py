"""Harmonization of predictors inside a fold, for a held-out cohort that the fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from scalebrain.harmonization.combat import CombatSettings, fit_combat

__all__ = ["FoldHarmonizer"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoldHarmonizer:
    """ComBat that is fitted on the training rows of a fold alone.

    Parameters
    ----------
    columns
        Positions of the predictors that are harmonized.
    names
        Their names.
    codes
        Cohort of every row (n), by its position in `cohorts`.
    cohorts, batch
        Names of the cohorts and of their variable, for messages.
    unseen
        ``"adapt"``: shift and scale of a held-out cohort are estimated from its own predictors
        (never from its outcome). ``"unchanged"``: it stays as it is.
    min_adapt
        A held-out cohort of fewer rows stays as it is.
    """

    columns: IntArray
    names: tuple[str, ...]
    codes: IntArray
    cohorts: tuple[str, ...]
    batch: str
    unseen: Literal["adapt", "unchanged"]
    min_adapt: int = 10

    def rows(self, x: FloatArray, train: IntArray, test: IntArray) -> tuple[FloatArray, FloatArray]:
        """Predictors of the rows to train on and to test on, harmonized.

        Parameters
        ----------
        x
            Predictors of all rows (n, p).
        train, test
            Positions of the rows; cohorts of `test` are not in `train`.

        Returns
        -------
        tuple of ndarray
            Of `train`, and of `test`. One training cohort has nothing to be brought to.
        """
        x_train, x_test = x[train], x[test]
        if len(np.unique(self.codes[train])) < 2:
            return x_train, x_test
        settings = CombatSettings(self.batch, unseen=self.unseen, min_adapt=self.min_adapt)
        labels = np.array(self.cohorts)[self.codes]
        model = fit_combat(
            x_train[:, self.columns], labels[train], {}, settings=settings, features=self.names
        )
        x_train[:, self.columns] = model.apply(x_train[:, self.columns], labels[train], {})[0]
        if self.unseen == "adapt":
            sizes = np.bincount(self.codes[test], minlength=self.codes.max() + 1)
            large = sizes[self.codes[test]] >= self.min_adapt
            if large.any():
                part = x_test[np.ix_(large, self.columns)]
                x_test[np.ix_(large, self.columns)] = model.apply(part, labels[test][large], {})[0]
        return x_train, x_test
