"""How well regional brain age is read, on simulated people whose truth is known.

    python -m benchmarks.brain_age [--train 2000] [--held-out 5000] [--retest 300]
        [--resolution 3] [--nodes volume] [--seed 0] [--seeds 1] [--layers cheb,spectral,gcn]
        [--out FILE]

Of each seed references are simulated, ingested and given node features; a model of default
settings is trained on the first of them, and the others, whom it never saw, are predicted:

- out-of-fold mean absolute error and correlation of the corrected brain-PAD with the true
  regional deviation, beside the simulator's oracle, the mean, and ridge regression on the same
  features in the same folds;
- how far a regression gets that is told the truth of the others: what the features hold of it;
- correlation of the corrected brain-PAD with age in the held-out, and how many of their ages
  the 90 % intervals hold;
- ICC(2,1) of the corrected brain-PAD of people of another seed, each in the scanner twice;
- correlation of that of one half of these people, whose scanners the model never saw, with the
  truth, as it is and less the shift of their site, which the other half tells.

What is left out of the simulation (defaces, motion, failed segmentations, disease) is left out of
the figures as well. They say how much of what can be known is found, not how real ages are read.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

import scalebrain
from scalebrain.graph.known import known_folds
from scalebrain.graph.model import BrainAgeModel, brain_age
from scalebrain.graph.train import Training
from scalebrain.pipeline import compute_features

GOALS = {
    "mae_over_oracle": "<= 1.10",
    "pad_r_over_oracle": ">= 0.90",
    "pad_age_r": "< 0.05",
    "coverage": "0.88-0.92",
    "icc": ">= 0.85",
}
N_COHORTS = 10


def store_of(folder: Path, args: argparse.Namespace, *, seed: int, n: int, scan: int = 0) -> Path:
    """Simulate references, ingest them and compute node features."""
    name = f"seed{seed}-scan{scan}"
    store = folder / f"{name}.zarr"
    if not (folder / f"{name}.done").exists():
        tree = scalebrain.simulate_cohort(
            folder / name,
            reference=n,
            stroke=0,
            cohorts=N_COHORTS,
            resolution=args.resolution,
            seed=seed,
            scan=scan,
            surfaces=args.nodes != "volume",
            truth=folder / f"{name}-truth.json",
        )
        scalebrain.ingest(tree, store, resolution=args.resolution)
        compute_features(store, nodes=args.nodes)
        (folder / f"{name}.done").touch()
    return store


def columns(ds: xr.Dataset, model: BrainAgeModel) -> np.ndarray:
    """Node features (subject, node, feature), in memory."""
    return np.asarray(ds["node_features"].sel(feature=list(model.features)).values, np.float64)


def ridge(
    x: np.ndarray, target: np.ndarray, fold: np.ndarray, model: BrainAgeModel, *beside: np.ndarray
) -> np.ndarray:
    """Out-of-fold ridge regression (subject, region) on a region's own features, and `beside`."""
    out = []
    for members, wanted in zip(model.graph.members, target.T, strict=True):
        own = np.column_stack([x[:, members].reshape(len(x), -1), *beside])
        found = np.empty(len(x))
        for k in np.unique(fold):
            train, test = fold != k, fold == k
            scale = StandardScaler().fit(own[train])
            fitted = RidgeCV(np.logspace(0, 5, 16)).fit(scale.transform(own[train]), wanted[train])
            found[test] = fitted.predict(scale.transform(own[test]))
        out.append(found)
    return np.stack(out, axis=1)


def without_age(pad: np.ndarray, age: np.ndarray) -> np.ndarray:
    """What a line on age leaves of brain-PAD (subject, region)."""
    line = np.column_stack([np.ones_like(age), age])
    return np.asarray(pad - line @ np.linalg.lstsq(line, pad, rcond=None)[0])


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r (region,) of columns."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return np.asarray((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0)))


