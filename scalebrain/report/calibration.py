"""How often the prediction interval holds the true age, by region and by age."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.features.inclusion import same_people
from scalebrain.report import drawing
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Table,
    cell,
    count,
    included_references,
    interval,
    level,
    long_region,
    number,
    percent,
    plural,
    text,
)

__all__ = ["Coverage", "coverage_blocks", "read_coverage"]

FloatArray = npt.NDArray[np.float64]

_Z = 1.959963984540054  # of 95 %
_BAND_YEARS = 10
_ALL = "all ages"


@dataclass(frozen=True)
class Coverage:
    """Whose true age lies inside the interval.

    Parameters
    ----------
    level
        Share that the interval promises.
    regions
        Names of the regions.
    person
        (scan,) number; equal for scans of one person.
    age
        (scan,) years; of reference people that have an interval in some region.
    inside
        (scan, region) 1 or 0, NaN where there is no interval.
    n_calibrating
        How many of these people set the width of the intervals.
    """

    level: float
    regions: tuple[str, ...]
    person: npt.NDArray[np.int64]
    age: FloatArray
    inside: FloatArray
    n_calibrating: int

    def by_region(self) -> dict[str, float]:
        """Share of people inside, region by region."""
        regions, _ = self.shares(np.ones(self.age.shape, dtype=np.bool_))
        return dict(zip(self.regions, regions.tolist(), strict=True))

    def shares(self, who: npt.NDArray[np.bool_]) -> tuple[FloatArray, int]:
        """Share of people inside by region, each person the mean of their scans, and how many."""
        inside = pd.DataFrame(self.inside[who]).groupby(self.person[who]).mean()
        return inside.mean().to_numpy(dtype=np.float64), len(inside)

    def bands(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which scans belong to each decade of age that has people, and everyone last."""
        decade = np.floor(self.age / _BAND_YEARS).astype(np.int64)
        bands = {
            f"{d * _BAND_YEARS} to {(d + 1) * _BAND_YEARS - 1}": decade == d
            for d in np.unique(decade).tolist()
        }
        return bands | {_ALL: np.ones(self.age.shape, dtype=np.bool_)}


def read_coverage(ds: xr.Dataset) -> Coverage | None:
    """Compare the intervals of included reference people with their true ages.

    Parameters
    ----------
    ds
        Store with ``brain_age_low``, whose attribute ``coverage`` says what the interval
        promises, and ``brain_age_high`` over ``(subject, region)``.

    Returns
    -------
    Coverage or None
        None where nobody has an interval, or it does not say what it promises.
    """
    if not {"brain_age_low", "brain_age_high", "age", "region"} <= set(ds.variables):
        return None
    promised = ds["brain_age_low"].attrs.get("coverage")
    if promised is None:  # of another tool, which promises what it promises
        return None
    rows = np.flatnonzero(included_references(ds))
    person = same_people(ds)[rows]
    age = np.asarray(ds["age"].values, dtype=np.float64)[rows]

    def values(name: str) -> FloatArray:
        small = ds[name].transpose("subject", "region").isel(subject=rows)
        return np.asarray(small.values, dtype=np.float64)

    low, high = values("brain_age_low"), values("brain_age_high")
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(age)[:, None]
    keep = known.any(axis=1)
    if not keep.any():
        return None
    at = age[:, None]
    inside = np.where(known, (low <= at) & (at <= high), np.nan)[keep]
    calibrating = 0
    if "out_of_fold" in ds.variables:
        held = np.asarray(ds["out_of_fold"].values, dtype=np.bool_)[rows]
        calibrating = len(np.unique(person[keep & held]))
    regions = tuple(str(r) for r in ds["region"].values)
    return Coverage(float(promised), regions, person[keep], age[keep], inside, calibrating)


@dataclass(frozen=True)
class _Band:
    """Coverage in one band of age: the mean over regions, its interval, and the regions."""

    name: str
    n: int
    share: float
    low: float
    high: float
    regions: FloatArray


