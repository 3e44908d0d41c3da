"""Tables of brain ages that another tool predicted, regional or of the whole brain."""

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scalebrain.errors import TableError, check_all
from scalebrain.io.cells import Quantity, is_missing, parse_number, quote
from scalebrain.io.delimited import IDS, SESSIONS, listed, read_delimited

__all__ = ["AgeTable", "Places", "read_ages"]

FloatArray = npt.NDArray[np.float64]

_AGE = "brain_age"
#: Columns of a long or global table that are read, with what they have to hold.
_QUANTITIES = {
    _AGE: Quantity(_AGE, "years", 0, 120),
    "brain_age_low": Quantity("brain_age_low", "years", -math.inf, math.inf),
    "brain_age_high": Quantity("brain_age_high", "years", -math.inf, math.inf),
    "brain_age_corrected": Quantity("brain_age_corrected", "years", -120, 240),
    "brain_pad_corrected": Quantity("brain_pad_corrected", "years", -120, 120),
}
_EXPECTED = (
    "subject and brain_age (one age of the whole brain), subject, region and brain_age, or "
    "subject and a column a region"
)


@dataclass(frozen=True)
class Places:
    """Where the rows of a table belong.

    Parameters
    ----------
    subjects
        Ids of the store, in its order.
    people, sessions
        Person and session of each of them; a session is empty where there is one scan.
    regions
        Names of the regions, in the order of the store.
    rejected
        Ids that the ingest left out.
    """

    subjects: Sequence[str]
    people: Sequence[str]
    sessions: Sequence[str]
    regions: Sequence[str]
    rejected: Collection[str] = ()


@dataclass(frozen=True)
class AgeTable:
    """Ages of a table, placed among the subjects and regions of a store.

    Parameters
    ----------
    is_global
        One age a subject, of the whole brain.
    values
        (subject, region) years of each column, NaN where the table has none; one region when
        `is_global`. ``brain_age`` is there, the other columns where the table has them.
    listed
        (subject,) bool, True where the table has a row.
    sha256
        Of the file.
    """

    is_global: bool
    values: Mapping[str, FloatArray]
    listed: npt.NDArray[np.bool_]
    sha256: str


def read_ages(path: Path, places: Places) -> AgeTable:
    """Read a table of brain ages, and check every row against a store.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text.
    places
        Subjects and regions that the rows have to belong to.

    Returns
    -------
    AgeTable
        Ages in the order of the store.

    Raises
    ------
    TableError
        When it is no such table; or one error with everything that is wrong with its rows:
        unknown subjects or regions, repeats, cells that are no age.
    """
    header: list[str] = []
    lines, text = read_delimited(
        path,
        expected=_EXPECTED,
        check_header=lambda names: header.extend(_checked_header(path, names, places.regions)),
        keep=bool,
    )
    cells = _known_in_lower_case(text)
    failures: list[str] = []
    rows = _Rows(lines, cells, places, failures)
    n_subjects = len(places.subjects)
    is_long, is_global = "region" in cells, _AGE in cells and "region" not in cells
    shape = (n_subjects, 1 if is_global else len(places.regions))
    if _AGE in cells:
        region = _regions(cells["region"], places, failures) if is_long else [0] * len(lines)
        rows.check_repeats(region, named=is_long)
        values = {
            name: rows.fill(shape, region, quantity, cells[name])
            for name, quantity in _QUANTITIES.items()
            if name in cells
        }
    else:
        known = _region_columns(header, places, failures)
        rows.check_repeats([0] * len(lines), named=False)
        values = {_AGE: np.full(shape, np.nan)}
        for name in known:
            at = [places.regions.index(name)] * len(lines)
            own = rows.fill(shape, at, Quantity(name, "years", 0, 120), cells[name])
            values[_AGE] = np.where(np.isnan(own), values[_AGE], own)
    _check_intervals(values, places, is_global, failures)
    if not failures and np.isnan(values[_AGE]).all():
        failures.append("no brain age in it. Write years, n/a where there is none.")
    check_all([f"{path}: {one}" for one in failures], TableError, f"{path}: not imported")
    present = np.zeros(n_subjects, dtype=bool)
    present[[at for at in rows.positions if at >= 0]] = True
    return AgeTable(is_global, values, present, hashlib.sha256(path.read_bytes()).hexdigest())


