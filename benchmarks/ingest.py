"""Speed and memory of the ingest at 1 mm, beside what it is compared with, in one run.

    python -m benchmarks.ingest [--scans 128] [--rounds 3] [--quick] [--out FILE]

Every round times, one after the other and on the same scans in the page cache:

- ``loop``: ``get_fdata()`` and a write into a Zarr array with Zarr's defaults, one scan after
  the other, as scripts do it (Zarr compresses on all cores);
- ``pool``: the same as a careful script does it: float32, one chunk a scan, spread over as
  many processes as the ingest has workers;
- ``libdeflate``: the scans decoded and thrown away, on as many threads;
- ``ingest, 1 worker`` and ``ingest, 2 workers``: :func:`scalebrain.ingest` on worker
  processes of one thread, from the folder to the finished store, templates and kernels
  loaded. ``start`` is the part of it that does not grow with the cohort, from an ingest of
  a few scans; ratios are given with it and without.

Ratios are medians over rounds. Memory is the largest resident set of a worker process.
Time of other processes on the machine is printed: a round on a busy machine is no figure.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import deflate
import nibabel as nib
import numpy as np
import zarr

import scalebrain
from scalebrain.atlas.space import SPACE, template, template_grid


def write_tree(root: Path, n: int, resolution: float) -> list[Path]:
    """Write scans as they come from a scanner: head, skull, noise, int16, header in LAS."""
    grid = template_grid(resolution)
    rng = np.random.default_rng(0)
    brain = template("t1", grid)
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    radius = np.linalg.norm((mm - [0, -18, 8]) / [82, 104, 88], axis=-1)
    head = np.where(brain > 0, brain, 0.55 * ((radius > 0.9) & (radius < 1.12)))
    inside = radius < 1.15
    rows = ["participant_id\tage\tsex\tcohort\tgroup\ticv"]
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = grid.shape[0] - 1
    paths = []
    for i in range(n):
        subject = f"sub-{i:05d}"
        path = root / subject / "anat" / f"{subject}_space-{SPACE}_desc-preproc_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        noise = rng.normal(0, 12, grid.shape).astype(np.float32)
        image = np.where(inside, head * (900 + i) + noise, 0).clip(0).astype(np.int16)
        nib.Nifti1Image(image[::-1], grid.matrix @ flip).to_filename(path)
        rows.append(f"{subject}\t{50 + i % 30}\tF\tsite{i % 4}\treference\t1500")
        paths.append(path)
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return paths


def peer(task: tuple[list[str], list[int], str]) -> None:
    """Read and write scans as a careful script does."""
    paths, rows, store = task
    array = zarr.open_array(store, mode="r+")
    for path, row in zip(paths, rows, strict=True):
        array[row] = nib.load(path).get_fdata()


def time_loop(paths: list[Path], folder: Path) -> float:
    """Seconds of the plain loop."""
    shape = nib.load(paths[0]).shape
    array = zarr.create_array(
        folder / "loop.zarr", shape=(len(paths), *shape), dtype=np.float64, overwrite=True
    )
    start = time.perf_counter()
    for row, path in enumerate(paths):
        array[row] = nib.load(path).get_fdata()
    seconds = time.perf_counter() - start
    shutil.rmtree(folder / "loop.zarr")
    return seconds


def time_pool(paths: list[Path], workers: int, folder: Path) -> float:
    """Seconds of the careful script, on `workers` processes that are up."""
    shape = nib.load(paths[0]).shape
    store = folder / "peer.zarr"
    zarr.create_array(
        store, shape=(len(paths), *shape), chunks=(1, *shape), dtype=np.float32, overwrite=True
    )
    split = np.array_split(np.arange(len(paths)), workers)
    tasks = [([str(paths[i]) for i in part], part.tolist(), str(store)) for part in split]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(peer, [([], [], str(store))] * workers)  # imports are not timed
        start = time.perf_counter()
        pool.map(peer, tasks, chunksize=1)
        seconds = time.perf_counter() - start
    shutil.rmtree(store)
    return seconds


def decode(path: Path) -> None:
    """Read and inflate one scan."""
    raw = path.read_bytes()
    deflate.gzip_decompress(raw, int.from_bytes(raw[-4:], "little"))


def time_decode(paths: list[Path], workers: int) -> float:
    """Seconds of libdeflate alone, on `workers` threads."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(decode, paths))
    return time.perf_counter() - start


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def time_ingest(tree: Path, workers: int, folder: Path) -> tuple[float, float, list[int], int]:
    """Seconds of an ingest and of one of few scans, peak memory of workers, bytes of the store."""
    import dask
    import distributed

    from scalebrain.cluster.threads import WORKER_ENVIRONMENT

    store = folder / "ours.zarr"
    with (
        dask.config.set(
            {
                "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
                "distributed.scheduler.worker-saturation": "inf",
            }
        ),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        seconds = 0.0
        for _ in range(2):  # the first loads templates and compiles kernels, once a worker
            shutil.rmtree(store, ignore_errors=True)
            start = time.perf_counter()
            scalebrain.ingest(tree, store)
            seconds = time.perf_counter() - start
        start = time.perf_counter()
        scalebrain.ingest(tree.parent / "few", folder / "few.zarr")
        fixed = time.perf_counter() - start
        peaks = sorted(client.run(peak_memory).values())
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    shutil.rmtree(store)
    shutil.rmtree(folder / "few.zarr")
    return seconds, fixed, peaks, size


def foreign_cpu(work: Callable[[], object]) -> float:
    """Part of the machine's processor time that others took while `work` ran."""

    def machine() -> tuple[float, float]:
        fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(fields), sum(fields) - fields[3] - fields[4]

    total, busy = machine()
    own = sum(os.times()[:4])
    work()
    total2, busy2 = machine()
    ticks = os.sysconf("SC_CLK_TCK")
    return max(0.0, (busy2 - busy - (sum(os.times()[:4]) - own) * ticks) / max(total2 - total, 1))


def ratios(rounds: list[dict[str, float]], one: str, two: str) -> dict[str, float]:
    """Ratios of the ingest to what it is compared with, medians over rounds."""
    return {
        "times_loop": statistics.median(r["loop"] / r[two] for r in rounds),
        "times_pool": statistics.median(r["pool"] / r[two] for r in rounds),
        "fraction_of_libdeflate": statistics.median(r["libdeflate"] / r[two] for r in rounds),
        "two_workers_beside_one": statistics.median(r[one] / r[two] for r in rounds),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-scans", type=int, default=24)
    parser.add_argument("--resolution", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="Small and coarse: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.scans, options.rounds, options.peer_scans, options.resolution = 20, 1, 4, 4.0
    workers = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_tree(folder / "tree", options.scans, options.resolution)
        write_tree(folder / "few", 1, options.resolution)
        n = len(paths)
        size = sum(path.stat().st_size for path in paths)
        rounds = []
        for _ in range(options.rounds):
            one: dict[str, float] = {}

            def measure(one: dict[str, float] = one) -> None:
                few = paths[: options.peer_scans]
                one["loop"] = time_loop(few, folder) / len(few)
                one["pool"] = time_pool(few, workers, folder) / len(few)
                one["libdeflate"] = time_decode(paths, workers) / n
                two, one["start"], peaks, one["store_bytes"] = time_ingest(
                    folder / "tree", workers, folder
                )
                one["two"], one["peak"] = two / n, max(peaks)
                single, start, peaks, _ = time_ingest(folder / "tree", 1, folder)
                one["one"], one["peak_one"] = single / n, max(peaks)
                one["two_rate"] = (two - one["start"]) / (n - 1)
                one["one_rate"] = (single - start) / (n - 1)

            one["foreign_cpu"] = foreign_cpu(measure)
            rounds.append(one)
            print({key: round(value, 4) for key, value in one.items()}, flush=True)
    middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    result = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "scans": n,
        "resolution_mm": options.resolution,
        "source_mb_per_scan": size / n / 1e6,
        "ms_per_scan": {
            "get_fdata + zarr defaults, a loop": 1e3 * middle["loop"],
            "get_fdata + zarr, float32, 2 processes": 1e3 * middle["pool"],
            "libdeflate alone": 1e3 * middle["libdeflate"],
            "ingest, 2 workers": 1e3 * middle["two"],
            "ingest, 1 worker": 1e3 * middle["one"],
            "ingest, 2 workers, without start": 1e3 * middle["two_rate"],
            "ingest, 1 worker, without start": 1e3 * middle["one_rate"],
        },
        "start_s": middle["start"],
        "with_start": ratios(rounds, "one", "two"),
        "without_start": ratios(rounds, "one_rate", "two_rate"),
        "peak_worker_mib": max(max(r["peak"], r["peak_one"]) for r in rounds) / 2**20,
        "store_mb_per_scan": middle["store_bytes"] / n / 1e6,
        "foreign_cpu": max(r["foreign_cpu"] for r in rounds),
        "rounds": rounds,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
