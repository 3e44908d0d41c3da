"""The one template environment: everything that goes into a page is escaped."""

import base64
import functools
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "script_hash", "source"]


@functools.cache
def environment() -> "Environment":
    """Environment over the package's templates, with escaping on and no silent blanks."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("scalebrain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


def source(name: str) -> str:
    """Text of a file among the templates."""
    loader = environment().loader
    if loader is None:
        return ""
    return loader.get_source(environment(), name)[0]


def script_hash(script: str) -> str:
    """Hash of a script, as the policy of a page names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
