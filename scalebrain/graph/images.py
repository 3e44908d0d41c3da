"""What images a model was trained on, beside the space, and whether other data are like them."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from scalebrain.errors import DataWarning, ModelFileError

if TYPE_CHECKING:
    from scalebrain.graph.model import BrainAgeModel

__all__ = ["check_images", "images_of", "voxel_text"]

_GREY = "gm_"
#: Voxels whose sides differ by more than this part are others.
_TOLERANCE = 0.01


def images_of(ds: xr.Dataset) -> dict[str, Any]:
    """Describe the images that nodes of the volume are made of.

    Parameters
    ----------
    ds
        Store with node features.

    Returns
    -------
    dict
        ``voxel_size``, three sides in mm, and ``gm_modulated``; what is not known, or is of no
        account as the nodes are those of a surface, is not there.
    """
    found: dict[str, Any] = {}
    if str(ds["node_features"].attrs.get("nodes", "volume")) != "volume":
        return found
    affine = ds.attrs.get("affine", ds["x"].attrs.get("affine") if "x" in ds.variables else None)
    if affine is not None:
        matrix = np.reshape(np.asarray(affine, dtype=np.float64), (4, 4))[:3, :3]
        found["voxel_size"] = [round(float(side), 6) for side in np.linalg.norm(matrix, axis=0)]
    if "gm_modulated" in ds.attrs:
        found["gm_modulated"] = bool(ds.attrs["gm_modulated"])
    return found


def check_images(ds: xr.Dataset, model: "BrainAgeModel") -> None:
    """Refuse a model of other grey matter, and tell of one of other voxels.

    Parameters
    ----------
    ds
        Store with node features.
    model
        Model; one of an earlier version does not say what its images were.

    Raises
    ------
    ModelFileError
        When the model takes grey matter, and that of `ds` is modulated and the model's not, or
        the other way round.

    Warns
    -----
    DataWarning
        When the voxels are of another size.
    """
    ours, theirs = images_of(ds), model.about
    modulated, expected = ours.get("gm_modulated"), theirs.get("gm_modulated")
    takes_grey = any(name.startswith(_GREY) for name in model.features)
    if takes_grey and None not in (modulated, expected) and modulated != expected:
        raise ModelFileError(
            f"The model was trained on {_kind(expected)} grey matter, that of the data is "
            f"{_kind(modulated)}: the ages would be off by years. Ingest images of that kind, or "
            "train a model on these."
        )
    size, known = ours.get("voxel_size"), theirs.get("voxel_size")
    if size is not None and known is not None and not np.allclose(size, known, rtol=_TOLERANCE):
        warnings.warn(
            f"The model was trained on voxels of {voxel_text(known)}, the data have "
            f"{voxel_text(size)}: node features depend on the size, and the ages may be off by a "
            "year or more. Ingest with the resolution of the model, or compare the ages of healthy "
            "people first (site_shift).",
            DataWarning,
            stacklevel=4,
        )


def voxel_text(size: Any) -> str:
    """Sides of a voxel in words; one where they are equal."""
    sides = [f"{side:g}" for side in size]
    return f"{sides[0] if len(set(sides)) == 1 else ' x '.join(sides)} mm"


def _kind(modulated: Any) -> str:
    """Kind of grey matter, in a word."""
    return "modulated" if modulated else "unmodulated"
