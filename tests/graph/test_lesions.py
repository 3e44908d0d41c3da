"""Lesions in the place of healthy tissue, and the same people under other policies."""

import numpy as np
import pytest

from scalebrain.atlas.space import SPACE, template_grid
from scalebrain.features.nodes import node_features
from scalebrain.graph import artifact as artifact_module
from scalebrain.graph.artifact import lesion_artifact
from scalebrain.graph.model import BrainAgeModel, brain_age, features_of
from scalebrain.graph.policies import ages_by_policy
from scalebrain.graph.train import Training
from scalebrain.ingestion.geometry import static_variables

N, N_STROKE = 24, 3


@pytest.fixture(scope="module")
def case():
    """Store whose last person has no grey matter, so that no feature is of it; and a model."""
    rng = np.random.default_rng(0)
    static = static_variables(template_grid(3.0))
    total, n_voxels = N + N_STROKE, static.sizes["voxel"]
    age = rng.uniform(45, 80, total)
    t1w = rng.normal(100, 10, (total, n_voxels)) - 0.3 * age[:, None]
    stroke = np.arange(total) >= N
    lesion = np.zeros((total, n_voxels), dtype=bool)
    front = (static["x"].values < 0) & (static["y"].values > 0)
    lesion[stroke] = front & (static["z"].values > 0)
    lesion[-1] = static["x"].values < 0
    ds = static.assign(
        t1w=(("subject", "voxel"), t1w.astype(np.float32)),
        gm=(("subject", "voxel"), rng.random((total, n_voxels), dtype=np.float32)),
        lesion_mask=(("subject", "voxel"), lesion),
        scan_present=("subject", np.ones(total, dtype=bool)),
        gm_present=("subject", np.arange(total) < total - 1),
        lesion_present=("subject", stroke),
    ).assign_coords(
        subject=[f"sub-{i:02d}" for i in range(total)],
        age=("subject", age),
        group=("subject", np.where(stroke, "stroke", "reference")),
    )
    ds = ds.assign_attrs(space=SPACE)
    ds = ds.assign(node_features(ds).data_vars).assign_coords(feature=node_features(ds)["feature"])
    return ds, BrainAgeModel.fit(ds, training=Training(folds=2, epochs=0))


def test_lesion_artifact__takes_the_features_that_the_store_has(case):
    ds, model = case
    assert ds["feature"].values.tolist() == ["t1w_mean", "t1w_sd", "contrast"]
    found = lesion_artifact(ds, model, n_pairs=3)
    without = lesion_artifact(ds.drop_vars(["gm", "gm_present"]), model, n_pairs=3)
    np.testing.assert_array_equal(found["pad_shift"], without["pad_shift"])
    assert (found["region_lesioned"] > 0.5).any()


def test_lesion_artifact__a_missing_flag_is_no_yes(case):
    ds, model = case
    flag = np.where(np.arange(N + N_STROKE) <= N, 1.0, np.nan)
    found = lesion_artifact(ds.assign(included=("subject", flag)), model, n_pairs=3)
    lesioned = found["region_lesioned"].values
    assert (lesioned == lesioned[0]).all()  # all of the only one


def test_lesion_artifact__lazy_features_in_blocks_move_nothing_untouched(case, monkeypatch):
    """The last bits of an age depend on how many people are predicted at a time."""
    ds, model = case
    blocks = []

    def recorded(given, model):
        blocks.append(given["node_features"].chunks)
        return brain_age(given, model)

    monkeypatch.setattr(artifact_module, "brain_age", recorded)
    one = (ds["node_label"] == model.graph.members[0][0]) & ~ds["white_reference"]
    ds = ds.assign(lesion_mask=one & ds["lesion_present"]).transpose("subject", ...)
    found = lesion_artifact(ds.chunk(subject=5), model, n_pairs=6)
    moved = found["pad_shift"].values[:, ~found["region_touched"].values]
    assert moved.size
    assert not moved.any()
    assert set(blocks) == {None}  # with a lesion and without, all at once


def test_ages_by_policy__leaves_no_mark_of_the_own_policy(case):
    ds, model = case
    strokes = features_of(ds.isel(subject=ds["group"].values == "stroke"), policy="exclude_region")
    own = strokes.assign(brain_age(strokes, model).data_vars)
    assert own["region_excluded"].any()
    found = ages_by_policy(own, model, policies=["as_is", "exclude_region"])
    assert "region_excluded" not in found["as_is"]
    assert np.isfinite(found["as_is"]["brain_age"]).all()
    np.testing.assert_array_equal(
        found["exclude_region"]["region_excluded"], own["region_excluded"]
    )
