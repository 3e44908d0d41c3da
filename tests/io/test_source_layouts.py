import json
import logging
import os
import random
import shutil

import pytest

from scalebrain.errors import TableError
from scalebrain.io.files import SourceFile
from scalebrain.io.sources import find_cohort
from tests.io.freesurfer_phantom import write_subject
from tests.io.source_trees import (
    ASYM,
    ATLAS_LESION,
    CASYM,
    GM,
    LESION,
    T1W,
    archive,
    codes,
    freesurfer,
    image,
    people,
    relative,
    subjects,
    table,
    touch,
)

pytestmark = pytest.mark.usefixtures("codes_are_rules")


def test_find_cohort__bids_files_and_table(root):
    image(root, "sub-02", T1W)
    image(root, "sub-02", GM)
    image(root, "sub-02", LESION)
    image(root, "sub-01", T1W)
    image(root, "sub-01", "T1w", space="")
    image(root, "sub-01", "desc-brain_mask")
    image(root, "sub-01", "label-WM_probseg")
    image(root, "sub-01", "bold", folder="func")
    touch(root / "sub-01.html")
    touch(root / "sub-01" / "anat" / f"._sub-01_space-{ASYM}_desc-preproc_T1w.nii.gz")
    table(root, ["02 61.5 f B", "sub-01 50 M A"])
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x"}))
    cohort = find_cohort(str(root))
    assert (cohort.name, cohort.root) == ("study", root.resolve())
    assert not cohort.rejected
    assert not cohort.warnings
    assert not cohort.modulated
    assert cohort.description == {"Name": "x"}
    one, two = cohort.scans
    assert (one.subject, one.person, one.session, one.space) == ("sub-01", "sub-01", "", ASYM)
    assert one.gm is one.lesion is one.surfaces is None
    anat = root.resolve() / "sub-02" / "anat"
    assert two.t1w == SourceFile(anat / f"sub-02_space-{ASYM}_{T1W}.nii.gz")
    assert two.gm == SourceFile(anat / f"sub-02_space-{ASYM}_{GM}.nii.gz")
    assert two.lesion == SourceFile(anat / f"sub-02_space-{ASYM}_{LESION}.nii.gz")
    assert cohort.table.index.name == "subject"
    assert cohort.table.index.tolist() == ["sub-01", "sub-02"]
    assert cohort.table["age"].tolist() == [50, 61.5]
    assert cohort.table["person"].tolist() == ["sub-01", "sub-02"]
    assert cohort.table["group"].tolist() == ["reference", "stroke"]
    assert "subject" not in cohort.table.columns


@pytest.mark.parametrize(
    "ending",
    [
        "label-L_mask",
        "label-lesion_mask",
        "desc-lesion_mask",
        "desc-T1lesion_mask",
        "label-lesion_roi",
        ATLAS_LESION,
    ],
)
def test_find_cohort__every_name_of_a_lesion_mask(root, ending):
    path = image(root, "sub-01", ending)
    image(root, "sub-01", T1W)
    people(root, "01")
    assert find_cohort(root).scans[0].lesion == SourceFile(path.resolve())


@pytest.mark.parametrize("space", ["MNI152NLin6Asym", "MNIPediatricAsym", "MNI152"])
def test_find_cohort__every_mni_space_and_resolution(root, space):
    image(root, "sub-01", "res-2_desc-preproc_T1w", space=space)
    people(root, "01")
    (scan,) = find_cohort(root).scans
    assert scan.space == space
    assert scan.t1w is not None


def test_find_cohort__without_folder_or_suffix_gz(root):
    touch(root / "sub-01" / f"sub-01_space-{ASYM}_T1w.nii")
    table(root, ["01,50"], columns="participant_id,age", name="participants.csv")
    (scan,) = find_cohort(root).scans
    assert scan.t1w.name.endswith("_T1w.nii")


def test_find_cohort__enigma_table_is_found_by_its_column(root):
    image(root, "sub-01", T1W)
    columns = "BIDS_ID SES SITE AGE SEX LESIONED_HEMISPHERE"
    table(root, ["sub-01 ses-1 R001 60 F 1"], columns=columns, name="enigma.csv")
    table(root, ["a b"], columns="key value", name="other.tsv")
    cohort = find_cohort(root)
    assert cohort.table.loc["sub-01", ["cohort", "group", "session"]].tolist() == [
        "R001",
        "stroke",
        "ses-1",
    ]
    assert codes(cohort.warnings) == [("sub-01", "group-mismatch")]
    shutil.copy(root / "enigma.csv", root / "enigma2.csv")
    with pytest.raises(TableError, match=r"several tables.*enigma\.csv, enigma2\.csv"):
        find_cohort(root)


