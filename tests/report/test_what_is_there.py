"""The flow chart and the methods tell of what was done, and of nothing else."""

import xarray as xr

from scalebrain.report.cohort import cohort_section, people
from scalebrain.report.content import Flows, Note, StudyResults
from scalebrain.report.methods import methods_text
from scalebrain.report.page import render_report
from tests.report.conftest import Study
from tests.report.test_page import visible


def uses(ds: xr.Dataset, results: StudyResults, **told: bool) -> dict[str, str]:
    section = cohort_section(people(ds), results, **told)
    flows = next(block for block in section.blocks if isinstance(block, Flows))
    return {lane.group: lane.use for lane in flows.lanes}


def test_cohort_section__says_what_people_were_used_for(study: Study):
    every = uses(study.ds, study.results)
    assert every == {
        "reference": "teach and test the brain-age model",
        "stroke": "enter the lesion, path and motor models",
    }
    assert uses(study.ds, StudyResults()) == {"reference": "are kept", "stroke": "are kept"}
    own = uses(study.ds, StudyResults(motor=study.parts["motor"]), own_ages=True)
    assert own == {
        "reference": "teach and test the brain-age model",
        "stroke": "enter the motor model",
    }
    bare = study.ds.drop_vars(["brain_age", "brain_age_low", "brain_age_high"])
    assert "teach and test" not in render_report(bare, results=StudyResults())
    assert "teach and test" in render_report(study.ds, results=StudyResults())


def test_cohort_section__names_the_groups_of_the_intercepts(study: Study):
    mixed = study.parts["mixed"].assign_attrs(groups="scanner")
    section = cohort_section(people(study.ds), StudyResults(mixed=mixed))
    notes = [block.text for block in section.blocks if isinstance(block, Note)]
    assert any("with an intercept for each scanner." in one for one in notes)
    slope = "random intercept and slope of age, REML, Satterthwaite degrees of freedom"
    mixed = mixed.assign_attrs(groups="site_id", method=slope)
    words = cohort_section(people(study.ds), StudyResults(mixed=mixed)).blocks
    told = "with an intercept and slope of age for each site id."
    assert any(told in block.text for block in words if isinstance(block, Note))
    assert f"with a random {told[8:-1]}" in methods_text(study.ds, StudyResults(mixed=mixed))


def test_methods__tell_of_models_that_differ_one_by_one(study: Study):
    mixed = study.parts["mixed"].assign_attrs(formula="pad ~ volume")
    slope = "random intercept and slope of age, REML, Satterthwaite degrees of freedom"
    load = mixed.assign_attrs(formula="pad ~ load + (1 + age | cohort)", method=slope)
    text = visible(methods_text(study.ds, StudyResults(mixed=mixed, mixed_load=load)))
    first, second = text.split("Another linear mixed model")
    assert "A linear mixed model with a random intercept for each cohort was fitted" in first
    assert "slope of age" not in first
    assert first.rstrip().endswith("pad ~ volume")
    assert second.startswith(" with a random intercept and slope of age for each cohort was fitted")
    assert "pad ~ load + (1 + age | cohort)" in second
    load = mixed.assign_attrs(formula="pad ~ load")
    text = visible(methods_text(study.ds, StudyResults(mixed=mixed, mixed_load=load)))
    assert text.count("linear mixed model") == 1
    assert text.index("pad ~ volume") < text.index("pad ~ load")


def test_methods__of_imported_ages_of_the_whole_brain_name_no_nodes(study: Study):
    gone = [name for name in study.ds if str(name).startswith("brain_")]
    ds = study.ds.drop_vars([*gone, "calibration_slope"])
    ds["brain_age_global"] = ("subject", ds["age"].values + 1, {"tool": "brainageR"})
    ds["brain_pad_global"] = ("subject", ds["age"].values * 0 + 1, {"tool": "brainageR"})
    text = visible(methods_text(ds, StudyResults()))
    assert "imported" in text
    for words in ("nodes", "Regions", "Corticospinal"):
        assert words not in text
    assert "Lesion load is the lesioned fraction of a region. Models" in text
    own = visible(methods_text(study.ds, StudyResults()))
    assert "divided into compact nodes. Regions are sets" in own


def test_methods__tell_of_tract_loads_where_there_are_some(study: Study):
    words = "or tract. Corticospinal loads"
    assert words not in visible(methods_text(study.ds, StudyResults()))
    loads = study.ds.assign(tract_load=study.ds["lesion_volume"].expand_dims(tract=["CST_L"]))
    assert words in visible(methods_text(loads, StudyResults()))


def test_methods__name_levels_and_what_was_left_out(study: Study):
    ds = study.ds.copy()
    ds["brain_age_low"].attrs["coverage"] = 0.995
    told = {"groups": "scanner", "target": "walking_speed"}
    motor = study.parts["motor"].assign_attrs(told)
    text = visible(methods_text(ds, StudyResults(motor=motor)))
    assert "split-conformal at 99.5%" in text
    assert "The walking speed was predicted with whole groups by scanner left out" in text
    assert "of the scores within groups by scanner" in text
