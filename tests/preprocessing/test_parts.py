"""Pieces of the preprocessing: sides, masks, filling, tissues, plan and verdicts."""

import nibabel as nib
import numpy as np
import pytest

from scalebrain.atlas.space import Grid, brain_mask, template, template_grid
from scalebrain.errors import ConfigError, GeometryError, ImageError, TableError
from scalebrain.preprocessing.fill import filled
from scalebrain.preprocessing.images import (
    affine_matrix,
    ants_affine,
    from_ants,
    grid_of,
    to_ants,
    widened,
    write_image,
)
from scalebrain.preprocessing.native import Head, read_head
from scalebrain.preprocessing.normalize import Warp, field_of_view, jacobian, to_template
from scalebrain.preprocessing.plan import make_plan
from scalebrain.preprocessing.quality import judge, measure
from scalebrain.preprocessing.settings import Settings
from scalebrain.preprocessing.tissues import segment
from tests.conftest import need
from tests.phantom import save
from tests.preprocessing.conftest import write_table
from tests.preprocessing.heads import known_affine, make_head, save_turned

COS, SIN = np.cos(0.2), np.sin(0.2)
OBLIQUE = Grid.from_matrix(
    (9, 12, 15),
    [[1.5 * COS, 2 * SIN, 0, -9], [-1.5 * SIN, 2 * COS, 0, 4], [0, 0, 3, -20], [0, 0, 0, 1]],
)


def test_to_ants__and_back_is_the_same_image_at_the_same_place():
    need("ants")
    data = np.random.default_rng(0).random(OBLIQUE.shape).astype(np.float32)
    image = to_ants(data, OBLIQUE)
    assert np.array_equal(from_ants(image), data)
    assert grid_of(image).difference(OBLIQUE) == ""


def test_to_ants__is_what_ants_reads_of_the_file(tmp_path):
    need("ants")
    import ants

    data = np.random.default_rng(0).random(OBLIQUE.shape).astype(np.float32)
    save(tmp_path / "a.nii.gz", data, OBLIQUE.matrix)
    read, made = ants.image_read(str(tmp_path / "a.nii.gz")), to_ants(data, OBLIQUE)
    np.testing.assert_allclose(read.origin, made.origin, atol=1e-4)
    np.testing.assert_allclose(read.direction, made.direction, atol=1e-4)
    np.testing.assert_allclose(read.numpy(), made.numpy())


def test_ants_affine__and_back_is_the_same_matrix(tmp_path):
    need("ants")
    path = ants_affine(known_affine(), str(tmp_path / "a.mat"))
    np.testing.assert_allclose(affine_matrix(path), known_affine(), atol=1e-5)


def test_to_template__puts_a_ball_on_its_side(tmp_path):
    need("ants")
    affine = known_affine()
    center = np.array([40.0, -20.0, 30.0])  # on the right of the template
    there = affine[:3, :3] @ center + affine[:3, 3]
    _, _, grid, _ = make_head()
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    ball = np.linalg.norm(mm - there, axis=-1) < 9
    warp = Warp(affine, ants_affine(affine, str(tmp_path / "a.mat")))
    moved = to_template(ball, grid, warp, 2.0, how="genericLabel") > 0.5
    found = template_grid(2.0).coordinates(np.flatnonzero(moved)).mean(axis=0)
    np.testing.assert_allclose(found, center, atol=1)
    assert (jacobian(warp, 4.0) == np.float32(np.linalg.det(affine[:3, :3]))).all()


@pytest.mark.parametrize("padded", [False, True])
def test_field_of_view__ends_where_the_scan_does(tmp_path, padded):
    need("ants")
    affine = known_affine()
    scan, _, grid, _ = make_head()
    warp = Warp(affine, ants_affine(affine, str(tmp_path / "a.mat")))
    inside = brain_mask(template_grid(4.0))
    assert field_of_view(Head(scan, grid), warp, 4.0)[inside].all()
    cut = scan.copy()
    cut[:, :, 77:] = 0  # of z above 65 mm
    grid_cut = grid if padded else Grid.from_matrix((*grid.shape[:2], 77), grid.matrix)
    seen = field_of_view(Head(cut if padded else cut[:, :, :77], grid_cut), warp, 4.0)
    mm = template_grid(4.0).coordinates(np.flatnonzero(inside))
    assert np.array_equal(seen[inside], (mm @ affine[:3, :3].T + affine[:3, 3])[:, 2] < 65)
    assert 0.9 < seen[inside].mean() < 0.98


def test_write_image__is_read_at_the_same_place(tmp_path):
    grid = template_grid(4.0)
    data = template("t1", grid)
    write_image(tmp_path / "a.nii.gz", data, grid, dtype="i2", slope=1e-4)
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(image.affine, grid.matrix)
    np.testing.assert_allclose(image.get_fdata(), data, atol=1e-4)


