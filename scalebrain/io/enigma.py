"""Participants tables of BIDS, ENIGMA Stroke and UK Biobank: columns, codes, text, sidecar."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from scalebrain.errors import TableError
from scalebrain.io.cells import Quantity, quote
from scalebrain.io.delimited import IDS, SESSIONS, listed, read_delimited

__all__ = [
    "DAYS",
    "DECLARATION",
    "ENIGMA_SIDES",
    "GROUPS",
    "HANDS",
    "ICV",
    "SIDES",
    "UKB_AGE",
    "UKB_ICV",
    "UKB_SESSION",
    "UKB_SEX",
    "Scale",
    "Source",
]

#: Names of a variable's column, in lower case; the first that is there is read.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "subject": IDS,
    "session": SESSIONS,
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

#: Age at the first imaging visit, and that visit as the archives number it.
UKB_AGE, UKB_SESSION = "21003-2.0", "ses-2"

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

_KNOWN = {name for names in _COLUMNS.values() for name in names}
_EXPECTED = "participant_id, age (years), sex, cohort; or the columns of ENIGMA or UK Biobank"
#: How a sidecar declares motor scales.
DECLARATION = (
    '{"motor_score": {"Scales": {"FMA-UE": {"Maximum": 66, "HigherIsBetter": true}, '
    '"NIHSS": {"Maximum": 42, "HigherIsBetter": false}}}}'
)


class Scale(NamedTuple):
    """A declared motor scale."""

    name: str
    maximum: float
    higher_is_better: bool


class Source:
    """The text of a table by variable, and its sidecar; only the variables named are checked."""

    def __init__(self, path: Path, variables: Sequence[str] = tuple(_COLUMNS)) -> None:
        self.path = path
        self.sidecar_path = path.with_suffix(".json")
        self.lines, self._text = _read_text(path, variables)
        self._sidecar = _read_sidecar(self.sidecar_path)
        for variable in variables:
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


def _read_text(path: Path, variables: Sequence[str]) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Line of each row, and the cells of each known column; names in lower case."""
    lines, cells = read_delimited(
        path,
        expected=_EXPECTED,
        check_header=lambda names: _check_header(path, [name.lower() for name in names], variables),
        keep=lambda name: name.lower() in _KNOWN,
    )
    return lines, {name.lower(): column for name, column in cells.items()}


def _check_header(path: Path, names: Sequence[str], variables: Sequence[str]) -> None:
    """Refuse a header without ids, and without ages where they are wanted."""
    for what, variable in (("ids", "subject"), ("ages", "age")):
        if variable in variables and not set(_COLUMNS[variable]) & set(names):
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
