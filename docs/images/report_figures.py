"""Make the figures of docs/report.md: python docs/images/report_figures.py REPORT PERSON_PAGE."""

import sys
from pathlib import Path

from guide_figures import draw
from PIL import Image
from report_picture import shoot

FIGURES = {
    "coverage": "report_coverage.png",
    "node-importance": "report_importance.png",
    "multiverse-curve": "report_multiverse.png",
}


def main(report: Path, person: Path) -> None:
    draw(report, FIGURES)
    page = shoot(person, 1200, 2600)
    small = page.resize((page.width // 2, page.height // 2), Image.Resampling.LANCZOS)
    small.quantize(128).save(Path(__file__).parent / "report_person.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
