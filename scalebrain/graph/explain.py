"""Which nodes a regional age comes from: integrated gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import StatisticsError
from scalebrain.features.inclusion import flags
from scalebrain.graph.build import Graph
from scalebrain.graph.impute import impute
from scalebrain.graph.known import known_folds
from scalebrain.graph.linear import standardize
from scalebrain.graph.model import (
    BrainAgeModel,
    lesioned_regions,
    load_network,
    matching_features,
    present_flag,
)
from scalebrain.graph.train import Fold, batch_size
from scalebrain.variables import annotate, validate

__all__ = ["explain", "node_importance"]

Array = npt.NDArray[np.float64]

_STEPS = 16


def explain(ds: xr.Dataset, model: BrainAgeModel | str | Path) -> xr.Dataset:
    """Share out the brain age of every region over its nodes.

    Parameters
    ----------
    ds
        Store, or some of its subjects: the features of all of them are loaded.
    model
        Model, or the directory of one.

    Returns
    -------
    Dataset
        ``node_attribution (subject, row)``, years, with coordinates ``row_region`` and
        ``row_node``: a node of two regions has two rows. Over the rows of a region they sum to
        the brain age less that of a person whose nodes are all at the training mean: exactly
        where no convolution was kept, else to within some percent of that difference. Where there
        is no brain age they are NaN.

    Raises
    ------
    ModelFileError
        When the model was trained on another graph, other features or another space.

    Notes
    -----
    Integrated gradients: with f the age, x the standardized features and b their training mean,
    ``sum_features (x - b) mean_k grad f(b + (k + 1/2) / 16 (x - b))``. Subjects that the model
    was trained on are explained by the network that has not seen them. Missing nodes are imputed
    first, so they have an attribution too: that of what was imputed. A ridge regression has one
    gradient everywhere, so its sum is exact; that of a network with convolutions is the midpoint
    rule of 16 steps.

    References
    ----------
    Sundararajan, Taly and Yan 2017, arXiv:1703.01365
    """
    validate(ds, "age")
    if not isinstance(model, BrainAgeModel):
        model = BrainAgeModel.load(model)
    ds, features = matching_features(ds, model)
    fold_of = known_folds(ds, model)
    graph = model.graph
    x = np.asarray(features.transpose("subject", "node", "feature").values)[:, graph.rows]
    x = np.where(np.isfinite(x), x, np.nan).astype(np.float32)
    total, count = np.zeros(x.shape[:2]), np.zeros((len(x), 1))
    for i, (fold, network) in enumerate(zip(model.folds, load_network(model), strict=True)):
        use = np.flatnonzero((fold_of < 0) | (fold_of == i))
        if use.size:
            with one_thread_each():
                total[use] += _attributions(fold, network, x[use], graph)
            count[use] += 1
    names, years = np.array(graph.regions)[graph.region_of_row], total / count
    if ds["node_features"].attrs.get("lesion_policy") == "exclude_region":
        excluded = lesioned_regions(ds, graph).transpose("subject", "region").values
        years[excluded[:, graph.region_of_row]] = np.nan
    out = xr.Dataset(
        {"node_attribution": (("subject", "row"), years)},
        coords={
            "subject": ds["subject"],
            "row_region": ("row", names),
            "row_node": ("row", graph.rows),
        },
    )
    return annotate(out)


def node_importance(
    ds: xr.Dataset, model: BrainAgeModel | str | Path, *, n_subjects: int = 100, seed: int = 0
) -> xr.Dataset:
    """Mean size of the attribution of every node, over healthy references.

    Parameters
    ----------
    ds
        Store with node features.
    model
        Model, or the directory of one.
    n_subjects
        References that are drawn; all where there are fewer.
    seed
        Seed of the draw.

    Returns
    -------
    Dataset
        ``node_importance (row)``, years: mean over the references of the absolute value of
        :func:`explain`, with ``row_region`` and ``row_node``.

    Raises
    ------
    MissingVariableError
        When `ds` has no node features, or no groups.
    StatisticsError
        When no reference has node features.
    """
    validate(ds, "node_features", "group", way_out="Compute them first: scalebrain features STORE.")
    chosen = ds["group"].values.astype(str) == "reference"
    for name in ("included", present_flag(ds)):
        if name in ds:
            chosen &= flags(ds, name)
    who = np.flatnonzero(chosen)
    if not who.size:
        raise StatisticsError("There are no references whose ages could be explained.")
    rng = np.random.default_rng([seed, 8])
    drawn = np.sort(rng.choice(who, min(n_subjects, who.size), replace=False))
    found = explain(ds.isel(subject=drawn), model)["node_attribution"]
    size = np.nanmean(np.abs(found.values), axis=0)
    out = xr.Dataset(
        {"node_importance": ("row", size, {"n_subjects": drawn.size})},
        coords={name: found[name].variable for name in ("row_region", "row_node")},
    )
    return annotate(out)


def _attributions(fold: Fold, network: Any, x: npt.NDArray[np.floating], graph: Graph) -> Array:
    """Years (subject, row) by one network."""
    import torch

    z, _ = impute(standardize(x, fold.center, fold.spread), graph, fold.imputer)
    mean = np.concatenate([one.mean.reshape(-1, z.shape[-1]) for one in fold.imputer])
    device = next(network.parameters()).device
    base = torch.as_tensor(mean, dtype=torch.float32, device=device)
    out = np.empty(z.shape[:2])
    size = batch_size(z.shape[1], device.type)
    for first in range(0, len(z), size):
        part = slice(first, first + size)
        way = torch.as_tensor(z[part], dtype=torch.float32, device=device) - base
        slopes = torch.zeros_like(way)
        for k in range(_STEPS):
            point = (base + (k + 0.5) / _STEPS * way).requires_grad_()
            # a row moves the age of its own region alone, so one gradient is that of all
            (slope,) = torch.autograd.grad(network(point).sum(), point)
            slopes += slope
        years = (way * slopes).sum(-1) / _STEPS * fold.age_spread
        out[part] = years.double().cpu().numpy()
    return out
