"""Effects of lesions on regional brain-PAD, and their forest plot."""

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import NETWORKS
from scalebrain.errors import StatisticsError
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
    confidence,
    count,
    interval,
    long_region,
    number,
    p_value,
    p_words,
    plural,
    span,
    split_region,
    text,
)
from scalebrain.stats.pads import GLOBAL_REGION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

__all__ = ["SIDES", "Effects", "focal_term", "forest_section", "read_effects", "read_models"]

FloatArray = npt.NDArray[np.float64]

_NAMES = {"mixed": "lesion volume", "mixed_load": "the region's own lesion load"}
_VARIABLES = {"mixed": "lesion_volume", "mixed_load": "lesion_load"}
_SUBJECTS = {"mixed": "Larger lesions go", "mixed_load": "More damage in a region goes"}
#: What may stand around a variable, so that more of it is more of the term.
_RISING = r"(?:(?:np\.)?(?:scale|z|standardize|center|log|log2|log10|log1p|sqrt)\()*"
#: Outcomes in years: ages, and what ages differ by, also in the years of a true deviation.
_YEARS = re.compile(
    r"brain_(?P<kind>age|pad)(?:_global)?(?P<corrected>_corrected)?(?:_harmonized)?"
    r"(?: ?/ ?calibration_slope)?"
)
_PARTS = re.compile(r":(?![^\[]*\])")  # of an interaction; a level may have a colon
_STANDARDIZED = re.compile(r"(?:scale|z|standardize)\(([^(),]+)\)")
SIDES = ("ipsilesional", "contralesional")
#: Sides of a forest plot; the last is the whole brain's.
_ALL_SIDES = (*SIDES, "")


@dataclass(frozen=True)
class Effects:
    """One term of a mixed model over regions.

    Where the term is part of an interaction, ``where`` says at what of the others its effect is
    told (``where age is 0``), and ``interactions`` are the terms by which it differs.
    """

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
    level: str = field(default="95%", kw_only=True)
    where: str = field(default="", kw_only=True)
    interactions: tuple["Effects", ...] = field(default=(), kw_only=True)

    @property
    def _named(self) -> str:
        """Outcome as the formula has it, without what standardizes it."""
        named = self.formula.partition("~")[0].strip()
        bare = re.fullmatch(r"I\((.*)\)", named) or _STANDARDIZED.fullmatch(named)
        return bare.group(1).strip() if bare else named

    @property
    def is_age(self) -> bool:
        """Whether more of the outcome is an older brain."""
        return not self._named or _YEARS.fullmatch(self._named) is not None

    @property
    def outcome(self) -> str:
        """What the effects are on."""
        found = _YEARS.fullmatch(self._named)
        if found is None:
            return self._named or "corrected brain-PAD"
        corrected = "corrected " if found["corrected"] else ""
        return f"{corrected}{'brain age' if found['kind'] == 'age' else 'brain-PAD'}"

    @property
    def years(self) -> str:
        """What the outcome is counted in."""
        if _STANDARDIZED.fullmatch(self.formula.partition("~")[0].strip()):
            return "standard deviations"
        return "years" if self.is_age else "units"

    @property
    def short(self) -> str:
        """The outcome in a word."""
        return self.outcome.removeprefix("corrected ")

    @property
    def told(self) -> str:
        """What the effects are of, and where."""
        return f"{self.cause} {self.where}".strip()

    @property
    def axis(self) -> str:
        """Label of an axis of effects."""
        return f"{self.years} of {self.short}"

    @property
    def subject(self) -> str:
        """Beginning of a sentence on what goes with the term."""
        known = self.cause == _NAMES.get(self.key)
        return _SUBJECTS[self.key] if known else f"{self.cause} goes"

    def at(self, network: str, side: str) -> int | None:
        """Position of a network's region on a side; no side is that of the whole brain."""
        name = f"{network}_{side}" if side else network
        return self.regions.index(name) if name in self.regions else None

    @property
    def is_global(self) -> bool:
        """Whether there is one effect, on the age of the whole brain."""
        return self.regions == (GLOBAL_REGION,)

    @property
    def networks(self) -> list[str]:
        """Networks in the order of the regions."""
        return list(dict.fromkeys(split_region(region)[0] for region in self.regions))


