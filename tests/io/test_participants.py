"""Tests of participants tables: each rule of the guard with its code, message and way out."""

import json
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


# whole tables


@pytest.mark.parametrize("name", ["participants.tsv", "participants.csv"])
def test_read_participants__round_trip_against_pandas(tmp_path, name):
    rng = np.random.default_rng(3)
    n = 50
    good = pd.DataFrame(
        {
            "subject": [f"sub-{i:03d}" for i in range(n)],
            "session": rng.choice(["ses-1", "ses-2"], n),
            "age": rng.uniform(18, 95, n).round(3),
            "age_censored": False,
            "sex": rng.choice(["F", "M"], n),
            "cohort": rng.choice(["Zürich", 'quo"ted', "a, b"], n),
            "group": rng.choice(["reference", "stroke"], n),
            "days_post_stroke": rng.integers(0, 4000, n).astype(float),
            "icv": rng.uniform(1000, 2000, n),
            "motor_score": rng.uniform(0, 1, n),
            "lesion_side": rng.choice(["L", "bilateral", "midline", ""], n),
            "paresis_side": rng.choice(["R", ""], n),
        }
    )
    good.loc[[3, 7], ["days_post_stroke", "icv", "motor_score"]] = np.nan
    shuffled = good.rename(columns={"subject": "participant_id"}).drop(columns="age_censored")
    shuffled = shuffled.assign(comment="x")[[*shuffled.columns[::-1].tolist(), "comment"]]
    path = tmp_path / name
    shuffled.to_csv(path, sep="\t" if name.endswith("tsv") else ",", index=False, na_rep="n/a")
    found = read_participants(path, default_cohort="unused")
    pd.testing.assert_frame_equal(found.table, good)
    assert found.rejected == found.warnings == ()


def test_read_participants__bom_crlf_blank_lines_quotes(tmp_path):
    path = tmp_path / "participants.TSV"
    text = '\ufeff"Participant_ID"\t AGE \r\n\r\n 01 \t"60"\r\n\t\r\nsub-02\t61\r\n\r\n'
    path.write_bytes(text.encode())
    found = read_participants(path, default_cohort="here")
    assert list(found.table.subject) == ["sub-01", "sub-02"]
    assert list(found.table.age) == [60, 61]
    assert list(found.table.cohort) == ["here", "here"]
    assert list(found.table.group) == ["", ""]


def test_read_participants__lines_count_blank_ones(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tage\n\nsub-01\tx\n")
    found = read_participants(path, default_cohort="here")
    assert "line 3" in found.rejected[0].message
    assert found.table.empty
    assert list(found.table) == COLUMNS
    assert found.table.age.dtype == float
    assert found.table.age_censored.dtype == bool


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no header"),
        (b"\n\n", "no header"),
        (b"participant_id\tage\n", "no row"),
        (b"participant_id\tage\n\t\n\n", "no row"),
        (b"\xff\xfep\x00a\x00", "UTF-8"),
        (b"participant_id\tage\nsub-\xe9\t6\n", "Save it as UTF-8"),
        (b"name\tage\nx\t60\n", "no column of ids (participant_id, bids_id, eid, subject)"),
        (b"participant_id\tsex\nx\tF\n", "no column of ages (age, 21003-2.0)"),
        (b"participant_id;age\nx;60\n", "another separator"),
        (b"participant_id\tage\tAge\nx\t60\t60\n", "several columns named 'age'"),
        (b"participant_id\tage\nx\t60\ty\n", "3 in line 2"),
        (b"participant_id\tage\nx\t60\n\ny\n", "1 in line 4"),
        (b'participant_id\tage\n"x\t60\n', "quote"),
        (b'participant_id\tage\n"x"y\t60\n', "quote"),
        (b'participant_id\tage\nx\t60"\n"\ny"\t60\n', "from line 3 to line 4"),
        (b"participant_id\tage\n" + b"x" * 200_000 + b"\t60\n", "field"),
        (b"PK\x03\x04\x00\x00\x08", "no column of ids"),
    ],
)
def test_read_participants__stops_for_bad_tables(tmp_path, content, words):
    path = tmp_path / "participants.tsv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=re.escape(words)) as caught:
        read_participants(path, default_cohort="here")
    assert str(path) in str(caught.value)


