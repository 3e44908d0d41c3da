"""Scores of several motor scales are never taken for one without a word."""

import numpy as np
import pandas as pd
import pytest

import scalebrain


@pytest.fixture
def two_scales(cohort):
    scale = np.where(np.arange(cohort.sizes["subject"]) % 3 == 0, "NIHSS", "FMA-UE")
    return cohort.assign(motor_scale=("subject", scale.astype(object)))


@pytest.mark.parametrize("way", ["mixed", "sem"])
def test_models__say_that_several_scales_are_pooled(cohort, two_scales, way, caplog):
    def fit(ds):
        if way == "sem":
            return scalebrain.sem(ds, n_boot=20)
        formula = "brain_pad_corrected ~ age + motor_score"
        return scalebrain.mixed_model(ds, formula, errors="record")

    assert fit(cohort).attrs["scale_note"] == ""
    assert not [line for line in caplog.messages if "scale" in line]
    told = fit(two_scales).attrs["scale_note"]
    assert "NIHSS" in told
    assert any(told in line for line in caplog.messages)


def test_mixed_model__without_a_motor_score_has_no_note(two_scales):
    found = scalebrain.mixed_model(two_scales, "brain_pad_corrected ~ age", errors="record")
    assert "scale_note" not in found.attrs


def test_mixed_model__scales_may_be_categories(two_scales):
    scale = two_scales["motor_scale"].values.copy()
    scale[3] = None
    formula = "brain_pad_corrected ~ age + motor_score"
    notes = [
        scalebrain.mixed_model(
            two_scales.assign(motor_scale=("subject", values)), formula, errors="record"
        ).attrs["scale_note"]
        for values in (scale, pd.Categorical(scale))
    ]
    assert notes[0] == notes[1] != ""
