"""An Atlas refuses what is not where its names say, and keeps what it is given."""

import numpy as np
import pytest

from scalebrain.atlas.atlas import Atlas
from scalebrain.atlas.space import Grid
from scalebrain.errors import GeometryError, LateralityError, TableError

SHAPE = (21, 7, 5)
# planes along x at -20, -18, ... 20 mm: the eleventh is the midline
GRID = Grid.from_matrix(SHAPE, np.array([[2, 0, 0, -20], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]))


def painted(**regions: slice) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    labels = np.zeros(SHAPE, dtype=np.int32)
    for code, planes in enumerate(regions.values(), start=1):
        labels[planes, 1:5, 2:4] = code
    return labels, tuple(regions), tuple(range(1, len(regions) + 1))


def made(labels, regions, codes, grid=GRID, **kwargs) -> Atlas:
    return Atlas("test", grid, regions, codes, labels=labels, **kwargs)


def maps_of(labels, codes):
    return np.stack([(labels == code) * np.float32(0.5) for code in codes])


def mirrored(grid: Grid) -> Grid:
    return Grid.from_matrix(grid.shape, np.diag([-1.0, 1, 1, 1]) @ grid.matrix)


def test_atlas__keeps_sides_and_the_midline():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19), Vermis=slice(9, 12))
    atlas = made(labels, regions, codes)
    np.testing.assert_allclose(atlas.centroids()[:, 0], [-11, 11, 0])
    both = Atlas("maps", GRID, regions, maps=maps_of(labels, codes))
    np.testing.assert_allclose(both.centroids(), atlas.centroids())


@pytest.mark.parametrize("kind", ["labels", "maps"])
def test_atlas__refuses_a_mirrored_copy(kind):
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19), Vermis=slice(9, 12))
    for image, grid in ((labels[::-1], GRID), (labels, mirrored(GRID))):
        given = {"codes": codes, "labels": image}
        if kind == "maps":
            given = {"maps": maps_of(image, codes)}
        with pytest.raises(LateralityError, match=r"2 of 2 regions .* A_L with 100% at x > 0 mm"):
            Atlas("test", grid, regions, **given)


def test_atlas__refuses_exchanged_names():
    labels, _, codes = painted(a=slice(2, 8), b=slice(13, 19))
    with pytest.raises(LateralityError, match="A_R with 100% at x < 0 mm"):
        made(labels, ("A_R", "A_L"), codes)


def test_atlas__medial_cortex_may_lean_over_the_midline():
    # 4 planes left, one on the midline, one right: as medial cortex along an oblique fissure
    labels, regions, codes = painted(Cuneus_L=slice(6, 12), Cuneus_R=slice(12, 18))
    assert made(labels, regions, codes).regions == regions


@pytest.mark.parametrize(
    "planes",
    [
        pytest.param(slice(8, 13), id="half on each side, center on the midline"),
        pytest.param(slice(4, 14), id="center on the left, a third on the right"),
        pytest.param(slice(0, 15), id="far across the midline"),
        pytest.param(slice(10, 11), id="on the midline alone"),
    ],
)
def test_atlas__refuses_a_side_that_is_none(planes):
    labels, _, codes = painted(a=planes)
    assert labels.any()
    with pytest.raises(LateralityError, match="name without _L and _R"):
        made(labels, ("A_L",), codes)
    assert made(labels, ("A",), codes)


def test_atlas__refuses_a_shift_that_centroids_would_not_show():
    labels, regions, codes = painted(
        Far_L=slice(0, 3), Medial_L=slice(3, 10), Medial_R=slice(11, 18), Far_R=slice(18, 21)
    )
    assert made(labels, regions, codes)
    matrix = GRID.matrix
    matrix[0, 3] += 7  # the center of Medial_L is then at -1 mm, 3 of its 7 planes on the right
    shifted = Grid.from_matrix(SHAPE, matrix)
    with pytest.raises(LateralityError, match=r"1 of 4 regions.*Medial_L"):
        made(labels, regions, codes, shifted)


def test_atlas__mass_by_side_is_that_of_a_plain_loop():
    rng = np.random.default_rng(3)
    matrix = np.array([[1.9, 0.3, -0.1, -18], [-0.3, 1.9, 0.2, 1], [0.1, -0.2, 2, 3], [0, 0, 0, 1]])
    grid = Grid.from_matrix(SHAPE, matrix)
    labels = rng.integers(0, 4, SHAPE).astype(np.int32)
    atlas = made(labels, ("a", "c"), (3, 1), grid)
    expected = np.zeros((2, 4))
    for ijk in np.ndindex(SHAPE):
        x = round((matrix @ [*ijk, 1])[0], 6)
        for row, code in enumerate((3, 1)):
            if labels[ijk] == code:
                expected[row] += [x < 0, x > 0, x < -5, x > 5]
    np.testing.assert_array_equal(atlas._mass_by_side(), expected)
    maps = Atlas("maps", grid, ("a", "c"), maps=maps_of(labels, (3, 1)))
    np.testing.assert_allclose(maps._mass_by_side(), expected / 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float64, ">i2"])
