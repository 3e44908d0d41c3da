"""The report page: gathers the sections and writes one self-contained file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import ConfigError, GeometryError, check_all
from scalebrain.graph.imported import imported_from
from scalebrain.report.brainage import accuracy_section
from scalebrain.report.cohort import cohort_section, facts, people
from scalebrain.report.content import Section, StudyResults
from scalebrain.report.effectmap import effect_map_section, effect_overlays
from scalebrain.report.effects import forest_section
from scalebrain.report.lesionmap import lesion_section
from scalebrain.report.methods import bibtex, cited, methods_text
from scalebrain.report.motor import motor_section
from scalebrain.report.multiverse import multiverse_sections
from scalebrain.report.network import network_section
from scalebrain.report.niivue import Viewer, viewer_scripts
from scalebrain.report.pathmodel import sem_section
from scalebrain.report.provenance import provenance_blocks
from scalebrain.report.qualitysection import quality_section
from scalebrain.report.recovery import recovery_section
from scalebrain.report.templating import environment, script_hash, source
from scalebrain.report.volume import background_vector
from scalebrain.stats.pads import find_pad
from scalebrain.variables import validate

__all__ = [
    "StudyResults",
    "check_replaceable",
    "is_made_by",
    "render_page",
    "render_report",
    "trained_on_simulated",
    "write_report",
    "write_text",
]


def render_report(
    ds: xr.Dataset,
    *,
    results: StudyResults,
    title: str | None = None,
    background: npt.ArrayLike | None = None,
) -> str:
    """Make the report of a study as one HTML page.

    Parameters
    ----------
    ds
        Dataset of a finished store. Per-subject tables are loaded; of the images only a
        few rows.
    results
        Statistics and provenance. What is missing is named on the page with its reason.
    title
        Title of the page. Default: "Regional brain age after stroke", or "Brain age after
        stroke" where the ages are of the whole brain.
    background
        Image to draw maps on (voxel,), for instance the mean T1w of the reference people.
        By default the mean of six of them.

    Returns
    -------
    str
        HTML that needs no other file and no network. The same input gives the same text.

    Raises
    ------
    MissingVariableError
        When `ds` is not a store.
    GeometryError
        When `background` has another length than ``voxel``.
    """
    validate(ds, "group", "cohort", dims=("subject",))
    if background is None:
        gray = background_vector(ds)
    else:
        gray = np.asarray(background, dtype=np.float64)
        if gray.shape != (ds.sizes.get("voxel", 0),):
            raise GeometryError(
                f"background has shape {gray.shape}, expected ({ds.sizes.get('voxel', 0)},), one "
                "value a voxel. Pass ds['t1w'].mean('subject'), or leave it out."
            )
    table = people(ds)
    simulated = str(ds.attrs.get("simulated", "false")).lower() == "true"
    sections = [
        cohort_section(
            table, results, imported=imported_from(ds), own_ages="brain_age" in ds.variables
        ),
        quality_section(ds, table),
        lesion_section(ds, table, gray, overlays=effect_overlays(ds, results)),
        accuracy_section(ds, results),
        network_section(ds, results),
        effect_map_section(ds, results, gray),
        forest_section(results),
        sem_section(results),
        *multiverse_sections(results),
        motor_section(results),
        recovery_section(results, simulated=simulated),
    ]
    whole_brain = find_pad(ds).is_global
    if title is None:
        title = "Brain age after stroke" if whole_brain else "Regional brain age after stroke"
    methods = methods_text(ds, results)
    references = cited(methods)
    return render_page(
        "page.html.j2",
        title=title,
        whole_brain=whole_brain,
        simulated=simulated,
        trained_on_simulated=trained_on_simulated(ds),
        facts=facts(table, results),
        sections=sections,
        nav=_nav(sections),
        methods=methods,
        references=references,
        bibtex=bibtex(references),
        provenance=provenance_blocks(ds, results.provenance),
    )


def render_page(template: str, *, parts: Sequence[str] = (), **content: Any) -> str:
    """Fill a template of a page, with the style and the scripts that all pages share.

    Parameters
    ----------
    template
        Name of the template.
    parts
        Further styles (.css) and scripts (.js) among the templates.
    **content
        What it shows.

    Returns
    -------
    str
        HTML, whose policy allows these scripts alone, by their hashes.
    """
    viewers = [
        block
        for section in content.get("sections", ())
        for block in section.blocks
        if isinstance(block, Viewer)
    ]
    script, vendored = source("page.js"), ""
    if viewers:
        script += source("viewer.js").removeprefix('"use strict";\n')
        vendored = viewer_scripts()
    for name in parts:
        if name.endswith(".js"):
            script += source(name)
    styles = ["page.css", *(name for name in parts if name.endswith(".css"))]
    scripts = [script, vendored] if viewers else [script]
    return (
        environment()
        .get_template(template)
        .render(
            style="".join(source(name) for name in styles),
            script=script,
            vendored=vendored,
            viewers=viewers,
            hashes=[script_hash(text) for text in scripts],
            **content,
        )
    )


def write_report(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    results: StudyResults,
    title: str | None = None,
    background: npt.ArrayLike | None = None,
) -> Path:
    """Write the report of a study to one self-contained HTML file.

    Parameters
    ----------
    ds
        Dataset of a finished store.
    path
        File to write; it appears complete or not at all.
    results
        Statistics and provenance. What is missing is named on the page with its reason.
    title
        Title of the page. Default: "Regional brain age after stroke", or "Brain age after
        stroke" where the ages are of the whole brain.
    background
        Image to draw maps on (voxel,); by default the mean of six reference people.

    Returns
    -------
    Path
        The file.

    See Also
    --------
    render_report : The page as text.
    """
    page = render_report(ds, results=results, title=title, background=background)
    return write_text(page, path)


def write_text(words: str, path: str | os.PathLike[str]) -> Path:
    """Write a text file that appears complete or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(words, encoding="utf-8", newline="\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def is_made_by(path: Path, command: str) -> bool:
    """Tell whether a page is of a command, by the mark in its head."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return f'<meta name="generator" content="scalebrain {command}">' in file.read(2000)


def check_replaceable(paths: Iterable[Path], command: str) -> None:
    """Refuse to write pages over files that the same command has not made.

    Parameters
    ----------
    paths
        Pages that are to be written.
    command
        Name of the command.

    Raises
    ------
    ConfigError
        With every file that would be lost.
    """
    failures = [
        f"{path} was not made by 'scalebrain {command}', which would replace it. Give another "
        "folder, or move the file."
        for path in paths
        if path.is_file() and not is_made_by(path, command)
    ]
    check_all(failures, ConfigError, "Pages of something else")


def trained_on_simulated(ds: xr.Dataset) -> bool:
    """Tell whether the ages come from a model that learned from simulated people."""
    ages = [ds[n] for n in ("brain_age", "brain_age_global") if n in ds.variables]
    return any(str(a.attrs.get("model_trained_on_simulated")).lower() == "true" for a in ages)


def _nav(sections: list[Section]) -> list[tuple[str, str]]:
    short = {
        "cohort": "Cohort",
        "quality": "Quality",
        "lesions": "Lesions",
        "accuracy": "Accuracy",
        "network": "Nodes and lesions",
        "map": "Brain map",
        "forest": "Effects",
        "sem": "Path model",
        "multiverse": "Stability",
        "motor": "Motor score",
        "recovery": "Planted effects",
    }
    links = [(section.key, short.get(section.key, section.title)) for section in sections]
    return [*links, ("methods", "Methods"), ("limits", "Limits"), ("provenance", "Provenance")]
