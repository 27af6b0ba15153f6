"""The commands of an installed checkout, by name: `python cli.py export --variant ti ...`.

The same as `python -m cmt.commands export ...`, and as `cmt-export` where scripts can be started.
"""

from __future__ import annotations

from cmt.commands.main import run_named

if __name__ == "__main__":
    run_named()
