"""A user's own atlas: an image with a table, in the forms that they come in."""

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain.atlas.files import read_atlas, read_labels
from scalebrain.atlas.space import Grid, resample, template_grid
from scalebrain.errors import (
    DataWarning,
    GeometryError,
    ImageError,
    LateralityError,
    TableError,
)

SHAPE = (30, 26, 18)
AFFINE = np.array([[3, 0, 0, -43.5], [0, 3, 0, -40], [0, 0, 3, -20], [0, 0, 0, 1]], dtype=float)
TABLE = "index\tname\themisphere\n7\tHand\tL\n300\tHand\tR\n2000\tVermis\tn/a\n"


def blocks(dtype=np.int32) -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=dtype)
    labels[3:10, 4:9, 5:8] = 7
    labels[18:26, 6:12, 4:9] = 300
    labels[14:16, 2:4, 1:3] = 2000
    return labels


def probabilities() -> np.ndarray:
    rng = np.random.default_rng(5)
    maps = np.zeros((*SHAPE, 2), dtype=np.float32)
    maps[3:10, 4:9, 5:8, 0] = rng.uniform(0.1, 1, (7, 5, 3))
    maps[18:26, 6:12, 4:9, 1] = rng.uniform(0.1, 1, (8, 6, 5))
    return maps


@pytest.fixture
def save(tmp_path):
    def save(data, name="own_space-MNI152NLin6Asym_dseg.nii.gz", affine=AFFINE, table=None):
        path = tmp_path / name
        nib.Nifti1Image(data, affine).to_filename(path)
        if table is not None:
            (tmp_path / f"{name.partition('.nii')[0]}.tsv").write_text(table)
        return path

    return save


def test_read_atlas__labels_with_the_table_beside_them(save):
    atlas = scalebrain.read_atlas(save(blocks(), table=TABLE))
    assert atlas.name == "own_space-MNI152NLin6Asym_dseg"
    assert atlas.space == "MNI152NLin6Asym"
    assert atlas.regions == ("Hand_L", "Hand_R", "Vermis")
    assert atlas.codes == (7, 300, 2000)
    whole = Grid.from_matrix(SHAPE, AFFINE)
    np.testing.assert_array_equal(atlas.labels_on(whole), blocks())
    assert atlas.labels.size < blocks().size  # cut to what it labels


def test_read_atlas__na_is_the_midline_as_in_other_tables(save):
    atlas = scalebrain.read_atlas(save(blocks(), table=TABLE.replace("n/a", "NA")))
    assert atlas.regions == ("Hand_L", "Hand_R", "Vermis")


def test_read_atlas__name_space_and_table_are_those_given(save, tmp_path):
    path = save(blocks(), "labels.nii", table="index\tname\n1\twrong\n")
    table = tmp_path / "Names.CSV"
    rows = ["Name,INDEX,Hemi,color", "'Hand',300,rh,#fff", "'Hand',7,Left,#000", "'V',2000,,#aaa"]
    table.write_text("\ufeff" + "\r\n".join(rows).replace("'", '"') + "\r\n\r\n")
    atlas = read_atlas(path, table, name="mine", space="MNI152NLin2009cAsym")
    assert (atlas.name, atlas.space) == ("mine", "MNI152NLin2009cAsym")
    assert atlas.regions == ("Hand_R", "Hand_L", "V")
    assert atlas.codes == (300, 7, 2000)
    assert read_atlas(path, table).space == "unknown"


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LIA", "PSR", "ASL"])
@pytest.mark.parametrize("kind", ["labels", "maps"])
def test_read_atlas__any_orientation_gives_the_same_atlas(save, axes, kind):
    data = blocks() if kind == "labels" else probabilities()
    table = TABLE if kind == "labels" else "name\nA_L\nA_R\n"
    expected = read_atlas(save(data, table=table))
    image = nib.Nifti1Image(data, AFFINE)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    atlas = read_atlas(save(np.asarray(turned.dataobj), affine=turned.affine, table=table))
    assert atlas.regions == expected.regions
    assert not expected.grid.difference(atlas.grid)
    image, same = (
        (atlas.labels, expected.labels) if kind == "labels" else (atlas.maps, expected.maps)
    )
    np.testing.assert_array_equal(image, same)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, ">i4"])
