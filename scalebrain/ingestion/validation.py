"""Every check of an ingest, and nothing written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scalebrain.cluster.tasks import map_tasks
from scalebrain.ingestion.cohort import Sources, partitions_of, plain_problems, prepare_all
from scalebrain.ingestion.geometry import Geometry
from scalebrain.ingestion.layout import static_of
from scalebrain.ingestion.options import ReadOptions
from scalebrain.ingestion.partition import Partition, read_subject
from scalebrain.ingestion.plan import check_ids, make_plan
from scalebrain.ingestion.subjects import gather_problems, problem_table, table_rows

__all__ = ["validate"]


def validate(
    source: Sources,
    *,
    session: str | None = None,
    prefix: str = "",
    root: str | Path | None = None,
    assume_space: bool = False,
    volume: int | None = None,
    lesion_labels: Sequence[int] = (),
) -> pd.DataFrame:
    """Do every check of :func:`ingest` and write nothing.

    Parameters
    ----------
    source, session, prefix, root, assume_space, volume, lesion_labels
        As for :func:`ingest`.

    Returns
    -------
    DataFrame
        One row a problem: dataset, subject, code, rule, file, message, and ``action``, E
        for what would be rejected and W for what would be kept with a warning.
        ``attrs["n_subjects"]`` counts those that would be in the store.

    Raises
    ------
    TableError, ImageError, GeometryError
        When nothing is usable.
    """
    options = ReadOptions(assume_space, volume, tuple(lesion_labels))
    datasets = prepare_all(source, session, prefix, root, options, frozenset())
    check_ids(datasets, None)
    plan = make_plan(None, datasets, frozenset())
    _, geometry = static_of({}, datasets, resolution=None, whole_head=False)
    parts = partitions_of(plan, datasets, "")
    found = map_tasks(_check_partition, parts, label="validate", shared=(geometry,))
    entries = {entry["subject"]: entry for part in found for entry in part}
    known = {dataset.name: plain_problems(dataset) for dataset in datasets}
    tables = {dataset.name: table_rows(dataset) for dataset in datasets}
    rejected, warnings = gather_problems(plan, entries, known, tables)
    table = pd.concat(
        [
            problem_table(rejected).assign(action="E"),
            problem_table(warnings).assign(action="W"),
        ],
        ignore_index=True,
    )
    table.attrs["n_subjects"] = sum("values" in entry for entry in entries.values())
    return table


def _check_partition(partition: Partition, shared: tuple[Geometry | None]) -> list[dict[str, Any]]:
    """Entries of the subjects of a partition, their rows thrown away."""
    return [
        read_subject(scan, shared[0], partition, sides)[1]
        for scan, sides in zip(partition.scans, partition.sides, strict=True)
        if scan is not None
    ]
