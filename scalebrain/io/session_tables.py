"""Values of single sessions: the tables ``sub-<label>_sessions.tsv`` of BIDS."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from scalebrain.errors import ImageError, Problem, TableError
from scalebrain.io.cells import (
    Cell,
    Quantity,
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
from scalebrain.io.delimited import SESSIONS, listed, read_delimited
from scalebrain.io.enigma import (
    DAYS,
    ENIGMA_SIDES,
    ENIGMA_SIGNS,
    GROUPS,
    HANDS,
    ICV,
    IMPAIRED,
    LESIONED,
    NORMED,
    SIDES,
    Scale,
    Source,
    _read_sidecar,
    fractions_of,
    undeclared_scales,
)
from scalebrain.io.participants import Participants
from scalebrain.io.sessions import Selected, differences, match_session
from scalebrain.io.tree import Findings, Tree, Visit

__all__ = ["SessionValues", "read_session_values"]

#: Variables of one visit: n/a is missing there, whatever the row of the person says.
_OF_A_VISIT = ("age", "days_post_stroke", "motor_score")
#: Others are the person's where the session has n/a.
_OF_A_PERSON = ("sex", "cohort", "group", "icv", "lesion_side", "paresis_side")
#: What tells of a stroke, or may, whichever visit it is of.
_SIGNS = ("days_post_stroke", "lesion_side", "paresis_side", "motor_score")
_EXPECTED = "session_id, and columns of participants.tsv such as age (years), days_post_stroke"

_NUMBERS = {"days_post_stroke": DAYS, "icv": ICV}
_WORDS: dict[str, tuple[Mapping[str, str], str]] = {
    "group": (GROUPS, "reference or stroke"),
    "lesion_side": (SIDES, "L, R, bilateral, midline or n/a"),
    "paresis_side": (HANDS, "L, R or n/a"),
}

_Value = float | str | bool
_Cell = Cell[float] | Cell[str]


@dataclass
class SessionValues:
    """What tables of sessions say of the scans of a cohort.

    Parameters
    ----------
    values
        By subject, then by column of :class:`~scalebrain.io.participants.Participants`.
    signs
        By person, what any row has a value in, also one of another visit: the columns that tell
        of a stroke, ``motor_score``, ``normed_motor`` of ENIGMA Stroke where it is below 1, and
        ``group`` where it is stroke.
    rejected, warnings
        What is wrong with these tables, or odd.
    """

    values: dict[str, dict[str, _Value]] = field(default_factory=dict)
    signs: dict[str, set[str]] = field(default_factory=dict)
    rejected: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read_session_values(
    tree: Tree, found: Findings, people: Participants, scans: list[Selected]
) -> SessionValues:
    """Read ``sub-<label>/sub-<label>_sessions.tsv`` of everyone who has one.

    Parameters
    ----------
    tree
        Root of the dataset.
    found
        Files by person and session.
    people
        The participants table.
    scans
        The selected scans, with their rows of it.

    Returns
    -------
    SessionValues
        Values that take the place of those of the participants table. A scan whose value may
        be of another visit, of which its person's table has no row, or whose person's sessions
        contradict each other, has a warning.

    Raises
    ------
    TableError
        When motor scores of all these tables are of several scales or beyond 1 and not declared,
        or are divided twice.
    """
    result = SessionValues()
    tables: dict[str, _Table | Problem] = {}
    odd: dict[str, str] = {}
    motor = _Motor(people)
    sessions = people.table["session"].tolist()
    for scan in scans:
        if scan.person not in tables:
            tables[scan.person] = told = _read_table(tree, scan.person)
            if isinstance(told, _Table) and told.rows:
                result.signs[scan.person] = told.signs()
        told = tables[scan.person]
        if isinstance(told, Problem):
            result.rejected.append(replace(told, subject=scan.subject))
            continue
        session = match_session(told.rows, scan.session)
        values: dict[str, _Value] = {}
        if session is not None:
            row = told.rows[session]
            motor.look(told.source, row)
            values, problems = told.read(row, motor, scan.row)
            for cell in problems:
                message = f"{scan.subject} in line {told.source.lines[row]}: {cell.message}"
                problem = Problem(scan.subject, cell.code, message, told.file)
                (result.warnings if cell.kept else result.rejected).append(problem)
            result.values[scan.subject] = values
        named = sorted(found.visits.get(scan.person, {}).keys() - {""})
        doubts = []
        if session is None and (told.unread or not sessions[scan.row]):
            doubts.append(told.lacks(scan.session))
        several = told.has_values or len(told.rows) > 1 or len(named) > 1
        if several and not sessions[scan.row]:
            doubts.append(_of_another_visit(scan, people, named, values))
        if scan.visit != Visit() and any(doubts):
            message = " ".join((f"{scan.subject}:", *filter(None, doubts)))
            result.warnings.append(Problem(scan.subject, "visit-values", message))
        if scan.person not in odd:
            odd[scan.person] = told.differences(people, scan.row)
        if odd[scan.person]:
            message = f"{scan.subject}: {odd[scan.person]}"
            result.warnings.append(Problem(scan.subject, "person-differs", message, told.file))
    motor.check(tree)
    return result


def _of_another_visit(
    scan: Selected, people: Participants, named: list[str], values: Mapping[str, _Value]
) -> str:
    """Say which values of a scan are those of the one row of its person."""
    row = people.table.iloc[scan.row]
    names = [name for name in _OF_A_VISIT if name not in values and not math.isnan(row[name])]
    if not names:
        return ""
    return (
        f"{', '.join(names)} by a row of the table that names no session, of "
        f"{', '.join(named) or 'several'}: maybe of another visit. Write {scan.person}/"
        f"{scan.person}_sessions.tsv, or a column session_id and a row a session in the table."
    )


class _Motor:
    """Motor scores of every table of sessions, and the scales that they are of.

    Parameters
    ----------
    people
        The participants table.
    """

    def __init__(self, people: Participants) -> None:
        self._people = people
        used = filter(None, people.table["motor_scale"])
        self._spelled = {name.lower(): name for name in (*people.undeclared, *used)}
        self._undeclared = {name.lower() for name in people.undeclared}
        self._texts: dict[Scale, list[str]] = {}
        self._beyond: tuple[Path, str] | None = None

    def look(self, source: Source, row: int) -> None:
        """Note a score beyond 1 that no declared scale explains, in the row of a scan.

        Beside a score of 0 or 1, which may be points, one of any visit is noted.
        """
        if source.scales() or source.column("motor_score") == NORMED or self._beyond:
            return
        cells = source.cells("motor_score")
        own = plain_number(cells[row])
        for text in cells if own is not None and own.is_integer() else (cells[row],):
            if (plain_number(text) or 0) > 1:
                self._beyond = source.path, text

    def parse(self, source: Source, row: int, at: int) -> tuple[Cell[float], Cell[str]]:
        """Parse a score and the name of its scale, which may be in row `at` of the people."""
        text, named = (source.cells(name)[row] for name in ("motor_score", "motor_scale"))
        scales = source.scales()
        if is_missing(named) and self._people.scales and len(scales) != 1:
            named = self._people.scales[at]
        name = parse_scale(named)
        if is_missing(text):
            return Cell(math.nan), Cell("")
        if name.code:
            return Cell(math.nan), name
        key = "" if is_missing(named) else named.lower()
        if not key and len(scales) == 1:
            (key,) = scales
        if not scales or source.column("motor_score") == NORMED:
            units = source.units("motor_score")
            cell = parse_number(text, quantity=Quantity("motor_score", "", 0, 1), units=units)
            if key and not scales and source.column("motor_score") != NORMED:
                self._undeclared.add(key)
            return cell, self._name(key, scales[key].name if key in scales else named)
        if key not in scales:
            declared = listed([quote(scale.name) for scale in scales.values()])
            message = (
                f"motor_score {quote(text)} of which scale? Write motor_scale, one of {declared}."
            )
            return Cell(math.nan, "bad-number", message), Cell("")
        scale = scales[key]
        self._texts.setdefault(scale, []).append(text)
        quantity = Quantity(f"motor_score of {quote(scale.name)}", "", 0, scale.maximum)
        cell = parse_number(text, quantity=quantity)
        value = cell.value / scale.maximum
        value = value if scale.higher_is_better else 1 - value
        return cell._replace(value=value), self._name(key, scale.name)

    def _name(self, key: str, name: str) -> Cell[str]:
        """Name of a scale, written as it is the first time."""
        cell = parse_scale(name)
        return cell if cell.code else Cell(self._spelled.setdefault(key, cell.value))

    def check(self, tree: Tree) -> None:
        """Refuse scores of several scales or beyond 1, not declared, or that are divided twice."""
        where = f"{tree.root}: sub-*_sessions.tsv: "
        divided = {scale.name.lower() for scale in self._texts}
        names = [self._spelled.get(key, key) for key in sorted(self._undeclared | divided)]
        if self._beyond:
            path, score = self._beyond
            message = undeclared_scales(names, score, "participants.json")
            raise TableError(f"{path}: {message}", code="mixed-scales")
        if self._undeclared and len(names) > 1:
            message = undeclared_scales(names, "", "participants.json")
            raise TableError(where + message, code="mixed-scales")
        for scale, texts in self._texts.items():
            if message := fractions_of(scale, texts):
                raise TableError(where + message, code="mixed-scales")


class _SessionSource(Source):
    """The text of a table of sessions, and what the JSON files above and beside it declare."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self.path = path
        self.sidecar_path = path.with_suffix(".json")
        self.lines, cells = read_delimited(
            path, expected=_EXPECTED, check_header=self._check_sessions, keep=bool
        )
        self._text = {name.lower(): column for name, column in cells.items()}
        self._sidecar = {}
        self._declared_by: dict[str, Path] = {}
        for above in (tree.root / "participants.json", tree.root / "sessions.json"):
            self._declare(above, tree)
        self._declare(self.sidecar_path, tree)
        for variable in ("session", *_OF_A_VISIT, *_OF_A_PERSON):
            self._check_agreement(variable)
            self.units(variable)
            self.levels(variable)
        self.scales()

    def declared_in(self, variable: str) -> Path:
        """File that declares a variable."""
        by = self._declared_by
        return by.get(self.column(variable)) or by.get(variable) or self.sidecar_path

    def _declare(self, path: Path, tree: Tree) -> None:
        if os.path.lexists(path):
            tree.check_file(path)
            declared = _read_sidecar(path)
            self._sidecar |= declared
            self._declared_by |= dict.fromkeys(declared, path)

    def _check_sessions(self, names: list[str]) -> None:
        if not set(SESSIONS) & {name.lower() for name in names}:
            found = listed([quote(name) for name in names])
            self.stop(
                f"no column of sessions ({', '.join(SESSIONS)}). Expected {_EXPECTED}; "
                f"found {found}."
            )


