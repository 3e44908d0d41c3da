"""After a build: every link inside the site resolves, and no page loads anything from outside."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util import logging

import scalebrain

logger = logging.getLogger(__name__)


def problems(folder: Path) -> list[str]:
    """Broken links, doubled anchors and outside resources of the pages of a folder."""
    pages = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted(folder.rglob("*.html"))
    }
    anchors = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for tag in page.find_all(["script", "img", "link", "iframe", "source"]):
            target = tag.get("src") or tag.get("href") or ""
            if urlsplit(str(target)).netloc:
                found.append(f"{where}: loads {target}")
        for tag in page.find_all(["a", "img", "script", "link"]):
            target = str(tag.get("href") or tag.get("src") or "")
            parts = urlsplit(target)
            if not target or parts.scheme or parts.netloc or target == "#":
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not to.exists():
                found.append(f"{where}: there is no {target}")
            elif parts.fragment and to in anchors and unquote(parts.fragment) not in anchors[to]:
                found.append(f"{where}: {target} leads nowhere in its page")
    return found


def undocumented(folder: Path) -> list[str]:
    """Public names without a page of their own."""
    names = [name for name in scalebrain.__all__ if not name.startswith("__")]
    return [
        f"scalebrain.{name} is public and has no page: put it into docs/api.md"
        for name in names
        if not (folder / "api" / f"scalebrain.{name}.html").exists()
    ]


def check(app: Sphinx, exception: Exception | None) -> None:
    """Warn of everything found; with -W that fails the build."""
    if exception is None and app.builder.name == "html":
        folder = Path(app.outdir).resolve()
        for problem in problems(folder) + undocumented(folder):
            logger.warning(problem, type="site")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to the end of the build."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True}
