"""The 7 and 17 cortical networks of Yeo et al. 2011, each in two hemispheres.

nilearn downloads them to its data folder when they are first asked for. That the image is the
published one, and not mirrored, is proved by points in every network and by the sizes of its
halves.
"""

import numpy as np
import numpy.typing as npt

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.files import read_labels
from scalebrain.atlas.space import Grid
from scalebrain.errors import ImageError, LateralityError

__all__ = ["NETWORKS_7", "NETWORKS_17", "yeo_7", "yeo_17"]

#: Names of the seven networks, in the order of their labels 1 to 7.
NETWORKS_7 = (
    "Visual",
    "Somatomotor",
    "DorsalAttention",
    "VentralAttention",
    "Limbic",
    "Frontoparietal",
    "Default",
)
#: Names of the seventeen networks, in the order of their labels 1 to 17.
NETWORKS_17 = (
    "VisualCentral",
    "VisualPeripheral",
    "SomatomotorA",
    "SomatomotorB",
    "DorsalAttentionA",
    "DorsalAttentionB",
    "VentralAttentionA",
    "VentralAttentionB",
    "LimbicA",
    "LimbicB",
    "ControlC",
    "ControlA",
    "ControlB",
    "TemporalParietal",
    "DefaultC",
    "DefaultA",
    "DefaultB",
)

_REFERENCE = "Yeo et al. 2011, doi:10.1152/jn.00338.2011"
# Where nilearn looks, below its data folder.
_FOLDER = "yeo_2011/Yeo_JNeurophysiol11_MNI152"
_URL = "https://surfer.nmr.mgh.harvard.edu/fswiki/CorticalParcellation_Yeo2011"

# A point (mm) in the middle of one part of each network, left and right, by label: the
# published centers of connected parts that are compact and large.
_ANCHORS_7 = (
    ((-10, -80, -3), (19, -77, -7)),
    ((-42, -16, 49), (45, -13, 44)),
    ((-27, -60, 47), (29, -60, 51)),
    ((-5, 4, 40), (5, 8, 41)),
    ((-34, -3, -37), (36, -3, -38)),
    ((-41, 35, 19), (41, 35, 24)),
    ((-6, -53, 30), (7, -53, 28)),
)
_ANCHORS_17 = (
    ((-33, -89, -6), (35, -86, -9)),
    ((-8, -82, 28), (11, -79, 29)),
    ((-21, -27, 68), (23, -23, 70)),
    ((-51, -21, 7), (54, -15, 6)),
    ((-21, -69, 53), (24, -65, 54)),
    ((-26, -6, 55), (27, -5, 57)),
    ((-59, -31, 26), (60, -27, 26)),
    ((-32, 44, 28), (32, 46, 28)),
    ((-34, -3, -37), (36, -3, -38)),
    ((-11, 37, -20), (12, 36, -21)),
    ((-6, -26, 28), (7, -24, 28)),
    ((-38, -49, 44), (39, -48, 44)),
    ((-49, -53, 51), (53, -51, 48)),
    ((-58, -41, 9), (55, -33, 5)),
    ((-26, -32, -19), (27, -28, -20)),
    ((-7, 51, 4), (8, 49, 5)),
    ((-8, 50, 40), (10, 52, 40)),
)
_RADIUS_MM = 8.0
_AGREEING = 0.75


def yeo_7() -> Atlas:
    """Yeo-7: the 7 cortical networks of Yeo et al. 2011, left and right; nilearn downloads them.

    Returns
    -------
    Atlas
        Labels at 1 mm: network k is 2k - 1 at x < 0 and 2k at x > 0. What lies at x = 0 mm
        belongs to neither.

    Raises
    ------
    ImageError
        When they can neither be found nor downloaded, or the image is another one.
    LateralityError
        When the image is mirrored.

    Notes
    -----
    The image is that of nilearn's ``thickness="thick"``, which covers the whole width of the
    cortex ("liberal mask").

    References
    ----------
    Yeo et al. 2011, doi:10.1152/jn.00338.2011
    """
    return _split("yeo-7", NETWORKS_7, _ANCHORS_7, left=7, right=6)


def yeo_17() -> Atlas:
    """Yeo-17: the 17 cortical networks of Yeo et al. 2011, left and right; downloaded likewise.

    Returns
    -------
    Atlas
        Labels at 1 mm: network k is 2k - 1 at x < 0 and 2k at x > 0. What lies at x = 0 mm
        belongs to neither.

    Raises
    ------
    ImageError
        When they can neither be found nor downloaded, or the image is another one.
    LateralityError
        When the image is mirrored.

    Notes
    -----
    Names as published with the code of the authors; "Control" is the frontoparietal network
    of the seven. The image is that of nilearn's ``thickness="thick"``.

    References
    ----------
    Yeo et al. 2011, doi:10.1152/jn.00338.2011
    """
    return _split("yeo-17", NETWORKS_17, _ANCHORS_17, left=17, right=13)


