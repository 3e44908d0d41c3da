"""Names of cohorts that may hide what they are: one of two datasets, or two spellings of one."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from scalebrain.errors import Problem
from scalebrain.io.cells import quote
from scalebrain.io.delimited import listed

__all__ = ["odd_sites"]

_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_POINT = re.compile(r"(?<=[0-9])\.0+\Z")


def odd_sites(
    tables: Mapping[str, Mapping[str, Mapping[str, Any]]], present: Collection[str]
) -> list[tuple[str, Problem]]:
    """Find cohorts that several datasets have, and cohorts that are hardly told apart.

    Parameters
    ----------
    tables
        Rows of the tables by dataset and subject.
    present
        Subjects that count.

    Returns
    -------
    list
        Dataset and warning; one for all cohorts of the same datasets.
    """
    owners: dict[str, list[str]] = {}
    for dataset in sorted(tables):
        for cohort in {row["cohort"] for s, row in tables[dataset].items() if s in present}:
            owners.setdefault(cohort, []).append(dataset)
    shared: dict[tuple[str, ...], list[str]] = {}
    spellings: dict[str, list[str]] = {}
    for cohort in sorted(owners):
        if len(owners[cohort]) > 1:
            shared.setdefault(tuple(owners[cohort]), []).append(cohort)
        plain = _POINT.sub("", _ZEROS.sub("", " ".join(cohort.casefold().split())))
        spellings.setdefault(plain, []).append(cohort)
    out = []
    for datasets, cohorts in sorted(shared.items()):
        message = (
            f"the datasets {listed([quote(name) for name in datasets])} have the same cohorts "
            f"{listed([quote(name) for name in cohorts])}: each is one cohort for the models. "
            "Give sites that differ names that differ, in the tables."
        )
        out.append((datasets[-1], Problem("", "cohort-shared", message)))
    alike = [names for names in spellings.values() if len(names) > 1]
    if alike:
        shown = listed([" and ".join(map(quote, names)) for names in alike])
        message = (
            f"cohorts {shown} differ in case, spaces, leading zeros or .0 alone: each is a cohort "
            "of its own for the models. Write one name for one site, in the tables."
        )
        out.append((owners[alike[0][-1]][0], Problem("", "cohort-alike", message)))
    return out
