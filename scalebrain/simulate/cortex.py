"""The cortex of one person: latent biology in, a FreeSurfer folder out."""

import functools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scalebrain.atlas.surface import (
    cortex_points,
    finest_edges,
    interpolation,
    is_cortex,
    vertex_parcels,
)
from scalebrain.io.atomic import write_atomic
from scalebrain.io.fsaverage import N_SIDE, Hemisphere, read_map
from scalebrain.simulate.anatomy import Anatomy
from scalebrain.simulate.draw import scan_latents
from scalebrain.simulate.factors import PARCELS
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import CohortEffects, Person, generator

__all__ = ["Cortex", "draw_cortex", "is_written", "lesioned_vertices", "write_cortex"]

_SIDES: tuple[tuple[str, Hemisphere], ...] = (("lh", "left"), ("rh", "right"))
_FILES = {
    "thickness": "thickness.fsaverage5.mgh",
    "wg_contrast": "w-g.pct.mgh.fsaverage5.mgh",
    "curvature": "curv.fsaverage5.mgh",
    "sulcal_depth": "sulc.fsaverage5.mgh",
}
_DONE = "scripts/recon-all.done"
_STAMP = "scripts/build-stamp.txt"
# Readers want a version, and FreeSurfer was not run.
_VERSION = "simulated-by-scalebrain-0.0.0\n"
_KNOTS = 3  # level of the icosphere whose vertices carry a person's own anatomy
_BLENDS = 1
_FOLDS = 0.1  # part of the template's folding by which a person's differs
_THICKEST = 5.0  # mm; recon-all writes no more
_THICKNESS_IN_LESION, _CONTRAST_IN_LESION = 0.5, 0.3
_FLOAT = 3  # code of float32 in an MGH file

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cortex:
    """Measures of one scan by vertex of fsaverage5, left then right.

    Parameters
    ----------
    thickness, sulcal_depth
        mm (vertex,).
    wg_contrast
        Grey/white contrast as FreeSurfer has it, 100 (white - grey) / mean of both, in %
        (vertex,).
    curvature
        1/mm (vertex,).
    """

    thickness: Floats
    wg_contrast: Floats
    curvature: Floats
    sulcal_depth: Floats


@dataclass(frozen=True)
class _Template:
    """What all people have in common."""

    thickness: Array
    curvature: Array
    sulcal_depth: Array
    cortex: npt.NDArray[np.bool_]
    blend: sparse.csr_array  # (vertex, parcel)
    knots: sparse.csr_array  # (vertex of both sides, knot)
    mm: Array


@functools.cache
def _template() -> _Template:
    """Read the template once a process."""

    def both(kind: str) -> Array:
        return np.concatenate([read_map(kind, side) for _, side in _SIDES])  # type: ignore[arg-type]

    parcel = vertex_parcels(reach=np.inf)
    own = sparse.csr_array(
        (np.ones(parcel.size), (np.arange(parcel.size), np.searchsorted(PARCELS, parcel))),
        shape=(parcel.size, len(PARCELS)),
    )
    edges = np.concatenate([finest_edges(), finest_edges() + N_SIDE])
    ones = np.ones(len(edges))
    neighbor = sparse.csr_array((ones, tuple(edges.T)), shape=(parcel.size,) * 2)
    neighbor = neighbor + neighbor.T
    mean = sparse.diags_array(1 / neighbor.sum(axis=1)) @ neighbor
    for _ in range(_BLENDS):
        own = sparse.csr_array(0.5 * own + 0.5 * (mean @ own))
    return _Template(
        both("thickness"),
        both("curvature"),
        both("sulcal_depth"),
        is_cortex(),
        own,
        sparse.csr_array(sparse.block_diag([interpolation(_KNOTS)] * 2)),
        np.concatenate([cortex_points(side) for _, side in _SIDES]),
    )


