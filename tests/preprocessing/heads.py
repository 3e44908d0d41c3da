"""Synthetic heads in native space: the asymmetric template in a skull, moved by a known affine."""

import nibabel as nib
import numpy as np
from scipy import ndimage

from scalebrain.atlas.space import Grid, asymmetric_template, brain_mask, template_grid

#: Lesion's center (mm in the template) and its radius: on the right, before the middle.
CENTER, RADIUS = np.array([36.0, 8.0, 20.0]), 17.0
STEP = 2.0


def known_affine(tilt=8.0, size=0.94, shift=(4.0, -9.0, 12.0)):
    """From points of the template to points of the scan."""
    angle = np.deg2rad(tilt)
    turn = np.array(
        [[1, 0.02, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array([size, size * 1.02, size * 0.98])
    matrix[:3, 3] = shift
    return matrix


def make_head(*, lesion=False, mirrored=False, seed=0, affine=None):
    """Scan, mask (or None), grid and affine of a head; `mirrored` exchanges left and right."""
    affine = known_affine() if affine is None else affine
    template = template_grid(STEP)
    brain = asymmetric_template(template, mirrored=mirrored).astype(np.float64)
    brain /= np.percentile(brain[brain > 0], 99)
    pad = 16
    brain = np.pad(brain, pad)
    origin = template.matrix.copy()
    origin[:3, 3] -= pad * STEP
    inside = ndimage.binary_fill_holes(brain > 0.02)
    away = ndimage.distance_transform_edt(~inside, sampling=STEP)
    head = np.where(inside, np.maximum(brain, 0.12), 0)
    head[(away > 0) & (away <= 4)] = 0.12
    head[(away > 4) & (away <= 9)] = 0.05
    head[(away > 9) & (away <= 15)] = 0.75
    grid = Grid.from_matrix(head.shape, origin)
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    neck = (np.hypot(mm[..., 0], mm[..., 1] + 30) < 45) & (mm[..., 2] < -65) & (away > 15)
    head[neck] = 0.5
    native = Grid.from_matrix(
        (96, 112, 104), [[STEP, 0, 0, -92], [0, STEP, 0, -132], [0, 0, STEP, -88], [0, 0, 0, 1]]
    )
    to_template = np.linalg.inv(affine) @ native.matrix
    index = np.linalg.inv(origin) @ to_template
    scan = ndimage.affine_transform(
        head, index[:3, :3], index[:3, 3], output_shape=native.shape, order=1
    )
    points = native.coordinates(np.arange(native.size)).reshape(*native.shape, 3)
    mask = None
    if lesion:
        there = points @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
        mask = np.linalg.norm(there - CENTER, axis=-1) < RADIUS
        scan[mask] = 0.14
    rng = np.random.default_rng(seed)
    scan *= 1 + 0.15 * np.sin(points @ np.array([0.008, 0.006, -0.007]))
    scan = np.maximum(scan + rng.normal(0, 0.015, scan.shape), 0)
    return (900 * scan).astype(np.float32), mask, native, affine


def save_turned(path, data, grid):
    """Write an image with its axes in another order and direction, at the same place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, grid.matrix)
    image.as_reoriented([[0, -1], [2, 1], [1, -1]]).to_filename(path)


def brain_in(grid, affine):
    """Where the brain of a head lies: the template's mask at its known place."""
    template = template_grid(STEP)
    index = np.linalg.inv(template.matrix) @ np.linalg.inv(affine) @ grid.matrix
    moved = ndimage.affine_transform(
        brain_mask(template).astype(np.float32),
        index[:3, :3],
        index[:3, 3],
        output_shape=grid.shape,
        order=1,
    )
    return moved > 0.5
