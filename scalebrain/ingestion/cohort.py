"""Ingest a cohort: plan, partitions over Dask workers, finalize; resumable."""

import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.space import SPACE, Grid, template_hash
from scalebrain.cluster import map_tasks
from scalebrain.errors import ImageError, ScalebrainError, StoreError, check_all
from scalebrain.ingestion.scan import LATERALITY_THRESHOLD, read_rows
from scalebrain.ingestion.voxels import flat_indices, static_variables
from scalebrain.io.bids import Cohort, Scan, find_cohort
from scalebrain.io.nifti import content_key, read_image
from scalebrain.io.store import (
    ROWS_PER_SHARD,
    create_store,
    finalize_store,
    read_records,
    store_attributes,
    write_record,
    write_rows,
)

__all__ = ["ingest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Partition:
    """The subjects of one shard, with all that a worker needs to write it."""

    store: str
    number: int
    scans: tuple[Scan, ...]
    grid: Grid
    images: tuple[str, ...]


def ingest(bids_dir: str | Path, store: str | Path) -> Path:
    """Read a BIDS derivatives tree into a cohort store.

    Parameters
    ----------
    bids_dir
        Tree with participants.tsv and T1w images (and grey-matter probabilities, and
        lesion masks) in MNI152NLin2009aSym, all on one grid.
    store
        Path of the store. An interrupted ingest goes on from where it was; a finished one
        of the same files is left as it is.

    Returns
    -------
    Path
        Path of the store; open it with :func:`scalebrain.open_store`.

    Raises
    ------
    TableError, ImageError, GeometryError
        Every unusable subject or file, in one message.
    StoreError
        When the store holds another cohort.

    Notes
    -----
    Work is spread over the active Dask client, else over threads; a task reads the
    subjects of one shard, writes the shard, then its done-record. The result does not
    depend on workers, order or interruptions.
    """
    path = Path(store)
    cohort = find_cohort(bids_dir, space=SPACE)
    fingerprint = _fingerprint(cohort)
    attrs = store_attributes(path)
    if attrs and attrs.get("source_sha256") != fingerprint:
        raise StoreError(
            f"{path}: holds another cohort, or files or participants.tsv changed since its ingest. "
            "Give a new path, or remove the store first."
        )
    if attrs.get("complete"):
        logger.info("%s is complete: nothing to ingest", path)
        return path
    images = _image_names(cohort)
    grid = _cohort_grid(cohort)
    if not attrs:
        if path.exists() and any(path.iterdir()):
            raise StoreError(f"{path}: exists and is not a store. Give a new path.")
        static = static_variables(grid)
        create_store(
            path,
            static,
            {name: np.bool_ if name == "lesion_mask" else np.float32 for name in images},
            n_subjects=len(cohort.scans),
            attrs={
                "package_version": version("scalebrain"),
                "space": SPACE,
                "affine": grid.matrix.tolist(),
                "shape": list(grid.shape),
                "template_sha256": template_hash(),
                "source_sha256": fingerprint,
                "laterality_threshold": LATERALITY_THRESHOLD,
                "simulated": "true" if cohort.description.get("Simulated") else "false",
                **static.attrs,
            },
        )
    done = read_records(path)
    partitions = [
        _Partition(str(path), number, cohort.scans[start : start + ROWS_PER_SHARD], grid, images)
        for number, start in enumerate(range(0, len(cohort.scans), ROWS_PER_SHARD))
    ]
    todo = [partition for partition in partitions if partition.number not in done]
    if len(todo) < len(partitions):
        logger.info("resuming: %d of %d shards are done", len(done), len(partitions))
    failures = [f for part in map_tasks(_write_partition, todo, label="ingest") for f in part]
    check_all(failures, ImageError, f"{cohort.root}: images that cannot be used")
    finalize_store(path, _subjects(cohort, read_records(path)))
    return path


def _fingerprint(cohort: Cohort) -> str:
    """SHA-256 over the names and contents of everything that is read."""
    digest = hashlib.sha256(cohort.participants.to_csv().encode())
    for scan in cohort.scans:
        for file in (scan.t1w, scan.gm, scan.lesion):
            if file is not None:
                digest.update(f"{file.relative_to(cohort.root)} {content_key(file)}\n".encode())
    digest.update(json.dumps(bool(cohort.description.get("Simulated"))).encode())
    return digest.hexdigest()


def _image_names(cohort: Cohort) -> tuple[str, ...]:
    """Images of the cohort; grey matter either for everyone or for nobody."""
    scans = [scan for scan in cohort.scans if scan.t1w is not None]
    with_gm = [scan.subject for scan in scans if scan.gm is not None]
    if with_gm and len(with_gm) < len(scans):
        without = [scan.subject for scan in scans if scan.gm is None]
        raise ImageError(
            f"{cohort.root}: {len(without)} of {len(scans)} subjects have no label-GM_probseg: "
            f"{', '.join(without[:10])}. Add theirs, or take all of them out."
        )
    if not with_gm:
        logger.warning("no label-GM_probseg: features come from the T1w images alone")
    lesion = ("lesion_mask",) if any(scan.lesion for scan in cohort.scans) else ()
    return ("t1w", *(("gm",) if with_gm else ()), *lesion)


def _cohort_grid(cohort: Cohort) -> Grid:
    """Grid of the first T1w image that can be read; every other has to match."""
    failures = []
    for scan in cohort.scans:
        if scan.t1w is None:
            continue
        try:
            image = read_image(scan.t1w)
        except ScalebrainError as error:
            failures.append(f"{scan.subject}: {error}")
            continue
        return Grid.from_matrix(image.data.shape, image.affine)
    check_all(failures, ImageError, f"{cohort.root}: no T1w image can be read")
    raise ImageError(f"{cohort.root}: no T1w image.")


@functools.lru_cache(maxsize=2)
def _geometry(store: str, grid: Grid) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """Flat indices and parcels of the voxels of a store, once a worker."""
    import zarr

    group = zarr.open_group(store, mode="r")
    names = ("x", "y", "z", "parcel")
    static = xr.Dataset({name: ("voxel", np.asarray(group[name])) for name in names})
    return flat_indices(static, grid), np.asarray(static["parcel"].values, dtype=np.int32)


def _write_partition(partition: _Partition) -> list[str]:
    """Write one shard of every image and, last, its done-record; return what failed."""
    flat, parcel = _geometry(partition.store, partition.grid)
    n = len(partition.scans)
    blocks: dict[str, npt.NDArray[np.generic]] = {
        name: np.zeros((n, flat.size), dtype=np.bool_)
        if name == "lesion_mask"
        else np.full((n, flat.size), np.nan, dtype=np.float32)
        for name in partition.images
    }
    subjects: dict[str, dict[str, Any]] = {}
    failures = []
    for i, scan in enumerate(partition.scans):
        try:
            rows = read_rows(scan, partition.grid, flat, parcel)
        except ScalebrainError as error:
            message = str(error)
            failures.append(message if scan.subject in message else f"{scan.subject}: {message}")
            continue
        for name, row in rows.images.items():
            blocks[name][i] = row
        subjects[scan.subject] = rows.values
    if failures:
        return failures
    for name, block in blocks.items():
        write_rows(partition.store, name, partition.number * ROWS_PER_SHARD, block)
    write_record(partition.store, partition.number, {"subjects": subjects})
    return []


def _subjects(cohort: Cohort, records: dict[int, dict[str, Any]]) -> xr.Dataset:
    """Per-subject variables from participants.tsv and the done-records."""
    values = {s: v for r in records.values() for s, v in r["subjects"].items()}
    table = cohort.participants
    ordered = [values[str(subject)] for subject in table.index]
    numbers = ("lesion_volume", "laterality_index")
    from_records = {
        name: (
            "subject",
            np.array([np.nan if v[name] is None and name in numbers else v[name] for v in ordered]),
        )
        for name in ordered[0]
    }
    return xr.Dataset(
        {
            **{
                name: ("subject", table[name].to_numpy(dtype=np.float64))
                for name in ("days_post_stroke", "icv", "motor_score")
            },
            **from_records,
        },
        coords={
            "subject": table.index.to_numpy(dtype=str),
            "age": ("subject", table["age"].to_numpy(dtype=np.float64)),
            **{
                name: ("subject", table[name].to_numpy(dtype=str))
                for name in ("sex", "cohort", "group")
            },
        },
    )
