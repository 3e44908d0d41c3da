"""Dimension names and the registry of every variable that scalebrain reads or writes.

A variable is named here before any function uses it. :func:`validate` checks a Dataset
against the registry, :func:`annotate` puts units and long names on what a function
returns.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import xarray as xr

from scalebrain.errors import MissingVariableError

__all__ = ["FEATURES", "REGISTRY", "SURFACE_FEATURES", "VariableSpec", "annotate", "validate"]


@dataclass(frozen=True)
class VariableSpec:
    """Name, shape and meaning of one variable.

    Parameters
    ----------
    name
        Variable name in a Dataset.
    dims
        Dimension names, in order.
    kind
        NumPy dtype kinds that are accepted: ``f`` float, ``b`` bool, ``i`` integer,
        ``U`` text.
    units
        Unit, ``"1"`` for a pure number, ``""`` for text and flags.
    long_name
        One sentence.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    units: str
    long_name: str


#: Names of the node features of the volume path, in order.
FEATURES: tuple[str, ...] = ("gm_mean", "t1w_mean", "t1w_sd", "contrast", "gm_contrast")

#: Names of the node features of the surface path, in order.
SURFACE_FEATURES: tuple[str, ...] = ("thickness", "wg_contrast")

_S = ("subject",)
_SV = ("subject", "voxel")
_SR = ("subject", "region")
_ST = ("subject", "tract")
_V = ("voxel",)
_SW = ("subject", "row")
_PR = ("pair", "region")
_PH = ("policy", "reach")
_SX = ("subject", "vertex")

