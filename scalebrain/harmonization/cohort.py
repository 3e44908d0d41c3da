"""ComBat on the variables of a Dataset, within a group or through healthy controls."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import DataWarning, MissingVariableError, StatisticsError
from scalebrain.features.inclusion import check_one_scan, flags, same_people, texts
from scalebrain.harmonization.combat import (
    MEAN_ONLY,
    UNCHANGED,
    Combat,
    CombatSettings,
    fit_combat,
)
from scalebrain.harmonization.design import as_labels, covariate_values, missing_rows
from scalebrain.variables import annotate

__all__ = ["Harmonizer", "harmonize"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

#: A covariate of which more than this share lies between batches hangs on few people.
_MUCH = 0.9
#: How the names of brain ages and of what is made of them begin.
_BRAIN_AGES = ("brain_age", "brain_pad")
_ONE_SCAN = (
    "Fit a Harmonizer on one scan a person, e.g. on ds.isel(subject=ds['session'].values == "
    "'ses-1'), and transform all scans with it."
)


@dataclass(frozen=True)
class Harmonizer:
    """A fitted harmonization of the variables of a Dataset.

    Parameters
    ----------
    models
        For each variable, the fitted model over its features.
    shapes
        For each variable, its dimensions besides ``subject`` with their labels.
    within, through, included
        As in :func:`harmonize`.
    n_fit
        Subjects of the fit.
    """

    models: dict[str, Combat]
    shapes: dict[str, dict[str, tuple[str, ...]]]
    within: str | None
    through: str | None
    included: Hashable | None
    n_fit: int

    @classmethod
    def fit(
        cls,
        ds: xr.Dataset,
        *,
        variables: str | Sequence[str] = "brain_pad_corrected",
        batch: str = "cohort",
        covariates: Sequence[str] = ("age", "sex"),
        smooth: Sequence[str] = (),
        within: str | None = None,
        through: str | None = None,
        included: Hashable | None = "included",
        reference_batch: str | None = None,
        unseen: Literal["error", "adapt", "unchanged"] = "error",
        min_adapt: int = 10,
        empirical_bayes: bool = True,
        penalty: Literal["gcv", "kfold"] = "gcv",
        tolerance: float = 1e-4,
        seed: int = 0,
    ) -> Harmonizer:
        """Estimate the effects of the batches; the parameters are those of :func:`harmonize`.

        Parameters
        ----------
        ds
            Dataset with the variables over ``subject``.
        variables, batch, covariates, smooth, within, through, included
            See :func:`harmonize`.
        reference_batch, unseen, min_adapt, empirical_bayes, penalty, tolerance, seed
            See :func:`harmonize`.

        Returns
        -------
        Harmonizer
            With a method :meth:`transform`.

        Raises
        ------
        MissingVariableError
            If a variable is missing.
        StatisticsError
            If groups are confounded with batches, a person is in the fit twice, or a model
            cannot be fitted.
        """
        names = (variables,) if isinstance(variables, str) else tuple(variables)
        for name, value in (("covariates", covariates), ("smooth", smooth)):
            if isinstance(value, str):
                raise StatisticsError(f"{name}={value!r} is text; pass a list of variables.")
        settings = CombatSettings(
            batch,
            tuple(covariates),
            tuple(smooth),
            reference_batch,
            empirical_bayes,
            penalty,
            unseen,
            min_adapt,
            tolerance,
            seed,
        )
        rows, _, fit_rows = _rows(ds, settings, names, within, through, included)
        _check_groups(ds, settings, rows, within, through)
        check_one_scan(ds, fit_rows, where="ComBat", ways=_ONE_SCAN)
        columns = _columns(ds, settings, fit_rows)
        labels = ds[batch].values[fit_rows]
        models, shapes = {}, {}
        for name in names:
            shapes[name], values = _values(ds, name)
            features = _features(shapes[name], name)
            models[name] = fit_combat(
                values[fit_rows], labels, columns, settings=settings, features=features
            )
            _tell_shares(models[name], name)
        return cls(models, shapes, within, through, included, int(fit_rows.sum()))

    def transform(self, ds: xr.Dataset) -> xr.Dataset:
        """Take the effects of the batches out of another Dataset, or of the same.

        Parameters
        ----------
        ds
            Dataset with the variables, batch and covariates of the fit.

        Returns
        -------
        Dataset
            `ds` with ``<variable>_harmonized`` beside every variable, and ``harmonization``:
            how each subject was harmonized, or why not. The values are in memory.

        Raises
        ------
        MissingVariableError
            If a variable is missing.
        StatisticsError
            If labels of a dimension are others than at the fit, a batch is unseen and
            ``unseen="error"``, or a level of a covariate is; if `ds` holds a harmonization.

        Warns
        -----
        DataWarning
            If people of an unseen batch stay as they are.
        """
        settings = next(iter(self.models.values())).settings
        names = tuple(self.models)
        _check_new(ds, names)
        rows, words, learn_from = _rows(
            ds, settings, names, self.within, self.through, self.included
        )
        if not rows.any():
            raise StatisticsError(f"No subject can be harmonized: {_counted(words)}.")
        learn_from &= _one_scan_each(ds, learn_from)
        columns = _columns(ds, settings, rows)
        labels = ds[settings.batch].values[rows]
        self._check_controls(labels)
        out = ds.copy()
        gaps = []
        for name, model in self.models.items():
            shape, values = _values(ds, name)
            if shape != self.shapes[name]:
                raise StatisticsError(
                    f"Variable '{name}' has other labels than at the fit: expected "
                    f"{_shape(self.shapes[name])}, got {_shape(shape)}."
                )
            if np.isinf(values[rows]).any():
                raise StatisticsError(
                    f"Variable '{name}' has infinite values. Set them missing (NaN)."
                )
            made = np.full(values.shape, np.nan)
            made[rows], said = model.apply(
                values[rows], labels, columns, learn_from=learn_from[rows]
            )
            words[rows] = said
            missing = int((~np.isfinite(values[rows])).sum())
            if missing:
                gaps.append(f"{name}: {missing} of {values[rows].size}")
            out[f"{name}_harmonized"] = self._annotated(ds[name], made, model)
        out["harmonization"] = ("subject", words.astype(str).astype(object))
        out["harmonization"].attrs = {
            "counts": _counted(words),
            "missing_values": "; ".join(gaps) or "none",
        }
        left = words == UNCHANGED
        if left.any():
            where = sorted(set(map(str, as_labels(ds[settings.batch].values[left]))))
            warnings.warn(
                f"{int(left.sum())} subjects of '{settings.batch}' {', '.join(where)} were not "
                "harmonized: it was not in the fit. They hold their own values in "
                f"{', '.join(f'{name}_harmonized' for name in names)}.",
                DataWarning,
                stacklevel=2,
            )
        level = logging.WARNING if not rows.all() or gaps else logging.INFO
        logger.log(
            level,
            "Harmonization over '%s': %s; missing values that stay missing: %s",
            settings.batch,
            _counted(words),
            "; ".join(gaps) or "none",
        )
        return annotate(out)

    def _check_controls(self, labels: npt.NDArray[Any]) -> None:
        model = next(iter(self.models.values()))
        if self.through is None or model.settings.unseen != "error":
            return
        without = sorted(set(map(str, as_labels(labels))) - set(model.batches))
        if without:
            raise StatisticsError(
                f"'{model.settings.batch}' {', '.join(without[:12])}"
                f"{', ...' if without[12:] else ''} has nobody of group '{self.through}' to "
                f"harmonize through. Leave these people out, pass unseen='unchanged', or "
                "harmonize within one group (within=)."
            )

    def _annotated(self, source: xr.DataArray, made: FloatArray, model: Combat) -> xr.DataArray:
        dims = ("subject", *(dim for dim in source.dims if dim != "subject"))
        shape = [source.sizes[dim] for dim in dims]
        settings = model.settings
        lone = [
            f"{model.batches[k]}: {n}"
            for k, n in enumerate((model.count == 1).sum(axis=1))
            if n and model.batches[k] != settings.reference_batch
        ]
        attrs = {
            **{key: source.attrs[key] for key in ("units",) if key in source.attrs},
            "long_name": f"{source.attrs.get('long_name', source.name)}, harmonized",
            "harmonized_over": settings.batch,
            "batches": ", ".join(model.batches),
            "covariates": ", ".join(dict.fromkeys((*settings.covariates, *settings.smooth)))
            or "none",
            "smooth": ", ".join(settings.smooth) or "none",
            "reference_batch": settings.reference_batch or "none",
            "empirical_bayes": int(settings.empirical_bayes and len(model.features) > 1),
            "fitted_on": f"{self.n_fit} subjects"
            + (f" of group {self.within or self.through}" if self.within or self.through else ""),
            "mean_only": "; ".join(lone) or "none",
            "share_between_batches": ", ".join(
                f"{name} {share:.2f}" for name, share in model.batch_shares.items()
            )
            or "none",
        }
        array = xr.DataArray(made.reshape(shape), dims=dims, attrs=attrs)
        return array.transpose(*source.dims)


def harmonize(
    ds: xr.Dataset,
    *,
    variables: str | Sequence[str] = "brain_pad_corrected",
    batch: str = "cohort",
    covariates: Sequence[str] = ("age", "sex"),
    smooth: Sequence[str] = (),
    within: str | None = None,
    through: str | None = None,
    included: Hashable | None = "included",
    reference_batch: str | None = None,
    unseen: Literal["error", "adapt", "unchanged"] = "error",
    min_adapt: int = 10,
    empirical_bayes: bool = True,
    penalty: Literal["gcv", "kfold"] = "gcv",
    tolerance: float = 1e-4,
    seed: int = 0,
) -> xr.Dataset:
    """Take the effects of sites out of variables by ComBat or ComBat-GAM.

    Parameters
    ----------
    ds
        Dataset with the variables over ``subject`` and any other dimensions. They are loaded.
    variables
        Names of the variables; each is harmonized by itself, over all its features.
    batch
        Variable over ``subject``: cohort, site or scanner.
    covariates
        Variables over ``subject`` whose effects are kept. Numbers are straight lines; text,
        flags and categoricals are levels.
    smooth
        Those of them, or others, that are kept as a smooth curve (ComBat-GAM).
    within
        Value of ``group``: fit and harmonize these people only.
    through
        Value of ``group``: fit on these people, harmonize everyone. A batch has to have some
        of them; otherwise it is unseen.
    included
        Bool variable over ``subject``; others are not harmonized. None, or a `ds` without
        such a variable, leaves nobody out by it. Where a variable is of brain ages (its name
        begins with ``brain_age`` or ``brain_pad``), people whose age is extrapolated are not
        harmonized either, as no model of brain ages uses them:
        ``ds.drop_vars("extrapolated")`` takes them in.
    reference_batch
        Batch that the others are brought to and that stays as it is. Default: the mean of
        all, by their sizes.
    unseen
        What to do with a batch that was not in the fit. ``"error"``: refuse. ``"adapt"``:
        estimate it from its own people (those of `through`), from one scan of each, the first
        by its label. ``"unchanged"``: leave it, with a warning.
    min_adapt
        Fewest people of an unseen batch that it is adapted from.
    empirical_bayes
        Shrink the estimates of a batch towards their mean over the features. A variable of
        one feature has none to shrink to, and is fitted without.
    penalty
        How the smoothness is chosen: ``"gcv"``, or ``"kfold"`` as neuroHarmonize does.
    tolerance
        Relative change at which the empirical Bayes iteration stops.
    seed
        Of the folds of ``penalty="kfold"``.

    Returns
    -------
    Dataset
        `ds` with ``<variable>_harmonized`` beside every variable, and ``harmonization
        (subject)``: how each subject was harmonized, or why not (then the values are NaN).

    Raises
    ------
    MissingVariableError
        If a variable is missing.
    StatisticsError
        If there is more than one group and neither `within` nor `through` is named (unless
        ``group`` is a covariate that the batches can be told from); if covariates are
        confounded with the batches (rank and columns are named); if a person is in the fit
        twice; if there is one batch only, or a feature that does not vary.

    Notes
    -----
    ``y = mean + X b + sd (shift + sqrt(scale) e)`` becomes ``mean + X b + sd e``: shift and
    scale are of the batch, and mean, b and sd are common. A batch of one subject is given a
    mean only, shrunk. A missing value stays missing, and its feature is fitted on the others.
    A smooth curve goes on as a straight line beyond the ages of the fit. Batches are not
    harmonized for prediction: use :class:`~scalebrain.harmonization.transformer.ComBat`
    inside a Pipeline for that.

    References
    ----------
    Johnson et al. 2007, doi:10.1093/biostatistics/kxj037. Fortin et al. 2018,
    doi:10.1016/j.neuroimage.2017.11.024. Pomponio et al. 2020,
    doi:10.1016/j.neuroimage.2019.116450.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ds = xr.Dataset(
    ...     {"brain_pad": (("subject", "region"), rng.normal(size=(40, 3)))},
    ...     coords={
    ...         "age": ("subject", rng.uniform(45, 80, 40)),
    ...         "cohort": ("subject", np.repeat(["a", "b"], 20)),
    ...     },
    ... )
    >>> out = harmonize(ds, variables="brain_pad", covariates=["age"])
    >>> out["brain_pad_harmonized"].dims
    ('subject', 'region')
    """
    _check_new(ds, (variables,) if isinstance(variables, str) else variables)
    fitted = Harmonizer.fit(
        ds,
        variables=variables,
        batch=batch,
        covariates=covariates,
        smooth=smooth,
        within=within,
        through=through,
        included=included,
        reference_batch=reference_batch,
        unseen=unseen,
        min_adapt=min_adapt,
        empirical_bayes=empirical_bayes,
        penalty=penalty,
        tolerance=tolerance,
        seed=seed,
    )
    return fitted.transform(ds)


def _check_new(ds: xr.Dataset, names: Sequence[str]) -> None:
    """Refuse to lose an earlier harmonization."""
    again = [f"{name}_harmonized" for name in names if f"{name}_harmonized" in ds.variables]
    again = again or [name for name in ("harmonization",) if name in ds.variables]
    if again:
        raise StatisticsError(
            f"{', '.join(map(repr, again))} is there already and would be lost. Drop it first, "
            "or rename it; several variables can be harmonized in one call."
        )


def _rows(
    ds: xr.Dataset,
    settings: CombatSettings,
    names: Sequence[str],
    within: str | None,
    through: str | None,
    included: Hashable | None,
) -> tuple[BoolArray, npt.NDArray[np.object_], BoolArray]:
    """Who is harmonized, why others are not, and who is of the group to learn from."""
    if within is not None and through is not None:
        raise StatisticsError(
            f"within='{within}' and through='{through}' exclude each other: name one."
        )
    if not names:
        raise StatisticsError("variables is empty: name what to harmonize.")
    if "subject" not in ds.dims:
        raise MissingVariableError(
            "Dataset: dimension 'subject' is missing. Open a finished store with open_store."
        )
    known = dict.fromkeys((settings.batch, *settings.covariates, *settings.smooth))
    group = ["group"] if within is not None or through is not None else []
    absent = [name for name in (*names, *known, *group) if name not in ds.variables]
    if absent:
        raise MissingVariableError(
            f"Dataset: variable {', '.join(map(repr, absent))} is missing. Compute it first, or "
            "name your own variables."
        )
    wrong = [name for name in (*known, *group) if ds[name].dims != ("subject",)]
    if wrong:
        raise StatisticsError(
            f"{', '.join(map(repr, wrong))} must lie over 'subject' alone: it is a batch, a group "
            "or a covariate."
        )
    n = ds.sizes["subject"]
    words = np.full(n, "", dtype=object)

    def leave(rows: BoolArray, why: str) -> None:
        words[rows & (words == "")] = why

    if included is not None and included in ds.variables:
        leave(~flags(ds, included), f"not used: not {included}")
    if "extrapolated" in ds.variables and any(name.startswith(_BRAIN_AGES) for name in names):
        leave(flags(ds, "extrapolated"), "not used: age extrapolated")
    groups = np.full(n, None, dtype=object)
    if "group" in ds.variables and ds["group"].dims == ("subject",):
        groups = as_labels(ds["group"].values)
    without = np.array([label is None for label in groups], dtype=np.bool_)
    if not without.all():
        leave(without, "not used: group is missing")
    if within is not None:
        _check_value("within", within, groups)
        leave(groups != within, f"not used: not of group {within}")
    for name in known:
        leave(missing_rows(ds[name].values), f"not used: {name} is missing")
    learn_from = words == ""
    if through is not None:
        _check_value("through", through, groups)
        learn_from &= groups == through
    if not learn_from.any():
        raise StatisticsError(f"No subject is left to harmonize: {_counted(words)}.")
    return words == "", words, learn_from


def _one_scan_each(ds: xr.Dataset, rows: BoolArray) -> BoolArray:
    """Of the rows of a person the one that comes first by its label."""
    labels: npt.NDArray[Any] = np.arange(rows.size)
    if "subject" in ds.coords:
        labels = texts(ds, "subject")
    order = np.argsort(labels, kind="stable")
    order = order[rows[order]]
    chosen = np.zeros(rows.size, dtype=np.bool_)
    chosen[order[np.unique(same_people(ds)[order], return_index=True)[1]]] = True
    return chosen


def _check_value(name: str, value: str, groups: npt.NDArray[np.object_]) -> None:
    there = sorted({str(group) for group in groups if group is not None})
    if value not in there:
        raise StatisticsError(f"{name}='{value}' is not among the groups {', '.join(there)}.")


def _check_groups(
    ds: xr.Dataset,
    settings: CombatSettings,
    rows: BoolArray,
    within: str | None,
    through: str | None,
) -> None:
    """Refuse a harmonization across groups."""
    if within is not None or through is not None or "group" not in ds.variables:
        return
    groups = as_labels(ds["group"].values)[rows]
    there = sorted({str(group) for group in groups if group is not None})
    if len(there) < 2:
        return
    labels = as_labels(ds[settings.batch].values)[rows]
    held = {
        str(label): {str(group) for group in groups[labels == label] if group is not None}
        for label in sorted(set(labels))
    }
    ways = (
        f"Harmonize within one group (within='{there[-1]}'), or through people of one group that "
        f"were scanned at every '{settings.batch}' (through='{there[0]}')."
    )
    islands = _islands(list(held.values()))
    if islands > 1:
        alone = [f"{label} ({next(iter(of))})" for label, of in held.items() if len(of) == 1]
        size = len(held) + len(there) - 1
        raise StatisticsError(
            f"group confounded with '{settings.batch}': the design of {len(held)} batches and "
            f"'group' ({', '.join(there)}) has rank {size - islands + 1}, not {size}. Batches of "
            f"one group: {', '.join(alone[:12])}{', ...' if alone[12:] else ''}. The effect of "
            f"the group cannot be told from that of the scanner. {ways}"
        )
    if "group" not in (*settings.covariates, *settings.smooth):
        raise StatisticsError(
            f"{len(there)} groups ({', '.join(there)}) would be harmonized as one, and their "
            f"difference with them. {ways} Or name 'group' among the covariates: it can be told "
            f"from '{settings.batch}' here."
        )


def _islands(sets: list[set[str]]) -> int:
    """How many parts fall apart, where batches that share a group hold together."""
    parts: list[set[str]] = []
    for own in sets:
        if not own:
            continue
        touching = [part for part in parts if part & own]
        parts = [part for part in parts if not part & own]
        parts.append(own.union(*touching))
    return len(parts)


def _columns(
    ds: xr.Dataset, settings: CombatSettings, rows: BoolArray
) -> dict[str, npt.NDArray[Any]]:
    names = dict.fromkeys((*settings.covariates, *settings.smooth))
    return {
        name: covariate_values(np.asarray(ds[name].values)[rows], ds[name].dtype) for name in names
    }


def _values(ds: xr.Dataset, name: str) -> tuple[dict[str, tuple[str, ...]], FloatArray]:
    """Labels of the dimensions besides subject, and (subject, feature) values."""
    source = ds[name]
    if "subject" not in source.dims or source.dtype.kind not in "fiu":
        raise StatisticsError(
            f"Variable '{name}' cannot be harmonized: expected numbers over 'subject' and other "
            f"dimensions, got {source.dtype} over {source.dims}."
        )
    others = [str(dim) for dim in source.dims if dim != "subject"]
    shape = {
        dim: tuple(map(str, ds[dim].values if dim in ds.coords else range(ds.sizes[dim])))
        for dim in others
    }
    values = source.transpose("subject", *others).values.astype(np.float64)
    return shape, values.reshape(len(values), -1)


def _features(shape: dict[str, tuple[str, ...]], name: str) -> list[str]:
    labels = [""]
    for own in shape.values():
        labels = [f"{before} {label}".strip() for before in labels for label in own]
    return labels if shape else [name]


def _shape(shape: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(
        f"{dim}: {len(own)} ({', '.join(own[:3])}{', ...' if own[3:] else ''})"
        for dim, own in shape.items()
    )


def _counted(words: npt.NDArray[np.object_]) -> str:
    named, counts = np.unique(words.astype(str), return_counts=True)
    return "; ".join(f"{word}: {n}" for word, n in zip(named, counts, strict=True) if word)


def _tell_shares(model: Combat, name: str) -> None:
    much = [f"{key} {share:.2f}" for key, share in model.batch_shares.items() if share > _MUCH]
    if much:
        logger.warning(
            "Harmonization of '%s': most of the variance of %s lies between values of '%s'; what "
            "is kept of its effect hangs on the few people who differ within them",
            name,
            ", ".join(much),
            model.settings.batch,
        )
    alone = [model.batches[k] for k in np.flatnonzero(model.count.max(axis=1) == 1)]
    if alone:
        logger.warning(
            "Harmonization of '%s': %s has one subject and is harmonized by %s",
            name,
            ", ".join(alone),
            MEAN_ONLY,
        )
