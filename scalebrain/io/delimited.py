"""Text of a table: tabs or commas, UTF-8 with or without a mark, one line a row."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from scalebrain.errors import TableError
from scalebrain.io.cells import quote

__all__ = ["IDS", "SESSIONS", "listed", "read_delimited"]

#: Names of the columns of ids and of sessions, in lower case; the first that is there is read.
IDS = ("participant_id", "bids_id", "eid", "subject")
SESSIONS = ("session_id", "session", "ses")

_SEPARATORS = {".tsv": "\t", ".csv": ","}
_LISTED = 10


def listed(items: Sequence[str]) -> str:
    """List the first items, and say how many more there are."""
    rest = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest


def read_delimited(
    path: Path,
    *,
    expected: str,
    check_header: Callable[[list[str]], None],
    keep: Callable[[str], bool],
    needs_rows: bool = True,
) -> tuple[list[int], dict[str, Sequence[str]]]:
    """Read the cells of a table as text.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text.
    expected
        Columns that messages name.
    check_header
        Raises when the names of the columns will not do. Names that differ in capitals
        alone, or an empty header, have been refused before.
    keep
        Which columns are wanted; the cells of the others are not held.
    needs_rows
        Whether a header alone is refused.

    Returns
    -------
    lines : list of int
        Line of each row that is not blank.
    cells : dict
        Cells of each wanted column by its name, without surrounding spaces.

    Raises
    ------
    TableError
        When the file is unreadable, ragged, without rows that it needs, or not such text.
    """
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise TableError(f"{path}: expected a .tsv (tabs) or .csv (commas) file. Save it as one.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            numbered = _one_line_each(path, file, separator)
            names = [name.strip() for name in next(numbered, (1, []))[1]]
            _check_names(path, names, expected)
            check_header(names)
            kept = [i for i, name in enumerate(names) if keep(name)]
            lines, rows = _scan(path, numbered, len(names), kept)
    except FileNotFoundError as error:
        raise TableError(
            f"{path}: missing. Write one row a subject with {expected}.", code="unreadable"
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
    wanted = [names[i] for i in kept]
    if not rows:
        if needs_rows:
            raise TableError(f"{path}: no row below the header. Write one row a subject.")
        return [], dict.fromkeys(wanted, ())
    return lines, dict(zip(wanted, zip(*rows, strict=True), strict=True))


def _check_names(path: Path, names: Sequence[str], expected: str) -> None:
    """Refuse an empty header, and a name twice."""
    if not any(names):
        raise TableError(f"{path}: no header in the first line. Expected {expected}.")
    times = Counter(name.lower() for name in names)
    if repeated := [quote(name) for name, n in times.items() if name and n > 1]:
        raise TableError(
            f"{path}: several columns named {listed(repeated)} (capitals do not count). Keep one."
        )


def _scan(
    path: Path, numbered: Iterator[tuple[int, list[str]]], n_columns: int, kept: Sequence[int]
) -> tuple[list[int], list[tuple[str, ...]]]:
    """Line and wanted cells of each row that is not blank."""
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    ragged: list[str] = []
    for line, row in numbered:
        if len(row) == n_columns:
            cells = tuple([row[i].strip() for i in kept])
            if any(cells) or any(map(str.strip, row)):
                lines.append(line)
                rows.append(cells)
        elif any(map(str.strip, row)):
            ragged.append(f"{len(row)} in line {line}")
    if ragged:
        raise TableError(
            f"{path}: {n_columns} columns in the header, but {listed(ragged)}. Give every row "
            "the same number of cells, n/a for a missing one."
        )
    return lines, rows


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
