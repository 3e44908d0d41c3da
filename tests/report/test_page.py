"""The page as a whole: complete, self-contained, escaped, the same every time."""

import base64
import hashlib
import html
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import scalebrain
from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.report.methods import REFERENCES, bibtex, cited, methods_text
from scalebrain.report.niivue import viewer_scripts
from scalebrain.report.page import StudyResults, render_report, write_report
from tests.report.conftest import Study, make_study

SECTIONS = [
    "cohort",
    "quality",
    "lesions",
    "accuracy",
    "network",
    "map",
    "forest",
    "sem",
    "motor",
    "recovery",
    "methods",
    "limits",
    "provenance",
]
EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>$x^{$\\frac{1}$ 脳"


class Outline(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside.append("")

    def handle_data(self, data: str) -> None:
        if self.inside[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    def of(self, name: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.tags if tag == name]


def visible(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Outline(page).text))


def test_write_report__writes_the_same_page_every_time_and_changes_nothing(
    study: Study, tmp_path: Path, page: str
):
    before = study.ds.copy(deep=True)
    target = write_report(study.ds, tmp_path / "new" / "report.html", results=study.results)
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    assert target.read_text(encoding="utf-8") == page
    assert target.stat().st_size < 10e6
    assert study.ds.identical(before)


def test_write_report__leaves_no_file_when_it_fails(study: Study, tmp_path: Path):
    target = tmp_path / "report.html"
    with pytest.raises(GeometryError, match="background has shape"):
        write_report(study.ds, target, results=study.results, background=np.zeros(3))
    assert list(tmp_path.iterdir()) == []


def test_render_report__needs_a_store(study: Study):
    with pytest.raises(MissingVariableError, match="cohort"):
        render_report(study.ds.drop_vars("cohort"), results=study.results)


def test_render_report__has_every_section_with_a_takeaway(page: str):
    outline = Outline(page)
    assert [a["id"] for a in outline.of("section")] == SECTIONS
    assert [a["href"] for a in outline.of("a") if a["href"].startswith("#")][1:] == [
        f"#{key}" for key in SECTIONS
    ]
    assert page.count('class="takeaway"') == 10
    assert page.count("<figure") >= 12


def test_render_report__loads_nothing_from_elsewhere(page: str):
    outline = Outline(page)
    assert not outline.of("link")
    assert not outline.of("iframe")
    assert all("src" not in attrs for _, attrs in outline.tags)
    for _, attrs in outline.tags:
        for name in ("href", "xlink:href"):
            link = attrs.get(name, "#")
            assert link.startswith(("#", "data:image/png;base64,", "https://doi.org/")), link
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_render_report__allows_only_its_own_scripts(page: str):
    policy = next(a["content"] for a in Outline(page).of("meta") if "http-equiv" in a)
    script = page[page.index("<script>") + 8 : page.rindex("</script>")]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (script, viewer_scripts())
    ]
    assert f"script-src {' '.join(hashes)};" in policy
    assert "default-src 'none'" in policy


def test_render_report__gives_ids_once_and_every_reference_a_target(page: str):
    tags = Outline(page).tags
    ids = Counter(attrs["id"] for _, attrs in tags if "id" in attrs)
    assert [name for name, n in ids.items() if n > 1] == []
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|labelledby="([^"]+)"', page)
    assert {next(filter(None, found)) for found in used} <= set(ids)


def test_render_report__describes_every_drawing(page: str):
    drawings = Outline(page).of("svg")
    assert len(drawings) >= 11
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in drawings)


@pytest.fixture(scope="module")
def evil_page() -> str:
    evil = make_study(EVIL)
    return render_report(evil.ds, results=evil.results, title=f"Title{EVIL}")


