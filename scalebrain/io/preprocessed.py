"""Folders that ``scalebrain preprocess`` wrote: how they are told, and which scans are whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalebrain.errors import Problem
from scalebrain.io.tree import NATIVE, Findings, Tree, Visit

__all__ = [
    "BIDSIGNORE",
    "RECORD",
    "check_records",
    "has_files",
    "is_preprocessed",
    "read_record",
    "record_path",
    "scan_name",
]

#: What BIDS has no word for; also the mark of a folder of ours.
BIDSIGNORE = ("problems.tsv", "*_xfm.*", "*_quality.json")
#: Ending of the record of a scan, which is written last.
RECORD = "desc-qc_quality.json"

_READ = ("_T1w.nii.gz", "_label-GM_probseg.nii.gz", "_label-L_mask.nii.gz")


def is_preprocessed(folder: Path) -> bool:
    """Tell a folder of ours by its .bidsignore; that may have other lines, too."""
    try:
        lines = (folder / ".bidsignore").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return set(BIDSIGNORE) <= {line.strip() for line in lines}


def scan_name(person: str, session: str) -> str:
    """Name of a scan: ``sub-<label>``, with ``_ses-<label>`` behind it where there is one."""
    return f"{person}_{session}" if session else person


def record_path(folder: Path, person: str, session: str) -> Path:
    """Where the record of a scan lies."""
    return folder / person / session / "anat" / f"{scan_name(person, session)}_{RECORD}"


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None when there is no usable one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def has_files(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether every file of a record is there, of its size."""
    sizes = record.get("files", {})
    return bool(sizes) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def check_records(tree: Tree, found: Findings) -> None:
    """Keep scans out whose record is missing, or that lost an image that it names.

    Their process was stopped while it wrote, or somebody took files away: without its mask, a
    scan of a stroke would pass as that of a healthy reference. Other folders are left alone.

    Parameters
    ----------
    tree
        Root of the dataset.
    found
        What lies in it; visits of such scans get a problem.
    """
    if not is_preprocessed(tree.root):
        return
    for person, visits in found.visits.items():
        for session, visit in visits.items():
            if any(space != NATIVE for _, space in visit.images) and not visit.problems:
                _check_record(tree, person, session, visit)


def _check_record(tree: Tree, person: str, session: str, visit: Visit) -> None:
    """Check one scan."""
    path = record_path(tree.root, person, session)
    record = read_record(path)
    lost = [path]
    if record is not None:
        names = record.get("files", {})
        lost = [tree.root / n for n in names if n.endswith(_READ) and not (tree.root / n).exists()]
    if lost:
        file = tree.shown(lost[0])
        message = (
            f"{file}: missing or damaged, so this scan is not whole. Run the same scalebrain "
            "preprocess again, which makes it anew, or take its other files out."
        )
        visit.problems.append(Problem("", "preprocessing-failed", message, file))
