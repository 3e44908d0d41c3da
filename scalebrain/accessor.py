"""``ds.scalebrain``: the public functions as methods of a Dataset."""

from typing import TYPE_CHECKING, Any

import xarray as xr

import scalebrain

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from scalebrain.report.summary import Summary

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

    def __repr__(self) -> str:
        """Say what the Dataset holds."""
        return str(self.summary())

    def _repr_html_(self) -> str:
        """Show what the Dataset holds in a notebook."""
        return self.summary()._repr_html_()

    def summary(self) -> "Summary":
        """Who is in the Dataset and which results."""
        return scalebrain.summary(self._ds)

    def table(self, names: Any = None, **options: Any) -> "pd.DataFrame":
        """Tidy table of variables."""
        return scalebrain.table(self._ds, names, **options)

    def plot_regions(self, variable: Any, **options: Any) -> "Figure":
        """Draw values of regions on the cortex and as dots."""
        return scalebrain.plot_regions(self._ds, variable, **options)

    def view(self, variable: Any, **options: Any) -> Any:
        """Look at a variable on the brain, interactively."""
        return scalebrain.view(self._ds, variable, **options)

    def export_bids(self, out: Any, **options: Any) -> "Path":
        """Write everything as BIDS derivatives and Parquet."""
        return scalebrain.export_bids(self._ds, out, **options)

    def parcellate(self, **options: Any) -> xr.Dataset:
        """Statistics of an image over every region."""
        return scalebrain.parcellate(self._ds, **options)

    def node_features(self, **options: Any) -> xr.Dataset:
        """Features of every node."""
        return scalebrain.node_features(self._ds, **options)

    def surface_features(self, **options: Any) -> xr.Dataset:
        """Features of every node on the cortical surface."""
        return scalebrain.surface_features(self._ds, **options)

    def mask_lesions(self) -> xr.Dataset:
        """Take lesioned voxels out of the images."""
        return scalebrain.mask_lesions(self._ds)

    def enantiomorphic(self) -> xr.Dataset:
        """Replace lesioned voxels by the mirrored ones of the same images."""
        return scalebrain.enantiomorphic(self._ds)

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

    def lesion_frequency(self, **options: Any) -> xr.Dataset:
        """How often every voxel is lesioned."""
        return scalebrain.lesion_frequency(self._ds, **options)

    def lesion_measures(self) -> xr.Dataset:
        """Pieces and center of every lesion, and how far it is from the tracts."""
        return scalebrain.lesion_measures(self._ds)

    def network_load(self, **options: Any) -> xr.Dataset:
        """Fraction of every network that is lesioned."""
        return scalebrain.network_load(self._ds, **options)

    def to_lesional_sides(self) -> xr.Dataset:
        """Relabel regions and tracts by the side of the lesion."""
        return scalebrain.to_lesional_sides(self._ds)

    def brain_age(self, model: Any) -> xr.Dataset:
        """Predict the brain age of every region."""
        return scalebrain.brain_age(self._ds, model)

    def harmonize(self, **options: Any) -> xr.Dataset:
        """Take the effects of sites out of variables."""
        return scalebrain.harmonize(self._ds, **options)

    def mixed_model(self, formula: str, **options: Any) -> xr.Dataset:
        """Fit one linear mixed model per region."""
        return scalebrain.mixed_model(self._ds, formula, **options)

    def normative(self, **options: Any) -> xr.Dataset:
        """Place everyone's regional brain age among healthy people."""
        return scalebrain.normative(self._ds, **options)

    def site_shift(self, **options: Any) -> xr.Dataset:
        """Estimate by how many years the brain ages of each site are off."""
        return scalebrain.site_shift(self._ds, **options)

    def site_summary(self, formula: str, **options: Any) -> xr.Dataset:
        """Sum up what a model needs of every cohort, and nothing of a person."""
        return scalebrain.site_summary(self._ds, formula, **options)

    def lesion_symptom_map(self, formula: str, **options: Any) -> xr.Dataset:
        """Test in every voxel whether people lesioned there have another outcome."""
        return scalebrain.lesion_symptom_map(self._ds, formula, **options)

    def multiverse(self, **options: Any) -> xr.Dataset:
        """Fit every headline effect under every combination of choices."""
        return scalebrain.multiverse(self._ds, **options)

    def sem(self, model: str | None = None, **options: Any) -> xr.Dataset:
        """Fit a structural equation model."""
        return scalebrain.sem(self._ds, model, **options)

    def predict_motor(self, **options: Any) -> xr.Dataset:
        """Predict motor outcome, leaving one cohort out at a time."""
        return scalebrain.predict_motor(self._ds, **options)
