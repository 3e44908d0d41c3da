"""Where a person's brain age lies among healthy people of the same age and sex."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special
import scipy.stats
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people
from scalebrain.stats.counts import check_count
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.pads import find_pad
from scalebrain.variables import annotate

__all__ = ["normative"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Fewest healthy people with a value of a region.
MINIMUM_REFERENCES = 50
_FEWEST_OF_SEX = 5
_FOLDS = 10


def normative(
    ds: xr.Dataset,
    *,
    variable: Hashable | None = None,
    group: str = "reference",
    included: Hashable | None = "included",
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Place everyone's regional brain age among healthy people of the same age and sex.

    Parameters
    ----------
    ds
        Dataset with `variable`, ``age``, ``sex`` and ``group`` over ``subject``.
    variable
        What is placed, over ``subject`` and any dimensions; default the brain-PAD that the
        models take (:func:`scalebrain.stats.pads.find_pad`). A factor common to a region, as
        ``calibration_slope``, changes no centile.
    group
        Value of ``group`` of the healthy people. Their ages have to be predicted by models
        that did not train on them, as ``out_of_fold`` ones are.
    included
        Bool variable over ``subject``: healthy people who count. None leaves nobody out by it.
        Who is ``extrapolated`` does not count in any case: ``ds.drop_vars("extrapolated")``
        takes them in.
    confidence
        Level of the interval of the centile.
    n_bootstrap
        Draws of the healthy people for that interval.
    seed
        Of the draws.

    Returns
    -------
    Dataset
        `ds` with ``brain_age_centile``, ``brain_age_centile_low``, ``brain_age_centile_high``
        (0 to 100; 90: older than in 90 of 100 healthy people) and ``brain_pad_z`` (the
        distance in standard deviations of healthy people), shaped as `variable`; and
        ``centile_reason (subject)``: why someone has none, or empty.

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If fewer than 50 healthy people have a value of a region, or only one sex has five.

    Notes
    -----
    In healthy people the value has mean ``b0 + b1 a + b2 a^2 + b3 sex`` and logarithm of the
    standard deviation ``c0 + c1 a + c2 sex`` (a: standardized age), by maximum likelihood. What
    is left, z, need not be normal: the centile of a person is the place of z among those of the
    healthy people, ``(people below + 1/2 ties + 1/2) / (n + 1)``. Healthy people are placed by
    a fit to the other nine tenths of them, so that their centiles are uniform by construction
    and those of other healthy people nearly so. The interval is the wider one of a bootstrap of
    the healthy people and of Clopper and Pearson. In a region nobody is placed outside the ages
    of the healthy people who have a value of it, nor without five of them of the same sex; who
    is placed in other regions has no reason then.

    Each of several scans of a healthy person counts for its share, so that numbers are of people.
    Nobody is compared with another scan of herself, also one under another id or of another
    group, nor placed by a fit to it.

    References
    ----------
    Marquand et al. 2016, doi:10.1016/j.biopsych.2015.12.023. Aitkin 1987,
    doi:10.2307/2347792. Vovk et al. 2005, doi:10.1007/b106715.
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    n_bootstrap = check_count("n_bootstrap", n_bootstrap, least=20)
    name = find_pad(ds).name if variable is None else variable
    absent = [str(n) for n in (name, "age", "sex", "group") if n not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Run the predict stage, "
            "or name your own variable."
        )
    if "subject" not in ds[name].dims:
        raise StatisticsError(
            f"'{name}' lies over {ds[name].dims}: it has no value of a person to place. Name a "
            "variable over 'subject'."
        )
    source = ds[name]
    dims = ("subject", *(dim for dim in source.dims if dim != "subject"))
    shape = [source.sizes[dim] for dim in dims]
    y = source.transpose(*dims).values.astype(np.float64).reshape(shape[0], -1)
    frame = subject_frame(ds, ["age", "sex"])
    age = frame["age"].to_numpy(dtype=np.float64)
    sex = frame["sex"].astype(object).fillna("").astype(str).to_numpy()
    healthy = eligible_subjects(ds, group=group, included=included)
    healthy &= np.isfinite(age) & (sex != "")
    people = same_people(ds)
    sexes = _sexes(sex[healthy], people[healthy], group)
    healthy &= np.isin(sex, sexes)
    known = np.isfinite(y)
    enough = {
        name: _people(known & (healthy & (sex == name))[:, None], people) >= _FEWEST_OF_SEX
        for name in sexes
    }
    nothing = np.zeros(y.shape[1], dtype=np.bool_)
    match = np.array([enough.get(name, nothing) for name in sex.tolist()]).reshape(y.shape)
    weight = _shares(healthy[:, None] & known & match, people)
    _check_enough(weight, ds, dims, group, _named(ds, name))
    flat = [np.ptp(y[held, k]) == 0 for k, held in enumerate((weight > 0).T)]
    if any(flat):
        raise StatisticsError(
            f"'{name}' has the same value in all healthy people, in {sum(flat)} of {len(flat)} "
            "places: nobody can be placed among them. Leave these out."
        )
    low = np.where(weight > 0, age[:, None], np.inf).min(axis=0)
    high = np.where(weight > 0, age[:, None], -np.inf).max(axis=0)
    within = (age[:, None] >= low) & (age[:, None] <= high)
    placed = known & match & within
    reason = np.full(len(age), "", dtype=object)
    for row in np.flatnonzero(~placed.any(axis=1)):
        where = known[row] if known[row].any() else ~nothing
        if sex[row] == "":
            reason[row] = "sex is missing"
        elif not np.isfinite(age[row]):
            reason[row] = "age is missing"
        elif not (within[row] & where).any():
            ends = f"{low[where].min():g}-{high[where].max():g}"
            reason[row] = f"age outside that of the healthy people ({ends})"
        elif not (match[row] & within[row] & where).any():
            others = "/".join(s for s in sexes if (enough[s] & where).any())
            reason[row] = f"no healthy people of sex '{others}' match"
        else:
            reason[row] = f"{name} is missing"
    x, scale_x = _designs(age, sex, healthy, sexes)
    code = _numbers(ds, people, healthy)
    z = _placed(y, x, scale_x, weight, code)
    centile, below, n = _centiles(z, weight, people)
    rng = np.random.default_rng(seed)
    spread = _bootstrap(y, x, scale_x, weight, code, rng, n_bootstrap)
    n_healthy = int(code.max()) + 1
    near, far = _interval(centile, below, n, spread, confidence)
    out = ds.copy()
    for key, values in (
        ("brain_age_centile", 100 * centile),
        ("brain_age_centile_low", 100 * near),
        ("brain_age_centile_high", 100 * far),
        ("brain_pad_z", z),
    ):
        made = xr.DataArray(np.where(placed, values, np.nan).reshape(shape), dims=dims)
        out[key] = made.transpose(*source.dims)
        out[key].attrs = {
            "of": str(name),
            "healthy": f"{n_healthy} of group {group}, {low.min():g} to {high.max():g} years",
        }
    out["centile_reason"] = ("subject", reason)
    logger.info(
        "Centiles of '%s' for %d of %d subjects, among %d healthy people",
        name,
        placed.any(axis=1).sum(),
        len(placed),
        n_healthy,
    )
    return annotate(out)


def _sexes(sex: npt.NDArray[Any], people: IntArray, group: str) -> list[str]:
    named = sorted(set(sex.tolist()))
    enough = [
        str(name) for name in named if len(set(people[sex == name].tolist())) >= _FEWEST_OF_SEX
    ]
    if not enough:
        raise StatisticsError(
            f"group '{group}' has no five people of one sex with an age. Pass the group of the "
            "healthy people."
        )
    return enough


def _people(rows: BoolArray, people: IntArray) -> IntArray:
    """Count people in rows (subject, feature), each once."""
    there = np.zeros((int(people.max(initial=-1)) + 1, rows.shape[1]), dtype=np.bool_)
    np.logical_or.at(there, people, rows)
    return np.asarray(there.sum(axis=0))


def _shares(known: BoolArray, people: IntArray) -> FloatArray:
    """Weights (subject, feature) of values that are known, which add to one for each person."""
    scans = np.zeros((int(people.max(initial=-1)) + 1, known.shape[1]))
    np.add.at(scans, people, known)
    return np.asarray(known / np.maximum(scans[people], 1))


def _check_enough(
    weight: FloatArray, ds: xr.Dataset, dims: tuple[Hashable, ...], group: str, named: str
) -> None:
    counts = np.rint(weight.sum(axis=0))
    few = np.flatnonzero(counts < MINIMUM_REFERENCES)
    if len(few):
        labels = ds[dims[1]].values if len(dims) == 2 and dims[1] in ds.coords else None
        shown = [str(k if labels is None else labels[k]) for k in few[:6]]
        way_out = ", or leave the region out"
        if len(dims) == 1:
            shown, way_out = [named], ""
        raise StatisticsError(
            f"{int(counts.min())} healthy people of group '{group}' have a value of "
            f"{', '.join(shown)}, at least {MINIMUM_REFERENCES} are needed for a centile. Bring in "
            f"more references{way_out}."
        )


def _named(ds: xr.Dataset, name: Hashable) -> str:
    """Say what a variable over people alone is of."""
    pad = find_pad(ds)
    return "the whole brain" if pad.is_global and pad.name == name else f"'{name}'"


def _numbers(ds: xr.Dataset, people: IntArray, healthy: BoolArray) -> IntArray:
    """Give everyone the number of the person among the healthy ones, by first label; or -1."""
    rank = np.arange(len(people))
    if "subject" in ds.coords:
        labels = ds["subject"].values.astype(str)
        rank[np.argsort(labels, kind="stable")] = np.arange(len(people))
    named, row = np.unique(people[healthy], return_inverse=True)
    first = np.full(len(named), len(people))
    np.minimum.at(first, row, rank[healthy])
    number = np.full(int(people.max()) + 1, -1)
    number[named[np.argsort(first)]] = np.arange(len(named))
    return number[people]


def _designs(
    age: FloatArray, sex: npt.NDArray[Any], healthy: BoolArray, sexes: list[str]
) -> tuple[FloatArray, FloatArray]:
    center, size = age[healthy].mean(), age[healthy].std()
    a = np.nan_to_num((age - center) / size) if size > 0 else np.zeros(len(age))
    flags = [(sex == name).astype(np.float64) for name in sexes[1:]]
    line = [a] if size > 0 else []
    bent = [a**2] if size > 0 and len(np.unique(age[healthy])) > 3 else []
    one = np.ones(len(age))
    return np.column_stack([one, *line, *bent, *flags]), np.column_stack([one, *line, *flags])


def _fit(
    y: FloatArray, x: FloatArray, scale_x: FloatArray, weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Maximum likelihood of mean and log standard deviation, (column, feature) each.

    Aitkin's scoring: weighted least squares for the mean, then one step for the scale.
    """
    filled = np.where(weight > 0, y, 0.0)
    mean = _weighted(filled, x, weight)
    residual = filled - x @ mean
    total = weight.sum(axis=0)
    scale = np.zeros((scale_x.shape[1], y.shape[1]))
    scale[0] = 0.5 * np.log((weight * residual**2).sum(axis=0) / total)
    for _ in range(50):
        spread = np.exp(np.clip(scale_x @ scale, -300, 300))
        ratio = (residual / spread) ** 2
        step = np.clip(_weighted(0.5 * (ratio - 1), scale_x, weight), -1.0, 1.0)
        scale = scale + step
        spread = np.exp(np.clip(scale_x @ scale, -300, 300))
        new = _weighted(filled, x, weight / spread**2 * np.exp(2 * scale[0]))
        residual = filled - x @ new
        mean = new
        if np.abs(step).max() < 1e-9:
            break
    return mean, scale


