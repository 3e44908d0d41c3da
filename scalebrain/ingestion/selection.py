"""Some of the people of datasets, by their labels."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from scalebrain.errors import Problem, TableError, check_all
from scalebrain.ingestion.plan import person_of
from scalebrain.io.sessions import ALL_SESSIONS
from scalebrain.io.sources import Cohort

__all__ = ["keep_sessions", "select_people"]


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


def keep_sessions(cohort: Cohort, held: Mapping[str, str], find: Callable[[str], Cohort]) -> Cohort:
    """Give people of a store the sessions that it has of them, whatever was asked for others.

    Parameters
    ----------
    cohort
        Cohort, by the session that is asked for now.
    held
        Session of every row of the people who keep theirs; empty without sessions.
    find
        Finds the same cohort by another session.

    Returns
    -------
    Cohort
        The cohort, with the scans of these people as the store has them.
    """
    sessions = {scan.subject: scan.session for scan in cohort.scans}
    rows = {person_of(subject) for subject in sessions}
    several = {p.subject for p in cohort.rejected if p.code == "several-sessions"}
    moved: dict[str, set[str]] = {}
    for subject, session in held.items():
        person = person_of(subject)
        other_row = person in rows and subject not in sessions
        if session and (
            sessions.get(subject, session) != session or other_row or person in several
        ):
            choice = session if subject == person else ALL_SESSIONS
            moved.setdefault(choice, set()).add(person)
    for choice, people in moved.items():
        cohort = _joined(cohort, _only(find(choice), people), people)
    return cohort


def _joined(cohort: Cohort, other: Cohort, people: set[str]) -> Cohort:
    """Cohort with some people as another one has them."""

    def rest(problems: Sequence[Problem]) -> list[Problem]:
        return [problem for problem in problems if person_of(problem.subject) not in people]

    def of_people(problems: Sequence[Problem]) -> list[Problem]:
        return [problem for problem in problems if person_of(problem.subject) in people]

    kept = [scan for scan in cohort.scans if scan.person not in people]
    scans = tuple(sorted([*kept, *other.scans], key=lambda scan: (scan.person, scan.session)))
    table = pd.concat([cohort.table.loc[[scan.subject for scan in kept]], other.table])
    return replace(
        cohort,
        scans=scans,
        table=table.loc[[scan.subject for scan in scans]],
        rejected=(*rest(cohort.rejected), *of_people(other.rejected)),
        warnings=(*rest(cohort.warnings), *of_people(other.warnings)),
    )
