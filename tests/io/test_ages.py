import hashlib

import numpy as np
import pytest

from scalebrain.errors import TableError
from scalebrain.io.ages import Places, read_ages

REGIONS = ("SMN_L", "SMN_R", "FPN_L", "FPN_R")
PLACES = Places(
    subjects=("sub-a", "sub-b_ses-1", "sub-b_ses-2"),
    people=("sub-a", "sub-b", "sub-b"),
    sessions=("", "ses-1", "ses-2"),
    regions=REGIONS,
    rejected=("sub-z",),
)


def write(tmp_path, *rows, name="ages.tsv", encoding="utf-8"):
    separator = "\t" if name.endswith(".tsv") else ","
    path = tmp_path / name
    path.write_text("".join(separator.join(row.split()) + "\n" for row in rows), encoding=encoding)
    return path


def failure(path):
    with pytest.raises(TableError) as raised:
        read_ages(path, PLACES)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_read_ages__long_goes_to_subject_session_and_region(tmp_path):
    path = write(
        tmp_path,
        "subject session region brain_age",
        "sub-b ses-2 SMN_R 61.5",
        "a n/a FPN_L 50",
        "b 1 FPN_R n/a",
    )
    found = read_ages(path, PLACES)
    assert not found.is_global
    expected = np.full((3, 4), np.nan)
    expected[2, 1], expected[0, 2] = 61.5, 50
    np.testing.assert_array_equal(found.values["brain_age"], expected)
    assert found.listed.tolist() == [True, True, True]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_read_ages__wide_columns_come_in_any_order(tmp_path):
    path = write(tmp_path, "FPN_R participant_id SMN_L", "70 sub-b_ses-1 60", "71 a 61")
    found = read_ages(path, PLACES)
    assert not found.is_global
    np.testing.assert_array_equal(
        found.values["brain_age"],
        [[61, np.nan, np.nan, 71], [60, np.nan, np.nan, 70], [np.nan] * 4],
    )
    assert found.listed.tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["ages.csv", "AGES.TSV"])
def test_read_ages__global_with_a_mark_and_capitals(tmp_path, name):
    rows = ("Subject Brain_Age BRAIN_AGE_LOW brain_age_high note", "sub-a 60 50.5 70 x")
    path = write(tmp_path, *rows, name=name.replace("TSV", "tsv"), encoding="utf-8-sig")
    path = path.rename(tmp_path / name)
    found = read_ages(path, PLACES)
    assert found.is_global
    assert {name: values[0, 0] for name, values in found.values.items()} == {
        "brain_age": 60,
        "brain_age_low": 50.5,
        "brain_age_high": 70,
    }
    assert found.values["brain_age"].shape == (3, 1)


def test_read_ages__says_all_that_is_wrong_at_once(tmp_path):
    told = failure(
        write(
            tmp_path,
            "subject session region brain_age",
            "sub-a n/a SMN_L 60",
            "a n/a SMN_L 61",
            "sub-q n/a SMN_L 60",
            "sub-z n/a SMN_L 60",
            "sub-b n/a SMN_L 60",
            "sub-a n/a SNM_R 60",
            "sub-a n/a SMN_R sixty",
            "sub-a n/a FPN_L 720",
            "n/a n/a FPN_R 60",
        )
    )
    for words in (
        "sub-a SMN_L is in line 2 and in line 3",
        "not in the store (1): sub-q",
        "the ingest left out (1): sub-z",
        "several sessions (1): sub-b",
        "'SNM_R' (nearest: SMN_R",
        "'sixty' is not a finite number",
        "'720' is outside the expected range, 0 to 120 years",
        "no id in line 10",
    ):
        assert words in told


def test_read_ages__a_misspelled_wide_column_is_no_missing_region(tmp_path):
    told = failure(write(tmp_path, "subject SMN_L SMN_r age", "sub-a 60 60 55"))
    assert "'SMN_r' (nearest: SMN_R or SMN_L)" in told
    assert "'age'" in told


def test_read_ages__sides_are_those_of_the_brain(tmp_path):
    told = failure(write(tmp_path, "subject region brain_age", "sub-a SMN_ipsilesional 60"))
    assert "Give the ages of left and right" in told


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (("brain_age", "60"), "no column of ids"),
        (("subject age", "sub-a 60"), "no column brain_age"),
        (("subject region age", "sub-a SMN_L 60"), "no column brain_age"),
        (("subject brain_age SMN_L", "sub-a 60 61"), "Make two tables"),
        (("subject eid brain_age", "sub-a a 60"), "say the same"),
        (("subject brain_age Brain_Age", "sub-a 60 61"), "several columns named"),
        (
            ("subject brain_age brain_age_corrected brain_pad_corrected", "sub-a 60 61 1"),
            "say the same",
        ),
        (("subject brain_age", "sub-a n/a"), "no brain age in it"),
        (("subject brain_age brain_age_low", "sub-a 60 61"), "brain_age_low is 61"),
        (
            ("subject brain_age brain_age_low", "sub-a n/a 61", "sub-b 60 50"),
            "sub-a: brain_age_low is 61, but brain_age is missing",
        ),
        (("subject brain_age", "sub-a 60 61"), "2 columns in the header"),
        (("subject brain_age",), "no row below"),
        (("subject brain_age", "sub-a 60,5"), "60.5"),
    ],
)
def test_read_ages__refuses(tmp_path, rows, match):
    assert match in failure(write(tmp_path, *rows))


def test_read_ages__missing_file_and_other_endings(tmp_path):
    assert "missing" in failure(tmp_path / "none.tsv")
    assert ".tsv (tabs)" in failure(tmp_path / "ages.xlsx")


def test_read_ages__a_session_goes_with_the_only_scan_of_a_person(tmp_path):
    path = write(tmp_path, "subject session brain_age", "sub-a ses-1 50", "b 2 61")
    np.testing.assert_array_equal(
        read_ages(path, PLACES).values["brain_age"][:, 0], [50, np.nan, 61]
    )
    path = write(tmp_path, "subject session brain_age", "a 1 50", "a 2 51")
    assert "sub-a is in line 2 and in line 3" in failure(path)
    path = write(tmp_path, "subject session brain_age", "sub-b ses-3 50")
    assert "sub-b ses-3" in failure(path)


def test_read_ages__a_session_does_not_go_with_one_of_several_scans(tmp_path):
    places = Places(("sub-a", "sub-a_ses-2"), ("sub-a", "sub-a"), ("", "ses-2"), REGIONS)
    path = write(tmp_path, "subject session brain_age", "sub-a ses-1 50")
    with pytest.raises(TableError, match="sub-a ses-1"):
        read_ages(path, places)
