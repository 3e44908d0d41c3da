"""Tables of decisions: what is read, and everything that is wrong in one error."""

from pathlib import Path

import pytest

from scalebrain.errors import TableError
from scalebrain.io.decisions import Decision, read_decisions

SUBJECTS = ("sub-001", "sub-002", "sub-003_ses-1")
HEADER = "participant_id\tdecision\tnote\trater\tdate\n"


def written(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "decisions.tsv"
    path.write_text(header + rows, encoding="utf-8")
    return path


def test_read_decisions__takes_words_notes_and_ids_without_sub(tmp_path):
    rows = 'sub-001\tExclude\t"motion, ""ringing"""\tAB\t2026-01-01\n002\taccept\tn/a\tAB\t\n'
    found = read_decisions(written(tmp_path, rows + "sub-003_ses-1\tn/a\t\t\t\n"), SUBJECTS)
    assert found == {
        "sub-001": Decision("exclude", 'motion, "ringing"', "AB", "2026-01-01"),
        "sub-002": Decision("accept", "", "AB"),
    }


@pytest.mark.parametrize("rows", ["", "\n\n", "\t\t\t\t\n"])
def test_read_decisions__a_table_without_rows_decides_nothing(tmp_path, rows):
    assert read_decisions(written(tmp_path, rows), SUBJECTS) == {}


def test_read_decisions__raters_who_agree_are_one(tmp_path):
    rows = "sub-001\tunsure\tmotion\tA\t\nsub-001\tunsure\tartifact\tB\t\nsub-001\tunsure\t\tC\t\n"
    found = read_decisions(written(tmp_path, rows), SUBJECTS)
    assert found == {"sub-001": Decision("unsure", "motion; artifact", "A; B; C")}


def test_read_decisions__keeps_notes_without_a_decision(tmp_path):
    rows = (
        "sub-001\tn/a\tlook; again\tA\t\nsub-001\texclude\tmotion\tB\t\n"
        "sub-001\t\tlook; again\tC\t\nsub-002\tn/a\tblurred\tA\t\nsub-003_ses-1\tn/a\tn/a\tA\t\n"
    )
    found = read_decisions(written(tmp_path, rows), SUBJECTS)
    assert found == {
        "sub-001": Decision("exclude", "look; again; motion", "A; B; C"),
        "sub-002": Decision("", "blurred", "A"),
    }


def test_read_decisions__tells_all_that_is_wrong_at_once(tmp_path):
    rows = (
        "sub-001\taccept\t\t\t\nsub-001\texclude\t\t\t\nsub-002\tgood\t\t\t\n"
        "sub-009\taccept\t\t\t\n\taccept\tx\t\t\n"
    )
    with pytest.raises(TableError, match="4 problems") as error:
        read_decisions(written(tmp_path, rows), SUBJECTS)
    words = str(error.value)
    assert "sub-001: accept in line 2 but exclude in line 3. Keep one." in words
    assert "sub-002: 'good' in line 4 is no decision. Expected one of accept, exclude" in words
    assert "subjects not in the store (1): sub-009" in words
    assert "no participant_id in line 6" in words


def test_read_decisions__finds_rows_by_person_and_session(tmp_path):
    header = "participant_id\tsession_id\tdecision\n"
    subjects, sessions = (*SUBJECTS, "sub-003_ses-2"), ("", "ses-1", "ses-1", "ses-2")
    rows = "001\tses-7\taccept\n002\t1\tunsure\n003\tses-1\texclude\n003\t2\taccept\n"
    path = written(tmp_path, rows + "sub-003_ses-2\tses-2\taccept\n", header)
    found = read_decisions(path, subjects, sessions=sessions)
    assert [found[one].word for one in subjects] == ["accept", "unsure", "exclude", "accept"]
    rows = "008\tses-2\texclude\nsub-009\tses-3\taccept\nsub-003_ses-2\tses-3\taccept\n"
    path = written(tmp_path, rows, header)
    words = r"\(3\): sub-008_ses-2, sub-009_ses-3, sub-003_ses-2_ses-3\. It has"
    with pytest.raises(TableError, match=words):
        read_decisions(path, subjects, sessions=sessions)
    absent = {"sub-008", "sub-009", "sub-003_ses-2"}
    assert not read_decisions(path, subjects, sessions=sessions, absent=absent)
    path = written(tmp_path, "001\tn/a\taccept\n", header)
    assert list(read_decisions(path, subjects, sessions=sessions)) == ["sub-001"]


@pytest.mark.parametrize("absent", [(), None])
def test_read_decisions__leaves_other_sessions_of_someone_aside(tmp_path, caplog, absent):
    header = "participant_id\tsession_id\tdecision\n"
    rows = "002\t1\tunsure\n002\tses-2\texclude\n003\tses-3\tgood\n003\tses-1\taccept\n"
    sessions = ("", "ses-1", "ses-1")
    path = written(tmp_path, rows, header)
    found = read_decisions(path, SUBJECTS, sessions=sessions, absent=absent)
    assert {one: found[one].word for one in found} == {
        "sub-002": "unsure",
        "sub-003_ses-1": "accept",
    }
    assert "not in the store are left aside (2): sub-002_ses-2, sub-003_ses-3" in caplog.text
    caplog.clear()
    absent = {"sub-002_ses-2", "sub-003_ses-3"}  # these were rejected
    assert read_decisions(path, SUBJECTS, sessions=sessions, absent=absent) == found
    assert not caplog.text


@pytest.mark.parametrize("session", ["01", "ses-01", "SES-1", "1"])
def test_read_decisions__case_and_zeros_make_no_other_session(tmp_path, session):
    header = "participant_id\tsession_id\tdecision\n"
    rows = "".join(f"{who}\t{session}\tunsure\n" for who in ("002", "sub-003"))
    path = written(tmp_path, rows + "sub-004\tbl\taccept\n", header)
    subjects = (*SUBJECTS[1:], "sub-003_ses-2", "sub-004")
    found = read_decisions(path, subjects, sessions=("ses-1", "ses-1", "ses-2", "ses-BL"))
    assert list(found) == ["sub-002", "sub-003_ses-1", "sub-004"]
    both = ("sub-003_ses-1", "sub-003_ses-01")
    path = written(tmp_path, "003\t01\taccept\n003\t1\tunsure\n", header)
    found = read_decisions(path, both, sessions=("ses-1", "ses-01"))
    assert [found[one].word for one in both] == ["unsure", "accept"]


def test_read_decisions__leaves_those_aside_who_may_be_absent(tmp_path):
    path = written(tmp_path, "sub-009\taccept\t\t\t\nsub-001\taccept\t\t\t\n")
    for absent in ({"sub-009"}, None):
        assert list(read_decisions(path, SUBJECTS, absent=absent)) == ["sub-001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no header"),
        ("participant_id\tnote\nsub-001\tx\n", "no column decision"),
        ("decision\naccept\n", "no column participant_id"),
        ("id,decision\nsub-001,accept\n", "no column participant_id and no column decision"),
        ('participant_id\tdecision\nsub-001\t"accept\n', "quote"),
    ],
)
def test_read_decisions__refuses_what_is_no_such_table(tmp_path, text, words):
    with pytest.raises(TableError, match=words):
        read_decisions(written(tmp_path, text, header=""), SUBJECTS)
