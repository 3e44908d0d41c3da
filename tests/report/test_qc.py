"""Pages of a quality control: what they show, what they keep, and what comes out of them."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import scalebrain
from scalebrain.cli import main
from scalebrain.errors import ConfigError, MissingVariableError, TableError
from scalebrain.io.decisions import Decision, read_decisions
from scalebrain.io.store import save_store
from scalebrain.report import qcpages
from scalebrain.report.cohort import people
from scalebrain.report.person import PersonReport, write_person
from scalebrain.report.qcpages import write_qc_pages
from scalebrain.report.quality import LIMIT, quality, robust_z
from scalebrain.report.qualitysection import quality_section
from scalebrain.report.scanpictures import LESION, Rows, frame_of, layers, thumbnail
from tests.report.conftest import make_study
from tests.report.test_browser import browse, probed
from tests.report.test_page import EVIL, Outline, visible


def store_of(folder: Path, evil: str = "", n: int = 14) -> Path:
    """A store of a few people with lesions on the left; the last one is unlike the others."""
    ds = make_study(evil).ds.isel(subject=slice(42 - n, 42))
    rng = np.random.default_rng(3)
    mask = np.zeros(ds["t1w"].shape, dtype=bool)
    near = (((np.stack([ds[a] for a in "xyz"], axis=1) - (-40, -20, 20)) / 22) ** 2).sum(axis=1) < 1
    mask[:] = near
    overlap = 0.8 + 0.01 * rng.standard_normal(n)
    overlap[-1] = 0.5
    notes = np.full(n, "", dtype=object)
    notes[2] = "mirrored"
    ds = ds.assign(
        lesion_mask=(("subject", "voxel"), mask),
        template_overlap=("subject", overlap),
        template_overlap_mirrored=("subject", overlap - 0.02),
        warnings=("subject", notes),
    )
    ds["t1w"] = (("subject", "voxel"), ds["t1w"].values + 30 * (ds["x"].values < 0).astype("f4"))
    path = folder / "cohort.zarr"
    save_store(ds, path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_of(tmp_path_factory.mktemp("qc"))


@pytest.fixture(scope="module")
def pages(store: Path) -> Path:
    return write_qc_pages(store, store.parent / "pages").parent


# -- outliers -----------------------------------------------------------------------------


def test_robust_z__is_a_standard_deviation_and_no_outlier_moves_it():
    rng = np.random.default_rng(0)
    values = rng.normal(10, 2, 4001)
    values[:3] = [1e6, -1e6, np.nan]
    z = robust_z(values)
    assert np.nanstd(z[3:]) == pytest.approx(1, abs=0.05)
    assert z[0] > 1e5
    assert np.isnan(z[2])
    expected = 0.6745 * (values[5] - np.nanmedian(values))
    expected /= np.nanmedian(np.abs(values - np.nanmedian(values)))
    assert z[5] == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.arange(9.0), [0.0] * 20 + [5.0] * 10, np.full(12, np.nan)])
def test_robust_z__is_missing_where_nothing_can_be_said(values):
    assert np.isnan(robust_z(values)).all()


def test_quality__finds_who_is_unlike_the_others(store):
    ds = scalebrain.open_store(store)
    found = quality(ds)
    last = ds.sizes["subject"] - 1
    assert found.outliers[last][0].name == "template_overlap"
    assert found.order()[0] == last
    assert found.worst[last] > LIMIT
    assert found.codes[2] == ("mirrored",)
    assert found.is_flagged[[2, last]].all()
    assert "mirror_margin" in found.values
    # on the good side it is none
    better = ds["template_overlap"].values.copy()
    better[0] = 1.0
    good = quality(ds.assign(template_overlap=("subject", better)).drop_vars("warnings"))
    assert not good.outliers[0]


# -- pictures -----------------------------------------------------------------------------


def test_layers__draw_left_on_the_left_and_the_lesion_where_it_is(store):
    from PIL import Image

    ds = scalebrain.open_store(store)
    frame, scan = frame_of(ds), Rows.of(ds).scan(3, has_lesion=True)
    x, _, z = frame.middle(scan.lesion)
    assert x < -20
    made = layers(frame, scan, [[(2, z)]])
    lesion = np.asarray(Image.open(BytesIO(base64.b64decode(made.lesion))))
    at = np.argwhere(lesion[..., 3] > 0)
    assert at[:, 1].mean() < made.size[0] / 2
    assert (lesion[at[0, 0], at[0, 1], :3] == LESION).all()
    gray = np.asarray(Image.open(BytesIO(base64.b64decode(made.scan))).convert("L")).astype(float)
    inside = gray[gray.shape[0] // 3 : 2 * gray.shape[0] // 3]
    half = inside.shape[1] // 2
    assert inside[:, :half].mean() > inside[:, half:].mean() + 20  # brighter on the left
    small = np.asarray(thumbnail(frame, scan)).astype(int)
    orange = (small[..., 0] - small[..., 2] > 120).nonzero()[1]
    third = small.shape[1] / 3
    assert orange.size
    assert orange.min() < third / 2


# -- pages --------------------------------------------------------------------------------


def test_layers__keep_the_proportions_of_thick_slices(store):
    ds = scalebrain.open_store(store)
    affine = np.array(ds.attrs["affine"], dtype=float).reshape(4, 4)
    index = np.rint((ds["z"].values - affine[2, 3]) / affine[2, 2]).astype(int)
    thick = ds.isel(voxel=index % 3 == 0)
    affine[2, 2] *= 3
    shape = list(ds.attrs["shape"])
    shape[2] = (shape[2] + 2) // 3
    thick = thick.assign_attrs(affine=affine.ravel().tolist(), shape=shape)
    sizes = []
    for one in (ds, thick):
        frame, scan = frame_of(one), Rows.of(one).scan(3, has_lesion=True)
        sizes.append([layers(frame, scan, [[(axis, 0.0)]]).size for axis in (1, 2)])
    np.testing.assert_allclose(sizes[1], sizes[0], atol=3.5 * 9)  # a slice is 9 mm thick
    small = [thumbnail(frame_of(one), Rows.of(one).scan(3, has_lesion=True)) for one in (ds, thick)]
    assert small[1].width == pytest.approx(small[0].width, rel=0.1)


def test_write_qc_pages__are_complete_in_themselves(pages, store):
    ds = scalebrain.open_store(store)
    names = [f"{label}.html" for label in ds["subject"].values]
    assert {p.name for p in pages.glob("*.html")} == {"index.html", *names}
    page = (pages / names[3]).read_text(encoding="utf-8")
    outline = Outline(page)
    assert len(outline.of("img")) == 6
    assert all(a["src"].startswith("data:image/") for a in outline.of("img"))
    assert not outline.of("link")
    words = visible(page)
    assert "Left is drawn on the left (L, R)" in words
    assert "Simulated data" in words
    assert "template correlation" in words
    hrefs = [a["href"] for a in outline.of("a")]
    assert hrefs == ["#content", names[2], "index.html", names[4]]
    index = Outline((pages / "index.html").read_text(encoding="utf-8"))
    for image in index.of("img"):
        assert re.fullmatch(r"thumbnails/[\w-]+\.jpg", image["src"])
        assert (pages / image["src"]).stat().st_size < 30_000
        assert image["loading"] == "lazy"
    told = {image["src"]: image["alt"] for image in index.of("img")}
    one = ds.isel(subject=3)
    side = {"L": "left", "R": "right"}[str(one["lesion_hemisphere"].values)]
    words = (
        f"Scan of {names[3][:-5]}, lesion outlined: {side}, {float(one['lesion_volume']):.1f} mL"
    )
    assert told[f"thumbnails/{names[3][:-5]}.jpg"] == words
    for made in (outline, index):  # a head is printed by its label
        assert all(a.get("data-label") for a in made.of("th") if a["scope"] == "col")
    last = Outline((pages / names[-1]).read_text(encoding="utf-8"))
    turn = {a["data-part"]: a for a in last.of("a") if "data-part" in a}
    assert turn["before"]["href"] == names[-2]
    assert "hidden" in turn["after"]
    assert "href" not in turn["after"]
    first = next(a for a in index.of("a") if a.get("class") == "tile")
    assert first["href"] == names[-1]  # the outlier


def test_write_qc_pages__are_the_same_every_time_and_leave_no_one_behind(pages, store, tmp_path):
    ds = scalebrain.open_store(store)
    label = str(ds["subject"].values[3])
    before = (pages / f"{label}.html").read_bytes()
    mine = pages / "mine.html"
    mine.write_text("<p>mine</p>")
    write_qc_pages(store, pages, subjects=[label])
    names = {p.name for p in pages.glob("*.html")}
    assert names == {"index.html", "mine.html", f"{label}.html"}
    assert [p.name for p in (pages / "thumbnails").iterdir()] == [f"{label}.jpg"]
    write_qc_pages(store, pages)
    assert (pages / f"{label}.html").read_bytes() == before
    assert len(list((pages / "thumbnails").iterdir())) == ds.sizes["subject"]
    mine.unlink()


def test_write_qc_pages__tells_workers_where_a_relative_folder_is(store, tmp_path, monkeypatch):
    told = []

    def write(task, shared):
        told.append(shared.folder)
        return qcpages._Drawn((0, 0))

    monkeypatch.setattr("scalebrain.report.qcpages._write_subject", write)
    monkeypatch.chdir(tmp_path)
    label = str(scalebrain.open_store(store)["subject"].values[0])
    write_qc_pages(store.resolve(), "out", subjects=[label])
    assert told == [str(tmp_path.resolve() / "out")]


def test_write_qc_pages__names_subjects_like_those_that_are_not_there(store, tmp_path):
    with pytest.raises(MissingVariableError, match=r"2 problems[\s\S]*Similar: sub-03"):
        write_qc_pages(store, tmp_path, subjects=["sub-03", "sub-nobody"])


def test_write_qc_pages__escapes_every_text_and_stays_in_its_folder(tmp_path):
    path = store_of(tmp_path, EVIL, n=3)
    table = tmp_path / "decisions.tsv"
    label = str(scalebrain.open_store(path)["subject"].values[0])
    quoted = label.replace('"', '""')
    table.write_text(f'participant_id\tdecision\tnote\n"{quoted}"\tunsure\t</script><b>x\n')
    out = tmp_path / "out" / "pages"
    index = write_qc_pages(path, out, decisions=table)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"pages"}
    assert len(list(out.glob("sub-*.html"))) == 3
    for page in [index, *out.glob("sub-*.html")]:
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.html", page.name)
        text = page.read_text(encoding="utf-8")
        outline = Outline(text)
        assert "<script>alert" not in text
        assert "<b>x" not in text
        assert all(EVIL in a["alt"] for a in outline.of("img") if a["src"].startswith("thumb"))
        assert not [a for _, a in outline.tags if any(name.startswith("on") for name in a)]
        assert len(outline.of("script")) == 2
    held = re.search(r'id="qc-data">(.*?)</script>', index.read_text(encoding="utf-8"))
    assert held
    assert json.loads(held.group(1))["people"][0]["subject"] == label


def test_write_qc_pages__begin_with_the_decisions_of_a_table(store, tmp_path):
    label = str(scalebrain.open_store(store)["subject"].values[1])
    table = tmp_path / "decisions.tsv"
    table.write_text(f"participant_id\tdecision\n{label}\tperhaps\n")
    with pytest.raises(TableError, match="'perhaps' in line 2 is no decision"):
        write_qc_pages(store, tmp_path / "out", decisions=table)
    table.write_text(f"participant_id\tdecision\tnote\n{label}\texclude\tmotion\n")
    out = str(tmp_path / "out")
    options = ["--subjects", label, "--decisions", str(table), "--scheduler", "threads"]
    main(["qc", str(store), out, *options])
    held = re.search(r'id="qc-data">(.*?)</script>', (tmp_path / "out" / "index.html").read_text())
    assert held
    (person,) = json.loads(held.group(1))["people"]
    assert (person["decision"], person["note"]) == ("exclude", "motion")


def test_write_qc_pages__of_people_without_scans(tmp_path):
    ds = make_study().ds.isel(subject=slice(0, 3)).drop_dims("voxel")
    save_store(ds, tmp_path / "c.zarr")
    index = write_qc_pages(tmp_path / "c.zarr", tmp_path / "out")
    assert "no T1-weighted scan" in index.read_text()
    assert "nothing can be drawn" in (tmp_path / "out" / "sub-000.html").read_text()


def test_write_qc_pages__refuse_a_folder_with_other_pages(store, tmp_path):
    ds = scalebrain.open_store(store)
    label, other = (str(ds["subject"].values[at]) for at in (0, 1))
    report = PersonReport(label, {}, "<meta name='generator' content='someone'>")
    page = tmp_path / f"{label}.html"
    page.write_text(report.html)
    with pytest.raises(ConfigError, match=f"{label}.html was not made by 'scalebrain qc'"):
        write_qc_pages(store, tmp_path, subjects=[label])
    assert page.read_text() == report.html
    with pytest.raises(ConfigError, match="Give another folder"):
        write_person(report, tmp_path)
    write_qc_pages(store, tmp_path, subjects=[other])
    write_qc_pages(store, tmp_path, subjects=[other])
    with pytest.raises(ConfigError, match=f"{other}.html was not made by 'scalebrain person'"):
        write_person(PersonReport(other, {}, ""), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_write_qc_pages__show_masks_without_a_scan_and_flag_empty_ones(tmp_path):
    path = store_of(tmp_path, n=4)
    out = tmp_path / "out"
    label = [str(one) for one in scalebrain.open_store(path)["subject"].values]
    write_qc_pages(path, out)
    ds = scalebrain.open_store(path).load()
    mask, scans = ds["lesion_mask"].values.copy(), ds["t1w"].values.copy()
    mask[1:3] = False
    scans[[0, 2]] = np.nan
    ds["lesion_mask"], ds["t1w"] = (("subject", "voxel"), mask), (("subject", "voxel"), scans)
    ds["lesion_hemisphere"][1] = "none"
    ds["scan_present"] = ("subject", np.array([False, True, False, True]))
    ds = ds.assign(age_censored=("subject", np.array([True, False, False, False])))
    save_store(ds, tmp_path / "changed.zarr")
    index = write_qc_pages(tmp_path / "changed.zarr", out)
    on_template, empty, nothing, whole = (
        visible((out / f"{one}.html").read_text(encoding="utf-8")) for one in label
    )
    assert "drawn on the template for want of the subject's own scan" in on_template
    assert "slices of the template" in (out / f"{label[0]}.html").read_text(encoding="utf-8")
    assert f"{float(ds['age'][0]):.0f} or older" in on_template
    assert "The lesion mask is empty in the brain." in empty
    assert "No lesion mask." not in empty
    assert "Look at: lesion mask empty" in empty
    assert "and the lesion mask is empty in the brain: nothing can be drawn" in nothing
    assert "template for want" not in whole
    assert "lesion mask empty" not in whole
    text = index.read_text(encoding="utf-8")
    assert "drawn on the template" in visible(text)
    alts = {image["src"]: image["alt"] for image in Outline(text).of("img")}
    assert alts[f"thumbnails/{label[0]}.jpg"].startswith(f"Lesion mask of {label[0]} on the temp")
    assert alts[f"thumbnails/{label[1]}.jpg"] == f"Scan of {label[1]}"
    held = re.search(r'id="qc-data">(.*?)</script>', text)
    assert held
    flags = [person["flags"] for person in json.loads(held.group(1))["people"]]
    assert ["lesion mask empty" in one for one in flags] == [False, True, True, False]
    # that of a scan which is gone has gone with it
    left = {p.stem for p in (out / "thumbnails").iterdir()}
    assert left == {label[0], label[1], label[3]}


def test_write_qc_pages__of_masks_in_a_store_without_scans(tmp_path):
    ds = scalebrain.open_store(store_of(tmp_path, n=3)).load().drop_vars("t1w")
    save_store(ds, tmp_path / "surface.zarr")
    write_qc_pages(tmp_path / "surface.zarr", tmp_path / "out")
    page = (tmp_path / "out" / f"{ds['subject'].values[0]}.html").read_text(encoding="utf-8")
    assert 'data-layer="lesion"' in page
    assert "Only the lesion mask can be judged" in visible(page)


@pytest.mark.parametrize(
    ("side", "volume", "words"),
    [
        ("", np.nan, "Scan of sub-1"),
        ("none", 0.0, "Scan of sub-1"),
        ("unknown", 3.0, "Scan of sub-1, lesion outlined: 3.0 mL"),
        ("bilateral", np.nan, "Scan of sub-1, lesion outlined: bilateral"),
        ("R", 12.34, "Scan of sub-1, lesion outlined: right, 12.3 mL"),
    ],
)
def test_alt__says_what_is_known_of_the_lesion(side, volume, words):
    assert qcpages._alt("sub-1", side, volume) == words


# -- in a browser -------------------------------------------------------------------------

FOLDER = Path(__file__).parent
SUBJECT_PROBE = (FOLDER / "qc_subject_probe.js").read_text(encoding="utf-8")
INDEX_PROBE = (FOLDER / "qc_index_probe.js").read_text(encoding="utf-8")


def browse_in(chromium: str, page: Path, probe: str, folder: Path, *flags: str):
    """Browse a probed copy of a page beside the others."""
    text = probed(page.read_text(encoding="utf-8"), probe)
    return browse(chromium, text, folder, *flags, name=page.with_name("probed.html"))


def test_pages__decide_by_keyboard_sort_and_export_in_a_browser(chromium, pages, store, tmp_path):
    ds = scalebrain.open_store(store)
    labels = [str(label) for label in ds["subject"].values]
    page = pages / f"{labels[3]}.html"
    found, said = browse_in(chromium, page, SUBJECT_PROBE, tmp_path, "--window-size=1300,900")
    assert said == ""
    assert found["loaded"] == []
    assert found["first"] == "not decided"
    assert found["accept"] == ["true", "false", "false"]
    assert found["again"] == "not decided"  # the same key takes it back
    assert found["typed"] == "not decided"  # a letter of the note decides nothing
    assert found["exclude"] == ["false", "true", "false"]
    assert found["hidden"]
    assert found["images"]
    assert found["wide"] <= 0
    assert found["next"] == f"{labels[4]}.html"
    assert found["atFirst"] == [None, "x.html"]
    assert found["atLast"] == ["x.html", None]
    # an order of a call that wrote other pages counts for nothing
    assert found["ofOthers"] == [f"{labels[2]}.html", f"{labels[4]}.html"]

    probe = INDEX_PROBE.replace("KEPT", json.dumps(found["kept"]))
    (tmp_path / "i").mkdir()
    index, said = browse_in(
        chromium, pages / "index.html", probe, tmp_path / "i", "--window-size=1300,900"
    )
    assert said == ""
    assert all(name.startswith("file:") for name in index["loaded"])
    assert index["shown"]
    assert index["first"] == index["outliers"] == labels[-1]
    assert index["said"].startswith("1 of 14 decided: 0 accept, 1 exclude")
    assert index["sorted"] == labels
    assert index["follows"]
    assert index["excluded"] == [labels[3]]
    assert index["flagged"] == [labels[-1], labels[2]]
    assert index["mirrored"] == [labels[2]]
    assert index["cohort"] == int((ds["cohort"].values == "site A").sum())
    assert index["found"] == ["sub-041"]
    assert index["progress"] == 2
    assert index["wide"] <= 0
    assert index["name"] == "decisions.tsv"

    exported = tmp_path / "decisions.tsv"
    exported.write_text(index["text"], encoding="utf-8")
    lines = index["text"].splitlines()
    assert lines[0] == "participant_id\tdecision\tnote\trater\tdate"
    assert re.search(r"\tunsure\tn/a\tA B\t20\d\d-", index["text"])
    read = read_decisions(exported, labels)
    assert {who: (one.word, one.note) for who, one in read.items()} == {
        labels[3]: ("exclude", 'says "no" bad'),
        labels[-1]: ("unsure", ""),
    }
    # made before initials were written: signed by the first who exports, and for good
    assert {one.rater for one in read.values()} == {"A B"}
    assert {one["rater"] for one in index["remembered"]} == {"A B"}


def test_pages__export_the_decisions_of_those_who_have_no_page(
    chromium, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(qcpages, "rejected_subjects", lambda _: frozenset({"sub-gone"}))
    labels = [str(label) for label in scalebrain.open_store(store)["subject"].values]
    table = tmp_path / "decisions.tsv"
    rows = f"{labels[0]}\texclude\tmotion\n{labels[2]}\tn/a\tblurred\n"
    rows += "sub-gone\taccept\tscanned anew\n"
    rows = rows.replace("\n", "\tC D\t2026-01-02\n")
    table.write_text(f"participant_id\tdecision\tnote\trater\tdate\n{rows}")
    index = write_qc_pages(store, tmp_path / "out", subjects=[labels[1]], decisions=table)
    probe = INDEX_PROBE.replace("KEPT", "[]")
    found, said = browse_in(chromium, index, probe, tmp_path, "--window-size=1300,900")
    assert said == ""
    assert found["progress"] == 1
    table.write_text(found["text"], encoding="utf-8")
    read = read_decisions(table, [*labels, "sub-gone"])
    made = read.pop(labels[1])
    assert (made.word, made.note, made.rater) == ("unsure", "", "A B")
    told = ("C D", "2026-01-02")
    assert read == {
        labels[0]: Decision("exclude", "motion", *told),
        labels[2]: Decision("", "blurred", *told),
        "sub-gone": Decision("accept", "scanned anew", *told),
    }


REMEMBERED = """
const report = {}, data = JSON.parse(document.getElementById("qc-data").textContent);
const said = () => document.querySelector('[data-part="said"]').textContent;
const name = (kind, rest) => `scalebrain-qc ${data.key} ${kind} ${rest}`;
const person = data.people.find((one) => one.subject === "WHO");
const keep = (scan) => {
  const made = { decision: "exclude", note: "blurred", rater: "A B", date: "2026-01-02T03:04:05Z" };
  localStorage.setItem(name("of", person.subject), JSON.stringify({ ...made, scan }));
  dispatchEvent(new Event("pageshow"));
  return said();
};
localStorage.setItem(name("rater", ""), JSON.stringify("C D"));
report.same = keep(person.scan);
let text = "";
const exported = () => {
  if (!document.querySelector('[data-part="export"]')) return null;
  window.Blob = class { constructor(parts) { text = parts.join(""); } };
  URL.createObjectURL = () => "data:,";
  HTMLAnchorElement.prototype.click = function () {};
  document.querySelector('[data-part="export"]').click();
  return text;
};
report.exported = exported();
report.other = keep("another scan");
const words = document.querySelectorAll('#people [data-part="word"]');
report.words = [...words].map((one) => one.textContent);
report.none = exported();
document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "a", bubbles: true }));
report.anew = JSON.parse(localStorage.getItem(name("of", person.subject)));
report.scan = person.scan;
document.body.dataset.report = JSON.stringify(report);
"""


def test_pages__take_no_decision_about_another_scan(chromium, pages, store, tmp_path):
    label = str(scalebrain.open_store(store)["subject"].values[3])
    probe = REMEMBERED.replace("WHO", label)
    found, said = browse_in(chromium, pages / f"{label}.html", probe, tmp_path)
    assert said == ""
    assert found["same"] == "exclude, 2026-01-02 03:04 UTC"
    assert found["other"] == "not decided; decided on an earlier scan: exclude, blurred"
    made = found["anew"]
    assert (made["decision"], made["note"], made["rater"]) == ("accept", "", "C D")
    assert made["scan"] == found["scan"]
    (tmp_path / "i").mkdir()
    index, said = browse_in(chromium, pages / "index.html", probe, tmp_path / "i")
    assert said == ""
    assert index["same"].startswith("1 of 14 decided")
    assert index["exported"].endswith(f"{label}\texclude\tblurred\tA B\t2026-01-02T03:04:05Z\n")
    assert index["other"].startswith("0 of 14 decided")
    assert [word for word in index["words"] if word] == ["earlier scan"]
    assert label not in index["none"]


def test_pages__fit_a_telephone_in_the_dark(chromium, pages, tmp_path):
    flags = ("--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    probe = (
        "document.body.dataset.report = JSON.stringify({ wide: document.documentElement.scrollWidth"
        " - innerWidth, scheme: getComputedStyle(document.body).backgroundColor });"
    )
    for k, page in enumerate([pages / "index.html", sorted(pages.glob("sub-*.html"))[0]]):
        (tmp_path / str(k)).mkdir()
        found, said = browse_in(chromium, page, probe, tmp_path / str(k), *flags)
        assert said == ""
        assert found == {"wide": 0, "scheme": "rgb(18, 23, 29)"}


# -- the group report ---------------------------------------------------------------------


def test_quality_section__shows_outliers_and_decisions(store):
    ds = scalebrain.open_store(store)
    section = quality_section(ds, people(ds))
    assert section.takeaway.startswith("1 person lies far from the others")
    picture, table, note = section.blocks
    labels = [str(label) for label in ds["subject"].values]
    assert [row[0].text for row in table.rows] == [labels[-1], labels[2]]
    assert "template correlation z −" in table.rows[0][4].text
    assert table.rows[1][4].text == "mirrored"
    assert str(picture.svg).count("data:image/png") == 2
    assert len(picture.svg) < 500_000
    assert "No decisions" in note.text
    words = np.full(ds.sizes["subject"], "", dtype=object)
    words[[0, 1, 2]] = ["accept", "exclude", "unsure"]
    decided = ds.assign(qc_decision=("subject", words))
    *_, table, note = quality_section(decided, people(decided)).blocks
    assert "1 accepted, 1 excluded, 1 unsure, who are kept, and 11 without" in note.text
    assert table.rows[1][6].text == "unsure"


def test_quality_section__of_many_outliers_stays_small():
    n = 500
    small = make_study().ds.drop_dims("voxel").isel(subject=np.arange(n) % 42)
    labels = np.array([f"sub-{i:04d}" for i in range(n)], dtype=object)
    ds = small.assign_coords(subject=labels).assign(warnings=("subject", np.full(n, "mirrored")))
    (table, _) = quality_section(ds, people(ds)).blocks
    assert len(table.rows) == 200
    assert table.folded
    assert "The first 200 of 500" in table.caption


def test_quality_section__says_when_nothing_was_measured():
    ds = make_study().ds[["group", "cohort"]]
    section = quality_section(ds, people(ds))
    assert section.blocks[0].tone == "missing"
