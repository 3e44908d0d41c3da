"""Folders of empty images and tables, as every layout has them."""

import zipfile

from scalebrain.io.enigma import near_names

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
    """A table whose rows are texts of cells, with the columns that every analysis needs."""
    mark = "\t" if name.endswith(".tsv") else ","
    root.mkdir(parents=True, exist_ok=True)
    lines = [mark.join(row.split()) for row in (columns, *rows)]
    lacking = () if name.endswith("_sessions.tsv") else near_names(lines[0].split(mark))
    lacking = [variable for variable in lacking if variable != "group"]  # an empty one is refused
    lines = [
        mark.join((line, *(lacking if i == 0 else ["n/a"] * len(lacking))))
        for i, line in enumerate(lines)
    ]
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
