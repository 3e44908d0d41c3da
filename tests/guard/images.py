"""Cases of images: where they lie, and what their voxels hold."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

import scalebrain
from scalebrain.atlas import parcels, tracts
from scalebrain.atlas.space import SPACE, Grid, asymmetric_template, template, template_grid
from scalebrain.errors import LateralityError
from tests.guard.inputs import (
    CODES,
    GM,
    GRID,
    LEFT,
    LESION,
    MIDDLE,
    MM,
    ONE,
    OTHER,
    QOFFSET,
    RIGHT,
    SCALING,
    SROW,
    SUBJECTS,
    T1W,
    Lab,
    ball,
    case,
    edit_table,
    patch_header,
    rewrite,
    save,
    value,
    volume,
)
from tests.phantom import image_path


def lesioned(lab: Lab, mask: np.ndarray, affine: np.ndarray = GRID.matrix) -> Path:
    """A tree in which the mask of the person lesioned on the right is another one."""
    tree = lab.tree()
    save(image_path(tree, RIGHT, LESION), mask, affine)
    return tree


def brain(lab: Lab) -> np.ndarray:
    """Where the store has voxels."""
    return np.isfinite(volume(lab.intact, "t1w", ONE))


# Orientation and space


@case("forms-left-right")
def forms_left_right(lab: Lab) -> str:
    tree = lab.tree()
    for subject, kind in ((ONE, T1W), (LEFT, LESION)):
        path = image_path(tree, subject, kind)
        image = nib.load(path)
        image.set_sform(GRID.matrix, 4)
        image.set_qform(np.diag([-1.0, 1, 1, 1]) @ GRID.matrix, 1)
        nib.save(image, path)
    return lab.rejected(tree, "forms-left-right", ONE, LEFT, says="RAS.*LAS.*Find out")


@case("forms-differ")
def forms_differ(lab: Lab) -> str:
    tree = lab.tree()
    path = image_path(tree, ONE, T1W)
    image = nib.load(path)
    image.set_sform(GRID.matrix, 4)
    image.set_qform(GRID.matrix, 1)
    nib.save(image, path)
    patch_header(path, QOFFSET, "3f", -98, -132, -72)
    message, ds = lab.warned(tree, "forms-differ", ONE, says=r"2\.000 mm apart.*Set both alike")
    np.testing.assert_array_equal(ds["t1w"], lab.intact["t1w"])
    return message


@case("no-orientation")
def no_orientation(lab: Lab) -> str:
    tree = lab.tree()
    patch_header(image_path(tree, ONE, T1W), CODES, "2h", 0, 0)
    return lab.rejected(tree, "no-orientation", ONE, says="--assume-space")


@case("assumed-orientation")
def assumed_orientation(lab: Lab) -> str:
    tree = lab.tree()
    patch_header(image_path(tree, ONE, T1W), CODES, "2h", 0, 0)
    message, ds = lab.warned(
        tree, "assumed-orientation", ONE, says="axes RAS.*as asked", assume_space=True
    )
    np.testing.assert_array_equal(ds["t1w"], lab.intact["t1w"])
    return message


@case("affine-rounding")
def affine_rounding(lab: Lab) -> str:
    tree = lab.tree()
    for kind in (T1W, GM, LESION):
        patch_header(image_path(tree, RIGHT, kind), SROW, "f", 4 * (1 + 1e-6))
    ds = lab.handled(tree, RIGHT)
    for name in ("t1w", "gm", "lesion_mask"):
        np.testing.assert_array_equal(ds[name], lab.intact[name])
    residual = value(ds, "affine_residual")
    assert residual == pytest.approx(49 * 4e-6, rel=0.2)
    mask_alone = lab.tree()
    patch_header(image_path(mask_alone, RIGHT, LESION), SROW, "f", 4 * (1 + 1e-6))
    assert value(lab.handled(mask_alone, RIGHT), "affine_residual") == residual
    return f"`affine_residual` {residual:.4f} mm"


@case("mask-orientation")
def mask_orientation(lab: Lab) -> str:
    path = image_path(lab.tree(), RIGHT, LESION)
    flipped = nib.load(path).as_reoriented([[0, -1], [1, 1], [2, 1]])
    assert nib.aff2axcodes(flipped.affine) == ("L", "A", "S")
    ds = lab.handled(lesioned(lab, np.asarray(flipped.dataobj), flipped.affine))
    assert value(ds, "lesion_hemisphere") == "R"
    return "LAS beside a T1w in RAS: the same voxels, `lesion_hemisphere` R"


@case("mask-resampled")
def mask_resampled(lab: Lab) -> str:
    fine = template_grid(2.0)
    mm = fine.coordinates(np.arange(fine.size)).reshape(*fine.shape, 3)
    mask = ball((35, -15, 30), 20, mm)
    ds = lab.handled(lesioned(lab, mask, fine.matrix), RIGHT)
    at = np.rint((MM - fine.matrix[:3, 3]) / 2).astype(int)
    inside = ((at >= 0) & (at < fine.shape)).all(axis=-1)
    nearest = np.zeros(GRID.shape, dtype=bool)
    nearest[inside] = mask[tuple(at[inside].T)] == 1
    found = volume(ds, "lesion_mask", RIGHT)
    np.testing.assert_array_equal(found[brain(lab)], nearest[brain(lab)])
    own = mask.sum() * 8 / 1000
    assert value(ds, "lesion_volume") == pytest.approx(own)
    change = nearest.sum() * 64 / 1000 / own - 1
    assert value(ds, "lesion_volume_change") == pytest.approx(change)
    assert 0 < abs(change) < 0.05
    return f"2 mm mask, 4 mm store: `lesion_volume_change` {change:+.3f}"


@case("mask-volume-changed")
def mask_volume_changed(lab: Lab) -> str:
    fine = template_grid(2.0)
    mask = np.zeros(fine.shape, dtype=np.uint8)
    mask[66:69, 60:63, 50:53] = 1
    message, ds = lab.warned(
        lesioned(lab, mask, fine.matrix),
        "mask-volume-changed",
        RIGHT,
        says=r"0\.22 mL became.*--resolution",
    )
    assert value(ds, "lesion_volume") == pytest.approx(27 * 8 / 1000)
    assert abs(value(ds, "lesion_volume_change")) > 0.05
    return message


def shifted_mask(lab: Lab) -> str:
    """Message of the ingest about a mask with as many voxels as the T1w, in another place."""
    own = nib.load(image_path(lab.tree(), RIGHT, LESION))
    moved = own.affine.copy()
    moved[:3, 3] += (8, 8, 0)  # the origin of another template
    message, ds = lab.warned(
        lesioned(lab, np.asarray(own.dataobj), moved),
        "mask-affine",
        RIGHT,
        says=r"up to 11\.3 mm away .* write it with the affine",
    )
    place = [np.argwhere(volume(one, "lesion_mask", RIGHT)) for one in (ds, lab.intact)]
    assert (place[0].mean(axis=0) - place[1].mean(axis=0)).tolist() == [2, 2, 0]
    alone = lesioned(lab, np.asarray(own.dataobj), moved)
    for subject in SUBJECTS:
        image_path(alone, subject, GM).unlink()
    lab.warned(alone, "mask-affine", RIGHT, says="11.3 mm", others=False)
    within = own.affine.copy()
    within[:3, 3] += 0.2
    lab.handled(lesioned(lab, np.asarray(own.dataobj), within), RIGHT)
    return message


@case("mask-unplaced")
def mask_unplaced(lab: Lab) -> str:
    data = np.asarray(nib.load(image_path(lab.tree(), RIGHT, LESION)).dataobj)
    messages = [
        lab.rejected(lesioned(lab, data, affine), "mask-unplaced", RIGHT, says=says)
        for affine, says in (
            (np.eye(4), "voxels of 1 mm along the axes.*Write it with the affine"),
            (np.diag([4.0, 4, 4, 1]), "the origin 0, 0, 0.*Write it with the affine"),
        )
    ]
    lab.handled(lesioned(lab, np.zeros_like(data), np.eye(4)), RIGHT)  # lies nowhere else
    return messages[0]


@case("image-resampled")
def image_resampled(lab: Lab) -> str:
    tree = lab.tree()
    fine = template_grid(2.0)
    save(image_path(tree, ONE, T1W), template("t1", fine) * 940, fine.matrix)
    message, ds = lab.warned(tree, "image-resampled", ONE, says="resampled to the store's grid")
    rows = [one["t1w"].sel(subject=ONE).values for one in (ds, lab.intact)]
    assert np.corrcoef(rows)[0, 1] > 0.98
    return message


def native(scale: float = 1.2) -> np.ndarray:
    """Millimeters of a head that is larger, nods by 20 degrees and lies 30 mm off."""
    turn = np.eye(4)
    angle = np.deg2rad(20)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, :3] *= scale
    turn[1, 3] = 30
    return turn


@case("not-in-template-space")
def not_in_template_space(lab: Lab) -> str:
    tree = lab.tree()
    path = image_path(tree, ONE, T1W)
    move = np.linalg.inv(GRID.matrix) @ np.linalg.inv(native()) @ GRID.matrix
    rewrite(path, lambda data: ndimage.affine_transform(data, move, order=1))
    rewrite(image_path(tree, OTHER, GM), lambda data: np.roll(data, 4, axis=2))  # 16 mm up
    save(image_path(tree, LEFT, GM), template("wm", GRID), GRID.matrix)
    message = lab.rejected(
        tree,
        "not-in-template-space",
        ONE,
        OTHER,
        LEFT,
        says=r"correlates -?0\.\d\d with .* Normalize it",
    )
    unnamed = lab.tree()
    path = image_path(unnamed, ONE, T1W)
    path.rename(path.with_name(f"{ONE}_{T1W}.nii.gz"))
    image_path(unnamed, ONE, GM).unlink()
    lab.rejected(unnamed, "not-in-template-space", ONE, says="no space MNI.* Normalize it")
    return message


@case("lesion-outside-brain")
def lesion_outside_brain(lab: Lab) -> str:
    mask = nib.load(image_path(lab.tree(), RIGHT, LESION))
    moved = np.eye(4)
    moved[:3, 3] = (30, 0, 30)
    tree = lesioned(lab, np.asarray(mask.dataobj), moved @ native() @ mask.affine)
    return lab.rejected(tree, "lesion-outside-brain", RIGHT, says="native space.*Warp it")


@case("mirrored")
def mirrored(lab: Lab) -> str:
    tree = lab.tree()
    for subject, swapped in ((ONE, True), (OTHER, False)):
        data = asymmetric_template(GRID, mirrored=swapped)
        save(image_path(tree, subject, T1W), data, GRID.matrix)
    message, ds = lab.warned(
        tree, "mirrored", ONE, says="better mirrored.*Check left", others=False
    )
    both = [value(ds, f"template_overlap{end}", ONE) for end in ("", "_mirrored")]
    assert both[1] > both[0] + 0.005
    assert both == [value(ds, f"template_overlap{end}", OTHER) for end in ("_mirrored", "")]
    return message


def rename_space(tree: Path, subject: str, space: str) -> None:
    for path in (tree / subject / "anat").iterdir():
        path.rename(path.with_name(path.name.replace(SPACE, space)))


@case("other-template")
def other_template(lab: Lab) -> str:
    tree = lab.tree()
    for subject in SUBJECTS:
        rename_space(tree, subject, "MNI152NLin2009cAsym")
    message, ds = lab.warned(
        tree, "other-template", *SUBJECTS, says=f"MNI152NLin2009cAsym.*{SPACE}"
    )
    assert (ds["source_space"] == "MNI152NLin2009cAsym").all()
    np.testing.assert_array_equal(ds["t1w"], lab.intact["t1w"])
    return message


@case("mixed-templates")
def mixed_templates(lab: Lab) -> str:
    tree = lab.tree()
    rename_space(tree, ONE, "MNI152NLin6Asym")
    return lab.rejected(tree, "mixed-templates", ONE, says=f"{SPACE}.*Normalize it")


@case("lesion-side")
def lesion_side(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {LEFT: {"lesion_side": "R"}, RIGHT: {"lesion_side": "right"}})
    ds_message = lab.rejected(
        tree, "lesion-side", LEFT, says="on the L side.*table says R.*correct it", others=False
    )
    return ds_message


@case("lesion-side-differs")
def lesion_side_differs(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {MIDDLE: {"lesion_side": "L"}})
    message, _ = lab.warned(
        tree, "lesion-side-differs", MIDDLE, says="midline by the mask.*L by.*Check both"
    )
    return message


@case("paresis-side")
def paresis_side(lab: Lab) -> str:
    tree = lab.tree()
    edit_table(tree, {LEFT: {"lesion_side": "L", "paresis_side": "L"}})
    edit_table(tree, {RIGHT: {"paresis_side": "R"}})  # its lesion's side is in the mask alone
    message, _ = lab.warned(
        tree, "paresis-side", LEFT, RIGHT, says="expected opposite sides. Check"
    )
    return message


@case("atlas-flipped")
def atlas_flipped(lab: Lab) -> str:
    labels, grid = parcels._aal()
    shifted = np.diag([-1.0, 1, 1, 1]) @ grid.matrix
    maps, tract_grid = tracts._juelich()
    swapped = {name: maps[f"CST_{'LR'['RL'.index(name[-1])]}"] for name in maps}
    messages = []
    for module, name, flipped in (
        (parcels, "_aal", (labels, Grid.from_matrix(grid.shape, shifted))),
        (tracts, "_juelich", (swapped, tract_grid)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, lambda flipped=flipped: flipped)
            tree = lab.tree()
            with pytest.raises(LateralityError, match="Check the affine") as caught:
                scalebrain.ingest(tree, tree.parent / "c.zarr")
        messages.append(str(caught.value))
    assert "flipped" in messages[0]
    assert "CST_L" in messages[1]
    return messages[0]


# Values


@case("one-frame")
def one_frame(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, ONE, T1W), lambda data: data[..., np.newaxis])
    assert nib.load(image_path(tree, ONE, T1W)).ndim == 4
    lab.handled(tree)
    return "the same rows as the 3-D image"


@case("many-frames")
def many_frames(lab: Lab) -> str:
    tree = lab.tree()
    path = image_path(tree, ONE, T1W)
    rewrite(path, lambda data: np.stack([data, data // 2], axis=-1))
    message = lab.rejected(tree, "many-frames", ONE, says="2 frames.*--volume")
    lab.handled(lab.again(tree), volume=0)
    return message


@case("probabilistic-mask")
def probabilistic_mask(lab: Lab) -> str:
    own = np.asarray(nib.load(image_path(lab.tree(), RIGHT, LESION)).dataobj)
    mask = np.where(own == 1, 0.5, 0.0) + ball((-30, -15, 30), 12) * 0.49
    ds = lab.handled(lesioned(lab, mask.astype(np.float32)))
    assert ds.attrs["lesion_threshold"] == 0.5
    return "`lesion_threshold` 0.5"


@case("mask-below-threshold")
def mask_below_threshold(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, RIGHT, LESION), lambda data: data * 0.4, "f4")
    message, ds = lab.warned(
        tree, "mask-below-threshold", RIGHT, says=r"up to 0\.4, all below 0\.5.*Write the lesion"
    )
    assert value(ds, "lesion_hemisphere") == "none"
    assert value(ds, "lesion_volume") == 0
    return message


@case("mask-unlabeled")
def mask_unlabeled(lab: Lab) -> str:
    message, ds = lab.warned(
        lab.tree(),
        "mask-unlabeled",
        *(LEFT, RIGHT, MIDDLE),
        says="none of --lesion-labels.*Check that it is one",
        lesion_labels=[2],
    )
    np.testing.assert_array_equal(ds["lesion_mask"], lab.intact["lesion_mask"])
    return message


@case("mask-scaled")
def mask_scaled(lab: Lab) -> str:
    tree = lab.tree()
    # 255, and the undershoot of a filter, which is no lesion
    undershoot = ball((-40, -15, 30), 12) * np.float32(-1e-4)
    rewrite(image_path(tree, RIGHT, LESION), lambda data: data * 255 + undershoot)
    message, ds = lab.warned(tree, "mask-scaled", RIGHT, says="is 255, expected 1")
    np.testing.assert_array_equal(ds["lesion_mask"], lab.intact["lesion_mask"])
    assert value(ds, "lesion_volume") == value(lab.intact, "lesion_volume")
    return message


@case("mask-labels")
def mask_labels(lab: Lab) -> str:
    other = ball((-30, -15, 30), 12)
    tree = lab.tree()
    rewrite(image_path(tree, RIGHT, LESION), lambda data: data + 2 * other)
    message = lab.rejected(tree, "mask-labels", RIGHT, says=r"2 labels \(1, 2\).*--lesion-labels")
    lab.handled(lab.again(tree), lesion_labels=[1])
    rewrite(image_path(tree, RIGHT, LESION), lambda data: data * 0.7, "f4")
    options = {"lesion_labels": [1], "says": r"no labels \(0\.7, 1\.4\).*without a scaling"}
    lab.rejected(lab.again(tree), "mask-labels", RIGHT, **options)
    return message


def with_bad_voxels(lab: Lab, n: int, bad: float) -> Path:
    tree = lab.tree()
    at = tuple(np.argwhere(brain(lab))[:: brain(lab).sum() // n][:n].T)

    def change(data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float32)
        data[at] = bad
        return data

    rewrite(image_path(tree, ONE, T1W), change)
    return tree


@case("nonfinite")
def nonfinite(lab: Lab) -> str:
    for bad in (np.inf, np.nan):
        tree = with_bad_voxels(lab, 12, bad)
        message, ds = lab.warned(tree, "nonfinite", ONE, says="12 NaN or infinite voxels, kept")
        row = ds["t1w"].sel(subject=ONE).values
        assert np.isnan(row).sum() == 12
        known = np.isfinite(row)
        np.testing.assert_array_equal(row[known], lab.intact["t1w"].sel(subject=ONE).values[known])
        assert value(ds, "nonfinite_fraction", ONE) == pytest.approx(12 / row.size)
    return message


@case("nonfinite-many")
def nonfinite_many(lab: Lab) -> str:
    tree = with_bad_voxels(lab, 1000, np.nan)
    rewrite(
        image_path(tree, RIGHT, LESION),
        lambda data: np.where(ball((35, -15, 30), 5), np.nan, data),
        "f4",
    )
    cropped = image_path(tree, OTHER, T1W)
    image = nib.load(cropped).slicer[:, :, 16:]
    nib.save(image, cropped)
    patch_header(image_path(tree, LEFT, T1W), SCALING, "2f", 3e38, 0)
    rewrite(image_path(tree, MIDDLE, LESION), lambda data: data * 1e300, "f8")
    patch_header(image_path(tree, MIDDLE, LESION), SCALING, "2f", 3e38, 0)
    return lab.rejected(
        tree, "nonfinite-many", ONE, OTHER, LEFT, RIGHT, MIDDLE, says="(NaN|infinite).*Write"
    )


@case("mask-negative")
def mask_negative(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, RIGHT, LESION), lambda data: -data.astype(np.int16))
    return lab.rejected(tree, "mask-negative", RIGHT, says="down to -1, expected a mask.*Write it")


@case("mask-inverted")
def mask_inverted(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, LEFT, LESION), lambda data: 1 - data)
    inside = np.isfinite(volume(lab.intact, "t1w", ONE))
    rewrite(image_path(tree, RIGHT, LESION), lambda data: (1 - data) * inside)
    return lab.rejected(tree, "mask-inverted", LEFT, RIGHT, says="covers .*inverted.*has to be 1")


@case("lesion-empty")
def lesion_empty(lab: Lab) -> str:
    ds = lab.handled(lesioned(lab, np.zeros(GRID.shape, dtype=np.uint8)), RIGHT)
    assert value(ds, "lesion_present") is True
    assert value(ds, "lesion_volume") == 0
    assert value(ds, "lesion_hemisphere") == "none"
    one = {"subject": RIGHT}
    assert (scalebrain.lesion_load(ds)["lesion_load"].sel(one) == 0).all()
    assert (scalebrain.tract_load(ds)["tract_load"].sel(one) == 0).all()
    assert scalebrain.lesion_load(ds)["lesion_load"].sel(subject=ONE).isnull().all()
    return "`lesion_volume` 0, `lesion_hemisphere` none, `lesion_load` 0"


@case("specks")
def specks(lab: Lab) -> str:
    own = np.asarray(nib.load(image_path(lab.tree(), RIGHT, LESION)).dataobj)
    n = 2
    mask = own.copy()
    mask[20, 45, 25] = mask[30, 45, 25] = 1
    ds = lab.handled(lesioned(lab, mask), RIGHT)
    assert value(ds, "lesion_volume") == pytest.approx(mask.sum() * 0.064)
    assert value(ds, "lesion_volume_removed") == 0
    ds = lab.handled(lesioned(lab, mask), RIGHT, min_lesion=0.1)
    np.testing.assert_array_equal(ds["lesion_mask"], lab.intact["lesion_mask"])
    removed = value(ds, "lesion_volume_removed")
    assert removed == pytest.approx(n * 0.064)
    return f"`--min-lesion 0.1`: `lesion_volume_removed` {removed:.3f} mL"


@case("lesion-outside")
def lesion_outside(lab: Lab) -> str:
    mask = ball((62, -15, 20), 14)
    message, ds = lab.warned(
        lesioned(lab, mask), "lesion-outside", RIGHT, says=r"\d+\.\d% outside the brain\. Check"
    )
    outside = 1 - mask[brain(lab)].sum() / mask.sum()
    assert value(ds, "lesion_outside_fraction") == pytest.approx(outside)
    assert value(ds, "lesion_volume") == pytest.approx(mask.sum() * 0.064)
    return message


def sides_are_missing(ds: xr.Dataset, *subjects: str) -> None:
    """Ipsilesional and contralesional exist for those with a lesion of one side alone."""
    loads = scalebrain.lesion_load(ds).assign(lesion_hemisphere=ds["lesion_hemisphere"])
    sided = scalebrain.to_lesional_sides(loads)["lesion_load"]
    assert sided.sel(subject=list(subjects)).isnull().all()
    assert sided.sel(subject=LEFT).notnull().all()


@case("bilateral")
def bilateral(lab: Lab) -> str:
    mask = ball((35, -15, 30), 12) + ball((-35, -15, 30), 10)
    ds = lab.handled(lesioned(lab, mask), RIGHT)
    assert value(ds, "lesion_hemisphere") == "bilateral"
    left, right = mask[MM[..., 0] < 0].sum(), mask[MM[..., 0] > 0].sum()
    index = value(ds, "laterality_index")
    assert index == pytest.approx((int(left) - int(right)) / (int(left) + int(right)))
    sides_are_missing(ds, RIGHT)
    return f"`lesion_hemisphere` bilateral, `laterality_index` {index:+.2f}"


@case("midline")
def midline(lab: Lab) -> str:
    for center, radius in (
        ((2, -28, -36), 9),  # brainstem
        ((-9, -30, -34), 8),  # one side of the pons
        ((11, -22, -14), 5),  # one cerebral peduncle
        ((30, -62, -40), 10),  # cerebellum
        ((-16, -56, -34), 7),  # its white matter
    ):
        ds = lab.handled(lesioned(lab, ball(center, radius)), RIGHT)
        assert value(ds, "lesion_hemisphere") == "midline"
        sides_are_missing(ds, RIGHT, MIDDLE)
    return "`lesion_hemisphere` midline"


@case("parcel-covered")
def parcel_covered(lab: Lab) -> str:
    code = 2
    mask = (scalebrain.unpack(lab.intact["parcel"]).values == code).astype(np.uint8)
    ds = lab.handled(lesioned(lab, mask), RIGHT)
    features = scalebrain.node_features(ds).sel(subject=RIGHT)
    own = (ds["node_parcel"] == code).values & np.isin(
        np.arange(ds.sizes["node"]), ds["node_label"]
    )
    assert own.any()
    assert features["node_features"].values[own].size
    assert np.isnan(features["node_features"].values[own]).all()
    assert (features["node_lesioned_fraction"].values[own] == 1).all()
    other = (ds["node_parcel"] == 1).values & np.isin(np.arange(ds.sizes["node"]), ds["node_label"])
    assert np.isfinite(features["node_features"].values[other]).all()
    assert (features["node_lesioned_fraction"].values[other] == 0).all()
    return "`node_features` missing, `node_lesioned_fraction` 1"


@case("scaling")
def scaling(lab: Lab) -> str:
    tree = lab.tree()
    patch_header(image_path(tree, ONE, T1W), SCALING, "2f", 0, 0)
    patch_header(image_path(tree, OTHER, T1W), SCALING, "2f", 100, -7)
    ds = lab.handled(tree, OTHER)
    row = ds["t1w"].sel(subject=OTHER).values
    np.testing.assert_array_equal(row, lab.intact["t1w"].sel(subject=OTHER).values * 100 - 7)
    assert row.max() > np.iinfo(np.int16).max
    return f"int16 times 100: up to {row.max():.0f} in the store"


@case("bad-scaling")
def bad_scaling(lab: Lab) -> str:
    tree = lab.tree()
    patch_header(image_path(tree, ONE, T1W), SCALING, "2f", np.nan, 0)
    patch_header(image_path(tree, OTHER, T1W), SCALING, "2f", 1, np.inf)
    return lab.rejected(tree, "bad-scaling", ONE, OTHER, says="expected finite.*Set both")


@case("oblique")
def oblique(lab: Lab) -> str:
    angle = np.deg2rad(15)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([1.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = (0, 100, -60)
    shape = (60, 100, 60)
    mm = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    mask = ball((32, -20, 20), 25, mm).reshape(shape)
    ds = lab.handled(lesioned(lab, mask, affine), RIGHT)
    expected = mask.sum() * 1.5 * 2 * 3 / 1000
    assert value(ds, "lesion_volume") == pytest.approx(expected, rel=1e-5)
    assert value(ds, "lesion_hemisphere") == "R"
    return f"{int(mask.sum())} voxels of 1.5 x 2 x 3 mm: `lesion_volume` {expected:.2f} mL"


@case("not-probability")
def not_probability(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, ONE, GM), lambda data: data * 100)
    return lab.rejected(tree, "not-probability", ONE, says="expected probabilities in 0-1. Divide")


@case("constant-image")
def constant_image(lab: Lab) -> str:
    tree = lab.tree()
    rewrite(image_path(tree, ONE, T1W), lambda data: np.full_like(data, 5))
    rewrite(image_path(tree, OTHER, GM), np.zeros_like)
    return lab.rejected(
        tree, "constant-image", ONE, OTHER, says="everywhere in the brain. Write it again"
    )
