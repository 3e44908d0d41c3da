"""Values of regions as a figure for a notebook: on the cortex, and as dots."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import NETWORKS, RegionSet, check_regions, default_regions
from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError, TableError
from scalebrain.io.fsaverage import Hemisphere
from scalebrain.report import drawing
from scalebrain.report.content import split_region
from scalebrain.report.surface import surface_picture, vertex_parcels
from scalebrain.variables import REGISTRY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Kind",
    "check_reduce",
    "parcel_values",
    "plot_regions",
    "regions_of",
    "side_words",
    "values_of_regions",
]

FloatArray = npt.NDArray[np.float64]
Kind = Literal["both", "surface", "dots"]

_SIDES = (("L", "R"), ("ipsilesional", "contralesional"))
_WORDS = {"L": "left", "R": "right"}
_COLORS = ("#1b6ca8", "#d95f02")
_INK = "#222222"
_GRAY = "#777777"


def check_reduce(reduce: str) -> None:
    """Refuse another way to put people together than the mean and the median."""
    if reduce not in ("mean", "median"):
        raise ConfigError(f"reduce: '{reduce}', expected mean or median.")


def values_of_regions(
    ds: xr.Dataset,
    variable: Hashable | xr.DataArray,
    *,
    subject: str | None = None,
    reduce: Literal["mean", "median"] = "median",
) -> tuple[xr.DataArray, xr.DataArray]:
    """Value of every region, of one subject or over subjects, and everyone's values.

    Parameters
    ----------
    ds
        Dataset of a store.
    variable
        Name of a variable over ``region`` and perhaps ``subject``, or such an array, as the
        estimates of one term of a mixed model.
    subject
        Subject; over all of `ds` when None.
    reduce
        ``mean`` or ``median``; missing values are left out.

    Returns
    -------
    value
        ``(region,)``, in memory.
    everyone
        ``(subject, region)``; the same as `value` where there is no choice of subjects.

    Raises
    ------
    MissingVariableError
        When there is no such variable or subject.
    StatisticsError
        When the variable has other dimensions.
    ConfigError
        When `reduce` is another word.
    """
    check_reduce(reduce)
    if isinstance(variable, xr.DataArray):
        array = variable
    elif variable in ds.variables:
        array = ds[variable]
    else:
        there = [str(n) for n, v in ds.variables.items() if "region" in v.dims and n != "region"]
        raise MissingVariableError(
            f"Dataset: no variable '{variable}'. Over regions it has: {', '.join(there) or 'none'}."
        )
    if "region" not in array.dims or not set(array.dims) <= {"subject", "region"}:
        raise StatisticsError(
            f"'{array.name}' has dims {array.dims}, expected region, or subject and region. Select "
            "one of the others, e.g. result['estimate'].sel(term='age')."
        )
    bare = array.drop_vars([c for c in array.coords if c not in array.dims])
    if subject is not None:
        if "subject" not in array.dims or subject not in array["subject"].values:
            raise MissingVariableError(f"'{array.name}': no subject '{subject}'. See ds.subject.")
        bare = bare.sel(subject=subject, drop=True)
    everyone = bare.astype(np.float64).compute()
    if "subject" not in everyone.dims:
        return everyone, everyone
    return getattr(everyone, reduce)("subject", keep_attrs=True), everyone


def plot_regions(
    ds: xr.Dataset,
    variable: Hashable | xr.DataArray,
    *,
    subject: str | None = None,
    reduce: Literal["mean", "median"] = "median",
    kind: Kind = "both",
    regions: RegionSet | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw values of regions on the cortex, in four views, and as dots, left beside right.

    Parameters
    ----------
    ds
        Dataset of a store, whose voxels say where the parcels lie.
    variable
        Name of a variable over ``region`` and perhaps ``subject``, or such an array, as the
        estimates of one term of a mixed model.
    subject
        Draw this subject; all of `ds` together when None, also those whom models leave out.
        Choose people first, e.g. ``used = ds.isel(subject=(ds["included"] &
        ~ds["extrapolated"]).values)`` (imported ages have no ``extrapolated``: leave that part
        out) and ``used.isel(subject=used.group.values == "stroke")``.
    reduce
        What the dots and colors show of several subjects: ``mean`` or ``median``. Thin lines
        are from the 10th to the 90th percentile.
    kind
        ``surface``, ``dots`` or ``both``.
    regions
        Region set; the default 18 regions when None.
    limits
        Values of the first and the last color. Default: symmetric about 0 where values have
        both signs.
    cmap
        Matplotlib color map; ``RdBu_r`` where values have both signs, else ``cividis``. Both
        are told apart in every common color vision.
    title
        Title; what is drawn when None.

    Returns
    -------
    Figure
        Matplotlib figure; a notebook shows it, ``savefig`` writes it.

    Raises
    ------
    MissingVariableError
        When there is no such variable or subject.
    StatisticsError
        When the variable has other dimensions, or no region has a value.
    TableError
        When regions are to be drawn on the cortex that the region set does not have.
    """
    if kind not in ("both", "surface", "dots"):
        raise ConfigError(f"kind: '{kind}', expected both, surface or dots.")
    value, everyone = values_of_regions(ds, variable, subject=subject, reduce=reduce)
    finite = value.values[np.isfinite(value.values)]
    if not finite.size:
        raise StatisticsError(
            f"'{value.name}': no region has a value"
            + (f" in '{subject}'." if subject else ".")
            + " Choose people who have one, e.g. those with a lesion mask."
        )
    diverging = bool(finite.min() < 0 < finite.max())
    low, high = limits or _limits(finite, diverging=diverging)
    colors = _colors(cmap or ("RdBu_r" if diverging else "cividis"))
    networks = list(dict.fromkeys(split_region(str(r))[0] for r in value["region"].values))
    label = _label(value)
    surface, dots = kind in ("both", "surface"), kind in ("both", "dots")
    top, bottom = (3.0 if surface else 0.6), (0.36 * len(networks) + 0.68 if dots else 0.0)
    with drawing.drawing():
        figure = drawing.canvas(9.6, top + bottom)
        figure.patch.set_facecolor("white")
        if surface:
            _draw_cortex(figure, ds, value, regions_of(value, regions), (low, high), colors)
            bar = drawing.panel(figure, 2.8, 2.3, 4.0, 0.11)
            drawing.color_bar(bar, colors, (low, high), label)
            bar.xaxis.label.set_color(_INK)
            bar.tick_params(colors=_GRAY, labelcolor=_INK)
        if dots:
            axes = drawing.panel(figure, 2.6, top, 6.6, 0.36 * len(networks) + 0.1)
            _draw_dots(axes, value, everyone, networks, label)
        figure.text(
            0.01,
            0.99,
            title or _title(value, everyone, subject, reduce),
            color=_INK,
            va="top",
            fontweight="bold",
            fontsize=11,
        )
    return figure


