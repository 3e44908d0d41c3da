"""What masking the lesion in the cost of a registration is worth, and what the pipeline costs.

    python -m benchmarks.preprocess HEAD... [--quick] [--threads 2] [--only masking] [--repeats 3]

HEAD is a T1w scan of a healthy head in native space (Debian's mricron-data: ch2.nii.gz; the source
distributions of pycortex and pydeface hold one each), or NAME=SCAN. Lesions of three sizes are put
into it. The truth is what the transform of the head without a lesion makes of the mask. The times
are those of the steps, and of `scalebrain preprocess` as a whole (Python's start, every step, the
files) without and with a lesion of 40 mL, beside plain antsRegistrationSyNQuick: medians of
`--repeats` runs that take turns. They are those of this machine; CPU seconds are what a busy
machine leaves comparable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

import scalebrain
from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.space import brain_mask, template_grid
from scalebrain.preprocessing.images import template_image, to_ants, widened
from scalebrain.preprocessing.native import Head, correct_bias, find_brain, read_head
from scalebrain.preprocessing.normalize import Warp, normalize, to_template
from scalebrain.preprocessing.settings import Settings
from scalebrain.preprocessing.tissues import segment

SIZES = (5.0, 40.0, 150.0)
CENTER = (38.0, -10.0, 20.0)  # mm in the template: right, beside the insula
PLAIN = "antsRegistrationSyNQuick[s]"
SIZE = 2.0  # mm of the grid on which everything is compared


def with_lesion(head: Head, plain: Head, volume: float, seed: int = 1) -> Head:
    """Head with a cavity of a volume in mL, in one hemisphere of its brain."""
    mm = head.grid.coordinates(np.arange(head.grid.size))
    at = np.linalg.inv(plain.affine)
    there = mm @ at[:3, :3].T + at[:3, 3]
    inside = plain.brain.ravel() & (there[:, 0] > 5)
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(there - np.array(CENTER), axis=1)
    distance *= 1 + 0.15 * np.sin(there @ rng.normal(0, 0.15, 3) + 1)
    distance[~inside] = np.inf
    n = round(volume / (head.grid.voxel_volume / 1000))
    lesion = np.zeros(head.grid.size, dtype=bool)
    lesion[np.argsort(distance)[:n]] = True
    lesion = lesion.reshape(head.grid.shape)
    low = float(np.percentile(head.data[plain.brain], 2))
    data = head.data.copy()
    data[lesion] = np.maximum(low * (1 + 0.15 * rng.standard_normal(int(lesion.sum()))), 0)
    return replace(
        head,
        data=data.astype(np.float32),
        lesion=lesion,
        lesion_volume=n * head.grid.voxel_volume / 1000,
    )


def run(head: Head, settings: Settings, folder: str, plain: Head | None) -> tuple[Head, Warp]:
    """Scan and its transforms; of `plain` the brain is taken, so that the registration differs."""
    Path(folder).mkdir()
    if plain is None:
        head = find_brain(correct_bias(head), settings, folder)
    else:
        head = replace(head, brain=plain.brain, affine=plain.affine)
    return head, normalize(head, settings, folder)


def coordinates(head: Head, warp: Warp) -> np.ndarray:
    """Where in the scan each voxel of the template comes from, (x, y, z, 3) mm."""
    mm = head.grid.coordinates(np.arange(head.grid.size)).reshape(*head.grid.shape, 3)
    return np.stack([to_template(mm[..., a], head.grid, warp, SIZE) for a in range(3)], axis=-1)


def features(head: Head, warp: Warp, lesion: np.ndarray | None) -> dict[str, np.ndarray]:
    brain = np.where(head.brain, head.data, np.float32(0))
    moved = np.maximum(to_template(brain, head.grid, warp, SIZE), 0)
    tissues = segment(moved, lesion, SIZE)
    return {"t1w": moved / tissues.mean[2], "gm": tissues.grey}


def node_means(image: np.ndarray, parcel: np.ndarray, used: np.ndarray) -> np.ndarray:
    n = int(parcel.max()) + 1
    count = np.bincount(parcel[used], minlength=n)
    total = np.bincount(parcel[used], weights=image[used], minlength=n)
    return np.where(count >= 50, total / np.maximum(count, 1), np.nan)[1:]


def laterality(mask: np.ndarray) -> float:
    x = template_grid(SIZE).coordinates(np.flatnonzero(mask))[:, 0]
    left, right = (x < 0).sum(), (x > 0).sum()
    return float((left - right) / max(left + right, 1))


def compare(name: str, path: Path, settings: Settings, folder: str, whole: bool) -> list[dict]:
    grid = template_grid(SIZE)
    inside = brain_mask(grid)
    parcel = parcel_image(grid)
    original = head = read_head(path, None, settings)
    plain, truth = run(head, settings, f"{folder}/{name}-plain", None)
    head = plain
    from_truth = coordinates(plain, truth)
    rows = []
    for volume in SIZES:
        lesioned = with_lesion(original if whole else plain, plain, volume)
        true_mask = to_template(lesioned.lesion, head.grid, truth, SIZE, how="genericLabel") > 0.5
        left_out = widened(true_mask, grid, 4.0)
        expected = features(plain, truth, true_mask)
        used = inside & ~left_out
        near = used & widened(true_mask, grid, 24.0)
        for masked in (True, False):
            some = replace(settings, cost_mask=masked)
            begun = time.perf_counter(), os.times()
            found, warp = run(
                lesioned,
                some,
                f"{folder}/{name}-{volume:.0f}-{masked}",
                None if whole else plain,
            )
            wall, cpu = time.perf_counter() - begun[0], sum(os.times()[:2]) - sum(begun[1][:2])
            mask = to_template(lesioned.lesion, head.grid, warp, SIZE, how="genericLabel") > 0.5
            moved = np.linalg.norm(coordinates(found, warp) - from_truth, axis=-1)
            both = features(found, warp, mask)
            shifts = {}
            for image in ("t1w", "gm"):
                a = node_means(expected[image], parcel, used)
                b = node_means(both[image], parcel, used)
                shifts[image] = float(np.nanmean(np.abs(b - a)) / np.nanstd(a))
            rows.append(
                {
                    "head": name,
                    "lesion_ml": volume,
                    "masked": masked,
                    "volume_truth_ml": float(true_mask.sum() * grid.voxel_volume / 1000),
                    "volume_ml": float(mask.sum() * grid.voxel_volume / 1000),
                    "dice": float(2 * (mask & true_mask).sum() / (mask.sum() + true_mask.sum())),
                    "laterality_truth": laterality(true_mask),
                    "laterality": laterality(mask),
                    "moved_in_lesion_mm": float(moved[true_mask].mean()),
                    "moved_near_mm": float(moved[near].mean()),
                    "moved_elsewhere_mm": float(moved[used & ~near].mean()),
                    "t1w_shift_sd": shifts["t1w"],
                    "gm_shift_sd": shifts["gm"],
                    "wall_s": wall,
                    "cpu_s": cpu,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def spent(function) -> tuple[object, dict[str, float]]:
    wall, cpu = time.perf_counter(), os.times()
    out = function()
    return out, {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": sum(os.times()[:2]) - sum(cpu[:2]),
    }


def whole_way(head: Head, settings: Settings, quick: bool, folder: str) -> dict[str, float]:
    """Seconds of `scalebrain preprocess` for one scan, its processes and files included."""
    anat = Path(folder) / "raw" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    scan = nib.Nifti1Image(head.data, head.grid.matrix)
    scan.set_sform(head.grid.matrix, 1)
    nib.save(scan, anat / "sub-01_T1w.nii.gz")
    if head.lesion is not None:
        mask = nib.Nifti1Image(head.lesion.astype(np.uint8), head.grid.matrix)
        mask.set_sform(head.grid.matrix, 1)
        nib.save(mask, anat / "sub-01_label-L_mask.nii.gz")
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    table = scalebrain.preprocess(
        Path(folder) / "raw", Path(folder) / "out", quick=quick, threads=settings.threads
    )
    # processes that have ended are counted in the third and fourth
    spent_here = {"wall_s": time.perf_counter() - wall, "cpu_s": sum(os.times()[:4]) - cpu}
    if table.attrs["n_done"] != 1:
        raise SystemExit(table.to_string())
    return spent_here


def plain_way(fixed: str, moving: str, prefix: str) -> dict[str, float]:
    """Seconds of plain antsRegistrationSyNQuick, in a process of its own as a scan has.

    Repeated in one process, it takes longer each time.
    """
    work = (
        "import sys, ants; fixed, moving, kind, prefix = sys.argv[1:]; "
        "ants.registration(ants.image_read(fixed), ants.image_read(moving), kind, outprefix=prefix)"
    )
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    subprocess.run([sys.executable, "-c", work, fixed, moving, PLAIN, prefix], check=True)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": sum(os.times()[:4]) - cpu}


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds."""
    return {unit: statistics.median(run[unit] for run in runs) for unit in runs[0]}


