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
    level,
    long_region,
    number,
    plural,
    shorten,
    text,
    text_values,
)
from scalebrain.stats.frame import eligible_subjects
from scalebrain.stats.pads import GLOBAL_REGION

__all__ = ["site_blocks"]

FloatArray = npt.NDArray[np.float64]

#: Sites of the figure; all are in the table.
_SHOWN = 40


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
        Store, of which the strokes of every site that statistics use are counted.
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
    trained = "out_of_fold" in ds.variables and bool(ds["out_of_fold"].any())
    blocks: list[Block] = [_note(sites, shifts, is_trained_here=trained)]
    if len(known) > 1:
        blocks.append(_figure(known))
    blocks.append(_table(sites, regions, float(shifts.attrs["confidence"])))
    return blocks


def _sites(ds: xr.Dataset, shifts: xr.Dataset) -> list[_Site]:
    """Sites in alphabetical order."""
    stroke = eligible_subjects(ds)
    cohort = text_values(ds["cohort"])
    out = []
    for name in shifts["cohort"].values:
        own = shifts.sel(cohort=name)
        shift, low, high = (
            np.asarray(own[n].values, dtype=np.float64)
            for n in ("site_shift", "site_shift_low", "site_shift_high")
        )
        is_known = np.isfinite(shift).any()
        healthy = int(own["n_healthy"].max()) if is_known else 0
        mean = float(np.nanmean(shift)) if is_known else np.nan
        strokes = int((stroke & (cohort == str(name))).sum())
        out.append(_Site(str(name), healthy, strokes, mean, shift, low, high))
    return out


def _note(sites: list[_Site], shifts: xr.Dataset, *, is_trained_here: bool) -> Note:
    """Say how large the shifts are, and for whom they are not known."""
    known = [site for site in sites if site.healthy]
    words = (
        f"Sites: {plural(len(known), 'site')} of {count(len(sites))} "
        f"{'has' if len(known) == 1 else 'have'} healthy people. Their mean brain-PAD says by how "
        "many years the brain ages of a site are off, by its scanner or by who was recruited. "
    )
    if len(known) > 1:
        largest = max(known, key=lambda site: abs(site.mean))
        spread = float(np.nanmean(shifts["between_sites_sd"].values))
        words += (
            "The estimate of a site with few of them is drawn towards the mean of all. The "
            f"largest, of {largest.name}, is {number(largest.mean)} years on average over regions; "
            f"sites differ with a standard deviation of {number(spread)} years. "
        )
    else:
        words += f"It is {number(known[0].mean)} years on average over regions. "
    words += (
        "Nothing on this page has been shifted by these numbers: comparisons within a site need "
        "none, and from the brain-PAD of a single person that of the site may be subtracted."
    )
    unknown = [site.name for site in sites if site.strokes and not site.healthy]
    if unknown:
        words += (
            f" At {plural(len(unknown), 'site')} with strokes ({and_list(unknown)}) it is not "
            "known, as nobody healthy was scanned there: do not read the brain-PAD of a single "
            "person from there as that of the person alone."
        )
    if is_trained_here:
        words += (
            " Healthy people on whom the model was trained taught it their site: a new site may be "
            "further off. In a training that kept each cohort in one fold (keep_cohorts), a cohort "
            "corrects its own age bias, so that its shift is near zero by construction."
        )
    return Note(words, "caution" if unknown else "plain")


def _figure(sites: list[_Site]) -> Figure:
    """Draw a dot for each region of a site, and their mean."""
    shown = sorted(sites, key=lambda site: -abs(site.mean))[:_SHOWN]
    left_out = len(sites) - len(shown)
    shown.sort(key=lambda site: site.name)
    rows = np.arange(len(shown))[::-1].astype(np.float64)
    with drawing.drawing():
        figure = drawing.canvas(9.6, 1.0 + 0.24 * len(shown))
        axes = figure.subplots()
        axes.axvline(0, color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for row, site in zip(rows, shown, strict=True):
            dots = site.shift[np.isfinite(site.shift)]
            axes.scatter(dots, np.full(dots.size, row), s=9, color=drawing.MUTED, alpha=0.6)
        means = [site.mean for site in shown]
        axes.scatter(means, rows, s=46, color=drawing.ACCENT, zorder=3)
        axes.set_yticks(rows, [f"{shorten(s.name, 24)} (n {count(s.healthy)})" for s in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel("shift of the brain ages of a site, years")
        alt = "Shift of each site, mean over regions in years: "
        alt += "; ".join(f"{site.name} {number(site.mean)}" for site in shown)
        svg = drawing.render(figure, "site-shift", f"{alt}.")
    caption = (
        "By how many years the brain ages of each site are off, estimated from its healthy "
        "people. Small dots: one region each; points: their mean."
    )
    if left_out:
        caption += f" The {count(_SHOWN)} most shifted of {count(len(sites))} sites."
    return Figure("site-shift", svg, caption)


def _table(sites: list[_Site], regions: list[str], confidence: float) -> Table:
    """One row a site."""
    promised = level(confidence)
    columns = [
        Column("Site", numeric=False),
        Column("healthy, n"),
        Column("strokes, n"),
        Column("shift, years", hint="mean over regions"),
        Column("regions off", hint=f"{promised} interval leaves zero out; some do by chance"),
        Column("most shifted region", numeric=False),
    ]
    rows: list[list[Cell]] = []
    for site in sites:
        most, clear = "not known", number(np.nan)
        if site.healthy:
            at = int(np.nanargmax(np.abs(site.shift)))
            ends = interval(site.low[at], site.high[at])
            most = f"{long_region(regions[at])}, {number(site.shift[at])} ({ends})"
            clear = count(site.clear)
        rows.append(
            [
                text(site.name),
                cell(count(site.healthy), site.healthy),
                cell(count(site.strokes), site.strokes),
                cell(number(site.mean), site.mean),
                cell(clear, site.clear if site.healthy else np.nan),
                text(most),
            ]
        )
    caption = (
        "By how many years the brain ages of each site are off, and the most shifted region with "
        f"its {promised} interval (as it was chosen for its size, its shift is rather too large)."
    )
    return Table("site-shift-table", caption, columns, rows, folded=True)
