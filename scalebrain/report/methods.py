"""Methods, sources, limits and provenance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from scalebrain.report.content import StudyResults, finite, number, percent

__all__ = [
    "REFERENCES",
    "Provenance",
    "Reference",
    "limits",
    "methods_text",
    "provenance_blocks",
]


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
        "package with random effects in Python. 2021.",
        "10.48550/arXiv.2106.01140",
    ),
    Reference("nilearn", "Nilearn contributors. nilearn. Zenodo.", "10.5281/zenodo.8397156"),
    Reference(
        "Fey 2019",
        "Fey and Lenssen. Fast graph representation learning with PyTorch Geometric. 2019.",
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


@dataclass(frozen=True)
class Provenance:
    """A titled list of names and values; a long value is shown as it was written."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    code: str = ""


def methods_text(ds: xr.Dataset, results: StudyResults) -> list[tuple[str, str]]:
    """Describe what was computed, with the formulas and settings of this run.

    Parameters
    ----------
    ds
        Store.
    results
        Results, whose attributes carry formulas and settings.

    Returns
    -------
    list of (str, str)
        Heading and paragraph.
    """
    space = str(ds.attrs.get("space", "the template space"))
    limit = ds["included"].attrs.get("min_days_post_stroke") if "included" in ds else None
    coverage = ds["brain_age_low"].attrs.get("coverage") if "brain_age_low" in ds else None
    policy = (
        str(ds["node_features"].attrs.get("lesion_policy", "")) if "node_features" in ds else ""
    )
    out = [
        (
            "Images and regions",
            f"T1-weighted images and lesion masks in {space} (Fonov 2011) were read on one grid. Gray "
            "matter of the AAL parcels (Tzourio-Mazoyer 2002) was divided into compact nodes; the "
            "regions are nine functional networks in two hemispheres, each a set of parcels, "
            "following the reference study (Park 2026). Regions may share parcels."
            + (
                f" People with a stroke entered with a lesion of one hemisphere, more than "
                f"{number(limit, 0)} days old."
                if finite(limit)
                else ""
            ),
        ),
        (
            "Regional brain age",
            "For every region a graph network with Chebyshev filters (Defferrard 2016; Fey 2019) reads age "
            "from the nodes of that region alone. Reference people are predicted by models that "
            "did not train on them. Brain-PAD is brain age less age. Its age bias is fitted by "
            "Huber regression (Huber 1964) in held-out reference people and subtracted (de Lange "
            "2020); accuracy is reported before this correction."
            + (
                f" Intervals are split-conformal at {percent(coverage)} (Lei 2018)."
                if finite(coverage)
                else ""
            )
            + (f" Lesion policy: {policy}." if policy else ""),
        ),
        (
            "Lesions and sides",
            "Lesion load is the lesioned fraction of a region or tract; corticospinal loads are plain, "
            "weighted (Feng 2015) and largest over axial sections. Models run on left and right; "
            "results are renamed to ipsilesional and contralesional afterwards. No image is "
            "flipped.",
        ),
        ("Associations", _associations(results)),
        (
            "Structural model and prediction",
            "Paths were estimated by maximum likelihood with semopy (Meshcheryakov 2021), with the rival "
            "direction fitted beside the specified one. Motor scores were predicted with whole "
            "cohorts left out, everything learned inside the training folds.",
        ),
        (
            "Software",
            "Computed with scalebrain on nilearn, xarray (Hoyer 2017), Dask (Rocklin 2015) and PyTorch "
            "Geometric (Fey 2019); versions below.",
        ),
    ]
    return out


def _associations(results: StudyResults) -> str:
    text = (
        "A linear mixed model with a random intercept for each cohort was fitted for every "
        "region by restricted maximum likelihood, with Satterthwaite degrees of freedom "
        "(Kuznetsova 2017), after the precedent of Liew 2023. Raw p values and Benjamini-Hochberg "
        "q values over the regions (Benjamini 1995) are both given."
    )
    for name in ("mixed", "mixed_load"):
        result: xr.Dataset | None = getattr(results, name)
        if result is not None and result.attrs.get("formula"):
            text += f" Formula: {result.attrs['formula']}."
    return text


def limits(simulated: bool) -> list[str]:
    """List what a reader must not conclude."""
    out = [
        "Research use only. Nothing here is a diagnosis, a prognosis or advice for the care of a "
        "person, and nothing here has been evaluated as a medical device.",
        "A brain-PAD depends on the scanner, the processing and the people the model learned from. "
        "It is an estimate with an interval, not a measured quantity, and means little for a "
        "person outside the ages and scanners of training.",
        "Lesions disturb brain-age estimates by themselves. An association of lesion size with "
        "brain-PAD can partly be this disturbance.",
        "The designs are cross-sectional: arrows in the path diagram are assumptions.",
    ]
    if simulated:
        out.insert(
            1,
            "The people on this page do not exist. Simulated data can show that the pipeline "
            "runs, how accurate it is under known conditions, and whether planted effects come "
            "back. They cannot show that an effect exists in people, and how well the model "
            "would do on real scans remains to be measured on real scans.",
        )
    return out


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
