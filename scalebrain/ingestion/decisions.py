"""What people saved in a store that is updated: decisions about the same scans stay."""

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
from scalebrain.variables import REGISTRY

__all__ = ["put_aside", "put_back"]

logger = logging.getLogger(__name__)

_NAMES = ("qc_decision", "qc_note")
_OBJECT = "decisions"
_MOST_NAMED = 50


def put_aside(location: Location, plan: Plan, records: Mapping[int, Record]) -> None:
    """Keep the decisions of a store beside it, before all that was saved is dropped.

    Variables that users saved are not kept: a warning names them.

    Parameters
    ----------
    location
        Store, under a lease. It is declared unfinished: what is kept here is of no finished one.
    plan, records
        Plan and records as they are before the update.
    """
    saved = store_attributes(location).get("saved_variables", ())
    if not saved:
        return
    group = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    _tell_own(location, group, [name for name in saved if name not in _NAMES])
    names = [name for name in _NAMES if name in saved]
    if not names:
        return  # what a killed update has kept stays
    update_root(location, {"complete": False})
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


def _tell_own(location: Location, group: zarr.Group, saved: Sequence[str]) -> None:
    """Log which variables are dropped that no stage computes again; labels come with others."""
    own = [
        name
        for name, array in sorted(group.arrays())
        if name in saved
        and (name not in REGISTRY or _is_of_user(name, array))
        and tuple(array.metadata.dimension_names or ()) != (name,)  # type: ignore[union-attr]
    ]
    if own:
        imported = any("tool" in group[name].attrs for name in own)
        more = len(own) - _MOST_NAMED
        logger.warning(
            "%s: rows change, so that what was saved with save_store or imported is removed, too: "
            "%s. Save it again, over the people who are there then.%s",
            location,
            ", ".join(own[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else ""),
            " Import ages again; a study that names them does so." if imported else "",
        )


def _is_of_user(name: str, array: zarr.Array[Any]) -> bool:
    """Whether a known variable is of imported ages or harmonized, and so not computed again."""
    return name == "harmonization" or bool({"tool", "harmonized_over"} & set(array.attrs))


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
