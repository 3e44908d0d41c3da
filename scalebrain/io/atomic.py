"""Small files that are whole or not there."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PART", "json_bytes", "write_atomic"]

#: Ending of a file that is being written.
PART = ".part"


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Make an indented JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under another name in its folder, then rename it.

    Parameters
    ----------
    path
        Where the file is to be; its folder is made.
    content
        What is in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
