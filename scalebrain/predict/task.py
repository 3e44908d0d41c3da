"""What is predicted: outcome, cohorts and folds, on the people who can be used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people, texts
from scalebrain.predict.learners import Folds
from scalebrain.predict.splits import grouped_folds, leave_one_group_out
from scalebrain.stats.frame import (
    eligible_subjects,
    ineligible_reasons,
    subject_frame,
    ways_out,
)
from scalebrain.stats.scales import SEVERE_BELOW, has_fugl_meyer_only, scale_note, scales_of

__all__ = ["MotorTask", "check_anyone_eligible"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Fractions of a maximum do not reach this far, points do.
_POINTS = 2.0


@dataclass(frozen=True)
class MotorTask:
    """Outcome and folds of a prediction.

    Parameters
    ----------
    subjects
        Ids of the Dataset's subjects, or None where it has none.
    used
        (subject,) who is used; n of them.
    rows
        (n,) positions of those used among the subjects, in the order of their ids: nothing that
        is found depends on the order of the Dataset. Without ids its order stays.
    dropped
        (subject,) eligible, but without target or cohort.
    y
        (n,) target.
    severe
        (n,) whether it is below the threshold; of nobody where there is none.
    cohorts
        Names of the cohorts, sorted.
    codes
        (n,) position of each person's cohort among them.
    folds
        For each cohort, the rows to train on and to test on.
    inner
        For each cohort, the folds of its training rows.
    told
        Who was left out and why, in words.
    scales
        People of each scale of the target, where any is named.
    severe_below
        Threshold of being severe; missing where the target's scale has none.
    no_cut_off
        Why there is none, in words; empty where there is one.
    """

    subjects: npt.NDArray[Any] | None
    used: BoolArray
    rows: IntArray
    dropped: BoolArray
    y: FloatArray
    severe: BoolArray
    cohorts: list[str]
    codes: IntArray
    folds: list[tuple[IntArray, IntArray]]
    inner: list[Folds]
    told: str
    scales: Mapping[str, int] = field(default_factory=dict)
    severe_below: float = SEVERE_BELOW
    no_cut_off: str = ""

    @classmethod
    def of(
        cls,
        ds: xr.Dataset,
        *,
        target: Hashable,
        groups: Hashable,
        group: str | None,
        included: Hashable | None,
        severe_below: float | None,
        n_inner: int,
        seed: int,
    ) -> MotorTask:
        """Take the rows that can be used, and split them by cohort."""
        absent = [str(name) for name in (target, groups) if name not in ds.variables]
        if absent:
            raise MissingVariableError(
                f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: "
                f"{ways_out(absent)}; or name another with `target`, `groups`."
            )
        frame = subject_frame(ds, [target, groups])
        column = frame[str(target)]
        if column.dtype.kind not in "biuf":
            raise StatisticsError(f"Target '{target}' is text; numbers are needed.")
        score = column.to_numpy(dtype=np.float64)
        keep = eligible_subjects(ds, group=group, included=included)
        check_anyone_eligible(ds, keep, group=group, included=included, where="Motor prediction")
        no_score = keep & ~np.isfinite(score)
        no_cohort = keep & frame[str(groups)].isna().to_numpy()
        used = keep & ~no_score & ~no_cohort
        gaps = {target: int(no_score.sum()), groups: int(no_cohort.sum())}
        reasons = "; ".join(f"{name} missing: {n}" for name, n in gaps.items() if n)
        told = f"{int((keep & ~used).sum())} of {int(keep.sum())} eligible subjects left out"
        told += f" ({reasons})" if reasons else ""
        if not used.any():
            hint = (
                " Way out: write scores of 0 to 1 in a column motor_score of participants.tsv, or "
                "points of a scale that participants.json declares (docs/inputs.md), and ingest "
                "again."
            )
            hint = hint if target == "motor_score" and no_score.any() else ""
            raise StatisticsError(f"No subject with a value of '{target}': {told}.{hint}")
        if (keep & ~used).any():
            logger.info("Motor prediction: %s", told)
        rows = np.flatnonzero(used)
        if "subject" in ds.coords:
            rows = rows[np.argsort(texts(ds, "subject")[rows], kind="stable")]
        y = score[rows]
        if not y.std() > 1e-12 * np.abs(y).max():
            raise StatisticsError(
                f"Target '{target}' has the same value in all {len(y)} rows used, so there is "
                "nothing to predict."
            )
        names = frame[str(groups)].iloc[rows].astype(str).to_numpy(dtype=object)
        cohorts, codes = np.unique(names.astype(str), return_inverse=True)
        _check_people(ds, rows, names)
        scales = scales_of(ds, rows, target)
        cut, no_cut_off = _cut_off(target, y, scales, severe_below)
        folds = [(train, test) for _, train, test in leave_one_group_out(cohorts[codes])]
        inner: list[Folds] = [
            grouped_folds(codes[train], n_inner, seed=seed + k)
            for k, (train, _) in enumerate(folds)
        ]
        return cls(
            ds["subject"].values if "subject" in ds.coords else None,
            used,
            rows,
            keep & ~used,
            y,
            y < cut,
            [str(name) for name in cohorts],
            codes.astype(np.int64),
            folds,
            inner,
            told,
            scales,
            cut,
            no_cut_off,
        )

    @property
    def skipped(self) -> list[str]:
        """Folds whose training rows are all severe, or all not; all of them without a cut-off."""
        if not np.isfinite(self.severe_below):
            return [f"every cohort: {self.no_cut_off}"]
        out = []
        for name, (train, _) in zip(self.cohorts, self.folds, strict=True):
            if self.one_class(train):
                kind = "severe" if self.severe[train][0] else "not severe"
                out.append(f"cohort {name} held out: all {len(train)} training rows are {kind}")
        return out

    def one_class(self, rows: IntArray) -> bool:
        """Tell whether rows are all severe or all not."""
        return len(np.unique(self.severe[rows])) < 2

    def spread(self, values: npt.NDArray[Any], fill: Any = np.nan) -> npt.NDArray[Any]:
        """Put values (..., n) back among all subjects (..., subject)."""
        out = np.full((*values.shape[:-1], len(self.used)), fill, dtype=values.dtype)
        out[..., self.rows] = values
        return out


def check_anyone_eligible(
    ds: xr.Dataset,
    eligible: BoolArray,
    *,
    group: str | None,
    included: Hashable | None,
    where: str,
) -> None:
    """Refuse a choice of people that leaves nobody, and tell what leaves them out.

    Parameters
    ----------
    ds
        Dataset with ``subject``.
    eligible
        (subject,) who is left.
    group, included
        As :func:`scalebrain.stats.frame.eligible_subjects` takes them.
    where
        Start of the message.

    Raises
    ------
    StatisticsError
        If nobody is left.
    """
    if eligible.any():
        return
    counts = Counter(ineligible_reasons(ds, group=group, included=included).tolist())
    reasons = "; ".join(f"{reason}: {n}" for reason, n in sorted(counts.items()))
    there = sorted(set(texts(ds, "group").tolist()) - {""}) if "group" in ds.variables else []
    groups = f" The groups are {', '.join(map(repr, there))}." if there else ""
    raise StatisticsError(
        f"{where}: nobody of {ds.sizes['subject']} subjects is eligible ({reasons}).{groups} Name "
        "one of the groups with `group`, or all with None, and see exclusion_reason where nobody "
        "is included."
    )


def _cut_off(
    target: Hashable, y: FloatArray, scales: Mapping[str, int], severe_below: float | None
) -> tuple[float, str]:
    """Threshold of being severe; missing, and why, where Fugl-Meyer's would be of another scale."""
    note = scale_note(scales)
    if severe_below is not None:
        if note:
            logger.info("Motor prediction: %s", note)
        return severe_below, ""
    why, way_out = f"the cut-off {SEVERE_BELOW:g} is of Fugl-Meyer", "keep the people of one scale"
    if target != "motor_score":
        why, way_out = f"{why}, the target is '{target}'", "predict motor_score"
    elif not has_fugl_meyer_only(scales):
        names = ", ".join(name or "no scale named" for name in scales)
        why = f"{why}, the scores are of {names}"
    elif y.min() >= 0 and y.max() > _POINTS:
        why = f"{why} as a fraction of its points, the scores go up to {y.max():g}"
        way_out = "divide the scores by the maximum of the scale"
    else:
        return SEVERE_BELOW, ""
    logger.warning(
        "Motor prediction: %sNobody is called severe: %s. Way out: %s, or say with "
        "`severe_below` what is severe.",
        f"{note} " if note else "",
        why,
        way_out,
    )
    return float("nan"), why


def _check_people(ds: xr.Dataset, rows: IntArray, cohort: npt.NDArray[np.object_]) -> None:
    """Refuse a person, or a scan, that is there more than once."""
    people = same_people(ds)[rows]
    subjects = ds["subject"].values[rows] if "subject" in ds.coords else rows
    failures = []
    for person in np.flatnonzero(np.bincount(people) > 1):
        own = people == person
        where = ", ".join(f"{s} ({c})" for s, c in zip(subjects[own], cohort[own], strict=True))
        failures.append(f"{where}: one person or one scan. Keep one.")
    if failures:
        more = [f"and {len(failures) - 20} more"] if len(failures) > 20 else []
        shown = "\n".join([*failures[:20], *more])
        raise StatisticsError(
            "Motor prediction takes rows for people, in its folds and in its permutations, but "
            f"the rows used hold some more than once:\n{shown}\n"
            "Way out: leave `included` on, which keeps one scan of each person with a stroke (run "
            "the features stage of an older store again), or choose one scan of each with "
            "ds.isel(subject=...).",
            code="scan-in-training",
        )
