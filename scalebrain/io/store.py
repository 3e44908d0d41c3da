"""The cohort store: a sharded Zarr v3 group. Only this module writes one.

Big arrays have dims (subject, voxel): a chunk is the row of one subject, a shard 16
rows. Writers own whole shards. What a kill can interrupt is never read: an ingest is
complete when the root says so, and a saved variable counts when the root lists it.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from scalebrain.errors import GeometryError, StoreError
from scalebrain.variables import REGISTRY, annotate

__all__ = [
    "FORMAT_VERSION",
    "ROWS_PER_SHARD",
    "create_store",
    "finalize_store",
    "open_store",
    "read_records",
    "read_results",
    "row_hash",
    "save_store",
    "store_attributes",
    "unpack",
    "write_record",
    "write_results",
    "write_rows",
]

FORMAT_VERSION = 1
ROWS_PER_SHARD = 16
_SMALL_BLOCK = 1024
_RECORDS = "ingest_records"
_RESERVED = ("format_version", "complete", "saved_variables")


@contextmanager
def _quiet() -> Iterator[None]:
    """Zarr says of variable-length text that its specification is young; we rely on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification.*")
        warnings.filterwarnings("ignore", message=".*Zarr format 3 specification.*")
        yield


def _text(ds: xr.Dataset) -> xr.Dataset:
    """Variable-length text everywhere: a fixed length would cut what is appended later."""
    out = ds.copy()
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "UOT":
            values = np.asarray(variable.values, dtype=np.dtypes.StringDType())
            out[name] = (variable.dims, values, variable.attrs)
        out[name].encoding = {}
    return out


def store_attributes(url: str | Path) -> dict[str, Any]:
    """Root attributes of a store, finished or not; empty when there is none.

    Parameters
    ----------
    url
        Path of the store.

    Returns
    -------
    dict
        Attributes.
    """
    path = Path(url) / "zarr.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("attributes", {}))
    except ValueError as error:
        raise StoreError(f"{url}: the store's zarr.json is damaged. Ingest again.") from error


def create_store(
    url: str | Path,
    static: xr.Dataset,
    images: Mapping[str, npt.DTypeLike],
    *,
    n_subjects: int,
    attrs: Mapping[str, Any],
) -> None:
    """Write the empty store of a cohort: everything but its subjects.

    Parameters
    ----------
    url
        Path of a store that does not exist yet.
    static
        Variables without a subject: voxel coordinates, nodes, tracts.
    images
        dtype of every (subject, voxel) array.
    n_subjects
        Number of rows.
    attrs
        Root attributes.
    """
    root = {**attrs, "format_version": FORMAT_VERSION, "complete": False, "saved_variables": []}
    n_voxels = static.sizes["voxel"]
    with _quiet():
        zarr.create_group(str(url), zarr_format=3, attributes=root, overwrite=True)
        for name, dtype in images.items():
            kind = np.dtype(dtype)
            zarr.create_array(
                str(url),
                name=name,
                shape=(n_subjects, n_voxels),
                dtype=kind,
                chunks=(1, n_voxels),
                shards=(ROWS_PER_SHARD, n_voxels),
                compressors=BloscCodec(
                    cname="lz4", clevel=1, shuffle="bitshuffle", typesize=kind.itemsize
                ),
                fill_value=np.nan if kind.kind == "f" else False,
                dimension_names=("subject", "voxel"),
                zarr_format=3,
            )
        _write(url, _text(annotate(static)))
    _update_root(url, root)


def _write(url: str | Path, ds: xr.Dataset) -> None:
    """Write variables with xarray, which writes the root attributes too: keep the store's."""
    out = ds.copy()
    out.attrs = store_attributes(url)
    out.to_zarr(url, mode="a", consolidated=False, zarr_format=3)


def _update_root(url: str | Path, attrs: Mapping[str, Any]) -> None:
    """Replace root attributes in one write."""
    zarr.open_group(str(url), mode="r+").update_attributes(dict(attrs))


def write_rows(url: str | Path, name: str, start: int, rows: npt.NDArray[np.generic]) -> None:
    """Write whole shards of an image array.

    Parameters
    ----------
    url
        Path of the store.
    name
        Array.
    start
        First row, a multiple of the rows of a shard.
    rows
        (subject, voxel) values that fill shards, but for the last of the store.

    Raises
    ------
    StoreError
        When the rows do not fill whole shards: writers beside this one would lose data.
    """
    array = zarr.open_array(str(url), path=name, mode="r+")
    stop = start + len(rows)
    if start % ROWS_PER_SHARD or (stop % ROWS_PER_SHARD and stop != array.shape[0]):
        raise StoreError(
            f"{url}: rows {start}-{stop} of {name} do not fill whole shards of {ROWS_PER_SHARD}."
        )
    array[start:stop] = rows


