"""What a saved model has to be before anything of it is used."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_saved", "read_number"]

_INDICES = ("edges", "parcels", "rows", "region_of_row")
_SCORES = ("mae", "mae_mean", "r", "n")
_ABOUT_TEXTS = ("space", "nodes", "nodes_sha256", "simulated")
_ABOUT_NUMBERS = ("age_min", "age_max", "n_training", "coverage")
_SPECTRAL_FILTERS = 30

Arrays = Mapping[str, npt.NDArray[Any]]


def read_number(text: str) -> float:
    """Refuse NaN and infinities in JSON, as ``parse_constant`` of the parser."""
    raise ValueError(f"{text} is no number")


def check_saved(described: Mapping[str, Any], arrays: Arrays) -> None:
    """Check what a model directory describes against its arrays.

    Parameters
    ----------
    described
        Content of model.json.
    arrays
        Content of weights.safetensors.

    Raises
    ------
    ValueError
        When something is of another type or size, beyond its range or not finite. Only `radius`
        may be infinite (too few people for the coverage), and only `curve` may be missing (epoch
        0 does not train).
    KeyError
        When something is missing.
    """
    regions = _texts(described["regions"], "regions")
    features = _texts(described["features"], "features")
    training = described["training"]
    n_folds = training["folds"]
    _need(type(n_folds) is int and n_folds > 0, "training: folds")
    for name in ("fold_of", "fold_of_person"):
        folds = described[name] if name == "fold_of" else described.get(name, {})
        _need(isinstance(folds, dict), name)
        _need(all(type(f) is int and 0 <= f < n_folds for f in folds.values()), name)
    metrics, about = described["metrics"], described["about"]
    _need(isinstance(metrics, dict) and sorted(metrics) == sorted(regions), "metrics")
    _need(all(_is_number(one[k]) for one in metrics.values() for k in _SCORES), "metrics")
    _need(all(isinstance(about[k], str) for k in _ABOUT_TEXTS), "about")
    _need(all(_is_number(about[k]) for k in _ABOUT_NUMBERS), "about")
    kept = about.get("convolved_folds", 0)  # earlier versions do not say
    _need(type(kept) is int and 0 <= kept <= n_folds, "about")
    sides = about.get("voxel_size", [1.0, 1.0, 1.0])  # earlier versions do not say
    _need(isinstance(sides, list) and len(sides) == 3, "about")
    _need(all(_is_number(side) and side > 0 for side in sides), "about")
    _need(isinstance(about.get("gm_modulated", False), bool), "about")
    sizes = _check_graph(described["n_nodes"], arrays, len(regions))
    radius = arrays["radius"]
    _need(radius.shape == (len(regions),) and bool((radius >= 0).all()), "radius")
    spectral = training["layer"] == "spectral"
    width = _SPECTRAL_FILTERS if spectral else training["channels"]
    for i in range(n_folds):
        _check_fold(f"fold{i}.", arrays, sizes, len(features), width)


def _need(is_right: bool, what: str) -> None:
    """Refuse a part of a model."""
    if not is_right:
        raise ValueError(f"{what}: not that of a model")


def _is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _texts(values: object, what: str) -> list[str]:
    """Names, each once."""
    _need(isinstance(values, list) and len(values) > 0, what)
    names = [str(value) for value in values if isinstance(value, str)]  # type: ignore[attr-defined]
    _need(len(names) == len(values) == len(set(names)), what)  # type: ignore[arg-type]
    return names


def _check_graph(n_nodes: object, arrays: Arrays, n_regions: int) -> list[int]:
    """Check nodes, edges and rows; rows of each region."""
    for name in _INDICES:
        _need(arrays[name].dtype == np.int64, name)
    edges, parcels, rows, region = (arrays[name] for name in _INDICES)
    _need(type(n_nodes) is int and parcels.shape == (n_nodes,), "n_nodes")
    n = len(parcels)
    _need(edges.ndim == 2 and edges.shape[1] == 2, "edges")
    for name, values in (("edges", edges), ("rows", rows)):
        _need(bool(((values >= 0) & (values < n)).all()), name)
    _need(rows.ndim == 1 and rows.shape == region.shape, "rows")
    _need(bool((np.diff(region) >= 0).all()), "region_of_row")
    _need(np.array_equal(np.unique(region), np.arange(n_regions)), "region_of_row")
    return [int(size) for size in np.bincount(region)]


def _check_fold(
    prefix: str, arrays: Arrays, sizes: list[int], n_features: int, width: object
) -> None:
    """Check the arrays of one fold."""
    n_regions, n_rows = len(sizes), sum(sizes)
    shapes: dict[str, tuple[int, ...]] = {
        "center": (n_features,),
        "spread": (n_features,),
        "age": (2,),
        "intercept": (n_regions,),
        "slope": (n_regions,),
        "weights.skip_weight": (n_rows, n_features),
        "weights.bias": (n_regions,),
    }
    for r, size in enumerate(sizes):
        shapes |= {f"impute_mean.{r}": (size * n_features,), f"impute_noise.{r}": (1,)}
        factors = arrays[f"{prefix}impute_factors.{r}"]
        _need(factors.ndim == 2 and len(factors) == size * n_features, f"{prefix}impute_factors")
    for name, shape in shapes.items():
        _need(arrays[prefix + name].shape == shape, prefix + name)
    _need(bool((arrays[prefix + "spread"] > 0).all()), prefix + "spread")
    _need(arrays[prefix + "weights.node_weight"].shape[1:] == (width,), "training: channels")
    curve = arrays[prefix + "curve"]
    _need(curve.ndim == 2 and curve.shape[1] == 2, prefix + "curve")
    for name, values in arrays.items():
        if name.startswith(prefix):
            _need(values.dtype.kind == "f", name)
            _need(name == prefix + "curve" or bool(np.isfinite(values).all()), name)
