"""Kill an ingest at random times, run it again, and compare the store with an unbroken one.

The whole process group, driver and workers, gets SIGKILL. With ``--s3`` the second store lies
on an S3 server (moto) behind a proxy that fails a share of the requests.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.s3 import create_bucket, faulty_proxy, moto_server, s3_environment

_BUCKET = "kills-bucket"
_ENDED = (0, 3)  # success, and success without the subjects that were rejected
_SPOOLED = 2**20  # bytes of an object that the S3 server keeps in memory, larger ones on disk
_PROGRESS = re.compile(rb"^ingest: (\d+)/(\d+)$", re.MULTILINE)
_RESUMED = re.compile(r"(\d+) of (\d+) partitions are done")

#: SHA-256 and size of every object by key.
Objects = dict[str, tuple[str, int]]


@dataclass
class Result:
    """What a broken ingest came to, beside an unbroken one of the same cohort.

    ``killed_at`` are fractions of the unbroken run.
    """

    store: str
    unbroken_seconds: float
    identical: bool = False
    intact: bool = False
    kills: int = 0
    killed_at: list[float] = field(default_factory=list)
    done_at_resume: list[str] = field(default_factory=list)
    seconds: float = 0.0
    objects: int = 0
    bytes: int = 0
    sha256: str = ""
    differing: list[str] = field(default_factory=list)
    leftover_files: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; exit code 1 when a store differs."""
    options = _parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    tree = _cohort(options)
    whole = options.work / f"whole-{tree.parent.name}.zarr"
    shutil.rmtree(whole, ignore_errors=True)
    unbroken = _Run(tree, str(whole), options.work / "whole.log")
    _end(unbroken)
    expected = _local_objects(whole)
    results = []
    if options.s3:
        with _failing_s3(options) as (server, environment):
            for name, kills in (("unbroken", 0), ("killed", options.kills)):
                place = f"s3://{_BUCKET}/{name}.zarr"
                run = _Run(tree, place, options.work / f"s3-{name}.log", environment)
                result = _break(run, unbroken, kills, options.seed)
                _compare(result, expected, _s3_objects(server, f"{name}.zarr/"))
                results.append(result)
                unbroken = run
    else:
        broken = options.work / f"killed-{tree.parent.name}.zarr"
        shutil.rmtree(broken, ignore_errors=True)
        run = _Run(tree, str(broken), options.work / "killed.log")
        result = _break(run, unbroken, options.kills, options.seed)
        _compare(result, expected, _local_objects(broken))
        results.append(result)
    _tell(results, options)
    return 0 if all(result.identical and result.intact for result in results) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.ingest_kills", description=__doc__)
    parser.add_argument("--subjects", type=int, default=2000)
    parser.add_argument("--resolution", type=float, default=2.0, help="voxel size in mm")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--s3", action="store_true", help="second store on S3")
    parser.add_argument("--failure-rate", type=float, default=0.1, help="of requests to S3")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and the failures")
    parser.add_argument("--work", type=Path, default=Path("kills-out"), help="cohort and stores")
    parser.add_argument("--quick", action="store_true", help="60 subjects at 4 mm")
    options = parser.parse_args(arguments)
    if options.quick:
        options.subjects, options.resolution = 60, 4.0
    options.work = options.work.resolve()
    return options


