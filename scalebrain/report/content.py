"""What a report is made of: results that go in, and sections, tables and figures that come out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from markupsafe import Markup

from scalebrain.atlas.regions import NETWORKS, RegionSet

if TYPE_CHECKING:
    from scalebrain.report.niivue import Viewer

__all__ = [
    "MINUS",
    "Block",
    "Cell",
    "Column",
    "Figure",
    "Flow",
    "Note",
    "Section",
    "StudyResults",
    "Table",
    "and_list",
    "confidence",
    "count",
    "few_groups",
    "finite",
    "group_words",
    "included_references",
    "interval",
    "level",
    "long_region",
    "number",
    "p_value",
    "p_words",
    "part",
    "percent",
    "plural",
    "random_effects",
    "shorten",
    "span",
    "split_region",
    "text",
    "text_values",
]

MINUS = "−"
_MISSING = "–"
#: Groups below which a bootstrap of whole groups is said to be coarse.
_ENOUGH_GROUPS = 10

_SIDES = {
    "L": "left",
    "R": "right",
    "ipsilesional": "ipsilesional",
    "contralesional": "contralesional",
}


@dataclass(frozen=True)
class StudyResults:
    """Everything a report shows that is not in the cohort Dataset; each part may be missing.

    Parameters
    ----------
    accuracy
        By region: ``mae``, ``mae_mean`` (predict-the-mean), ``r``, ``n``, and optionally
        ``deviation_r``, ``oracle_mae``, ``oracle_r``.
    attribution
        Which nodes the ages come from: ``node_importance (row)``, ``row_region``, ``row_node``.
    artifact
        What lesions in healthy scans do to brain age, by ``policy`` and ``reach``.
    site_shift
        By how many years the brain ages of each site are off, by ``cohort``.
    mixed
        Mixed model of regional brain-PAD on lesion volume: ``estimate, se, df, ci_low,
        ci_high, p, q (region, term)`` and ``n (region)``; regions are ipsilesional and
        contralesional.
    mixed_load
        The same on the lesion load of the region itself.
    sem
        Structural equation model by ``path``, its fit indices as scalars, its rivals by
        ``model`` and ``rival_path``.
    multiverse
        Every effect under every specification, with a verdict each; without it and a reason in
        `missing` the page has no such section.
    motor
        Motor prediction: metrics by learner and feature group, ranked predictors.
    recovery
        One row an effect: ``effect, planted, estimate, ci_low, ci_high, inside``.
    rejected, warnings
        What the ingest left out, and what it found odd: ``subject, code, rule``, one row each.
    provenance
        Anything to print: versions, seeds, configuration, wall times. Nested mappings
        become tables of their own.
    missing
        Name of a field above, and the reason why it was not computed.
    regions
        Region set that the maps are painted with; the default set when None.
    """

    accuracy: xr.Dataset | None = None
    attribution: xr.Dataset | None = None
    artifact: xr.Dataset | None = None
    site_shift: xr.Dataset | None = None
    mixed: xr.Dataset | None = None
    mixed_load: xr.Dataset | None = None
    sem: xr.Dataset | None = None
    multiverse: xr.Dataset | None = None
    motor: xr.Dataset | None = None
    recovery: pd.DataFrame | None = None
    rejected: pd.DataFrame | None = None
    warnings: pd.DataFrame | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    regions: RegionSet | None = None

    def why_missing(self, name: str) -> str:
        """Say why a part is not there."""
        reason = self.missing.get(name, "")
        return reason or f"This run passed no '{name}' result to the report."


@dataclass(frozen=True)
class Column:
    """Head of a table column; numbers are set flush right."""

    label: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """Text of a table cell, the value it sorts by, and its weight on the page."""

    text: str
    sort: str = ""
    css: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table; a long one is folded until it is opened or printed."""

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """A drawing with its alternative text and caption."""

    key: str
    svg: Markup
    caption: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Note:
    """A paragraph; ``tone`` is plain, caution or missing."""

    text: str
    tone: str = "plain"
    kind: str = field(default="note", init=False)


@dataclass(frozen=True)
class Flow:
    """One lane of the cohort flow chart: who came in, who was excluded and who stayed."""

    group: str
    total: int
    excluded: Sequence[tuple[str, int]]
    included: int
    use: str


@dataclass(frozen=True)
class Flows:
    """The flow chart: the lanes, side by side; it counts people, or scans."""

    total: int
    cohorts: int
    lanes: Sequence[Flow]
    counted: str = "people"
    kind: str = field(default="flow", init=False)


Block = Union[Table, Figure, Note, Flows, "Viewer"]


@dataclass(frozen=True)
class Section:
    """A section of the page: one plain sentence of what was found, then the evidence."""

    key: str
    title: str
    takeaway: str
    blocks: Sequence[Block] = ()


# -- numbers as text ----------------------------------------------------------------------


