"""Participants tables that are written and read, with every rule checked."""

import json

import pandas as pd
import pytest

from scalebrain.errors import TableError
from scalebrain.io.guard import RULES
from scalebrain.io.participants import read_participants

COLUMNS = [
    "subject",
    "session",
    "age",
    "age_censored",
    "sex",
    "cohort",
    "group",
    "days_post_stroke",
    "icv",
    "motor_score",
    "motor_scale",
    "lesion_side",
    "paresis_side",
]
SCALES = {
    "motor_score": {
        "Scales": {
            "FMA-UE": {"Maximum": 66, "HigherIsBetter": True},
            "NIHSS": {"Maximum": 42, "HigherIsBetter": False},
        }
    }
}


def write(folder, header, *rows, sidecar=None, name="participants.tsv"):
    path = folder / name
    separator = "\t" if name.lower().endswith(".tsv") else ","
    path.write_bytes("\n".join(separator.join(row) for row in (header, *rows)).encode() + b"\n")
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def read(folder, header, *rows, **kwargs):
    found = read_participants(write(folder, header, *rows, **kwargs), default_cohort="here")
    assert list(found.table) == COLUMNS
    assert isinstance(found.table.index, pd.RangeIndex)
    for problem in found.rejected:
        assert RULES[problem.code].action == "E"
    for problem in (*found.rejected, *found.warnings):
        assert problem.subject in problem.message
        assert problem.file == str(folder / kwargs.get("name", "participants.tsv"))
        assert problem.message.endswith(".")
    return found


def cell(folder, column, text, **kwargs):
    """Row of `sub-01` with one cell, and of `sub-02` without anything odd."""
    good = {"sex": "F", "group": "stroke", "cohort": "A"}.get(column, "n/a")
    if column == "age":
        return read(folder, ["participant_id", "age"], ["sub-01", text], ["sub-02", "60"], **kwargs)
    header = ["participant_id", "age", column]
    return read(folder, header, ["sub-01", "60", text], ["sub-02", "61", good], **kwargs)


def check_rejected(found, code, *words):
    """Only `sub-01`, in line 2, is rejected, with a code and words of the message."""
    assert [(p.subject, p.code) for p in found.rejected] == [("sub-01", code)]
    assert list(found.table.subject) == ["sub-02"]
    for word in ("line 2", *words):
        assert word in found.rejected[0].message


def stops(folder, header, *rows, code="", words=(), **kwargs):
    path = write(folder, header, *rows, **kwargs)
    with pytest.raises(TableError) as caught:
        read_participants(path, default_cohort="here")
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)
