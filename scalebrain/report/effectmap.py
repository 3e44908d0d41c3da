"""Effects of lesions painted on the brain: cortex, and slices of every network by itself."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import NETWORKS, RegionSet, default_regions
from scalebrain.errors import GeometryError, ImageError, MissingVariableError
from scalebrain.io.fsaverage import Hemisphere
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Figure,
    Note,
    Section,
    StudyResults,
    and_list,
    number,
    plural,
    span,
    split_region,
)
from scalebrain.report.effects import SIDES, Effects, read_models
from scalebrain.report.niivue import Overlay
from scalebrain.report.surface import surface_figure, vertex_parcels
from scalebrain.report.volume import Volume, overlay_slice, scaled, to_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["effect_map_section", "effect_overlays"]

FloatArray = npt.NDArray[np.float64]

_SHORT = {"ipsilesional": "ipsi", "contralesional": "contra"}


def effect_map_section(
    ds: xr.Dataset, results: StudyResults, background: npt.NDArray[np.float64]
) -> Section:
    """Paint the effects on the brain, the lesioned side drawn on the left."""
    title = "Effects on the brain"
    models = read_models(results)
    if not models:
        return Section(
            "map",
            title,
            "No effect was estimated.",
            [Note(results.why_missing("mixed"), "missing")],
        )
    if not any(split_region(region)[1] for effects in models for region in effects.regions):
        reason = "The brain ages are of the whole brain: there is no region to paint."
        return Section("map", title, reason, [Note("The effect stands below.", "small")])
    regions = results.regions or default_regions()
    parcels: Mapping[Hemisphere, npt.NDArray[np.int64]] | str
    try:
        parcels = {"left": vertex_parcels(ds, "left"), "right": vertex_parcels(ds, "right")}
    except (GeometryError, ImageError, MissingVariableError) as error:
        parcels = str(error)
    blocks: list[Block] = []
    for effects in models:
        if len(models) > 1:
            blocks.append(Note(f"Effect of {effects.told}", "heading"))
        blocks += _surface_blocks(parcels, effects, regions)
        try:
            blocks.append(_panels(ds, effects, regions, background))
        except (GeometryError, MissingVariableError) as error:
            blocks.append(Note(f"No slices for {effects.cause}: {error}", "missing"))
    if results.mixed_load is None:
        blocks.append(Note(results.why_missing("mixed_load"), "missing"))
    return Section("map", title, _strongest(models[0]), blocks)


def effect_overlays(ds: xr.Dataset, results: StudyResults) -> list[Overlay]:
    """Make the effects into maps for the viewer: every parcel shows the mean of its regions."""
    if "parcel" not in ds.variables:
        return []
    regions = results.regions or default_regions()
    parcel = np.asarray(ds["parcel"].values)
    overlays = []
    for effects in read_models(results):
        values, _ = _parcel_values(effects, regions)
        if not values:
            continue
        painted = np.full(parcel.shape, math.nan)
        for code, value in values.items():
            painted[parcel == code] = value
        limit = _limit(effects)
        try:
            volume = to_volume(ds, painted)
        except (GeometryError, MissingVariableError):
            return []  # the section of the lesion map, where the viewer would be, says why
        overlays.append(
            Overlay(
                label=f"Effect of {effects.told}",
                volume=volume,
                colors=_diverging(),
                limit=limit,
                unit=f"{effects.years} {effects.unit}".strip(),
                step=limit / 100,
                sides=SIDES,
                signed=True,
            )
        )
    return overlays


def _strongest(effects: Effects) -> str:
    known = np.isfinite(effects.estimate)
    if not known.any():
        return "No region has an estimate."
    parts = []
    for side in SIDES:
        at = [i for i, r in enumerate(effects.regions) if known[i] and split_region(r)[1] == side]
        if at:
            values = effects.estimate[at]
            mean = f"{number(values.mean())} {effects.years}"
            parts.append(f"{mean} on average in {side} regions ({span(values, 2)})")
    unit = f"{effects.unit[:1].upper()}{effects.unit[1:]}"
    where = f", {effects.where}" if effects.where else ""
    return f"{unit}{where}, {effects.short} differs by {and_list(parts)}."


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
        limits=(-_limit(effects), _limit(effects)),
        colors=_diverging(),
        label=f"{effects.years} {effects.unit}".strip(),
        alt=(
            "Four views of the cortex, lesioned hemisphere on the left, colored by the "
            f"estimated effect of {effects.told}. {_strongest(effects)}"
        ),
    )
    caption = (
        f"Estimated effect of {effects.told} on {effects.outcome}, whether or not it passes a "
        "threshold. The lesioned hemisphere of every person is drawn as the left one "
        "(ipsilesional), the other as the right one (contralesional); lateral and medial views. "
        "Gray cortex belongs to no region"
    )
    at = zip(effects.regions, effects.estimate, strict=True)
    known = {_native(region) for region, estimate in at if np.isfinite(estimate)}
    if not known.issuperset(name for name in regions.parcels if split_region(name)[1]):
        caption += ", or to one that was not tested or could not be fitted"
    caption += "."
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
            at = _best_slice(to_volume(ds, _members(regions, network, parcel)))
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
            bar_axes, colors, (-limit, limit), f"{effects.axis} {effects.unit}".strip()
        )
        svg = drawing.render(
            figure,
            f"panels-{effects.key}",
            f"Axial slices, one for each network, colored by the effect of {effects.told}; "
            "lesioned side on the left. " + "; ".join(alts),
        )
    return Figure(
        f"panels-{effects.key}",
        svg,
        "Every network by itself, on the axial slice where it is largest; regions overlap, so one "
        "picture could not show them all. Left: ipsilesional. Right: contralesional. "
        f"Numbers: {effects.years}; * and bold: q below 0.05.",
    )


def _painted(
    effects: Effects, regions: RegionSet, network: str, parcel: npt.NDArray[np.int_]
) -> FloatArray:
    """Estimate of a network's two regions in their voxels, NaN elsewhere."""
    out = np.full(parcel.shape, math.nan)
    for side in SIDES:
        i = effects.at(network, side)
        if i is not None:
            codes = regions.parcels.get(_native(effects.regions[i]), ())
            out[np.isin(parcel, codes)] = effects.estimate[i]
    return out


def _members(regions: RegionSet, network: str, parcel: npt.NDArray[np.int_]) -> FloatArray:
    """1 in the voxels of a network, on both sides, whether or not it was tested."""
    codes = [code for side in "LR" for code in regions.parcels.get(f"{network}_{side}", ())]
    return np.where(np.isin(parcel, codes), 1.0, math.nan)


def _best_slice(volume: Volume) -> float:
    """Height at which the smaller of both sides is largest."""
    area = np.isfinite(volume.data)
    middle = len(volume.axes[0]) // 2
    smaller = np.minimum(area[:middle].sum(axis=(0, 1)), area[middle:].sum(axis=(0, 1)))
    return float(volume.axes[2][int(np.argmax(smaller if smaller.any() else area.sum((0, 1))))])


def _write_sides(axes: "Axes", effects: Effects, network: str) -> list[str]:
    """Write the two estimates under a slice; returns them for the alternative text."""
    said = []
    for side, where in zip(SIDES, (0.24, 0.76), strict=True):
        i = effects.at(network, side)
        passes = i is not None and bool(effects.q[i] < 0.05)
        tested = i is not None and bool(np.isfinite(effects.estimate[i]))
        absent = "not tested" if i is None else "not fitted"
        shown = number(effects.estimate[i]) if tested else absent
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
        if tested:
            said.append(f"{network} {side} {shown}")
    return said
