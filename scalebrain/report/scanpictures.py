"""Pictures of one scan for the eye of a rater: planes, outlines and the lesion, as pixels."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from scalebrain.atlas.space import Grid, brain_mask
from scalebrain.io.rows import RowSource, row_source
from scalebrain.report.content import number
from scalebrain.report.volume import Plane, Volume, scaled, to_volume

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LESION", "Frame", "Layers", "Rows", "Scan", "frame_of", "jpeg", "layers", "thumbnail"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]

#: Colors of the outlines of brain and gray matter, and of the lesion.
BRAIN = (86, 180, 233)
GRAY_MATTER = (240, 228, 66)
LESION = (255, 106, 0)
_INK = (235, 238, 242)
_GAP = 8
_TOP = 34
_QUALITY = 82
#: Where planes lie between the ends of the brain: sagittal (beside the midline), coronal, axial.
_MIDDLE = (0.42, 0.5, 0.5)
_SPREAD = ((0.14, 0.86), (0.12, 0.9), (0.12, 0.9))


@dataclass(frozen=True)
class Rows:
    """Rows of the images of a store, read one at a time.

    Parameters
    ----------
    t1w, lesion_mask
        Where they come from; None where the store has none.
    """

    t1w: "RowSource | xr.DataArray | None"
    lesion_mask: "RowSource | xr.DataArray | None"

    @classmethod
    def of(cls, ds: xr.Dataset) -> "Rows":
        """Rows of a store; nothing is read."""
        found: list[RowSource | xr.DataArray | None] = [None, None]
        for k, name in enumerate(("t1w", "lesion_mask")):
            if name in ds.variables:
                array = ds[name].transpose("subject", "voxel")
                found[k] = row_source(array.data) or array.reset_coords(drop=True)
        return cls(*found)

    def scan(self, at: int, *, has_lesion: bool) -> "Scan":
        """Read the scan of one subject, and its lesion mask where there is one."""
        values = self.row(self.t1w, at)
        is_there = values is not None and bool(np.isfinite(values).any())
        gray = scaled(values) if values is not None and is_there else None
        row = self.row(self.lesion_mask, at) if has_lesion else None
        if row is None:
            return Scan(gray, None)
        mask = np.asarray(row, dtype=np.bool_)
        return Scan(gray, mask) if mask.any() else Scan(gray, None, is_empty=True)

    @staticmethod
    def row(rows: "RowSource | xr.DataArray | None", at: int) -> npt.NDArray[Any] | None:
        """One row of an image, copied; None where the store has no such image."""
        if rows is None:
            return None
        if isinstance(rows, RowSource):
            return np.array(next(rows.read(at, at + 1)))
        return np.asarray(rows.isel(subject=at).compute(scheduler="synchronous").values)


@dataclass(frozen=True)
class Scan:
    """Gray values (voxel,) in 0..1 and a lesion mask that is not empty; None where missing.

    Parameters
    ----------
    gray, lesion
        Gray values and mask.
    is_empty
        Whether there is a lesion mask that marks no voxel.
    """

    gray: FloatArray | None
    lesion: BoolArray | None
    is_empty: bool = False


@dataclass(frozen=True)
class Frame:
    """The grid of a store, and what is outlined on every scan.

    Parameters
    ----------
    positions
        Position on ``voxel`` of every place of the grid, NaN where nothing is stored.
    mm
        (3, voxel) coordinates.
    brain, gray_matter
        (voxel,) the template's brain, and its parcels.
    box
        First and last coordinate in mm of the brain, by axis.
    """

    positions: Volume
    mm: npt.NDArray[np.float32]
    brain: BoolArray
    gray_matter: BoolArray
    box: tuple[tuple[float, float], ...]

    def pick(self, cut: Plane, values: npt.NDArray[Any], missing: float = 0.0) -> FloatArray:
        """Values of a vector over ``voxel`` in a plane of `positions`."""
        known = np.isfinite(cut.values)
        out = np.full(known.shape, missing)
        out[known] = values[cut.values[known].astype(np.intp)]
        return out

    @property
    def step(self) -> float:
        """Smallest edge of a voxel in mm."""
        lines = [line for line in self.positions.axes if line.size > 1]
        return min((float(line[1] - line[0]) for line in lines), default=1.0)

    def middle(self, mask: BoolArray | None) -> tuple[float, float, float]:
        """Place to cut through, in mm: the lesioned voxel nearest to the lesion's center."""
        if mask is None:
            x, y, z = (
                low + share * (high - low)
                for share, (low, high) in zip(_MIDDLE, self.box, strict=True)
            )
            return x, y, z
        places = self.mm[:, mask].T.astype(np.float64)
        nearest = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
        return float(nearest[0]), float(nearest[1]), float(nearest[2])

    def spread(self, n: int, axis: int) -> FloatArray:
        """Coordinates that spread over the brain along an axis."""
        (first, last), (low, high) = self.box[axis], _SPREAD[axis]
        share: FloatArray = np.linspace(low, high, n)
        return first + share * (last - first)


