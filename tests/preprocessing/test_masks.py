"""Every mask that was given goes to its scan, or is told of."""

import pytest

from scalebrain.errors import TableError
from scalebrain.preprocessing.plan import make_plan
from tests.preprocessing.test_cohort import groups, mask_of, scans, write

SESSION_A = "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz"
SESSION_B = "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz"


def told(problems):
    return [(problem.subject, problem.code, problem.file) for problem in problems]


def masks_of(plan):
    return {scan.name: None if scan.lesion is None else scan.shown[1] for scan in plan.scans}


@pytest.mark.parametrize("apart", [False, True])
def test_make_plan__a_mask_without_a_session_is_that_of_the_only_one(tmp_path, apart):
    root = write(tmp_path / "raw", SESSION_A)
    masks = write(tmp_path / "masks" if apart else root, mask_of("sub-1"))
    plan = make_plan(root, lesions=masks if apart else None)
    assert masks_of(plan) == {"sub-1_ses-a": mask_of("sub-1")}
    assert plan.rejected == ()


def test_make_plan__a_mask_without_a_session_is_of_none_of_several(tmp_path):
    root = write(tmp_path / "raw", SESSION_A, SESSION_B, mask_of("sub-1"))
    write(root, "sub-1/ses-b/anat/sub-1_ses-b_label-L_mask.nii.gz")
    plan = make_plan(root)
    assert list(masks_of(plan)) == ["sub-1_ses-b"]
    assert told(plan.rejected) == [("sub-1_ses-a", "mask-unused", mask_of("sub-1"))]
    assert "Write the session into its name" in plan.rejected[0].message


def test_make_plan__a_mask_of_another_session(tmp_path):
    root = write(tmp_path / "raw", SESSION_A)
    other = "sub-1/ses-c/anat/sub-1_ses-c_label-L_mask.nii.gz"
    plan = make_plan(root, lesions=write(tmp_path / "masks", other))
    assert told(plan.rejected) == [("sub-1_ses-a", "mask-unused", other)]
    assert plan.scans == ()


@pytest.mark.parametrize(
    "name",
    [
        "sub-7_lesion.nii.gz",
        "sub-7/anat/sub-7_label-L_mask.nii.gz",
        "masks/sub-7_lesion.nii",
        "sub-7/anat/sub-7_lesion.nii.gz",
    ],
)
def test_make_plan__tells_of_a_mask_of_nobody(tmp_path, name):
    root = scans(tmp_path / "raw", "sub-1", "sub-2")
    plan = make_plan(root, lesions=write(tmp_path / "masks", name, mask_of("sub-1")))
    assert told(plan.rejected) == [("sub-7", "mask-unused", name)]
    assert masks_of(plan) == {"sub-1": mask_of("sub-1"), "sub-2": None}


@pytest.mark.parametrize("name", ["sub-1_lesion.nii.gz", "sub-1/anat/sub-1_desc-Lesion_dseg.nii"])
def test_make_plan__leaves_out_whose_mask_is_named_otherwise(tmp_path, name):
    root = scans(tmp_path / "raw", "sub-1", "sub-2")
    plan = make_plan(root, lesions=write(tmp_path / "masks", name, mask_of("sub-2")))
    assert told(plan.rejected) == [("sub-1", "mask-unused", name)]
    assert "sub-1/anat/sub-1_label-L_mask.nii.gz" in plan.rejected[0].message
    plan = make_plan(write(root, "sub-1/anat/sub-1_lesion.nii.gz"))
    assert told(plan.rejected) == [("sub-1", "mask-unused", "sub-1/anat/sub-1_lesion.nii.gz")]


@pytest.mark.parametrize("space", ["T1w", "orig", "individual", "SCANNER"])
def test_make_plan__takes_masks_in_the_space_of_the_scan(tmp_path, space):
    root = scans(tmp_path / "raw", "sub-1")
    name = f"sub-1/anat/sub-1_space-{space}_label-L_mask.nii.gz"
    assert masks_of(make_plan(write(root, name))) == {"sub-1": name}


@pytest.mark.parametrize("space", ["IXI549Space", "FLAIR", "MNI152NLin2009cAsym"])
def test_make_plan__refuses_masks_of_other_spaces(tmp_path, space):
    root = scans(tmp_path / "raw", "sub-1")
    name = f"sub-1/anat/sub-1_space-{space}_label-L_mask.nii.gz"
    plan = make_plan(write(root, name))
    assert told(plan.rejected) == [("sub-1", "mask-unused", name)]
    assert "Warp it to the T1w image" in plan.rejected[0].message
    plan = make_plan(write(root, mask_of("sub-1")))  # beside the right one it is no trouble
    assert masks_of(plan) == {"sub-1": mask_of("sub-1")}
    assert plan.rejected == ()
    with pytest.raises(TableError, match=f"space-{space}"):
        make_plan(root, lesions=write(tmp_path / "masks", name))


