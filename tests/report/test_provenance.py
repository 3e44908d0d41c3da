"""Where the numbers come from, without saying whose machine it was."""

import hashlib
import json
import re
from datetime import date
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import xarray as xr

from scalebrain.cluster.client import open_client
from scalebrain.report.provenance import provenance_blocks, study_provenance
from scalebrain.report.versions import PACKAGES, versions


def store(**attrs: str) -> xr.Dataset:
    return xr.Dataset({"brain_age": ("subject", [60.0], attrs)}, attrs={"atlas_sha256": "ab"})


def test_study_provenance__tells_date_machine_and_hashes(tmp_path: Path):
    table = tmp_path / "decisions.tsv"
    table.write_text("participant_id\tdecision\n")
    config = {
        "seed": 3,
        "formula": "brain_pad ~ age / icv",
        "qc_decisions": str(table),
        "ingest": {"root": "/home/somebody/scans", "volume": None},
    }
    days = {date.today().isoformat()}
    told = study_provenance(store(model_fingerprint="f1"), config, {"train": 61.25})
    days.add(date.today().isoformat())
    assert told["date of the report"] in days
    assert told["model, SHA-256"] == "f1"
    assert "table of ages, SHA-256" not in told
    decisions = told["decisions of the quality control, SHA-256"]
    assert decisions == hashlib.sha256(table.read_bytes()).hexdigest()
    used = config | {"qc_decisions": "decisions.tsv", "ingest": {"root": "scans", "volume": None}}
    expected = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
    assert told["configuration, SHA-256"] == expected
    assert told["configuration"]["formula"] == "brain_pad ~ age / icv"
    assert told["wall time, s"] == {"train": "61.2"}
    assert told["store"] == {"atlas_sha256": "ab"}
    compute = told["compute"]
    assert list(compute) == ["operating system", "processors", "memory", "scheduler"]
    assert int(compute["processors"]) >= 1
    assert re.fullmatch(r"\d+\.\d GB", compute["memory"])
    assert compute["scheduler"] == "threads"
    shown = str(provenance_blocks(store(), told))
    assert decisions in shown
    assert "somebody" not in shown
    assert str(tmp_path) not in shown


def test_study_provenance__names_the_table_of_imported_ages():
    told = study_provenance(store(tool="brainageR", table_sha256="cd"), {}, {})
    assert told["table of ages, SHA-256"] == "cd"
    assert "model, SHA-256" not in told
    assert not any("decisions" in key for key in told)


def test_study_provenance__tells_the_kind_of_the_scheduler_and_no_address():
    def scheduler() -> str:
        return study_provenance(store(), {}, {})["compute"]["scheduler"]

    with open_client(n_workers=1) as client:
        assert scheduler() == "local, 1 worker"
        with open_client(client.scheduler.address):
            assert scheduler() == "running scheduler over tcp, 1 worker"


@pytest.mark.parametrize("name", ["scipy", "pandas", "nilearn", "distributed", "shap", "formulaic"])
def test_versions__are_those_that_numbers_depend_on(name: str):
    found = versions()
    assert list(found) == ["scalebrain", "python", *PACKAGES]
    assert found[name] == version(name)


def test_versions__of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scalebrain.report.versions.PACKAGES", ("numpy", "no-such-package"))
    assert versions()["no-such-package"] == "not installed"


def test_packages__are_required_or_optional_parts():
    declared = {re.split(r"[^A-Za-z0-9-]", text)[0] for text in requires("scalebrain") or []}
    assert set(PACKAGES) <= declared
