"""``ds.scalebrain``: the public functions as methods of a Dataset."""

from typing import Any

import xarray as xr

import scalebrain

__all__ = ["ScalebrainAccessor"]


@xr.register_dataset_accessor("scalebrain")
class ScalebrainAccessor:
    """Public functions of scalebrain on a Dataset; see the function of the same name.

    Parameters
    ----------
    ds
        Dataset of a store.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def parcel_features(self) -> xr.Dataset:
        """Mean and SD of the images over every parcel."""
        return scalebrain.parcel_features(self._ds)

    def node_features(self, **options: Any) -> xr.Dataset:
        """Features of every node."""
        return scalebrain.node_features(self._ds, **options)

    def inclusion(self, **options: Any) -> xr.Dataset:
        """Who takes part, and why someone does not."""
        return scalebrain.inclusion(self._ds, **options)

    def lesion_volume(self) -> xr.Dataset:
        """Volume of every lesion."""
        return scalebrain.lesion_volume(self._ds)

    def lesion_load(self, **options: Any) -> xr.Dataset:
        """Fraction of every region that is lesioned."""
        return scalebrain.lesion_load(self._ds, **options)

    def tract_load(self) -> xr.Dataset:
        """Load of the lesion on every tract."""
        return scalebrain.tract_load(self._ds)

    def lesion_frequency(self) -> xr.Dataset:
        """How often every voxel is lesioned."""
        return scalebrain.lesion_frequency(self._ds)

    def to_lesional_sides(self) -> xr.Dataset:
        """Relabel regions and tracts by the side of the lesion."""
        return scalebrain.to_lesional_sides(self._ds)

    def brain_age(self, model: Any) -> xr.Dataset:
        """Predict the brain age of every region."""
        return scalebrain.brain_age(self._ds, model)

    def mixed_model(self, formula: str, **options: Any) -> xr.Dataset:
        """Fit one linear mixed model per region."""
        return scalebrain.mixed_model(self._ds, formula, **options)

    def sem(self, model: str | None = None, **options: Any) -> xr.Dataset:
        """Fit a structural equation model."""
        return scalebrain.sem(self._ds, model, **options)

    def predict_motor(self, **options: Any) -> xr.Dataset:
        """Predict motor outcome, leaving one cohort out at a time."""
        return scalebrain.predict_motor(self._ds, **options)
