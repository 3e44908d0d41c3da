"""One subject: its files in, its rows of the store and what is known of its lesion out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import Grid
from scalebrain.errors import GeometryError, ImageError
from scalebrain.io.bids import Scan
from scalebrain.io.nifti import Image, read_image
from scalebrain.io.store import row_hash

__all__ = ["LATERALITY_THRESHOLD", "Rows", "lesion_side", "read_rows"]

#: A lesion is unilateral when its laterality index is at least this far from zero.
LATERALITY_THRESHOLD = 0.8
_MIDLINE_MM = 6.0
_CEREBELLUM = 91  # first AAL code of the cerebellum


@dataclass
class Rows:
    """Rows of one subject, and its per-subject values.

    Parameters
    ----------
    images
        Rows (voxel,) of every image that the subject has.
    values
        Per-subject variables, JSON-able.
    """

    images: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def _check_grid(scan: Scan, path: object, image: Image, grid: Grid) -> None:
    """Refuse an image on another grid than the store's."""
    found = Grid.from_matrix(image.data.shape, image.affine)
    difference = grid.difference(found)
    if difference:
        raise GeometryError(
            f"{scan.subject}: {path} is on another grid: {difference}. Resample it to the grid of "
            "the cohort's T1w images (nilearn.image.resample_to_img; nearest for masks)."
        )


def _finite(scan: Scan, path: object, values: npt.NDArray[np.float32]) -> None:
    """Refuse an image with missing or infinite values in the brain."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ImageError(
            f"{scan.subject}: {path} has {bad} NaN or infinite voxels in the brain. Write it again."
        )


def lesion_side(x: npt.NDArray[np.floating], parcel: npt.NDArray[np.integer]) -> tuple[str, float]:
    """Side of a lesion.

    Parameters
    ----------
    x
        (lesion voxel,) mm, right positive.
    parcel
        (lesion voxel,) parcel codes.

    Returns
    -------
    str
        ``L``, ``R``, ``bilateral``, ``midline`` (most of it within 6 mm of the midline, or
        in the cerebellum) or ``none``.
    float
        Laterality index, (left - right) / (left + right); NaN without a lesion.
    """
    left, right = int(np.count_nonzero(x < 0)), int(np.count_nonzero(x > 0))
    if x.size == 0:
        return "none", float("nan")
    index = (left - right) / (left + right) if left + right else 0.0
    if np.mean(np.abs(x) <= _MIDLINE_MM) > 0.5 or np.mean(parcel >= _CEREBELLUM) > 0.5:
        return "midline", index
    if abs(index) < LATERALITY_THRESHOLD:
        return "bilateral", index
    return ("L" if index > 0 else "R"), index


def read_rows(
    scan: Scan,
    grid: Grid,
    flat: npt.NDArray[np.intp],
    parcel: npt.NDArray[np.integer],
) -> Rows:
    """Read the files of one subject into rows.

    Parameters
    ----------
    scan
        Files.
    grid
        Grid of the store.
    flat
        (voxel,) flat index of every stored voxel.
    parcel
        (voxel,) parcel codes.

    Returns
    -------
    Rows
        Images and values.

    Raises
    ------
    ImageError, GeometryError
        Naming the subject and the file.
    """
    rows = Rows(
        values={
            "scan_present": scan.t1w is not None,
            "lesion_present": scan.lesion is not None,
            "scan_hash": "",
            "lesion_volume": None,
            "lesion_hemisphere": "unknown",
            "laterality_index": None,
        }
    )
    for name, path in (("t1w", scan.t1w), ("gm", scan.gm)):
        if path is None:
            continue
        image = read_image(path)
        _check_grid(scan, path, image, grid)
        values = image.data.ravel()[flat]
        _finite(scan, path, values)
        if name == "gm" and (values.min() < -1e-3 or values.max() > 1 + 1e-3):
            raise ImageError(
                f"{scan.subject}: {path} has values {values.min():.3g} to {values.max():.3g}, "
                "expected probabilities in 0-1."
            )
        if values.max() <= values.min():
            raise ImageError(f"{scan.subject}: {path} is constant in the brain.")
        rows.images[name] = values
    if scan.lesion is not None:
        _read_lesion(scan, grid, flat, parcel, rows)
    rows.values["scan_hash"] = row_hash(list(rows.images.values()))
    return rows


def _read_lesion(
    scan: Scan,
    grid: Grid,
    flat: npt.NDArray[np.intp],
    parcel: npt.NDArray[np.integer],
    rows: Rows,
) -> None:
    """Read the lesion mask: row, whole volume, side."""
    path = scan.lesion
    if path is None:
        return
    image = read_image(path)
    _check_grid(scan, path, image, grid)
    if not np.isfinite(image.data).all() or image.data.min() < 0:
        raise ImageError(
            f"{scan.subject}: {path} has negative or missing values, expected a mask of 0 and 1."
        )
    highest = float(image.data.max())
    mask = image.data >= (0.5 if highest <= 1 else highest / 2)
    labels = np.unique(image.data[image.data > 0]) if highest > 1 else np.array([])
    if labels.size > 1:
        raise ImageError(
            f"{scan.subject}: {path} has {labels.size} labels, expected one lesion mask. "
            "Write the lesion alone."
        )
    row = mask.ravel()[flat]
    if row.mean() > 0.5:
        raise ImageError(
            f"{scan.subject}: {path} covers {row.mean():.0%} of the brain: inverted? "
            "The lesion has to be 1, the rest 0."
        )
    lesioned = np.flatnonzero(mask)
    parcel_of = np.zeros(grid.size, dtype=np.int32)
    parcel_of[flat] = parcel
    side, index = lesion_side(grid.coordinates(lesioned)[:, 0], parcel_of[lesioned])
    rows.images["lesion_mask"] = row
    rows.values |= {
        "lesion_volume": lesioned.size * grid.voxel_volume / 1000,
        "lesion_hemisphere": side,
        "laterality_index": None if np.isnan(index) else index,
    }