def frame_of(ds: xr.Dataset) -> Frame:
    """Lay out the grid of a store.

    Parameters
    ----------
    ds
        Dataset with coordinates over ``voxel`` and the grid in its attributes.

    Returns
    -------
    Frame
        Outlines are those of the parcels that the store has.

    Raises
    ------
    ScalebrainError
        When the grid is missing or oblique.
    """
    n = ds.sizes.get("voxel", 0)
    positions = to_volume(ds, np.arange(n, dtype=np.float64))
    mm = np.stack([np.asarray(ds[axis].values, dtype=np.float64) for axis in "xyz"])
    brain = np.ones(n, dtype=np.bool_)
    if ds.attrs.get("whole_head"):
        affine = np.asarray(ds.attrs["affine"], dtype=np.float64).reshape(4, 4)
        index = np.rint((mm - affine[:3, 3:]) / np.diag(affine)[:3, None]).astype(np.intp)
        brain = brain_mask(Grid.from_matrix(tuple(ds.attrs["shape"]), affine))[tuple(index)]
    parcel = np.asarray(ds["parcel"].values) if "parcel" in ds.variables else np.zeros(n)
    box = tuple((float(line.min()), float(line.max())) for line in mm[:, brain])
    return Frame(positions, mm.astype(np.float32), brain, parcel > 0, box)


@dataclass(frozen=True)
class Layers:
    """Pictures that lie on each other: the scan, the outlines and the lesion.

    Parameters
    ----------
    scan
        JPEG in base64.
    outlines, lesion
        Transparent PNG in base64; `lesion` is empty without one.
    size
        Width and height in pixels.
    """

    scan: str
    outlines: str
    lesion: str
    size: tuple[int, int]


