import json
from dataclasses import replace

import numpy as np
import pytest

import scalebrain
from scalebrain import BrainAgeModel
from scalebrain.errors import DataWarning, ModelFileError, StatisticsError
from scalebrain.graph.build import build_graph
from scalebrain.graph.known import known_folds, person_keys, subject_keys
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


def named(ds, scans, people, dataset="abc"):
    """The same features under other ids, with scans, people and a dataset."""
    n = ds.sizes["subject"]
    return ds.assign_coords(
        subject=[f"{person}_{scan}" for person, scan in zip(people, scans, strict=True)],
        scan_hash=("subject", np.array(scans)),
        person=("subject", np.array(people)),
        dataset=("subject", np.full(n, dataset)),
    )


@pytest.fixture(scope="module")
def one_session(references):
    """A store with one scan of everyone, and a model of it."""
    people = [f"sub-{i:02d}" for i in range(80)]
    ds = named(references, [f"scan {i}" for i in range(80)], people)
    return ds, people, BrainAgeModel.fit(ds, training=Training(folds=4, epochs=0))


def test_known_folds__knows_a_person_by_another_scan_in_another_store(one_session):
    ds, people, model = one_session
    other = named(ds, [f"new {i}" for i in range(80)], people)
    np.testing.assert_array_equal(known_folds(other, model), known_folds(ds, model))
    assert model.predict(other)["out_of_fold"].all()
    np.testing.assert_array_equal(
        model.predict(other)["brain_age"].values, model.predict(ds)["brain_age"].values
    )
    strangers = named(ds, [f"new {i}" for i in range(80)], people, dataset="other")
    assert (known_folds(strangers, model) == -1).all()


def test_known_folds__a_row_keeps_its_fold_and_a_torn_person_is_told(one_session, caplog):
    ds, _, model = one_session
    fold = known_folds(ds, model)
    first, second = 0, int(np.flatnonzero(fold != fold[0])[0])
    few = ds.isel(subject=[first, second, 2])
    few = named(few, [f"scan {first}", f"scan {second}", "new"], ["sub-x", "sub-x", "sub-x"])
    found = known_folds(few, model)
    assert found[:2].tolist() == [fold[first], fold[second]]
    assert found[2] in found[:2]
    assert "1 people have scans in two folds" in caplog.text


def test_person_keys__are_those_of_ids_where_no_person_is_named(references):
    few = references.isel(subject=slice(0, 2))
    unnamed = few.assign_coords(person=("subject", np.array(["", "sub-0000"])))
    assert person_keys(few)[0] == person_keys(unnamed)[0] == person_keys(unnamed)[1]


def test_fit__people_are_linked_by_scans_that_do_not_train(references):
    own, other = np.arange(0, 20, 2), np.arange(1, 20, 2)
    people, scans = np.arange(80), np.arange(80)
    people[70:], scans[70:] = own, other  # each has the name of one and the scan of another
    ds = named(references, [f"scan {i}" for i in scans], [f"sub-{i:02d}" for i in people])
    group = np.where(np.arange(80) < 70, "reference", "stroke")
    ds = ds.assign_coords(group=("subject", group))
    model = BrainAgeModel.fit(ds, training=Training(folds=4, epochs=0))
    fold = model.folds_of(ds)
    np.testing.assert_array_equal(fold[own], fold[other])
    np.testing.assert_array_equal(fold[own], fold[70:])


def test_load__model_without_people_of_an_earlier_version(one_session, tmp_path):
    ds, _, model = one_session
    earlier = replace(model, fold_of_person={})
    earlier.save(tmp_path / "m")
    assert "fold_of_person" not in json.loads((tmp_path / "m" / "model.json").read_text())
    loaded = BrainAgeModel.load(tmp_path / "m")
    assert loaded.fingerprint == earlier.fingerprint
    np.testing.assert_array_equal(loaded.folds_of(ds), model.folds_of(ds))


def test_save__card_says_that_hashes_of_ids_are_kept(one_session, tmp_path):
    one_session[2].save(tmp_path / "m")
    assert "hashes of the scans and of the ids" in (tmp_path / "m" / "MODEL_CARD.md").read_text()


