"""Upkeep of a store: what is in it, whether it is intact, and people who withdraw."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import StoreError, TableError, check_all
from scalebrain.ingestion.alike import alike_ids
from scalebrain.ingestion.cohort import problems, write_problems
from scalebrain.ingestion.journal import (
    Record,
    read_object,
    read_plan,
    read_record,
    read_records,
    rejected_rows,
    source_hashes,
    write_object,
    write_plan,
    write_record,
)
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.partition import array_rows, damaged
from scalebrain.ingestion.plan import (
    Plan,
    Planned,
    id_hash,
    partition_fingerprint,
    person_of,
    source_fingerprint,
    without_people,
)
from scalebrain.ingestion.subjects import gather_problems
from scalebrain.io.delimited import listed
from scalebrain.io.lease import hold_lease
from scalebrain.io.location import Location
from scalebrain.io.shards import content_hash, join_shard, split_shard
from scalebrain.io.store import (
    check_format,
    explained,
    fill_value,
    quiet,
    remove_array,
    store_attributes,
    update_root,
)
from scalebrain.io.tree import PERSON

__all__ = ["Withdrawal", "store_info", "verify_store", "withdraw", "withdraw_people"]

logger = logging.getLogger(__name__)

_MOST_NAMED = 5
_MOST_LINES = 50


def _complete(store: str | Path) -> tuple[Location, dict[str, Any], Plan]:
    """Location, root attributes and plan of a finished store."""
    location = Location.of(store)
    attrs = store_attributes(location)
    plan = read_plan(location)
    if not attrs or plan is None:
        raise StoreError(f"{store}: not a store that was ingested. Ingest first.")
    check_format(location, attrs)
    return location, attrs, plan


def store_info(store: str | Path) -> dict[str, Any]:
    """Say what a store holds.

    Parameters
    ----------
    store
        Path or URL of a store, finished or not.

    Returns
    -------
    dict
        complete, format version, space, grid, datasets with their subjects, arrays with
        shape and bytes, number of objects, of rejected subjects and of warnings by code.
    """
    location, attrs, plan = _complete(store)
    group = zarr.open_group(location.zarr_store(read_only=True), mode="r")
    datasets: Counter[str] = Counter()
    for part in plan.partitions:
        datasets[part.dataset] += sum(1 for subject in part.subjects if subject)
    complete = bool(attrs.get("complete"))
    rejected = problems(store) if complete else None
    warnings = problems(store, "warnings") if complete else None
    with quiet():
        arrays = {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in sorted(group.arrays())
            if len(array.shape) == 2
        }
    return {
        "store": str(store),
        "complete": complete,
        "format_version": attrs["format_version"],
        "package_version": attrs["package_version"],
        "space": attrs["space"],
        "shape": attrs.get("shape"),
        "simulated": attrs["simulated"] == "true",
        "datasets": dict(datasets),
        "rejected": None if rejected is None else len(rejected),
        "warnings": {} if warnings is None else warnings["code"].value_counts().to_dict(),
        "arrays": arrays,
        "computed": sorted(attrs.get("saved_variables", ())),
        "objects": len(location.list("")),
    }


def verify_store(store: str | Path) -> list[str]:
    """Read every shard and compare it with the hash of what was written.

    Parameters
    ----------
    store
        Path or URL of a finished store.

    Returns
    -------
    list of str
        One line a shard that is missing or damaged, with its subjects; empty when the
        store is intact. The same ingest with ``verify=True`` writes them again.
    """
    _, attrs, plan = _complete(store)
    if not attrs.get("complete"):
        raise StoreError(f"{store}: its ingest was interrupted. Run the same ingest again.")
    numbers = list(range(len(plan.partitions)))
    found = map_tasks(_verify_partition, numbers, label="verify", shared=(str(store), plan))
    return [line for lines in found for line in lines]


def _verify_partition(number: int, shared: tuple[str, Plan]) -> list[str]:
    """Damaged shards of one partition, in words."""
    url, plan = shared
    location = Location.of(url)
    record = read_record(location, number)
    subjects = plan.partitions[number].subjects
    if record is None:
        return [f"record {number}: missing ({', '.join(filter(None, subjects))})"]
    lines = []
    for key in damaged(location, record):
        name, _, shard, _ = key.split("/")
        rows = array_rows(name, plan.rows)
        start = int(shard) * rows - number * plan.rows
        hit = ", ".join(filter(None, subjects[start : start + rows]))
        lines.append(f"{key}: missing or damaged ({hit})")
    return lines


def withdraw(
    store: str | Path, ids: str | Sequence[str], *, also: Collection[str] = frozenset()
) -> int:
    """Remove people who withdrew their consent, and keep them out.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    ids
        Participant ids as the store has them (with their dataset's prefix), with or without
        ``sub-``, or one such id; each has to be in the store. All sessions of a person go.
    also
        Such ids that are kept out whether the store holds them or not.

    Returns
    -------
    int
        Number of rows that were emptied. Their scans, table values and results are gone
        from the store; of their ids it keeps a hash, so that no later ingest takes them
        in again. Variables computed over all subjects are removed: compute them again.

    Raises
    ------
    TableError
        When an id is neither in the store nor withdrawn before; nothing is done then. When the
        store has nobody of an id of `also`, but somebody of nearly that id: all that was named
        is done then.
    StoreError
        When the store is not finished, being written, or damaged where they are.

    Notes
    -----
    Interrupted, the same call goes on from there. Copies of the store, models trained on
    it and reports made from it are not touched. The same scan under another id stays; a warning
    of the log names it.
    """
    return withdraw_people(store, ids, also=also).rows


class Withdrawal(NamedTuple):
    """What a withdrawal did.

    Parameters
    ----------
    rows
        Rows that were emptied.
    found, named
        People who were in the store, of those who were named.
    """

    rows: int
    found: int
    named: int


def withdraw_people(
    store: str | Path, ids: str | Sequence[str], *, also: Collection[str] = frozenset()
) -> Withdrawal:
    """Do what :func:`withdraw` says, and tell how many people were found.

    Parameters
    ----------
    store, ids, also
        As of :func:`withdraw`.

    Returns
    -------
    Withdrawal
        Rows and people.

    Raises
    ------
    TableError, StoreError
        As of :func:`withdraw`.
    """
    named, also = _whole_ids(ids), _whole_ids(also)
    location = Location.of(store)
    _complete(store)  # before the lease, which makes a folder
    with hold_lease(location):
        _, attrs, plan = _complete(store)
        if not attrs.get("complete") and not attrs.get("withdrawing"):
            raise StoreError(f"{store}: its ingest was interrupted. Run the same ingest again.")
        location.sweep()
        known = set(read_object(location, "withdrawn"))
        people = {person_of(one) for one in named | also}
        held = _people(plan, read_object(location, "problems"))
        seen = set().union(*held.values())
        alike = alike_ids(sorted(people - seen), held)
        check_all(
            [
                f"{person}: not in the store{_meant(alike.get(person, ()))}. Check the id."
                for person in sorted({person_of(one) for one in named} - seen)
                if id_hash(person) not in known
            ],
            TableError,
            f"{store}: unknown ids",
        )
        known |= {id_hash(person) for person in people}
        # everyone who ever withdrew: an earlier call may have been killed
        rows = {s: r for s, (_, r) in plan.subjects().items() if id_hash(person_of(s)) in known}
        _check_intact(location, plan, set(rows.values()))
        _tell_same_scans(location, plan, rows)
        update_root(location, {"complete": False, "withdrawing": True})
        write_object(location, "withdrawn", sorted(known))
        _empty_rows(location, plan, rows)
        _forget(location, plan, known)
        update_root(location, {"complete": True, "withdrawing": False})
    logger.info("%d rows emptied", len(rows))
    done = Withdrawal(len(rows), len(people & seen), len(people))
    near = sorted(alike.keys() & {person_of(one) for one in also})
    if near:
        lines = [
            f"  - {person}: not in the store{_meant(alike[person])}. Where that is the same "
            f"person: scalebrain store withdraw {store} {alike[person][0]}"
            for person in near[:_MOST_LINES]
        ]
        lines += [f"  ... and {len(near) - _MOST_LINES} more"] if len(near) > _MOST_LINES else []
        raise TableError(
            f"{store}: {done.rows} rows emptied, {done.found} of {done.named} people named were in "
            "the store. All of these ids are kept out; but there are ids that are nearly the same "
            f"({len(near)}):\n" + "\n".join(lines)
        )
    return done


def _whole_ids(ids: Collection[object]) -> set[str]:
    """Ids as a store has them; a text is one id, not letters, and a table may hold numbers."""
    given = [ids] if isinstance(ids, str) else map(str, ids)
    return {one if one.startswith("sub-") else f"sub-{one}" for one in given}


def _meant(alike: Sequence[str]) -> str:
    """Ids that may be meant, in words."""
    more = ", ..." if len(alike) > _MOST_NAMED else ""
    return f", which has {', '.join(alike[:_MOST_NAMED])}{more}" if alike else ""


def _people(plan: Plan, found: dict[str, dict[str, list[list[str]]]]) -> dict[str, set[str]]:
    """People of each dataset: those with a row, and those that discovery told of."""
    people: dict[str, set[str]] = {}
    for subject, (name, _) in plan.subjects().items():
        people.setdefault(name, set()).add(person_of(subject))
    for name, kinds in found.items():
        told = {person_of(one[0]) for listed in kinds.values() for one in listed}
        people.setdefault(name, set()).update(filter(PERSON.fullmatch, told))
    return people


def _record(location: Location, number: int) -> Record:
    """Record of a partition of a finished store."""
    record = read_record(location, number)
    if record is None:
        raise StoreError(
            f"{location}: record {number} is missing or damaged. Run the same ingest with --verify "
            "--update first."
        )
    return record


def _check_intact(location: Location, plan: Plan, rows: Collection[int]) -> None:
    """Refuse to rewrite damaged shards, while the ingest can still mend them.

    Rewritten, they would have a hash that says they are whole.
    """
    touched = {row // plan.rows for row in rows}
    failures = []
    for number in range(len(plan.partitions)):
        record = _record(location, number)
        for key, expected in record["shards"].items() if number in touched else ():
            name, _, shard, _ = key.split("/")
            if int(shard) not in {row // array_rows(name, plan.rows) for row in rows}:
                continue
            content = location.get(key)
            found = "" if content is None else content_hash([content])
            # a killed withdrawal wrote the shard, and not yet the record
            if found not in (expected, record.get("pending", {}).get(key)):
                failures.append(
                    f"{location}: {key} is missing or damaged. Run the same ingest with --verify "
                    "first."
                )
    check_all(failures, StoreError, f"{location}: nothing was withdrawn, shards are damaged")


def _tell_same_scans(location: Location, plan: Plan, gone: Collection[str]) -> None:
    """Warn of rows that stay and hold a scan of those that go, under another id."""
    scans = {
        entry["subject"]: entry["values"].get("scan_hash", "")
        for record in read_records(location, plan).values()
        for entry in record["subjects"]
        if "values" in entry
    }
    hashes = {scans.get(subject, "") for subject in gone} - {""}
    same = sorted(s for s, scan in scans.items() if scan in hashes and s not in gone)
    if same:
        logger.warning(
            "%s: the same scan as of those who are removed is there under other ids, which stay "
            "(%d): %s. Where that is the same person: scalebrain store withdraw %s %s",
            location,
            len(same),
            listed(same),
            location,
            person_of(same[0]),
        )


def _empty_rows(location: Location, plan: Plan, rows: dict[str, int]) -> None:
    """Take rows out of every array."""
    with quiet(), explained(location):
        group = zarr.open_group(location.zarr_store(), mode="r+")
        saved = {str(name) for name in store_attributes(location).get("saved_variables", ())}
        dims_of = {
            name: tuple(array.metadata.dimension_names or ())  # type: ignore[union-attr]
            for name, array in group.arrays()
        }
        gone = _of_everyone(dims_of, saved)
        for name, array in group.arrays():
            dims = dims_of[name]
            if dims[:1] != ("subject",):
                continue
            if len(dims) == 2 and dims[1] in ("voxel", "vertex"):
                _empty_shards(location, plan, name, sorted(rows.values()))
                continue
            if len(dims) == 1:
                values = np.asarray(array[:])
                values[list(rows.values())] = fill_value(array.dtype)
                array[:] = values
                continue
            for row in rows.values():
                array[row] = fill_value(array.dtype)
        kept = sorted(saved - set(gone))
        group.update_attributes({"saved_variables": kept})
        for name in gone:
            remove_array(location, name)


def _of_everyone(dims_of: Mapping[str, Sequence[str]], saved: Collection[str]) -> list[str]:
    """Tell saved arrays that are no longer true; labels of arrays that stay are."""
    gone = {name for name in saved if name in dims_of and "subject" not in dims_of[name][:1]}
    labels = {dim for name, dims in dims_of.items() if name not in gone for dim in dims}
    return [
        name
        for name in dims_of
        if name in gone and (dims_of[name] != (name,) or name not in labels)
    ]


def _empty_shards(location: Location, plan: Plan, name: str, rows: Sequence[int]) -> None:
    """Take rows out of the shards of one array, and out of their records' hashes."""
    per_shard = array_rows(name, plan.rows)
    for shard in sorted({row // per_shard for row in rows}):
        key = f"{name}/c/{shard}/0"
        content = location.get(key)
        encoded = [None] * per_shard if content is None else split_shard(content, per_shard)
        for row in rows:
            if row // per_shard == shard:
                encoded[row % per_shard] = None
        number = shard * per_shard // plan.rows
        record = _record(location, number)
        joined = join_shard(encoded)
        after = content_hash([joined]) if joined else ""
        if key in record["shards"]:
            write_record(location, number, {**record, "pending": {key: after}})
        if joined:
            location.put(key, joined)
            record["shards"][key] = after
        else:
            location.delete(key)
            record["shards"].pop(key, None)
        record.pop("pending", None)
        write_record(location, number, record)


def _forget(location: Location, plan: Plan, withdrawn: set[str]) -> None:
    """Take people out of records, tables, problems and, last, the plan."""

    def is_gone(subject: str) -> bool:
        return bool(subject) and id_hash(person_of(subject)) in withdrawn

    left = Plan(
        plan.rows,
        tuple(
            Planned(part.dataset, tuple("" if is_gone(s) else s for s in part.subjects))
            for part in plan.partitions
        ),
    )
    mask = str(store_attributes(location).get("mask_sha256", ""))
    for number, part in enumerate(left.partitions):
        record = _record(location, number)
        entries = [{} if is_gone(e.get("subject", "")) else e for e in record["subjects"]]
        if entries == record["subjects"] and part == plan.partitions[number]:
            continue
        fingerprint = partition_fingerprint(
            part,
            {e["subject"]: e["source"] for e in entries if e},
            ReadOptions.from_json(record["options"]),
            mask,
        )
        write_record(location, number, {**record, "subjects": entries, "fingerprint": fingerprint})
    tables = read_object(location, "tables")
    tables = {n: {s: v for s, v in rows.items() if not is_gone(s)} for n, rows in tables.items()}
    write_object(location, "tables", tables)
    found = {
        name: {kind: without_people(ones, withdrawn) for kind, ones in kinds.items()}
        for name, kinds in read_object(location, "problems").items()
    }
    write_object(location, "problems", found)
    records = read_records(location, left)
    entries_of = {e["subject"]: e for r in records.values() for e in r["subjects"] if e}
    write_problems(location, *gather_problems(left, entries_of, found, tables))
    held = store_attributes(location)["sources"]
    fingerprint = source_fingerprint(tables, source_hashes(records), held, rejected_rows(records))
    update_root(location, {"source_sha256": fingerprint})
    write_plan(location, left)
