import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import load_file, save_file

from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.errors import ConfigError, ModelFileError, StatisticsError
from scalebrain.graph import model as model_module
from scalebrain.graph.folds import assign_folds
from scalebrain.graph.model import BrainAgeModel, brain_age
from scalebrain.graph.train import Training


@pytest.fixture
def quick():
    return Training(folds=4, epochs=2)


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def with_features(ds, change):
    out = ds.copy(deep=True)
    change(out["node_features"].values)
    return out


def test_assign_folds__is_stratified_by_age():
    age = np.random.default_rng(0).uniform(40, 80, 103)
    fold = assign_folds(age, 5, seed=0)
    assert np.bincount(fold).min() >= 20
    means = [age[fold == k].mean() for k in range(5)]
    assert np.ptp(means) < 2


def test_fit__uses_included_references_alone(references, quick):
    ds = references.copy(deep=True)
    ds["included"] = ("subject", np.arange(80) >= 5)
    ds["age"][5] = np.nan
    ds["scan_present"] = ("subject", np.arange(80) != 6)
    assert BrainAgeModel.fit(ds, training=quick).about["n_training"] == 73


def test_brain_age__variables_and_identities(references, model):
    out = brain_age(references, model)
    for name in ("brain_age", "brain_age_low", "brain_age_high", "brain_pad"):
        assert out[name].dims == ("subject", "region")
        assert out[name].attrs["units"] == "years"
    xr.testing.assert_allclose(
        out["brain_pad"], out["brain_age"] - references["age"].astype(float), atol=1e-9
    )
    assert (out["brain_age_low"] < out["brain_age"]).all()
    assert out["calibration_slope"].dims == ("region",)
    reference = (references["group"] == "reference").values
    np.testing.assert_array_equal(out["out_of_fold"].values, reference)


@pytest.mark.parametrize("value", [1e6, -1e6])
def test_brain_age__nothing_outside_a_region_moves_it_by_a_bit(references, model, value):
    before = model.predict(references)["brain_age"].values
    for r, members in enumerate(model.graph.members):
        outside = np.ones(model.graph.n_nodes, dtype=bool)
        outside[members] = False
        other = with_features(
            references, lambda x, at=outside: x.__setitem__((slice(None), at), value)
        )
        np.testing.assert_array_equal(model.predict(other)["brain_age"].values[:, r], before[:, r])


def test_brain_age__missing_elsewhere_moves_nothing(references, model):
    outside = np.ones(model.graph.n_nodes, dtype=bool)
    outside[model.graph.members[0]] = False
    other = with_features(references, lambda x: x.__setitem__((slice(None), outside), np.nan))
    out = model.predict(other)
    before = model.predict(references)["brain_age"].values[:, 0]
    np.testing.assert_array_equal(out["brain_age"].values[:, 0], before)
    assert np.isnan(out["brain_age"].values[:, 1]).all()
    assert (out["imputed_fraction"].values[:, 0] == 0).all()
    assert (out["imputed_fraction"].values[:, 1] == 1).all()


def test_brain_age__infinity_elsewhere_moves_nothing(references, model):
    outside = np.ones(model.graph.n_nodes, dtype=bool)
    outside[model.graph.members[0]] = False
    other = with_features(references, lambda x: x.__setitem__((slice(None), outside), np.inf))
    before = model.predict(references)["brain_age"].values[:, 0]
    np.testing.assert_array_equal(model.predict(other)["brain_age"].values[:, 0], before)


