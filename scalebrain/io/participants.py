"""Read the table of a cohort's participants: BIDS, ENIGMA Stroke or UK Biobank."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pandas as pd

from scalebrain.errors import Problem
from scalebrain.io.cells import (
    Cell,
    Quantity,
    contradiction,
    guess_age_unit,
    is_missing,
    parse_age,
    parse_cohort,
    parse_number,
    parse_scale,
    parse_sex,
    parse_word,
    plain_number,
    quote,
)
from scalebrain.io.delimited import listed
from scalebrain.io.enigma import (
    DAYS,
    DECLARATION,
    ENIGMA_SIDES,
    ENIGMA_SIGNS,
    GROUPS,
    HANDS,
    ICV,
    IMPAIRED,
    KNOWN,
    LESIONED,
    NORMED,
    SIDES,
    UKB_AGE,
    UKB_ICV,
    UKB_SESSION,
    UKB_SEX,
    Scale,
    Source,
    fractions_of,
    undeclared_scales,
)
from scalebrain.io.tree import PERSON, SESSION

__all__ = ["Participants", "read_groups", "read_participants"]

logger = logging.getLogger(__name__)

T = TypeVar("T", float, str)


@dataclass(frozen=True)
class Participants:
    """The usable rows of a participants table, and what is wrong with the others.

    Parameters
    ----------
    table
        One row a subject and session, in the order of the file: subject (``sub-<label>``),
        session (``ses-<label>`` or empty), age (years), age_censored, sex (F, M or empty),
        cohort, group (reference or stroke; when the file has no such column empty, in a table of
        ENIGMA Stroke stroke for who has a side or days since a stroke),
        days_post_stroke, icv (mL), motor_score (0 to 1, 1 is unimpaired), motor_scale (its name,
        empty without a score and where none is named), lesion_side (L, R, bilateral, midline or
        empty) and paresis_side (L, R or empty). A missing number is NaN.
    rejected
        Why each row that is not in `table` was left out.
    warnings
        What deserves a look in the rows of `table`.
    path
        The file; None for a table that was made.
    absent
        Variables that have no column, with columns that may hold them and hold something.
    scales
        Motor scale that each row of `table` names, also without a score.
    undeclared
        Names of scales whose scores are taken as they are.
    """

    table: pd.DataFrame
    rejected: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    path: Path | None = None
    absent: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scales: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()


def read_participants(
    path: Path, *, default_cohort: str, needs_age: bool = True, of_files: Iterable[str] = ()
) -> Participants:
    """Read a participants table, with the JSON sidecar of the same stem beside it.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text. Columns as in BIDS, in the
        tables of ENIGMA Stroke or in those of UK Biobank; unknown ones are ignored, which is
        logged.
    default_cohort
        Cohort of every row when the table has no such column.
    needs_age
        Whether a table without a column of ages is refused.
    of_files
        Columns, in lower case, that are read elsewhere: those of a manifest.

    Returns
    -------
    Participants
        Usable rows, and the problems of the others.

    Raises
    ------
    TableError
        When the table as a whole is not usable: unreadable, ragged, empty, without ids or ages,
        ambiguous columns, motor scores of scales that are not declared or divided twice, or
        words that the sidecar contradicts.
    """
    source = Source(path, needs_age=needs_age)
    rows = _Rows(source)
    if others := [n for n in source.header if n and n.lower() not in KNOWN.union(of_files)]:
        logger.info(
            "%s: columns that are not read: %s. Add what you need of them with save_store",
            path,
            listed([quote(name) for name in others]),
        )
    age, age_censored = _ages(source, rows)
    sides = SIDES
    if source.column("lesion_side") == LESIONED:
        sides = ENIGMA_SIDES
    lesion_side = _words(source, rows, "lesion_side", sides, "L, R, bilateral, midline or n/a")
    paresis_side = _words(source, rows, "paresis_side", HANDS, "L, R or n/a")
    _check_sides(rows, lesion_side, paresis_side)
    motor_score, motor_scale = _motor_scores(source, rows)
    icv = UKB_ICV if source.column("icv") == "26521-2.0" else ICV
    table = pd.DataFrame(
        {
            "subject": rows.subjects,
            "session": rows.sessions,
            "age": age,
            "age_censored": age_censored,
            "sex": _sexes(source, rows),
            "cohort": _cohorts(source, rows, default_cohort),
            "group": _groups(source, rows),
            "days_post_stroke": _numbers(source, rows, DAYS),
            "icv": _numbers(source, rows, icv),
            "motor_score": motor_score,
            "motor_scale": motor_scale,
            "lesion_side": lesion_side,
            "paresis_side": paresis_side,
        }
    )
    names = ["" if is_missing(name) else name for name in source.cells("motor_scale")]
    declared = source.scales() or source.column("motor_score") != "motor_score"
    scored = _scored(source.cells("motor_score"), names)
    return Participants(
        table[~rows.is_rejected].reset_index(drop=True),
        rows.rejected(),
        rows.warnings(),
        path,
        source.absent,
        tuple(name for name, out in zip(names, rows.is_rejected, strict=True) if not out),
        () if declared else tuple(scored.values()),
    )


def read_groups(path: Path) -> dict[str, str]:
    """Read the group of each person, from a table that need have nothing else.

    Parameters
    ----------
    path
        As of :func:`read_participants`.

    Returns
    -------
    dict
        ``reference`` or ``stroke`` by ``sub-<label>``, empty where nothing says either. Someone
        with several rows is ``stroke`` as soon as one of them says so.

    Raises
    ------
    TableError
        When the table as a whole is not usable, or has no ids.
    """
    source = Source(path, ("subject", "session", "group", "lesion_side"))
    rows = _Rows(source)
    groups: dict[str, str] = {}
    for subject, group in zip(rows.subjects, _groups(source, rows), strict=True):
        known = groups.get(subject, "")
        groups[subject] = "stroke" if "stroke" in (group, known) else group or known
    return groups


class _Rows:
    """The ids of a table's rows, and the problems found in them."""

    def __init__(self, source: Source) -> None:
        self._file = str(source.path)
        self._lines = source.lines
        self._ids = source.cells("subject")
        self._rejected: list[tuple[int, Problem]] = []
        self._warnings: list[tuple[int, str, str]] = []
        self.subjects = [_prefixed("sub-", text) for text in self._ids]
        self.sessions = [_prefixed("ses-", text) for text in source.cells("session")]
        if not source.column("session") and source.column("age") == UKB_AGE:
            self.sessions = [UKB_SESSION] * len(self.subjects)  # age and site are of that visit
        self.is_rejected = np.zeros(len(self._lines), dtype=bool)
        self._shown = [s if PERSON.fullmatch(s) else quote(s) for s in self.subjects]
        self._check_names()
        self._check_repeats()

    def parse(self, cells: Sequence[str], parser: Callable[[str], Cell[T]]) -> list[T]:
        """Parse a column, each text once, and note the problems of each row."""
        values: dict[str, T] = {}
        odd: dict[str, Cell[T]] = {}
        for text in set(cells):
            cell = parser(text)
            values[text] = cell.value
            if cell.code:
                odd[text] = cell
        if odd:
            for row, text in enumerate(cells):
                if text in odd:
                    note = self.warn if odd[text].kept else self.reject
                    note(row, odd[text].code, odd[text].message)
        return [values[text] for text in cells]

    def reject(self, row: int, code: str, message: str) -> None:
        """Leave a row out."""
        self.is_rejected[row] = True
        self._rejected.append((row, self._problem(row, code, message)))

    def warn(self, row: int, code: str, message: str) -> None:
        """Note what deserves a look."""
        self._warnings.append((row, code, message))

    def rejected(self) -> tuple[Problem, ...]:
        """Problems of the rejected rows, by row."""
        return tuple(problem for _, problem in sorted(self._rejected, key=lambda found: found[0]))

    def warnings(self) -> tuple[Problem, ...]:
        """Problems of the rows that stay, by row, each once a subject."""
        first: dict[tuple[str, str, str], Problem] = {}
        for row, code, message in sorted(self._warnings):
            key = (self.subjects[row], code, message)
            if not self.is_rejected[row] and key not in first:
                first[key] = self._problem(row, code, message)
        return tuple(first.values())

    def _problem(self, row: int, code: str, message: str) -> Problem:
        subject = self._shown[row]
        return Problem(
            subject, code, f"{subject} in line {self._lines[row]}: {message}", self._file
        )

    def _check_names(self) -> None:
        """Reject ids that are no BIDS labels."""
        bad_sessions = {s for s in set(self.sessions) if s and not SESSION.fullmatch(s)}
        for row, (subject, session) in enumerate(zip(self.subjects, self.sessions, strict=True)):
            if not subject:
                self.reject(row, "bad-id", "the id is missing. Write sub-<label>.")
            elif self._shown[row] != subject:
                what = f"id {quote(self._ids[row])}"
                self.reject(row, "bad-id", f"{what} is no BIDS label. {_label_hint('sub-')}")
            if session in bad_sessions:
                what = f"session {quote(session)}"
                self.reject(row, "bad-id", f"{what} is no BIDS label. {_label_hint('ses-')}")

    def _check_repeats(self) -> None:
        """Reject rows of one subject and session, and ids that differ in case only."""
        people: dict[str, list[int]] = {}
        for row, subject in enumerate(self.subjects):
            if subject:
                people.setdefault(subject.lower().replace("sub-", ""), []).append(row)
        for same in people.values():
            if len(same) == 1:
                continue
            if len({self.subjects[row] for row in same}) > 1:
                self._reject_repeats(same)
                continue
            visits: dict[str, list[int]] = {}
            for row in same:
                visits.setdefault(self.sessions[row].lower(), []).append(row)
            for visit in visits.values():
                if len(visit) > 1:
                    self._reject_repeats(visit)

    def _reject_repeats(self, same: Sequence[int]) -> None:
        lines = listed([f"{quote(self._ids[row])} in line {self._lines[row]}" for row in same])
        message = f"several rows for one subject and session: {lines}. Keep one of them."
        for row in same:
            self.reject(row, "duplicate-id", message)


