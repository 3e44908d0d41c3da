"""Decisions of a quality control, as variables of a store."""

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import xarray as xr

from scalebrain.io.decisions import DECISIONS, read_decisions
from scalebrain.variables import annotate

__all__ = ["EXCLUDED", "count_decisions", "quality_decisions"]

logger = logging.getLogger(__name__)

#: Why someone is excluded.
EXCLUDED = "excluded at quality control"


def quality_decisions(
    ds: xr.Dataset, path: str | Path, *, absent: Collection[str] | None = ()
) -> xr.Dataset:
    """Read the decisions of a quality control, and place them among the subjects of a store.

    Parameters
    ----------
    ds
        Store.
    path
        Table, as :func:`scalebrain.io.decisions.read_decisions` reads it.
    absent
        Subjects that are not in the store and may be in the table; anyone when None.

    Returns
    -------
    Dataset
        ``qc_decision (subject)``: ``accept``, ``exclude``, ``unsure``, or empty; and
        ``qc_note (subject)``.

    Raises
    ------
    TableError
        When the table is wrong.
    """
    subjects = [str(label) for label in ds["subject"].values]
    sessions = [str(name) for name in ds["session"].values] if "session" in ds.variables else []
    found = read_decisions(path, subjects, sessions=sessions, absent=absent)
    words = [found[s].word if s in found else "" for s in subjects]
    notes = [found[s].note if s in found else "" for s in subjects]
    out = xr.Dataset(
        {"qc_decision": ("subject", np.array(words)), "qc_note": ("subject", np.array(notes))},
        coords={"subject": ds["subject"]},
    )
    counts = count_decisions(out)
    logger.info(
        "quality control: %d accepted, %d excluded, %d without a decision",
        *(counts[word] for word in ("accept", "exclude", "")),
    )
    if counts["unsure"]:
        logger.warning("quality control: %d unsure are kept", counts["unsure"])
    return annotate(out)


def count_decisions(ds: xr.Dataset) -> dict[str, int]:
    """Count the subjects of each decision; those without one under the empty text."""
    words = ds["qc_decision"].values.astype(str)
    return {word: int((words == word).sum()) for word in (*DECISIONS, "")}
