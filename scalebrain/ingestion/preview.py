"""What an ingest would do, before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalebrain.ingestion.cohort import (
    Sources,
    check_store,
    check_unfinished,
    check_withdrawn,
    held_sessions,
    holds_rows,
    is_current,
    known_people,
    mended_subjects,
    prepare_all,
    rejected_people,
    withdrawn_people,
)
from scalebrain.ingestion.journal import present_subjects, read_plan, read_records, source_hashes
from scalebrain.ingestion.layout import ARRAYS, check_grid, check_modulated, static_of
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.plan import Dataset, check_ids, check_same, make_plan
from scalebrain.io.location import Location
from scalebrain.io.store import store_attributes

__all__ = ["IngestPreview", "preview_ingest"]

#: Bytes in a store for each byte of an array, as measured on simulated brains.
_PACKED = {np.dtype(np.float32): 0.6, np.dtype(np.bool_): 0.02}
_KINDS = {
    "t1w": ("t1w",),
    "gm": ("gm",),
    "lesion": ("lesion_mask",),
    "surfaces": ("thickness", "wg_contrast", "curvature", "sulcal_depth"),
}


@dataclass(frozen=True)
class IngestPreview:
    """What an ingest would do.

    Parameters
    ----------
    n_scans
        Rows of the given datasets, as far as files can be told without reading them.
    n_new
        Those that the store has not.
    n_changed
        Those of which the files have changed since.
    n_rejected
        People who are left out before anything is read.
    is_current
        Whether the store is finished and holds exactly this.
    keeps_results
        Whether no row changes, so that what was computed from the store stays.
    n_bytes
        Size of the scans in the store when all are in it, roughly.
    """

    n_scans: int
    n_new: int
    n_changed: int
    n_rejected: int
    is_current: bool
    keeps_results: bool
    n_bytes: int


def preview_ingest(
    source: Sources,
    store: str | Path,
    *,
    session: str | None = None,
    prefix: str = "",
    root: str | Path | None = None,
    withdrawn: str | Path | None = None,
    resolution: float | None = None,
    whole_head: bool = False,
    assume_space: bool = False,
    volume: int | None = None,
    lesion_labels: Sequence[int] = (),
    min_lesion: float = 0.0,
    strict: bool = False,  # noqa: ARG001 - taken as the ingest takes it
    participants: Sequence[str] = (),
) -> IngestPreview:
    """Compare datasets with a store, and write nothing.

    Parameters
    ----------
    source, store, session, prefix, root, withdrawn, resolution, whole_head, assume_space, \
volume, lesion_labels, min_lesion, strict, participants
        As for :func:`scalebrain.ingest`.

    Returns
    -------
    IngestPreview
        What is new, changed, left out, and how large the store becomes.

    Raises
    ------
    ScalebrainError
        When the ingest could not begin.
    """
    location = Location.of(store)
    options = ReadOptions(assume_space, volume, tuple(lesion_labels), min_lesion)
    options.check()
    attrs = store_attributes(location)
    check_store(location, attrs)
    check_grid(attrs, resolution=resolution, whole_head=whole_head)
    gone = withdrawn_people(location, withdrawn, prefix)
    plan = read_plan(location)
    known = known_people(location, plan) if participants else frozenset()
    sessions = held_sessions(location)
    datasets = prepare_all(
        source, session, prefix, root, options, gone, participants, known, sessions
    )
    check_ids(datasets, plan, rejected_people(location))
    records = {} if plan is None else read_records(location, plan)
    mended = mended_subjects(records, datasets)
    held = {s: key for s, key in source_hashes(records).items() if s not in mended}
    hashes = {s: key for dataset in datasets for s, key in dataset.hashes.items()}
    complete = bool(attrs.get("complete"))
    current = complete and all(is_current(location, attrs, held, d, gone) for d in datasets)
    if complete and plan is not None:
        check_withdrawn(store, records, gone)
    if not current:  # what the ingest refuses before it writes
        if complete and plan is not None:
            check_same(plan, held, attrs["sources"], datasets)
        check_unfinished(attrs, datasets)
        check_modulated(location, datasets)
        make_plan(plan, datasets, frozenset(present_subjects(records)), store=store)
    return IngestPreview(
        n_scans=len(hashes),
        n_new=sum(s not in held and s not in mended for s in hashes),
        n_changed=len(mended) + sum(s in held and held[s] != key for s, key in hashes.items()),
        n_rejected=len({p.subject for dataset in datasets for p in dataset.rejected}),
        is_current=current,
        keeps_results=complete and all(holds_rows(location, attrs, held, d) for d in datasets),
        n_bytes=_size(datasets, _n_voxels(location, datasets, resolution, whole_head)),
    )


def _n_voxels(
    location: Location, datasets: Sequence[Dataset], resolution: float | None, whole_head: bool
) -> int:
    """Voxels of a row of the store."""
    attrs = store_attributes(location)
    static, _ = static_of(attrs, datasets, resolution=resolution, whole_head=whole_head)
    return 0 if static is None else static.sizes["voxel"]


def _size(datasets: Sequence[Dataset], n_voxels: int) -> int:
    """Bytes of the big arrays, by the files that there are."""
    from scalebrain.io.freesurfer import N_VERTICES

    total = 0.0
    for scan in (scan for dataset in datasets for scan in dataset.scans.values()):
        for kind, names in _KINDS.items():
            for name in names if getattr(scan, kind) is not None else ():
                dtype, dim = ARRAYS[name]
                length = n_voxels if dim == "voxel" else N_VERTICES
                total += length * np.dtype(dtype).itemsize * _PACKED[np.dtype(dtype)]
    return int(total)