def _weighted(y: FloatArray, x: FloatArray, weight: FloatArray) -> FloatArray:
    """Weighted least squares of every feature, (column, feature)."""
    gram = np.einsum("np,nf,nq->fpq", x, weight, x, optimize=True)
    cross = np.einsum("np,nf->fp", x, weight * y, optimize=True)
    # a draw may hold one sex alone: no inverse then, and no effect of it
    inverse = np.linalg.pinv(gram, rcond=1e-12, hermitian=True)
    return np.asarray((inverse @ cross[:, :, None])[:, :, 0].T)


def _scores(y: FloatArray, x: FloatArray, scale_x: FloatArray, weight: FloatArray) -> FloatArray:
    mean, scale = _fit(y, x, scale_x, weight)
    return np.asarray((y - x @ mean) / np.exp(np.clip(scale_x @ scale, -300, 300)))


def _placed(
    y: FloatArray, x: FloatArray, scale_x: FloatArray, weight: FloatArray, code: IntArray
) -> FloatArray:
    """Scores of everyone; of all scans of healthy people by a fit to other people."""
    z = _scores(y, x, scale_x, weight)
    # spread over all ages and neither by order nor by cohort, which ids often run along
    folds = np.random.default_rng(0).permutation(code.max() + 1) % _FOLDS
    fold = np.where(code >= 0, folds[code], -1)
    for k in range(_FOLDS):
        rows = fold == k
        z[rows] = _scores(y, x, scale_x, weight * ~rows[:, None])[rows]
    return z


