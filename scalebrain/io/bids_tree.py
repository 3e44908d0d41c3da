"""Find the files of a tree of ``sub-*`` folders: BIDS derivatives, ATLAS, CAT12, FreeSurfer."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from scalebrain.errors import ImageError, Problem
from scalebrain.io.files import SourceFile
from scalebrain.io.mask_names import is_lesion_mask, looks_like_mask
from scalebrain.io.tree import (
    NATIVE,
    PERSON,
    SESSION,
    TEMPLATE,
    Findings,
    Tree,
    Visit,
    bad_id,
    is_folder,
)

__all__ = ["CAT12_SPACE", "check_surfaces", "find_tree"]

#: Space of the images of CAT12.
CAT12_SPACE = "MNI152NLin2009cAsym"

_FOLDER = re.compile(rf"({PERSON.pattern})(?:_({SESSION.pattern}))?")

_SUFFIXES = ("_T1w", "_probseg", "_mask", "_roi")
_CAT12 = re.compile(r"(mwp1|wm)(sub-.+)")
_SUBJECTS_DIRS = ("freesurfer", "sourcedata/freesurfer")
#: Folders inside those of a subject where no image is looked for.
_OTHER = frozenset(
    [
        "dwi",
        "fmap",
        "figures",
        "func",
        "label",
        "log",
        "meg",
        "eeg",
        "perf",
        "pet",
        "report",
        "scripts",
        "stats",
        "surf",
        "tmp",
        "touch",
        "trash",
        "xfm",
    ]
)
_DEEPEST = 5
_ATLAS_FOLDER = re.compile(r"Training|Testing|R\d+")


def find_tree(tree: Tree) -> Findings:
    """Find the images and surfaces of every ``sub-*`` folder.

    Parameters
    ----------
    tree
        Root of the dataset.

    Returns
    -------
    Findings
        Files by person and session; nothing when the layout is another one.

    Raises
    ------
    ImageError
        When the root cannot be listed.
    """
    found = Findings()
    for entry in tree.entries(tree.root):
        if entry.name == "mri" and is_folder(entry):
            _find_cat12(tree, entry, found)
        elif entry.name.startswith("sub-"):
            _find_subject(tree, entry, found, images=True)
        elif _ATLAS_FOLDER.fullmatch(entry.name) and is_folder(entry):
            _find_sites(tree, entry, found, {str(tree.root)})
    for name in _SUBJECTS_DIRS:
        _find_surfaces(tree, name, found)
    for sessions in found.visits.values():
        for visit in sessions.values():
            _pair_cat12(visit)
    return found


def _find_sites(tree: Tree, folder: os.DirEntry[str], found: Findings, followed: set[str]) -> None:
    """Take the subjects of ATLAS R2.0, which lie in ``Training/R001/sub-r001s001``."""
    real = os.path.realpath(folder.path)
    if real in followed:  # by another link, or in a circle
        return
    followed.add(real)
    try:
        tree.check(folder.path)
        entries = tree.entries(folder.path)
    except ImageError as error:
        shown = tree.shown(folder.path)
        found.rejected.append(Problem(shown, error.code, str(error), shown))
        return
    for entry in entries:
        if _ATLAS_FOLDER.fullmatch(entry.name) and is_folder(entry):
            _find_sites(tree, entry, found, followed)
        elif entry.name.startswith("sub-"):
            _find_subject(tree, entry, found, images=True)


def _find_surfaces(tree: Tree, name: str, found: Findings) -> None:
    """Take the surfaces of everybody from a SUBJECTS_DIR inside the dataset."""
    folder = tree.root / name
    if not folder.is_dir():
        return
    try:
        tree.check(folder)
    except ImageError as error:
        if not found:
            raise
        message = f"{error} Until then its surfaces are not used."
        found.warnings.append(Problem("", "no-image", message, name))
        return
    for entry in tree.entries(folder):
        if entry.name.startswith("sub-"):
            _find_subject(tree, entry, found, images=False)


def _find_subject(tree: Tree, entry: os.DirEntry[str], found: Findings, *, images: bool) -> None:
    """Take one ``sub-*`` folder in."""
    match = _FOLDER.fullmatch(entry.name)
    if not is_folder(entry) and not (match and entry.is_symlink()):
        return
    if not match:
        found.rejected.append(bad_id(entry.name, "a folder whose name is no BIDS participant id"))
        return
    if not entry.is_symlink() and os.path.exists(os.path.join(entry.path, "base-tps")):
        found.rejected.append(
            Problem(
                repr(entry.name),
                "bad-id",
                f"{entry.name!r}: the template of a longitudinal FreeSurfer run (base-tps lies in "
                "it), the mean of several visits. Leave it out and give the runs of single visits.",
            )
        )
        return
    person, session = match[1], match[2] or ""
    found.visits.setdefault(person, {})
    try:
        if entry.is_symlink():
            tree.check(entry.path)
        content = {inner.name for inner in tree.entries(entry.path) if is_folder(inner)}
        if content & {"surf", "scripts"}:
            check_surfaces(tree, entry.path)
            found.visit(person, session).surfaces.append(SourceFile(Path(entry.path)))
    except ImageError as error:
        found.refuse(person, error, tree.shown(entry.path))
        return
    if images:
        _Walk(tree, found, person).walk(entry.path, session, depth=0)


@dataclass
class _Walk:
    """Walk through the folders of one person."""

    tree: Tree
    found: Findings
    person: str
    followed: set[str] = field(default_factory=set)

    def walk(self, folder: str, session: str, *, depth: int) -> None:
        """Take the images of a folder and of those inside it."""
        try:
            entries = self.tree.entries(folder)
        except ImageError as error:
            self._refuse(session, error, folder)
            return
        for entry in entries:
            try:
                self._take(entry, session, folder, depth)
            except ImageError as error:
                self._refuse(session, error, entry.path)

    def _refuse(self, session: str, error: ImageError, path: str) -> None:
        """Keep a session out."""
        self.found.visit(self.person, session).refuse(error, self.tree.shown(path))

    def _take(self, entry: os.DirEntry[str], session: str, folder: str, depth: int) -> None:
        """Take one entry of a folder."""
        name = entry.name
        is_session = depth == 0 and name.startswith("ses-")
        in_mri = os.path.basename(folder) == "mri"
        image = _image(name, in_mri=in_mri)
        if image is None and (
            is_folder(entry) or (entry.is_symlink() and (is_session or name in ("anat", "mri")))
        ):
            if is_session and not SESSION.fullmatch(name):
                shown = self.tree.shown(entry.path)
                message = (
                    f"{shown}: no BIDS session: expected ses-<label> of letters and digits. "
                    "Rename it."
                )
                self.found.refuse(self.person, ImageError(message, code="bad-id"), shown)
                return
            if name not in _OTHER and depth < _DEEPEST:
                self._descend(entry, name if is_session else session, depth)
            return
        if image is not None:
            _add_image(self.tree, self.found, self.person, session, entry, image)
        elif in_mri and name.startswith("mwp1") and name.endswith((".nii", ".nii.gz")):
            raise ImageError(
                f"{self.tree.shown(entry.path)}: expected mwp1sub-<label>, so that the image "
                "names its participant. Rename it.",
                code="bad-id",
            )
        elif looks_like_mask(name):
            named = SESSION.search(name)
            whose = session or (named[0] if named else "")
            self.found.unused.append((self.person, whose, self.tree.shown(entry.path)))

    def _descend(self, entry: os.DirEntry[str], session: str, depth: int) -> None:
        """Walk through an inner folder; through what a link leads to only once."""
        if entry.is_symlink():
            try:
                self.tree.check(entry.path)
            except ImageError as error:
                self._refuse(session, error, entry.path)
                return
            real = os.path.join(os.path.realpath(entry.path), "")
            here = os.path.join(os.path.realpath(os.path.dirname(entry.path)), "")
            if real in self.followed or here.startswith(real):
                return
            self.followed.add(real)
        self.walk(entry.path, session, depth=depth + 1)


@dataclass(frozen=True)
class _Image:
    """What the name of an image says."""

    kind: str
    space: str
    person: str
    session: str


def _image(name: str, *, in_mri: bool) -> _Image | None:
    """Read the name of a file; None for a file that is of no use here."""
    stem = name.removesuffix(".gz")
    if not stem.endswith(".nii"):
        return None
    stem = stem.removesuffix(".nii")
    cat12 = _CAT12.fullmatch(stem) if in_mri else None
    if cat12 is not None:
        stem = cat12[2]
    elif not (stem.startswith("sub-") and stem.endswith(_SUFFIXES)):
        return None
    *pairs, suffix = stem.split("_")
    entities = dict(pair.partition("-")[::2] for pair in pairs)
    if cat12 is not None:
        kind: str | None = "gm" if cat12[1] == "mwp1" else "t1w"
        space = CAT12_SPACE
    else:
        kind = _kind(suffix, entities)
        space = entities.get("space", NATIVE)
    if kind is None:
        return None
    return _Image(
        kind,
        space if TEMPLATE.fullmatch(space) else NATIVE,
        f"sub-{entities['sub']}" if "sub" in entities else "",
        f"ses-{entities['ses']}" if "ses" in entities else "",
    )


def _kind(suffix: str, entities: dict[str, str]) -> str | None:
    """Kind of an image by BIDS entities."""
    label, description = entities.get("label"), entities.get("desc")
    if suffix == "T1w":
        return "t1w"
    if suffix == "probseg":
        # modulated grey matter lies beside the probabilities, of which the features are taken
        return "gm" if label == "GM" and description != "modulated" else None
    return "lesion" if is_lesion_mask(suffix, entities) else None


def _add_image(
    tree: Tree,
    found: Findings,
    person: str,
    session: str,
    entry: os.DirEntry[str],
    image: _Image,
) -> None:
    """Add an image to the session that its folder and its name agree on."""
    if image.person not in ("", person) or (session and image.session not in ("", session)):
        raise ImageError(
            f"{tree.shown(entry.path)}: the name belongs to another person or session than the "
            "folder. Move or rename it.",
            code="bad-id",
        )
    if image.session and not SESSION.fullmatch(image.session):
        raise ImageError(
            f"{tree.shown(entry.path)}: no BIDS session in its name: expected ses-<label> of "
            "letters and digits. Rename it.",
            code="bad-id",
        )
    visit = found.visit(person, session or image.session)
    try:
        if entry.is_symlink() or not entry.is_file():
            tree.check_file(entry.path)
    except ImageError as error:
        visit.refuse(error, tree.shown(entry.path))
        return
    visit.add(image.kind, image.space, SourceFile(Path(entry.path)))


def _find_cat12(tree: Tree, folder: os.DirEntry[str], found: Findings) -> None:
    """Take CAT12's images from the one ``mri`` folder of all people."""
    tree.check(folder.path)
    for entry in tree.entries(folder.path):
        image = _image(entry.name, in_mri=True) if entry.name.startswith(("mwp1", "wm")) else None
        if image is None or not PERSON.fullmatch(image.person):
            if entry.name.startswith("mwp1") and entry.name.endswith((".nii", ".nii.gz")):
                found.rejected.append(
                    bad_id(entry.name, "a file in mri that names no BIDS participant")
                )
            continue
        found.visits.setdefault(image.person, {})
        try:
            _add_image(tree, found, image.person, "", entry, image)
        except ImageError as error:
            found.refuse(image.person, error, tree.shown(entry.path))


