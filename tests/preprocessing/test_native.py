"""One scan before its registration: odd masks, odd intensities, and steps of ANTs that fail."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scalebrain.atlas.space import Grid, brain_mask, template, template_grid
from scalebrain.errors import GeometryError, ImageError
from scalebrain.io.guard import RULES
from scalebrain.preprocessing import native
from scalebrain.preprocessing.images import widened
from scalebrain.preprocessing.native import Head, correct_bias, read_head
from scalebrain.preprocessing.settings import Settings
from scalebrain.preprocessing.tissues import segment
from tests.conftest import need
from tests.phantom import save
from tests.preprocessing.heads import make_head

UNEQUAL = Grid.from_matrix((30, 26, 22), np.diag([1.0, 2.0, 3.5, 1.0]))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folder with a scan, and what is in it: intensities, mask, grid."""
    folder = tmp_path_factory.mktemp("native")
    scan, mask, grid, _ = make_head(lesion=True)
    save(folder / "scan.nii.gz", scan, grid.matrix)
    return folder, scan, mask, grid


def read(folder, mask, affine, **options):
    save(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
    return read_head(folder / "scan.nii.gz", folder / "mask.nii.gz", Settings(**options))


@pytest.mark.parametrize("place", [(15, 13, 11), (0, 0, 0), (29, 25, 21), (2, 25, 0)])
@pytest.mark.parametrize("distance", [0.5, 3.5, 7.0, 200.0])
def test_widened__within_the_box_is_what_the_whole_grid_gives(place, distance):
    mask = np.zeros(UNEQUAL.shape, dtype=bool)
    mask[place] = True
    mask[tuple(min(p + 2, n - 1) for p, n in zip(place, mask.shape, strict=True))] = True
    whole = ndimage.distance_transform_edt(~mask, sampling=(1.0, 2.0, 3.5)) <= distance
    assert np.array_equal(widened(mask, UNEQUAL, distance), whole)


def test_widened__nothing_and_no_distance():
    mask = np.zeros(UNEQUAL.shape, dtype=bool)
    assert not widened(mask, UNEQUAL, 4.0).any()
    mask[3, 4, 5] = True
    assert np.array_equal(widened(mask, UNEQUAL, 0.0), mask)


def test_usable__widens_a_lesion_once(given, monkeypatch):
    need("ants")
    _, scan, mask, grid = given
    calls = []

    def counted(*args):
        calls.append(args)
        return widened(*args)

    monkeypatch.setattr(native, "widened", counted)
    head = Head(scan, grid, lesion=mask)
    small = head.at(4.0)
    first, again = (native.from_ants(head.usable(small, Settings())) for _ in range(2))
    assert len(calls) == 1
    assert np.array_equal(first, again)
    assert 0 < (first == 0).sum() * 64 < 3 * mask.sum() * 8
    narrow = native.from_ants(head.usable(small, Settings(dilation=0.0)))
    assert (narrow == 0).sum() < (first == 0).sum()
    assert head.usable(small, Settings(cost_mask=False)) is None


def test_read_head__refuses_an_inverted_mask(given):
    folder, _, mask, grid = given
    with pytest.raises(ImageError, match=r"of the head: inverted.*has to be 1") as caught:
        read(folder, ~mask, grid.matrix)
    assert caught.value.code == "mask-inverted"
    fine = read(folder, mask, grid.matrix)
    assert fine.warnings == ()


def test_read_head__says_how_much_of_a_mask_is_lost_on_another_grid(given):
    folder, _, mask, grid = given
    coarse = grid.matrix @ np.diag([5.0, 5.0, 5.0, 1.0])
    few = np.zeros((20, 22, 20), dtype=bool)
    few[10, 11, 10] = True
    # a voxel of 10 mm keeps about its size, and a thin sheet of .4 mm does not
    assert read(folder, few, coarse).lesion.any()
    sheet = np.zeros((*grid.shape[:2], 5 * grid.shape[2]), dtype=bool)
    sheet[40:50, 40:50, 251] = True
    fine = grid.matrix @ np.diag([1.0, 1.0, 0.2, 1.0])
    head = read(folder, sheet, fine)
    assert not head.lesion.any()
    assert head.lesion_volume == pytest.approx(100 * 2 * 2 * 0.4 / 1000)
    ((code, message),) = head.warnings
    assert code == "mask-volume-changed"
    assert "0.16 mL became 0 mL" in message
    assert "no lesion" in message
    cut = np.zeros(grid.shape, dtype=bool)
    cut[:20, 40:60, 40:60] = True
    beside = grid.matrix.copy()
    beside[0, 3] -= 20  # half of it lies outside of the scan
    codes = dict(read(folder, cut[:40], beside).warnings)
    assert "64 mL became 32 mL" in codes["mask-volume-changed"]
    away = grid.matrix.copy()
    away[0, 3] -= 400
    with pytest.raises(GeometryError, match="outside the T1w image") as caught:
        read(folder, mask, away)
    assert caught.value.code == "lesion-outside-brain"


def test_read_head__warns_of_a_mask_with_another_affine(given):
    folder, _, mask, grid = given
    moved = grid.matrix.copy()
    moved[1, 3] += 0.15  # under a tenth of a voxel
    assert read(folder, mask, moved).warnings == ()
    moved[1, 3] += 1.85
    head = read(folder, mask, moved)
    ((code, message),) = head.warnings
    assert code == "mask-affine"
    assert "up to 2 mm away" in message
    assert np.array_equal(head.lesion[:, 1:], mask[:, :-1])  # by its own


def test_read_head__speaks_of_no_option_that_preprocess_does_not_have(tmp_path):
    ones = np.ones((40, 40, 40), np.uint8)
    frames = nib.Nifti1Image(np.stack([ones, ones], axis=-1), np.diag([2.0, 2, 2, 1]))
    frames.to_filename(tmp_path / "frames.nii.gz")
    lost = nib.Nifti1Image(ones, None)
    lost.set_sform(None, 0)
    lost.set_qform(None, 0)
    lost.to_filename(tmp_path / "lost.nii.gz")
    for name, code in (("frames", "many-frames"), ("lost", "no-orientation")):
        with pytest.raises((ImageError, GeometryError)) as caught:
            read_head(tmp_path / f"{name}.nii.gz", None, Settings())
        assert caught.value.code == code
        assert "--" not in str(caught.value)
        assert str(caught.value).endswith("image.")


def test_correct_bias__a_scan_with_next_to_nothing_in_it_has_no_head(tmp_path):
    need("ants")
    empty = np.zeros((80, 90, 70), np.uint8)
    empty[40:50, 40:50, 30:40] = 1  # a mask that was saved as the scan
    save(tmp_path / "a.nii.gz", empty, np.diag([2.0, 2, 2, 1]))
    with pytest.raises(ImageError, match="is this a mask") as caught:
        correct_bias(read_head(tmp_path / "a.nii.gz", None, Settings()))
    assert caught.value.code == "brain-not-found"


def test_read_head__air_is_zero(given, tmp_path):
    _, scan, _, grid = given
    z = (scan - scan.mean()) / scan.std()
    save(tmp_path / "z.nii.gz", z, grid.matrix)
    head = read_head(tmp_path / "z.nii.gz", None, Settings())
    ((code, message),) = head.warnings
    assert code == "negative-intensities"
    assert "shifted to 0" in message
    assert np.corrcoef(head.data.ravel(), scan.ravel())[0, 1] > 0.9999
    assert np.median(head.data[:, :, -1]) == pytest.approx(0, abs=1e-3)
    # within a mask, 0 outside: what is below the mean would be cut away
    inside = scan > 60
    within = np.where(inside, (scan - scan[inside].mean()) / scan[inside].std(), 0)
    save(tmp_path / "w.nii.gz", within.astype(np.float32), grid.matrix)
    ((code, message),) = read_head(tmp_path / "w.nii.gz", None, Settings()).warnings
    assert code == "negative-intensities"
    assert "darker than the air" in message


def test_read_head__ringing_and_missing_voxels_become_air(given, tmp_path):
    _, scan, _, grid = given
    rung = scan.copy()
    rung[scan < 20] = -8
    rung[40:, :, -10:] = 0
    rung[:, :, :2] = np.nan
    rung[scan > 20] += 5
    rung[:, :, -1] = 0
    rung[0], rung[-1], rung[:, 0], rung[:, -1] = 0, 0, 0, 0
    save(tmp_path / "r.nii.gz", rung, grid.matrix)
    head = read_head(tmp_path / "r.nii.gz", None, Settings())
    assert [code for code, _ in head.warnings] == ["nonfinite"]
    assert head.data.min() == 0
    assert (head.data[:, :, :2] == 0).all()
    assert np.array_equal(head.data[1:-1, 1:-1, 2:-1], np.maximum(rung, 0)[1:-1, 1:-1, 2:-1])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda image: image.clone(), "N4 failed"),  # what antspyx gives when N4 fails
        (lambda image: image * 0, "not above 0"),
        (lambda image: image * 0 + np.nan, "not finite"),
    ],
)
def test_correct_bias__refuses_a_field_that_is_none(given, monkeypatch, broken, says):
    need("ants")
    _, scan, mask, grid = given
    monkeypatch.setattr("ants.n4_bias_field_correction", lambda image, **_: broken(image))
    with pytest.raises(ImageError, match=says) as caught:
        correct_bias(Head(scan, grid, lesion=mask))
    assert caught.value.code == "preprocessing-failed"
    assert caught.value.code in RULES


