"""A few faults of ``chaos.py``, on ingest and features; the whole of it is run by hand."""

import os
import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.distributed import chaos
from tests.distributed.chaos import FAULTS, HEADER, broken, room

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


def workers(study: chaos.Study, cluster: chaos.Cluster, rng: random.Random, left: int) -> int:
    """Kill workers, then freeze one, in one run."""
    killed = chaos.kill_workers(study, cluster, rng, left - 1)
    return killed + chaos.freeze_worker(study, cluster, rng, left - killed)


def driver_side(study: chaos.Study, cluster: chaos.Cluster, rng: random.Random, left: int) -> int:
    """Fill the disk in the ingest; in the next run kill the scheduler in the features."""
    if left == 2:
        return chaos.fill_disk(study, cluster, rng, 1)
    return chaos.kill_scheduler(study, cluster, rng, 2 * left)


@pytest.mark.parametrize(
    ("name", "fault", "times"),
    [
        ("workers killed, then one frozen", workers, 3),
        ("disk full, then scheduler killed", driver_side, 2),
    ],
)
def test_study__goes_on_and_ends_with_the_same_store(
    name: str,
    fault: chaos.Fault,
    times: int,
    tree: Path,
    whole_study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    small = name.startswith("disk full")
    if small and os.geteuid() != 0:
        pytest.skip("a small disk is mounted as root")
    monkeypatch.setitem(FAULTS, name, (fault, times, "3GB"))
    with room(tmp_path / "disk" if small else None):
        outcome = broken(
            name, tree, whole_study, tmp_path / "disk" / "study",
            seed=0, times=times, participants=True,
        )  # fmt: skip
    assert outcome.differing == []
    assert outcome.finished >= 1
    assert outcome.faults == times
    assert all(outcome.messages), outcome


def test_faults__are_those_of_the_docs(repository: Path):
    page = (repository / "docs" / "faults.md").read_text()
    assert all(f"| {fault} |" in page for fault in FAULTS)
    assert HEADER in page


class Wrong(chaos.Study):
    """A study that ends at once; the first one is wrong."""

    written = 0

    def start(self, address: str) -> None:
        self.out.mkdir()
        (self.out / "node_features").write_text("right" if Wrong.written else "wrong")
        Wrong.written += 1

    def wait(self, seconds: float = 0.0) -> int:
        return 0


def test_broken__compares_every_study_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chaos, "Study", Wrong)
    monkeypatch.setattr(chaos, "running", lambda *_, **__: nullcontext(chaos.Cluster(tmp_path)))
    monkeypatch.setitem(FAULTS, "workers killed", (lambda *_: 1, 2, "3GB"))
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "node_features").write_text("right")
    outcome = broken(
        "workers killed", tmp_path, whole, tmp_path / "work", seed=0, times=2, participants=False
    )
    assert (outcome.finished, outcome.differing, outcome.is_good) == (2, ["node_features"], False)