def test_read_atlas__labels_of_any_type(save, dtype):
    labels = np.minimum(blocks(), 250).astype(dtype)
    table = TABLE.replace("300", "250").replace("2000\tVermis\tn/a\n", "").replace("7\t", "7.0\t")
    labels[14:16, 2:4, 1:3] = 0
    atlas = read_atlas(save(labels, table=table))
    assert atlas.codes == (7, 250)
    assert atlas.labels.dtype == np.int32


def test_read_atlas__scaled_labels_and_a_fourth_axis_of_one(save, tmp_path):
    path = tmp_path / "scaled.nii"
    image = nib.Nifti1Image(blocks(np.int16)[..., None], AFFINE)
    image.to_filename(path)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", 2.0, 10.0)
    path.write_bytes(content)
    labels, grid = read_labels(path)
    assert grid.shape == SHAPE  # what was 0 is 10
    np.testing.assert_array_equal(labels, 2 * blocks() + 10)
    content[112:120] = struct.pack("<2f", 0.5, 0.0)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"105 voxels are no labels, as 3\.5"):
        read_labels(path)


@pytest.mark.parametrize(
    ("value", "says"), [(7.5, "7.5"), (np.nan, "nan"), (-3, "-3"), (2.0**33, "8.58993e[+]09")]
)
def test_read_atlas__refuses_what_is_no_label(save, value, says):
    labels = blocks(np.float32)
    labels[5, 5, 6] = value
    with pytest.raises(ImageError, match=rf"1 voxels are no labels, as {says}.*one frame a region"):
        read_atlas(save(labels, table=TABLE))


def test_read_atlas__label_without_a_row_and_row_without_a_voxel(save):
    table = TABLE.replace("300\tHand\tR", "301\tHand\tR")
    with pytest.raises(TableError) as caught:
        read_atlas(save(blocks(), table=table))
    assert "no row for 1 labels of own_space-MNI152NLin6Asym_dseg.nii.gz: 300" in str(caught.value)
    assert "1 rows without a voxel" in str(caught.value)
    assert "Hand_R (301)" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("index\tlabel\n7\tA\n", "one column of each name index, name, found index, label"),
        ("index\tname\tname\n7\tA\tB\n", "one column of each name"),
        ("", "found none"),
        ("index\tname\n", "no row below the header"),
        ("index\tname\n7\n", "line 2 has another number of cells"),
        ("index\tname\n7\tA\n7\tB\n", "line 3: index '7' is there twice"),
        ("index\tname\nx\tA\n", "index 'x' is no label"),
        ("index\tname\n7.5\tA\n", "index '7.5' is no label"),
        ("index\tname\n0\tCortex\n", "index '0' is no label: expected 1 or more"),
        ("index\tname\n7\t\n", "line 2: no name"),
        ("index\tname\themisphere\n7\tA\tleftish\n", "hemisphere 'leftish', expected L, R or n/a"),
        ("index\tname\themisphere\n7\tA_L\tR\n", "'A_L' in hemisphere 'R'"),
        ('index\tname\n7\t"A\n', "not a table"),
    ],
)
def test_read_atlas__refuses_a_malformed_table(save, table, says):
    with pytest.raises(TableError, match=says):
        read_atlas(save(blocks(), table=table))


def test_read_atlas__row_of_the_background_is_skipped(save):
    atlas = read_atlas(save(blocks(), table=TABLE.replace("7\tHand", "0\tBackground\t\n7\tHand")))
    assert atlas.codes == (7, 300, 2000)


def test_read_atlas__same_name_twice_is_an_error(save):
    with pytest.raises(TableError, match="Hand_L twice"):
        read_atlas(save(blocks(), table=TABLE.replace("\tR", "\tL")))


@pytest.mark.parametrize("kind", ["labels", "maps"])
def test_read_atlas__a_mirrored_image_is_refused(save, kind):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    data = blocks() if kind == "labels" else probabilities()
    table = TABLE if kind == "labels" else "name\nA_L\nA_R\n"
    with pytest.raises(LateralityError, match="2 of 2 regions"):
        read_atlas(save(data, affine=mirrored, table=table))


