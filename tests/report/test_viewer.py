"""Values on the brain in a page of their own: keys, the dark, and texts that are no HTML."""

import io
import json
import re
from html import escape

import numpy as np
import pytest

import scalebrain
from scalebrain.report.drawing import drawing
from tests.report.conftest import grid_attrs, make_study
from tests.report.test_browser import browse
from tests.report.test_page import EVIL, Outline

PROBE = """<script>(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  for (let i = 0; i < 200 && !document.body.dataset.state; i++) await wait(20);
  const shown = () => document.getElementById("shown").textContent;
  const canvas = document.getElementById("cortex");
  const found = { state: document.body.dataset.state, first: shown() };
  found.role = canvas.getAttribute("role");
  const press = (key, options = {}) => {
    const event = new KeyboardEvent("keydown", { key, cancelable: true, ...options });
    canvas.dispatchEvent(event);
    return [shown(), event.defaultPrevented];
  };
  canvas.focus();
  found.focus = document.activeElement === canvas;
  const keys = { right: "ArrowRight", up: "ArrowUp", in: "+", out: "-", other: "Tab" };
  for (const [name, key] of Object.entries(keys)) found[name] = press(key);
  found.shortcut = press("ArrowLeft", { altKey: true });
  found.pressed = document.querySelectorAll('button[aria-pressed="true"]').length;
  found.paper = getComputedStyle(document.body).backgroundColor;
  found.loaded = performance.getEntriesByType("resource").map((r) => r.name);
  document.body.dataset.report = JSON.stringify(found);
})();</script>"""


@pytest.fixture(scope="module")
def surface():
    return scalebrain.view(make_study().ds, "brain_age", surface=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_view__is_turned_by_keys_in_the_light_and_in_the_dark(surface, chromium, tmp_path, scheme):
    from PIL import Image

    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--virtual-time-budget=20000", f"--screenshot={tmp_path / 'shot.png'}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    told = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", surface.html)
    told = told[: told.rindex("</body>")] + PROBE + "</body></html>"
    found, said = browse(chromium, told, tmp_path, *flags, "--window-size=900,700")
    assert [line for line in said.splitlines() if "GL Driver Message" not in line] == []
    assert found["state"] == "open"
    assert found["role"] == "application"
    assert found["focus"]
    assert found["first"] == "View: left, lateral."
    assert found["right"] == ["Turned: azimuth 100°, elevation 0°.", True]
    assert found["up"] == ["Turned: azimuth 100°, elevation 10°.", True]
    assert found["in"] == ["Zoom 155%.", True]
    assert found["out"] == ["Zoom 135%.", True]
    assert found["other"] == found["shortcut"] == ["Zoom 135%.", False]
    assert found["pressed"] == 0
    assert found["loaded"] == []
    paper = {"light": (255, 255, 255), "dark": (18, 23, 29)}[scheme]
    assert found["paper"] == f"rgb{paper}"
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    kinds, counts = np.unique(pixels, axis=0, return_counts=True)
    assert len(kinds) > 50
    assert tuple(kinds[counts.argmax()]) == paper  # the canvas too


# -- texts of a store are no HTML ---------------------------------------------------------


def outline_of(page: str) -> Outline:
    """Tags of a page, in which no text of a subject has become one."""
    outline = Outline(page)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert not [attrs for _, attrs in outline.tags if any(name.startswith("on") for name in attrs)]
    return outline


@pytest.fixture(scope="module")
def evil():
    ds = make_study(EVIL).ds
    ds["x"].attrs = grid_attrs()
    return ds, str(ds["subject"].values[32])


def test_view__on_the_surface_escapes_a_subject(evil):
    ds, subject = evil
    page = scalebrain.view(ds, "brain_age", subject=subject, surface=True)
    outline = outline_of(page.html)
    assert len(outline.of("script")) == 3
    assert EVIL in outline.of("canvas")[0]["aria-label"]
    frame = Outline(page._repr_html_())
    assert [name for name, _ in frame.tags] == ["iframe"]
    assert frame.of("iframe")[0]["srcdoc"] == page.html


@pytest.mark.parametrize("variable", ["t1w", "brain_age"])
def test_view__on_slices_escapes_a_subject(evil, variable):
    ds, subject = evil
    page = scalebrain.view(ds, variable, subject=subject, surface=False)
    outline = outline_of(page.html)
    assert len(outline.of("title")) == 1
    assert escape(EVIL) in page.html.split("</title>")[0]
    (title,) = re.findall(r'"title": ("(?:[^"\\]|\\.)*")', page.html)
    assert json.loads(title).endswith(subject)  # as it is drawn
    assert "<script>alert" not in page._repr_html_()


def test_plot_regions__draws_a_subject_as_text(evil):
    ds, subject = evil
    figure = scalebrain.plot_regions(ds, "brain_age", subject=subject, kind="dots")
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg")
    outline_of(buffer.getvalue())
    assert escape(EVIL, quote=False) in buffer.getvalue()


def test_view__names_the_side_of_the_lesion():
    study = make_study()
    study.ds["x"].attrs = grid_attrs()
    value = study.results.mixed["estimate"].isel(term=1)
    page = scalebrain.view(study.ds, value, surface=True)
    assert '"word": "ipsilesional"' in page.html
    assert "On the left the ipsilesional, on the right the contralesional regions." in page.html
    slices = scalebrain.view(study.ds, value, surface=False)
    assert "(left: ipsilesional, right: contralesional)" in slices.html
    assert "ipsilesional" not in scalebrain.view(study.ds, "brain_age", surface=True).html