def _limits(finite: FloatArray, *, diverging: bool) -> tuple[float, float]:
    """Choose the ends of the color scale."""
    if diverging:
        size = float(np.abs(finite).max())
        return -size, size
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _colors(cmap: str) -> FloatArray:
    """Lookup table of a color map."""
    import matplotlib

    if cmap not in matplotlib.colormaps:
        raise ConfigError(f"cmap: '{cmap}' is no color map of matplotlib, as RdBu_r or cividis.")
    return np.asarray(matplotlib.colormaps[cmap](np.linspace(0, 1, 255)))[:, :3]


def _label(value: xr.DataArray) -> str:
    """Name and unit."""
    name = str(value.name)
    spec = REGISTRY.get(name)
    units = str(value.attrs.get("units", "")) if spec is None else spec.units
    words = name.replace("brain_pad", "brain-PAD").replace("_", " ")
    return f"{words}, {units}" if units not in ("", "1") else words


def _title(value: xr.DataArray, everyone: xr.DataArray, subject: str | None, reduce: str) -> str:
    """Say what is drawn."""
    name = str(value.name).replace("brain_pad", "brain-PAD").replace("_", " ")
    if subject is not None:
        return f"{name}, {subject}"
    if "subject" not in everyone.dims:
        return name
    n = int(everyone.notnull().any("region").sum())
    return f"{name}, {reduce} of {n} subjects"


def _sides(value: xr.DataArray) -> tuple[str, str]:
    """Which pair of sides the regions have."""
    names = value["region"].values.astype(str)
    unsided = [name for name in names if not split_region(name)[1]]
    if unsided:
        more = f" and {len(unsided) - 8} more" if len(unsided) > 8 else ""
        raise StatisticsError(
            f"'{value.name}': {', '.join(unsided[:8])}{more} have no side, expected names that "
            "end in _L or _R, or in _ipsilesional or _contralesional. Select those that do."
        )
    found = {split_region(name)[1] for name in names}
    for pair in _SIDES:
        if found <= set(pair):
            return pair
    raise StatisticsError(
        "Regions of sides " + ", ".join(sorted(found)) + " cannot be drawn together. Select "
        "left and right ones, or ipsi- and contralesional ones."
    )


def side_words(value: xr.DataArray) -> tuple[str, str]:
    """Name what is painted on the left and on the right hemisphere.

    Parameters
    ----------
    value
        (region,) values.

    Returns
    -------
    tuple of str
        ``("left", "right")`` or ``("ipsilesional", "contralesional")``.

    Raises
    ------
    StatisticsError
        When regions of both kinds are there.
    """
    left, right = _sides(value)
    return _WORDS.get(left, left), _WORDS.get(right, right)