def _centiles(
    z: FloatArray, weight: FloatArray, people: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Centile, healthy people below, and people compared with; nobody with herself."""
    centile, below, n = (np.full(z.shape, np.nan) for _ in range(3))
    for k in range(z.shape[1]):
        held = np.flatnonzero(weight[:, k] > 0)
        held = held[np.argsort(z[held, k])]
        count = np.concatenate([[0.0], np.cumsum(weight[held, k])])
        there = np.flatnonzero(np.isfinite(z[:, k]))
        left = count[np.searchsorted(z[held, k], z[there, k], "left")]
        right = count[np.searchsorted(z[held, k], z[there, k], "right")]
        row, scan = _own_scans(people, there, held)
        share, own, other = weight[scan, k], z[scan, k], z[there[row], k]
        left -= np.bincount(row, share * (own < other), len(there))
        right -= np.bincount(row, share * (own <= other), len(there))
        mine = np.bincount(row, share, len(there))
        n[there, k] = np.rint(count[-1] - mine)
        below[there, k] = np.round((left + right) / 2, 9)  # shares of scans add up to people
        centile[there, k] = (below[there, k] + 0.5) / (n[there, k] + 1)
    return centile, below, n


def _own_scans(people: IntArray, there: IntArray, held: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs of a position in `there` and a row of `held` that is of the same person."""
    held = held[np.argsort(people[held], kind="stable")]
    first = np.searchsorted(people[held], people[there], "left")
    size = np.searchsorted(people[held], people[there], "right") - first
    row = np.repeat(np.arange(len(there)), size)
    within = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size)
    return row, held[first[row] + within]


