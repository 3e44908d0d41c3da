"""Statistics of images over the regions of an atlas, straight from their files."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import check_regions
from scalebrain.atlas.space import Grid
from scalebrain.errors import ConfigError, GeometryError, ScalebrainError, TableError, check_all
from scalebrain.features.parcellation import (
    STATISTICS,
    Statistic,
    check_nan,
    checked_statistics,
    quantiles_of,
    statistic_of,
    statistics_dataset,
)
from scalebrain.features.parcellation_numba_fns import (
    COUNT,
    MEAN,
    N_MOMENTS,
    add_file_sums,
    gathered_moments,
    weighted_moments,
)
from scalebrain.features.segments import Segments, segments_of_labels, segments_of_maps
from scalebrain.ingestion.rows_numba_fns import compiled_type, gather
from scalebrain.io.nifti import Image, read_image

__all__ = ["parcellate_files"]

logger = logging.getLogger(__name__)

_FILES_A_BLOCK = 8


def parcellate_files(
    files: Sequence[str | Path] | str | Path,
    *,
    regions: Atlas,
    subjects: Sequence[str] | None = None,
    statistics: Sequence[Statistic] = ("mean",),
    quantiles: Sequence[float] | float = (),
    nan: Literal["omit", "propagate"] = "omit",
    errors: Literal["raise", "record"] = "raise",
) -> xr.Dataset:
    """Statistics of images over every region of an atlas, without a store.

    Parameters
    ----------
    files
        NIfTI images, or one, of three dimensions in the atlas' space, on any grid and in any
        orientation.
    regions
        Atlas of labels or of probability maps; it is resampled to each grid, labels to the
        nearest neighbor.
    subjects
        Name of each file along ``subject``; the names of the files when None.
    statistics
        Any of ``count``, ``mean``, ``variance``, ``sd``, ``minimum``, ``maximum``, ``median``.
    quantiles
        Probabilities in [0, 1].
    nan
        As for :func:`~scalebrain.parcellate`.
    errors
        ``raise`` the first file that cannot be read; or ``record`` it, with NaN in its row,
        ``image_read`` False, and the reason in the log.

    Returns
    -------
    Dataset
        ``image_{statistic} (subject, region)``, ``image_quantile (subject, region, quantile)``
        and ``image_read (subject)``; lazy: a block of files is read when it is computed, by
        Dask's threads or workers.

    Raises
    ------
    ImageError, GeometryError
        When a file cannot be read in full, or its grid leaves out a region of the atlas; only
        once it is computed.
    TableError
        When two subjects have one name.
    ConfigError
        When a statistic, quantile, `nan` or `errors` is unknown, or `regions` is no atlas.

    Notes
    -----
    Definitions are those of :func:`~scalebrain.parcellate`. Values are scaled as the header
    says and rounded to float32. The images are taken as being in the atlas' space: nothing
    here proves it, as the ingest does.
    """
    import dask.array as da
    from dask.delayed import delayed

    check_regions(regions, Atlas)
    check_nan(nan)
    if errors not in ("raise", "record"):
        raise ConfigError(f"errors is '{errors}': expected raise or record.")
    names, q = checked_statistics(statistics, quantiles)
    if regions.maps is not None and (q.size or "median" in names):
        raise ConfigError(
            f"Atlas '{regions.name}' has probability maps: quantiles are not defined for them. "
            "Leave them out."
        )
    several = [files] if isinstance(files, str | Path) else files
    paths = [Path(file) for file in several]
    if not paths:
        raise TableError("No file is given.")
    labels = [path.name for path in paths] if subjects is None else list(subjects)
    repeated = sorted({name for name in labels if labels.count(name) > 1})
    check_all(
        [f"'{name}' names {labels.count(name)} files. Give subjects=..." for name in repeated],
        TableError,
        "Subjects are not unique",
    )
    if len(labels) != len(paths):
        raise TableError(f"{len(paths)} files, but {len(labels)} subjects. Name each file once.")
    atlas = delayed(regions, pure=True, traverse=False)
    read = delayed(_block, pure=True)
    n_out = len(names) + q.size
    blocks = []
    for start in range(0, len(paths), _FILES_A_BLOCK):
        some = paths[start : start + _FILES_A_BLOCK]
        shape = (len(some), len(regions.regions), n_out + 1)
        block = read(atlas, some, names, tuple(q), nan == "propagate", errors == "record")
        blocks.append(da.from_delayed(block, shape=shape, dtype=np.float64))
    numbers = da.concatenate(blocks)
    found = xr.DataArray(
        numbers[..., :-1],
        dims=("subject", "region", "statistic"),
        coords={"subject": labels},
    )
    out = statistics_dataset(
        found, "image", {}, "region", regions.regions, names, q, regions.name, regions.sha256
    )
    about = {"long_name": "The image could be read"}
    out["image_read"] = ("subject", numbers[:, 0, -1] == 1, about)
    return out


def _block(
    atlas: Atlas,
    paths: Sequence[Path],
    names: tuple[str, ...],
    quantiles: tuple[float, ...],
    propagate: bool,
    record: bool,
) -> npt.NDArray[np.float64]:
    """Statistics (file, region, statistic) of some files; the last is 1 where it was read."""
    out = np.full((len(paths), len(atlas.regions), len(names) + len(quantiles) + 1), np.nan)
    for row, path in zip(out, paths, strict=True):
        try:
            row[:, :-1] = _statistics(read_image(path), path, atlas, names, quantiles, propagate)
            row[:, -1] = 1
        except ScalebrainError as error:
            if not record:
                raise
            logger.warning("%s", error)
    return out


def _statistics(
    image: Image,
    path: Path,
    atlas: Atlas,
    names: tuple[str, ...],
    quantiles: tuple[float, ...],
    propagate: bool,
) -> npt.NDArray[np.float64]:
    """Statistics (region, statistic) of an image."""
    where = _segments(atlas, image.shape, tuple(image.affine.ravel().tolist()))
    size = where.size
    if not size.all():
        empty = [str(r) for r, n in zip(where.names, size, strict=True) if not n]
        raise GeometryError(
            f"{path}: {len(empty)} regions of atlas '{atlas.name}' have no voxel on its grid, as "
            f"{', '.join(empty[:4])}. It is cropped, too coarse, or in another space."
        )
    order = cast("npt.NDArray[np.uint32]", where.order)  # an atlas is always gathered
    raw = compiled_type(image.raw)
    level = max(1, *(STATISTICS[name] for name in names)) if names else 1
    found = np.empty((1, len(size), N_MOMENTS))
    sums = np.full(len(size), np.nan)
    if where.weights is None and level == 1:
        sums[:] = 0
        add_file_sums(raw, *where.blocks, sums)
        found[0, :, COUNT] = size
        found[0, :, MEAN] = sums / size * image.slope + image.intercept
    if not np.isnan(sums).any():
        pass  # every voxel has a value
    elif where.weights is None:
        gathered_moments(
            raw[None], order, where.starts, where.stops, image.slope, image.intercept, level,
            found,
        )  # fmt: skip
    else:
        row = np.empty(raw.size, dtype=np.float32)
        gather(raw, np.arange(raw.size, dtype=np.uint32), image.slope, image.intercept, row)
        weighted_moments(row[None], order, where.weights, where.starts, where.stops, found)
    if propagate:
        found[found[..., COUNT] < size, MEAN:] = np.nan
    out = np.empty((len(size), len(names) + len(quantiles)))
    wanted = np.array([*([0.5] if "median" in names else []), *quantiles])
    q = np.empty((len(size), 0))
    if wanted.size:
        values = np.empty(order.size, dtype=np.float32)
        gather(raw, order, image.slope, image.intercept, values)
        gathered = replace(where, order=None, label=None)
        q = quantiles_of(values[None], gathered, wanted, propagate=propagate)[0]
    for i, name in enumerate(names):
        out[:, i] = q[:, 0] if name == "median" else statistic_of(found, name)[0]
    out[:, len(names) :] = q[:, wanted.size - len(quantiles) :]
    return out


@functools.lru_cache(maxsize=4)
def _segments(atlas: Atlas, shape: tuple[int, int, int], affine: tuple[float, ...]) -> Segments:
    """Where the regions lie in files of a grid, whose first axis runs fastest."""
    grid = Grid(shape, affine)
    if atlas.labels is not None:
        return segments_of_labels(atlas, atlas.labels_on(grid).ravel(order="F"))
    return segments_of_maps(
        atlas, (atlas.map_on(i, grid).ravel(order="F") for i in range(len(atlas.regions)))
    )
