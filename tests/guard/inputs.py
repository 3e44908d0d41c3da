"""A small cohort of real files, broken in one place, and what has to hold of its ingest."""

import gzip
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import scalebrain
from scalebrain.atlas.space import template_grid
from scalebrain.errors import ScalebrainError
from scalebrain.graph.train import Training
from tests.graph.conftest import cohort as references
from tests.phantom import save, write_tree

T1W, GM, LESION = "desc-preproc_T1w", "label-GM_probseg", "label-L_mask"
#: Who is in the cohort; the last three have a lesion: left, right, across the midline.
SUBJECTS = ("sub-000", "sub-001", "sub-002", "sub-003", "sub-016", "sub-017", "sub-019")
ONE, OTHER = "sub-002", "sub-003"
LEFT, RIGHT, MIDDLE = "sub-016", "sub-017", "sub-019"
GRID = template_grid(4.0)
MM = GRID.coordinates(np.arange(GRID.size)).reshape(*GRID.shape, 3)
# Where the fields of a NIfTI-1 header lie.
DIM, SCALING, CODES, QOFFSET, SROW = 40, 112, 252, 268, 280

_VALIDATED = ("session", "prefix", "root", "assume_space", "volume", "lesion_labels")


def ball(center: tuple[float, float, float], radius: float, mm: np.ndarray = MM) -> np.ndarray:
    """Mask of the voxels within `radius` mm of `center`."""
    return (np.linalg.norm(mm - np.array(center), axis=-1) < radius).astype(np.uint8)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], dtype: str = "") -> None:
    """Change the voxels of an image, and keep its affine."""
    image = nib.load(path)
    data = change(np.asarray(image.dataobj))
    save(path, data.astype(dtype) if dtype else data, image.affine)