def test_brain_age__imputed_nodes_are_reported_and_keep_the_mean_age(references, model):
    lost = [m[: len(m) // 3] for m in model.graph.members]
    other = with_features(
        references, lambda x: [x.__setitem__((slice(None), m), np.nan) for m in lost]
    )
    out, before = model.predict(other), model.predict(references)
    assert (out["imputed_fraction"] > 0.2).all()
    assert abs(float((out["brain_age"] - before["brain_age"]).mean())) < 1


@pytest.mark.parametrize("block", [7, 80])
def test_brain_age__is_lazy_over_dask_and_the_same(references, model, block):
    expected = model.predict(references)
    lazy = model.predict(references.chunk(subject=block, node=50))
    assert lazy["brain_age"].chunks is not None
    xr.testing.assert_allclose(lazy.compute(), expected, atol=1e-3)


def test_brain_age__absent_scan_is_missing(references, model):
    ds = with_features(references, lambda x: x.__setitem__(0, np.nan))
    ds["scan_present"] = ("subject", np.arange(80) != 0)
    out = model.predict(ds)
    assert np.isnan(out["brain_age"][0]).all()
    assert np.isfinite(out["brain_age"][1:]).all()


def test_brain_age__a_scan_without_an_intact_node_is_all_missing(references, model):
    ds = with_features(references, lambda x: x.__setitem__(slice(0, 2), np.nan))
    ds["scan_present"] = ("subject", np.arange(80) != 0)
    imputed = model.predict(ds)["imputed_fraction"].values
    assert np.isnan(imputed[0]).all()
    assert (imputed[1] == 1).all()
    assert (imputed[2:] == 0).all()


def test_brain_age__scan_present_decides(references, model):
    ds = references.copy(deep=True)
    ds["scan_present"] = ("subject", np.arange(80) != 0)
    assert np.isnan(model.predict(ds)["brain_age"][0]).all()


def test_brain_age__age_outside_training_is_flagged_and_unknown_age_predicted(references, model):
    ds = references.copy(deep=True)
    ds["age"][60] = 95.0
    ds["age"][61] = np.nan
    out = model.predict(ds)
    assert out["extrapolated"].values[60]
    assert np.isfinite(out["brain_age"][61]).all()
    assert np.isnan(out["brain_pad"][61]).all()
    assert not out["extrapolated"].values[61]


def test_brain_age__refuses_other_parcels(references, model):
    swapped = references["node_parcel"].copy(data=references["node_parcel"].values[::-1])
    with pytest.raises(ModelFileError):
        model.predict(references.assign(node_parcel=swapped))


def test_brain_age__features_in_another_order_are_put_right(references, model):
    other = model.predict(references.isel(feature=[3, 2, 1, 0]))
    np.testing.assert_array_equal(other["brain_age"], model.predict(references)["brain_age"])


def test_brain_age__custom_regions_on_a_graph_of_their_own(references, quick):
    keep = np.isin(references["node_parcel"].values, (1, 2, 19, 20))
    position = np.where(keep, np.cumsum(keep) - 1, -1)
    edges = position[np.stack([references["edge_source"].values, references["edge_target"].values])]
    edges = edges[:, (edges >= 0).all(axis=0)]
    ds = references.drop_vars(["edge_source", "edge_target"]).isel(node=keep)
    ds = ds.assign(edge_source=("edge", edges[0]), edge_target=("edge", edges[1]))
    regions = RegionSet("mine", {"A_L": (1, 19), "A_R": (2, 20)})
    model = BrainAgeModel.fit(ds, regions=regions, training=quick)
    assert model.predict(ds)["region"].values.tolist() == ["A_L", "A_R"]


def test_save_load__predicts_the_same_bits(references, model, saved):
    loaded = BrainAgeModel.load(saved)
    assert loaded.fingerprint == model.fingerprint
    np.testing.assert_array_equal(
        loaded.predict(references)["brain_age"], model.predict(references)["brain_age"]
    )
    xr.testing.assert_identical(brain_age(references, saved), brain_age(references, loaded))


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_load__truncated_weights(saved, keep):
    whole = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ModelFileError, match="Train again"):
        BrainAgeModel.load(saved)


def test_load__one_flipped_bit(saved):
    data = bytearray((saved / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (saved / "weights.safetensors").write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="do not match"):
        BrainAgeModel.load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\0", '{"format": 1'])
def test_load__damaged_description(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(ModelFileError):
        BrainAgeModel.load(saved)


def test_load__save_that_was_cut_short_is_no_model(saved):
    (saved / "model.json").unlink()
    with pytest.raises(ModelFileError, match="not a model directory"):
        BrainAgeModel.load(saved)
    shutil.rmtree(saved)
    with pytest.raises(ModelFileError, match="not a model directory"):
        BrainAgeModel.load(saved)


def test_load__deeply_nested_description(saved):
    (saved / "model.json").write_text("[" * 200_000)
    with pytest.raises(ModelFileError):
        BrainAgeModel.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["fold_of"].update(dict.fromkeys(d["fold_of"], 0)),  # leaks training subjects
        lambda d: d["fold_of"].update(dict.fromkeys(d["fold_of"], 99)),  # ages become NaN
        lambda d: d.update(features=d["features"][::-1]),  # ages become others
        lambda d: d["about"].update(simulated="false"),  # the label vanishes
        lambda d: d["about"].pop("age_min"),  # KeyError at predict
    ],
    ids=["folds", "fold-out-of-range", "feature-order", "simulated", "no-age-range"],
)
def test_load__changed_description(saved, change):
    edit(saved, change)
    with pytest.raises(ModelFileError):
        BrainAgeModel.load(saved)


def set_to(name, index, value):
    def change(description, arrays):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


def described(**parts):
    return lambda description, arrays: description.update(parts)


HOSTILE = {
    "fold-list": described(fold_of=[]),
    "fold-text": described(fold_of={"a": "0"}),
    "fold-beyond": described(fold_of={"a": 5}),
    "person-list": described(fold_of_person=[]),
    "nodes-infinite": lambda d, a: d.update(n_nodes=float("inf")),
    "nodes-many": lambda d, a: d.update(n_nodes=d["n_nodes"] + 1),
    "folds-true": lambda d, a: d["training"].update(folds=True),
    "channels-huge": lambda d, a: d["training"].update(channels=10**8),
    "patience-none": lambda d, a: d["training"].update(patience=0),
    "unknown-setting": lambda d, a: d["training"].update(other=1),
    "regions-text": described(regions="SMN_L"),
    "region-twice": lambda d, a: d.update(regions=[d["regions"][0]] * len(d["regions"])),
    "features-numbers": described(features=[1, 2, 3, 4]),
    "features-more": lambda d, a: d.update(features=[*d["features"], "more"]),
    "metrics-list": described(metrics=[]),
    "about-none": described(about=None),
    "age-text": lambda d, a: d["about"].update(age_min="young"),
    "row-beyond": set_to("rows", 0, 10**6),
    "row-negative": set_to("rows", 0, -1),
    "edge-beyond": set_to("edges", 0, 10**6),
    "region-beyond": set_to("region_of_row", -1, 10**6),
    "weight-missing": lambda d, a: a.pop("fold0.weights.bias"),
    "weight-nan": set_to("fold1.weights.bias", 0, np.nan),
    "slope-infinite": set_to("fold1.slope", 0, np.inf),
    "imputer-nan": set_to("fold0.impute_mean.3", 0, np.nan),
    "spread-zero": set_to("fold0.spread", 0, 0.0),
    "radius-nan": set_to("radius", 0, np.nan),
    "center-short": lambda d, a: a.update({"fold0.center": a["fold0.center"][:1]}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_load__model_that_was_made_to_harm(saved, change):
    description = json.loads((saved / "model.json").read_text())
    arrays = load_file(saved / "weights.safetensors")
    change(description, arrays)
    (saved / "model.json").write_text(json.dumps(description))
    save_file(arrays, saved / "weights.safetensors")
    with pytest.raises(ModelFileError, match=r"damaged.*Train again"):
        BrainAgeModel.load(saved)


def test_load__infinite_radius_is_kept(model, tmp_path):
    wide = replace(model, radius=np.full_like(model.radius, np.inf))
    wide.save(tmp_path / "m")
    assert np.isinf(BrainAgeModel.load(tmp_path / "m").radius).all()


def test_brain_age__missing_age_of_one_network_is_a_missing_age(references, model):
    broken = replace(model.folds[2], intercept=np.full_like(model.folds[2].intercept, np.nan))
    torn = replace(model, folds=(*model.folds[:2], broken, *model.folds[3:]))
    new = references.assign_coords(subject=[f"new{i}" for i in range(80)])
    out = torn.predict(new)
    assert np.isnan(out["brain_pad_corrected"]).all()
    np.testing.assert_array_equal(out["brain_age"], model.predict(new)["brain_age"])


def test_brain_age__another_model_saved_to_the_folder_since(references, model, tmp_path):
    folder = model.save(tmp_path / "m").path
    lazy = brain_age(references.chunk(subject=40), BrainAgeModel.load(folder))
    replace(model, about=model.about | {"age_min": 1.0}).save(folder)
    with pytest.raises(ModelFileError, match="another model was saved there since"):
        lazy.compute(scheduler="single-threaded")


def test_fit__references_of_one_age_are_refused_before_training(references, quick, monkeypatch):
    monkeypatch.setattr(model_module, "map_tasks", None)
    ds = references.assign_coords(age=("subject", np.full(80, 60.0)))
    with pytest.raises(StatisticsError, match="are 60 years old"):
        BrainAgeModel.fit(ds, training=quick)


@pytest.mark.parametrize("coverage", [0, 1, -0.5, 90, float("nan")])
def test_fit__coverage_that_is_no_fraction(references, quick, coverage):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        BrainAgeModel.fit(references, training=quick, coverage=coverage)


def test_save__model_that_cannot_be_written_leaves_the_one_before(model, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    region = next(iter(model.metrics))
    metrics = model.metrics | {region: model.metrics[region] | {"r": float("nan")}}
    with pytest.raises(StatisticsError, match="is not saved"):
        replace(model, metrics=metrics).save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_fit__leaves_the_global_generator_alone(references, quick):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    BrainAgeModel.fit(references, training=quick)
    assert torch.equal(before, torch.get_rng_state())


def test_brain_age__exclude_region_leaves_lesioned_regions_out(references, model):
    few = references.isel(subject=slice(0, 4))
    parcel = few["node_parcel"].values
    lesioned = np.zeros((4, parcel.size))
    lesioned[1, np.isin(parcel, default_regions().parcels["SAL_L"])] = 0.6
    lesioned[2, np.isin(parcel, default_regions().parcels["SAL_L"])] = 0.4
    given = few.assign(node_lesioned_fraction=(("subject", "node"), lesioned))
    given["node_features"] = given["node_features"].assign_attrs(lesion_policy="exclude_region")
    found = brain_age(given, model)
    whole = brain_age(few, model)
    expected = np.zeros((4, 18), dtype=bool)
    expected[1, found["region"].values.tolist().index("SAL_L")] = True
    np.testing.assert_array_equal(found["region_excluded"], expected)
    for name in ("brain_age", "brain_pad", "brain_age_low", "brain_pad_corrected"):
        np.testing.assert_array_equal(np.isnan(found[name]), expected)
        np.testing.assert_array_equal(found[name].values[~expected], whole[name].values[~expected])
    assert found["brain_age"].attrs["model_fingerprint"] == model.fingerprint
    assert "region_excluded" not in whole


def test_fit__order_of_the_dimensions_does_not_matter(references, quick):
    turned = references.transpose("node", "feature", "subject", ...)
    found = BrainAgeModel.fit(turned, training=quick)
    assert found.fingerprint == BrainAgeModel.fit(references, training=quick).fingerprint


def test_fit__card_says_the_coverage_as_it_is(references, tmp_path):
    training = Training(folds=2, epochs=0)
    model = BrainAgeModel.fit(references, training=training, coverage=0.975)
    assert "split-conformal, 97.5%" in model._repr_html_()


def test_fit__a_missing_flag_is_no_yes(references, quick):
    flag = np.array([True] * 80, dtype=object)
    flag[:8], flag[8] = np.nan, False
    for name in ("included", "scan_present"):
        ds = references.assign({name: ("subject", flag)})
        assert BrainAgeModel.fit(ds, training=quick).about["n_training"] == 71, name


def test_brain_age__a_missing_flag_is_no_scan(references, model):
    flag = np.where(np.arange(80) == 3, np.nan, 1.0)
    ages = model.predict(references.assign(scan_present=("subject", flag)))["brain_age"]
    np.testing.assert_array_equal(np.isnan(ages).all("region"), np.isnan(flag))


def test_fit__applies_the_criteria_where_nobody_has_yet(references, quick):
    n = 80
    ds = references.assign(
        scan_present=("subject", np.ones(n, dtype=bool)),
        lesion_present=("subject", np.zeros(n, dtype=bool)),
        lesion_hemisphere=("subject", np.full(n, "none")),
        lesion_volume=("subject", np.full(n, np.nan)),
        days_post_stroke=("subject", np.full(n, np.nan)),
        icv=("subject", np.full(n, 1500.0)),
        age_censored=("subject", np.arange(n) < 6),
        qc_decision=("subject", np.where(np.arange(n) == 7, "exclude", "")),
    ).assign_coords(sex=("subject", np.full(n, "F")))
    assert BrainAgeModel.fit(ds, training=quick).about["n_training"] == 73


def test_fit__references_that_are_all_excluded_are_counted_by_reason(references, quick):
    reason = np.where(np.arange(80) < 3, "sex missing", "intracranial volume missing")
    ds = references.assign(
        included=("subject", np.zeros(80, dtype=bool)), exclusion_reason=("subject", reason)
    )
    told = r"All 80 .*: intracranial volume missing \(77\), sex missing \(3\)\..*import-ages"
    with pytest.raises(StatisticsError, match=told):
        BrainAgeModel.fit(ds, training=quick)
    lacking = references.assign(
        scan_present=("subject", np.arange(80) < 8),
        lesion_present=("subject", np.zeros(80, dtype=bool)),
        lesion_hemisphere=("subject", np.full(80, "none")),
        lesion_volume=("subject", np.full(80, np.nan)),
        days_post_stroke=("subject", np.full(80, np.nan)),
        icv=("subject", np.full(80, np.nan)),
    ).assign_coords(sex=("subject", np.full(80, "F")))
    with pytest.raises(StatisticsError, match=r"no T1w scan \(72\), intracranial .* \(8\)"):
        BrainAgeModel.fit(lacking, training=quick)
    nobody = references.assign(scan_present=("subject", np.zeros(80, dtype=bool)))
    with pytest.raises(StatisticsError, match=r"All 80 .*: no complete scan \(80\)"):
        BrainAgeModel.fit(nobody, training=quick)


def test_fit__patients_alone_are_told_what_else_there_is(references, quick):
    with pytest.raises(StatisticsError, match=r"import-ages; ages: .*scalebrain predict"):
        BrainAgeModel.fit(
            references.assign_coords(group=("subject", ["stroke"] * 80)), training=quick
        )
