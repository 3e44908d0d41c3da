"""How scans are preprocessed."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from scalebrain.atlas.space import template_hash
from scalebrain.errors import ConfigError

__all__ = ["FILLS", "MEMORY", "Settings", "check_ants", "scans_at_once", "versions"]

#: Ways to fill a lesion before the scan is registered.
FILLS = ("enantiomorphic",)
#: Bytes of memory that a scan needs.
MEMORY = 2 * 10**9


@dataclass(frozen=True)
class Settings:
    """Settings of the preprocessing, alike for everybody.

    Parameters
    ----------
    quick
        Affine registration alone, images of 2 mm; else SyN behind it, images of 1 mm.
    fill
        ``enantiomorphic`` fills the lesion from the other hemisphere for the registration;
        empty leaves it out of the cost.
    dilation
        Distance in mm by which the lesion is widened before it is left out.
    cost_mask
        Whether the lesion is left out of the cost at all; only for comparisons.
    work
        Finest voxels in mm that the registration of the brain looks at.
    lesion_labels
        Labels of multi-label masks that are lesion.
    threads
        Threads of one scan. Not part of what makes a result another one.
    """

    quick: bool = False
    fill: str = ""
    dilation: float = 4.0
    cost_mask: bool = True
    work: float = 2.0
    lesion_labels: tuple[int, ...] = ()
    threads: int = 1

    @property
    def resolution(self) -> float:
        """Edge of a voxel of the images that are written, in mm."""
        return 2.0 if self.quick else 1.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises
        ------
        ConfigError
            When a setting is out of its range.
        """
        if self.fill and self.fill not in FILLS:
            raise ConfigError(f"Fill '{self.fill}': expected {', '.join(FILLS)} or nothing.")
        if not 0 <= self.dilation < math.inf:
            raise ConfigError(f"dilation is {self.dilation} mm, expected 0 or more.")
        if not 2 <= self.work <= 8:
            raise ConfigError(f"work is {self.work} mm, expected 2 to 8.")
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, expected 1 or more.")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON gives them back."""
        return {**asdict(self), "lesion_labels": list(self.lesion_labels)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Settings":
        """Read what :meth:`to_json` gave."""
        return cls(**{**content, "lesion_labels": tuple(content["lesion_labels"])})


def check_ants() -> None:
    """Refuse to begin without ANTs.

    Raises
    ------
    ConfigError
        When antspyx is not installed.
    """
    if importlib.util.find_spec("ants") is None:
        raise ConfigError(
            "Preprocessing needs the package antspyx, which is not installed. Run: "
            "pip install 'scalebrain[preprocess]'"
        )


def versions() -> dict[str, str]:
    """Versions of everything that results depend on, and the hash of the template."""
    packages = ("scalebrain", "antspyx", "numpy", "scipy")
    return {**{name: version(name) for name in packages}, "template_sha256": template_hash()}


def scans_at_once(threads: int, *, memory: int | None = None) -> int:
    """How many scans this machine preprocesses beside each other.

    Parameters
    ----------
    threads
        Threads of one scan.
    memory
        Bytes that they may use together; None for all of the machine or container.

    Returns
    -------
    int
        As many as its cores have room for, and its memory at :data:`MEMORY` each; at least one.
    """
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    room = int(MEMORY_LIMIT) if memory is None else min(memory, int(MEMORY_LIMIT))
    return max(1, min(int(CPU_COUNT) // threads, room // MEMORY))
