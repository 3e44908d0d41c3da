"""Registrations: their files, the same in every run, the best start, what masking is worth."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scalebrain.atlas.space import brain_mask, template_grid
from scalebrain.errors import ImageError
from scalebrain.preprocessing import native
from scalebrain.preprocessing.images import affine_matrix, ants_affine, to_ants
from scalebrain.preprocessing.native import Head, correct_bias, find_brain
from scalebrain.preprocessing.normalize import normalize, to_template
from scalebrain.preprocessing.registration import Transforms, register
from scalebrain.preprocessing.settings import Settings
from tests.conftest import need
from tests.preprocessing.heads import CENTER, RADIUS, brain_in, known_affine, make_head

AFFINE = {
    "aff_iterations": (60, 30),
    "aff_shrink_factors": (2, 1),
    "aff_smoothing_sigmas": (1, 0),
    "aff_random_sampling_rate": 0.5,
}


def apart(one, other):
    """Mean distance in mm of the brain's points by two affines."""
    grid = template_grid(4.0)
    points = grid.coordinates(np.flatnonzero(brain_mask(grid)))
    moved = points @ (one - other)[:3, :3].T + (one - other)[:3, 3]
    return np.linalg.norm(moved, axis=1).mean()


def balls(center):
    """An image of 4 mm with two balls, moved by what is added to their centers."""
    grid = template_grid(4.0)
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    near = [np.linalg.norm(mm - np.array(at) - center, axis=-1) for at in ((20, 0, 0), (0, 40, 30))]
    return to_ants(np.exp(-((near[0] / 25) ** 2)) + 0.5 * np.exp(-((near[1] / 15) ** 2)), grid)


def test_register__takes_its_own_files_alone(tmp_path):
    need("ants")
    fixed, moving = balls(np.zeros(3)), balls(np.array([6.0, 0, 0]))
    start = ants_affine(np.eye(4), str(tmp_path / "start.mat"))
    # as another registration names them, and what an earlier run left
    for name in ("a200GenericAffine.mat", "a-200GenericAffine.mat", "a0GenericAffine.mat"):
        ants_affine(np.diag([3.0, 3, 3, 1]), str(tmp_path / name))
    (tmp_path / "a91Warp.nii.gz").write_bytes(b"")
    found = register(fixed, moving, "Affine", [start], f"{tmp_path}/a", **AFFINE)
    assert found == (f"{tmp_path}/a0GenericAffine.mat", "", "")
    np.testing.assert_allclose(affine_matrix(found.affine) @ [20, 0, 0, 1], [26, 0, 0, 1], atol=2)
    bent = register(
        fixed, moving, "SyNOnly", [start], f"{tmp_path}/a", reg_iterations=(20, 5), grad_step=0.1
    )
    assert [Path(file).name for file in bent] == [
        "a0GenericAffine.mat",
        "a1Warp.nii.gz",
        "a1InverseWarp.nii.gz",
    ]
    along = nib.load(bent.warp).get_fdata()[..., 0, 0]
    back = nib.load(bent.inverse).get_fdata()[..., 0, 0]
    here = tuple(np.argwhere(np.abs(along) == np.abs(along).max())[0])
    assert np.sign(along[here]) == -np.sign(back[here])


def test_register__says_what_ants_did_not_write(tmp_path, monkeypatch):
    need("ants")
    monkeypatch.setattr("ants.registration", lambda *_, **__: {"fwdtransforms": ["other.mat"]})
    image = balls(np.zeros(3))
    with pytest.raises(ImageError, match=r"wrote no a0GenericAffine\.mat") as caught:
        register(image, image, "Affine", [], f"{tmp_path}/a")
    assert caught.value.code == "preprocessing-failed"


TWICE = """
import sys
import numpy as np
from scalebrain.preprocessing import native
from scalebrain.preprocessing.images import ants_affine, template_image
from scalebrain.preprocessing.registration import register
from scalebrain.preprocessing.settings import Settings
from tests.preprocessing.heads import make_head
from tests.preprocessing.test_registration import AFFINE
scan, mask, grid, affine = make_head(lesion=True)
head = native.Head(scan, grid, lesion=mask)
moving = head.at(4.0)
start = ants_affine(affine @ np.diag([1.1, 1, 0.9, 1]), f"{sys.argv[1]}/start.mat")
masks = {"mask": native._rim(4.0), "moving_mask": head.usable(moving, Settings())}
for number in range(3):
    prefix = f"{sys.argv[1]}/{number}-"
    register(template_image("t1", 4.0), moving, "Affine", [start], prefix, **masks, **AFFINE)
"""


