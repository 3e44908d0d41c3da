"""Participants tables of BIDS, ENIGMA Stroke and UK Biobank: columns, codes, text, sidecar."""

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from scalebrain.errors import TableError
from scalebrain.io.cells import Quantity, is_missing, plain_number, quote
from scalebrain.io.delimited import IDS, SESSIONS, listed, read_delimited

__all__ = [
    "DAYS",
    "DECLARATION",
    "ENIGMA_SIDES",
    "ENIGMA_SIGNS",
    "GROUPS",
    "HANDS",
    "ICV",
    "IMPAIRED",
    "KNOWN",
    "LESIONED",
    "NORMED",
    "SIDES",
    "UKB_AGE",
    "UKB_ICV",
    "UKB_SESSION",
    "UKB_SEX",
    "Scale",
    "Source",
    "fractions_of",
    "names_of",
    "near_names",
    "undeclared_scales",
]

#: Column of scores that are fractions already, whatever is declared.
NORMED = "normed_motor"
#: Column of lesion sides that tells a table of ENIGMA Stroke.
LESIONED = "lesioned_hemisphere"

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
    "motor_score": ("motor_score", NORMED),
    "motor_scale": ("motor_scale",),
    "lesion_side": ("lesion_side", "lesion_hemisphere", LESIONED),
    "paresis_side": ("paresis_side", "paretic_side", "affected_side"),
}

DAYS = Quantity("days_post_stroke", "days", 0, 120 * 365.25, units=("d", "day", "days"))
#: A score of `NORMED` that tells of a stroke: 1 is unimpaired.
IMPAIRED = Quantity("motor_score", "", 0, math.nextafter(1, 0))
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
#: The code for mixed says no side, and yet that there is a lesion.
ENIGMA_SIGNS = ENIGMA_SIDES | {"6": "mixed"}

#: Names of every column that is read, in lower case.
KNOWN = {name for names in _COLUMNS.values() for name in names}
_EXPECTED = "participant_id, age (years), sex, cohort; or the columns of ENIGMA or UK Biobank"
#: How a sidecar declares motor scales.
DECLARATION = (
    '{"motor_score": {"Scales": {"FMA-UE": {"Maximum": 66, "HigherIsBetter": true}, '
    '"NIHSS": {"Maximum": 42, "HigherIsBetter": false}}}}'
)


#: What is divided by a maximum though it is a fraction shows in so many scores at least.
_MANY = 5
#: How the names of other columns begin that may hold what is missing.
_NEAR = {
    "sex": re.compile(r"sex|gender|geschlecht|genre"),
    "icv": re.compile(r"(s?bti|e?ti|e?ic)v|.*(intra.?cran|eticv|etiv)"),
    "motor_score": re.compile(
        r"(.*[\W_])?(fma(?!p)|motor|arat(?![a-z]))"
        r"|.*(fugl|uefm|ue_fm|ue-fm|fmue|fm_ue|fm-ue|nihss|action.?research)"
    ),
    "days_post_stroke": re.compile(r"(.*_)?days|.*(post.?stroke|since.?stroke|chronic|onset)"),
    "group": re.compile(
        r"(?!(age|blood|ethnic|race|smok|marital|social|income|employ|educat|hypertens|menopaus|vaccin|treat)"
        r"|.*(id|date|age|years?|sex|file|path)$)"
        r"(.*[\W_])?(diagnos|dx(?![a-z])|patient|status|case(?![a-z])|group|control)"
    ),
}


class Scale(NamedTuple):
    """A declared motor scale."""

    name: str
    maximum: float
    higher_is_better: bool


def fractions_of(scale: Scale, texts: Iterable[str]) -> str:
    """Say that scores are fractions already, which a scale's maximum would divide again.

    Parameters
    ----------
    scale
        The scale.
    texts
        Cells of its scores.

    Returns
    -------
    str
        What is wrong and the way out; empty when nothing is.
    """
    found = [(n, text) for text in texts if (n := plain_number(text)) is not None and n > 0]
    fractions = [text for n, text in found if not n.is_integer()]
    if scale.maximum <= 1 or len(found) < _MANY or not fractions or max(found)[0] > 1:
        return ""
    return (
        f"motor scores of {quote(scale.name)} are fractions already: none of {len(found)} is above "
        f"1 (as {quote(fractions[0])}), of a Maximum of {scale.maximum:g}. Write the points of the "
        'scale; or, where 1 is unimpaired, declare "Maximum": 1, "HigherIsBetter": true.'
    )