def test_find_cohort__controls_in_an_enigma_table_are_references(root):
    for subject in ("sub-01", "sub-02", "sub-03", "sub-04", "sub-05"):
        image(root, subject, T1W)
    image(root, "sub-03", LESION)
    columns = "BIDS_ID SITE AGE SEX DAYS_POST_STROKE LESIONED_HEMISPHERE NORMED_MOTOR"
    rows = ["1 A 60 F NA NA NA", "2 A 60 F NA NA 1", "3 A 60 F NA NA .5", "4 A 60 F 99 1 .5"]
    rows.append("5 A 60 F NA NA .2")  # impaired
    table(root, [f"sub-0{row}" for row in rows], columns=columns, name="enigma.tsv")
    cohort = find_cohort(root)
    assert cohort.table["group"].tolist() == ["reference"] * 2 + ["stroke"] * 3
    assert codes(cohort.warnings) == [
        ("sub-02", "taken-as-reference"),
        ("sub-04", "group-mismatch"),
        ("sub-05", "group-mismatch"),
    ]


def test_find_cohort__atlas_needs_no_table(root):
    for subject in ("sub-r009s001", "sub-r001s002", "sub-r001s001"):
        image(root, subject, "T1w", session="ses-1")
        if subject != "sub-r001s002":
            image(root, subject, ATLAS_LESION, session="ses-1")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-r001s001", "sub-r001s002", "sub-r009s001"]
    assert {scan.session for scan in cohort.scans} == {"ses-1"}
    assert cohort.table["cohort"].tolist() == ["R001", "R001", "R009"]
    assert cohort.table["group"].tolist() == ["stroke", "", "stroke"]
    assert cohort.table["sex"].tolist() == ["", "", ""]
    assert cohort.table["age"].isna().all()
    assert codes(cohort.warnings) == [("", "missing-covariate")]
    people(root, "r001s001", "r001s002", "r009s001")
    with_table = find_cohort(root)
    assert list(with_table.table.columns) == list(cohort.table.columns)
    assert with_table.table.dtypes.astype(str).tolist() == cohort.table.dtypes.astype(str).tolist()
    (root / "participants.tsv").unlink()
    image(root, "sub-01", T1W)
    with pytest.raises(TableError, match=r"participants\.tsv: missing"):
        find_cohort(root)


def test_find_cohort__atlas_folders_that_are_links(root, tmp_path):
    for subject, site in (("sub-r001s001", "R001"), ("sub-r002s001", "R002")):
        image(root / "Training" / site, subject, "T1w", session="ses-1")
    outside = tmp_path / "outside"
    image(outside, "sub-r003s001", "T1w", session="ses-1")
    training = root / "Training"
    (training / "R003").symlink_to(outside)
    for circle in ("R004", "R005", "R006"):
        (training / circle).symlink_to("..")
    (training / "R002" / "sub-r002s002").symlink_to(outside / "sub-r003s001")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-r001s001", "sub-r002s001"]
    assert codes(cohort.rejected) == [
        ("Training/R003", "leaves-tree"),
        ("sub-r002s002", "leaves-tree"),
    ]
    (root / "Training").rename(tmp_path / "moved")
    (root / "Training").symlink_to(tmp_path / "moved")
    with pytest.raises(TableError, match="Training: leads out of"):
        find_cohort(root)


@pytest.mark.parametrize("nested", [True, False])
def test_find_cohort__cat12(root, nested):
    for subject in ("sub-01", "sub-02"):
        folder = root / (f"{subject}/ses-1/anat/mri" if nested else "mri")
        for kind in ("mwp1", "wm", "p1", "wp2") if subject == "sub-01" else ("mwp1",):
            touch(folder / f"{kind}{subject}_ses-1_T1w.nii")
        if nested:
            image(root, subject, "T1w", space="", session="ses-1")
    people(root, "01", "02")
    cohort = find_cohort(root)
    assert cohort.modulated
    one, two = cohort.scans
    assert (one.space, one.session) == (CASYM, "ses-1")
    assert (one.t1w.name, one.gm.name) == ("wmsub-01_ses-1_T1w.nii", "mwp1sub-01_ses-1_T1w.nii")
    assert two.t1w is None
    assert codes(cohort.warnings) == [("sub-02", "no-image")]
    assert "wmsub-02_ses-1_T1w.nii" in cohort.warnings[0].message
    assert "normalized" in cohort.warnings[0].message


