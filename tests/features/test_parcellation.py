"""Parcellation of a store, against NumPy, SciPy and nilearn."""

import pickle
import warnings

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.maskers import NiftiLabelsMasker, NiftiMapsMasker
from scipy import ndimage

import scalebrain
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.atlas.space import Grid, brain_mask, template_grid
from scalebrain.errors import ConfigError, GeometryError, MissingVariableError
from scalebrain.features import parcellation_numba_fns as kernels
from scalebrain.features.label_blocks import groups_of_labels
from scalebrain.features.parcellation import joined_moments, quantiles_of
from scalebrain.features.segments import BLOCK, Segments, locate
from scalebrain.ingestion.geometry import static_variables
from scalebrain.io.rows import row_source
from scalebrain.io.shards import EncodedRow, encode_row, encoded_row
from scalebrain.io.shards_numba_fns import COLUMN, HAS_DECODER
from tests.phantom import image_path

EVERY = ("count", "mean", "variance", "sd", "minimum", "maximum", "median")
Q = (0.0, 0.1, 0.5, 0.77, 1.0)
needs_decoder = pytest.mark.skipif(not HAS_DECODER, reason="numcodecs does not show its LZ4")


def twin(values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)].astype(np.float64)
    if not known.size:
        return {"count": 0} | dict.fromkeys(EVERY[1:], np.nan)
    return {
        "count": known.size,
        "mean": known.mean(),
        "variance": known.var(),
        "sd": known.std(),
        "minimum": known.min(),
        "maximum": known.max(),
        "median": np.median(known),
    }


