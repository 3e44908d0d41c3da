"""A study as BIDS derivatives: TSV with JSON beside it, and the same tables as Parquet."""

import logging
import re
import shutil
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from scalebrain.errors import ConfigError
from scalebrain.io.failures import explain
from scalebrain.io.plain import plain_arrays
from scalebrain.io.results import read_results
from scalebrain.io.tabular import ParquetFile, write_json, write_tsv
from scalebrain.outputs.columns import describe
from scalebrain.outputs.people import bids_people
from scalebrain.outputs.texts import BIDSIGNORE, BIDSIGNORE_PAGES, description, readme
from scalebrain.stats.frame import table, tidy_tables
from scalebrain.variables import validate

__all__ = ["check_export_folder", "export_bids"]

logger = logging.getLogger(__name__)

#: People that are loaded and written at a time.
_BLOCK = 512
_MEASURED = ("region", "tract", "network", "structure")
_SEGMENTATIONS = {"region": "regions", "tract": "tracts", "network": "networks"}
#: Labels of tables of other dimensions, which an atlas cannot have.
_RESERVED = ("tracts", "networks", "structure")
_OWN = ("phenotype", "group", "parquet")
_ROOT = (
    "README.md",
    "participants.tsv",
    "participants.json",
    "dataset_description.json",
)
#: Pages of people, whole and half written.
_PAGES = ("sub-*.html", ".sub-*.html.*.partial")
_DEMOGRAPHIC = (
    "age",
    "sex",
    "cohort",
    "group",
    "days_post_stroke",
    "icv",
    "motor_score",
    "motor_scale",
    "dataset",
    "included",
    "exclusion_reason",
    "extrapolated",
    "qc_decision",
)


def export_bids(
    ds: xr.Dataset,
    out: str | Path,
    *,
    results: str | Path | Mapping[str, xr.Dataset] | None = None,
    person_pages: bool = False,
) -> Path:
    """Write what is known of everyone, and the statistics, as a BIDS derivatives dataset.

    Parameters
    ----------
    ds
        Dataset of a store. People are loaded some hundred at a time.
    out
        Folder; one that this function wrote is replaced, another one that is not empty is
        refused.
    results
        Results by name, or the ``results.zarr`` of a study.
    person_pages
        Write the page of :func:`scalebrain.person_report` of every included person with a
        stroke too, one after the other, as ``sub-*.html``.

    Returns
    -------
    Path
        The folder: ``participants.tsv``; ``phenotype/*.tsv``, one row a person; a table of
        regions and of tracts for every person under ``sub-*/``; ``group/*.tsv``, the
        statistics; ``parquet/``, the same tables. Every table has a JSON file that says what its
        columns mean. ``dataset_description.json`` is written last.

    Raises
    ------
    ConfigError
        When the folder holds something else, or tables of two dimensions would be of one name.
    MissingVariableError
        When pages are asked for and nothing says who is included.
    StoreError
        When `results` is no finished store of results, or the folder cannot be written.

    References
    ----------
    Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44
    """
    validate(ds, *(("included", "group") if person_pages else ()), dims=["subject"])
    ds = _with_dates_as_text(plain_arrays(ds))
    folder = Path(out)
    if results is None:
        results = {}
    elif not isinstance(results, Mapping):
        results, _ = read_results(results)
    segmentations = _segmentations(ds)
    _prepare(folder, BIDSIGNORE_PAGES if person_pages else BIDSIGNORE)
    people = bids_people(ds)
    about = {
        "simulated": str(ds.attrs.get("simulated", "false")).lower() == "true",
        "version": version("scalebrain"),
        "space": str(ds.attrs.get("space", "")),
    }
    try:
        _write_people(ds, people, folder, about, segmentations)
        _write_results(results, people, folder, about)
        if person_pages:
            _write_pages(ds, people, results.get("motor"), folder)
        text = readme(ds, about, pages=person_pages)
        (folder / "README.md").write_text(text, encoding="utf-8")
        write_json(description(ds, about), folder / "dataset_description.json")
    except OSError as error:
        raise explain(str(out), error) from error
    logger.info("%s: %d people", folder, people["participant_id"].nunique())
    return folder


def _with_dates_as_text(ds: xr.Dataset) -> xr.Dataset:
    """Dates as BIDS has them, to the second."""
    dates = {n: v for n, v in ds.data_vars.items() if v.dtype.kind == "M"}
    text = {
        n: v.copy(data=np.where(v.isnull(), "", np.datetime_as_string(v.values, unit="s")))
        for n, v in dates.items()
    }
    return ds.assign(text)


