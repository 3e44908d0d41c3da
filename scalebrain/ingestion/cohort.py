"""Ingest datasets into a cohort store: plan, partitions over Dask workers, finalize."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from scalebrain.atlas.space import SPACE
from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import ImageError, Problem, StoreBusyError, StoreError, check_all
from scalebrain.ingestion.alike import tell_alike
from scalebrain.ingestion.decisions import put_aside, put_back
from scalebrain.ingestion.geometry import Geometry
from scalebrain.ingestion.journal import (
    Record,
    present_subjects,
    read_object,
    read_plan,
    read_record,
    read_records,
    rejected_rows,
    source_hashes,
    write_object,
    write_plan,
)
from scalebrain.ingestion.layout import (
    check_grid,
    check_modulated,
    static_of,
    stored_arrays,
    write_arrays,
    write_static,
)
from scalebrain.ingestion.lesion import LATERALITY_THRESHOLD, LESION_THRESHOLD, Sides
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.partition import (
    Partition,
    content_of,
    damaged,
    plain_message,
    write_partition,
)
from scalebrain.ingestion.parts import check_part, is_of_part, until_written
from scalebrain.ingestion.plan import (
    Dataset,
    Plan,
    changes,
    check_ids,
    check_same,
    id_hash,
    make_plan,
    partition_fingerprint,
    person_of,
    prepare,
    source_fingerprint,
)
from scalebrain.ingestion.selection import keep_sessions, select_people
from scalebrain.ingestion.subjects import (
    gather_problems,
    problem_table,
    subject_variables,
    table_rows,
)
from scalebrain.io.lease import Lease, hold_lease, hold_part_lease
from scalebrain.io.location import Location
from scalebrain.io.sources import Cohort, find_cohort, read_withdrawn
from scalebrain.io.store import (
    INGEST,
    check_format,
    create_store,
    drop_saved,
    finalize_store,
    resize_store,
    store_attributes,
    update_root,
)
from scalebrain.io.tree import PERSON

__all__ = [
    "check_store",
    "check_unfinished",
    "check_withdrawn",
    "held_sessions",
    "holds_rows",
    "ingest",
    "is_current",
    "known_people",
    "mended_subjects",
    "partitions_of",
    "plain_problems",
    "prepare_all",
    "problems",
    "rejected_people",
    "withdrawn_people",
    "write_problems",
]

logger = logging.getLogger(__name__)

Sources = str | Path | Sequence[str | Path]

_REJECTED = "Subjects that cannot be used"


def ingest(
    source: Sources,
    store: str | Path,
    *,
    update: bool = False,
    strict: bool = False,
    session: str | None = None,
    prefix: str = "",
    root: str | Path | None = None,
    withdrawn: str | Path | None = None,
    resolution: float | None = None,
    whole_head: bool = False,
    assume_space: bool = False,
    volume: int | None = None,
    lesion_labels: Sequence[int] = (),
    min_lesion: float = 0.0,
    verify: bool = False,
    participants: Sequence[str] = (),
    part: tuple[int, int] | None = None,
) -> str | Path:
    """Read datasets into a cohort store.

    Parameters
    ----------
    source
        A dataset or several, each of which becomes one in the store: BIDS derivatives,
        ATLAS R2.0, CAT12 or UK Biobank folder, FreeSurfer subjects, or a manifest (TSV).
    store
        Path or URL (``s3://``, ``gs://``) of the store. An interrupted ingest goes on from
        where it was; a finished one of the same files is left as it is.
    update
        Bring a finished store up to date: add datasets and subjects, read changed ones
        again. When that changes any row, what was computed from the store is removed;
        decisions of a quality control stay, but for those about changed subjects.
    strict
        Stop with an error when any subject is rejected, instead of going on without it.
    session
        Session to take of people with several, or ``all`` for a row each.
    prefix
        Put in front of every label, so that datasets with equal ids can share a store.
    root
        Folder that the paths of a manifest may not leave; that of the manifest when None.
    withdrawn
        File of ids, one a line, of people who withdrew consent: kept out for good.
    resolution
        Voxel size in mm of a new store on the template's grid; when None, the grid that
        most scans have. Scans on another grid are resampled.
    whole_head
        Keep voxels outside the brain too.
    assume_space
        Trust the affine of images whose orientation codes are 0.
    volume
        Frame of 4-D images, from 0.
    lesion_labels
        Labels of multi-label masks that are lesion.
    min_lesion
        Connected components of a lesion below this volume (mL) are left out.
    verify
        Check the content of what was written before, and write again what is damaged. What was
        computed from a store with damage is removed, but for decisions of a quality control.
    participants
        Labels, with or without ``sub-``, of the people to take; whom the store knows already
        stays. Everyone when empty.
    part
        Number from 1, and count: only this share of the work is done, beside other processes
        that do theirs. The same ingest without a part does what is left and finishes the store.

    Returns
    -------
    Path or str
        `store`; open it with :func:`scalebrain.open_store`.

    Raises
    ------
    TableError, ImageError, GeometryError
        When nothing is usable, or anything is not and `strict` is set: all in one message.
    StoreError
        When the store differs and `update` is not set, or another ingest is writing it
        (``StoreBusyError``).

    Notes
    -----
    A bad subject is left out, with a code and the reason in ``ingest/rejected.tsv`` of the
    store (see :func:`problems`); whatever is odd is in ``ingest/warnings.tsv``. Work is
    spread over the active Dask client, else over threads: a task reads the subjects of one
    partition, writes its shards, then its record. The result does not depend on workers,
    order or interruptions.
    """
    options = ReadOptions(assume_space, volume, tuple(lesion_labels), min_lesion)
    options.check()
    request = _Request(
        source=source,
        store=store,
        options=options,
        update=update,
        strict=strict,
        session=session,
        prefix=prefix,
        root=root,
        withdrawn=withdrawn,
        resolution=resolution,
        whole_head=whole_head,
        verify=verify,
        participants=participants,
        part=part,
    )
    if part is None:
        _ingest(request)
    else:
        check_part(part, verify=verify)
        until_written(Location.of(store), lambda: _ingest(request))
    return store


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`ingest`."""

    source: Sources
    store: str | Path
    options: ReadOptions
    update: bool
    strict: bool
    session: str | None
    prefix: str
    root: str | Path | None
    withdrawn: str | Path | None
    resolution: float | None
    whole_head: bool
    verify: bool
    participants: Sequence[str]
    part: tuple[int, int] | None


def _ingest(asked: _Request) -> bool:
    """Ingest, or write a part; False when all that was done for the part is the plan."""
    store, part = asked.store, asked.part
    location = Location.of(store)
    attrs = store_attributes(location)
    check_store(location, attrs)
    check_grid(attrs, resolution=asked.resolution, whole_head=asked.whole_head)
    gone = withdrawn_people(location, asked.withdrawn, asked.prefix)
    plan = read_plan(location)
    known = known_people(location, plan) if asked.participants else frozenset()
    datasets = prepare_all(
        asked.source,
        asked.session,
        asked.prefix,
        asked.root,
        asked.options,
        gone,
        asked.participants,
        known,
        held_sessions(location),
    )
    if asked.withdrawn is not None:
        tell_alike(asked.withdrawn, asked.prefix, datasets, plan)
    check_ids(datasets, plan, rejected_people(location))
    changed = other_rows = True
    if attrs.get("complete") and plan is not None:
        records = read_records(location, plan)
        check_withdrawn(store, records, gone)
        mended = mended_subjects(records, datasets)
        sources = {s: key for s, key in source_hashes(records).items() if s not in mended}
        changed = not all(is_current(location, attrs, sources, d, gone) for d in datasets)
        other_rows = not all(holds_rows(location, attrs, sources, d) for d in datasets)
        if not changed and not asked.verify:
            logger.info("%s is complete: nothing to ingest", store)
            if asked.strict:
                check_all(list(problems(store)["message"]), ImageError, _REJECTED)
            return True
        if changed and not asked.update:
            raise StoreError(
                f"{store}: complete, and the source differs: {changes(plan, sources, datasets)}. "
                "Bring the store up to date with --update (update=True), or give a new path."
            )
        check_same(plan, sources, attrs["sources"], datasets)
    check_unfinished(attrs, datasets)
    check_modulated(location, datasets)
    static, geometry = static_of(
        attrs, datasets, resolution=asked.resolution, whole_head=asked.whole_head
    )
    mask = "" if static is None else str(static.attrs["mask_sha256"])

    def check_untouched() -> None:
        if (
            store_attributes(location) != attrs
            or withdrawn_people(location, asked.withdrawn, asked.prefix) != gone
        ):
            raise StoreBusyError(
                f"{store}: another process wrote it meanwhile. Run this one again."
            )

    if part and attrs and plan and _is_planned(location, attrs, plan, datasets, gone):
        with hold_part_lease(location, *part) as lease:
            check_untouched()
            own = [p for p in partitions_of(plan, datasets, mask) if is_of_part(p.number, part)]
            _write_partitions(location, own, datasets, geometry, lease, stored_arrays(location))
        return True
    with hold_lease(location) as lease:
        check_untouched()
        location.sweep()
        before = read_plan(location)
        records = {} if before is None else read_records(location, before)
        plan = make_plan(before, datasets, frozenset(present_subjects(records)), store=store)
        if not attrs:
            _create(location, datasets)
        harmed: frozenset[int] = frozenset()
        if asked.verify and before is not None:
            harmed = _damaged_partitions(location, before, records, datasets)
        if other_rows or harmed:
            if before is not None:
                put_aside(location, before, records)
            drop_saved(location)
        else:  # what was computed from the rows is true of them still
            update_root(location, {"complete": False})
        arrays = write_arrays(location, datasets, static)
        if asked.verify and static is not None:  # they have no record: written again
            write_static(location, static)
        _write_plan(location, plan, datasets, gone)
        resize_store(location, plan.n_rows)
        if part is not None:
            return False
        partitions = partitions_of(plan, datasets, mask)
        _write_partitions(location, partitions, datasets, geometry, lease, arrays, harmed)
        _finalize(location, plan, partitions, asked.strict)
    return True


def _is_planned(
    location: Location,
    attrs: Mapping[str, Any],
    plan: Plan,
    datasets: Sequence[Dataset],
    withdrawn: frozenset[str],
) -> bool:
    """Whether a store waits for exactly these datasets."""
    held = attrs["sources"]
    tables = read_object(location, "tables") or {}
    found = read_object(location, "problems") or {}
    return (
        not attrs["complete"]
        and set(read_object(location, "withdrawn") or ()) == withdrawn
        and all(
            held.get(d.name) == {"options": d.options.to_json(), "complete": False}
            and tables.get(d.name) == table_rows(d)
            and found.get(d.name) == plain_problems(d)
            for d in datasets
        )
        and plan
        == make_plan(
            plan,
            datasets,
            frozenset(present_subjects(read_records(location, plan))),
            store=location,
        )
    )


def _write_partitions(
    location: Location,
    partitions: Sequence[Partition],
    datasets: Sequence[Dataset],
    geometry: Geometry | None,
    lease: Lease,
    arrays: tuple[str, ...],
    harmed: frozenset[int] = frozenset(),
) -> None:
    """Write those of some partitions that are not there as planned."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda part: read_record(location, part.number), partitions)
        records = {p.number: r for p, r in zip(partitions, found, strict=True) if r is not None}
    mended = mended_subjects(records, datasets)
    todo = [
        part
        for part in partitions
        if part.number in harmed
        or mended & {scan.subject for scan in part.scans if scan is not None}
        or part.number not in records
        or records[part.number]["fingerprint"] != part.fingerprint
    ]
    if len(todo) < len(partitions):
        n = len(partitions)
        logger.info("%d of %d partitions are done", n - len(todo), n)
    shared = (str(location), arrays, geometry, (lease.token, lease.key))
    map_tasks(_write_partition, todo, label="ingest", shared=shared)
    lease.check()


def _damaged_partitions(
    location: Location, plan: Plan, records: Mapping[int, Record], datasets: Sequence[Dataset]
) -> frozenset[int]:
    """Partitions of the given datasets with a shard that is missing or damaged."""
    given = {dataset.name for dataset in datasets}
    own = [n for n in records if plan.partitions[n].dataset in given]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: damaged(location, records[number]), own)
        return frozenset(n for n, keys in zip(own, found, strict=True) if keys)


def check_store(location: Location, attrs: Mapping[str, Any]) -> None:
    """Refuse what is no store, or none that an ingest can go on with."""
    if not attrs:
        if any(not key.startswith(f"{INGEST}/") for key in location.list("")):
            raise StoreError(f"{location}: exists and is not a store. Give a new path.")
        return
    check_format(location, attrs)
    if "sources" not in attrs:
        raise StoreError(f"{location}: was not made by an ingest. Give a new path.")
    if attrs.get("withdrawing"):
        raise StoreError(
            f"{location}: a withdrawal was interrupted. Run it again first: it goes on from there."
        )


def mended_subjects(records: Mapping[int, Record], datasets: Sequence[Dataset]) -> frozenset[str]:
    """Rejected subjects whose files are others by now, though gzip and zip say the same of them."""
    scans = {subject: scan for dataset in datasets for subject, scan in dataset.scans.items()}
    rejected = {
        entry["subject"]: entry["content"]
        for record in records.values()
        for entry in record["subjects"]
        if "content" in entry and entry["subject"] in scans
    }
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda subject: content_of(scans[subject]), rejected)
        pairs = zip(rejected.items(), found, strict=True)
        return frozenset(subject for (subject, before), now in pairs if before != now)


def check_withdrawn(
    store: str | Path, records: Mapping[int, Record], withdrawn: frozenset[str]
) -> None:
    """Refuse a list with people whom a finished store still holds."""
    check_all(
        [
            f"{subject} withdrew, and is in the store. Remove everyone of the list first: "
            f"scalebrain store withdraw {store} --list FILE"
            for subject in present_subjects(records)
            if id_hash(person_of(subject)) in withdrawn
        ],
        StoreError,
        f"{store}: holds people who withdrew",
    )


def withdrawn_people(location: Location, path: str | Path | None, prefix: str) -> frozenset[str]:
    """Hashes of everyone who withdrew: by the store, and by a list of the sources' own ids."""
    known = frozenset(read_object(location, "withdrawn") or ())
    if path is None:
        return known
    labels = (person.removeprefix("sub-") for person in read_withdrawn(Path(path)))
    return known | {id_hash(f"sub-{prefix}{label}") for label in labels}


def known_people(location: Location, plan: Plan | None) -> frozenset[str]:
    """Everyone whom a store knows: those with a row, and those who were rejected."""
    found = read_object(location, "problems") or {}
    told = [one[0] for kinds in found.values() for listed in kinds.values() for one in listed]
    return frozenset(map(person_of, [*(plan.subjects() if plan else ()), *told]))


def rejected_people(location: Location) -> dict[str, frozenset[str]]:
    """Everyone who was rejected before anything was read, by dataset of a store."""
    found = read_object(location, "problems") or {}
    people = {n: {person_of(one[0]) for one in kinds["rejected"]} for n, kinds in found.items()}
    return {name: frozenset(filter(PERSON.fullmatch, ids)) for name, ids in people.items()}


def held_sessions(location: Location) -> dict[str, str]:
    """Session of every row that a store has or waits for."""
    tables = read_object(location, "tables") or {}
    return {s: row["session"] for rows in tables.values() for s, row in rows.items()}


def prepare_all(
    source: Sources,
    session: str | None,
    prefix: str,
    root: str | Path | None,
    options: ReadOptions,
    withdrawn: frozenset[str],
    participants: Sequence[str] = (),
    known: frozenset[str] = frozenset(),
    sessions: Mapping[str, str] | None = None,
) -> list[Dataset]:
    """Find and fingerprint every dataset, or of each the participants and whom a store knows."""
    # whom it knows and who is no participant keeps the session that it has
    given = [source] if isinstance(source, str | Path) else list(source)

    def find(one: str | Path, session: str | None) -> Cohort:
        folder = None if root is None else Path(root)
        return find_cohort(one, session=session, prefix=prefix, root=folder)

    cohorts = [find(one, session) for one in given]
    if participants:
        named = {f"sub-{prefix}{label.removeprefix('sub-')}" for label in participants}
        held = {s: of for s, of in (sessions or {}).items() if person_of(s) not in named}
        cohorts = [
            keep_sessions(cohort, held, partial(find, one))
            for one, cohort in zip(given, cohorts, strict=True)
        ]
        chosen = select_people(cohorts, participants, known, prefix)
        pairs = [(one, c) for one, c in zip(given, chosen, strict=True) if c.scans or c.rejected]
    else:
        pairs = list(zip(given, cohorts, strict=True))
    out = []
    for one, cohort in pairs:
        dataset = prepare(cohort, options, withdrawn)
        if dataset.n_withdrawn:
            logger.info("%s: %d withdrawn people left out", cohort.name, dataset.n_withdrawn)
        if not any(scan.t1w or scan.surfaces for scan in dataset.scans.values()):
            way_out = "Add T1w images in template space (CAT12: its wm*.nii), or FreeSurfer runs."
            if dataset.n_withdrawn:
                way_out = f"{dataset.n_withdrawn} people in it withdrew."
            failures = [problem.message for problem in dataset.rejected] or [
                f"{one}: no T1w image and no surfaces. {way_out}"
            ]
            check_all(failures, ImageError, f"{one}: nothing that can be ingested")
        if not any(scan.gm for scan in dataset.scans.values()) and any(
            scan.t1w for scan in dataset.scans.values()
        ):
            logger.warning("%s: no grey-matter probabilities: T1w images alone", cohort.name)
        out.append(dataset)
    return out


def is_current(
    location: Location,
    attrs: Mapping[str, Any],
    sources: Mapping[str, str],
    dataset: Dataset,
    withdrawn: frozenset[str],
) -> bool:
    """Whether a finished store holds exactly this of a dataset."""
    if not holds_rows(location, attrs, sources, dataset):
        return False
    if not withdrawn <= set(read_object(location, "withdrawn") or ()):
        return False
    known = (read_object(location, "problems") or {}).get(dataset.name)
    return bool(known == plain_problems(dataset))


def holds_rows(
    location: Location, attrs: Mapping[str, Any], sources: Mapping[str, str], dataset: Dataset
) -> bool:
    """Whether every row that a finished store has of a dataset is as it would be read now.

    Parameters
    ----------
    location, attrs
        Store and its root attributes.
    sources
        Hash of the files of every subject that was read.
    dataset
        Dataset.

    Returns
    -------
    bool
        When it is False, what was computed from the store may no longer be true of it. Who is
        left out before anything is read, and what is odd, may have changed either way.
    """
    held = attrs["sources"].get(dataset.name)
    if held is None or held["options"] != dataset.options.to_json():
        return False
    if _is_simulated(dataset) and attrs.get("simulated") != "true":
        return False
    rows = (read_object(location, "tables") or {}).get(dataset.name)
    return rows == table_rows(dataset) and all(
        sources.get(subject) == key for subject, key in dataset.hashes.items()
    )


def _is_simulated(dataset: Dataset) -> bool:
    """Whether a dataset says that nobody in it is real."""
    return bool(dataset.cohort.description.get("Simulated"))


def check_unfinished(attrs: Mapping[str, Any], datasets: Sequence[Dataset]) -> None:
    """Refuse to leave the interrupted ingest of a dataset behind."""
    given = {dataset.name for dataset in datasets}
    left = [n for n, s in attrs.get("sources", {}).items() if not s["complete"] and n not in given]
    if left:
        raise StoreError(
            f"The ingest of {', '.join(left)} into this store was interrupted. Give it again "
            "beside the others, so that it goes on; or start a new store."
        )


def _create(location: Location, datasets: Sequence[Dataset]) -> None:
    """Write the store without arrays."""
    create_store(
        location,
        {
            "package_version": version("scalebrain"),
            "space": SPACE,
            "laterality_threshold": LATERALITY_THRESHOLD,
            "lesion_threshold": LESION_THRESHOLD,
            "simulated": "true" if any(map(_is_simulated, datasets)) else "false",
            "partition_rows": make_plan(None, datasets, frozenset()).rows,
            "sources": {},
        },
    )


def plain_problems(dataset: Dataset) -> dict[str, list[list[str]]]:
    """Say what discovery found of a dataset, JSON-able."""
    cohort = dataset.cohort
    return {
        kind: [
            [p.subject, p.code, _plain_words(p, cohort), _plain_file(p, cohort)] for p in problems
        ]
        for kind, problems in (("rejected", dataset.rejected), ("warnings", dataset.warnings))
    }


def _plain_words(problem: Problem, cohort: Cohort) -> str:
    """Message of a problem, without the folders of a file outside the dataset."""
    message = plain_message(problem.message, cohort.root)
    file = plain_message(problem.file, cohort.root)
    return message.replace(file, Path(file).name) if file.startswith("/") else message


def _plain_file(problem: Problem, cohort: Cohort) -> str:
    """File of a problem below the dataset's root, or its name alone."""
    file = plain_message(problem.file, cohort.root)
    return Path(file).name if file.startswith("/") else file


def _write_plan(
    location: Location, plan: Plan, datasets: Sequence[Dataset], withdrawn: frozenset[str]
) -> None:
    """Write what finalizing needs and a later ingest builds on."""
    tables = read_object(location, "tables") or {}
    found = read_object(location, "problems") or {}
    attrs = store_attributes(location)
    held = attrs["sources"]
    for dataset in datasets:
        tables[dataset.name] = table_rows(dataset)
        found[dataset.name] = plain_problems(dataset)
        held[dataset.name] = {"options": dataset.options.to_json(), "complete": False}
    write_object(location, "tables", tables)
    write_object(location, "problems", found)
    write_object(location, "withdrawn", sorted(withdrawn))
    write_plan(location, plan)
    simulated = attrs.get("simulated") == "true" or any(map(_is_simulated, datasets))
    update_root(location, {"sources": held, "simulated": "true" if simulated else "false"})


def partitions_of(plan: Plan, datasets: Sequence[Dataset], mask: str) -> list[Partition]:
    """Partitions of the given datasets."""
    given = {dataset.name: dataset for dataset in datasets}
    out = []
    for number, part in enumerate(plan.partitions):
        dataset = given.get(part.dataset)
        if dataset is None:
            continue
        scans = tuple(dataset.scans.get(subject) for subject in part.subjects)
        out.append(
            Partition(
                number,
                plan.rows,
                scans,
                tuple(dataset.sides.get(subject, Sides()) for subject in part.subjects),
                tuple(dataset.hashes.get(subject, "") for subject in part.subjects),
                dataset.cohort.root,
                dataset.cohort.modulated,
                dataset.options,
                partition_fingerprint(part, dataset.hashes, dataset.options, mask),
            )
        )
    return out


def _write_partition(
    partition: Partition, shared: tuple[str, tuple[str, ...], Geometry | None, tuple[str, str]]
) -> int:
    """Write one partition."""
    return write_partition(partition, *shared)


def _finalize(
    location: Location, plan: Plan, partitions: Sequence[Partition], strict: bool
) -> None:
    """Gather what the partitions found, and declare the store complete."""
    records = read_records(location, plan)
    _check_records(location, plan, partitions, records)
    entries = {e["subject"]: e for r in records.values() for e in r["subjects"] if e}
    tables, found = read_object(location, "tables"), read_object(location, "problems")
    rejected, warnings = gather_problems(plan, entries, found, tables)
    present = sum("values" in entry for entry in entries.values())
    if rejected and (strict or not present):
        check_all([p.message for _, p in rejected], ImageError, _REJECTED)
    put_back(location, plan, records)
    subjects = subject_variables(plan, entries, tables, [p for _, p in warnings])
    write_problems(location, rejected, warnings)
    held = store_attributes(location)["sources"]
    finalize_store(
        location,
        subjects,
        {
            "sources": {name: {**source, "complete": True} for name, source in held.items()},
            "source_sha256": source_fingerprint(
                tables, source_hashes(records), held, rejected_rows(records)
            ),
        },
    )
    _say(present, rejected, warnings)


def write_problems(
    location: Location,
    rejected: Sequence[tuple[str, Problem]],
    warnings: Sequence[tuple[str, Problem]],
) -> None:
    """Write rejected.tsv and warnings.tsv."""
    for name, found in (("rejected", rejected), ("warnings", warnings)):
        text = problem_table(found).to_csv(sep="\t", index=False, lineterminator="\n")
        location.put(f"{INGEST}/{name}.tsv", text.encode())


def _check_records(
    location: Location,
    plan: Plan,
    partitions: Sequence[Partition],
    records: Mapping[int, Record],
) -> None:
    """Refuse to leave out subjects without a word: every partition is there as planned."""
    given = {partition.number: partition.fingerprint for partition in partitions}
    lost = {
        part.dataset
        for number, part in enumerate(plan.partitions)
        if number not in records or given.get(number) not in (None, records[number]["fingerprint"])
    }
    if lost:
        raise StoreError(
            f"{location}: records of {', '.join(sorted(lost))} are missing or another writer's. "
            "Run the same ingest again, with these datasets among its sources.",
            code="interrupted",
        )


def _say(
    n: int, rejected: Sequence[tuple[str, Problem]], warnings: Sequence[tuple[str, Problem]]
) -> None:
    """Log what was left out, once, with the count."""
    counts = Counter(problem.code for _, problem in warnings)
    if counts:
        shown = ", ".join(f"{code} {k}" for code, k in sorted(counts.items()))
        logger.warning("%d warnings: %s", counts.total(), shown)
    out = len({(name, problem.subject) for name, problem in rejected})
    logger.info("%d subjects in the store, %d rejected", n, out)
    for _, problem in rejected[:50]:
        logger.warning("rejected [%s] %s", problem.code, problem.message)
    if len(rejected) > 50:
        logger.warning("... and %d more, all in ingest/rejected.tsv", len(rejected) - 50)


def problems(store: str | Path, kind: str = "rejected") -> pd.DataFrame:
    """Read what an ingest rejected, or found odd.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    kind
        ``rejected`` or ``warnings``.

    Returns
    -------
    DataFrame
        dataset, subject, code, rule, file and message, one row each.

    Raises
    ------
    StoreError
        When the store has no such table.
    """
    import io

    content = Location.of(store).get(f"{INGEST}/{kind}.tsv")
    if content is None:
        raise StoreError(f"{store}: not a finished store. Ingest first.")
    return pd.read_csv(io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False)
