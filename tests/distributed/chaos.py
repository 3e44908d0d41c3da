"""Break a study in every way that a cluster can, run it again, and compare it with an unbroken one.

``python -m tests.distributed.chaos --seed 0`` prints the table of docs/faults.md; ``--only NAME``
runs one of the faults. Scheduler and workers are processes of their own, started as on a cluster.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from scalebrain.cluster.threads import WORKER_ENVIRONMENT
from tests.distributed.outputs import differing

HEADER = (
    "| fault | times | runs until the end | studies finished and compared | seconds "
    "| equal to the unbroken study |"
)
_ATTEMPTS = 12
_LIMIT = 900.0
_STAGES = ("7/7", "1/", "6/7", "5/7", "4/7", "3/7", "2/7")
#: A nanny ends where its worker dies before it has begun; a cluster's manager starts another.
_KEPT = ("sh", "-c", 'while :; do "$@"; sleep 0.2; done', "sh")
_ADDRESS = re.compile(rb"Scheduler at:\s+(tcp://\S+)")
_CONFIG = {"training": {"epochs": 4, "folds": 3}, "n_boot": 20, "n_permutations": 2}
_ENVIRONMENT = {
    **WORKER_ENVIRONMENT,
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "8s",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Outcome:
    """What became of a study that was broken."""

    fault: str
    faults: int = 0
    runs: int = 0
    finished: int = 0
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the study ended, equal to the unbroken one, and every stop said why."""
        return not self.differing and self.runs > 0 and all(self.messages)


