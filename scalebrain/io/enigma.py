"""Participants tables of BIDS, ENIGMA Stroke and UK Biobank: columns, codes, text, sidecar."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

from scalebrain.errors import TableError
from scalebrain.io.cells import Quantity, quote

__all__ = [
    "DAYS",
    "DECLARATION",
    "ENIGMA_SIDES",
    "GROUPS",
    "HANDS",
    "ICV",
    "SIDES",
    "UKB_ICV",
    "UKB_SEX",
    "Scale",
    "Source",
    "listed",
]

#: Names of a variable's column, in lower case; the first that is there is read.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "subject": ("participant_id", "bids_id", "eid", "subject"),
    "session": ("session_id", "session", "ses"),
    "age": ("age", "21003-2.0"),
    "sex": ("sex", "31-0.0"),
    "cohort": ("cohort", "site", "54-2.0"),
    "group": ("group",),
    "days_post_stroke": ("days_post_stroke",),
    "icv": ("icv", "26521-2.0"),
    "motor_score": ("motor_score", "normed_motor"),
    "motor_scale": ("motor_scale",),
    "lesion_side": ("lesion_side", "lesion_hemisphere", "lesioned_hemisphere"),
    "paresis_side": ("paresis_side", "paretic_side", "affected_side"),
}

DAYS = Quantity("days_post_stroke", "days", 0, 120 * 365.25, units=("d", "day", "days"))
ICV = Quantity("icv", "mL", 500, 3000, units=("ml", "milliliter", "milliliters", "cm3", "cm^3"))
#: Field 26521 is in mm3 by its definition.
UKB_ICV = Quantity("icv", "mL", 500, 3000, divisor=1000, units=("mm3", "mm^3"))

#: Data coding 9.
UKB_SEX = {"0": "F", "1": "M"}

GROUPS = {
    "reference": "reference",
    "control": "reference",
    "healthy": "reference",
    "stroke": "stroke",
    "patient": "stroke",
}

_UNKNOWN = {"": "", "none": "", "unknown": ""}
#: Side of a paresis.
HANDS = _UNKNOWN | {"l": "L", "left": "L", "r": "R", "right": "R"}
#: Side of a lesion.
SIDES = HANDS | {
    "bilateral": "bilateral",
    "both": "bilateral",
    "midline": "midline",
    "brainstem": "midline",
    "cerebellum": "midline",
}
#: The codes of LESIONED_HEMISPHERE; 6 is mixed, which says no side.
ENIGMA_SIDES = SIDES | {
    "1": "L",
    "2": "R",
    "3": "bilateral",
    "4": "midline",
    "5": "midline",
    "6": "",
}

_SEPARATORS = {".tsv": "\t", ".csv": ","}
_KNOWN = {name for names in _COLUMNS.values() for name in names}
_EXPECTED = "participant_id, age (years), sex, cohort; or the columns of ENIGMA or UK Biobank"
#: How a sidecar declares motor scales.
DECLARATION = (
    '{"motor_score": {"Scales": {"FMA-UE": {"Maximum": 66, "HigherIsBetter": true}, '
    '"NIHSS": {"Maximum": 42, "HigherIsBetter": false}}}}'
)
_LISTED = 10


class Scale(NamedTuple):
    """A declared motor scale."""

    name: str
    maximum: float
    higher_is_better: bool


def listed(items: Sequence[str]) -> str:
    """List the first items, and say how many more there are."""
    rest = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest


class Source:
    """The text of a table by variable, and its sidecar."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sidecar_path = path.with_suffix(".json")
        self.lines, self._text = _read_text(path)
        self._sidecar = _read_sidecar(self.sidecar_path)
        for variable in _COLUMNS:
            self._check_agreement(variable)

    def stop(self, message: str, code: str = "") -> NoReturn:
        """Refuse the whole table."""
        raise TableError(f"{self.path}: {message}", code=code)

    def column(self, variable: str) -> str:
        """Name of the column of a variable, in lower case; empty without one."""
        return next((name for name in _COLUMNS[variable] if name in self._text), "")

    def cells(self, variable: str) -> Sequence[str]:
        """Text of a variable; empty cells without such a column."""
        return self._text.get(self.column(variable)) or [""] * len(self.lines)

    def units(self, variable: str) -> str:
        """Units of a variable by the sidecar."""
        units = self._declared(variable).get("Units", "")
        if not isinstance(units, str):
            self._stop_sidecar(f"Units of {variable}", units, "text")
        return units

    def levels(self, variable: str) -> dict[str, str]:
        """Meaning of each value of a variable by the sidecar; values in lower case."""
        meanings = {}
        for value, level in self._objects(variable, "Levels").items():
            text = level.get("Description") if isinstance(level, dict) else level
            meanings[value.strip().lower()] = text if isinstance(text, str) else ""
        return meanings

    def scales(self) -> dict[str, "Scale"]:
        """Motor scales by the sidecar; their names in lower case."""
        scales = {}
        for name, entry in self._objects("motor_score", "Scales").items():
            fields = entry if isinstance(entry, dict) else {}
            maximum, higher = fields.get("Maximum"), fields.get("HigherIsBetter")
            if (
                not isinstance(higher, bool)
                or isinstance(maximum, bool)
                or not isinstance(maximum, int | float)
                or not 0 < maximum <= 1e6
            ):
                raise TableError(
                    f"{self.sidecar_path}: scale {quote(name)} needs a Maximum above 0 and "
                    f"HigherIsBetter, true or false, as in {DECLARATION}.",
                    code="mixed-scales",
                )
            scales[name.strip().lower()] = Scale(name.strip(), float(maximum), higher)
        return scales

    def _declared(self, variable: str) -> dict[str, object]:
        entry = self._sidecar.get(self.column(variable), {})
        if not isinstance(entry, dict):
            self._stop_sidecar(variable, entry, "an object")
        return entry

    def _objects(self, variable: str, key: str) -> dict[str, object]:
        entry = self._declared(variable).get(key, {})
        if not isinstance(entry, dict):
            self._stop_sidecar(f"{key} of {variable}", entry, "an object")
        return entry

    def _stop_sidecar(self, what: str, found: object, expected: str) -> NoReturn:
        raise TableError(
            f"{self.sidecar_path}: {what} is a {type(found).__name__}, expected {expected}. "
            "Correct it, or take it out."
        )

    def _check_agreement(self, variable: str) -> None:
        """Refuse two columns of one variable that differ."""
        names = [name for name in _COLUMNS[variable] if name in self._text]
        for other in names[1:]:
            first, second = self._text[names[0]], self._text[other]
            if first == second:
                continue
            cells = zip(self.lines, first, second, strict=True)
            line, one, two = next(found for found in cells if found[1] != found[2])
            self.stop(
                f"columns {names[0]} and {other} both give the {variable}, and differ in line "
                f"{line}: {quote(one)}, {quote(two)}. Take one of them out."
            )


