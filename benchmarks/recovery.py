"""Are the planted effects found, at the size of the published study? Many seeds, failures shown.

    python -m benchmarks.recovery [--seeds 20] [--reference 17791] [--stroke 501] [--cohorts 34]
        [--resolution 3] [--learners elastic_net] [--quick] [--out FILE]

Of each seed the people, lesions and motor scores of the simulator are drawn as for a cohort of
images, but no images: the features of a region are the log grey-matter volume and log contrast of
its parcels, with all that differs between people, cohorts and scans. Lesions are masks, and their
loads are those of the library. Ages come from a least-squares line per region in five folds, bias
correction and calibration slope as in the model; the network is left out, since twenty seeds of
17,791 people would take days. All that comes behind the brain ages is as in a study: inclusion,
sides, mixed models, path models with a bootstrap by cohort, motor prediction.

Printed for each effect: planted value, mean estimate and its standard error over the seeds, how
often the 95 % interval holds the planted value (19 of 20 are expected; 16 or fewer have a
probability of 1.6 %), how often it excludes zero. Of the path model, whose true values have no
formula, the planted value is that of the same model on the true deviations of all seeds' people.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import scalebrain
from scalebrain.atlas.space import template_grid
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.features.lesion import lesion_load, tract_load
from scalebrain.features.segments import store_grid, voxel_index
from scalebrain.graph.calibrate import fit_bias
from scalebrain.ingestion.geometry import static_variables
from scalebrain.predict.motor import predict_motor
from scalebrain.simulate.anatomy import anatomy, territory
from scalebrain.simulate.draw import parcel_latents, rescan_model
from scalebrain.simulate.factors import deviation_model, parcel_factors
from scalebrain.simulate.lesions import grow_lesion
from scalebrain.simulate.oracle import drawn_latents
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import cohort_effects, draw_people, generator
from scalebrain.simulate.recovery import compare_effects
from scalebrain.simulate.structural import planted_effects, structural_model

FORMULA = "brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex + days_post_stroke + icv"
FOLDS = 5
PREDICTORS = (
    "tract_loads:CST_ipsilesional",
    "lesion_load:SAL_ipsilesional",
    "brain_pad_corrected:FPN_contralesional",
)

Array = np.ndarray


def brain_ages(x: Array, age: Array, new: Array, new_age: Array) -> tuple[Array, Array]:
    """Corrected brain-PAD (subject, region) of new people, and the calibration slope."""
    factors = parcel_factors()
    fold = np.arange(len(age)) % FOLDS
    n_parcels = factors.average.shape[1]
    pads, slopes = [], []
    for row in factors.average:
        own = np.flatnonzero(row)
        columns = np.concatenate([own, own + n_parcels])
        design = np.column_stack([np.ones(len(x)), x[:, columns]])
        fresh = np.column_stack([np.ones(len(new)), new[:, columns]])
        corrected, slope = [], []
        for k in range(FOLDS):
            beta = np.linalg.lstsq(design[fold != k], age[fold != k], rcond=None)[0]
            held = fold == k
            a, b = fit_bias(age[held], (design[held] @ beta)[:, None])
            corrected.append(fresh @ beta - new_age - (a[0] + b[0] * new_age))
            slope.append(1 + b[0])
        pads.append(np.mean(corrected, axis=0))
        slopes.append(np.mean(slope))
    return np.stack(pads, axis=1), np.array(slopes)


def cohort(seed: int, options: argparse.Namespace, static: xr.Dataset) -> xr.Dataset:
    """Strokes of one seed: loads, motor scores, brain ages by region, and the true ones."""
    p = SimulationParameters()
    sites = cohort_effects(options.cohorts, seed, p)
    people = draw_people(0, options.stroke, options.cohorts, seed, p)
    brain, where = anatomy(options.resolution, p), territory(options.resolution, p)
    grown = [grow_lesion(person, brain, where, seed=seed, parameters=p) for person in people]
    outcome = structural_model(
        np.array([person.deviation for person in people]),
        hemisphere=np.array([person.hemisphere for person in people]),
        lesion_volume=np.array([lesion.volume for lesion in grown]),
        cst_load=np.array([lesion.cst_load for lesion in grown]),
        salience_load=np.array([lesion.salience_load for lesion in grown]),
        motor_noise=np.array([person.motor_noise for person in people]),
        parameters=p,
    )
    rng = generator(seed, "oracle", 1)
    n = options.reference
    age = rng.uniform(*p.reference_age, n)
    deviation, site = deviation_model(p).draw(rng, n), rng.integers(options.cohorts, size=n)
    drawn = drawn_latents(age[:, None], deviation, site, cohorts=sites, parameters=p, rng=rng)
    x = np.concatenate(drawn, axis=1)
    own_age = np.array([person.age for person in people])
    site = np.array([person.cohort for person in people])
    volume, contrast = parcel_latents(own_age[:, None], outcome.deviation, p)
    volume += np.array([person.volume for person in people]) + sites.volume[site, None]
    contrast += np.array([person.contrast for person in people]) + sites.contrast[site, None]
    volume += rescan_model(p.volume_rescan_sd).draw(rng, len(people))
    contrast += rescan_model(p.contrast_rescan_sd).draw(rng, len(people))
    pad, slope = brain_ages(x, age, np.concatenate([volume, contrast], axis=1), own_age)

    # the simulator has voxels in the order of a file (first axis fastest), the store by parcel
    grid = store_grid(static)
    voxel = np.full(grid.size, -1)
    voxel[voxel_index(static, grid)] = np.arange(static.sizes["voxel"])
    ijk = np.unravel_index(brain.inside, grid.shape, order="F")
    to_store = voxel[np.ravel_multi_index(ijk, grid.shape)]
    mask = np.zeros((len(people), static.sizes["voxel"]), dtype=bool)
    for row, lesion in zip(mask, grown, strict=True):
        row[to_store[lesion.voxels]] = True
    factors = parcel_factors()
    regions = list(factors.regions.regions)
    days = np.array([person.days_post_stroke for person in people])
    motor = np.where([person.motor_missing for person in people], np.nan, outcome.motor_score)
    by_region = ("subject", "region")
    ds = static.assign(
        lesion_mask=(("subject", "voxel"), mask),
        lesion_present=("subject", np.ones(len(people), dtype=bool)),
        lesion_hemisphere=("subject", np.array([person.hemisphere for person in people])),
        lesion_volume=("subject", np.array([lesion.volume for lesion in grown])),
        brain_pad_corrected=(by_region, pad),
        calibration_slope=(by_region, np.broadcast_to(slope, pad.shape)),
        true_deviation=(by_region, outcome.deviation @ factors.average.T),
        motor_score=("subject", motor),
        days_post_stroke=("subject", days),
        icv=("subject", np.array([person.icv for person in people])),
        included=("subject", days > 180),
        sex=("subject", np.array([person.sex for person in people])),
    ).assign_coords(
        subject=[f"sub-{person.subject}" for person in people],
        region=regions,
        age=("subject", own_age),
        cohort=("subject", np.array([sites.name[c] for c in site])),
        group=("subject", np.full(len(people), "stroke")),
    )
    ds.attrs["simulated"] = "true"
    loads = xr.merge([lesion_load(ds), tract_load(ds)], join="exact", compat="equals").compute()
    return ds.assign(loads.data_vars).drop_dims("voxel")


def one_seed(seed: int, options: argparse.Namespace, static: xr.Dataset) -> dict[str, Any]:
    """Fit everything to one seed."""
    ds = cohort(seed, options, static)
    effects = planted_effects(SimulationParameters())
    mixed = scalebrain.mixed_model(to_lesional_sides(ds), FORMULA)
    table = compare_effects(ds, mixed, effects)
    known = ds.assign(
        brain_pad_corrected=ds["true_deviation"],
        calibration_slope=xr.ones_like(ds["calibration_slope"]),
    )
    paths = scalebrain.sem(ds, n_boot=options.n_boot, seed=seed)
    exact = scalebrain.sem(known, n_boot=options.n_boot, seed=seed)
    tops = {}
    for learner in options.learners.split(","):
        out = predict_motor(
            ds,
            feature_groups=["combined"],
            learners=[learner],
            severe_below=-10.0,  # nobody: the classifiers are not needed here
            n_permutations=0,
            n_boot=2,
            seed=seed,
        )
        order = [str(x) for x in out["importance"][0].to_series().nlargest(6).index]
        tops[learner] = {"order": order, "r2": float(out["score"].sel(metric="r2").item())}
    return {
        "seed": seed,
        "effects": table,
        "paths": paths,
        "exact": exact,
        "tops": tops,
        "ds": known,
    }


def effect_rows(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Planted effects over the seeds."""
    rows = []
    for name, group in pd.concat([run["effects"] for run in runs]).groupby("effect", sort=False):
        estimate = group["estimate"].to_numpy()
        rows.append(
            {
                "effect": name,
                "planted": group["planted"].iloc[0],
                "mean": estimate.mean(),
                "se": estimate.std(ddof=1) / np.sqrt(len(estimate)),
                "ci_low": np.median(group["ci_low"]),
                "ci_high": np.median(group["ci_high"]),
                "held": int(group["inside"].sum()),
                "significant": int(((group["ci_low"] > 0) | (group["ci_high"] < 0)).sum()),
            }
        )
    return pd.DataFrame(rows)


