"""Pages that are made of files outside ``docs``, and links that lead to those files.

Every Markdown file of the repository links to other files of the repository, so that the links
work where the code is read. In the site, such links lead to the page that the file became.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import jupytext
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Files of the repository, and the page that each becomes.
PAGES = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/license.md",
    "CITATION.cff": "project/citation.md",
    "deploy/README.md": "project/deploy.md",
    **{
        f"deploy/{folder}/README.md": f"project/deploy_{folder}.md"
        for folder in ("docker", "slurm", "kubernetes", "gateway", "tls", "observability")
    },
}
_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_OUTSIDE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|#|/)")

NOTE = """:::{{note}}
This notebook is shown without its outputs. To run it, do `make demo`, then open
`notebooks/{name}` in Jupyter; the tests run it on every change.
:::
"""


def page_of(path: Path) -> Path:
    """Return the page below ``docs`` that a file of the repository is in the site."""
    relative = path.relative_to(ROOT)
    if relative.as_posix() in PAGES:
        return DOCS / PAGES[relative.as_posix()]
    if relative.parts[0] == "notebooks":
        return DOCS / relative.with_suffix(".md")
    if relative.parts[0] == "docs":
        return path
    raise ExtensionError(f"{relative} is linked to, and is no page of the site")


def with_links(text: str, source: Path, page: Path) -> str:
    """Turn the links of a file of the repository into those of the page that it becomes."""

    def turned(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if _OUTSIDE.match(match[2]):
            return match[0]
        found = Path(os.path.normpath(source.parent / target))
        if not found.exists():
            raise ExtensionError(f"{source.relative_to(ROOT)}: there is no {target}")
        if found.is_dir():
            raise ExtensionError(f"{source.relative_to(ROOT)}: {target} is a folder")
        return f"{match[1]}{os.path.relpath(page_of(found), page.parent)}{hash_}{anchor}{match[3]}"

    return _LINK.sub(turned, text)


def _write(page: Path, text: str) -> None:
    page.parent.mkdir(exist_ok=True)
    page.write_text(text, encoding="utf-8")


def make_pages(_: Sphinx) -> None:
    """Write the pages; their folders hold nothing else."""
    for folder in ("project", "notebooks"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
    for name, made in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".md"):
            text = with_links(text, ROOT / name, DOCS / made)
        else:
            kind = "yaml" if name.endswith(".cff") else "text"
            title = {"LICENSE": "License", "CITATION.cff": "How to cite"}[name]
            text = f"# {title}\n\n```{kind}\n{text}```\n"
        _write(DOCS / made, text)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = jupytext.read(path)
        cells = [
            cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
            for cell in notebook.cells
            if cell.source.strip()
        ]
        cells.insert(1, NOTE.format(name=path.name))
        page = page_of(path)
        _write(page, with_links("\n\n".join(cells) + "\n", path, page))


def read_source(_: Sphinx, docname: str, content: list[str]) -> None:
    """Turn the links of a page that lies in ``docs`` as it is."""
    path = DOCS / f"{docname}.md"
    if path.exists() and path.parent == DOCS:
        content[0] = with_links(content[0], path, path)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to the build."""
    app.connect("builder-inited", make_pages, priority=100)
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True}
