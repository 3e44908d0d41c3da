"""How long the whole multiverse takes: four lesion policies, 501 people, 18 regions.

python -m benchmarks.multiverse [--replicates 1000]
"""

import argparse
import os
import time

import numpy as np
import xarray as xr

from benchmarks.sem_calibration import cohort_sizes
from scalebrain.stats.multiverse import multiverse

NETWORKS = ("SMN", "FPN", "DAN", "VLN", "DMN", "SAL", "AUD", "VIS", "LIM")
GOAL_S = 120.0


def people(seed: int) -> xr.Dataset:
    """501 people with a lesion in 34 unequal cohorts, and brain ages of 18 regions."""
    rng = np.random.default_rng(seed)
    sizes = cohort_sizes(rng)
    cohort = np.repeat(np.arange(len(sizes)), sizes)
    n = len(cohort)
    side = rng.choice(["L", "R"], n)
    regions = [f"{network}_{s}" for network in NETWORKS for s in "LR"]
    own = np.array([region[-1] for region in regions])[None] == side[:, None]
    volume = np.exp(rng.normal(2.5, 1.2, n))
    cst = np.clip(rng.beta(1, 4, n) + 0.05 * np.log(volume), 0, 1)
    pad = rng.normal(0, 5, (n, 18)) + rng.normal(0, 1.5, (len(sizes), 18))[cohort]
    pad += np.where(own, 1.5 * np.log(volume)[:, None], -0.2 * np.log(volume)[:, None])
    motor = np.clip(0.8 - 0.6 * cst + rng.normal(0, 0.2, n), 0, 1)
    motor[rng.random(n) < 0.1] = np.nan
    tract = np.where(np.array(["L", "R"])[None] == side[:, None], cst[:, None], 0.0)
    return xr.Dataset(
        {
            "brain_pad_corrected": (("subject", "region"), pad),
            "calibration_slope": ("region", rng.uniform(0.5, 0.9, 18)),
            "tract_load": (("subject", "tract"), tract),
            "lesion_volume": ("subject", volume),
            "lesion_hemisphere": ("subject", side.astype(object)),
            "motor_score": ("subject", motor),
            "days_post_stroke": ("subject", np.exp(rng.normal(6.5, 0.6, n))),
            "icv": ("subject", rng.normal(1500, 100, n)),
        },
        coords={
            "subject": [f"sub-{k:03d}" for k in range(n)],
            "region": regions,
            "tract": ["CST_L", "CST_R"],
            "age": ("subject", rng.uniform(40, 80, n)),
            "sex": ("subject", rng.choice(["F", "M"], n).astype(object)),
            "cohort": ("subject", np.array([f"c{k:02d}" for k in cohort], dtype=object)),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=1000)
    args = parser.parse_args()
    ds = people(1)
    rng = np.random.default_rng(2)
    pad = ds["brain_pad_corrected"]
    policies = {}
    for name in ("mask_nodes", "enantiomorphic", "exclude_region"):
        noise = xr.DataArray(rng.normal(0, 1, pad.shape), dims=pad.dims)
        policies[name] = ds.assign(brain_pad_corrected=pad + noise)
    start, used = time.perf_counter(), time.process_time()
    result = multiverse(ds, policies=policies, n_boot=args.replicates)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    sizes = result.sizes
    print(
        f"{sizes['effect']} effects x {sizes['specification']} specifications x "
        f"{args.replicates} replicates: {seconds:.1f} s ({cpu:.1f} s of processor), goal "
        f"{GOAL_S:.0f} s; load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(result["verdict"].to_series().value_counts().to_string())


if __name__ == "__main__":
    main()
