"""Do p values and intervals keep what they promise? Simulated cohorts, 501 people in 34.

    python -m benchmarks.calibration [--outcomes 40000] [--designs 40] [--methods mixed ...]
                                     [--quick] [--out FILE]

A method is a function that returns lines of a table: what was counted, how often of how many, and
the goal. Another method joins by its name in ``METHODS``. Rates are printed with their Monte-Carlo
error, ``sqrt(rate (1 - rate) / n)``. Outcomes are drawn in several designs (cohort sizes,
predictors), so that no single one decides.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from benchmarks.mixed import sizes_of
from scalebrain.stats.mixed import mixed_model

PEOPLE, COHORTS = 501, 34
FAMILY = 50


@dataclass(frozen=True)
class Line:
    """A rate and its goal."""

    method: str
    counted: str
    setting: str
    rate: float
    n: int
    goal: tuple[float, float]

    @property
    def error(self) -> float:
        """Monte-Carlo standard error."""
        return float(np.sqrt(self.rate * (1 - self.rate) / self.n))

    def __str__(self) -> str:
        low, high = self.goal
        met = "" if low <= self.rate <= high else " **missed**"
        return (
            f"| {self.method} | {self.counted} | {self.setting} | {100 * self.rate:.2f} "
            f"± {100 * self.error:.2f} % | {self.n:,} | {100 * low:g}-{100 * high:g} %{met} |"
        )


@dataclass(frozen=True)
class Setting:
    """Truth of a simulation: variance between cohorts over that within, and the errors."""

    name: str
    ratio: float
    heavy: bool = False


SETTINGS = (
    Setting("no variance between cohorts", 0.0),
    Setting("a tenth", 0.1),
    Setting("as much as within", 1.0),
    Setting("a tenth, errors of t with 4 degrees", 0.1, heavy=True),
)


def cohorts(
    setting: Setting, options: argparse.Namespace, effect: float, outcomes: int
) -> Iterator[tuple[int, xr.Dataset]]:
    """Simulate outcomes in every design; `effect` is that of load, age and clinic, per SD."""
    each = max(1, outcomes // options.designs)
    for seed in range(options.designs):
        truth = [int(1000 * setting.ratio), int(setting.heavy), int(1000 * effect)]
        rng = np.random.default_rng([seed, *truth])
        codes = np.repeat(np.arange(COHORTS), sizes_of(PEOPLE, COHORTS, rng))
        n = codes.size

        def z(x: np.ndarray) -> np.ndarray:
            return (x - x.mean()) / x.std(ddof=1)

        load = z(rng.normal(size=n))
        age = z(rng.normal(size=n) + rng.normal(0, 0.7, COHORTS)[codes])
        clinic = z(rng.normal(size=COHORTS)[codes])  # varies between cohorts only
        noise = rng.standard_t(4, (n, each)) / np.sqrt(2) if setting.heavy else None
        y = rng.normal(size=(n, each)) if noise is None else noise
        y += rng.normal(0, np.sqrt(setting.ratio), (COHORTS, each))[codes]
        y += effect * (load + age + clinic)[:, None]
        yield (
            seed,
            xr.Dataset(
                {"y": (("subject", "node"), y)},
                coords={
                    "load": ("subject", load),
                    "age": ("subject", age),
                    "clinic": ("subject", clinic),
                    "cohort": ("subject", np.array([f"c{c:02d}" for c in codes])),
                },
            ),
        )


def gathered(
    method: str, counted: str, setting: str, hits: list[np.ndarray], goal: tuple[float, float]
) -> Line:
    """Make a line of hits and misses."""
    all_of = np.concatenate([np.asarray(one).ravel() for one in hits])
    return Line(method, counted, setting, float(all_of.mean()), all_of.size, goal)


def mixed(options: argparse.Namespace) -> list[Line]:
    """t tests and intervals of the mixed model."""
    lines = []
    for setting in SETTINGS:
        wrong: dict[str, list[np.ndarray]] = {}
        inside: dict[str, list[np.ndarray]] = {}
        for _, ds in cohorts(setting, options, 0.0, options.outcomes):
            found = mixed_model(ds, "y ~ load + age + clinic", dim="node")
            for term in ("load", "age", "clinic"):
                wrong.setdefault(term, []).append(found["p"].sel(term=term).values <= 0.05)
        for _, ds in cohorts(setting, options, 0.2, options.outcomes):
            found = mixed_model(ds, "y ~ load + age + clinic", dim="node")
            low, high = found["ci_low"], found["ci_high"]
            for term in ("load", "age", "clinic"):
                hit = (low.sel(term=term) <= 0.2) & (high.sel(term=term) >= 0.2)
                inside.setdefault(term, []).append(hit.values)
        for term in wrong:
            where = f"{term}; {setting.name}"
            lines.append(gathered("mixed", "type I error", where, wrong[term], (0.045, 0.055)))
            lines.append(gathered("mixed", "coverage", where, inside[term], (0.94, 0.96)))
    return lines


def mixed_permutation(options: argparse.Namespace) -> list[Line]:
    """Permutations within cohorts: single p values, and families of outcomes."""
    lines = []
    for setting in SETTINGS:
        wrong: dict[str, list[np.ndarray]] = {}
        families: list[np.ndarray] = []
        for seed, ds in cohorts(setting, options, 0.0, options.outcomes // 2):
            found = mixed_model(
                ds,
                "y ~ load + age + clinic",
                dim="node",
                n_permutations=options.permutations,
                permuted=["load", "age"],
                seed=seed,
            )
            for term in ("load", "age"):
                wrong.setdefault(term, []).append(
                    found["p_permutation"].sel(term=term).values <= 0.05
                )
        small = argparse.Namespace(**vars(options) | {"designs": options.families})
        for seed, ds in cohorts(setting, small, 0.0, FAMILY * options.families):
            found = mixed_model(
                ds,
                "y ~ load + age + clinic",
                dim="node",
                n_permutations=options.permutations,
                permuted=["age"],
                seed=seed,
            )
            families.append(np.array([found["p_fwe"].sel(term="age").min() <= 0.05]))
        for term in wrong:
            where = f"{term}; {setting.name}"
            lines.append(
                gathered("permutation", "type I error", where, wrong[term], (0.045, 0.055))
            )
        where = f"age, families of {FAMILY}; {setting.name}"
        lines.append(gathered("permutation", "family-wise error", where, families, (0.03, 0.07)))
    return lines


def mixed_bootstrap(options: argparse.Namespace) -> list[Line]:
    """Intervals of the bootstrap of cohorts."""
    lines = []
    for setting in SETTINGS:
        inside: dict[str, list[np.ndarray]] = {}
        for seed, ds in cohorts(setting, options, 0.2, options.outcomes // 10):
            found = mixed_model(
                ds, "y ~ load + age + clinic", dim="node", n_bootstrap=options.samples, seed=seed
            )
            low, high = found["ci_low_bootstrap"], found["ci_high_bootstrap"]
            for term in ("load", "age", "clinic"):
                hit = (low.sel(term=term) <= 0.2) & (high.sel(term=term) >= 0.2)
                inside.setdefault(term, []).append(hit.values)
        for term, hits in inside.items():
            where = f"{term}; {setting.name}"
            lines.append(gathered("bootstrap", "coverage", where, hits, (0.93, 0.97)))
    return lines


METHODS: dict[str, Callable[[argparse.Namespace], list[Line]]] = {
    "mixed": mixed,
    "mixed_permutation": mixed_permutation,
    "mixed_bootstrap": mixed_bootstrap,
}


def main() -> None:
    """Run the simulations and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outcomes", type=int, default=40000, help="Outcomes of a setting.")
    parser.add_argument("--designs", type=int, default=40)
    parser.add_argument("--families", type=int, default=1000)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--samples", type=int, default=999)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="Small: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.outcomes, options.designs, options.families = 400, 2, 5
        options.permutations, options.samples = 99, 99
    lines: list[Line] = []
    print("| method | counted | setting | rate | of | goal |\n|---|---|---|---|---|---|")
    for name in options.methods:
        start = time.perf_counter()
        for line in METHODS[name](options):
            lines.append(line)
            print(line, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if options.out:
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        content = {"machine": machine, "table": [asdict(line) for line in lines]}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
