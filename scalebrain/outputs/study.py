"""Tables that a study leaves beside its report."""

from pathlib import Path

import pandas as pd
import xarray as xr

__all__ = ["write_subject_tables", "write_table"]


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a TSV, missing numbers and text as n/a, as BIDS has it.

    Parameters
    ----------
    table
        Table; its index is not written.
    path
        File.
    """
    shown = table.copy()
    for name in shown.select_dtypes(exclude=["number", "bool"]):
        shown[name] = shown[name].replace("", None)
    shown.to_csv(path, sep="\t", index=False, na_rep="n/a", lineterminator="\n")


def write_subject_tables(ds: xr.Dataset, folder: Path) -> None:
    """Write tables of people: one row a subject, and one row a subject and region or tract.

    Parameters
    ----------
    ds
        Store.
    folder
        Where ``subjects.tsv``, ``subjects_region.tsv`` and ``subjects_tract.tsv`` go.
    """
    small = ds.drop_dims([d for d in ("voxel", "node", "edge", "feature") if d in ds.dims])
    alone = [n for n in small.variables if small[n].dims == ("subject",) and n != "subject"]
    subjects = small[alone].reset_coords(drop=False).to_dataframe().reset_index()
    write_table(subjects, folder / "subjects.tsv")
    for dim in ("region", "tract"):
        names = [n for n in small.data_vars if small[n].dims == ("subject", dim)]
        if names:
            bare = small[names].drop_vars(
                [c for c in small[names].coords if c not in ("subject", dim)]
            )
            table = bare.to_dataframe(dim_order=["subject", dim]).reset_index()
            write_table(table, folder / f"subjects_{dim}.tsv")
