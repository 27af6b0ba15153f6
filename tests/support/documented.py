"""The commands that the README and the documentation show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```(\w+.*)\n((?:.|\n)*?)^```", page.read_text(), re.MULTILINE)
]
"""(language with its title, content) of every block of code."""


def commands(*beginnings: str) -> list[str]:
    """Those that begin like this, each once; none of a block whose title says what it needs."""
    lines = [
        " ".join(line.removeprefix("$ ").split("  #")[0].split())
        for language, block in BLOCKS
        if language == "console"
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]
    return [line for line in dict.fromkeys(lines) if line.startswith(beginnings or "")]