def icc(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """ICC(2,1) (region,): absolute agreement of single scans (Shrout and Fleiss 1979)."""
    both = np.stack([first, second])
    n = both.shape[1]
    grand = both.mean(axis=(0, 1))
    between = 2 * ((both.mean(axis=0) - grand) ** 2).sum(axis=0) / (n - 1)
    scans = n * ((both.mean(axis=1) - grand) ** 2).sum(axis=0)
    residual = both - both.mean(axis=0) - both.mean(axis=1)[:, None] + grand
    within = (residual**2).sum(axis=(0, 1)) / (n - 1)
    return np.asarray((between - within) / (between + within + 2 * (scans - within) / n))


def at_new_sites(scans: xr.Dataset, pad: xr.DataArray, true: xr.DataArray) -> dict[str, Any]:
    """Correlation of brain-PAD with the truth at sites without and with their shift taken out.

    One half of the people of each site tells the shift, the other half is scored.
    """
    ds = scans.drop_dims(["voxel", "vertex", "node"], errors="ignore").assign(
        brain_pad_corrected=pad
    )
    teaches = np.arange(ds.sizes["subject"]) % 2 == 0
    shift = scalebrain.site_shift(ds.isel(subject=teaches))["site_shift"]
    rest = ds.isel(subject=~teaches)
    truth = true.sel(subject=rest["subject"].values, region=rest["region"].values).values
    left = rest["brain_pad_corrected"] - shift.sel(cohort=rest["cohort"])
    return {
        "new_sites_r": correlation(rest["brain_pad_corrected"].values, truth),
        "new_sites_r_shifted": correlation(left.values, truth),
    }


def one_seed(folder: Path, seed: int, args: argparse.Namespace, layer: str) -> dict[str, Any]:
    """Train and score one model."""
    n = args.train + args.held_out
    store = store_of(folder, args, seed=seed, n=n)
    ds = scalebrain.open_store(store)
    people, others = ds.isel(subject=slice(args.train)), ds.isel(subject=slice(args.train, None))
    start = time.perf_counter()
    model = BrainAgeModel.fit(people, training=Training(layer=layer))
    seconds = time.perf_counter() - start
    model.save(folder / f"model-{layer}-{seed}")  # workers read it from there
    model = BrainAgeModel.load(folder / f"model-{layer}-{seed}")
    truth = json.loads((folder / f"seed{seed}-scan0-truth.json").read_text())
    true = scalebrain.open_store(folder / f"seed{seed}-scan0-truth.zarr")["true_deviation"]
    regions = list(model.graph.regions)
    oracle = {
        key: np.array([truth["oracle"]["regions"][r][key] for r in regions])
        for key in ("mae", "r_pad", "r_deviation", "mae_of_mean")
    }
    own = brain_age(people, model).compute()
    age = people["age"].values.astype(np.float64)
    deviation = true.sel(subject=people["subject"].values, region=regions).values
    mae = np.abs(own["brain_pad"].values).mean(axis=0)
    x, fold = columns(people, model), known_folds(people, model)
    ages = ridge(x, np.repeat(age[:, None], len(regions), axis=1), fold, model)
    ridge_mae = np.abs(ages - age[:, None]).mean(axis=0)
    told = ridge(x, deviation, fold, model, age)
    pad_r = correlation(own["brain_pad_corrected"].values, deviation)
    found = {
        "mae": mae,
        "mae_over_oracle": mae / oracle["mae"],
        "mae_of_mean": oracle["mae_of_mean"],
        "mae_over_ridge": mae / ridge_mae,
        "pad_r": pad_r,
        "pad_r_of_ridge": correlation(without_age(ages - age[:, None], age), deviation),
        "pad_r_over_oracle": pad_r / oracle["r_pad"],
        "pad_r_over_best": pad_r / oracle["r_deviation"],
        "told_r_over_oracle": correlation(told, deviation) / oracle["r_pad"],
    }
    if args.held_out:
        new = brain_age(others, model).compute()
        aged = others["age"].values.astype(np.float64)
        inside = (new["brain_age_low"] <= others["age"]) & (others["age"] <= new["brain_age_high"])
        pad = new["brain_pad_corrected"].values
        found["pad_age_r"] = np.abs(correlation(pad, np.repeat(aged[:, None], pad.shape[1], 1)))
        found["coverage"] = inside.transpose("subject", "region").values.mean(axis=0)
    if args.retest:
        pads = []
        for scan in (0, 1):
            again = store_of(folder, args, seed=seed + 1000, n=args.retest, scan=scan)
            scans = scalebrain.open_store(again)
            pads.append(brain_age(scans, model)["brain_pad_corrected"].compute())
        found["icc"] = icc(*(pad.values for pad in pads))
        other = scalebrain.open_store(folder / f"seed{seed + 1000}-scan1-truth.zarr")
        found |= at_new_sites(scans, pads[-1], other["true_deviation"])
    kept = model.about["convolved_folds"]
    about = {"layer": layer, "seed": seed, "train_s": seconds, "convolved_folds": kept}
    return about | {"regions": regions} | found


def main() -> None:
    """Print a table of regions and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--retest", type=int, default=300)
    parser.add_argument("--resolution", type=float, default=3.0)
    parser.add_argument("--nodes", default="volume", help="volume, or surface-3, -4 or -5.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layers", default="cheb")
    parser.add_argument("--folder", type=Path, help="keep simulated cohorts here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch, scalebrain.open_client():
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for layer in args.layers.split(","):
            for seed in range(args.seed, args.seed + args.seeds):
                rows.append(one_seed(folder, seed, args, layer))
    numbers = [key for key in rows[0] if isinstance(rows[0][key], np.ndarray)]
    for layer in args.layers.split(","):
        chosen = [row for row in rows if row["layer"] == layer]
        means = {key: np.mean([row[key] for row in chosen], axis=0) for key in numbers}
        seconds = np.mean([row["train_s"] for row in chosen])
        kept = [row["convolved_folds"] for row in chosen]
        print(
            f"{layer}: {len(chosen)} seeds, {args.train} in training ({seconds:.0f} s), folds that "
            f"kept convolutions {kept}, load {os.getloadavg()[0]:.1f}"
        )
        print("region " + " ".join(f"{key:>18}" for key in numbers))
        for r, region in enumerate(chosen[0]["regions"]):
            print(f"{region:6} " + " ".join(f"{means[key][r]:18.3f}" for key in numbers))
        for word, pick in (("lowest", np.min), ("mean", np.mean), ("highest", np.max)):
            print(f"{word:7}" + " ".join(f"{pick(means[key]):18.3f}" for key in numbers))
        print("goals: " + ", ".join(f"{key} {GOALS[key]}" for key in numbers if key in GOALS))
    if args.out:
        plain = [
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}
            for row in rows
        ]
        args.out.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
