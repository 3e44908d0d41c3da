"""Node features and lesion tables from the scans, by nibabel, nilearn, NumPy and pandas.

The atlases lie beside the scans as images on their grid, so that nothing has to be resampled; in
a study of one's own they would be made once. Definitions are those of docs/method.md.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from joblib import Parallel, delayed
from nilearn.image import get_data, load_img, new_img_like
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from scalebrain.atlas.parcels import node_image, nodes, parcel_image
from scalebrain.atlas.regions import default_regions
from scalebrain.atlas.space import SPACE, template_grid
from scalebrain.ingestion.geometry import static_variables

FEATURES = ("gm_mean", "t1w_mean", "t1w_sd", "contrast", "gm_contrast")
TRACTS = ("CST_L", "CST_R")
LESION = ("lesion_components", "lesion_center_x", "lesion_center_y", "lesion_center_z")


def write_atlases(folder: Path, resolution: float) -> Path:
    """Write the atlases on the grid of the scans: what both sides know before they begin."""
    grid = template_grid(resolution)
    static = static_variables(grid)
    mm = np.stack([static[a].values for a in "xyz"], axis=1).astype(np.float64)
    inverse = np.linalg.inv(grid.matrix)
    at = tuple(np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(int).T)

    def volume(values: Any, dtype: Any) -> np.ndarray:
        out = np.zeros(grid.shape, dtype=dtype)
        out[at] = values
        return out

    parcels = parcel_image(grid)
    regions = default_regions()
    member = [np.isin(parcels, list(codes)) for codes in regions.parcels.values()]
    images = {
        "brain": volume(1, np.uint8),
        "nodes": (node_image(grid) + 1).astype(np.int16),
        "white": volume(static["white_reference"].values, np.uint8),
        "regions": np.stack(member, axis=-1).astype(np.uint8),
        "tracts": np.stack(
            [volume(one, np.float32) for one in static["tract_probability"].values], axis=-1
        ),
        "parcels": parcels.astype(np.int16),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        nib.Nifti1Image(data, grid.matrix).to_filename(folder / f"{name}.nii.gz")
    centers = nodes().centroid.astype(np.float32)
    pd.DataFrame(centers, columns=list("xyz")).to_csv(folder / "nodes.csv", index=False)
    return folder


def scan(tree: Path, subject: str, kind: str) -> Path:
    """Path of an image of a subject."""
    return tree / subject / "anat" / f"{subject}_space-{SPACE}_{kind}.nii.gz"


def participants(tree: Path) -> pd.DataFrame:
    """Table of the people, indexed by subject."""
    table = pd.read_csv(tree / "participants.tsv", sep="\t", na_values="n/a")
    return table.set_index("participant_id").sort_index()


class NodeFeatures:
    """Features of the nodes of one scan after the other.

    The maskers and the list of white voxels near every node are made once.
    """

    def __init__(self, atlases: Path) -> None:
        self.image = load_img(str(atlases / "nodes.nii.gz"))
        self.labels = get_data(self.image)
        self.n = int(self.labels.max())
        self.size = np.bincount(self.labels.ravel(), minlength=self.n + 1)[1:]
        self.white = get_data(load_img(str(atlases / "white.nii.gz"))).astype(bool)
        centers = pd.read_csv(atlases / "nodes.csv").to_numpy(dtype=np.float64)
        mm = nib.affines.apply_affine(self.image.affine, np.argwhere(self.white))
        tree = cKDTree(mm)
        radius = np.maximum(10.0, tree.query(centers)[0] + 4.0)
        near = tree.query_ball_point(centers, radius)
        pairs = np.array([(i, j) for i, own in enumerate(near) for j in own])
        shape = (self.n, len(mm))
        self.near = sparse.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=shape)
        self.maskers = self._fitted(self.image)

    @staticmethod
    def _fitted(image: Any) -> tuple[Any, Any]:
        """Maskers of the mean and the SD of every label of an image."""
        options: dict[str, Any] = {
            "standardize": None,
            "resampling_target": None,  # the grids agree
            "reports": False,
        }
        return (
            NiftiLabelsMasker(image, strategy="mean", **options).fit(),
            NiftiLabelsMasker(image, strategy="standard_deviation", **options).fit(),
        )

    def of(self, t1w: Path, gm: Path, lesion: Path | None) -> np.ndarray:
        """Features (node, feature) of one scan; NaN where a node is mostly lesioned."""
        t1 = load_img(str(t1w))
        values = np.asarray(t1.dataobj, dtype=np.float64)
        grey = np.asarray(load_img(str(gm)).dataobj, dtype=np.float64)
        weight = (grey + 0.01) ** 4
        intact, (mean, sd), labels = np.ones(values.shape, dtype=bool), self.maskers, self.labels
        if lesion is not None:
            intact = np.asarray(load_img(str(lesion)).dataobj) < 0.5
            labels = np.where(intact, self.labels, 0)
            mean, sd = self._fitted(new_img_like(self.image, labels))
        series = new_img_like(t1, np.stack([values, grey, weight * values, weight], axis=-1))
        there = np.setdiff1d(np.unique(labels), [0]) - 1
        found = np.full((self.n, 4), np.nan)
        found[there] = mean.transform(series).T
        spread = np.full(self.n, np.nan)
        spread[there] = np.squeeze(sd.transform(new_img_like(t1, values)))
        white = self.white & intact
        reference = values[white].mean()
        counts = self.near @ intact[self.white].astype(np.float64)
        with np.errstate(invalid="ignore"):
            local = (self.near @ np.where(intact, values, 0)[self.white]) / counts
        own = found[:, 2] / found[:, 3]
        out = np.stack(
            [
                found[:, 1],
                found[:, 0] / reference,
                spread / reference,
                2 * (local - found[:, 0]) / (local + found[:, 0]),
                2 * (local - own) / (local + own),
            ],
            axis=1,
        )
        kept = np.bincount(labels.ravel(), minlength=self.n + 1)[1:]
        out[(1 - kept / self.size > 0.5) | ~np.isfinite(out).all(axis=1)] = np.nan
        return out


def node_features(tree: Path, atlases: Path, *, jobs: int = 1) -> np.ndarray:
    """Features (subject, node, feature) of everyone, one scan after the other."""
    work = NodeFeatures(atlases)

    def one(subject: str) -> np.ndarray:
        lesion = scan(tree, subject, "label-L_mask")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nodes that are lesioned whole have no mean
            return work.of(
                scan(tree, subject, "desc-preproc_T1w"),
                scan(tree, subject, "label-GM_probseg"),
                lesion if lesion.exists() else None,
            )

    people = participants(tree).index
    return np.stack(Parallel(n_jobs=jobs)(delayed(one)(subject) for subject in people))


@dataclass
class _Tract:
    """Probability of a tract, its section of every slice, and the distance to its core."""

    probability: np.ndarray
    area: np.ndarray
    distance: np.ndarray


def lesion_tables(tree: Path, atlases: Path) -> xr.Dataset:
    """Loads of regions and tracts, volume, side, pieces, center and frequency of the lesions."""
    masker = NiftiMasker(str(atlases / "brain.nii.gz"), standardize=None, reports=False).fit()
    brain = get_data(load_img(str(atlases / "brain.nii.gz"))).astype(bool)
    regions = masker.transform(str(atlases / "regions.nii.gz"))
    size = regions.sum(axis=1, dtype=np.float64)
    parcels = get_data(load_img(str(atlases / "parcels.nii.gz")))
    maps = load_img(str(atlases / "tracts.nii.gz"))
    zooms = maps.header.get_zooms()[:3]
    tracts = []
    for t in range(len(TRACTS)):
        p = np.asarray(maps.dataobj[..., t], dtype=np.float64)
        far = ndimage.distance_transform_edt(p < 0.5, sampling=zooms)
        tracts.append(_Tract(p, p.sum(axis=(0, 1)), far))
    table = participants(tree)
    rows, total, n_masks = [], np.zeros(int(brain.sum())), 0
    included = included_people(table)
    for subject in table.index:
        path = scan(tree, subject, "label-L_mask")
        if not path.exists():
            continue
        image = load_img(str(path))
        lesion = np.asarray(image.dataobj) >= 0.5
        row: dict[str, Any] = {"subject": subject}
        vector = np.ravel(masker.transform(image))
        row["lesion_load"] = regions @ vector / size
        voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        row["lesion_volume"] = lesion.sum() * voxel
        ijk = np.argwhere(lesion)
        mm = nib.affines.apply_affine(image.affine, ijk)
        row["lesion_hemisphere"] = side_of(mm, parcels[tuple(ijk.T)])
        within = lesion & brain
        row["lesion_components"] = ndimage.label(within, structure=np.ones((3, 3, 3)))[1]
        center = nib.affines.apply_affine(image.affine, np.argwhere(within)).mean(axis=0)
        row |= dict(zip(LESION[1:], center, strict=True))
        loads = [tract_loads(lesion, one, voxel) for one in tracts]
        names = ("tract_load", "tract_load_weighted", "tract_load_max")
        row |= dict(zip(names, np.array(loads).T, strict=True))
        row["tract_distance"] = np.array([one.distance[within].min() for one in tracts])
        if included[subject]:
            total, n_masks = total + vector, n_masks + 1
        rows.append(row)
    found = pd.DataFrame(rows).set_index("subject")
    out = xr.Dataset(coords={"subject": found.index.to_numpy(dtype=str)})
    for name in found:
        values = np.stack(list(found[name])) if found[name].dtype == object else found[name]
        if name == "lesion_hemisphere":
            values = found[name].to_numpy(dtype=str)
        dims = {"lesion_load": "region"}.get(name, "tract" if np.ndim(values) == 2 else "")
        out[name] = ("subject", dims) if dims else ("subject",), np.asarray(values)
    volume = np.zeros(brain.shape)
    volume[brain] = total / n_masks
    out["lesion_frequency"] = ("x", "y", "z"), volume
    return out


def included_people(table: pd.DataFrame) -> pd.Series:
    """Who is in the study by the table alone: a stroke is chronic beyond half a year."""
    chronic = (table["group"] != "stroke") | (table["days_post_stroke"] > 180)
    return chronic & table[["age", "sex", "icv"]].notna().all(axis=1)


def tract_loads(lesion: np.ndarray, tract: _Tract, voxel: float) -> tuple[float, float, float]:
    """Plain, weighted and largest load of one tract."""
    own = (lesion * tract.probability).sum(axis=(0, 1))
    there = tract.area > 0
    share = own[there] / tract.area[there]
    wide = tract.area[there] >= 0.05 * tract.area.max()
    return (
        own.sum() / tract.area.sum(),
        share.sum() * tract.area.max() * voxel,
        share[wide].max(),
    )


def side_of(mm: np.ndarray, parcel: np.ndarray) -> str:
    """Side of a lesion from the points of its voxels."""
    if not len(mm):
        return "none"
    x, y, z = mm.T
    left, right = (x < 0).sum(), (x > 0).sum()
    index = (left - right) / max(left + right, 1)
    stem = (np.abs(x) <= 18) & (y >= -48) & (y <= -12) & (z <= -6)
    below = (np.abs(x) <= 32) & (y >= -75) & (y <= -40) & (z <= -20)
    if (np.abs(x) <= 6).mean() > 0.5:
        return "midline"
    if ((parcel >= 91) | ((parcel == 0) & (stem | below))).mean() > 0.5:
        return "midline"
    if abs(index) < 0.8:
        return "bilateral"
    return "L" if index > 0 else "R"
