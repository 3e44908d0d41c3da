"""What is done about lesioned tissue before features are taken from an image.

For node features and brain ages a policy is a name, of :func:`~scalebrain.node_features` and the
settings of a study. For other measures of images it is a function from a store to a store whose
images are treated, which goes before theirs: ``parcellate(mask_lesions(ds))``.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.atlas import packed, unpacked
from scalebrain.errors import ConfigError, GeometryError
from scalebrain.features.lesion import check_masks, known_masks
from scalebrain.features.lesion_policy_numba_fns import fill_from_mirror
from scalebrain.features.rows import over_rows
from scalebrain.features.segments import store_grid, voxel_index
from scalebrain.variables import annotate

__all__ = [
    "POLICIES",
    "LesionPolicy",
    "Mirror",
    "check_policy",
    "enantiomorphic",
    "fill_rows",
    "mask_lesions",
    "mirror_of",
    "treatment_of",
]

LesionPolicy = Literal["mask_nodes", "as_is", "enantiomorphic", "exclude_region"]
#: Names of the policies; the first is the default.
POLICIES: tuple[LesionPolicy, ...] = get_args(LesionPolicy)

_IMAGES = ("t1w", "gm")

Rows = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


def check_policy(policy: str) -> None:
    """Refuse a policy that is not known."""
    if policy not in POLICIES:
        raise ConfigError(f"Lesion policy '{policy}': expected one of {', '.join(POLICIES)}.")


@dataclass(frozen=True, eq=False)
class Mirror:
    """Where the mirror image of every voxel lies in a row.

    Parameters
    ----------
    nearer, farther
        (voxel,) positions of the two voxels around the mirrored point along x; -1 where the
        store has none.
    weight
        Weight of the farther one in [0, 0.5]; 0 on a grid that is symmetric about x = 0.
    """

    nearer: npt.NDArray[np.int32]
    farther: npt.NDArray[np.int32]
    weight: float

    def __getstate__(self) -> dict[str, object]:
        """Pack the positions: they go to every worker."""
        both = {"nearer": packed(self.nearer), "farther": packed(self.farther)}
        return {**both, "weight": self.weight}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Unpack them."""
        for name in ("nearer", "farther"):
            self.__dict__[name] = unpacked(state[name])  # type: ignore[arg-type]
        self.__dict__["weight"] = state["weight"]


