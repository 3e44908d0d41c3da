"""Ids that may be one person's though they are not equal: case, leading zeros, a prefix."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from scalebrain.ingestion.plan import Dataset, Plan, person_of
from scalebrain.io.sources import read_withdrawn
from scalebrain.io.tree import PERSON

__all__ = ["alike_ids", "tell_alike"]

logger = logging.getLogger(__name__)

_MOST = 10
_LEAST = 3  # digits that may follow a prefix that ends in one
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")


def alike_ids(
    listed: Iterable[str], people: Mapping[str, Collection[str]]
) -> dict[str, tuple[str, ...]]:
    """Find who may be meant by ids that nobody has.

    Parameters
    ----------
    listed
        Ids, ``sub-<label>``.
    people
        Ids of the people of each dataset.

    Returns
    -------
    dict
        Ids that are equal apart from case, leading zeros, or letters and digits in front that
        all people of a dataset share, as ``--prefix`` puts them there; by id of `listed`,
        without those that nobody is like.
    """
    owners: dict[str, set[str]] = {}
    for ids in people.values():
        labels = {one: _label(one) for one in ids}
        shared = _shared(labels.values())
        for one, label in labels.items():
            for end in range(min(shared, len(label) - 1) + 1):
                prefix, rest = label[:end], label[end:]
                if prefix and not re.search("[a-z]", prefix):
                    continue
                if prefix[-1:].isdigit() and rest[0].isdigit():  # within a number
                    keys = {rest} if len(rest) >= _LEAST else set()
                else:
                    keys = {rest, _ZEROS.sub("", rest)}
                for key in keys:
                    owners.setdefault(key, set()).add(one)
    found = {}
    for one in listed:
        label = _label(one)
        alike = owners.get(label, set()) | owners.get(_ZEROS.sub("", label), set())
        if alike:
            found[one] = tuple(sorted(alike))
    return found


def _shared(labels: Collection[str]) -> int:
    """How many characters all labels have in common in front."""
    ends = zip(min(labels, default=""), max(labels, default=""), strict=False)
    return next((i for i, (a, b) in enumerate(ends) if a != b), len(min(labels, default="")))


def _label(person: str) -> str:
    """Label of a person, in lower case."""
    return person.removeprefix("sub-").lower()


def tell_alike(
    path: str | Path, prefix: str, datasets: Sequence[Dataset], plan: Plan | None
) -> None:
    """Warn of ids of a list of withdrawals that nobody has, but somebody nearly.

    Parameters
    ----------
    path
        The list, of the sources' own ids.
    prefix
        Put in front of the ids of the sources.
    datasets
        Datasets that are given.
    plan
        Plan of the store, None for a new one.
    """
    people: dict[str, set[str]] = {}
    for subject, (name, _) in (plan.subjects() if plan else {}).items():
        people.setdefault(name, set()).add(person_of(subject))
    for dataset in datasets:
        own = people.setdefault(dataset.name, set())
        own |= {scan.person for scan in dataset.cohort.scans}
        told = (person_of(problem.subject) for problem in dataset.cohort.rejected)
        own |= set(filter(PERSON.fullmatch, told))
    everyone = set().union(*people.values())
    listed = {f"sub-{prefix}{one.removeprefix('sub-')}": one for one in read_withdrawn(path)}
    missing = {full: one for full, one in listed.items() if full not in everyone}
    found = alike_ids(sorted({*missing, *missing.values()}), people)
    if not found:
        return
    shown = [f"{one} ({', '.join(ids[:_MOST])}?)" for one, ids in list(found.items())[:_MOST]]
    logger.warning(
        "%s: %d of its %d ids are in the sources or the store. Nobody is left out for %s%s: write "
        "the ids as the sources have them, where they are the same people.",
        path,
        len(listed) - len(missing),
        len(listed),
        ", ".join(shown),
        ", ..." if len(found) > _MOST else "",
    )
