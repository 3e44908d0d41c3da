import json
import math

import pytest

from scalebrain.errors import TableError
from scalebrain.io.sources import find_cohort
from tests.io.source_trees import LESION, T1W, codes, freesurfer, image, subjects, table

pytestmark = pytest.mark.usefixtures("codes_are_rules")

COLUMNS = "participant_id age sex days_post_stroke motor_score"
PERSON = "participant_id age sex motor_score"
SESSION = "session_id age days_post_stroke motor_score sex"


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


NIHSS = {"motor_score": {"Scales": {"NIHSS": {"Maximum": 42, "HigherIsBetter": False}}}}
MOTOR = "session_id motor_score motor_scale"


def test_read_session_values__the_declared_scale_of_a_score_is_kept(visits):
    table(visits, ["01 60 F 30", "02 70 M 200"], columns="participant_id age sex days_post_stroke")
    (visits / "participants.json").write_text(json.dumps(NIHSS))
    write(visits, "ses-1 21", "ses-2 n/a", columns="session_id motor_score")
    cohort = find_cohort(visits, session="all")
    assert cohort.table["motor_score"].iloc[0] == 0.5
    assert cohort.table["motor_scale"].tolist() == ["NIHSS", "", ""]


def test_read_session_values__the_scale_that_the_row_of_the_person_names(visits):
    table(visits, ["01 60 F n/a NIHSS", "02 70 M .5 n/a"], columns=f"{PERSON} motor_scale")
    write(visits, "ses-1 .4 n/a", "ses-2 .6 nihss", columns=MOTOR)
    cohort = find_cohort(visits, session="all")
    assert cohort.table["motor_scale"].tolist() == ["NIHSS", "NIHSS", ""]


def test_read_session_values__undeclared_scales_of_all_tables_stop(visits):
    table(visits, ["01 60 F .4 n/a", "02 70 M .5 n/a"], columns=f"{PERSON} motor_scale")
    write(visits, "ses-1 .4 FMA", "ses-2 .6 fma", columns=MOTOR)
    assert find_cohort(visits, session="all").table["motor_scale"].tolist() == ["FMA", "FMA", ""]
    write(visits, "ses-1 .7 NIHSS", columns=MOTOR, subject="sub-02")
    with pytest.raises(TableError, match=r"scales 'FMA', 'NIHSS'\. Declare each") as caught:
        find_cohort(visits, session="all")
    assert caught.value.code == "mixed-scales"
    (visits / "sub-02" / "sub-02_sessions.tsv").unlink()
    table(visits, ["01 60 F n/a n/a", "02 70 M .5 NIHSS"], columns=f"{PERSON} motor_scale")
    with pytest.raises(TableError, match="scales 'FMA', 'NIHSS'"):
        find_cohort(visits, session="all")


def test_read_session_values__a_scale_that_is_no_plain_text(visits):
    write(visits, "ses-1 .4 F\x01MA", "ses-2 .6 FMA", columns=MOTOR)
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.rejected) == [("sub-01_ses-1", "bad-number")]
    assert "holds control characters" in cohort.rejected[0].message
    declared = {"F\x01MA": {"Maximum": 66, "HigherIsBetter": True}}
    write(visits, "ses-1 33", "ses-2 n/a", columns="session_id motor_score")
    (visits / "sessions.json").write_text(json.dumps({"motor_score": {"Scales": declared}}))
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.rejected) == [("sub-01_ses-1", "bad-number")]


def test_read_session_values__scales_with_long_names(visits):
    declared = {"x" * 150: {"Maximum": 66, "HigherIsBetter": True}}
    (visits / "sessions.json").write_text(json.dumps({"motor_score": {"Scales": declared}}))
    write(visits, f"ses-1 33 {'X' * 150}", "ses-2 33 n/a", columns=MOTOR)
    cohort = find_cohort(visits, session="all")
    assert cohort.table["motor_scale"].tolist() == ["x" * 100, "x" * 100, ""]