def blocks_atlas(ds: xr.Dataset, *, grid: Grid | None = None) -> Atlas:
    """Labels in another order than the parcels, on a grid of their own: 37 boxes."""
    grid = grid or template_grid(4.0)
    i, j, k = np.indices(grid.shape)
    labels = (1000 + (i // 9) * 100 + (j // 11) * 10 + k // 12).astype(np.int32)
    labels[((i + j) % 13 == 0) | ~brain_mask(grid)] = 0
    ijk = np.linalg.inv(grid.matrix) @ np.stack([*(ds[a].values for a in "xyz"), ds.x * 0 + 1])
    ijk = np.clip(np.rint(ijk[:3]).astype(int), 0, np.array(grid.shape)[:, None] - 1)
    stored = np.unique(labels[tuple(ijk)])
    codes = [int(c) for c in stored[stored > 0]][::-1]
    labels[~np.isin(labels, codes)] = 0
    return Atlas("boxes", grid, tuple(f"b{c}" for c in codes), tuple(codes), labels=labels)


def labels_of(ds: xr.Dataset, atlas: Atlas) -> np.ndarray:
    """Label of every voxel of a store, by coordinate."""
    inverse = np.linalg.inv(atlas.grid.matrix)
    mm = np.stack([ds[a].values for a in "xyz"], axis=1).astype(float)
    ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    return atlas.labels[tuple(ijk.T)]


def with_holes(ds: xr.Dataset) -> xr.Dataset:
    t1w = ds["t1w"].values.copy()
    rng = np.random.default_rng(1)
    t1w[3, rng.random(t1w.shape[1]) < 0.01] = np.nan
    t1w[4, ds["parcel"].values == 2] = np.nan
    t1w[5] = np.nan
    t1w[6, ds["parcel"].values == 1] *= -1
    return ds.assign(t1w=(ds["t1w"].dims, t1w)).chunk(subject=3)


@pytest.mark.parametrize("kind", ["parcels", "regions", "atlas"])
@pytest.mark.parametrize("nan", ["omit", "propagate"])
def test_parcellate__equals_a_numpy_twin(ds, kind, nan):
    ds = with_holes(ds)
    parcel = ds["parcel"].values
    if kind == "parcels":
        regions, members = None, {c: parcel == c for c in np.unique(parcel[parcel > 0])}
    elif kind == "regions":
        regions = default_regions()
        members = {r: np.isin(parcel, regions.parcels[r]) for r in regions.regions}
    else:
        regions = blocks_atlas(ds)
        label = labels_of(ds, regions)
        members = {r: label == c for r, c in zip(regions.regions, regions.codes, strict=True)}
    lazy = scalebrain.parcellate(ds, regions=regions, statistics=EVERY, quantiles=Q, nan=nan)
    assert lazy["t1w_mean"].chunks
    found = lazy.compute()
    dim = "parcel" if kind == "parcels" else "region"
    assert found["t1w_mean"].dims == ("subject", dim)
    for subject in (0, 3, 4, 5, 6, 19):
        row = ds["t1w"].values[subject]
        for name, member in members.items():
            one = found.isel(subject=subject).sel({dim: name})
            values = row[member]
            spoiled = nan == "propagate" and np.isnan(values).any()
            for statistic, expected in twin(values).items():
                if spoiled and statistic != "count":
                    expected = np.nan
                assert one[f"t1w_{statistic}"].item() == pytest.approx(
                    expected, rel=1e-6, nan_ok=True
                ), (subject, name, statistic)
            expected = (
                np.full(len(Q), np.nan)
                if spoiled or np.isnan(values).all()
                else np.nanquantile(values.astype(float), Q)
            )
            np.testing.assert_allclose(one["t1w_quantile"], expected, rtol=1e-6)


def test_parcellate__equals_nilearn_and_scipy(ds, bids_tree):
    parcels = scalebrain.unpack(ds["parcel"])
    image = nib.Nifti1Image(parcels.values.astype(np.int32), parcels.attrs["affine"])
    found = scalebrain.parcellate(ds, statistics=EVERY).sel(subject="sub-017").compute()
    path = image_path(bids_tree, "sub-017", "desc-preproc_T1w")
    for statistic in ("mean", "median", "minimum", "maximum", "variance"):
        masker = NiftiLabelsMasker(image, strategy=statistic, standardize=None)
        theirs = masker.fit_transform(str(path)).ravel()
        np.testing.assert_allclose(found[f"t1w_{statistic}"], theirs, rtol=1e-6)
    volume = scalebrain.unpack(ds["t1w"].sel(subject="sub-017")).values.astype(float)
    theirs = ndimage.standard_deviation(volume, parcels.values, ds["parcel"].values.max())
    assert found["t1w_sd"].isel(parcel=-1).item() == pytest.approx(theirs, rel=1e-6)


def test_parcellate__probability_maps_equal_nilearn(ds, bids_tree):
    parcels = scalebrain.unpack(ds["parcel"])
    grid = Grid.from_matrix(parcels.shape, parcels.attrs["affine"])
    inside = scalebrain.unpack(xr.ones_like(ds["parcel"])).values
    i, j, k = np.indices(grid.shape)
    maps = np.stack(
        [np.exp(-((i - 15) ** 2 + (j - c) ** 2 + (k - 20) ** 2) / 80) for c in (20, 30)]
    )
    maps = (maps * (maps > 1e-3) * inside).astype(np.float32)
    atlas = Atlas("blobs", grid, ("back", "front"), maps=maps)
    found = (
        scalebrain.parcellate(ds, regions=atlas, statistics=("count", "mean", "sd", "minimum"))
        .sel(subject="sub-003")
        .compute()
    )
    volume = scalebrain.unpack(ds["t1w"].sel(subject="sub-003")).values
    for r in range(2):
        p, x = maps[r].astype(float).ravel(), np.nan_to_num(volume).astype(float).ravel()
        mean = (p * x).sum() / p.sum()
        assert found["t1w_count"][r].item() == pytest.approx(p.sum(), rel=1e-6)
        assert found["t1w_mean"][r].item() == pytest.approx(mean, rel=1e-6)
        sd = np.sqrt((p * (x - mean) ** 2).sum() / p.sum())
        assert found["t1w_sd"][r].item() == pytest.approx(sd, rel=1e-6)
        assert found["t1w_minimum"][r].item() == x[p > 0].min()
    # nilearn fits maps by least squares: the same for one map of equal weights
    flat = (maps[:1] > 0.5).astype(np.float32)
    one = scalebrain.parcellate(ds, regions=Atlas("one", grid, ("back",), maps=flat)).compute()
    image = nib.Nifti1Image(np.moveaxis(flat, 0, -1), grid.matrix)
    theirs = NiftiMapsMasker(image, standardize=None).fit_transform(
        str(image_path(bids_tree, "sub-003", "desc-preproc_T1w"))
    )
    assert one["t1w_mean"].sel(subject="sub-003").item() == pytest.approx(theirs.item(), rel=1e-6)
    with pytest.raises(ConfigError, match="quantiles are not defined"):
        scalebrain.parcellate(ds, regions=atlas, statistics=("median",))


@pytest.mark.parametrize("rows", [1, 4, 7, 20])
def test_parcellate__does_not_depend_on_chunks_or_order(ds, rows):
    atlas = blocks_atlas(ds)
    expected = scalebrain.parcellate(ds, regions=atlas, statistics=EVERY).compute()
    order = np.random.default_rng(rows).permutation(ds.sizes["subject"])
    found = scalebrain.parcellate(
        ds.isel(subject=order).chunk(subject=rows), regions=atlas, statistics=EVERY
    ).compute()
    for name in expected:
        np.testing.assert_array_equal(
            found[name].sel(subject=expected["subject"]).values, expected[name].values
        )
    eager = scalebrain.parcellate(ds.load(), regions=atlas, statistics=EVERY)
    xr.testing.assert_equal(eager, expected)


def test_parcellate__an_atlas_on_a_finer_grid_is_looked_up_by_coordinate(ds):
    fine = template_grid(2.0)
    x = fine.coordinates(np.arange(fine.size))[:, 0].reshape(fine.shape)
    around = ndimage.binary_dilation(brain_mask(fine), iterations=5)  # parcels reach out of it
    labels = np.where(around, np.where(x < 0, 1, 2), 0).astype(np.int32)
    found = scalebrain.parcellate(
        ds, regions=Atlas("halves", fine, ("half_L", "half_R"), (1, 2), labels=labels)
    ).compute()
    # 4 mm voxels have their centers on the 2 mm grid
    left = ds["x"].values < 0
    expected = ds["t1w"].values[:, left].mean(axis=1, dtype=float)
    np.testing.assert_allclose(found["t1w_mean"].sel(region="half_L"), expected, rtol=1e-6)


def test_parcellate__union_of_parcels_is_their_weighted_mean(ds):
    parts = scalebrain.parcellate(ds, statistics=("count", "mean")).compute()
    union = RegionSet("u", {"u_L": (1, 19, 57), "u_R": (2, 20, 58)})
    whole = scalebrain.parcellate(ds, regions=union).compute()["t1w_mean"]
    some = parts.sel(parcel=[1, 19, 57])
    expected = (some.t1w_mean * some.t1w_count).sum("parcel") / some.t1w_count.sum("parcel")
    np.testing.assert_allclose(whole.sel(region="u_L"), expected, rtol=1e-12)


def test_parcellate__says_what_it_cannot_do(ds):
    with pytest.raises(ConfigError, match=r"average.*expected some of count, mean"):
        scalebrain.parcellate(ds, statistics=("average",))
    with pytest.raises(ConfigError, match="0 to 1"):
        scalebrain.parcellate(ds, quantiles=(5,))
    with pytest.raises(ConfigError, match="Nothing to compute"):
        scalebrain.parcellate(ds, statistics=())
    with pytest.raises(MissingVariableError, match="'flair' is missing"):
        scalebrain.parcellate(ds, variable="flair")
    with pytest.raises(MissingVariableError, match=r"expected \(subject, voxel\)"):
        scalebrain.parcellate(ds, variable="age")
    far = template_grid(4.0)
    corner = np.zeros(far.shape, dtype=np.int32)
    corner[0, 0, 0] = 7
    with pytest.raises(GeometryError, match="no voxel of air"):
        scalebrain.parcellate(ds, regions=Atlas("a", far, ("air",), (7,), labels=corner))
    order = np.random.default_rng(0).permutation(ds.sizes["voxel"])
    with pytest.raises(GeometryError, match="not sorted"):
        scalebrain.parcellate(ds.isel(voxel=order))


def test_parcellate__of_a_mask_is_its_fraction(ds):
    found = scalebrain.parcellate(ds, variable="lesion_mask", regions=default_regions())
    loads = scalebrain.lesion_load(ds)["lesion_load"].sel(subject="sub-016")
    np.testing.assert_allclose(found["lesion_mask_mean"].sel(subject="sub-016"), loads, rtol=1e-12)


def test_segments__travel_packed(ds):
    segments = locate(ds, blocks_atlas(ds))
    content = pickle.dumps(segments)
    assert len(content) < segments.order.nbytes / 4
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.order, segments.order)
    np.testing.assert_array_equal(again.label, segments.label)
    atlas = pickle.loads(pickle.dumps(blocks_atlas(ds)))
    assert atlas.sha256 == blocks_atlas(ds).sha256


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_gathered_moments__of_any_type_equal_numpy(dtype):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 200, (2, 1000)).astype(dtype)
    if dtype.startswith("float"):
        raw[1, 3] = np.nan
    order = rng.permutation(1000)[:700].astype(np.uint32)
    starts, stops = np.array([0, 5, 5, 300]), np.array([5, 5, 300, 700])
    for level in (1, 2, 3):
        out = np.full((2, 4, 5), -1.0)
        kernels.gathered_moments(raw, order, starts, stops, 2.0, -7.0, level, out)
        for i in range(2):
            for s in range(4):
                values = raw[i, order[starts[s] : stops[s]]].astype(float) * 2 - 7
                expected = twin(values)
                assert out[i, s, 0] == expected["count"]
                assert out[i, s, 1] == pytest.approx(expected["mean"], nan_ok=True)
                if level > 1 and expected["count"]:
                    squares = expected["variance"] * expected["count"]
                    assert out[i, s, 2] == pytest.approx(squares)
                if level > 2 and expected["count"]:
                    assert out[i, s, 3] == expected["minimum"]
                    assert out[i, s, 4] == expected["maximum"]


