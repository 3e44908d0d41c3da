import os
import random
import shutil

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalebrain.errors import ConfigError, TableError
from scalebrain.io.files import SourceFile
from scalebrain.io.sources import find_cohort, read_withdrawn
from tests.io.source_trees import (
    ASYM,
    CASYM,
    GM,
    LESION,
    T1W,
    codes,
    freesurfer,
    image,
    people,
    subjects,
    table,
    touch,
)

pytestmark = pytest.mark.usefixtures("codes_are_rules")

# Spaces


def test_find_cohort__native_images_are_rejected(root):
    for space in ("", "T1w", "orig", "native", "Talairach"):
        subject = f"sub-{space or 'none'}"
        image(root, subject, T1W, space=space)
    image(root, "sub-masked", T1W)
    image(root, "sub-masked", LESION, space="T1w")
    image(root, "sub-ok", T1W)
    image(root, "sub-ok", T1W, space="")
    image(root, "sub-ok", GM, space="")
    people(root, "none", "T1w", "orig", "native", "Talairach", "masked", "ok")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-ok"]
    assert {problem.code for problem in cohort.rejected} == {"not-in-template-space"}
    assert len(cohort.rejected) == 6
    problem = next(p for p in cohort.rejected if p.subject == "sub-masked")
    assert problem.file == "sub-masked/anat/sub-masked_space-T1w_label-L_mask.nii.gz"
    assert problem.message.startswith(problem.file)


def test_find_cohort__of_several_spaces_the_complete_and_preferred_one(root):
    for space in (CASYM, ASYM, "MNI152NLin6Asym"):
        image(root, "sub-01", T1W, space=space)
    for space in (CASYM, ASYM):
        image(root, "sub-02", T1W, space=space)
        image(root, "sub-02", GM, space=space)
    people(root, "01", "02")
    assert [scan.space for scan in find_cohort(root).scans] == [ASYM, ASYM]
    image(root, "sub-03", T1W, space=ASYM)
    image(root, "sub-03", T1W, space=CASYM)
    image(root, "sub-03", LESION, space=CASYM)
    people(root, "01", "02", "03")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-01", "sub-02"]
    assert codes(cohort.rejected) == [("sub-03", "mixed-templates")]
    shutil.rmtree(root / "sub-02")
    image(root, "sub-02", T1W, space=CASYM)
    cohort = find_cohort(root)
    assert [scan.space for scan in cohort.scans] == [CASYM] * 3
    assert cohort.scans[2].lesion.name == f"sub-03_space-{CASYM}_{LESION}.nii.gz"


def test_find_cohort__without_the_preferred_space_the_most_frequent(root):
    for subject, spaces in {"01": "ab", "02": "b", "03": "bc", "04": "c"}.items():
        for space in spaces:
            image(root, f"sub-{subject}", T1W, space=f"MNI{space}")
    people(root, "01", "02", "03", "04")
    cohort = find_cohort(root)
    assert [scan.space for scan in cohort.scans] == ["MNIb"] * 3
    assert codes(cohort.rejected) == [("sub-04", "mixed-templates")]
    assert "MNIc" in cohort.rejected[0].message
    assert "MNIb" in cohort.rejected[0].message


def test_find_cohort__a_tie_of_spaces_is_alphabetical(root):
    image(root, "sub-01", T1W, space="MNIb")
    image(root, "sub-02", T1W, space="MNIa")
    people(root, "01", "02")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-02"]


def test_find_cohort__images_that_share_no_space(root):
    image(root, "sub-01", T1W, space=ASYM)
    image(root, "sub-01", LESION, space=CASYM)
    people(root, "01")
    (problem,) = find_cohort(root).rejected
    assert problem.code == "mixed-templates"
    assert ASYM in problem.message
    assert CASYM in problem.message


def test_find_cohort__several_images(root):
    image(root, "sub-01", "desc-brain_T1w")
    kept = image(root, "sub-01", "desc-preproc_T1w")
    for run in (1, 2):
        image(root, "sub-02", f"run-{run}_T1w")
    image(root, "sub-03", LESION)
    image(root, "sub-03", "label-lesion_roi")
    people(root, "01", "02", "03")
    cohort = find_cohort(root)
    assert [scan.t1w for scan in cohort.scans] == [SourceFile(kept.resolve())]
    assert codes(cohort.rejected) == [("sub-02", "several-images"), ("sub-03", "several-images")]
    message = cohort.rejected[0].message
    for run in (1, 2):
        assert f"sub-02/anat/sub-02_space-{ASYM}_run-{run}_T1w.nii.gz" in message


