"""Effects of lesions on regional brain-PAD: painted on the brain, and as a forest plot."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import NETWORKS, RegionSet, default_regions
from scalebrain.errors import GeometryError, ImageError, MissingVariableError
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Column,
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    and_list,
    cell,
    count,
    interval,
    long_region,
    number,
    p_value,
    plural,
    span,
    split_region,
    text,
)
from scalebrain.report.surface import Hemisphere, surface_figure, vertex_parcels
from scalebrain.report.volume import Volume, overlay_slice, scaled, to_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

__all__ = ["Effects", "effect_map_section", "focal_term", "forest_section", "read_effects"]

FloatArray = npt.NDArray[np.float64]

_NAMES = {"mixed": "lesion volume", "mixed_load": "the region's own lesion load"}
_SIDES = ("ipsilesional", "contralesional")
_SHORT = {"ipsilesional": "ipsi", "contralesional": "contra"}


@dataclass(frozen=True)
class Effects:
    """One term of a mixed model over regions."""

    key: str
    cause: str
    unit: str
    term: str
    formula: str
    regions: tuple[str, ...]
    estimate: FloatArray
    low: FloatArray
    high: FloatArray
    p: FloatArray
    q: FloatArray
    n: FloatArray

    def at(self, network: str, side: str) -> int | None:
        """Position of a network's region on a side."""
        name = f"{network}_{side}"
        return self.regions.index(name) if name in self.regions else None

    @property
    def networks(self) -> list[str]:
        """Networks in the order of the regions."""
        return list(dict.fromkeys(split_region(region)[0] for region in self.regions))


def focal_term(mixed: xr.Dataset) -> str:
    """Name the term of interest of a mixed model.

    Parameters
    ----------
    mixed
        Result of a mixed model. ``attrs["focal_term"]`` decides where it is there.

    Returns
    -------
    str
        The named term, else the first that speaks of a lesion, else the first that is not
        the intercept.
    """
    terms = [str(term) for term in np.atleast_1d(mixed["term"].values)]
    named = str(mixed.attrs.get("focal_term", ""))
    if named in terms:
        return named
    slopes = [term for term in terms if term.lower() not in ("intercept", "1", "const")]
    return next((term for term in slopes if "lesion" in term.lower()), (slopes or terms)[0])


def read_effects(key: str, mixed: xr.Dataset) -> Effects:
    """Read the term of interest of a mixed model."""
    term = focal_term(mixed)
    part = mixed.sel(term=term)
    regions = tuple(str(region) for region in np.atleast_1d(part["region"].values))

    def values(name: str) -> FloatArray:
        if name not in part.variables:
            return np.full(len(regions), math.nan)
        return np.atleast_1d(np.asarray(part[name].values, dtype=np.float64))

    return Effects(
        key,
        _NAMES.get(key, term),
        str(mixed.attrs.get("focal_unit", "")) or _unit(term),
        term,
        str(mixed.attrs.get("formula", "")),
        regions,
        *(values(name) for name in ("estimate", "ci_low", "ci_high", "p", "q", "n")),
    )


def _unit(term: str) -> str:
    """Say what an estimate is per, from the term of the formula."""
    scaled_by = re.fullmatch(r"(?:scale|z|standardize|center)\((.*)\)", term.strip())
    inner = scaled_by.group(1) if scaled_by else term
    logged = re.fullmatch(r"(?:np\.)?log(?:10)?\((.*)\)", inner.strip())
    words = (logged.group(1) if logged else inner).replace("_", " ").strip()
    words = f"log {words}" if logged else words
    if scaled_by and not term.startswith("center"):
        return f"per standard deviation of {words}"
    return f"per unit of {words}"


def _models(results: StudyResults) -> list[Effects]:
    pairs = (("mixed", results.mixed), ("mixed_load", results.mixed_load))
    return [read_effects(key, mixed) for key, mixed in pairs if mixed is not None]