def test_read_participants__a_stray_quote_pair_never_hides_rows(tmp_path):
    path = tmp_path / "participants.csv"
    path.write_text('participant_id,age,note\n01,60,"a\n02,61,b\n03,62,"\n')
    with pytest.raises(TableError, match="from line 2 to line 4"):
        read_participants(path, default_cohort="here")


def test_read_participants__stops_for_missing_files_and_folders(tmp_path):
    with pytest.raises(TableError, match=r"missing\. Write one row a subject") as caught:
        read_participants(tmp_path / "participants.tsv", default_cohort="here")
    assert caught.value.code == "unreadable"
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(TableError, match="cannot be read") as caught:
        read_participants(tmp_path / "folder.tsv", default_cohort="here")
    assert caught.value.code == "unreadable"
    with pytest.raises(TableError, match=r"\.tsv \(tabs\) or \.csv"):
        read_participants(tmp_path / "participants.xlsx", default_cohort="here")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"age": "years"}',
        b'{"age": {"Units": 3}}',
        b'{"age": 1' + b"0" * 5000 + b"}",
        b'{"sex": {"Levels": ["F"]}}',
        b'{"motor_score": {"Scales": 5}}',
    ],
)
def test_read_participants__stops_for_bad_sidecars(tmp_path, content):
    path = write(tmp_path, ["participant_id", "age", "sex", "motor_score"], ["1", "6", "F", "1"])
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(TableError, match=r"participants\.json"):
        read_participants(path, default_cohort="here")


def test_read_participants__two_columns_of_one_variable(tmp_path):
    header = ["participant_id", "age", "cohort", "site"]
    same = read(tmp_path, header, ["1", "60", "A", "A"], ["2", "60", "B", " B"])
    assert list(same.table.cohort) == ["A", "B"]
    words = ("cohort and site", "line 3", "'B'", "'C'", "Take one")
    stops(tmp_path, header, ["1", "60", "A", "A"], ["2", "60", "B", "C"], words=words)


# ids


def test_read_participants__duplicate_ids(tmp_path):
    found = read(
        tmp_path,
        ["participant_id", "age", "sex"],
        ["01", "60", "F"],
        ["sub-02", "60", "F"],
        ["sub-01", "61", "F"],
        ["sub-aB", "62", "F"],
        ["AB", "62", "9"],
    )
    assert list(found.table.subject) == ["sub-02"]
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-01", "duplicate-id"),
        ("sub-01", "duplicate-id"),
        ("sub-aB", "duplicate-id"),
        ("sub-AB", "duplicate-id"),
        ("sub-AB", "sex-coded"),
    ]
    for words in ("'01' in line 2", "'sub-01' in line 4", "Keep one"):
        assert words in found.rejected[0].message
    assert "'sub-aB' in line 5, 'AB' in line 6" in found.rejected[2].message


def test_read_participants__sessions(tmp_path):
    header = ["participant_id", "SES", "age"]
    found = read(
        tmp_path,
        header,
        ["01", "1", "60"],
        ["sub-01", "ses-2", "n/a"],
        ["01", "3", ""],
        ["02", "n/a", "60"],
        ["03", "a", "60"],
        ["03", "ses-A", "61"],
        ["03", "b", "61"],
        ["04", "ses-../x", "61"],
        ["05", "1", "60"],
        ["SUB-05", "2", "60"],
    )
    assert list(zip(found.table.subject, found.table.session, strict=True)) == [
        ("sub-01", "ses-1"),
        ("sub-01", "ses-2"),
        ("sub-01", "ses-3"),
        ("sub-02", ""),
        ("sub-03", "ses-b"),
    ]
    codes = [p.code for p in found.rejected]
    assert codes == ["duplicate-id"] * 2 + ["bad-id"] + ["duplicate-id", "bad-id", "duplicate-id"]
    assert "'ses-../x'" in found.rejected[2].message
    assert [p.code for p in found.warnings] == ["missing-covariate"]
    assert "line 3" in found.warnings[0].message