def test_find_cohort__cat12_pairs_images_of_one_run(root):
    touch(root / "mri" / "mwp1sub-01_run-1_T1w.nii.gz")
    touch(root / "mri" / "wmsub-01_run-2_T1w.nii.gz")
    touch(root / "mri" / "mwp1anonymous.nii")
    people(root, "01")
    cohort = find_cohort(root)
    assert cohort.scans[0].t1w is None
    assert codes(cohort.rejected) == [("'mwp1anonymous.nii'", "bad-id")]


def test_find_cohort__modulated_and_probabilities_do_not_mix(root):
    touch(root / "mri" / "mwp1sub-01_T1w.nii")
    image(root, "sub-02", GM, space=CASYM)
    people(root, "01", "02")
    with pytest.raises(TableError, match="modulated"):
        find_cohort(root)


def test_find_cohort__manifest(tmp_path):
    data = tmp_path / "data"
    files = {name: touch(data / f"{name}.nii.gz") for name in ("t", "g", "l")}
    freesurfer(data, "fs")
    archive(data / "fs.zip", "me/surf/lh.thickness", "../surf/lh.thickness", "/surf/lh.thickness")
    table(
        data,
        [
            f"02 60 M x {files['t']} n/a n/a fs.zip n/a",
            f"01 50 F x t.nii.gz ../data/g.nii.gz l.nii.gz fs {CASYM}",
            f"03 70 F x n/a n/a n/a fs {CASYM}",
        ],
        columns="participant_id age sex cohort t1w gm lesion surfaces space",
        name="mine.tsv",
    )
    cohort = find_cohort(data / "mine.tsv")
    assert codes(cohort.rejected) == [("sub-01", "mixed-templates")]
    (data / "mine.tsv").write_text(
        (data / "mine.tsv").read_text().replace("zip\tn/a", f"zip\t{CASYM}")
    )
    cohort = find_cohort(data / "mine.tsv")
    assert cohort.name == "mine"
    one, two, three = cohort.scans
    assert (one.space, two.space, three.space) == (CASYM, CASYM, "")
    assert relative(cohort, one.t1w) == "t.nii.gz"
    assert os.path.samefile(one.gm.path, files["g"])
    assert one.surfaces == SourceFile(data.resolve() / "fs")
    moved = tmp_path / "elsewhere" / "mine.tsv"
    moved.parent.mkdir()
    moved.write_text((data / "mine.tsv").read_text().replace(CASYM, "n/a"))
    cohort = find_cohort(moved, root=data)
    assert subjects(cohort) == ["sub-01", "sub-02", "sub-03"]
    assert cohort.scans[1].surfaces == SourceFile(data.resolve() / "fs.zip", "me")
    assert cohort.scans[1].space == ASYM


def test_find_cohort__manifest_with_subject_and_session(root):
    touch(root / "a.nii")
    touch(root / "b.nii")
    rows = ["01,1,50,a.nii", "sub-01,ses-2,52,b.nii"]
    table(root, rows, columns="participant_id,session,age,t1w", name="m.csv")
    assert codes(find_cohort(root / "m.csv").rejected) == [("sub-01", "several-sessions")]
    cohort = find_cohort(root / "m.csv", session="all")
    assert subjects(cohort) == ["sub-01_ses-1", "sub-01_ses-2"]
    assert cohort.table["age"].tolist() == [50, 52]


