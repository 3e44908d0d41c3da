"""By how many years the brain ages of each site are off."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Table,
    and_list,
    cell,
    count,
    interval,
    long_region,
    number,
    plural,
    shorten,
    text,
    text_values,
)
from scalebrain.stats.pads import GLOBAL_REGION

__all__ = ["site_blocks"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Site:
    """One site: its people, the mean shift over regions, and the shift of each region."""

    name: str
    healthy: int
    strokes: int
    mean: float
    shift: FloatArray
    low: FloatArray
    high: FloatArray

    @property
    def clear(self) -> int:
        """Regions whose interval leaves zero out."""
        return int(((self.low > 0) | (self.high < 0)).sum())


def site_blocks(ds: xr.Dataset, shifts: xr.Dataset) -> list[Block]:
    """Say and show by how many years each site is off, as its healthy people tell.

    Parameters
    ----------
    ds
        Store, of which the strokes of every site are counted.
    shifts
        From :func:`scalebrain.site_shift`, by ``cohort``.

    Returns
    -------
    list
        A paragraph, a figure where several sites have healthy people, and a table.
    """
    if "region" not in shifts.dims:
        shifts = shifts.expand_dims(region=[GLOBAL_REGION])
    sites = _sites(ds, shifts)
    known = [site for site in sites if site.healthy]
    regions = [str(r) for r in shifts["region"].values]
    blocks: list[Block] = [_note(sites, shifts)]
    if len(known) > 1:
        blocks.append(_figure(known))
    blocks.append(_table(sites, regions))
    return blocks


def _sites(ds: xr.Dataset, shifts: xr.Dataset) -> list[_Site]:
    """Sites in alphabetical order."""
    included = np.ones(ds.sizes["subject"], dtype=np.bool_)
    if "included" in ds.variables:
        included &= np.asarray(ds["included"].values, dtype=np.bool_)
    stroke = included & (text_values(ds["group"]) == "stroke")
    cohort = text_values(ds["cohort"])
    out = []
    for name in shifts["cohort"].values:
        own = shifts.sel(cohort=name)
        shift, low, high = (
            np.asarray(own[n].values, dtype=np.float64)
            for n in ("site_shift", "site_shift_low", "site_shift_high")
        )
        healthy = int(own["n_healthy"].max())
        mean = float(np.nanmean(shift)) if healthy else np.nan
        strokes = int((stroke & (cohort == str(name))).sum())
        out.append(_Site(str(name), healthy, strokes, mean, shift, low, high))
    return out


def _note(sites: list[_Site], shifts: xr.Dataset) -> Note:
    """Say how large the shifts are, and for whom they are not known."""
    known = [site for site in sites if site.healthy]
    largest = max(known, key=lambda site: abs(site.mean))
    words = (
        f"Sites: {plural(len(known), 'site')} of {count(len(sites))} "
        f"{'has' if len(known) == 1 else 'have'} healthy people. Their brain-PAD says by how many "
        "years the brain ages of a site are off, whoever is scanned there; the estimate of a site "
        "with few of them is drawn towards the mean of all. "
        f"The largest, of {largest.name}, is {number(largest.mean)} years on average over regions."
    )
    spread = float(np.nanmean(shifts["between_sites_sd"].values)) if len(known) > 1 else np.nan
    if np.isfinite(spread):
        words += f" Sites differ with a standard deviation of {number(spread)} years."
    unknown = [site.name for site in sites if site.strokes and not site.healthy]
    if unknown:
        words += (
            f" Of {plural(len(unknown), 'site')} with strokes ({and_list(unknown)}) the shift is "
            "not known: nobody healthy was scanned there. A brain-PAD of a single person from "
            "there holds the scanner's part too; comparisons within a site do not."
        )
    words += (
        " Nothing on this page has been shifted by these numbers. Healthy people on whom the model "
        "was trained taught it their site: a new one may be further off."
    )
    return Note(words, "caution" if unknown else "plain")


def _figure(sites: list[_Site]) -> Figure:
    """Draw a dot for each region of a site, and their mean."""
    rows = np.arange(len(sites))[::-1].astype(np.float64)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.0 + 0.24 * len(sites))
        axes = figure.subplots()
        axes.axvline(0, color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for row, site in zip(rows, sites, strict=True):
            dots = site.shift[np.isfinite(site.shift)]
            axes.scatter(dots, np.full(dots.size, row), s=9, color=drawing.MUTED, alpha=0.6)
        means = [site.mean for site in sites]
        axes.scatter(means, rows, s=46, color=drawing.ACCENT, zorder=3)
        axes.set_yticks(rows, [f"{shorten(s.name, 24)} (n {count(s.healthy)})" for s in sites])
        axes.set_ylim(-0.7, len(sites) - 0.3)
        axes.set_xlabel("shift of the brain ages of a site, years")
        alt = "Shift of each site, mean over regions in years: "
        alt += "; ".join(f"{site.name} {number(site.mean)}" for site in sites)
        svg = drawing.render(figure, "site-shift", f"{alt}.")
    return Figure(
        "site-shift",
        svg,
        "By how many years the brain ages of each site are off, estimated from its healthy "
        "people. Small dots: one region each; points: their mean.",
    )


def _table(sites: list[_Site], regions: list[str]) -> Table:
    """One row a site."""
    columns = [
        Column("Site", numeric=False),
        Column("healthy, n"),
        Column("strokes, n"),
        Column("shift, years", hint="mean over regions"),
        Column("regions off", hint="95% interval leaves zero out"),
        Column("most shifted region", numeric=False),
    ]
    rows: list[list[Cell]] = []
    for site in sites:
        most = "not known"
        if site.healthy:
            at = int(np.nanargmax(np.abs(site.shift)))
            ends = interval(site.low[at], site.high[at])
            most = f"{long_region(regions[at])}, {number(site.shift[at])} ({ends})"
        rows.append(
            [
                text(site.name),
                cell(count(site.healthy), site.healthy),
                cell(count(site.strokes), site.strokes),
                cell(number(site.mean), site.mean),
                cell(count(site.clear) if site.healthy else number(np.nan), site.clear),
                text(most),
            ]
        )
    caption = "By how many years the brain ages of each site are off."
    return Table("site-shift-table", caption, columns, rows, folded=True)