def times(
    name: str, path: Path, settings: Settings, folder: str, quick: bool, repeats: int
) -> dict:
    """Seconds of every stage and of everything, beside plain antsRegistrationSyNQuick."""
    import ants

    Path(f"{folder}/{name}-times").mkdir()
    stages = {}
    head, stages["read"] = spent(lambda: read_head(path, None, settings))
    corrected, stages["bias"] = spent(lambda: correct_bias(head))
    found, stages["brain"] = spent(
        lambda: find_brain(corrected, settings, f"{folder}/{name}-times")
    )
    warp, stages["registration"] = spent(
        lambda: normalize(found, settings, f"{folder}/{name}-times")
    )
    brain = np.where(found.brain, found.data, np.float32(0))
    size = settings.work / 2  # plain antsRegistrationSyNQuick looks at twice its voxels
    moved, stages["warping"] = spent(lambda: to_template(brain, head.grid, warp, size))
    _, stages["tissues"] = spent(lambda: segment(np.maximum(moved, 0), None, size))
    fixed = f"{folder}/{name}-fixed.nii"
    ants.image_write(template_image("t1", size), fixed)
    broken = with_lesion(head, found, 40.0)
    runs: dict[str, dict[str, list]] = {}
    for turn in range(repeats):
        for lesion, scan in (("no lesion", head), ("40 mL", broken)):
            place = f"{folder}/{name}-{turn}-{lesion}"
            moving = f"{place}.nii"
            brain = np.where(found.brain, scan.data, np.float32(0))
            ants.image_write(to_ants(brain, scan.grid), moving)
            now = runs.setdefault(lesion, {"plain": [], "whole": []})
            now["plain"].append(plain_way(fixed, moving, f"{place}-plain"))
            now["whole"].append(whole_way(scan, settings, quick, f"{place}-whole"))
    steps = {u: sum(stage[u] for stage in stages.values()) for u in ("wall_s", "cpu_s")}
    return {
        "head": name,
        "command": "scalebrain preprocess" + (" --quick" if quick else ""),
        "plain_kind": f"{PLAIN} to {size:g} mm",
        "stages": stages | {"all steps": steps},
        "runs": runs,
        "medians": {
            lesion: {what: median(found) for what, found in both.items()}
            for lesion, both in runs.items()
        },
    }


