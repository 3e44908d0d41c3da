"""Shares of specifications are of those that were fitted."""

import numpy as np
import xarray as xr

from scalebrain.report.content import StudyResults, Table
from scalebrain.report.multiverse import _window, multiverse_sections


def test_multiverse_sections__say_how_many_were_fitted():
    estimate = np.array([[0.3, 0.3, 0.3], [0.5, np.nan, np.nan]])
    dims = ("effect", "specification")
    every = {
        name: ("effect", [0.3, 0.5])
        for name in ("median_estimate", "lowest_estimate", "highest_estimate")
    }
    data = xr.Dataset(
        {
            "estimate": (dims, estimate),
            "ci_low": (dims, estimate - 0.1),
            "ci_high": (dims, estimate + 0.1),
            "same_sign": ("effect", [1.0, 1.0]),
            "excludes_zero": ("effect", [1.0, 1.0]),
            "n_fitted": ("effect", [3, 1]),
            "verdict": ("effect", ["robust", "robust"]),
        }
        | every,
        coords={
            "effect": ["cst -> motor", "cst -> ipsi"],
            "policy": ("specification", ["as_is", "mask_nodes", "exclude_region"]),
        },
        attrs={"axes": {"policy": ["as_is", "mask_nodes", "exclude_region"]}},
    )
    (section,) = multiverse_sections(StudyResults(multiverse=data))
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert table.columns[3].label == "fitted, n of 3"
    assert [row[3].text for row in table.rows] == ["3 of 3", "1 of 3"]
    assert "Shares are of those fitted." in table.caption
    assert "each under at most 3 specifications" in section.takeaway


def test_window__shows_estimates_and_all_intervals_that_are_not_wild():
    estimate = np.array([-0.4, -0.3, 0.1, 0.2])
    low, high = estimate - 0.3, estimate + 0.4
    assert _window(estimate, low, high) == (low.min(), high.max())
    high[1], low[2] = 14.0, -9.0
    assert _window(estimate, low, high) == (-0.7, high[3])
    assert _window(estimate, low * np.nan, high) == (-np.inf, np.inf)
