"""Where the numbers of a report come from: versions, machine, settings and hashes."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import xarray as xr

from scalebrain.cluster.tasks import active_client
from scalebrain.report.content import number
from scalebrain.report.versions import versions

__all__ = ["Provenance", "provenance_blocks", "study_provenance"]

#: Settings that are paths.
_PATHS = ("qc_decisions", "table", "root", "withdrawn")


@dataclass(frozen=True)
class Provenance:
    """A titled list of names and values; a long value is shown as it was written."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    code: str = ""


def study_provenance(
    ds: xr.Dataset, config: Mapping[str, Any], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Collect what a study was computed with; nothing of it names a machine, a path or a user.

    Parameters
    ----------
    ds
        Store.
    config
        Settings of the study.
    seconds
        Wall time by stage.

    Returns
    -------
    dict
        As :func:`provenance_blocks` takes it. Of files among the settings the name is told; the
        hash of the configuration is that of its JSON with these names.
    """
    settings = _without_folders(config)
    told: dict[str, Any] = {"date of the report": date.today().isoformat()}
    attrs = [ds[n].attrs for n in ("brain_age", "brain_age_global") if n in ds.variables]
    for title, key in (("model", "model_fingerprint"), ("table of ages", "table_sha256")):
        found = next((str(one[key]) for one in attrs if one.get(key)), "")
        if found:
            told[f"{title}, SHA-256"] = found
    told["configuration, SHA-256"] = _sha256(_sorted_json(settings).encode())
    if config.get("qc_decisions"):
        content = Path(config["qc_decisions"]).read_bytes()
        told["decisions of the quality control, SHA-256"] = _sha256(content)
    return told | {
        "versions": versions(),
        "compute": _compute(),
        "configuration": {
            key: value if isinstance(value, int | float | str) else _sorted_json(value)
            for key, value in settings.items()
        },
        "store": {
            key: str(value)
            for key, value in ds.attrs.items()
            if key.endswith("sha256") or key in ("space", "shape", "package_version")
        },
        "wall time, s": {name: f"{spent:.1f}" for name, spent in seconds.items()},
    }


def _compute() -> dict[str, str]:
    """Machine that wrote the report, within the limits of its container, and its scheduler."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    return {
        "operating system": platform.platform(),
        "processors": str(CPU_COUNT),
        "memory": f"{MEMORY_LIMIT / 1e9:.1f} GB",
        "scheduler": _scheduler(),
    }


def _scheduler() -> str:
    """Kind of the scheduler, without its address, and the workers that it has now."""
    client = active_client()
    if client is None:
        return "threads"
    from distributed import LocalCluster

    n = len(client.nthreads())
    workers = f"{n} worker{'' if n == 1 else 's'}"
    if isinstance(client.cluster, LocalCluster):
        return f"local, {workers}"
    kind = "running scheduler" if client.cluster is None else type(client.cluster).__name__
    protocol = str(client.scheduler_info(n_workers=1)["address"]).partition("://")[0]
    return f"{kind} over {protocol}, {workers}"


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """Put the names of files among the settings in place of their paths."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out[key] = _without_folders(value)
        else:
            out[key] = Path(value).name if key in _PATHS and value else value
    return out


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def provenance_blocks(ds: xr.Dataset, provenance: Mapping[str, Any]) -> list[Provenance]:
    """Turn provenance into titled lists; everything is text, nothing is interpreted.

    Parameters
    ----------
    ds
        Store, whose text attributes are listed too.
    provenance
        Scalars, nested mappings, and text of any length such as a configuration file.

    Returns
    -------
    list of Provenance
        Scalars first, then nested mappings, then long text.
    """
    rows: list[tuple[str, str]] = []
    nested: list[Provenance] = []
    code: list[Provenance] = []
    for key, value in provenance.items():
        title = _title(str(key))
        if isinstance(value, Mapping):
            if value and all(not isinstance(v, Mapping | list | tuple) for v in value.values()):
                nested.append(
                    Provenance(title, tuple((str(k), _shown(k, v, key)) for k, v in value.items()))
                )
            else:
                code.append(Provenance(title, code=_json(value)))
        elif isinstance(value, list | tuple):
            code.append(Provenance(title, code=_json(list(value))))
        elif isinstance(value, str) and "\n" in value:
            code.append(Provenance(title, code=value))
        else:
            rows.append((title, _shown(key, value, "")))
    stored = tuple(
        (str(k), str(v))
        for k, v in ds.attrs.items()
        if isinstance(v, str | int | float) and len(str(v)) <= 200
    )
    out = [Provenance("This run", tuple(rows))] if rows else []
    out += nested
    if stored:
        out.append(Provenance("Cohort store", stored))
    return out + code


def _title(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _shown(key: Any, value: Any, parent: Any) -> str:
    seconds = any(word in str(parent) + str(key) for word in ("wall", "seconds", "time"))
    if isinstance(value, float):
        return f"{number(value, 1)} s" if seconds else f"{value:g}"
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
