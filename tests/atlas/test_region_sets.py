"""Region sets, and regions in a store: what is refused, and what is told of."""

import dataclasses
import warnings

import numpy as np
import pytest

import scalebrain
from scalebrain.atlas.regions import RegionSet, default_regions
from scalebrain.atlas.space import Grid, template_grid
from scalebrain.errors import (
    ConfigError,
    DataWarning,
    GeometryError,
    LateralityError,
    MissingVariableError,
    StoreError,
    TableError,
)
from scalebrain.ingestion.geometry import static_variables

PAIR = {"A_L": (1,), "A_R": (2,)}


def cohort(resolution):
    static = static_variables(template_grid(resolution))
    rng = np.random.default_rng(0)
    rows = rng.uniform(1, 2, (2, static.sizes["voxel"])).astype(np.float32)
    made = static.assign(
        t1w=(("subject", "voxel"), rows), lesion_mask=(("subject", "voxel"), rows > 1.5)
    )
    return made.assign_coords(subject=["a", "b"])


@pytest.fixture(scope="module")
def ds():
    return cohort(4.0)


@pytest.mark.parametrize(
    ("parcels", "says"),
    [
        ({}, "has no regions"),
        ({"A_L": 1, "A_R": 2}, "expected a name and AAL codes"),
        ({"A_L": ("Precentral_L",), "A_R": (2,)}, "read_regions"),
        ({"A_L": (1.5,), "A_R": (2,)}, "AAL codes"),
    ],
)
def test_region_set__refuses_what_are_no_regions(parcels, says):
    with pytest.raises(TableError, match=says):
        RegionSet("mine", parcels)


def test_region_set__codes_are_plain_numbers():
    regions = RegionSet("mine", {"A_L": np.array([1, 3]), "A_R": [2, 4]})
    assert dict(regions.parcels) == {"A_L": (1, 3), "A_R": (2, 4)}
    assert regions.sha256 == RegionSet("mine", {"A_L": (1, 3), "A_R": (2, 4)}).sha256
    assert regions.sha256 != RegionSet("mine", {"A_L": (1, 5), "A_R": (2, 4)}).sha256


def test_lesion_load__refuses_parcels_that_are_not_there_and_exchanged_sides(ds):
    with pytest.raises(GeometryError, match=r"not there: A_L: 500\..*finer grid"):
        scalebrain.lesion_load(ds, regions=RegionSet("mine", {"A_L": (1, 500), "A_R": (2,)}))
    with pytest.raises(LateralityError, match="2 parcels lie in the other hemisphere"):
        scalebrain.lesion_load(ds, regions=RegionSet("mine", {"A_L": (2,), "A_R": (1,)}))
    vermis = {"A_L": (1, 109), "A_R": (2, 109)}
    assert scalebrain.lesion_load(ds, regions=RegionSet("mine", vermis)).sizes["region"] == 2


@pytest.mark.parametrize(
    ("regions", "says"),
    [("aal", r"load_atlas\('aal'\)"), (PAIR, "a dict.*RegionSet"), (7, "a int")],
)
@pytest.mark.parametrize("name", ["lesion_load", "network_load", "parcellate", "parcellate_files"])
def test_regions__of_another_kind_are_refused(ds, name, regions, says):
    with pytest.raises(ConfigError, match=says):
        getattr(scalebrain, name)(["a.nii"] if name.endswith("files") else ds, regions=regions)


def test_parcellate_files__needs_an_atlas():
    with pytest.raises(ConfigError, match="a RegionSet, expected an Atlas"):
        scalebrain.parcellate_files(["a.nii"], regions=RegionSet("mine", PAIR))


def moved(atlas, mm):
    matrix = atlas.grid.matrix
    matrix[1, 3] += mm
    return dataclasses.replace(atlas, grid=Grid.from_matrix(atlas.grid.shape, matrix))


def test_parcellate__tells_of_regions_that_are_hardly_there(ds):
    atlas = scalebrain.load_atlas("harvard-oxford")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scalebrain.parcellate(ds, regions=atlas)
    with pytest.warns(DataWarning, match=r"less than 40% of the volume of .*another|does not lie"):
        scalebrain.parcellate(ds, regions=moved(atlas.without("Occipital_Pole_L"), 25))
    with pytest.raises(GeometryError, match=r"no voxel of .* does not lie where"):
        scalebrain.parcellate(ds, regions=moved(atlas, 400))
    with pytest.raises(GeometryError, match="'T1w' of one person"):
        scalebrain.parcellate(ds, regions=dataclasses.replace(atlas, space="T1w"))


def test_network_load__says_which_atlas(ds):
    atlas = scalebrain.load_atlas("juelich-cst")
    for regions in (atlas, None):
        load = scalebrain.network_load(ds, regions=regions)["network_load"]
        chosen = regions or default_regions()
        assert load.attrs["atlas"] == chosen.name
        assert load.attrs["atlas_sha256"] == chosen.sha256


def test_node_features__tells_of_nodes_without_a_voxel():
    with pytest.warns(DataWarning, match="29 of 885 nodes have no voxel .* of 6 x 6 x 6 mm"):
        scalebrain.node_features(cohort(6.0))
    coarse = cohort(6.0)
    coarse["white_reference"] = coarse["white_reference"] & False
    with pytest.raises(GeometryError, match="lies in the white matter"):
        scalebrain.node_features(coarse)


def test_lesion_load__masks_are_asked_for_where_they_are_missing_alone(ds):
    with pytest.raises(MissingVariableError, match="lesion mask"):
        scalebrain.lesion_load(ds.drop_vars("lesion_mask"))
    with pytest.raises(MissingVariableError, match="open_store"):
        scalebrain.lesion_load(ds.drop_vars("parcel"))


def test_save_store__of_parcels_names_the_way_out(ds, tmp_path):
    scalebrain.save_store(ds.drop_vars(["t1w", "lesion_mask"]), tmp_path / "s.zarr")
    found = scalebrain.parcellate(ds)
    with pytest.raises(StoreError, match="rename"):
        scalebrain.save_store(found, tmp_path / "s.zarr")
    scalebrain.save_store(found.rename(parcel="aal"), tmp_path / "s.zarr")
    assert scalebrain.open_store(tmp_path / "s.zarr").sizes["aal"] == found.sizes["parcel"]