def test_read_session_values__fractions_are_not_divided_again(root):
    people = [f"sub-0{i}" for i in range(6)]
    for subject in people:
        image(root, subject, T1W)
        write(root, f"ses-1 .{subject[-1]}", columns="session_id motor_score", subject=subject)
    table(root, [f"{subject} 60 F" for subject in people], columns="participant_id age sex")
    (root / "participants.json").write_text(json.dumps(NIHSS))
    with pytest.raises(TableError, match="fractions already: none of 5 is above 1") as caught:
        find_cohort(root)
    assert caught.value.code == "mixed-scales"


@pytest.mark.parametrize(
    "content", [{"age": "years"}, {"age": {"Units": 3}}, {"sex": {"Levels": ["F"]}}, ["age"]]
)
def test_read_session_values__a_bad_json_stops_its_person_alone(visits, content):
    write(visits, "ses-1 60 F", "ses-2 61 F", columns="session_id age sex")
    (visits / "sub-01" / "sub-01_sessions.json").write_text(json.dumps(content))
    cohort = find_cohort(visits, session="all")
    assert subjects(cohort) == ["sub-02"]
    assert codes(cohort.rejected) == [(f"sub-01_ses-{i}", "unreadable") for i in (1, 2)]
    assert cohort.rejected[0].message.startswith("sub-01/sub-01_sessions.json: ")


def test_read_session_values__a_bad_json_is_the_one_that_is_named(visits):
    write(visits, "ses-1 60", "ses-2 61", columns="session_id age")
    (visits / "sessions.json").write_text(json.dumps({"age": "years"}))
    cohort = find_cohort(visits, session="all")
    assert cohort.rejected[0].message.startswith("sessions.json: age is a str")


def test_read_session_values__a_word_that_its_json_contradicts(visits):
    write(visits, "ses-1 stroke", "ses-2 n/a", columns="session_id group")
    levels = json.dumps({"group": {"Levels": {"stroke": "control"}}})
    (visits / "sub-01" / "sub-01_sessions.json").write_text(levels)
    cohort = find_cohort(visits, session="all")
    assert codes(cohort.rejected) == [("sub-01_ses-1", "bad-number")]
    assert "contradicts the word itself" in cohort.rejected[0].message


@pytest.mark.parametrize("session", ["1", "all"])
def test_read_session_values__sessions_that_contradict_each_other(visits, session):
    write(visits, "ses-1 60 1 .1 M", "ses-2 40 2 .1 F", columns=SESSION)
    cohort = find_cohort(visits, session=session)
    names = ["sub-01"] if session == "1" else ["sub-01_ses-1", "sub-01_ses-2"]
    assert codes(cohort.warnings) == [(name, "person-differs") for name in names]
    assert cohort.warnings[0].message == (
        f"{names[0]}: several values of sex of one person: F (participants table), M (ses-1), "
        "F (ses-2). Correct them, or the ids."
    )
    write(visits, "ses-1 60 1 .1 f", "ses-2 40 2 .1 n/a", columns=SESSION)
    assert not find_cohort(visits, session=session).warnings


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        ("session_id days_post_stroke lesion_side", ("{} 10 L", "ses-2 n/a n/a"), "lesion_side"),
        ("session_id paresis_side", ("{} R", "ses-2 n/a"), "paresis_side"),
        ("session_id group", ("{} stroke", "ses-2 n/a"), "the group of another session"),
        ("session_id group", ("{} patient",), "the group of another session"),
    ],
)
@pytest.mark.parametrize(("label", "session"), [("ses-1", "2"), ("ses-01", "2"), ("ses-1", "all")])
def test_read_session_values__a_stroke_of_any_row_is_no_reference(
    root, columns, rows, said, label, session
):
    for subject in ("sub-01", "sub-02"):
        for name in ("ses-1", "ses-2"):
            image(root, subject, T1W, session=name)
    table(root, ["01 60 F", "02 61 M"], columns="participant_id age sex")
    write(root, *(row.format(label) for row in rows), columns=columns)
    cohort = find_cohort(root, session=session)
    groups = dict(zip(cohort.table["person"], cohort.table["group"], strict=True))
    assert groups == {"sub-01": "stroke", "sub-02": "reference"}
    assert set(cohort.table["group"][cohort.table["person"] == "sub-01"]) == {"stroke"}
    (found,) = (
        p
        for p in cohort.warnings
        if p.code == "group-mismatch" and p.subject in ("sub-01", "sub-01_ses-2")
    )
    assert "taken as stroke by" in found.message
    assert said in found.message


