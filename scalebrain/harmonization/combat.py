"""ComBat on arrays: estimate shift and scale of every batch, and take them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError, check_all
from scalebrain.harmonization.design import (
    Covariates,
    as_labels,
    batch_share,
    check_confounding,
)
from scalebrain.harmonization.splines import (
    gcv_weights,
    kfold_weights,
    penalized_fit,
    weighted_penalty,
)

__all__ = [
    "ADAPTED",
    "LOCATION_SCALE",
    "MEAN_ONLY",
    "REFERENCE",
    "UNCHANGED",
    "Combat",
    "CombatSettings",
    "fit_combat",
]

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: How a subject was harmonized, in words.
LOCATION_SCALE = "location and scale"
MEAN_ONLY = "mean only (one subject of the batch)"
REFERENCE = "reference batch, unchanged"
ADAPTED = "location and scale, batch not in the fit: adapted"
UNCHANGED = "unchanged, batch not in the fit"


@dataclass(frozen=True)
class CombatSettings:
    """What a fit is asked for.

    Parameters
    ----------
    batch
        Name of the batch variable, for messages.
    covariates, smooth
        Names of the covariates that are kept, as they are or smooth.
    reference_batch
        Batch that the others are brought to; None for the mean of all.
    empirical_bayes
        Shrink the estimates of a batch towards their mean over the features.
    penalty
        How the smoothness is chosen.
    unseen
        What to do with a batch that was not in the fit.
    min_adapt
        Fewest subjects of an unseen batch that it is adapted from.
    tolerance
        Relative change at which the empirical Bayes iteration stops.
    seed
        Of the folds of ``penalty="kfold"``.
    """

    batch: str
    covariates: tuple[str, ...] = ()
    smooth: tuple[str, ...] = ()
    reference_batch: str | None = None
    empirical_bayes: bool = True
    penalty: Literal["gcv", "kfold"] = "gcv"
    unseen: Literal["error", "adapt", "unchanged"] = "error"
    min_adapt: int = 10
    tolerance: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values that are not names."""
        if self.reference_batch is not None:  # labels are text, and 1.0 is 1
            label = as_labels(np.array([self.reference_batch], dtype=object))[0]
            object.__setattr__(self, "reference_batch", label or "")
        for name, allowed in (
            ("penalty", ("gcv", "kfold")),
            ("unseen", ("error", "adapt", "unchanged")),
        ):
            if getattr(self, name) not in allowed:
                raise StatisticsError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, "
                    f"got {getattr(self, name)!r}."
                )
        if self.min_adapt < 2:
            raise StatisticsError(f"min_adapt must be 2 or more, got {self.min_adapt}.")
        if not 0 < self.tolerance < 1:
            raise StatisticsError(f"tolerance must lie between 0 and 1, got {self.tolerance}.")
        if self.batch in (*self.covariates, *self.smooth):
            raise StatisticsError(
                f"'{self.batch}' is the batch and a covariate: its effect cannot be both taken "
                "out and kept. Name it once."
            )


