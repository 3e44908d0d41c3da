"""Scans are not counted as people, in coverage, ages and quality."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalebrain.report.brainage import accuracy_section
from scalebrain.report.calibration import coverage_blocks, read_coverage
from scalebrain.report.cohort import cohort_section, people
from scalebrain.report.content import Figure, Flows, Note, StudyResults, Table
from scalebrain.report.qualitysection import quality_section
from scalebrain.report.templating import environment
from tests.report.conftest import Study


@pytest.fixture
def twice(study: Study) -> xr.Dataset:
    """The study, in which every reference has two scans."""
    n = study.ds.sizes["subject"]
    person = [f"p{k // 2}" if k < 24 else f"p{k}" for k in range(n)]
    return study.ds.assign_coords(person=("subject", np.array(person, dtype=object)))


def figures(blocks):
    return {block.key: block for block in blocks if isinstance(block, Figure)}


def test_coverage__someone_of_several_scans_counts_once(twice: xr.Dataset):
    used = twice["included"].values & (twice["group"].values.astype(str) == "reference")
    wide = np.where(np.arange(len(used)) % 4 == 1, -1.0, 100.0)  # the second scan of every other
    ds = twice.assign_coords(age=twice["age"] * 0 + 65.5)
    for name, sign in (("brain_age_low", -1), ("brain_age_high", 1)):
        made = ds["age"] + sign * xr.DataArray(wide, dims="subject")
        ds[name] = made.expand_dims(region=ds["region"]).transpose("subject", "region")
    ds["brain_age_low"].attrs["coverage"] = 0.975
    ds["out_of_fold"] = ("subject", used)
    coverage = read_coverage(ds)
    assert used.sum() == 23
    assert coverage.n_calibrating == 12
    # p0 has one included scan, outside; of the others every other has half of its scans inside
    share = (0.0 + 5 * 0.5 + 6 * 1.0) / 12
    assert coverage.by_region()["SMN_L"] == pytest.approx(share)
    note, table = (b for b in coverage_blocks(coverage) if isinstance(b, Note | Table))
    assert "the 97.5% conformal interval holds the true age of 71% of 12 reference" in note.text
    assert "met by construction" in note.text
    assert [one.text for one in table.rows[-1]][1:3] == ["12", "97.5%"]


def test_sections__say_scans_where_they_count_scans(study: Study, twice: xr.Dataset):
    def captions(ds: xr.Dataset) -> tuple[str, str, str]:
        ages = figures(cohort_section(people(ds), StudyResults()).blocks)["ages"]
        scatter = figures(accuracy_section(ds, StudyResults()).blocks)["scatter"]
        warned = ds.drop_dims("voxel").assign(warnings=("subject", words))
        return ages.caption, scatter.caption, quality_section(warned, people(ds)).takeaway

    words = np.full(study.ds.sizes["subject"], "", dtype=object)
    words[[2, 3]] = "odd-scan"
    ages, scatter, quality = captions(twice)
    assert "a dot is a scan." in ages
    assert "against age of 23 scans of 12 reference people," in scatter
    assert "2 scans have a warning" in quality
    ages, scatter, quality = captions(study.ds)
    assert "a dot is a person." in ages
    assert "against age of 23 reference people," in scatter
    assert "2 people have a warning" in quality


def test_cohort_section__calls_its_rows_scans(study: Study, twice: xr.Dataset):
    rejected = pd.DataFrame({"subject": ["x"], "code": ["no-age"], "rule": ["an age"]})
    results = StudyResults(rejected=rejected)

    def told(ds: xr.Dataset) -> tuple[str, str]:
        section = cohort_section(people(ds), results)
        template = environment().get_template("blocks.html.j2")
        (flows,) = (block for block in section.blocks if isinstance(block, Flows))
        return section.takeaway, str(template.module.flow(flows))

    n = study.ds.sizes["subject"]
    takeaway, chart = told(twice)
    assert f"of {n} scans from" in takeaway
    assert "1 scan was excluded" in takeaway or "scans were excluded" in takeaway
    assert "1 scan did not pass the checks" in takeaway
    assert "people" not in takeaway
    assert f"<b>{n}</b> scans in the data set" in chart
    assert "Every scan in the data set" in chart
    takeaway, chart = told(study.ds)
    assert f"of {n} people from" in takeaway
    assert f"<b>{n}</b> people in the data set" in chart
    kept = people(twice).assign(included=True)
    assert "no scan was excluded." in cohort_section(kept, results).takeaway


def test_accuracy_section__counts_those_who_have_a_brain_age(study: Study):
    age = study.ds["brain_age"].copy(deep=True)
    age[4:20] = np.nan
    section = accuracy_section(study.ds.assign(brain_age=age), StudyResults())
    scatter = figures(section.blocks)["scatter"]
    assert "against age of 7 reference people," in scatter.caption
    assert "against age of 7 reference people in 3 regions" in scatter.svg