def test_atlas__keeps_any_whole_numbers_as_int32(dtype):
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    atlas = made(labels.astype(dtype), regions, codes)
    assert atlas.labels.dtype == np.int32
    assert atlas.sha256 == made(labels, regions, codes).sha256
    assert not atlas.labels.flags.writeable
    assert labels.flags.writeable


@pytest.mark.parametrize("value", [1.5, np.nan, 2.0**40])
def test_atlas__refuses_labels_that_are_none(value):
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    spoiled = labels.astype(np.float64)
    spoiled[0, 0, 0] = value
    with pytest.raises(TableError, match="whole numbers"):
        made(spoiled, regions, codes)


def test_atlas__says_what_does_not_fit():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    with pytest.raises(TableError, match=r"code 0, expected positive"):
        made(labels, regions, (0, 2))
    with pytest.raises(TableError, match="no voxel of A_R"):
        made(labels, regions, (1, 300))
    with pytest.raises(TableError, match="as many different codes"):
        made(labels, regions, (1, 1))
    with pytest.raises(TableError, match="A_L twice"):
        made(labels, ("A_L", "A_L"), codes)
    with pytest.raises(GeometryError, match="shape"):
        made(labels[1:], regions, codes)
    maps = maps_of(labels, codes)
    with pytest.raises(TableError, match="either labels or maps"):
        made(labels, regions, codes, maps=maps)
    with pytest.raises(TableError, match="have no codes"):
        Atlas("test", GRID, regions, codes, maps=maps)
    for wrong in (maps * 100, -maps, np.where(maps > 0, maps, np.nan)):
        with pytest.raises(TableError, match="probabilities"):
            Atlas("test", GRID, regions, maps=wrong)
    with pytest.raises(TableError, match="map of A_R is empty"):
        Atlas("test", GRID, regions, maps=maps * [[[[1]]], [[[0]]]])


def test_sha256__tells_names_codes_grid_and_image_apart():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    one = made(labels, regions, codes)
    changed = labels.copy()
    changed[2, 1, 2] = 0
    moved = Grid.from_matrix(SHAPE, GRID.matrix + np.diag([0.01, 0, 0, 0]))
    others = [
        made(changed, regions, codes),
        made(labels, ("B_L", "B_R"), codes),
        made(labels * 2, regions, (2, 4)),
        made(labels, regions, codes, moved),
        Atlas("test", GRID, regions, maps=maps_of(labels, codes)),
    ]
    assert len({atlas.sha256 for atlas in (one, *others)}) == 6
    assert one.sha256 == made(labels.copy(), regions, codes).sha256


@pytest.mark.parametrize("kind", ["labels", "maps"])
def test_without__leaves_regions_out(kind):
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19), Vermis=slice(9, 12))
    if kind == "labels":
        atlas, expected = made(labels, regions, codes), made(labels, ("A_R",), (2,))
    else:
        maps = maps_of(labels, codes)
        atlas = Atlas("test", GRID, regions, maps=maps)
        expected = Atlas("test", GRID, ("A_R",), maps=maps[1:2])
    rest = atlas.without("Vermis", "A_L")
    assert rest.regions == ("A_R",)
    assert rest.sha256 == expected.sha256 != atlas.sha256
    with pytest.raises(TableError, match="has no region B_L"):
        atlas.without("A_L", "B_L")
    with pytest.raises(TableError, match="got none"):
        atlas.without(*regions)


def test_atlas__does_not_follow_what_the_caller_writes_later():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    maps = maps_of(labels, codes)
    atlas, other = made(labels, regions, codes), Atlas("maps", GRID, regions, maps=maps)
    before = atlas.labels.copy(), other.maps.copy()
    labels[:], maps[:] = 0, 0
    np.testing.assert_array_equal(atlas.labels, before[0])
    np.testing.assert_array_equal(other.maps, before[1])


def test_sha256__does_not_depend_on_python_types():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 19))
    plain = made(labels, regions, codes)
    other = made(labels, list(np.array(regions)), np.array(codes, dtype=np.int64))
    assert plain.sha256 == other.sha256


def test_volumes__are_in_mm3():
    labels, regions, codes = painted(A_L=slice(2, 8), A_R=slice(13, 17))
    np.testing.assert_allclose(made(labels, regions, codes).volumes, [384, 256])
    maps = Atlas("maps", GRID, regions, maps=maps_of(labels, codes))
    np.testing.assert_allclose(maps.volumes, [192, 128])