REGISTRY: dict[str, VariableSpec] = {
    spec.name: spec
    for spec in (
        # images
        VariableSpec("t1w", _SV, "f", "1", "T1-weighted intensity, as in the file"),
        VariableSpec("gm", _SV, "f", "1", "Grey-matter probability"),
        VariableSpec("lesion_mask", _SV, "b", "", "True where the lesion mask is set"),
        # surfaces
        VariableSpec("thickness", _SX, "f", "mm", "Cortical thickness"),
        VariableSpec("wg_contrast", _SX, "f", "%", "Grey/white intensity contrast"),
        VariableSpec("curvature", _SX, "f", "1/mm", "Mean curvature of the white surface"),
        VariableSpec("sulcal_depth", _SX, "f", "1", "Sulcal depth, as FreeSurfer has it"),
        VariableSpec("hemisphere", ("vertex",), "UOT", "", "L or R"),
        VariableSpec(
            "structure_volume",
            ("subject", "structure"),
            "f",
            "mL",
            "Volume of the aseg structure",
        ),
        # voxels
        VariableSpec("x", _V, "f", "mm", "Right (+), left (-)"),
        VariableSpec("y", _V, "f", "mm", "Anterior (+), posterior (-)"),
        VariableSpec("z", _V, "f", "mm", "Superior (+), inferior (-)"),
        VariableSpec("parcel", _V, "i", "", "Parcel code of the voxel, 0 outside every parcel"),
        VariableSpec("node_label", _V, "i", "", "Position on `node`, -1 outside every node"),
        VariableSpec("white_reference", _V, "b", "", "Eroded white matter of the template"),
        VariableSpec("tract_probability", ("tract", "voxel"), "f", "1", "Probability of the tract"),
        # graph
        VariableSpec("node_parcel", ("node",), "i", "", "Parcel code of the node"),
        VariableSpec("node_x", ("node",), "f", "mm", "Centroid of the node, x"),
        VariableSpec("node_y", ("node",), "f", "mm", "Centroid of the node, y"),
        VariableSpec("node_z", ("node",), "f", "mm", "Centroid of the node, z"),
        VariableSpec("edge_source", ("edge",), "i", "", "First node of an undirected edge"),
        VariableSpec("edge_target", ("edge",), "i", "", "Second node of an undirected edge"),
        # subjects
        VariableSpec("age", _S, "f", "years", "Age at the scan"),
        VariableSpec("sex", _S, "UOT", "", "F or M"),
        VariableSpec("cohort", _S, "UOT", "", "Cohort (site) of the subject"),
        VariableSpec("group", _S, "UOT", "", "reference or stroke"),
        VariableSpec("days_post_stroke", _S, "f", "days", "Days from stroke to scan"),
        VariableSpec("icv", _S, "f", "mL", "Intracranial volume"),
        VariableSpec("motor_score", _S, "f", "1", "Motor score over its maximum, 1 is unimpaired"),
        VariableSpec("motor_scale", _S, "UOT", "", "Scale of motor_score, empty when not named"),
        VariableSpec("scan_present", _S, "b", "", "The subject's T1w is in the store"),
        VariableSpec("lesion_present", _S, "b", "", "The subject has a lesion mask"),
        VariableSpec("person", _S, "UOT", "", "Person; several sessions are of one person"),
        VariableSpec("session", _S, "UOT", "", "Session of the scan, empty when there is one"),
        VariableSpec("dataset", _S, "UOT", "", "Dataset that the subject came from"),
        VariableSpec("source_space", _S, "UOT", "", "Template space of the subject's images"),
        VariableSpec("age_censored", _S, "b", "", "The age was given as at least this"),
        VariableSpec("lesion_side", _S, "UOT", "", "Side of the lesion by the table"),
        VariableSpec("paresis_side", _S, "UOT", "", "Side of the paresis by the table"),
        VariableSpec("gm_present", _S, "b", "", "The subject has grey-matter probabilities"),
        VariableSpec("surface_present", _S, "b", "", "The subject has cortical measures"),
        VariableSpec("freesurfer_version", _S, "UOT", "", "FreeSurfer that made the surfaces"),
        VariableSpec("warnings", _S, "UOT", "", "Codes of what was odd at the ingest, by ;"),
        VariableSpec(
            "template_overlap", _S, "f", "1", "Correlation of the T1w with MNI152NLin2009cAsym"
        ),
        VariableSpec(
            "template_overlap_mirrored", _S, "f", "1", "The same with the template mirrored"
        ),
        VariableSpec("nonfinite_fraction", _S, "f", "1", "NaN or infinite fraction of the brain"),
        VariableSpec("affine_residual", _S, "f", "mm", "Distance of the scan's grid to ours"),
        VariableSpec("scan_hash", _S, "UOT", "", "XXH3 of the T1w row, else of the surfaces"),
        VariableSpec(
            "qc_decision", _S, "UOT", "", "Quality control: accept, exclude, unsure or empty"
        ),
        VariableSpec("qc_note", _S, "UOT", "", "What the rater wrote at the quality control"),
        VariableSpec("included", _S, "b", "", "The subject passed the inclusion filter"),
        VariableSpec("exclusion_reason", _S, "UOT", "", "Why the subject was excluded"),
        # lesions
        VariableSpec("lesion_volume", _S, "f", "mL", "Volume of the whole lesion mask"),
        VariableSpec(
            "lesion_hemisphere",
            _S,
            "UOT",
            "",
            "L, R, bilateral, midline, none (empty mask) or unknown (no mask)",
        ),
        VariableSpec(
            "laterality_index", _S, "f", "1", "(left - right) / (left + right) lesion mass"
        ),
        VariableSpec(
            "lesion_outside_fraction", _S, "f", "1", "Fraction of the lesion outside the brain"
        ),
        VariableSpec(
            "lesion_volume_change", _S, "f", "1", "Relative change of volume by resampling the mask"
        ),
        VariableSpec(
            "lesion_volume_removed", _S, "f", "mL", "Volume of the components below the minimum"
        ),
        VariableSpec("lesion_load", _SR, "f", "1", "Lesioned fraction of the region"),
        VariableSpec("lesion_components", _S, "f", "1", "Pieces of the lesion"),
        VariableSpec("lesion_center_x", _S, "f", "mm", "Center of the lesion, right (+)"),
        VariableSpec("lesion_center_y", _S, "f", "mm", "Center of the lesion, anterior (+)"),
        VariableSpec("lesion_center_z", _S, "f", "mm", "Center of the lesion, superior (+)"),
        VariableSpec(
            "tract_distance", _ST, "f", "mm", "Distance of the lesion to the tract's core"
        ),
        VariableSpec(
            "lesion_filled_fraction", _S, "f", "1", "Lesion that the other hemisphere could fill"
        ),
        VariableSpec("region_excluded", _SR, "b", "", "Too much of the region is lesioned"),
        VariableSpec(
            "network_load", ("subject", "network"), "f", "1", "Lesioned fraction of the network"
        ),
        VariableSpec("n_masks", (), "i", "1", "Subjects with a lesion mask that count"),
        VariableSpec("tract_load", _ST, "f", "1", "Lesioned fraction of the tract"),
        VariableSpec(
            "tract_load_weighted", _ST, "f", "mL", "Weighted lesion load of the tract (Feng 2015)"
        ),
        VariableSpec(
            "tract_load_max", _ST, "f", "1", "Largest lesioned fraction over axial sections"
        ),
        VariableSpec("lesion_frequency", _V, "f", "1", "Fraction of subjects lesioned here"),
        # lesion-symptom map
        VariableSpec("n_lesioned", _V, "i", "1", "Subjects lesioned here, of those used"),
        VariableSpec(
            "t", _V, "f", "1", "t of the lesion status; negative: lesioned here, lower outcome"
        ),
        VariableSpec(
            "p_fwe", _V, "f", "1", "p value against the largest |t| over the voxels (family-wise)"
        ),
        VariableSpec(
            "max_t", ("permutation",), "f", "1", "Largest |t| over the voxels of a permutation"
        ),
        VariableSpec("drop_reason", _S, "UOT", "", "Why the subject was not used, or empty"),
        # features
        VariableSpec(
            "node_features", ("subject", "node", "feature"), "f", "1", "Features of the node"
        ),
        VariableSpec(
            "node_lesioned_fraction", ("subject", "node"), "f", "1", "Lesioned fraction of the node"
        ),
        VariableSpec(
            "parcel_features", ("subject", "parcel", "feature"), "f", "1", "Features of the parcel"
        ),
        # brain age
        VariableSpec("brain_age", _SR, "f", "years", "Predicted age of the region, uncorrected"),
        VariableSpec("brain_age_low", _SR, "f", "years", "Lower end of the conformal interval"),
        VariableSpec("brain_age_high", _SR, "f", "years", "Upper end of the conformal interval"),
        VariableSpec("brain_pad", _SR, "f", "years", "brain_age - age"),
        VariableSpec(
            "brain_pad_corrected",
            _SR,
            "f",
            "years",
            "brain_pad less its age bias in healthy people",
        ),
        VariableSpec(
            "brain_pad_corrected_harmonized",
            _SR,
            "f",
            "years",
            "brain_pad_corrected less the differences of sites",
        ),
        VariableSpec(
            "harmonization", _S, "UOT", "", "How the subject was harmonized, or why it was not"
        ),
        VariableSpec(
            "calibration_slope",
            ("region",),
            "f",
            "1",
            "Part of a true deviation that brain_pad_corrected carries",
        ),
        VariableSpec(
            "imputed_fraction", _SR, "f", "1", "Fraction of the region's nodes that were imputed"
        ),
        VariableSpec("node_attribution", _SW, "f", "years", "Part of the brain age from the node"),
        VariableSpec("node_importance", ("row",), "f", "years", "Mean absolute node_attribution"),
        # lesions put into healthy scans
        VariableSpec(
            "pad_shift",
            ("policy", "pair", "region"),
            "f",
            "years",
            "brain_pad_corrected with the lesion less that without",
        ),
        VariableSpec("region_lesioned", _PR, "f", "1", "Lesioned fraction of the region's nodes"),
        VariableSpec("region_touched", _PR, "b", "", "The lesion reaches what the nodes are of"),
        VariableSpec("pair_age", ("pair",), "f", "years", "Age of the healthy person"),
        VariableSpec("shift_mean", _PH, "f", "years", "Mean shift of brain-PAD"),
        VariableSpec("shift_sd", _PH, "f", "years", "SD of the shift"),
        VariableSpec("shift_size", _PH, "f", "years", "Mean absolute shift"),
        VariableSpec("shift_largest", _PH, "f", "years", "Largest absolute shift"),
        VariableSpec("shift_slope", _PH, "f", "years a year", "Slope of the shift on age"),
        VariableSpec("brain_age_global", _S, "f", "years", "Age of the whole brain, uncorrected"),
        VariableSpec(
            "brain_age_global_low", _S, "f", "years", "Lower end of the interval of the tool"
        ),
        VariableSpec(
            "brain_age_global_high", _S, "f", "years", "Upper end of the interval of the tool"
        ),
        VariableSpec("brain_pad_global", _S, "f", "years", "brain_age_global - age"),
        VariableSpec(
            "brain_pad_global_corrected", _S, "f", "years", "brain_pad_global less its age bias"
        ),
        VariableSpec("brain_age_centile", _SR, "f", "%", "Healthy people of a younger brain age"),
        VariableSpec("brain_age_centile_low", _SR, "f", "%", "Lower end of the centile's interval"),
        VariableSpec(
            "brain_age_centile_high", _SR, "f", "%", "Upper end of the centile's interval"
        ),
        VariableSpec("brain_pad_z", _SR, "f", "1", "Distance from healthy people in their SD"),
        VariableSpec("centile_reason", _S, "UOT", "", "Why the subject has no centile, or empty"),
        VariableSpec("extrapolated", _S, "b", "", "Age is outside the ages of training"),
        VariableSpec("out_of_fold", _S, "b", "", "Predicted by the model that did not train on it"),
    )
}


