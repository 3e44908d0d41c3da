"""A few faults of ``chaos.py``, on ingest and features; the whole of it is run by hand."""

import os
from pathlib import Path

import pytest

from tests.distributed.chaos import FAULTS, broken, room

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("fault", "times"),
    [("workers killed", 4), ("worker frozen", 1), ("scheduler killed", 1), ("disk full", 1)],
)
def test_study__goes_on_and_ends_with_the_same_store(
    fault: str, times: int, tree: Path, whole_study: Path, tmp_path: Path
):
    small = fault == "disk full"
    if small and os.geteuid() != 0:
        pytest.skip("a small disk is mounted as root")
    with room(tmp_path / "disk" if small else None):
        outcome = broken(
            fault, tree, whole_study, tmp_path / "disk" / "study",
            seed=0, times=times, participants=True,
        )  # fmt: skip
    assert outcome.differing == []
    assert outcome.faults >= min(times, 1)
    assert all(outcome.messages), outcome


def test_faults__are_those_of_the_docs(repository: Path):
    page = (repository / "docs" / "faults.md").read_text()
    assert all(f"| {fault} |" in page for fault in FAULTS)
