"""Simulated cortical surfaces: FreeSurfer folders with the truth of the volume simulation."""

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain.atlas.surface import cortex_points, is_cortex, vertex_parcels
from scalebrain.io.freesurfer import N_VERTICES, read_surfaces
from scalebrain.io.fsaverage import N_SIDE, read_map
from scalebrain.io.store import open_store
from scalebrain.simulate.anatomy import anatomy
from scalebrain.simulate.cortex import draw_cortex, lesioned_vertices
from scalebrain.simulate.factors import PARCELS
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import cohort_effects, draw_people
from tests.simulate.test_cohort import SMALL, digests

QUIET = SimulationParameters(
    **dict.fromkeys(
        (
            *("volume_person_sd", "volume_region_sd", "volume_parcel_sd", "volume_rescan_sd"),
            *("contrast_person_sd", "contrast_region_sd", "contrast_parcel_sd"),
            *("contrast_rescan_sd", "cohort_volume_sd", "cohort_contrast_sd"),
            *("thickness_anatomy_sd", "thickness_noise_sd"),
            *("surface_contrast_anatomy_sd", "surface_contrast_noise_sd"),
        ),
        0.0,
    )
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surfaces")
    return scalebrain.simulate_cohort(folder / "bids", surfaces=True, **SMALL)


@pytest.fixture(scope="module")
def ds(tree):
    scalebrain.ingest(tree, tree.parent / "s.zarr")
    return open_store(tree.parent / "s.zarr")


def drawn(parameters=QUIET, *, deviation=None, **more):
    person = draw_people(1, 0, 1, 0, parameters)[0]
    return person, draw_cortex(
        person,
        deviation=np.zeros(len(PARCELS)) if deviation is None else deviation,
        cohorts=cohort_effects(1, 0, parameters),
        seed=0,
        parameters=parameters,
        **more,
    )


def test_draw_cortex__without_noise_is_the_template_thinned_by_age_and_deviation():
    person, cortex = drawn()
    template = np.concatenate([read_map("thickness", side) for side in ("left", "right")])
    loss = -np.log(cortex.thickness[is_cortex()] / template[is_cortex()])
    years = person.age - QUIET.pivot_age
    assert loss / years == pytest.approx(np.clip(loss / years, 0.002, 0.005), abs=1e-6)
    fraction = QUIET.grey_white_contrast * np.exp(-QUIET.contrast_loss * years)
    np.testing.assert_allclose(
        cortex.wg_contrast[is_cortex()], 100 * fraction / (1 - fraction / 2), rtol=1e-5
    )
    assert not cortex.wg_contrast[~is_cortex()].any()


def test_draw_cortex__is_as_thick_as_recon_all_writes_it_and_hardly_ever_clipped():
    parameters = SimulationParameters()
    cohorts = cohort_effects(1, 0, parameters)
    more = {"deviation": np.zeros(len(PARCELS)), "cohorts": cohorts, "parameters": parameters}
    people = draw_people(10, 0, 1, 0, parameters)
    thick = np.stack([draw_cortex(person, seed=0, **more).thickness for person in people])
    assert thick.min() >= 0
    assert thick.max() == 5
    assert 0 < (thick == 5).mean() < 0.001


def test_draw_cortex__a_parcel_on_the_left_thins_on_the_left_alone():
    deviation = np.zeros(len(PARCELS))
    deviation[PARCELS.index(1)] = 10  # left precentral
    _, before = drawn()
    _, after = drawn(deviation=deviation)
    changed = ~np.isclose(after.thickness, before.thickness, rtol=1e-6)
    own = vertex_parcels() == 1
    assert changed[own & is_cortex()].all()
    assert not changed[N_SIDE:].any()
    mm = np.concatenate([cortex_points("left"), cortex_points("right")])
    assert mm[changed, 0].max() < 0
    assert changed.sum() < 2.5 * own.sum()


def test_draw_cortex__another_scan_is_the_same_anatomy_with_new_noise():
    parameters = SimulationParameters()
    inside = is_cortex()
    scans = [np.log(drawn(parameters, scan=scan)[1].thickness[inside]) for scan in (0, 1)]
    template = np.log(
        np.concatenate([read_map("thickness", side) for side in ("left", "right")])[inside]
    )
    assert not np.array_equal(*scans)
    between = np.corrcoef(scans[0] - template, scans[1] - template)[0, 1]
    assert 0.2 < between < 0.8


def test_lesioned_vertices__lie_where_the_voxels_do():
    brain = anatomy(4.0, SimulationParameters())
    k, j, i = np.unravel_index(brain.inside, brain.grid.shape[::-1])
    mm = np.stack([i, j, k], axis=1) @ brain.grid.matrix[:3, :3].T + brain.grid.matrix[:3, 3]
    center = np.array([-40.0, -20.0, 52.0])
    ball = np.flatnonzero(np.linalg.norm(mm - center, axis=1) < 15)
    found = lesioned_vertices(brain, ball)
    points = np.concatenate([cortex_points("left"), cortex_points("right")])
    distance = np.linalg.norm(points - center, axis=1)
    assert found.any()
    assert distance[found].max() < 15 + 4
    assert found[distance < 11].all()


def test_simulate_cohort__surfaces_are_read_back_by_nibabel_and_by_the_ingest(tree, ds):
    folder = tree / "freesurfer" / "sub-stroke001"
    found = read_surfaces(folder)
    names = {path.name for path in (folder / "surf").iterdir()}
    measures = ("thickness", "w-g.pct.mgh", "curv", "sulc")  # of -qcache, in recon-all
    assert names == {f"{s}.{m}.fsaverage5.mgh" for s in ("lh", "rh") for m in measures}
    for measure, name in (("thickness", "thickness"), ("wg_contrast", "w-g.pct.mgh")):
        sides = [
            (folder / "surf" / f"{side}.{name}.fsaverage5.mgh").read_bytes()
            for side in ("lh", "rh")
        ]
        images = [np.asarray(nib.MGHImage.from_bytes(side).dataobj).ravel() for side in sides]
        np.testing.assert_array_equal(np.concatenate(images), found.values[measure])
        row = ds[measure].sel(subject="sub-stroke001").values
        np.testing.assert_array_equal(row, found.values[measure])
    assert ds.sizes["vertex"] == N_VERTICES
    assert ds.sizes["subject"] == 18
    assert not len(scalebrain.problems(tree.parent / "s.zarr"))
    assert not list(tree.rglob("*T1w*"))


def test_simulate_cohort__a_lesion_thins_the_cortex_of_its_side(ds):
    largest = int(np.nanargmax(ds["lesion_volume"].values))
    one = ds.isel(subject=largest)
    side = str(one["lesion_hemisphere"].values)
    inside = is_cortex()
    thin = (one["thickness"].values < 1.6) & inside
    half = {"L": slice(None, N_SIDE), "R": slice(N_SIDE, None)}
    other = {"L": "R", "R": "L"}[side]
    assert thin[half[side]].sum() > 2 * thin[half[other]].sum()


def test_simulate_cohort__people_lesions_and_truth_are_those_of_the_scans(tree, tmp_path):
    scans = scalebrain.simulate_cohort(tmp_path / "bids", **SMALL)
    for name in ("participants.tsv", "participants.json"):
        assert (scans / name).read_bytes() == (tree / name).read_bytes()
    masks = sorted(path.relative_to(tree) for path in tree.rglob("*mask.nii.gz"))
    assert len(masks) == 9
    assert all((scans / m).read_bytes() == (tree / m).read_bytes() for m in masks)
    ours, theirs = (open_store(t.parent / "truth.zarr").load() for t in (tree, scans))
    assert ours.equals(theirs)


def test_simulate_cohort__killed_surfaces_are_drawn_again_to_the_byte(tmp_path):
    few = SMALL | {"reference": 3, "stroke": 2}
    tree = scalebrain.simulate_cohort(tmp_path / "bids", surfaces=True, **few)
    before = digests(tree)
    folder = tree / "freesurfer" / "sub-ref002"
    (folder / "scripts" / "recon-all.done").unlink()
    (folder / "surf" / "lh.thickness.fsaverage5.mgh").write_bytes(b"half")
    (tree / "participants.tsv").unlink()
    scalebrain.simulate_cohort(tree, surfaces=True, **few)
    assert digests(tree) == before
