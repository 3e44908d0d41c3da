"""The fsaverage5 template that nilearn ships: meshes and values, by vertex."""

import functools
import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scalebrain.errors import ImageError

__all__ = ["N_SIDE", "Hemisphere", "read_map", "read_mesh"]

Hemisphere = Literal["left", "right"]

#: Vertices of one hemisphere of fsaverage5.
N_SIDE = 10242

_MAPS = {"thickness": "thick", "curvature": "curv", "sulcal_depth": "sulc"}


def read_mesh(
    kind: Literal["pial", "white", "sphere"], hemisphere: Hemisphere
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Read a mesh of fsaverage5.

    Parameters
    ----------
    kind
        Surface.
    hemisphere
        Side.

    Returns
    -------
    vertices
        (vertex, 3) mm, right, anterior and superior positive.
    triangles
        (triangle, 3) vertices.

    Raises
    ------
    ImageError
        When nilearn does not have it, or another one.
    """
    image = _read(f"{kind}_{hemisphere}.gii.gz")
    vertices, triangles = image.agg_data(("pointset", "triangle"))
    _check(vertices, (N_SIDE, 3), kind, hemisphere)
    out = np.asarray(vertices, dtype=np.float64)
    if kind != "sphere" and (out[:, 0].mean() < 0) != (hemisphere == "left"):
        raise ImageError(
            f"The fsaverage5 {kind} mesh of the {hemisphere} hemisphere lies on the other side. "
            "Install the version of nilearn that constraints.txt names."
        )
    return out, np.asarray(triangles, dtype=np.int64)


def read_map(
    kind: Literal["thickness", "curvature", "sulcal_depth"], hemisphere: Hemisphere
) -> npt.NDArray[np.float64]:
    """Read a mean map (vertex,) of fsaverage5.

    Parameters
    ----------
    kind
        Thickness and sulcal depth in mm, curvature in 1/mm. Thickness is about 0 on the medial
        wall.
    hemisphere
        Side.

    Returns
    -------
    ndarray
        (vertex,).

    Raises
    ------
    ImageError
        When nilearn does not have it, or another one.
    """
    values = np.asarray(_read(f"{_MAPS[kind]}_{hemisphere}.gii.gz").agg_data(), dtype=np.float64)
    _check(values, (N_SIDE,), kind, hemisphere)
    return values


def _check(values: Any, shape: tuple[int, ...], kind: str, hemisphere: str) -> None:
    """Refuse what is not fsaverage5."""
    if np.shape(values) != shape:
        raise ImageError(
            f"nilearn's fsaverage5 {kind} ({hemisphere}): shape {np.shape(values)}, expected "
            f"{shape}. Install the version of nilearn that constraints.txt names."
        )


@functools.lru_cache(maxsize=16)
def _read(name: str) -> Any:
    """Read a file that lies inside nilearn, which is not imported."""
    import nibabel as nib

    spec = importlib.util.find_spec("nilearn")
    folder = spec.submodule_search_locations if spec else None
    path = Path(folder[0]) / "datasets" / "data" / "fsaverage5" / name if folder else None
    if path is None or not path.is_file():
        raise ImageError(f"nilearn has no surface {name}. Run: pip install nilearn")
    image = nib.load(path)
    if not isinstance(image, nib.GiftiImage):
        raise ImageError(f"{path} is not a surface. Reinstall nilearn.")
    return image