def focal_term(mixed: xr.Dataset, key: str = "mixed") -> str:
    """Name the term of interest of a mixed model.

    Parameters
    ----------
    mixed
        Result of a mixed model. ``attrs["focal_term"]`` decides where it is there.
    key
        ``mixed`` for the model on lesion volume, ``mixed_load`` for that on lesion load.

    Returns
    -------
    str
        The named term, else the first that holds the model's variable (main effects before
        interactions), else the first that speaks of a lesion, else the first that is not the
        intercept.
    """
    terms = [str(term) for term in np.atleast_1d(mixed["term"].values)]
    named = str(mixed.attrs.get("focal_term", ""))
    if named in terms:
        return named
    slopes = [term for term in terms if term.lower() not in ("intercept", "1", "const")]
    own = sorted(_holding(mixed, key), key=lambda term: ":" in term)
    lesion = [term for term in slopes if "lesion" in term.lower()]
    return (own or lesion or slopes or terms)[0]


def _holding(mixed: xr.Dataset, key: str) -> list[str]:
    """Terms that hold the variable that a model is about."""
    variable = rf"\b{_VARIABLES[key]}\b" if key in _VARIABLES else r"(?!)"
    terms = [str(term) for term in np.atleast_1d(mixed["term"].values)]
    return [term for term in terms if re.search(variable, term)]


def _cause(mixed: xr.Dataset, key: str, term: str) -> str:
    """Name of what a model is about, where its term is the only one of it, and rises with it."""
    if _holding(mixed, key) == [term] and re.fullmatch(
        rf"{_RISING}{_VARIABLES[key]}(?: \+ [\d.]+)?\)*", term
    ):
        return _NAMES[key]
    return term


def _interactions(mixed: xr.Dataset, term: str) -> list[str]:
    """Interactions that hold a term: by them its effect differs from what the term tells."""
    own = set(term.split(":"))
    terms = [str(one) for one in np.atleast_1d(mixed["term"].values)]
    return [one for one in terms if own < set(one.split(":"))]


def _where(term: str, interactions: list[str]) -> str:
    """Say at what of the others a term of interactions tells its effect."""
    own = _PARTS.split(term)
    others = [part for one in interactions for part in _PARTS.split(one) if part not in own]
    told = []
    for part in dict.fromkeys(others):
        level = re.fullmatch(r"(.*)\[.*\]", part)
        mean = re.fullmatch(r"(?:scale|z|standardize|center)\(([^(),]+)\)", part)
        if level:
            told.append(f"at the reference level of {level.group(1)}")
        elif mean:
            told.append(f"at the mean of {mean.group(1)}")
        else:
            told.append(f"where {part} is 0")
    return and_list(list(dict.fromkeys(told)))


def read_effects(key: str, mixed: xr.Dataset) -> Effects:
    """Read the term of interest of a mixed model; one on another topic has its own name."""
    names = [str(region) for region in np.atleast_1d(mixed["region"].values)]
    native = [name for name in names if split_region(name)[1] in ("L", "R")]
    if native:
        raise StatisticsError(
            f"Result '{key}': regions {and_list(native, 4)} are left or right, expected "
            "ipsilesional and contralesional ones. Fit the model on "
            "scalebrain.to_lesional_sides(ds)."
        )
    term = focal_term(mixed, key)
    others = _interactions(mixed, term)
    return _read(
        key,
        mixed,
        term,
        where=_where(term, others),
        interactions=tuple(_read(key, mixed, other) for other in others),
    )


def _read(
    key: str,
    mixed: xr.Dataset,
    term: str,
    *,
    where: str = "",
    interactions: tuple[Effects, ...] = (),
) -> Effects:
    """Read one term of a mixed model."""
    part = mixed.sel(term=term)
    regions = tuple(str(region) for region in np.atleast_1d(part["region"].values))

    def values(name: str) -> FloatArray:
        if name not in part.variables:
            return np.full(len(regions), math.nan)
        return np.atleast_1d(np.asarray(part[name].values, dtype=np.float64))

    return Effects(
        key,
        _cause(mixed, key, term),
        str(mixed.attrs.get("focal_unit", "")) or _unit(term),
        term,
        str(mixed.attrs.get("formula", "")),
        regions,
        *(values(name) for name in ("estimate", "ci_low", "ci_high", "p", "q", "n")),
        level=confidence(mixed),
        where=where,
        interactions=interactions,
    )


