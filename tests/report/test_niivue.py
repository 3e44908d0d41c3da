"""The interactive viewer: what it is made of, and that it opens in a real browser."""

import base64
import gzip
import hashlib
import re
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np

from scalebrain.report.niivue import Overlay, Viewer, nifti_base64, viewer_scripts
from scalebrain.report.volume import Volume
from tests.report.test_browser import browse, probed

OPENED = """
(async () => {
  const box = document.querySelector(".viewer");
  box.querySelector('[data-part="start"]').click();
  while (!box.dataset.state) await new Promise((done) => setTimeout(done, 20));
  const status = box.querySelector('[data-part="status"]').textContent;
  document.body.dataset.report = JSON.stringify({ state: box.dataset.state, status });
})();
"""
PROBE = """
(async () => {
  const box = document.querySelector(".viewer");
  const $ = (name) => box.querySelector(`[data-part="${name}"]`);
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const tell = (found) => { document.body.dataset.report = JSON.stringify(found); };
  tell({ state: "waiting" });
  $("start").click();
  for (let i = 0; i < 200 && !box.dataset.state; i++) await wait(20);
  const found = { state: box.dataset.state, status: $("status").textContent };
  tell(found);
  found.value = $("value").textContent;
  found.maps = $("map").options.length;
  const x = Number($("x").value);
  $("canvas").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.right = Number($("x").value) - x;
  $("flip").click();
  found.flipped = $("sides").textContent;
  $("x").value = -30;
  $("x").dispatchEvent(new Event("change"));
  found.left = $("value").textContent;
  $("map").value = "1";
  $("map").dispatchEvent(new Event("change"));
  await wait(500);
  found.effect = $("unit").textContent;
  found.loaded = performance.getEntriesByType("resource").map((r) => r.name);
  tell(found);
})();
"""


def test_viewer__opens_and_is_used_without_a_network(chromium: str, page: str, tmp_path: Path):
    flags = (
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--virtual-time-budget=20000",
    )
    found, said = browse(chromium, probed(page, PROBE), tmp_path, *flags)
    said = [line for line in said.splitlines() if "GL Driver Message" not in line]
    assert said == []
    assert found["state"] == "open", found
    assert found["status"] == ""
    assert re.search(r"(left|right|midline): \d+ of \d+ people", found["value"])
    assert found["right"] > 0
    assert found["flipped"].startswith("Radiological view: left is drawn on the right")
    assert found["left"].startswith("left:")
    assert found["maps"] > 1
    assert found["effect"].startswith("years")
    assert found["loaded"] == []


def test_viewer__says_so_where_there_is_no_webgl(chromium: str, page: str, tmp_path: Path):
    found, _ = browse(chromium, probed(page, OPENED), tmp_path, "--disable-3d-apis")
    assert found["state"] == "failed"
    assert "it has no WebGL2. The slices above show the same map." in found["status"]


def test_niivue__is_the_file_that_its_note_names():
    folder = files("scalebrain.report").joinpath("vendor")
    digest = hashlib.sha256(folder.joinpath("niivue.umd.js").read_bytes()).hexdigest()
    assert digest in folder.joinpath("README.md").read_text()
    assert "BSD 2-Clause" in folder.joinpath("LICENSE.niivue").read_text()
    assert "</script" not in viewer_scripts()
    assert "<!--" not in viewer_scripts()


def test_nifti_base64__keeps_values_and_places():
    axes = (np.arange(-4, 8, 2.0), np.arange(-6, 4, 2.0), np.arange(0, 8, 2.0))
    data = np.random.default_rng(0).normal(size=(6, 5, 4))
    data[0] = np.nan
    text = nifti_base64(Volume(data, axes))
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
    np.testing.assert_allclose(image.get_fdata(), np.nan_to_num(data), rtol=1e-6)
    np.testing.assert_array_equal(image.affine @ [1, 2, 3, 1], [-2, -2, 6, 1])
    assert image.header["sform_code"] == 4


def test_viewer__data_cannot_end_its_element():
    axes = tuple(np.arange(3.0) for _ in range(3))
    volume = Volume(np.ones((3, 3, 3)), axes)
    overlay = Overlay("</script><!--&", volume, np.ones((2, 3)), 1.0, "<b>", 1.0)
    data = str(Viewer("brain", "t", volume, [overlay]).data)
    assert "<" not in data
    assert "&" not in data