def test_find_cohort__image_of_another_person_in_a_folder(root):
    image(root, "sub-01", T1W, name=f"sub-02_space-{ASYM}_T1w.nii.gz")
    image(root, "sub-03", T1W, session="ses-1", name=f"sub-03_ses-2_space-{ASYM}_T1w.nii.gz")
    people(root, "01", "03")
    cohort = find_cohort(root)
    assert codes(cohort.rejected) == [("sub-01", "bad-id"), ("sub-03", "bad-id")]
    assert cohort.rejected[0].file == f"sub-01/anat/sub-02_space-{ASYM}_T1w.nii.gz"


def test_find_cohort__session_folder_that_is_none(root):
    image(root, "sub-01", T1W, session="ses-1")
    (root / "sub-01" / "ses-<b>").mkdir()
    people(root, "01")
    for session in (None, "1", "all"):
        cohort = find_cohort(root, session=session)
        assert codes(cohort.rejected) == [("sub-01", "bad-id")]
        assert cohort.rejected[0].file == "sub-01/ses-<b>"


def test_find_cohort__surfaces_outside_are_not_used(root, tmp_path):
    image(root, "sub-01", T1W)
    people(root, "01")
    freesurfer(tmp_path / "raw" / "freesurfer", "sub-01")
    (root / "sourcedata").symlink_to(tmp_path / "raw")
    cohort = find_cohort(root)
    assert cohort.scans[0].surfaces is None
    assert codes(cohort.warnings) == [("", "no-image")]
    shutil.rmtree(root / "sub-01")
    with pytest.raises(TableError, match="leads out"):
        find_cohort(root)


def test_find_cohort__only_a_mask(root):
    image(root, "sub-01", LESION)
    people(root, "01")
    cohort = find_cohort(root)
    assert cohort.scans[0].lesion is not None
    assert codes(cohort.warnings) == [("sub-01", "no-image")]


# Sessions


def two_sessions(root):
    for session in ("ses-1", "ses-2"):
        image(root, "sub-01", T1W, session=session)
    image(root, "sub-02", T1W, session="ses-2")
    image(root, "sub-03", T1W, session="ses-1")
    touch(root / "sub-03" / "ses-2" / "func" / "sub-03_ses-2_bold.nii.gz")


def test_find_cohort__several_sessions_are_rejected(root):
    two_sessions(root)
    people(root, "01", "02", "03")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-02", "sub-03"]
    assert [scan.session for scan in cohort.scans] == ["ses-2", "ses-1"]
    assert codes(cohort.rejected) == [("sub-01", "several-sessions")]
    assert "ses-1, ses-2" in cohort.rejected[0].message
    assert "--session" in cohort.rejected[0].message


@pytest.mark.parametrize("session", ["ses-1", "1"])
def test_find_cohort__one_session_is_selected(root, session):
    two_sessions(root)
    people(root, "01", "02", "03")
    cohort = find_cohort(root, session=session)
    assert subjects(cohort) == ["sub-01", "sub-02", "sub-03"]
    assert [scan.t1w is None for scan in cohort.scans] == [False, True, False]
    assert codes(cohort.warnings) == [("sub-01", "visit-values"), ("sub-02", "no-image")]
    assert "ses-2" in cohort.warnings[1].message
    with pytest.raises(TableError, match="ses-9: nobody has it"):
        find_cohort(root, session="9")


def test_find_cohort__a_scan_that_names_no_session_is_told_of(root):
    image(root, "sub-01", T1W)
    image(root, "sub-02", T1W, session="ses-1")
    people(root, "01", "02")
    (found,) = find_cohort(root, session="1").warnings
    assert "no image of ses-1; there is one without a session: kept" in found.message


@pytest.mark.parametrize("session", [None, "1", "all"])
def test_find_cohort__a_mask_without_a_session_is_that_of_the_only_one(root, session):
    image(root, "sub-01", T1W, session="ses-1")
    image(root, "sub-01", LESION)
    people(root, "01")
    cohort = find_cohort(root, session=session)
    assert subjects(cohort) == ["sub-01"]
    assert cohort.scans[0].t1w is not None
    assert cohort.scans[0].lesion is not None
    assert not cohort.warnings
    assert not cohort.rejected
    image(root, "sub-01", LESION, session="ses-1")  # it has one of its own
    if session is None:
        assert codes(find_cohort(root).rejected) == [("sub-01", "several-sessions")]