def test_find_cohort__manifest_with_the_other_name_of_masks(root):
    for name in ("a", "b", "l"):
        touch(root / f"{name}.nii")
    rows = ["01,50,a.nii,l.nii", "02,52,b.nii,"]
    table(root, rows, columns="participant_id,age,t1w,Lesion_Mask", name="m.csv")
    cohort = find_cohort(root / "m.csv")
    assert cohort.table["group"].tolist() == ["stroke", "reference"]
    assert relative(cohort, cohort.scans[0].lesion) == "l.nii"
    assert codes(cohort.warnings) == []
    rows = ["01,50,a.nii,l.nii,1", "02,52,b.nii,,0"]
    table(root, rows, columns="participant_id,age,t1w,lesion,lesion_mask", name="m.csv")
    cohort = find_cohort(root / "m.csv")
    assert relative(cohort, cohort.scans[0].lesion) == "l.nii"
    assert codes(cohort.warnings) == []  # flags are no files


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("stroke_date", "01/02/2020"),
        ("stroke_type", "ischemic/hemorrhagic"),
        ("lesion_location", "MCA/ACA"),
        ("lesion_mask", "1"),
    ],
)
def test_find_cohort__manifest_with_dates_categories_and_flags(root, column, cell):
    for name in "ab":
        touch(root / f"{name}.nii")
    rows = [f"01,50,a.nii,reference,{cell}", "02,52,b.nii,reference,"]
    table(root, rows, columns=f"participant_id,age,t1w,group,{column}", name="m.csv")
    assert codes(find_cohort(root / "m.csv").warnings) == []


@pytest.mark.parametrize(
    ("column", "file"),
    [("mask", "m/l.nii"), ("Lesion_path", "m/l"), ("roi", "m/l.nii"), ("file", "m/1_stroke.nii")],
)
def test_find_cohort__manifest_with_masks_in_a_column_of_another_name(root, column, file):
    for name in "ab":
        touch(root / f"{name}.nii")
    rows = [f"01,50,a.nii,{file}", "02,52,b.nii,"]
    table(root, rows, columns=f"participant_id,age,t1w,{column}", name="m.csv")
    cohort = find_cohort(root / "m.csv")
    column_told, person_told = cohort.warnings
    assert (column_told.subject, column_told.code) == ("", "mask-ignored")
    assert column_told.message == (
        f"m.csv: the column {column.lower()!r} names one file and is not read. The columns of "
        "files that are read are t1w, gm, lesion, surfaces: rename it to lesion if these are "
        "lesion masks."
    )
    assert (person_told.subject, person_told.code) == ("sub-01", "taken-as-reference")
    assert f"in spite of {file}." in person_told.message


@pytest.mark.parametrize(
    ("column", "cell", "told"),
    [
        ("gm_prob", "g.nii.gz", True),
        ("freesurfer", "fs/one", True),
        ("freesurfer", "fs/two", False),
        ("brain_mask", "stroke/sub-stroke1_mask_brain.nii", True),
        ("scanned", "1/2/2020", False),
        ("lesion_volume", "12.3", False),
        ("mask", "yes", False),
        ("note", "n/a", False),
    ],
)
def test_find_cohort__manifest_with_other_columns(root, column, cell, told):
    touch(root / "a.nii")
    touch(root / "fs" / "one" / "x")
    table(root, [f"01,50,a.nii,{cell}"], columns=f"participant_id,age,t1w,{column}", name="m.csv")
    cohort = find_cohort(root / "m.csv")
    assert codes(cohort.warnings) == [("", "column-ignored")] * told
    for problem in cohort.warnings:
        assert f"the column {column!r} names one file and is not read." in problem.message


def test_find_cohort__other_columns_of_a_manifest_are_logged_once(root, caplog):
    caplog.set_level(logging.INFO, logger="scalebrain")
    for name in ("a.nii", "b.nii"):
        touch(root / name)
    columns = "participant_id,age,T1w,lesion_mask,space,NIHSS,bmi"
    rows = [f"01,50,a.nii,n/a,{ASYM},5,25", f"02,50,b.nii,n/a,{ASYM},4,26"]
    table(root, rows, columns=columns, name="m.csv")
    assert len(find_cohort(root / "m.csv").scans) == 2
    (told,) = [line for line in caplog.messages if "not read" in line]
    assert told.endswith("not read: 'NIHSS', 'bmi'. Add what you need of them with save_store")


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("../out.nii", "leaves-tree"),
        ("/etc/passwd", "leaves-tree"),
        ("link.nii", "leaves-tree"),
        ("nothing.nii", "unreadable"),
        ("folder", "unreadable"),
        ("a\0b", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("native", "not-in-template-space"),
    ],
)
def test_find_cohort__manifest_rejects_a_file(tmp_path, cell, code):
    root = tmp_path / "data"
    touch(tmp_path / "out.nii")
    touch(root / "t.nii")
    (root / "folder").mkdir()
    (root / "link.nii").symlink_to(tmp_path / "out.nii")
    path, space = ("t.nii", "T1w") if cell == "native" else (cell, ASYM)
    rows = [f"01 50 {path} {space}", f"02 50 t.nii {ASYM}"]
    table(root, rows, columns="participant_id age t1w space", name="m.tsv")
    cohort = find_cohort(root / "m.tsv")
    assert codes(cohort.rejected) == [("sub-01", code)]
    assert subjects(cohort) == ["sub-02"]


