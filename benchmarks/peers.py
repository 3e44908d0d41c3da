"""A study by scalebrain and by the usual tools: equal tables first, then the time of each stage.

    python -m benchmarks.peers [--reference 120] [--stroke 60] [--resolution 2] [--jobs 1]
                               [--folder FOLDER] [--quick] [--out FILE]

A simulated cohort of scans goes through the volume path twice:

- **scalebrain**: the functions of ``scalebrain run``, on one worker process a core;
- **the usual tools**, in a plain script (``peers_images.py``, ``peers_network.py``,
  ``peers_statistics.py``): nibabel, nilearn, NumPy and pandas in a loop over the scans (``--jobs``
  processes), torch-geometric's ``Batch`` with the same weights, statsmodels, semopy,
  scikit-learn on all cores.

Every stage of the script is compared with what scalebrain gives, and a difference beyond the
tolerance that the table shows ends the program with status 1. Both sides are warm: imports are
done, and a small cohort went through scalebrain before; what that took, most of it compiling,
is printed as ``first use``. Where the script would take too long, a part of the equal pieces is
measured and multiplied, and the line says so. Seconds are of the clock and of the processors:
on a busy machine the latter tell more. The share that others took is printed for each.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

import scalebrain
from scalebrain.cluster.client import open_client
from scalebrain.config import StudyConfig
from scalebrain.features.laterality import to_lesional_sides
from scalebrain.features.lesion import lesion_frequency, lesion_load, tract_load
from scalebrain.features.lesion_measures import lesion_measures
from scalebrain.features.nodes import node_features
from scalebrain.pipeline import compute_features, predict_ages, train_model
from scalebrain.predict.motor import SEVERE_BELOW, predict_motor
from scalebrain.predict.predictors import build_predictors
from scalebrain.predict.task import MotorTask
from scalebrain.simulate.cohort import simulate_cohort
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.sem import sem
from scalebrain.stats.sem_boot import bootstrap
from scalebrain.stats.sem_fit import fit_sem
from scalebrain.stats.sem_model import parse_model
from scalebrain.stats.sem_variables import group_codes, observed_frame

GOAL = 20.0
_SEED = 0


@dataclass
class Time:
    """Seconds of the clock and of the processors, and the share of the machine that others took."""

    wall: float = 0.0
    cpu: float = 0.0
    foreign: float = 0.0

    def times(self, factor: float) -> "Time":
        """Time of `factor` times the work."""
        return Time(self.wall * factor, self.cpu * factor, self.foreign)

    def __add__(self, other: "Time") -> "Time":
        """Time of both, one after the other."""
        return Time(self.wall + other.wall, self.cpu + other.cpu, max(self.foreign, other.foreign))


def _own_cpu() -> float:
    """Processor time of this process and of all its children, those that have ended too."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def _machine_cpu() -> float:
    """Processor time that the machine was busy."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def timed(work: Callable[[], Any]) -> tuple[Time, Any]:
    """Time of a call, and its result.

    As :func:`benchmarks.ingest.foreign_cpu`, but worker processes that live on are its own too.
    """
    own, machine, start = _own_cpu(), _machine_cpu(), time.perf_counter()
    result = work()
    wall = time.perf_counter() - start
    own, machine = _own_cpu() - own, _machine_cpu() - machine
    foreign = max(0.0, machine - own) / (wall * (os.cpu_count() or 1))
    return Time(wall, own, foreign), result


@dataclass
class Check:
    """How far two results are apart, and how far they may be."""

    what: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether they are equal."""
        return bool(self.difference <= self.allowed)


@dataclass
class Line:
    """A stage: its time on both sides, and whether the results are equal."""

    stage: str
    ours: Time
    theirs: Time
    checks: list[Check] = field(default_factory=list)
    part_of: str = "total"  # or "training", or nothing: shown, not added
    note: str = ""


