"""What a prediction hangs on: permutation importance and SHAP, in rows that were held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scalebrain.predict.learners import TunedModel

__all__ = ["importance_units", "permutation_importance", "shap_values", "unit_positions"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BLOCK_BYTES = 1 << 26


def importance_units(columns: Sequence[str]) -> dict[str, list[str]]:
    """Predictors that are permuted together, and every other one by itself.

    Parameters
    ----------
    columns
        Names of the predictors.

    Returns
    -------
    dict
        Columns of each unit. The loads of one tract measure the same damage and correlate by
        about 0.9, so that each alone looks dispensable: they are the unit
        ``tract_loads:<tract>``.
    """
    tracts: dict[str, list[str]] = {}
    for name in columns:
        measure, _, tract = name.partition(":")
        if tract and measure.startswith("tract_load"):
            tracts.setdefault(tract, []).append(name)
    out: dict[str, list[str]] = {}
    for name in columns:
        own = tracts.get(name.partition(":")[2], []) if name.startswith("tract_load") else []
        if len(own) > 1:
            out[f"tract_loads:{name.partition(':')[2]}"] = own
        else:
            out[name] = [name]
    return out


def unit_positions(
    columns: Sequence[str], units: Mapping[str, Sequence[str]]
) -> tuple[IntArray, ...]:
    """Positions of the columns of each unit."""
    at = {name: k for k, name in enumerate(columns)}
    return tuple(np.array([at[name] for name in part], dtype=np.int64) for part in units.values())


def permutation_importance(
    model: TunedModel,
    x: FloatArray,
    y: FloatArray,
    units: Sequence[IntArray],
    *,
    n_repeats: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Rise of the mean squared error when the columns of a unit are permuted together.

    Parameters
    ----------
    model
        Fitted on other rows.
    x, y
        Predictors (n, p) and outcome (n) of the held-out rows.
    units
        Columns of each unit.
    n_repeats
        Permutations of each; 1 or more.
    rng
        Random numbers.

    Returns
    -------
    ndarray
        (unit,), in squared units of the outcome.
    """
    n, p = x.shape
    base = np.mean((y - model.predict(x)) ** 2)
    rise = np.zeros(len(units))
    block = max(1, _BLOCK_BYTES // (8 * n * p))
    for _ in range(n_repeats):
        order = rng.permuted(np.tile(np.arange(n), (len(units), 1)), axis=1)
        for low in range(0, len(units), block):
            part = units[low : low + block]
            copies = np.broadcast_to(x, (len(part), n, p)).copy()
            for k, columns in enumerate(part):
                copies[k][:, columns] = x[order[low + k]][:, columns]
            predicted = model.predict(copies.reshape(len(part) * n, p)).reshape(len(part), n)
            rise[low : low + block] += np.mean((y - predicted) ** 2, axis=1) - base
    return rise / n_repeats


def shap_values(
    model: TunedModel, x_train: FloatArray, x: FloatArray, units: Sequence[IntArray]
) -> tuple[FloatArray, float]:
    """Part of each prediction that a unit of predictors is given.

    Parameters
    ----------
    model
        Fitted on `x_train`; of a value, not of a class.
    x_train
        Predictors that it was fitted on (m, p).
    x
        Predictors of held-out rows (n, p).
    units
        Columns of each unit.

    Returns
    -------
    values
        (n, unit) summed over the columns of a unit, in units of the outcome.
    base
        What a person without predictors would be predicted: ``base + values.sum(axis=1)`` is
        the prediction.

    Notes
    -----
    Linear models: the coefficient times the distance from the mean of the training rows, each
    predictor taken as independent of the others. Trees: path-dependent TreeSHAP.

    References
    ----------
    Lundberg and Lee 2017, arXiv:1705.07874. Lundberg et al. 2020, DOI
    10.1038/s42256-019-0138-9.
    """
    with warnings.catch_warnings():  # in a notebook tqdm asks for widgets that are not used
        warnings.filterwarnings("ignore", message="IProgress not found")
        import shap

    before, estimator = model.pipeline[:-1], model.pipeline[-1]
    scaled = before.transform(x)
    explainer: Any
    if hasattr(estimator, "coef_"):
        background = shap.maskers.Independent(before.transform(x_train), max_samples=len(x_train))
        explainer = shap.LinearExplainer(estimator, background)
    else:
        explainer = shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent")
    values = np.asarray(explainer.shap_values(scaled), dtype=np.float64)
    base = float(np.ravel(explainer.expected_value)[0])
    return np.stack([values[:, columns].sum(axis=1) for columns in units], axis=1), base