def test_find_cohort__a_mask_without_a_session_is_nobodys_of_two(root):
    for name in ("ses-1", "ses-2"):
        image(root, "sub-01", T1W, session=name)
    image(root, "sub-01", LESION)
    people(root, "01")
    cohort = find_cohort(root, session="2")
    assert cohort.table["group"].tolist() == ["stroke"]
    (found,) = (p for p in cohort.warnings if p.code == "group-mismatch")
    assert "taken as stroke by a lesion mask without a session" in found.message


def test_find_cohort__all_sessions(root):
    two_sessions(root)
    columns = "participant_id session age sex cohort"
    rows = ["01 ses-1 50 F a", "01 ses-2 52 F a", "02 ses-2 60 M a", "03 2 71 M b", "03 1 70 M b"]
    table(root, rows, columns=columns)
    cohort = find_cohort(root, session="all")
    assert subjects(cohort) == [
        "sub-01_ses-1",
        "sub-01_ses-2",
        "sub-02",
        "sub-03_ses-1",
        "sub-03_ses-2",
    ]
    assert cohort.table["age"].tolist() == [50, 52, 60, 70, 71]
    assert cohort.table["person"].tolist() == ["sub-01", "sub-01", "sub-02", "sub-03", "sub-03"]
    assert [scan.t1w is None for scan in cohort.scans] == [False] * 4 + [True]
    assert codes(cohort.warnings) == [("sub-03_ses-2", "no-image")]
    assert not cohort.rejected


def test_find_cohort__a_table_with_sessions_is_joined_exactly(root):
    two_sessions(root)
    columns = "participant_id session age sex cohort"
    table(
        root, ["01 ses-2 52 F a", "02 ses-1 60 M a", "03 1 70 M b", "03 2 71 M b"], columns=columns
    )
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-03"]
    assert cohort.table.loc["sub-03", ["age", "session"]].tolist() == [70, "ses-1"]
    assert codes(cohort.rejected) == [("sub-01", "several-sessions"), ("sub-02", "no-table-row")]
    assert codes(cohort.warnings) == [("sub-03", "no-image")]
    cohort = find_cohort(root, session="ses-1")
    assert codes(cohort.rejected) == [("sub-01", "no-table-row")]
    assert subjects(cohort) == ["sub-02", "sub-03"]
    cohort = find_cohort(root, session="ses-2")
    assert cohort.table.loc["sub-03", ["age", "session"]].tolist() == [71, "ses-2"]
    assert cohort.scans[-1].t1w is None


def test_find_cohort__several_rows_and_no_image(root):
    image(root, "sub-02", T1W)
    columns = "participant_id session age"
    table(root, ["01 1 50", "01 2 51", "02 1 60"], columns=columns)
    cohort = find_cohort(root)
    assert codes(cohort.rejected) == [("sub-01", "several-sessions")]
    assert [(scan.subject, scan.session) for scan in cohort.scans] == [("sub-02", "ses-1")]


@pytest.mark.parametrize("session", ["", "ses-", "ses-<b>", "../x", "ses-" + "a" * 65])
def test_find_cohort__session_that_is_none(root, session):
    with pytest.raises(ConfigError, match="session"):
        find_cohort(root, session=session)


# Joins, prefix, groups


def test_find_cohort__nothing_is_lost(root):
    for subject in ("sub-01", "sub-02", "sub-03", "sub-04"):
        image(root, subject, T1W)
    (root / "sub-05").mkdir()
    table(root, ["01 50 F a", "02 600 F a", "04 50 F a", "sub-04 51 F a", "06 50 F a", "05 1 F a"])
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-01", "sub-05", "sub-06"]
    assert sorted(set(codes(cohort.rejected))) == [
        ("sub-02", "age-unit"),
        ("sub-03", "no-table-row"),
        ("sub-04", "duplicate-id"),
    ]
    assert codes(cohort.warnings) == [("sub-05", "no-image"), ("sub-06", "no-image")]
    assert cohort.scans[2].t1w is None


