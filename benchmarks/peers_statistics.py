"""Mixed models, the path model and the prediction of motor outcome, as plain scripts do them.

statsmodels, semopy, scikit-learn, shap and pandas; the tables that go in are the same.
"""

import itertools
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import semopy
import shap
import statsmodels.formula.api as smf
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import ElasticNet, LogisticRegression
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from statsmodels.stats.multitest import multipletests

OPTIMIZERS = ("bfgs", "lbfgs", "cg", "powell")
SEM = "motor ~ cst + ipsi\ncontra ~ motor + cst + ipsi\nipsi ~ cst"
RIVALS = (
    "motor ~ contra + cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst",
    "motor ~ cst + ipsi\ncontra ~ cst + ipsi\nipsi ~ cst\nmotor ~~ 0*contra",
)
_METRICS = ("r2", "mae", "r", "auc", "balanced_accuracy", "brier")


@dataclass
class Mixed:
    """Estimates of one formula."""

    estimate: pd.DataFrame
    log_likelihood: pd.Series
    not_converged: int = 0
    not_at_first: int = 0
    p: pd.DataFrame = field(default_factory=pd.DataFrame)
    q: pd.DataFrame = field(default_factory=pd.DataFrame)


def mixed_models(tables: dict[str, pd.DataFrame], formula: str) -> Mixed:
    """Fit a formula with a random intercept of the cohort to the table of every region.

    Optimizers are tried one after the other until one converges, and the fit of the highest
    likelihood is kept.
    """
    rows, p, likelihood, failed, later = {}, {}, {}, 0, 0
    for region, table in tables.items():
        best: Any = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = smf.mixedlm(formula, table, groups=table["cohort"])
            for k, method in enumerate(OPTIMIZERS):
                try:
                    fit = model.fit(reml=True, method=[method])
                except np.linalg.LinAlgError:
                    continue
                if not np.isfinite(fit.llf):  # statsmodels calls some of these converged
                    continue
                if best is None or fit.llf > best.llf:
                    best = fit
                if fit.converged:
                    later += k > 0
                    break
            else:
                failed += 1
        rows[region], p[region], likelihood[region] = best.fe_params, best.pvalues, best.llf
    estimate = pd.DataFrame(rows).T
    values = pd.DataFrame(p).T[estimate.columns]
    q = values.apply(lambda column: multipletests(column, method="fdr_bh")[1])
    return Mixed(estimate, pd.Series(likelihood), failed, later, values, q)


