"""Moments of the features of every region, summed block by block.

Ridge regression and the model of missing nodes need nothing else, so both are exact however
large the cohort is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "RegionMoments",
    "Ridge",
    "Spectrum",
    "fit_ridge",
    "region_moments",
    "spectrum",
    "standard_error",
]

Array = npt.NDArray[np.float64]

_SUBJECTS_A_PRODUCT = 256
_PENALTIES = np.logspace(0, 6, 25)


@dataclass(eq=False)
class RegionMoments:
    """Sums over subjects of the centered values of one region, flattened (row, feature).

    Parameters
    ----------
    cross
        (value, value) sum of their products.
    with_age
        (value,) sum of products with the centered age.
    age_square
        Sum of squares of the centered age.
    fourth
        Sum over subjects of the squared sum of squares.
    n
        Number of subjects.
    """

    cross: Array
    with_age: Array
    age_square: float
    fourth: float
    n: int


def region_moments(
    blocks: Iterable[tuple[npt.NDArray[np.floating], Array, Array]],
    mean: Array,
    mean_age: float,
    bounds: Sequence[tuple[int, int]],
) -> list[RegionMoments]:
    """Sum the moments of every region.

    Parameters
    ----------
    blocks
        Features (subject, row, feature), ages and weights (subject,) of some subjects at a time.
    mean
        (row, feature) weighted mean over all of them.
    mean_age
        Weighted mean of the ages.
    bounds
        First and last-plus-one row of every region.

    Returns
    -------
    list
        One a region.
    """
    n_features = mean.shape[-1]
    out = [
        RegionMoments(
            np.zeros(((b - a) * n_features,) * 2), np.zeros((b - a) * n_features), 0.0, 0.0, 0
        )
        for a, b in bounds
    ]
    for values, age, weight in blocks:
        for start in range(0, len(values), _SUBJECTS_A_PRODUCT):
            part = slice(start, start + _SUBJECTS_A_PRODUCT)
            root = np.sqrt(weight[part])[:, None]
            years = (age[part] - mean_age)[:, None] * root
            for (a, b), one in zip(bounds, out, strict=True):
                flat = (values[part, a:b] - mean[a:b]).reshape(len(root), -1) * root
                one.cross += flat.T @ flat
                one.with_age += (flat.T @ years)[:, 0]
                one.fourth += float((np.square(flat).sum(axis=1) ** 2).sum())
                one.age_square += float(np.square(years).sum())
                one.n += len(flat)
    return out


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvectors of the moments of a region.

    Parameters
    ----------
    values
        (value,) eigenvalues, ascending.
    vectors
        (value, value) eigenvectors, in columns.
    with_age
        (value,) sums of products with age, along the eigenvectors.
    age_square, fourth, n
        As in :class:`RegionMoments`.
    """

    values: Array
    vectors: Array
    with_age: Array
    age_square: float
    fourth: float
    n: int


def spectrum(moments: RegionMoments) -> Spectrum:
    """Find the eigenvectors of a region; its `cross` is overwritten."""
    from scipy.linalg import eigh

    values, vectors = eigh(moments.cross, overwrite_a=True, check_finite=False, driver="evd")
    return Spectrum(
        np.maximum(values, 0.0),
        vectors,
        vectors.T @ moments.with_age,
        moments.age_square,
        moments.fourth,
        moments.n,
    )


@dataclass(frozen=True, eq=False)
class Ridge:
    """Ridge regression of age on the values of a region.

    Parameters
    ----------
    weights
        (value,) of the centered values.
    penalty
        Chosen penalty.
    """

    weights: Array
    penalty: float


def fit_ridge(one: Spectrum) -> Ridge:
    """Fit a ridge regression with the largest penalty that generalized cross-validation allows.

    Parameters
    ----------
    one
        Spectrum of a region.

    Returns
    -------
    Ridge
        Weights.

    Notes
    -----
    With eigenvalues d and c the products with age along the eigenvectors, the residual sum of
    squares is ``y'y - sum(c^2 (d + 2 a) / (d + a)^2)`` and the degrees of freedom are
    ``1 + sum(d / (d + a))``; the score of a penalty a is ``rss / (n - df)^2``. Chosen is the
    largest penalty whose score is within one standard error of the lowest. Around the lowest
    score the error hardly changes with the penalty, but what is left of a person's brain age
    beyond the age does: a larger penalty repeats better in a second scan and follows the true
    deviation more closely (docs/benchmarks.md).

    References
    ----------
    Golub, Heath and Wahba 1979, doi:10.1080/00401706.1979.10489751;
    Hastie, Tibshirani and Friedman 2009, doi:10.1007/978-0-387-84858-7 (section 7.10, the rule
    of one standard error)
    """
    score = []
    for penalty in _PENALTIES:
        shrunk = one.values + penalty
        rss = one.age_square - (one.with_age**2 * (shrunk + penalty) / shrunk**2).sum()
        free = one.n - 1 - (one.values / shrunk).sum()
        score.append(rss / max(free, 1e-9) ** 2)
    allowed = np.min(score) * (1 + standard_error(one.n))
    penalty = float(_PENALTIES[np.flatnonzero(np.asarray(score) <= allowed)[-1]])
    return Ridge(one.vectors @ (one.with_age / (one.values + penalty)), penalty)


def standard_error(n: int) -> float:
    """Relative standard error of a mean of n squared normal errors, ``sqrt(2 / n)``."""
    return float(np.sqrt(2 / n))
