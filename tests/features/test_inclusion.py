"""Who takes part, and which rows are one person."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.errors import StatisticsError
from scalebrain.features.inclusion import (
    ANOTHER_SCAN,
    check_one_scan,
    inclusion,
    same_people,
)
from tests.report.conftest import make_study


@pytest.fixture
def people():
    """24 references, then 18 people with a stroke, who meet all criteria."""
    ds = make_study().ds.drop_dims("voxel")
    n = ds.sizes["subject"]
    return ds.assign(
        icv=("subject", np.full(n, 1400.0)),
        dataset=("subject", np.full(n, "one", dtype=object)),
        person=("subject", ds["subject"].values.copy()),
        scan_hash=("subject", [f"hash {k}" for k in range(n)]),
    )


def named(ds, rows, person="same"):
    """The Dataset with some rows of one person."""
    values = ds["person"].values.copy()
    values[rows] = person
    return ds.assign(person=("subject", values))


def days(ds, by_row):
    values = ds["days_post_stroke"].values.copy()
    values[list(by_row)] = list(by_row.values())
    return ds.assign(days_post_stroke=("subject", values))


def test_inclusion__one_scan_of_a_person_with_a_stroke(people):
    assert inclusion(people)["included"].all()
    ds = days(named(people, [25, 28, 33, 40]), {25: 900.0, 28: 90.0, 33: 200.0, 40: 365.0})
    found = inclusion(ds)
    reason = found["exclusion_reason"].values
    assert reason[[25, 28, 33, 40]].tolist() == [
        ANOTHER_SCAN,
        "scan within 180 days",
        "",
        ANOTHER_SCAN,
    ]
    assert found["included"].sum() == len(reason) - 3
    later = inclusion(ds, min_days_post_stroke=250)
    assert later["exclusion_reason"].values[[25, 28, 33, 40]].tolist() == [
        ANOTHER_SCAN,
        "scan within 250 days",
        "scan within 250 days",
        "",
    ]


def test_inclusion__a_score_that_only_another_scan_has_is_told(people):
    ds = days(named(people, [25, 33, 40]), {25: 900.0, 33: 200.0, 40: 365.0})
    score = ds["motor_score"].values.copy()
    score[[33, 40]] = np.nan
    reason = inclusion(ds.assign(motor_score=("subject", score)))["exclusion_reason"].values
    told = f"{ANOTHER_SCAN}, which has no motor score; this one has"
    assert reason[[25, 33, 40]].tolist() == [told, "", ANOTHER_SCAN]
    score[33] = 0.5
    reason = inclusion(ds.assign(motor_score=("subject", score)))["exclusion_reason"].values
    assert reason[[25, 33, 40]].tolist() == [ANOTHER_SCAN, "", ANOTHER_SCAN]


def test_inclusion__a_score_of_any_form_leaves_nobody_out(people):
    ds = days(named(people, [25, 33]), {25: 900.0, 33: 200.0})
    n = ds.sizes["subject"]
    score = np.full(n, 0.5, dtype=object)
    for missing in (None, pd.NA, "", "good"):
        score[33] = missing
        reason = inclusion(ds.assign(motor_score=("subject", score)))["exclusion_reason"].values
        assert reason[25] == f"{ANOTHER_SCAN}, which has no motor score; this one has"
    text = np.where(np.arange(n) == 33, "", "0.5")
    other = np.full((n, 2), 0.5)
    scores = {
        "text": ("subject", text),
        "nullable": ("subject", pd.array(pd.to_numeric(text), dtype="Float64")),
        "visits": (("subject", "visit"), other),
    }
    for form, values in scores.items():
        reason = inclusion(ds.assign(motor_score=values))["exclusion_reason"].values
        assert reason[25].startswith(ANOTHER_SCAN)
        assert ("which has no motor score" in reason[25]) == (form != "visits")
        assert (reason != "").sum() == 1


def test_inclusion__equal_days_keep_the_first_row_that_meets_the_criteria(people):
    ds = named(people, [30, 31, 35])
    side = ds["lesion_hemisphere"].values.copy()
    side[30] = "bilateral"
    reason = inclusion(ds.assign(lesion_hemisphere=("subject", side)))["exclusion_reason"].values
    assert reason[[30, 31, 35]].tolist() == ["bilateral lesion", "", ANOTHER_SCAN]


def test_inclusion__one_scan_under_two_ids_is_one_person(people):
    marks = people["scan_hash"].values.copy()
    marks[38] = marks[27]
    found = inclusion(people.assign(scan_hash=("subject", marks)))
    assert np.flatnonzero(~found["included"].values).tolist() == [38]


def test_inclusion__references_keep_their_scans(people):
    """And someone of the same name in another dataset is someone else."""
    ds = named(people, [2, 5, 30, 31])
    dataset = ds["dataset"].values.copy()
    dataset[31] = "other"
    assert inclusion(ds.assign(dataset=("subject", dataset)))["included"].all()


def test_inclusion__an_age_that_is_a_lower_bound_is_out(people):
    censored = np.isin(np.arange(people.sizes["subject"]), [3, 30])
    reason = inclusion(people.assign(age_censored=("subject", censored)))["exclusion_reason"]
    assert set(reason.values[censored]) == {"age known as a lower bound only"}
    assert (reason.values[~censored] == "").all()


def test_same_people__whose_person_is_not_known_is_someone_else():
    n = 6
    person = np.array(["a", None, "", np.nan, "a", "b"], dtype=object)
    held = np.array(["x", "", None, "x", "y", "z"], dtype=object)
    ds = xr.Dataset({"person": ("subject", person), "scan_hash": ("subject", held)})
    found = same_people(ds)
    assert len(set(found)) == n - 2  # rows 0 and 4 by name, 0 and 3 by scan
    assert found[0] == found[3] == found[4]
    assert (same_people(ds.assign_coords(dataset="one")) == found).all()
    text = np.array(["a", "b", "a"]).astype(np.dtypes.StringDType())
    assert len(set(same_people(xr.Dataset({"person": ("subject", text)})))) == 2
    assert len(set(same_people(xr.Dataset({"age": ("subject", np.arange(3.0))})))) == 3


def test_same_people__labels_of_two_datasets_are_two_people():
    ds = xr.Dataset(coords={"subject": ["01", "01", "02"], "dataset": ("subject", ["a", "b", "b"])})
    assert len(set(same_people(ds))) == 3


def test_same_people__rows_of_one_label_are_one_person():
    ds = xr.Dataset(
        {"person": ("subject", ["a", "b", "", ""])},
        coords={"subject": ["s1", "s2", "s1", "s3"]},
    )
    found = same_people(ds)
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_check_one_scan__groups_may_hold_a_person_apart(people):
    ds = named(named(people, [0, 1, 2]), [4, 5], "two")
    rows = np.arange(ds.sizes["subject"]) < 8
    own = np.array([0, 0, 0, 3, 4, 4, 6, 7])

    def check(groups=None, rows=rows):
        check_one_scan(ds, rows, where="Here", ways="Keep one.", groups=groups)

    check(own)
    check(rows=np.isin(np.arange(len(ds["subject"])), [0, 3, 4]))
    words = r"Here: 2 people are in the rows more than once, as sub-000, sub-001, sub-002.*Keep one"
    with pytest.raises(StatisticsError, match=words):
        check()
    with pytest.raises(StatisticsError, match=r"1 person is .* sub-004, sub-005"):
        check(np.array([0, 0, 0, 3, 4, 4, 4, 7]))  # with someone else
    with pytest.raises(StatisticsError, match=r"1 person is .* sub-000"):
        check(np.array([0, 0, 1, 3, 4, 4, 6, 7]))  # in two groups
    assert len(set(same_people(ds))) == ds.sizes["subject"] - 3
