"""Tables that describe atlases: rows of a TSV or CSV file, checked one by one."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalebrain.atlas.providers import aal_names
from scalebrain.atlas.regions import RegionSet
from scalebrain.errors import LateralityError, TableError, check_all

__all__ = ["Row", "read_regions", "read_rows"]

_SEPARATORS = {".tsv": "\t", ".csv": ","}
_SIDES = ("_L", "_R")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Parameters
    ----------
    line
        Its line in the file.
    cells
        Text by column; names of columns in lower case.
    """

    line: int
    cells: dict[str, str]


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read a table of text.

    Parameters
    ----------
    path
        Tab-separated (.tsv) or comma-separated (.csv) UTF-8 text with a header.
    columns
        Columns that it must have, in lower case.

    Returns
    -------
    list of Row
        Rows in the order of the file; empty lines are skipped.

    Raises
    ------
    TableError
        When the file cannot be read as such a table, or has no row.
    """
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise TableError(f"{path}: expected a .tsv (tabs) or .csv (commas) file. Save it as one.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise TableError(
            f"{path}: not a table: {error}. Look for a quote without its partner; save it again."
        ) from error
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    missing = [name for name in columns if header.count(name) != 1]
    if missing:
        raise TableError(
            f"{path}: expected one column of each name {', '.join(columns)}, found "
            f"{', '.join(header) or 'none'}. Name the columns so in the first line."
        )
    if len(lines) == 1:
        raise TableError(f"{path}: no row below the header. Write one row a region.")
    ragged = [line for line, cells in lines if len(cells) != len(header)]
    if ragged:
        raise TableError(
            f"{path}: line {ragged[0]} has another number of cells than the header has columns "
            f"({len(header)}). Correct it; {len(ragged)} lines are so."
        )
    return [
        Row(line, dict(zip(header, map(str.strip, cells), strict=True)))
        for line, cells in lines[1:]
    ]


def read_regions(table: str | Path, *, name: str | None = None) -> RegionSet:
    """Read a region set: regions as unions of AAL parcels.

    Parameters
    ----------
    table
        A .tsv or .csv file with one row for each parcel of a region and the columns
        ``region`` (a name that ends in ``_L`` or ``_R``) and ``parcel`` (an AAL code from 1
        to 116, or a name as ``Precentral_L``). Other columns are ignored.
    name
        Name of the set; the name of the file when not given.

    Returns
    -------
    RegionSet
        Regions in the order of their first rows.

    Raises
    ------
    TableError
        When a row has no AAL parcel, is there twice, or a region has no homologue.
    LateralityError
        When a parcel lies in the other hemisphere than its region, or in both, as the vermis, and
        is not in both homologues.
    """
    path = Path(table)
    names = aal_names()
    codes = {parcel: code for code, parcel in names.items()}
    regions: dict[str, tuple[int, ...]] = {}
    unknown, repeated, crossed, midline = [], [], [], []
    for row in read_rows(path, ("region", "parcel")):
        region, parcel = row.cells["region"], row.cells["parcel"]
        code = codes.get(parcel, int(parcel) if parcel.isascii() and parcel.isdigit() else 0)
        if not region or code not in names:
            unknown.append(
                f"{path}: line {row.line}: region '{region}', parcel '{parcel}'; expected a name, "
                "and an AAL code from 1 to 116 or an AAL name. Correct the row."
            )
        elif code in regions.get(region, ()):
            repeated.append(
                f"{path}: line {row.line}: parcel {parcel} is in region '{region}' already. Take "
                "the row out."
            )
        elif {region[-2:], names[code][-2:]} == set(_SIDES):
            crossed.append(
                f"{path}: line {row.line}: parcel {code} ({names[code]}) in region '{region}': not "
                "of that hemisphere. Give it the parcel of the other side (odd left, even right)."
            )
        else:
            regions[region] = (*regions.get(region, ()), code)
            if region[-2:] in _SIDES and names[code][-2:] not in _SIDES:
                midline.append((row.line, region, code))
    crossed += [
        f"{path}: line {line}: parcel {code} ({names[code]}) in region '{region}' alone: it lies "
        f"in both hemispheres. Give it to '{RegionSet.homologue(region)}' too, or take the row out."
        for line, region, code in midline
        if code not in regions.get(RegionSet.homologue(region), ())
    ]
    check_all(unknown + repeated, TableError, f"{path}: rows that are not usable")
    check_all(crossed, LateralityError, f"{path}: parcels in the wrong hemisphere")
    return RegionSet(name or path.stem, regions)
