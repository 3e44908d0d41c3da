"""The study beside the usual tools: its tables are equal, and a difference would be found."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

benchmarks = pytest.importorskip("benchmarks")  # not in the source distribution

from benchmarks.peers import Check, Line, Table, Time, apart  # noqa: E402


def test_apart__missing_on_one_side_is_infinitely_far():
    assert apart([1.0, np.nan], [1.5, np.nan]) == 0.5
    assert apart([1.0, 2.0], [1.0, 4.0], scale=[1.0, 10.0]) == pytest.approx(0.2)
    assert apart([1.0, np.nan], [1.0, 2.0]) == np.inf
    assert apart([1.0], [1.0, 2.0]) == np.inf


def test_check__what_is_not_a_number_does_not_hold():
    assert Check("same", 0.0, 0.0).holds
    assert not Check("beyond", 0.2, 0.1).holds
    assert not Check("unknown", float("nan"), 0.1).holds


def test_total__adds_what_is_counted():
    table = Table()
    table.add(Line("scans", Time(1, 2), Time(10, 10)))
    table.add(Line("  alone", Time(5, 5), Time(5, 5), part_of=""))
    table.add(Line("training", Time(4, 4), Time(40, 40), part_of="training"))
    assert table.total("total").ours == Time(1, 2)
    assert table.total("total", "training").theirs == Time(50, 50)
    assert Time(1, 2).times(3) == Time(3, 6)


@pytest.mark.slow
def test_peers__quick_gives_equal_tables(tmp_path):
    out = tmp_path / "peers.json"
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--out", str(out)]
    root = Path(benchmarks.__file__).parents[1]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=540)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = json.loads(out.read_text())
    checks = [check for line in result["lines"] for check in line["checks"]]
    assert len(checks) > 20
    assert all(check["equal"] for check in checks)
    assert all(line["scalebrain_s"] > 0 for line in result["lines"])
