"""Left and right become ipsilesional and contralesional."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import texts
from scalebrain.variables import annotate, validate

__all__ = ["has_one_side", "lesioned_sides", "to_lesional_sides"]

_SIDES = ("ipsilesional", "contralesional")
_KNOWN = ("L", "R", "bilateral", "midline", "none", "unknown", "")


def to_lesional_sides(ds: xr.Dataset) -> xr.Dataset:
    """Relabel every region and tract by the side of the lesion.

    Parameters
    ----------
    ds
        Dataset with ``lesion_hemisphere (subject)`` and dims ``region`` or ``tract`` whose
        labels end in ``_L`` and ``_R``.

    Returns
    -------
    Dataset
        The same without voxel, node and edge variables; labels end in ``_ipsilesional``
        and ``_contralesional``. A subject whose lesion has no single side (bilateral,
        midline, none, unknown) is missing there; ``lesion_hemisphere`` says why. Variables
        over region or tract alone, such as ``calibration_slope``, become per-subject; those of
        text over region or tract are left out.

    Raises
    ------
    MissingVariableError
        When the side of the lesions is not known, or a label has no partner of the other side.
    StatisticsError
        When a side is written otherwise.

    Notes
    -----
    Images are never flipped: models run on the native hemispheres.
    """
    validate(ds, "lesion_hemisphere", way_out="Ingest lesion masks, or give the side yourself.")
    out = ds.drop_dims([d for d in ("voxel", "node", "edge", "feature") if d in ds.dims])
    side = xr.DataArray(lesioned_sides(ds), dims="subject")
    lesioned = {"L": side == "L", "R": side == "R"}
    relabeled: dict[str, xr.DataArray] = {}
    for dim in ("region", "tract"):
        if dim not in out.dims:
            continue
        labels = [str(v) for v in out[dim].values]
        stems = list(dict.fromkeys(label[:-2] for label in labels))
        wanted = {f"{stem}_{s}" for stem in stems for s in "LR"}
        if set(labels) != wanted:
            raise MissingVariableError(_unpaired(dim, labels))
        names = [f"{stem}_{s}" for stem in stems for s in _SIDES]
        left = [f"{stem}_{s}" for stem in stems for s in ("L", "R")]
        right = [f"{stem}_{s}" for stem in stems for s in ("R", "L")]
        for name, array in out.data_vars.items():
            if dim not in array.dims or array.dtype.kind not in "fiub":
                continue
            new = {dim: names}
            if_left = array.sel({dim: left}).assign_coords(new)
            if_right = array.sel({dim: right}).assign_coords(new)
            merged = xr.where(lesioned["L"], if_left, if_right)
            merged = merged.where(lesioned["L"] | lesioned["R"])
            order = ["subject", *[d for d in array.dims if d != "subject"]]
            relabeled[str(name)] = merged.transpose(*order).assign_attrs(array.attrs)
        out = out.drop_dims(dim)
    result = out.assign(relabeled)
    result.attrs = {**ds.attrs, "sides": "lesional"}
    return annotate(result)


def lesioned_sides(
    ds: xr.Dataset, needed: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.str_]:
    """Read the side of the lesion of everyone, as the store writes it.

    Parameters
    ----------
    ds
        Dataset with ``lesion_hemisphere (subject)``.
    needed
        (subject,) whose side is used; everyone's when None. Another value is missing in the
        others.

    Returns
    -------
    ndarray
        (subject,) L, R, bilateral, midline, none, unknown, or empty where it is missing.

    Raises
    ------
    StatisticsError
        When another value is there.
    """
    side = texts(ds, "lesion_hemisphere")
    other = ~np.isin(side, _KNOWN)
    if needed is not None:
        side[other & ~needed] = ""
        other &= needed
    if other.any():
        labels = ds["subject"].values[other] if "subject" in ds.coords else np.flatnonzero(other)
        raise StatisticsError(
            f"lesion_hemisphere: expected {', '.join(_KNOWN[:-1])} or missing, got "
            f"{_listed(np.unique(side[other]))} in {int(other.sum())} subjects, as {labels[0]}. "
            "Write L or R."
        )
    return side


def has_one_side(ds: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which subjects have a lesion of one hemisphere."""
    return np.isin(lesioned_sides(ds), ("L", "R"))


def _unpaired(dim: str, labels: list[str]) -> str:
    """Say which labels have no partner of the other side."""
    start = f"Labels of '{dim}' do not come in pairs ending in _L and _R: "
    again = [label for label in labels if label.endswith(tuple(f"_{side}" for side in _SIDES))]
    if again:
        return f"{start}{_listed(again)}. Relabel only native hemispheres, once."
    partner = {"_L": "_R", "_R": "_L"}
    there = set(labels)
    alone = [s for s in labels if s[:-2] + partner.get(s[-2:], "?") not in there]
    return (
        f"{start}without a partner are {_listed(alone)}. Leave such labels out before the measures "
        f"are made, with atlas.without(...), or here, with ds.drop_sel({dim}=[...])."
    )


def _listed(values: Any) -> str:
    shown = ", ".join(f"'{value}'" for value in list(values)[:6])
    return shown + (f" and {len(values) - 6} more" if len(values) > 6 else "")
