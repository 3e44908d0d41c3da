"""The surface path from a store to regional ages."""

import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import SPACE, template_grid
from scalebrain.atlas.surface import surface_nodes
from scalebrain.cli import main
from scalebrain.errors import MissingVariableError, ModelFileError
from scalebrain.graph.model import BrainAgeModel, brain_age
from scalebrain.graph.train import Training
from scalebrain.ingestion.geometry import static_variables, vertex_variables
from scalebrain.io import store as store_module
from scalebrain.pipeline import compute_features, predict_ages, train_model

N, N_STROKE = 60, 4


def surface_cohort(n: int = N, n_stroke: int = N_STROKE, *, seed: int = 0) -> xr.Dataset:
    """References and strokes whose cortex thins with age, each parcel in its own time."""
    rng = np.random.default_rng(seed)
    static = static_variables(template_grid(4.0))
    parts = surface_nodes(5)
    total = n + n_stroke
    age = rng.uniform(45, 82, total)
    codes, parcel = np.unique(parts.parcel, return_inverse=True)
    years = age[:, None] - 60 + 4 * rng.normal(size=(total, codes.size))
    x = {"thickness": (2.5, -0.01, 0.25), "wg_contrast": (20.0, -0.08, 2.0)}
    images = {}
    for name, (level, slope, noise) in x.items():
        values = level + noise * rng.normal(size=(total, 20484))
        values[:, parts.pooling.indices] += slope * years[:, parcel]
        images[name] = (("subject", "vertex"), values.astype(np.float32))
    mm = np.stack([static[a].values for a in "xyz"], axis=1)
    lesion = np.zeros((total, len(mm)), dtype=bool)
    lesion[n:] = np.linalg.norm(mm - [-40, -20, 52], axis=1) < 18
    group = np.repeat(["reference", "stroke"], [n, n_stroke])
    side = np.where(group == "stroke", "L", "none")
    yes = np.ones(total, dtype=bool)
    ds = static.assign(
        **images,
        lesion_mask=(("subject", "voxel"), lesion),
        surface_present=("subject", yes),
        scan_present=("subject", ~yes),
        lesion_present=("subject", group == "stroke"),
        lesion_hemisphere=("subject", side),
        lesion_volume=("subject", lesion.sum(axis=1) * 0.064),
        days_post_stroke=("subject", np.where(group == "stroke", 400.0, np.nan)),
        icv=("subject", np.full(total, 1500.0)),
    )
    ids = [f"sub-{i:03d}" for i in range(total)]
    ds = ds.merge(vertex_variables()).assign_coords(
        subject=ids, age=("subject", age), group=("subject", group)
    )
    ds = ds.assign(sex=("subject", np.array(["F", "M"])[np.arange(total) % 2]))
    ds.attrs |= {"space": SPACE, "simulated": "true"}
    return ds


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    url = tmp_path_factory.mktemp("surface") / "s.zarr"
    scalebrain.save_store(surface_cohort(), url)
    return url


@pytest.fixture(scope="module")
def model_dir(store, tmp_path_factory):
    compute_features(store, nodes="surface-3")
    folder = tmp_path_factory.mktemp("model")
    train_model(store, folder, training={"epochs": 3, "folds": 4})
    return folder


def test_surface__ages_are_better_than_the_mean_and_closed_to_other_regions(store, model_dir):
    model = BrainAgeModel.load(model_dir)
    assert model.about["nodes"] == "surface-3"
    assert model.about["space"] == "fsaverage5"
    assert model.features == ("thickness", "wg_contrast")
    assert not (model_dir / "checkpoints").exists()
    for region, score in model.metrics.items():
        assert score["mae"] < 0.8 * score["mae_mean"], region
    ds = scalebrain.open_store(store)
    before = brain_age(ds, model)["brain_age"].compute()
    moved = ds.load()
    own = model.graph.members[3]
    outside = np.setdiff1d(np.arange(ds.sizes["node"]), own)
    moved["node_features"].values[:, outside] *= 1.5
    after = brain_age(moved, model)["brain_age"].compute()
    np.testing.assert_array_equal(after[:, 3], before[:, 3])
    assert (after[:, 0] != before[:, 0]).all()


