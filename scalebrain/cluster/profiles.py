"""Profiles: what the workers are on a cluster, in a YAML file, by name."""

import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from scalebrain.cluster.local import parsed_memory
from scalebrain.errors import ConfigError
from scalebrain.io.checked import checked
from scalebrain.io.marked_yaml import read_yaml

__all__ = ["PROFILES_VARIABLE", "Profile", "default_profiles", "profiles_schema", "read_profile"]

#: Environment variable that names the file of profiles.
PROFILES_VARIABLE = "SCALEBRAIN_PROFILES"


@dataclass(frozen=True)
class Profile:
    """Jobs of one kind, as ``profiles.schema.json`` describes them key by key.

    Parameters
    ----------
    cores, memory
        Of one job.
    processes
        Workers of one job; None for one a core.
    jobs
        ``minimum`` and ``maximum``.
    queue, account, walltime, job_extra, prologue
        What the jobs are asked for with, and what they run first.
    interface
        Network interface; empty for the default.
    log_directory, local_directory, shared_directory
        Folders of logs, scratch and certificates; empty for the defaults.
    tls
        Whether scheduler and workers talk over TLS.
    dashboard
        Address of the pages of scheduler and workers.
    gpu
        Jobs with a GPU beside the others; empty for none.
    """

    cores: int
    memory: str
    processes: int | None = None
    jobs: dict[str, int] = field(default_factory=dict)
    queue: str = ""
    account: str = ""
    walltime: str = "04:00:00"
    interface: str = ""
    job_extra: list[str] = field(default_factory=list)
    prologue: list[str] = field(default_factory=list)
    log_directory: str = ""
    local_directory: str = ""
    shared_directory: str = ""
    tls: bool = True
    dashboard: str = "127.0.0.1:0"
    gpu: dict[str, Any] = field(default_factory=dict)

    @property
    def workers_of_job(self) -> int:
        """Workers of one job."""
        return self.processes or self.cores

    @property
    def n_jobs(self) -> tuple[int, int]:
        """Fewest and most jobs."""
        fewest = self.jobs.get("minimum", 1)
        return fewest, max(fewest, self.jobs.get("maximum", 8))


def default_profiles() -> Path:
    """Return where profiles lie when nothing is said of it."""
    named = os.environ.get(PROFILES_VARIABLE)
    return Path(named) if named else Path.home() / ".config" / "scalebrain" / "profiles.yaml"


def profiles_schema() -> dict[str, Any]:
    """Return the JSON schema of a file of profiles (draft 2020-12)."""
    text = files("scalebrain.cluster").joinpath("profiles.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_profile(name: str, path: str | Path | None = None) -> Profile:
    """Read one profile of a file.

    Parameters
    ----------
    name
        Name of the profile.
    path
        YAML file; that of `default_profiles` when None.

    Returns
    -------
    Profile
        Checked profile.

    Raises
    ------
    ConfigError
        When the file cannot be read, anything in it is not valid (with line and column), or it
        has no profile of this name.
    """
    place = default_profiles() if path is None else Path(path)
    if not place.is_file():
        raise ConfigError(
            f"{place}: no such file, so profile '{name}' is not known. Write the profile there, "
            f"or name its file with --profiles or {PROFILES_VARIABLE}."
        )
    found = checked(read_yaml(place), profiles_schema(), str(place))
    if name not in found:
        known = ", ".join(found) or "none"
        raise ConfigError(f"{place}: no profile '{name}'. It has: {known}.")
    profile = Profile(**found[name])
    for memory in (profile.memory, profile.gpu.get("memory")):
        if memory is not None:
            parsed_memory(memory, f"{place}: {name}")
    if profile.cores % profile.workers_of_job:
        raise ConfigError(
            f"{place}: {name}: {profile.cores} cores cannot be shared evenly by "
            f"{profile.workers_of_job} processes. Give a divisor of the cores."
        )
    if profile.jobs.get("maximum", profile.n_jobs[1]) < profile.n_jobs[0]:
        raise ConfigError(
            f"{place}: {name}: jobs: the maximum {profile.jobs['maximum']} is below the minimum "
            f"{profile.n_jobs[0]}."
        )
    return profile