def test_read_session_values__a_motor_score_of_another_visit_is_told_of_a_reference(root):
    for name in ("ses-1", "ses-2"):
        image(root, "sub-01", T1W, session=name)
    table(root, ["01 60 F"], columns="participant_id age sex")
    write(root, "ses-1 .5", "ses-2 n/a", columns="session_id motor_score")
    cohort = find_cohort(root, session="2")
    assert cohort.table["group"].tolist() == ["reference"]
    assert ("sub-01", "taken-as-reference") in codes(cohort.warnings)


@pytest.mark.parametrize("session", ["1", "2", "all"])
def test_read_session_values__signs_of_enigma_are_those_of_the_table_of_people(root, session):
    rows = {"01": "6 n/a", "02": "n/a .5", "03": "n/a 1", "04": "n/a -9", "05": "n/a .5 n/a"}
    for label, row in rows.items():
        for name in ("ses-1", "ses-2"):
            image(root, f"sub-{label}", T1W, session=name)
        columns = "session_id LESIONED_HEMISPHERE NORMED_MOTOR" + " group" * (label == "05")
        write(root, f"ses-1 {row}", columns=columns, subject=f"sub-{label}")
    table(root, [f"{label} 60 F" for label in rows], columns="participant_id age sex")
    cohort = find_cohort(root, session=session)
    strokes = cohort.table["person"][cohort.table["group"] == "stroke"]
    assert set(strokes) == {"sub-01", "sub-02"}
    told = {p.subject[:6]: p.message for p in cohort.warnings if p.code == "group-mismatch"}
    assert told.keys() == {"sub-01", "sub-02"}
    assert "taken as stroke by lesion_side." in told["sub-01"]
    assert "taken as stroke by normed_motor." in told["sub-02"]
    assert set(cohort.table["lesion_side"]) == {""}  # mixed is no side


@pytest.mark.parametrize("label", ["ses-01", "SES-1"])
def test_read_session_values__a_scan_without_a_row_of_its_session_is_told(visits, label):
    table(visits, ["01 n/a F n/a n/a", "02 70 M 200 .5"], columns=COLUMNS)
    write(visits, f"{label} 60 30 .4", "ses-2 61 570 .4")
    cohort = find_cohort(visits, session="1")
    (found,) = (p for p in cohort.warnings if p.code == "visit-values" and p.subject == "sub-01")
    label = label if label.startswith("ses-") else f"ses-{label}"
    assert found.message == (
        f"sub-01: sub-01/sub-01_sessions.tsv has no row of ses-1; it has {label}, ses-2. Correct "
        "its session_id."
    )


@pytest.mark.parametrize("columns", ["session_id age", "session_id acq_time"])
def test_read_session_values__a_row_a_session_needs_no_table_of_sessions(visits, columns):
    rows = ["01 ses-1 60 F", "01 ses-2 62 F", "02 ses-1 70 M"]
    table(visits, rows, columns="participant_id session_id age sex")
    write(visits, "ses-1 60", columns=columns)
    cohort = find_cohort(visits, session="all")
    assert not [p for p in cohort.warnings if p.code == "visit-values"]
    assert cohort.table["age"].tolist() == [60, 62, 70]


