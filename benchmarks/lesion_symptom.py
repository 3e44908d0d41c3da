"""Speed and memory of the lesion-symptom map, beside NumPy and BLAS, in one run.

    python -m benchmarks.lesion_symptom [--subjects 500] [--permutations 1000]
                                        [--resolution 1] [--rounds 3] [--quick] [--out FILE]

Lesions are those of the simulator: grown in the territory of the middle cerebral artery,
volumes log-normal with a median of 15 mL. Three things are timed, on two cores each:

- ``permutations``: from the masks of the tested voxels to the largest correlation of every
  permutation. NumPy: a dense bool matrix, multiplied block of voxels by block with the
  permuted residuals, scaled, largest and smallest taken; in float32 and float64, on two
  threads of BLAS and on two threads with a block each, with blocks of several sizes and both
  orders of the product: the fastest of these, found on a part of the voxels, is timed. It is
  given its dense matrix. Ours starts from lists of lesioned voxels a person, so that it pays
  for its patterns; as it is, and without distinct patterns, without steps between neighbors,
  without both; and ``prepared``, where it is given its patterns as NumPy is its matrix;
- ``memory``: from all masks as a bool array in memory to the finished maps;
- ``store``: from a store on disk to the finished maps, in a process of its own, whose memory
  is the growth of its largest resident set.

Both sides permute alike, and the largest |t| of every permutation must agree to 1e-5.
Time of other processes on the machine is printed: figures of a busy machine are no figures.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import scipy.stats
import xarray as xr
from threadpoolctl import threadpool_limits

import scalebrain
from benchmarks.ingest import foreign_cpu, peak_memory
from scalebrain.atlas.space import template_grid
from scalebrain.ingestion.geometry import static_variables
from scalebrain.simulate.anatomy import anatomy, territory
from scalebrain.simulate.lesions import grow_lesion
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import draw_people
from scalebrain.stats.lesion_patterns import LesionPatterns, lesioned_voxels
from scalebrain.stats.lesion_symptom import (
    _Fit,
    _least,
    _Model,
    _parsed,
    _People,
    _permuted_residuals,
    _positions,
    _strongest,
    _t,
    lesion_symptom_map,
)

FORMULA = "motor_score ~ age + log10(lesion_volume)"
THREADS = min(2, os.cpu_count() or 1)
BLOCKS = (1024, 2048, 4096, 8192)
TUNED_VOXELS = 16384


def make_cohort(n: int, resolution: float) -> xr.Dataset:
    """People with simulated lesions, in the voxel order of a store."""
    parameters = SimulationParameters(lesion_median_ml=15.0)
    brain, where = anatomy(resolution, parameters), territory(resolution, parameters)
    people = draw_people(0, n, 20, 0, parameters)
    with ThreadPoolExecutor(THREADS) as pool:
        grown = list(
            pool.map(
                lambda one: grow_lesion(one, brain, where, seed=0, parameters=parameters), people
            )
        )
    grid = template_grid(resolution)
    voxels = static_variables(grid)[["x", "y", "z", "parcel"]]
    mm = np.stack([voxels[axis].values for axis in "xyz"], axis=1)
    inverse = np.linalg.inv(grid.matrix)
    i, j, k = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.int64).T
    flat = (k * grid.shape[1] + j) * grid.shape[0] + i
    order = np.argsort(flat)
    place = order[np.searchsorted(flat[order], brain.inside)]
    mask = np.zeros((n, flat.size), dtype=bool)
    for row, lesion in zip(mask, grown, strict=True):
        row[place[lesion.voxels]] = True
    rng = np.random.default_rng(0)
    volume = np.array([lesion.volume for lesion in grown])
    load = np.array([lesion.cst_load for lesion in grown])
    score = 0.8 - 0.1 * np.log10(volume) - 0.3 * load + rng.normal(0, 0.15, n)
    return xr.Dataset(
        {
            "lesion_mask": (("subject", "voxel"), mask),
            "lesion_volume": ("subject", volume),
            "motor_score": ("subject", score),
        },
        coords={
            **voxels.coords,
            "subject": [f"sub-{one.subject}" for one in people],
            "age": ("subject", np.array([one.age for one in people])),
            "cohort": ("subject", np.array([f"site{one.cohort:02d}" for one in people])),
        },
    )


def small_cohort() -> xr.Dataset:
    """Some people, to compile kernels before anything is timed."""
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "lesion_mask": (("subject", "voxel"), rng.random((40, 50)) < 0.4),
            "lesion_volume": ("subject", rng.uniform(1, 9, 40)),
            "motor_score": ("subject", rng.normal(size=40)),
        },
        coords={
            "age": ("subject", rng.uniform(40, 80, 40)),
            "cohort": ("subject", np.array(["a", "b"] * 20)),
        },
    ).chunk(subject=8)


def numpy_largest(
    mask: np.ndarray,
    scale: np.ndarray,
    residual: np.ndarray,
    *,
    block: int,
    side_by_side: bool,
    turned: bool,
) -> np.ndarray:
    """Largest correlation of every permutation, as NumPy and BLAS find it.

    `mask` is (person, voxel) bool, `residual` (person, permutation) of the type to compute
    in; the scale is put on the masks, which are smaller than the product.
    """
    n, n_voxels = mask.shape
    n_permutations = residual.shape[1]
    factor = scale.astype(residual.dtype)

    def some(starts: list[int]) -> np.ndarray:
        high, low = np.zeros((2, n_permutations), dtype=residual.dtype)
        shape = (n_permutations, block) if turned else (block, n_permutations)
        product = np.empty(shape, dtype=residual.dtype)
        part = np.empty((n, block), dtype=residual.dtype)
        for start in starts:
            stop = min(start + block, n_voxels)
            k = stop - start
            np.multiply(mask[:, start:stop], factor[start:stop], out=part[:, :k])
            if turned:
                out = np.matmul(residual.T, part[:, :k], out=product[:, :k])
            else:
                out = np.matmul(part[:, :k].T, residual, out=product[:k])
            np.maximum(high, out.max(axis=1 if turned else 0), out=high)
            np.minimum(low, out.min(axis=1 if turned else 0), out=low)
        return np.maximum(high, -low)

    starts = list(range(0, n_voxels, block))
    if not side_by_side:
        with threadpool_limits(THREADS, "blas"):
            return some(starts)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(THREADS) as pool:
        return np.maximum.reduce(list(pool.map(some, [starts[i::THREADS] for i in range(THREADS)])))


def variants() -> Iterator[dict[str, Any]]:
    """Ways in which the product can be written."""
    for block, side, turned in itertools.product(BLOCKS, (False, True), (False, True)):
        yield {"block": block, "side_by_side": side, "turned": turned}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Time of a call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def tune(mask: np.ndarray, scale: np.ndarray, residual: np.ndarray) -> dict[str, Any]:
    """Fastest way to write the product, on a part of the voxels."""
    mask, scale = np.ascontiguousarray(mask[:, :TUNED_VOXELS]), scale[:TUNED_VOXELS]
    found = []
    for variant in variants():
        spent = min(
            seconds(lambda v=variant: numpy_largest(mask, scale, residual, **v))[0]
            for _ in range(2)
        )
        found.append((spent, variant))
    return min(found, key=lambda one: one[0])[1]


def numpy_map(
    ds: xr.Dataset, n_permutations: int, dtype: type, variant: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The whole map by NumPy, from the masks as one bool array."""
    people = _People.of(ds, _parsed(FORMULA, ds), "cohort", "stroke", "included")
    model = _Model.of(people)
    mask, rows = ds["lesion_mask"].data, people.rows[people.order]
    if not isinstance(mask, np.ndarray):  # twice as fast as to let Dask put blocks together
        lazy, mask = mask, np.empty(mask.shape, dtype=bool)
        da.store(lazy, mask, lock=False)
    n = people.n
    least = _least(None, n, FORMULA)
    count = np.zeros(mask.shape[1], dtype=np.int32)
    for row in rows:
        count += mask[row]
    tested = np.flatnonzero((count >= least) & (count <= n - least))
    some = np.empty((n, tested.size), dtype=bool)
    for one, row in zip(some, rows, strict=True):
        np.take(mask[row], tested, out=one)
    del mask
    values = np.column_stack([model.residual, model.q])
    sums = np.concatenate(
        [some[:, i : i + 8192].T.astype(np.float64) @ values for i in range(0, tested.size, 8192)]
    )
    free = count[tested] - (sums[:, 1:] ** 2).sum(axis=1)
    scale = 1 / np.sqrt(free)
    r = sums[:, 0] * scale / np.sqrt(model.square)
    tiles = _permuted_residuals(model, people.codes, n_permutations, 0)
    residual = np.ascontiguousarray(
        tiles.transpose(1, 0, 2).reshape(n, -1)[:, :n_permutations], dtype=dtype
    )
    largest = np.sort(numpy_largest(some, scale, residual, **variant).astype(np.float64))
    beaten = n_permutations - np.searchsorted(largest, np.abs(r) * (1 - 1e-9))
    t = _t(r, model.df)
    p = 2 * scipy.stats.t.sf(np.abs(t), model.df)
    by_voxel = {
        "t": t,
        "estimate": sums[:, 0] / free,
        "se": np.sqrt((1 - r**2) * model.square / (model.df * free)),
        "p": p,
        "q": scipy.stats.false_discovery_control(p),
        "p_fwe": (1 + beaten) / (1 + n_permutations),
    }
    out = {}
    for name, one in by_voxel.items():
        out[name] = np.full(count.size, np.nan)
        out[name][tested] = one
    return out