def validate(ds: xr.Dataset, *names: Hashable, way_out: str = "", dims: Iterable[str] = ()) -> None:
    """Check that a Dataset has variables of the registered shape and kind.

    Parameters
    ----------
    ds
        Dataset to check.
    *names
        Names that must be there, as data variables or coordinates. A name outside the
        registry is checked for presence only.
    way_out
        What the user can do about a missing variable, added to the message.
    dims
        Dimensions that must be there.

    Raises
    ------
    MissingVariableError
        Listing every variable or dimension that is missing or of another shape.
    """
    problems = []
    for name in names:
        if name not in ds.variables:
            problems.append(f"variable '{name}' is missing")
            continue
        spec = REGISTRY.get(str(name))
        if spec is None:
            continue
        variable = ds[name]
        if set(variable.dims) != set(spec.dims):
            problems.append(f"variable '{name}' has dims {variable.dims}, expected {spec.dims}")
        elif variable.dtype.kind not in spec.kind:
            problems.append(
                f"variable '{name}' has dtype {variable.dtype}, expected kind '{spec.kind}'"
            )
    problems += [f"dimension '{dim}' is missing" for dim in dims if dim not in ds.dims]
    if problems:
        way_out = way_out or "Open a finished store with open_store, or compute it first."
        raise MissingVariableError(f"Dataset: {'; '.join(problems)}. {way_out}")


def annotate(ds: xr.Dataset) -> xr.Dataset:
    """Put the registered units and long names on the variables of a Dataset.

    Parameters
    ----------
    ds
        Dataset; it is not changed.

    Returns
    -------
    Dataset
        Shallow copy whose registered variables carry ``units`` and ``long_name``. Where a
        variable has its registered dimensions, they replace those that arithmetic has kept
        from another variable.
    """
    out = ds.copy()
    for name in out.variables:
        spec = REGISTRY.get(str(name))
        if spec is not None:
            attrs = {"long_name": spec.long_name}
            if spec.units:
                attrs["units"] = spec.units
            held = dict(out[name].attrs)
            if set(out[name].dims) == set(spec.dims):  # not those of what it was computed from
                held = {k: v for k, v in held.items() if k not in ("long_name", "units")}
            out[name].attrs = {**attrs, **held}
    return out
