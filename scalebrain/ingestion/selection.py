"""Some of the people of datasets, by their labels."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scalebrain.errors import ConfigError, Problem, TableError, check_all
from scalebrain.ingestion.plan import Dataset, person_of
from scalebrain.io.sources import Cohort

__all__ = ["check_sessions", "select_people"]


def select_people(
    cohorts: Sequence[Cohort], participants: Sequence[str], known: frozenset[str], prefix: str
) -> list[Cohort]:
    """Keep of every cohort the people who are named, and those whom a store knows.

    Parameters
    ----------
    cohorts
        Cohorts.
    participants
        Labels, with or without ``sub-``, as the datasets have them.
    known
        Persons of the store, as it has them.
    prefix
        What was put in front of every label.

    Returns
    -------
    list of Cohort
        The same cohorts, with fewer people.

    Raises
    ------
    TableError
        When a label is in none of them; with the labels that are near.
    """
    there = {scan.person for cohort in cohorts for scan in cohort.scans}
    there |= {person_of(p.subject) for cohort in cohorts for p in cohort.rejected}
    failures, named = [], set()
    for label in dict.fromkeys(participants):
        person = f"sub-{prefix}{label.removeprefix('sub-')}"
        named.add(person)
        if person not in there:
            near = difflib.get_close_matches(person, sorted(there), n=3, cutoff=0.7)
            labels = ", ".join(one.removeprefix(f"sub-{prefix}") for one in near)
            hint = f"Near it: {labels}." if near else f"There are {len(there)} others."
            failures.append(f"Participant '{label}' is not in the dataset. {hint}")
    check_all(failures, TableError, "Unknown participants")
    return [_only(cohort, named | known) for cohort in cohorts]


def _only(cohort: Cohort, people: set[str]) -> Cohort:
    """Cohort of these people alone."""

    def kept(problem: Problem) -> bool:
        person = person_of(problem.subject)
        return person in people or not person.startswith("sub-")

    scans = tuple(scan for scan in cohort.scans if scan.person in people)
    return replace(
        cohort,
        scans=scans,
        table=cohort.table.loc[[scan.subject for scan in scans]],
        rejected=tuple(filter(kept, cohort.rejected)),
        warnings=tuple(filter(kept, cohort.warnings)),
    )


def check_sessions(
    datasets: Sequence[Dataset],
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
    participants: Sequence[str],
    prefix: str,
) -> None:
    """Refuse to add people where others, who are not named, would get another session by it.

    Parameters
    ----------
    datasets
        Datasets as they are found now.
    tables
        Rows that the store has of each, by subject.
    participants, prefix
        As for :func:`select_people`.

    Raises
    ------
    ConfigError
        When someone's row would become that of another session, or be lost.
    """
    named = {f"sub-{prefix}{label.removeprefix('sub-')}" for label in participants}
    failures = []
    for dataset in datasets:
        there = {scan.person for scan in dataset.scans.values()}
        there |= {person_of(p.subject) for p in dataset.rejected if p.code == "several-sessions"}
        for subject, row in tables.get(dataset.name, {}).items():
            scan = dataset.scans.get(subject)
            is_other = row["person"] in there if scan is None else scan.session != row["session"]
            if is_other and row["person"] not in named:
                failures.append(
                    f"{subject}: the store holds {row['session'] or 'the only session'}, which "
                    "this call would replace. Give the session of that call (--session-label, "
                    "session=), name everyone, or take another store for another session."
                )
    check_all(failures, ConfigError, "People of the store have another session")