def test_read_atlas__says_when_sides_cannot_be_proved(save):
    table = "index\tname\n7\tLeft-Hand\n300\tRight-Hand\n2000\tVermis\n"
    with pytest.warns(DataWarning, match="of 2 regions, as Left-Hand, cannot be proved"):
        atlas = read_atlas(save(blocks(), table=table))
    assert atlas.regions == ("Left-Hand", "Right-Hand", "Vermis")
    with pytest.warns(DataWarning, match="left and right cannot be proved"):
        atlas = read_atlas(save(blocks(), "bare.nii"))
    assert atlas.regions == ("label-7", "label-300", "label-2000")
    with pytest.warns(DataWarning, match="left and right cannot be proved"):
        atlas = read_atlas(save(probabilities(), "bare_maps.nii"))
    assert atlas.regions == ("map-0", "map-1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_atlas(save(blocks(), table=TABLE))


@pytest.mark.parametrize(
    "table",
    [
        "name\nA_L\nA_R\n",
        "index\tname\themisphere\n0\tA\tL\n1\tA\tR\n",
        "index\tname\themi\n1\tA\tlh\n2\tA_R\trh\n",
    ],
)
def test_read_atlas__maps_with_names_in_order(save, table):
    atlas = read_atlas(save(probabilities(), "own_probseg.nii.gz", table=table))
    assert atlas.regions == ("A_L", "A_R")
    assert atlas.codes == ()
    # cut to what is not 0, but as the whole image where it is interpolated
    for grid in (template_grid(4.0), Grid.from_matrix(SHAPE, AFFINE)):
        for i in range(2):
            whole = resample(
                np.ascontiguousarray(probabilities()[..., i]),
                Grid.from_matrix(SHAPE, AFFINE),
                grid,
                order=1,
            )
            np.testing.assert_allclose(atlas.map_on(i, grid), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda maps: maps * 100, ImageError, r"look like percent.*-div 100 OUT"),
        (lambda maps: maps * 255, ImageError, "to 25[0-9], expected probabilities in 0-1"),
        (lambda maps: -maps, ImageError, "expected probabilities in 0-1"),
        (lambda maps: np.where(maps > 0.5, np.nan, maps), ImageError, "nan"),
        (lambda maps: maps * [1, 0], ImageError, "1 of 2 maps are empty, as that of frame 1"),
        (lambda maps: maps[..., [0, 1, 1]], TableError, "2 rows, .* has 3 maps"),
    ],
)
def test_read_atlas__refuses_what_are_no_maps(save, change, error, says):
    path = save(change(probabilities()).astype(np.float32), table="name\nA_L\nA_R\n")
    with pytest.raises(error, match=says):
        read_atlas(path)


def test_read_atlas__maps_out_of_order_are_refused(save):
    table = "index\tname\n2\tA_R\n1\tA_L\n"
    with pytest.raises(TableError, match=r"index 2, 1; expected the frames .* in order"):
        read_atlas(save(probabilities(), table=table))


