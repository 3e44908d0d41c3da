"""Look at one variable on the brain, interactively and without a network: nilearn's viewers."""

import json
import re
from collections.abc import Hashable
from html import escape
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.io.store import unpack
from scalebrain.report.regionplot import parcel_values, regions_of, side_words, values_of_regions
from scalebrain.report.surface import nodes_on_surface
from scalebrain.report.surfaceviewer import view_surface
from scalebrain.report.volume import background_vector
from scalebrain.variables import validate

__all__ = ["view"]

FloatArray = npt.NDArray[np.float64]

#: What stands for a title while nilearn makes a page.
_TITLE = "title-of-scalebrain"
_ICON = re.compile(r'<link\s+rel="icon"[^>]*>')


def view(
    ds: xr.Dataset,
    variable: Hashable | xr.DataArray,
    *,
    subject: str | None = None,
    lesion: bool = True,
    reduce: Literal["mean", "median"] = "median",
    regions: RegionSet | None = None,
    surface: bool | None = None,
) -> Any:
    """Look at a variable on the brain, in a notebook or a browser.

    Parameters
    ----------
    ds
        Dataset of a store. One subject's row is read, or a few for the background.
    variable
        An image (``t1w``, ``gm``, ``lesion_mask``), a map over ``voxel``
        (``lesion_frequency``), values of regions, which are painted on their parcels, or of
        nodes or vertices (``thickness``), which are painted on the cortex.
    subject
        Subject whose image, or values of regions, nodes or vertices, are shown.
    lesion
        Draw the subject's lesion over its images.
    reduce
        As for :func:`scalebrain.plot_regions`.
    regions
        Region set; the default 18 regions when None.
    surface
        Paint values of regions on the cortical surface, which is turned with the mouse, in
        place of slices. Default: where the nodes of the store are on the surface.

    Returns
    -------
    nilearn.plotting.html_document.HTMLDocument or SurfacePage
        A notebook shows it; ``save_as_html`` writes it, ``open_in_browser`` opens it. It loads
        nothing from a network. Left is left (neurological), coordinates are mm;
        ipsilesional regions are drawn on the left, and the title says so.

    Raises
    ------
    MissingVariableError
        When there is no such variable or subject.
    StatisticsError
        When a subject is needed, or the variable has other dimensions.
    """
    array = variable if isinstance(variable, xr.DataArray) else _variable(ds, variable)
    if {"node", "vertex"} & set(array.dims):
        return view_surface(ds, array, subject=subject, reduce=reduce)
    if surface is None:
        surface = nodes_on_surface(ds) is not None
    if "region" in array.dims and surface:
        return view_surface(ds, array, subject=subject, reduce=reduce, regions=regions)
    if "region" in array.dims:
        value, _ = values_of_regions(ds, array, subject=subject, reduce=reduce)
        painted = parcel_values(value, regions_of(value, regions))
        validate(ds, "parcel")
        codes = ds["parcel"].values
        lookup = {int(code): painted.get(int(code), np.nan) for code in np.unique(codes)}
        values = np.array([lookup[int(code)] for code in codes])
        background = _row(ds, "t1w", subject) if subject else background_vector(ds)
        title = _title(value.name, subject)
        left, right = side_words(value)
        if left != "left":
            title += f" (left: {left}, right: {right})"
        return _on_volume(ds, background, values, title)
    if array.dims == ("voxel",):
        values = np.asarray(array.values, dtype=np.float64)
        values = np.where(values > 0, values, np.nan) if np.nanmin(values) >= 0 else values
        background = _row(ds, "t1w", subject) if subject else background_vector(ds)
        return _on_volume(ds, background, values, _title(array.name, subject))
    if set(array.dims) != {"subject", "voxel"}:
        raise StatisticsError(
            f"'{array.name}' has dims {array.dims}, expected voxel, region, node or vertex, with "
            "or without subject. Reduce or select the others first."
        )
    if subject is None:
        raise StatisticsError(
            f"'{array.name}' has an image of each of {array.sizes['subject']} subjects. Name one: "
            f"subject='{array['subject'].values[0]}'."
        )
    is_mask = array.dtype.kind == "b"
    image = _of_subject(array, subject)
    over = None
    if is_mask:
        over, image = image, _row(ds, "t1w", subject)
    elif lesion and "lesion_mask" in ds:
        over = _row(ds, "lesion_mask", subject)
    if over is not None:
        over = np.where(over > 0, 1.0, np.nan)
    return _on_volume(ds, image, over, _title(array.name, subject))


