"""A small BIDS tree of real files made from the template, without the simulator."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from scalebrain.atlas.space import SPACE, template, template_grid

LESIONED = {"sub-016": (-35, 9), "sub-017": (35, 10), "sub-018": (-35, 11), "sub-019": (0, 14)}


def image_path(root: Path, subject: str, ending: str) -> Path:
    return root / subject / "anat" / f"{subject}_space-{SPACE}_{ending}.nii.gz"


def write_tree(root: Path, *, n: int = 20, resolution: float = 4.0) -> Path:
    """20 people, the last four with a lesion: left, right, left, across the midline."""
    grid = template_grid(resolution)
    rng = np.random.default_rng(0)
    t1w, gm = template("t1", grid), template("gm", grid)
    mm = grid.coordinates(np.arange(grid.size)).reshape(*grid.shape, 3)
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "phantom", "BIDSVersion": "1.9.0", "DatasetType": "derivative"})
    )
    rows = ["participant_id\tage\tsex\tcohort\tgroup\tdays_post_stroke\ticv\tmotor_score"]
    for i in range(n):
        subject = f"sub-{i:03d}"
        stroke = subject in LESIONED
        scale = 900 + 20 * i
        noisy = t1w * scale + (t1w > 0) * rng.normal(0, 10, t1w.shape)
        save(image_path(root, subject, "desc-preproc_T1w"), noisy.astype(np.int16), grid.matrix)
        save(image_path(root, subject, "label-GM_probseg"), gm, grid.matrix)
        if stroke:
            x, radius = LESIONED[subject]
            mask = np.linalg.norm(mm - np.array([x, -15, 30]), axis=-1) < radius
            save(image_path(root, subject, "label-L_mask"), mask.astype(np.uint8), grid.matrix)
        tail = "400\t1400\t0.5" if stroke else "n/a\t1500\tn/a"
        group = "stroke" if stroke else "reference"
        rows.append(f"{subject}\t{50 + i}\t{'FM'[i % 2]}\tsite{i % 3}\t{group}\t{tail}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine).to_filename(path)


def tree_bytes(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }
