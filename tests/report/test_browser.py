"""The page in a real browser: no error, no request, tables that sort."""

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import scalebrain
from scalebrain.report.person import person_report, write_person
from scalebrain.report.qcpages import write_qc_pages

PROBE = """
const report = { errors: [], loaded: performance.getEntriesByType("resource").map((r) => r.name) };
const table = document.getElementById("sites");
const order = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent);
const button = (i) => table.tHead.rows[0].cells[i].querySelector("button");
const sorted = (i) => { button(i).click(); return [order(), button(i).parentNode.ariaSort]; };
report.first = order();
report.cohort = [sorted(0), sorted(0)];
report.number = [sorted(1), sorted(1)];
dispatchEvent(new Event("beforeprint"));
report.folded = document.querySelectorAll("details:not([open])").length;
dispatchEvent(new Event("afterprint"));
report.refolded = document.querySelectorAll("details:not([open])").length;
report.small = [...document.querySelectorAll("figure svg")].filter(
  (s) => s.getBoundingClientRect().width < 300 || s.getBoundingClientRect().height < 90).length;
report.wide = document.documentElement.scrollWidth - innerWidth;
report.scheme = getComputedStyle(document.body).backgroundColor;
document.body.dataset.report = JSON.stringify(report);
"""


def probed(page: str, probe: str = PROBE) -> str:
    """The same page with the probe behind its script, and a policy that allows both."""
    script = page[page.index("<script>") + 8 : page.rindex("</script>")]
    both = script + probe
    old, new = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, both)
    )
    return page.replace(old, new).replace(script, both)


def browse(
    chromium: str, page: str, folder: Path, *flags: str, name: str | Path = "page.html"
) -> tuple[dict, str]:
    target = folder / name
    target.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=3000",
            *flags,
            "--dump-dom",
            target.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    found = re.search(r'data-report="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found.group(1))), said


def test_page__works_in_a_browser(chromium: str, page: str, tmp_path: Path):
    report, said = browse(chromium, probed(page), tmp_path, "--window-size=1200,900")
    assert said == ""
    assert report["loaded"] == []
    names = ["site A", "site B", "site C"]
    assert report["first"] == names
    assert report["cohort"] == [[names, "ascending"], [names[::-1], "descending"]]
    assert [s for _, s in report["number"]] == ["descending", "ascending"]
    assert report["folded"] == 0
    assert report["refolded"] > 4
    assert report["small"] == 0
    assert report["wide"] <= 0
    assert report["scheme"] == "rgb(255, 255, 255)"


def test_page__is_dark_and_fits_a_telephone(chromium: str, page: str, tmp_path: Path):
    flags = ("--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    report, said = browse(chromium, probed(page), tmp_path, *flags)
    assert said == ""
    assert report["wide"] <= 0
    assert report["scheme"] == "rgb(18, 23, 29)"


# -- every kind of page -------------------------------------------------------------------

OPENED = """
addEventListener("load", () => {
  const loaded = performance.getEntriesByType("resource").map((r) => r.name);
  const images = [...document.images].filter((i) => i.getBoundingClientRect().top < innerHeight);
  const blank = images.filter((i) => !i.naturalWidth).length;
  const words = document.body.innerText.length;
  document.body.dataset.report = JSON.stringify({ loaded, images: images.length, blank, words });
});
"""


@pytest.fixture(scope="module")
def pages(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, where its own pictures are."""
    from tests.report.test_qc import store_of

    folder = tmp_path_factory.mktemp("kinds")
    (folder / "report.html").write_text(page, encoding="utf-8")
    ds = scalebrain.open_store(store_of(folder, n=42))
    stroke, reference = (str(ds["subject"].values[at]) for at in (-1, 1))
    index = write_qc_pages(folder / "cohort.zarr", folder / "qc", subjects=[stroke, reference])
    return {
        "report": folder / "report.html",
        "person": write_person(person_report(ds, stroke), folder / "people"),
        "qc index": index,
        "qc subject": index.with_name(f"{stroke}.html"),
    }


@pytest.mark.parametrize("kind", ["report", "person", "qc index", "qc subject"])
def test_pages__open_and_show_something(chromium: str, pages: dict[str, Path], tmp_path, kind):
    from PIL import Image

    shot = tmp_path / "shot.png"
    text = probed(pages[kind].read_text(encoding="utf-8"), OPENED)
    flags = ("--window-size=1200,900", f"--screenshot={shot}")
    place = pages[kind].with_name("probed.html")
    found, said = browse(chromium, text, tmp_path, *flags, name=place)
    assert said == ""
    assert all(name.startswith("file:") for name in found["loaded"])
    assert bool(found["images"]) == kind.startswith("qc")
    assert found["blank"] == 0
    assert found["words"] > 300
    with Image.open(shot) as image:
        assert image.size == (1200, 900)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    _, counts = np.unique(pixels, axis=0, return_counts=True)
    assert len(counts) > 50
    assert counts.max() < 0.98 * len(pixels)
