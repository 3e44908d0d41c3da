import gzip
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalebrain.errors import ImageError, ScalebrainError
from scalebrain.io.files import SourceFile
from scalebrain.io.freesurfer import (
    MEASURES,
    N_VERTICES,
    Surfaces,
    read_files,
    read_surfaces,
    read_version,
)
from scalebrain.io.guard import RULES
from tests.io import freesurfer_phantom as phantom

N_SIDE = N_VERTICES // 2
HALVES = {"lh": slice(0, N_SIDE), "rh": slice(N_SIDE, None)}


def write_sphere(
    folder: Path, side: str, points: np.ndarray, triangles: np.ndarray | None = None
) -> None:
    triangles = np.array([[0, 1, 2]]) if triangles is None else triangles
    path = folder / "surf" / f"{side}.sphere.reg"
    nib.freesurfer.write_geometry(path, points, triangles, "created by test")


def mgh_values(path: Path) -> np.ndarray:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".mgz" else content
    return nib.MGHImage.from_bytes(content).get_fdata().ravel()


def same(one: Surfaces, other: Surfaces) -> bool:
    return (one.icv, one.volumes, one.version) == (other.icv, other.volumes, other.version) and all(
        np.array_equal(one.values[m], other.values[m], equal_nan=True) for m in MEASURES
    )


