import numpy as np
import pytest

import scalebrain


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
            expected = [
                gm[keep].mean(),
                grey / reference,
                t1w[keep].std() / reference,
                (local - grey) / (0.5 * (local + grey)),
            ]
            np.testing.assert_allclose(row["node_features"], expected, rtol=1e-6)
            assert row["node_lesioned_fraction"].item() == pytest.approx(fraction)


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
