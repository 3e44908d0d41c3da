"""Cases of raw scans, before they are in template space."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import scalebrain
from scalebrain.errors import GeometryError
from scalebrain.preprocessing.native import read_head
from scalebrain.preprocessing.plan import make_plan
from scalebrain.preprocessing.quality import judge
from scalebrain.preprocessing.settings import Settings
from tests.guard.images import shifted_mask
from tests.guard.inputs import Lab, case, save

HEAD = "participant_id\tage\tsex\tcohort\tgroup\n"
GOOD = {
    "template_overlap": 0.9,
    "brain_scanned": 1.0,
    "jacobian_extreme": 0.0,
    "asymmetric_overlap": 0.7,
    "asymmetric_overlap_mirrored": 0.65,
    "template_to_native_volume": 0.8,
}


def raw(lab: Lab, group: str):
    """Two people with a scan each, in native space and without a mask."""
    root = lab.space() / "cohort"
    for who in ("sub-01", "sub-02"):
        scan = np.zeros((40, 50, 40), np.float32)
        scan[10:30, 10:40, 10:30] = 100
        save(root / who / "anat" / f"{who}_T1w.nii.gz", scan, np.diag([4.0, 4, 4, 1]))
    rows = f"sub-01\t60\tF\toslo\t{group}\nsub-02\t60\tM\toslo\treference\n"
    (root / "participants.tsv").write_text(HEAD + rows)
    return root


@case("mask-needed")
def mask_needed(lab: Lab) -> str:
    plan = make_plan(raw(lab, "stroke"))
    assert [scan.name for scan in plan.scans] == ["sub-02"]
    assert [(p.subject, p.code) for p in plan.rejected] == [("sub-01", "mask-needed")]
    return plan.rejected[0].message


@case("brain-not-found")
def brain_not_found(lab: Lab) -> str:
    path = lab.space() / "cohort" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    save(path, np.ones((50, 60, 10), np.float32), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(GeometryError, match="Give the scan of the whole head") as caught:
        read_head(path, None, Settings())
    assert caught.value.code == "brain-not-found"
    return str(caught.value)


@case("preprocessing-failed")
def preprocessing_failed(lab: Lab) -> str:
    root = raw(lab, "reference")
    script = root.parent / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")  # as a machine without memory does
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", os.fspath(script))
        patch.setattr("scalebrain.preprocessing.cohort.check_ants", lambda: None)
        found = scalebrain.preprocess(root, root.parent / "out", participants=["01"])
    assert found["code"].tolist() == ["preprocessing-failed"]
    return str(found["message"].item())


@case("poorly-normalized")
def poorly_normalized(lab: Lab) -> str:
    ((action, code, message),) = judge(GOOD | {"template_overlap": 0.4}, "sub-01", Settings())
    assert (action, code) == ("W", "poorly-normalized")
    return message


@case("lesion-volume-changed")
def lesion_volume_changed(lab: Lab) -> str:
    volumes = {"lesion_volume_native": 10.0, "lesion_volume_warped": 12.6}
    ((action, code, message),) = judge(GOOD | volumes, "sub-01", Settings())
    assert (action, code) == ("W", "lesion-volume-changed")
    return message


@case("mask-unused")
def mask_unused(lab: Lab) -> str:
    root = raw(lab, "reference")
    name = "sub-01_space-FLAIR_label-L_mask.nii.gz"
    save(root / "sub-01" / "anat" / name, np.ones((4, 4, 4), np.uint8), np.eye(4))
    plan = make_plan(root)
    assert [scan.name for scan in plan.scans] == ["sub-02"]
    assert [(p.subject, p.code) for p in plan.rejected] == [("sub-01", "mask-unused")]
    assert plan.rejected[0].file == f"sub-01/anat/{name}"
    return plan.rejected[0].message


@case("taken-as-reference")
def taken_as_reference(lab: Lab) -> str:
    root = raw(lab, "reference")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t60\nsub-02\t61\n")
    plan = make_plan(root)
    assert [scan.name for scan in plan.scans] == ["sub-01", "sub-02"]
    assert [(p.subject, p.code) for p in plan.warnings] == [
        ("sub-01", "taken-as-reference"),
        ("sub-02", "taken-as-reference"),
    ]
    return plan.warnings[0].message


def block(lab: Lab) -> tuple[np.ndarray, Path]:
    """A scan of a block, and the file for it."""
    scan = np.zeros((40, 50, 40), np.float32)
    scan[10:30, 10:40, 10:30] = 100
    return scan, lab.space() / "cohort" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


@case("mask-affine")
def mask_affine(lab: Lab) -> str:
    scan, path = block(lab)
    affine = np.diag([4.0, 4, 4, 1])
    save(path, scan, affine)
    mask = np.zeros(scan.shape, np.uint8)
    mask[15:20, 15:20, 15:20] = 1
    affine[0, 3] = 8
    lesion = path.with_name("sub-01_label-lesion_roi.nii.gz")
    save(lesion, mask, affine)
    ((code, message),) = read_head(path, lesion, Settings()).warnings
    assert code == "mask-affine"
    assert "up to 8 mm away" in message
    return shifted_mask(lab)


@case("negative-intensities")
def negative_intensities(lab: Lab) -> str:
    scan, path = block(lab)
    save(path, scan - 20, np.diag([4.0, 4, 4, 1]))
    head = read_head(path, None, Settings())
    assert np.array_equal(head.data, scan)
    ((code, message),) = head.warnings
    assert code == "negative-intensities"
    return message