class Table:
    """Lines as they come."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, line: Line) -> None:
        """Add and print a line."""
        self.lines.append(line)
        print(_shown(line), flush=True)
        for check in line.checks:
            mark = "equal" if check.holds else "NOT EQUAL"
            print(f"    {check.what}: {check.difference:.2g}, at most {check.allowed:g}: {mark}")

    def total(self, *parts: str) -> Line:
        """Sum of the lines of some parts."""
        ours, theirs = Time(), Time()
        for line in self.lines:
            if line.part_of in parts:
                ours, theirs = ours + line.ours, theirs + line.theirs
        name = "all but training" if "training" not in parts else "all"
        return Line(name, ours, theirs, part_of="")


def _shown(line: Line) -> str:
    ratio = line.theirs.wall / line.ours.wall
    cpu = line.theirs.cpu / max(line.ours.cpu, 0.01)
    busy = max(line.ours.foreign, line.theirs.foreign)
    return (
        f"{line.stage:44s} {line.ours.wall:8.2f} s {line.theirs.wall:9.2f} s {ratio:8.1f}x"
        f"   cpu {line.ours.cpu:8.2f} s {line.theirs.cpu:9.2f} s {cpu:8.1f}x"
        f"   others {busy:.0%}{'   ' + line.note if line.note else ''}"
    )


def apart(ours: Any, theirs: Any, *, scale: Any = None) -> float:
    """Largest difference, in units of `scale`; infinite where only one of two is missing."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    unit = np.ones(a.shape) if scale is None else np.asarray(scale, dtype=np.float64)
    known = np.isfinite(a)
    return float((np.abs(a - b) / unit)[known].max(initial=0.0))


@dataclass
class Ours:
    """What scalebrain made of a cohort, and the time of every step."""

    store: Path
    model: Path
    results: dict[str, xr.Dataset] = field(default_factory=dict)
    time: dict[str, Time] = field(default_factory=dict)

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Run and time a step."""
        self.time[name], result = timed(work)
        spent = self.time[name]
        print(f"  scalebrain, {name}: {spent.wall:.2f} s, cpu {spent.cpu:.2f} s", flush=True)
        return result


def run_ours(tree: Path, folder: Path, config: StudyConfig, *, trees: int) -> Ours:
    """Run the stages of a study as ``scalebrain run`` does, on the workers that are there."""
    ours = Ours(folder / "cohort.zarr", folder / "model")
    store = ours.store
    ours.do("ingest", lambda: scalebrain.ingest(tree, store))
    ours.do("features", lambda: compute_features(store))

    def nodes_alone() -> Any:
        return node_features(scalebrain.open_store(store))["node_features"].compute()

    def lesions_alone() -> Any:
        ds = scalebrain.open_store(store)
        parts = [lesion_load(ds), tract_load(ds), lesion_measures(ds), lesion_frequency(ds)]
        return xr.merge(parts, combine_attrs="drop_conflicts", compat="equals").compute()

    ours.results["nodes"] = ours.do("nodes alone", nodes_alone)
    ours.results["lesions"] = ours.do("lesions alone", lesions_alone)
    ours.do("train", lambda: train_model(store, ours.model, training=config.training))
    ours.do("ages", lambda: predict_ages(store, ours.model))
    ds = scalebrain.open_store(store)
    sided = to_lesional_sides(ds)
    ours.results["mixed"] = ours.do(
        "mixed", lambda: mixed_model(sided, config.formula, errors="record")
    )
    ours.results["sem"] = ours.do("sem", lambda: sem(ds, n_boot=config.n_boot, seed=config.seed))
    ours.results["motor"] = ours.do(
        "motor",
        lambda: predict_motor(
            ds, n_permutations=config.n_permutations, n_trees=trees, seed=config.seed
        ),
    )
    return ours


def compare_images(
    table: Table, ours: Ours, tree: Path, atlases: Path, options: argparse.Namespace
) -> np.ndarray:
    """Stages 1 and 2: node features and lesion tables; the script's features come back."""
    from benchmarks import peers_images as images

    ds = scalebrain.open_store(ours.store)
    took, features = timed(lambda: images.node_features(tree, atlases, jobs=options.jobs))
    found = ds["node_features"].sel(feature=list(images.FEATURES)).values
    again = ours.results["nodes"].sel(feature=list(images.FEATURES)).values
    checks = [
        Check("node features", apart(found, features), 1e-6),
        Check("computed again", apart(found, again), 1e-12),
    ]
    lesion_time, theirs = timed(lambda: images.lesion_tables(tree, atlases))
    people = ds.sel(subject=theirs["subject"].values)
    lesion_checks = [
        Check(name, apart(people[name].values, theirs[name].values), allowed)
        for name, allowed in (
            ("lesion_load", 1e-6),
            ("lesion_volume", 1e-9),
            ("tract_load", 1e-6),
            ("tract_load_weighted", 1e-6),
            ("tract_load_max", 1e-6),
            ("lesion_components", 0),
            ("lesion_center_x", 1e-6),
            ("lesion_center_y", 1e-6),
            ("lesion_center_z", 1e-6),
            ("tract_distance", 1e-4),
        )
    ]
    differ = people["lesion_hemisphere"].values.astype(str) != theirs["lesion_hemisphere"].values
    lesion_checks.append(Check("people whose side differs", float(differ.sum()), 0))
    mapped = np.nan_to_num(scalebrain.unpack(ds["lesion_frequency"]).values)
    lesion_checks.append(
        Check("lesion_frequency", apart(mapped, theirs["lesion_frequency"].values), 1e-6)
    )
    table.add(
        Line(
            "scans to node features and lesion tables",
            ours.time["ingest"] + ours.time["features"],
            took + lesion_time,
            note=f"ingest {ours.time['ingest'].wall:.1f} s of it",
        )
    )
    table.add(Line("  node features, from the store", ours.time["nodes alone"], took, checks, ""))
    table.add(
        Line(
            "  lesion tables, from the store",
            ours.time["lesions alone"],
            lesion_time,
            lesion_checks,
            "",
        )
    )
    return features