@dataclass(frozen=True)
class Combat:
    """A fitted model.

    Parameters
    ----------
    settings
        What was asked for.
    batches, features
        Labels.
    encoding
        Covariates as they were encoded.
    mean, variance
        (feature,) intercept and pooled residual variance.
    coefficients
        (column, feature) of the covariates.
    shift, scale
        (batch, feature) in pooled standard deviations, and as a factor of the variance; NaN
        where the batch has no value of the feature.
    count
        (batch, feature) values that they were estimated from.
    weights
        (feature, term) penalties of the smooth terms.
    batch_shares
        For each covariate, the largest share of its variance that lies between batches.
    """

    settings: CombatSettings
    batches: tuple[str, ...]
    features: tuple[str, ...]
    encoding: Covariates
    mean: FloatArray
    variance: FloatArray
    coefficients: FloatArray
    shift: FloatArray
    scale: FloatArray
    count: IntArray
    weights: FloatArray
    batch_shares: dict[str, float]

    def apply(
        self,
        values: FloatArray,
        labels: AnyArray,
        columns: Mapping[str, AnyArray],
        *,
        learn_from: BoolArray | None = None,
    ) -> tuple[FloatArray, npt.NDArray[np.object_]]:
        """Take the effects of the batches out.

        Parameters
        ----------
        values
            (subject, feature); NaN where missing, and missing then in the result.
        labels
            (subject,) batches.
        columns
            (subject,) values of every covariate.
        learn_from
            (subject,) who may be used to adapt to an unseen batch; None for all.

        Returns
        -------
        harmonized
            (subject, feature).
        words
            (subject,) how each was harmonized.

        Raises
        ------
        StatisticsError
            If a batch is unseen and not to be adapted or left unchanged, is too small to
            adapt, or had no value of a feature that it has now.
        """
        labels = as_labels(labels)
        allowed = np.ones(len(values), dtype=np.bool_) if learn_from is None else learn_from
        here = sorted(set(labels))
        unseen = [label for label in here if label not in self.batches]
        self._check_unseen(unseen, labels, allowed)
        fitted = self.mean + self.encoding.encode(columns, len(values)) @ self.coefficients
        spread = np.sqrt(self.variance)
        standard = (values - fitted) / spread
        out = values.copy()
        words = np.full(len(values), UNCHANGED, dtype=object)
        failures: list[str] = []
        for label in here:
            rows = labels == label
            if label == self.settings.reference_batch:
                words[rows] = REFERENCE
                continue
            if label in unseen:
                if self.settings.unseen == "unchanged":
                    continue
                shift, scale, count = self._adapted(standard[rows & allowed], str(label))
                words[rows] = ADAPTED
            else:
                k = self.batches.index(str(label))
                shift, scale, count = self.shift[k], self.scale[k], self.count[k]
                words[rows] = MEAN_ONLY if count.max() == 1 else LOCATION_SCALE
            without = np.asarray(np.isfinite(values[rows]).any(axis=0) & (count == 0))
            if without.any():
                failures.append(
                    f"'{self.settings.batch}' {label} had no value of "
                    f"{_listed(self.features, without)} in the fit, but has some now. Fit with "
                    "them, or set them missing."
                )
                continue
            out[rows] = (standard[rows] - shift) / np.sqrt(scale) * spread + fitted[rows]
        check_all(failures, StatisticsError, "Harmonization cannot be applied")
        return out, words

    def _check_unseen(self, unseen: list[Any], labels: AnyArray, allowed: BoolArray) -> None:
        if not unseen:
            return
        settings = self.settings
        if settings.unseen == "error":
            counts = ", ".join(f"{label} ({int((labels == label).sum())})" for label in unseen)
            raise StatisticsError(
                f"'{settings.batch}' {counts} was not in the fit, which knows "
                f"{', '.join(self.batches[:20])}. Fit with people of it, or pass unseen='adapt' "
                "to estimate it from its own people (without outcomes), or unseen='unchanged'."
            )
        if settings.unseen == "adapt":
            small = [
                f"{label} ({int(((labels == label) & allowed).sum())})"
                for label in unseen
                if ((labels == label) & allowed).sum() < settings.min_adapt
            ]
            if small:
                raise StatisticsError(
                    f"'{settings.batch}' {', '.join(small)} was not in the fit and has fewer than "
                    f"min_adapt={settings.min_adapt} people to adapt from. Fit with them, leave "
                    "them out, or pass unseen='unchanged'."
                )

    def _adapted(self, standard: FloatArray, label: str) -> tuple[FloatArray, FloatArray, IntArray]:
        _check_spread(standard, label, self.features, self.settings)
        return _batch_effects(standard, self.settings)


