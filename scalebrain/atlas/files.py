"""Atlases of a user's own: a NIfTI image of labels or probabilities with a table of names."""

import math
import re
import warnings
import zlib
from pathlib import Path
from typing import Any, TypeVar, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt

from scalebrain.atlas.atlas import ROUNDING, Atlas, check_probabilities
from scalebrain.atlas.space import Grid
from scalebrain.atlas.tables import Row, read_rows
from scalebrain.errors import DataWarning, ImageError, TableError, check_all
from scalebrain.io.nifti import Image, read_header, read_image

__all__ = ["read_atlas", "read_labels"]

_HEMISPHERES = {
    **dict.fromkeys(("l", "left", "lh"), "_L"),
    **dict.fromkeys(("r", "right", "rh"), "_R"),
    **dict.fromkeys(("", "n/a", "na", "b", "bilateral", "both", "midline"), ""),
}
_BACKGROUND = {"", "background", "unknown", "none", "outside", "unlabeled", "???", "n/a"}
_SPACE = re.compile(r"(?:^|_)(?:space|tpl)-([A-Za-z0-9+]+)")
_ENTITY = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_LOOKS_SIDED = re.compile(r"(?:^|[-_ .])(?:left|right|lh|rh|l|r)(?:[-_ .]|$)", re.IGNORECASE)
_RESOLUTION = re.compile(r"_res-[A-Za-z0-9]+")
#: Beyond so many labels of one region up to 100, an image is a probability map in percent.
_FEW_LABELS = 10

_T = TypeVar("_T", bound=np.generic)


def read_atlas(
    image: str | Path,
    table: str | Path | None = None,
    *,
    name: str | None = None,
    space: str | None = None,
) -> Atlas:
    """Read an atlas: an image of labels or of probability maps, with a table of names.

    Parameters
    ----------
    image
        NIfTI image in a template space. Of one frame: whole numbers, 0 outside; or fractions
        from 0 to 1, the probability map of one region. Of several frames: one such map a region.
    table
        A .tsv or .csv file with one row a region and the columns ``index`` (the label; of
        maps: the frame, from 0 or 1, or no such column and the rows in their order),
        ``name``, and ``hemisphere`` where the names themselves do not end in ``_L`` or
        ``_R`` (L or R, left or right, lh or rh; empty or n/a for the midline). Where none is
        given, the .tsv or .csv file of the image's name is taken if there is one, as BIDS has
        it, also without its ``res-``; else regions are called by their number.
    name
        Name of the atlas; the name of the image when not given.
    space
        Template space, e.g. ``MNI152NLin6Asym``; when not given, what the image's name says
        after ``space-`` or ``tpl-``, else ``unknown``. Nothing is warped by it.

    Returns
    -------
    Atlas
        Regions in the order of the table, with ``_L`` or ``_R`` behind the name where the
        table says so. Axes are in RAS order.

    Raises
    ------
    ImageError
        When the image cannot be read in full, has labels that are no whole numbers from 0,
        or maps that are no probabilities, as percent.
    GeometryError
        When its header has no usable orientation.
    TableError
        When the table is malformed, names a region that the image does not have, or the
        other way round.
    LateralityError
        When a region does not lie on the side that its name says.

    Warns
    -----
    DataWarning
        When nothing says left or right, so that it cannot be proved.
    """
    path = Path(image)
    stem = _ENTITY.sub("", path.name)
    said = _SPACE.search(path.name)
    space = space or (said[1] if said else "unknown")
    read_header(path, volume=0)  # names what is wrong with a header better than nibabel does
    one = math.prod(_loaded(path).shape[3:]) == 1
    stored = read_image(path) if one else None
    if stored is not None and not _is_map(_scaled(stored)):
        labels, grid = _labels_of(path, stored)
        there = [int(code) for code in np.unique(labels) if code]
        if not there:
            raise ImageError(f"{path}: no voxel has a label. Give the image of the atlas.")
        names = _label_names(path, _table_of(path, table), there)
        _warn_of_sides(path, list(names.values()))
        return Atlas(
            name or stem, grid, tuple(names.values()), tuple(names), labels=labels, space=space
        )
    maps, grid = _read_maps(path)
    regions = _map_names(path, _table_of(path, table), len(maps))
    _warn_of_sides(path, regions)
    return Atlas(name or stem, grid, tuple(regions), maps=maps, space=space)


