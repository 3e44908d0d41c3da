"""Pages of a quality control: one a subject to look at and decide on, and an index of all."""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup

from scalebrain.cluster.tasks import map_tasks
from scalebrain.errors import (
    ConfigError,
    GeometryError,
    MissingVariableError,
    StoreError,
    check_all,
)
from scalebrain.features.inclusion import texts
from scalebrain.features.quality import quality_decisions
from scalebrain.ingestion.cohort import problems
from scalebrain.io.decisions import Decision, read_decisions
from scalebrain.io.store import open_store, rejected_subjects
from scalebrain.report.content import count, finite, number, text_values
from scalebrain.report.filenames import page_name
from scalebrain.report.page import check_replaceable, is_made_by, render_page, write_text
from scalebrain.report.quality import LIMIT, Quality, quality, warning_words
from scalebrain.report.scanmarks import scan_marks
from scalebrain.report.scanpictures import Frame, Layers, Rows, frame_of, jpeg, layers, thumbnail
from scalebrain.report.volume import background_vector
from scalebrain.variables import validate

__all__ = ["write_qc_pages"]

Facts = Mapping[str, Any]

#: Flag of a lesion mask that marks nothing.
_EMPTY = "lesion mask empty"
_THUMBNAILS = "thumbnails"
_SIDES = {"L": "left", "R": "right"}
_CUTS = 7
_TEXTS = (
    "subject",
    "cohort",
    "group",
    "sex",
    "lesion_hemisphere",
    "lesion_side",
    "exclusion_reason",
    "qc_decision",
    "qc_note",
)


@dataclass(frozen=True)
class _Shared:
    """What every page needs: rows of the store, its grid, where pages go, what they share.

    `template` (voxel,) has the gray values that masks without a scan are drawn on.
    """

    rows: Rows
    frame: Frame | None
    template: npt.NDArray[np.float64] | None
    folder: str
    content: Facts


@dataclass(frozen=True)
class _Task:
    """One page."""

    at: int
    name: str
    has_lesion: bool
    content: Facts


@dataclass(frozen=True)
class _Drawn:
    """What came out of a page: size of the thumbnail, zeros without one, and what it shows."""

    size: tuple[int, int]
    is_empty: bool = False
    on_template: bool = False


def write_qc_pages(
    store: str | Path,
    out: str | os.PathLike[str],
    *,
    subjects: Sequence[str] = (),
    decisions: str | Path | None = None,
) -> Path:
    """Write a page of each subject for a quality control, and an index with a mosaic.

    Parameters
    ----------
    store
        Path or URL of a finished store. Scans are read one by one, on Dask workers when a
        client is active; `out` has to be a folder that they see.
    out
        Folder: ``index.html``, ``SUBJECT.html`` and ``thumbnails/``. Pages of an earlier call
        are replaced, and removed when their subject is not among those of this call.
    subjects
        Labels of those to look at; everyone when empty. Outliers are those among everyone.
    decisions
        Table of decisions to begin with, as the index exports it; by default those that the
        store has.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    MissingVariableError
        If there is no such subject, or `store` is none.
    TableError
        When `decisions` is wrong.
    ConfigError
        When `out` cannot be made, or has pages of these names that are no such pages.

    Notes
    -----
    The pages load nothing from elsewhere. Decisions stay in the browser until the index exports
    them as ``decisions.tsv``, with those of subjects that are not among `subjects`. One that was
    made on another scan, or with another lesion mask, is not taken for one about this.
    """
    ds = open_store(store)
    validate(ds, "cohort", "group", dims=("subject",))
    labels = [str(label) for label in ds["subject"].values]
    chosen = _positions(labels, subjects)
    rejected = rejected_subjects(store)
    table: dict[str, Decision] = {}  # with those without a scan, for the export alone
    if decisions is not None:
        decided = quality_decisions(ds, decisions, absent=rejected)
        others = sorted(rejected - set(labels))
        sessions = [*texts(ds, "session"), *([""] * len(others))]
        table = read_decisions(decisions, [*labels, *others], sessions=sessions)
        ds = ds.drop_vars(list(decided.data_vars), errors="ignore").assign(decided.data_vars)
    folder = Path(out)
    names = _page_names([labels[at] for at in chosen])
    pages = ["index.html", *(f"{name}.html" for name in names)]
    check_replaceable([folder / page for page in pages], "qc")
    try:
        (folder / _THUMBNAILS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be made: {error.strerror}. Give another folder."
        ) from error
    found = quality(ds)
    marks = scan_marks(ds, store)
    people = [
        person | _signed(table, person["subject"]) | {"scan": marks[at]}
        for at, person in zip(chosen, _people(ds, found, chosen, names), strict=True)
    ]
    content = {
        "simulated": str(ds.attrs.get("simulated", "false")).lower() == "true",
        "trained_on_simulated": False,
        "key": hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
        "pages": hashlib.sha256("\n".join(pages).encode()).hexdigest()[:16],
        "limit": number(LIMIT, 1),
    }
    has_lesion = _flags(ds, "lesion_present")
    messages = _messages(store)
    tasks = [
        _Task(
            at,
            names[k],
            bool(has_lesion[at]),
            {
                "person": people[k],
                "place": (k + 1, len(chosen)),
                "before": names[k - 1] + ".html" if k else "",
                "after": names[k + 1] + ".html" if k + 1 < len(chosen) else "",
                "rows": _measure_rows(found, at),
                "warnings": [
                    (code, messages.get((labels[at], code)) or [warning_words(code)])
                    for code in found.codes[at]
                ],
            },
        )
        for k, at in enumerate(chosen)
    ]
    frame, template = _frame(ds, [at for at in chosen if has_lesion[at]])
    shared = _Shared(Rows.of(ds), frame, template, str(folder.resolve()), content)
    drawn = map_tasks(_write_subject, tasks, label="quality control", shared=shared)
    _remove_others(folder, set(pages))
    people = [
        _flagged(person, one) | {"size": one.size, "on_template": one.on_template}
        for person, one in zip(people, drawn, strict=True)
    ]
    index = render_page(
        "qc_index.html.j2",
        parts=("qc.css", "qc.js"),
        title="Quality control",
        people=people,
        measures=found.measures,
        order=_index_order(found, chosen),
        data=_json(
            {
                "key": content["key"],
                "pages": content["pages"],
                "people": [_light(person) for person in people],
                "others": _others(ds, chosen, table, marks),
            }
        ),
        n_rejected=len(rejected),
        **content,
    )
    return write_text(index, folder / "index.html")