def test_read_participants__warns_for_the_row_that_stays(tmp_path):
    found = read(
        tmp_path,
        ["participant_id", "session", "age", "icv"],
        ["01", "1", "n/a", "-5"],
        ["01", "2", "n/a", "1500"],
    )
    assert [p.message.split(":")[0] for p in found.warnings] == ["sub-01 in line 3"]


@pytest.mark.parametrize(
    "text",
    [
        "sub-01 b",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "a" * 300,
        "sub-" + "a" * 65,
        "sub-",
        "sub-sub-01",
        "SUB-02",
        "a+b",
        "=cmd()",
        "é",
        "٣",
        "a\x00b",
        "\x1b[31m",
        "\u202eabc",
        "-1",
        "n/a",
        "",
    ],
)
def test_read_participants__bad_ids(tmp_path, text):
    found = read(tmp_path, ["participant_id", "age"], [text, "60"], ["sub-03", "60"])
    assert list(found.table.subject) == ["sub-03"]
    (problem,) = found.rejected
    assert problem.code == "bad-id"
    assert "in line 2" in problem.message
    assert "Write sub-<label>" in problem.message
    assert problem.subject.startswith(("'", '"'))
    assert (problem.subject + problem.message).isprintable()
    assert len(problem.message) < 400


# age


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("63,5", "a decimal comma? Write 63.5"),
        ("1950-04-30", "a date?"),
        ("30.04.1950", "a date?"),
        ("4/30/1950", "a date?"),
        ("1950-04", "a date?"),
        ("19500430", "a date"),
        ("1950", "a year of birth"),
        ("720", "In months? Divide by 12 and write years: 60.0"),
        ("121", "In months?"),
        ("22000", "In days? Divide by 365.25 and write years: 60.2"),
        ("720 months", "in months? Divide by 12"),
        ("720mo", "in months?"),
        ("22000 d", "in days?"),
        ("60 years", "in years? Write the number alone: 60"),
        ("060Y", "in years? Write the number alone: 60"),
        (">720", "In months?"),
    ],
)
def test_read_participants__age_unit(tmp_path, text, words):
    found = cell(tmp_path, "age", text)
    check_rejected(found, "age-unit", words, repr(text))


@pytest.mark.parametrize(
    "text",
    ["sixty", "-3", "1e999", "inf", "-inf", "1e30", "6_0", "٦٠", "0x3c", "+", ".", "x" * 999],
)
def test_read_participants__age_that_is_no_number(tmp_path, text):
    found = cell(tmp_path, "age", text)
    check_rejected(found, "bad-number", repr(text)[:60], "or n/a")
    assert len(found.rejected[0].message) < 300


@pytest.mark.parametrize(
    ("column", "guess"), [(("708", "744"), "months"), (("22000", "19000"), "days")]
)
def test_read_participants__guesses_from_all_ages(tmp_path, column, guess):
    rows = [[f"{i}", age] for i, age in enumerate((*column, "1950"))]
    found = read(tmp_path, ["participant_id", "age"], *rows)
    assert found.table.empty
    assert [p.code for p in found.rejected] == ["age-unit"] * 3
    assert all(guess in p.message for p in found.rejected)


@pytest.mark.parametrize("units", ["months", "Days", "weeks", "decades"])
def test_read_participants__age_units_of_the_sidecar(tmp_path, units):
    header, sidecar = ["participant_id", "Age"], {"Age": {"Units": units}}
    rows = (["1", "60"], ["2", "n/a"], ["3", "89+"])
    found = read(tmp_path, header, *rows, sidecar=sidecar)
    assert list(found.table.subject) == ["sub-2"]
    assert [p.code for p in found.rejected] == ["age-unit", "age-unit"]
    assert f"in {units!r}, as the sidecar says. Convert" in found.rejected[0].message


@pytest.mark.parametrize("units", ["years", "Year", "y", ""])
def test_read_participants__age_in_years_by_the_sidecar(tmp_path, units):
    assert not cell(tmp_path, "age", "59.5", sidecar={"age": {"Units": units}}).rejected


@pytest.mark.parametrize(
    ("text", "age"), [("89+", 89), (">89", 89), ("90+", 90), ("> 89", 89), (">=90.5", 90.5)]
)
def test_read_participants__censored_ages(tmp_path, text, age):
    table = cell(tmp_path, "age", text).table
    assert list(table.age) == [age, 60]
    assert list(table.age_censored) == [True, False]


