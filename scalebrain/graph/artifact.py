"""What a lesion alone does to brain age: lesions of strokes, put into healthy scans."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.errors import StatisticsError
from scalebrain.features.inclusion import flags
from scalebrain.features.lesion_policy import POLICIES
from scalebrain.features.nodes import node_features
from scalebrain.graph.model import BrainAgeModel, brain_age
from scalebrain.variables import annotate, validate

__all__ = ["artifact_summary", "lesion_artifact"]

Floats = npt.NDArray[np.float64]

_BYTES_AT_A_TIME = 2**27
#: An old lesion is filled with fluid: dark on T1w, as a part of the white reference.
_FLUID, _OWN = 0.30, 0.15


def lesion_artifact(
    ds: xr.Dataset, model: BrainAgeModel | str | Path, *, n_pairs: int = 40, seed: int = 0
) -> xr.Dataset:
    """Put lesions into healthy scans and see how far their brain ages move.

    Parameters
    ----------
    ds
        Store with healthy references and strokes, node features and images.
    model
        Model of volume nodes; references that it was trained on are predicted by the network
        that has not seen them.
    n_pairs
        Pairs of a reference and a lesion; fewer where there are fewer references.
    seed
        Seed of the pairs.

    Returns
    -------
    Dataset
        ``pad_shift (policy, pair, region)``, years: the corrected brain-PAD with the lesion less
        that without, NaN where a policy gives no age; ``region_lesioned (pair, region)``, the
        lesioned fraction of the region's nodes; ``region_touched (pair, region)``, whether a
        node of the region, the white matter around one, or the white reference is lesioned. What
        moves although it is not touched is an error. ``pair_age (pair)``.

    Raises
    ------
    StatisticsError
        When there are no pairs, or the nodes are those of a surface.

    Notes
    -----
    In the lesion T1w becomes ``0.30 W + 0.15 t1w``, with W the mean over the white reference,
    and grey matter becomes 0. Nothing else of the image changes, so no atrophy, no mass effect
    and no failed registration is in the figures.
    """
    if not isinstance(model, BrainAgeModel):
        model = BrainAgeModel.load(model)
    if model.about["nodes"] != "volume":
        raise StatisticsError("Synthetic lesions are put into T1w scans: nodes are of a surface.")
    validate(ds, "t1w", "lesion_mask", "white_reference", "node_features", "age", "group")
    validate(ds, "lesion_present")
    healthy, strokes = _people(ds)
    if not healthy.size or not strokes.size:
        raise StatisticsError("Synthetic lesions need references and strokes with lesion masks.")
    rng = np.random.default_rng([seed, 7])
    n = min(n_pairs, healthy.size)
    hosts = rng.choice(healthy, n, replace=False)
    donors = strokes[np.resize(rng.permutation(strokes.size), n)]
    white = ds["white_reference"].values.astype(bool)
    shifts, lesioned, touched = [], [], []
    size = max(1, _BYTES_AT_A_TIME // (4 * ds.sizes["voxel"]))
    for first in range(0, n, size):
        part = slice(first, first + size)
        host = ds.isel(subject=hosts[part])
        # as one block, as those with lesions are: a batch of another size has other last bits
        host = host.assign(node_features=host["node_features"].compute())
        mask = np.asarray(ds["lesion_mask"][donors[part]].values, dtype=bool)
        with_lesions = _with_lesions(host, mask, white)
        before = brain_age(host, model)["brain_pad_corrected"].values
        own = []
        for policy in POLICIES:
            found = node_features(with_lesions, policy=policy)
            found = found.sel(feature=ds["feature"].values).compute()  # others may lack grey matter
            after = brain_age(with_lesions.assign(found.data_vars), model)
            own.append(after["brain_pad_corrected"].values - before)
            if policy == "as_is":
                plain = np.asarray(host["node_features"].values)
                moved = (found["node_features"].values != plain).any(axis=-1)
                touched.append(_any_of_regions(moved, model))
                fraction = found["node_lesioned_fraction"].values
        shifts.append(np.stack(own))
        lesioned.append(_mean_of_regions(fraction, model))
    out = xr.Dataset(
        {
            "pad_shift": (("policy", "pair", "region"), np.concatenate(shifts, axis=1)),
            "region_lesioned": (("pair", "region"), np.concatenate(lesioned)),
            "region_touched": (("pair", "region"), np.concatenate(touched)),
            "pair_age": ("pair", ds["age"].values[hosts].astype(np.float64)),
        },
        coords={"policy": list(POLICIES), "region": list(model.graph.regions)},
    )
    return annotate(out)


def _people(ds: xr.Dataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find references with all nodes, and strokes with a lesion."""
    group = ds["group"].values.astype(str)
    usable = np.isfinite(ds["age"].values)
    if "included" in ds:
        usable &= flags(ds, "included")
    whole = ds["node_features"].notnull().all(("node", "feature")).values
    lesions = flags(ds, "lesion_present")
    return (
        np.flatnonzero(usable & whole & (group == "reference")),
        np.flatnonzero(usable & lesions & (group == "stroke")),
    )


