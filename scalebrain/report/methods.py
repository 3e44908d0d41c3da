"""Methods, sources, limits and provenance."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from scalebrain.graph.imported import imported_from
from scalebrain.report.content import StudyResults, finite, number, percent

__all__ = [
    "REFERENCES",
    "Provenance",
    "Reference",
    "bibtex",
    "methods_facts",
    "provenance_blocks",
]


_LAYERS = {
    "cheb": "Chebyshev filters (Defferrard 2016, Fey 2019)",
    "gcn": "first-order graph convolutions (Fey 2019)",
    "spectral": "spectral convolutions on the graph's Laplacian",
}

_PARTS = re.compile(
    r"(?P<authors>.+?)\. (?P<title>.+?)\. (?P<journal>[^.]+?)(?: (?P<year>\d{4}))?\."
)


@dataclass(frozen=True)
class Reference:
    """A source with its DOI."""

    key: str
    words: str
    doi: str


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
    ),
    Reference("nilearn", "Nilearn contributors. nilearn. Zenodo.", "10.5281/zenodo.8397156"),
    Reference(
        "Fey 2019",
        "Fey and Lenssen. Fast graph representation learning with PyTorch Geometric. arXiv 2019.",
        "10.48550/arXiv.1903.02428",
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
    ),
)


def bibtex() -> str:
    """Return the sources as BibTeX, each with its DOI."""
    entries = []
    for reference in REFERENCES:
        found = _PARTS.match(reference.words)
        if found is None:
            raise ValueError(f"{reference.key}: expected 'Authors. Title. Journal year.'")
        names = re.split(", | and ", found["authors"].removesuffix(" et al"))
        others = ["others"] if found["authors"].endswith(" et al") else []
        fields = {
            "author": " and ".join([*(f"{{{name}}}" for name in names), *others]),
            "title": f"{{{found['title']}}}",
            "journal": found["journal"],
            "year": found["year"],
            "doi": reference.doi,
        }
        lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items() if value)
        entries.append(f"@article{{{re.sub('[^A-Za-z0-9]', '', reference.key)},\n{lines}\n}}")
    return "\n\n".join(entries) + "\n"


@dataclass(frozen=True)
class Provenance:
    """A titled list of names and values; a long value is shown as it was written."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    code: str = ""


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
        ``space``, ``min_days``, ``coverage``, ``lesion_policy``, ``layer``, ``on_surface``,
        ``imported`` and ``correction`` (``""`` where unknown), and ``formulas``.
    """

    def setting(variable: str, name: str) -> Any:
        return ds[variable].attrs.get(name) if variable in ds.variables else None

    days, coverage = (
        setting("included", "min_days_post_stroke"),
        setting("brain_age_low", "coverage"),
    )
    pad = "brain_pad" if "brain_pad" in ds.variables else "brain_pad_global"
    models = (results.mixed, results.mixed_load)
    return {
        "space": str(ds.attrs.get("space", "the template space")),
        "min_days": number(days, 0) if finite(days) else "",
        "coverage": percent(coverage) if finite(coverage) else "",
        "imported": imported_from(ds),
        "correction": str(setting(pad, "age_bias_correction") or ""),
        "trained_on_simulated": str(setting(pad, "model_trained_on_simulated") or ""),
        "lesion_policy": str(setting("node_features", "lesion_policy") or ""),
        "layer": _LAYERS.get(str(setting("brain_age", "model_layer") or ""), "graph convolutions"),
        "on_surface": str(setting("node_features", "nodes") or "").startswith("surface"),
        "formulas": [
            str(model.attrs["formula"])
            for model in models
            if model is not None and model.attrs.get("formula")
        ],
    }


def provenance_blocks(ds: xr.Dataset, provenance: Mapping[str, Any]) -> list[Provenance]:
    """Turn provenance into titled lists; everything is text, nothing is interpreted.

    Parameters
    ----------
    ds
        Store, whose text attributes are listed too.
    provenance
        Scalars, nested mappings, and text of any length such as a configuration file.

    Returns
    -------
    list of Provenance
        Scalars first, then nested mappings, then long text.
    """
    rows: list[tuple[str, str]] = []
    nested: list[Provenance] = []
    code: list[Provenance] = []
    for key, value in provenance.items():
        title = _title(str(key))
        if isinstance(value, Mapping):
            if value and all(not isinstance(v, Mapping | list | tuple) for v in value.values()):
                nested.append(
                    Provenance(title, tuple((str(k), _shown(k, v, key)) for k, v in value.items()))
                )
            else:
                code.append(Provenance(title, code=_json(value)))
        elif isinstance(value, list | tuple):
            code.append(Provenance(title, code=_json(list(value))))
        elif isinstance(value, str) and "\n" in value:
            code.append(Provenance(title, code=value))
        else:
            rows.append((title, _shown(key, value, "")))
    stored = tuple(
        (str(k), str(v))
        for k, v in ds.attrs.items()
        if isinstance(v, str | int | float) and len(str(v)) <= 200
    )
    out = [Provenance("This run", tuple(rows))] if rows else []
    out += nested
    if stored:
        out.append(Provenance("Cohort store", stored))
    return out + code


def _title(key: str) -> str:
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _shown(key: Any, value: Any, parent: Any) -> str:
    seconds = any(word in str(parent) + str(key) for word in ("wall", "seconds", "time"))
    if isinstance(value, float):
        return f"{number(value, 1)} s" if seconds else f"{value:g}"
    return str(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)