def _prefixed(prefix: str, text: str) -> str:
    if is_missing(text):
        return ""
    return text if text.startswith(prefix) else f"{prefix}{text}"


def _label_hint(prefix: str) -> str:
    return f"Write {prefix}<label>, the label of 1 to 64 of A-Z, a-z and 0-9."


def _ages(source: Source, rows: _Rows) -> tuple[list[float], list[bool]]:
    """Ages, and which of them are lower bounds."""
    cells = source.cells("age")
    numbers = [n for n in map(plain_number, cells) if n is not None]
    guess = guess_age_unit(median(numbers)) if numbers and min(numbers) > 130 else ""
    units = source.units("age")
    bounds = set()

    def parse(text: str) -> Cell[float]:
        cell = parse_age(text, units=units, guess=guess)
        if cell.censored:
            bounds.add(text)
        return cell

    ages = rows.parse(cells, parse)
    return ages, [text in bounds for text in cells]


def _numbers(source: Source, rows: _Rows, quantity: Quantity) -> list[float]:
    units = source.units(quantity.name)
    parser = partial(parse_number, quantity=quantity, units=units)
    return rows.parse(source.cells(quantity.name), parser)


def _words(
    source: Source, rows: _Rows, variable: str, words: Mapping[str, str], expected: str
) -> list[str]:
    levels, cells = source.levels(variable), source.cells(variable)
    name = variable.replace("_", " ")
    for text in sorted(set(cells)) if levels else ():
        if meaning := contradiction(text, words=words, levels=levels):
            source.stop(
                f"{name} {quote(text)} is {quote(meaning)} by {source.sidecar_path.name}, which "
                f"contradicts the word itself. Correct its Levels, or write {expected} in the "
                "table."
            )
    parser = partial(parse_word, name=name, words=words, levels=levels, expected=expected)
    return rows.parse(cells, parser)


