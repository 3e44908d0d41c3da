"""The structural equation model as a path diagram, with its fit and its rivals."""

import math
import re
from collections.abc import Mapping

import numpy as np
import xarray as xr

from scalebrain.report.content import (
    Block,
    Cell,
    Column,
    Figure,
    Note,
    Section,
    StudyResults,
    Table,
    and_list,
    cell,
    confidence,
    count,
    few_groups,
    finite,
    group_words,
    interval,
    long_region,
    number,
    p_value,
    p_words,
    plural,
    text,
)
from scalebrain.report.modelhints import defined_table, hint_table
from scalebrain.report.pathdiagram import Path, causal_order, path_diagram

__all__ = ["read_paths", "sem_section"]

_LABELS = {
    "cst": "Corticospinal tract lesion load",
    "ipsi": "Ipsilesional brain-PAD",
    "contra": "Contralesional brain-PAD",
    "brain": "Brain-PAD of the whole brain",
    "motor": "Motor score",
    "age": "Age",
    "sex": "Sex",
    "icv": "Intracranial volume",
    "days_post_stroke": "Days since stroke",
    "lesion_volume": "Lesion volume",
}
#: What the result tells of a variable that its label fits; the name itself for the others.
_USUAL = {
    "cst": r"tract_load(?!.* at tract=(?!CST)).*",
    "ipsi": r"(?!.*_contralesional).*\bbrain_pad.*",
    "contra": r"(?!.*_ipsilesional).*\bbrain_pad.*",
    "brain": r"(?!.*region=).*\bbrain_pad.*",
    "motor": r"motor(_score)?",
}
_MOST_BOXES = 9


def read_paths(sem: xr.Dataset) -> list[Path]:
    """Read the regressions of a structural model; covariances and loadings are left out."""
    names = [str(path) for path in np.atleast_1d(sem["path"].values)]

    def values(name: str) -> list[float]:
        if name not in sem.variables:
            return [math.nan] * len(names)
        return [float(v) for v in np.atleast_1d(sem[name].values)]

    columns = zip(
        names,
        values("std_estimate"),
        values("std_ci_low"),
        values("std_ci_high"),
        values("p"),
        strict=True,
    )
    out = []
    for name, std, low, high, p in columns:
        outcome, sign, cause = name.partition(" ~ ")
        if sign and "~" not in cause:
            out.append(Path(outcome.strip(), cause.strip(), std, low, high, p))
    return out


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _labels_of(sem: xr.Dataset) -> dict[str, str]:
    """Labels of the variables; a side of one region is named after the region."""
    variables = sem.attrs.get("variables")
    told = dict(variables) if isinstance(variables, dict) else {}
    paths = (str(path).partition(" =~ ") for path in np.atleast_1d(sem["path"].values))
    latent = {name.strip() for name, sign, _ in paths if sign}
    out = {}
    for name in causal_order(read_paths(sem)):
        if name in latent:  # whatever an observed variable of that name would be
            out[name] = f"{name} (latent)"
            continue
        region = re.search(r"of (\w+_(?:ipsi|contra)lesional)$", str(told.get(name, "")))
        if region and name in ("ipsi", "contra"):
            words = long_region(region.group(1))
            out[name] = f"{words[:1].upper()}{words[1:]} brain-PAD"
        elif _is_usual(name, str(told.get(name, ""))):
            out[name] = _label(name)
        else:
            out[name] = f"{name} ({told[name]})"
    return out


def _is_usual(name: str, told: str) -> bool:
    """Whether a variable is what its label says; so it is where nothing is told."""
    usual = _USUAL.get(name, name)
    return name not in _LABELS or not told or re.fullmatch(usual, told, re.DOTALL) is not None


def _in_sentence(label: str) -> str:
    return label[:1].lower() + label[1:]


