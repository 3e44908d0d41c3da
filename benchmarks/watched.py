"""A command and what it takes: wall time, memory and bytes by stage of its log."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psutil

__all__ = ["Sample", "Watched", "by_stage", "watch"]

_EVERY_S = 1.0


@dataclass(frozen=True)
class Sample:
    """The processes of a command at one moment.

    Parameters
    ----------
    time
        Seconds since the epoch.
    memory
        Proportional set size of all of them, bytes: what they share counts once.
    read, written
        Bytes that they have asked the system to read and write so far, from caches or not.
    cpu
        Processor seconds so far.
    """

    time: float
    memory: int
    read: int
    written: int
    cpu: float


@dataclass
class Watched:
    """What a command took.

    Parameters
    ----------
    seconds
        From its start to its end.
    samples
        Once a second.
    foreign_cpu
        Part of the machine's processor time that others took.
    """

    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    foreign_cpu: float = 0.0


def watch(command: Sequence[str], log: Path) -> Watched:
    """Run a command and look at its processes once a second.

    Parameters
    ----------
    command
        The command.
    log
        File of what it prints.

    Returns
    -------
    Watched
        Its samples.

    Raises
    ------
    RuntimeError
        When the command fails.
    """
    out = Watched()
    before = psutil.cpu_times()
    start = time.time()
    with log.open("w") as text:
        process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT)
        ended = threading.Event()
        watcher = threading.Thread(target=_sample, args=(process.pid, out.samples, ended))
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
    out.seconds = time.time() - start
    after = psutil.cpu_times()
    idle = after.idle + after.iowait - before.idle - before.iowait
    total = sum(after) - sum(before)
    own = out.samples[-1].cpu if out.samples else 0.0
    out.foreign_cpu = max(0.0, (total - idle - own) / max(total, 1e-9))
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}\n{log.read_text()[-2000:]}")
    return out


def _sample(pid: int, samples: list[Sample], ended: threading.Event) -> None:
    """Add up the processes below one.

    The processor time of one that has ended stays with it; its bytes become those of the process
    that waited for it, which is in the tree.
    """
    spent: dict[tuple[int, float], float] = {}
    read = written = 0
    while not ended.wait(_EVERY_S):
        try:
            root = psutil.Process(pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        memory = now_read = now_written = 0
        for process in processes:
            try:
                size, counters = process.memory_full_info().pss, process.io_counters()
                times = process.cpu_times()
                spent[process.pid, process.create_time()] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            memory += size
            now_read += counters.read_chars
            now_written += counters.write_chars
        read, written = max(read, now_read), max(written, now_written)
        samples.append(Sample(time.time(), memory, read, written, sum(spent.values())))


def by_stage(watched: Watched, log: Path) -> dict[str, dict[str, float]]:
    """Divide what a study took by the stages that its log names.

    Parameters
    ----------
    watched
        Of the command.
    log
        log.jsonl of the study.

    Returns
    -------
    dict
        By stage, and by step of the statistics: ``seconds``, ``peak_bytes``, ``read_bytes``,
        ``written_bytes``, ``cpu_s``.
    """
    begins: list[tuple[str, float]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        stage = entry.get("stage", "")
        if entry["message"].startswith("statistics: "):
            stage = entry["message"]
        elif stage == "statistics" and begins and begins[-1][0].startswith(stage):
            continue
        if stage and (not begins or begins[-1][0] != stage):
            begins.append((stage, datetime.fromisoformat(entry["time"]).timestamp()))
    samples = watched.samples
    ends = [when for _, when in begins[1:]] + [samples[-1].time]
    out = {"start": _between(samples, samples[0].time, begins[0][1])}
    for (stage, begin), end in zip(begins, ends, strict=True):
        out[stage] = _between(samples, begin, end)
    return out


def _between(samples: Sequence[Sample], begin: float, end: float) -> dict[str, float]:
    """What was taken from one moment to another."""
    inside = [s for s in samples if begin - _EVERY_S <= s.time <= end + _EVERY_S] or [samples[-1]]
    first, last = inside[0], inside[-1]
    return {
        "seconds": end - begin,
        "peak_bytes": max(s.memory for s in inside),
        "read_bytes": last.read - first.read,
        "written_bytes": last.written - first.written,
        "cpu_s": last.cpu - first.cpu,
    }
