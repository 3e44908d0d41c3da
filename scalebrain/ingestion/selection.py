"""Some of the people of datasets, by their labels."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from scalebrain.errors import Problem, TableError, check_all
from scalebrain.ingestion.plan import person_of
from scalebrain.io.sources import Cohort

__all__ = ["select_people"]


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
