"""The work of one Dask task: read the subjects of a partition, write its shards, its record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalebrain.errors import GeometryError, ImageError, TableError
from scalebrain.ingestion.geometry import Geometry
from scalebrain.ingestion.journal import Record, outdate_record, write_record
from scalebrain.ingestion.lesion import Sides
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.scan import read_rows
from scalebrain.io.lease import check_token
from scalebrain.io.location import Location
from scalebrain.io.shards import content_hash, encode_row, join_shard
from scalebrain.io.sources import Scan
from scalebrain.io.store import ROWS_PER_BLOCK

__all__ = [
    "Partition",
    "array_rows",
    "content_of",
    "damaged",
    "plain_message",
    "read_subject",
    "write_partition",
]

_BLOCK = ("t1w", "gm")


@dataclass(frozen=True)
class Partition:
    """One task.

    Parameters
    ----------
    number
        Partition.
    rows
        Rows of a partition.
    scans
        One entry a row; None for a row that stays empty.
    sides
        Sides of lesion and paresis by the table, one entry a row.
    hashes
        Hash of the files, one entry a row.
    root
        Folder of the dataset: left out of messages.
    modulated
        Grey matter is modulated.
    options
        How files are read.
    fingerprint
        Fingerprint of the plan.
    """

    number: int
    rows: int
    scans: tuple[Scan | None, ...]
    sides: tuple[Sides, ...]
    hashes: tuple[str, ...]
    root: Path
    modulated: bool
    options: ReadOptions
    fingerprint: str


def array_rows(name: str, rows: int) -> int:
    """Rows of a shard of an array: a block for what is read block by block, else a partition."""
    return ROWS_PER_BLOCK if name in _BLOCK else rows


def read_subject(
    scan: Scan, geometry: Geometry | None, partition: Partition, sides: Sides
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Read a subject: its encoded rows and its entry in the record; no rows when rejected."""
    entry: dict[str, Any] = {"subject": scan.subject}
    try:
        rows = read_rows(
            scan, geometry, partition.options, sides=sides, modulated=partition.modulated
        )
    except (GeometryError, ImageError, TableError) as error:
        why = {"code": error.code, **_about(str(error), scan, partition)}
        return {}, {**entry, "rejected": why, "content": content_of(scan)}
    warnings = [{"code": code, **_about(words, scan, partition)} for code, words in rows.warnings]
    encoded = {name: encode_row(row) for name, row in rows.images.items()}
    return encoded, {**entry, "values": rows.values, "warnings": warnings}


def content_of(scan: Scan) -> list[str]:
    """Keys of the files of a scan by all their bytes: they tell a damaged file from a good copy."""
    files = (scan.t1w, scan.gm, scan.lesion, scan.surfaces)
    return ["" if f is None or f.path.is_dir() else f.full_key() for f in files]


def _about(message: str, scan: Scan, partition: Partition) -> dict[str, str]:
    """Message and the file of the scan that it names."""
    files = (scan.t1w, scan.gm, scan.lesion, scan.surfaces)
    named = next((str(f) for f in files if f is not None and str(f) in message), "")
    return {
        "message": plain_message(message, partition.root),
        "file": plain_message(named, partition.root),
    }


def plain_message(message: str, root: Path) -> str:
    """Message in one printable line, its paths relative to the dataset."""
    line = " ".join(message.replace(f"{root}/", "").replace(str(root), root.name).split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def write_partition(
    partition: Partition,
    url: str,
    arrays: tuple[str, ...],
    geometry: Geometry | None,
    lease: tuple[str, str],
) -> int:
    """Write the shards of a partition and, last, its record.

    Parameters
    ----------
    partition
        What to read.
    url
        Path or URL of the store.
    arrays
        Every big array of the store.
    geometry
        Voxels of the store.
    lease
        Token and key of the lease under which it is written.

    Returns
    -------
    int
        Number of subjects that were rejected.

    Raises
    ------
    StoreError
        When another ingest took the lease over: nothing of its work is overwritten.
    """
    store = Location.of(url)
    check_token(store, *lease)
    outdate_record(store, partition.number)
    waiting: dict[str, dict[int, bytes]] = {}
    entries: list[dict[str, Any]] = []
    written: dict[str, str] = {}
    for slot, scan in enumerate(partition.scans):
        entry: dict[str, Any] = {}
        if scan is not None:
            encoded, entry = read_subject(scan, geometry, partition, partition.sides[slot])
            entry["source"] = partition.hashes[slot]
            for name, row in encoded.items():
                waiting.setdefault(name, {})[slot] = row
        entries.append(entry)
        last = slot + 1 == len(partition.scans)
        for name in list(waiting):
            rows = array_rows(name, partition.rows)
            if last or (slot + 1) % rows == 0:
                check_token(store, *lease)
                written |= _flush(store, partition, name, rows, waiting.pop(name))
    check_token(store, *lease)
    _delete_others(store, partition, arrays, written)
    record = {
        "fingerprint": partition.fingerprint,
        "options": partition.options.to_json(),
        "subjects": entries,
        "shards": written,
    }
    write_record(store, partition.number, record)
    return sum("rejected" in entry for entry in entries)


def _flush(
    store: Location, partition: Partition, name: str, rows: int, encoded: dict[int, bytes]
) -> dict[str, str]:
    """Write the shards that hold the given rows; hash by key."""
    written = {}
    for start in sorted({slot // rows * rows for slot in encoded}):
        shard = join_shard([encoded.get(slot) for slot in range(start, start + rows)])
        key = f"{name}/c/{(partition.number * partition.rows + start) // rows}/0"
        store.put(key, shard)
        written[key] = content_hash([shard])
    return written


def _delete_others(
    store: Location, partition: Partition, arrays: tuple[str, ...], written: dict[str, str]
) -> None:
    """Remove shards of an earlier ingest of these rows that have no row any more."""
    for name in arrays:
        rows = array_rows(name, partition.rows)
        first = partition.number * partition.rows // rows
        for shard in range(first, first + partition.rows // rows):
            if f"{name}/c/{shard}/0" not in written:
                store.delete(f"{name}/c/{shard}/0")


def damaged(location: Location, record: Record) -> list[str]:
    """Keys of the shards of a record that are missing or not what was written."""
    out = []
    for key, expected in record["shards"].items():
        content = location.get(key)
        if content is None or content_hash([content]) != expected:
            out.append(key)
    return out
