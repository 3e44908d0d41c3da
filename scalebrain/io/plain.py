"""What pandas, Python and stores hold as plain NumPy arrays, and attributes as JSON has them."""

from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import StoreError, check_all
from scalebrain.variables import REGISTRY

__all__ = [
    "is_same",
    "plain_arrays",
    "plain_attributes",
    "readable",
    "storable_arrays",
    "storable_text",
    "without_pandas_text",
]

#: Up to here float64 holds every whole number.
_LARGEST = 2**53


def plain_arrays(ds: xr.Dataset) -> xr.Dataset:
    """Turn columns of pandas and of objects into numbers, flags or text.

    Parameters
    ----------
    ds
        Dataset; it is not changed, and what is lazy stays so, but for objects.

    Returns
    -------
    Dataset
        Missing is NaN in numbers, and empty in text; flags of which some are missing are numbers.
        What is neither, or both, or holds a whole number of more digits than float64 has, is left
        as objects.
    """
    out = ds.copy()
    for name, variable in ds.variables.items():
        kind = variable.dtype
        if isinstance(kind, pd.api.extensions.ExtensionDtype):
            values = np.asarray(variable.data)
            if values.dtype.kind == "f" and kind.kind != "f":  # beside a missing value: not rounded
                values = np.asarray(variable.data.astype(object), dtype=object)
        elif kind.kind == "O" or hasattr(kind, "na_object"):
            values = np.asarray(variable.values, dtype=object)
        else:
            continue
        if values.dtype.kind == "O":
            spec = REGISTRY.get(str(name))
            values = _resolved(values, "f" if spec is not None and spec.kind == "f" else "U")
        if values.dtype != kind:
            out[name] = (variable.dims, values, variable.attrs)
    return out


def without_pandas_text(ds: xr.Dataset) -> xr.Dataset:
    """Turn text of pandas into objects: xarray selects from it by no integers.

    Parameters
    ----------
    ds
        Dataset; it is not changed.

    Returns
    -------
    Dataset
        Missing text is None; all else is as it was.
    """
    out = ds.copy()
    for name, variable in ds.variables.items():
        if isinstance(variable.dtype, pd.StringDtype):
            values = np.array(variable.data, dtype=object)
            values[pd.isna(values)] = None
            out[name] = (variable.dims, values, variable.attrs)
    return out


def storable_arrays(ds: xr.Dataset) -> xr.Dataset:
    """Do what :func:`plain_arrays` does, and refuse what no store can hold.

    Parameters
    ----------
    ds
        Dataset; it is not changed.

    Returns
    -------
    Dataset
        Plain arrays and attributes.

    Raises
    ------
    StoreError
        When a variable holds neither numbers alone, nor flags, nor text.
    """
    out = plain_arrays(ds)
    failures = []
    for name, variable in out.variables.items():
        out[name].attrs = plain_attributes(variable.attrs)
        if variable.dtype.kind != "O":
            continue
        first = {
            type(v).__name__: v for v in variable.values.ravel()[::-1] if not np.all(pd.isna(v))
        }
        large = [v for v in variable.values.ravel() if not _is_exact(v)]
        if large and str not in map(type, first.values()):
            failures.append(
                f"variable '{name}' holds {large[0]}, which has more digits than float64 keeps "
                f"(whole numbers up to {_LARGEST}). Make it text, as ds['{name}'].astype(str), or "
                "leave it out."
            )
        elif any(not isinstance(v, str) for v in first.values()):
            found = " and ".join(f"{kind} ({v!r:.40})" for kind, v in sorted(first.items()))
            failures.append(
                f"variable '{name}' holds {found}, expected numbers, flags or text alone. Make it "
                f"one of them, as ds['{name}'].astype(str), or leave it out."
            )
    check_all(failures, StoreError, "Dataset: not all of it can be stored")
    out.attrs = plain_attributes(ds.attrs)
    return out


def _resolved(values: npt.NDArray[Any], empty: str) -> npt.NDArray[Any]:
    """Objects as what all of them are; `empty` is the kind where all are missing."""
    missing = pd.isna(values)
    told = values[~missing].tolist()
    if not told and empty == "f":
        return np.full(values.shape, np.nan)
    if all(isinstance(v, str) for v in told):
        return np.where(missing, "", values).astype(np.str_) if missing.any() else values
    flags = all(isinstance(v, bool | np.bool_) for v in told)
    if not flags and not all(isinstance(v, Real | Decimal | np.bool_) for v in told):
        return values
    if flags and not missing.any():
        return values.astype(bool)
    if not all(_is_exact(v) for v in told):
        return values
    return np.where(missing, np.nan, values).astype(np.float64)


def _is_exact(value: Any) -> bool:
    """Whether float64 holds a whole number; of others that is not asked."""
    return not isinstance(value, Integral) or abs(int(value)) <= _LARGEST


def plain_attributes(value: Any) -> Any:
    """Value of an attribute as JSON has it."""
    if isinstance(value, Mapping):
        return {str(k): plain_attributes(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_attributes(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


def storable_text(ds: xr.Dataset) -> xr.Dataset:
    """Variable-length text everywhere: a fixed length would cut what is appended later.

    Parameters
    ----------
    ds
        Dataset; it is not changed.

    Returns
    -------
    Dataset
        Plain arrays and attributes; missing is NaN, or empty text.

    Raises
    ------
    StoreError
        When a variable holds neither numbers alone, nor flags, nor text.
    """
    out = storable_arrays(ds)
    for name, variable in out.copy().variables.items():
        if variable.dtype.kind in "UOT":
            values = np.asarray(variable.values, dtype=np.dtypes.StringDType())
            out[name] = (variable.dims, values, variable.attrs)
        out[name].encoding = {}
    return out


def readable(ds: xr.Dataset) -> xr.Dataset:
    """Text of a store as fixed-width NumPy text, which every library takes."""
    text = {
        n: (v.dims, v.values.astype(object).astype(str), v.attrs)
        for n, v in ds.variables.items()
        if v.dtype.kind in "OT"
    }
    return ds.assign_coords({n: v for n, v in text.items() if n in ds.coords}).assign(
        {n: v for n, v in text.items() if n not in ds.coords}
    )


def is_same(ours: xr.DataArray, theirs: xr.DataArray) -> bool:
    """Whether a small coordinate is that of a store; one of other dims, or of voxels, is."""
    if ours.dims != theirs.dims or {"voxel", "vertex"} & {*map(str, ours.dims)}:
        return True
    kinds = {ours.dtype.kind, theirs.dtype.kind}
    if kinds <= set("bfiu"):
        a, b = (one.values.astype(np.float64) for one in (ours, theirs))
        return bool(np.allclose(a, b, rtol=1e-6, atol=0, equal_nan=True))
    if kinds in ({"M"}, {"m"}):  # of whatever unit
        missing = np.isnat(ours.values) & np.isnat(theirs.values)
        return bool(((ours.values == theirs.values) | missing).all())
    return np.array_equal(ours.values.astype(str), theirs.values.astype(str))
