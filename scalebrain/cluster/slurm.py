"""Workers as jobs of SLURM, through dask-jobqueue.

The commands of SLURM are run without a shell, with arguments that come from SLURM or from here.
"""

import contextlib
import logging
import re
import signal
import subprocess  # nosec B404
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebrain.cluster.profiles import Profile
from scalebrain.cluster.security import transport
from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from scalebrain.cluster.waiting import first_worker
from scalebrain.errors import ConfigError, ScalebrainError

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Client

__all__ = ["slurm_client"]

logger = logging.getLogger(__name__)

#: A worker hands back what it holds this share of the walltime before its job is ended.
_LIFETIME = 0.9
_WALLTIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_LOG_LINES = 15
_LOOK_EVERY = 15.0
#: What dask-jobqueue raises when sbatch fails, and when it names no job.
_REFUSED = (RuntimeError, ValueError)


@contextlib.contextmanager
def slurm_client(profile: Profile, name: str, n_workers: int | None) -> Iterator["Client"]:
    """Start a scheduler here and workers as jobs, and end them.

    Parameters
    ----------
    profile
        What the jobs are.
    name
        Name of the profile.
    n_workers
        Workers, rounded up to whole jobs; None for as many jobs as the work needs within the
        profile's limits.

    Yields
    ------
    Client
        Client with at least one worker.

    Raises
    ------
    ConfigError
        When dask-jobqueue is not installed, or is imported first in another thread than the main
        one, there is no ``sbatch``, or SLURM refuses the jobs.
    ScalebrainError
        When all jobs ended before a worker came.
    """
    import dask
    from distributed import Client

    kind = _slurm_cluster()
    fewest, most = profile.n_jobs
    if n_workers is not None:
        fewest = most = -(-n_workers // profile.workers_of_job)
    logs = Path(profile.log_directory or "scalebrain-logs").expanduser().resolve()
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": "inf"}),
        transport(profile.tls, profile.shared_directory) as security,
        _cluster(kind, profile, name, logs, security) as cluster,
        _closing_jobs(cluster),
        Client(cluster) as client,
    ):
        _check_accepted(cluster.job_script(), name)
        if profile.gpu or fewest == most:
            # Adaptive even so: it replaces the jobs that end.
            fewest = most
        cluster.adapt(minimum_jobs=fewest, maximum_jobs=most)
        with _gpu_jobs(cluster, profile, logs, name):
            first_worker(client, lambda: _waiting(cluster, logs, name))
            logger.info("workers by SLURM; dashboard at %s", client.dashboard_link)
            yield client


def _slurm_cluster() -> type["SLURMCluster"]:
    """Import dask-jobqueue, which takes Ctrl-C for itself, and give Ctrl-C back."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import SLURMCluster as Found
    except ImportError as error:
        raise ConfigError(
            "Jobs of SLURM need dask-jobqueue: pip install 'scalebrain[cluster]'."
        ) from error
    except ValueError as error:  # of signal.signal, outside of the main thread
        raise ConfigError(
            f"dask-jobqueue cannot be imported in the thread '{threading.current_thread().name}': "
            f"{error}. Import dask_jobqueue in the main thread before."
        ) from error
    finally:
        if ctrl_c is not None and signal.getsignal(signal.SIGINT) is not ctrl_c:
            signal.signal(signal.SIGINT, ctrl_c)
    found: type[SLURMCluster] = Found
    return found


def _cluster(
    kind: type["SLURMCluster"],
    profile: Profile,
    name: str,
    logs: Path,
    security: Mapping[str, Any],
) -> "SLURMCluster":
    """Start a scheduler; that it cannot is most often the interface."""
    try:
        return kind(
            **_job(profile, logs),
            **security,
            scheduler_options={"dashboard_address": profile.dashboard},
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())
        raise ConfigError(
            f"Profile '{name}': no scheduler can start here: {reason}. See its interface "
            f"('{profile.interface}') and dashboard ('{profile.dashboard}')."
        ) from error


@contextlib.contextmanager
def _closing_jobs(cluster: "SLURMCluster") -> Iterator[None]:
    """Say of the jobs at the end that they close, which dask-jobqueue does not.

    Else a cluster that closes fails over those that an error still refers to.
    """
    from distributed.core import Status

    try:
        yield
    finally:
        for job in list(cluster.workers.values()):
            job.status = Status.closing


def _job(profile: Profile, logs: Path) -> dict[str, Any]:
    """Arguments of a job."""
    seconds = _seconds(profile.walltime)
    lifetime = [
        "--lifetime",
        f"{int(_LIFETIME * seconds)}s",
        "--lifetime-stagger",
        f"{max(1, int((1 - _LIFETIME) * seconds / 2))}s",
    ]
    return {
        "cores": profile.cores,
        "processes": profile.workers_of_job,
        "memory": profile.memory,
        "walltime": profile.walltime,
        "queue": profile.queue or None,
        "account": profile.account or None,
        "interface": profile.interface or None,
        "job_extra_directives": list(profile.job_extra),
        "job_script_prologue": [
            *(f"export {key}={value}" for key, value in WORKER_ENVIRONMENT.items()),
            *profile.prologue,
        ],
        "log_directory": str(logs),
        "local_directory": profile.local_directory or None,
        "worker_extra_args": ["--dashboard-address", profile.dashboard, *lifetime],
        "job_name": "scalebrain",
    }


def _seconds(walltime: str) -> int:
    """Seconds of a time limit in one of SLURM's notations."""
    found = _WALLTIME.fullmatch(walltime.strip())
    if found is None:
        raise ConfigError(
            f"Walltime '{walltime}': expected HH:MM:SS or D-HH:MM:SS, such as 04:00:00."
        )
    parts = [int(part) for part in found["clock"].split(":")]
    if found["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return int(found["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)  # minutes[:seconds]