def _with_lesions(
    host: xr.Dataset, mask: npt.NDArray[np.bool_], white: npt.NDArray[np.bool_]
) -> xr.Dataset:
    """Put lesions into scans."""
    t1w = np.asarray(host["t1w"].values, dtype=np.float32)
    level = np.nanmean(t1w[:, white], axis=1, keepdims=True)
    dark = (_FLUID * level + _OWN * t1w).astype(np.float32)
    new = {
        "t1w": (("subject", "voxel"), np.where(mask, dark, t1w)),
        "lesion_mask": (("subject", "voxel"), mask),
    }
    if "gm" in host:
        new["gm"] = (("subject", "voxel"), np.where(mask, np.float32(0), host["gm"].values))
    return host.assign(new)


def _any_of_regions(nodes: npt.NDArray[np.bool_], model: BrainAgeModel) -> npt.NDArray[np.bool_]:
    """Whether any node of a region is marked: (pair, region)."""
    return np.stack([nodes[:, m].any(axis=1) for m in model.graph.members], axis=1)


def _mean_of_regions(nodes: Floats, model: BrainAgeModel) -> Floats:
    """Mean over the nodes of a region: (pair, region)."""
    return np.stack([nodes[:, m].mean(axis=1) for m in model.graph.members], axis=1)


def artifact_summary(found: xr.Dataset, *, most_lesioned: float = 0.3) -> xr.Dataset:
    """Summarize shifts by policy, in regions that a lesion hits, touches, or does not reach.

    Parameters
    ----------
    found
        Result of :func:`lesion_artifact`.
    most_lesioned
        Regions that are lesioned further do not count as hit.

    Returns
    -------
    Dataset
        Over ``(policy, reach)``, reach being ``lesioned``, ``touched`` and ``untouched``:
        ``shift_mean``, ``shift_sd``, ``shift_size`` (mean of absolute shifts) and
        ``shift_largest`` (absolute) in years,
        ``shift_slope`` on age in years a year, and ``n`` pairs of scan and region.
    """
    hit = (found["region_lesioned"] > 0) & (found["region_lesioned"] <= most_lesioned)
    untouched = ~found["region_touched"].astype(bool)
    touched = ~untouched & (found["region_lesioned"] == 0)
    age = np.broadcast_to(found["pair_age"].values[:, None], hit.shape)
    reaches = {"lesioned": hit.values, "touched": touched.values, "untouched": untouched.values}
    names = ("shift_mean", "shift_sd", "shift_size", "shift_largest", "shift_slope", "n")
    rows = np.full((len(names), found.sizes["policy"], len(reaches)), np.nan)
    for i, shifts in enumerate(found["pad_shift"].values):
        for j, where in enumerate(reaches.values()):
            known = where & np.isfinite(shifts)
            values, years = shifts[known], age[known]
            rows[5, i, j] = values.size
            if values.size:
                size = np.abs(values)
                rows[:4, i, j] = values.mean(), values.std(), size.mean(), size.max()
            if values.size > 2 and np.ptp(years) > 0:
                rows[4, i, j] = np.polyfit(years, values, 1)[0]
    data = {name: (("policy", "reach"), rows[k]) for k, name in enumerate(names)}
    coords = {"policy": found["policy"].values, "reach": list(reaches)}
    return annotate(xr.Dataset(data, coords=coords))
