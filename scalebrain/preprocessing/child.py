"""A scan's own process: it is started and watched, and takes no other scan along."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess  # nosec B404
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalebrain.errors import StoreBusyError
from scalebrain.io.atomic import json_bytes
from scalebrain.io.failures import explain
from scalebrain.io.preprocessed import has_files, read_record, record_path
from scalebrain.preprocessing.derivatives import hold, remove_scan

__all__ = ["Task", "end_with_parent", "failure", "finished", "run_scan"]

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_LITTLE_SPACE = 32 * 2**20
_FULL = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True)
class Task:
    """One scan with everything that its process needs.

    Parameters
    ----------
    job
        As :func:`~scalebrain.preprocessing.subject.run_job` takes it.
    threads
        Threads of the process.
    wait
        Seconds to wait for another process that is at the scan: that of a worker which was killed
        ends at once, that of one which was lost goes on.
    """

    job: dict[str, Any]
    threads: int
    wait: float = 10.0

    @property
    def name(self) -> str:
        """Name of the scan."""
        return str(self.job["name"])


def finished(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Record of a scan that is done as asked for; None when it is not."""
    folder = Path(job["out"])
    record = read_record(record_path(folder, job["person"], job["session"]))
    if record is None or record.get("fingerprint") != job["fingerprint"]:
        return None
    return record if has_files(folder, record) else None


def failure(message: str) -> dict[str, Any]:
    """Make the result of a scan whose process failed."""
    return {"code": "preprocessing-failed", "error": message}


def run_scan(task: Task) -> dict[str, Any]:
    """Preprocess one scan in a process of its own; whatever happens is a result.

    Parameters
    ----------
    task
        Scan.

    Returns
    -------
    dict
        Its record, or ``code`` and ``error``; then nothing of the scan is left in the folder, not
        even of an earlier run; with ``busy`` when another command is at it.
    """
    job = task.job
    folder = Path(job["out"])
    try:
        with hold(folder, task.name, wait=task.wait) as lock:
            done = finished(job)
            if done is not None:  # by another command, meanwhile
                return done
            remove_scan(folder, job["person"], job["session"])
            found = _in_child(task, lock)
            if "error" in found:
                remove_scan(folder, job["person"], job["session"])
            return found
    except StoreBusyError as error:
        return failure(str(error)) | {"busy": True}
    except OSError as error:
        return failure(str(explain(task.name, error)))


def _in_child(task: Task, lock: int | None) -> dict[str, Any]:
    """Start the process and wait for it."""
    whose = hashlib.sha256(f"{task.job['out']}|{task.name}".encode()).hexdigest()[:16]
    prefix = f"scalebrain-{whose}-"
    if lock is not None:
        _remove_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        path = Path(folder) / "job.json"
        path.write_bytes(json_bytes({**task.job, "parent": os.getpid()}))
        threads = str(task.threads)
        limits = [
            f"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS={threads}",
            f"OMP_NUM_THREADS={threads}",
            f"OPENBLAS_NUM_THREADS={threads}",
            f"MKL_NUM_THREADS={threads}",
            f"TMPDIR={folder}",
        ]
        # -P: no code of the current folder, which may be that of a dataset
        work = [sys.executable, "-P", "-m", "scalebrain.preprocessing.subject", str(path)]
        command = ["/usr/bin/env", *limits, *work]  # the rest of the environment is inherited
        told = subprocess.run(  # nosec B603
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            pass_fds=() if lock is None else (lock,),  # held until the last of both ends
        )
        result = path.with_suffix(".result")
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return found
        places = (folder, task.job["out"])
        is_full = any(shutil.disk_usage(place).free < _LITTLE_SPACE for place in places)
    return failure(_ending(task.name, told.returncode, told.stderr, is_full=is_full))


def _ending(name: str, code: int, text: str, *, is_full: bool) -> str:
    """Say how a process ended that left no result."""
    if is_full or any(words in text for words in _FULL):
        return (
            f"{name}: no space left on the disk of the derivatives or of the temporary files "
            "(TMPDIR), or its quota is used up. Free space and run the same command again: it "
            "goes on."
        )
    last = (text.strip().splitlines() or ["no message"])[-1][:300]
    if code < 0:  # killed, as a rule for want of memory
        ended = f"signal {-code} ({last}). Give it more memory (fewer --n-workers), and"
    else:
        ended = f"code {code} ({last}). Look at the scan; when it is sound,"
    return f"{name}: its process ended with {ended} run the same command again: it goes on."


def _remove_abandoned(prefix: str) -> None:
    """Remove temporary folders of the same scan, whose processes were killed: we hold its lock."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if not old.is_symlink() and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it ends, be it killed.

    Parameters
    ----------
    parent
        Number of the process that started this one.

    Notes
    -----
    Linux does it at once; elsewhere a thread looks each second.
    """
    try:
        bound = ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL) == 0
    except (AttributeError, OSError):
        bound = False
    if os.getppid() != parent:  # it ended before
        sys.exit("the process that started it has ended")
    if not bound:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End when another process has become the parent."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
