"""Tables of further measures of people: one row a subject, any columns of numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scalebrain.errors import TableError, check_all
from scalebrain.io.cells import is_missing, plain_number, quote
from scalebrain.io.delimited import IDS, listed, read_delimited

__all__ = ["read_measures"]

_EXPECTED = "subject (or participant_id) and a column a measure"
_WORDS = 2


def read_measures(path: str | Path) -> pd.DataFrame:
    """Read a table of measures.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text with a column ``subject``
        (``participant_id``, ``bids_id`` or ``eid``) that holds the ids of the store. Every
        other column is a measure: numbers, or words of two kinds. A missing one is ``n/a``.

    Returns
    -------
    DataFrame
        Indexed by subject: float64 columns, and text columns with missing values.

    Raises
    ------
    TableError
        When it is no such table; or one error with every repeated id, unnamed column and
        column that holds neither numbers nor two words.
    """
    path = Path(path)
    header: list[str] = []
    lines, cells = read_delimited(path, expected=_EXPECTED, check_header=header.extend, keep=bool)
    found = [name for name in header if name.lower() in IDS]
    if not found:
        raise TableError(f"{path}: no column of ids. Write {_EXPECTED}.")
    own = min(found, key=lambda name: IDS.index(name.lower()))
    subjects = cells.pop(own)
    failures = [
        f"line {n}: no id of the subject" for n, s in zip(lines, subjects, strict=True) if not s
    ]
    if repeated := sorted({s for s in subjects if s and subjects.count(s) > 1}):
        failures.append(
            f"several rows of {listed([quote(s) for s in repeated])}. Keep one row a subject"
        )
    if "" in header:
        failures.append("a column without a name. Name it, or take it out")
    if not cells:
        failures.append(f"no measure in it. Write {_EXPECTED}")
    columns: dict[str, object] = {}
    for name, column in cells.items():
        columns[name] = _column(name, column, lines, failures)
    check_all([f"{path}: {one}." for one in failures], TableError, f"{path}: not read")
    return pd.DataFrame(columns, index=pd.Index(list(subjects), name="subject", dtype=object))


def _column(name: str, cells: Sequence[str], lines: Sequence[int], failures: list[str]) -> object:
    """Numbers where most cells are, else words."""
    numbers = [np.nan if is_missing(text) else plain_number(text) for text in cells]
    bad = [k for k, value in enumerate(numbers) if value is None]
    if not bad:
        return np.array(numbers, dtype=np.float64)
    present = sum(not is_missing(text) for text in cells)
    words = sorted({text for text in cells if not is_missing(text)})
    if len(bad) == present and len(words) <= _WORDS:
        return np.array([None if is_missing(text) else text for text in cells], dtype=object)
    shown = listed([f"{quote(cells[k])} (line {lines[k]})" for k in bad])
    failures.append(
        f"column {quote(name)} holds {shown}, expected finite numbers or words of two kinds. Write "
        "numbers, n/a for a missing one, or take the column out"
    )
    return None
