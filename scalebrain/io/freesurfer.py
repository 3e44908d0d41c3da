"""A FreeSurfer subject directory, or a zip archive that holds one, on the vertices of fsaverage5.

The formats are decoded from bytes here: readers that take a path cannot see into an archive,
and on damaged files raise anything at all.
"""

import functools
import itertools
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scalebrain.errors import ImageError
from scalebrain.io.files import SourceFile
from scalebrain.io.fsaverage import N_SIDE, Hemisphere, read_mesh

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["MEASURES", "N_VERTICES", "Surfaces", "read_files", "read_surfaces", "read_version"]

#: Names of the measures, in order.
MEASURES: tuple[str, ...] = ("thickness", "wg_contrast", "curvature", "sulcal_depth")

#: Vertices of both hemispheres of fsaverage5, left then right.
N_VERTICES = 2 * N_SIDE

_FILES = dict(zip(MEASURES, ("thickness", "w-g.pct.mgh", "curv", "sulc"), strict=True))
_SIDES: dict[str, Hemisphere] = {"lh": "left", "rh": "right"}
_DONE = "scripts/recon-all.done"
_STAMP = "scripts/build-stamp.txt"
_STATS = "stats/aseg.stats"
_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_MGH_DATA = 284
_MAX_BYTES = 256 * 2**20
_MAX_VERTICES = 4_000_000
_MAX_RATIO = 1100  # deflate cannot compress beyond about 1032:1
_MAX_MISSING = 0.15  # some write NaN into the medial wall, 9 % of the vertices
_MAX_THICKNESS_MM = 10.0
_LEAST_THICKNESS_MM = 1.0  # of the median: a cortex has 2 to 3
_MAX_OUT_OF_RANGE = 0.01
_MAX_RADIUS_SPREAD = 0.05
_VERSION = re.compile(r"(?<![\d.])(\d+\.\d+\.\d+)(?![\d.])")

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Surfaces:
    """What scalebrain takes from one FreeSurfer run.

    Parameters
    ----------
    values
        For each of :data:`MEASURES` an array (vertex,) of fsaverage5, left then right;
        thickness and sulcal depth in mm, contrast in %, curvature in 1/mm. NaN is missing;
        the medial wall is as the files have it.
    icv
        Estimated total intracranial volume in mL; NaN when the run does not tell it.
    volumes
        Volume in mm³ of every structure of the subcortical segmentation.
    version
        Version of FreeSurfer, as in ``7.4.1``.
    """

    values: dict[str, npt.NDArray[np.float32]]
    icv: float
    volumes: dict[str, float]
    version: str


