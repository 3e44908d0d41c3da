"""What the network reads in a study of the cortical surface: mean features of healthy people."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import ImageError
from scalebrain.features.inclusion import same_people
from scalebrain.io.fsaverage import Hemisphere
from scalebrain.report.content import Block, Figure, Note, number, plural
from scalebrain.report.surface import nodes_on_surface, surface_figure, vertex_nodes

__all__ = ["cortical_features"]

FloatArray = npt.NDArray[np.float64]

_WORDS = {
    "thickness": ("cortical thickness", "mm"),
    "wg_contrast": ("gray/white contrast", "%"),
}


def cortical_features(ds: xr.Dataset, reference: npt.NDArray[np.bool_]) -> list[Block]:
    """Map the mean of every feature over reference people.

    Parameters
    ----------
    ds
        Store; without nodes on the surface there is nothing to show.
    reference
        (subject,) who counts.

    Returns
    -------
    list
        A figure a feature.
    """
    if nodes_on_surface(ds) is None or not reference.any():
        return []
    try:
        at_vertex: dict[Hemisphere, npt.NDArray[np.int64]] = {
            "left": vertex_nodes(ds, "left"),
            "right": vertex_nodes(ds, "right"),
        }
    except ImageError as error:
        return [Note(f"No map of the features: {error}", "missing")]
    people = ds["node_features"].isel(subject=np.flatnonzero(reference))
    person = same_people(ds)[reference]
    known = people.notnull().any("node")
    both = xr.Dataset({"mean": people.mean("subject", dtype=np.float64), "known": known}).compute()
    mean, known = both["mean"], both["known"]
    return [
        _figure(
            at_vertex,
            mean.sel(feature=name).values,
            name,
            np.unique(person[known.sel(feature=name).values]).size,
        )
        for name in mean["feature"].values.astype(str)
    ]


def _figure(
    at_vertex: dict[Hemisphere, npt.NDArray[np.int64]], values: FloatArray, name: str, n: int
) -> Block:
    """Four views of one feature."""
    words, unit = _WORDS.get(name, (name.replace("_", " "), ""))
    known = values[np.isfinite(values)]
    if not known.size:
        return Note(f"No map of {words}: it is missing in every reference person.", "missing")
    low, middle, high = (float(v) for v in np.quantile(known, [0.02, 0.5, 0.98]))
    who = plural(n, "reference person", "reference people")
    svg = surface_figure(
        at_vertex,
        {i + 1: float(value) for i, value in enumerate(values)},
        key=f"feature-{name}",
        limits=(low, high if high > low else low + 1e-9),
        colors=_colors(),
        label=f"{words}, {unit}".strip(", "),
        alt=f"Four views of the cortex, left and right hemisphere, colored by the mean {words} of "
        f"{who}: median {number(middle)} {unit}, from {number(low)} to {number(high)} in 96% of "
        "the nodes.",
        sides=("left", "right"),
    )
    return Figure(
        f"feature-{name}",
        svg,
        f"Mean {words} of {who} in every node, as the network reads it; of all ages together. "
        "The left hemisphere is drawn on the left. Gray cortex belongs to no node.",
    )


def _colors() -> FloatArray:
    """Dark to light, distinguishable in every common color vision."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["cividis"](np.linspace(0, 1, 255)))[:, :3]