def _read_text(path: Path) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Line of each row, and the cells of each known column; names in lower case."""
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise TableError(f"{path}: expected a .tsv (tabs) or .csv (commas) file. Save it as one.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, lines, rows = _scan(path, _one_line_each(path, file, separator))
    except FileNotFoundError as error:
        raise TableError(
            f"{path}: missing. Write one row a subject with {_EXPECTED}.", code="unreadable"
        ) from error
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.",
            code="unreadable",
        ) from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise TableError(
            f"{path}: not a table: {error}. Look for a quote without its partner; save it again."
        ) from error
    if not rows:
        raise TableError(f"{path}: no row below the header. Write one row a subject.")
    return lines, dict(zip(header, zip(*rows, strict=True), strict=True))


def _scan(
    path: Path, numbered: Iterator[tuple[int, list[str]]]
) -> tuple[list[str], list[int], list[tuple[str, ...]]]:
    """Known columns of the header, and line and known cells of each row that is not blank."""
    names = [name.strip().lower() for name in next(numbered, (1, []))[1]]
    _check_header(path, names)
    known = [i for i, name in enumerate(names) if name in _KNOWN]
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    ragged: list[str] = []
    for line, row in numbered:
        if len(row) == len(names):
            cells = tuple([row[i].strip() for i in known])
            if any(cells) or any(map(str.strip, row)):
                lines.append(line)
                rows.append(cells)
        elif any(map(str.strip, row)):
            ragged.append(f"{len(row)} in line {line}")
    if ragged:
        raise TableError(
            f"{path}: {len(names)} columns in the header, but {listed(ragged)}. Give every row "
            "the same number of cells, n/a for a missing one."
        )
    return [names[i] for i in known], lines, rows


def _one_line_each(path: Path, file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with their lines; one that goes over several would hide the rows inside a quote."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    for line, row in enumerate(reader, start=1):
        if reader.line_num != line:
            raise TableError(
                f"{path}: a quoted cell goes from line {line} to line {reader.line_num}. Close the "
                "quote, or take the line breaks out of the cell."
            )
        yield line, row


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a header without ids and ages, or with a name twice."""
    if not any(names):
        raise TableError(f"{path}: no header in the first line. Expected {_EXPECTED}.")
    if repeated := [quote(name) for name, n in Counter(names).items() if name and n > 1]:
        raise TableError(
            f"{path}: several columns named {listed(repeated)} (capitals do not count). Keep one."
        )
    for what, variable in (("ids", "subject"), ("ages", "age")):
        if not set(_COLUMNS[variable]) & set(names):
            found = listed([quote(name) for name in names])
            hint = f" Is it a real {path.suffix}, or is another separator used?"
            raise TableError(
                f"{path}: no column of {what} ({', '.join(_COLUMNS[variable])}). Expected "
                f"{_EXPECTED}; found {found}.{hint if len(names) == 1 else ''}"
            )


def _read_sidecar(path: Path) -> dict[str, object]:
    """Content of a JSON sidecar by column, in lower case; nothing without one."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check its permissions.", code="unreadable"
        ) from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not valid JSON: {error}. Correct it.") from error
    if not isinstance(content, dict):
        raise TableError(f"{path}: expected a JSON object with one entry a column. Correct it.")
    return {name.strip().lower(): entry for name, entry in content.items()}
