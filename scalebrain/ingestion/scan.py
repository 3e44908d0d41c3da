"""One subject: its files in, its rows of the store and what is known of them out."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import SPACE, Grid
from scalebrain.errors import GeometryError, ImageError
from scalebrain.ingestion.geometry import Geometry
from scalebrain.ingestion.lattice import lattice
from scalebrain.ingestion.lesion import Sides, read_lesion
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.rows_numba_fns import (
    compiled_type,
    gather,
    gather_linear,
    overlap_sums,
    row_range,
)
from scalebrain.io.enigma import ICV
from scalebrain.io.files import SourceFile
from scalebrain.io.nifti import Image, read_image
from scalebrain.io.shards import content_hash
from scalebrain.io.sources import Scan

__all__ = ["Rows", "read_rows"]

_MAX_NONFINITE = 0.01
_MIN_OVERLAP = 0.3
_MIN_GREY_OVERLAP = 0.2  # 16 mm off is below, someone else's cortex above
_MIRROR_MARGIN = 0.05  # people differ by half of that
_OVERLAP_VOXELS = 250_000  # more do not change the correlation's second digit
_ICV_ML = (ICV.low, ICV.high)
_LEAST_LESION = 10  # voxels: smaller lesions of two people may be alike
_NO_SIDES = Sides()


@dataclass
class Rows:
    """Rows of one subject, and its per-subject values.

    Parameters
    ----------
    images
        Rows (voxel,) or (vertex,) of every image that the subject has.
    values
        Per-subject variables, JSON-able.
    warnings
        Code and message of whatever is odd.
    """

    images: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[tuple[str, str]] = field(default_factory=list)


def read_rows(
    scan: Scan,
    geometry: Geometry | None,
    options: ReadOptions,
    *,
    sides: Sides = _NO_SIDES,
    modulated: bool = False,
) -> Rows:
    """Read the files of one subject into rows.

    Parameters
    ----------
    scan
        Files.
    geometry
        Voxels of the store; None in a store of surfaces alone.
    options
        How files are read.
    sides
        Sides of lesion and paresis by the cohort's table.
    modulated
        Grey matter is a modulated volume, which may exceed 1.

    Returns
    -------
    Rows
        Images, values and warnings.

    Raises
    ------
    ImageError, GeometryError
        With the code of the rule that was broken.
    """
    rows = Rows(
        values={
            "scan_present": scan.t1w is not None,
            "gm_present": scan.gm is not None,
            "lesion_present": scan.lesion is not None,
            "surface_present": scan.surfaces is not None,
            "scan_hash": "",
            "lesion_hash": "",
            "template_overlap": None,
            "template_overlap_mirrored": None,
            "nonfinite_fraction": None,
            "affine_residual": None,
            "lesion_volume": None,
            "lesion_hemisphere": "unknown",
            "laterality_index": None,
            "lesion_outside_fraction": None,
            "lesion_volume_change": None,
            "lesion_volume_removed": None,
            "freesurfer_version": "",
            "freesurfer_icv": None,
            "aseg": {},
        }
    )
    if geometry is not None:
        if scan.space != SPACE and (scan.t1w or scan.gm or scan.lesion):
            message = (
                f"{scan.subject}: images in {scan.space}, the store is in {SPACE}; taken as they "
                f"are. Normalize them to {SPACE} for an exact match."
            )
            rows.warnings.append(("other-template", message))
        beside: Grid | None = None
        for name, file in (("t1w", scan.t1w), ("gm", scan.gm)):
            if file is not None:
                row, own = _read_image_row(name, file, geometry, options, rows, modulated)
                rows.images[name] = row
                beside = beside or own
        if scan.lesion is not None:
            lesion = read_lesion(scan.lesion, geometry, options, sides=sides, beside=beside)
            rows.images["lesion_mask"] = lesion.row
            apart = max(rows.values["affine_residual"] or 0.0, lesion.values["affine_residual"])
            rows.values |= {**lesion.values, "affine_residual": apart}
            rows.warnings += lesion.warnings
            if np.count_nonzero(lesion.row) >= _LEAST_LESION:
                rows.values["lesion_hash"] = content_hash([lesion.row])
    if scan.surfaces is not None:
        _read_surfaces(scan.surfaces, rows)
    # of the scan, not of what was made from it: two masks of one scan are one scan
    first = next((rows.images[n] for n in ("t1w", "thickness", "gm") if n in rows.images), None)
    rows.values["scan_hash"] = "" if first is None else content_hash([first])
    return rows


def _read_image_row(
    name: str,
    file: SourceFile,
    geometry: Geometry,
    options: ReadOptions,
    rows: Rows,
    modulated: bool,
) -> tuple[npt.NDArray[np.float32], Grid]:
    """Read one image into its row, and judge it; with it, where its voxels lie."""
    image = read_image(file, volume=options.volume, assume_space=options.assume_space)
    rows.warnings += image.notes
    row, residual, resampled = image_row(image, geometry)
    rows.values["affine_residual"] = max(rows.values["affine_residual"] or 0.0, residual)
    if resampled:
        rows.warnings.append(("image-resampled", f"{file}: resampled to the store's grid, linear"))
    brain = row if geometry.inside.all() else row[geometry.inside]
    found = np.zeros(3)
    row_range(brain, found)
    n = brain.size
    bad = 1 - found[2] / n
    rows.values["nonfinite_fraction"] = max(rows.values["nonfinite_fraction"] or 0.0, float(bad))
    if bad > _MAX_NONFINITE:
        raise ImageError(
            f"{file}: {bad:.1%} of the brain is NaN, infinite or outside the image, at most "
            f"{_MAX_NONFINITE:.0%}. Write it again, over the whole brain.",
            code="nonfinite-many",
        )
    if bad:
        count = round(bad * n)
        rows.warnings.append(("nonfinite", f"{file}: {count} NaN or infinite voxels, kept missing"))
    if bad or brain.size < row.size:
        row[~np.isfinite(row)] = np.nan
    low, high = found[:2]
    if name == "gm" and not modulated and (low < -1e-3 or high > 1 + 1e-3):
        raise ImageError(
            f"{file}: values {low:.3g} to {high:.3g}, expected probabilities in 0-1. "
            "Divide by the scale that they are in.",
            code="not-probability",
        )
    if high <= low:
        raise ImageError(
            f"{file}: {low:.3g} everywhere in the brain. Write it again.", code="constant-image"
        )
    if name == "t1w":
        _judge_overlap(file, row, geometry, rows)
    else:
        _judge_grey(file, row, geometry)
    return row, Grid.canonical(image.shape, image.affine)


def image_row(image: Image, geometry: Geometry) -> tuple[npt.NDArray[np.float32], float, bool]:
    """Take the store's voxels out of an image.

    Parameters
    ----------
    image
        Image as it is in its file.
    geometry
        Voxels of the store.

    Returns
    -------
    row
        (voxel,) scaled values.
    residual
        Distance between the two grids in mm; 0 when the image was resampled.
    resampled
        Whether it lies on another grid.
    """
    to_file, residual = lattice(image.shape, image.affine, geometry.grid)
    row = np.empty(len(geometry.ijk), dtype=np.float32)
    raw = compiled_type(image.raw)
    if residual is not None:
        index = geometry.file_index(image.shape, to_file)
        gather(raw, index, image.slope, image.intercept, row)
        return row, residual, False
    gather_linear(
        raw,
        np.array(image.shape, dtype=np.int64),
        geometry.ijk,
        np.ascontiguousarray(to_file[:3]),
        image.slope,
        image.intercept,
        row,
    )
    return row, 0.0, True


def _correlation(n: float, x: float, xx: float, y: float, yy: float, xy: float) -> float:
    """Pearson's r from sums."""
    covariance = xy - x * y / n
    spread = np.sqrt(max(xx - x * x / n, 0.0) * max(yy - y * y / n, 0.0))
    return float(covariance / spread) if spread > 0 else float("nan")


