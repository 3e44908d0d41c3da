"""Tables of the decisions of a quality control: one row a subject."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalebrain.errors import TableError, check_all
from scalebrain.io.cells import is_missing, quote
from scalebrain.io.delimited import IDS, SESSIONS, listed, read_delimited

__all__ = ["DECISIONS", "Decision", "read_decisions"]

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
        compared with that of a label that names none.
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
    known = dict(zip(subjects, sessions or [""] * len(subjects), strict=True))
    rows = zip(lines, ids, visits, cells["decision"], notes, raters, dates, strict=True)
    for line, who, visit, cell, note, *signature in rows:
        if is_missing(who):
            failures.append(f"no participant_id in line {line}. Write the subject.")
            continue
        person = who if who in known or who.startswith("sub-") else f"sub-{who}"
        subject = _label(person, "" if is_missing(visit) else visit, known)
        if subject not in known:
            if absent is not None and not {subject, person} & {*absent}:
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
    return {
        subject: Decision(
            decided.get(subject, (0, ""))[1],
            "; ".join(noted[subject]),
            *("; ".join(told) for told in signed[subject]),
        )
        for subject in subjects
        if subject in noted
    }


def _label(person: str, session: str, known: Mapping[str, str]) -> str:
    """Label of a row that may name a session; a scan whose session is not known has any."""
    if not session:
        return person
    session = f"ses-{session.removeprefix('ses-')}"
    full = f"{person}_{session}"
    return person if full not in known and known.get(person) in ("", session) else full


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
