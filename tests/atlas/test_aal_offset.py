"""Where AAL lies, the one thing that its header does not say right, and the figures in the docs."""

import itertools

import numpy as np
import pytest

from scalebrain.atlas import parcels
from scalebrain.atlas.providers import aal, aal3
from tests.atlas import measure


@pytest.fixture(scope="module")
def overlap():
    return measure.dice()


def test_aal_offset__is_the_one_that_is_measured():
    assert measure.CHOSEN == (0, -2, -2)
    origin = parcels._aal()[1].matrix[:3, 3]
    np.testing.assert_array_equal(origin, np.add(measure.HEADER, measure.CHOSEN))
    assert len(measure.shared_cortex()) == 62


@pytest.mark.slow
def test_aal_offset__y_and_z_fit_aal3_best(overlap):
    for x, kind in itertools.product(measure.SHIFTS, (0, 1)):
        plane = {shift[1:]: found[kind] for shift, found in overlap.items() if shift[0] == x}
        assert max(plane, key=plane.get) == measure.CHOSEN[1:]
    assert min(overlap[measure.CHOSEN]) > 0.90
    assert max(overlap[0, 0, 0]) < 0.79


@pytest.mark.slow
def test_aal_offset__x_follows_the_midline_not_aal3(overlap):
    # AAL3 itself lies to the right: fitted to it alone, AAL would follow
    by_overlap = max(overlap, key=lambda shift: overlap[shift][1])
    assert by_overlap == (1, -2, -2)
    assert measure.midline(aal3()) == 1.5
    assert measure.midline(aal(), by_overlap[0] - measure.CHOSEN[0]) == 1.5
    distance = {x: abs(measure.midline(aal(), x - measure.CHOSEN[0])) for x in measure.SHIFTS}
    assert distance[measure.CHOSEN[0]] == min(distance.values()) == 0.5
    # half a voxel to either side; the header decides
    assert sorted(x for x, value in distance.items() if value == 0.5) == [-1, 0]


@pytest.mark.slow
def test_docs__have_the_figures_that_are_measured(repository):
    text = (repository / "docs" / "atlases.md").read_text()
    for line in (*measure.offset_table(), *measure.side_table()):
        assert line in text.splitlines(), f"python -m tests.atlas.measure prints: {line}"