def test_moments__of_negative_infinite_and_signed_zero_values():
    row = np.array([-3.5, -0.0, 0.0, 2.0, np.inf, 1.0, np.nan, np.nan], dtype=np.float32)
    starts, stops = np.array([0, 0, 4, 6, 2, 8]), np.array([4, 2, 6, 8, 7, 8])
    out = np.zeros((6, 5))
    kernels.add_moments(row, starts, stops, 3, out)
    np.testing.assert_array_equal(out[0, [0, 1, 3, 4]], [4, -0.375, -3.5, 2])
    np.testing.assert_array_equal(out[1, 3:], [-3.5, 0])
    assert out[2, 1] == np.inf
    assert out[2, 4] == np.inf
    np.testing.assert_array_equal(out[4, [0, 3, 4]], [4, 0, np.inf])
    np.testing.assert_array_equal(out[[3, 5], 0], 0)


def encoded(row: np.ndarray, first: int) -> tuple:
    """Row as a kernel takes it, encoded, from position `first` on."""
    found = encoded_row(memoryview(encode_row(row)), row.size, first, "shard")
    assert found is not None
    return found.content, found.bounds, found.first, found.n


@needs_decoder
@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("first", [0, -BLOCK, -77])
def test_add_encoded_moments__are_those_of_the_decoded_row(level, first):
    rng = np.random.default_rng(0)
    n = 6 * BLOCK + 77
    row = rng.normal(900, 90, n).astype(np.float32)
    row[rng.random(n) < 0.01] = np.nan
    row[BLOCK : 2 * BLOCK] = np.nan
    starts = np.array([0, 3, BLOCK - 9, BLOCK + 4, 3 * BLOCK + 1, 5 * BLOCK, 9])
    stops = np.array([3, 3, BLOCK + 4, 2 * BLOCK, 4 * BLOCK + 9, n + first, n + first - 8])
    whole, out = np.zeros((7, 5)), np.zeros((7, 5))
    kernels.add_moments(row[-first:] if first else row, starts, stops, level, whole)
    assert kernels.add_encoded_moments(*encoded(row, first), starts, stops, level, out)
    some = slice(0, level + 1 if level < 3 else 5)
    np.testing.assert_allclose(out[:, some], whole[:, some], rtol=1e-12)
    for s in range(7):
        known = row[starts[s] - first : stops[s] - first].astype(float)
        known = known[~np.isnan(known)]
        assert whole[s, 0] == known.size
        if known.size:
            assert whole[s, 1] == pytest.approx(known.mean(), rel=1e-12)