def test_read_session_values__tables_without_values_are_not_missed(visits):
    write(visits, "ses-01 noon scanner", columns="session_id acq_time site_name", subject="sub-02")
    write(visits, "ses-01 1", "ses-2 1", columns="session_id acq_time")
    cohort = find_cohort(visits, session="1")
    (found,) = (p for p in cohort.warnings if p.code == "visit-values")
    assert found.message.startswith("sub-01: age, days_post_stroke, motor_score by a row")


def test_read_session_values__a_scan_without_a_session_and_rows_of_several_are_told(root):
    image(root, "sub-01", T1W)
    table(root, ["01 n/a F"], columns="participant_id age sex")
    write(root, "ses-1 60", "ses-2 61", columns="session_id age")
    (found,) = (p for p in find_cohort(root).warnings if p.code == "visit-values")
    assert found.message == (
        "sub-01: sub-01/sub-01_sessions.tsv has ses-1, ses-2, and the scan names no session. Name "
        "it in its files."
    )


def test_read_session_values__a_table_with_commas_is_told_of(visits):
    table(visits / "sub-02", ["ses-1 60"], columns="session_id age", name="sub-02_sessions.csv")
    cohort = find_cohort(visits, session="1")
    assert ("sub-02", "visit-values") in codes(cohort.warnings)
    (found,) = (p for p in cohort.warnings if p.subject == "sub-02")
    assert found.message == (
        "sub-02: sub-02/sub-02_sessions.csv is not read. Save it with tabs, as "
        "sub-02/sub-02_sessions.tsv."
    )


@pytest.mark.parametrize("session", ["1", "2"])
def test_read_session_values__points_without_a_declared_scale_stop(visits, session):
    write(visits, "ses-1 45 FMA-UE", "ses-2 1 FMA-UE", columns=MOTOR)
    with pytest.raises(TableError, match=r"scales 'FMA-UE', a score of '45'\. Declare") as caught:
        find_cohort(visits, session=session)
    assert caught.value.code == "mixed-scales"
    assert "sub-01_sessions.tsv: motor scores beyond" in str(caught.value)
    scales = {"FMA-UE": {"Maximum": 66, "HigherIsBetter": True}}
    (visits / "sessions.json").write_text(json.dumps({"motor_score": {"Scales": scales}}))
    score = find_cohort(visits, session=session).table["motor_score"].iloc[0]
    assert score == (45 if session == "1" else 1) / 66


def test_read_session_values__a_score_beyond_1_of_a_visit_without_a_scan(visits):
    columns = "session_id motor_score"
    for own, other in ((".4", "1.2"), ("n/a", "45")):
        write(visits, f"ses-1 {own}", f"ses-3 {other}", columns=columns, subject="sub-02")
        assert "sub-02" in subjects(find_cohort(visits, session="1"))
    write(visits, "ses-1 1.2", "ses-3 .4", columns=columns, subject="sub-02")
    with pytest.raises(TableError, match=r"score of '1\.2'.* motor_scale; or correct the cell\."):
        find_cohort(visits, session="1")
    write(visits, "ses-1 0", "ses-3 45", columns=columns, subject="sub-02")  # points, maybe
    with pytest.raises(TableError, match="a score of '45'"):
        find_cohort(visits, session="1")


def test_find_cohort__rows_that_contradict_each_other(visits):
    rows = ["01 1 60 M stroke", "01 2 40 F control", "02 1 70 n/a stroke", "02 2 70 F stroke"]
    table(visits, rows, columns="participant_id session_id age sex group")
    image(visits, "sub-02", T1W, session="ses-2")
    cohort = find_cohort(visits, session="all")
    warned = [p for p in cohort.warnings if p.code == "person-differs"]
    assert [p.subject for p in warned] == ["sub-01_ses-1", "sub-01_ses-2"]
    assert "values of sex of one person: M (ses-1), F (ses-2)." in warned[0].message
    assert "of group of one person: stroke (ses-1), reference (ses-2)." in warned[0].message


