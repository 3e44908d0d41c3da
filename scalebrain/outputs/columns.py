"""What the column of a table means: description, unit, levels and term, as BIDS has them."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from scalebrain.stats.multiverse import VERDICTS
from scalebrain.variables import REGISTRY

__all__ = ["LABELS", "describe"]

#: Columns that are no variable: labels of dimensions, and names of rows.
LABELS: dict[str, str] = {
    "participant_id": "Label of the participant",
    "session_id": "Label of the session",
    "source_id": "The participant as the cohort store names it",
    "source_subject": "The scan as the cohort store names it",
    "subject": "Participant, or participant and session",
    "region": "Region: a network and a side; L left, R right, ipsilesional or contralesional",
    "tract": "Tract and side; L left, R right",
    "term": "Term of the formula",
    "name": "Name of the number",
    "value": "The number",
    "policy": "How lesioned tissue was treated before the brain age was read",
    "reach": "Whether the lesion reaches the region",
    "row": "Position of a node in a region",
    "row_node": "Position of the node on `node`",
    "row_region": "Region of the node",
    "learner": "Learner",
    "feature_group": "Predictors that the learner was given",
    "versus": "Predictors that all predictors are compared with",
    "metric": "Score",
    "bin": "Middle of the bin of predicted probability",
    "cohort": "Cohort (site)",
    "permutation": "Number of the permutation",
    "predictor": "Predictor",
    "effect": "Cause -> outcome",
    "specification": "Number of the combination of choices",
    "icv": "Whether intracranial volume is a covariate",
    "scale": "Scale of the outcome",
    "site": "How sites were treated",
    "path": "Outcome ~ cause, in lavaan's notation",
    "indirect": "Chain of causes",
    "model": "Path model",
    "rival_path": "Path of a rival model",
    "variable": "Variable of the path model",
    "mae": "Mean absolute error of the brain age, out of fold, in healthy references",
    "mae_mean": "Mean absolute error of predicting the mean age of training",
    "r": "Correlation of brain age and age, out of fold, in healthy references",
    "n": "People used",
    "rival_estimate": "Path coefficient of the rival, in units of its variables",
    "rival_se": "Standard error of the rival's coefficient",
    "rival_p": "Two-sided p value of the rival's coefficient",
    "rival_std_estimate": "Standardized path coefficient of the rival",
}

_UNITS = {"mae": "years", "mae_mean": "years"}

_TRUE_FALSE = {"true": "yes", "false": "no"}
_LEVELS: dict[str, dict[str, str]] = {
    "sex": {"F": "female", "M": "male"},
    "group": {"reference": "healthy reference, no stroke", "stroke": "stroke"},
    "lesion_hemisphere": {
        "L": "left",
        "R": "right",
        "bilateral": "both",
        "midline": "on the midline",
        "none": "the lesion mask is empty",
        "unknown": "there is no lesion mask",
    },
    "lesion_side": {"L": "left", "R": "right"},
    "paresis_side": {"L": "left", "R": "right"},
    "policy": {
        "mask_nodes": "lesioned nodes are imputed from the others",
        "as_is": "nothing is done",
        "enantiomorphic": "lesions are filled from the other hemisphere",
        "exclude_region": "lesioned regions have no brain age",
    },
    "reach": {
        "lesioned": "up to 30% of the region is lesioned",
        "touched": "not the region, but white matter that its nodes are compared with",
        "untouched": "the lesion does not reach the region",
    },
    "verdict": dict(VERDICTS),
    "qc_decision": {
        "accept": "accepted",
        "exclude": "excluded",
        "unsure": "unsure, and kept",
    },
    "learner": {
        "elastic_net": "linear model with L1 and L2 penalty",
        "random_forest": "random forest",
        "gradient_boosting": "gradient boosted trees",
    },
}

_OBO = "http://purl.obolibrary.org/obo/"
_TERMS = {
    "age": f"{_OBO}PATO_0000011",
    "sex": f"{_OBO}PATO_0000047",
    "p": f"{_OBO}OBI_0000175",
    "q": f"{_OBO}OBI_0001442",
}


def describe(
    name: str, ds: xr.Dataset | None = None, *, levels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Describe a column for a JSON sidecar.

    Parameters
    ----------
    name
        Name of the column, or of the variable that it was made of.
    ds
        Dataset of the variable: where its dimensions are those of the registry, the registry
        is quoted, else the attributes of the variable.
    levels
        Levels that are not those of the name.

    Returns
    -------
    dict
        ``Description``, and ``Units``, ``Levels`` and ``TermURL`` where there is one.
    """
    out: dict[str, Any] = {}
    held = dict(ds[name].attrs) if ds is not None and name in ds.variables else {}
    spec = REGISTRY.get(name)
    registered = spec is not None and (
        ds is None or name not in ds.variables or set(ds[name].dims) == set(spec.dims)
    )
    if spec is not None and registered:
        out["Description"], units = spec.long_name, spec.units
    elif "long_name" in held:
        out["Description"], units = str(held["long_name"]), str(held.get("units", ""))
    else:
        out["Description"], units = LABELS.get(name, f"Variable {name}"), _UNITS.get(name, "")
    if units:
        out["Units"] = units
    found = dict(levels or _LEVELS.get(name, {}))
    if not found and ds is not None and name in ds.variables and ds[name].dtype.kind == "b":
        found = dict(_TRUE_FALSE)
    if found:
        out["Levels"] = found
    if name in _TERMS:
        out["TermURL"] = _TERMS[name]
    return out
