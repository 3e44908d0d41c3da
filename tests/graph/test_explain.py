"""Attributions of nodes add up, stay in their region, and agree with occlusion."""

import numpy as np
import pytest
import xarray as xr

from scalebrain.errors import MissingVariableError
from scalebrain.graph.explain import explain, node_importance
from scalebrain.graph.model import BrainAgeModel, brain_age
from scalebrain.graph.train import Training
from tests.graph.conftest import cohort


@pytest.fixture(scope="module")
def case():
    """Model whose convolutions have learned something, and people that it has not seen."""
    model = BrainAgeModel.fit(
        cohort(80), training=Training(folds=2, epochs=25, patience=30, learning_rate=5e-3)
    )
    new = cohort(12, seed=7).assign_coords(subject=[f"new{i}" for i in range(12)])
    return model, new


def by_region(found, region):
    return found["node_attribution"].values[:, found["row_region"].values == region]


def test_explain__adds_up_to_the_age_less_that_of_the_mean_person(case):
    model, new = case
    found = explain(new, model)
    mean = new.isel(subject=[0]).copy(deep=True)
    ages = brain_age(new, model)["brain_age"]
    base = []
    for fold in model.folds:  # the mean person of each fold's own training subjects
        parts = [one.mean.reshape(-1, 4) for one in fold.imputer]
        rows = np.concatenate(parts) * fold.spread + fold.center
        mean["node_features"].values[0, model.graph.rows] = rows
        alone = [fold]
        base.append(brain_age(mean, replace_folds(model, alone))["brain_age"].values[0])
    base = np.mean(base, axis=0)
    for r, region in enumerate(model.graph.regions):
        total = by_region(found, region).sum(axis=1)
        expected = ages.values[:, r] - base[r]
        assert np.abs(total - expected).max() < 0.02 * np.abs(expected).max() + 0.05, region


def replace_folds(model, folds):
    from dataclasses import replace

    return replace(model, folds=tuple(folds))


def test_explain__stays_in_the_region(case):
    model, new = case
    before = explain(new, model)
    moved = new.copy(deep=True)
    outside = np.setdiff1d(np.arange(new.sizes["node"]), model.graph.members[2])
    moved["node_features"].values[:, outside] *= 1.3
    region = model.graph.regions[2]
    np.testing.assert_array_equal(
        by_region(explain(moved, model), region), by_region(before, region)
    )


def test_explain__agrees_with_occlusion(case):
    model, new = case
    found = explain(new, model)
    ages = brain_age(new, model)["brain_age"].values
    means = np.mean(
        [
            np.concatenate([o.mean.reshape(-1, 4) for o in f.imputer]) * f.spread + f.center
            for f in model.folds
        ],
        axis=0,
    )
    region = 0
    first, last = model.graph.bounds[region]
    effect = np.empty((12, last - first))
    for k, row in enumerate(range(first, last)):
        without = new.copy(deep=True)
        without["node_features"].values[:, model.graph.rows[row]] = means[row]
        effect[:, k] = ages[:, region] - brain_age(without, model)["brain_age"].values[:, region]
    ours = by_region(found, model.graph.regions[region])
    assert np.corrcoef(ours.ravel(), effect.ravel())[0, 1] > 0.95


def test_explain__missing_nodes_are_those_that_were_imputed(case):
    model, new = case
    holes = new.copy(deep=True)
    holes["node_features"].values[0, model.graph.members[0][:5]] = np.nan
    holes["node_features"].values[1, model.graph.members[0]] = np.nan
    found = explain(holes, model)
    assert np.isfinite(by_region(found, model.graph.regions[0])[0]).all()
    assert np.isnan(by_region(found, model.graph.regions[0])[1]).all()
    other = by_region(explain(new, model), model.graph.regions[4])
    np.testing.assert_array_equal(by_region(found, model.graph.regions[4])[1], other[1])


def test_explain__training_subjects_by_the_network_that_has_not_seen_them(case):
    model, _ = case
    known = cohort(80)
    found = explain(known, model)
    assert found["node_attribution"].dims == ("subject", "row")
    first = known.isel(subject=[0])
    fold = int(next(iter(model.fold_of.values())))
    alone = replace_folds(model, [model.folds[fold]])
    stranger = first.assign_coords(subject=["new"])
    expected = explain(stranger, alone)["node_attribution"].values[0]
    np.testing.assert_allclose(found["node_attribution"].values[0], expected, rtol=1e-5, atol=1e-6)
    xr.testing.assert_equal(found["row_region"], explain(first, model)["row_region"])


def test_explain__has_no_shares_where_there_is_no_age(case):
    model, new = case
    lesioned = np.zeros((12, new.sizes["node"]))
    lesioned[1, model.graph.members[4]] = 0.9
    given = new.assign(
        node_lesioned_fraction=(("subject", "node"), lesioned),
        scan_present=("subject", np.arange(12) != 3),
    )
    given["node_features"] = given["node_features"].assign_attrs(lesion_policy="exclude_region")
    found, ages = explain(given, model), brain_age(given, model)["brain_age"]
    for r, region in enumerate(model.graph.regions):
        gone = np.isnan(by_region(found, region))
        np.testing.assert_array_equal(gone.all(axis=1), np.isnan(ages.values[:, r]))
        np.testing.assert_array_equal(gone.any(axis=1), gone.all(axis=1))
    assert np.isnan(ages.values).sum() == 1 + len(model.graph.regions)


def test_node_importance__says_what_is_missing(case):
    model, new = case
    for name in ("node_features", "group"):
        with pytest.raises(MissingVariableError, match=name):
            node_importance(new.drop_vars(name), model)


def test_node_importance__a_missing_flag_is_no_yes(case):
    model, new = case
    flag = np.array([True] * 12, dtype=object)
    flag[:4] = np.nan
    found = node_importance(new.assign(included=("subject", flag)), model)
    assert found["node_importance"].attrs["n_subjects"] == 8
