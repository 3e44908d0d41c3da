"""What is known of every subject, gathered from tables and records into small variables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from scalebrain.errors import Problem
from scalebrain.ingestion.plan import Dataset, Plan, person_of
from scalebrain.ingestion.sites import odd_sites
from scalebrain.io.guard import RULES

__all__ = ["gather_problems", "problem_table", "subject_variables", "table_rows"]

_FROM_TABLE = {
    "age": np.nan,
    "age_censored": False,
    "sex": "",
    "cohort": "",
    "group": "",
    "person": "",
    "session": "",
    "days_post_stroke": np.nan,
    "icv": np.nan,
    "motor_score": np.nan,
    "motor_scale": "",
    "lesion_side": "",
    "paresis_side": "",
}
#: Not written where empty: a store that was made before there was such a value stays up to date.
_LATER = ("motor_scale",)
_FROM_FILES = {
    "scan_present": False,
    "gm_present": False,
    "lesion_present": False,
    "surface_present": False,
    "scan_hash": "",
    "template_overlap": np.nan,
    "template_overlap_mirrored": np.nan,
    "nonfinite_fraction": np.nan,
    "affine_residual": np.nan,
    "lesion_volume": np.nan,
    "lesion_hemisphere": "",
    "laterality_index": np.nan,
    "lesion_outside_fraction": np.nan,
    "lesion_volume_change": np.nan,
    "lesion_volume_removed": np.nan,
    "freesurfer_version": "",
}

Entry = Mapping[str, Any]

_MIRROR_MIN = 10
_MIRROR_MEDIAN = 0.005
_MIRROR_P = 0.001


def table_rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Table of a dataset, JSON-able, by subject: what finalizing needs without the dataset."""
    rows = {}
    table = dataset.cohort.table.to_dict("index")
    for scan in dataset.scans.values():
        row = table[scan.subject]
        values = {
            name: _plain(row[name])
            for name in _FROM_TABLE
            if name not in ("person", "session") and (row[name] or name not in _LATER)
        }
        rows[scan.subject] = {
            **values,
            "person": scan.person,
            "session": scan.session,
            "source_space": scan.space,
        }
    return rows


def _plain(value: Any) -> Any:
    """Value of a table cell as JSON has it, missing as None."""
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return bool(value) if isinstance(value, bool | np.bool_) else str(value)


def subject_variables(
    plan: Plan,
    entries: Mapping[str, Entry],
    tables: Mapping[str, Mapping[str, Entry]],
    warnings: Sequence[Problem],
) -> xr.Dataset:
    """Per-subject variables, one entry a row of the store.

    Parameters
    ----------
    plan
        Rows.
    entries
        Entry of every subject in the records.
    tables
        Rows of the tables by dataset and subject.
    warnings
        Every warning of the store.

    Returns
    -------
    Dataset
        Variables and coordinates over ``subject``; rows of rejected or withdrawn subjects
        have no id, and ``subject_present`` is False.
    """
    ids = np.full(plan.n_rows, "", dtype=object)
    names = {**_FROM_TABLE, **_FROM_FILES, "dataset": "", "source_space": "", "warnings": ""}
    columns: dict[str, list[Any]] = {n: [missing] * plan.n_rows for n, missing in names.items()}
    volumes: dict[str, dict[int, float]] = {}
    codes: dict[str, set[str]] = {}
    for problem in warnings:
        codes.setdefault(problem.subject, set()).add(problem.code)
    for subject, (dataset, row) in plan.subjects().items():
        entry = entries.get(subject, {})
        if "values" not in entry:
            continue
        ids[row] = subject
        values = {**tables[dataset][subject], **entry["values"]}
        if values["icv"] is None:
            values["icv"] = values["freesurfer_icv"]
        values |= {"dataset": dataset, "warnings": ";".join(sorted(codes.get(subject, ())))}
        for name in names:
            if values.get(name) is not None:
                columns[name][row] = values[name]
        for structure, volume in values["aseg"].items():
            volumes.setdefault(structure, {})[row] = volume / 1000
    coords = ("age", "sex", "cohort", "group", "person")
    variables: dict[str, Any] = {
        name: ("subject", np.array(column, dtype=_dtype(names[name])))
        for name, column in columns.items()
    }
    variables["subject_present"] = ("subject", ids != "")
    if volumes:
        block = np.full((plan.n_rows, len(volumes)), np.nan)
        for i, structure in enumerate(sorted(volumes)):
            for row, volume in volumes[structure].items():
                block[row, i] = volume
        variables["structure_volume"] = (("subject", "structure"), block)
    out = xr.Dataset(
        {name: v for name, v in variables.items() if name not in coords},
        coords={
            "subject": ids.astype(str),
            **{name: variables[name] for name in coords},
            **({"structure": sorted(volumes)} if volumes else {}),
        },
    )
    return out


def _dtype(missing: object) -> type:
    """Dtype of a column, by what a missing entry is."""
    kinds: dict[type, type] = {float: np.float64, bool: np.bool_}
    return kinds.get(type(missing), np.str_)


