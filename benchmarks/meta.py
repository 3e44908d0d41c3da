"""Error rates of the meta-analysis: 501 people in 34 cohorts, simulated.

``python -m benchmarks.meta`` prints the share of intervals of 95 % that miss the true effect, for a
standard deviation `between` of the effect between cohorts (that of the residuals within one is 4,
or differs by `uneven`). Its Monte Carlo error is 0.002 at 10,000 replicates. Estimates are linear
in the outcome, so that the share does not depend on the effect: with none it is the type-I error,
with any it is one less the coverage.
"""

import argparse
import json

import numpy as np
import xarray as xr

from scalebrain.stats.meta import meta

TERMS = ["volume", "age", "sex"]


def cohort_sizes(rng, people=501, cohorts=34):
    """Unequal cohorts of 8 or more."""
    share = rng.dirichlet(np.full(cohorts, 1.5))
    sizes = 8 + rng.multinomial(people - 8 * cohorts, share)
    return sizes


def simulate(rng, replicates, between, uneven):
    """Summaries of one design and many outcomes; `between` is the SD of the effect of volume."""
    sizes = cohort_sizes(rng)
    shape = (len(sizes), replicates)
    xx = np.empty((*shape, 3, 3))
    xy, yy = np.empty((*shape, 3)), np.empty(shape)
    for k, n in enumerate(sizes):
        x = np.column_stack(
            [rng.normal(size=n), rng.uniform(-2, 2, n), rng.permutation(np.arange(n) % 2)]
        )
        x -= x.mean(axis=0)
        y = rng.uniform(4 - uneven, 4 + uneven) * rng.normal(size=(n, replicates))
        y += x[:, :1] * between * rng.normal(size=(1, replicates))
        y -= y.mean(axis=0)
        xx[k] = x.T @ x
        xy[k] = (x.T @ y).T
        yy[k] = (y**2).sum(axis=0)
    return xr.Dataset(
        {
            "n": ("cohort", sizes),
            "xx": (("cohort", "replicate", "term", "other_term"), xx),
            "xy": (("cohort", "replicate", "term"), xy),
            "yy": (("cohort", "replicate"), yy),
        },
        coords={
            "cohort": [f"c{k}" for k in range(len(sizes))],
            "replicate": np.arange(replicates),
            "term": TERMS,
        },
        attrs={
            "dim": "replicate",
            **dict.fromkeys(("formula", "groups", "group", "levels", "scales"), ""),
        },
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=10_000)
    options = parser.parse_args()
    for between, uneven in ((0.0, 0.0), (0.5, 0.0), (1.5, 0.0), (0.5, 2.0)):
        rng = np.random.default_rng(0)
        missed, n = dict.fromkeys(("fixed", "random, pooled", "random, own"), 0), 0
        while n < options.replicates:
            summary = simulate(rng, 500, between, uneven)
            results = {name: meta([summary], residual=name) for name in ("pooled", "own")}
            for key in missed:
                model, _, residual = key.partition(", ")
                one = results[residual or "own"].sel(term="volume", model=model)
                missed[key] += int(((one["ci_low"] > 0) | (one["ci_high"] < 0)).sum())
            n += 500
        row = {"between": between, "uneven": uneven, "replicates": n}
        row |= {key: count / n for key, count in missed.items()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