def finite(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def number(value: Any, digits: int = 2) -> str:
    """Write a number with a true minus sign; a missing one is a dash."""
    if not finite(value):
        return _MISSING
    shown = f"{float(value):,.{digits}f}"
    if float(shown.replace(",", "")) == 0.0:
        shown = shown.lstrip("-")
    return shown.replace("-", MINUS)


def count(value: Any) -> str:
    """Write a whole number."""
    return number(value, 0)


def percent(value: Any, digits: int = 0) -> str:
    """Write a fraction as a percentage."""
    return f"{number(100 * float(value), digits)}%" if finite(value) else _MISSING


def part(value: Any) -> str:
    """Write a part of a whole as a percentage; some of it is not 0%, and not all is not 100%."""
    shown = percent(value)
    if shown == "0%" and float(value) > 0:
        return "<1%"
    return ">99%" if shown == "100%" and float(value) < 1 else shown


def level(value: Any) -> str:
    """Write what an interval promises as a percentage, ``97.5%``: it is never rounded up."""
    return f"{100 * float(value):g}%" if finite(value) else _MISSING


def p_value(value: Any) -> str:
    """Write a p or q value: three decimals, never zero, and never 0.05 for what is below it."""
    if not finite(value):
        return _MISSING
    p = float(value)
    if p < 0.001:
        return "<0.001"
    return "<0.05" if p < 0.05 <= round(p, 3) else f"{p:.3f}"


def p_words(value: Any) -> str:
    """Write a p value in a sentence: ``p = 0.030``, ``p < 0.001``."""
    shown = p_value(value)
    return f"p < {shown[1:]}" if shown.startswith("<") else f"p = {shown}"


def interval(low: Any, high: Any, digits: int = 2) -> str:
    """Write a confidence interval, ``0.12 to 0.34``."""
    if not (finite(low) and finite(high)):
        return _MISSING
    return f"{number(low, digits)} to {number(high, digits)}"


def span(values: npt.ArrayLike, digits: int = 1) -> str:
    """Write the range of the finite values; one number where they agree as written."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if not array.size:
        return _MISSING
    low, high = number(array.min(), digits), number(array.max(), digits)
    return low if low == high else f"{low} to {high}"


def plural(n: int, one: str, many: str = "") -> str:
    """Write a count with its noun, ``1 region``, ``3 regions``."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def and_list(words: Sequence[str], limit: int = 6) -> str:
    """Join words as a sentence does; beyond the limit the rest is counted."""
    shown = list(words[:limit])
    if len(words) > limit:
        shown.append(f"{len(words) - limit} more")
    if len(shown) < 2:
        return "".join(shown)
    return ", ".join(shown[:-1]) + " and " + shown[-1]


def shorten(words: str, length: int) -> str:
    """Cut text that is too long for a drawing; tables show it in full."""
    return words if len(words) <= length else words[: length - 1] + "…"


def confidence(data: xr.Dataset) -> str:
    """Write the level of the intervals of a result, 95% where it does not say."""
    return level(data.attrs.get("confidence", 0.95))


def group_words(data: xr.Dataset) -> tuple[str, str]:
    """Name the groups of a result, one and many: what was held out, or drawn, as a whole."""
    groups = str(data.attrs.get("groups", "cohort"))
    if groups in ("subject", "None"):
        return "person", "people"
    if groups == "cohort":
        return "cohort", "cohorts"
    words = groups.replace("_", " ")
    return f"group by {words}", f"groups by {words}"


def random_effects(mixed: xr.Dataset) -> str:
    """Random effects of a mixed model, and what has one each, as its result tells them."""
    effects = str(mixed.attrs.get("method") or "random intercept").rsplit(", ", 2)[0]
    return f"{effects} for each {_group_word(mixed)}"


def _group_word(data: xr.Dataset) -> str:
    groups = str(data.attrs.get("groups", "cohort"))
    return "person" if groups in ("subject", "None") else groups.replace("_", " ")


def few_groups(data: xr.Dataset) -> list[Block]:
    """Say that the intervals of a bootstrap that drew few groups are coarse."""
    n = int(data.attrs.get("n_groups", _ENOUGH_GROUPS))
    if n >= _ENOUGH_GROUPS:
        return []
    told = (
        f"The bootstrap draws whole groups ({_group_word(data)}), of which there are "
        f"{n}. With fewer than {_ENOUGH_GROUPS} its intervals are coarse, and may be too "
        "narrow or too wide."
    )
    return [Note(told, "caution")]


# -- cells --------------------------------------------------------------------------------


def text(value: Any, css: str = "") -> Cell:
    """Make a text cell."""
    return Cell(str(value), str(value), css)


def cell(shown: str, value: Any, css: str = "") -> Cell:
    """Make a cell that shows one thing and sorts by a number."""
    return Cell(shown, repr(float(value)) if finite(value) else "", css)


# -- data ---------------------------------------------------------------------------------


def text_values(array: xr.DataArray) -> npt.NDArray[np.object_]:
    """Read a text variable of any text dtype as an object array; missing is ``""``."""
    values = np.asarray(array.values)
    read = ["" if v is None or v != v else str(v) for v in values.ravel().tolist()]
    return np.array(read, dtype=object).reshape(values.shape)


def included_references(ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Tell who is in the group of references and was not excluded (subject,)."""
    keep = np.ones(ds.sizes["subject"], dtype=np.bool_)
    if "included" in ds.variables:
        keep &= np.asarray(ds["included"].values, dtype=np.bool_)
    if "group" in ds.variables:
        keep &= np.array([str(v) == "reference" for v in ds["group"].values.tolist()])
    return keep


def split_region(region: str) -> tuple[str, str]:
    """Split ``SMN_L`` or ``SMN_ipsilesional`` into network and side."""
    network, _, side = region.rpartition("_")
    return (network, side) if network and side in _SIDES else (region, "")


def long_region(region: str) -> str:
    """Write a region out, ``left sensorimotor``."""
    network, side = split_region(region)
    name = NETWORKS.get(network, network.replace("_", " "))
    return f"{_SIDES[side]} {name}" if side else name
