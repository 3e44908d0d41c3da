import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr

import scalebrain
from scalebrain.cli import main
from scalebrain.errors import ConfigError, MissingVariableError
from scalebrain.io.results import read_results
from scalebrain.outputs import bids
from scalebrain.outputs.bids import export_bids
from scalebrain.outputs.people import bids_people
from scalebrain.outputs.study import write_table
from scalebrain.outputs.texts import BIDSIGNORE, BIDSIGNORE_PAGES
from scalebrain.report import person
from tests.conftest import missing
from tests.phantom import tree_bytes
from tests.report.conftest import make_study
from tests.report.test_page import EVIL


@pytest.fixture(scope="module")
def exported(study):
    return study / "derivatives"


def validated(folder):
    """Issues of the official validator, which needs no network."""
    command = [str(Path(sys.executable).with_name("bids-validator-deno")), str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return json.loads(done.stdout)["issues"]["issues"]


def read(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


def test_export_bids__passes_the_official_validator(exported):
    issues = validated(exported)
    assert [i for i in issues if i["severity"] == "error"] == []
    known = {"SIDECAR_KEY_RECOMMENDED", "TOO_FEW_AUTHORS"}
    codes = {i["code"] for i in issues} - known
    assert {c for c in codes if not c.endswith("_RECOMMENDED")} == set()


def test_export_bids__validator_refuses_a_broken_one(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "dataset_description.json").write_text('{"Name": "x"}')
    (copy / "odd.txt").write_text("x")
    assert {"NOT_INCLUDED"} <= {i["code"] for i in validated(copy) if i["severity"] == "error"}


def test_export_bids__every_column_is_described(exported):
    checked = 0
    for path in exported.rglob("*.tsv"):
        sidecar = path.with_suffix(".json")
        if path.name.endswith("_morph.tsv"):
            sidecar = exported / f"{path.stem.split('_', 1)[1]}.json"
        told = json.loads(sidecar.read_text())
        for column in path.read_text().split("\n", 1)[0].split("\t"):
            assert told[column]["Description"], (path, column)
            assert told[column]["Description"] != f"Variable {column}", (path, column)
            checked += 1
    assert checked > 500
    told = json.loads((exported / "phenotype" / "brain_pad_corrected.json").read_text())
    assert told["brain_pad_corrected_SMN_L"]["Units"] == "years"


def test_export_bids__numbers_are_those_of_the_store(exported, study):
    ds = scalebrain.open_store(study / "cohort.zarr")
    people = read(exported / "participants.tsv")
    assert people["source_id"].tolist() == ds["subject"].values.tolist()
    np.testing.assert_array_equal(people["age"], ds["age"].values)
    wide = read(exported / "phenotype" / "brain_age.tsv")
    expected = ds["brain_age"].sel(region="FPN_R").values
    np.testing.assert_array_equal(wide["brain_age_FPN_R"], expected)
    long = pq.read_table(exported / "parquet" / "regions.parquet")
    frame = long.to_pandas()
    np.testing.assert_array_equal(frame["brain_pad"], ds["brain_pad"].values.ravel())
    one = read(
        exported
        / "sub-stroke003"
        / "anat"
        / next(p.name for p in (exported / "sub-stroke003" / "anat").glob("*networks9x2*"))
    )
    np.testing.assert_array_equal(
        one["lesion_load"], ds["lesion_load"].sel(subject="sub-stroke003")
    )


def test_export_bids__rows_are_of_their_people_whatever_comes_first(tmp_path):
    loads = xr.DataArray(
        np.arange(6.0).reshape(3, 2),
        dims=("subject", "region"),
        coords={"subject": ["sub-003", "sub-001", "sub-002"], "region": ["SMN_R", "SMN_L"]},
    )
    for name, array in (("a", loads), ("b", loads.T)):
        export_bids(xr.Dataset({"lesion_load": array}), tmp_path / name)  # and without ages
    first, second = (
        pd.read_parquet(tmp_path / name / "parquet" / "regions.parquet") for name in "ab"
    )
    pd.testing.assert_frame_equal(first, second)
    row = first[(first["source_subject"] == "sub-001") & (first["region"] == "SMN_L")]
    assert row["lesion_load"].item() == 3.0


def test_export_bids__missing_is_never_zero_or_empty(exported):
    loads = read(exported / "phenotype" / "lesion_load.tsv").set_index("participant_id")
    assert loads.loc["sub-ref001"].drop("source_subject").isna().all()
    assert not list((exported / "sub-ref001" / "anat").glob("*seg-tracts*")), "it has no lesion"
    for path in exported.rglob("*.tsv"):
        cells = [line.split("\t") for line in path.read_text().splitlines()]
        assert all(cell != "" for row in cells for cell in row), path
    column = pq.read_table(exported / "parquet" / "regions.parquet")["lesion_load"]
    assert column.null_count > 0


def test_export_bids__simulated_data_say_so_everywhere(exported):
    told = json.loads((exported / "dataset_description.json").read_text())
    assert told["Simulated"] is True
    assert "simulated" in told["Name"]
    assert "Simulated data" in (exported / "README.md").read_text()
    for path in (exported / "parquet").glob("*.parquet"):
        schema = pq.read_schema(path)
        assert json.loads(schema.metadata[b"scalebrain"])["simulated"] is True
        assert all(b"Description" in field.metadata for field in schema), path
    field = pq.read_schema(exported / "parquet" / "regions.parquet").field("brain_pad")
    assert field.metadata[b"Units"] == b"years"


def test_export_bids__blocks_change_nothing(exported, study, tmp_path, monkeypatch):
    monkeypatch.setattr(bids, "_BLOCK", 30)
    ds = scalebrain.open_store(study / "cohort.zarr")
    again = export_bids(ds, tmp_path / "again", results=study / "results.zarr")

    def texts(folder):
        return {k: v for k, v in tree_bytes(folder).items() if not str(k).endswith(".parquet")}

    assert texts(again) == texts(exported)
    file = pq.ParquetFile(again / "parquet" / "regions.parquet")
    assert file.metadata.num_row_groups > 2
    before = tree_bytes(again)
    assert tree_bytes(export_bids(ds, again, results=study / "results.zarr")) == before


def test_export_bids__loads_no_image(study, tmp_path):
    ds = scalebrain.open_store(study / "cohort.zarr")
    ds["t1w"].data = dask.array.map_blocks(
        lambda block: 1 / 0, ds["t1w"].data, dtype=np.float32, meta=np.empty((0, 0), np.float32)
    )
    export_bids(ds.isel(subject=[0, 1]), tmp_path / "out")


def test_export_bids__refuses_a_folder_of_something_else(cohort_of_sessions, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_bids(cohort_of_sessions, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / ".bidsignore").write_text("*.txt\n")
    with pytest.raises(ConfigError, match="another BIDS dataset"):
        export_bids(cohort_of_sessions, tmp_path)


def test_export_bids__pages_of_people_pass_the_validator_and_go_again(study, tmp_path, monkeypatch):
    monkeypatch.setattr(person, "predict_motor", lambda *_, **__: pytest.fail("made anew"))
    ds = scalebrain.open_store(study / "cohort.zarr")
    stroke = ds["group"].values.astype(str) == "stroke"
    wanted = np.flatnonzero(stroke & ds["included"].values)[-2:]
    others = [np.flatnonzero(stroke & ~ds["included"].values)[0], np.flatnonzero(~stroke)[0]]
    ds = ds.isel(subject=[*others, *wanted])
    results, _ = read_results(study / "results.zarr")
    motor = {"motor": results["motor"]}
    out = export_bids(ds, tmp_path / "out", results=motor, person_pages=True)
    labels = [str(label) for label in ds["subject"].values]
    assert sorted(p.name for p in out.glob("*.html")) == sorted(f"{s}.html" for s in labels[2:])
    report = person.person_report(ds, labels[3], motor=results["motor"])
    assert (out / f"{labels[3]}.html").read_text() == report.html
    assert "`sub-*.html`" in (out / "README.md").read_text()
    assert [i for i in validated(out) if i["severity"] == "error"] == []
    (out / ".bidsignore").write_text(BIDSIGNORE)
    assert {"NOT_INCLUDED"} == {i["code"] for i in validated(out) if i["severity"] == "error"}
    (out / ".bidsignore").write_text(BIDSIGNORE_PAGES)
    # what a kill left goes, and without the option all of them
    (out / f".{labels[3]}.html.1.partial").write_text("<")
    (out / "notes.html").write_text("mine")
    export_bids(ds.isel(subject=[0, 2]), out, results=motor, person_pages=True)
    left = {f"{labels[2]}.html", "notes.html"}
    assert {path.name for path in out.iterdir() if "html" in path.name} == left
    export_bids(ds, out, results=motor)
    assert {path.name for path in out.iterdir() if "html" in path.name} == {"notes.html"}
    assert (out / ".bidsignore").read_text() == BIDSIGNORE
    with pytest.raises(MissingVariableError, match="included"):
        export_bids(ds.drop_vars("included"), tmp_path / "none", person_pages=True)
    assert not (tmp_path / "none").exists()


def test_export__command_asks_for_pages_of_people(study, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scalebrain, "export_bids", lambda *_, **options: asked.append(options))
    command = ["export", str(study / "cohort.zarr"), str(tmp_path / "out")]
    main([*command, "--person-pages"])
    main(command)
    assert [options["person_pages"] for options in asked] == [True, False]


def test_export_bids__makes_labels_and_pages_of_any_subject(tmp_path):
    ds = make_study(EVIL).ds
    subject = str(ds["subject"].values[32])
    out = export_bids(ds.isel(subject=[1, 32]), tmp_path / "out", person_pages=True)
    labels = re.compile(r"[A-Za-z0-9-]+")
    folders = [
        path.name for path in out.iterdir() if path.name.startswith("sub-") and path.is_dir()
    ]
    assert all(labels.fullmatch(name) for name in folders)
    (page,) = out.glob("*.html")
    assert labels.fullmatch(page.stem)
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert "<img src=x" not in page.read_text(encoding="utf-8")
    assert {path.parent for path in out.rglob("*.html")} == {out}
    assert subject in (out / "participants.tsv").read_text(encoding="utf-8").replace('""', '"')


@pytest.fixture
def cohort_of_sessions():
    return xr.Dataset(
        {
            "person": ("subject", ["sub-a", "sub-a", "sub-b c"]),
            "session": ("subject", ["1", "2", "1"]),
            "age": ("subject", [50.0, 52.0, 60.0]),
            "sex": ("subject", ["F", "F", ""]),
            "brain_age": (("subject", "region"), [[1.0, np.nan], [3.0, 4.0], [np.nan, np.nan]]),
        },
        coords={"subject": ["sub-a_ses-1", "sub-a_ses-2", "b"], "region": ["SMN_L", "SMN_R"]},
    )


def test_export_bids__sessions(cohort_of_sessions, tmp_path):
    out = export_bids(cohort_of_sessions, tmp_path / "out")
    people = read(out / "participants.tsv")
    assert people["participant_id"].tolist() == ["sub-a", "sub-bc"]
    np.testing.assert_array_equal(people["age"], [np.nan, 60])
    assert people["sex"].tolist()[0] == "F"
    assert read(out / "sub-a" / "sub-a_sessions.tsv")["age"].tolist() == [50, 52]
    assert (out / "sub-a" / "ses-2" / "anat").is_dir()
    assert read(out / "group" / "brain_age.tsv")["session_id"].tolist() == [
        "ses-1",
        "ses-2",
        "ses-1",
    ]
    assert not (out / "sub-bc" / "ses-1").exists(), "no value, no file"
    assert [i["code"] for i in validated(out) if i["severity"] == "error"] == []


def test_export_bids__leaves_out_results_of_others(cohort_of_sessions, tmp_path, caplog):
    motor = xr.Dataset(
        {"predicted": ("subject", [0.1, 0.2, 0.3, 0.4])},
        {"subject": ["sub-x", "b", "sub-y", "sub-a_ses-2"]},
    )
    out = export_bids(cohort_of_sessions, tmp_path / "out", results={"motor": motor})
    rows = read(out / "group" / "motor.tsv")
    assert rows.to_numpy().tolist() == [["sub-bc", "ses-1", 0.2], ["sub-a", "ses-2", 0.4]]
    assert pq.read_table(out / "parquet" / "group_motor.parquet").num_rows == 2
    assert "motor: 2 subjects are not in the Dataset and left out" in caplog.text


def test_export_bids__columns_of_pandas_objects_and_dates(tmp_path, monkeypatch):
    monkeypatch.setattr(bids, "_BLOCK", 2)
    ds = xr.Dataset({"age": ("subject", [50.0, 60.0, 70.0])}, {"subject": ["a", "b", "c"]})
    given = {
        "hand": pd.Series(["left", None, "right"]).values,
        "scale": pd.array([1, None, 3], dtype="Int64"),
        "bmi": np.array([None, None, 2.5], dtype=object),
        "seen": np.array(["2020-01-01", "2020-05-01T10:30", "NaT"], dtype="datetime64[ns]"),
    }
    out = export_bids(ds.assign({n: ("subject", v) for n, v in given.items()}), tmp_path / "out")
    table = pq.read_table(out / "parquet" / "quality.parquet")
    assert table["hand"].to_pylist() == ["left", None, "right"]
    assert table["scale"].to_pylist() == [1.0, None, 3.0]
    assert table["bmi"].to_pylist() == [None, None, 2.5]
    assert table["seen"].to_pylist() == ["2020-01-01T00:00:00", "2020-05-01T10:30:00", None]
    rows = read(out / "phenotype" / "quality.tsv")
    np.testing.assert_array_equal(rows["bmi"], [np.nan, np.nan, 2.5])


def test_export_bids__sessions_of_some_lose_nothing_of_the_others(tmp_path):
    ds = xr.Dataset(
        {
            "person": ("subject", ["sub-a", "sub-a", "sub-b", "sub-c", "sub-c"]),
            "session": ("subject", ["ses-1", "ses-2", "", "", "ses-2"]),
            "age": ("subject", [50.0, 52.0, 60.0, 70.0, 72.0]),
            "days_post_stroke": ("subject", [30.0, np.nan, 200.0, np.nan, np.nan]),
            "included": ("subject", [False, True, True, True, False]),
            "cohort": ("subject", ["x", "y", "y", "x", "x"]),
        },
        coords={"subject": ["sub-a_ses-1", "sub-a_ses-2", "sub-b", "sub-c", "sub-c_ses-2"]},
    )
    out = export_bids(ds, tmp_path / "out")
    lines = (out / "participants.tsv").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["participant_id", "source_id", "age", "cohort", "days_post_stroke", "included"],
        ["sub-a", "sub-a", "n/a", "n/a", "n/a", "n/a"],
        ["sub-b", "sub-b", "60.0", "y", "200.0", "true"],
        ["sub-c", "sub-c", "70.0", "x", "n/a", "true"],
    ]
    a, c = (read(out / one / f"{one}_sessions.tsv") for one in ("sub-a", "sub-c"))
    assert a["age"].tolist() == [50, 52]
    assert a["included"].tolist() == [False, True]
    assert c[["session_id", "age"]].to_numpy().tolist() == [["ses-2", 72]]
    assert not (out / "sub-b").exists()
    assert [i["code"] for i in validated(out) if i["severity"] == "error"] == []
    everyone = export_bids(ds.isel(subject=[0, 1]), tmp_path / "all")
    assert "age" not in read(everyone / "participants.tsv")


def test_bids_people__labels_are_unique():
    ds = xr.Dataset(coords={"subject": ["sub-a_1", "sub-a1", "sub-A1", "sub-é"]})
    labels = bids_people(ds)["participant_id"].tolist()
    assert labels == ["sub-a1", "sub-a1x2", "sub-A1x3", "sub-x"]


def test_export_bids__of_sessions_opens_in_r_as_the_docs_say(
    cohort_of_sessions, tmp_path, repository
):
    ds = cohort_of_sessions
    ds["brain_pad_corrected"] = ds["brain_age"].assign_attrs(units="years")
    out = export_bids(ds, tmp_path / "out")
    (out / "group" / "mixed_region_term.tsv").write_text("term\testimate\nage\t1\n")
    told = in_r(out, r_of_the_docs(repository)[0] + "cat(nrow(both), both$session_id)\n")
    assert told.splitlines() == ['[1] "years"', "3 ses-1 ses-2 ses-1"]


def in_r(folder: Path, script: str) -> str:
    """Run a script in a folder; what it prints."""
    if shutil.which("Rscript") is None:
        missing("R")
    done = subprocess.run(
        ["Rscript", "-e", script], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def r_of_the_docs(repository: Path) -> list[str]:
    """Blocks of R in the page about outputs."""
    page = (repository / "docs" / "outputs.md").read_text()
    return re.findall(r"```r\n(.*?)```", page, re.DOTALL)


def test_export_bids__opens_in_r_as_the_docs_say(exported, repository):
    told = in_r(
        exported,
        r_of_the_docs(repository)[0]
        + "stopifnot(any(both$included == 'true'), is.numeric(both$brain_pad_corrected_SMN_L))\n"
        + "stopifnot(is.numeric(effects$estimate), any(effects$term == 'age'))\n"
        + "stopifnot(is.character(people$sex), is.character(people$cohort))\n"
        + "stopifnot(0 < nrow(used), all(used$included == 'true'), is.na(used$age) == FALSE)\n"
        + "cat(nrow(both), mean(both$age))\n",
    )
    unit, last = told.strip().splitlines()
    assert unit == '[1] "years"'
    n, age = last.split()
    people = read(exported / "participants.tsv")
    assert int(n) == len(people)
    assert float(age) == pytest.approx(people["age"].mean(), rel=1e-5)


def test_export_bids__of_imported_ages_opens_in_r_as_the_docs_say(tmp_path, repository):
    ds = xr.Dataset(
        {
            "sex": ("subject", ["F", "M", "F"]),
            "cohort": ("subject", ["01", "01", "02"]),
            "included": ("subject", [True, False, True]),
            "brain_pad_corrected": (("subject", "region"), [[1.0], [2.0], [3.0]]),
        },
        coords={"subject": ["sub-a", "sub-b", "sub-c"], "region": ["SMN_L"]},
    )
    ds["brain_pad_corrected"].attrs["units"] = "years"
    out = export_bids(ds, tmp_path / "out")
    (out / "group").mkdir(exist_ok=True)
    (out / "group" / "mixed_region_term.tsv").write_text("term\testimate\nage\t1\n")
    told = in_r(out, r_of_the_docs(repository)[0] + "cat(used$participant_id)\n")
    assert told.splitlines()[-1] == "sub-a sub-c"


def test_export_bids__parquet_opens_in_r_where_r_can(exported, repository):
    has = "cat(c('nanoparquet', 'arrow')[sapply(c('nanoparquet', 'arrow'), requireNamespace)])"
    found = in_r(exported, f"suppressWarnings(suppressMessages({{{has}}}))").split()
    if not found:
        pytest.skip("R has neither nanoparquet nor arrow, which Debian has no package of")
    line = r_of_the_docs(repository)[1].splitlines()[1].replace("nanoparquet", found[0])
    script = f"{line}\ncat(nrow(regions), mean(regions$brain_pad, na.rm = TRUE))"
    n, pad = in_r(exported, script).split()
    regions = pq.read_table(exported / "parquet" / "regions.parquet").to_pandas()
    assert int(n) == len(regions)
    assert float(pad) == pytest.approx(regions["brain_pad"].mean(), rel=1e-5)


@pytest.mark.parametrize("written", [0, 9, len(BIDSIGNORE)])
def test_export_bids__goes_on_where_a_full_disk_stopped_it(cohort_of_sessions, tmp_path, written):
    whole = export_bids(cohort_of_sessions, tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".bidsignore").write_text(BIDSIGNORE[:written])
    if written == len(BIDSIGNORE):
        (out / "participants.tsv").write_text("partic")
    assert tree_bytes(export_bids(cohort_of_sessions, out)) == tree_bytes(whole)


def test_export_bids__an_empty_bidsignore_of_others_protects_nothing_less(
    cohort_of_sessions, tmp_path
):
    (tmp_path / ".bidsignore").touch()
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-theirs\n")
    with pytest.raises(ConfigError, match="another BIDS dataset"):
        export_bids(cohort_of_sessions, tmp_path)
    assert "theirs" in (tmp_path / "participants.tsv").read_text()


def test_export_bids__tables_of_two_dimensions_of_one_atlas_are_two(tmp_path):
    def loads(dim, atlas):
        labels = {"subject": ["sub-001"], dim: ["A_L", "A_R"]}
        return xr.DataArray(
            [[0.1, 0.2]], dims=("subject", dim), coords=labels, attrs={"atlas": atlas}
        )

    both = {"lesion_load": loads("region", "mine-1"), "tract_load": loads("tract", "mine-1")}
    out = export_bids(xr.Dataset(both), tmp_path / "a")
    names = sorted(path.name.split("_")[1] for path in (out / "sub-001" / "anat").iterdir())
    assert names == ["seg-mine1", "seg-mine1Tracts"]
    both = {"lesion_load": loads("region", "tracts"), "tract_load": loads("tract", "")}
    out = export_bids(xr.Dataset(both), tmp_path / "b")
    names = sorted(path.name.split("_")[1] for path in (out / "sub-001" / "anat").iterdir())
    assert names == ["seg-tracts", "seg-tractsRegions"]
    both = {"lesion_load": loads("region", "mine-Tracts"), "tract_load": loads("tract", "mine")}
    with pytest.raises(ConfigError, match="both be named seg-minetracts"):
        export_bids(xr.Dataset(both), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_write_table__missing_text_is_told_as_missing_numbers(tmp_path):
    columns = {"n": [1.5, np.nan], "sex": ["", "F"], "flag": [True, False], "any": [None, "a b"]}
    write_table(pd.DataFrame(columns), tmp_path / "t.tsv")
    lines = (tmp_path / "t.tsv").read_text().splitlines()
    assert lines == ["n\tsex\tflag\tany", "1.5\tn/a\tTrue\tn/a", "n/a\tF\tFalse\ta b"]
