import nibabel as nib
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker

import scalebrain
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.errors import MissingVariableError, TableError
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


def test_region_set__needs_homologues():
    with pytest.raises(TableError, match="homologue"):
        RegionSet("x", {"a_L": (1,)})