def undeclared_scales(scales: Sequence[str], beyond: str, sidecar: str) -> str:
    """Say that scores of several scales, or beyond 1, need a declaration.

    Parameters
    ----------
    scales
        Their names.
    beyond
        A score beyond 1; empty without one.
    sidecar
        File that declares scales.

    Returns
    -------
    str
        What is wrong and the way out.
    """
    found = f"scales {listed([quote(name) for name in scales])}" if scales else "no scale named"
    way = (
        f"Declare each scale in {sidecar}, as in {DECLARATION}, and name it in a column motor_scale"
    )
    if beyond:
        found += f", a score of {quote(beyond)}"
        way += "; or correct the cell"
    return f"motor scores beyond one scale of 0 to 1: {found}. {way}."


def names_of(variable: str) -> tuple[str, ...]:
    """Names of a variable's column, in lower case."""
    return _COLUMNS[variable]


def near_names(header: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Variables that a table lacks, and columns that may hold them.

    Parameters
    ----------
    header
        Names of its columns.

    Returns
    -------
    dict
        Columns of similar names by variable.
    """
    names = list(header)
    known = {name.lower() for name in names}
    return {
        variable: tuple(n for n in names if n.lower() not in KNOWN and near.match(n.lower()))
        for variable, near in _NEAR.items()
        if not known & set(_COLUMNS[variable])
    }


class Source:
    """The text of a table by variable, and its sidecar; only the variables named are checked."""

    def __init__(
        self, path: Path, variables: Sequence[str] = tuple(_COLUMNS), *, needs_age: bool = True
    ) -> None:
        self.path = path
        self.sidecar_path = path.with_suffix(".json")
        self.header: list[str] = []
        needs = {"subject", "age"} if needs_age else {"subject"}
        self.lines, self._text = _read_text(path, needs.intersection(variables), self.header)
        empty = {n for n, cells in self._text.items() if all(map(is_missing, cells))}
        near = near_names(self.header).items()
        #: What :func:`near_names` finds, without columns that hold nothing.
        self.absent = {v: tuple(n for n in names if n.lower() not in empty) for v, names in near}
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

    def declared_in(self, variable: str) -> Path:
        """File that declares a variable."""
        del variable
        return self.sidecar_path

    def units(self, variable: str) -> str:
        """Units of a variable by the sidecar."""
        units = self._declared(variable).get("Units", "")
        if not isinstance(units, str):
            self._stop_sidecar(variable, f"Units of {variable}", units, "text")
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
                    f"{self.declared_in('motor_score')}: scale {quote(name)} needs a Maximum "
                    f"above 0 and HigherIsBetter, true or false, as in {DECLARATION}.",
                    code="mixed-scales",
                )
            scales[name.strip().lower()] = Scale(name.strip(), float(maximum), higher)
        return scales

    def _declared(self, variable: str) -> dict[str, object]:
        column = self.column(variable)
        declared: dict[str, object] = {}
        for name in (variable, column) if column else ():
            entry = self._sidecar.get(name, {})
            if not isinstance(entry, dict):
                self._stop_sidecar(variable, variable, entry, "an object")
            declared |= entry
        return declared

    def _objects(self, variable: str, key: str) -> dict[str, object]:
        entry = self._declared(variable).get(key, {})
        if not isinstance(entry, dict):
            self._stop_sidecar(variable, f"{key} of {variable}", entry, "an object")
        return entry

    def _stop_sidecar(self, variable: str, what: str, found: object, expected: str) -> NoReturn:
        raise TableError(
            f"{self.declared_in(variable)}: {what} is a {type(found).__name__}, expected "
            f"{expected}. Correct it, or take it out."
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


def _read_text(
    path: Path, needs: Collection[str], header: list[str]
) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Line of each row, and the cells of each known column; names in lower case.

    The names of all columns are put into `header`. Columns that may hold a variable that is
    lacking are among them, too.
    """
    near: set[str] = set()

    def check(names: list[str]) -> None:
        header.extend(names)
        _check_header(path, [name.lower() for name in names], needs)
        near.update(name.lower() for found in near_names(names).values() for name in found)

    lines, cells = read_delimited(
        path,
        expected=_EXPECTED,
        check_header=check,
        keep=lambda name: name.lower() in KNOWN or name.lower() in near,
    )
    return lines, {name.lower(): column for name, column in cells.items()}


def _check_header(path: Path, names: Sequence[str], needs: Collection[str]) -> None:
    """Refuse a header without ids, and without ages where they are wanted."""
    for what, variable in (("ids", "subject"), ("ages", "age")):
        if variable in needs and not set(_COLUMNS[variable]) & set(names):
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
