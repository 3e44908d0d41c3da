"""Voxelwise lesion-symptom map: which damage goes with which score."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.linalg
import scipy.special
import scipy.stats
import xarray as xr

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import ONE_SCAN, check_one_scan, flags
from scalebrain.stats.counts import check_count
from scalebrain.stats.design import (
    ParsedFormula,
    design_matrix,
    outcome_vector,
    parse_formula,
    seen_levels,
    usable_rows,
)
from scalebrain.stats.frame import subject_frame
from scalebrain.stats.lesion_patterns import Columns, LesionPatterns, lesioned_voxels
from scalebrain.stats.lesion_symptom_numba_fns import strongest_effects
from scalebrain.variables import REGISTRY, annotate, validate

__all__ = ["lesion_symptom_map"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEAST_PEOPLE = 10
_LEAST_LESIONS = 5
_LESION_FRACTION = 0.05
# Sums of residuals are equal when they differ by rounding alone (relative).
_ROUNDING = 1e-9
# Bytes of the residuals of a tile of permutations: half of a small second-level cache.
_TILE_BYTES = 1 << 19

_LONG_NAMES = {
    "estimate": "Outcome of lesioned people less that of spared people, adjusted",
    "se": "Standard error of the estimate",
    "p": "Two-sided p value of the t test, not corrected",
    "q": "Benjamini-Hochberg q value over the tested voxels",
}
_NUMBERS = {
    "threshold": "|t| beyond which a voxel is significant, family-wise corrected, at alpha",
    "df": "Degrees of freedom of the t test",
    "n": "Subjects used",
    "n_dropped": "Subjects not used",
    "n_tested": "Voxels that have a t",
    "n_patterns": "Distinct patterns of lesioned people among the tested voxels",
    "n_collinear": "Voxels lesioned often enough whose lesion status the covariates determine",
    "n_fixed": "Subjects that are alone in their group, whom no permutation moves",
}


def lesion_symptom_map(
    ds: xr.Dataset,
    formula: str,
    *,
    min_lesions: int | None = None,
    n_permutations: int = 1000,
    groups: Hashable | None = "cohort",
    group: str | None = "stroke",
    included: Hashable | None = "included",
    seed: int = 0,
    alpha: float = 0.05,
) -> xr.Dataset:
    """Test in every voxel whether people lesioned there have another outcome than the others.

    Parameters
    ----------
    ds
        Store with ``lesion_mask (subject, voxel)``, read once, block by block, and the
        variables that the formula names.
    formula
        Wilkinson formula of the outcome and its covariates, e.g.
        ``"motor_score ~ age + log10(lesion_volume)"``, or ``"motor_score ~ 1"`` for none.
        Every variable is over ``subject`` alone; the intercept stays in. The lesion status
        of the voxel is added to it.
    min_lesions
        A voxel is tested when at least this many of the people used have it lesioned, and
        at least as many spared. Default: 5% of the people used, rounded up, and at least 5.
    n_permutations
        Number of permutations; at least ``1 / alpha - 1``.
    groups
        Variable over ``subject``: outcomes are exchanged between people of one value alone.
        None exchanges everyone.
    group
        Value of the variable ``group`` of the people to use; None, or a Dataset without it,
        uses all. Of these, people without a mask (``lesion_present`` is False) are dropped:
        they are not taken for spared.
    included
        Bool variable over ``subject``; people where it is False are dropped. None uses
        everyone; ignored where `ds` has no such variable.
    seed
        Seed of the permutations.
    alpha
        Level of the family-wise error for ``threshold``.

    Returns
    -------
    Dataset
        In memory. Over ``voxel``: ``t``, ``estimate``, ``se``, ``p``, ``q``, ``p_fwe``,
        NaN where the voxel is not tested; ``n_lesioned``, everywhere. Over ``permutation``:
        ``max_t``, the largest absolute t. Over ``subject``: ``dropped`` and ``drop_reason``, empty
        for people used. Single numbers: ``threshold``, ``df``, ``n``, ``n_dropped``,
        ``n_tested``, ``n_patterns``, ``n_collinear``, ``n_fixed``.
        ``attrs["rows_dropped"]`` counts the dropped people by reason.

    Raises
    ------
    MissingVariableError
        When there are no lesion masks, or the formula or `groups` names an unknown variable.
    StatisticsError
        When the formula is malformed, the covariates are rank deficient (they are named),
        the outcome does not vary, fewer than 10 people can be used, someone is in it twice,
        no one can be exchanged, or no voxel is lesioned often enough.

    Notes
    -----
    With y the outcome, Z the covariates with the intercept, M = I - Z (Z'Z)^-1 Z', e = M y
    and m the lesion status (0 or 1) of a voxel, ordinary least squares of y on Z and m has
    ``estimate = m'e / m'Mm``, correlation ``r = m'e / sqrt(m'Mm e'e)`` and
    ``t = r sqrt(df / (1 - r^2))``, ``df = n - rank(Z) - 1``. A negative t means that people
    lesioned there have a lower outcome. A voxel whose m is a combination of Z has no t:
    it is NaN and counted in ``n_collinear``.

    The permutations are those of Freedman and Lane: e is permuted within `groups` and made
    orthogonal to Z again, ``e* = M P e``, and m'e* takes the place of m'e. The largest absolute t
    over all voxels tested makes up the null distribution, and ``p_fwe = (1 + number of
    permutations with max |t*| >= |t|) / (1 + n_permutations)``, where values that differ by
    rounding alone are equal. Beyond ``threshold``, ``p_fwe <= alpha``. Exchange within
    `groups` keeps differences between them out of the null distribution; the estimate is
    adjusted for them only when the formula holds them too (``+ cohort``).

    m'e* is a sum over lesioned people and m'Mm does not change. Voxels of the same people
    are tested once, and along a walk through the brain every sum is made from its
    neighbor's by the people who join and leave. Permutations are drawn over people sorted
    by their labels: neither their order, nor the chunks of `ds`, nor the number of workers
    changes a number. Memory grows with the lesioned voxels over all people, and with people
    times permutations.

    Lesion status in neighboring voxels is not independent, since vessels make lesions alike:
    the peak of a map can lie beside the tissue that matters.

    References
    ----------
    Bates et al. 2003, doi:10.1038/nn1050. Freedman and Lane 1983,
    doi:10.1080/07350015.1983.10509354. Winkler et al. 2014,
    doi:10.1016/j.neuroimage.2014.01.060. Phipson and Smyth 2010, doi:10.2202/1544-6115.1585.
    Sperber and Karnath 2017, doi:10.1002/hbm.23490.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mask = rng.random((60, 5)) < 0.3
    >>> ds = xr.Dataset(
    ...     {
    ...         "lesion_mask": (("subject", "voxel"), mask),
    ...         "motor_score": ("subject", rng.normal(size=60) - 2 * mask[:, 3]),
    ...     }
    ... )
    >>> result = lesion_symptom_map(ds, "motor_score ~ 1", groups=None)
    >>> (result["p_fwe"] <= 0.05).values.tolist()
    [False, False, False, True, False]
    """
    validate(
        ds,
        "lesion_mask",
        dims=("subject", "voxel"),
        way_out="Give every stroke subject a lesion mask (label-L_mask) and ingest again.",
    )
    if not 0 < alpha < 1:
        raise StatisticsError(f"alpha must lie between 0 and 1, got {alpha}.")
    n_permutations = check_count("n_permutations", n_permutations, least=0)
    if (n_permutations + 1) * alpha < 1 - 1e-9:
        raise StatisticsError(
            f"n_permutations is {n_permutations}: the smallest p value is then "
            f"1 / {n_permutations + 1:g}, above alpha = {alpha:g}. Give a whole number from "
            f"{int(np.ceil(1 / alpha - 1e-9)) - 1} on."
        )
    seed = check_count("seed", seed, least=0)
    people = _People.of(ds, _parsed(formula, ds), groups, group, included)
    model = _Model.of(people)
    least = _least(min_lesions, people.n, formula)
    lesions = lesioned_voxels(ds["lesion_mask"], people.rows)
    lesions = [lesions[i] for i in people.order]
    patterns = LesionPatterns.of(
        lesions, ds.sizes["voxel"], min_lesions=least, position=_positions(ds)
    )
    del lesions
    if not patterns.voxels.size:
        raise StatisticsError(
            f"Formula '{formula}': no voxel is lesioned in {least} or more of the {people.n} "
            f"people used, and spared in as many; the largest number is "
            f"{patterns.count.max(initial=0)}. Lower min_lesions, or use more people."
        )
    fit = _Fit.of(model, patterns)
    if not fit.usable.any():
        raise StatisticsError(
            f"Formula '{formula}': the covariates determine the lesion status of all "
            f"{patterns.voxels.size} voxels lesioned often enough. Leave out those that say "
            "where people are lesioned."
        )
    residual = _permuted_residuals(model, people.codes, n_permutations, seed)
    largest = _strongest(patterns, fit.scale, residual, n_permutations)
    out = _assemble(ds, people, model, patterns, fit, largest, alpha)
    out.attrs = {
        "formula": formula,
        "groups": "" if groups is None else str(groups),
        "method": "ordinary least squares, Freedman-Lane permutations of the largest |t|",
        "min_lesions": least,
        "n_permutations": n_permutations,
        "seed": seed,
        "alpha": float(alpha),
        "rows_dropped": people.told,
    }
    return annotate(out)


def _parsed(formula: str, ds: xr.Dataset) -> ParsedFormula:
    """Parse the formula, whose variables are over subject alone."""
    if "|" in formula:
        raise StatisticsError(
            f"Formula '{formula}': random effects are not fitted here. Put the variable in as a "
            "covariate (+ cohort), and name it as `groups` to exchange people within it."
        )
    parsed = parse_formula(formula, ds, groups="", dim="session")
    wrong = [f"'{n}' {ds[n].dims}" for n in parsed.names if not set(ds[n].dims) <= {"subject"}]
    if wrong:
        raise StatisticsError(
            f"Formula '{formula}': one value a subject is needed, got {', '.join(wrong)}. Select "
            "first, e.g. ds.assign(pad=ds['brain_pad'].sel(region='SMN_L', drop=True))."
        )
    return parsed


def _least(min_lesions: int | None, n: int, formula: str) -> int:
    """Least number of people lesioned, and spared, in a voxel that is tested."""
    if min_lesions is None:
        return max(_LEAST_LESIONS, int(np.ceil(_LESION_FRACTION * n - 1e-9)))
    is_number = isinstance(min_lesions, int | float | np.integer | np.floating)
    if not is_number or not float(min_lesions).is_integer() or not 1 <= min_lesions <= n / 2:
        raise StatisticsError(
            f"Formula '{formula}': min_lesions is {min_lesions}; give a whole number from 1 to "
            f"half of the {n} people used."
        )
    return int(min_lesions)


def _positions(ds: xr.Dataset) -> list[npt.NDArray[Any]] | None:
    """Coordinates x, y, z of the voxels, where the Dataset has them."""
    if any(axis not in ds.variables or ds[axis].dims != ("voxel",) for axis in "xyz"):
        return None
    return [ds[axis].values for axis in "xyz"]


@dataclass(frozen=True)
class _People:
    """People used, sorted by label, with what the formula makes of them.

    `rows` are their positions in the Dataset, ascending, and `order` sorts these by label;
    everything else is in that order. `codes` says who can be exchanged.
    """

    parsed: ParsedFormula
    frame: pd.DataFrame
    rows: IntArray
    order: IntArray
    codes: IntArray
    reason: npt.NDArray[np.str_]
    told: str

    @property
    def n(self) -> int:
        return self.rows.size

    @classmethod
    def of(
        cls,
        ds: xr.Dataset,
        parsed: ParsedFormula,
        groups: Hashable | None,
        group: str | None,
        included: Hashable | None,
    ) -> _People:
        if groups is not None and groups not in ds.variables:
            raise MissingVariableError(
                f"groups='{groups}' is no variable of the Dataset. Name one whose values say who "
                "can be exchanged, or pass groups=None to exchange everyone."
            )
        if groups is not None and ds[groups].dims != ("subject",):
            raise StatisticsError(
                f"groups='{groups}' must lie over 'subject' alone, got {ds[groups].dims}."
            )
        extra = [] if groups is None else [str(groups)]
        frame = subject_frame(ds, list(dict.fromkeys((*parsed.names, *extra))))
        reason = np.full(len(frame), "", dtype=object)
        if group is not None and "group" in ds.variables:
            reason[ds["group"].values.astype(str) != group] = f"not in group '{group}'"
        for name, words in (("lesion_present", "no lesion mask"), (included, f"not {included}")):
            if name is not None and name in ds.variables:
                reason[~flags(ds, name) & (reason == "")] = words
        keep = np.flatnonzero(reason == "")
        rows, reasons = usable_rows(parsed, frame.iloc[keep], extra=extra)
        for words, bad in reasons.items():
            out = keep[bad]
            reason[out[reason[out] == ""]] = words
        used = keep[rows]
        told = _told(reason, parsed.text)
        if used.size < _LEAST_PEOPLE:
            raise StatisticsError(
                f"Formula '{parsed.text}' leaves {used.size} of {len(frame)} people; at least "
                f"{_LEAST_PEOPLE} are needed. Dropped: {told}."
            )
        check_one_scan(ds, used, where=f"Formula '{parsed.text}'", ways=ONE_SCAN)
        labels = frame.index[used].to_numpy()
        order = np.argsort(labels.astype(str) if "subject" in ds.coords else labels, kind="stable")
        frame = seen_levels(frame.iloc[used[order]])
        codes = np.zeros(used.size, dtype=np.int64)
        if groups is not None:
            codes = np.unique(frame[str(groups)].astype(str), return_inverse=True)[1]
        if np.bincount(codes).max() < 2:
            raise StatisticsError(
                f"groups='{groups}': each of the {used.size} people used is alone in a group, so "
                "no one can be exchanged. Name coarser groups, or pass groups=None."
            )
        return cls(parsed, frame, used, order, codes, reason.astype(str), told)


def _told(reason: npt.NDArray[np.object_], formula: str) -> str:
    """Count the dropped people by reason, and log them."""
    words, count = np.unique(reason[reason != ""].astype(str), return_counts=True)
    told = "; ".join(f"{word}: {n}" for word, n in zip(words, count, strict=True))
    if told:
        level = logging.WARNING if "not finite" in told else logging.INFO
        logger.log(level, "Lesion-symptom map '%s' dropped %s", formula, told)
    return told or "none"


@dataclass(frozen=True)
class _Model:
    """Outcome without its covariates: orthonormal covariates, residuals, degrees of freedom."""

    q: FloatArray
    residual: FloatArray
    square: float
    df: int

    @classmethod
    def of(cls, people: _People) -> _Model:
        parsed, frame = people.parsed, people.frame
        y = outcome_vector(parsed, frame)
        if np.ptp(y) == 0:
            raise StatisticsError(
                f"Formula '{parsed.text}': the outcome is {y[0]:g} in all {y.size} people used, so "
                "there is nothing to map. Choose another outcome."
            )
        q = _orthonormal(design_matrix(parsed, frame), parsed.text)
        n, p = q.shape
        if n - p - 1 < 1:
            raise StatisticsError(
                f"Formula '{parsed.text}': {n} people for {p} coefficients and the lesion; more "
                "people than that are needed. Use fewer covariates."
            )
        residual = _project_out(q, y)
        if not np.linalg.norm(residual) > 1e-10 * np.linalg.norm(y):
            raise StatisticsError(
                f"Formula '{parsed.text}': the covariates determine the outcome of all {n} people "
                "used, so nothing is left to map. Leave one of them out."
            )
        return cls(q, residual, float(residual @ residual), n - p - 1)


def _project_out(q: FloatArray, values: FloatArray) -> FloatArray:
    """Take orthonormal columns out of values; twice, since the first time rounds."""
    values = values - q @ (q.T @ values)
    out: FloatArray = values - q @ (q.T @ values)
    return out


def _orthonormal(design: pd.DataFrame, formula: str) -> FloatArray:
    """Orthonormal basis of the covariates; the intercept must be among them."""
    names = list(design.columns)
    x = design.to_numpy(dtype=np.float64)
    if "Intercept" not in names:
        raise StatisticsError(
            f"Formula '{formula}': the intercept is taken out, and the lesion would stand for the "
            "mean. Leave '0 +' or '- 1' out."
        )
    ones = np.full((len(x), 1), len(x) ** -0.5)
    rest = [k for k, name in enumerate(names) if name != "Intercept"]
    centered = _project_out(ones, x[:, rest])
    norm = np.linalg.norm(centered, axis=0)
    flat = [
        names[k]
        for k, a, b in zip(rest, norm, np.linalg.norm(x[:, rest], axis=0), strict=True)
        if not a > 1e-10 * b
    ]
    if flat:
        raise StatisticsError(
            f"Formula '{formula}': the covariates are rank deficient: {', '.join(map(repr, flat))} "
            f"has the same value in all {len(x)} people used. Leave it out."
        )
    scaled = centered / norm
    _, r, pivot = scipy.linalg.qr(scaled, mode="economic", pivoting=True)
    size = np.abs(np.diag(r))
    rank = int((size > 1e-8 * size.max(initial=0)).sum())
    if rank < len(rest):
        told = []
        weights = scipy.linalg.lstsq(scaled[:, pivot[:rank]], scaled[:, pivot[rank:]])[0]
        for column, weight in zip(pivot[rank:], weights.T, strict=True):
            others = [names[rest[k]] for k in sorted(pivot[:rank][np.abs(weight) > 1e-6])]
            told.append(f"'{names[rest[column]]}' = combination of {others}")
        raise StatisticsError(
            f"Formula '{formula}': the covariates are rank deficient: {'; '.join(told)}. "
            "Leave one of these terms out."
        )
    basis = np.linalg.qr(scaled)[0] if rest else scaled
    return np.ascontiguousarray(np.concatenate([ones, basis], axis=1))


@dataclass(frozen=True)
class _Fit:
    """Least squares of every pattern; `scale` is 1 / sqrt(m'Mm), 0 where there is no t."""

    usable: BoolArray
    scale: FloatArray
    r: FloatArray
    estimate: FloatArray
    se: FloatArray

    @classmethod
    def of(cls, model: _Model, patterns: LesionPatterns) -> _Fit:
        n = patterns.n_people
        sums = patterns.sums(np.column_stack([model.residual, model.q]))
        size = patterns.size.astype(np.float64)
        free = size - (sums[:, 1:] ** 2).sum(axis=1)
        usable = free > 1e-9 * size * (n - size) / n
        free = np.where(usable, free, np.nan)
        r = np.clip(sums[:, 0] / np.sqrt(free * model.square), -1, 1)
        se = np.sqrt((1 - r**2) * model.square / (model.df * free))
        scale = np.where(usable, 1 / np.sqrt(free), 0.0)
        return cls(usable, scale, r, sums[:, 0] / free, se)


def _permuted_residuals(
    model: _Model, codes: IntArray, n_permutations: int, seed: int
) -> FloatArray:
    """Residuals of every permutation, without the covariates and of length one.

    Parameters
    ----------
    model
        Covariates and residuals.
    codes
        (person,) who can be exchanged.
    n_permutations
        Number of permutations.
    seed
        Seed. A permutation does not depend on how many follow.

    Returns
    -------
    ndarray
        (tile, person, permutation of the tile); the last tile is filled up with zeros. NaN
        where the covariates determine the permuted residuals.
    """
    n = codes.size
    width = int(np.clip(_TILE_BYTES // (8 * n), 32, 256)) // 8 * 8
    out = np.zeros((-(-n_permutations // width), n, width))
    rng = np.random.default_rng(seed)
    place = np.argsort(codes, kind="stable")
    for tile, low in enumerate(range(0, n_permutations, width)):
        k = min(width, n_permutations - low)
        drawn = np.argsort(codes + rng.random((k, n)), axis=1)
        moved = np.empty((n, k))
        moved[place] = model.residual[drawn].T
        moved = _project_out(model.q, moved)
        norm = np.sqrt((moved**2).sum(axis=0))
        norm[norm <= 1e-10 * model.square**0.5] = np.nan
        out[tile, :, :k] = moved / norm
    return out


def _strongest(
    patterns: LesionPatterns,
    scale: FloatArray,
    residual: FloatArray,
    n_permutations: int,
    *,
    chained: bool = True,
    threads: int | None = None,
) -> FloatArray:
    """Largest correlation with the lesion status over all patterns, for every permutation.

    Parameters
    ----------
    patterns
        Patterns of lesioned people.
    scale
        (pattern,) factor of the sum of residuals.
    residual
        What :func:`_permuted_residuals` returned.
    n_permutations
        Number of permutations.
    chained
        Whether sums are made from those of the pattern before.
    threads
        Threads where no Dask client is active; one a core when None.

    Returns
    -------
    ndarray
        (permutation,) in [0, 1]. It is 1 where the covariates determine the permuted
        residuals, which is on the safe side.
    """
    tasks = [(columns, scale[part], chained) for part, columns in patterns.parts()]
    found = map_tasks(
        _strongest_of_part, tasks, label="permutations", shared=residual, threads=threads
    )
    largest = np.maximum.reduce(found).ravel()[:n_permutations]
    determined = np.isnan(residual[:, 0, :]).ravel()[:n_permutations]
    return np.where(determined, 1.0, np.minimum(largest, 1.0))


def _strongest_of_part(task: tuple[Columns, FloatArray, bool], residual: FloatArray) -> FloatArray:
    """Find the largest correlations over a part of the patterns."""
    columns, scale, chained = task
    steps = columns.steps(chained=chained)
    n_tiles, n_people, width = residual.shape
    out = np.zeros((n_tiles, width))
    strongest_effects(
        residual.reshape(-1), n_people, steps.start, steps.step, steps.anew, scale.copy(), out
    )
    return out


def _t(r: FloatArray, df: int) -> FloatArray:
    """Turn a correlation into a t."""
    with np.errstate(divide="ignore"):
        t: FloatArray = r * np.sqrt(df / (1 - r**2))
    return t


def _assemble(
    ds: xr.Dataset,
    people: _People,
    model: _Model,
    patterns: LesionPatterns,
    fit: _Fit,
    largest: FloatArray,
    alpha: float,
) -> xr.Dataset:
    """Put the results of patterns on their voxels."""
    n_permutations = largest.size
    ranked = np.sort(largest)
    beaten = n_permutations - np.searchsorted(ranked, np.abs(fit.r) * (1 - _ROUNDING))
    t = _t(fit.r, model.df)
    p = 2 * scipy.stats.t.sf(np.abs(t), model.df)
    voxels = np.bincount(patterns.pattern, minlength=patterns.n_patterns)
    by_pattern = {
        "t": t,
        "estimate": fit.estimate,
        "se": fit.se,
        "p": p,
        "q": _benjamini_hochberg(p, voxels),
        "p_fwe": np.where(fit.usable, (1 + beaten) / (1 + n_permutations), np.nan),
    }
    maps = {}
    for name, values in by_pattern.items():
        maps[name] = np.full(ds.sizes["voxel"], np.nan)
        maps[name][patterns.voxels] = values[patterns.pattern]
    # that many permutations may reach a voxel that is significant
    allowed = int(np.floor(alpha * (n_permutations + 1) + 1e-9)) - 1
    numbers = {
        "threshold": float(_t(ranked[n_permutations - 1 - allowed], model.df)),
        "df": model.df,
        "n": people.n,
        "n_dropped": int((people.reason != "").sum()),
        "n_tested": int(voxels[fit.usable].sum()),
        "n_patterns": int(fit.usable.sum()),
        "n_collinear": int(voxels[~fit.usable].sum()),
        "n_fixed": int((np.bincount(people.codes) == 1).sum()),
    }
    out = xr.Dataset(
        coords={n: c for n, c in ds["lesion_mask"].coords.items() if "voxel" in c.dims}
    )
    units = {"estimate": _outcome_units(ds, people.parsed)}
    units["se"] = units["estimate"]
    for name, values in maps.items():
        attrs = {"long_name": _LONG_NAMES[name]} if name in _LONG_NAMES else {}
        out[name] = ("voxel", values, attrs | {"units": units.get(name, "1")})
    out["n_lesioned"] = ("voxel", patterns.count)
    out["max_t"] = ("permutation", _t(largest, model.df))
    out["dropped"] = ("subject", people.reason != "", {"long_name": "The subject was not used"})
    out["drop_reason"] = ("subject", people.reason)
    for name, number in numbers.items():
        out[name] = ((), number, {"long_name": _NUMBERS[name], "units": "1"})
    if "subject" in ds.coords:
        out = out.assign_coords(subject=ds["subject"].values)
    return out


def _benjamini_hochberg(p: FloatArray, weight: IntArray) -> FloatArray:
    """Find the q value of p values that stand for several tests each; NaN stays out."""
    order = np.argsort(p)  # NaN last
    order = order[: p.size - int(np.isnan(p).sum())]
    rank = np.cumsum(weight[order])
    raised = p[order] * (rank[-1] / rank)
    q = np.full(p.size, np.nan)
    q[order] = np.minimum.accumulate(raised[::-1])[::-1]
    return q


def _outcome_units(ds: xr.Dataset, parsed: ParsedFormula) -> str:
    """Units of the outcome, where it is a variable as it is; empty where they are not known."""
    if not parsed.is_plain:
        return ""
    name = parsed.outcome_names[0]
    spec = REGISTRY.get(name)
    return str(ds[name].attrs.get("units", spec.units if spec is not None else ""))