@needs_decoder
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("last", [77, 80])
@pytest.mark.parametrize("missing_share", [0, 1e-4, 0.01])
def test_add_sums__of_rows_and_encoded_rows_are_those_of_labels(before, last, missing_share):
    rng = np.random.default_rng(0)
    n = 4 * BLOCK + last
    row = rng.normal(900, 90, n).astype(np.float32)
    row[rng.random(n) < missing_share] = np.nan
    lengths = rng.integers(1, 40, n)
    label = np.repeat(rng.integers(0, 6, n), lengths)[:n].astype(np.uint16)  # the last is outside
    label[:BLOCK] = rng.integers(0, 6, BLOCK)
    label[BLOCK : 2 * BLOCK] %= 3
    label[2 * BLOCK : 3 * BLOCK] = 5
    size = np.bincount(label, minlength=6)[:5]
    stops = np.cumsum(size)
    order = np.argsort(label, kind="stable")[: stops[-1]].astype(np.uint32)
    segments = Segments(
        "region", tuple("abcde"), stops - size, stops, np.eye(5, dtype=bool), order, label=label
    )
    held = np.concatenate([np.zeros(before * BLOCK, dtype=np.float32), row])
    for of_row in (False, True):
        sums, missing = np.zeros(5), np.zeros(5, dtype=np.int64)
        if of_row:
            kernels.add_sums(row, *segments.groups, sums, missing)
        else:
            some = encoded(held, -before * BLOCK)
            assert kernels.add_encoded_sums(*some, *segments.groups, sums, missing)
        for code in range(5):
            values = row[label == code].astype(float)
            assert sums[code] == pytest.approx(np.nansum(values), rel=1e-12)
            assert missing[code] == np.isnan(values).sum()


