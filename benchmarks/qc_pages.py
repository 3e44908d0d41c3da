"""Pages of a quality control: time and size a subject, and whether memory grows with their number.

Each run is a process of its own, on threads, because its peak of memory is what is measured.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import scalebrain


def measure(store: str, n: int) -> dict[str, float]:
    """Write the pages of the first `n` subjects, and say what they cost."""
    labels = [str(label) for label in scalebrain.open_store(store)["subject"].values][:n]
    with tempfile.TemporaryDirectory() as folder, scalebrain.open_client("threads"):
        start = time.perf_counter()
        index = scalebrain.write_qc_pages(store, folder, subjects=labels)
        seconds = time.perf_counter() - start
        pages = [p.stat().st_size for p in Path(folder).glob("*.html") if p != index]
        pictures = [p.stat().st_size for p in Path(folder).glob("*/*.jpg")]
        return {
            "subjects": len(labels),
            "ms_a_subject": 1e3 * seconds / len(labels),
            "page_mb": sum(pages) / len(pages) / 1e6,
            "thumbnail_kb": sum(pictures) / max(len(pictures), 1) / 1e3,
            "index_kb_a_subject": index.stat().st_size / len(labels) / 1e3,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


def main() -> None:
    """Measure some of the subjects of a store, and all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--subjects", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.store, arguments.one)))
        return
    for n in arguments.subjects:
        command = [sys.executable, "-m", "benchmarks.qc_pages", arguments.store, "--one", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print("  ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