def _known_in_lower_case(text: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Cells by column; the names that are ours in lower case, those of regions as they are."""
    ours = {*IDS, *SESSIONS, *_QUANTITIES, "region"}
    return {(n.lower() if n.lower() in ours else n): column for n, column in text.items()}


def _checked_header(path: Path, names: Sequence[str], regions: Sequence[str]) -> list[str]:
    """Refuse a header that is of none of the three forms, or of two."""
    lower = {name.lower() for name in names}
    found = listed([quote(name) for name in names])
    hint = f" Is it a real {path.suffix}, or is another separator used?" if len(names) == 1 else ""
    if not lower & set(IDS):
        raise TableError(
            f"{path}: no column of ids ({', '.join(IDS)}). Expected {_EXPECTED}; found "
            f"{found}.{hint}"
        )
    for kind in (IDS, SESSIONS, ("brain_age_corrected", "brain_pad_corrected")):
        if len(several := sorted(lower & set(kind))) > 1:
            raise TableError(f"{path}: columns {' and '.join(several)} say the same. Keep one.")
    if _AGE in lower:
        if wide := [name for name in names if name in regions]:
            raise TableError(
                f"{path}: brain_age beside columns of regions ({listed(wide)}): one table holds "
                "ages of the whole brain or of regions. Make two tables of it."
            )
    elif "region" in lower or not set(names) & set(regions):
        raise TableError(
            f"{path}: no column brain_age, and no form of table that is known. Expected "
            f"{_EXPECTED}, named as in the store ({listed(regions)}); found {found}."
        )
    return list(names)


def _region_columns(header: Sequence[str], places: Places, failures: list[str]) -> list[str]:
    """Columns of a wide table that are regions; any other one may be a misspelled region."""
    others = [n for n in header if n and n.lower() not in (*IDS, *SESSIONS)]
    known = [name for name in others if name in places.regions]
    _say_unknown_regions([n for n in others if n not in places.regions], places, failures)
    return known


def _regions(cells: Sequence[str], places: Places, failures: list[str]) -> list[int]:
    """Position of the region of each row, -1 for an unknown one."""
    at = {name: i for i, name in enumerate(places.regions)}
    _say_unknown_regions(list(dict.fromkeys(n for n in cells if n not in at)), places, failures)
    return [at.get(name, -1) for name in cells]


def _say_unknown_regions(unknown: Sequence[str], places: Places, failures: list[str]) -> None:
    """One failure for all names that are no region, each with its nearest ones."""
    if not unknown:
        return
    by_lower = {name.lower(): name for name in places.regions}
    told = []
    for name in unknown:
        near = difflib.get_close_matches(name.lower(), list(by_lower), n=2)
        meant = f" (nearest: {' or '.join(by_lower[n] for n in near)})" if near else ""
        told.append(f"{quote(name)}{meant}")
    sides = ""
    if any(name.lower().endswith("lesional") for name in unknown):
        sides = " Give the ages of left and right; the side of the lesion is found later."
    failures.append(
        f"not among the regions of the store: {listed(told)}. Names have to match exactly: "
        f"{listed(places.regions)}.{sides} Correct them, or take them out."
    )


class _Rows:
    """Subject of each row, and what is wrong with the rows."""

    def __init__(
        self,
        lines: Sequence[int],
        cells: Mapping[str, Sequence[str]],
        places: Places,
        failures: list[str],
    ) -> None:
        ids = next(cells[name] for name in IDS if name in cells)
        sessions = next((cells[name] for name in SESSIONS if name in cells), [""] * len(lines))
        self._lines, self._places, self._failures = lines, places, failures
        self._at: dict[tuple[str, str], int] = {}
        self._only: dict[str, int] = {}
        for i, (person, session) in enumerate(zip(places.people, places.sessions, strict=True)):
            self._at |= {(places.subjects[i], ""): i, (places.subjects[i], session): i}
            if session:
                self._at[person, session] = i
        scans = Counter(places.people)  # whose only scan has no session: a row of any goes with it
        for i, (person, session) in enumerate(zip(places.people, places.sessions, strict=True)):
            if not session and scans[person] == 1:
                self._only |= {person: i, places.subjects[i]: i}
        self.positions = self._placed(list(zip(ids, sessions, strict=True)))

    def _placed(self, keys: Sequence[tuple[str, str]]) -> list[int]:
        """Position of each row in the store, -1 for one that is not there."""
        unknown: dict[str, None] = {}
        nameless, out = [], []
        for line, (subject, session) in zip(self._lines, keys, strict=True):
            session = "" if is_missing(session) else _prefixed("ses-", session)
            if is_missing(subject):
                nameless.append(str(line))
                out.append(-1)
                continue
            known = (subject, session) in self._at or subject in self._only
            full = subject if known else _prefixed("sub-", subject)
            out.append(self._at.get((full, session), self._only.get(full, -1)))
            if out[-1] < 0:
                unknown[f"{full} {session}".strip()] = None
        if nameless:
            self._failures.append(f"no id in line {listed(nameless)}. Write the subject.")
        self._say_unknown(list(unknown))
        return out

    def _say_unknown(self, unknown: Sequence[str]) -> None:
        rejected = [one for one in unknown if one in self._places.rejected]
        several = [one for one in unknown if one in self._places.people]
        plain = [one for one in unknown if one not in {*rejected, *several}]
        for who, why, way_out in (
            (
                plain,
                "subjects not in the store",
                f"It has {listed(self._places.subjects[:3])}, ...",
            ),
            (rejected, "subjects that the ingest left out", "Take their rows out."),
            (several, "subjects with several sessions", "Add a column session."),
        ):
            if who:
                self._failures.append(f"{why} ({len(who)}): {listed(who)}. {way_out}")

    def check_repeats(self, regions: Sequence[int], *, named: bool) -> None:
        """Refuse several rows of one subject and region."""
        first: dict[tuple[int, int], int] = {}
        for line, key in zip(self._lines, zip(self.positions, regions, strict=True), strict=True):
            if min(key) < 0:
                continue
            if first.setdefault(key, line) != line:
                region = f" {self._places.regions[key[1]]}" if named else ""
                self._failures.append(
                    f"{self._places.subjects[key[0]]}{region} is in line {first[key]} and in line "
                    f"{line}. Keep one."
                )

    def fill(
        self,
        shape: tuple[int, int],
        regions: Sequence[int],
        quantity: Quantity,
        cells: Sequence[str],
    ) -> FloatArray:
        """Numbers of a column, placed among subjects and regions."""
        out = np.full(shape, np.nan)
        parsed = {text: parse_number(text, quantity=quantity) for text in set(cells)}
        for row, text in enumerate(cells):
            cell, at = parsed[text], (self.positions[row], regions[row])
            if cell.code:
                self._failures.append(f"line {self._lines[row]}: {cell.message}")
            elif min(at) >= 0:
                out[at] = cell.value
        return out


def _prefixed(prefix: str, text: str) -> str:
    return text if text.startswith(prefix) else f"{prefix}{text}"


def _check_intervals(
    values: Mapping[str, FloatArray], places: Places, is_global: bool, failures: list[str]
) -> None:
    """Refuse an interval that does not hold its age, and what is said of an age that is missing."""
    age = values[_AGE]
    for name in sorted(set(values) - {_AGE}):
        for subject, region in np.argwhere(np.isfinite(values[name]) & np.isnan(age)):
            where = "" if is_global else f" {places.regions[region]}"
            failures.append(
                f"{places.subjects[subject]}{where}: {name} is {values[name][subject, region]:g}, "
                "but brain_age is missing. Give both or none."
            )
    for name, sign in (("brain_age_low", 1), ("brain_age_high", -1)):
        if name not in values:
            continue
        for subject, region in np.argwhere(sign * (values[name] - age) > 0):
            where = "" if is_global else f" {places.regions[region]}"
            failures.append(
                f"{places.subjects[subject]}{where}: {name} is {values[name][subject, region]:g}, "
                f"brain_age {age[subject, region]:g}. Correct one of them."
            )
