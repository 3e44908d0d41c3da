"""Cells of a participants table: text to a number or a word, or the reason why not."""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "AGE_MISSING",
    "Cell",
    "Quantity",
    "contradiction",
    "guess_age_unit",
    "is_missing",
    "parse_age",
    "parse_cohort",
    "parse_number",
    "parse_scale",
    "parse_sex",
    "parse_word",
    "plain_number",
    "quote",
]

T = TypeVar("T", float, str)

#: What is said of a missing age.
AGE_MISSING = "age is missing. Models that need it leave this subject out; fill it in."

_LONGEST = 80
_LONGEST_COHORT = 100
_LONGEST_SCALE = 100
_MISSING = frozenset({"", "n/a", "na", "nan"})

_CODE = re.compile(r"[0-9]+\.0")
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
#: A comma behind which there are three digits may part the thousands, too.
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
_DATE = re.compile(r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}([T ].*)?|[0-9]{4}[-/][0-9]{1,2}")
_AGE_WITH_UNIT = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)\s*-?\s*(y|yrs?|years?|m|mos?|mths?|months?|w|weeks?|d|days?)\.?"
    r"(?:\s*old)?",
    re.IGNORECASE,
)
_AT_LEAST = re.compile(r"(?:>=?|≥)\s*([0-9]+(?:\.[0-9]+)?)|([0-9]+(?:\.[0-9]+)?)\s*\+")
_RANGE = re.compile(
    r"[0-9.]+\s*(?:-|–|−|to)\s*[0-9.]+|(?:<=?|≤)\s*[0-9.]+",
    re.IGNORECASE,
)

#: A year, or a month by its name, in a text.
_BIRTH_IN_TEXT = re.compile(
    r"(?<!\d)(?:18|19|20)\d\d(?!\d)|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec",
    re.IGNORECASE,
)

_OLDEST = 120.0
#: Form of what says when someone was born: it is never shown beside an id.
_BIRTHS = {"a year of birth": "YYYY", "a date": "YYYYMMDD"}
_UNITS_A_YEAR = {"months": 12.0, "weeks": 52.18, "days": 365.25}
_UNIT_OF_LETTER = {"y": "years", "m": "months", "w": "weeks", "d": "days"}
_YEARS = frozenset({"", "a", "y", "yr", "yrs", "year", "years"})

_SEXES = {"f": "F", "female": "F", "woman": "F", "m": "M", "male": "M", "man": "M"}
#: Words of a level that is neither.
_NEITHER = frozenset(
    (
        *("declined", "diverse", "intersex", "missing", "na", "neither", "no", "non", "nonbinary"),
        *("none", "not", "other", "prefer", "refused", "trans", "undisclosed", "unknown"),
        *("unspecified", "without"),
    )
)


class Cell(NamedTuple, Generic[T]):
    """A parsed cell: its value, and the rule that it breaks, if any.

    Parameters
    ----------
    value
        The value; NaN or empty text when missing or not usable.
    code
        Code of the rule; empty when nothing is wrong.
    message
        What is wrong and the way out.
    kept
        Whether the row stays, with a warning.
    censored
        Whether the value is a lower bound.
    """

    value: T
    code: str = ""
    message: str = ""
    kept: bool = False
    censored: bool = False


@dataclass(frozen=True)
class Quantity:
    """A number of the table with its usable range.

    Parameters
    ----------
    name
        Column, as messages show it.
    unit
        Unit of `low` and `high`; empty for a fraction or a score.
    low, high
        Smallest and largest usable value.
    divisor
        What the number in the file is divided by.
    units
        What a sidecar may call the unit of the file, in lower case; empty when any will do.
    """

    name: str
    unit: str
    low: float
    high: float
    divisor: float = 1.0
    units: tuple[str, ...] = ()


def quote(text: str) -> str:
    """Text of a cell as a message may hold it: one printable line in quotes, cut."""
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."


def is_missing(text: str) -> bool:
    """Tell a cell that stands for a missing value."""
    return len(text) <= 3 and text.lower() in _MISSING


def plain_number(text: str) -> float | None:
    """Value of a finite decimal number, None for any other text."""
    try:
        value = float(text) + 0.0  # no negative zero
    except ValueError:
        return None
    # Python reads digits of any script, and underscores between them.
    return value if math.isfinite(value) and text.isascii() and "_" not in text else None


