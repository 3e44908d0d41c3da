"""Find the tables of a dataset that lies in a folder."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from scalebrain.errors import Problem, TableError, check_all
from scalebrain.io.biobank import is_withdrawal_list
from scalebrain.io.enigma import names_of
from scalebrain.io.participants import Participants, read_participants
from scalebrain.io.sessions import session_columns
from scalebrain.io.tree import Findings, Tree

__all__ = ["find_people", "find_table", "read_description"]

_ATLAS = re.compile(r"sub-(r\d+)s\d+")


def find_people(
    tree: Tree, found: Findings, *, id_column: str, name: str
) -> tuple[Participants, str]:
    """Find and read the table of a folder; ATLAS, which has none, gets one.

    Parameters
    ----------
    tree
        Root of the dataset.
    found
        What lies in it.
    id_column
        Column, in lower case, that tells the table where it is not participants.tsv or .csv.
    name
        Cohort of every row when the table names none.

    Returns
    -------
    people : Participants
        The table.
    unlesioned : str
        Group of a scan without a lesion mask, when the table names no group.

    Raises
    ------
    TableError
        When there is no table, or more than one.
    ImageError
        When it is a link that leaves the dataset or leads to nothing.
    """
    table = find_table(tree, id_column=id_column)
    if table is not None:
        needs_age = not _ages_are_of_sessions(tree, found, table)
        return read_participants(table, default_cohort=name, needs_age=needs_age), "reference"
    if found.visits and all(map(_ATLAS.fullmatch, found.visits)):
        return _make_table(sorted(found.visits)), ""
    if not found.visits:
        check_all(
            [problem.message for problem in found.rejected],
            TableError,
            f"{tree.root}: nothing in it can be used",
        )
    raise TableError(
        f"{tree.root / 'participants.tsv'}: missing. Write one row a subject with "
        "participant_id, age (years), sex, cohort."
    )


def _ages_are_of_sessions(tree: Tree, found: Findings, table: Path) -> bool:
    """Tell whether tables of sessions have ages, and the table of the people none."""
    names = {*names_of("age")}
    if not table.is_file() or names & {name.lower() for name in _read_header(table)}:
        return False
    return any(names & columns for columns in session_columns(tree.root, found).values())


def find_table(tree: Tree, *, id_column: str) -> Path | None:
    """Find the table of a folder, without reading it.

    Parameters
    ----------
    tree
        Root of the dataset.
    id_column
        As of :func:`find_people`.

    Returns
    -------
    Path or None
        The table; None when there is none.

    Raises
    ------
    TableError
        When there is more than one.
    ImageError
        When it, or its JSON, is a link that leaves the dataset or leads to nothing.
    """
    tables = [tree.root / f"participants{ending}" for ending in (".tsv", ".csv")]
    tables = [path for path in tables if os.path.lexists(path)][:1]
    tables = tables or _tables_with(tree, id_column)
    if len(tables) > 1:
        raise TableError(
            f"{tree.root}: several tables with a column {id_column}: "
            f"{', '.join(tree.shown(path) for path in tables)}. Name one participants.tsv."
        )
    if not tables:
        return None
    for path in (tables[0], tables[0].with_suffix(".json")):
        if os.path.lexists(path):
            tree.check_file(path)
    return tables[0]


def _tables_with(tree: Tree, column: str) -> list[Path]:
    """Tables in the root with a column; lists of withdrawals are none."""
    tables = []
    for entry in tree.entries(tree.root):
        if entry.name.lower().endswith((".tsv", ".csv")) and entry.is_file():
            header = _read_header(Path(entry.path))
            known = column in (name.lower() for name in header)
            if known and not is_withdrawal_list(entry.name, header):
                tables.append(Path(entry.path))
    return tables


def _make_table(people: list[str]) -> Participants:
    """Rows of ATLAS, which has ids alone: the cohort is in them."""
    cohorts = [match[1].upper() for match in map(_ATLAS.fullmatch, people) if match]
    numbers = dict.fromkeys(("days_post_stroke", "icv", "motor_score"), np.nan)
    table = pd.DataFrame(
        {
            "subject": people,
            "session": "",
            "age": np.nan,
            "age_censored": False,
            "sex": "",
            "cohort": cohorts,
            "group": "",
            **numbers,
            "motor_scale": "",
            "lesion_side": "",
            "paresis_side": "",
        }
    )
    message = (
        "no participants.tsv: an ATLAS dataset, taken without age, sex and motor score. Models "
        "that need them leave these scans out; write participants.tsv to add them."
    )
    return Participants(table, (), (Problem("", "missing-covariate", message),))


def read_description(tree: Tree) -> Mapping[str, object]:
    """Read dataset_description.json.

    Parameters
    ----------
    tree
        Root of the dataset.

    Returns
    -------
    Mapping
        Its content; nothing when there is no such file.

    Raises
    ------
    TableError
        When it is not a JSON object.
    ImageError
        When it is a link that leaves the dataset or leads to nothing.
    """
    path = tree.root / "dataset_description.json"
    if not os.path.lexists(path):
        return {}
    tree.check_file(path)
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: not valid JSON: {error}. Correct it, or take it out.") from error
    if not isinstance(description, dict):
        raise TableError(f"{path}: expected a JSON object. Correct it, or take it out.")
    return description


def _read_header(path: Path) -> list[str]:
    """Names of the columns of a table; none when it is empty."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            line = file.readline(1 << 20)
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check its permissions."
        ) from error
    return [name.strip().strip('"') for name in re.split(r"[\t,;]", line.strip()) if name.strip()]
