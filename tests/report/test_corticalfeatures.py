"""Who counts in the maps of mean features of the cortex."""

import numpy as np

from scalebrain.graph.model import features_of
from scalebrain.report.corticalfeatures import cortical_features
from tests.graph.test_surface_model import surface_cohort


def test_cortical_features__count_people_who_have_a_value():
    ds = features_of(surface_cohort(6, 1), "surface-3").compute()
    ds = ds.assign_coords(person=("subject", ["a", "a", "a", "b", "b", "c", "d"]))
    ds["node_features"].values[5] = np.nan
    figures = cortical_features(ds, (ds["group"] == "reference").values)
    assert len(figures) == 2
    for figure in figures:
        assert "of 2 reference people in every node" in figure.caption
