"""The page in a real browser: no error, no request, tables that sort."""

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path

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
