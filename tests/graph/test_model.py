import json

import numpy as np
import pytest

import scalebrain
from scalebrain import BrainAgeModel
from scalebrain.errors import ModelFileError, StatisticsError
from scalebrain.graph.build import build_graph
from scalebrain.graph.train import Training
from tests.graph.conftest import cohort


def test_fit__beats_predicting_the_mean_in_every_region(model):
    assert len(model.metrics) == 18
    for scores in model.metrics.values():
        assert scores["mae"] < 0.75 * scores["mae_mean"]


def test_fit__same_seed_same_weights(references):
    a, b = (BrainAgeModel.fit(references, training=Training(epochs=1, folds=2)) for _ in range(2))
    assert a.fingerprint == b.fingerprint


def test_fit__too_few_references_is_an_error(references):
    with pytest.raises(StatisticsError, match="too few"):
        BrainAgeModel.fit(references.isel(subject=slice(0, 10)))


@pytest.mark.parametrize("layer", ["cheb", "gcn", "spectral"])
def test_network__shared_operator_equals_torch_geometric_and_regions_are_closed(references, layer):
    import torch
    from torch_geometric.nn import ChebConv, GCNConv

    from scalebrain.graph.layers import RegionalNetwork

    graph = build_graph(references)
    torch.manual_seed(0)
    network = RegionalNetwork(graph, 4, layer=layer).eval()
    for parameter in (network.mean_weight, network.node_weight, network.skip_weight):
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, len(graph.rows), 4)
    first = network.convolutions[0]
    plain = (
        GCNConv(4, 16) if layer == "gcn" else ChebConv(4, first.out_channels, first_order(layer))
    )
    plain.load_state_dict(first.state_dict())
    edges = torch.from_numpy(graph.row_edges)
    shared = first(x.transpose(0, 1), network._constants["operator"])
    for b in range(3):
        torch.testing.assert_close(shared[:, b], plain(x[b], edges), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        ages = network(x)
        for r in (0, 7, 17):
            other = x.clone()
            outside = torch.from_numpy(graph.region_of_row != r)
            other[:, outside] += 10 * torch.randn(3, int(outside.sum()), 4)
            assert torch.equal(network(other)[:, r], ages[:, r])


def first_order(layer):
    return 2 if layer == "spectral" else 3


def test_predict__training_subjects_are_out_of_fold_and_new_ones_are_not(model, references):
    known = model.predict(references)
    assert known["out_of_fold"].all()
    assert set(model.folds_of(references)) == set(range(len(model.folds)))
    mae = np.abs(known["brain_pad"]).mean("subject")
    np.testing.assert_allclose(mae, [m["mae"] for m in model.metrics.values()], rtol=1e-9)
    others = cohort(10, seed=5).assign_coords(subject=[f"new{i}" for i in range(10)])
    assert (model.folds_of(others) == -1).all()
    new = model.predict(others)
    assert not new["out_of_fold"].any()
    assert np.isfinite(new["brain_age"]).all()


def test_predict__intervals_and_correction(model, references):
    out = model.predict(references)
    age = references["age"]
    inside = (out.brain_age_low <= age) & (age <= out.brain_age_high)
    assert 0.88 <= float(inside.mean()) <= 0.97
    for region in out.region.values:
        slope = np.polyfit(age, out.brain_pad_corrected.sel(region=region), 1)[0]
        assert abs(slope) < 0.1
    np.testing.assert_allclose(out.brain_pad, out.brain_age - age)


def test_predict__missing_nodes_are_imputed_and_a_lost_region_is_missing(model, references):
    new = references.isel(subject=slice(0, 6)).assign_coords(subject=list("abcdef")).copy(deep=True)
    expected = model.predict(new)
    graph = model.graph
    third = graph.members[0][: len(graph.members[0]) // 3]
    new["node_features"].values[0, third] = np.nan
    new["node_features"].values[1, graph.members[1]] = np.nan
    new["node_features"].values[2] = np.nan
    found = model.predict(new)
    assert found.imputed_fraction[0, 0].item() == pytest.approx(len(third) / len(graph.members[0]))
    assert abs(found.brain_age[0, 0] - expected.brain_age[0, 0]) < 5
    assert np.isnan(found.brain_age[1, 1])
    assert np.isfinite(found.brain_age[1, 0])
    assert np.isnan(found.brain_age[2]).all()
    assert np.isnan(found.brain_pad_corrected[2]).all()


def test_predict__same_over_dask_blocks(model, references, tmp_path):
    saved = model.save(tmp_path / "model")
    whole = model.predict(references)
    lazy = scalebrain.brain_age(references.chunk(subject=7), saved)
    assert lazy["brain_age"].chunks is not None
    for name in ("brain_age", "brain_pad_corrected", "imputed_fraction"):
        np.testing.assert_allclose(lazy[name].values, whole[name].values, rtol=1e-5, atol=1e-5)


def test_load__predicts_bit_identically_and_card_says_simulated(model, references, tmp_path):
    model.save(tmp_path / "m")
    loaded = BrainAgeModel.load(tmp_path / "m")
    a, b = model.predict(references), loaded.predict(references)
    np.testing.assert_array_equal(a.brain_age, b.brain_age)
    assert "simulated people" in (tmp_path / "m" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("kind", ["missing", "truncated", "json", "other", "format"])
def test_load__damaged_directory_is_one_error(model, tmp_path, kind):
    model.save(tmp_path / "m")
    weights, description = tmp_path / "m" / "weights.safetensors", tmp_path / "m" / "model.json"
    if kind == "missing":
        description.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "json":
        description.write_text("{")
    elif kind == "other":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 255
        weights.write_bytes(bytes(content))
    else:
        content = json.loads(description.read_text())
        description.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ModelFileError):
        BrainAgeModel.load(tmp_path / "m")


def test_predict__wrong_graph_features_or_space_is_refused(model, references):
    with pytest.raises(ModelFileError, match="lack contrast"):
        model.predict(references.sel(feature=["gm_mean", "t1w_mean", "t1w_sd"]))
    with pytest.raises(ModelFileError, match="another graph"):
        model.predict(references.isel(edge=slice(0, -1)))
    with pytest.raises(ModelFileError, match="is for"):
        model.predict(references.assign_attrs(space="elsewhere"))