def read_labels(image: str | Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """Read an image of labels.

    Parameters
    ----------
    image
        NIfTI image of one frame.

    Returns
    -------
    labels : ndarray
        (x, y, z) int32, axes in RAS order, cut to the voxels that have a label.
    grid : Grid
        Grid of the labels.

    Raises
    ------
    ImageError
        When it cannot be read in full, or holds anything but whole numbers from 0.
    GeometryError
        When its header has no usable orientation.
    """
    path = Path(image)
    return _labels_of(path, read_image(path))


def _scaled(stored: Image) -> npt.NDArray[Any]:
    """Values of an image as its header means them."""
    if (stored.slope, stored.intercept) == (1.0, 0.0):
        return stored.raw
    return np.asarray(stored.raw * np.float64(stored.slope) + np.float64(stored.intercept))


def _is_map(values: npt.NDArray[Any]) -> bool:
    """Whether an image of one frame is a probability map: fractions from 0 to 1."""
    if values.dtype.kind != "f":
        return False
    if not (values.min() >= -ROUNDING and values.max() <= 1 + ROUNDING):
        return False
    return bool((np.abs(values - np.rint(values)) > ROUNDING).any())


def _labels_of(path: Path, stored: Image) -> tuple[npt.NDArray[np.int32], Grid]:
    """Labels of an image, as :func:`read_labels` gives them."""
    values = _scaled(stored)
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.int32)
    unusable = (labels != values) | (labels < 0)
    if unusable.any():
        raise ImageError(
            f"{path}: {np.count_nonzero(unusable)} voxels are no labels, as "
            f"{values[unusable][0]:.6g}; expected whole numbers from 0. Take the atlas as it was "
            "published, or resample it nearest neighbor; probabilities are given as a 4-D image, "
            "one frame a region."
        )
    ordered, grid = _canonical(labels.reshape(stored.shape, order="F"), stored.affine)
    return _cropped(ordered, grid)


