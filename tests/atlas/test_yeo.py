"""The networks of Yeo et al. 2011, on images of their layout that nilearn finds in its folder.

The published images are tested as well where nilearn has downloaded them before.
"""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets

from scalebrain.atlas import yeo
from scalebrain.atlas.registry import load_atlas
from scalebrain.errors import ImageError, LateralityError

# FreeSurfer's conformed grid: 1 mm, axes to the left, inferior, anterior, then one frame.
AFFINE = np.array([[-1, 0, 0, 127], [0, 0, 1, -145], [0, -1, 0, 147], [0, 0, 0, 1]], dtype=float)
SHAPE = (256, 256, 256)
NETWORKS = {7: (yeo.NETWORKS_7, yeo._ANCHORS_7), 17: (yeo.NETWORKS_17, yeo._ANCHORS_17)}
LARGER = {7: (7, 6), 17: (17, 13)}  # on the left, on the right
FOLDER = "yeo_2011/Yeo_JNeurophysiol11_MNI152"


def balls(n: int) -> np.ndarray:
    """A ball around each anchor, and a slab of the first network across the midline."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    mm = [AFFINE[axis, 3] + AFFINE[axis, :3].sum() * np.arange(256) for axis in range(3)]
    inverse = np.linalg.inv(AFFINE)
    left, right = LARGER[n]
    for label, points in enumerate(NETWORKS[n][1], start=1):
        for side, point in enumerate(points):
            radius = 8.5 if label == (left, right)[side] else 6.5
            center = np.rint(inverse @ [*point, 1])[:3].astype(int)
            reach = range(-9, 10)
            for offset in itertools.product(reach, repeat=3):
                if np.dot(offset, offset) <= radius**2:
                    labels[tuple(center + offset)] = label
    x = mm[0]
    assert (x[124:131] == [3, 2, 1, 0, -1, -2, -3]).all()
    labels[124:131, 60:64, 40:44] = 1
    return labels


@pytest.fixture(scope="module")
def images():
    return {n: balls(n) for n in NETWORKS}


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Put images where nilearn looks, so that it downloads nothing."""
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)

    def write(image: np.ndarray, n: int, affine: np.ndarray = AFFINE) -> None:
        for k, ending in itertools.product((7, 17), ("", "_LiberalMask")):
            path = folder / f"Yeo2011_{k}Networks_MNI152_FreeSurferConformed1mm{ending}.nii.gz"
            if k == n and ending:
                nib.Nifti1Image(image[..., None], affine).to_filename(path)
            else:
                path.write_bytes(b"")
        for k in (7, 17):
            rows = [f"{i} {k}Networks_{i} {i} 10 10 0" for i in range(1, k + 1)]
            table = folder / f"Yeo2011_{k}Networks_ColorLUT.txt"
            table.write_text("\n".join(["0 NONE 0 0 0 0", *rows]) + "\n")
        (folder / "FSL_MNI152_FreeSurferConformed_1mm.nii.gz").write_bytes(b"")

    return write


def check_networks(atlas, n: int) -> None:
    names, anchors = NETWORKS[n]
    assert atlas.regions == tuple(f"{name}_{side}" for name in names for side in "LR")
    assert atlas.codes == tuple(range(1, 2 * n + 1))
    assert atlas.space == "MNI152NLin6Asym"
    for label, points in enumerate(anchors, start=1):
        assert yeo._label_near(atlas.labels, atlas.grid, points[0]) == 2 * label - 1
        assert yeo._label_near(atlas.labels, atlas.grid, points[1]) == 2 * label
    flat = np.flatnonzero(atlas.labels)
    x = atlas.grid.coordinates(flat)[:, 0]
    assert ((x < 0) == (atlas.labels.ravel()[flat] % 2 == 1)).all()
    assert (x != 0).all()


@pytest.mark.parametrize("n", [7, 17])
def test_yeo__networks_are_split_at_the_midline(put, images, n):
    put(images[n], n)
    atlas = load_atlas(f"yeo-{n}")
    check_networks(atlas, n)
    sizes = [np.count_nonzero(atlas.labels == code) for code in (1, 2)]
    on_midline = 4 * 4
    total = np.count_nonzero(images[n] == 1)
    assert sum(sizes) == total - on_midline
    assert sizes[0] == sizes[1]


def test_yeo__other_orientations_give_the_same_atlas(put, images):
    put(images[7], 7)
    expected = load_atlas("yeo-7")
    turned = nib.as_closest_canonical(nib.Nifti1Image(images[7], AFFINE))
    put(np.asarray(turned.dataobj), 7, turned.affine)
    assert load_atlas("yeo-7").sha256 == expected.sha256


@pytest.mark.parametrize("n", [7, 17])
def test_yeo__a_mirrored_image_is_refused(put, images, n):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    put(images[n], n, mirrored)
    with pytest.raises(LateralityError, match="mirrored: delete its folder"):
        load_atlas(f"yeo-{n}")


def test_yeo__networks_in_another_order_are_refused(put, images):
    order = np.array([0, 2, 3, 4, 5, 6, 7, 1], dtype=np.uint8)
    put(order[images[7]], 7)
    with pytest.raises(ImageError, match=r"only 0 of 14 points.*another order"):
        load_atlas("yeo-7")


@pytest.mark.filterwarnings(r"ignore:\s*The following regions are present:UserWarning")
def test_yeo__another_image_is_refused(put, images):
    put(np.minimum(images[7], 6), 7)
    with pytest.raises(ImageError, match=r"labels 0, 1, 2, 3, 4, 5, 6, expected 0 to 7"):
        load_atlas("yeo-7")


def test_yeo__without_internet_says_where_to_put_the_files(tmp_path, monkeypatch):
    def offline(**kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "fetch_atlas_yeo_2011", offline)
    with pytest.raises(ImageError, match="Name or service not known") as caught:
        load_atlas("yeo-17")
    assert f"files lie in {tmp_path / FOLDER};" in str(caught.value)
    assert "Yeo_JNeurophysiol11_MNI152.zip" in str(caught.value)


@pytest.mark.parametrize("n", [7, 17])
def test_yeo__published_image(n):
    places = [Path(folder) / FOLDER for folder in datasets.get_data_dirs()]
    names = [f"Yeo2011_{k}Networks_ColorLUT.txt" for k in (7, 17)]
    if not any(all((place / name).is_file() for name in names) for place in places):
        pytest.skip(f"opt-in: load_atlas('yeo-{n}') once downloads it to nilearn's data folder")
    check_networks(load_atlas(f"yeo-{n}"), n)