def parse_number(text: str, *, quantity: Quantity, units: str = "") -> Cell[float]:
    """Parse a number.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.
    quantity
        What it has to be.
    units
        Unit that the sidecar gives for the column.

    Returns
    -------
    Cell
        The number, or NaN.
    """
    if is_missing(text):
        return Cell(math.nan)
    name = quantity.name
    if quantity.units and units.strip().lower() not in ("", *quantity.units):
        return _bad(
            f"{name} is in {quote(units)}, as the sidecar says. Convert the column to "
            f"{quantity.unit}, in the table and in the sidecar."
        )
    value = plain_number(text)
    if value is None:
        hint = f"Write {quantity.unit or 'a number'} as in 63.5, or n/a."
        if _COMMA.fullmatch(text):
            hint = f"A decimal comma? Write {text.replace(',', '.')}."
        if _THOUSANDS.fullmatch(text):
            without = f"Write {text.replace(',', '')} if the comma parts thousands"
            decimal = f", {text.replace(',', '.')} if it is a decimal comma"
            hint = f"{without}{decimal if _COMMA.fullmatch(text) else ''}."
        return _bad(f"{name} {quote(text)} is not a finite number. {hint}")
    value /= quantity.divisor
    if not quantity.low <= value <= quantity.high:
        expected = f"{quantity.low:g} to {quantity.high:g} {quantity.unit}".rstrip()
        if quantity.high == math.inf:
            expected = f"at least {quantity.low:g}"
        return _bad(
            f"{name} {quote(text)} is outside the expected range, {expected}."
            f"{_unit_hint(quantity, value)} Correct it, or write n/a."
        )
    return Cell(value)


def _bad(message: str) -> Cell[float]:
    return Cell(math.nan, "bad-number", message)


def _unit_hint(quantity: Quantity, value: float) -> str:
    """Guess the unit of a volume."""
    if quantity.unit != "mL":
        return ""
    if quantity.low <= value / 1000 <= quantity.high:
        return f" In mm3? Divide by 1000: {value / 1000:.1f}."
    if quantity.low <= value * 1000 <= quantity.high:
        return f" In liters? Multiply by 1000: {value * 1000:.1f}."
    return ""


def guess_age_unit(value: float) -> str:
    """Guess what a number is that is no age in years.

    Parameters
    ----------
    value
        The number.

    Returns
    -------
    str
        ``months``, ``days``, ``a year of birth``, ``a date``; empty without a guess.
    """
    if not _OLDEST < value <= 21001231:
        return ""
    if 1900 <= value <= 2100 and value.is_integer():
        return "a year of birth"
    if value <= _OLDEST * _UNITS_A_YEAR["months"]:
        return "months"
    if value <= _OLDEST * _UNITS_A_YEAR["days"]:
        return "days"
    return "a date" if value >= 18800101 and value.is_integer() else ""


def parse_age(text: str, *, units: str = "", guess: str = "") -> Cell[float]:
    """Parse an age in years; another unit is guessed for the message, never converted.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.
    units
        Unit that the sidecar gives for the column.
    guess
        What the column as a whole seems to be; empty to guess from the cell.

    Returns
    -------
    Cell
        The age, or NaN.
    """
    if is_missing(text):
        return Cell(math.nan, "missing-covariate", AGE_MISSING, kept=True)
    if units.strip().lower() not in _YEARS:
        return _other_unit(
            f"age {_shown_age(text)} is in {quote(units)}, as the sidecar says. Convert the "
            "column to years, in the table and in the sidecar."
        )
    value = plain_number(text)
    if value is not None:
        return Cell(value) if 0 <= value <= _OLDEST else _outside(text, value, guess)
    if found := _AT_LEAST.fullmatch(text):
        bound = plain_number(found[1] or found[2])
        if bound is not None and bound <= _OLDEST:
            return Cell(bound, censored=True)
        return _outside(text, math.inf if bound is None else bound, guess)
    return _odd_age(text)