def compare_network(table: Table, ours: Ours, features: np.ndarray, config: StudyConfig) -> None:
    """Stage 3: brain ages by the same weights, and an epoch of training."""
    import torch
    from threadpoolctl import threadpool_limits

    from benchmarks import peers_network as network
    from scalebrain.graph.model import BrainAgeModel
    from scalebrain.graph.train import Training

    torch.set_num_threads(1)  # two wait for each other: graphs and regions are small
    ds = scalebrain.open_store(ours.store)
    model = BrainAgeModel.load(ours.model)
    fold_of = model.folds_of(ds)
    with threadpool_limits(1):
        took, ages = timed(lambda: network.brain_ages(features, fold_of, ours.model))
    table.add(
        Line(
            "brain ages of everyone",
            ours.time["ages"],
            took,
            [Check("brain age, years", apart(ds["brain_age"].values, ages), 1e-4)],
        )
    )
    given, rest = network.our_epoch(ds, Training(**config.training))
    took, (_, trained, error) = timed(lambda: network.peer_epoch(given, *rest))
    checks = [
        Check("training error, years", abs(trained - given.trained), 1e-4),
        Check("validation error after it, years", abs(error - given.error), 1e-4),
    ]
    epochs = sum(len(fold.curve) - 1 for fold in model.folds)
    spent = Time(given.seconds, given.seconds, took.foreign)
    table.add(Line("  an epoch of training, a core", spent, took, checks, ""))
    table.add(
        Line(
            "training of all folds",
            ours.time["train"],
            took.times(epochs),
            part_of="training",
            note=f"script: {epochs} epochs, one measured; without ridge regression and imputers",
        )
    )


def compare_mixed(table: Table, ours: Ours) -> None:
    """Stage 4: a mixed model of every region."""
    from benchmarks import peers_statistics as statistics

    found = ours.results["mixed"]
    sided = to_lesional_sides(scalebrain.open_store(ours.store))
    outcome = "brain_pad_corrected"
    names = ["lesion_volume", "age", "sex", "days_post_stroke", "icv", "cohort", outcome]
    keep = eligible_subjects(sided)
    tables = {}
    for region in map(str, sided["region"].values):
        one = subject_frame(sided, names, at=region)[keep].dropna()
        size = np.log10(one["lesion_volume"])
        tables[region] = one.assign(volume=(size - size.mean()) / size.std())
    formula = f"{outcome} ~ volume + age + sex + days_post_stroke + icv"
    took, theirs = timed(lambda: statistics.mixed_models(tables, formula))
    at = {"volume": "scale(log10(lesion_volume))"}
    own = found.sel(term=[at.get(name, name) for name in theirs.estimate.columns])
    behind = found["log_likelihood"].values - theirs.log_likelihood.to_numpy()
    there = behind < 1e-3
    differ = np.abs(own["estimate"].values - theirs.estimate.to_numpy()) / own["se"].values
    # a fit that lies g below the optimum is up to sqrt(2 g) standard errors from it (a quadratic)
    differ = differ - np.sqrt(2 * np.maximum(behind, 0))[:, None]
    note = (
        f"{theirs.not_at_first} of {len(tables)} fits not converged by the first optimizer, "
        f"{theirs.not_converged} by any; {int((~there).sum())} below the optimum by more than 0.001"
    )
    checks = [
        Check("log-likelihood, the script's above ours", float(np.max(-behind)), 1e-6),
        Check(
            f"estimates, in standard errors, of {int(there.sum())} fits, less what their "
            "likelihood lacks",
            float(differ[there].max(initial=0.0)) if there.any() else float("nan"),
            1e-4,
        ),
    ]
    table.add(Line("mixed models", ours.time["mixed"], took, checks, note=note))


