"""An atlas: regions as labels or as probability maps on a grid of their own."""

import functools
import hashlib
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.space import SPACE, Grid, resample
from scalebrain.errors import DataWarning, GeometryError, ImageError, LateralityError, TableError

__all__ = ["ROUNDING", "Atlas", "check_probabilities", "packed", "unpacked"]

_T = TypeVar("_T", bound=np.generic)

#: How far outside of 0-1 the probabilities of an image lie by rounding alone.
ROUNDING = 1e-4
# Up to where values above 1 are no percent.
_NO_PERCENT = 1.5

# What the regions of real atlases keep to, and mirrored ones do not: medial cortex is drawn
# along a fissure that is not quite straight (see docs/atlases.md for the figures).
_OWN_SIDE = 2 / 3
_ACROSS_MM = 5.0
_FAR_ACROSS = 0.1

# Spaces of one person's scans, by their names in BIDS and what tools call them.
_OF_ONE_PERSON = frozenset(
    ("t1w", "t2w", "orig", "individual", "native", "subject", "scanner", "fsnative", "dwi", "bold")
)
#: Share of its volume below which a region deserves a look.
_LEAST_THERE = 0.4


Packed = tuple[str, tuple[int, ...], bytes]


def check_probabilities(what: str, low: float, high: float, divide: str) -> None:
    """Refuse probability maps whose values are not in 0-1, up to rounding.

    Parameters
    ----------
    what
        File or variable that holds them.
    low, high
        Smallest and largest value; NaN when one is missing.
    divide
        Command that divides them by 100.

    Raises
    ------
    ImageError
        When they are percent, or otherwise no probabilities.
    """
    if low >= -ROUNDING and _NO_PERCENT < high <= 100:
        raise ImageError(
            f"{what}: values from {low:.3g} to {high:.3g}, which look like percent; expected "
            f"probabilities in 0-1. Divide them: {divide}."
        )
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        digits = ".5g" if high < _NO_PERCENT else ".3g"
        raise ImageError(
            f"{what}: values from {low:.3g} to {high:{digits}}, expected probabilities in 0-1. "
            "Scale them so, without missing values."
        )


def packed(array: npt.NDArray[Any] | None) -> Packed | None:
    """Array as type, shape and compressed bytes."""
    from numcodecs import blosc

    if array is None:
        return None
    content = blosc.compress(np.ascontiguousarray(array), b"zstd", 1, blosc.SHUFFLE)
    return array.dtype.str, array.shape, content


def unpacked(content: Packed | None) -> npt.NDArray[Any] | None:
    """Array of what :func:`packed` gave."""
    from numcodecs import blosc

    if content is None:
        return None
    out = np.empty(content[1], dtype=content[0])
    blosc.decompress(content[2], out)
    return out


