"""Every exception and warning class of scalebrain.

Each error is a :class:`ScalebrainError` and the builtin it specializes, so that
``except ValueError`` and ``except ScalebrainError`` both work. A message says what is
wrong, with which subject or file, what was expected and found, then the way out.
:class:`Problem` is such a message about one subject of a cohort, on its way into a table.
"""

from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "ConvergenceWarning",
    "DataWarning",
    "GeometryError",
    "ImageError",
    "LateralityError",
    "MissingVariableError",
    "ModelFileError",
    "Problem",
    "ScalebrainError",
    "ScalebrainWarning",
    "StatisticsError",
    "StoreBusyError",
    "StoreError",
    "TableError",
    "check_all",
]


class ScalebrainError(Exception):
    """Base class of every error that scalebrain raises on purpose.

    Parameters
    ----------
    message
        What is wrong, expected and found, and the way out.
    code
        Code of the rule that was broken (:mod:`scalebrain.io.guard`); empty when none is.
    """

    def __init__(self, message: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class GeometryError(ScalebrainError, ValueError):
    """A grid, affine or space is not the one that is needed."""


class LateralityError(GeometryError):
    """Left and right are not where they have to be."""


class ImageError(ScalebrainError, ValueError):
    """An image file cannot be read in full or holds unusable values."""


class TableError(ScalebrainError, ValueError):
    """A table (participants.tsv, a region set) is missing, ambiguous or malformed."""


class StoreError(ScalebrainError, RuntimeError):
    """A cohort store is missing, incomplete, of another format or misaligned."""


class StoreBusyError(StoreError):
    """Another process is writing the cohort store."""


class MissingVariableError(ScalebrainError, KeyError):
    """A Dataset lacks a variable, dimension or coordinate that a function needs."""

    def __str__(self) -> str:
        """Show the message as it is; KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class ModelFileError(ScalebrainError, ValueError):
    """A model directory is damaged, or does not fit the data."""


class StatisticsError(ScalebrainError, ValueError):
    """A statistical model cannot be fitted as asked."""


class ConfigError(ScalebrainError, ValueError):
    """A study configuration or option is not valid."""


class ScalebrainWarning(UserWarning):
    """Base class of every warning of scalebrain."""


class DataWarning(ScalebrainWarning):
    """Data were kept, but deserve a look."""


class ConvergenceWarning(ScalebrainWarning):
    """A fit ended at a boundary or did not reach its tolerance."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, or odd, with one subject of a cohort.

    Parameters
    ----------
    subject
        Subject, as its table or folder names it.
    code
        Code of the rule (:mod:`scalebrain.io.guard`).
    message
        What is wrong, expected and found, and the way out.
    file
        The file that it is about; empty when it is about no single file.
    """

    subject: str
    code: str
    message: str
    file: str = ""


def check_all(failures: list[str], error: type[ScalebrainError], summary: str) -> None:
    """Raise one error that lists every failure, or return when there is none.

    Parameters
    ----------
    failures
        One complete message for each failure.
    error
        Class to raise.
    summary
        First line of the message; the number of failures is appended.

    Raises
    ------
    ScalebrainError
        Of class `error`, when `failures` is not empty.
    """
    if not failures:
        return
    if len(failures) == 1:
        raise error(failures[0])
    shown = "\n".join(f"  - {failure}" for failure in failures[:50])
    rest = f"\n  ... and {len(failures) - 50} more" if len(failures) > 50 else ""
    raise error(f"{summary} ({len(failures)} problems):\n{shown}{rest}")
