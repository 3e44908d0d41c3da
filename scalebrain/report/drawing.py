"""matplotlib figures as inline SVG that follows the colors and font of the page.

Figures are drawn in placeholder colors, which become CSS variables in the SVG, so one
drawing serves the light page, the dark page and paper. No pyplot, no global figure; text
is never read as a formula; the same input gives the same bytes.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "CONTRA",
    "INK",
    "IPSI",
    "LINE",
    "MUTED",
    "PAPER",
    "SOFT",
    "TRUTH",
    "canvas",
    "color_bar",
    "dots",
    "drawing",
    "panel",
    "render",
    "side_color",
]

INK = "#0a0b01"
MUTED = "#0a0b02"
LINE = "#0a0b03"
PAPER = "#0a0b04"
IPSI = "#0a0b05"
CONTRA = "#0a0b06"
ACCENT = "#0a0b07"
TRUTH = "#0a0b08"
SOFT = "#0a0b09"

_MOST_DOTS = 2000

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    IPSI: "var(--ipsi)",
    CONTRA: "var(--contra)",
    ACCENT: "var(--accent)",
    TRUTH: "var(--truth)",
    SOFT: "var(--soft)",
}

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "image.composite_image": False,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "scalebrain",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 9.0,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0.0,
}

_TAG = re.compile(r"<[^>]*>")
_COLOR = re.compile("|".join(_VARIABLES), re.IGNORECASE)
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_FONT = re.compile(r"'?DejaVu Sans'?(?:, *[\w' -]+)*")
_VIEWBOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


@contextmanager
def drawing() -> Iterator[None]:
    """Set the style of the report, whatever the user's matplotlibrc says.

    Text in scripts that the metrics font lacks is drawn by the browser's own fonts, so the
    warning about missing glyphs says nothing here.
    """
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", _STYLE]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def canvas(width: float, height: float) -> "Figure":
    """Make an empty figure that belongs to no window, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add axes at a place in inches from the top left corner; the figure is laid out by hand."""
    figure.set_layout_engine("none")
    full_width, full_height = figure.get_size_inches()
    axes = figure.add_axes(
        (
            left / full_width,
            1 - (top + height) / full_height,
            width / full_width,
            height / full_height,
        )
    )
    axes.set_axis_off()
    return axes


def color_bar(
    axes: "Axes", colors: npt.NDArray[np.float64], limits: tuple[float, float], label: str
) -> "Colorbar":
    """Fill axes with a color bar, along their longer side."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    box = axes.get_window_extent()
    axes.set_axis_on()
    bar = Colorbar(
        axes,
        ScalarMappable(Normalize(*limits), ListedColormap(colors)),
        orientation="horizontal" if box.width > box.height else "vertical",
    )
    bar.set_ticks(MaxNLocator(nbins=6))
    bar.set_label(label)
    bar.outline.set_visible(False)
    return bar


def dots(n: int) -> npt.NDArray[np.intp]:
    """Which of `n` dots are drawn: a page does not grow with the cohort.

    Parameters
    ----------
    n
        Number of dots.

    Returns
    -------
    ndarray of int
        Positions; all of them up to 2,000, else 2,000 at equal distances.
    """
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_DOTS)).round().astype(np.intp))


def render(figure: "Figure", key: str, alt: str) -> Markup:
    """Turn a figure into SVG for a page.

    Parameters
    ----------
    figure
        Figure drawn inside :func:`drawing`.
    key
        Prefix of every id in the drawing, unique on the page.
    alt
        Alternative text.

    Returns
    -------
    Markup
        An ``<svg>`` element; text in it is escaped.
    """
    buffer = StringIO()
    figure.savefig(
        buffer,
        format="svg",
        dpi=144,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    source = buffer.getvalue()
    box = _VIEWBOX.search(source)
    width, height = (float(v) for v in box.groups()) if box else (0.0, 0.0)
    body = source[source.index(">", source.index("<svg")) + 1 : source.rindex("</svg>")]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = _TAG.sub(lambda tag: _own(tag.group(), key), body)
    return Markup(  # nosec B704 # noqa: S704 - matplotlib escapes text, the rest is ours
        f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} '
        f'{height:g}" style="width:{width * 4 / 3:.0f}px">{body}</svg>'
    )


def _own(tag: str, key: str) -> str:
    """Make one tag the page's own: prefixed ids, CSS colors and font."""
    if "base64," in tag:  # smoothed by the browser; matplotlib asks for hard pixels
        # nothing refers to it, and two pictures that are alike would have one id
        return re.sub(r' (?:style="image-rendering:[^"]*"|id="[^"]*")', "", tag)
    tag = _ID.sub(rf"\g<1>{key}-", tag)
    tag = _COLOR.sub(lambda found: _VARIABLES[found.group().lower()], tag)
    return _FONT.sub("var(--sans)", tag)


def side_color(side: str) -> str:
    """Color of a hemisphere: left and ipsilesional share one, right and contralesional one."""
    return CONTRA if side in ("R", "contralesional") else IPSI