def _cohort(options: argparse.Namespace) -> Path:
    """Simulated cohort: made once, then used again."""
    tree = options.work / f"bids-{options.subjects}-{options.resolution:g}mm" / "tree"
    stroke = max(2, options.subjects // 40)
    command = ["simulate", str(tree), "--resolution", f"{options.resolution:g}"]
    command += ["--reference", str(options.subjects - stroke), "--stroke", str(stroke)]
    if not (tree / "participants.tsv").exists():
        _command(command, {}, options.work / "simulate.log")
    return tree


class _Run:
    """The command that ingests the cohort into one store, started as often as needed."""

    def __init__(
        self, tree: Path, store: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.store = store
        self.log = log
        self.environment = dict(environment or {})
        self.seconds = 0.0
        self.progress: list[tuple[float, int, int]] = []
        self._offset = 0
        self._command = ["ingest", str(tree), store]
        log.unlink(missing_ok=True)

    def start(self, limit: float | None = None, *, share: float = 0.0) -> bool:
        """Run to the end, or kill the whole process group; True at the end.

        The limit, in seconds, counts from the start of the process; where a share of the
        partitions is given, from when that many are done.
        """
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        process = _start(self._command, self.environment, self.log)
        begin = time.monotonic()
        self.progress = []
        try:
            while process.poll() is None:
                now = time.monotonic() - begin
                seen = _PROGRESS.findall(self.log.read_bytes()[self._offset :])
                self.progress += [(now, int(n), int(of)) for n, of in seen[len(self.progress) :]]
                since = self._reached(share) if share else 0.0
                if limit is not None and since is not None and now >= since + limit:
                    break
                time.sleep(0.02)
        finally:
            _kill(process)
            self.seconds += time.monotonic() - begin
        ended = process.returncode != -signal.SIGKILL
        if ended and process.returncode not in _ENDED:
            raise SystemExit(f"ingest: exit code {process.returncode}, see {self.log}")
        return ended

    def _reached(self, share: float) -> float | None:
        """Seconds until a share of all partitions was done; None when it is not yet."""
        found = _RESUMED.findall(self.log.read_text()[self._offset :])
        before = int(found[0][0]) if found else 0
        times = (t for t, done, left in self.progress if before + done >= share * (before + left))
        return next(times, None)

    def startup(self) -> float:
        """Seconds until workers are warm, of a run that ended."""
        first, last = self.progress[1], self.progress[-1]
        pace = (last[0] - first[0]) / max(1, last[1] - first[1])
        return max(self.progress[0][0], first[0] - pace * first[1])


def _end(run: _Run) -> None:
    if not run.start():
        raise SystemExit(f"{run.store}: did not end")


def _start(
    command: list[str], environment: Mapping[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """Start scalebrain in a process group of its own; its log is appended."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "scalebrain.cli", *command],
            env=os.environ | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End every process of the group, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(
    command: list[str], environment: Mapping[str, str], log: Path, codes: tuple[int, ...] = (0,)
) -> None:
    """Run scalebrain to its end."""
    process = _start(command, environment, log)
    try:
        process.wait()
    finally:
        _kill(process)
    if process.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}, see {log}")


def _break(run: _Run, unbroken: _Run, kills: int, seed: int) -> Result:
    """Ingest with kills: an unbroken run is cut at random times, one in each of its parts.

    The time of a cut is counted from the last tenth of the work that is done by then, so
    that it means the same to a run that went on from another one, or is slower.
    """
    result = Result(run.store, round(unbroken.seconds, 1))
    draw = random.Random(seed)
    whole, warm = unbroken.seconds, unbroken.startup()
    tenth = (whole - warm) / 10
    ended = False
    for number in range(kills):
        cut = whole * (number + draw.random()) / (kills + 1)
        done = max(0, int((cut - warm) / tenth))
        ended = run.start(cut - warm - done * tenth if done else cut, share=done / 10)
        if ended:
            break
        result.killed_at.append(round(cut / whole, 3))
    if not ended:
        _end(run)
    result.kills = len(result.killed_at)
    result.seconds = round(run.seconds, 1)
    log = run.log.read_text()
    result.done_at_resume = [f"{done}/{n}" for done, n in _RESUMED.findall(log)]
    _command(["store", "verify", run.store], run.environment, run.log, codes=(0, 1))
    result.intact = run.log.read_text().rstrip().endswith(f"{run.store}: intact")
    return result


def _compare(result: Result, expected: Objects, found: Objects) -> None:
    """Compare two stores object by object. Files that a killed writer left are counted apart."""
    left = {key for key in found if key.rsplit("/", 1)[-1].startswith(".") or "partial" in key}
    objects = {key: value for key, value in found.items() if key not in left}
    result.leftover_files = len(left)
    keys = expected.keys() | objects.keys()
    result.differing = sorted(k for k in keys if expected.get(k) != objects.get(k))
    result.identical = not result.differing
    result.objects = len(objects)
    result.bytes = sum(size for _, size in objects.values())
    result.sha256 = hashlib.sha256(json.dumps(sorted(objects.items())).encode()).hexdigest()


def _local_objects(folder: Path) -> Objects:
    """Every file of a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): _digest(p.read_bytes()) for p in files}


def _s3_objects(endpoint: str, prefix: str) -> Objects:
    """Every object below a prefix, read by another client than scalebrain's."""
    import boto3

    names = {
        "AWS_ACCESS_KEY_ID": "aws_access_key_id",
        "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
        "AWS_REGION": "region_name",
    }
    settings = {names[k]: v for k, v in s3_environment(endpoint).items() if k in names}
    client: Any = boto3.client("s3", endpoint_url=endpoint, **settings)
    out = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=prefix):
        for entry in page.get("Contents", ()):
            content = client.get_object(Bucket=_BUCKET, Key=entry["Key"])["Body"].read()
            out[entry["Key"].removeprefix(prefix)] = _digest(content)
    unfinished = client.list_multipart_uploads(Bucket=_BUCKET).get("Uploads", ())
    return out | {f"{upload['Key']} (unfinished upload)": ("", 0) for upload in unfinished}


def _digest(content: bytes) -> tuple[str, int]:
    return hashlib.sha256(content).hexdigest(), len(content)


@contextmanager
def _failing_s3(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, str]]]:
    """S3 server, and the environment that reaches it through a proxy that fails."""
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(_SPOOLED)
    os.environ["TMPDIR"] = str(options.work)
    with ExitStack() as stack:
        server = stack.enter_context(moto_server())
        create_bucket(server, _BUCKET)
        port = int(server.rsplit(":", 1)[1])
        proxy = stack.enter_context(faulty_proxy(port, options.failure_rate, options.seed))
        yield server, s3_environment(f"http://127.0.0.1:{proxy}")


def _tell(results: list[Result], options: argparse.Namespace) -> None:
    """Print a table, and write all of it as JSON."""
    columns: dict[str, Callable[[Result], object]] = {
        "store": lambda r: r.store.rsplit("/", 1)[-1],
        "objects": lambda r: r.objects,
        "MB": lambda r: round(r.bytes / 1e6, 1),
        "unbroken s": lambda r: r.unbroken_seconds,
        "seconds": lambda r: r.seconds,
        "kills": lambda r: r.kills,
        "done at resume": lambda r: " ".join(r.done_at_resume),
        "identical": lambda r: r.identical,
        "intact": lambda r: r.intact,
        "left": lambda r: r.leftover_files,
    }
    rows = [list(columns), *([str(get(r)) for get in columns.values()] for r in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
    place = "s3" if options.s3 else "local"
    path = options.work / f"ingest_kills-{place}-{options.subjects}.json"
    settings = {name: str(value) for name, value in vars(options).items()}
    content = {"settings": settings, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    sys.exit(main())