def _variable(ds: xr.Dataset, name: Hashable) -> xr.DataArray:
    """Variable of a Dataset."""
    if name not in ds.variables:
        drawn = {"voxel", "region", "node", "vertex"}
        there = [str(n) for n, v in ds.variables.items() if drawn & set(v.dims)]
        raise MissingVariableError(
            f"Dataset: no variable '{name}'. There is: {', '.join(sorted(there)) or 'none'}."
        )
    return ds[name]


def _of_subject(array: xr.DataArray, subject: str) -> FloatArray:
    """Row of one subject, the only one that is read."""
    if subject not in array["subject"].values:
        raise MissingVariableError(f"'{array.name}': no subject '{subject}'. See ds.subject.")
    row = np.asarray(array.sel(subject=subject).values, dtype=np.float64)
    if not np.isfinite(row).any():
        raise MissingVariableError(f"'{array.name}': '{subject}' has no image. Choose another one.")
    return row


def _row(ds: xr.Dataset, name: str, subject: str) -> FloatArray:
    """Row of one subject of a variable that the Dataset must have."""
    validate(ds, name)
    return _of_subject(ds[name], subject)


def _title(name: Hashable, subject: str | None) -> str:
    """Short title."""
    words = str(name).replace("_", " ")
    return f"{words}, {subject}" if subject else words


def _image(ds: xr.Dataset, values: FloatArray, *, outside: float = 0.0) -> nib.Nifti1Image:
    """Volume of a vector over ``voxel``."""
    volume = unpack(ds["x"].copy(data=np.asarray(values, dtype=np.float64)))
    data = np.nan_to_num(volume.values, nan=outside).astype(np.float32)
    return nib.Nifti1Image(data, np.asarray(volume.attrs["affine"]))


def _on_volume(
    ds: xr.Dataset, background: FloatArray, values: FloatArray | None, title: str
) -> Any:
    """Three planes with a crosshair."""
    under = _image(ds, background)
    if values is None or not np.isfinite(values).any():
        return _offline(
            under,
            bg_img=False,
            cmap="gray",
            symmetric_cmap=False,
            title=title,
            colorbar=False,
            black_bg=True,
            threshold=None,
        )
    finite = values[np.isfinite(values)]
    diverging = bool(finite.min() < 0)
    flat = bool(finite.min() == finite.max())
    small = float(np.abs(finite[finite != 0]).min()) if (finite != 0).any() else 0.0
    return _offline(
        _image(ds, values),
        bg_img=under,
        cmap="RdBu_r" if diverging else "autumn" if flat else "inferno",
        symmetric_cmap=diverging,
        vmax=float(np.abs(finite).max()) or None,
        threshold=small * 0.5,
        colorbar=not flat,
        opacity=0.6,
        title=title,
        black_bg=True,
        resampling_interpolation="nearest",
    )


def _offline(image: nib.Nifti1Image, *, title: str, **options: Any) -> Any:
    """Make the page of nilearn without its icon, which a browser would fetch from a network.

    nilearn writes the title into the page as it is, and a label of a subject may hold anything.
    """
    from nilearn.plotting import view_img

    page = view_img(image, title=_TITLE, **options)
    words = json.dumps(title).replace("<", "\\u003c")
    page.html = _ICON.sub("", page.html).replace(f'"{_TITLE}"', words)
    page.html = page.html.replace(_TITLE, escape(title))
    return page