def _unit(term: str) -> str:
    """Say what an estimate is per, from the term of the formula."""
    if ":" in term:
        return f"per unit of {term.replace(':', ' × ')}"
    scaled_by = re.fullmatch(r"(?:scale|z|standardize|center)\((.*)\)", term.strip())
    inner = scaled_by.group(1) if scaled_by else term
    logged = re.fullmatch(r"(?:np\.)?log(?:10)?\((.*)\)", inner.strip())
    words = (logged.group(1) if logged else inner).replace("_", " ").strip()
    words = f"log {words}" if logged else words
    if scaled_by and not term.startswith("center"):
        return f"per standard deviation of {words}"
    return f"per unit of {words}"


def read_models(results: StudyResults) -> list[Effects]:
    """Read the term of interest of every mixed model that was fitted."""
    pairs = (("mixed", results.mixed), ("mixed_load", results.mixed_load))
    return [read_effects(key, mixed) for key, mixed in pairs if mixed is not None]


def _plain_name(region: str) -> str:
    """Name of a region's network; of a region without a side, the region."""
    network, side = split_region(region)
    return network if side else long_region(region)


def _finding(effects: Effects) -> str:
    """Say what an effect is, from its numbers alone, and where, if it differs."""
    said = _found(effects)
    if not effects.interactions:
        return said
    counted = [
        f"{one.term} in {int((one.q < 0.05).sum())} of "
        f"{plural(int(np.isfinite(one.q).sum()), 'region')}"
        if not one.is_global
        else f"{one.term} ({p_words(one.p[0])})"
        for one in effects.interactions
    ]
    passing = "" if effects.is_global else " (q below 0.05)"
    return (
        f"{said} Elsewhere it differs by the interaction"
        f"{'' if len(counted) == 1 else 's'} {and_list(counted)}{passing}."
    )


def _found(effects: Effects) -> str:
    """Say what an effect is."""
    signs = []
    higher, lower = ("older", "younger") if effects.is_age else ("higher", "lower")
    if effects.is_global:
        return _whole_finding(effects, higher, lower)
    for direction, word in ((1, higher), (-1, lower)):
        for side in _ALL_SIDES:
            hits = [
                i
                for i, region in enumerate(effects.regions)
                if split_region(region)[1] == side
                and effects.q[i] < 0.05
                and direction * effects.estimate[i] > 0
            ]
            if hits:
                names = and_list([_plain_name(effects.regions[i]) for i in hits], 9)
                size = span(np.abs(effects.estimate[hits]), 2)
                what = (
                    f"{side} regions ({names}; {size} {effects.years})"
                    if side
                    else f"{names} ({size} {effects.years})"
                )
                signs.append(f"{word} {what}")
    tested = int(np.isfinite(effects.q).sum())
    if not signs:
        low = int((effects.p < 0.05).sum())
        return (
            f"No association of {effects.told} with {effects.short} passes the 5% false discovery "
            f"rate over {plural(tested, 'region')}; {low} {'has' if low == 1 else 'have'} a raw p "
            "below 0.05."
        )
    where = f", {effects.where}" if effects.where else ""
    return f"{effects.subject} with {and_list(signs)} at a 5% false discovery rate{where}."


def _whole_finding(effects: Effects, higher: str, lower: str) -> str:
    """Say what the one effect on the whole brain is."""
    estimate, p = float(effects.estimate[0]), p_words(effects.p[0])
    if not np.isfinite(estimate):
        return f"The effect of {effects.told} on the whole brain could not be estimated."
    if not effects.p[0] < 0.05:
        return (
            f"No association of {effects.told} with the {effects.short} of the whole brain "
            f"was found ({p})."
        )
    word = higher if estimate > 0 else lower
    article = "an" if word == "older" else "a"
    size = f"{number(abs(estimate))} {effects.years}"
    where = f", {effects.where}" if effects.where else ""
    return f"{effects.subject} with {article} {word} whole brain ({size}, {p}){where}."


def forest_section(results: StudyResults) -> Section:
    """List every regional effect with its interval, raw p and q."""
    models = read_models(results)
    title = "Regional effects with their uncertainty"
    if models and models[0].is_global:
        title = "The effect on the whole brain, with its uncertainty"
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
            blocks.append(Note(f"Effect of {effects.told}", "heading"))
        if effects is not models[0]:
            blocks.append(Note(_finding(effects)))
        if np.isfinite(effects.estimate).any():
            blocks.append(_forest_figure(effects))
        else:
            blocks.append(Note(f"No region has an estimate of {effects.cause}.", "missing"))
        blocks.append(_forest_table(effects, effects.key, f"Effect of {effects.told} on"))
        blocks += [
            _forest_table(
                one,
                f"{effects.key}-interaction-{k}",
                f"Interaction {one.term}, by which the effect of {effects.cause} on",
            )
            for k, one in enumerate(effects.interactions, start=1)
        ]
        mixed = results.mixed if effects.key == "mixed" else results.mixed_load
        if mixed is not None:
            blocks.append(_model_note(effects, mixed))
    if results.mixed_load is None:
        blocks.append(Note(results.why_missing("mixed_load"), "missing"))
    return Section("forest", title, _finding(models[0]), blocks)


