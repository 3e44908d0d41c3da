"""Find the scans of a BIDS derivatives tree and read its participants table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from scalebrain.errors import TableError, check_all

__all__ = ["Cohort", "Scan", "find_cohort"]

_SUBJECT = re.compile(r"sub-[A-Za-z0-9]{1,64}")
_LESION_ENDINGS = (
    "label-L_mask",
    "label-lesion_mask",
    "desc-lesion_mask",
    "desc-T1lesion_mask",
    "label-lesion_roi",
)
_MISSING = ("n/a", "", "NaN", "nan", "NA", "N/A")
_SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}
_NUMBERS = ("age", "days_post_stroke", "icv", "motor_score")


@dataclass(frozen=True)
class Scan:
    """Files of one subject.

    Parameters
    ----------
    subject
        ``sub-<label>``.
    t1w, gm, lesion
        Paths, or None when there is no such file.
    """

    subject: str
    t1w: Path | None
    gm: Path | None
    lesion: Path | None


@dataclass(frozen=True)
class Cohort:
    """A BIDS derivatives tree.

    Parameters
    ----------
    root
        Folder of the tree.
    scans
        One entry a row of participants.tsv, in its order.
    participants
        Table indexed by subject, with age, sex, cohort, group, days_post_stroke, icv and
        motor_score; NaN or empty text where missing.
    description
        Content of dataset_description.json.
    """

    root: Path
    scans: tuple[Scan, ...]
    participants: pd.DataFrame
    description: Mapping[str, object]


def find_cohort(bids_dir: str | Path, *, space: str) -> Cohort:
    """Find every scan of a BIDS derivatives tree and read its participants.tsv.

    Parameters
    ----------
    bids_dir
        Folder with participants.tsv and one ``sub-*`` folder a subject.
    space
        Value of the ``space`` entity that the images have to carry.

    Returns
    -------
    Cohort
        Scans and participants.

    Raises
    ------
    TableError
        Listing everything that is missing, duplicated or not readable.
    """
    import json

    root = Path(bids_dir)
    if not root.is_dir():
        raise TableError(f"{root}: no such folder. Give the root of a BIDS derivatives tree.")
    path = root / "participants.tsv"
    if not path.is_file():
        raise TableError(
            f"{path}: missing. Write one row a subject with participant_id, age, sex, cohort."
        )
    table = _read_participants(path)
    description_path = root / "dataset_description.json"
    description: Mapping[str, object] = {}
    if description_path.is_file():
        try:
            description = json.loads(description_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TableError(f"{description_path}: not valid JSON: {error}.") from error
    failures: list[str] = []
    folders = {p.name for p in root.glob("sub-*") if p.is_dir()}
    for extra in sorted(folders - set(table.index)):
        failures.append(f"{path}: no row for {extra}, which has a folder. Add it, or move it out.")
    scans = []
    for subject in table.index:
        try:
            scans.append(_find_scan(root, str(subject), space))
        except TableError as error:
            failures.append(str(error))
    if not failures and not any(scan.t1w for scan in scans):
        failures.append(
            f"{root}: no T1w image. Expected files such as "
            f"sub-01/anat/sub-01_space-{space}_desc-preproc_T1w.nii.gz."
        )
    check_all(failures, TableError, f"{root}: the tree is not usable")
    lesioned = {scan.subject for scan in scans if scan.lesion is not None}
    if "group" not in table:
        table["group"] = ["stroke" if s in lesioned else "reference" for s in table.index]
    return Cohort(root, tuple(scans), table, description)


def _read_participants(path: Path) -> pd.DataFrame:
    """Read, check and type the participants table."""
    try:
        raw = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TableError(f"{path}: not a tab-separated UTF-8 table: {error}.") from error
    columns = [name for name in ("participant_id", "age") if name not in raw]
    if columns or raw.empty:
        raise TableError(
            f"{path}: {'no row' if raw.empty else 'column ' + ', '.join(columns) + ' missing'}. "
            "Expected participant_id, age (years), sex, cohort."
        )
    failures: list[str] = []
    ids = [i if i.startswith("sub-") else f"sub-{i}" for i in raw["participant_id"].str.strip()]
    rows: dict[str, list[int]] = {}
    for row, i in enumerate(ids):
        rows.setdefault(i.lower(), []).append(row)
    for same in rows.values():
        if len(same) > 1:
            lines = ", ".join(f"{raw['participant_id'][r]!r} in line {r + 2}" for r in same)
            failures.append(f"{path}: one subject in several rows: {lines}. Keep one.")
    failures += [
        f"{path}: participant_id {i!r} in line {r + 2} is not a BIDS label (letters and digits)."
        for r, i in enumerate(ids)
        if not _SUBJECT.fullmatch(i)
    ]
    table = pd.DataFrame(index=pd.Index(ids, name="subject"))
    for name in _NUMBERS:
        text = raw[name].str.strip() if name in raw else pd.Series([""] * len(raw))
        values = []
        for subject, value in zip(ids, text, strict=True):
            number, problem = _number(name, value)
            values.append(number)
            if problem:
                failures.append(f"{path}: {subject}: {problem}")
        table[name] = values
    sex = raw["sex"].str.strip() if "sex" in raw else pd.Series([""] * len(raw))
    coded = []
    for subject, value in zip(ids, sex, strict=True):
        if value not in _MISSING and value.lower() not in _SEX:
            failures.append(f"{path}: {subject}: sex {value!r}; write F or M.")
        coded.append(_SEX.get(value.lower(), ""))
    table["sex"] = coded
    cohort = next((c for c in ("cohort", "site") if c in raw), None)
    name = path.parent.resolve().name
    table["cohort"] = raw[cohort].str.strip().tolist() if cohort else [name] * len(raw)
    for subject, value in zip(ids, table["cohort"], strict=True):
        if value in _MISSING:
            failures.append(f"{path}: {subject}: cohort is missing. Fill it in.")
    if "group" in raw:
        table["group"] = raw["group"].str.strip().str.lower().tolist()
        for subject, value in zip(ids, table["group"], strict=True):
            if value not in ("reference", "stroke"):
                failures.append(f"{path}: {subject}: group {value!r}; write reference or stroke.")
    check_all(failures, TableError, f"{path}: the table is not usable")
    return table


def _number(name: str, text: str) -> tuple[float, str]:
    """Parse one cell; a message when it is not usable."""
    if text in _MISSING:
        if name == "age":
            return float("nan"), "age is missing. Fill it in, or take the row and its folder out."
        return float("nan"), ""
    try:
        value = float(text)
    except ValueError:
        hint = " A decimal comma? Write a point." if re.fullmatch(r"\d+,\d+", text) else ""
        return float("nan"), f"{name} {text!r} is not a number.{hint}"
    low, high = {"age": (0, 120), "motor_score": (0, 1), "icv": (500, 3000)}.get(name, (0, 1e6))
    if not low <= value <= high:
        hint = ""
        if name == "age":
            hint = " In days? Divide by 365.25." if value > 1500 else " In months? Divide by 12."
        if name == "icv":
            hint = " In mm3? Divide by 1000." if value > 1e5 else ""
        return float("nan"), f"{name} {text} is outside {low}-{high}.{hint}"
    return value, ""


def _find_scan(root: Path, subject: str, space: str) -> Scan:
    """Files of one subject, exactly one of a kind."""
    folder = root / subject
    resolved = root.resolve()
    images = sorted(p for p in folder.rglob("*") if p.name.endswith((".nii", ".nii.gz")))
    for path in images:
        if not path.resolve().is_relative_to(resolved):
            raise TableError(f"{path}: a link that leaves the tree. Copy the file into it.")
    stems = {path: path.name.removesuffix(".gz").removesuffix(".nii") for path in images}
    here = {path: stem for path, stem in stems.items() if f"_space-{space}_" in stem}

    def one(kind: str, endings: tuple[str, ...]) -> Path | None:
        found = [path for path, stem in here.items() if stem.endswith(endings)]
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in found)
            raise TableError(f"{subject}: {len(found)} {kind} images: {names}. Keep one of them.")
        return found[0] if found else None

    t1w = one("T1w", ("_T1w",))
    if t1w is None and any(stem.endswith("_T1w") for stem in stems.values()):
        other = next(str(p.relative_to(root)) for p, s in stems.items() if s.endswith("_T1w"))
        raise TableError(
            f"{subject}: {other} is not in space-{space}. Normalize it to that space first."
        )
    return Scan(
        subject,
        t1w,
        one("grey-matter", ("_label-GM_probseg",)),
        one("lesion", tuple(f"_{ending}" for ending in _LESION_ENDINGS)),
    )