def fit_combat(
    values: FloatArray,
    labels: AnyArray,
    columns: Mapping[str, AnyArray],
    *,
    settings: CombatSettings,
    features: Sequence[str],
) -> Combat:
    """Fit ComBat or, with smooth covariates, ComBat-GAM.

    Parameters
    ----------
    values
        (subject, feature); NaN where missing: a feature is fitted on those who have it.
    labels
        (subject,) batches, none missing.
    columns
        (subject,) values of every covariate, none missing.
    settings
        What is asked for.
    features
        Names of the features.

    Returns
    -------
    Combat
        The fitted model.

    Raises
    ------
    StatisticsError
        If covariates are confounded with the batches, there is one batch only, the reference
        batch is unknown, or a feature does not vary.

    Notes
    -----
    ``y = mean + X b + sd (shift + sqrt(scale) e)``. The mean and b are estimated by least
    squares on batches and covariates (penalized where smooth), shift and scale from the
    standardized residuals of each batch; with empirical Bayes they shrink towards the mean of
    the batch over the features (normal and inverse gamma priors, from their moments). A batch
    of one subject has no variance: its scale is 1 and its shift is shrunk alone.

    References
    ----------
    Johnson et al. 2007, doi:10.1093/biostatistics/kxj037. Fortin et al. 2018,
    doi:10.1016/j.neuroimage.2017.11.024. Pomponio et al. 2020,
    doi:10.1016/j.neuroimage.2019.116450.
    """
    labels = as_labels(labels)
    batches = tuple(sorted(set(map(str, labels))))
    codes = np.searchsorted(np.array(batches, dtype=str), labels.astype(str)).astype(np.int64)
    _check_batches(batches, codes, settings)
    _check_values(values, codes, batches, settings, features)
    encoding = Covariates.learn(columns, settings.covariates, settings.smooth)
    names, lines = encoding.straight(columns, len(values))
    check_confounding(codes, batches, names, lines, batch=settings.batch)
    shares: dict[str, float] = {}
    for name, share in zip(names, batch_share(codes, len(batches), lines), strict=True):
        covariate = name.split("[")[0]
        shares[covariate] = max(shares.get(covariate, 0.0), float(share))
    x = encoding.encode(columns, len(values))
    effects, coefficients, weights = _regress(
        values, codes, batches, x, names, lines, encoding, settings, features
    )
    present = np.isfinite(values)
    count = np.zeros((len(batches), len(features)), dtype=np.int64)
    np.add.at(count, codes, present)
    residual = values - np.nan_to_num(effects)[codes] - x @ coefficients
    if settings.reference_batch is None:
        mean = (count * np.nan_to_num(effects)).sum(axis=0) / count.sum(axis=0)
        base = np.ones(len(codes), dtype=np.bool_)
    else:
        k = batches.index(settings.reference_batch)
        mean, base = effects[k], codes == k
    variance = np.nanmean(residual[base] ** 2, axis=0)
    size = np.nanmean((values - np.nanmean(values, axis=0)) ** 2, axis=0)
    flat = np.asarray(~((size > 0) & (variance > 1e-20 * size)))
    if flat.any():
        of = f" in '{settings.reference_batch}'" if settings.reference_batch is not None else ""
        raise StatisticsError(
            f"{_listed(features, flat)} does not vary{of} beyond '{settings.batch}' and "
            "covariates, so there is nothing to harmonize. Leave it out."
        )
    standard = (values - mean - x @ coefficients) / np.sqrt(variance)
    shift = np.full((len(batches), len(features)), np.nan)
    scale = np.full_like(shift, np.nan)
    for k, label in enumerate(batches):
        if label == settings.reference_batch:
            shift[k], scale[k] = 0.0, 1.0
            continue
        rows = standard[codes == k]
        _check_spread(rows, label, features, settings)
        shift[k], scale[k], _ = _batch_effects(rows, settings)
    return Combat(
        settings,
        batches,
        tuple(features),
        encoding,
        mean,
        variance,
        coefficients,
        shift,
        scale,
        count,
        weights,
        shares,
    )