def test_find_cohort__prefix(root):
    two_sessions(root)
    (root / "sub-<b>").mkdir()
    people(root, "01", "02")
    cohort = find_cohort(root, prefix="abc", session="all")
    assert subjects(cohort) == ["sub-abc01_ses-1", "sub-abc01_ses-2", "sub-abc02"]
    assert cohort.table.index.tolist() == subjects(cohort)
    assert [scan.person for scan in cohort.scans] == ["sub-abc01", "sub-abc01", "sub-abc02"]
    assert cohort.table["person"].tolist() == [scan.person for scan in cohort.scans]
    assert codes(cohort.rejected) == [("'sub-<b>'", "bad-id"), ("sub-abc03", "no-table-row")]
    for bad in ("a-b", "é", " ", "a" * 33):
        with pytest.raises(ConfigError, match="prefix"):
            find_cohort(root, prefix=bad)
    with pytest.raises(ConfigError, match="manifest"):
        find_cohort(root, root=root)


def test_find_cohort__groups_and_masks_that_contradict(root):
    for subject in ("sub-01", "sub-02", "sub-03"):
        image(root, subject, T1W)
    image(root, "sub-01", LESION)
    image(root, "sub-03", LESION)
    table(
        root,
        ["01 50 reference", "02 50 stroke", "03 50 stroke", "04 50 stroke"],
        columns="participant_id age group",
    )
    cohort = find_cohort(root)
    assert cohort.table["group"].tolist() == ["reference", "stroke", "stroke", "stroke"]
    assert codes(cohort.warnings) == [
        ("sub-01", "group-mismatch"),
        ("sub-02", "group-mismatch"),
        ("sub-04", "no-image"),
    ]


@pytest.mark.parametrize("cells", ["500 n/a n/a", "0 n/a n/a", "n/a R n/a", "n/a n/a L"])
def test_find_cohort__signs_of_a_stroke_without_group_and_mask_are_no_reference(root, cells):
    for subject in ("sub-01", "sub-02", "sub-03"):
        image(root, subject, T1W)
    image(root, "sub-03", LESION)
    columns = "participant_id age days_post_stroke lesion_side paresis_side motor_score"
    table(root, [f"01 50 {cells} .3", "02 50 n/a none n/a 1", f"03 50 {cells} .3"], columns=columns)
    cohort = find_cohort(root)
    assert cohort.table["group"].tolist() == ["stroke", "reference", "stroke"]
    assert codes(cohort.warnings) == [
        ("sub-01", "group-mismatch"),
        ("sub-02", "taken-as-reference"),
    ]
    said = next(c for c, v in zip(columns.split()[2:], cells.split(), strict=False) if v != "n/a")
    assert f"taken as stroke by {said}. Add the mask" in cohort.warnings[0].message


@pytest.mark.parametrize("session", ["2", "all"])
def test_find_cohort__mask_of_another_session_is_no_reference(root, session):
    two_sessions(root)
    image(root, "sub-01", LESION, session="ses-1")
    people(root, "01", "02", "03")
    cohort = find_cohort(root, session=session)
    assert (cohort.table["group"] == "stroke").tolist() == [
        scan.person == "sub-01" for scan in cohort.scans
    ]
    (found,) = (p for p in cohort.warnings if p.code == "group-mismatch")
    assert found.subject == ("sub-01" if session == "2" else "sub-01_ses-2")
    assert "a lesion mask of another session" in found.message


@pytest.mark.parametrize(
    "ending",
    [
        "lesion",
        "label-Lesion_mask",
        "label-l_mask",
        "desc-Stroke_mask",
        "label-L_probseg",
        "desc-lesion_dseg",
        "ROI",
        "label-infarct_roi",
    ],
)
@pytest.mark.parametrize("space", [ASYM, ""])
def test_find_cohort__a_mask_of_an_unknown_name_is_told(root, ending, space):
    image(root, "sub-01", T1W)
    image(root, "sub-02", T1W)
    people(root, "01", "02")
    file = str(image(root, "sub-01", ending, space=space).relative_to(root))
    cohort = find_cohort(root)
    assert codes(cohort.warnings) == [("sub-01", "mask-ignored"), ("sub-01", "taken-as-reference")]
    assert cohort.warnings[0].file == file
    assert "ends in label-L_mask, " in cohort.warnings[0].message
    assert f"healthy reference, in spite of {file}" in cohort.warnings[1].message
    table(root, ["01 50 stroke", "02 50 reference"], columns="participant_id age group")
    assert codes(find_cohort(root).warnings) == [
        ("sub-01", "group-mismatch"),
        ("sub-01", "mask-ignored"),
    ]