def test_render_report__escapes_every_text(evil_page: str):
    page = evil_page
    outline = Outline(page)
    assert [(a.get("type"), a.get("id")) for a in outline.of("script")] == [
        ("application/json", "viewer-brain-data"),
        ("text/plain", "niivue-source"),
        (None, None),
    ]
    assert not outline.of("img")
    assert not [a for _, a in outline.tags if any(name.startswith("on") for name in a)]
    for before in ("site A", "Title", "sensorimotor", "SMN ipsilesional", "contra"):
        found = [t for t in outline.text if before in t]
        assert found, before
    inside_svg = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert any("site A&lt;script&gt;" in t for t in inside_svg)
    assert any(t.startswith("contra&lt;script&gt;") for t in inside_svg)
    assert "<script>alert" not in page
    assert visible(page).count("alert(1)") > 30


def test_render_report__draws_formulas_and_any_script_as_they_are_written(evil_page: str):
    drawn = [html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", evil_page)]
    assert f"combined{EVIL}" in drawn
    assert "site A<script>alert(1)</script>…" in drawn


@pytest.mark.parametrize(
    ("store", "model", "words"),
    [
        ("true", "true", "Simulated data Everyone in this report was generated by a computer"),
        ("false", "true", "Model trained on simulated data"),
        ("false", "false", ""),
    ],
)
def test_render_report__warns_of_simulated_data(study: Study, store: str, model: str, words: str):
    ds = study.ds[["group", "cohort", "brain_age"]].assign_attrs(simulated=store)
    ds["brain_age"].attrs["model_trained_on_simulated"] = model
    page = render_report(ds, results=StudyResults())
    assert ('class="banner"' in page) == bool(words)
    assert words in visible(page)
    assert ("Simulated data</b> can show" in page) == bool(words)


def test_render_report__says_why_a_result_is_missing(study: Study):
    names = ("accuracy", "mixed", "mixed_load", "sem", "motor", "recovery")
    reasons = {name: f"No {name} because of <reason> 17." for name in names}
    text = visible(render_report(study.ds, results=StudyResults(missing=reasons)))
    for reason in reasons.values():
        if "mixed_load" not in reason:
            assert reason in text
    small = study.ds[["group", "cohort"]]
    bare = visible(render_report(small, results=StudyResults()))
    for name in ("accuracy", "mixed", "sem", "motor"):
        assert f"This run passed no '{name}' result to the report." in bare
    assert "no lesion_frequency" in bare
    assert "given no truth to compare with" in bare
    small.attrs = {}
    assert "passed no provenance" in visible(render_report(small, results=StudyResults()))


def test_render_report__says_that_real_data_have_no_truth(study: Study):
    ds = study.ds[["group", "cohort"]].assign_attrs(simulated="false")
    text = visible(render_report(ds, results=StudyResults()))
    assert "nobody knows the true effects" in text


@pytest.mark.parametrize("kind", ["U", "T"])
def test_render_report__reads_every_text_dtype(study: Study, kind: str):
    small = study.ds[["group", "cohort", "exclusion_reason", "included", "sex", "age"]]
    expected = render_report(small, results=StudyResults())
    dtype = np.dtypes.StringDType() if kind == "T" else "U"
    names = ["group", "cohort", "exclusion_reason", "sex"]
    converted = small.assign(
        {name: (small[name].dims, small[name].values.astype(dtype)) for name in names}
    )
    assert converted["cohort"].dtype.kind == kind
    assert render_report(converted, results=StudyResults()) == expected


def test_render_report__counts_the_cohort_flow(page: str):
    text = visible(page)
    assert "39 of 42 people from 3 cohorts were analyzed; 3 people were excluded" in text
    assert "24 reference 1 excluded 1 sex missing 23 analyzed" in text
    assert "18 stroke 2 excluded 1 bilateral lesion 1 scan within 180 days 16 analyzed" in text


def test_render_report__prints_provenance_as_it_was_given(page: str):
    text = visible(page)
    for words in ("numpy 2.3.0", "train 61.2 s", "kind: cheb", '"er": [', "scalebrain demo OUT"):
        assert words in text
    assert "10.1016/j.landig.2025.100942" in text


def test_page__is_imported_without_the_heavy_packages():
    code = (
        "import sys, scalebrain.report.page\n"
        "heavy = {'matplotlib', 'jinja2', 'scipy.ndimage', 'torch', 'sklearn', 'nilearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['scipy.ndimage']")


def test_bibtex__has_every_source_with_its_type_and_doi() -> None:
    entries = dict(zip((r.key for r in REFERENCES), bibtex().split("\n\n"), strict=True))
    place = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}
    for reference in REFERENCES:
        entry = entries[reference.key]
        assert entry.startswith(f"@{reference.kind}{{")
        assert all(f"  {key} = {{" in entry for key in ("author", "title"))
        if reference.key != "scalebrain":
            assert f"doi = {{{reference.doi}}}" in entry
            assert all(f"  {k} = {{" in entry for k in (place[reference.kind], "year"))
    park = entries["Park 2026"]
    assert "  author = {{Park} and others},\n" in park
    assert "  journal = {Lancet Digital Health},\n  year = {2026},\n" in park
    assert "  booktitle = {NeurIPS},\n  year = {2016},\n" in entries["Defferrard 2016"]
    assert "  howpublished = {arXiv},\n  year = {2019},\n" in entries["Fey 2019"]
    assert "  year = {2014},\n  doi = {10.3389/fninf.2014.00014}\n" in entries["Abraham 2014"]
    assert f"  version = {{{scalebrain.__version__}}}\n}}" in entries["scalebrain"]


