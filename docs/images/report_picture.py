"""Make docs/images/report.png from a report: python docs/images/report_picture.py REPORT."""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1200, 5400


def shoot(page: Path, width: int, height: int) -> Image.Image:
    """Take a picture of the top of a page."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        flags = (
            "--headless=new --no-sandbox --disable-quic --no-first-run --disable-sync "
            "--disable-component-update --disable-background-networking --hide-scrollbars "
            f"--user-data-dir={folder}/profile --virtual-time-budget=5000 "
            f"--window-size={width},{height} --screenshot={shot}"
        ).split()
        command = ["chromium", *flags, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return Image.open(shot).convert("RGB")


def main(report: Path) -> None:
    page = shoot(report, WIDTH, HEIGHT)
    half = HEIGHT // 2
    picture = Image.new("RGB", (2 * WIDTH, half), "white")
    for i, top in enumerate((0, half)):
        picture.paste(page.crop((0, top, WIDTH, top + half)), (i * WIDTH, 0))
    small = picture.resize((WIDTH, half // 2), Image.Resampling.LANCZOS)
    small.quantize(192).save(Path(__file__).parent / "report.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
