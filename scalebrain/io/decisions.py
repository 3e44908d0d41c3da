"""Tables of the decisions of a quality control: one row a subject."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalebrain.errors import TableError, check_all
from scalebrain.io.cells import is_missing, quote
from scalebrain.io.delimited import IDS, SESSIONS, listed, read_delimited

__all__ = ["DECISIONS", "Decision", "read_decisions"]

logger = logging.getLogger(__name__)

#: What a rater can decide of a subject; an empty text is no decision.
DECISIONS = ("accept", "exclude", "unsure")

_EXPECTED = "participant_id and decision (accept, exclude or unsure)"


@dataclass(frozen=True)
class Decision:
    """Decision about one subject.

    Parameters
    ----------
    word
        One of `DECISIONS`, or empty where there is a note alone.
    note
        What the rater wrote; several raters' notes are joined by ``; ``.
    rater, date
        Who decided and when, as the table says; those of several raters are joined likewise.
    """

    word: str
    note: str
    rater: str = ""
    date: str = ""


def read_decisions(
    path: str | Path,
    subjects: Sequence[str],
    *,
    sessions: Sequence[str] = (),
    absent: Collection[str] | None = (),
) -> dict[str, Decision]:
    """Read a table of decisions, and check every row against a store.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text with the columns
        ``participant_id`` (or ``subject``), with or without ``sub-``, and ``decision``;
        ``session_id``, ``note``, ``rater`` and ``date`` are read where they are there. A decision
        that is empty or ``n/a`` is none, and so is a table without rows. Decisions of one subject
        have to agree; its notes are all kept, also those without a decision.
    subjects
        Labels of the store.
    sessions
        Session of each of them, empty where it has none; without them no session of a row is
        compared with that of a label that names none. Case and leading zeros make no other
        session (``ses-01`` is ``ses-1``), unless the store has both. Rows of other sessions of
        someone who is there are left aside, which is logged.
    absent
        Other labels that may be in the table, and are left aside; any label when None.

    Returns
    -------
    dict
        Decision by label of the store, of those who have a decision or a note.

    Raises
    ------
    TableError
        When it is no such table; or one error with everything that is wrong with its rows:
        unknown subjects, decisions that disagree, other words.
    """
    path = Path(path)
    lines, text = read_delimited(
        path,
        expected=_EXPECTED,
        check_header=lambda names: _check_header(path, names),
        keep=bool,
        needs_rows=False,
    )
    cells = {name.lower(): column for name, column in text.items()}
    ids = next(cells[name] for name in IDS if name in cells)
    visits = next((cells[name] for name in SESSIONS if name in cells), [""] * len(lines))
    notes, raters, dates = (cells.get(n, [""] * len(lines)) for n in ("note", "rater", "date"))
    failures: list[str] = []
    decided: dict[str, tuple[int, str]] = {}
    noted: dict[str, list[str]] = {}
    signed: dict[str, tuple[list[str], list[str]]] = {}
    unknown: dict[str, None] = {}
    aside: dict[str, None] = {}
    known = _Labels(subjects, sessions or [""] * len(subjects))
    rows = zip(lines, ids, visits, cells["decision"], notes, raters, dates, strict=True)
    for line, who, visit, cell, note, *signature in rows:
        if is_missing(who):
            failures.append(f"no participant_id in line {line}. Write the subject.")
            continue
        person = who if who in known.sessions or who.startswith("sub-") else f"sub-{who}"
        visit = "" if is_missing(visit) else visit
        subject = known.find(person, visit)
        if subject not in known.sessions:
            if {subject, person}.isdisjoint(absent or ()):
                if visit and person in known.people:
                    aside[subject] = None
                elif absent is not None:
                    unknown[subject] = None
            continue
        word = "" if is_missing(cell) else cell.lower()
        if word and word not in DECISIONS:
            failures.append(
                f"{subject}: {quote(cell)} in line {line} is no decision. Expected one of "
                f"{', '.join(DECISIONS)}, or n/a."
            )
            continue
        if word or not is_missing(note):
            for one, told in zip(signature, signed.setdefault(subject, ([], [])), strict=True):
                _add(told, one)
            _add(noted.setdefault(subject, []), note)
        if not word:
            continue
        first, held = decided.setdefault(subject, (line, word))
        if held != word:
            failures.append(
                f"{subject}: {held} in line {first} but {word} in line {line}. Keep one."
            )
    if unknown:
        failures.append(
            f"subjects not in the store ({len(unknown)}): {listed(list(unknown))}. It has "
            f"{listed(list(subjects)[:3])}, ... Correct them, or take their rows out."
        )
    check_all([f"{path}: {one}" for one in failures], TableError, f"{path}: not read")
    if aside:
        logger.warning(
            "%s: decisions about sessions that are not in the store are left aside (%d): %s",
            path,
            len(aside),
            listed(list(aside)),
        )
    return {
        subject: Decision(
            decided.get(subject, (0, ""))[1],
            "; ".join(noted[subject]),
            *("; ".join(told) for told in signed[subject]),
        )
        for subject in subjects
        if subject in noted
    }


class _Labels:
    """Labels of a store, by person and session.

    Parameters
    ----------
    subjects, sessions
        Labels, and session of each of them, empty where it is not known.
    """

    def __init__(self, subjects: Sequence[str], sessions: Sequence[str]) -> None:
        self.sessions = dict(zip(subjects, sessions, strict=True))
        self.people: set[str] = set()
        self._visits: dict[tuple[str, str], set[str]] = {}
        for label, session in self.sessions.items():
            person, _, named = label.partition("_ses-")
            self.people.add(person)
            for one in {person, label}:
                visit = (one, _plain(session or named))
                self._visits.setdefault(visit, set()).add(label)

    def find(self, person: str, session: str) -> str:
        """Label of a row that may name a session; a scan whose session is not known has any."""
        if not session:
            return person
        session = "ses-" + (session[4:] if session.lower().startswith("ses-") else session)
        full = f"{person}_{session}"
        if full in self.sessions:
            return full
        if self.sessions.get(person) in ("", session):
            return person
        alike = self._visits.get((person, _plain(session)), set())
        return next(iter(alike)) if len(alike) == 1 else full


def _plain(session: str) -> str:
    """Session without case, ``ses-`` and leading zeros."""
    return session.lower().removeprefix("ses-").lstrip("0")


def _add(told: list[str], text: str) -> None:
    """Add a text that is not missing and not there yet."""
    if not is_missing(text) and text not in told:
        told.append(text)


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a header without ids or without decisions."""
    lower = {name.lower() for name in names}
    absent = [] if lower & set(IDS) else ["participant_id"]
    absent += [] if "decision" in lower else ["decision"]
    if absent:
        raise TableError(
            f"{path}: no column {' and no column '.join(absent)}. Expected {_EXPECTED}; found "
            f"{listed([quote(name) for name in names])}."
        )