def test_render_report__lists_the_sources_that_it_cites_and_no_other(study: Study, page: str):
    def keys(shown: str) -> list[str]:
        listed = shown[shown.index('<ol class="sources">') : shown.index("<summary>BibTeX")]
        return re.findall(r"<li><b>([^<]+)\.</b>", listed)

    full = keys(page)
    assert {"Park 2026", "Kuznetsova 2017", "Lundberg 2017", "scalebrain"} <= set(full)
    assert html.escape(bibtex(cited(" ".join(full))), quote=False).strip() in page
    bare = keys(render_report(study.ds[["group", "cohort"]], results=StudyResults()))
    assert bare == [
        "Park 2026",
        "Fonov 2011",
        "Tzourio-Mazoyer 2002",
        "scalebrain",
        "Abraham 2014",
        "Hoyer 2017",
        "Rocklin 2015",
    ]


#: Results, and what the methods text says of them alone.
METHODS = {
    "mixed": "A linear mixed model",
    "sem": "Paths were estimated by maximum likelihood",
    "motor": "Motor scores were predicted with whole cohorts left out",
    "site_shift": "an empirical Bayes estimate (Laird 1982)",
}


@pytest.mark.parametrize("name", METHODS)
def test_methods__tell_of_a_result_where_it_is(study: Study, name: str, page: str):
    only = StudyResults(**{name: study.parts[name]})
    text = visible(methods_text(study.ds, only))
    for other, words in METHODS.items():
        assert (words in text) == (other == name), other
        assert words in visible(page)


def test_methods__tell_of_what_is_there_alone(study: Study):
    text = visible(methods_text(study.ds, study.results))
    assert "T1-weighted images in MNI152NLin2009aSym" in text
    assert "lesion masks" not in text
    assert "rival models fitted" in text
    assert "with a random intercept for each cohort was fitted for every region by restr" in text
    mixed = study.parts["mixed"].copy()
    mixed.attrs |= {"method": "random intercept and slope of age, ML, Satterthwaite", "reml": 0}
    alone = StudyResults(mixed=mixed, sem=study.parts["sem"].isel(model=[0]))
    text = visible(methods_text(study.ds.drop_vars("t1w"), alone))
    assert "a random intercept and slope of age for each cohort" in text
    assert "by maximum likelihood, with Satterthwaite" in text
    assert "rival" not in text
    assert "T1-weighted" not in text