def sem_section(results: StudyResults) -> Section:
    """Draw the structural model and say what its fit can tell, and what it cannot."""
    title = "From damage to movement"
    sem = results.sem
    if sem is None:
        note = Note(results.why_missing("sem"), "missing")
        return Section("sem", title, "No structural equation model was fitted.", [note])
    paths = read_paths(sem)
    labels = _labels_of(sem)
    known = [path for path in paths if math.isfinite(path.std)]
    blocks: list[Block] = []
    takeaway = "The structural equation model has no regression path."
    if known:
        strong = max(known, key=lambda path: abs(path.std))
        clear = [path for path in known if path.clear]
        takeaway = (
            f"The strongest path leads from {_in_sentence(labels[strong.cause])} to "
            f"{_in_sentence(labels[strong.outcome])}: "
            f"{number(strong.std)} standard deviations for each standard deviation"
            + (
                f" ({confidence(sem)} interval {interval(strong.low, strong.high)}). "
                if finite(strong.low)
                else ". "
            )
            + f"{len(clear)} of {plural(len(known), 'path')} "
            + f"{'has' if len(clear) == 1 else 'have'} {_clear_words(known)}."
        )
        blocks.append(_diagram(sem, known, labels))
    fit = _fit_note(sem)
    if fit is not None:
        blocks.append(fit)
    if _saturated(sem):
        words = (
            "The model is saturated: it has as many paths as there are covariances, so it "
            "fits perfectly whatever the truth"
        )
        if "reversed" in _models(sem):
            words += (
                ", and so does the model with the arrow reversed. These data cannot tell which of "
                "the two comes first."
            )
        else:
            words += ", and its fit is no evidence for its arrows."
        blocks.append(Note(words, "caution"))
    if sem.attrs.get("improper"):
        words = and_list([str(name) for name in sem.attrs["improper"]])
        told = f"No population has this, so do not trust this fit: {words}."
        blocks.append(Note(told, "caution"))
    if sem.attrs.get("scale_note"):
        blocks.append(Note(str(sem.attrs["scale_note"]), "caution"))
    blocks.append(_path_table(sem, labels))
    if "std_ci_low" in sem.variables and np.isfinite(sem["std_ci_low"].values).any():
        blocks += few_groups(sem)
    blocks += _indirect_table(sem, labels)
    blocks += defined_table(sem)
    blocks += _rival_tables(sem, results, labels)
    blocks += [Note(str(words)) for words in sem.attrs.get("conclusions", [])]
    blocks += hint_table(sem)
    blocks += _variables_note(sem, labels)
    return Section("sem", title, takeaway, blocks)


def _clear_words(paths: list[Path]) -> str:
    """Say what makes a path clear: its interval, or p where there is none."""
    with_interval = [finite(path.low) and finite(path.high) for path in paths]
    if all(with_interval):
        return "an interval that excludes zero"
    if any(with_interval):
        return "an interval that excludes zero, or without an interval p below 0.05"
    return "p below 0.05"


def _models(sem: xr.Dataset) -> list[str]:
    """Names of the model and its rivals."""
    return [str(name) for name in sem["model"].values] if "model" in sem.variables else []


def _saturated(sem: xr.Dataset) -> bool:
    if "saturated" in sem.attrs:
        return bool(sem.attrs["saturated"])
    return "df" in sem.variables and float(sem["df"]) == 0


def _diagram(sem: xr.Dataset, paths: list[Path], labels: Mapping[str, str]) -> Block:
    names = causal_order(paths)
    if len(names) > _MOST_BOXES:
        return Note(
            f"The model has {len(names)} variables, too many for a legible diagram; the table "
            "lists every path.",
            "missing",
        )
    n = f", {count(sem['n'])} people" if "n" in sem.variables else ""
    intervals = any(finite(path.low) and finite(path.high) for path in paths)
    with_intervals = f" with {confidence(sem)} intervals" if intervals else ""
    alt = "Path diagram. " + "; ".join(
        f"{labels[p.cause]} to {labels[p.outcome]} {number(p.std)} ({interval(p.low, p.high)})"
        for p in paths
    )
    return Figure(
        "sem-diagram",
        path_diagram(paths, alt, labels),
        f"Standardized path coefficients{with_intervals}{n}. Solid: "
        f"{_clear_words(paths)}; dashed: not. Orange raises, blue lowers; the wider, the stronger. "
        "Arrows are what the model assumes, not what the data prove.",
    )


