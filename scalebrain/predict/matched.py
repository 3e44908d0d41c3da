"""Patients with the same lesion volume and a different load: matched pairs."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError, StatisticsError
from scalebrain.predict.matchable import (
    candidates_of,
    couples,
    in_order,
    matchable_people,
    scan_weights,
    spread_of_people,
    usable_people,
)
from scalebrain.predict.matching import (
    Admissible,
    Candidates,
    admissible_pairs,
    best_matching,
)
from scalebrain.predict.paired import (
    adjusted_terms,
    balance,
    paired_fit,
    sign_flip_p,
    weighted_median,
)
from scalebrain.predict.task import check_anyone_eligible
from scalebrain.stats.counts import check_count
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.scales import scale_note, scales_of
from scalebrain.variables import REGISTRY

__all__ = ["CST_LOAD", "FPN_PAD", "matched_pairs", "nearest_matches"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Weighted lesion load of the ipsilesional corticospinal tract.
CST_LOAD = "tract_load_weighted:CST_ipsilesional"
#: Brain-PAD of the contralesional frontoparietal network.
FPN_PAD = "brain_pad_corrected:FPN_contralesional"

_COVARIATES = ("log10_lesion_volume", "age", "sex_male", "log10_days_post_stroke")
_EFFECTS = ("difference", "difference_adjusted", "per_sd", "per_sd_adjusted")


def matched_pairs(
    ds: xr.Dataset,
    *,
    contrast: str = CST_LOAD,
    outcome: Hashable = "motor_score",
    caliper: float = 0.2,
    age_caliper: float = 5.0,
    min_contrast: float = 0.5,
    same_side: bool = True,
    same_cohort: bool = False,
    cohort: Hashable = "cohort",
    min_pairs: int = 5,
    n_draws: int = 9999,
    n_listed: int = 1000,
    seed: int = 0,
    group: str | None = "stroke",
    included: Hashable | None = "included",
    confidence: float = 0.95,
) -> xr.Dataset:
    """Pair patients of equal lesion volume who differ in another measure; compare outcomes.

    Parameters
    ----------
    ds
        Dataset of a finished store, on native or on lesional sides.
    contrast
        What the two differ in: a variable over ``subject``, or ``variable:label`` for one
        over ``subject`` and another dimension. ``brain_pad_corrected`` is the calibrated one;
        regions and tracts are ``_ipsilesional`` and ``_contralesional``.
    outcome
        Variable over ``subject`` that is compared.
    caliper
        Largest difference of log10 lesion volume, in its standard deviations among the people
        used. ``attrs["volume_ratio"]`` is the factor that it allows.
    age_caliper
        Largest difference of age, years.
    min_contrast
        Smallest difference of `contrast`, in its standard deviations.
    same_side
        Lesions of a pair are of the same hemisphere.
    same_cohort
        People of a pair are of the same cohort.
    cohort
        Variable over ``subject``; intervals allow for what people of one share. Those without a
        cohort are taken for one.
    min_pairs
        Fewer pairs are an error.
    n_draws
        Random flips of the permutation test beyond 20 pairs.
    n_listed
        How many of the admissible pairs are listed, those of largest contrast first.
    seed
        Of the random flips.
    group
        Value of the variable ``group`` to use; None, or a Dataset without it, uses all.
    included
        Bool variable over ``subject``; rows where it is False are left out.
    confidence
        Level of the intervals.

    Returns
    -------
    Dataset
        Over ``pair``, of largest contrast first: ``contrast``, ``contrast_sd``,
        ``outcome_difference`` (high less low). Over ``(pair, member)``, member ``high`` and
        ``low``: ``pair_subject``, ``pair_value``, ``pair_outcome``, ``pair_lesion_volume``
        (mL), ``pair_age`` (years), ``pair_cohort``, ``pair_side``. Over ``(admissible,
        member)``: ``admissible_subject``; with ``admissible_contrast``. Over ``(stage,
        covariate)``, before and after: ``smd``, ``variance_ratio``. Over ``effect``:
        ``estimate``, ``se``, ``df``, ``ci_low``, ``ci_high``, ``p``, ``interval_kind``. Over
        ``criterion``: ``pairs_left``. Scalars ``p_permutation``,
        ``p_permutation_adjusted``, ``n_permutations``, ``n_pairs``, ``n_admissible``, ``n_people``.

    Raises
    ------
    MissingVariableError
        If a variable or a label is missing.
    ConfigError
        If an option is out of range, or the contrast is of a native side.
    StatisticsError
        If there are fewer than `min_pairs` pairs; the message says how many pairs each
        criterion left.

    Notes
    -----
    The pairs are the matching of largest total contrast in which every person (scans of one
    person are one) is once at most: exact up to 30,000 admissible pairs in a stratum of side
    (and cohort), greedy beyond, as ``attrs["matching"]`` says. The outcome plays no part in it.
    Of the many matchings of that total the one whose pairs are most alike in log10 volume and
    age, in units of the calipers, is taken; people are sorted by id first, so that the
    order of the Dataset changes nothing. Where someone has several scans, standard deviations,
    the median and the balance give each scan its part of one person, and counts are of people.

    ``difference`` is the mean over pairs of high less low. Within the caliper the member of
    larger load may still have the slightly larger lesion: ``difference_adjusted`` is the
    intercept of the pair differences of the outcome on those of log10 volume and age.
    ``per_sd`` is the slope through the origin on the contrast in SD, and
    ``per_sd_adjusted`` the same beside the differences of log10 volume and age. Intervals:
    :func:`scalebrain.predict.paired.paired_fit`. ``p_permutation`` exchanges the two people
    of each pair; it takes them for exchangeable, which a cohort that scores lower breaks
    where pairs cross cohorts (`same_cohort` mends that), and the larger lesion that the
    high member may still have breaks at wide calipers: ``p_permutation_adjusted`` is of
    ``difference_adjusted`` (:func:`scalebrain.predict.paired.adjusted_terms`).

    Before matching, people above the median of the contrast are compared with the others;
    after it, the high people of the pairs with the low ones.

    References
    ----------
    Austin 2011, doi:10.1002/pst.433. Stuart 2010, doi:10.1214/09-STS313. Aronow, Samii and
    Assenova 2015, doi:10.1093/pan/mpv018.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> n = 200
    >>> volume, cst = rng.lognormal(2, 1, n), rng.random(n)
    >>> ds = xr.Dataset(
    ...     {
    ...         "lesion_volume": ("subject", volume),
    ...         "lesion_hemisphere": ("subject", rng.choice(["L", "R"], n)),
    ...         "cst": ("subject", cst),
    ...         "motor_score": ("subject", 0.9 - 0.5 * cst + rng.normal(0, 0.05, n)),
    ...         "age": ("subject", rng.uniform(50, 70, n)),
    ...     }
    ... )
    >>> result = matched_pairs(ds, contrast="cst")
    >>> bool(result["ci_high"].sel(effect="difference") < 0)
    True
    """
    _check(caliper, age_caliper, min_contrast, confidence)
    for name, count, least in (
        ("min_pairs", min_pairs, 1),
        ("n_draws", n_draws, 1),
        ("n_listed", n_listed, 0),
        ("seed", seed, 0),
    ):
        check_count(name, count, least=least, error=ConfigError)
    used = eligible_subjects(ds, group=group, included=included)
    table = matchable_people(ds, contrast, outcome, cohort, eligible=used, same_side=same_side)
    check_anyone_eligible(ds, used, group=group, included=included, where="Matched pairs")
    reasons, used = usable_people(table, used, same_side, same_cohort)
    frame = in_order(table[used])
    n_people = frame["person"].nunique()
    told = f"{n_people} of {reasons}"
    alone = frame.loc[frame["cohort"] == "", "person"].nunique()
    if 0 < alone < n_people:
        told += f"; {alone} without a cohort, who are taken for one"
        logger.warning("Matched pairs: %s. Way out: name their cohorts.", told)
    if n_people < 2:
        raise StatisticsError(f"No two people to pair: {told}.")
    spread = {n: spread_of_people(frame, n) for n in ("log10_lesion_volume", "value")}
    if not spread["value"] > 0:
        raise StatisticsError(
            f"'{contrast}' has the same value in all {n_people} people used, so no two differ "
            "in it. Name another `contrast`."
        )
    people = candidates_of(frame, same_side, same_cohort)
    width = caliper * spread["log10_lesion_volume"]
    pairs = admissible_pairs(
        people,
        caliper=width,
        age_caliper=age_caliper,
        min_contrast=min_contrast * spread["value"],
    )
    chosen, exact = best_matching(people, pairs)
    funnel = _funnel(frame, people, pairs, len(chosen), same_side, same_cohort)
    if len(chosen) < min_pairs:
        steps = "; ".join(f"{name}: {count:,}" for name, count in funnel.items())
        raise StatisticsError(
            f"{len(chosen)} matched pairs, at least {min_pairs} are needed. People: {told}. Pairs "
            f"left after each criterion: {steps}. Way out: widen the caliper that removes most "
            f"(caliper={caliper:g}, age_caliper={age_caliper:g}, min_contrast={min_contrast:g})."
        )
    out = _described(frame, pairs, chosen, spread["value"])
    out = out.merge(_listed(frame, pairs, n_listed))
    out = out.merge(_balanced(frame, pairs, chosen))
    own = _differences(frame, pairs, chosen, spread["value"])
    out = out.merge(_effects(own, confidence))
    p, n_flips, all_flips = sign_flip_p(own.outcome, draws=n_draws, seed=seed)
    terms = adjusted_terms(own.outcome, own.others)
    adjusted = np.nan
    if np.isfinite(terms).all():
        adjusted = sign_flip_p(terms, own.others, draws=n_draws, seed=seed)[0]
    scalars: dict[str, tuple[float | int, str]] = {
        "p_permutation": (p, "P value against exchanging the people of each pair"),
        "p_permutation_adjusted": (adjusted, "The same of the adjusted difference"),
        "n_permutations": (n_flips, "Sign flips looked at"),
        "n_pairs": (len(chosen), "Matched pairs"),
        "n_admissible": (pairs.n_contrast, "Pairs of people that meet every criterion"),
        "n_people": (n_people, "People who may be paired"),
    }
    for name, (value, words) in scalars.items():
        out[name] = ((), value, {"long_name": words})
    out["pairs_left"] = ("criterion", list(funnel.values()), {"long_name": "Pairs left"})
    out = out.assign_coords(criterion=np.array(list(funnel), dtype=object))
    out.attrs = {
        "contrast": contrast,
        "contrast_units": _units(ds, contrast.partition(":")[0]),
        "contrast_sd": spread["value"],
        "outcome": str(outcome),
        "caliper": caliper,
        "volume_ratio": _ratio(width),
        "age_caliper": age_caliper,
        "min_contrast": min_contrast,
        "same_side": int(same_side),
        "same_cohort": int(same_cohort),
        "matching": "largest total contrast, exact" if exact else "greedy by contrast",
        "permutation": "every sign flip" if all_flips else f"{n_flips} random sign flips",
        "rows_used": told,
        "confidence": confidence,
        "seed": seed,
        "simulated": str(ds.attrs.get("simulated", "false")),
        "scale_note": scale_note(scales_of(ds, used, outcome)),
    }
    if out.attrs["scale_note"]:
        logger.warning("Matched pairs: %s Way out: keep one scale.", out.attrs["scale_note"])
    logger.info("Matched pairs: %d of %d admissible; %s", len(chosen), pairs.n_contrast, told)
    return out


def nearest_matches(
    ds: xr.Dataset,
    subject: str,
    *,
    n: int = 5,
    contrast: str = CST_LOAD,
    outcome: Hashable = "motor_score",
    caliper: float = 0.2,
    age_caliper: float = 5.0,
    same_side: bool = True,
    cohort: Hashable = "cohort",
    group: str | None = "stroke",
    included: Hashable | None = "included",
) -> xr.Dataset:
    """Find the patients whose lesion is like that of one person, and say how they differ.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    subject
        The person, by its label; need not be included, nor have an outcome.
    n
        How many to return.
    contrast, outcome, caliper, age_caliper, same_side, cohort, group, included
        As in :func:`matched_pairs`; the people compared with are those that it pairs.

    Returns
    -------
    Dataset
        Over ``match``: ``subject_matched``, ``volume_ratio`` and ``age_difference`` (the
        other less this one, years), ``value_difference`` (in the units of `contrast`),
        ``outcome_difference``, ``lesion_volume`` (mL), ``age``, ``value``, ``outcome``,
        ``cohort_matched``, and ``within_caliper``. Those within come first, of largest
        contrast first; then the nearest of the others. Of several scans of someone the one that
        comes first is taken. Scalars ``own_value``, ``own_outcome``, ``n_within`` (people).
        ``attrs["scale_note"]`` says so if motor scores of several scales are compared.

    Raises
    ------
    MissingVariableError
        If a variable, a label or the subject is missing.
    ConfigError
        If an option is out of range, or the contrast is of a native side.
    StatisticsError
        If the person has no lesion volume, age or lesioned side, is there more than once, or
        nobody is left.
    """
    _check(caliper, age_caliper, 0.0, 0.95)
    check_count("n", n, least=1, error=ConfigError)
    eligible = eligible_subjects(ds, group=group, included=included)
    asked = subject_frame(ds, []).index.astype(str) == str(subject)  # ids may be numbers
    table = matchable_people(
        ds, contrast, outcome, cohort, eligible=eligible, asked=asked, same_side=same_side
    )
    rows = np.flatnonzero(asked)
    if not len(rows):
        raise MissingVariableError(f"'{subject}' is not on dimension 'subject'.")
    if len(rows) > 1:
        raise StatisticsError(
            f"'{subject}' is on dimension 'subject' {len(rows)} times, so it is not clear whose "
            "matches are looked for. Keep one scan with ds.isel(subject=...)."
        )
    own = table.iloc[rows[0]]
    lacking = [
        words
        for name, words in (("log10_lesion_volume", "lesion volume"), ("age", "age"))
        if not np.isfinite(own[name])
    ]
    if same_side and own["side"] not in ("L", "R"):
        lacking.append("lesion of one hemisphere")
    if lacking:
        raise StatisticsError(f"{subject} has no {' and no '.join(lacking)}: nobody is matched.")
    check_anyone_eligible(ds, eligible, group=group, included=included, where="Nearest matches")
    _, used = usable_people(table, eligible, same_side, False)
    spread = spread_of_people(table[used], "log10_lesion_volume")
    used &= (table["person"] != own["person"]).to_numpy()
    if same_side:
        used &= (table["side"] == own["side"]).to_numpy()
    frame = in_order(table[used])
    if not len(frame) or not spread > 0:
        raise StatisticsError(f"Nobody else has a lesion like that of {subject} to compare with.")
    volume = np.asarray(frame["log10_lesion_volume"] - own["log10_lesion_volume"]) / spread
    years = np.asarray(frame["age"] - own["age"])
    value = np.asarray(frame["value"] - own["value"])
    far = np.maximum(np.abs(volume) / max(caliper, 1e-9), np.abs(years) / max(age_caliper, 1e-9))
    within = far <= 1 + 1e-12
    size = np.nan_to_num(np.abs(value))
    order = np.lexsort((np.where(within, -size, far), ~within))
    people = frame["person"].to_numpy()
    first = np.unique(people[order], return_index=True)[1]  # of each person, the best row
    order = order[np.sort(first)[:n]]
    picked = frame.iloc[order]
    columns: dict[str, npt.NDArray[Any]] = {
        "subject_matched": picked.index.to_numpy(dtype=object),
        "cohort_matched": picked["cohort"].to_numpy(dtype=object),
        "lesion_volume": 10 ** picked["log10_lesion_volume"].to_numpy(),
        "age": picked["age"].to_numpy(),
        "value": picked["value"].to_numpy(),
        "outcome": picked["outcome"].to_numpy(),
        "volume_ratio": 10 ** (volume[order] * spread),
        "age_difference": years[order],
        "value_difference": value[order],
        "outcome_difference": np.asarray(picked["outcome"] - own["outcome"]),
        "within_caliper": within[order],
    }
    out = xr.Dataset({name: ("match", column) for name, column in columns.items()})
    out["own_value"] = ((), np.asarray(own["value"], dtype=np.float64))
    out["own_outcome"] = ((), np.asarray(own["outcome"], dtype=np.float64))
    out["n_within"] = len(np.unique(people[within]))
    compared = [*picked.index, *(table.index[rows] if np.isfinite(own["outcome"]) else [])]
    out.attrs = {
        "contrast": contrast,
        "caliper": caliper,
        "volume_ratio": _ratio(caliper * spread),
        "age_caliper": age_caliper,
        "scale_note": scale_note(scales_of(ds, table.index.isin(compared), outcome)),
    }
    return out


def _units(ds: xr.Dataset, name: str) -> str:
    """Units of a contrast: its own, else those that a variable of this name has."""
    own = ds[name].attrs.get("units", "") if name in ds.variables else ""
    return str(own) or (REGISTRY[name].units if name in REGISTRY else "")


def _ratio(width: float) -> float:
    """Factor of volume that a caliper of log10 volume allows; infinite beyond all numbers."""
    with np.errstate(over="ignore"):
        return float(np.float64(10) ** width)


def _check(
    caliper: float,
    age_caliper: float,
    min_contrast: float,
    confidence: float,
) -> None:
    wrong = [
        f"{name}={value:g}"
        for name, value in (
            ("caliper", caliper),
            ("age_caliper", age_caliper),
            ("min_contrast", min_contrast),
        )
        if not 0 <= value < np.inf
    ]
    if not 0 < confidence < 1:
        wrong.append(f"confidence={confidence:g}")
    if wrong:
        raise ConfigError(
            f"Out of range: {', '.join(wrong)}. Calipers and the contrast are 0 or more, the "
            "confidence lies between 0 and 1."
        )


def _funnel(
    frame: pd.DataFrame,
    people: Candidates,
    pairs: Admissible,
    n_chosen: int,
    same_side: bool,
    same_cohort: bool,
) -> dict[str, int]:
    """Pairs left after each criterion."""
    out = {"all pairs": couples(people.person, np.zeros(len(frame), dtype=np.int64))}
    if same_side:
        sides = np.unique(frame["side"].to_numpy(dtype=str), return_inverse=True)[1]
        out["same side"] = couples(people.person, sides)
    if same_cohort:
        out["same cohort"] = couples(people.person, people.stratum)
    return out | {
        "lesion volume": pairs.n_volume,
        "age": pairs.n_age,
        "contrast": pairs.n_contrast,
        "each person once": n_chosen,
    }


def _described(
    frame: pd.DataFrame, pairs: Admissible, chosen: IntArray, spread: float
) -> xr.Dataset:
    members = np.stack([pairs.high[chosen], pairs.low[chosen]], axis=1)
    both = ("pair", "member")
    columns = {
        "pair_subject": frame.index.to_numpy(dtype=object)[members],
        "pair_cohort": frame["cohort"].to_numpy(dtype=object)[members],
        "pair_side": frame["side"].to_numpy(dtype=object)[members],
        "pair_value": frame["value"].to_numpy()[members],
        "pair_outcome": frame["outcome"].to_numpy()[members],
        "pair_lesion_volume": 10 ** frame["log10_lesion_volume"].to_numpy()[members],
        "pair_age": frame["age"].to_numpy()[members],
    }
    out = xr.Dataset({name: (both, values) for name, values in columns.items()})
    out["contrast"] = ("pair", pairs.contrast[chosen], {"long_name": "Contrast, high less low"})
    out["contrast_sd"] = (
        "pair",
        pairs.contrast[chosen] / spread,
        {"long_name": "Contrast, high less low, in SD"},
    )
    difference = columns["pair_outcome"][:, 0] - columns["pair_outcome"][:, 1]
    out["outcome_difference"] = ("pair", difference, {"long_name": "Outcome, high less low"})
    out["pair_lesion_volume"].attrs["units"] = "mL"
    out["pair_age"].attrs["units"] = "years"
    return out.assign_coords(member=np.array(["high", "low"], dtype=object))


def _listed(frame: pd.DataFrame, pairs: Admissible, n_listed: int) -> xr.Dataset:
    members = np.stack([pairs.high[:n_listed], pairs.low[:n_listed]], axis=1)
    subjects = frame.index.to_numpy(dtype=object)[members]
    words = {"long_name": "Pairs that meet every criterion, of largest contrast first"}
    return xr.Dataset(
        {
            "admissible_subject": (("admissible", "member"), subjects, words),
            "admissible_contrast": ("admissible", pairs.contrast[:n_listed]),
        }
    )


def _balanced(frame: pd.DataFrame, pairs: Admissible, chosen: IntArray) -> xr.Dataset:
    covariates = frame[[*_COVARIATES]].to_numpy(dtype=np.float64)
    value = frame["value"].to_numpy()
    weight = scan_weights(frame)
    above = value > weighted_median(value, weight)
    values = balance(
        (covariates[above], covariates[~above]),
        (covariates[pairs.high[chosen]], covariates[pairs.low[chosen]]),
        (weight[above], weight[~above]),
    )
    dims = ("stage", "covariate")
    return xr.Dataset(
        {
            "smd": (dims, values[:, 0], {"long_name": "Standardized mean difference"}),
            "variance_ratio": (dims, values[:, 1], {"long_name": "Ratio of the variances"}),
        },
        coords={
            "stage": np.array(["before", "after"], dtype=object),
            "covariate": np.array(_COVARIATES, dtype=object),
        },
    )


@dataclass(frozen=True)
class _Differences:
    """High less low, of every pair, and the cohorts of both; None when there is one cohort."""

    outcome: FloatArray
    contrast: FloatArray
    others: FloatArray
    cohorts: IntArray | None


def _differences(
    frame: pd.DataFrame, pairs: Admissible, chosen: IntArray, spread: float
) -> _Differences:
    high, low = pairs.high[chosen], pairs.low[chosen]

    def less(name: str) -> FloatArray:
        column = frame[name].to_numpy(dtype=np.float64)
        return np.asarray(column[high] - column[low])

    others = np.stack([less("log10_lesion_volume"), less("age")], axis=1)
    names, codes = np.unique(frame["cohort"].to_numpy(dtype=str), return_inverse=True)
    return _Differences(
        less("outcome"),
        less("value") / spread,
        # where all pairs agree exactly in one, it needs no adjustment
        others[:, np.abs(others).max(axis=0) > 0],
        None if len(names) < 2 else np.stack([codes[high], codes[low]], axis=1),
    )


def _effects(own: _Differences, confidence: float) -> xr.Dataset:
    one, slope = np.ones((len(own.outcome), 1)), own.contrast[:, None]
    designs = (one, np.hstack([one, own.others]), slope, np.hstack([slope, own.others]))
    fits = [paired_fit(own.outcome, x, own.cohorts, confidence=confidence) for x in designs]
    columns = {
        name: ("effect", np.array([getattr(fit, name) for fit in fits]))
        for name in ("estimate", "se", "df", "ci_low", "ci_high", "p")
    }
    out = xr.Dataset(columns, coords={"effect": np.array(_EFFECTS, dtype=object)})
    out["interval_kind"] = ("effect", np.array([fit.kind for fit in fits], dtype=object))
    return out
