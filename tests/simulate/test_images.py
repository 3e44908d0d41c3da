"""Lesions and scans in memory, on a coarse grid."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import ndimage

from scalebrain.errors import ConfigError
from scalebrain.simulate.anatomy import anatomy, smooth_field, territory
from scalebrain.simulate.draw import draw_scan
from scalebrain.simulate.factors import PARCELS, parcel_factors
from scalebrain.simulate.images_numba_fns import grow, spline_field
from scalebrain.simulate.lesions import grow_lesion
from scalebrain.simulate.parameters import SimulationParameters
from scalebrain.simulate.people import cohort_effects, draw_people

PARAMETERS = SimulationParameters()
MM = 4.0


@pytest.fixture(scope="module")
def brain():
    return anatomy(MM, PARAMETERS)


@pytest.fixture(scope="module")
def lesions(brain):
    people = draw_people(0, 60, 4, 11, PARAMETERS)
    grown = functools.partial(
        grow_lesion, brain=brain, where=territory(MM, PARAMETERS), seed=11, parameters=PARAMETERS
    )
    return [(person, grown(person)) for person in people]


def scan_of(person, brain, **options):
    settings = {
        "deviation": person.deviation,
        "cohorts": cohort_effects(4, 0, PARAMETERS),
        "seed": 0,
        "parameters": PARAMETERS,
        **options,
    }
    return draw_scan(person, brain, **settings)


def region_volumes(brain, scan):
    grey = np.bincount(brain.label, weights=scan.gm / 255, minlength=PARCELS[-1] + 1)[1:]
    return grey @ (parcel_factors().average > 0).T


def test_spline_field__equals_the_basis_written_out():
    rng = np.random.default_rng(0)
    knots = rng.standard_normal((2, 6, 7, 8))
    kji = np.stack(np.meshgrid(range(5), range(6), range(9), indexing="ij"), -1).reshape(-1, 3)
    spacing = 2.3
    out = np.empty((2, len(kji)), np.float32)
    spline_field(kji.astype(np.int16), knots, spacing, out)

    def weights(position, size):
        x = np.abs(position[:, np.newaxis] - (np.arange(size) - 1))
        cubic = np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6)
        return cubic

    axes = [weights(kji[:, a] / spacing, size) for a, size in enumerate(knots.shape[1:])]
    expected = np.einsum("fabc,va,vb,vc->fv", knots, *axes)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_smooth_field__has_unit_sd(brain):
    rng = np.random.default_rng(0)
    fields = smooth_field(brain.kji, brain.grey.shape, rng, spacing=4.0, n_fields=20)
    assert fields.std() == pytest.approx(1, abs=0.05)


def test_grow__takes_the_cheapest_connected_voxels():
    cost = np.full((5, 6, 7), 10, np.float32)
    cost[2, 2, 1:6] = [0, 1, 2, 3, 4]
    cost[4, 5, 6] = 0  # cheap, but not connected at this size
    out = np.empty(5, np.int64)
    seed = int(np.ravel_multi_index((2, 2, 1), cost.shape))
    assert grow(cost, seed, out) == 5
    assert sorted(out) == [seed + i for i in range(5)]


def test_grow__stops_where_nothing_may_grow():
    cost = np.full((4, 4, 4), np.inf, np.float32)
    cost[1, 1, :] = 1
    out = np.empty(50, np.int64)
    assert grow(cost, int(np.ravel_multi_index((1, 1, 0), cost.shape)), out) == 4


def test_grow_lesion__is_connected_unilateral_and_of_its_volume(brain, lesions):
    x = brain.grid.coordinates(np.arange(brain.grid.size))[:, 0].reshape(brain.grid.shape)
    x = x.transpose(2, 1, 0).ravel()[brain.inside]
    for person, lesion in lesions:
        side = np.sign(x[lesion.voxels])
        assert set(side) == {-1.0 if person.hemisphere == "L" else 1.0}
        assert (np.abs(x[lesion.voxels]) >= 4).all()
        voxel_ml = MM**3 / 1000
        assert lesion.volume == pytest.approx(len(lesion.voxels) * voxel_ml)
        assert abs(lesion.volume - person.lesion_volume) <= voxel_ml
        volume = np.zeros(brain.grey.shape, bool)
        volume.ravel()[brain.boxed[lesion.voxels]] = True
        assert ndimage.label(volume)[1] == 1


def test_grow_lesion__some_reach_the_tract_and_some_the_salience_network(lesions):
    tract = np.array([lesion.cst_load for _, lesion in lesions])
    salience = np.array([lesion.salience_load for _, lesion in lesions])
    for load in (tract, salience):
        assert 0.2 < (load > 0.005).mean() < 0.95
        assert 0 <= load.min() <= load.max() <= 1
    deep = np.array([person.subcortical for person, _ in lesions])
    assert tract[deep].mean() > 2 * tract[~deep].mean()


def test_anatomy__volume_curves_rise(brain):
    used = ~parcel_factors().outside
    assert (np.diff(brain.volume_curve[used], axis=1) > 0).all()
    np.testing.assert_allclose(brain.weight.sum(axis=1), 1, atol=1e-5)


def test_anatomy__too_coarse_raises():
    with pytest.raises(ConfigError, match="have no voxel"):
        anatomy(10.0, PARAMETERS)


def test_draw_scan__grey_matter_falls_at_the_planted_rate(brain):
    loss = np.array(
        [PARAMETERS.volume_loss[name[:-2]] for name in parcel_factors().regions.regions]
    )
    rates = []
    for person in draw_people(12, 0, 4, 5, PARAMETERS):
        young, old = (
            region_volumes(brain, scan_of(dataclasses.replace(person, age=age), brain))
            for age in (50.0, 70.0)
        )
        rates.append(np.log(young / old) / 20)
    rate = np.mean(rates, axis=0)
    # blending at parcel borders mixes in the rate of the neighbors
    np.testing.assert_allclose(rate, loss, atol=0.0009)
    assert np.corrcoef(rate, loss)[0, 1] > 0.95


def test_draw_scan__contrast_falls_with_age(brain):
    # without atrophy, which brings dark fluid into every voxel of grey matter
    no_atrophy = dict.fromkeys(PARAMETERS.volume_loss, 0.0)
    parameters = dataclasses.replace(PARAMETERS, volume_loss=no_atrophy)
    person = draw_people(1, 0, 4, 5, PARAMETERS)[0]
    grey, white = (m.ravel()[brain.boxed] for m in (brain.grey, brain.white))
    pure = (grey > 0.9) & (brain.label > 0)
    contrast = []
    for age in (50.0, 70.0):
        aged = dataclasses.replace(person, age=age)
        t1w = scan_of(aged, brain, parameters=parameters).t1w.astype(float)
        contrast.append(1 - t1w[pure].mean() / t1w[white > 0.95].mean())
    rate = np.log(contrast[0] / contrast[1]) / 20
    assert rate == pytest.approx(PARAMETERS.contrast_loss, rel=0.25)


def test_draw_scan__regional_volumes_vary_as_stated(brain):
    people = draw_people(60, 0, 4, 1, PARAMETERS)
    volume = np.log([region_volumes(brain, scan_of(person, brain)) for person in people])
    spread = volume.std(axis=0)
    assert spread.min() > 0.06
    assert spread.max() < 0.115
    assert 0.07 < spread.mean() < 0.10


def test_draw_scan__a_rescan_varies_less_than_a_person(brain):
    people = draw_people(30, 0, 4, 1, PARAMETERS)
    first, second = (
        np.log([region_volumes(brain, scan_of(person, brain, scan=i)) for person in people])
        for i in (0, 1)
    )
    within = ((first - second) / 2**0.5).std(axis=0)
    assert 0.015 < within.mean() < 0.03
    np.testing.assert_array_equal(
        scan_of(people[0], brain, scan=1).t1w, scan_of(people[0], brain, scan=1).t1w
    )


def test_draw_scan__a_lesion_is_dark_and_has_no_grey_matter(brain, lesions):
    person, lesion = max(lesions, key=lambda pair: pair[1].volume)
    scan = scan_of(person, brain, lesion=lesion.voxels)
    intact = scan_of(person, brain)
    white = np.median(scan.t1w[brain.white.ravel()[brain.boxed] > 0.95])
    assert (scan.gm[lesion.voxels] / 255).max() < 0.1
    assert 0.15 < scan.t1w[lesion.voxels].mean() / white < 0.55
    outside = np.setdiff1d(np.arange(len(brain.inside)), lesion.voxels)
    np.testing.assert_allclose(
        scan.gm[outside].mean(dtype=float), intact.gm[outside].mean(dtype=float), rtol=1e-3
    )


def test_draw_scan__brain_voxels_are_never_zero(brain):
    scan = scan_of(draw_people(1, 0, 4, 2, PARAMETERS)[0], brain)
    assert scan.t1w.min() >= 1
    assert scan.t1w.dtype == np.int16
    assert scan.gm.dtype == np.uint8
