"""The ingest's own objects in a store: plan, tables, problems, records of partitions."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scalebrain.errors import StoreError
from scalebrain.ingestion.plan import Plan
from scalebrain.io.location import Location
from scalebrain.io.store import INGEST

__all__ = [
    "Record",
    "outdate_record",
    "present_subjects",
    "read_object",
    "read_plan",
    "read_record",
    "read_records",
    "rejected_rows",
    "source_hashes",
    "write_object",
    "write_plan",
    "write_record",
]

Record = dict[str, Any]

_RECORD = {"fingerprint", "options", "subjects", "shards"}


def read_object(location: Location, name: str) -> Any:
    """One object as plain values; None when it is not there."""
    content = location.get(f"{INGEST}/{name}.json")
    try:
        return None if content is None else json.loads(content)
    except ValueError as error:
        raise StoreError(
            f"{location}: {INGEST}/{name}.json is damaged. Ingest into a new store."
        ) from error


def write_object(location: Location, name: str, content: object) -> None:
    """Write one object, in one piece."""
    location.put(f"{INGEST}/{name}.json", json.dumps(content, sort_keys=True).encode())


def read_plan(location: Location) -> Plan | None:
    """Plan of a store; None when it has none."""
    plain = read_object(location, "plan")
    try:
        return None if plain is None else Plan.from_plain(plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{location}: {INGEST}/plan.json is damaged. Ingest into a new store."
        ) from error


def write_plan(location: Location, plan: Plan) -> None:
    """Write the plan."""
    write_object(location, "plan", plan.to_plain())


def read_record(location: Location, number: int) -> Record | None:
    """Record of a partition; None when it is not done, or its record is damaged."""
    content = location.get(f"{INGEST}/{number:06d}.json")
    try:
        record = None if content is None else json.loads(content)
    except ValueError:
        return None
    whole = isinstance(record, dict) and record.keys() >= _RECORD
    return record if whole else None


def write_record(location: Location, number: int, record: Mapping[str, Any]) -> None:
    """Write the record of a partition, after its shards."""
    write_object(location, f"{number:06d}", dict(record))


def outdate_record(location: Location, number: int) -> None:
    """Take the fingerprint off the record of a partition, before its shards are written."""
    record = read_record(location, number)
    if record is not None:  # kept: it tells who was in the store, should the ingest be killed
        write_record(location, number, {**record, "fingerprint": ""})


def read_records(location: Location, plan: Plan) -> dict[int, Record]:
    """Read the records of the partitions that are done."""
    numbers = range(len(plan.partitions))
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: read_record(location, number), numbers)
        return {n: record for n, record in zip(numbers, found, strict=True) if record is not None}


def present_subjects(records: Mapping[int, Record]) -> list[str]:
    """Subjects that have a row in the store."""
    return [e["subject"] for r in records.values() for e in r["subjects"] if "values" in e]


def rejected_rows(records: Mapping[int, Record]) -> list[str]:
    """Subjects that were read and rejected: their rows are empty."""
    return sorted(
        entry["subject"]
        for record in records.values()
        for entry in record["subjects"]
        if "rejected" in entry
    )


def source_hashes(records: Mapping[int, Record]) -> dict[str, str]:
    """Hash of the files of every subject that was read, rejected or not."""
    return {
        entry["subject"]: entry["source"]
        for record in records.values()
        for entry in record["subjects"]
        if entry
    }
