"""One registration by ANTs: with masks, the same in every run, and the files that it wrote."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scalebrain.errors import ImageError

__all__ = ["Transforms", "register"]

#: Of every random draw.
SEED = 20261127


class Transforms(NamedTuple):
    """Files that a registration wrote.

    Parameters
    ----------
    affine
        Affine from the fixed to the moving image.
    warp
        Displacements on the grid of the fixed image, applied before the affine; empty without SyN.
    inverse
        Displacements back; empty without SyN.
    """

    affine: str
    warp: str = ""
    inverse: str = ""


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Let ANTs draw the same numbers in every run; its own option is not within reach."""
    before = os.environ.get("ANTS_RANDOM_SEED")
    os.environ["ANTS_RANDOM_SEED"] = str(SEED)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANTS_RANDOM_SEED"]
        else:
            os.environ["ANTS_RANDOM_SEED"] = before


def register(
    fixed: Any,
    moving: Any,
    kind: Literal["Affine", "SyNOnly"],
    start: list[str],
    prefix: str,
    *,
    mask: Any = None,
    moving_mask: Any = None,
    **options: Any,
) -> Transforms:
    """Register two images of ANTs, with masks at every stage.

    Parameters
    ----------
    fixed, moving
        Images.
    kind
        Transform, as ``ants.registration`` names it.
    start
        Transforms to begin with.
    prefix
        Beginning of the names of the files that are written, the folder included.
    mask, moving_mask
        What counts of `fixed` and of `moving`; everything when None.
    **options
        More options of ``ants.registration``.

    Returns
    -------
    Transforms
        The files of this registration.

    Raises
    ------
    ImageError
        When ANTs finds no transform.

    Notes
    -----
    What ``ants.registration`` returns is not used: it takes every file whose name begins with
    `prefix`, those of other registrations too.

    With one thread the same images and start give the same transform in every run, bit for bit.
    Several threads add up in an order of their own. An affine is found in double precision so
    that this seldom shows; when it does, as some hundredths of a mm.
    """
    import ants

    names = ["0GenericAffine.mat"]
    if kind == "SyNOnly":
        names += ["1Warp.nii.gz", "1InverseWarp.nii.gz"]
    files = [Path(prefix + name) for name in names]
    for file in files:
        file.unlink(missing_ok=True)
    try:
        with _seeded():
            ants.registration(
                fixed,
                moving,
                kind,
                initial_transform=start,
                outprefix=prefix,
                mask=mask,
                moving_mask=moving_mask,
                mask_all_stages=True,
                singleprecision=kind != "Affine",
                **options,
            )
    except RuntimeError as error:
        raise ImageError(
            f"the registration to the template failed ({error}). Look at the scan; where it is "
            "tilted by more than 30 degrees, correct its orientation.",
            code="preprocessing-failed",
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ImageError(
            f"the registration to the template wrote no {', '.join(missing)}. Look whether "
            f"{files[0].parent} has space left, then at the scan.",
            code="preprocessing-failed",
        )
    return Transforms(*map(str, files))