def compare_sem(table: Table, ours: Ours, options: argparse.Namespace, config: StudyConfig) -> None:
    """Stage 5: the path model, its rivals and its bootstrap."""
    from benchmarks import peers_statistics as statistics

    found = ours.results["sem"]
    ds = scalebrain.open_store(ours.store)
    parsed = parse_model(statistics.SEM)
    frame, _ = observed_frame(ds, parsed, {})
    keep = eligible_subjects(ds) & frame.notna().all(axis=1).to_numpy()
    codes = np.unique(group_codes(ds, "cohort")[keep], return_inverse=True)[1]
    n_boot = min(options.peer_boot, config.n_boot)
    took, theirs = timed(lambda: statistics.path_model(frame[keep], codes, n_boot, config.seed))
    fit = fit_sem(parsed, frame[keep], missing="listwise", codes=codes)
    equal = bootstrap(fit, n_boot=n_boot, seed=config.seed)
    paths = [str(name) for name in found["path"].values if " ~ " in str(name)]
    se = found["se"].sel(path=paths).values
    chains = [str(name) for name in found["indirect"].values]
    indirect = found["indirect_estimate"].values
    width = (found["indirect_ci_high"] - found["indirect_ci_low"]).values
    drawn = np.stack([equal.raw[:, equal.names.index(name)] for name in paths], axis=1)
    off = (np.abs(drawn - theirs["samples"][paths].to_numpy()) / se).max(axis=1)
    checks = [
        Check(
            "estimates, in standard errors (semopy stops early)",
            apart(
                found["estimate"].sel(path=paths).values,
                [theirs["estimate"][name] for name in paths],
                scale=se,
            ),
            0.1,
        ),
        Check(
            "indirect effects, in widths of their intervals",
            apart(indirect, [theirs["indirect"][c] for c in chains], scale=width),
            0.1,
        ),
        Check(f"{n_boot} equal bootstrap samples, the median", float(np.median(off)), 0.1),
    ]
    factor = config.n_boot / n_boot
    share = theirs["boot_s"] / (theirs["once_s"] + theirs["boot_s"])
    whole = took.times(1 - share) + took.times(share * factor)
    table.add(
        Line(
            "path model",
            ours.time["sem"],
            whole,
            checks,
            note=f"script: {n_boot} of {config.n_boot} bootstrap samples measured, in "
            f"{int((off > 0.1).sum())} semopy ended more than 0.1 standard errors away",
        )
    )


