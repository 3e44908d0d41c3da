"""How large the group report is, how long it takes to write, and to open in a browser.

    python -m benchmarks.report [--people 500] [--resolution 3] [--rounds 5] [--out FILE]

A cohort is simulated, half of it strokes, and goes through `run_study` (few epochs, few replicates:
what the page holds does not depend on them). Then the page is written again from the store and the
results, and opened by headless Chromium, each time a new process with a new profile; times are
those of the page's own `performance` entries, counted from the start of navigation.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tornado.websocket import websocket_connect

import scalebrain
from scalebrain.io.results import read_results
from scalebrain.report.content import StudyResults
from scalebrain.report.page import write_report

GOAL_MB, GOAL_S = 15.0, 2.0
CONFIG = {"training": {"epochs": 5, "folds": 5}, "n_boot": 50, "n_permutations": 5}
RESULTS = [
    "accuracy",
    "attribution",
    "artifact",
    "mixed",
    "mixed_load",
    "sem",
    "motor",
    "multiverse",
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-quic",
    "--disable-component-update",
    "--disable-background-networking",
    "--window-size=1200,900",
    "--remote-debugging-port=0",
]
TIMES = """(() => {
  const page = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return [paint.startTime, page.domContentLoadedEventEnd, page.loadEventEnd].map((t) => t / 1000);
})()"""


def study(folder: Path, people: int, resolution: float) -> Path:
    """Results of a study of simulated people."""
    tree = scalebrain.simulate_cohort(
        folder / "bids",
        reference=people - people // 2,
        stroke=people // 2,
        cohorts=max(3, people // 20),
        resolution=resolution,
    )
    scalebrain.run_study(tree, folder / "out", CONFIG)
    return folder / "out"


def write(out: Path) -> float:
    """Write the page again; seconds."""
    start = time.perf_counter()
    results, attrs = read_results(out / "results.zarr")
    parts: Any = {name: results.get(name) for name in RESULTS}
    missing = dict(attrs.get("missing", {}))
    ds = scalebrain.open_store(out / "cohort.zarr")
    write_report(ds, out / "again.html", results=StudyResults(**parts, missing=missing))
    return time.perf_counter() - start


async def ask(url: str, page: str) -> list[float]:
    """Open a page in a browser that listens, and return its times."""
    connection = await websocket_connect(url, max_message_size=2**24)
    numbers = itertools.count(1)

    async def call(method: str, **parameters: Any) -> dict[str, Any]:
        number = next(numbers)
        await connection.write_message(
            json.dumps({"id": number, "method": method, "params": parameters})
        )
        while True:
            answer = json.loads(await connection.read_message() or "{}")
            if answer.get("id") == number:
                return dict(answer["result"])

    await call("Page.enable")
    await call("Page.navigate", url=page)
    for _ in range(300):
        await asyncio.sleep(0.1)
        found = await call("Runtime.evaluate", expression=TIMES, returnByValue=True)
        times = found["result"].get("value")
        if times and all(times):
            return [float(t) for t in times]
    raise TimeoutError(f"{page}: not loaded after 30 s.")


def load(page: Path) -> list[float]:
    """Seconds to the first paint, to the end of parsing and to the end of loading."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("No Chromium. Run .ci/system-packages.sh as root.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [browser, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return asyncio.run(ask(tab(Path(folder)), page.resolve().as_uri()))
        finally:
            process.terminate()
            process.wait(20)


def tab(profile: Path) -> str:
    """Address of the first tab of a browser, when it listens."""
    told = profile / "DevToolsActivePort"
    for _ in range(200):
        time.sleep(0.1)
        if not told.exists():
            continue
        port = told.read_text().split()[0]
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            for one in json.load(answer):
                if one["type"] == "page":
                    return str(one["webSocketDebuggerUrl"])
    raise TimeoutError("The browser does not listen after 20 s.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--resolution", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--study", type=Path, help="Results of a study that was run before.")
    parser.add_argument("--out", type=Path, help="JSON file.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = options.study or study(Path(folder), options.people, options.resolution)
        people = scalebrain.open_store(out / "cohort.zarr").sizes["subject"]
        seconds = statistics.median(write(out) for _ in range(options.rounds))
        page = out / "again.html"
        size = page.stat().st_size / 1e6
        rounds = [load(page) for _ in range(options.rounds)]
        page.unlink()
    paint, parsed, loaded = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"{people} people; load of the machine {os.getloadavg()[0]:.1f}")
    print("| | figure | goal |\n|---|---|---|")
    print(f"| size, MB | {size:.1f} | {GOAL_MB:.0f} |")
    print(f"| written, s | {seconds:.1f} | |")
    print(f"| first paint, s | {paint:.2f} | |")
    print(f"| parsed (DOMContentLoaded), s | {parsed:.2f} | |")
    print(f"| loaded, s | {loaded:.2f} | {GOAL_S:.0f} |")
    if options.out:
        figures = {"people": people, "size_mb": size, "write_s": seconds, "rounds_s": rounds}
        machine = {"cores": os.cpu_count(), "python": platform.python_version()}
        options.out.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
