"""Who takes part in the study, and why someone does not."""

from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from scalebrain.errors import StatisticsError
from scalebrain.features.quality import EXCLUDED
from scalebrain.variables import annotate, validate

__all__ = [
    "ONE_SCAN",
    "check_one_scan",
    "flags",
    "included_people",
    "inclusion",
    "same_people",
    "texts",
]

#: Why the later scans of someone are not used.
ANOTHER_SCAN = "another scan of this person is used"
#: The same, where that one has no motor score and this one has.
_SCORED_SCAN = f"{ANOTHER_SCAN}, which has no motor score; this one has"
#: What to do about rows that hold a person more than once.
ONE_SCAN = (
    "Use one scan a person: leave included='included' on, which does so for people with a stroke, "
    "or keep one session, e.g. ds.isel(subject=ds['session'].values == 'ses-1')."
)


def inclusion(
    ds: xr.Dataset, *, min_days_post_stroke: float = 180, on_surface: bool = False
) -> xr.Dataset:
    """Apply the inclusion criteria.

    Parameters
    ----------
    ds
        Store.
    min_days_post_stroke
        A stroke is chronic beyond this many days.
    on_surface
        Whether cortical surfaces are needed, in place of a T1w scan.

    Returns
    -------
    Dataset
        ``included (subject)``, and ``exclusion_reason (subject)``: the first criterion that
        failed, empty when included.

    Raises
    ------
    MissingVariableError
        When `ds` is not a store.

    Notes
    -----
    Whom the quality control excluded (`qc_decision`, where `ds` has it) is left out first;
    ``unsure`` and people without a decision stay. Everyone needs a scan (or surfaces), sex,
    intracranial volume and an age that is more than a lower bound (`age_censored`, where `ds` has
    it); someone with a stroke also a lesion mask that is not empty and of one hemisphere, and a
    known time since stroke beyond the limit; a reference must have no lesion. A missing motor
    score excludes from the motor models alone.

    Statistics take rows for people. Of several scans of someone with a stroke
    (:func:`same_people`) that meet all criteria the one with the fewest `days_post_stroke` is
    included, the first row of equal ones; the reason of another one says where it alone has a
    motor score. References keep all their scans: training holds a
    person in one fold.
    """
    needed, absent = "scan_present", "no T1w scan"
    if on_surface:
        needed, absent = "surface_present", "no cortical surfaces"
    validate(ds, needed, "lesion_present", "lesion_hemisphere", "age", "group")
    validate(ds, "lesion_volume", "days_post_stroke", "icv")
    side, group = texts(ds, "lesion_hemisphere"), texts(ds, "group")
    stroke = group == "stroke"
    days = ds["days_post_stroke"].values
    volume = ds["lesion_volume"].values
    decided = np.full(ds.sizes["subject"], "")
    if "qc_decision" in ds.variables:
        validate(ds, "qc_decision")
        decided = texts(ds, "qc_decision")
    censored = np.zeros(ds.sizes["subject"], dtype=np.bool_)
    if "age_censored" in ds.variables:
        validate(ds, "age_censored")
        censored = ds["age_censored"].values.astype(np.bool_)
    criteria = (
        (decided == "exclude", EXCLUDED),
        (~ds[needed].values.astype(bool), absent),
        (~np.isfinite(ds["age"].values), "age missing"),
        (censored, "age known as a lower bound only"),
        (texts(ds, "sex") == "", "sex missing"),
        (~np.isfinite(ds["icv"].values), "intracranial volume missing"),
        (~stroke & (np.nan_to_num(volume) > 0), "reference with a lesion"),
        (stroke & ~ds["lesion_present"].values.astype(bool), "no lesion mask"),
        (stroke & (side == "none"), "empty lesion mask"),
        (stroke & (side == "bilateral"), "bilateral lesion"),
        (stroke & (side == "midline"), "midline, brainstem or cerebellar lesion"),
        (stroke & ~np.isfinite(days), "time since stroke missing"),
        (stroke & (days <= min_days_post_stroke), f"scan within {min_days_post_stroke:g} days"),
    )
    reason = np.full(ds.sizes["subject"], "", dtype=object)
    for failed, words in criteria:
        reason[failed & (reason == "")] = words
    rows = np.flatnonzero(stroke & (reason == ""))
    rows = rows[np.argsort(days[rows], kind="stable")]
    people = same_people(ds)
    _, first = np.unique(people[rows], return_index=True)
    others = np.delete(rows, first)
    reason[others] = ANOTHER_SCAN
    if "motor_score" in ds.variables and ds["motor_score"].dims == ("subject",):
        scores = pd.Series(ds["motor_score"].values.astype(object))
        scores = pd.to_numeric(scores, errors="coerce")
        scored = np.isfinite(scores.to_numpy(np.float64, na_value=np.nan))
        used = rows[first][scored[rows[first]]]
        reason[others[scored[others] & ~np.isin(people[others], people[used])]] = _SCORED_SCAN
    reason = reason.astype(str)
    out = xr.Dataset(
        {"included": ("subject", reason == ""), "exclusion_reason": ("subject", reason)},
        coords={"subject": ds["subject"]},
    )
    out["included"].attrs["min_days_post_stroke"] = float(min_days_post_stroke)
    return annotate(out)