def _judge_overlap(
    file: SourceFile, row: npt.NDArray[np.float32], geometry: Geometry, rows: Rows
) -> None:
    """Compare a T1w with the asymmetric template, as it is and mirrored."""
    sums = np.zeros(9)
    step = max(1, row.size // _OVERLAP_VOXELS)
    overlap_sums(row, geometry.template, geometry.mirrored, step, sums)
    n, x, xx = sums[0], sums[1], sums[2]
    given = _correlation(n, x, xx, sums[3], sums[4], sums[5])
    mirrored = _correlation(n, x, xx, sums[6], sums[7], sums[8])
    rows.values |= {"template_overlap": given, "template_overlap_mirrored": mirrored}
    if not given >= _MIN_OVERLAP:
        raise GeometryError(
            f"{file}: correlates {given:.2f} with the template's brain, expected {_MIN_OVERLAP} or "
            f"more: it is not a T1w image in {SPACE}. Normalize it to that space first.",
            code="not-in-template-space",
        )
    if mirrored > given + _MIRROR_MARGIN:
        message = (
            f"{file}: fits the template better mirrored ({mirrored:.3f}, {given:.3f} as it is). "
            "Check left and right."
        )
        rows.warnings.append(("mirrored", message))


def _judge_grey(file: SourceFile, row: npt.NDArray[np.float32], geometry: Geometry) -> None:
    """Compare grey matter with the template's."""
    sums = np.zeros(9)
    step = max(1, row.size // _OVERLAP_VOXELS)
    overlap_sums(row, geometry.grey, geometry.grey, step, sums)
    given = _correlation(*sums[:6])
    if not given >= _MIN_GREY_OVERLAP:
        raise GeometryError(
            f"{file}: correlates {given:.2f} with the template's grey matter, expected "
            f"{_MIN_GREY_OVERLAP} or more: it is no grey matter, or not in {SPACE}. Normalize it "
            "to that space first.",
            code="not-in-template-space",
        )


def _read_surfaces(source: SourceFile, rows: Rows) -> None:
    """Read cortical measures and volumes."""
    from scalebrain.io.freesurfer import read_surfaces

    surfaces = read_surfaces(source)
    for name, row in surfaces.values.items():
        for side, half in zip(("left", "right"), np.split(row, 2), strict=True):
            if np.nanmin(half) == np.nanmax(half):
                raise ImageError(
                    f"{source}: {name} is {np.nanmin(half):g} at every vertex of the {side} side. "
                    "Run recon-all again.",
                    code="constant-image",
                )
    low, high = _ICV_ML
    icv = surfaces.icv if low <= surfaces.icv <= high else float("nan")
    if np.isfinite(surfaces.icv) and np.isnan(icv):
        message = (
            f"{source}: intracranial volume {surfaces.icv:.0f} mL in aseg.stats, expected "
            f"{low:.0f} to {high:.0f}: taken as missing. Check talairach.xfm, or give icv in the "
            "table."
        )
        rows.warnings.append(("missing-covariate", message))
    rows.images |= surfaces.values
    rows.values |= {
        "freesurfer_version": surfaces.version,
        "freesurfer_icv": None if np.isnan(icv) else icv,
        "aseg": surfaces.volumes,
    }
