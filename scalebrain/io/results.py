"""Small Datasets of statistics: one Zarr group each, in a store of results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from scalebrain.errors import StoreError
from scalebrain.io.plain import readable, storable_text
from scalebrain.io.store import quiet, store_attributes, update_root

__all__ = ["read_results", "write_results"]


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
    if Path(url).exists() and any(Path(url).iterdir()) and not store_attributes(url):
        raise StoreError(f"{url}: exists and is not a store of results. Give a new path.")
    with quiet():
        zarr.create_group(str(url), zarr_format=3, attributes={"complete": False}, overwrite=True)
        for name, ds in results.items():
            plain = storable_text(ds)
            plain.to_zarr(url, group=name, mode="w", consolidated=False, zarr_format=3)
    update_root(url, {**attrs, "complete": True, "names": sorted(results)})


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
    if not attrs:
        raise StoreError(
            f"{url}: holds no results. Give the results.zarr of a study, or what motor wrote; if "
            "it is that, run the study again."
        )
    if not attrs.get("complete"):
        raise StoreError(f"{url}: no finished results. Run the study again.")
    if "names" not in attrs:
        raise StoreError(
            f"{url}: is no store of results. Give the results.zarr of a study, or what motor wrote."
        )
    out = {}
    for name in attrs["names"]:
        with quiet(), xr.open_zarr(url, group=name, consolidated=False, chunks=None) as ds:
            loaded = readable(ds.load())
            out[name] = loaded[sorted(map(str, loaded.variables))]
    return out, attrs
