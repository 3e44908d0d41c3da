"""Names of lesion masks: those that are read, and those that only look like one."""

import re
from collections.abc import Mapping

from scalebrain.io.tree import TEMPLATE

__all__ = ["ACCEPTED", "is_lesion_mask", "looks_like_mask"]

#: Endings of the lesion masks that are read, in words.
ACCEPTED = "label-L_mask, label-lesion_mask, desc-lesion_mask, desc-T1lesion_mask, label-lesion_roi"

_LESION = re.compile(r"lesion|stroke")
_REGION = re.compile(r"(?<![a-z])label-|roi(?![a-z])")
#: Labels of tissues and of the head, and suffixes of scans and transforms: no lesions.
# fmt: off
_TISSUES = frozenset((
    "gm", "wm", "csf", "brain", "head", "skull", "bone", "scalp", "soft", "air", "eye", "bs",
    "brainstem", "ribbon", "cortex", "cgm", "sgm", "dgm", "ventricle", "ventricles", "tissue",
    "background", "wmh",
))
_OTHER = frozenset((
    "t1w", "t2w", "t2star", "flair", "pdw", "dwi", "adc", "swi", "angio", "bold", "sbref",
    "boldref", "cbf", "pet", "xfm", "warp", "epi",
))
# fmt: on


def is_lesion_mask(suffix: str, entities: Mapping[str, str]) -> bool:
    """Tell a lesion mask by its BIDS entities; the names are those of several conventions."""
    label, description = entities.get("label"), entities.get("desc")
    if suffix == "roi":
        return label == "lesion"
    return suffix == "mask" and (label in ("L", "lesion") or description in ("lesion", "T1lesion"))


def looks_like_mask(name: str) -> bool:
    """Whether a file may be meant as a lesion mask of a template space, though it is not read.

    Parameters
    ----------
    name
        Name of a file that is of no use otherwise.

    Returns
    -------
    bool
        True for an image ``sub-*.nii`` or ``.nii.gz`` whose name, in any case, speaks of a
        lesion, a stroke, a label or a region of interest; of tissues, atlases, scans, and of
        images in native space it is False.
    """
    stem = name.removesuffix(".gz")
    if not (stem.endswith(".nii") and stem.startswith("sub-")):
        return False
    parts = stem.removesuffix(".nii").split("_")[1:]
    entities = dict(part.partition("-")[::2] for part in parts)
    if not TEMPLATE.fullmatch(entities.get("space", "MNI")):
        return False
    own = [part.lower() for part in parts if not part.startswith(("ses-", "space-"))]
    label = entities.get("label", "").lower()
    if not own or own[-1] in _OTHER or label in _TISSUES:
        return False
    text = "_".join(own)
    if _LESION.search(text) or label == "l":
        return True
    atlas = own[-1] == "dseg" or not entities.keys().isdisjoint(("atlas", "seg"))
    return _REGION.search(text) is not None and not atlas