def test_add_sums__an_infinite_voxel_stays_with_its_label():
    row = np.arange(64, dtype=np.float32)
    row[[3, 40]] = np.inf, -np.inf
    label = np.repeat([0, 1, 2, 0], 16).astype(np.uint16)
    sums, missing = np.zeros(3), np.zeros(3, dtype=np.int64)
    kernels.add_sums(row, *groups_of_labels(label, 3), sums, missing)
    np.testing.assert_array_equal(sums, [np.inf, row[16:32].sum(), -np.inf])
    np.testing.assert_array_equal(missing, 0)


@pytest.mark.parametrize("n", [1, 8, BLOCK, 2 * BLOCK + 13])
def test_groups_of_labels__hold_every_voxel_once(n):
    rng = np.random.default_rng(n)
    label = np.repeat(rng.integers(0, 4, n), rng.integers(1, 30, n))[:n].astype(np.uint16)
    found = groups_of_labels(label, 3)
    held = np.full(label.size, 3)
    for block in range(found.runs.size - 1):
        for run in range(found.runs[block], found.runs[block + 1]):
            begin, middle, end = found.bounds[2 * run : 2 * run + 3]
            assert (middle - begin) % 4 == 0
            assert (end - middle) % 4 == 0
            groups = found.place[begin:middle].astype(int)
            alone = found.place[middle:end].astype(int)
            column, m = np.divmod(groups[groups < kernels.N_GROUPS], COLUMN)
            voxels = [8 * (alone % COLUMN) + alone // COLUMN]
            voxels[0] = voxels[0][alone < BLOCK]
            for size, first in ((8, 6), (4, 4), (2, 0)):
                own = (column >= first) & (column < first + 8 // size)
                start = 8 * m[own] + size * (column[own] - first)
                voxels.append((start[:, None] + np.arange(size)).ravel())
            where = BLOCK * block + np.concatenate(voxels)
            assert (held[where] == 3).all()
            held[where] = found.label[run]
    np.testing.assert_array_equal(held, label)


def test_groups_of_labels__of_none_have_no_run():
    found = groups_of_labels(np.full(100, 3, dtype=np.uint16), 3)
    assert found.label.size == 0
    np.testing.assert_array_equal(found.runs, [0, 0])


def test_moments__stay_exact_far_from_zero():
    rng = np.random.default_rng(0)
    row = (1e6 + rng.normal(0, 1, 5000)).astype(np.float32)
    out = np.zeros((1, 5))
    kernels.add_moments(row, np.array([0]), np.array([5000]), 2, out)
    assert out[0, 2] / 5000 == pytest.approx(row.astype(float).var(), rel=1e-9)


def test_joined_moments__equal_those_of_the_values_together():
    rng = np.random.default_rng(0)
    row = rng.normal(5, 2, (1, 100)).astype(np.float32)
    starts, stops = np.array([0, 10, 40, 40]), np.array([10, 40, 40, 100])
    parts = np.zeros((1, 4, 5))
    kernels.add_moments(row[0], starts, stops, 3, parts[0])
    parts[0, 2, 1:] = np.nan  # a segment without values
    member = np.array([[True, False, False], [False, True, False], [True] * 3, [True, True, False]])
    joined = joined_moments(parts, member, 3)[0]
    first = np.concatenate([row[0, :10], row[0, 40:]]).astype(float)
    np.testing.assert_allclose(
        joined[0],
        [70, first.mean(), first.var() * 70, first.min(), first.max()],
        rtol=1e-12,
    )
    np.testing.assert_array_equal(joined[2], [0, np.nan, np.nan, np.nan, np.nan])


DRAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.integers(0, 5, n),
    "one value": lambda rng, n: np.full(n, 7.25),
    "far off": lambda rng, n: np.append(rng.normal(size=n - 1), 1e30),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) * 10.0 ** rng.integers(-30, 30, n),
    "whole range": lambda rng, n: np.where(rng.random(n) < 0.5, -3.4e38, 3.4e38),
    "tiny": lambda rng, n: rng.random(n) * 1e-44,
    "infinite": lambda rng, n: np.append(rng.normal(size=n - 1), np.inf),
    "powers": lambda rng, n: 2.0 ** -np.arange(n, dtype=float),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 5000])