class _Table:
    """Sessions of one person.

    Parameters
    ----------
    source
        The text; None without such a table.
    file
        Its path, as messages show it.
    unread
        A table of another form in its place; empty without one.
    """

    def __init__(self, source: _SessionSource | None, file: str, unread: str = "") -> None:
        self.file, self.unread = file, unread
        self.rows: dict[str, int] = {}
        self.has_values = False
        if source is None:
            return
        self.source = source
        self.has_values = any(map(source.column, (*_OF_A_VISIT, *_OF_A_PERSON)))
        names = source.cells("session")
        sessions = ["" if is_missing(n) else f"ses-{n.removeprefix('ses-')}" for n in names]
        for line, session in zip(source.lines, sessions, strict=True):
            if not session:
                source.stop(f"line {line} names no session. Write ses-<label>.", "bad-id")
        times = Counter(session.lower() for session in sessions)
        if repeated := sorted(session for session in sessions if times[session.lower()] > 1):
            source.stop(f"several rows of {listed(repeated)}. Keep one of each.", "duplicate-id")
        self.rows = {session: row for row, session in enumerate(sessions)}

    def lacks(self, session: str) -> str:
        """Say what there is instead of a row of a session; empty without a table of values."""
        if self.unread:
            return f"{self.unread} is not read. Save it with tabs, as {self.file}."
        if not self.has_values:
            return ""
        rows = listed(list(self.rows))
        if not session:
            return f"{self.file} has {rows}, and the scan names no session. Name it in its files."
        return f"{self.file} has no row of {session}; it has {rows}. Correct its session_id."

    def signs(self) -> set[str]:
        """Columns that tell of a stroke in any row, or may; ``group`` where it is stroke."""
        told = set()
        for name in (*_SIGNS, "group"):
            for text in set(self.source.cells(name)):
                if name == "motor_score":
                    told |= {name} if plain_number(text) is not None else set()
                    continue
                value = _parse(self.source, name, text, ENIGMA_SIGNS).value
                unknown = math.isnan(value) if isinstance(value, float) else not value
                if not unknown and (name != "group" or value == "stroke"):
                    told.add(name)
        columns = [self.source.column(name) for name in ("motor_score", "lesion_side", "group")]
        if columns == [NORMED, LESIONED, ""]:
            scores = self.source.cells("motor_score")
            values = [parse_number(text, quantity=IMPAIRED).value for text in scores]
            told |= set() if all(map(math.isnan, values)) else {NORMED}
        return told

    def differences(self, people: Participants, at: int) -> str:
        """Say where the sex or the group of the sessions is not one, or not that of the person."""
        told = []
        for name in ("sex", "group") if self.rows else ():
            if not self.source.column(name):
                continue
            values = {"participants table": people.table[name].iloc[at]}
            cells = self.source.cells(name)
            for session, row in self.rows.items():
                if not is_missing(cells[row]):
                    values[session] = str(_parse(self.source, name, cells[row]).value)
            told.append(differences(name, values))
        return " ".join(filter(None, told))

    def read(self, row: int, motor: _Motor, at: int) -> tuple[dict[str, _Value], list[_Cell]]:
        """Values of a row, and what is wrong with them; `at` is the row of the person."""
        values: dict[str, _Value] = {}
        problems: list[_Cell] = []
        for name in (*_OF_A_VISIT, *_OF_A_PERSON):
            text = self.source.cells(name)[row]
            if not self.source.column(name) or (name in _OF_A_PERSON and is_missing(text)):
                continue
            cell: _Cell
            if name == "motor_score":
                cell, scale = motor.parse(self.source, row, at)
                values["motor_scale"] = scale.value
                if scale.code:
                    problems.append(scale)
            else:
                cell = _parse(self.source, name, text)
            values[name] = cell.value
            if name == "age":
                values["age_censored"] = cell.censored
            if cell.code:
                problems.append(cell)
        return values, problems