def test_methods__tell_how_a_motor_prediction_was_tested_and_explained(study: Study):
    motor = study.parts["motor"]
    ds = study.ds
    text = visible(methods_text(ds, StudyResults(motor=motor)))
    assert "compared with those of 20 permutations of the scores within cohorts" in text
    assert "Parts of a prediction are SHAP values (Lundberg 2017)" in text
    bare = motor.isel(permutation=slice(0)).drop_vars("shap_importance")
    text = visible(methods_text(ds, StudyResults(motor=bare)))
    assert "Motor scores were predicted" in text
    assert "permutations" not in text
    assert "SHAP" not in text


def test_methods__tell_of_the_multiverse_and_of_decisions(study: Study):
    words = np.full(study.ds.sizes["subject"], "", dtype=object)
    words[:4] = ["accept", "exclude", "unsure", "accept"]
    ds = study.ds.assign(qc_decision=("subject", words))
    axes = {"policy": ["mask_nodes", "as_is"], "scale": ["raw", "rank"]}
    tried = xr.Dataset(
        {
            name: (("effect", "specification"), np.full((1, 4), value))
            for name, value in (("estimate", 0.3), ("ci_low", 0.2), ("ci_high", 0.4))
        }
        | {
            name: ("effect", [value])
            for name, value in (
                ("median_estimate", 0.3),
                ("lowest_estimate", 0.3),
                ("highest_estimate", 0.3),
                ("same_sign", 1.0),
                ("excludes_zero", 1.0),
                ("verdict", "robust"),
            )
        },
        coords={
            "effect": ["cst -> motor"],
            "policy": ("specification", ["mask_nodes", "mask_nodes", "as_is", "as_is"]),
            "scale": ("specification", ["raw", "rank"] * 2),
        },
        attrs={"axes": axes},
    )
    text = visible(methods_text(ds, StudyResults(multiverse=tried)))
    assert (
        "fitted again in 4 specifications, every combination of choices about the treatment of "
        "lesioned tissue and the scale of outcomes (Steegen 2016)"
    ) in text
    assert "judged 4 scans: 1 excluded, 1 unsure and kept; who was not judged" in text
    tried.attrs["axes"] = {"policy": ["imported"], "scale": ["raw", "rank"]}  # one is no choice
    text = visible(methods_text(ds, StudyResults(multiverse=tried)))
    assert "combination of choices about the scale of outcomes (Steegen" in text
    text = visible(methods_text(study.ds, StudyResults()))
    assert "Steegen" not in text
    assert "judged" not in text


def test_methods__name_the_network_where_the_ages_are_of_ours_alone(study: Study):
    assert "PyTorch Geometric (Fey 2019)" in visible(methods_text(study.ds, StudyResults()))
    imported = study.ds.copy()
    imported["brain_age"].attrs["tool"] = "brainageR"
    for ds in (imported, study.ds.drop_vars("brain_age")):
        text = visible(methods_text(ds, StudyResults()))
        assert "PyTorch" not in text
        assert "graph network" not in text
        assert ("imported" in text) == (ds is imported)


def test_page__prints_to_pdf(chromium: str, page: str, tmp_path: Path):
    source, target = tmp_path / "report.html", tmp_path / "report.pdf"
    source.write_text(page, encoding="utf-8")
    flags = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --no-pdf-header-footer "
        f"--user-data-dir={tmp_path / 'profile'}"
    ).split()
    subprocess.run(
        [chromium, *flags, f"--print-to-pdf={target}", source.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    printed = target.read_bytes()
    assert printed.startswith(b"%PDF-")
    assert printed.rstrip().endswith(b"%%EOF")
    assert 100_000 < len(printed) < 20_000_000
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 5


def test_render_report__headers_are_printed_without_their_buttons(page: str):
    heads = re.findall(r'<th scope="col" data-label="([^"]*)"[^>]*><button[^>]*>([^<]*)<', page)
    assert len(heads) == page.count('<th scope="col"') > 20
    assert all(label == words for label, words in heads)