def _forest_figure(effects: Effects) -> Figure:
    networks = effects.networks
    known = np.isfinite(effects.estimate)
    shown = {split_region(region)[1] for region, k in zip(effects.regions, known, strict=True) if k}
    sides = [side for side in _ALL_SIDES if side in shown]
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
        _beside(
            axes,
            len(networks) - 0.3,
            (f"{effects.years} ({effects.level} CI)", "q"),
            "normal",
            drawing.MUTED,
        )
        axes.axvline(0, color=drawing.INK, linewidth=0.9)
        labels = [f"{NETWORKS[n]} ({n})" if n in NETWORKS else long_region(n) for n in networks]
        axes.set_yticks(range(len(networks)), labels[::-1])
        axes.set_ylim(-0.5, len(networks) - 0.5)
        older = " (right of 0: older)" if effects.is_age else ""
        axes.set_xlabel(f"{effects.axis} {effects.unit}".strip() + older)
        axes.grid(axis="x")
        if sides != [""]:
            _forest_legend(figure, sides)
        alt = "; ".join(
            f"{long_region(r)} {number(effects.estimate[i])} "
            f"({interval(effects.low[i], effects.high[i])}), q {p_value(effects.q[i])}"
            for i, r in enumerate(effects.regions)
        )
        svg = drawing.render(
            figure,
            f"forest-{effects.key}",
            f"Forest plot of the effect of {effects.told} on "
            f"{'' if effects.is_global else 'regional '}{effects.outcome}. {alt}.",
        )
    caption = (
        f"Estimates with {effects.level} confidence intervals from a mixed model for each region. "
        "Filled: q below 0.05, the Benjamini-Hochberg false discovery rate over all regions shown."
    )
    if effects.is_global:
        caption = (
            f"Estimate with its {effects.level} confidence interval from a mixed model. Filled: q "
            "below 0.05; of one test, q is the raw p."
        )
    if effects.where:
        caption += f" The effect is that {effects.where}; the interactions are in tables below."
    return Figure(f"forest-{effects.key}", svg, caption)


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


def _forest_table(effects: Effects, key: str, what: str) -> Table:
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
        f"table-{key}",
        f"{what} {effects.outcome}{'' if key == effects.key else ' differs'}, "
        f"{' '.join((effects.years, effects.unit)).strip()}.",
        [
            Column("Region", numeric=False),
            Column("estimate"),
            Column(f"{effects.level} CI"),
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
        method = str(mixed.attrs.get("method") or "random intercept").rsplit(", ", 2)[0]
        parts.append(f"{method[:1].upper()}{method[1:]} by {mixed.attrs['groups']}.")
    if "boundary" in mixed.variables:
        fitted = np.isfinite(effects.estimate)
        n = int((np.atleast_1d(mixed["boundary"].values).astype(bool) & fitted).sum())
        what = "The variance between groups was estimated as zero"
        if "slope_variance" in mixed.variables:
            what = "The random effects were estimated at the boundary, no variance or a perfect"
            what += " correlation" + ("" if effects.is_global else ",")
        of_fitted = " that could be fitted" if not fitted.all() else ""
        where = f" in {n} of {plural(int(fitted.sum()), 'region')}{of_fitted}"
        if n or not effects.is_global:
            parts.append(f"{what}{'' if effects.is_global else where}.")
    failures = mixed.attrs.get("failures")
    if isinstance(failures, list | tuple) and failures:
        parts.append(_told_failures([str(failure) for failure in failures]))
    if mixed.attrs.get("rows_dropped"):
        parts.append(f"Rows not used: {mixed.attrs['rows_dropped']}.")
    return Note(" ".join(part for part in parts if part), "small")


def _told_failures(failures: list[str]) -> str:
    """Say what was not fitted, regions with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for failure in failures:
        where, _, reason = failure.partition(": ")
        reasons.setdefault(reason or failure, []).append(where.removeprefix("region "))
    told = [
        f"{and_list(where, 4)}: {reason.rstrip('.')}" for reason, where in list(reasons.items())[:3]
    ]
    return "Not fitted: " + "; ".join(told) + "."
