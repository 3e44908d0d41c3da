"""A log that programs read: one JSON object a line, without secrets."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from scalebrain.errors import ConfigError

__all__ = ["JsonLines", "log_to", "redact"]

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,40}://"
_URL = re.compile(rf"(?P<scheme>{_SCHEME})(?P<rest>(?:(?!{_SCHEME})[^\s'\"<>|])+)")
# User and password stand before the first slash, unless the password has one in it: what follows a
# colon there is no port, and all before the last @ is taken for them.
_USER = re.compile(r"[^/?#@:\[]*:(?!\d+(?:[/?#]|$)).*@|[^/?#]*@")
_USER_OF_BUCKET = re.compile(r"[^/?#@:\[]*:.*@|[^/?#]*@")  # a bucket has no port
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_NAMED = re.compile(
    r"(?P<name>(?:secret|token|passw(?:or)?d|passphrase|signature|credential"
    r"|(?:access|private|api)[_-]?key|authorization)[\w-]*+)"
    r"(?P<sign>\\*+['\"]?\s*+[=:]\s*+)"  # of JSON and repr() the name, too, has quotes
    r"(?:(?P<before>(?:\w*\()?[bru]*)(?P<quote>\\*['\"])"  # b'...', Some("..."), \"...\"
    r"(?:(?!(?P=quote))(?:\\.|[^\\]))*(?P<end>(?P=quote)?)"
    r"|(?:(?:basic|bearer|digest|token|negotiate|ntlm|aws4-hmac-sha256)\s+)?[^\s,;&'\"]+(?:['\"][^\s,;&'\"]+)*)",
    re.IGNORECASE | re.DOTALL,
)
_SUBJECT = re.compile(r"\bsub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?\b")


def redact(text: str) -> str:
    """Take credentials out of a text: users and queries of urls, and values named as secrets.

    Values may be plain, quoted, or quoted in JSON.

    Parameters
    ----------
    text
        Any text.

    Returns
    -------
    str
        The same with ``***`` in their place.
    """
    return _NAMED.sub(_redact_named, _URL.sub(_redact_url, text))


def _redact_named(found: re.Match[str]) -> str:
    """Name and sign without the value, whose quotes stay."""
    kept = [found[group] or "" for group in ("name", "sign", "before", "quote")]
    return "".join([*kept, "***", found["end"] or ""])


def _redact_url(found: re.Match[str]) -> str:
    """Url without its user, password, query and fragment."""
    rest = found["rest"]
    is_bucket = found["scheme"][:-3].lower() in _BUCKETS
    user = (_USER_OF_BUCKET if is_bucket else _USER).match(rest)
    kept, *hidden = re.split(r"[?#]", rest[user.end() if user else 0 :], maxsplit=1)
    return f"{found['scheme']}{'***@' if user else ''}{kept}{'?***' if hidden else ''}"


class JsonLines(logging.Handler):
    """Handler that appends to a file.

    Parameters
    ----------
    path
        File.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._stage = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; one with a stage says what those behind it belong to."""
        try:
            self._stage = getattr(record, "stage", self._stage)
            message = redact(record.getMessage())
            moment = datetime.fromtimestamp(record.created).astimezone()
            row = {
                "time": moment.isoformat("T", "milliseconds"),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
            }
            if self._stage:
                row["stage"] = self._stage
            subjects = set(_SUBJECT.findall(message))
            if len(subjects) == 1:
                row["subject"] = subjects.pop()
            if record.exc_info and record.exc_info[0] is not None:
                row["exception"] = record.exc_info[0].__name__
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError:  # a full disk; what the study itself writes there says so
            return

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what a full disk did not take
            self._file.close()
        super().close()


@contextlib.contextmanager
def log_to(path: Path | None, arguments: str) -> Iterator[None]:
    """Write the log of everything inside the block, and how it ended, to a file.

    Parameters
    ----------
    path
        File, to which is appended; None for no file.
    arguments
        What the first line says.
    """
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = JsonLines(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: the log cannot be written: {error.strerror}. Give another place."
        ) from error
    package = logging.getLogger("scalebrain")
    package.addHandler(handler)

    def say(level: int, message: str, error: BaseException | None = None) -> None:
        """Write to the file alone."""
        exc_info = None if error is None else (type(error), error, None)
        handler.handle(
            logging.LogRecord("scalebrain.cli", level, __file__, 0, message, None, exc_info)
        )

    try:
        say(logging.INFO, f"began: {arguments}")
        yield
        say(logging.INFO, "finished")
    except BaseException as error:
        code = getattr(error, "exit_code", None)  # a command ends by an exception, too
        words = f"ended with exit code {code}" if code is not None else f"failed: {error}"
        say(logging.WARNING if code is not None else logging.ERROR, words, error)
        raise
    finally:
        package.removeHandler(handler)
        handler.close()
