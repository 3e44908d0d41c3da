"""Compare what two runs have written."""

import hashlib
from pathlib import Path

#: What tells when and how long: logs, records of the stages, pages with wall times.
_TELLING = ("log.jsonl", "stages/", "report.html", "derivatives/")


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a study's results that does not tell the time."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not str(path.relative_to(out)).startswith(_TELLING)
    }


def differing(one: Path, other: Path) -> list[str]:
    """Files that only one of two results has, or whose bytes differ."""
    ours, theirs = digests(one), digests(other)
    assert ours
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def differing_features(out: Path, whole: Path) -> list[str]:
    """Files of the store that ingest and features have written and a whole study has otherwise.

    The root's metadata are left out: they list the variables that later stages add.
    """
    ours, theirs = digests(out), digests(whole)
    assert any("node_features" in name for name in ours)
    return [
        name
        for name, digest in ours.items()
        if name != "cohort.zarr/zarr.json" and theirs.get(name) != digest
    ]
