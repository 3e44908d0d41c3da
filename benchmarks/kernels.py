"""Speed of parcellation, lesion load and lesion maps, beside nilearn and NumPy, in one run.

    python -m benchmarks.kernels [--scans 256] [--masks 500] [--quick] [--out FILE]

At 1 mm, files and stores in the page cache, every pair of figures measured in turn on the same
data. The peer of the store is nilearn's ``NiftiLabelsMasker`` on the scans' ``.nii.gz`` files,
as people use it: one process. Ours runs on Dask's threads, as many as there are cores, unless
the line says ``a core``. ``400 regions`` are compact pieces of the brain of equal size, an atlas
that the store is not sorted by; the 18 regions are unions of the parcels that it is sorted by.

- region means and medians from the store and from the files;
- the kernels alone, on rows in memory, beside the rate at which one core reads memory;
- lesion loads of 18 regions from the store;
- the lesion frequency map of all masks beside ``numpy.sum`` over a stack of volumes in memory;
- throughput against workers and cohort size (at 2 mm), and what Dask costs beside a plain loop.

Time that other processes of the machine took is printed: a figure of a busy machine is none.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import deflate
import nibabel as nib
import numba
import numpy as np
import xarray as xr

import scalebrain
from benchmarks.ingest import foreign_cpu, write_tree
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.regions import default_regions
from scalebrain.atlas.space import SPACE, Grid, brain_mask, template, template_grid
from scalebrain.features import parcellation_numba_fns as kernels
from scalebrain.features.parcellation import joined_moments
from scalebrain.features.segments import contiguous_runs, locate
from scalebrain.ingestion.geometry import static_variables
from scalebrain.io.rows import row_source


def pieces(grid: Grid, n: int) -> Atlas:
    """Cut the brain into compact regions of equal size."""
    flat = np.flatnonzero(brain_mask(grid))
    ijk = np.stack(np.unravel_index(flat, grid.shape), axis=1)
    label = np.zeros(len(ijk), dtype=np.int32)
    stack = [(np.arange(len(ijk)), n, 1)]
    while stack:
        members, parts, first = stack.pop()
        if parts == 1:
            label[members] = first
            continue
        points = ijk[members]
        axis = int(np.argmax(np.ptp(points, axis=0)))
        order = np.argsort(points[:, axis], kind="stable")
        cut = len(members) * (parts // 2) // parts
        stack.append((members[order[:cut]], parts // 2, first))
        stack.append((members[order[cut:]], parts - parts // 2, first + parts // 2))
    image = np.zeros(grid.size, dtype=np.int32)
    image[flat] = label
    codes = tuple(range(1, n + 1))
    return Atlas(
        f"pieces-{n}", grid, tuple(f"p{c}" for c in codes), codes, labels=image.reshape(grid.shape)
    )


def lesion(mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a lesion in the territory of a middle cerebral artery; the median is about 20 mL."""
    side = rng.choice([-1, 1])
    center = np.array([side * rng.normal(36, 8), rng.normal(-8, 22), rng.normal(16, 16)])
    radius = 16 * rng.lognormal(0, 0.45)
    scale = radius * rng.uniform(0.7, 1.3, 3)
    near = np.abs(mm - center).max(axis=1) < 1.4 * radius
    out = np.zeros(len(mm), dtype=bool)
    out[near] = (((mm[near] - center) / scale) ** 2).sum(axis=1) < 1
    return out


def write_masks(root: Path, grid: Grid, n: int, few: int) -> tuple[Path, list[Path]]:
    """Write a store of `n` lesion masks, and `few` of them as files."""
    static = static_variables(grid)
    mm = np.stack([static[a].values for a in "xyz"], axis=1)

    def rows(start: int, stop: int) -> np.ndarray:
        return np.stack([lesion(mm, np.random.default_rng(i)) for i in range(start, stop)])

    blocks = [
        da.from_delayed(
            dask.delayed(rows)(start, min(start + 16, n)),
            (min(16, n - start), len(mm)),
            dtype=bool,
        )
        for start in range(0, n, 16)
    ]
    ds = static.assign(
        lesion_mask=(("subject", "voxel"), da.concatenate(blocks)),
        lesion_present=("subject", np.ones(n, dtype=bool)),
    ).assign_coords(subject=[f"sub-{i:05d}" for i in range(n)])
    scalebrain.save_store(ds, root / "masks.zarr")
    opened = scalebrain.open_store(root / "masks.zarr")
    files = []
    for i in range(few):
        files.append(root / f"mask-{i}.nii.gz")
        volume = scalebrain.unpack(opened["lesion_mask"][i])
        image = nib.Nifti1Image(volume.values.astype(np.uint8), grid.matrix)
        nib.save(image, files[-1])
    return root / "masks.zarr", files


