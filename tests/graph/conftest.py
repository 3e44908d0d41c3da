import numpy as np
import pytest
import xarray as xr

from scalebrain.atlas.parcels import nodes


def cohort(n, seed=0):
    """References whose node features carry age and a regional deviation, in noise."""
    rng = np.random.default_rng(seed)
    parts = nodes()
    codes, where = np.unique(parts.parcel, return_inverse=True)
    age = rng.uniform(45, 82, n)
    shared, own = rng.standard_normal((n, 1)), rng.standard_normal((n, codes.size))
    deviation = 4 * (np.sqrt(0.5) * shared + np.sqrt(0.5) * own)
    biological = (age[:, None] + deviation)[:, where] - 60
    x = np.empty((n, len(parts.parcel), 4))
    for f, (slope, noise) in enumerate([(-0.004, 0.06), (0.002, 0.04), (0, 0.02), (-0.005, 0.05)]):
        x[..., f] = 1 + slope * biological + noise * rng.standard_normal(biological.shape)
    return xr.Dataset(
        {
            "node_features": (("subject", "node", "feature"), x),
            "node_parcel": ("node", parts.parcel),
            "edge_source": ("edge", parts.edges[:, 0]),
            "edge_target": ("edge", parts.edges[:, 1]),
        },
        coords={
            "subject": [f"sub-{i:04d}" for i in range(n)],
            "age": ("subject", age),
            "group": ("subject", ["reference"] * n),
            "feature": ["gm_mean", "t1w_mean", "t1w_sd", "contrast"],
        },
        attrs={"space": "MNI152NLin2009aSym", "simulated": "true"},
    )


@pytest.fixture(scope="session")
def references():
    return cohort(80)


@pytest.fixture(scope="session")
def model(references):
    from scalebrain import BrainAgeModel
    from scalebrain.graph.train import Training

    return BrainAgeModel.fit(references, training=Training(epochs=3))