def check_export_folder(folder: Path, *, study: Path | None = None) -> str:
    """Refuse a folder that holds anything but an export.

    Parameters
    ----------
    folder
        Folder of the export; it need not be there.
    study
        Folder of the results of a study, in which it lies, for messages.

    Returns
    -------
    str
        What ``.bidsignore`` says there; empty where there is no export.

    Raises
    ------
    ConfigError
        When the folder holds something else.
    """
    start, way_out = f"{folder}:", "Give a new folder."
    if study is not None:
        start = f"{study}: a study puts its export into {folder}, which"
        way_out = "Give a new folder for results."
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    mark = folder / ".bidsignore"
    if held and mark.name not in held:
        raise ConfigError(f"{start} is not empty and holds no export of scalebrain. {way_out}")
    text = mark.read_text(encoding="utf-8") if held else ""
    # It is the first file of an export: one that a full disk has cut off is all that there is.
    cut_off = held <= {mark.name} and BIDSIGNORE_PAGES.startswith(text)
    if text not in (BIDSIGNORE, BIDSIGNORE_PAGES) and not cut_off:
        raise ConfigError(f"{start} is another BIDS dataset. {way_out}")
    return text


def _prepare(folder: Path, ignored: str) -> None:
    """Make the folder, and take away what an earlier export left."""
    text = check_export_folder(folder)
    patterns = ("*_morph.json", *(_PAGES if text == BIDSIGNORE_PAGES else ()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset_description.json").unlink(missing_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_dir() and (path.name in _OWN or path.name.startswith("sub-")):
                shutil.rmtree(path)
            elif path.name in _ROOT or any(fnmatch(path.name, p) for p in patterns):
                path.unlink()
        if text != ignored:
            (folder / ".bidsignore").write_text(ignored, encoding="utf-8")
    except OSError as error:
        raise explain(str(folder), error) from error


def _write_people(
    ds: xr.Dataset,
    people: pd.DataFrame,
    folder: Path,
    about: Mapping[str, Any],
    segmentations: Mapping[str, str],
) -> None:
    """Everything that has one value a person, region or tract, block by block."""
    sessions = bool((people["session_id"] != "").any())
    ids = ["participant_id", *(["session_id"] if sessions else [])]
    tables = folder / ("group" if sessions else "phenotype")  # BIDS: one row a participant
    plain = _phenotypes(ds)
    measured = {dim: _over(ds, dim) for dim in segmentations}
    told: dict[str, dict[str, Any]] = {name: describe(name) for name in (*ids, "source_id")}
    told["source_subject"] = describe("source_subject")
    first = True
    with ExitStack() as stack:
        files: dict[str, ParquetFile] = {}

        def parquet(name: str, columns: Mapping[str, Mapping[str, Any]]) -> ParquetFile:
            if name not in files:
                path = folder / "parquet" / f"{name}.parquet"
                opened = ParquetFile(path, columns=columns, about={**about, "table": name})
                files[name] = stack.enter_context(opened)
            return files[name]

        for rows in _blocks(len(people)):
            some = ds.isel(subject=rows).transpose("subject", ...)  # rows stand for people
            who = people.iloc[rows].reset_index(drop=True)
            keys = who[ids]
            keyed = keys.assign(source_subject=who["subject"])
            for name, variables in plain.items():
                frame = keyed
                if variables:
                    frame = _side_by_side(keyed, table(some, variables), variables)
                columns = told | {v: describe(v, ds) for v in variables}
                parquet(name, columns).write(frame)
                if name != "participants":
                    path = tables / f"{name}.tsv"
                    _write_described(frame, path, columns, append=not first, measured=name)
            for dim, variables in measured.items():
                long = table(some, variables)
                columns = told | {dim: describe(dim)} | {v: describe(v, ds) for v in variables}
                key = keyed.loc[np.repeat(np.arange(len(who)), ds.sizes[dim])]
                frame = _side_by_side(key.reset_index(drop=True), long, [dim, *variables])
                parquet(f"{dim}s", columns).write(frame)
                name = f"seg-{segmentations[dim]}_desc-scalebrain_morph"
                _write_each(ds, who, long, dim, variables, folder / name, first=first)
                for variable in variables:
                    wide = table(some, variable, wide=True)
                    spread = [str(c) for c in wide.columns if c != "subject"]
                    frame = _side_by_side(keyed, wide, spread)
                    wide_columns = told | {
                        c: _at(describe(variable, ds), c.removeprefix(f"{variable}_"))
                        for c in spread
                    }
                    parquet(f"{variable}_by_{dim}", wide_columns).write(frame)
                    path = tables / f"{variable}.tsv"
                    _write_described(frame, path, wide_columns, append=not first, measured=variable)
            first = False
    _write_participants(ds, people, plain["participants"], folder)


def _at(column: dict[str, Any], label: str) -> dict[str, Any]:
    """Describe a variable at one label of a wide table."""
    return {**column, "Description": f"{column['Description']}, {label}"}


def _blocks(n: int) -> Iterator[slice]:
    """Positions of the people, a block at a time."""
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def _side_by_side(keys: pd.DataFrame, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Keys in front of columns of the same rows."""
    return pd.concat([keys, frame[columns]], axis=1)


def _over(ds: xr.Dataset, dim: str) -> list[str]:
    """Variables over subject and one other dimension."""
    return [str(n) for n, v in ds.data_vars.items() if set(v.dims) == {"subject", dim}]


def _phenotypes(ds: xr.Dataset) -> dict[str, list[str]]:
    """Variables over subject alone: who someone is, the lesion, brain age, and the rest."""
    out: dict[str, list[str]] = {"participants": [], "lesion": [], "brain": [], "quality": []}
    for name in map(str, ds.variables):
        if ds[name].dims != ("subject",) or name in ("subject", "person", "session"):
            continue
        if name in _DEMOGRAPHIC:
            kind = "participants"
        elif name.startswith(("lesion_", "laterality_", "paresis_")) and name != "lesion_present":
            kind = "lesion"
        elif name.startswith(("brain_", "out_of_fold", "centile", "harmoni")):
            kind = "brain"
        else:
            kind = "quality"
        out[kind].append(name)
    out["participants"].sort(key=_DEMOGRAPHIC.index)
    return {kind: names for kind, names in out.items() if names or kind == "participants"}


def _write_described(
    frame: pd.DataFrame,
    path: Path,
    columns: Mapping[str, Mapping[str, Any]],
    *,
    append: bool,
    measured: str = "",
) -> None:
    """Write a TSV and, with its first rows, the JSON that describes its columns."""
    write_tsv(frame, path, append=append)
    if not append:
        sidecar: dict[str, Any] = {str(c): dict(columns[str(c)]) for c in frame.columns}
        if measured:
            about = {"Description": f"scalebrain {version('scalebrain')}: {measured}"}
            sidecar = {"MeasurementToolMetadata": about} | sidecar
        write_json(sidecar, path.with_suffix(".json"))


def _write_each(
    ds: xr.Dataset,
    who: pd.DataFrame,
    long: pd.DataFrame,
    dim: str,
    variables: list[str],
    root: Path,
    *,
    first: bool,
) -> None:
    """One file a person (and session) that has any value; `root` is what is common to all."""
    size, folder, name = ds.sizes[dim], root.parent, root.name
    if first:
        sidecar = {dim: describe(dim)} | {v: describe(v, ds) for v in variables}
        write_json(sidecar, folder / f"{name}.json")
    values = long[[dim, *variables]]
    known = long[variables].drop(columns=[v for v in variables if v == "imputed_fraction"])
    present = known.notna().any(axis=1).to_numpy().reshape(-1, size).any(axis=1)
    for i in np.flatnonzero(present):
        subject, session = who["participant_id"].iloc[i], who["session_id"].iloc[i]
        place = folder / subject / session / "anat" if session else folder / subject / "anat"
        stem = f"{subject}_{session}" if session else subject
        write_tsv(values.iloc[i * size : (i + 1) * size], place / f"{stem}_{name}.tsv")


def _segmentations(ds: xr.Dataset) -> dict[str, str]:
    """Label of the seg entity of every dimension that has a table a person."""
    labels = {dim: _segmentation(ds, dim, names) for dim in _MEASURED if (names := _over(ds, dim))}
    dims: dict[str, list[str]] = {}
    for dim, label in labels.items():
        dims.setdefault(label.lower(), []).append(dim)
    same = [(label, some) for label, some in dims.items() if len(some) > 1]
    if same:
        label, some = same[0]
        raise ConfigError(
            f"The tables over {' and '.join(some)} would both be named seg-{label}, after "
            "their atlases, and one would replace the other. Give one atlas another name."
        )
    return labels


def _segmentation(ds: xr.Dataset, dim: str, variables: list[str]) -> str:
    """Label of the seg entity: the region set where it is known, and the dimension."""
    plain = _SEGMENTATIONS.get(dim, dim)
    names = {str(ds[v].attrs["atlas"]) for v in variables if ds[v].attrs.get("atlas")}
    label = re.sub("[^0-9a-zA-Z]", "", names.pop()) if len(names) == 1 else ""
    if not label:
        return plain
    if dim != "region":
        return label + plain.capitalize()
    return f"{label}Regions" if label.lower() in _RESERVED else label


def _write_participants(
    ds: xr.Dataset, people: pd.DataFrame, variables: list[str], folder: Path
) -> None:
    """Tables of participants and, where there are any, of their sessions."""
    told = {n: describe(n) for n in ("participant_id", "session_id", "source_id")}
    told |= {name: describe(name, ds) for name in variables}
    frame = table(ds, variables) if variables else people[["subject"]]
    frame = pd.concat([people.drop(columns="subject"), frame.drop(columns="subject")], axis=1)
    frame = frame.rename(columns={"person": "source_id"})
    one = frame.sort_values("session_id", key=lambda ids: ids != "", kind="stable")
    one = one.drop_duplicates("participant_id").sort_index()
    written = variables
    if (frame["session_id"] != "").any():
        counts = frame.groupby("participant_id", sort=False)[variables].nunique(dropna=False)
        varying = [name for name in variables if (counts[name] > 1).any()]
        # of someone with several sessions alone: without a session, the row is the person's own
        told_there = one["session_id"] != ""
        for name in varying:
            differs = told_there & one["participant_id"].map(counts[name] > 1)
            column = one[name] if one[name].dtype.kind == "f" else one[name].astype(object)
            one[name] = column.mask(differs, np.nan if column.dtype.kind == "f" else None)
            if differs.all():
                written = [other for other in written if other != name]
        for label, some in frame[frame["session_id"] != ""].groupby("participant_id", sort=False):
            path = folder / str(label) / f"{label}_sessions.tsv"
            _write_described(some[["session_id", *varying]], path, told, append=False)
    columns = ["participant_id", "source_id", *written]
    _write_described(one[columns], folder / "participants.tsv", told, append=False)


def _write_pages(
    ds: xr.Dataset, people: pd.DataFrame, motor: xr.Dataset | None, folder: Path
) -> None:
    """Pages of included people with a stroke, one at a time, beside their folders."""
    from scalebrain.report.page import write_text
    from scalebrain.report.person import person_reports

    stroke = ds["group"].values.astype(str) == "stroke"
    chosen = people[np.asarray(ds["included"].values, dtype=bool) & stroke]
    reports = person_reports(ds, chosen["subject"].tolist(), motor=motor)
    for who, report in zip(chosen.itertuples(), reports, strict=True):
        stem = f"{who.participant_id}_{who.session_id}".removesuffix("_")
        write_text(report.html, folder / f"{stem}.html")


def _write_results(
    results: Mapping[str, xr.Dataset], people: pd.DataFrame, folder: Path, about: Mapping[str, Any]
) -> None:
    """Statistics, one table for every set of dimensions."""
    ids = people.set_index("subject")
    for name, ds in results.items():
        tables = tidy_tables(ds)
        for dims, tidy in tables.items():
            columns = {str(column): describe(str(column), ds) for column in tidy.columns}
            stem = name if len(tables) == 1 else f"{name}_{dims}"
            frame = tidy
            if "subject" in tidy:
                here = tidy["subject"].astype(str).isin(ids.index)
                if not here.all():
                    gone = tidy.loc[~here, "subject"].nunique()
                    logger.warning(
                        "%s: %d subjects are not in the Dataset and left out", stem, gone
                    )
                frame = _with_participants(tidy[here], ids, columns)
            _write_described(frame, folder / "group" / f"{stem}.tsv", columns, append=False)
            told = {**about, "table": stem} | {f"model_{k}": str(v) for k, v in ds.attrs.items()}
            path = folder / "parquet" / f"group_{stem}.parquet"
            with ParquetFile(path, columns=columns, about=told) as file:
                file.write(frame)


def _with_participants(
    tidy: pd.DataFrame, ids: pd.DataFrame, columns: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    """Put the labels of BIDS in the place of the subjects of a store."""
    frame = tidy.copy()
    place = list(frame.columns).index("subject")
    subjects: list[Hashable] = [str(subject) for subject in frame.pop("subject")]
    found = ids.reindex(subjects)
    frame.insert(place, "participant_id", found["participant_id"].to_numpy())
    if (ids["session_id"] != "").any():
        frame.insert(place + 1, "session_id", found["session_id"].to_numpy())
    columns |= {name: describe(name) for name in ("participant_id", "session_id")}
    return frame
