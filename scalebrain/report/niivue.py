"""The interactive viewer of volumes: NiiVue, the images it shows, and nothing from elsewhere."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from scalebrain.report.content import number
from scalebrain.report.volume import Volume

__all__ = ["Overlay", "Viewer", "nifti_base64", "viewer_scripts"]

FloatArray = npt.NDArray[np.float64]

#: Images are thinned out to this many voxels, so that a page stays small.
_MOST_VOXELS = 8_000_000


@dataclass(frozen=True)
class Overlay:
    """A map that is drawn on the background.

    Parameters
    ----------
    label
        Name in the list of maps.
    volume
        Values; NaN or 0 where there is nothing to show.
    colors
        Colors (n, 3) of the values from 0 to `limit`, or from ``-limit`` when `signed`.
    limit
        Value of the last color.
    unit
        Unit of the values, as the page writes it.
    step
        Step of the threshold, which starts there too.
    sides
        What the left and the right of the picture stand for.
    signed
        Whether values may be below zero.
    """

    label: str
    volume: Volume
    colors: FloatArray
    limit: float
    unit: str
    step: float
    sides: tuple[str, str] = ("left", "right")
    signed: bool = False


@dataclass(frozen=True)
class Viewer:
    """The viewer on a page: a background and the maps to choose from."""

    key: str
    title: str
    background: Volume
    overlays: Sequence[Overlay]
    kind: str = field(default="viewer", init=False)

    @property
    def data(self) -> Markup:
        """What the script needs, as JSON that cannot end its element."""
        content = {
            "background": nifti_base64(self.background, scale=255),
            "start": [float(v) for v in _start(self.overlays[0].volume)],
            "low": [float(axis[0]) for axis in self.background.axes],
            "high": [float(axis[-1]) for axis in self.background.axes],
            "maps": [_described(overlay) for overlay in self.overlays],
        }
        words = json.dumps(content, ensure_ascii=True, allow_nan=False)
        escaped = words.replace("<", "\\u003c").replace("&", "\\u0026")
        return Markup(escaped)  # nosec B704 # noqa: S704 - JSON without what ends a script


def _described(overlay: Overlay) -> dict[str, Any]:
    """One map for the script."""
    table = np.clip(np.rint(overlay.colors * 255), 0, 255).astype(int)
    middle = len(table) // 2
    # NiiVue colors a value by its size; those below zero have colors of their own
    above = table[middle:] if overlay.signed else table
    stops = table[np.linspace(0, len(table) - 1, 9).round().astype(int)]
    low = -overlay.limit if overlay.signed else 0.0
    return {
        "label": overlay.label,
        "image": nifti_base64(overlay.volume),
        "above": above.tolist(),
        "below": table[middle::-1].tolist() if overlay.signed else None,
        "limit": overlay.limit,
        "step": overlay.step,
        "digits": 0 if float(overlay.step).is_integer() else 2,
        "unit": overlay.unit,
        "sides": list(overlay.sides),
        "ends": [number(low, 0 if float(low).is_integer() else 2), number(overlay.limit)]
        if overlay.signed
        else [number(overlay.step, 0), number(overlay.limit, 0)],
        "gradient": [f"rgb({r},{g},{b})" for r, g, b in stops.tolist()],
    }


def _start(volume: Volume) -> FloatArray:
    """Place of the largest value: the middle of the voxels that hold it, moved onto one."""
    size = np.abs(np.nan_to_num(volume.data))
    at = np.argwhere(size >= size.max())
    nearest = at[np.argmin(((at - at.mean(axis=0)) ** 2).sum(axis=1))]
    return np.array([axis[i] for axis, i in zip(volume.axes, nearest, strict=True)])


def nifti_base64(volume: Volume, *, scale: float = 0.0) -> str:
    """Write a volume as a compressed NIfTI file in base64.

    Parameters
    ----------
    volume
        Values; NaN becomes 0.
    scale
        When given, values are multiplied by it and stored as bytes; else whole numbers are
        stored as int16 and others as float32.

    Returns
    -------
    str
        The same for the same values.
    """
    import nibabel as nib

    thin = max(1, int(np.ceil((volume.data.size / _MOST_VOXELS) ** (1 / 3))))
    data = np.nan_to_num(volume.data[::thin, ::thin, ::thin])
    axes = [axis[::thin] for axis in volume.axes]
    if scale:
        stored: npt.NDArray[Any] = np.clip(np.rint(data * scale), 0, 255).astype(np.uint8)
    elif np.array_equal(data, np.rint(data)) and np.abs(data).max(initial=0) < 2**15:
        stored = data.astype(np.int16)
    else:
        stored = data.astype(np.float32)
    steps = [axis[1] - axis[0] if axis.size > 1 else 1.0 for axis in axes]
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    image = nib.Nifti1Image(stored, affine)
    image.header.set_sform(affine, code=4)  # a standard template space
    image.header.set_qform(affine, code=4)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()


def viewer_scripts() -> str:
    """Source of NiiVue, as it may stand in a page."""
    source = files("scalebrain.report").joinpath("vendor", "niivue.umd.js")
    return source.read_text(encoding="utf-8").replace("</script", "<\\/script")
