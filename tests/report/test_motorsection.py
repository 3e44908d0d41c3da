"""The motor section tells what was left out, what was predicted, and what was of use."""

import numpy as np

from scalebrain.report.content import Note, Section, StudyResults, Table
from scalebrain.report.motor import motor_section, motor_summary
from tests.report.conftest import Study


def words(section: Section) -> str:
    blocks = section.blocks
    said = [b.text if isinstance(b, Note) else getattr(b, "caption", "") for b in blocks]
    columns = [c.label for b in blocks if isinstance(b, Table) for c in b.columns]
    return " ".join([section.title, section.takeaway, *said, *columns])


def test_motor_section__names_what_was_left_out_and_predicted(study: Study):
    motor = study.parts["motor"]
    told = {"groups": "scanner_type", "target": "walking_speed", "severe_below": 0.4}
    other = motor.assign_attrs(told | {"confidence": 0.8, "coverage": 0.975, "skipped": []})
    said = words(motor_section(StudyResults(motor=other)))
    assert "Predicting the walking speed" in said
    assert "In 3 groups by scanner type left out one at a time" in said
    assert "(80% interval " in said
    assert "with 80% intervals that resample groups by scanner type" in said
    assert "with 80% intervals that resample whole groups by scanner type" in said
    assert "Held-out scores with 80% intervals" in said
    assert "The 97.5% interval of each person's prediction" in said
    assert "Severe: walking speed below 0.400" in said
    assert "motor score" not in said
    assert "cohort" not in said
    assert "In 3 groups by scanner type left out" in motor_summary(other)[0]
    usual = words(motor_section(StudyResults(motor=motor)))
    assert "Predicting the motor score" in usual
    assert "In 3 cohorts left out one at a time" in usual
    assert "95% interval" in usual


def test_motor_section__names_no_predictor_that_is_of_no_use(study: Study):
    motor = study.parts["motor"].copy(deep=True)
    motor["importance"] = motor["importance"] * 0 - [0.01, 0.0, 0.02]
    section = motor_section(StudyResults(motor=motor))
    none = "No R² was lost when any predictor was shuffled in held-out cohorts."
    assert none in [b.text for b in section.blocks if isinstance(b, Note)]
    assert none in motor_summary(motor)
    motor["importance"][:, 1] = np.array([0.2, -0.1])
    section = motor_section(StudyResults(motor=motor))
    assert (
        "the first is ipsilesional CST lesion load (overlap). It is among the top three in 90% of"
        in words(section)
    )
