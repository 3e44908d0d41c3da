"""Brain ages of the same people under other lesion policies."""

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from scalebrain.errors import ConfigError, MissingVariableError
from scalebrain.features.lesion_policy import POLICIES, LesionPolicy, treatment_of
from scalebrain.graph.model import BrainAgeModel, brain_age, features_of

__all__ = ["ages_by_policy"]


def ages_by_policy(
    ds: xr.Dataset,
    model: BrainAgeModel | str | Path,
    *,
    policies: Sequence[LesionPolicy] | None = None,
) -> dict[str, xr.Dataset]:
    """Predict everyone's brain ages again with lesions treated in other ways.

    Parameters
    ----------
    ds
        Store with images, lesion masks and node features. Choose the people with a lesion
        first (``ds.isel(subject=...)``): others have the same ages under every policy.
    model
        Model, or the directory of one. It is the same for all policies.
    policies
        Names of policies; default all but the one that the node features of `ds` were made
        with.

    Returns
    -------
    dict
        By policy, `ds` with the ages and the node features of that policy in place of its own,
        as ``policies`` of :func:`scalebrain.multiverse` takes them. Ages are in memory: 18
        values a subject. Features are computed block by block and stay lazy.

    Raises
    ------
    MissingVariableError
        If `ds` has no node features.
    ConfigError
        If a policy is not known, or the lesions of the images were treated before.
    """
    if not isinstance(model, BrainAgeModel):
        model = BrainAgeModel.load(model)
    nodes = str(model.about["nodes"])
    treated = treatment_of(ds) if nodes == "volume" else None
    if treated is not None:
        raise ConfigError(
            f"The lesions of t1w are treated already ({treated}), and other policies need them as "
            "they were. Give the Dataset before mask_lesions or enantiomorphic."
        )
    if "node_features" not in ds:
        raise MissingVariableError(
            "Dataset: variable 'node_features' is missing. Compute the features first "
            "(scalebrain features STORE)."
        )
    own = ds["node_features"].attrs.get("lesion_policy", POLICIES[0])
    chosen = [p for p in POLICIES if p != own] if policies is None else list(policies)
    bare = ds.drop_vars("region_excluded", errors="ignore")  # of the policy of `ds`
    remade = {policy: features_of(bare, nodes, policy=policy) for policy in chosen}
    return {
        policy: data.assign(brain_age(data, model).compute().data_vars)
        for policy, data in remade.items()
    }