def _odd_age(text: str) -> Cell[float]:
    """Say what an age is that is no number."""
    shown = f"age {_shown_age(text)}"
    if _COMMA.fullmatch(text):
        value = float(text.replace(",", "."))
        if value > _OLDEST:
            return _outside(text, value, "")
        return _other_unit(f"{shown}: a decimal comma? Write {text.replace(',', '.')}.")
    if _DATE.fullmatch(text):
        return _other_unit(f"{shown}: a date? Write the age at the scan in years.")
    if found := _AGE_WITH_UNIT.fullmatch(text):
        unit, number = _UNIT_OF_LETTER[found[2][0].lower()], plain_number(found[1])
        if unit == "years" and number is not None and number > _OLDEST:
            return _outside(text, number, "")
        return _other_unit(f"{shown}: in {unit}?{_conversion(number, unit)}")
    if _RANGE.fullmatch(text):
        message = f"{shown} is a range. Write the age in years, a lower bound as 89+, or n/a."
        return Cell(math.nan, "age-range", message)
    return _bad(f"{shown} is not a finite number. Write years as in 63.5, or n/a.")


def _shown_age(text: str) -> str:
    """Age as a message may hold it: of a date or a year of birth the form alone, never the cell."""
    if found := _DATE.fullmatch(text):
        mark = found[1] or text[4]
        day, *_ = re.split("[T ]", text)
        parts = day.split(mark)
        year_first = ("YYYY", "MM", "DD")[: len(parts)]
        return mark.join(year_first if len(parts[0]) == 4 else (_digits(p) for p in parts))
    value = plain_number(text.strip("<>=≥≤+ ").replace(",", "."))
    if value is not None and guess_age_unit(value) in _BIRTHS:
        return _BIRTHS[guess_age_unit(value)]
    if value is None and _BIRTH_IN_TEXT.search(text):
        return quote(re.sub(r"\d", "N", text))
    return quote(text)


def _digits(part: str) -> str:
    """Form of a part of a date whose order is not known."""
    return "YYYY" if len(part) == 4 else "N" * len(part)


def _outside(text: str, value: float, guess: str) -> Cell[float]:
    """Say what an age beyond the oldest may be."""
    shown = f"age {_shown_age(text)} is outside 0 to {_OLDEST:g} years."
    unit = (guess or guess_age_unit(value)) if value > _OLDEST else ""
    if value / _UNITS_A_YEAR.get(unit, math.inf) > _OLDEST:
        unit = guess_age_unit(value)  # the guess of the column does not fit this cell
    if not unit:
        return _bad(f"{shown} Write the age at the scan in years, or n/a.")
    if unit in _UNITS_A_YEAR:
        return _other_unit(f"{shown} In {unit}?{_conversion(value, unit)}")
    return _other_unit(f"{shown} Is it {unit}? Write the age at the scan in years, or n/a.")


def _conversion(value: float | None, unit: str) -> str:
    """Way from a unit to years."""
    if value is None:
        return " Write years."
    years = value / _UNITS_A_YEAR.get(unit, 1.0)
    if unit == "years":
        return f" Write the number alone: {years:g}."
    return f" Divide by {_UNITS_A_YEAR[unit]:g} and write years: {years:.1f}; or n/a."


def _other_unit(message: str) -> Cell[float]:
    return Cell(math.nan, "age-unit", message)


def parse_sex(text: str, *, levels: Mapping[str, str], codes: Mapping[str, str]) -> Cell[str]:
    """Parse a sex; numbers only by their declared levels.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.
    levels
        Meaning of each value by the sidecar; values in lower case.
    codes
        F or M of each code that the column itself defines.

    Returns
    -------
    Cell
        F or M, or empty text.
    """
    if is_missing(text):
        return Cell("")
    keys = _spellings(text)
    own = _SEXES.get(keys[0], "")
    if meaning := next((levels[key] or "unknown" for key in keys if key in levels), ""):
        sex = _meant_sex(meaning)
        if own and _sexes_in(meaning) == {"F": "M", "M": "F"}[own]:
            message = (
                f"sex {quote(text)} is {quote(meaning)} by the sidecar, the other sex. Correct the "
                "Levels of sex in the sidecar, or write F and M in the table."
            )
            return Cell("", "sex-coded", message)
        if sex := sex or _own_sex(own, meaning, levels):
            return Cell(sex)
        message = (
            f"sex {quote(text)} is {quote(meaning)} by the sidecar: taken as missing, since the "
            "models know F and M only."
        )
        return Cell("", "missing-covariate", message, kept=True)
    if sex := next((words[key] for words in (codes, _SEXES) for key in keys if key in words), ""):
        return Cell(sex)
    message = (
        f"sex {quote(text)} is neither F nor M. Write F, M or n/a, or say in the sidecar what it "
        'means, as in {"sex": {"Levels": {"1": "male", "2": "female"}}}.'
    )
    return Cell("", "sex-coded", message)