def _scalar(sem: xr.Dataset, name: str) -> float:
    return float(sem[name]) if name in sem.variables and not sem[name].dims else math.nan


def _fit_note(sem: xr.Dataset) -> Note | None:
    get = {name: _scalar(sem, name) for name in ("chi2", "df", "cfi", "tli", "rmsea", "srmr")}
    if not any(map(math.isfinite, get.values())):
        return None
    p = _scalar(sem, "p_chi2")
    low, high = _scalar(sem, "rmsea_low"), _scalar(sem, "rmsea_high")
    parts = [
        f"chi-squared {number(get['chi2'])} on {count(get['df'])} degrees of freedom"
        + (f" ({p_words(p)})" if finite(p) else ""),
        f"CFI {number(get['cfi'], 3)}",
        f"TLI {number(get['tli'], 3)}",
        f"RMSEA {number(get['rmsea'], 3)}"
        + (f" (90% interval {interval(low, high, 3)})" if finite(low) else ""),
        f"SRMR {number(get['srmr'], 3)}",
        f"AIC {number(_scalar(sem, 'aic'), 1)}",
        f"BIC {number(_scalar(sem, 'bic'), 1)}",
        f"n {count(_scalar(sem, 'n'))}",
    ]
    return Note("Fit: " + "; ".join(part for part in parts if "–" not in part) + ".")


def _path_table(sem: xr.Dataset, labels: Mapping[str, str]) -> Table:
    names = [str(path) for path in np.atleast_1d(sem["path"].values)]

    def at(name: str, i: int) -> float:
        return float(np.atleast_1d(sem[name].values)[i]) if name in sem.variables else math.nan

    has_pairs = "n_pairs" in sem.variables
    rows = []
    for i, name in enumerate(names):
        row = [text(_arrow_text(name, labels))]
        for value, low, high in (
            ("std_estimate", "std_ci_low", "std_ci_high"),
            ("estimate", "ci_low", "ci_high"),
        ):
            row.append(cell(_significant(at(value, i)), at(value, i)))
            shown = finite(at(low, i)) and finite(at(high, i))
            limits = f"{_significant(at(low, i))} to {_significant(at(high, i))}" if shown else "–"
            row.append(cell(limits, at(low, i)))
        row.append(cell(p_value(at("p", i)), at("p", i)))
        if has_pairs:
            row.append(cell(count(at("n_pairs", i)), at("n_pairs", i)))
        rows.append(row)
    known = "std_ci_low" in sem.variables and bool(np.isfinite(sem["std_ci_low"].values).any())
    drawn = f"whole {group_words(sem)[1]}"
    drawn = "people" if drawn == "whole people" else drawn
    intervals = f", with bootstrap intervals that resample {drawn}" if known else ""
    return Table(
        "sem-table",
        f"Paths of the model. Standardized: in standard deviations{intervals}. Raw: in the units "
        "of the variables.",
        [
            Column("Path", numeric=False),
            Column("standardized"),
            Column(f"{confidence(sem)} CI"),
            Column("raw estimate"),
            Column(f"{confidence(sem)} CI"),
            Column("raw p"),
            *([Column("n", hint="People who have both ends of the path")] if has_pairs else []),
        ],
        rows,
        folded=True,
    )


