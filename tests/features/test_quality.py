"""Decisions of a quality control, and what they do to the inclusion."""

import numpy as np
import pytest

from scalebrain.features.inclusion import inclusion
from scalebrain.features.quality import EXCLUDED, count_decisions, quality_decisions
from tests.report.conftest import make_study


@pytest.fixture
def people():
    ds = make_study().ds.drop_dims("voxel")
    ds = ds.assign(icv=("subject", np.full(ds.sizes["subject"], 1400.0)))
    sex = ds["sex"].values.copy()
    sex[1] = ""
    return ds.assign_coords(sex=("subject", sex))


def test_quality_decisions__of_a_person_and_a_session(people, tmp_path, caplog):
    path = tmp_path / "decisions.tsv"
    path.write_text("participant_id\tsession_id\tdecision\nsub-001\tses-1\texclude\n")
    for sessions in ("", "ses-1"):
        told = people.assign(session=("subject", [sessions] * people.sizes["subject"]))
        assert np.flatnonzero(quality_decisions(told, path)["qc_decision"] != "").tolist() == [1]
    told = people.assign(session=("subject", ["ses-2"] * people.sizes["subject"]))
    assert (quality_decisions(told, path)["qc_decision"] == "").all()
    assert "not in the store are left aside (1): sub-001_ses-1" in caplog.text


def test_quality_decisions__exclude_first_and_keep_who_is_unsure(people, tmp_path, caplog):
    path = tmp_path / "decisions.tsv"
    path.write_text(
        "participant_id\tdecision\tnote\nsub-001\texclude\tmotion\nsub-002\tunsure\t\n"
        "sub-003\taccept\t\nsub-004\tn/a\tblurred\n"
    )
    before = inclusion(people)
    with caplog.at_level("INFO", logger="scalebrain"):
        decided = quality_decisions(people, path)
    assert "1 accepted, 1 excluded, 39 without a decision" in caplog.text
    assert "1 unsure are kept" in caplog.text
    assert count_decisions(decided) == {"accept": 1, "exclude": 1, "unsure": 1, "": 39}
    assert decided["qc_note"].values.tolist()[:5] == ["", "motion", "", "", "blurred"]
    after = inclusion(people.assign(decided.data_vars))
    reasons = after["exclusion_reason"].values
    assert before["exclusion_reason"].values[1] == "sex missing"  # quality comes first
    assert reasons[1] == EXCLUDED
    others = np.arange(people.sizes["subject"]) != 1
    np.testing.assert_array_equal(reasons[others], before["exclusion_reason"].values[others])
    assert after["included"].values[2]