def test_widened__goes_by_mm_not_by_voxels():
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[4, 4, 4] = True
    grid = Grid.from_matrix(mask.shape, np.diag([1.0, 2.0, 4.0, 1.0]))
    wide = widened(mask, grid, 4.0)
    sides = [len(np.unique(axis)) for axis in np.nonzero(wide)]
    assert sides == [9, 5, 3]


def test_read_head__turns_scan_and_mask_alike(tmp_path):
    scan, mask, grid, _ = make_head(lesion=True)
    save_turned(tmp_path / "a.nii.gz", scan, grid)
    save(tmp_path / "m.nii.gz", mask.astype(np.uint8), grid.matrix)  # stored another way
    head = read_head(tmp_path / "a.nii.gz", tmp_path / "m.nii.gz", Settings())
    assert head.grid.difference(grid) == ""
    np.testing.assert_allclose(head.data, scan, rtol=1e-6)
    assert np.array_equal(head.lesion, mask)
    assert head.lesion_volume == pytest.approx(mask.sum() * 0.008)


def test_read_head__refuses_what_is_no_head_and_no_mask(tmp_path):
    save(tmp_path / "slab.nii.gz", np.ones((50, 60, 10), np.float32), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(GeometryError, match="whole head"):
        read_head(tmp_path / "slab.nii.gz", None, Settings())
    scan, mask, grid, _ = make_head(lesion=True)
    save(tmp_path / "a.nii.gz", scan, grid.matrix)
    save(tmp_path / "labels.nii.gz", (mask * 2 + (scan > 500)).astype(np.uint8), grid.matrix)
    with pytest.raises(ImageError, match="labels"):
        read_head(tmp_path / "a.nii.gz", tmp_path / "labels.nii.gz", Settings())
    far = grid.matrix + np.array([[0, 0, 0, 900.0]] + [[0] * 4] * 3)
    save(tmp_path / "far.nii.gz", mask.astype(np.uint8), far)
    with pytest.raises(GeometryError, match="outside the T1w image"):
        read_head(tmp_path / "a.nii.gz", tmp_path / "far.nii.gz", Settings())


def test_filled__takes_the_other_hemisphere_of_a_tilted_head():
    affine = known_affine()
    grid = make_head()[2]
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    back = np.linalg.inv(affine)
    there = mm @ back[:3, :3].T + back[:3, 3]
    symmetric = (100 + np.abs(there[..., 0]) + there[..., 1]).astype(np.float32)
    lesion = np.linalg.norm(there - np.array([35, 0, 20]), axis=-1) < 12
    broken = np.where(lesion, np.float32(0), symmetric)
    out = filled(Head(broken, grid, lesion=lesion, affine=affine))
    assert not out.lesion.any()
    assert np.abs(out.data - symmetric)[lesion].max() < 2  # of about 155
    both = lesion | (np.linalg.norm(there - np.array([-35, 0, 20]), axis=-1) < 14)
    out = filled(Head(broken, grid, lesion=both, affine=affine))
    assert out.lesion[lesion].mean() > 0.9  # nothing there to fill it from


def normalized():
    """Normalized scan of known tissues, its brain, and a lesion that is not in it."""
    grid = template_grid(4.0)
    rng = np.random.default_rng(0)
    grey, white = template("gm", grid), template("wm", grid)
    inside = brain_mask(grid)
    liquid = np.clip(1 - grey - white, 0, 1)
    t1w = (100 * liquid + 250 * grey + 400 * white + rng.normal(0, 8, grid.shape)) * inside
    t1w = np.maximum(t1w, 0).astype(np.float32)
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    return t1w, inside, np.linalg.norm(mm - np.array([35, -20, 25]), axis=-1) < 30


def test_segment__does_not_learn_from_the_lesion():
    need("ants")
    t1w, inside, lesion = normalized()
    bright = np.where(lesion & inside, np.float32(900), t1w)  # of no tissue at all
    healthy = segment(t1w, None, 4.0)
    masked, blind = segment(bright, lesion, 4.0), segment(bright, None, 4.0)
    rest = inside & ~lesion
    apart = [np.abs(one.grey - healthy.grey)[rest].mean() for one in (masked, blind)]
    assert apart[0] < 0.02
    assert apart[0] < apart[1] / 2
    assert masked.mean == pytest.approx(healthy.mean, rel=0.03)


@pytest.mark.parametrize("factor", [1 / 9000, 1e-6, 1e4])
def test_segment__does_not_depend_on_the_unit_of_the_scan(factor):
    need("ants")
    t1w, inside, lesion = normalized()
    t1w[lesion & inside] = 90  # a cavity
    usual, other = segment(t1w, lesion, 4.0), segment(t1w * np.float32(factor), lesion, 4.0)
    for name in ("liquid", "grey", "white"):
        np.testing.assert_allclose(getattr(other, name), getattr(usual, name), atol=1e-3)
    assert usual.liquid[lesion & inside].mean() > 0.95
    assert other.mean == pytest.approx([mean * factor for mean in usual.mean], rel=1e-4)


GOOD = {
    "template_overlap": 0.9,
    "brain_scanned": 1.0,
    "jacobian_extreme": 0.0,
    "asymmetric_overlap": 0.7,
    "asymmetric_overlap_mirrored": 0.65,
    "template_to_native_volume": 0.8,
}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, []),
        ({"template_overlap": 0.2}, [("E", "brain-not-found")]),
        ({"template_overlap": 0.5}, [("W", "poorly-normalized")]),
        ({"jacobian_extreme": 0.1}, [("W", "poorly-normalized")]),
        ({"brain_scanned": 0.996}, []),
        ({"brain_scanned": 0.94}, [("W", "poorly-normalized")]),
        ({"brain_scanned": 0.89}, [("E", "brain-not-found")]),
        ({"asymmetric_overlap_mirrored": 0.75}, [("W", "mirrored")]),
        ({"lesion_volume_native": 10.0, "lesion_volume_warped": 11.9}, []),
        (
            {"lesion_volume_native": 10.0, "lesion_volume_warped": 12.5},
            [("W", "lesion-volume-changed")],
        ),
        (
            {"lesion_volume_native": 10.0, "lesion_volume_warped": 0.0},
            [("W", "lesion-volume-changed")],
        ),
        ({"lesion_volume_native": 0.0, "lesion_volume_warped": 0.0}, []),
    ],
)
def test_judge__says_what_is_odd(change, verdict):
    told = judge(GOOD | change, "sub-01", Settings())
    assert [(action, code) for action, code, _ in told] == verdict
    assert all(message.startswith("sub-01: ") for *_, message in told)


