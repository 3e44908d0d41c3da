"""Learners of the motor prediction: a pipeline each, with the few settings to choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.errors import ConfigError

__all__ = ["LEARNERS", "Folds", "Prepared", "Rows", "TunedModel", "make_pipeline", "tune_and_fit"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Folds = Sequence[tuple[IntArray, IntArray]]
#: Positions to train and test on go in, the predictors of both come out.
Rows = Callable[[IntArray, IntArray], tuple[FloatArray, FloatArray]]

#: Names of the learners.
LEARNERS: tuple[str, ...] = ("elastic_net", "random_forest", "gradient_boosting")

#: The penalty `alpha` is of a target divided by its SD over the rows of the fit.
_GRIDS: Mapping[tuple[str, bool], tuple[dict[str, Any], ...]] = {
    ("elastic_net", False): tuple(
        {"alpha": alpha, "l1_ratio": ratio}
        for alpha in (0.8, 0.3, 0.1, 0.04)
        for ratio in (0.2, 0.8)
    ),
    ("elastic_net", True): tuple(
        {"alpha": alpha, "l1_ratio": ratio} for alpha in (0.1, 0.03, 0.01) for ratio in (0.2, 0.8)
    ),
    ("random_forest", False): tuple({"max_features": part} for part in (0.15, 0.33, 0.8)),
    ("random_forest", True): tuple({"max_features": part} for part in (0.15, 0.33, 0.8)),
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
        Chosen settings of the last step.
    classify
        True if it predicts a probability.
    inner_prediction
        Of each row, by the chosen settings in the inner fold that did not train on it; missing
        without folds.
    """

    pipeline: Any
    settings: dict[str, Any]
    classify: bool
    inner_prediction: FloatArray

    def predict(self, x: FloatArray) -> FloatArray:
        """Predict values, or the probability of being severe."""
        return _predict(self.pipeline, x, self.classify)


def make_pipeline(
    learner: str, *, classify: bool = False, n_trees: int = 60, seed: int = 0, **settings: Any
) -> Any:
    """Make an unfitted pipeline: median imputer, limits, scaler, estimator.

    Predictors are cut to their range in training, so that a load that was almost nowhere
    above zero does not carry a linear model far beyond what it has seen.

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
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

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
        ("limit", MinMaxScaler(clip=True)),
        ("scale", StandardScaler()),
        ("estimate", estimator),
    ]
    return Pipeline(steps)


@dataclass(frozen=True)
class Prepared:
    """Predictors as the estimators take them: imputed, cut and scaled by what each fit may see.

    No step looks at the outcome, so one preparation serves every outcome and setting.

    Parameters
    ----------
    before
        Imputer, limits and scaler, fitted on all rows.
    x
        All rows (n, p).
    inner
        For each inner fold the rows to train and test on, and the predictors of both, of an
        imputer, limits and a scaler of its own.
    """

    before: Any
    x: FloatArray
    inner: Sequence[tuple[IntArray, IntArray, FloatArray, FloatArray]]

    @classmethod
    def of(cls, x: FloatArray, folds: Folds, rows: Rows | None = None) -> Prepared:
        """Fit the steps before the estimator.

        Parameters
        ----------
        x
            Predictors (n, p), missing where unknown.
        folds
            Inner folds.
        rows
            Makes the predictors of an inner fold where more than rows of `x` is needed, such
            as a harmonization that is fitted in the inner fold.

        Returns
        -------
        Prepared
            Of these rows.
        """
        before = make_pipeline("elastic_net")[:-1]
        inner = []
        for train, test in folds:
            x_train, x_test = (x[train], x[test]) if rows is None else rows(train, test)
            inner.append((train, test, before.fit_transform(x_train), before.transform(x_test)))
        return cls(before.fit(x), before.transform(x), inner)


def tune_and_fit(
    learner: str,
    prepared: Prepared,
    y: FloatArray,
    *,
    settings: Mapping[str, Any] | None = None,
    classify: bool = False,
    n_trees: int = 60,
    seed: int = 0,
) -> TunedModel:
    """Choose the settings on inner folds, then fit on all rows.

    Parameters
    ----------
    learner
        One of :data:`LEARNERS`.
    prepared
        Predictors of the n rows and of the inner folds. Without folds the middle setting is
        taken.
    y
        Outcome (n), 0 and 1 if `classify`.
    settings
        Settings to take, instead of choosing them.
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
    inner_prediction = np.full(len(y), np.nan)
    if settings is None:
        grid = _grid(learner, classify, n_trees, prepared.x.shape[1])
        best = len(grid) // 2
        if prepared.inner:
            predicted = _searched(learner, prepared, y, grid, classify, n_trees, seed)
            best = int(np.argmin(np.nansum((y - predicted) ** 2, axis=1)))
            inner_prediction = predicted[best]
        settings = grid[best]
    own = _parameters(settings, y, classify)
    pipeline = make_pipeline(learner, classify=classify, n_trees=n_trees, seed=seed, **own)
    unit = _unit(learner, y, classify)
    estimator = pipeline[-1].fit(prepared.x, _target(y, classify) if unit == 1 else y / unit)
    if unit != 1:
        estimator.coef_, estimator.intercept_ = estimator.coef_ * unit, estimator.intercept_ * unit
    pipeline = type(pipeline)([*prepared.before.steps, ("estimate", estimator)])
    return TunedModel(pipeline, dict(settings), classify, inner_prediction)


