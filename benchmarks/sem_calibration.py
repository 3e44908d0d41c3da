"""How often the bootstrap interval of an indirect effect covers the truth.

Cohorts of 501 people in 34 unequal cohorts, of which several hold one or two people. Every
variable has its own level in a cohort, and damage its own mean, so people of a cohort are
alike. The truth is the product of the planted coefficients. Two effects are counted, one
along two arrows and one along three, raw and standardized, and an effect of zero.

    python -m benchmarks.sem_calibration            # 3,000 data sets
    python -m benchmarks.sem_calibration --quick    # 300

Beside the interval that scalebrain gives, the plain percentile interval of the same
replicates is counted, and that of a bootstrap over people, which takes them as independent.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalebrain.cluster.client import open_client
from scalebrain.cluster.tasks import map_tasks
from scalebrain.stats.sem_boot import Replicates, bootstrap
from scalebrain.stats.sem_fit import fit_sem
from scalebrain.stats.sem_model import parse_model
from scalebrain.stats.sem_variables import DEFAULT_MODEL

GOAL = (0.93, 0.97)
PEOPLE, COHORTS = 501, 34
#: Standardized scale: every residual has a variance of 1, of which `WITHIN` is within cohorts.
TRUTH = {
    "motor ~ cst": -0.35,
    "motor ~ ipsi": -0.15,
    "contra ~ motor": 0.12,
    "contra ~ cst": 0.0,
    "contra ~ ipsi": 0.1,
    "ipsi ~ cst": 0.3,
}
CHAINS = {
    "cst -> ipsi -> motor": ("ipsi ~ cst", "motor ~ ipsi"),
    "cst -> motor -> contra": ("motor ~ cst", "contra ~ motor"),
    "cst -> ipsi -> motor -> contra": ("ipsi ~ cst", "motor ~ ipsi", "contra ~ motor"),
}
FloatArray = npt.NDArray[np.float64]


def cohort_sizes(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sizes that add up to 501: lognormal, so a few cohorts hold most of the people."""
    share = np.exp(rng.normal(0, 1.0, COHORTS))
    extra = rng.multinomial(PEOPLE - COHORTS, share / share.sum())
    return 1 + extra


def people(rng: np.random.Generator, icc: float, null: bool) -> tuple[pd.DataFrame, Any]:
    """One data set, and the cohort of each person."""
    sizes = cohort_sizes(rng)
    codes = np.repeat(np.arange(COHORTS), sizes)

    def noise() -> FloatArray:
        level = rng.normal(0, math.sqrt(icc), COHORTS)[codes]
        return level + rng.normal(0, math.sqrt(1 - icc), PEOPLE)

    b = dict.fromkeys(TRUTH, 0.0) if null else TRUTH
    cst = noise()
    ipsi = b["ipsi ~ cst"] * cst + noise()
    motor = b["motor ~ cst"] * cst + b["motor ~ ipsi"] * ipsi + noise()
    contra = b["contra ~ motor"] * motor + b["contra ~ cst"] * cst + b["contra ~ ipsi"] * ipsi
    table = {"cst": cst, "ipsi": ipsi, "motor": motor, "contra": contra + noise()}
    return pd.DataFrame(table), codes


def one(number: int, shared: tuple[int, int, float]) -> dict[str, list[float]]:
    """Whether each interval covers, and how wide it is, in one data set."""
    seed, n_boot, icc = shared
    rng = np.random.default_rng([seed, number])
    table, codes = people(rng, icc, null=False)
    model = parse_model(DEFAULT_MODEL)
    out: dict[str, list[float]] = {}
    grouped = fit_sem(model, table, codes=codes)
    apart = fit_sem(model, table)
    for kind, fit in (("cohorts", grouped), ("people", apart)):
        drawn = bootstrap(fit, n_boot=n_boot, seed=number)
        for chain, steps in CHAINS.items():
            places = [drawn.names.index(step) for step in steps]
            values = drawn.raw[:, places].prod(axis=1)
            truth = math.prod(TRUTH[step] for step in steps)
            if kind == "cohorts":
                out[f"{chain} | widened"] = covered(drawn.interval(values, 0.95), truth)
            plain = tuple(np.quantile(values, [0.025, 0.975]).tolist())
            out[f"{chain} | plain, {kind}"] = covered(plain, truth)
        for step, truth in TRUTH.items():
            if kind == "cohorts":
                values = drawn.raw[:, drawn.names.index(step)]
                out[f"{step} | widened"] = covered(drawn.interval(values, 0.95), truth)
    table, codes = people(rng, icc, null=True)
    drawn = bootstrap(fit_sem(model, table, codes=codes), n_boot=n_boot, seed=number)
    add_null(out, drawn)
    return out


def add_null(out: dict[str, list[float]], drawn: Replicates) -> None:
    """The same where one arrow of the chain is zero, and where both are."""
    for step in ("ipsi ~ cst", "motor ~ ipsi"):
        values = drawn.raw[:, drawn.names.index(step)]
        out[f"{step} of zero | widened"] = covered(drawn.interval(values, 0.95), 0.0)


def covered(limits: tuple[float, ...], truth: float) -> list[float]:
    low, high = limits
    return [float(low <= truth <= high), high - low]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 data sets")
    parser.add_argument("--data-sets", type=int, default=3000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--icc", type=float, default=0.1, help="part of a variance between cohorts")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--workers", help="'threads', or the address of a scheduler")
    parser.add_argument("--output", type=Path, help="JSON of every figure")
    args = parser.parse_args()
    n = 300 if args.quick else args.data_sets
    start = time.perf_counter()
    shared = (args.seed, args.replicates, args.icc)
    blocks = [range(k, min(k + 20, n)) for k in range(0, n, 20)]
    with open_client(args.workers):
        parts = map_tasks(several, blocks, label="data sets", shared=shared, threads=1)
    results = [result for part in parts for result in part]
    rows = {}
    for name in results[0]:
        hits = np.array([result[name] for result in results])
        rate = float(hits[:, 0].mean())
        error = math.sqrt(rate * (1 - rate) / n)
        rows[name] = {"coverage": rate, "error": error, "width": float(np.median(hits[:, 1]))}
    print(f"{n} data sets of {PEOPLE} people in {COHORTS} cohorts, ICC {args.icc}, ")
    print(f"{args.replicates} replicates, seed {args.seed}; goal {GOAL[0]:.0%} to {GOAL[1]:.0%}\n")
    print(f"{'effect':<52} coverage  Monte-Carlo error  median width")
    for name, row in rows.items():
        mark = (
            ""
            if not name.endswith("widened")
            else ("ok" if GOAL[0] <= row["coverage"] <= GOAL[1] else "outside the goal")
        )
        print(
            f"{name:<52} {100 * row['coverage']:7.1f} %  {100 * row['error']:8.2f} %"
            f"  {row['width']:18.4f}  {mark}"
        )
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.output:
        about = {"python": platform.python_version(), "numpy": np.__version__, "n": n}
        args.output.write_text(
            json.dumps({"about": about | vars(args) | {"output": None}, "rows": rows})
        )


def several(numbers: range, shared: tuple[int, int, float]) -> list[dict[str, list[float]]]:
    return [one(number, shared) for number in numbers]


if __name__ == "__main__":
    main()
