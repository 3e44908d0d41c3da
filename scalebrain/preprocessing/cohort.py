"""A whole raw dataset: one scan a task, resumed where it stopped, nobody stops anybody."""

import hashlib
import json
import logging
import os
import subprocess  # nosec B404
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import ConfigError, Problem, ScalebrainError
from scalebrain.io.atomic import json_bytes, write_atomic
from scalebrain.io.failures import explain
from scalebrain.io.files import SourceFile
from scalebrain.io.tabular import write_tsv
from scalebrain.preprocessing.plan import Plan, Raw, make_plan
from scalebrain.preprocessing.settings import Settings, check_ants
from scalebrain.preprocessing.subject import RECORD

__all__ = ["plan_lines", "preprocess"]

logger = logging.getLogger(__name__)

#: What BIDS has no word for; also the mark of a folder of ours.
BIDSIGNORE = """problems.tsv
*_xfm.*
*_quality.json
"""
_BIDS_VERSION = "1.10.0"
_COLUMNS = ["subject", "action", "code", "file", "message"]


@dataclass(frozen=True)
class _Task:
    """One scan with everything that its task needs."""

    job: dict[str, Any]
    threads: int


def preprocess(
    bids_dir: str | Path,
    out: str | Path,
    *,
    quick: bool = False,
    fill: str | None = None,
    lesions: str | Path | None = None,
    participants: Sequence[str] = (),
    lesion_labels: Sequence[int] = (),
    threads: int = 1,
) -> pd.DataFrame:
    """Bring raw T1w images and lesion masks to template space, as BIDS derivatives.

    Parameters
    ----------
    bids_dir
        Folder of a raw BIDS dataset.
    out
        Folder for the derivatives, which :func:`~scalebrain.ingest` reads; one that this function
        wrote is gone on with.
    quick
        Affine registration alone and images of 2 mm; else SyN behind it and 1 mm.
    fill
        ``enantiomorphic`` fills the lesion from the other hemisphere for the registration, instead
        of leaving it out of the cost.
    lesions
        Folder with the lesion masks, where they do not lie beside the scans.
    participants
        Labels to take; everybody when empty.
    lesion_labels
        Labels of multi-label masks that are lesion.
    threads
        Threads of one scan.

    Returns
    -------
    DataFrame
        What is wrong or odd, one row a problem: ``subject``, ``action`` (``E`` left out, ``W``
        kept), ``code``, ``file`` and ``message``; also in ``problems.tsv``. ``attrs`` count
        ``n_done``, ``n_resumed`` and ``n_failed`` scans.

    Raises
    ------
    ConfigError
        When antspyx is not installed, or a setting or folder is not usable.
    TableError
        When the dataset as a whole is not usable.

    Notes
    -----
    Each scan is a task, on Dask workers where a client is active, and each task a process of its
    own with `threads` threads. A scan whose files, settings and versions are those of its record
    is not done again.
    """
    settings = Settings(
        quick=quick, fill=fill or "", lesion_labels=tuple(lesion_labels), threads=threads
    )
    settings.check()
    check_ants()
    plan = make_plan(bids_dir, lesions=lesions, participants=participants)
    folder = Path(os.path.abspath(out))
    if folder == plan.root:
        raise ConfigError(f"{folder}: is the raw data. Give a folder of its own.")
    _prepare(folder)
    rejected = list(plan.rejected)
    tasks, kept = [], {}
    for scan in plan.scans:
        record, task = _look(scan, folder, settings)
        if record is not None:
            kept[scan.name] = record
        else:
            tasks.append(task)
    logger.info(
        "%s: %d scans, %d of them done already, %d left out",
        bids_dir,
        len(plan.scans),
        len(kept),
        len({problem.subject for problem in rejected}),
    )
    without = [scan.name for scan in plan.scans if scan.lesion is None]
    if without:
        logger.info(
            "%d scans without a lesion mask are taken as healthy references: "
            "people with a stroke need a mask",
            len(without),
        )
    at_once = max(1, (os.cpu_count() or 1) // threads)
    results = map_tasks(_run, tasks, label="preprocessing", threads=at_once)
    records = dict(kept)
    for task, result in zip(tasks, results, strict=True):
        name = str(task.job["name"])
        if "error" in result:
            file = str(task.job["shown"][0])
            rejected.append(Problem(name, result["code"], result["error"], file))
        else:
            records[name] = result
    rows = [("E", problem) for problem in rejected]
    for name, record in records.items():
        rows += [("W", Problem(name, code, message)) for code, message in record["warnings"]]
    table = pd.DataFrame(
        [{"action": action, **asdict(problem)} for action, problem in rows], columns=_COLUMNS
    ).sort_values(["subject", "action", "code"], ignore_index=True)
    try:
        _write_root(plan, folder, table)
    except OSError as error:
        raise explain(str(out), error) from error
    table.attrs = {
        "n_done": len(records) - len(kept),
        "n_resumed": len(kept),
        "n_failed": len({problem.subject for problem in rejected}),
    }
    return table


def plan_lines(
    bids_dir: str | Path,
    *,
    lesions: str | Path | None = None,
    participants: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Say what would be preprocessed, and write nothing.

    Parameters
    ----------
    bids_dir, lesions, participants
        As of :func:`preprocess`.

    Returns
    -------
    scans : list of str
        One line a scan.
    rejected : list of str
        One line for each who is left out.
    """
    plan = make_plan(bids_dir, lesions=lesions, participants=participants)
    scans = [
        f"{scan.name}: {scan.shown[0]}, "
        + (f"lesion {scan.shown[1]}" if scan.lesion else "no lesion mask: as a healthy reference")
        for scan in plan.scans
    ]
    return scans, [f"E [{p.code}] {p.subject}: {p.message}" for p in plan.rejected]


def _prepare(folder: Path) -> None:
    """Make the folder, or refuse one that holds something else."""
    mark = folder / ".bidsignore"
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and (mark.name not in held or mark.read_text(encoding="utf-8") != BIDSIGNORE):
        raise ConfigError(
            f"{folder}: is not empty and was not written by scalebrain preprocess. Give a new "
            "folder."
        )
    try:
        write_atomic(mark, BIDSIGNORE.encode())
    except OSError as error:
        raise explain(str(folder), error) from error


def _look(scan: Raw, folder: Path, settings: Settings) -> tuple[dict[str, Any] | None, _Task]:
    """Record of a scan that is done as asked for; and the task that does it."""
    keys = []
    for file in (scan.t1w, scan.lesion):
        try:
            keys.append(SourceFile(file).full_key() if file else "")
        except ScalebrainError as error:
            keys.append(f"error {error.code}")
    told = {k: v for k, v in settings.to_json().items() if k != "threads"}
    versions = {name: version(name) for name in ("scalebrain", "antspyx")}
    content = json.dumps([scan.name, keys, told, versions], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    job = {
        "out": str(folder),
        "name": scan.name,
        "person": scan.person,
        "session": scan.session,
        "t1w": str(scan.t1w),
        "lesion": str(scan.lesion) if scan.lesion else "",
        "shown": list(scan.shown),
        "fingerprint": fingerprint,
        "settings": settings.to_json(),
    }
    record = _read_record(folder / scan.person / scan.session / "anat" / f"{scan.name}_{RECORD}")
    if record is None or record.get("fingerprint") != fingerprint or not _whole(folder, record):
        record = None
    return record, _Task(job, settings.threads)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Record of a scan; None when there is no usable one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether every file of a record is there, of its size."""
    sizes = record.get("files", {})
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _run(task: _Task) -> dict[str, Any]:
    """Preprocess one scan in a process of its own; whatever happens is a result."""
    job = task.job
    anat = Path(job["out"]) / job["person"] / job["session"] / "anat"
    try:
        for old in anat.glob(f"{job['name']}_*"):  # of other settings, or of a run that was killed
            old.unlink()
        for part in anat.glob(f".{job['name']}_*.part"):
            part.unlink()
        with tempfile.TemporaryDirectory(prefix="scalebrain-") as folder:
            path = Path(folder) / "job.json"
            path.write_bytes(json_bytes(job))
            threads = str(task.threads)
            limits = [
                f"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS={threads}",
                f"OMP_NUM_THREADS={threads}",
                f"OPENBLAS_NUM_THREADS={threads}",
                f"TMPDIR={folder}",
            ]
            work = [sys.executable, "-m", "scalebrain.preprocessing.subject", str(path)]
            command = ["/usr/bin/env", *limits, *work]  # the rest of the environment is inherited
            told = subprocess.run(  # nosec B603
                command,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            result = path.with_suffix(".result")
            if result.is_file():
                found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
                return found
    except OSError as error:
        return {"code": "preprocessing-failed", "error": str(explain(job["name"], error))}
    last = (told.stderr.strip().splitlines() or ["no message"])[-1][:300]
    if told.returncode < 0:  # killed, as a rule for want of memory
        ended = f"signal {-told.returncode} ({last}). Give it more memory (fewer --n-workers), and"
    else:
        ended = f"code {told.returncode} ({last}). Look at the scan; when it is sound,"
    message = (
        f"{job['name']}: its process ended with {ended} run the same command again: it goes on."
    )
    return {"code": "preprocessing-failed", "error": message}


def _write_root(plan: Plan, folder: Path, table: pd.DataFrame) -> None:
    """Write what belongs to everybody, the description last."""
    if plan.table is not None:
        for path in (plan.table, plan.table.with_suffix(".json")):
            if path.is_file():
                write_atomic(folder / path.name, path.read_bytes())
    write_tsv(table, folder / "problems.tsv")
    simulated = plan.description.get("Simulated") is True
    about: dict[str, Any] = {
        "Name": "scalebrain: preprocessed scans" + (" (simulated data)" if simulated else ""),
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "scalebrain preprocess",
                "Version": version("scalebrain"),
                "Description": "N4, brain extraction, normalization and tissues with ANTs "
                f"(antspyx {version('antspyx')})",
            }
        ],
        "DatasetLinks": {"raw": plan.root.as_uri()},
    }
    if simulated:
        about["Simulated"] = True
    readme = (
        "Scans in the space MNI152NLin2009aSym, made by `scalebrain preprocess`. problems.tsv says "
        "who was left out and what is odd; *_desc-qc_quality.json holds what was measured, the "
        "settings and the versions of each scan. Transforms (*_xfm.*) are those of ANTs.\n"
    )
    write_atomic(folder / "README.md", readme.encode())
    write_atomic(folder / "dataset_description.json", json_bytes(about))