def path_model(frame: pd.DataFrame, codes: np.ndarray, n_boot: int, seed: int) -> dict[str, Any]:
    """Fit the path model and its rivals by semopy, and `n_boot` bootstrap samples of cohorts."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = _semopy(SEM, frame)
        fits = [semopy.Model(text) for text in RIVALS]
        for one in fits:
            one.fit(frame)
            semopy.calc_stats(one)
        once = time.perf_counter() - started
        n = int(codes.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
        members = [np.flatnonzero(codes == g) for g in range(n)]
        samples = []
        for weights in drawn:
            rows = np.concatenate([np.tile(members[g], weights[g]) for g in range(n)])
            sample = frame.iloc[rows]
            if np.linalg.matrix_rank(sample.corr().fillna(0)) == sample.shape[1]:
                samples.append(_semopy(SEM, sample, stats=False))
    table = pd.DataFrame(samples)
    return {
        "estimate": estimate,
        "samples": table,
        "indirect": {" -> ".join(c): float(_product(estimate, c)) for c in chains(estimate)},
        "once_s": once,
        "boot_s": time.perf_counter() - started - once,
    }


def _semopy(text: str, frame: pd.DataFrame, *, stats: bool = True) -> dict[str, float]:
    """Estimates of the paths of a model."""
    model = semopy.Model(text)
    model.fit(frame)
    if stats:
        semopy.calc_stats(model)
        found = model.inspect(std_est=True)
    else:
        found = model.inspect(se_robust=False)
    paths = found[found["op"] == "~"]
    names = paths["lval"] + " ~ " + paths["rval"]
    return dict(zip(names, paths["Estimate"].astype(float), strict=True))


def chains(estimate: dict[str, float]) -> list[tuple[str, ...]]:
    """Paths of two and more arrows."""
    arrows = [tuple(name.split(" ~ ")[::-1]) for name in estimate]
    found, longer = [], list(arrows)
    while longer:
        longer = [(*c, b) for c in longer for a, b in arrows if c[-1] == a]
        found += longer
    return found


def _product(estimate: dict[str, float], chain: tuple[str, ...]) -> float:
    """Product of the estimates along a chain."""
    return float(np.prod([estimate[f"{b} ~ {a}"] for a, b in itertools.pairwise(chain)]))


@dataclass
class MotorTables:
    """What goes into the prediction of motor outcome."""

    x: pd.DataFrame
    y: np.ndarray
    severe: np.ndarray
    cohort: np.ndarray
    groups: dict[str, list[str]]
    inner: list[Any]  # folds of whole cohorts within every training set


LEARNERS = ("elastic_net", "random_forest", "gradient_boosting")
_RATIOS = (0.2, 0.8)
_FRACTIONS = [{"max_features": part} for part in (0.15, 0.33, 0.8)]


def pipeline(learner: str, classify: bool, n_trees: int, seed: int) -> Pipeline:
    """Impute, cut to the range of training, scale and estimate."""
    estimator: Any
    if learner == "elastic_net":
        estimator = ElasticNet(max_iter=20_000)
        if classify:
            estimator = LogisticRegression(
                solver="saga", l1_ratio=0.5, tol=1e-3, max_iter=20_000, random_state=seed
            )
    elif learner == "random_forest":
        make = RandomForestClassifier if classify else RandomForestRegressor
        estimator = make(n_estimators=n_trees, min_samples_leaf=3, random_state=seed)
    else:
        make = GradientBoostingClassifier if classify else GradientBoostingRegressor
        estimator = make(
            n_estimators=n_trees, learning_rate=0.08, max_depth=2, subsample=0.8, random_state=seed
        )
    return Pipeline(
        [
            ("impute", SimpleImputer(strategy="median", keep_empty_features=True)),
            ("limit", MinMaxScaler(clip=True)),
            ("scale", StandardScaler()),
            ("estimate", estimator),
        ]
    )


def candidates(learner: str, classify: bool, n_trees: int, p: int) -> list[dict[str, Any]]:
    """Settings to choose from; the penalty is of a target divided by its SD."""
    if learner == "elastic_net":
        alphas = (0.1, 0.03, 0.01) if classify else (0.8, 0.3, 0.1, 0.04)
        return [{"alpha": a, "l1_ratio": r} for a in alphas for r in _RATIOS]
    if learner == "random_forest":
        drawn = {max(1, int(one["max_features"] * p)): one for one in reversed(_FRACTIONS)}
        return list(reversed(drawn.values()))
    return [{"n_estimators": max(1, int(n_trees * part))} for part in (0.2, 0.5, 1.0)]


def fitted(model: Pipeline, x: np.ndarray, y: np.ndarray, settings: dict[str, Any]) -> Pipeline:
    """Fit a copy of a pipeline with settings."""
    model = clone(model)
    classify = hasattr(model[-1], "predict_proba")
    own = dict(settings)
    unit = 1.0
    if "alpha" in own and classify:
        own["C"] = 1 / (own.pop("alpha") * len(y))
    elif "alpha" in own:
        unit = float(y.std()) or 1.0
    model.set_params(**{f"estimate__{k}": v for k, v in own.items()})
    model.fit(x, y.astype(int) if classify else y / unit)
    if unit != 1:
        model[-1].coef_, model[-1].intercept_ = model[-1].coef_ * unit, model[-1].intercept_ * unit
    return model


def predicted(model: Pipeline, x: np.ndarray) -> np.ndarray:
    """Values, or probabilities of the second class."""
    if hasattr(model[-1], "predict_proba"):
        return model.predict_proba(x)[:, 1]
    return model.predict(x)


def tuned(
    learner: str, x: np.ndarray, y: np.ndarray, folds: Any, classify: bool, n_trees: int, seed: int
) -> tuple[Pipeline, dict[str, Any]]:
    """Choose the settings by the squared error over inner folds, and fit on all rows."""
    grid = candidates(learner, classify, n_trees, x.shape[1])
    n_search = max(20, n_trees // 3) if learner == "random_forest" else n_trees
    search = pipeline(learner, classify, n_search, seed)
    errors = np.zeros(len(grid))
    for train, test in folds:
        for k, settings in enumerate(grid):
            if classify and len(np.unique(y[train])) < 2:
                found = np.full(len(test), y[train].mean())
            else:
                found = predicted(fitted(search, x[train], y[train], settings), x[test])
            errors[k] += ((y[test] - found) ** 2).sum()
    best = grid[int(errors.argmin())] if folds else grid[len(grid) // 2]
    return fitted(pipeline(learner, classify, n_trees, seed), x, y, best), best


def _one_fold(
    given: MotorTables, learner: str, group: str, k: int, n_trees: int, seed: int
) -> dict[str, Any]:
    """Predict one cohort by one learner from one group of predictors."""
    x = given.x[given.groups[group]].to_numpy(dtype=float)
    train, test = _outer(given)[k]
    model, settings = tuned(learner, x[train], given.y[train], given.inner[k], False, n_trees, seed)
    out = {"prediction": predicted(model, x[test]), "settings": settings}
    severe = given.severe[train]
    if len(np.unique(severe)) > 1:
        classifier, _ = tuned(learner, x[train], severe, given.inner[k], True, n_trees, seed)
        out["probability"] = predicted(classifier, x[test])
    if group == list(given.groups)[-1] and len(test) > 1:
        out["importance"] = permutation_importance(
            model, x[test], given.y[test], n_repeats=5, random_state=seed
        ).importances_mean
        before = model[:-1]
        if learner == "elastic_net":
            explainer = shap.LinearExplainer(model[-1], before.transform(x[train]))
        else:
            explainer = shap.TreeExplainer(model[-1])
        out["shap"] = explainer.shap_values(before.transform(x[test]))
    return out


def _permuted_fold(
    given: MotorTables,
    learner: str,
    k: int,
    y: np.ndarray,
    settings: dict[str, Any] | None,
    n_trees: int,
    seed: int,
) -> np.ndarray:
    """Predict one cohort from a permuted target; without settings they are searched anew."""
    x = given.x[given.groups[list(given.groups)[-1]]].to_numpy(dtype=float)
    train, test = _outer(given)[k]
    if settings is None:
        model, _ = tuned(learner, x[train], y[train], given.inner[k], False, n_trees, seed)
    else:
        model = fitted(pipeline(learner, False, n_trees, seed), x[train], y[train], settings)
    return predicted(model, x[test])


def _outer(given: MotorTables) -> list[Any]:
    """Every cohort held out once."""
    return list(LeaveOneGroupOut().split(given.x, given.y, given.cohort))


def motor(
    given: MotorTables, *, n_permutations: int, n_boot: int, n_trees: int, seed: int, jobs: int
) -> dict[str, Any]:
    """Scores of every learner and group of predictors, their bootstrap, and permutations."""
    folds = _outer(given)
    jobs_of = [
        (learner, group, k)
        for learner in LEARNERS
        for group in given.groups
        for k in range(len(folds))
    ]
    timings = {}
    start = time.perf_counter()
    with Parallel(n_jobs=jobs) as pool:
        done = pool(delayed(_one_fold)(given, *one, n_trees, seed) for one in jobs_of)
        found = dict(zip(jobs_of, done, strict=True))
        timings["fits_s"] = time.perf_counter() - start
        start = time.perf_counter()
        rng = np.random.default_rng([seed, 2])
        permuted = np.tile(given.y, (n_permutations, 1))
        for one in permuted:
            for cohort in np.unique(given.cohort):
                rows = np.flatnonzero(given.cohort == cohort)
                one[rows] = rng.permutation(one[rows])
        last = list(given.groups)[-1]
        again = [
            (
                learner,
                k,
                y,
                None if learner == "elastic_net" else found[learner, last, k]["settings"],
            )
            for learner in LEARNERS
            for y in permuted
            for k in range(len(folds))
        ]
        values = iter(pool(delayed(_permuted_fold)(given, *one, n_trees, seed) for one in again))
    null = np.full((len(LEARNERS), n_permutations), np.nan)
    for i, j in itertools.product(range(len(LEARNERS)), range(n_permutations)):
        found_y = np.empty_like(given.y)
        for _, test in folds:
            found_y[test] = next(values)
        null[i, j] = (
            1 - ((permuted[j] - found_y) ** 2).sum() / ((given.y - given.y.mean()) ** 2).sum()
        )
    timings["permutations_s"] = time.perf_counter() - start
    scores, predictions = {}, {}
    for learner, group in itertools.product(LEARNERS, given.groups):
        prediction, probability = (np.full(len(given.y), np.nan) for _ in range(2))
        for k, (_, test) in enumerate(folds):
            prediction[test] = found[learner, group, k]["prediction"]
            probability[test] = found[learner, group, k].get("probability", np.nan)
        scores[learner, group] = _scores(given.y, given.severe, prediction, probability)
        predictions[learner, group] = (prediction, probability)
    start = time.perf_counter()
    spread = _bootstrap(given, predictions, n_boot, seed)
    timings["bootstrap_s"] = time.perf_counter() - start
    return {"scores": scores, "null": null, "bootstrap": spread, **timings}


def _scores(
    y: np.ndarray, severe: np.ndarray, prediction: np.ndarray, probability: np.ndarray
) -> dict[str, float]:
    """Six scores of held-out predictions."""
    known = np.isfinite(probability)
    both = len(np.unique(severe[known])) > 1
    called = probability[known] >= 0.5
    values = (
        r2_score(y, prediction),
        mean_absolute_error(y, prediction),
        np.corrcoef(y, prediction)[0, 1],
        roc_auc_score(severe[known], probability[known]) if both else np.nan,
        balanced_accuracy_score(severe[known], called) if both else np.nan,
        brier_score_loss(severe[known], probability[known]) if known.any() else np.nan,
    )
    return dict(zip(_METRICS, map(float, values), strict=True))


def _bootstrap(
    given: MotorTables, predictions: dict[Any, Any], n_boot: int, seed: int
) -> dict[Any, pd.DataFrame]:
    """Scores of cohorts drawn with replacement."""
    names, codes = np.unique(given.cohort, return_inverse=True)
    members = [np.flatnonzero(codes == c) for c in range(len(names))]
    n = len(names)
    rng = np.random.default_rng([seed, 1])
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_boot)
    out = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, (prediction, probability) in predictions.items():
            rows = []
            for weights in drawn:
                at = np.concatenate([np.tile(members[c], weights[c]) for c in range(n)])
                rows.append(_scores(given.y[at], given.severe[at], prediction[at], probability[at]))
            out[key] = pd.DataFrame(rows)
    return out
