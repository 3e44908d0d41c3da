"""The whole study at its real size, on this machine: wall time, memory and bytes by stage.

    python -m benchmarks.study [--reference 17791] [--stroke 501] [--cohorts 34] [--level 4]
        [--volume-reference 250,500,1000] [--scaling 1000,4000,16000] [--folder FOLDER]
        [--parts surface,volume,scaling] [--quick] [--out FILE]

1. surface: everyone has a simulated FreeSurfer folder, the strokes a lesion mask. The commands
   ``scalebrain simulate --surfaces`` and ``scalebrain run``, as anyone would call them, with five
   folds and training to its early stop.
2. volume: the same at 2 mm with scans, all strokes and a part of the references, three parts; the
   stages that depend on the references are extrapolated along the measured line.
3. scaling: surface studies of growing cohorts, strokes in proportion, epochs fixed, so that
   the time of a person can be told from that of the start.

A watcher adds up the processes of a command once a second: proportional set size, bytes read and
written by system calls (caches or not), processor time. Everything is simulated: what is said here
is how long a study takes, not what one finds.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import scalebrain
from benchmarks.watched import Watched, by_stage, watch
from scalebrain.config import StudyConfig
from scalebrain.graph.model import BrainAgeModel

GOALS = {"minutes": 90.0, "gib": 8.0, "exponent": (0.95, 1.05)}
#: A study stops training after so many epochs without a better validation error.
PATIENCE = 8
_PER_PERSON = ("ingest", "features", "train", "predict", "export")


def simulate(
    folder: Path, reference: int, stroke: int, options: argparse.Namespace, *, surfaces: bool
) -> Watched:
    """Simulate a cohort by the command; one that is there stays."""
    command = [sys.executable, "-m", "scalebrain.cli", "simulate", str(folder / "bids")]
    command += ["--reference", str(reference), "--stroke", str(stroke)]
    command += ["--cohorts", str(options.cohorts), "--resolution", str(options.resolution)]
    command += ["--surfaces"] if surfaces else []
    folder.mkdir(parents=True, exist_ok=True)
    return watch(command, folder / "simulate.txt")


def study(folder: Path, config: dict[str, Any]) -> tuple[Watched, dict[str, dict[str, float]]]:
    """Run a study by the command, from nothing."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "scalebrain.cli", "run", str(folder / "bids"), str(out)]
    command += ["--config", str(folder / "study.yaml"), "--truth", str(folder / "truth.json")]
    watched = watch(command, folder / "run.txt")
    return watched, by_stage(watched, out / "log.jsonl")


