"""What is known of one person: an HTML page, and the same as JSON."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scalebrain.errors import MissingVariableError, StatisticsError
from scalebrain.features.inclusion import included_people
from scalebrain.predict.motor import predict_motor
from scalebrain.report.filenames import page_name
from scalebrain.report.page import (
    check_replaceable,
    render_page,
    trained_on_simulated,
    write_text,
)
from scalebrain.report.personfacts import People, person_facts
from scalebrain.report.personpage import header, how_to_read, person_sections
from scalebrain.stats.normative import normative

__all__ = ["PersonReport", "person_page", "person_report", "person_reports", "write_person"]

_NOT_SAID = "does not meet the criteria; the features stage, which says why, has not run"
_LARGE = ("voxel", "vertex", "node", "edge", "feature")


@dataclass(frozen=True)
class PersonReport:
    """What is known of one person.

    Parameters
    ----------
    subject
        Label on ``subject``.
    facts
        Everything on the page as plain values with units; None is missing.
    html
        The page; it loads nothing from elsewhere.
    """

    subject: str
    facts: dict[str, Any]
    html: str

    @property
    def json(self) -> str:
        """The facts as JSON."""
        return json.dumps(self.facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def person_report(
    ds: xr.Dataset, subject: str, *, motor: xr.Dataset | None = None, seed: int = 0
) -> PersonReport:
    """Collect what is known of one person, with every caveat.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    subject
        Label on ``subject``.
    motor
        What :func:`scalebrain.predict_motor` found. When None, the elastic net is fitted here,
        each cohort left out once.
    seed
        Seed of that fit.

    Returns
    -------
    PersonReport
        Lesion, loads with centiles, regional brain ages with intervals and centiles, the
        held-out motor score with its parts, matched patients, caveats. What cannot be given is
        None, with the reason.

    Raises
    ------
    MissingVariableError
        If there is no such subject.

    Notes
    -----
    Associations in groups of people. The page is no diagnosis and no advice about therapy.
    """
    return next(person_reports(ds, [subject], motor=motor, seed=seed))


def person_reports(
    ds: xr.Dataset, subjects: Sequence[str], *, motor: xr.Dataset | None = None, seed: int = 0
) -> Iterator[PersonReport]:
    """Collect what is known of several people, one after the other.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    subjects
        Labels on ``subject``.
    motor, seed
        As for :func:`person_report`; what is computed over everyone is computed once.

    Yields
    ------
    PersonReport
        Of each of them. One scan is held at a time.

    Raises
    ------
    MissingVariableError
        If there is no such subject.
    """
    labels = [str(label) for label in ds["subject"].values]
    subjects = [str(subject) for subject in subjects]  # ids may be numbers
    for subject in subjects:
        if subject not in labels:
            near = difflib.get_close_matches(subject, labels, n=3, cutoff=0.5)
            hint = f" Similar: {', '.join(near)}." if near else ""
            raise MissingVariableError(
                f"There is no subject '{subject}' among the {len(labels)} of the store.{hint} "
                "tables/subjects.tsv of a study lists them."
            )
    people = _people(ds, motor, seed)
    names = [n for n in ("t1w", "lesion_mask") if n in ds.variables]
    for subject in subjects:
        scan = ds[["subject", *names]].isel(subject=labels.index(subject)).load()
        yield _report(ds, people, scan, subject)


def _report(ds: xr.Dataset, people: People, scan: xr.Dataset, subject: str) -> PersonReport:
    """Facts and page of one person."""
    facts = person_facts(people, subject)
    sections = person_sections(facts, scan)
    html = render_page(
        "person.html.j2",
        generator="scalebrain person",
        title=subject,
        simulated=facts["simulated"],
        trained_on_simulated=trained_on_simulated(ds),
        facts=header(facts),
        sections=sections,
        nav=[
            *((section.key, section.title) for section in sections),
            ("methods", "How to read"),
            ("limits", "Caveats"),
        ],
        reading=how_to_read(facts),
        caveats=facts["caveats"],
        provenance=[
            {
                "title": "Store",
                "code": "",
                "rows": [
                    (key, str(ds.attrs[key]))
                    for key in ("space", "package_version", "source_sha256", "template_sha256")
                    if key in ds.attrs
                ],
            }
        ],
    )
    return PersonReport(subject, facts, html)


def _people(ds: xr.Dataset, motor: xr.Dataset | None, seed: int) -> People:
    """Tables of everyone, without images."""
    small = _judged(ds.drop_dims([dim for dim in _LARGE if dim in ds.dims]).load())
    no_centiles = no_motor = ""
    try:
        small = normative(small)
    except (StatisticsError, MissingVariableError) as error:
        no_centiles = str(error).rstrip(".")
    if motor is None:
        try:
            motor = predict_motor(
                small, learners=["elastic_net"], n_permutations=0, n_boot=200, seed=seed
            )
        except (StatisticsError, MissingVariableError) as error:
            no_motor = f"The motor score cannot be predicted: {error}"
    return People(small, motor, no_centiles=no_centiles, no_motor=no_motor)


def _judged(ds: xr.Dataset) -> xr.Dataset:
    """Dataset that says who takes part, also before the features are computed."""
    if "included" in ds.variables:
        return ds
    try:
        included = included_people(ds)
    except MissingVariableError:  # not of an ingest: nobody is known to be left out
        return ds
    reason = np.where(included, "", _NOT_SAID)
    return ds.assign(included=("subject", included), exclusion_reason=("subject", reason))


def write_person(report: PersonReport, folder: str | os.PathLike[str]) -> Path:
    """Write the page and the facts of a person.

    Parameters
    ----------
    report
        The report.
    folder
        Where ``SUBJECT.html`` and ``SUBJECT.json`` go. What an id holds besides letters,
        digits, ``-`` and ``_`` is left out of the names, and a hash of it put in.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ConfigError
        When there is a page of that name that is no page of a person.
    """
    page = person_page(report.subject, folder)
    write_text(report.json, page.with_suffix(".json"))
    return write_text(report.html, page)


def person_page(subject: str, folder: str | os.PathLike[str]) -> Path:
    """Where the page of a person goes; refused where there is a page of something else."""
    page = Path(folder) / f"{page_name(subject)}.html"
    check_replaceable([page], "person")
    return page
