"""The commands from a checkout in which nothing is installed: `python cli.py export --variant ti`.

Installed, they are `cmt-export`, `cmt-bench`, `cmt-report` and `cmt-train`; see `commands`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cmt

if __name__ == "__main__":
    cmt.__path__.append(str(Path(__file__).parent))  # where an install has all folders
    from cmt.commands.main import COMMANDS, run

    name = f"cmt-{sys.argv.pop(1)}" if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        names = ", ".join(known.removeprefix("cmt-") for known in COMMANDS)
        sys.exit(f"cli.py: name a command first: {names}")
    run(name)