def _sexes(source: Source, rows: _Rows) -> list[str]:
    codes = UKB_SEX if source.column("sex") == "31-0.0" else {}
    parser = partial(parse_sex, levels=source.levels("sex"), codes=codes)
    return rows.parse(source.cells("sex"), parser)


def _groups(source: Source, rows: _Rows) -> list[str]:
    """Read the groups; in a table of ENIGMA Stroke without them, who has signs of a stroke."""
    if source.column("group"):
        return _words(source, rows, "group", GROUPS, "reference or stroke")
    if source.column("lesion_side") != LESIONED:
        return [""] * len(source.lines)
    strokes: set[str] = set()
    for variable, words in (("lesion_side", ENIGMA_SIGNS), ("paresis_side", HANDS)):
        levels = source.levels(variable)
        told = partial(parse_word, name=variable, words=words, levels=levels, expected="")
        signs = {text for text in set(source.cells(variable)) if told(text).value}
        cells = zip(rows.subjects, source.cells(variable), strict=True)
        strokes.update(subject for subject, text in cells if text in signs)
    numbers = [DAYS]
    if source.column("motor_score") == NORMED:
        numbers.append(IMPAIRED)
    for quantity in numbers:  # a code for missing is no sign
        signs = {
            text
            for text in set(source.cells(quantity.name))
            if not np.isnan(parse_number(text, quantity=quantity).value)
            or (quantity is DAYS and _is_unreadable(text))
        }
        cells = zip(rows.subjects, source.cells(quantity.name), strict=True)
        strokes.update(subject for subject, text in cells if text in signs)
    return ["stroke" if subject in strokes else "" for subject in rows.subjects]


def _is_unreadable(text: str) -> bool:
    """Whether a cell says something that is neither a number nor a code for missing."""
    return not is_missing(text) and text != "." and plain_number(text) is None