def test_correct_bias__same_in_every_run(given):
    need("ants")
    _, scan, mask, grid = given
    head = Head(scan, grid, lesion=mask)
    assert np.array_equal(correct_bias(head).data, correct_bias(head).data)


def noisy():
    grid = template_grid(4.0)
    grey, white = template("gm", grid), template("wm", grid)
    t1w = 100 * np.clip(1 - grey - white, 0, 1) + 250 * grey + 400 * white
    t1w += np.random.default_rng(0).normal(0, 40, grid.shape)
    return (np.maximum(t1w, 1) * brain_mask(grid)).astype(np.float32)


def test_segment__same_in_every_run():
    need("ants")
    first, again = (segment(noisy(), None, 4.0) for _ in range(2))
    assert np.array_equal(first.grey, again.grey)
    assert np.array_equal(first.white, again.white)


def test_segment__says_that_atropos_failed(monkeypatch):
    need("ants")

    def failed(**_):
        raise Exception("status 1")

    monkeypatch.setattr("ants.atropos", failed)
    with pytest.raises(ImageError, match=r"Atropos failed \(status 1\)") as caught:
        segment(noisy(), None, 4.0)
    assert caught.value.code == "preprocessing-failed"
    with pytest.raises(ImageError, match="nothing in the brain"):
        segment(np.zeros(template_grid(4.0).shape, np.float32), None, 4.0)
