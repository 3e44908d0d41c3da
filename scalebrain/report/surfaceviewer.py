"""Values of regions, nodes or vertices on a cortex that is turned with the mouse."""

import base64
import json
import os
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup, escape

from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.io.fsaverage import N_SIDE, Hemisphere, read_mesh
from scalebrain.report.content import count, number
from scalebrain.report.niivue import viewer_scripts
from scalebrain.report.regionplot import (
    check_reduce,
    parcel_values,
    regions_of,
    side_words,
    values_of_regions,
)
from scalebrain.report.surface import vertex_nodes, vertex_parcels
from scalebrain.report.templating import environment, script_hash, source
from scalebrain.variables import REGISTRY

__all__ = ["SurfacePage", "view_surface"]

FloatArray = npt.NDArray[np.float64]

_GRAY = (204, 204, 204, 255)
_SIDES: tuple[Hemisphere, ...] = ("left", "right")


def view_surface(
    ds: xr.Dataset,
    array: xr.DataArray,
    *,
    subject: str | None = None,
    reduce: Literal["mean", "median"] = "median",
    regions: RegionSet | None = None,
) -> "SurfacePage":
    """Paint an array on the pial surface of fsaverage5, both hemispheres.

    Parameters
    ----------
    ds
        Dataset of a store.
    array
        Over ``region``, ``node`` or ``vertex``, and perhaps ``subject``.
    subject
        Subject that is shown; all together when None.
    reduce
        ``mean`` or ``median`` over subjects; missing values are left out.
    regions
        Region set; the default 18 regions when None.

    Returns
    -------
    SurfacePage
        Page that loads nothing from a network.

    Raises
    ------
    MissingVariableError
        When there is no such subject, or nothing says where the values lie.
    StatisticsError
        When the array has other dimensions, or no value.
    ConfigError
        When `reduce` is another word.
    """
    check_reduce(reduce)
    values = _at_vertices(ds, array, subject, reduce, regions)
    words = side_words(array) if "region" in array.dims else ("left", "right")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise StatisticsError(f"'{array.name}': no value to show. Choose people who have one.")
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    table = _colors("RdBu_r" if low < 0 < high else "cividis")
    script, vendored = source("surface.js"), viewer_scripts()
    page = environment().get_template("surface.html.j2")
    return SurfacePage(
        page.render(
            title=_title(array, subject or (reduce if "subject" in array.dims else "")),
            unit=_unit(array),
            low=number(low),
            high=number(high),
            gradient=", ".join(f"rgb({r},{g},{b})" for r, g, b, _ in table[::32].tolist()),
            shown=f"{count(finite.size)} of {count(values.size)} vertices of fsaverage5 have one.",
            simulated=str(ds.attrs.get("simulated", "false")).lower() == "true",
            data=_halves(values, (low, high), table, words),
            sides=words,
            script=script,
            vendored=vendored,
            hashes=[script_hash(script), script_hash(vendored)],
        )
    )


def _colors(name: str) -> npt.NDArray[np.uint8]:
    """Lookup table (256, 4) of a color map."""
    import matplotlib

    colors = matplotlib.colormaps[name](np.linspace(0, 1, 257))
    return np.asarray(np.rint(colors * 255), dtype=np.uint8)


def _title(array: xr.DataArray, who: str) -> str:
    """Say what is shown, and of whom."""
    feature = array.coords.get("feature")
    name = array.name if feature is None or feature.ndim else feature.item()
    words = str(name).replace("brain_pad", "brain-PAD").replace("_", " ")
    return f"{words}, {who}" if who else words


def _unit(array: xr.DataArray) -> str:
    """Say the unit; empty of a plain number."""
    spec = REGISTRY.get(str(array.name))
    unit = str(array.attrs.get("units", "")) if spec is None else spec.units
    return "" if unit == "1" else unit


def _halves(
    values: FloatArray,
    limits: tuple[float, float],
    table: npt.NDArray[np.uint8],
    words: tuple[str, str],
) -> Markup:
    """Points, triangles and colors of both hemispheres, as JSON that cannot end its element."""
    low, high = limits
    place = (values - low) / (high - low if high > low else 1.0) * (len(table) - 1)
    colors = np.full((values.size, 4), _GRAY, dtype=np.uint8)
    known = np.isfinite(values)
    colors[known] = table[np.rint(place[known]).astype(np.intp)]
    halves = []
    parts = (slice(N_SIDE), slice(N_SIDE, None))
    for side, word, own in zip(_SIDES, words, parts, strict=True):
        points, triangles = read_mesh("pial", side)
        arrays = {
            "points": points.astype("<f4"),
            "triangles": triangles.astype("<u4"),
            "colors": colors[own],
        }
        halves.append(
            {"side": side, "word": word}
            | {name: base64.b64encode(a.tobytes()).decode() for name, a in arrays.items()}
        )
    return Markup(json.dumps(halves))  # nosec B704 # noqa: S704 - base64 and four words


@dataclass(frozen=True)
class SurfacePage:
    """A page with a cortex that is turned with the mouse; a notebook shows it.

    Parameters
    ----------
    html
        The page, which loads nothing from a network.
    """

    html: str

    def save_as_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file."""
        target = Path(path)
        target.write_text(self.html, encoding="utf-8")
        return target

    def open_in_browser(self) -> Path:
        """Write the page to a temporary file, which stays, and open it."""
        handle, name = tempfile.mkstemp(prefix="scalebrain-", suffix=".html")
        os.close(handle)
        target = self.save_as_html(name)
        webbrowser.open(target.as_uri())
        return target

    def _repr_html_(self) -> str:
        """Frame with the page."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" width="820" height="620" '
            'style="border:0" title="Cortical surface"></iframe>'
        )


def _at_vertices(
    ds: xr.Dataset,
    array: xr.DataArray,
    subject: str | None,
    reduce: Literal["mean", "median"],
    regions: RegionSet | None,
) -> FloatArray:
    """Value of every vertex, left then right; NaN where there is none."""
    if "region" in array.dims:
        value, _ = values_of_regions(ds, array, subject=subject, reduce=reduce)
        painted = parcel_values(value, regions_of(value, regions))
        codes = np.concatenate([vertex_parcels(ds, side) for side in _SIDES])
        return np.array([painted.get(int(code), np.nan) for code in codes])
    dim = "node" if "node" in array.dims else "vertex"
    if not set(array.dims) <= {"subject", dim}:
        raise StatisticsError(
            f"'{array.name}' has dims {array.dims}, expected {dim}, or subject and {dim}. Select "
            "one of the others, e.g. ds['node_features'].sel(feature='thickness')."
        )
    if subject is not None:
        if "subject" not in array.dims or subject not in array["subject"].values:
            raise MissingVariableError(f"'{array.name}': no subject '{subject}'. See ds.subject.")
        array = array.sel(subject=subject)
    elif "subject" in array.dims:
        array = getattr(array, reduce)("subject")
    values = np.asarray(array.values, dtype=np.float64)
    if dim == "node":
        nodes = np.concatenate([vertex_nodes(ds, side) for side in _SIDES])
        return np.asarray(np.append(np.nan, values)[nodes])
    if values.shape != (2 * N_SIDE,):
        raise StatisticsError(
            f"'{array.name}': {values.size} vertices, expected the {2 * N_SIDE} of fsaverage5, "
            "left then right."
        )
    return values