def draw_cortex(
    person: Person,
    *,
    deviation: Array,
    cohorts: CohortEffects,
    seed: int,
    parameters: SimulationParameters,
    scan: int = 0,
    lesion: npt.NDArray[np.bool_] | None = None,
) -> Cortex:
    r"""Draw the cortex of a person in one scan.

    Parameters
    ----------
    person
        The person.
    deviation
        True deviation of each parcel with the effects of a lesion, years (parcel,).
    cohorts
        Scanner effects.
    seed
        Seed of the simulation.
    parameters
        Parameters of the simulation.
    scan
        Number of the scan, as for :func:`~scalebrain.simulate.draw.draw_scan`.
    lesion
        Which vertices are lesioned (vertex,).

    Returns
    -------
    Cortex
        By vertex of fsaverage5.

    Notes
    -----
    With the log volume :math:`v` and log contrast :math:`c` of a person's scan in each parcel
    (those of the volume simulation, so the truth and its oracle are the same), blended over the
    borders of parcels, thickness is :math:`t\,e^{v + a + e}` with the template's :math:`t`, and
    the fraction :math:`(white - grey) / white` is :math:`q = q_0 e^{c + a + e}`, written as
    :math:`100\,q / (1 - q / 2)`. The person's own anatomy :math:`a` has independent values on the
    642 vertices of a coarser icosphere with straight lines between, the scan's error :math:`e` on
    every vertex. A lesioned vertex keeps a half of its thickness and three tenths of its contrast.
    As recon-all does it, thickness is clipped to 0 to 5 mm: less than one value in a thousand is
    beyond 5 mm, all of them in the insula and the temporal lobe.
    """
    p, template = parameters, _template()
    log_volume, log_contrast, rng = scan_latents(
        person, deviation=deviation, cohorts=cohorts, seed=seed, parameters=p, scan=scan
    )
    own = generator(seed, "anatomy", *person.key)
    knots, n = template.knots.shape[1], template.thickness.size

    def field(latent: Array | None, anatomy_sd: float, noise_sd: float) -> Array:
        out = template.knots @ (anatomy_sd * own.standard_normal(knots))
        out += noise_sd * rng.standard_normal(n)
        return np.asarray(out if latent is None else out + template.blend @ latent)

    thickness = template.thickness * np.exp(
        field(log_volume, p.thickness_anatomy_sd, p.thickness_noise_sd)
    )
    fraction = p.grey_white_contrast * np.exp(
        field(log_contrast, p.surface_contrast_anatomy_sd, p.surface_contrast_noise_sd)
    )
    if lesion is not None:
        thickness[lesion] *= _THICKNESS_IN_LESION
        fraction[lesion] *= _CONTRAST_IN_LESION
    np.clip(thickness, 0, _THICKEST, out=thickness)
    contrast = np.where(template.cortex, 100 * fraction / (1 - fraction / 2), 0)
    folds = [
        values + _FOLDS * values.std() * field(None, 1.0, 0.0)
        for values in (template.curvature, template.sulcal_depth)
    ]
    return Cortex(*(values.astype(np.float32) for values in (thickness, contrast, *folds)))


def lesioned_vertices(brain: Anatomy, voxels: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which vertices (vertex,) have a lesioned voxel at mid-thickness.

    Parameters
    ----------
    brain
        Template brain.
    voxels
        Lesion, as positions among the brain's voxels.

    Returns
    -------
    ndarray of bool
        (vertex,).
    """
    grid = brain.grid
    inverse = np.linalg.inv(grid.matrix)
    ijk = np.rint(_template().mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
    flat = np.ravel_multi_index(tuple(ijk.T), grid.shape, mode="clip", order="F")
    mask = np.zeros(grid.size, dtype=bool)
    mask[brain.inside[voxels]] = True
    return np.asarray(mask[flat])


def _folder(tree: Path, subject: str) -> Path:
    """Subject directory of a person in a tree."""
    return tree / "freesurfer" / f"sub-{subject}"


def is_written(tree: Path, subject: str) -> bool:
    """Whether the folder of a person is whole; what says that it is done is written last."""
    return (_folder(tree, subject) / _DONE).exists()


def write_cortex(tree: Path, subject: str, cortex: Cortex) -> None:
    """Write a person's measures as recon-all writes them with ``-qcache -target fsaverage5``.

    Parameters
    ----------
    tree
        Folder of the BIDS tree.
    subject
        BIDS label without ``sub-``.
    cortex
        The measures.
    """
    folder = _folder(tree, subject)
    (folder / "surf").mkdir(parents=True, exist_ok=True)
    for measure, name in _FILES.items():
        values = getattr(cortex, measure)
        for i, (side, _) in enumerate(_SIDES):
            one = values[i * N_SIDE : (i + 1) * N_SIDE]
            (folder / "surf" / f"{side}.{name}").write_bytes(_mgh_bytes(one))
    write_atomic(folder / _STAMP, _VERSION.encode())
    write_atomic(folder / _DONE, b"simulated\n")


def _mgh_bytes(values: Floats) -> bytes:
    """Make an MGH file of one value a vertex."""
    header = struct.pack(">7ih", 1, values.size, 1, 1, 1, _FLOAT, 0, 0)
    return header.ljust(284, b"\0") + values.astype(">f4").tobytes()
