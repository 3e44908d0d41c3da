import numpy as np
import pytest

import scalebrain
from scalebrain.errors import MissingVariableError


def test_node_features__equal_a_numpy_twin(ds):
    found = scalebrain.node_features(ds).compute()
    label, white = ds["node_label"].values, ds["white_reference"].values
    mm = np.stack([ds[a].values for a in "xyz"], 1).astype(float)
    for subject in ("sub-002", "sub-018"):
        t1w = ds["t1w"].sel(subject=subject).values.astype(float)
        gm = ds["gm"].sel(subject=subject).values.astype(float)
        lesion = ds["lesion_mask"].sel(subject=subject).values
        reference = t1w[white & ~lesion].mean()
        for node in (0, 100, 400, 884):
            inside = label == node
            keep = inside & ~lesion
            fraction = lesion[inside].mean() if inside.any() else 0.0
            row = found.sel(subject=subject).isel(node=node)
            if not keep.any() or fraction > 0.5:
                assert np.isnan(row["node_features"]).all()
                continue
            center = np.array([ds[f"node_{a}"].values[node] for a in "xyz"]).astype(float)
            distance = np.linalg.norm(mm - center, axis=1)
            near = white & (distance <= max(10.0, distance[white].min() + 4.0))
            local, grey = t1w[near & ~lesion].mean(), t1w[keep].mean()
            pure = np.average(t1w[keep], weights=(gm[keep] + 0.01) ** 4)
            expected = [
                gm[keep].mean(),
                grey / reference,
                t1w[keep].std() / reference,
                (local - grey) / (0.5 * (local + grey)),
                (local - pure) / (0.5 * (local + pure)),
            ]
            np.testing.assert_allclose(row["node_features"], expected, rtol=1e-6)
            assert row["node_lesioned_fraction"].item() == pytest.approx(fraction)


def test_node_features__contrast_of_grey_matter_hardly_feels_a_thinner_cortex(ds):
    ds = ds.isel(subject=[0]).load()
    label = ds["node_label"].values
    rng = np.random.default_rng(0)
    found = []
    for share in (0.8, 0.5):  # of voxels that are grey matter alone; the others are mixed
        mixed = (label >= 0) & (rng.random(label.size) > share)
        gm = np.where(label >= 0, np.where(mixed, 0.3, 0.97), 0.0).astype(np.float32)
        t1w = np.where(label >= 0, 1000 - 250 * gm, 1000).astype(np.float32)
        made = ds.assign(t1w=ds["t1w"].copy(data=t1w[None]), gm=ds["gm"].copy(data=gm[None]))
        values = scalebrain.node_features(made, policy="as_is")["node_features"].mean("node")
        found.append({name: values.sel(feature=name).item() for name in values.feature.values})
    before, after = found
    assert before["contrast"] - after["contrast"] > 0.04
    assert abs(before["gm_contrast"] - after["gm_contrast"]) < 0.003


def test_node_features__do_not_depend_on_chunks_or_order(ds):
    expected = scalebrain.node_features(ds).compute()
    shuffled = ds.isel(subject=np.random.default_rng(0).permutation(ds.sizes["subject"]))
    found = scalebrain.node_features(shuffled.chunk(subject=3)).compute()
    for name in expected:
        np.testing.assert_array_equal(
            found[name].sel(subject=expected.subject).values, expected[name].values
        )


def test_node_features__lesioned_nodes_are_missing_and_as_is_are_not(ds):
    masked = scalebrain.node_features(ds).compute()
    lost = masked["node_lesioned_fraction"] > 0.5
    assert lost.any()
    assert np.isnan(masked["node_features"].values[lost.values]).all()
    plain = scalebrain.node_features(ds, policy="as_is").compute()
    filled = ~np.isnan(plain["node_features"]).all("feature")
    assert filled.values[lost.values].all()


def test_node_features__an_intact_node_without_intact_white_matter_nearby_is_missing(ds):
    lesion = np.zeros((1, ds.sizes["voxel"]), dtype=bool)
    white = ds["white_reference"].values
    lesion[0] = white & (ds["x"].values < 0)  # all white matter of the left
    made = ds.isel(subject=[0]).assign(lesion_mask=(("subject", "voxel"), lesion))
    found = scalebrain.node_features(made).compute().isel(subject=0)
    missing = np.isnan(found["node_features"]).all("feature")
    left = (ds["node_x"].values < -15) & np.isin(np.arange(885), ds["node_label"].values)
    intact = left & (found["node_lesioned_fraction"].values == 0)
    assert intact.sum() > 100
    assert missing.values[intact].mean() > 0.9
    assert not missing.values[
        (ds["node_x"].values > 15) & np.isin(np.arange(885), ds["node_label"].values)
    ].any()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", object])
def test_node_features__a_mask_that_is_not_bool_is_one_error(ds, dtype):
    given = ds.assign(lesion_mask=ds["lesion_mask"].astype(dtype))
    for function in (scalebrain.node_features, scalebrain.lesion_load, scalebrain.lesion_measures):
        with pytest.raises(MissingVariableError, match=r"dtype .* Make it bool") as found:
            function(given)
        assert "lesion mask (label" not in str(found.value)
    made = given.assign(lesion_mask=given["lesion_mask"] > 0)  # the way out
    assert made["lesion_mask"].dtype == bool
    with pytest.raises(MissingVariableError, match="Give every stroke subject a lesion mask"):
        scalebrain.lesion_load(ds.drop_vars("lesion_mask"))


def test_node_features__grey_matter_that_is_no_number_is_one_error(ds):
    with pytest.raises(MissingVariableError, match="'gm' has dtype object"):
        scalebrain.node_features(ds.assign(gm=ds["gm"].astype(object)))