@pytest.mark.parametrize("text", ["18-38", "18 - 38", "18–38", "18 to 38", "<18"])
def test_read_participants__age_ranges(tmp_path, text):
    check_rejected(cell(tmp_path, "age", text), "age-range", repr(text), "Write the age")


@pytest.mark.parametrize("text", ["n/a", "", "NaN", "nan", "NA", "N/A"])
def test_read_participants__missing_cells(tmp_path, text):
    found = cell(tmp_path, "age", text)
    assert not found.rejected
    assert np.isnan(found.table.age[0])
    assert [(p.subject, p.code) for p in found.warnings] == [("sub-01", "missing-covariate")]
    assert "line 2" in found.warnings[0].message
    for column in ("icv", "days_post_stroke", "motor_score", "sex", "lesion_side", "paresis_side"):
        found = cell(tmp_path, column, text)
        assert not found.rejected
        assert not found.warnings
        value = found.table[column][0]
        assert value == "" if isinstance(value, str) else np.isnan(value)


# other numbers


@pytest.mark.parametrize(
    ("column", "text", "words"),
    [
        ("icv", "1500000", "In mm3? Divide by 1000: 1500.0"),
        ("icv", "1.5", "In liters? Multiply by 1000: 1500.0"),
        ("icv", "0", "500 to 3000 mL"),
        ("icv", "1500,5", "A decimal comma? Write 1500.5"),
        ("days_post_stroke", "-1", "0 to 43830 days"),
        ("days_post_stroke", "3 months", "Write days as in"),
        ("days_post_stroke", "1e999", "not a finite number"),
        ("days_post_stroke", "inf", "not a finite number"),
        ("motor_score", "-0.1", "0 to 1"),
        ("motor_score", "inf", "not a finite number"),
        ("motor_score", "0,5", "Write 0.5"),
        ("normed_motor", "1.01", "0 to 1"),
        ("motor_score", "good", "n/a"),
    ],
)
def test_read_participants__bad_numbers(tmp_path, column, text, words):
    check_rejected(cell(tmp_path, column, text), "bad-number", repr(text), words)


def test_read_participants__units_of_the_sidecar_are_never_converted(tmp_path):
    found = cell(
        tmp_path, "days_post_stroke", "6", sidecar={"days_post_stroke": {"Units": "months"}}
    )
    check_rejected(found, "bad-number", "'months'", "Convert the column to days")
    for units in ("mL", "cm3"):
        assert not cell(tmp_path, "icv", "1500", sidecar={"icv": {"Units": units}}).rejected
    found = cell(tmp_path, "icv", "1500000", sidecar={"icv": {"Units": "mm3"}})
    check_rejected(found, "bad-number", "'mm3'", "Convert the column to mL")


def test_read_participants__every_problem_of_a_row(tmp_path):
    header = ["participant_id", "age", "sex", "icv"]
    found = read(tmp_path, header, ["b", "720", "7", "0"], ["a", "x", "F", "1500"])
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-b", "age-unit"),
        ("sub-b", "sex-coded"),
        ("sub-b", "bad-number"),
        ("sub-a", "bad-number"),
    ]


# words


@pytest.mark.parametrize(
    ("text", "sex"), [("F", "F"), ("m", "M"), ("Female", "F"), ("MALE", "M"), ("n/a", "")]
)
def test_read_participants__sex(tmp_path, text, sex):
    assert cell(tmp_path, "sex", text).table.sex[0] == sex


@pytest.mark.parametrize("text", ["1", "0", "O", "other", "fem", "U"])
def test_read_participants__sex_coded(tmp_path, text):
    found = cell(tmp_path, "sex", text)
    check_rejected(found, "sex-coded", f"sex {text!r}", "Write F, M or n/a", '"Levels"')