def _check_batches(batches: tuple[str, ...], codes: IntArray, settings: CombatSettings) -> None:
    if len(batches) < 2:
        raise StatisticsError(
            f"All {len(codes)} subjects belong to one '{settings.batch}' ({batches[0]}): there is "
            "nothing to harmonize."
        )
    reference = settings.reference_batch
    if reference is not None and reference not in batches:
        raise StatisticsError(
            f"reference_batch '{reference}' is not among the values of '{settings.batch}' in the "
            f"fit: {', '.join(batches[:20])}."
        )
    alone = [batches[k] for k in np.flatnonzero(np.bincount(codes) == 1)]
    if reference in alone:
        raise StatisticsError(
            f"reference_batch '{reference}' has one subject, so it has no variance to bring the "
            "others to. Choose a larger one."
        )
    if alone and not settings.empirical_bayes:
        raise StatisticsError(
            f"'{settings.batch}' {', '.join(alone)} has one subject: without empirical Bayes "
            "nothing of that subject would be left. Leave it out, or use empirical Bayes."
        )


def _check_values(
    values: FloatArray,
    codes: IntArray,
    batches: tuple[str, ...],
    settings: CombatSettings,
    features: Sequence[str],
) -> None:
    infinite = np.asarray(np.isinf(values).any(axis=0))
    if infinite.any():
        raise StatisticsError(
            f"{_listed(features, infinite)} has infinite values. Set them "
            "missing (NaN) or leave these subjects out."
        )
    rows, where = np.ones(len(codes), dtype=np.bool_), ""
    if settings.reference_batch is not None:
        rows = codes == batches.index(settings.reference_batch)
        where = f" in the reference batch '{settings.reference_batch}'"
    empty = np.asarray(~np.isfinite(values[rows]).any(axis=0))
    if empty.any():
        raise StatisticsError(
            f"{_listed(features, empty)} is missing in everyone{where}. Leave it out."
        )


