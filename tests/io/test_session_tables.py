import json
import math

import pytest

from scalebrain.io.sources import find_cohort
from tests.io.source_trees import LESION, T1W, codes, image, subjects, table

pytestmark = pytest.mark.usefixtures("codes_are_rules")

COLUMNS = "participant_id age sex days_post_stroke motor_score"


@pytest.fixture
def visits(root):
    """One person with a stroke and two sessions, one with a session, one row a person."""
    for subject, sessions in {"sub-01": ("ses-1", "ses-2"), "sub-02": ("ses-1",)}.items():
        for session in sessions:
            image(root, subject, T1W, session=session)
            image(root, subject, LESION, session=session)
    table(root, ["01 60 F 30 .4", "02 70 M 200 .5"], columns=COLUMNS)
    return root


def write(root, *rows, columns="session_id age days_post_stroke motor_score", subject="sub-01"):
    table(root / subject, rows, columns=columns, name=f"{subject}_sessions.tsv")


def test_read_session_values__win_over_the_row_of_the_person(visits):
    write(visits, "ses-1 60 30 .4", "2 61.5 570 n/a", "ses-9 70 9 .9")
    cohort = find_cohort(visits, session="all")
    assert subjects(cohort) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert cohort.table["age"].tolist() == [60, 61.5, 70]
    assert cohort.table["days_post_stroke"].tolist() == [30, 570, 200]
    assert cohort.table["motor_score"].tolist()[::2] == [0.4, 0.5]
    assert math.isnan(cohort.table["motor_score"].iloc[1])
    assert cohort.table["sex"].tolist() == ["F", "F", "M"]
    assert not cohort.warnings
    assert not cohort.rejected
    one = find_cohort(visits, session="2")
    assert one.table.loc["sub-01", ["age", "days_post_stroke"]].tolist() == [61.5, 570]
    assert not [p for p in one.warnings if p.code == "visit-values"]


@pytest.mark.parametrize("session", ["2", "all"])
def test_read_session_values__one_row_for_several_sessions_is_warned_of(visits, session):
    found = find_cohort(visits, session=session)
    warned = [p for p in found.warnings if p.code == "visit-values"]
    expected = ["sub-01"] if session == "2" else ["sub-01_ses-1", "sub-01_ses-2"]
    assert [p.subject for p in warned] == expected
    assert "age, days_post_stroke, motor_score by a row" in warned[0].message
    assert "Write sub-01/sub-01_sessions.tsv" in warned[0].message


def test_read_session_values__what_they_do_not_say_is_warned_of(visits):
    write(visits, "ses-1 60", "ses-2 61.5", columns="session_id age")
    write(visits, "ses-7 71", columns="session_id age", subject="sub-02")
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.warnings) == [
        ("sub-01_ses-1", "visit-values"),
        ("sub-01_ses-2", "visit-values"),
        ("sub-02", "visit-values"),
    ]
    assert "sub-01_ses-1: days_post_stroke, motor_score by" in cohort.warnings[0].message
    assert cohort.table["age"].tolist() == [60, 61.5, 70]


def test_read_session_values__a_bad_cell_rejects_its_session_alone(visits):
    write(visits, "ses-1 730 30 .4", "ses-2 61+ 570 .7")
    cohort = find_cohort(visits, session="all")
    assert subjects(cohort) == ["sub-01_ses-2", "sub-02"]
    assert codes(cohort.rejected) == [("sub-01_ses-1", "age-unit")]
    assert cohort.rejected[0].file == "sub-01/sub-01_sessions.tsv"
    assert "in line 2" in cohort.rejected[0].message
    assert cohort.table["age_censored"].tolist() == [True, False]
    write(visits, "ses-1 n/a 30 .4", "ses-2 61 570 .7")
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.warnings) == [("sub-01_ses-1", "missing-covariate")]
    assert math.isnan(cohort.table["age"].iloc[0])


@pytest.mark.parametrize(
    ("rows", "columns", "code", "says"),
    [
        (["ses-1 60", "1 61"], "session_id age", "duplicate-id", "several rows of ses-1"),
        (["n/a 60"], "session_id age", "bad-id", "names no session"),
        (["60"], "age", "unreadable", "no column of sessions"),
        (["ses-1 60 1"], "session_id age", "unreadable", "2 columns in the header"),
    ],
)
def test_read_session_values__a_table_that_is_not_usable_stops_its_person_alone(
    visits, rows, columns, code, says
):
    write(visits, *rows, columns=columns)
    cohort = find_cohort(visits, session="all")
    assert subjects(cohort) == ["sub-02"]
    assert codes(cohort.rejected) == [("sub-01_ses-1", code), ("sub-01_ses-2", code)]
    assert says in cohort.rejected[0].message
    assert cohort.rejected[0].message.startswith("sub-01/sub-01_sessions.tsv: ")


def test_read_session_values__a_link_that_leaves_the_dataset(visits, tmp_path):
    (tmp_path / "else.tsv").write_text("session_id\tage\nses-1\t60\n")
    (visits / "sub-02" / "sub-02_sessions.tsv").symlink_to(tmp_path / "else.tsv")
    cohort = find_cohort(visits, session="1")
    assert codes(cohort.rejected) == [("sub-02", "leaves-tree")]


def test_read_session_values__words_units_and_scales(visits):
    scales = {
        "FMA": {"Maximum": 66, "HigherIsBetter": True},
        "NIHSS": {"Maximum": 42, "HigherIsBetter": False},
    }
    columns = f"{COLUMNS} motor_scale cohort"
    rows = ["01 60 F 30 33 FMA a", "02 70 M 200 66 FMA a"]
    table(visits, rows, columns=columns)
    declared = json.dumps({"motor_score": {"Scales": scales}})
    (visits / "participants.json").write_text(declared)
    (visits / "sessions.json").write_text(json.dumps({"sex": {"Levels": {"1": "female"}}}))
    write(
        visits,
        "ses-1 33 fma 1 Oslo 1400 stroke L R",
        "ses-2 21 NIHSS n/a n/a n/a n/a n/a n/a",
        columns="ses motor_score motor_scale sex site icv group lesion_side paresis_side",
    )
    write(visits, "ses-1 21 other", columns="ses motor_score motor_scale", subject="sub-02")
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.rejected) == [("sub-02", "bad-number")]
    assert "one of 'FMA', 'NIHSS'" in cohort.rejected[0].message
    assert cohort.table["motor_score"].tolist() == [0.5, 0.5]
    assert cohort.table["sex"].tolist() == ["F", "F"]
    assert cohort.table["cohort"].tolist() == ["Oslo", "a"]
    assert cohort.table["lesion_side"].tolist() == ["L", ""]
    assert cohort.table["group"].tolist() == ["stroke", "stroke"]
    assert cohort.table["icv"].iloc[0] == 1400
