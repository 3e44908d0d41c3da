"""What the methods text of a report says, and its sources."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import xarray as xr

from scalebrain.features.quality import count_decisions
from scalebrain.graph.imported import imported_from
from scalebrain.report.content import (
    StudyResults,
    and_list,
    count,
    finite,
    group_words,
    level,
    number,
    plural,
    random_effects,
)
from scalebrain.report.motorfigures import target_words
from scalebrain.report.templating import environment
from scalebrain.stats.pads import find_pad

__all__ = ["REFERENCES", "Reference", "bibtex", "cited", "methods_facts", "methods_text"]


_LAYERS = {
    "cheb": "Chebyshev filters (Defferrard 2016, Fey 2019)",
    "gcn": "first-order graph convolutions (Fey 2019)",
    "spectral": "spectral convolutions on the graph's Laplacian",
}

_AXES = {
    "policy": "the treatment of lesioned tissue",
    "site": "the differences of cohorts",
    "icv": "intracranial volume",
    "scale": "the scale of outcomes",
}

#: What BibTeX calls the place of a source.
_PLACE = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}

_PARTS = re.compile(
    r"(?P<authors>.+?)\. (?P<title>.+?)\. "
    r"(?P<journal>(?:[^.]|\.(?=\w))+?)(?: (?P<year>\d{4}))?\.(?!\w)"
)


@dataclass(frozen=True)
class Reference:
    """A source with its DOI, where it has one."""

    key: str
    words: str
    doi: str
    kind: Literal["article", "inproceedings", "misc"] = "article"


REFERENCES: tuple[Reference, ...] = (
    Reference(
        "Park 2026",
        "Park et al. Associations between contralesional neuroplasticity and motor impairment "
        "through deep learning-derived MRI regional brain age in chronic stroke (ENIGMA). "
        "Lancet Digital Health 2026. The reference study.",
        "10.1016/j.landig.2025.100942",
    ),
    Reference(
        "Fonov 2011",
        "Fonov et al. Unbiased average age-appropriate atlases for pediatric studies. "
        "NeuroImage 2011. The MNI template.",
        "10.1016/j.neuroimage.2010.07.033",
    ),
    Reference(
        "Tzourio-Mazoyer 2002",
        "Tzourio-Mazoyer et al. Automated anatomical labeling of activations in SPM. "
        "NeuroImage 2002. The AAL parcels.",
        "10.1006/nimg.2001.0978",
    ),
    Reference(
        "Defferrard 2016",
        "Defferrard, Bresson and Vandergheynst. Convolutional neural networks on graphs with "
        "fast localized spectral filtering. NeurIPS 2016.",
        "10.48550/arXiv.1606.09375",
        "inproceedings",
    ),
    Reference(
        "de Lange 2020",
        "de Lange and Cole. Commentary: Correction procedures in brain-age prediction. "
        "NeuroImage: Clinical 2020.",
        "10.1016/j.nicl.2020.102229",
    ),
    Reference(
        "Huber 1964",
        "Huber. Robust estimation of a location parameter. Annals of Mathematical Statistics 1964.",
        "10.1214/aoms/1177703732",
    ),
    Reference(
        "Lei 2018",
        "Lei et al. Distribution-free predictive inference for regression. Journal of the "
        "American Statistical Association 2018.",
        "10.1080/01621459.2017.1307116",
    ),
    Reference(
        "Liew 2023",
        "Liew et al. Association of brain age, lesion volume, and functional outcome in "
        "patients with stroke. Neurology 2023.",
        "10.1212/WNL.0000000000207219",
    ),
    Reference(
        "Feng 2015",
        "Feng et al. Corticospinal tract lesion load: an imaging biomarker for stroke motor "
        "outcomes. Annals of Neurology 2015.",
        "10.1002/ana.24510",
    ),
    Reference(
        "Kuznetsova 2017",
        "Kuznetsova, Brockhoff and Christensen. lmerTest package: tests in linear mixed effects "
        "models. Journal of Statistical Software 2017.",
        "10.18637/jss.v082.i13",
    ),
    Reference(
        "Benjamini 1995",
        "Benjamini and Hochberg. Controlling the false discovery rate. Journal of the Royal "
        "Statistical Society B 1995.",
        "10.1111/j.2517-6161.1995.tb02031.x",
    ),
    Reference(
        "Meshcheryakov 2021",
        "Meshcheryakov, Igolkina and Samsonova. semopy 2: a structural equation modeling "
        "package with random effects in Python. arXiv 2021.",
        "10.48550/arXiv.2106.01140",
        "misc",
    ),
    Reference(
        "Steegen 2016",
        "Steegen, Tuerlinckx, Gelman and Vanpaemel. Increasing transparency through a multiverse "
        "analysis. Perspectives on Psychological Science 2016.",
        "10.1177/1745691616658637",
    ),
    Reference(
        "Lundberg 2017",
        "Lundberg and Lee. A unified approach to interpreting model predictions. NeurIPS 2017.",
        "10.48550/arXiv.1705.07874",
        "inproceedings",
    ),
    Reference(
        "Laird 1982",
        "Laird and Ware. Random-effects models for longitudinal data. Biometrics 1982.",
        "10.2307/2529876",
    ),
    Reference(
        "Prasad 1990",
        "Prasad and Rao. The estimation of the mean squared error of small-area estimators. "
        "Journal of the American Statistical Association 1990.",
        "10.1080/01621459.1990.10475320",
    ),
    Reference(
        "scalebrain",
        "scalebrain developers. scalebrain: regional brain age and stroke lesion statistics for "
        f"large MRI cohorts. Version {version('scalebrain')}.",
        "",
        "misc",
    ),
    Reference(
        "Abraham 2014",
        "Abraham et al. Machine learning for neuroimaging with scikit-learn. Frontiers in "
        "Neuroinformatics 2014. nilearn.",
        "10.3389/fninf.2014.00014",
    ),
    Reference(
        "Fey 2019",
        "Fey and Lenssen. Fast graph representation learning with PyTorch Geometric. arXiv 2019.",
        "10.48550/arXiv.1903.02428",
        "misc",
    ),
    Reference(
        "Hoyer 2017",
        "Hoyer and Hamman. xarray: N-D labeled arrays and datasets in Python. Journal of Open "
        "Research Software 2017.",
        "10.5334/jors.148",
    ),
    Reference(
        "Rocklin 2015",
        "Rocklin. Dask: parallel computation with blocked algorithms and task scheduling. "
        "Proceedings of SciPy 2015.",
        "10.25080/Majora-7b98e3ed-013",
        "inproceedings",
    ),
)


def cited(words: str) -> list[Reference]:
    """Return the sources that a methods text names, in the order of `REFERENCES`."""
    return [reference for reference in REFERENCES if reference.key in words]


def bibtex(references: Sequence[Reference] = REFERENCES) -> str:
    """Return sources as BibTeX, each with its DOI, or its version."""
    entries = []
    for reference in references:
        found = _PARTS.match(reference.words)
        if found is None:
            raise ValueError(f"{reference.key}: expected 'Authors. Title. Journal year.'")
        names = re.split(", | and ", found["authors"].removesuffix(" et al"))
        others = ["others"] if found["authors"].endswith(" et al") else []
        where = found["journal"].removeprefix("Version ")
        fields = {
            "author": " and ".join([*(f"{{{name}}}" for name in names), *others]),
            "title": f"{{{found['title']}}}",
            _PLACE[reference.kind] if reference.doi else "version": where,
            "year": found["year"],
            "doi": reference.doi,
        }
        lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items() if value)
        key = re.sub("[^A-Za-z0-9]", "", reference.key)
        entries.append(f"@{reference.kind}{{{key},\n{lines}\n}}")
    return "\n\n".join(entries) + "\n"


def methods_text(ds: xr.Dataset, results: StudyResults) -> str:
    """Write the methods of a report as HTML: what was done for the results that are there."""
    facts = methods_facts(ds, results)
    return environment().get_template("methods.html.j2").render(methods=facts)


def methods_facts(ds: xr.Dataset, results: StudyResults) -> dict[str, Any]:
    """Collect the settings of this run that the methods text names.

    Parameters
    ----------
    ds
        Store.
    results
        Results, whose attributes carry formulas and settings.

    Returns
    -------
    dict
        ``space``, ``min_days``, ``coverage``, ``lesion_policy``, ``layer``, ``convolved``
        (folds that kept convolutions), ``on_surface``, ``imported`` and ``correction``
        (``""`` where unknown). Whether the ages are of the ``whole_brain``,
        and there are ``own_ages`` (of a model of scalebrain), ``nodes``, ``regions``,
        ``lesions`` and ``tract_loads``, and the results
        ``sem`` (with ``rivals``), ``motor``, ``shap`` and ``site_shift``; the
        ``images``, in words; the models ``mixed``, each with its ``random_effects`` and
        ``criterion`` in words and its ``formulas``; what was predicted (``motor_target``) and
        left out (``motor_groups``) or drawn (``multiverse_groups``) as a whole; how many
        specifications (``multiverse``), ``permutations`` and decisions (``judged``), ``""``
        where there are none.
    """

    def setting(variable: str, name: str) -> Any:
        return ds[variable].attrs.get(name) if variable in ds.variables else None

    days, coverage = (
        setting("included", "min_days_post_stroke"),
        setting("brain_age_low", "coverage"),
    )
    pad = "brain_pad" if "brain_pad" in ds.variables else "brain_pad_global"
    imported = imported_from(ds)
    return {
        "space": str(ds.attrs.get("space", "the template space")),
        "min_days": number(days, 0) if finite(days) else "",
        "coverage": level(coverage) if finite(coverage) else "",
        "imported": imported,
        "own_ages": "brain_age" in ds.variables and not imported,
        "lesions": any(name in ds.variables for name in ("lesion_load", "lesion_frequency")),
        "tract_loads": "tract_load" in ds.variables,
        "nodes": "node_features" in ds.variables or not imported,
        "regions": not imported or any("region" in v.dims for v in ds.data_vars.values()),
        "motor_target": _target(results.motor),
        "motor_groups": group_words(results.motor)[1] if results.motor is not None else "",
        "multiverse_groups": _drawn(results.multiverse),
        "correction": str(setting(pad, "age_bias_correction") or ""),
        "trained_on_simulated": str(setting(pad, "model_trained_on_simulated") or ""),
        "lesion_policy": str(setting("node_features", "lesion_policy") or ""),
        "layer": _LAYERS.get(str(setting("brain_age", "model_layer") or ""), "graph convolutions"),
        "convolved": str(setting("brain_age", "model_convolved_folds") or ""),
        "on_surface": str(setting("node_features", "nodes") or "").startswith("surface"),
        "mixed": _mixed(results),
        "whole_brain": find_pad(ds).is_global,
        "sem": results.sem is not None,
        "rivals": results.sem is not None and results.sem.sizes.get("model", 1) > 1,
        "images": _images(ds),
        "motor": results.motor is not None,
        "site_shift": results.site_shift is not None,
        "multiverse": _multiverse(results.multiverse),
        "permutations": _permutations(results.motor),
        "shap": results.motor is not None and "shap_importance" in results.motor,
        "judged": _judged(ds),
    }


def _mixed(results: StudyResults) -> list[dict[str, Any]]:
    """Mixed models: those that differ in their formula alone are told together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for model in (results.mixed, results.mixed_load):
        if model is not None:
            same = alike.setdefault((random_effects(model), _criterion(model)), [])
            same += [str(model.attrs["formula"])] if model.attrs.get("formula") else []
    return [
        {"random_effects": effects, "criterion": criterion, "formulas": formulas}
        for (effects, criterion), formulas in alike.items()
    ]