def included_people(ds: xr.Dataset, *, on_surface: bool | None = None) -> npt.NDArray[np.bool_]:
    """Tell who takes part, also before the features are computed.

    Parameters
    ----------
    ds
        Dataset.
    on_surface
        Whether cortical surfaces are needed, in place of a T1w scan. Default: where someone has
        surfaces and nobody a scan.

    Returns
    -------
    ndarray
        (subject,) bool: `included`, or :func:`inclusion` where `ds` does not have it yet. Without
        what the criteria need (`ds` is not of an ingest), everyone.
    """
    if "included" in ds.variables:
        return flags(ds, "included")
    if "lesion_hemisphere" not in ds.variables:
        return np.ones(ds.sizes["subject"], dtype=np.bool_)
    if on_surface is None:
        scans, surfaces = (
            name in ds.variables and bool(flags(ds, name).any())
            for name in ("scan_present", "surface_present")
        )
        on_surface = surfaces and not scans
    return flags(inclusion(ds, on_surface=on_surface), "included")


def same_people(ds: xr.Dataset) -> npt.NDArray[np.int64]:
    """Tell which subjects are one person, or one scan under several ids.

    Parameters
    ----------
    ds
        Store; `person`, `dataset` and `scan_hash` are used where it has them, and rows of the
        same dataset and label on ``subject`` are one person.

    Returns
    -------
    ndarray
        (subject,) number; equal for subjects that no split may put on both sides.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = ds.sizes["subject"]
    person, scans = texts(ds, "person"), texts(ds, "scan_hash")
    sources = np.char.add(texts(ds, "dataset"), "/")
    labels = np.full(n, "")
    if "subject" in ds.indexes:  # of several levels too
        labels = np.array([str(label) for label in ds.indexes["subject"]], dtype=np.str_)
    links = []
    for values, known in (
        (np.char.add(sources, person), person != ""),
        (np.char.add(sources, labels), labels != ""),
        (scans, scans != ""),
    ):
        codes = np.unique(values, return_inverse=True)[1]
        first = np.full(codes.max(initial=-1) + 1, -1)
        first[codes[::-1]] = np.arange(n)[::-1]
        links.append((np.flatnonzero(known), first[codes][known]))
    rows = np.concatenate([one for one, _ in links])
    columns = np.concatenate([other for _, other in links])
    graph = coo_matrix((np.ones(rows.size), (rows, columns)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def flags(ds: xr.Dataset, name: Hashable) -> npt.NDArray[np.bool_]:
    """Read flags of everyone; a missing one is False.

    Parameters
    ----------
    ds
        Dataset.
    name
        Variable over ``subject``: bool, or numbers or objects that are true, false or missing.

    Returns
    -------
    ndarray
        (subject,) bool.

    Raises
    ------
    StatisticsError
        When another value is there.
    """
    values = np.asarray(ds[name].values)
    if values.dtype == np.bool_:
        return values.copy()
    column = pd.Series(values.astype(object))
    missing = column.isna()
    other = column[~missing & ~column.isin([True, False])]
    if len(other):
        raise StatisticsError(
            f"'{name}' has to be True or False for everyone, got {other.iloc[0]!r}. Make it bool."
        )
    return (~missing & (column == True)).to_numpy(dtype=np.bool_)  # noqa: E712 - an object column


def texts(ds: xr.Dataset, name: str) -> npt.NDArray[np.str_]:
    """Read texts of everyone; a missing one is empty.

    Parameters
    ----------
    ds
        Dataset.
    name
        Variable over ``subject``, or one value for all.

    Returns
    -------
    ndarray
        (subject,) text; empty where `ds` has no such variable.
    """
    n = ds.sizes["subject"]
    if name not in ds.variables:
        return np.full(n, "")
    values = np.broadcast_to(ds[name].values.astype(object), n)  # of a choice, the same for all
    return np.where(pd.isna(values), "", values).astype(str)


def check_one_scan(
    ds: xr.Dataset,
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64],
    *,
    where: str,
    ways: str,
    people: npt.NDArray[np.int64] | None = None,
    groups: npt.NDArray[np.int64] | None = None,
) -> None:
    """Refuse rows that hold a person more than once, where each row counts as one.

    Parameters
    ----------
    ds
        Dataset with ``subject``.
    rows
        (subject,) flags of the rows used, or their positions.
    where
        What uses them, the beginning of the message.
    ways
        The way out, whole sentences.
    people
        (subject,) number of the person. Default: :func:`same_people`.
    groups
        (row used,) number of the group that shares an intercept. A person may be there more
        than once if these rows are a group that holds nobody else.

    Raises
    ------
    StatisticsError
        If a person is in the rows more than once.
    """
    used = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    people = (same_people(ds) if people is None else people)[used]
    named, number, scans = np.unique(people, return_inverse=True, return_counts=True)
    again = scans > 1
    if groups is not None and again.any():
        pairs = np.unique(np.stack([number, groups]), axis=1)
        shared = np.bincount(pairs[1])[pairs[1]] > 1  # by another person
        apart = np.bincount(pairs[0], minlength=len(named)) == 1
        apart[pairs[0][shared]] = False
        again &= ~apart
    if not again.any():
        return
    rows_of = used[number == np.flatnonzero(again)[0]]
    labels = ds["subject"].values[rows_of] if "subject" in ds.coords else rows_of
    n = int(again.sum())
    raise StatisticsError(
        f"{where}: {n} {'person is' if n == 1 else 'people are'} in the rows more than once, as "
        f"{', '.join(map(str, labels[:4]))}, and each scan would count as a person. {ways}"
    )
