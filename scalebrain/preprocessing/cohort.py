"""A whole raw dataset: one scan a task, resumed where it stopped, nobody stops anybody."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import ConfigError, ImageError, Problem, ScalebrainError, StoreBusyError
from scalebrain.io.atomic import PART, json_bytes, write_atomic
from scalebrain.io.failures import explain
from scalebrain.io.files import SourceFile
from scalebrain.io.preprocessed import BIDSIGNORE, RECORD, is_preprocessed, read_record
from scalebrain.io.tabular import write_tsv
from scalebrain.io.tree import Tree
from scalebrain.preprocessing.child import Task, failure, finished, run_scan
from scalebrain.preprocessing.derivatives import (
    HIDDEN,
    hold,
    remove_empty,
    remove_others,
    remove_scan,
)
from scalebrain.preprocessing.plan import Plan, make_plan
from scalebrain.preprocessing.settings import Settings, check_ants, scans_at_once, versions

__all__ = ["plan_lines", "preprocess"]

logger = logging.getLogger(__name__)

_BIDS_VERSION = "1.10.0"
_COLUMNS = ["subject", "action", "code", "file", "message"]
_LOGS = (".jsonl", ".log")
_LOST_WAIT = 3600.0  # seconds; a scan on a slow machine takes less


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
        kept), ``code``, ``file`` and ``message``; also in ``problems.tsv``, beside the rows of
        those who were not asked for. ``attrs`` count ``n_done``, ``n_resumed`` and ``n_failed``
        scans.

    Raises
    ------
    ConfigError
        When antspyx is not installed, or a setting or folder is not usable.
    TableError
        When the dataset as a whole is not usable.

    Notes
    -----
    Each scan is a task, on Dask workers where a client is active, and each task a process of its
    own with `threads` threads. Without a client, as many run at once as the cores and 2 GB of
    memory for each allow, or as Dask's setting ``num_workers`` says; the workers of a client are
    the caller's to choose.

    A scan whose files, settings and versions are those of its record is not done again. Of
    someone who is left out nothing stays in `out`, not even of an earlier run: what lies there is
    of the inputs and settings of its record, and no scan has both files and an error, but for one
    that another command is at.
    """
    settings = Settings(
        quick=quick, fill=fill or "", lesion_labels=tuple(lesion_labels), threads=threads
    )
    settings.check()
    check_ants()
    plan = make_plan(bids_dir, lesions=lesions, participants=participants)
    folder = Path(os.path.abspath(out))
    if os.path.realpath(folder) == str(plan.root):
        raise ConfigError(f"{folder}: is the raw data. Give a folder of its own.")
    _prepare(folder)
    _check_size(folder, settings)
    try:
        gone = remove_others(folder, plan.people, [scan.name for scan in plan.scans])
    except OSError as error:
        raise explain(str(out), error) from error
    if gone:
        logger.info("%d scans of earlier runs, now left out, were removed", len(gone))
    everybody = not participants
    tasks = _tasks(plan, folder, settings)
    kept = {task.name: record for task in tasks if (record := finished(task.job)) is not None}
    left = [task for task in tasks if task.name not in kept]
    _tell(bids_dir, plan, folder, n_kept=len(kept), everybody=everybody)
    results = _run_all(left, threads)
    rows = [("E", problem) for problem in plan.rejected]
    rows += [("W", problem) for problem in plan.warnings]
    n_done, there = 0, set()
    for task in tasks:
        result = kept.get(task.name) or results[task.name]
        if "error" in result:
            rows.append(("E", _problem(task, result["code"], result["error"])))
            if result.get("busy"):
                there.add(task.job["person"])
            else:
                remove_empty(folder, task.job["person"], task.job["session"])
        else:
            n_done += task.name in results
            there.add(task.job["person"])
            rows += [("W", _problem(task, code, text)) for code, text in result["warnings"]]
    table = pd.DataFrame(
        [{"action": action, **asdict(problem)} for action, problem in rows], columns=_COLUMNS
    ).sort_values(["subject", "action", "code"], ignore_index=True)
    try:
        with hold(folder, "problems.tsv", wait=60):
            _copy_tables(plan, folder, there)
            _write_root(plan, folder, _merged(table, folder, None if everybody else plan.people))
    except OSError as error:
        raise explain(str(out), error) from error
    table.attrs = {
        "n_done": n_done,
        "n_resumed": len(kept),
        "n_failed": len({problem.subject for action, problem in rows if action == "E"}),
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
        One line a scan, then one for whatever is odd.
    rejected : list of str
        One line for each who is left out.
    """
    plan = make_plan(bids_dir, lesions=lesions, participants=participants)
    scans = [
        f"{scan.name}: {scan.shown[0]}, "
        + (f"lesion {scan.shown[1]}" if scan.lesion else "no lesion mask: as a healthy reference")
        for scan in plan.scans
    ]
    scans += [f"W [{p.code}] {p.subject}: {p.message}" for p in plan.warnings]
    return scans, [f"E [{p.code}] {p.subject}: {p.message}" for p in plan.rejected]


def _prepare(folder: Path) -> None:
    """Make the folder, or refuse one that holds something else; hidden files and logs may be."""
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    held = [name for name in held if not name.startswith(".") and not name.endswith(_LOGS)]
    if held and not is_preprocessed(folder):
        raise ConfigError(
            f"{folder}: is not empty and was not written by scalebrain preprocess. Give a new "
            "folder."
        )
    mark = folder / ".bidsignore"
    try:
        old = mark.read_text(encoding="utf-8").splitlines() if mark.is_file() else []
        wanted = (*BIDSIGNORE, *(f"*{ending}" for ending in _LOGS), f"{HIDDEN}/")
        more = [line for line in wanted if line not in old]
        if more:
            write_atomic(mark, "".join(f"{line}\n" for line in (*old, *more)).encode())
    except OSError as error:
        raise explain(str(folder), error) from error


def _check_size(folder: Path, settings: Settings) -> None:
    """Refuse to put images of 1 mm beside those of 2 mm."""
    others = []
    for pattern in ("sub-*/anat", "sub-*/ses-*/anat"):
        for path in sorted(folder.glob(f"{pattern}/*_{RECORD}")):
            told = (read_record(path) or {}).get("settings", {})
            if told.get("quick", settings.quick) != settings.quick:
                others.append(path.name.removesuffix(f"_{RECORD}"))
    if others:
        made, asked = ("--full", "--quick") if settings.quick else ("--quick", "--full")
        raise ConfigError(
            f"{folder}: holds {len(others)} scans made with {made} ({others[0]}), and {asked} "
            f"would put images of another size beside them. Give another folder, or {made}."
        )


def _tasks(plan: Plan, folder: Path, settings: Settings) -> list[Task]:
    """Task of every scan, with what its result depends on as fingerprint."""
    told = {k: v for k, v in settings.to_json().items() if k != "threads"}
    made_with = versions()
    roots = [str(root) for root in (plan.root, plan.lesions) if root]
    tasks = []
    for scan in plan.scans:
        keys = [_key(file) for file in (scan.t1w, scan.lesion)]
        content = [scan.name, keys, list(scan.sources), told, made_with]
        text = json.dumps(content, sort_keys=True)
        job = {
            "out": str(folder),
            "name": scan.name,
            "person": scan.person,
            "session": scan.session,
            "t1w": str(scan.t1w),
            "lesion": str(scan.lesion) if scan.lesion else "",
            "shown": list(scan.shown),
            "sources": list(scan.sources),
            "roots": roots,
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
            "versions": made_with,
            "settings": settings.to_json(),
        }
        tasks.append(Task(job, settings.threads))
    return tasks


def _key(file: Path | None) -> str:
    """Size and checksum of a file; empty without one."""
    try:
        return SourceFile(file).full_key() if file else ""
    except ScalebrainError as error:
        return f"error {error.code}"


def _tell(bids_dir: str | Path, plan: Plan, folder: Path, *, n_kept: int, everybody: bool) -> None:
    """Log what is going to be done."""
    logger.info(
        "%s: %d scans, %d of them done already, %d left out",
        bids_dir,
        len(plan.scans),
        n_kept,
        len({problem.subject for problem in plan.rejected}),
    )
    without = [scan for scan in plan.scans if scan.lesion is None]
    if without:
        logger.info("%d scans without a lesion mask are healthy references", len(without))
    strange = sorted({path.name for path in folder.glob("sub-*")} - plan.people)
    if strange and everybody:
        logger.warning(
            "%s: holds %d people who are not in %s: %s. Remove their folders, where they were "
            "taken out there",
            folder,
            len(strange),
            bids_dir,
            ", ".join(strange[:5]),
        )


def _run_all(tasks: Sequence[Task], threads: int) -> dict[str, dict[str, Any]]:
    """Run every task; where workers are lost for good, as many as go on being done."""
    import dask

    at_once = dask.config.get("num_workers", None) or scans_at_once(threads)
    results: dict[str, dict[str, Any]] = {}
    left = list(tasks)
    while left:
        try:
            found = map_tasks(run_scan, left, label="preprocessing", threads=at_once)
            return results | {task.name: one for task, one in zip(left, found, strict=True)}
        except ScalebrainError as error:  # what was done has its record
            lost = error
        done = {task.name: record for task in left if (record := finished(task.job)) is not None}
        results |= done
        left = [replace(task, wait=_LOST_WAIT) for task in left if task.name not in done]
        if not done:
            return results | {task.name: _give_up(task, lost) for task in left}
        logger.warning("%s %d scans are left: they are tried again", lost, len(left))
    return results


def _give_up(task: Task, error: ScalebrainError) -> dict[str, Any]:
    """Give a scan up that no worker could do, and remove what it left."""
    folder = Path(task.job["out"])
    try:
        with hold(folder, task.name):
            remove_scan(folder, task.job["person"], task.job["session"])
    except StoreBusyError as busy:
        return failure(str(busy)) | {"busy": True}
    except OSError as full:
        return failure(str(explain(task.name, full)))
    return failure(f"{task.name}: not done. {error}")


def _problem(task: Task, code: str, message: str) -> Problem:
    """Problem with the file that its message is about."""
    shown = task.job["shown"]
    return Problem(task.name, code, message, next((f for f in shown if f in message), shown[0]))


def _merged(table: pd.DataFrame, folder: Path, people: Iterable[str] | None) -> pd.DataFrame:
    """Table with the rows of problems.tsv that are of other people; None for everybody."""
    path = folder / "problems.tsv"
    if people is None or not path.is_file():
        return table
    try:
        old = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"], keep_default_na=False)
        old = old[_COLUMNS].fillna("")
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        logger.warning("%s: not read, and written anew: %s", path, error)
        return table
    asked = {*people, ""}  # what is about nobody is about the dataset, and told anew
    others = old[[name.split("_ses-")[0] not in asked for name in old["subject"]]]
    both = pd.concat([others, table], ignore_index=True)
    return both.sort_values(["subject", "action", "code"], ignore_index=True)


def _copy_tables(plan: Plan, folder: Path, there: set[str]) -> None:
    """Copy the tables of the dataset, and remove the copies of those that it has no more.

    Parameters
    ----------
    plan
        Plan.
    folder
        Folder of derivatives.
    there
        People who have a scan in it: nobody else has a table of sessions there.
    """
    wanted: set[str] = {"sessions.json"}
    others: set[str] = set()
    for person in plan.people:
        both = {f"{person}/{person}_sessions{ending}" for ending in (".tsv", ".json")}
        (wanted if person in there else others).update(both)
    if plan.table is not None:
        wanted |= {plan.table.name, plan.table.with_suffix(".json").name}
        others |= {f"participants{ending}" for ending in (".tsv", ".csv", ".json")} - wanted
    elif kept := [path.name for path in sorted(folder.glob("participants.*sv"))]:
        logger.warning("%s: %s is kept: %s has no table to read", folder, kept[0], plan.root)
    tree = Tree(plan.root)
    for name in sorted(wanted | others):
        source = plan.root / name
        if name in wanted and _is_inside(tree, source):
            write_atomic(folder / name, source.read_bytes())
        elif plan.table is not None or os.path.lexists(source):  # else it is somebody's own
            (folder / name).unlink(missing_ok=True)
    for person in plan.people.difference(there):
        remove_empty(folder, person, "")


def _is_inside(tree: Tree, path: Path) -> bool:
    """Whether a file is there, and is one of the dataset; where it is another, the plan says so."""
    try:
        tree.check_file(path)
    except ImageError:
        return False
    return True


def _write_root(plan: Plan, folder: Path, table: pd.DataFrame) -> None:
    """Write what belongs to everybody, the description last."""
    part = folder / f".problems.tsv{PART}"
    write_tsv(table, part)
    os.replace(part, folder / "problems.tsv")
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
        "DatasetLinks": _links(plan, folder),
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


def _links(plan: Plan, folder: Path) -> dict[str, str]:
    """Where the datasets lie that the sidecars name; that of masks stays with the scans of it."""
    links = {"raw": plan.root.as_uri()}
    old = (read_record(folder / "dataset_description.json") or {}).get("DatasetLinks", {})
    if plan.lesions is not None:
        links["lesions"] = plan.lesions.as_uri()
    elif isinstance(old, Mapping) and isinstance(old.get("lesions"), str):
        links["lesions"] = old["lesions"]
    return links
