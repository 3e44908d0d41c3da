"""What a Dataset holds, in a few lines: cheap, lazy, as text and for a notebook."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from markupsafe import escape

from scalebrain.features.inclusion import same_people
from scalebrain.graph.imported import imported_from
from scalebrain.report.content import and_list, plural, span, text_values

__all__ = ["Summary", "summary"]

_RESULTS = {
    "node_features": "node features",
    "lesion_load": "lesion loads of regions",
    "tract_load": "tract loads",
    "lesion_frequency": "lesion frequency map",
    "brain_age": "regional brain ages",
    "brain_age_global": "brain age of the whole brain",
    "brain_pad_corrected": "corrected brain-PAD",
    "brain_pad_corrected_harmonized": "harmonized brain-PAD",
    "brain_age_centile": "centiles",
}
_IMAGES = ("t1w", "gm", "lesion_mask", "thickness", "wg_contrast")


@dataclass(frozen=True)
class Summary:
    """Lines of a name and what is to be said of it.

    Parameters
    ----------
    title
        Heading.
    lines
        Name and text; plain text, which HTML escapes.
    caution
        What has to be known before anything else; may be empty.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    caution: str = ""

    def __str__(self) -> str:
        """Lines of text."""
        width = max((len(name) for name, _ in self.lines), default=0)
        shown = [f"{name:<{width}}  {words}" for name, words in self.lines]
        return "\n".join([self.title, *([self.caution] if self.caution else []), *shown])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Table for a notebook."""
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{escape(name)}</th>'
            f'<td style="text-align:left">{escape(words)}</td></tr>'
            for name, words in self.lines
        )
        caution = f"<p><strong>{escape(self.caution)}</strong></p>" if self.caution else ""
        return (
            f"<div><p><strong>{escape(self.title)}</strong></p>{caution}<table>{rows}</table></div>"
        )


def summary(ds: xr.Dataset) -> Summary:
    """Say who is in a Dataset, what they have, and which results.

    Parameters
    ----------
    ds
        Dataset of a store. Only values of whole subjects are read, never an image.

    Returns
    -------
    Summary
        Printed as text, shown as a table in a notebook.

    Examples
    --------
    >>> import xarray as xr
    >>> summary(xr.Dataset({"age": ("subject", [50.0, 61.5])}))
    Scalebrain Dataset of 2 subjects
    age, years  50.0 to 61.5
    """
    n = ds.sizes.get("subject", 0)
    lines: list[tuple[str, str]] = []
    for name in ("group", "cohort", "sex", "dataset"):
        if name in ds and ds[name].dims == ("subject",):
            lines.append((name, _counts(ds[name])))
    if "person" in ds and (n_people := np.unique(same_people(ds)).size) != n:
        lines.append(("people", str(n_people)))
    if "age" in ds:
        lines.append(("age, years", span(ds["age"].values)))
    flags = {
        "scan_present": "scans",
        "lesion_present": "lesion masks",
        "included": "included",
        "surface_present": "cortical surfaces",
    }
    for flag, words in flags.items():
        if flag in ds and ds[flag].dims == ("subject",):
            some = int(np.asarray(ds[flag].values).astype(bool).sum())
            if some or flag != "surface_present":
                lines.append((words, f"{some} of {n}"))
    images = [f"{name} {_size(ds[name])}" for name in _IMAGES if name in ds]
    if images:
        lines.append(("images", f"{', '.join(images)} unpacked"))
    if "space" in ds.attrs:
        lines.append(("space", str(ds.attrs["space"])))
    sizes = [
        f"{ds.sizes[d]} {d}"
        for d in ("voxel", "vertex", "node", "region", "tract")
        if d in ds.sizes
    ]
    if sizes:
        lines.append(("sizes", ", ".join(sizes)))
    results = [words for name, words in _RESULTS.items() if name in ds]
    if results:
        lines.append(("results", and_list(results, limit=len(results))))
    if tool := imported_from(ds):
        lines.append(("ages of", tool))
    simulated = str(ds.attrs.get("simulated", "false")).lower() == "true"
    caution = "Simulated data: nobody was scanned." if simulated else ""
    return Summary(f"Scalebrain Dataset of {plural(n, 'subject')}", tuple(lines), caution)


def _counts(array: xr.DataArray, limit: int = 12) -> str:
    """Levels of a text and how many have each, the largest first."""
    names, counts = np.unique(text_values(array).astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{names[i] or 'not known'} {counts[i]}" for i in order[:limit]]
    rest = [f"{len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(shown + rest)


def _size(array: xr.DataArray) -> str:
    """Size in memory if all of it were loaded."""
    size = float(array.nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
