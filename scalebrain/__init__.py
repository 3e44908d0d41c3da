"""Regional brain age and stroke lesion statistics for large cohorts, on Dask and xarray."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from scalebrain import accessor as _accessor  # noqa: F401  (registers ds.scalebrain)

if TYPE_CHECKING:
    from scalebrain.atlas.atlas import Atlas
    from scalebrain.atlas.files import read_atlas
    from scalebrain.atlas.regions import RegionSet
    from scalebrain.atlas.registry import available_atlases, load_atlas
    from scalebrain.atlas.tables import read_regions
    from scalebrain.cluster.client import open_client
    from scalebrain.features.inclusion import inclusion
    from scalebrain.features.laterality import to_lesional_sides
    from scalebrain.features.lesion import (
        lesion_frequency,
        lesion_load,
        lesion_volume,
        network_load,
        tract_load,
    )
    from scalebrain.features.lesion_measures import lesion_measures
    from scalebrain.features.lesion_policy import enantiomorphic, mask_lesions
    from scalebrain.features.nodes import node_features
    from scalebrain.features.parcellate_files import parcellate_files
    from scalebrain.features.parcellation import parcellate
    from scalebrain.features.surface_nodes import surface_features
    from scalebrain.graph.artifact import lesion_artifact
    from scalebrain.graph.explain import explain
    from scalebrain.graph.imported import import_ages
    from scalebrain.graph.model import BrainAgeModel, brain_age
    from scalebrain.graph.policies import ages_by_policy
    from scalebrain.graph.train import Training
    from scalebrain.harmonization.cohort import Harmonizer, harmonize
    from scalebrain.harmonization.transformer import ComBat
    from scalebrain.ingestion.cohort import ingest, problems
    from scalebrain.ingestion.upkeep import store_info, verify_store, withdraw
    from scalebrain.ingestion.validation import validate
    from scalebrain.io.store import open_store, save_store, unpack
    from scalebrain.outputs.bids import export_bids
    from scalebrain.pipeline import run_study
    from scalebrain.predict.matched import matched_pairs, nearest_matches
    from scalebrain.predict.motor import predict_motor
    from scalebrain.preprocessing.cohort import preprocess
    from scalebrain.report.person import person_report
    from scalebrain.report.qcpages import write_qc_pages
    from scalebrain.report.regionplot import plot_regions
    from scalebrain.report.summary import summary
    from scalebrain.report.viewer import view
    from scalebrain.simulate.cohort import simulate_cohort
    from scalebrain.stats.frame import table
    from scalebrain.stats.lesion_symptom import lesion_symptom_map
    from scalebrain.stats.meta import meta
    from scalebrain.stats.mixed import mixed_model
    from scalebrain.stats.multiverse import multiverse
    from scalebrain.stats.normative import normative
    from scalebrain.stats.sem import sem
    from scalebrain.stats.site_shift import site_shift
    from scalebrain.stats.site_summary import site_summary

__version__ = _version("scalebrain")

_HOME = {
    "Atlas": "atlas.atlas",
    "BrainAgeModel": "graph.model",
    "ComBat": "harmonization.transformer",
    "Harmonizer": "harmonization.cohort",
    "RegionSet": "atlas.regions",
    "Training": "graph.train",
    "ages_by_policy": "graph.policies",
    "available_atlases": "atlas.registry",
    "brain_age": "graph.model",
    "enantiomorphic": "features.lesion_policy",
    "harmonize": "harmonization.cohort",
    "explain": "graph.explain",
    "export_bids": "outputs.bids",
    "import_ages": "graph.imported",
    "inclusion": "features.inclusion",
    "ingest": "ingestion.cohort",
    "lesion_artifact": "graph.artifact",
    "lesion_frequency": "features.lesion",
    "lesion_load": "features.lesion",
    "lesion_measures": "features.lesion_measures",
    "lesion_symptom_map": "stats.lesion_symptom",
    "lesion_volume": "features.lesion",
    "network_load": "features.lesion",
    "load_atlas": "atlas.registry",
    "mask_lesions": "features.lesion_policy",
    "meta": "stats.meta",
    "mixed_model": "stats.mixed",
    "multiverse": "stats.multiverse",
    "node_features": "features.nodes",
    "normative": "stats.normative",
    "open_client": "cluster.client",
    "open_store": "io.store",
    "parcellate": "features.parcellation",
    "parcellate_files": "features.parcellate_files",
    "matched_pairs": "predict.matched",
    "nearest_matches": "predict.matched",
    "person_report": "report.person",
    "plot_regions": "report.regionplot",
    "predict_motor": "predict.motor",
    "preprocess": "preprocessing.cohort",
    "problems": "ingestion.cohort",
    "read_atlas": "atlas.files",
    "read_regions": "atlas.tables",
    "run_study": "pipeline",
    "save_store": "io.store",
    "sem": "stats.sem",
    "simulate_cohort": "simulate.cohort",
    "site_shift": "stats.site_shift",
    "site_summary": "stats.site_summary",
    "store_info": "ingestion.upkeep",
    "summary": "report.summary",
    "surface_features": "features.surface_nodes",
    "table": "stats.frame",
    "to_lesional_sides": "features.laterality",
    "tract_load": "features.lesion",
    "unpack": "io.store",
    "validate": "ingestion.validation",
    "verify_store": "ingestion.upkeep",
    "view": "report.viewer",
    "withdraw": "ingestion.upkeep",
    "write_qc_pages": "report.qcpages",
}

__all__ = [
    "Atlas",
    "BrainAgeModel",
    "ComBat",
    "Harmonizer",
    "RegionSet",
    "Training",
    "__version__",
    "ages_by_policy",
    "available_atlases",
    "brain_age",
    "enantiomorphic",
    "explain",
    "export_bids",
    "harmonize",
    "import_ages",
    "inclusion",
    "ingest",
    "lesion_artifact",
    "lesion_frequency",
    "lesion_load",
    "lesion_measures",
    "lesion_symptom_map",
    "lesion_volume",
    "load_atlas",
    "mask_lesions",
    "matched_pairs",
    "meta",
    "mixed_model",
    "multiverse",
    "nearest_matches",
    "network_load",
    "node_features",
    "normative",
    "open_client",
    "open_store",
    "parcellate",
    "parcellate_files",
    "person_report",
    "plot_regions",
    "predict_motor",
    "preprocess",
    "problems",
    "read_atlas",
    "read_regions",
    "run_study",
    "save_store",
    "sem",
    "simulate_cohort",
    "site_shift",
    "site_summary",
    "store_info",
    "summary",
    "surface_features",
    "table",
    "to_lesional_sides",
    "tract_load",
    "unpack",
    "validate",
    "verify_store",
    "view",
    "withdraw",
    "write_qc_pages",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'scalebrain' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"scalebrain.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
