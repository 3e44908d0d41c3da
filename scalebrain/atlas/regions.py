"""Region sets: named regions as sets of parcels, in homologous left/right pairs."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.atlas import Atlas
from scalebrain.errors import ConfigError, GeometryError, LateralityError, TableError

__all__ = ["HEMISPHERES", "NETWORKS", "RegionSet", "check_regions", "default_regions"]

HEMISPHERES: tuple[str, str] = ("L", "R")

#: Long names of the nine networks of the default region set, in order.
NETWORKS: dict[str, str] = {
    "SMN": "sensorimotor",
    "FPN": "frontoparietal",
    "DAN": "dorsal attention",
    "VLN": "ventral attention/language",
    "DMN": "default mode",
    "SAL": "salience",
    "AUD": "auditory",
    "VIS": "visual",
    "LIM": "limbic",
}

# The AAL parcels of the vermis, which lie on both sides, and how far (mm) the center of another
# one may seem to be across the midline on a coarse grid.
_MIDLINE = range(109, 117)
_ACROSS_MM = 3.0

# AAL-90 codes of both hemispheres, odd left and even right. Angular (65, 66) belongs to
# two networks; right Rolandic (18) joins ventral attention/language for symmetry.
_AAL: dict[str, tuple[int, ...]] = {
    "SMN": (1, 2, 19, 20, 57, 58, 69, 70),
    "FPN": (5, 6, 7, 8, 9, 10, 65, 66),
    "DAN": (3, 4, 59, 60),
    "VLN": (11, 12, 13, 14, 17, 18, 63, 64),
    "DMN": (21, 22, 25, 26, 27, 28, 35, 36, 65, 66, 67, 68, 85, 86),
    "SAL": (29, 30, 31, 32),
    "AUD": (79, 80, 81, 82),
    "VIS": (43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 89, 90),
    "LIM": (15, 16, 23, 24, 33, 34, 39, 40, 83, 84, 87, 88),
}


@dataclass(frozen=True)
class RegionSet:
    """Regions as sets of parcels; a parcel may belong to several regions.

    Parameters
    ----------
    name
        Name of the set.
    parcels
        Parcel codes of each region, e.g. ``{"SMN_L": (1, 19, 57, 69), ...}``. A name ends
        in ``_L`` or ``_R``, and both homologues are there.
    """

    name: str
    parcels: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        """Check names, homologues and codes."""
        if not self.parcels:
            raise TableError(
                f"Region set '{self.name}': has no regions. Give the parcel codes of each by its "
                'name, as {"SMN_L": (1, 57), "SMN_R": (2, 58)}.'
            )
        parcels = {region: self._codes(region, codes) for region, codes in self.parcels.items()}
        object.__setattr__(self, "parcels", parcels)
        for region, codes in parcels.items():
            if region[-2:] not in ("_L", "_R"):
                raise TableError(
                    f"Region set '{self.name}': region '{region}' has no side. "
                    "End its name in _L or _R."
                )
            if self.homologue(region) not in self.parcels:
                raise TableError(
                    f"Region set '{self.name}': '{region}' has no homologue "
                    f"'{self.homologue(region)}'. Add it."
                )
            if not codes or len(set(codes)) != len(codes) or min(codes) <= 0:
                raise TableError(
                    f"Region set '{self.name}': region '{region}' needs distinct positive parcel "
                    f"codes, got {tuple(codes)}."
                )

    def _codes(self, region: object, codes: Any) -> tuple[int, ...]:
        """Codes as plain whole numbers."""
        try:
            if not isinstance(region, str):
                raise TypeError
            return tuple(operator.index(code) for code in codes)
        except TypeError as error:
            raise TableError(
                f"Region set '{self.name}': region {region!r} has the parcels {codes!r}, expected "
                "a name and AAL codes, as (1, 57). read_regions takes names of parcels too."
            ) from error

    @property
    def sha256(self) -> str:
        """Hash of names and codes: tells versions of a set apart."""
        content = repr((self.name, tuple(self.parcels.items())))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in order."""
        return tuple(self.parcels)

    @staticmethod
    def homologue(region: str) -> str:
        """Name of the mirror region in the other hemisphere."""
        return region[:-1] + ("R" if region.endswith("_L") else "L")

    def membership(
        self, parcels: Sequence[int], *, way_out: str = "Correct the codes."
    ) -> npt.NDArray[np.bool_]:
        """Which parcel belongs to which region.

        Parameters
        ----------
        parcels
            Parcel codes, the rows of the result; every one that a region has must be there.
        way_out
            What the user can do about one that is not, the end of the message.

        Returns
        -------
        ndarray of bool
            Shape (parcel, region).

        Raises
        ------
        GeometryError
            When parcels of a region are not there.
        """
        codes = np.asarray(parcels)
        there = set(codes.tolist())
        absent = {r: [c for c in self.parcels[r] if c not in there] for r in self.regions}
        lost = [f"{r}: {', '.join(map(str, some))}" for r, some in absent.items() if some]
        if lost:
            more = f"; and of {len(lost) - 8} more regions" if len(lost) > 8 else ""
            raise GeometryError(
                f"Region set '{self.name}': these parcels are not there: {'; '.join(lost[:8])}"
                f"{more}. {way_out}"
            )
        return np.stack([np.isin(codes, self.parcels[r]) for r in self.regions], axis=1)

    def check_sides(self, x: Mapping[int, float]) -> None:
        """Prove that no parcel of a region lies in the other hemisphere.

        Parameters
        ----------
        x
            Center of parcels, mm from the midline, right positive.

        Raises
        ------
        LateralityError
            When a center is more than 3 mm across the midline. The vermis (109 to 116) has
            no side.
        """
        wrong = []
        for region, codes in self.parcels.items():
            sign = -1 if region.endswith("_L") else 1
            wrong += [
                f"parcel {code} at x = {x[code]:.0f} mm in {region}"
                for code in codes
                if code in x and code not in _MIDLINE and sign * x[code] < -_ACROSS_MM
            ]
        if wrong:
            raise LateralityError(
                f"Region set '{self.name}': {len(wrong)} parcels lie in the other hemisphere than "
                f"their regions say, as {'; '.join(wrong[:4])}. Of AAL's, odd codes are left and "
                "even ones right: correct the codes, or the names.",
                code="atlas-flipped",
            )


