"""Versions of scalebrain and of what it computes with."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

__all__ = ["print_versions", "versions"]

_PACKAGES = (
    "numpy",
    "dask",
    "distributed",
    "xarray",
    "zarr",
    "torch",
    "torch-geometric",
    "numba",
    "nibabel",
)


def versions() -> dict[str, str]:
    """Return the version of scalebrain, of Python, and of the packages that results depend on."""
    found = {"scalebrain": version("scalebrain"), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def print_versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print one line a package, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    for name, found in versions().items():
        click.echo(f"{name} {found}")
    ctx.exit()