def _searched(
    learner: str,
    prepared: Prepared,
    y: FloatArray,
    grid: Sequence[Mapping[str, Any]],
    classify: bool,
    n_trees: int,
    seed: int,
) -> FloatArray:
    """Predict every row by every setting (setting, n), in the fold that leaves it out."""
    n_search = max(20, n_trees // 3) if learner == "random_forest" else n_trees
    out = np.full((len(grid), len(y)), np.nan)
    estimator = make_pipeline(learner, classify=classify, n_trees=n_search, seed=seed)[-1]
    for train, test, x_train, x_test in prepared.inner:
        if classify and len(np.unique(y[train])) < 2:
            out[:, test] = y[train].mean()
            continue
        target = _target(y[train], classify)
        if learner == "gradient_boosting":
            stages = _staged(estimator.fit(x_train, target), x_test, classify)
            for k, candidate in enumerate(grid):
                out[k, test] = stages[candidate["n_estimators"] - 1]
            continue
        if learner == "elastic_net" and not classify:
            out[:, test] = _path(x_train, target, x_test, grid)
            continue
        for k, candidate in enumerate(grid):
            estimator.set_params(**_parameters(candidate, y[train], classify))
            out[k, test] = _predict(estimator.fit(x_train, target), x_test, classify)
    return out


def _path(
    x_train: FloatArray, y: FloatArray, x_test: FloatArray, grid: Sequence[Mapping[str, Any]]
) -> FloatArray:
    """Predictions of every penalty (setting, row), each started from a larger one's."""
    from sklearn.linear_model import enet_path

    out = np.full((len(grid), len(x_test)), np.nan)
    mean, unit = y.mean(), _unit("elastic_net", y, False)
    x_train = np.asfortranarray(x_train)  # of mean zero: the scaler was fitted on these rows
    for ratio in dict.fromkeys(one["l1_ratio"] for one in grid):
        at = [k for k, one in enumerate(grid) if one["l1_ratio"] == ratio]
        at.sort(key=lambda k: -grid[k]["alpha"])
        _, coefficients, _ = enet_path(
            x_train,
            (y - mean) / unit,
            l1_ratio=ratio,
            alphas=[grid[k]["alpha"] for k in at],
            max_iter=20_000,
            check_input=False,
        )
        out[at] = (x_test @ coefficients).T * unit + mean
    return out


def _grid(
    learner: str, classify: bool, n_trees: int, n_predictors: int
) -> tuple[dict[str, Any], ...]:
    if learner == "gradient_boosting":
        return tuple({"n_estimators": max(1, int(n_trees * part))} for part in _BOOSTING_STAGES)
    if (learner, classify) not in _GRIDS:
        raise ConfigError(f"Unknown learner '{learner}'. Choose from {', '.join(LEARNERS)}.")
    grid = _GRIDS[learner, classify]
    if learner == "random_forest":  # of few predictors, several fractions are the same number
        drawn = {max(1, int(one["max_features"] * n_predictors)): one for one in reversed(grid)}
        return tuple(reversed(drawn.values()))
    return grid


def _parameters(settings: Mapping[str, Any], y: FloatArray, classify: bool) -> dict[str, Any]:
    """Parameters of the estimator: that of a class takes one over the penalty of all rows."""
    out = dict(settings)
    if "alpha" in out and classify:
        out["C"] = 1 / (out.pop("alpha") * len(y))
    return out


def _unit(learner: str, y: FloatArray, classify: bool) -> float:
    """Tell what a target is divided by: its SD where a penalty of two norms depends on its unit."""
    spread = 1.0 if classify or learner != "elastic_net" else float(y.std())
    return spread if spread > 0 else 1.0


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