def _pair_cat12(visit: Visit) -> None:
    """Keep the normalized T1w images that belong to a grey-matter image of CAT12."""
    t1w = visit.images.get(("t1w", CAT12_SPACE), [])
    bare = [file for file in t1w if file.name.startswith("wm")]
    if not bare:
        return
    grey = {_stem(file).removeprefix("mwp1") for file in visit.images.get(("gm", CAT12_SPACE), [])}
    kept = [f for f in t1w if f not in bare or _stem(f).removeprefix("wm") in grey]
    if kept:
        visit.images["t1w", CAT12_SPACE] = kept
    else:
        del visit.images["t1w", CAT12_SPACE]


def _stem(file: SourceFile) -> str:
    """Name without its ending."""
    return file.name.removesuffix(".gz").removesuffix(".nii")


def check_surfaces(tree: Tree, folder: str | Path) -> None:
    """Check that no file of a FreeSurfer folder leaves the dataset.

    Parameters
    ----------
    tree
        The dataset.
    folder
        A subject's folder in a SUBJECTS_DIR.

    Raises
    ------
    ImageError
        When a link leads out (``leaves-tree``), or a surface file is a link to nothing.
    """
    for inner in tree.entries(folder):
        if inner.name not in ("surf", "stats", "scripts") or not is_folder(inner):
            continue
        if inner.is_symlink():
            tree.check(inner.path)
        for entry in tree.entries(inner.path):
            if entry.is_symlink():
                needed = entry.name.endswith((".thickness", ".w-g.pct.mgh"))
                tree.check(entry.path, exists=needed)