def _finding(effects: Effects) -> str:
    """Say what an effect is, from its numbers alone."""
    signs = []
    for direction, word in ((1, "older"), (-1, "younger")):
        for side in _SIDES:
            hits = [
                i
                for i, region in enumerate(effects.regions)
                if split_region(region)[1] == side
                and effects.q[i] < 0.05
                and direction * effects.estimate[i] > 0
            ]
            if hits:
                names = and_list([split_region(effects.regions[i])[0] for i in hits], 9)
                size = span(np.abs(effects.estimate[hits]), 2)
                signs.append(f"{word} {side} regions ({names}; {size} years)")
    tested = int(np.isfinite(effects.q).sum())
    if not signs:
        low = int((effects.p < 0.05).sum())
        return (
            f"No association of {effects.cause} with brain-PAD passes the 5% false discovery "
            f"rate over {plural(tested, 'region')}; {low} {'has' if low == 1 else 'have'} a raw p "
            "below 0.05."
        )
    subject = "Larger lesions go" if effects.key == "mixed" else "More damage in a region goes"
    return f"{subject} with {and_list(signs)} at a 5% false discovery rate."


# -- maps ---------------------------------------------------------------------------------


def effect_map_section(
    ds: xr.Dataset, results: StudyResults, background: npt.NDArray[np.float64]
) -> Section:
    """Paint the effects on the brain, the lesioned side drawn on the left."""
    title = "Effects on the brain"
    models = _models(results)
    if not models:
        return Section(
            "map",
            title,
            "No effect was estimated.",
            [Note(results.why_missing("mixed"), "missing")],
        )
    regions = results.regions or default_regions()
    parcels: Mapping[Hemisphere, npt.NDArray[np.int64]] | str
    try:
        parcels = {"left": vertex_parcels(ds, "left"), "right": vertex_parcels(ds, "right")}
    except (GeometryError, ImageError, MissingVariableError) as error:
        parcels = str(error)
    blocks: list[Block] = []
    for effects in models:
        if len(models) > 1:
            blocks.append(Note(f"Effect of {effects.cause}", "heading"))
        blocks += _surface_blocks(parcels, effects, regions)
        try:
            blocks.append(_panels(ds, effects, regions, background))
        except (GeometryError, MissingVariableError) as error:
            blocks.append(Note(f"No slices for {effects.cause}: {error}", "missing"))
    if results.mixed_load is None:
        blocks.append(Note(results.why_missing("mixed_load"), "missing"))
    return Section("map", title, _strongest(models[0]), blocks)


def _strongest(effects: Effects) -> str:
    known = np.isfinite(effects.estimate)
    if not known.any():
        return "No region has an estimate."
    parts = []
    for side in _SIDES:
        at = [i for i, r in enumerate(effects.regions) if known[i] and split_region(r)[1] == side]
        if at:
            values = effects.estimate[at]
            parts.append(
                f"{number(values.mean())} years on average in {side} regions ({span(values, 2)})"
            )
    return f"{effects.unit.capitalize()}, brain-PAD differs by {and_list(parts)}."


def _limit(effects: Effects) -> float:
    known = np.abs(effects.estimate[np.isfinite(effects.estimate)])
    return float(known.max()) if known.size and known.max() > 0 else 1.0


