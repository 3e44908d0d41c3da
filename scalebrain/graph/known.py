"""Whom a model was trained on, among those that it predicts."""

import hashlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.features.inclusion import same_people, texts
from scalebrain.io.cells import quote
from scalebrain.io.delimited import listed

if TYPE_CHECKING:
    from scalebrain.graph.model import BrainAgeModel

__all__ = ["known_folds", "person_keys", "subject_keys"]

logger = logging.getLogger(__name__)


def subject_keys(ds: xr.Dataset) -> list[str]:
    """Short hash of every subject's scan (of its id where there is none)."""
    ids, scans = texts(ds, "subject"), texts(ds, "scan_hash")
    return _hashes(np.where(scans == "", ids, scans))


def person_keys(ds: xr.Dataset) -> list[str]:
    """Short hash of every subject's dataset and person (its id where no person is named)."""
    ids, people = texts(ds, "subject"), texts(ds, "person")
    named = np.where(people == "", ids, people)
    return _hashes(np.char.add(np.char.add(texts(ds, "dataset"), "/"), named))


def _hashes(texts: Iterable[str]) -> list[str]:
    """64 bits of the SHA-256 of each text."""
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def known_folds(ds: xr.Dataset, model: "BrainAgeModel") -> npt.NDArray[np.int64]:
    """Find the folds of everyone that a model was trained on.

    Parameters
    ----------
    ds
        Store; `scan_hash`, `dataset` and `person` are used where it has them.
    model
        Model.

    Returns
    -------
    ndarray
        (subject,) fold whose network has not seen the person; -1 for others.

    Notes
    -----
    Someone is known by a scan, by dataset and person, and by another subject of `ds` who is known
    and the same person. So two people who have one id in two datasets of one name are taken for
    one: who is new is then predicted by one network in place of all. That is told where no scan of
    the dataset is one of the training.
    """
    by_scan = _found(subject_keys(ds), model.fold_of)
    by_person = _found(person_keys(ds), model.fold_of_person)
    people = same_people(ds)
    n = people.max(initial=-1) + 1
    lowest, highest = np.full(n, len(model.folds)), np.full(n, -1)
    for fold in (by_scan, by_person):
        seen = fold >= 0
        np.minimum.at(lowest, people[seen], fold[seen])
        np.maximum.at(highest, people[seen], fold[seen])
    if n_torn := int((lowest < highest).sum()):
        logger.warning(
            "%d people have scans in two folds of the training: no network has seen none of them. "
            "Train again on a store that holds all their scans.",
            n_torn,
        )
    _tell_unproved(ds, by_scan >= 0, by_person >= 0)
    own = np.where(by_scan >= 0, by_scan, by_person)
    return np.asarray(np.where(own >= 0, own, highest[people]), dtype=np.int64)


def _tell_unproved(
    ds: xr.Dataset, by_scan: npt.NDArray[np.bool_], by_person: npt.NDArray[np.bool_]
) -> None:
    """Say who is known by name alone, in a dataset of which the model knows no scan."""
    datasets = texts(ds, "dataset")
    proved = np.isin(datasets, datasets[by_scan])
    taken = by_person & ~by_scan & ~proved
    if taken.any():
        logger.warning(
            "%d people are taken for people of the training by the name of their dataset (%s) and "
            "their id, though none of its scans is known. If they are others, rename the folder of "
            "the dataset, so that all networks predict them.",
            len(np.unique(same_people(ds)[taken])),
            listed([quote(str(name)) for name in np.unique(datasets[taken])]),
        )


def _found(keys: list[str], folds: dict[str, int]) -> npt.NDArray[np.int64]:
    """Fold (subject,) of each key; -1 where it is not known."""
    return np.array([folds.get(key, -1) for key in keys], dtype=np.int64)