def one(
    folder: Path, reference: int, stroke: int, config: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Simulate and run one study."""
    surfaces = config["nodes"] != "volume"
    drawn = simulate(folder, reference, stroke, options, surfaces=surfaces)
    watched, stages = study(folder, config)
    model = BrainAgeModel.load(folder / "out" / "model")
    metrics = model.metrics.values()
    store = folder / "out" / "cohort.zarr"
    return {
        "reference": reference,
        "stroke": stroke,
        "simulate_s": drawn.seconds,
        "seconds": watched.seconds,
        "peak_bytes": max(s.memory for s in watched.samples),
        "foreign_cpu": watched.foreign_cpu,
        "stages": stages,
        "epochs": [len(fold.curve) - 1 for fold in model.folds],
        "mae": float(np.mean([m["mae"] for m in metrics])),
        "mae_of_mean": float(np.mean([m["mae_mean"] for m in metrics])),
        "source_bytes": size_of(folder / "bids"),
        "store_bytes": size_of(store),
        "report_bytes": (folder / "out" / "report.html").stat().st_size,
    }


def effects(folder: Path) -> pd.DataFrame:
    """Planted effects of lesion volume, their estimates, and those of the true deviations.

    The last column tells what a sample of this size holds from what the brain ages add to it.
    """
    found = pd.read_csv(folder / "out" / "tables" / "recovery.tsv", sep="\t")
    found = found[found["effect"].str.startswith("lesion volume")].reset_index(drop=True)
    ds = scalebrain.open_store(folder / "out" / "cohort.zarr")
    truth = scalebrain.open_store(folder / "truth.zarr")["true_deviation"]
    true = truth.sel(subject=ds["subject"].values, region=ds["region"].values)
    known = ds.drop_dims(["voxel", "vertex", "node"], errors="ignore").assign(
        brain_pad_corrected=(("subject", "region"), true.values)
    )
    mixed = scalebrain.mixed_model(scalebrain.to_lesional_sides(known), StudyConfig().formula)
    term = next(str(t) for t in mixed["term"].values if "lesion_volume" in str(t))
    names = [
        effect.removeprefix("lesion volume on ").replace(" ", "_") for effect in found["effect"]
    ]
    one = mixed["estimate"].sel(term=term, region=names).values
    return found[["effect", "planted", "estimate", "ci_low", "ci_high", "inside"]].assign(
        of_true_deviations=one
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def line(runs: list[dict[str, Any]], people: int) -> dict[str, dict[str, float]]:
    """Seconds of the stages that grow with the references, extrapolated along a line."""
    n = np.array([run["reference"] + run["stroke"] for run in runs], dtype=float)
    out = {}
    for stage in _PER_PERSON:
        seconds = np.array([run["stages"][stage]["seconds"] for run in runs])
        if stage == "train":  # how many epochs there are is not a matter of the cohort's size
            seconds = seconds / [np.mean(run["epochs"]) for run in runs]
        slope, start = np.polyfit(n, seconds, 1)
        off = float(np.abs(np.polyval((slope, start), n) / seconds - 1).max())
        out[stage] = {"start_s": start, "person_s": slope, "worst_fit": off}
        out[stage]["seconds"] = start + slope * people
    return out


def exponents(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Exponent of people in the time of a study: of all, and of what is beyond the start."""
    n = np.array([run["reference"] + run["stroke"] for run in runs], dtype=float)
    seconds = np.array([run["seconds"] for run in runs])
    person, start = np.polyfit(n, seconds, 1, w=1 / seconds)
    beyond = np.log(np.maximum(seconds - max(start, 0.0), 1e-9))
    return {
        "whole": float(np.polyfit(np.log(n), np.log(seconds), 1)[0]),
        "last_two": float(np.diff(np.log(seconds))[-1] / np.diff(np.log(n))[-1]),
        "beyond_start": float(np.polyfit(np.log(n), beyond, 1)[0]),
        "start_s": float(start),
        "person_s": float(person),
    }


def _with_steps(stages: dict[str, Any], name: str) -> float:
    """Seconds of a stage and of its steps, `name`: step."""
    return sum(took["seconds"] for step, took in stages.items() if step.partition(": ")[0] == name)


def table(run: dict[str, Any]) -> str:
    """Table of the stages of a study."""
    lines = [
        "| stage | s | processor, cores | peak memory, GiB | read, GB | written, GB |",
        "|---|---|---|---|---|---|",
    ]
    for stage, took in run["stages"].items():
        cores = took["cpu_s"] / max(took["seconds"], 1e-9)
        lines.append(
            f"| {stage} | {took['seconds']:.1f} | {cores:.1f} | {took['peak_bytes'] / 2**30:.1f} | "
            f"{took['read_bytes'] / 1e9:.2f} | {took['written_bytes'] / 1e9:.2f} |"
        )
    lines.append(
        f"| **all** | {run['seconds']:.0f} | | {run['peak_bytes'] / 2**30:.1f} | | |\n\n"
        f"{run['reference']} references, {run['stroke']} strokes; epochs of the folds "
        f"{run['epochs']}; error {run['mae']:.2f} y (mean age: {run['mae_of_mean']:.2f}); source "
        f"{run['source_bytes'] / 1e9:.1f} GB, store {run['store_bytes'] / 1e9:.1f} GB, report "
        f"{run['report_bytes'] / 1e6:.1f} MB; simulated "
        f"in {run['simulate_s']:.0f} s; others' processor time {100 * run['foreign_cpu']:.0f} %"
    )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=int, default=17_791)
    parser.add_argument("--stroke", type=int, default=501)
    parser.add_argument("--cohorts", type=int, default=34)
    parser.add_argument("--level", type=int, default=4, help="Of the mesh.")
    parser.add_argument("--resolution", type=float, default=2.0, help="Of scans and masks, mm.")
    parser.add_argument("--volume-reference", default="250,500,1000")
    parser.add_argument("--scaling", default="1000,4000,16000")
    parser.add_argument("--parts", default="surface,volume,scaling")
    parser.add_argument("--quick", action="store_true", help="Small and coarse: does it run?")
    parser.add_argument("--folder", type=Path, help="Keep what is simulated here, and use it.")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    if options.quick:
        options.reference, options.stroke, options.cohorts = 60, 30, 3
        options.level, options.resolution = 3, 5.0
        options.volume_reference, options.scaling = "40,60", "40,80"
    return options


