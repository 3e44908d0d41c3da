from pathlib import Path

import pandas as pd
import pytest

from scalebrain.errors import TableError
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.plan import Dataset, Plan, check_ids, make_plan
from scalebrain.io.sources import Cohort, Scan


def dataset(name, *subjects):
    """A dataset of scans that are never read."""
    scans = tuple(Scan(s, s.split("_ses-")[0], "") for s in subjects)
    table = pd.DataFrame(index=list(subjects))
    cohort = Cohort(name, Path("/none"), scans, table, {}, (), (), modulated=False)
    by_subject = {scan.subject: scan for scan in scans}
    hashes = dict.fromkeys(by_subject, "")
    return Dataset(cohort, by_subject, hashes, {}, (), (), 0, ReadOptions())


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
