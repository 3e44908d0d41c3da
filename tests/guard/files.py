"""Cases of files: damaged, missing, or not what they seem."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import scalebrain
from scalebrain.errors import ImageError, ScalebrainError
from scalebrain.io.location import Location
from scalebrain.io.nifti import read_image
from tests.guard.inputs import (
    DIM,
    GM,
    LEFT,
    LESION,
    ONE,
    OTHER,
    RIGHT,
    SUBJECTS,
    T1W,
    Lab,
    case,
    drop_subjects,
    patch_header,
    rewrite,
)
from tests.io import freesurfer_phantom
from tests.phantom import image_path, tree_bytes


@case("truncated")
def truncated(lab: Lab) -> str:
    tree = lab.tree()
    whole = image_path(tree, ONE, T1W).read_bytes()
    piece = lab.space() / "piece.nii.gz"
    for length in sorted({*range(1, 40), *range(40, len(whole), 997), *range(-12, 0)}):
        piece.write_bytes(whole[:length])
        with pytest.raises(ImageError) as caught:
            read_image(piece)
        assert caught.value.code == "truncated", length
    image_path(tree, ONE, T1W).write_bytes(whole[:-4000])
    flipped = bytearray(image_path(tree, OTHER, T1W).read_bytes())
    flipped[len(flipped) // 2] ^= 8
    image_path(tree, OTHER, T1W).write_bytes(flipped)
    mask = image_path(tree, RIGHT, LESION)
    plain = gzip.decompress(mask.read_bytes())
    mask.unlink()
    mask.with_suffix("").write_bytes(plain[:-1])
    nib.load(image_path(tree, ONE, T1W))  # its header is good
    return lab.rejected(tree, "truncated", ONE, OTHER, RIGHT, says="Copy it again")


@case("empty-file")
def empty_file(lab: Lab) -> str:
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_bytes(b"")
    image_path(tree, LEFT, LESION).write_bytes(gzip.compress(b""))
    return lab.rejected(tree, "empty-file", ONE, LEFT, says="(Copy|Write) it again")


@case("pointer")
def pointer(lab: Lab) -> str:
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    )
    key = "MD5E-s12345--0123.nii.gz"
    image_path(tree, LEFT, LESION).write_text(f"/annex/objects/{key}\n")
    link = image_path(tree, OTHER, T1W)
    link.unlink()
    link.symlink_to(f"../../.git/annex/objects/Kz/9q/{key}/{key}")
    return lab.rejected(tree, "pointer", ONE, OTHER, LEFT, says="Fetch (its content|it)")


@case("web-page")
def web_page(lab: Lab) -> str:
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_text("<!DOCTYPE html><html>Please log in</html>")
    image_path(tree, OTHER, GM).write_text("\ufeff<!-- saved -->\n<html></html>")
    return lab.rejected(tree, "web-page", ONE, OTHER, says="Download it again")


@case("not-nifti")
def not_nifti(lab: Lab) -> str:
    tree = lab.tree()
    image_path(tree, ONE, T1W).write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 4000)
    image_path(tree, OTHER, GM).write_bytes(gzip.compress(b"notes on this scan\n" * 40))
    rewrite(image_path(tree, LEFT, LESION), lambda data: data.astype(np.complex64))
    return lab.rejected(tree, "not-nifti", ONE, OTHER, LEFT, says="(Convert it|Save one real)")


@case("unreadable")
def unreadable(lab: Lab) -> str:
    tree = lab.tree()
    gone, pipe = image_path(tree, ONE, T1W), image_path(tree, OTHER, T1W)
    for path in (gone, pipe):
        path.unlink()
    gone.symlink_to("moved_T1w.nii.gz")
    os.mkfifo(pipe)
    image_path(tree, RIGHT, LESION).unlink()
    image_path(tree, RIGHT, LESION).mkdir()
    refused = [ONE, OTHER, RIGHT]
    if os.geteuid():  # nothing is refused to root
        image_path(tree, LEFT, LESION).chmod(0)
        refused.append(LEFT)
    return lab.rejected(tree, "unreadable", *refused, says="(Copy it|Put the file|Check)")


@case("leaves-tree")
def leaves_tree(lab: Lab) -> str:
    tree = lab.tree()
    outside = tree.parent / "secret.nii.gz"
    shutil.copy(image_path(tree, ONE, T1W), outside)
    image_path(tree, ONE, T1W).unlink()
    image_path(tree, ONE, T1W).symlink_to(outside)
    shutil.rmtree(tree / OTHER)
    (tree / OTHER).symlink_to("../../001/cohort/sub-003")
    message = lab.rejected(tree, "leaves-tree", ONE, OTHER, says="leads out of.*Copy it")
    inside = lab.tree()
    kept = inside / "store" / "x.nii.gz"
    kept.parent.mkdir()
    image_path(inside, ONE, T1W).rename(kept)
    image_path(inside, ONE, T1W).symlink_to("../../store/x.nii.gz")
    lab.handled(inside)  # a link that stays inside is followed
    return message


@case("header-claims")
def header_claims(lab: Lab) -> str:
    tree = lab.tree()
    patch_header(image_path(tree, ONE, T1W), DIM, "8h", 3, 10000, 10000, 10000, 1, 1, 1, 1)
    patch_header(image_path(tree, OTHER, T1W), DIM, "8h", 3, 1200, 1200, 1200, 1, 1, 1, 1)
    return lab.rejected(
        tree, "header-claims", ONE, OTHER, says=r"claims (1000000000000 voxels|\d+ bytes).*rite it"
    )


@case("gzip-bomb")
def gzip_bomb(lab: Lab) -> str:
    tree = lab.tree()
    bomb, lie = image_path(tree, ONE, T1W), image_path(tree, OTHER, T1W)
    content = gzip.decompress(bomb.read_bytes())
    bomb.write_bytes(gzip.compress(content + bytes(2**25), mtime=0))
    patch_header(lie, DIM, "8h", 3, 1000, 1000, 500, 1, 1, 1, 1)
    packed = lie.read_bytes()
    lie.write_bytes(packed[:-4] + (352 + 2 * 500 * 10**6).to_bytes(4, "little"))
    return lab.rejected(tree, "gzip-bomb", ONE, OTHER, says="(Write|Copy) it again")


# FreeSurfer


def surfaces(lab: Lab) -> Path:
    """A cohort of FreeSurfer runs alone."""
    tree = lab.tree()
    for subject in SUBJECTS:
        shutil.rmtree(tree / subject)
    keep = SUBJECTS[:4]
    lines = (tree / "participants.tsv").read_text().splitlines(keepends=True)
    (tree / "participants.tsv").write_text("".join(lines[: len(keep) + 1]))
    for i, subject in enumerate(keep):
        freesurfer_phantom.write_subject(tree / subject, native=(300, 280), offset=i / 10)
    return tree


def check_surfaces(lab: Lab, tree: Path, code: str, subject: str, says: str) -> str:
    """Check that one run stays out, and the others are what they are without it."""
    message = lab.rejected(tree, code, subject, says=says, others=False)
    found = scalebrain.open_store(tree.parent / "c.zarr")
    drop_subjects(tree, [subject])
    expected = scalebrain.open_store(scalebrain.ingest(tree, lab.space() / "c.zarr"))
    for name in ("thickness", "curvature", "structure_volume", "freesurfer_version", "scan_hash"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert set(found["freesurfer_version"].values) == {"7.4.1"}
    return message


@case("freesurfer-unfinished")
def freesurfer_unfinished(lab: Lab) -> str:
    tree = surfaces(lab)
    (tree / ONE / "scripts" / "recon-all.done").unlink()
    return check_surfaces(lab, tree, "freesurfer-unfinished", ONE, "recon-all.done.*Run recon-all")


@case("freesurfer-mixed")
def freesurfer_mixed(lab: Lab) -> str:
    tree = surfaces(lab)
    shutil.rmtree(tree / ONE)
    freesurfer_phantom.write_subject(tree / ONE, native=(300, 280), version="6.0.1")
    return check_surfaces(
        lab, tree, "freesurfer-mixed", ONE, r"6\.0\.1, 3 of 4 have 7\.4\.1. Process all"
    )


# The machine


@case("interrupted")
def interrupted(lab: Lab) -> str:
    tree = lab.tree()
    put = Location.put
    whole = tree_bytes(scalebrain.ingest(tree, lab.space() / "whole.zarr"))
    for fatal in (2, 6, 9):
        done: list[str] = []

        def dies(self: Location, key: str, content: bytes, *, fatal=fatal, done=done) -> None:
            done.append(key)
            if len(done) == fatal:
                raise KeyboardInterrupt
            put(self, key, content)

        store = tree.parent / f"{fatal}.zarr"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Location, "put", dies)
            with pytest.raises(KeyboardInterrupt):
                scalebrain.ingest(tree, store)
        with pytest.raises(ScalebrainError):
            scalebrain.open_store(store)
        scalebrain.ingest(tree, store)
        assert tree_bytes(store) == whole
    return "killed at three writes, run again: the same bytes"
