"""Decisions of a quality control while a store is updated: those about the same scans stay."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
import zarr

from scalebrain.ingestion.journal import Record, read_object, write_object
from scalebrain.ingestion.plan import Plan
from scalebrain.io.location import Location
from scalebrain.io.store import INGEST, replace_variables, store_attributes, update_root

__all__ = ["put_aside", "put_back"]

logger = logging.getLogger(__name__)

_NAMES = ("qc_decision", "qc_note")
_OBJECT = "decisions"
_MOST_NAMED = 50


def put_aside(location: Location, plan: Plan, records: Mapping[int, Record]) -> None:
    """Keep the decisions of a store beside it, before all that was saved is dropped.

    Parameters
    ----------
    location
        Store, under a lease. It is declared unfinished: what is kept here is of no finished one.
    plan, records
        Plan and records as they are before the update.
    """
    saved = store_attributes(location).get("saved_variables", ())
    names = [name for name in _NAMES if name in saved]
    if not names:
        return  # what a killed update has kept stays
    update_root(location, {"complete": False})
    group = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    columns = {name: np.asarray(group[name][...]).tolist() for name in names}  # type: ignore[index]
    read = _read_from(records)
    kept = {}
    for subject, (_, row) in plan.subjects().items():
        own = {name: str(column[row]) for name, column in columns.items() if row < len(column)}
        if any(own.values()):
            kept[subject] = {**own, "read_from": read.get(subject)}
    write_object(location, _OBJECT, kept)


def put_back(location: Location, plan: Plan, records: Mapping[int, Record]) -> None:
    """Save the decisions that were kept again, but those about files that are others by now.

    Parameters
    ----------
    location
        Store, under a lease, whose partitions are written.
    plan, records
        Plan and records as they are after the update.
    """
    kept = read_object(location, _OBJECT)
    if kept is None:
        return
    read, rows = _read_from(records), plan.subjects()
    here = {subject: one for subject, one in kept.items() if subject in rows}
    same = {s: one for s, one in here.items() if s in read and read[s] == one["read_from"]}
    if same:
        columns = {name: np.full(plan.n_rows, "", dtype=object) for name in _NAMES}
        for subject, one in same.items():
            for name in _NAMES:
                columns[name][rows[subject][1]] = one.get(name, "")
        marked = {n: ("subject", c.astype(str), {"saved": True}) for n, c in columns.items()}
        replace_variables(location, xr.Dataset(marked))
        update_root(location, {"saved_variables": list(_NAMES)})
    # before the store is finished: nothing of it may outlast a withdrawal
    location.delete(f"{INGEST}/{_OBJECT}.json")
    _tell(location, len(same), [subject for subject in here if subject not in same])


def _read_from(records: Mapping[int, Record]) -> dict[str, list[Any]]:
    """Hash of the files that everyone with a row was read from, and how they were read."""
    return {
        entry["subject"]: [entry["source"], record["options"]]
        for record in records.values()
        for entry in record["subjects"]
        if "values" in entry
    }


def _tell(location: Location, n_kept: int, dropped: Sequence[str]) -> None:
    """Log what was kept, and of whom nothing was."""
    if n_kept:
        logger.info("%s: decisions about %d subjects are kept", location, n_kept)
    if dropped:
        more = len(dropped) - _MOST_NAMED
        logger.warning(
            "%s: decisions of the quality control about %d subjects whose files changed are "
            "dropped: %s. Look at them again: 'scalebrain qc' begins with the decisions that are "
            "left, and a table given to a study or to 'features' decides as it says.",
            location,
            len(dropped),
            ", ".join(dropped[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else ""),
        )