def read_surfaces(folder: Path | SourceFile) -> Surfaces:
    r"""Read the surface measures and volumes of a finished FreeSurfer run.

    Parameters
    ----------
    folder
        A subject directory, or a zip archive with the directory inside as `member`.

    Returns
    -------
    Surfaces
        On fsaverage5.

    Raises
    ------
    ImageError
        When the run is not finished, files are missing or damaged, both hemispheres are one
        file, or values are no cortical thickness in mm.

    Notes
    -----
    A file ``?h.thickness.fsaverage5.mgh`` (``recon-all -qcache -target fsaverage5``) is taken
    before ``?h.thickness``. Values on the native surface are resampled along ``?h.sphere.reg``
    [1]_ as ``mri_surf2surf`` does it by default (``nnfr``), on spheres of the same radius:
    vertex :math:`t` of fsaverage5 becomes the mean over

    .. math:: \{s(t)\} \cup \{s : t(s) = t, \; s \neq s(t') \; \forall t'\}

    of the values that are not NaN, where :math:`s(t)` is the native vertex nearest to
    :math:`t` and :math:`t(s)` the fsaverage5 vertex nearest to :math:`s`: every native vertex
    counts. No such value leaves NaN. The registration sphere of fsaverage5 is its sphere, an
    icosphere of 10,242 vertices that is the same on both sides, so nothing here can tell a
    left hemisphere from a right one: sides are those of the file names.

    References
    ----------
    .. [1] Fischl et al. (1999). High-resolution intersubject averaging and a coordinate system
       for the cortical surface. Human Brain Mapping.
       doi:10.1002/(SICI)1097-0193(1999)8:4<272::AID-HBM10>3.0.CO;2-4
    """
    subject = _find(folder)
    _check_finished(subject)
    version = _version(subject)
    icv, volumes = _segmentation(subject)
    content = {
        (side, measure): subject.read(_measure_file(subject, side, measure))
        for measure in MEASURES
        for side in _SIDES
    }
    for (side, measure), (other, second) in itertools.combinations(content, 2):
        if content[side, measure] == content[other, second]:
            what = "both hemispheres" if measure == second else "two measures"
            raise ImageError(
                f"{subject.root}: {what} are the same file: "
                f"{_measure_file(subject, side, measure)} equals "
                f"{_measure_file(subject, other, second)} byte by byte. Copy them again.",
                code="freesurfer-unfinished",
            )
    sides = [
        _side_values(subject, side, {measure: content[side, measure] for measure in MEASURES})
        for side in _SIDES
    ]
    values = {m: np.concatenate([side[m] for side in sides]) for m in MEASURES}
    return Surfaces(values, icv, volumes, version)


def read_version(folder: Path | SourceFile) -> str:
    """Read the version of FreeSurfer that made a run, and nothing else of it.

    Parameters
    ----------
    folder
        As for :func:`read_surfaces`.

    Returns
    -------
    str
        As in ``7.4.1``.

    Raises
    ------
    ImageError
        When no file of the run tells it.
    """
    return _version(_find(folder))


def read_files(folder: Path | SourceFile) -> tuple[SourceFile, ...]:
    """List the files that :func:`read_surfaces` takes something from.

    Parameters
    ----------
    folder
        As for :func:`read_surfaces`.

    Returns
    -------
    tuple of SourceFile
        Those that are there, sorted by name.

    Raises
    ------
    ImageError
        When the directory or archive cannot be looked through.
    """
    subject = _find(folder)
    names = {_DONE, _STAMP, _STATS, *_state_files(subject), *map(_sphere_file, _SIDES)}
    names |= {_measure_file(subject, side, m) for side in _SIDES for m in MEASURES}
    return tuple(subject.file(name) for name in sorted(names & subject.sizes.keys()))


@dataclass(frozen=True)
class _Subject:
    """The files of a subject directory: sizes by relative name, and links without content."""

    root: SourceFile
    sizes: Mapping[str, int]
    links: tuple[str, ...] = ()

    def file(self, name: str) -> SourceFile:
        """One file, wherever it lies."""
        if self.root.path.is_dir():
            return SourceFile(self.root.path / self.root.member / name)
        prefix = self.root.member.strip("/")
        return SourceFile(self.root.path, f"{prefix}/{name}" if prefix else name)

    def read(self, name: str) -> bytes:
        """Content of a file that is there."""
        file = self.file(name)
        if self.sizes[name] > _MAX_BYTES:
            raise ImageError(
                f"{file}: {self.sizes[name]} bytes, at most {_MAX_BYTES}. Copy it again.",
                code="header-claims",
            )
        content = file.read_bytes()
        _check_content(file, content)
        return content