def test_read_participants__sex_by_levels(tmp_path):
    levels = {
        "1": "male",
        "2": {"Description": "Female (self-reported)"},
        "3": "other than male or female",
        "O": "other",
        "M": "mujer",
    }
    texts = ["1", "2", "2.0", "o", "3", "F", "M", "4"]
    rows = [[f"{i}", "60", text] for i, text in enumerate(texts)]
    header = ["participant_id", "age", "sex"]
    found = read(tmp_path, header, *rows, sidecar={"sex": {"Levels": levels}})
    assert list(found.table.sex) == ["M", "F", "F", "", "", "F", ""]
    assert [(p.subject, p.code) for p in found.rejected] == [("sub-7", "sex-coded")]
    assert [(p.subject, p.code) for p in found.warnings] == [
        (f"sub-{i}", "missing-covariate") for i in (3, 4, 6)
    ]
    assert "'other' by the sidecar" in found.warnings[0].message


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("reference", "reference"),
        ("Control", "reference"),
        ("HEALTHY", "reference"),
        ("stroke", "stroke"),
        ("Patient", "stroke"),
    ],
)
def test_read_participants__group(tmp_path, text, group):
    assert cell(tmp_path, "group", text).table.group[0] == group


@pytest.mark.parametrize("text", ["tumor", "1", "n/a", ".0"])
def test_read_participants__other_groups(tmp_path, text):
    check_rejected(cell(tmp_path, "group", text), "bad-number", "Write reference or stroke")


def test_read_participants__group_by_levels(tmp_path):
    sidecar = {"group": {"Levels": {"1": "Stroke", "stroke": "one unilateral stroke"}}}
    found = cell(tmp_path, "group", "1.0", sidecar=sidecar)
    assert list(found.table.group) == ["stroke", "stroke"]


@pytest.mark.parametrize("text", ["", "n/a", "a\x07b", "a\u202eb"])
def test_read_participants__bad_cohorts(tmp_path, text):
    words = "cohort is missing" if text in ("", "n/a") else "control characters"
    check_rejected(cell(tmp_path, "cohort", text), "bad-number", words)


def test_read_participants__long_cohorts(tmp_path):
    assert list(cell(tmp_path, "cohort", "é" * 300).table.cohort) == ["é" * 100, "A"]
    header = ["participant_id", "age", "site"]
    rows = (["1", "60", "x" * 100 + "1"], ["2", "60", "x" * 100 + "2"], ["3", "60", "B"])
    found = read(tmp_path, header, *rows)
    assert list(found.table.cohort) == ["B"]
    assert "Shorten both" in found.rejected[0].message


@pytest.mark.parametrize(
    ("text", "side"),
    [("L", "L"), ("right", "R"), ("Both", "bilateral"), ("brainstem", "midline"), ("none", "")],
)
def test_read_participants__lesion_side(tmp_path, text, side):
    assert cell(tmp_path, "lesion_hemisphere", text).table.lesion_side[0] == side


def test_read_participants__other_sides(tmp_path):
    check_rejected(
        cell(tmp_path, "lesion_side", "1"), "bad-number", "lesion side '1'", "Write L, R"
    )
    check_rejected(
        cell(tmp_path, "paresis_side", "up"), "bad-number", "paresis side 'up'", "or n/a"
    )
    found = cell(tmp_path, "lesion_side", "1", sidecar={"lesion_side": {"Levels": {"1": "Left"}}})
    assert found.table.lesion_side[0] == "L"


def test_read_participants__paresis_on_the_side_of_the_lesion(tmp_path):
    header = ["participant_id", "age", "lesion_side", "paresis_side"]
    sides = ["L L", "R right", "L R", "n/a n/a", "bilateral L", "midline R"]
    rows = [[f"{i}", "60", *pair.split()] for i, pair in enumerate(sides)]
    found = read(tmp_path, header, *rows)
    assert not found.rejected
    assert [(p.subject, p.code) for p in found.warnings] == [
        ("sub-0", "paresis-side"),
        ("sub-1", "paresis-side"),
    ]
    assert "lesion side R and paresis side R" in found.warnings[1].message
    assert "line 3" in found.warnings[1].message


# motor scales


