"""Where the lesions lie: how many people have one at each place."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import GeometryError, MissingVariableError
from scalebrain.report import drawing
from scalebrain.report.content import (
    Figure,
    Note,
    Section,
    finite,
    number,
    percent,
    plural,
)
from scalebrain.report.niivue import Overlay, Viewer
from scalebrain.report.scanpictures import frame_of
from scalebrain.report.volume import Volume, overlay_slice, scaled, to_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["cuts_through", "lesion_section", "mark_sides"]


def lesion_section(
    ds: xr.Dataset,
    table: pd.DataFrame,
    background: npt.NDArray[np.float64],
    *,
    overlays: Sequence[Overlay] = (),
) -> Section:
    """Map how many people have a lesion at each place; the viewer shows further maps too."""
    title = "Where the lesions lie"
    if "lesion_frequency" not in ds.variables:
        reason = "The data set has no lesion_frequency: no subject has a lesion mask, or the "
        reason += "features stage has not run."
        return Section("lesions", title, "There is no lesion map.", [Note(reason, "missing")])
    frequency = np.asarray(ds["lesion_frequency"].values, dtype=np.float64)
    n_masks = _n_masks(ds["lesion_frequency"].attrs, table)
    there = int((table["lesion_present"].to_numpy() & _included(ds)).sum())
    if finite(ds["lesion_frequency"].attrs.get("n")) and there < n_masks:
        reason = f"The map is of {plural(n_masks, 'lesion mask')}, of which {there} "
        reason += f"{'is' if there == 1 else 'are'} of people here. For a map of these people "
        reason += "compute it again: ds.assign(scalebrain.lesion_frequency(ds))."
        return Section("lesions", title, "There is no lesion map.", [Note(reason, "missing")])
    if not np.isfinite(frequency).any() or np.nanmax(frequency) <= 0:
        reason = f"None of the {n_masks} lesion masks marks a voxel inside the brain mask."
        return Section("lesions", title, "There is no lesion map.", [Note(reason, "missing")])
    counts = np.rint(np.nan_to_num(frequency) * n_masks)
    lesioned = table[_with_lesion(ds, table)]
    n = min(len(lesioned), n_masks) or n_masks  # empty masks, of healthy people, do not count
    try:
        volume = to_volume(ds, np.where(counts > 0, counts, np.nan))
        gray = to_volume(ds, scaled(background))
        brain = frame_of(ds).brain
    except (GeometryError, MissingVariableError) as error:
        return Section(
            "lesions", title, "The lesion map cannot be drawn.", [Note(str(error), "missing")]
        )
    sides = lesioned["lesion_hemisphere"].value_counts()
    left, right = int(sides.get("L", 0)), int(sides.get("R", 0))
    top = int(counts.max())
    peak = int(np.argmax(counts))
    mm = [float(ds[a].values[peak]) for a in "xyz"]
    where = _where(counts, np.asarray(ds["x"].values, dtype=np.float64))
    takeaway = (
        f"Lesions overlap most {where}, where {top} of "
        f"{plural(n, 'person', 'people')} ({percent(top / n)}) share a lesioned "
        f"place; {percent((counts[brain] > 0).mean())} of the brain is lesioned in at least one "
        "person."
    )
    volumes = lesioned["lesion_volume"].to_numpy()
    volumes = volumes[np.isfinite(volumes)]
    details = [f"Lesion side: {left} left, {right} right."]
    if volumes.size:
        low, middle, high = np.percentile(volumes, [25, 50, 75])
        details.append(
            f"Median lesion volume {number(middle, 1)} mL (middle half of the people: "
            f"{number(low, 1)} to {number(high, 1)} mL)."
        )
    details.append(
        f"Most frequent place at x {number(mm[0], 0)}, y {number(mm[1], 0)}, "
        f"z {number(mm[2], 0)} mm."
    )
    days = lesioned["days_post_stroke"].to_numpy()
    if np.isfinite(days).any():
        details.append(f"Median time since stroke {number(np.nanmedian(days) / 365.25, 1)} years.")
    figure = _lesion_figure(volume, gray, n, takeaway)
    colors = _count_colors(top)
    counted = Overlay(
        label="People with a lesion",
        volume=volume,
        colors=np.concatenate([colors[:1], colors]),  # the first is of nobody, and not shown
        limit=float(top),
        unit=f"of {n} people",
        step=1.0,
    )
    viewer = Viewer("brain", "Look closer", gray, [counted, *overlays])
    return Section("lesions", title, takeaway, [figure, Note(" ".join(details)), viewer])


def _where(counts: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> str:
    """Say on which side most people have a lesion at one place; x grows to the right."""
    left, right = (float(counts[side].max(initial=0)) for side in (x < 0, x > 0))
    if max(left, right) < counts.max():
        return "on the midline"
    if left == right:
        return "in both hemispheres alike"
    return f"in the {'left' if left > right else 'right'} hemisphere"


def _count_colors(top: int) -> npt.NDArray[np.float64]:
    """One color for each count: no color stands for a number of people that cannot be."""
    import matplotlib

    colormap = matplotlib.colormaps["inferno"]
    colors: npt.NDArray[np.float64] = np.asarray(
        colormap(np.linspace(0.25, 0.97, top) if top > 1 else [0.7]), dtype=np.float64
    )
    return colors[:, :3]


def _with_lesion(ds: xr.Dataset, table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whose masks the map shows: people included, those of extrapolated age too, with a lesion."""
    who = table["lesion_present"].to_numpy() & (table["lesion_hemisphere"] != "none").to_numpy()
    return np.asarray(who & _included(ds))


