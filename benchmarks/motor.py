"""Motor prediction on simulated people whose truth is known.

``python -m benchmarks.motor`` prints, for 501 simulated people in 34 unequal cohorts, how often the
true causes come out on top of all predictors, whether p values are uniform where nothing causes
anything, and how often the intervals hold the outcome. ``--full-time`` times one full run instead.

The motor score is made of three causes, standardized: the load of the corticospinal tract (CST),
the salience network's load and the brain age of the contralesional frontoparietal region; and of
noise. Beside them stand all other predictors of a store, correlated with the causes as lesions and
brains are: 18 loads, 18 brain ages, volume, age, sex, days, and three measures of the CST load.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from sklearn.model_selection import KFold, cross_val_predict

from benchmarks.meta import cohort_sizes
from scalebrain.atlas.regions import NETWORKS
from scalebrain.cluster.client import open_client
from scalebrain.harmonization.transformer import ComBat
from scalebrain.predict.learners import LEARNERS, make_pipeline
from scalebrain.predict.motor import predict_motor

CAUSES = (
    "tract_loads:CST_ipsilesional",
    "lesion_load:SAL_ipsilesional",
    "brain_pad_corrected:FPN_contralesional",
)
EFFECTS = {"first": (-0.355, -0.20, 0.20), "second": (-0.355, -0.30, 0.40)}
#: How often the elastic net is to have all three on top.
GOALS = {"first": 0.40, "second": 0.90}


def z(values):
    return (values - values.mean(axis=0)) / values.std(axis=0)


def simulate(rng, effects, people=501, cohorts=34, cohort_sd=0.2):
    """One data set, on lesional sides; `cohort_sd` is of the noise, which has unit variance."""
    codes = np.repeat(np.arange(cohorts), cohort_sizes(rng, people, cohorts))
    networks = list(NETWORKS)
    regions = [f"{n}_{s}" for n in networks for s in ("ipsilesional", "contralesional")]
    volume = rng.normal(2.0, 1.3, people)  # natural log of mL
    size = z(volume)
    place = rng.normal(size=(people, 9)) @ _neighbors(9)
    damage = 0.6 * size[:, None] + 0.8 * place  # what a network loses, before it is a fraction
    ipsi = np.clip(0.25 * np.exp(damage - 1.0) - 0.03, 0, 1)
    contra = np.where(rng.random((people, 9)) < 0.03, rng.beta(1, 30, (people, 9)), 0)
    motor_place = place[:, networks.index("SMN")]
    tract = 0.55 * size + 0.35 * motor_place + 0.75 * rng.normal(size=people)
    tracts = [
        np.clip(0.3 * np.exp(0.8 * (z(tract) + 0.3 * rng.normal(size=people)) - 0.6), 0, 1)
        for _ in range(3)
    ]
    common, network = rng.normal(size=(people, 1)), rng.normal(size=(people, 9))
    level = 0.3 * rng.normal(size=(cohorts, 18))[codes]
    pad = {}
    for k, name in enumerate(networks):
        for side in ("ipsilesional", "contralesional"):
            own = 0.6 * common[:, 0] + 0.35 * network[:, k] + 0.7 * rng.normal(size=people)
            own += (0.2 if side == "ipsilesional" else 0) * size
            pad[f"{name}_{side}"] = own
    pads = np.stack([pad[region] for region in regions], axis=1) + level
    loads = np.stack([ipsi, contra], axis=2).reshape(people, 18)
    causes = np.stack(
        [
            z(np.mean([z(one) for one in tracts], axis=0)),
            z(loads[:, regions.index("SAL_ipsilesional")]),
            z(pads[:, regions.index("FPN_contralesional")]),
        ],
        axis=1,
    )
    signal = causes @ np.array(effects)
    noise = cohort_sd * rng.normal(size=cohorts)[codes]
    noise += np.sqrt(1 - cohort_sd**2) * rng.normal(size=people)
    motor = signal + np.sqrt(1 - signal.var()) * noise
    by_region, by_tract = ("subject", "region"), ("subject", "tract")
    names = ("tract_load", "tract_load_weighted", "tract_load_max")
    return xr.Dataset(
        {
            "motor_score": ("subject", 0.6 + 0.25 * motor),
            "brain_pad_corrected": (by_region, 4 * pads),
            "calibration_slope": ("region", np.ones(18)),
            "lesion_load": (by_region, loads),
            "lesion_volume": ("subject", np.exp(volume)),
            "days_post_stroke": ("subject", 180 + np.exp(rng.normal(6, 1, people))),
        }
        | {
            name: (by_tract, np.stack([one, np.zeros(people)], axis=1))
            for name, one in zip(names, tracts, strict=True)
        },
        coords={
            "subject": [f"sub-{k:04d}" for k in range(people)],
            "region": regions,
            "tract": ["CST_ipsilesional", "CST_contralesional"],
            "age": ("subject", rng.uniform(40, 85, people)),
            "sex": ("subject", rng.choice(["F", "M"], people).astype(object)),
            "cohort": ("subject", np.array([f"c{k:02d}" for k in codes], dtype=object)),
        },
    )


def _neighbors(n):
    """Mixing that correlates neighboring networks by about 0.4."""
    near = np.eye(n) + 0.25 * (np.eye(n, k=1) + np.eye(n, k=-1))
    return near / np.sqrt((near**2).sum(axis=0))


def ranking(seeds, learners, sets, people=501, cohorts=34):
    """How often the causes come first, and how often intervals hold the outcome."""
    for name in sets:
        for learner in learners:
            first, three, shap_first, shap_three = [], [], [], []
            covered, flagged, r2 = [], [], []
            start = time.perf_counter()
            for seed in range(seeds):
                ds = simulate(np.random.default_rng([11, seed]), EFFECTS[name], people, cohorts)
                out = predict_motor(
                    ds,
                    feature_groups=["combined"],
                    learners=[learner],
                    severe_below=-10.0,  # nobody: the classifiers are not needed here
                    n_permutations=0,
                    n_boot=2,
                    seed=seed,
                )
                for measure, firsts, tops in (
                    ("importance", first, three),
                    ("shap_importance", shap_first, shap_three),
                ):
                    order = out[measure][0].to_series().nlargest(3).index
                    firsts.append(order[0] == CAUSES[0])
                    tops.append(set(order) == set(CAUSES))
                covered.append(float(out["interval_covered"].item()))
                flagged.append(float(out["unlike_training"].mean()))
                r2.append(float(out["score"].sel(metric="r2").item()))
            row = {
                "effects": EFFECTS[name],
                "learner": learner,
                "seeds": seeds,
                "R2": np.mean(r2),
                "CST first": np.mean(first),
                "all three on top": np.mean(three),
                "goal": GOALS[name],
                "SHAP: CST first": np.mean(shap_first),
                "SHAP: all three on top": np.mean(shap_three),
                "90% intervals cover": np.mean(covered),
                "said to be unlike training": np.mean(flagged),
                "seconds": round(time.perf_counter() - start),
            }
            tell(row)


def uniformity(data_sets, learners, n_permutations, retune, people=120, cohorts=8):
    """p values where nothing has an effect; ties of R2 are broken at random."""
    for learner in learners:
        p, plain = [], []
        start = time.perf_counter()
        for seed in range(data_sets):
            rng = np.random.default_rng([12, seed])
            ds = simulate(rng, (0.0, 0.0, 0.0), people, cohorts)
            out = predict_motor(
                ds,
                feature_groups=["brain_age"],
                learners=[learner],
                severe_below=-10.0,
                n_permutations=n_permutations,
                n_boot=2,
                n_repeats=0,
                n_trees=20,
                search_anew=[learner] if retune else [],
                seed=seed,
            )
            null = out["null_r2"].values[0]
            real = float(out["score"].sel(metric="r2").item())
            above = (null > real + 1e-10).sum()
            ties = (np.abs(null - real) <= 1e-10).sum()
            p.append((above + rng.random() * (ties + 1)) / (n_permutations + 1))
            plain.append(float(out["p_permutation"][0]))
        plain = np.array(plain)
        tell(
            {
                "p values of no effect": learner,
                "settings": "searched anew" if retune else "held",
                "data sets": data_sets,
                "permutations": n_permutations,
                "KS p": scipy.stats.kstest(p, "uniform").pvalue,
                "p <= 0.05": (plain <= 0.05).mean(),
                "p <= 0.2": (plain <= 0.2).mean(),
                "p <= 0.5": (plain <= 0.5).mean(),
                "seconds": round(time.perf_counter() - start),
            }
        )


def coverage(data_sets):
    """Intervals of 90 % and 80 % with few and with many cohorts."""
    for people, cohorts, wanted in ((501, 34, 0.9), (501, 34, 0.8), (150, 6, 0.9), (58, 6, 0.9)):
        covered, kinds, width = [], set(), []
        for seed in range(data_sets):
            ds = simulate(np.random.default_rng([13, seed]), EFFECTS["first"], people, cohorts)
            out = predict_motor(
                ds,
                feature_groups=["combined"],
                learners=["elastic_net"],
                severe_below=-10.0,
                n_permutations=0,
                n_boot=2,
                n_repeats=0,
                coverage=wanted,
                seed=seed,
            )
            covered.append(float(out["interval_covered"].item()))
            kinds |= set(out.attrs["interval_over"])
            width.append(float((out["interval_high"] - out["interval_low"]).mean()))
        tell(
            {
                "people": people,
                "cohorts": cohorts,
                "wanted": wanted,
                "data sets": data_sets,
                "covered": np.mean(covered),
                "Monte Carlo error": np.std(covered) / np.sqrt(data_sets),
                "mean width": np.mean(width),
                "quantile over": sorted(kinds),
            }
        )


def canary(data_sets, learners):
    """Predictors that tell nothing but the cohort, and noise harmonized before the split."""
    options = {"n_permutations": 0, "n_boot": 2, "n_repeats": 0}
    found = {}
    for seed in range(data_sets):
        rng = np.random.default_rng([15, seed])
        codes = np.repeat(np.arange(12), cohort_sizes(rng, 120, 12))
        level = rng.permutation(np.linspace(0.2, 0.8, 12))[codes]
        y = level + 0.1 * rng.normal(size=120)
        names = [f"x{k}" for k in range(20)]

        def dataset(x, y=y, codes=codes, names=names):
            columns = {name: ("subject", x[:, k]) for k, name in enumerate(names)}
            cohort = ("subject", np.array([f"c{k:02d}" for k in codes]))
            return xr.Dataset({"motor_score": ("subject", y), "cohort": cohort} | columns)

        identity = rng.normal(size=(12, 20))[codes]
        noise = rng.normal(size=(120, 20)) + 0.5 * rng.normal(size=(12, 20))[codes]
        frame = pd.DataFrame(noise, columns=names).assign(cohort=codes.astype(str), motor=y)
        before = ComBat(batch="cohort", covariates=["motor"]).fit_transform(frame)
        cases = {
            "cohort identity": (dataset(identity), {}),
            "noise, harmonized before the split": (dataset(before), {}),
            "noise, harmonized in the folds": (dataset(noise), {"harmonize": ["x"]}),
            "noise, as it is": (dataset(noise), {}),
        }
        for case, (ds, more) in cases.items():
            out = predict_motor(
                ds, feature_groups={"x": names}, learners=learners, **options, **more
            )
            for learner in learners:
                scores = out["score"].sel(learner=learner).isel(feature_group=0)
                found.setdefault((case, learner), []).append(
                    [float(scores.sel(metric=metric)) for metric in ("r2", "auc")]
                )
        for learner in learners:  # what random folds make of the identity
            model = make_pipeline(learner, **({"alpha": 0.01} if learner == "elastic_net" else {}))
            predicted = cross_val_predict(
                model, identity, y, cv=KFold(12, shuffle=True, random_state=seed)
            )
            r2 = 1 - np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2)
            found.setdefault(("cohort identity, random folds", learner), []).append([r2, np.nan])
    for (case, learner), values in found.items():
        r2, auc = np.mean(values, axis=0)
        tell({"canary": case, "learner": learner, "data sets": data_sets, "R2": r2, "AUC": auc})


def full_time(people, cohorts, n_permutations, workers):
    """One run as a study would do it."""
    ds = simulate(np.random.default_rng(14), EFFECTS["first"], people, cohorts)
    load = Path("/proc/loadavg").read_text().split()[:3]
    with open_client(workers):
        start = time.perf_counter()
        out = predict_motor(ds, n_permutations=n_permutations)
        seconds = time.perf_counter() - start
    tell(
        {
            "people": people,
            "cohorts": cohorts,
            "permutations": n_permutations,
            "learners": list(LEARNERS),
            "seconds": seconds,
            "load averages before": load,
            "load averages after": Path("/proc/loadavg").read_text().split()[:3],
        }
    )
    gain = out["gain"].sel(metric="r2", versus="lesion").to_series()
    tell({"gain of R2 over lesion": {k: round(v, 3) for k, v in gain.items()}})


def tell(row):
    shown = {k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(shown), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument(
        "--quick", action="store_true", help="two seeds of 120 people, few data sets: does it run?"
    )
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS)
    parser.add_argument(
        "--part",
        nargs="+",
        default=["ranking", "uniformity", "canary", "coverage"],
        choices=["ranking", "uniformity", "canary", "coverage"],
    )
    parser.add_argument("--sets", nargs="+", default=list(EFFECTS), choices=list(EFFECTS))
    parser.add_argument("--data-sets", type=int, default=200, help="of uniformity and coverage")
    parser.add_argument("--held", action="store_true", help="uniformity at held settings")
    parser.add_argument("--permutations", type=int, default=39, help="of uniformity")
    parser.add_argument("--full-time", action="store_true", help="time one full run, nothing else")
    parser.add_argument("--workers", default="threads", help="'local', 'threads' or an address")
    options = parser.parse_args()
    workers = None if options.workers == "local" else options.workers
    if options.full_time:
        sizes = (60, 6, 5) if options.quick else (501, 34, 100)
        full_time(*sizes, workers)
        return
    seeds = 2 if options.quick else options.seeds
    data_sets = 3 if options.quick else options.data_sets
    permutations = 9 if options.quick else options.permutations
    with open_client(workers):
        if "ranking" in options.part:
            ranking(
                seeds, options.learners, options.sets, *((120, 8) if options.quick else (501, 34))
            )
        if "uniformity" in options.part:
            uniformity(data_sets, options.learners, permutations, not options.held)
        if "canary" in options.part:
            canary(1 if options.quick else 3, options.learners)
        if "coverage" in options.part:
            coverage(data_sets)


if __name__ == "__main__":
    main()
