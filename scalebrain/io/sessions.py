"""Select the sessions of a cohort, and find the row of the table for each."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scalebrain.errors import Problem, TableError
from scalebrain.io.cells import quote
from scalebrain.io.delimited import listed
from scalebrain.io.enigma import names_of
from scalebrain.io.participants import Participants
from scalebrain.io.tree import Findings, Visit, shown

__all__ = [
    "ALL_SESSIONS",
    "Selected",
    "Selection",
    "differences",
    "match_session",
    "select_sessions",
    "session_columns",
]

#: Every session is a scan of its own.
ALL_SESSIONS = "all"

#: What an analysis needs, and how it is written: the score for motor outcome alone, the group
#: where signs of a stroke do not tell it.
_NEEDED = {
    "sex": "sex (F, M)",
    "icv": "icv (intracranial volume, mL)",
    "days_post_stroke": "days_post_stroke (days)",
    "motor_score": "motor_score (0 to 1, or points of scales that participants.json declares)",
    "group": "group (reference, stroke)",
}


@dataclass(frozen=True)
class Selected:
    """One scan of the cohort.

    Parameters
    ----------
    subject
        Unique name.
    person, session
        Whose it is.
    visit
        What was found; empty for a scan that is missing.
    row
        Position in the table of participants.
    """

    subject: str
    person: str
    session: str
    visit: Visit
    row: int


@dataclass
class Selection:
    """The scans of a cohort, and everyone else.

    Parameters
    ----------
    scans
        Sorted by person and session.
    rejected, warnings
        What is wrong or odd.
    """

    scans: list[Selected] = field(default_factory=list)
    rejected: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def select_sessions(found: Findings, people: Participants, session: str | None) -> Selection:
    """Select one session of each person, or all, and find their rows.

    Parameters
    ----------
    found
        Files by person and session; surfaces and masks without a session are added to that of
        the person's images.
    people
        The table.
    session
        ``ses-<label>``, :data:`ALL_SESSIONS`, or None where each person has to have only one.

    Returns
    -------
    Selection
        Everyone who was found or is in the table, except those that either rejects already.

    Raises
    ------
    TableError
        When nobody has the session that is asked for.
    """
    rows: dict[str, dict[str, int]] = {}
    subjects, sessions = people.table["subject"], people.table["session"]
    for position, (person, name) in enumerate(zip(subjects, sessions, strict=True)):
        rows.setdefault(person, {})[name] = position
    refused = {_person(problem.subject) for problem in people.rejected}
    result = Selection()
    for person, visits in found.visits.items():
        _join_sessionless(person, visits, result)
    if session not in (None, ALL_SESSIONS):
        _check_session(found, session)
    for person in sorted(found.visits.keys() | rows.keys()):
        visits, own = found.visits.get(person, {}), rows.get(person, {})
        if person in found.refused:
            continue
        if not own:
            result.rejected.append(_no_row(person, person, "no row in the table"))
        elif session is None:
            _select_only(person, visits, own, result)
        elif session == ALL_SESSIONS:
            _select_all(person, visits, own, result)
        else:
            _select_one(person, session, visits, own, result)
    result.rejected = [
        problem
        for problem in result.rejected
        if problem.code != "no-table-row" or _person(problem.subject) not in refused
    ]
    result.warnings += _contradictions(people, rows, result.scans)
    result.warnings += _absent(people, found)
    return result


def differences(what: str, values: Mapping[str, str]) -> str:
    """Say that a person has several values of what a person has one of.

    Parameters
    ----------
    what
        Name of the variable.
    values
        Value by session or table; empty where it is not known.

    Returns
    -------
    str
        What differs and the way out; empty when nothing does.
    """
    if len({value for value in values.values() if value}) < 2:
        return ""
    shown = listed([f"{value} ({where})" for where, value in values.items() if value])
    return f"several values of {what} of one person: {shown}. Correct them, or the ids."


def _contradictions(
    people: Participants, rows: Mapping[str, Mapping[str, int]], scans: Iterable[Selected]
) -> list[Problem]:
    """Say where the rows of one person contradict each other in sex or group."""
    odd: dict[str, str] = {}
    for name in ("sex", "group"):
        column = people.table[name].tolist()
        for person, own in rows.items():
            values = {session or "no session": column[row] for session, row in own.items()}
            if len(own) > 1 and (message := differences(name, values)):
                odd[person] = f"{odd[person]} {message}" if person in odd else message
    return [
        Problem(scan.subject, "person-differs", f"{scan.subject}: {odd[scan.person]}")
        for scan in scans
        if scan.person in odd
    ]


def _absent(people: Participants, found: Findings) -> list[Problem]:
    """Say which columns the table lacks without which nobody is analyzed, or groups are guessed."""
    problems = []
    folder = None if people.path is None or not people.absent else people.path.parent
    columns = {} if folder is None else session_columns(folder, found)
    strokes = _strokes(people, found)
    for variable, near in people.absent.items():
        concerned = {*found.visits}
        who, will = "everyone", "will leave the analysis"
        if variable in ("days_post_stroke", "motor_score"):
            unknown = "group" in people.absent and near  # strokes of which nothing is known
            if not (unknown or strokes):
                continue
            concerned = concerned if unknown else strokes
            who = "everyone with a stroke"
            if variable == "motor_score":
                if not near:  # no score at all is nothing odd
                    continue
                will = "will leave the models of motor outcome"
        elif variable == "group":
            # masks and other signs tell who has a stroke
            concerned = {person for person, own in found.visits.items() if not _is_masked(own)}
            if not near or not concerned:
                continue
            who, will = "everyone without a sign of a stroke", "is taken as a healthy reference"
        elif variable == "icv":
            concerned = {
                person
                for person, own in found.visits.items()
                if not all(visit.surfaces for visit in own.values())
            }
            if found.visits and not concerned:
                continue
            who = "everyone without stats/aseg.stats of FreeSurfer"
        told = {person for person, names in columns.items() if names & {*names_of(variable)}}
        if told and concerned <= told:
            continue
        who += ", but for those whose sub-*_sessions.tsv has it," if told & concerned else ""
        hint = f" Is it {listed([quote(name) for name in near])}? Rename it." if near else ""
        message = (
            f"the table has no column {variable}: {who} {will}.{hint} Expected {_NEEDED[variable]}."
        )
        problems.append(Problem("", "missing-covariate", message, str(people.path or "")))
    return problems


def _strokes(people: Participants, found: Findings) -> set[str]:
    """People with a stroke, by the table or by a lesion mask."""
    table = people.table
    told = (table[["lesion_side", "paresis_side"]] != "").any(axis=1)
    told |= table["days_post_stroke"].notna() | (table["group"] == "stroke")
    masked = {person for person, visits in found.visits.items() if _is_masked(visits)}
    return masked | {*table["subject"][told]}


def _is_masked(visits: Mapping[str, Visit]) -> bool:
    """Tell whether a person has a lesion mask, in any session."""
    return any(kind == "lesion" for visit in visits.values() for kind, _ in visit.images)


def session_columns(folder: Path, found: Findings) -> dict[str, set[str]]:
    """Read which columns the tables of sessions have.

    Parameters
    ----------
    folder
        The dataset.
    found
        People of it.

    Returns
    -------
    dict
        Names in lower case by person, of those who have a table.
    """
    columns = {}
    for person in found.visits:
        path = os.path.join(folder, person, f"{person}_sessions.tsv")
        if not os.path.isfile(path):
            continue
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as file:
                header = file.readline(1 << 20)
        except OSError:
            continue  # its own reader says so
        columns[person] = {name.strip().strip('"').lower() for name in header.split("\t")}
    return columns


def _person(subject: str) -> str:
    """Person that a rejected row is about, in lower case."""
    label = re.sub(r"_ses-[^_]*$", "", subject.strip()).casefold()
    return f"sub-{label.removeprefix('sub-')}"


def _check_session(found: Findings, session: str) -> None:
    """Check that somebody has a session."""
    every = {name for visits in found.visits.values() for name in visits}
    if session not in every:
        listed = shown(", ".join(sorted(every - {""}))) or "no sessions"
        raise TableError(
            f"session {session}: nobody has it. Found {listed}. Choose one of them, all, or none."
        )


def _join_sessionless(person: str, visits: dict[str, Visit], result: Selection) -> None:
    """Join the only session with the surfaces or the mask that name none, and vice versa."""
    others = sorted(visits.keys() - {""})
    bare = visits.get("")
    if bare is None or not others or bare.problems:
        return
    if len(others) == 1:
        other = visits[others[0]]
        own, more = ({kind for kind, _ in visit.images} for visit in (other, bare))
        if not own or more <= {"lesion"} - own:
            other.surfaces += bare.surfaces
            other.images |= bare.images
            del visits[""]
    elif not bare.images:
        message = (
            f"{person}: its FreeSurfer folder names no session, but there are "
            f"{', '.join(others)}: not used. Rename it to {person}_{others[0]}."
        )
        result.warnings.append(Problem(person, "no-image", message))
        del visits[""]


def _select_only(
    person: str, visits: dict[str, Visit], own: dict[str, int], result: Selection
) -> None:
    """Take a person who has one session."""
    if len(visits) > 1 or (not visits and len(own) > 1):
        names = ", ".join(name or "one without a name" for name in sorted(visits or own))
        what = "sessions" if visits else "rows in the table and no image"
        message = (
            f"{person}: several {what}: {names}. Choose one with --session, or give all for "
            "each as a scan of its own."
        )
        result.rejected.append(Problem(person, "several-sessions", message))
        return
    if not visits:
        ((session, row),) = own.items()
        _take_missing(person, person, session, row, "no image", result)
        return
    ((session, visit),) = visits.items()
    matched = match_session(own, session)
    if matched is None:
        result.rejected.append(_no_row(person, person, _rows_of(own, session)))
        return
    result.scans.append(Selected(person, person, session or matched, visit, own[matched]))
    for other in sorted(own.keys() - {matched}):
        message = f"{person}: the table has a row of {other}, which has no image: not used."
        result.warnings.append(Problem(person, "no-image", message))


def _select_one(
    person: str, session: str, visits: dict[str, Visit], own: dict[str, int], result: Selection
) -> None:
    """Take one session of a person."""
    visit, matched = visits.get(session), match_session(own, session)
    if visit is None:
        others = ", ".join(sorted(name or "one without a session" for name in visits)) or "none"
        reason = f"no image of {session}; there is {others}"
        of = min(own) if matched is None else matched
        _take_missing(person, person, session, own[of], reason, result)
    elif matched is None:
        result.rejected.append(_no_row(person, person, _rows_of(own, session)))
    else:
        result.scans.append(Selected(person, person, session, visit, own[matched]))


def _select_all(
    person: str, visits: dict[str, Visit], own: dict[str, int], result: Selection
) -> None:
    """Take every session of a person as a scan of its own."""
    matches = {session: match_session(own, session) for session in sorted(visits)}
    missing = sorted(own.keys() - set(matches.values()))
    several = len(matches) + len(missing) > 1
    for session, matched in matches.items():
        subject = f"{person}_{session}" if several and session else person
        if matched is None:
            result.rejected.append(_no_row(subject, person, _rows_of(own, session)))
            continue
        scan = Selected(subject, person, session or matched, visits[session], own[matched])
        result.scans.append(scan)
    for session in missing:
        subject = f"{person}_{session}" if several and session else person
        _take_missing(subject, person, session, own[session], "no image", result)


def match_session(own: Mapping[str, int], session: str) -> str | None:
    """Find a person's row for a scan; a row or scan without a session goes with the only other.

    Parameters
    ----------
    own
        Rows of the person by session.
    session
        Session of the scan; empty without one.

    Returns
    -------
    str or None
        Session of the row; None when there is no such row.
    """
    if session in own:
        return session
    only = next(iter(own)) if len(own) == 1 else None
    return only if only is not None and "" in (only, session) else None


def _rows_of(own: dict[str, int], session: str) -> str:
    """Say which rows there are instead."""
    what = f"no row of {session}" if session else "no session in the name of its files"
    return f"{what}; the table has {', '.join(sorted(own))}"


def _no_row(subject: str, person: str, reason: str) -> Problem:
    """Say that a scan has no row."""
    message = f"{person}: {reason}. Add its row, or move its files out."
    return Problem(subject, "no-table-row", message)


def _take_missing(
    subject: str, person: str, session: str, row: int, reason: str, result: Selection
) -> None:
    """Keep a row that has no image."""
    result.scans.append(Selected(subject, person, session, Visit(), row))
    message = f"{person}: {reason}: kept as missing. Add the file, or take the row out."
    result.warnings.append(Problem(subject, "no-image", message))