def _read_table(tree: Tree, person: str) -> _Table | Problem:
    """Table of one person, empty without one; or why it cannot be used."""
    path = tree.root / person / f"{person}_sessions.tsv"
    shown = tree.shown(path)
    if not os.path.lexists(path):
        other = path.with_suffix(".csv")
        return _Table(None, shown, tree.shown(other) if os.path.lexists(other) else "")
    try:
        tree.check_file(path)
        return _Table(_SessionSource(path, tree), shown)
    except (ImageError, TableError) as error:
        message = str(error).replace(os.path.join(tree.root, ""), "")
        return Problem(person, error.code or "unreadable", message, shown)


def _parse(source: Source, name: str, text: str, codes: Mapping[str, str] = ENIGMA_SIDES) -> _Cell:
    """Parse a cell by the rules of the participants table; `codes` are sides of ENIGMA Stroke."""
    units, levels = source.units(name), source.levels(name)
    if name == "age":
        return parse_age(text, units=units)
    if name == "sex":
        return parse_sex(text, levels=levels, codes={})
    if name == "cohort":
        return parse_cohort(text)
    if name in _NUMBERS:
        return parse_number(text, quantity=_NUMBERS[name], units=units)
    words, expected = _WORDS[name]
    if source.column(name) == LESIONED:
        words = codes
    shown = name.replace("_", " ")
    return parse_word(text, name=shown, words=words, levels=levels, expected=expected)