def write_record(url: str | Path, partition: int, record: Mapping[str, Any]) -> None:
    """Write the done-record of a partition, after its shards, in one write."""
    zarr.create_group(
        str(url),
        path=f"{_RECORDS}/p{partition:06d}",
        attributes=dict(record),
        overwrite=True,
        zarr_format=3,
    )


def read_records(url: str | Path) -> dict[int, dict[str, Any]]:
    """Done-records of the partitions of a store, by partition."""
    folder = Path(url) / _RECORDS
    records = {}
    for path in sorted(folder.glob("p*/zarr.json")):
        try:
            attributes = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        except (ValueError, KeyError):
            continue  # half-written: the partition is done again
        records[int(path.parent.name[1:])] = attributes
    return records


def finalize_store(url: str | Path, subjects: xr.Dataset) -> None:
    """Write the per-subject variables and declare the store complete.

    Parameters
    ----------
    url
        Path of the store.
    subjects
        Variables and coordinates over ``subject`` alone.
    """
    with _quiet():
        _write(url, _text(annotate(subjects)))
    _update_root(url, {"complete": True})


def open_store(url: str | Path) -> xr.Dataset:
    """Open a cohort store lazily.

    Parameters
    ----------
    url
        Path of a finished store.

    Returns
    -------
    Dataset
        Images are Dask arrays (subject, voxel) in blocks of whole shards; everything else
        is read when it is used.

    Raises
    ------
    StoreError
        When there is no store, its ingest is not finished, or its format is newer.
    """
    attrs = store_attributes(url)
    if not attrs or "format_version" not in attrs:
        raise StoreError(
            f"{url}: not a scalebrain store. Make one with: scalebrain ingest BIDS_DIR STORE"
        )
    if attrs["format_version"] != FORMAT_VERSION:
        raise StoreError(
            f"{url}: store format {attrs['format_version']}, this version reads {FORMAT_VERSION}. "
            "Upgrade scalebrain, or ingest again."
        )
    if not attrs.get("complete"):
        raise StoreError(
            f"{url}: its ingest was interrupted. Run the same ingest again: it goes on from there."
        )
    with _quiet():
        ds = xr.open_zarr(url, consolidated=False, chunks=None)
    known = set(attrs.get("saved_variables", ()))
    pending = [name for name in ds.variables if ds[name].attrs.get("saved") and name not in known]
    ds = ds.drop_vars(pending)
    ds = _readable(ds)
    rank = {name: i for i, name in enumerate(REGISTRY)}
    order = sorted(map(str, ds.variables), key=lambda name: rank.get(name, len(rank)))
    ds = ds[order]
    blocks: dict[str, xr.DataArray] = {}
    for name, variable in ds.data_vars.items():
        if variable.dims[:1] == ("subject",) and "voxel" in variable.dims:
            blocks[str(name)] = variable.chunk(subject=ROWS_PER_SHARD, voxel=-1)
        elif name == "node_features":
            blocks[str(name)] = variable.chunk(subject=_SMALL_BLOCK)
    ds = ds.assign(blocks)
    coordinates = [
        name
        for name in (
            "age",
            "sex",
            "cohort",
            "group",
            "x",
            "y",
            "z",
            "parcel",
            "node_label",
            "white_reference",
        )
        if name in ds.data_vars
    ]
    ds = ds.set_coords(coordinates)
    for name in ds.variables:
        ds[name].attrs.pop("saved", None)
    ds.attrs = {k: v for k, v in ds.attrs.items() if k not in _RESERVED} | {
        "format_version": FORMAT_VERSION
    }
    return ds


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
        When a dimension or its labels differ from the store's.
    """
    attrs = store_attributes(url)
    if not attrs:
        root = {k: v for k, v in ds.attrs.items() if k not in _RESERVED}
        root |= {"format_version": FORMAT_VERSION, "complete": False, "saved_variables": []}
        with _quiet():
            zarr.create_group(str(url), zarr_format=3, attributes=root, overwrite=True)
            _write(url, _text_lazily(annotate(ds)))
        _update_root(url, {**root, "complete": True})
        return
    existing = open_store(url)
    for dim, size in ds.sizes.items():
        if dim in existing.sizes and existing.sizes[dim] != size:
            raise StoreError(
                f"{url}: '{dim}' has {size} entries, the store has {existing.sizes[dim]}. "
                "Save variables over all of them."
            )
        if dim in ds.coords and dim in existing.coords:
            ours, theirs = ds[dim].values, existing[dim].values
            if not np.array_equal(ours.astype(str), theirs.astype(str)):
                raise StoreError(
                    f"{url}: the labels along '{dim}' differ from the store's, or their order. "
                    "Reindex to the store's."
                )
    keep = [name for name in ds.data_vars if not _is_image(ds[name])]
    new = ds[keep].drop_vars([c for c in ds.coords if c in existing.variables])
    new = new.reset_coords(drop=False)
    for name in new.variables:
        new[name].attrs = {**new[name].attrs, "saved": True}
    names = sorted({str(n) for n in new.variables} | set(attrs.get("saved_variables", ())))
    rewritten = [str(n) for n in new.variables if n in attrs.get("saved_variables", ())]
    if rewritten:  # until they are whole again, they are not there
        _update_root(url, {"saved_variables": [n for n in names if n not in new.variables]})
    with _quiet():
        root_group = zarr.open_group(str(url), mode="r+")
        for name in new.variables:
            if str(name) in root_group:
                del root_group[str(name)]
        _write(url, _text(annotate(new)))
    _update_root(url, {**attrs, "saved_variables": names})


def _is_image(variable: xr.DataArray) -> bool:
    """Whether a variable is one of the big arrays, which only the ingest writes."""
    return "subject" in variable.dims and "voxel" in variable.dims


def _text_lazily(ds: xr.Dataset) -> xr.Dataset:
    """Text made storable, images left lazy and chunked by shard."""
    small = ds.drop_vars([name for name in ds.data_vars if _is_image(ds[name])])
    out = _text(small)
    for name in ds.data_vars:
        if _is_image(ds[name]):
            chunked = ds[name].chunk(subject=ROWS_PER_SHARD, voxel=-1)
            chunked.encoding = {
                "chunks": (1, ds.sizes["voxel"]),
                "shards": (ROWS_PER_SHARD, ds.sizes["voxel"]),
            }
            out[name] = chunked
    return out


def row_hash(rows: Sequence[npt.NDArray[np.generic]]) -> str:
    """SHA-256 over the stored rows of one subject."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


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