def bare(root, header, *rows):
    lines = ["\t".join(row.split()) for row in (header, *rows)]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def lacking(cohort):
    """Messages about columns, which are about nobody alone."""
    found = [p for p in cohort.warnings if not p.subject]
    assert {p.code for p in found} <= {"missing-covariate"}
    return [p.message for p in found]


def test_find_cohort__a_table_without_the_columns_of_an_analysis(visits):
    bare(visits, "participant_id age gender eTIV_ml time_since_stroke", "01 60 F 1500 30")
    days, icv, sex = lacking(find_cohort(visits, session="1"))
    assert sex == (
        "the table has no column sex: everyone will leave the analysis. Is it 'gender'? Rename "
        "it. Expected sex (F, M)."
    )
    assert "no column icv: everyone without stats/aseg.stats of FreeSurfer will" in icv
    assert "Is it 'eTIV_ml'?" in icv
    assert "days_post_stroke: everyone with a stroke will" in days
    assert "Is it 'time_since_stroke'?" in days
    bare(visits, "participant_id age sex icv days_post_stroke", "01 60 n/a n/a n/a")
    assert not lacking(find_cohort(visits, session="1"))


@pytest.mark.parametrize(
    "name",
    ["FMA_UE", "FuglMeyer", "Fugl-Meyer-UE", "NIHSS", "nihss_24h", "ARAT", "ue_fm", "MOTOR_FM"],
)
def test_find_cohort__a_motor_score_of_another_name_is_told(root, name):
    image(root, "sub-01", T1W)
    others = "icv days_post_stroke sex fmap_dir separate_arate"
    bare(root, f"participant_id age {others} {name}", "01 60 1500 300 F 1 1 20")
    (found,) = lacking(find_cohort(root))
    assert found == (
        "the table has no column motor_score: everyone with a stroke will leave the models of "
        f"motor outcome. Is it {name!r}? Rename it. Expected motor_score (0 to 1, or points of "
        "scales that participants.json declares)."
    )
    bare(root, f"participant_id age group {others} {name}", "01 60 control 1500 n/a F 1 1 20")
    assert not lacking(find_cohort(root))  # nobody has a stroke
    bare(root, f"participant_id age {others} {name}", "01 60 1500 n/a F 1 1 n/a")
    assert not lacking(find_cohort(root))
    bare(root, f"participant_id age {others} {name}", "01 60 1500 n/a F 1 1 20")
    assert lacking(find_cohort(root)) == [found]  # it is not known who has a stroke
    bare(root, f"participant_id age {others}", "01 60 1500 300 F 1 1")
    assert not lacking(find_cohort(root))


def test_find_cohort__days_of_another_name_are_told_where_no_group_says_who_has_a_stroke(root):
    image(root, "sub-01", T1W)
    head = "participant_id age sex icv time_since_stroke"
    bare(root, head, "01 60 F 1500 400")
    (found,) = lacking(find_cohort(root))
    assert "no column days_post_stroke" in found
    assert "Is it 'time_since_stroke'? Rename it." in found
    bare(root, head, "01 60 F 1500 n/a")
    assert not lacking(find_cohort(root))
    bare(root, f"{head} group", "01 60 F 1500 400 control")
    assert not lacking(find_cohort(root))


@pytest.mark.parametrize(
    "name",
    ["Diagnosis", "dx", "is_patient", "patient_status", "status", "case_control", "STUDY_GROUP"],
)
def test_find_cohort__a_group_of_another_name_is_told(root, name):
    for subject in ("sub-01", "sub-02"):
        image(root, subject, T1W)
    head = f"participant_id age sex icv days_post_stroke {name}"
    bare(root, head, "01 60 F 1500 n/a stroke", "02 60 F 1500 n/a control")
    cohort = find_cohort(root)
    assert set(cohort.table["group"]) == {"reference"}
    (found,) = lacking(cohort)
    assert found == (
        "the table has no column group: everyone without a sign of a stroke is taken as a healthy "
        f"reference. Is it {name!r}? Rename it. Expected group (reference, stroke)."
    )
    bare(root, head, "01 60 F 1500 n/a n/a", "02 60 F 1500 n/a n/a")
    assert not lacking(find_cohort(root))
    bare(root, f"{head} group", "01 60 F 1500 n/a a stroke", "02 60 F 1500 n/a b control")
    assert not lacking(find_cohort(root))
    bare(root, head, "01 60 F 1500 n/a stroke", "02 60 F 1500 n/a control")
    for subject in ("sub-01", "sub-02"):
        image(root, subject, LESION)
    assert not lacking(find_cohort(root))  # the masks tell