def test_register__the_same_in_every_run(tmp_path):
    need("ants")
    # several threads add up in an order of their own, and ANTs takes their number when it loads
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = [affine_matrix(f"{tmp_path}/{number}-0GenericAffine.mat") for number in range(3)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_register__leaves_the_seed_of_others_alone(tmp_path, monkeypatch):
    need("ants")
    seen = []

    def failed(*_, **__):
        seen.append(os.environ["ANTS_RANDOM_SEED"])
        raise RuntimeError("code 1")

    monkeypatch.setattr("ants.registration", failed)
    image = balls(np.zeros(3))
    monkeypatch.setenv("ANTS_RANDOM_SEED", "7")
    with pytest.raises(ImageError, match="code 1"):
        register(image, image, "Affine", [], f"{tmp_path}/a")
    assert os.environ["ANTS_RANDOM_SEED"] == "7"
    monkeypatch.delenv("ANTS_RANDOM_SEED")
    with pytest.raises(ImageError):
        register(image, image, "Affine", [], f"{tmp_path}/a")
    assert "ANTS_RANDOM_SEED" not in os.environ
    assert len(set(seen)) == 1


def test_find_brain__refines_the_best_of_its_starts(tmp_path, monkeypatch):
    need("ants")
    affine = known_affine(tilt=-20.0)
    scan, _, grid, _ = make_head(affine=affine)
    calls = []

    def noted(fixed, moving, kind, start, prefix, **options):
        if len(calls) in (1, 2):  # two starts end elsewhere, the last one too
            wrong = known_affine(tilt=10.0 * len(calls))
            found = Transforms(ants_affine(wrong, f"{prefix}0GenericAffine.mat"))
        else:
            found = register(fixed, moving, kind, start, prefix, **options)
        calls.append((kind, start, found))
        return found

    monkeypatch.setattr(native, "register", noted)
    head = find_brain(correct_bias(Head(scan, grid)), Settings(quick=True), str(tmp_path))
    assert [kind for kind, *_ in calls] == ["Affine"] * 4 + ["SyNOnly"]
    refined = affine_matrix(calls[3][2].affine)
    assert calls[3][1] == [calls[0][2].affine]
    assert calls[4][1] == [calls[3][2].affine]
    assert np.array_equal(head.affine, refined)
    assert apart(refined, affine) < 1.0  # mm; a voxel is 2 mm
    assert len({found.affine for _, _, found in calls[:4]}) == 4
    both = (head.brain & brain_in(grid, affine)).sum()
    assert 2 * both / (head.brain.sum() + brain_in(grid, affine).sum()) > 0.95


def test_normalize__masking_keeps_a_lesion_as_large_as_it_is(tmp_path):
    need("ants")
    scan, mask, grid, affine = make_head(lesion=True)
    head = Head(scan, grid, lesion=mask, brain=brain_in(grid, affine), affine=affine)
    target = template_grid(2.0)
    points = target.coordinates(np.arange(target.size))
    lesion = np.linalg.norm(points - CENTER, axis=1) < RADIUS
    truth = points[lesion] @ affine[:3, :3].T + affine[:3, 3]
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    volume, moved = [], []
    for masked in (True, False):
        folder = tmp_path / str(masked)
        folder.mkdir()
        warp = normalize(head, Settings(work=4.0, cost_mask=masked), str(folder))
        there = to_template(mask, grid, warp, 2.0, how="genericLabel") > 0.5
        volume.append(abs(there.sum() / lesion.sum() - 1))
        found = [to_template(mm[..., a], grid, warp, 2.0).ravel()[lesion] for a in range(3)]
        moved.append(np.linalg.norm(np.stack(found, axis=1) - truth, axis=1).mean())
    # about 0.2 and 0.4 of the volume, 1.9 and 3.2 mm
    assert volume[0] < 0.6 * volume[1]
    assert moved[0] < 0.8 * moved[1]