def _significant(value: float) -> str:
    """Two decimals, or three significant digits where two decimals would show nothing."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 0.1:
        return number(value)
    return number(value, min(6, 2 - math.floor(math.log10(abs(value)))))


def _arrow_text(name: str, labels: Mapping[str, str]) -> str:
    outcome, sign, cause = name.partition(" ~ ")
    return (
        f"{labels.get(cause, cause)} → {labels.get(outcome, outcome)}"
        if sign and "~" not in cause
        else name
    )


def _indirect_table(sem: xr.Dataset, labels: Mapping[str, str]) -> list[Block]:
    if "indirect" not in sem.dims or "indirect_std_estimate" not in sem.variables:
        return []
    rows: list[list[Cell]] = []
    for i, chain in enumerate(str(c) for c in sem["indirect"].values):
        value = float(sem["indirect_std_estimate"].values[i])
        low, high = (
            float(sem[f"indirect_std_ci_{end}"].values[i])
            if f"indirect_std_ci_{end}" in sem.variables
            else math.nan
            for end in ("low", "high")
        )
        rows.append(
            [
                text(
                    " → ".join(labels.get(step.strip(), step.strip()) for step in chain.split("->"))
                ),
                cell(number(value, 3), value),
                cell(interval(low, high, 3), low),
            ]
        )
    if not rows:
        return []
    columns = [
        Column("Chain", numeric=False),
        Column("standardized effect"),
        Column(f"{confidence(sem)} CI"),
    ]
    return [Table("indirect", "Indirect effects, along chains.", columns, rows, folded=True)]


def _rival_tables(sem: xr.Dataset, results: StudyResults, labels: Mapping[str, str]) -> list[Block]:
    blocks: list[Block] = []
    if "model" in sem.dims and sem.sizes["model"] > 1 and "model_aic" in sem.variables:
        columns = [("chi2", 2), ("df", 0), ("p", 3), ("cfi", 3), ("rmsea", 3), ("srmr", 3)]
        columns += [("aic", 1), ("bic", 1)]
        shown = [(k, d) for k, d in columns if f"model_{k}" in sem.variables]
        rows = []
        for i, name in enumerate(str(m) for m in sem["model"].values):
            row = [text(name)]
            for key, digits in shown:
                value = float(sem[f"model_{key}"].values[i])
                row.append(cell(p_value(value) if key == "p" else number(value, digits), value))
            rows.append(row)
        usual = ""
        if set(_models(sem)) == {"specified", "reversed", "restricted"}:
            usual = (
                ": the arrow between motor score and the contralesional side as specified, "
                "reversed, and removed where it says so"
            )
        heads = {"chi2": "chi-squared", "p": "p", "df": "df"}
        blocks.append(
            Table(
                "rivals",
                f"Rival models of the same variables{usual}. Lower AIC and BIC fit better; equal "
                "values cannot be told apart.",
                [
                    Column("Model", numeric=False),
                    *(Column(heads.get(key, key.upper())) for key, _ in shown),
                ],
                rows,
            )
        )
    if sem.sizes.get("rival_path", 0) and "rival_std_estimate" in sem.variables:
        rows = []
        for i, name in enumerate(str(path) for path in sem["rival_path"].values):
            model, _, path = name.partition(": ")
            std = float(sem["rival_std_estimate"].values[i])
            p = float(sem["rival_p"].values[i]) if "rival_p" in sem.variables else math.nan
            rows.append(
                [
                    text(model),
                    text(_arrow_text(path, labels)),
                    cell(number(std), std),
                    cell(p_value(p), p),
                ]
            )
        blocks.append(
            Table(
                "rival-paths",
                "Paths of the rival models.",
                [
                    Column("Model", numeric=False),
                    Column("Path", numeric=False),
                    Column("standardized"),
                    Column("raw p"),
                ],
                rows,
                folded=True,
            )
        )
    if not blocks:
        reason = results.missing.get("rivals", "No rival model was fitted beside this one.")
        blocks.append(Note(reason, "missing"))
    return blocks


def _variables_note(sem: xr.Dataset, labels: Mapping[str, str]) -> list[Block]:
    variables = sem.attrs.get("variables")
    parts = []
    if isinstance(variables, dict):
        parts.append(
            "Variables: "
            + "; ".join(f"{labels.get(str(k), str(k))}: {v}" for k, v in variables.items())
            + "."
        )
    parts += [
        f"{head}: {sem.attrs[name]}."
        for head, name in (
            ("Estimator", "estimator"),
            ("Bootstrap", "bootstrap"),
            ("Rows not used, of everyone in the data", "rows_dropped"),
        )
        if sem.attrs.get(name)
    ]
    return [Note(" ".join(parts), "small")] if parts else []
