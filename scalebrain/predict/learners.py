"""Learners of the motor prediction: a pipeline each, with the few settings to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.errors import ConfigError

__all__ = ["LEARNERS", "TunedModel", "make_pipeline", "tune_and_fit"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Folds = Sequence[tuple[IntArray, IntArray]]

#: Names of the learners.
LEARNERS: tuple[str, ...] = ("elastic_net", "random_forest", "gradient_boosting")

_GRIDS: Mapping[tuple[str, bool], tuple[dict[str, Any], ...]] = {
    ("elastic_net", False): tuple(
        {"alpha": alpha, "l1_ratio": ratio}
        for alpha in (0.3, 0.1, 0.03, 0.01)
        for ratio in (0.2, 0.8)
    ),
    ("elastic_net", True): tuple(
        {"C": c, "l1_ratio": ratio} for c in (0.03, 0.1, 0.5) for ratio in (0.2, 0.8)
    ),
    ("random_forest", False): ({"max_features": 0.33}, {"max_features": 0.8}),
    ("random_forest", True): ({"max_features": 0.33}, {"max_features": 0.8}),
}
#: Boosting is tuned in its number of trees, as fractions of `n_trees`, from one fit a fold.
_BOOSTING_STAGES = (0.2, 0.5, 1.0)


@dataclass(frozen=True)
class TunedModel:
    """A fitted pipeline and the settings that the inner folds chose.

    Parameters
    ----------
    pipeline
        Fitted on all rows it was given.
    settings
        Chosen parameters of the last step.
    classify
        True if it predicts a probability.
    """

    pipeline: Any
    settings: dict[str, Any]
    classify: bool

    def predict(self, x: FloatArray) -> FloatArray:
        """Predict values, or the probability of being severe."""
        return _predict(self.pipeline, x, self.classify)


def make_pipeline(
    learner: str, *, classify: bool = False, n_trees: int = 60, seed: int = 0, **settings: Any
) -> Any:
    """Make an unfitted pipeline: median imputer, scaler, estimator.

    Parameters
    ----------
    learner
        One of :data:`LEARNERS`.
    classify
        Predict a class instead of a value.
    n_trees
        Trees of the ensembles.
    seed
        Seed of the estimator.
    **settings
        Parameters of the estimator.

    Returns
    -------
    Pipeline
        A scikit-learn Pipeline.

    Raises
    ------
    ConfigError
        If `learner` is unknown.
    """
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import ElasticNet, LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    estimator: Any
    if learner == "elastic_net":
        if classify:
            estimator = LogisticRegression(
                solver="saga", l1_ratio=0.5, tol=1e-3, max_iter=20_000, random_state=seed
            )
        else:
            estimator = ElasticNet(max_iter=20_000, tol=1e-4, selection="cyclic")
    elif learner == "random_forest":
        make = RandomForestClassifier if classify else RandomForestRegressor
        estimator = make(n_estimators=n_trees, min_samples_leaf=3, random_state=seed, n_jobs=1)
    elif learner == "gradient_boosting":
        make = GradientBoostingClassifier if classify else GradientBoostingRegressor
        estimator = make(
            n_estimators=n_trees,
            learning_rate=0.08,
            max_depth=2,
            subsample=0.8,
            random_state=seed,
        )
    else:
        raise ConfigError(f"Unknown learner '{learner}'. Choose from {', '.join(LEARNERS)}.")
    estimator.set_params(**settings)
    steps = [
        ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
        ("scale", StandardScaler()),
        ("estimate", estimator),
    ]
    return Pipeline(steps)


def tune_and_fit(
    learner: str,
    x: FloatArray,
    y: FloatArray,
    folds: Folds,
    *,
    classify: bool = False,
    n_trees: int = 60,
    seed: int = 0,
) -> TunedModel:
    """Choose the settings on inner folds, then fit on all rows.

    Parameters
    ----------
    learner
        One of :data:`LEARNERS`.
    x
        Predictors (n, p); missing values are imputed inside the pipeline.
    y
        Outcome (n), 0 and 1 if `classify`.
    folds
        Positions to train and test on. Without folds the middle setting is taken.
    classify
        Predict a class instead of a value.
    n_trees
        Trees of the ensembles.
    seed
        Seed of the estimator.

    Returns
    -------
    TunedModel
        Fitted, with the settings chosen by squared error (for a class: of its probability,
        the Brier score). Forests are searched with a third of the trees. An inner fold
        that would train on one class predicts its rate.
    """
    grid = _grid(learner, classify, n_trees)
    n_search = max(20, n_trees // 3) if learner == "random_forest" else n_trees
    settings = grid[len(grid) // 2]
    if folds:
        loss = np.zeros(len(grid))
        for train, test in folds:
            if classify and len(np.unique(y[train])) < 2:
                loss += np.sum((y[test] - y[train].mean()) ** 2)
                continue
            # Imputer and scaler do not depend on the settings: fitted once a fold.
            pipeline = make_pipeline(learner, classify=classify, n_trees=n_search, seed=seed)
            before = pipeline[:-1].fit(x[train])
            x_train, x_test = before.transform(x[train]), before.transform(x[test])
            estimator, target = pipeline[-1], _target(y[train], classify)
            if learner == "gradient_boosting":
                stages = _staged(estimator.fit(x_train, target), x_test, classify)
                for k, candidate in enumerate(grid):
                    loss[k] += np.sum((y[test] - stages[candidate["n_estimators"] - 1]) ** 2)
                continue
            for k, candidate in enumerate(grid):
                estimator.set_params(**candidate).fit(x_train, target)
                loss[k] += np.sum((y[test] - _predict(estimator, x_test, classify)) ** 2)
        settings = grid[int(np.argmin(loss))]
    pipeline = make_pipeline(learner, classify=classify, n_trees=n_trees, seed=seed, **settings)
    pipeline.fit(x, _target(y, classify))
    return TunedModel(pipeline, dict(settings), classify)


def _grid(learner: str, classify: bool, n_trees: int) -> tuple[dict[str, Any], ...]:
    if learner == "gradient_boosting":
        return tuple({"n_estimators": max(1, int(n_trees * part))} for part in _BOOSTING_STAGES)
    if (learner, classify) not in _GRIDS:
        raise ConfigError(f"Unknown learner '{learner}'. Choose from {', '.join(LEARNERS)}.")
    return _GRIDS[learner, classify]


def _staged(model: Any, x: FloatArray, classify: bool) -> list[FloatArray]:
    """Predictions after each tree."""
    if classify:
        return [stage[:, 1] for stage in model.staged_predict_proba(x)]
    return list(model.staged_predict(x))


def _target(y: FloatArray, classify: bool) -> npt.NDArray[Any]:
    return y.astype(np.int64) if classify else y


def _predict(model: Any, x: FloatArray, classify: bool) -> FloatArray:
    values = model.predict_proba(x)[:, 1] if classify else model.predict(x)
    return np.asarray(values, dtype=np.float64)
