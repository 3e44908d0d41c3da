"""Functions of whole rows, over the subjects of a Dataset."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.io.rows import RowSource, row_source
from scalebrain.io.shards import EncodedRow

__all__ = ["bare", "over_encoded", "over_rows", "task_bounds"]

_TASK_BYTES = 2**27
_QUICK_BYTES = 2**28  # of a task that does little more than to decode them
_MOST_ROWS = 512
_LEAST_TASKS = 16
_ROWS_A_CALL = 128  # of encoded ones, whose results wait for each other

Array = npt.NDArray[Any]


def bare(array: xr.DataArray) -> xr.DataArray:
    """Array without its voxel coordinates, which would clash with dims of a result."""
    return array.drop_vars([name for name in array.coords if "voxel" in array[name].dims])


def over_rows(
    function: Callable[..., Array],
    *images: xr.DataArray,
    shared: Any,
    dims: Mapping[str, int],
    span: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> xr.DataArray:
    """Apply a function to whole rows.

    Parameters
    ----------
    function
        From `shared` and arrays (row, voxel), one an image and contiguous, to one of
        (row, *dims). How many rows it gets at a time must not matter.
    *images
        Arrays over ``(subject, voxel)`` of the same subjects.
    shared
        What every call needs; it goes to each worker once.
    dims
        Names and sizes of the dimensions that take the place of ``voxel``.
    span
        First and last-plus-one voxel of the rows that the function gets; all when None.
    dtype
        Type of the result.

    Returns
    -------
    DataArray
        ``(subject, *dims)``; lazy when an image is.

    Notes
    -----
    Rows of a store, as :func:`~scalebrain.open_store` gave them, are read one by one, used while
    they lie in the processor's cache, and never held together; only their span is decoded.
    Other Dask arrays go block by block, whole rows in each. ``xarray.apply_ufunc`` would do the
    same and copy every block.
    """
    rows = [image.transpose("subject", "voxel").variable.data for image in images]
    shape = tuple(dims.values())
    sources = [row_source(row) for row in rows]
    if _same_rows(sources):
        data = _over_sources(function, sources, shared, span, shape, np.dtype(dtype))
    else:
        cut = slice(None) if span is None else slice(*span)
        parts = [row[:, cut] for row in rows]
        lazy = any(image.chunks for image in images)
        apply: Any = _over_blocks if lazy else _call
        data = apply(function, shared, *parts, shape=shape, kind=np.dtype(dtype))
    coords = bare(images[0]).coords
    kept = {name: c for name, c in coords.items() if c.dims in ((), ("subject",))}
    return xr.DataArray(data, dims=("subject", *dims), coords=kept)


def over_encoded(
    function: Callable[[Any, Iterable[Array | EncodedRow]], Array],
    image: xr.DataArray,
    *,
    shared: Any,
    dims: Mapping[str, int],
    span: tuple[int, int] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> xr.DataArray:
    """Apply a function whose kernels decode a row themselves, block by block.

    Parameters
    ----------
    function
        From `shared` and rows, encoded or as (voxel,) values, each of which the next one
        overwrites, to an array (row, *dims). How many rows it gets must not matter.
    image, shared, dims, span, dtype
        As for :func:`over_rows`.

    Returns
    -------
    DataArray
        ``(subject, *dims)``; lazy when the image is.

    Notes
    -----
    A block of a row of a store is used while it lies in the cache of a core, and one call does
    it all, so that threads do not wait for each other. Other rows come decoded.
    """
    return over_rows(_Encoded(function), image, shared=shared, dims=dims, span=span, dtype=dtype)


@dataclass(frozen=True)
class _Encoded:
    """Function of rows that may be encoded, as one of decoded rows."""

    of_rows: Callable[[Any, Iterable[Array | EncodedRow]], Array]

    def __call__(self, shared: Any, rows: Array) -> Array:
        return self.of_rows(shared, rows)


def _same_rows(sources: Sequence[RowSource | None]) -> bool:
    """Whether all are rows of stores, and the same ones."""
    return all(
        source is not None
        and sources[0] is not None
        and source.location == sources[0].location
        and np.array_equal(source.slots, sources[0].slots)
        for source in sources
    )


def _call(
    function: Callable[..., Array],
    shared: Any,
    *blocks: Any,
    shape: tuple[int, ...],
    kind: np.dtype[Any],
) -> Array:
    """Call the function on blocks in memory; of a contracted dim Dask gives a list of one."""
    whole = [block[0] if isinstance(block, list) else block for block in blocks]
    if not len(whole[0]):
        return np.empty((0, *shape), dtype=kind)
    # kernels refuse what cannot be written, as a file mapped to memory; rows of stores can be
    rows = [np.require(block, requirements=["C", "W"]) for block in whole]
    found = np.asarray(function(shared, *rows), dtype=kind)
    return found.reshape(-1, *shape)


def _over_blocks(
    function: Callable[..., Array],
    shared: Any,
    *rows: Any,
    shape: tuple[int, ...],
    kind: np.dtype[Any],
) -> Any:
    """Call the function on every block of Dask arrays."""
    import dask.array as da
    from dask.delayed import delayed

    index = tuple(range(1 + len(shape)))
    pairs: list[Any] = []
    for row in rows:
        array = da.asarray(row)
        pairs += [array if array.numblocks[1] == 1 else array.rechunk({1: -1}), (0, -1)]
    return da.blockwise(
        _call,
        index,
        function,
        None,
        delayed(shared, pure=True, traverse=False),
        None,
        *pairs,
        new_axes=dict(zip(index[1:], shape, strict=True)),
        shape=shape,
        kind=kind,
        concatenate=None,
        dtype=kind,
        meta=np.empty((0,) * len(index), dtype=kind),
    )


def task_bounds(
    sources: Sequence[RowSource], *, least: int = 1, is_quick: bool = False
) -> list[int]:
    """Choose which rows a task reads: Dask should cost little, and all workers have some.

    Parameters
    ----------
    sources
        Images that are read together.
    least
        Fewest rows of a task, even in a small cohort.
    is_quick
        Whether the rows are used as fast as they are decoded.

    Returns
    -------
    list of int
        First row of every task, and last the number of rows. A task has rows that are 128 MiB
        when decoded, twice as many of quick work, fewer in a small cohort; a voxel of a mask
        counts as a bit, since masks are nearly empty and read in a moment. One that has a
        shard's worth has whole shards: a bucket gives a shard as a whole, and two tasks that
        share one would both fetch it.
    """
    slots = sources[0].slots
    widest = max(source.n * _bits(source.dtype) for source in sources) // 8
    most = _QUICK_BYTES if is_quick else _TASK_BYTES
    share = -(-len(slots) // _LEAST_TASKS)
    size = max(least, min(most // max(widest, 1), _MOST_ROWS, share))
    whole = max((s.per_shard for s in sources if s.per_shard <= size), default=0)
    if not whole:
        return [*range(0, len(slots), size), len(slots)]
    group = slots // (size // whole * whole)
    return [*np.flatnonzero(np.diff(group, prepend=-1)).tolist(), len(slots)]


def _bits(dtype: np.dtype[Any]) -> int:
    """Bits of a value, as the size of tasks counts them."""
    return 1 if dtype == np.bool_ else 8 * dtype.itemsize


def _over_sources(
    function: Callable[..., Array],
    sources: Sequence[Any],
    shared: Any,
    span: tuple[int, int] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Any:
    """Call the function on rows that are read one by one, some of them a task."""
    import dask.array as da
    from dask.base import tokenize
    from dask.delayed import delayed
    from dask.highlevelgraph import HighLevelGraph

    bounds = task_bounds(sources, is_quick=isinstance(function, _Encoded))
    common = delayed(shared, pure=True, traverse=False)
    read = delayed(tuple(sources), pure=True, traverse=False)
    name = f"rows-{tokenize(function, common.key, read.key, span, shape, dtype)}"
    zeros = (0,) * len(shape)
    tasks: dict[Any, Any] = {
        (name, i, *zeros): (
            _rows_of_task,
            *(function, common.key, read.key, start, stop, span, shape, dtype),
        )
        for i, (start, stop) in enumerate(pairwise(bounds))
    }
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[common, read])
    chunks = (tuple(np.diff(bounds).tolist()), *((k,) for k in shape))
    return da.Array(graph, name, chunks, meta=np.empty((0,) * (1 + len(shape)), dtype=dtype))


def _rows_of_task(
    function: Callable[..., Array],
    shared: Any,
    sources: Sequence[RowSource],
    start: int,
    stop: int,
    span: tuple[int, int] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Array:
    """Read rows and call the function on each."""
    out = np.empty((stop - start, *shape), dtype=dtype)
    if isinstance(function, _Encoded):
        rows = sources[0].encoded(start, stop, span=span)
        for first in range(0, len(out), _ROWS_A_CALL):
            out[first : first + _ROWS_A_CALL] = function.of_rows(
                shared, islice(rows, min(_ROWS_A_CALL, len(out) - first))
            )
        return out
    readers = [source.read(start, stop, span=span) for source in sources]
    for i, row in enumerate(zip(*readers, strict=True)):
        out[i] = _call(function, shared, *(one[None] for one in row), shape=shape, kind=dtype)[0]
    return out
