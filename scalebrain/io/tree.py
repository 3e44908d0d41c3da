"""Folders of a dataset, listed without ever leaving them, and what is found there."""

import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from scalebrain.errors import ImageError, Problem
from scalebrain.io.files import SourceFile

__all__ = [
    "NATIVE",
    "PERSON",
    "SESSION",
    "TEMPLATE",
    "Findings",
    "Tree",
    "Visit",
    "archive_members",
    "bad_id",
    "is_folder",
    "shown",
]

#: A person and a session, as BIDS names them.
PERSON = re.compile(r"sub-[A-Za-z0-9]{1,64}")
SESSION = re.compile(r"ses-[A-Za-z0-9]{1,64}")

#: A template space.
TEMPLATE = re.compile(r"MNI[A-Za-z0-9]{0,64}")

#: Space of an image that is in no template space.
NATIVE = "native"

_LONGEST = 80


def shown(text: str) -> str:
    """Text of a dataset as a message may hold it: one printable line, cut."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST * 3 else f"{text[: _LONGEST * 3]}..."


def bad_id(name: str, what: str) -> Problem:
    """Say that the name of a folder or file holds no usable participant id."""
    quoted = repr(name)
    quoted = quoted if len(quoted) <= _LONGEST else f"{quoted[:_LONGEST]}..."
    return Problem(
        quoted,
        "bad-id",
        f"{quoted}: {what}. Expected sub-<label>, the label of 1 to 64 letters and digits. "
        "Rename it.",
    )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell a folder, also behind a link; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class Tree:
    """A folder whose links are followed as long as they stay inside it.

    Parameters
    ----------
    root
        The folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._inside = os.path.join(self.root, "")

    def shown(self, path: str | Path) -> str:
        """Path relative to the root, for a message."""
        return shown(str(path).removeprefix(self._inside))

    def entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """Entries of a folder, sorted by name, without hidden ones.

        Parameters
        ----------
        folder
            A folder inside the root.

        Returns
        -------
        list of os.DirEntry
            Its entries.

        Raises
        ------
        ImageError
            When the system refuses to list it.
        """
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            raise ImageError(
                f"{self.shown(folder)}: cannot be listed: {error.strerror}. Check its permissions.",
                code="unreadable",
            ) from error
        return sorted(entries, key=lambda entry: entry.name)

    def check(self, path: str | Path, *, exists: bool = True) -> None:
        """Check that a path stays inside the root when its links are followed.

        Parameters
        ----------
        path
            A file or folder.
        exists
            Whether it has to exist, too.

        Raises
        ------
        ImageError
            When it leaves the root (``leaves-tree``), or is missing (``unreadable``, and
            ``pointer`` for a file that DataLad has not fetched).
        """
        real = os.path.realpath(path)
        if not os.path.join(real, "").startswith(self._inside):
            raise ImageError(
                f"{self.shown(path)}: leads out of {shown(str(self.root))}. Copy it into that "
                "folder (a DataLad dataset: give its root, or `datalad unlock` the file).",
                code="leaves-tree",
            )
        if not exists or os.path.exists(real):
            return
        if "/.git/annex/objects/" in real:
            raise ImageError(
                f"{self.shown(path)}: a git-annex link whose content is not here. Fetch it with "
                "`datalad get`.",
                code="pointer",
            )
        raise ImageError(
            f"{self.shown(path)}: no such file. Copy it there, or take its name out.",
            code="unreadable",
        )

    def check_file(self, path: str | Path) -> None:
        """Check that a path is a file inside the root.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        ImageError
            As :meth:`check`, and ``unreadable`` when it is no regular file.
        """
        self.check(path)
        if not os.path.isfile(path):
            raise ImageError(
                f"{self.shown(path)}: not a regular file. Put the file itself there.",
                code="unreadable",
            )


@dataclass
class Visit:
    """What one session of one person holds.

    Parameters
    ----------
    images
        Files by kind (``t1w``, ``gm``, ``lesion``) and space.
    surfaces
        FreeSurfer folders and archives.
    problems
        What keeps the visit out; without the subject.
    """

    images: dict[tuple[str, str], list[SourceFile]] = field(default_factory=dict)
    surfaces: list[SourceFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, error: ImageError, file: str) -> None:
        """Keep the visit out."""
        self.problems.append(Problem("", error.code, str(error), file))

    def add(self, kind: str, space: str, file: SourceFile) -> None:
        """Add an image."""
        self.images.setdefault((kind, space), []).append(file)


@dataclass
class Findings:
    """Everything that lies in a dataset, before its table is read.

    Parameters
    ----------
    visits
        By person, then by session; nothing in it for a person without any file.
    rejected
        People and names that are out already.
    refused
        The people among them.
    warnings
        What deserves a look.
    unused
        Person, session (empty without one) and file of whatever looks like a lesion mask, and
        has none of the names that are read.
    unread
        File by person in a column of a manifest that is not read, and is like one of masks.
    """

    visits: dict[str, dict[str, Visit]] = field(default_factory=dict)
    rejected: list[Problem] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    warnings: list[Problem] = field(default_factory=list)
    unused: list[tuple[str, str, str]] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether anything was seen."""
        return bool(self.visits or self.rejected)

    def visit(self, person: str, session: str) -> Visit:
        """Session of a person, made when it is new."""
        return self.visits.setdefault(person, {}).setdefault(session, Visit())

    def refuse(self, person: str, error: ImageError, file: str) -> None:
        """Keep a person out, whatever session is asked for."""
        self.refused.add(person)
        self.rejected.append(Problem(person, error.code, str(error), file))


def archive_members(tree: Tree, path: Path) -> frozenset[str]:
    """Names inside a zip archive, read from its directory alone.

    Parameters
    ----------
    tree
        Dataset that the archive belongs to.
    path
        The archive.

    Returns
    -------
    frozenset of str
        Names of members that stay inside the archive; others are never used.

    Raises
    ------
    ImageError
        When the archive is damaged (``truncated``), or cannot be read (``unreadable``).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except OSError as error:
        raise ImageError(
            f"{tree.shown(path)}: cannot be read: {error.strerror}. Check its permissions.",
            code="unreadable",
        ) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError) as error:
        raise ImageError(
            f"{tree.shown(path)}: the zip archive is truncated or damaged "
            f"({shown(str(error))}). Copy it again.",
            code="truncated",
        ) from error
    return frozenset(
        member.filename
        for member in members
        if not member.filename.startswith("/") and ".." not in member.filename.split("/")
    )