def _read_maps(path: Path) -> tuple[npt.NDArray[np.float32], Grid]:
    """Probability maps, region first, axes in RAS order."""
    _, affine = read_header(path, volume=0)
    try:
        stored = np.asarray(_loaded(path).dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read in full ({error}). Copy it again.") from error
    frames = np.moveaxis(stored.reshape(*stored.shape[:3], -1), -1, 0)
    low, high = float(frames.min()), float(frames.max())
    check_probabilities(str(path), low, high, _divided(path))
    if low < 0 or high > 1:
        frames = frames.clip(0, 1)
    empty = [i for i, one in enumerate(frames) if not one.any()]
    if empty:
        raise ImageError(
            f"{path}: {len(empty)} of {len(frames)} maps are empty, as that of frame {empty[0]} "
            "from 0. Take them out."
        )
    ordered = [_canonical(one, affine) for one in frames]
    return _cropped(np.stack([one for one, _ in ordered]), ordered[0][1])


def _divided(path: Path) -> str:
    """Command that makes probabilities of percent."""
    return f"fslmaths {path.name} -div 100 OUT -odt float"


def _loaded(path: Path) -> nib.spatialimages.SpatialImage:
    """Open an image whose header has been checked, of any number of frames."""
    try:
        return cast("nib.spatialimages.SpatialImage", nib.load(path))
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ImageError(
            f"{path}: cannot be opened ({error}). Let its name end in .nii.gz where it is "
            "compressed by gzip, else in .nii."
        ) from error


def _canonical(
    data: npt.NDArray[_T], affine: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[_T], Grid]:
    """Axes in the order right, anterior, superior."""
    orientation = nib.io_orientation(affine)
    return np.asarray(nib.apply_orientation(data, orientation)), Grid.canonical(data.shape, affine)


def _cropped(data: npt.NDArray[_T], grid: Grid) -> tuple[npt.NDArray[_T], Grid]:
    """Cut an image to what is not 0, and one voxel around it so that edges fade as before."""
    filled = np.asarray(data if data.ndim == 3 else data.any(axis=0), dtype=np.bool_)
    box = []
    for axis, n in enumerate(grid.shape):
        at = np.flatnonzero(np.moveaxis(filled, axis, 0).reshape(n, -1).any(axis=1))
        box.append(slice(max(int(at[0]) - 1, 0), min(int(at[-1]) + 2, n)) if at.size else slice(n))
    matrix = grid.matrix
    matrix[:3, 3] += matrix[:3, :3] @ [part.start or 0 for part in box]
    cut = np.ascontiguousarray(data[..., box[0], box[1], box[2]])
    return cut, Grid.from_matrix(cut.shape[-3:], matrix)


def _table_of(image: Path, table: str | Path | None) -> Path | None:
    """Table that is given, or that lies beside the image, of one resolution or of all."""
    if table is not None:
        return Path(table)
    stem = _ENTITY.sub("", image.name)
    stems = dict.fromkeys((stem, _RESOLUTION.sub("", stem)))
    beside = [image.with_name(one + ending) for one in stems for ending in (".tsv", ".csv")]
    return next((path for path in beside if path.is_file()), None)


def _label_names(image: Path, table: Path | None, there: list[int]) -> dict[int, str]:
    """Name of each label, in the order of the table."""
    if table is None:
        return {code: f"label-{code}" for code in there}
    if len(read_rows(table, ())) == 1 and len(there) > _FEW_LABELS and there[-1] <= 100:
        raise ImageError(
            f"{image}: {len(there)} different values up to {there[-1]}, and one row in "
            f"{table.name}, which looks like one probability map in percent; expected "
            f"probabilities in 0-1. Divide it: {_divided(image)}. If these are labels, write one "
            "row each."
        )
    names: dict[int, str] = {}
    failures = []
    for row in read_rows(table, ("index", "name")):
        index = row.cells["index"]
        code = _whole(index)
        if code == 0 and row.cells["name"].lower() in _BACKGROUND:
            continue
        if code <= 0 or code in names:
            what = "is there twice" if code in names else "is no label: expected 1 or more"
            failures.append(f"{table}: line {row.line}: index '{index}' {what}. Correct it.")
            continue
        names[code] = _name(table, row, failures)
    check_all(failures, TableError, f"{table}: rows that are not usable")
    unnamed = [str(code) for code in there if code not in names]
    absent = [f"{name} ({code})" for code, name in names.items() if code not in set(there)]
    if unnamed:
        failures.append(
            f"{table}: no row for {len(unnamed)} labels of {image.name}: {_some(unnamed)}. Add "
            "them, or set these voxels to 0."
        )
    if absent:
        failures.append(
            f"{table}: {len(absent)} rows without a voxel in {image.name}: {_some(absent)}. Take "
            "them out, or give the image that the table belongs to."
        )
    check_all(failures, TableError, f"{table}: does not fit {image.name}")
    return names


def _map_names(image: Path, table: Path | None, n_maps: int) -> list[str]:
    """Name of each map, in the order of the frames."""
    if table is None:
        return [f"map-{i}" for i in range(n_maps)]
    rows = read_rows(table, ("name",))
    failures: list[str] = []
    if "index" in rows[0].cells:
        indices = [row.cells["index"] for row in rows]
        frames = [_whole(index) for index in indices]
        if frames not in ([*range(len(rows))], [*range(1, len(rows) + 1)]):
            failures.append(
                f"{table}: index {_some(indices)}; expected the frames of {image.name} in order, "
                "from 0 or from 1. Sort the rows so."
            )
    names = [_name(table, row, failures) for row in rows]
    if len(names) != n_maps:
        failures.append(
            f"{table}: {len(names)} rows, {image.name} has {n_maps} maps. Write one row a map, in "
            "their order."
        )
    check_all(failures, TableError, f"{table}: does not fit {image.name}")
    return names


def _whole(index: str) -> int:
    """Read an index, 1 or 1.0; -1 when it is none."""
    return int(float(index)) if re.fullmatch(r"[0-9]{1,10}(\.0)?", index) else -1


def _name(table: Path, row: Row, failures: list[str]) -> str:
    """Name of a region, its side behind it where the row has a hemisphere."""
    name = row.cells["name"]
    hemisphere = row.cells.get("hemisphere", row.cells.get("hemi", ""))
    side = _HEMISPHERES.get(hemisphere.lower())
    where = f"{table}: line {row.line}:"
    if not name:
        failures.append(f"{where} no name. Give the region one.")
    elif side is None:
        failures.append(f"{where} hemisphere '{hemisphere}', expected L, R or n/a. Correct it.")
    elif side and name[-2:] in ("_L", "_R") and name[-2:] != side:
        failures.append(f"{where} '{name}' in hemisphere '{hemisphere}'. Correct one of them.")
    return name if not side or name.endswith(side) else name + side


def _warn_of_sides(path: Path, regions: list[str]) -> None:
    """Say that sides are not proved where they seem to be meant."""
    unsided = [region for region in regions if region[-2:] not in ("_L", "_R")]
    meant = [region for region in unsided if _LOOKS_SIDED.search(region)]
    if meant or len(unsided) == len(regions):
        of = f" of {len(meant)} regions, as {meant[0]}," if meant else ""
        warnings.warn(
            f"{path}: left and right{of} cannot be proved: no hemisphere is given, and the names "
            "do not end in _L or _R. Add a column hemisphere to the table.",
            DataWarning,
            stacklevel=3,
        )


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:12])
    return f"{shown} and {len(items) - 12} more" if len(items) > 12 else shown
