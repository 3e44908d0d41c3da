"""The lesion map names the side of its peak, where there is one."""

import numpy as np
import pytest

from scalebrain.report.cohort import people
from scalebrain.report.lesionmap import _where, lesion_section
from tests.report.conftest import Study


@pytest.mark.parametrize(
    ("left", "middle", "right", "where"),
    [
        (3, 0, 3, "in both hemispheres alike"),
        (3, 3, 3, "in both hemispheres alike"),
        (3, 0, 2, "in the left hemisphere"),
        (0, 3, 3, "in the right hemisphere"),
        (1, 3, 2, "on the midline"),
    ],
)
def test_where__names_no_side_of_a_tie(left: int, middle: int, right: int, where: str):
    counts = np.array([left, 0, middle, right, 0], dtype=np.float64)
    assert _where(counts, np.array([-30.0, -20.0, 0.0, 20.0, 30.0])) == where


def test_lesion_section__names_no_side_of_a_tie(study: Study):
    x, n = study.ds["x"].values, study.ds["lesion_frequency"].attrs["n"]
    counts = np.zeros(len(x))
    counts[np.flatnonzero(x > 20)[:30]] = counts[np.flatnonzero(x < -20)[:30]] = 3
    ds = study.ds.assign(lesion_frequency=("voxel", counts / n, {"n": n}))
    section = lesion_section(ds, people(ds), np.full(ds.sizes["voxel"], 0.5))
    told = "Lesions overlap most in both hemispheres alike, where 3 of 16 people (19%)"
    assert section.takeaway.startswith(told)
