"""Which subject gets which row, and what has to be read again.

A partition owns the rows of one shard of every array, all of one dataset. A subject keeps
its row for good: new subjects fill free rows of their dataset's last partition, then new
partitions. A partition is done when its record carries the fingerprint of its plan.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from types import MappingProxyType
from typing import Any

from scalebrain.errors import Problem, ScalebrainError, StoreError, TableError, check_all
from scalebrain.ingestion.lesion import Sides
from scalebrain.ingestion.options import ReadOptions
from scalebrain.io.files import SourceFile
from scalebrain.io.sources import Cohort, Scan
from scalebrain.io.store import FORMAT_VERSION
from scalebrain.io.tree import PERSON

__all__ = [
    "Dataset",
    "Plan",
    "Planned",
    "changes",
    "check_ids",
    "check_same",
    "id_hash",
    "make_plan",
    "partition_fingerprint",
    "person_of",
    "prepare",
    "source_fingerprint",
    "without_people",
]

_SMALL_COHORT = 2048
_REJECTED = " (rejected there)"
#: An id in a text, or a label quoted as one: what the text is about, or a cell of a line. What is
#: quoted elsewhere is another value.
_LABEL = "[A-Za-z0-9]{1,64}"
_ID = re.compile(
    rf"{PERSON.pattern}|(?<=\A['\"]){_LABEL}(?=['\"])|(?<=['\"]){_LABEL}(?=['\"] in line )"
)


@dataclass(frozen=True)
class Dataset:
    """A cohort with the fingerprints of what it is made of.

    Parameters
    ----------
    cohort
        Scans and table.
    scans
        Scans by subject, those that are read.
    hashes
        SHA-256 of the names and contents of the files of each of them.
    sides
        Sides of lesion and paresis by the table.
    rejected
        What keeps subjects out before anything is read.
    warnings
        What is odd before anything is read.
    n_withdrawn
        People left out because they withdrew.
    options
        How files are read.
    """

    cohort: Cohort
    scans: dict[str, Scan]
    hashes: dict[str, str]
    sides: dict[str, Sides]
    rejected: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    n_withdrawn: int
    options: ReadOptions

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.cohort.name


@dataclass(frozen=True)
class Planned:
    """Rows of one partition.

    Parameters
    ----------
    dataset
        Name of the dataset.
    subjects
        One entry a row; empty where the subject was withdrawn.
    """

    dataset: str
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Rows of a store.

    Parameters
    ----------
    rows
        Rows of a partition.
    partitions
        Partitions, in order.
    """

    rows: int
    partitions: tuple[Planned, ...] = field(default=())

    @property
    def n_rows(self) -> int:
        """Rows of the store."""
        if not self.partitions:
            return 0
        return self.rows * (len(self.partitions) - 1) + len(self.partitions[-1].subjects)

    def subjects(self) -> dict[str, tuple[str, int]]:
        """Dataset and row of every subject."""
        return {
            subject: (part.dataset, self.rows * number + slot)
            for number, part in enumerate(self.partitions)
            for slot, subject in enumerate(part.subjects)
            if subject
        }

    def to_plain(self) -> dict[str, Any]:
        """Plain values, JSON-able."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Plan":
        """Read what :meth:`to_plain` gave."""
        parts = tuple(Planned(p["dataset"], tuple(p["subjects"])) for p in plain["partitions"])
        return cls(int(plain["rows"]), parts)


def id_hash(person: str) -> str:
    """SHA-256 of an id: how a store remembers who withdrew."""
    return hashlib.sha256(f"scalebrain withdrawn {person}".encode()).hexdigest()


def person_of(subject: str) -> str:
    """Person that a row or a problem is about: the id without its session."""
    return subject.split("_ses-", 1)[0]


def without_people(
    problems: Iterable[Sequence[str]], withdrawn: Collection[str]
) -> list[list[str]]:
    """Leave out the problems of people who withdrew, and their ids in those of others.

    Parameters
    ----------
    problems
        Subject, code, message and file of each.
    withdrawn
        Hashes of the people who withdrew.

    Returns
    -------
    list of list of str
        The problems that stay, in their order.
    """
    if not withdrawn:
        return [list(problem) for problem in problems]

    def shown(match: re.Match[str]) -> str:
        person = f"sub-{match[0].removeprefix('sub-')}"
        return "(withdrawn)" if id_hash(person) in withdrawn else match[0]

    return [
        [_ID.sub(shown, text) for text in problem]
        for problem in problems
        if id_hash(person_of(problem[0])) not in withdrawn
    ]


def prepare(cohort: Cohort, options: ReadOptions, withdrawn: frozenset[str]) -> Dataset:
    """Decide which scans of a cohort are read, and fingerprint them.

    Parameters
    ----------
    cohort
        Cohort.
    options
        How files are read.
    withdrawn
        Hashes of the people who withdrew.

    Returns
    -------
    Dataset
        Scans to read.
    """
    gone = {scan.subject for scan in cohort.scans if id_hash(scan.person) in withdrawn}
    rejected, warnings = (
        [Problem(*one) for one in without_people(map(astuple, problems), withdrawn)]
        for problems in (cohort.rejected, cohort.warnings)
    )
    scans = {scan.subject: scan for scan in cohort.scans if scan.subject not in gone}
    for problem in (*_without_gm(scans), *_other_versions(scans)):
        rejected.append(problem)
        del scans[problem.subject]
    with ThreadPoolExecutor(16) as pool:
        told = zip(cohort.table["lesion_side"], cohort.table["paresis_side"], strict=True)
        sides = {s: Sides(*map(str, two)) for s, two in zip(cohort.table.index, told, strict=True)}
        keys = pool.map(lambda scan: _scan_hash(cohort, scan, sides[scan.subject]), scans.values())
        hashes = dict(zip(scans, keys, strict=True))
    return Dataset(
        cohort, scans, hashes, sides, tuple(rejected), tuple(warnings), len(gone), options
    )


def source_fingerprint(
    tables: object, sources: Mapping[str, str], held: Mapping[str, Any], rejected: Sequence[str]
) -> str:
    """SHA-256 over everything that a store took from its datasets, and how it was read.

    Parameters
    ----------
    tables
        Rows of the tables by dataset and subject.
    sources
        Hash of the files of every subject that was read.
    held
        Datasets of the store, with the options of each.
    rejected
        Subjects that were read and rejected: files of the same hash may be whole, or not.

    Returns
    -------
    str
        Fingerprint.
    """
    options = {name: source["options"] for name, source in held.items()}
    content = json.dumps([tables, dict(sources), options, sorted(rejected)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _without_gm(scans: dict[str, Scan]) -> list[Problem]:
    """Subjects without grey matter, where most have it."""
    imaged = [scan for scan in scans.values() if scan.t1w is not None]
    without = [scan.subject for scan in imaged if scan.gm is None]
    if not without or len(without) * 2 >= len(imaged):
        return []
    return [
        Problem(
            subject,
            "gm-missing",
            f"{subject}: no label-GM_probseg, which {len(imaged) - len(without)} of {len(imaged)} "
            "subjects have. Add it, or take all of them out.",
        )
        for subject in without
    ]


def _other_versions(scans: dict[str, Scan]) -> list[Problem]:
    """Subjects that another FreeSurfer version than the most frequent one processed."""
    from scalebrain.io.freesurfer import read_version

    versions: dict[str, str] = {}
    for scan in scans.values():
        if scan.surfaces is not None:
            try:
                versions[scan.subject] = read_version(scan.surfaces)
            except ScalebrainError:
                continue  # reading its surfaces says what is wrong
    counts = {v: list(versions.values()).count(v) for v in set(versions.values())}
    if len(counts) < 2:
        return []
    usual = max(sorted(counts), key=lambda v: counts[v])
    return [
        Problem(
            subject,
            "freesurfer-mixed",
            f"{subject}: FreeSurfer {version}, {counts[usual]} of {len(versions)} have {usual}. "
            "Process all with one version, or give them as datasets of their own.",
        )
        for subject, version in versions.items()
        if version != usual
    ]


def _scan_hash(cohort: Cohort, scan: Scan, sides: Sides) -> str:
    """SHA-256 over the names and contents of a scan's files, and what its reading depends on."""
    told = [sides.lesion, *filter(None, [sides.paresis])]
    digest = hashlib.sha256(json.dumps([scan.space, *told]).encode())
    for kind in ("t1w", "gm", "lesion", "surfaces"):
        file: SourceFile | None = getattr(scan, kind)
        if file is None:
            continue
        name = str(file).removeprefix(f"{cohort.root}/")
        try:
            key = file.content_key() if kind != "surfaces" else _surfaces_key(file)
        except ScalebrainError as error:
            key = f"error {error.code}"  # its reading will say so
        digest.update(f"{kind} {name} {key}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _surfaces_key(source: SourceFile) -> str:
    """Key of a FreeSurfer folder or archive: of the files that are read."""
    from scalebrain.io.freesurfer import read_files

    return " ".join(f"{f.name} {f.content_key()}" for f in read_files(source))


def check_ids(
    datasets: Sequence[Dataset],
    plan: Plan | None,
    rejected: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Refuse datasets of one name, and people of one id in two datasets, whatever their sessions.

    Parameters
    ----------
    datasets
        Datasets that are given.
    plan
        Plan of the store, None for a new one.
    rejected
        Who was rejected before anything was read, by dataset of the store. They count, too: they
        are let in when they are mended.

    Raises
    ------
    TableError
        With every such name and person.
    """
    failures = []
    names = [dataset.name for dataset in datasets]
    for name in sorted({n for n in names if names.count(n) > 1}):
        failures.append(f"Two datasets are named '{name}'. Rename one of the folders.")
    owners: dict[str, dict[str, str]] = {}
    for subject, (name, _) in (plan.subjects() if plan else {}).items():
        owners.setdefault(person_of(subject), {})[name] = ""
    for name in rejected.keys() - set(names):
        for person in rejected[name]:
            owners.setdefault(person, {}).setdefault(name, _REJECTED)
    given: dict[str, None] = {}
    for dataset in datasets:
        people = dict.fromkeys((scan.person for scan in dataset.scans.values()), "")
        told = (person_of(problem.subject) for problem in dataset.rejected)
        people = dict.fromkeys(filter(PERSON.fullmatch, told), _REJECTED) | people
        for person, how in people.items():
            owners.setdefault(person, {})[dataset.name] = how
            given[person] = None
    for person in given:
        if len(owners[person]) > 1:
            found = " and in ".join(f"'{name}'{how}" for name, how in owners[person].items())
            failures.append(
                f"{person} is in {found}. Ingest one of them with --prefix, which goes in front of "
                "its ids."
            )
    check_all(failures, TableError, "The datasets cannot share a store")


def make_plan(
    stored: Plan | None,
    datasets: Sequence[Dataset],
    done: frozenset[str],
    *,
    store: object = "STORE",
) -> Plan:
    """Give every subject its row.

    Parameters
    ----------
    stored
        Plan of the store, None for a new one.
    datasets
        Datasets that are given; others keep their rows.
    done
        Subjects whose rows were written.
    store
        Path or URL of the store, for messages.

    Returns
    -------
    Plan
        Rows of stored and new subjects.

    Raises
    ------
    TableError
        When a subject of the store is no longer in its dataset, neither usable nor rejected, or
        its person has another label there, of more or fewer sessions.
    """
    if stored is None:
        total = sum(len(dataset.scans) for dataset in datasets)
        stored = Plan(16 if total < _SMALL_COHORT else 64)
    given = {dataset.name: dataset for dataset in datasets}
    gone: dict[str, list[str]] = {}
    staying: set[str] = set()
    partitions: list[Planned] = []
    for part in stored.partitions:
        subjects = part.subjects
        if part.dataset in given:
            known = given[part.dataset].scans
            refused = {problem.subject for problem in given[part.dataset].rejected}
            # who is rejected now keeps the row, empty
            kept = {s for s in subjects if s in known or {s, person_of(s)} & refused}
            gone.setdefault(part.dataset, []).extend(
                s for s in subjects if s and s not in kept and s in done
            )
            staying |= {part.dataset} if kept & done else set()
            subjects = tuple(s if s in kept or s in done else "" for s in subjects)
        partitions.append(Planned(part.dataset, subjects))
    failures: list[str] = []
    for name, subjects_gone in gone.items():
        held = [s for part in stored.partitions if part.dataset == name for s in part.subjects]
        renamed = _other_labels(given[name], subjects_gone, held)
        failures += renamed.values()
        subjects_gone = [subject for subject in subjects_gone if subject not in renamed]
        if subjects_gone and name not in staying and not renamed:
            failures.append(_other_dataset(given[name], subjects_gone, store))
            continue
        failures += [
            f"{subject} is in the store but no longer in its dataset '{name}'. Put it back, or "
            f"remove it for good with: scalebrain store withdraw {store} {person_of(subject)}"
            for subject in subjects_gone
        ]
    check_all(failures, TableError, "Subjects have gone")
    for dataset in datasets:
        placed = {s for part in partitions if part.dataset == dataset.name for s in part.subjects}
        new = [subject for subject in dataset.scans if subject not in placed]
        own = [i for i, part in enumerate(partitions) if part.dataset == dataset.name]
        if own and new:
            last = partitions[own[-1]]
            free = stored.rows - len(last.subjects)
            partitions[own[-1]] = Planned(last.dataset, (*last.subjects, *new[:free]))
            new = new[free:]
        for start in range(0, len(new), stored.rows):
            partitions.append(Planned(dataset.name, tuple(new[start : start + stored.rows])))
    return Plan(stored.rows, tuple(partitions))


def _other_labels(dataset: Dataset, gone: Sequence[str], held: Sequence[str]) -> dict[str, str]:
    """Say of whom the dataset has scans of other labels, as another visit makes them."""
    labels: dict[str, list[str]] = {}
    scans = [scan.subject for scan in dataset.cohort.scans]
    for subject in dict.fromkeys([*scans, *(problem.subject for problem in dataset.rejected)]):
        labels.setdefault(person_of(subject), []).append(subject)
    one = "" if any("_ses-" in subject for subject in held) else ", choose one with --session"
    return {
        subject: f"{subject} is in the store, but of this person its dataset '{dataset.name}' now "
        f"has {', '.join(labels[person_of(subject)])}: other sessions than at the ingest change "
        f"the label. Start a new store{one}, or put the sessions back as they were."
        for subject in gone
        if person_of(subject) in labels
    }


def _other_dataset(dataset: Dataset, gone: Sequence[str], store: object) -> str:
    """Say that a dataset may be another one of the same name: nobody of the store is in it."""
    shown = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
    return (
        f"Nobody whom {store} has of the dataset '{dataset.name}' is in {dataset.cohort.root} "
        f"({len(gone)}: {shown}): another dataset in a folder of the same name? Rename its folder, "
        "whose name a dataset has in the store. If it is the same one, put them back, or remove "
        f"them for good with: scalebrain store withdraw {store} {person_of(gone[0])}"
    )


def check_same(
    stored: Plan, records: Mapping[str, str], held: Mapping[str, Any], datasets: Sequence[Dataset]
) -> None:
    """Refuse a dataset of which every scan differs: it is another one of the same name."""
    known = stored.subjects()
    for dataset in datasets:
        options = held.get(dataset.name, {}).get("options")
        shared = [s for s in dataset.hashes if s in known and s in records]
        same = any(records[s] == dataset.hashes[s] for s in shared)
        if len(shared) >= 3 and not same and options == dataset.options.to_json():
            raise StoreError(
                f"Every scan of '{dataset.name}' differs from the store's: another dataset in a "
                "folder of the same name? Rename the folder, or start a new store."
            )


def changes(stored: Plan, records: dict[str, str], datasets: Sequence[Dataset]) -> str:
    """Say in words how datasets differ from what a store holds.

    Parameters
    ----------
    stored
        Plan of the store.
    records
        Hash of the files of each subject at its ingest.
    datasets
        Datasets that are given.

    Returns
    -------
    str
        Such as ``3 new, 1 changed``; ``tables changed`` when only those did.
    """
    known = stored.subjects()
    names = {part.dataset for part in stored.partitions}
    new = changed = 0
    for dataset in datasets:
        for subject, key in dataset.hashes.items():
            if subject not in known:
                new += 1
            elif records.get(subject) != key:
                changed += 1
    unknown = sorted(d.name for d in datasets if d.name not in names)
    words = [f"new dataset '{name}'" for name in unknown]
    words += [f"{new} new subjects"] if new else []
    words += [f"{changed} changed subjects"] if changed else []
    return ", ".join(words) or "tables or settings changed"


def partition_fingerprint(
    part: Planned, hashes: dict[str, str], options: ReadOptions, geometry: str
) -> str:
    """SHA-256 over everything that the shards of a partition depend on.

    Parameters
    ----------
    part
        Partition.
    hashes
        Hash of the files of each subject.
    options
        How files are read.
    geometry
        Hash of the store's voxels.

    Returns
    -------
    str
        Fingerprint.
    """
    content = [
        FORMAT_VERSION,
        geometry,
        options.to_json(),
        part.dataset,
        [(subject, hashes.get(subject, "")) for subject in part.subjects],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
