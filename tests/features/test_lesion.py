import dask
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from nilearn.maskers import NiftiLabelsMasker
from scipy import ndimage

import scalebrain
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.errors import ImageError, MissingVariableError, StatisticsError, TableError
from scalebrain.features.segments import voxel_index
from tests.features.test_parcellation import blocks_atlas, labels_of
from tests.phantom import image_path


def test_lesion_load__equals_nilearn(ds, bids_tree):
    parcels = scalebrain.unpack(ds["parcel"])
    loads = scalebrain.lesion_load(ds).compute()["lesion_load"]
    for region in ("SMN_L", "SAL_L", "VLN_R"):
        member = np.isin(parcels.values, default_regions().parcels[region]).astype(np.int32)
        atlas = nib.Nifti1Image(member, parcels.attrs["affine"])
        for subject in ("sub-016", "sub-017", "sub-018"):
            path = image_path(bids_tree, subject, "label-L_mask")
            image = nib.Nifti1Image(
                nib.load(path).get_fdata(dtype=np.float32), parcels.attrs["affine"]
            )
            theirs = NiftiLabelsMasker(atlas, standardize=None).fit_transform(image).item()
            assert loads.sel(subject=subject, region=region).item() == pytest.approx(
                theirs, rel=1e-6, abs=1e-9
            )


def test_lesion_load__is_missing_not_zero_without_a_mask(ds):
    loads = scalebrain.lesion_load(ds).compute()["lesion_load"]
    assert np.isnan(loads.sel(subject="sub-000")).all()
    known = loads.sel(subject=["sub-016", "sub-017"])
    assert ((known >= 0) & (known <= 1)).all()
    assert known.sel(subject="sub-016", region="SMN_R").item() == 0


def test_lesion_load__union_is_the_weighted_sum(ds):
    parts = RegionSet("p", {"a_L": (1,), "a_R": (2,), "b_L": (19, 57), "b_R": (20, 58)})
    union = RegionSet("u", {"u_L": (1, 19, 57), "u_R": (2, 20, 58)})
    size = {c: int((ds["parcel"] == c).sum()) for c in (1, 19, 57)}
    one = scalebrain.lesion_load(ds, regions=parts).compute()["lesion_load"]
    both = scalebrain.lesion_load(ds, regions=union).compute()["lesion_load"]
    rest = size[19] + size[57]
    weighted = (one.sel(region="a_L") * size[1] + one.sel(region="b_L") * rest) / (size[1] + rest)
    np.testing.assert_allclose(both.sel(region="u_L"), weighted, rtol=1e-12)


def test_tract_load__equals_the_formulas(ds):
    found = scalebrain.tract_load(ds).compute()
    mask = ds["lesion_mask"].sel(subject="sub-018").values
    z = ds["z"].values
    for tract in ("CST_L", "CST_R"):
        p = ds["tract_probability"].sel(tract=tract).values.astype(float)
        area = np.array([p[z == level].sum() for level in np.unique(z)])
        hit = np.array([(p * mask)[z == level].sum() for level in np.unique(z)])
        row = found.sel(subject="sub-018", tract=tract)
        assert row.tract_load.item() == pytest.approx((p * mask).sum() / p.sum())
        there = area > 0
        weighted = (hit[there] * area.max() / area[there]).sum() * 4**3 / 1000
        assert row.tract_load_weighted.item() == pytest.approx(weighted)
        wide = area >= 0.05 * area.max()
        assert row.tract_load_max.item() == pytest.approx((hit[wide] / area[wide]).max())
    assert found.tract_load.sel(subject="sub-018", tract="CST_L") > 0
    assert found.tract_load.sel(subject="sub-018", tract="CST_R") == 0


def test_lesion_frequency__counts_people_with_a_mask(ds):
    frequency = scalebrain.lesion_frequency(ds).compute()["lesion_frequency"]
    expected = ds["lesion_mask"].values[-4:].mean(axis=0)
    np.testing.assert_allclose(frequency, expected)
    assert frequency.attrs["n"] == 4


