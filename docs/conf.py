"""Settings of Sphinx: README.md is the front page of the site, and the lists in it are its contents."""

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "truefit"
copyright = "the authors of truefit"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
myst_heading_anchors = 3  # links to headings, with the names that GitHub gives them
html_theme = "furo"
html_title = "truefit"
html_show_sourcelink = html_copy_source = html_show_copyright = False


def setup(app: Sphinx) -> None:
    """Give the site its contents and its index."""
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Make the README's lists of pages, each under a line in bold, the contents of the site.

    Sphinx warns of a page that is in no contents, so each page must be in one of the lists.
    """
    if name != app.config.root_doc:
        return
    for caption, listed in re.findall(r"^\*\*(.+)\*\*\n\n((?:- .+\n(?:  .+\n)*)+)", source[0], re.MULTILINE):
        pages = re.sub(r"^- \[(.+?)\]\((\S+\.md)\).*$", r"\1 <\2>", listed, flags=re.MULTILINE)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Let the front page be found where a browser looks for it."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))
