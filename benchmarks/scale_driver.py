"""What the driver alone does, on cohorts of any size whose scans were never drawn.

People, plans and records are made up; the store has every table and array, but no shards. So the
plan, the tables, finalizing, opening and the graph of the features are those of a real cohort.
"""

import hashlib
import pickle
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import zarr

from benchmarks.scale_count import Counted, count_only
from scalebrain.atlas.space import SPACE
from scalebrain.ingestion.cohort import _create, _finalize, _write_plan, partitions_of
from scalebrain.ingestion.journal import write_record
from scalebrain.ingestion.layout import static_of, write_arrays
from scalebrain.ingestion.lesion import Sides
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.plan import Dataset, check_ids, make_plan, prepare
from scalebrain.io.files import SourceFile
from scalebrain.io.location import Location
from scalebrain.io.sources import Cohort, Scan, find_cohort
from scalebrain.io.store import drop_saved, open_store, resize_store
from scalebrain.pipeline import compute_features

_TABLE = {
    "age": 60.0,
    "age_censored": False,
    "sex": "F",
    "cohort": "site1",
    "group": "reference",
    "session": "",
    "days_post_stroke": np.nan,
    "icv": 1500.0,
    "motor_score": np.nan,
    "motor_scale": "",
    "lesion_side": "",
    "paresis_side": "",
}


def names(n: int) -> list[str]:
    """Subjects of a cohort of n people."""
    return [f"sub-{i:06d}" for i in range(n)]


def has_lesion(number: int) -> bool:
    """Every fourth person has a stroke."""
    return number % 4 == 3


def files_of(root: Path, subject: str, *, lesion: bool) -> dict[str, Path]:
    """Paths of a person's images."""
    stem = root / subject / "anat" / f"{subject}_space-{SPACE}"
    endings = {"t1w": "desc-preproc_T1w", "gm": "label-GM_probseg", "lesion": "label-L_mask"}
    if not lesion:
        del endings["lesion"]
    return {kind: Path(f"{stem}_{ending}.nii.gz") for kind, ending in endings.items()}


def write_names(root: Path, n: int) -> None:
    """Write a tree whose images have names and the end of a gzip file, and nothing else."""
    table = ["participant_id\tage\tsex\tcohort\tgroup\tdays_post_stroke\ticv\tmotor_score"]
    for i, subject in enumerate(names(n)):
        group, tail = (
            ("stroke", "400\t1500\t0.5") if has_lesion(i) else ("reference", "n/a\t1500\tn/a")
        )
        (root / subject / "anat").mkdir(parents=True)
        for path in files_of(root, subject, lesion=has_lesion(i)).values():
            path.write_bytes(b"\x1f\x8b" + bytes(8) + (i + 1).to_bytes(16, "little"))
        table.append(f"{subject}\t60\tF\tsite{i % 20}\t{group}\t{tail}")
    (root / "participants.tsv").write_text("\n".join(table) + "\n")


def made_up(root: Path, n: int) -> Dataset:
    """Cohort of n people, as discovery would give it."""
    subjects = names(n)
    scans = {}
    for i, subject in enumerate(subjects):
        files = files_of(root, subject, lesion=has_lesion(i))
        images = {kind: SourceFile(path) for kind, path in files.items()}
        scans[subject] = Scan(subject, subject, "", space=SPACE, **images)
    table = pd.DataFrame(_TABLE, index=pd.Index(subjects, name="subject", dtype=object))
    table["group"] = ["stroke" if has_lesion(i) else "reference" for i in range(n)]
    table["days_post_stroke"] = [400.0 if has_lesion(i) else np.nan for i in range(n)]
    table["person"] = subjects
    cohort = Cohort(root.name, root, tuple(scans.values()), table, {}, (), (), False)
    hashes = {subject: hashlib.sha256(subject.encode()).hexdigest() for subject in subjects}
    sides = dict.fromkeys(subjects, Sides("", ""))
    return Dataset(cohort, scans, hashes, sides, (), (), 0, ReadOptions())


