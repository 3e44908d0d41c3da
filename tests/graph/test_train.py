"""Training: moments, streaming and checkpoints change nothing that is learned."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import Ridge

from scalebrain import BrainAgeModel
from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import ConfigError, StatisticsError
from scalebrain.graph import references as references_module
from scalebrain.graph import train as train_module
from scalebrain.graph.build import build_graph
from scalebrain.graph.checkpoint import Checkpoint, training_key
from scalebrain.graph.folds import assign_folds, linked_cohorts, stopping_split
from scalebrain.graph.impute import impute
from scalebrain.graph.known import subject_keys
from scalebrain.graph.linear import fit_linear, fit_scales
from scalebrain.graph.moments import fit_ridge, region_moments, spectrum
from scalebrain.graph.references import References
from scalebrain.graph.train import Training, balanced_weights, train_fold


@pytest.fixture(scope="module")
def graph(references):
    return build_graph(references)


def data_of(ds, graph, chunk=None, weight=None):
    features = ds["node_features"] if chunk is None else ds["node_features"].chunk(subject=chunk)
    return References.of(features, graph.rows, ds["age"].values, weight)


@pytest.fixture
def streamed(references, graph, monkeypatch):
    """The same people, never more than eleven of them in memory."""
    monkeypatch.setattr(references_module, "_BUFFER_BYTES", 11 * len(graph.rows) * 4 * 4)
    return data_of(references, graph, chunk=7)


def test_references__are_read_in_blocks(references, graph, streamed):
    assert streamed.features.chunks
    whole = references["node_features"].values[:, graph.rows].astype(np.float32)
    who = np.flatnonzero(np.arange(80) % 3 != 1)
    seen = []
    for some, x in streamed.blocks(who):
        np.testing.assert_array_equal(x, whole[some])
        seen.append(some)
    np.testing.assert_array_equal(np.concatenate(seen), who)
    seen = []
    for some, x in streamed.blocks(who, np.random.default_rng(0)):
        assert len(some) <= 11
        np.testing.assert_array_equal(x, whole[some])
        seen.append(some)
    shuffled = np.concatenate(seen)
    assert not np.array_equal(shuffled, who)
    np.testing.assert_array_equal(np.sort(shuffled), who)
    np.testing.assert_array_equal(streamed.read(who[::-1]), whole[who])


def test_fit_linear__does_not_depend_on_blocks(references, graph, streamed):
    who = np.arange(3, 75)
    whole = data_of(references, graph)
    scales = fit_scales(whole, who)
    x = references["node_features"].values[who][:, graph.rows]
    np.testing.assert_allclose(scales.center, x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(scales.spread, x.std((0, 1)), rtol=1e-5)
    one, other = fit_linear(whole, who, graph, scales), fit_linear(streamed, who, graph, scales)
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-7)
    np.testing.assert_allclose(other.intercepts, one.intercepts, atol=1e-7)
    for a, b in zip(one.imputer, other.imputer, strict=True):
        np.testing.assert_allclose(b.factors @ b.factors.T, a.factors @ a.factors.T, atol=1e-7)
        assert b.noise == pytest.approx(a.noise, rel=1e-6)


@pytest.mark.parametrize("n", [40, 400])
def test_fit_ridge__is_ridge_with_the_largest_penalty_within_one_standard_error(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 15, 2)) * rng.uniform(0.5, 2, (15, 2))
    weight = rng.uniform(0.5, 2, n)
    y = x[:, :3].sum((1, 2)) + rng.normal(0, 3, n)
    mean = np.average(x, axis=0, weights=weight)
    moments = region_moments(
        [(x[:7], y[:7], weight[:7]), (x[7:], y[7:], weight[7:])],
        mean, np.average(y, weights=weight), [(0, 15)],
    )  # fmt: skip
    found = fit_ridge(spectrum(moments[0]))
    flat = x.reshape(n, -1)
    expected = Ridge(found.penalty).fit(flat, y, sample_weight=weight)
    np.testing.assert_allclose(found.weights, expected.coef_, rtol=1e-8)
    root = np.sqrt(weight)[:, None]
    own = (flat - mean.ravel()) * root
    target = (y - np.average(y, weights=weight)) * root[:, 0]
    score = {}
    for penalty in np.logspace(0, 6, 25):
        hat = own @ np.linalg.solve(own.T @ own + penalty * np.eye(30), own.T)
        score[penalty] = ((target - hat @ target) ** 2).sum() / (n - 1 - np.trace(hat)) ** 2
    allowed = min(score.values()) * (1 + np.sqrt(2 / n))
    assert found.penalty == pytest.approx(max(p for p in score if score[p] <= allowed))


def test_train_fold__learns_alike_from_blocks(references, graph, streamed):
    quick = Training(epochs=2)
    who = np.arange(70)
    whole = train_fold(data_of(references, graph), who, graph, quick, number=0)
    other = train_fold(streamed, who, graph, quick, number=0)
    # the first epoch scores the linear path alone, which is the same
    np.testing.assert_allclose(other.curve[0], whole.curve[0], rtol=1e-5)
    assert abs(other.curve[:, 1].min() - whole.curve[:, 1].min()) < 0.3


def test_train_fold__equal_weights_are_none(references, graph):
    quick, who = Training(epochs=1), np.arange(60)
    one = train_fold(data_of(references, graph), who, graph, quick, number=0)
    threes = data_of(references, graph, weight=np.full(80, 3.0))
    other = train_fold(threes, who, graph, quick, number=0)
    for name, values in one.weights.items():
        np.testing.assert_allclose(other.weights[name], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"folds": 1}, {"folds": 2.0}, {"patience": 0}, {"epochs": -1}, {"batch": 0},
        {"channels": 0}, {"seed": -1}, {"seed": True}, {"learning_rate": 0},
        {"learning_rate": float("nan")}, {"learning_rate": "1e-3"}, {"decay": -1},
        {"validation": 1.0}, {"masked": 2}, {"keep_cohorts": "no"}, {"layer": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_training__out_of_range_is_refused(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=f"{name} .*expected"):
        Training(**settings)


def test_training__names_everything_that_is_wrong():
    with pytest.raises(ConfigError, match=r"folds 1: .*patience 0: "):
        Training(folds=1, patience=0)


class Killed(BaseException):
    """What a signal does."""


@pytest.mark.parametrize("after", [1, 3])
def test_train_fold__goes_on_from_its_checkpoint(references, graph, tmp_path, monkeypatch, after):
    quick, who = Training(epochs=5, patience=9), np.arange(60)
    data = data_of(references, graph)
    expected = train_fold(data, who, graph, quick, number=1)
    file = Checkpoint(tmp_path / "here" / "fold1.safetensors", "key")
    save, calls = Checkpoint.save, []

    def dies(self, *content):
        save(self, *content)
        calls.append(1)
        if len(calls) == after:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", dies)
    with pytest.raises(Killed):
        train_fold(data, who, graph, quick, number=1, checkpoint=file)
    epochs = []
    one_epoch = train_module._Run.one_epoch
    monkeypatch.setattr(
        train_module._Run, "one_epoch", lambda self, *a: (epochs.append(1), one_epoch(self, *a))
    )
    found = train_fold(data, who, graph, quick, number=1, checkpoint=file)
    assert len(epochs) == 6 - after
    np.testing.assert_array_equal(found.curve, expected.curve)
    for name, values in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], values, err_msg=name)


def test_checkpoint__of_another_training_or_damaged_is_not_gone_on_from(tmp_path, caplog):
    file = Checkpoint(tmp_path / "f.safetensors", "key")
    assert file.load() is None
    file.save({"a": np.arange(3.0)}, {"epoch": 2})
    arrays, state = file.load()
    np.testing.assert_array_equal(arrays["a"], np.arange(3.0))
    assert state == {"epoch": 2}
    assert Checkpoint(file.path, "other").load() is None
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-5])
    assert file.load() is None
    assert "training starts anew" in caplog.text
    save_file(load_of(content, tmp_path), file.path)  # one that somebody else wrote
    assert file.load() is None


def without(arrays, name):
    return {k: v for k, v in arrays.items() if k != name}


def cut(arrays, name):
    return arrays | {name: arrays[name][:-1]}


@pytest.mark.parametrize("name", ["now.bias", "record.0.skip_weight", "adam.0.exp_avg", "curve"])
@pytest.mark.parametrize("change", [without, cut])
def test_train_fold__checkpoint_that_does_not_fit_starts_anew(
    references, graph, tmp_path, name, change, caplog
):
    quick, who = Training(epochs=2), np.arange(60)
    data = data_of(references, graph)
    file = Checkpoint(tmp_path / "fold1.safetensors", "key")
    expected = train_fold(data, who, graph, quick, number=1, checkpoint=file)
    arrays, state = file.load()
    file.save(change(arrays, name), state)
    found = train_fold(data, who, graph, quick, number=1, checkpoint=file)
    assert "does not fit" in caplog.text
    for key, values in expected.weights.items():
        np.testing.assert_array_equal(found.weights[key], values, err_msg=key)


def load_of(content: bytes, folder) -> dict[str, np.ndarray]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def test_fit__from_blocks_and_checkpoints(references, tmp_path, streamed):
    lazy = references.chunk(subject=7)
    quick = Training(folds=4, epochs=1)
    model = BrainAgeModel.fit(lazy, training=quick, checkpoints=tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        f"fold{i}.safetensors" for i in range(4)
    ]
    again = BrainAgeModel.fit(lazy, training=quick, checkpoints=tmp_path / "c")
    assert again.fingerprint == model.fingerprint
    for score in model.metrics.values():
        assert score["mae"] < score["mae_mean"]


def test_training_key__does_not_depend_on_blocks(references, graph, streamed):
    split = {"fold": np.arange(80) % 5}
    key = training_key(data_of(references, graph), split, {"seed": 1})
    assert training_key(streamed, split, {"seed": 1}) == key
    assert training_key(streamed, split, {"seed": 2}) != key
    assert training_key(streamed, {"fold": np.arange(80) % 4}, {"seed": 1}) != key


def other_age(ds):
    return ds.assign_coords(age=ds["age"] + 10 * (np.arange(80) == 3))


def other_values(ds):
    return ds.assign(node_features=ds["node_features"] * (1 + 1e-3 * (ds["subject"] == "sub-0003")))


def other_names(ds):
    return ds.assign_coords(feature=[f"{name}_2" for name in ds["feature"].values])


def other_people(ds):
    return ds.assign_coords(person=("subject", np.array([f"p{i // 2}" for i in range(80)])))


@pytest.mark.parametrize("change", [other_age, other_values, other_names, other_people])
def test_fit__does_not_go_on_from_checkpoints_of_other_data(references, tmp_path, change):
    quick = Training(folds=2, epochs=1)
    scans = np.array([f"scan {i}" for i in range(80)])
    ds = references.assign(scan_hash=("subject", scans))
    BrainAgeModel.fit(ds, training=quick, checkpoints=tmp_path)
    expected = BrainAgeModel.fit(change(ds), training=quick)
    found = BrainAgeModel.fit(change(ds), training=quick, checkpoints=tmp_path)
    assert found.fingerprint == expected.fingerprint


def test_patches__are_imputed_as_missing_nodes_are(references, graph):
    with one_thread_each():
        data = data_of(references, graph)
        who = np.arange(80)
        scales = fit_scales(data, who)
        linear = fit_linear(data, who, graph, scales)
        z = scales.features(data.read(who[:16]))
        patches = train_module._Patches(graph, linear.imputer, 0.5, np.random.default_rng(0))
        masked = patches.impose(z, np.random.default_rng(1))
        changed = (masked != z).any(axis=-1)
        assert (changed.any(axis=1)).sum() == 8
        filled, _ = impute(np.where(changed[..., None], np.nan, z), graph, linear.imputer)
        np.testing.assert_allclose(masked, filled, atol=2e-4)


@pytest.mark.parametrize("layer", ["cheb", "gcn", "spectral"])
def test_step__follows_the_gradient_of_loss_and_penalty(references, graph, layer, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # there bf16 would differ
    data, who = data_of(references, graph), np.arange(80)
    scales = fit_scales(data, who)
    linear = fit_linear(data, who, graph, scales)
    patches = train_module._Patches(graph, linear.imputer, 0.5, np.random.default_rng(0))
    chosen = Training(layer=layer, decay=0.3)
    run = train_module._Run(data, graph, chosen, scales, linear, who[:9], patches, 0)
    network, rng = run.network, np.random.default_rng(2)
    x = run.tensor(scales.features(data.read(who[:8])))
    age, weight = run.tensor(rng.normal(size=8)), run.tensor(rng.uniform(0.5, 1.5, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    lost = (weight[:, None] * (network(x) - age[:, None]) ** 2).sum() / 8
    penalty = (
        10 * (network.node_weight**2).sum()
        + 10 * ((network.skip_weight - run.start) ** 2).sum()
        + (network.mean_weight**2).sum()
    )
    expected = torch.autograd.grad(lost + 0.3 * penalty, list(network.parameters()))
    run._step(x, age, weight)
    for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
        np.testing.assert_allclose(
            parameter.grad.numpy(), gradient.numpy(), rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("n_nodes", [1, 6, 24])
def test_patch__is_connected_nodes_around_its_seed(graph, n_nodes):
    for region in (0, 5):
        found = graph.patch(region, 3, n_nodes)
        assert found[0] == 3
        assert len(set(found)) == n_nodes
        first, last = graph.bounds[region]
        assert found.max() < last - first
        rows = first + found
        inside = np.isin(graph.row_edges, rows).all(axis=0)
        joined = xr.DataArray(graph.row_edges[:, inside])
        assert n_nodes == 1 or set(rows) == set(np.unique(joined))


def test_patch__of_a_region_in_parts_takes_others_too(graph):
    n = len(graph.members[0])
    assert sorted(graph.patch(0, 0, n)) == list(range(n))


def test_assign_folds__keeps_cohorts_and_people_whole():
    rng = np.random.default_rng(0)
    cohort = rng.choice(list("abcdefghij"), 200)
    age = rng.uniform(45, 82, 200)
    person = np.arange(200)
    person[np.flatnonzero(cohort == "a")[0]] = person[np.flatnonzero(cohort == "b")[0]] = 500
    fold = assign_folds(age, 4, seed=0, person=person, cohort=cohort)
    for name in np.unique(cohort):
        assert np.unique(fold[cohort == name]).size == 1
    assert fold[cohort == "a"][0] == fold[cohort == "b"][0]
    assert np.bincount(fold, minlength=4).min() > 20
    np.testing.assert_array_equal(fold, assign_folds(age, 4, seed=0, person=person, cohort=cohort))
    with pytest.raises(StatisticsError, match="2 cohorts of references cannot be kept whole"):
        assign_folds(age, 3, seed=0, cohort=np.repeat(["x", "y"], 100))


def test_assign_folds__of_one_or_two_people_are_refused():
    age = np.random.default_rng(0).uniform(45, 82, 44)
    cohort = np.repeat(list("abcde"), [40, 1, 1, 1, 1])
    with pytest.raises(StatisticsError, match=r"hold out .*1 of 44 people.*fewer folds"):
        assign_folds(age, 5, seed=0, cohort=cohort)
    with pytest.raises(StatisticsError, match="10 reference people are too few for 3 folds"):
        assign_folds(age, 3, seed=0, person=np.arange(44) % 10)
    with pytest.raises(StatisticsError, match="two folds or more"):
        assign_folds(age, 1, seed=0)


def test_stopping_split__draws_scans_as_before_where_each_is_a_person():
    for n in (30, 1500, 9000):
        found = stopping_split(np.arange(n) * 3, 0.15, np.random.default_rng(1))
        order = np.random.default_rng(1).permutation(n)
        expected = order[: min(max(2, round(0.15 * n)), 1000)]
        np.testing.assert_array_equal(np.flatnonzero(found), np.sort(expected))


def test_stopping_split__keeps_people_whole():
    person = np.random.default_rng(0).integers(0, 60, 300)
    held = stopping_split(person, 0.15, np.random.default_rng(1))
    assert not set(person[held]) & set(person[~held])
    assert np.unique(person[held]).size == round(0.15 * np.unique(person).size)
    many = np.repeat(np.arange(40), 100)  # no more than 1000 scans of them
    assert stopping_split(many, 0.5, np.random.default_rng(1)).sum() == 1000


def test_stopping_split__keeps_cohorts_whole_where_they_come_to_about_as_many():
    person = np.arange(200)
    cohort = np.repeat(np.arange(10), 20)
    held = stopping_split(person, 0.15, np.random.default_rng(1), cohort=cohort)
    assert not set(cohort[held]) & set(cohort[~held])
    assert 15 <= held.sum() <= 60
    two = np.repeat([0, 1], 100)  # each is half of everyone: people of both
    held = stopping_split(person, 0.15, np.random.default_rng(1), cohort=two)
    np.testing.assert_array_equal(held, stopping_split(person, 0.15, np.random.default_rng(1)))
    assert held.sum() == 30


def test_linked_cohorts__are_one_where_they_share_a_person():
    person, cohort = np.array([0, 1, 1, 2, 3]), np.array(list("abccd"))
    cohort[1] = "b"
    found = linked_cohorts(person, cohort)
    assert found[1] == found[2] == found[3]
    assert len(set(found.tolist())) == 3


def test_train_fold__nobody_stops_the_training_that_they_are_part_of(
    references, graph, monkeypatch
):
    halves = []

    def spied(people, *args, **options):
        halves.append((people, stopping_split(people, *args, **options)))
        return halves[-1][1]

    monkeypatch.setattr(train_module, "stopping_split", spied)
    person = np.arange(80) // 2
    train_fold(
        data_of(references, graph), np.arange(60), graph, Training(epochs=0), number=0,
        person=person,
    )  # fmt: skip
    ((people, held),) = halves
    np.testing.assert_array_equal(people, person[:60])
    assert not set(people[held]) & set(people[~held])


def test_fit__kept_cohorts_are_predicted_by_networks_that_have_not_seen_them(references):
    cohort = np.arange(80) % 5
    ds = references.assign_coords(cohort=("subject", np.array(list("vwxyz"))[cohort]))
    model = BrainAgeModel.fit(ds, training=Training(folds=3, epochs=0, keep_cohorts=True))
    fold = np.array([model.fold_of[key] for key in subject_keys(ds)])
    for number in range(5):
        assert np.unique(fold[cohort == number]).size == 1


def test_training__whole_numbers_of_any_type():
    found = Training(folds=np.int64(3), seed=np.uint8(1), epochs=np.array(2))
    assert found == Training(folds=3, seed=1, epochs=2)
    assert json.dumps(asdict(found)) == json.dumps(asdict(Training(folds=3, seed=1, epochs=2)))
    for value in (True, np.True_, 3.0, "3"):
        with pytest.raises(ConfigError, match=r"folds .*: expected a whole number"):
            Training(folds=value)


def test_balanced_weights__make_up_for_uneven_ages():
    rng = np.random.default_rng(0)
    age = np.concatenate([rng.uniform(45, 65, 900), rng.uniform(65, 85, 300)])
    weight = balanced_weights(age)
    assert weight.mean() == pytest.approx(1)
    assert 2.4 < weight[age > 70].mean() / weight[age < 60].mean() < 3.6
    assert weight.max() / np.median(weight) <= 5 + 1e-9
    np.testing.assert_array_equal(balanced_weights(np.full(5, 60.0)), np.ones(5))