def test_quantiles_of__equal_numpy(draw, n):
    values = DRAWS[draw](np.random.default_rng(n), n).astype(np.float32)
    q = np.array([0.0, 0.03, 0.25, 0.5, 0.5, 0.9, 0.97])
    segments = Segments("region", ("a",), np.array([0]), np.array([n]), np.ones((1, 1), dtype=bool))
    with np.errstate(invalid="ignore"):
        expected = np.quantile(values.astype(float), q)
    found = quantiles_of(values[None], segments, q, propagate=False)[0, 0]
    known = np.isfinite(expected)  # beside infinity NumPy has NaN even where nothing is mixed
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-12)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("propagate", [False, True])
def test_quantiles_of__unions_gathered_voxels_and_missing_ones(gathered, propagate):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 400)).astype(np.float32)
    rows[1, rng.random(400) < 0.3] = np.nan
    rows[2, :150] = np.nan
    order = rng.permutation(400)[:300].astype(np.uint32) if gathered else None
    starts, stops = np.array([0, 100, 150, 300]), np.array([100, 150, 300, 300])
    member = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    segments = Segments("region", tuple("abcd"), starts, stops, member, order)
    q = np.array([0.5, 0.1])
    found = quantiles_of(rows, segments, q, propagate=propagate)
    for i, row in enumerate(rows):
        lying = row if order is None else row[order]
        for r in range(4):
            pieces = [lying[starts[s] : stops[s]] for s in np.flatnonzero(member[:, r])]
            values = np.concatenate(pieces).astype(float)
            take = np.quantile if propagate else np.nanquantile
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = take(values, q) if values.size else np.full(2, np.nan)
            np.testing.assert_allclose(found[i, r], expected, rtol=1e-12)