def _check_accepted(script: str, name: str) -> None:
    """Let SLURM say what it thinks of a job, before any is submitted."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            told = subprocess.run(  # nosec B603 B607
                ["sbatch", "--test-only", file.name],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError as error:
            raise ConfigError(
                "No sbatch on this machine. Run scalebrain where jobs are submitted."
            ) from error
    if told.returncode:
        reason = (told.stderr or told.stdout).strip().splitlines()
        raise ConfigError(
            f"Profile '{name}': SLURM refuses its jobs: {reason[-1] if reason else 'no reason'}"
        )


@contextlib.contextmanager
def _gpu_jobs(cluster: "SLURMCluster", profile: Profile, logs: Path, name: str) -> Iterator[None]:
    """Jobs with a GPU beside the others; their workers carry the resource ``GPU``."""
    if not profile.gpu:
        yield
        return
    arguments = _job(profile, logs)
    for key in ("queue", "cores", "memory"):
        if profile.gpu.get(key):
            arguments[key] = profile.gpu[key]
    arguments["job_extra_directives"] = profile.gpu.get("job_extra", ["--gres=gpu:1"])
    arguments["worker_extra_args"] += ["--resources", "GPU=1"]
    arguments["processes"] = 1  # one process has the GPU
    jobs: dict[int, Any] = {}

    def start(number: int) -> None:
        job = cluster.job_cls(
            cluster.scheduler_address,
            name=f"gpu-{number}",
            security=cluster._job_kwargs["security"],
            protocol=cluster._job_kwargs["protocol"],
            config_name="slurm",
            **arguments,
        )
        if not jobs:
            _check_accepted(job.job_script(), f"{name}: gpu")
        try:
            cluster.sync(job.start)
        except _REFUSED as error:
            raise _refused(f"{name}: gpu", error) from error
        jobs[number] = job

    def replace_ended() -> None:
        while not done.wait(_LOOK_EVERY):
            for number, job in list(jobs.items()):
                if not _alive([job.job_id]):
                    try:
                        start(number)
                    except ConfigError as error:  # it is tried again
                        logger.warning("a job with a GPU cannot be replaced: %s", error)

    done = threading.Event()
    watcher = threading.Thread(target=replace_ended, name="scalebrain-gpu-jobs", daemon=True)
    try:
        for number in range(profile.gpu["jobs"]):
            start(number)
        watcher.start()
        yield
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()
        for job in jobs.values():
            cluster.sync(job.close)


def _refused(name: str, error: Exception) -> ConfigError:
    """Error of jobs that are refused when they are submitted."""
    return ConfigError(f"Profile '{name}': SLURM refuses its jobs: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Take what sbatch has said out of the error that dask-jobqueue makes of it."""
    _, _, told = str(error).rpartition("stderr:\n")
    return "; ".join(filter(None, map(str.strip, told.splitlines()))) or "no reason"


def _waiting(cluster: "SLURMCluster", logs: Path, name: str) -> str:
    """Say how many jobs there are; that all have ended or are refused is an error."""
    jobs = list(cluster.workers.values())
    for job in jobs:
        if not job.job_id:  # refused: nobody else submits it again, or says why not
            try:
                cluster.sync(job.start)
            except _REFUSED as error:
                if not any(one.job_id for one in jobs):
                    raise _refused(name, error) from error
                logger.warning("%s", _refused(name, error))
                break  # the others are tried at the next look
    ids = [job.job_id for job in jobs if job.job_id]
    if ids and not _alive(ids):
        raise ScalebrainError(
            f"All jobs of SLURM ended before a worker came. {_last_log(logs, ids)}"
        )
    return f"{len(ids)} jobs are in the queue"


def _alive(ids: list[str]) -> bool:
    """Whether any job waits or runs."""
    told = subprocess.run(  # nosec B603 B607
        ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(ids)}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    # Of ids that it has forgotten squeue says that they are not valid; all else may pass.
    return bool(told.stdout.strip()) if not told.returncode else "Invalid job id" not in told.stderr


def _last_log(logs: Path, ids: list[str]) -> str:
    """End of the log of a job."""
    for job in ids:
        for path in sorted(logs.glob(f"*-{job}.err")):
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return f"{path} ends with:\n" + "\n".join(lines[-_LOG_LINES:])
    return f"See their logs in {logs}."