def _included(ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Who is included, those of extrapolated age too; everyone where nothing says so."""
    if "included" not in ds.variables:
        return np.ones(ds.sizes["subject"], dtype=np.bool_)
    return np.asarray(ds["included"].values, dtype=np.bool_)


def _n_masks(attrs: Mapping[Any, Any], table: pd.DataFrame) -> int:
    if finite(attrs.get("n")) and int(attrs["n"]) > 0:
        return int(attrs["n"])
    return max(1, int((table["lesion_present"] & table["included"]).sum()))


def cuts_through(volume: Volume, axis: int, n: int) -> npt.NDArray[np.float64]:
    """Distinct planes, each with a value, that spread over the middle 94% along an axis."""
    others = tuple(i for i in range(3) if i != axis)
    mass = np.nansum(volume.data, axis=others)
    share = np.cumsum(mass) / mass.sum()
    low = volume.axes[axis][int(np.searchsorted(share, 0.03))]
    high = volume.axes[axis][min(int(np.searchsorted(share, 0.97)), len(share) - 1)]
    planes = volume.axes[axis]
    left = np.flatnonzero(mass > 0)
    chosen: list[int] = []
    for at in np.linspace(low, high, n):
        free = np.setdiff1d(left, chosen) if len(chosen) < len(left) else left
        chosen.append(int(free[np.argmin(np.abs(planes[free] - at))]))
    return np.asarray(planes[np.sort(chosen)], dtype=np.float64)


def _lesion_figure(volume: Volume, gray: Volume, n: int, takeaway: str) -> Figure:
    top = max(1, int(np.nanmax(volume.data)))
    colors = _count_colors(top)
    cuts = [(2, at) for at in cuts_through(volume, 2, 8)] + [
        (1, at) for at in cuts_through(volume, 1, 4)
    ]
    enlarge = 2 if (gray.axes[0][1] - gray.axes[0][0]) > 1.5 else 1
    x, y, z = (float(axis[-1] - axis[0]) for axis in gray.axes)
    width = 2.02
    heights = (width * y / x, width * y / x, width * z / x)
    gap = 0.34
    with drawing.drawing():
        figure = drawing.canvas(9.6, sum(heights) + 3 * gap + 0.1)
        for i, (axis, at) in enumerate(cuts):
            row, column = divmod(i, 4)
            axes = drawing.panel(
                figure,
                0.05 + column * (width + 0.1),
                sum(heights[:row]) + (row + 1) * gap - 0.06,
                width,
                heights[row],
            )
            base = gray.plane(axis, at)
            picture = overlay_slice(
                base, volume.plane(axis, at), colors=colors, limits=(1, top), enlarge=enlarge
            )
            axes.imshow(picture, extent=base.extent, origin="lower", interpolation="none")
            axes.set_title(
                f"{'z' if axis == 2 else 'y'} = {number(base.at, 0)} mm", fontsize=8.5, pad=3
            )
            mark_sides(axes)
        bar = drawing.color_bar(
            drawing.panel(figure, 8.75, 1.2, 0.17, sum(heights) - 1.3),
            colors,
            (0.5, top + 0.5),
            f"people with a lesion here (of {n})",
        )
        step = max(1, int(np.ceil(top / 8)))
        ticks = sorted({1, *range(step, top + 1, step), top})
        if len(ticks) > 2 and ticks[-1] - ticks[-2] < step / 2:
            ticks.pop(-2)
        bar.set_ticks(ticks, labels=[str(t) for t in ticks])
        bar.minorticks_off()
        svg = drawing.render(
            figure,
            "lesionmap",
            "Brain slices, eight axial and four coronal, left side drawn on the left, colored "
            f"by the number of people with a lesion, up to {top} of {n}. {takeaway}",
        )
    return Figure(
        "lesionmap",
        svg,
        "Number of people with a lesion at each place, of all who passed the criteria, whether or "
        "not their age is one of training; on a mean T1-weighted image of people of the study "
        "(references where there are any), or on the template. Axial slices from bottom to top, "
        "then coronal slices from back to front. Left is drawn on the left (L, R).",
    )


def mark_sides(axes: "Axes") -> None:
    """Write which side is which into the lower corners of a slice."""
    for where, words in ((0.02, "L"), (0.98, "R")):
        axes.text(
            where,
            0.02,
            words,
            transform=axes.transAxes,
            ha="left" if where < 0.5 else "right",
            fontsize=9,
            fontweight="bold",
        )