def test_read_participants__mixed_scales_stop(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    way = ("participants.json", '"Scales"', "HigherIsBetter")
    rows = (["1", "60", "0.5", "FMA-UE"], ["2", "60", "0.4", "nihss"])
    stops(tmp_path, header, *rows, code="mixed-scales", words=("'FMA-UE'", "'nihss'", *way))
    rows = (["1", "60", "50", "FMA-UE"], ["2", "60", "n/a", "NIHSS"])
    stops(tmp_path, header, *rows, code="mixed-scales", words=("'50'", "'FMA-UE'", *way))
    rows = (["1", "60", "50"], ["2", "60", "0.5"])
    stops(tmp_path, header[:3], *rows, code="mixed-scales", words=("'50'", *way))


def test_read_participants__one_scale_of_0_to_1_needs_no_declaration(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    rows = (["1", "60", "0.5", "FMA-UE"], ["2", "60", "1", "fma-ue"], ["3", "60", "n/a", "NIHSS"])
    found = read(tmp_path, header, *rows)
    np.testing.assert_array_equal(found.table.motor_score, [0.5, 1, np.nan])


def test_read_participants__declared_scales(tmp_path):
    header = ["participant_id", "age", "motor_score", "motor_scale"]
    rows = (
        ["1", "60", "33", "FMA-UE"],
        ["2", "60", "0", "nihss"],
        ["3", "60", "42", "NIHSS"],
        ["4", "60", "n/a", "n/a"],
        ["5", "60", "67", "FMA-UE"],
        ["6", "60", "5", "n/a"],
        ["7", "60", "1", "FMA-UE"],
    )
    found = read(tmp_path, header, *rows, sidecar=SCALES)
    np.testing.assert_array_equal(found.table.motor_score, [0.5, 1, 0, np.nan, 1 / 66])
    assert [(p.subject, p.code) for p in found.rejected] == [
        ("sub-5", "bad-number"),
        ("sub-6", "bad-number"),
    ]
    assert "motor_score of 'FMA-UE' '67' is outside" in found.rejected[0].message
    assert "no motor_scale. Write one of 'FMA-UE', 'NIHSS'" in found.rejected[1].message


def test_read_participants__declared_scale_without_a_column(tmp_path):
    header, row = ["participant_id", "age", "motor_score"], ["1", "60", "33"]
    one = {"motor_score": {"Scales": {"FMA": {"Maximum": 66.0, "HigherIsBetter": True}}}}
    assert read(tmp_path, header, row, sidecar=one).table.motor_score[0] == 0.5
    words = ("'FMA-UE', 'NIHSS'", "column motor_scale")
    stops(tmp_path, header, row, sidecar=SCALES, code="mixed-scales", words=words)


def test_read_participants__undeclared_scale_beside_declared_ones(tmp_path):
    header, row = ["participant_id", "age", "motor_score", "motor_scale"], ["1", "60", "3", "ARAT"]
    words = ("'ARAT'", "'NIHSS'", "Declare each one")
    stops(tmp_path, header, row, sidecar=SCALES, code="mixed-scales", words=words)


@pytest.mark.parametrize(
    "scale",
    [
        5,
        {},
        {"Maximum": 0, "HigherIsBetter": True},
        {"Maximum": float("nan"), "HigherIsBetter": True},
        {"Maximum": float("inf"), "HigherIsBetter": True},
        {"Maximum": 10**400, "HigherIsBetter": True},
        {"Maximum": True, "HigherIsBetter": True},
        {"Maximum": "66", "HigherIsBetter": True},
        {"Maximum": 66, "HigherIsBetter": "yes"},
    ],
)
def test_read_participants__bad_declarations(tmp_path, scale):
    header, row = ["participant_id", "age", "motor_score"], ["1", "60", "3"]
    sidecar = {"motor_score": {"Scales": {"X": scale}}}
    words = ("scale 'X'", "Maximum above 0")
    stops(tmp_path, header, row, sidecar=sidecar, code="mixed-scales", words=words)


# known tables


def test_read_participants__enigma(tmp_path):
    header = ["BIDS_ID", "SES", "SITE", "AGE", "SEX", "DAYS_POST_STROKE", "CHRONICITY"]
    header += ["LESIONED_HEMISPHERE", "NORMED_MOTOR", "PARETIC_SIDE"]
    rows = [
        f"sub-r001s00{i} ses-1 R001 60 F {days} 180 {code} 0.5 {paresis}".split()
        for i, (days, code, paresis) in enumerate(
            [
                ("90", "1", "R"),
                ("NA", "2", "L"),
                ("NA", "3.0", "NA"),
                ("NA", "4", "left"),
                ("NA", "5", "NA"),
                ("NA", "6", "NA"),
                ("NA", "7", "NA"),
                ("NA", "1", "Left"),
            ]
        )
    ]
    found = read(tmp_path, header, *rows, name="enigma.csv")
    table = found.table
    assert list(table.lesion_side) == ["L", "R", "bilateral", "midline", "midline", "", "L"]
    np.testing.assert_array_equal(table.days_post_stroke, [90] + [np.nan] * 6)
    assert set(table.group) == {"stroke"}
    assert set(table.cohort) == {"R001"}
    assert set(table.session) == {"ses-1"}
    assert [(p.subject, p.code) for p in found.rejected] == [("sub-r001s006", "bad-number")]
    assert [(p.subject, p.code) for p in found.warnings] == [("sub-r001s007", "paresis-side")]


def test_read_participants__enigma_group_column_wins(tmp_path):
    header = ["BIDS_ID", "AGE", "LESIONED_HEMISPHERE", "GROUP"]
    found = read(tmp_path, header, ["1", "60", "", "control"], ["2", "60", "1", "stroke"])
    assert list(found.table.group) == ["reference", "stroke"]


def test_read_participants__enigma_normed_motor_of_several_scales(tmp_path):
    header = ["BIDS_ID", "AGE", "NORMED_MOTOR", "MOTOR_SCALE"]
    found = read(tmp_path, header, ["1", "60", "0.2", "FMA-UE"], ["2", "60", "0.3", "NIHSS"])
    assert list(found.table.motor_score) == [0.2, 0.3]


def test_read_participants__uk_biobank(tmp_path):
    header = ["eid", "31-0.0", "21003-2.0", "54-2.0", "26521-2.0", "999-0.0"]
    found = read(
        tmp_path,
        header,
        ["1234567", "0", "63", "11025", "1512345.6", ""],
        ["1234568", "1", "64", "11026", "", "x"],
        ["1234569", "2", "64", "11026", "", ""],
        ["1234560", "1", "64", "11026", "1500", ""],
        name="ukb.csv",
    )
    assert list(found.table.subject) == ["sub-1234567", "sub-1234568"]
    assert list(found.table.sex) == ["F", "M"]
    assert list(found.table.cohort) == ["11025", "11026"]
    np.testing.assert_allclose(found.table.icv, [1512.3456, np.nan], rtol=1e-12)
    assert [p.code for p in found.rejected] == ["sex-coded", "bad-number"]


# properties

WORDS = st.sampled_from(
    [
        "60",
        "89+",
        "18-38",
        "720",
        "1e999",
        "-1",
        "inf",
        "n/a",
        "F",
        "M",
        "1",
        "0",
        "stroke",
        "R",
        "control",
        "L",
        "3",
        "sub-01",
        "01",
        "ses-1",
        "1500",
        "0.5",
        "63,5",
        ">89",
        "=1+1",
        '"a"',
        "\u202e",
        "FMA-UE",
        ".0",
        "1.0",
    ]
)
CELLS = st.one_of(WORDS, WORDS, st.text(max_size=12))
USUAL = {
    "session_id": ["", "1", "ses-2"],
    "age": ["60", "71.5", "89+", "n/a", "0", "120"],
    "sex": ["F", "male", ""],
    "cohort": ["A", "B b", "é"],
    "group": ["stroke", "Control"],
    "days_post_stroke": ["0", "4000", "n/a", "1e2"],
    "icv": ["1500", "500", ""],
    "motor_score": ["0", "1", "0.5", "n/a"],
    "motor_scale": ["FMA-UE"],
    "lesion_side": ["L", "right", "Both", "n/a"],
    "paresis_side": ["L", "R", ""],
    "NORMED_MOTOR": ["0.2", "1", "NA"],
    "LESIONED_HEMISPHERE": ["1", "2", "6.0", "NA"],
    "26521-2.0": ["1500000", "2999999.9", ""],
    "AGE": ["60", "71.5"],
}
HEADER = ["participant_id", *list(USUAL)[:-4]]
ENIGMA = ["BIDS_ID", "AGE", "NORMED_MOTOR", "LESIONED_HEMISPHERE", "26521-2.0"]


def odd_rows(header):
    """Rows of usual cells, about one in thirty of them odd."""
    one = {name: st.sampled_from(USUAL.get(name, ["01", "2", "sub-3", "x4"])) for name in header}
    return st.lists(
        st.tuples(
            *(st.integers(0, 29).flatmap(lambda n, c=c: c if n else CELLS) for c in one.values())
        ),
        min_size=1,
        max_size=6,
    )


@given(
    table=st.sampled_from([HEADER, ENIGMA]).flatmap(
        lambda header: odd_rows(header).map(lambda rows: [header, *rows])
    ),
    declared=st.booleans(),
)
def test_read_participants__random_cells_never_pass_unchecked(table, declared):
    # No quoting and no escape: separators, quotes and line breaks fall where they may.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "participants.tsv"
        text = "\n".join("\t".join(row) for row in table)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        if declared:
            path.with_suffix(".json").write_text(json.dumps(SCALES))
        try:
            found = read_participants(path, default_cohort="here")
        except TableError:
            return
    check_safe(found)


@given(age=st.lists(CELLS, min_size=1, max_size=5), other=CELLS, column=st.sampled_from(HEADER[3:]))
def test_read_participants__one_random_column_never_passes_unchecked(age, other, column):
    rows = pd.DataFrame({"participant_id": range(len(age)), "age": age, column: other})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "participants.csv"
        path.write_bytes(rows.to_csv(index=False).encode("utf-8", "surrogatepass"))
        try:
            found = read_participants(path, default_cohort="here")
        except TableError:
            return
    check_safe(found)
    rejected = {p.subject for p in found.rejected}
    assert len(rejected) + len(found.table) == len(rows)


def check_safe(found):
    table = found.table
    for subject, session in zip(table.subject, table.session, strict=True):
        assert re.fullmatch("sub-[A-Za-z0-9]{1,64}", subject)
        assert re.fullmatch("(ses-[A-Za-z0-9]{1,64})?", session)
    assert not table[["subject", "session"]].duplicated().any()
    limits = {
        "age": (0, 120),
        "days_post_stroke": (0, 43830),
        "icv": (500, 3000),
        "motor_score": (0, 1),
    }
    for column, (low, high) in limits.items():
        values = table[column].to_numpy()
        assert np.all(np.isnan(values) | ((values >= low) & (values <= high)))
    assert set(table.sex) <= {"F", "M", ""}
    assert set(table.group) <= {"reference", "stroke", ""}
    assert set(table.lesion_side) <= {"L", "R", "bilateral", "midline", ""}
    assert set(table.paresis_side) <= {"L", "R", ""}
    assert all(name.isprintable() and 0 < len(name) <= 100 for name in table.cohort)
    for problem in (*found.rejected, *found.warnings):
        assert problem.code in RULES
        assert (problem.subject + problem.message).isprintable()


@pytest.mark.parametrize("bad", [False, True])
def test_read_participants__100_000_rows(tmp_path, bad):
    n = 100_000
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:06d}" for i in range(n)],
            "session_id": "ses-1",
            "age": rng.uniform(1000 if bad else 18, 1200 if bad else 95, n),
            "sex": rng.choice(["F", "M"], n),
            "cohort": rng.integers(0, 30, n),
            "group": "stroke",
            "days_post_stroke": rng.integers(0, 4000, n),
            "icv": rng.uniform(1000, 2000, n),
            "motor_score": rng.uniform(0, 1, n),
            "lesion_side": rng.choice(["L", "R"], n),
            "paresis_side": "n/a",
        }
    )
    path = tmp_path / "participants.tsv"
    table.to_csv(path, sep="\t", index=False)
    start = time.perf_counter()
    found = read_participants(path, default_cohort="here")
    print(f"\n{n} rows, {'all' if bad else 'none'} rejected: {time.perf_counter() - start:.2f} s")
    assert (len(found.table), len(found.rejected)) == ((0, n) if bad else (n, 0))