def test_measure__finds_folds_and_leaves_the_lesion_out():
    grid = template_grid(4.0)
    t1w, gm = template("t1", grid), template("gm", grid)
    volumes = np.full(grid.shape, 0.8, np.float32)
    lesion = np.zeros(grid.shape, dtype=bool)
    lesion[30:36, 20:26, 20:26] = True
    broken = np.where(lesion, np.float32(-3), volumes)
    scanned = np.ones(grid.shape, dtype=bool)
    found = measure(t1w, t1w, gm, broken, 0.8, lesion, scanned, 4.0)
    assert found["jacobian_extreme"] == 0
    assert found["template_overlap"] == pytest.approx(1)
    assert found["brain_scanned"] == 1
    scanned[:, :, -14:] = False
    folded = measure(t1w, t1w, gm, broken, 0.8, None, scanned, 4.0)
    assert 0.8 < folded["brain_scanned"] < 1
    assert folded["jacobian_extreme"] > 0
    assert folded["jacobian_min"] < 0


def tree(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_make_plan__finds_masks_under_every_name(tmp_path):
    root = tree(
        tmp_path / "raw",
        *(f"sub-{i}/anat/sub-{i}_T1w.nii.gz" for i in range(1, 5)),
        "sub-1/anat/sub-1_label-lesion_roi.nii.gz",
        "sub-2/anat/sub-2_space-T1w_label-L_mask.nii.gz",
        "sub-3/anat/sub-3_desc-T1lesion_mask.nii",
    )
    masks = [scan.lesion for scan in make_plan(root).scans]
    assert [mask is not None for mask in masks] == [True, True, True, False]


def test_make_plan__takes_masks_of_another_folder_by_session(tmp_path):
    root = tree(
        tmp_path / "raw",
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz",
    )
    masks = tree(tmp_path / "masks", "sub-1/ses-b/anat/sub-1_ses-b_label-lesion_mask.nii.gz")
    scans = make_plan(root, lesions=masks).scans
    assert [(scan.name, scan.lesion is None) for scan in scans] == [
        ("sub-1_ses-a", True),
        ("sub-1_ses-b", False),
    ]
    with pytest.raises(TableError, match="no lesion mask of native space"):
        make_plan(root, lesions=root)


def test_make_plan__says_who_is_left_out(tmp_path):
    root = tree(
        tmp_path / "raw",
        "sub-01/anat/sub-01_run-1_T1w.nii.gz",
        "sub-01/anat/sub-01_run-2_T1w.nii.gz",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "sub-04/anat/sub-04_T1w.nii.gz",
    )
    write_table(root)
    plan = make_plan(root)
    assert {p.subject: p.code for p in plan.rejected} == {
        "sub-01": "several-images",
        "sub-02": "no-image",
        "sub-03": "mask-needed",
    }
    assert [scan.name for scan in plan.scans] == ["sub-04"]
    assert make_plan(root, participants=["04"]).rejected == ()
    with pytest.raises(ConfigError, match="sub-99"):
        make_plan(root, participants=["99"])
    with pytest.raises(TableError, match="dcm2niix"):
        make_plan(tree(tmp_path / "dicom", "IM0001"))
