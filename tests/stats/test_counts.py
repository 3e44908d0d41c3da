"""Numbers of replicates, draws and permutations that are none are refused in words."""

import numpy as np
import pytest

from scalebrain.errors import StatisticsError
from scalebrain.stats.counts import check_count
from scalebrain.stats.lesion_symptom import lesion_symptom_map
from scalebrain.stats.mixed import mixed_model
from scalebrain.stats.multiverse import multiverse
from scalebrain.stats.normative import normative
from scalebrain.stats.sem import sem


@pytest.mark.parametrize("count", [-1, 1, 2.5, "many", True, np.nan])
def test_check_count__refuses_what_is_no_count(cohort, count):
    got = f"got {count!r}"
    with pytest.raises(
        StatisticsError, match=f"n_boot must be 0 or a whole number from 2 on, {got}"
    ):
        sem(cohort, n_boot=count)
    with pytest.raises(StatisticsError, match=f"n_boot must be 2 or more, a whole number, {got}"):
        multiverse(cohort, n_boot=count)
    with pytest.raises(StatisticsError, match=f"n_bootstrap must be 20 or more, .*{got}"):
        normative(cohort, n_bootstrap=count)
    with pytest.raises(StatisticsError, match=f"n_permutations must be 0 or a whole .*{got}"):
        mixed_model(cohort, "brain_pad_corrected ~ age", n_permutations=count)


@pytest.mark.parametrize("count", [-1, 2.5, "many"])
def test_check_count__permutations_of_a_lesion_map(cohort, count):
    ds = cohort.assign(lesion_mask=(("subject", "voxel"), np.zeros((90, 11), dtype=bool)))
    with pytest.raises(StatisticsError, match="n_permutations must be 0 or more, a whole number"):
        lesion_symptom_map(ds, "motor_score ~ age", n_permutations=count)


def test_check_count__takes_whole_numbers_of_any_kind():
    assert [check_count("n", value) for value in (20, 20.0, np.int64(20))] == [20, 20, 20]
    assert check_count("n", 0, zero=True) == 0
