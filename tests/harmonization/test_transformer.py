"""ComBat inside scikit-learn: clones, pipelines, folds, and nothing leaks."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline

from scalebrain.errors import DataWarning, StatisticsError
from scalebrain.harmonization.transformer import ComBat


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n, code = 160, np.repeat(np.arange(4), 40)
    X = pd.DataFrame(
        rng.normal(size=(n, 5)) + rng.normal(0, 3, (4, 5))[code],
        columns=["SMN_L", "SMN_R", "VIS_L", "VIS_R", "LIM_L"],
    )
    X["cohort"] = np.array(list("abcd"))[code]
    X["age"] = rng.uniform(45, 80, n)
    X["sex"] = rng.choice(["F", "M"], n)
    y = X["SMN_L"] - X.groupby("cohort")["SMN_L"].transform("mean") + rng.normal(0, 0.3, n)
    order = rng.permutation(n)
    return X.iloc[order].reset_index(drop=True), y.to_numpy()[order]


def test_combat__fit_transform_equals_fit_then_transform(table):
    X, _ = table
    for options in ({}, {"smooth": ["age"]}, {"reference_batch": "b"}):
        model = ComBat(covariates=["sex"], keep=["age"], **options)
        assert np.array_equal(model.fit_transform(X), model.fit(X).transform(X))


def test_combat__columns_and_parameters(table):
    X, _ = table
    model = clone(ComBat(covariates=["age", "sex"], keep=["age"])).set_params(unseen="adapt")
    assert model.get_params()["covariates"] == ["age", "sex"]
    with pytest.raises(NotFittedError):
        model.transform(X)
    out = model.set_output(transform="pandas").fit_transform(X)
    assert list(out.columns) == ["SMN_L", "SMN_R", "VIS_L", "VIS_R", "LIM_L", "age"]
    assert (out["age"] == X["age"]).all()
    assert (out.index == X.index).all()
    turned = X[X.columns[::-1]]
    pd.testing.assert_frame_equal(model.transform(turned), out)


def test_combat__a_pipeline_learns_from_the_training_rows_alone(table):
    X, y = table
    pipeline = make_pipeline(ComBat(covariates=["age", "sex"]), Ridge())
    train, test = next(KFold(4).split(X))
    pipeline.fit(X.iloc[train], y[train])
    first = pipeline.predict(X.iloc[test])
    spoiled = X.copy()
    spoiled.loc[test, ["SMN_L", "VIS_R"]] = 1e6
    other = clone(pipeline).fit(spoiled.iloc[train], y[train])
    assert np.array_equal(other.predict(X.iloc[test]), first)
    # a row is transformed alike alone and among others
    one = [pipeline.predict(X.iloc[[k]])[0] for k in test]
    np.testing.assert_allclose(one, first, rtol=1e-12)
    by_hand = np.empty(len(y))
    for train, test in KFold(4).split(X):
        step = ComBat(covariates=["age", "sex"]).fit(X.iloc[train])
        ridge = Ridge().fit(step.transform(X.iloc[train]), y[train])
        by_hand[test] = ridge.predict(step.transform(X.iloc[test]))
    np.testing.assert_allclose(cross_val_predict(pipeline, X, y, cv=KFold(4)), by_hand, rtol=1e-12)


def test_combat__helps_a_model_across_sites_and_finds_nothing_in_noise(table):
    X, y = table
    raw = cross_val_score(LinearRegression(), X.filter(regex="_[LR]$"), y, cv=KFold(5)).mean()
    pipeline = make_pipeline(ComBat(covariates=["age", "sex"]), LinearRegression())
    assert cross_val_score(pipeline, X, y, cv=KFold(5)).mean() > max(raw, 0.7)
    rng = np.random.default_rng(5)
    nothing = [
        cross_val_score(pipeline, X, rng.normal(size=len(y)), cv=KFold(5)).mean() for _ in range(20)
    ]
    assert np.mean(nothing) < 0


def test_combat__sites_left_out_and_a_search(table):
    X, y = table
    folds = GroupKFold(4)
    pipeline = make_pipeline(ComBat(covariates=["age", "sex"]), Ridge())
    with pytest.raises(StatisticsError, match="was not in the fit"):
        cross_val_score(pipeline, X, y, cv=folds, groups=X["cohort"], error_score="raise")
    pipeline.set_params(combat__unseen="adapt")
    assert cross_val_score(pipeline, X, y, cv=folds, groups=X["cohort"]).mean() > 0.7
    search = GridSearchCV(pipeline, {"combat__empirical_bayes": [True, False]}, cv=KFold(3))
    assert search.fit(X, y).best_score_ > 0.7
    model = ComBat(covariates=["age", "sex"], unseen="unchanged").fit(X[X["cohort"] != "d"])
    with pytest.warns(DataWarning, match="40 rows of 'cohort' d were not harmonized"):
        out = model.transform(X)
    left = (X["cohort"] == "d").to_numpy()
    assert np.array_equal(out[left], X.loc[left].filter(regex="_[LR]$").to_numpy())


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda X: X.to_numpy(), "X must be a DataFrame"),
        ({}, lambda X: X.assign(cohort=None), "missing values of 'cohort' in 160 rows"),
        ({"batch": "site"}, lambda X: X, "X lacks the columns 'site'"),
        ({"covariates": []}, lambda X: X, "'age', 'sex'|'sex' holds no numbers"),
        ({"covariates": "age"}, lambda X: X, "is text; pass a list"),
        (
            {},
            lambda X: X.assign(age=X["age"].where(X.index > 2)),
            r"'age' in 3 rows \(0, 1, 2\)",
        ),
        ({}, lambda X: X[["cohort", "age", "sex"]], "nothing to harmonize"),
        ({}, lambda X: X.replace({"VIS_R": {X["VIS_R"][0]: np.inf}}), "'VIS_R' has infinite"),
        ({}, lambda X: X.rename(columns={"VIS_R": "VIS_L"}), "columns twice: VIS_L"),
    ],
)
def test_combat__refuses_a_bad_table(table, options, change, message):
    X, _ = table
    with pytest.raises(StatisticsError, match=message):
        ComBat(**{"covariates": ["age", "sex"], **options}).fit(change(X))


def test_combat__unseen_level_and_labels_of_other_types(table):
    X, _ = table
    X["cohort"] = X["cohort"].map({"a": 1, "b": 2, "c": 3, "d": 4})
    model = ComBat(covariates=["age", "sex"], reference_batch=2).fit(X)
    as_float = X.assign(cohort=X["cohort"].astype(float), sex=X["sex"].astype("category"))
    assert np.array_equal(model.transform(X), model.transform(as_float))
    with pytest.raises(StatisticsError, match="Covariate 'sex': 'other' was not among"):
        model.transform(X.assign(sex="other"))


def test_combat__names_of_columns_are_text():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)))
    X["cohort"] = np.repeat(["a", "b"], 10)
    with pytest.raises(StatisticsError, match="named by no text, as 0"):
        ComBat().fit(X)


def test_combat__categoricals_of_integers_are_levels(table):
    X, _ = table
    hand = pd.Series(np.random.default_rng(1).integers(1, 4, len(X)))
    X = X.drop(columns=["age", "sex"])
    made = {
        name: ComBat(covariates=["hand"]).fit(X.assign(hand=own))
        for name, own in {"text": hand.astype(str), "levels": hand.astype("category")}.items()
    }
    assert made["levels"].model_.encoding.names == ["hand[2]", "hand[3]"]
    np.testing.assert_array_equal(
        made["levels"].transform(X.assign(hand=hand.astype("category"))),
        made["text"].transform(X.assign(hand=hand.astype(str))),
    )
    with pytest.raises(StatisticsError, match="'hand' must be numbers"):
        ComBat(smooth=["hand"]).fit(X.assign(hand=hand.astype("category")))