def write_scans(root: Path, grid: Grid, n: int) -> Path:
    """Write a store of `n` T1w rows without writing scans: for throughput by cohort size."""
    static = static_variables(grid)
    index = np.ravel_multi_index(
        tuple(
            np.rint((static[a].values - grid.matrix[i, 3]) / grid.matrix[i, i]).astype(int)
            for i, a in enumerate("xyz")
        ),
        grid.shape,
    )
    base = template("t1", grid).ravel()[index] * 900

    def rows(start: int, stop: int) -> np.ndarray:
        noise = np.random.default_rng(start).normal(0, 12, (stop - start, base.size))
        return (base + noise).clip(0).astype(np.int16).astype(np.float32)

    blocks = [
        da.from_delayed(
            dask.delayed(rows)(start, min(start + 16, n)),
            (min(16, n - start), base.size),
            dtype=np.float32,
        )
        for start in range(0, n, 16)
    ]
    ds = static.assign(t1w=(("subject", "voxel"), da.concatenate(blocks)))
    ds = ds.assign_coords(subject=[f"sub-{i:05d}" for i in range(n)])
    scalebrain.save_store(ds, root / f"scans-{n}.zarr")
    return root / f"scans-{n}.zarr"


def seconds(work: Callable[[], object]) -> float:
    """Time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Table:
    """Lines of the result, and whether they are what they should be."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(
        self,
        work: str,
        ours: Callable[[], object],
        peer: Callable[[], object] | float,
        *,
        n: int,
        n_peer: int,
        beside: str,
        goal: float | None = None,
        rounds: int,
        unit: str = "ms",
    ) -> None:
        """Measure a pair in turn, `rounds` times, after one call of each."""
        one: list[float] = []
        other: list[float] = []

        def measure() -> None:
            for _ in range(rounds):
                if callable(peer):
                    other.append(seconds(peer) / n_peer)
                one.append(seconds(ours) / n)

        ours()
        if callable(peer):
            peer()
        foreign = foreign_cpu(measure)
        fast = statistics.median(one)
        slow = statistics.median(other) if callable(peer) else peer
        ratio = (
            statistics.median(b / a for a, b in zip(one, other, strict=True))
            if callable(peer)
            else slow / fast
        )
        self.lines.append(
            {
                "work": work,
                "beside": beside,
                f"ours_{unit}": 1e3 * fast,
                f"peer_{unit}": 1e3 * slow,
                "ratio": ratio,
                "goal": goal,
                "foreign_cpu": foreign,
            }
        )
        goal_text = "" if goal is None else f", at least {goal:g}"
        print(
            f"{work:58s} {1e3 * fast:9.3f} ms  {beside}: {1e3 * slow:9.2f} ms  "
            f"{ratio:7.2f}x{goal_text}  (others {foreign:.0%})",
            flush=True,
        )


@numba.njit(nogil=True, fastmath=True)
def read_memory(values: np.ndarray) -> float:
    """Read rows as fast as one core can."""
    total = np.float32(0)
    for i in range(values.shape[0]):
        row = values[i]
        for v in range(row.size):
            total += row[v]
    return float(total)


def masker(atlas: Atlas, strategy: str, files: Sequence[Path]) -> Callable[[], object]:
    """Nilearn's masker on files, fitted, its labels on the grid of the files already."""
    from nilearn.maskers import NiftiLabelsMasker

    own = nib.load(files[0])
    labels = atlas.labels_on(Grid.from_matrix(own.shape, own.affine))
    image = nib.Nifti1Image(labels, own.affine)
    fitted = NiftiLabelsMasker(image, strategy=strategy, standardize=None).fit()
    return lambda: [fitted.transform(str(file)) for file in files]


def one_core(work: Callable[[], object]) -> Callable[[], object]:
    """Run on one thread."""

    def call() -> object:
        with dask.config.set(scheduler="single-threaded"):
            return work()

    return call


def regions_atlas(grid: Grid) -> Atlas:
    """One label image of regions that do not overlap, for nilearn's loads."""
    parcels = parcel_image(grid)
    regions = default_regions()
    labels = np.zeros(grid.shape, dtype=np.int32)
    for i, region in enumerate(regions.regions, start=1):
        labels[np.isin(parcels, regions.parcels[region]) & (labels == 0)] = i
    codes = tuple(range(1, 19))
    return Atlas("regions", grid, regions.regions, codes, labels=labels)