class Cluster:
    """A scheduler and workers, each a process that may be killed."""

    def __init__(self, work: Path, n_workers: int = 2, memory: str = "3GB") -> None:
        self.work, self.n_workers, self.memory = work, n_workers, memory
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.nannies: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start(self) -> None:
        """Start what is not there."""
        log = self.work / "scheduler.log"
        self.scheduler = _process(log, "scheduler", "--host", "127.0.0.1", "--port", "0",
                                  "--dashboard-address", "127.0.0.1:0")  # fmt: skip
        end = time.monotonic() + 30
        while not (found := _ADDRESS.search(log.read_bytes())):
            if time.monotonic() > end:
                raise TimeoutError(log.read_text())
            time.sleep(0.1)
        self.address = found[1].decode()
        self.nannies = [
            _process(
                self.work / f"worker-{number}.log", "worker", self.address, "--nthreads", "1",
                "--memory-limit", self.memory, "--host", "127.0.0.1",
                "--dashboard-address", "127.0.0.1:0",
                "--local-directory", str(self.work / "scratch"), around=_KEPT,
            )
            for number in range(self.n_workers)
        ]  # fmt: skip

    def workers(self) -> list[psutil.Process]:
        """Processes that compute."""
        found = []
        for nanny in self.nannies:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(nanny.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                        if any("spawn_main" in part for part in child.cmdline()):
                            found.append(child)
        return found

    def stop(self) -> None:
        """Kill all that is left."""
        for process in (*self.nannies, self.scheduler):
            if process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.nannies, self.scheduler = [], None


def _process(log: Path, *arguments: str, around: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(
            [*around, sys.executable, "-m", "dask", *arguments],
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


@contextmanager
def running(work: Path, **options) -> Iterator[Cluster]:
    """Cluster that ends with the block."""
    cluster = Cluster(work, **options)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


class Study:
    """One study, run by the command as often as it takes."""

    def __init__(self, tree: Path, out: Path, participants: bool) -> None:
        self.tree, self.out = tree, out
        self.config = out.with_suffix(".yaml")
        self.config.write_text(yaml.safe_dump(_CONFIG))
        self.log = out.with_suffix(".log")
        self.participants = participants
        self.process: subprocess.Popen[bytes] | None = None
        self.again = 0  # runs that a fault began

    def start(self, address: str) -> None:
        """Begin, or go on."""
        if self.participants:
            command = ["scalebrain.cli.bids", str(self.tree), str(self.out), "participant"]
            command = ["-c", "from scalebrain.cli import bids_main; bids_main()", *command[1:]]
        else:
            command = ["-m", "scalebrain.cli", "run", str(self.tree), str(self.out)]
        command += ["--config", str(self.config), "--scheduler", address]
        if self.log.exists():
            self.log.rename(self.log.with_suffix(f".{time.monotonic_ns()}.log"))
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | _ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float = _LIMIT) -> int:
        """Exit code; one that hangs is killed, which is an error."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the driver and all that it has started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    close = kill

    def until(self, text: str) -> bool:
        """Wait until the log has a text; False when the study has ended before."""
        while text.encode() not in self.log.read_bytes():
            if not self.runs():
                return text.encode() in self.log.read_bytes()
            time.sleep(0.05)
        return True

    def message(self) -> str:
        """The error that it ended with; empty where it is a traceback or nothing."""
        text = self.log.read_text(errors="replace")
        found = re.findall(r"^error: (.+)$", text, re.MULTILINE)
        return "" if "Traceback (most recent call last)" in text or not found else found[-1]


Fault = Callable[[Study, Cluster, random.Random, int], int]


def kill_workers(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Kill a worker at random times."""
    done = 0
    while study.runs() and done < left:
        time.sleep(rng.uniform(1.0, 6.0))
        alive = cluster.workers()
        if alive and study.runs():
            with suppress(psutil.NoSuchProcess):
                rng.choice(alive).kill()
                done += 1
    return done


def freeze_worker(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Stop a worker for good while it computes; it wakes when all is over, and may write."""
    if not left or not study.until("2/"):
        return 0
    time.sleep(rng.uniform(0.0, 1.0))
    frozen = rng.choice(cluster.workers())
    frozen.send_signal(signal.SIGSTOP)
    while study.runs():
        time.sleep(0.1)
    with suppress(psutil.NoSuchProcess):
        frozen.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    return 1


def kill_scheduler(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Kill the scheduler in the middle of a stage; the next run has a new one."""
    if not left or not study.until(("2/", "1/")[left % 2]):
        return 0
    time.sleep(rng.uniform(0.5, 2.5))
    assert cluster.scheduler is not None
    cluster.scheduler.kill()
    study.wait()
    cluster.stop()
    cluster.start()
    return 1


def kill_driver(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Kill the command itself, in one stage after the other."""
    if not left or not study.until(f"{3 - left % 3}/"):
        return 0
    time.sleep(rng.uniform(0.2, 2.0))
    study.kill()
    return 1


def starve_workers(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Give workers too little memory for a task; the next run has more."""
    if left:
        study.wait()
        cluster.stop()
        cluster.memory = "3GB"
        cluster.start()
        return 1
    return 0


def fill_disk(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Fill the disk in one stage after the other; the next run finds room."""
    ballast = study.out.parent / "ballast"
    if not left or not study.until(_STAGES[left % len(_STAGES)]):
        return 0
    free = shutil.disk_usage(study.out.parent).free
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, free - rng.randrange(4_000, 400_000)))
    study.wait()
    ballast.unlink()
    return 1


def flip_bits(study: Study, cluster: Cluster, rng: random.Random, left: int) -> int:
    """Flip a bit in one shard and cut another, once the study has ended; verify finds both.

    They are read again, and the study is run once more.
    """
    if not left:
        return 0
    study.wait()
    store = study.out / "cohort.zarr"
    shards = sorted(path for path in store.glob("t1w/c/**/*") if path.is_file())
    flipped, cut = rng.sample(shards, 2)
    content = bytearray(flipped.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[: rng.randrange(1, cut.stat().st_size)])
    told = _command("store", "verify", str(store))
    assert told.returncode != 0, told.stdout + told.stderr
    assert all(f"c/{path.parent.name}" in told.stdout + told.stderr for path in (flipped, cut))
    told = _command("ingest", str(study.tree), str(store), "--verify")
    assert told.returncode == 0, told.stderr
    study.start(cluster.address)  # what had been computed from them is gone, and made again
    study.again += 1
    return 1


def _command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scalebrain.cli", *arguments],
        env=os.environ | _ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


#: Fault, how often, and memory of the workers.
FAULTS: dict[str, tuple[Fault, int, str]] = {
    "workers killed": (kill_workers, 50, "3GB"),
    "worker frozen": (freeze_worker, 1, "3GB"),
    "scheduler killed": (kill_scheduler, 2, "3GB"),
    "driver killed": (kill_driver, 3, "3GB"),
    "memory limit hit": (starve_workers, 1, "300MB"),
    "disk full": (fill_disk, 7, "3GB"),
    "shards damaged at rest": (flip_bits, 1, "3GB"),
}


def broken(
    name: str, tree: Path, whole: Path, work: Path, *, seed: int, times: int, participants: bool
) -> Outcome:
    """Run a study under one fault until all faults are done, and compare it with an unbroken one.

    A study that ends before its workers were killed as often as they are to be is compared,
    removed and begun anew.
    """
    fault, _, memory = FAULTS[name]
    rng = random.Random(f"{name}{seed}")
    outcome, left = Outcome(name), times
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    study = Study(tree, work / "out", participants)
    begin = time.monotonic()
    with running(work, memory=memory) as cluster, closing(study):
        while outcome.runs < _ATTEMPTS:
            study.start(cluster.address)
            outcome.runs += 1
            done = fault(study, cluster, rng, left)
            left -= done
            outcome.faults += done
            code = study.wait()
            if code == 0:
                outcome.finished += 1
                if not left:
                    break
                outcome.differing += differing(study.out, whole, only_ours=participants)
                if name.startswith("workers killed"):
                    shutil.rmtree(study.out)
            if code not in (0, -signal.SIGKILL):
                outcome.messages.append(study.message())
                if not outcome.messages[-1]:
                    print(study.log.read_text()[-3000:], file=sys.stderr)
        else:
            outcome.messages.append("")
    outcome.runs += study.again
    outcome.seconds = time.monotonic() - begin
    outcome.differing += differing(study.out, whole, only_ours=participants)
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the faults and print the table; exit code 1 when one was not survived."""
    parser = argparse.ArgumentParser(prog="tests.distributed.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, help="one fault")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder; a temporary one if not given"
    )
    options = parser.parse_args(arguments)
    import scalebrain

    work = options.work or Path(tempfile.mkdtemp(prefix="chaos-"))
    tree, whole = work / "bids", work / "whole"
    if not tree.exists():
        scalebrain.simulate_cohort(tree, reference=51, stroke=36, cohorts=4, resolution=3.0)
    whole.mkdir(exist_ok=True)
    unbroken = Study(tree, whole, participants=False)
    unbroken.start("threads")
    assert unbroken.wait() == 0, unbroken.log.read_text()
    outcomes = []
    for name in [options.only] if options.only else FAULTS:
        with room(work / "full" if name == "disk full" else None):
            place = work / ("full" if name == "disk full" else name.replace(" ", "-")) / "study"
            outcome = broken(
                name, tree, whole, place,
                seed=options.seed, times=FAULTS[name][1], participants=False,
            )  # fmt: skip
        outcomes.append(outcome)
        print(f"# {outcome}", file=sys.stderr, flush=True)
    print(HEADER)
    print("|---|---:|---:|---:|---:|---|")
    for one in outcomes:
        equal = "yes, every byte" if not one.differing else f"no: {', '.join(one.differing[:3])}"
        counts = f"{one.faults} | {one.runs} | {one.finished} | {one.seconds:.0f}"
        print(f"| {one.fault} | {counts} | {equal} |")
    for one in outcomes:
        for message in dict.fromkeys(one.messages):
            print(f"\n{one.fault}: {message or 'no message'}")
    return 0 if all(one.is_good for one in outcomes) else 1


@contextmanager
def room(folder: Path | None, size: str = "200m") -> Iterator[None]:
    """A small disk at a folder, where one is given; needs root."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