def _split(
    name: str,
    networks: tuple[str, ...],
    anchors: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...],
    *,
    left: int,
    right: int,
) -> Atlas:
    """Divide networks at x = 0; `left` is larger on the left, `right` on the right."""
    path = _fetched(len(networks))
    network, grid = read_labels(path)
    found = np.unique(network)
    if not np.array_equal(found, np.arange(len(networks) + 1)):
        raise ImageError(
            f"{path}: labels {_listed(found)}, expected 0 to {len(networks)}. It is another "
            "image: delete its folder, and load the atlas again."
        )
    matches = [
        _label_near(network, grid, point) == label
        for label, points in enumerate(anchors, start=1)
        for point in points
    ]
    if sum(matches) < _AGREEING * len(matches):
        raise ImageError(
            f"{path}: only {sum(matches)} of {len(matches)} points lie in the network that they "
            "belong to. Its networks are in another order, or it is another image: delete its "
            "folder, and load the atlas again."
        )
    flat = np.flatnonzero(network)
    x = np.round(grid.coordinates(flat)[:, 0], 6)
    labels = np.zeros(grid.shape, dtype=np.int32)
    labels.ravel()[flat] = np.where(x == 0, 0, 2 * network.ravel()[flat] - (x < 0))
    _check_asymmetry(path, labels, left, right, networks)
    regions = tuple(f"{n}_{side}" for n in networks for side in ("L", "R"))
    return Atlas(
        name,
        grid,
        regions,
        tuple(range(1, len(regions) + 1)),
        labels=labels,
        space="MNI152NLin6Asym",
        reference=_REFERENCE,
    )


def _fetched(n_networks: int) -> str:
    """Path of the image, downloaded when it is not there yet."""
    from nilearn import datasets

    try:
        files = datasets.fetch_atlas_yeo_2011(n_networks=n_networks, thickness="thick", verbose=0)
        return str(files["maps"])
    except Exception as error:
        folder = f"{datasets.get_data_dirs()[0]}/{_FOLDER}"
        why = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"The {n_networks} networks of Yeo et al. 2011 could not be downloaded by nilearn: "
            f"{why}. Where there is no internet, download "
            f"Yeo_JNeurophysiol11_MNI152.zip elsewhere (see {_URL}), and unpack it so that its "
            f"files lie in {folder}; the environment variable NILEARN_DATA names another folder "
            "than nilearn's own."
        ) from error


def _label_near(network: npt.NDArray[np.int32], grid: Grid, point: tuple[int, int, int]) -> int:
    """Most frequent label around a point, 0 when there is none."""
    center = np.linalg.inv(grid.matrix) @ [*point, 1.0]
    reach = _RADIUS_MM / np.linalg.norm(grid.matrix[:3, :3], axis=0)
    low = np.maximum(np.ceil(center[:3] - reach), 0).astype(int)
    high = np.minimum(np.floor(center[:3] + reach) + 1, grid.shape).astype(int)
    box = network[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    index = np.moveaxis(np.indices(box.shape), 0, -1) + low
    mm = index @ grid.matrix[:3, :3].T + grid.matrix[:3, 3]
    near = box[(np.linalg.norm(mm - point, axis=-1) <= _RADIUS_MM) & (box > 0)]
    return int(np.bincount(near).argmax()) if near.size else 0


def _check_asymmetry(
    path: str, labels: npt.NDArray[np.int32], left: int, right: int, networks: tuple[str, ...]
) -> None:
    """Refuse a mirrored image, whose halves would get each other's names.

    The default network (of 17: its part B) is larger on the left, the frontoparietal one
    (control B) on the right, by far.
    """
    size = np.bincount(labels.ravel(), minlength=2 * len(networks) + 1)
    share = [size[2 * n - 1] / (size[2 * n - 1] + size[2 * n]) for n in (left, right)]
    if share[0] <= share[1]:
        raise LateralityError(
            f"{path}: {share[0]:.0%} of {networks[left - 1]} and {share[1]:.0%} of "
            f"{networks[right - 1]} lie on the left, expected more of the first. The image is "
            "mirrored: delete its folder, and load the atlas again.",
            code="atlas-flipped",
        )


def _listed(values: npt.NDArray[np.int32]) -> str:
    shown = ", ".join(map(str, values[:24].tolist()))
    return f"{shown} and more" if values.size > 24 else shown