def _duplicates(plan: Plan, entries: Mapping[str, Entry]) -> list[tuple[str, Problem]]:
    """Find scans, and masks of other scans, under two ids: dataset and warning of each."""
    placed = plan.subjects()
    values = {s: entries.get(s, {}).get("values", {}) for s in placed}
    out = []
    for subject, others in _sharing({s: v.get("scan_hash", "") for s, v in values.items()}):
        message = f"{subject}: the same scan as {_listed(others)}. Keep one, or say why."
        out.append((placed[subject][0], Problem(subject, "duplicate-scan", message)))
    for subject, same in _sharing({s: v.get("lesion_hash", "") for s, v in values.items()}):
        others = [
            other
            for other in same
            if person_of(other) != person_of(subject)
            and values[other]["scan_hash"] != values[subject]["scan_hash"]
        ]
        if others:
            message = (
                f"{subject}: the same lesion mask as {_listed(others)}, of another scan. Give each "
                "scan its own."
            )
            out.append((placed[subject][0], Problem(subject, "duplicate-scan", message)))
    return sorted(out, key=lambda pair: (pair[0], pair[1].subject))


def _sharing(keys: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Everyone whose key somebody else has, too, with those others."""
    owners: dict[str, list[str]] = {}
    for subject, key in keys.items():
        if key:
            owners.setdefault(key, []).append(subject)
    for same in owners.values():
        for subject in same if len(same) > 1 else ():
            yield subject, [other for other in same if other != subject]


def _listed(subjects: Sequence[str]) -> str:
    """Ids in words, the first ten."""
    return ", ".join(subjects[:10]) + (", ..." if len(subjects) > 10 else "")


def gather_problems(
    plan: Plan,
    entries: Mapping[str, Entry],
    found: Mapping[str, Mapping[str, Sequence[Sequence[str]]]],
    tables: Mapping[str, Mapping[str, Entry]],
) -> tuple[list[tuple[str, Problem]], list[tuple[str, Problem]]]:
    """Gather everything that was rejected and that is odd, with its dataset.

    Parameters
    ----------
    plan
        Rows.
    entries
        Entry of every subject in the records.
    found
        What discovery found, by dataset: ``rejected`` and ``warnings``.
    tables
        Rows of the tables by dataset and subject.

    Returns
    -------
    rejected, warnings
        First what discovery found, then the rest in the order of rows.
    """
    rejected = [(n, Problem(*one)) for n in sorted(found) for one in found[n]["rejected"]]
    warnings = [(n, Problem(*one)) for n in sorted(found) for one in found[n]["warnings"]]
    for subject, (name, _) in plan.subjects().items():
        entry = entries.get(subject, {})
        if "rejected" in entry:
            why = entry["rejected"]
            rejected.append((name, Problem(subject, **why)))
        warnings += [(name, Problem(subject, **odd)) for odd in entry.get("warnings", ())]
    present = {s for s in plan.subjects() if "values" in entries.get(s, {})}
    warnings += [*_mirrored(plan, entries), *_duplicates(plan, entries)]
    return rejected, [*warnings, *odd_sites(tables, present)]


def _mirrored(plan: Plan, entries: Mapping[str, Entry]) -> list[tuple[str, Problem]]:
    """Find datasets whose scans as a whole fit the template better mirrored.

    One brain says little, for people differ; the median of many says more, where their mean is
    also beyond chance: a one-sided t test, for the median of ten alone is often as large.
    """
    from scipy.special import stdtrit

    gains: dict[str, dict[str, list[float]]] = {}
    for subject, (name, _) in plan.subjects().items():
        values = entries.get(subject, {}).get("values", {})
        given, mirrored = (values.get(f"template_overlap{end}") for end in ("", "_mirrored"))
        if given is not None and mirrored is not None:
            own = gains.setdefault(name, {}).setdefault(person_of(subject), [])
            own.append(mirrored - given)
    out = []
    for name, people in gains.items():
        if len(people) < _MIRROR_MIN:
            continue
        found = [float(np.mean(own)) for own in people.values()]  # scans of one brain are alike
        median, error = float(np.median(found)), np.std(found, ddof=1) / np.sqrt(len(found))
        chance = stdtrit(len(found) - 1, 1 - _MIRROR_P) * error
        if median > _MIRROR_MEDIAN and np.mean(found) > chance:
            message = (
                f"{name}: the scans of its {len(found)} people fit the template better mirrored "
                f"(median difference {median:.3f}). Check left and right of the whole dataset."
            )
            out.append((name, Problem("", "mirrored", message)))
    return out


def problem_table(problems: Sequence[tuple[str, Problem]]) -> pd.DataFrame:
    """Table of problems: dataset, subject, code, what it is about, file and message.

    Parameters
    ----------
    problems
        Dataset and problem.

    Returns
    -------
    DataFrame
        One row a problem.
    """
    rows = [
        (name, p.subject, p.code, RULES[p.code].input if p.code in RULES else "", p.file, p.message)
        for name, p in problems
    ]
    table = pd.DataFrame(rows, columns=["dataset", "subject", "code", "rule", "file", "message"])
    return table.map(lambda text: " ".join(str(text).split()))
