"""What the network reads ages from, and what a lesion alone does to them."""

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import GeometryError, ImageError, MissingVariableError
from scalebrain.io.fsaverage import Hemisphere
from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    cell,
    count,
    included_references,
    number,
    text,
)
from scalebrain.report.corticalfeatures import cortical_features
from scalebrain.report.surface import surface_figure, vertex_nodes

__all__ = ["network_section"]

FloatArray = npt.NDArray[np.float64]

_POLICIES = {
    "mask_nodes": "lesioned nodes imputed (mask_nodes)",
    "as_is": "nothing done (as_is)",
    "enantiomorphic": "filled from the other side (enantiomorphic)",
    "exclude_region": "lesioned regions left out (exclude_region)",
}
_REACHES = {
    "lesioned": "lesioned, up to 30%",
    "touched": "not lesioned, but its white matter is",
    "untouched": "not reached",
}


def network_section(ds: xr.Dataset, results: StudyResults) -> Section:
    """Show which nodes matter, and the shifts that lesions cause in healthy scans.

    Parameters
    ----------
    ds
        Store with the nodes.
    results
        Results with ``attribution`` and ``artifact``.

    Returns
    -------
    Section
        With the reason in place of what is missing.
    """
    title = "What brain age is read from, and what a lesion does to it"
    blocks = cortical_features(ds, included_references(ds))
    if results.attribution is None:
        blocks.append(Note(results.why_missing("attribution"), "missing"))
    else:
        blocks.append(_importance(ds, results.attribution))
    takeaway = "What a lesion alone does to brain age was not measured."
    if results.artifact is None:
        blocks.append(Note(results.why_missing("artifact"), "missing"))
    else:
        takeaway = _takeaway(ds, results.artifact)
        blocks.append(_table(results.artifact))
        blocks.append(
            Note(
                "Lesions of the strokes of this study were put into scans of healthy people: "
                "dark as fluid, and nothing else of the image changed. What moves is an error of "
                "the method. A real lesion also brings atrophy, mass effect and harder "
                "registration, which are not in these figures."
            )
        )
    return Section("network", title, takeaway, blocks)


def _importance(ds: xr.Dataset, found: xr.Dataset) -> Block:
    """Map of the share that every node has of its region."""
    region, inverse = np.unique(found["row_region"].values.astype(str), return_inverse=True)
    size = np.asarray(found["node_importance"].values, dtype=np.float64)
    mean = np.bincount(inverse, weights=size) / np.bincount(inverse)
    relative = size / np.where(mean > 0, mean, np.nan)[inverse]
    node = found["row_node"].values.astype(np.int64)
    known = np.isfinite(relative)
    total = np.bincount(node[known], weights=relative[known])
    rows = np.bincount(node[known])
    values = {int(n) + 1: float(total[n] / rows[n]) for n in np.flatnonzero(rows)}
    at_vertex: dict[Hemisphere, npt.NDArray[np.int64]]
    try:
        at_vertex = {"left": vertex_nodes(ds, "left"), "right": vertex_nodes(ds, "right")}
    except (GeometryError, ImageError, MissingVariableError) as error:
        return Note(f"No map of the nodes: {error}", "missing")
    top = float(np.quantile(list(values.values()), 0.98))
    svg = surface_figure(
        at_vertex,
        values,
        key="node-importance",
        limits=(0.0, max(top, 1e-9)),
        colors=_sequential(),
        label="importance of a node, 1 is the mean of its region",
        alt="Four views of the cortex, colored by how much each node matters for the age of its "
        f"region; {len(region)} regions.",
        sides=("left", "right"),
    )
    n = found["node_importance"].attrs.get("n_subjects", "")
    return Figure(
        "node-importance",
        svg,
        "Which nodes the brain age of a region comes from: the mean absolute integrated gradient "
        f"of a node over {count(n)} reference people, each explained by the network that has not "
        "seen them, divided by the mean of the region. A node of several regions shows their "
        "mean. It says what the network uses, not what ages.",
    )


def _sequential() -> FloatArray:
    """Light to dark, distinguishable in every common color vision."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#f2efe9", "#c7e0dc", "#7fbfb8", "#2f8f8a", "#0b5a5c", "#06363d"]
    table: FloatArray = LinearSegmentedColormap.from_list("share", stops)(np.linspace(0, 1, 255))
    return table[:, :3]


def _takeaway(ds: xr.Dataset, found: xr.Dataset) -> str:
    """Say what the policy of this study leaves of the artifact."""
    policy = str(ds["node_features"].attrs.get("lesion_policy", "mask_nodes"))
    if policy not in found["policy"].values:
        policy = "mask_nodes"

    def size(name: str) -> float:
        return float(found["shift_size"].sel(policy=name, reach="lesioned"))

    here, undone = size(policy), size("as_is")
    nothing = f"{number(undone, 1)} years if nothing is done"
    if not np.isfinite(here):
        words = (
            f"How far a lesion alone moves the brain-PAD of a region that it hits, as this study "
            f"treats it ({policy}), was not measured: no such region has a brain age then."
        )
        return words + (f" It moves it by {nothing}." if np.isfinite(undone) else "")
    words = (
        f"A lesion alone moves the brain-PAD of a region that it hits by {number(here, 1)} years, "
        f"up or down, as this study treats it ({policy})"
    )
    return f"{words}." if policy == "as_is" else f"{words}, and by {nothing}."


def _table(found: xr.Dataset) -> Table:
    """Shifts by policy and reach."""
    columns = [
        Column("Treatment", numeric=False),
        Column("Region", numeric=False),
        Column("Mean shift, y"),
        Column("SD, y"),
        Column("Mean size, y", hint="mean of absolute shifts"),
        Column("Largest, y"),
        Column("Slope on age, y a year"),
        Column("Pairs", hint="pairs of a scan and a region"),
    ]
    rows: list[list[Cell]] = []
    for policy in found["policy"].values.astype(str):
        for reach in found["reach"].values.astype(str):
            one = found.sel(policy=policy, reach=reach)

            def shown(name: str, digits: int, one: xr.Dataset = one) -> Cell:
                value = float(one[name])
                return cell("0" if value == 0 else number(value, digits), value)

            rows.append(
                [
                    text(_POLICIES.get(policy, policy)),
                    text(_REACHES.get(reach, reach)),
                    shown("shift_mean", 2),
                    shown("shift_sd", 2),
                    shown("shift_size", 2),
                    shown("shift_largest", 2),
                    shown("shift_slope", 3),
                    cell(count(one["n"]), float(one["n"])),
                ]
            )
    caption = (
        "Shift of the corrected brain-PAD of healthy people by lesions put into their scans. In "
        "regions that are not reached it has to be exactly 0."
    )
    return Table("artifact", caption, columns, rows)