def main() -> None:
    """Run the parts and print their tables."""
    options = arguments()
    parts = options.parts.split(",")
    few = {"n_boot": 20, "n_permutations": 2} if options.quick else {}
    surface = {"nodes": f"surface-{options.level}", **few}
    found: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()}
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if "surface" in parts:
            training = {"epochs": 2, "folds": 2} if options.quick else {"patience": PATIENCE}
            config = {**surface, "training": training}
            run = one(folder / "surface", options.reference, options.stroke, config, options)
            found["surface"] = run
            print(f"\nSurface study, level {options.level}:\n\n{table(run)}")
            print(
                f"goals: {GOALS['minutes']:.0f} minutes ({run['seconds'] / 60:.1f}), "
                f"{GOALS['gib']:.0f} GiB ({run['peak_bytes'] / 2**30:.1f})",
                flush=True,
            )
            told = effects(folder / "surface")
            run["effects"] = told.to_dict("records")
            print(told.round(2).to_string(index=False))
            off = told["estimate"] - told["of_true_deviations"]
            print(
                f"estimates beside those of true deviations: {off.mean():.2f}, SD {off.std():.2f}"
            )
        if "volume" in parts:
            runs = []
            for n in map(int, options.volume_reference.split(",")):
                config = {"nodes": "volume", "training": {"epochs": 2}, **few}
                runs.append(one(folder / f"volume-{n}", n, options.stroke, config, options))
                print(f"\nVolume study, {n} references:\n\n{table(runs[-1])}", flush=True)
            people = options.reference + options.stroke
            found["volume"] = {"runs": runs, "line": line(runs, people), "people": people}
            print(f"\n| stage | start, s | a person, ms | off the line | {people} people, s |")
            print("|---|---|---|---|---|")
            for stage, fit in found["volume"]["line"].items():
                name = "train, an epoch of all folds" if stage == "train" else stage
                print(
                    f"| {name} | {fit['start_s']:.1f} | {1e3 * fit['person_s']:.2f} | "
                    f"{100 * fit['worst_fit']:.0f} % | {fit['seconds']:.0f} |"
                )
        if "scaling" in parts:
            runs = []
            for n in map(int, options.scaling.split(",")):
                stroke = max(30, round(n * options.stroke / options.reference))
                config = {**surface, "training": {"epochs": 2}, "n_boot": 20, "n_permutations": 2}
                runs.append(one(folder / f"scaling-{n}", n, stroke, config, options))
            found["scaling"] = {"runs": runs, "exponents": exponents(runs)}
            names = [s for s in runs[-1]["stages"] if not s.startswith("statistics: ")]
            print("\n| references | " + " | ".join(names) + " | all, s | peak, GiB |")
            print("|" + "---|" * (len(names) + 3))
            for run in runs:
                cells = [f"{_with_steps(run['stages'], s):.1f}" for s in names]
                print(
                    f"| {run['reference']} | " + " | ".join(cells) + f" | {run['seconds']:.0f} | "
                    f"{run['peak_bytes'] / 2**30:.1f} |"
                )
            told = found["scaling"]["exponents"]
            print(
                f"seconds = {told['start_s']:.0f} + {told['person_s']:.4f} a person; exponent "
                f"{told['whole']:.2f} of the whole, {told['last_two']:.2f} of the last two, "
                f"{told['beyond_start']:.2f} beyond the start (goal 0.95-1.05)"
            )
            print(f"\nThe largest of them:\n\n{table(runs[-1])}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
