import json
import os
import random
import shutil
import zipfile

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalebrain.errors import ConfigError, TableError
from scalebrain.io.files import SourceFile
from scalebrain.io.guard import RULES
from scalebrain.io.sources import find_cohort, read_withdrawn

ASYM, CASYM = "MNI152NLin2009aSym", "MNI152NLin2009cAsym"
T1W, GM, LESION = "desc-preproc_T1w", "label-GM_probseg", "label-L_mask"
ATLAS_LESION = "label-L_desc-T1lesion_mask"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def image(root, subject, ending, *, space=ASYM, session="", folder="anat", name=None):
    """An empty image of fMRIPrep's naming."""
    entities = [subject, session, f"space-{space}" if space else "", ending]
    name = name or "_".join(part for part in entities if part) + ".nii.gz"
    return touch(root.joinpath(*filter(None, (subject, session, folder)), name))


def table(root, rows, *, columns="participant_id age sex cohort", name="participants.tsv"):
    """A table whose rows are texts of cells."""
    mark = "\t" if name.endswith(".tsv") else ","
    root.mkdir(parents=True, exist_ok=True)
    lines = [mark.join(row.split()) for row in (columns, *rows)]
    (root / name).write_text("\n".join(lines) + "\n")


def people(root, *subjects):
    table(root, [f"{subject} {50 + i} F here" for i, subject in enumerate(subjects)])


def archive(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as opened:
        for member in members:
            opened.writestr(member, b"x")


def freesurfer(root, name):
    for hemisphere in "lr":
        touch(root / name / "surf" / f"{hemisphere}h.thickness")
    touch(root / name / "scripts" / "recon-all.done")


def codes(problems):
    return [(problem.subject, problem.code) for problem in problems]


def subjects(cohort):
    return [scan.subject for scan in cohort.scans]


def relative(cohort, file):
    return None if file is None else str(file.path.relative_to(cohort.root))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _codes_are_rules(monkeypatch):
    """Every code is a rule of the guard."""
    import scalebrain.io.sources as module

    real = module._in_order

    def checked(problems, prefix):
        assert {problem.code for problem in problems} <= RULES.keys()
        assert all(
            problem.message.isprintable() and problem.subject.isprintable() for problem in problems
        )
        return real(problems, prefix)

    monkeypatch.setattr(module, "_in_order", checked)


# The six layouts


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
    assert codes(cohort.warnings) == [("sub-01", "no-image")]


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
    assert codes(cohort.warnings) == [("sub-02", "no-image")]
    assert "ses-2" in cohort.warnings[0].message
    with pytest.raises(TableError, match="ses-9: nobody has it"):
        find_cohort(root, session="9")


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
    path.write_text("1000001\n")
    assert read_withdrawn(str(path)) == {"sub-1000001"}


@pytest.mark.parametrize("text", ["", "eid\n", "1\n2 3\n", "1,2\n", "<b>\n", "\xff\n", "a\x1cb"])
def test_read_withdrawn__malformed(tmp_path, text):
    path = tmp_path / "w.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TableError):
        read_withdrawn(path)


def test_read_withdrawn__missing(tmp_path):
    with pytest.raises(TableError, match="cannot be read"):
        read_withdrawn(tmp_path / "nothing")