def layers(frame: Frame, scan: Scan, cuts: Sequence[Sequence[tuple[int, float]]]) -> Layers:
    """Draw rows of slices, with their coordinate and with left and right.

    Parameters
    ----------
    frame
        Grid.
    scan
        A scan with gray values.
    cuts
        Axis (0 sagittal, 1 coronal, 2 axial) and coordinate in mm of each slice, row by row.

    Returns
    -------
    Layers
        Left is drawn on the left; sagittal slices face right.
    """
    from PIL import Image, ImageDraw

    scale = _pixels_per_mm(frame, 2.0 if sum(map(len, cuts)) > 3 else 3.5)
    drawn = [[_tile(frame, scan, axis, at, scale) for axis, at in row] for row in cuts]
    width = max(sum(t.gray.shape[1] for t in row) + _GAP * (len(row) + 1) for row in drawn)
    height = sum(max(t.gray.shape[0] for t in row) + _TOP + _GAP for row in drawn)
    base = Image.new("RGB", (width, height), (0, 0, 0))
    outlines, lesion = (Image.new("RGBA", (width, height), (0, 0, 0, 0)) for _ in range(2))
    words, top = ImageDraw.Draw(base), 0
    for row in drawn:
        tall = max(t.gray.shape[0] for t in row)
        space = (width - sum(t.gray.shape[1] for t in row)) / (len(row) + 1)
        left = space
        for tile in row:
            place = (round(left), top + _TOP + (tall - tile.gray.shape[0]) // 2)
            base.paste(Image.fromarray(tile.gray), place)
            for picture, mask, color in (
                (outlines, tile.gray_matter, GRAY_MATTER),
                (outlines, tile.brain, BRAIN),
            ):
                picture.paste((*color, 255), place, Image.fromarray(mask))
            if tile.lesion is not None:
                lesion.paste((*LESION, 255), place, Image.fromarray(tile.lesion))
            _write(words, tile, place)
            left += tile.gray.shape[1] + space
        top += tall + _TOP + _GAP
    return Layers(
        base64.b64encode(jpeg(base)).decode(),
        _png(outlines),
        _png(lesion) if scan.lesion is not None else "",
        (width, height),
    )


def thumbnail(frame: Frame, scan: Scan, *, height: int = 118) -> "Image":
    """Draw the three planes through the lesion (or the brain) as one small picture.

    Parameters
    ----------
    frame
        Grid.
    scan
        A scan with gray values.
    height
        Pixels.

    Returns
    -------
    Image
        Axial, coronal and sagittal, the lesion outlined.
    """
    from PIL import Image, ImageDraw

    fine = _pixels_per_mm(frame, 1.0)
    x, y, z = frame.middle(scan.lesion)
    tiles = [_tile(frame, scan, axis, at, fine) for axis, at in ((2, z), (1, y), (0, x))]
    tall = max(tile.gray.shape[0] for tile in tiles)
    width = sum(tile.gray.shape[1] for tile in tiles) + 4 * _GAP
    picture, left, marks = Image.new("RGB", (width, tall), (0, 0, 0)), 0, []
    for tile in tiles:
        place = (left, (tall - tile.gray.shape[0]) // 2)
        picture.paste(Image.fromarray(tile.gray), place)
        if tile.lesion is not None:
            border = np.where(tile.lesion > 200, 255, 0).astype(np.uint8)
            picture.paste(LESION, place, Image.fromarray(border))
        if tile.axis != 0:
            marks += [(left, "L"), (left + tile.gray.shape[1], "R")]
        left += tile.gray.shape[1] + 2 * _GAP
    scale = height / tall
    picture = picture.resize((round(width * scale), height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for at, words in marks:
        draw.text(
            (at * scale, height - 1), words, _INK, _font(11), anchor="lb" if words == "L" else "rb"
        )
    return picture


def jpeg(picture: "Image") -> bytes:
    """Encode a picture as JPEG; the same picture gives the same bytes."""
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _png(picture: "Image") -> str:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=6)  # a third of the time, a tenth larger
    return base64.b64encode(buffer.getvalue()).decode()


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _pixels_per_mm(frame: Frame, wanted: float) -> float:
    """Nearest scale in which the smallest edge of a voxel is a whole number of pixels."""
    return max(1, round(wanted * frame.step)) / frame.step


@dataclass(frozen=True)
class _Tile:
    """One slice from top to bottom: gray values, and the opacity of what lies on it."""

    gray: Pixels
    brain: Pixels
    gray_matter: Pixels
    lesion: Pixels | None
    axis: int
    at: float


def _tile(frame: Frame, scan: Scan, axis: int, at: float, scale: float) -> _Tile:
    """Draw one slice, `scale` pixels a mm."""
    cut = frame.positions.plane(axis, at)
    left, right, low, high = cut.extent
    size = (round((right - left) * scale), round((high - low) * scale))
    values = np.zeros(frame.gray_matter.shape) if scan.gray is None else 0.05 + 0.95 * scan.gray
    lesion = None
    if scan.lesion is not None:
        inside = _mask(frame.pick(cut, scan.lesion) > 0, size)
        lesion = np.where(_edge(inside, 2), 255, np.where(inside, 64, 0)).astype(np.uint8)
    lines = 2 if scale > 3 else 1
    brain = _edge(_mask(frame.pick(cut, frame.brain) > 0, size), lines)
    matter = _edge(_mask(frame.pick(cut, frame.gray_matter) > 0, size), lines)
    return _Tile(
        _enlarged(frame.pick(cut, values), size),
        np.where(brain, 255, 0).astype(np.uint8),
        np.where(matter, 180, 0).astype(np.uint8),
        lesion,
        axis,
        cut.at,
    )


def _enlarged(values: FloatArray, size: tuple[int, int]) -> Pixels:
    """Values in 0..1 from bottom to top as smooth pixels from top to bottom, (width, height)."""
    from PIL import Image

    pixels = Image.fromarray(np.rint(255 * values[::-1]).astype(np.uint8))
    return np.asarray(pixels.resize(size, Image.Resampling.BICUBIC))


def _mask(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Enlarge a mask likewise, with a smooth border."""
    return _enlarged(mask.astype(np.float64), size) > 127


def _edge(mask: BoolArray, width: int) -> BoolArray:
    """Border of a mask, inside it."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        near = inner.copy()
        near[1:] &= inner[:-1]
        near[:-1] &= inner[1:]
        near[:, 1:] &= inner[:, :-1]
        near[:, :-1] &= inner[:, 1:]
        inner = near
    return mask & ~inner[1:-1, 1:-1]


def _write(words: Any, tile: _Tile, place: tuple[int, int]) -> None:
    """Write coordinate and sides of a slice."""
    height, width = tile.gray.shape[:2]
    side = ""
    if tile.axis == 0 and abs(tile.at) > 1e-6:
        side = " left" if tile.at < 0 else " right"
    title = f"{'xyz'[tile.axis]} = {number(tile.at, 0).replace('−', '-')} mm{side}"
    words.text((place[0] + width / 2, place[1] - 6), title, _INK, _font(21), anchor="mb")
    low = place[1] + height
    ends = ("L", "R") if tile.axis != 0 else ("P", "A")
    words.text((place[0] + 1, low), ends[0], _INK, _font(26), anchor="lb")
    words.text((place[0] + width - 1, low), ends[1], _INK, _font(26), anchor="rb")
