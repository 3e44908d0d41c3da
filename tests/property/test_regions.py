"""Laws of parcellation and lesion loads, over drawn brains, masks, chunks and orders."""

import numpy as np
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import scalebrain
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet
from scalebrain.atlas.space import Grid
from scalebrain.features.lesion_policy import mirror_of

SHAPE = (8, 5, 6)
REGIONS = RegionSet("halves", {"a_L": (1, 3), "a_R": (2, 4), "b_L": (3, 5), "b_R": (4, 6)})


def grid() -> Grid:
    """Unequal sides, symmetric about x = 0: voxels at -7, -5, ..., 7 mm."""
    matrix = np.diag([2.0, 3.0, 2.0, 1.0])
    matrix[:3, 3] = [-7, -4, 1]
    return Grid.from_matrix(SHAPE, matrix)


def brain(n_subjects: int, seed: int, share: float) -> xr.Dataset:
    """Symmetric parcels, sorted as in a store, with images and lesion masks drawn at random."""
    rng = np.random.default_rng(seed)
    space = grid()
    i, j, _ = np.indices(SHAPE)
    depth = np.minimum(i, SHAPE[0] - 1 - i)
    band = np.where(depth == 0, 0, 1 + 2 * (j % 3))  # 0: no parcel
    parcel = np.where(band == 0, 0, band + (i >= SHAPE[0] // 2))
    flat = np.argsort(parcel.ravel(), kind="stable")
    mm = space.coordinates(flat).astype(np.float32)
    attrs = {"affine": space.matrix.tolist(), "shape": list(SHAPE)}
    t1w = rng.normal(100, 20, (n_subjects, flat.size)).astype(np.float32)
    t1w[rng.random(t1w.shape) < 0.02] = np.nan
    return xr.Dataset(
        {
            "t1w": (("subject", "voxel"), t1w),
            "lesion_mask": (("subject", "voxel"), rng.random(t1w.shape) < share),
        },
        coords={
            "subject": [f"sub-{s:02d}" for s in range(n_subjects)],
            "parcel": ("voxel", parcel.ravel()[flat].astype(np.int32)),
            **{a: ("voxel", mm[:, axis], attrs) for axis, a in enumerate("xyz")},
        },
    )


def flipped(ds: xr.Dataset) -> xr.Dataset:
    """Left and right exchanged in the images, the voxels as they were."""
    mirror = mirror_of(ds)
    assert mirror.weight == 0
    return ds.assign(
        {n: (ds[n].dims, ds[n].values[:, mirror.nearer]) for n in ("t1w", "lesion_mask")}
    )


def symmetric_atlas() -> Atlas:
    """Labels in another order than the parcels', symmetric, on the same grid."""
    i, _, k = np.indices(SHAPE)
    depth = np.minimum(i, SHAPE[0] - 1 - i)
    labels = 1 + 2 * (k % 2) + (i >= SHAPE[0] // 2) + 10 * (depth % 2)
    codes = sorted(set(labels.ravel().tolist()))
    names = tuple(f"r{c // 10}{(c % 10 - 1) // 2}_{'LR'[(c % 10 + 1) % 2]}" for c in codes)
    return Atlas("symmetric", grid(), names, tuple(codes), labels=labels.astype(np.int32))


def swapped(names: xr.DataArray) -> list[str]:
    return [str(n)[:-1] + {"L": "R", "R": "L"}[str(n)[-1]] for n in names.values]


brains = st.builds(
    brain,
    n_subjects=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


@given(brains)
def test_mirrored_brain__has_its_hemispheres_swapped(ds):
    other = flipped(ds)
    for regions in (REGIONS, symmetric_atlas()):
        for function, name in (
            (scalebrain.lesion_load, "lesion_load"),
            (lambda d, regions: scalebrain.parcellate(
                d, regions=regions, statistics=("mean", "sd", "median", "count")
            ), "t1w_mean"),
        ):  # fmt: skip
            one, two = function(ds, regions=regions), function(other, regions=regions)
            for variable in one.data_vars:
                again = two[variable].sel(region=swapped(one["region"]))
                np.testing.assert_allclose(again.values, one[variable].values, rtol=1e-12)
            assert name in one


@given(brains)
def test_lesion_load__is_a_fraction_and_whole_only_when_all_is_lesioned(ds):
    for regions in (REGIONS, symmetric_atlas()):
        load = scalebrain.lesion_load(ds, regions=regions)["lesion_load"]
        assert ((load >= 0) & (load <= 1)).all()
    if ds["lesion_mask"].all():
        assert (load == 1).all()
    if not ds["lesion_mask"].any():
        assert (load == 0).all()


@given(brains)
def test_union__is_the_sum_weighted_by_size(ds):
    parts = RegionSet("p", {"x_L": (1,), "x_R": (2,), "y_L": (3, 5), "y_R": (4, 6)})
    union = RegionSet("u", {"u_L": (1, 3, 5), "u_R": (2, 4, 6)})
    load = scalebrain.lesion_load(ds, regions=parts)["lesion_load"]
    whole = scalebrain.lesion_load(ds, regions=union)["lesion_load"]
    mean = scalebrain.parcellate(ds, regions=parts, statistics=("mean", "count"))
    both = scalebrain.parcellate(ds, regions=union, statistics=("mean", "count"))
    parcel = ds["parcel"].values
    for side, odd in (("L", 1), ("R", 2)):
        a, b = (parcel == odd).sum(), np.isin(parcel, [odd + 2, odd + 4]).sum()
        expected = (load.sel(region=f"x_{side}") * a + load.sel(region=f"y_{side}") * b) / (a + b)
        np.testing.assert_allclose(whole.sel(region=f"u_{side}"), expected, rtol=1e-12)
        some = mean.sel(region=[f"x_{side}", f"y_{side}"])
        total = some["t1w_count"].sum("region")
        expected = (some["t1w_mean"] * some["t1w_count"]).sum("region") / total
        np.testing.assert_allclose(both["t1w_mean"].sel(region=f"u_{side}"), expected, rtol=1e-6)
        np.testing.assert_array_equal(both["t1w_count"].sel(region=f"u_{side}"), total)


@given(brains, st.data())
def test_permuted_subjects__permute_rows_bit_for_bit(ds, data):
    n = ds.sizes["subject"]
    order = data.draw(st.permutations(range(n)))
    rows = data.draw(st.integers(1, n))
    moved = ds.isel(subject=list(order)).chunk(subject=rows)
    atlas = symmetric_atlas()
    for found, expected in (
        (
            scalebrain.lesion_load(moved, regions=REGIONS),
            scalebrain.lesion_load(ds, regions=REGIONS),
        ),
        (
            scalebrain.parcellate(moved, regions=atlas, statistics=("mean", "variance", "median")),
            scalebrain.parcellate(ds, regions=atlas, statistics=("mean", "variance", "median")),
        ),
    ):
        xr.testing.assert_equal(found.compute(), expected.isel(subject=list(order)))
    frequency = scalebrain.lesion_frequency(moved)["lesion_frequency"].compute()
    np.testing.assert_array_equal(frequency, scalebrain.lesion_frequency(ds)["lesion_frequency"])


@given(brains)
def test_enantiomorphic__twice_mirrored_fills_the_same(ds):
    one = scalebrain.enantiomorphic(ds)["t1w"].values
    other = flipped(scalebrain.enantiomorphic(flipped(ds)))["t1w"].values
    np.testing.assert_array_equal(one, other)
