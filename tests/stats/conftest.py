"""A small cohort shaped like an opened store: references and strokes, with gaps."""

import numpy as np
import pytest
import xarray as xr

NETWORKS = ("SMN", "FPN", "DAN", "VLN", "DMN", "SAL", "AUD", "VIS", "LIM")


@pytest.fixture
def cohort() -> xr.Dataset:
    """30 references and 60 strokes of 6 cohorts; lazy, with the gaps that real data have."""
    rng = np.random.default_rng(0)
    n_reference, n = 30, 90
    regions = [f"{network}_{side}" for network in NETWORKS for side in "LR"]
    stroke = np.arange(n) >= n_reference
    hemisphere = np.where(stroke, rng.choice(["L", "R"], n), "unknown").astype(object)
    hemisphere[-1] = "bilateral"
    own = np.array([region[-1] for region in regions])[None] == hemisphere[:, None]
    own_tract = np.array(["L", "R"])[None] == hemisphere[:, None]
    cst = rng.beta(1, 4, n)
    volume = np.where(stroke, np.exp(rng.normal(2.5, 1, n)), np.nan)
    volume[n_reference + 7] = 0.0
    cohort = np.array([f"site{k % 6}" for k in range(n)], dtype=object)
    pad = rng.normal(0, 4, (n, 18)) + rng.normal(0, 1.5, (6, 18))[np.arange(n) % 6]
    pad += np.where(
        own & stroke[:, None], 1.2 * (np.log(np.nan_to_num(volume, nan=1) + 1))[:, None], 0
    )
    pad[n_reference + 2, 4] = np.nan
    motor = np.clip(0.75 - 0.8 * cst + rng.normal(0, 0.15, n), 0, 1)
    motor = np.where(stroke, motor, np.nan)
    motor[n_reference + 3] = np.nan
    days = np.where(stroke, np.exp(rng.normal(6.5, 0.6, n)), np.nan)
    load = np.where(own, rng.beta(1, 6, (n, 18)), rng.beta(1, 60, (n, 18)))
    tract = np.where(own_tract, cst[:, None], 0.0)
    tract[~stroke], load[~stroke] = np.nan, np.nan
    text = np.dtypes.StringDType()
    return xr.Dataset(
        {
            "t1w": (("subject", "voxel"), np.zeros((n, 11), dtype=np.float32)),
            "brain_pad_corrected": (("subject", "region"), pad),
            "calibration_slope": ("region", rng.uniform(0.5, 0.9, 18)),
            "lesion_load": (("subject", "region"), load),
            "tract_load": (("subject", "tract"), tract),
            "tract_load_weighted": (("subject", "tract"), 7 * tract + rng.normal(0, 0.1, (n, 2))),
            "tract_load_max": (("subject", "tract"), tract**0.8),
            "lesion_volume": ("subject", volume),
            "lesion_hemisphere": ("subject", hemisphere),
            "motor_score": ("subject", motor),
            "days_post_stroke": ("subject", days),
            "icv": ("subject", rng.normal(1500, 100, n)),
            "included": ("subject", np.arange(n) != n - 2),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "region": regions,
            "tract": ["CST_L", "CST_R"],
            "age": ("subject", rng.uniform(40, 80, n)),
            "sex": ("subject", rng.choice(["F", "M"], n).astype(text)),
            "cohort": ("subject", cohort),
            "group": ("subject", np.where(stroke, "stroke", "reference").astype(object)),
        },
    ).chunk({"subject": 16})
