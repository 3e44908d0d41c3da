"""What is predicted: outcome, cohorts and folds, on the people who can be used."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import same_people
from scalebrain.predict.learners import Folds
from scalebrain.predict.splits import grouped_folds, leave_one_group_out
from scalebrain.stats.frame import eligible_subjects, subject_frame
from scalebrain.stats.scales import SEVERE_BELOW, has_fugl_meyer_only, scale_note, scales_of

__all__ = ["MotorTask"]

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
                f"Dataset: variable {', '.join(map(repr, absent))} is missing. Way out: add it "
                "to participants.tsv and ingest again, or name another with `target`, `groups`."
            )
        frame = subject_frame(ds, [target, groups])
        column = frame[str(target)]
        if column.dtype.kind not in "biuf":
            raise StatisticsError(f"Target '{target}' is text; numbers are needed.")
        score = column.to_numpy(dtype=np.float64)
        keep = eligible_subjects(ds, group=group, included=included)
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
            rows = rows[np.argsort(ds["subject"].values[rows].astype(str), kind="stable")]
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
        cut = _cut_off(scales, severe_below)
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
        )

    @property
    def skipped(self) -> list[str]:
        """Folds whose training rows are all severe, or all not; all of them without a cut-off."""
        if not np.isfinite(self.severe_below):
            return [f"every cohort: {_no_cut_off(self.scales)}"]
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


def _cut_off(scales: Mapping[str, int], severe_below: float | None) -> float:
    """Threshold of being severe; missing where Fugl-Meyer's would be used for another scale."""
    note = scale_note(scales)
    if severe_below is not None:
        if note:
            logger.info("Motor prediction: %s", note)
        return severe_below
    if has_fugl_meyer_only(scales):
        return SEVERE_BELOW
    logger.warning(
        "Motor prediction: %sNobody is called severe: %s. Way out: keep the people of one scale, "
        "or say with `severe_below` what is severe.",
        f"{note} " if note else "",
        _no_cut_off(scales),
    )
    return float("nan")


def _no_cut_off(scales: Mapping[str, int]) -> str:
    names = ", ".join(name or "no scale named" for name in scales)
    return f"the cut-off {SEVERE_BELOW:g} is of Fugl-Meyer, the scores are of {names}"


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
