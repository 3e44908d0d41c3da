"""One scan from native to template space: every step, its files, and its record last.

``python -m scalebrain.preprocessing.subject JOB`` does what the JSON file JOB says, in a process
of its own: ANTs takes its number of threads when it is loaded, and a crash in it takes no
other scan along.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scalebrain.atlas.space import SPACE, template_grid
from scalebrain.errors import ScalebrainError
from scalebrain.io.atomic import json_bytes, write_atomic
from scalebrain.io.failures import explain
from scalebrain.io.preprocessed import record_path
from scalebrain.preprocessing.child import end_with_parent, failure
from scalebrain.preprocessing.fill import filled
from scalebrain.preprocessing.images import write_image
from scalebrain.preprocessing.native import Head, correct_bias, find_brain, read_head
from scalebrain.preprocessing.normalize import (
    Warp,
    field_of_view,
    jacobian,
    normalize,
    to_template,
)
from scalebrain.preprocessing.quality import judge, measure
from scalebrain.preprocessing.settings import Settings
from scalebrain.preprocessing.tissues import Tissues, segment

__all__ = ["Result", "process", "run_job"]


@dataclass
class Result:
    """A scan in template space.

    Parameters
    ----------
    head
        The scan in native space.
    warp
        Transforms; their files are gone when the folder for temporary files is.
    t1w
        (x, y, z) brain on the template's grid.
    lesion
        (x, y, z) lesioned or not; None without a mask.
    tissues
        Tissue probabilities.
    modulated
        (x, y, z) mL of the scan's grey matter for a mL of the template.
    quality
        What was measured.
    seconds
        How long each step took.
    """

    head: Head
    warp: Warp
    t1w: np.ndarray[Any, np.dtype[np.float32]]
    lesion: np.ndarray[Any, np.dtype[np.bool_]] | None
    tissues: Tissues
    modulated: np.ndarray[Any, np.dtype[np.float32]]
    quality: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Note how long a step took."""
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 2)