@dataclass(frozen=True, eq=False)
class Atlas:
    """Regions on a grid: one label a voxel, or one probability map a region.

    Parameters
    ----------
    name
        Name of the atlas.
    grid
        Grid of `labels` or `maps`.
    regions
        Names of the regions, unique, in order. A name that ends in ``_L`` or ``_R`` says
        that the region lies in that hemisphere, which is proved.
    codes
        Label of each region, positive; empty for an atlas of probability maps.
    labels
        (x, y, z) labels on `grid`, 0 outside, kept as int32; None for an atlas of maps. A
        label that no region has counts as outside.
    maps
        (region, x, y, z) probabilities in [0, 1] on `grid`, kept as float32; None for an
        atlas of labels.
    space
        Name of the template space that the atlas is drawn in. It is not warped: where it is
        another MNI variant than the store's, a few mm remain.
    reference
        Where the atlas comes from, with a DOI.

    Raises
    ------
    TableError
        When names or codes are not unique, or do not fit the image.
    GeometryError
        When the image does not have the shape of the grid.
    LateralityError
        When a region whose name ends in ``_L`` or ``_R`` does not lie on that side.

    Notes
    -----
    A region lies on a side when at least two thirds of its mass that is not on the midline
    (x = 0 mm) lie there, and at most a tenth lies more than 5 mm across the midline. The
    regions of a mirrored image, or of names that are exchanged, do not. A region that
    crosses the midline on purpose has a name without a side.
    """

    name: str
    grid: Grid
    regions: tuple[str, ...]
    codes: tuple[int, ...] = ()
    labels: npt.NDArray[np.int32] | None = field(default=None, repr=False)
    maps: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    space: str = SPACE
    reference: str = ""

    def __post_init__(self) -> None:
        """Check names and codes, and prove left and right."""
        object.__setattr__(self, "regions", tuple(map(str, self.regions)))
        object.__setattr__(self, "codes", tuple(map(int, self.codes)))
        if (self.labels is None) == (self.maps is None):
            raise TableError(f"Atlas '{self.name}': give either labels or maps.")
        repeated = sorted({r for r in self.regions if self.regions.count(r) > 1})
        if repeated or not self.regions:
            raise TableError(
                f"Atlas '{self.name}': needs regions of different names, got "
                f"{', '.join(repeated) or 'none'}{' twice' if repeated else ''}. Rename them."
            )
        if self.labels is not None:
            object.__setattr__(self, "labels", self._checked_labels(self.labels))
        if self.maps is not None:
            object.__setattr__(self, "maps", self._checked_maps(self.maps))
        self._prove_sides()

    def _checked_labels(self, labels: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
        """Labels as int32 that cannot be written to, each region with a voxel."""
        if len(self.codes) != len(self.regions) or len(set(self.codes)) != len(self.codes):
            raise TableError(
                f"Atlas '{self.name}': {len(self.regions)} regions need as many different codes, "
                f"got {len(set(self.codes))}."
            )
        if min(self.codes) <= 0:
            raise TableError(
                f"Atlas '{self.name}': code {min(self.codes)}, expected positive ones; 0 is what "
                "lies outside of every region. Give the region another code in image and table."
            )
        if labels.shape != self.grid.shape:
            raise GeometryError(
                f"Atlas '{self.name}': labels of shape {labels.shape}, its grid has "
                f"{self.grid.shape}."
            )
        with np.errstate(invalid="ignore"):
            out = np.asarray(labels).astype(np.int32, copy=False)
        if out.dtype != labels.dtype and not np.array_equal(out, labels):
            raise TableError(
                f"Atlas '{self.name}': labels that are no whole numbers of 32 bits. Labels are "
                "never interpolated; give probabilities as maps."
            )
        values, count = np.unique(out, return_counts=True)
        found = dict(zip(values.tolist(), count.tolist(), strict=True))
        absent = [r for r, code in zip(self.regions, self.codes, strict=True) if code not in found]
        if absent:
            raise TableError(
                f"Atlas '{self.name}': no voxel of {', '.join(absent[:8])} in its image. Take "
                "these rows out of its table."
            )
        return _read_only(out.copy() if np.shares_memory(out, labels) else out)

    def _checked_maps(self, maps: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probability maps as float32 that cannot be written to, none of them empty."""
        if maps.shape != (len(self.regions), *self.grid.shape):
            raise GeometryError(
                f"Atlas '{self.name}': maps of shape {maps.shape}, expected "
                f"{(len(self.regions), *self.grid.shape)}."
            )
        if self.codes:
            raise TableError(f"Atlas '{self.name}': maps have no codes. Leave them out.")
        out = np.asarray(maps).astype(np.float32, copy=False)
        low, high = float(out.min()), float(out.max())
        if not (low >= 0 and high <= 1):
            raise TableError(
                f"Atlas '{self.name}': values {low:.3g} to {high:.3g}, expected probabilities "
                "in 0-1."
            )
        empty = [r for r, one in zip(self.regions, out, strict=True) if not one.any()]
        if empty:
            raise TableError(f"Atlas '{self.name}': the map of {', '.join(empty[:8])} is empty.")
        return _read_only(out.copy() if np.shares_memory(out, maps) else out)

    def _prove_sides(self) -> None:
        """Refuse a region that does not lie where its name says."""
        sided = [(i, r) for i, r in enumerate(self.regions) if r[-2:] in ("_L", "_R")]
        if not sided:
            return
        mass = self._mass_by_side()
        wrong = []
        for i, region in sided:
            left, right, far_left, far_right = mass[i]
            own, other, far = (left, right, far_right)
            if region.endswith("_R"):
                own, other, far = (right, left, far_left)
            if own < _OWN_SIDE * (own + other) or far > _FAR_ACROSS * (own + other) or not own:
                share = other / (own + other) if own + other else 0
                sign = ">" if region.endswith("_L") else "<"
                wrong.append(f"{region} with {share:.0%} at x {sign} 0 mm")
        if wrong:
            raise LateralityError(
                f"Atlas '{self.name}': {len(wrong)} of {len(sided)} regions lie in, or reach far "
                f"into, the other hemisphere than their names say, as {'; '.join(wrong[:4])}. The "
                "image is mirrored or shifted, or its names are exchanged: correct what is wrong. "
                "A region that crosses the midline has a name without _L and _R.",
                code="atlas-flipped",
            )

    def _mass_by_side(self) -> npt.NDArray[np.float64]:
        """(region, 4) voxels or probability at x < 0, x > 0, x < -5 mm and x > 5 mm."""
        out = np.zeros((len(self.regions), 4))
        if self.labels is not None:
            flat, member = self._members(self.labels)
            for column, inside in enumerate(_parts(self._x()[flat])):
                out[:, column] = np.bincount(member[inside], minlength=len(out))
            return out
        parts = _parts(self._x())
        for i, one in enumerate(self.maps if self.maps is not None else ()):
            out[i] = [one.ravel()[inside].sum(dtype=np.float64) for inside in parts]
        return out

    def _x(self) -> npt.NDArray[np.float64]:
        """X in mm of every voxel, flat, without the rounding noise of an affine."""
        i, j, k = np.ogrid[tuple(slice(n) for n in self.grid.shape)]
        a, b, c, origin = self.grid.matrix[0]
        return np.asarray(np.round(a * i + b * j + c * k + origin, 6)).ravel()

    def _members(
        self, labels: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Flat index of every voxel of a region, and the position of that region."""
        flat = np.flatnonzero(np.isin(labels, self.codes))
        order = np.argsort(self.codes)
        position = np.searchsorted(np.asarray(self.codes)[order], labels.ravel()[flat])
        return flat, order[position]

    def centroids(self) -> npt.NDArray[np.float64]:
        """Center of mass of every region.

        Returns
        -------
        ndarray
            (region, 3) mm.
        """
        out = np.empty((len(self.regions), 3))
        if self.labels is not None:
            flat, member = self._members(self.labels)
            mm = self.grid.coordinates(flat)
            count = np.bincount(member, minlength=len(out))
            for axis in range(3):
                out[:, axis] = np.bincount(member, mm[:, axis], len(out)) / count
            return out
        for i, one in enumerate(self.maps if self.maps is not None else ()):
            flat = np.flatnonzero(one)
            out[i] = np.average(self.grid.coordinates(flat), axis=0, weights=one.ravel()[flat])
        return out

    @functools.cached_property
    def volumes(self) -> npt.NDArray[np.float64]:
        """(region,) mm3, of probability maps their sum."""
        if self.labels is not None:
            _, member = self._members(self.labels)
            size = np.bincount(member, minlength=len(self.regions)).astype(np.float64)
        else:
            maps = self.maps if self.maps is not None else ()
            size = np.array([one.sum(dtype=np.float64) for one in maps])
        return size * self.grid.voxel_volume

    def check_in_template(self, size: npt.NDArray[np.float64], grid: Grid) -> None:
        """Refuse regions without a voxel in a store, and tell of those that are hardly there.

        Parameters
        ----------
        size
            (region,) voxels, or the sum of the probabilities, in the store.
        grid
            Grid of the store.

        Raises
        ------
        GeometryError
            When a region has no voxel, or the atlas is in the space of one person's scan.

        Warns
        -----
        DataWarning
            When less than 40 % of the volume of a region is there.
        """
        if self.space.lower() in _OF_ONE_PERSON:
            raise GeometryError(
                f"Atlas '{self.name}' is in the space '{self.space}' of one person's scan; the "
                "store is in template space. Warp it to the template, or give "
                "read_atlas(space=...) the space that it is in."
            )
        why = (
            f"voxels of {grid.spacing} are too coarse for them, or the atlas, drawn in the space "
            f"'{self.space}', does not lie where the brains of the store do"
        )
        empty = [r for r, n in zip(self.regions, size, strict=True) if not n > 0]
        if empty:
            more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
            raise GeometryError(
                f"Atlas '{self.name}': no voxel of {', '.join(empty[:8])}{more} on the grid of the "
                f"store: {why}. Give a finer store or another atlas, or leave these regions out "
                "(`without`)."
            )
        share = size * grid.voxel_volume / self.volumes
        little = np.flatnonzero(share < _LEAST_THERE)
        if little.size:
            some = ", ".join(f"{self.regions[i]} ({share[i]:.0%})" for i in little[:8])
            warnings.warn(
                f"Atlas '{self.name}': the store holds less than {_LEAST_THERE:.0%} of the volume "
                f"of {little.size} of {share.size} regions, as {some}: {why}. Look at them, or "
                "leave them out (`without`).",
                DataWarning,
                stacklevel=4,
            )

    def without(self, *regions: str) -> "Atlas":
        """Leave regions out, as those that are too small for the grid of a store.

        Parameters
        ----------
        *regions
            Names of the regions to leave out.

        Returns
        -------
        Atlas
            The others, in order; its hash is another one.

        Raises
        ------
        TableError
            When there is no such region, or none is left.
        """
        unknown = [region for region in regions if region not in self.regions]
        if unknown:
            raise TableError(
                f"Atlas '{self.name}' has no region {', '.join(unknown[:8])}. See its `regions`."
            )
        kept = [i for i, region in enumerate(self.regions) if region not in regions]
        return replace(
            self,
            regions=tuple(self.regions[i] for i in kept),
            codes=tuple(self.codes[i] for i in kept) if self.codes else (),
            maps=self.maps[kept] if self.maps is not None else None,
        )

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of names, codes, grid and image: tells versions of an atlas apart."""
        digest = hashlib.sha256()
        digest.update(repr((self.regions, self.codes, self.grid.shape)).encode())
        digest.update(np.asarray(self.grid.affine).tobytes())
        image = self.labels if self.labels is not None else self.maps
        digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def labels_on(self, grid: Grid) -> npt.NDArray[np.int32]:
        """Labels on another grid, nearest neighbor along the affine; 0 outside.

        Labels that no region has, as of those left out by :meth:`without`, are there as well.

        Parameters
        ----------
        grid
            Grid of the result.

        Returns
        -------
        ndarray
            int32 of shape ``grid.shape``.
        """
        if self.labels is None:
            raise TableError(f"Atlas '{self.name}' has probability maps, no labels.")
        return np.asarray(resample(self.labels, self.grid, grid, order=0), dtype=np.int32)

    def map_on(self, region: int, grid: Grid) -> npt.NDArray[np.float32]:
        """Probability map of a region on another grid, linear along the affine; 0 outside.

        Parameters
        ----------
        region
            Position of the region.
        grid
            Grid of the result.

        Returns
        -------
        ndarray
            float32 in [0, 1] of shape ``grid.shape``.
        """
        if self.maps is None:
            raise TableError(f"Atlas '{self.name}' has labels, no probability maps.")
        one = resample(self.maps[region], self.grid, grid, order=1)
        return np.clip(np.asarray(one, dtype=np.float32), 0, 1)


def _read_only(array: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """View of an array that cannot be written to: an atlas keeps its hash."""
    view = array.view()
    view.flags.writeable = False
    return view


def _parts(x: npt.NDArray[np.float64]) -> list[npt.NDArray[np.bool_]]:
    """Left and right of the midline, then far to the left and far to the right of it."""
    return [x < 0, x > 0, x < -_ACROSS_MM, x > _ACROSS_MM]