def mirror_of(ds: xr.Dataset) -> Mirror:
    """Find the mirror image of every voxel of a store, x to -x.

    Parameters
    ----------
    ds
        Store.

    Returns
    -------
    Mirror
        Exact on a grid that is symmetric about x = 0, as the template's at 1, 2 and 4 mm is;
        between two voxels, linearly, on any other.

    Raises
    ------
    GeometryError
        When the axes of the grid are not those of the space.
    """
    grid = store_grid(ds)
    matrix = grid.matrix
    step, origin = matrix[0, 0], matrix[0, 3]
    if np.count_nonzero(matrix[0, 1:3]) or np.count_nonzero(matrix[1:3, 0]) or step == 0:
        raise GeometryError(
            "The grid of the store is oblique: there is no mirror image along its axes. Ingest "
            "on the template's grid (--resolution), or choose another lesion policy."
        )
    index = voxel_index(ds, grid)
    i, j, k = np.unravel_index(index, grid.shape)
    mirrored = -2 * origin / step - i
    nearest = np.floor(mirrored + 0.5).astype(np.int64)  # halves all one way, as the offset says
    offset = float(np.round(mirrored[0] - nearest[0], 6)) if index.size else 0.0
    position = np.full(grid.size, -1, dtype=np.int32)
    position[index] = np.arange(index.size, dtype=np.int32)

    def at(along: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        inside = (along >= 0) & (along < grid.shape[0])
        flat = np.ravel_multi_index((np.clip(along, 0, grid.shape[0] - 1), j, k), grid.shape)
        return np.where(inside, position[flat], -1).astype(np.int32)

    other = nearest + (1 if offset > 0 else -1)
    return Mirror(at(nearest), at(other), abs(offset))


def fill_rows(mirror: Mirror, values: Rows, lesion: Masks) -> tuple[Rows, Masks]:
    """Fill lesioned voxels from the other hemisphere.

    Parameters
    ----------
    mirror
        Where it lies.
    values
        (row, voxel).
    lesion
        (row, voxel).

    Returns
    -------
    filled
        (row, voxel) a copy.
    left_out
        (row, voxel) lesioned voxels that could not be filled.
    """
    filled = values.copy()
    left_out = np.empty(lesion.shape, dtype=bool)
    fill_from_mirror(filled, lesion, mirror.nearer, mirror.farther, mirror.weight, left_out)
    return filled, left_out


def mask_lesions(ds: xr.Dataset) -> xr.Dataset:
    """Take lesioned voxels out of the images.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.

    Returns
    -------
    Dataset
        The same; ``t1w`` and ``gm`` are NaN in lesioned voxels. Lazy. Node features of the
        volume are taken out: they were made of the images as they had been.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks.
    """
    check_masks(ds)
    return _treated(ds, "mask_nodes", _masked_rows, None)


def enantiomorphic(ds: xr.Dataset) -> xr.Dataset:
    """Replace lesioned voxels of the images by the mirrored voxels of the same images.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``.

    Returns
    -------
    Dataset
        The same; in lesioned voxels ``t1w`` and ``gm`` have the value at the mirrored place, or
        NaN where that is lesioned too or not in the store. ``lesion_mask`` stays as it is, so
        that loads and volumes do; ``lesion_filled_fraction (subject)`` says how much of it could
        be filled, 1 for a mask without a lesion, NaN for a subject without a mask. Lazy. Node
        features of the volume are taken out, and made anew with the policy ``enantiomorphic``
        alone, since any other that looks at the mask would leave out what was filled.

    Raises
    ------
    MissingVariableError
        When `ds` has no lesion masks.
    GeometryError
        When the axes of the grid are not those of the space.

    Notes
    -----
    The intensity is taken as it is: left and right of one image have one scale. The brain is not
    symmetric, so what is filled in is the other hemisphere's anatomy, and a difference between
    hemispheres that came with the lesion is lost in the filled part.

    References
    ----------
    Nachev et al. 2008, doi:10.1016/j.neuroimage.2007.10.002
    """
    check_masks(ds)
    mirror = mirror_of(ds)
    fraction = over_rows(_filled_fraction, ds["lesion_mask"], shared=mirror, dims={})
    fraction = known_masks(ds, fraction)
    out = _treated(ds, "enantiomorphic", _filled_rows, mirror)
    return annotate(out.assign(lesion_filled_fraction=fraction))


def treatment_of(ds: xr.Dataset) -> LesionPolicy | None:
    """Policy that the images of a store were treated by already; None for images as they are."""
    found: LesionPolicy | None = ds["t1w"].attrs.get("lesion_policy") if "t1w" in ds else None
    return found


def _treated(ds: xr.Dataset, policy: LesionPolicy, function: object, shared: object) -> xr.Dataset:
    """Store with treated images, and without the features of the others."""
    new = {}
    for name in _IMAGES:
        if name in ds:
            array = over_rows(
                function,  # type: ignore[arg-type]
                ds[name],
                ds["lesion_mask"],
                shared=shared,
                dims={"voxel": ds.sizes["voxel"]},
                dtype=np.float32,
            )
            attrs = ds[name].attrs | {"lesion_policy": policy}
            new[name] = (array.dims, array.data, attrs)
    if "node_features" in ds and ds["node_features"].attrs.get("nodes", "volume") == "volume":
        ds = ds.drop_vars(["node_features", "region_excluded"], errors="ignore")
        if not any("feature" in v.dims for v in ds.data_vars.values()):
            ds = ds.drop_vars("feature", errors="ignore")  # those made anew may be others
    return annotate(ds.assign(new))


def _masked_rows(_: None, values: Rows, lesion: Masks) -> Rows:
    """Image without its lesioned voxels."""
    return np.where(lesion, np.float32(np.nan), values)


def _filled_rows(mirror: Mirror, values: Rows, lesion: Masks) -> Rows:
    """Image with filled lesions."""
    filled, left_out = fill_rows(mirror, values, lesion)
    filled[left_out] = np.nan
    return filled


def _filled_fraction(mirror: Mirror, lesion: Masks) -> npt.NDArray[np.float64]:
    """Fraction (row,) of the lesioned voxels whose mirrored ones can take their place."""
    _, left_out = fill_rows(mirror, np.zeros(lesion.shape, dtype=np.float32), lesion)
    n = lesion.sum(axis=1)
    return np.asarray(1 - left_out.sum(axis=1) / np.maximum(n, 1))
