"""BIDS labels of the people and sessions of a store."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

__all__ = ["bids_people"]

_NOT_A_LABEL = re.compile(r"[^0-9a-zA-Z]")


def bids_people(ds: xr.Dataset) -> pd.DataFrame:
    """Label everyone as BIDS does.

    Parameters
    ----------
    ds
        Dataset with ``subject``, and ``person`` and ``session`` where there are sessions.

    Returns
    -------
    DataFrame
        In the order of `ds`: ``subject``, ``person``, ``participant_id`` (``sub-01``) and
        ``session_id`` (``ses-1``, empty where there is no session). A label has letters and
        digits alone; of two people whose labels would be the same, the later one's is numbered.
    """
    subject = ds["subject"].values.astype(str)
    person, session = subject, np.full(len(subject), "")
    if "person" in ds and "session" in ds:
        session = _text(ds["session"])
        given = _text(ds["person"])
        person = np.where(given == "", subject, given)
    people = _unique("sub-", list(dict.fromkeys(person.tolist())))
    out = pd.DataFrame({"subject": subject, "person": person})
    out["participant_id"] = out["person"].map(people)
    out["session_id"] = ""
    for _, chosen in pd.Series(session).groupby(person, sort=False):
        found = _unique("ses-", [name for name in dict.fromkeys(chosen) if name])
        out.loc[chosen.index, "session_id"] = [found.get(name, "") for name in chosen]
    return out


def _text(array: xr.DataArray) -> npt.NDArray[np.str_]:
    """Text of any text dtype; missing is empty."""
    return np.array(["" if v is None or v != v else str(v) for v in array.values.tolist()])


def _unique(prefix: str, names: Sequence[str]) -> dict[str, str]:
    """Labels of names, each of its own."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        bare = _NOT_A_LABEL.sub("", name.removeprefix(prefix)) or "x"
        label, number = bare, 1
        while label.lower() in taken:  # some disks do not tell capitals apart
            number += 1
            label = f"{bare}x{number}"
        taken.add(label.lower())
        out[name] = prefix + label
    return out