def _diverging() -> FloatArray:
    """Blue to red through light gray, distinguishable in every common color vision."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#08519c", "#4292c6", "#a6cee3", "#f2efe9", "#fdbb84", "#e6550d", "#8f2d04"]
    table: FloatArray = LinearSegmentedColormap.from_list("effect", stops)(np.linspace(0, 1, 255))
    return table[:, :3]


def _surface_blocks(
    parcels: Mapping[Hemisphere, npt.NDArray[np.int64]] | str,
    effects: Effects,
    regions: RegionSet,
) -> list[Block]:
    if isinstance(parcels, str):
        return [Note(f"No surface view of {effects.cause}: {parcels}", "missing")]
    parcel_values, shared = _parcel_values(effects, regions)
    svg = surface_figure(
        parcels,
        parcel_values,
        key=f"surface-{effects.key}",
        limit=_limit(effects),
        colors=_diverging(),
        label=f"years {effects.unit}".strip(),
        alt=(
            "Four views of the cortex, lesioned hemisphere on the left, colored by the "
            f"estimated effect of {effects.cause}. {_strongest(effects)}"
        ),
    )
    caption = (
        f"Estimated effect of {effects.cause} on corrected brain-PAD, whether or not it passes a "
        "threshold. The lesioned hemisphere of every person is drawn as the left one "
        "(ipsilesional), the other as the right one (contralesional); lateral and medial views. "
        "Gray cortex belongs to no region."
    )
    if shared:
        caption += (
            f" {plural(len(shared), 'parcel belongs', 'parcels belong')} to more than one region "
            f"and {'shows' if len(shared) == 1 else 'show'} their mean; the slices below show "
            "every network by itself."
        )
    return [Figure(f"surface-{effects.key}", svg, caption)]


def _parcel_values(
    effects: Effects, regions: RegionSet
) -> tuple[dict[int, float], dict[int, list[str]]]:
    """Value of every parcel, the mean over its regions, and the parcels of several regions."""
    members: dict[int, list[int]] = {}
    for i, region in enumerate(effects.regions):
        for code in regions.parcels.get(_native(region), ()):
            if np.isfinite(effects.estimate[i]):
                members.setdefault(int(code), []).append(i)
    values = {code: float(effects.estimate[at].mean()) for code, at in members.items()}
    shared = {code: [effects.regions[i] for i in at] for code, at in members.items() if len(at) > 1}
    return values, shared


def _native(region: str) -> str:
    """Region that an ipsi- or contralesional one is drawn on: ipsilesional is left."""
    network, side = split_region(region)
    return f"{network}_{'R' if side in ('contralesional', 'R') else 'L'}"


def _panels(
    ds: xr.Dataset, effects: Effects, regions: RegionSet, background: npt.NDArray[np.float64]
) -> Figure:
    if "parcel" not in ds.variables:
        raise MissingVariableError(
            "Dataset: variable 'parcel' is missing. Open a finished store with open_store."
        )
    parcel = np.asarray(ds["parcel"].values)
    gray = to_volume(ds, scaled(background))
    limit, colors = _limit(effects), _diverging()
    enlarge = 2 if (gray.axes[0][1] - gray.axes[0][0]) > 1.5 else 1
    networks = effects.networks
    n_columns = 5
    n_rows = math.ceil(len(networks) / n_columns)
    x, y = (float(axis[-1] - axis[0]) for axis in gray.axes[:2])
    width = 1.75
    height = width * y / x
    pitch = height + 1.0
    alts = []
    with drawing.drawing():
        figure = drawing.canvas(9.6, pitch * n_rows + 0.62)
        for k, network in enumerate(networks):
            row, column = divmod(k, n_columns)
            axes = drawing.panel(
                figure, 0.05 + column * (width + 0.17), row * pitch + 0.45, width, height
            )
            volume = to_volume(ds, _painted(effects, regions, network, parcel))
            at = _best_slice(volume)
            base = gray.plane(2, at)
            picture = overlay_slice(
                base, volume.plane(2, at), colors=colors, limits=(-limit, limit), enlarge=enlarge
            )
            axes.imshow(picture, extent=base.extent, origin="lower", interpolation="none")
            axes.set_title(f"{network}, z = {number(base.at, 0)} mm", fontsize=9.5, pad=15)
            axes.text(
                0.5,
                1.03,
                NETWORKS.get(network, ""),
                transform=axes.transAxes,
                ha="center",
                fontsize=8.5,
                color=drawing.MUTED,
            )
            alts += _write_sides(axes, effects, network)
        bar_axes = drawing.panel(figure, 2.8, pitch * n_rows + 0.08, 4.0, 0.11)
        drawing.color_bar(
            bar_axes, colors, (-limit, limit), f"years of brain-PAD {effects.unit}".strip()
        )
        svg = drawing.render(
            figure,
            f"panels-{effects.key}",
            f"Axial slices, one for each network, colored by the effect of {effects.cause}; "
            "lesioned side on the left. " + "; ".join(alts),
        )
    return Figure(
        f"panels-{effects.key}",
        svg,
        "Every network by itself, on the axial slice where it is largest; regions overlap, so one "
        "picture could not show them all. Left: ipsilesional. Right: contralesional. "
        "Numbers: years; * and bold: q below 0.05.",
    )


def _painted(
    effects: Effects, regions: RegionSet, network: str, parcel: npt.NDArray[np.int_]
) -> FloatArray:
    """Estimate of a network's two regions in their voxels, NaN elsewhere."""
    out = np.full(parcel.shape, math.nan)
    for side in _SIDES:
        i = effects.at(network, side)
        if i is not None:
            codes = regions.parcels.get(_native(effects.regions[i]), ())
            out[np.isin(parcel, codes)] = effects.estimate[i]
    return out


