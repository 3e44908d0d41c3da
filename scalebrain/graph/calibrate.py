"""Calibration on held-out healthy subjects: age bias and conformal intervals."""

import numpy as np
import numpy.typing as npt

__all__ = ["conformal_radius", "fit_bias", "region_metrics"]

Array = npt.NDArray[np.float64]

#: Years by which errors that lie on a line may be off it; Huber's scale has no value there.
_EXACT = 1e-6


def fit_bias(age: Array, predicted: Array) -> tuple[Array, Array]:
    """Fit the age bias of every region by Huber regression.

    Parameters
    ----------
    age
        (subject,) years.
    predicted
        (subject, region) years, of subjects that the network has not seen.

    Returns
    -------
    intercept, slope
        (region,) such that ``predicted - age`` is about ``intercept + slope * age``.

    References
    ----------
    Huber 1964, doi:10.1214/aoms/1177703732; de Lange and Cole 2020,
    doi:10.1016/j.nicl.2020.102229
    """
    from sklearn.linear_model import HuberRegressor

    center, spread = age.mean(), max(age.std(), 1e-3)
    x = ((age - center) / spread)[:, None]
    intercept, slope = np.empty(predicted.shape[1]), np.empty(predicted.shape[1])
    for r in range(predicted.shape[1]):
        delta = predicted[:, r] - age
        line = np.polyfit(x[:, 0], delta, 1)
        if np.abs(delta - np.polyval(line, x[:, 0])).max() < _EXACT:
            slope[r] = line[0] / spread
            intercept[r] = line[1] - slope[r] * center
            continue
        scale = max(float(delta.std()), 1e-6)
        fit = HuberRegressor(alpha=0.0, max_iter=1000).fit(x, delta / scale)
        slope[r] = fit.coef_[0] * scale / spread
        intercept[r] = fit.intercept_ * scale - slope[r] * center
    return intercept, slope


def conformal_radius(
    residuals: Array, coverage: float, *, person: npt.NDArray[np.int64] | None = None
) -> Array:
    """Half-width of the split-conformal interval of every region.

    Parameters
    ----------
    residuals
        (subject, region) absolute errors of held-out subjects, years.
    coverage
        Wanted coverage.
    person
        (subject,) number of the person; None when all differ.

    Returns
    -------
    ndarray
        (region,) years; infinite when there are too few people for the coverage.

    Notes
    -----
    With one scan each, the ceil((n + 1) coverage)-th smallest residual of n people. A scan weighs
    one over the scans of its person, and the residual is the smallest at which the weights, summed
    from below, reach that number: a new person is like the people here, not like their scans.
    """
    people = (
        np.arange(len(residuals)) if person is None else np.unique(person, return_inverse=True)[1]
    )
    n_scans = np.bincount(people)
    rank = int(np.ceil((len(n_scans) + 1) * coverage - 1e-12))
    if rank > len(n_scans):
        return np.full(residuals.shape[1], np.inf)
    order = np.argsort(residuals, axis=0, kind="stable")
    reached = np.cumsum((1 / n_scans[people])[order], axis=0)
    at = (reached < rank - 1e-9).sum(axis=0)
    return np.asarray(
        np.take_along_axis(residuals, order, axis=0)[
            np.minimum(at, len(order) - 1), np.arange(len(at))
        ]
    )


def region_metrics(
    age: Array,
    predicted: Array,
    fold: npt.NDArray[np.int64],
    regions: tuple[str, ...],
    *,
    person: npt.NDArray[np.int64] | None = None,
) -> dict[str, dict[str, float]]:
    """Score out-of-fold predictions of every region beside predicting the mean.

    Parameters
    ----------
    age
        (subject,) years.
    predicted
        (subject, region) out-of-fold years.
    fold
        (subject,) fold of every subject.
    regions
        Names.
    person
        (subject,) number of the person; None when all differ.

    Returns
    -------
    dict
        For each region ``mae``, ``mae_mean`` (predicting the mean age of the training
        subjects), ``r``, ``n`` scans and ``n_people``.
    """
    n_people = len(age) if person is None else np.unique(person).size
    baseline = np.array([age[fold != f].mean() for f in fold])
    return {
        region: {
            "mae": float(np.abs(predicted[:, r] - age).mean()),
            "mae_mean": float(np.abs(baseline - age).mean()),
            "r": float(np.corrcoef(predicted[:, r], age)[0, 1]),
            "n": float(len(age)),
            "n_people": float(n_people),
        }
        for r, region in enumerate(regions)
    }