@pytest.mark.parametrize("text", ["", "a\tb\n1\t2\n", "participant_id\tage\n01\t50\n", "\xff"])
def test_find_cohort__not_a_manifest(root, text):
    (root / "m.tsv").write_bytes(text.encode("latin-1"))
    with pytest.raises(TableError):
        find_cohort(root / "m.tsv")


UKB_T1 = "T1/T1_brain_to_MNI.nii.gz"


def test_find_cohort__biobank(root):
    archive(root / "1000001_20252_2_0.zip", UKB_T1, "../../etc/x", "/abs")
    archive(root / "1000001_20263_2_0.zip", "FreeSurfer/surf/lh.thickness")
    archive(root / "1000002_20263_2_0.zip", "FreeSurfer/surf/lh.thickness")
    archive(root / "1000003_20252_2_0.zip", "T1/unusable/T1.nii.gz")
    archive(root / "1000004_20252_2_0.zip", "../" + UKB_T1)
    archive(root / "1000005_20252_2_0.zip", UKB_T1)
    whole = (root / "1000005_20252_2_0.zip").read_bytes()
    (root / "1000005_20252_2_0.zip").write_bytes(whole[: len(whole) // 2])
    archive(root / "1000006_20252_2_0.zip", UKB_T1)
    archive(root / "1000006_20252_3_0.zip", UKB_T1)
    archive(root / "1000007_20252_2_0.zip", UKB_T1)
    archive(root / "1000007_20252_2_1.zip", UKB_T1)
    archive(root / "x_20252_2_0.zip", UKB_T1)
    rows = [f"{1000000 + i},{50 + i},{i % 2}" for i in range(1, 9)]
    table(root, rows, columns="eid,21003-2.0,31-0.0", name="ukb.csv")
    (root / "w12345_20250101.csv").write_text("eid\n1000009\n")
    cohort = find_cohort(root)
    assert subjects(cohort) == ["sub-1000001", "sub-1000002", "sub-1000008"]
    one, two, _ = cohort.scans
    assert one.t1w == SourceFile(root.resolve() / "1000001_20252_2_0.zip", UKB_T1)
    assert one.surfaces == SourceFile(root.resolve() / "1000001_20263_2_0.zip", "FreeSurfer")
    assert (one.session, one.space, one.gm) == ("ses-2", "MNI152NLin6Asym", None)
    assert two.t1w is None
    assert cohort.table["sex"].tolist() == ["M", "F", "F"]
    assert codes(cohort.warnings) == [("sub-1000008", "no-image")]
    assert codes(cohort.rejected) == [
        ("'x_20252_2_0.zip'", "bad-id"),
        ("sub-1000003", "no-image"),
        ("sub-1000004", "unreadable"),
        ("sub-1000005", "truncated"),
        ("sub-1000006", "several-sessions"),
        ("sub-1000007", "several-images"),
    ]
    assert "unusable" in cohort.rejected[1].message
    # ages of field 21003-2.0 are those of the first imaging visit
    second = find_cohort(root, session="3")
    (problem,) = [p for p in second.rejected if p.subject == "sub-1000006"]
    assert problem.code == "no-table-row"
    assert "no row of ses-3; the table has ses-2" in problem.message
    both = find_cohort(root, session="all")
    assert [s.session for s in both.scans if s.person == "sub-1000006"] == ["ses-2"]
    rows = ["1000006,2,56,0", "1000006,3,59.5,0"]
    table(root, rows, columns="eid,session,age,31-0.0", name="ukb.csv")
    both = find_cohort(root, session="all")
    assert both.table.loc[["sub-1000006_ses-2", "sub-1000006_ses-3"], "age"].tolist() == [56, 59.5]


def test_find_cohort__biobank_zip_is_never_trusted(root):
    """Whatever bytes lie in the directory of an archive, the answer is a problem."""
    path = root / "1_20252_2_0.zip"
    table(root, ["1 50"], columns="eid age", name="t.tsv")
    archive(path, UKB_T1, "T1/é.nii")
    whole = path.read_bytes()
    generator = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(whole) // 2, len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        cohort = find_cohort(root)
        assert len(cohort.scans) + len(cohort.rejected) == 1


def test_find_cohort__freesurfer_subjects_dir(root):
    freesurfer(root, "sub-01")
    freesurfer(root, "sub-02_ses-1")
    freesurfer(root, "fsaverage")
    (root / "sub-03").mkdir()
    people(root, "01", "02", "03")
    cohort = find_cohort(root)
    assert [relative(cohort, scan.surfaces) for scan in cohort.scans] == [
        "sub-01",
        "sub-02_ses-1",
        None,
    ]
    assert [scan.session for scan in cohort.scans] == ["", "ses-1", ""]
    assert cohort.scans[0].space == ""
    assert codes(cohort.warnings) == [("sub-03", "no-image")]


@pytest.mark.parametrize("place", ["freesurfer", "sourcedata/freesurfer"])
def test_find_cohort__freesurfer_beside_images(root, place):
    image(root, "sub-01", T1W, session="ses-1")
    image(root, "sub-03", T1W, space="")
    for name in ("sub-01", "sub-02", "sub-03"):
        freesurfer(root / place, name)
    freesurfer(root.parent / "freesurfer", "sub-01")
    people(root, "01", "02", "03")
    cohort = find_cohort(root)
    one, two, three = cohort.scans
    assert one.t1w is not None
    assert relative(cohort, one.surfaces) == f"{place}/sub-01"
    assert one.session == "ses-1"
    assert (two.t1w, relative(cohort, two.surfaces)) == (None, f"{place}/sub-02")
    assert (three.t1w, relative(cohort, three.surfaces)) == (None, f"{place}/sub-03")
    assert codes(cohort.warnings) == [("sub-03", "no-image")]


def test_find_cohort__surfaces_without_a_session_are_nobodys_of_two(root):
    for session in ("ses-1", "ses-2"):
        image(root, "sub-01", T1W, session=session)
    freesurfer(root / "freesurfer", "sub-01")
    people(root, "01")
    cohort = find_cohort(root, session="all")
    assert [scan.surfaces for scan in cohort.scans] == [None, None]
    assert ("sub-01", "no-image") in codes(cohort.warnings)


def test_find_cohort__twice_the_same_surfaces(root):
    freesurfer(root / "freesurfer", "sub-01")
    freesurfer(root / "sourcedata" / "freesurfer", "sub-01")
    people(root, "01")
    assert codes(find_cohort(root).rejected) == [("sub-01", "several-images")]


def test_find_cohort__says_what_it_looked_for(root, tmp_path):
    with pytest.raises(TableError, match="no such folder"):
        find_cohort(tmp_path / "nowhere")
    with pytest.raises(TableError, match="no such folder"):
        find_cohort("a\0b")
    people(root, "01")
    with pytest.raises(TableError, match=r"(?s)no dataset.*mwp1.*lh\.thickness.*20252"):
        find_cohort(root)
    image(root, "sub-01", T1W)
    archive(root / "1_20252_2_0.zip", UKB_T1)
    with pytest.raises(TableError, match="UK Biobank beside"):
        find_cohort(root)


def test_find_cohort__table_that_is_not_usable(root, tmp_path):
    image(root, "sub-01", T1W)
    with pytest.raises(TableError, match=r"participants\.tsv: missing"):
        find_cohort(root)
    touch(tmp_path / "participants.tsv").write_text("participant_id\tage\n01\t50\n")
    (root / "participants.tsv").symlink_to("../participants.tsv")
    with pytest.raises(TableError, match="leads out") as caught:
        find_cohort(root)
    assert caught.value.code == "leaves-tree"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_find_cohort__description_that_is_not_json(root, text):
    image(root, "sub-01", T1W)
    people(root, "01")
    (root / "dataset_description.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TableError, match="dataset_description"):
        find_cohort(root)


def test_find_cohort__the_template_of_a_longitudinal_run_is_no_scan(tmp_path):
    for name in ("sub-01_ses-1", "sub-01"):
        write_subject(tmp_path / name)
    (tmp_path / "sub-01" / "base-tps").write_text("sub-01_ses-1\nsub-01_ses-2\n")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t50\tF\n")
    cohort = find_cohort(tmp_path)
    assert codes(cohort.rejected) == [("'sub-01'", "bad-id")]
    assert "mean of several visits" in cohort.rejected[0].message
    assert [scan.surfaces.path.name for scan in cohort.scans] == ["sub-01_ses-1"]