def test_surface__lesioned_nodes_are_imputed(store, model_dir):
    predict_ages(store, model_dir)
    ds = scalebrain.open_store(store)
    fraction = ds["imputed_fraction"].sel(region="SMN_L").values
    assert (fraction[:N] == 0).all()
    assert (fraction[N:] > 0.05).all()
    assert np.isfinite(ds["brain_age"].values).all()
    error = np.abs(ds["brain_pad_corrected"].sel(region="SMN_L").values[N:])
    assert error.max() < 25


def test_surface__features_are_computed_where_a_store_has_none(store, model_dir):
    ds = surface_cohort(3, 1, seed=5)
    out = brain_age(ds, model_dir)["brain_age"]
    again = brain_age(xr.merge([ds.drop_dims(["node", "edge"]), *parts_of(ds)]), model_dir)
    np.testing.assert_array_equal(out, again["brain_age"])
    assert np.isfinite(out).all()


def parts_of(ds):
    return [scalebrain.surface_features(ds, level=3)]


def test_surface__other_nodes_than_the_model(store, model_dir):
    ds = surface_cohort(3, 1, seed=5)
    other = ds.drop_dims(["node", "edge"]).merge(scalebrain.surface_features(ds, level=4))
    with pytest.raises(ModelFileError, match="another graph of nodes"):
        brain_age(other, model_dir)
    same = ds.drop_dims(["node", "edge"]).merge(scalebrain.surface_features(ds, level=3))
    assert len(same["node_features"].attrs["nodes_sha256"]) == 64
    for made in ("0" * 64, None):  # of vertices beyond the parcel, as before nodes had a hash
        same["node_features"].attrs |= {"nodes_sha256": made}
        if made is None:
            del same["node_features"].attrs["nodes_sha256"]
        with pytest.raises(ModelFileError, match="take in other tissue"):
            brain_age(same, model_dir)
    with pytest.raises(MissingVariableError, match="t1w"):
        compute_features(store, nodes="volume")
    assert "node_features" in scalebrain.open_store(store)  # nothing is lost by asking


def dying(name: str, at: int):
    """Make a function of the store that a kill stops at its n-th call."""
    function, calls = getattr(store_module, name), []

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return function(*args, **options)

    return dies


def test_surface__nodes_are_replaced_and_a_kill_is_made_good(tmp_path, monkeypatch):
    url = tmp_path / "s.zarr"
    scalebrain.save_store(surface_cohort(4, 1), url)
    compute_features(url, nodes="surface-3")
    expected = scalebrain.open_store(url).load()

    for name, at in (("remove_array", 9), ("remove_array", 12), ("_write", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(f"scalebrain.io.store.{name}", dying(name, at))
            with pytest.raises(KeyboardInterrupt):
                compute_features(url, nodes="surface-4")
        left = scalebrain.open_store(url)
        assert "node_features" not in left
    main(["features", str(url), "--nodes", "surface-4", "--scheduler", "threads"])
    assert scalebrain.open_store(url).sizes["node"] == surface_nodes(4).parcel.size
    compute_features(url, nodes="surface-3")
    xr.testing.assert_identical(scalebrain.open_store(url).load(), expected)


def test_surface__training_does_not_depend_on_the_store(store):
    quick = Training(folds=2, epochs=1)
    ds = scalebrain.open_store(store)
    assert ds["node_features"].chunks
    one, other = (BrainAgeModel.fit(x, training=quick) for x in (ds, ds.load()))
    assert one.fingerprint == other.fingerprint


def test_predict_ages__computes_the_features_that_the_model_takes(model_dir, tmp_path):
    scalebrain.save_store(surface_cohort(8, 4, seed=3), tmp_path / "new.zarr")
    predict_ages(tmp_path / "new.zarr", model_dir)
    ds = scalebrain.open_store(tmp_path / "new.zarr")
    assert ds["node_features"].attrs["nodes"] == "surface-3"
    assert np.isfinite(ds["brain_age"].values[:8]).all()