def regions_of(value: xr.DataArray, regions: RegionSet | None) -> RegionSet:
    """Region set that values are drawn by.

    Parameters
    ----------
    value
        (region,) values.
    regions
        Region set; the default one when None.

    Returns
    -------
    RegionSet
        The set, which has every region of `value`.

    Raises
    ------
    TableError
        When it does not have one of them, which would not be drawn, or the values say
        (``attrs["atlas"]``) that they are of another set.
    ConfigError
        When `regions` is no region set.
    """
    chosen = regions if regions is not None else default_regions()
    check_regions(chosen, RegionSet)
    networks = {region[:-2] for region in chosen.regions}
    unknown = [r for r in value["region"].values.astype(str) if split_region(r)[0] not in networks]
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise TableError(
            f"'{value.name}': {', '.join(unknown[:8])}{more} are no regions of the set "
            f"'{chosen.name}', whose parcels are drawn. Give regions=... the RegionSet of these "
            "values; those of an atlas with an image of its own cannot be drawn so "
            "(plot_regions(kind='dots') draws them as dots)."
        )
    atlas = str(value.attrs.get("atlas") or chosen.name)
    if atlas != chosen.name:
        raise TableError(
            f"'{value.name}' has regions of '{atlas}', expected those of the set '{chosen.name}', "
            "whose parcels are drawn. Give regions=... the RegionSet of these values, or draw "
            "dots: plot_regions(kind='dots')."
        )
    return chosen


def parcel_values(value: xr.DataArray, regions: RegionSet) -> dict[int, float]:
    """Value of every parcel: the mean over the regions that it belongs to.

    Parameters
    ----------
    value
        ``(region,)``; ipsilesional regions are those of the left.
    regions
        Region set.

    Returns
    -------
    dict
        By parcel code; a region that has no value gives none.
    """
    left, _ = _sides(value)
    found: dict[int, list[float]] = {}
    for region, one in zip(value["region"].values.astype(str), value.values, strict=True):
        network, side = split_region(region)
        for code in regions.parcels.get(f"{network}_{'L' if side == left else 'R'}", ()):
            if np.isfinite(one):
                found.setdefault(int(code), []).append(float(one))
    return {code: float(np.mean(values)) for code, values in found.items()}


def _draw_cortex(
    figure: "Figure",
    ds: xr.Dataset,
    value: xr.DataArray,
    regions: RegionSet,
    limits: tuple[float, float],
    colors: FloatArray,
) -> None:
    """Four views, what belongs to no region in gray."""
    painted = parcel_values(value, regions)
    sides = side_words(value)
    at_vertex: dict[Hemisphere, FloatArray] = {}
    for hemisphere in ("left", "right"):
        codes = vertex_parcels(ds, hemisphere)
        at_vertex[hemisphere] = np.array([painted.get(int(code), np.nan) for code in codes])
    views: tuple[tuple[Hemisphere, bool, str], ...] = (
        ("left", True, f"{sides[0]}, lateral"),
        ("left", False, f"{sides[0]}, medial"),
        ("right", False, f"{sides[1]}, medial"),
        ("right", True, f"{sides[1]}, lateral"),
    )
    for i, (hemisphere, lateral, words) in enumerate(views):
        axes = drawing.panel(figure, 0.05 + i * 2.4, 0.52, 2.3, 1.65)
        picture, extent = surface_picture(
            hemisphere, lateral, at_vertex[hemisphere], limits, colors
        )
        axes.imshow(picture, extent=extent, origin="lower", interpolation="none")
        axes.set_title(words, fontsize=9.5, pad=3, color=_INK)


def _draw_dots(
    axes: "Axes",
    value: xr.DataArray,
    everyone: xr.DataArray,
    networks: list[str],
    label: str,
) -> None:
    """One row a network, one mark a side."""
    axes.set_axis_on()
    pair = _sides(value)
    where = {str(r): i for i, r in enumerate(value["region"].values)}
    for side, color, mark, shift in zip(pair, _COLORS, ("o", "s"), (-0.15, 0.15), strict=True):
        rows = [(k, where[f"{n}_{side}"]) for k, n in enumerate(networks) if f"{n}_{side}" in where]
        y = np.array([k + shift for k, _ in rows])
        at = [i for _, i in rows]
        if not np.isfinite(value.values[at]).any():
            continue
        if "subject" in everyone.dims and everyone.sizes["subject"] > 1:
            spread = everyone.transpose("subject", "region").values[:, at]
            some = np.isfinite(spread).any(axis=0)
            ends = np.nanquantile(spread[:, some], [0.1, 0.9], axis=0)
            axes.hlines(y[some], *ends, color=color, lw=1.2, alpha=0.55)
        word = _WORDS.get(side, side)
        axes.plot(value.values[at], y, mark, color=color, ms=6, label=word, clip_on=False)
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.axvline(0, color=_GRAY, lw=0.8, zorder=0)
    names = [f"{n} {NETWORKS[n]}" if n in NETWORKS else n for n in networks]
    axes.set_yticks(range(len(networks)), names)
    axes.set_ylim(len(networks) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel(label, color=_INK)
    axes.tick_params(colors=_GRAY, labelcolor=_INK)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, labelcolor=_INK, borderaxespad=0.2
    )
