"""Mass-univariate mixed models beside lme4 and statsmodels, in one run.

    python -m benchmarks.mixed [--subjects 501] [--cohorts 34] [--vertices 20484] [--rounds 5]
                               [--permutations 1000] [--peers 60] [--quick] [--out FILE]

A thickness per vertex of fsaverage5 in cohorts of unequal size, five fixed effects, a random
intercept by cohort, REML. Timed in turn, round after round:

- ours: the whole of ``mixed_model`` on all vertices, Satterthwaite degrees of freedom, p, q and
  standardized estimates included, from an array in memory to the Dataset; divided by vertices;
- lme4: ``lmer`` on some of the vertices, ``refit`` of the same (which saves the set-up), and
  ``summary`` of lmerTest, which adds the degrees of freedom; R is started once a round and times
  itself;
- statsmodels: ``MixedLM(y, X, groups).fit(reml=True)`` with its default optimizers, without a
  formula, on the same vertices.

Then the permutations of one term, each a full fit with a search of its own, once; and how far
log-likelihoods lie from those of lme4 and statsmodels. Time of other processes is printed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from benchmarks.ingest import foreign_cpu, peak_memory
from scalebrain.stats.mixed import mixed_model

FIXED = "scale(log10(lesion_volume)) + age + sex + icv"
TESTED = "scale(log10(lesion_volume))"
GOALS = {"statsmodels": 2500.0, "lmer": 250.0}
R = """
suppressMessages({library(lme4); library(lmerTest)})
d <- read.csv(commandArgs(TRUE)[1]); y <- as.matrix(read.csv(commandArgs(TRUE)[2]))
d$y <- y[, 1]
f <- y ~ FIXED + (1 | cohort)
quiet <- function(e) suppressWarnings(suppressMessages(e))
m <- quiet(lme4::lmer(f, d)); s <- quiet(lmerTest::lmer(f, d))
seconds <- function(work) {
  start <- proc.time()[["elapsed"]]; lapply(seq_len(ncol(y)), work)
  proc.time()[["elapsed"]] - start
}
ll <- numeric(ncol(y))
fit <- seconds(function(k) { d$y <- y[, k]; ll[k] <<- logLik(quiet(lme4::lmer(f, d))) })
again <- seconds(function(k) quiet(refit(m, y[, k])))
df <- seconds(function(k) { d$y <- y[, k]; quiet(summary(lmerTest::lmer(f, d))) })
cat(fit, again, df, sprintf("%.15g", ll))
""".replace("FIXED", FIXED)


def sizes_of(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Unequal cohorts, the smallest of one or two people."""
    share = rng.gamma(1.0, 1.0, k)
    sizes = np.maximum(1, np.floor(share / share.sum() * (n - k))).astype(int) + (
        rng.random(k) > 0.1
    )
    while sizes.sum() != n:
        sizes[np.argmax(sizes)] += 1 if sizes.sum() < n else -1
    return sizes


def make_cohort(n: int, k: int, n_vertices: int) -> xr.Dataset:
    """Thickness of people in cohorts; differences between cohorts vary from vertex to vertex."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(k), sizes_of(n, k, rng))
    age = rng.uniform(40, 85, n)
    between = rng.choice([0.0, 0.03, 0.1, 0.2], n_vertices)
    y = rng.normal(0, 0.2, (n, n_vertices))
    y += (rng.normal(size=(k, n_vertices)) * between)[codes]
    y += 2.8 - 0.004 * (age[:, None] - 60)
    return xr.Dataset(
        {"thickness": (("subject", "vertex"), y)},
        coords={
            "subject": [f"sub-{i:04d}" for i in range(n)],
            "age": ("subject", age),
            "sex": ("subject", rng.choice(["F", "M"], n)),
            "icv": ("subject", rng.normal(1500, 120, n)),
            "lesion_volume": ("subject", np.exp(rng.normal(2.5, 1.2, n))),
            "cohort": ("subject", np.array([f"c{c:02d}" for c in codes])),
        },
    )


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time of a call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def columns(ds: xr.Dataset) -> pd.DataFrame:
    """Predictors and cohorts as a table."""
    names = ("age", "sex", "icv", "lesion_volume", "cohort")
    return pd.DataFrame({name: ds[name].values for name in names})


def in_r(folder: Path, ds: xr.Dataset, few: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Seconds of lmer, refit and summary over all outcomes, and log-likelihoods."""
    columns(ds).to_csv(folder / "d.csv", index=False)
    pd.DataFrame(few).to_csv(folder / "y.csv", index=False, float_format="%.17g")
    (folder / "fit.R").write_text(R)
    done = subprocess.run(
        ["Rscript", str(folder / "fit.R"), str(folder / "d.csv"), str(folder / "y.csv")],
        check=True,
        capture_output=True,
        text=True,
    )
    numbers = [float(one) for one in done.stdout.split()]
    return numbers[:3], np.array(numbers[3:])


