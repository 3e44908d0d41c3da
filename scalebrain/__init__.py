"""Regional brain age and stroke lesion statistics for large cohorts, on Dask and xarray."""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from scalebrain import accessor as _accessor  # noqa: F401  (registers ds.scalebrain)

if TYPE_CHECKING:
    from scalebrain.cluster import open_client
    from scalebrain.features.inclusion import inclusion
    from scalebrain.features.laterality import to_lesional_sides
    from scalebrain.features.lesion import (
        lesion_frequency,
        lesion_load,
        lesion_volume,
        tract_load,
    )
    from scalebrain.features.parcellation import node_features, parcel_features
    from scalebrain.graph.model import BrainAgeModel, brain_age
    from scalebrain.ingestion.cohort import ingest, problems, validate
    from scalebrain.ingestion.upkeep import store_info, verify_store, withdraw
    from scalebrain.io.store import open_store, save_store, unpack
    from scalebrain.pipeline import run_study
    from scalebrain.predict.motor import predict_motor
    from scalebrain.simulate.cohort import simulate_cohort
    from scalebrain.stats.mixed import mixed_model
    from scalebrain.stats.sem import sem

__version__ = _version("scalebrain")

_HOME = {
    "BrainAgeModel": "graph.model",
    "brain_age": "graph.model",
    "inclusion": "features.inclusion",
    "ingest": "ingestion.cohort",
    "lesion_frequency": "features.lesion",
    "lesion_load": "features.lesion",
    "lesion_volume": "features.lesion",
    "mixed_model": "stats.mixed",
    "node_features": "features.parcellation",
    "open_client": "cluster",
    "open_store": "io.store",
    "parcel_features": "features.parcellation",
    "predict_motor": "predict.motor",
    "problems": "ingestion.cohort",
    "run_study": "pipeline",
    "save_store": "io.store",
    "sem": "stats.sem",
    "simulate_cohort": "simulate.cohort",
    "store_info": "ingestion.upkeep",
    "to_lesional_sides": "features.laterality",
    "tract_load": "features.lesion",
    "unpack": "io.store",
    "validate": "ingestion.cohort",
    "verify_store": "ingestion.upkeep",
    "withdraw": "ingestion.upkeep",
}

__all__ = [
    "BrainAgeModel",
    "__version__",
    "brain_age",
    "inclusion",
    "ingest",
    "lesion_frequency",
    "lesion_load",
    "lesion_volume",
    "mixed_model",
    "node_features",
    "open_client",
    "open_store",
    "parcel_features",
    "predict_motor",
    "problems",
    "run_study",
    "save_store",
    "sem",
    "simulate_cohort",
    "store_info",
    "to_lesional_sides",
    "tract_load",
    "unpack",
    "validate",
    "verify_store",
    "withdraw",
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
