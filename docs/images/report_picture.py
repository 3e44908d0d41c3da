"""Make docs/images/report.png from a report: python docs/images/report_picture.py REPORT."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1200, 5400


def main(report: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        flags = (
            "--headless=new --no-sandbox --disable-quic --no-first-run --disable-sync "
            "--disable-component-update --disable-background-networking "
            f"--virtual-time-budget=5000 --window-size={WIDTH},{HEIGHT} --screenshot={shot}"
        ).split()
        subprocess.run(["chromium", *flags, report.resolve().as_uri()], check=True)
        page = Image.open(shot).convert("RGB")
    half = HEIGHT // 2
    columns = [page.crop((0, top, WIDTH - 20, top + half)) for top in (0, half)]
    picture = Image.new("RGB", (2 * WIDTH, half), "white")
    for i, column in enumerate(columns):
        picture.paste(column, (i * WIDTH, 0))
    small = picture.resize((WIDTH, half // 2), Image.Resampling.LANCZOS)
    target = Path(__file__).parent / "report.png"
    small.quantize(192).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