def means(table: Table, folder: Path, grid: Grid, options: argparse.Namespace) -> None:
    """Means and medians, from the store and from files."""
    paths = write_tree(folder / "tree", options.scans, options.resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scalebrain.ingest(folder / "tree", folder / "store.zarr")
    ds = scalebrain.open_store(folder / "store.zarr")
    n, few, rounds = options.scans, paths[: options.peer_scans], options.rounds
    atlas = pieces(grid, 400 if grid.voxel_volume < 9 else 50)
    regions = default_regions()
    peer = masker(atlas, "mean", few)
    common = {"n": n, "n_peer": len(few), "rounds": rounds}
    table.add(
        "region means from the store, 18 regions of parcels",
        lambda: scalebrain.parcellate(ds, regions=regions)["t1w_mean"].data.compute(),
        peer, beside="nilearn", goal=300, **common,
    )  # fmt: skip
    lazy = scalebrain.parcellate(ds, regions=atlas)["t1w_mean"].data
    table.add(
        f"region means from the store, an atlas of {len(atlas.regions)} regions",
        lazy.compute, peer, beside="nilearn", goal=300, **common,
    )  # fmt: skip
    table.add(
        "the same, a core",
        one_core(lazy.compute), peer, beside="nilearn", **common,
    )  # fmt: skip
    median = scalebrain.parcellate(ds, regions=atlas, statistics=("median",))["t1w_median"].data
    table.add(
        "medians from the store",
        median.compute, masker(atlas, "median", few[:2]), beside="nilearn", goal=40,
        n=n, n_peer=2, rounds=rounds,
    )  # fmt: skip
    files = paths[: min(16, n)]
    straight = scalebrain.parcellate_files(files, regions=atlas)["image_mean"].data
    table.add(
        "region means from .nii.gz, no store, a core",
        one_core(straight.compute), peer, beside="nilearn", goal=15,
        n=len(files), n_peer=len(few), rounds=rounds,
    )  # fmt: skip

    def decode() -> None:
        for path in files:
            raw = path.read_bytes()
            deflate.gzip_decompress(raw, int.from_bytes(raw[-4:], "little"))

    table.add(
        "the same",
        one_core(straight.compute), decode, beside="libdeflate alone", goal=0.9,
        n=len(files), n_peer=len(files), rounds=max(rounds, 5),
    )  # fmt: skip
    found = scalebrain.parcellate(ds.isel(subject=[0]), regions=atlas).compute()["t1w_mean"]
    theirs = np.ravel(masker(atlas, "mean", paths[:1])()[0])
    np.testing.assert_allclose(found[0], theirs, rtol=1e-6)


def memory(table: Table, grid: Grid, options: argparse.Namespace) -> None:
    """Kernels on rows in memory, far more of them than any cache holds."""
    static = static_variables(grid)
    codes = np.unique(static["parcel"].values)
    codes = codes[codes > 0]
    starts, stops = contiguous_runs(static["parcel"], codes)
    rows = np.random.default_rng(0).normal(900, 90, (32, static.sizes["voxel"]))
    rows = rows.astype(np.float32)
    used = int((stops - starts).sum())
    read = rows[:, :used].copy()  # the bytes that the kernels read
    read_memory(read)
    for name, level, goal in (("mean", 1, 0.6), ("all moments", 3, 0.35)):

        def ours(level: int = level) -> None:
            for row in rows:
                out = np.zeros((codes.size, kernels.N_MOMENTS))
                kernels.add_moments(row, starts, stops, level, out)

        table.add(
            f"kernel alone, {name}, a row", ours, lambda: read_memory(read),
            beside="reading its bytes", goal=goal, n=len(rows), n_peer=len(rows),
            rounds=5 * options.rounds,
        )  # fmt: skip


def lesions(table: Table, folder: Path, grid: Grid, options: argparse.Namespace) -> None:
    """Loads and the frequency map."""
    store, files = write_masks(folder, grid, options.masks, options.peer_scans)
    ds = scalebrain.open_store(store)
    n = options.masks
    loads = scalebrain.lesion_load(ds)["lesion_load"].data
    table.add(
        "lesion load from the store, 18 regions",
        loads.compute, masker(regions_atlas(grid), "mean", files), beside="nilearn", goal=300,
        n=n, n_peer=len(files), rounds=options.rounds,
    )  # fmt: skip
    whole = np.zeros((n, *grid.shape), dtype=np.uint8)
    for i in range(n):
        whole[i] = scalebrain.unpack(ds["lesion_mask"][i]).values
    frequency = scalebrain.lesion_frequency(ds)["lesion_frequency"]
    table.add(
        f"frequency map of {n} masks from the store, a map",
        frequency.compute, lambda: whole.sum(axis=0), beside="numpy.sum of volumes in memory",
        goal=10, n=1, n_peer=1, rounds=options.rounds,
    )  # fmt: skip
    expected = whole.sum(axis=0) / n
    np.testing.assert_allclose(
        np.nan_to_num(scalebrain.unpack(frequency).values), expected, atol=1e-7
    )


def scaling(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Throughput against workers and cohort size, and the cost of Dask."""
    from distributed import Client, LocalCluster

    from scalebrain.cluster.threads import WORKER_ENVIRONMENT

    grid = template_grid(2.0 if not options.quick else 4.0)
    out: dict[str, Any] = {"ms_per_scan": {}}
    sizes = (100, 1000, 5000) if not options.quick else (20, 40)
    stores = {n: write_scans(folder, grid, n) for n in sizes}
    settings = {
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        "distributed.scheduler.worker-saturation": "inf",
    }
    regions = default_regions()
    for workers in (1, 2):
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster),
        ):
            for n in sizes:
                ds = scalebrain.open_store(stores[n])

                def work(ds: xr.Dataset = ds) -> None:
                    scalebrain.parcellate(ds, regions=regions)["t1w_mean"].data.compute()

                work()
                took = statistics.median(seconds(work) for _ in range(options.rounds))
                out["ms_per_scan"][f"{workers} worker, {n} subjects"] = 1e3 * took / n
                print(f"{workers} worker(s), {n:5d} subjects: {1e3 * took / n:.3f} ms a scan")
    n = sizes[-1]
    last = out["ms_per_scan"]
    out["two_workers_beside_one"] = (
        last[f"1 worker, {n} subjects"] / last[f"2 worker, {n} subjects"]
    )
    store = str(stores[n])
    data = scalebrain.parcellate(scalebrain.open_store(store), regions=regions)["t1w_mean"].data
    with dask.config.set(scheduler="single-threaded"):
        data.compute()
        pairs = [(_timed_loop(store), seconds(data.compute)) for _ in range(2 * options.rounds + 1)]
    out["dask_beside_a_plain_loop"] = statistics.median(b / a for a, b in pairs)
    print(f"Dask, one thread, beside a plain loop: {out['dask_beside_a_plain_loop']:.3f}")
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        data.compute()
        pairs = []
        for _ in range(2 * options.rounds + 1):
            alone = client.submit(_timed_loop, store, pure=False).result()
            pairs.append((alone, seconds(data.compute)))
    out["cluster_beside_a_plain_loop"] = statistics.median(b / a for a, b in pairs)
    print(f"One worker beside a plain loop in it: {out['cluster_beside_a_plain_loop']:.3f}")
    return out


def _timed_loop(store: str) -> float:
    """Seconds of a plain loop over the rows of a store, without Dask."""
    ds = scalebrain.open_store(store)
    source = row_source(ds["t1w"].data)
    segments = locate(ds, default_regions())
    span, within = segments.span, segments.within_span()

    def loop() -> None:
        parts = np.zeros((ds.sizes["subject"], within.starts.size, kernels.N_MOMENTS))
        runs = within.starts, within.stops
        for out, row in zip(parts, source.encoded(0, len(parts), span=span), strict=True):
            kernels.add_encoded_moments(row.content, row.bounds, row.first, row.n, *runs, 1, out)
        joined_moments(parts, within.member, 1)

    loop()
    return seconds(loop)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=256)
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-scans", type=int, default=4)
    parser.add_argument("--resolution", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="Small and coarse: does it run?")
    parser.add_argument("--no-scaling", action="store_true", help="Leave the scaling out.")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.scans, options.masks, options.rounds, options.resolution = 20, 20, 1, 4.0
        options.peer_scans = 2
    grid = template_grid(options.resolution)
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        means(table, folder, grid, options)
        memory(table, grid, options)
        lesions(table, folder, grid, options)
        scale = {} if options.no_scaling else scaling(folder, options)
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "space": SPACE,
        "resolution_mm": options.resolution,
        "table": table.lines,
        "scaling": scale,
    }
    print(json.dumps(scale, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
