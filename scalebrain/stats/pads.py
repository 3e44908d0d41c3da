"""Which brain-PAD a store offers: of our model, or of another tool, regional or not."""

from dataclasses import dataclass

import xarray as xr

__all__ = ["GLOBAL_REGION", "Pad", "find_pad"]

#: Region of a result that is of the whole brain.
GLOBAL_REGION = "whole_brain"


@dataclass(frozen=True)
class Pad:
    """A variable of differences between brain age and age.

    Parameters
    ----------
    name
        Variable.
    is_global
        It lies over ``subject`` alone.
    is_corrected
        Its age bias is taken out; otherwise age has to be a covariate.
    has_slope
        ``calibration_slope`` says which part of a true deviation it carries.
    """

    name: str
    is_global: bool = False
    is_corrected: bool = True
    has_slope: bool = True

    @property
    def told(self) -> str:
        """What the statistics take, in a few words."""
        return f"{self.name} / calibration_slope" if self.has_slope else self.name


def find_pad(ds: xr.Dataset) -> Pad:
    """Find the brain-PAD that models are made of.

    Parameters
    ----------
    ds
        Dataset of a store.

    Returns
    -------
    Pad
        The corrected one where there is one, regional ones first. ``brain_pad_corrected``,
        missing as it is, when there is none at all.
    """
    for name in ("brain_pad_corrected", "brain_pad"):
        # our own model always has the corrected one with its slope
        if name in ds.variables and "tool" in ds[name].attrs:
            return Pad(
                name,
                is_corrected=name != "brain_pad",
                has_slope=name != "brain_pad" and "calibration_slope" in ds.variables,
            )
    if "brain_pad_corrected" not in ds.variables:
        for name in ("brain_pad_global_corrected", "brain_pad_global"):
            if name in ds.variables:
                return Pad(name, True, name != "brain_pad_global", False)
    return Pad("brain_pad_corrected")
