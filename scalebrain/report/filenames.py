"""Names of files about people."""

import hashlib
import re

__all__ = ["page_name"]


def page_name(subject: str) -> str:
    """Name of a file about a subject, whatever its label holds.

    Parameters
    ----------
    subject
        Label.

    Returns
    -------
    str
        What is not a letter, a digit, ``-`` or ``_`` is left out, and a hash of the label put in.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "", subject)[:100]
    if name != subject:
        name += "-" + hashlib.sha256(subject.encode()).hexdigest()[:8]
    return name
