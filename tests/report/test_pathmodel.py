"""Labels, notes and captions of a path model are those of the model that was fitted."""

import numpy as np
import xarray as xr

from scalebrain.report.content import Figure, Note, Section, StudyResults, Table
from scalebrain.report.pathmodel import sem_section
from tests.report.conftest import Study


def words(section: Section) -> str:
    blocks = section.blocks
    said = [b.text if isinstance(b, Note) else getattr(b, "caption", "") for b in blocks]
    columns = [c.label for b in blocks if isinstance(b, Table) for c in b.columns]
    return " ".join([section.takeaway, *said, *columns])


def test_sem_section__a_latent_variable_has_no_label_of_an_observed_one():
    sem = xr.Dataset(
        {"std_estimate": ("path", [0.8, 0.7, 0.3, 0.1]), "p": ("path", np.full(4, 0.01))},
        coords={"path": ["brain =~ ipsi", "brain =~ contra", "motor ~ brain", "motor ~ cst"]},
        attrs={"variables": {"motor": "motor_score", "cst": "tract_load of CST_ipsilesional"}},
    )
    section = sem_section(StudyResults(sem=sem))
    drawn = next(block for block in section.blocks if isinstance(block, Figure))
    assert section.takeaway.startswith("The strongest path leads from brain (latent) to motor")
    assert "brain (latent) to Motor score" in drawn.svg
    assert "whole brain" not in drawn.svg


def test_sem_section__speaks_of_a_reversed_arrow_where_one_was_reversed(study: Study):
    sem = study.parts["sem"]
    usual = words(sem_section(StudyResults(sem=sem)))
    assert "so does the model with the arrow reversed" in usual
    assert "the arrow between motor score and the contralesional side as specified" in usual
    own = sem.isel(model=[0, 2]).assign_coords(model=["specified", "no brain"])
    said = words(sem_section(StudyResults(sem=own)))
    assert "saturated" in said
    assert "no evidence for its arrows" in said
    assert "reversed" not in said
    assert "Rival models of the same variables. Lower AIC" in said
    alone = words(sem_section(StudyResults(sem=sem.drop_dims("model"))))
    assert "arrow reversed" not in alone


def test_sem_section__names_the_level_and_what_was_drawn(study: Study):
    sem = study.parts["sem"].assign(
        defined_estimate=("defined", [0.2]),
        defined_p=("defined", [0.01]),
        defined_ci_low=("defined", [0.1]),
        defined_ci_high=("defined", [0.3]),
        defined_std_estimate=("defined", [0.12]),
    )
    sem = sem.assign_coords(defined=["total"])
    told = {"confidence": 0.975, "groups": "scanner", "rows_dropped": "24 of 42 subjects"}
    said = words(sem_section(StudyResults(sem=sem.assign_attrs(told))))
    assert "(97.5% interval " in said
    assert "coefficients with 97.5% intervals" in said
    assert "resample whole groups by scanner" in said
    assert "Intervals resample groups by scanner, each as a whole" in said
    assert said.count("97.5% CI") == 4
    assert "95%" not in said
    assert "cohorts" not in said
    assert "Rows not used, of everyone in the data: 24 of 42" in said
    people = words(sem_section(StudyResults(sem=sem.assign_attrs(groups="subject"))))
    assert "bootstrap intervals that resample people" in people
