import numpy as np
import pytest
import xarray as xr

NETWORKS = ("SMN", "FPN", "DAN", "VLN", "DMN", "SAL", "AUD", "VIS", "LIM")


@pytest.fixture
def cohort() -> xr.Dataset:
    """Strokes of 6 cohorts and some references; motor score from the tract and SAL."""
    rng = np.random.default_rng(4)
    n_reference, n = 10, 82
    stroke = np.arange(n) >= n_reference
    regions = [f"{network}_{side}" for network in NETWORKS for side in "LR"]
    hemisphere = np.where(stroke, rng.choice(["L", "R"], n), "unknown").astype(object)
    own = np.array([region[-1] for region in regions])[None] == hemisphere[:, None]
    load = np.where(own, rng.beta(1, 5, (n, 18)), 0.0)
    cst = rng.beta(1, 3, n)
    sal = np.where(hemisphere == "R", load[:, 11], load[:, 10])
    motor = np.clip(0.95 - 0.9 * cst - 0.4 * sal + rng.normal(0, 0.08, n), 0, 1)
    motor[~stroke], motor[n_reference + 1] = np.nan, np.nan
    side = np.array(["L", "R"])[None] == hemisphere[:, None]
    tract = np.where(side, cst[:, None], 0.0)
    days = np.exp(rng.normal(6.5, 0.6, n))
    days[n_reference + 4] = np.nan
    hemisphere[-1] = "bilateral"
    site = np.array([f"site{k % 6}" for k in range(n)], dtype=object)
    site[n_reference + 9] = ""
    return xr.Dataset(
        {
            "t1w": (("subject", "voxel"), np.zeros((n, 5), dtype=np.float32)),
            "brain_pad_corrected": (("subject", "region"), rng.normal(0, 3, (n, 18))),
            "calibration_slope": ("region", rng.uniform(0.5, 0.9, 18)),
            "lesion_load": (("subject", "region"), load),
            "tract_load": (("subject", "tract"), tract),
            "tract_load_weighted": (("subject", "tract"), 7 * tract),
            "tract_load_max": (("subject", "tract"), tract**0.8),
            "lesion_volume": ("subject", np.where(stroke, np.exp(rng.normal(2, 1, n)), np.nan)),
            "lesion_hemisphere": ("subject", hemisphere),
            "motor_score": ("subject", motor),
            "days_post_stroke": ("subject", days),
            "included": ("subject", np.arange(n) != n - 2),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "region": regions,
            "tract": ["CST_L", "CST_R"],
            "age": ("subject", rng.uniform(40, 80, n)),
            "sex": ("subject", rng.choice(["F", "M"], n).astype(object)),
            "cohort": ("subject", site),
            "group": ("subject", np.where(stroke, "stroke", "reference").astype(object)),
        },
    ).chunk({"subject": 16})