def named(head: str) -> tuple[str, Path]:
    """Name and file of a head that is given as a file or as NAME=FILE."""
    name, _, path = head.rpartition("=")
    return name or Path(path).name.split(".")[0], Path(path)


def print_masking(rows: list[dict]) -> None:
    """Table of every head, size and way."""
    columns = [
        *("head", "lesion_ml", "masked", "volume_truth_ml", "volume_ml", "error_%", "dice"),
        *("laterality_truth", "laterality", "moved_in_lesion_mm", "moved_near_mm"),
        *("moved_elsewhere_mm", "t1w_shift_sd", "gm_shift_sd"),
    ]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        error = 100 * (row["volume_ml"] / row["volume_truth_ml"] - 1)
        row = {**row, "error_%": f"{error:+.0f}"}
        cells = [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        print("| " + " | ".join(cells) + " |")


def print_times(row: dict) -> None:
    """Seconds of one head: its steps, and the command beside the plain registration."""
    plain = row["medians"]["no lesion"]["plain"]
    lines = [(f"step {step}", spent, plain) for step, spent in row["stages"].items()]
    for lesion, both in row["medians"].items():
        lines += [
            (f"{row['command']}, {lesion}", both["whole"], both["plain"]),
            (f"plain {row['plain_kind']}, {lesion}", both["plain"], both["plain"]),
        ]
    print(f"\n| {row['head']} | wall, s | CPU, s | wall of plain | CPU of plain |")
    print("|---|---|---|---|---|")
    for what, used, beside in lines:
        shares = [f"{used[unit] / beside[unit]:.0%}" for unit in ("wall_s", "cpu_s")]
        cells = [what, f"{used['wall_s']:.1f}", f"{used['cpu_s']:.1f}", *shares]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", nargs="+", type=named)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="SyN on voxels of 4 mm, bias and brain found once: minutes instead of an hour",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["masking", "times"])
    parser.add_argument("--repeats", type=int, default=1, help="runs of which medians are given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # before ANTs is loaded
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(options.threads)
    settings = Settings(work=4.0 if options.quick else 2.0, threads=options.threads)
    result: dict[str, list] = {"masking": [], "times": []}
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # ants.atropos leaves its images behind
        for name, path in options.heads:
            if options.only != "times":
                result["masking"] += compare(name, path, settings, folder, not options.quick)
            if options.only != "masking":
                found = times(name, path, settings, folder, options.quick, options.repeats)
                result["times"].append(found)
                print(json.dumps(result["times"][-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(result, indent=2) + "\n")
    if result["masking"]:
        print_masking(result["masking"])
    for row in result["times"]:
        print_times(row)


if __name__ == "__main__":
    main()