def test_to_lesional_sides__puts_the_lesion_on_the_ipsilesional_side(ds):
    loads = scalebrain.lesion_load(ds).compute()
    sided = scalebrain.to_lesional_sides(ds.assign(loads.data_vars)).lesion_load
    for subject, native in (("sub-016", "SMN_L"), ("sub-017", "SMN_R")):
        assert (
            sided.sel(subject=subject, region="SMN_ipsilesional").item()
            == loads.lesion_load.sel(subject=subject, region=native).item()
            > 0
        )
        assert sided.sel(subject=subject, region="SMN_contralesional").item() == 0
    assert np.isnan(sided.sel(subject="sub-019")).all()
    with pytest.raises(MissingVariableError, match="once"):
        scalebrain.to_lesional_sides(scalebrain.to_lesional_sides(ds.assign(loads.data_vars)))


@pytest.mark.parametrize("codes", [("left", "right"), ("l", "r"), (1, 2)])
def test_to_lesional_sides__refuses_sides_that_are_written_otherwise(codes):
    ds = xr.Dataset(
        {
            "lesion_load": (("subject", "region"), np.eye(2)),
            "lesion_hemisphere": ("subject", np.array(codes, dtype=object).astype(str)),
        },
        coords={"subject": ["a", "b"], "region": ["SMN_L", "SMN_R"]},
    )
    with pytest.raises(StatisticsError, match=f"got '{codes[0]}', '{codes[1]}' in 2.*Write L or R"):
        scalebrain.to_lesional_sides(ds)


def test_to_lesional_sides__shows_the_labels_that_have_no_partner():
    regions = ["SMN_L", "SMN_R", "Vermis_1", "Vermis_2", "VIS_L"]
    ds = xr.Dataset(
        {
            "lesion_load": (("subject", "region"), np.ones((1, 5))),
            "lesion_hemisphere": ("subject", ["L"]),
        },
        coords={"subject": ["a"], "region": regions},
    )
    with pytest.raises(MissingVariableError, match="partner are 'Vermis_1', 'Vermis_2', 'VIS_L'"):
        scalebrain.to_lesional_sides(ds)
    with pytest.raises(MissingVariableError, match=r"atlas\.without"):
        scalebrain.to_lesional_sides(ds)


def test_to_lesional_sides__text_may_be_of_any_length():
    side = np.array(["L", "R", "unknown", "bilateral"])
    ds = xr.Dataset(
        {
            "lesion_load": (("subject", "region"), np.arange(8.0).reshape(4, 2)),
            "lesion_hemisphere": ("subject", side),
        },
        coords={"subject": list("abcd"), "region": ["SMN_L", "SMN_R"]},
    )
    text = ("subject", side.astype(np.dtypes.StringDType()))
    found = scalebrain.to_lesional_sides(ds.assign(lesion_hemisphere=text).chunk(subject=2))
    wanted = [[0, 1], [3, 2], [np.nan] * 2, [np.nan] * 2]
    np.testing.assert_array_equal(found["lesion_load"], wanted)


def test_region_set__needs_homologues():
    with pytest.raises(TableError, match="homologue"):
        RegionSet("x", {"a_L": (1,)})


def with_masks(ds: xr.Dataset, masks: np.ndarray) -> xr.Dataset:
    """The same people with other masks; everyone has one."""
    return ds.assign(
        lesion_mask=(("subject", "voxel"), masks),
        lesion_present=("subject", np.ones(ds.sizes["subject"], dtype=bool)),
    ).chunk(subject=4)


def some_masks(ds: xr.Dataset, seed: int = 0) -> np.ndarray:
    """Scattered voxels, whole brains, nothing, and the far ends of the rows."""
    rng = np.random.default_rng(seed)
    masks = rng.random((ds.sizes["subject"], ds.sizes["voxel"])) < 0.02
    masks[0] = True
    masks[1] = False
    masks[2] = False
    masks[2, [0, 255, 256, -1]] = True
    return masks


