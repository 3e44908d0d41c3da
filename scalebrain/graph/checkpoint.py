"""Checkpoints of a training: after a kill it goes on where it was, to the same weights."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.graph.references import References
from scalebrain.io.shards import content_hash

__all__ = ["Checkpoint", "training_key"]

logger = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]


def training_key(
    data: References, split: Mapping[str, npt.NDArray[np.int64]], about: Mapping[str, Any]
) -> str:
    """Fingerprint of a training: what a checkpoint has to share with it to be gone on from.

    Parameters
    ----------
    data
        References: their ages and weights, and their features, which are read once for this,
        block by block.
    split
        (subject,) folds and people.
    about
        Everything else that weights depend on, JSON-able: graph, hyper-parameters, names of the
        features, versions.

    Returns
    -------
    str
        SHA-256.

    Notes
    -----
    A fold reads the features five times and once an epoch; this is once more, for all folds.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    arrays: dict[str, npt.NDArray[Any]] = {"age": data.age, "weight": data.weight, **split}
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    blocks = data.blocks(np.arange(len(data.age)))
    digest.update(content_hash(np.ascontiguousarray(x) for _, x in blocks).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """File of one fold's training.

    Parameters
    ----------
    path
        File; its folder is made when it is written.
    key
        Fingerprint of what is trained, and on whom: a file with another one is not gone on from.
    """

    path: Path
    key: str

    def save(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Write the file; it appears complete or not at all."""
        from safetensors.numpy import save

        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".part")
        whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        about = {"key": self.key, "state": json.dumps(state)}
        partial.write_bytes(save(whole, metadata=about))
        partial.replace(self.path)

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Read the file; None when there is none of this training."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="numpy") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return None
                return {n: file.get_tensor(n) for n in file.keys()}, json.loads(about["state"])  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s: damaged (%s), training starts anew", self.path, error)
            return None