@pytest.mark.parametrize("decoder", [pytest.param(True, marks=needs_decoder), False])
@pytest.mark.parametrize("statistics", [("mean", "count"), ("mean", "sd", "minimum", "maximum")])
@pytest.mark.parametrize("kind", ["parcels", "regions", "atlas"])
def test_parcellate__of_encoded_rows_is_that_of_rows_in_memory(
    tmp_path, monkeypatch, kind, statistics, decoder
):
    monkeypatch.setattr("scalebrain.io.shards.HAS_DECODER", decoder)
    static = static_variables(template_grid(2.0))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1800, (3, static.sizes["voxel"])).astype(np.float32)
    assert rows.shape[1] > 8 * BLOCK
    rows[1] *= np.float32(1.37)
    rows[2, rng.random(rows.shape[1]) < 0.01] = np.nan
    rows[2, BLOCK : 4 * BLOCK] = np.nan
    memory = static.assign(t1w=(("subject", "voxel"), rows)).assign_coords(subject=list("abc"))
    scalebrain.save_store(memory, tmp_path / "s.zarr")
    ds = scalebrain.open_store(tmp_path / "s.zarr")
    atlas = blocks_atlas(ds, grid=template_grid(2.0))
    regions = {"parcels": None, "regions": default_regions(), "atlas": atlas}[kind]
    span = locate(ds, regions).span
    row = next(iter(row_source(ds["t1w"].data).encoded(0, 1, span=span)))
    assert isinstance(row, EncodedRow) is decoder
    found = scalebrain.parcellate(ds, regions=regions, statistics=statistics).compute()
    expected = scalebrain.parcellate(memory, regions=regions, statistics=statistics)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, err_msg=name)
    if kind == "parcels":
        voxels = memory["parcel"].values == found["parcel"].values[3]
        values = [twin(row[voxels])["mean"] for row in rows]
        np.testing.assert_allclose(found["t1w_mean"][:, 3], values, rtol=1e-11)


def test_parcellate__one_statistic_is_one_task_a_block(ds):
    found = scalebrain.parcellate(ds)["t1w_mean"]
    several = scalebrain.parcellate(ds, statistics=("mean", "sd"))["t1w_mean"]
    assert len(found.data.__dask_graph__().layers) < len(several.data.__dask_graph__().layers)
    xr.testing.assert_identical(found.compute(), several.compute())


def test_parcellate__of_nobody_is_empty(ds):
    nobody = ds.isel(subject=[])
    assert scalebrain.parcellate(nobody)["t1w_mean"].compute().shape[0] == 0
    assert scalebrain.lesion_load(nobody)["lesion_load"].compute().shape == (0, 18)


@pytest.mark.parametrize("lazy", [True, False])
def test_parcellate__a_missing_mask_is_missing(ds, lazy):
    given = ds if lazy else ds.load()
    wanted = ("count", "mean", "maximum", "median")
    found = scalebrain.parcellate(
        given, variable="lesion_mask", statistics=wanted, quantiles=0.25
    ).compute()
    present = ds["lesion_present"].values.astype(bool)
    assert set(present.tolist()) == {True, False}
    for name in ("mean", "maximum", "median", "quantile"):
        values = found[f"lesion_mask_{name}"].values
        assert np.isnan(values[~present]).all()
        assert np.isfinite(values[present]).all()
    assert (found["lesion_mask_count"].values[~present] == 0).all()
    assert (found["lesion_mask_count"].values[present] > 0).all()


def test_parcellate__propagate_keeps_maps_without_a_missing_voxel(ds):
    rng = np.random.default_rng(0)
    grid = template_grid(4.0)
    maps = rng.random((40, *grid.shape), dtype=np.float32)
    maps[(maps < 0.6) | ~brain_mask(grid)] = 0
    maps[20:] *= 1e-4  # small beside the sum of those before
    names = tuple(f"r{i}" for i in range(40))
    atlas = Atlas("many", grid, names, maps=maps)
    found = scalebrain.parcellate(ds, regions=atlas, statistics=("count", "mean"), nan="propagate")
    size = locate(ds, atlas).size
    np.testing.assert_array_equal(found["t1w_count"], np.tile(size, (ds.sizes["subject"], 1)))
    assert np.isfinite(found["t1w_mean"]).all()


def test_parcellate__a_mistyped_nan_raises(ds):
    with pytest.raises(ConfigError, match=r"omitted.*omit or propagate"):
        scalebrain.parcellate(ds, nan="omitted")


def test_parcellate__takes_images_that_cannot_be_written(ds):
    both = ds[["t1w", "lesion_mask"]].load()
    for array in both.data_vars.values():
        array.values.flags.writeable = False
    given = ds.assign(both.data_vars)
    found = scalebrain.parcellate(given, quantiles=0.5)["t1w_quantile"]
    np.testing.assert_array_equal(found, scalebrain.parcellate(ds, quantiles=[0.5])["t1w_quantile"])
    for function in (scalebrain.lesion_frequency, scalebrain.lesion_measures):
        xr.testing.assert_equal(function(given).compute(), function(ds).compute())