def _bootstrap(
    y: FloatArray,
    x: FloatArray,
    scale_x: FloatArray,
    shares: FloatArray,
    code: IntArray,
    rng: np.random.Generator,
    draws: int,
) -> FloatArray:
    """Spread of the probit of the centile over draws of the healthy people."""
    people = np.unique(code[shares.any(axis=1)])
    total, squares = np.zeros(y.shape), np.zeros(y.shape)
    for _ in range(draws):
        picked = np.bincount(rng.choice(people, len(people)), minlength=code.max() + 1)
        weight = np.where(code >= 0, picked[code], 0)[:, None] * shares
        mean, scale = _fit(y, x, scale_x, weight)
        z = (y - x @ mean) / np.exp(np.clip(scale_x @ scale, -300, 300))
        for k in range(y.shape[1]):
            rows = weight[:, k] > 0
            order = np.argsort(z[rows, k])
            values = z[rows, k][order]
            count = np.concatenate([[0.0], np.cumsum(weight[rows, k][order])])
            n = count[-1]
            with np.errstate(invalid="ignore"):
                left = count[np.searchsorted(values, z[:, k], "left")]
                right = count[np.searchsorted(values, z[:, k], "right")]
            probit = scipy.special.ndtri((0.5 * (left + right) + 0.5) / (n + 1))
            total[:, k] += probit
            squares[:, k] += probit**2
    variance = squares / draws - (total / draws) ** 2
    return np.sqrt(np.maximum(variance, 0) * draws / (draws - 1))


def _interval(
    centile: FloatArray, below: FloatArray, n: FloatArray, spread: FloatArray, confidence: float
) -> tuple[FloatArray, FloatArray]:
    half = scipy.stats.norm.ppf(0.5 + confidence / 2) * spread
    middle = scipy.special.ndtri(centile)
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(
            below > 0, scipy.special.betaincinv(np.maximum(below, 0.5), n - below + 1, tail), 0
        )
        high = np.where(
            below < n, scipy.special.betaincinv(below + 1, np.maximum(n - below, 0.5), 1 - tail), 1
        )
    return (
        np.minimum(low, scipy.special.ndtr(middle - half)),
        np.maximum(high, scipy.special.ndtr(middle + half)),
    )