def test_known_folds__tells_of_people_known_by_name_alone(one_session, caplog):
    ds, people, model = one_session
    others = named(ds, [f"new {i}" for i in range(80)], people)
    known_folds(others, model)
    assert "80 people are taken for people of the training by the name of their dataset" in (
        caplog.text
    )
    assert "dataset ('abc') and" in caplog.text
    caplog.clear()
    known_folds(ds, model)
    mixed = [f"scan {i}" if i == 3 else f"new {i}" for i in range(80)]
    known_folds(named(ds, mixed, people), model)  # a known scan: it is that dataset
    assert "by the name" not in caplog.text


def test_subject_keys__a_missing_scan_or_person_is_nobody_elses(references):
    few = references.isel(subject=slice(0, 4))
    absent = np.array([np.nan, "a", None, np.nan], dtype=object)
    ds = few.assign_coords(scan_hash=("subject", absent), person=("subject", absent))
    assert len(set(subject_keys(ds))) == len(set(person_keys(ds))) == 4
    plain = few.assign_coords(scan_hash=("subject", ["", "a", "", ""]))
    assert subject_keys(ds) == subject_keys(plain)


def of_images(ds, size, *, modulated=None):
    """The same features, of voxels of some size and grey matter of some kind."""
    attrs = {"affine": np.diag([size, size, size, 1.0]).ravel().tolist()}
    return ds.assign_attrs(attrs | ({} if modulated is None else {"gm_modulated": modulated}))


def test_brain_age__other_voxels_are_told_and_other_grey_matter_is_refused(references, tmp_path):
    quick = Training(folds=2, epochs=0)
    ds = of_images(references, 3.0, modulated=False)
    model = BrainAgeModel.fit(ds, training=quick).save(tmp_path / "m")
    assert model.about["voxel_size"] == [3.0, 3.0, 3.0]
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "voxels of 3 mm; unmodulated grey matter" in card
    model = BrainAgeModel.load(tmp_path / "m")
    expected = model.predict(ds)["brain_age"].values
    with pytest.warns(DataWarning, match="voxels of 3 mm, the data have 2 mm"):
        told = model.predict(of_images(references, 2.0, modulated=False))
    np.testing.assert_array_equal(told["brain_age"], expected)
    model.predict(of_images(references, 3.01, modulated=False))
    model.predict(references)  # neither is known
    with pytest.raises(ModelFileError, match="unmodulated grey matter, that of the data is mod"):
        model.predict(of_images(references, 3.0, modulated=True))
    without = ds.sel(feature=["t1w_mean", "t1w_sd", "contrast"])
    of_t1w = BrainAgeModel.fit(without, training=quick)
    of_t1w.predict(without.assign_attrs(gm_modulated=True))


def test_brain_age__a_model_that_does_not_say_its_images_predicts_as_before(model, references):
    assert not {"voxel_size", "gm_modulated"} & set(model.about)
    model.predict(of_images(references, 2.0, modulated=True))


@pytest.mark.parametrize(
    "damage", [{"voxel_size": [3, 3]}, {"voxel_size": [3, 3, 0]}, {"gm_modulated": "no"}]
)
def test_load__refuses_images_that_are_none(model, tmp_path, damage):
    replace(model, about=model.about | damage).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="about"):
        BrainAgeModel.load(tmp_path / "m")


def test_fit__says_how_many_folds_are_more_than_ridge_regressions(references, tmp_path):
    linear = BrainAgeModel.fit(references, training=Training(epochs=0, folds=2))
    assert linear.predict(references)["brain_age"].attrs["model_convolved_folds"] == "0 of 2"
    linear.save(tmp_path / "m")
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "Convolutions kept in 0 of 2 folds" in card
    weights = linear.folds[0].weights
    learned = weights | {"mean_weight": weights["mean_weight"] + 1}
    assert replace(linear.folds[0], weights=learned).is_convolved
    replace(linear, about=linear.about | {"convolved_folds": 3}).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="about"):
        BrainAgeModel.load(tmp_path / "m")
