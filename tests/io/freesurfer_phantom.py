"""FreeSurfer subject directories with smooth measures, written by nibabel in their real formats."""

import functools
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn import datasets
from nilearn.surface import load_surf_mesh
from scipy.spatial import ConvexHull

SIDES = {"lh": "left", "rh": "right"}
STAMP = "freesurfer-linux-ubuntu22_x86_64-{}-20230614-7eb8460"
VOLUMES = {"Left-Lateral-Ventricle": 7100.5, "Right-Thalamus": 6900.25, "Brain-Stem": 20100.0}


@functools.cache
def fsaverage5(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (radius 100) and triangles of the fsaverage5 sphere, as nilearn loads it."""
    mesh = load_surf_mesh(datasets.fetch_surf_fsaverage("fsaverage5")[f"sphere_{SIDES[side]}"])
    return np.asarray(mesh.coordinates, dtype=float), np.asarray(mesh.faces)


@functools.cache
def native_sphere(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random points on a sphere of radius 100, and triangles."""
    points = np.random.default_rng(seed).normal(size=(n, 3))
    points *= 100 / np.linalg.norm(points, axis=1, keepdims=True)
    return points, ConvexHull(points).simplices


def truth(points: np.ndarray, side: str, offset: float = 0.0) -> dict[str, np.ndarray]:
    """Every measure as a smooth function of the position on the sphere, unlike on both sides."""
    x, y, z = points.T / 100
    s = {"lh": -1.0, "rh": 1.0}[side]
    return {
        "thickness": 2.5 + 0.4 * y + 0.2 * s * x * z + offset,
        "wg_contrast": 22 + 3 * z + 2 * s * y,
        "curvature": 0.1 * x * y + 0.02 * s * z,
        "sulcal_depth": 4 * x - 3 * s * y * z,
    }


def aseg_stats(icv_mm3: float = 1_500_000.0) -> str:
    rows = "".join(
        f"{i:3d} {i + 3:3d} {int(v):8d} {v:12.3f}  {name}  80.0 10.0 20.0 120.0 100.0\n"
        for i, (name, v) in enumerate(VOLUMES.items(), start=1)
    )
    return (
        "# Title Segmentation Statistics \n# \n# generating_program mri_segstats\n"
        "# cvs_version 7.4.1\n# subjectname sub-01\n"
        "# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1150000.000000, mm^3\n"
        "# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, "
        f"{icv_mm3:f}, mm^3\n# NRows {len(VOLUMES)} \n# NTableCols 10 \n"
        "# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin "
        f"normMax normRange  \n{rows}"
    )


def write_mgh(path: Path, values: np.ndarray) -> None:
    image = nib.MGHImage(np.asarray(values, dtype=np.float32).reshape(-1, 1, 1), np.eye(4))
    image.to_filename(path)


def write_values(surf: Path, side: str, values: dict[str, np.ndarray]) -> None:
    """Write the measures of a hemisphere under the names that recon-all gives them."""
    names = {"thickness": "thickness", "curvature": "curv", "sulcal_depth": "sulc"}
    for measure, name in names.items():
        nib.freesurfer.write_morph_data(surf / f"{side}.{name}", values[measure].astype(">f4"))
    write_mgh(surf / f"{side}.w-g.pct.mgh", values["wg_contrast"])


def write_subject(
    folder: Path,
    *,
    native: tuple[int, int] | None = None,
    version: str = "7.4.1",
    icv_mm3: float = 1_500_000.0,
    offset: float = 0.0,
) -> Path:
    """A finished run: at fsaverage5 resolution, or with so many native vertices left and right.

    `offset` is added to the thickness (mm).
    """
    for name in ("scripts", "stats", "surf"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts" / "build-stamp.txt").write_text(STAMP.format(version) + "\n")
    (folder / "scripts" / "recon-all.done").write_text(
        "------------------------------\nSUBJECT sub-01\nRUNTIME_HOURS 5.2\n"
        "VERSION $Id: recon-all,v 1.580.2.16 2017/01/18 14:11:24 zkaufman Exp $\nCMDARGS -all\n"
    )
    (folder / "stats" / "aseg.stats").write_text(aseg_stats(icv_mm3))
    for i, side in enumerate(SIDES):
        points, triangles = native_sphere(native[i], i) if native else fsaverage5(side)
        write_values(folder / "surf", side, truth(points, side, offset))
        if native:
            sphere = folder / "surf" / f"{side}.sphere.reg"
            nib.freesurfer.write_geometry(sphere, points, triangles, "created by phantom")
    return folder


def zip_subject(folder: Path, archive: Path, member: str = "FreeSurfer") -> Path:
    """The same run as UK Biobank's field 20263 packs it."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, "/".join(filter(None, (member, str(path.relative_to(folder))))))
    return archive
