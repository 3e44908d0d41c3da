"""Region sets: named regions as sets of parcels, in homologous left/right pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalebrain.errors import TableError

__all__ = ["HEMISPHERES", "NETWORKS", "RegionSet", "default_regions"]

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
        for region, codes in self.parcels.items():
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

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, in order."""
        return tuple(self.parcels)

    @staticmethod
    def homologue(region: str) -> str:
        """Name of the mirror region in the other hemisphere."""
        return region[:-1] + ("R" if region.endswith("_L") else "L")

    def membership(self, parcels: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which parcel belongs to which region.

        Parameters
        ----------
        parcels
            Parcel codes, the rows of the result.

        Returns
        -------
        ndarray of bool
            Shape (parcel, region).
        """
        codes = np.asarray(parcels)
        return np.stack([np.isin(codes, self.parcels[r]) for r in self.regions], axis=1)


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