def entry(subject: str, key: str, *, lesion: bool) -> dict[str, Any]:
    """Entry of a subject in the record of its partition, as an ingest writes it."""
    values: dict[str, Any] = {
        "affine_residual": 0.0,
        "aseg": {},
        "freesurfer_icv": None,
        "freesurfer_version": "",
        "gm_present": True,
        "lesion_present": lesion,
        "nonfinite_fraction": 0.0,
        "scan_hash": key[:32],
        "scan_present": True,
        "surface_present": False,
        "template_overlap": 0.75,
        "template_overlap_mirrored": 0.74,
    }
    if lesion:
        values |= {
            "laterality_index": -1.0,
            "lesion_hemisphere": "R",
            "lesion_outside_fraction": 0.0,
            "lesion_volume": 22.824,
            "lesion_volume_change": 0.0,
            "lesion_volume_removed": 0.0,
        }
    return {"subject": subject, "source": key, "values": values, "warnings": []}


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _nothing() -> None:
    """Start a process."""


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of a block to a table."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = time.perf_counter() - start


def driver_costs(
    folder: Path, n: int, resolution: float, *, find: bool, keep: bool = False
) -> dict[str, Any]:
    """Everything that the driver does for n people but waiting for workers.

    Parameters
    ----------
    folder
        Where the tree and the store go; removed at the end, unless `keep`.
    n
        People.
    resolution
        Voxel size in mm.
    find
        Write a tree of names, and time its discovery.
    keep
        Leave the store, without a scan in it, as ``folder/store.zarr``.

    Returns
    -------
    dict
        Seconds by step, tasks, bytes and memory.
    """
    seconds: dict[str, float] = {}
    root = folder / "tree"
    store = folder / "store.zarr"
    if find:
        write_names(root, n)
        with timed(seconds, "find"):
            cohort = find_cohort(root)
        with timed(seconds, "fingerprint"):
            prepare(cohort, ReadOptions(), frozenset())
        shutil.rmtree(root)
    dataset = made_up(root, n)
    before = peak_memory()
    location = Location.of(store)
    with timed(seconds, "plan"):
        check_ids([dataset], None)
        plan = make_plan(None, [dataset], frozenset())
    with timed(seconds, "grid"):
        static, geometry = static_of({}, [dataset], resolution=resolution, whole_head=False)
    with timed(seconds, "empty store"):
        _create(location, [dataset])
        drop_saved(location)
        write_arrays(location, [dataset], static)
        _write_plan(location, plan, [dataset], frozenset())
        resize_store(location, plan.n_rows)
    with timed(seconds, "partitions"):
        partitions = partitions_of(plan, [dataset], "")
    payloads = [len(pickle.dumps(partition)) for partition in partitions]
    for partition in partitions:
        write_record(location, partition.number, _record(partition, dataset.hashes))
    with timed(seconds, "finalize"):
        _finalize(location, plan, partitions, strict=False)
    with timed(seconds, "open"):
        open_store(store)
    objects = sum(1 for path in store.rglob("*") if path.is_file()) - len(partitions)
    out: dict[str, Any] = {
        "people": n,
        "partitions": len(partitions),
        "seconds": seconds,
        "small_objects": objects,
    }
    with timed(seconds, "graph"), dask.config.set(scheduler=count_only):
        try:
            compute_features(store)
        except Counted as counted:
            out |= {"feature_tasks": counted.tasks, "by_kind": counted.kinds}
            out |= {"graph_bytes": counted.sent, "materialize_s": counted.seconds}
    # empty, but with the chunks in which features are saved and then read to predict
    rows = zarr.open_group(location.zarr_store(), mode="r")["node_features"].chunks[0]
    out |= {
        "prediction_tasks": -(-n // rows),
        "payload_bytes": int(np.mean(payloads)),
        "geometry_bytes": len(pickle.dumps(geometry)),
        "peak_bytes": peak_memory(),
        "peak_before": before,
        "plan_bytes": sum(f.stat().st_size for f in (store / "ingest").glob("*.json")),
    }
    if not keep:
        shutil.rmtree(folder)
    return out


def _record(partition: Any, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Record of a partition that was never written."""
    entries = [
        entry(scan.subject, hashes[scan.subject], lesion=scan.lesion is not None)
        for scan in partition.scans
    ]
    shards = {f"{name}/c/{partition.number}/0": 32 * "0" for name in ("gm", "lesion_mask", "t1w")}
    return {
        "fingerprint": partition.fingerprint,
        "options": partition.options.to_json(),
        "subjects": entries,
        "shards": shards,
    }


def in_own_process(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_nothing).result()
        return pool.submit(function, *arguments, **named).result()