@pytest.mark.parametrize(
    "ending",
    [
        "label-WM_probseg",
        "label-CSF_mask",
        "label-GM_desc-modulated_probseg",
        "desc-brain_mask",
        "desc-aparcaseg_dseg",
        "atlas-AAL_label-M1_dseg",
        "atlas-AAL_label-M1_probseg",
        "desc-lesionfilled_T2w",
        "label-lesion_bold",
        "mask",
    ],
)
def test_find_cohort__files_that_are_no_masks_are_not_told_of(root, ending):
    for who in ("sub-oslstroke01", "sub-ROI2"):
        image(root, who, T1W)
        image(root, who, ending)
        image(root, who, "label-infarct_mask", space="T1w")
    people(root, "oslstroke01", "ROI2")
    assert find_cohort(root).warnings == ()


def test_find_cohort__a_mask_of_an_unknown_name_is_told_of_its_session(root):
    for session in ("ses-1", "ses-2"):
        image(root, "sub-01", T1W, session=session)
    image(root, "sub-01", LESION, session="ses-1")
    image(root, "sub-01", "label-infarct_mask", session="ses-2")
    people(root, "01")
    for session, warned in (("1", []), ("2", ["group-mismatch", "mask-ignored"])):
        found = find_cohort(root, session=session)
        assert [p.code for p in found.warnings if p.code != "visit-values"] == warned
    assert (
        len([p for p in find_cohort(root, session="all").warnings if p.code == "mask-ignored"]) == 1
    )


# Links, names, order


def test_find_cohort__links(root, tmp_path):
    outside = image(tmp_path / "other", "sub-01", T1W)
    image(tmp_path / "other", "sub-02", T1W)
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (anat / outside.name).symlink_to(outside)
    (root / "sub-02").symlink_to(tmp_path / "other" / "sub-02")
    (root / "sub-03").mkdir()
    (root / "sub-03" / "anat").symlink_to(tmp_path / "other" / "sub-02" / "anat")
    (root / "sub-04").mkdir()
    (root / "sub-04" / "ses-1").symlink_to("../../other")
    freesurfer(root, "sub-05")
    (root / "sub-05" / "surf" / "rh.thickness").unlink()
    (root / "sub-05" / "surf" / "rh.thickness").symlink_to(outside)
    annex = root / ".git" / "annex" / "objects" / "xx"
    touch(annex / "here.nii.gz")
    for subject, key in (("sub-06", "here"), ("sub-07", "gone")):
        path = image(root, subject, T1W)
        path.unlink()
        path.symlink_to(f"../../.git/annex/objects/xx/{key}.nii.gz")
    path = image(root, "sub-08", T1W)
    path.unlink()
    path.symlink_to("nothing.nii.gz")
    (root / "sub-09").symlink_to("sub-09")
    image(root, "sub-10", T1W)
    (root / "sub-10" / "loop").symlink_to(".")
    (root / "sub-10" / "anat" / "loop").symlink_to("..")
    os.mkfifo(root / "sub-11")
    (root / "sub-12" / "anat").mkdir(parents=True)
    os.mkfifo(root / "sub-12" / "anat" / f"sub-12_space-{ASYM}_T1w.nii.gz")
    people(root, *(f"{i:02d}" for i in range(1, 13)))
    cohort = find_cohort(root)
    assert codes(cohort.rejected) == [
        *((f"sub-{i:02d}", "leaves-tree") for i in range(1, 6)),
        ("sub-07", "pointer"),
        ("sub-08", "unreadable"),
        ("sub-09", "unreadable"),
        ("sub-12", "unreadable"),
    ]
    assert subjects(cohort) == ["sub-06", "sub-10", "sub-11"]
    by_subject = {problem.subject: problem for problem in cohort.rejected}
    assert "datalad get" in by_subject["sub-07"].message
    assert by_subject["sub-01"].file == f"sub-01/anat/{outside.name}"
    assert str(tmp_path / "other") not in "".join(p.message for p in cohort.rejected)


