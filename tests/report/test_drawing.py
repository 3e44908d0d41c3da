"""Colors that stand for something are told apart without the cones for green."""

from itertools import combinations

import numpy as np
import pytest

from scalebrain.report import drawing
from scalebrain.report.templating import source

#: Deuteranopia, for linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.0,
#: doi:10.1109/TVCG.2009.113
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
#: Linear sRGB to XYZ, and the white of D65.
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = TO_XYZ @ np.ones(3)


def linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def palette(*, dark: bool) -> dict[str, str]:
    """Colors of the page by the variables that figures are drawn in."""
    import re

    light, _, rest = source("page.css").partition("@media (prefers-color-scheme: dark)")
    block = rest[: rest.index("\n}")] if dark else light[: light.index("}")]
    return dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6})", block))


def difference(one: str, other: str, view: np.ndarray) -> float:
    """CIE76 difference of two colors as someone sees them."""
    return float(np.linalg.norm(lab(view @ linear(one)) - lab(view @ linear(other))))


def test_difference__is_that_of_known_colors():
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert difference("#000000", "#ffffff", np.eye(3)) == pytest.approx(100, abs=1e-6)
    assert (
        difference("#dd0000", "#707000", DEUTERANOPIA)
        < 25
        < difference("#dd0000", "#707000", np.eye(3))
    )


@pytest.mark.parametrize("dark", [False, True])
def test_colors__of_sides_and_verdicts_differ_in_deuteranopia(dark):
    colors = palette(dark=dark)
    variables = {n: v[4:-1] for n, v in drawing._VARIABLES.items()}
    used = [
        colors[variables[n]] for n in (drawing.IPSI, drawing.CONTRA, drawing.ACCENT, drawing.TRUTH)
    ]
    muted, truth = colors[variables[drawing.MUTED]], used[-1]
    for view in (DEUTERANOPIA, np.eye(3)):
        assert difference(truth, muted, view) > 20
    for one, other in combinations(used, 2):
        assert difference(one, other, DEUTERANOPIA) > 10, (one, other)


def test_dots__are_all_of_few_and_some_of_many():
    assert drawing.dots(0).size == 0
    assert list(drawing.dots(3)) == [0, 1, 2]
    some = drawing.dots(17_791)
    assert len(some) == 2000
    assert some[[0, -1]].tolist() == [0, 17_790]
    assert np.diff(some).max() <= 9