def _positions(labels: Sequence[str], subjects: Sequence[str]) -> list[int]:
    """Positions of the subjects that were named, in the order of the store."""
    failures = []
    for subject in subjects:
        if subject not in labels:
            near = difflib.get_close_matches(subject, labels, n=3, cutoff=0.5)
            hint = f" Similar: {', '.join(near)}." if near else ""
            failures.append(
                f"There is no subject '{subject}' among the {len(labels)} of the store.{hint}"
            )
    check_all(failures, MissingVariableError, "Unknown subjects")
    wanted = set(subjects)
    return [at for at, label in enumerate(labels) if not wanted or label in wanted]


def _page_names(labels: Sequence[str]) -> list[str]:
    """Names of files, unlike each other where capitals do not count too."""
    seen = {"index"}
    names = []
    for label in labels:
        name = page_name(label)
        if name.casefold() in seen:
            name += "-" + hashlib.sha256(label.encode()).hexdigest()[:8]
        seen.add(name.casefold())
        names.append(name)
    return names


def _frame(
    ds: xr.Dataset, lesioned: Sequence[int]
) -> tuple[Frame | None, npt.NDArray[np.float64] | None]:
    """Grid of the images, and the template where one of those with a mask has no scan."""
    if "x" not in ds.variables or not {"t1w", "lesion_mask"} & set(ds.variables):
        return None, None
    try:
        frame = frame_of(ds)
    except (GeometryError, MissingVariableError):
        return None, None
    has_scan = np.full(ds.sizes["subject"], "t1w" in ds.variables)
    if "scan_present" in ds.variables:
        has_scan &= _flags(ds, "scan_present")
    if has_scan[list(lesioned)].all():
        return frame, None
    return frame, background_vector(ds.drop_vars("t1w", errors="ignore"))


def _signed(table: Mapping[str, Decision], subject: str) -> dict[str, str]:
    """Who decided of a subject, and when, as the table says."""
    one = table.get(subject, Decision("", ""))
    return {"rater": one.rater, "date": one.date}


def _flagged(person: dict[str, Any], drawn: _Drawn) -> dict[str, Any]:
    """Flag someone whose lesion mask marks nothing, and say what the thumbnail shows."""
    subject = person["subject"]
    if drawn.on_template:
        known = person["alt"].partition(", lesion outlined")[2]
        return person | {"alt": f"Lesion mask of {subject} on the template{known}"}
    if not drawn.is_empty:
        return person
    more = {name: [*person[name], _EMPTY] for name in ("flags", "chips")}
    return person | more | {"alt": f"Scan of {subject}"}