def test_read_atlas__refuses_files_that_cannot_be_read(save, tmp_path):
    table = tmp_path / "names.tsv"
    table.write_text("name\nA_L\nA_R\n")
    path = save(probabilities(), "maps.nii.gz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="Copy it again"):
        read_atlas(path, table)
    path.write_bytes(gzip.compress(gzip.decompress(content)[:-4]))
    with pytest.raises(ImageError, match="Copy it again"):
        read_atlas(path, table)
    with pytest.raises(ImageError, match=r"absent.nii.*Check the path"):
        read_atlas(tmp_path / "absent.nii", table)
    with pytest.raises(TableError, match=r"names\.txt: expected a \.tsv"):
        read_atlas(save(blocks()), tmp_path / "names.txt")
    with pytest.raises(TableError, match=r"absent.tsv: cannot be read.*Check the path"):
        read_atlas(save(blocks()), tmp_path / "absent.tsv")
    table.write_bytes("index\tname\n7\tGyrus précentral\n".encode("latin-1"))
    with pytest.raises(TableError, match="not UTF-8"):
        read_atlas(save(blocks()), table)


def test_read_atlas__refuses_an_image_without_orientation_or_labels(save, tmp_path):
    image = nib.Nifti1Image(blocks(), AFFINE)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    image.to_filename(tmp_path / "nowhere.nii")
    with pytest.raises(GeometryError, match="left and right are unknown"):
        read_atlas(tmp_path / "nowhere.nii")
    with pytest.raises(ImageError, match="no voxel has a label"):
        read_atlas(save(blocks() * 0, table=TABLE))


@pytest.mark.parametrize("axes", [(), (None,)])
def test_read_atlas__one_probability_map(save, axes):
    one = probabilities()[..., 0][(..., *axes)]
    atlas = read_atlas(save(one, table="name\nHand_L\n"))
    assert atlas.regions == ("Hand_L",)
    assert atlas.maps.max() == one.max()


def test_read_atlas__rounding_outside_of_0_to_1_is_cut_and_no_percent(save):
    maps = probabilities()
    maps[5, 5, 6, 0], maps[0, 0, 0, 1] = 1.00005, -0.00005
    atlas = read_atlas(save(maps, table="name\nA_L\nA_R\n"))
    assert (atlas.maps.min(), atlas.maps.max()) == (0, 1)
    maps[5, 5, 6, 0] = 1.01
    with pytest.raises(ImageError, match=r"to 1\.01, expected probabilities in 0-1"):
        read_atlas(save(maps, table="name\nA_L\nA_R\n"))


def test_read_atlas__a_compressed_file_of_another_name_is_an_error_of_ours(save, tmp_path):
    path = save(blocks(), table=TABLE)
    (tmp_path / "other.nii").write_bytes(path.read_bytes())
    with pytest.raises(ImageError, match=r"other\.nii: cannot be opened.*\.nii\.gz"):
        read_atlas(tmp_path / "other.nii")


@pytest.mark.parametrize("name", ["7Networks_LH_Vis_1", "R_V1_ROI", "thal_r", "Left Thalamus"])
def test_read_atlas__sides_within_names_are_not_proved_and_told_of(save, name):
    table = f"index\tname\n7\t{name}\n300\tThal_R\n2000\tVermis\n"
    with pytest.warns(DataWarning, match=f"of 1 regions, as {name}, cannot be proved"):
        read_atlas(save(blocks(), table=table))


def test_read_atlas__one_table_of_all_resolutions(save, tmp_path):
    name = "tpl-MNI152NLin6Asym_res-02_atlas-Own_dseg"
    path = save(blocks(), f"{name}.nii.gz")
    (tmp_path / f"{name.replace('_res-02', '')}.tsv").write_text(TABLE)
    assert read_atlas(path).regions == ("Hand_L", "Hand_R", "Vermis")
    (tmp_path / f"{name}.tsv").write_text(TABLE.replace("Vermis", "Own"))
    assert read_atlas(path).regions == ("Hand_L", "Hand_R", "Own")


def test_read_atlas__frames_may_be_written_as_fractions(save):
    for first in (0, 1):
        table = f"index\tname\n{first}.0\tA_L\n{first + 1}.0\tA_R\n"
        assert read_atlas(save(probabilities(), table=table)).regions == ("A_L", "A_R")


def test_read_atlas__one_probability_map_may_be_rounded(save):
    one = probabilities()[..., 0]
    one[5, 5, 6] = 1.00002
    atlas = read_atlas(save(one, table="name\nHand_L\n"))
    assert (atlas.codes, float(atlas.maps.max())) == ((), 1)


@pytest.mark.parametrize("table", ["name\nHand_L\n", "index\tname\n1\tHand_L\n"])
def test_read_atlas__one_map_in_whole_percent_is_no_labels(save, table):
    percent = np.rint(probabilities()[..., 0] * 100).astype(np.uint8)
    path = save(percent, "percent.nii.gz", table=table)
    with pytest.raises(ImageError, match=r"map in percent.*fslmaths percent.nii.gz -div 100 OUT"):
        read_atlas(path)