def _criterion(mixed: xr.Dataset) -> str:
    """Name what a mixed model was fitted by."""
    return "restricted maximum likelihood" if mixed.attrs.get("reml", 1) else "maximum likelihood"


def _images(ds: xr.Dataset) -> str:
    """Images of the store; empty where there are none."""
    names = {
        "t1w": "T1-weighted images",
        "gm": "gray matter images",
        "lesion_mask": "lesion masks",
    }
    words = and_list([words for name, words in names.items() if name in ds.variables])
    return words[:1].upper() + words[1:]


def _multiverse(result: xr.Dataset | None) -> str:
    """How many specifications of which choices; empty where there are none."""
    if result is None:
        return ""
    axes = [
        _AXES.get(str(name), str(name))
        for name, choices in result.attrs.get("axes", {}).items()
        if len(choices) > 1  # imported ages are under one policy, that of the tool
    ]
    about = f", every combination of choices about {and_list(axes)}" if axes else ""
    return plural(result.sizes["specification"], "specification") + about


def _drawn(result: xr.Dataset | None) -> str:
    """Name what the bootstrap of the specifications drew as a whole."""
    return group_words(result)[1] if result is not None else ""


def _target(motor: xr.Dataset | None) -> str:
    """Name what was predicted."""
    return "" if motor is None else target_words(motor)


def _permutations(motor: xr.Dataset | None) -> str:
    """How many permutations a motor prediction was compared with; empty where there are none."""
    n = 0 if motor is None else motor.sizes.get("permutation", 0)
    return plural(n, "permutation") if n else ""


def _judged(ds: xr.Dataset) -> str:
    """Decisions of a quality control by eye; empty where there was none."""
    if "qc_decision" not in ds.variables:
        return ""
    n = count_decisions(ds)
    judged = sum(n[word] for word in n if word)
    return (
        f"{plural(judged, 'scan')}: {count(n['exclude'])} excluded, {count(n['unsure'])} unsure "
        "and kept"
    )
