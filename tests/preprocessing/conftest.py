"""Raw datasets of synthetic heads, one of them preprocessed once."""

import json
from pathlib import Path

import numpy as np
import pytest

import scalebrain
from tests.conftest import need
from tests.preprocessing.heads import make_head, save_turned

ROWS = {
    "sub-01": "61\tF\toslo\treference\tn/a\t1450",
    "sub-02": "70\tM\toslo\tstroke\t400\t1500",
    "sub-03": "55\tF\toslo\tstroke\t500\t1400",
    "sub-04": "58\tM\toslo\treference\tn/a\t1400",
}


def write_table(root: Path, people=tuple(ROWS)) -> None:
    root.mkdir(parents=True, exist_ok=True)
    head = "participant_id\tage\tsex\tcohort\tgroup\tdays_post_stroke\ticv\n"
    text = head + "".join(f"{one}\t{ROWS[one]}\n" for one in people)
    (root / "participants.tsv").write_text(text)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "heads", "BIDSVersion": "1.9.0", "Simulated": True})
    )


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Four people: a reference whose scan is mirrored, a stroke, one without a mask, a bad file."""
    root = tmp_path_factory.mktemp("raw") / "heads"
    write_table(root)
    anat = {one: root / one / "anat" for one in ROWS}
    scan, _, grid, _ = make_head(mirrored=True)
    save_turned(anat["sub-01"] / "sub-01_T1w.nii.gz", scan.astype(np.int16), grid)
    scan, mask, grid, _ = make_head(lesion=True, seed=1)
    save_turned(anat["sub-02"] / "sub-02_T1w.nii.gz", scan.astype(np.int16), grid)
    lesion = anat["sub-02"] / "sub-02_label-lesion_roi.nii.gz"
    save_turned(lesion, mask.astype(np.uint8), grid)
    save_turned(anat["sub-03"] / "sub-03_T1w.nii.gz", scan.astype(np.int16), grid)
    anat["sub-04"].mkdir(parents=True)
    whole = (anat["sub-01"] / "sub-01_T1w.nii.gz").read_bytes()
    (anat["sub-04"] / "sub-04_T1w.nii.gz").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="session")
def done(raw, tmp_path_factory):
    """Folder of the derivatives, and the table of problems."""
    need("ants")
    out = tmp_path_factory.mktemp("derivatives") / "out"
    return out, scalebrain.preprocess(raw, out, quick=True)