def _regress(
    values: FloatArray,
    codes: IntArray,
    batches: tuple[str, ...],
    x: FloatArray,
    names: Sequence[str],
    lines: FloatArray,
    encoding: Covariates,
    settings: CombatSettings,
    features: Sequence[str],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Effects of batches (NaN where unseen) and covariates, feature by feature."""
    present = np.isfinite(values)
    patterns: dict[bytes, list[int]] = {}
    for k in range(len(features)):
        patterns.setdefault(present[:, k].tobytes(), []).append(k)
    effects = np.full((len(batches), len(features)), np.nan)
    coefficients = np.empty((x.shape[1], len(features)))
    weights = np.empty((len(features), len(settings.smooth)))
    rng = np.random.default_rng(settings.seed)
    failures = []
    for own in patterns.values():
        rows = present[:, own[0]]
        here = np.unique(codes[rows])
        inside = np.searchsorted(here, codes[rows])
        try:
            if not rows.all():
                where = f"{_listed([features[k] for k in own])}, where it is not missing"
                encoding.check_varies(lines[rows], where=where)
                check_confounding(
                    inside,
                    [batches[k] for k in here],
                    names,
                    lines[rows],
                    batch=settings.batch,
                    where=where,
                )
        except StatisticsError as error:
            failures.append(str(error))
            continue
        design = np.column_stack([np.eye(len(here))[inside], x[rows]])
        y = values[rows][:, own]
        penalties = encoding.penalties(len(here))
        made = np.empty((design.shape[1], len(own)))
        if penalties:
            if settings.penalty == "gcv":
                chosen = gcv_weights(design, y, penalties)
            else:
                chosen = np.array([kfold_weights(design, k, penalties, rng) for k in y.T])
            for row in np.unique(chosen, axis=0):
                same = (chosen == row).all(axis=1)
                penalty = weighted_penalty(penalties, row)
                made[:, same] = penalized_fit(design, y[:, same], penalty)
            weights[own] = chosen
        else:
            made[:] = np.linalg.lstsq(design, y, rcond=None)[0]
        effects[here[:, None], own] = made[: len(here)]
        coefficients[:, own] = made[len(here) :]
    check_all(failures, StatisticsError, "Harmonization cannot be fitted")
    return effects, coefficients, weights


def _check_spread(
    standard: FloatArray, label: str, features: Sequence[str], settings: CombatSettings
) -> None:
    batch = settings.batch
    count = np.isfinite(standard).sum(axis=0)
    some = np.where(count > 1, np.nan_to_num(standard).max(axis=0), 0)
    span = np.zeros(len(features))
    more = count > 1
    if more.any():
        span[more] = np.nanmax(standard[:, more], axis=0) - np.nanmin(standard[:, more], axis=0)
    alone = count == 1
    if alone.any() and not _shrinks(count, settings):
        raise StatisticsError(
            f"{_listed(features, alone)}: '{batch}' {label} has one value, of which nothing would "
            "be left: there are no other features to shrink its shift to. Leave the batch or the "
            "feature out."
        )
    flat = more & (span <= 1e-10 * np.maximum(1, np.abs(some)))
    if flat.any():
        raise StatisticsError(
            f"{_listed(features, flat)} does not vary among the people of '{batch}' {label}, so "
            "its scale cannot be estimated. Leave the batch or the feature out."
        )


def _shrinks(count: IntArray, settings: CombatSettings) -> bool:
    """Whether the effects of a batch with so many values of each feature are shrunk."""
    return settings.empirical_bayes and int((count > 0).sum()) > 1


def _batch_effects(
    standard: FloatArray, settings: CombatSettings
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Shift, scale and count of one batch, from its standardized residuals."""
    count = np.isfinite(standard).sum(axis=0)
    shift = np.full(standard.shape[1], np.nan)
    scale = np.full(standard.shape[1], np.nan)
    has, more = count > 0, count > 1
    shift[has] = np.nanmean(standard[:, has], axis=0)
    scale[has] = 1.0
    scale[more] = np.nanvar(standard[:, more], axis=0, ddof=1)
    if not _shrinks(count, settings):
        return shift, scale, count
    center = shift[has].mean()
    between = shift[has].var(ddof=1)
    alone = has & ~more
    shift[alone] = (between * shift[alone] + center) / (between + 1)
    if more.sum() >= 2:
        shift[more], scale[more] = _shrink(
            standard[:, more], shift[more], scale[more], center, between, settings.tolerance
        )
    return shift, scale, count


def _shrink(
    standard: FloatArray,
    shift: FloatArray,
    scale: FloatArray,
    center: float,
    between: float,
    tolerance: float,
) -> tuple[FloatArray, FloatArray]:
    """Posterior means of shift and scale, found in turns (Johnson 2007, parametric)."""
    count = np.isfinite(standard).sum(axis=0)
    m, s2 = scale.mean(), scale.var(ddof=1)
    old_shift, old_scale = shift, scale
    for _ in range(10_000):
        new_shift = (between * count * shift + old_scale * center) / (between * count + old_scale)
        squares = np.nansum((standard - new_shift) ** 2, axis=0)
        # a = (2 s2 + m^2) / s2 and b = (m s2 + m^3) / s2, multiplied by s2: s2 may be zero
        new_scale = (0.5 * s2 * squares + m * s2 + m**3) / (0.5 * s2 * count + s2 + m**2)
        # as in sva and neuroCombat, a negative shift does not count; the scale always does
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.nan_to_num(np.abs(new_shift - old_shift) / old_shift, nan=0.0)
        change = max(moved.max(), (np.abs(new_scale - old_scale) / old_scale).max())
        old_shift, old_scale = new_shift, new_scale
        if change <= tolerance:
            return new_shift, new_scale
    raise StatisticsError(
        f"Empirical Bayes did not settle to a relative change of {tolerance}. Raise `tolerance`."
    )


def _listed(names: Sequence[str], which: BoolArray | None = None) -> str:
    chosen = [name for k, name in enumerate(names) if which is None or which[k]]
    return ", ".join(map(repr, chosen[:8])) + (f" and {len(chosen) - 8} more" if chosen[8:] else "")
