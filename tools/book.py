"""Puts the pages of docs/SUMMARY.md together in .cache/book/source; mdBook makes the site of them.

Each page keeps its place in the repository, in docs/ or not, so that relative links hold; files
that pages link to come along. mdBook names README.md index.html but leaves links to it as they
are, so they are renamed here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "docs" / "SUMMARY.md"
SOURCE = ROOT / ".cache" / "book" / "source"
# A link to somewhere in the repository: its text, file and anchor.
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")


def main() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    (SOURCE / "SUMMARY.md").write_text(summary())
    for page in pages():
        place(page).write_text(renamed(page.read_text()))
        for file in attachments(page):
            shutil.copyfile(file, place(file))


def pages() -> list[Path]:
    """The pages of the site, in their order."""
    return list(targets(SUMMARY))


def summary() -> str:
    """The table of contents with links from the root of the repository instead of docs/."""

    def from_root(link: re.Match) -> str:
        return f"]({(SUMMARY.parent / link[1]).resolve().relative_to(ROOT)})"

    return renamed(LINK.sub(from_root, SUMMARY.read_text()))


def attachments(page: Path) -> Iterator[Path]:
    """What a page shows or links to that is no page itself."""
    return (file for file in targets(page) if file.is_file() and file not in pages())


def targets(page: Path) -> Iterator[Path]:
    """The files that a page links to."""
    return ((page.parent / link[1]).resolve() for link in LINK.finditer(page.read_text()))


def place(file: Path) -> Path:
    """Where a file of the repository stands among the sources of the site."""
    place = SOURCE / renamed(str(file.relative_to(ROOT)))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def renamed(text: str) -> str:
    return re.sub(r"\bREADME\.md\b(?=[)#]|$)", "index.md", text)


if __name__ == "__main__":
    main()
