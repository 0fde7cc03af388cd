"""Hooks of mkdocs: folders in the nav, and links that leave docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """An entry of the nav that ends in a slash stands for the pages in that folder and below, by name."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))


def _expanded(entry: Any, docs: Path) -> Any:
    if isinstance(entry, list):
        return [_expanded(item, docs) for item in entry]
    if isinstance(entry, dict):
        return {title: _expanded(item, docs) for title, item in entry.items()}
    return _pages(docs / entry, docs) if entry.endswith("/") else entry


def _pages(folder: Path, docs: Path) -> list[Any]:
    pages = sorted(folder.glob("*.md"), key=lambda path: (path.stem != "index", path.name))
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    return [page.relative_to(docs).as_posix() for page in pages] + [
        {inner.name: _pages(inner, docs)} for inner in folders
    ]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file that is in the repository and not in the site becomes plain text."""

    def plain(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[2]))
        return link[1] if target.startswith("../") else link[0]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", plain, markdown)
