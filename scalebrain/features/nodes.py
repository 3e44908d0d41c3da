"""Features of the nodes: what the network reads."""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.atlas import packed, unpacked
from scalebrain.errors import ConfigError, DataWarning, GeometryError
from scalebrain.features.lesion import check_masks
from scalebrain.features.lesion_policy import (
    LesionPolicy,
    Mirror,
    check_policy,
    fill_rows,
    mirror_of,
    treatment_of,
)
from scalebrain.features.parcellation_numba_fns import (
    gather_means,
    segment_counts,
    segment_moments,
    tissue_means,
)
from scalebrain.features.rows import over_rows
from scalebrain.features.segments import contiguous_runs, store_grid
from scalebrain.variables import FEATURES, annotate, validate

__all__ = ["MAX_LESIONED", "node_features"]

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]

_CONTRAST_MM = 10.0
#: A node, or a region, of which a larger part is lesioned has no features of its own.
MAX_LESIONED = 0.5
#: Features that need grey-matter probabilities.
_OF_GREY = ("gm_mean", "gm_contrast")


@dataclass(frozen=True, eq=False)
class _Nodes:
    """What the features of the nodes need.

    Parameters
    ----------
    starts, stops
        (node,) first and last-plus-one voxel.
    voxels, offsets
        White voxels near every node, as one list with offsets.
    white
        Voxels of the white reference.
    policy
        Lesion policy.
    mirror
        Of the enantiomorphic policy.
    names
        Names of the features.
    """

    starts: Ints
    stops: Ints
    voxels: Ints
    offsets: Ints
    white: Ints
    policy: LesionPolicy
    mirror: Mirror | None
    names: tuple[str, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Pack the long lists: they go to every worker."""
        state = dict(self.__dict__)
        return state | {k: packed(state[k]) for k in ("voxels", "white")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpack them."""
        self.__dict__.update(state | {k: unpacked(state[k]) for k in ("voxels", "white")})


def node_features(ds: xr.Dataset, *, policy: LesionPolicy = "mask_nodes") -> xr.Dataset:
    """Features of every node.

    Parameters
    ----------
    ds
        Store with ``t1w`` (and ``gm``, ``lesion_mask``) over ``(subject, voxel)``.
    policy
        ``mask_nodes`` leaves lesioned voxels out of every mean, and a node of which more
        than half is lesioned, or all the white matter near it, is missing; ``exclude_region``
        does the same, and makes the ages of a region missing of whose nodes more than half is
        lesioned (:func:`~scalebrain.brain_age`); ``enantiomorphic`` first replaces lesioned
        voxels by the mirrored ones of the same image, and leaves out those that it cannot
        replace; ``as_is`` ignores the lesion mask.

    Returns
    -------
    Dataset
        ``node_features (subject, node, feature)``, NaN where missing, and
        ``node_lesioned_fraction (subject, node)``, of the mask whatever the policy; lazy.

    Raises
    ------
    MissingVariableError
        When `ds` has no images, or lesion masks that are not bool.
    ConfigError
        When the policy is not known, would leave out what
        :func:`~scalebrain.enantiomorphic` has filled, or is ``as_is`` where
        :func:`~scalebrain.mask_lesions` has taken the lesions out.
    GeometryError
        When the grid has no mirror image and the policy needs one, or is so coarse that no voxel
        is white matter.

    Warns
    -----
    DataWarning
        When nodes have no voxel on the grid of the store, and so no features.

    Notes
    -----
    With W the mean of T1w over the eroded white matter of the template, G a node's mean
    and w the mean of white matter within 10 mm of its centroid:
    ``t1w_mean = G / W``, ``t1w_sd`` the SD over the node divided by W, and
    ``contrast = (w - G) / ((w + G) / 2)``. When the store has grey-matter probabilities p,
    ``gm_mean`` is their mean, and ``gm_contrast`` is ``contrast`` with the mean weighted by
    ``(p + 0.01)^4`` in place of G: that of voxels which are grey matter nearly alone. A thinner
    cortex, with more of other tissues in a node, changes ``contrast`` but hardly ``gm_contrast``.

    References
    ----------
    Nachev et al. 2008, doi:10.1016/j.neuroimage.2007.10.002 (enantiomorphic)
    """
    validate(ds, "t1w", "node_label", "white_reference", "node_x", "node_y", "node_z")
    check_policy(policy)
    _check_treatment(ds, policy)
    if "lesion_mask" in ds:
        check_masks(ds)
    starts, stops = contiguous_runs(ds["node_label"], np.arange(ds.sizes["node"]))
    _check_grid(ds, int((stops == starts).sum()))
    grey = [ds["gm"]] if _has_gm(ds) else []
    if grey:
        validate(ds, "gm")
    names = tuple(name for name in FEATURES if name not in _OF_GREY or grey)
    nodes = _Nodes(
        starts,
        stops,
        *_white_neighbors(ds),
        np.flatnonzero(ds["white_reference"].values).astype(np.int64),
        policy,
        mirror_of(ds) if policy == "enantiomorphic" and "lesion_mask" in ds else None,
        names,
    )
    lesions = [ds["lesion_mask"]] if "lesion_mask" in ds else []
    result = over_rows(
        _features_of_rows if lesions else _features_without_lesions,
        ds["t1w"],
        *lesions,
        *grey,
        shared=nodes,
        dims={"node": starts.size, "feature": len(names)},
    )
    # of the masks alone: they are read in a moment, and no task has to take a result apart
    fraction = (
        over_rows(
            _lesioned_of_rows,
            ds["lesion_mask"],
            shared=(starts, stops),
            dims={"node": starts.size},
        )
        if lesions
        else xr.zeros_like(result.isel(feature=0))
    )
    out = xr.Dataset(
        {"node_features": result, "node_lesioned_fraction": fraction},
        coords={"feature": list(names)},
    )
    filled = policy == "as_is" and treatment_of(ds) == "enantiomorphic"  # before
    out["node_features"].attrs["lesion_policy"] = "enantiomorphic" if filled else policy
    if "nodes_sha256" in ds.attrs:
        out["node_features"].attrs["nodes_sha256"] = ds.attrs["nodes_sha256"]
    return annotate(out)


def _check_treatment(ds: xr.Dataset, policy: LesionPolicy) -> None:
    """Refuse a policy that the images no longer allow."""
    if treatment_of(ds) == "mask_nodes" and policy == "as_is":
        raise ConfigError(
            "The lesions of t1w are taken out already (mask_lesions), and policy 'as_is' needs "
            "the images as they were. Give the Dataset before mask_lesions, or "
            "policy='mask_nodes'."
        )
    # a mask does not say which of its voxels were filled
    if treatment_of(ds) == "enantiomorphic" and policy in ("mask_nodes", "exclude_region"):
        raise ConfigError(
            f"The lesions of t1w are filled already (enantiomorphic), and policy '{policy}' would "
            "leave the filled voxels out. Give policy='enantiomorphic', which has the same result "
            "on images as they are."
        )


def _check_grid(ds: xr.Dataset, n_empty: int) -> None:
    """Refuse a grid without white matter, and tell of nodes without a voxel."""
    if not ds["white_reference"].values.any():
        raise GeometryError(
            f"No voxel of {store_grid(ds).spacing} lies in the white matter of the template, which "
            "intensities are divided by. Ingest at 4 mm or finer."
        )
    if n_empty:
        warnings.warn(
            f"{n_empty} of {ds.sizes['node']} nodes have no voxel on this grid of "
            f"{store_grid(ds).spacing}, and so no features: what is said of their regions rests on "
            "the others. Ingest at 4 mm or finer.",
            DataWarning,
            stacklevel=3,
        )


def _has_gm(ds: xr.Dataset) -> bool:
    """Whether everyone with a scan has grey-matter probabilities."""
    if "gm" not in ds or "gm_present" not in ds:
        return "gm" in ds
    without = int((ds["scan_present"] & ~ds["gm_present"]).sum())
    if without:
        logger.warning("%d scans have no grey-matter probabilities: T1w features alone", without)
    return not without


def _white_neighbors(ds: xr.Dataset) -> tuple[Ints, Ints]:
    """White voxels near every node, as one list with offsets.

    White matter within 10 mm of the node's centroid; where there is none, within 4 mm
    beyond the nearest.
    """
    from scipy.spatial import cKDTree

    white = np.flatnonzero(ds["white_reference"].values)
    tree = cKDTree(np.stack([ds[a].values[white] for a in "xyz"], axis=1).astype(np.float64))
    centers = np.stack([ds[f"node_{a}"].values for a in "xyz"], axis=1).astype(np.float64)
    nearest = tree.query(centers)[0]
    lists = tree.query_ball_point(centers, np.maximum(_CONTRAST_MM, nearest + 4.0))
    voxels = np.concatenate([white[np.sort(np.asarray(one, dtype=np.intp))] for one in lists])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
    return voxels.astype(np.int64), offsets.astype(np.int64)


def _features_without_lesions(
    nodes: _Nodes, t1w: npt.NDArray[np.float32], *gm: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Features where nobody has a lesion mask."""
    return _features_of_rows(nodes, t1w, np.zeros(t1w.shape, dtype=bool), *gm)


def _features_of_rows(
    nodes: _Nodes,
    t1w: npt.NDArray[np.float32],
    lesion: npt.NDArray[np.bool_],
    *gm: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Features (row, node, feature)."""
    n_nodes = nodes.starts.size
    size = np.maximum(nodes.stops - nodes.starts, 1)
    rows, left_out = _treated(nodes, np.asarray(t1w, dtype=np.float32), lesion)
    out = np.full((len(rows), n_nodes, len(nodes.names)), np.nan)
    moments = np.empty((len(rows), n_nodes, 3))
    reference = np.empty((len(rows), 1))
    local = np.empty((len(rows), n_nodes))
    whole = np.array([0, nodes.white.size], dtype=np.int64)
    gather_means(rows, left_out, nodes.white, whole, reference)
    gather_means(rows, left_out, nodes.voxels, nodes.offsets, local)
    segment_moments(rows, left_out, nodes.starts, nodes.stops, moments)
    count, mean, squares = moments[..., 0], moments[..., 1], moments[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        out[..., nodes.names.index("t1w_mean")] = mean / reference
        out[..., nodes.names.index("t1w_sd")] = np.sqrt(squares / count) / reference
        out[..., nodes.names.index("contrast")] = _contrast(local, mean)
    for grey in gm:
        treated, without = _treated(nodes, np.asarray(grey, dtype=np.float32), lesion)
        segment_moments(treated, without, nodes.starts, nodes.stops, moments)
        out[..., nodes.names.index("gm_mean")] = moments[..., 1]
        own = np.empty((len(rows), n_nodes))
        tissue_means(rows, treated, left_out | without, nodes.starts, nodes.stops, own)
        out[..., nodes.names.index("gm_contrast")] = _contrast(local, own)
    missing = ~np.isfinite(out).all(axis=-1)
    gone = np.zeros((len(rows), n_nodes), dtype=np.int64)
    segment_counts(left_out, nodes.starts, nodes.stops, gone)
    missing |= gone / size > MAX_LESIONED
    out[missing] = np.nan
    return out


def _lesioned_of_rows(
    bounds: tuple[Ints, Ints], lesion: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Lesioned fraction (row, node)."""
    starts, stops = bounds
    hit = np.zeros((len(lesion), starts.size), dtype=np.int64)
    segment_counts(lesion, starts, stops, hit)
    return np.asarray(hit / np.maximum(stops - starts, 1))


def _contrast(white: npt.NDArray[np.float64], grey: npt.NDArray[np.float64]) -> Any:
    """Contrast of two intensities; NaN where one is missing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (white - grey) / (0.5 * (white + grey))


def _treated(
    nodes: _Nodes, values: npt.NDArray[np.float32], lesion: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Image after the lesion policy, and which voxels do not count."""
    if nodes.policy == "as_is" or not lesion.any():
        return values, np.zeros(lesion.shape, dtype=bool)
    if nodes.mirror is not None:
        return fill_rows(nodes.mirror, values, lesion)
    return values, lesion
