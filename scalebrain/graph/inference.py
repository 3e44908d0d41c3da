"""Regional brain age over Dask blocks of subjects."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.cluster import once_per_worker
from scalebrain.errors import ModelFileError
from scalebrain.graph.build import build_graph
from scalebrain.graph.model import BrainAgeModel, features_of, load_network, subject_keys
from scalebrain.graph.train import forward
from scalebrain.variables import annotate, validate

__all__ = ["brain_age"]

Array = npt.NDArray[np.float64]


@once_per_worker
def _loaded(path: str, fingerprint: str) -> tuple[BrainAgeModel, list[Any]]:  # noqa: ARG001
    """Load a saved model and its networks, once a worker."""
    model = BrainAgeModel.load(path)
    return model, load_network(model)


def _predict_block(
    x: Array, age: Array, fold: npt.NDArray[np.int64], *, source: "BrainAgeModel | tuple[str, str]"
) -> Array:
    """Ages, corrected PADs and imputed fractions of a block: (subject, region, 3)."""
    if isinstance(source, tuple):
        model, networks = _loaded(*source)
    else:
        model, networks = source, load_network(source)
    graph = model.graph
    n, n_regions = len(x), len(graph.regions)
    out = np.full((n, n_regions, 3), np.nan)
    seen = ~np.isnan(x).all(axis=(1, 2))
    if not seen.any():
        return out
    rows = np.asarray(x[seen][:, graph.rows], dtype=np.float64)
    trained = fold[seen]
    years = np.full((len(model.folds), len(rows), n_regions), np.nan)
    corrected = np.full_like(years, np.nan)
    imputed = np.full((len(rows), n_regions), np.nan)
    for i, (one, network) in enumerate(zip(model.folds, networks, strict=True)):
        use = np.flatnonzero((trained < 0) | (trained == i))
        if not use.size:
            continue
        years[i, use], imputed[use] = forward(one, network, rows[use], graph)
        known = age[seen][use][:, None]
        corrected[i, use] = years[i, use] - known - (one.intercept + one.slope * known)
    weight = np.where(trained < 0, len(model.folds), 1)[:, None]
    out[seen, :, 0] = np.where(np.isnan(years).all(axis=0), np.nan, np.nansum(years, 0)) / weight
    out[seen, :, 1] = (
        np.where(np.isnan(corrected).all(axis=0), np.nan, np.nansum(corrected, 0)) / weight
    )
    out[seen, :, 2] = imputed
    return out


def brain_age(ds: xr.Dataset, model: BrainAgeModel | str | Path) -> xr.Dataset:
    """Predict the brain age of every region.

    Parameters
    ----------
    ds
        Store; node features are computed when they are not there.
    model
        Model, or the directory of one.

    Returns
    -------
    Dataset
        Over ``(subject, region)``, in years: ``brain_age``; ``brain_age_low`` and
        ``brain_age_high``; ``brain_pad = brain_age - age``; ``brain_pad_corrected``, less
        the age bias of held-out healthy subjects; ``imputed_fraction``.
        ``calibration_slope (region)``; ``extrapolated`` and ``out_of_fold (subject)``.
        Lazy where the features are.

    Raises
    ------
    ModelFileError
        When the model was trained on another graph, other features or another space.

    Notes
    -----
    A subject that the model was trained on is predicted by the one network that has not
    seen it, everyone else by the mean of all. A corrected PAD carries the part
    ``calibration_slope`` of a true deviation.
    """
    validate(ds, "age")
    if not isinstance(model, BrainAgeModel):
        model = BrainAgeModel.load(model)
    ds = features_of(ds)
    names = tuple(str(f) for f in ds["feature"].values)
    missing = [f for f in model.features if f not in names]
    if missing:
        raise ModelFileError(
            f"The model needs the node features {', '.join(model.features)}; the data lack "
            f"{', '.join(missing)}. Train a model on the features that both have."
        )
    found = build_graph(ds)
    if model.graph.n_nodes != found.n_nodes or not np.array_equal(model.graph.edges, found.edges):
        raise ModelFileError("The model was trained on another graph of nodes than the store has.")
    space = str(ds.attrs.get("space", model.about["space"]))
    if space != model.about["space"]:
        raise ModelFileError(f"The model is for {model.about['space']}, the data are in {space}.")
    fold = np.array([model.fold_of.get(key, -1) for key in subject_keys(ds)], dtype=np.int64)
    age = ds["age"].astype(np.float64)
    features = ds["node_features"].sel(feature=list(model.features))
    if features.chunks:
        features = features.chunk(node=-1, feature=-1)
    regions = list(model.graph.regions)
    source: Any = (model.path, model.fingerprint) if model.path else model
    result = xr.apply_ufunc(
        _predict_block,
        features,
        age,
        xr.DataArray(fold, dims="subject"),
        kwargs={"source": source},
        input_core_dims=[["node", "feature"], [], []],
        output_core_dims=[["region", "value"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"region": len(regions), "value": 3}},
    ).assign_coords(region=regions)
    years = result.isel(value=0)
    radius = xr.DataArray(model.radius, dims="region")
    slope = np.mean([1 + fold.slope for fold in model.folds], axis=0)
    low, high = model.about["age_min"], model.about["age_max"]
    out = xr.Dataset(
        {
            "brain_age": years,
            "brain_age_low": years - radius,
            "brain_age_high": years + radius,
            "brain_pad": years - age,
            "brain_pad_corrected": result.isel(value=1),
            "imputed_fraction": result.isel(value=2),
            "calibration_slope": ("region", slope),
            "extrapolated": (age < low) | (age > high),
            "out_of_fold": ("subject", fold >= 0),
        }
    )
    for name in ("brain_age", "brain_pad_corrected"):
        out[name].attrs["model_fingerprint"] = model.fingerprint
        out[name].attrs["model_trained_on_simulated"] = model.about["simulated"]
    out["brain_age_low"].attrs["coverage"] = model.about["coverage"]
    return annotate(out)