def test_find_cohort__a_folder_that_cannot_be_listed(root, monkeypatch):
    image(root, "sub-01", T1W)
    image(root, "sub-02", T1W)
    people(root, "01", "02")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("sub-01/anat"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    cohort = find_cohort(root)
    assert codes(cohort.rejected) == [("sub-01", "unreadable")]
    assert subjects(cohort) == ["sub-02"]


def test_find_cohort__root_behind_a_link(root, tmp_path):
    image(root, "sub-01", T1W)
    people(root, "01")
    (tmp_path / "alias").symlink_to(root)
    cohort = find_cohort(tmp_path / "alias")
    assert cohort.name == "alias"
    assert cohort.root == root.resolve()
    assert len(cohort.scans) == 1


def test_find_cohort__does_not_depend_on_the_order_of_the_folder(root, monkeypatch):
    two_sessions(root)
    image(root, "sub-04", T1W, space=CASYM)
    image(root, "sub-03", "T1w", session="ses-1")
    (root / "sub-!").mkdir()
    table(root, ["04 50 F a", "02 50 F b", "01 50 F a"])
    expected = find_cohort(root, session="all")
    real = os.scandir

    class Shuffled:
        def __init__(self, path):
            with real(path) as found:
                self.found = list(found)
            random.shuffle(self.found)

        def __enter__(self):
            return iter(self.found)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    for _ in range(5):
        found = find_cohort(root, session="all")
        assert found.scans == expected.scans
        assert found.rejected == expected.rejected
        assert found.warnings == expected.warnings
        pd.testing.assert_frame_equal(found.table, expected.table)


LABELS = st.binary(min_size=1, max_size=120).filter(lambda b: not set(b) & {0, ord("/")})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(LABELS | st.text("aB1_-<>\n\té", min_size=1, max_size=90).map(os.fsencode)))
def test_find_cohort__hostile_folder_names(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("hostile")
    image(root, "sub-ok", T1W)
    people(root, "ok")
    made = set()
    for name in names:
        os.mkdir(os.fsencode(root) + b"/sub-" + name) if name != b"ok" else None
        made.add(os.fsdecode(name))
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-ok"]
    assert len(cohort.rejected) == len(made - {"ok"})
    for problem in cohort.rejected:
        assert problem.code in ("bad-id", "no-table-row")
        assert problem.subject.isprintable()
        assert len(problem.subject) < 100
        (problem.subject + problem.message).encode()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    folders=st.sets(st.integers(0, 7)),
    rows=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["50", "n/a", "x", "5e9"]))),
    images=st.sets(st.tuples(st.integers(0, 7), st.sampled_from([T1W, GM, LESION, "T1w"]))),
    spaces=st.lists(st.sampled_from([ASYM, CASYM, "", "T1w"]), min_size=8, max_size=8),
)
def test_find_cohort__every_person_is_kept_or_rejected(
    tmp_path_factory, folders, rows, images, spaces
):
    root = tmp_path_factory.mktemp("all")
    (root / "sub-0").mkdir()
    for i in folders:
        (root / f"sub-{i}").mkdir(exist_ok=True)
    for i, ending in images:
        image(root, f"sub-{i}", ending, space=spaces[i])
    rows = [*rows, (9, "50")]
    table(root, [f"{i} {age}" for i, age in rows], columns="participant_id age")
    cohort = find_cohort(root)
    seen = {f"sub-{i}" for i in {0} | folders | {i for i, _ in images} | {i for i, _ in rows}}
    kept, out = subjects(cohort), {problem.subject for problem in cohort.rejected}
    assert len(kept) == len(set(kept))
    assert not set(kept) & out
    assert set(kept) | out == seen
    assert cohort.table.index.tolist() == kept
    missing = {s.subject for s in cohort.scans if s.t1w is s.gm is s.lesion is None}
    assert missing <= {p.subject for p in cohort.warnings if p.code == "no-image"}


# Withdrawals


def test_read_withdrawn__ids(tmp_path):
    path = tmp_path / "w1_2.csv"
    path.write_bytes(b'\xef\xbb\xbfeid\r\n1000001\r\n\r\n"1000002"\r\nsub-abc\r\n')
    assert read_withdrawn(path) == {"sub-1000001", "sub-1000002", "sub-abc"}
    for first in ("", "subject\n", "participant_id\n", '"x"\n', "ID\n", "BIDS_ID\n"):
        path.write_text(f"{first}1000001\n")
        assert read_withdrawn(str(path)) == {"sub-1000001"}


@pytest.mark.parametrize(
    "text",
    ["", "eid\n", "1\n2 3\n", "1,2\n", "<b>\n", "\xff\n", "a\x1cb", "eid\nNA\n1\n", "1\nn/a\n"],
)
def test_read_withdrawn__malformed(tmp_path, text):
    path = tmp_path / "w.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TableError):
        read_withdrawn(path)


def test_read_withdrawn__missing(tmp_path):
    with pytest.raises(TableError, match="cannot be read"):
        read_withdrawn(tmp_path / "nothing")
