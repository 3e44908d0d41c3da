from pathlib import Path

import pandas as pd
import pytest

from scalebrain.errors import Problem, TableError
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.plan import Dataset, Plan, check_ids, make_plan
from scalebrain.io.sources import Cohort, Scan


def dataset(name, *subjects, rejected=()):
    """A dataset of scans that are never read."""
    out = tuple(Problem(subject, "no-table-row", "") for subject in rejected)
    scans = tuple(Scan(s, s.split("_ses-")[0], "") for s in subjects)
    table = pd.DataFrame(index=list(subjects))
    cohort = Cohort(name, Path("/none"), scans, table, {}, (), (), modulated=False)
    by_subject = {scan.subject: scan for scan in scans}
    hashes = dict.fromkeys(by_subject, "")
    return Dataset(cohort, by_subject, hashes, {}, out, (), 0, ReadOptions())


SESSIONS = ("sub-01_ses-1", "sub-01_ses-2", "sub-02")


@pytest.mark.parametrize("other", ["sub-01", "sub-01_ses-1", "sub-01_ses-3", "sub-02_ses-1"])
def test_check_ids__one_person_in_two_datasets_whatever_the_sessions(other):
    first, second = dataset("a", *SESSIONS), dataset("b", other, "sub-03")
    person = other.split("_ses-")[0]
    for datasets in ([first, second], [second, first]):
        with pytest.raises(TableError, match=f"{person} is in '.' and in '.'.*--prefix") as caught:
            check_ids(datasets, None)
        assert str(caught.value).count("--prefix") == 1
    plan = make_plan(None, [first], frozenset())
    with pytest.raises(TableError, match=f"{person} is in 'a' and in 'b'"):
        check_ids([second], plan)


def test_check_ids__people_of_one_dataset_and_others_pass():
    first, second = dataset("a", *SESSIONS), dataset("b", "sub-b01_ses-1", "sub-b01_ses-2")
    check_ids([first, second], None)
    plan = make_plan(None, [first, second], frozenset())
    check_ids([first], plan)
    check_ids([second], plan)
    check_ids([dataset("a", *SESSIONS, "sub-02_ses-2")], plan)
    check_ids([], Plan(16))


def test_check_ids__datasets_of_one_name():
    with pytest.raises(TableError, match="Two datasets are named 'a'"):
        check_ids([dataset("a", "sub-01"), dataset("a", "sub-02")], None)


@pytest.mark.parametrize("rejected", ["sub-02", "sub-02_ses-1"])
def test_check_ids__who_is_rejected_counts(rejected):
    first, second = dataset("a", "sub-01", rejected=[rejected, "'sub 3'"]), dataset("b", "sub-02")
    for datasets in ([first, second], [second, first]):
        with pytest.raises(TableError, match=r"'a' \(rejected there\).*--prefix") as caught:
            check_ids(datasets, None)
        assert str(caught.value).startswith("sub-02 is in ")
    plan = make_plan(None, [first], frozenset())
    with pytest.raises(TableError, match=r"sub-02 is in 'a' \(rejected there\) and in 'b'\. "):
        check_ids([second], plan, {"a": {"sub-02"}})
    check_ids([dataset("b", "sub-03")], plan, {"a": {"sub-02"}})
    check_ids([dataset("a", "sub-01", "sub-02")], plan, {"a": {"sub-02"}})
    check_ids([dataset("a", "sub-02"), dataset("b", "sub-01")], None, {"a": {"sub-01"}})


def test_make_plan__who_has_gone_is_told_with_the_way_out():
    plan = make_plan(None, [dataset("a", *SESSIONS)], frozenset())
    with pytest.raises(TableError, match="no longer in its dataset 'a'") as caught:
        make_plan(plan, [dataset("a", "sub-02")], frozenset(SESSIONS), store="s3://x/c.zarr")
    assert str(caught.value).count("store withdraw s3://x/c.zarr sub-01") == 2
    make_plan(plan, [dataset("a", "sub-02", rejected=["sub-01"])], frozenset(SESSIONS))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["sub-01"], ["sub-01_ses-1", "sub-01_ses-2"]),
        (["sub-01", "sub-02"], ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]),
        (["sub-01_ses-1", "sub-01_ses-2"], ["sub-01"]),
        (["sub-01_ses-1", "sub-01_ses-2"], ["sub-01_ses-1", "sub-01_ses-3"]),
    ],
)
def test_make_plan__whose_sessions_became_others_is_not_gone(before, now):
    plan = make_plan(None, [dataset("a", *before)], frozenset())
    with pytest.raises(TableError, match="of this person its dataset 'a' now has") as caught:
        make_plan(plan, [dataset("a", *now)], frozenset(before), store="c.zarr")
    message = str(caught.value)
    assert "withdraw" not in message
    assert "another dataset" not in message
    assert "has " + ", ".join(s for s in now if s != "sub-02") in message
    assert "Start a new store" in message
    assert ("--session" in message) == ("_ses-" not in "".join(before))


def test_make_plan__another_dataset_of_the_same_name_is_told_once():
    plan = make_plan(None, [dataset("a", *SESSIONS)], frozenset())
    with pytest.raises(TableError, match="another dataset in a folder of the same name") as caught:
        make_plan(plan, [dataset("a", "sub-7", "sub-8")], frozenset(SESSIONS), store="c.zarr")
    message = str(caught.value)
    assert message.startswith("Nobody whom c.zarr has of the dataset 'a' is in /none (3: sub-01_")
    assert message.endswith("scalebrain store withdraw c.zarr sub-01")