def _best_slice(volume: Volume) -> float:
    """Height at which the smaller of both sides is largest."""
    area = np.isfinite(volume.data)
    middle = len(volume.axes[0]) // 2
    smaller = np.minimum(area[:middle].sum(axis=(0, 1)), area[middle:].sum(axis=(0, 1)))
    return float(volume.axes[2][int(np.argmax(smaller if smaller.any() else area.sum((0, 1))))])


def _write_sides(axes: "Axes", effects: Effects, network: str) -> list[str]:
    """Write the two estimates under a slice; returns them for the alternative text."""
    said = []
    for side, where in zip(_SIDES, (0.24, 0.76), strict=True):
        i = effects.at(network, side)
        passes = i is not None and bool(effects.q[i] < 0.05)
        shown = number(effects.estimate[i]) if i is not None else "not tested"
        axes.text(
            where,
            -0.02,
            f"{_SHORT[side]}\n{shown}{' *' if passes else ''}",
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=9,
            fontweight="bold" if passes else "normal",
        )
        if i is not None:
            said.append(f"{network} {side} {shown}")
    return said


# -- forest -------------------------------------------------------------------------------


def forest_section(results: StudyResults) -> Section:
    """List every regional effect with its interval, raw p and q."""
    title = "Regional effects with their uncertainty"
    models = _models(results)
    if not models:
        return Section(
            "forest",
            title,
            "No effect was estimated.",
            [Note(results.why_missing("mixed"), "missing")],
        )
    blocks: list[Block] = []
    for effects in models:
        if len(models) > 1:
            blocks.append(Note(f"Effect of {effects.cause}", "heading"))
        if effects is not models[0]:
            blocks.append(Note(_finding(effects)))
        blocks.append(_forest_figure(effects))
        blocks.append(_forest_table(effects))
        mixed = results.mixed if effects.key == "mixed" else results.mixed_load
        if mixed is not None:
            blocks.append(_model_note(effects, mixed))
    if results.mixed_load is None:
        blocks.append(Note(results.why_missing("mixed_load"), "missing"))
    return Section("forest", title, _finding(models[0]), blocks)