def path_rows(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Standardized paths over the seeds, beside those of everyone's true deviations."""
    together = xr.concat(
        [
            run["ds"].assign_coords(
                subject=[f"{s}-{run['seed']}" for s in run["ds"]["subject"].values]
            )
            for run in runs
        ],
        dim="subject",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
    )
    true = scalebrain.sem(together, n_boot=0)["std_estimate"]
    rows = []
    for path in [str(x) for x in true["path"].values]:
        value = float(true.sel(path=path))
        row: dict[str, Any] = {"effect": path, "planted": value}
        for kind, words in (("exact", "true deviations"), ("paths", "brain-PAD")):
            fits = [run[kind].sel(path=path) for run in runs]
            low = np.array([float(f["std_ci_low"]) for f in fits])
            high = np.array([float(f["std_ci_high"]) for f in fits])
            row[f"mean, {words}"] = np.mean([float(f["std_estimate"]) for f in fits])
            row[f"held, {words}"] = int(((low <= value) & (value <= high)).sum())
            row[f"significant, {words}"] = int(((low > 0) | (high < 0)).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--reference", type=int, default=17_791)
    parser.add_argument("--stroke", type=int, default=501)
    parser.add_argument("--cohorts", type=int, default=34)
    parser.add_argument("--resolution", type=float, default=3.0, help="Of the masks, mm.")
    parser.add_argument("--n-boot", type=int, default=500)
    parser.add_argument("--learners", default="elastic_net")
    parser.add_argument("--quick", action="store_true", help="Few people: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.reference, options.stroke, options.cohorts = 2, 300, 80, 4
        options.resolution, options.n_boot = 5.0, 20
    return options


def main() -> None:
    """Print the tables of all seeds."""
    options = arguments()
    static = static_variables(template_grid(options.resolution))
    runs = []
    start = time.perf_counter()
    for seed in range(options.seeds):
        runs.append(one_seed(seed, options, static))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    effects, paths = effect_rows(runs), path_rows(runs)
    n = len(runs)
    print(
        f"\nOf {n} seeds: {options.reference} references, {options.stroke} strokes, "
        f"{options.cohorts} cohorts\n"
    )
    print("| effect | planted | mean (SE) | median interval | holds it | excludes zero |")
    print("|---|---|---|---|---|---|")
    for row in effects.itertuples():
        print(
            f"| {row.effect} | {row.planted:.3f} | {row.mean:.3f} ({row.se:.3f}) | "
            f"{row.ci_low:.2f} to {row.ci_high:.2f} | {row.held} | {row.significant} |"
        )
    print("\n| path, standardized | of all | " + " | ".join(c for c in paths.columns[2:]) + " |")
    print("|" + "---|" * len(paths.columns))
    for row in paths.to_dict("records"):
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in list(row.values())[1:]]
        print(f"| {row['effect']} | " + " | ".join(cells) + " |")
    print("\n| learner | CST first | all three on top | R2, mean | seeds |\n|---|---|---|---|---|")
    for learner in options.learners.split(","):
        tops = [run["tops"][learner] for run in runs]
        first = sum(top["order"][0].startswith("tract_loads") for top in tops)
        three = sum(set(top["order"][:3]) == set(PREDICTORS) for top in tops)
        r2 = np.mean([top["r2"] for top in tops])
        print(f"| {learner} | {first} | {three} | {r2:.3f} | {n} |")
        for run in runs:
            print(f"    seed {run['seed']}: {', '.join(run['tops'][learner]['order'][:4])}")
    if options.out:
        content = {
            "effects": effects.to_dict("records"),
            "paths": paths.to_dict("records"),
            "tops": [run["tops"] for run in runs],
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