def test_lesion_load__of_an_atlas_equals_numpy(ds):
    atlas = blocks_atlas(ds)
    label = labels_of(ds, atlas)
    masks = some_masks(ds)
    loads = scalebrain.lesion_load(with_masks(ds, masks), regions=atlas)["lesion_load"].compute()
    for region, code in zip(atlas.regions, atlas.codes, strict=True):
        expected = masks[:, label == code].mean(axis=1)
        np.testing.assert_allclose(loads.sel(region=region), expected, rtol=1e-12)
    assert (loads[0] == 1).all()
    assert (loads[1] == 0).all()


def test_lesion_load__of_parcels_equals_scipy(ds):
    masks = some_masks(ds)
    aal = scalebrain.load_atlas("aal")
    present = set(np.unique(ds["parcel"].values).tolist())
    gone = [r for r, c in zip(aal.regions, aal.codes, strict=True) if c not in present]
    atlas = aal.without(*gone) if gone else aal
    loads = scalebrain.lesion_load(with_masks(ds, masks), regions=atlas)["lesion_load"].compute()
    theirs = ndimage.mean(masks[5].astype(float), ds["parcel"].values, atlas.codes)
    np.testing.assert_allclose(loads[5], theirs, rtol=1e-12)


def test_lesion_load__of_probability_maps_is_weighted(ds):
    grid = blocks_atlas(ds).grid
    i, j, k = np.indices(grid.shape)
    maps = np.exp(-((i - 15) ** 2 + (j - 25) ** 2 + (k - 20) ** 2) / 90).astype(np.float32)[None]
    maps[maps < 1e-3] = 0
    inverse = np.linalg.inv(grid.matrix)
    mm = np.stack([ds[a].values for a in "xyz"], axis=1).astype(float)
    ijk = np.rint(mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    p = maps[0][tuple(ijk.T)].astype(float)
    masks = some_masks(ds)
    loads = scalebrain.lesion_load(
        with_masks(ds, masks), regions=Atlas("blob", grid, ("blob",), maps=maps)
    )["lesion_load"].compute()
    np.testing.assert_allclose(loads[:, 0], masks @ p / p.sum(), rtol=1e-6)
    assert loads[0, 0] == 1
    assert loads[1, 0] == 0


def test_lesion_load__is_the_same_from_a_store_and_from_memory(ds):
    stored = scalebrain.lesion_load(ds).compute()
    held = scalebrain.lesion_load(ds.load()).compute()
    xr.testing.assert_equal(stored, held)
    cut = scalebrain.lesion_load(ds.isel(subject=[18, 16])).compute()
    np.testing.assert_array_equal(cut["lesion_load"], stored["lesion_load"][[18, 16]])


def test_network_load__counts_both_hemispheres(ds):
    masks = some_masks(ds)
    found = scalebrain.network_load(with_masks(ds, masks))["network_load"].compute()
    assert found["network"].values.tolist()[:3] == ["SMN", "FPN", "DAN"]
    codes = [c for side in "LR" for c in default_regions().parcels[f"DMN_{side}"]]
    member = np.isin(ds["parcel"].values, codes)
    np.testing.assert_allclose(found.sel(network="DMN"), masks[:, member].mean(axis=1), rtol=1e-12)


def test_network_load__of_an_atlas_is_that_of_its_voxels(ds):
    grid = blocks_atlas(ds).grid
    i, j, k = np.indices(grid.shape)
    blob = (abs(j - 25) < 9) & (abs(k - 20) < 9)
    left, right = blob & (abs(i - 13) < 5), blob & (abs(i - 37) < 3)
    names, masks = ("A_L", "B_L", "A_R", "B_R"), some_masks(ds)
    labels = np.zeros(grid.shape, dtype=np.int32)
    labels[left & (j < 25)], labels[left & (j >= 25)] = 1, 2
    labels[right & (j < 25)], labels[right & (j >= 25)] = 3, 4
    maps = np.stack([labels == code for code in (1, 2, 3, 4)]) * np.float32(0.5)
    own = labels.ravel()[voxel_index(ds, grid)]
    for atlas in (
        Atlas("labels", grid, names, codes=(1, 2, 3, 4), labels=labels),
        Atlas("maps", grid, names, maps=maps),
    ):
        found = scalebrain.network_load(with_masks(ds, masks), regions=atlas)["network_load"]
        assert found["network"].values.tolist() == ["A", "B"]
        for network, codes in (("A", (1, 3)), ("B", (2, 4))):
            expected = masks[:, np.isin(own, codes)].mean(axis=1)
            np.testing.assert_allclose(found.sel(network=network), expected, rtol=1e-6, atol=1e-12)


def test_network_load__needs_two_sides(ds):
    grid = blocks_atlas(ds).grid
    labels = np.ones(grid.shape, dtype=np.int32)
    with pytest.raises(TableError, match="'blob' has no side"):
        scalebrain.network_load(ds, regions=Atlas("a", grid, ("blob",), codes=(1,), labels=labels))


def test_tract_load__hardly_changes_on_a_grid_that_is_a_little_oblique(ds):
    given = with_masks(ds, some_masks(ds))
    turned = given.copy()
    for axis in "xyz":
        affine = np.reshape(given[axis].attrs["affine"], (4, 4)).copy()
        affine[2, 0] = 0.001
        moved = given[axis] + (0.001 * given["x"] if axis == "z" else 0)
        turned = turned.assign_coords(
            {axis: ("voxel", moved.values, {**given[axis].attrs, "affine": affine.tolist()})}
        )
    straight, oblique = scalebrain.tract_load(given), scalebrain.tract_load(turned)
    for name in straight.data_vars:
        np.testing.assert_allclose(oblique[name], straight[name], rtol=1e-4)


def test_tract_load__of_everything_and_nothing(ds):
    masks = some_masks(ds)
    found = scalebrain.tract_load(with_masks(ds, masks)).compute()
    assert (found["tract_load"][0] == 1).all()
    assert (found["tract_load_max"][0] == 1).all()
    for name in found.data_vars:
        assert (found[name][1] == 0).all()
    p = ds["tract_probability"].values.astype(float)
    np.testing.assert_allclose(
        found["tract_load"][3], (p * masks[3]).sum(axis=1) / p.sum(axis=1), rtol=1e-6
    )


def test_lesion_frequency__leaves_people_without_a_group_out(ds):
    given = with_masks(ds, some_masks(ds))
    for values in (np.array([1, np.nan] * 10), np.array(["a", ""] * 10)):
        found = scalebrain.lesion_frequency(given.assign(by=("subject", values)), by="by")
        assert found.sizes["by"] == 1
        assert found["n_masks"].values.tolist() == [10]


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_lesion_frequency__by_group_counts_its_people(ds, rows):
    masks = some_masks(ds)
    side = np.array(["L", "R", "L", "none"] * 5)
    given = (
        with_masks(ds, masks)
        .chunk(subject=rows)
        .assign(
            lesion_hemisphere=("subject", side),
            included=("subject", np.arange(20) != 6),
        )
    )
    given["lesion_present"] = ("subject", np.arange(20) > 0)
    found = scalebrain.lesion_frequency(given, by="lesion_hemisphere")
    assert found["lesion_frequency"].chunks
    found = found.compute()
    counted = (np.arange(20) > 0) & (np.arange(20) != 6)
    for value in ("L", "R", "none"):
        own = counted & (side == value)
        one = found.sel(lesion_hemisphere=value)
        assert one["n_masks"] == own.sum()
        np.testing.assert_allclose(one["lesion_frequency"], masks[own].mean(axis=0), rtol=1e-12)
    whole = scalebrain.lesion_frequency(given).compute()
    np.testing.assert_allclose(whole["lesion_frequency"], masks[counted].mean(axis=0), rtol=1e-12)
    assert whole["n_masks"] == counted.sum() == whole["lesion_frequency"].attrs["n"]
    np.testing.assert_array_equal(whole["x"], ds["x"])
    with pytest.raises(MissingVariableError, match="'side' is no variable over subject"):
        scalebrain.lesion_frequency(given, by="side")


def test_lesion_frequency__without_anyone_is_missing(ds):
    nobody = ds.assign(lesion_present=("subject", np.zeros(20, dtype=bool)))
    found = scalebrain.lesion_frequency(nobody).compute()
    assert np.isnan(found["lesion_frequency"]).all()
    assert found["n_masks"] == 0


def test_lesion_loads__do_not_depend_on_scheduler(ds):
    with dask.config.set(scheduler="single-threaded"):
        one = [scalebrain.lesion_load(ds).compute(), scalebrain.tract_load(ds).compute()]
    with dask.config.set(scheduler="threads"):
        other = [scalebrain.lesion_load(ds).compute(), scalebrain.tract_load(ds).compute()]
    for a, b in zip(one, other, strict=True):
        xr.testing.assert_identical(a, b)


def flags_with_missing(ds: xr.Dataset, name: str, kind: str) -> xr.Dataset:
    """The flag of everyone, missing for the last, who has a lesion, in a type that can be so."""
    values = [bool(v) for v in ds[name].values[:-1]] + [np.nan]
    made = pd.array(values, dtype="boolean") if kind == "boolean" else np.array(values, dtype=kind)
    return ds.assign({name: ("subject", made)})


def test_lesion_loads__of_a_lazy_flag_read_nothing_yet(ds):
    read = []

    def told(block):
        read.append(len(block))
        return block

    masks = ds["lesion_mask"].compute().chunk(subject=5)
    lazy = masks.copy(data=masks.data.map_blocks(told, dtype=bool, meta=np.empty((0, 0), bool)))
    given = ds.assign(lesion_mask=lazy, lesion_present=lazy.any("voxel"))
    for function, name in (
        (scalebrain.lesion_load, "lesion_load"),
        (scalebrain.network_load, "network_load"),
        (scalebrain.tract_load, "tract_load"),
        (scalebrain.lesion_measures, "tract_distance"),
    ):
        found = function(given)[name]
        assert not read
        present = masks.any("voxel").values
        np.testing.assert_array_equal(found, function(ds)[name].where(present[:, None]))
        read.clear()


@pytest.mark.parametrize("kind", ["float64", "object", "boolean"])
def test_lesion_loads__a_missing_flag_is_not_a_mask(ds, kind):
    given = flags_with_missing(ds, "lesion_present", kind)
    for function in (
        scalebrain.lesion_load,
        scalebrain.network_load,
        scalebrain.tract_load,
        scalebrain.lesion_measures,
        scalebrain.enantiomorphic,
    ):
        whole, found = function(ds), function(given)
        for name in set(found.data_vars) - set(given.data_vars):
            assert np.isnan(found[name][-1]).all()
            np.testing.assert_array_equal(found[name][:-1], whole[name][:-1])
    assert scalebrain.lesion_frequency(given)["n_masks"] == 3


def test_lesion_load__people_added_by_reindex_have_no_mask(ds):
    given = ds.reindex(subject=["sub-016", "sub-017", "sub-900"])
    with pytest.raises(MissingVariableError, match="Make it bool") as told:
        scalebrain.lesion_load(given)
    way_out = str(told.value).partition("Make it bool: ")[2].strip("'\".")
    made = eval(way_out, {"ds": given})
    assert made["lesion_mask"].dtype == made["lesion_present"].dtype == bool
    for one in (made, given.assign(lesion_mask=given["lesion_mask"] > 0)):
        loads = scalebrain.lesion_load(one)["lesion_load"]
        np.testing.assert_array_equal(loads[:2], scalebrain.lesion_load(ds)["lesion_load"][16:18])
        assert np.isnan(loads[2]).all()
        assert scalebrain.lesion_frequency(one)["n_masks"] == 2


@pytest.mark.parametrize("kind", ["float64", "object", "boolean"])
def test_lesion_frequency__a_missing_flag_is_not_included(ds, kind):
    everyone = ds.assign(included=("subject", np.ones(20, dtype=bool)))
    found = scalebrain.lesion_frequency(flags_with_missing(everyone, "included", kind))
    assert found["n_masks"] == 3
    np.testing.assert_allclose(
        found["lesion_frequency"], ds["lesion_mask"].values[16:19].mean(axis=0)
    )
    text = ds.assign(included=("subject", np.array(["False"] * 20)))
    with pytest.raises(StatisticsError, match="True or False for everyone, got 'False'"):
        scalebrain.lesion_frequency(text)


def test_lesion_loads__need_no_labels_of_subjects(ds):
    bare = ds.drop_vars("subject")
    for function in (scalebrain.lesion_load, scalebrain.tract_load, scalebrain.lesion_measures):
        xr.testing.assert_equal(function(bare), function(ds).drop_vars("subject", errors="ignore"))


@pytest.mark.parametrize(
    ("values", "groups", "n"),
    [
        (pd.array(["x", pd.NA] * 10, dtype="string"), ["x"], [10]),
        (pd.array([2, 1] * 9 + [None, 1], dtype="Int64"), [1.0, 2.0], [10, 9]),
        (np.array([True, None] * 10, dtype=object), [True], [10]),
        (
            np.array(["2020-01-02", "2020-01-01"] * 10, dtype="M8[ns]"),
            np.array(["2020-01-01", "2020-01-02"], dtype="M8[ns]"),
            [10, 10],
        ),
    ],
)
def test_lesion_frequency__by_values_of_any_type(ds, values, groups, n):
    given = with_masks(ds, some_masks(ds)).assign(by=("subject", values))
    found = scalebrain.lesion_frequency(given, by="by")
    assert found["n_masks"].values.tolist() == n
    np.testing.assert_array_equal(found["by"], groups)
    assert found["by"].dtype == np.asarray(groups).dtype


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([1, "b"] * 10, dtype=object), "'by' has values of several kinds .int, str."),
        (np.array([""] * 20), "Nobody counted has a value of 'by'"),
    ],
)
def test_lesion_frequency__refuses_values_that_make_no_groups(ds, values, says):
    with pytest.raises(StatisticsError, match=says):
        scalebrain.lesion_frequency(ds.assign(by=("subject", values)), by="by")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda p: p * 100, ImageError, "to 100, which look like percent.*Divide them: ds.assign"),
        (lambda p: p - np.float32(0.01), ImageError, "from -0.01 to 0.99, expected probabilities"),
        (lambda p: np.where(p > 0, p, np.nan), ImageError, "nan to nan, .* without missing values"),
        (lambda p: p >= 0.5, MissingVariableError, r"dtype bool.*\.astype\(float\)"),
    ],
)
def test_tract_load__refuses_maps_that_are_no_probabilities(ds, change, error, says):
    maps = ds["tract_probability"].values
    maps = maps / maps.max()
    given = ds.assign(tract_probability=(("tract", "voxel"), change(maps)))
    for function in (scalebrain.tract_load, scalebrain.lesion_measures):
        with pytest.raises(error, match=says):
            function(given)


def test_tract_load__of_a_tract_without_a_voxel_is_missing(ds):
    right = ds.isel(voxel=np.flatnonzero(ds["x"].values > 2))
    found, near = (f(right) for f in (scalebrain.tract_load, scalebrain.lesion_measures))
    for name in found.data_vars:
        assert np.isnan(found[name].sel(tract="CST_L")).all()
        assert (found[name].sel(tract="CST_R")[-4:] >= 0).all()
    assert np.isnan(near["tract_distance"].sel(tract="CST_L")).all()
    none = right.isel(tract=[0])
    assert np.isnan(scalebrain.tract_load(none)["tract_load"]).all()