def _forest_figure(effects: Effects) -> Figure:
    networks = effects.networks
    known = np.isfinite(effects.estimate)
    sides = [s for s in _SIDES if any(split_region(r)[1] == s for r in effects.regions)]
    offsets = (0.19, -0.19) if len(sides) > 1 else (0.0,)
    pitch = 0.52 if len(sides) > 1 else 0.34
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.2 + pitch * len(networks))
        axes = figure.subplots()
        for row, network in enumerate(networks[::-1]):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color=drawing.SOFT, linewidth=0, zorder=0)
            for side, offset in zip(sides, offsets, strict=True):
                i = effects.at(network, side)
                if i is None or not known[i]:
                    continue
                color, y = drawing.side_color(side), row + offset
                passes = bool(effects.q[i] < 0.05)
                axes.hlines(y, effects.low[i], effects.high[i], color=color, linewidth=2)
                axes.plot(
                    effects.estimate[i],
                    y,
                    marker="o" if side == "ipsilesional" else "s",
                    markersize=6.5,
                    markerfacecolor=color if passes else drawing.PAPER,
                    markeredgecolor=color,
                    markeredgewidth=1.6,
                )
                limits = interval(effects.low[i], effects.high[i])
                words = (f"{number(effects.estimate[i])} ({limits})", p_value(effects.q[i]))
                _beside(axes, y, words, "bold" if passes else "normal")
        _beside(axes, len(networks) - 0.3, ("years (95% CI)", "q"), "normal", drawing.MUTED)
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        labels = [f"{NETWORKS.get(n, n)} ({n})" if n in NETWORKS else n for n in networks]
        axes.set_yticks(range(len(networks)), labels[::-1])
        axes.set_ylim(-0.5, len(networks) - 0.5)
        axes.set_xlabel(f"years of brain-PAD {effects.unit}".strip() + " (right of 0: older)")
        axes.grid(axis="x")
        _forest_legend(figure, sides)
        alt = "; ".join(
            f"{long_region(r)} {number(effects.estimate[i])} "
            f"({interval(effects.low[i], effects.high[i])}), q {p_value(effects.q[i])}"
            for i, r in enumerate(effects.regions)
        )
        svg = drawing.render(
            figure,
            f"forest-{effects.key}",
            f"Forest plot of the effect of {effects.cause} on regional brain-PAD. {alt}.",
        )
    return Figure(
        f"forest-{effects.key}",
        svg,
        "Estimates with 95% confidence intervals from a mixed model for each region. Filled: q "
        "below 0.05, the Benjamini-Hochberg false discovery rate over all regions shown.",
    )


def _beside(
    axes: "Axes", y: float, words: tuple[str, str], weight: str, color: str = drawing.INK
) -> None:
    """Write an estimate and its q to the right of the plot, in two columns."""
    for offset, word in zip((10, 142), words, strict=True):
        axes.annotate(
            word,
            (1.0, y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(offset, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight=weight,
            color=color,
            annotation_clip=False,
        )


def _forest_legend(figure: "Drawn", sides: list[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            marker="o" if side == "ipsilesional" else "s",
            color=drawing.side_color(side),
            linewidth=2,
            markersize=6.5,
        )
        for side in sides
    ]
    figure.legend(marks, sides, loc="outside upper left", ncols=2)


def _forest_table(effects: Effects) -> Table:
    rows = [
        [
            text(long_region(region)),
            cell(number(effects.estimate[i]), effects.estimate[i]),
            cell(interval(effects.low[i], effects.high[i]), effects.low[i]),
            cell(p_value(effects.p[i]), effects.p[i]),
            cell(p_value(effects.q[i]), effects.q[i], "strong" if effects.q[i] < 0.05 else ""),
            cell(count(effects.n[i]), effects.n[i]),
        ]
        for i, region in enumerate(effects.regions)
    ]
    return Table(
        f"table-{effects.key}",
        f"Effect of {effects.cause} on corrected brain-PAD, "
        f"{' '.join(('years', effects.unit)).strip()}.",
        [
            Column("Region", numeric=False),
            Column("estimate"),
            Column("95% CI"),
            Column("raw p"),
            Column("q", hint="Benjamini-Hochberg over the regions of this table"),
            Column("n"),
        ],
        rows,
        folded=True,
    )


def _model_note(effects: Effects, mixed: xr.Dataset) -> Note:
    parts = [f"Model: {effects.formula}." if effects.formula else "", f"Term: {effects.term}."]
    if "groups" in mixed.attrs:
        parts.append(f"Random intercept by {mixed.attrs['groups']}.")
    if "boundary" in mixed.variables:
        n = int(np.asarray(mixed["boundary"].values).sum())
        parts.append(
            f"The variance between groups was estimated as zero in {n} of "
            f"{plural(len(effects.regions), 'region')}."
        )
    if mixed.attrs.get("rows_dropped"):
        parts.append(f"Rows not used: {mixed.attrs['rows_dropped']}.")
    return Note(" ".join(part for part in parts if part), "small")
