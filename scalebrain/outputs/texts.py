"""Texts of a BIDS derivatives dataset: its description, README and what validators leave out."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import xarray as xr

from scalebrain.graph.imported import imported_from

__all__ = ["BIDSIGNORE", "BIDSIGNORE_PAGES", "BIDS_VERSION", "description", "readme"]

BIDS_VERSION = "1.10.0"

#: What the standard has no word for.
BIDSIGNORE = """group
parquet
*_morph.tsv
*_morph.json
"""

#: The same of an export with pages of people.
BIDSIGNORE_PAGES = BIDSIGNORE + "sub-*.html\n"

_SIMULATED = "Simulated data: nobody was scanned. It says nothing about a real brain."


def description(ds: xr.Dataset, about: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``dataset_description.json``.

    Parameters
    ----------
    ds
        Dataset of a store.
    about
        ``simulated``, ``version`` and ``space``.

    Returns
    -------
    dict
        As BIDS has it, and ``Simulated``.
    """
    simulated = bool(about["simulated"])
    made = "regional brain age and lesion measures, and their statistics"
    if tool := imported_from(ds):
        made += f"; the brain ages are of {tool}"
    out: dict[str, Any] = {
        "Name": "scalebrain: regional brain age and lesions"
        + (" (simulated data)" if simulated else ""),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": "That of the source datasets; for atlases see README.md",
        "GeneratedBy": [
            {
                "Name": "scalebrain",
                "Version": version("scalebrain"),
                "Description": made + (f". {_SIMULATED}" if simulated else ""),
            }
        ],
        "SourceDatasets": [{"URL": f"urn:scalebrain:dataset:{name}"} for name in _sources(ds)],
        "ReferencesAndLinks": [
            "https://doi.org/10.1038/sdata.2016.44",
            "https://doi.org/10.1006/nimg.2001.0978",
        ],
        "Simulated": simulated,
    }
    if not out["SourceDatasets"]:
        del out["SourceDatasets"]
    return out


def _sources(ds: xr.Dataset) -> list[str]:
    """Names of the datasets that people came from, as an address may have them."""
    if "dataset" not in ds:
        return []
    names = sorted({str(name) for name in ds["dataset"].values.tolist() if name})
    return ["".join(c if c.isalnum() or c in "-_." else "-" for c in name) for name in names]


def readme(ds: xr.Dataset, about: Mapping[str, Any], *, pages: bool = False) -> str:
    """Content of ``README.md``.

    Parameters
    ----------
    ds, about
        As for :func:`description`.
    pages
        Whether people have a page.

    Returns
    -------
    str
        Markdown.
    """
    warning = f"**{_SIMULATED}**\n\n" if about["simulated"] else ""
    of_pages = "\n- `sub-*.html`: a page of each included person with a stroke." if pages else ""
    return f"""# Regional brain age and lesions

{warning}Made by scalebrain {about["version"]} from {ds.sizes["subject"]} scans in
{about["space"] or "an unknown space"}. Research use only; not a medical device.

- `participants.tsv`: who took part, and why someone was excluded.
- `phenotype/` (`group/` where people have sessions): one row a scan. `lesion.tsv`, `brain.tsv` and
  `quality.tsv` hold single numbers, the others one variable, a column for each region or tract.
- `sub-*/anat/*_morph.tsv`: the same numbers, one file a person, one row a region or tract.
- `group/`: the statistics, one row an estimate. A model that could not be fitted has no table.
- `parquet/`: the same tables. Units and descriptions are in the metadata of the fields.{of_pages}

Every TSV has a JSON file that says what its columns mean; that of `sub-*/anat/*_morph.tsv` lies in
this folder. Missing is `n/a` (Parquet: null) and never 0. `brain_pad` is `brain_age - age`;
`brain_pad_corrected` is freed of the age bias of healthy people.

## Beyond the standard

BIDS has no word for tables of statistics, for Parquet, and for measures of regions (`_morph` is
that of the draft for structural derivatives, BEP011). `.bidsignore` tells validators of them.

## Licenses

The license of the source datasets goes for what was derived from them. Regions of brain ages are
sets of AAL parcels (Tzourio-Mazoyer et al. 2002); lesion loads may be of another atlas, which the
names of the files in `sub-*/anat` say. There are names of regions here and no image of an atlas.
"""