def _cohorts(source: Source, rows: _Rows, default: str) -> list[str]:
    if not source.column("cohort"):
        return [default] * len(source.lines)
    cells = source.cells("cohort")
    cut = Counter(parse_cohort(text).value for text in set(cells))

    def parse(text: str) -> Cell[str]:
        cell = parse_cohort(text)
        if cell.code or cut[cell.value] == 1:
            return cell
        message = f"cohort {quote(text)} equals another in its first 100 characters. Shorten both."
        return Cell("", "bad-number", message)

    return rows.parse(cells, parse)


def _motor_scores(source: Source, rows: _Rows) -> tuple[list[float], list[str]]:
    """Motor scores over the maximum of their scales, 1 for unimpaired, and these scales."""
    scales = source.scales()
    cells, names = source.cells("motor_score"), source.cells("motor_scale")
    column = source.column("motor_score")
    if not scales or column == NORMED:
        if column == "motor_score":
            _check_one_scale(source, cells, names)
        elif len(scales) == 1 and not _scored(cells, names):
            names = [scale.name for scale in scales.values()] * len(cells)
        names = [scales[n.lower()].name if n.lower() in scales else n for n in names]
        plain = _numbers(source, rows, Quantity("motor_score", "", 0, 1))
        return plain, _scale_names(rows, plain, names)
    keys = _scale_keys(source, rows, scales)
    scores = np.full(len(cells), np.nan)
    for key, scale in scales.items():
        quantity = Quantity(f"motor_score of {quote(scale.name)}", "", 0, scale.maximum)
        own = [text if k == key else "" for text, k in zip(cells, keys, strict=True)]
        if message := fractions_of(scale, own):
            source.stop(message, "mixed-scales")
        found = rows.parse(own, partial(parse_number, quantity=quantity))
        fraction = np.array(found) / scale.maximum
        fraction = fraction if scale.higher_is_better else 1 - fraction
        scores = np.where(np.isnan(fraction), scores, fraction)
    declared = [scales[key].name if key in scales else "" for key in keys]
    return scores.tolist(), _scale_names(rows, scores, declared)


def _scale_names(rows: _Rows, scores: Iterable[float], names: Iterable[str]) -> list[str]:
    """Scale of each score, each written as it is the first time."""
    own = [n if np.isfinite(score) else "" for score, n in zip(scores, names, strict=True)]
    first: dict[str, str] = {}
    return [first.setdefault(name.lower(), name) for name in rows.parse(own, parse_scale)]


def _scored(cells: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Scales of the rows that have a score: as written, by lower case."""
    pairs = zip(cells, names, strict=True)
    return {n.lower(): n for c, n in pairs if not is_missing(n) and not is_missing(c)}


def _check_one_scale(source: Source, cells: Sequence[str], names: Sequence[str]) -> None:
    """Refuse scores of several scales, or beyond 1, that the sidecar does not declare."""
    scales = list(_scored(cells, names).values())
    beyond = next((text for text in cells if (plain_number(text) or 0) > 1), "")
    if len(scales) > 1 or beyond:
        message = undeclared_scales(scales, beyond, source.sidecar_path.name)
        source.stop(message, "mixed-scales")


def _scale_keys(source: Source, rows: _Rows, scales: Mapping[str, Scale]) -> list[str]:
    """Find the declared scale of each row, empty for one without a score."""
    cells, names = source.cells("motor_score"), source.cells("motor_scale")
    used = _scored(cells, names)
    declared = listed([quote(scale.name) for scale in scales.values()])
    if unknown := [quote(name) for key, name in used.items() if key not in scales]:
        source.stop(
            f"motor scales {listed(unknown)} are not declared in {source.sidecar_path.name}, "
            f"which has {declared}. Declare each one, as in {DECLARATION}.",
            "mixed-scales",
        )
    if not used and len(scales) == 1:
        return list(scales) * len(cells)
    if not used and not all(map(is_missing, cells)):
        source.stop(
            f"motor scores of which scale? {source.sidecar_path.name} declares {declared}. Name "
            "the scale of each row in a column motor_scale.",
            "mixed-scales",
        )
    for row, (text, name) in enumerate(zip(cells, names, strict=True)):
        if is_missing(name) and not is_missing(text):
            message = f"motor_score {quote(text)} has no motor_scale. Write one of {declared}."
            rows.reject(row, "bad-number", message)
    return ["" if is_missing(name) else name.lower() for name in names]


def _check_sides(rows: _Rows, lesion_side: Sequence[str], paresis_side: Sequence[str]) -> None:
    """Warn of a paresis on the side of the lesion."""
    for row, (lesion, paresis) in enumerate(zip(lesion_side, paresis_side, strict=True)):
        if lesion == paresis and paresis:
            rows.warn(
                row,
                "paresis-side",
                f"lesion side {lesion} and paresis side {paresis}, expected opposite sides. Check "
                "whether left and right are swapped in the table or in the images.",
            )