def test_make_plan__takes_scans_of_their_own_space_alone(tmp_path):
    root = scans(tmp_path / "raw", "sub-1")
    plan = make_plan(write(root, "sub-1/anat/sub-1_space-IXI549Space_T1w.nii.gz"))
    assert [scan.shown for scan in plan.scans] == [("sub-1/anat/sub-1_T1w.nii.gz",)]


def test_make_plan__a_mask_that_cannot_be_read_leaves_its_scan_out(tmp_path):
    root = write(scans(tmp_path / "raw", "sub-2"), SESSION_A)
    masks = write(tmp_path / "masks", mask_of("sub-2"))
    (masks / mask_of("sub-1")).parent.mkdir(parents=True)
    (masks / mask_of("sub-1")).symlink_to(write(tmp_path, "elsewhere.nii.gz") / "elsewhere.nii.gz")
    plan = make_plan(root, lesions=masks)
    assert told(plan.rejected) == [("sub-1_ses-a", "leaves-tree", mask_of("sub-1"))]
    assert masks_of(plan) == {"sub-2": mask_of("sub-2")}


def test_make_plan__a_mask_in_both_places_is_one_too_many(tmp_path):
    root = write(scans(tmp_path / "raw", "sub-1"), mask_of("sub-1"))
    masks = write(tmp_path / "masks", mask_of("sub-1"))
    assert [p.code for p in make_plan(root, lesions=masks).rejected] == ["several-images"]
    assert masks_of(make_plan(root, lesions=root)) == {"sub-1": mask_of("sub-1")}


def test_make_plan__a_row_for_everyone_taken_as_healthy_for_want_of_a_group(tmp_path):
    root = scans(tmp_path / "raw", "sub-1", "sub-2", "sub-3")
    groups(root, sub_1="reference", sub_2="n/a")
    plan = make_plan(root)
    assert [(p.subject, p.code) for p in plan.warnings] == [
        ("sub-2", "taken-as-reference"),
        ("sub-3", "taken-as-reference"),
    ]
    assert [p.subject for p in make_plan(root, participants=["1"]).warnings] == []


@pytest.mark.parametrize(
    "name",
    [
        "sub-1/anat/sub-1_desc-lesion_FLAIR.nii.gz",
        "sub-1/anat/sub-1_acq-stroke_UNIT1.nii.gz",
        "sub-1/fmap/sub-1_acq-stroke_phasediff.nii.gz",
        "sub-1/swi/sub-1_acq-stroke_SWI.nii.gz",
        "sub-1/anat/sub-1_acq-stroke_T2starmap.nii.gz",
        "sub-1/anat/sub-1_acq-lesion_inplaneT2.nii",
        "sub-1/dwi/sub-1_acq-stroke_dwi.nii.gz",
        "sub-1/dwi/sub-1_acq-stroke_sbref.nii.gz",
        "sub-1/func/sub-1_task-rest_desc-brain_mask.nii.gz",
    ],
)
def test_make_plan__other_images_with_lesion_in_their_name_are_no_masks(tmp_path, name):
    root = scans(tmp_path / "raw", "sub-1")
    plan = make_plan(write(root, name))
    assert plan.rejected == ()
    assert len(plan.scans) == 1


def test_make_plan__names_of_people_and_sessions_speak_of_no_mask(tmp_path):
    root = write(
        tmp_path / "raw",
        *(
            f"sub-lesion1/ses-stroke/anat/sub-lesion1_ses-stroke_{ending}.nii.gz"
            for ending in ("T1w", "desc-brain_mask", "MEGRE")
        ),
    )
    plan = make_plan(root)
    assert plan.rejected == ()
    assert masks_of(plan) == {"sub-lesion1_ses-stroke": None}
    name = "sub-lesion1/ses-stroke/anat/sub-lesion1_ses-stroke_desc-lesion_dseg.nii.gz"
    plan = make_plan(write(root, name))
    assert told(plan.rejected) == [("sub-lesion1_ses-stroke", "mask-unused", name)]


@pytest.mark.parametrize(
    "name",
    [
        "sub-1/dwi/sub-1_label-L_mask.nii.gz",
        "sub-1/dwi/sub-1_label-lesion_mask.nii.gz",
        "sub-1/masks/sub-1_infarct.nii",
        "sub-1/sub-1_lesion.nii.gz",
        "sub-1/anat/sub-1_desc-stroke_mask.nii.gz",
        "sub-1/anat/sub-1_label-Infarct_mask.nii.gz",
    ],
)
def test_make_plan__leaves_out_whose_mask_lies_beside_anat_or_speaks_of_a_stroke(tmp_path, name):
    root = scans(tmp_path / "raw", "sub-1", "sub-2")
    groups(root, sub_1="reference", sub_2="reference")
    plan = make_plan(write(root, name))
    assert told(plan.rejected) == [("sub-1", "mask-unused", name)]
    assert masks_of(plan) == {"sub-2": None}
