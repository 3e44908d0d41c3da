"""Tests of participants tables: each rule of the guard with its code, message and way out."""

import json
import logging
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
from scalebrain.io.participants import read_groups, read_participants
from tests.io.participant_tables import COLUMNS, SCALES, read, stops, write

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
            "motor_scale": "FMA-UE",
            "lesion_side": rng.choice(["L", "bilateral", "midline", ""], n),
            "paresis_side": rng.choice(["R", ""], n),
        }
    )
    good.loc[[3, 7], ["days_post_stroke", "icv", "motor_score"]] = np.nan
    good.loc[[3, 7], "motor_scale"] = ""
    shuffled = good.rename(columns={"subject": "participant_id"}).drop(columns="age_censored")
    shuffled = shuffled.assign(comment="x")[[*shuffled.columns[::-1].tolist(), "comment"]]
    path = tmp_path / name
    shuffled.to_csv(path, sep="\t" if name.endswith("tsv") else ",", index=False, na_rep="n/a")
    found = read_participants(path, default_cohort="unused")
    pd.testing.assert_frame_equal(found.table, good)
    assert found.rejected == found.warnings == ()


def test_read_participants__columns_that_are_not_read_are_logged_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="scalebrain")
    rows = (["sub-01", "60", "F", "25"], ["sub-02", "61", "M", "27"])
    read(tmp_path, ["participant_id", "age", "sex", "bmi"], *rows)
    (told,) = caplog.messages
    assert "participants.tsv: columns that are not read: 'bmi'. Add" in told
    caplog.clear()
    read(tmp_path, ["Participant_ID", "AGE", "Site"], ["01", "60", "a"])
    assert not caplog.messages


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


def test_read_participants__controls_of_an_enigma_table_are_no_strokes(tmp_path):
    header = ["BIDS_ID", "SES", "AGE", "DAYS_POST_STROKE", "LESIONED_HEMISPHERE", "PARESIS_SIDE"]
    header += ["NORMED_MOTOR"]
    cells = {
        "control": "NA NA NA 1",
        "unknown": "NA none unknown NA",
        "coded": "NA 9 NA NA",
        "side": "NA 1 NA NA",
        "mixed": "NA 6.0 NA NA",
        "days": "90 NA NA NA",
        "paresis": "NA NA R NA",
        "visits": "NA NA NA NA",
        "motor": "NA NA NA 0.9",
    }
    rows = [f"{who} 1 60 {text}".split() for who, text in cells.items()]
    rows.append(["visits", "2", "61", "NA", "6", "NA", "NA"])
    sidecar = {"LESIONED_HEMISPHERE": {"Levels": {"9": "none"}}}
    table = read(tmp_path, header, *rows, sidecar=sidecar).table
    groups = dict.fromkeys(cells, "stroke") | {"control": "", "unknown": "", "coded": ""}
    assert dict(zip(table.subject, table.group, strict=True)) == {
        f"sub-{who}": group for who, group in groups.items()
    }
    assert list(table.group[-2:]) == ["stroke", "stroke"]
    assert read_groups(tmp_path / "participants.tsv") == {
        f"sub-{who}": group for who, group in groups.items()
    }


@pytest.mark.parametrize("cells", ["NA -999", "-999 NA", ". NA", "NA .", "NA -0.5", "-1 NA"])
def test_read_participants__codes_for_missing_are_no_signs_of_a_stroke(tmp_path, cells):
    header = ["BIDS_ID", "SES", "AGE", "LESIONED_HEMISPHERE", "DAYS_POST_STROKE", "NORMED_MOTOR"]
    rows = [f"01 1 60 NA {cells}".split(), ["01", "2", "61", "NA", "NA", "1"]]
    found = read(tmp_path, header, *rows)
    assert [p.code for p in found.rejected] == ["bad-number"]
    assert list(found.table.group) == [""]
    assert read_groups(tmp_path / "participants.tsv") == {"sub-01": ""}


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
    assert all(name.isprintable() and len(name) <= 100 for name in table.motor_scale)
    assert (np.isfinite(table.motor_score) | (table.motor_scale == "")).all()
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
