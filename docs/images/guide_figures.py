"""Make the figures of docs/guide.md from a report: python docs/images/guide_figures.py REPORT."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

#: Figures of the report, by their id without "fig-", and the file that each becomes.
FIGURES = {
    "flow": "guide_flow.png",
    "lesionmap": "guide_lesions.png",
    "scatter": "guide_brain_age.png",
    "surface-mixed": "guide_effects.png",
    "forest-mixed": "guide_forest.png",
    "sem-diagram": "guide_paths.png",
    "motor": "guide_motor.png",
}
WIDTH, HEIGHT = 1000, 1600


def draw(report: Path, figures: dict[str, str]) -> None:
    """Draw figures of a report, by their id without "fig-", into files beside this one."""
    text = report.read_text(encoding="utf-8")
    head = text[: text.index("</head>")]
    blocked = r"<meta[^>]*Content-Security-Policy[^>]*>|<script.*?</script>"
    head = re.sub(blocked, "", head, flags=re.DOTALL)
    for name, file in figures.items():
        start = text.index(f'<figure id="fig-{name}"')
        figure = text[start : text.index("<figcaption", start)]
        with tempfile.TemporaryDirectory() as folder:
            page, shot = Path(folder) / "figure.html", Path(folder) / "figure.png"
            page.write_text(
                f"{head}</head><body style='padding: 20px'>"
                f"<main>{figure}</figure></main></body></html>",
                encoding="utf-8",
            )
            flags = (
                "--headless=new --no-sandbox --disable-quic --no-first-run --disable-sync "
                "--disable-component-update --disable-background-networking --hide-scrollbars "
                f"--user-data-dir={folder}/profile --virtual-time-budget=3000 "
                f"--window-size={WIDTH},{HEIGHT} --screenshot={shot}"
            ).split()
            subprocess.run(
                ["chromium", *flags, page.as_uri()], check=True, capture_output=True, timeout=60
            )
            picture = Image.open(shot).convert("RGB")
        plain = Image.new("RGB", picture.size, picture.getpixel((0, HEIGHT - 1)))
        left, top, right, bottom = ImageChops.difference(picture, plain).getbbox()
        picture = ImageOps.expand(
            picture.crop((left, top, right, bottom)), 12, picture.getpixel((0, HEIGHT - 1))
        )
        picture.quantize(96).save(Path(__file__).parent / file, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), FIGURES)
