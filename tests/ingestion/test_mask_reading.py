from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scalebrain.errors import ImageError
from scalebrain.ingestion.lesion import lesioned_voxels
from scalebrain.ingestion.options import ReadOptions
from scalebrain.io.files import SourceFile
from scalebrain.io.nifti import read_image

LABELS = np.zeros((6, 7, 8))
LABELS[1:3, 2:5, 3:6] = 1
LABELS[3:5, 2:5, 3:6] = 2


def lesioned(path: Path, *labels: int) -> np.ndarray:
    """Voxels that are lesion, in 3-D."""
    image = read_image(path)
    options = ReadOptions(lesion_labels=labels)
    mask = np.zeros(image.raw.size, dtype=bool)
    mask[lesioned_voxels(SourceFile(path), image, options, [])] = True
    return mask.reshape(image.shape, order="F")


def save_scaled(path: Path, values: np.ndarray, slope: float, intercept: float = 0.0) -> Path:
    """Write numbers as they are, and a scaling beside them."""
    image = nib.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    assert read_image(path).slope == pytest.approx(slope)
    return path


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint16, np.int8, np.uint8])
@pytest.mark.parametrize("factor", [1, 50])
def test_lesioned_voxels__labels_that_were_scaled_when_saved(tmp_path, dtype, factor):
    image = nib.Nifti1Image(LABELS * factor, np.eye(4))
    image.header.set_data_dtype(dtype)
    image.to_filename(tmp_path / "m.nii.gz")
    assert read_image(tmp_path / "m.nii.gz").slope != 1
    for chosen in ((1,), (2,), (1, 2)):
        wanted = [factor * one for one in chosen]
        found = lesioned(tmp_path / "m.nii.gz", *wanted)
        np.testing.assert_array_equal(found, np.isin(LABELS, chosen))


@pytest.mark.parametrize("rounded", [np.floor, np.rint, np.ceil])
def test_lesioned_voxels__labels_that_were_cut_when_scaled(tmp_path, rounded):
    values = rounded(LABELS * 127.5).astype(np.uint8)
    path = save_scaled(tmp_path / "m.nii.gz", values, 2 / 255)
    np.testing.assert_array_equal(lesioned(path, 1), LABELS == 1)
    with pytest.raises(ImageError, match=r"2 labels \(1, 2\)"):
        lesioned(path)


def test_lesioned_voxels__background_that_misses_zero_is_no_label(tmp_path):
    values = np.where(LABELS == 2, 100, -100).astype(np.int8)
    path = save_scaled(tmp_path / "m.nii.gz", values, 0.01, 1.0004)
    np.testing.assert_array_equal(lesioned(path), LABELS == 2)
    np.testing.assert_array_equal(lesioned(path, 2), LABELS == 2)


@pytest.mark.parametrize(("slope", "says"), [(0.65, r"by 0\.65 and 0"), (1.0, "without")])
def test_lesioned_voxels__values_that_are_no_labels_are_refused(tmp_path, slope, says):
    values = LABELS.astype(np.uint8) if slope != 1 else (LABELS * 0.65).astype(np.float32)
    path = save_scaled(tmp_path / "m.nii.gz", values, slope)
    with pytest.raises(ImageError, match=rf"\(0\.65, 1\.3\).*whole numbers.*{says}") as caught:
        lesioned(path, 1)
    assert caught.value.code == "mask-labels"
