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


def differing(one: Path, other: Path, *, only_ours: bool = False) -> list[str]:
    """Files whose bytes differ between two results, or that one of them lacks.

    With `only_ours`, the first has only run ingest and features: what the other has beyond them
    is left out, and so are the metadata of the store's root, which list it.
    """
    ours, theirs = digests(one), digests(other)
    assert any("node_features" in name for name in ours)
    if only_ours:
        ours.pop("cohort.zarr/zarr.json")
        return [name for name, digest in ours.items() if theirs.get(name) != digest]
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