def refused(folder: Path | SourceFile, code: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_surfaces(folder)
    assert caught.value.code == code
    assert code in RULES


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More vertices than fsaverage5 has; never changed by a test."""
    return phantom.write_subject(tmp_path_factory.mktemp("native") / "sub", native=(24000, 23000))


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    return phantom.write_subject(tmp_path / "sub-01")


def test_read_surfaces__fsaverage5_files_as_nibabel_reads_them(subject: Path) -> None:
    surfaces = read_surfaces(subject)
    assert tuple(surfaces.values) == MEASURES
    names = {"thickness": "thickness", "curvature": "curv", "sulcal_depth": "sulc"}
    for side, half in HALVES.items():
        for measure, name in names.items():
            expected = nib.freesurfer.read_morph_data(subject / "surf" / f"{side}.{name}")
            np.testing.assert_array_equal(surfaces.values[measure][half], expected)
        contrast = mgh_values(subject / "surf" / f"{side}.w-g.pct.mgh")
        np.testing.assert_array_equal(surfaces.values["wg_contrast"][half], contrast)
    for values in surfaces.values.values():
        assert values.dtype == np.float32
        assert values.shape == (N_VERTICES,)
    assert surfaces.icv == 1500.0
    assert surfaces.volumes == phantom.VOLUMES
    assert surfaces.version == "7.4.1"


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_read_surfaces__mgh_of_every_type_as_nibabel_reads_it(
    subject: Path, dtype: str, ending: str
) -> None:
    values = np.random.default_rng(0).integers(0, 200, (N_SIDE, 1, 1)).astype(f">{dtype}")
    path = subject / "surf" / f"lh.w-g.pct.mgh.fsaverage5.{ending}"
    nib.MGHImage(values, np.eye(4)).to_filename(path)
    found = read_surfaces(subject).values["wg_contrast"][:N_SIDE]
    np.testing.assert_array_equal(found, mgh_values(path))


def test_read_surfaces__zip_equals_folder(native: Path, subject: Path, tmp_path: Path) -> None:
    for i, folder in enumerate((native, subject)):
        for member in ("FreeSurfer", ""):
            archive = phantom.zip_subject(folder, tmp_path / f"{i}{member}.zip", member)
            before = set(tmp_path.rglob("*"))
            assert same(read_surfaces(SourceFile(archive, member)), read_surfaces(folder))
            assert set(tmp_path.rglob("*")) == before
    assert same(read_surfaces(SourceFile(subject)), read_surfaces(subject))


def test_read_surfaces__smooth_native_measures_come_close_to_the_truth(native: Path) -> None:
    surfaces = read_surfaces(native)
    for side, half in HALVES.items():
        truth = phantom.truth(phantom.fsaverage5(side)[0], side)
        for measure in MEASURES:
            error = np.abs(surfaces.values[measure][half] - truth[measure])
            spread = np.ptp(truth[measure])
            assert error.max() < 0.04 * spread
            assert error.mean() < 0.006 * spread


def brute_force(points: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Forward and reverse nearest neighbors, vertex by vertex."""
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    targets = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    taken: list[list[int]] = [[int(np.argmin(((points - t) ** 2).sum(axis=1)))] for t in targets]
    chosen = {taken_by[0] for taken_by in taken}
    for s in range(len(points)):
        if s not in chosen:
            taken[int(np.argmin(((targets - points[s]) ** 2).sum(axis=1)))].append(s)
    out = np.full(len(targets), np.nan)
    for t, sources in enumerate(taken):
        known = [values[s] for s in sources if not np.isnan(values[s])]
        if known:
            out[t] = np.mean(known)
    return out


def test_read_surfaces__resampling_equals_brute_force(subject: Path) -> None:
    rng = np.random.default_rng(1)
    for side, n in (("lh", 900), ("rh", 1100)):
        # two thirds crowd into a cap, where most are chosen by no target; radii differ a little
        points = rng.normal(size=(n, 3))
        points[n // 3 :] = points[n // 3 :] * 0.03 + [0, 0.6, 0.8]
        points *= rng.uniform(99, 101, (n, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
        points = points.astype(np.float32).astype(float)
        values = {m: rng.normal(2, 0.3, n).astype(np.float32) for m in MEASURES}
        values["thickness"][rng.random(n) < 0.1] = np.nan
        phantom.write_values(subject / "surf", side, values)
        write_sphere(subject, side, points)
        found = read_surfaces_of_side(subject, side)
        for measure in ("thickness", "wg_contrast"):
            expected = brute_force(points, values[measure], phantom.fsaverage5(side)[0])
            np.testing.assert_allclose(found[measure], expected, rtol=1e-6)
        assert np.isnan(found["thickness"]).any()
        assert not np.isnan(found["wg_contrast"]).any()


def read_surfaces_of_side(folder: Path, side: str) -> dict[str, np.ndarray]:
    return {m: v[HALVES[side]] for m, v in read_surfaces(folder).values.items()}


def test_read_surfaces__constant_stays_constant(native: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    constant = {"lh": 2.3, "rh": 2.7}
    for side, n in (("lh", 24000), ("rh", 23000)):
        values = {m: np.full(n, constant[side] + k, "f4") for k, m in enumerate(MEASURES)}
        phantom.write_values(folder / "surf", side, values)
    surfaces = read_surfaces(folder)
    for side, half in HALVES.items():
        for k, measure in enumerate(MEASURES):
            assert (surfaces.values[measure][half] == np.float32(constant[side] + k)).all()


@pytest.mark.parametrize("shuffled", [False, True])
def test_read_surfaces__identity_on_the_fsaverage5_sphere(subject: Path, shuffled: bool) -> None:
    expected = read_surfaces(subject)
    for i, side in enumerate(HALVES):
        points, triangles = phantom.fsaverage5(side)
        order = np.arange(N_SIDE)
        if shuffled:
            order = np.random.default_rng(i).permutation(order)
        truth = phantom.truth(points, side)
        phantom.write_values(subject / "surf", side, {m: v[order] for m, v in truth.items()})
        write_sphere(subject, side, points[order], triangles)
    assert same(read_surfaces(subject), expected)


def test_fsaverage5_sphere__is_the_nested_icosphere_of_radius_100() -> None:
    points, triangles = phantom.fsaverage5("lh")
    np.testing.assert_array_equal(points, phantom.fsaverage5("rh")[0])
    assert np.abs(np.linalg.norm(points, axis=1) - 100).max() < 0.01
    cosine = np.round(points[:12] @ points[:12].T / 1e4, 3)
    assert set(np.unique(cosine)) == {-1.0, -0.447, 0.447, 1.0}
    assert triangles.shape == (20 * 4**5, 3)
    # in 10 n^2 + 2 vertices, those of each level halve the edges of the level before it
    for n in (12, 42, 162, 642, 2562):
        distance = ((points[n : n + 20, None] - points[None, :n]) ** 2).sum(axis=2)
        parents = np.argsort(distance, axis=1)[:, :2]
        middle = points[parents].sum(axis=1)
        middle *= 100 / np.linalg.norm(middle, axis=1, keepdims=True)
        np.testing.assert_allclose(points[n : n + 20], middle, atol=0.02)


@pytest.mark.parametrize("name", ["w-g.pct.mgh.fsaverage5.mgh", "w-g.pct.fsaverage5.mgh"])
def test_read_surfaces__prefers_resampled_files(native: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    rng = np.random.default_rng(2)
    expected = read_surfaces(folder).values
    for side, half in HALVES.items():
        for measure, file in (("wg_contrast", name), ("thickness", "thickness.fsaverage5.mgh")):
            values = rng.uniform(1, 4, N_SIDE).astype(np.float32)
            phantom.write_mgh(folder / "surf" / f"{side}.{file}", values)
            expected[measure][half] = values
    found = read_surfaces(folder).values
    for measure in MEASURES:
        np.testing.assert_array_equal(found[measure], expected[measure])


def test_read_surfaces__nan_is_missing_up_to_a_medial_wall(subject: Path) -> None:
    path = subject / "surf" / "lh.thickness"
    values = nib.freesurfer.read_morph_data(path).copy()
    values[:900] = np.nan
    nib.freesurfer.write_morph_data(path, values)
    found = read_surfaces(subject).values["thickness"]
    assert np.isnan(found[:900]).all()
    assert np.isfinite(found[900:]).all()
    values[:2000] = np.inf
    nib.freesurfer.write_morph_data(path, values)
    refused(subject, "nonfinite-many", r"lh\.thickness: 20% of the values are NaN or infinite")


@pytest.mark.parametrize(
    ("stamp", "version"),
    [
        ("freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614-7eb8460", "7.4.1"),
        ("freesurfer-Linux-centos6_x86_64-stable-pub-v6.0.0-2beb96c", "6.0.0"),
        ("freesurfer-Linux-centos4_x86_64-stable-pub-v5.3.0", "5.3.0"),
        ("freesurfer-Linux-centos4_x86_64-stable-pub-v5.3.0-HCP", "5.3.0"),
        ("freesurfer-macOS-darwin_x86_64-8.0.0-20250212-6b4d2b1", "8.0.0"),
    ],
)
def test_read_version__of_build_stamps(subject: Path, stamp: str, version: str) -> None:
    (subject / "scripts" / "build-stamp.txt").write_text(stamp)
    assert read_version(subject) == read_surfaces(subject).version == version


def test_read_version__without_a_build_stamp(subject: Path) -> None:
    (subject / "scripts" / "build-stamp.txt").unlink()
    done = subject / "scripts" / "recon-all.done"
    assert read_version(subject) == "7.4.1"  # cvs_version of aseg.stats: not the RCS revision
    done.write_text("SUBJECT 1.2.3\nVERSION freesurfer-Linux-centos7_x86_64-7.1.1-20200723\n")
    assert read_version(subject) == "7.1.1"
    (subject / "stats" / "aseg.stats").unlink()
    done.write_text("SUBJECT sub-01\nUNAME Linux 5.15.0-91\nVERSION $Id: recon-all,v 1.379.2.73\n")
    with pytest.raises(ImageError, match="version of FreeSurfer cannot be told") as caught:
        read_version(subject)
    assert caught.value.code == "freesurfer-unfinished"
    refused(subject, "freesurfer-unfinished", "cannot be told")


def test_read_surfaces__lists_everything_missing_at_once(subject: Path) -> None:
    (subject / "scripts" / "recon-all.done").unlink()
    (subject / "scripts" / "IsRunning.lh+rh").touch()
    for name in ("lh.curv", "rh.thickness", "rh.w-g.pct.mgh"):
        (subject / "surf" / name).unlink()
    refused(
        subject,
        "freesurfer-unfinished",
        r"scripts/IsRunning.lh\+rh says .*missing: scripts/recon-all.done, surf/lh.curv, "
        r"surf/rh.thickness, surf/rh.w-g.pct.mgh, surf/lh.sphere.reg, surf/rh.sphere.reg\. ",
    )


def test_read_surfaces__of_nothing_lists_what_it_needs(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "freesurfer-unfinished", r"missing: .*surf/rh\.sulc")
    archive = tmp_path / "empty.zip"
    zipfile.ZipFile(archive, "w").close()
    refused(SourceFile(archive, "FreeSurfer"), "freesurfer-unfinished", r"missing: .*surf/rh\.sulc")


def test_read_surfaces__failed_run(subject: Path) -> None:
    (subject / "scripts" / "recon-all.error").touch()
    refused(subject, "freesurfer-unfinished", "scripts/recon-all.error says that it failed")


def test_read_surfaces__native_values_need_their_sphere(native: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    (folder / "surf" / "rh.sphere.reg").unlink()
    refused(folder, "freesurfer-unfinished", "missing: surf/rh.sphere.reg")


def test_read_surfaces__links_into_an_annex_without_content(subject: Path) -> None:
    path = subject / "surf" / "lh.curv"
    path.unlink()
    os.symlink("../../.git/annex/objects/Xx/lh.curv", path)
    refused(subject, "pointer", r"missing: surf/lh\.curv.*datalad get")


def test_read_surfaces__one_file_for_both_hemispheres(subject: Path) -> None:
    shutil.copy(subject / "surf" / "lh.sulc", subject / "surf" / "rh.sulc")
    refused(subject, "freesurfer-unfinished", r"same file: surf/lh\.sulc equals surf/rh\.sulc")


def test_read_surfaces__other_number_of_vertices_than_the_sphere(
    native: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    nib.freesurfer.write_morph_data(folder / "surf" / "rh.curv", np.zeros(23001, dtype=">f4"))
    refused(folder, "freesurfer-unfinished", r"rh\.curv: 23001 values, expected 23000, or 10242")
    phantom.write_mgh(folder / "surf" / "lh.thickness.fsaverage5.mgh", np.ones(24000))
    refused(folder, "freesurfer-unfinished", r"fsaverage5\.mgh: 24000 values, expected 10242")


@pytest.mark.parametrize("factor", [1000.0, -1.0])
def test_read_surfaces__thickness_in_another_unit(subject: Path, factor: float) -> None:
    path = subject / "surf" / "rh.thickness"
    nib.freesurfer.write_morph_data(path, nib.freesurfer.read_morph_data(path) * factor)
    refused(subject, "freesurfer-unfinished", r"rh\.thickness: 100% of the values are outside 0 to")


@pytest.mark.parametrize("factor", [0.1, 0.001, 0.0])
def test_read_surfaces__thickness_that_is_too_thin(subject: Path, factor: float) -> None:
    path = subject / "surf" / "rh.thickness"
    nib.freesurfer.write_morph_data(path, nib.freesurfer.read_morph_data(path) * factor)
    refused(
        subject, "freesurfer-unfinished", r"rh\.thickness: the median thickness is 0.*at least 1"
    )


def test_read_surfaces__two_measures_of_one_file(subject: Path) -> None:
    surf = subject / "surf"
    (surf / "rh.sulc").write_bytes((surf / "rh.curv").read_bytes())
    refused(subject, "freesurfer-unfinished", r"two measures are the same file: .*rh\.")


def test_read_surfaces__a_few_odd_thicknesses_are_kept(subject: Path) -> None:
    path = subject / "surf" / "rh.thickness"
    values = nib.freesurfer.read_morph_data(path).copy()
    values[:50] = 11
    nib.freesurfer.write_morph_data(path, values)
    assert (read_surfaces(subject).values["thickness"][N_SIDE : N_SIDE + 50] == 11).all()


MGH = struct.Struct(">7i")


@pytest.mark.parametrize(
    ("name", "change", "code", "message"),
    [
        ("lh.curv", lambda b: b[:-1], "truncated", "40982 bytes, the header needs 40983"),
        ("lh.curv", lambda b: b[:9], "truncated", "the header needs 15"),
        ("lh.curv", lambda b: b"", "empty-file", "the file is empty"),
        ("lh.curv", lambda b: b"<!DOCTYPE html>" + b, "web-page", "a web page"),
        ("lh.curv", lambda b: b"version https://git-lfs.github.com/", "pointer", "a pointer"),
        ("lh.curv", lambda b: b"\x00\x28\x02" + b, "truncated", "starts with 00 28 02 ff"),
        ("lh.curv", lambda b: b[:3] + b"\x7f" + b[4:], "header-claims", "at most 4000000"),
        ("lh.curv", lambda b: b[:3] + b"\xff" + b[4:], "truncated", "claims -"),
        ("lh.curv", lambda b: b[:14] + b"\x02" + b[15:], "truncated", "2 values a vertex"),
        ("rh.w-g.pct.mgh", lambda b: b[:290], "truncated", "the header needs 41252"),
        (
            "rh.w-g.pct.mgh",
            lambda b: MGH.pack(1, 5121, 1, 1, 2, 3, 0) + b[28:],
            "truncated",
            "2 frames",
        ),
        (
            "rh.w-g.pct.mgh",
            lambda b: MGH.pack(1, 2**31 - 1, 2**31 - 1, 2**31 - 1, 1, 3, 0) + b[28:],
            "header-claims",
            "at most 4000000",
        ),
        ("rh.w-g.pct.mgh", lambda b: b"\x1f\x8b\x08" + b, "truncated", "gzip stream"),
    ],
)
def test_read_surfaces__damaged_values(
    subject: Path, name: str, change: Callable[[bytes], bytes], code: str, message: str
) -> None:
    path = subject / "surf" / name
    path.write_bytes(change(path.read_bytes()))
    refused(subject, code, f"{re.escape(name)}: .*{message}")


def with_x_of_first_vertex(sphere: bytes, x: float) -> bytes:
    at = sphere.index(b"\n\n") + 10
    return sphere[:at] + struct.pack(">f", x) + sphere[at + 4 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-200_000], "truncated: "),
        (lambda b: b[:200], "truncated: "),
        (lambda b: b"\xff\xff\xff" + b[3:], "not a FreeSurfer triangle surface"),
        (lambda b: b[:3] + b"no lines", "not a FreeSurfer triangle surface"),
        (lambda b: with_x_of_first_vertex(b, 1e9), "not a sphere: radius"),
        (lambda b: with_x_of_first_vertex(b, np.nan), "not a sphere: radius nan"),
    ],
)
def test_read_surfaces__damaged_sphere(
    native: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    path = folder / "surf" / "lh.sphere.reg"
    path.write_bytes(change(path.read_bytes()))
    refused(folder, "truncated", message)


def test_read_surfaces__without_segmentation(subject: Path) -> None:
    (subject / "stats" / "aseg.stats").unlink()
    surfaces = read_surfaces(subject)
    assert np.isnan(surfaces.icv)
    assert surfaces.volumes == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"1500000.000000, mm^3", b"1500000.000000", "line 7: '' is not a volume"),
        (b"1500000.000000", b"nan", "'nan' is not a volume"),
        (b"1500000.000000", b"-1500000", "'-1500000' is not a volume"),
        (b"20100.000", b"20,100.0", "'20,100.0' is not a volume"),
        (b" 20.0 120.0 100.0\n  3", b"\n  3", "7 columns, expected 10"),
        (b"Volume_mm3", b"Volume_cm3", "expected Volume_mm3 and StructName"),
        (b"Brain-Stem", b"Brain\xff", "not a text file"),
    ],
)
def test_read_surfaces__malformed_segmentation(
    subject: Path, old: bytes, new: bytes, message: str
) -> None:
    path = subject / "stats" / "aseg.stats"
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    refused(subject, "truncated", message)


def test_read_surfaces__damaged_archive(subject: Path, tmp_path: Path) -> None:
    archive = phantom.zip_subject(subject, tmp_path / "a.zip")
    content = archive.read_bytes()
    archive.write_bytes(content[:-100])
    refused(SourceFile(archive, "FreeSurfer"), "truncated", "a.zip!FreeSurfer: the zip archive")
    middle = content.index(b"lh.thickness") + 200
    archive.write_bytes(content[:middle] + bytes(400) + content[middle + 400 :])
    refused(SourceFile(archive, "FreeSurfer"), "truncated", "surf/lh.thickness: ")
    refused(SourceFile(tmp_path / "sub-01" / "surf" / "lh.curv"), "truncated", "the zip archive")


def test_read_surfaces__files_larger_than_any_surface(subject: Path) -> None:
    with (subject / "surf" / "lh.sulc").open("ab") as file:
        file.truncate(2**30)  # sparse
    refused(subject, "header-claims", r"lh\.sulc: 1073741824 bytes, at most")


def test_read_files__are_all_that_reading_depends_on(native: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(native, tmp_path / "sub"))
    (folder / "surf" / "lh.pial").write_bytes(b"not read")
    listed = read_files(folder)
    assert [f.name for f in listed] == [
        *("build-stamp.txt", "recon-all.done", "aseg.stats"),
        *("lh.curv", "lh.sphere.reg", "lh.sulc", "lh.thickness", "lh.w-g.pct.mgh"),
        *("rh.curv", "rh.sphere.reg", "rh.sulc", "rh.thickness", "rh.w-g.pct.mgh"),
    ]
    archive = phantom.zip_subject(folder, tmp_path / "a.zip")
    members = read_files(SourceFile(archive, "FreeSurfer"))
    assert [f.read_bytes() for f in members] == [f.read_bytes() for f in listed]
    for path in {p for p in folder.rglob("*") if p.is_file()} - {f.path for f in listed}:
        path.unlink()
    assert same(read_surfaces(folder), read_surfaces(native))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    folder = phantom.write_subject(root / "sub", native=(300, 280))
    phantom.zip_subject(folder, root / "sub.zip")
    return folder


FUZZED = (
    "surf/lh.thickness",
    "surf/rh.w-g.pct.mgh",
    "surf/lh.sphere.reg",
    "stats/aseg.stats",
    "scripts/build-stamp.txt",
    "../sub.zip",
)


@settings(max_examples=150)
@given(
    name=st.sampled_from(FUZZED),
    end=st.floats(0, 1),
    near=st.booleans(),
    patches=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=3),
)
def test_read_surfaces__damage_anywhere_raises_scalebrain_errors_only(
    small: Path, name: str, end: float, near: bool, patches: list[tuple[float, bytes]]
) -> None:
    path = small / name
    content = path.read_bytes()
    damaged = bytearray(content[: round(len(content) * end)] if not patches else content)
    for where, patch in patches:
        at = round((min(len(content), 300) if near else len(content)) * where)
        damaged[at : at + len(patch)] = patch
    source = SourceFile(path, "FreeSurfer") if name.endswith(".zip") else small
    code = next(iter(RULES))
    try:
        path.write_bytes(damaged)
        surfaces = read_surfaces(source)
        assert all(v.shape == (N_VERTICES,) for v in surfaces.values.values())
        read_version(source)
    except ScalebrainError as error:
        code = error.code
    finally:
        path.write_bytes(content)
    assert code in RULES
