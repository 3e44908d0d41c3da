"""A study of the cortical surface, from FreeSurfer folders and lesion masks to the report."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scalebrain
from scalebrain.atlas.surface import surface_nodes
from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.report.surface import vertex_nodes, vertex_parcels
from tests.io.freesurfer_phantom import SIDES, fsaverage5, truth, write_subject, write_values
from tests.report.test_browser import browse

pytestmark = pytest.mark.slow

CONFIG = {
    "nodes": "surface-3",
    "training": {"epochs": 2, "folds": 3},
    "n_boot": 20,
    "n_permutations": 2,
}


def write_surfaces(tree: Path) -> None:
    """Give everyone a cortex that thins with age, and take the scans away."""
    rng = np.random.default_rng(0)
    for row in pd.read_csv(tree / "participants.tsv", sep="\t").itertuples():
        folder = write_subject(tree / "freesurfer" / row.participant_id)
        for side in SIDES:
            points, _ = fsaverage5(side)
            values = truth(points, side, offset=-0.01 * (row.age - 60))
            values["thickness"] += 0.1 * rng.normal(size=len(points))
            write_values(folder / "surf", side, values)
    for kind in ("T1w", "GM_probseg"):
        for path in list(tree.rglob(f"*{kind}*")):
            path.unlink()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surface_study")
    tree = scalebrain.simulate_cohort(
        folder / "bids", reference=24, stroke=20, cohorts=2, resolution=5.0
    )
    write_surfaces(tree)
    scalebrain.run_study(tree, folder / "out", CONFIG)
    return folder / "out"


@pytest.fixture(scope="module")
def ds(out):
    return scalebrain.open_store(out / "cohort.zarr")


def test_surface_study__the_report_maps_the_cortex_with_sides(out, ds):
    page = (out / "report.html").read_text()
    figures = dict(re.findall(r'<figure id="fig-([^"]*)">(.*?)</figure>', page, re.DOTALL))
    for key in ("feature-thickness", "feature-wg_contrast", "node-importance"):
        for words in ("left, lateral", "left, medial", "right, medial", "right, lateral"):
            assert f">{words}<" in figures[key], key
        assert 'role="img" aria-label="Four views of the cortex' in figures[key]
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    reference = ds["included"].values & (ds["group"].values.astype(str) == "reference")
    mean = ds["node_features"].isel(subject=reference).sel(feature="thickness").mean("subject")
    words = f"mean cortical thickness of {reference.sum()} reference people: median "
    assert f"{words}{np.nanmedian(mean.values):.2f} mm" in figures["feature-thickness"]
    assert ">ipsilesional, lateral<" in figures["surface-mixed"]
    assert "Synthetic lesions are put into T1w scans: nodes are of a surface." in page


def test_vertex_nodes__a_node_has_its_own_vertex_and_side(ds):
    left, right = (vertex_nodes(ds, side) for side in ("left", "right"))
    n_left = int((ds["node_parcel"].values % 2).sum())
    assert set(left) == set(range(n_left + 1))
    assert set(right) == {0, *range(n_left + 1, ds.sizes["node"] + 1)}
    nodes = surface_nodes(3)
    codes = np.concatenate([vertex_parcels(ds, side) for side in ("left", "right")])
    own = nodes.pooling.argmax(axis=1)  # a vertex of the level counts most for its own node
    assert (codes[own] == nodes.parcel).mean() > 0.97
    node = np.concatenate([left, right])
    np.testing.assert_array_equal(nodes.parcel[node[codes > 0] - 1], codes[codes > 0])


def test_view__of_regions_nodes_and_vertices_is_on_the_surface(ds, tmp_path, chromium):
    whole = ds.scalebrain.view("brain_pad_corrected")
    assert "brain-PAD corrected, median" in whole.html
    one = ds["node_features"].sel(feature="thickness")
    subject = str(ds["subject"].values[0])
    assert f"<title>thickness, {subject}</title>" in ds.scalebrain.view(one, subject=subject).html
    with pytest.raises(StatisticsError, match="sel"):
        ds.scalebrain.view("node_features")
    with pytest.raises(MissingVariableError, match="nobody"):
        ds.scalebrain.view("thickness", subject="nobody")
    with pytest.raises(ConfigError, match="pie"):
        ds.scalebrain.view("thickness", reduce="pie")
    page = ds.scalebrain.view("thickness", reduce="mean")
    assert "Simulated data" in page.html
    assert "20,484 of 20,484 vertices" in page.html
    assert page.save_as_html(tmp_path / "v.html").stat().st_size < 5e6
    assert page._repr_html_().startswith("<iframe srcdoc=")
    flags = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    told = re.sub(r"script-src [^;]*;", "script-src 'unsafe-inline';", page.html)
    probe = """<script>(async () => {
      for (let i = 0; i < 200 && !document.body.dataset.state; i++)
        await new Promise((done) => setTimeout(done, 20));
      document.querySelectorAll("button")[4].click();
      document.body.dataset.report = JSON.stringify({
        state: document.body.dataset.state, shown: document.getElementById("shown").textContent,
        loaded: performance.getEntriesByType("resource").map((r) => r.name) });
    })();</script>"""
    told = told[: told.rindex("</body>")] + probe + "</body></html>"
    found, _ = browse(chromium, told, tmp_path, *flags)
    assert found == {"state": "open", "shown": "View: both, from above.", "loaded": []}


def test_view__regions_on_slices_if_asked(ds):
    assert "canvas" in scalebrain.view(ds, "brain_pad_corrected", surface=False).html


def test_person_report__lesion_is_drawn_on_the_template_where_there_is_no_scan(ds):
    page = scalebrain.person_report(ds, "sub-stroke001").html
    assert "The template, for want of the person's own scan, with the lesion in orange." in (
        html.unescape(page)
    )
    alone = ds.drop_dims("voxel")
    assert (
        "There is no usable T1-weighted scan"
        in scalebrain.person_report(alone, "sub-stroke001").html
    )
