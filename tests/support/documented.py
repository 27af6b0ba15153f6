"""The commands that the README and the documentation show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = tuple(sorted((DOCS / "guide").glob("*.md")))
NOTEBOOK = tuple(sorted((DOCS / "notebook").glob("*.md")))
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")), *GUIDE, *NOTEBOOK)


def blocks(pages: Sequence[Path] = PAGES) -> list[tuple[str, str]]:
    """(language with its title, content) of every block of code."""
    fenced = re.compile(r"^```(\w+.*)\n((?:.|\n)*?)^```", re.MULTILINE)
    return [block for page in pages for block in fenced.findall(page.read_text())]


def commands(*beginnings: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """Those that begin like this, each once; none of a block whose title says what it needs."""
    lines = [
        " ".join(line.removeprefix("$ ").split("  #")[0].split())
        for language, block in blocks(pages)
        if language == "console"
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]
    return [line for line in dict.fromkeys(lines) if line.startswith(beginnings or "")]


def missing_tests(names: Iterable[str]) -> list[str]:
    """Those that are not there of files, folders and `path::name` of tests, from the root."""
    return [name for name in names if not _is_there(*name.split("::"))]


def _is_there(path: str, test: str | None = None) -> bool:
    file = ROOT / path
    return file.exists() and (test is None or f"\ndef {test}(" in file.read_text())
