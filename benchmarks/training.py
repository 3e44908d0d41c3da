"""Training on a cohort of cortical surfaces: time of an epoch and peak memory.

Run: python -m benchmarks.training

People are made up: thickness and contrast of 2 x 10,242 vertices that follow age, a smooth
anatomy of each person, and noise. A store is written with all of them, node features are computed
and saved, and one fold is trained in a process of its own, on one core (the folds of a model are
tasks of their own, so several cores train several at a time). Nothing but the store grows with
the number of people.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

import scalebrain
from scalebrain.atlas.space import SPACE
from scalebrain.atlas.surface import cortex_points
from scalebrain.graph.build import build_graph
from scalebrain.graph.references import References
from scalebrain.graph.train import Training, train_fold
from scalebrain.ingestion.geometry import vertex_variables
from scalebrain.pipeline import compute_features

N_VERTICES = 20484
GOALS = {5: 360.0, 4: 90.0}
MEMORY_GOAL_GIB = 6.0


def anatomy(n_factors: int = 40) -> np.ndarray:
    """Smooth maps (factor, vertex), of SD about 1."""
    points = np.concatenate([cortex_points("left"), cortex_points("right")])
    rng = np.random.default_rng(0)
    waves = rng.normal(0, 1 / 25, (n_factors, 3)) @ points.T
    return (np.sqrt(2) * np.cos(waves + rng.uniform(0, 6.28, (n_factors, 1)))).astype(np.float32)


def write_people(url: Path, n: int) -> None:
    """Write a store of `n` references."""
    maps = anatomy()
    loss = np.random.default_rng(1).uniform(0.5, 1.5, (2, N_VERTICES)).astype(np.float32)
    age = np.random.default_rng(2).uniform(45, 82, n)
    kinds = (("thickness", 2.5, -0.006, 0.12, 0.25), ("wg_contrast", 20.0, -0.05, 0.9, 2.0))

    def rows(kind: int, start: int, stop: int) -> np.ndarray:
        _, level, slope, anatomical, noise = kinds[kind]
        rng = np.random.default_rng([kind, start])
        own = rng.normal(size=(stop - start, len(maps))).astype(np.float32) / np.sqrt(len(maps))
        out = rng.standard_normal((stop - start, N_VERTICES), dtype=np.float32) * np.float32(noise)
        out += np.float32(anatomical) * 3 * (own @ maps)
        out += level + slope * (age[start:stop, None] - 60).astype(np.float32) * loss[kind]
        return out

    images = {}
    for kind, (name, *_) in enumerate(kinds):
        blocks = [
            da.from_delayed(
                dask.delayed(rows)(kind, start, min(start + 16, n)),
                (min(16, n - start), N_VERTICES),
                dtype=np.float32,
            )
            for start in range(0, n, 16)
        ]
        images[name] = (("subject", "vertex"), da.concatenate(blocks))
    yes = np.ones(n, dtype=bool)
    ds = xr.Dataset(
        images
        | {
            "surface_present": ("subject", yes),
            "lesion_present": ("subject", ~yes),
            "lesion_hemisphere": ("subject", np.full(n, "none")),
            "lesion_volume": ("subject", np.zeros(n)),
            "days_post_stroke": ("subject", np.full(n, np.nan)),
            "icv": ("subject", np.full(n, 1500.0)),
            "sex": ("subject", np.array(["F", "M"])[np.arange(n) % 2]),
        },
        attrs={"space": SPACE, "simulated": "true"},
    ).merge(vertex_variables())
    ds = ds.assign_coords(
        subject=[f"sub-{i:06d}" for i in range(n)],
        age=("subject", age),
        group=("subject", np.full(n, "reference")),
    )
    scalebrain.save_store(ds, url)


class Clock(logging.Handler):
    """When the training said that an epoch was over."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time."""
        if "epoch" in record.getMessage():
            self.times.append(time.perf_counter())


def train(url: Path, layer: str, epochs: int, answer: Any) -> None:
    """Train one fold on everyone, in a process of its own."""
    clock = Clock()
    logger = logging.getLogger("scalebrain.graph.train")
    logger.setLevel(logging.INFO)
    logger.addHandler(clock)
    ds = scalebrain.open_store(url)
    graph = build_graph(ds)
    data = References.of(ds["node_features"], graph.rows, ds["age"].values.astype(np.float64))
    start = time.perf_counter()
    chosen = Training(layer=layer, epochs=epochs, patience=epochs + 1)  # type: ignore[arg-type]
    fold = train_fold(data, np.arange(len(data.age)), graph, chosen, number=0)
    end = time.perf_counter()
    answer.put(
        {
            "rows": len(graph.rows),
            "linear_s": clock.times[0] - start,
            "epoch_s": float(np.median(np.diff(clock.times))),
            "refit_s": end - clock.times[-1],
            "validation_mae": fold.curve[:, 1].tolist(),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
    )


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=17_791)
    parser.add_argument("--levels", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--layer", default="cheb")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="Few people: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.subjects, options.levels = 64, [3]
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {"subjects": options.subjects, "layer": options.layer}
    with tempfile.TemporaryDirectory() as name:
        url = Path(name) / "s.zarr"
        start = time.perf_counter()
        write_people(url, options.subjects)
        print(f"{options.subjects} people written in {time.perf_counter() - start:.0f} s")
        for level in options.levels:
            start = time.perf_counter()
            compute_features(url, nodes=f"surface-{level}")
            took = time.perf_counter() - start
            answer: Any = context.Queue()
            child = context.Process(target=train, args=(url, options.layer, options.epochs, answer))
            child.start()
            one = answer.get()
            child.join()
            found[f"level {level}"] = {"features_s": took, **one}
            goal = GOALS.get(level)
            print(
                f"level {level}: features {took:.0f} s; {one['rows']} rows, scales, ridge and "
                f"imputers {one['linear_s']:.0f} s, an epoch {one['epoch_s']:.0f} s"
                + (f" (at most {goal:.0f})" if goal else "")
                + f", refit {one['refit_s']:.0f} s; peak {one['peak_gib']:.2f} GiB (at most "
                f"{MEMORY_GOAL_GIB:g}); validation MAE "
                + ", ".join(f"{value:.2f}" for value in one["validation_mae"])
                + " y",
                flush=True,
            )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