def from_store(
    store: str, side: str, n_permutations: int, variant: dict[str, Any]
) -> tuple[float, float, float]:
    """Seconds and growth of memory (bytes) of one map, and its threshold, in a fresh process."""
    dask.config.set(num_workers=THREADS)
    lesion_symptom_map(small_cohort(), FORMULA, n_permutations=19)
    before = peak_memory()

    def work() -> float:
        ds = scalebrain.open_store(store)
        if side == "ours":
            result = lesion_symptom_map(ds, FORMULA, n_permutations=n_permutations)
            return float(np.nanmin(result["t"]))
        dtype = np.float32 if side == "float32" else np.float64
        return float(np.nanmin(numpy_map(ds, n_permutations, dtype, variant)["t"]))

    spent, peak = seconds(work)
    return spent, peak_memory() - before, peak


def in_child(*args: Any) -> tuple[float, float, float]:
    """Run :func:`from_store` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(from_store, args)
        pool.close()
        pool.join()
    return result


def measure(ds: xr.Dataset, store: str, n_permutations: int, rounds: int) -> dict[str, Any]:
    """Time everything."""
    people = _People.of(ds, _parsed(FORMULA, ds), "cohort", "stroke", "included")
    model = _Model.of(people)
    n_voxels, position = ds.sizes["voxel"], _positions(ds)
    least = _least(None, people.n, FORMULA)
    held = lesioned_voxels(ds["lesion_mask"], people.rows)
    lesions = [held[i] for i in people.order]
    residual = _permuted_residuals(model, people.codes, n_permutations, 0)

    def ours(merge: bool, chained: bool) -> tuple[LesionPatterns, np.ndarray]:
        patterns = LesionPatterns.of(
            lesions, n_voxels, min_lesions=least, position=position, merge=merge
        )
        scale = _Fit.of(model, patterns).scale
        return patterns, _strongest(
            patterns, scale, residual, n_permutations, chained=chained, threads=THREADS
        )

    patterns, _ = ours(True, True)
    fit = _Fit.of(model, patterns)
    voxels = np.sort(patterns.voxels)
    back = np.argsort(patterns.voxels)
    scale = fit.scale[patterns.pattern][back]
    mask = np.ascontiguousarray(ds["lesion_mask"].values[people.rows[people.order]][:, voxels])
    flat = residual.transpose(1, 0, 2).reshape(people.n, -1)[:, :n_permutations]
    typed = {name: np.ascontiguousarray(flat, dtype=name) for name in ("float32", "float64")}
    chosen = {name: tune(mask, scale, one) for name, one in typed.items()}

    spent: dict[str, list[float]] = {}
    largest: dict[str, np.ndarray] = {}
    memory: dict[str, float] = {}
    foreign: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        busy = foreign_cpu(lambda: kept.extend(seconds(work)))
        spent.setdefault(name, []).append(kept[0])
        foreign[name] = max(foreign.get(name, 0.0), busy)
        return kept[1]

    for _ in range(rounds):
        for name, one in typed.items():
            largest[name] = timed(
                f"permutations, NumPy {name}",
                lambda one=one, name=name: numpy_largest(mask, scale, one, **chosen[name]),
            )
        for merge, chained in itertools.product((True, False), (True, False)):
            label = f"ours, patterns {'on' if merge else 'off'}, steps {'on' if chained else 'off'}"
            largest[label] = timed(
                f"permutations, {label}", lambda m=merge, c=chained: ours(m, c)[1]
            )
        largest["ours, prepared"] = timed(
            "permutations, ours, prepared",
            lambda: _strongest(patterns, fit.scale, residual, n_permutations, threads=THREADS),
        )
        for name in typed:
            dtype = np.dtype(name).type
            theirs = timed(
                f"memory, NumPy {name}",
                lambda d=dtype, n=name: numpy_map(ds, n_permutations, d, chosen[n]),
            )
            del theirs
        result = timed(
            "memory, ours", lambda: lesion_symptom_map(ds, FORMULA, n_permutations=n_permutations)
        )
        for side in ("float32", "float64", "ours"):
            name = f"store, {'NumPy ' if side != 'ours' else ''}{side}"
            children: list[Any] = []
            busy = foreign_cpu(
                lambda s=side, c=children: c.extend(
                    in_child(store, s, n_permutations, chosen.get(s, {}))
                )
            )
            spent.setdefault(name, []).append(children[0])
            foreign[name] = max(foreign.get(name, 0.0), busy)
            memory[name] = max(memory.get(name, 0.0), children[1])
            np.testing.assert_allclose(children[2], np.nanmin(result["t"]), rtol=1e-6)
    truth = largest["float64"]
    differs = {name: float(np.abs(one / truth - 1).max()) for name, one in largest.items()}
    theirs = numpy_map(ds, n_permutations, np.float64, chosen["float64"])
    maps = {
        name: float(np.nanmax(np.abs(result[name].values - one) / np.nanmax(np.abs(one))))
        for name, one in theirs.items()
    }
    people_steps = int(patterns.size.sum())
    steps = sum(columns.steps().step.size for _, columns in patterns.parts())
    return {
        "people": people.n,
        "voxels": n_voxels,
        "lesioned_voxels": int(sum(one.size for one in lesions)),
        "min_lesions": least,
        "tested": int(voxels.size),
        "patterns": patterns.n_patterns,
        "people_per_pattern": people_steps / patterns.n_patterns,
        "steps_per_pattern": steps / patterns.n_patterns,
        "blas": chosen,
        "seconds": {name: statistics.median(one) for name, one in spent.items()},
        "rounds": spent,
        "foreign_cpu": foreign,
        "memory_mib": {name: value / 2**20 for name, value in memory.items()},
        "largest_t_differs": differs,
        "maps_differ": maps,
    }


def table(result: dict[str, Any]) -> str:
    """Times beside the faster NumPy of each kind."""
    lines = []
    for kind in ("permutations", "memory", "store"):
        times = {n: s for n, s in result["seconds"].items() if n.startswith(kind)}
        base = min((s, n) for n, s in times.items() if "NumPy" in n)[1]
        for name, value in times.items():
            beside = statistics.median(
                b / o for b, o in zip(result["rounds"][base], result["rounds"][name], strict=True)
            )
            mib = result["memory_mib"].get(name)
            lines.append(
                f"{name:55s} {value:8.3f} s {beside:7.2f} x"
                f"{f' {mib:7.0f} MiB' if mib is not None else '':12s}"
                f" foreign {result['foreign_cpu'][name]:.0%}"
                f"{'  <- baseline' if name == base else ''}"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=500)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--resolution", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="Small and coarse: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.subjects, options.permutations, options.resolution, options.rounds = 80, 199, 4.0, 1
    dask.config.set(num_workers=THREADS)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "cohort.zarr")
        made, ds = seconds(lambda: make_cohort(options.subjects, options.resolution))
        written = seconds(lambda: scalebrain.save_store(ds.chunk(subject=16), store))[0]
        print(f"{len(ds['subject'])} lesions grown in {made:.0f} s, stored in {written:.0f} s")
        result = measure(ds, store, options.permutations, options.rounds)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "permutations": options.permutations,
        "resolution_mm": options.resolution,
        **result,
    }
    print(table(result))
    print(json.dumps({k: v for k, v in result.items() if k not in ("seconds", "rounds")}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
