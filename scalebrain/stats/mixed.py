"""Linear mixed models with a random intercept, or intercept and slope, one per region."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.cluster.threads import one_thread_each
from scalebrain.errors import MissingVariableError, StatisticsError, check_all
from scalebrain.features.inclusion import ONE_SCAN, check_one_scan, same_people
from scalebrain.stats.counts import check_count
from scalebrain.stats.design import ParsedFormula, parse_formula
from scalebrain.stats.frame import eligible_subjects
from scalebrain.stats.mixed_fit import Fits, fit_intercepts
from scalebrain.stats.mixed_jobs import Job, Source, counts, jobs
from scalebrain.stats.mixed_resampling import Permutations, bootstrap, permute, varies_within
from scalebrain.stats.mixed_slope import fit_slopes
from scalebrain.stats.mixed_table import Table, labels_shown
from scalebrain.stats.scales import scale_note, scales_of

__all__ = ["mixed_model"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]


def mixed_model(
    ds: xr.Dataset,
    formula: str,
    *,
    groups: Hashable = "cohort",
    weights: Hashable | None = None,
    family: Sequence[Hashable] | None = None,
    dim: Hashable = "region",
    included: Hashable | None = "included",
    confidence: float = 0.95,
    reml: bool = True,
    n_permutations: int = 0,
    permuted: Sequence[str] | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    errors: Literal["raise", "record"] = "raise",
) -> xr.Dataset:
    """Fit one linear mixed model per region, with a random intercept by group.

    Parameters
    ----------
    ds
        Dataset with ``subject`` and, for region-wise variables, `dim`. Only the variables
        that the formula names are loaded; a lazy outcome is read in blocks along `dim`.
    formula
        Wilkinson formula, e.g.
        ``"brain_pad_corrected ~ scale(log10(lesion_volume)) + age + sex"``. It may name any
        variable or coordinate whose dimensions are among ``subject`` and `dim`. A predictor
        over `dim` gives each region its own design. ``+ (1 + age | cohort)`` adds a random
        slope, correlated with the intercept; without it, ``(1 | cohort)`` is understood.
        Permutations and the bootstrap are there for a random intercept alone.
    groups
        Variable over ``subject`` whose values share an intercept. Where people have several
        scans, it has to be ``"person"``.
    weights
        Variable over ``subject`` of prior weights: a residual has the variance
        ``residual_variance / weight``; not with permutations. Default: all one.
    family
        Labels on `dim` that are corrected together (``q``, ``p_bonferroni``, ``p_fwe``);
        default all of them. These are missing outside it. Every term, the intercept too, is
        a family of its own.
    dim
        Dimension to fit over: ``region``, or ``node`` or ``vertex`` for a mass-univariate map.
    included
        Bool variable over ``subject``; rows where it is False are dropped like rows with
        missing values. None, or a `ds` without such a variable, leaves nobody out by it. Rows
        where ``extrapolated`` is True are dropped in any case: ``ds.drop_vars("extrapolated")``
        takes them in.
    confidence
        Level of the confidence intervals.
    reml
        Restricted maximum likelihood; False: maximum likelihood, to compare models that
        differ in fixed effects by ``log_likelihood``.
    n_permutations
        Freedman-Lane permutations within groups; 0 for none.
    permuted
        Terms to test by permutation, as they stand on ``term``. Default: all that vary within
        groups.
    n_bootstrap
        Bootstrap samples of whole groups; 0 for none.
    seed
        Seed of both.
    errors
        What to do if a region cannot be fitted. ``"raise"``: gather all failures in one
        error. ``"record"``: missing values, and the reasons in ``attrs["failures"]``; an error
        still where none can be fitted. Regions of two groups have no bootstrap: where others
        have one, they are missing there, with a warning, in both cases.

    Returns
    -------
    Dataset
        In memory. Over ``(dim, term)``: ``estimate``, ``se``, ``df``, ``ci_low``, ``ci_high``,
        ``estimate_standardized``, ``se_standardized`` (missing for the intercept), ``p``,
        ``q``, ``p_bonferroni``. With permutations ``p_permutation``, ``p_fwe`` (missing for
        terms not permuted, which ``attrs["not_permuted"]`` names) and, over
        ``(permutation, term)``, ``max_t``. With bootstrap samples ``se_bootstrap``,
        ``ci_low_bootstrap``, ``ci_high_bootstrap``. Over ``dim``: ``n``, ``n_dropped``,
        ``n_groups``, ``group_variance``, ``residual_variance``, ``log_likelihood``,
        ``boundary``, ``n_bootstrap``, and with a random slope ``slope_variance`` and
        ``slope_covariance``. Over ``(dim, subject)``: ``dropped``. Where nothing could be
        fitted, nobody was used: ``n`` is 0, ``dropped`` True, and ``boundary`` False. If no
        variable of the formula lies over `dim`, one model is fitted and the results have no
        dimension `dim` (then ``q`` equals ``p``). ``attrs["rows_dropped"]`` counts the dropped
        rows by reason; ``attrs["scale_note"]``, where the formula names ``motor_score``, says
        that scores of several scales are pooled.

    Raises
    ------
    MissingVariableError
        If the formula, `groups` or `weights` names an unknown variable.
    StatisticsError
        If the formula is malformed, an option is out of range, or a region has a
        rank-deficient design (the columns are named), too few rows, fewer than two groups, or
        an outcome without residual variation; whatever `errors` says, if the rows used hold a
        person twice, but for groups that hold one person each.

    Notes
    -----
    Rows with a missing or infinite value in any variable, or in any function of one (such
    as ``log10`` of zero), are dropped, counted and flagged in ``dropped``; ``scale``
    standardizes on the rows that remain.

    Two scans of a person are more alike than those of two people, so that an intercept of the
    cohort would count a person as often as there are scans: of a predictor that does not vary
    within people, tests at 5 % would reject far more often than that.

    The likelihood is profiled to one parameter, the ratio of the two variances, and searched
    over a grid and then to machine precision, on orthonormalized columns: the numbers are
    those of ``lmer`` at its optimum. Where the ratio is zero the fit equals ordinary least
    squares and ``boundary`` is True; this is recorded and logged, not warned about. Degrees
    of freedom are Satterthwaite's, from the gradient of each coefficient's variance and the
    inverse of the observed information of the variances, as in lmerTest. With a random slope,
    the three elements of the Cholesky factor are searched with exact gradients, and
    ``boundary`` is True where their covariance is singular.

    A standardized estimate is ``estimate * sd(term) / sd(outcome)`` over the rows used, which
    is the estimate of the model of standardized columns.

    A permutation exchanges the residuals of the model without the tested term within groups,
    so that differences between groups stay what they are, and fits the full model again, its
    ratio of variances too. ``p_permutation = (1 + b) / (1 + n_permutations)`` with b the
    permutations of an absolute t as large; ``p_fwe`` the same with the largest of the family. The
    same permutations serve all regions. A term that does not vary within groups cannot be
    tested in this way. The bootstrap draws as many whole groups as there are, with
    replacement, and fits each sample; its interval is the expanded percentile interval.

    References
    ----------
    Bates et al., lme4, DOI 10.18637/jss.v067.i01. Kuznetsova et al., lmerTest,
    DOI 10.18637/jss.v082.i13. Benjamini and Hochberg, DOI 10.1111/j.2517-6161.1995.tb02031.x.
    Freedman and Lane, DOI 10.1080/07350015.1983.10509354. Winkler et al., exchangeability
    blocks, DOI 10.1016/j.neuroimage.2015.05.092. Phipson and Smyth,
    DOI 10.2202/1544-6115.1585. Hesterberg, DOI 10.1080/00031305.2015.1089789.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ds = xr.Dataset(
    ...     {"brain_pad": (("subject", "region"), rng.normal(size=(40, 2)))},
    ...     coords={
    ...         "region": ["SMN_L", "SMN_R"],
    ...         "age": ("subject", rng.uniform(45, 80, 40)),
    ...         "cohort": ("subject", np.repeat(["a", "b", "c", "d"], 10)),
    ...     },
    ... )
    >>> result = mixed_model(ds, "brain_pad ~ age")
    >>> dict(result["estimate"].sizes)
    {'region': 2, 'term': 2}
    """
    if not 0 < confidence < 1:
        raise StatisticsError(f"confidence must lie between 0 and 1, got {confidence}.")
    parsed = parse_formula(formula, ds, groups=groups, dim=dim)
    _check_options(parsed, weights, n_permutations, permuted, n_bootstrap)
    for option, name in (("groups", groups), ("weights", weights)):
        if name is not None and name not in ds.variables:
            near = sorted(str(n) for n, v in ds.variables.items() if v.dims == ("subject",))
            raise MissingVariableError(
                f"{option}='{name}' is no variable of the Dataset. Over 'subject' it has: "
                f"{', '.join(near)}."
            )
    keep = eligible_subjects(ds, group=None, included=included)
    source = Source.of(
        ds, parsed, str(groups), None if weights is None else str(weights), dim, keep
    )
    table = Table(
        len(source.labels),
        ds.sizes["subject"],
        _family_mask(source.labels, family),
        n_permutations=n_permutations,
        n_bootstrap=n_bootstrap,
        slope=bool(parsed.slope_text),
    )
    if not keep.all():
        flagged = included is not None and included in ds.variables
        why = f"{included} is False, or the age is extrapolated"
        table.reasons[why if flagged else "the age is extrapolated"] = ~keep
    options = _Options(
        confidence, reml, n_permutations, permuted, n_bootstrap, seed, _label_ranks(ds)
    )
    people = same_people(ds)
    failures: list[str] = []
    two: list[int] = []
    with one_thread_each():
        for job in jobs(source, table, failures):
            _check_people(job, source, people)
            try:
                two.extend(_fit(job, source, table, failures, options))
            except StatisticsError as error:
                failures.append(str(error))
    told = _of_two_groups(source, two)
    drawn = n_bootstrap > 0 and bool(table.per_label["n_bootstrap"].any())
    if told and not drawn:
        failures.append(told)
    if errors == "raise" or not table.terms:
        check_all(failures, StatisticsError, f"Mixed model '{formula}' cannot be fitted")
    if told and drawn:  # what the others found is kept
        failures.append(told)
        logger.warning("Mixed model '%s': %s", formula, told)
    return _assemble(source, table, failures, options)


@dataclass(frozen=True)
class _Options:
    """What is asked for."""

    confidence: float
    reml: bool
    n_permutations: int
    permuted: Sequence[str] | None
    n_bootstrap: int
    seed: int
    ranks: npt.NDArray[np.int64]


def _check_options(
    parsed: ParsedFormula,
    weights: Hashable | None,
    n_permutations: int,
    permuted: Sequence[str] | None,
    n_bootstrap: int,
) -> None:
    """Options that exclude each other, or are out of range."""
    for name, value in (("n_permutations", n_permutations), ("n_bootstrap", n_bootstrap)):
        check_count(name, value, zero=True)
    if permuted is not None and not n_permutations:
        raise StatisticsError(
            f"permuted={list(permuted)} without permutations. Pass n_permutations=1000 too."
        )
    if isinstance(permuted, str):
        raise StatisticsError(f"permuted must be a list of terms, got '{permuted}'.")
    if n_permutations and weights is not None:
        raise StatisticsError(
            f"weights='{weights}' with permutations: people of unequal weight cannot be exchanged. "
            "Leave one of the two out."
        )
    if parsed.slope_text and (n_permutations or n_bootstrap):
        raise StatisticsError(
            f"Formula '{parsed.text}': permutations and bootstrap are there for a random intercept "
            "alone. Leave the random slope out, or set n_permutations and n_bootstrap to 0."
        )


def _fit(
    job: Job, source: Source, table: Table, failures: list[str], options: _Options
) -> npt.NDArray[np.int64]:
    """Fit the outcomes of a job and write the results, or say why not.

    What had too few groups to draw from is returned.
    """
    basis, y = job.basis, job.outcomes
    if job.slope is None:
        fits = fit_intercepts(basis, y, reml=options.reml)
    else:
        text = source.parsed.slope_text
        fits = fit_slopes(basis, job.slope, y, reml=options.reml, where=job.where, slope=text)
    failures.extend(_unfit(job, source, fits))
    table.write(job.positions, basis, fits, options.confidence)
    fine = ~(fits.exact | fits.flat)
    if not fine.any():
        return job.positions[fine]
    if not fine.all():
        y = y[:, fine]
    positions = job.positions[fine]
    two = options.n_bootstrap > 0 and basis.n_groups == 2
    if options.n_permutations:
        draw = Permutations(options.n_permutations, options.seed, options.ranks)
        t = np.abs(fits.estimate / fits.se)[fine]
        for column in _columns(job, table, options.permuted):
            reached, largest = permute(
                basis,
                column,
                y,
                t[:, column],
                job.rows,
                draw,
                counted=table.family[positions],
                reml=options.reml,
            )
            table.permuted(basis.names[column], positions, reached, largest)
    if options.n_bootstrap and not two:
        spread = bootstrap(
            basis,
            y,
            n_samples=options.n_bootstrap,
            seed=options.seed,
            confidence=options.confidence,
            reml=options.reml,
        )
        table.per_label["n_bootstrap"][positions] = spread.n
        for column, term in enumerate(basis.names):
            table.put("se_bootstrap", term, positions, spread.se[:, column])
            table.put("ci_low_bootstrap", term, positions, spread.low[:, column])
            table.put("ci_high_bootstrap", term, positions, spread.high[:, column])
        few = positions[2 * spread.n < options.n_bootstrap]
        if few.size:
            failures.append(
                f"{source.where([source.labels[k] for k in few])}: fewer than half of the "
                f"{options.n_bootstrap} bootstrap samples of '{source.groups}' could be fitted, "
                "because a predictor does not vary in the others. Leave the predictor out, or "
                "use coarser levels."
            )
    return positions if two else positions[:0]


def _of_two_groups(source: Source, positions: list[int]) -> str:
    """Outcomes of two groups, of which no bootstrap samples were drawn, in words."""
    if not positions:
        return ""
    return (
        f"{source.where([source.labels[k] for k in sorted(positions)])}: no bootstrap, since "
        f"'{source.groups}' has two groups, and half of the samples of two hold one of them "
        "alone, from which nothing between groups can be told. Give more groups, or set "
        "n_bootstrap to 0."
    )


def _check_people(job: Job, source: Source, people: npt.NDArray[np.int64]) -> None:
    """Refuse scans of one person beside those of others in a group, or in two groups."""
    other = "Or give each person an intercept: groups='person'."
    if source.groups == "person":
        other = "Or join 'dataset' and 'person' to one variable, for people of the same name."
    check_one_scan(
        source.ds,
        job.rows,
        where=f"{job.where}, groups='{source.groups}'",
        ways=f"{ONE_SCAN} {other}",
        people=people,
        groups=job.basis.codes,
    )


def _unfit(job: Job, source: Source, fits: Fits) -> list[str]:
    """Outcomes that cannot be fitted, in words."""
    told = []
    outcome = f"outcome '{next(iter(source.parsed.outcome))}'"
    exact = (
        f"{outcome} has no variation that the predictors leave over (it is constant or an exact "
        "combination of them). Leave the region or a predictor out."
    )
    flat = (
        f"{outcome} does not vary within '{source.groups}', so the random effects explain it in "
        "full. Choose other groups."
    )
    for flags, words in ((fits.exact, exact), (fits.flat, flat)):
        if flags.any():
            where = source.where([source.labels[k] for k in job.positions[flags]])
            told.append(f"{where}: {words}")
    return told


def _columns(job: Job, table: Table, permuted: Sequence[str] | None) -> list[int]:
    """Columns of the design to test by permutation."""
    names = job.basis.names
    if permuted is None:
        chosen = [k for k in range(len(names)) if varies_within(job.basis, k)]
        table.fixed_terms |= dict.fromkeys(n for k, n in enumerate(names) if k not in chosen)
        return chosen
    absent = [name for name in permuted if name not in names]
    if absent:
        raise StatisticsError(
            f"{job.where}: permuted names {', '.join(map(repr, absent))}; the terms are "
            f"{', '.join(names)}."
        )
    fixed = [name for name in permuted if not varies_within(job.basis, names.index(name))]
    if fixed:
        raise StatisticsError(
            f"{job.where}: {', '.join(map(repr, fixed))} does not vary within any group, so "
            "permutations within groups cannot test it. Leave it out of `permuted` and use its "
            "t test."
        )
    return [names.index(name) for name in permuted]


def _label_ranks(ds: xr.Dataset) -> npt.NDArray[np.int64]:
    """Rank of every subject by label."""
    n = ds.sizes["subject"]
    if "subject" not in ds.coords:
        return np.arange(n)
    ranks = np.empty(n, dtype=np.int64)
    labels = np.array([str(label) for label in ds["subject"].values], dtype=np.str_)
    ranks[np.argsort(labels, kind="stable")] = np.arange(n)
    return ranks


def _family_mask(labels: list[Hashable], family: Sequence[Hashable] | None) -> BoolArray:
    if family is None:
        return np.ones(len(labels), dtype=np.bool_)
    known = set(labels)
    absent = [str(label) for label in family if label not in known]
    if absent:
        raise StatisticsError(
            f"family: {', '.join(absent)} is not among {', '.join(map(str, labels[:20]))}."
        )
    wanted = set(family)
    return np.array([label in wanted for label in labels], dtype=np.bool_)


def _assemble(source: Source, table: Table, failures: list[str], options: _Options) -> xr.Dataset:
    """Dataset of the results, with labels and attributes; says what was dropped."""
    dim, ds, formula = source.dim, source.ds, source.parsed.text
    out = table.dataset(dim)
    if "subject" in ds.coords:
        out = out.assign_coords(subject=ds["subject"].values)
    if source.labels == [None]:
        out = out.isel({dim: 0})
    elif dim in ds.coords:
        out = out.assign_coords({dim: ds[dim].values})
    is_part = table.fitted.any() and not table.fitted.all()  # all are not copied: they may be large
    dropped = table.dropped[table.fitted] if is_part else table.dropped
    all_dropped = int(dropped.all(axis=0).sum())
    some = int(dropped.any(axis=0).sum()) - all_dropped
    told = f"{all_dropped} of {table.n_subjects} subjects"
    told += f" in every {dim}" if source.labels != [None] else ""
    told += f", {some} more in some" if some else ""
    told += f" ({counts(table.reasons)})" if table.reasons else ""
    effects = f"intercept and slope of {source.parsed.slope_text}"
    out.attrs = {
        "formula": formula,
        "groups": source.groups,
        "method": f"random {effects if source.parsed.slope_text else 'intercept'}, "
        f"{'REML' if options.reml else 'ML'}, Satterthwaite degrees of freedom",
        "reml": int(options.reml),
        "confidence": options.confidence,
        "family_size": int(table.family.sum()),
        "rows_dropped": told,
    }
    if source.weights:
        out.attrs["weights"] = source.weights
    if options.n_permutations or options.n_bootstrap:
        out.attrs["seed"] = options.seed
    if options.n_permutations:
        out.attrs["n_permutations"] = options.n_permutations
    if table.fixed_terms:
        out.attrs["not_permuted"] = list(table.fixed_terms)
        logger.info(
            "Mixed model '%s': %s does not vary within '%s' and is not permuted",
            formula,
            ", ".join(table.fixed_terms),
            source.groups,
        )
    if "motor_score" in source.parsed.names:
        used = np.flatnonzero(~table.dropped.all(axis=0))
        out.attrs["scale_note"] = scale_note(scales_of(ds, used, "motor_score"))
        if out.attrs["scale_note"]:
            logger.warning(
                "Mixed model '%s': %s Way out: keep one scale.", formula, out.attrs["scale_note"]
            )
    if failures:
        out.attrs["failures"] = list(failures)
    if all_dropped or some:
        unusable = any(reason.endswith("not finite") for reason in table.reasons)
        logger.log(
            logging.WARNING if unusable else logging.INFO,
            "Mixed model '%s' dropped %s",
            formula,
            told,
        )
    boundary = [source.labels[k] for k in np.flatnonzero(table.per_label["boundary"])]
    if boundary:
        where = f" in {len(boundary)} fits ({labels_shown(boundary)})"
        logger.info(
            "Mixed model '%s': no variance between '%s'%s%s",
            formula,
            source.groups,
            where if source.labels != [None] else "",
            ", or a singular one" if source.parsed.slope_text else ", which equals least squares",
        )
    return out