def _bands(coverage: Coverage) -> list[_Band]:
    """Coverage in every band, everyone last.

    The interval is Wilson's for as many observations as there are people: the regions of one
    person are not independent.
    """
    out = []
    for name, who in coverage.bands().items():
        regions, n = coverage.shares(who)
        share = float(np.nanmean(regions))
        out.append(_Band(name, n, share, *_wilson(share, n), regions))
    return out


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` people (Wilson's; the share need not be of whole people)."""
    square = _Z**2 / n
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return middle - half, middle + half


def coverage_blocks(coverage: Coverage) -> list[Block]:
    """Say and show how often the interval holds the true age, by age.

    Parameters
    ----------
    coverage
        From :func:`read_coverage`.

    Returns
    -------
    list
        A paragraph, a figure where there are several bands of age, and a table.
    """
    bands = _bands(coverage)
    blocks: list[Block] = [_note(coverage, bands)]
    if len(bands) > 2:
        blocks.append(_figure(coverage, bands))
    blocks.append(_table(coverage, bands))
    return blocks


def _note(coverage: Coverage, bands: list[_Band]) -> Note:
    """Say what is covered, and whether that was a test."""
    promised, whole = level(coverage.level), bands[-1]
    known = whole.regions[np.isfinite(whole.regions)]
    low, high = percent(known.min()), percent(known.max())
    words = (
        f"Prediction intervals: the {promised} conformal interval holds the true age of "
        f"{percent(whole.share)} of {plural(whole.n, 'reference person', 'reference people')} on "
        f"average over regions ({low if low == high else f'{low} to {high}'} by region). "
    )
    if coverage.n_calibrating == whole.n:
        words += (
            "Their ages were predicted by networks that had not seen them (held out), but the "
            "width of the intervals was set on these same errors: over all ages together the "
            "share is met by construction and is no test on new people. By age it is not: one "
            "width serves every age, and may be too narrow for some."
        )
    elif coverage.n_calibrating:
        words += (
            f"{count(coverage.n_calibrating)} of them were held out of training, but set the "
            "width of the intervals; the others are new to the model."
        )
    else:
        words += "They are new to the model, so this is a test."
    off = [b for b in bands[:-1] if not b.low <= coverage.level <= b.high]
    if off:
        found = "; ".join(f"{b.name}, {percent(b.share)}" for b in off)
        words += f" The 95% interval of the share leaves {promised} out at ages {found}."
    return Note(words)


def _figure(coverage: Coverage, bands: list[_Band]) -> Figure:
    """Draw a point and its interval for each band, a small dot for each region."""
    at = np.arange(len(bands), dtype=np.float64)
    share = np.array([b.share for b in bands])
    ends = np.array([[b.low, b.high] for b in bands]).T
    with drawing.drawing():
        figure = drawing.canvas(9.6, 3.0)
        axes = figure.subplots()
        axes.axhline(coverage.level, color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for x, band in zip(at, bands, strict=True):
            dots = band.regions[np.isfinite(band.regions)]
            beside = x + 0.18 + 0.012 * (np.arange(dots.size) % 5)
            axes.scatter(beside, dots, s=9, color=drawing.MUTED, alpha=0.6, linewidths=0)
        axes.errorbar(
            at,
            share,
            yerr=np.abs(ends - share),
            fmt="o",
            markersize=7,
            color=drawing.ACCENT,
            linewidth=1.8,
        )
        axes.set_xticks(at, [f"{b.name}\nn {count(b.n)}" for b in bands])
        axes.set_xlabel("age, years")
        axes.set_xlim(-0.5, len(bands) - 0.5)
        lows = (float(np.nanmin(b.regions)) for b in bands)
        lowest = min(float(ends.min()), *lows, coverage.level)
        axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
        axes.yaxis.set_major_formatter(_percent_axis)
        axes.set_ylabel("true age inside")
        axes.grid(axis="y")
        promised = level(coverage.level)
        alt = f"Share of people whose true age lies in the {promised} interval, by age: "
        alt += "; ".join(f"{b.name}, {percent(b.share)} of {count(b.n)}" for b in bands)
        svg = drawing.render(figure, "coverage", f"{alt}.")
    return Figure(
        "coverage",
        svg,
        f"How often the interval holds the true age, by age. Dashed: the {promised} that "
        "it promises. Points: mean over regions, with a 95% Wilson interval for this many people "
        "(the regions of one person are not independent). Small dots: one region each.",
    )


def _percent_axis(value: float, _: Any) -> str:
    """Write a tick."""
    return percent(value)


def _table(coverage: Coverage, bands: list[_Band]) -> Table:
    """One row a band."""
    columns = [
        Column("Age, years", numeric=False),
        Column("people, n"),
        Column("promised"),
        Column("inside", hint="mean over regions"),
        Column("95% interval", hint="Wilson, for this many people"),
        Column("lowest region", numeric=False),
        Column("highest region", numeric=False),
    ]
    rows: list[list[Cell]] = []
    for band in bands:
        misses = not band.low <= coverage.level <= band.high
        ends = interval(100 * band.low, 100 * band.high, 0)
        known = np.isfinite(band.regions)
        order = np.argsort(np.where(known, band.regions, math.inf), kind="stable")
        lowest, highest = order[0], order[int(known.sum()) - 1]
        rows.append(
            [
                text(band.name),
                cell(count(band.n), band.n),
                cell(level(coverage.level), coverage.level),
                cell(percent(band.share), band.share, "caution" if misses else ""),
                cell(f"{ends}%", band.low),
                *(
                    text(f"{long_region(coverage.regions[i])}, {number(100 * band.regions[i], 0)}%")
                    for i in (lowest, highest)
                ),
            ]
        )
    caption = "How often the interval holds the true age of reference people, by age."
    return Table("coverage-table", caption, columns, rows, folded=True)