def compare_motor(
    table: Table, ours: Ours, options: argparse.Namespace, config: StudyConfig, trees: int
) -> None:
    """Stage 6: prediction of motor outcome in cohorts that were held out."""
    from benchmarks import peers_statistics as statistics

    found = ours.results["motor"]
    ds = scalebrain.open_store(ours.store)
    task = MotorTask.of(
        ds,
        target="motor_score",
        groups="cohort",
        group="stroke",
        included="included",
        severe_below=SEVERE_BELOW,
        n_inner=3,
        seed=config.seed,
    )
    predictors, groups = build_predictors(ds, needed=task.used)
    given = statistics.MotorTables(
        predictors.iloc[task.rows],
        task.y,
        task.severe.astype(float),
        np.array(task.cohorts)[task.codes],
        groups,
        task.inner,
    )
    n, boot = min(options.peer_permutations, config.n_permutations), options.peer_scores
    took, theirs = timed(
        lambda: statistics.motor(
            given,
            n_permutations=n,
            n_boot=boot,
            n_trees=trees,
            seed=config.seed,
            jobs=os.cpu_count() or 1,
        )
    )
    measured = [theirs[name] for name in ("fits_s", "permutations_s", "bootstrap_s")]
    factors = [1.0, config.n_permutations / n, 1000 / boot]
    factor = float(np.dot(measured, factors) / np.sum(measured))
    score = found["score"]
    names = list(theirs["scores"])
    pairs = [
        (float(score.sel(learner=learner, feature_group=group, metric=metric)), value)
        for learner, group in names
        for metric, value in theirs["scores"][learner, group].items()
    ]
    checks = [
        Check("R2, MAE, r, AUC, balanced accuracy, Brier", apart(*zip(*pairs, strict=True)), 1e-6),
        Check(
            "R2 of permuted targets", apart(found["null_r2"].values[:, :n], theirs["null"]), 1e-6
        ),
    ]
    note = f"script: {n} of {config.n_permutations} permutations and {boot} of 1000 bootstrap"
    table.add(
        Line(
            "motor prediction",
            ours.time["motor"],
            took.times(factor),
            checks,
            note=f"{note} draws measured",
        )
    )


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """Folder of the cohort and the results, removed when it was not given."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> int:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=int, default=120)
    parser.add_argument("--stroke", type=int, default=60)
    parser.add_argument("--resolution", type=float, default=2.0)
    parser.add_argument("--jobs", type=int, default=1, help="Processes of the loop over scans.")
    parser.add_argument("--peer-boot", type=int, default=50, help="Bootstrap samples of semopy.")
    parser.add_argument("--peer-permutations", type=int, default=5)
    parser.add_argument("--peer-scores", type=int, default=100, help="Bootstrap draws of scores.")
    parser.add_argument("--folder", type=Path, help="New folder; cohort and results stay there.")
    parser.add_argument("--quick", action="store_true", help="Small: is it equal, does it run?")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    config, trees, cohorts = StudyConfig(), 50, 6
    if options.quick:
        options.reference, options.stroke, options.resolution = 20, 30, 3.0
        options.peer_boot, options.peer_permutations, options.peer_scores = 5, 1, 5
        config = StudyConfig(training={"epochs": 1, "folds": 2}, n_boot=10, n_permutations=1)
        trees, cohorts = 5, 4
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    table = Table()
    with _folder(options.folder) as folder:
        size = {"cohorts": cohorts, "seed": _SEED}
        tree, small = folder / "tree", folder / "first" / "tree"
        # one worker compiles half as much as two
        with open_client(n_workers=1 if options.quick else None):
            simulate_cohort(
                tree,
                reference=options.reference,
                stroke=options.stroke,
                resolution=options.resolution,
                **size,
            )
            first = Time()
            if not options.quick:
                small.parent.mkdir(exist_ok=True)
                simulate_cohort(small, reference=24, stroke=24, resolution=3.0, **size)
                quick = StudyConfig(training={"epochs": 1, "folds": 2}, n_boot=2, n_permutations=1)
                first, _ = timed(lambda: run_ours(small, folder / "first", quick, trees=20))
            ours = run_ours(tree, folder / "ours", config, trees=trees)
        from benchmarks import peers_images as images  # not in the workers

        atlases = images.write_atlases(folder / "atlases", options.resolution)
        images.NodeFeatures(atlases)  # imports and maps of nilearn are not timed
        people = f"{options.reference} references and {options.stroke} strokes"
        print(f"{people} at {options.resolution:g} mm; first use {first.wall:.1f} s")
        print(f"{'':44s} {'scalebrain':>10s} {'usual tools':>11s}")
        features = compare_images(table, ours, tree, atlases, options)
        compare_network(table, ours, features, config)
        compare_mixed(table, ours)
        compare_sem(table, ours, options, config)
        compare_motor(table, ours, options, config, trees)
    totals = [table.total("total"), table.total("total", "training")]
    for one in totals:
        print(_shown(one))
    print(f"goal: {GOAL:g}x in total")
    equal = all(check.holds for line in table.lines for check in line.checks)
    if options.out:
        result = _result(table, totals, first, options, equal)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if equal else 1


def _result(
    table: Table, totals: list[Line], first: Time, options: argparse.Namespace, equal: bool
) -> dict[str, Any]:
    """Everything as plain values."""

    def plain(line: Line) -> dict[str, Any]:
        return {
            "stage": line.stage.strip(),
            "scalebrain_s": line.ours.wall,
            "scalebrain_cpu_s": line.ours.cpu,
            "peer_s": line.theirs.wall,
            "peer_cpu_s": line.theirs.cpu,
            "ratio": line.theirs.wall / line.ours.wall,
            "cpu_ratio": line.theirs.cpu / max(line.ours.cpu, 0.01),
            "foreign_cpu": max(line.ours.foreign, line.theirs.foreign),
            "checks": [
                {"what": c.what, "difference": c.difference, "allowed": c.allowed, "equal": c.holds}
                for c in line.checks
            ],
            "counted": line.part_of,
            "note": line.note,
        }

    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "reference": options.reference,
        "stroke": options.stroke,
        "resolution_mm": options.resolution,
        "jobs": options.jobs,
        "first_use_s": first.wall,
        "lines": [plain(line) for line in table.lines],
        "totals": [plain(line) for line in totals],
        "goal": GOAL,
        "equal": equal,
    }


if __name__ == "__main__":
    sys.exit(main())
