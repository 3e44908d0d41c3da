"""Files of a scan in the folder of derivatives: their names, one writer at a time, removal."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from scalebrain.atlas.space import SPACE
from scalebrain.errors import StoreBusyError
from scalebrain.io.atomic import PART
from scalebrain.io.preprocessed import RECORD, record_path, scan_name

__all__ = ["HIDDEN", "hold", "remove_empty", "remove_others", "remove_scan"]

logger = logging.getLogger(__name__)

#: Folder of the locks, in the folder of derivatives.
HIDDEN = ".scalebrain"

_PAUSE = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Every file that is written for a scan, behind its name.
_OURS = re.compile(
    rf"space-{SPACE}(_res-2)?_(desc-preproc_T1w|label-(GM|WM|CSF)_probseg"
    rf"|label-GM_desc-modulated_probseg|label-L_mask)\.(nii\.gz|json)"
    rf"|from-T1w_to-{SPACE}_mode-image_desc-(affine_xfm\.mat|warp_xfm\.nii\.gz)"
    rf"|from-{SPACE}_to-T1w_mode-image_desc-warp_xfm\.nii\.gz"
    rf"|{re.escape(RECORD)}"
)
_PART = re.compile(rf"(\.[0-9a-f]{{8}})?{re.escape(PART)}\Z")


@contextlib.contextmanager
def hold(folder: Path, name: str, *, wait: float = 0.0) -> Iterator[int | None]:
    """Hold the right to write a scan, or what belongs to all, until the end of the block.

    Parameters
    ----------
    folder
        Folder of derivatives.
    name
        Scan, or another word.
    wait
        Seconds to wait for somebody else to end.

    Yields
    ------
    int or None
        Descriptor of the file that is locked, which a process that writes too may inherit: the
        lock lasts as long as one of them has it. None where the file system knows no locks.

    Raises
    ------
    StoreBusyError
        When somebody else holds it.

    Notes
    -----
    The system gives the lock back when its holders end, however they end. On NFS it is seen by
    other machines, unless the folder is mounted with ``nolock`` or ``local_lock``.
    """
    place = folder / HIDDEN
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock if _is_locked(lock, name, time.monotonic() + wait) else None
    finally:
        os.close(lock)


def _is_locked(lock: int, name: str, until: float) -> bool:
    """Lock a file; False where there are no locks."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise StoreBusyError(
                    f"{name}: another scalebrain preprocess is at it in the same folder. Wait for "
                    "it to end, then run the same command again: it goes on."
                ) from None
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "the folder of derivatives knows no locks (%s): see that no other command writes "
                "there",
                error.strerror,
            )
            return False
        else:
            return True


def remove_scan(folder: Path, person: str, session: str) -> bool:
    """Remove everything that was written for a scan, its record first.

    Parameters
    ----------
    folder
        Folder of derivatives.
    person, session
        Whose scan.

    Returns
    -------
    bool
        Whether there was anything. Files that are not named as ours are left alone.
    """
    record = record_path(folder, person, session)
    ours = [path for path in _files(record.parent, scan_name(person, session)) if path != record]
    was_there = bool(ours) or record.exists()
    for path in (record, *ours):
        path.unlink(missing_ok=True)
    return was_there


def _files(anat: Path, name: str) -> Iterable[Path]:
    """Files of a scan, also those that were being written."""
    try:
        names = sorted(os.listdir(anat))
    except (FileNotFoundError, NotADirectoryError):
        return
    for found in names:
        bare = _PART.sub("", found.removeprefix(".")) if found.endswith(PART) else found
        if bare.startswith(f"{name}_") and _OURS.fullmatch(bare.removeprefix(f"{name}_")):
            yield anat / found


def remove_empty(folder: Path, person: str, session: str) -> None:
    """Remove the folders of a scan that hold nothing."""
    for place in (folder / person / session / "anat", folder / person / session, folder / person):
        with contextlib.suppress(OSError):
            place.rmdir()


def remove_others(folder: Path, people: Iterable[str], kept: Iterable[str]) -> list[str]:
    """Remove what earlier runs wrote of people for scans that are no longer to be done.

    Parameters
    ----------
    folder
        Folder of derivatives.
    people
        People to look at.
    kept
        Names of the scans that are to be done.

    Returns
    -------
    list of str
        Names of the scans that were removed.

    Raises
    ------
    StoreBusyError
        When another command is writing one of them.
    """
    names, removed = set(kept), []
    for person in sorted(people):
        places = (folder / person).glob("ses-*") if (folder / person).is_dir() else ()
        for session in ("", *sorted(place.name for place in places)):
            name = scan_name(person, session)
            if name in names or not any(_files(folder / person / session / "anat", name)):
                continue
            with hold(folder, name):
                remove_scan(folder, person, session)
            remove_empty(folder, person, session)
            removed.append(name)
    return removed
