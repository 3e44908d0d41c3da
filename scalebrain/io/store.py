"""The cohort store: a sharded Zarr v3 group. Only `io` writes one.

Big arrays have dims (subject, voxel) or (subject, vertex): a chunk is the row of one
subject, a shard many rows. A row is a slot: it belongs to one subject for good, and stays
empty when that subject was rejected or withdrawn; :func:`open_store` leaves empty slots out.
Writers own whole shards. What a kill can interrupt is never read: an ingest is complete when
the root says so, and a saved variable counts when the root lists it.
"""

import csv
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.errors import BaseZarrError

from scalebrain.errors import GeometryError, ScalebrainError, StoreError, check_all
from scalebrain.io.lease import hold_lease
from scalebrain.io.location import Location
from scalebrain.io.plain import is_same, readable, storable_arrays, storable_text
from scalebrain.io.rows import row_blocks
from scalebrain.io.shards import array_codecs
from scalebrain.variables import REGISTRY, annotate

__all__ = [
    "FORMAT_VERSION",
    "INGEST",
    "ROWS_PER_BLOCK",
    "add_images",
    "check_format",
    "create_store",
    "drop_saved",
    "explained",
    "fill_value",
    "finalize_store",
    "hide_variables",
    "nodes_of",
    "open_store",
    "quiet",
    "rejected_subjects",
    "remove_array",
    "remove_variables",
    "replace_nodes",
    "replace_variables",
    "resize_store",
    "save_store",
    "show_variables",
    "store_attributes",
    "unpack",
    "update_root",
    "variables_hash",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Modules whose exceptions are failures of a disk or a bucket.
_CLIENTS = ("obstore", "botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "s3fs", "fsspec")

FORMAT_VERSION = 2
#: Folder of the ingest's own objects in a store.
INGEST = "ingest"
#: Rows of a Dask block, and of a shard of images that are read block by block.
ROWS_PER_BLOCK = 16
# subjects of a block of a small variable, and its bytes at most
_SMALL_BLOCK = 1024
_SMALL_BLOCK_BYTES = 16 * 2**20
_RESERVED = (
    "format_version",
    "complete",
    "saved_variables",
    "partition_rows",
    "sources",
    "vertices",
    "withdrawing",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Zarr says of variable-length text that its specification is young; we rely on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        warnings.filterwarnings("ignore", message=".*Zarr format 3 specification.*")
        # an array that a killed writer was removing, or had not named yet
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component")
        yield


def _at(url: str | Path | Location) -> Location:
    """Location of a store."""
    return url if isinstance(url, Location) else Location.of(url)


@contextmanager
def explained(url: str | Path | Location) -> Iterator[None]:
    """Say what a failure of disk or bucket means that Zarr lets through.

    Parameters
    ----------
    url
        Path or URL of the store.

    Raises
    ------
    StoreError
        In place of the exception of the operating system or of the client of the bucket.
    """
    try:
        yield
        return
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, ScalebrainError | BaseZarrError) or not (
            isinstance(error, OSError) or library in _CLIENTS
        ):
            raise
        failure = _at(url).explain(error)
    # Not inside the except block, as in Location: the original holds requests.
    raise failure from None


def _explains(function: F) -> F:
    """Make a function that takes a url first say what failures of its storage mean."""

    @functools.wraps(function)
    def wrapped(url: str | Path | Location, *args: Any, **kwargs: Any) -> Any:
        with explained(url):
            return function(url, *args, **kwargs)

    return cast(F, wrapped)


def check_format(url: str | Path | Location, attrs: Mapping[str, Any]) -> None:
    """Refuse a store of another format than this version writes.

    Parameters
    ----------
    url
        Path or URL of the store.
    attrs
        Its root attributes.

    Raises
    ------
    StoreError
        When it is no store, or of another format.
    """
    if "format_version" not in attrs:
        raise StoreError(
            f"{url}: not a scalebrain store. Make one with: scalebrain ingest BIDS_DIR STORE"
        )
    if attrs["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{url}: store format {attrs['format_version']}, this version reads {FORMAT_VERSION}. "
            "Ingest again, or use the version of scalebrain that wrote it."
        )


def store_attributes(url: str | Path | Location) -> dict[str, Any]:
    """Root attributes of a store, finished or not; empty when there is none.

    Parameters
    ----------
    url
        Path or URL of the store.

    Returns
    -------
    dict
        Attributes.

    Raises
    ------
    StoreError
        When the store's metadata is damaged.
    """
    content = _at(url).get("zarr.json")
    if content is None:
        return {}
    try:
        return dict(json.loads(content).get("attributes", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{url}: the store's zarr.json is damaged. Ingest again.") from error


@_explains
def create_store(url: str | Path | Location, attrs: Mapping[str, Any]) -> None:
    """Write an empty store.

    Parameters
    ----------
    url
        Path or URL of a store that does not exist yet.
    attrs
        Root attributes.
    """
    root = {**attrs, "format_version": FORMAT_VERSION, "complete": False, "saved_variables": []}
    zarr.create_group(_at(url).zarr_store(), zarr_format=3, attributes=root)


@_explains
def add_images(
    url: str | Path | Location, images: Mapping[str, tuple[npt.DTypeLike, str, int]]
) -> None:
    """Add big arrays without rows; those that are there stay.

    Parameters
    ----------
    url
        Path or URL of a store that has the variables of their second dims.
    images
        dtype, second dim (voxel or vertex) and rows of a shard of every array.
    """
    group = zarr.open_group(_at(url).zarr_store(), mode="r+")
    for name, (dtype, dim, rows) in images.items():
        if name in group:
            continue
        kind = np.dtype(dtype)
        n = group["parcel" if dim == "voxel" else "hemisphere"].shape[0]  # type: ignore[union-attr]
        group.create_array(
            name,
            shape=(0, n),
            dtype=kind,
            chunks=(1, n),
            shards=(rows, n),
            compressors=array_codecs(kind),
            fill_value=fill_value(kind),
            dimension_names=("subject", dim),
        )


@_explains
def resize_store(url: str | Path | Location, n_subjects: int) -> None:
    """Give every big array as many rows as there are slots."""
    group = zarr.open_group(_at(url).zarr_store(), mode="r+")
    with quiet():
        for _, array in group.arrays():
            dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
            if dims[:1] == ("subject",) and len(dims) == 2 and dims[1] in ("voxel", "vertex"):
                array.resize((n_subjects, array.shape[1]))


def _write(url: str | Path | Location, ds: xr.Dataset) -> None:
    """Write variables with xarray, which writes the root attributes too: keep the store's."""
    out = ds.copy()
    out.attrs = store_attributes(url)
    store: Any = _at(url).zarr_store()
    out.to_zarr(store, mode="a", consolidated=False, zarr_format=3)


@_explains
def replace_variables(url: str | Path | Location, ds: xr.Dataset) -> None:
    """Write variables; those of the same name are removed first, whatever their shape."""
    with quiet():
        group = zarr.open_group(_at(url).zarr_store(), mode="r+")
        for name in ds.variables:
            if str(name) in group:
                remove_array(url, str(name))
        _write(url, storable_text(annotate(ds)))


@_explains
def update_root(url: str | Path | Location, attrs: Mapping[str, Any]) -> None:
    """Replace root attributes in one write."""
    group = zarr.open_group(_at(url).zarr_store(), mode="r+")
    group.update_attributes(dict(attrs))


@_explains
def drop_saved(url: str | Path | Location) -> None:
    """Remove all that was computed, half written or whole, and declare the store unfinished."""
    # also when a kill came between the root and this group
    zarr.open_group(_at(url).zarr_store(), path=INGEST, mode="a", zarr_format=3)
    update_root(url, {"complete": False, "saved_variables": []})
    group = zarr.open_group(_at(url).zarr_store(), mode="r+")
    with quiet():
        saved = [name for name, array in group.arrays() if array.attrs.get("saved")]
    for name in saved:
        remove_array(url, name)


def remove_array(url: str | Path | Location, name: str) -> None:
    """Remove an array, its metadata last: a kill leaves no content that nothing names."""
    location = _at(url)
    location.delete_prefix(f"{name}/c")
    location.delete_prefix(name)


def remove_variables(url: str | Path | Location, names: Sequence[str]) -> None:
    """Remove variables that were saved in a store.

    Parameters
    ----------
    url
        Path or URL of a finished store.
    names
        Variables of :func:`save_store`.
    """
    if not names:
        return
    location = _at(url)
    with hold_lease(location), explained(url):
        _count_no_more(url, names)  # from here on they are not there, whatever a kill leaves
        for name in names:
            remove_array(url, name)


def hide_variables(url: str | Path | Location, names: Sequence[str]) -> None:
    """Leave variables in a store that do not count until :func:`show_variables` says so.

    Parameters
    ----------
    url
        Path or URL of a finished store.
    names
        Variables of :func:`save_store`.
    """
    if not names:
        return
    with hold_lease(_at(url)), explained(url):
        _count_no_more(url, names)


def _count_no_more(url: str | Path | Location, names: Sequence[str]) -> None:
    """Take variables off the list of those that count."""
    saved = store_attributes(url).get("saved_variables", ())
    update_root(url, {"saved_variables": [n for n in saved if n not in names]})


def show_variables(url: str | Path | Location, names: Sequence[str]) -> None:
    """Let variables count again that :func:`hide_variables` has hidden.

    Parameters
    ----------
    url
        Path or URL of a finished store.
    names
        Variables that are there as a whole.
    """
    if not names:
        return
    with hold_lease(_at(url)), explained(url):
        saved = store_attributes(url).get("saved_variables", ())
        update_root(url, {"saved_variables": sorted({*saved, *names})})


def variables_hash(url: str | Path, names: Sequence[str]) -> str:
    """SHA-256 over small variables of a store, read some subjects at a time.

    Parameters
    ----------
    url
        Path or URL of a finished store.
    names
        Variables over ``subject``; one that the store has not is told from one that it has.

    Returns
    -------
    str
        Hash of names, dims, shapes and values.
    """
    ds, digest = open_store(url), hashlib.sha256()
    for name in names:
        if name not in ds:
            digest.update(f"{name} is not there\n".encode())
            continue
        array = ds[name]
        digest.update(f"{name} {array.dims} {array.shape} {array.dtype}\n".encode())
        for start in range(0, array.sizes["subject"], _SMALL_BLOCK):
            part = array.isel(subject=slice(start, start + _SMALL_BLOCK))
            digest.update(np.ascontiguousarray(part.values).tobytes())
    return digest.hexdigest()


def nodes_of(url: str | Path | Location) -> str:
    """Name of the nodes of a store; empty where it has none."""
    attrs = store_attributes(url)
    return str(attrs.get("nodes", "volume" if "nodes_sha256" in attrs else ""))


def replace_nodes(url: str | Path | Location, ds: xr.Dataset, nodes: str) -> None:
    """Give a store other nodes; all that it has over the nodes, their edges and features goes.

    Parameters
    ----------
    url
        Path or URL of a finished store.
    ds
        Variables over ``node`` and ``edge`` alone.
    nodes
        Name of the nodes, which the root tells; none while they are half written.
    """
    location = _at(url)
    with hold_lease(location), explained(url), quiet():
        group = zarr.open_group(location.zarr_store(), mode="r+")
        old = [name for name, array in group.arrays() if _NODE_DIMS & _dims_of(array)]
        saved = store_attributes(url).get("saved_variables", ())
        update_root(url, {"nodes": "", "saved_variables": [n for n in saved if n not in old]})
        for name in old:
            remove_array(url, name)
        replace_variables(url, ds)
        update_root(url, {"nodes": nodes})


_NODE_DIMS = {"node", "edge", "feature"}


def _dims_of(array: Any) -> set[str]:
    """Names of the dims of an array."""
    return set(array.metadata.dimension_names or ())


def rejected_subjects(url: str | Path | Location) -> frozenset[str]:
    """Subjects that the ingest of a store left out; none where it was made without one."""
    content = _at(url).get(f"{INGEST}/rejected.tsv")
    if content is None:
        return frozenset()
    rows = csv.DictReader(content.decode("utf-8").splitlines(), delimiter="\t")
    return frozenset(row["subject"] for row in rows if row.get("subject"))


@_explains
def finalize_store(
    url: str | Path | Location, subjects: xr.Dataset, attrs: Mapping[str, Any]
) -> None:
    """Write the per-subject variables and declare the store complete.

    Parameters
    ----------
    url
        Path or URL of the store.
    subjects
        Variables and coordinates over ``subject`` alone, one entry a slot.
    attrs
        Root attributes to set.
    """
    group = zarr.open_group(_at(url).zarr_store(), mode="r+")
    for name in ("structure_volume", "structure"):  # not every ingest has them
        if name in group and name not in subjects.variables:
            remove_array(url, name)
    replace_variables(url, subjects)
    update_root(url, {**attrs, "complete": True})


@_explains
def open_store(url: str | Path) -> xr.Dataset:
    """Open a cohort store lazily.

    Parameters
    ----------
    url
        Path or URL (``s3://``, ``gs://``) of a finished store.

    Returns
    -------
    Dataset
        Images are Dask arrays (subject, voxel) in blocks of whole rows; everything else
        is read when it is used.

    Raises
    ------
    StoreError
        When there is no store, its ingest is not finished, or its format is another.
    """
    attrs = store_attributes(url)
    check_format(url, attrs)
    if attrs.get("withdrawing"):
        raise StoreError(f"{url}: a withdrawal was interrupted. Run it again: it goes on.")
    if not attrs.get("complete"):
        raise StoreError(
            f"{url}: its ingest was interrupted. Run the same ingest again: it goes on from there."
        )
    with quiet():
        ds = xr.open_zarr(_at(url).zarr_store(read_only=True), consolidated=False, chunks=None)
    known = set(attrs.get("saved_variables", ()))
    pending = [name for name in ds.variables if ds[name].attrs.get("saved") and name not in known]
    ds = readable(ds.drop_vars(pending))
    rank = {name: i for i, name in enumerate(REGISTRY)}
    order = sorted(map(str, ds.variables), key=lambda name: rank.get(name, len(rank)))
    ds = ds[order]
    present = np.ones(ds.sizes.get("subject", 0), dtype=bool)
    if "subject_present" in ds:
        present = np.asarray(ds["subject_present"].values, dtype=bool)
        ds = ds.drop_vars("subject_present")
    slots = np.flatnonzero(present)
    images = [str(name) for name in ds.data_vars if _is_image(ds[name])]
    pending_images = {name: ds[name] for name in images}
    order = list(map(str, ds.variables))
    ds = ds.drop_vars(images)
    if not present.all():
        ds = ds.isel(subject=slots)
    ds = ds.assign(
        {name: _in_blocks(url, name, image, slots, attrs) for name, image in pending_images.items()}
    )
    if "node_features" in ds:
        ds["node_features"] = ds["node_features"].chunk(subject=_block_rows(ds["node_features"]))
    ds = ds[order]
    ds = ds.set_coords([name for name in _COORDINATES if name in ds.data_vars])
    for name in ds.variables:
        ds[name].attrs.pop("saved", None)
    ds.attrs = {k: v for k, v in ds.attrs.items() if k not in _RESERVED} | {
        "format_version": FORMAT_VERSION
    }
    return ds


def _in_blocks(
    url: str | Path | Location,
    name: str,
    image: xr.DataArray,
    slots: npt.NDArray[np.int64],
    attrs: Mapping[str, Any],
) -> tuple[Any, Any, dict[str, Any]]:
    """Rows of an image as Dask blocks."""
    from dask.tokenize import tokenize

    group = zarr.open_group(_at(url).zarr_store(read_only=True), mode="r")
    token = tokenize(str(url), json.dumps(attrs, sort_keys=True), slots)
    blocks = row_blocks(_at(url), group[name], slots=slots, token=token)  # type: ignore[arg-type]
    if blocks is None:
        image = image.chunk({"subject": ROWS_PER_BLOCK, image.dims[1]: -1})
        blocks = image.isel(subject=slots).data
    return image.dims, blocks, image.attrs


_COORDINATES = (
    "age",
    "sex",
    "cohort",
    "group",
    "person",
    "x",
    "y",
    "z",
    "parcel",
    "node_label",
    "white_reference",
    "hemisphere",
)


def save_store(ds: xr.Dataset, url: str | Path) -> None:
    """Add the variables of a Dataset to a store, or replace them.

    Parameters
    ----------
    ds
        Variables to save. Those that are lazily the store's own (images) must be left out.
    url
        Path of a finished store with the same subjects, in the same order; or of a store
        that does not exist, which is then made from `ds` as a whole.

    Raises
    ------
    StoreError
        When a dimension, its labels or a coordinate differ from the store's, or a variable holds
        neither numbers alone, nor flags, nor text.
    """
    if not store_attributes(url):
        _save(ds, url)
        return
    location = _at(url)
    with hold_lease(location), explained(url):
        location.sweep()
        _save(ds, url)


def _save(ds: xr.Dataset, url: str | Path) -> None:
    """Save; under a lease where others may write."""
    ds = storable_arrays(ds)
    attrs = store_attributes(url)
    if not attrs:
        if any(not key.startswith(f"{INGEST}/") for key in _at(url).list("")):
            raise StoreError(f"{url}: exists and is not a store. Give a new path.")
        root = {k: v for k, v in ds.attrs.items() if k not in _RESERVED}
        root |= {"format_version": FORMAT_VERSION, "complete": False, "saved_variables": []}
        with quiet():
            zarr.create_group(_at(url).zarr_store(), zarr_format=3, attributes=root)
            _write(url, _lazily_storable(annotate(ds)))
        update_root(url, {**root, "complete": True})
        return
    existing = open_store(url)
    present = _present(url)
    for dim, size in ds.sizes.items():
        if dim in existing.sizes and existing.sizes[dim] != size:
            raise StoreError(
                f"{url}: '{dim}' has {size} entries, the store has {existing.sizes[dim]}. "
                "Save variables over all of them."
            )
        if dim in ds.coords and dim in existing.coords:
            ours, theirs = ds[dim].values, existing[dim].values
            if not np.array_equal(ours.astype(str), theirs.astype(str)):
                way_out = "Reindex to the store's."
                if dim == "parcel" and existing[dim].dims != (dim,):
                    way_out = (
                        "There it is the parcel of every voxel: give the dimension another name, "
                        "as ds.rename(parcel='aal')."
                    )
                raise StoreError(
                    f"{url}: the labels along '{dim}' differ from the store's, or their order. "
                    f"{way_out}"
                )
    new = ds[[name for name in ds.data_vars if not _is_image(ds[name])]]
    saved = set(attrs.get("saved_variables", ()))
    held = [c for c in ds.coords if c in existing.variables]
    changed = [str(c) for c in held if not is_same(ds[c], existing[c])]
    check_all(
        [
            f"{url}: the coordinate '{c}' differs from the store's. Correct the table and ingest "
            f"with --update; or save ds.reset_coords('{c}'), which holds until the next update; or "
            f"leave it as it is with ds.drop_vars('{c}')."
            for c in changed
            if c not in saved
        ],
        StoreError,
        f"{url}: coordinates differ from the store's",
    )
    new = new.assign_coords({c: ds[c].variable for c in changed})
    new = new.drop_vars([c for c in new.coords if c in held and c not in changed])
    new = new.reset_coords(drop=False)
    if not new.variables:
        raise StoreError(
            f"{url}: nothing to save but images, or coordinates that are the store's already. "
            "Give the variables to add."
        )
    for name in new.variables:
        new[name].attrs = {**new[name].attrs, "saved": True}
    new = new.map(lambda variable: _to_slots(variable, present), keep_attrs=True)
    names = sorted({str(n) for n in new.variables} | set(attrs.get("saved_variables", ())))
    rewritten = [str(n) for n in new.variables if n in attrs.get("saved_variables", ())]
    if rewritten:  # until they are whole again, they are not there
        update_root(url, {"saved_variables": [n for n in names if n not in new.variables]})
    replace_variables(url, new)
    update_root(url, {"saved_variables": names})


def _present(url: str | Path | Location) -> npt.NDArray[np.bool_]:
    """Which slots of a store belong to a subject."""
    group = zarr.open_group(_at(url).zarr_store(read_only=True), mode="r")
    if "subject_present" in group:
        return np.asarray(group["subject_present"][...], dtype=bool)  # type: ignore[index]
    return np.ones(group["subject"].shape[0], dtype=bool)  # type: ignore[union-attr]


def fill_value(dtype: np.dtype[Any]) -> Any:
    """Return what an empty slot holds."""
    return {"f": np.nan, "b": False, "U": "", "O": "", "T": ""}.get(dtype.kind, 0)


def _to_slots(variable: xr.DataArray, present: npt.NDArray[np.bool_]) -> xr.DataArray:
    """Values of the subjects, placed in their slots; in blocks of a useful size."""
    if "subject" not in variable.dims:
        return variable
    out = variable.transpose("subject", ...)
    if not present.all():
        place = np.where(present, np.cumsum(present) - 1, out.sizes["subject"])
        empty = out.isel(subject=[0]).copy(
            data=np.full((1, *out.shape[1:]), fill_value(out.dtype), dtype=out.dtype)
        )
        out = xr.concat([out, empty], dim="subject").isel(subject=place)
    return out.chunk(subject=_block_rows(out)) if out.chunks else out


def _block_rows(variable: xr.DataArray) -> int:
    """Subjects of a block of what is saved."""
    row = max(1, variable.nbytes // max(1, variable.sizes["subject"]))
    return max(ROWS_PER_BLOCK, min(_SMALL_BLOCK, _SMALL_BLOCK_BYTES // row))


def _is_image(variable: xr.DataArray) -> bool:
    """Whether a variable is one of the big arrays, which only the ingest writes."""
    return variable.dims in (("subject", "voxel"), ("subject", "vertex"))


def _lazily_storable(ds: xr.Dataset) -> xr.Dataset:
    """Text made storable, images left lazy and chunked by shard."""
    small = ds.drop_vars([name for name in ds.data_vars if _is_image(ds[name])])
    out = storable_text(small)
    for name in ds.data_vars:
        if _is_image(ds[name]):
            dim = str(ds[name].dims[1])
            chunked = ds[name].chunk({"subject": ROWS_PER_BLOCK, dim: -1})
            chunked.encoding = {
                "chunks": (1, ds.sizes[dim]),
                "shards": (ROWS_PER_BLOCK, ds.sizes[dim]),
                "compressors": array_codecs(ds[name].dtype),
            }
            out[name] = chunked
    return out


def unpack(array: xr.DataArray) -> xr.DataArray:
    """Give back the volume of an array over ``voxel``.

    Parameters
    ----------
    array
        Array with dim ``voxel`` and coordinates ``x, y, z``, as in a store.

    Returns
    -------
    DataArray
        ``voxel`` replaced by ``(x, y, z)``, RAS; NaN (False, 0) where the store has no
        voxel; the 4 x 4 affine in ``attrs["affine"]``. Lazy when `array` is.

    Raises
    ------
    GeometryError
        When the array does not carry its grid.

    Examples
    --------
    >>> import nibabel as nib
    >>> volume = unpack(ds.t1w[0])  # doctest: +SKIP
    >>> nib.Nifti1Image(volume.values, volume.attrs["affine"])  # doctest: +SKIP
    """
    if "voxel" not in array.dims or "x" not in array.coords or "affine" not in array["x"].attrs:
        raise GeometryError(
            f"'{array.name}' has no voxel dimension with coordinates x, y, z of a store. "
            "Take the variable from open_store."
        )
    affine = np.asarray(array["x"].attrs["affine"], dtype=np.float64).reshape(4, 4)
    shape = tuple(int(n) for n in array["x"].attrs["shape"])
    mm = np.stack([array[axis].values for axis in "xyz"], axis=1).astype(np.float64)
    ijk = np.rint(np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3]).T)).astype(np.intp)
    flat = np.ravel_multi_index(tuple(ijk), shape)
    fill: Any = np.nan if array.dtype.kind == "f" else array.dtype.type(0)

    def fill_volume(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        volume = np.full((*values.shape[:-1], int(np.prod(shape))), fill, dtype=values.dtype)
        volume[..., flat] = values
        return volume.reshape(*values.shape[:-1], *shape)

    bare = array.drop_vars([c for c in array.coords if "voxel" in array[c].dims])
    out: xr.DataArray = xr.apply_ufunc(
        fill_volume,
        bare,
        input_core_dims=[["voxel"]],
        output_core_dims=[["x", "y", "z"]],
        dask="parallelized",
        output_dtypes=[array.dtype],
        dask_gufunc_kwargs={"output_sizes": dict(zip("xyz", shape, strict=True))},
        keep_attrs=True,
    )
    if np.count_nonzero(affine[:3, :3]) == 3:
        out = out.assign_coords(
            {
                axis: affine[i, 3] + affine[i, i] * np.arange(shape[i])
                for i, axis in enumerate("xyz")
            }
        )
    out.attrs = {**array.attrs, "affine": affine}
    return out
