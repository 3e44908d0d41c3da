"""What tells a scan from another one: a decision holds for the scan that it was made on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import StoreError
from scalebrain.ingestion.journal import read_plan, read_records
from scalebrain.io.location import Location
from scalebrain.io.shards import content_hash
from scalebrain.report.content import text_values
from scalebrain.report.scanpictures import Rows

__all__ = ["scan_marks"]


def scan_marks(ds: xr.Dataset, store: str | Path) -> list[str]:
    """Mark the scan and the lesion mask of every subject of a store.

    Parameters
    ----------
    ds
        The store.
    store
        Its path or URL.

    Returns
    -------
    list of str
        One a subject; the same in another store that was ingested from the same files alike.

    Notes
    -----
    A hash of the hash of the files and of how they were read, by which an update of the store keeps
    or drops decisions too. In a store without an ingest a hash of the rows, or where there are none
    of its place.
    """
    labels = [str(label) for label in ds["subject"].values]
    read = _read_from(store)
    unread = [at for at, label in enumerate(labels) if label not in read]
    marks = {at: _mark("files", read[label]) for at, label in enumerate(labels) if label in read}
    if unread:
        n = ds.sizes["subject"]
        scans = text_values(ds["scan_hash"]) if "scan_hash" in ds.variables else [""] * n
        has_lesion = [False] * n
        if "lesion_present" in ds.variables:
            has_lesion = np.asarray(ds["lesion_present"].values, dtype=np.bool_).tolist()
        tasks = [(at, str(scans[at]), has_lesion[at]) for at in unread]
        shared = (Rows.of(ds), str(Location.of(store)))
        found = map_tasks(_mark_of_rows, tasks, label="scans", shared=shared)
        marks |= dict(zip(unread, found, strict=True))
    return [marks[at] for at in range(len(labels))]


def _read_from(store: str | Path) -> dict[str, Any]:
    """Hash of the files of every subject, and how they were read; nothing without an ingest."""
    location = Location.of(store)
    try:
        plan = read_plan(location)
    except StoreError:  # damaged: the rows tell as well
        plan = None
    if plan is None:
        return {}
    return {
        entry["subject"]: [entry["source"], record["options"]]
        for record in read_records(location, plan).values()
        for entry in record["subjects"]
        if "values" in entry
    }


def _mark_of_rows(task: tuple[int, str, bool], shared: tuple[Rows, str]) -> str:
    """Mark of someone whose files nobody knows."""
    (at, scan, has_lesion), (rows, place) = task, shared
    held: list[Any] = [scan]
    for array in (None if scan else rows.t1w, rows.lesion_mask if has_lesion else None):
        row = rows.row(array, at)
        held.append("" if row is None else content_hash([np.ascontiguousarray(row)]))
    return _mark("rows", held if any(held) else place)


def _mark(kind: str, content: object) -> str:
    """Short hash."""
    return hashlib.sha256(json.dumps([kind, content], sort_keys=True).encode()).hexdigest()[:16]
