"""Left and right become ipsilesional and contralesional."""

import numpy as np
import xarray as xr

from scalebrain.errors import MissingVariableError
from scalebrain.variables import annotate, validate

__all__ = ["has_one_side", "to_lesional_sides"]

_SIDES = ("ipsilesional", "contralesional")


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
        When the side of the lesions is not known.

    Notes
    -----
    Images are never flipped: models run on the native hemispheres.
    """
    validate(ds, "lesion_hemisphere", way_out="Ingest lesion masks, or give the side yourself.")
    out = ds.drop_dims([d for d in ("voxel", "node", "edge", "feature") if d in ds.dims])
    side = ds["lesion_hemisphere"].astype(str)
    lesioned = {"L": side == "L", "R": side == "R"}
    relabeled: dict[str, xr.DataArray] = {}
    for dim in ("region", "tract"):
        if dim not in out.dims:
            continue
        labels = [str(v) for v in out[dim].values]
        stems = list(dict.fromkeys(label[:-2] for label in labels))
        wanted = {f"{stem}_{s}" for stem in stems for s in "LR"}
        if set(labels) != wanted:
            raise MissingVariableError(
                f"Labels of '{dim}' do not come in pairs ending in _L and _R: {labels[:6]}. "
                "Relabel only native hemispheres, once."
            )
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


def has_one_side(ds: xr.Dataset) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which subjects have a lesion of one hemisphere."""
    return np.isin(ds["lesion_hemisphere"].values.astype(str), ("L", "R"))