def _spellings(text: str) -> list[str]:
    """Lower case of a word; a code also without the ``.0`` that spreadsheets add."""
    key = text.lower()
    return [key, key[:-2]] if _CODE.fullmatch(key) else [key]


def _meant_sex(meaning: str) -> str:
    """F or M when a level begins with its word and nowhere names the other one."""
    words = _letters(meaning)
    return _SEXES.get(words[0], "") if words and len(_sexes_in(meaning)) == 1 else ""


def _sexes_in(meaning: str) -> str:
    """Every sex that a level names: F, M or FM."""
    return "".join(sorted({_SEXES[word] for word in _letters(meaning) if word in _SEXES}))


def _own_sex(own: str, meaning: str, levels: Mapping[str, str]) -> str:
    """F or M of a cell whose level names that too, or is in words of another language.

    The latter only where F and M are both among the levels: alone, an M may be a *mujer*.
    """
    if _NEITHER & set(_letters(meaning)):
        return ""
    declared = {_SEXES[word] for word in levels if word in _SEXES}
    named = _sexes_in(meaning)
    return own if named == own or (not named and len(declared) == 2) else ""


def _letters(text: str) -> list[str]:
    """Words of a text, of the letters of any script, in lower case."""
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text).lower())


def parse_word(
    text: str, *, name: str, words: Mapping[str, str], levels: Mapping[str, str], expected: str
) -> Cell[str]:
    """Parse one of a few words.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.
    name
        Column, as messages show it.
    words
        Value of each word, in lower case; that of a missing cell under the empty word, if
        the cell may be missing.
    levels
        Meaning of each word by the sidecar; words in lower case.
    expected
        The words that messages name.

    Returns
    -------
    Cell
        The value, or empty text.
    """
    if meaning := contradiction(text, words=words, levels=levels):
        message = (
            f"{name} {quote(text)} is {quote(meaning)} by the sidecar, which contradicts the word "
            f"itself. Correct the Levels in the sidecar, or write {expected} in the table."
        )
        return Cell("", "bad-number", message)
    for word in [""] if is_missing(text) else _spellings(text):
        meant = _meant_word(word, words, levels)
        if meant is not None:
            return Cell(meant)
    found = f"{name} is missing" if is_missing(text) else f"{name} {quote(text)} is not known"
    return Cell("", "bad-number", f"{found}. Write {expected}.")


def contradiction(text: str, *, words: Mapping[str, str], levels: Mapping[str, str]) -> str:
    """Find what the sidecar says of a word that means something else by itself.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.
    words, levels
        As of :func:`parse_word`.

    Returns
    -------
    str
        The meaning by the sidecar; empty where it contradicts nothing. A number means nothing by
        itself.
    """
    word = text.lower()
    meaning = levels.get(word, "").strip()
    if is_missing(text) or word.isdigit() or word not in words:
        return ""
    return meaning if words.get(meaning.lower(), words[word]) != words[word] else ""


def _meant_word(word: str, words: Mapping[str, str], levels: Mapping[str, str]) -> str | None:
    """Value of a word: by the sidecar, as far as that is known, or by itself."""
    meaning = levels.get(word, "").strip().lower() if word else ""
    if meaning and meaning in words:
        return words[meaning]
    if word.isdigit() and word in words and (named := _letters(meaning)):
        values = {words[part] for part in named if part in words}
        if named[0] in words and len(values) == 1:  # as "right hemisphere"
            return values.pop()
    return words.get(word)


def parse_scale(text: str) -> Cell[str]:
    """Parse the name of a motor scale.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.

    Returns
    -------
    Cell
        The name, cut to 100 characters; empty where it is missing.
    """
    if text.isprintable():
        return Cell("" if is_missing(text) else text[:_LONGEST_SCALE].rstrip())
    message = f"motor_scale {quote(text)} holds control characters. Write plain text."
    return Cell("", "bad-number", message)


def parse_cohort(text: str) -> Cell[str]:
    """Parse the name of a cohort.

    Parameters
    ----------
    text
        The cell, without surrounding spaces.

    Returns
    -------
    Cell
        The name, cut to 100 characters.
    """
    if is_missing(text):
        return Cell("", "bad-number", "cohort is missing. Write the cohort (site) of the scan.")
    if not text.isprintable():
        message = f"cohort {quote(text)} holds control characters. Write plain text."
        return Cell("", "bad-number", message)
    return Cell(text[:_LONGEST_COHORT].rstrip())
