import numpy as np
import pytest

from scalebrain.ingestion.plan import Plan, Planned
from scalebrain.ingestion.subjects import gather_problems


def told(gains, sessions=1):
    """Messages about a dataset whose scans fit the template by so much better mirrored."""
    subjects = [
        f"sub-{i // sessions}" + (f"_ses-{i % sessions}" if sessions > 1 else "")
        for i in range(len(gains))
    ]
    entries = {
        subject: {"values": {"template_overlap": 0.8, "template_overlap_mirrored": 0.8 + gain}}
        for subject, gain in zip(subjects, gains, strict=True)
    }
    plan = Plan(len(gains), (Planned("site", tuple(subjects)),))
    rejected, warnings = gather_problems(plan, entries, {}, {})
    assert not rejected
    assert {(name, p.subject, p.code) for name, p in warnings} <= {("site", "", "mirrored")}
    return [problem.message for _, problem in warnings]


@pytest.mark.parametrize("n", [10, 12, 15, 20, 40])
def test_gather_problems__a_dataset_that_was_flipped_is_told_and_a_right_one_seldom(n):
    rng = np.random.default_rng(n)
    differ = rng.normal(0, 0.012, (400, n))  # as people of a correct dataset do
    assert sum(bool(told(gains)) for gains in differ) <= 4
    found = [told(gains) for gains in differ[:100] + 0.03]
    assert sum(map(bool, found)) >= 95
    for (message,) in filter(None, found):
        assert f"the scans of its {n} people fit the template better mirrored (median" in message
        assert "Check left and right of the whole dataset." in message


def test_gather_problems__scans_of_one_person_are_no_evidence_of_their_own():
    rng = np.random.default_rng(0)
    differ = np.repeat(rng.normal(0, 0.012, (200, 12)), 4, axis=1)
    assert sum(bool(told(gains, 4)) for gains in differ) <= 2
    assert told(np.full(40, 0.03), 4)
    assert not told(np.full(36, 0.03), 4)  # nine people


def test_gather_problems__a_difference_too_small_to_matter_is_not_told():
    assert not told(np.full(1000, 0.004))
