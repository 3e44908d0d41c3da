"""The one channel through which long work reports progress."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

__all__ = ["Progress", "report_progress", "show_progress"]

#: Called with the name of the work, how many parts are done, and of how many.
Progress = Callable[[str, int, int], None]


def _ignore(label: str, done: int, total: int) -> None:
    """Show nothing."""


_progress: contextvars.ContextVar[Progress] = contextvars.ContextVar("progress", default=_ignore)


@contextlib.contextmanager
def show_progress(callback: Progress) -> Iterator[None]:
    """Send the progress of everything inside the block to `callback`.

    Parameters
    ----------
    callback
        Called as ``callback(label, done, total)``.
    """
    token = _progress.set(callback)
    try:
        yield
    finally:
        _progress.reset(token)


def report_progress(label: str, done: int, total: int) -> None:
    """Tell whoever listens that `done` of `total` parts of `label` are done."""
    _progress.get()(label, done, total)