def process(t1w: Path, lesion: Path | None, settings: Settings, folder: str) -> Result:
    """Preprocess one scan.

    Parameters
    ----------
    t1w
        T1w image in native space.
    lesion
        Lesion mask drawn on it; None without one.
    settings
        Settings.
    folder
        For temporary files, the transforms among them.

    Returns
    -------
    Result
        Everything in template space.

    Raises
    ------
    ImageError, GeometryError
        With the code of the rule that was broken.
    """
    seconds: dict[str, float] = {}
    size = settings.resolution
    with _timed(seconds, "read"):
        head = read_head(t1w, lesion, settings)
    with _timed(seconds, "bias"):
        head = correct_bias(head)
    with _timed(seconds, "brain"):
        head = find_brain(head, settings, folder)
    with _timed(seconds, "registration"):
        guide = filled(head) if settings.fill else head
        warp = normalize(guide, settings, folder)
    with _timed(seconds, "warping"):
        inside = np.zeros(head.grid.shape, dtype=bool) if head.brain is None else head.brain
        brain = np.where(inside, head.data, np.float32(0))
        moved = np.maximum(to_template(brain, head.grid, warp, size), 0)
        rigid = np.maximum(to_template(brain, head.grid, warp, size, affine_only=True), 0)
        there = None
        if head.lesion is not None:
            there = to_template(head.lesion, head.grid, warp, size, how="genericLabel") > 0.5
        volumes = jacobian(warp, size)
        scanned = field_of_view(head, warp, size)
    with _timed(seconds, "tissues"):
        tissues = segment(moved, there, size)
    scale = abs(float(np.linalg.det(warp.affine[:3, :3])))
    quality = measure(moved, rigid, tissues.grey, volumes, scale, there, scanned, size)
    quality["brain_volume_native"] = float(inside.sum() * head.grid.voxel_volume / 1000)
    voxel = template_grid(size).voxel_volume / 1000
    modulated = tissues.grey * volumes
    quality["grey_volume_native"] = float(modulated.sum() * voxel)
    if there is not None:
        quality["lesion_volume_native"] = float(head.lesion_volume)
        quality["lesion_volume_warped"] = float(there.sum() * voxel)
        quality["lesion_volume_expected"] = float(head.lesion_volume / scale)
    return Result(head, warp, moved, there, tissues, modulated, quality, seconds)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Preprocess one scan and write its files: the lesion mask first, the record last.

    Parameters
    ----------
    job
        ``out``, ``name``, ``person``, ``session``, ``t1w``, ``lesion``, ``roots`` (folders that
        both lie in), ``sources`` (their BIDS URIs), ``fingerprint``, ``versions`` and
        ``settings``.

    Returns
    -------
    dict
        The record, or ``code`` and ``error`` of what kept the scan out.
    """
    settings = Settings.from_json(job["settings"])
    lesion = Path(job["lesion"]) if job["lesion"] else None
    try:
        with tempfile.TemporaryDirectory(prefix="scalebrain-") as folder:
            result = process(Path(job["t1w"]), lesion, settings, folder)
            told = judge(result.quality, job["name"], settings)
            wrong = next((problem for problem in told if problem[0] == "E"), None)
            if wrong:
                return {"code": wrong[1], "error": _relative(wrong[2], job)}
            odd = [*result.head.warnings, *((code, message) for _, code, message in told)]
            if result.lesion is not None and not result.quality["lesion_volume_native"]:
                message = (
                    f"{lesion}: the mask is empty: taken as no lesion. Where there is one, draw "
                    "it; else take the mask out."
                )
                odd.append(("lesion-empty", message))
            return _write(result, job, settings, [(c, _relative(m, job)) for c, m in odd])
    except ScalebrainError as error:
        message = _relative(str(error), job)
        shown = message if job["name"] in message else f"{job['name']}: {message}"
        return {"code": error.code or "preprocessing-failed", "error": shown}
    except OSError as error:
        return failure(str(explain(job["name"], error)))


def _relative(text: str, job: dict[str, Any]) -> str:
    """Text with paths as the datasets have them, not as this machine has."""
    for root in job["roots"]:
        text = text.replace(os.path.join(root, ""), "")
    return text


def _write(
    result: Result, job: dict[str, Any], settings: Settings, warnings: list[tuple[str, str]]
) -> dict[str, Any]:
    """Write everything of a scan; returns the record."""
    out, size = Path(job["out"]), settings.resolution
    record_file = record_path(out, job["person"], job["session"])
    anat = record_file.parent
    place = f"{job['name']}_space-{SPACE}" + ("_res-2" if settings.quick else "")
    grid = template_grid(size)
    common: dict[str, Any] = {"Sources": job["sources"], "SpatialReference": SPACE}
    if settings.quick:
        common["Resolution"] = "2 mm isotropic"
    files: list[Path] = []

    def image(ending: str, data: Any, dtype: str, slope: float, about: dict[str, Any]) -> None:
        path = anat / f"{place}_{ending}.nii.gz"
        write_image(path, data, grid, dtype=dtype, slope=slope)
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        write_atomic(sidecar, json_bytes({**about, **common}))
        files.extend((path, sidecar))

    if result.lesion is not None:
        about = {
            "Type": "Lesion",
            "LesionVolumeNative": result.quality["lesion_volume_native"],
            "LesionVolumeWarped": result.quality["lesion_volume_warped"],
            "Units": "mL",
        }
        image("label-L_mask", result.lesion, "u1", 1.0, about)
    top = float(np.percentile(result.t1w[result.t1w > 0], 99.9))
    image(
        "desc-preproc_T1w",
        result.t1w,
        "i2",
        max(top, 1e-6) / 16000,
        {"SkullStripped": True, "Description": "N4, brain extracted, normalized with ANTs"},
    )
    image("label-GM_probseg", result.tissues.grey, "i2", 1 / 10000, {"Type": "Probability"})
    image("label-WM_probseg", result.tissues.white, "i2", 1 / 10000, {"Type": "Probability"})
    image("label-CSF_probseg", result.tissues.liquid, "i2", 1 / 10000, {"Type": "Probability"})
    image(
        "label-GM_desc-modulated_probseg",
        result.modulated,
        "i2",
        1 / 4000,
        {"Description": "grey matter times the Jacobian determinant, affine included"},
    )
    files += _write_transforms(result.warp, anat, job["name"])
    record = {
        "fingerprint": job["fingerprint"],
        "quality": result.quality,
        "warnings": [list(warning) for warning in warnings],
        "settings": settings.to_json(),
        "versions": job["versions"],
        "affine": result.warp.affine.tolist(),
        "seconds": result.seconds,
        "sources": job["sources"],
        "files": {str(path.relative_to(out)): path.stat().st_size for path in files},
    }
    write_atomic(record_file, json_bytes(record))
    return record


def _write_transforms(warp: Warp, anat: Path, name: str) -> list[Path]:
    """Keep the transforms as ANTs reads them."""
    there = f"{name}_from-T1w_to-{SPACE}_mode-image"
    back = f"{name}_from-{SPACE}_to-T1w_mode-image"
    wanted = [
        (warp.affine_file, f"{there}_desc-affine_xfm.mat"),
        (warp.warp_file, f"{there}_desc-warp_xfm.nii.gz"),
        (warp.inverse_file, f"{back}_desc-warp_xfm.nii.gz"),
    ]
    written = []
    for source, target in wanted:
        if source:
            part = anat / f".{target}.part"
            shutil.copyfile(source, part)
            os.replace(part, anat / target)
            written.append(anat / target)
    return written


def main() -> None:
    """Do the job of a file, and write what came of it beside it."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    end_with_parent(job["parent"])
    write_atomic(path.with_suffix(".result"), json_bytes(run_job(job)))


if __name__ == "__main__":
    main()