def _flags(ds: xr.Dataset, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Read a flag of everyone, False where the store has none."""
    if name not in ds.variables:
        return np.zeros(ds.sizes["subject"], dtype=np.bool_)
    return np.asarray(ds[name].values, dtype=np.bool_)


def _people(
    ds: xr.Dataset, found: Quality, chosen: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Collect what the index and the pages say of each subject."""

    def text(name: str) -> Any:
        n = ds.sizes["subject"]
        return text_values(ds[name]) if name in ds.variables else np.full(n, "", dtype=object)

    def numbers(name: str) -> Any:
        n = ds.sizes["subject"]
        return np.asarray(ds[name].values, float) if name in ds.variables else np.full(n, np.nan)

    words = {name: text(name) for name in _TEXTS}
    age, days = numbers("age"), numbers("days_post_stroke")
    is_bound = _flags(ds, "age_censored")
    volume = numbers("lesion_volume")
    has_lesion = _flags(ds, "lesion_present")
    out = []
    for at, name in zip(chosen, names, strict=True):
        own = {key: str(column[at]) for key, column in words.items()}
        side = own["lesion_hemisphere"] if has_lesion[at] else ""
        facts = [
            _age(float(age[at]), is_bound=bool(is_bound[at])),
            {"F": "female", "M": "male"}.get(own["sex"], "sex not known"),
            f"{count(days[at])} days after the stroke" if finite(days[at]) else "",
            _lesion(side) if has_lesion[at] else "no lesion mask",
            f"side by the table: {_SIDES.get(own['lesion_side'], own['lesion_side'])}"
            if own["lesion_side"]
            else "",
            f"not analyzed: {own['exclusion_reason']}" if own["exclusion_reason"] else "",
        ]
        z = found.z.iloc[at]
        out.append(
            {
                "subject": own["subject"],
                "page": f"{name}.html",
                "image": f"{_THUMBNAILS}/{name}.jpg",
                "alt": _alt(own["subject"], side, float(volume[at])),
                "cohort": own["cohort"],
                "group": own["group"],
                "decision": own["qc_decision"],
                "note": own["qc_note"],
                "facts": [fact for fact in facts if fact],
                "flags": [m.label for m in found.outliers[at]] + list(found.codes[at]),
                "chips": [f"{m.label} z {number(z[m.name], 1)}" for m in found.outliers[at]]
                + list(found.codes[at]),
                "worst": _plain(found.worst[at]),
                "worst_shown": number(found.worst[at], 1),
                "values": [_plain(found.values[m.name].iloc[at]) for m in found.measures],
                "shown": [number(found.values[m.name].iloc[at], m.digits) for m in found.measures],
                "far": [m in found.outliers[at] for m in found.measures],
            }
        )
    return out


def _age(age: float, *, is_bound: bool) -> str:
    """Age in words; one that is a lower bound says so."""
    if not finite(age):
        return "age not known"
    return f"{number(age, 0)} or older" if is_bound else f"{number(age, 0)} years"


def _lesion(side: str) -> str:
    """Side of a lesion that has a mask."""
    if side in ("", "unknown"):
        return "lesion: side not known"
    return _EMPTY if side == "none" else f"lesion: {_SIDES.get(side, side)}"


def _alt(subject: str, side: str, volume: float) -> str:
    """Say what a thumbnail shows; `side` is empty where there is no lesion mask."""
    if not side or side == "none":
        return f"Scan of {subject}"
    known = [] if side == "unknown" else [_SIDES.get(side, side)]
    known += [f"{number(volume, 1)} mL"] if finite(volume) else []
    return f"Scan of {subject}, lesion outlined" + (f": {', '.join(known)}" if known else "")


def _others(
    ds: xr.Dataset, chosen: Sequence[int], table: Mapping[str, Decision], marks: Sequence[str]
) -> list[dict[str, str]]:
    """Collect what was decided of those without a page, for the export to be complete."""
    absent = np.full(ds.sizes["subject"], "", dtype=object)
    names = {"subject": "subject", "decision": "qc_decision", "note": "qc_note"}
    columns = {
        key: text_values(ds[name]) if name in ds.variables else absent
        for key, name in names.items()
    }
    others = sorted(set(range(ds.sizes["subject"])) - set(chosen))
    labels = [str(label) for label in ds["subject"].values]
    held = [
        {key: str(column[at]) for key, column in columns.items()}
        | _signed(table, labels[at])
        | {"scan": marks[at]}
        for at in others
    ]
    return held + [
        {"subject": subject, "decision": one.word, "note": one.note, "scan": ""}
        | _signed(table, subject)
        for subject, one in table.items()
        if subject not in set(labels)
    ]


def _plain(value: Any) -> float | None:
    """Finite number, or None."""
    return float(value) if finite(value) else None


def _index_order(found: Quality, chosen: Sequence[int]) -> list[int]:
    """Order of the index, as positions among those chosen: outliers first."""
    place = {at: k for k, at in enumerate(chosen)}
    return [place[int(at)] for at in found.order() if int(at) in place]


def _measure_rows(found: Quality, at: int) -> list[dict[str, Any]]:
    """Measures of one subject beside those of everyone."""
    rows = []
    for measure in found.measures:
        column = found.values[measure.name].to_numpy()
        known = column[np.isfinite(column)]
        if not finite(column[at]):
            continue
        unit = f" {measure.unit}" if measure.unit else ""
        z = found.z[measure.name].iloc[at]
        rows.append(
            {
                "label": measure.label,
                "value": number(column[at], measure.digits) + unit,
                "median": number(np.median(known), measure.digits) + unit,
                "z": number(z, 1),
                "is_far": measure in found.outliers[at],
                "words": measure.words,
                "sort": {
                    "value": float(column[at]),
                    "median": float(np.median(known)),
                    "z": "" if not finite(z) else float(z),
                },
            }
        )
    return rows


def _messages(store: str | Path) -> dict[tuple[str, str], list[str]]:
    """Read what the ingest said of each subject and code."""
    out: dict[tuple[str, str], list[str]] = {}
    try:
        found = problems(store, "warnings")
    except StoreError:  # made without an ingest
        return out
    for row in found.itertuples():
        out.setdefault((str(row.subject), str(row.code)), []).append(str(row.message))
    return out


def _light(person: Facts) -> dict[str, Any]:
    """Choose what the script needs of a subject."""
    names = ("subject", "page", "cohort", "flags", "decision", "note", "rater", "date", "scan")
    return {name: person[name] for name in names}


def _json(content: Mapping[str, Any]) -> Markup:
    """JSON that cannot end its element."""
    words = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(words.replace("<", "\\u003c").replace("&", "\\u0026"))  # nosec B704 # noqa: S704


def _write_subject(task: _Task, shared: _Shared) -> _Drawn:
    """Draw a subject, and write the page and the thumbnail."""
    folder = Path(shared.folder)
    scan = shared.rows.scan(task.at, has_lesion=task.has_lesion)
    on_template = scan.gray is None and scan.lesion is not None and shared.frame is not None
    if on_template and scan.lesion is not None:
        gray = shared.template
        scan = replace(scan, gray=np.full(scan.lesion.shape, 0.5) if gray is None else gray)
    pictures: list[tuple[str, str, Layers]] = []
    size = (0, 0)
    if shared.frame is not None and scan.gray is not None:
        x, y, z = shared.frame.middle(scan.lesion)
        what = "the lesion" if scan.lesion is not None else "the brain"
        cuts = [[(2, z), (1, y), (0, x)]]
        many = [
            [(axis, float(at)) for at in shared.frame.spread(_CUTS, axis)] for axis in (2, 1, 0)
        ]
        pictures = [
            ("planes", f"Three planes through {what}", layers(shared.frame, scan, cuts)),
            ("slices", "The whole brain", layers(shared.frame, scan, many)),
        ]
        small = thumbnail(shared.frame, scan)
        (folder / _THUMBNAILS / f"{task.name}.jpg").write_bytes(jpeg(small))
        size = small.size
    else:  # one of an earlier call shows what is there no more
        (folder / _THUMBNAILS / f"{task.name}.jpg").unlink(missing_ok=True)
    drawn = _Drawn(size, scan.is_empty, on_template)
    person = _flagged(task.content["person"], drawn)
    page = render_page(
        "qc.html.j2",
        parts=("qc.css", "qc.js"),
        title=person["subject"],
        pictures=pictures,
        has_lesion=scan.lesion is not None,
        is_empty=scan.is_empty,
        on_template=on_template,
        data=_json(
            {
                "key": shared.content["key"],
                "pages": shared.content["pages"],
                "people": [_light(person)],
                "here": person["page"],
            }
        ),
        **{**task.content, "person": person},
        **shared.content,
    )
    write_text(page, folder / f"{task.name}.html")
    return drawn


def _remove_others(folder: Path, pages: set[str]) -> None:
    """Remove pages of an earlier call that are of nobody of this one, and their thumbnails."""
    for path in folder.glob("*.html"):
        if path.name not in pages and is_made_by(path, "qc"):
            path.unlink()
            (folder / _THUMBNAILS / f"{path.stem}.jpg").unlink(missing_ok=True)