def _find(folder: Path | SourceFile) -> _Subject:
    """Look through a directory or an archive; nothing is read."""
    root = folder if isinstance(folder, SourceFile) else SourceFile(folder)
    folders = ("scripts", "stats", "surf")
    try:
        if root.path.is_dir() or not root.path.exists():
            sizes, links = _list(root.path / root.member, folders)
            return _Subject(root, sizes, links)
        prefix = f"{root.member.strip('/')}/".lstrip("/")
        with zipfile.ZipFile(root.path) as archive:
            members = {
                info.filename.removeprefix(prefix): info.file_size
                for info in archive.infolist()
                if info.filename.startswith(prefix) and not info.is_dir()
            }
        return _Subject(root, {n: size for n, size in members.items() if n.startswith(folders)})
    except OSError as error:
        raise ImageError(
            f"{root}: cannot be read: {error.strerror}. Check the path and its permissions.",
            code="unreadable",
        ) from error
    except (
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        raise ImageError(
            f"{root}: the zip archive is truncated or damaged ({error}). Copy it again.",
            code="truncated",
        ) from error


def _list(root: Path, folders: tuple[str, ...]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Sizes of the files in folders, and the links that lead nowhere."""
    sizes: dict[str, int] = {}
    links: list[str] = []
    for folder in folders:
        if not (root / folder).is_dir():
            continue
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}"
                if entry.is_file():
                    sizes[name] = entry.stat().st_size
                elif entry.is_symlink() and not entry.is_dir():
                    links.append(name)
    return sizes, tuple(links)


def _measure_file(subject: _Subject, side: str, measure: str) -> str:
    """Name of the file of a measure: the resampled one when there is one."""
    native = f"surf/{side}.{_FILES[measure]}"
    for stem in (native, native.removesuffix(".mgh")):
        for ending in (".fsaverage5.mgh", ".fsaverage5.mgz"):
            if stem + ending in subject.sizes:
                return stem + ending
    return native


def _sphere_file(side: str) -> str:
    """Name of the registration sphere."""
    return f"surf/{side}.sphere.reg"


def _state_files(subject: _Subject) -> list[str]:
    """Names of the files that a run leaves while it goes on, or when it has failed."""
    return [
        name
        for name in sorted(subject.sizes)
        if name == "scripts/recon-all.error" or name.startswith("scripts/IsRunning.")
    ]


def _check_finished(subject: _Subject) -> None:
    """Refuse a run that is going on, has failed, or lacks files; everything at once."""
    state = _state_files(subject)
    chosen = [_measure_file(subject, side, m) for side in _SIDES for m in MEASURES]
    missing = [name for name in (_DONE, *chosen) if name not in subject.sizes]
    if missing:
        native = [name for name in chosen if ".fsaverage5." not in name]
        spheres = [_sphere_file(s) for s in _SIDES if any(f"/{s}." in name for name in native)]
        missing += [name for name in spheres if name not in subject.sizes]
    if not state and not missing:
        return
    found = [f"{', '.join(state)} says that it failed or still runs"] if state else []
    if missing:
        found.append(f"missing: {', '.join(missing)}")
    fetch = any(name in subject.links for name in missing)
    way_out = "Fetch its content (datalad get)" if fetch else "Run recon-all to its end"
    raise ImageError(
        f"{subject.root}: the FreeSurfer run is not complete; {'; '.join(found)}. {way_out}.",
        code="pointer" if fetch else "freesurfer-unfinished",
    )


def _version(subject: _Subject) -> str:
    """Version of FreeSurfer, from the first file that tells it."""
    for name, line in (
        (_STAMP, re.compile(r".*")),
        (_DONE, re.compile(r"VERSION\s.*")),
        (_STATS, re.compile(r"#\s*cvs_version\s.*")),
    ):
        if name not in subject.sizes:
            continue
        for text in _text(subject, name).splitlines():
            found = _VERSION.search(text) if line.fullmatch(text) else None
            if found:
                return found[1]
    raise ImageError(
        f"{subject.root}: the version of FreeSurfer cannot be told, expected one as in "
        f"freesurfer-linux-ubuntu22_x86_64-7.4.1 in {_STAMP}. Copy that file from "
        f"the run, or run a released version.",
        code="freesurfer-unfinished",
    )


def _text(subject: _Subject, name: str) -> str:
    """Content of a text file that is there."""
    try:
        return subject.read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageError(
            f"{subject.file(name)}: not a text file ({error.reason} at byte {error.start}). "
            "Copy it again.",
            code="truncated",
        ) from error


def _segmentation(subject: _Subject) -> tuple[float, dict[str, float]]:
    """Intracranial volume in mL and the volumes in mm³ of stats/aseg.stats."""
    icv, volumes = np.nan, dict[str, float]()
    if _STATS not in subject.sizes:
        return icv, volumes
    n_columns, volume, name = 0, 3, 4
    for number, line in enumerate(_text(subject, _STATS).splitlines(), start=1):
        where = f"{subject.file(_STATS)}, line {number}"
        if line.startswith("# ColHeaders"):
            columns = line.split()[2:]
            if not {"Volume_mm3", "StructName"} <= set(columns):
                raise ImageError(
                    f"{where}: columns {' '.join(columns)}, expected Volume_mm3 and StructName. "
                    "Copy it again.",
                    code="truncated",
                )
            n_columns = len(columns)
            volume, name = columns.index("Volume_mm3"), columns.index("StructName")
        elif line.startswith("# Measure"):
            cells = [cell.strip() for cell in line.removeprefix("# Measure").split(",")]
            if cells[0] in ("EstimatedTotalIntraCranialVol", "IntraCranialVol"):
                icv = _volume(cells[-2] if len(cells) == 5 else "", where) / 1000
        elif line.strip() and not line.startswith("#"):
            cells = line.split()
            if len(cells) < 5 or (n_columns and len(cells) != n_columns):
                raise ImageError(
                    f"{where}: {len(cells)} columns, expected {n_columns or 'at least 5'}. "
                    "Copy it again.",
                    code="truncated",
                )
            volumes[cells[name]] = _volume(cells[volume], where)
    return icv, volumes


def _volume(cell: str, where: str) -> float:
    """Read a finite volume of 0 or more."""
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not 0 <= value < np.inf:
        raise ImageError(
            f"{where}: '{cell[:40]}' is not a volume in mm³. Copy it again.", code="truncated"
        )
    return value


def _side_values(
    subject: _Subject, side: str, content: Mapping[str, bytes]
) -> dict[str, npt.NDArray[np.float32]]:
    """Every measure of a hemisphere on fsaverage5."""
    sphere, pairs = None, None
    out = {}
    for measure, raw in content.items():
        name = _measure_file(subject, side, measure)
        values = _decode_values(subject.file(name), raw)
        _check_values(subject.file(name), measure, values)
        expected = N_SIDE
        if ".fsaverage5." not in name:
            if sphere is None and (len(values) != N_SIDE or _sphere_file(side) in subject.sizes):
                sphere = _read_sphere(subject, side)
            if sphere is not None and len(values) == len(sphere):
                pairs = _pairs(sphere, side) if pairs is None else pairs
                values = _average(values, pairs)
            expected = N_SIDE if sphere is None else len(sphere)
        if len(values) != N_SIDE:
            raise ImageError(
                f"{subject.file(name)}: {len(values)} values, expected {expected}, or {N_SIDE} on "
                "fsaverage5. The files come from two runs: copy all of one run.",
                code="freesurfer-unfinished",
            )
        out[measure] = values.astype(np.float32)
    return out


def _check_values(file: SourceFile, measure: str, values: FloatArray) -> None:
    """Refuse too many missing values, and what cannot be a thickness in mm."""
    finite = np.isfinite(values)
    missing = 1 - finite.mean()
    if missing > _MAX_MISSING:
        raise ImageError(
            f"{file}: {missing:.0%} of the values are NaN or infinite, at most "
            f"{_MAX_MISSING:.0%}. Run recon-all again.",
            code="nonfinite-many",
        )
    if measure == "thickness":
        known = values[finite]
        outside = float(np.mean((known < 0) | (known > _MAX_THICKNESS_MM)))
        if outside > _MAX_OUT_OF_RANGE:
            raise ImageError(
                f"{file}: {outside:.0%} of the values are outside 0 to {_MAX_THICKNESS_MM:g} mm "
                f"(found {known.min():g} to {known.max():g}). Give the thickness in mm.",
                code="freesurfer-unfinished",
            )
        middle = float(np.median(known[known != 0])) if known.any() else 0.0
        if middle < _LEAST_THICKNESS_MM:
            raise ImageError(
                f"{file}: the median thickness is {middle:g}, expected at least "
                f"{_LEAST_THICKNESS_MM:g} mm. Give the thickness in mm, or run recon-all again.",
                code="freesurfer-unfinished",
            )


def _check_content(file: SourceFile, content: bytes) -> None:
    """Refuse what stands in for a file that was not copied or fetched."""
    start = content[:512].lstrip().lower()
    if not content:
        raise ImageError(f"{file}: the file is empty. Copy it again.", code="empty-file")
    if start.startswith((b"version https://git-lfs", b"/annex/", b".git/annex", b"../")):
        raise ImageError(
            f"{file}: a pointer, not the file. Fetch its content (datalad get, git lfs pull).",
            code="pointer",
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ImageError(f"{file}: a web page, not the file. Download it again.", code="web-page")


def _damaged(file: SourceFile, detail: str) -> ImageError:
    """Error about bytes that are not what they have to be."""
    return ImageError(f"{file}: {detail}. Copy it again.", code="truncated")


def _take(file: SourceFile, content: bytes, dtype: str, count: int, start: int) -> FloatArray:
    """Read `count` numbers from byte `start` on."""
    need = start + count * np.dtype(dtype).itemsize
    if len(content) < need:
        raise _damaged(file, f"truncated: {len(content)} bytes, the header needs {need}")
    with np.errstate(invalid="ignore"):
        return np.frombuffer(content, dtype, count, start).astype(np.float64)


def _integers(file: SourceFile, content: bytes, n: int, start: int) -> tuple[int, ...]:
    """Read `n` big-endian integers from byte `start` on."""
    if len(content) < start + 4 * n:
        raise _damaged(file, f"truncated: {len(content)} bytes, the header needs {start + 4 * n}")
    return struct.unpack_from(f">{n}i", content, start)


def _check_count(file: SourceFile, count: int, what: str) -> None:
    """Refuse a header before anything is allocated for it."""
    if count < 1:
        raise _damaged(file, f"the header claims {count} {what}")
    if count > _MAX_VERTICES:
        raise ImageError(
            f"{file}: the header claims {count} {what}, at most {_MAX_VERTICES}. Copy it again.",
            code="header-claims",
        )


def _decode_values(file: SourceFile, content: bytes) -> FloatArray:
    """Values of a morphometry or MGH file, told apart by their first bytes."""
    if content[:3] == b"\xff\xff\xff":
        count, _, per_vertex = _integers(file, content, 3, 3)
        _check_count(file, count, "vertices")
        if per_vertex != 1:
            raise _damaged(file, f"{per_vertex} values a vertex, expected 1")
        return _take(file, content, ">f4", count, 15)
    if content[:2] == b"\x1f\x8b":
        content = _decompress(file, content)
    if content[:4] != b"\x00\x00\x00\x01":
        raise _damaged(
            file,
            f"neither a FreeSurfer morphometry nor an MGH file (it starts with "
            f"{content[:4].hex(' ')}, expected ff ff ff or 00 00 00 01; the curv format of before "
            "2003 is not read)",
        )
    *shape, frames, code = _integers(file, content, 5, 4)
    if frames != 1 or min(shape) < 1 or code not in _MGH_TYPES:
        raise _damaged(
            file,
            f"an MGH file of shape {tuple(shape)}, {frames} frames and type {code}, expected one "
            "frame of numbers",
        )
    count = shape[0] * shape[1] * shape[2]
    _check_count(file, count, "vertices")
    return _take(file, content, _MGH_TYPES[code], count, _MGH_DATA)


def _decompress(file: SourceFile, content: bytes) -> bytes:
    """Content of a gzip file, within limits."""
    limit = min(_MAX_BYTES, _MAX_RATIO * len(content))
    stream = zlib.decompressobj(wbits=31)
    try:
        out = stream.decompress(content, limit)
    except zlib.error as error:
        raise _damaged(file, f"the gzip stream is truncated or damaged ({error})") from error
    if stream.unconsumed_tail:
        raise ImageError(
            f"{file}: the gzip stream holds more than {limit} bytes. Copy it again.",
            code="gzip-bomb",
        )
    if not stream.eof:
        raise _damaged(file, "the gzip stream is truncated or damaged (its end is missing)")
    return out


def _read_sphere(subject: _Subject, side: str) -> FloatArray:
    """Read a registration sphere as unit vectors (vertex, 3)."""
    name = _sphere_file(side)
    if name not in subject.sizes:
        raise ImageError(
            f"{subject.root}: the FreeSurfer run is not complete; missing: {name}, which native "
            "values need. Run recon-all to its end.",
            code="freesurfer-unfinished",
        )
    file, content = subject.file(name), subject.read(name)
    header = content[:4096].split(b"\n", 2)
    if content[:3] != b"\xff\xff\xfe" or len(header) < 3:
        raise _damaged(
            file,
            f"not a FreeSurfer triangle surface (it starts with {content[:3].hex(' ')}, expected "
            "ff ff fe and two lines)",
        )
    start = len(header[0]) + len(header[1]) + 2
    n_vertices, n_faces = _integers(file, content, 2, start)
    _check_count(file, n_vertices, "vertices")
    _check_count(file, n_faces, "triangles")
    vertices = _take(file, content, ">f4", 3 * n_vertices, start + 8).reshape(-1, 3)
    if len(content) < (need := start + 8 + 12 * (n_vertices + n_faces)):
        raise _damaged(file, f"truncated: {len(content)} bytes, the header needs {need}")
    radius = np.sqrt(np.einsum("ij,ij->i", vertices, vertices))
    low, high = float(radius.min()), float(radius.max())
    if not 0 < low <= high < (1 + _MAX_RADIUS_SPREAD) * low:
        raise _damaged(file, f"not a sphere: radius {low:g} to {high:g}, expected about 100")
    vertices /= radius[:, np.newaxis]
    return vertices


@functools.cache
def _target(side: str) -> tuple[FloatArray, "cKDTree"]:
    """Read the sphere of fsaverage5: unit vectors, and a tree of them."""
    from scipy.spatial import cKDTree

    vertices, _ = read_mesh("sphere", _SIDES[side])
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return vertices, cKDTree(vertices)


def _pairs(sphere: FloatArray, side: str) -> tuple[IntArray, IntArray]:
    """Pairs (native vertex, fsaverage5 vertex) that are averaged: forward, then reverse."""
    from scipy.spatial import cKDTree

    vertices, tree = _target(side)
    source = cKDTree(sphere, compact_nodes=False, balanced_tree=False)
    _, forward = source.query(vertices)
    chosen = np.zeros(len(sphere), dtype=np.bool_)
    chosen[forward] = True
    (left_over,) = np.nonzero(~chosen)
    _, reverse = tree.query(sphere[left_over])
    native = np.concatenate([forward, left_over]).astype(np.int64)
    target = np.concatenate([np.arange(N_SIDE), reverse]).astype(np.int64)
    return native, target


def _average(values: FloatArray, pairs: tuple[IntArray, IntArray]) -> FloatArray:
    """Mean of the known values at each fsaverage5 vertex."""
    native, target = pairs
    known = np.isfinite(values[native])
    native, target = native[known], target[known]
    total = np.bincount(target, weights=values[native], minlength=N_SIDE)
    count = np.bincount(target, minlength=N_SIDE)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count, dtype=np.float64)