def patch_header(path: Path, at: int, form: str, *values: float) -> None:
    """Overwrite fields of a NIfTI-1 header, and nothing else."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{form}", content, at, *values)
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def edit_table(tree: Path, rows: dict[str, dict[str, str]]) -> None:
    """Write cells of participants.tsv; a column that is new is n/a for everyone else."""
    path = tree / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for subject, cells in rows.items():
        for column, text in cells.items():
            if column not in table:
                table[column] = "n/a"
            table.loc[table["participant_id"] == subject, column] = text
    table.to_csv(path, sep="\t", index=False, lineterminator="\n")


def add_rows(tree: Path, *lines: str) -> None:
    """Append lines to participants.tsv; `|` stands for a tab."""
    with (tree / "participants.tsv").open("a") as file:
        file.writelines(line.replace("|", "\t") + "\n" for line in lines)


def drop_subjects(tree: Path, gone: Iterable[str]) -> None:
    """Take people out of a tree, files and rows."""
    table = tree / "participants.tsv"
    lines = table.read_text().splitlines(keepends=True)
    gone = set(gone)
    for subject in gone:
        shutil.rmtree(tree / subject)
    table.write_text("".join(line for line in lines if line.split("\t")[0] not in gone))


def short(message: str) -> str:
    """Message with its paths cut to what tells them apart."""
    message = re.sub(r"\S*?/cohort/", "", message)
    message = re.sub(r"\bsub-\w+/(?:ses-\w+/)?anat/(sub-\w[\w-]*?)_space-\w+?_", r"\1_", message)
    return " ".join(message.split())


class Lab:
    """Cohorts to break, and an intact one to compare with.

    Parameters
    ----------
    folder
        Folder for everything that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0
        self._model: tuple[xr.Dataset, scalebrain.BrainAgeModel] | None = None
        self._phantom = write_tree(folder / "phantom" / "cohort")
        people = {path.name for path in self._phantom.glob("sub-*")}
        drop_subjects(self._phantom, people - set(SUBJECTS))
        self.intact = self._read(self._phantom)[1]
        assert self.intact["subject"].values.tolist() == list(SUBJECTS)
        assert (self.intact["warnings"].values == "").all()

    def space(self) -> Path:
        """An empty folder."""
        self._made += 1
        folder = self.folder / f"{self._made:03d}"
        folder.mkdir()
        return folder

    def tree(self) -> Path:
        """A copy of the intact cohort."""
        return Path(shutil.copytree(self._phantom, self.space() / "cohort"))

    def again(self, tree: Path) -> Path:
        """A copy of a broken cohort, without the store beside it."""
        return Path(shutil.copytree(tree, self.space() / "cohort", symlinks=True))

    def rejected(
        self, tree: Path, code: str, *subjects: str, says: str, others: bool = True, **options
    ) -> str:
        """Check that exactly these subjects stay out with this code; message of the first.

        `says` is a pattern of the way out. `others`: all of the others are in the store.
        """
        store, ds = self._read(tree, **options)
        messages = self._messages(store, "rejected", code, subjects, says)
        assert self._messages(store, "warnings") == {}
        assert not set(subjects) & set(ds["subject"].values)
        if others:
            self._check_others(ds, subjects)
        found = self._validate(tree, options)
        listed = found[found["action"] == "E"].drop(columns="action")
        assert listed.to_dict("list") == scalebrain.problems(store).to_dict("list")
        return messages[subjects[0]]

    def warned(
        self, tree: Path, code: str, *subjects: str, says: str, others: bool = True, **options
    ) -> tuple[str, xr.Dataset]:
        """Check that exactly these subjects stay, with this code; message of the first, store."""
        store, ds = self._read(tree, **options)
        messages = self._messages(store, "warnings", code, subjects, says)
        assert self._messages(store, "rejected") == {}
        assert (ds["warnings"].sel(subject=list(subjects)) == code).all()
        if others:
            self._check_others(ds, subjects)
        found = self._validate(tree, options)
        assert set(found["code"]) == {code}
        assert set(found["subject"]) == set(subjects)
        return messages[subjects[0]], ds

    def handled(self, tree: Path, *subjects: str, **options) -> xr.Dataset:
        """Check that nothing is wrong or odd and only these subjects differ; store."""
        store, ds = self._read(tree, **options)
        for kind in ("rejected", "warnings"):
            assert self._messages(store, kind) == {}
        self._check_others(ds, subjects)
        return ds

    def stopped(
        self, tree: Path, error: type[ScalebrainError], says: str, *, code: str = "", **options
    ) -> str:
        """Check that nothing is ingested at all; message."""
        store = tree.parent / "c.zarr"
        with pytest.raises(error, match=says) as caught:
            scalebrain.ingest(tree, store, **options)
        assert caught.value.code == code
        assert not store.exists()
        with pytest.raises(error, match=says):
            self._validate(tree, options)
        return str(caught.value)

    def model(self) -> tuple[xr.Dataset, scalebrain.BrainAgeModel]:
        """References with made-up features, and a model that was trained on them for a moment."""
        if self._model is None:
            ds = references(24)
            ds["scan_hash"] = ("subject", [f"scan {i}" for i in range(24)])
            training = Training(folds=2, epochs=1)
            self._model = ds, scalebrain.BrainAgeModel.fit(ds, training=training)
        return self._model

    def _read(self, tree: Path, **options) -> tuple[Path, xr.Dataset]:
        store = tree.parent / "c.zarr"
        scalebrain.ingest(tree, store, **options)
        with scalebrain.open_store(store) as ds:
            return store, ds.load()

    def _validate(self, tree: Path, options: dict[str, object]) -> pd.DataFrame:
        return scalebrain.validate(tree, **{k: options[k] for k in _VALIDATED if k in options})

    def _messages(
        self,
        store: Path,
        kind: str,
        code: str = "",
        subjects: tuple[str, ...] = (),
        says: str = "",
    ) -> dict[str, str]:
        """Messages of a table by subject, all of this code and about these subjects."""
        table = scalebrain.problems(store, kind)
        assert dict(zip(table["subject"], table["code"], strict=True)) == dict.fromkeys(
            subjects, code
        ), table["message"].tolist()
        assert (table["dataset"] == "cohort").all()
        for row in table.itertuples():
            named = row.subject in row.message or (row.file and row.file in row.message)
            assert named, row.message
            assert re.search(says, row.message), row.message
            assert str(self.folder) not in row.message + row.file, row.message + row.file
        return dict(zip(table["subject"], table["message"], strict=True))

    def _check_others(self, ds: xr.Dataset, subjects: Iterable[str]) -> None:
        """Compare everyone else with the intact ingest, variable by variable."""
        others = [subject for subject in SUBJECTS if subject not in subjects]
        found, expected = ds.sel(subject=others), self.intact.sel(subject=others)
        for name, variable in expected.variables.items():
            if "subject" in variable.dims:
                np.testing.assert_array_equal(found[name].values, variable.values, str(name))


Case = Callable[[Lab], str]
#: Case of every rule, by code: it returns one real message, or what the store holds.
CASES: dict[str, Case] = {}


def case(code: str) -> Callable[[Case], Case]:
    """Register the case of a rule."""

    def register(function: Case) -> Case:
        assert code not in CASES
        CASES[code] = function
        return function

    return register


def value(ds: xr.Dataset, name: str, subject: str = RIGHT) -> object:
    """Value of a variable of one person."""
    return ds[name].sel(subject=subject).item()


def volume(ds: xr.Dataset, name: str, subject: str) -> np.ndarray:
    """Image of one person in 3-D."""
    return scalebrain.unpack(ds[name].sel(subject=subject)).values