def check_regions(regions: object, *kinds: type[RegionSet] | type[Atlas]) -> None:
    """Check that regions are given as what can be used.

    Parameters
    ----------
    regions
        What the user gave.
    *kinds
        What can be used.

    Raises
    ------
    ConfigError
        When it is something else: a name, a dict, or regions of the other kind.
    """
    if isinstance(regions, kinds):
        return
    if isinstance(regions, str):
        found, way_out = f"'{regions}'", f"Load it: load_atlas('{regions}'); see available_atlases."
    elif isinstance(regions, Mapping):
        found, way_out = "a dict", "Give it a name: scalebrain.RegionSet('mine', {...})."
    else:
        found, way_out = f"a {type(regions).__name__}", "Load one by load_atlas or read_atlas."
    if kinds == (Atlas,):
        needs = "an Atlas, which has an image of its own"
    elif kinds == (RegionSet,):
        needs = "a RegionSet, made of the store's own parcels"
        if isinstance(regions, Atlas):
            way_out = "Write one with read_regions."
    else:
        needs = "an Atlas or a RegionSet"
    raise ConfigError(f"regions is {found}, expected {needs}. {way_out}")


def default_regions() -> RegionSet:
    """Build the 18 functional subregions: nine networks in two hemispheres, sets of AAL parcels.

    Returns
    -------
    RegionSet
        ``SMN_L, SMN_R, FPN_L, ..., LIM_R``.

    Notes
    -----
    Parcels are those of AAL-90. Subcortical nuclei, the inferior parietal parcels 61 and
    62, and the cerebellum belong to no region.

    References
    ----------
    Tzourio-Mazoyer et al. 2002, doi:10.1006/nimg.2001.0978
    """
    return RegionSet(
        "networks-9x2",
        {
            f"{network}_{hemisphere}": tuple(c for c in codes if c % 2 == parity)
            for network, codes in _AAL.items()
            for hemisphere, parity in zip(HEMISPHERES, (1, 0), strict=True)
        },
    )