@pytest.mark.parametrize(
    "name", ["age_group", "patient_id", "smoking_status", "blood_group", "case_date", "caseload"]
)
def test_find_cohort__columns_like_none_of_groups_are_not_told_of(root, name):
    image(root, "sub-01", T1W)
    bare(root, f"participant_id age sex icv {name}", "01 60 F 1500 x")
    assert not lacking(find_cohort(root))


def test_find_cohort__columns_that_surfaces_or_sessions_bring_are_not_missed(root):
    for subject in ("sub-01", "sub-02"):
        image(root, subject, T1W)
    bare(root, "participant_id age", "01 60", "02 61")
    assert len(lacking(find_cohort(root))) == 2  # days are of strokes alone
    freesurfer(root, "sub-01")
    assert len(lacking(find_cohort(root))) == 2
    freesurfer(root, "sub-02")
    (found,) = lacking(find_cohort(root))
    assert "no column sex: everyone will leave the analysis. Expected" in found
    write(root, "ses-1 F", columns="session_id SEX")
    (found,) = lacking(find_cohort(root))
    assert "sex: everyone, but for those whose sub-*_sessions.tsv has it, will leave" in found
    write(root, "ses-1 F", columns="session_id SEX", subject="sub-02")
    assert not lacking(find_cohort(root))


def test_find_cohort__days_of_sessions_are_not_missed_where_all_with_a_stroke_have_them(visits):
    image(visits, "sub-03", T1W)
    bare(visits, "participant_id age sex icv", "01 60 F 1500", "02 60 F 1500", "03 60 F 1500")
    write(visits, "ses-1 30", "ses-2 60", columns="session_id days_post_stroke")
    (found,) = lacking(find_cohort(visits, session="1"))
    assert "everyone with a stroke, but for those whose sub-*_sessions.tsv has it, will" in found
    write(visits, "ses-1 30", columns="session_id days_post_stroke", subject="sub-02")
    assert not lacking(find_cohort(visits, session="1"))


def test_find_cohort__ages_may_be_of_sessions_alone(visits):
    bare(visits, "participant_id sex icv", "01 F 1500", "02 M 1500")
    with pytest.raises(TableError, match="no column of ages"):
        find_cohort(visits, session="all")
    write(visits, "ses-1 60 30", "ses-2 n/a 60", columns="session_id age days_post_stroke")
    cohort = find_cohort(visits, session="all")
    assert cohort.table["age"].iloc[0] == 60
    assert cohort.table["age"].isna().tolist() == [False, True, True]
    missing = [p for p in cohort.warnings if p.code == "missing-covariate" and p.subject]
    assert [p.subject for p in missing] == ["sub-01_ses-2", "sub-02"]


def test_find_cohort__an_age_of_a_session_is_not_said_to_be_missing(visits):
    bare(visits, "participant_id age sex icv days_post_stroke", "01 n/a F n/a 1", "02 n/a M n/a 1")
    write(visits, "ses-1 60", columns="session_id age")
    warned = find_cohort(visits, session="1").warnings
    assert [p.subject for p in warned if p.code == "missing-covariate"] == ["sub-02"]
    warned = find_cohort(visits, session="all").warnings  # that of ses-2 is missing
    assert [p.subject for p in warned if p.code == "missing-covariate"] == ["sub-01", "sub-02"]