def in_statsmodels(x: np.ndarray, groups: np.ndarray, few: np.ndarray) -> tuple[np.ndarray, int]:
    """Log-likelihoods, and how many fits did not converge or raised."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    found, failed = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for y in few.T:
            try:
                fit = MixedLM(y, x, groups).fit(reml=True)
                found.append(fit.llf)
                failed += not fit.converged
            except (np.linalg.LinAlgError, ValueError):
                found.append(np.nan)
                failed += 1
    return np.array(found), failed


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time everything."""
    ds = make_cohort(options.subjects, options.cohorts, options.vertices)
    formula = f"thickness ~ {FIXED} + (1 | cohort)"
    few = ds["thickness"].values[:, : options.peers]
    table = columns(ds)
    z = np.log10(table["lesion_volume"])
    x = np.column_stack(
        [
            np.ones(len(z)),
            (z - z.mean()) / z.std(),
            table["age"],
            (table["sex"] == "M").astype(float),
            table["icv"],
        ]
    )
    groups = table["cohort"].to_numpy()

    def ours(**more: Any) -> xr.Dataset:
        return mixed_model(ds, formula, dim="vertex", **more)

    small = ds.isel(vertex=slice(0, 8))
    mixed_model(small, formula, dim="vertex", n_permutations=9)  # compile
    in_statsmodels(x, groups, few[:, :1])
    spent: dict[str, list[float]] = {name: [] for name in ("ours", "lmer", "refit", "summary")}
    spent["statsmodels"] = []
    busy = 0.0
    kept: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            busy = max(busy, foreign_cpu(lambda: kept.append(seconds(ours))))
            took, result = kept.pop()
            spent["ours"].append(took / options.vertices)
            busy = max(busy, foreign_cpu(lambda: kept.append(in_r(Path(folder), ds, few))))
            times, lme4 = kept.pop()
            for name, value in zip(("lmer", "refit", "summary"), times, strict=True):
                spent[name].append(value / options.peers)
            busy = max(
                busy,
                foreign_cpu(lambda: kept.append(seconds(lambda: in_statsmodels(x, groups, few)))),
            )
            took, (llf, failed) = kept.pop()
            spent["statsmodels"].append(took / options.peers)
    before = peak_memory()
    permuting = foreign_cpu(
        lambda: kept.append(
            seconds(lambda: ours(n_permutations=options.permutations, permuted=[TESTED]))
        )
    )
    took, permuted = kept.pop()
    likelihood = result["log_likelihood"].values[: options.peers]
    with np.errstate(invalid="ignore"):
        wrong = int((np.abs(llf - likelihood) > 1e-3).sum())
    return {
        "fits": {name: statistics.median(one) for name, one in spent.items()},
        "ratios": {
            name: statistics.median(b / a for a, b in zip(spent["ours"], one, strict=True))
            for name, one in spent.items()
        },
        "foreign_cpu": busy,
        "permutations_s": took,
        "permutations_foreign_cpu": permuting,
        "permuted_fit_us": 1e6 * took / (options.permutations * options.vertices),
        "permutations_memory_mib": (peak_memory() - before) / 2**20,
        "smallest_p_fwe": float(permuted["p_fwe"].sel(term=TESTED).min()),
        "lme4_log_likelihood_relative": float(np.abs(lme4 / likelihood - 1).max()),
        "lme4_log_likelihood_median": float(np.median(np.abs(lme4 / likelihood - 1))),
        "statsmodels_unconverged": failed,
        "statsmodels_off_by_1e-3": wrong,
        "peers": options.peers,
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=501)
    parser.add_argument("--cohorts", type=int, default=34)
    parser.add_argument("--vertices", type=int, default=20484)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--peers", type=int, default=60, help="Outcomes that others fit.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="Small: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.vertices, options.permutations, options.peers, options.rounds = 2000, 100, 4, 1
    result = measure(options)
    for name, value in result["fits"].items():
        goal = f", at least {GOALS[name]:g}x" if name in GOALS else ""
        print(f"{name:12s} {1e6 * value:12.2f} us a fit {result['ratios'][name]:10.1f}x{goal}")
    print(
        f"{options.permutations} permutations x {options.vertices} vertices: "
        f"{result['permutations_s']:.1f} s, {result['permuted_fit_us']:.2f} us a fit, "
        f"{result['permutations_memory_mib']:.0f} MiB more than before"
    )
    result["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({k: v for k, v in result.items() if k != "fits"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