def write_results(
    results: Mapping[str, xr.Dataset], url: str | Path, *, attrs: Mapping[str, Any]
) -> None:
    """Write small Datasets of statistics, one group each; what was there is replaced.

    Parameters
    ----------
    results
        Datasets by name.
    url
        Path of the store of results.
    attrs
        Root attributes.
    """
    with _quiet():
        zarr.create_group(str(url), zarr_format=3, attributes={"complete": False}, overwrite=True)
        for name, ds in results.items():
            plain = _text(ds)
            for variable in plain.variables:
                plain[variable].attrs = {k: _plain(v) for k, v in plain[variable].attrs.items()}
            plain.attrs = {k: _plain(v) for k, v in ds.attrs.items()}
            plain.to_zarr(url, group=name, mode="w", consolidated=False, zarr_format=3)
    _update_root(url, {**attrs, "complete": True, "names": sorted(results)})


def _plain(value: Any) -> Any:
    """Value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


def read_results(url: str | Path) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Read what :func:`write_results` wrote.

    Parameters
    ----------
    url
        Path of the store of results.

    Returns
    -------
    results
        Datasets by name, in memory.
    attrs
        Root attributes.

    Raises
    ------
    StoreError
        When there is none, or its writing was interrupted.
    """
    attrs = store_attributes(url)
    if not attrs.get("complete"):
        raise StoreError(f"{url}: no finished results. Run the study again.")
    out = {}
    for name in attrs["names"]:
        with _quiet(), xr.open_zarr(url, group=name, consolidated=False, chunks=None) as ds:
            loaded = _readable(ds.load())
            out[name] = loaded[sorted(map(str, loaded.variables))]
    return out, attrs


def _readable(ds: xr.Dataset) -> xr.Dataset:
    """Text of a store as fixed-width NumPy text, which every library takes."""
    text = {
        n: (v.dims, v.values.astype(object).astype(str), v.attrs)
        for n, v in ds.variables.items()
        if v.dtype.kind in "OT"
    }
    return ds.assign_coords({n: v for n, v in text.items() if n in ds.coords}).assign(
        {n: v for n, v in text.items() if n not in ds.coords}
    )
