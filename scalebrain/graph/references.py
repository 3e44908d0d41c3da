"""Features of healthy people, read block by block: a cohort never enters memory whole."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

__all__ = ["References"]

Ints = npt.NDArray[np.int64]

#: Features that are held, and shuffled, at a time.
_BUFFER_BYTES = 256 * 2**20
_ITEM = 4


@dataclass(frozen=True, eq=False)
class References:
    """Who trains a model.

    Parameters
    ----------
    features
        (subject, node, feature), complete on the rows of the graph; lazy in a large cohort.
    rows
        (row,) node of every row of the graph.
    age
        (subject,) years.
    weight
        (subject,) how much each counts.
    """

    features: xr.DataArray
    rows: Ints
    age: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        features: xr.DataArray,
        rows: Ints,
        age: npt.NDArray[np.float64],
        weight: npt.NDArray[np.float64] | None = None,
    ) -> "References":
        """Make references; their features are loaded if they are few."""
        size = len(features) * rows.size * features.shape[-1] * _ITEM
        if size <= _BUFFER_BYTES:
            features = features.compute(scheduler="single-threaded")
        return cls(features, rows, age, np.ones(len(age)) if weight is None else weight)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features of a subject."""
        return self.rows.size, int(self.features.shape[-1])

    def read(self, who: Ints) -> npt.NDArray[np.float32]:
        """Read features (subject, row, feature) of some subjects, in ascending order."""
        parts = [values for _, values in self._stored(np.sort(who))]
        return np.concatenate(parts)

    def blocks(
        self, who: Ints, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
        """Read the features of subjects, some at a time.

        Parameters
        ----------
        who
            (subject,) positions, ascending.
        rng
            Shuffles blocks of the store, then what is held of them; None for the order of `who`.

        Yields
        ------
        who
            (some,) positions.
        features
            (some, row, feature).
        """
        if rng is None:
            yield from self._stored(who)
            return
        n_rows, n_features = self.shape
        room = max(1, _BUFFER_BYTES // (n_rows * n_features * _ITEM))
        held: list[tuple[Ints, npt.NDArray[np.float32]]] = []
        for one in self._stored(who, rng):
            if held and sum(len(w) for w, _ in held) + len(one[0]) > room:
                yield _shuffled(held, rng)
                held = []
            held.append(one)
        if held:
            yield _shuffled(held, rng)

    def _stored(
        self, who: Ints, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
        """Features by block of the store."""
        sizes = self.features.chunksizes.get("subject", (len(self.features),))
        ends = np.cumsum(sizes)
        parts = [p for p in np.split(who, np.searchsorted(who, ends[:-1])) if p.size]
        order = range(len(parts)) if rng is None else rng.permutation(len(parts)).tolist()
        for i in order:
            some = parts[i]
            block = self.features[int(some[0]) : int(some[-1]) + 1]
            values = block.compute(scheduler="single-threaded") if block.chunks else block
            picked = values.values[some - some[0]]
            yield some, np.asarray(picked[:, self.rows], dtype=np.float32)


def _shuffled(
    held: list[tuple[Ints, npt.NDArray[np.float32]]], rng: np.random.Generator
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Join blocks in random order; `held` is emptied, so that memory holds them twice at most."""
    who = np.concatenate([w for w, _ in held])
    order = rng.permutation(who.size)
    values = np.empty((who.size, *held[0][1].shape[1:]), dtype=np.float32)
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    start = 0
    while held:
        some, part = held.pop(0)
        values[place[start : start + some.size]] = part
        start += some.size
    return who[order], values
