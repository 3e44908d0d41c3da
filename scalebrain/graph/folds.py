"""Who is held out together: folds, and those who say when a training stops."""

import warnings

import numpy as np
import numpy.typing as npt

from scalebrain.errors import StatisticsError

__all__ = ["assign_folds", "linked_cohorts", "stopping_split"]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Fewest people of a fold: that many points for a line of bias, and some over.
_FEWEST = 4
#: Scans of the validation at most: they stay in memory.
_MOST_HELD = 1000


def assign_folds(
    age: Array,
    n_folds: int,
    *,
    seed: int,
    person: Ints | None = None,
    cohort: npt.NDArray[np.str_] | None = None,
) -> Ints:
    """Assign every subject to a fold, stratified by age, each person whole.

    Parameters
    ----------
    age
        (subject,) years.
    n_folds
        Number of folds.
    seed
        Seed.
    person
        (subject,) number of the person; None when all differ.
    cohort
        (subject,) cohorts that are kept whole too; None when they are not.

    Returns
    -------
    ndarray
        (subject,) fold.

    Raises
    ------
    StatisticsError
        With fewer than four people in a fold or outside of it, or fewer cohorts than folds.
    """
    people = np.arange(len(age)) if person is None else np.unique(person, return_inverse=True)[1]
    n_people = int(people.max(initial=-1)) + 1
    if n_people < _FEWEST * n_folds:
        raise StatisticsError(
            f"{n_people} reference people are too few for {n_folds} folds. "
            "Bring more, or ask for fewer folds."
        )
    if cohort is not None:
        fold = _folds_of_cohorts(age, n_folds, seed, people, cohort)
    elif n_people < len(age):
        mean_age = np.bincount(people, weights=age) / np.bincount(people)
        fold = _folds_by_age(mean_age, n_folds, seed)[people]
    else:
        fold = _folds_by_age(age, n_folds, seed)
    held = np.array([np.unique(people[fold == k]).size for k in range(n_folds)])
    least = min(int(held.min()), n_people - int(held.max()))
    if least < _FEWEST:
        raise StatisticsError(
            f"Folds hold out {', '.join(map(str, held))} of {n_people} people: each needs at least "
            f"{_FEWEST} to calibrate on, and as many to train on. Ask for "
            + ("two folds or more." if n_folds < 2 else "fewer folds, or leave keep_cohorts out.")
        )
    return fold


def _folds_by_age(age: Array, n_folds: int, seed: int) -> Ints:
    """Folds of people of all ages."""
    rng = np.random.default_rng([seed, 1])
    order = np.argsort(age, kind="stable")
    fold = np.empty(len(age), dtype=np.int64)
    for start in range(0, len(age), n_folds):
        chunk = order[start : start + n_folds]
        fold[chunk] = rng.permutation(n_folds)[: len(chunk)]
    return fold


def linked_cohorts(person: Ints, cohort: npt.NDArray[np.str_]) -> Ints:
    """Find the cohorts that have to stay together: those that share a person are one.

    Parameters
    ----------
    person
        (subject,) number of the person.
    cohort
        (subject,) name of the cohort.

    Returns
    -------
    ndarray
        (subject,) number of the cohort.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(person)
    names, own = np.unique(cohort, return_inverse=True)
    who = np.unique(person, return_inverse=True)[1]
    size = names.size + n
    links = coo_array((np.ones(n), (own, names.size + who)), shape=(size, size))
    group = connected_components(links, directed=False)[1][own]
    return np.asarray(group, dtype=np.int64)


def _folds_of_cohorts(
    age: Array, n_folds: int, seed: int, person: Ints, cohort: npt.NDArray[np.str_]
) -> Ints:
    """Folds of whole cohorts; cohorts that share a person go together."""
    from sklearn.model_selection import StratifiedGroupKFold

    group = linked_cohorts(person, cohort)
    n_groups = np.unique(group).size
    if n_groups < n_folds:
        raise StatisticsError(
            f"{n_groups} cohorts of references cannot be kept whole in {n_folds} folds. Ask for "
            "fewer folds, or leave keep_cohorts out."
        )
    decile = np.searchsorted(np.quantile(age, np.linspace(0, 1, 6)[1:-1]), age)
    fold = np.empty(len(age), dtype=np.int64)
    split = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # cohorts differ in age: the strata cannot be equal
        warnings.filterwarnings("ignore", message="The least populated class in y")
        for number, (_, held) in enumerate(split.split(age, decile, group)):
            fold[held] = number
    return fold


def stopping_split(
    person: Ints, fraction: float, rng: np.random.Generator, *, cohort: Ints | None = None
) -> npt.NDArray[np.bool_]:
    """Choose who of a training part says when to stop, each person whole.

    Parameters
    ----------
    person
        (subject,) number of the person.
    fraction
        Of the people; two at least, and at most 1000 scans.
    rng
        One permutation of the people is drawn.
    cohort
        (subject,) number of the cohort, for whole cohorts where they come to between half and
        twice as many people; None for people of all cohorts.

    Returns
    -------
    ndarray
        (subject,) whether someone is held.
    """
    own = np.unique(person, return_inverse=True)[1]
    n_scans = np.bincount(own)
    order = rng.permutation(len(n_scans))
    wanted = min(max(2, round(fraction * len(order))), len(order) - 1)
    if cohort is not None:
        chosen = _whole_cohorts(own, order, wanted, cohort)
        if chosen is not None:
            return chosen
    room = int(np.searchsorted(np.cumsum(n_scans[order]), _MOST_HELD, side="right"))
    return np.isin(own, order[: min(wanted, max(1, room))])


def _whole_cohorts(
    own: Ints, order: Ints, wanted: int, cohort: Ints
) -> npt.NDArray[np.bool_] | None:
    """Whole cohorts in the order of their people; None where none come to about as many."""
    of_person = np.empty(len(order), dtype=np.int64)
    of_person[own] = cohort
    drawn = of_person[order]
    chosen = np.zeros(len(own), dtype=bool)
    n_held = 0
    for one in drawn[np.sort(np.unique(drawn, return_index=True)[1])]:
        more, n_more = cohort == one, int((of_person == one).sum())
        few = n_held + n_more <= min(2 * wanted, len(order) - 2)
        if few and (chosen | more).sum() <= _MOST_HELD and n_held < wanted:
            chosen, n_held = chosen | more, n_held + n_more
    return chosen if 2 * n_held >= max(wanted, 4) else None
