"""How the files of a dataset are read."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scalebrain.errors import ConfigError

__all__ = ["ReadOptions"]


@dataclass(frozen=True)
class ReadOptions:
    """Choices that change what is read from a file.

    Parameters
    ----------
    assume_space
        Take the affine of an image whose orientation codes are both 0 as it stands.
    volume
        Frame of 4-D images, from 0; None refuses images of several frames.
    lesion_labels
        Labels of a mask of several that are lesion; empty refuses such masks. A mask of 0
        and 1 is taken as it is.
    min_lesion
        Connected components of a lesion below this volume (mL) are left out.
    """

    assume_space: bool = False
    volume: int | None = None
    lesion_labels: tuple[int, ...] = ()
    min_lesion: float = 0.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises
        ------
        ConfigError
            When `min_lesion` is no volume.
        """
        if not 0 <= self.min_lesion < math.inf:
            raise ConfigError(
                f"min_lesion is {self.min_lesion} mL, expected a volume of 0 or more."
            )

    def to_json(self) -> dict[str, object]:
        """Options as JSON gives them back."""
        return {**asdict(self), "lesion_labels": list(self.lesion_labels)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ReadOptions":
        """Read what :meth:`to_json` gave."""
        return cls(**{**content, "lesion_labels": tuple(content["lesion_labels"])})
