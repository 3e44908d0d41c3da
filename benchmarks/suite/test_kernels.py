"""Kernels on rows in memory, beside a NumPy twin."""

import numpy as np
import pytest

from scalebrain.features.lesion_numba_fns import lesioned_slices
from scalebrain.features.parcellation_numba_fns import (
    N_MOMENTS,
    add_moments,
    segment_counts,
    tissue_means,
)

N_VOXELS, N_SEGMENTS = 240_000, 90


@pytest.fixture(scope="module")
def row():
    """One row of an image at 2 mm."""
    return np.random.default_rng(0).normal(900, 90, N_VOXELS).astype(np.float32)


@pytest.fixture(scope="module")
def segments():
    """First and last-plus-one voxel of every segment, of unequal sizes."""
    inside = np.random.default_rng(1).choice(N_VOXELS, N_SEGMENTS, replace=False)
    ends = np.sort(inside).astype(np.int64)
    return np.concatenate([[0], ends[:-1]]).astype(np.int64), ends


@pytest.fixture(scope="module")
def lesion():
    """A lesion of 3 % of the voxels, in one run."""
    out = np.zeros((1, N_VOXELS), dtype=bool)
    out[0, 100_000:107_200] = True
    return out


@pytest.mark.parametrize("level", [1, 3])
def test_add_moments__means_of_segments(benchmark, row, segments, level):
    def work():
        out = np.zeros((N_SEGMENTS, N_MOMENTS))
        add_moments(row, *segments, level, out)
        return out

    found = benchmark(work)
    parts = [row[a:b].astype(np.float64) for a, b in zip(*segments, strict=True)]
    np.testing.assert_array_equal(found[:, 0], [one.size for one in parts])
    np.testing.assert_allclose(found[:, 1], [one.mean() for one in parts], rtol=1e-9)
    if level == 3:
        np.testing.assert_array_equal(found[:, 3], [one.min() for one in parts])


def test_tissue_means__weighted_by_grey_matter(benchmark, row, segments, lesion):
    grey = np.random.default_rng(2).random((1, N_VOXELS), dtype=np.float32)
    out = np.empty((1, N_SEGMENTS))
    benchmark(tissue_means, row[None], grey, lesion, *segments, out)
    weight = np.where(lesion, 0, (grey.astype(np.float64) + 0.01) ** 4)[0]
    expected = [
        np.average(row[a:b], weights=weight[a:b]) if weight[a:b].any() else np.nan
        for a, b in zip(*segments, strict=True)
    ]
    np.testing.assert_allclose(out[0], expected, rtol=1e-9)


def test_segment_counts__lesioned_voxels(benchmark, segments, lesion):
    out = np.zeros((1, N_SEGMENTS), dtype=np.int64)
    benchmark(segment_counts, lesion, *segments, out)
    expected = [lesion[0, a:b].sum() for a, b in zip(*segments, strict=True)]
    np.testing.assert_array_equal(out[0], expected)


def test_lesioned_slices__probabilities_by_slice(benchmark, lesion):
    rng = np.random.default_rng(3)
    probability = rng.random((2, N_VOXELS), dtype=np.float32)
    label = rng.integers(0, 95, N_VOXELS).astype(np.int32)
    out = np.empty((1, 2, 95))
    benchmark(lesioned_slices, lesion, probability, label, out)
    expected = [np.bincount(label, p.astype(np.float64) * lesion[0], 95) for p in probability]
    np.testing.assert_allclose(out[0], expected, rtol=1e-9, atol=1e-12)
