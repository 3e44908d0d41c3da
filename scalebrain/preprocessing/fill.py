"""Enantiomorphic filling: the lesion's place is taken by the other hemisphere's tissue."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from scalebrain.errors import GeometryError
from scalebrain.preprocessing.native import Head

__all__ = ["filled"]

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_SEAM = 1.0  # voxels over which what is filled in is blended with what is around it


def filled(head: Head) -> Head:
    """Fill the lesion of a scan, for its registration.

    Parameters
    ----------
    head
        Scan with a lesion, and the affine from the template.

    Returns
    -------
    Head
        The same with mirrored tissue in the lesion; what stays in `lesion` is what could not be
        filled, where the mirrored place is lesioned or outside the scan.

    Raises
    ------
    GeometryError
        When the affine is not known yet.

    Notes
    -----
    The plane of the mirror is that of the template, brought to the scan by the affine.

    References
    ----------
    Nachev et al. 2008, doi:10.1016/j.neuroimage.2007.10.002
    """
    if head.affine is None:
        raise GeometryError("A lesion is filled when the affine is known. Find the brain first.")
    if head.lesion is None or not head.lesion.any():
        return head
    to_scan = head.affine @ _MIRROR @ np.linalg.inv(head.affine)
    index = np.linalg.inv(head.grid.matrix) @ to_scan @ head.grid.matrix
    mirrored = ndimage.affine_transform(
        head.data, index[:3, :3], index[:3, 3], order=1, mode="constant", cval=np.nan
    )
    other = ndimage.affine_transform(
        head.lesion.astype(np.float32), index[:3, :3], index[:3, 3], order=1, cval=0
    )
    usable = head.lesion & (other < 0.25) & np.isfinite(mirrored)
    weight = np.maximum(ndimage.gaussian_filter(usable.astype(np.float32), _SEAM), usable)
    weight = np.where(np.isfinite(mirrored), weight, 0)
    data = (1 - weight) * head.data + weight * np.nan_to_num(mirrored)
    return replace(head, data=data.astype(np.float32), lesion=head.lesion & ~usable)
